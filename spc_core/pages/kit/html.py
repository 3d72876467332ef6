# SPDX-License-Identifier: Apache-2.0
"""HTML shared by all pages: a self-contained page, its style, tables and numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

CONFIG = {"displaylogo": False, "displayModeBar": False, "responsive": True}
STYLE = """
body { margin: 0; background: #fff; color: #222;
       font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; color-scheme: light; }
main { max-width: 1100px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 30px; margin: 12px 0 4px; }
h2 { font-size: 24px; margin: 56px 0 8px; padding-top: 20px; border-top: 2px solid #222; }
h3 { font-size: 19px; margin: 36px 0 4px; }
p, ul { max-width: 860px; margin: 8px 0; }
.lead { font-size: 19px; color: #444; }
.caption { color: #555; font-size: 14.5px; margin-top: 2px; }
.formula { font-family: ui-monospace, monospace; background: #f4f4f4; padding: 4px 12px; width: fit-content; }
.scroll { overflow-x: auto; }
.figure { min-width: 940px; }
table { border-collapse: collapse; margin: 10px 0; font-size: 15px; }
th, td { padding: 4px 14px 4px 0; vertical-align: top; text-align: left; border-bottom: 1px solid #e6e6e6; }
th { font-weight: 600; border-bottom: 1px solid #888; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.split { text-align: center; } .first { padding-left: 34px; } .strong { font-weight: 650; }
.name { white-space: nowrap; }
.name i { display: inline-block; width: 11px; height: 11px; margin-right: 8px; border-radius: 2px; }
.bar { display: inline-block; height: 11px; background: #0072B2; }
.stills { display: grid; grid-template-columns: repeat(auto-fill, minmax(520px, 1fr)); gap: 14px 24px; }
.still { display: flex; flex-wrap: wrap; gap: 6px; align-content: start; }
.still p { flex: 0 0 100%; font-size: 14.5px; margin: 0; } .still figure { margin: 0; flex: 1 1 0; max-width: 240px; }
.still img { width: 100%; border-radius: 4px; display: block; }
.facts td:first-child { min-width: 210px; }
figcaption { font-size: 13px; color: #555; }
code { font-size: 13px; overflow-wrap: anywhere; }
"""


def html_page(title: str, body: Iterable[str]) -> str:
    """A page from fragments of HTML; includes plotly.js once."""
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>\n<script>{get_plotlyjs()}</script>"
    content = f"<head>{head}</head>\n<body><main>{''.join(body)}</main></body>"
    return f"<!DOCTYPE html>\n<html lang='en'>{content}</html>\n"


def draw(figure: go.Figure, name: str) -> str:
    """A figure as HTML, for a page that includes plotly.js."""
    name = re.sub(r"\W", "-", name)
    html = figure.to_html(config=CONFIG, include_plotlyjs=False, full_html=False, div_id=name)
    return f"<div class=scroll><div class=figure>{html}</div></div>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A table of cells that are HTML already; with `numbers`, all columns but the first are right-aligned."""
    kinds = ["", *(" class=number" if numbers else "" for _ in head[1:])]
    top = "".join(f"<th{kind}>{escape(h)}</th>" for kind, h in zip(kinds, head, strict=True))
    lines = ["".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def number(value: float | None, digits: int = 1) -> str:
    """For a table: a true minus sign, no minus zero, a dash for None."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")
