#!/usr/bin/env bash
# What an init costs: from the agent's start to the init's, to the first answered command after that, and from msb-stop to its end;
# without a handoff in the same run. The second column is what microsandbox's documentation gives as typical on hardware.
#
#   [MSB_VMM=krun] tests/bench-shutdown.sh [ROUNDS [INIT…]]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH=$here/../target/release:$PATH
rounds=${1:-3}
export MSB_VMM=${MSB_VMM:-qemu} MSB_NETWORK=none
# shellcheck source-path=SCRIPTDIR
source "$here/bench.bash"
# shellcheck source-path=SCRIPTDIR
source "$here/inits.bash"
bench_setup
cd "$work"
wanted=("${@:2}")
[ $# -gt 1 ] || wanted=("${inits_all[@]}")

# round NAME FLAG…: appends "to the init, first command, stop, in the guest", in milliseconds, to $work/times-NAME.
round() {
    local name=$1 start command stop guest
    shift
    msb-boot -r "$name.json" --name bench -m 512 --timeout 180 --kernel-log "$work/log" "$@" >vm.json
    start=$(bench_now)
    msb-exec -r vm.json -- true
    command=$((($(bench_now) - start) / 1000))
    if [ "$name" != none ]; then
        timeout 180 msb-exec -r vm.json -- sh -c 'until [ -e /srv/note ]; do sleep 0.1; done'
    fi
    start=$(bench_now)
    msb-stop -r vm.json -t 300 >/dev/null 2>words
    stop=$((($(bench_now) - start) / 1000))
    grep -q ': stopped$' words || cat words >&2
    # With the agent's clock, if the agent sees the end.
    guest=$(sed -n 's/.*the machine ends, \([0-9]*\) ms after.*/\1/p' log | tail -n 1)
    echo "$(jq '.vm.timings_ms | (.init // .agent) - .agent' vm.json) $command $stop ${guest:--}" >>"times-$name"
}

typical() {
    case $1 in
        none | busybox | s6 | runit) echo '< 100 ms' ;;
        openrc) echo '50-500 ms' ;;
        systemd) echo '1-5 s' ;;
        *) echo - ;;
    esac
}

cp record.json none.json
for ((turn = 0; turn < rounds; turn++)); do round none; done
for name in "${wanted[@]}"; do
    mkdir -p "mnt-$name"
    inits_record "$name" "mnt-$name" >"$name.json"
    for ((turn = 0; turn < rounds; turn++)); do
        rm -f "mnt-$name/srv/note"
        # shellcheck disable=SC2046 # several words
        round "$name" $(inits_flags "$name")
    done
    msb-mount -u "mnt-$name"
done
echo "$MSB_VMM, medians of $rounds, milliseconds"
{
    printf 'init\ttypical stop\tagent to init\tfirst command\tmsb-stop\tof it in the guest\n'
    for name in none "${wanted[@]}"; do
        printf '%s\t%s' "$name" "$(typical "$name")"
        for column in 1 2 3 4; do printf '\t%s' "$(awk -v c="$column" '{ print $c }' "times-$name" | bench_median)"; done
        echo
    done
} | column -t -s $'\t'
