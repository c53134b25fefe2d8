# make demo          set up .venv and run the demo federation
# make test          set up .venv and run the tests
# make test-fast     only tests/unit, which train nothing: 2 minutes on 2 cores
# make lint          style, spelling and types
# make docs          the documentation as a site, site/index.html; a broken link is an error
# make dist          sdist and wheel in dist/, and the wheel tried in an environment of its own
# make test-newest   the tests in .newest, with the newest of everything that pyproject.toml takes
#                    (WITH="torch==2.13.0" holds what should not be the newest)
# make test-oldest   the tests in .oldest, with the lower ends of pyproject.toml
# make constraints   what the tests of .newest passed with becomes constraints.txt
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --constraint constraints.txt --editable
EXTRAS := onnx,tensorboard,wandb,dp,dev,docs

.PHONY: demo test test-fast lint docs dist test-newest test-oldest constraints clean

demo: $(VENV)/.demo
	$(RUN) federated.py configs/demo.yaml

test: $(VENV)/.test
	$(RUN) -m pytest

test-fast: $(VENV)/.test
	$(RUN) -m pytest tests/unit

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/pyright

docs: $(VENV)/.test
	$(RUN) .ci/pictures.py
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

dist: $(VENV)/.test
	rm -rf dist
	$(RUN) -m build --outdir dist
	$(RUN) .ci/try_wheel.py dist/*.whl

test-newest: .newest/bin/python
	rm -f .newest/.passed
	.newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager \
		--editable ".[$(EXTRAS)]" $(WITH)
	.newest/bin/python -m pytest
	touch .newest/.passed

test-oldest: .oldest/bin/python
	$(PYTHON) .ci/lower_ends.py pyproject.toml > .oldest/lower_ends.txt
	.oldest/bin/python -m pip install --quiet --constraint .oldest/lower_ends.txt \
		--editable ".[$(EXTRAS)]" $(WITH)
	.oldest/bin/python -m pytest

constraints: .newest/.passed
	.newest/bin/python -m pip list --format freeze | $(PYTHON) .ci/constraints.py > constraints.txt

clean:
	rm -rf $(VENV) .newest .oldest .pytest_cache .ruff_cache site dist build *.egg-info

.newest/.passed:
	$(MAKE) test-newest

%/bin/python:
	$(PYTHON) -m venv $*

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) ".[$(EXTRAS)]"
	touch $@ $(VENV)/.demo
