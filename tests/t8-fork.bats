#!/usr/bin/env bats
# msb-fork: copies of a running VM; and what VMs from one snapshot share and have of their own.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    MSB_TEST_ROOT=block vm_setup
    vm_needs_qemu
}

teardown() {
    vm_teardown
}

# fork [FLAG…]: forks the VM base; the records are in the file forked, one a line.
fork() {
    msb-fork "$@" base >forked 2>fork.err || { cat fork.err >&2; return 1; }
}

# record NAME: a copy's record.
record() {
    jq -c --arg name "$1" 'select(.vm.name == $name)' forked
}

# in_copy NAME COMMAND…: runs a command in a copy.
in_copy() {
    record "$1" >"$1.json"
    vm_exec "$@"
}

# own_memory NAME: how much of a copy's memory only its VMM has, in KiB.
own_memory() {
    local pid
    for pid in $(vm_processes "$1/"); do
        [[ $(<"/proc/$pid/comm") != qemu* ]] || awk '
            /^[0-9a-f]+-[0-9a-f]+ / { is_guest = $2 == "rw-p" && $3 == "00000000" && /memory/ }
            is_guest && /^Private_Dirty/ { print $2 }' "/proc/$pid/smaps"
    done
}

@test "msb-fork starts copies with names and machine IDs of their own, which share the saved memory, and the VM goes on" {
    mkdir -p "$vm_root/etc"
    echo 0123456789abcdef0123456789abcdef >"$vm_root/etc/machine-id"
    vm_boot base --vmm qemu --channel serial -m 128M
    msb-exec base -- sh -c 'mkdir /tmp/m; mount -t tmpfs none /tmp/m; head -c 30000000 /dev/urandom >/tmp/m/large; sha256sum /tmp/m/large >/tmp/m/sum'
    msb-exec base -- cat /tmp/m/sum >sum
    fork -n 2 --new-machine-id
    [ ! -s fork.err ]
    [ "$(jq -r .vm.name forked | xargs)" = 'base-1 base-2' ]
    [ -z "$(ls "$MSB_HOME/snapshots")" ]
    for name in base-1 base-2; do
        [ "$(in_copy "$name" sh -c 'hostname; sha256sum -c -s /tmp/m/sum && echo same' | xargs)" = "$name same" ]
        in_copy "$name" cat /etc/machine-id >>ids
        in_copy "$name" sh -c 'echo changed >/tmp/m/large'
        # The copy has read all of the guest's memory that is in use. Only the pages that it changed are its own.
        own=$(own_memory "$name")
        echo "$name: $own KiB of its own"
        ((own > 0 && own < 60000))
    done
    [ "$(sort -u ids | grep -cxE '[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}')" = 2 ]
    msb-exec base -- sha256sum -c -s /tmp/m/sum
    [ "$(msb-exec base -- cat /etc/machine-id)" = 0123456789abcdef0123456789abcdef ]
    # A copy can be saved, with what it has changed and what it has not.
    msb-snapshot -q base-1 >snap.json
    msb-stop -q -t 5 base base-1 base-2 >/dev/null
    vm_record=$PWD/snap.json
    vm_boot again
    [ "$(vm_exec again cat /tmp/m/large)" = changed ]
    vm_exec again cat /tmp/m/sum | diff sum -
    msb-stop -q -t 5 again >/dev/null
    vm_assert_nothing
    run -1 --separate-stderr msb-boot -r "$PWD/base.json" --name other --new-machine-id
    [[ $stderr == 'msb-boot: --new-machine-id is for a VM that starts from a snapshot'* ]]
    run -1 --separate-stderr msb-boot -r "$PWD/base.json" --name other --new-machine-id --bare
    [[ $stderr == 'msb-boot: --new-machine-id: --bare leaves the root unchanged'* ]]
}

# bats test_tags=slow
@test "concurrent msb-snapshots each save the VM or report that it has ended; one that waits for a stopped supervisor can be interrupted" {
    vm_boot base --vmm qemu --channel serial -m 128M
    kill -STOP "$(vm_pid base)"
    msb-snapshot base >snap.json 2>snap.err 3>&- &
    waiting=$!
    is_saving() { [ -n "$(ls -A "$MSB_HOME/snapshots")" ]; }
    vm_await is_saving 2>/dev/null
    kill -TERM "$waiting"
    status=0
    wait "$waiting" || status=$?
    [ "$status" -eq 143 ]
    [ "$(<snap.err)" = 'msb-snapshot: interrupted' ]
    [ -z "$(ls -A "$MSB_HOME/snapshots")" ]
    kill -CONT "$(vm_pid base)"
    for n in 1 2; do msb-snapshot -q base >"saved$n" 3>&- & saving[n]=$!; done
    wait "${saving[1]}"
    wait "${saving[2]}"
    for n in 1 2 3; do msb-snapshot -q --stop base >"stopped$n" 2>"stopped$n.err" 3>&- & saving[n]=$!; done
    for n in 1 2 3; do wait "${saving[n]}" || [ $? -eq 1 ]; done
    [ "$(cat stopped? | wc -l)" = 1 ]
    for n in 1 2 3; do
        [ -s "stopped$n" ] || grep -qxE 'msb-snapshot: (base: not saved: the VM has ended \(boot it again\)|base: it does not run .*|record "base": no such .*)' "stopped$n.err" ||
            { cat "stopped$n.err"; return 1; }
    done
    vm_assert_nothing
}

# bats test_tags=slow
@test "a fork that is interrupted, or has a copy that does not start, leaves no copies, no snapshot, and the disks of other VMs" {
    vm_boot base --vmm qemu --channel serial -m 128M
    vm_boot base-2 -m 128M
    # A stopped VM has the name of a copy, and keeps its disk.
    vm_boot base-1 -m 128M
    msb-stop -q -t 5 base-1 >/dev/null
    disk=$MSB_HOME/sandboxes/base-1/top.ext4
    made=$(stat -c %i "$disk")
    run --separate-stderr msb-fork -n 3 base
    [ "$status" -eq 1 ]
    [[ $stderr == *'name "base-2": a VM of that name is running'* ]]
    [ -z "$output" ]
    [ "$(stat -c %i "$disk")" = "$made" ]
    # A killed msb-boot is reported by msb-fork.
    vm_copy_alone msb-fork
    printf '#!/bin/sh\nkill -9 $$\n' >alone/msb-boot
    chmod +x alone/msb-boot
    run --separate-stderr alone/msb-fork base
    [ "$status" -eq 1 ]
    [ "$stderr" = 'msb-fork: msb-boot was ended by signal 9' ]
    msb-stop -q -t 5 base-2 >/dev/null
    [ "$(ls "$MSB_RUN")" = base ]
    for delay in 0.0{1,2,4,6,8} 0.{1,12,15,2,25,3,4,5,6}; do
        run timeout --preserve-status -s TERM "$delay" msb-fork -n 4 --name copy base
        # It may have finished before the signal.
        [ "$status" -eq 143 ] || { [ "$status" -eq 0 ] && msb-rm -f copy-{1..4}; }
        [ "$(ls "$MSB_RUN")" = base ]
        [ -z "$(ls "$MSB_HOME/snapshots")" ]
    done
    msb-exec base -- true
    msb-stop -q -t 5 base >/dev/null
    vm_assert_nothing
}
