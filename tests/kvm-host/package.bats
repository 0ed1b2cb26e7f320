#!/usr/bin/env bats
# What the Debian package installs, on a host with KVM, with each VMM. tests/kvm-host/run installs it in the nested host.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    [ "${MSB_KVM_HOST:-}" = nested ] || skip "it runs where the package is installed (make test-arm64)"
    source "$BATS_TEST_DIRNAME/../image.bash"
    source "$BATS_TEST_DIRNAME/../vm.bash"
    vm_setup
}

teardown() {
    [ -z "${vm_record:-}" ] || vm_teardown
    ! mountpoint -q mounted || msb-mount -u mounted
}

# patched: prints the record of an image with a patch.
patched() {
    { msb-pull "oci:$(tiny_image):latest"; echo '{"op": "text", "path": "/etc/motd", "content": "patched\n"}'; } | msb-patch
}

# commands NAME: runs commands in a VM of "patched".
commands() {
    [ "$(msb-exec "$1" -- uname -m)" = "$(uname -m)" ]
    [ "$(msb-exec "$1" -- cat /etc/motd)" = patched ]
    [ "$(head -c 1000000 /dev/zero | msb-exec "$1" -- cat | wc -c)" = 1000000 ]
    run msb-exec "$1" -- sh -c 'echo kept >/root/kept; exit 7'
    [ "$status" -eq 7 ]
}

# share VMM: the whole pipe, with the root as a share.
share() {
    patched | msb-mount mounted | msb-boot --vmm "$1" --name pipe --timeout 900 >vm.json
    jq -e --arg vmm "$1" '.vm.vmm == $vmm and .vm.root == "share"' vm.json
    commands pipe
    [ "$(cat mounted/root/kept)" = kept ]
    echo host >mounted/root/host
    [ "$(msb-exec pipe -- cat /root/host)" = host ]
    run --separate-stderr msb-stop pipe --unmount
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: pipe: stopped' ]
    [ "$(cat "$(jq -r .upper.dir <<<"$output")/root/kept")" = kept ]
    [ -z "$(ls -A mounted)" ]
    vm_assert_nothing
}

# block VMM: the same root as disks, and a commit.
block() {
    patched | msb-boot --vmm "$1" --name disks --timeout 900 >vm.json
    jq -e --arg vmm "$1" '.vm.vmm == $vmm and .vm.root == "block"' vm.json
    commands disks
    msb-stop disks --commit >stopped.json
    [ "$(cat "$(jq -r .upper.dir stopped.json)/root/kept")" = kept ]
    vm_assert_nothing
}

# init VMM: BusyBox's init as PID 1.
init() {
    cat >ops.jsonl <<'END'
{"op": "text", "path": "/etc/inittab", "content": "::sysinit:/bin/true\n::shutdown:/bin/touch /root/shutdown\n"}
{"op": "symlink", "link": "/sbin/init", "target": "../bin/busybox"}
END
    { msb-pull "oci:$(tiny_image):latest"; cat ops.jsonl; } | msb-patch | msb-mount mounted |
        msb-boot --vmm "$1" --name init --init auto --timeout 900 >vm.json
    jq -e '.vm.init == "/sbin/init"' vm.json
    [ "$(msb-exec init -- cat /proc/1/comm)" = busybox ]
    run --separate-stderr msb-stop init
    [ "$stderr" = 'msb-stop: init: stopped' ]
    [ -e mounted/root/shutdown ]
    msb-mount -u mounted
    vm_assert_nothing
}

@test "the tools are the installed ones, and msb-boot finds all that VMs need, with KVM" {
    [ "$(command -v msb-boot)" = /usr/bin/msb-boot ]
    msb-boot --probe >probe.json
    jq -e '.vmm == "krun" and .vmms.krun.usable and .vmms.qemu.usable and .vmms.qemu.by == "on KVM"' probe.json
    jq -e '[.parts | to_entries[] | select(.value.usable | not) | .key] - ["ping", "cgroup", "privileges", "landlock"] == []' probe.json
    msb doctor
}

@test "krun: an image is pulled, patched, mounted and booted; commands run, and their files are kept after a stop" { share krun; }

@test "QEMU: an image is pulled, patched, mounted and booted; commands run, and their files are kept after a stop" { share qemu; }

@test "krun: a VM with a block root runs commands, and what they wrote is committed" { block krun; }

@test "QEMU: a VM with a block root runs commands, and what they wrote is committed" { block qemu; }

@test "krun: BusyBox's init is PID 1, and shuts down" { init krun; }

@test "QEMU: BusyBox's init is PID 1, and shuts down" { init qemu; }

@test "msb-run does all of it at once, and leaves nothing" {
    [ "$(msb run --entrypoint '[]' --network none "oci:$(tiny_image):latest" -- uname -m)" = "$(uname -m)" ]
    vm_assert_nothing
}
