#!/usr/bin/env bash
# msb-exec into a VM that runs: a warm command, and a stream each way. The second lines are what the guest needs for the
# same by itself, which under emulation is most of it.
#
#   [RUNS=20] tests/bench-exec.sh
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
PATH=$here/../target/release:$PATH
BATS_FILE_TMPDIR=$(mktemp -d)
BATS_TEST_TMPDIR=$BATS_FILE_TMPDIR
# shellcheck source-path=SCRIPTDIR
source "$here/vm.bash"
trap 'vm_teardown; rm -rf "$BATS_FILE_TMPDIR"' EXIT
vm_setup
vm_boot bench -c 2
export MSB_RECORD=$BATS_FILE_TMPDIR/bench.json

# ms COMMAND…: its time, in milliseconds.
ms() {
    local start=${EPOCHREALTIME/./}
    "$@" >/dev/null
    echo $(((${EPOCHREALTIME/./} - start) / 1000))
}

# median COMMAND…: of RUNS runs.
median() {
    local runs=${RUNS:-20} run
    for ((run = 0; run < runs; run++)); do ms "$@"; done | sort -n | sed -n "$(((runs + 1) / 2))p"
}

# shellcheck disable=SC2317,SC2329 # called by median
{
    stdout() { msb-exec -- dd if=/dev/zero bs=64k count=800 2>/dev/null; }
    stdin() { head -c 52428800 /dev/zero | msb-exec -- dd of=/dev/null bs=64k 2>/dev/null; }
    alone() { msb-exec -- sh -c 'dd if=/dev/zero bs=64k count=800 2>/dev/null | dd of=/dev/null bs=64k 2>/dev/null'; }
}

msb-exec -- true
rate() { echo "$((52428800 / $1 / 1000)) MB/s"; }
{
    printf 'msb-exec -- true\t%s ms\n' "$(median msb-exec -- true)"
    RUNS=3
    printf '50 MiB of stdout\t%s\n' "$(rate "$(median stdout)")"
    printf '50 MiB of stdin\t%s\n' "$(rate "$(median stdin)")"
    printf '50 MiB by a pipe in the guest\t%s\n' "$(rate "$(median alone)")"
} | column -t -s $'\t'
