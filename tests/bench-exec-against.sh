#!/usr/bin/env bash
# msb-exec and agentd of this tree against those of another build, turn by turn in one run, each with a VM of its own: a warm command,
# and a hundred at once. The other build is a target/release in $MSB_BASE; without it there is nothing to do. Nothing passes or fails.
#
#   MSB_BASE=DIR tests/bench-exec-against.sh [RUNS [ROUNDS]]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
ours=${MSB_OURS:-$here/../target/release}
runs=${1:-200} rounds=${2:-10}
if [ -z "${MSB_BASE:-}" ]; then
    echo "\$MSB_BASE names no other build (a target/release of another commit): nothing to compare"
    exit
fi
BATS_FILE_TMPDIR=$(mktemp -d)
BATS_TEST_TMPDIR=$BATS_FILE_TMPDIR
# shellcheck source-path=SCRIPTDIR
source "$here/exec.bash"
trap 'for release in "$MSB_BASE" "$ours"; do PATH=$release:$PATH vm_teardown; done; rm -rf "$BATS_FILE_TMPDIR"' EXIT
exec_root
for name in base ours; do
    release=$ours
    [ "$name" = ours ] || release=$MSB_BASE
    PATH=$release:$PATH MSB_AGENTD=$release/agentd vm_boot "$name" -c 2
    eval "$name=\$release"
done

# us COMMAND…: prints its time, in microseconds.
us() {
    local start=${EPOCHREALTIME/./}
    "$@" >/dev/null </dev/null
    echo $((${EPOCHREALTIME/./} - start))
}

# shellcheck disable=SC2317,SC2329 # called by us
one() { "${!1}/msb-exec" -r "$BATS_TEST_TMPDIR/$1.json" -n -- true; }
# shellcheck disable=SC2317,SC2329 # called by us
at_once() {
    for _ in {1..100}; do one "$1" & done
    wait
}

# pairs NAME COUNT COMMAND: base and ours alternately, the first one changing; medians in milliseconds, and their ratio.
pairs() {
    local name=$1 count=$2 command=$3 turn order build
    for ((turn = 0; turn < count; turn++)); do
        order='base ours'
        [ $((turn % 2)) = 0 ] || order='ours base'
        for build in $order; do echo "$build $(us "$command" "$build")"; done
    done | sort -k 1,1 -k 2,2n | awk -v name="$name" '
        { value[$1, ++count[$1]] = $2 / 1000 }
        END {
            for (build in count) median[build] = value[build, int((count[build] + 1) / 2)]
            printf "%s\t%.2f\t%.2f\t%.2f\n", name, median["base"], median["ours"], median["ours"] / median["base"]
        }'
}

for build in base ours; do one "$build"; one "$build"; done
{
    printf '%s, ms, medians\tbase\tours\tratio\n' "$(jq -r .vm.vmm "$BATS_TEST_TMPDIR/ours.json")"
    pairs "warm, of $runs" "$runs" one
    pairs "100 at once, of $rounds" "$rounds" at_once
} | column -t -s $'\t'
