# make demo    distills an emoji model, writes out/demo/report.html
# make check   the quick checks: format, lints, Rust tests, fast Python tests
# make test    everything that is checked: Rust, C, C++, Python
# make help    the rest

PYTHON ?= python3
CARGO ?= cargo
VENV := .venv
PY := $(VENV)/bin/python
# Small matrix products: a second BLAS thread gains little on an idle machine and spins on a busy one.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help demo demo-digits check test test-plan lint test-rust test-tsan test-python test-python-package test-python-others docs generate \
	bench-quality bench-cost bench-peers bench-ablation bench-guidance bench-ranking old bench-start bench-cut bench-experts bench-diffusers bench-lincomb bench-overhead bench-flat bench-step \
	library venv venv-check venv-test clean

help:
	@echo "make demo            distill an emoji model at guidance 3, NFE 3 to 8; report with pictures in out/demo"
	@echo "make demo-digits     the same with the digits network at guidance 3; the table in docs/benchmarks.md"
	@echo "make check           format, lints, Rust tests and fast Python tests; without torch and libtorch"
	@echo "make test            lint, Rust, C, C++ and Python tests; says first what it downloads and skips"
	@echo "make fuzz            looks for faults with random files, options, tensors and calls; SECONDS=60 for each target"
	@echo "make deny            licences, sources and known advisories of dependencies; make msrv, make miri: the oldest"
	@echo "                     Rust, and undefined behaviour"
	@echo "make docs            the site: guides, and the manuals of C, Python and Rust; in build/docs"
	@echo "make generate        the header and the functions of Python, again, after a change of an option or an export"
	@echo "make bench-quality   distilled against every handcrafted solver, 1000 held-out trajectories"
	@echo "make bench-cost      the price of a fit: distances at 10,000 to 60,000 image-calls, all included, on four"
	@echo "                     networks; beside Adam, the strongest published field, kills, memory"
	@echo "make bench-ablation  what each part of a fit is worth, beside the paper's ablation"
	@echo "make bench-peers     docs/results.md: the fields, GITS, LD3, DLMS, gradients and caches beside lmsd.distill, in one"
	@echo "                     run that goes on where it was stopped; PEERS_FLAGS=--quick for a look"
	@echo "make bench-guidance  one schedule for a range of guidance scales; what transfers to other models"
	@echo "make bench-ranking   how much of the strongest field a fit finds"
	@echo "make old             version 0.1.0 in build/old/package, for benches/cost.py --old"
	@echo "make bench-start     image to image: schedules started part-way"
	@echo "make bench-cut       runs cut in two without history, and runs upwards"
	@echo "make bench-experts   two networks that share a trajectory: distilled at 5 against the best at 8"
	@echo "make bench-diffusers distilled at 5 steps against diffusers' own schedulers at 10"
	@echo "make bench-comfyui   the same in ComfyUI; COMFYUI_DIR is its folder, COMFYUI_PYTHON its Python"
	@echo "make test-comfyui    the nodes in a running ComfyUI and in a browser; COMFYUI_DIR as above"
	@echo "make torch           libtorch for the Rust feature 'torch'; make test-torch tests it"
	@echo "make torch-library   tensor operations for programs that have torch 2.11 loaded"
	@echo "make test-tsan       threads under ThreadSanitizer; needs the nightly toolchain of Rust"
	@echo "make test-torch-versions   liblmsd beside torch 2.11 and the real torch 2.13, which takes 5 GB more"
	@echo "make bench-lincomb   bandwidth of the linear combination against a copy"
	@echo "make bench-overhead  time outside the model in a distillation of a latent"
	@echo "make bench-step      one step of each form beside k-diffusion's and diffusers' samplers, in one run"
	@echo "make bench-arm64     how many instructions an element of a combination costs on arm64, counted by qemu"
	@echo "make bench-flat      a million samples and a thousand fits: memory stays flat"
	@echo "make bench-torch     the same with the tensors of libtorch, on the CPU"
	@echo "make bench-gpu       all of that and the distillation of a U-Net on a GPU with torch 2.11, no network;"
	@echo "                     make bench-gpu-pack makes the file to carry there; GPU_DEVICE=cpu GPU_PYTHON="
	@echo "make bench-gpu-emoji the emoji models there: three seeds against all of the strongest field, the best known"
	@echo "make install         library, headers, pkg-config and CMake files; PREFIX=/usr/local DESTDIR="
	@echo "make wheel           the Python wheel, in bindings/python/dist"
	@echo "make wheels          the wheels of Linux, Windows and macOS, and the source distribution, in build/wheels; a table"
	@echo "make test-platforms  tests and examples of C and C++ for Windows under wine, for arm64 Linux under qemu"
	@echo "make wheel-torch     the Python wheel of the torch-library"
	@echo "make clean           removes what was built, the virtual environment too"

