# SPDX-License-Identifier: Apache-2.0
"""The rows about the two ends of the loop: the policy's process frozen, the robot's subscription gone."""

from __future__ import annotations

import signal
import time

from faults.node_table import Fault
from faults.node_world import PERIOD_S, SAFE, World


def policy_frozen(world: World) -> float:
    """The robot goes on until two periods before the policy does, so that all that waits for it is stale."""
    world.policy.send_signal(signal.SIGSTOP)
    try:
        world.run(8, world.tick)
        world.run(2)
    finally:
        world.policy.send_signal(signal.SIGCONT)
    began_s = time.monotonic()
    world.run(3)
    acted = [values for at_s, values in world.commands if at_s > began_s and values != SAFE]
    assert not acted, f"{len(acted)} commands answer observations that waited while the policy was frozen"
    return began_s


def robot_deaf(world: World) -> float:
    began_s = time.monotonic()
    world.stop_listening()
    try:
        world.run(1.2 / PERIOD_S, world.tick)  # it is looked at once a second
    finally:
        world.listen()
    world.until(world.answers, world.tick)
    return began_s


ENDS = (
    Fault("the policy is frozen", "SIGSTOP of the policy; states keep arriving and queue up; SIGCONT.",
          "None of them is answered; safe action, timed from SIGCONT.", policy_frozen,
          counted=("silence|fault",)),
    Fault("nobody receives the commands", "The robot's subscription disappears for 1.2 s.",
          "Reported on `/diagnostics`; keeps acting when it is back.", robot_deaf, "none",
          counted=("commands unheard",)),
)  # fmt: skip
