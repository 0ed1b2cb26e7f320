#!/usr/bin/env bats
# An agent that is reached by a virtio-serial port in the place of vsock, under QEMU.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats and vm.bash set variables
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
}

teardown() {
    vm_teardown
}

@test "an agent that is reached by a serial port serves every kind of connection, and many at once" {
    vm_boot base --vmm qemu --channel serial
    jq -e '.boot.channel == "serial" and (.vm.endpoint.handshake | not)' base.json
    run ! grep vhost-device-vsock "$MSB_RUN/base/supervisor.log"

    head -c 700000 /dev/urandom >random
    msb-exec base -- cat <random | cmp - random
    # A caller that reads nothing stalls only its own command.
    mkfifo unread
    msb-exec base -- cat /dev/zero >unread 3>&- &
    unread=$!
    exec 4<unread
    for n in {1..20}; do msb-exec base -- sh -c "cat; exit $n" <<<"$n" >"out$n" 3>&- 4>&- & pids[n]=$!; done
    for n in {1..20}; do
        status=0
        wait "${pids[n]}" || status=$?
        [ "$status" -eq "$n" ]
        [ "$(<"out$n")" = "$n" ]
    done
    exec 4<&-
    wait "$unread" || true
    msb-cp random base:/copied
    [ "$(msb-exec base -- sha256sum </dev/null /copied | cut -d' ' -f1)" = "$(sha256sum random | cut -d' ' -f1)" ]
    id=$(msb-exec -d base -- sh -c 'echo detached; exit 3' | jq .id)
    run -3 msb-exec base --wait "$id"
    msb-logs base "$id" | grep -x detached

    run --separate-stderr msb-boot -r "$vm_record" --name other --vmm krun --channel serial
    [ "$status" -eq 1 ]
    [ "$stderr" = 'msb-boot: krun: has no port for --channel serial (use --vmm qemu)' ]
    msb-stop base >stopped.json
    vm_assert_nothing
}
