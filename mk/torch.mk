# Included by the Makefile, which runs in the root of the repository. Linux.
#
#   make torch         libtorch for the CPU: half a gigabyte from PyPI, in build/libtorch
#   make test-torch    lints and tests the feature `torch`
#   make torch-library liblmsd_torch_2_11, which liblmsd loads beside a libtorch 2.11
#   make test-torch-versions   that library beside torch 2.11 and the real torch 2.13
#
# Programs on a GPU need an installation of torch with all that it depends on: set LIBTORCH to its folder `torch`.

# What the pinned tch asks for, and what torch's CPU library itself links.
TORCH_WHEELS := torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85
TORCH_BUILD := build/libtorch

TORCH_LIBRARY := liblmsd_torch_2_11.so
TORCH_SO := $(or $(CARGO_TARGET_DIR),target)/release/$(TORCH_LIBRARY)
PACKAGE_TORCH_SO := bindings/python/src/lmsd/$(TORCH_LIBRARY)

.PHONY: torch test-torch torch-library test-torch-library test-torch-versions test-torch-cpp \
	bench-torch bench-gpu bench-gpu-pack bench-gpu-emoji wheel-torch

torch: $(TORCH_BUILD)/torch/build-version

# The file that is made last, and that torch-sys reads the version from.
$(TORCH_BUILD)/torch/build-version: mk/torch.mk mk/libtorch.py | $(PY)
	rm -rf $(TORCH_BUILD)
	$(PY) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--dest $(TORCH_BUILD)/wheels $(TORCH_WHEELS)
	$(PY) mk/libtorch.py $(TORCH_BUILD)/wheels $(TORCH_BUILD)
	rm -rf $(TORCH_BUILD)/wheels

test-torch: $(if $(LIBTORCH),,torch) torch-library
	$(CARGO) clippy --quiet --all-targets --features torch -- -D warnings
	$(CARGO) clippy --quiet -p lmsd-torch-2-11 -- -D warnings
	$(CARGO) test --quiet --features torch --test torch --test torch_memory

# The library of tensors that liblmsd loads beside that very libtorch; the Python package here finds it.
torch-library: $(PACKAGE_TORCH_SO)
$(PACKAGE_TORCH_SO): $(TORCH_SO)
	cp --remove-destination $< $@

$(TORCH_SO): $(if $(LIBTORCH),,torch) $(shell find src bindings/torch/src -name '*.rs') build.rs Cargo.toml bindings/torch/Cargo.toml
	$(CARGO) build --release -p lmsd-torch-2-11
	@touch $@

# Beside torch 2.11, and beside the same torch made to report 2.13.
test-torch-library: library torch-library venv-test
	$(PY) -m pytest -q -rs tests/torch_versions

# The same, and beside the real torch 2.13: 3 GB to download, 5 GB of disk. Not part of `make test`.
OTHER_TORCH := build/torch-2.13
OTHER_TORCH_GB := 12

test-torch-versions: library torch-library venv-test $(OTHER_TORCH)/.here
	LMSD_OTHER_PYTHON=$(CURDIR)/$(OTHER_TORCH)/bin/python $(PY) -m pytest -q -rs tests/torch_versions

$(OTHER_TORCH)/.here: | $(PY)
	@free=$$(df --output=avail -BG . | tail -n 1 | tr -dc 0-9); test "$$free" -ge $(OTHER_TORCH_GB) || \
		{ echo "torch 2.13 needs $(OTHER_TORCH_GB) GB of disk while it is installed; there are $$free"; exit 1; }
	@echo "torch 2.13: about 3 GB to download, 5 GB on disk in $(OTHER_TORCH)"
	$(PYTHON) -m venv $(OTHER_TORCH)
	$(OTHER_TORCH)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 tqdm==4.70.1
	touch $@

