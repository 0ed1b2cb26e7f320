#!/usr/bin/env bats
# Six small inits out of Debian's packages, each as PID 1 of a VM: it starts a service of ours, and ends it when it goes down. The
# seventh, systemd, has a file of its own.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/init-vm.bash"

# becomes_and_goes_down NAME
becomes_and_goes_down() {
    # shellcheck disable=SC2046 # several words
    becomes "$1" $(inits_flags "$1")
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
