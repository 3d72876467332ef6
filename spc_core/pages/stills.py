# SPDX-License-Identifier: Apache-2.0
"""Camera stills of an episode for each task: at its start, in the middle and at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape

import numpy as np

from spc_core.pages.kit.png import data_url

MAX_TASKS = 12  # rows of stills in a page
SIZE = 240  # px, maximum width of a still


@dataclasses.dataclass(frozen=True)
class Stills:
    """Images of one episode."""

    about: str  # description of the episode
    images: tuple[tuple[float, np.ndarray], ...]  # (seconds after its start, (height, width, 3) uint8)


def downsample(image: np.ndarray) -> np.ndarray:
    """Downsample to every n-th pixel, so that a page stays small."""
    step = -(-image.shape[1] // SIZE)
    return np.ascontiguousarray(image[::step, ::step])


def gallery(stills: Sequence[Stills]) -> str:
    """HTML with a row for each episode."""
    rows = []
    for still in stills[:MAX_TASKS]:
        figures = [
            f"<figure><img src='{data_url(downsample(image))}' alt='{escape(still.about)} at {seconds:.1f} s'>"
            f"<figcaption>{seconds:.1f} s</figcaption></figure>"
            for seconds, image in still.images
        ]
        rows.append(f"<div class=still><p>{escape(still.about)}</p>{''.join(figures)}</div>")
    left = len(stills) - MAX_TASKS
    more = f"<p class=caption>{left} more tasks have pictures in their bags.</p>" if left > 0 else ""
    return f"<div class=stills>{''.join(rows)}</div>{more}"
