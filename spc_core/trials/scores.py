# SPDX-License-Identifier: Apache-2.0
"""The scores of any trial, in process or over ROS, and their table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from spc_core.tasks import SPLITS, Task, make_env
from spc_core.trials.protocol import BASELINE, EpisodeResult, protocol_label

NO_SCALE = "no normalised scores: there is no expert (and no baseline), or it gains nothing by knowing the task"


def expert_returns(tasks: Iterable[Task], seeds: Sequence[int], informed: bool = True) -> dict[tuple[str, int], float]:
    """Returns of the expert by task id and seed, or of the same where it does not know the task; none of a family
    without one.
    """
    returns = {}
    for task in tasks:
        env = make_env(task.family, task)
        if not env.has_expert:
            continue
        act = env.expert if informed else env.uninformed
        for seed in seeds:
            observation, _ = env.reset(seed=seed)
            total, ended = 0.0, False
            while not ended:
                observation, reward, terminated, truncated, _ = env.step(act(observation))
                total, ended = total + float(reward), terminated or truncated
            returns[task.task_id, seed] = total
    return returns


@dataclasses.dataclass(frozen=True)
class Score:
    """One row of the table: a split and protocol over all tasks and training seeds."""

    split: str
    protocol: str
    k: int  # transitions collected for the context; 0 in other protocols
    mean: float  # return per episode
    stderr: float  # over tasks, each averaged over its episodes and training seeds
    normalised: float  # 0 is no_context, 1 is the privileged expert, or else the robot's own controller
    normalised_by_seed: tuple[float, ...]  # by training seed
    tasks: int
    seeds: int
    episodes: int
    success: float | None = None  # share of the episodes that reached their goal; None: unknown


def score(runs: dict[int, list[EpisodeResult]], experts: dict[tuple[str, int], float]) -> list[Score]:
    """Scores of the trials of several training seeds (`runs` by seed), experts first if given.

    normalised = (return - no_context) / (expert - no_context), of means over tasks, episodes and seeds; without an
    expert, the protocol baseline takes its place. NaN if neither is known, or no better than no_context. Raises
    ValueError if a split lacks no_context.
    """
    rows = [(seed, row) for seed, results in runs.items() for row in results if row.scored]
    scores = []
    for split in sorted({row.split for _, row in rows}, key=lambda name: (SPLITS + (name,)).index(name)):
        groups: dict[tuple[str, int], _Returns] = {("expert", 0): []} if experts else {}
        for seed, row in rows:
            if row.split == split:
                groups.setdefault((row.protocol, row.k), []).append((seed, row.task_id, row.return_))
                if row.protocol == "no_context" and experts:
                    groups["expert", 0].append((seed, row.task_id, experts[row.task_id, row.seed]))
        if ("no_context", 0) not in groups:
            raise ValueError(
                f"the trial of split '{split}' lacks the protocol no_context, the zero of the scale; add it"
            )
        top = groups.get(("expert", 0)) or groups.get((BASELINE, 0), [])
        for (protocol, k), returns in groups.items():
            line = _score(split, protocol, k, returns, groups["no_context", 0], top)
            outcomes = [r.success for _, r in rows if (r.split, r.protocol, r.k) == (split, protocol, k)]
            scores.append(dataclasses.replace(line, success=success_share(outcomes)))
    return scores


_Returns = list[tuple[int, str, float]]  # training seed, task id, return of an episode


def _score(split: str, protocol: str, k: int, returns: _Returns, floor: _Returns, expert: _Returns) -> Score:
    seeds = sorted({seed for seed, _, _ in returns})
    tasks = sorted({task for _, task, _ in returns})
    by_task = [_mean(returns, task=task) for task in tasks]
    return Score(
        split=split,
        protocol=protocol,
        k=k,
        mean=_mean(returns),
        stderr=float(np.std(by_task, ddof=1) / math.sqrt(len(tasks))) if len(tasks) > 1 else 0.0,
        normalised=normalise(_mean(returns), _mean(floor), _mean(expert)),
        normalised_by_seed=tuple(
            normalise(*(_mean(group, seed) for group in (returns, floor, expert))) for seed in seeds
        ),
        tasks=len(tasks),
        seeds=len(seeds),
        episodes=len(returns),
    )


def success_share(outcomes: Iterable[bool | None]) -> float | None:
    """The share of successes among the episodes with a known outcome; None if there are none."""
    known = [success for success in outcomes if success is not None]
    return sum(known) / len(known) if known else None


def _mean(returns: _Returns, seed: int | None = None, task: str | None = None) -> float:
    found = [r for s, t, r in returns if seed in (None, s) and task in (None, t)]
    return float(np.mean(found)) if found else math.nan


def normalise(value: float, low: float, high: float) -> float:
    """0 at `low`, 1 at `high`; NaN where high is not above low."""
    return (value - low) / (high - low) if high > low else math.nan


def table(scores: Sequence[Score]) -> str:
    """The scores as text for a terminal; a last line says why there are no normalised ones."""
    head = f"{'split':6} {'protocol':16} {'return':>9} {'+- s.e.':>8} {'normalised':>10} {'success':>8}"
    lines = [f"{head}   tasks x seeds x episodes"]
    for s in scores:
        per = s.episodes // (s.tasks * s.seeds)
        success = "-" if s.success is None else f"{s.success:.0%}"
        score = "-" if math.isnan(s.normalised) else f"{s.normalised:.2f}"
        lines.append(
            f"{s.split:6} {protocol_label(s.protocol, s.k):16} {s.mean:9.2f} {s.stderr:8.2f} {score:>10} "
            f"{success:>8}   {s.tasks} x {s.seeds} x {per}"
        )
    scaled = {s.split for s in scores if not math.isnan(s.normalised)}
    if {s.split for s in scores} - scaled:
        lines.append(f"{NO_SCALE}; compare returns")
    return "\n".join(lines)
