# SPDX-License-Identifier: Apache-2.0
"""Few-shot trials and their rehearsal in simulation: protocols, logs, scores, drift."""
