# SPDX-License-Identifier: Apache-2.0
"""Moves data between ROS 2 (bags, topics, services) and spc_core."""
