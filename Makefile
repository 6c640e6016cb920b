# make demo   train, deploy and export a small vision MLP on real images (about three minutes on two cores)
# make test   all tests
# make test-portable   the same as on a processor without AVX-512
# make check  lint, types, import rules
# make bench  speed of the deploy forms against the machine's own matrix product (about twelve minutes)
# make setup  the environment alone; the others do it first

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo test test-portable check bench clean

setup: $(STAMP)

# uv installs the pinned versions with their hashes; pip is used only to get uv
# bytecode is compiled here, or the first command of each kind would wait for it
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("visionmlp needs Python 3.10 or newer") if sys.version_info < (3, 10) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-build-isolation --no-deps -e .
	$(BIN)/python -m compileall -q src
	touch $(STAMP)

demo: setup
	$(BIN)/visionmlp demo

# one thread for each worker: two workers with two threads each would wait for each other
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup $(TESTS)

# PyTorch's own kernels, oneDNN (also OpenVINO's) and MKL on Intel; ONNX Runtime's kernels have no switch.
# make test-portable TESTS='tests/deploy tests/parity' runs a part
test-portable:
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(MAKE) test

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# make bench OPTIONS='--csv bench.csv' passes more options on
bench: setup
	$(BIN)/visionmlp bench repmlpnet_t224 resmlp_s24 mlpmixer_b16 asmlp_t hiremlp_t vip_s7 cyclemlp_b1 dynamixer_s \
		sparsemlp_moe_s --form deploy --batch-size 1 8 --runtime eager packed openvino \
		$(shell { command -v c++ || command -v g++ || command -v clang++; } >/dev/null && echo aotinductor) $(OPTIONS)

clean:
	rm -rf $(VENV) build dist
