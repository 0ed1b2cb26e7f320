#!/usr/bin/env bats
# The whole pipe as a user other than root, with a range of IDs of its own.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup_file() {
    source "$BATS_TEST_DIRNAME/host-lock.bash"
    host_lock
    source "$BATS_TEST_DIRNAME/user.bash"
    fuse_mode=$(stat -c %a /dev/fuse)
    export fuse_mode
    user_make msb msb-{pull,patch,mount,boot,exec,stop,run,rm,ls,store,diff,pack} agentd vhost-device-vsock libkrunfw.so.5
    make_image
}

teardown_file() {
    user_remove
    host_unlock
    ! grep "^$user:" /etc/subuid /etc/subgid
}

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    source "$BATS_TEST_DIRNAME/user.bash"
    vm_setup
    PATH=$release:$PATH
    cd "$place/home" || return
    as_user unshare --user true || skip "users cannot make user namespaces here"
}

teardown() {
    vm_show_logs
    chmod "$fuse_mode" /dev/fuse
    [ ! -e "$BATS_TEST_TMPDIR/fuse.conf" ] || cat "$BATS_TEST_TMPDIR/fuse.conf" >/etc/fuse.conf
    [ ! -e "$BATS_TEST_TMPDIR/subuid" ] || cat "$BATS_TEST_TMPDIR/subuid" >/etc/subuid
    user_stop_vms
    ip netns delete "msb-user-$$" 2>/dev/null || true
    vm_teardown
}

# make_image: two layers on the BusyBox image: owners, modes, capabilities, a whiteout and opaque directories.
make_image() {
    (
        source "$BATS_TEST_DIRNAME/image.bash"
        cd "$place" || exit
        cp -r "$(tiny_image)" layout
        mkdir -p base/{etc/conf.d,opt/both,srv} changes/{etc/conf.d,opt}
        echo one >base/etc/one
        echo two >base/etc/conf.d/two
        echo mine >base/srv/mine
        cp "$(command -v busybox)" base/opt/program
        chown 654321:123456 base/srv/mine
        chmod 4755 base/opt/program
        setfattr -n user.note -v kept base/srv/mine
        cp base/opt/program base/opt/ping
        setcap cap_net_raw=ep base/opt/ping
        mkfifo base/opt/fifo
        chmod 1777 base/opt/both
        image_tar base.tar base
        : >changes/etc/.wh.one
        : >changes/etc/conf.d/.wh..wh..opq
        echo three >changes/etc/conf.d/three
        ln -s conf.d/three changes/etc/link
        image_tar changes.tar changes
        umoci raw add-layer --image layout:latest base.tar
        umoci raw add-layer --image layout:latest changes.tar
        umoci config --image layout:latest --clear=config.entrypoint --clear=config.cmd
        mkdir -p nodes/dev nodes/lib
        mknod nodes/dev/console c 5 1
        mknod nodes/lib/loop b 7 0
        image_tar nodes.tar nodes
        cp -r layout devices
        umoci raw add-layer --image devices:latest nodes.tar
        chmod -R go+rX layout devices
    ) >&2
}

# manifest: prints the files of the guest's root, as the image has them, with what find and stat of BusyBox show of them.
manifest='cd / && find . -xdev -path ./.msb -prune -o -path ./proc -prune -o -path ./sys -prune -o -path ./dev -prune -o \
    -path ./run -prune -o -path ./tmp -prune -o ! -path . ! -path ./etc/hosts ! -path ./etc/hostname ! -path ./etc/resolv.conf -print |
    sort | while read -r file; do
        stat -c "%n %F %a %u %g %h %s" "$file" | sed "s/\( directory .*\) [0-9]* [0-9]*$/\1/"
        [ ! -f "$file" ] || [ -L "$file" ] || md5sum "$file"
    done'

