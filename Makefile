# Two commands on a fresh machine with Python ≥ 3.11 and pip:  make demo   and   make test

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SECONDS_PER_MEASUREMENT ?= 1
DEMO_OPTIONS ?=

.PHONY: demo demo-detr demo-vit demo-boxes test lint types dist wheel try-wheel clean

# One part after the other, whatever is asked for side by side: it measures.
demo: $(VENV)/.run
	@$(MAKE) --no-print-directory -j1 demo-detr demo-vit demo-boxes

demo-detr: $(VENV)/.run
	$(BIN)/vitesse optimize examples/fashion/detr_fashion.onnx --data examples/fashion/detr --target cpu \
		--seconds $(SECONDS_PER_MEASUREMENT) $(DEMO_OPTIONS) --out demo/detr

demo-vit: $(VENV)/.run
	$(BIN)/vitesse optimize examples/fashion/vit_fashion.onnx --data examples/fashion/vit --target cpu \
		--seconds $(SECONDS_PER_MEASUREMENT) $(DEMO_OPTIONS) --out demo/vit

demo-boxes: $(VENV)/.run
	$(BIN)/vitesse predict demo/detr examples/fashion/detr/val/000001.jpg --draw demo/boxes.png

# In several processes: each test may load any runtime, and a process that had loaded all of them, the compilers and Ray,
# ended in a segmentation fault after seven thousand tests.
RAY      := tests/serve/test_ray.py tests/test_predict_ray.py
# It interrupts torch by a signal and has it generate code: alone in its process, as the program is that it tests.
ALONE    := tests/test_gpu_benchmark.py
# They measure: nothing else runs meanwhile. What tests/profile only counts runs with the stages.
COUNTED  := $(patsubst %,tests/profile/test_%.py,attribution costs families known_totals modules)
MEASURED := tests/benchmark $(filter-out $(COUNTED),$(wildcard tests/profile/test_*.py))
LEARNING := tests/compress tests/training
WHOLE    := $(filter-out $(RAY) $(ALONE),$(wildcard tests/test_*.py))
APART    := tests/__pycache__ tests/backends tests/benchmark tests/profile tests/serve tests/sources $(LEARNING)
STAGES   := $(filter-out $(APART),$(patsubst %/,%,$(wildcard tests/*/))) $(COUNTED)
# Side by side with a core each, the longest first; then one after the other with all cores.
SIDE_BY_SIDE := test-sources test-stages test-whole on-one-core-demo-detr test-backends test-learning \
	test-serve on-one-core-demo-vit on-one-core-types test-alone
IN_TURN      := demo-boxes test-measured test-ray
CORES        := $(shell getconf _NPROCESSORS_ONLN)
PYTEST       := $(BIN)/python -m pytest
ON_ONE_CORE  := $(BIN)/python tests/one_core.py build/cores $(PYTEST)

.PHONY: $(filter test-%,$(SIDE_BY_SIDE) $(IN_TURN))

# Each one's output comes when it has ended; all run, whichever fails. BESIDE names what else shall: CI has the types
# and the demo run in the same queue. That the demo works is tested there, and not its figures: `make demo` measures its
# models one after the other, with all cores.
BESIDE ?=
test: $(VENV)/.dev
	@failed=0; \
	$(MAKE) --no-print-directory --keep-going -j$(CORES) --output-sync=target $(filter test-% $(BESIDE),$(SIDE_BY_SIDE)) || failed=1; \
	$(MAKE) --no-print-directory --keep-going -j1 $(filter test-% $(BESIDE),$(IN_TURN)) || failed=1; \
	exit $$failed

test-whole: $(VENV)/.dev
	$(ON_ONE_CORE) $(WHOLE)

test-sources: $(VENV)/.dev
	$(ON_ONE_CORE) tests/sources

test-stages: $(VENV)/.dev
	$(ON_ONE_CORE) $(STAGES)

test-backends: $(VENV)/.dev
	$(ON_ONE_CORE) tests/backends

test-learning: $(VENV)/.dev
	$(ON_ONE_CORE) $(LEARNING)

test-serve: $(VENV)/.dev
	$(ON_ONE_CORE) tests/serve $(addprefix --ignore=,$(RAY))

test-measured: $(VENV)/.dev
	$(PYTEST) $(MEASURED)

test-ray: $(VENV)/.dev
	$(PYTEST) $(RAY) || [ $$? = 5 ] # without Ray there are none

test-alone: $(VENV)/.dev
	$(ON_ONE_CORE) $(ALONE) || [ $$? = 5 ] # without torch

# `make on-one-core-types`: a target on a core of its own, to run several side by side.
on-one-core-%: $(VENV)/.dev
	$(BIN)/python tests/one_core.py build/cores $(MAKE) --no-print-directory $*

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# Apart from what tries it: what installs the source tree meanwhile would write the same files.
dist: $(VENV)/.dev
	rm -rf dist && $(BIN)/python -m build --wheel --outdir dist . >/dev/null

# The wheel, installed into an environment of its own, does the main job away from the source tree.
wheel: dist
	@$(MAKE) --no-print-directory try-wheel

try-wheel:
	rm -rf build/wheel && $(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet "$$(ls $(CURDIR)/dist/*.whl)[optimize]"
	cp -r examples build/wheel/ && cd build/wheel && PYTHONSAFEPATH=1 venv/bin/vitesse optimize \
		examples/fashion/vit_fashion.onnx --data examples/fashion/vit --limit 50 --seconds 0.5 --out run
	cd build/wheel && PYTHONSAFEPATH=1 venv/bin/vitesse predict run examples/fashion/vit/val/1_Trouser/00002.png

clean:
	rm -rf $(VENV) demo build dist src/*.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.run: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[optimize,openvino]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet -e '.[optimize,openvino,serve,video,dev]'
	# Optional: TensorRT for RTX builds engines without a GPU; its tests skip where the package index has none. The stubs
	# would bring TensorRT itself along.
	$(BIN)/python -m pip install --quiet -e '.[tensorrt-rtx]' || echo "no TensorRT for RTX: its tests will skip"
	$(BIN)/python -m pip install --quiet --no-deps 'tensorrt-stubs==10.13.0.35.1' || echo "no stubs of TensorRT: a test will skip"
	touch $@
