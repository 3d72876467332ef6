# SPDX-License-Identifier: Apache-2.0
"""`spc`: the chain from a robot or simulation to an adapted policy, stage by stage or in one go."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

USAGE = """\
usage: spc <stage> [options]      (spc <stage> --help tells each stage's options)

  collect    record behaviour data of a simulated task family as bags, over ROS 2
  contract   propose a contract from a bag (spc contract init BAG)
  doctor     find what is wrong with bags before training does
  convert    turn bags into a dataset
  describe   tell what is in a dataset, in text or as a page with plots
  relabel    recompute a dataset's rewards under a new contract, without the bags
  export     write a dataset in another project's format, or a run as ONNX
  train      learn context encoder, world model and policy from a dataset
  evaluate   score a trained run on held-out tasks in this process, without ROS
  compare    train and evaluate several methods with several seeds, side by side, with statistics
  trial      score a trained run on held-out tasks over ROS 2, node by node
  bench      measure training updates, conversion or the nodes' latency on this machine
  demo       all of the above for two task families, with a report
"""

STAGES = {  # which file of spc_ros/stages has the function of that name
    "collect": "data",
    "contract": "data",
    "doctor": "data",
    "convert": "data",
    "describe": "data",
    "relabel": "data",
    "export": "data",
    "train": "learning",
    "evaluate": "learning",
    "compare": "learning",
    "trial": "trying",
    "bench": "trying",
    "demo": "trying",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage. Exit codes: 0 done, 1 refused or failed with a message, 2 wrong usage, 130 interrupted.

    A stage may have codes of its own beside these, as `doctor` has.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    stage, *rest = arguments
    if stage not in STAGES:
        print(f"spc: there is no stage '{stage}'\n\n{USAGE}", file=sys.stderr, end="")
        return 2
    try:
        return _run(stage, rest)
    except KeyboardInterrupt as interrupt:
        print(f"spc {stage}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    except (
        ValueError,
        RuntimeError,
        OSError,
    ) as error:  # all our refusals; a bug is shown in full by the traceback
        if type(error) in (ValueError, RuntimeError) and not str(error):
            raise
        print(f"spc {stage}: {error}", file=sys.stderr)
        return 1


def _run(stage: str, arguments: Sequence[str]) -> int:
    """The exit code of a stage, which it returns if it has some of its own."""
    from spc_ros.parsing import parse  # so that the usage comes at once

    options = parse(stage, arguments)
    return getattr(importlib.import_module(f"spc_ros.stages.{STAGES[stage]}"), stage)(options) or 0


if __name__ == "__main__":
    raise SystemExit(main())
