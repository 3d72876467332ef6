# SPDX-License-Identifier: Apache-2.0
"""The design's hard boundaries, read from the syntax trees: who imports what, and what no file calls."""

import ast
import graphlib
import os
import runpy
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from spc_core import IMPORT_ORDER as CORE_ORDER
from spc_ros import IMPORT_ORDER as ROS_ORDER
from support.paths import ROOT

CORE = sorted((ROOT / "spc_core").rglob("*.py"))
ROS = sorted((ROOT / "spc_ros").rglob("*.py"))
LAUNCH = sorted((ROOT / "launch").glob("*.launch.py"))
SCRIPTS = sorted((ROOT / "scripts").iterdir())
TOOLS = sorted((ROOT / "tools").glob("*.py"))
TESTS = sorted((ROOT / "test").rglob("*.py"))

CORE_LAYERS = 7  # longest path through the folders of spc_core

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_YAML = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every absolute import, inside functions and by importlib as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0] if node.args else None
            yield node.lineno, str(name.value) if isinstance(name, ast.Constant) else "(a computed name)"


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything that would let a file from a stranger run code."""
    for line, name in imports(tree):
        if name.split(".")[0] in UNSAFE_MODULES or name in {
            "torch.load",
            *(f"yaml.{f}" for f in UNSAFE_YAML),
        }:
            yield line, f"import of {name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        module, _, function = called.rpartition(".")
        if called in {"eval", "exec", "compile", "__import__"} or (module == "yaml" and function in UNSAFE_YAML):
            yield node.lineno, f"{called}()"
        if called == "torch.load" and options.get("weights_only") != "True":
            yield node.lineno, "torch.load() without weights_only=True"
        if function == "load" and options.get("allow_pickle", "False") != "False":
            yield node.lineno, f"{called}() with allow_pickle"


def only_for_types(tree: ast.AST) -> set[ast.AST]:
    """All nodes under `if TYPE_CHECKING`, which never run."""
    guarded = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    return {inner for node in guarded for statement in node.body for inner in ast.walk(statement)}


def import_graph(package: Path) -> dict[str, set[str]]:
    """Which modules of a package each of its modules imports, inside functions as well, by dotted names."""
    paths = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        tree = parse(path)
        skipped = only_for_types(tree)
        taken = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        graph[module] = set()
        for _, name in (pair for node in taken if node not in skipped for pair in imports(node)):
            while name and name not in paths:  # a name in a module, down to the module
                name = name.rpartition(".")[0]
            graph[module] |= {name} - {"", module}
    return graph


def folder_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same between the folders of the package; a module outside the folders counts as a folder."""
    folders: dict[str, set[str]] = {}
    for module, used in graph.items():
        for name in used:
            here, there = ((dotted.split(".") + [""])[1] for dotted in (module, name))
            if here and there and here != there:
                folders.setdefault(here, set()).add(there)
    return folders


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one import circle, or none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def layers(graph: dict[str, set[str]]) -> int:
    """The number of nodes on the longest path of a graph without circles."""
    depth: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        depth[name] = 1 + max((depth[used] for used in graph.get(name, ())), default=0)
    return max(depth.values(), default=0)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def is_ros(top: str) -> bool:
    return top in {"rclpy", "std_srvs"} or top.endswith(("_msgs", "_interfaces"))


def may_import_ros(path: Path) -> bool:
    return path.relative_to(ROOT / "spc_ros").parts[0] in ("nodes", "node_parts")


def offences(paths: list[Path], rule) -> list[str]:
    """`file:line name` of every import whose top-level name breaks the rule."""
    assert paths, "nothing to check"
    return [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in paths
        for line, name in imports(parse(path))
        if rule(name.split(".")[0])
    ]


def test_core_knows_no_ros() -> None:
    outside = {"rosbags", "rosbag2_py", "spc_ros", "launch", "launch_ros", "ament_index_python"}
    assert offences(CORE, lambda top: is_ros(top) or top in outside) == []


def test_only_nodes_import_ros() -> None:
    assert offences([path for path in ROS if not may_import_ros(path)], is_ros) == []


