#!/bin/bash
# Packs the binaries of one architecture: a tarball for /usr/local, the Debian package msb, and msb-guest-ARCHITECTURE, with what guests
# of that architecture need on a machine of another one. The same binaries and the same SOURCE_DATE_EPOCH make the same bytes.
#
#   tools/dist.sh amd64|arm64 BINARIES OUT
#
# The pages and completions come from the tools in target/release, which this machine can run.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC

usage() { echo "dist: $* (tools/dist.sh amd64|arm64 BINARIES OUT)" >&2; exit 2; }
die() { echo "dist: $*" >&2; exit 1; }

[ $# = 3 ] || usage "three arguments are expected"
architecture=$1 binaries=$(realpath "$2") out=$3
case $architecture in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) usage "architecture \"$architecture\": amd64 or arm64 is expected" ;;
esac
# On a machine with the distribution's libkrunfw "make build" brings no kernel.
for file in msb agentd vhost-device-vsock vhost-device-vsock.crates libkrunfw.so.5; do
    [ -e "$binaries/$file" ] || die "\"$binaries/$file\": it is missing (run \"make dist-$architecture\", which makes it)"
done
mkdir -p "$out"
out=$(realpath "$out")
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
maintainer=${DIST_MAINTAINER:-msb developers <msb@packages.example.org>}
# "export" would hide that git has failed.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
stage=$(mktemp -d)
# A run that fails leaves no part of a package under its name.
packed=$(mktemp -d "$out/.dist.XXXXXX")
trap 'rm -rf "$stage" "$packed"' EXIT

# strip_all DIR: removes symbols and debugging information from all programs. The kernel's library stays as it was published.
strip_all() {
    find "$1" -type f -perm -0100 -exec "$machine-linux-gnu-strip" --strip-unneeded {} +
}

# The licences of the crates that are linked into the programs.
{
    tools/notices.py "$machine"
    echo
    cat "$binaries/vhost-device-vsock.crates"
} >"$stage/crates"

# install_files PREFIX DIR: what "make install" installs, without the guests of other architectures.
install_files() {
    make --no-print-directory --silent install-files BINARIES="$binaries" GUESTS= PREFIX="$1" DESTDIR="$2" >/dev/null
    strip_all "$2"
}

# documents DIR PACKAGE: the documents of a Debian package.
documents() {
    local dir=$1/usr/share/doc/$2
    mkdir -p "$dir"
    install -m 0644 dist/copyright "$dir"
    gzip -9n <"$stage/crates" >"$dir/crates.gz"
    printf '%s (%s-1) unstable; urgency=medium\n\n  * Release %s.\n\n -- %s  %s\n' "$2" "$version" "$version" "$maintainer" \
        "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$dir/changelog.Debian.gz"
    gzip -9n <CHANGELOG.md >"$dir/changelog.gz"
    install -D -m 0644 "dist/${2%-"$architecture"}.lintian-overrides" "$1/usr/share/lintian/overrides/$2"
}

# package DIR NAME ARCHITECTURE <CONTROL: makes a Debian package; the rest of its control file is on stdin.
package() {
    local dir=$1 size
    # As dpkg-gencontrol counts: the sizes that du prints for directories depend on the file system.
    size=$(find "$dir" -printf '%y %s\n' | awk '{ kib += $1 == "f" ? int(($2 + 1023) / 1024) : 1 } END { print kib }')
    mkdir "$dir/DEBIAN"
    {
        printf 'Package: %s\nVersion: %s-1\nArchitecture: %s\nMaintainer: %s\nInstalled-Size: %s\n' \
            "$2" "$version" "$3" "$maintainer" "$size"
        cat
    } >"$dir/DEBIAN/control"
    (cd "$dir" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$stage/md5sums"
    install -m 0644 "$stage/md5sums" "$dir/DEBIAN/md5sums"
    find "$dir" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    # With several threads xz would cut the content into blocks, and make other bytes.
    dpkg-deb --root-owner-group -Zxz --threads-max=1 --build "$dir" "$packed/$2_$version-1_$3.deb" >/dev/null
}

# glibc DIR: the oldest glibc with all symbols that the programs use.
glibc() {
    find "$1/usr/bin" "$1/usr/libexec" -type f -exec readelf -VW {} + | grep -o 'GLIBC_[0-9][0-9.]*' | sort -uV | tail -n 1 | cut -d_ -f2
}

# The tarball.
name=msb-$version-linux-$architecture
install_files /usr/local "$stage/tarball"
mv "$stage/tarball/usr/local" "$stage/$name"
install -m 0644 -t "$stage/$name/share/msb" LICENSE CHANGELOG.md README.md dist/copyright "$stage/crates"
tar -C "$stage" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu -cf - "$name" |
    gzip -9n >"$packed/$name.tar.gz"

# The package msb.
install_files /usr "$stage/msb"
find "$stage/msb/usr/share/man" -type f -exec gzip -9n {} +
documents "$stage/msb" msb
install -m 0644 README.md "$stage/msb/usr/share/doc/msb"
# What the examples have made in a checkout stays out. An unpacked archive of the source is no repository.
mapfile -d '' -t examples < <(git ls-files -z --error-unmatch examples 2>/dev/null || find examples -type f -print0)
cp --parents -t "$stage/msb/usr/share/doc/msb" "${examples[@]}"
# The checkout has the modes of its owner's umask.
chmod -R u=rwX,go=rX "$stage/msb/usr/share/doc/msb/examples"
libc=$(glibc "$stage/msb")
case $architecture in
    amd64) qemu=qemu-system-x86 other=arm64 ;;
    arm64) qemu=qemu-system-arm other=amd64 ;;
esac
package "$stage/msb" msb "$architecture" <<END
Section: admin
Priority: optional
Depends: libc6 (>= $libc), libgcc-s1, e2fsprogs, erofs-utils, fuse3
Recommends: $qemu, virtiofsd | qemu-system-common (<< 1:8), passt, uidmap, iproute2
Suggests: msb-guest-$other
Description: microVM sandboxes as small Unix tools
 Each tool does one step on the way to a microVM: msb-pull fetches an OCI
 image, msb-patch changes its files, msb-mount mounts it, msb-boot starts the
 VM, msb-exec runs commands in it, and msb-stop ends it. The steps pass on one
 JSON record. VMs run on KVM with libkrun, or with QEMU, which also emulates
 the processor where there is no KVM. There is no daemon.
 .
 The package has the guest's agent and kernel.
END

# The package for guests on machines of another architecture.
guest=msb-guest-$architecture
dir=$stage/$guest/usr/libexec/msb/$machine
mkdir -p "$dir"
install -m 0755 "$binaries/agentd" "$dir"
strip_all "$stage/$guest"
install -m 0644 "$binaries/libkrunfw.so.5" "$dir"
documents "$stage/$guest" "$guest"
package "$stage/$guest" "$guest" all <<END
Section: admin
Priority: optional
Depends: msb (= $version-1), $qemu
Description: $architecture guests for msb
 The agent and the kernel for guests of msb with the architecture
 $architecture, on machines with another one. QEMU emulates the processor of
 such a guest.
END

for file in "$packed"/*; do
    mv -f "$file" "$out"
    echo "$out/${file##*/}"
done
