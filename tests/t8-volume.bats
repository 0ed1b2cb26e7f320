#!/usr/bin/env bats
# Volumes: directories and files of the host, and file systems in memory, in the guest's root.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
    mkdir -p src/below fixed/below extra
    echo one >src/one
    echo kept >fixed/kept
    echo extra >extra/file
}

teardown() {
    vm_teardown
    for point in src/below fixed/below mounted; do ! mountpoint -q "$point" || umount -l "$point"; done
}

# in_guest SCRIPT: runs the lines of a script in the VM "worker"; prints those that fail.
in_guest() {
    vm_exec worker sh -c 'while IFS= read -r line; do (eval "$line") || echo "failed: $line"; done' <<<"$1"
}

# bats test_tags=vmm
@test "volumes of all kinds are in the guest, the host keeps them read-only, and the record brings them back" {
    mount -t tmpfs none src/below
    echo deep >src/below/file
    mount -t tmpfs none fixed/below
    echo deep >fixed/below/file
    ln -s var "$vm_root/link"
    mkdir "$vm_root/var"
    find "$vm_root" -printf '%p %y %m %T@\n' | sort >before
    vm_boot worker -v "$PWD/src:/data" -v ./fixed:/link/fixed:ro -v "$PWD/src/one:/etc/one.conf:ro" -v cache:/run/cache/x \
        -v "$PWD/extra:/dev/extra" -v "$PWD/extra/file:/proc/version:ro" --mount type=bind,src=./extra,dst=/data/inner/extra,readonly \
        --tmpfs /scratch:size=1M,mode=0700
    jq -e --arg here "$PWD" '.boot.volumes | length == 8 and .[0] == {source: "\($here)/src", target: "/data", readonly: false}
        and any(.volume == "cache") and any(.tmpfs.size == "1M")' worker.json
    jq -e --arg home "$MSB_HOME" '.vm.volumes | length == 8 and any(.source == "\($home)/volumes/cache")' worker.json
    # The same checks after the record was booted again.
    checks='[ "$(cat /data/one)" = one ] && [ "$(cat /data/below/file)" = deep ]
        [ "$(cat /var/fixed/kept)" = kept ] && [ "$(cat /var/fixed/below/file)" = deep ]
        [ "$(cat /etc/one.conf)" = one ] && ! echo x >>/etc/one.conf
        [ "$(cat /dev/extra/file)" = extra ] && [ "$(cat /proc/version)" = extra ] && [ "$(cat /data/inner/extra/file)" = extra ]
        ! touch /var/fixed/x && ! touch /var/fixed/below/x && ! touch /data/inner/extra/x
        [ "$(stat -c %d /data)" != "$(stat -c %d /dev/extra)" ] && [ "$(stat -c %d /data)" != "$(stat -c %d /data/below)" ]
        [ "$(stat -f -c %b /scratch)" = 256 ] && [ "$(stat -c %a /scratch)" = 700 ] && touch /scratch/x'
    run -0 --separate-stderr in_guest "$checks"
    [ -z "$output" ]
    # Both sides see what the other one writes. Owners are numbers.
    in_guest 'mkdir /data/made; echo guest >/data/made/file; chown 1234:5678 /data/made/file; chmod 4750 /data/made/file; ln -s one /data/sym
        echo below >/data/below/new; touch /dev/extra/new; echo cached >/run/cache/x/file; mv /data/one /data/moved; mv /data/moved /data/one'
    [ "$(cat src/made/file)" = guest ]
    [ "$(stat -c '%u %g %a' src/made/file)" = '1234 5678 4750' ]
    [ "$(readlink src/sym)" = one ]
    [ "$(cat src/below/new)" = below ]
    [ "$(cat "$MSB_HOME/volumes/cache/file")" = cached ]
    [ -e extra/new ]
    echo host >src/made/late
    is_there() { [ "$(vm_exec worker cat /data/made/late 2>/dev/null)" = host ]; }
    vm_await is_there
    # The device itself, without the mounts of the agent.
    run in_guest 'mkdir /scratch/boot && mount -t virtiofs volumes /scratch/boot && mount -o remount,rw /scratch/boot
        for n in /scratch/boot/*; do mount -o remount,rw,bind $n 2>/dev/null; echo x >$n/x; echo x >$n; done 2>/dev/null; true
        mount -o remount,rw,bind /var/fixed; ! echo x >/var/fixed/kept; ! echo x >/var/fixed/below/file; ! rm /var/fixed/kept'
    [[ $output != *failed:* ]]
    [ "$(cat fixed/kept)" = kept ]
    [ ! -e fixed/x ]
    [ "$(cat src/one)" = one ]
    rm -f src/x extra/x
    msb-stop -r worker.json >stopped.json
    # Nothing is left in the root, and what was needed in a volume stays there.
    find "$vm_root" -printf '%p %y %m %T@\n' | sort | diff before -
    [ -d src/inner/extra ]
    vm_record=stopped.json vm_boot worker --tmpfs /added
    run -0 --separate-stderr in_guest "$checks"
    [ -z "$output" ]
    [ "$(in_guest 'cat /run/cache/x/file; ls -A /added')" = cached ]
    jq -e '.boot.volumes | length == 9' worker.json
    msb-stop -r worker.json >stopped.json
    vm_assert_nothing
}

@test "a block root has volumes too, at symlinks, in a volume of the image and over files of the machine" {
    jq -c 'del(.mount) | .image = {ref: "x", config: {Volumes: {"/srv/data": {}}, WorkingDir: "/data/made/work"}}' "$vm_record" >block.json
    ln -s /srv/real "$vm_root/link"
    echo '192.0.2.1 mine' >hosts
    vm_record=block.json vm_boot worker -v "$PWD/src:/data" -v "$PWD/hosts:/etc/hosts:ro" -v "$PWD/extra:/link/to:ro" -v data:/srv/data
    in_guest 'grep -q mine /etc/hosts
        [ "$(cat /srv/real/to/file)" = extra ]
        echo stays >/srv/data/file'
    [ -d src/made/work ]
    [ "$(cat "$MSB_HOME/volumes/data/file")" = stays ]
    vm_exec worker dd if=/dev/urandom of=/data/big bs=1M count=3
    sum=$(vm_exec worker sha256sum /data/big)
    msb-stop -r worker.json >stopped.json
    [ "$(sha256sum <src/big | cut -c 1-64)" = "${sum:0:64}" ]
}

@test "what cannot be a volume is refused, with what to do, and nothing is made" {
    ln -s src link
    mkdir -p mounted "$MSB_HOME/layers" "$XDG_RUNTIME_DIR/msb"
    ln -s "$MSB_HOME" store
    jq -c 'del(.mount)' "$vm_record" | msb-mount ./mounted >mounted.json
    refused() {
        run --separate-stderr msb-boot -r "$vm_record" --name worker "${@:2}"
        [ "$status" -eq "$1" ] || { echo "$status: $stderr"; return 1; }
        [ ! -e "$XDG_RUNTIME_DIR/msb/worker" ]
    }
    refused 1 -v "$PWD/missing:/x"
    [[ $stderr == *"missing\": it does not exist (create it"* ]]
    refused 1 -v "$PWD/link:/x"
    [[ $stderr == *'link": it is a symlink to "src"'* ]]
    refused 1 -v "$MSB_HOME:/x"
    [[ $stderr == *'the store of msb'* ]]
    refused 1 -v ./store/layers:/x:ro
    [[ $stderr == *'the store of msb'* ]]
    refused 1 -v "$XDG_RUNTIME_DIR/msb:/x"
    [[ $stderr == *'the running VMs'* ]]
    refused 1 -v ./mounted/etc:/x
    [[ $stderr == *'a root that msb-mount has mounted'* ]]
    refused 1 -v ./src:/x --tmpfs /x/
    [[ $stderr == *'another volume has this target'* ]]
    refused 2 -v ./src:x
    [[ $stderr == *'absolute path'* ]]
    refused 2 -v /x
    [[ $stderr == *'SRC:DST'* ]]
    refused 2 -v 'a b:/x'
    [[ $stderr == *'./a b'* ]]
    refused 2 --mount type=bind,src=/x,dst=/x,bind-propagation=rshared
    [[ $stderr == *'unknown key'* ]]
    msb-mount -u ./mounted
    # A target that is wrong is found in the guest.
    run --separate-stderr msb-boot -r "$vm_record" --name worker -v ./src:/bin/busybox
    [ "$status" -eq 1 ]
    [[ $stderr == *'guest: mount the volume on "/bin/busybox": the root has a file there, and the volume is a directory'* ]]
    vm_assert_nothing
}

# bats test_tags=vmm-slow
@test "a source that was replaced is not shared when the VM starts again" {
    mkdir outside
    echo secret >outside/canary
    vm_boot worker --restart on-reboot -v "$PWD/src:/data"
    mv src old
    ln -s outside src
    vm_exec worker reboot -f || true
    vm_await_end "$(vm_pid worker)"
    jq -e '.reason | contains("src\": a symlink took its place")' "$XDG_RUNTIME_DIR/msb/worker/ended.json"
    ! grep -r secret "$XDG_RUNTIME_DIR/msb/worker"
}
