# SPDX-License-Identifier: Apache-2.0
"""Dot-and-interval charts as SVG text, for documents: no browser and no drawing library."""

from __future__ import annotations

from html import escape

import numpy as np

from spc_core.pages.comparison_panels import Mark, Panel, Picture, split_title
from spc_core.pages.figures import COLOURS
from spc_core.pages.kit.style import FAINT, INK

ROW, TITLE, GAP = 22, 26, 20  # px: height of a method, of a protocol's name, between panels
TOP, AXIS = 30, 66  # px: the splits' names, below the panels
PANEL, VALUE, LETTER = 330, 44, 7.4  # px: width of a panel, of the number next to it, of a letter
ACCENT, MUTED = COLOURS["few_shot"], "#777777"
FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif\""


def dot_intervals(picture: Picture) -> str:
    """The picture as one SVG document on a white background."""
    left = 20 + LETTER * max(len(name) for name in picture.methods)
    columns = {split: left + i * (PANEL + VALUE + GAP) for i, split in enumerate(picture.splits)}
    parts = [_text(x, TOP - 10, split_title(split), weight=600) for split, x in columns.items()]
    top = float(TOP)
    for protocol in picture.protocols:
        found = [panel for panel in picture.panels if panel.protocol == protocol]
        height = TITLE + ROW * max(len(panel.marks) for panel in found)
        for number, panel in enumerate(found):
            parts += _panel(picture, panel, columns[panel.split], top, left if number == 0 else 0)
        top += height + GAP
    for x in columns.values():
        parts += _axis(picture, x, top - GAP)
    width, height = left + len(columns) * (PANEL + VALUE + GAP), top - GAP + AXIS
    parts.append(_text(8, height - 8, _legend(picture), size=11.5, colour=MUTED))
    background = f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" {FONT}>'
    return "\n".join([head, background, *parts, "</svg>"]) + "\n"


def _panel(picture: Picture, panel: Panel, x: float, top: float, names_at: float) -> list[str]:
    """Title, grid and marks; the methods' names right-aligned at `names_at`, unless that is 0."""
    below = top + TITLE + ROW * len(panel.marks)
    parts = [_text(x, top + TITLE - 9, panel.protocol, size=13, colour=MUTED)]
    for tick in ticks(picture.low, picture.high):
        parts.append(_line(_at(picture, x, tick), top + TITLE, _at(picture, x, tick), below, FAINT, 1))
    for value, _ in picture.lines:
        parts.append(_line(_at(picture, x, value), top + TITLE, _at(picture, x, value), below, MUTED, 1, "4 3"))
    for row, mark in enumerate(panel.marks):
        y = top + TITLE + ROW * (row + 0.5)
        parts += _mark(picture, mark, x, y)
        if names_at:
            weight = 650 if mark.accent else 400
            parts.append(_text(names_at - 10, y + 4.5, mark.name, anchor="end", weight=weight))
    return parts


def _mark(picture: Picture, mark: Mark, x: float, y: float) -> list[str]:
    colour = ACCENT if mark.accent else INK
    parts = []
    for (low, high), width in ((mark.interval_by_seed, 1.2), (mark.interval, 4)):
        if np.isfinite(low):
            parts.append(_line(_at(picture, x, low), y, _at(picture, x, high), y, colour, width))
    parts.append(f'<circle cx="{_at(picture, x, mark.value):.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
    parts.append(_text(x + PANEL + VALUE - 8, y + 4.5, f"{mark.value:.2f}".replace("-", "−"), anchor="end", size=12.5))
    return parts


def _axis(picture: Picture, x: float, y: float) -> list[str]:
    parts = [_line(x, y, x + PANEL, y, MUTED, 1)]
    for tick in ticks(picture.low, picture.high):
        at = _at(picture, x, tick)
        parts += [_line(at, y, at, y + 4, MUTED, 1), _text(at, y + 17, f"{tick:g}".replace("-", "−"), "middle", 12)]
    parts.append(_text(x + PANEL / 2, y + 34, picture.x_title, "middle", 13))
    return parts


def _legend(picture: Picture) -> str:
    lines = "; ".join(f"{value:g}: {meaning}" for value, meaning in picture.lines)
    return f"Dashed, {lines}. Thick: 95 % interval, bootstrap stratified by task; thin: whole training seeds redrawn."


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, four to nine of them."""
    step = 10 ** np.floor(np.log10((high - low) / 4))
    step = max(s for s in (step, 2 * step, 2.5 * step, 5 * step) if (high - low) / s >= 3)
    return [round(float(step * n), 6) for n in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _at(picture: Picture, x: float, value: float) -> float:
    return x + PANEL * (value - picture.low) / (picture.high - picture.low)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"{dashed}/>'


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: float = 13.5, colour: str = INK, weight: int = 400
) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} font-size="{size:g}" font-weight="{weight}" fill="{colour}">{escape(text)}</text>'
