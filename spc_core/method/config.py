# SPDX-License-Identifier: Apache-2.0
"""Settings as frozen dataclasses with the paper's values as defaults; YAML presets hold only the differences."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml

from spc_core.system.config_files import find_config, suggest

T = TypeVar("T")


class ConfigError(ValueError):
    """An invalid setting; the message names it, its value and the fix."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the networks."""

    groups: int = 512  # FSQ groups in a discrete latent state
    levels: tuple[int, ...] = (5, 3)  # FSQ levels, one for each channel of a group
    continuous_dim: int = 512  # size of a latent state that is not discrete
    simplex_size: int = 8  # size of each simplex in a simnorm latent
    context_dim: int = 5  # size of the task vector z
    encoder_hidden: tuple[int, ...] = (512,)  # hidden layers of the observation encoder
    encoder_init: float = 0.02  # std of its last layer's initial weights; narrow encoders need more to reach all codes
    dynamics_hidden: tuple[int, ...] = (512, 512)  # hidden layers of the transition and reward heads
    context_hidden: tuple[int, ...] = (256, 256)  # hidden layers of the context encoder
    policy_hidden: tuple[int, ...] = (256, 256)  # hidden layers of actor, Q and V


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Latents, losses and contexts: the paper's SPC by default; all others are choices of config/methods."""

    name: str = "spc_paper"  # name in tables and reports
    latent: str = "discrete"  # latent state of the policy: discrete | simnorm | continuous, or raw for the observation
    consistency: str = "cross_entropy"  # loss of predictions: cross_entropy | mse | cosine | reconstruction | none
    open_loop: bool = True  # roll the model out over a window; off: predict one step from each observation
    contrast: str = "infonce"  # loss that separates tasks: infonce | focal | none
    context: str = "learnt"  # task vector z: learnt | none (always 0) | oracle (the true task parameters)
    policy_sees: str = "latent"  # the latent | observation | both, beside z; the same for raw latents
    action_slope: str = "q"  # what loss.action_gradient follows: the method's own q | model, its one-step heads and V
    votes: str = "mean"  # z of votes: their mean | precision, weighted by what each is worth, which is learnt too
    task_belief: bool = False  # z also of the tasks under which the one-step heads best explain what happened
    collect: str = "means"  # a collecting robot acts on training tasks' means: in turn | the nearest to its z first
    hypothesis_s: float = 0.24  # seconds for which it acts on one of them
    context_l2: float = 0.0  # weight of the squared length of z
    context_club: float = 0.0  # weight of the CLUB bound on information in z about the behaviour policy

    @property
    def sees(self) -> str:
        """What the policy sees beside z; a raw latent is the observation."""
        return "observation" if self.latent == "raw" else self.policy_sees

    @property
    def learns_model(self) -> bool:
        """Whether there are dynamics and rewards to predict."""
        return self.latent != "raw" or self.consistency != "none"

    def check(self, source: str) -> None:
        """Raises ConfigError for an unknown choice, or for two incompatible ones."""
        for key, known in METHOD_CHOICES.items():
            value = getattr(self, key)
            if value not in known:
                raise ConfigError(
                    f"{source}: method.{key} is '{value}'{suggest(value, known)}; use one of: {', '.join(known)}"
                )
        if not (math.isfinite(self.hypothesis_s) and self.hypothesis_s > 0):
            raise ConfigError(f"{source}: method.hypothesis_s is {self.hypothesis_s}; it must be finite and above 0")
        fitting = CONSISTENCY_OF[self.latent]
        if self.consistency not in fitting:
            raise ConfigError(
                f"{source}: method.consistency '{self.consistency}' does not fit latent '{self.latent}'; "
                f"use one of: {', '.join(fitting)}"
            )
        if self.context != "learnt" and (self.contrast != "none" or self.context_l2 or self.context_club):
            raise ConfigError(
                f"{source}: method.context '{self.context}' is not learnt, so contrast must be none, and context_l2 "
                "and context_club 0"
            )
        if self.context == "learnt" and self.contrast == "none" and not self.learns_model:
            raise ConfigError(f"{source}: the context encoder has nothing to learn from; set method.contrast")


