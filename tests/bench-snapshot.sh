#!/usr/bin/env bash
# What a snapshot costs and saves: how long a guest is paused by the memory that it has touched; from a record to the first answered
# command by a boot, from a snapshot, and from a snapshot ten times at once; and the memory of ten VMs that were booted, and of ten from a
# snapshot. Snapshots are on the file system of /tmp, or of $TMPDIR.
#
#   tests/bench-snapshot.sh [ROUNDS [MIB…]]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH=$here/../target/release:$PATH
rounds=${1:-5}
touched=("${@:2}")
[ $# -gt 1 ] || touched=(0 64 256)
export MSB_VMM=qemu MSB_NETWORK=none
# shellcheck source-path=SCRIPTDIR
source "$here/bench.bash"
bench_setup
cd "$work"
jq -c 'del(.mount)' record.json >disk.json
memory=$((${touched[-1]} * 2 + 256))

# started NAME RECORD [FLAG…]: boots, runs a command, and prints how long both took, in milliseconds.
started() {
    local start
    start=$(bench_now)
    msb-boot -q -r "$2" --name "$1" --timeout 180 "${@:3}" >"$1.json"
    msb-exec -r "$1.json" -- true
    echo $((($(bench_now) - start) / 1000))
}

# ended NAME…: ends VMs.
ended() {
    msb-stop -q -t 0 "$@" >/dev/null 2>&1 || [ $? -eq 1 ]
}

# all_started RECORD MEMORY [FLAG…]: starts ten at once, and prints how long the last one took. Appends the sum of their PSS, in MiB, to
# the file MEMORY.
all_started() {
    local n pids=()
    for n in {0..9}; do started "many$n" "$1" "${@:3}" >"took$n" & pids+=($!); done
    wait "${pids[@]}"
    sort -n took? | tail -n 1
    bench_memory "$memory" many{0..9}.json | awk '{ print int(($1 + $2) / 1024) }' >>"$2"
    ended many{0..9}
}

for ((turn = 0; turn < rounds; turn++)); do
    for mib in "${touched[@]}"; do
        started base disk.json --channel serial -m "${memory}M" >>boot
        msb-exec base -- sh -c "mkdir -p /tmp/m && mount -t tmpfs -o size=100% none /tmp/m && dd if=/dev/urandom of=/tmp/m/x bs=1M count=$mib" 2>/dev/null
        msb-snapshot base >snap.json 2>said
        sed -n 's/.*paused for \([0-9]*\) ms/\1/p' said >>"pause-$mib"
        started other snap.json >>"load-$mib"
        ended base other
        [ "$mib" != "${touched[0]}" ] || all_started snap.json memory-of-many >>many
        msb-store rm -t snapshot "$(jq -r '.snapshot.path | split("/")[-1]' snap.json)" >/dev/null
    done
done
# Done once: each of these VMs has all of its memory to itself.
all_started disk.json memory-of-booted --channel serial -m "${memory}M" >many-booted
echo "QEMU, $(msb-boot --probe --vmm qemu | jq -r .vmms.qemu.by), a guest of $memory MiB, medians of $rounds, milliseconds"
{
    printf 'touched\tpaused\tfirst command from the snapshot\tby a boot\n'
    for mib in "${touched[@]}"; do
        printf '%s MiB\t%s\t%s\t%s\n' "$mib" "$(bench_median <"pause-$mib")" "$(bench_median <"load-$mib")" "$(bench_median <boot)"
    done
    printf 'ten at once\t-\t%s\t%s\n' "$(bench_median <many)" "$(<many-booted)"
    printf 'memory of ten\t-\t%s MiB\t%s MiB\n' "$(bench_median <memory-of-many)" "$(<memory-of-booted)"
} | column -t -s $'\t'
