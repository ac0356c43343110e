# Set-up and checks of tfjoint; `make help` lists the targets.
#
# Every target prepares the virtual environment it needs. Pins come from constraints/; a finished
# set-up leaves a stamp, so that the next call starts at once and an interrupted one starts over.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:
# Two set-ups at once would only compete for the same cores and the same download.
.NOTPARALLEL:

# `make PYTHON=python3.12 test` chooses the interpreter, instead of the first one that fits.
PYTHON ?=
DEMO_FLAGS ?=
STUDY_FLAGS ?=
PYTEST_FLAGS ?=

export PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_USER := 0
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Packages come without bytecode (create_venv): were it not kept, every process compiled TensorFlow
# again, ten seconds each.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
VENV_TF221 := .venv-tf221
VENV_TF214 := .venv-tf214
VENV_SERVING := .venv-serving
VENV_BENCH := .venv-bench
STAMP := tfjoint-ready
BEAM_STAMP := tfjoint-beam-ready

BIN := $(VENV)/bin
# Files of tests are spread over the cores; the tests of one file share what they train.
PYTEST := -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder
# What other versions of TensorFlow might do otherwise; VERSION_TESTS=tests runs whatever is not slow.
VERSION_TESTS ?= $(patsubst %,tests/test_%.py,layers models losses_metrics records dataset \
  checkpoint environment train coding codec serving)
RUN := runs/direct
# The configs on the demo set; what stands before an underscore is the model. `separate` needs the
# run of `compression`.
SYSTEMS ?= direct compression separate sequential implicit reconstruction jpeg2000 \
  direct_low sequential_low implicit_low
ENDS ?= direct implicit
JPEG2000 := data/demo-jpeg2000
OPEN := data/open
BENCH_FLAGS ?=

# --- Targets -------------------------------------------------------------------------------------

.PHONY: help demo results ends data study bench test test-long lint setup serving test-tf221 test-tf214 \
  test-beam test-serving clean distclean

help:
	@echo 'make demo         train the direct model on the embedded demo set, export and evaluate it'
	@echo 'make results      train and evaluate every system on the demo set: results/demo/*.json'
	@echo 'make ends         divide exports, compare cameras, lose views: results/{camera,arrivals}/'
	@echo 'make data         build the open mesh set: data/open (137 pixels) and data/open-68'
	@echo 'make study        every figure and table of the paper on the open mesh set; hours, resumable'
	@echo 'make bench        measure beside PyTorch: bench/results.json, table in the README; half an hour'
	@echo 'make test         lint, then the test suite (TensorFlow 2.17)'
	@echo 'make test-long    what that leaves out because it takes long; a quarter of an hour and more'
	@echo 'make test-tf221   what depends on TensorFlow, on version 2.21'
	@echo 'make test-tf214   the same on 2.14 (Python 3.9-3.11)'
	@echo 'make test-beam    the tests that need Apache Beam, which is installed into .venv'
	@echo 'make test-serving the export behind real servers: Triton, and the protocol of TensorFlow Serving'
	@echo 'make serving      only create .venv-serving, with NVIDIA Triton'
	@echo 'make lint         ruff and mypy alone'
	@echo 'make setup        only create .venv'
	@echo 'make clean        remove caches and the runs of the above; keep the virtual environments'
	@echo 'make distclean    remove the virtual environments too'
	@echo
	@echo 'PYTHON=...        the interpreter to use; otherwise the first that fits (3.10-3.12)'
	@echo 'SYSTEMS=...       some of the systems, for make results'
	@echo 'DEMO_FLAGS=...    more flags for the training of make demo'
	@echo 'STUDY_FLAGS=...   more flags for make study, such as --max_hours=2 or --only=direct'
	@echo 'BENCH_FLAGS=...   for make bench: checkouts of public code to measure beside, see --help'
	@echo 'PYTEST_FLAGS=...  more flags for pytest'

