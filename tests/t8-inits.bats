#!/usr/bin/env bats
# Six small inits from Debian's packages, each as PID 1 of a VM: it starts our service, and ends it at shutdown. The
# seventh, systemd, has a file of its own.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/init-vm.bash"

# boots_and_stops NAME
boots_and_stops() {
    # shellcheck disable=SC2046 # several words
    boot_init "$1" $(inits_flags "$1")
    stop_init
}

@test "BusyBox" {
    boots_and_stops busybox
}

# bats test_tags=slow
@test "sysvinit" {
    boots_and_stops sysvinit
}

# bats test_tags=slow
@test "OpenRC, behind sysvinit" {
    boots_and_stops openrc
}

@test "runit" {
    boots_and_stops runit
}

@test "s6" {
    boots_and_stops s6
}

@test "Finit" {
    boots_and_stops finit
}
