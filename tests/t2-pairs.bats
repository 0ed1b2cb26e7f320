#!/usr/bin/env bats
# Every operation, alone and after every other on the same path, on every kind of existing file; and the tree that
# results, as the kernel's overlayfs and msb-mount show it, against a model on a plain file system (pairs.py).

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats sets variables
bats_require_minimum_version 1.5.0

setup_file() {
    cd "$BATS_FILE_TMPDIR" || return
    python3 "$BATS_TEST_DIRNAME/pairs.py" layers .
    mkdir flat merged
    mount -t overlay overlay -o ro,lowerdir=top:bottom merged
    cp -a merged/. flat/
    umount merged
    cp -a flat single
    python3 "$BATS_TEST_DIRNAME/pairs.py" model .
    source "$BATS_TEST_DIRNAME/tree.bash"
    # The link count of a layer's file is that of its layer, also after another of its names was copied up.
    tree_manifest flat | sed -E 's|^(f .*) 1 ([0-9]+ \./c/[0-9]+/twin)$|\1 2 \2|' | sort >expected
}

setup() {
    PATH="$(cd "$BATS_TEST_DIRNAME/.." && pwd)/target/release:$PATH"
    source "$BATS_TEST_DIRNAME/tree.bash"
    export MSB_HOME="$BATS_TEST_TMPDIR/home" SOURCE_DATE_EPOCH=1700000000
    cd "$BATS_FILE_TMPDIR" || return
}

teardown() {
    ! mountpoint -q merged || umount merged
    ! mountpoint -q mounted || msb-mount -u mounted
}

# shows_the_model LOWER…: with these layers exactly the expected operations fail, and the others make the model's tree.
shows_the_model() {
    local kind=layers upper part cases
    [ $# -gt 1 ] || kind=dir
    jq -nc --arg kind "$kind" '{msb: 1, rootfs: {kind: $kind, lower: $ARGS.positional}}' --args "$@" >image.json
    run --separate-stderr msb-patch -n -r image.json -f all.jsonl
    [ "$status" -eq 1 ]
    [ "$(wc -l <<<"$output")" -eq "$(wc -l <all.jsonl)" ]
    diff failing <(jq 'select(.error) | .n' <<<"$output") | head -n 20 >differences
    cat differences
    [ ! -s differences ]
    msb-patch -r image.json -f good.jsonl >patched.json
    upper=$(jq -r .upper.dir patched.json)
    local IFS=:
    mount -t overlay overlay -o "lowerdir=$*,upperdir=$upper,workdir=$(jq -r .upper.work patched.json)" merged
    tree_manifest merged >shown
    umount merged
    diff expected shown | head -n 40 >differences
    cat differences
    [ ! -s differences ]
    # In parts: the server keeps every file open that the kernel has cached, and there are more than a process may open.
    mkdir -p mounted
    for part in 0 1 2 3; do
        mapfile -t cases < <(cd flat && printf '%s\n' ./c/* | awk -v part="$part" 'NR % 4 == part')
        msb-mount -r patched.json --ro mounted >/dev/null
        tree_manifest mounted "${cases[@]}"
        msb-mount -u mounted
    done | sort >shown
    diff <(grep -F ' ./c/' expected) shown | head -n 40 >differences
    cat differences
    [ ! -s differences ]
}

# bats test_tags=slow
@test "all pairs of operations on layers" {
    shows_the_model "$PWD/top" "$PWD/bottom"
}

# bats test_tags=slow
@test "all pairs of operations on a directory" {
    shows_the_model "$PWD/single"
}
