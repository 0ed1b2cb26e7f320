#!/usr/bin/env bats
# systemd as PID 1 of a VM: it starts a unit of ours, goes by a unit that it is told, and ends the service when it goes down.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/init-vm.bash"

@test "systemd, found by auto, starts a unit of ours and says how it is" {
    becomes systemd --init auto
    [ "$(jq -r .vm.init worker.json)" = /lib/systemd/systemd ]
    run --separate-stderr msb-exec -r worker.json -- systemctl is-system-running
    [ "$output" = running ] || { msb-exec -r worker.json -- systemctl --failed --no-legend --plain; return 1; }
    [ ! -s worker.err ]
    [ -z "$(vm_exec worker systemctl list-jobs --no-legend)" ]
    [ "$(vm_exec worker systemctl is-active teller.service)" = active ]
    goes_down
}

@test "a systemd with a unit that failed is usable, and that is said" {
    { inits_text /etc/systemd/system/broken.service <<<$'[Service]\nType=oneshot\nExecStart=/bin/false'
        inits_link ../broken.service /etc/systemd/system/multi-user.target.wants/broken.service; } >ops
    msb-pull -q "oci:$(inits_image):latest" | msb-patch -f ops >patched.json
    vm_record=patched.json vm_boot worker --root block --ephemeral --init auto
    [ "$(tail -n 1 worker.err)" = 'msb-boot: worker: systemd is degraded: broken.service failed' ]
    run --separate-stderr msb-exec -r worker.json -- systemctl is-system-running
    [ "$output" = degraded ]
}

@test "systemd of another image, by its path, goes by the unit that it is told" {
    becomes systemd_sysv --init /sbin/init --init-arg --unit=multi-user.target --init-env container=msb
    [ "$(vm_exec worker systemctl list-units --type=target --state=active --plain --no-legend graphical.target | wc -l)" = 0 ]
    [ "$(vm_exec worker systemd-detect-virt --container)" != none ]
    goes_down
}
