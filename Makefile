# make demo   sets up .venv on the first call and shows semi-supervised training in a few minutes
# make test   sets up .venv on the first call and runs every check that CI runs
# make soak   kills runs, fills disks, watches memory: less than 40 minutes on two cores
# make wheel-check  installs the wheel in clean environments and trains there: 2 to 5 minutes for each Python
# make docs   builds the documentation in build/site, in an environment of its own: a minute on the first call, then seconds
# make docs-pages  writes the pages that are made from the code: the lists of methods, recipes and decisions
# make bench  measures speed on this machine's CPU and writes docs/performance.md (with peers 25 to 40 minutes)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DOCS_VENV := .venv-docs
MACHINE ?= cpu-$(shell nproc)-cores

# of `make bench`, e.g. PEERS="--peer imas=PATH --peer unimatch=PATH" DATA=PATH/voc-mini; the code of imas needs
# opencv-python-headless, in .venv or in an environment of its own: BENCH_PYTHON=PATH/bin/python
PEERS ?=
DATA ?=
BENCH_PYTHON ?= $(BIN)/python
# the oldest and the newest Python that semiseg supports
WHEEL_PYTHONS ?= python3.11 python3.13
SUITES := hardness views inputs loader step evaluation predict checkpoint startup pages

.PHONY: demo test check soak wheel-check docs docs-pages bench bench-report clean

demo: $(VENV)/.installed
	$(BIN)/semiseg demo

test: $(VENV)/.installed-dev
	$(MAKE) check

check:
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	# a worker with one thread on each core; each takes whole files first, so that fixtures are made once
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 4 --dist worksteal

soak: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -m soak
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/soak.py --machine $(MACHINE)

wheel-check:
	for python in $(WHEEL_PYTHONS); do $(PYTHON) tests/wheel_check.py --python $$python || exit; done

docs: $(DOCS_VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict  # not --quiet: warnings would not count then
	@echo "built; to read it: $(PYTHON) -m http.server --directory build/site"

docs-pages: $(VENV)/.installed
	$(BIN)/python docs/site/pages.py

bench: $(VENV)/.installed
	for suite in $(SUITES); do $(BENCH_PYTHON) benchmarks/$$suite.py $(PEERS) $(if $(DATA),--data $(DATA)) || exit; done
	$(MAKE) bench-report

bench-report:
	$(BENCH_PYTHON) benchmarks/report.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("semiseg needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lite]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement requirements-dev.txt
	touch $@

$(DOCS_VENV)/.installed: requirements-docs.txt constraints.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --requirement requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(DOCS_VENV) build/site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
