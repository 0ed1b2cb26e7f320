#!/bin/bash
# What a mount costs: the same work through the kernel's overlayfs, fuse-overlayfs and msb-mount, on a Debian root, in one
# run. Each figure is the median of RUNS (default 9) in seconds; the last columns are msb-mount's time divided by the other's.
#
#   tests/bench-mount.sh [ROOT]      ROOT: an unpacked root file system [default: the demo image's]
#
# ROWS: the rows to measure [default: all]. BEFORE: another msb-mount, which is measured in place of fuse-overlayfs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH=$here/../target/release:$PATH
runs=${RUNS:-9}
read -ra rows <<<"${ROWS:-find tar read untar rm lower create list empty move layers user}"
scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/msb-bench-mount.XXXXXX")
# Another user must reach it.
chmod 755 "$scratch"
export MSB_HOME=$scratch/home

cleanup() {
    for mount in "$scratch"/*/{root,new} "$scratch"/tmpfs/*/root; do
        umount "$mount" 2>/dev/null || true
    done
    # The FUSE servers may still be ending.
    umount -l "$scratch/tmpfs" 2>/dev/null || true
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
many=10000 dirs=2000 layers=40 size=512 written=100
[ -z "${BENCH_SMOKE:-}" ] || many=20 dirs=20 layers=3 size=16 written=1

mkdir "$scratch/big" "$scratch/tmpfs"
head -c "${size}M" /dev/zero >"$scratch/big/large"
tar -C "$lower" -cf "$scratch/usr.tar" usr
mount -t tmpfs tmpfs "$scratch/tmpfs"
cc -O2 -o "$scratch/files" "$here/bench-files.c"
# Layers that have the same directories, and files of their own in them.
stack=
for ((layer = 0; layer < layers; layer++)); do
    mkdir -p "$scratch/layer$layer"/{a,b,c}/{d,e}
    touch "$scratch/layer$layer"/{a,b,c}/{d,e}/"$layer"-{1..20}
    stack+=${stack:+:}$scratch/layer$layer
done

# mounted_WAY LOWERS DIR POINT: mounts layers and the upper DIR/upper on POINT.
mounted_kernel() { mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$3"; }
mounted_fuse_overlayfs() { fuse-overlayfs -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$3" 2>/dev/null; }
mounted_msb() {
    jq -nc --arg lowers "$1" --arg dir "$2" \
        '{msb: 1, rootfs: {kind: "layers", lower: ($lowers / ":")}, upper: {dir: ($dir + "/upper"), work: ($dir + "/work")}}' |
        "${msb_mount:-msb-mount}" "$3" >/dev/null
}
mounted_before() { msb_mount=$BEFORE mounted_msb "$@"; }

# mount_new WAY LOWERS: mounts layers with a new upper on $dir/new.
mount_new() {
    mkdir -p "$dir"/new "$dir"/once/{upper,work}
    "mounted_$1" "$2" "$dir/once" "$dir/new"
}
unmount_new() {
    umount "$dir/new"
    rm -rf "$dir/once"
}

# The functions of a row: before_ROW and after_ROW are not timed, work_ROW is. $dir has the mounts.
warm() { "work_$row"; }
before_find() { warm; }
work_find() { find "$dir/root" -printf '%s %m\n' >/dev/null; }
before_tar() { warm; }
work_tar() { tar -C "$dir/root" -cf - usr etc | cat >/dev/null; }
before_read() { warm; }
work_read() { dd if="$dir/root/large" of=/dev/null bs=1M status=none; }
# Otherwise the dirty pages of one run are written during the next.
before_untar() { sync -f "$scratch"; }
work_untar() { mkdir "$dir/root/new" && tar -C "$dir/root/new" -xf "$scratch/usr.tar"; }
before_rm() { sync -f "$scratch"; }
work_rm() { rm -r "$dir/root/new"; }
before_lower() {
    mount_new "$way" "$lower"
    sync -f "$scratch"
}
work_lower() { rm -rf "$dir/new/usr"; }
after_lower() { unmount_new; }
work_create() { mkdir "$tmpfs/root/many" && cd "$tmpfs/root/many" && "$scratch/files" "$many"; }
work_list() { find "$tmpfs/root/many" -printf '%s %m\n' >/dev/null; }
work_empty() { rm -r "$tmpfs/root/many"; }
work_move() {
    python3 -c '
import os, sys
os.chdir(sys.argv[1])
for i in range(int(sys.argv[2])):
    os.mkdir(f"a{i}")
for i in range(int(sys.argv[2])):
    os.rename(f"a{i}", f"b{i}")' "$tmpfs/root" "$dirs"
}
after_move() { rm -r "$tmpfs"/root/b*; }
before_layers() { mount_new "$way" "$stack"; }
work_layers() { find "$dir/new" -printf '%s %m\n' >/dev/null; }
after_layers() { unmount_new; }
before_user() { install -d -m 1777 "$tmpfs/root/open"; }
work_user() {
    setpriv --reuid=1000 --regid=1000 --clear-groups \
        dd if=/dev/zero of="$tmpfs/root/open/file" bs=4k count=$((written * 256)) status=none
}
after_user() { rm -r "$tmpfs/root/open"; }

declare -A labels=(
    [find]="find -printf, warm"
    [tar]="tar of /usr and /etc, warm"
    [read]="read $size MiB, warm"
    [untar]="untar /usr"
    [rm]="rm -r of it"
    [lower]="rm -r of /usr of a layer"
    [create]="create $many files on a tmpfs"
    [list]="first find of them"
    [empty]="rm -r of them"
    [move]="mkdir and rename of $dirs there"
    [layers]="find in $layers layers, first"
    [user]="4 KiB writes of a user there"
)

# median FILE
median() { sort -n "$1" | awk '{line[NR] = $1} END {print line[int((NR + 1) / 2)]}'; }
is_made() { declare -F "$1" >/dev/null; }

ways=(kernel fuse_overlayfs msb)
[ -z "${BEFORE:-}" ] || ways[1]=before
for way in "${ways[@]}"; do
    for dir in "$scratch/$way" "$scratch/tmpfs/$way"; do
        mkdir -p "$dir"/{upper,work,root}
        "mounted_$way" "$scratch/big:$lower" "$dir" "$dir/root"
    done
done
# In turn, so that other load on the machine affects all three.
for ((run = 0; run < runs; run++)); do
    for row in "${rows[@]}"; do
        for way in "${ways[@]}"; do
            dir=$scratch/$way tmpfs=$scratch/tmpfs/$way
            if is_made "before_$row"; then "before_$row"; fi
            start=$EPOCHREALTIME
            "work_$row"
            end=$EPOCHREALTIME
            cd "$scratch"
            echo "$((${end/./} - ${start/./}))" >>"$scratch/$way.$row"
            if is_made "after_$row"; then "after_$row"; fi
        done
    done
done

printf '%-32s %10s %15s %10s %12s %20s\n' "" "${ways[@]//_/-}" "vs kernel" "vs ${ways[1]//_/-}"
for row in "${rows[@]}"; do
    figures=()
    for way in "${ways[@]}"; do
        figures+=("$(median "$scratch/$way.$row")")
    done
    awk -v label="${labels[$row]}" -v k="${figures[0]}" -v f="${figures[1]}" -v m="${figures[2]}" 'BEGIN {
        printf "%-32s %10.3f %15.3f %10.3f %11.2fx %19.2fx\n", label, k / 1e6, f / 1e6, m / 1e6, m / k, m / f
    }'
done
echo "(ratios: msb-mount's time divided by the other's)"
