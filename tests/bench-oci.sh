#!/usr/bin/env bash
# Containers of podman with msb-oci, against crun in the same run, and against msb-run without an engine: the time of a run, of an exec and
# from a kill to the end, 20 MB through a published port, and the memory of an idle container. Nothing passes or fails.
#
#   tests/bench-oci.sh [ROUNDS]
#
# The last line has what a container costs the host, as JSON: the input of tools/cluster-limits.py.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
PATH=$here/../target/release:$PATH
export MSB_VMM=${MSB_VMM:-qemu} MSB_NETWORK=none
BATS_FILE_TMPDIR=$(mktemp -d /tmp/msb-bench.XXXXXX)
rounds=${1:-5} megabytes=20
[ -z "${BENCH_SMOKE:-}" ] || megabytes=1
# shellcheck source-path=SCRIPTDIR
source "$here/oci.bash"
# shellcheck disable=SC2317 # oci.bash calls it
skip() { echo "bench-oci: $*" >&2; exit 1; }
trap 'status=$?; set +e; oci_stop; rm -rf "$BATS_FILE_TMPDIR"; exit $status' EXIT
oci_start
head -c "${megabytes}M" /dev/urandom >"$oci/file"

# ms COMMAND…: prints its time in milliseconds.
ms() {
    local start=${EPOCHREALTIME/./}
    "$@" >/dev/null 2>"$oci/errors" </dev/null || { cat "$oci/errors" >&2; return 1; }
    echo $(((${EPOCHREALTIME/./} - start) / 1000))
}

killed() { podman_with "$1" kill idle && podman_with "$1" wait idle; }
fetched() { in_ns python3 -c 'import sys, urllib.request as u; sys.exit(len(u.urlopen(sys.argv[1], timeout=300).read()) != int(sys.argv[2]))' "$@"; }

# memory: the bytes that the cgroup of the container "idle" is charged with.
memory() {
    # Cgroups of other containers may be removed meanwhile.
    { find /sys/fs/cgroup -type d -name "libpod-$(P inspect idle --format '{{.Id}}')" \
        -exec sh -c 'cat "$1/memory.usage_in_bytes" "$1/memory.current" 2>/dev/null' - {} \; 2>/dev/null || true; } | sort -n | tail -n 1
}

networks=
[ ! -x /usr/lib/podman/netavark ] || [ ! -e /dev/net/tun ] || networks=1
for ((round = 0; round < rounds; round++)); do
    for runtime in crun msb; do
        with() { podman_with "$runtime" "$@"; }
        ms with run --rm --network none localhost/bb true >>"$oci/$runtime.run"
        with run -d --name idle --network none -m 256m localhost/bb sleep 1000000 >/dev/null
        ms with exec idle true >>"$oci/$runtime.exec"
        memory >>"$oci/$runtime.memory"
        if [ $runtime = msb ]; then
            pid=$(with inspect idle --format '{{.State.Pid}}')
            vm=$(jq -r .vm.name "/run/msb-oci/$(with inspect idle --format '{{.Id}}')/vm.json")
            mapfile -t processes < <({ "$here/vm-processes.pl" "/run/msb/$vm"; echo "$pid"; pgrep -f "msb-exec.*/run/msb-oci/" || true; } | sort -u)
            descriptors=0 threads=0
            for process in "${processes[@]}"; do
                descriptors=$((descriptors + $(find "/proc/$process/fd" 2>/dev/null | wc -l)))
                threads=$((threads + $(find "/proc/$process/task" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l)))
            done
        fi
        ms killed $runtime >>"$oci/$runtime.kill"
        with rm -f -t 0 idle >/dev/null
        if [ -n "$networks" ]; then
            with run -d --name web -p 8080:80 -v "$oci/file:/data/file" localhost/bb httpd -f -p 80 -h /data >/dev/null
            until fetched http://127.0.0.1:8080/file $((megabytes << 20)) 2>/dev/null; do with inspect web >/dev/null; done
            ms fetched http://127.0.0.1:8080/file $((megabytes << 20)) >>"$oci/$runtime.port"
            with rm -f -t 0 web >/dev/null
        fi
    done
    ms msb-run -q -m 256M "$oci/bb" -- true >>"$oci/msb-run.run"
done

median() { sort -n "$oci/$1" 2>/dev/null | awk '{ v[NR] = $1 } END { if (NR) print v[int((NR + 1) / 2)]; else print "-" }'; }
row() { printf '%-38s %10s %10s %8s\n' "$1" "$2" "$3" "$(awk -v a="$2" -v b="$3" 'BEGIN { if (a > 0 && b > 0) printf "%.2f", b / a; else print "-" }')"; }
printf '%-38s %10s %10s %8s\n' "medians of $rounds, $MSB_VMM" crun msb-oci ratio
row 'podman run --rm true, ms' "$(median crun.run)" "$(median msb.run)"
row 'podman exec true, ms' "$(median crun.exec)" "$(median msb.exec)"
row 'podman kill to the end, ms' "$(median crun.kill)" "$(median msb.kill)"
row "$megabytes MB through a published port, ms" "$(median crun.port)" "$(median msb.port)"
row 'memory of an idle container, KiB' "$(($(median crun.memory) / 1024))" "$(($(median msb.memory) / 1024))"
printf '%-38s %10s %10s %8s\n' '' msb-run msb-oci ratio
row 'run of true, ms' "$(median msb-run.run)" "$(median msb.run)"
jq -nc --argjson memory "$(($(median msb.memory) >> 20))" --argjson processes "${#processes[@]}" --argjson threads "$threads" \
    --argjson descriptors "$descriptors" --argjson create "$(median msb.run)" \
    '{memory_mib: $memory, processes: $processes, threads: $threads, descriptors: $descriptors, create_ms: $create}'
