#!/usr/bin/env bats
# The choice of a VMM, and the messages if none is usable. On a machine with virtualization most of these are skipped.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
    unset MSB_VMM
}

teardown() {
    vm_teardown
    if grep -q " $BATS_TEST_TMPDIR/small " /proc/self/mountinfo; then umount -l small; fi
}

has_virtualization() {
    grep -qwE 'vmx|svm' /proc/cpuinfo
}

@test "auto chooses qemu if the CPU has no virtualization, and prints the reason once, or with -v" {
    if has_virtualization; then skip "this CPU has virtualization"; fi
    export MSB_HOME=$PWD/home
    vm_boot quiet -q
    [ ! -s quiet.err ]
    vm_boot worker
    [ "$(jq -r .vm.vmm worker.json)" = qemu ]
    if [ -e /dev/kvm ]; then grep -q 'krun: /dev/kvm is there but the CPU shows no vmx or svm' worker.err; fi
    grep -q 'using qemu' worker.err
    [ "$(wc -l <worker.err)" -eq 1 ]
    # -v prints the same each time, as a later test checks.
    [ "$(cat worker.err)" = "msb-boot: $(msb-boot --probe | jq -r .words)" ]
    vm_boot again
    [ ! -s again.err ]
}

@test "--vmm krun is refused if the CPU has no virtualization, and leaves nothing" {
    if has_virtualization; then skip "this CPU has virtualization"; fi
    run --separate-stderr msb-boot -r "$vm_record" --vmm krun
    [ "$status" -eq 1 ]
    [ -z "$output" ]
    [[ $stderr == "msb-boot: krun: /dev/kvm "*" the CPU shows no vmx or svm"*" (switch virtualization on "* ]]
    vm_assert_nothing
}

@test "--probe prints JSON: what was found, what would be chosen, and remedies for the rest" {
    msb-boot --probe >probe.json || [ "$(id -u)" != 0 ]
    [ "$(wc -l <probe.json)" -eq 1 ]
    jq -e '.parts | keys == ["agentd", "cgroup", "kvm", "landlock", "libkrunfw", "mke2fs", "mkfs.erofs", "passt", "ping", "privileges", "qemu", "vhost-device-vsock", "virtiofsd"]' probe.json
    jq -e '[.parts[], .vmms[], .guests[]] | length > 12 and all(if .usable then .by else .found and .remedy end)' probe.json
    jq -e '.overhead_mib == {qemu: 128, krun: 48}[.vmm]' probe.json
    if has_virtualization; then skip "this CPU has virtualization"; fi
    jq -e '.vmm == "qemu" and .vmms.qemu.by == "software emulation" and (.words | endswith("; using qemu (software emulation)"))' probe.json
    vm_boot worker --verbose
    [ "$(head -n 1 worker.err)" = "msb-boot: $(jq -r .words probe.json)" ]
}

# without COMMAND: runs the probe in a mount namespace in which COMMAND has removed something.
without() {
    unshare -m --propagation slave sh -c "$1"' && exec msb-boot --probe'
}

@test "each component that may be missing is reported with its remedy, and affects the choice" {
    if has_virtualization; then skip "this CPU has virtualization"; fi
    [ -e /dev/kvm ] || skip "there is no /dev/kvm to take away"
    mkdir empty
    run without 'mount -t tmpfs none /dev'
    jq -e '.vmm == "qemu" and (.parts.kvm.found | startswith("there is no /dev/kvm"))' <<<"$output"
    cp "$release/msb-boot" /tmp/msb-boot-for-nobody.$$
    run setpriv --reuid 65534 --regid 65534 --clear-groups /tmp/msb-boot-for-nobody.$$ --probe
    rm /tmp/msb-boot-for-nobody.$$
    [ "$status" -eq 1 ]
    jq -e '(.parts.kvm.remedy | startswith("usermod -aG kvm nobody")) and (.parts.privileges.remedy | contains("/etc/subuid"))' <<<"$output"
    jq -e '.vmm == null and (.parts.agentd.found | contains("not beside msb-boot")) and (.parts.libkrunfw.remedy | contains("MSB_LIBKRUNFW"))' <<<"$output"
    run env MSB_LIBKRUNFW=/nonexistent msb-boot --probe
    [ "$status" -eq 1 ]
    jq -e '.vmm == null and (.vmms | all(.usable | not)) and (.words | contains("guest kernel \"/nonexistent\""))' <<<"$output"
    run without 'for dir in /usr/lib/qemu /usr/libexec; do [ ! -d $dir ] || mount --bind empty $dir || exit; done'
    [ "$status" -eq 0 ]
    jq -e '.vmm == "qemu" and .vmms.qemu.usable and (.words | contains("virtiofsd") | not)' <<<"$output"
    jq -e '.parts.virtiofsd | (.remedy | contains("apt-get install virtiofsd")) and .found == "virtiofsd is not installed, so shared roots and volumes do not work with qemu"' <<<"$output"
    run without 'mount --bind /etc/passwd "$(command -v qemu-system-x86_64)"'
    [ "$status" -eq 1 ]
    jq -e '.vmm == null and (.parts.qemu.remedy == "apt-get install qemu-system-x86")' <<<"$output"
}

