# SPDX-License-Identifier: Apache-2.0
"""What the policy is worth on each task, with its own z, without one and with another task's, next to the recordings.

Two judges, which know the tasks by their recordings alone, so that nothing of what is judged is trusted. The first
lets the policy act in its own model of the tasks (rollouts.py), and replays the recorded actions in it, so that errors
of the model partly cancel. The second is fitted Q evaluation (fitted_q.py), of the policy with its own z and of what
drove the recordings. Where they disagree, nobody knows, and neither where the policy does what was never recorded:
there it may earn what the model says or the least that was recorded, and its value is taken between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from spc_core.assessment.fitted_q import Features, Horizon, evaluate
from spc_core.assessment.judged import Judged
from spc_core.assessment.recordings import Recordings, TaskRecording
from spc_core.assessment.rollouts import Known, Steps, TaskModels, earned
from spc_core.assessment.settings import Settings

Progress = Callable[[int, int, str], None]

FEATURES = 400
WIDTHS = (1.0, 1.4, 0.8)  # of the kernel, times the median distance of two recorded transitions
RESAMPLES = 4000  # of the tasks
KINDS = ("own", "none", "other")  # z that the policy is evaluated with
MOST_UNITS = 5.0  # an observation counts as at most so many spreads from the mean


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over tasks, and 90 % of its spread over fits, tasks, what the judges differ by, and unlike steps.

    What both judges get wrong is not in it: docs/results.md has how often it holds the truth.
    """

    mean: float
    low: float
    high: float
    above: float  # share of the bootstrap that is above 0


def interval(
    differences: np.ndarray, error: float = 0.0, in_doubt: Sequence[np.ndarray] = (), seed: int = 0
) -> Interval:
    """Of differences (B, T), by a bootstrap; `error` is the standard error that all tasks have in common.

    Of each part (B, T) of `in_doubt` half is added everywhere, or taken away. A tie counts half as above.
    """
    rng = np.random.default_rng(seed)
    fits, tasks = differences.shape
    chosen = rng.integers(fits, size=(RESAMPLES, 1)), rng.integers(tasks, size=(RESAMPLES, tasks))
    means = differences[chosen].mean(1) + error * rng.standard_normal(RESAMPLES)
    for part in in_doubt:
        means += part[chosen].mean(1) * rng.choice([-0.5, 0.5], RESAMPLES)
    low, high = np.quantile(means, [0.05, 0.95])
    above = float((means > 0).mean() + (means == 0).mean() / 2)
    return Interval(float(differences.mean()), float(low), float(high), above)


@dataclasses.dataclass(frozen=True)
class Values:
    """Mean reward of a step over an episode, later ones discounted, by task; B fits of T tasks."""

    task_ids: tuple[str, ...]
    horizon: Horizon
    policy: dict[str, np.ndarray]  # (B, T) for each z, in the judge's model, less half of what is in doubt
    in_doubt: dict[str, np.ndarray]  # (B, T) for each z: what unlike steps earn in the model over the least recorded
    behaviour: np.ndarray  # (B, T) of the recorded actions in the same models
    recorded: np.ndarray  # (T,) what the recordings earned
    recorded_spread: float  # of single episodes, over all tasks
    fitted: np.ndarray  # (B, T) own z by fitted Q evaluation, less what drove the recordings
    episodes: tuple[int, ...]

    def gain(self, kind: str = "own") -> np.ndarray:
        """(B, T) what the policy is worth more than the recordings."""
        return self.policy[kind] - self.behaviour

    @property
    def judge_error(self) -> float:
        """Root mean square over tasks: recorded actions in the model, against what they earned."""
        return float(np.sqrt(np.mean((self.behaviour.mean(0) - self.recorded) ** 2)))

    @property
    def better(self) -> Interval:
        """The gain, as wrong as the judge is on the recorded actions, as the judges differ, and as is in doubt."""
        apart = float((self.gain() - self.fitted).mean()) / 2
        return interval(self.gain(), float(np.hypot(self.judge_error, apart)), [self.in_doubt["own"]])

    def more(self, kind: str) -> Interval:
        """The gain with a z that the second judge does not know."""
        return interval(self.gain(kind), self.judge_error, [self.in_doubt[kind]])

    @property
    def adapts(self) -> Interval | None:
        """What its own z is worth more than another task's; None where z is always 0, or there is no other task."""
        if "other" not in self.policy or len(self.task_ids) < 2:
            return None
        worth, doubt = self.policy["own"] - self.policy["other"], [self.in_doubt[kind] for kind in ("own", "other")]
        return interval(worth, in_doubt=doubt)


