#!/usr/bin/env bats
# The libraries: sandboxes from Rust and Python. The programs are the examples of sandbox/ and python/.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; the guest's shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/vm.bash"

setup_file() {
    root=$(cd "$BATS_TEST_DIRNAME/.." && pwd)
    export examples=$root/target/release/examples PYTHONPATH=$root/python python=$root/python PYTHONDONTWRITEBYTECODE=1
    if [ ! -x "$examples/documented" ]; then
        (cd "$root" && cargo build --release --locked --workspace --exclude agentd --examples)
    fi
}

# One root serves as every image that the programs name. Its bash, apt-get and python3 are scripts.
setup() {
    vm_setup
    # The disk of a name belongs to a root, and each test has its own.
    export MSB_HOME=$BATS_TEST_TMPDIR/home
    export MSB_BIN=$BATS_TEST_TMPDIR/bin
    mkdir -p "$MSB_BIN" "$vm_root"/{sbin,var}
    ln -s "$release"/msb-{patch,boot,exec,stop,ls,rm} "$MSB_BIN"
    printf '#!/bin/sh\n[ "$3" != no/such/image ] || set -- -q -- oci:./nowhere\n[ -e "$3" ] || [ "$3" = oci:./nowhere ] || set -- -q -- %s\nexec %s "$@"\n' \
        "$vm_root" "$release/msb-pull" >"$MSB_BIN/msb-pull"
    printf '#!/bin/sh\nexec /bin/sh "$@"\n' >"$vm_root/bin/bash"
    printf '#!/bin/sh\necho "apt-get $*" >>/var/apt\n' >"$vm_root/bin/apt-get"
    printf '#!/bin/sh\necho "python3 $*"; cat /var/apt\n' >"$vm_root/bin/python3"
    chmod +x "$MSB_BIN/msb-pull" "$vm_root"/bin/{bash,apt-get,python3}
    ln -s ../bin/busybox "$vm_root/sbin/init"
    echo '127.0.0.1 localhost' >"$vm_root/etc/hosts"
    echo 'the motd of the image' >"$vm_root/etc/motd"
    echo 'a certificate' >cert.pem
    mkdir work
    printf '::sysinit:/bin/true\n' >"$vm_root/etc/inittab"
}

teardown() { vm_teardown; }

is_empty() { [ -z "$(ls -A "$1")" ]; }

patched='Hello from a patched rootfs!
Custom message of the day.
{"debug": true}a certificate
127.0.0.1 localhost
127.0.0.1 myapp.local'
scripts='python3 /app/main.py
apt-get update
apt-get install -y python3 curl'

@test "Rust: the programs of the documentation run scripts, apply patches and hand PID 1 to an init" {
    [ "$("$examples/scripts")" = "$scripts" ]
    vm_assert_nothing
    # msb-boot adds lines to hosts(5).
    [[ $("$examples/patches") == "$patched"* ]]
    [ "$(cat "$vm_root/etc/motd")" = 'the motd of the image' ]
    [ "$("$examples/init")" = busybox ]
    vm_assert_nothing
}

@test "Rust: commands have status, output, options, limits, streams and signals" {
    run --separate-stderr "$examples/commands" alpine
    [ "$status" = 0 ] || { echo "$output $stderr"; return 1; }
    diff <(echo "${output%$'\n'*}") - <<'END'
Some(7) "hello\n" "to stderr\n"
"/tmp\nnobody\ns e=cret\n-----BEGIN KEY-----\nsecret\n\n"
"BYTES IN"
127 msb-exec: "no-such-program": not found in the guest's PATH
the command wrote more than 1000 bytes (set output_limit, or read its output with exec_stream)
timed out: true
Some("one")
Some("two")
None Some(0)
"got it\n" Some(3)
killed by Some(9)
from the guest
commands running
commands
END
    [[ ${lines[-1]} == msb-exec:*commands* ]]
    vm_assert_nothing
}

@test "Rust: an ephemeral sandbox ends with its handle and with its process, and another one stays" {
    [ "$("$examples/lifetime" drop alpine)" = 'in the VM' ]
    vm_await_nothing
    vm_await is_empty "$MSB_HOME/sandboxes"
    mkfifo up
    "$examples/lifetime" hold alpine >up 3>&- &
    pid=$!
    read -r line <up
    [ "$line" = up ]
    kill -KILL "$pid"
    vm_await_nothing
    [ "$("$examples/lifetime" leave alpine)" = 'msb-exec lifetime -- sh' ]
    [ "$(msb-exec lifetime -- hostname)" = lifetime ]
    # The name is in use now.
    run --separate-stderr "$examples/lifetime" drop alpine
    [ "$status" = 1 ]
    [[ $stderr == *msb-boot:*lifetime* ]] || { echo "$stderr"; return 1; }
    [ "$(msb-exec lifetime -- hostname)" = lifetime ]
    msb-stop -q lifetime >stopped.json
    vm_assert_nothing
}

