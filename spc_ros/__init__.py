# SPDX-License-Identifier: Apache-2.0
"""Moves data between ROS 2 (bags, topics, services) and spc_core."""

import os

# Before numpy is loaded: a product of one row is over before a second thread has woken up for it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
