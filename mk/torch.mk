# Included by the Makefile, which runs in the root of the repository. Linux.
#
#   make torch         libtorch for the CPU: half a gigabyte from PyPI, in build/libtorch
#   make test-torch    lints and tests the feature `torch`
#
# Programs on a GPU need an installation of torch with all that it depends on: set LIBTORCH to its folder `torch`.

# What the pinned tch asks for, and what torch's CPU library itself links.
TORCH_WHEELS := torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85
TORCH_BUILD := build/libtorch

TORCH_LIBRARY := liblmsd_torch_2_11.so
TORCH_SO := $(or $(CARGO_TARGET_DIR),target)/release/$(TORCH_LIBRARY)
PACKAGE_TORCH_SO := bindings/python/src/lmsd/$(TORCH_LIBRARY)

.PHONY: torch test-torch torch-library

torch: $(TORCH_BUILD)/torch/build-version

# The file that is made last, and that torch-sys reads the version from.
$(TORCH_BUILD)/torch/build-version: mk/torch.mk mk/libtorch.py | $(PY)
	rm -rf $(TORCH_BUILD)
	$(PY) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--dest $(TORCH_BUILD)/wheels $(TORCH_WHEELS)
	$(PY) mk/libtorch.py $(TORCH_BUILD)/wheels $(TORCH_BUILD)
	rm -rf $(TORCH_BUILD)/wheels

test-torch: $(if $(LIBTORCH),,torch)
	$(CARGO) clippy --quiet --all-targets --features torch -- -D warnings
	$(CARGO) test --quiet --features torch --test torch --test torch_memory

# The library of tensors that liblmsd loads beside that very libtorch; the Python package here finds it.
torch-library: $(PACKAGE_TORCH_SO)
$(PACKAGE_TORCH_SO): $(TORCH_SO)
	cp --remove-destination $< $@

$(TORCH_SO): $(if $(LIBTORCH),,torch) $(shell find src bindings/torch/src -name '*.rs') build.rs Cargo.toml bindings/torch/Cargo.toml
	$(CARGO) build --release -p lmsd-torch-2-11
	@touch $@
