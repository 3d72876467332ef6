# SPDX-License-Identifier: Apache-2.0
"""Judge a trained run by recordings alone, without a simulation."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from spc_core.assessment.settings import Settings, Thresholds
from spc_ros.progress_bar import Bar

if TYPE_CHECKING:
    from spc_core.assessment.assess import Assessment


@dataclasses.dataclass(frozen=True)
class Assess:
    """Judge a trained run by recordings of tasks that it was not trained on: would I let it drive?

    Exit codes: 0 yes, 3 too little data to say, 4 no (1: could not run). See docs/assess.md.

    examples:
      spc assess run
      spc assess run --recordings held_out
      spc assess run --recordings bags/ --out assessed
    """

    run: tyro.conf.Positional[Path]  # training run or checkpoint
    recordings: tuple[Path, ...] = ()  # a dataset, or bags, which are converted; default: the run's own held-out tasks
    out: Path | None = None  # folder of assess.html and assess.json; default: RUN/assess
    task_from: Literal["", "folder"] = ""  # folder: a bag's task is named by the folder that it is in
    settings: Settings = dataclasses.field(default_factory=Settings)
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)


def run(options: Assess) -> int:
    from spc_core.pages.assess_page import write_assessment

    with tempfile.TemporaryDirectory(prefix="spc-assess-") as scratch:
        assessment = _assess(options, Path(scratch))
    print(write_assessment(assessment, options.out or options.run / "assess"))
    return assessment.verdict.code


def _assess(options: Assess, scratch: Path) -> Assessment:
    """The assessment: by the run's own held-out tasks, by a dataset, or by bags, which are converted into `scratch`."""
    from spc_core.assessment.assess import assess
    from spc_core.assessment.judged import load_judged
    from spc_core.deploy.checkpoint_files import checkpoint_folder
    from spc_ros.conversion.recordings import convert_recordings, is_dataset

    if not options.recordings:
        with Bar(f"assess {options.run}", "fit") as bar:
            return assess(options.run, None, options.settings, options.thresholds, bar)
    given = root = options.recordings[0]
    if len(options.recordings) > 1 or not is_dataset(root):
        load_judged(options.run)  # which may refuse it, before the bags are converted
        contract, root = checkpoint_folder(options.run) / "contract.yaml", scratch / "dataset"
        print(convert_recordings(options.recordings, root, contract, options.task_from))
    with Bar(f"assess {options.run}", "fit") as bar:
        found = assess(options.run, root, options.settings, options.thresholds, bar)
    return dataclasses.replace(found, recordings=dataclasses.replace(found.recordings, root=given))