def value(judged: Judged, recordings: Recordings, settings: Settings, progress: Progress | None = None) -> Values:
    """Evaluate by several models and regressions, each with its own features and width of the kernel."""
    stats, tasks = judged.checkpoint.stats, recordings.tasks
    horizon = _horizon(judged, recordings, settings.discount)
    zs = zs_of(judged, tasks)
    known = [steps_of(judged, task) for task in tasks]
    fitted = [_Fitted.of(judged, task, z[0], steps) for task, z, steps in zip(tasks, zs, known, strict=True)]
    modelled, second = [], []
    for models in _fits(known, settings, progress):
        modelled.append(_in_models(judged, models, known, zs, horizon))
        second.append([task.gain(models.features, horizon) for task in fitted])
    weight, scale = horizon.weight(horizon.steps), stats.reward_std
    said, doubt = np.moveaxis(np.array(modelled), 1, 0) / weight * scale  # (B, 1 + C, T) each
    units = _between(said, doubt) + stats.reward_mean
    paid = [_earned(task, horizon) for task in tasks]
    return Values(
        task_ids=tuple(task.task_id for task in tasks),
        horizon=horizon,
        policy={kind: units[:, 1 + place] for place, kind in enumerate(KINDS[: len(zs[0])])},
        in_doubt={kind: doubt[:, 1 + place] for place, kind in enumerate(KINDS[: len(zs[0])])},
        behaviour=units[:, 0],
        recorded=np.array([one.mean() for one in paid]),
        recorded_spread=float(np.concatenate(paid).std()),
        fitted=np.array(second) / weight * scale,
        episodes=tuple(len(task.starts) for task in tasks),
    )


def gain_over_recordings(
    judged: Judged, recordings: Recordings, settings: Settings, progress: Progress | None = None
) -> np.ndarray:
    """(B, T) the gain of `value` with the policy's own z, alone: less than half of its work."""
    horizon = _horizon(judged, recordings, settings.discount)
    own = [zs[:1] for zs in zs_of(judged, recordings.tasks)]
    known = [steps_of(judged, task) for task in recordings.tasks]
    found = [_in_models(judged, models, known, own, horizon) for models in _fits(known, settings, progress)]
    behaviour, policy = np.moveaxis(_between(*np.moveaxis(np.array(found), 1, 0)), 1, 0)
    return (policy - behaviour) / horizon.weight(horizon.steps) * judged.checkpoint.stats.reward_std


def _between(said: np.ndarray, in_doubt: np.ndarray) -> np.ndarray:
    """(B, 1 + C, T) values in the middle of what is in doubt; of recorded actions nothing is."""
    return said - in_doubt / 2


def _horizon(judged: Judged, recordings: Recordings, discount: float) -> Horizon:
    stats = judged.checkpoint.stats
    return Horizon(recordings.horizon, discount, -stats.reward_mean / stats.reward_std)


def _fits(known: Sequence[Steps], settings: Settings, progress: Progress | None) -> Iterator[TaskModels]:
    """Models of the tasks, each of other features; `progress` hears of each that has been used."""
    width = _median_distance(torch.cat([steps.rows for steps in known]), settings.seed)
    generator, like = torch.Generator().manual_seed(settings.seed), Known.of(known)
    for fit in range(settings.fits):
        inputs = known[0].rows.shape[1]
        features = Features.draw(inputs, FEATURES, width * WIDTHS[fit % len(WIDTHS)], generator)
        yield TaskModels.fit(features, known, [torch.ones(len(steps.rows)) for steps in known], like)
        if progress is not None:
            progress(fit + 1, settings.fits, "value")


def steps_of(judged: Judged, task: TaskRecording) -> Steps:
    """A recording as the judge's model sees it."""
    stats = judged.checkpoint.stats
    seen = _seen(judged, task.observations)
    return Steps(
        seen=seen,
        acted=torch.from_numpy(stats.action(task.actions)),
        change=_seen(judged, task.next_observations) - seen,
        rewards=torch.from_numpy(np.asarray(stats.reward(task.rewards), np.float32)),
        terminated=torch.from_numpy(task.terminated.astype(np.float32)),
        starts=torch.from_numpy(task.starts),
        lengths=torch.from_numpy(task.lengths),
    )


def _seen(judged: Judged, observations: np.ndarray) -> Tensor:
    """Observations (N, O') on unit scale, without fields that never change."""
    stats = judged.checkpoint.stats
    seen = np.clip(stats.observation(observations)[:, ~stats.ignored], -MOST_UNITS, MOST_UNITS)
    return torch.from_numpy(seen.astype(np.float32))


