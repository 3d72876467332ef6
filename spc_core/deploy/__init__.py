# SPDX-License-Identifier: Apache-2.0
"""The part of a robot's program that is independent of ROS: checkpoint, policy, context, safety."""
