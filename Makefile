# Each target makes its own environment (.venv) when there is none. Python 3.10 or newer and make are all that is needed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test chaos lint smoke clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	# Without its dependencies: visdom, which its attacks do not use, does not build with today's setuptools.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'adv-lib>=0.2.8'
	touch $@

quickstart: .venv/installed
	$(BIN)/mi-ray sweep sweeps/quickstart.yaml

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

# Kills processes at random for half an hour, and compares the rows: make chaos MINUTES=10 SEED=3
chaos: .venv/installed-test
	PYTHONPATH=tests $(BIN)/python tests/chaos.py --minutes $(or $(MINUTES),30) --seed $(or $(SEED),0)

smoke: .venv/installed
	$(BIN)/mi-ray sweep --smoke sweeps/*.yaml

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
