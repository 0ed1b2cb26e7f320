#!/usr/bin/env bash
# msb-pack of an upper with 30 000 files and 1 GB against umoci repack and tar | pigz, its push to a registry on loopback against skopeo
# copy, its disk of a root of 300 MB against mke2fs -d, and the most memory that it takes. Turn by turn, medians.
#
#   tests/bench-pack.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/target/release:$PATH:/usr/sbin:/sbin
rounds=${1:-3}
# shellcheck source-path=SCRIPTDIR/..
source tests/bench.bash
source tests/image.bash
source tests/registry.bash
bench_setup
trap 'registry_stop "$work/registry"; rm -rf "$work"' EXIT
files=30000 mib=1024 root_mib=300
[ -z "${BENCH_SMOKE:-}" ] || files=300 mib=8 root_mib=8
layout=$(tiny_image)
cd "$work"

# tree DIR FILES MIB: files of one size, half of whose bytes compress.
tree() {
    python3 - "$@" <<'PYTHON'
import os, sys
root, files, size = sys.argv[1], int(sys.argv[2]), (int(sys.argv[3]) << 20) // int(sys.argv[2])
for number in range(files):
    if number % 100 == 0:
        os.makedirs(f"{root}/{number}")
    with open(f"{root}/{number // 100 * 100}/{number}", "wb") as file:
        file.write(os.urandom(size // 2) + b"text " * (size // 10))
PYTHON
}

# cost NAME COMMAND…: appends the milliseconds that a command takes to the file NAME.
cost() {
    local name=$1 start
    shift
    # Nothing that was written before is written during the measurement.
    sync -f .
    start=$(bench_now)
    "$@" >words 2>&1 || { cat words >&2; return 1; }
    echo $((($(bench_now) - start) / 1000)) >>"$name"
}

# row NAME OTHER AIM
row() {
    local ours other
    ours=$(bench_median <"$1") other=$(bench_median <"$2")
    printf '%-12s %8d ms   %-16s %8d ms   ratio %5.2f (aim %s)\n' "$1" "$ours" "$2" "$other" "$(awk -v a="$ours" -v b="$other" 'BEGIN { print a / b }')" "$3"
}

tree many "$files" "$mib"
msb-pull -q "oci:$layout:latest" -o image.json
echo '{"op":"copy_dir","src":"many","dst":"/srv"}' | msb-patch -q -r image.json -f - -o patched.json
upper=$(jq -r .upper.dir patched.json)
for ((round = 0; round < rounds; round++)); do
    rm -rf out bundle umoci
    cp -r "$layout" umoci
    umoci unpack --image umoci:latest bundle 2>unpacked
    cp -a "$upper/." bundle/rootfs/
    cost pack msb-pack -q -r patched.json oci:out:v1 -o new.json
    cost repack umoci repack --image umoci:new bundle
    cost layer msb-pack -q -r patched.json layer:layer.tar.gz -o layer.json
    # shellcheck disable=SC2016 # the inner shell's own
    cost tar-pigz bash -c 'tar -C "$1" -c . | pigz >tar.gz' - "$upper"
done
row pack repack 0.5
row layer tar-pigz 1.1

# to_registry NAME COMMAND… IMAGE: the cost of a push of IMAGE to a registry that has no blobs yet.
to_registry() {
    registry_start registry
    cost "${@:1:$#-1}" "docker://$registry_host/${*: -1}"
    registry_stop registry
    rm -rf registry
}
msb-pull -q oci:out:v1 -o pulled.json
for ((round = 0; round < rounds; round++)); do
    to_registry push msb-pack -q -r pulled.json -o pushed.json --plain-http image:v1
    to_registry skopeo skopeo copy -q --dest-tls-verify=false oci:out:v1 image:v1
done
row push skopeo 1.1

tree root-of-disk/srv $((files / 10)) "$root_mib"
jq -nc --arg root "$work/root-of-disk" '{msb: 1, rootfs: {kind: "dir", lower: [$root]}}' >root.json
for ((round = 0; round < rounds; round++)); do
    rm -f ours.raw theirs.raw
    cost raw msb-pack -q -r root.json raw:ours.raw -o raw.json
    # shellcheck disable=SC2016 # the inner shell's own
    cost mke2fs bash -c 'truncate -s "$1" theirs.raw && mke2fs -q -t ext4 -d root-of-disk theirs.raw' - "$(stat -c %s ours.raw)"
done
row raw mke2fs 1.2

rm -rf out
python3 -c 'import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print("most memory, MiB:", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10, "(aim 64)")' \
    msb-pack -q -r patched.json oci:out:v1 -o new.json
