#!/usr/bin/env bats
# The packages that tools/dist.sh makes: what is in them, that they are reproducible, and that they work in a clean Debian.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats sets variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/image.bash"
    checkout=$(cd "$BATS_TEST_DIRNAME/.." && pwd)
    architecture=$(dpkg --print-architecture)
    export SOURCE_DATE_EPOCH=1700000000
    cd "$BATS_TEST_TMPDIR" || return
}

# packages: goes to the directory of the packages of target/release, which the first call makes, and sets their names.
packages() {
    local dist=$BATS_FILE_TMPDIR/dist
    # The list is written when all are complete.
    [ -s "$BATS_FILE_TMPDIR/list" ] ||
        TMPDIR=$BATS_FILE_TMPDIR "$checkout/tools/dist.sh" "$architecture" "$checkout/target/release" "$dist" >"$BATS_FILE_TMPDIR/list"
    cd "$dist" || return
    package=$(echo msb_*_"$architecture.deb") guest=$(echo msb-guest-*.deb) tarball=$(echo msb-*.tar.gz)
}

# stubs: makes a directory with small programs in the place of the binaries.
stubs() {
    local name
    mkdir stubs
    for name in $(sed -n 's/^TOOLS = //p' "$checkout/Makefile") agentd vhost-device-vsock; do cp /bin/true "stubs/$name"; done
    cp "$checkout/target/release/vhost-device-vsock.crates" stubs/
    echo kernel >stubs/libkrunfw.so.5
}

teardown() {
    local dir
    for dir in "$BATS_TEST_TMPDIR"/root-*; do
        if [ -d "$dir" ]; then rm -rf --one-file-system "$dir"; fi
    done
}

