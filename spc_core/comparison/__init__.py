# SPDX-License-Identifier: Apache-2.0
"""Comparison of methods on one dataset: the plan, its runs, statistics and the table."""
