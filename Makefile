# make demo   train, deploy and export a small vision MLP on real images (about three minutes on two cores)
# make test   all tests
# make test-portable   the same as on a processor without AVX-512
# make check  lint, types, import rules
# make bench  speed of the deploy forms against the machine's own matrix product, then against the textbook form of each
#             family in the same runtime (about twenty minutes)
# make docs   the documentation as a site, in site/
# make setup  the environment alone; the others do it first
# make test-floor, make test-newest   all tests on the lowest versions that pyproject.toml allows, and on the newest

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo test test-portable test-floor test-newest check docs bench clean

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

# PyTorch's own kernels, its oneDNN and MKL on Intel; ONNX Runtime and OpenVINO cannot be held back.
# make test-portable TESTS='tests/deploy tests/parity' runs a part
test-portable:
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(MAKE) test

# each in an environment of its own: .venv-floor with Python 3.10 where there is one, .venv-newest with PYTHON
FLOOR_PYTHON ?= $(shell PYENV_VERSION=3.10 python3.10 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))
PYTHON_floor = $(FLOOR_PYTHON)
PYTHON_newest = $(PYTHON)
# the lowest versions that have wheels for this Python: older ones would have to be built
RESOLUTION_floor := --resolution lowest-direct --only-binary :all:
RESOLUTION_newest := --resolution highest

test-floor test-newest: test-%: .venv-%/.ready
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest --numprocesses 2 --dist loadgroup

.venv-floor/.ready .venv-newest/.ready: .venv-%/.ready: pyproject.toml
	rm -rf .venv-$*
	$(PYTHON_$*) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-$*/bin/uv pip compile --quiet --python .venv-$*/bin/python $(RESOLUTION_$*) --extra dev --no-annotate \
		--output-file .venv-$*/requirements.txt pyproject.toml
	VIRTUAL_ENV=$(CURDIR)/.venv-$* .venv-$*/bin/uv pip install --quiet --compile-bytecode -r .venv-$*/requirements.txt
	VIRTUAL_ENV=$(CURDIR)/.venv-$* .venv-$*/bin/uv pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# a warning, such as a link to nothing, is an error
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# make bench OPTIONS='--csv bench.csv' passes more options on
bench: setup
	$(BIN)/visionmlp bench repmlpnet_t224 resmlp_s24 mlpmixer_b16 asmlp_t hiremlp_t vip_s7 cyclemlp_b1 dynamixer_s \
		sparsemlp_moe_s --form deploy --batch-size 1 8 --runtime eager packed openvino \
		$(shell { command -v c++ || command -v g++ || command -v clang++; } >/dev/null && echo aotinductor) $(OPTIONS)
	$(BIN)/python benchmarks/textbook_speed.py --seconds 1.5 --runtimes eager openvino training

clean:
	rm -rf $(VENV) .venv-floor .venv-newest build dist site
