# SPDX-License-Identifier: Apache-2.0
"""Bags to datasets: which bags, in which processes, and what came of each."""
