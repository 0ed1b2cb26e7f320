# shellcheck shell=bash
# A small image for the tests of msb-patch, and the kernel's overlayfs as the judge of the result.
#
#   source tests/patch.bash; patch_setup; patch OP…; show; …; patch_teardown

# patch_setup: makes a scratch directory with a small usr-merged image of two layers, ./top and ./bottom, and its record
# image.json.
patch_setup() {
    PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/target/release:$PATH"
    export MSB_HOME="$BATS_TEST_TMPDIR/home"
    unset MSB_RECORD SOURCE_DATE_EPOCH
    cd "$BATS_TEST_TMPDIR" || return
    mkdir -p bottom/{etc/ssl,usr/bin,var/cache/apt} top/etc merged
    ln -s usr/bin bottom/bin
    echo tar > bottom/usr/bin/tar
    echo 'root:*:19000::::::' > bottom/etc/shadow
    chown 0:42 bottom/etc/shadow
    chmod 0640 bottom/etc/shadow
    echo 'old motd' > bottom/etc/motd
    chown 7:8 bottom/etc
    chmod 0751 bottom/etc
    setfattr -n user.note -v kept bottom/etc
    echo x > bottom/var/cache/apt/pkg
    echo '127.0.0.1 localhost' > top/etc/hosts
    touch -h -d @1000000 bottom/etc/* bottom/etc top/etc/* top/etc
    printf '{"msb":1,"rootfs":{"kind":"layers","lower":["%s/top","%s/bottom"]}}\n' "$PWD" "$PWD" > image.json
    chown 7:8 top/etc
    chmod 0751 top/etc
    setfattr -n user.note -v kept top/etc
}

# patch_teardown: unmounts ./merged.
patch_teardown() {
    ! mountpoint -q "$BATS_TEST_TMPDIR/merged" || umount "$BATS_TEST_TMPDIR/merged"
}

# patch OP…: patches image.json; the record is in patched.json.
patch() {
    { cat image.json; printf '%s\n' "$@"; } | msb-patch > patched.json
}

# show: mounts the record's root on ./merged with the kernel's overlayfs.
show() {
    local lower upper work
    lower=$(jq -r '.rootfs.lower | join(":")' patched.json)
    upper=$(jq -r .upper.dir patched.json)
    work=$(jq -r .upper.work patched.json)
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work" merged
}

# base: prints everything about the layers that a patch must not change.
base() {
    find bottom top -printf '%p %y %m %U %G %s %T@ %l\n' | sort
    find bottom top -type f -exec sha256sum {} + | sort
}

sandboxes() {
    find "$MSB_HOME/sandboxes" -mindepth 1 -maxdepth 1 2>/dev/null
}

# patch_stdin: the same with operations from stdin.
patch_stdin() {
    { cat image.json; cat; } | msb-patch > patched.json
}
