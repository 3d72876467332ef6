# SPDX-License-Identifier: Apache-2.0
"""Files, signals, processes and memory, as the operating system gives them."""