CONSISTENCY_OF = {
    "discrete": ("cross_entropy", "mse", "cosine", "reconstruction", "none"),
    "simnorm": ("cross_entropy", "mse", "cosine", "reconstruction", "none"),
    "continuous": ("mse", "cosine", "reconstruction", "none"),
    "raw": ("mse", "none"),
}
METHOD_CHOICES = {
    "latent": tuple(CONSISTENCY_OF),
    "consistency": CONSISTENCY_OF["discrete"],
    "contrast": ("infonce", "focal", "none"),
    "context": ("learnt", "none", "oracle"),
    "policy_sees": ("latent", "observation", "both"),
    "action_slope": ("q", "model"),
    "votes": ("mean", "precision"),
    "collect": ("means", "nearest"),
}


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and constants of the losses."""

    discount: float = 0.99  # discount factor of the Bellman target
    horizon_discount: float = 0.99  # weight of step t in a latent rollout is this to the power t
    gumbel_temperature: float = 1.0  # temperature of the samples of discrete latents in a rollout
    consistency_weight: float = 1.0  # weight of the consistency loss
    reward_weight: float = 1.0  # weight of the reward loss
    contrast_weight: float = 1.0  # weight of the contrastive loss
    contrast_temperature: float = 0.5  # temperature of distances between task vectors, at most 2 sqrt(context_dim)
    expectile: float = 0.8  # expectile of Q that V estimates (IQL); above 0.5 it favours good actions
    advantage_temperature: float = 3.0  # an action weighs exp(this * advantage) in the actor's loss
    advantage_clip: float = 100.0  # largest weight of an action in the actor's loss
    target_rate: float = 0.005  # EMA rate of target encoder and target Q
    task_mean_rate: float = 0.005  # EMA rate of the tasks' mean vectors
    actor_average_rate: float = 0.0  # EMA rate of the actor that acts; 0: the latest one acts
    action_gradient: float = 0.0  # weight of Q's slope at the actor's own action, beside the weights of recorded ones
    one_step_weight: float = 0.0  # weight of the one-step heads, which predict reward and change of s; 0: none
    one_step_beta: float = 0.5  # the heads' likelihood: 0 plain, 1 nearly squared errors (beta-NLL)
    model_share: float = 1.0  # share of the model losses' gradient that reaches z
    imagined_share: float = 0.0  # share of the policy's contexts that become those of tasks between others
    imagined_low: float = -0.3  # such a z lies from so far ...
    imagined_high: float = 0.5  # ... to so far on the way from its own task's mean to another's
    late_from: float = 0.25  # share of the training after which action_gradient and imagined_share count

    def check(self, source: str) -> None:
        """Raises ConfigError naming an invalid value."""
        for name in (
            "target_rate",
            "task_mean_rate",
            "actor_average_rate",
            "model_share",
            "imagined_share",
            "one_step_beta",
            "late_from",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{source}: loss.{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name in ("action_gradient", "one_step_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{source}: loss.{name} is {getattr(self, name)}; it must be finite and not negative")
        if not -math.inf < self.imagined_low <= self.imagined_high < math.inf:
            raise ConfigError(
                f"{source}: loss.imagined_low is {self.imagined_low} and imagined_high {self.imagined_high}; the first "
                "must not be above the second"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    method: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    updates: int = 500_000  # training steps, one batch each
    tasks_per_batch: int = 16  # tasks drawn for each batch
    windows_per_task: int = 64  # windows drawn from each of these tasks
    contexts_per_task: int = 1  # contexts of a task in a batch; its windows share them evenly
    horizon: int = 5  # transitions in a window
    context_max: int = 64  # transitions in a training context; its size varies from 0 to this
    context_empty_share: float = 0.1  # share of training contexts without any transition
    context_online_share: float = 0.5  # share of contexts cut from one episode, as on a robot; others from anywhere
    world_model_every: int = 2  # updates for each update of world model and context encoder
    world_model_lr: float = 1e-4  # learning rate of observation encoder, dynamics and reward
    context_lr: float = 1e-4  # learning rate of the context encoder
    policy_lr: float = 3e-4  # learning rate of actor, Q and V
    final_lr_share: float = 1.0  # learning rates fall linearly to this share of their first value
    seed: int = 0  # seed of initial weights, batches and noise
    device: str = "auto"  # device of the networks: auto | cpu | cuda
    precision: str = "auto"  # precision of matrix products: fp32 | bf16 | auto; weights and losses stay fp32
    threads: int = 0  # CPU threads; 0: one for a small model, else what torch takes, and the same when resumed
    compile: str = "auto"  # the update of a small model as compiled code: on | off | auto, where it pays for compiling
    log_every: int = 200  # updates between two log lines
    checkpoint_every: int = 2_000  # updates between two checkpoints to resume from
    evaluate_every: int = 0  # updates between two evaluations on validation tasks, in a separate process; 0: none

    @property
    def looks_ahead(self) -> bool:
        """Whether the actor follows the slope of what the one-step heads expect."""
        return self.loss.action_gradient > 0 and self.method.action_slope == "model"

    def check(self, source: str) -> None:
        """Raises ConfigError naming an invalid value."""
        shares = ("context_empty_share", "context_online_share", "final_lr_share")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in shares and not 0 <= value <= 1:
                raise ConfigError(f"{source}: {field.name} is {value}; it must be from 0 to 1")
            if field.name.endswith("_lr") and not value > 0:
                raise ConfigError(f"{source}: {field.name} is {value}; it must be above 0")
            counts = isinstance(value, int) and field.name not in ("seed", "threads", "evaluate_every")
            if counts and value < 1:
                raise ConfigError(f"{source}: {field.name} is {value}; it must be at least 1")
        if self.evaluate_every < 0:
            raise ConfigError(f"{source}: evaluate_every is {self.evaluate_every}; it must be at least 0")
        if any(level < 3 or level % 2 == 0 for level in self.model.levels):
            raise ConfigError(f"{source}: model.levels is {list(self.model.levels)}; levels are odd and at least 3")
        if self.windows_per_task % self.contexts_per_task:
            raise ConfigError(
                f"{source}: windows_per_task ({self.windows_per_task}) must be a multiple of contexts_per_task "
                f"({self.contexts_per_task}); a task's contexts share its windows evenly"
            )
        if self.model.continuous_dim % self.model.simplex_size:
            raise ConfigError(
                f"{source}: model.continuous_dim ({self.model.continuous_dim}) must be a multiple of simplex_size "
                f"({self.model.simplex_size})"
            )
        if self.compile not in ("auto", "on", "off"):
            raise ConfigError(f"{source}: compile is '{self.compile}'; use auto, on or off")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ConfigError(f"{source}: precision is '{self.precision}'; use auto, fp32 or bf16")
        if self.method.contrast == "focal" and self.contexts_per_task < 2:
            raise ConfigError(
                f"{source}: contexts_per_task is {self.contexts_per_task}; method.contrast 'focal' compares "
                "contexts of one task, so it needs at least 2"
            )
        self.method.check(source)
        self.loss.check(source)
        needy = {
            "loss.imagined_share": self.loss.imagined_share > 0,
            "method.action_slope model": self.looks_ahead,
            "method.task_belief": self.method.task_belief,
        }
        for name in [name for name, used in needy.items() if used and not self.loss.one_step_weight]:
            raise ConfigError(f"{source}: {name} needs the one-step heads; set loss.one_step_weight, for example to 1")
        if self.method.task_belief and (self.method.context != "learnt" or self.method.latent != "raw"):
            raise ConfigError(
                f"{source}: method.task_belief needs a learnt context and heads that read the observation itself; set "
                f"method.context learnt and method.latent raw, not {self.method.context} and {self.method.latent}, or "
                "method.task_belief false"
            )
        if self.loss.imagined_share and self.method.context == "none":
            raise ConfigError(f"{source}: loss.imagined_share needs task vectors, which method.context none lacks")


@dataclasses.dataclass(frozen=True)
class PlannerConfig:
    """Planning with MPPI, for actions in [-1, 1] and rewards of standard deviation 1."""

    horizon: int = 3  # imagined steps; V estimates the return after them
    iterations: int = 6  # rounds of sampling, evaluating and refitting
    samples: int = 512  # sequences drawn in each round
    elites: int = 64  # best sequences, to which the next round is fitted
    policy_samples: int = 24  # sequences of the actor: the first its mean, the others sampled
    temperature: float = 0.5  # elites weigh exp(this * (return - best return))
    min_std: float = 0.05  # least standard deviation of sampled actions
    max_std: float = 2.0  # largest standard deviation, used in the first round
    deadline_ms: float = 0.0  # no round starts that would end later; the first always runs. 0: no deadline

    def check(self, source: str) -> None:
        """Raises ConfigError naming an invalid value."""
        least = {"horizon": 1, "iterations": 1, "samples": 0, "elites": 1, "policy_samples": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{source}: {name} is {getattr(self, name)}; it must be at least {low}")
        for name in ("temperature", "min_std", "max_std", "deadline_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{source}: {name} is {value}; it must be finite and not negative")
        if self.elites > self.samples + self.policy_samples:
            raise ConfigError(
                f"{source}: elites is {self.elites}, more than the {self.samples + self.policy_samples} sequences "
                "drawn; lower it, or raise samples or policy_samples"
            )
        if self.min_std > self.max_std:
            raise ConfigError(f"{source}: min_std {self.min_std} is above max_std {self.max_std}; lower it")
        if self.max_std == 0:
            raise ConfigError(f"{source}: max_std is 0, so that all drawn sequences are the same; raise it")


def load_config(preset: str, method: str = "", beneath: str = "", **overrides: Any) -> TrainConfig:
    """A preset by name (`small`, `paper`) or path, then a method (`focal`, ...), then overrides by field name.

    A method may have options of config/options on top, as in `dora+shared`, which is its name then. `beneath`: a method
    that the preset overrides. Raises ConfigError naming an unknown key and the nearest known one.
    """
    path = find_config("train", preset)
    values, source = _read(path), str(path)
    for path in reversed(method_files(beneath)):
        values = _merge(_read(path), values)
    for path in method_files(method):
        values, source = _merge(values, _read(path)), f"{source} with {path}"
    if options := OPTIONS.split(method)[1:]:
        name = "+".join([values.get("method", {}).get("name", MethodConfig.name), *options])
        values = _merge(values, {"method": {"name": name}})
    config = build(TrainConfig, _merge(values, overrides), source)
    config.check(source)
    return config


OPTIONS = re.compile(r"\+(?=[\w+]+$)")  # before each option at the end of a method; a path may have another +


def method_files(method: str) -> list[Path]:
    """The files of a method and its options, each over those before it. Raises ConfigFileError."""
    if not method:
        return []
    name, *options = OPTIONS.split(method)
    return [find_config("methods", name), *(find_config("options", option) for option in options)]


def method_name(method: str) -> str:
    """What tables and folders call a method: `dora+shared`, also for `my/dora.yaml+shared`."""
    name, *options = OPTIONS.split(method)
    return "+".join([Path(name).stem, *options])


def _read(path: Path | str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as a training config: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, got {values!r}")
    return values


def _merge(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `values`, section by section."""
    merged = dict(values)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def build(cls: type[T], values: Any, source: str, path: str = "") -> T:
    """Make a (nested) config dataclass from plain values, checking names and types."""
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: {path or 'the file'} must be a mapping, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    defaults = cls()
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(
                f"{source}: {path}{key} is not a setting{suggest(key, fields)}; known: {', '.join(fields)}"
            )
        made[key] = _value(getattr(defaults, key), value, source, f"{path}{key}")
    return dataclasses.replace(defaults, **made)  # type: ignore[type-var]


def _value(default: Any, value: Any, source: str, path: str) -> Any:
    if dataclasses.is_dataclass(default):
        return build(type(default), value, source, f"{path}.")
    if isinstance(default, tuple):
        kind = type(default[0])
        if not isinstance(value, (list, tuple)) or not value or not all(type(v) is kind for v in value):
            raise ConfigError(f"{source}: {path} must be a list of {kind.__name__}, got {value!r}")
        return tuple(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{source}: {path} must be of type {type(default).__name__}, got {value!r}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a config dataclass, ready for YAML."""
    return {key: list(v) if isinstance(v, tuple) else to_dict(v) if dataclasses.is_dataclass(v) else v
            for key, v in ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))}  # fmt: skip
