#!/usr/bin/env bats
# A terminal in the guest connected to one here: full-screen programs, keys, sizes, job control and detaching. tmux is the
# terminal.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; the guest's shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/exec.bash"

setup_file() {
    exec_root
    seq 500 >"$vm_root/tmp/numbers"
    exec_boot -c 2
}

setup() {
    cd "$BATS_TEST_TMPDIR" || return
    # This test's own servers, one for each terminal.
    export TMUX_TMPDIR=$BATS_TEST_TMPDIR
    unset TMUX
    terminals=0
}

teardown() {
    tmux kill-server 2>/dev/null || true
    vm_show_logs
}

tmux() { command tmux -L "terminal-$terminals" "$@"; }

# terminal COMMAND: runs it in a new terminal of 80 by 24, and prints "ended STATUS" after it. An earlier terminal is closed.
terminal() {
    [ "$terminals" = 0 ] || tmux kill-server
    terminals=$((terminals + 1))
    tmux -f /dev/null new-session -d -x 80 -y 24 "PS1=; $1; echo \"ended \$?\"; stty -a | grep -o -- '-\\?icanon'; exec cat"
}

screen() { tmux capture-pane -p; }

# type_in KEYS…: sends keys, by tmux's names.
type_in() { tmux send-keys "$@"; }

shows_now() { screen | grep -qF -- "$1"; }

# shows TEXT: waits until the screen shows it.
shows() {
    vm_await shows_now "$1" || { screen; return 1; }
}

@test "on a terminal the command gets one with the same TERM, colours and size; with -T it gets none" {
    terminal 'TERM=screen COLORTERM=truecolor msb-exec -- sh -c "tty; echo \$TERM \$COLORTERM; stty size"'
    shows 'ended 0'
    shows /dev/pts/
    shows 'screen truecolor'
    shows '24 80'
    # The terminal is restored.
    shows icanon
    if screen | grep -e -icanon; then return 1; fi
    terminal 'msb-exec -T -- sh -c "tty; echo [\$TERM]"'
    shows 'not a tty'
    shows '[]'
    # None if only one side is a terminal.
    terminal 'msb-exec -- tty | cat; msb-exec -- tty < /dev/null'
    shows 'ended 1'
    [ "$(screen | grep -c 'not a tty')" = 2 ]
}

@test "Ctrl-C interrupts the command and not msb-exec, Ctrl-D is end of file, and Ctrl-\\ quits the command" {
    terminal 'msb-exec -- sh'
    type_in 'sleep 5000' Enter
    exec_await exec_has 1 sleep
    type_in C-c
    type_in 'echo st''atus $?' Enter
    shows 'status 130'
    type_in cat Enter
    # What is typed before the shell has left its raw mode is no line, and no end of file.
    exec_await in_front cat
    type_in typed Enter
    type_in C-d
    type_in 'echo ca''t $?' Enter
    shows 'cat 0'
    type_in 'sleep 5000' Enter
    exec_await exec_has 1 sleep
    type_in 'C-\'
    type_in 'echo qu''it $?' Enter
    shows 'quit 131'
    type_in 'exit 6' Enter
    shows 'ended 6'
    shows icanon
}

# in_front NAME: whether a process of that name is in the foreground: keys typed earlier go to the shell.
in_front() {
    msb-exec -- sh -c 'cat /proc/[0-9]*/stat' 2>/dev/null |
        awk -v name="($1)" '$2 == name && $5 == $8 { found = 1 } END { exit !found }'
}

@test "job control works: jobs stop, go to the background and come back" {
    terminal 'msb-exec -- sh'
    type_in 'sleep 5001' Enter
    exec_await in_front sleep
    type_in C-z
    shows Stopped
    type_in bg Enter
    type_in jobs Enter
    shows Running
    type_in fg Enter
    exec_await in_front sleep
    type_in C-c
    type_in 'echo ba''ck $?' Enter
    shows 'back 130'
    type_in 'exit 3' Enter
    shows 'ended 3'
}

