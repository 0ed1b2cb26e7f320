#!/usr/bin/env bash
# What `msb run IMAGE -- true` costs, against the pipe that `msb run -x` prints: turn by turn, with an image that is in the store.
#
#   tests/bench-run.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/target/release:$PATH
rounds=${1:-15}
# shellcheck source-path=SCRIPTDIR/..
source tests/bench.bash
# shellcheck source-path=SCRIPTDIR/..
source tests/image.bash
bench_setup
image=oci:$(tiny_image):latest

# Milliseconds of a command. Its output is dropped.
milliseconds() {
    local start
    start=$(bench_now)
    "$@" </dev/null >/dev/null
    echo $((($(bench_now) - start) / 1000))
}
bare() {
    msb run -x -q "$image" -- true >"$work/pipe"
    milliseconds sh "$work/pipe"
}
ours() { milliseconds msb run -q "$image" -- true; }

{ bare; ours; } >/dev/null # makes the store
bench_pair "$rounds"
bench_table "a command in a new VM, $rounds rounds, milliseconds" 'the pipe in a shell' 'msb run'
