#!/usr/bin/env bats
# msb-exec and agentd: a command in the VM, as if it ran here. One VM serves the whole file.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; the guest's shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/exec.bash"

setup_file() {
    exec_root
    echo 'staff:x:50:nobody' >>"$vm_root/etc/group"
    printf '#!/bin/sh\necho "script $*"\n' > "$BATS_FILE_TMPDIR/hello"
    echo 'echo "no shebang $1"' > "$BATS_FILE_TMPDIR/plain"
    jq -c '.image = {ref: "test", config: {Env: ["GREETING=hi", "PATH=/bin:/opt/bin"], Entrypoint: ["/bin/echo", "entry"],
        Cmd: ["cmd"], WorkingDir: "/tmp", User: ""}}' "$vm_record" > "$vm_record.new"
    mv "$vm_record.new" "$vm_record"
    mkdir "$vm_root/root" 2>/dev/null || chmod 700 "$vm_root/root"
    install -m 755 /dev/null "$vm_root/root/tool"
    mkdir -p "$vm_root/tmp"
    printf "#!/no/such\n" > "$vm_root/tmp/bad"
    chmod 755 "$vm_root/tmp/bad"
    exec_boot --script "hello=$BATS_FILE_TMPDIR/hello" --script "plain=$BATS_FILE_TMPDIR/plain"
}

@test "arguments arrive word for word, whatever is in them" {
    run --separate-stderr msb-exec -- printf '[%s]' a 'b c' '' '$HOME' $'new\nline' '*' -n -- ü
    [ "$status" = 0 ]
    [ "$output" = '[a][b c][][$HOME][new
line][*][-n][--][ü]' ]
    [ "$(msb-exec -- printf %s $'\xff\xfe' | od -An -tx1)" = ' ff fe' ]
}

@test "PID 1 is agentd without an init" {
    [ "$(msb-exec -- cat /proc/1/comm)" = agentd ]
}

@test "without a command the image's entrypoint and cmd run" {
    [ "$(msb-exec < /dev/null)" = 'entry cmd' ]
}

@test "any user can reopen its streams through /dev and /proc, also under su, bind low ports and send pings" {
    for user in root nobody 1234:1234; do
        [ "$(msb-exec -n -u "$user" --shell 'echo out >/dev/stdout; echo err >/dev/stderr; echo fd >>/proc/self/fd/1' 2>err)" = $'out\nfd' ]
        [ "$(cat err)" = err ]
        [ "$(echo in | msb-exec -u "$user" --shell 'cat /dev/stdin; cat </proc/self/fd/0')" = in ]
        # With -t all three are the terminal.
        [ "$(msb-exec -n -t -u "$user" --shell 'echo out >/dev/stdout; echo err >/dev/stderr; echo tty >/dev/tty' | tr -d '\r')" = $'out\nerr\ntty' ]
    done
    [ "$(msb-exec -n -- su -s /bin/sh nobody -c 'id -un >/dev/stdout; echo err >/dev/stderr' 2>&1 | sort | xargs)" = 'err nobody' ]
    [ "$(echo in | msb-exec -- su -s /bin/sh nobody -c 'cat /dev/stdin')" = in ]
    # A stream for reading cannot be written, and the other way round.
    run msb-exec -n -- su -s /bin/sh nobody -c 'cat </proc/self/fd/1'
    [ "$status" -ne 0 ]
    id=$(msb-exec -d -u nobody --shell 'echo out >/dev/stdout; echo err >/dev/stderr' | jq .id)
    [ "$(msb-exec --attach "$id" 2>&1 | sort | xargs)" = 'err out' ]
    [ "$(msb-exec -n -u nobody --shell 'timeout 1 nc -l -p 80; echo $?')" = 143 ]
    [ "$(msb-exec -n -- cat /proc/sys/net/ipv4/ping_group_range | xargs)" = '0 2147483647' ]
}

@test "users have the devices and message queues of a host, and its protection from the links of others" {
    msb-exec -n -u nobody --shell ': <>/dev/fuse && : <>/dev/net/tun'
    [ "$(msb-exec -n -- stat -f -c %T /dev/mqueue)" != "$(msb-exec -n -- stat -f -c %T /dev)" ]
    [ "$(msb-exec -n -- stat -c %a /dev/mqueue)" = 1777 ]
    for name in hardlinks symlinks fifos regular; do
        [ "$(msb-exec -n -- cat /proc/sys/fs/protected_$name)" = 1 ]
    done
}

@test "--shell runs a line with /bin/sh, and further words are its arguments" {
    [ "$(msb-exec --shell 'echo "$0 $1" | tr a-z A-Z; exit 3' -- zero one || echo "$?")" = $'ZERO ONE\n3' ]
}

