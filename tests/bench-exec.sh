#!/usr/bin/env bash
# msb-exec into a VM that runs: a warm command step by step, streams, a hundred at once, the agent's memory; each against a bare
# vsock peer, or against what the guest needs by itself. The peer is in the same guest under QEMU; libkrun leads no other port
# there, so it has a VM of its own, of the same size and root. Nothing passes or fails.
#
#   tests/bench-exec.sh [RUNS [MIB]]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
PATH=$here/../target/release:$PATH
BATS_FILE_TMPDIR=$(mktemp -d)
BATS_TEST_TMPDIR=$BATS_FILE_TMPDIR
# shellcheck source-path=SCRIPTDIR
source "$here/exec.bash"
# shellcheck disable=SC1091
source "$here/image.bash"
krun_PID=
trap '[ -z "$krun_PID" ] || kill -KILL "$krun_PID"; vm_teardown; rm -rf "$BATS_FILE_TMPDIR"' EXIT
exec_root
cp "$(guest_program echo-agent)" "$vm_root/bin/echo-agent"
runs=${1:-200} mib=${2:-64} port=2000 many=100
[ -z "${BENCH_SMOKE:-}" ] || many=4
# An emulated nested host sometimes loses guests with two processors.
cpus=2
[ "${MSB_KVM_HOST:-}" != nested ] || cpus=1
exec_boot -c "$cpus"
bare_record=$MSB_RECORD
if [ "$(jq .vm.endpoint.handshake "$MSB_RECORD")" = true ]; then
    msb-exec -d -- echo-agent "$port" >/dev/null
else
    mkdir -p bare/mnt
    cp "$(guest_program echo-agent)" bare/init.krun
    coproc krun { exec "$release/examples/bare-krun" "$release/libkrunfw.so.5" bare "$vm_root" 512 "$cpus" "$port" "$PWD/bare.sock" 2>bare.err; }
    # shellcheck disable=SC2154 # coproc sets it
    grep -qm 1 listening <&"${krun[0]}" || { cat bare.err >&2; exit 1; }
    bare_record=$PWD/bare.json
    jq -nc --arg unix "$PWD/bare.sock" '{vm: {endpoint: {$unix, handshake: false}}}' >"$bare_record"
fi

# us COMMAND…: prints its time, in microseconds.
us() {
    local start=${EPOCHREALTIME/./}
    "$@" >/dev/null </dev/null
    echo $((${EPOCHREALTIME/./} - start))
}

# row NAME COMMAND…: median and 99th percentile of $runs runs, in milliseconds.
row() {
    local name=$1 run
    shift
    for ((run = 0; run < runs; run++)); do us "$@"; done | sort -n | awk -v name="$name" '
        { value[NR] = $1 / 1000 }
        END { printf "%s\t%.2f\t%.2f\n", name, value[int((NR + 1) / 2)], value[int(NR * 0.99 + 0.99)] }'
}

# rate COMMAND…: prints MB/s, the best of three.
rate() {
    local run
    for run in 1 2 3; do us "$@"; done | sort -n | awk -v bytes=$((mib << 20)) 'NR == 1 { printf "%.0f\n", bytes / $1 }'
}

# shellcheck disable=SC2317,SC2329 # called by rate and us
{
    stdout() { msb-exec -n -- dd if=/dev/zero bs=64k count=$((mib * 16)) 2>/dev/null; }
    stdin() { head -c "${mib}M" /dev/zero | msb-exec -- dd of=/dev/null bs=64k 2>/dev/null; }
    alone() { msb-exec -n -- sh -c "dd if=/dev/zero bs=64k count=$((mib * 16)) 2>/dev/null | dd of=/dev/null bs=64k 2>/dev/null"; }
    in_a_row() { for ((n = 0; n < many; n++)); do msb-exec -n -- true; done; }
    at_once() { for ((n = 0; n < many; n++)); do msb-exec -n -- true & done; wait; }
}

msb-exec -n -- true
{
    printf '%s, %s runs, ms\tmedian\t99 %%\n' "$(jq -r .vm.vmm "$MSB_RECORD")" "$runs"
    row 'msb-exec -- true' msb-exec -n -- true
    row 'msb-exec --version: process start' msb-exec --version
    "$here/bench-exec.py" steps "$MSB_RECORD" "$bare_record" "$port" "$runs"
} | column -t -s $'\t'
{
    printf '%s MiB, MB/s\tmsb-exec\tbare vsock between pipes\tbare vsock\n' "$mib"
    bare() { "$here/bench-exec.py" "$1" "$bare_record" "$port" "$mib"; }
    printf 'stdout\t%s\t%s\t%s\n' "$(rate stdout)" "$(bare from-pipe)" "$(bare from)"
    printf 'stdin\t%s\t%s\t%s\n' "$(rate stdin)" "$(bare to-pipe)" "$(bare to)"
    printf 'a pipe in the guest\t%s\t\t\n' "$(rate alone)"
} | column -t -s $'\t'
printf '%d in a row %d ms, %d at once %d ms\n' "$many" $(($(us in_a_row) / 1000)) "$many" $(($(us at_once) / 1000))

agent=$(exec_agent)
# shellcheck disable=SC2016 # the guest's awk expands it
rss() { msb-exec -n -- awk '/^VmRSS/ { print $2 }' "/proc/$agent/status"; }
idle=$(rss)
pids=()
for ((n = 0; n < many / 2; n++)); do
    msb-exec -n -- sleep 600 >/dev/null &
    pids+=($!)
done
exec_await exec_has $((many / 2)) sleep
printf "the agent's memory: idle now %s KiB, with %s sessions %s KiB\n" "$idle" $((many / 2)) "$(rss)"
kill "${pids[@]}"
wait "${pids[@]}" || true
