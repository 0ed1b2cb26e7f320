#!/usr/bin/env bats
# Guests of another architecture than this machine's: QEMU emulates the processor.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    source "$BATS_TEST_DIRNAME/image.bash"
    vm_setup
    foreign=arm64 machine=aarch64 qemu=qemu-system-arm
    [ "$(uname -m)" = x86_64 ] || foreign=amd64 machine=x86_64 qemu=qemu-system-x86
}

teardown() {
    vm_teardown
}

@test "what a guest of another architecture lacks is named with its remedy, and krun runs none" {
    jq -c --arg platform "linux/$foreign" '.image = {ref: "x", platform: $platform, config: {}}' "$vm_record" >foreign.json
    vm_copy_alone msb-boot
    run --separate-stderr alone/msb-boot -r foreign.json
    [ "$status" -eq 1 ]
    [[ $stderr == "msb-boot: agentd: none for linux/$foreign guests in \"$machine\" beside msb-boot or in \"../libexec/msb/$machine\" (run \"make guest-$foreign\", or name it in MSB_AGENTD)" ]]
    run --separate-stderr env MSB_AGENTD="$release/agentd" alone/msb-boot -r foreign.json
    [ "$status" -eq 1 ]
    [[ $stderr == *"agentd \"$release/agentd\": it is built for another kind of machine"*"make guest-$foreign"* ]]
    # A header is enough to be found.
    mkdir "alone/$machine"
    head -c 4096 "$release/agentd" >"alone/$machine/agentd"
    case $foreign in arm64) printf '\267' ;; *) printf '\076' ;; esac | dd of="alone/$machine/agentd" bs=1 seek=18 conv=notrunc status=none
    run --separate-stderr alone/msb-boot -r foreign.json
    [ "$status" -eq 1 ]
    [[ $stderr == "msb-boot: guest kernel \"libkrunfw.so.5\": none for linux/$foreign guests in "*"make guest-$foreign"* ]]
    cp "$release/libkrunfw.so.5" "alone/$machine/" || skip "libkrunfw is the distribution's"
    run --separate-stderr env PATH=/nonexistent alone/msb-boot -r foreign.json
    [ "$status" -eq 1 ]
    [[ $stderr == *"qemu-system-$machine is not installed (apt-get install $qemu)" ]]
    run --separate-stderr alone/msb-boot -r foreign.json --vmm krun
    [ "$status" -eq 1 ]
    [[ $stderr == *"krun: it runs guests of this machine's own architecture, and this one is for linux/$foreign (use --vmm qemu)" ]]
    vm_assert_nothing
}

@test "an image of another architecture boots from disks: patches, exec, a volume, the network's card, and a commit" {
    [ -e "$release/$machine/agentd" ] || skip "there is no agentd for $foreign guests (make guest-$foreign)"
    command -v "qemu-system-$machine" || skip "$qemu is not installed"
    mkdir volume
    layout=$(foreign_image)
    run ! msb-pull "oci:$layout:latest"
    echo '{"op": "text", "path": "/etc/motd", "content": "patched\n"}' >ops.jsonl
    { msb-pull --platform "linux/$foreign" "oci:$layout:latest"; cat ops.jsonl; } | msb-patch >patched.json
    msb-boot -r patched.json --name foreign -v "$PWD/volume:/volume" --network public --timeout 1000 -o foreign.json 2>boot.err || { cat boot.err; false; }
    jq -e '.vm.vmm == "qemu" and .vm.root == "block"' foreign.json
    [ "$(vm_exec foreign uname -m)" = "$machine" ]
    [ "$(vm_exec foreign cat /etc/motd)" = patched ]
    [ "$(echo in | msb-exec foreign -- cat)" = in ]
    run msb-exec foreign -- sh -c 'echo "$HOME" >/volume/made; echo kept >/root/kept; exit 7'
    [ "$status" -eq 7 ]
    [ "$(cat volume/made)" = /root ]
    vm_exec foreign cat /sys/class/net/eth0/operstate
    msb-stop foreign --commit >committed.json
    [ "$(cat "$(jq -r .upper.dir committed.json)/root/kept")" = kept ]
    vm_assert_nothing
}
