# SPDX-License-Identifier: Apache-2.0
"""Parameters of the policy node, and what they make of the planner and of the watch over observations."""

from __future__ import annotations

from functools import partial
from typing import Any

from spc_core.contract.contract import Contract
from spc_core.deploy.guards import FROM_CONTRACT, LOSSES, EmergencyStop, ObservationWatch, WorkspaceBox, stricter_modes
from spc_core.method.config import PlannerConfig
from spc_ros.node_parts.checkpoint_params import CHECKPOINT_PARAMS
from spc_ros.node_parts.plain_node import Param

_fixed = partial(Param, at_configure=True)
PARAMS = [
    *CHECKPOINT_PARAMS,
    Param("context_wait_s", 0.0, "longest wait for the context of the same tick; 0: take the newest", 0.0, 60.0),
    Param(
        "silence_timeout_s",
        0.0,
        "safe action after so long without observation; 0: 1.5 periods, in lockstep max_age + 2",
        0.0,
        60.0,
        at_configure=True,
    ),
    _fixed(
        "hold_ms",
        [FROM_CONTRACT],
        "hold the last command for so long when observations fail; one or one per stream; -1: contract's",
    ),
    _fixed(
        "deactivate_after_s",
        [FROM_CONTRACT],
        "deactivate when they fail for so long; one or one per stream; 0: never; -1: contract's",
    ),
    _fixed("clock_timeout_s", 0.2, "use_sim_time: safe action when /clock stands so long; 0: never", 0.0, 60.0),
    _fixed("context_timeout_s", 0.0, "safe action after so long without context; 0: act on the last one", 0.0, 60.0),
    _fixed("workspace_fields", [""], "observation fields of the box, such as position.elbow"),
    _fixed("workspace_low", [0.0], "the least value of each workspace field"),
    _fixed("workspace_high", [0.0], "the largest value of each workspace field"),
    _fixed("estop_loss", "ignore", "when emergency_stop was received once and falls silent", choices=LOSSES),
    _fixed("estop_timeout_s", 1.0, "silence that counts as loss of emergency_stop", 0.01, 3600.0),
    _fixed("probation_ticks", 50, "actions after a swap during which a failing model is rolled back", 0, 1_000_000),
    Param(
        "realtime_priority",
        0,
        "of all its threads (SCHED_FIFO), so that a busy machine delays no command; 0: none",
        0,
        99,
        read_only=True,
    ),
    Param("min_subscriptions", 1, "subscribers of the command topic to wait for before the first command", 0, 100),
    Param("planning", False, "plan with the world model instead of asking the actor; takes more time", read_only=True),
    Param(
        "planning_samples",
        PlannerConfig.samples,
        "sequences drawn in each round; fewer are faster (see 'plans too late' on /diagnostics)",
        0,
        100_000,
        read_only=True,
    ),
    Param(
        "planning_deadline_ms",
        0.0,
        "longest time for a plan; 0: half of the control period, in lockstep none",
        0.0,
        60_000.0,
        read_only=True,
    ),
]


def observation_watch(params: Any, contract: Contract) -> ObservationWatch:
    """Raises GuardError naming the parameter that cannot be."""
    first = contract.observation[0]
    silence_s = first.max_age_s + 2 / contract.rate_hz if params.lockstep else 1.5 / contract.rate_hz
    topics = [stream.topic for stream in contract.observation]
    kinds = stricter_modes(contract.losses, params.hold_ms, params.deactivate_after_s)
    return ObservationWatch(topics, kinds, params.silence_timeout_s or silence_s)


def workspace_box(params: Any, contract: Contract) -> WorkspaceBox:
    """Raises GuardError naming the parameter that cannot be."""
    if list(params.workspace_fields) == [""]:  # what ROS can say of an empty list
        return WorkspaceBox(contract, (), (), ())
    return WorkspaceBox(contract, params.workspace_fields, params.workspace_low, params.workspace_high)


def emergency_stop(params: Any) -> EmergencyStop:
    return EmergencyStop(params.estop_loss, params.estop_timeout_s)


def planner_config(params: Any, contract: Contract) -> PlannerConfig | None:
    """How the parameters ask to plan; None: not at all."""
    if not params.planning:
        return None
    in_time_ms = 0.0 if params.lockstep else 500 / contract.rate_hz
    samples = params.planning_samples
    return PlannerConfig(
        samples=samples,
        elites=max(1, samples * PlannerConfig.elites // PlannerConfig.samples),  # the same share of them
        deadline_ms=params.planning_deadline_ms or in_time_ms,
    )