demo: $(VENV)/$(STAMP)
	$(strip $(BIN)/python -m tfjoint.train --model=direct --flagfile=configs/direct.cfg $(DEMO_FLAGS))
	$(BIN)/python -m tfjoint.evaluate --export=$(RUN)/export
	@echo
	@echo 'TensorBoard   $(BIN)/tensorboard --logdir=$(RUN)'
	@echo 'SavedModel    $(RUN)/export'
	@echo 'results       $(RUN)/results.json'

results: $(VENV)/$(STAMP)
	$(BIN)/python -m data_tools.build_jpeg2000 --records=tfjoint/demo --output=$(JPEG2000)
	set -e; for system in $(SYSTEMS); do \
	  $(BIN)/python -m tfjoint.train --model=$${system%%_*} --flagfile=configs/$$system.cfg; \
	  $(BIN)/python -m tfjoint.evaluate --export=runs/$$system/export \
	    --output=results/demo/$$system.json; \
	done
	$(BIN)/python -m tfjoint.compare --results=results/demo

# Needs the exports of `make results`, of systems with codes and a grid.
ends: $(VENV)/$(STAMP)
	set -e; for system in $(ENDS); do \
	  $(BIN)/python -m tfjoint.split --export=runs/$$system/export --lite; \
	  $(BIN)/python -m tfjoint.camera --ends=runs/$$system/ends --output=results/camera/$$system.json; \
	  $(BIN)/python -m tfjoint.arrivals --ends=runs/$$system/ends \
	    --output=results/arrivals/$$system.json; \
	done

data: $(VENV)/$(STAMP)
	$(BIN)/python -m data_tools.build_open --output=$(OPEN)

# A study that is not finished has a report, too.
study: $(VENV)/$(STAMP)
	@code=0; set -x; \
	$(BIN)/python -m tfjoint.study --flagfile=configs/study.cfg $(STUDY_FLAGS) || code=$$?; \
	if [ $$code != 2 ]; then $(BIN)/python -m tfjoint.study_report; fi; \
	exit $$code
# What was measured is kept: after an interruption the missing sections alone are measured.
bench: $(VENV_BENCH)/$(STAMP)
	$(strip $(VENV_BENCH)/bin/python -m bench --resume --readme=README.md --data=$(OPEN) $(BENCH_FLAGS))

test: lint
	$(strip $(BIN)/python $(PYTEST) $(PYTEST_FLAGS))

