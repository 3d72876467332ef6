# SPDX-License-Identifier: Apache-2.0
"""Datasets: written, packed for training, sampled, described, relabelled, exported."""