@test "Rust: a dropped future leaves no VM at any moment of a boot" {
    for time in 1 200 1000 2500; do
        "$examples/lifetime" cancel alpine "$time"
        vm_await_nothing
    done
}

@test "Rust: an error has what the tool said" {
    run --separate-stderr "$examples/commands" no/such/image
    [ "$status" = 1 ]
    [[ $stderr == *'msb-pull: '*nowhere* ]] || { echo "$stderr"; return 1; }
    rm cert.pem
    run --separate-stderr "$examples/patches"
    [[ $stderr == *'msb-patch: op 5: copy_file'*'./cert.pem'* ]] || { echo "$stderr"; return 1; }
    rm "$MSB_BIN/msb-boot"
    run --separate-stderr "$examples/scripts"
    [[ $stderr == *'NoTool { tool: "msb-boot"'* ]] || { echo "$stderr"; return 1; }
    vm_assert_nothing
}

# bats test_tags=slow
@test "Rust: every example in the documentation runs" {
    # What the guest of an example has.
    mkdir -p "$vm_root"/{app,src,srv} "$vm_root/var/log"
    touch "$vm_root/var/log/app" app.conf
    mkdir src site
    printf '#!/bin/sh\n[ "$*" != "-c print(6 * 7)" ] || echo $((6 * 7))\n' >"$vm_root/bin/python3"
    printf '#!/bin/sh\nexec sleep 600\n' >"$vm_root/bin/nginx"
    for program in make cc git deploy; do printf '#!/bin/sh\necho "%s $* in $PWD"\n' "$program" >"$vm_root/bin/$program"; done
    chmod +x "$vm_root"/bin/{nginx,make,cc,git,deploy}
    run --separate-stderr "$examples/documented"
    [ "$status" = 0 ] || { echo "$output $stderr"; return 1; }
    grep -A1 '^hello from worker$' <<<"$output" | diff - <(printf '%s\n' 'hello from worker' 'Patched before boot.')
    grep -c '^ok ' <<<"$output"
    vm_assert_nothing
}

@test "Python: the program of the documentation runs scripts, applies patches and hands PID 1 to an init" {
    run --separate-stderr python3 "$python/examples/page.py"
    # msb-boot adds lines to hosts(5).
    [[ $output == "$scripts"$'\n'"$patched"$'\n'*busybox ]] || { echo "$output $stderr"; return 1; }
    vm_assert_nothing
}

@test "Python: commands have status, output, options, limits, streams and signals, and a context manager ends the VM" {
    run --separate-stderr python3 "$python/examples/commands.py" alpine
    [ "$status" = 0 ] || { echo "$output $stderr"; return 1; }
    diff <(echo "$output") - <<'END'
7 'hello\n' 'to stderr\n'
'/tmp\nnobody\ns e=cret\n-----BEGIN KEY-----\nsecret\n\n'
b'BYTES IN'
127 msb-exec: "no-such-program": not found in the guest's PATH
the command wrote more than 1000 bytes (set output_limit, or read its output with exec_stream)
timed out: True
b'one\n'
b'two\n'
ExitStatus(code=0, signal=None, timed_out=False)
{'stdout': b'out\n', 'stderr': b'err\n'} exited 3
b'got it\n' 3
killed by 9
cancelled
from the guest
commands running
commands
msb-exec
END
    vm_assert_nothing
}

@test "Python: an ephemeral sandbox ends with its process" {
    mkfifo up
    python3 "$python/examples/lifetime.py" hold alpine >up 3>&- &
    pid=$!
    read -r line <up
    [ "$line" = up ]
    kill -KILL "$pid"
    vm_await_nothing
    vm_await is_empty "$MSB_HOME/sandboxes"
}

@test "Python: a cancelled task leaves no VM at any moment of a boot" {
    for time in 300 1500; do
        python3 "$python/examples/lifetime.py" cancel alpine "$time"
        vm_await_nothing
    done
}

# bats test_tags=slow
@test "Python: every example in the documentation runs" {
    # What the guest of an example has.
    mkdir -p "$vm_root"/{app,src}
    printf '#!/bin/sh\n[ "$*" != "-c print(6 * 7)" ] || echo $((6 * 7))\n' >"$vm_root/bin/python3"
    printf '#!/bin/sh\necho "made in $PWD"\n' >"$vm_root/bin/make"
    chmod +x "$vm_root/bin/make"
    run --separate-stderr python3 "$BATS_TEST_DIRNAME/docstrings.py" "$python/README.md"
    [ "$status" = 0 ] || { echo "$output $stderr"; return 1; }
    for program in msb_sandbox README; do
        grep -B2 "^ok $program$" <<<"$output" | diff - <(printf '%s\n' 'hello from worker' 'Patched before boot.' "ok $program")
    done
    grep -x 'worker running' <<<"$output"
    vm_assert_nothing
}

@test "Python: the package's own tests pass" {
    cd "$python"
    python3 -m unittest discover -q -s tests -t .
}
