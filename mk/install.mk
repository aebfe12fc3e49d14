# Included by the Makefile, which runs in the root of the repository. Linux.
#
#   make install [PREFIX=/usr/local] [LIBDIR=] [INCLUDEDIR=] [DESTDIR=]   library, headers, pkg-config, CMake
#   make install LMSD_GLIBC=                                              the same, for this machine alone
#   make test-c                                                           all that is C and C++

CARGO ?= cargo
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
INSTALL ?= install

LMSD_VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
LMSD_SONAME := liblmsd.so.0

# The library runs with this glibc and later ones: zig, from PyPI, brings its headers and stubs for linking. Empty: it
# runs with this machine's glibc and later ones, and cargo alone builds it.
LMSD_GLIBC ?= $(if $(filter Linux,$(shell uname -s)),2.28)
RUST_HOST := $(shell rustc -vV | sed -n 's/^host: //p')
LMSD_TARGET := $(or $(CARGO_TARGET_DIR),target)
LMSD_SOURCES := $(shell find src -name '*.rs') build.rs Cargo.toml
ifeq ($(LMSD_GLIBC),)
LMSD_SO := $(LMSD_TARGET)/release/liblmsd.so
$(LMSD_SO): $(LMSD_SOURCES)
	$(CARGO) build --release --lib
	@touch $@
else
LMSD_SO := $(LMSD_TARGET)/$(RUST_HOST)/release/liblmsd.so
endif

# The library of any target, by zig: what `make wheels` packs, and on Linux the library of this machine.
define library_of_target
$(LMSD_TARGET)/%/release/$(1): $(LMSD_SOURCES) | $(VENV)/.zig
	@test $$* = $(RUST_HOST) || rustup --quiet target add $$*
	PATH="$(CURDIR)/$(VENV)/bin:$$$$PATH" MACOSX_DEPLOYMENT_TARGET=11.0 $(CARGO) zigbuild --release --lib \
		--target $$*$$(if $$(findstring linux-gnu,$$*),.$(or $(LMSD_GLIBC),2.28))
	@touch $$@
endef
$(foreach file,liblmsd.so lmsd.dll liblmsd.dylib,$(eval $(call library_of_target,$(file))))

$(VENV)/.zig: | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check cargo-zigbuild==0.24.1 ziglang==0.17.1
	touch $@

fill = sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
	-e 's|@VERSION@|$(LMSD_VERSION)|' -e 's|@SONAME@|$(LMSD_SONAME)|' \
	-e "s|@LIB_TO_INCLUDE@|$$(realpath -m --relative-to=$(LIBDIR) $(INCLUDEDIR))|"

define install_files
	$(INSTALL) -d $(DESTDIR)$(INCLUDEDIR) $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(LIBDIR)/cmake/lmsd
	$(INSTALL) -m 644 include/lmsd.h include/lmsd.hpp $(DESTDIR)$(INCLUDEDIR)
	$(INSTALL) -m 755 $(LMSD_SO) $(DESTDIR)$(LIBDIR)/liblmsd.so.$(LMSD_VERSION)
	ln -sf liblmsd.so.$(LMSD_VERSION) $(DESTDIR)$(LIBDIR)/$(LMSD_SONAME)
	ln -sf $(LMSD_SONAME) $(DESTDIR)$(LIBDIR)/liblmsd.so
	@$(fill) pkgconfig/lmsd.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/lmsd.pc
	@$(fill) cmake/lmsdConfig.cmake.in > $(DESTDIR)$(LIBDIR)/cmake/lmsd/lmsdConfig.cmake
	@$(fill) cmake/lmsdConfigVersion.cmake.in > $(DESTDIR)$(LIBDIR)/cmake/lmsd/lmsdConfigVersion.cmake
endef

.PHONY: install test-c test-c-install test-c-headers test-c-abi test-c-memory test-c-host test-c-flat test-c-flat test-c-sanitizers test-c-valgrind test-c-cmake test-c-mpi

install: $(LMSD_SO)
	$(install_files)

# ---- tests, against a tree installed under build/

C_BUILD := build/c
C_PREFIX := $(CURDIR)/$(C_BUILD)/prefix
C_WARNINGS := -Wall -Wextra -Wpedantic -Werror
C_LMSD := -I$(C_PREFIX)/include -L$(C_PREFIX)/lib -Wl,-rpath,$(C_PREFIX)/lib
C_LIBS := -llmsd -lm -pthread
C_SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
C_TOOLS := build/tools
C_STAND_IN := examples/stable-diffusion.cpp/stand_in.cpp

