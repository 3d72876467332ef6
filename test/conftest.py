# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that run nodes as processes, and which tests may run side by side."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # most tests need no ROS, and some must run where there is none
    from spc_ros.processes import NodeGroup
    from support.node_probe import Probe


NODE_FILE = re.compile(r"support\.node_probe|spc_ros\.processes|pytest\.mark\.nodes")


@functools.cache
def starts_nodes(file: Path) -> bool:
    """Whether a file of tests starts nodes, by what it imports or says."""
    return NODE_FILE.search(file.read_text()) is not None


@pytest.hookimpl(wrapper=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark what starts nodes, which must hear each other in time: `make test` runs it with nothing beside it."""
    for item in items:
        if starts_nodes(item.path):
            item.add_marker(pytest.mark.nodes)
    return (yield)


@pytest.fixture(autouse=True)
def no_family_of_a_file() -> Iterator[None]:
    """No family of a file stays known after a test."""
    yield
    if (registry := sys.modules.get("spc_core.tasks.families")) is not None:
        registry._from_files.clear()
        registry._in_file.cache_clear()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[NodeGroup]:
    """Nodes in a domain of their own, stopped at the test's end."""
    from spc_ros.processes import NodeGroup
    from support.node_probe import own_domain

    with NodeGroup(tmp_path / "log", environment=own_domain()) as group:
        yield group


@pytest.fixture
def probe(nodes: NodeGroup) -> Iterator[Probe]:
    """A test's own node, which hears the nodes of `nodes`."""
    from support.node_probe import Probe

    with Probe(dict(nodes.environment or {})) as probe:
        yield probe


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An untrained checkpoint of arm_reach that all tests share: to be read, never written to."""
    from support.random_checkpoint import write_random_checkpoint

    folder = write_random_checkpoint(tmp_path_factory.mktemp("arm_reach") / "checkpoint", "arm_reach")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    yield folder
    assert {path: path.read_bytes() for path in folder.iterdir()} == before, "a test wrote to the shared checkpoint"


@pytest.fixture
def arm_bag(tmp_path: Path) -> Path:
    """A bag of one episode of arm_reach, 20 transitions, of the test's own."""
    from support.recorded_bags import record_arm

    return record_arm(tmp_path / "bag")
