#!/usr/bin/env bats
# An agent that is reached by a virtio-serial port in the place of vsock, under QEMU; and snapshots, which need that.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats and vm.bash set variables
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
    vm_needs_qemu
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

@test "two VMs go on from one snapshot: the same files and processes, other random numbers, names and disks" {
    MSB_TEST_ROOT=block vm_setup
    vm_boot base --vmm qemu --channel serial -m 128M -e KIND=saved
    msb-exec base -- sh -c 'echo kept >/disk; mkdir /tmp/m; mount -t tmpfs none /tmp/m; echo kept >/tmp/m/memory'
    # A command that has a caller, and one that has none.
    mkfifo input
    msb-exec base -- sh -c 'cat; echo "the end"' <input >streamed 3>&- &
    caller=$!
    exec 4>input
    echo one >&4
    vm_await grep -q one streamed
    msb-exec -d base -- sh -c 'while :; do echo . >>/tmp/m/count; sleep 0.1; done'
    vm_exec base sh -c 'until [ -s /tmp/m/count ]; do sleep 0.05; done'
    msb-snapshot base >snap.json 2>snap.err 4>&-
    grep -E '^msb-snapshot: base: saved, paused for [0-9]+ ms$' snap.err
    jq -e '(has("vm") | not) and .snapshot.digest == "sha256:" + (.snapshot.path | split("/")[-1])' snap.json
    dir=$(jq -r .snapshot.path snap.json)
    [ "$(stat -c %a "$dir" "$dir"/{snapshot.json,state,memory} | xargs)" = '700 600 600 400' ]
    # The saved VM goes on, with its connections.
    msb-exec base -- sh -c 'echo changed >/disk'
    echo two >&4
    exec 4>&-
    wait "$caller"
    [ "$(<streamed)" = $'one\ntwo\nthe end' ]

    vm_record=$PWD/snap.json
    vm_boot a -e KIND=a &
    first=$!
    vm_boot b --hostname other.test
    wait "$first"
    for name in a b; do
        jq -e '.vm.vmm == "qemu" and .boot.channel == "serial" and has("snapshot")' "$name.json"
        [ "$(vm_exec "$name" cat /disk /tmp/m/memory)" = $'kept\nkept' ]
        vm_exec "$name" head -c 16 /dev/urandom >"$name.random"
        # The command without a caller goes on, and the one with a caller has seen the end of its input.
        vm_exec "$name" sh -c 'before=$(wc -l </tmp/m/count); while [ "$(wc -l </tmp/m/count)" = "$before" ] || pidof cat; do sleep 0.05; done'
        skew=$(($(vm_exec "$name" date +%s) - $(date +%s)))
        ((skew > -30 && skew < 30))
    done
    run ! cmp a.random b.random
    vm_exec a sh -c '[ "$KIND" = a ] && [ "$(hostname)" = a ] && [ "$(cat /etc/hostname)" = a ] && grep "127.0.0.1.a$" /etc/hosts && ! grep base /etc/hosts'
    vm_exec b sh -c '[ "$KIND" = saved ] && [ "$(hostname)" = other.test ] && grep "other.test other$" /etc/hosts'
    # Each has a disk and a memory of its own.
    vm_exec a sh -c 'echo a >/disk; echo a >/tmp/m/memory'
    [ "$(vm_exec b cat /disk /tmp/m/memory)" = $'kept\nkept' ]
    head -c 300000 /dev/urandom >random
    msb-cp random a:/copied
    vm_exec a sha256sum /copied | grep "$(sha256sum random | cut -d' ' -f1)"
    # What was started from a snapshot can be saved.
    msb-snapshot a --stop >again.json
    [ ! -e "$MSB_RUN/a" ]
    vm_record=$PWD/again.json
    vm_boot c
    [ "$(vm_exec c cat /disk)" = a ]
    [ "$(msb-store ls --json -t snapshot | jq -s 'length')" = 2 ]
    # What a snapshot holds is erased when it is removed, or when the last VM that uses it has ended.
    again=$(jq -r .snapshot.path again.json)
    exec 5<"$dir/memory" 6<"$again/memory" 7<"$again/state"
    is_erased() { cmp -n "$(stat -Lc %s "/dev/fd/$1")" "/dev/fd/$1" /dev/zero; }
    msb-store rm -t snapshot "${dir##*/}"
    [ ! -e "$dir" ]
    run ! is_erased 5
    [ "$(vm_exec b cat /disk)" = kept ]
    for name in b c base; do msb-stop -t 5 "$name" >stopped.json; done
    is_erased 5
    run ! is_erased 6
    run ! is_erased 7
    msb-store rm -t snapshot "${again##*/}"
    is_erased 6
    is_erased 7
    vm_assert_nothing
}