@pytest.mark.parametrize(("package", "order"), [("spc_core", CORE_ORDER), ("spc_ros", ROS_ORDER)])
def test_each_folder_imports_only_those_before_it(package: str, order: tuple[str, ...]) -> None:
    folders = {path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(order)
    rank = {name: place for place, name in enumerate(order)}
    upward = []
    for path in sorted((ROOT / package).rglob("*.py")):
        own = rank.get(path.relative_to(ROOT / package).parts[0], len(order) if package == "spc_ros" else -1)
        for line, name in imports(parse(path)):
            top, _, rest = name.partition(".")
            if top == package and rank.get(rest.split(".")[0], -1) > own:
                upward.append(f"{path.relative_to(ROOT)}:{line} {name}")
    assert upward == []


@pytest.mark.parametrize("package", ["spc_core", "spc_ros"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    assert circle(import_graph(ROOT / package)) == []


def test_core_has_few_layers() -> None:
    assert layers(folder_graph(import_graph(ROOT / "spc_core"))) <= CORE_LAYERS


def test_a_circle_of_imports_is_found(tmp_path: Path) -> None:
    package = tmp_path / "house"
    files = {
        "__init__.py": "",
        "cellar/__init__.py": "",
        "cellar/coal.py": "import json",
        "hall.py": "def f():\n    from house.cellar import coal",
        "attic.py": "if TYPE_CHECKING:\n    from house.roof import x\nfrom house.hall import f",
        "roof.py": "from house import attic",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    graph = import_graph(package)
    assert graph["house.hall"] == {"house.cellar.coal"} and circle(graph) == []
    assert folder_graph(graph) == {"hall": {"cellar"}, "attic": {"hall"}, "roof": {"attic"}}
    assert layers(folder_graph(graph)) == 4
    (package / "cellar/coal.py").write_text("def f():\n    import house.roof")
    assert set(circle(import_graph(package))) == {f"house.{m}" for m in ("cellar.coal", "hall", "attic", "roof")}


def test_launch_files_import_neither_torch_nor_the_package() -> None:
    assert offences(LAUNCH, lambda top: top == "torch" or top.startswith("spc_")) == []


def test_no_test_module_imports_another() -> None:
    """What two of them need is in test/support or test/faults; `soak` is a program with a test of its own."""
    modules = {path.stem for path in TESTS if path.stem.startswith("test_")}
    assert len(modules) > 50
    imported = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in TESTS
        for line, name in imports(parse(path))
        if modules & set(name.split("."))
    ]
    assert imported == []


def test_spdx_line() -> None:
    wanted = "# SPDX-License-Identifier: Apache-2.0"
    first_lines = {}
    for path in [*CORE, *ROS, *LAUNCH, *SCRIPTS, *TOOLS, *TESTS, ROOT / "setup.py"]:
        lines = path.read_text().split("\n")
        first_lines[str(path.relative_to(ROOT))] = lines[1] if lines[0].startswith("#!") else lines[0]
    assert [name for name, line in first_lines.items() if line != wanted] == []


def test_nothing_runs_code_from_data() -> None:
    paths = [*CORE, *ROS, *LAUNCH, ROOT / "setup.py"]
    found = [f"{path.relative_to(ROOT)}:{line} {what}" for path in paths for line, what in unsafe(parse(path))]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from cloudpickle import loads",
        "importlib.import_module('dill')",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader)",
        "numpy.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
    ],
)
def test_rules_catch(code: str) -> None:
    assert list(unsafe(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["model.eval()", "torch.load(p, weights_only=True)", "yaml.safe_load(t)", "numpy.load(p)"]
)
def test_rules_allow(code: str) -> None:
    assert list(unsafe(ast.parse(code))) == []


def test_setup_names_existing_files(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", given.update)
    runpy.run_path("setup.py")
    data = [name for _, names in given["data_files"] for name in names]
    assert [name for name in data if not (ROOT / name).is_file()] == []
    assert all(names for _, names in given["data_files"])
    for entry in given["entry_points"]["console_scripts"]:
        assert defines_main(entry.split("=")[1].strip().removesuffix(":main")), entry


def test_scripts_start_existing_nodes() -> None:
    for path in SCRIPTS:
        assert os.access(path, os.X_OK), f"{path.name} is not executable"
        assert path.read_text().startswith("#!/usr/bin/env python3\n"), path.name
        (module,) = [name.removesuffix(".main") for _, name in imports(parse(path))]
        assert module == f"spc_ros.nodes.{path.name}" and defines_main(module), path.name


def defines_main(module: str) -> bool:
    path = ROOT / (module.replace(".", "/") + ".py")
    return path.is_file() and any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in parse(path).body)


def test_launch_files_name_existing_files() -> None:
    executables = {path.name for path in SCRIPTS}
    files = {path.name for folder in ("config", "launch") for path in (ROOT / folder).rglob("*")}
    missing = []
    for path in LAUNCH:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.keyword) and node.arg == "executable" and isinstance(node.value, ast.Constant):
                missing += [f"{path.name}: executable {node.value.value}"] * (node.value.value not in executables)
            if isinstance(node, ast.Constant) and str(node.value).endswith((".yaml", ".launch.py", ".json")):
                missing += [f"{path.name}: {node.value}"] * (Path(str(node.value)).name not in files)
    assert missing == []


def test_package_xml_names_what_is_imported() -> None:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    named = {element.text for element in package.iter("exec_depend")}
    tops = {name.split(".")[0] for path in [*ROS, *LAUNCH] for _, name in imports(parse(path))}
    optional = {"simulation_interfaces"}  # used where it is installed; no node needs it
    assert {top for top in tops if is_ros(top) or top in {"launch", "launch_ros"}} - optional <= named
    license_file = package.find("license")
    assert license_file is not None and (ROOT / license_file.attrib["file"]).is_file()