@test "the environment is the image's, then -e; -e K passes the caller's value on" {
    [ "$(msb-exec -- sh -c 'echo $GREETING')" = hi ]
    [ "$(msb-exec -e GREETING=hello -e EMPTY= -- sh -c 'echo $GREETING ${EMPTY-unset}.')" = 'hello .' ]
    [ "$(FROM_HERE=value msb-exec -e FROM_HERE -e MSB_NEVER_SET -- sh -c 'echo $FROM_HERE ${MSB_NEVER_SET-unset}')" = 'value unset' ]
    [ -z "$(FROM_HERE=value msb-exec -- sh -c 'echo $FROM_HERE')" ]
    [ "$(msb-exec -- sh -c 'echo $PATH')" = /.msb/scripts:/bin:/opt/bin ]
    run --separate-stderr msb-exec -e =x -- true
    [ "$status" = 125 ]
}

@test "-w sets the working directory, by default the image's; a missing one is an error with status 125" {
    [ "$(msb-exec -- pwd)" = /tmp ]
    [ "$(msb-exec -w /etc -- pwd)" = /etc ]
    run --separate-stderr msb-exec -w /no/such -- pwd
    [ "$status" = 125 ]
    [[ $stderr == 'msb-exec: workdir "/no/such": No such file or directory'* ]]
    run --separate-stderr msb-exec -w /etc/passwd -- pwd
    [ "$status" = 125 ]
    [[ $stderr == *'not a directory'* ]]
}

@test "-u resolves names and numbers in the guest's passwd and group, and sets groups, HOME and USER" {
    [ "$(msb-exec -- id -un)" = root ]
    [ "$(msb-exec -u app -- sh -c 'id -u; id -g; id -G; echo $HOME $USER $LOGNAME')" = $'1000\n1001\n1001 29\n/home/app app app' ]
    [ "$(msb-exec -u 1000:50 -- sh -c 'id -u; id -G')" = $'1000\n50' ]
    [ "$(msb-exec -u 4711 -- sh -c 'id -u; id -g; echo $HOME')" = $'4711\n0\n/' ]
    run --separate-stderr msb-exec -u nobody-here -- true
    [ "$status" = 125 ]
    [ "$stderr" = "msb-exec: user \"nobody-here\": not in the guest's /etc/passwd" ]
    run --separate-stderr msb-exec -u app -- touch /etc/forbidden
    [ "$status" = 1 ]
}

@test "stdout and stderr stay apart" {
    msb-exec -- sh -c 'echo out; echo err >&2' > out 2> err
    [ "$(cat out)" = out ]
    [ "$(cat err)" = err ]
}

# bats test_tags=vmm-slow
@test "stdin arrives to its last byte, and so does its end" {
    head -c 3000001 /dev/urandom > bytes
    msb-exec -- cat < bytes | cmp - bytes
    [ "$(msb-exec -- wc -c < bytes)" = 3000001 ]
    [ "$(msb-exec -- cat < /dev/null | wc -c)" = 0 ]
    mkdir tree && cp bytes tree/ && ln -s bytes tree/link
    tar -C tree -c . | msb-exec -- sh -c 'mkdir /tmp/tree && tar -x -C /tmp/tree'
    msb-exec -- tar -c -C /tmp/tree . | tar -t | sort | diff - <(tar -C tree -c . | tar -t | sort)
    msb-exec -- cat /tmp/tree/link | cmp - bytes
}

@test "the exit status is the command's, 128+N for a signal" {
    for code in 0 1 7 125 255; do
        run msb-exec -- sh -c "exit $code"
        [ "$status" = "$code" ]
    done
    run msb-exec -- sh -c 'kill -9 $$'
    [ "$status" = 137 ]
    run msb-exec -- sh -c 'kill -TERM $$'
    [ "$status" = 143 ]
}

@test "the status is 127 for a missing command and 126 for one that cannot be executed, each with a message" {
    run -127 --separate-stderr msb-exec -- no-such-command
    [ "$stderr" = "msb-exec: \"no-such-command\": not found in the guest's PATH" ]
    run --separate-stderr msb-exec -- /etc/passwd
    [ "$status" = 126 ]
    [ "$stderr" = 'msb-exec: "/etc/passwd": not executable (its mode has no x)' ]
    run --separate-stderr msb-exec -- /etc
    [ "$status" = 126 ]
    msb-exec -- sh -c 'printf "#!/no/interpreter\n" > /tmp/odd && chmod +x /tmp/odd'
    run -127 --separate-stderr msb-exec -- /tmp/odd
    [[ $stderr == *'interpreter'* ]]
    # A program of another architecture is not run as a script.
    msb-exec -- sh -c '{ head -c 18 /bin/busybox; printf "\377\377"; tail -c +21 /bin/busybox; } >/tmp/foreign && chmod +x /tmp/foreign'
    run -126 --separate-stderr msb-exec -- /tmp/foreign
    [ "$stderr" = 'msb-exec: "/tmp/foreign": Exec format error (os error 8)' ]
}