@test "the tarball and the package have all that make install installs, and documents" {
    stubs
    # listing DIR: its files, as make install names them.
    listing() { (cd "$1" && find . -type f | sed '/\/man\//s/\.gz$//' | sort); }
    make -C "$checkout" --silent install-files BINARIES="$PWD/stubs" GUESTS= PREFIX=/usr DESTDIR="$PWD/installed" >/dev/null
    [ "$("$checkout/tools/dist.sh" "$architecture" stubs out | wc -l)" = 3 ]
    mkdir unpacked
    tar -C unpacked -xzf out/msb-*.tar.gz
    dpkg-deb -x out/msb_*_"$architecture.deb" package
    diff <(listing installed/usr) <(listing package/usr | grep -v '^\./share/\(doc\|lintian\)/')
    diff <(listing installed/usr) <(listing unpacked/* | grep -vxE '\./share/msb/(LICENSE|CHANGELOG\.md|README\.md|copyright|crates)')
    [ -x package/usr/share/doc/msb/examples/dockerfile/msb-build ]
    # The list has Apache-2.0 crates by name, and others with their text; also those of vhost-device-vsock.
    zcat package/usr/share/doc/msb/crates.gz >crates
    diff crates "$(echo unpacked/*)/share/msb/crates"
    grep -x "libkrun [0-9.]*: Apache-2.0" crates
    grep -A 8 '^nix [0-9.]*: LICENSE' crates | grep -i copyright
    grep -A 8 '^unsafe-libyaml [0-9.]*: LICENSE' crates
}

@test "binaries without a kernel, an unknown architecture and missing arguments are errors, and nothing is made" {
    stubs
    rm stubs/libkrunfw.so.5
    run "$checkout/tools/dist.sh" "$architecture" stubs out
    [ "$status" = 1 ]
    [ "$output" = "dist: \"$(realpath stubs)/libkrunfw.so.5\": it is missing (run \"make dist-$architecture\", which makes it)" ]
    run "$checkout/tools/dist.sh" m68k stubs out
    [ "$status" = 2 ]
    run "$checkout/tools/dist.sh" "$architecture" stubs
    [ "$status" = 2 ]
    [ ! -e out ]
}

# bats test_tags=slow
@test "if a package cannot be made, the others do not appear either" {
    stubs
    # A control file has no empty line.
    run env DIST_MAINTAINER=$'no\n\none' "$checkout/tools/dist.sh" "$architecture" stubs out
    [ "$status" != 0 ]
    [[ $output == *control* ]]
    [ -z "$(ls -A out)" ]
}

# bats test_tags=slow
@test "packages of the same binaries are the same bytes, also for another directory, umask and time zone" {
    packages
    umask 077
    (cd "$checkout" && TZ=Asia/Tokyo tools/dist.sh "$architecture" target/release "$BATS_TEST_TMPDIR/again")
    [ "$(wc -l <../list)" = 3 ]
    for file in "$package" "$guest" "$tarball"; do cmp "$file" "$BATS_TEST_TMPDIR/again/$file"; done
}

# bats test_tags=slow
@test "the tarball has the tools, and everything else below the same directory" {
    packages
    mkdir "$BATS_TEST_TMPDIR/unpacked"
    tar -C "$BATS_TEST_TMPDIR/unpacked" -xzf "$tarball"
    cd "$BATS_TEST_TMPDIR/unpacked/"*
    diff <(bin/msb-run --generate man) share/man/man1/msb-run.1
    [ -x libexec/msb/agentd ]
    [ -x libexec/msb/vhost-device-vsock ]
    [ -e lib/msb/libkrunfw.so.5 ]
    grep -q 'GPL-2.0-only' share/msb/copyright
    [ ! -e "libexec/msb/$(uname -m)" ]
    # Nothing names the directory in which it was packed.
    run ! grep -rlF "$BATS_FILE_TMPDIR" .
}

# bats test_tags=slow
@test "lintian finds no error and no warning in the packages" {
    command -v lintian >/dev/null || skip "lintian is not installed (apt-get install lintian)"
    packages
    run lintian --allow-root --fail-on error,warning "$package" "$guest"
    echo "$output"
    [ "$status" -eq 0 ]
}

# pipe_in SUITE: installs the package in a clean Debian, and runs the pipe there.
pipe_in() {
    local root=$BATS_TEST_TMPDIR/root-$1 layout qemu=qemu-system-x86
    [ "$architecture" = amd64 ] || qemu=qemu-system-arm
    [ "$(id -u)" = 0 ] || skip "needs root"
    packages
    layout=$(demo_image)
    mmdebstrap --quiet --variant=apt "$1" "$root" >"$BATS_TEST_TMPDIR/mmdebstrap" 2>&1 3>&- || { cat "$BATS_TEST_TMPDIR/mmdebstrap"; false; }
    cp "$package" "$root/root/msb.deb"
    cp -r "$layout" "$root/root/layout"
    unshare --mount --pid --fork --kill-child sh -euc '
        root=$1
        mount --bind "$root" "$root"
        for dir in dev sys; do mount --rbind "/$dir" "$root/$dir"; done
        mount -t proc proc "$root/proc"
        mount -t tmpfs run "$root/run"
        cp /etc/resolv.conf "$root/etc/resolv.conf"
        exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive sh -euc "
            apt-get -q update
            virtiofsd=\$(apt-cache show virtiofsd >/dev/null 2>&1 && echo virtiofsd || echo qemu-system-common)
            apt-get -q install -y --no-install-recommends /root/msb.deb "$2" \$virtiofsd passt
            cd /root
            msb doctor
            echo \"{\\\"op\\\": \\\"text\\\", \\\"path\\\": \\\"/etc/motd\\\", \\\"content\\\": \\\"from a package\\\", \\\"replace\\\": true}\" >ops.jsonl
            { msb-pull oci:layout:latest; cat ops.jsonl; } | msb-patch | msb-mount /root/mnt | msb-boot --name packed --network none --vmm qemu >vm.json
            msb-exec packed -- cat /etc/motd
            msb-stop packed >/dev/null
            msb-mount --unmount /root/mnt
        "' - "$root" "$qemu" >"$BATS_TEST_TMPDIR/log" 2>&1 3>&- || { cat "$BATS_TEST_TMPDIR/log"; false; }
    grep -q 'from a package' "$BATS_TEST_TMPDIR/log"
}

# bats test_tags=slow
@test "the package runs the pipe in a clean Debian 12" {
    pipe_in bookworm
}

# bats test_tags=slow
@test "the package runs the pipe in a clean Debian 13" {
    pipe_in trixie
}
