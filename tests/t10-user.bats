#!/usr/bin/env bats
# podman of a user other than root with msb-oci: everything is in the user namespace that podman has made.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats sets variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup_file() {
    local program tool
    for program in podman conmon slirp4netns newuidmap; do
        command -v "$program" >/dev/null || skip "$program is missing (make deps)"
    done
    [ -e /dev/net/tun ] || skip "/dev/net/tun is missing"
    source "$BATS_TEST_DIRNAME/host-lock.bash"
    source "$BATS_TEST_DIRNAME/oci.bash"
    host_lock
    # The directories of bats are closed to others.
    place=$(mktemp -d /tmp/msb-t10-user-XXXXXX)
    user=msb-oci-$$
    tun_mode=$(stat -c %a /dev/net/tun)
    export place user tun_mode
    chmod 0755 "$place"
    # As udev makes it, which a container may not have.
    chmod 0666 /dev/net/tun
    mkdir "$place"/{tools,networks}
    for tool in "$BATS_TEST_DIRNAME"/../target/release/{msb-oci,msb-boot,msb-exec,msb-stop,agentd,vhost-device-vsock,libkrunfw.so.5}; do
        [ ! -e "$tool" ] || cp -l "$tool" "$place/tools/" 2>/dev/null || cp "$tool" "$place/tools/"
    done
    useradd --home-dir "$place/home" --create-home --shell /bin/sh "$user"
    touch /etc/subuid /etc/subgid
    sed -i "/^$user:/d" /etc/subuid /etc/subgid
    usermod --add-subuids 1000000000-1000999999 --add-subgids 1001000000-1001999999 "$user"
    mkdir -m 0700 "$place/run"
    chown "$user" "$place/run" "$place/networks"
    sed "s|@PREFIX@/bin|$place/tools|" "$BATS_TEST_DIRNAME/../msb-oci/dist/podman.conf" >"$place/containers.conf"
    cat >>"$place/containers.conf" <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_config_dir = "$place/networks"
END
    as_user unshare --user true || skip "users cannot make user namespaces here"
    oci=$BATS_FILE_TMPDIR oci_image >"$place/image.tar"
    U import --change 'CMD ["sleep","1000000"]' "$place/image.tar" localhost/bb
}

setup() { source "$BATS_TEST_DIRNAME/vm.bash"; }

teardown() { U rm -fa -t 0 >/dev/null 2>&1 || true; }

teardown_file() {
    source "$BATS_TEST_DIRNAME/host-lock.bash"
    [ -n "${place:-}" ] || return 0
    chmod "$tun_mode" /dev/net/tun
    # podman of a user leaves a process that holds its namespaces.
    pgrep -u "$user" | xargs -r kill || true
    userdel --force "$user"
    rm -rf "$place"
    host_unlock
    ! grep "^$user:" /etc/subuid /etc/subgid
}

# as_user COMMAND…
as_user() {
    (
        cd "$place/home" || exit
        exec setpriv --reuid "$user" --regid "$user" --init-groups env -u MSB_RUN -u MSB_HOME -u XDG_DATA_HOME HOME="$place/home" \
            XDG_RUNTIME_DIR="$place/run" CONTAINERS_CONF="$place/containers.conf" "$@" 3>&- 4>&-
    )
}

# U ARGUMENTS…: podman of the user.
U() {
    as_user podman --root "$place/home/storage" --runroot "$place/run/storage" --tmpdir "$place/run/tmp" --cgroup-manager cgroupfs \
        --events-backend file --storage-driver overlay --runtime msb "$@"
}

# leftovers: what the containers have left. The process that holds podman's namespaces stays.
leftovers() {
    {
        ls -A "$place/run/msb-oci" "$place/run/msb"
        pgrep -r D,R,S,T -u "$user" -a 'msb|qemu|virtiofsd|slirp4netns|conmon'
        pgrep -r D,R,S,T -u 1000065533 -a
    } 2>/dev/null | grep -v ^/ | grep .
}

# nothing_left: waits until nothing is left. conmon ends after podman, which does not wait for it.
nothing_left() {
    is_nothing_left() { [ -z "$(leftovers)" ]; }
    vm_await is_nothing_left || { leftovers; return 1; }
}

@test "a user's container runs with its streams, its status, a volume and a network, and leaves nothing" {
    as_user mkdir vol
    echo host | as_user tee vol/one >/dev/null
    script='cat; id -u; stat -c %u /vol/one; ip address | grep -o "inet 10\.0\.2"; echo x >/vol/one; exit 7'
    status=0
    output=$(echo in | U run --rm -i -v "$place/home/vol:/vol:ro" localhost/bb sh -c "$script" 2>"$BATS_TEST_TMPDIR/err") || status=$?
    [ "$status" = 7 ] || { cat "$BATS_TEST_TMPDIR/err"; return 1; }
    [ "$output" = $'in\n0\n0\ninet 10.0.2' ]
    grep -q 'Read-only file system' "$BATS_TEST_TMPDIR/err"
    nothing_left
}

# bats test_tags=slow
@test "one container of a user: exec, owners, cp, a published port, stop and start again" {
    for command in nonexistent /etc; do
        status=0
        U run --rm --network none localhost/bb $command || status=$?
        [[ $status = 12[67] ]]
    done
    as_user mkdir -p served
    U run -d --name one -p 18080:80 -v "$place/home/served:/vol" \
        --tmpfs /scratch:size=1m localhost/bb sh -c 'trap "exit 9" TERM; httpd -p 80 -h /vol; while :; do sleep 0.1; done'
    [ "$(U exec one uname -r)" != "$(uname -r)" ]
    [ "$(U exec -u 1000:1000 one sh -c 'id -u; stat -f -c %T /scratch')" = $'1000\ntmpfs' ]
    # What a user of the guest makes belongs to the IDs of the user.
    U exec one sh -c 'echo guest >/vol/guest; chown 1000 /vol/guest'
    [ "$(stat -c %u "$place/home/served/guest")" = 1000000999 ]
    as_user sh -c 'echo copied >file'
    U cp "$place/home/file" one:/etc/file
    [ "$(U exec one cat /etc/file)" = copied ]
    fetch() { python3 -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=60).read().decode())' "$1"; }
    is_served() { [ "$(fetch http://127.0.0.1:18080/guest 2>/dev/null)" = guest ]; }
    vm_await is_served
    U stop -t 60 one
    [ "$(U inspect one --format '{{.State.ExitCode}}')" = 9 ]
    U start one
    [ "$(U exec one echo again)" = again ]
    U rm -f -t 0 one
    nothing_left
}

# bats test_tags=slow
@test "a pod of a user in one VM: its containers share localhost" {
    V() { U --runtime-flag pod-vm "$@"; }
    V pod create --name pod --network none >/dev/null
    V run -d --pod pod --name one localhost/bb sh -c 'echo served >/data/file; httpd -f -p 127.0.0.1:8080 -h /data'
    V run -d --pod pod --name two localhost/bb sleep 1000
    is_served() { [ "$(U exec two wget -q -O - http://127.0.0.1:8080/file 2>/dev/null)" = served ]; }
    vm_await is_served
    U rm -f -t 0 one
    [ "$(U exec two echo on)" = on ]
    U pod rm -f -t 0 pod
    nothing_left
}
