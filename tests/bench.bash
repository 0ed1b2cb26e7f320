# shellcheck shell=bash
# What the benchmarks of a VM's start share: a scratch directory ($work) with its own state, a small root and its record
# ($work/record.json), the time, and the table of two ways to a VM.
#
#   source tests/bench.bash; bench_setup; bench_pair "$rounds"; bench_table TITLE OTHER [OURS]
#
# With BENCH_SMOKE set a benchmark does little and its figures mean nothing: tests/t9-bench.bats checks that it still runs.

bench_here=$(realpath "${BASH_SOURCE[0]%/*}")

# bench_setup: makes $work, which is removed when the shell exits. A share for a trivial init is in $work/share.
bench_setup() {
    # vm-processes.pl compares it with paths that the kernel has resolved.
    work=$(realpath "$(mktemp -d "${TMPDIR:-/tmp}/msb-bench.XXXXXX")")
    export MSB_NETWORK=none MSB_HOME=$work/home XDG_RUNTIME_DIR=$work/run MSB_RUN=$work/run/msb
    trap bench_end EXIT
    mkdir "$XDG_RUNTIME_DIR"
    mkdir -p "$work/root"/{bin,dev,etc,proc,root,run,sys,tmp} "$work/share"/{mnt,dev,proc,sys}
    cp "$(command -v busybox)" "$work/root/bin/busybox"
    "$work/root/bin/busybox" --install "$work/root/bin"
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$work/root/etc/passwd"
    jq -nc --arg root "$work/root" '{msb: 1, rootfs: {kind: "dir", lower: [$root]},
        mount: {path: $root, pid: 1, fstype: "none"}}' >"$work/record.json"
}

# bench_end: prints the end of the VMs' logs after a failure, and removes everything.
bench_end() {
    local status=$? mounted dir
    [ "$status" = 0 ] || tail -n 20 "$XDG_RUNTIME_DIR"/msb/*/{ended.json,kernel.log} >&2 2>/dev/null || true
    for dir in "$XDG_RUNTIME_DIR"/msb/*/; do
        [ ! -e "$dir/record.json" ] || msb-stop -t 0 -r "$dir/record.json" >/dev/null 2>&1 || true
    done
    for mounted in "$work"/mnt*; do
        if mountpoint -q "$mounted"; then umount -l "$mounted"; fi
    done
    rm -rf "$work"
    return "$status"
}

# bench_kill RECORD: kills a VM; msb-stop exits 1 then.
bench_kill() { msb-stop -r "$1" -t 0 >/dev/null 2>&1 || [ $? = 1 ]; }

# bench_now: the time, in microseconds.
bench_now() { echo "${EPOCHREALTIME/./}"; }

# bench_pair ROUNDS: runs the functions bare and ours in turn; each prints its milliseconds.
bench_pair() {
    local round
    for ((round = 0; round < $1; round++)); do
        bare >>"$work/bare"
        ours >>"$work/ours"
    done
}

# bench_table TITLE OTHER [OURS]: prints medians, best values and their ratio.
bench_table() {
    local bare ours
    bare=$(bench_median <"$work/bare")
    ours=$(bench_median <"$work/ours")
    printf '%-46s %8s %8s %8s\n' "$1" median best ratio
    printf '%-46s %8d %8d %8s\n' "$2" "$bare" "$(sort -n "$work/bare" | head -n 1)" 1.00
    printf '%-46s %8d %8d %8s\n' "${3:-msb-boot to an agent that answers}" "$ours" "$(sort -n "$work/ours" | head -n 1)" \
        "$(awk -v a="$ours" -v b="$bare" 'BEGIN { printf "%.2f", a / b }')"
}

bench_median() { sort -n | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'; }

# bench_processes RECORD: prints the processes of a VM.
bench_processes() { "$bench_here/vm-processes.pl" "$MSB_RUN/$(jq -r .vm.name "$1")/"; }

# bench_memory MIB RECORD…: prints the host memory in KiB of VMs with MIB each as "host guest": that of the processes, and what the guests
# have touched. A shared page is divided among its users. Under QEMU the guest's memory is a memfd (its translation buffer is as large and
# is not counted as guest); under libkrun it is the large mapping.
bench_memory() {
    local record pid guest=$(($1 * 1024))
    for record in "${@:2}"; do
        for pid in $(bench_processes "$record"); do
            awk -v guest_kib="$guest" '
                /^[0-9a-f]+-[0-9a-f]+ / { is_memfd = $6 ~ "^/memfd:" }
                /^Size:/ { size = $2 }
                /^Pss:/ { if (is_memfd) memfd += $2; else if (size >= guest_kib / 2) large += $2; else host += $2 }
                END { if (memfd) print host + large, memfd; else print host, large + 0 }' "/proc/$pid/smaps"
        done
    done | awk '{ host += $1; guest += $2 } END { printf "%d %d\n", host, guest }'
}

# bench_many COUNT MIB: starts that many VMs at once. Prints how long until all have answered, how much memory they use, and how long until
# all are gone. Fails if something is left.
bench_many() {
    local count=$1 memory=$2 start n pid pids=() host guest left
    start=$(bench_now)
    for ((n = 0; n < count; n++)); do
        msb-boot -r "$work/record.json" --name "many-$n" -m "$memory" --timeout 300 >"$work/many-$n.json" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    pids=()
    for ((n = 0; n < count; n++)); do
        msb-exec -r "$work/many-$n.json" -- hostname >"$work/answer-$n" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    printf '%-46s %8d ms\n' 'until all have answered' $((($(bench_now) - start) / 1000))
    for ((n = 0; n < count; n++)); do [ "$(cat "$work/answer-$n")" = "many-$n" ]; done
    read -r host guest < <(bench_memory "$memory" "$work"/many-*.json)
    printf '%-46s %8.1f MiB\n' 'host processes, their own' "$(awk -v k="$host" 'BEGIN { print k / 1024 }')"
    printf '%-46s %8.1f MiB\n' "the guests' memory that was touched" "$(awk -v k="$guest" 'BEGIN { print k / 1024 }')"
    start=$(bench_now)
    for ((n = 0; n < count; n++)); do msb-stop -r "$work/many-$n.json" >/dev/null 2>&1 & done
    wait
    printf '%-46s %8d ms\n' 'until all have stopped' $((($(bench_now) - start) / 1000))
    left=$("$bench_here/vm-processes.pl" "$MSB_RUN/"; find "$XDG_RUNTIME_DIR" -mindepth 2; grep "$work" /proc/self/mountinfo || true)
    if [ -n "$left" ]; then echo "left over: $left" >&2; return 1; fi
    echo "nothing is left over"
}
