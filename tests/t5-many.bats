#!/usr/bin/env bats
# Many commands, and greedy ones: what they leave behind, how they affect others, and what the agent keeps.
#
#   MSB_MANY=10000 tests/run tests/t5-many.bats     so many in a row, and a twentieth of them at once; fewer without

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; the guest's shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/exec.bash"
# How many of each; a fifth of that in the emulated host, where a command takes half a second.
in_a_row=${MSB_MANY:-${MSB_KVM_HOST:+30}} in_a_row=${in_a_row:-150}
many=${MSB_MANY:-${MSB_KVM_HOST:+400}} many=${many:-2000}

setup_file() {
    source "$BATS_TEST_DIRNAME/image.bash"
    exec_root
    cp "$(guest_program greedy)" "$vm_root/bin/greedy"
    cp "$(guest_program hung-file)" "$vm_root/bin/hung-file"
    exec_boot -c 2 -m 384M
}

setup() {
    cd "$BATS_TEST_TMPDIR" || return
    agent=$(exec_agent)
}

# of_agent: prints the agent's descriptors, resident KiB and threads, and the guest's zombies and cgroups, without this exec's.
of_agent() {
    msb-exec -- sh -c 'echo $(ls /proc/$1/fd | wc -l) $(awk "/^Threads|^VmRSS/ { print \$2 }" /proc/$1/status) \
        $(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ") Z ") $(ls -d /sys/fs/cgroup/msb/*/ | wc -l)' sh "$agent"
}

# unchanged BEFORE [SPARE]: whether the agent has no more than before. Its memory may have grown by 600 KiB, the threads that wait for
# connections by three, and its pool of cgroups for the next execs, each with four descriptors, by SPARE. Each cgroup more says that one
# more exec ran at the same time, and the C library keeps the memory of that one, up to 100 KiB.
unchanged() {
    local fds rss threads zombies cgroups before more spare=${2:-0}
    before=($1)
    read -r fds rss threads zombies cgroups < <(of_agent)
    echo "descriptors, KiB, threads, zombies, cgroups: $1, then $fds $rss $threads $zombies $cgroups"
    more=$((cgroups > before[4] ? cgroups - before[4] : 0))
    [ "$fds" -le $((before[0] + 4 * spare)) ] && [ "$rss" -le $((before[1] + 600 + 100 * more)) ] && [ "$threads" -le $((before[2] + 3)) ] && \
        [ "$zombies" = 0 ] && [ "$cgroups" -le $((before[4] + spare)) ]
}

@test "many commands in a row leave nothing behind, on either side" {
    for _ in $(seq 20); do msb-exec -- true; done
    before=$(of_agent)
    fds() { for pid in $(vm_processes); do ls "/proc/$pid/fd"; done | wc -l; }
    fds_before=$(fds)
    for _ in $(seq "$in_a_row"); do msb-exec -n -- true; done
    # A command may start before the cgroup of the one before it is free, so there may be a second one.
    exec_await unchanged "$before" 1
    # The VMM may still be closing the last connections.
    no_more() { [ "$(fds)" -le "$fds_before" ]; }
    exec_await no_more
}

@test "many commands at once are all served, each with its own bytes and status" {
    count=$((many / 20))
    at_once() {
        local n pids=()
        for n in $(seq "$count"); do
            { status=0; msb-exec -n -- sh -c "echo $n; exit $((n % 200))" || status=$?; echo "$status"; } >"out-$n" 2>"err-$n" &
            pids+=($!)
        done
        wait "${pids[@]}"
        for n in $(seq "$count"); do
            [ "$(cat "out-$n")" = "$n"$'\n'"$((n % 200))" ] || { head "out-$n" "err-$n"; return 1; }
        done
    }
    # The C library caches memory of ended threads for new ones.
    at_once
    before=$(of_agent)
    at_once
    # The number of cgroups that are kept depends on how many commands really overlap; it is 64 at most.
    exec_await unchanged "$before" 64
}

@test "a new command is answered while others flood in both directions" {
    pids=()
    for _ in 1 2 3; do
        msb-exec -n -- yes >/dev/null &
        pids+=($!)
        (yes || true) | msb-exec -- cat >/dev/null &
        pids+=($!)
    done
    for n in $(seq 10); do [ "$(timeout 120 msb-exec -- echo "$n" <<<in)" = "$n" ]; done
    kill "${pids[@]}"
    wait "${pids[@]}" || true
    exec_await exec_has 0 yes
}

# has_no_zombie: whether the guest has none. The agent reaps them after the command that they belong to.
has_no_zombie() {
    [ "$(timeout 180 msb-exec -n -- sh -c 'cat /proc/[0-9]*/stat 2>/dev/null | grep -c ") Z " || true')" = 0 ]
}

