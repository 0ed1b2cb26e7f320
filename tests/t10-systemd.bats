#!/usr/bin/env bats
# Engines that let systemd manage cgroups: a container is a scope of systemd. A host with systemd is needed, as the nested
# host of "make test-oci-krun" is for this file.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats sets variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

is_host() { [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ]; }

setup_file() {
    is_host || return 0
    source "$BATS_TEST_DIRNAME/oci.bash"
    oci_start
}

setup() {
    is_host || skip "root, and systemd as the init, are needed (make test-oci-krun has such a host)"
    source "$BATS_TEST_DIRNAME/oci.bash"
    oci_msb=$BATS_TEST_DIRNAME/../target/release/msb-oci
    cd "$oci" || return
}

teardown() {
    S rm -fa -t 0 >/dev/null 2>&1 || true
    systemctl stop box-one.scope >/dev/null 2>&1 || true
}

teardown_file() {
    is_host || return 0
    source "$BATS_TEST_DIRNAME/oci.bash"
    oci_containerd_stop
    oci_stop
}

O() { "$oci_msb" --root "$oci/state" "$@" 3>&- 4>&-; }

# S ARGUMENTS…: podman with our runtime and systemd's manager.
S() {
    in_ns env CONTAINERS_CONF="$oci/conf/containers.conf" podman --root "$oci/root" --runroot "$oci/run" --tmpdir "$oci/tmp" \
        --cgroup-manager systemd --events-backend file --storage-driver overlay --runtime msb "$@" 3>&- 4>&-
}

@test "a container is a scope with its limits, which change and survive a reload, and its end frees the name" {
    mkdir -p job
    O spec -b job
    jq --arg root "$oci/bb" '.root = {path: $root} | .process.args = ["sleep", "1000"] | .process.terminal = false
        | .linux.cgroupsPath = "msb-test.slice:box:one"
        | .linux.resources = {memory: {limit: 268435456}, cpu: {shares: 512, quota: 150000, period: 100000}}' job/config.json >job/new
    mv job/new job/config.json
    scope=box-one.scope dir=/sys/fs/cgroup/msb.slice/msb-test.slice/box-one.scope
    for _ in first again; do
        O --systemd-cgroup create -b job one </dev/null >log 2>&1 || { cat log; return 1; }
        # With the overhead of 160 MiB.
        [ "$(systemctl is-active $scope)" = active ]
        [ "$(systemctl show $scope -p Slice --value)" = msb-test.slice ]
        [ "$(systemctl show $scope -p Delegate --value)" = yes ]
        [ "$(systemctl show $scope -p MemoryMax --value)" = $(((256 + 160) << 20)) ]
        quota=$(systemctl show $scope -p CPUQuotaPerSecUSec --value)
        [[ $quota == 1.5*s ]] || { echo "CPUQuotaPerSecUSec=$quota"; return 1; }
        [ "$(cat $dir/memory.max)" = $(((256 + 160) << 20)) ]
        [ "$(cat $dir/cpu.max)" = '150000 100000' ]
        # The VM is in it, and what made it is not.
        pid=$(O state one | jq .pid)
        grep -qx "0::/msb.slice/msb-test.slice/$scope" "/proc/$pid/cgroup"
        while read -r process; do cat "/proc/$process/comm"; done <$dir/cgroup.procs >names
        grep -q msb-boot names
        run grep -xE 'cat|systemd-run' names
        [ "$status" = 1 ]
        O start one
        O update --memory 134217728 --cpu-quota 50000 one
        systemctl daemon-reload
        [ "$(cat $dir/memory.max)" = $(((128 + 160) << 20)) ]
        [ "$(cat $dir/cpu.max)" = '50000 100000' ]
        # A period alone leaves the quota, in the unit too.
        O update --cpu-period 40000 one
        systemctl daemon-reload
        [ "$(cat $dir/cpu.max)" = '50000 40000' ]
        O exec one true
        O pause one
        [ "$(O state one | jq -r .status)" = paused ]
        O resume one
        O delete --force one
        [ "$(systemctl show $scope -p LoadState --value)" = not-found ]
        [ ! -e $dir ]
    done
    # What fails to start leaves no scope.
    jq '.process.args = ["/no/such"]' job/config.json >job/new
    mv job/new job/config.json
    run O --systemd-cgroup create -b job one
    [ "$status" = 1 ]
    [ "$(systemctl show $scope -p LoadState --value)" = not-found ]
    # A name that systemd has already.
    systemd-run --scope --quiet --unit=$scope sleep 1000 3>&- 4>&- &
    until [ "$(systemctl is-active $scope)" = active ]; do kill -0 $!; done
    run O --systemd-cgroup create -b job one
    [ "$status" = 1 ]
    [[ $output == *'systemd-run: '*'box-one.scope'* ]]
    [ "$(systemctl is-active $scope)" = active ]
    systemctl stop $scope
    # Without a path it is a scope of its own.
    jq 'del(.linux.cgroupsPath) | .process.args = ["sleep", "1000"]' job/config.json >job/new
    mv job/new job/config.json
    O --systemd-cgroup create -b job one+more </dev/null >log 2>&1 || { cat log; return 1; }
    [ "$(systemctl is-active 'msb-oci-one\x2bmore.scope')" = active ]
    grep -qxF '0::/system.slice/msb-oci-one\x2bmore.scope' "/proc/$(O state one+more | jq .pid)/cgroup"
    O delete --force one+more
    [ "$(systemctl show 'msb-oci-one\x2bmore.scope' -p LoadState --value)" = not-found ]
    [ -z "$(ls -A state)" ]
}

