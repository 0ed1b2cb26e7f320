#!/usr/bin/env bats
# msb-stop: a VM stops gracefully or is killed, and the message says which; --unmount ends the mount too.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
}

teardown() {
    for mount in mounted other; do
        if mountpoint -q "$BATS_TEST_TMPDIR/$mount"; then umount -l "$BATS_TEST_TMPDIR/$mount"; fi
    done
    vm_teardown
}

@test "a VM stops gracefully, and the record is printed without vm" {
    vm_boot worker
    run --separate-stderr msb-stop -r worker.json
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    diff <(jq -S 'del(.boot)' <<<"$output") <(jq -S . "$vm_record")
    jq -e '.boot.name == "worker"' <<<"$output"
    vm_assert_nothing
}

@test "commands in the guest get TERM and the time to end by themselves" {
    vm_needs_share
    vm_boot worker
    vm_exec worker sh -c 'trap "echo ended >/tmp/trap; exit" TERM; echo up; while :; do sleep 1 & wait $!; done' >up &
    until grep -q up up; do sleep 0.02; done
    run --separate-stderr msb-stop -r worker.json
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    [ "$(cat "$vm_root/tmp/trap")" = ended ]
    wait $! || true
}

@test "commands have the grace period but for two seconds, and those that do not end in it are counted" {
    vm_boot worker
    vm_exec worker sh -c 'trap "sleep 2; echo done >/root/done; exit" TERM; echo up; while :; do sleep 1 & wait $!; done' >up &
    until grep -q up up; do sleep 0.02; done
    run --separate-stderr msb-stop -r worker.json -t 60
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    wait $! || true
    [ "$(vm_file worker /root/done)" = done ]
    vm_boot worker
    for n in 1 2; do
        vm_exec worker sh -c 'trap "" TERM; echo up; while :; do sleep 1; done' >"up-$n" &
        until grep -q up "up-$n"; do sleep 0.02; done
    done
    run --separate-stderr msb-stop -r worker.json -t 12
    [ "$status" -eq 0 ]
    [[ $stderr == 'msb-stop: worker: stopped, 2 commands killed after 1'?.?' s' ]]
    wait
    vm_boot worker
    vm_exec worker setsid sh -c '(trap "" TERM; exec sleep 60) </dev/null >/dev/null 2>&1 &'
    run --separate-stderr msb-stop -r worker.json -t 12
    [ "$status" -eq 0 ]
    [[ $stderr == 'msb-stop: worker: stopped'* ]]
    vm_assert_nothing
}

@test "SIGTERM to the supervisor stops the VM, and leaves its record, its end and its logs, which say what happened" {
    vm_boot worker
    log=$XDG_RUNTIME_DIR/msb/worker/supervisor.log
    [ "$(stat -c %a "$log")" = 600 ]
    kill -TERM "$(vm_pid worker)"
    vm_await_end "$(vm_pid worker)"
    [ -z "$(vm_processes)" ]
    [ "$(ls "$XDG_RUNTIME_DIR/msb/worker")" = $'ended.json\nexecs\nkernel.log\nrecord.json\nsupervisor.log' ]
    sed -E 's/^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{12}Z //; s/[0-9]+/N/g' "$log" >events
    for event in 'supervisor N of "worker" started' "$(jq -r .vm.vmm worker.json) started: process N" ready 'SIGTERM: stopping, with a grace of N s' \
        'ended: stopped'; do
        grep -qxF "$event" events || { echo "no $event"; cat "$log"; return 1; }
    done
    run --separate-stderr msb-stop -r worker.json
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: had ended already: stopped; tidied up' ]
    vm_assert_nothing
}

@test "a VM is stopped by its name" {
    vm_boot worker
    run --separate-stderr msb-stop -r worker
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    vm_assert_nothing
}

@test "a guest that does not stop is killed after the grace period, with a message" {
    vm_boot worker
    kill -STOP "$(vm_vmm worker)"
    run --separate-stderr msb-stop -r worker.json -t 0.5
    [ "$status" -eq 1 ]
    [ "$stderr" = 'msb-stop: worker: did not stop within 0.5 s, killed' ]
    jq -e 'has("vm") | not' <<<"$output"
    vm_assert_nothing
}

@test "a grace period of 0 kills at once" {
    vm_boot worker
    run --separate-stderr msb-stop -r worker.json -t 0
    [ "$status" -eq 1 ]
    [ "$stderr" = 'msb-stop: worker: did not stop within 0 s, killed' ]
    vm_assert_nothing
}

