# From a fresh clone: `make demo` shows the package at work, `make test` checks it. Both
# install into .venv once, and again only when the requirements or the version change.

VENV ?= .venv
# An environment goes on with the Python that made it, unless another is named.
PYTHON ?= $(or $(wildcard $(VENV)/bin/python),python3)
PYTHONS = 3.10 3.11 3.12 3.13
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# What an installation is made of. Not the time of setup.py, which git sets anew.
STATE := $(VERSION)-$(shell (cat setup.py; grep ^__version__ keras_powerlaw/__init__.py) \
           | cksum | cut -d' ' -f1)
# The Keras series of `make test-keras`. Keras divides activity penalties by the
# batch size since 3.14; the tests have to pass on both sides of that.
KERAS ?= 3.12
# The PyTorch of `make test-backends` and `make test-alone`.
TORCH ?= 2.13.0
# Two at a time: most of a test is Python on one core.
PYTEST = pytest -q -n 2 --dist worksteal
# What says the same on every backend and with every Keras: `make test` runs it.
ONCE = $(addprefix --ignore=tests/test_,architecture.py arguments.py benchmarks.py \
         documentation.py examples.py flags.py moments.py package.py plotting.py progress.py \
         recordings.py report.py research_data.py research_experiments.py \
         research_table.py research_train.py site.py spectrum.py watch.py)
# But for the page with a block for each backend.
PAGE = "tests/test_documentation.py::test_page[docs/loops.md]"
# What shows that a backend needs no other: what to install, what to run.
ALONE_jax = --editable ".[test,jax]"
ALONE_torch = --editable ".[test,torch]" torch==$(TORCH)
ALONE ?= $(addprefix tests/test_,package.py \
          surroundings.py::test_runs_without_the_other_backends)

# $(call install,venv,requirements)
define install
@$(if $(filter $(VERSION),$(PYTHONS)),,$(error This needs one of Python $(PYTHONS), \
  and $(PYTHON) is $(or $(VERSION),missing): try make $(MAKECMDGOALS) PYTHON=python3.12))
@echo 'Installing $(2) into $(1): some minutes, once'
@# Made anew if another Python made it, or none finished it.
@$(1)/bin/python -c 'import pip, sys; assert sys.version.startswith("$(VERSION).")' \
  2>/dev/null || $(PYTHON) -m venv --clear $(1)
@# The pip that comes with Python 3.10 takes many minutes to choose the versions.
@$(1)/bin/python -m pip install --upgrade pip
@$(1)/bin/python -m pip install $(2)
@touch $@
endef

# Environments are kept, whichever rule made them.
.SECONDARY:
.PHONY: help demo test test-slow test-mnist test-backends test-across test-alone
.PHONY: test-keras docs clean

help:
	@echo "make demo           run the quick start on a small embedded data set"
	@echo "make test           lint, format, types and tests"
	@echo "make test-slow      the tests that take longer than ten seconds each"
	@echo "make test-mnist     the tests on real MNIST, in the folder TFDS_DATA_DIR"
	@echo "make test-backends  the tests on TensorFlow, JAX and PyTorch"
	@echo "make test-alone     JAX without TensorFlow, and PyTorch without it"
	@echo "make test-keras     the tests with an older Keras (KERAS=$(KERAS))"
	@echo "make docs           build the site into site/"
	@echo "make clean          remove what these made"

# What TensorFlow writes while it loads is shown only if something fails.
demo: $(VENV)/.installed-examples-$(STATE)
	@echo "Two networks learn small digits, and are attacked: about a minute"
	@$(VENV)/bin/python examples/quickstart.py 2> $(VENV)/demo.log \
	  || { cat $(VENV)/demo.log; exit 1; }

test: $(VENV)/.installed-dev-$(STATE)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict
	$(VENV)/bin/python -m $(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-dev-$(STATE)
	$(VENV)/bin/python -m $(PYTEST) -m slow

test-mnist: $(VENV)/.installed-dev-$(STATE)
	$(VENV)/bin/python -m pytest -q -m mnist

test-backends: test-on-tensorflow test-on-jax test-on-torch

test-on-%: $(VENV)-backends/.installed-$(STATE)
	KERAS_BACKEND=$* $(VENV)-backends/bin/python -m $(PYTEST) -m "not slow" $(ONCE)
	KERAS_BACKEND=$* $(VENV)-backends/bin/python -m pytest -q $(PAGE)

test-across: $(VENV)-backends/.installed-$(STATE)
	$(VENV)-backends/bin/python -m pytest -q tests/test_across_backends.py

test-alone: test-alone-jax test-alone-torch

test-alone-%: $(VENV)-%/.installed-alone-$(STATE)
	KERAS_BACKEND=$* $(VENV)-$*/bin/python -m $(PYTEST) -m "not slow" $(ALONE)

# Nor does the series of Keras matter to what stands on `keras.ops` alone.
test-keras: $(VENV)-keras-$(KERAS)/.installed-$(STATE)
	$(VENV)-keras-$(KERAS)/bin/python -m $(PYTEST) -m "not slow" $(ONCE) \
	  $(addprefix --ignore=tests/test_,attacks.py backends.py checkpoint.py penalty.py)

docs: $(VENV)/.installed-docs-$(STATE)
	$(VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(VENV) $(VENV)-* site build dist *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-%-$(STATE):
	$(call install,$(VENV),--editable ".[$*]")

$(VENV)-backends/.installed-$(STATE):
	$(call install,$(@D),--editable ".[dev]" jax jaxlib torch==$(TORCH))

$(VENV)-%/.installed-alone-$(STATE):
	$(call install,$(@D),$(ALONE_$*))

$(VENV)-keras-$(KERAS)/.installed-$(STATE):
	$(call install,$(@D),--editable ".[dev]" "keras==$(KERAS).*")
