# `make quickstart` trains the tutorial's model; `make test` runs the tests. Each makes its own virtual
# environment with the versions of constraints.txt, and keeps it until these or the dependencies change.

PYTHON ?= python3
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
ARGS ?=

# One thread per process: small loops are slower with more, and the tests run in several processes. Bytecode is kept,
# whatever the shell says, so that not each of them compiles the tests and the library anew.
TEST_ENV = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1
PYTEST = $(TEST_ENV) .venv-test/bin/python -m pytest -n $(JOBS)

.PHONY: quickstart test fast-test slow-test lint types docs check versions release-check clean

quickstart: .venv-quickstart/installed
	.venv-quickstart/bin/python tutorials/quickstart.py $(ARGS)

test: fast-test slow-test

fast-test: .venv-test/installed
	$(PYTEST) -m "not slow" $(ARGS)

# pytest exits with 5 when no test is selected.
slow-test: .venv-test/installed
	$(PYTEST) -m slow $(ARGS) || test $$? -eq 5

lint: .venv-test/installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .

types: .venv-test/installed
	MYPYPATH=tests .venv-test/bin/mypy -p functorch_hops -m test_types -m typed_program
	.venv-test/bin/basedpyright --pythonpath .venv-test/bin/python --level error

# A warning, such as a link that leads nowhere, is an error (but not with --quiet, which hides them from mkdocs itself).
# The site is build/site/index.html.
docs: .venv-test/installed
	NO_MKDOCS_2_WARNING=1 .venv-test/bin/mkdocs build --strict

check: test lint types docs

# The quick tests with other versions of torch, each in an environment of its own: make versions TORCH="2.12.1 2.14.1"
versions:
	$(PYTHON) tests/versions.py $(TORCH) -- $(ARGS)

# What is to be published, as its users meet it: the wheel in an environment with nothing but what it asks for.
release-check: .venv-test/installed
	rm -rf dist build .venv-release
	.venv-test/bin/python -m build --no-isolation
	.venv-test/bin/twine check --strict dist/*
	$(PYTHON) -m venv --without-pip .venv-release
	$(PYTHON) -m pip --python .venv-release/bin/python install -q -c constraints.txt "$$(ls dist/*.whl)[tutorials]"
	cd dist && ../.venv-release/bin/python -c "import functorch_hops as fh; print(fh.__version__, fh.__file__)"
	cp tests/typed_program.py dist/program.py && cd dist && \
		../.venv-test/bin/python -m mypy --strict --python-executable ../.venv-release/bin/python program.py && \
		../.venv-test/bin/basedpyright --pythonpath ../.venv-release/bin/python --level error program.py && \
		../.venv-release/bin/python program.py
	cp tutorials/quickstart.py dist && .venv-release/bin/python dist/quickstart.py --epochs 1 --backend eager --output dist/quickstart
	rm -rf dist/quickstart* dist/program.py dist/.mypy_cache
	.venv-test/bin/python tests/sdist.py dist/*.tar.gz

clean:
	rm -rf .venv-quickstart .venv-test .venv-release .venv-torch-* build dist *.egg-info

.venv-quickstart/installed: EXTRAS = tutorials
.venv-test/installed: EXTRAS = dev

# The host's pip fills the environment, so that a Python without ensurepip does as well.
.venv-%/installed: pyproject.toml constraints.txt
	rm -rf $(@D)
	$(PYTHON) -m venv --without-pip $(@D)
	$(PYTHON) -m pip --python $(@D)/bin/python install -q -c constraints.txt setuptools
	$(PYTHON) -m pip --python $(@D)/bin/python install -q -c constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	touch $@
