# SPDX-License-Identifier: Apache-2.0
"""Bags without ROS: files, records, message layouts, columns of numbers; damaged ones as far as they are whole."""
