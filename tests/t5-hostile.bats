#!/usr/bin/env bats
# Two sides that do not trust one another: a lying guest, a lying process of the host, a client written independently, and
# who may connect at all.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; the guest's shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/exec.bash"

setup_file() {
    source "$BATS_TEST_DIRNAME/image.bash"
    exec_root
    cp "$(guest_program vsock-client)" "$vm_root/bin/vsock-client"
    exec_boot
}

# fake_agent HOW: an agent at fake.json that sends a hello and then does HOW, for one caller.
fake_agent() {
    cat >agent.py <<'END'
import json, socket, struct, sys, time
def frame(kind, payload=b""): return struct.pack("<IB", len(payload), kind) + payload
hello, started = frame(1, b'{"version":2}'), frame(3, b'{"pid":1,"id":1}')
esc = "\x1b[2J\x1b]0;owned\x07"
def ever(*frames):
    while True:
        yield b"".join(frames)
ways = {
    "other version": [frame(1, b'{"version":3}')],
    "bad hello": [frame(1, b'[]')],
    "length": [hello, b"\xff\xff\xff\xff\x05"],
    "long json": [hello, struct.pack("<IB", 5 << 20, 18)],
    "kind": [hello, started, frame(99, b"?")],
    "kind 0": [hello, frame(0)],
    "twice": [hello, started, started],
    "early": [hello, frame(5, b"x")],
    "empty": [hello, started, frame(5)],
    "credit": [hello, started] + [frame(5, b"x" * 65536)] * 8,
    "stdin": [hello, started, frame(4, b"x")],
    "request": [hello, started, frame(2, b'{"argv":["rm"]}')],
    "eof twice": [hello, started, frame(7, b"\1"), frame(7, b"\1")],
    "no stream": [hello, started, frame(7, b"\7")],
    "signal": [hello, started, frame(11, b'{"signal":-300}')],
    "status": [hello, started, frame(11, b'{"code":256}')],
    "nothing said": [hello, started, frame(11, b'{}')],
    "late": [hello, started, frame(11, b'{"code":3}'), frame(5, b"more"), frame(99)],
    "escapes": [hello, frame(12, json.dumps({"code": 125, "message": "no" + esc + "\nmsb-exec: fine"}).encode())],
    "escapes in json": [hello, frame(12, b'{"\x1b[31m')],
    "escapes in a list": [hello, frame(18, json.dumps({"execs": [{"id": 1, "pid": 1, "argv": [esc], "detached": True, "attached": False}]}).encode())],
    "silence": [],
    "silence later": [hello],
    "endless hello": ever(b"\0\4\0\0\1" + b" " * 1024),
    "endless credit": None,
    "endless output": None,
}
how = sys.argv[1]
s = socket.socket(socket.AF_UNIX)
s.bind("fake.sock")
s.listen()
print("listening", flush=True)
c, _ = s.accept()
try:
    if how == "endless credit":
        c.sendall(hello + started)
        for _ in range(200): c.sendall(frame(8, b"\0\xff\xff\xff\xff") * 1000)
        c.sendall(frame(11, b'{"code":4}'))
    elif how == "endless output":
        c.sendall(hello + started)
        end, block = time.time() + 3, frame(5, b"y" * 65536)
        while time.time() < end: c.sendall(block)
    else:
        for part in ways[how]: c.sendall(part)
    while c.recv(65536): pass
except (ConnectionResetError, BrokenPipeError): pass
END
    rm -f fake.sock
    coproc AGENT { exec python3 agent.py "$1"; }
    read -r _ <&"${AGENT[0]}"
    jq -c --arg sock "$PWD/fake.sock" '.vm.endpoint = {unix: $sock, port: 1024, handshake: false}' "$MSB_RECORD" >fake.json
}

