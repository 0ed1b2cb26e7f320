#!/usr/bin/env bash
# What a root costs its guest, block and shared, and microsandbox's if it can be fetched: files found, read and made in a
# Debian image, cold and warm; the time to a VM that answers, with and without patches; what ten VMs of one image take on the
# host. On libkrun, on a machine with usable KVM; `make bench-krun` runs it there or in the nested host. Nothing passes or fails.
# Warm reads, fork and exec never access a disk: they measure the kernel's page cache and overlayfs, which
# microsandbox has too.
#
#   tests/bench-block-krun.sh [ROUNDS [ROOT…]]      the work alone, on these: share, block, microsandbox, and volume: the same tree as
#                                                   a volume. A virtiofsd that is first on PATH has its default caching
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH=$here/../target/release:$PATH
rounds=${1:-3}
export MSB_VMM=${MSB_VMM:-krun} MSB_NETWORK=none
# shellcheck source-path=SCRIPTDIR
source "$here/bench.bash"
# shellcheck source-path=SCRIPTDIR
source "$here/image.bash"
# shellcheck source-path=SCRIPTDIR
source "$here/microsandbox.bash"
bench_setup
cd "$work"

# table [FILE]: turns lines of a name and figures into one line for each name, with medians.
table() {
    local name column columns
    cat "$@" >lines
    columns=$(head -n 1 lines | awk -F'\t' '{ print NF }')
    cut -f 1 lines | awk '!seen[$0]++' | while read -r name; do
        printf '%s' "$name"
        for ((column = 2; column <= columns; column++)); do
            printf '\t%s' "$(awk -F'\t' -v n="$name" -v c="$column" '$1 == n { print $c }' lines | bench_median)"
        done
        echo
    done
}

if [ -n "${BENCH_SMOKE:-}" ]; then layout=$(tiny_image); else layout=$(inits_image); fi
msb-pull -q "oci:$layout:latest" >block.json
mkdir mnt
msb-mount mnt <block.json >share.json

roots=("${@:2}")
if [ $# -lt 2 ]; then
    roots=(share block)
    if [ "$MSB_VMM" = krun ] && microsandbox_fetch >/dev/null; then roots+=(microsandbox); fi
fi
if [[ " ${roots[*]} " == *' volume '* ]]; then
    mkdir tree
    cp -a mnt/. tree/
fi
if [[ " ${roots[*]} " == *' microsandbox '* ]]; then
    mkdir microsandbox
    skopeo copy -q "oci:$layout:latest" docker-archive:image.tar:bench:latest
    microsandbox load -q -i image.tar -t bench
    rm image.tar
fi

# A VM with a root of that kind: boot, a shell command, stop.
up() {
    case $1 in
        microsandbox) microsandbox create -q -n "work-$1" -c 1 -m 1G --no-net bench >&2 ;;
        volume)
            msb-boot -r block.json --name "work-$1" -c 1 -m 1G --timeout 300 -v "$PWD/tree:/vol" >"vm-$1.json"
            # shellcheck disable=SC2016 # the guest expands it
            msb-exec -n -r "vm-$1.json" -- sh -c 'for dir in proc dev; do mkdir -p /vol/$dir; mount --rbind /$dir /vol/$dir; done'
            ;;
        *) msb-boot -r "$1.json" --name "work-$1" -c 1 -m 1G --timeout 300 >"vm-$1.json" ;;
    esac
}
inside() {
    case $1 in
        microsandbox) microsandbox exec "work-$1" -- sh -c "${@:2}" ;;
        volume) msb-exec -n -r "vm-$1.json" -- chroot /vol sh -c "${@:2}" ;;
        *) msb-exec -n -r "vm-$1.json" -- sh -c "${@:2}" ;;
    esac
}
down() {
    case $1 in
        microsandbox) microsandbox stop "work-$1" && microsandbox remove "work-$1" ;;
        *) msb-stop -r "vm-$1.json" ;;
    esac >/dev/null 2>&1
}

# The processes of a VM. One that idles takes a share of the one processor from those at work: in the nested host, by top(1), ours
# 3 in 100 and microsandbox's 15.
processes() {
    local found
    case $1 in
        microsandbox) found=$(pgrep -f "bin/msb machine --name work-$1 ") ;;
        *) found=$(jq .vm.pid "vm-$1.json") ;;
    esac
    while [ -n "$found" ]; do
        echo "$found"
        found=$(pgrep -P "${found//$'\n'/,}" || true)
    done
}
# others SIGNAL ROOT: signals every VM but that one.
others() {
    local root
    for root in "${roots[@]}"; do
        # shellcheck disable=SC2046 # a word for each process
        [ "$root" = "$2" ] || kill -"$1" $(processes "$root")
    done
}