def _in_models(
    judged: Judged, models: TaskModels, known: Sequence[Steps], zs: Sequence[Sequence[np.ndarray]], horizon: Horizon
) -> list[list[list[float]]]:
    """(2, 1 + C, T) discounted rewards, said and in doubt: of the recorded actions, and of the policy with each z."""
    stats = judged.checkpoint.stats
    starts = [steps.seen[steps.starts] for steps in known]
    sizes = [len(one) for one in starts]

    def recorded(_: Sequence[Tensor], step: int) -> list[Tensor]:
        return [steps.acted[steps.starts + torch.clamp(steps.lengths - 1, max=step)] for steps in known]

    def policy(place: int) -> Callable[[Sequence[Tensor], int], Sequence[Tensor]]:
        rows = np.concatenate([np.tile(z[place], (size, 1)) for z, size in zip(zs, sizes, strict=True)])
        whole = np.tile(stats.observation_mean.astype(np.float64), (sum(sizes), 1))

        def act(seen: Sequence[Tensor], _: int) -> Sequence[Tensor]:
            spread = stats.observation_std[~stats.ignored]
            whole[:, ~stats.ignored] = torch.cat(list(seen)).numpy() * spread + stats.observation_mean[~stats.ignored]
            return torch.from_numpy(judged.act(whole, rows).astype(np.float32)).split(sizes)

        return act

    acts = [recorded, *(policy(place) for place in range(len(zs[0])))]
    found = [earned(models, starts, act, horizon, doubts=act is not recorded) for act in acts]
    return [[[float(one[part].mean()) for one in tasks] for tasks in found] for part in range(2)]


def zs_of(judged: Judged, tasks: Sequence[TaskRecording]) -> list[list[np.ndarray]]:
    """For each task: its own z, none, and that of the task whose z is farthest; its own alone where z is always 0."""
    own = np.array([judged.own_z(task) for task in tasks])
    if judged.context == "none":
        return [[z] for z in own]
    far = np.linalg.norm(own[:, None] - own[None], axis=-1).argmax(1)
    return [[z, judged.no_z, own[other]] for z, other in zip(own, far, strict=True)]


def _earned(task: TaskRecording, horizon: Horizon) -> np.ndarray:
    """(E,) mean reward of a step of each episode; a short one that goes on counts as long as it is."""
    ended = task.terminated[task.last]
    steps = np.where(ended, horizon.steps, np.minimum(task.lengths, horizon.steps))
    weights = np.array([horizon.weight(int(count)) for count in steps])
    return task.returns(horizon.steps, horizon.discount) / weights


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """What fitted Q evaluation of a task needs: rows are observation and action on unit scale (I,)."""

    steps: Steps
    following: Tensor  # (2, N, I) next observations with the recorded next action, and with the policy's
    starting: Tensor  # (E, I) first observations with the policy's action
    counted: Tensor  # (N,) 0 for the last transition of an episode that goes on: the action after it is not known

    @classmethod
    def of(cls, judged: Judged, task: TaskRecording, z: np.ndarray, steps: Steps) -> _Fitted:
        def row(observations: np.ndarray) -> Tensor:
            acted = torch.from_numpy(judged.act(observations, z).astype(np.float32))
            return torch.cat([_seen(judged, observations), acted], -1)

        then = task.next_observations
        after = torch.cat([steps.acted[1:], steps.acted[-1:]])
        return cls(
            steps=steps,
            following=torch.stack([torch.cat([_seen(judged, then), after], -1), row(then)]),
            starting=row(task.observations[task.starts]),
            counted=torch.from_numpy((~task.last | task.terminated).astype(np.float32)),
        )

    def gain(self, features: Features, horizon: Horizon) -> float:
        """The policy's value less the behaviour's, mean over first observations."""
        known, steps = features(self.steps.rows), self.steps
        if not self.counted.any():
            return 0.0
        q = evaluate(known, features(self.following), steps.rewards, steps.terminated > 0, self.counted, horizon)
        return float((features(self.starting) @ q[1] - known[steps.starts] @ q[0]).mean())


def _median_distance(rows: Tensor, seed: int, pairs: int = 4000) -> float:
    one, other = torch.from_numpy(np.random.default_rng(seed).integers(len(rows), size=(2, pairs)))
    apart = (rows[one] - rows[other]).norm(dim=-1)
    apart = apart[apart > 0]  # a robot that mostly stands still
    return float(apart.median()) if len(apart) else 1.0
