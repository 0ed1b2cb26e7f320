#!/usr/bin/env bats
# The tools as root of a container: with the capabilities, the devices and the filter that docker gives one by default, and with what
# they name as missing.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    command -v podman crun >/dev/null || skip "podman and crun are not installed"
    [ -z "${MSB_KVM_HOST:-}" ] || skip "the tools are on another disk there"
    source "$BATS_TEST_DIRNAME/vm.bash"
    source "$BATS_TEST_DIRNAME/image.bash"
    vm_setup
    layout=$(realpath "$(tiny_image)")
    # This machine's programs are those of the container.
    mkdir -p rootfs/{usr,etc,tmp,run,var,proc,sys,dev,tools,work,layout}
    for link in bin sbin lib lib64 lib32; do
        [ ! -L "/$link" ] || ln -s "$(readlink "/$link")" "rootfs/$link"
    done
    # Limits that an unprivileged test machine can set.
    printf '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n' >containers.conf
    # docker's filter is podman's without these calls, and answers EPERM.
    for profile in {/etc,/usr/share}/containers/seccomp.json; do
        [ ! -e "$profile" ] || break
    done
    jq '.syscalls |= map(.names -= ["pivot_root", "keyctl", "add_key", "request_key"] | select(.names != [])) | .defaultErrnoRet = 1 | .defaultErrno = "EPERM"' "$profile" >seccomp.json
}

# in_container [FLAG…] -- SCRIPT: runs a script in a container with docker's default capabilities and these flags of podman.
in_container() {
    local flags=() all=CHOWN,DAC_OVERRIDE,FSETID,FOWNER,MKNOD,NET_RAW,SETGID,SETUID,SETFCAP,SETPCAP,NET_BIND_SERVICE,SYS_CHROOT,KILL,AUDIT_WRITE
    while [ "$1" != -- ]; do flags+=("$1") && shift; done
    # shellcheck disable=SC2054 # a list
    flags+=(--rm --network none --cap-drop all --cap-add "$all" -v /usr:/usr:ro -v /etc:/etc:ro -v "$release:/tools:ro" -v "$layout:/layout:ro"
        --tmpfs /tmp --tmpfs /work:mode=0755,exec --workdir /work --env PATH=/tools:/usr/bin:/usr/sbin --env HOME=/work
        --env MSB_NETWORK=none --env "MSB_VMM=$MSB_VMM")
    # crun refuses a machine with both versions of cgroups.
    CONTAINERS_CONF=$PWD/containers.conf unshare --mount --propagation private sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"' - \
        podman --root "$PWD/storage" --runroot "$PWD/podman-run" --tmpdir "$PWD/podman-tmp" --cgroup-manager cgroupfs --events-backend file \
        --storage-driver vfs --runtime crun run "${flags[@]}" --rootfs "$PWD/rootfs" bash -euc "$2"
}

@test "in a container with docker's defaults all that needs no mount works, and the rest names what to add" {
    run in_container --security-opt "seccomp=$PWD/seccomp.json" -- '
        grep -q "^CapEff:.*00000000a80425fb$" /proc/self/status
        msb-pull -q oci:/layout >pulled.json
        msb-patch -q -r pulled.json -f - >record.json <<<"{\"op\":\"text\",\"path\":\"/etc/motd\",\"content\":\"hi\",\"uid\":5}"
        for target in tar:out.tar dir:out oci:out-layout; do msb-pack -q -r record.json "$target" >/dev/null; done
        [ "$(cat out/etc/motd)$(stat -c %u out/etc/motd)" = hi5 ]
        tar -tf out.tar | grep -qx "\(\./\)\?etc/motd"
        msb-pull -q oci:out-layout | msb-pack -q dir:again >/dev/null
        diff -r out/etc again/etc
        msb-diff -r record.json | grep -q /etc/motd
        msb-ls >/dev/null
        msb-store ls >stored
        grep -q "oci:/layout" stored
        msb-store check
        msb-store gc >/dev/null
        for command in "msb-pack -r record.json raw:disk" "msb-pull --erofs oci:/layout" "msb-mount -r record.json root" \
            "msb-boot -r record.json" "msb-run oci:/layout -- true"; do
            if $command >command.out 2>command.err; then exit 90; fi
            cat command.out command.err
            grep -q "docker run --cap-add SYS_ADMIN --cap-add DAC_READ_SEARCH --security-opt seccomp=unconfined" command.err
        done
        [ ! -e root ]
        msb-boot --probe >probe || true
        grep -q "\"privileges\":{\"usable\":false.*docker run --cap-add SYS_ADMIN" probe'
    echo "$output"
    [ "$status" -eq 0 ]

    # With a part of it, each tool names the next one.
    run in_container --security-opt "seccomp=$PWD/seccomp.json" --cap-add SYS_ADMIN -- '
        msb-pull -q oci:/layout >record.json
        fails() {
            local expected=$1
            shift
            if "$@" >command.out 2>command.err; then exit 90; fi
            cat command.out command.err
            grep -q -e "$expected" command.err
        }
        fails "there is no /dev/fuse (modprobe fuse; in a container: docker run --device /dev/fuse)" msb-mount -r record.json root
        fails "pivot_root (in a container: docker run .*seccomp=unconfined" msb-pack -r record.json raw:disk
        fails "pivot_root (in a container: docker run .*seccomp=unconfined" msb-boot -r record.json'
    echo "$output"
    [ "$status" -eq 0 ]
    run in_container --security-opt seccomp=unconfined --cap-add SYS_ADMIN -- '
        msb-pull -q oci:/layout | msb-pack -q raw:disk'
    echo "$output"
    [ "$status" -eq 1 ]
    [[ $output == *'lacks CAP_DAC_READ_SEARCH (in a container: docker run --cap-add DAC_READ_SEARCH)' ]]
}

# bats test_tags=slow
@test "with what they name, the tools make disks, mount and boot in a container" {
    run in_container --security-opt seccomp=unconfined --cap-add SYS_ADMIN --cap-add DAC_READ_SEARCH --device /dev/fuse -- '
        msb-pull -q oci:/layout >record.json
        for target in raw:disk erofs:image; do msb-pack -q -r record.json "$target" >/dev/null; done
        msb-boot -q -r record.json --timeout 600 --name block >block.json
        msb-exec block -- /bin/busybox echo "a block root"
        msb-stop -q -r block.json >/dev/null
        msb-mount -q -r record.json root | msb-boot -q --timeout 600 --name share >share.json
        msb-exec share -- /bin/busybox echo "a shared root"
        msb-stop -q --unmount -r share.json >/dev/null
        [ "$(msb-ls)" = "" ]'
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *'a block root'*'a shared root'* ]]
}
