# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster, which is an optional extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class EngineError(ValueError):
    """An engine that cannot run; the message says what to install or start."""


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """The module ray, connected to the cluster named by RAY_ADDRESS, or to one on this machine, until the end.

    Raises EngineError where Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise EngineError("the engine 'ray' needs Ray; install it with pip install 'spc_ros[ray]'") from None
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
        except (ConnectionError, RuntimeError) as error:
            raise EngineError(
                f"no Ray cluster answers ({error}); start one with `ray start --head`, or unset RAY_ADDRESS"
            ) from error
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()
