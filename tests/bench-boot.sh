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
work=$(mktemp -d /tmp/msb-bench.XXXXXX)
export MSB_HOME=$work/home XDG_RUNTIME_DIR=$work/run
trap 'rm -rf "$work"' EXIT
mkdir "$XDG_RUNTIME_DIR"

# The root, the same for both.
mkdir -p "$work/root"/{bin,dev,etc,proc,root,run,sys,tmp}
cp "$(command -v busybox)" "$work/root/bin/busybox"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$work/root/etc/passwd"
jq -nc --arg root "$work/root" '{msb: 1, rootfs: {kind: "dir", lower: [$root]},
    mount: {path: $root, pid: 1, fstype: "none"}}' >"$work/record.json"

# The trivial init.
mkdir -p "$work/share"/{mnt,dev,proc,sys}
cc -Os -static -o "$work/share/init.krun" tests/guest/trivial-init.c

virtiofsd=$(PATH=$PATH:/usr/libexec:/usr/lib/qemu command -v virtiofsd)

now() { echo "${EPOCHREALTIME/./}"; }

# Milliseconds from nothing to the init's word.
bare() {
    local start helpers=() share
    start=$(now)
    rm -f "$work"/*.sock
    for share in share root; do
        "$virtiofsd" --socket-path="$work/$share.sock" -o "source=$work/$share" -o cache=auto -o sandbox=chroot \
            >/dev/null 2>&1 &
        helpers+=($!)
    done
    vhost-device-vsock --guest-cid 3 --socket "$work/vsock.sock" --uds-path "$work/agent.sock" >/dev/null 2>&1 &
    helpers+=($!)
    until [ -S "$work/share.sock" ] && [ -S "$work/root.sock" ] && [ -S "$work/vsock.sock" ]; do sleep 0.005; done
    coproc qemu { exec qemu-system-x86_64 \
        -M microvm,acpi=off,rtc=on,x-option-roms=off,memory-backend=m,auto-kernel-cmdline=on \
        -global virtio-mmio.force-legacy=false -accel tcg,thread=multi -cpu max -m 512 \
        -object memory-backend-memfd,id=m,size=512M,share=on -nodefaults -no-user-config -nographic -no-reboot \
        -kernel "$kernel" -chardev stdio,id=c0 -device virtio-serial-device -device virtconsole,chardev=c0 \
        -chardev "socket,id=fs1,path=$work/share.sock" -device vhost-user-fs-device,chardev=fs1,tag=/dev/root \
        -chardev "socket,id=fs2,path=$work/root.sock" -device vhost-user-fs-device,chardev=fs2,tag=rootfs \
        -chardev "socket,id=vs,path=$work/vsock.sock" -device vhost-user-vsock-device,chardev=vs \
        -append "console=hvc0 reboot=k panic=-1 rootfstype=virtiofs root=/dev/root rw quiet init=/init.krun" \
        2>/dev/null; }
    grep -qm 1 up <&"${qemu[0]}"
    echo $((($(now) - start) / 1000))
    kill "$qemu_PID" "${helpers[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
}

# Milliseconds from the record to the agent's answer, as a caller sees it.
ours() {
    local start
    start=$(now)
    msb-boot -r "$work/record.json" --name bench --vmm qemu >"$work/vm.json"
    echo $((($(now) - start) / 1000))
    msb-stop -r "$work/vm.json" -t 0 >/dev/null 2>&1
}

median() { sort -n | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'; }

ours >/dev/null # makes the kernel's file
kernel=$(echo "$MSB_HOME"/kernel/*.elf)
for ((round = 0; round < rounds; round++)); do
    bare >>"$work/bare"
    ours >>"$work/ours"
done
bare=$(median <"$work/bare")
ours=$(median <"$work/ours")
printf '%-46s %8s %8s %8s\n' "start of a VM, $rounds rounds, milliseconds" median best ratio
printf '%-46s %8d %8d %8s\n' 'QEMU alone to a trivial init' "$bare" "$(sort -n "$work/bare" | head -n 1)" 1.00
printf '%-46s %8d %8d %8s\n' 'msb-boot to an agent that answers' "$ours" "$(sort -n "$work/ours" | head -n 1)" \
    "$(awk -v a="$ours" -v b="$bare" 'BEGIN { printf "%.2f", a / b }')"