@test "scripts are run by name, also without a shebang, and cannot be changed" {
    [ "$(msb-exec -- hello a 'b c')" = 'script a b c' ]
    [ "$(msb-exec --shell 'hello x')" = 'script x' ]
    [ "$(msb-exec -- plain y)" = 'no shebang y' ]
    [ "$(msb-exec -u app -- hello z)" = 'script z' ]
    run --separate-stderr msb-exec --shell 'echo x > /.msb/scripts/hello'
    [ "$status" != 0 ]
    grep -q 'echo "script' "$(jq -r .scripts.hello "$MSB_RECORD")"
}

@test "two commands at once do not wait for one another" {
    mkfifo gate
    # The first ends only when the second has.
    msb-exec -- cat < gate > first &
    exec 9> gate
    echo held >&9
    exec_await grep -q held first
    [ "$(msb-exec -- echo second)" = second ]
    exec 9>&-
    wait $!
    [ "$(cat first)" = held ]
}

# bats test_tags=vmm-slow
@test "a stopped reader stalls only its own command" {
    mkfifo pipe
    msb-exec -- yes > pipe &
    exec 9< pipe
    for n in 1 2 3; do [ "$(msb-exec -- echo "$n")" = "$n" ]; done
    head -c 2000000 <&9 | sort -u > got
    exec 9<&-
    wait $! || true
    [ "$(cat got)" = y ]
}

@test "a closed pipe ends the command without a message" {
    run --separate-stderr bash -c 'msb-exec -- yes | head -n 1; echo "${PIPESTATUS[0]}"'
    [ "$output" = $'y\n141' ]
    [ -z "$stderr" ]
    exec_await exec_has 0 yes
}

@test "a command that never reads stdin, or closes it, ends as it would here" {
    run bash -c 'yes | msb-exec -- true; echo "${PIPESTATUS[*]}"'
    [ "$output" = '141 0' ]
    [ "$(yes | msb-exec -- head -n 1)" = y ]
}

@test "msb-exec waits for output that comes after the command's end, as a pipe does, until a signal" {
    [ "$(msb-exec -- sh -c '(sleep 1; echo late) & echo early')" = $'early\nlate' ]
    run msb-exec --timeout 1 -- sh -c 'tail -f /etc/passwd & exit 0'
    [ "$status" = 124 ]
}

@test "signals sent to msb-exec reach the command" {
    for signal in TERM INT HUP USR1; do
        mkfifo "ready-$signal"
        env --default-signal="$signal" msb-exec -- sh -c "trap 'echo got $signal; exit 9' $signal; echo up; while :; do sleep 0.1; done" > "ready-$signal" &
        pid=$!
        exec 8< "ready-$signal"
        read -r up <&8
        [ "$up" = up ]
        kill -s "$signal" "$pid"
        read -r answer <&8
        exec 8<&-
        [ "$answer" = "got $signal" ]
        status=0
        wait "$pid" || status=$?
        [ "$status" = 9 ]
    done
}

@test "killing msb-exec ends the command in the guest" {
    msb-exec -- sh -c 'exec sleep 4242' &
    exec_await exec_has 1 sleep
    kill -KILL $!
    exec_await exec_has 0 sleep
}

@test "--timeout ends the command, KILL after TERM, with status 124" {
    run --separate-stderr msb-exec --timeout 500ms -- sleep 60
    [ "$status" = 124 ]
    [ "$stderr" = 'msb-exec: the command took too long and was ended' ]
    run msb-exec --timeout 1s -- sh -c 'trap "" TERM; while :; do sleep 1; done'
    [ "$status" = 124 ]
    [ "$(msb-exec --timeout 120 -- echo in time)" = 'in time' ]
}

