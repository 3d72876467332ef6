# SPDX-License-Identifier: Apache-2.0
"""From a packed dataset to a checkpoint: the loop, validation, resuming, several processes."""
