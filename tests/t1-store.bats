#!/usr/bin/env bats
# msb-store: what the store holds, the removal of what is named and of what nothing refers to, and the damage that it finds.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats and image.bash set variables
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/image.bash"
    PATH=$BATS_TEST_DIRNAME/../target/release:$PATH
    export MSB_HOME=$BATS_TEST_TMPDIR/home MSB_RUN=$BATS_TEST_TMPDIR/run
    unset MSB_RECORD
    cd "$BATS_TEST_TMPDIR" || return
    tiny="oci:$(tiny_image)"
    layered="oci:$(layered_image)"
    msb-pull -q --erofs "$tiny" >tiny.json
    msb-pull -q --erofs "$layered" >layered.json
    tiny_layer=$(jq -r '.rootfs.lower[0]' tiny.json)
}

teardown() {
    local mount
    if [ -e "$MSB_RUN/worker" ]; then msb-stop -q -t 1 worker >/dev/null 2>&1 || true; fi
    for mount in "$BATS_TEST_TMPDIR"/root "$MSB_HOME"/sandboxes/*/root; do
        if mountpoint -q "$mount"; then msb-mount -u "$mount"; fi
    done
    for mount in tmpfs noexec full overlay vfat; do
        if mountpoint -q "$BATS_TEST_TMPDIR/$mount"; then umount "$BATS_TEST_TMPDIR/$mount"; fi
    done
}

# there: lists the store, without what changes although nothing is lost.
there() {
    find "$MSB_HOME" ! -path "$MSB_HOME/tmp*" -printf '%p %y %s\n' | sort
}

# gone LISTED: the types of what msb-store removed.
gone() {
    jq -r 'select(.state == "removed").type' "$1" | sort | uniq -c | xargs
}

@test "gc leaves a store in which everything is needed as it is, and lists everything with its size" {
    there >before
    msb-store gc >listed
    diff before <(there)
    jq -e -s 'all(.state == "kept") and all(.bytes > 0 or .type == "image")' listed
    [ "$(jq -r 'select(.type == "layer").path' listed | sort)" = "$(find "$MSB_HOME/layers/sha256" -mindepth 1 -maxdepth 1 | sort)" ]
    [ "$(jq -s 'map(select(.type == "erofs")) | length' listed)" = 2 ]
    [ "$(jq --arg path "$tiny_layer" 'select(.path == $path).bytes' listed)" = "$(($(du -sk "$tiny_layer" | cut -f 1) * 1024))" ]
}

@test "ls has images by reference with digest, size, shared size and last use; a third name shares nothing new" {
    layout=${tiny#oci:}
    msb-pull -q "oci:$layout:latest" >again.json
    msb-store ls >listed
    [ "$(jq -r 'select(.type == "image").name' listed)" = "$(printf '%s\n' "$layered" "$tiny" "$tiny:latest" | sort)" ]
    jq -e -s 'map(select(.type == "image")) | all(.complete and .bytes > 0 and .last_use > now - 600 and .shared_bytes == 0)' listed
    [ "$(jq -r --arg name "$tiny" 'select(.name == $name).digest' listed)" = "$(jq -r .image.digest tiny.json)" ]
    [ "$(jq -r 'select(.type == "layer").path' listed | wc -l)" = "$(find "$MSB_HOME/layers/sha256" -mindepth 1 -maxdepth 1 | wc -l)" ]
    jq -e -s 'map(select(.type == "erofs")) | length == 2 and all(.used_by | length > 0)' listed
    [ "$(msb-store ls -t image "$tiny" | jq -r .type)" = image ]
    # The digest names the image under both of its references.
    [ "$(msb-store ls "$(jq -r .image.digest tiny.json)" "$tiny" | jq -r .name)" = "$(printf '%s\n' "$tiny" "$tiny:latest" | sort)" ]
    run -1 --separate-stderr msb-store ls nowhere
    [ "$stderr" = 'msb-store: "nowhere": nothing of that name ("msb-store ls" lists all)' ]
    # A person gets tables.
    script -qec 'msb-store ls; msb-store du; msb-store gc -n' /dev/null >table </dev/null
    grep -q '^TYPE  *NAME  *DIGEST  *SIZE  *SHARED  *USED  *BY' table
    grep -q '^total ' table
}

@test "rm removes an image with what only it needed; the other one can still be pulled offline" {
    there >before
    run --separate-stderr msb-store rm -n "$tiny"
    [ "$status" -eq 0 ]
    [[ $stderr == 'msb-store: 5 unneeded ('* ]]
    diff before <(there)
    msb-store rm "$tiny" >listed
    [ "$(gone listed)" = '2 blob 1 erofs 1 image 1 layer' ]
    [ ! -e "$tiny_layer" ]
    [ ! -e "$MSB_HOME/checksums/${tiny_layer##*/}" ]
    jq -r '.rootfs.lower[]' layered.json | while read -r layer; do [ -d "$layer" ] || exit 1; done
    [ "$(find "$MSB_HOME/erofs" -name '*.erofs' | wc -l)" = 1 ]
    msb-store check
    run -1 --separate-stderr msb-store rm "$tiny"
    [[ $stderr == *'no image of that name ("msb-store ls" lists all)' ]]
    msb-store rm -f "$tiny"
    # What gc -a removes depends on the last use.
    msb-store gc --all --older-than 1h >collected
    [ -z "$(jq 'select(.state == "removed")' collected)" ]
    msb-store gc --all >listed
    [[ $(gone listed) == *'1 erofs 1 image'* ]]
    [ -z "$(find "$MSB_HOME"/{blobs,layers,checksums,references,erofs} -mindepth 1 ! -name sha256)" ]
}

