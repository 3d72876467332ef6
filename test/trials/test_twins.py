# SPDX-License-Identifier: Apache-2.0
"""Two living nodes of one name are found; a node that was restarted is not taken for two."""

from __future__ import annotations

from spc_ros.node_parts.episode_driver import Twins


def test_a_node_that_speaks_again_after_its_namesake_is_alive():
    twins = Twins()
    for process in ("host:1", "host:2", "host:1"):
        assert not twins.found
        twins.spoke("/sim", process)
    assert twins.found.startswith("two nodes named /sim run, as processes host:1 and host:2: stop the one")


def test_a_restarted_node_and_nodes_of_other_names_are_no_twins():
    twins = Twins()
    for name, process in [("/sim", "host:1"), ("/policy", "host:9"), ("/sim", "host:1"), ("/policy", "host:9")]:
        twins.spoke(name, process)
    for process in ("host:2", "host:2", "host:3"):
        twins.spoke("/sim", process)
    assert not twins.found
