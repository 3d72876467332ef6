# SPDX-License-Identifier: Apache-2.0
"""README, CHANGELOG and docs: every link leads to a file and a heading, every page is reached, every path is there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from support.paths import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
UNWRAPPED = ("CHANGELOG.md", "faults.md", "node_faults.md")  # old entries, and pages that tests write
PROSE_WIDTH = 120
OURS = ("spc_core/", "spc_ros/", "config/", "docs/", "launch/", "test/", "scripts/", "tools/")


def prose(text: str) -> str:
    """A page without its blocks of code, where brackets are no links and # begins a comment."""
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.M | re.S)


def links(text: str) -> list[str]:
    """Targets of links and images, inline, by reference and in HTML; code is not looked into."""
    text = re.sub(r"`[^`\n]*`", "`", prose(text))
    found = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    found += re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.M)
    return found + re.findall(r"(?:href|src)=\"([^\"]+)\"", text)


def anchors(text: str) -> set[str]:
    """What GitHub makes of headings: lower case, no punctuation, a hyphen for each space, numbers for twins."""
    seen: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", prose(text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return names


def broken(page: Path, root: Path = ROOT) -> list[str]:
    """The links of a page that lead nowhere, or out of the repository."""
    wrong = []
    for link in links(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        found = target.is_relative_to(root) and target.exists()
        if found and anchor:
            found = target.suffix == ".md" and anchor in anchors(target.read_text())
        if not found:
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    assert broken(page) == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = set(), [ROOT / "README.md"]
    while new:
        page = new.pop()
        reached.add(page)
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page.read_text())}
        new += [target for target in targets - reached if target.suffix == ".md" and target.is_file()]
    assert [page.name for page in PAGES if page not in reached] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_code_are_there(page: Path) -> None:
    """Such as `spc_core/alignment/streaming.py`; a name in angle brackets or with a star stands for many."""
    named = re.findall(r"`([\w./-]+/[\w./-]*)`", prose(page.read_text()))
    assert [name for name in named if name.startswith(OURS) and not (ROOT / name).exists()] == []


def wide(text: str) -> list[str]:
    """Lines of prose that are too long to read or to review; tables cannot be wrapped."""
    return [line for line in prose(text).splitlines() if len(line) > PROSE_WIDTH and not line.startswith(("|", "!["))]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in UNWRAPPED], ids=lambda page: page.name)
def test_prose_is_wrapped(page: Path) -> None:
    assert wide(page.read_text()) == []


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# Twins\n\n## `spc x`: one, two\n\n# Twins\n\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Own\n[a](there.md) [b](there.md#twins-1) [c](there.md#spc-x-one-two) [d](https://x.y#z) [e](#own) `[f](n)`\n"
    )
    assert broken(page, tmp_path) == []
    for wrong in ("no.md", "there.md#twin", "there.md#no-heading", "there.md#twins-2", "../out.md", "#other"):
        page.write_text(f"# Own\n[x]({wrong})")
        assert broken(page, tmp_path) == [wrong]
    page.write_text('<img src="no.png">\n\n[x]: no.txt')
    assert broken(page, tmp_path) == ["no.txt", "no.png"]
    long = "word " * 30
    assert wide(f"{long}\n| {long}\n```\n{long}\n```\n![{long}](x.svg)\n") == [long]
