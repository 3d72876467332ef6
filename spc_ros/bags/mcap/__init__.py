# SPDX-License-Identifier: Apache-2.0
"""Bags stored as mcap files."""
