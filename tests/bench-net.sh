#!/usr/bin/env bash
# The guest's network: QEMU's own user network, passt alone, and passt behind the gate, turn by turn in one run: megabits per second to
# and from a server in a network namespace, with one stream and with 32, requests per second and connections per second. Then how much
# later a VM is ready with a network than without. MSB_VMM=krun measures libkrun, which has no user network of its own.
#
#   tests/bench-net.sh [ROUNDS [SECONDS]]
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/target/release:$PATH:/usr/sbin:/sbin
rounds=${1:-3} seconds=${2:-3}
vmm=${MSB_VMM:-qemu}
ways=(user passt gate)
[ "$vmm" = qemu ] || ways=(passt gate)
[ -z "${BENCH_SMOKE:-}" ] || rounds=1 seconds=1 ways=(gate)
# shellcheck source-path=SCRIPTDIR/..
source tests/bench.bash
source tests/image.bash
bench_setup
lab=msb-bench-net-$$
server=
listener=
net_end() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    [ -z "$listener" ] || kill "$listener" 2>/dev/null || true
    ip netns delete "$lab" 2>/dev/null || true
    ip netns delete "$lab-far" 2>/dev/null || true
    bench_end
}
trap net_end EXIT
for namespace in "$lab" "$lab-far"; do
    ip netns add "$namespace"
    ip -n "$namespace" link set lo up
done
ip link add eth0 netns "$lab" type veth peer name eth0 netns "$lab-far"
ip -n "$lab" addr add 198.51.100.2/24 dev eth0
ip -n "$lab-far" addr add 198.51.100.1/24 dev eth0
ip -n "$lab-far" addr add 203.0.113.9/32 dev lo
for namespace in "$lab" "$lab-far"; do ip -n "$namespace" link set eth0 up; done
ip -n "$lab" route add default via 198.51.100.1
load=$(guest_program net-load)
ip netns exec "$lab-far" "$load" serve 5001 &
server=$!

# The names of the figures, and net-load's mode and number of streams.
figures=(up-1 down-1 up-32 down-32 requests connections)
loads=('up 1' 'down 1' 'up 32' 'down 32' 'ask 1' 'connect 1')
[ -z "${BENCH_SMOKE:-}" ] || figures=(up-1 requests) loads=('up 1' 'ask 1')

# A guest with BusyBox, net-load and an init that measures.
mkdir -p "$work/initrd"/{bin,dev,proc,sys}
cp "$(command -v busybox)" "$work/initrd/bin/busybox"
cp "$load" "$work/initrd/bin/net-load"
{
    cat <<'END'
#!/bin/busybox sh
/bin/busybox --install /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
exec >/dev/hvc0 2>&1
ip link set lo up
ip link set eth0 mtu "$mtu" up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
END
    for number in "${!figures[@]}"; do
        read -r mode streams <<<"${loads[number]}"
        echo "echo figure ${figures[number]} \$(net-load $mode 203.0.113.9 5001 $streams $seconds)"
    done
    echo 'reboot -f'
} >"$work/initrd/init"
chmod 0755 "$work/initrd/init"
(cd "$work/initrd" && find . | busybox cpio -o -H newc) >"$work/initrd.cpio"

# boot MODE: boots, and prints the milliseconds until the agent answers. The VM keeps running.
boot() {
    local start
    start=$(bench_now)
    ip netns exec "$lab" env MSB_RUN="$MSB_RUN" msb-boot -r "$work/record.json" --name bench --vmm "$vmm" --network "$1" >"$work/vm.json"
    echo $((($(bench_now) - start) / 1000))
}
bare() { boot none && bench_kill "$work/vm.json"; }
ours() { boot public && bench_kill "$work/vm.json"; }

# booted WAY: prints the figures of a VM of msb-boot. With passt alone the card is a socket that passt serves.
booted() {
    local number mode streams process pid pss network=public
    if [ "$1" = passt ]; then
        rm -f "$work/passt.sock"
        ip netns exec "$lab" python3 tests/bench-net.py listen "$work/passt.sock" "$mtu" &
        listener=$!
        until [ -S "$work/passt.sock" ]; do
            kill -0 "$listener" || return
            sleep 0.05
        done
        network=unix:$work/passt.sock,address=10.0.2.15/24,gateway=10.0.2.2,mtu=$mtu
    fi
    boot "$network" >/dev/null
    for number in "${!figures[@]}"; do
        read -r mode streams <<<"${loads[number]}"
        echo "${figures[number]} $(msb-exec -r "$work/vm.json" -- net-load "$mode" 203.0.113.9 5001 "$streams" "$seconds")"
    done
    if [ "$1" != passt ]; then
        for process in passt gate; do
            pss=$(bench_processes "$work/vm.json" | while read -r pid; do
                if grep -qzE "/$process\$|^--as-$process\$" "/proc/$pid/cmdline"; then cat "/proc/$pid/smaps_rollup"; fi
            done | awk '/^Pss:/ { sum += $2 } END { if (!NR) exit 1; print sum }')
            echo "memory-$process $pss"
        done
    fi
    bench_kill "$work/vm.json"
    [ -z "$listener" ] || wait "$listener" || true
    listener=
}

if [ "$vmm" = qemu ]; then
    bare >/dev/null # makes the kernel's file
    kernel=$(find "$MSB_HOME/kernel" -name "*.vmlinux")
fi
cp "$load" "$work/root/bin/net-load"
for ((round = 0; round < rounds; round++)); do
    for way in "${ways[@]}"; do
        mtu=16384
        [ "$way" != user ] || mtu=1500
        if [ "$vmm" = qemu ]; then
            ip netns exec "$lab" timeout 300 python3 tests/bench-net.py "$way" "$kernel" "$work/initrd.cpio" "$mtu" \
                "$(command -v msb-boot)" "${#figures[@]}" >"$work/round"
        else
            # Not left of a pipe, whose subshell would keep the listener to itself.
            booted "$way" >"$work/round"
        fi
        sed "s/^/$way /" "$work/round" >>"$work/figures"
    done
done

# median WAY FIGURE
median() { awk -v way="$1" -v figure="$2" '$1 == way && $2 == figure { print $3 }' "$work/figures" | bench_median; }
# ratio ONE OTHER
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b) printf "%.2f", a / b; else print "-" }'; }
printf '%-42s %9s %9s %9s %10s %10s\n' "$rounds rounds of $seconds s, medians" user passt gate gate/user gate/passt
for figure in "${figures[@]}"; do
    user=$(median user "$figure") passt=$(median passt "$figure") gate=$(median gate "$figure")
    printf '%-42s %9s %9s %9s %10s %10s\n' "$figure" "${user:--}" "$passt" "$gate" \
        "$(ratio "$gate" "$user")" "$(ratio "$gate" "$passt")"
done
printf 'memory (PSS): passt %s KiB, gate %s KiB\n' "$(median gate memory-passt)" "$(median gate memory-gate)"
[ -z "${BENCH_SMOKE:-}" ] || exit 0
bench_pair "$((rounds * 3))"
bench_table "start of a VM, $((rounds * 3)) rounds, milliseconds" 'without a network'
