#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# pytest-xdist 3.8.0 with pytest 9.2.0 and with pytest 9.0.2, Python 3.11, Linux: --dist loadgroup.
#
# Guess: all tests marked xdist_group("one") run on one worker, which is what loadgroup is for.
# Seen: with pytest 9.0.2 they do. With pytest 9.2.0 both workers run some of them, and no warning is given: xdist
#   writes the group behind an item's private _nodeid, and in pytest 9.2 an item's id is structured and kept elsewhere.
# So tests that must not run at the same time do. A scheduler of one's own (pytest_xdist_make_scheduler, a subclass of
# LoadScopeScheduling that sorts by file) is heard by both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/tests"
cat > "$folder/tests/test_groups.py" <<'PY'
import os
import pathlib
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(12))
def test_of_the_group(number):
    time.sleep(0.05)
    (pathlib.Path(os.environ["SEEN"]) / os.environ["PYTEST_XDIST_WORKER"]).touch()
PY
workers() {  # of pytest $1: how many workers ran tests of the group
  python3 -m venv "$folder/$1"
  "$folder/$1/bin/pip" --disable-pip-version-check install -qq "pytest==$1" pytest-xdist==3.8.0 execnet==2.1.2
  mkdir "$folder/seen-$1"
  SEEN="$folder/seen-$1" "$folder/$1/bin/python" -m pytest -q -p no:cacheprovider "$folder/tests" -n 2 --dist loadgroup \
    > "$folder/out-$1" 2>&1 || { cat "$folder/out-$1" >&2; exit 1; }
  ls "$folder/seen-$1" | wc -l
}
seen="pytest 9.0.2: $(workers 9.0.2) worker, pytest 9.2.0: $(workers 9.2.0) workers"
echo "$seen"
[ "$seen" = "pytest 9.0.2: 1 worker, pytest 9.2.0: 2 workers" ] || { echo "this has changed" >&2; exit 1; }