@test "-t gives the command a terminal of the caller's size, and restores the caller's" {
    cat > terminal.py <<'END'
import fcntl, os, pty, struct, sys, termios
pid, fd = pty.fork()
if pid == 0:
    os.execvp("msb-exec", ["msb-exec", "-t", "--", "sh", "-c", "tty; stty size; echo $TERM; read line; echo got $line; exit 5"])
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
before = termios.tcgetattr(fd)
out = b""
while b"vt220\r\n" not in out:
    out += os.read(fd, 1000)
os.write(fd, b"typed\r")
try:
    while True:
        more = os.read(fd, 1000)
        if not more: break
        out += more
except OSError:
    pass
sys.stdout.write(out.decode().replace("\r", ""))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
END
    TERM=vt220 run timeout 120 python3 terminal.py
    [ "$status" = 5 ]
    [[ ${lines[0]} == /dev/pts/* ]]
    [ "${lines[2]}" = vt220 ]
    [[ $output == *'got typed'* ]]
}

# An agent that answers every connection with the bytes in a file, and then is silent.
fake_agent() {
    cat > agent.py <<'END'
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind("fake.sock")
s.listen()
print("listening", flush=True)
c, _ = s.accept()
c.sendall(open("answer", "rb").read())
if len(sys.argv) > 1:
    c.shutdown(socket.SHUT_WR)
try:
    while c.recv(65536):
        pass
except ConnectionResetError:
    pass
END
    rm -f fake.sock
    coproc AGENT { exec python3 agent.py "$@"; }
    read -r _ <&"${AGENT[0]}"
    jq -c --arg sock "$PWD/fake.sock" '.vm.endpoint = {unix: $sock, port: 1024, handshake: false}' "$MSB_RECORD" > fake.json
}

@test "an agent that breaks the protocol is an error with status 125" {
    hello='\r\0\0\0\1{"version":2}'
    while IFS='|' read -r answer message; do
        printf "$answer" > answer
        fake_agent close
        run --separate-stderr timeout 180 msb-exec -r fake.json -- true
        wait "$AGENT_PID" || true
        [ "$status" = 125 ] || { echo "$answer: status $status: $stderr"; return 1; }
        [[ $stderr == *"$message"* ]] || { echo "$answer: $stderr"; return 1; }
    done <<END
\r\0\0\0\1{"version":7}|version 7
$hello\377\377\377\377\5|a frame of 4294967295 bytes
$hello\0\0\0\0\143|a frame of unknown kind 99
$hello\4\0\0\0\13{"c"|bad payload
$hello\2\0\0\0\5xy\1\0\0\0\1x|breaks the protocol
\12\0\0\0\13{"code":0}|the first one is not a hello
|its agent does not answer (see "
$hello|its agent does not answer (see "
$hello\1\0|its agent does not answer (see "
END
}

@test "an agent that does not know how to change limits is named as the reason" {
    printf '\r\0\0\0\1{"version":2}' >answer
    fake_agent close
    echo '{"pids": {"limit": 7}}' >limits.json
    run --separate-stderr timeout 180 msb-exec -r fake.json --limits limits.json 1
    wait "$AGENT_PID" || true
    [ "$status" = 125 ]
    [ "$stderr" = 'msb-exec: vm "worker": its agent is of an older version, and cannot change limits (boot the VM again)' ]
}

@test "a guest that sends more than its credit is disconnected" {
    { printf '\r\0\0\0\1{"version":2}\20\0\0\0\3{"pid":1,"id":1}'; for _ in $(seq 40); do printf '\0\0\1\0\5'; head -c 65536 /dev/zero; done; } > answer
    fake_agent
    mkfifo never-read
    timeout 180 msb-exec -r fake.json -- true > never-read 2> err &
    exec 9< never-read
    wait $! || status=$?
    exec 9<&-
    kill "$AGENT_PID" 2>/dev/null || true
    [ "$status" = 125 ]
    grep -q 'output past its credit' err
}

@test "a client that breaks the protocol loses its connection, and no other client does" {
    cat > client.py <<'END'
import json, socket, struct, sys
endpoint = json.load(open(sys.argv[1]))["vm"]["endpoint"]
def frame(kind, payload): return struct.pack("<IB", len(payload), kind) + payload
hello = frame(1, b'{"version":2}')
for junk in [b"\xff" * 64, frame(99, b""), struct.pack("<IB", 2**32 - 1, 2), hello + frame(11, b"{}"), frame(1, b'{"version":9}'),
             hello + frame(2, b"not json"), hello + frame(2, b'{"argv":["sleep","99"]}') + frame(4, b"x" * 65536) * 4]:
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(120)
    s.connect(endpoint["unix"])
    if endpoint["handshake"]:
        s.sendall(b"CONNECT %d\n" % endpoint["port"])
        line = b""
        while not line.endswith(b"\n"): line += s.recv(1)
    try:
        s.sendall(junk)
        while s.recv(65536): pass
    except (ConnectionResetError, BrokenPipeError):
        pass
    print("ended")
END
    [ "$(timeout 600 python3 client.py "$MSB_RECORD" | grep -c ended)" = 7 ]
    [ "$(msb-exec -- echo alive)" = alive ]
}

@test "a VM that has ended is an error with status 125" {
    jq -c '.vm.endpoint.unix = "/nonexistent/agent.sock"' "$MSB_RECORD" > gone.json
    run --separate-stderr msb-exec -r gone.json -- true
    [ "$status" = 125 ]
    [[ $stderr == 'msb-exec: vm "worker": it runs, but its socket "/nonexistent/agent.sock" is gone ('* ]]
    # For an ended VM whose log msb-stop has removed, the message does not name the log.
    jq -c '.vm.endpoint.unix = "/nonexistent/agent.sock" | .vm.pid = 4194303 | .vm.kernel_log = "/nonexistent/kernel.log"' "$MSB_RECORD" >gone.json
    run --separate-stderr msb-exec -r gone.json -- true
    [ "$status" = 125 ]
    [ "$stderr" = 'msb-exec: vm "worker": it is not running (msb-stop and msb-boot)' ]
    run --separate-stderr msb-exec -r "$vm_record" -- true
    [ "$status" = 125 ]
    run --separate-stderr msb-exec -r - -- true <<< '{"msb":1}'
    [ "$status" = 125 ]
    [[ $stderr == *'the record has no running VM (start one with msb-boot)'* ]]
}

@test "the record may come first on stdin, and the rest is the command's" {
    [ "$({ cat "$MSB_RECORD"; printf 'for\nyou'; } | msb-exec -r - -- cat)" = $'for\nyou' ]
}

@test "--process is the whole command: exact environment, IDs, capabilities, limits" {
    jq -n '{args: ["sh", "-c", "env; id; umask; ulimit -Hn; grep -E \"^(Cap|NoNewPrivs|Groups)\" /proc/self/status; cat /proc/self/oom_score_adj; pwd"],
        cwd: "/etc", env: ["PATH=/bin", "B=1", "A=x y"], user: {uid: 1000, gid: 1001, umask: 63, additionalGids: [29, 4711]},
        capabilities: {bounding: ["CAP_CHOWN", "CAP_KILL"], permitted: ["CAP_KILL"], effective: ["CAP_KILL"], inheritable: ["CAP_KILL"],
        ambient: ["CAP_KILL", "CAP_NONE"]}, rlimits: [{type: "RLIMIT_NOFILE", soft: 99, hard: 100}], noNewPrivileges: true, oomScoreAdj: 7}' > process.json
    run --separate-stderr msb-exec -n --process process.json
    echo "$output"
    [ "$status" = 0 ]
    # The shell itself adds PWD and SHLVL.
    [ "$(grep -E '^[A-Z]+=' <<< "$output" | grep -vE '^(PWD|SHLVL)=' | sort | xargs)" = 'A=x y B=1 HOME=/home/app PATH=/bin' ]
    [[ $output == *$'\nuid=1000(app) gid=1001(app) groups=29(audio),4711\n0077\n100\n'* ]]
    [ "$(grep -E '^(Cap|No)' <<< "$output" | tr -d '\t' | xargs)" = 'CapInh:0000000000000020 CapPrm:0000000000000020 CapEff:0000000000000020 CapBnd:0000000000000021 CapAmb:0000000000000020 NoNewPrivs:1' ]
    [[ $output == *$'\n7\n/etc' ]]
    # Without capabilities there are none, also for root.
    jq -n '{args: ["grep", "CapBnd", "/proc/self/status"], cwd: "/", env: []}' > process.json
    [ "$(msb-exec -n --process process.json)" = $'CapBnd:\t0000000000000000' ]
    run --separate-stderr msb-exec -n --process process.json -- true
    [ "$status" = 125 ]
    jq -n '{args: ["tty"], cwd: "/", env: ["PATH=/bin"], terminal: true, consoleSize: {height: 33, width: 99}}' > process.json
    [[ $(msb-exec -n --process process.json) == /dev/pts/* ]]
}

@test "--started-fd says when the command runs, or why it does not" {
    msb-exec -n --started-fd 3 -- sh -c 'echo $$' 3> started > pid
    [ "$(jq -c '[.event, .pid, (.id > 0)]' started)" = "[\"started\",$(cat pid),true]" ]
    run -127 --separate-stderr msb-exec -n --started-fd 3 -- /no/such 3> started
    [ "$(jq -c '[.event, .status, .error]' started)" = '["failed",127,"\"/no/such\": not found in the guest"]' ]
    [[ $stderr == *'not found in the guest'* ]]
    run --separate-stderr msb-exec -n --stand-in --started-fd 3 -- /etc 3> started
    [ "$status" = 126 ]
    [ -z "$stderr" ]
    [ "$(jq .status started)" = 126 ]
    run msb-exec -n --started-fd 33 -- true
    [ "$status" = 125 ]
}

@test "--prepare-fd finds errors first, and a byte starts the command" {
    mkfifo go started
    exec {start}<> go {report}<> started
    msb-exec -n --prepare-fd 3 --started-fd 4 -- sh -c 'touch /tmp/went; cat /proc/self/oom_score_adj' 3< go 4> started > out {start}>&- {report}>&- &
    read -r -u "$report" line
    [ "$(jq -r .event <<< "$line")" = prepared ]
    id=$(jq .id <<< "$line")
    [ "$(msb-exec -n --list | jq -c "select(.id == $id) | [.attached, .exit]")" = '[true,null]' ]
    [ "$(msb-exec -n -- sh -c 'ls /tmp/went 2>/dev/null || echo no')" = no ]
    # It holds none of the agent's descriptors: its streams and two pipes.
    [ "$(msb-exec -n -- sh -c 'ls /proc/$1/fd | wc -l' sh "$(jq .pid <<< "$line")")" = 5 ]
    echo >&"$start"
    read -r -u "$report" line
    [ "$(jq -c '[.event, .id]' <<< "$line")" = "[\"started\",$id]" ]
    wait $!
    [ "$(cat out)" = 0 ]
    msb-exec -n -- rm /tmp/went
    # A signal ends one that waits, also if it has a stdin, and so does the end of that pipe.
    msb-exec --prepare-fd 3 --started-fd 4 -- true < /dev/null 3< go 4> started {start}>&- {report}>&- &
    read -r -u "$report" line
    msb-exec -n --signal TERM "$(jq .id <<< "$line")"
    status=0
    wait $! || status=$?
    [ "$status" = 143 ]
    read -r -u "$report" line
    [ "$(jq -c '[.event, .status]' <<< "$line")" = '["failed",143]' ]
    run --separate-stderr msb-exec -n --prepare-fd 3 -- touch /tmp/went 3< /dev/null
    [ "$status" = 125 ]
    [[ $stderr == *'--prepare-fd: end-of-file'* ]]
    [ "$(msb-exec -n -- sh -c 'ls /tmp/went 2>/dev/null || echo no')" = no ]
    # What the command's user cannot execute is found before it starts, and what the kernel alone can tell, after that.
    for case in '126 -u app -- /root/tool' '127 -- /no/such' '126 -- /etc/passwd'; do
        # shellcheck disable=SC2086 # words of a command
        run "-${case%% *}" --separate-stderr msb-exec -n --prepare-fd 3 --started-fd 4 ${case#* } 3< go 4> report {start}>&- {report}>&-
        [ "$(jq -c .event report)" = '"failed"' ]
    done
    echo >&"$start"
    run -127 --separate-stderr msb-exec -n --prepare-fd 3 --started-fd 4 -- /tmp/bad 3< go 4> report {start}>&- {report}>&-
    [ "$(jq -c .event report | xargs)" = 'prepared failed' ]
}

@test "all signals are forwarded: a stand-in also forwards those of job control" {
    for signal in 37 ALRM XCPU 64; do
        rm -f out
        # A signal that the runner of the tests ignores would not be forwarded.
        env --default-signal msb-exec -n --started-fd 3 -- sh -c 'trap "echo got; exit 3" "$1"; echo ready; while :; do sleep 0.1; done' sh "$signal" 3> started > out &
        exec_await grep -qs ready out
        kill -"$signal" $!
        status=0
        wait $! || status=$?
        echo "$signal: $status, $(cat out)"
        [ "$status" = 3 ]
    done
    rm out
    env --default-signal msb-exec -n --stand-in -- sh -c 'trap "echo tstp" TSTP; trap "echo chld; exit 4" CONT; echo ready; while :; do sleep 0.1; done' > out &
    exec_await grep -qs ready out
    kill -TSTP $!
    exec_await grep -q tstp out
    kill -CONT $!
    status=0
    wait $! || status=$?
    [ "$status" = 4 ]
}

@test "the exit says that the OOM killer has ended the command" {
    run msb-exec -n --json-status status -- sh -c 'echo 20m > /sys/fs/cgroup/$(cut -d: -f3 /proc/self/cgroup)/memory.max; tail -c 100m /dev/zero'
    [ "$status" = 137 ]
    [ "$(jq .oom status)" = true ]
    msb-exec -n --json-status status -- true
    [ "$(jq .oom status)" = null ]
}

# container [FILTER]: writes container.json, a container on the guest's root, changed by a filter of jq.
container() {
    jq -n '{root: {path: "/"}, hostname: "box", process: {args: ["sleep", "1000"], cwd: "/work/dir", env: ["PATH=/bin"],
            capabilities: {bounding: ["CAP_KILL"], permitted: ["CAP_KILL"], effective: ["CAP_KILL"]}},
        mounts: [
            {destination: "/proc", type: "proc", source: "proc"},
            {destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {destination: "/sys", type: "sysfs", source: "sysfs", options: ["nosuid", "noexec", "nodev", "ro"]},
            {destination: "/dev/pts", type: "devpts", source: "devpts", options: ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {destination: "/dev/mqueue", type: "mqueue", source: "mqueue"},
            {destination: "/dev/shm", type: "tmpfs", source: "shm", options: ["nosuid", "noexec", "nodev", "mode=1777", "size=1000k"]},
            {destination: "/sys/fs/cgroup", type: "cgroup", source: "cgroup", options: ["ro"]},
            {destination: "/etc/group", type: "bind", source: "/etc/passwd", options: ["rbind", "ro"]},
            {destination: "/run/secrets/key", type: "bind", source: "/etc/passwd", options: ["bind"]},
            {destination: "/home", type: "tmpfs", source: "tmpfs", options: ["tmpcopyup", "size=500k"]}],
        linux: {maskedPaths: ["/proc/kcore", "/proc/none", "/sys/kernel"], readonlyPaths: ["/proc/sys"], sysctl: {"kernel.msgmax": "777"},
            devices: [{path: "/dev/fuse", type: "c", major: 10, minor: 229, fileMode: 416, uid: 1, gid: 2}]}}' | jq "${1:-.}" > container.json
}

@test "--container: a command in namespaces of its own, with the mounts, devices and restrictions of its configuration" {
    container
    msb-exec -n --container container.json --stand-in --started-fd 3 3> started &
    exec_await grep -qs started started
    id=$(jq .id started)
    inside() { msb-exec -n --inside "$id" -- sh -c "$1"; }
    [ "$(inside 'cat /proc/1/comm; hostname; pwd; set -- /proc/[0-9]*; echo $#' | xargs)" = 'sleep box /tmp 2' ]
    [ "$(msb-exec -n -- hostname)" = worker ]
    [ "$(inside 'stat -c "%n %a %F %t:%T %u:%g" /dev/null /dev/tty /dev/fuse; readlink /dev/ptmx; readlink /dev/fd')" = '/dev/null 666 character special file 1:3 0:0
/dev/tty 666 character special file 5:0 0:0
/dev/fuse 640 character special file a:e5 1:2
pts/ptmx
/proc/self/fd' ]
    [ "$(inside 'ls /dev' | xargs)" = 'fd full fuse mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero' ]
    # Binds, also below what the guest itself has mounted, a copy-up, and nothing of the guest's mounts.
    [ "$(inside 'cmp /etc/group /etc/passwd && cmp /run/secrets/key /etc/passwd && stat -c %u /home/app; ls -A /.msb /run | xargs; ls /etc/hostname')" = '1000
/.msb: /run: secrets
/etc/hostname' ]
    [ "$(inside 'df -k /home /dev/shm | tail -n 2 | while read -r _ size _; do echo $size; done' | xargs)" = '500 1000' ]
    for path in /etc/group /sys/x /proc/sys/kernel/msgmax /sys/fs/cgroup/x; do
        run ! inside "echo 1 > $path"
    done
    [ "$(inside 'wc -c < /proc/kcore; ls /sys/kernel | wc -l; cat /proc/sys/kernel/msgmax; cat /proc/self/cgroup /sys/fs/cgroup/cgroup.procs' | xargs)" = '0 0 777 0::/ 1' ]
    [ "$(msb-exec -n -- cat /proc/sys/kernel/msgmax)" != 777 ]
    [ "$(msb-exec -n -t --inside "$id" -- tty | tr -d '\r')" = /dev/pts/0 ]
    [ "$(inside 'grep -c . /proc/self/mountinfo')" -lt 20 ]
    # As PID 1 of any container, it ignores signals for which it has no handler, but not KILL.
    msb-exec -n --signal TERM "$id"
    kill -USR1 $!
    [ "$(inside 'cat /proc/1/comm')" = sleep ]
    msb-exec -n --signal KILL "$id"
    status=0
    wait $! || status=$?
    [ "$status" = 137 ]
    run --separate-stderr msb-exec -n --inside "$id" -- true
    [ "$status" = 125 ]
    # Nothing is left of it in the guest's own mounts; what it made in the root stays, as with any command.
    [ "$(msb-exec -n -- sh -c 'grep -c fuse /proc/mounts; ls /work; ls /dev/shm | wc -l' | xargs)" = '0 dir 0' ]
}

@test "--container: PID 1 ends all others; errors and exit statuses are the command's; a root below another one" {
    container '.root.readonly = true | .process.args = ["sh", "-c", "sleep 1000 & echo $$; touch /x 2>&1; exit 7"]'
    run --separate-stderr msb-exec -n --container container.json
    [ "$status" = 7 ]
    [ "$output" = $'1\ntouch: /x: Read-only file system' ]
    exec_await exec_has 0 sleep
    [ "$(msb-exec -n --container container.json -- sh -c 'echo $0' | xargs)" = sh ]
    container '.process.args = ["/no/such"]'
    run -127 --separate-stderr msb-exec -n --container container.json
    [ "$stderr" = 'msb-exec: "/no/such": not found in the guest' ]
    container '.mounts += [{destination: "/etc/passwd", type: "bind", source: "/none", options: ["bind"]}]'
    run --separate-stderr msb-exec -n --container container.json
    [ "$status" = 125 ]
    [ "$stderr" = 'msb-exec: container: mount on "/etc/passwd": No such file or directory (os error 2)' ]
    container '.process.args = ["true"] | .linux.resources = {cpu: {quota: 1}}'
    run --separate-stderr msb-exec -n --container container.json
    [ "$status" = 125 ]
    [ "$stderr" = 'msb-exec: container: limit cpu.max "1 100000": Invalid argument (os error 22)' ]
    # The cgroup with the limits, which the container does not see, ends with it, and so does the thread that watches it.
    container '.process.args = ["sh", "-c", "cat /sys/fs/cgroup/pids.max; sleep 1000 & exit 7"] |
        .linux.resources = {pids: {limit: 20}, memory: {limit: 67108864}}'
    run --separate-stderr msb-exec -n --container container.json
    [ "$status" = 7 ]
    [ "$output" -gt 20 ]
    is_removed() { [ "$(msb-exec -n -- sh -c 'ls /sys/fs/cgroup/msb | grep container-; cat /proc/1/task/*/comm | grep thrash')" = thrash ]; }
    exec_await is_removed
    # Limits are changed, all of them or none, and back to none.
    container '.process.args = ["sleep", "1000"] | .linux.resources = {pids: {limit: 20}, cpu: {quota: 50000, period: 50000}}'
    id=$(msb-exec -d --container container.json | jq .id)
    limits() { msb-exec -n -- sh -c 'cd /sys/fs/cgroup/msb/container-* && cat pids.max cpu.weight cpu.max memory.max' | paste -sd ' '; }
    change() { echo "$1" >limits.json && msb-exec --limits limits.json "${2:-$id}"; }
    [ "$(limits)" = '20 100 50000 50000 max' ]
    change '{"pids": {"limit": 30}, "cpu": {"shares": 1024, "quota": 20000}, "memory": {"limit": 67108864}}'
    [ "$(limits)" = '30 39 20000 50000 67108864' ]
    run --separate-stderr change '{"pids": {"limit": 40}, "cpu": {"shares": 2, "quota": 1}, "memory": {"limit": 33554432}}'
    [ "$status" = 125 ]
    [ "$stderr" = "msb-exec: exec $id: limit cpu.max \"1 50000\": Invalid argument (os error 22)" ]
    [ "$(limits)" = '30 39 20000 50000 67108864' ]
    change '{"pids": {"limit": -1}, "cpu": {"quota": -1, "period": 100000}, "memory": {"limit": -1}}'
    [ "$(limits)" = 'max 39 max 100000 max' ]
    other=$(msb-exec -n -d -- sleep 1000 | jq .id)
    run --separate-stderr change '{"pids": {"limit": 40}}' "$other"
    [ "$status" = 125 ]
    [ "$stderr" = "msb-exec: exec $other: it is no container with limits, or has ended" ]
    run --separate-stderr change '{}'
    [ "$stderr" = 'msb-exec: limits "limits.json": there are none of memory, pids or cpu' ]
    for ended in "$id" "$other"; do msb-exec --signal KILL "$ended"; done
    exec_await is_removed
    run --separate-stderr change '{"pids": {"limit": 40}}'
    [ "$status" = 125 ]
    [ "$stderr" = "msb-exec: exec $id: it is no container with limits, or has ended" ]
    # A command that is killed because it has no memory left for files was out of memory.
    msb-exec -n -- dd if=/dev/zero of=/large bs=1M count=20 2>/dev/null
    thrash='dd if=/dev/zero bs=60M 2>/dev/null | sleep 1000 & sleep 1; while pidof dd >/dev/null; do cat /large >/dev/null; done; exit 3'
    jq --arg script "$thrash" '.process.args = ["sh", "-c", $script] | .linux.resources.memory.limit = 67108864' container.json >thrash.json
    status=0
    msb-exec -n --json-status end.json --container thrash.json || status=$?
    [ "$status" = 3 ]
    [ "$(jq .oom end.json)" = true ]
    # Symlinks of the container lead nowhere else.
    msb-exec -n -- sh -c 'mkdir -p /srv/c/bin /srv/c/tmp && cp /bin/busybox /srv/c/bin/sh && ln -s /../../tmp/out /srv/c/etc'
    container '.root.path = "srv/c" | .process.cwd = "/" | .process.args = ["sh", "-c", "echo $PATH; echo /*; echo /tmp/out/*"] |
        .mounts = [.mounts[0], {destination: "/etc/hosts", type: "bind", source: "/etc/passwd", options: ["bind"]}]'
    [ "$(msb-exec -n --container container.json)" = $'/bin\n/bin /dev /etc /proc /tmp\n/tmp/out/hosts' ]
    [ "$(msb-exec -n -- sh -c 'ls -d /tmp/out 2>/dev/null; ls -A /srv/c/tmp')" = out ]
    # Prepared, it is a container already, and it ends with its caller.
    container '.process.args = ["echo", "went"]'
    mkfifo go report
    exec {start}<> go {lines}<> report
    msb-exec -n --container container.json --stand-in --prepare-fd 3 --started-fd 4 3< go 4> report > out {start}>&- {lines}>&- &
    read -r -u "$lines" line
    [ "$(msb-exec -n --inside "$(jq .id <<< "$line")" -- hostname)" = box ]
    echo >&"$start"
    wait $!
    [ "$(cat out)" = went ]
}
