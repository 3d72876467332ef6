# SPDX-License-Identifier: Apache-2.0
"""From samples of a bag or a live stream to ticks, transitions and episodes."""

PATIENCE_NS = 1_000_000_000  # how far topics may be out of order relative to each other, in a bag or live
NO_TIME = -(2**62)  # a stamp before all others
