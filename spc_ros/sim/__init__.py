# SPDX-License-Identifier: Apache-2.0
"""The simulated robot behind the node `sim`, without ROS."""
