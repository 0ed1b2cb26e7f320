#!/usr/bin/env bats
# msb-stop, where the VM has ended already, or is another one by now: what it left is tidied up, and no other is touched.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
}

teardown() { vm_teardown; }

# bats test_tags=vmm
@test "a VM whose VMM was killed is tidied up, and that is said" {
    vm_boot worker
    kill -KILL "$(vm_vmm worker)"
    vm_await_end "$(vm_pid worker)"
    [ -z "$(vm_processes)" ]
    run --separate-stderr msb-stop -r worker.json
    [ "$status" -eq 0 ]
    [[ $stderr == "msb-stop: worker: had ended already: $(jq -r .vm.vmm worker.json) was killed by SIGKILL"*'; tidied up' ]]
    jq -e 'has("vm") | not' <<<"$output"
    vm_assert_nothing
}

@test "a VM that loses any one of its processes ends, and that process is named" {
    for ((number = 1; ; number++)); do
        vm_boot worker
        lost=$(vm_crew worker | sed -n "${number}p")
        [ -n "$lost" ] || break
        name=$(vm_member worker "$lost")
        kill -KILL "$lost"
        vm_await_end "$(vm_pid worker)"
        run --separate-stderr msb-stop -r worker.json
        [ "$status" -eq 0 ]
        [[ $stderr == "msb-stop: worker: had ended already: $name was killed by SIGKILL"*'; tidied up' ]]
        vm_assert_nothing
    done
    [ "$number" -gt 1 ]
}

@test "a VM whose supervisor was killed is tidied up, and that is said" {
    vm_boot worker
    kill -KILL "$(vm_pid worker)"
    vm_await_end "$(vm_pid worker)"
    run --separate-stderr msb-stop -r worker.json
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: its supervisor had been killed; tidied up' ]
    [ ! -e "$vm_root/.msb" ]
    vm_assert_nothing
}

@test "a VM that powered off by itself is tidied up, and that is said" {
    vm_boot worker
    vm_exec worker poweroff -f || true
    vm_await_end "$(vm_pid worker)"
    run --separate-stderr msb-stop -r worker.json
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: had ended already: the guest powered off; tidied up' ]
    vm_assert_nothing
}

@test "a VM whose run directory was removed still runs, and is stopped by its record and by its name" {
    vm_boot worker
    rm -rf "$MSB_RUN"
    run --separate-stderr msb-boot -r worker.json
    [ "$status" -eq 1 ]
    [[ $stderr == *'the record has a VM already, "worker", and it runs'* ]]
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

@test "a VM whose run directory was removed is stopped also when another one has its name" {
    vm_boot worker
    cp worker.json first.json
    rm -rf "$MSB_RUN"
    # A share root has no disk of that name, so the name is free.
    vm_needs_share
    vm_boot worker
    run --separate-stderr msb-stop -r first.json -t 0
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-stop: worker: killed; its run directory had been removed'* ]]
    vm_has_ended "$(jq .vm.pid first.json)"
    [ "$(vm_exec worker hostname)" = worker ]
}

@test "a record that names another process, or is another user's, ends nothing" {
    vm_boot worker
    sleep 60 3>&- &
    sleep=$!
    # A process of ours that is no supervisor, with a directory that does not exist and with the one of a VM.
    started=$(sed 's/.*) //' "/proc/$sleep/stat" | cut -d ' ' -f 20)
    for dir in "$PWD/none/worker" "$MSB_RUN/worker"; do
        jq -c --argjson pid "$sleep" --argjson started "$started" --arg dir "$dir" '.vm.pid = $pid | .vm.start_time = $started |
            .vm.endpoint.unix = $dir + "/agent.sock"' worker.json >hostile.json
        run --separate-stderr msb-stop -r hostile.json -t 0
        [ "$stderr" = 'msb-stop: worker: is gone already, nothing to do' ]
    done
    kill "$sleep"
    # The supervisor of another VM than the directory's, and the right one with another start: a number that was used again.
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

@test "root's run directory does not follow the login session, and messages name it" {
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

@test "a record of an earlier VM does not stop the one that has its name now" {
    vm_boot worker
    cp worker.json earlier.json
    msb-stop -r worker.json >stopped.json
    vm_boot worker
    run --separate-stderr msb-stop -r earlier.json
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: is gone already, nothing to do' ]
    [ "$(vm_exec worker hostname)" = worker ]
}

@test "a process that has the supervisor's number by now is not touched" {
    sleep 60 3>&- &
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
