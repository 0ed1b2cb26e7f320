#!/bin/bash
# What a mount costs: the same work through the kernel's overlayfs, fuse-overlayfs and msb-mount, on a Debian root, in one
# run. Each figure is the median of RUNS (default 5) in seconds; the last columns are ratios to msb-mount's.
#
#   tests/bench-mount.sh [ROOT]      ROOT: an unpacked root file system [default: the demo image's]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH=$here/../target/release:$PATH
runs=${RUNS:-5}
scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/msb-bench-mount.XXXXXX")

cleanup() {
    for mount in "$scratch"/*/root; do
        umount "$mount" 2>/dev/null || true
    done
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if (($#)); then
    lower=$(realpath "$1")
else
    # shellcheck source=tests/image.bash
    source "$here/image.bash"
    lower=$scratch/lower
    image=demo_image
    [ -z "${BENCH_SMOKE:-}" ] || image=tiny_image
    umoci raw unpack --image "$("$image"):latest" "$lower" &>/dev/null
fi

lowers=$scratch/big:$lower
mkdir "$scratch/big"
size=512
[ -z "${BENCH_SMOKE:-}" ] || size=16
head -c "${size}M" /dev/zero >"$scratch/big/large"
tar -C "$lower" -cf "$scratch/usr.tar" usr

mounted_kernel() { mount -t overlay overlay -o "lowerdir=$lowers,upperdir=$1/upper,workdir=$1/work" "$1/root"; }
mounted_fuse_overlayfs() { fuse-overlayfs -o "lowerdir=$lowers,upperdir=$1/upper,workdir=$1/work" "$1/root"; }
mounted_msb() {
    jq -nc --arg big "$scratch/big" --arg lower "$lower" --arg dir "$1" \
        '{msb: 1, rootfs: {kind: "layers", lower: [$big, $lower]}, upper: {dir: ($dir + "/upper"), work: ($dir + "/work")}}' |
        msb-mount "$1/root" >/dev/null
}

work_find() { find "$1" -printf '%s %m\n' >/dev/null; }
work_tar() { tar -C "$1" -cf - usr etc | cat >/dev/null; }
work_read() { dd if="$1/large" of=/dev/null bs=1M status=none; }
work_untar() { mkdir "$1/new" && tar -C "$1/new" -xf "$scratch/usr.tar"; }
work_rm() { rm -r "$1/new"; }

# median FILE
median() { sort -n "$1" | awk '{line[NR] = $1} END {print line[int((NR + 1) / 2)]}'; }

ways=(kernel fuse_overlayfs msb)
for way in "${ways[@]}"; do
    dir=$scratch/$way
    mkdir -p "$dir"/{upper,work,root}
    "mounted_$way" "$dir" 2>/dev/null
done
# In turn, so that other load on the machine affects all three.
for ((run = 0; run < runs; run++)); do
    for work in find tar read untar rm; do
        for way in "${ways[@]}"; do
            case $work in
                # Dirty pages of one are not written during the next.
                untar | rm) sync ;;
                # Warm for all three: what earlier work has evicted from the cache is read again untimed.
                *) "work_$work" "$scratch/$way/root" ;;
            esac
            start=$EPOCHREALTIME
            "work_$work" "$scratch/$way/root"
            end=$EPOCHREALTIME
            echo "$((${end/./} - ${start/./}))" >>"$scratch/$way/$work"
        done
    done
done
declare -A figure
for way in "${ways[@]}"; do
    for work in find tar read untar rm; do
        figure[$way.$work]=$(median "$scratch/$way/$work")
    done
done

printf '%-28s %10s %15s %10s %12s %20s\n' "" kernel fuse-overlayfs msb-mount "vs kernel" "vs fuse-overlayfs"
while read -r work words; do
    awk -v words="$words" -v k="${figure[kernel.$work]}" -v f="${figure[fuse_overlayfs.$work]}" -v m="${figure[msb.$work]}" 'BEGIN {
        printf "%-28s %10.3f %15.3f %10.3f %11.2fx %19.2fx\n", words, k / 1e6, f / 1e6, m / 1e6, k / m, f / m
    }'
done <<EOF
find find -printf, warm
tar tar of /usr and /etc, warm
read read $size MiB, warm
untar untar /usr
rm rm -r of it
EOF
echo "(ratios: how many times faster than the other msb-mount is)"
