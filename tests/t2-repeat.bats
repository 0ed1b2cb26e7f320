#!/usr/bin/env bats
# msb-patch again and again: the same operations give the same bytes, what is so already stays, and what it says in advance is
# what it does.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats sets variables
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/patch.bash"
    patch_setup
}

teardown() {
    patch_teardown
    ! mountpoint -q small || umount small
}

# Operations that ask for a state, and so may be asked for twice. One of each kind that can.
state_ops() {
    mkdir -p tree/sub
    echo one >tree/one
    ln tree/one tree/sub/hard
    ln -s one tree/soft
    head -c 300000 /dev/urandom >big
    cat >ops.jsonl <<'END'
{"op":"text","path":"/etc/motd","content":"hi\n","mode":"0600","uid":3,"replace":true}
{"op":"text","path":"/etc/shadow","content":"root:*:1::::::\n","replace":true}
{"op":"file","path":"/usr/bin/data","content_base64":"AAH/","replace":true}
{"op":"mkdir","path":"/app/data","mode":"0700","gid":9}
{"op":"mkdir","path":"/etc","mode":"0755"}
{"op":"copy_file","src":"big","dst":"/app/big","replace":true}
{"op":"copy_dir","src":"tree","dst":"/srv/tree","replace":true}
{"op":"symlink","target":"/usr/bin","link":"/app/bin","replace":true}
{"op":"remove","path":"/var/cache"}
{"op":"remove","path":"/nothing"}
{"op":"script","name":"setup","content":"#!/bin/sh\n"}
END
}

# everything DIR: each fact about a tree, inode numbers included, but for change times, which a hardlink that comes and goes sets.
everything() {
    find "$1" -printf '%p %i %y %m %U %G %s %n %T@ %l\n' | sort
}

@test "the same operations that ask for a state change nothing the second time, so that make can depend on the upper" {
    state_ops
    msb-patch -r image.json -f ops.jsonl >first.json
    upper=$(jq -r .upper.dir first.json)
    everything "$upper" >before
    msb-patch -r first.json -f ops.jsonl --report report >second.json
    diff <(jq -S . first.json) <(jq -S . second.json)
    diff before <(everything "$upper")
    [ "$(jq -r .action report | sort -u)" = nothing ]
    # One that is another now is the only one that changes.
    sed -i '1s/hi/ho/' ops.jsonl
    msb-patch -r first.json -f ops.jsonl --report report >third.json
    [ "$(jq -c 'select(.action != "nothing") | [.n, .action]' report)" = '[1,"replace"]' ]
    [ "$(cat "$upper/etc/motd")" = ho ]
}

@test "what a replaced file had, and an operation does not ask for, needs no change; what it asks for does" {
    patch '{"op":"text","path":"/etc/motd","content":"x","mode":"0640","uid":5,"gid":6,"replace":true}'
    for members in '' ',"mode":"0640"' ',"uid":5' ',"mode":"0640","uid":5,"gid":6'; do
        echo '{"op":"text","path":"/etc/motd","content":"x","replace":true'"$members"'}' | msb-patch -n -r patched.json -f - >said
        jq -e '.action == "nothing"' said
    done
    for members in ',"mode":"0644"' ',"uid":0' ',"gid":5'; do
        echo '{"op":"text","path":"/etc/motd","content":"x","replace":true'"$members"'}' | msb-patch -n -r patched.json -f - >said
        jq -e '.action == "replace"' said
    done
    for content in '' xx y; do
        echo '{"op":"text","path":"/etc/motd","content":"'$content'","replace":true}' | msb-patch -n -r patched.json -f - >said
        jq -e '.action == "replace"' said
    done
}

@test "with SOURCE_DATE_EPOCH the same record and operations give uppers of the same bytes" {
    state_ops
    mkdir -p bottom/var/cache2
    printf '%s\n' '{"op":"append","path":"/etc/hosts","content":"more\n"}' '{"op":"remove","path":"/var/cache2"}' '{"op":"mkdir","path":"/var/cache2"}' >>ops.jsonl
    export SOURCE_DATE_EPOCH=1700000000
    for try in one two; do
        msb-patch -r image.json -f ops.jsonl --upper "$PWD/upper-$try" >"$try.json"
        tar --sort=name --xattrs --xattrs-include='*' --format=pax --pax-option=delete=atime,delete=ctime -C "upper-$try/upper" -cf "$try.tar" .
        sleep 1.1
    done
    cmp one.tar two.tar
    # Whiteouts and opaque directories too; what was there keeps its own.
    [ "$(cd upper-one/upper && stat -c %Y app app/big app/bin srv/tree/one var/cache var/cache2 | sort -u)" = 1700000000 ]
    [ "$(stat -c %Y upper-one/upper/etc upper-one/upper/etc/hosts | sort -u)" = 1000000 ]
    [ "$(stat -c %y upper-one/upper)" = "$(stat -c %y top)" ]
}

