# SPDX-License-Identifier: Apache-2.0
"""Where the repository is, and what tests read of it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEST_FOLDER = ROOT / "test"  # as working folder, `python -m faults.x` finds itself
BAGS = TEST_FOLDER / "data" / "bags"  # sample recordings
