# SPDX-License-Identifier: Apache-2.0
"""Conduct a trial or a deployed policy: one screen with keys, or one action."""

from __future__ import annotations

import dataclasses
import sys

import tyro

ACTIONS = (
    "continue", "success", "failure", "end", "pause", "resume", "abort", "stop", "release", "activate", "deactivate",
    "swap", "reset", "status",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Operator:
    """Conduct a trial or a deployed policy over plain rclpy: one screen with keys, or one action.

    Keep the screen open while its emergency stop is pressed: a node that starts after it has ended does not know.

    examples:
      spc operator
      spc operator continue
      spc operator stop --namespace robot1
    """

    # One action instead of the screen: continue, success, failure, end, pause, resume, abort, stop (the emergency
    # stop), release, activate, deactivate, swap, reset or status
    action: tyro.conf.Positional[str] = ""
    namespace: str = ""  # the robot's namespace
    timeout_s: float = 5.0  # longest wait for the node and its answer


def run(options: Operator) -> int:
    from spc_ros.trials.operator_console import act_once, run_console

    if options.action and options.action not in ACTIONS:
        raise ValueError(f"unknown action '{options.action}'; use one of: {', '.join(ACTIONS)}")
    if not options.action:
        return run_console(options.namespace)
    accepted, text = act_once(options.action, options.namespace, options.timeout_s)
    print(text, file=sys.stdout if accepted else sys.stderr)
    return 0 if accepted else 1