echo "-- a guest's work on its root, seconds ($MSB_VMM, medians of $rounds)"
# shellcheck disable=SC2016 # the guest's shells expand it
works=(
    'count to 20000: no file, and no kernel' 'n=0; while [ $n -lt 20000 ]; do n=$((n + 1)); done'
    'find in /usr with sizes and modes, cold' 'find /usr -xdev -printf "%s %m\n" >/dev/null'
    'find, warm' 'find /usr -xdev -printf "%s %m\n" >/dev/null'
    'tar /usr to a pipe, cold' 'tar -C / -c usr | cat >/dev/null'
    'tar, warm' 'tar -C / -c usr | cat >/dev/null'
    'read perl and the shared libraries, cold' 'cat /usr/bin/perl /usr/lib/x86_64-linux-gnu/*.so* >/dev/null'
    '20 fork and exec' 'n=0; while [ $n -lt 20 ]; do /bin/true; n=$((n + 1)); done'
    'create 300 files' 'mkdir /root/f; cd /root/f; n=0; while [ $n -lt 300 ]; do echo x >$n; n=$((n + 1)); done; cd /; rm -r /root/f'
    'write 64 MiB and sync it' 'dd if=/dev/zero of=/root/big bs=1M count=64 conv=fsync 2>/dev/null; rm /root/big'
)
# A small image has no /usr to search.
[ -z "${BENCH_SMOKE:-}" ] || works=("${works[@]:0:2}" "${works[@]:12}")
for ((turn = 0; turn < rounds; turn++)); do
    for root in "${roots[@]}"; do up "$root"; done
    # One work after the other, on each root in turn: a machine may be half as fast minutes later.
    for ((place = 0; place < ${#works[@]}; place += 2)); do
        for root in "${roots[@]}"; do
            others STOP "$root"
            case ${works[place]} in *cold) inside "$root" 'sync; echo 3 >/proc/sys/vm/drop_caches' ;; esac
            echo "   $root: ${works[place]}" >&2
            # With the guest's clock: starting a command is measured elsewhere.
            # shellcheck disable=SC2016
            inside "$root" 'read a _ </proc/uptime; eval "$1"; read b _ </proc/uptime; echo $a $b' sh "${works[place + 1]}" |
                awk -v n="${works[place]}" '{ printf "%s\t%.2f\n", n, $2 - $1 }' >>"times-$root"
            others CONT "$root"
        done
    done
    for root in "${roots[@]}"; do down "$root"; done
done
{
    printf 'work'
    printf '\t%s' "${roots[@]}"
    echo
    cp "times-${roots[0]}" times
    for root in "${roots[@]:1}"; do paste times <(cut -f 2 "times-$root") >wider && mv wider times; done
    table times
} | awk -F'\t' '
    NR == 1 { for (i = 2; i <= NF; i++) if ($i == "block") block = i }
    {
        line = $0
        for (i = 2; i <= NF; i++)
            if (block && i != block) line = line "\t" (NR == 1 ? "block to " $i : sprintf("%.2f", $i > 0 ? $block / $i : 0))
        print line
    }
' | column -t -s $'\t'
[ $# -lt 2 ] || exit 0

echo "-- record to ready, milliseconds (medians of $rounds)"
for n in {1..100}; do jq -nc --arg n "$n" '{op: "text", path: "/etc/patch-\($n)", content: "patched"}'; done >ops
msb-patch -f ops <block.json >patched.json
cp "$(guest_program trivial-init)" share/init.krun
# shellcheck disable=SC2154 # coproc sets its variables
bare() {
    local start
    start=$(bench_now)
    coproc krun { exec "$here/../target/release/examples/bare-krun" "$here/../target/release/libkrunfw.so.5" share root 512 2>/dev/null; }
    grep -qm 1 up <&"${krun[0]}"
    echo $((($(bench_now) - start) / 1000))
    kill -KILL "$krun_PID" 2>/dev/null || true
    wait "$krun_PID" 2>/dev/null || true
}
ready() {
    local start
    start=$(bench_now)
    msb-boot -r "$1.json" --name "ready-$1" -m 512 --timeout 300 >vm.json
    echo $((($(bench_now) - start) / 1000))
    bench_kill vm.json
}
for root in block patched share; do ready "$root" >/dev/null; done
for ((turn = 0; turn < rounds; turn++)); do
    for root in share block patched; do printf '%s\t%s\n' "$root" "$(ready "$root")" >>readies; done
    if [ "$MSB_VMM" = krun ]; then printf 'libkrun alone\t%s\n' "$(bare)" >>readies; fi
done
table readies | column -t -s $'\t'

echo "-- ten VMs of one image, block roots, 256 MiB each"
pids=()
for n in {0..9}; do
    msb-boot -r block.json --name "ten-$n" -m 256 --timeout 600 >"ten-$n.json" &
    pids+=($!)
done
wait "${pids[@]}"
for n in {0..9}; do
    supervisor=$(jq .vm.pid "ten-$n.json")
    for pid in $supervisor $(ps -o pid= --ppid "$supervisor"); do awk '/^Pss:/ { print $2 }' "/proc/$pid/smaps_rollup"; done
done | awk '{ kib += $1 } END { printf "memory of their processes, the guests'"'"' touched memory included: %.0f MiB\n", kib / 1024 }'
find "$MSB_HOME" -name '*.erofs' -printf '%f\t%b\n' | awk -F'\t' '{ n++; b += $2 } END { printf "EROFS files: %d, %.0f MiB\n", n, b / 2048 }'
find "$MSB_HOME" -name top.ext4 -printf '%s\t%b\n' | awk '{ n++; s += $1; b += $2 } END { printf "ext4 disks: %d, %.0f MiB on the host of %.0f\n", n, b / 2048, s / 1048576 }'
for n in {0..9}; do bench_kill "ten-$n.json"; done
msb-mount -u mnt
