#!/bin/sh
# Builds the tests and examples of C and C++ for a system, with zig, and runs them there.
#
#   ZIG=... PYTHON=... sh mk/test_platform.sh FOLDER ZIG_TARGET LIBRARY RUNNER...
#
# FOLDER is where all of it goes. LIBRARY is what programs are linked with; what they load lies beside it. RUNNER starts
# a program of that system. Numbers must be those that stand in FOLDER/../linux.

set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
target=$2
library=$3
shift 3
root=$(pwd)
numbers=$(dirname "$folder")/linux
warnings="-Wall -Wextra -Wpedantic -Werror"
case $target in
*windows*) exe=.exe && loaded=lmsd.dll ;;
*) exe= && loaded=liblmsd.so.0 ;;
esac
cp "${library%/*}/$(test -n "$exe" && echo lmsd.dll || echo liblmsd.so)" "$folder/$loaded"

build() { # build COMPILER PROGRAM SOURCE FLAG...
    compiler=$1 program=$2 source=$3
    shift 3
    # shellcheck disable=SC2086
    "$ZIG" "$compiler" -target "$target" "$@" -O1 -ffp-contract=off $warnings -Iinclude "$source" "$library" -lm -lpthread \
        -Wl,-rpath,"\$ORIGIN" -o "$folder/$program$exe"
}

run() { # run PROGRAM ARGUMENT...
    program=$1
    shift
    echo "$name: $program" >&2
    # In its own folder, where its files go; a path from there is short, and without a drive.
    (cd "$folder" && TMPDIR=. $runner "./$program$exe" "$@" > printed) || { status=$?; cat "$folder/printed"; return $status; }
    tr -d '\r' < "$folder/printed"
}

name=${folder##*/}
runner=$*
test -z "$exe" || "$ZIG" cc -target "$target" -O1 -shared tests/bcryptprimitives.c -ladvapi32 \
    -o "$folder/bcryptprimitives.dll"
build cc abi tests/abi.c -std=c11
build cc numbers tests/numbers.c -std=c11
build cc twelve_lines_c examples/c/twelve_lines.c -std=c11
build cc digits_gmm examples/c/digits_gmm.c -std=c11
run abi > "$folder/abi.log" || { cat "$folder/abi.log"; exit 1; }
cat "$folder/abi.log"
for program in numbers twelve_lines_c; do
    run $program > "$folder/$program.out"
    "$PYTHON" "$root/mk/same_numbers.py" "$numbers/$program.out" "$folder/$program.out"
done
run digits_gmm --nfe 3 --out digits_gmm.json 2> "$folder/digits_gmm.log" > "$folder/digits_gmm.out"
"$PYTHON" "$root/mk/same_numbers.py" "$numbers/digits_gmm.out" "$folder/digits_gmm.out"

build c++ abi_cpp tests/abi.cpp -std=c++17
build c++ twelve_lines_cpp examples/cpp/twelve_lines.cpp -std=c++17
build c++ stand_in examples/stable-diffusion.cpp/stand_in.cpp -std=c++17
run abi_cpp
run stand_in
run twelve_lines_cpp > "$folder/twelve_lines_cpp.out"
"$PYTHON" "$root/mk/same_numbers.py" "$numbers/twelve_lines_c.out" "$folder/twelve_lines_cpp.out"
echo "$name: good"
