#!/usr/bin/env bats
# How a command ends and is ended: status, signals, time limits; its environment; and detached commands.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; the guest's shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/exec.bash"

setup_file() {
    exec_root
    printf 'big:x:4294967295:0::/:\nwide:x:1:4294967295::/:\n' >>"$vm_root/etc/passwd"
    echo 'huge:x:4294967295:' >>"$vm_root/etc/group"
    printf '# for all\nFROM_FILE=boot\nBOTH=file\nPASSED\n' >"$BATS_FILE_TMPDIR/boot.env"
    PASSED=on exec_boot -c 2 --env-file "$BATS_FILE_TMPDIR/boot.env" -e BOTH=flag
}

@test "every exit status from 0 to 255 comes back" {
    # Many at once, to save time.
    printf '%s\n' {0..255} | xargs -P 16 -I N sh -c 'msb-exec -n -- sh -c "exit N"; [ $? = N ] || echo "N: $?"' >wrong
    [ ! -s wrong ] || { cat wrong; false; }
}

@test "a command that a signal ends has the status 128 and the signal's number" {
    for signal in 1 2 6 9 11 15 34 64; do
        run msb-exec -- sh -c "kill -$signal \$\$"
        [ "$status" = $((128 + signal)) ]
    done
}

@test "--timeout ends everything the command has started, children in other sessions included" {
    run --separate-stderr msb-exec --timeout 1s -- sh -c 'setsid sleep 4711 & sleep 4711'
    [ "$status" = 124 ]
    [ "$stderr" = 'msb-exec: the command took too long and was ended' ]
    exec_await exec_has 0 sleep
    run -124 msb-exec --timeout 0m1s -- sleep 4711
    # As for timeout(1), 0 is no limit.
    [ "$(msb-exec --timeout 0 -- sh -c 'sleep 1; echo whole')" = whole ]
}

@test "--json-status writes how the command ended and what it used" {
    msb-exec --json-status ok.json -- true
    jq -e '.status == 0 and .exit == 0 and .signal == null and .timed_out == false and .wall_ms > 0 and .max_rss_kib > 100' ok.json
    msb-exec --json-status busy.json -- sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 3' || true
    jq -e '.status == 3 and .exit == 3 and .user_ms + .system_ms > 5 and .wall_ms >= (.user_ms + .system_ms) / 2' busy.json
    # The usage of an unreaped child counts too.
    msb-exec --json-status child.json -- sh -c '(i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo x) & exit 0'
    jq -e '.user_ms + .system_ms > 5' child.json
    msb-exec --json-status killed.json -- sh -c 'kill -9 $$' || true
    jq -e '.status == 137 and .exit == null and .signal == 9' killed.json
    msb-exec --timeout 300ms --json-status late.json -- sleep 60 2>/dev/null || true
    jq -e '.status == 124 and .timed_out and .signal == 15 and .wall_ms > 0' late.json
    msb-exec --json-status none.json -- no-such-command 2>/dev/null || true
    jq -e '.status == 127 and (.error | contains("not found"))' none.json
    msb-exec --json-status big.json -- sh -c 'dd if=/dev/zero of=/dev/null bs=24M count=1 2>/dev/null'
    jq -e '.max_rss_kib > 20000' big.json
    for file in *.json; do [ "$(wc -l <"$file")" = 1 ]; done
    run --separate-stderr msb-exec --json-status /no/such/file -- touch /tmp/ran
    [ "$status" = 125 ]
    [[ $stderr == *'status file "/no/such/file"'* ]]
    run msb-exec -- test -e /tmp/ran
    [ "$status" = 1 ]
}

