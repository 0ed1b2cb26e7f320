#!/usr/bin/env bats
# The life of a VM: however it ends, nothing is left after msb-stop, and msb-exec and msb-stop report the reason without delay.

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

# bats test_tags=vmm
@test "a guest that halts ends its VM, though the VMM would keep running" {
    vm_boot worker
    vm_exec worker halt -f || true
    vm_ends_with worker 'the guest powered off'
}

@test "a guest that reboots, with and without the agent, ends its VM" {
    for command in 'reboot -f' reboot; do
        vm_boot worker
        # shellcheck disable=SC2086 # several words
        vm_exec worker $command || true
        vm_await_end "$(vm_pid worker)"
        jq -e '.reason == "the guest rebooted" and .cause == "reboot"' "$XDG_RUNTIME_DIR/msb/worker/ended.json"
        vm_ends_with worker 'the guest rebooted'
    done
}

@test "a guest that powers off through the agent ends its VM" {
    vm_boot worker
    vm_exec worker poweroff || true
    vm_ends_with worker 'the guest powered off'
}

# bats test_tags=vmm
@test "nothing that the guest writes to its console ends the VM or changes the reported reason" {
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
    vm_ends_with worker 'the guest powered off'
}

@test "a VM of a caller that ignores SIGCHLD works as any other" {
    bash -c "trap '' CHLD; exec msb-boot -r \"\$1\" --name worker" - "$vm_record" >worker.json
    vm_exec worker poweroff -f || true
    vm_ends_with worker 'the guest powered off'
    bash -c "trap '' CHLD; exec msb-boot -r \"\$1\" --name worker" - "$vm_record" >worker.json
    run --separate-stderr bash -c "trap '' CHLD; exec msb-stop -r worker.json"
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    vm_assert_nothing
}

# bats test_tags=vmm-slow
@test "--restart on-reboot starts a VM again with its name, disk and record, but not one that powers off" {
    vm_boot worker --restart on-reboot
    vm_exec worker sh -c 'echo kept >/root/kept; sync; reboot -f' || true
    vm_await_restart worker
    [ "$(vm_exec worker cat /root/kept)" = kept ]
    [ "$(jq .vm.pid "$XDG_RUNTIME_DIR/msb/worker/record.json")" = "$(vm_pid worker)" ]
    grep -q 'starting it again in 0.1 s' "$XDG_RUNTIME_DIR/msb/worker/supervisor.log"
    vm_exec worker poweroff -f || true
    vm_ends_with worker 'the guest powered off'
}

@test "--restart always starts a VM again after its VMM was killed, but not after msb-stop" {
    vm_boot worker --restart always
    id=$(msb-exec -r worker.json -d -- sh -c 'echo kept >/root/kept; sync; echo said' | jq .id)
    [ "$(msb-logs -f worker "$id")" = said ]
    kill -KILL "$(vm_vmm worker)"
    vm_await_restart worker
    [ "$(vm_exec worker cat /root/kept)" = kept ]
    # Its output is kept too.
    [ "$(msb-logs worker "$id")" = said ]
    run --separate-stderr msb-stop -r worker.json
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    vm_assert_nothing
}

@test "a guest whose kernel panics ends its VM" {
    vm_boot worker -m 128M
    # More than all memory is to be kept free, so the next allocation fails.
    vm_exec worker sh -c 'cd /proc/sys/vm; echo 1 >panic_on_oom; echo 1000000 >min_free_kbytes; exec cat /bin/* /bin/*' >/dev/null || true
    vm_ends_with worker "the guest's kernel panicked"
}

@test "msb-exec reports that the VM has ended under its command, and why" {
    vm_boot worker
    run --separate-stderr timeout 300 msb-exec -r worker.json -- sh -c 'poweroff -f; sleep 100000'
    [ "$status" -eq 125 ]
    [[ $stderr == *'it is gone: the guest powered off'* ]]
}

