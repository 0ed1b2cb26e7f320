#!/usr/bin/env bats
# msb-pull --gc: what the state directory holds, how large it is, and the removal of what nothing needs.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats and image.bash set variables
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/image.bash"
    PATH=$BATS_TEST_DIRNAME/../target/release:$PATH
    export MSB_HOME=$BATS_TEST_TMPDIR/home
    cd "$BATS_TEST_TMPDIR" || return
    msb-pull -q --erofs "oci:$(tiny_image)" >tiny.json
    msb-pull -q --erofs "oci:$(layered_image)" >layered.json
    tiny_layer=$(jq -r '.rootfs.lower[0]' tiny.json)
}

teardown() {
    if mountpoint -q "$BATS_TEST_TMPDIR/merged"; then umount "$BATS_TEST_TMPDIR/merged"; fi
}

# forget_tiny: removes tiny's image from the store, so that no image has its layer.
forget_tiny() {
    rm "$(grep -l "${tiny_layer##*/}" "$MSB_HOME"/blobs/sha256/*)"
}

# Lists the state directory, without what every call of --gc changes.
there() {
    find "$MSB_HOME" ! -path "$MSB_HOME/tmp*" -printf '%p %y %s\n' | sort
}

@test "--gc leaves a store in which everything is needed as it is, and lists everything with its size" {
    there >before
    msb-pull --gc >listed
    diff before <(there)
    jq -e -s 'all(.state == "kept" and .bytes > 0)' listed
    [ "$(jq -r 'select(.kind == "layer").path' listed | sort)" = "$(find "$MSB_HOME/layers/sha256" -mindepth 1 -maxdepth 1 | sort)" ]
    [ "$(jq -s 'map(select(.kind == "erofs")) | length' listed)" = 2 ]
    [ "$(jq --arg path "$tiny_layer" 'select(.path == $path).bytes' listed)" = "$(($(du -sk "$tiny_layer" | cut -f 1) * 1024))" ]
}

@test "--gc removes a layer that no image has, and its EROFS image; -n only reports it" {
    forget_tiny
    there >before
    run --separate-stderr msb-pull --gc -n
    [ "$status" -eq 0 ]
    [[ $stderr == 'msb-pull: 2 unneeded ('*' MiB), '*' kept ('* ]]
    diff before <(there)
    run --separate-stderr msb-pull --gc
    [ "$status" -eq 0 ]
    [[ $stderr == 'msb-pull: 2 removed ('* ]]
    [ ! -e "$tiny_layer" ]
    [ "$(jq -r 'select(.state == "removed").kind' <<<"$output" | sort)" = $'erofs\nlayer' ]
    # The other image is complete.
    jq -r '.rootfs.lower[]' layered.json | while read -r layer; do [ -d "$layer" ] || exit 1; done
    [ "$(find "$MSB_HOME/erofs" -name '*.erofs' | wc -l)" = 1 ]
}

@test "--gc keeps what is in use: a mounted layer, and an image that a process has open" {
    forget_tiny
    mkdir merged empty
    mount -t overlay -o "lowerdir=$tiny_layer:empty" overlay merged
    image=$(grep -l "${tiny_layer##*/}" "$MSB_HOME"/erofs/*.lock)
    exec {held}<"${image%.lock}.erofs"
    msb-pull --gc >listed
    [ "$(jq -s 'map(select(.why == "it is in use")) | length' listed)" = 2 ]
    [ -d "$tiny_layer" ]
    exec {held}<&-
    umount merged
    msb-pull --gc >listed
    [ ! -e "$tiny_layer" ]
}

@test "--gc removes unfinished downloads and layers, and keeps uppers and the disks of named VMs" {
    mkdir -p "$MSB_HOME"/sandboxes/{.draft.1/upper,worker,0123456789ab/upper} "$MSB_HOME/tmp/dead"
    echo disk >"$MSB_HOME/sandboxes/worker/top.ext4"
    msb-pull --gc >listed
    [ "$(jq -r 'select(.state == "removed").path' listed | sort)" = "$(printf '%s\n' "$MSB_HOME/sandboxes/.draft.1" "$MSB_HOME/tmp/dead")" ]
    [ -e "$MSB_HOME/sandboxes/worker/top.ext4" ]
    [ -e "$MSB_HOME/sandboxes/0123456789ab/upper" ]
}
