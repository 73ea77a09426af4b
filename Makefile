# Every verb does all the set-up it needs; a second call does none of it again.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= runs/demo

.PHONY: setup test demo check bench docs clean

setup: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test,lint]"
	touch $@

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

demo: setup
	$(BIN)/accord demo --out $(OUT) --overwrite

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 0 tests/architecture

bench: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/python benchmarks/preference_training.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/online_training.py
	$(BIN)/python benchmarks/reward_model.py

docs: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx -q -W -b html docs docs/_build/html

clean:
	rm -rf $(VENV) docs/_build build *.egg-info