@test "-n says what each operation would do, and every error, and changes nothing" {
    cat >ops.jsonl <<'END'
{"op":"text","path":"/bin/new","content":"12345"}
{"op":"text","path":"/etc/motd","content":""}
{"op":"chmod","path":"/etc/motd"}
{
  "op": "mkdir",
  "path": "/etc", "mode": 755
}
{"op":"append","path":"/bin/new","content":"678"}
{"op":"symlink","link":"/bin/tar","target":"new","replace":true}
{"op":"remove","path":"/var/cache"}
{"op":"copy_file","src":"image.json","dst":"/var/cache/apt/record"}
{"op":"mkdir","path":"/etc","mode":"0700"}
{"op":"remove","path":"/none"}
END
    base >before
    run --separate-stderr msb-patch -n -r image.json -f ops.jsonl
    [ "$status" -eq 1 ]
    size=$(stat -c %s image.json)
    diff <(jq -c 'if .error then [.n, .op, .path, (.error | length > 0)] else [.n, .op, .resolved, .exists, .layer, .action, .bytes] end' <<<"$output") - <<END
[1,"text","/usr/bin/new",false,null,"create",5]
[2,"text","/etc/motd",true]
[3,null,null,true]
[4,null,null,true]
[5,"append","/usr/bin/new",true,"upper","append",3]
[6,"symlink","/usr/bin/tar",true,"lower 1","replace",0]
[7,"remove","/var/cache",true,"lower 1","remove",0]
[8,"copy_file","/var/cache/apt/record",false,null,"create",$size]
[9,"mkdir","/etc",true,"lower 0","set",0]
[10,"remove","/none",false,null,"nothing",0]
END
    diff - <(printf '%s\n' "$stderr") <<'END'
msb-patch: op 2: text "/etc/motd": exists in the image (set "replace": true to overwrite it)
msb-patch: op 3, line 3: unknown operation `chmod`, expected one of `text`, `file`, `mkdir`, `append`, `copy_file`, `copy_dir`, `symlink`, `remove`, `script`
msb-patch: op 4, line 4: member "mode": a quoted octal number is expected, as in "0644"
msb-patch: 3 of 10 operations would fail
END
    diff before <(base)
    [ -z "$(sandboxes)" ]
}

@test "--report has the lines of -n for a real run, and the line of the operation that failed" {
    printf '%s\n' '{"op":"text","path":"/a","content":"12"}' '{"op":"copy_dir","src":"top","dst":"/top"}' >ops.jsonl
    msb-patch -n -r image.json -f ops.jsonl >said
    msb-patch -r image.json -f ops.jsonl --report report >patched.json
    diff said report
    jq -e 'select(.n == 2) | .bytes == '"$(stat -c %s top/etc/hosts)" report
    echo '{"op":"remove","path":"/"}' >>ops.jsonl
    run msb-patch -r image.json -f ops.jsonl --report report
    [ "$status" -eq 1 ]
    [ "$(jq -c '[.n, .error != null]' report)" = $'[1,false]\n[2,false]\n[3,true]' ]
    run --separate-stderr msb-patch -r image.json -f ops.jsonl --report -
    [ "$status" -eq 1 ]
    [[ $stderr == *'report: stdout has the record (name a file)' ]]
    [ -z "$(find . -maxdepth 1 -name '.report*')" ]
    # To a pipe, as shells give one.
    msb-patch -r image.json -f <(head -n 1 ops.jsonl) --report >(cat >piped) >patched.json
    timeout 5 sh -c 'until [ -s piped ]; do sleep 0.01; done'
    jq -e '.path == "/a"' piped
}

