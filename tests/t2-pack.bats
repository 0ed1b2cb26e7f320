#!/usr/bin/env bats
# msb-pack and msb-diff: what was prepared comes out. Judged by umoci, skopeo, tar and the kernel's overlayfs.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats sets variables
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/patch.bash"
    source "$BATS_TEST_DIRNAME/tree.bash"
    patch_setup
    PATH=$PATH:/usr/sbin:/sbin
}

teardown() {
    patch_teardown
    if [ -e registry/pid ]; then registry_stop registry; fi
    if [ -e small/pid ]; then registry_stop small; fi
    if mountpoint -q small; then umount -l small; fi
}

@test "msb-diff names what has changed, was added and removed, and exits like diff" {
    msb-diff -r image.json >none
    [ ! -s none ]
    patch '{"op":"text","path":"/etc/motd","content":"new\n","replace":true}' '{"op":"chmod","path":"/bin/tar","mode":"0755"}' \
        '{"op":"mkdir","path":"/new"}' '{"op":"symlink","target":"x","link":"/new/link"}' '{"op":"remove","path":"/var/cache"}'
    run --separate-stderr msb-diff -r patched.json
    [ "$status" -eq 1 ]
    [ "$(jq -r '[.path, .change, (.what // [] | join("+")), .type // "-", .before.layer // "-"] | join(" ")' <<<"$output")" = \
'/etc/motd changed content+mtime file lower 1
/new added  directory -
/new/link added  symlink -
/usr/bin/tar changed mode file lower 1
/var/cache removed  - lower 1' ]
    jq -se '.[0] | .size == 4 and .before.size == 9 and .mode == "0644" and .layer == "upper"' <<<"$output"
    run ! msb-diff -q -r patched.json
    # Against another record, in both directions, and against itself.
    msb-diff -r patched.json image.json -o lines && false
    [ "$(wc -l <lines)" -eq 5 ]
    msb-diff -r image.json patched.json -o lines && false
    [ "$(jq -r .change lines | sort | uniq -c | xargs)" = '3 added 2 changed 1 removed' ]
    # A symlink stays one, and a pipe is written to.
    ln -s lines link
    msb-diff -r image.json patched.json -o link && false
    [ -L link ]
    mkfifo pipe
    cat pipe >piped 3>&- &
    msb-diff -r image.json patched.json -o pipe && false
    wait $!
    cmp lines piped
    msb-diff -r patched.json patched.json
    # Trouble is 2, as for diff.
    run --separate-stderr msb-diff -r patched.json ./nowhere.json
    [ "$status" -eq 2 ]
    [[ $stderr == 'msb-diff: record "./nowhere.json": '* ]]
    run --separate-stderr msb-diff -r patched.json -o nowhere/lines
    [ "$status" -eq 2 ]
}

@test "msb-diff agrees with the kernel about opaque directories and names with newlines, while the root is mounted" {
    patch '{"op":"remove","path":"/var/cache"}'
    show
    rm -rf merged/etc/ssl
    mkdir -p merged/etc/ssl merged/var/cache
    touch merged/var/cache/$'a\nb' merged/var/cache/$'\xff'
    chown 5 merged/etc/hosts
    run --separate-stderr msb-diff -r patched.json
    [ "$status" -eq 1 ]
    [ "$(jq -c '[.path, .change]' <<<"$output")" = '["/etc/hosts","changed"]
["/var/cache/a\nb","added"]
["/var/cache/apt","removed"]
[[47,118,97,114,47,99,97,99,104,101,47,255],"added"]' ]
    [ "$(jq -r 'select(.path == "/etc/hosts").what | join(" ")' <<<"$output")" = owner ]
}

@test "msb-diff --which names the layer of each path" {
    patch '{"op":"text","path":"/new","content":""}'
    msb-diff -r patched.json --which /new bin/tar /etc /etc/hosts >found
    [ "$(jq -r '[.path, .resolved, .layer] | join(" ")' found)" = '/new /new upper
bin/tar /usr/bin/tar lower 1
/etc /etc lower 0
/etc/hosts /etc/hosts lower 0' ]
    [ "$(jq -rs '.[1].dir' found)" = "$PWD/bottom" ]
    run --separate-stderr msb-diff -r patched.json --which /nowhere /etc/motd
    [ "$status" -eq 1 ]
    [ "$stderr" = 'msb-diff: "/nowhere": no such path in the root' ]
    [ "$(jq -r .layer <<<"$output")" = 'lower 1' ]
}

# hostile: patches image.json, and then has the kernel put all into the upper that a guest's root could. The root is at ./merged.
hostile() {
    patch '{"op":"remove","path":"/var/cache"}' '{"op":"script","name":"hello","content":"#!/bin/sh\necho hello\n"}'
    show
    rm -rf merged/etc/ssl merged/etc/motd
    local deep
    deep=merged/$(printf 'd%.0s' {1..150})/$(printf 'e%.0s' {1..150})
    mkdir -p merged/etc/ssl merged/var/cache "$deep"
    echo deep >"$deep/file"
    ln -s /etc/shadow merged/var/leak
    ln -s "$(printf '../%.0s' {1..60})etc/passwd" merged/var/up
    ln merged/var/up merged/var/up2
    mknod merged/var/disk b 7 0
    mknod merged/var/fifo p
    cp /bin/true merged/var/setid
    chown 3000000:7 merged/var/setid
    chmod 6755 merged/var/setid
    setcap cap_net_raw+ep merged/usr/bin/tar
    ln merged/usr/bin/tar merged/usr/bin/gtar
    setfattr -n user.note -v $'a=b\nc' merged/var
    setfacl -m u:7:r merged/etc/hosts
    truncate -s 3M merged/var/sparse
    echo end >>merged/var/sparse
    touch -d '1969-12-31 23:59:58.5 UTC' merged/var/sparse
    touch -d @4000000000.25 merged/usr
    echo x >merged/var/cache/$'new\nline'
    echo x >merged/var/cache/$'\xff'
    echo x >merged/var/cache/' '
}

# same DIR: the tree in DIR is the one at ./merged.
same() {
    diff <(tree_manifest merged) <(tree_manifest "$1")
}

# only_scripts_differ: the roots of pulled.json and patched.json are equal, except for /.msb and times that SOURCE_DATE_EPOCH changed.
only_scripts_differ() {
    msb-diff -r pulled.json patched.json >differences || [ $? -eq 1 ]
    [ -z "$(jq -r 'select(.what != ["mtime"]) | .path' differences | grep -v '^/\.msb')" ]
}

@test "an image of a hostile upper is the kernel's tree for umoci, skopeo, tar and msb-pull" {
    hostile
    msb-pack -r patched.json --scripts-to /opt oci:out:v1 tar:root.tar layer:layer.tar docker-archive:docker.tar:demo dir:tree >new.json
    # The scripts are the only difference to what the kernel shows.
    for name in tree umoci; do
        [ "$name" = tree ] || umoci unpack --image out:v1 umoci
        at=$name
        [ "$name" = tree ] || at=umoci/rootfs
        [ "$("$at/opt/hello")" = hello ]
        [ "$(stat -c '%a %u %Y' "$at/opt/hello")" = '755 0 0' ]
        rm -r "$at/opt"
        touch -d "@$(stat -c %.9Y merged)" "$at"
        same "$at"
    done
    # What leads out of the root is in the archives as it is, and never followed.
    [ "$(tar -tf layer.tar | grep -c '\.wh\.')" -eq 3 ]
    tar -tf layer.tar | grep -x 'var/cache/.wh..wh..opq'
    tar -tvf layer.tar | grep -q 'var/leak -> /etc/shadow'
    tar -xOf layer.tar >contents
    run ! grep -aq root: contents
    mkdir untarred
    tar -xf root.tar --xattrs --xattrs-include='*' -C untarred
    rm -r untarred/opt
    touch -d "@$(stat -c %.9Y merged)" untarred
    same untarred
    # skopeo reads both archives, and msb-pull reads the result.
    skopeo copy -q docker-archive:docker.tar oci:copied:v1
    [ "$(skopeo inspect --config oci:copied:v1 | jq -c .rootfs)" = "$(skopeo inspect --config oci:out:v1 | jq -c .rootfs)" ]
    msb-pack -q -r patched.json oci-archive:out.tar:v1 -o new.json
    [ "$(skopeo inspect oci-archive:out.tar:v1 | jq -r .Digest)" = "$(jq -r .image.digest new.json)" ]
    msb-pull -q oci-archive:out.tar >pulled.json
    umount merged
    only_scripts_differ
    # A name that a layer cannot hold.
    mkdir bad bad-work
    touch bad/.wh.etc
    jq --arg dir "$PWD" '.upper = {dir: ($dir + "/bad"), work: ($dir + "/bad-work")}' image.json >bad.json
    run --separate-stderr msb-pack -r bad.json oci:bad-out
    [ "$status" -eq 1 ]
    [[ $stderr == *'".wh.etc": a layer cannot hold a file of this name'* ]]
    [ ! -e bad-out ]
    [ -z "$(find . -maxdepth 1 -name '.*.*')" ]
}

# in_other_stores COMMAND…: runs a command with a store of podman's and a containerd of its own, whose mounts the host does not see.
in_other_stores() {
    cat >containerd.toml <<END
version = 2
root = "$PWD/containerd/root"
state = "$PWD/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$PWD/containerd/socket"
[ttrpc]
  address = "$PWD/containerd/ttrpc"
END
    mkdir -p containerd
    export -f same tree_manifest podman_here ctr_here "$1"
    unshare -m --propagation private bash -euo pipefail -c '
        containerd -c containerd.toml >containerd/log 2>&1 3>&- &
        trap "kill $!; wait" EXIT
        until ctr_here version >/dev/null 2>&1; do kill -0 $!; sleep 0.1; done
        "$1"' - "$1"
}

podman_here() {
    podman --root "$PWD/podman" --runroot "$PWD/podman-run" --tmpdir "$PWD/podman-tmp" --cgroup-manager cgroupfs \
        --events-backend file --storage-driver vfs "$@"
}

ctr_here() { ctr --address "$PWD/containerd/socket" "$@"; }

loaded_trees() {
    podman_here load -q -i docker.tar
    cp -a "$(podman_here image mount localhost/demo:v1)" by-podman
    ctr_here image import --base-name localhost/demo out.tar
    mkdir imported
    ctr_here image mount --snapshotter native localhost/demo:v1 imported
    cp -a imported by-ctr
    umount imported
    for tree in by-podman by-ctr; do
        rm -r "$tree/opt"
        touch -d "@$(stat -c %.9Y merged)" "$tree"
    done
    # Neither knows a time before 1970, and podman drops ACLs.
    touch -d @0 merged/var/sparse
    same by-ctr
    setfacl -b merged/etc/hosts
    same by-podman
}

@test "podman load and ctr image import give the kernel's tree" {
    hostile
    msb-pack -q -r patched.json --scripts-to /opt docker-archive:docker.tar:localhost/demo:v1 oci-archive:out.tar:v1 -o new.json
    in_other_stores loaded_trees
}

@test "the layers of the base stay as they are, and the same record gives the same digests" {
    source "$BATS_TEST_DIRNAME/image.bash"
    layout=$(tiny_image)
    cp -r "$layout" base
    msb-pull oci:base:latest >image.json
    # Without a change it is the base itself.
    [ "$(msb-pack -r image.json oci:copy:v1 | jq -r .image.digest)" = "$(jq -r .image.digest image.json)" ]
    export SOURCE_DATE_EPOCH=1000000
    patch '{"op":"text","path":"/new","content":"x"}' '{"op":"script","name":"hello","content":"#!/bin/sh\n"}'
    digest=$(msb-pack -r patched.json oci:out:v1 -o new.json && jq -r .image.digest new.json)
    [ "$(taskset -c 0 msb-pack -r patched.json oci:out:v2 | jq -r .image.digest)" = "$digest" ]
    [ "$(jq '.manifests | length' out/index.json)" -eq 2 ]
    below=$(skopeo inspect --raw oci:base:latest | jq -c '[.layers[].digest]')
    [ "$(skopeo inspect --raw oci:out:v1 | jq -c --argjson below "$below" '[.layers[].digest][:($below | length)] == $below')" = true ]
    skopeo inspect --config oci:out:v1 >config
    jq -e '.created == "1970-01-12T13:46:40Z" and (.config.Env | any(startswith("PATH=/.msb/scripts:")))' config
    [ "$(jq '[.history[] | select(.empty_layer | not)] | length' config)" = "$(jq '.rootfs.diff_ids | length' config)" ]
    # The record of the new image goes on: nothing is added, and with flags only the configuration changes.
    [ "$(msb-pack -r new.json oci:out:v3 | jq -r .image.digest)" = "$digest" ]
    msb-pack -q -r new.json --cmd '["/bin/id","-u"]' --env A=b --label l=v --expose 80 --user 7 --workdir /new --stop-signal INT \
        --volume /data --annotation n=v --entrypoint '["/x"]' oci:out:v4 -o last.json
    jq -e '.image.config | .Cmd == ["/bin/id","-u"] and .User == "7" and .Labels.l == "v" and .Entrypoint == ["/x"]' last.json
    skopeo inspect --config oci:out:v4 | jq -e '.config | .ExposedPorts == {"80/tcp":{}} and .Volumes == {"/data":{}} and
        .StopSignal == "INT" and .WorkingDir == "/new" and (.Env | index("A=b"))'
    skopeo inspect --raw oci:out:v4 | jq -e '.annotations.n == "v"'
    [ "$(skopeo inspect --raw oci:out:v4 | jq '.layers | length')" = "$(skopeo inspect --raw oci:out:v1 | jq '.layers | length')" ]
    # zstd, one layer, and a base that is gone.
    msb-pack -q -r patched.json --squash --compression zstd oci:out:squashed -o squashed.json
    [ "$(skopeo inspect --raw oci:out:squashed | jq -r '.layers[].mediaType')" = application/vnd.oci.image.layer.v1.tar+zstd ]
    msb-pull -q oci:out:squashed >pulled.json
    only_scripts_differ
    # A FIFO in a layout is refused, and nobody waits for its writer.
    blob=base/blobs/$(jq -r '.layers[0].digest' "base/blobs/$(jq -r '.manifests[0].digest' base/index.json | tr : /)" | tr : /)
    rm "$blob"
    mkfifo "$blob"
    mkdir fifo
    cp base/oci-layout fifo
    mkfifo fifo/index.json
    for target in oci-archive:other.tar:v1 oci:fifo:v1; do
        run --separate-stderr timeout 120 msb-pack -r patched.json "$target"
        echo "$target: $stderr"
        [ "$status" -eq 1 ]
        [[ $stderr == *': not a regular file'* ]]
    done
    run --separate-stderr timeout 120 msb-pull oci:fifo:v1
    [ "$status" -eq 1 ]
    rm -r base
    run --separate-stderr msb-pack -r patched.json oci:other:v1
    [ "$status" -eq 1 ]
    [[ $stderr == *"layer sha256:"*" of the base: "*"(pull the base again, or use --squash or --repack)" ]]
    [ ! -e other ]
    msb-pack -q -r patched.json --repack oci:other:v1 -o repacked.json
    msb-pull -q oci:other:v1 >pulled.json
    only_scripts_differ
}

@test "what cannot be written leaves the old file, nothing beside it, and a message" {
    patch '{"op":"text","path":"/new","content":"x"}'
    echo old >kept.tar
    mkdir -p full taken/x
    mount -t tmpfs -o size=64k tmpfs full
    for target in oci:taken dir:taken tar:nowhere/f tar:taken oci-archive:full/a.tar raw:full/d oci:full/o; do
        head -c 100000 /dev/urandom >bottom/var/random
        run --separate-stderr msb-pack -r patched.json "$target"
        echo "$target: $stderr"
        [ "$status" -eq 1 ]
        [ -z "$output" ]
        [[ $stderr == "msb-pack: "*"\": "* ]]
        [ -z "$(find full . -maxdepth 1 -name '.?*' -newer image.json)" ]
    done
    umount full
    # A read-only file system.
    mount -t tmpfs tmpfs full
    msb-pack -q -r image.json oci:full/layout:v1 tar:full/old.tar -o old.json
    mkdir full/empty
    mount -o remount,ro full
    tree_manifest full >before
    for target in oci:full/layout:v2 oci:full/new:v1 oci-archive:full/a.tar:v1 docker-archive:full/b.tar:demo tar:full/old.tar layer:full/l.tar \
        dir:full/dir dir:full/empty raw:full/disk.raw qcow2:full/disk.qcow2 erofs:full/disk.erofs; do
        run --separate-stderr msb-pack -r patched.json "$target"
        echo "$target: $stderr"
        [ "$status" -eq 1 ]
        [ -z "$output" ]
        [[ $stderr == "msb-pack: "*"\"$PWD/full"*": Read-only file system (os error 30) (name a place elsewhere)" ||
            $stderr == "msb-pack: "*"\"full/"*": Read-only file system (os error 30) (name a place elsewhere)" ]]
    done
    tree_manifest full | diff before -
    [ -z "$(find . -maxdepth 1 -name '.?*' -newer image.json)" ]
    umount full
    # A writer of the upper is in the way, and a reader is not.
    flock -F "$(jq -r .upper.work patched.json)" sleep 100000 3>&- &
    until ! flock -n "$(jq -r .upper.work patched.json)" true; do sleep 0.1; done
    run --separate-stderr msb-pack -r patched.json tar:kept.tar
    kill $!
    wait $! || true
    [ "$status" -eq 1 ]
    [[ $stderr == *'in use by msb-patch, msb-mount, msb-pack or a running VM'* ]]
    [ "$(cat kept.tar)" = old ]
    msb-pack -r patched.json tar:- | tar -tf - | grep -qx new
    run --separate-stderr msb-pack -r patched.json zip:x
    [ "$status" -eq 2 ]
    run --separate-stderr msb-pack -r patched.json docker://localhost:5000
    [ "$status" -eq 2 ]
    [[ $stderr == *'"localhost:5000" has no repository (docker://HOST[:PORT]/REPOSITORY[:TAG] is expected)'* ]]
}

@test "an interrupt after dir:DIR is complete is ignored, or says that complete targets are kept" {
    patch '{"op":"text","path":"/new","content":"x"}'
    msb-pack -q -r patched.json dir:whole -o whole.json
    tree_manifest whole >whole.manifest
    for _ in {1..5}; do
        env --default-signal=TERM msb-pack -q -r patched.json dir:out -o out.json 2>err 3>&- &
        pack=$!
        until [ -e out ] || ! kill -0 $pack 2>/dev/null; do :; done
        kill -TERM $pack 2>/dev/null || true
        code=0
        wait $pack || code=$?
        diff <(tree_manifest out) whole.manifest
        # It may also arrive just before the record is written.
        case $code in
            0) jq -e .rootfs out.json >/dev/null ;;
            143) [ "$(cat err)" = 'msb-pack: interrupted (complete targets are kept)' ] ;;
            *) cat err; return 1 ;;
        esac
        rm -rf out out.json
    done
}

