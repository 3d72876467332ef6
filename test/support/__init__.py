# SPDX-License-Identifier: Apache-2.0
"""What tests share: recordings, datasets, checkpoints, messages, a probe for nodes."""