# bats test_tags=slow
@test "a VM that gets little of the host's processors has more time to boot, as its limit counts none in which it waits" {
    msb-boot --probe | jq -e .parts.cgroup.usable || skip "no cgroup can be made here"
    limit=8
    begin=$SECONDS
    vm_boot worker --cpu-quota 10% --timeout "$limit"
    [ "$(vm_exec worker echo up)" = up ]
    [ $((SECONDS - begin)) -gt "$limit" ] || skip "this machine boots it in time"
}

# bats test_tags=vmm-slow
@test "a VM with limits has a cgroup of its own with all its processes, and a host that cannot make one is told" {
    limits=(--cpu-quota 150% --cpu-weight 50 --memory-max 1G --pids-max 500)
    io_weight=300
    run --separate-stderr msb-boot -r "$vm_record" --name worker --memory-max 100M
    [ "$status" -eq 1 ]
    [[ $stderr == *'--memory-max 100M: the VM needs '*' MiB, of which 512 are'* ]]
    if ! msb-boot --probe | jq -e .parts.cgroup.usable; then
        run --separate-stderr msb-boot -r "$vm_record" --name worker "${limits[@]}"
        [ "$status" -eq 1 ]
        [[ $stderr == 'msb-boot: limits of the VM: '*' ('*')' ]]
        vm_assert_nothing
        return
    fi
    vm_boot worker "${limits[@]}" --io-weight "$io_weight" 2>refused || {
        # Weights of disks are an option of the kernel, or a module.
        grep -qE '(this kernel has no (io.weight and no io.bfq.weight|blkio.bfq.weight and no blkio.weight) there|no controller \"io\")' refused
        vm_assert_nothing
        io_weight=null
        vm_boot worker "${limits[@]}"
    }
    expected=$'cpu.max 150000 100000\ncpu.weight 50\nmemory.max 1073741824\npids.max 500\nio.weight default 300'
    [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] ||
        expected=$'cpu.cfs_quota_us 150000\ncpu.shares 512\nmemory.limit_in_bytes 1073741824\npids.max 500\nblkio.bfq.weight 300'
    [ "$io_weight" = 300 ] || expected=${expected%$'\n'*}
    while read -r file value; do
        dir=$(dirname "$(find /sys/fs/cgroup -path "*/msb-worker.$(vm_pid worker)/$file" | grep .)")
        [ "$(cat "$dir/$file")" = "$value" ]
        # A thread of the kernel that serves the VM is there too.
        [ "$(sort -n "$dir/cgroup.procs" | while read -r pid; do grep -q ^kvm- "/proc/$pid/comm" || echo "$pid"; done)" = "$(vm_processes | sort -n)" ]
    done <<<"$expected"
    [ "$(vm_exec worker echo up)" = up ]
    msb-stop -r worker.json >stopped.json
    [ -z "$(find /sys/fs/cgroup -name "msb-worker.$(vm_pid worker)")" ]
    jq -e '.boot.limits | .cpu_quota_percent == 150 and .pids_max == 500 and .io_weight == '"$io_weight" stopped.json
}

@test "agentd cannot be killed in the guest, and TERM makes it end the machine" {
    vm_boot worker
    vm_exec worker sh -c 'kill -KILL 1; kill -SEGV 1; kill -STOP 1; sleep 0.2'
    [ "$(vm_exec worker echo alive)" = alive ]
    vm_exec worker kill -TERM 1 || true
    vm_ends_with worker 'the guest powered off'
}

@test "running out of memory ends a process in the guest, and not the VM" {
    vm_boot worker -m 128M
    run timeout 600 msb-exec -r worker.json -- awk 'BEGIN { while (1) a[i++] = sprintf("%10000d", i) }'
    [ "$status" -eq 137 ]
    [ "$(vm_exec worker echo alive)" = alive ]
    vm_await_log worker 'out of memory'
}

