# SPDX-License-Identifier: Apache-2.0
"""Learn who drives the recordings of a simulated task family: an agent that is told its task."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from spc_core.system.signals import stop_on_signals
from spc_ros.progress_bar import Bar


@dataclasses.dataclass(frozen=True)
class LearnBehaviour:
    """Learn who drives the recordings of a simulated task family: one agent that is told its task, by trial and error.

    Its states from random to expert make the data of `spc collect`, and the best one is the expert.

    Stop it with Ctrl-C or kill: the same command goes on from OUT.learning.

    examples:
      spc behaviour cheetah_vel --out agent.safetensors
      spc behaviour hopper_mass --out agent.safetensors --steps 200000
    """

    family: tyro.conf.Positional[str]  # task family, or the path of a family.yaml
    out: Path  # file for the agent's states
    steps: int = 0  # simulated steps; 0: the family's usual number
    learning_rate: float = 0.0  # of all networks; 0: the family's usual one
    seed: int = 0  # seed of initial weights, episodes and samples


def run(options: LearnBehaviour) -> int:
    from spc_core.training.behaviour_agent import behaviour_config, learn_behaviour, looks_table

    if options.out.is_dir():
        raise ValueError(f"--out is '{options.out}', a folder; give the name of a file, such as agent.safetensors")
    given = {"steps": options.steps, "learning_rate": options.learning_rate}
    config = behaviour_config(options.family, {**{k: v for k, v in given.items() if v}, "seed": options.seed})
    state = options.out.with_name(f"{options.out.name}.learning")
    with stop_on_signals() as stopped, Bar(f"behaviour {options.family}", "step") as bar:
        agent, looks = learn_behaviour(options.family, config, bar, state, stopped)
    agent.save(options.out)
    state.unlink(missing_ok=True)
    print(looks_table(looks, agent))
    print(f"{len(agent)} states, mean return {agent.returns[0]:.0f} to {agent.returns[-1]:.0f}: {options.out}")
    return 0
