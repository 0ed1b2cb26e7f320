#!/usr/bin/env bats
# Benchmarks have no pass or fail, so one that no longer runs would go unnoticed. Each runs once here, with little to
# do, and must print its whole table.

# shellcheck disable=SC2154 # bats sets variables
bats_require_minimum_version 1.5.0

setup() {
    export BENCH_SMOKE=1 MSB_VMM=qemu
    cd "$BATS_TEST_DIRNAME/.." || return
}

@test "bench-boot, bench-run, bench-exec and bench-shutdown run" {
    run --separate-stderr tests/bench-boot.sh 1
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ ${lines[-1]} == 'msb-boot to an agent that answers '* ]]
    run --separate-stderr tests/bench-run.sh 1
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ ${lines[-1]} == 'msb run '* ]]
    run --separate-stderr tests/bench-exec.sh 2 1
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ $output == *"the agent's memory: idle now "* ]]
    run --separate-stderr tests/bench-shutdown.sh 1 busybox
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ ${lines[-1]} == 'busybox '* ]]
}

@test "bench-snapshot runs" {
    run --separate-stderr tests/bench-snapshot.sh 1 1
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ ${lines[-2]} == 'ten at once '* && ${lines[-1]} == 'memory of ten '* ]]
}

@test "bench-pull, bench-patch, bench-pack and bench-mount run" {
    RUNS=1 run --separate-stderr tests/bench-pull.sh
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ ${lines[-1]} == 'an image that is there: '* ]]
    run --separate-stderr tests/bench-patch.sh 1 "$BATS_TEST_DIRNAME"
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ ${lines[-1]} == 'most memory, MiB: copy_file, copy_dir '* ]]
    run --separate-stderr tests/bench-pack.sh 1
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ ${lines[-1]} == 'most memory, MiB: '* ]]
    RUNS=1 run --separate-stderr tests/bench-mount.sh
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ $output == *'rm -r of it '* ]]
}

@test "bench-block-krun runs, on QEMU too" {
    run --separate-stderr tests/bench-block-krun.sh 1 block
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ ${lines[-1]} == 'write 64 MiB and sync it '* ]]
}

@test "bench-volume runs" {
    run --separate-stderr tests/bench-volume.sh 1
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ ${lines[-1]} == 'write 1 MiB and sync it '* ]]
}

@test "bench-many runs, and leaves nothing" {
    run --separate-stderr tests/bench-many.sh 2
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ ${lines[-1]} == 'nothing is left over' ]]
}

@test "bench-net runs" {
    run --separate-stderr tests/bench-net.sh
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ ${lines[-1]} == 'memory (PSS): passt '* ]]
}

@test "bench-oci runs, and what it prints is the input of the simulation of a node" {
    run --separate-stderr tests/bench-oci.sh 1
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    costs=${lines[-1]}
    jq -e '.memory_mib > 0 and .processes > 0 and .create_ms > 0' <<<"$costs"
    tools/cluster-limits.py --costs <(echo "$costs") | sed -n 's/^a container: //p' |
        jq -e --argjson costs "$costs" '.create_ms == $costs.create_ms and .memory_mib > $costs.memory_mib'
}

@test "the simulation of a node prints what docs/CLUSTERS.md has" {
    node=$(sed -n '/^```json$/,/^```$/p' docs/CLUSTERS.md | grep -v '^```')
    grep '^    [0-9]* created' docs/CLUSTERS.md | sed 's/^ *//' >"$BATS_TEST_TMPDIR/expected"
    [ "$(wc -l <"$BATS_TEST_TMPDIR/expected")" = 4 ]
    tools/cluster-limits.py --node <(echo "$node") --pods | sed -nE 's/^([0-9]+ created) in [0-9.]+ min/\1/p' |
        diff "$BATS_TEST_TMPDIR/expected" -
}

@test "bench-krun runs" {
    target/release/msb-boot --probe | jq -e .vmms.krun.usable || skip "this machine has no usable KVM"
    [ -x target/release/examples/bare-krun ] || skip "bare-krun is not built (make bench-krun builds it)"
    run --separate-stderr tests/bench-krun.sh 1
    [ "$status" -eq 0 ] || { echo "$stderr"; return 1; }
    [[ ${lines[-1]} == 'nothing is left over' ]]
}