@test "podman with systemd's manager: run, limits, update, pause, restart, stop, pods" {
    run S run --rm --network none localhost/bb sh -c 'echo out; exit 7'
    [ "$status" = 7 ]
    [ "$output" = out ]
    id=$(S run -d --name box --network none -m 256m localhost/bb)
    grep -q "machine.slice/libpod-$id.scope" "/proc/$(S inspect box --format '{{.State.Pid}}')/cgroup"
    [ "$(systemctl show "libpod-$id.scope" -p MemoryMax --value)" = $(((256 + 160) << 20)) ]
    [ "$(S exec box echo on)" = on ]
    S update --memory 200m box
    [ "$(systemctl show "libpod-$id.scope" -p MemoryMax --value)" = $(((200 + 160) << 20)) ]
    S pause box
    S unpause box
    S restart -t 0 box
    [ "$(S exec box echo on)" = on ]
    [ "$(systemctl is-active "libpod-$id.scope")" = active ]
    S stop -t 0 box
    S rm box
    [ "$(systemctl show "libpod-$id.scope" -p LoadState --value)" = not-found ]
    S --runtime-flag pod-vm pod create --name two --network none
    S --runtime-flag pod-vm run -d --pod two --name member localhost/bb
    [ "$(S exec member echo in)" = in ]
    S pod rm -f -t 0 two
    [ -z "$(systemctl list-units --all --plain --no-legend 'libpod-*.scope' | grep -v conmon)" ]
}

@test "containerd's shim with systemd's manager" {
    command -v containerd >/dev/null || skip "containerd is missing"
    oci_containerd
    K run -d --runc-binary "$oci_msb" --runc-systemd-cgroup --cgroup msb-ctr.slice:ctr:box localhost/bb:latest box sleep 1000
    [ "$(systemctl is-active ctr-box.scope)" = active ]
    [ "$(K task exec --exec-id e box echo on)" = on ]
    K task kill -s KILL box
    until K task ls | grep -q 'box.*STOPPED'; do sleep 0.1; done
    K task rm box || true
    K container rm box
    [ "$(systemctl show ctr-box.scope -p LoadState --value)" = not-found ]
}
