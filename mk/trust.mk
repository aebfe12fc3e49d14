# Included by the Makefile, which runs in the root of the repository. Linux. What looks for faults, and at what the library
# is made of. Tools are installed into build/tools when they are needed first.
#
#   make fuzz [SECONDS=60] [FUZZ_TARGETS=...]   each target of fuzz/ for that long, under AddressSanitizer; needs nightly Rust
#   make fuzz-coverage                          which lines of src/ the corpus reaches
#   make fuzz-corpus                            what fuzzing found goes into fuzz/corpus, as little of it as reaches as much

CARGO_TOOLS := build/tools
SECONDS ?= 60
FUZZ_TARGETS ?= schedule solver_options distill_options journal tensor calls
# New inputs; faults are in fuzz/artifacts.
FUZZ_FOUND := build/fuzz
FUZZ := PATH="$(CURDIR)/$(CARGO_TOOLS)/bin:$$PATH" $(CARGO) +nightly fuzz
# One input may take 10 s on a busy machine, and 2 GB.
FUZZ_LIMITS := -timeout=10 -rss_limit_mb=2048 -dict=fuzz/json.dict -max_len=4096

.PHONY: fuzz fuzz-coverage fuzz-corpus nightly

nightly:
	@rustup run nightly rustc --version > /dev/null || { echo "rustup toolchain install nightly"; exit 1; }

$(CARGO_TOOLS)/bin/cargo-fuzz:
	$(CARGO) install --quiet --locked --root $(CARGO_TOOLS) cargo-fuzz@0.13.2

fuzz: $(CARGO_TOOLS)/bin/cargo-fuzz nightly
	set -e; for target in $(FUZZ_TARGETS); do mkdir -p $(FUZZ_FOUND)/$$target; \
		$(FUZZ) run $$target $(FUZZ_FOUND)/$$target fuzz/corpus/$$target -- $(FUZZ_LIMITS) \
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
