# Everything runs in .venv, which is made when it is missing and renewed when the dependencies change.
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: search test test-slow lint clean

# Options go into ARGS: make search ARGS="--config fashion_mnist_lenet"
search: $(STAMP)
	$(PYTHON) -m actsearch search $(ARGS)

test: lint
	$(PYTHON) -m pytest -n 2 -q

test-slow: $(STAMP)
	$(PYTHON) -m pytest -n 2 -q -m slow

lint: $(STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

$(STAMP): pyproject.toml constraints.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