include mk/install.mk
include mk/comfyui.mk
include mk/torch.mk
include mk/trust.mk
include mk/wheels.mk
include mk/platforms.mk

PACKAGE_SO := bindings/python/src/lmsd/liblmsd.so
DEBUG_SO := $(LMSD_TARGET)/debug/liblmsd.so

library: $(PACKAGE_SO)
$(PACKAGE_SO): $(LMSD_SO)
	cp --remove-destination $< $@  # a process may have the old one open

# Debian keeps ensurepip in a package of its own, which root can install.
$(PY):
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); test "$$(id -u)" = 0 || \
		{ echo "Python's venv does not work here: install the package python3-venv, or run this once as root"; exit 1; }; \
		apt-get install -qq -y python3-venv || { apt-get update -qq && apt-get install -qq -y python3-venv; }; \
		$(PYTHON) -m venv $(VENV); }

PIP := $(PY) -m pip install --quiet --disable-pip-version-check

venv: $(VENV)/.demo
$(VENV)/.demo: requirements.txt bindings/python/pyproject.toml | $(PY) library
	$(PIP) -r requirements.txt
	$(PIP) --editable bindings/python
	touch $@

# What `make check` needs: no torch. The package works once a library is beside it, or LMSD_LIBRARY names one.
venv-check: $(VENV)/.check
$(VENV)/.check: requirements.txt tests/requirements-check.txt bindings/python/pyproject.toml | $(PY)
	$(PIP) -r requirements.txt -r tests/requirements-check.txt
	$(PIP) --editable bindings/python
	touch $@

venv-test: $(VENV)/.test
$(VENV)/.test: tests/requirements.txt tests/requirements-check.txt tests/requirements-no-deps.txt $(VENV)/.demo
	$(PIP) -r tests/requirements.txt
	$(PIP) --no-deps -r tests/requirements-no-deps.txt
	touch $@

demo: library venv
	$(PY) examples/emoji/demo.py --out out/demo

demo-digits: library venv
	$(PY) examples/digits/demo.py --out out/demo-digits

# Both checks and tests run these.
lint: venv-check
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets -- -D warnings
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows $(WORKFLOW)
	$(VENV)/bin/zizmor --quiet --offline $(WORKFLOW)
	$(MAKE) --no-print-directory -n $(WORKFLOW_TARGETS) > /dev/null

# What the release workflow calls has to be there.
WORKFLOW := .github/workflows/release.yml
WORKFLOW_TARGETS = $(filter-out %=%,$(shell sed -n 's/.*run: .*make \([a-z -]*\).*/\1/p' $(WORKFLOW)))

test-rust:
	$(CARGO) test --quiet

# Rust with an instrumented standard library, which the nightly toolchain builds from its source (rust-src). Not with
# tests/threads.rs: ThreadSanitizer does not go on in a child of fork.
TSAN_HOST := $(shell rustc -vV | sed -n 's/^host: //p')
test-tsan:
	rustup component add rust-src --toolchain nightly
	RUSTFLAGS=-Zsanitizer=thread TSAN_OPTIONS=halt_on_error=1:allocator_may_return_null=1 $(CARGO) +nightly test \
		-Zbuild-std --target $(TSAN_HOST) --target-dir build/tsan --lib --test concurrent --test sample

