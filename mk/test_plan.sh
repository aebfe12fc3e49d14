#!/bin/sh
# Says what `make test` will download and what it will skip. Arguments: the files that are there once the virtual
# environment for tests, zig, libtorch and cmake are installed.

DISK=8 # gigabytes of .venv, target and build after a whole run

report() { # report PATH SENTENCE
    test -e "$1" || echo "  $2"
}

echo "make test downloads, where it is not here yet:"
report "$1" "packages for Python, torch 2.11 among them: 3 GB, 5 GB on disk (.venv)"
report "$2" "zig, to link for old systems: 0.1 GB, 0.4 GB on disk (.venv)"
report "$3" "libtorch 2.11: 0.5 GB, 0.6 GB on disk (build/libtorch)"
command -v cmake > /dev/null || report "$4" "cmake: 0.03 GB, 0.1 GB on disk (build/tools)"
echo "  crates, as cargo says; in all the tests take $DISK GB of disk, and 20 minutes on two idle cores once all is here"

if ! command -v valgrind > /dev/null && test "$(id -u)" = 0 && command -v apt-get > /dev/null; then
    echo "  valgrind, by apt-get"
    valgrind=yes
fi

echo "make test skips:"
command -v valgrind > /dev/null || test "$valgrind" || \
    echo "  the memory checks of C: valgrind is missing, and only root can install it"
command -v mpicc > /dev/null || echo "  the example of MPI: mpicc is missing"
echo "  the real torch 2.13: make test-torch-versions (5 GB)"
echo "  a running ComfyUI: make test-comfyui COMFYUI_DIR=..."

# Better now than in the middle of an installation.
taken=$(du -skc .venv target build 2> /dev/null | tail -n 1 | cut -f 1)
free=$(df -Pk . | awk 'NR == 2 { print $4 }')
if test $((taken + free)) -lt $((DISK * 1000 * 1000)); then
    echo "the tests need $DISK GB of disk: .venv, target and build have $((taken / 1000)) MB, free are $((free / 1000)) MB"
    exit 1
fi
