# SPDX-License-Identifier: Apache-2.0
"""MuJoCo for many environments: models compiled once, and no timers."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
from pathlib import Path

import mujoco


def load_model(file: Path) -> mujoco.MjModel:
    """Compile a model. Steps of this process read no clock from then on."""
    _stop_timers()
    return mujoco.MjModel.from_xml_path(str(file))


def model_of_text(text: str) -> mujoco.MjModel:
    """Compile a model from its text. Steps of this process read no clock from then on."""
    _stop_timers()
    return mujoco.MjModel.from_xml_string(text)


def _stop_timers() -> None:
    """Let MuJoCo read no clock within a step: a third of the time of a small model, for `MjData.timer`, unread here.

    The package installs a C function in the global `mjcb_time`, which set_mjcb_time(None) installs again (mujoco 4.0,
    findings/mujoco_timer.sh).
    """
    library = ctypes.CDLL(mujoco._functions.__file__)  # looks in libmujoco too
    with contextlib.suppress(ValueError):  # a build without the symbol keeps its timers
        ctypes.c_void_p.in_dll(library, "mjcb_time").value = None


def new_model(file: Path) -> mujoco.MjModel:
    """A model of its own for each caller, compiled at the first call."""
    return copy.copy(_compiled(file))


@functools.cache
def _compiled(file: Path) -> mujoco.MjModel:
    return load_model(file)


def derive_constants(model: mujoco.MjModel, scratch: mujoco.MjData) -> None:
    """Recompute what MuJoCo derives from masses and inertias after they have changed; `scratch` is left at qpos0."""
    mujoco.mj_setConst(model, scratch)
    model.stat.meaninertia = model.dof_M0.mean()  # scales the solver tolerance; mj_setConst leaves it stale