@test "docker:// pushes what the registry lacks, with credentials, and mounts layers of other repositories" {
    source "$BATS_TEST_DIRNAME/image.bash"
    source "$BATS_TEST_DIRNAME/registry.bash"
    registry_start registry --auth user:secret
    first_host=$registry_host
    jq -n --arg host "$registry_host" '{auths: {($host): {auth: ("user:secret" | @base64)}}}' >auth.json
    export REGISTRY_AUTH_FILE=$PWD/auth.json
    skopeo copy -q --dest-tls-verify=false "oci:$(tiny_image):latest" "docker://$registry_host/base:v1"
    msb-pull -q "docker://$registry_host/base:v1" >image.json
    # More than the buffers of a connection hold, and nothing that could be compressed.
    head -c 20000000 /dev/urandom >random
    patch "{\"op\":\"copy_file\",\"src\":\"$PWD/random\",\"dst\":\"/random\"}"
    msb-pack -q -r patched.json "docker://$registry_host/team/new:v2" -o new.json
    [ "$(jq -r .image.ref new.json)" = "$registry_host/team/new:v2" ]
    [ "$(skopeo inspect --tls-verify=false "docker://$registry_host/team/new:v2" | jq -r .Digest)" = "$(jq -r .image.digest new.json)" ]
    grep -q 'mount=sha256[^ ]*from=base' registry/log
    grep -q 'PATCH /v2/team/new/blobs' registry/log
    # Again: no upload begins.
    begun=$(grep -c 'POST /v2/team/new' registry/log)
    msb-pack -q -r patched.json "docker://$registry_host/team/new:v3" -o again.json
    [ "$(grep -c 'POST /v2/team/new' registry/log)" = "$begun" ]
    [ "$(jq -r .image.digest again.json)" = "$(jq -r .image.digest new.json)" ]
    # The base of a layout comes from the registry, and the whole is what was pushed.
    msb-pack -q -r patched.json oci:out:v1 -o local.json
    [ "$(jq -r .image.digest local.json)" = "$(jq -r .image.digest new.json)" ]
    MSB_HOME=$PWD/other msb-pull -q "$registry_host/team/new:v2" >pulled.json
    only_scripts_differ
    # A layer that is in a layout goes as it is, and the registry finds out that it was changed.
    msb-pull -q oci:out:v1 -o of-layout.json
    msb-pack -q -r of-layout.json "docker://$registry_host/team/whole:v1" -o whole.json
    [ "$(jq -r .image.digest whole.json)" = "$(jq -r .image.digest new.json)" ]
    blob=$(du out/blobs/sha256/* | sort -n | tail -n 1 | cut -f 2)
    printf x | dd of="$blob" bs=1 seek=1000000 conv=notrunc status=none
    run --separate-stderr msb-pack -q -r of-layout.json "docker://$registry_host/team/changed:v1"
    [[ "$status" -eq 1 && "$stderr" == *'did not match'* ]]
    run ! skopeo inspect --tls-verify=false "docker://$registry_host/team/changed:v1"
    # A blob that is a symlink to another file is checked before it is sent.
    mv "$blob" elsewhere
    ln -s "$PWD/elsewhere" "$blob"
    run --separate-stderr msb-pack -q -r of-layout.json "docker://$registry_host/team/changed:v1"
    [[ "$status" -eq 1 && "$stderr" == *"wrong digest: expected sha256:${blob##*/}"* ]]
    # A registry whose disk is full in the middle of an upload.
    mkdir -p small/storage
    mount -t tmpfs -o size=8M tmpfs small
    # The registry, too, would read this variable.
    unset REGISTRY_AUTH_FILE
    registry_start small
    run --separate-stderr msb-pack -r patched.json "docker://$registry_host/full:v1"
    [ "$status" -eq 1 ]
    [ -z "$output" ]
    [[ $stderr == "msb-pack: image \"$registry_host/full:v1\": "* ]]
    run ! skopeo inspect --tls-verify=false "docker://$registry_host/full:v1"
    registry_stop small
    umount small
    registry_host=$first_host
    export REGISTRY_AUTH_FILE=$PWD/auth.json
    # Without credentials, and without a registry.
    echo '{}' >auth.json
    run --separate-stderr msb-pack -r patched.json "docker://$registry_host/team/denied:v1"
    [ "$status" -eq 1 ]
    [[ $stderr == "msb-pack: image \"$registry_host/team/denied:v1\": "*'not authorized'* ]]
    registry_stop registry
    run --separate-stderr msb-pack -r patched.json "docker://$registry_host/team/new:v2"
    [ "$status" -eq 1 ]
    [[ $stderr == *'connection refused'* ]]
}

# bats test_tags=kill
@test "a writer that ignores the lock brings nothing of the host into a target, and no file that never was" {
    mkdir races && cd races
    rounds=$((${MSB_KILLS:-4} / 5))
    "$BATS_TEST_DIRNAME/pack-races.py" "$((rounds > 2 ? rounds : 2))" tar layer oci dir raw qcow2 erofs
}

@test "a root that is mounted is packed after the unmount, or from a read-only mount" {
    patch '{"op":"text","path":"/new","content":"x"}'
    msb-mount -q -r patched.json merged -o mounted.json
    run --separate-stderr msb-pack -r mounted.json tar:root.tar
    [ "$status" -eq 1 ]
    [[ $stderr == *'in use by msb-patch, msb-mount, msb-pack or a running VM'* ]]
    [ ! -e root.tar ]
    echo y >merged/new
    msb-mount -q -u merged
    msb-pack -q -r mounted.json tar:root.tar -o new.json
    [ "$(tar -xOf root.tar new)" = y ]
    msb-mount -q --ro -r patched.json merged -o mounted.json
    msb-pack -q -r mounted.json tar:- -o new.json | cmp - root.tar
}

# is_old FILE
is_old() { echo old | cmp -s - "$1"; }

# bats test_tags=kill
@test "a killed msb-pack leaves the old target or the new one, and the next run removes what it left" {
    mkdir -p bottom/usr/share
    for n in {1..200}; do echo "$n" >"bottom/usr/share/$n"; done
    patch '{"op":"text","path":"/new","content":"x"}'
    msb-pack -q -r image.json oci:layout:v1 -o old.json
    msb-pack -q -r patched.json tar:whole.tar dir:whole -o disk.json
    tree_manifest whole >whole.manifest
    source "$BATS_TEST_DIRNAME/registry.bash"
    registry_start registry
    for target in oci:layout:v1 oci:fresh:v1 tar:root.tar docker-archive:docker.tar:demo oci-archive:oci.tar:v1 dir:dir raw:disk.raw \
        qcow2:disk.qcow2 erofs:disk.erofs "docker://$registry_host/killed:v1"; do
        for file in root.tar docker.tar oci.tar disk.raw disk.qcow2 disk.erofs; do echo old >"$file"; done
        for ((n = 0; n < ${MSB_KILLS:-4}; n++)); do
            rm -rf fresh dir
            msb-pack -q -r patched.json "$target" -o out.json 3>&- &
            sleep "0.$(printf '%03d' $((RANDOM % 120)))"
            kill -KILL $! 2>/dev/null || true
            wait $! 2>/dev/null || true
            skopeo inspect oci:layout:v1 >/dev/null
            [ ! -e fresh ] || skopeo inspect oci:fresh:v1 >/dev/null
            is_old root.tar || cmp root.tar whole.tar
            is_old docker.tar || skopeo inspect docker-archive:docker.tar >/dev/null
            is_old oci.tar || skopeo inspect oci-archive:oci.tar:v1 >/dev/null
            is_old disk.raw || e2fsck -fn disk.raw >/dev/null 2>&1
            is_old disk.qcow2 || qemu-img check -q disk.qcow2
            is_old disk.erofs || fsck.erofs disk.erofs >/dev/null
            [ ! -e dir ] || diff <(tree_manifest dir) whole.manifest
            # A tag names a whole image.
            if curl -sf "http://$registry_host/v2/killed/manifests/v1" -H 'Accept: application/vnd.oci.image.manifest.v1+json' >pushed; then
                jq -r '.config.digest, .layers[].digest' pushed | while read -r digest; do
                    curl -sfI "http://$registry_host/v2/killed/blobs/$digest" >/dev/null
                done
            fi
        done
        rm -rf fresh dir
        msb-pack -q -r patched.json "$target" -o out.json
    done
    find . -maxdepth 1 -name '.?*' ! -name '.out.json.*' | tee left
    [ ! -s left ]
}
