PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: demo test docs dist test-wheel demo-real test-real real check bench bench-real clean

demo: $(STAMP)  ## run the main job on the bundled models, into sinklens-demo/
	$(BIN)/sinklens demo

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n auto

real: $(STAMP)  ## fetch the two real models (190 MB, once)
	$(BIN)/sinklens models get smollm2-135m
	$(BIN)/sinklens models get antiberty

demo-real: real  ## run the main job on real models, into sinklens-demo-real/
	$(BIN)/sinklens demo --real

test-real: real  ## run the tests that need them
	$(BIN)/python -m pytest -n auto -m real tests/real

docs: real  ## build the site into docs/_build/html, every chapter executed; NB=off executes none
	$(BIN)/python -m sphinx -W --keep-going -q -j 2 docs docs/_build/html
	$(BIN)/python docs/_ext/links.py docs/_build/html

dist: $(STAMP)  ## build the wheel and the source distribution into dist/, and check them
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m pytest tests/test_package.py

test-wheel: dist  ## install the wheel into an empty environment, and run the demo from it (some minutes)
	rm -rf .wheel && $(PYTHON) -m venv .wheel
	.wheel/bin/pip install --disable-pip-version-check -q -c constraints.txt torch==2.13.0
	.wheel/bin/pip install --disable-pip-version-check -q -c constraints.txt dist/*.whl
	cd .wheel && env -u PYTHONPATH bin/sinklens models && env -u PYTHONPATH bin/sinklens demo

check: $(STAMP)  ## lint, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# glibc would give freed memory back after every layer; page faults then hide what is measured.
bench bench-real: export MALLOC_TRIM_THRESHOLD_ = 1000000000
bench bench-real: export MALLOC_MMAP_THRESHOLD_ = 1000000000
bench: $(STAMP)  ## run the benchmarks
	$(BIN)/python benchmarks/ablation_speed.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/denoising.py
	$(BIN)/python benchmarks/attention_paths.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/patching.py

bench-real: $(STAMP)  ## run those on a real model, SmolLM2 (fetched once, 95 MB)
	$(BIN)/sinklens models get smollm2-135m
	$(BIN)/python benchmarks/real_models.py

clean:
	rm -rf .venv .wheel dist docs/_build docs/made sinklens-demo sinklens-demo-real .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# torch by itself first: a plain pip install of this very version may come as a CPU build from a local wheel folder.
$(STAMP): pyproject.toml constraints.txt
	@echo "set-up 1 of 3: a virtual environment in .venv ($$($(PYTHON) --version), about 20 MB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "set-up 2 of 3: torch (750 MB on disk without CUDA, several GB with it)"
	@$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt torch==2.13.0
	@echo "set-up 3 of 3: sinklens, and what it needs: transformers, transformer-lens, plotly, pytest, ... (1.2 GB on disk)"
	@$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	@touch $(STAMP)
