# SPDX-License-Identifier: Apache-2.0
"""Operating-system services: files, signals, child processes and memory."""