@test "whatever a guest sends, msb-exec ends with a message and a status, in bounded memory" {
    while IFS='|' read -r how code message; do
        fake_agent "$how"
        code_was=0
        /usr/bin/env time -f %M -o memory timeout 120 msb-exec -n -r fake.json -- true >out 2>err || code_was=$?
        kill "$AGENT_PID" 2>/dev/null || true
        wait "$AGENT_PID" 2>/dev/null || true
        [ "$code_was" = "$code" ] || { echo "$how: $code_was"; cat err; false; }
        grep -qF -- "$message" err || { echo "$how:"; cat err; false; }
        # Only lines of plain text.
        if LC_ALL=C grep $'[\x01-\x08\x0b-\x1f]' err out; then return 1; fi
        [ "$(grep -vc '^msb-exec: ' err)" = 0 ]
        [ "$(tail -n 1 memory)" -lt 20000 ] || { echo "$how: $(cat memory) KiB"; false; }
    done <<'END'
other version|125|version 3
bad hello|125|bad payload
length|125|a frame of 4294967295 bytes
long json|125|a frame of 5242880 bytes
kind|125|unknown kind 99
kind 0|125|unknown kind 0
twice|125|the command started twice
early|125|the command has not started
empty|125|data without a byte
credit|125|output past its credit
stdin|125|stdin from the guest
request|125|not a frame for the caller
eof twice|125|a second end of a stream
no stream|125|no such stream
status|125|bad payload
nothing said|125|did not report how the command ended
escapes|125|fine
escapes in json|125|bad payload
endless hello|125|breaks the protocol
endless output|125|output past its credit
END
    # These end with the guest's status, whatever else it sends.
    for how in 'late 3' 'signal 128' 'endless credit 4'; do
        fake_agent "${how% *}"
        run timeout 180 msb-exec -n -r fake.json -- true
        wait "$AGENT_PID" 2>/dev/null || true
        [ "$status" = "${how##* }" ] || { echo "$how: $status $output"; false; }
    done
}

@test "a guest's text in a list is JSON without escape sequences" {
    fake_agent 'escapes in a list'
    msb-exec -r fake.json --list >out
    wait "$AGENT_PID" || true
    if LC_ALL=C grep $'\x1b' out; then return 1; fi
    jq -e '.command[0] | startswith("\u001b[2J")' out
}

@test "msb-exec gives up on a silent guest" {
    fake_agent silence
    run --separate-stderr timeout 180 msb-exec -n -r fake.json -- true
    kill "$AGENT_PID" || true
    [ "$status" = 125 ]
    [[ $stderr == 'msb-exec: vm "worker": its agent does not answer (see '* ]]
}

@test "a client that lies loses its own connection, at any stage of it" {
    cat >client.py <<'END'
import json, socket, struct, sys
endpoint = json.load(open(sys.argv[1]))["vm"]["endpoint"]
def frame(kind, payload=b""): return struct.pack("<IB", len(payload), kind) + payload
hello = frame(1, b'{"version":2}')
run = hello + frame(2, b'{"argv":["sleep","9"]}')
ways = [b"\xff" * 64, frame(99), frame(1, b'{"version":9}'), frame(2, b'{"argv":["true"]}'), hello + hello, hello + frame(11, b"{}"),
    hello + frame(2, b"not json"), hello + frame(2, b'{"argv":7}'), hello + struct.pack("<IB", (4 << 20) + 1, 2),
    hello + frame(15, b'{"id":-1}'), hello + frame(15, b"{}"), hello + frame(16, b"x"), hello + frame(17, b'{"id":1,"signal":99}'),
    hello + frame(18, b'{"execs":[]}'), hello + frame(19), run + frame(4), run + frame(4, b"x" * 65536) * 4,
    run + frame(7, b"\0") * 2, run + frame(7, b"\1"), run + frame(9, b'{"signal":0}'), run + frame(9, b'{"signal":70000}'),
    run + frame(10, b'{"rows":-1,"cols":1}'), run + frame(2, b'{"argv":["true"]}'), run + frame(19) + frame(19), run + b"\0\0\0",
    run + hello, run + frame(13, b'{"grace_ms":0}'), run + frame(8, b"\0\1\1\1\1")]
for junk in ways:
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(120)
    s.connect(endpoint["unix"])
    if endpoint["handshake"]:
        s.sendall(b"CONNECT %d\n" % endpoint["port"])
        while s.recv(1) != b"\n": pass
    try:
        s.sendall(junk)
        if junk[-3:] == b"\0\0\0": s.close(); continue
        while s.recv(65536): pass
    except (ConnectionResetError, BrokenPipeError): pass
    except TimeoutError: print("still there:", junk[18:])
END
    timeout 900 python3 client.py "$MSB_RECORD" >out
    [ ! -s out ] || { cat out; return 1; }
    [ "$(msb-exec -- echo alive)" = alive ]
    msb-exec --list | jq -r .id | while read -r id; do msb-exec --signal KILL "$id" 2>/dev/null || true; done
    exec_await exec_has 0 sleep
}

