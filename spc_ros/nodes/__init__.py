# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 nodes: each file is a program with a `main`."""
