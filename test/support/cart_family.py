# SPDX-License-Identifier: Apache-2.0
"""A family.yaml of a cart on a rail with its MJCF and contract, for tests; parts can be replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from support.contracts import action_section, make_contract, stream_section

CART = """
<mujoco model="cart">
  <option timestep="0.01" gravity="0 0 -10"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1"/>
    <body name="cart" pos="0 0 .5">
      <joint name="rail" type="slide" axis="1 0 0" damping="0.1"/>
      <geom name="box" type="box" size=".1 .1 .1" mass="2" contype="0" conaffinity="0"/>
    </body>
    <body name="goal" pos="1 0 .5"><geom name="flag" size=".05" contype="0" conaffinity="0"/></body>
    <body name="ball" pos="3 0 2"><freejoint name="free"/><geom size=".1" contype="0" conaffinity="0"/></body>
  </worldbody>
  <actuator><motor name="pull" joint="rail"/></actuator>
  <sensor><jointvel name="reward" joint="rail"/></sensor>
</mujoco>
"""
SECTIONS = {
    "name": "cart",
    "observation": [stream_section("joint_states", ["position.rail", "velocity.rail"])],
    "action": action_section(["effort.rail"], high=[5], max_rate=[500]),
    "reward": {"topic": "reward", "type": "geometry_msgs/msg/Vector3Stamped", "field": "vector.x"},
}
FAMILY: Mapping[str, Any] = {
    "model": "cart.xml",
    "contract": "./contract.yaml",
    "episode_s": 0.5,
    "parameters": {"load": {"mass": "cart", "range": [1, 4], "beyond": [0.5, 6]}},
}


def write_cart_family(folder: Path, changes: Mapping[str, Any] | None = None, model: str = CART) -> Path:
    """The path of the family.yaml; a change to None leaves the key out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cart.xml").write_text(model)
    (folder / "contract.yaml").write_text(make_contract(None, **SECTIONS).text)
    told = {key: value for key, value in {**FAMILY, **(changes or {})}.items() if value is not None}
    path = folder / "family.yaml"
    path.write_text(yaml.safe_dump(told))
    return path
