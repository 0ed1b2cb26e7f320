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
