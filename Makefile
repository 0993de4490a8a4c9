# make digits [BACKEND=tensorflow|jax|torch] [ARGS="--steps=400"]   train and sample
# make fashion [BACKEND=torch] [ARGS="--effort=gpu"]                the same at 28x28, longer
# make test   [BACKENDS="jax"] [ARGS="-k frechet"]                  the tests, each backend
# make test   ARGS="--long --on-every-backend"                      all there are
# make check  [BACKEND=torch] [ARGS="-k unet"]                      the fast tests, one backend
# make docs                                                      the pages: site/index.html
# make tutorials [NOTEBOOKS=docs/tutorials/method.ipynb]         run them, outputs stored
# make lint
# PYTHON=python3.12 chooses the interpreter that .venv is made from.
# TENSORFLOW=tensorflow installs the build with GPU kernels.

PYTHON ?= python3
BACKEND ?= $(if $(filter check,$(MAKECMDGOALS)),torch,tensorflow)
BACKENDS ?= tensorflow jax torch
TENSORFLOW ?= $(if $(filter Linux,$(shell uname)),tensorflow-cpu,tensorflow)
ARGS ?=
NOTEBOOKS ?= $(wildcard docs/tutorials/*.ipynb)

KNOWN := tensorflow jax torch
UNKNOWN := $(filter-out $(KNOWN),$(BACKEND) $(BACKENDS))
ifneq ($(UNKNOWN),)
$(error no such backend: $(UNKNOWN). Choose from $(KNOWN))
endif

VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt
# A worker has its half in order, so that what a file's tests share is made once.
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist worksteal -q
extra = $(if $(filter tensorflow,$(1)),$(TENSORFLOW),$(1))

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help digits fashion test check docs tutorials lint clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/s/^# //p;/^$$/q' Makefile

digits: $(VENV)/stamps/digits-$(BACKEND)
	KERAS_BACKEND=$(BACKEND) $(VENV)/bin/python examples/digits.py $(ARGS)

# 40 minutes; the data are found or fetched. Killed, it continues when called again.
fashion: $(VENV)/stamps/digits-$(BACKEND)
	KERAS_BACKEND=$(BACKEND) $(VENV)/bin/python examples/fashion_mnist.py $(ARGS)

# Every backend runs, whatever the ones before it said.
test: $(VENV)/stamps/test
	@failed=; \
	for backend in $(BACKENDS); do \
		echo "== tests on $$backend"; \
		OMP_NUM_THREADS=1 KERAS_BACKEND=$$backend $(PYTEST) $(ARGS) \
			|| failed="$$failed $$backend"; \
	done; \
	if [ -n "$$failed" ]; then echo "tests failed on:$$failed"; exit 1; fi

# Without child processes, wheel, browser, examples and benchmarks.
check: $(VENV)/stamps/test
	OMP_NUM_THREADS=1 KERAS_BACKEND=$(BACKEND) $(PYTEST) \
		-m "not slow" $(addprefix --ignore=tests/,examples benchmarks serving) $(ARGS)

# A broken link, a public name without docstring and a fetch from elsewhere are errors.
docs: $(VENV)/stamps/docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build

# As long as their numbers and pictures take; the tests run them cut short.
tutorials: $(VENV)/stamps/test
	TF_ENABLE_ONEDNN_OPTS=0 $(VENV)/bin/python -m nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=-1 \
		$(NOTEBOOKS)

lint: $(VENV)/stamps/lint
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

clean:
	rm -rf $(VENV) build dist site

# A stamp is one finished installation into .venv; they add up, so that switching
# BACKEND installs what is missing and no more.
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) not found: install Python 3.11 or newer," \
			"or name it with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "keras_imm needs Python 3.11 or newer; $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1). Name another with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/stamps/digits-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[$(call extra,$*),examples]"
	@mkdir -p $(@D) && touch $@

$(VENV)/stamps/test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[$(TENSORFLOW),jax,torch,hub,data,tensorboard,examples,docs,dev]"
	$(PIP) --no-deps tensorflow-serving-api # which asks for another TensorFlow
	$(PIP) --no-deps tritonclient # and this for another ml_dtypes
	@mkdir -p $(@D) && touch $@

# The pages are made of the sources, which are not run: no framework, no Keras.
$(VENV)/stamps/docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) $$($(VENV)/bin/python -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@mkdir -p $(@D) && touch $@

$(VENV)/stamps/lint: constraints.txt | $(VENV)/bin/python
	$(PIP) ruff
	@mkdir -p $(@D) && touch $@