@test "each forwarded signal reaches the whole process group" {
    for signal in INT TERM HUP QUIT USR1 USR2 WINCH; do
        mkfifo "up-$signal"
        env --default-signal="$signal" msb-exec -- sh -c "trap 'echo parent' $signal; sh -c 'trap \"echo child; exit\" $signal; echo up; while :; do sleep 0.1; done'
            exit 9" >"up-$signal" &
        pid=$!
        exec 8<"up-$signal"
        read -r _ <&8
        kill -s "$signal" "$pid"
        [ "$(timeout 120 sort <&8)" = $'child\nparent' ]
        exec 8<&-
        status=0
        wait "$pid" || status=$?
        [ "$status" = 9 ] || { echo "$signal: $status"; false; }
    done
}

@test "a signal that the caller ignores is not forwarded" {
    mkfifo out
    mkfifo in
    exec {in}<>in
    nohup msb-exec -- sh -c 'echo up; read -r line; echo "$line"' <in >out 2>/dev/null {in}>&- &
    pid=$!
    exec 8<out
    read -r _ <&8
    kill -HUP "$pid"
    # A forwarded signal would be in the guest before what is sent after it.
    echo last >&"$in"
    [ "$(cat <&8)" = last ]
    exec {in}>&-
    exec 8<&-
    wait "$pid"
}

@test "background processes of a command end with it, and with msb-exec" {
    msb-exec -- sh -c 'setsid sleep 4801 >/dev/null 2>&1 <&- & (sleep 4801 >/dev/null 2>&1 &) ; exit 0'
    exec_await exec_has 0 sleep
    msb-exec -- sh -c 'setsid sleep 4802 & (setsid sh -c "trap \"\" HUP TERM; sleep 4802") & echo up; sleep 4802' >up &
    exec_await exec_has 3 sleep
    kill -KILL $!
    exec_await exec_has 0 sleep
}

@test "limits, the umask and an env file apply to the command, and malformed ones are errors" {
    [ "$(msb-exec --rlimit nofile=77:88 --rlimit core=0 -- sh -c 'ulimit -Sn; ulimit -Hn; ulimit -c')" = $'77\n88\n0' ]
    [ "$(msb-exec --rlimit stack=unlimited -- sh -c 'ulimit -s')" = unlimited ]
    [ "$(msb-exec --umask 077 -- sh -c 'umask')" = 0077 ]
    [ "$(msb-exec -- sh -c 'umask; ulimit -Sn')" = $'0022\n1024' ]
    printf '# a comment\n\n  A=1\nB="two words"\nCALLER\nUNSET_HERE\nOVER=file\n' >env
    [ "$(CALLER=mine msb-exec --env-file env -e OVER=flag -- sh -c 'echo "$A $B $CALLER ${UNSET_HERE-none} $OVER"')" = '1 "two words" mine none flag' ]
    [ "$(msb-exec -- sh -c 'echo "$FROM_FILE $BOTH $PASSED"')" = 'boot flag on' ]
    printf 'A=1\nA B=2\n' >bad
    while IFS='|' read -r flags message; do
        # shellcheck disable=SC2086 # two words
        run --separate-stderr msb-exec $flags -- true
        [ "$status" = 125 ]
        [[ $stderr == *"$message"* ]] || { echo "$flags: $stderr"; false; }
    done <<'END'
--env-file bad|env file "bad": line 2: the name "A B" has a blank in it
--env-file none|env file "none": No such file
--rlimit none=1|no resource "none"
--rlimit nofile=2:1|the soft limit is over the hard one
--rlimit nofile=unlimited|limit "nofile": over the
--umask 888|an octal number up to 777
--timeout 1m30|30 has no unit (ms, s, m, h or d)
-u 4294967295|user "4294967295": 4294967295 is reserved
-u 0:4294967295|group "4294967295": 4294967295 is reserved
-u big|user "big": its uid in /etc/passwd, "4294967295": 4294967295 is reserved
-u wide|user "wide": its gid in /etc/passwd, "4294967295": 4294967295 is reserved
-u app:huge|group "huge": its gid in /etc/group, "4294967295": 4294967295 is reserved
END
    # More than fits in a request: bytes that are not UTF-8 take four times their size.
    printf 'A=%s\n' "$(head -c 1200000 /dev/zero | tr '\0' '\377')" >long
    run --separate-stderr msb-exec --env-file long -- true
    [ "$status" = 125 ]
    [[ $stderr == *'msb-exec: the command and its environment take '*' bytes of a request, which has 4194304 at most (pass'* ]]
}

