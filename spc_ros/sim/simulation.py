# SPDX-License-Identifier: Apache-2.0
"""A simulated robot over time: ticks, episodes, and the matching of commands to states. Without ROS."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import numpy as np

from spc_core.alignment.episode import EpisodeInfo, TaskChange
from spc_core.contract.contract import Contract, ContractError, load_contract
from spc_core.system.config_files import find_config
from spc_core.tasks import Task, contract_file, make_env
from spc_core.tasks.disturbances import DisturbanceConfig, Disturbances
from spc_core.tasks.mjcf import MjcfEnv
from spc_core.tasks.task_env import TaskEnv

RESET_GAP_NS = 1_000_000_000  # simulated time between two episodes: a gap, so that aligners restart
FACTOR_WINDOW_S = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """The robot's state at a tick; `reward` belongs to the transition that ends here, None without one."""

    t_ns: int
    observation: np.ndarray  # (O,) as measured
    reward: float | None
    resting: tuple[str, ...] = ()  # observed topics without a message at this tick


class Simulation:
    """One environment behind a contract. Time only moves forward, also across episodes."""

    def __init__(self, env: TaskEnv, contract: Contract) -> None:
        self.fields = tuple(f"{stream.topic}.{path}" for stream in contract.observation for path in stream.fields)
        sizes = (len(env.observation_names), len(env.action_names), env.control_hz)
        wanted = (len(self.fields), contract.action_dim, contract.rate_hz)
        for quantity, found, expected in zip(("observations", "actions", "Hz"), sizes, wanted, strict=True):
            if found != expected:
                raise ContractError(
                    f"contract '{contract.name}' has {expected:g} {quantity}, the family '{env.family}' {found:g}; "
                    "give the contract of the family"
                )
        self.env, self.contract = env, contract
        self.t_ns = 0
        self.info = EpisodeInfo("idle", env.task.task_id, dict(env.task.params), 0, 0, 0)
        self.disturbances = self._disturbances(DisturbanceConfig(), 0)

    @property
    def running(self) -> bool:
        return self.info.state == "running"

    def reset(self, task: Task, seed: int, config: DisturbanceConfig | None = None) -> State:
        """Start an episode on a multiple of the period, a gap after the last state.

        Raises ValueError for invalid disturbances, and then changes nothing.
        """
        disturbances = self._disturbances(config or DisturbanceConfig(), seed)
        observation, _ = self.env.reset(seed=seed, options={"task": task})
        self.disturbances = disturbances
        period = self.contract.period_ns
        self.t_ns = -(-(self.t_ns + RESET_GAP_NS) // period) * period
        self.info = EpisodeInfo(
            "running", task.task_id, dict(task.params), self.info.episode + 1, seed, start_ns=self.t_ns
        )
        return State(self.t_ns, disturbances.measured(observation), None, self.env.resting_topics())

    def _disturbances(self, config: DisturbanceConfig, seed: int) -> Disturbances:
        contract = self.contract
        safe = np.asarray(contract.action.safe)
        return Disturbances(config, self.fields, safe, contract.period_ns / 1e9, seed)

    def refusal(self, t_ns: int | None, action: np.ndarray) -> str | None:
        """The reason why a command does not match the current state, or None. `t_ns`: its stamp, or None."""
        if not self.running:
            return "command outside an episode"
        if not np.isfinite(action).all():
            return "command not finite"
        if t_ns is not None and t_ns <= self.t_ns:
            return "command for an earlier state"
        if t_ns is not None and t_ns > self.t_ns + self.contract.period_ns:
            return "command from the future"
        return None

    def step(self, action: np.ndarray) -> State:
        """Advance by one period; ends the episode when the task or its time is over."""
        self.env.push(self.disturbances.push(self.env.dofs))
        observation, reward, terminated, truncated, notes = self.env.step(self.disturbances.applied(action))
        self.t_ns += self.contract.period_ns
        if terminated or truncated:
            self.end("task ended" if terminated else "time limit", bool(terminated), bool(truncated))
        elif "broken" in notes:  # neither: the episode has no valid end
            self.end(notes["broken"])
        measured = self.disturbances.measured(observation)
        return State(self.t_ns, measured, None if reward is None else float(reward), self.env.resting_topics())

    @property
    def steps(self) -> int:
        """Steps so far in the running episode."""
        return (self.t_ns - self.info.start_ns) // self.contract.period_ns

    def change(self, task: Task, announced: bool) -> None:
        """Change the task during an episode; the robot's state stays."""
        self.env.set_task(task)
        change = TaskChange(self.t_ns, task.task_id, dict(task.params), announced)
        self.info = dataclasses.replace(self.info, changes=(*self.info.changes, change))

    def end(self, reason: str, terminated: bool = False, truncated: bool = False) -> None:
        """End the running episode here."""
        ended = {"end_ns": self.t_ns, "terminated": terminated, "truncated": truncated, "reason": reason}
        self.info = dataclasses.replace(self.info, state="ended", **ended)


class RealTimeFactor:
    """Simulated seconds for each real second, over the last few real seconds."""

    def __init__(self, period_s: float, start_s: float, window_s: float = FACTOR_WINDOW_S) -> None:
        self._period_s, self._start_s, self._window_s = period_s, start_s, window_s
        self._steps: deque[float] = deque()

    def step(self, now_s: float) -> None:
        """Count a step at this real time."""
        self._steps.append(now_s)
        self._forget(now_s)

    def value(self, now_s: float) -> float:
        """1 if the simulation keeps up with real time; 0 if it stands still."""
        self._forget(now_s)
        past_s = min(self._window_s, now_s - self._start_s)
        return len(self._steps) * self._period_s / past_s if past_s > 0 else 0.0

    def _forget(self, now_s: float) -> None:
        while self._steps and self._steps[0] <= now_s - self._window_s:
            self._steps.popleft()


def make_simulation(params: Any) -> Simulation:
    """The simulation described by the node's parameters. Raises ValueError: ContractError, ModelError."""
    if not params.model:
        contract = load_contract(contract_file(params.contract, params.family))
        return Simulation(make_env(params.family), contract)
    if not params.contract:
        raise ValueError(f"parameter 'contract' is empty; give the contract of the robot in model {params.model}")
    contract = load_contract(find_config("contracts", params.contract))
    return Simulation(MjcfEnv(params.model, contract, params.keyframe, params.task_id), contract)
