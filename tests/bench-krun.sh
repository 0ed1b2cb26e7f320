#!/usr/bin/env bash
# What a VM under libkrun costs, on a machine with usable KVM: the time from the record to the agent's answer against libkrun
# alone (boot and a trivial init), turn by turn; the memory of an idle VM's host processes; ten VMs at once. `make bench-krun`
# builds what it needs and runs it here or in the nested host. Nothing passes or fails, but that nothing may be left over.
#
#   tests/bench-krun.sh [ROUNDS]
# shellcheck disable=SC2154 # coproc sets variables
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/target/release:$PATH
rounds=${1:-7}
memory=512
export MSB_VMM=krun MSB_NETWORK=none
# shellcheck source-path=SCRIPTDIR/..
source tests/bench.bash
source tests/image.bash
bench_setup
cp "$(guest_program trivial-init)" "$work/share/init.krun"

# Milliseconds to the trivial init's message.
bare() {
    local start
    start=$(bench_now)
    coproc krun { exec target/release/examples/bare-krun "$PWD/target/release/libkrunfw.so.5" "$work/share" "$work/root" "$memory" \
        2>/dev/null; }
    grep -qm 1 up <&"${krun[0]}"
    echo $((($(bench_now) - start) / 1000))
    kill -KILL "$krun_PID" 2>/dev/null || true
    wait 2>/dev/null || true
}

# Milliseconds from the record to the agent's answer, as a caller sees it; the timings go to $work/timings.
ours() {
    local start
    start=$(bench_now)
    msb-boot -r "$work/record.json" --name bench -m "$memory" >"$work/vm.json"
    echo $((($(bench_now) - start) / 1000))
    jq -c .vm.timings_ms "$work/vm.json" >>"$work/timings"
    bench_kill "$work/vm.json"
}

echo "-- record to ready, $rounds rounds, milliseconds"
ours >/dev/null
rm "$work/timings"
bench_pair "$rounds"
bench_table '' 'libkrun alone to a trivial init'
echo "timings_ms of the rounds (median of each):"
jq -Msc 'def median: sort | .[(length - 1) / 2 | floor];
    {spawn: map(.spawn) | median, kernel: map(.kernel) | median, agent: map(.agent) | median, ready: map(.ready) | median}' \
    "$work/timings"

echo "-- memory of one idle VM with $memory MiB"
msb-boot -r "$work/record.json" --name one -m "$memory" >"$work/one.json"
msb-exec -r "$work/one.json" -- true
read -r host guest < <(bench_memory "$memory" "$work/one.json")
printf '%-46s %8.1f MiB\n' 'host processes, their own' "$(awk -v k="$host" 'BEGIN { print k / 1024 }')"
printf '%-46s %8.1f MiB\n' "the guest's memory that was touched" "$(awk -v k="$guest" 'BEGIN { print k / 1024 }')"
msb-stop -r "$work/one.json" >/dev/null 2>&1

echo "-- ten VMs at once"
bench_many 10 "$memory"