# A C++ program that links libtorch itself. Not by libtorch's own CMake package, which asks for a CUDA toolkit.
TORCH_HOME = $(abspath $(or $(LIBTORCH),$(TORCH_BUILD)/torch))
test-torch-cpp: test-c-install torch-library test-c-cmake
	PATH="$(CURDIR)/$(C_TOOLS)/bin:$$PATH"; ! command -v cmake > /dev/null || { set -e -x; \
		cmake -S examples/libtorch -B $(C_BUILD)/libtorch -DCMAKE_PREFIX_PATH=$(C_PREFIX) -DLIBTORCH=$(TORCH_HOME) \
			> $(C_BUILD)/libtorch.log; \
		cmake --build $(C_BUILD)/libtorch >> $(C_BUILD)/libtorch.log; \
		$(C_BUILD)/libtorch/sample --library $(TORCH_SO); }

bench-torch: $(if $(LIBTORCH),,torch)
	$(CARGO) bench --features torch --bench torch -- $(BENCH_TORCH)

# For a machine with a GPU, torch 2.11 and no network: all that it needs in one file, 64 MiB at most. There:
# make bench-gpu, with the file where it was made, or tar xf it and python3 bench-gpu-pack/run.py.
PACK := build/bench-gpu-pack
bench-gpu-pack: $(PACK).tar.gz
PACK_PYTHON := bindings/python/src/lmsd
PACK_TESTS := $(addprefix bindings/python/tests/,conftest.py mixture.py test_cuda.py)
$(PACK).tar.gz: $(LMSD_SO) $(TORCH_SO) $(shell find $(PACK_PYTHON) -name '*.py') benches/torch.rs benches/gpu/run.py $(PACK_TESTS)
	rm -rf $(PACK) && mkdir -p $(PACK)/tests
	cp -r $(PACK_PYTHON) benches/gpu/run.py $(PACK)
	cp $(PACK_TESTS) $(PACK)/tests
	rm -rf $$(find $(PACK) -name __pycache__)
	cp --remove-destination $(LMSD_SO) $(TORCH_SO) $(PACK)/lmsd
	bench=$$($(CARGO) bench --features torch --bench torch --no-run --message-format json | \
		sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1) && cp "$$bench" $(PACK)/torch
	strip $(PACK)/torch $(PACK)/lmsd/*.so
	tar -C $(dir $(PACK)) -czf $@ $(notdir $(PACK))
	@size=$$(stat -c %s $@); test $$size -le 67108864 || { rm $@; echo "$@ has $$size bytes, more than 64 MiB"; exit 1; }
	@ls -lh $@

GPU_PYTHON ?= python3
GPU_DEVICE ?= cuda
bench-gpu:
	test -e $(PACK).tar.gz || $(MAKE) --no-print-directory bench-gpu-pack
	test -e $(PACK)/run.py || tar -C $(dir $(PACK)) -xzf $(PACK).tar.gz
	$(GPU_PYTHON) $(PACK)/run.py --device $(GPU_DEVICE) --out out/bench-gpu $(BENCH_GPU)

# Three seeds of each emoji model against all of the strongest field, and the best known, with torch on GPU_DEVICE.
GPU_EMOJI = LMSD_EMOJI_DEVICE=$(GPU_DEVICE) PYTHONPATH=bindings/python/src $(GPU_PYTHON)
bench-gpu-emoji: library
	for model in pixel flow latent; do for seed in 0 1 2; do $(GPU_EMOJI) examples/emoji/demo.py --model $$model \
		--seed $$seed --nfe 4-8 --max-calls 25000 --trajectories 500 --test 64 --fit-guidance --whole-field \
		--out out/gpu-emoji/$$model-$$seed || exit 1; done; done
	$(GPU_EMOJI) benches/cost.py --networks "emoji, pixel" "emoji, flow" "emoji, latent" --long --long-nfe 5 8 \
		--out out/gpu-emoji/known.json

# That library as a wheel of its own, for this machine's glibc and later ones; lmsd's own wheel goes without.
wheel-torch: torch-library
	$(PIP) build
	LMSD_TORCH_LIBRARY=$(abspath $(TORCH_SO)) $(PY) -m build --wheel --outdir bindings/python/dist bindings/torch
