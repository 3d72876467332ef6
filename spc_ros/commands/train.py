# SPDX-License-Identifier: Apache-2.0
"""Learn context encoder, world model and policy from a dataset."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
import yaml

from spc_core.data.held_out import held_out_of
from spc_core.deploy.checkpoint_files import CheckpointError, checkpoint_folder
from spc_core.method.config import ConfigError, TrainConfig, build, load_config
from spc_core.training.judging import Judging
from spc_ros.progress_bar import Bar

METHOD = "spc"  # the default
CONTINUED = 4  # of an earlier run's updates, one in so many are made when another goes on from it


@dataclasses.dataclass(frozen=True)
class Train:
    """Train on a dataset. The same command resumes a run that was interrupted.

    OUT/checkpoint is the last state; with --evaluate-every, OUT/best is the best by simulation or held-out recordings.

    With --hold-out or --recordings, training ends with an assessment, as by `spc assess`, in OUT/assess.

    Defaults of the settings are those of the preset and method given.

    examples:
      spc train dataset --out run
      spc train dataset --out run --preset paper --method focal --seed 1
      spc train dataset --out run --hold-out 4 --evaluate-every 1000
      spc train dataset --out runs --seeds 0 1 2 3 4
      spc train more --out tomorrow --from run
      torchrun --nproc-per-node 2 -m spc_ros.cli train dataset --out run
    """

    dataset: tyro.conf.Positional[Path]  # folder that `spc convert` wrote
    out: Path  # the run's folder
    preset: str = "small"  # small, quick, paper, tour, or a YAML file with any of the settings below
    method: str = ""  # spc, a rival or ablation of config/methods, or a YAML file; also dora+shared; empty: spc
    seeds: tuple[int, ...] = ()  # several seeds side by side, each a run of its own in OUT/seed-<s>
    earlier: Annotated[Path | None, tyro.conf.arg(name="from")] = None  # go on from this run with other recordings
    overwrite: bool = False  # start from the beginning, even if the folder holds a run
    judging: Annotated[Judging, tyro.conf.arg(name="")] = Judging()
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TrainConfig)


def defaults(arguments: Sequence[str]) -> Train:
    """The settings' defaults are those of the preset and method, or the earlier run, read before the rest."""
    if (value := _last(arguments, "--hold-out", "0")).startswith("--") or not value:  # tyro takes none for ()
        raise ConfigError("--hold-out is given nothing; say how many tasks, a fold as 1/5, or task ids (0: none)")
    preset, method = _last(arguments, "--preset", ""), _last(arguments, "--method", "")
    if earlier := _last(arguments, "--from", ""):
        if preset or method:
            raise ConfigError(
                f"--from goes on with the settings of that run, so leave out {'--preset' if preset else '--method'}"
            )
        judging = Judging() if _last(arguments, "--recordings", "") else _held_out_before(Path(earlier))
        return Train(tyro.MISSING, tyro.MISSING, judging=judging, config=_continued(Path(earlier)))
    preset = preset or "small"
    config = load_config(preset, method, beneath="" if method else METHOD)
    out = _last(arguments, "--out", "")
    if out and not method and "--overwrite" not in arguments:
        config = _as_begun(Path(out), config)
    return Train(tyro.MISSING, tyro.MISSING, preset=preset, method=method, config=config)


def _as_begun(out: Path, config: TrainConfig) -> TrainConfig:
    """The config with the method of the run in `out`, if there is one: the default method may have been another."""
    files = sorted([*out.glob("checkpoint/config.yaml"), *out.glob("seed-*/checkpoint/config.yaml")])
    if not files:
        return config
    begun = build(TrainConfig, yaml.safe_load(files[0].read_text()), str(files[0]))
    return dataclasses.replace(config, method=begun.method, loss=begun.loss)


def _continued(earlier: Path) -> TrainConfig:
    """The settings of an earlier run, or of the first of its seeds, with a share of its updates.

    Where there is no run, training refuses it.
    """
    file = _first_run(earlier) / "config.yaml"
    config = load_config(str(file) if file.is_file() else "small")
    return dataclasses.replace(config, updates=max(1, config.updates // CONTINUED))


def _held_out_before(earlier: Path) -> Judging:
    """What the earlier run was assessed by, which this one is assessed by, too.

    Raises CheckpointError for a damaged file.
    """
    file = _first_run(earlier) / "metrics.json"
    try:
        held_out = held_out_of(json.loads(file.read_text())) if file.is_file() else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: corrupt: {error}; copy it again or train again") from None
    if held_out is None:
        return Judging()
    return Judging(recordings=held_out.dataset) if held_out.separate else Judging(hold_out=held_out.tasks)


def _first_run(earlier: Path) -> Path:
    """The checkpoint of a run, or of the first of its seeds."""
    return checkpoint_folder(next(iter(sorted(earlier.glob("seed-*"))), earlier))


def _last(arguments: Sequence[str], flag: str, default: str) -> str:
    """The last value given to a flag, as `--flag value` or `--flag=value`."""
    values = [default]
    for argument, next_argument in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name == flag:
            values.append(value if equals else next_argument)
    return values[-1]


def run(options: Train) -> int:
    from spc_core.training.distributed import is_leader
    from spc_core.training.train import train, train_seeds

    given = (options.dataset, options.out, options.config)
    rest = (options.overwrite, options.earlier, options.judging)
    checkpoints = train_seeds(*given, options.seeds, *rest) if options.seeds else [train(*given, *rest)]
    if is_leader():
        for checkpoint in checkpoints:
            print(f"checkpoint: {checkpoint}")
        for checkpoint in checkpoints:
            _assess(checkpoint.parent)
    return 0


def _assess(run: Path) -> None:
    """Assess a run by its held-out recordings, if it has any: the last checkpoint, and the best, if it is another."""
    from spc_core.assessment.assess import assess
    from spc_core.pages.assess_page import write_assessment

    metrics = json.loads((run / "checkpoint/metrics.json").read_text())
    if held_out_of(metrics) is None:
        return
    best = run / "best/metrics.json"
    other = best.is_file() and json.loads(best.read_text())["update"] != metrics["update"]
    for folder in [run, run / "best"] if other else [run]:
        with Bar(f"assess {folder}", "fit") as bar:
            found = assess(folder, progress=bar)
        print(write_assessment(found, folder / "assess"))