test-c: test-c-headers test-c-abi test-c-memory test-c-host test-c-sanitizers test-c-valgrind test-c-cmake test-c-mpi

test-c-install: PREFIX := $(C_PREFIX)
test-c-install: LIBDIR := $(C_PREFIX)/lib
test-c-install: INCLUDEDIR := $(C_PREFIX)/include
test-c-install: DESTDIR :=
test-c-install: $(LMSD_SO)
	rm -rf $(C_PREFIX)
	$(install_files)

# Each header compiles alone, and without the warnings that a host may have on. lmsd.hpp is C++17; abi.cpp makes its
# templates.
C_STRICT := $(C_WARNINGS) -Wshadow -Wconversion -Wsign-conversion -fsyntax-only
test-c-headers:
	for standard in c99 c11 c17; do \
		$(CC) -std=$$standard $(C_STRICT) -Wstrict-prototypes -Wmissing-prototypes -x c include/lmsd.h || exit 1; done
	for standard in c++11 c++14 c++17; do \
		$(CXX) -std=$$standard $(C_STRICT) -Wold-style-cast -x c++ include/lmsd.h || exit 1; done
	for standard in c++17 c++20; do \
		$(CXX) -std=$$standard $(C_STRICT) -Wold-style-cast -x c++ include/lmsd.hpp || exit 1; \
		$(CXX) -std=$$standard $(C_STRICT) -Iinclude tests/abi.cpp || exit 1; done

test-c-abi: test-c-install
	$(CC) -std=c11 -O1 -g $(C_WARNINGS) $(C_LMSD) tests/abi.c $(C_LIBS) -o $(C_BUILD)/abi
	$(CXX) -std=c++17 -O1 -g $(C_WARNINGS) $(C_LMSD) tests/abi.cpp $(C_LIBS) -o $(C_BUILD)/abi_cpp
	$(CXX) -std=c++17 -DLMSD_TEST_WRONG_ABI $(C_WARNINGS) $(C_LMSD) tests/abi.cpp $(C_LIBS) -o $(C_BUILD)/abi_wrong
	$(CXX) -std=c++17 -O1 -g $(C_WARNINGS) $(C_LMSD) $(C_STAND_IN) $(C_LIBS) -o $(C_BUILD)/stand_in
	$(C_BUILD)/abi
	$(C_BUILD)/abi_cpp
	$(C_BUILD)/abi_wrong
	$(C_BUILD)/stand_in
	$(CC) -std=c11 -O3 $(C_WARNINGS) $(C_LMSD) examples/c/digits_gmm.c $(C_LIBS) -o $(C_BUILD)/digits_gmm
	$(C_BUILD)/digits_gmm --nfe 3 --out $(C_BUILD)/digits_gmm.json 2> $(C_BUILD)/digits_gmm.log
	PKG_CONFIG_PATH=$(C_PREFIX)/lib/pkgconfig; export PKG_CONFIG_PATH; \
	test "$$(pkg-config --modversion lmsd)" = "$(LMSD_VERSION)" && \
	$(CC) -std=c11 $(C_WARNINGS) examples/c/twelve_lines.c $$(pkg-config --cflags --libs lmsd) -o $(C_BUILD)/twelve_lines_c && \
	$(CXX) -std=c++17 $(C_WARNINGS) examples/cpp/twelve_lines.cpp $$(pkg-config --cflags --libs lmsd) -o $(C_BUILD)/twelve_lines_cpp
	LD_LIBRARY_PATH=$(C_PREFIX)/lib $(C_BUILD)/twelve_lines_c > $(C_BUILD)/twelve_lines.out
	LD_LIBRARY_PATH=$(C_PREFIX)/lib $(C_BUILD)/twelve_lines_cpp | diff $(C_BUILD)/twelve_lines.out -

# Every allocation of every call fails. glibc only.
test-c-memory: test-c-install
	$(CC) -std=c11 -O1 -g $(C_WARNINGS) $(C_LMSD) tests/memory.c $(C_LIBS) -o $(C_BUILD)/memory
	$(C_BUILD)/memory

