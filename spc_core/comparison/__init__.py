# SPDX-License-Identifier: Apache-2.0
"""Methods side by side on one dataset: the plan, its runs, what they add up to, and the pictures of it."""