@test "what cannot be saved is refused while the VM runs on, and a snapshot that does not fit or was changed before a VM starts" {
    MSB_TEST_ROOT=block vm_setup
    refused() {
        run --separate-stderr "${@:2}"
        [ "$status" -eq 1 ]
        [[ $stderr == *"$1"* ]] || { echo "$stderr"; return 1; }
        [ -z "$output" ]
    }
    vm_boot base --vmm qemu --channel serial -m 128M
    jq -c '.boot.channel = "vsock"' base.json >vsock.json
    refused 'base: its agent is reached by vsock, which QEMU cannot save (boot it with --channel serial)' msb-snapshot -r vsock.json
    jq -c '.vm.root = "share"' base.json >shared.json
    refused 'a shared root cannot be saved' msb-snapshot -r shared.json
    jq -c '.vm.vmm = "krun"' base.json >krun.json
    refused 'libkrun cannot save a VM' msb-snapshot -r krun.json
    jq -c '.boot.volumes = [{volume: "cache", target: "/cache"}]' base.json >volume.json
    refused 'volume "/cache" cannot be saved' msb-snapshot -r volume.json
    [ ! -e "$MSB_HOME/snapshots" ]
    msb-snapshot -q base --stop >snap.json
    refused 'it does not run' msb-snapshot -r base.json
    refused '--cpus 2: a saved VM keeps its number of processors, 1' msb-boot -r snap.json --name a --cpus 2
    refused '--memory 256M: a saved VM keeps its memory of 128 MiB' msb-boot -r snap.json --name a --memory 256M
    refused 'a saved VM keeps its init' msb-boot -r snap.json --name a --init auto
    refused 'a saved VM keeps its volumes' msb-boot -r snap.json --name a -v cache:/cache
    refused 'a saved VM keeps its disk' msb-boot -r snap.json --name a --disk 1G
    refused 'a saved VM keeps its disk' msb-boot -r snap.json --name a --fresh
    refused 'a saved VM keeps the channel to its agent' msb-boot -r snap.json --name a --channel vsock
    refused '--restart: a VM that starts from a snapshot' msb-boot -r snap.json --name a --restart always
    jq -c '.rootfs.lower = ["/etc"]' snap.json >other.json
    refused 'a saved VM keeps its root' msb-boot -r other.json --name a
    dir=$(jq -r .snapshot.path snap.json)
    # changed FILE: refused with that file as it is now, and then the file is as before.
    changed() {
        refused "$1: not as it was saved" msb-boot -r snap.json --name a
        mv "$1.saved" "$dir/$1"
    }
    for file in state memory disk1; do
        cp --sparse=always "$dir/$file" "$file.saved"
        truncate -s -4096 "$dir/$file"
        changed "$file"
        cp --sparse=always "$dir/$file" "$file.saved"
        printf x | dd of="$dir/$file" bs=1 seek=70000 conv=notrunc status=none
        changed "$file"
    done
    # Another QEMU, in a description that nobody has tampered with otherwise.
    jq -c '.machine.vmm = "0.1"' "$dir/snapshot.json" >"$dir/new"
    refused 'snapshot.json: not as it was saved' msb-boot -r <(jq -c '.snapshot.digest = "sha256:0"' snap.json) --name a
    mv "$dir/new" "$dir/snapshot.json"
    jq -c --arg digest "sha256:$(sha256sum <"$dir/snapshot.json" | cut -d' ' -f1)" '.snapshot.digest = $digest' snap.json >other.json
    refused 'it was saved by QEMU 0.1, and this is QEMU' msb-boot -r other.json --name a
    jq -c '.machine.kernel = "other.vmlinux"' "$dir/snapshot.json" >new
    mv new "$dir/snapshot.json"
    jq -c --arg digest "sha256:$(sha256sum <"$dir/snapshot.json" | cut -d' ' -f1)" '.snapshot.digest = $digest' snap.json >other.json
    refused 'it was saved with another guest kernel' msb-boot -r other.json --name a
    msb-store ls --json -t snapshot | jq -e '.complete == false'
    msb-store rm -t snapshot "${dir##*/}"
    refused 'it is gone' msb-boot -r snap.json --name a
    vm_assert_nothing
}