@test "more than the machine has causes a warning, and what no guest can have is refused" {
    vm_boot worker --vmm qemu -c 64 -m 96M --timeout 1 || true
    grep -q "msb-boot: 64 processors are more than the $(nproc) of this machine" worker.err
    run --separate-stderr msb-boot -r "$vm_record" -m 1000G --timeout 1
    [[ $stderr == *'msb-boot: 1024000 MiB of memory are more than the '* ]]
    for call in '-c 0' '-c 65' '-m 16M' '-m 16' '-m 1025G'; do
        # shellcheck disable=SC2086 # several words
        run --separate-stderr msb-boot -r "$vm_record" $call
        [ "$status" -eq 2 ]
    done
}

@test "a missing program is an error that names the package to install" {
    vm_copy_alone msb-boot
    export MSB_LIBKRUNFW=$release/libkrunfw.so.5 MSB_AGENTD=$release/agentd
    run --separate-stderr env PATH=/nonexistent alone/msb-boot -r "$vm_record" --vmm qemu
    [ "$status" -eq 1 ]
    [[ $stderr == *'qemu-system-x86_64 is not installed (apt-get install qemu-system-x86)' ]]
    run --separate-stderr env PATH=/usr/bin alone/msb-boot -r "$vm_record" --vmm qemu
    [ "$status" -eq 1 ]
    [[ $stderr == *'vhost-device-vsock is not installed (make deps build;'* ]]
    vm_assert_nothing
}

@test "without virtiofsd QEMU boots a block root, and shared roots and volumes are refused" {
    vm_needs_qemu
    export MSB_HOME=$PWD/home
    vm_launcher=(unshare -m --propagation slave sh -c '
        for dir in /usr/lib/qemu /usr/libexec; do [ ! -d "$dir" ] || mount -t tmpfs none "$dir" || exit; done
        exec "$@"' -)
    local missing='msb-boot: qemu: virtiofsd is not installed (apt-get install virtiofsd; on Debian 12: qemu-system-common'
    # The root in each form, and as a mount alone.
    jq -c --arg root "$vm_root" '.mount = {path: $root, pid: 1, fstype: "none"}' "$vm_record" >share.json
    jq -c 'del(.rootfs)' share.json >mount.json
    jq -c 'del(.mount)' "$vm_record" >block.json
    run --separate-stderr "${vm_launcher[@]}" msb-boot -r share.json --vmm qemu
    [ "$status" -eq 1 ]
    [ "$stderr" = "$missing; or --root block)" ]
    run --separate-stderr "${vm_launcher[@]}" msb-boot -r mount.json --vmm qemu
    [ "$status" -eq 1 ]
    [ "$stderr" = "$missing)" ]
    # If krun was the first choice, the message says why it was not taken.
    if [ "$(msb-boot --probe | jq .vmms.krun.usable)" = false ]; then
        run -1 --separate-stderr "${vm_launcher[@]}" msb-boot -r mount.json --vmm auto
        [[ $stderr == "msb-boot: krun: "*"; using qemu ("*"): ${missing#*qemu: })" ]]
    fi
    for volume in "$vm_root:/data" data:/data; do
        run --separate-stderr "${vm_launcher[@]}" msb-boot -r block.json --vmm qemu -v "$volume"
        [ "$status" -eq 1 ]
        [ "$stderr" = "$missing)" ]
    done
    [ ! -e "$MSB_HOME/volumes/data" ]
    vm_assert_nothing
    vm_record=share.json vm_boot worker --vmm qemu --root block --tmpfs /data
    [ "$(vm_exec worker stat -f -c %T /data)" = tmpfs ]
    [ "$(jq -r .vm.root worker.json)" = block ]
}

@test "no room for the kernel's file is an error, and no partial file is left" {
    mkdir small
    mount -t tmpfs -o size=512k none small
    run --separate-stderr env MSB_HOME="$PWD/small" msb-boot -r "$vm_record" --vmm qemu
    [ "$status" -eq 1 ]
    [[ $stderr == "msb-boot: "*"No space left on device"* ]]
    [ -z "$(find small -type f)" ]
    vm_assert_nothing
}
