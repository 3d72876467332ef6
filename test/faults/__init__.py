# SPDX-License-Identifier: Apache-2.0
"""The tables of faults, and the worlds that they are injected into."""
