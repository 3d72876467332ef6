# SPDX-License-Identifier: Apache-2.0
"""Fast alignment of a recorded log from arrays, bitwise equal to `alignment/streaming.py`."""
