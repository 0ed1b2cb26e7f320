#!/usr/bin/env bats
# The whole pipe, from a registry to a command in the VM and back.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and the sourced files set variables
bats_require_minimum_version 1.5.0

setup() {
    PATH="$BATS_TEST_DIRNAME/../target/release:$PATH"
    source "$BATS_TEST_DIRNAME/image.bash"
    source "$BATS_TEST_DIRNAME/registry.bash"
    source "$BATS_TEST_DIRNAME/tree.bash"
    source "$BATS_TEST_DIRNAME/vm.bash"
    export MSB_HOME=$BATS_TEST_TMPDIR/home XDG_RUNTIME_DIR=$BATS_TEST_TMPDIR/run
    export MSB_RUN=$XDG_RUNTIME_DIR/msb
    unset MSB_RECORD
    mkdir -p "$XDG_RUNTIME_DIR"
    cd "$BATS_TEST_TMPDIR" || return
}

teardown() {
    vm_teardown
    ! mountpoint -q root || msb-mount -u root
    registry_stop registry
}

push() {
    registry_start registry
    skopeo copy --quiet --dest-tls-verify=false "oci:$1:latest" "docker://$registry_host/demo:latest"
}

# bats test_tags=vmm
@test "an image is pulled, patched, mounted and booted, and what a command in it writes is on the host and in the upper" {
    push "$(tiny_image)"
    cat > ops.jsonl <<'END'
{"op":"text","path":"/etc/motd","content":"patched\n"}
{"op":"append","path":"/etc/hosts","content":"127.0.0.1 myapp.local\n"}
{"op":"script","name":"start","content":"#!/bin/sh\necho started; cat /etc/motd\n"}
END
    { msb-pull --plain-http "$registry_host/demo:latest"; cat ops.jsonl; } | msb-patch | msb-mount ./root |
        msb-boot -c 2 -m 512M --name pipe > vm.json
    jq -e '.image.ref and .rootfs and .upper and .scripts.start and .mount and .vm' vm.json
    lower=$(jq -r '.rootfs.lower[0]' vm.json)
    tree_manifest "$lower" > before
    [ "$(cat root/etc/motd)" = patched ]
    [ "$(msb-exec -r vm.json -- cat /etc/motd)" = patched ]
    [ "$(msb-exec -r pipe -- start)" = $'started\npatched' ]
    [ "$(msb-exec -r vm.json)" = hello ]
    [ "$(msb-exec -r vm.json -- sh -c 'echo $GREETING; pwd; nproc; hostname')" = $'hi\n/root\n2\npipe' ]
    msb-exec -r vm.json -- sh -c 'echo written > /etc/written; rm /etc/group; mkdir /srv; chown 5:6 /srv; ln -s /etc /srv/link'
    [ "$(cat root/etc/written)" = written ]
    [ ! -e root/etc/group ]
    [ "$(stat -c '%u %g' root/srv)" = '5 6' ]
    echo 'from the host' > root/etc/from-host
    [ "$(msb-exec -r vm.json -- cat /etc/from-host)" = 'from the host' ]
    msb-stop -r vm.json --unmount > stopped.json
    jq -e '.upper and (.vm == null) and (.mount == null)' stopped.json
    [ -z "$(ls -A root)" ]
    tree_manifest "$lower" | diff before -
    vm_assert_nothing

    # The kernel shows the same upper, and nothing of the boot is left in it.
    mkdir merged
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$(jq -r .upper.dir stopped.json),workdir=$(jq -r .upper.work stopped.json)" merged
    [ "$(cat merged/etc/written)" = written ]
    [ ! -e merged/etc/group ]
    [ ! -e merged/.msb ]
    umount merged

    # The record can be patched and booted again.
    msb-patch -r stopped.json -f - <<< '{"op":"text","path":"/etc/motd","content":"again\n","replace":true}' |
        msb-mount ./root | msb-boot --name pipe > vm.json
    [ "$(msb-exec -r pipe -- cat /etc/motd /etc/written)" = $'again\nwritten' ]
    msb-stop -r pipe --unmount > /dev/null
}

@test "a failing stage ends the pipe with one error message and leaves nothing" {
    push "$(tiny_image)"
    run --separate-stderr bash -o pipefail -c '{ msb-pull --plain-http "$1/none:latest"; cat /dev/null; } | msb-patch | msb-mount ./root | msb-boot' sh "$registry_host"
    [ "$status" != 0 ]
    [ -z "$output" ]
    [[ $stderr == *'msb-pull: '*'none'* ]]
    [[ $stderr == *'msb-boot: no record on stdin'* ]]
    [ ! -e root ] || [ -z "$(ls -A root)" ]
    vm_assert_nothing
}

@test "every stage's record is valid according to the schema" {
    push "$(tiny_image)"
    check() {
        tee -a records | /usr/bin/python3 -c '
import json, sys, jsonschema
line = sys.stdin.read()
jsonschema.Draft202012Validator(json.load(open(sys.argv[1]))).validate(json.loads(line))
sys.stdout.write(line)' "$BATS_TEST_DIRNAME/../man/msb-record.schema.json"
    }
    msb-pull --plain-http "$registry_host/demo:latest" | check > 1
    msb-patch -f /dev/null < 1 | check > 2
    msb-mount ./root < 2 | check > 3
    msb-boot < 3 | check > 4
    msb-stop --unmount < 4 | check > 5
    [ "$(wc -l < records)" = 5 ]
    diff <(jq -S . 2) <(jq -S 'del(.boot)' 5)
}

@test "a Debian image boots, and its tools work" {
    msb-pull -q "oci:$(demo_image):latest" | msb-mount ./root | msb-boot -m 1G --name debian > vm.json
    [ "$(msb-exec -r debian -- sh -c '. /etc/os-release; echo $VERSION_CODENAME')" = bookworm ]
    [ "$(msb-exec -r debian -- dpkg -s base-files | grep -c '^Status: install ok')" = 1 ]
    msb-exec -r debian -- bash -c 'useradd -m someone && su someone -c "echo mine > ~/file"'
    [ "$(stat -c %U "root/home/someone/file" 2>/dev/null || true)" != root ]
    [ "$(cat root/home/someone/file)" = mine ]
    msb-stop -r debian --unmount > /dev/null
}