@test "thousands of orphans leave no zombie, and do not make PID 1 grow" {
    rss() { msb-exec -- awk '/^VmRSS/ { print $2 }' /proc/1/status; }
    before=$(rss)
    [ "$(msb-exec -- greedy orphans "$many")" = "made $many" ]
    exec_await has_no_zombie
    [ "$(rss)" -le $((before + 300)) ]
}

@test "a command on storage that does not answer delays no other, and ends with an error that says so" {
    msb-exec -n -- sh -c 'mkdir /tmp/hung; exec hung-file /tmp/hung' >server &
    server=$!
    # The file exists and is executable: only reading it blocks.
    exec_await msb-exec -n -- test -x /tmp/hung/hung
    for n in 1 2; do msb-exec -n -- /tmp/hung/hung >/dev/null 2>"err-$n" & pids[n]=$!; done
    exec_await grep -q asked server
    for n in 1 2 3; do [ "$(timeout 120 msb-exec -n -- echo "$n")" = "$n" ]; done
    id=$(timeout 120 msb-exec -d -- sleep 5200 | jq .id)
    timeout 120 msb-exec --signal TERM "$id"
    run -143 timeout 120 msb-exec --wait "$id"
    # Zombies are reaped meanwhile.
    exec_await has_no_zombie
    kill "$server"
    for n in 1 2; do
        status=0
        wait "${pids[n]}" || status=$?
        [ "$status" = 125 ]
        grep -q '"/tmp/hung/hung": its storage does not answer: ' "err-$n"
    done
    run -125 msb-exec -n -- /tmp/hung/hung
    run -125 msb-exec -n -e PATH=/tmp/hung:/bin -- hung
    msb-exec -n -- umount /tmp/hung
    run -127 msb-exec -n -- /tmp/hung/hung
}

@test "a fork bomb is limited to its exec, and ends with it" {
    msb-exec -- greedy forks >said 2>&1 &
    exec_await grep -q full said
    for n in 1 2 3; do [ "$(timeout 180 msb-exec -- echo "$n")" = "$n" ]; done
    kill -KILL $!
    exec_await exec_has 0 greedy
    [ "$(msb-exec -- echo alive)" = alive ]
    [ "$(exec_agent)" = "$agent" ]
}

@test "a command that fills the memory is killed with its whole exec, and nothing else is" {
    msb-exec -n -- sleep 5100 &
    exec_await exec_has 1 sleep
    status=0
    timeout 120 msb-exec -- sh -c 'greedy memory; echo survived' >said 2>&1 || status=$?
    [ "$status" = 137 ]
    if grep -q survived said; then return 1; fi
    [ "$(exec_count sleep)" = 1 ]
    [ "$(exec_agent)" = "$agent" ]
    kill %1
    wait %1 || true
}

@test "commands have an ordinary OOM score, and the agent is exempt" {
    [ "$(msb-exec -- cat /proc/self/oom_score_adj)" = 0 ]
    # The kernel never selects PID 1.
    [ "$agent" = 1 ]
}

@test "signals of the guest's own do not end PID 1" {
    msb-exec -- sh -c 'for n in 1 3 4 5 6 7 8 9 11 13 14 18 19 20 21 22 23 28 34 64; do kill -$n 1 || echo "no $n"; done'
    [ "$(msb-exec -- echo alive)" = alive ]
    [ "$(msb-exec -u nobody -- sh -c 'kill -TERM 1 2>/dev/null || echo refused')" = refused ]
}

@test "--wait-ready waits for a VM by name or by file, and reports a timeout" {
    msb-exec --wait-ready 600s -r soon -- hostname <&- >by-name &
    by_name=$!
    msb-exec --wait-ready 600s -r "$PWD/soon.json" -- hostname <&- >by-file &
    by_file=$!
    # Both are waiting, also for a file that exists and is empty.
    : >soon.json
    vm_boot soon
    wait "$by_name" "$by_file"
    [ "$(cat by-name by-file)" = $'soon\nsoon' ]
    [ "$(msb-exec --wait-ready 120s -- echo at once)" = 'at once' ]
    # More than a clock can represent.
    [ "$(msb-exec --wait-ready 99999999999d -- echo at once)" = 'at once' ]
    run --separate-stderr msb-exec --wait-ready 300ms -r never -- true
    [ "$status" = 125 ]
    [[ $stderr == 'msb-exec: record "never": no such file'*'(waited 300ms for it)' ]]
    # A VM that ends during a command is reported.
    msb-exec -r soon -- sh -c 'echo up; sleep 5101' >up 2>err <&- &
    pid=$!
    exec_await test -s up
    kill -KILL "$(vm_vmm soon)"
    status=0
    wait "$pid" || status=$?
    [ "$status" = 125 ]
    grep -q 'msb-exec: vm "soon": it is gone: ' err
}
