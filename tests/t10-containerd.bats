#!/usr/bin/env bats
# containerd with msb-oci, through ctr and the runc shim, compared with runc.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats sets variables
bats_require_minimum_version 1.5.0

setup_file() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    oci_start
    oci_containerd
}

setup() { source "$BATS_TEST_DIRNAME/oci.bash"; }

teardown_file() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    kill "$oci_containerd"
    oci_stop
}

# with RUNTIME ID FLAGS… -- COMMAND…: ctr run.
with() {
    local runtime=$1 id=$2
    shift 2
    local flags=()
    while [ "$1" != -- ]; do flags+=("$1"); shift; done
    K run "${flags[@]}" --runc-binary "$runtime" localhost/bb:latest "$id" "${@:2}"
}

@test "the snippets for podman and containerd name the runtime, and both programs read them" {
    [ "$(P info --format '{{.Host.OCIRuntime.Name}}')" = msb ]
    { containerd config default; sed "s|@PREFIX@|/usr|" "$oci_here/../msb-oci/dist/containerd.toml"; } >"$oci/merged.toml"
    merged=$(containerd -c "$oci/merged.toml" config dump)
    [[ $merged == *'BinaryName = "/usr/bin/msb-oci"'* && $merged == *'containerd.runtimes.runc]'* ]]
    python3 -c 'import sys; [print(line) for line in open(sys.argv[1]) if line.startswith("handler: msb")]' \
        "$oci_here/../msb-oci/dist/runtimeclass.yaml" | grep -q msb
}

# bats test_tags=slow
@test "run, exec, pause, ps, kill and rm are as with runc" {
    for runtime in "$(command -v runc)" "$oci_here/../target/release/msb-oci"; do
        status=0
        output=$(with "$runtime" one --rm -- sh -c 'echo out; echo err >&2; exit 7' 2>"$oci/err") || status=$?
        [ "$status" = 7 ]
        [ "$output" = out ]
        grep -qx err "$oci/err"
        with "$runtime" two -d -- sleep 1000
        status=0
        output=$(K task exec --exec-id x two sh -c 'cat; exit 3' <<<in) || status=$?
        [ "$status" = 3 ]
        [ "$output" = in ]
        status=0
        output=$(K task exec --exec-id y two nonexistent 2>&1) || status=$?
        [ "$status" = 1 ]
        [[ $output == *nonexistent*not\ found* ]]
        # The death of an exec's process ends its command.
        K task exec -d --exec-id z two sleep 2000
        K task kill --exec-id z -s KILL two
        until ! K task exec --exec-id w two ps | grep -q 'sleep 2000'; do sleep 0.1; done
        K task pause two
        K task ls | grep -q 'two.*PAUSED'
        K task resume two
        K task ps two | grep -q "$(K task ls | awk '$1 == "two" { print $2 }')"
        K task metrics two | grep -q memory
        K task kill -a -s KILL two
        until K task ls | grep -q 'two.*STOPPED'; do sleep 0.1; done
        K task rm two || true
        K container rm two
        status=0
        output=$(with "$runtime" three --rm -- nonexistent 2>&1) || status=$?
        [ "$status" = 1 ]
        [[ $output == *nonexistent*not\ found* ]]
        K container rm three 2>/dev/null || true
    done
    [ -z "$(find /run/msb -maxdepth 1 -name 'oci-two-*' -o -maxdepth 1 -name 'oci-one-*')" ]
}
