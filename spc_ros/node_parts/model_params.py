# SPDX-License-Identifier: Apache-2.0
"""Parameters of the nodes that run a checkpoint, and the objects that those parameters describe."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from spc_core.contract.contract import Contract, load_contract
from spc_core.deploy.checkpoint_files import CheckpointError
from spc_core.deploy.deployable import Deployable, load_deployed
from spc_core.deploy.guards import FROM_CONTRACT, LOSSES, ObservationWatch, WorkspaceBox, stricter_modes
from spc_core.method.config import PlannerConfig
from spc_core.system.config_files import find_config
from spc_ros.node_parts.plain_node import Param

CHECKPOINT_PARAMS = (
    Param("checkpoint", "", "folder of a trained checkpoint, or of its export to ONNX"),
    Param(
        "contract",
        "",
        "the robot's contract, which must be equivalent to the checkpoint's; empty: not checked",
        at_configure=True,
    ),
    Param("device", "cpu", "device of the networks: cpu, cuda, cuda:<n> or auto"),
    Param("threads", 1, "CPU threads of the networks; more than one is slower for a single robot", 1, 64),
    Param(
        "lockstep",
        False,
        "simulated time waits for our commands: reliable QoS, no deadlines; false: sensor data QoS",
        at_configure=True,
    ),
)
_fixed = partial(Param, at_configure=True)
POLICY_PARAMS = [
    *CHECKPOINT_PARAMS,
    Param(
        "activate",
        True,
        "with autostart, drive as soon as data come; false: wait until an operator activates",
        read_only=True,
    ),
    Param(
        "shadow",
        False,
        "run beside the controller that drives: publish on shadow/<command topic> only, and compare",
        read_only=True,
    ),
    Param("context_wait_s", 0.0, "longest wait for the context of the same tick; 0: use the newest", 0.0, 60.0),
    Param(
        "silence_timeout_s",
        0.0,
        "safe action after this time without observation; 0: 1.5 periods, in lockstep max_age + 2",
        0.0,
        60.0,
        at_configure=True,
    ),
    _fixed(
        "hold_ms",
        [FROM_CONTRACT],
        "hold the last command this long when observations fail; one or one per stream; -1: contract's",
    ),
    _fixed(
        "deactivate_after_s",
        [FROM_CONTRACT],
        "deactivate when they fail this long; one or one per stream; 0: never; -1: contract's",
    ),
    _fixed("clock_timeout_s", 0.2, "use_sim_time: safe action when /clock stands still this long; 0: never", 0.0, 60.0),
    _fixed(
        "context_timeout_s", 0.0, "safe action after this time without a context; 0: keep using the last one", 0.0, 60.0
    ),
    _fixed("workspace_fields", [""], "observation fields of the box, such as position.elbow"),
    _fixed("workspace_low", [0.0], "lower bound of each workspace field"),
    _fixed("workspace_high", [0.0], "upper bound of each workspace field"),
    _fixed("estop_loss", "ignore", "reaction when emergency_stop falls silent after its first message", choices=LOSSES),
    _fixed("estop_timeout_s", 1.0, "silence after which emergency_stop counts as lost", 0.01, 3600.0),
    _fixed(
        "estop_required",
        False,
        "act only after emergency_stop has said false since this node started",
    ),
    Param(
        "other_publishers",
        "refuse",
        "when others publish on the command topic: refuse (be inactive) | warn (act beside them)",
        choices=("refuse", "warn"),
    ),
    _fixed("probation_ticks", 50, "actions after a swap during which a failing model is rolled back", 0, 1_000_000),
    Param(
        "realtime_priority",
        0,
        "real-time priority of all threads (SCHED_FIFO), for a busy machine; 0: none",
        0,
        99,
        read_only=True,
    ),
    Param("min_subscriptions", 1, "subscribers of the command topic to await before the first command", 0, 100),
    Param("planning", False, "plan with the world model instead of using the actor; slower", read_only=True),
    Param(
        "planning_samples",
        PlannerConfig.samples,
        "sequences sampled per iteration; fewer are faster (see 'plans too late' on /diagnostics)",
        0,
        100_000,
        read_only=True,
    ),
    Param(
        "planning_deadline_ms",
        0.0,
        "time limit of a plan; 0: half the control period, none in lockstep",
        0.0,
        60_000.0,
        read_only=True,
    ),
]


def load_agent(params: Any, folder: str, running: Contract | None = None) -> Deployable:
    """Load the checkpoint, or the exported checkpoint, that a node runs.

    `running`: the contract that a configured node already uses; its topics are fixed. Raises CheckpointError when the
    checkpoint's contract differs from the robot's.
    """
    if not folder:
        raise CheckpointError("parameter 'checkpoint' is empty; set it to the folder that `spc train` wrote")
    checkpoint = load_deployed(folder, params.device, params.threads)
    if checkpoint.config.method.context == "oracle":
        raise CheckpointError(
            f"checkpoint {folder}: method '{checkpoint.config.method.name}' needs the true task "
            "parameters, which a robot does not know; use it with `spc evaluate` and `spc compare` only"
        )
    if running is not None:
        _compare(running, "of the running node", checkpoint, folder)
    elif params.contract:
        path = find_config("contracts", params.contract)
        _compare(load_contract(path), str(path), checkpoint, folder)
    return checkpoint


def with_qos(contract: Contract, params: Any) -> Contract:
    """The checkpoint's contract with the `qos` of the robot's own, if one is given: only this may differ."""
    if not params.contract:
        return contract
    own = load_contract(find_config("contracts", params.contract))
    streams = zip(contract.observation, own.observation, strict=True)
    return dataclasses.replace(
        contract, observation=tuple(dataclasses.replace(stream, qos=mine.qos) for stream, mine in streams)
    )


def _compare(contract: Contract, name: str, checkpoint: Deployable, folder: str) -> None:
    lines = contract.differences(checkpoint.contract)
    if lines:
        where = f"contract {name} (here) differs from that of checkpoint {folder} (there)"
        raise CheckpointError("\n  ".join([f"{where}:", *lines]))


def observation_watch(params: Any, contract: Contract) -> ObservationWatch:
    """Raises GuardError, which names the invalid parameter."""
    first = contract.observation[0]
    silence_s = first.max_age_s + 2 / contract.rate_hz if params.lockstep else 1.5 / contract.rate_hz
    topics = [stream.topic for stream in contract.observation]
    kinds = stricter_modes(contract.losses, params.hold_ms, params.deactivate_after_s)
    return ObservationWatch(topics, kinds, params.silence_timeout_s or silence_s)


def workspace_box(params: Any, contract: Contract) -> WorkspaceBox:
    """Raises GuardError, which names the invalid parameter."""
    if list(params.workspace_fields) == [""]:  # stands for the empty list, which ROS parameters lack
        return WorkspaceBox(contract, (), (), ())
    return WorkspaceBox(contract, params.workspace_fields, params.workspace_low, params.workspace_high)


def planner_config(params: Any, contract: Contract) -> PlannerConfig | None:
    """The planner that the parameters describe; None: no planning."""
    if not params.planning:
        return None
    default_ms = 0.0 if params.lockstep else 500 / contract.rate_hz
    samples = params.planning_samples
    return PlannerConfig(
        samples=samples,
        elites=max(1, samples * PlannerConfig.elites // PlannerConfig.samples),  # the same fraction
        deadline_ms=params.planning_deadline_ms or default_ms,
    )