# Unloading, fork, small stacks, floating point, locale, calls in callbacks; `make test-c-host CYCLES=1000` for longer.
CYCLES ?= 20
test-c-host: test-c-install
	$(CC) -std=c11 -O1 -g $(C_WARNINGS) -I$(C_PREFIX)/include tests/host.c -ldl -lm -pthread -o $(C_BUILD)/host
	@mkdir -p $(C_BUILD)/locale; localedef -i de_DE -f UTF-8 $(C_BUILD)/locale/de_DE.UTF-8 > $(C_BUILD)/locale.log 2>&1 || true
	LOCPATH=$(CURDIR)/$(C_BUILD)/locale $(C_BUILD)/host $(C_PREFIX)/lib/liblmsd.so $(CYCLES)

# Memory stays flat; `make bench-flat` does it for longer.
FLAT ?= 20000 20
test-c-flat: test-c-install
	$(CC) -std=c11 -O2 -g $(C_WARNINGS) $(C_LMSD) tests/flat.c $(C_LIBS) -o $(C_BUILD)/flat
	$(C_BUILD)/flat $(FLAT)

test-c-sanitizers: test-c-install
	$(CC) -std=c11 -O1 -g $(C_SANITIZE) $(C_WARNINGS) $(C_LMSD) tests/abi.c $(C_LIBS) -o $(C_BUILD)/abi_asan
	$(CXX) -std=c++17 -O1 -g $(C_SANITIZE) $(C_WARNINGS) $(C_LMSD) tests/abi.cpp $(C_LIBS) -o $(C_BUILD)/abi_cpp_asan
	$(CXX) -std=c++17 -O1 -g $(C_SANITIZE) $(C_WARNINGS) $(C_LMSD) $(C_STAND_IN) $(C_LIBS) -o $(C_BUILD)/stand_in_asan
	ASAN_OPTIONS=detect_leaks=1 $(C_BUILD)/abi_asan
	ASAN_OPTIONS=detect_leaks=1 $(C_BUILD)/abi_cpp_asan
	ASAN_OPTIONS=detect_leaks=1 $(C_BUILD)/stand_in_asan

# valgrind comes from the system's packages. It is installed where this runs as root with apt-get, else skipped.
test-c-valgrind: test-c-abi
	@command -v valgrind > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && \
		{ apt-get install -qq -y valgrind > $(C_BUILD)/valgrind.log 2>&1 || \
		{ apt-get update -qq && apt-get install -qq -y valgrind; } > $(C_BUILD)/valgrind.log 2>&1; }; } || true
	@command -v valgrind > /dev/null || echo "SKIPPED: valgrind is not here; install it for the memory checks"
	@! command -v valgrind > /dev/null || for program in abi abi_cpp; do \
		echo "valgrind $(C_BUILD)/$$program"; \
		valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite,indirect \
			$(C_BUILD)/$$program || exit 1; done

# CMake comes from PyPI where it is not installed, into a virtual environment of its own.
test-c-cmake: test-c-abi
	@command -v cmake > /dev/null || test -x $(C_TOOLS)/bin/cmake || { python3 -m venv $(C_TOOLS) && \
		$(C_TOOLS)/bin/pip install --quiet --disable-pip-version-check cmake; } || \
		echo "SKIPPED: cmake is neither here nor on PyPI; install it for the test of find_package"
	@PATH="$(CURDIR)/$(C_TOOLS)/bin:$$PATH"; ! command -v cmake > /dev/null || { set -e -x; \
		rm -rf $(C_BUILD)/cmake; \
		cmake -S examples/cpp -B $(C_BUILD)/cmake -DCMAKE_PREFIX_PATH=$(C_PREFIX) > $(C_BUILD)/cmake.log; \
		cmake --build $(C_BUILD)/cmake >> $(C_BUILD)/cmake.log; \
		$(C_BUILD)/cmake/twelve_lines | diff $(C_BUILD)/twelve_lines.out -; }

# One rank and two must find the same schedule. MPI is not installed here; without it the test is skipped.
test-c-mpi: test-c-install
	@command -v mpicc > /dev/null || echo "SKIPPED: mpicc is not here; install MPI for the test of its example"
	@! command -v mpicc > /dev/null || { set -e -x; \
		mpicc -std=c11 -O1 $(C_WARNINGS) $(C_LMSD) examples/c/ranks_mpi.c $(C_LIBS) -o $(C_BUILD)/ranks_mpi; \
		export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; \
		$(C_BUILD)/ranks_mpi | grep -v seconds > $(C_BUILD)/ranks_mpi.one; \
		mpirun -n 2 $$(! mpirun --version | grep -q Open || echo --oversubscribe) $(C_BUILD)/ranks_mpi | \
			grep -v seconds | diff $(C_BUILD)/ranks_mpi.one -; }
