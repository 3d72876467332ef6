# SPDX-License-Identifier: Apache-2.0
"""Moves data between ROS 2 (bags, topics, services) and spc_core. Each folder imports only those before it."""

IMPORT_ORDER = ("messages", "bags", "conversion", "doctor", "sim", "node_parts", "nodes", "trials", "commands")