@test "callers that leave before they are connected take no connection from others" {
    cat >leave.py <<'END'
import json, socket, sys
vm = json.load(open(sys.argv[1]))["vm"]["endpoint"]
for _ in range(100):
    caller = socket.socket(socket.AF_UNIX)
    caller.connect(vm["unix"])
    if "port" in vm:
        caller.sendall(b"CONNECT %d\n" % vm["port"])
    caller.close()
END
    python3 leave.py "$MSB_RECORD"
    [ "$(timeout 120 msb-exec -n -- echo answered)" = answered ]
}

@test "nothing runs before a hello and a request" {
    cat >silent.py <<'END'
import json, socket, sys, time
endpoint = json.load(open(sys.argv[1]))["vm"]["endpoint"]
s = socket.socket(socket.AF_UNIX)
s.connect(endpoint["unix"])
if endpoint["handshake"]: s.sendall(b"CONNECT %d\n" % endpoint["port"])
print("there", flush=True)
sys.stdin.read()
END
    coproc SILENT { exec python3 silent.py "$MSB_RECORD"; }
    read -r _ <&"${SILENT[0]}"
    agent=$(exec_agent)
    # The agent's children are the asking exec's alone, once those of earlier ones are reaped.
    is_alone() {
        [ "$(msb-exec -- sh -c 'cat /proc/[0-9]*/stat 2>/dev/null | sed "s/.*) //" | awk -v a="$1" "\$2 == a" | wc -l' sh "$agent")" = 1 ]
    }
    exec_await is_alone
    eval "exec ${SILENT[1]}>&-"
    wait "$SILENT_PID"
}

@test "only the VM's owner can reach the agent on the host, and nobody can in the guest" {
    socket=$(jq -r .vm.endpoint.unix "$MSB_RECORD")
    [ "$(stat -c %a "$(dirname "$socket")")" = 700 ]
    [ "$(stat -c %a "$socket")" = 600 ]
    run setpriv --reuid 65534 --regid 65534 --clear-groups "$(command -v msb-exec)" -r - -- true <"$MSB_RECORD"
    [ "$status" = 125 ]
    # Through the guest's vsock loopback, with its own address and the host's.
    for cid in 1 3 2; do
        run msb-exec -- vsock-client "$cid" 1024
        echo "$cid: $output"
        [[ $output == 'connect: '* || $output == closed ]]
    done
}

@test "a client written from the manual runs commands, with streams and status" {
    client=$BATS_TEST_DIRNAME/msb-exec.py
    [ "$("$client" "$MSB_RECORD" echo hello </dev/null)" = hello ]
    head -c 1000000 /dev/urandom >bytes
    "$client" "$MSB_RECORD" cat <bytes | cmp - bytes
    run --separate-stderr "$client" "$MSB_RECORD" sh -c 'echo out; echo err >&2; exit 7' </dev/null
    [ "$status" = 7 ]
    [ "$output/$stderr" = out/err ]
    run -127 "$client" "$MSB_RECORD" no-such-command </dev/null
    [[ $output == *"not found in the guest's PATH"* ]]
    run "$client" "$MSB_RECORD" sh -c 'kill -9 $$' </dev/null
    [ "$status" = 137 ]
}
