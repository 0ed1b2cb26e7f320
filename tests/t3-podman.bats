#!/usr/bin/env bats
# podman with msb-mount as its mount program, in the place of fuse-overlayfs: as root, and as a user.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats sets variables
bats_require_minimum_version 1.5.0

setup_file() {
    source "$BATS_TEST_DIRNAME/host-lock.bash"
    host_lock
}

teardown_file() {
    host_unlock
}

setup() {
    source "$BATS_TEST_DIRNAME/image.bash"
    # podman takes no capital letters in the path of a layout.
    place=/tmp/msb-t3-podman-$$-$BATS_TEST_NUMBER
    mkdir -m 0755 "$place"
    cp -r "$(tiny_image)" "$place/layout"
    mkdir "$place"/{tools,context}
    cp "$BATS_TEST_DIRNAME/../target/release/msb-mount" "$place/tools/"
    echo copied >"$place/context/file"
    printf '%s\n' 'FROM localhost/base' 'RUN echo new >/new && rm /etc/passwd && mv /bin/busybox /bin/moved' 'COPY file /file' \
        >"$place/context/Dockerfile"
    chmod -R go+rX "$place"
    fuse_mode=$(stat -c %a /dev/fuse)
    user=
}

teardown() {
    chmod "$fuse_mode" /dev/fuse
    # podman of a user leaves a process that holds its namespaces.
    [ -z "$user" ] || { ps -o pid= -u "$user" | xargs -r kill || true; userdel --force "$user"; }
    if grep -q " $place/" /proc/self/mountinfo; then umount -R "$place/storage/overlay"; fi
    rm -rf "$place"
}

# The commands of a build, below the home directory $1.
# shellcheck disable=SC2016 # the inner shell's own
commands='set -euo pipefail
    cd "$1"
    shift
    podman() { command podman --root "$PWD/storage" --runroot "$PWD/run" --tmpdir "$PWD/tmp" --cgroup-manager cgroupfs --events-backend file \
        --storage-driver overlay --storage-opt "overlay.mount_program=$place/tools/msb-mount" "$@"; }
    [ -n "${inside:-}" ] || podman pull -q "oci:$place/layout:latest"
    podman tag "$(podman images -q)" localhost/base
    podman build --isolation chroot -q -t localhost/built "$place/context"
    podman create -q --name worker localhost/built true
    root=$(podman mount worker)
    grep " $root fuse.msb " /proc/mounts
    cat "$root/new" "$root/file"
    [ ! -e "$root/etc/passwd" ]
    [ -x "$root/bin/moved" ]
    [ ! -e "$root/bin/busybox" ]
    echo added >"$root/added"
    rm "$root/file"
    podman umount worker
    podman diff worker | sort >diff
    podman commit -q worker localhost/committed
    podman rm worker
    podman create -q --name next localhost/committed true
    root=$(podman mount next)
    cat "$root/added"
    [ ! -e "$root/file" ]
    podman umount next
    podman rm next
    podman rmi -a -f'

check() {
    [ "$(cat "$1/diff")" = $'A /added\nD /file' ]
    run ! grep " $place/.*fuse.msb" /proc/mounts
}

@test "podman pulls, builds, mounts and commits with msb-mount" {
    export place
    bash -c "$commands" - "$place"
    check "$place"
}

@test "podman of a user pulls, builds, mounts and commits with msb-mount" {
    user=msb-podman-$$
    useradd --home-dir "$place/home" --create-home --shell /bin/sh "$user"
    sed -i "/^$user:/d" /etc/subuid /etc/subgid
    usermod --add-subuids 1000000000-1000999999 --add-subgids 1001000000-1001999999 "$user"
    mkdir -m 0700 "$place/runtime"
    chown "$user" "$place/runtime"
    # As udev makes it, which a container may not have.
    chmod 0666 /dev/fuse
    as_user() {
        setpriv --reuid "$user" --regid "$user" --init-groups env HOME="$place/home" XDG_RUNTIME_DIR="$place/runtime" place="$place" "$@"
    }
    as_user unshare --user true || skip "users cannot make user namespaces here"
    # The mount is in the user namespace of podman.
    as_user podman unshare bash -c "$commands" - "$place/home"
    check "$place/home"
}
