# Included by the Makefile, which runs in the root of the repository. Linux. What looks for faults, and at what the library
# is made of. Tools are installed into build/tools when they are needed first.
#
#   make fuzz [SECONDS=60] [FUZZ_TARGETS=...]   each target of fuzz/ for that long, under AddressSanitizer; needs nightly Rust
#       FUZZ_BUILD=--no-trace-compares: more inputs a second, which know less of what the code compares them with
#   make fuzz-coverage                          which lines of src/ the corpus reaches
#   make deny [DENY_DB=...]                     licences, sources, doubles and known advisories of all dependencies
#   make msrv                                   the library on the oldest Rust that Cargo.toml promises
#   make miri                                   undefined behaviour, in what Miri can run; needs nightly Rust
#   make loom                                   the library's own lock, in every order of two threads
#   make fuzz-corpus                            what fuzzing found goes into fuzz/corpus, as little of it as reaches as much

CARGO_TOOLS := build/tools
SECONDS ?= 60
FUZZ_BUILD ?=
FUZZ_TARGETS ?= schedule solver_options distill_options journal tensor calls
# New inputs; faults are in fuzz/artifacts.
FUZZ_FOUND := build/fuzz
# Short stacks of allocations: distillations are seven times as fast.
FUZZ := ASAN_OPTIONS=malloc_context_size=2:quarantine_size_mb=16 PATH="$(CURDIR)/$(CARGO_TOOLS)/bin:$$PATH" \
	$(CARGO) +nightly fuzz
# One input may take a minute on a busy machine, and 2 GB.
FUZZ_LIMITS := -timeout=60 -rss_limit_mb=2048 -dict=fuzz/json.dict -max_len=4096

.PHONY: fuzz fuzz-coverage fuzz-corpus nightly msrv deny miri loom

nightly:
	@rustup run nightly rustc --version > /dev/null || { echo "rustup toolchain install nightly"; exit 1; }

$(CARGO_TOOLS)/bin/cargo-fuzz:
	$(CARGO) install --quiet --locked --root $(CARGO_TOOLS) cargo-fuzz@0.13.2

fuzz: $(CARGO_TOOLS)/bin/cargo-fuzz nightly
	set -e; for target in $(FUZZ_TARGETS); do mkdir -p $(FUZZ_FOUND)/$$target; \
		$(FUZZ) run $(FUZZ_BUILD) $$target $(FUZZ_FOUND)/$$target fuzz/corpus/$$target -- $(FUZZ_LIMITS) \
			-max_total_time=$(SECONDS) -print_final_stats=1; done

fuzz-corpus: $(CARGO_TOOLS)/bin/cargo-fuzz nightly
	set -e; for target in $(FUZZ_TARGETS); do mkdir -p $(FUZZ_FOUND)/$$target; rm -rf $(FUZZ_FOUND)/least; \
		mkdir $(FUZZ_FOUND)/least; \
		$(FUZZ) run $$target $(FUZZ_FOUND)/least fuzz/corpus/$$target $(FUZZ_FOUND)/$$target -- $(FUZZ_LIMITS) -merge=1; \
		find fuzz/corpus/$$target -type f ! -name 'fault-*' -delete; cp -n $(FUZZ_FOUND)/least/* fuzz/corpus/$$target; done

# On nightly, whose component llvm-tools reads the counts; the test does the same on any toolchain.
fuzz-coverage: nightly
	rustup component add --toolchain nightly llvm-tools
	CARGO="$(CARGO)" sh mk/fuzz_coverage.sh

# The version that Cargo.toml promises.
MSRV = $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
msrv:
	rustup toolchain install --profile minimal $(MSRV)
	$(CARGO) +$(MSRV) check --locked --lib

# Advisories come from here, or from the clone that DENY_DB names.
ADVISORIES := https://github.com/rustsec/advisory-db
DENY_DB ?= $(ADVISORIES)
DENY := $(CARGO_TOOLS)/bin/cargo-deny --locked --all-features
deny: $(CARGO_TOOLS)/bin/cargo-deny
	$(DENY) --exclude-dev check bans
	$(DENY) check licenses sources
	@export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=url.$(DENY_DB).insteadOf GIT_CONFIG_VALUE_0=$(ADVISORIES); \
		if git ls-remote --quiet $(ADVISORIES) HEAD > /dev/null; then $(DENY) check advisories; \
		else echo "advisories were NOT checked: $(DENY_DB) cannot be read; DENY_DB= may name a clone of it"; fi

$(CARGO_TOOLS)/bin/cargo-deny:
	$(CARGO) install --quiet --locked --root $(CARGO_TOOLS) cargo-deny

# Undefined behaviour, in what needs no libtorch, no C and no threads of the system. What is numbers only takes Miri hours and
# has no unsafe code.
MIRI := MIRIFLAGS="-Zmiri-disable-isolation" PROPTEST_CASES=2 $(CARGO) +nightly miri test --target-dir build/miri
miri: nightly
	rustup component add --toolchain nightly miri rust-src
	$(MIRI) --lib -- sized:: files:: journal:: host:: libtorch::
	$(MIRI) --test fuzz_corpus -- tensor
	$(MIRI) --test sample -- --skip not_by_the_steps
	$(MIRI) --test tensor -- --skip gram_holds --skip lincomb_is_the_sum

loom:
	RUSTFLAGS="--cfg loom" $(CARGO) test --release --target-dir build/loom --test loom