@test "names of things do not lead outside of the store" {
    mkdir -p victim "$MSB_HOME/volumes/cache"
    echo kept >victim/file
    ln -s "$PWD/victim" "$MSB_HOME/volumes/cache/link"
    for type in layer erofs sandbox disk volume; do
        for name in ../../victim ../victim /etc .. . ''; do
            run ! msb-store rm -t "$type" -- "$name"
        done
    done
    # What an image's author or a damaged disk puts into a document or a reference names nothing outside.
    echo 'evil sha256:../../../victim' >"$MSB_HOME/references/evil"
    echo '{"rootfs":{"diff_ids":["sha256:../../../../victim","sha256:'"$(printf '%064d' 0)"'"]}}' >doc
    digest=$(sha256sum doc | cut -d ' ' -f 1)
    cp doc "$MSB_HOME/blobs/sha256/$digest"
    echo "evil2 sha256:$digest" >"$MSB_HOME/references/evil2"
    ln -s "$PWD/victim" "$MSB_HOME/layers/sha256/$(printf '%064d' 0)"
    ln -s "$PWD/victim" "$MSB_HOME/sandboxes"
    msb-store ls >/dev/null
    msb-store gc >listed || true
    [ "$(msb-store rm -t volume cache | jq -c '[.type, .name, .state]')" = '["volume","cache","removed"]' ]
    [ ! -e "$MSB_HOME/volumes/cache" ]
    [ "$(cat victim/file)" = kept ]
}

@test "a layer is in use while it is mounted, in whatever namespace, and is removed after that" {
    msb-mount -r tiny.json ./root >root.json
    rm "$MSB_HOME"/references/*
    msb-store gc >listed
    [ "$(jq -r 'select(.type == "layer" and .state == "kept").path' listed)" = "$tiny_layer" ]
    # The sandbox names its mount.
    [ "$(msb-store ls -t sandbox | jq -r '.used_by[0]')" = "mount $PWD/root" ]
    run -1 --separate-stderr msb-store rm -t sandbox "$(basename "$(dirname "$(jq -r .upper.dir root.json)")")"
    [[ $stderr == *'its upper is in use (unmount it, or stop the VM that has it)' ]]
    msb-mount -u ./root
    # The upper may still be wanted, and needs its layer.
    msb-store gc >listed
    [ -d "$tiny_layer" ]
    touch -d '2 days ago' "$MSB_HOME"/sandboxes/*/hold
    [ "$(gone <(msb-store gc --older-than 3d))" = '' ]
    [ "$(gone <(msb-store gc))" = '1 erofs 1 layer 1 sandbox' ]
    run -1 --separate-stderr msb-mount -r tiny.json ./root
    [[ $stderr == *"$tiny_layer"* ]]
}

@test "a VM has its layers, its agent and the upper that a pipe made, and msb-rm removes the upper with it" {
    # why_agent: why gc keeps or removes what was made of the agent.
    why_agent() { jq -r 'select(.type == "initramfs") | .state + ": " + .why' listed; }
    cp "$(dirname "$(command -v msb-boot)")/agentd" agentd
    echo '{"op":"mkdir","path":"/new"}' | cat tiny.json - | msb-patch | MSB_AGENTD=$PWD/agentd msb-boot -q --network none --name worker >vm.json
    sandbox=$(dirname "$(jq -r .upper.dir vm.json)")
    rm "$MSB_HOME"/references/*
    touch -d '9 days ago' "$sandbox/hold"
    [ "$(msb-store ls -t sandbox | jq -c .used_by)" = '["VM worker"]' ]
    msb-store gc >listed
    [ -d "$tiny_layer" ]
    [ -d "$sandbox" ]
    [ "$(why_agent)" = 'kept: it is in use' ]
    [ "$(jq -r 'select(.type == "disk").state' listed)" = kept ]
    run -1 msb-store rm -t sandbox "${sandbox##*/}"
    run -1 msb-store rm -t disk worker
    run -1 msb-store rm -f -t layer "${tiny_layer##*/}"
    msb-stop -q worker >/dev/null
    [ -e "$sandbox/hold" ]
    [ ! -s "$sandbox/hold" ]
    # The disk, and the upper for a day, still need the image.
    MSB_AGENTD=$PWD/agentd msb-store gc >listed
    [ "$(why_agent)" = 'kept: its agentd is installed' ]
    msb-store gc --older-than 1d >listed
    [ "$(why_agent)" = 'kept: it was used in the time of --older-than' ]
    msb-store gc >listed
    [ "$(why_agent)" = 'removed: its agentd is not installed' ]
    [ -z "$(find "$MSB_HOME/kernel" -name 'agentd-*')" ]
    [ -d "$tiny_layer" ]
    [ -d "$sandbox" ]
    msb-rm worker
    [ -z "$(ls -A "$MSB_HOME/sandboxes")" ]
    msb-store gc >listed
    [ ! -e "$tiny_layer" ]
}

