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
    oci_containerd_stop
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

# bats test_tags=slow
@test "a container survives a restart of containerd, does not conflict with the same ID in another namespace, and ends with its shim" {
    msb=$oci_here/../target/release/msb-oci
    K --namespace other image import --base-name localhost/bb "$oci/bb.tar" >/dev/null
    with "$msb" same -d -- sleep 1000
    K --namespace other run -d --runc-binary "$msb" localhost/bb:latest same sleep 2000
    [ "$(K task exec --exec-id a same ps | grep -c 'sleep 1000')" = 1 ]
    [ "$(K --namespace other task exec --exec-id a same ps | grep -c 'sleep 2000')" = 1 ]
    oci_containerd_stop
    oci_containerd_start
    [ "$(K task exec --exec-id b same echo on)" = on ]
    pid=$(K task ls | awk '$1 == "same" { print $2 }')
    shim=$(ps -o ppid= -p "$pid")
    [[ $(tr '\0' ' ' <"/proc/$((shim))/cmdline") == *shim* ]]
    kill -KILL $((shim))
    # containerd deletes what a shim has left. The container of the other namespace goes on.
    until ! K task ls | grep -q same && [ ! -e /run/containerd/runc/default/same ]; do sleep 0.1; done
    K container rm same
    [ "$(K --namespace other task exec --exec-id b same echo on)" = on ]
    K --namespace other task kill -s KILL same
    until K --namespace other task ls | grep -q 'same.*STOPPED'; do sleep 0.1; done
    K --namespace other task rm same || true
    K --namespace other container rm same
    [ -z "$(find /run/msb -maxdepth 1 -name 'oci-same-*')" ]
    [ -z "$(ls -A /run/containerd/runc/other 2>/dev/null)" ]
}

# bats test_tags=slow
@test "ctr run -t has a terminal, as with runc" {
    cat >"$oci/terminal.py" <<'END'
import os, pty, select, sys
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
out = b""
for word, answer in (b"# ", b"tty; echo seen$((1 + 1))\n"), (b"seen2", b"exit 7\n"):
    while word not in out:
        if not select.select([fd], [], [], 240)[0]:
            sys.exit(f"no {word} in {out}")
        out += os.read(fd, 65536)
    seen, out = out, b"" if word == b"# " else out
    os.write(fd, answer)
assert b"/dev/pts/" in seen, seen
try:
    while os.read(fd, 65536):
        pass
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
END
    for runtime in "$(command -v runc)" "$oci_here/../target/release/msb-oci"; do
        status=0
        python3 "$oci/terminal.py" nsenter -m -n -t "$oci_ns" ctr --address "$oci/containerd.sock" run --rm -t \
            --runc-binary "$runtime" localhost/bb:latest terminal sh || status=$?
        [ "$status" = 7 ]
        K container rm terminal 2>/dev/null || true
    done
}
