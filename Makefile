# The commands of the project. `make run` and `make test` install what they need into .venv first, and again only
# when the lock changed.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help run test check lint lock clean bench-step bench-judges bench-ledger bench-checkpoints bench-watchdog sabotage chaos

help:
	@echo "make run     install, build the small model, run 3 dream cycles, say what happened"
	@echo "make test    install, then every test that passes without a GPU"
	@echo "make lint    formatting, ruff, mypy, import directions"
	@echo "make check   lint and test"
	@echo "make bench-step  time and memory of one step beside TRL's, and of APOLLO beside AdamW (about 12 minutes)"
	@echo "make bench-judges  how often each judge is right on labelled answers (about 10 minutes)"
	@echo "make bench-ledger  ms per near-duplicate check among 10^3, 10^5, 10^6 examples (about 20 minutes)"
	@echo "make bench-checkpoints  bytes and seconds per step beside save_pretrained and torch's (about 10 minutes)"
	@echo "make bench-watchdog  false rollbacks and delays of the watchdog, simulated (about 5 minutes)"
	@echo "make sabotage  30 clean cycles of the small model, then six kinds of sabotage and a control (about 2 hours)"
	@echo "make chaos   a tiny model is killed 200 times on each database, then everything is checked (N=, DATABASE=, SEED=)"
	@echo "make lock    resolve requirements/cpu.lock anew, after a change in pyproject.toml"
	@echo "make clean   delete caches and build output (not .venv, not var/)"

run: $(INSTALLED)
	$(BIN)/dreamd init --small-model
	$(BIN)/dreamd run --cycles 3 --log pretty

# One thread each for what runs side by side; then, one after the other, what starts vLLM, which takes all cores.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not vllm" --numprocesses logical --maxprocesses 4 --dist worksteal
	$(BIN)/python -m pytest -m vllm

check: lint test

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-step: $(INSTALLED)
	$(BIN)/python -m benchmarks.step

bench-judges: $(INSTALLED)
	$(BIN)/python -m benchmarks.judges

bench-ledger: $(INSTALLED)
	$(BIN)/python -m benchmarks.ledger

bench-checkpoints: $(INSTALLED)
	$(BIN)/python -m benchmarks.checkpoints

bench-watchdog: $(INSTALLED)
	$(BIN)/python -m benchmarks.watchdog

sabotage: $(INSTALLED)
	$(BIN)/python -m benchmarks.sabotage

N ?= 200
DATABASE ?= both
SEED ?= 1

chaos: $(INSTALLED)
	PYTHONPATH=.:tests $(BIN)/python -m chaos.run --kills $(N) --database $(DATABASE) --seed $(SEED)

lock: $(INSTALLED)
	$(BIN)/python requirements/lock.py

$(INSTALLED): requirements/cpu.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dreamd: $(PYTHON) is not a Python 3.11 or newer; try: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) requirements/install.py
	@touch $@

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* htmlcov dist
	find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
