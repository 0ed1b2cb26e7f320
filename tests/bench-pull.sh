#!/usr/bin/env bash
# msb-pull from a registry on loopback against skopeo copy + umoci unpack, podman pull and, where its wheel runs, microsandbox: one layer
# of 100 MB with gzip and the same with zstd, 40 small layers, and a Debian with many packages. Turn by turn, medians. Then the same
# layer inflated by zlib-rs alone, the most memory that a pull takes, and what a pull of an image that is there costs.
#
#   [RUNS=5] tests/bench-pull.sh [IMAGE…]        IMAGE: gzip, zstd, layers, debian; all of them by default
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/target/release:$PATH:/usr/sbin:/sbin
# shellcheck source-path=SCRIPTDIR/..
source tests/bench.bash
# shellcheck source-path=SCRIPTDIR/..
source tests/image.bash
# shellcheck source-path=SCRIPTDIR/..
source tests/registry.bash
# shellcheck source-path=SCRIPTDIR/..
source tests/microsandbox.bash
runs=${RUNS:-5}
# The files of the large layer, each of 32 KiB, and the number of small layers.
files=5000 layers=40
images=(gzip zstd layers debian)
if [ -n "${BENCH_SMOKE:-}" ]; then files=50 layers=4 images=(gzip zstd layers); fi
[ $# = 0 ] || images=("$@")
bench_setup
trap 'registry_stop "$work/registry"; rm -rf "$work"' EXIT
TIMEFORMAT='%3R %3U %3S'

# large_tar FILE: files half of whose bytes compress, as a program's do.
large_tar() {
    python3 - "$1" "$files" <<'PYTHON'
import io, os, sys, tarfile
with tarfile.open(sys.argv[1], "w") as tar:
    for number in range(int(sys.argv[2])):
        entry = tarfile.TarInfo(f"srv/{number // 100}/{number}")
        entry.size = 32768
        tar.addfile(entry, io.BytesIO(os.urandom(20480) + b"text" * 3072))
PYTHON
}

# push NAME REFERENCE: pushes an image that is measured.
push() {
    local number layout=$work/$1/layout
    mkdir "$work/$1"
    case $1 in
        gzip) (cd "$work/$1" && image_from_tars "$work/large.tar") ;;
        zstd)
            [ -d "$work/gzip/layout" ] || (mkdir "$work/gzip" && cd "$work/gzip" && image_from_tars "$work/large.tar")
            # skopeo does not recompress a layer while it pushes, so this is done before.
            skopeo copy -q --dest-compress-format zstd "oci:$work/gzip/layout:latest" "oci:$layout:latest"
            skopeo inspect --raw "oci:$layout:latest" | grep -q 'tar+zstd'
            ;;
        layers)
            for ((number = 0; number < layers; number++)); do
                mkdir -p "$work/$1/$number/usr/lib/package-$number"
                split -b 8K -a 3 <(head -c 400K /dev/urandom) "$work/$1/$number/usr/lib/package-$number/"
                tar -C "$work/$1/$number" -cf "$work/$1/$number.tar" .
            done
            (cd "$work/$1" && image_from_tars $(seq -f %g.tar 0 $((layers - 1))))
            ;;
        debian) layout=$(packages_image) ;;
        *) echo "bench-pull: no image is called \"$1\"" >&2; return 2 ;;
    esac >&2
    skopeo copy -q --dest-tls-verify=false "oci:$layout:latest" "docker://$2"
}

# The ways, each into a directory of its own.
msb_pull() { MSB_HOME=$1 msb-pull -q --plain-http "$2"; }
skopeo_umoci() {
    skopeo copy -q --src-tls-verify=false "docker://$2" "oci:$1/layout:latest"
    umoci unpack --image "$1/layout:latest" "$1/bundle"
}
podman_pull() { podman --root "$1/root" --runroot "$1/run" pull -q --tls-verify=false "$2"; }
microsandbox_pull() { env -u MSB_HOME HOME="$1" "$microsandbox_dir/bin/msb" pull -q --insecure "$2" </dev/null; }
ways=(skopeo_umoci podman_pull) names=('skopeo + umoci' podman)
if [ -z "${BENCH_SMOKE:-}" ] && microsandbox_fetch >/dev/null; then
    ways+=(microsandbox_pull) names+=(microsandbox)
fi

# took COMMAND…: prints its time and its CPU time, in milliseconds.
took() {
    local figures
    figures=$({ time "$@" >"$work/said" 2>&1; } 2>&1) || { cat "$work/said" >&2; return 1; }
    awk '{ print $1 * 1000, ($2 + $3) * 1000 }' <<<"$figures"
}

# median NAME COLUMN
median() { cut -d ' ' -f "$2" "$work/$1.times" | bench_median; }

# ratio A B
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }

registry_start "$work/registry"
large_tar "$work/large.tar"
{
    printf 'ms, and what msb-pull takes of it\tmsb-pull'
    printf '\t%s' "${names[@]}"
    echo
    for image in "${images[@]}"; do
        ref=$registry_host/$image:latest
        push "$image" "$ref"
        sync -f "$work"
        for ((run = 0; run < runs; run++)); do
            for way in msb_pull "${ways[@]}"; do
                # umoci of Debian 12 cannot unpack zstd.
                [ "$image $way" != 'zstd skopeo_umoci' ] || continue
                into=$(mktemp -d "$work/into.XXXXXX")
                took "$way" "$into" "$ref" >>"$work/$image-$way.times"
                # Outside of the time, and written back before the next one.
                umount -q "$into/root/overlay" 2>/dev/null || true
                rm -rf "$into"
                sync -f "$work"
            done
        done
        ours=$(median "$image-msb_pull" 1)
        printf '%s\t%.0f' "$image" "$ours"
        for way in "${ways[@]}"; do
            [ -e "$work/$image-$way.times" ] || { printf '\t-'; continue; }
            other=$(median "$image-$way" 1)
            printf '\t%.0f (%s)' "$other" "$(ratio "$ours" "$other")"
        done
        echo
    done
} | column -t -s $'\t'

# What a pull cannot be faster than: zlib-rs on the same layer, into nothing.
image=${images[0]} ref=$registry_host/${images[0]}:latest
if [ "$image" = gzip ] && [ -x target/release/examples/inflate ]; then
    blob=$(find "$work/gzip/layout/blobs" -size +64k)
    for ((run = 0; run < runs; run++)); do took target/release/examples/inflate "$blob" >>"$work/inflate.times"; done
    echo "the gzip layer by zlib-rs alone: $(median inflate 1) ms ($(ratio "$(median gzip-msb_pull 1)" "$(median inflate 1)"))"
fi
into=$work/kept
memory=$(MSB_HOME=$into command time -f %M msb-pull -q --plain-http "$ref" 2>&1 >/dev/null | tail -n 1)
for ((run = 0; run < runs; run++)); do took msb_pull "$into" "$ref" >>"$work/cached.times"; done
echo "an image that is there: $(median cached 1) ms, $(median cached 2) ms of CPU; most memory of a pull, MiB: $((memory / 1024))"