# Python tests that need no torch and take a minute together, on the library that `cargo test` built.
CHECK_PYTHON := $(addprefix bindings/python/tests/,test_options.py test_schedule.py test_rivals.py \
	test_gain.py test_cli.py)

check: lint test-rust
	$(CARGO) build --quiet --lib
	LMSD_LIBRARY=$(abspath $(DEBUG_SO)) $(PY) -m pytest -q $(CHECK_PYTHON)
	@echo "checked; make test does the rest"

# Nothing is built twice here: without incremental builds half a gigabyte less.
test: export CARGO_INCREMENTAL := 0
test: test-plan lint test-rust test-c test-torch test-torch-cpp test-torch-library test-python
	@echo "all tests passed"

# Before anything starts: what will be downloaded, and what will be skipped.
test-plan:
	@sh mk/test_plan.sh $(VENV)/.test $(VENV)/.zig $(or $(LIBTORCH),$(TORCH_BUILD)/torch/build-version) \
		$(C_TOOLS)/bin/cmake

# In two processes at once, since most tests use one core.
test-python: library venv-test
	$(MAKE) --no-print-directory -j 2 --output-sync=target test-python-package test-python-others

test-python-package:
	$(PY) -m pytest -q bindings/python

test-python-others:
	$(PY) -m pytest -q bindings/comfyui tests/peers examples/digits examples/photos
	$(PY) -m pytest -q bindings/webui
	$(PY) -m pytest -q benches/peers
	$(PY) -m pytest -q examples/emoji

# What is written from the descriptions in the code: the header, and the functions of Python that take options.
generate: venv-check
	LMSD_UPDATE_HEADER=1 $(CARGO) test --quiet --test header
	$(CARGO) build --quiet --lib
	LMSD_LIBRARY=$(abspath $(DEBUG_SO)) $(PY) bindings/python/generate.py

# Rust with its private items, for those who change it. Python's modules that need torch are left out where it is not
# installed (make venv-test installs it).
docs: venv-check
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" \
		$(CARGO) doc --quiet --no-deps --lib --document-private-items
	$(CARGO) build --quiet --lib
	$(PIP) -r docs/requirements.txt
	rm -rf build/site build/docs && mkdir -p build/site
	cp -r $(LMSD_TARGET)/doc build/site/rust
	LMSD_LIBRARY=$(abspath $(DEBUG_SO)) $(PY) -W ignore docs/pages.py --out build/site
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build -f docs/site.yml
	@echo "build/docs/index.html"

bench-quality: library venv
	$(PY) benches/quality.py

bench-ablation: library venv
	$(PY) benches/ablation.py --out out/ablation.json

bench-cost: library venv-test
	$(PY) benches/cost.py

bench-peers: library venv-test
	$(PY) -m benches.peers $(PEERS_FLAGS)

bench-guidance: library venv-test
	$(PY) benches/guidance.py

bench-ranking: library venv
	$(PY) benches/ranking.py

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

bench-cut: library venv-test
	$(PY) benches/cut.py

bench-experts: library venv-test
	$(PY) benches/experts.py

bench-diffusers: library venv-test
	$(PY) benches/diffusers_hosts.py

bench-step: library venv-test
	OMP_NUM_THREADS=1 $(PY) benches/step.py

bench-lincomb:
	$(CARGO) bench --bench lincomb

bench-overhead: test-c-install
	$(CC) -std=c11 -O2 $(C_WARNINGS) $(C_LMSD) benches/overhead.c $(C_LIBS) -o $(C_BUILD)/overhead
	$(C_BUILD)/overhead

# A million samples and a thousand fits at flat memory; a minute on an idle core.
bench-flat: FLAT := 1000000 1000
bench-flat: test-c-flat

clean:
	rm -rf target build out $(VENV) $(PACKAGE_SO) bindings/python/dist
