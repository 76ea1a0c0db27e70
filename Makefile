# neurosae: `make demo` on a fresh clone is all it takes.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo check test docs reports bench calibrate schema clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "neurosae needs Python 3.11 or newer; this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)  ## run the study of number agreement and print the path of its report
	$(BIN)/neurosae run analyses/number_agreement.yaml

check: $(READY)  ## linter, formatter, type checker, and all shipped YAML
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	for file in stimuli/*.yaml analyses/*.yaml; do $(BIN)/neurosae check "$$file" > /dev/null || exit 1; done

test: $(READY)  ## all tests and every example in a docstring, on all cores
	env -u OPENBLAS_CORETYPE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

docs: $(READY)  ## run the tour and rewrite the editor schemas
	$(BIN)/python -m neurosae.spec.editor docs/schema
	$(BIN)/python docs/tour.py

reports: $(READY)  ## run the shipped studies and publish their reports: docs/reports (minutes)
	$(BIN)/python tools/publish_reports.py

bench: $(VENV)/.bench  ## speed as ratios against pinned peers, in one process each
	env -u OPENBLAS_CORETYPE $(BIN)/python benchmarks/run.py

$(VENV)/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group bench
	@touch $@

calibrate: $(READY)  ## error rates of every method on simulated data: docs/calibration.md (minutes; continues)
	env -u OPENBLAS_CORETYPE $(BIN)/neurosae calibrate --full --sets 200 --out docs > /dev/null

clean:  ## remove the environment and results
	rm -rf $(VENV) results
