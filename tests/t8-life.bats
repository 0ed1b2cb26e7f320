#!/usr/bin/env bats
# Life and death of a VM: however it ends, nothing of it is left after msb-stop, and whoever asks is told why, in time.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
}

teardown() {
    vm_teardown
    ! grep -q " $BATS_TEST_TMPDIR/mounted " /proc/self/mountinfo || umount -l mounted
}

# ends_with REASON: the VM ends by itself; msb-exec and msb-stop say why, and nothing is left.
ends_with() {
    vm_await_end "$(vm_pid worker)"
    [ -z "$(vm_processes)" ]
    run --separate-stderr timeout 30 msb-exec -r worker.json -- true
    [ "$status" -eq 125 ]
    # shellcheck disable=SC2053 # a pattern
    [[ $stderr == "msb-exec: vm \"worker\": it is gone: "$1*'kernel.log'* ]] || { echo "$stderr"; return 1; }
    run --separate-stderr timeout 30 msb-stop -r worker.json
    [ "$status" -eq 0 ]
    vm_assert_nothing
}

@test "a guest that powers off" {
    vm_boot worker
    vm_exec worker poweroff -f || true
    ends_with 'the guest powered off'
}

# bats test_tags=vmm
@test "a guest that halts, with a VMM that would live on" {
    vm_boot worker
    vm_exec worker halt -f || true
    ends_with 'the guest powered off'
}

@test "a guest that reboots, by itself and by the agent" {
    for command in 'reboot -f' reboot; do
        vm_boot worker
        # shellcheck disable=SC2086 # several words
        vm_exec worker $command || true
        ends_with 'the guest rebooted'
    done
}

@test "a guest that powers off by the agent" {
    vm_boot worker
    vm_exec worker poweroff || true
    ends_with 'the guest powered off'
}

# bats test_tags=vmm
@test "nothing that is written to the console ends a VM, or says how it ended" {
    vm_boot worker
    vm_exec worker sh -c '
        for line in "reboot: System halted" "[    1.000000] reboot: Power down" "Power off not available" \
            "[    2.000000] Kernel panic - not syncing: nothing" "[    3.000000] reboot: Power off not available: System halted instead"; do
            echo "$line" >/dev/console; echo "<0>$line" >/dev/kmsg; echo "<0>${line#*] }" >/dev/kmsg
        done'
    until grep -q 'its agent answers: it goes on' "$XDG_RUNTIME_DIR/msb/worker/supervisor.log"; do sleep 0.05; done
    sleep 1.5
    [ "$(vm_exec worker echo alive)" = alive ]
    vm_exec worker poweroff -f || true
    ends_with 'the guest powered off'
}

@test "a caller who ignores SIGCHLD has a VM as any other" {
    bash -c "trap '' CHLD; exec msb-boot -r \"\$1\" --name worker" - "$vm_record" >worker.json
    vm_exec worker poweroff -f || true
    ends_with 'the guest powered off'
    bash -c "trap '' CHLD; exec msb-boot -r \"\$1\" --name worker" - "$vm_record" >worker.json
    run --separate-stderr bash -c "trap '' CHLD; exec msb-stop -r worker.json"
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    vm_assert_nothing
}

# bats test_tags=vmm
@test "--restart starts a VM again, with its name, its disk and its record, but not one that was stopped" {
    vm_boot worker --restart on-reboot
    vm_exec worker sh -c 'echo kept >/root/kept; sync; reboot -f' || true
    until [ "$(jq '.vm.restarts // 0' "$XDG_RUNTIME_DIR/msb/worker/record.json")" = 1 ]; do kill -0 "$(vm_pid worker)"; sleep 0.05; done
    [ "$(vm_exec worker cat /root/kept)" = kept ]
    [ "$(jq .vm.pid "$XDG_RUNTIME_DIR/msb/worker/record.json")" = "$(vm_pid worker)" ]
    grep -q 'starting it again in 0.1 s' "$XDG_RUNTIME_DIR/msb/worker/supervisor.log"
    vm_exec worker poweroff -f || true
    ends_with 'the guest powered off'

    vm_boot worker --restart always
    kill -KILL "$(vm_vmm worker)"
    until [ "$(jq '.vm.restarts // 0' "$XDG_RUNTIME_DIR/msb/worker/record.json")" = 1 ]; do kill -0 "$(vm_pid worker)"; sleep 0.05; done
    [ "$(vm_exec worker cat /root/kept)" = kept ]
    run --separate-stderr msb-stop -r worker.json
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    vm_assert_nothing
}

@test "a guest whose kernel panics" {
    vm_boot worker -m 128M
    # More than there is to be kept free: whoever asks for a page next finds none.
    vm_exec worker sh -c 'cd /proc/sys/vm; echo 1 >panic_on_oom; echo 1000000 >min_free_kbytes; exec cat /bin/* /bin/*' >/dev/null || true
    ends_with "the guest's kernel panicked"
}

@test "a command in the guest hears that its VM is gone, and why" {
    vm_boot worker
    run --separate-stderr timeout 60 msb-exec -r worker.json -- sh -c 'sleep 1; poweroff -f; sleep 60'
    [ "$status" -eq 125 ]
    [[ $stderr == *'it is gone: the guest powered off'* ]]
}

@test "agentd cannot be killed from inside, and TERM is its way to end the machine" {
    vm_boot worker
    vm_exec worker sh -c 'kill -KILL 1; kill -SEGV 1; kill -STOP 1; sleep 0.2'
    [ "$(vm_exec worker echo alive)" = alive ]
    vm_exec worker kill -TERM 1 || true
    ends_with 'the guest powered off'
}

