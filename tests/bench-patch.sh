#!/usr/bin/env bash
# What msb-patch costs: ten thousand text operations against a loop of openat, write and close; one operation from a cold start
# on an empty upper and on a large one, against umoci insert and cp; large copies against cp, with the most memory that was taken. Turn by turn, medians.
#
#   tests/bench-patch.sh [ROUNDS [TREE]]        TREE: what copy_dir copies, /usr by default
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/target/release:$PATH:/usr/sbin:/sbin
rounds=${1:-7} tree=${2:-/usr}
# shellcheck source-path=SCRIPTDIR/..
source tests/bench.bash
source tests/image.bash
bench_setup
TIMEFORMAT='%3R %3U %3S'
layout=$(tiny_image)

# cost NAME COMMAND…: appends "wall cpu" in milliseconds to $work/NAME.
cost() {
    local name=$1 took
    shift
    took=$({ time "$@" >/dev/null 2>"$work/words"; } 2>&1) || { cat "$work/words" >&2; return 1; }
    awk '{ print $1 * 1000, ($2 + $3) * 1000 }' <<<"$took" >>"$work/$name"
}

# median NAME COLUMN
median() { awk -v column="$2" '{ print $column }' "$work/$1" | bench_median; }

row() { printf '%-46s %10s %10s\n' "$@"; }

# What is made: small files, and the large one, in MiB.
files=10000 large_mib=1024
[ -z "${BENCH_SMOKE:-}" ] || files=100 large_mib=16

cc -O2 -o "$work/files" tests/bench-files.c
mkdir "$work/image"
msb-pull -q "oci:$layout:latest" >"$work/image.json"
cd "$work"

# Each turn has a file system of its own: ext4 is slow to make files for a while after many were removed.
# turn NAME COMMAND…
turn() {
    local name=$1
    shift
    rm -f disk
    truncate -s 12G disk
    mke2fs -q -t ext4 disk
    mount -o loop disk fresh
    sync
    cost "$name" "$@"
    umount fresh
}
mkdir fresh
trap 'umount -q "$work/fresh" || true; rm -rf "$work"' EXIT

echo "-- $files text operations, $rounds rounds"
for ((n = 0; n < files; n++)); do printf '{"op":"text","path":"/etc/many/f%d","content":"hello"}\n' "$n"; done >many.jsonl
for ((round = 0; round < rounds; round++)); do
    turn loop env -C fresh "$work/files" "$files"
    # shellcheck disable=SC2016 # the inner shell's own
    turn synced env -C fresh bash -c '"$1" "$2" && sync -f .' - "$work/files" "$files"
    turn many msb-patch -r image.json -f many.jsonl --upper "$work/fresh/upper"
done
row '' 'ms' 'CPU ms'
row 'openat, write, close' "$(median loop 1)" "$(median loop 2)"
row 'the same and sync' "$(median synced 1)" "$(median synced 2)"
row 'msb-patch' "$(median many 1)" "$(median many 2)"
awk -v n="$files" -v a="$(median many 2)" -v b="$(median loop 2)" 'BEGIN { printf "over the files themselves, an operation: %.1f microseconds of CPU\n", (a - b) * 1000 / n }'

echo "-- one text operation from a cold start, $rounds rounds"
echo '{"op":"text","path":"/etc/motd","content":"hello"}' >one.jsonl
echo hello >one
cp -a "$layout" layout
for ((round = 0; round < rounds; round++)); do
    cost cp cp one "$work/copy-$round"
    cost one msb-patch -r image.json -f one.jsonl --upper "$work/one-$round"
    cost umoci umoci insert --image layout:latest one "/etc/motd-$round"
done
mkdir tree
for ((n = 0; n < files * 3; n++)); do
    ((n % 100)) || mkdir "tree/$n"
    echo "$n" >"tree/$((n / 100 * 100))/$n"
done
echo '{"op":"copy_dir","src":"tree","dst":"/srv"}' | msb-patch -q -r image.json -f - --upper "$work/grown" -o grown.json
for ((round = 0; round < rounds; round++)); do
    printf '{"op":"text","path":"/etc/motd","content":"%s","replace":true}\n' "$round" >change.jsonl
    cost on-large msb-patch -r grown.json -f change.jsonl
done
row '' 'ms' 'CPU ms'
row "on an upper of $((files * 3)) files" "$(median on-large 1)" "$(median on-large 2)"
for name in cp one umoci; do row "$name" "$(median "$name" 1)" "$(median "$name" 2)"; done

echo "-- copies, $rounds rounds"
# peak NAME COMMAND…: the most memory that it had, in MiB.
peak() {
    python3 -c 'import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1))' "$@"
}
head -c "${large_mib}M" /dev/urandom >large
echo '{"op":"copy_file","src":"large","dst":"/large"}' >large.jsonl
jq -nc --arg src "$tree" '{op: "copy_dir", src: $src, dst: "/copy"}' >tree.jsonl
# shellcheck disable=SC2016 # the inner shell's own
for ((round = 0; round < (rounds + 1) / 2; round++)); do
    turn cp-large bash -c 'cp --reflink=auto large fresh/copy && sync -f fresh'
    turn our-large msb-patch -r image.json -f large.jsonl --upper "$work/fresh/upper"
    turn cp-tree bash -c 'cp -a "$1" fresh/copy && sync -f fresh' - "$tree"
    turn our-tree msb-patch -r image.json -f tree.jsonl --upper "$work/fresh/upper"
done
row '' 'ms' 'CPU ms'
row "cp --reflink=auto of $large_mib MiB, sync" "$(median cp-large 1)" "$(median cp-large 2)"
row "copy_file of $large_mib MiB" "$(median our-large 1)" "$(median our-large 2)"
row "cp -a $tree, sync" "$(median cp-tree 1)" "$(median cp-tree 2)"
row "copy_dir of $tree" "$(median our-tree 1)" "$(median our-tree 2)"
row 'most memory, MiB: copy_file, copy_dir' "$(peak msb-patch -r image.json -f large.jsonl)" "$(peak msb-patch -n -r image.json -f tree.jsonl)"