# bats test_tags=vmm-slow
@test "a user pulls, patches and boots an image as root does: the same EROFS image, and the same tree in the guest" {
    cat >ops.jsonl <<'END'
{"op":"text","path":"/etc/motd","content":"patched\n"}
{"op":"remove","path":"/srv"}
{"op":"mkdir","path":"/srv","mode":"0750","uid":70000,"gid":70001}
{"op":"text","path":"/srv/new","content":"new\n","uid":5}
{"op":"chown","path":"/etc/conf.d/three","uid":9}
END
    msb-pull -q --erofs "oci:$place/layout" >"$BATS_TEST_TMPDIR/root.json"
    msb-patch -q -r "$BATS_TEST_TMPDIR/root.json" -f ops.jsonl >"$BATS_TEST_TMPDIR/patched.json"
    as_user sh -euc 'msb-pull -q --erofs "oci:$1/layout" | msb-patch -q -f ops.jsonl | msb-boot --name worker >worker.json' - "$place"
    [ "$(sha256sum <"$(echo "$MSB_HOME"/erofs/*.erofs)")" = "$(sha256sum <"$(echo .local/share/msb/erofs/*.erofs)")" ]
    # The kernel of the host shows root's layers.
    mkdir "$BATS_TEST_TMPDIR/merged"
    mount -t overlay -o "ro,lowerdir=$(jq -r '[.upper.dir, .rootfs.lower[]] | join(":")' "$BATS_TEST_TMPDIR/patched.json")" \
        overlay "$BATS_TEST_TMPDIR/merged"
    mkdir -p bin
    busybox chroot "$BATS_TEST_TMPDIR/merged" /bin/sh -c "$manifest" >roots || { umount "$BATS_TEST_TMPDIR/merged"; return 1; }
    umount "$BATS_TEST_TMPDIR/merged"
    as_user msb-exec worker -- sh -c "$manifest" >users
    diff roots users
    [ "$(wc -l <users)" -gt 100 ]
    grep -q '^./srv directory 750 70000 70001$' users

    # All of it belongs to the user and to the IDs of the user, and others cannot read it.
    [ -z "$(find "$place/run" .local -uid -1000 ! -user "$user" -printf '%u %p\n')" ]
    jq -e '.uid[1] == {inside: 1, outside: 1000000000, count: 1000000}' .local/share/msb/id-map.json
    jq -e '.vm.vmm' worker.json
    for path in .local/share/msb "$place/run/msb" "$place/run/msb/worker"; do
        run ! setpriv --reuid nobody --regid nogroup --clear-groups ls "$place/home/$path"
        [[ $(stat -c '%a %U' "$path") == "700 $user" ]]
    done
    # Each process that serves the VM has a jail in the user's namespace, where it is root, which is the user, or nobody.
    members=$(XDG_RUNTIME_DIR=$place/run vm_processes worker/ | grep -vx "$(jq .vm.pid worker.json)")
    [ -n "$members" ]
    for pid in $members; do
        [ "$(readlink "/proc/$pid/ns/user")" != "$(readlink /proc/self/ns/user)" ]
        grep -qE "^Uid:[[:space:]]+($(id -u "$user")|1000065533)[[:space:]]" "/proc/$pid/status"
        grep -qE '^CapPrm:.*(00000000880000db|0000000000000000)$' "/proc/$pid/status"
        grep -q '^NoNewPrivs:.*1$' "/proc/$pid/status"
        grep -q '^Seccomp:.*2$' "/proc/$pid/status"
        [ ! -e "/proc/$pid/root$place/home" ]
    done
    [ "$(as_user msb-ls | jq -r .name)" = worker ]
    run -0 msb-ls
    [ -z "$output" ]

    # Exec, stop and commit.
    echo input | as_user msb-exec worker -- sh -c 'cat >/srv/input; chown 77:78 /srv/input; rm -r /etc/conf.d; mkdir /etc/conf.d
        mknod /srv/node b 7 9; rm /opt/ping'
    run as_user msb-exec worker -- sh -c 'kill -9 $$'
    [ "$status" -eq 137 ]
    run as_user sh -c 'msb-patch -r worker.json -f ops.jsonl'
    [ "$status" -eq 1 ]
    [[ $output == *'VM "worker" is running'* ]]
    as_user sh -c 'msb-stop -q --commit -r worker.json >committed.json'
    [ -z "$(ls "$place/run/msb")" ]
    as_user sh -c 'msb-diff -r committed.json' | jq -r '"\(.change) \(.path)"' >difference
    for line in 'added /srv/input' 'removed /opt/ping' 'removed /etc/conf.d/three'; do
        grep -qx "$line" difference
    done
    run ! grep /srv/node difference
    [ "$(stat -c %u "$(jq -r .upper.dir committed.json)/srv/input")" = 1000000076 ]

    # Root does not mix the two stores up, nor does the user with other IDs.
    run env MSB_HOME="$place/home/.local/share/msb" msb-store ls
    [ "$status" -eq 1 ]
    [[ $output == *'was made with other IDs'* ]]
    as_user msb-rm worker
    [ ! -e .local/share/msb/sandboxes/worker ]

    # A store of the user's own.
    [ "$(as_user msb-store ls --json -t image | jq -s length)" -ge 1 ]
    as_user msb-store check
    image=$(as_user msb-store ls --json -t image | jq -rs '.[0].name')
    as_user msb-store rm "$image"
    as_user msb-store gc
    [ -z "$(as_user msb-store ls --json -t image | jq -r --arg name "$image" 'select(.name == $name)')" ]
}

# in_guest COMMAND…: boots a VM of the record in the file "record.json", for which the variable "boot" has the flags, and shows the
# manifest of its root. The command starts the tools: as_user, or env for root.
in_guest() {
    "$@" sh -euc 'msb-boot -q -r record.json --name worker --timeout 600 $1 >worker.json
        msb-exec worker -- /opt/manifest /
        msb-stop -q -r worker.json >/dev/null' - "$boot"
}

# plain FILE: what two runs of the same operations have in common: a time of today is that of the run.
plain() {
    awk -v begin="$begin" '{ if ($4 ~ /^[0-9]+\.[0-9]+$/ && $4 + 0 >= begin) $4 = "now" } 1' "$1"
}

# bats test_tags=vmm-slow,slow
@test "after every operation of msb-patch, root's guest and a user's have the same tree, on a block root and on a shared one" {
    begin=$EPOCHSECONDS
    source "$BATS_TEST_DIRNAME/image.bash"
    mkdir -p src/deep
    cp "$(guest_program manifest)" src/manifest
    echo copied >src/deep/file
    ln -s file src/deep/link
    chmod 0711 src/deep
    chmod -R go+rX src
    cat >ops.jsonl <<'END'
{"op":"text","path":"/etc/greeting.txt","content":"Hello from a patched rootfs!\n"}
{"op":"text","path":"/etc/passwd","content":"root:x:0:0::/root:/bin/sh\n","mode":"0640","gid":42,"replace":true}
{"op":"mkdir","path":"/app","mode":"0755"}
{"op":"text","path":"/app/config.json","content":"{}","mode":"0644","uid":654321,"gid":123456}
{"op":"file","path":"/app/bytes","content_base64":"AAEC"}
{"op":"copy_file","src":"src/manifest","dst":"/opt/manifest","mode":"0755"}
{"op":"copy_dir","src":"src/deep","dst":"/app/deep"}
{"op":"append","path":"/etc/conf.d/three","content":"127.0.0.1 myapp.local\n"}
{"op":"symlink","target":"/etc/greeting.txt","link":"/app/greeting"}
{"op":"remove","path":"/opt/fifo"}
{"op":"rename","from":"/etc/conf.d","to":"/etc/moved.d"}
{"op":"hardlink","target":"/app/config.json","link":"/app/again"}
{"op":"chmod","path":"/opt/program","mode":"2711"}
{"op":"chown","path":"/app/deep","uid":7,"gid":8,"recursive":true}
{"op":"touch","path":"/srv/mine","mtime":5}
{"op":"edit","path":"/etc/moved.d/three","line":"three","with":"edited"}
{"op":"xattr","path":"/app","name":"user.note","value":"x"}
{"op":"capability","path":"/opt/manifest","caps":"cap_kill=ep"}
{"op":"script","name":"hello","content":"#!/bin/sh\n"}
END
    # Each operation that the manual has.
    diff <(grep -o '"op":"[a-z_]*"' ops.jsonl | sort -u) <(grep -o '"op":"[a-z_]*"' "$BATS_TEST_DIRNAME/../man/msb-ops.5" | sort -u)
    patch='umask 022; msb-pull -q "oci:$1/layout" | msb-patch -q -f ops.jsonl >patched.json'
    as_user sh -euc "$patch" - "$place"
    own=$BATS_TEST_TMPDIR/of-root
    mkdir "$own"
    cp -r ops.jsonl src "$own/"
    (cd "$own" && sh -euc "$patch" - "$place")
    cp /etc/fuse.conf "$BATS_TEST_TMPDIR/"
    echo user_allow_other >>/etc/fuse.conf
    chmod 0666 /dev/fuse
    for boot in '--root block' '--root share'; do
        prepare='cp patched.json record.json'
        [ "$boot" = '--root block' ] || prepare='msb-mount -q -r patched.json mounted >record.json'
        as_user sh -euc "$prepare"
        in_guest as_user >users
        (cd "$own" && sh -euc "$prepare" && in_guest env >roots)
        diff <(plain "$own/roots") <(plain users)
        [ "$(wc -l <users)" -gt 100 ]
        grep -q '^/app/again 100644 654321:123456 now links 2 size 2 ' <(plain users)
        grep -q '^/opt/manifest 100755 0:0 .* security.capability=' users
        grep -q '^/srv/mine 100644 654321:123456 5.000000000 .* user.note=6b657074$' users
    done
    as_user msb-mount -u mounted
    msb-mount -u "$own/mounted"
}

@test "what a user packs has the digests of what root packs" {
    cat >ops.jsonl <<'END'
{"op":"text","path":"/etc/motd","content":"patched\n"}
{"op":"remove","path":"/srv"}
{"op":"mkdir","path":"/srv","mode":"0750","uid":70000,"gid":70001}
{"op":"script","name":"hello","content":"#!/bin/sh\n"}
END
    pack='umask 022; msb-pull -q "oci:$1/layout" | msb-patch -q -f ops.jsonl | msb-pack -q oci-archive:out.tar:v1 tar:root.tar \
        layer:layer.tar.gz raw:disk.raw erofs:disk.erofs >new.json; sha256sum out.tar root.tar layer.tar.gz disk.raw disk.erofs'
    export SOURCE_DATE_EPOCH=1700000000
    as_user sh -euc "$pack" - "$place" >users
    e2fsck -fn disk.raw
    rm out.tar disk.raw disk.erofs
    sh -euc "$pack" - "$place" >roots
    diff roots users
    [ "$(wc -l <users)" -eq 5 ]
}

@test "a program in the place of QEMU or mkfs.erofs reaches nothing in a user's jail either" {
    source "$BATS_TEST_DIRNAME/image.bash"
    cp "$(guest_program jail-attempts)" "$place/tools/attempts"
    as_user mkdir -p jail
    for profile in qemu vsock mkfs; do
        jail=$(jq -nc --arg profile "$profile" --arg program "$place/tools/attempts" --arg mount_point "$PWD/jail" '{profile: $profile,
            user: 65534, binds: [{source: {path: $program}, target: $program, writable: false, follows: false}], dirs: [], mount_point: $mount_point}')
        run as_user unshare --map-root-user --map-auto --pid --fork msb-boot --as-jailed-process "$jail" "$place/tools/attempts" \
            "$place/home" "$place/run" /etc/passwd
        echo "$output"
        [ "$status" -eq 0 ]
        case $profile in qemu | vsock) uid=65534 ;; *) uid=0 ;; esac
        [[ $output == 'attempts: '*", user: $uid, "*"at the parent's death: 9" ]]
    done
}

@test "device nodes of an image are left out with a message" {
    run --separate-stderr as_user sh -c 'msb-pull "oci:$1/devices" >devices.json' - "$place"
    [ "$status" -eq 0 ]
    [[ $stderr == *'2 device nodes of the image were left out: only root can make them'* ]]
    [ ! -e "$(jq -r '.rootfs.lower[0]' devices.json)/lib/loop" ]
}

# make_network: makes as_user enter a network namespace with a default route that leads nowhere.
make_network() {
    local name=msb-user-$$
    ip netns add "$name"
    ip -n "$name" link set lo up
    ip link add eth0 netns "$name" type veth peer name eth1 netns "$name"
    ip -n "$name" link set eth0 up
    ip -n "$name" link set eth1 up
    ip -n "$name" addr add 198.51.100.2/24 dev eth0
    ip -n "$name" route add default via 198.51.100.1
    user_launcher=(ip netns exec "$name")
}

# bats test_tags=vmm-slow
@test "msb-run with a network, and a disk root, as a user" {
    make_network
    run --separate-stderr as_user env MSB_NETWORK=public msb-run -q "oci:$place/layout" -- \
        sh -c 'id -u; cat /etc/conf.d/three; ip -4 addr show eth0 | grep -c inet; exit 7'
    [ "$status" -eq 7 ]
    [ "$output" = $'0\nthree\n1' ]
    run as_user sh -c 'msb-pull -q "oci:$1/layout" | msb-boot --network public -p 80:80' - "$place"
    [ "$status" -eq 1 ]
    [[ $output == *'port 127.0.0.1:80 of -p '*'net.ipv4.ip_unprivileged_port_start'* ]]
    [ -z "$(ls "$place/run/msb")" ]
    truncate -s 64M disk.raw
    mke2fs -q -t ext4 -d "$vm_root" disk.raw
    chown "$user" disk.raw
    as_user sh -euc 'msb-pull -q ./disk.raw | msb-boot --name disk >disk.json; msb-exec disk -- sh -c "echo kept >/kept; stat -f -c %T /"
        msb-stop -q disk >/dev/null' >output
    [ "$(cat output)" = ext2/ext3 ]
}

@test "without a range of IDs, the error has the lines to add; with other ones, the store is refused" {
    cp /etc/subuid "$BATS_TEST_TMPDIR/subuid"
    as_user msb-pull -q "oci:$place/layout" >/dev/null
    sed -i "s/^$user:1000000000:/$user:1002000000:/" /etc/subuid
    run as_user msb-pull -q "oci:$place/layout"
    [ "$status" -eq 1 ]
    [[ $output == *'was made with other IDs'* ]]
    sed -i "/^$user:/d" /etc/subuid
    run --separate-stderr as_user msb-boot --probe
    probed=$output
    run as_user msb-pull -q "oci:$place/layout"
    cp "$BATS_TEST_TMPDIR/subuid" /etc/subuid
    [ "$status" -eq 1 ]
    [[ $output == *"$user has no IDs in /etc/subuid"*"usermod --add-subuids "*"-"*" $user"* ]]
    jq -e '.parts.privileges | .usable == false and (.remedy | contains("/etc/subuid"))' <<<"$probed"
}

# bats test_tags=vmm-slow
@test "a user's mount shows the owners of the host, goes with its server, and is a guest's root where fuse.conf allows that" {
    # As udev makes it, which a container may not have.
    chmod 0666 /dev/fuse
    as_user sh -euc 'msb-pull -q "oci:$1/layout" | msb-mount -q ./root >mount.json' - "$place"
    [ "$(as_user stat -c %U root/etc/passwd)" = "$user" ]
    [ "$(as_user stat -c %u:%g root/srv/mine)" = 1000654320:1001123455 ]
    as_user sh -euc 'echo new >root/etc/new; chmod 0640 root/etc/new; rm root/etc/link; mkdir root/etc/dir; [ ! -e root/etc/one ]'
    run as_user msb-boot -r mount.json --name shared
    [ "$status" -eq 1 ]
    [[ $output == *'leave msb-mount out'*'"user_allow_other" to /etc/fuse.conf'* ]]
    as_user msb-mount -u ./root
    [ "$(ls root 2>/dev/null)" = '' ]
    upper=$(jq -r .upper.dir mount.json)
    [ "$(stat -c '%U %a' "$upper/etc/new")" = "$user 640" ]
    [ "$(stat -c %t:%T "$upper/etc/link")" = 0:0 ]

    # The server is killed.
    as_user sh -euc 'msb-mount -q -r mount.json ./root >again.json; [ -e root/etc/new ]; kill -9 "$(jq .mount.pid again.json)"'
    is_unmounted() { ! grep -q " $place/home/root " /proc/self/mountinfo; }
    vm_await is_unmounted

    cp /etc/fuse.conf "$BATS_TEST_TMPDIR/"
    echo user_allow_other >>/etc/fuse.conf
    run as_user sh -euc 'msb-mount -q -r mount.json ./root | msb-boot --name shared >shared.json
        msb-exec shared -- sh -c "stat -c %u /srv/mine; echo guest >/etc/guest; chown 5:6 /etc/guest; rm /etc/new"
        cat root/etc/guest; stat -c %u root/etc/guest
        msb-stop -q --unmount -r shared.json >/dev/null'
    cat "$BATS_TEST_TMPDIR/fuse.conf" >/etc/fuse.conf
    [ "$status" -eq 0 ]
    [ "$output" = $'654321\nguest\n1000000004' ]
    [ ! -e "$upper/etc/new" ]
    run ! grep " $place/home/root " /proc/self/mountinfo
}
