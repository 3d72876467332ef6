# SPDX-License-Identifier: Apache-2.0
"""How long after a command the state answers: measured in recordings, and online."""