@test "a change of the terminal's size reaches the command" {
    terminal 'msb-exec -- sh -c "trap \"stty size\" WINCH; stty size; while :; do sleep 0.1; done"'
    shows '24 80'
    tmux resize-window -x 100 -y 30
    shows '30 100'
    tmux resize-window -x 61 -y 17
    shows '17 61'
    type_in C-c
    shows 'ended 130'
}

@test "vi edits a file, less shows one, top draws, and each leaves the terminal as it was" {
    terminal 'msb-exec -- vi /tmp/edited'
    shows '~'
    type_in i 'first line' Enter 'second' Escape
    shows 'first line'
    type_in ':wq' Enter
    shows 'ended 0'
    [ "$(msb-exec -- cat /tmp/edited)" = $'first line\nsecond' ]
    terminal 'msb-exec -- less /tmp/numbers'
    shows 22
    type_in Space
    shows 44
    type_in G
    shows 500
    type_in q
    shows 'ended 0'
    shows icanon
    terminal 'msb-exec -- top -d 1'
    shows 'Mem:'
    shows agentd
    type_in q
    shows 'ended 0'
    shows icanon
}

# is_attached ID: whether a caller is attached to the command.
is_attached() { msb-exec --list 2>/dev/null | jq -es --argjson id "$1" '.[] | select(.id == $id) | .attached'; }

@test "the detach keys leave the command running, and --attach returns to it" {
    terminal 'msb-exec -- sh; msb-exec --list | jq -r ".id" | tail -n 1 > id'
    type_in 'echo he''re' Enter
    shows here
    type_in 'sleep 5002; echo do''ne' Enter
    exec_await exec_has 1 sleep
    type_in C-p
    type_in C-q
    shows 'goes on without you'
    shows 'ended 0'
    shows icanon
    [ "$(exec_count sleep)" = 1 ]
    terminal 'msb-exec --attach $(cat id)'
    exec_await is_attached "$(cat id)"
    type_in C-c
    type_in 'echo re''turned' Enter
    shows returned
    type_in 'exit 8' Enter
    shows 'ended 8'
    shows icanon
    # Other detach keys, or none.
    terminal 'msb-exec --detach-keys "" -- sh -c "stty -icanon -echo -ixon min 2; head -c 2 | od -An -tx1"'
    exec_await exec_has 1 head
    type_in C-p
    type_in C-q
    shows '10 11'
    terminal 'msb-exec --detach-keys x,y -- sleep 5003'
    exec_await exec_has 1 sleep
    type_in x
    type_in y
    shows 'ended 0'
    msb-exec -- killall sleep
}

@test "the first of the detach keys reaches the command if pressed alone, and the keys still work" {
    terminal 'msb-exec -- sh -c "stty raw -echo; echo up; dd bs=1 count=1 2>/dev/null | od -An -tx1; stty sane; sleep 5006"'
    shows up
    type_in C-p
    shows ' 10'
    # The first key has been passed on; the second may still come at any time.
    exec_await exec_has 1 sleep
    type_in C-p
    sleep 1
    type_in C-q
    shows 'goes on without you'
    shows 'ended 0'
    msb-exec -- killall sleep
}

@test "the detach keys work while the command reads no input, and after it closed its input" {
    # A command with a closed stdin, and one that reads nothing while more is typed than its credit.
    terminal 'msb-exec -- sh -c "exec 0<&- ; stty raw -echo </dev/tty; echo up; sleep 5007"'
    shows up
    type_in words
    type_in C-p
    type_in C-q
    shows 'goes on without you'
    shows icanon
    msb-exec -- killall sleep
}

