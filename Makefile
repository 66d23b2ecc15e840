# Everything runs in .venv, which is made when it is missing and renewed when the dependencies change.
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEEPMD := .venv-deepmd

.PHONY: search test test-slow test-deepmd docs lint clean

# Options go into ARGS: make search ARGS="--config fashion_mnist_lenet"
search: $(STAMP)
	$(PYTHON) -m actsearch search $(ARGS)

test: lint
	$(PYTHON) -m pytest -n 2 -q

test-slow: $(STAMP)
	$(PYTHON) -m pytest -n 2 -q -rs -m slow $(ARGS)

# Against a real deepmd-kit and schnetpack. They want other versions of torch than ours: the one is built here, in
# about 7 minutes, the other installed without what it asks for.
test-deepmd: $(DEEPMD)/.installed
	$(DEEPMD)/bin/python -m pytest -q tests/deepmd

# The site, in build/site; it runs the notebooks. Warnings are errors.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

lint: $(STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

$(STAMP): pyproject.toml constraints.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(DEEPMD)/.installed: pyproject.toml constraints.txt
	test -x $(DEEPMD)/bin/python || python3 -m venv $(DEEPMD)
	$(DEEPMD)/bin/python -m pip install --quiet -c constraints.txt torch scikit-build-core cmake ninja packaging \
		dependency_groups setuptools-scm hatch-fancy-pypi-readme
	CMAKE_BUILD_PARALLEL_LEVEL=2 DP_ENABLE_TENSORFLOW=0 DP_ENABLE_PYTORCH=1 DP_VARIANT=cpu \
		$(DEEPMD)/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation \
		--no-binary deepmd-kit deepmd-kit==3.2.0 e3nn
	$(DEEPMD)/bin/python -m pip install --quiet -c constraints.txt -e . ase vesin pytest pytest-timeout
	$(DEEPMD)/bin/python -m pip install --quiet -c constraints.txt --no-deps schnetpack==2.1.1 matscipy hydra-core \
		omegaconf 'antlr4-python3-runtime==4.9.*' hydra-colorlog colorlog dirsync torch-ema tensorboardX fasteners
	touch $@

clean:
	rm -rf $(VENV) $(DEEPMD) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
