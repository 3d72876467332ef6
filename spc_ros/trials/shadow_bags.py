# SPDX-License-Identifier: Apache-2.0
"""Shadow mode on recordings: what a policy would have commanded, next to what was commanded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from spc_core.alignment.streaming import Frame, Transition
from spc_core.contract.contract import Contract
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.controller import Controller, Guards, Record
from spc_core.deploy.deployable import Deployable, Policy, load_deployed
from spc_core.deploy.emergency_stop import EmergencyStop
from spc_core.deploy.guards import FROM_CONTRACT, Heartbeat, ObservationWatch, StallWatch, WorkspaceBox, stricter_modes
from spc_core.deploy.model_swap import ModelSwitch
from spc_core.deploy.shadow import ShadowComparison
from spc_ros.bags.files import BagError, find_bags
from spc_ros.bags.reader import BagReader
from spc_ros.conversion.bag_conversion import Ticks, align_bag


@dataclasses.dataclass
class ShadowBag:
    """One recording: its comparison, and the number of transitions that the context was learnt from."""

    path: Path
    comparison: ShadowComparison
    transitions: int


class _Sink:
    """Takes the controller's commands; nothing else can happen to a recording."""

    def __init__(self, comparison: ShadowComparison) -> None:
        self._comparison = comparison
        self.controller: Controller | None = None
        self.deactivated = ""

    def send(self, action: np.ndarray, t_ns: int) -> None:
        assert self.controller is not None
        kinds = [kind.value for kind, _ in self.controller.filter.interventions]
        if "closed" not in kinds:
            self._comparison.would(t_ns, action, kinds)

    def publish_intervention(self, event: str) -> None:
        pass

    def publish_swap(self, state: str, model: int, reason: str = "") -> None:
        pass

    def deactivate(self, reason: str) -> None:
        """On a robot the policy would rest until somebody activates it; here it continues, and the reason is kept."""
        self.deactivated = reason

    def has_listeners(self) -> bool:
        return True


def shadow_bags(
    run: str | Path,
    paths: Sequence[Path],
    progress: Callable[[int, int, str], None] | None = None,
    learn: bool = True,
    types: Mapping[str, str] | None = None,
) -> tuple[Contract, list[ShadowBag]]:
    """The checkpoint's contract, and a comparison for each bag.

    The context starts from the prior in each, and stays there unless `learn`. `types`: definitions that the bags lack.

    Raises BagError, MessageError and CheckpointError.
    """
    deployed = load_deployed(str(run))
    bags = find_bags(paths)
    found = []
    for number, path in enumerate(bags):
        if progress is not None:
            progress(number, len(bags), path.name)
        with BagReader(path, types) as bag:
            ticks = align_bag(bag, deployed.contract).aligned.ticks
        found.append(shadow_ticks(deployed, ticks, path, learn))
    if progress is not None:
        progress(len(bags), len(bags), "")
    if not any(entry.comparison.ticks for entry in found):
        raise BagError(f"{paths[0]}: no tick of these recordings has an observation; look at them with `spc doctor`")
    return deployed.contract, found


def shadow_ticks(deployed: Deployable, ticks: Ticks, path: Path, learn: bool = True) -> ShadowBag:
    """Drive the policy's controller through a recording's ticks; z at a tick is of the transitions before it."""
    contract, comparison = deployed.contract, ShadowComparison(deployed.contract)
    comparison.pairs = []
    sink, policy, tracker = _Sink(comparison), Policy(deployed), ContextTracker(deployed)
    modes = stricter_modes(contract.losses, [FROM_CONTRACT], [FROM_CONTRACT])
    guards = Guards(
        ObservationWatch([stream.topic for stream in contract.observation], modes, math.inf),
        WorkspaceBox(contract, (), (), ()), EmergencyStop(), Heartbeat("", 0.0), Heartbeat("", 0.0),
        StallWatch(math.inf, 0.0),
    )  # fmt: skip
    switch = ModelSwitch(policy, 0, 0, math.inf)
    controller = Controller(contract, switch, deployed.config.model.context_dim, guards, sink, Record())
    sink.controller = controller
    controller.start(0.0)
    transitions = 0
    whole = ticks.has_transition
    for i, (t_ns, observation) in enumerate(zip(ticks.t_ns.tolist(), ticks.observations, strict=True)):
        now_s, known = t_ns / 1e9, bool(np.isfinite(observation).all())
        if whole[i]:
            sent_ns = int(ticks.t_ns[i - 1] + max(1, ticks.lags_ns[i]))
            for part, columns in enumerate(contract.action.slices):
                comparison.incumbent(sent_ns, ticks.actions[i][columns], part)
        controller.observe(
            [Frame(t_ns, observation if known else None, None if known else ticks.fault(i))], True, now_s
        )
        if whole[i] and learn:
            transitions += 1
            reward, before = float(ticks.rewards[i]), ticks.observations[i - 1]
            tracker.update(Transition(int(ticks.t_ns[i - 1]), before, ticks.actions[i], reward, observation))
            controller.take_context(tracker.context, t_ns, None, now_s)
    comparison.finish()
    return ShadowBag(path, comparison, transitions)
