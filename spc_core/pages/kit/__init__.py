# SPDX-License-Identifier: Apache-2.0
"""Shared by all pages: HTML, the style of figures, PNG."""
