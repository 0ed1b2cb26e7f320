#!/usr/bin/env bash
# What a volume costs its guest: metadata and throughput of the same tree in a shared root, as a volume, and as a volume whose
# virtiofsd has its default caching. Seconds by the guest's clock, medians. Nothing passes or fails.
#
#   tests/bench-volume.sh [ROUNDS]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH=$here/../target/release:$PATH
rounds=${1:-3}
export MSB_VMM=qemu
# shellcheck source-path=SCRIPTDIR
source "$here/bench.bash"
bench_setup
cd "$work"

files=100 mib=64
[ -z "${BENCH_SMOKE:-}" ] || files=5 mib=1
tree=root/tree
mkdir -p "$tree"
for dir in {1..20}; do
    mkdir -p "$tree/small/$dir"
    for ((n = 0; n < files; n++)); do head -c "$((n * 97))" /dev/zero >"$tree/small/$dir/$n"; done
done
head -c "${mib}M" /dev/urandom >"$tree/large"
cp -a "$tree" volume
cp -a "$tree" defaults
# msb-boot sets the caching of QEMU's virtiofsd by its path, and leaves that of others as it is.
server=$(PATH=$PATH:/usr/lib/qemu:/usr/libexec command -v virtiofsd)
mkdir elsewhere
cp "$server" elsewhere/virtiofsd

ways=(share volume defaults)
up() {
    case $1 in
        share) msb-boot -r record.json --name share --timeout 300 ;;
        volume) msb-boot -r record.json --name volume --timeout 300 -v "$work/volume:/tree" ;;
        defaults) PATH=$work/elsewhere:$PATH msb-boot -r record.json --name defaults --timeout 300 -v "$work/defaults:/tree" ;;
    esac >"$1.json" 2>"$1.err"
}

# shellcheck disable=SC2016 # the guest's shells expand it
works=(
    "list $((20 * files)) files with their attributes, cold" 'ls -lR /tree/small >/dev/null'
    'list them, warm' 'ls -lR /tree/small >/dev/null'
    'read them all, cold' 'tar -c -f - -C /tree small | cat >/dev/null'
    'read them all, warm' 'tar -c -f - -C /tree small | cat >/dev/null'
    "read $mib MiB, cold" 'dd if=/tree/large of=/dev/null bs=1M 2>/dev/null'
    "read $mib MiB, warm" 'dd if=/tree/large of=/dev/null bs=1M 2>/dev/null'
    'open and read one file 200 times' 'n=0; while [ $n -lt 200 ]; do read line </tree/small/1/3; n=$((n + 1)); done'
    'create 300 files' 'mkdir /tree/new; cd /tree/new; n=0; while [ $n -lt 300 ]; do echo x >$n; n=$((n + 1)); done; cd /'
    'remove them' 'rm -r /tree/new'
    "write $mib MiB and sync it" 'dd if=/dev/zero of=/tree/big bs=1M count='"$mib"' conv=fsync 2>/dev/null; rm /tree/big'
)
[ -z "${BENCH_SMOKE:-}" ] || works=("${works[@]:0:2}" "${works[@]:18}")
for way in "${ways[@]}"; do up "$way" || { cat "$way.err" >&2; exit 1; }; done
for ((turn = 0; turn < rounds; turn++)); do
    for ((place = 0; place < ${#works[@]}; place += 2)); do
        # One work after the other, in each way in turn: a machine may be half as fast minutes later.
        for way in "${ways[@]}"; do
            case ${works[place]} in
                *cold) msb-exec -n -r "$way.json" -- sh -c 'sync; echo 3 >/proc/sys/vm/drop_caches' ;;
            esac
            # shellcheck disable=SC2016
            msb-exec -n -r "$way.json" -- sh -c 'read a _ </proc/uptime; eval "$1"; read b _ </proc/uptime; echo $a $b' sh "${works[place + 1]}" |
                awk '{ printf "%d\n", ($2 - $1) * 1000 }' >>"$way.$place"
        done
    done
done
printf '%-46s %8s %8s %8s %18s\n' "milliseconds (medians of $rounds)" share volume defaults 'volume to defaults'
for ((place = 0; place < ${#works[@]}; place += 2)); do
    printf '%-46s' "${works[place]}"
    for way in "${ways[@]}"; do printf ' %8d' "$(bench_median <"$way.$place")"; done
    printf ' %18s\n' "$(awk -v v="$(bench_median <"volume.$place")" -v d="$(bench_median <"defaults.$place")" 'BEGIN { printf "%.2f", (d > 0 ? v / d : 0) }')"
done
for way in "${ways[@]}"; do bench_kill "$way.json"; done
