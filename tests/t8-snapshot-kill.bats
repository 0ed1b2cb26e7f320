#!/usr/bin/env bats
# What a save or a start from a snapshot leaves if one of its processes is killed, and what many starts leave.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats and vm.bash set variables
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    MSB_TEST_ROOT=block vm_setup
    vm_needs_qemu
    vm_boot base --vmm qemu --channel serial -m 128M
    msb-snapshot -q base >first.json
}

teardown() {
    vm_teardown
}

# pause: waits for up to half a second.
pause() {
    sleep "0.$(printf %03d $((RANDOM % 500)))"
}

# kill_one PID…: kills one of these processes, and prints which.
kill_one() {
    local all=("$@") victim
    victim=${all[RANDOM % ${#all[@]}]}
    echo "kills $(tr '\0' ' ' <"/proc/$victim/cmdline" 2>/dev/null | cut -c 1-60)"
    kill -KILL "$victim" 2>/dev/null || true
}

# MSB_KILLS / 20 rounds: 5, and 25 with "make test-kill".
# bats test_tags=kill,slow
@test "a kill of any process during a save leaves no incomplete snapshot, and the VM runs or has ended" {
    local rounds=$(((${MSB_KILLS:-100} + 19) / 20)) n saving
    for ((n = 0; n < rounds; n++)); do
        msb-snapshot -q base >saved.json 2>saved.err 3>&- &
        saving=$!
        pause
        # shellcheck disable=SC2046 # numbers
        echo "round $n: $(kill_one "$saving" "$saving" $(vm_processes base/))"
        wait "$saving" || true
        if ! timeout 60 msb-exec base -- true; then
            msb-rm -f base 2>/dev/null || true
            vm_await_nothing
            vm_record=$PWD/first.json vm_boot base
        fi
        msb-store gc >/dev/null
        [ -z "$(find "$MSB_HOME/snapshots" -maxdepth 1 -name '.*')" ]
        msb-store ls --json -t snapshot | jq -se 'length > 0 and all(.complete)'
    done
    msb-stop -q -t 5 base >/dev/null
    vm_assert_nothing
}

# bats test_tags=kill,slow
@test "a kill of any process during a start from a snapshot leaves nothing, and the next start works" {
    local rounds=$(((${MSB_KILLS:-100} + 19) / 20)) n starting
    msb-stop -q -t 5 base >/dev/null
    for ((n = 0; n < rounds; n++)); do
        msb-boot -q -r first.json --name victim >victim.json 2>victim.err 3>&- &
        starting=$!
        pause
        # shellcheck disable=SC2046 # numbers
        echo "round $n: $(kill_one "$starting" $(vm_processes victim/))"
        wait "$starting" || true
        msb-rm -f victim 2>/dev/null || true
        vm_await_nothing
    done
    vm_record=$PWD/first.json vm_boot last
    vm_exec last true
    msb-stop -q -t 5 last >/dev/null
    vm_assert_nothing
    msb-store check
}

# MSB_KILLS starts: 20, and 500 with "make test-kill".
# bats test_tags=kill,slow
@test "after many starts from a snapshot nothing is left" {
    local n before
    msb-stop -q -t 5 base >/dev/null
    before=$(find "$MSB_HOME" | sort)
    for ((n = 0; n < ${MSB_KILLS:-20}; n++)); do
        vm_record=$PWD/first.json vm_boot many
        vm_exec many true
        msb-stop -q -t 0 many >/dev/null || [ $? -eq 1 ]
    done
    vm_assert_nothing
    diff <(echo "$before") <(find "$MSB_HOME" | sort)
}
