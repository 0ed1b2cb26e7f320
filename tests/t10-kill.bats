#!/usr/bin/env bats
# What remains of containers of msb-oci: after many, after several at once, and after a kill at any moment.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats sets variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup_file() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    oci_start
}

setup() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    source "$BATS_TEST_DIRNAME/vm.bash"
}

teardown() {
    P pod rm -fa -t 0 >/dev/null 2>&1 || true
    P rm -fa -t 0 >/dev/null 2>&1 || true
}

teardown_file() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    oci_stop
}

# processes: the PIDs of what works for the containers of this file, except for podman, what starts it, and the processes of the test.
# Other files run theirs at the same time.
processes() {
    local ids dir name
    ids=$(grep -oE '[0-9a-f]{64}' "$oci/tmp/events/events.log" | cut -c 1-12 | sort -u)
    [ -n "$ids" ] || return
    pgrep -f "$oci/|${ids//$'\n'/|}" | while read -r pid; do
        case $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) in
            '' | podman* | *podman\ --root* | nsenter* | env* | */bats-exec-* | pgrep*) ;;
            *) echo "$pid" ;;
        esac
    done
    for dir in /run/msb/oci-*; do
        name=${dir#*/oci-}
        [[ $ids != *"${name%%-*}"* ]] || "$oci_here/vm-processes.pl" "$dir"
    done
}

# nothing_left: waits until the processes that end by themselves have done so.
nothing_left() {
    is_nothing_left() { [ -z "$(oci_leftovers)" ]; }
    vm_await is_nothing_left || { oci_leftovers; return 1; }
}

# MSB_KILLS / 20 rounds: 5, and 25 with "make test-kill".
# bats test_tags=kill,slow
@test "whichever process of a container is killed at whatever moment, it can be removed, and nothing is left" {
    local rounds=$(((${MSB_KILLS:-100} + 19) / 20)) n victim all before killed
    ids() { grep -oE '[0-9a-f]{64}' "$oci/tmp/events/events.log" | sort -u; }
    for ((n = 0; n < rounds; n++)); do
        before=$(ids) killed=
        if ((n % 3 < 2)); then
            { P run -d --name victim --network none localhost/bb sleep 1000 && P exec victim true; P rm -f -t 0 victim; } >"$oci/round" 2>&1 &
        else
            # Every third one is in the VM of a pod.
            {
                P --runtime-flag pod-vm pod create --name pod --network none &&
                    P --runtime-flag pod-vm run -d --name victim --pod pod localhost/bb sleep 1000 && P exec victim true
                P rm -f -t 0 victim
                P pod rm -f -t 0 pod
            } >"$oci/round" 2>&1 &
        fi
        work=$!
        # A boot takes 2 to 4 seconds here.
        sleep "$((RANDOM % 8)).$((RANDOM % 10))"
        mapfile -t all < <(processes | sort -u)
        if [ ${#all[@]} -gt 0 ]; then
            victim=${all[RANDOM % ${#all[@]}]}
            killed=$(tr '\0' ' ' <"/proc/$victim/cmdline" | cut -c 1-100)
            echo "round $n: $killed"
            kill -KILL "$victim" 2>/dev/null || true
        fi
        wait $work || true
        # podman fails once to remove a container whose conmon was killed.
        P rm -f -t 0 --ignore victim || P rm -f -t 0 --ignore victim
        P pod rm -f -t 0 --ignore pod || P pod rm -f -t 0 --ignore pod
        [ -z "$(P ps -aq)" ]
        if ((n % 3 == 2)) || [[ $killed == *conmon* ]]; then
            # podman forgets the first container of a pod if its conmon was killed, also with crun. It forgets any container whose conmon
            # was killed before podman knew that it was created.
            comm -13 <(echo "$before") <(ids) | xargs -r -n 1 "$oci_here/../target/release/msb-oci" delete --force
        fi
        nothing_left
    done
}

# bats test_tags=slow,many
@test "containers one after another, and several at once, leave no process, file or cgroup" {
    local n pids=() before
    # The namespace has copies of the host's mounts, which disappear when their mount points are removed on the host. So only these are
    # compared.
    mounts() { in_ns cut -d' ' -f 2,3 /proc/mounts | grep -E "^($oci|/run/|/var/|/sys/)" | sort; }
    P run --rm --network none localhost/bb true
    nothing_left
    before=$(mounts)
    for ((n = 0; n < ${MSB_OCI_ROW:-10}; n++)); do
        [ "$(P run --rm --network none localhost/bb echo "$n")" = "$n" ]
    done
    for ((n = 0; n < ${MSB_OCI_AT_ONCE:-4}; n++)); do
        P run --rm --network none -m 128m localhost/bb sh -c "exit $((n + 1))" &
        pids+=($!)
    done
    for ((n = 0; n < ${#pids[@]}; n++)); do
        status=0
        wait "${pids[n]}" || status=$?
        [ "$status" = $((n + 1)) ]
    done
    nothing_left
    diff <(echo "$before") <(mounts)
}
