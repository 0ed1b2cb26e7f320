#!/usr/bin/env bash
# msb-pull of a Debian image from a registry on loopback, against skopeo copy and umoci unpack.
#
#   [RUNS=5] tests/bench-pull.sh
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
PATH=$here/../target/release:$PATH
# shellcheck source-path=SCRIPTDIR
source "$here/image.bash"
# shellcheck source-path=SCRIPTDIR
source "$here/registry.bash"

work=$(mktemp -d)
trap 'registry_stop "$work/registry"; rm -rf "$work"' EXIT
image=demo_image
[ -z "${BENCH_SMOKE:-}" ] || image=tiny_image
layout=$("$image")
registry_start "$work/registry"
ref=$registry_host/demo:latest
skopeo copy --quiet --dest-tls-verify=false "oci:$layout:latest" "docker://$ref"

# A new directory for each run, and nothing is deleted in between: ext4 is slow to reuse inodes that were freed recently.
# shellcheck disable=SC2016 # the inner shell's
hyperfine --style none --warmup 1 --runs "${RUNS:-5}" --export-json "$work/times.json" \
    --command-name msb-pull 'MSB_HOME=$(mktemp -d -p '"$work"') msb-pull -q --plain-http '"$ref" \
    --command-name 'skopeo copy + umoci unpack' 'd=$(mktemp -d -p '"$work"') && skopeo copy -q --src-tls-verify=false docker://'"$ref"' oci:$d/layout:latest && umoci unpack --image $d/layout:latest $d/bundle' \
    >/dev/null 2>&1
jq -r '.results | (.[1].median / .[0].median) as $ratio | (.[] | "\(.command)\t\(.median * 1000 | round) ms"),
    "ratio\t\($ratio * 100 | round / 100)"' "$work/times.json" | column -t -s $'\t'
