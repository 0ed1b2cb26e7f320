#!/usr/bin/env bash
# How long msb-boot takes from the record to the agent's answer, against the shortest way to a guest's first process:
# QEMU's bare command line with a trivial init that mounts the root and says so. Turn by turn, medians, one table.
#
#   tests/bench-boot.sh [ROUNDS]
# shellcheck disable=SC2154 # coproc sets variables
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/target/release:$PATH
rounds=${1:-10}
# shellcheck source-path=SCRIPTDIR/..
source tests/bench.bash
source tests/image.bash
bench_setup
machine=$(uname -m)
declare -A options=(
    [x86_64]="microvm,acpi=off,rtc=on,x-option-roms=off,memory-backend=m,auto-kernel-cmdline=on"
    [aarch64]="virt,acpi=off,memory-backend=m"
)

virtiofsd=$(PATH=$PATH:/usr/libexec:/usr/lib/qemu command -v virtiofsd)

# bare [TRIES]: milliseconds to the trivial init's message. An emulated guest ends before it in one of some hundred starts, which msb-boot
# would repeat.
bare() {
    local start helpers=() share tries=${1:-3} said=
    start=$(bench_now)
    rm -f "$work"/*.sock
    for share in share root; do
        "$virtiofsd" --socket-path="$work/$share.sock" -o "source=$work/$share" -o cache=auto -o sandbox=chroot \
            >/dev/null 2>&1 &
        helpers+=($!)
    done
    vhost-device-vsock --guest-cid 3 --socket "$work/vsock.sock" --uds-path "$work/agent.sock" >/dev/null 2>&1 &
    helpers+=($!)
    until [ -S "$work/share.sock" ] && [ -S "$work/root.sock" ] && [ -S "$work/vsock.sock" ]; do sleep 0.005; done
    coproc qemu { exec "qemu-system-$machine" -M "${options[$machine]}" \
        -global virtio-mmio.force-legacy=false -accel tcg,thread=multi -cpu max -m 512 \
        -object memory-backend-memfd,id=m,size=512M,share=on -nodefaults -no-user-config -nographic -no-reboot \
        -kernel "$kernel" -chardev stdio,id=c0 -device virtio-serial-device -device virtconsole,chardev=c0 \
        -chardev "socket,id=fs1,path=$work/share.sock" -device vhost-user-fs-device,chardev=fs1,tag=/dev/root \
        -chardev "socket,id=fs2,path=$work/root.sock" -device vhost-user-fs-device,chardev=fs2,tag=rootfs \
        -chardev "socket,id=vs,path=$work/vsock.sock" -device vhost-user-vsock-device,chardev=vs \
        -append "console=hvc0 panic=-1 rootfstype=virtiofs root=/dev/root rw quiet init=/init.krun" \
        2>"$work/qemu.log"; }
    said=$(grep -m 1 up <&"${qemu[0]}") || true
    start=$((($(bench_now) - start) / 1000))
    kill ${qemu_PID:+"$qemu_PID"} "${helpers[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    if [ -n "$said" ]; then
        echo "$start"
    elif ((tries > 1)); then
        bare $((tries - 1))
    else
        cat "$work/qemu.log" >&2
        return 1
    fi
}

# Milliseconds from the record to the agent's answer, as a caller sees it.
ours() {
    local start
    start=$(bench_now)
    msb-boot -r "$work/record.json" --name bench --vmm qemu >"$work/vm.json"
    echo $((($(bench_now) - start) / 1000))
    bench_kill "$work/vm.json"
}

# row TITLE: measures guests of $machine.
row() {
    rm -rf "$MSB_HOME/kernel" "$work/bare" "$work/ours"
    ours >/dev/null # makes the kernel's file
    # Beside it is the first part of the initramfs.
    kernel=$(find "$MSB_HOME/kernel" -type f ! -name "*.cpio")
    [ -f "$kernel" ]
    bench_pair "$rounds"
    bench_table "$1" 'QEMU alone to a trivial init'
}

cp "$(guest_program trivial-init)" "$work/share/init.krun"
row "start of a VM, $rounds rounds, milliseconds"

# Guests of the other architecture, if this machine has what they need.
case $machine in
    x86_64) machine=aarch64 platform=linux/arm64 ;;
    *) machine=x86_64 platform=linux/amd64 ;;
esac
if [ ! -e "target/release/$machine/agentd" ] || ! command -v "qemu-system-$machine" >/dev/null; then
    echo "no row for $platform guests: \"make guest-${platform#*/}\" makes what they need" >&2
    exit
fi
"$machine-linux-gnu-gcc" -Os -static -o "$work/share/init.krun" tests/guest/trivial-init.c
jq -c --arg platform "$platform" '.image = {ref: "bench", platform: $platform, config: {}}' "$work/record.json" >"$work/foreign.json"
mv "$work/foreign.json" "$work/record.json"
row "start of a $platform guest, $rounds rounds"