@test "gc removes what killed tools left, keeps disks, uppers of commits and volumes, and an upper whose user was killed for a day" {
    mkdir -p "$MSB_HOME"/sandboxes/{worker,committed/upper} "$MSB_HOME"/{tmp/dead,volumes/cache}
    mkdir "$MSB_HOME/layers/sha256/.$(printf '%064d' 7).1.0"
    echo disk >"$MSB_HOME/sandboxes/worker/top.ext4"
    # Its user was killed: nobody has noted the time of its end.
    echo '{"op":"mkdir","path":"/new"}' | cat tiny.json - | msb-patch >patched.json
    hold=$(dirname "$(jq -r .upper.dir patched.json)")/hold
    printf x >"$hold"
    touch -d '9 days ago' "$hold"
    mkdir -p "$MSB_HOME/sandboxes/.draft.1/upper"
    msb-store gc >listed
    [ "$(gone listed)" = '3 unfinished' ]
    [ -d "$MSB_HOME/sandboxes/committed/upper" ]
    [ -e "$hold" ]
    [ ! -s "$hold" ]
    [ "$(msb-store ls | jq -r 'select(.type == "disk").name')" = worker ]
    [ "$(msb-store ls -t volume | jq -r .name)" = cache ]
    touch -d '2 days ago' "$hold"
    msb-store gc >listed
    [ "$(gone listed)" = '1 sandbox' ]
    # A disk goes without the upper beside it, and an upper not before the disk that belongs to it.
    mkdir -p "$MSB_HOME"/sandboxes/worker/{upper,work}
    run -1 --separate-stderr msb-store rm -t sandbox worker
    [[ $stderr == *'a disk that belongs to this upper is beside it (remove it first, with -t disk)' ]]
    [ "$(msb-store rm -n -t disk worker | jq -c '[.state, .bytes > 0]')" = '["unneeded",true]' ]
    [ "$(msb-store rm -t disk worker | jq -r .path)" = "$MSB_HOME/sandboxes/worker/top.ext4" ]
    [ "$(ls "$MSB_HOME/sandboxes/worker" | paste -sd ' ')" = 'upper work' ]
    msb-store rm -t sandbox worker >listed
    [ ! -e "$MSB_HOME/sandboxes/worker" ]
}

@test "check finds a changed, a missing and an added file, changed attributes, a damaged document and a damaged disk" {
    touch -d '2 days ago' "$MSB_HOME"/checksums/*
    msb-store check
    # A check is not a use.
    msb-store ls -t layer | jq -e -s 'all(.last_use < now - 86400)'
    layer=$(jq -r '.rootfs.lower[-1]' layered.json)
    file=$(find "$layer" -type f -size +0 | head -n 1)
    touch -r "$file" time
    printf x | dd of="$file" conv=notrunc status=none
    touch -r time "$file"
    other=$(find "$tiny_layer" -type f | head -n 1)
    chmod 4711 "$other"
    gone=$(find "$tiny_layer" -type f | tail -n 1)
    rm "$gone"
    printf 'x' >"$tiny_layer"/$'new\e[2J\xff'
    blob=$(find "$MSB_HOME/blobs" -type f | head -n 1)
    echo >>"$blob"
    image=$(find "$MSB_HOME/erofs" -name '*.erofs' | head -n 1)
    truncate -s 4096 "$image"
    run -1 --separate-stderr msb-store check
    has() {
        jq -e -s --arg path "$1" --arg problem "$2" --arg member "$3" 'any(.path == $path and .problem == $problem and
            ($member == "" or (.members | index($member))))' <<<"$output" >/dev/null
    }
    has "${file#"$layer"/}" changed content
    has "${other#"$tiny_layer"/}" changed mode
    has "${gone#"$tiny_layer"/}" missing ''
    has "$blob" damaged ''
    has "$image" damaged ''
    [ "$(jq -r 'select(.problem == "added").path' <<<"$output" | head -c 3)" = new ]
    script -qec 'msb-store check' /dev/null >shown </dev/null || true
    grep -q ': new' shown
    run ! grep -q $'new\e' shown
    # A damaged layer is removed by its name, and the next pull brings it back.
    run -1 msb-store rm -t layer "${tiny_layer##*/}"
    msb-store rm -f -t layer "${tiny_layer##*/}"
    [ ! -e "$tiny_layer" ]
    msb-store ls | jq -e -s 'any(.complete == false)'
    msb-pull -q "$tiny" >/dev/null
    msb-pull -q "$layered" >/dev/null
    msb-store check | jq -s -e --arg id "${tiny_layer##*/}" 'all(.name != $id)'
}

