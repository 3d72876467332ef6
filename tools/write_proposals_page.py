# SPDX-License-Identifier: Apache-2.0
"""Writes docs/proposals.md from the table that a test compares with the proposals.

python tools/write_proposals_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]


def main() -> None:
    from support.proposal_table import document

    (ROOT / "docs" / "proposals.md").write_text(document())


if __name__ == "__main__":
    main()
