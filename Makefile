# make            what there is
# make demo       a composed app served over HTTP and called by a client
# make test       the tests                  make test ARGS="tests/call -k chain"
# make stress     what threads share, used by eight at once; a free-threaded Python shows most
# make check      format, lint, types
# make bench      the benchmarks             make bench SMOKE=1 shows that they run
# make parity     the programs of tests/parity on a real Ray cluster (installs Ray: 500 MB, and takes minutes)
# make clean      away with the environment and all caches
#
# Each makes the virtual environment it needs; PYTHON=... and VENV=... choose another one.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
SMOKE  ?=
RESULTS ?= benchmarks/results
RAY    ?= .venv-ray

bin     := $(VENV)/bin
install := $(bin)/python -m pip --disable-pip-version-check install -qq --use-pep517

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:  # two installs into one environment would trip over each other
.SECONDARY:
.PHONY: help demo test stress check format lint mypy pyright bench parity clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

demo: $(VENV)/.installed
	@$(bin)/python .ci/demo.py

test: $(VENV)/.installed-test
	$(bin)/python -m pytest $(ARGS)

stress: $(VENV)/.installed-stress
	$(bin)/python -m pytest --parallel-threads 8 --iterations 40 tests/stress/test_parallel.py $(ARGS)

check: format lint mypy pyright  # make -k check goes on after the first that complains

format: $(VENV)/.installed-dev
	$(bin)/ruff format --check .

lint: $(VENV)/.installed-dev
	$(bin)/ruff check .

mypy: $(VENV)/.installed-dev
	$(bin)/mypy

pyright: $(VENV)/.installed-dev
	$(bin)/pyright --pythonpath $(bin)/python

bench: $(VENV)/.installed-bench
	$(bin)/python -m benchmarks all $(if $(filter-out 0,$(SMOKE)),--smoke,--results $(RESULTS))
	$(if $(filter-out 0,$(SMOKE)),,$(bin)/python -m benchmarks targets --from $(RESULTS) --results $(RESULTS))

parity: $(VENV)/.installed-test $(RAY)/.installed
	nice $(bin)/python tests/parity/compare.py --python $(RAY)/bin/python $(ARGS)

clean:
	rm -rf $(VENV) $(RAY) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A stamp is as old as its install; a changed setup.cfg makes it out of date.
$(VENV)/.installed: setup.cfg setup.py | $(bin)/python
	$(install) -e .
	@touch $@

$(VENV)/.installed-%: setup.cfg setup.py | $(bin)/python
	$(install) -e '.[$*]'
	@touch $@

$(RAY)/.installed:
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip --disable-pip-version-check install -qq 'ray[serve]==2.60.*'
	@touch $@

# Debian's python3 comes without ensurepip: fall back to virtualenv, then to the pip beside python3.
$(bin)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "threadserve needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "making $(VENV)"; \
	fresh() { rm -rf $(VENV); "$$@" >/dev/null 2>&1; }; \
	fresh $(PYTHON) -m venv $(VENV) || fresh $(PYTHON) -m virtualenv $(VENV) || \
	  { fresh $(PYTHON) -m venv --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(bin)/python install --quiet pip 2>/dev/null; } || \
	  { rm -rf $(VENV); \
	    echo "$(PYTHON) can make no virtual environment: install python3-venv (or virtualenv)" >&2; exit 1; }
