# SPDX-License-Identifier: Apache-2.0
"""Serialized messages to numbers and back, by the contract. Needs no ROS installation."""