# bats test_tags=slow
@test "a save that is killed at any moment, or has no room, leaves the VM running, and nothing that gc does not remove" {
    MSB_TEST_ROOT=block vm_setup
    vm_boot base --vmm qemu --channel serial -m 128M
    msb-snapshot base >first.json
    mv "$MSB_HOME/snapshots" kept
    mkdir -m 700 "$MSB_HOME/snapshots"
    mount -t tmpfs -o size=4M,mode=700 none "$MSB_HOME/snapshots"
    run --separate-stderr msb-snapshot base
    left=$(ls -A "$MSB_HOME/snapshots")
    umount "$MSB_HOME/snapshots"
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-snapshot: base: not saved: the memory: '*'No space left'* ]]
    [ -z "$left" ]
    rmdir "$MSB_HOME/snapshots"
    mv kept "$MSB_HOME/snapshots"
    msb-exec base -- true
    asked=
    for delay in 0.00{2,4,6,8} 0.0{1,2,3,4,5,6,7,8,9} 0.{10,12,14,16,18,20}; do
        for stop in '' --stop; do
            timeout -s KILL "$delay" msb-snapshot -q base $stop >killed.json || true
            # A killed msb-snapshot --stop may have stopped the VM, or asked for that.
            asked+=$stop
            if ! msb-exec base -- true 2>exec.err; then
                [ -n "$asked" ] || { cat exec.err; return 1; }
                vm_await_end "$(vm_pid base)"
                msb-stop -r base.json >stopped.json 2>&1 || true
                vm_boot base --vmm qemu --channel serial -m 128M
                asked=
            fi
        done
    done
    msb-store gc >/dev/null
    [ -z "$(find "$MSB_HOME/snapshots" -maxdepth 1 -name '.*')" ]
    msb-store ls --json -t snapshot | jq -se 'length > 0 and all(.complete)'
    vm_record=$PWD/first.json
    vm_boot other
    msb-exec other -- true
    for name in base other; do msb-stop -t 5 "$name" >stopped.json; done
    vm_assert_nothing
}

# bats test_tags=slow
@test "a VM from a snapshot has its init and its network, publishes ports, and can be committed" {
    MSB_TEST_ROOT=block vm_setup
    mkdir -p "$vm_root"/{sbin,etc/init.d}
    ln -s /bin/busybox "$vm_root/sbin/init"
    echo '::respawn:/bin/sh -c "while :; do echo . >>/count; sleep 0.2; done"' >"$vm_root/etc/inittab"
    export MSB_NETWORK=public
    vm_boot base --vmm qemu --channel serial -m 128M --init auto --add-host db:192.0.2.1
    msb-exec base -- sh -c 'echo one >/one'
    msb-snapshot base >snap.json
    vm_record=$PWD/snap.json
    vm_boot a -p 127.0.0.1:0:80
    jq -e '.vm.init == "/sbin/init"' a.json
    # Its services go on.
    # shellcheck disable=SC2016 # the guest expands it
    vm_exec a sh -c 'before=$(wc -l </count); while [ "$before" = "$(wc -l </count)" ]; do sleep 0.05; done; echo two >/two'
    vm_exec a grep 192.0.2.1 /etc/hosts
    msb-exec -d a -- sh -c 'while :; do echo hello | nc -l -p 80; done' >exec.json
    answers() { busybox nc -w 5 127.0.0.1 "$(jq -r '.vm.net.ports[0].host | split(":")[-1]' a.json)" </dev/null | grep hello; }
    vm_await answers
    run --separate-stderr msb-boot -r snap.json --name b --network none --add-host db:192.0.2.1
    [ "$status" -eq 1 ]
    msb-stop a --commit >committed.json
    jq -e 'has("snapshot") | not' committed.json
    upper=$(jq -r .upper.dir committed.json)
    [ "$(cat "$upper"/{one,two})" = $'one\ntwo' ]
    msb-stop base >stopped.json
    vm_assert_nothing
}

@test "msb-rm leaves the upper of a pipe that a snapshot needs" {
    source "$BATS_TEST_DIRNAME/image.bash"
    echo '{"op":"script","name":"hello","content":"#!/bin/sh\necho hello\n"}' >ops.jsonl
    msb-pull -q "oci:$(tiny_image):latest" | msb-patch -q -f ops.jsonl |
        msb-boot --vmm qemu --channel serial -m 128M --name worker >worker.json 3>&-
    upper=$(jq -r .upper.dir worker.json)
    msb-snapshot -q worker -o snap.json
    msb-rm -f worker
    msb-boot -r snap.json --name other -o other.json 3>&-
    [ "$(msb-exec other -- hello </dev/null)" = hello ]
    # Also if the snapshot has been damaged.
    echo damaged >>"$(jq -r .snapshot.path snap.json)/snapshot.json"
    msb-store ls --json -t snapshot | jq -e '.complete == false'
    msb-rm -f other
    sandbox=$(basename "$(dirname "$upper")")
    run -1 msb-store rm -t sandbox "$sandbox"
    [[ $output == *'snapshot '*' has it'* ]]
    [ -e "$upper" ]
    # No snapshot needs it any more.
    msb-store rm -t snapshot "$(jq -r .snapshot.digest snap.json)"
    msb-store rm -t sandbox "$sandbox"
    [ ! -e "$upper" ]
    vm_assert_nothing
}
