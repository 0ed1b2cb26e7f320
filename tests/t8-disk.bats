#!/usr/bin/env bats
# Disk roots: raw and qcow2 images with ext4. The image does not change; what the guest writes goes to an overlay.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
}

teardown() {
    vm_teardown
}

# disk FORMAT: makes a disk image of the small root, and its record ($vm_record).
disk() {
    truncate -s 64M disk.raw
    mke2fs -q -t ext4 -d "$vm_root" disk.raw
    [ "$1" = raw ] || qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
    vm_record=$PWD/disk.json
    msb-pull "./disk.$1" >"$vm_record"
}

# A VM with the disk shows it, takes what is written, and runs scripts.
shows_the_disk() {
    jq -e '.vm.root == "disk"' worker.json
    [ "$(vm_exec worker stat -f -c %T /)" = ext2/ext3 ]
    grep -q '^nobody:' <(vm_exec worker cat /etc/passwd)
    vm_exec worker sh -c 'echo new >/tmp/new; rm /etc/group; sync'
    [ "$(vm_exec worker cat /tmp/new)" = new ]
    [ "$(vm_exec worker hello)" = 'hello from a script' ]
}

a_disk_boots() {
    disk "$1"
    printf '#!/bin/sh\necho hello from a script\n' >hello
    sum=$(sha256sum <"disk.$1")
    vm_boot worker --script hello=hello
    shows_the_disk
    msb-stop -r worker.json >stopped.json
    [ "$(sha256sum <"disk.$1")" = "$sum" ]
    [ -z "$(find "$MSB_HOME" -name '*overlay*')" ]
    # Nothing that the first VM wrote is in the second.
    vm_boot worker
    [ "$(vm_exec worker cat /etc/group | wc -l)" -eq 2 ]
}

an_overlay_keeps() {
    disk "$1"
    printf '#!/bin/sh\necho hello from a script\n' >hello
    sum=$(sha256sum <"disk.$1")
    vm_boot worker --script hello=hello --overlay kept.qcow2
    shows_the_disk
    run --separate-stderr msb-boot -r "$vm_record" --overlay kept.qcow2
    [ "$status" -eq 1 ]
    [[ $stderr == *"overlay \"$PWD/kept.qcow2\": another VM has it"* ]]
    msb-stop -r worker.json >stopped.json
    qemu-img check -q kept.qcow2
    [ "$(sha256sum <"disk.$1")" = "$sum" ]
    vm_boot worker --overlay kept.qcow2
    [ "$(vm_exec worker cat /tmp/new)" = new ]
    run vm_exec worker cat /etc/group
    [ "$status" -ne 0 ]
    # After a stop, also by an init that unmounts, the journal needs no recovery; after a kill it does, and synced data is there.
    [ "$(recoveries)" = 0 ]
    [ "$1" = raw ] || return 0
    vm_exec worker sh -c 'ln -sf ../bin/busybox /bin/init; printf "%s\n" ::sysinit:/bin/true "::shutdown:/bin/umount -a -r" >/etc/inittab'
    msb-stop -r worker.json >stopped.json
    vm_boot worker --overlay kept.qcow2 --init /bin/init
    vm_exec worker sh -c 'echo more >/tmp/more'
    msb-stop -r worker.json >stopped.json
    vm_boot worker --overlay kept.qcow2
    [ "$(recoveries)" = 0 ]
    [ "$(vm_exec worker cat /tmp/more)" = more ]
    vm_exec worker sh -c 'echo synced >/tmp/synced; sync; echo late >/tmp/late'
    kill -KILL "$(vm_vmm worker)"
    vm_await_end "$(vm_pid worker)"
    vm_boot worker --overlay kept.qcow2
    [ "$(recoveries)" -gt 0 ]
    [ "$(vm_exec worker cat /tmp/synced)" = synced ]
}

# recoveries: prints how often the guest's kernel has recovered the disk's journal since its boot.
recoveries() {
    vm_exec worker dmesg | grep -c 'EXT4-fs.*recovery complete' || true
}

# bats test_tags=slow
@test "a raw disk boots with scripts, and its file does not change" {
    a_disk_boots raw
}

# bats test_tags=vmm-slow
@test "a qcow2 disk boots with scripts, and its file does not change" {
    a_disk_boots qcow2
}

# bats test_tags=slow
@test "what a guest writes to a raw disk is kept in --overlay, and the disk does not change" {
    an_overlay_keeps raw
}

@test "what a guest writes to a qcow2 disk is kept in --overlay, and the disk does not change" {
    an_overlay_keeps qcow2
}

@test "two VMs share a disk, and each has its own overlay" {
    disk raw
    vm_boot one
    vm_boot two
    vm_exec one sh -c 'echo one >/tmp/who'
    vm_exec two sh -c 'echo two >/tmp/who'
    [ "$(vm_exec one cat /tmp/who) $(vm_exec two cat /tmp/who)" = 'one two' ]
}

