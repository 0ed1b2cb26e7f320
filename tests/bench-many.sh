#!/usr/bin/env bash
# Many VMs at once: how long it takes until all have answered, what they take of the host's memory, and that nothing is left when they
# have stopped.
#
#   tests/bench-many.sh [COUNT [MIB]]
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/target/release:$PATH
count=${1:-100} memory=${2:-128}
# shellcheck source-path=SCRIPTDIR/..
source tests/bench.bash
bench_setup
# The first makes the files that all share.
msb-boot -r "$work/record.json" --name first -m "$memory" >"$work/first.json"
bench_kill "$work/first.json"
echo "-- $count VMs of $memory MiB at once, $(nproc) processors"
bench_many "$count" "$memory"
