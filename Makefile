# make demo    distil the digits network, write out/demo/report.html
# make test    everything that is checked: Rust, C, C++, Python
# make help    the rest

PYTHON ?= python3
CARGO ?= cargo
VENV := .venv
PY := $(VENV)/bin/python
# Small matrix products: a second BLAS thread gains little on an idle machine and spins on a busy one.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help demo test lint test-rust test-python bench-quality bench-cost old bench-start bench-diffusers \
	bench-lincomb bench-overhead \
	library venv venv-test wheel clean

help:
	@echo "make demo            distil the digits network at guidance 3, NFE 3 to 8; report in out/demo"
	@echo "make test            lint, Rust, C, C++ and Python tests"
	@echo "make bench-quality   distilled against every handcrafted solver, 1000 held-out trajectories"
	@echo "make bench-cost      the price of a fit: distances at 10,000 to 60,000 image-calls, all included, on four"
	@echo "                     networks; beside Adam, the strongest published field, kills, memory"
	@echo "make old             version 0.1.0 in build/old/package, for benches/cost.py --old"
	@echo "make bench-start     image to image: schedules started part-way"
	@echo "make bench-diffusers distilled at 5 steps against diffusers' own schedulers at 10"
	@echo "make bench-comfyui   the same in ComfyUI; COMFYUI_DIR says where it is, COMFYUI_PYTHON its Python"
	@echo "make test-comfyui    the nodes in a running ComfyUI and in a browser; likewise"
	@echo "make torch           libtorch for the Rust feature 'torch'; make test-torch tests it"
	@echo "make torch-library   the library of tensors that liblmsd takes beside torch 2.11"
	@echo "make tool            the program lmsd, for TorchScript models; no Python"
	@echo "make bench-lincomb   bandwidth of the linear combination against a copy"
	@echo "make bench-overhead  time outside the model in a distillation of a latent"
	@echo "make bench-torch     the same with the tensors of libtorch, on the CPU"
	@echo "make bench-gpu       all of that and the distillation of a U-Net on a GPU with torch 2.11, no network;"
	@echo "                     make bench-gpu-pack makes the file to carry there; GPU_DEVICE=cpu GPU_PYTHON="
	@echo "make install         library, headers, pkg-config and CMake files; PREFIX=/usr/local DESTDIR="
	@echo "make wheel           the Python wheel, in bindings/python/dist"
	@echo "make wheel-torch     that of liblmsd_torch_2_11"
	@echo "make clean           removes what was built, the virtual environment too"

include mk/install.mk
include mk/comfyui.mk
include mk/torch.mk

PACKAGE_SO := bindings/python/src/lmsd/liblmsd.so

library: $(PACKAGE_SO)
$(PACKAGE_SO): $(LMSD_SO)
	cp --remove-destination $< $@  # a process may have the old one open

# Debian keeps ensurepip in a package of its own.
$(PY):
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); apt-get install -qq -y python3-venv || \
		{ apt-get update -qq && apt-get install -qq -y python3-venv; }; $(PYTHON) -m venv $(VENV); }

PIP := $(PY) -m pip install --quiet --disable-pip-version-check

venv: $(VENV)/.demo
$(VENV)/.demo: requirements.txt bindings/python/pyproject.toml | $(PY) library
	$(PIP) -r requirements.txt
	$(PIP) --editable bindings/python
	touch $@

venv-test: $(VENV)/.test
$(VENV)/.test: tests/requirements.txt tests/requirements-no-deps.txt $(VENV)/.demo
	$(PIP) -r tests/requirements.txt
	$(PIP) --no-deps -r tests/requirements-no-deps.txt
	touch $@

demo: library venv
	$(PY) examples/digits/demo.py --out out/demo

test: lint test-rust test-c test-torch test-torch-cpp test-torch-versions test-tool test-python
	@echo "all tests passed"

lint: venv-test
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets -- -D warnings
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# The exported symbols of the release library are checked too.
test-rust: $(LMSD_SO)
	$(CARGO) test --quiet

test-python: library venv-test
	$(PY) -m pytest -q bindings/python bindings/comfyui tests/peers examples/digits examples/photos

bench-quality: library venv
	$(PY) benches/quality.py

bench-cost: library venv-test
	$(PY) benches/cost.py

# The library before its distillation was rewritten.
OLD := 8ea03a4
old: build/old/package/lmsd/liblmsd.so
build/old/package/lmsd/liblmsd.so:
	mkdir -p build/old/source build/old/package
	git archive $(OLD) | tar -x -C build/old/source
	cd build/old/source && CARGO_TARGET_DIR=../target $(CARGO) build --release
	cp -r build/old/source/bindings/python/src/lmsd build/old/package/
	cp build/old/target/release/liblmsd.so $@

bench-start: library venv-test
	$(PY) benches/start_at.py

bench-diffusers: library venv-test
	$(PY) benches/diffusers_hosts.py

bench-lincomb:
	$(CARGO) bench --bench lincomb

bench-overhead: test-c-install
	$(CC) -std=c11 -O2 $(C_WARNINGS) $(C_LMSD) benches/overhead.c $(C_LIBS) -o $(C_BUILD)/overhead
	$(C_BUILD)/overhead

wheel: library venv
	$(PIP) build
	$(PY) -m build --wheel --outdir bindings/python/dist bindings/python

clean:
	rm -rf target build out $(VENV) $(PACKAGE_SO) bindings/python/dist