@test "a home on tmpfs or without exec, behind a symlink or relative works; one that cannot hold layers is named with the cause" {
    mkdir -p lower upper work overlay tmpfs noexec full vfat
    mount -t tmpfs -o size=64M tmpfs tmpfs
    mount -t tmpfs -o size=64M,noexec tmpfs noexec
    mount -t tmpfs -o size=1M tmpfs full
    mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay overlay
    ln -s tmpfs/behind link
    mkdir tmpfs/behind
    mkdir wh
    : >wh/.wh.gone
    printf 'x%.0s' {1..3000000} >wh/large
    chown 1:1 wh/large
    tar -C wh -c .wh.gone large >layer.tar
    umoci init --layout image
    umoci new --image image:latest
    umoci raw add-layer --image image:latest layer.tar
    for home in "$PWD/tmpfs/home" "$PWD/noexec/home" "$PWD/link" relative/../tmpfs/relative; do
        mkdir -p relative
        echo '{"op":"remove","path":"/large"}' | MSB_HOME=$home msb-patch -r <(MSB_HOME=$home msb-pull -q oci:image) >patched.json
        MSB_HOME=$home msb-store check
    done
    # fails HOME CAUSE: msb-pull either works or says what the matter is.
    fails() {
        MSB_HOME=$1 run --separate-stderr msb-pull -q oci:image
        echo "$1: $status: $stderr" >&2
        [ "$status" = 0 ] && [ "${3:-}" = may-work ] || [[ $status == 1 && $stderr == *MSB_HOME* && $stderr == *"$2"* ]]
        [ "$(find "$1/layers" -mindepth 2 2>/dev/null | wc -l)" = 0 ] || [ "$status" = 0 ]
    }
    fails "$PWD/overlay/home" overlayfs may-work
    fails "$PWD/full/home" 'make room'
    mount -o remount,ro tmpfs tmpfs
    fails "$PWD/tmpfs/new" 'Read-only file system'
    echo '{"op":"mkdir","path":"/d"}' >op
    run -1 --separate-stderr env MSB_HOME="$PWD/tmpfs/new" msb-patch -r tiny.json <op
    [[ $stderr == *MSB_HOME*'Read-only file system'* ]]
    run -1 --separate-stderr env MSB_HOME="$PWD/tmpfs/new" msb-mount -r tiny.json ./root
    [[ $stderr == *MSB_HOME*'Read-only file system'* ]]
    : >file
    fails "$PWD/file/home" 'is not a directory'
    ln -s nowhere dangling
    fails "$PWD/dangling" 'is not a directory'
    truncate -s 64M vfat.img
    if mkfs.vfat vfat.img >/dev/null 2>&1 && mount -o loop vfat.img vfat 2>/dev/null; then fails "$PWD/vfat/home" vfat; fi
}

# bats test_tags=kill
@test "gc that is killed at any moment loses nothing, and shows nothing half-made" {
    cp -a "$MSB_HOME" whole
    kills=$((${MSB_KILLS:-20} * 3 / 5))
    for n in $(seq "$kills"); do
        rm -rf "$MSB_HOME"
        cp -a whole "$MSB_HOME"
        find "$MSB_HOME/references" -type f -exec grep -lF "$tiny " {} + | xargs rm
        msb-store gc >/dev/null 2>&1 &
        sleep "0.0$(printf '%03d' $((RANDOM % 300)))"
        kill -9 $! 2>/dev/null || true
        wait $! 2>/dev/null || true
        # The other image is whole, and every layer with a name is what was unpacked.
        msb-store check >problems 2>err || { cat problems err; return 1; }
        msb-pull -q --policy never "$layered" >/dev/null
        msb-store gc >/dev/null 2>&1
        [ ! -e "$tiny_layer" ]
        [ -z "$(find "$MSB_HOME/layers" -name '.*')" ]
        [ "$(find "$MSB_HOME/checksums" -type f | wc -l)" = "$(find "$MSB_HOME/layers/sha256" -mindepth 1 -maxdepth 1 | wc -l)" ]
    done
}
