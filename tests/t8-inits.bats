#!/usr/bin/env bats
# Seven inits out of Debian's packages, each as PID 1 of a VM: it starts a service of ours, and ends it when it goes down.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    source "$BATS_TEST_DIRNAME/inits.bash"
    vm_setup
}

teardown() {
    vm_teardown
    ! mountpoint -q "$BATS_TEST_TMPDIR/mounted" || msb-mount -u "$BATS_TEST_TMPDIR/mounted"
}

# becomes NAME FLAG…: a VM whose PID 1 is that init; the service is up.
becomes() {
    local name=$1
    shift
    inits_record "$name" mounted >mount.json
    vm_record=mount.json vm_boot worker --timeout 120 "$@"
    [ "$(vm_exec worker cat /proc/1/comm)" = "$(inits_comm "$name")" ]
    timeout 180 msb-exec -r worker.json -- sh -c 'until [ -e /srv/note ]; do sleep 0.1; done'
    [ "$(cat mounted/srv/note)" = started ]
}

# goes_down: the init powers the VM off, and ends the service before that.
goes_down() {
    run --separate-stderr msb-stop -r worker.json -t 240
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: stopped' ] || { echo "$stderr"; return 1; }
    diff mounted/srv/note <(printf "started\nstopped\n")
    [ ! -e mounted/.msb ]
    vm_assert_nothing
}

# becomes_and_goes_down NAME
becomes_and_goes_down() {
    # shellcheck disable=SC2046 # several words
    becomes "$1" $(inits_flags "$1")
    goes_down
}

@test "systemd, found by auto, starts a unit of ours and says how it is" {
    becomes systemd --init auto
    [ "$(jq -r .vm.init worker.json)" = /lib/systemd/systemd ]
    run timeout 240 msb-exec -r worker.json -- systemctl is-system-running --wait
    if [ "$output" != running ]; then
        echo "$output:"
        msb-exec -r worker.json -- systemctl --failed --no-legend --plain
        [ "$output" = degraded ]
    fi
    [ "$(vm_exec worker systemctl is-active teller.service)" = active ]
    goes_down
}

@test "systemd, by its path, goes by the unit that it is told" {
    becomes systemd --init /lib/systemd/systemd --init-arg --unit=multi-user.target --init-env container=msb
    [ "$(vm_exec worker systemctl list-units --type=target --state=active --plain --no-legend graphical.target | wc -l)" = 0 ]
    [ "$(vm_exec worker systemd-detect-virt --container)" != none ]
    goes_down
}

@test "BusyBox" {
    becomes_and_goes_down busybox
}

@test "sysvinit" {
    becomes_and_goes_down sysvinit
}

@test "OpenRC, behind sysvinit" {
    becomes_and_goes_down openrc
}

@test "runit" {
    becomes_and_goes_down runit
}

@test "s6" {
    becomes_and_goes_down s6
}

@test "Finit" {
    becomes_and_goes_down finit
}
