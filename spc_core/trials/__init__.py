# SPDX-License-Identifier: Apache-2.0
"""Few-shot trials: protocols, options, logs, scores and the drift test."""
