# SPDX-License-Identifier: Apache-2.0
"""Estimation of the delay from command to state, from recordings and online."""
