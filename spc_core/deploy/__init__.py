# SPDX-License-Identifier: Apache-2.0
"""What runs on a robot, still without ROS: checkpoint to policy, context, safety."""