@test "a disk that refers to other files of the host is refused" {
    disk raw
    echo secret >canary
    truncate -s 1M canary
    qemu-img create -q -f qcow2 -b "$PWD/canary" -F raw trap.qcow2
    jq -nc --arg path "$PWD/trap.qcow2" '{msb: 1, rootfs: {kind: "disk", path: $path, format: "qcow2"}}' >trap.json
    run --separate-stderr msb-boot -r trap.json
    [ "$status" -eq 1 ]
    [[ $stderr == *"trap.qcow2\": it has a backing file"*"qemu-img convert"* ]]
    qemu-img create -q -f qcow2 -o "data_file=$PWD/canary,data_file_raw=on" data.qcow2 1M
    jq -nc --arg path "$PWD/data.qcow2" '{msb: 1, rootfs: {kind: "disk", path: $path, format: "qcow2"}}' >trap.json
    run --separate-stderr msb-boot -r trap.json
    [ "$status" -eq 1 ]
    [[ $stderr == *'data.qcow2": its data is in another file'* ]]
    vm_assert_nothing
}

@test "--overlay refuses an overlay of another disk, a file that is no overlay, and a root that is not a disk" {
    root_record=$vm_record
    disk raw
    cp disk.raw other.raw
    qemu-img create -q -f qcow2 -b "$PWD/other.raw" -F raw other.qcow2
    for try in 'other.qcow2|its backing file is "*/other.raw" and not "*/disk.raw"' 'disk.raw|it is not a qcow2 image' '/nonexistent/x|No such file'; do
        run --separate-stderr msb-boot -r "$vm_record" --overlay "${try%%|*}"
        [ "$status" -eq 1 ]
        # shellcheck disable=SC2053 # a pattern
        [[ $stderr == *'overlay "'*"${try%%|*}\": "*${try#*|}* ]]
    done
    run --separate-stderr msb-boot -r "$root_record" --overlay x
    [ "$status" -eq 1 ]
    [[ $stderr == *"--overlay: the record's root is not a disk"* ]]
    vm_assert_nothing
}

@test "a disk without a file system is an error that the agent reports" {
    truncate -s 8M disk.raw
    jq -nc --arg path "$PWD/disk.raw" '{msb: 1, rootfs: {kind: "disk", path: $path, format: "raw"}}' >disk.json
    run --separate-stderr msb-boot -r disk.json
    [ "$status" -eq 1 ]
    [[ $stderr == *"msb-boot: guest: "*"/dev/vda"* ]]
    vm_assert_nothing
}

@test "msb-patch and msb-mount refuse a disk" {
    disk qcow2
    echo '{"op":"mkdir","path":"/a"}' >ops
    run --separate-stderr msb-patch -r "$vm_record" -f ops
    [ "$status" -eq 1 ]
    [[ $stderr == *': patches need a layered or directory root, and this is a qcow2 disk' ]]
    run --separate-stderr msb-mount -r "$vm_record" root
    [ "$status" -eq 1 ]
    [[ $stderr == *': a mount needs a layered or directory root, and this is a qcow2 disk'* ]]
}

@test "a disk of msb-pack boots, with the changes of the upper" {
    { msb-pull "$vm_root"; echo '{"op":"text","path":"/packed","content":"yes\n"}'
        printf '{"op":"script","name":"%s","content":"#!/bin/sh\\necho of the disk\\n"}\n' own both; } | msb-patch >patched.json
    msb-pack -q -r patched.json --free 8M raw:packed.raw qcow2:packed.qcow2 erofs:packed.erofs -o packed.json
    e2fsck -fn packed.raw
    [ "$(jq -r '.rootfs | "\(.kind) \(.format) \(.path)"' packed.json)" = "disk raw $PWD/packed.raw" ]
    qemu-img compare packed.raw packed.qcow2
    jq 'del(.scripts)' packed.json >without.json
    printf '#!/bin/sh\necho of the record\n' >both
    vm_record=$PWD/without.json
    vm_boot worker --script both=both
    [ "$(vm_exec worker cat /packed)" = yes ]
    # The scripts of the disk, unless the record has one of that name.
    [ "$(vm_exec worker sh -c 'own; both')" = $'of the disk\nof the record' ]
    vm_exec worker sh -c "echo >/new"
    # An EROFS disk is below a scratch disk. A VM reads one that only its owner may read, and leaves it so.
    chmod 0600 packed.erofs
    msb-pull ./packed.erofs >"$vm_record"
    for flag in --overlay=kept.qcow2 --commit-on-stop --root=disk; do
        run -1 msb-boot -r "$vm_record" --name read-only "$flag"
    done
    vm_boot read-only
    jq -e '.rootfs.format == "erofs" and .vm.root == "block"' read-only.json
    [ "$(vm_exec read-only sh -c 'cat /packed; own; echo new >/packed; cat /packed')" = $'yes\nof the disk\nnew' ]
    [ "$(stat -c %a packed.erofs)" = 600 ]
}
