# SPDX-License-Identifier: Apache-2.0
"""Bags stored as SQLite databases."""
