# SPDX-License-Identifier: Apache-2.0
"""Alignment of a recorded log from arrays, in bulk: equal to the last bit to `alignment/streaming.py`, and fast."""
