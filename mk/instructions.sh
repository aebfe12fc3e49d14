#!/bin/sh
# Instructions an element on arm64: those of 4096 elements more, counted by qemu, which runs one at a time.
#
#   sh mk/instructions.sh FOLDER PROGRAM QEMU...

set -eu
folder=$1
program=$2
shift 2
one=-one-insn-per-tb
"$@" -help 2>&1 | grep -q -e "$one" || one=-singlestep # before qemu 8.1

printf '%-10s %-9s %s\n' operation dtype 'instructions an element, of any processor and of a Cortex-A72'
for operation in lincomb gram; do
    for dtype in 'float32 2 32' 'float64 2 64' 'float16 2 16' 'bfloat16 4 16'; do
        set_of=${dtype#* }
        line=$(printf '%-10s %-9s' "$operation" "${dtype%% *}")
        for cpu in max cortex-a72; do
            before=
            for elements in 4096 8192; do
                # shellcheck disable=SC2086
                "$@" -cpu $cpu "$one" -d exec,nochain -D "$folder/trace" "$program" $elements $set_of $operation
                now=$(grep -c '^Trace' "$folder/trace")
                test -n "$before" || before=$now
            done
            line="$line $(awk "BEGIN { printf \"%.1f\", ($now - $before) / 2 / 4096 }")"
        done
        echo "$line"
    done
done
rm "$folder/trace"