@test "with a stopped VMM a command does not wait for ever, and the VM can be ended" {
    vm_boot worker
    kill -STOP "$(vm_vmm worker)"
    run --separate-stderr timeout 300 msb-exec -r worker.json -- true
    [ "$status" -eq 125 ]
    [[ $stderr == *'its agent does not answer'* ]]
    run --separate-stderr timeout 300 msb-stop -r worker.json -t 1
    [ "$status" -eq 1 ]
    vm_assert_nothing
}

# bats test_tags=vmm
@test "if a mount dies under a running VM, commands fail, nothing hangs, and everything can be ended" {
    mkdir mounted
    jq -c 'del(.mount)' "$vm_record" | msb-mount mounted >mount.json
    vm_record=mount.json vm_boot worker
    kill -KILL "$(jq .mount.pid mount.json)"
    status=0
    timeout 300 msb-exec -r worker.json --timeout 180 -- sh -c 'cat /etc/group' || status=$?
    [ "$status" -ne 0 ]
    [ "$status" -ne 124 ]
    run --separate-stderr timeout 300 msb-stop -r worker.json -t 180 --unmount
    [ "$status" -eq 0 ]
    vm_assert_nothing
    run mountpoint -q mounted
    [ "$status" -ne 0 ]
}

@test "msb-boot interrupted at any moment leaves a VM with a valid record, or nothing" {
    for moment in 0.01 0.03 0.06 0.1 0.2 0.4 0.8 1.2 1.6 2 3; do
        for signal in INT TERM KILL; do
            # A third of the moments for INT and TERM each, to save time.
            [ $((10#${moment/./} % 3)) -eq $((${#signal} % 3)) ] || [ "$signal" = KILL ] || continue
            timeout --preserve-status -s "$signal" "$moment" msb-boot -r "$vm_record" --name any >any.json 2>any.err || true
            if [ -s any.json ]; then
                [ "$(timeout 300 msb-exec -r any.json -- hostname)" = any ]
                vm_kill any.json
            fi
            # Nobody waits for the supervisor of a msb-boot that was killed.
            vm_await_nothing || { echo "after $signal at $moment s"; cat any.err; return 1; }
        done
    done
}

# bats test_tags=vmm-slow
@test "time in the guest is the host's at boot, and again after the VM was paused" {
    vm_boot worker
    is_right() {
        local before after guest
        before=$(date +%s)
        guest=$(vm_exec worker date +%s)
        after=$(date +%s)
        [ "$guest" -ge $((before - 2)) ] && [ "$guest" -le $((after + 2)) ] || { echo "host $before..$after, guest $guest"; return 1; }
    }
    is_right
    kill -STOP "$(vm_vmm worker)"
    sleep 5
    kill -CONT "$(vm_vmm worker)"
    # The correction comes after the command that shows the pause.
    vm_await is_right
}

@test "random bytes are available at once, the hostname is the VM's name, and memory that the guest frees goes back to the host" {
    vm_boot worker
    [ "$(vm_exec worker sh -c 'head -c 64 /dev/random | wc -c')" -eq 64 ]
    # Waiting for entropy would take minutes: the kernel had it before its first process.
    [ "$(vm_exec worker dmesg | grep -oE 'crng init done|Run /agentd as init process' | head -n 1)" = 'crng init done' ]
    [ "$(vm_exec worker hostname)" = worker ]
    [ "$(vm_exec worker cat /proc/sys/kernel/hostname)" = worker ]
    used_mib() { awk '/^Pss:/ { print int($2 / 1024) }' "/proc/$(vm_vmm worker)/smaps_rollup"; }
    vm_exec worker sh -c 'head -c 200m /dev/zero >/dev/shm/file'
    full=$(used_mib)
    vm_exec worker rm /dev/shm/file
    is_back() { [ "$(used_mib)" -lt $((full - 100)) ]; }
    vm_await is_back
}

@test "a guest that floods its console delays nothing, and its escape sequences stay in the log" {
    vm_boot worker
    msb-exec -r worker.json --detach -- sh -c 'while :; do printf "\033[2Jflood\n"; done >/dev/console' >flood.json
    [ "$(timeout 300 msb-exec -r worker.json -- echo answered)" = answered ]
    run --separate-stderr timeout 600 msb-stop -r worker.json -t 180
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    vm_assert_nothing
}

# bats test_tags=vmm-slow
@test "a flood of the console and of a VMM's stderr delays no command, and is cut to what the logs may take, which they say" {
    vm_boot worker
    vmm=$(vm_vmm worker)
    # An emulated guest is too slow for that, so the pipes of its VMM are written to.
    for number in 1 2; do
        yes $'\e[2Jflood' | head -c 64m >"/proc/$vmm/fd/$number" &
        flood=$!
        [ "$(vm_exec worker echo answered)" = answered ]
        wait "$flood"
    done
    cd "$XDG_RUNTIME_DIR/msb/worker" || return
    [ "$(cat kernel.log kernel.log.1 | wc -c)" -lt $((8500 << 10)) ]
    [ "$(cat supervisor.log* | wc -c)" -lt $((4 << 20)) ]
    # The message comes with the next line that is written.
    wrote_after() {
        msb-exec worker -- sh -c 'echo after the flood >/dev/console' && grep -q '^after the flood' kernel.log
    }
    vm_await wrote_after
    grep -aq '^\[msb: [0-9]* bytes came too fast and are left out\]$' kernel.log
    vm_await grep -aq '[0-9] bytes came too fast and are left out$' supervisor.log
    # Control characters do not reach a terminal that shows the log.
    run ! grep -q $'\e' supervisor.log
    cd "$BATS_TEST_TMPDIR" || return
    [ "$(vm_exec worker echo alive)" = alive ]
    run --separate-stderr msb-stop -r worker.json
    [ "$stderr" = 'msb-stop: worker: stopped' ]
}

# watch_clock: boots a VM that writes its time into the file "clock" ten times a second. The writer is in $watching.
watch_clock() {
    vm_boot worker
    msb-exec -r worker.json -n -- sh -c 'while :; do date +%s; sleep 0.1; done' >clock &
    watching=$!
    until [ -s clock ]; do sleep 0.1; done
}

# is_apart SECONDS: whether the guest's newest time differs so much from the host's, or more.
is_apart() {
    local difference=$(($(tail -n 1 clock) - EPOCHSECONDS))
    [ "${difference#-}" -ge "$1" ]
}

is_together() { ! is_apart 3; }

# await_right_clock: waits until the guest's time is the host's.
await_right_clock() {
    vm_await is_together || { echo "host $EPOCHSECONDS, guest $(tail -n 1 clock)"; return 1; }
}

# bats test_tags=vmm
@test "the guest's clock follows a change of the host's, in both directions, without a command" {
    [ -n "${MSB_KVM_HOST:-}" ] || skip "it sets the host's clock, so it needs a host that is thrown away, as tests/kvm-host makes one"
    watch_clock
    for change in +86400 -86400; do
        date -s "@$((EPOCHSECONDS + change))" >/dev/null
        await_right_clock
    done
    kill "$watching"
    wait "$watching" || true
    msb-stop -r worker.json >/dev/null
}

# bats test_tags=slow
@test "the guest's clock is corrected once its VMM continues after a stop, in both directions, without a command" {
    watch_clock
    vmm=$(vm_vmm worker)
    for wrong in 1000000000 4000000000; do
        vm_exec worker date -s "@$wrong" >/dev/null
        until is_apart 1000; do sleep 0.1; done
        kill -STOP "$vmm"
        # SIGCONT discards a SIGSTOP that has not taken effect yet.
        until grep -q '^State:[[:space:]]*T' "/proc/$vmm/status"; do sleep 0.02; done
        kill -CONT "$vmm"
        await_right_clock
    done
    kill "$watching"
    wait "$watching" || true
    msb-stop -r worker.json >/dev/null
}