@test "killed at 300 moments, it leaves the old upper or the new one, and the next run succeeds" {
    head -c 30000 /dev/urandom >big
    patch '{"op":"text","path":"/a","content":"old"}'
    upper=$(jq -r .upper.dir patched.json)
    for i in $(seq 60); do
        printf '{"op":"copy_file","src":"big","dst":"/d%s/f","replace":true}\n{"op":"mkdir","path":"/m%s"}\n' "$i" "$i"
    done >grow.jsonl
    echo '{"op":"text","path":"/a","content":"new","replace":true}' >>grow.jsonl
    { for i in $(seq 60); do printf '{"op":"remove","path":"/d%s"}\n{"op":"remove","path":"/m%s"}\n' "$i" "$i"; done
        echo '{"op":"text","path":"/a","content":"old","replace":true}'; } >shrink.jsonl
    start=${EPOCHREALTIME/./}
    msb-patch -r patched.json -f grow.jsonl >/dev/null
    msb-patch -r patched.json -f shrink.jsonl >/dev/null
    both=$((${EPOCHREALTIME/./} - start))
    state=old olds=0 news=0
    for moment in $(seq 300); do
        list=grow.jsonl
        [ "$state" = old ] || list=shrink.jsonl
        # From nothing to a little more than either takes.
        delay=$((RANDOM * both * 3 / 4 / 32768))
        timeout --foreground -s KILL "$(printf '%d.%06d' $((delay / 1000000)) $((delay % 1000000)))" msb-patch -r patched.json -f "$list" >/dev/null || true
        count=$(find "$upper" -mindepth 1 | wc -l)
        case $(cat "$upper/a") in
            old) [ "$count" = 1 ] && state=old && olds=$((olds + 1)) ;;
            new) [ "$count" = 181 ] && state=new && news=$((news + 1)) ;;
            *) false ;;
        esac || { echo "at moment $moment: $count files"; return 1; }
    done
    echo "old: $olds, new: $news"
    [ "$olds" -gt 10 ]
    [ "$news" -gt 10 ]
    msb-patch -r patched.json -f grow.jsonl >/dev/null
    [ "$(cat "$upper/a")" = new ]
    [ -z "$(ls -A "$upper/../work")" ]
}

@test "an upper that cannot be written, and a full disk, leave the old state" {
    mkdir small
    mount -t tmpfs -o size=1M none small
    msb-patch -r image.json --upper "$PWD/small/upper" -f <(echo '{"op":"text","path":"/a","content":"old"}') >patched.json
    everything small/upper/upper >before
    head -c 2000000 /dev/urandom >big
    for op in '{"op":"copy_file","src":"big","dst":"/big"}' '{"op":"append","path":"/a","content":"'"$(head -c 1500000 /dev/zero | tr '\0' x)"'"}'; do
        run --separate-stderr msb-patch -r patched.json -f - <<<"$op"
        [ "$status" -eq 1 ]
        [[ $stderr == *'No space left on device'* ]]
        diff before <(everything small/upper/upper)
    done
    mount -o remount,ro small
    run --separate-stderr msb-patch -r patched.json -f - <<<'{"op":"remove","path":"/a"}'
    [ "$status" -eq 1 ]
    [[ $stderr == *'Read-only file system'* ]]
    diff before <(everything small/upper/upper)
}

@test "a million operations take the memory of a few, and a 2 GiB file that of none" {
    # peak COMMAND…: the most memory that it had, in KiB.
    peak() {
        python3 -c 'import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, close_fds=False)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)' "$@"
    }
    # Mostly parsing: they ask for what is so.
    yes '{"op":"mkdir","path":"/etc"}' | head -n 1000000 >ops.jsonl
    few=$(peak msb-patch -r image.json -f <(head -n 10 ops.jsonl))
    many=$(peak msb-patch -r image.json -f ops.jsonl)
    truncate -s 2G huge
    echo end >>huge
    copy=$(peak msb-patch -r image.json -f <(echo '{"op":"copy_file","src":"huge","dst":"/huge"}'))
    echo "few: $few, many: $many, copy: $copy"
    [ "$many" -lt $((few + 2048)) ]
    [ "$copy" -lt $((few + 4096)) ]
    [ "$many" -lt 16384 ]
}

@test "an interrupt in the middle ends a run within a moment, and nothing of it is left" {
    before=$(find "$MSB_HOME" 2>/dev/null | sort)
    mkfifo ops
    exec {held}<>ops
    fallocate -l 3G large
    copy=$(jq -nc --arg src "$PWD/large" '{op: "copy_file", src: $src, dst: "/large"}')
    for op in '{"op":"text","path":"/etc/new","content":"new"}' "$copy"; do
        for signal in INT TERM HUP; do
            env --default-signal=INT msb-patch -r image.json -f - <ops >out.json 2>err 3>&- &
            patch=$!
            echo "$op" >&"$held"
            # It has begun, and waits for more operations or copies.
            until [ -n "$(find "$MSB_HOME/sandboxes" -path '*/.*' \( -path '*/etc/new' -o -name large -size +0 \) 2>/dev/null)" ]; do
                kill -0 "$patch"
                sleep 0.01
            done
            kill -"$signal" "$patch"
            status=0
            wait "$patch" || status=$?
            [ "$status" -eq $((128 + $(kill -l "$signal"))) ] || { echo "$op $signal: $status"; cat err; return 1; }
            [ "$(cat err)" = 'msb-patch: interrupted' ]
            [ ! -s out.json ]
            [ "$(find "$MSB_HOME" -mindepth 2 -path '*/sandboxes/*')" = "$(grep '/sandboxes/' <<<"$before" || true)" ]
        done
    done
    exec {held}>&-
}