@test "supplementary groups apply, and a missing user or group is an error" {
    [ "$(msb-exec -u app -- sh -c 'id -G; sed -n "s/Groups:.//p" /proc/self/status')" = $'1001 29\n29 1001 ' ]
    [ "$(msb-exec -u app:audio -- sh -c 'id -g; id -G')" = $'29\n29' ]
    [ "$(msb-exec -u :audio -- sh -c 'id -u; id -g')" = $'0\n29' ]
    run --separate-stderr msb-exec -u app:none -- true
    [ "$status" = 125 ]
    [ "$stderr" = "msb-exec: group \"none\": not in the guest's /etc/group" ]
}

@test "-n leaves stdin unread, and -i reads it as always" {
    { msb-exec -n -- cat; cat; } <<<mine >out
    [ "$(cat out)" = mine ]
    [ "$(msb-exec -n -- readlink /proc/self/fd/0)" = /dev/null ]
    [ "$(msb-exec -i -- cat <<<theirs)" = theirs ]
}

@test "--detach leaves a command running, and its id can be waited for, signalled and listed" {
    msb-exec -d -- sh -c 'trap "exit 7" USR1; echo started; while :; do sleep 0.1; done' >exec.json
    id=$(jq .id exec.json)
    jq -e '.vm == "worker" and .pid > 1 and .command[0] == "sh" and .detached' exec.json
    msb-exec --list >list
    jq -es --argjson id "$id" 'map(select(.id == $id)) | length == 1 and (.[0] | .detached and (.attached | not) and .code == null)' list
    msb-exec --wait "$id" &
    waiting=$!
    # The trap is set once it has printed "up"; --attach shows earlier output.
    msb-exec -T --attach "$id" >attached <&- &
    attached=$!
    exec_await grep -q started attached
    msb-exec --signal USR1 "$id"
    for pid in "$waiting" "$attached"; do
        status=0
        wait "$pid" || status=$?
        [ "$status" = 7 ]
    done
    # It is remembered.
    run msb-exec --wait "$id"
    [ "$status" = 7 ]
    run --separate-stderr msb-exec --signal TERM "$id"
    [ "$status" = 125 ]
    [ "$stderr" = "msb-exec: exec $id: it has ended" ]
    msb-exec --list | jq -es --argjson id "$id" '.[] | select(.id == $id) | .code == 7'
}

@test "a detached command keeps its background processes and its newest output" {
    id=$(msb-exec -d -- sh -c 'setsid sleep 4901 >/dev/null 2>&1 & seq 100000; echo error >&2' | jq .id)
    msb-exec --wait "$id"
    exec_await exec_has 1 sleep
    msb-exec -- killall sleep
    msb-exec --attach "$id" >out 2>err
    [ "$(wc -c <out)" = 65536 ]
    [ "$(tail -n 1 out)" = 100000 ]
    [ "$(cat err)" = error ]
    # Repeatedly, and by several callers at a time.
    for n in 1 2 3; do msb-exec --attach "$id" >"out-$n" 2>"err-$n" & done
    wait
    for n in 1 2 3; do cmp out "out-$n"; cmp err "err-$n"; done
    # Also output that an attached caller has read already: once the command has ended, all of it is shown.
    id=$(msb-exec -d -- sh -c 'trap "echo last; exit 4" USR1; echo first; while :; do sleep 0.1; done' | jq .id)
    msb-exec -T --attach "$id" >out <&- &
    exec_await grep -q first out
    msb-exec --signal USR1 "$id"
    status=0
    wait $! || status=$?
    [ "$status" = 4 ]
    [ "$(cat out)" = $'first\nlast' ]
    for _ in 1 2; do
        run -4 --separate-stderr msb-exec --attach "$id"
        [ "$output" = $'first\nlast' ]
    done
}

@test "the exit statuses of many detached commands are kept, and a forgotten id differs from an unknown one" {
    first=$(msb-exec -d -- sh -c 'echo said; exit 9' | jq .id)
    msb-exec --wait "$first" || true
    attached=$(msb-exec -- sh -c 'exit 0'; msb-exec -d -- true | jq '.id - 1')
    seq 120 | xargs -P 8 -I N sh -c 'msb-exec -d -- sh -c "exit N"' >many
    [ "$(wc -l <many)" = 120 ]
    jq -r '"\(.id) \(.command[2])"' many | while read -r id command; do
        status=0
        msb-exec --wait "$id" || status=$?
        [ "exit $status" = "$command" ] || { echo "$id: $status, $command"; false; }
    done
    run -9 msb-exec --wait "$first"
    run -125 msb-exec --attach "$first"
    [ "$output" = "msb-exec: exec $first: it has ended, and its output is not kept any more (--wait reports how it ended)" ]
    run -125 msb-exec --signal TERM "$first"
    [ "$output" = "msb-exec: exec $first: it has ended" ]
    # The listing says that there are more.
    msb-exec --list >list 2>err
    [ "$(jq -s 'map(select(.code != null)) | length' list)" = 32 ]
    grep -qE '^msb-exec: [0-9]+ older detached commands have ended \(--wait ID tells how\)$' err
    # A command that was not detached is remembered, but its status is not kept.
    for flag in --attach --wait '--signal TERM'; do
        # shellcheck disable=SC2086 # two words
        run -125 msb-exec $flag "$attached"
        [ "$output" = "msb-exec: exec $attached: it has ended and is forgotten (only detached commands have their exit status kept, the last 65536)" ]
        # shellcheck disable=SC2086 # two words
        run -125 msb-exec $flag 99999
        [ "$output" = 'msb-exec: exec 99999: no command with this id (msb-exec --list shows which there are)' ]
    done
    # A command that did not start has no number.
    before=$(msb-exec -d -- true | jq .id)
    run -127 msb-exec -- no-such-command
    [ "$(msb-exec -d -- true | jq .id)" = $((before + 1)) ]
}

@test "an attached caller's stdin and signals reach the detached command, and it ends with that command" {
    id=$(msb-exec -d -i -- sh -c 'read -r line; echo "got $line"; trap "echo term; exit 4" TERM; echo ready; while :; do sleep 0.1; done' | jq .id)
    mkfifo in
    msb-exec --attach "$id" <in >out &
    pid=$!
    exec 9>in
    echo hello >&9
    exec_await grep -q ready out
    # One at a time.
    run --separate-stderr msb-exec --attach "$id"
    [ "$status" = 125 ]
    [ "$stderr" = "msb-exec: exec $id: another caller is attached to it" ]
    # If it is killed, the command keeps running.
    kill -KILL "$pid"
    wait "$pid" || true
    exec 9>&-
    again() { msb-exec --list | jq -es --argjson id "$id" '.[] | select(.id == $id) | .attached | not'; }
    exec_await again
    msb-exec -n --attach "$id" >more &
    pid=$!
    attached() { ! again; }
    exec_await attached
    kill -TERM "$pid"
    status=0
    wait "$pid" || status=$?
    [ "$status" = 4 ]
    [ "$(cat out)" = $'got hello\nready' ]
    [ "$(cat more)" = term ]
}

@test "contradictory flags are usage errors" {
    run --separate-stderr msb-exec --signal NONE 1
    [ "$status" = 125 ]
    [ "$stderr" = 'msb-exec: unknown signal "NONE"' ]
    run --separate-stderr msb-exec --detach --list
    [ "$status" = 125 ]
}
