#!/usr/bin/env bats
# msb-oci as its callers without an engine use it: Slurm, and people.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats sets variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup_file() {
    [ "$(id -u)" = 0 ] || skip "root is needed"
    source "$BATS_TEST_DIRNAME/oci.bash"
    export oci=$BATS_FILE_TMPDIR/oci
    mkdir -p "$oci"
    oci_image >/dev/null
}

setup() {
    oci_msb=$BATS_TEST_DIRNAME/../target/release/msb-oci
    cd "$oci" || return
}

O() { "$oci_msb" --root "$oci/state" "$@" 3>&- 4>&-; }

# bundle NAME COMMAND…: a bundle with a config.json of "spec", whose root is that of the tests.
bundle() {
    mkdir -p "$oci/$1"
    O spec -b "$oci/$1"
    printf '%s\0' "${@:2}" | jq -Rs --arg root "$oci/bb" --slurpfile config "$oci/$1/config.json" \
        '(split("\u0000") | map(select(. != ""))) as $args | $config[0] | .root = {path: $root} | .process.args = $args
        | .process.terminal = false | .linux.resources.memory.limit = 268435456' >"$oci/$1/new"
    mv "$oci/$1/new" "$oci/$1/config.json"
}

@test "features is the document of the specification, and spec writes a config once" {
    O features | jq -e '.ociVersionMin == "1.0.0" and (.linux.cgroup.v1 and .linux.cgroup.v2) and .linux.seccomp.enabled == false'
    mkdir once
    O spec -b once
    jq -e '.process.args and .root.path == "rootfs" and .linux.namespaces' once/config.json
    run O spec -b once
    [ "$status" = 1 ]
    [[ $output == 'msb-oci: '*config.json*exists* ]]
}

@test "run has the streams and the status of its command; update, state, ps, list and kill find it while it runs" {
    bundle job sh -c 'echo out; echo err >&2; cat; while [ ! -e /data/end ]; do sleep 0.1; done; exit 7'
    # As Slurm's oci.conf has it: the options are behind the ID, which has dots.
    id=host.user.12.0.3
    mkfifo out
    echo in | O run "$id" -b job >out 2>err &
    run=$!
    exec 9<out
    read -r -u 9 first
    read -r -u 9 second
    [ "$first $second" = 'out in' ]
    O state "$id" | jq -e --arg id "$id" '.status == "running" and .id == $id and .pid > 1'
    [ "$(O ps -f json "$id" | jq -c .)" = "[$(O state "$id" | jq .pid)]" ]
    [ "$(O list -q)" = "$id" ]
    O list | grep -q "^$id.*running"
    O exec "$id" hostname | grep -qx msb-oci
    # Limits of the cgroup change at once. The guest's memory can be lowered, and raised to that of the boot.
    limit() { cat "$(find /sys/fs/cgroup -path "*/msb-oci/$id/$1")"; }
    quota=cpu.cfs_quota_us memory=memory.limit_in_bytes
    [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ] || quota=cpu.max memory=memory.max
    O update --cpu-quota 50000 --cpu-period 100000 "$id"
    [[ $(limit $quota) == 50000* ]]
    # A period alone leaves the quota, and a quota alone the period.
    period=cpu.cfs_period_us
    [ "$quota" = cpu.cfs_quota_us ] || period=cpu.max
    O update --cpu-period 80000 "$id"
    [[ $(limit $quota) == 50000* && $(limit $period) == *80000 ]]
    O update --cpu-quota 60000 "$id"
    [[ $(limit $quota) == 60000* && $(limit $period) == *80000 ]]
    booted=$(limit $memory)
    O update -r - "$id" <<<'{"memory": {"limit": 209715200}}'
    [ "$(limit $memory)" = $((booted - (56 << 20))) ]
    O update --memory 268435456 "$id"
    [ "$(limit $memory)" = "$booted" ]
    run O update --memory 300000000 "$id"
    [ "$status" = 1 ]
    [[ $output == *'the VM was booted with 256 MiB'* ]]
    [ "$(limit $memory)" = "$booted" ]
    for refused in checkpoint restore events; do
        run O $refused "$id"
        [ "$status" = 1 ]
        [[ $output == "msb-oci: "* ]]
    done
    run O delete "$id"
    [[ $output == *'cannot be deleted, because it is running'* ]]
    touch bb/data/end
    status=0
    wait $run || status=$?
    [ "$status" = 7 ]
    [ "$(cat err)" = err ]
    run O state "$id"
    [[ $output == *'does not exist'* ]]
    O delete --force "$id"
    [ -z "$(ls -A state)$(find /sys/fs/cgroup -name "$id")" ]
}

