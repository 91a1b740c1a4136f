# Everything runs in a .venv of its own, made by pip from pinned versions.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CODE := connectors tests dags benchmarks udf docker

.PHONY: demo test check soak wheel clean

demo: $(READY)
	$(BIN)/seedbed demo seedbed-demo

test: $(READY)
	bash tests/services/debian_postgres.sh
	$(BIN)/python -m pytest -n 2

check: $(READY)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy connectors tests dags benchmarks docker/health.py udf/udf.py udf/exchange.py udf/columns.py udf/compose.py

# The long runs: fifty kills, a million rows. Their tables are committed under benchmarks/.
soak: $(READY)
	bash tests/services/debian_postgres.sh
	SEEDBED_KILLS=50 $(BIN)/python -m pytest tests/faults -q -s | tee benchmarks/kills.txt
	$(BIN)/python benchmarks/sync.py | tee benchmarks/sync.md
	$(BIN)/python benchmarks/plan_cost.py | tee benchmarks/plan_cost.md
	$(BIN)/python benchmarks/minilm.py | tee benchmarks/minilm.md
	$(BIN)/python benchmarks/photos.py | tee benchmarks/photos.md
	$(BIN)/python benchmarks/vision.py | tee benchmarks/vision.md
	$(BIN)/python benchmarks/conse.py | tee benchmarks/conse.md
	$(BIN)/python benchmarks/ark.py | tee benchmarks/ark.md
	$(BIN)/python benchmarks/serve.py | tee benchmarks/serve.md
	$(BIN)/python benchmarks/sinks.py | tee benchmarks/sinks.md
	$(BIN)/python benchmarks/sink_memory.py | tee benchmarks/sink_memory.md
	$(BIN)/python benchmarks/noop_scan.py | tee benchmarks/noop_scan.md
	$(BIN)/python benchmarks/capture.py | tee benchmarks/capture.md
	$(BIN)/python benchmarks/functions.py | tee benchmarks/functions.md
	$(BIN)/python benchmarks/airflow.py | tee benchmarks/airflow.md

# Tests build and install one too, to see that what users get is whole.
wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

$(READY): pyproject.toml constraints/py311.txt
	sh tools/debian_python.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --constraint constraints/py311.txt --editable '.[all,dev]'
	touch $@

clean:
	rm -rf $(VENV) dist build .cache
