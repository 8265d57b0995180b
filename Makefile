# From a fresh clone: `make demo` shows the package at work, `make test` checks it.
# Both install into .venv once, and again only when setup.py changes.

PYTHON ?= python3
VENV ?= .venv
# The Keras series of `make test-keras`. Keras divides activity penalties by the
# batch size since 3.14; the tests have to pass on both sides of that.
KERAS ?= 3.12
KERAS_VENV ?= .venv-keras-$(KERAS)
# Two at a time: most of a test is Python on one core.
PYTEST = pytest -q -n 2 --dist worksteal
# The PyTorch of `make test-backends`.
TORCH ?= 2.13.0
BACKENDS_VENV ?= .venv-backends

# $(call install,venv,requirements)
define install
@echo "Installing $(2) into $(1) (some minutes, once)"
@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
@# The pip that comes with Python 3.10 takes many minutes to choose the versions.
@$(1)/bin/python -m pip install -qq --upgrade pip
@$(1)/bin/python -m pip install -qq $(2)
@touch $@
endef

.PHONY: help demo test test-slow test-backends test-keras docs clean

help:
	@echo "make demo           run the quick start on a small embedded data set"
	@echo "make test           lint, format, types and tests"
	@echo "make test-slow      the tests that take longer than ten seconds each"
	@echo "make test-backends  the tests on TensorFlow, JAX and PyTorch"
	@echo "make test-keras     the tests against an older Keras (KERAS=$(KERAS))"
	@echo "make docs           build the site into site/"
	@echo "make clean          remove what these made"

demo: $(VENV)/.installed-examples
	TF_CPP_MIN_LOG_LEVEL=3 $(VENV)/bin/python examples/quickstart.py

test: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict
	$(VENV)/bin/python -m $(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-test
	$(VENV)/bin/python -m $(PYTEST) -m slow

test-backends: $(addprefix test-on-,tensorflow jax torch)

test-on-%: $(BACKENDS_VENV)/.installed-test
	KERAS_BACKEND=$* $(BACKENDS_VENV)/bin/python -m $(PYTEST) -m "not slow"

test-keras: $(KERAS_VENV)/.installed-test
	$(KERAS_VENV)/bin/python -m $(PYTEST) -m "not slow"

docs: $(VENV)/.installed-docs
	$(VENV)/bin/mkdocs build --strict

clean:
	rm -rf .venv .venv-keras-* .venv-backends site build *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-%: setup.py
	$(call install,$(VENV),--editable ".[$*]")

$(BACKENDS_VENV)/.installed-test: setup.py
	$(call install,$(BACKENDS_VENV),--editable ".[test]" jax jaxlib torch==$(TORCH))

$(KERAS_VENV)/.installed-test: setup.py
	$(call install,$(KERAS_VENV),--editable ".[test]" "keras==$(KERAS).*")
