# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

.PHONY: venv demo test test-all soak lint clean

venv: .venv/.stamp

# setuptools goes in first, and pinned: with build isolation pip would fetch whatever is newest to build this package.
.venv/.stamp: setup.py constraints.txt
	@echo "venv 1/3: creating .venv"
	@$(PYTHON) -m venv .venv
	@echo "venv 2/3: installing the build tools"
	@$(PIP) setuptools
	@echo "venv 3/3: installing spc_ros with its pinned dependencies (minutes on first use)"
	@$(PIP) --no-build-isolation -e '.[sim,ros-jazzy,train,test]'
	@touch $@

demo: .venv/.stamp
	$(BIN)/spc demo --out runs/demo

# Two tests at a time, then those that start nodes, one at a time. One thread for each process: two processes with two
# threads get in each other's way. A failure in the first part does not hide the second.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest test
TWO := -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/.stamp
	@status=0; $(PYTEST) $(TWO) -m "not slow and not nodes" || status=1; $(PYTEST) -m "not slow and nodes" || status=1; \
	exit $$status

test-all: .venv/.stamp
	@status=0; $(PYTEST) $(TWO) -m "not nodes" || status=1; $(PYTEST) -m nodes || status=1; exit $$status

# Trials over and over with the same nodes, for SPC_SOAK_MINUTES (30): nothing may grow, be missed or be left.
soak: .venv/.stamp
	$(BIN)/python test/soak.py --out runs/soak

lint: .venv/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv build install log runs *.egg-info .pytest_cache .ruff_cache
