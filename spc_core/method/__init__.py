# SPDX-License-Identifier: Apache-2.0
"""The method, in the paper's order and letters: layers, encoder, world model, losses, IQL, agent, planner.

fused.py computes the same update faster.
"""
