# Included by the Makefile, which runs in the root of the repository. Linux on x86-64.
#
#   make test-platforms    the tests and examples of C and C++ for Windows under wine, and for Linux on arm64 under qemu;
#                          they must print the numbers of this machine. What is missing is said to be skipped.
#   make bench-arm64       how many instructions an element costs there, by qemu
#
# Debian: apt-get install wine64 qemu-user libc6-arm64-cross

PLATFORMS := build/platforms
TEST_PLATFORM := ZIG=$(abspath $(VENV)/bin/python-zig) PYTHON=$(abspath $(PY)) sh mk/test_platform.sh
first_of = $(firstword $(foreach name,$(1),$(shell command -v $(name))))
WINE := $(call first_of,wine64 wine /usr/lib/wine/wine64)
QEMU_ARM64 := $(call first_of,qemu-aarch64 qemu-aarch64-static)
ARM64_SYSTEM ?= /usr/aarch64-linux-gnu
WINDOWS_LIBRARY := $(LMSD_TARGET)/x86_64-pc-windows-gnu/release/lmsd.dll
ARM64_LIBRARY := $(LMSD_TARGET)/aarch64-unknown-linux-gnu/release/liblmsd.so

.PHONY: bench-arm64 test-platforms test-platform-linux test-platform-windows test-platform-arm64

test-platforms: test-platform-windows test-platform-arm64
	@echo "macOS: SKIPPED, it cannot be run here"

# The numbers to compare with.
test-platform-linux: test-c-install
	mkdir -p $(PLATFORMS)/linux
	$(CC) -std=c11 -O1 $(C_WARNINGS) $(C_LMSD) tests/numbers.c $(C_LIBS) -o $(PLATFORMS)/linux/numbers
	$(CC) -std=c11 -O1 $(C_WARNINGS) $(C_LMSD) examples/c/twelve_lines.c $(C_LIBS) -o $(PLATFORMS)/linux/twelve_lines_c
	$(CC) -std=c11 -O1 $(C_WARNINGS) $(C_LMSD) examples/c/digits_gmm.c $(C_LIBS) -o $(PLATFORMS)/linux/digits_gmm
	cd $(PLATFORMS)/linux && ./numbers > numbers.out && ./twelve_lines_c > twelve_lines_c.out && \
		./digits_gmm --nfe 3 --out digits_gmm.json > digits_gmm.out 2> digits_gmm.log

ifeq ($(WINE),)
test-platform-windows:
	@echo "Windows: SKIPPED, wine is not here"
else
test-platform-windows: export WINEPREFIX := $(abspath $(PLATFORMS)/wine)
test-platform-windows: export WINEDEBUG := -all
test-platform-windows: test-platform-linux $(WINDOWS_LIBRARY)
	$(TEST_PLATFORM) $(PLATFORMS)/windows x86_64-windows-gnu $(dir $(WINDOWS_LIBRARY))liblmsd.dll.a $(WINE)
endif

ifeq ($(and $(QEMU_ARM64),$(wildcard $(ARM64_SYSTEM)/lib/ld-linux-aarch64.so.1)),)
test-platform-arm64:
	@echo "Linux on arm64: SKIPPED, qemu-aarch64 or $(ARM64_SYSTEM)/lib is not here"
else
test-platform-arm64: test-platform-linux $(ARM64_LIBRARY)
	$(TEST_PLATFORM) $(PLATFORMS)/arm64 aarch64-linux-gnu.2.28 $(ARM64_LIBRARY) $(QEMU_ARM64) -L $(ARM64_SYSTEM)

bench-arm64: $(ARM64_LIBRARY) $(VENV)/.zig
	mkdir -p $(PLATFORMS)/arm64
	cp $< $(PLATFORMS)/arm64/liblmsd.so.0
	$(VENV)/bin/python-zig cc -target aarch64-linux-gnu.2.28 -O1 -Iinclude benches/instructions.c $< \
		-Wl,-rpath,'$$ORIGIN' -o $(PLATFORMS)/arm64/instructions
	sh mk/instructions.sh $(PLATFORMS)/arm64 $(PLATFORMS)/arm64/instructions $(QEMU_ARM64) -L $(ARM64_SYSTEM)
endif
