#!/usr/bin/env bats
# msb-stop of a VM that has ended already, or was replaced by another: it cleans up, and touches no other VM.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
}

teardown() { vm_teardown; }

# bats test_tags=vmm-slow
@test "a VM that loses any one of its processes ends, the message names the process, and msb-stop cleans up" {
    for ((number = 1, count = 1; number <= count; number++)); do
        vm_boot worker
        count=$(vm_members worker | wc -l)
        lost=$(vm_members worker | sed -n "${number}p")
        name=$(vm_member_name worker "$lost")
        names+=" $name"
        kill -KILL "$lost"
        vm_ends_with worker "$name was killed by SIGKILL"
        [[ $stderr == "msb-stop: worker: had ended already: $name was killed by SIGKILL"* ]]
    done
    # The VMM is one of them.
    [[ " $names " == *" $(jq -r .vm.vmm worker.json) "* ]]
}

# bats test_tags=vmm
@test "if the supervisor is killed, all processes of its VM end, and msb-stop cleans up" {
    vm_boot worker
    processes=$(vm_processes)
    grep -qx "$(vm_vmm worker)" <<<"$processes"
    kill -KILL "$(vm_pid worker)"
    for pid in $processes; do vm_await_end "$pid"; done
    vm_ends_with worker 'its supervisor was killed'
    [ "$stderr" = 'msb-stop: worker: its supervisor had been killed; tidied up' ]
    [ ! -e "$vm_root/.msb" ]
}

@test "a guest that powers off by itself ends its VM, kernel.log stays, and msb-stop cleans up" {
    vm_boot worker
    vm_exec worker poweroff -f || true
    vm_await_end "$(vm_pid worker)"
    jq -e '.reason == "the guest powered off"' "$XDG_RUNTIME_DIR/msb/worker/ended.json"
    grep -q 'System halted' "$XDG_RUNTIME_DIR/msb/worker/kernel.log"
    vm_ends_with worker 'the guest powered off'
    [ "$stderr" = 'msb-stop: worker: had ended already: the guest powered off; tidied up' ]
}

@test "a VM whose run directory was removed keeps running, and is stopped by its record or name" {
    vm_boot worker
    rm -rf "$MSB_RUN"
    run --separate-stderr msb-boot -r worker.json
    [ "$status" -eq 1 ]
    [[ $stderr == *'the record has a VM already, "worker", and it is running'* ]]
    run --separate-stderr msb-exec worker -- true
    [ "$status" -eq 125 ]
    [[ $stderr == *'vm "worker": it runs, but its run directory "'"$MSB_RUN"'/worker" was removed'*'msb-stop worker'* ]]
    run --separate-stderr msb-stop -r worker.json -t 1
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-stop: worker: did not stop within 1 s, killed; its run directory had been removed'* ]]
    jq -e '.boot.name == "worker" and (has("vm") | not)' <<<"$output"
    vm_has_ended "$(vm_pid worker)"
    vm_assert_nothing
    run --separate-stderr msb-stop -r worker.json
    [ "$stderr" = 'msb-stop: worker: is gone already, nothing to do' ]

    vm_boot worker
    rm -rf "$MSB_RUN/worker"
    run --separate-stderr msb-stop worker -t 0
    [ "$status" -eq 1 ]
    [[ $stderr == *'its run directory had been removed'* ]]
    vm_has_ended "$(vm_pid worker)"
    vm_assert_nothing
}

@test "a VM whose run directory was removed can be stopped even if another VM has its name" {
    vm_boot worker
    cp worker.json first.json
    rm -rf "$MSB_RUN"
    # A shared root has no named disk, so the name is free.
    vm_needs_share
    vm_boot worker
    run --separate-stderr msb-stop -r first.json -t 0
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-stop: worker: killed; its run directory had been removed'* ]]
    vm_has_ended "$(jq .vm.pid first.json)"
    [ "$(vm_exec worker hostname)" = worker ]
}