@test "--attach to a command without a terminal keeps line editing: Ctrl-C is a signal, the detach keys work, and the terminal is restored" {
    id=$(msb-exec -d -i -- sh -c 'trap "echo interrupted" INT; echo up; while read -r line || [ $? -gt 128 ]; do echo "got $line"; done; echo over; sleep 5008' | jq .id)
    terminal "stty -a | md5sum >before; msb-exec --attach $id; stty -a | md5sum >after"
    shows up
    type_in 'a lyne' BSpace BSpace BSpace 'ine' Enter
    shows 'got a line'
    type_in C-p
    type_in C-q
    shows 'goes on without you'
    exec_await test -s after
    cmp before after
    # Again with a command whose stdin is /dev/null: the guest accepts no input at all.
    deaf=$(msb-exec -d -- sh -c 'echo deaf; trap "echo interrupted; exit 7" INT; while :; do sleep 0.1; done' | jq .id)
    terminal "msb-exec --attach $deaf"
    shows deaf
    type_in words Enter
    type_in C-p
    type_in C-q
    shows 'ended 0'
    terminal "msb-exec --attach $deaf"
    exec_await is_attached "$deaf"
    type_in C-c
    shows interrupted
    shows 'ended 7'
    shows icanon
    # End of file reaches the command, and the detach keys still work.
    terminal "msb-exec --attach $id"
    exec_await is_attached "$id"
    type_in C-d
    shows over
    type_in C-p
    type_in C-q
    shows 'goes on without you'
    msb-exec -- killall sleep
}

# job_control: starts an interactive shell with msb-exec in the foreground: its process ID is in $client, its terminal in $tty.
job_control() {
    terminal 'exec bash --norc --noprofile -i'
    type_in 'PS1=; stty -a >cooked; msb-exec -- sh -c "stty -echo; echo \$((1 + 1)) up; read -r line; echo got \$line; sleep 5009"' Enter
    # What was typed is on the screen too, and has another text.
    shows '2 up'
    client=$(pgrep -f '^msb-exec -- sh -c stty')
    tty=$(readlink "/proc/$client/fd/0")
}

@test "a stopped msb-exec restores the terminal, and takes it again in the foreground" {
    job_control
    is_raw() { stty -a <"$tty" | grep -q -- '-opost'; }
    is_cooked() { ! is_raw; }
    for signal in TSTP STOP; do
        exec_await is_raw
        kill -s "$signal" "$client"
        # The shell reports the stop, and its terminal modes are back.
        shows Stopped
        exec_await is_cooked
        type_in 'clear; echo he''re' Enter
        shows here
        type_in fg Enter
        exec_await is_raw
    done
    type_in 'typed' Enter
    shows 'got typed'
    type_in C-c
    exec_await is_cooked
    type_in 'echo st''atus $?; stty -a | cmp - cooked && echo sa''me' Enter
    shows 'status 130'
    shows same
}

@test "printf abc | msb-exec -t -- cat ends, as with a newline, without a byte, and with ^D in it" {
    for input in abc 'abc\n' '' 'abc\004' 'a\004b'; do
        # shellcheck disable=SC2059 # escapes
        # Input that comes before the echo is off is echoed.
        : >out
        { until grep -q ready out; do sleep 0.02; done; printf "$input"; } |
            timeout 120 msb-exec -t -- sh -c 'stty -echo; echo ready; cat' >out
        # shellcheck disable=SC2059 # escapes
        [ "$(tr -d '\r' <out)" = "$(printf "ready\n$input" | tr -d '\004')" ] || { echo "$input"; od -c out; false; }
    done
}

@test "the terminal is restored if msb-exec is killed, and if its VM ends" {
    terminal 'msb-exec -- sleep 5004'
    exec_await exec_has 1 sleep
    kill -TERM "$(pgrep -f '^msb-exec -- sleep 5004')"
    shows 'ended 143'
    shows icanon
    if screen | grep -e -icanon; then return 1; fi
    terminal 'msb-exec -- sh -c "trap \"\" TERM HUP; echo deaf; while :; do sleep 0.1; done"'
    shows deaf
    pid=$(pgrep -f '^msb-exec -- sh -c trap.*deaf')
    # An impatient user asks repeatedly; the first signals reach the command, which ignores them. Those in quick succession count as one.
    while kill -TERM "$pid" 2>/dev/null; do sleep 0.2; done
    shows 'ended 143'
    shows icanon
    if screen | grep -e -icanon; then return 1; fi
    vm_boot brief
    terminal "msb-exec -r $BATS_TEST_TMPDIR/brief.json -- sh -c 'echo ready; sleep 5005'"
    shows ready
    vm_kill "$BATS_TEST_TMPDIR/brief.json"
    shows 'ended 1'
    shows icanon
    if screen | grep -e -icanon; then return 1; fi
}
