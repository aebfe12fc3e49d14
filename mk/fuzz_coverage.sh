# `make fuzz-coverage`: which regions and lines of src/ the corpus of fuzz/ reaches, by file.
set -e
out=build/coverage
rm -rf $out/profiles && mkdir -p $out/profiles
export RUSTFLAGS="-C instrument-coverage" LLVM_PROFILE_FILE="$PWD/$out/profiles/%p.profraw"
test=$(${CARGO:-cargo} +nightly test --target-dir $out/target --test fuzz_corpus --no-run --message-format json |
    sed -n 's/.*"executable":"\([^"]*fuzz_corpus[^"]*\)".*/\1/p' | tail -n 1)
"$test" --quiet > $out/log || { tail -n 20 $out/log; exit 1; }
tools=$(dirname "$(find "$(rustc +nightly --print sysroot)" -name llvm-profdata | head -n 1)")
"$tools/llvm-profdata" merge -sparse $out/profiles/*.profraw -o $out/all.profdata
"$tools/llvm-cov" report "$test" --instr-profile $out/all.profdata --sources src
