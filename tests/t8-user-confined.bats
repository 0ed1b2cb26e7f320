#!/usr/bin/env bats
# The processes that serve the VM of a user other than root are confined too: the jail is all that keeps a guest from the user's files.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and its files set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup_file() {
    source "$BATS_TEST_DIRNAME/host-lock.bash"
    host_lock
    source "$BATS_TEST_DIRNAME/user.bash"
    user_make msb-{pull,patch,boot,exec,stop} agentd vhost-device-vsock libkrunfw.so.5
}

teardown_file() {
    user_remove
    host_unlock
}

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    source "$BATS_TEST_DIRNAME/user.bash"
    source "$BATS_TEST_DIRNAME/image.bash"
    vm_setup
    PATH=$release:$PATH
    cd "$place/home" || return
    as_user unshare --user true || skip "users cannot make user namespaces here"
    cp -r "$(tiny_image)" "$place/layout"
    chmod -R go+rX "$place/layout"
}

teardown() {
    vm_show_logs
    user_stop_vms
    vm_teardown
}

# bats test_tags=vmm-slow
@test "a user's guest with full control of its virtiofs device reaches its volume, and no other file of the user" {
    cp "$(guest_program virtiofs-escape)" "$place/tools/escape"
    word=secret-$RANDOM$RANDOM$RANDOM
    as_user sh -euc 'mkdir volume; echo "this is inside" >volume/inside; echo "$1" >canary; echo "$PWD/canary" >path
        msb-pull -q "oci:$2/layout" >record.json' - "$word" "$place"
    run --separate-stderr as_user sh -c 'MSB_AGENTD="$(command -v escape)" exec msb-boot -r record.json --vmm "$1" \
        --script canary=path -v "$PWD/volume:/volume"' - "${MSB_VMM:-auto}"
    echo "$stderr"
    [ "$status" -eq 1 ]
    # It had full control: all its requests were answered, and one made a file.
    [[ $stderr == *'READ inside: this is inside'* ]]
    [[ $stderr == *'guest: done'* ]]
    [ "$(grep -c 'attempts: .*, silent: 0$' <<<"$stderr")" -eq 1 ]
    [ -f volume/made-by-hand ]
    # It read nothing outside of the volume, and changed nothing there.
    [[ $stderr != *"$word"* ]]
    [ "$(grep 'guest: READ ' <<<"$stderr" | grep -cv 'READ inside')" -eq 0 ]
    [ "$(cat canary)" = "$word" ]
    [ "$(ls)" = $'canary\npath\nrecord.json\nvolume' ]
    [ -z "$(ls "$place/run/msb")" ]

    # An ordinary guest of the same image runs, and so the processes of its VM can be looked at.
    as_user sh -euc 'msb-boot -r record.json --name worker --vmm "$1" -v "$PWD/volume:/volume:ro" >worker.json' - "${MSB_VMM:-auto}"
    [ "$(as_user msb-exec worker -- cat /volume/inside)" = 'this is inside' ]
    members=$(XDG_RUNTIME_DIR=$place/run vm_processes worker/ | grep -vx "$(jq .vm.pid worker.json)")
    [ -n "$members" ]
    for pid in $members; do
        for space in user mnt pid net ipc uts; do
            [ "$(readlink "/proc/$pid/ns/$space")" != "$(readlink "/proc/self/ns/$space")" ]
        done
        [ ! -e "/proc/$pid/root$place/home" ]
        [ ! -e "/proc/$pid/root/etc/passwd" ]
        grep -qE '^CapPrm:.*(00000000880000db|0000000000000000)$' "/proc/$pid/status"
        grep -q '^NoNewPrivs:.*1$' "/proc/$pid/status"
        grep -q '^Seccomp:.*2$' "/proc/$pid/status"
    done
    as_user msb-stop -q worker >/dev/null
}