# annotate NAME KEY=VALUE…: adds annotations to a bundle.
annotate() {
    printf '%s\0' "${@:2}" | jq -Rs --slurpfile config "$oci/$1/config.json" \
        '(split("\u0000") | map(select(. != "") | capture("(?<key>[^=]*)=(?<value>.*)")) | from_entries) as $new
        | $config[0] | .annotations += $new' >"$oci/$1/new"
    mv "$oci/$1/new" "$oci/$1/config.json"
}

@test "systemd's manager is refused where systemd does not run, and so is a path that is not one of its" {
    bundle unmanaged true
    paths=(/a/b 'box.slice:a:b c' box.slice:a:b none)
    # tests/t10-systemd.bats has those that are not refused.
    [ ! -d /run/systemd/system ] || unset 'paths[2]' 'paths[3]'
    for path in "${paths[@]}"; do
        jq --arg path "$path" '.linux.cgroupsPath = $path | if $path == "none" then del(.linux.cgroupsPath) else . end' unmanaged/config.json >unmanaged/new
        mv unmanaged/new unmanaged/config.json
        run O --systemd-cgroup create -b unmanaged unmanaged
        [ "$status" = 1 ]
        case $path in
            /a/b) [[ $output == *'cgroupsPath "/a/b": SLICE:PREFIX:NAME is expected with --systemd-cgroup' ]] ;;
            *' '*) [[ $output == *'"a-b c.scope" is not the name of a scope' ]] ;;
            *) [[ $output == *'--systemd-cgroup: systemd does not run here'* ]] ;;
        esac
    done
    [ -z "$(ls -A state)" ]
}

@test "the annotation dev.msb.pod=containers of a sandbox overrides --pod-vm" {
    bundle sandbox pause
    annotate sandbox io.kubernetes.cri.container-type=sandbox dev.msb.pod=containers
    O --pod-vm create -b sandbox pod
    O state pod | jq -e '.status == "created"'
    [ ! -e state/pod/vm.json ]
    O delete --force pod
    [ -z "$(ls -A state)" ]
}

# bats test_tags=slow
@test "a mount that a later one covers is no error, in a VM of its own and in that of a pod" {
    mkdir first second
    echo second >second/file
    bundle covered cat /data/file
    jq --arg oci "$oci" '.mounts += ([{destination: "/data/below", source: "first"}, {destination: "/data", source: "second"}]
        | map(.source = $oci + "/" + .source | .type = "bind" | .options = ["bind"]))' covered/config.json >covered/new
    mv covered/new covered/config.json
    [ "$(O run -b covered alone)" = second ]
    bundle pod pause
    annotate pod io.kubernetes.cri.container-type=sandbox dev.msb.pod=vm
    O create -b pod pod
    annotate covered io.kubernetes.cri.sandbox-id=pod
    [ "$(O run -b covered member)" = second ]
    O delete --force pod
    rmdir bb/data/below
    [ -z "$(ls -A state)" ]
}

# limit NAME RESOURCES: sets linux.resources of a bundle in the pod of the next test.
limit() {
    annotate "$1" io.kubernetes.cri.sandbox-id=limits
    jq --argjson resources "$2" '.linux.resources = $resources' "$oci/$1/config.json" >"$oci/$1/new"
    mv "$oci/$1/new" "$oci/$1/config.json"
}

