# SPDX-License-Identifier: Apache-2.0
"""The contract of a robot: its observations, actions, reward and episodes, in one YAML file."""