@test "memory that runs out costs a process in the guest, and not the VM" {
    vm_boot worker -m 128M
    run timeout 120 msb-exec -r worker.json -- awk 'BEGIN { while (1) a[i++] = sprintf("%10000d", i) }'
    [ "$status" -eq 137 ]
    [ "$(vm_exec worker echo alive)" = alive ]
    grep -qi 'out of memory' "$XDG_RUNTIME_DIR/msb/worker/kernel.log"
}

@test "a VMM that is killed, and one that is stopped" {
    vm_boot worker
    kill -KILL "$(vm_vmm worker)"
    ends_with '* was killed by SIGKILL'
    vm_boot worker
    kill -STOP "$(vm_vmm worker)"
    run --separate-stderr timeout 40 msb-exec -r worker.json -- true
    [ "$status" -eq 125 ]
    [[ $stderr == *'its agent does not answer'* ]]
    run --separate-stderr timeout 30 msb-stop -r worker.json -t 1
    [ "$status" -eq 1 ]
    vm_assert_nothing
}

@test "a supervisor that is killed takes its VM along" {
    vm_boot worker
    kill -KILL "$(vm_pid worker)"
    ends_with 'its supervisor was killed'
}

# bats test_tags=vmm
@test "a mount that dies under a running VM: commands fail, nothing hangs, and all can be ended" {
    mkdir mounted
    jq -c 'del(.mount)' "$vm_record" | msb-mount mounted >mount.json
    vm_record=mount.json vm_boot worker
    kill -KILL "$(jq .mount.pid mount.json)"
    status=0
    timeout 60 msb-exec -r worker.json --timeout 20 -- sh -c 'cat /etc/group' || status=$?
    [ "$status" -ne 0 ]
    [ "$status" -ne 124 ]
    run --separate-stderr timeout 60 msb-stop -r worker.json -t 5 --unmount
    [ "$status" -eq 0 ]
    vm_assert_nothing
    run mountpoint -q mounted
    [ "$status" -ne 0 ]
}

@test "msb-boot interrupted at any moment leaves a VM with a true record, or nothing" {
    for moment in 0.01 0.03 0.06 0.1 0.2 0.4 0.8 1.2 1.6 2 3; do
        for signal in INT TERM KILL; do
            # A third of the moments for each signal, so that this ends.
            [ $((10#${moment/./} % 3)) -eq $((${#signal} % 3)) ] || [ "$signal" = KILL ] || continue
            timeout --preserve-status -s "$signal" "$moment" msb-boot -r "$vm_record" --name any >any.json 2>any.err || true
            if [ -s any.json ]; then
                [ "$(timeout 30 msb-exec -r any.json -- hostname)" = any ]
                vm_kill any.json
            else
                for pid in $(vm_processes); do vm_await_end "$pid"; done
            fi
            vm_assert_nothing || { echo "after $signal at $moment s"; cat any.err; return 1; }
        done
    done
}

# bats test_tags=vmm
@test "time in the guest is the host's at boot, and again after the VM was paused" {
    vm_boot worker
    difference() {
        local before after guest
        before=$(date +%s)
        guest=$(vm_exec worker date +%s)
        after=$(date +%s)
        [ "$guest" -ge $((before - 2)) ] && [ "$guest" -le $((after + 2)) ] || { echo "host $before..$after, guest $guest"; return 1; }
    }
    difference
    kill -STOP "$(vm_vmm worker)"
    sleep 5
    kill -CONT "$(vm_vmm worker)"
    difference
}

@test "random bytes are there at once, and the host's name is the VM's" {
    vm_boot worker
    [ "$(vm_exec worker sh -c 'head -c 64 /dev/random | wc -c')" -eq 64 ]
    # Since the guest's start; what waits for entropy waits for minutes.
    [ "$(vm_exec worker sed 's/\..*//' /proc/uptime)" -lt 30 ]
    [ "$(vm_exec worker hostname)" = worker ]
    [ "$(vm_exec worker cat /proc/sys/kernel/hostname)" = worker ]
}

@test "a guest that floods its console holds up nobody, and its escapes stay in the log" {
    vm_boot worker
    msb-exec -r worker.json --detach -- sh -c 'while :; do printf "\033[2Jflood\n"; done >/dev/console' >flood.json
    [ "$(timeout 30 msb-exec -r worker.json -- echo answered)" = answered ]
    run --separate-stderr timeout 60 msb-stop -r worker.json -t 30
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    vm_assert_nothing
}

@test "the guest's clock is set right when its VMM goes on after a stop, in both directions, without a command" {
    vm_boot worker
    id=$(msb-exec -r worker.json -d -- sh -c 'while :; do date +%s; sleep 0.1; done' | jq .id)
    msb-exec -r worker.json -n --attach "$id" >clock &
    attached=$!
    # apart SECONDS: whether the guest's newest time is that far from the host's, or farther.
    apart() { [ "$(($(tail -n 1 clock) - EPOCHSECONDS))" -ge "$1" ] || [ "$((EPOCHSECONDS - $(tail -n 1 clock)))" -ge "$1" ]; }
    right() { ! apart 3; }
    vmm=$(vm_vmm worker)
    for wrong in 1000000000 4000000000; do
        vm_exec worker date -s "@$wrong" >/dev/null
        until apart 1000; do sleep 0.1; done
        kill -STOP "$vmm"
        # A signal to go on takes one to stop back that has not had its effect.
        until grep -q '^State:[[:space:]]*T' "/proc/$vmm/status"; do sleep 0.02; done
        kill -CONT "$vmm"
        for ((tries = 0; tries < 200; tries++)); do
            ! right || break
            sleep 0.1
        done
        right
    done
    kill "$attached"
    wait "$attached" || true
    msb-stop -r worker.json >/dev/null
}
