# SPDX-License-Identifier: Apache-2.0
"""Bags and live streams as ticks, frames and episodes: what an observation, an action and a gap mean in time."""
