# SPDX-License-Identifier: Apache-2.0
"""Bags without ROS: files, records, storages; damaged ones are read as far as possible."""
