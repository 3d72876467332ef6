# SPDX-License-Identifier: Apache-2.0
"""Writes the fault tables in docs, which tests compare with the tables in the code.

    python tools/write_fault_pages.py
    python tools/write_fault_pages.py --nodes --rates 25 50

The first writes docs/faults.md. The second also writes docs/node_faults.md, whose times it measures for several
minutes on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", action="store_true", help="also measure the table of the nodes")
    parser.add_argument("--rates", type=int, nargs="+", default=[25, 50], metavar="HZ", help="control rates to measure")
    args = parser.parse_args()

    from faults.bag_page import document

    (ROOT / "docs" / "faults.md").write_text(document())
    if args.nodes:
        from faults.node_page import page

        (ROOT / "docs" / "node_faults.md").write_text(page(args.rates))


if __name__ == "__main__":
    main()
