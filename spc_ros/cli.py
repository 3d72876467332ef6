# SPDX-License-Identifier: Apache-2.0
"""`spc`: the chain from a robot or simulation to an adapted policy, command by command or in one go.

The commands are the files in spc_ros/commands; how to add one is in its __init__.py.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

COMMANDS = Path(__file__).parent / "commands"
EXTRAS = {
    "sim": ("mujoco", "gymnasium"),
    "train": ("minari", "PIL", "tqdm", "tensorboard", "tyro", "plotly"),
    "onnx": ("onnx", "onnxruntime"),
    "ray": ("ray",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 refused or failed with a message, 2 wrong usage, 130 interrupted.

    A command may have further codes of its own, as `doctor` has.
    """
    words, rest = split(sys.argv[1:] if arguments is None else arguments)
    name = " ".join(["spc", *words])
    if COMMANDS.joinpath(*words).is_dir():
        return _show_usage(name, words, rest)
    try:
        return _module(words).run(parse([*words, *rest]))
    except KeyboardInterrupt as interrupt:
        print(f"{name}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "spc_").partition(".")[0]
        if package.startswith("spc_"):
            raise
        print(f"{name}: needs {package}, which is not installed here; {how_to_install(package)}", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError, OSError) as error:  # refusals; a bug shows its traceback
        if type(error) in (ValueError, RuntimeError) and not str(error):
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return 1


def commands(*words: str) -> dict[str, str]:
    """Each command of a folder with its docstring's first line; parsed, since imports would take seconds."""
    found = {}
    for path in sorted(COMMANDS.joinpath(*words).iterdir()):
        file = path / "__init__.py" if path.is_dir() else path
        if not path.name.startswith("_") and file.suffix == ".py" and file.is_file():
            found[path.stem] = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
    return found


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that name a command (`bench train` has two) or a folder of commands, and the rest."""
    words: list[str] = []
    for word in arguments:
        if not COMMANDS.joinpath(*words).is_dir() or word not in commands(*words):
            break
        words.append(word)
    return words, list(arguments[len(words) :])


def parse(arguments: Sequence[str]) -> Any:
    """The options of a command line that starts with the name of a command."""
    from spc_ros.option_parser import parse_options  # not at the top, so that the usage appears at once

    words, rest = split(arguments)
    command = _module(words)
    if hasattr(command, "parse"):  # it passes arguments on
        return command.parse(rest)
    return parse_options(command, " ".join(["spc", *words]), rest)


def how_to_install(package: str) -> str:
    """What to type to get a package that a command needs."""
    if package == "rclpy" or package.endswith("_msgs"):
        return "source a ROS 2 workspace, or pip install 'spc_ros[ros-jazzy]'"
    extra = next((name for name, packages in EXTRAS.items() if package in packages), None)
    return f"pip install {package}" if extra is None else f"pip install 'spc_ros[{extra}]'"


def _module(words: Sequence[str]) -> ModuleType:
    return importlib.import_module(".".join(["spc_ros.commands", *words]))


def _show_usage(name: str, words: Sequence[str], rest: Sequence[str]) -> int:
    """Print the commands of a folder: to stderr, with an error, where `rest` begins with none of them."""
    lines = [f"  {command:9}  {line.rstrip('.')}" for command, line in commands(*words).items()]
    head = f"usage: {name} <command> [options]      ({name} <command> --help lists a command's options)"
    usage = "\n".join([head, "", *lines])
    if rest and rest[0] not in ("-h", "--help"):
        print(f"{name}: unknown command '{rest[0]}'\n\n{usage}", file=sys.stderr)
        return 2
    print(usage)
    return 0 if rest else 2


if __name__ == "__main__":
    raise SystemExit(main())