@test "a record that names another process, or belongs to another user, ends nothing" {
    vm_boot worker
    sleep 100000 3>&- &
    sleep=$!
    # One of our processes that is not a supervisor, with a missing run directory and with a VM's.
    started=$(sed 's/.*) //' "/proc/$sleep/stat" | cut -d ' ' -f 20)
    for dir in "$PWD/none/worker" "$MSB_RUN/worker"; do
        jq -c --argjson pid "$sleep" --argjson started "$started" --arg dir "$dir" '.vm.pid = $pid | .vm.start_time = $started |
            .vm.endpoint.unix = $dir + "/agent.sock"' worker.json >hostile.json
        run --separate-stderr msb-stop -r hostile.json -t 0
        [ "$stderr" = 'msb-stop: worker: is gone already, nothing to do' ]
    done
    kill "$sleep"
    # The supervisor of another VM than the directory's, and a reused process ID: the right number with another start time.
    for change in '.vm.name = "other" | .vm.endpoint.unix |= sub("worker/"; "other/")' '.vm.start_time += 1'; do
        jq -c "$change" worker.json >hostile.json
        run --separate-stderr msb-stop -r hostile.json -t 0
        [[ $stderr == *': is gone already, nothing to do' ]]
    done
    mkdir -p "$PWD/theirs/worker"
    chown -R nobody "$PWD/theirs"
    jq -c --arg dir "$PWD/theirs/worker" '.vm.endpoint.unix = $dir + "/agent.sock"' worker.json | tee "theirs/worker/record.json" >hostile.json
    run --separate-stderr msb-stop -r hostile.json -t 0
    [ "$status" -eq 1 ]
    [[ $stderr == *'it belongs to the user 65534 (run msb-stop as that user)' ]]
    [ "$(vm_exec worker hostname)" = worker ]
}

@test "root's run directory does not depend on the login session, and messages name it" {
    for session in "$PWD/session" ''; do
        run --separate-stderr env -u MSB_RUN XDG_RUNTIME_DIR="$session" msb-exec -r no-such-vm -- true
        [ "$status" -eq 125 ]
        [[ $stderr == *'no VM of that name is running in "/run/msb"'* ]]
    done
    run --separate-stderr setpriv --reuid 65534 --regid 65534 --clear-groups env -u MSB_RUN XDG_RUNTIME_DIR="$PWD/session" \
        "$(command -v msb-exec)" -r no-such-vm -- true
    [[ $stderr == *"is running in \"$PWD/session/msb\""* ]]
    run --separate-stderr setpriv --reuid 65534 --regid 65534 --clear-groups env -u MSB_RUN -u XDG_RUNTIME_DIR \
        "$(command -v msb-exec)" -r no-such-vm -- true
    [[ $stderr == *'neither MSB_RUN nor XDG_RUNTIME_DIR is set'* ]]
}

@test "stopping again is no error" {
    vm_boot worker
    msb-stop -r worker.json >stopped.json
    run --separate-stderr msb-stop -r worker.json
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: is gone already, nothing to do' ]
    [ "$output" = "$(cat stopped.json)" ]
}

@test "a record of an earlier VM does not stop a later one of the same name" {
    vm_boot worker
    cp worker.json earlier.json
    msb-stop -r worker.json >stopped.json
    vm_boot worker
    run --separate-stderr msb-stop -r earlier.json
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: is gone already, nothing to do' ]
    [ "$(vm_exec worker hostname)" = worker ]
}

@test "a process that has reused the supervisor's process ID is not touched" {
    sleep 100000 3>&- &
    sleep=$!
    vm_boot worker
    supervisor=$(vm_pid worker)
    kill -KILL "$supervisor"
    vm_await_end "$supervisor"
    for record in worker.json "$XDG_RUNTIME_DIR/msb/worker/record.json"; do
        jq -c --argjson pid "$sleep" '.vm.pid = $pid' "$record" >other.json
        mv other.json "$record"
    done
    run --separate-stderr msb-stop -r worker.json -t 0
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: its supervisor had been killed; tidied up' ]
    kill "$sleep"
}
