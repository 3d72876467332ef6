#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# mujoco 4.0.0 (Python 3.11, Linux): its Python package lets every step read the clock, and cannot be told not to.
#
# Guess: MjData.timer stays at 0 unless somebody installs a timer by set_mjcb_time, as the C documentation says, and
# set_mjcb_time(None) removes one.
# Seen: after import, each mj_step adds to MjData.timer; set_mjcb_time(None) changes nothing; only the symbol
# mjcb_time of the library itself, set to NULL, stops it. For a model of two joints the clock takes 20 to 40 % of a step.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check install -qq mujoco==4.0.0
cat > "$folder/run.py" <<'PY'
import ctypes
import time

import mujoco

XML = """
<mujoco><worldbody><body><joint type="hinge" axis="0 1 0"/><geom type="capsule" size=".02 .2"/>
<body pos="0 0 .4"><joint type="hinge" axis="0 1 0"/><geom type="capsule" size=".02 .2"/></body></body></worldbody></mujoco>
"""
model = mujoco.MjModel.from_xml_string(XML)


def steps():
    data = mujoco.MjData(model)
    began = time.perf_counter()
    for _ in range(20_000):
        mujoco.mj_step(model, data)
    return data.timer[mujoco.mjtTimer.mjTIMER_STEP].duration > 0, time.perf_counter() - began


timed, with_clock = steps()
mujoco.set_mjcb_time(None)
still, _ = steps()
library = ctypes.CDLL(mujoco._functions.__file__)
ctypes.c_void_p.in_dll(library, "mjcb_time").value = None
after, without_clock = steps()
print(f"timed {timed}; after set_mjcb_time(None) {still}; after mjcb_time = NULL {after}")
print(f"the clock takes {1 - without_clock / with_clock:.0%} of a step here")
PY
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/output"
expected="timed True; after set_mjcb_time(None) True; after mjcb_time = NULL False"
[ "$(head -1 "$folder/output")" = "$expected" ] || { echo "changed: expected $expected"; exit 1; }
