# SPDX-License-Identifier: Apache-2.0
"""Datasets in the formats of other projects."""