# bats test_tags=slow
@test "in the VM of a pod, a container and its further commands have its limits of memory, PIDs and processors, and others do not" {
    bundle limits pause
    annotate limits io.kubernetes.cri.container-type=sandbox dev.msb.pod=vm dev.msb.memory=512
    O create -b limits limits
    for name in free limited; do
        # It reaps processes, and makes none later: that would fail while others use up the limit.
        bundle $name sh -c 'sleep 1000000 & wait'
        limit $name '{}'
    done
    limit limited '{"memory": {"limit": 67108864}, "pids": {"limit": 20}, "cpu": {"quota": 20000, "period": 100000, "shares": 512}}'
    for name in free limited; do
        O create -b $name $name </dev/null >$name.log 2>&1
        O start $name
    done
    # A block of 100 MB is more than the limit, and fits into the VM.
    fill=(dd if=/dev/zero of=/dev/null bs=100M count=1)
    O exec free "${fill[@]}"
    status=0
    O exec limited "${fill[@]}" || status=$?
    [ "$status" = 137 ]
    fork='for i in $(seq 30); do sleep 100 >/dev/null 2>&1 & done; echo all'
    [ "$(O exec free sh -c "$fork")" = all ]
    run O exec limited sh -c "$fork"
    [[ $output == *"can't fork"* ]]
    # Those that were killed count until they are reaped.
    until O exec limited sh -c 'true | true' 2>/dev/null; do [ "$(O state limited | jq -r .status)" = running ]; done
    # In hundredths of a second of processor time, of 300.
    used=$(O exec limited sh -c 'timeout 3 sh -c "while :; do :; done"; cut -d " " -f 16-17 /proc/$$/stat')
    read -r user system <<<"$used"
    [ $((user + system)) -lt 150 ] && [ $((user + system)) -gt 5 ]
    [ "$(O exec limited echo on)" = on ]
    # Other limits, and none of them if one is wrong.
    O update --memory 134217728 limited
    O exec limited "${fill[@]}"
    run O update -r - limited <<<'{"pids": {"limit": 60}, "cpu": {"quota": 1}}'
    [ "$status" = 1 ]
    [[ $output == *'limit cpu.max "1 100000": Invalid argument'* ]]
    run O exec limited sh -c "$fork"
    [[ $output == *"can't fork"* ]]
    O update -r - limited <<<'{"pids": {"limit": 60}, "cpu": {"shares": 2, "quota": -1}}'
    [ "$(O exec limited sh -c "$fork")" = all ]
    # One that was created without limits.
    O update -r - free <<<'{"pids": {"limit": 20}}'
    run O exec free sh -c "$fork"
    [[ $output == *"can't fork"* ]]
    run O update --memory 1073741824 free
    [ "$status" = 1 ]
    [[ $output == *'memory limit of 1024 MiB: the VM of the pod was booted with 512 MiB, and cannot get more (create the pod again)'* ]]
    O pause limits
    run O update --memory 134217728 limited
    O resume limits
    [ "$status" = 1 ]
    [[ $output == *'its pod is paused (resume the sandbox first)'* ]]
    # The command of a container.
    bundle filled "${fill[@]}"
    limit filled '{"memory": {"limit": 67108864}}'
    run O run -b filled filled
    [ "$status" = 137 ]
    [ -e filled/oom ]
    [ "$(O exec free echo on)" = on ]
    for name in limited free limits; do O delete --force $name; done
    [ -z "$(ls -A state)" ]
}

# bats test_tags=slow
@test "the commands in Slurm's oci.conf create, find, kill and delete a container" {
    sed -n 's|@PREFIX@/bin/msb-oci|O|; s/^RunTime\([A-Za-z]*\)="\(.*\)"$/\1 \2/p' "$BATS_TEST_DIRNAME/../msb-oci/dist/oci.conf" |
        sed 's/%b/step/; s/%n.%u.%j.%s.%t/n1.root.7.0.0/' >commands
    command() { eval "$(sed -n "s/^$1 //p" commands)"; }
    # The first process of a container ignores TERM without a handler.
    bundle step sh -c 'trap "exit 3" TERM; echo up; while :; do sleep 0.1; done'
    command Run >step.out 2>&1 &
    run=$!
    until grep -qs up step.out; do kill -0 $run; sleep 0.1; done
    command Query | jq -e '.status == "running"'
    command Kill
    status=0
    wait $run || status=$?
    [ "$status" = 3 ]
    command Delete
    [ -z "$(ls -A state)" ]
}
