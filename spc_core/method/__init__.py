# SPDX-License-Identifier: Apache-2.0
"""The method in the paper's notation; fused.py computes the same update faster."""
