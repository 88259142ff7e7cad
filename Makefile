# Two commands: `make demo` runs the main job, `make test` passes the tests.
# Both create .venv themselves.
VENV ?= .venv
PYTHON ?= python3
NATIVE := $(shell find plugins -name '*.cpp' -o -name '*.h' -o -name 'inference.*')

.PHONY: demo test lint bench kernels gpu clean

$(VENV)/.installed: pyproject.toml CMakeLists.txt constraints.txt $(NATIVE)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(VENV)/bin/dela demo -o demo --overwrite

test: $(VENV)/.installed
	OMP_WAIT_POLICY=passive $(VENV)/bin/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy -p dela
	MYPYPATH=tools $(VENV)/bin/mypy -p cuda_images -m draw_rooms
	@if command -v node > /dev/null; then \
	  $(VENV)/bin/pyright --pythonpath $(VENV)/bin/python; \
	else echo "no node: pyright left out"; fi

bench: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/operators.py
	$(VENV)/bin/python benchmarks/preprocessing.py
	$(VENV)/bin/python benchmarks/network.py --onnx
	$(VENV)/bin/python benchmarks/contention.py

# Compiles the CUDA kernels that changed and renews their report in docs/kernels.md.
kernels: $(VENV)/.installed
	PYTHONPATH=tools $(VENV)/bin/python -m cuda_images.compile
	PYTHONPATH=tools $(VENV)/bin/python -m cuda_images.report --write

# On a machine with a GPU: every test that needs one, then the tables of README.md and docs/runtime.md.
gpu: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -m gpu -rs
	$(VENV)/bin/python benchmarks/gpu.py
	$(VENV)/bin/python benchmarks/end_to_end.py

clean:
	rm -rf $(VENV) build dist demo
