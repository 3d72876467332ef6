# SPDX-License-Identifier: Apache-2.0
"""A simulated robot in time: ticks, episodes, and which command answers which state. No ROS in here."""

from __future__ import annotations

import dataclasses

import numpy as np

from spc_core.contract import Contract, ContractError
from spc_core.episode import EpisodeInfo
from spc_core.tasks import Task, TaskEnv

RESET_GAP_NS = 1_000_000_000  # simulated time between two episodes; a gap, so that assemblers start anew


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """What the robot says at a tick; `reward` is of the transition that ended here, None at the start."""

    t_ns: int
    observation: np.ndarray  # (O,)
    reward: float | None


class Simulation:
    """One task family's environment behind a contract. Time only moves forward, across episodes too."""

    def __init__(self, env: TaskEnv, contract: Contract) -> None:
        sizes = (len(env.observation_names), len(env.action_names), env.control_hz)
        wanted = (contract.observation_dim, contract.action_dim, contract.rate_hz)
        for what, has, wants in zip(("observations", "actions", "Hz"), sizes, wanted, strict=True):
            if has != wants:
                raise ContractError(
                    f"contract '{contract.name}' has {wants:g} {what}, the family '{env.family}' {has:g}; "
                    "give the contract of the family"
                )
        self.env, self.contract = env, contract
        self.t_ns = 0
        self.info = EpisodeInfo("idle", env.task.task_id, dict(env.task.params), 0, 0, 0)

    @property
    def running(self) -> bool:
        return self.info.state == "running"

    def reset(self, task: Task, seed: int) -> State:
        """Start an episode on a multiple of the period, a gap after the last state."""
        observation, _ = self.env.reset(seed=seed, options={"task": task})
        period = self.contract.period_ns
        self.t_ns = -(-(self.t_ns + RESET_GAP_NS) // period) * period
        self.info = EpisodeInfo(
            "running", task.task_id, dict(task.params), self.info.episode + 1, seed, start_ns=self.t_ns
        )
        return State(self.t_ns, observation, None)

    def refusal(self, t_ns: int | None, action: np.ndarray) -> str | None:
        """Why a command does not answer the current state, or None. `t_ns` is None for one without stamp."""
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
        """One period further; ends the episode when the task or its time is over."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self.t_ns += self.contract.period_ns
        if terminated or truncated:
            self.end("task ended" if terminated else "time limit", bool(terminated), bool(truncated))
        return State(self.t_ns, observation, float(reward))

    def end(self, reason: str, terminated: bool = False, truncated: bool = False) -> None:
        """End the running episode here."""
        self.info = dataclasses.replace(
            self.info,
            state="ended",
            end_ns=self.t_ns,
            terminated=terminated,
            truncated=truncated,
            reason=reason,
        )
