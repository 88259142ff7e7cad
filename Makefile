# Two commands: `make demo` runs the main job, `make test` passes the tests.
# Both create .venv themselves.
VENV ?= .venv
PYTHON ?= python3
NATIVE := $(shell find plugins -name '*.cpp' -o -name '*.h')

.PHONY: demo test lint bench gpu clean

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
	rm -rf build/typed && mkdir -p build/typed/dela
	ln -s $(CURDIR)/dela/* $(addprefix $(CURDIR)/,plugins training export runtime) build/typed/dela/
	MYPYPATH=build/typed $(VENV)/bin/mypy -p dela

bench: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/operators.py
	$(VENV)/bin/python benchmarks/preprocessing.py
	$(VENV)/bin/python benchmarks/network.py --onnx
	$(VENV)/bin/python benchmarks/contention.py

# On a machine with a GPU: every test that needs one, then the README's table.
gpu: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -m gpu -rs
	$(VENV)/bin/python benchmarks/gpu.py

clean:
	rm -rf $(VENV) build dist demo
