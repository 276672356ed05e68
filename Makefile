# Nothing is expected on the machine but Python 3.11 or newer, make and git.
# Each target makes the virtual environment .venv and installs what it needs, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/base.stamp
DEV := $(VENV)/dev.stamp
BENCH := $(VENV)/bench.stamp
SITE := $(VENV)/site.stamp
RAY := $(VENV)/ray.stamp
OLDEST := $(VENV)/oldest.stamp
OLDEST_TESTS := tests/nn tests/engine tests/models tests/generation tests/tasks tests/quant tests/weights tests/golden
CLIENTS := $(patsubst tests/clients/environments/%.txt,$(VENV)/clients/%.stamp,$(wildcard tests/clients/environments/*.txt))
PIP := $(BIN)/python -m pip --no-input --disable-pip-version-check
# Errors only; but on a terminal pip draws the bar of the one long download.
INSTALL := $(PIP) install -qq --constraint constraints.txt
TORCH := $(PIP) install $(if $(MAKE_TERMOUT),,-qq)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-oldest test-ray coverage check docs wheel bench clean

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(BASE) ## answer every kind of question about the bundled pictures; needs no network once installed
	@$(BIN)/idefics demo

test: $(DEV) ## run the tests, but not those marked slow, clients or ray
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not gpu and not clients and not ray"

test-all: $(DEV) $(CLIENTS) $(RAY) ## run every test; those for a GPU are skipped where there is none
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(DEV) ## check the layout, the lint rules and the types
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/pyright --project tests/typed --pythonpath $(BIN)/python

test-oldest: $(OLDEST) ## run a part of the tests with the oldest PyTorch that is supported
	@$(VENV)/oldest/bin/python -m pytest -q -m "not slow and not gpu and not clients and not ray and not browser" $(OLDEST_TESTS)

test-ray: $(RAY) ## run the tests that start a Ray cluster on this machine
	@$(BIN)/python -m pytest -q -m "ray and not slow" tests/ray_cluster

coverage: $(DEV) ## measure which lines of the package the tests of `make test` run
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not gpu and not clients and not ray" --cov --cov-report=term:skip-covered

docs: $(SITE) ## build the documentation's pages into build/site; broken links are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "build/site/index.html is written"

bench: $(BENCH) ## measure the package, other implementations and the machine's limits
	@set -e; for script in generate images reuse start serve; do $(BIN)/python bench/$$script.py; done
	@$(BIN)/python bench/images.py --busy --frames 2
	@$(BIN)/python bench/serve.py --case long-prompts
	@set -e; for script in batch training adapters explain; do $(BIN)/python bench/$$script.py; done
	@$(BIN)/python bench/evaluate.py --rows 20 --compared-rows 1

wheel: $(DEV) ## build the wheel into dist/, and run the demo from it in a fresh environment without a compiler
	@scripts/try_wheel $(BIN)/python

clean: ## remove the virtual environment, caches and builds
	rm -rf $(VENV) build dist src/*.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find bench demo-model examples scripts src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and alone: whatever is installed later finds it in place and leaves it there.
$(BASE): pyproject.toml constraints.txt setup.py $(wildcard src/idefics/native/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11: name a newer one, as in make PYTHON=python3.12 ..."; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch, the one large download"
	@$(TORCH) --requirement constraints.txt
	@echo "Installing idefics"
	@$(INSTALL) --editable .
	@touch $@

$(DEV): $(BASE)
	@echo "Installing the tools for tests and checks"
	@$(INSTALL) --editable '.[dev]'
	@touch $@

$(SITE): $(BASE)
	@echo "Installing what builds the documentation"
	@$(INSTALL) --editable '.[site]'
	@touch $@

$(RAY): $(DEV)
	@echo "Installing Ray, 700 MB"
	@$(INSTALL) --editable '.[dev,ray]'
	@touch $@

# An environment of its own: another PyTorch, and nothing that is not needed for the tests of OLDEST_TESTS.
$(OLDEST): pyproject.toml
	@$(PYTHON) -m venv $(VENV)/oldest
	@$(VENV)/oldest/bin/python -m pip --no-input --disable-pip-version-check install -qq 'torch==2.11.*'
	@$(VENV)/oldest/bin/python -m pip --no-input --disable-pip-version-check install -qq --editable '.[dev]' 'torch==2.11.*'
	@touch $@

# llama.cpp is compiled for this machine, which takes minutes; it does not build with Ninja everywhere.
$(BENCH): $(DEV) bench/requirements.txt
	@echo "Compiling llama.cpp, a rival of the benchmarks"
	@CMAKE_ARGS=-DGGML_NATIVE=ON CMAKE_GENERATOR="Unix Makefiles" $(INSTALL) --requirement bench/requirements.txt
	@touch $@

# Clients of the server that others wrote, apart: they need versions of packages that the tests' own tools do not take.
# Without dependencies, which would bring other versions than those of idefics: a .pth file adds what is in .venv.
$(VENV)/clients/lmms_eval.stamp: tests/clients/environments/lmms_eval.txt | $(DEV)
	@echo "Installing lmms-eval"
	@$(BIN)/python -m venv $(VENV)/clients/lmms_eval
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(VENV)/clients/lmms_eval/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/idefics.pth"
	@$(VENV)/clients/lmms_eval/bin/python -m pip --no-input --disable-pip-version-check install -qq --no-deps --requirement $<
	@touch $@

$(VENV)/clients/%.stamp: tests/clients/environments/%.txt | $(DEV)
	@echo "Installing clients of the server ($*)"
	@$(BIN)/python -m venv $(VENV)/clients/$*
	@$(VENV)/clients/$*/bin/python -m pip --no-input --disable-pip-version-check install -qq --requirement $<
	@touch $@
