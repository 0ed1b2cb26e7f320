#!/usr/bin/env bats
# Unusual callers: signals that the caller ignores or blocks, and closed descriptors, do not change what a tool does.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; the guest's shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/exec.bash"

# odd COMMAND…: runs it with SIGCHLD ignored and every signal blocked.
odd() { env --ignore-signal=CHLD --block-signal "$@"; }

# has_signal FIELD NAME PID: whether a process has a signal in a set of its /proc/PID/status.
has_signal() {
    local mask
    mask=$(awk -v field="$1:" '$1 == field { print $2 }' "/proc/$3/status")
    [ -n "$mask" ] && (((16#$mask >> ($(kill -l "$2") - 1)) & 1))
}

setup_file() {
    exec_root
    jq -c 'del(.mount)' "$vm_record" >dir.json
    echo '{"op":"text","path":"/etc/odd","content":"patched\n"}' >ops.jsonl
    odd msb-patch -r dir.json -f ops.jsonl >patched.json
    # mkfs.erofs and mke2fs make this root: children that must be waited for.
    odd msb-boot -r patched.json --root block --name worker >worker.json
    export MSB_RECORD=$PWD/worker.json vm_record vm_root
}

@test "pull, patch and mount work for a caller that ignores SIGCHLD and blocks all signals" {
    odd msb-pull "$vm_root" >pulled.json
    jq -e '.rootfs.kind == "dir"' pulled.json
    odd msb-mount -r "$BATS_FILE_TMPDIR/patched.json" --ro m >mounted.json
    [ "$(cat m/etc/odd)" = patched ]
    server=$(jq .mount.pid mounted.json)
    if has_signal SigBlk CHLD "$server"; then return 1; fi
    # TERM reaches it.
    kill -TERM "$server"
    vm_await_end "$server"
    if mountpoint -q m; then return 1; fi
}

@test "a VM of such a caller has no process that ignores SIGCHLD, and commands, signals and msb-stop work" {
    [ "$(odd msb-exec -n -- cat /etc/odd)" = patched ]
    run odd msb-exec -n -- sh -c 'exit 3'
    [ "$status" = 3 ]
    for pid in $(vm_processes worker/); do if has_signal SigIgn CHLD "$pid"; then return 1; fi; done
    [[ $(msb-exec -n -- grep SigBlk /proc/self/status) =~ ^SigBlk:[[:space:]]*0+$ ]]
    mkfifo up
    env --ignore-signal=CHLD --block-signal msb-exec -n -- sh -c 'trap "exit 5" TERM; echo up; while :; do sleep 0.1; done' >up &
    pid=$!
    exec 8<up
    read -r _ <&8
    kill -TERM "$pid"
    status=0
    wait "$pid" || status=$?
    exec 8<&-
    [ "$status" = 5 ]
    # The supervisor notices an unexpected end.
    supervisor=$(jq .vm.pid "$MSB_RECORD")
    odd msb-exec -n -- poweroff -f || true
    vm_await_end "$supervisor"
    odd msb-stop -r "$MSB_RECORD" >stopped.json 2>err
    grep -q 'powered off' err
    vm_assert_nothing
}

@test "output to a closed descriptor is an error, and a closed stdin is an empty one" {
    vm_boot closed
    MSB_RECORD=$BATS_TEST_TMPDIR/closed.json
    for tool in pull patch mount boot exec stop; do
        run -1 bash -c "msb-$tool --help >&-"
        [ "$output" = "msb-$tool: stdout: Bad file descriptor (os error 9)" ]
    done
    run -125 bash -c 'msb-exec -n -- echo hi >&-'
    [ "$output" = 'msb-exec: stdout: Bad file descriptor (os error 9)' ]
    status=0
    msb-exec -n -- sh -c 'echo lost >&2' 2>&- || status=$?
    [ "$status" = 125 ]
    # A command without output succeeds.
    msb-exec -n -- true >&- 2>&-
    # By a shell of its own: without a stdin here, the pipe of "run" would be the command's.
    run -0 bash -c 'msb-exec -- cat <&-'
    [ -z "$output" ]
    # A file that is opened later does not get the number of a closed stream.
    msb-exec --json-status status.json -n -- true <&- >&- 2>&-
    [ "$(jq .status status.json)" = 0 ]
    run -1 bash -c 'msb-boot -r "$vm_record" --name unprinted >&-'
    [[ $output == *'stdout: Bad file descriptor'* ]]
    [ ! -e "$XDG_RUNTIME_DIR/msb/unprinted" ]
    msb-stop -r closed >/dev/null 2>&-
}
