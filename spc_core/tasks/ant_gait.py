# SPDX-License-Identifier: Apache-2.0
"""An ant's gait in any direction, from what it observes alone: who drives the recordings of ants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEGS = np.radians([45, 135, 225, 315])  # where legs 1 to 4 point from the torso
OUTWARD = np.stack([np.cos(LEGS), np.sin(LEGS)], 1)  # (4, 2)
BENDS = np.array([1.0, -1.0, -1.0, 1.0])  # the sign of each ankle's range
PAIRS = np.exp(1j * np.array([0, np.pi, 0, np.pi]))  # opposite legs step together
# Found by a cross-entropy search over the return of ant_dir, in a minute.
RATE = 12.7  # rad/s
REACH, LIFT, STANCE = 0.7, 0.06, 0.9  # rad, of ankles: along the way, a quarter of a period later, and their middle
POSITION_GAIN, VELOCITY_GAIN = 0.2, 0.04  # shares of torque for each rad, and rad/s


class AntGait:
    """Ankles swing as a_j exp(i phase), hips hold still; the phase is the one that fits positions and velocities best.

    So it needs neither clock nor memory. Amplitudes follow from the direction as the torso sees it.
    """

    def __init__(self, observation_names: Sequence[str], action_names: Sequence[str], period_s: float) -> None:
        joints = [f"{part}_{leg}" for leg in range(1, 5) for part in ("hip", "ankle")]
        self._positions = [observation_names.index(f"position.{joint}") for joint in joints]
        self._velocities = [observation_names.index(f"velocity.{joint}") for joint in joints]
        self._turned = [observation_names.index(f"orientation.{axis}") for axis in "xyzw"]
        self._actions = [joints.index(name) for name in action_names]
        self._ahead = np.exp(1j * RATE * period_s)

    def act(self, observation: np.ndarray, way: np.ndarray) -> np.ndarray:
        """Torques (8,) for a way (2,) of length 0, to stay, to 1, for full steps."""
        x, y, z, w = observation[self._turned]
        yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        ahead, left = np.cos(yaw) * way[0] + np.sin(yaw) * way[1], np.cos(yaw) * way[1] - np.sin(yaw) * way[0]
        swing, middle = np.zeros(8, complex), np.zeros(8)  # hip and ankle of each leg
        swing[1::2] = BENDS * (1j * LIFT + REACH * (OUTWARD @ (ahead, left))) * PAIRS
        middle[1::2] = BENDS * STANCE
        position, velocity = observation[self._positions], observation[self._velocities]
        fit = np.vdot(swing, position - middle - 1j * velocity / RATE)
        wanted = swing * (fit / abs(fit) if fit else 1.0) * self._ahead
        speed = (1j * RATE * wanted).real
        torque = POSITION_GAIN * (middle + wanted.real - position) + VELOCITY_GAIN * (speed - velocity)
        return np.clip(torque, -1, 1)[self._actions]
