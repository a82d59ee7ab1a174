# make run: set up and run the whole recipe on the built-in atlas. make test: set up and test.
# make tpu-compile: compile every kernel, and the plan of the 8B recipe, for TPUs, with none at hand.
# make bench: train steps against TRL's.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: run test tpu-compile bench faults study study-merging lint setup clean

run: setup
	$(BIN)/aya run configs/recipes/tiny.gin --run_dir runs/tiny

study: setup
	$(BIN)/aya run configs/recipes/tiny_study.gin --run_dir runs/study

# What merging is worth, at two model sizes.
study-merging: setup
	$(BIN)/aya run configs/recipes/tiny_merging.gin --run_dir runs/merging/tiny
	$(BIN)/aya run configs/recipes/small_merging.gin --run_dir runs/merging/small
	$(BIN)/python tests/benchmarks/merging_study.py runs/merging/tiny runs/merging/small --page docs/results/merging.md

test: setup lint
	$(BIN)/python -m pytest -n 2 -m 'not tpu_compile'

# In an environment of its own: where libtpu is installed jax looks for a TPU whenever it starts. That it can
# be imported is what keeps these tests from being skipped.
tpu-compile:
	$(MAKE) setup VENV=$(VENV)-tpu EXTRAS=test,tpu
	$(VENV)-tpu/bin/python -c 'import libtpu'
	JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 $(VENV)-tpu/bin/python -m pytest -n 2 -m tpu_compile tests/kernels tests/planning

# TRL and torch are in an environment of their own, and read nothing of ours. torch for processors alone is
# the smaller; where its index cannot be reached, what the usual one has will do.
TORCH = https://download.pytorch.org/whl/cpu
bench: setup $(VENV)-trl/.installed
	$(BIN)/python tests/benchmarks/compare.py --trl_python $(VENV)-trl/bin/python --page docs/benchmarks.md
	$(BIN)/python tests/benchmarks/mfu.py --page docs/benchmarks.md

$(VENV)-trl/.installed: tests/benchmarks/requirements.txt
	$(PYTHON) -m venv $(VENV)-trl
	-$(VENV)-trl/bin/python -m pip install -q --retries 1 --no-deps --index-url $(TORCH) $(shell grep ^torch== tests/benchmarks/requirements.txt)
	$(VENV)-trl/bin/python -m pip install -q -r $<
	@touch $@

# Recorded in docs/reliability.md.
faults: setup
	$(BIN)/python tests/faults/inject.py --count 200 --seed 0

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(STAMP)

$(STAMP): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d; call make PYTHON=/path/to/python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-tpu $(VENV)-trl runs build *.egg-info
