# SPDX-License-Identifier: Apache-2.0
"""Parameters of the nodes that run a checkpoint, and how they load it."""

from __future__ import annotations

from typing import Any

from spc_core.contract.contract import Contract, load_contract
from spc_core.deploy.checkpoint_files import CheckpointError
from spc_core.deploy.deployable import Deployable, load_deployed
from spc_core.system.config_files import find_config
from spc_ros.node_parts.plain_node import Param

CHECKPOINT_PARAMS = (
    Param("checkpoint", "", "folder of a trained checkpoint, or of its export to ONNX"),
    Param(
        "contract",
        "",
        "the robot's contract; must mean the same as the checkpoint's. Empty: not compared",
        at_configure=True,
    ),
    Param("device", "cpu", "where the networks run: cpu, cuda, cuda:<n> or auto"),
    Param("threads", 1, "CPU threads of the networks; more is slower for one robot", 1, 64),
    Param(
        "lockstep",
        False,
        "time waits for our commands: lose nothing, hurry nothing; false: sensor data",
        at_configure=True,
    ),
)


def load_agent(params: Any, folder: str, running: Contract | None = None) -> Deployable:
    """The checkpoint, or export of one, that a node was given.

    `running` is the contract that the node works by already, whose topics it could not change any more. Raises
    CheckpointError when the checkpoint's contract is not the robot's.
    """
    if not folder:
        raise CheckpointError("parameter 'checkpoint' is empty; give the folder that `spc train` wrote")
    checkpoint = load_deployed(folder, params.device, params.threads)
    if checkpoint.config.method.context == "oracle":
        raise CheckpointError(
            f"checkpoint {folder}: method '{checkpoint.config.method.name}' must be told the true task "
            "parameters, which no robot knows; it serves `spc evaluate` and `spc compare` only"
        )
    if running is not None:
        _compare(running, "that the node runs by", checkpoint, folder)
    elif params.contract:
        path = find_config("contracts", params.contract)
        _compare(load_contract(path), str(path), checkpoint, folder)
    return checkpoint


def _compare(contract: Contract, name: str, checkpoint: Deployable, folder: str) -> None:
    lines = contract.differences(checkpoint.contract)
    if lines:
        where = f"contract {name} (here) is not the one of checkpoint {folder} (there)"
        raise CheckpointError("\n  ".join([f"{where}:", *lines]))
