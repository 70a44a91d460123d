.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data
PROCESSES ?= 4

PROJECTS := pyproject.toml $(wildcard workers/pyproject.toml plugins/*/pyproject.toml)

help: ## Say what there is to make
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: requirements.txt constraints.txt $(PROJECTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	touch $@

install: $(VENV)/.installed ## Make .venv and install everything into it

demo: install ## Run the four plugins on sample input through a real queue, then stop
	$(BIN)/gptflow up --demo

up: install ## Start Redis, a worker and the scheduler, and stay up
	$(BIN)/gptflow up

model: install
	$(BIN)/gptflow models pull smollm2-135m-instruct
ifneq ($(findstring gemma,$(GPTFLOW_ACCEPT_LICENCES)),)
	$(BIN)/gptflow models pull gemma-3-270m
endif

test: install model ## Run every test that needs no GPU, but those that break the queue
	$(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile --ignore=tests/faults \
	    $(if $(COVERAGE),--cov --cov-report=term:skip-covered)

faults: install model ## Break the queue for hours: the fault tests at full size, with real leases
	$(BIN)/pytest tests/faults tests/integration/queue/test_ledger_model.py \
	    tests/unit/engine/test_random.py --nightly

adapters: install model ## Train the adapters that the plugins ship, on DATA: hours on a CPU
	cd plugins && ../$(BIN)/python -m shipped adapters --data $(abspath $(DATA)) --build ../build/adapters

gates: install model ## Measure the shipped adapters on DATA, beside simple models
	cd plugins && ../$(BIN)/python -m shipped gates --data $(abspath $(DATA)) --build ../build/adapters

lint: install ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv and caches
	rm -rf $(VENV) .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

.PHONY: help install demo up model test faults adapters gates lint format clean
