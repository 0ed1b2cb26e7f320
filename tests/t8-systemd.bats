#!/usr/bin/env bats
# systemd as PID 1 of a VM: it starts our unit, uses the target that it is told, and ends the service at shutdown.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/init-vm.bash"

@test "systemd, found by auto, starts our unit and is running" {
    boot_init systemd --init auto
    [ "$(jq -r .vm.init worker.json)" = /lib/systemd/systemd ]
    run --separate-stderr msb-exec -r worker.json -- systemctl is-system-running
    [ "$output" = running ] || { msb-exec -r worker.json -- systemctl --failed --no-legend --plain; return 1; }
    [ ! -s worker.err ]
    run -0 vm_exec worker systemctl list-jobs --no-legend
    [ -z "$output" ]
    [ "$(vm_exec worker systemctl is-active teller.service)" = active ]
    stop_init
}

# bats test_tags=slow
@test "a systemd with a failed unit is usable, with a message, and --restart starts it again after a reboot" {
    { inits_text /etc/systemd/system/broken.service <<<$'[Service]\nType=oneshot\nExecStart=/bin/false'
        inits_link ../broken.service /etc/systemd/system/multi-user.target.wants/broken.service; } >ops
    msb-pull -q "oci:$(inits_image):latest" | msb-patch -f ops >patched.json
    vm_record=patched.json vm_boot worker --root block --ephemeral --init auto --restart on-reboot --timeout 900
    [ "$(tail -n 1 worker.err)" = 'msb-boot: worker: systemd is degraded: broken.service failed' ]
    run --separate-stderr msb-exec -r worker.json -- systemctl is-system-running
    [ "$output" = degraded ]
    before=$(vm_exec worker cat /proc/sys/kernel/random/boot_id)
    vm_exec worker systemctl reboot || true
    vm_await_restart worker
    # The restart is in the record once the init is usable again.
    [ "$(vm_exec worker systemctl is-active multi-user.target)" = active ]
    [ "$(vm_exec worker cat /proc/sys/kernel/random/boot_id)" != "$before" ]
}

# bats test_tags=slow
@test "systemd of another image, named by its path, uses the unit that it is told" {
    boot_init systemd_sysv --init /sbin/init --init-arg --unit=multi-user.target --init-env container=msb
    [ "$(vm_exec worker systemctl list-units --type=target --state=active --plain --no-legend graphical.target | wc -l)" = 0 ]
    [ "$(vm_exec worker systemd-detect-virt --container)" != none ]
    stop_init
}

# bats test_tags=slow
@test "systemd, a service, a timer and the journal go on in a VM from a snapshot, which shuts down cleanly" {
    vm_needs_qemu
    { inits_text /etc/systemd/system/count.service <<<$'[Service]\nExecStart=/bin/sh -c "while :; do echo . >>/srv/count; sleep 0.5; done"'
        inits_text /etc/systemd/system/tick.service <<<$'[Service]\nType=oneshot\nExecStart=/bin/sh -c "echo ticked; echo . >>/srv/ticks"'
        inits_text /etc/systemd/system/tick.timer <<<$'[Timer]\nOnActiveSec=1\nOnUnitActiveSec=1\nAccuracySec=100ms'
        inits_link ../count.service /etc/systemd/system/multi-user.target.wants/count.service
        inits_link ../tick.timer /etc/systemd/system/multi-user.target.wants/tick.timer
        echo '{"op":"mkdir","path":"/srv"}'; } >ops
    msb-pull -q "oci:$(inits_image):latest" | msb-patch -f ops >patched.json
    vm_record=patched.json vm_boot worker --vmm qemu --channel serial --root block --init auto --timeout 900
    vm_exec worker sh -c 'until [ -s /srv/ticks ]; do sleep 0.2; done'
    msb-snapshot -q worker --stop >snap.json
    vm_record=snap.json vm_boot again --timeout 900
    jq -e '.vm.init == "/lib/systemd/systemd"' again.json
    [ "$(vm_exec again systemctl is-system-running)" = running ]
    [ "$(vm_exec again hostname)" = again ]
    for file in count ticks; do
        vm_exec again sh -c "before=\$(wc -l </srv/$file); until [ \"\$(wc -l </srv/$file)\" -gt \$((before + 1)) ]; do sleep 0.2; done"
    done
    # The journal has what was logged before, and what is now.
    vm_exec again sh -c 'echo afterwards | systemd-cat -t probe; until journalctl -q -o cat -t probe | grep -x afterwards; do sleep 0.2; done'
    vm_exec again journalctl -q -o cat -u tick.service | grep -x ticked
    [ "$(vm_exec again systemctl is-active count.service)" = active ]
    run --separate-stderr msb-stop -t 240 again
    [ "$stderr" = 'msb-stop: again: stopped' ] || { echo "$stderr"; return 1; }
    vm_assert_nothing
}
