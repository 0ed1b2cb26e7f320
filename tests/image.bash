# shellcheck shell=bash
# Test images, made with independent tools: mmdebstrap, tar, umoci. Each function prints the path of an OCI layout
# with the tag "latest". A layout is made once and kept in target/fixtures under the hash of its recipe.
#
# The images are for this machine's architecture, or for $IMAGE_ARCHITECTURE: amd64 or arm64.
#
#   source tests/image.bash; demo_image

image_source=$(realpath "${BASH_SOURCE[0]}")
image_fixtures=${image_source%/*/*}/target/fixtures
image_epoch=1700000000
image_own=$(dpkg --print-architecture)
image_architecture=${IMAGE_ARCHITECTURE:-$image_own}
[ "$image_architecture" = "$image_own" ] || image_fixtures+=/$image_architecture

# image_cached RECIPE FUNCTION…: runs the function RECIPE in a scratch directory, unless its layout is there already.
# The hash covers the functions named.
image_cached() {
    local name=$1 hash layout
    hash=$(declare -f "$@" | sha256sum | cut -c 1-12)
    layout=$image_fixtures/${name%_recipe}-$hash
    if [[ ! -d $layout ]]; then
        mkdir -p "$image_fixtures"
        (
            # Concurrent callers wait for the one that makes it.
            flock 9
            [[ ! -d $layout ]] || exit 0
            image_scratch=$(mktemp -d "$image_fixtures/.${name%_recipe}.XXXXXX")
            trap 'rm -rf "$image_scratch"' EXIT
            trap 'exit 130' INT TERM
            # In a new shell, since errexit has no effect in this one when the caller checks the status.
            # shellcheck disable=SC2016 # that shell's own arguments
            cd "$image_scratch" && bash -euo pipefail -c 'source "$1"; "$2"' - "$image_source" "$name" >&2 ||
                { echo "image: $name failed" >&2; exit 1; }
            mv -T "$image_scratch/layout" "$layout"
        ) 9>"$image_fixtures/.${name%_recipe}.lock" || return
    fi
    printf '%s\n' "$layout"
}

# image_from_tars LAYER.tar…: an OCI layout in ./layout, bottom layer first.
image_from_tars() {
    umoci init --layout layout
    umoci new --image layout:latest
    local layer
    for layer in "$@"; do
        umoci raw add-layer --image layout:latest "$layer"
    done
    umoci config --image layout:latest --architecture "$image_architecture"
}

# image_machine: prints the architecture of the images as uname -m does.
image_machine() { case $image_architecture in amd64) echo x86_64 ;; arm64) echo aarch64 ;; *) return 1 ;; esac; }

# demo_image: Debian bookworm, minbase, one layer: an image such as people pull.
demo_image() {
    image_cached demo_recipe image_debian image_from_tars
}

demo_recipe() {
    # shellcheck disable=SC2016 # the hook's own shell has $1
    image_debian minbase layer.tar --customize-hook='printf "127.0.0.1\tlocalhost\n" >"$1/etc/hosts"'
    image_from_tars layer.tar
    umoci config --image layout:latest --config.cmd /bin/bash \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    umoci gc --layout layout
}

# image_debian VARIANT TO.tar [FLAG…]: makes a Debian bookworm with mmdebstrap, without documentation and locales.
image_debian() {
    local words mmdebstrap=(mmdebstrap --architectures="$image_architecture")
    # The packages' programs run during the installation. /dev is left out, since device nodes cannot be made in a user namespace.
    [[ $1 == extract || $image_architecture == "$image_own" ]] ||
        mmdebstrap=("${image_source%/*}/foreign-programs" "$(image_machine)" "${mmdebstrap[@]}" --skip=check/qemu --skip=output/dev)
    # Descriptors from 3 on are closed: mmdebstrap has apt run "cat >&N" with sh(1), and dash accepts an N of one digit only.
    words=$(SOURCE_DATE_EPOCH=$image_epoch "${mmdebstrap[@]}" --variant="$1" "${@:3}" \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$2" \
        2>&1 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-) || { printf '%s\n' "$words" >&2; return 1; }
}

# image_more BASE.tar TO.tar PACKAGES [FLAG…]: makes a Debian with more packages from BASE.tar.
image_more() {
    # shellcheck disable=SC2016 # the hook's own shell has $1
    image_debian custom "$2" --skip=check/empty --include="$3" "${@:4}" \
        --setup-hook='mkdir -p "$1/dev"; tar -C "$1" --xattrs --xattrs-include="*" -xf "'"$1"'"'
}

# essential_layer: Debian's essential packages, as a tar file. Making a Debian takes a minute, adding packages takes seconds.
essential_layer() {
    local made
    made=$(image_cached essential_recipe image_debian) && printf '%s\n' "$made/layer.tar"
}

essential_recipe() {
    mkdir layout
    image_debian essential layout/layer.tar --dpkgopt='path-exclude=/usr/share/zoneinfo/*'
}

# packages_image: a Debian with compilers and run-time systems, 2 GB in one layer.
packages_image() { image_cached packages_recipe image_debian image_from_tars; }

packages_recipe() {
    # shellcheck disable=SC2016 # mmdebstrap's own shell has $1
    # The JDK makes links to manual pages, whose directory dpkg leaves out here.
    image_debian minbase layer.tar --include=build-essential,clang,git,golang-go,openjdk-17-jdk-headless,python3 \
        --essential-hook='mkdir -p "$1/usr/share/man/man1"'
    image_from_tars layer.tar
    umoci gc --layout layout
}

# inits_image: a small Debian with the inits that can be installed together: systemd, runit, s6 and Finit.
inits_image() {
    image_cached inits_recipe init_recipe essential_recipe image_debian image_more image_from_tars
}

# systemd_image: one with systemd as /sbin/init and with dbus, as in a usual installation.
systemd_image() {
    image_cached systemd_recipe init_recipe essential_recipe image_debian image_more image_from_tars
}

# sysvinit_image: one with sysvinit as /sbin/init.
sysvinit_image() {
    image_cached sysvinit_recipe init_recipe essential_recipe image_debian image_more image_from_tars
}

# openrc_image: one with OpenRC, which in Debian runs only under sysvinit as PID 1.
openrc_image() {
    image_cached openrc_recipe init_recipe essential_recipe image_debian image_more image_from_tars
}

inits_recipe() { init_recipe systemd,runit,s6,execline,finit; }
systemd_recipe() { init_recipe systemd-sysv,dbus; }
sysvinit_recipe() { init_recipe sysvinit-core,sysv-rc; }
openrc_recipe() { init_recipe sysvinit-core,openrc; }

# init_recipe PACKAGES
init_recipe() {
    local base
    base=$(essential_layer)
    image_more "$base" layer.tar "$1" --dpkgopt='path-exclude=/usr/share/zoneinfo/*'
    image_from_tars layer.tar
    umoci gc --layout layout
}

# foreign_image: tiny_image for the other architecture.
foreign_image() (
    IMAGE_ARCHITECTURE=arm64
    [ "$image_own" = amd64 ] || IMAGE_ARCHITECTURE=amd64
    export IMAGE_ARCHITECTURE
    # shellcheck source=/dev/null # this file
    source "$image_source"
    tiny_image
)

# tiny_image: a static BusyBox with its applets, in one layer, for VMs that start fast.
tiny_image() {
    # The nested host finds this image under the hash of the recipe, so that may not depend on the machine.
    image_cached tiny_recipe image_from_tars image_tar image_busybox image_debian
}

tiny_recipe() {
    local busybox applet
    busybox=$(command -v busybox) || { echo "image: busybox is missing (apt install busybox-static)" >&2; return 1; }
    mkdir -p root/{bin,dev,etc,proc,root,run,sbin,sys,tmp,usr/bin,usr/sbin,var/tmp}
    image_busybox root/bin/busybox
    "$busybox" --list | while read -r applet; do
        [[ $applet == busybox ]] || ln -s busybox "root/bin/$applet"
    done
    chmod 0700 root/root
    chmod 1777 root/tmp root/var/tmp
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' >root/etc/passwd
    printf 'root:x:0:\nnogroup:x:65534:\n' >root/etc/group
    printf '127.0.0.1\tlocalhost\n' >root/etc/hosts
    image_tar layer.tar root
    image_from_tars layer.tar
    umoci config --image layout:latest --config.entrypoint /bin/echo --config.cmd hello \
        --config.env PATH=/bin:/sbin --config.env GREETING=hi --config.workingdir /root --config.stopsignal SIGTERM
    umoci gc --layout layout
}

# image_busybox FILE: copies a static BusyBox for the images' architecture. For a foreign architecture none is installed here, so Debian's
# package is only unpacked; it has the same applets.
image_busybox() {
    if [ "$image_architecture" = "$image_own" ]; then
        cp "$(command -v busybox)" "$1"
    else
        image_debian extract busybox.tar --include=busybox-static
        tar -xf busybox.tar -O --wildcards '*bin/busybox' >"$1"
        chmod 0755 "$1"
    fi
}

# layered_image: three layers with every kind of entry that a layer may have.
layered_image() {
    image_cached layered_recipe image_from_tars image_tar layered_base layered_changes layered_implied
}

layered_recipe() {
    mkdir base changes
    layered_base
    layered_changes
    layered_implied
    image_from_tars base.tar changes.tar implied.tar
    umoci config --image layout:latest --config.cmd /bin/true --config.label kept=yes
    umoci gc --layout layout
}

layered_base() {
    mkdir -p base/{etc/conf.d,usr/bin,var/cache/deep/er,var/spool,opt/gone,opt/kept,tmp}
    ln -s usr/bin base/bin
    echo one >base/etc/one
    echo two >base/etc/two
    echo a >base/etc/conf.d/a
    echo b >base/etc/conf.d/b
    echo cached >base/var/cache/deep/er/file
    echo gone >base/opt/gone/file
    echo kept >base/opt/kept/file
    echo file-then-dir >base/opt/file-then-dir
    mkdir base/opt/dir-then-file
    echo x >base/opt/dir-then-file/x
    printf '#!/bin/sh\n' >base/usr/bin/tool
    chmod 4755 base/usr/bin/tool
    chmod 1777 base/tmp
    chmod 2750 base/var/spool
    chown 13:37 base/var/spool base/etc/two
    setfattr -n user.note -v base base/var/spool
    image_tar base.tar base
}

layered_changes() {
    local long
    mkdir -p changes/{etc/conf.d,var/cache,opt/dev}
    touch changes/etc/.wh.one changes/opt/.wh.gone changes/etc/.wh.never-was
    touch changes/etc/conf.d/.wh..wh..opq
    echo c >changes/etc/conf.d/c
    echo linked >changes/opt/link-a
    ln changes/opt/link-a changes/opt/link-b
    ln -s /etc/two changes/opt/absolute
    ln -s nowhere changes/opt/dangling
    ln changes/opt/dangling changes/opt/dangling-too 2>/dev/null || true
    mknod changes/opt/dev/null c 1 3
    mknod changes/opt/dev/loop0 b 7 0
    mkfifo -m 0622 changes/opt/dev/fifo
    mkdir changes/opt/file-then-dir
    echo inside >changes/opt/file-then-dir/inside
    echo file >changes/opt/dir-then-file
    setfattr -n user.line -v $'a\nb=c\n' changes/opt/link-a
    setfattr -n trusted.note -v trusted changes/opt/dev
    printf '\001\000\000\002\000\004\000\000\000\000\000\000\000\000\000\000\000\000\000\000' >capability
    setfattr -n security.capability -v "0x$(od -An -v -tx1 capability | tr -d ' \n')" changes/opt/link-a
    long=changes/opt/$(printf 'n%.0s' {1..200})
    mkdir "$long"
    echo long >"$long/$(printf 'f%.0s' {1..200})"
    chown -h 123456:654321 changes/opt/absolute changes/opt/dev/fifo
    touch -d '2001-02-03 04:05:06.123456789' changes/opt/link-a
    touch -h -d '1969-12-31 23:59:58' changes/opt/dangling
    image_tar changes.tar changes
}

# No directory has an entry: their attributes come from the layers below. There, bin is a symlink.
layered_implied() {
    mkdir -p implied/{bin,var/spool,etc/conf.d}
    printf '#!/bin/sh\n' >implied/bin/late
    echo mail >implied/var/spool/mail
    touch implied/etc/conf.d/.wh.c
    tar --format=pax --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime --numeric-owner \
        -C implied -cf implied.tar bin/late var/spool/mail etc/conf.d/.wh.c
}

# guest_program NAME: prints the path of tests/guest/NAME.c as a static program, which is compiled once.
guest_program() {
    local source=${BASH_SOURCE[0]%/*}/guest/$1.c program aside cc=cc
    [ "$image_architecture" = "$image_own" ] || cc=$(image_machine)-linux-gnu-gcc
    program=$image_fixtures/guest/$1-$(sha256sum <"$source" | cut -c 1-12)
    if [[ ! -e $program ]]; then
        mkdir -p "${program%/*}"
        # BASHPID, since concurrent subshells share $$.
        aside=$program.$BASHPID
        "$cc" -Os -static -o "$aside" "$source" && mv "$aside" "$program" || return
    fi
    printf '%s\n' "$program"
}

# image_tar FILE DIR: packs DIR as a layer, reproducibly, with the times that its recipe has set.
image_tar() {
    find "$2" -newermt '2020-01-01' -exec touch -h -d "@$image_epoch" {} +
    tar --format=pax --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime --numeric-owner --sort=name \
        --xattrs --xattrs-include='*' -C "$2" -cf "$1" .
}