@test "a supervisor that does not react is killed, and nothing of the VM is left" {
    vm_boot worker
    kill -STOP "$(vm_pid worker)"
    run --separate-stderr msb-stop -r worker.json -t 0
    [ "$status" -eq 1 ]
    [ "$stderr" = 'msb-stop: worker: its supervisor did not react, killed' ]
    vm_assert_nothing
}

@test "--unmount ends msb-mount too and takes the mount out of the record" {
    mkdir mounted
    jq -c 'del(.mount)' "$vm_record" | msb-mount mounted >mount.json
    server=$(jq .mount.pid mount.json)
    vm_record=mount.json vm_boot worker
    run --separate-stderr msb-stop -r worker.json --unmount
    [ "$status" -eq 0 ]
    jq -e '(has("vm") or has("mount")) | not' <<<"$output"
    jq -e '.upper.dir' <<<"$output"
    run mountpoint -q mounted
    [ "$status" -ne 0 ]
    vm_has_ended "$server"
}

@test "--unmount leaves a mount that another VM uses, and msb-mount -u refuses it" {
    vm_needs_share
    mkdir mounted
    jq -c 'del(.mount)' "$vm_record" | msb-mount mounted >mount.json
    vm_record=mount.json vm_boot worker
    vm_record=mount.json vm_boot other
    run --separate-stderr msb-mount -u mounted
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-mount: mount point "'*'/mounted": still in use by VM "'*'" and VM "'*'" (stop it first: msb-stop '* ]]
    run --separate-stderr msb-stop worker --unmount
    [ "$status" -eq 0 ]
    [[ $stderr == *'msb-stop: mount "'*'/mounted": left, because VM "other" has it' ]]
    jq -e .mount.pid <<<"$output"
    [ "$(vm_exec other cat /etc/passwd)" = "$(cat mounted/etc/passwd)" ]
    msb-stop other --unmount >stopped.json
    jq -e 'has("mount") | not' stopped.json
    run mountpoint -q mounted
    [ "$status" -ne 0 ]
}

@test "--unmount also works for a VM whose supervisor was killed" {
    mkdir mounted
    jq -c 'del(.mount)' "$vm_record" | msb-mount mounted >mount.json
    vm_record=mount.json vm_boot worker
    kill -KILL "$(vm_pid worker)"
    run --separate-stderr msb-stop -r worker.json --unmount
    [ "$status" -eq 0 ]
    run mountpoint -q mounted
    [ "$status" -ne 0 ]
    vm_assert_nothing
}

@test "--unmount of a mount in use is an error, and the mount stays in the record" {
    mkdir mounted
    jq -c 'del(.mount)' "$vm_record" | msb-mount mounted >mount.json
    vm_record=mount.json vm_boot worker
    exec {open}<mounted/etc/passwd
    run --separate-stderr msb-stop -r worker.json --unmount
    exec {open}<&-
    [ "$status" -eq 1 ]
    [[ $stderr == *'msb-stop: mount "'*'/mounted": it is in use'* ]]
    jq -e 'has("mount") and (has("vm") | not)' <<<"$output"
}

@test "--unmount leaves what is not the mount of the record" {
    mkdir other
    mount -t tmpfs none other
    # The mount table has resolved paths.
    jq -c --arg path "$PWD/../${PWD##*/}/other" '.mount = {path: $path, pid: 1, fstype: "fuse.msb"}' "$vm_record" >foreign.json
    vm_boot worker
    jq -c --slurpfile foreign foreign.json '.mount = $foreign[0].mount' worker.json >mixed.json
    run -1 --separate-stderr msb-stop -r mixed.json --unmount
    [[ $stderr == *'msb-stop: mount "'*'/other": it is not the mount of the record '* ]]
    mountpoint -q other
    umount other
    vm_assert_nothing
}

@test "a record without a VM, a wrong directory and a usage error are reported" {
    run --separate-stderr msb-stop -r "$vm_record"
    [ "$status" -eq 1 ]
    [ "$stderr" = 'msb-stop: the record has no running VM (start one with msb-boot)' ]
    run --separate-stderr msb-stop -r nobody
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-stop: record "nobody": no such file, and no VM of that name is running in "'"$MSB_RUN"'"' ]]
    vm_boot worker
    jq -c '.vm.endpoint.unix = "/etc/agent.sock"' worker.json >wrong.json
    run --separate-stderr msb-stop -r wrong.json
    [ "$status" -eq 1 ]
    [[ $stderr == *'socket "/etc/agent.sock" is not in a run directory of VM "worker"'* ]]
    run --separate-stderr msb-stop -r worker.json -t soon
    [ "$status" -eq 2 ]
    [[ $stderr == "msb-stop: "*"a number with a unit is expected"* ]]
}