lint: $(VENV)/$(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

setup: $(VENV)/$(STAMP)

test-long: $(VENV)/$(STAMP)
	$(strip $(BIN)/python $(PYTEST) -m long $(PYTEST_FLAGS))

test-tf221: $(VENV_TF221)/$(STAMP)
	$(strip $(VENV_TF221)/bin/python $(PYTEST) -m "not slow and not long" $(VERSION_TESTS) $(PYTEST_FLAGS))

test-tf214: $(VENV_TF214)/$(STAMP)
	$(strip $(VENV_TF214)/bin/python $(PYTEST) -m "not slow and not long" $(VERSION_TESTS) $(PYTEST_FLAGS))

test-beam: $(VENV)/$(BEAM_STAMP)
	$(strip $(BIN)/python -m pytest tests/test_data_tools_beam.py $(PYTEST_FLAGS))

serving: $(VENV_SERVING)/$(STAMP)

test-serving: $(VENV_SERVING)/$(STAMP)
	$(strip $(VENV_SERVING)/bin/python $(PYTEST) tests/test_serving_protocol.py \
	  tests/test_serving_triton.py $(PYTEST_FLAGS))

clean:
	rm -rf build $(SYSTEMS:%=runs/%) $(JPEG2000) .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find tfjoint data_tools bench tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(VENV_TF221) $(VENV_TF214) $(VENV_SERVING) $(VENV_BENCH)

# --- Environments --------------------------------------------------------------------------------

comma := ,

# other_python(directory): FORCE when PYTHON names another version than the directory was made with.
other_python = $(if $(PYTHON),$(if $(wildcard $(1)/$(STAMP)),$(shell \
  [ "$$($(PYTHON) -V 2>&1)" = "$$($(1)/bin/python -V 2>&1)" ] || echo FORCE)))

.PHONY: FORCE

$(VENV)/$(STAMP): pyproject.toml constraints/default.txt $(call other_python,$(VENV))
	@$(call create_venv,$(VENV),3.11 3.12 3.10,default,tfc$(comma)data$(comma)study$(comma)dev)

$(VENV_TF221)/$(STAMP): pyproject.toml constraints/tf221.txt $(call other_python,$(VENV_TF221))
	@$(call create_venv,$(VENV_TF221),3.11 3.12 3.10,tf221,data$(comma)test)

$(VENV_TF214)/$(STAMP): pyproject.toml constraints/tf214.txt $(call other_python,$(VENV_TF214))
	@$(call create_venv,$(VENV_TF214),3.11 3.10 3.9,tf214,tf214$(comma)data$(comma)test)

$(VENV_SERVING)/$(STAMP): pyproject.toml constraints/serving.txt $(call other_python,$(VENV_SERVING))
	@$(call create_venv,$(VENV_SERVING),3.11 3.12 3.10,serving,serving$(comma)data$(comma)test)
# PyTorch beside the default environment, for the benchmarks alone.
$(VENV_BENCH)/$(STAMP): pyproject.toml constraints/bench.txt $(call other_python,$(VENV_BENCH))
	@$(call create_venv,$(VENV_BENCH),3.11 3.12,bench,tfc$(comma)data$(comma)test$(comma)bench)

# Apache Beam comes beside TensorFlow without moving a pin: no environment of its own is needed.
$(VENV)/$(BEAM_STAMP): $(VENV)/$(STAMP)
	@set -eu; echo 'installing tfjoint[beam] into $(VENV)'; \
	$(BIN)/python -m pip install -qq --constraint constraints/default.txt --only-binary :all: \
	  --no-build-isolation --editable '.[beam]'; \
	touch $@

# create_venv(directory, Python versions by preference, constraints, extras)
#
# What counts as a Python is decided by running it: a name on PATH may be a launcher that only says
# which versions it could start, and a distribution may split venv and ensurepip off. setuptools
# comes first because the package itself is then built with the pinned one, not with a fresh
# download; wheels alone, because a source build would need a compiler and another ten minutes; what
# of them is never imported is not compiled.
define create_venv
set -eu; found=; \
probe='import sys, venv, ensurepip; print("%d.%d %d.%d.%d" % (sys.version_info[:2] + sys.version_info[:3]))'; \
candidates="$${PYTHON:-$(foreach v,$(2),python$(v)) python3 python}"; \
for version in $(2); do \
  for candidate in $$candidates; do \
    answer=$$("$$candidate" -c "$$probe" 2>/dev/null) || continue; \
    if [ "$${answer% *}" = "$$version" ]; then found=$$candidate; break 2; fi; \
  done; \
done; \
if [ -z "$$found" ]; then \
  echo "error: no Python for $(1): it takes one of $(2), with venv and ensurepip; tried: $$candidates. Install one or name it: make PYTHON=<path>" >&2; \
  exit 2; \
fi; \
echo "creating $(1) with Python $${answer#* } ($$found), pins from constraints/$(3).txt"; \
rm -rf $(1); \
"$$found" -m venv $(1); \
pip="$(1)/bin/python -m pip install -qq --no-compile --constraint constraints/$(3).txt --only-binary :all:"; \
$$pip setuptools wheel; \
echo "installing tfjoint[$(4)] into $(1); the first time takes a few minutes"; \
$$pip --no-build-isolation --editable '.[$(4)]'; \
touch $@
endef
