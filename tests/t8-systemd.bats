#!/usr/bin/env bats
# systemd as PID 1 of a VM: it starts a unit of ours, goes by a unit that it is told, and ends the service when it goes down.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/init-vm.bash"

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

@test "systemd of another image, by its path, goes by the unit that it is told" {
    becomes systemd_sysv --init /sbin/init --init-arg --unit=multi-user.target --init-env container=msb
    [ "$(vm_exec worker systemctl list-units --type=target --state=active --plain --no-legend graphical.target | wc -l)" = 0 ]
    [ "$(vm_exec worker systemd-detect-virt --container)" != none ]
    goes_down
}
