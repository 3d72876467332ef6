# SPDX-License-Identifier: Apache-2.0
"""Systems of nodes started, run and stopped: collecting, trials, the demo, latency."""
