#!/usr/bin/env bats
# msb-patch run repeatedly: the same operations give the same bytes, existing results are kept, and a dry run predicts
# the real one.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats sets variables
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/patch.bash"
    source "$BATS_TEST_DIRNAME/tree.bash"
    patch_setup
}

teardown() {
    patch_teardown
    ! mountpoint -q small || umount small
}

# Declarative operations, which can be repeated, one of each kind.
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
{"op":"text","path":"/once/text","content":"text"}
{"op":"text","path":"/once/own","content":"text","mode":"0600","uid":3,"gid":4}
{"op":"file","path":"/once/file","content_base64":"AAH/"}
{"op":"copy_file","src":"big","dst":"/once/big","mode":"0755"}
{"op":"copy_dir","src":"tree","dst":"/once/tree"}
{"op":"copy_dir","src":"tree","dst":"/once/mode","mode":"0640","uid":5,"gid":6}
{"op":"symlink","target":"big","link":"/once/link"}
{"op":"hardlink","target":"/once/big","link":"/once/hard"}
{"op":"hardlink","target":"/usr/bin/tar","link":"/once/tar"}
{"op":"append","path":"/etc/hosts","content":"10.0.0.1 once\n","once":true}
{"op":"append","path":"/etc/hosts","content":"10.0.0.2 twice\n","once":true}
{"op":"append","path":"/once/append","content":"made","once":true,"create":true}
{"op":"append","path":"/once/append","content":" and more","once":true,"create":true}
{"op":"edit","path":"/etc/hosts","line":"127.0.0.1 localhost","with":"127.0.0.1 localhost here"}
{"op":"edit","path":"/etc/hosts","regex":"^10\\.0\\.0\\.(\\d) (once|twice)$","with":"10.0.0.$1 $2","count":2}
{"op":"chmod","path":"/once/text","mode":"0711"}
{"op":"chmod","path":"/once/tree/sub","mode":"0700"}
{"op":"chown","path":"/once/file","uid":7,"gid":8}
{"op":"chown","path":"/once/tree","uid":9,"recursive":true}
{"op":"touch","path":"/once/touched"}
{"op":"touch","path":"/once/big","mtime":"2026-01-31T12:00:00.5Z"}
{"op":"touch","path":"/once","mtime":5}
{"op":"xattr","path":"/once","name":"user.note","value":"x"}
{"op":"xattr","path":"/once/text","name":"user.none","remove":true}
{"op":"capability","path":"/once/big","caps":"cap_kill=ep"}
{"op":"rename","from":"/bin","to":"/sbin"}
{"op":"rename","from":"/etc/ssl","to":"/etc/tls"}
END
}

# everything DIR: prints everything about a tree, inode numbers included, but no change times, which a temporary hard link sets.
everything() {
    find "$1" -printf '%p %i %y %m %U %G %s %n %T@ %l\n' | sort
}

@test "declarative operations change nothing the second time, so that make can depend on the upper" {
    state_ops
    msb-patch -r image.json -f ops.jsonl >first.json
    upper=$(jq -r .upper.dir first.json)
    everything "$upper" >before
    msb-patch -r first.json -f ops.jsonl --report report >second.json
    diff <(jq -S . first.json) <(jq -S . second.json)
    diff before <(everything "$upper")
    [ "$(jq -r .action report | sort -u)" = nothing ]
    # Only the file that was modified is changed back.
    sed -i '1s/hi/ho/' ops.jsonl
    msb-patch -r first.json -f ops.jsonl --report report >third.json
    [ "$(jq -c 'select(.action != "nothing") | [.n, .action]' report)" = '[1,"replace"]' ]
    [ "$(cat "$upper/etc/motd")" = ho ]
}

@test "operations whose result a layer has already change nothing" {
    state_ops
    msb-patch -r image.json -f ops.jsonl >first.json
    # The result as a layer below an empty upper.
    jq -c '{msb, scripts, rootfs: {kind: "layers", lower: ([.upper.dir] + .rootfs.lower)}}' first.json >flat.json
    msb-patch -r flat.json -f ops.jsonl --report report >second.json
    jq -c 'select(.action != "nothing")' report >changes
    diff changes /dev/null
    [ -z "$(ls -A "$(jq -r .upper.dir second.json)")" ]
    # A dry run reports the same.
    msb-patch -n -r flat.json -f ops.jsonl >said
    diff said report
}

@test "a different file of the same name is an error without replace, and does not change" {
    mkdir tree
    echo x >tree/x
    touch -d @5 tree/x
    patch '{"op":"text","path":"/text","content":"x","mode":"0640","uid":3}' '{"op":"copy_dir","src":"tree","dst":"/tree"}' '{"op":"symlink","target":"x","link":"/link"}' \
        '{"op":"text","path":"/other","content":"x","mode":"0640","uid":3}'
    for op in '"text","path":"/text","content":"y"' '"text","path":"/text","content":"x","mode":"0600"' '"text","path":"/text","content":"x","uid":0' '"text","path":"/text","content":"x","gid":1' \
        '"file","path":"/text","content_base64":""' '"copy_file","src":"image.json","dst":"/text"' '"copy_file","src":"tree/x","dst":"/tree/x","mode":"0600"' \
        '"copy_dir","src":"tree","dst":"/tree","mode":"0600"' '"copy_dir","src":"tree","dst":"/tree","uid":1' '"symlink","target":"y","link":"/link"' '"hardlink","target":"/other","link":"/text"' \
        '"symlink","target":"x","link":"/text"' '"text","path":"/link","content":""'; do
        run --separate-stderr msb-patch -r patched.json -f - <<<"{\"op\":$op}"
        case $op in
            *'"/link","content"'*) [ "$status" -eq 0 ] ;;
            *) [ "$status" -eq 1 ] && [[ $stderr == *'exists (set "replace": true to overwrite it)' ]] ;;
        esac || { echo "$op: $stderr"; return 1; }
    done
    # Attributes that are not asked for do not matter.
    touch -d @6 tree/x
    chmod 0600 tree/x
    for op in '"text","path":"/text","content":"x"' '"copy_file","src":"tree/x","dst":"/tree/x"' '"copy_dir","src":"tree","dst":"/tree"'; do
        msb-patch -n -r patched.json -f - <<<"{\"op\":$op}" >said
        jq -e '.action == "nothing" or .op == "copy_dir" and .action == "nothing"' said
    done
    # With replace, copy_dir copies what its source has.
    msb-patch -r patched.json -f - <<<'{"op":"copy_dir","src":"tree","dst":"/tree","replace":true}' >again.json
    [ "$(stat -c '%a %Y' "$(jq -r .upper.dir again.json)/tree/x")" = '600 6' ]
}

@test "append with "once" adds only what is not in the file already as whole lines" {
    printf '#one\ntwo' >bottom/etc/list
    { head -c 200000 /dev/zero | tr '\0' x; printf '\nneedle\n'; head -c 200000 /dev/zero | tr '\0' y; } >bottom/etc/long
    patch '{"op":"append","path":"/etc/list","content":"\n","once":true}' '{"op":"append","path":"/etc/list","content":"one\n","once":true}' '{"op":"append","path":"/etc/list","content":"two\n","once":true}' \
        '{"op":"append","path":"/etc/long","content":"needle\n","once":true}' '{"op":"append","path":"/etc/long","content":"eedl","once":true}' '{"op":"append","path":"/etc/long","content":"eedle\n","once":true}'
    show
    [ "$(cat merged/etc/list)" = $'#one\ntwo' ] || [ "$(cat merged/etc/list)" = $'#one\ntwo\none' ]
    [ "$(stat -c %s merged/etc/long)" -eq $(($(stat -c %s bottom/etc/long) + 6)) ]
}

@test "a rename is repeated if its source exists again, and counts as done if it is gone" {
    mkdir -p bottom/srv/dir
    echo x >bottom/srv/dir/file
    printf '%s\n' '{"op":"mkdir","path":"/made/sub"}' '{"op":"text","path":"/made/sub/file","content":"x","mode":"0600"}' '{"op":"rename","from":"/made","to":"/moved"}' \
        '{"op":"text","path":"/a","content":"a"}' '{"op":"rename","from":"/a","to":"/b"}' '{"op":"rename","from":"/srv/dir","to":"/srv/new"}' >ops.jsonl
    msb-patch -r image.json -f ops.jsonl >first.json
    content() { (cd "$1" && find . -printf '%p %y %m %U:%G %s\n' | sort); }
    content "$(jq -r .upper.dir first.json)" >before
    msb-patch -r first.json -f ops.jsonl --report report >second.json
    content "$(jq -r .upper.dir second.json)" | diff before -
    [ "$(jq -r .action report | xargs)" = 'create create rename create rename nothing' ]
    # Not if the existing file differs.
    sed -i 's/"content":"a"/"content":"other"/' ops.jsonl
    run --separate-stderr msb-patch -r first.json -f ops.jsonl
    [ "$status" -eq 1 ]
    [[ $stderr == *'op 5: rename "/a": to "/b": exists (set "replace": true to overwrite it)' ]]
    echo '{"op":"rename","from":"/none","to":"/neither"}' >ops.jsonl
    run --separate-stderr msb-patch -r first.json -f ops.jsonl
    [ "$status" -eq 1 ]
}

@test "--fresh replaces the upper with one of these operations alone, and a failure leaves the old one" {
    patch '{"op":"text","path":"/old","content":"old"}' '{"op":"remove","path":"/etc/motd"}' '{"op":"script","name":"old","content":"old"}' '{"op":"script","name":"both","content":"both"}'
    upper=$(jq -r .upper.dir patched.json)
    printf '%s\n' '{"op":"text","path":"/new","content":"new"}' '{"op":"append","path":"/etc/motd","content":"more\n"}' '{"op":"script","name":"both","content":"both"}' '{"op":"script","name":"new","content":"new"}' >ops.jsonl
    everything "$upper" >before
    for more in '{"op":"append","path":"/none","content":""}' oops; do
        run msb-patch -r patched.json -f <(cat ops.jsonl; echo "$more") --fresh
        [ "$status" -eq 1 ]
        everything "$upper" | diff before -
    done
    msb-patch -n -r patched.json -f ops.jsonl --fresh >said
    [ "$(jq -r '.layer // "-"' said | xargs)" = '- lower 1 - -' ]
    everything "$upper" | diff before -
    [ -z "$(ls -A "$(jq -r .upper.work patched.json)")" ]
    msb-patch -r patched.json -f ops.jsonl --fresh >fresh.json
    [ "$(jq -r .upper.dir fresh.json)" = "$upper" ]
    [ "$(jq -c '.scripts | keys' fresh.json)" = '["both","new"]' ]
    [ "$(jq -r .scripts.both fresh.json)" = "$(jq -r .scripts.both patched.json)" ]
    cp fresh.json patched.json
    show
    [ ! -e merged/old ]
    [ "$(cat merged/new merged/etc/motd)" = $'newold motd\nmore' ]
    umount merged
    # Repeated, the result is the same.
    msb-patch -r fresh.json -f ops.jsonl --fresh >again.json
    [ "$(cat "$upper/etc/motd")" = $'old motd\nmore' ]
    # Without an old upper, and with a mounted one.
    msb-patch -r image.json -f ops.jsonl --fresh --upper "$PWD/mine" >mine.json
    msb-patch -r image.json -f <(head -n 1 ops.jsonl) --fresh --upper "$PWD/mine" >mine.json
    [ "$(ls "$(jq -r .upper.dir mine.json)")" = new ]
    mkdir mounted
    msb-mount -r mine.json mounted >mounted.json
    run --separate-stderr msb-patch -r mine.json -f ops.jsonl --fresh
    msb-mount -u mounted
    [ "$status" -eq 1 ]
    [[ $stderr == *'in use by msb-patch, msb-mount, msb-pack or a running VM'* ]]
    [ "$(ls "$(jq -r .upper.dir mine.json)")" = new ]
    # A missing upper is no error.
    rm -r "$upper"
    msb-patch -r fresh.json -f ops.jsonl --fresh >again.json
    [ "$(cat "$(jq -r .upper.dir again.json)/new")" = new ]
}

@test "attributes that an operation does not ask for cause no change; those that it asks for do" {
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
    # Whiteouts and opaque directories too; existing files keep their times.
    [ "$(cd upper-one/upper && stat -c %Y app app/big app/bin srv/tree/one var/cache var/cache2 | sort -u)" = 1700000000 ]
    [ "$(stat -c %Y upper-one/upper/etc)" = 1000000 ]
    # An append after an edit keeps the edit's time.
    [ "$(stat -c %Y upper-one/upper/etc/hosts)" = 1700000000 ]
    [ "$(stat -c %y upper-one/upper)" = "$(stat -c %y top)" ]
}

@test "-n prints what each operation would do and every error, and changes nothing" {
    cat >ops.jsonl <<'END'
{"op":"text","path":"/bin/new","content":"12345"}
{"op":"text","path":"/etc/motd","content":""}
{"op":"chmodd","path":"/etc/motd"}
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
    # Each error is printed once.
    [ "$stderr" = 'msb-patch: 3 of 10 operations would fail' ]
    diff - <(jq -r 'select(.error) | "\(.line): \(.error)"' <<<"$output") <<'END'
2: op 2: text "/etc/motd": exists in the image (set "replace": true to overwrite it)
3: op 3, line 3: unknown operation `chmodd` (did you mean chmod?)
4: op 4, line 4: member "mode": a quoted octal number is expected, as in "0644"
END
    diff before <(base)
    [ -z "$(sandboxes)" ]
}

@test "--report has the lines of -n for a real run, with the operation that failed" {
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
    # To a pipe, as a shell's process substitution makes one.
    msb-patch -r image.json -f <(head -n 1 ops.jsonl) --report >(cat >piped) >patched.json
    timeout 600 sh -c 'until [ -s piped ]; do sleep 0.01; done'
    jq -e '.path == "/a"' piped
}

@test "the upper is unlocked, with the old one removed, before the record goes into a pipe" {
    patch '{"op":"text","path":"/old","content":"old"}'
    work=$(jq -r .upper.work patched.json)
    # A record larger than a pipe: msb-patch is in the middle of writing it while this test looks.
    head -c 300000 /dev/zero | tr '\0' x | jq -cRs --slurpfile record patched.json '$record[0] + {extra: .}' >large.json
    mkfifo record
    msb-patch -r large.json -f - <<<'{"op":"text","path":"/new","content":"new"}' >record &
    exec 9<record
    read -rN1 -u 9 first
    flock -n "$work" true
    [ -z "$(ls -A "$work")" ]
    { printf %s "$first"; cat <&9; } >again.json
    exec 9<&-
    wait "$!"
    [ "$(jq -r .upper.work again.json)" = "$work" ]
    # A device that takes no record does not stop a failed run from restoring the old state.
    run --separate-stderr bash -c 'msb-patch -r again.json -f - <<<"$1" >/dev/full' sh '{"op":"text","path":"/third","content":"x"}'
    [ "$status" -eq 1 ]
    cp again.json patched.json
    show
    [ "$(cat merged/old merged/new)" = oldnew ]
    [ ! -e merged/third ]
    umount merged
}

# make test-kill has more moments.
# bats test_tags=kill
@test "killed at many moments, msb-patch leaves the old upper or the new one, and the next run succeeds" {
    moments=${MSB_KILLS:-60}
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
    for moment in $(seq "$moments"); do
        list=grow.jsonl
        [ "$state" = old ] || list=shrink.jsonl
        # From 0 to a little more than either list takes.
        delay=$((RANDOM * both * 3 / 4 / 32768))
        # The machine may have become slower since it was timed: every tenth run is not killed.
        ((moment % 10)) || delay=0
        timeout --foreground -s KILL "$(printf '%d.%06d' $((delay / 1000000)) $((delay % 1000000)))" msb-patch -r patched.json -f "$list" >/dev/null || true
        count=$(find "$upper" -mindepth 1 | wc -l)
        case $(cat "$upper/a") in
            old) [ "$count" = 1 ] && state=old && olds=$((olds + 1)) ;;
            new) [ "$count" = 181 ] && state=new && news=$((news + 1)) ;;
            *) false ;;
        esac || { echo "at moment $moment: $count files"; return 1; }
    done
    echo "old: $olds, new: $news"
    [ "$olds" -gt $((moments / 30)) ]
    [ "$news" -gt $((moments / 30)) ]
    msb-patch -r patched.json -f grow.jsonl >/dev/null
    [ "$(cat "$upper/a")" = new ]
    [ -z "$(ls -A "$upper/../work")" ]
}

@test "an upper with many files becomes what a small one becomes, and the record that cannot be written restores it" {
    cat >first <<'END'
{"op":"text","path":"/etc/motd","content":"first\n","replace":true}
{"op":"text","path":"/srv/dir/in/file","content":"in\n"}
{"op":"text","path":"/srv/one","content":"one\n"}
{"op":"hardlink","target":"/srv/one","link":"/srv/dir/two"}
{"op":"hardlink","target":"/srv/one","link":"/srv/three"}
{"op":"symlink","target":"one","link":"/srv/link"}
{"op":"remove","path":"/var/cache"}
{"op":"mkdir","path":"/srv/gone/deep"}
{"op":"xattr","path":"/srv/dir","name":"user.a","value":"b"}
END
    cat >second <<'END'
{"op":"append","path":"/srv/dir/two","content":"more\n"}
{"op":"rename","from":"/srv/dir","to":"/opt/moved"}
{"op":"chmod","path":"/opt/moved/in/file","mode":"0600"}
{"op":"remove","path":"/srv/gone"}
{"op":"remove","path":"/etc/motd"}
{"op":"mkdir","path":"/etc/motd"}
{"op":"text","path":"/var/cache/new","content":"new\n"}
{"op":"chown","path":"/srv","uid":5,"gid":6}
{"op":"rename","from":"/srv/link","to":"/srv/moved"}
{"op":"text","path":"/bin/tool","content":"tool\n"}
{"op":"remove","path":"/etc/ssl"}
END
    mkdir many
    (cd many && seq 1200 | xargs touch)
    export SOURCE_DATE_EPOCH=1000000
    msb-patch -r image.json -f first -o patched.json
    msb-patch -r patched.json -f second -o patched.json
    show
    touch -d @1000000 merged
    tree_manifest merged >small
    umount merged
    (cat first; echo '{"op":"copy_dir","src":"many","dst":"/bulk"}') | msb-patch -r image.json -f - -o patched.json
    upper=$(jq -r .upper.dir patched.json)
    bulk=$(stat -c %i "$upper/bulk")
    everything "$upper" >before
    run ! msb-patch -r patched.json -f second -o /dev/full
    diff before <(everything "$upper")
    [ -z "$(ls -A "$upper/../work")" ]
    msb-patch -n -r patched.json -f second >dry
    diff before <(everything "$upper")
    msb-patch -r patched.json -f second --report report -o patched.json
    [ "$(jq -c '[.op, .layer, .action]' dry)" = "$(jq -c '[.op, .layer, .action]' report)" ]
    # It was not copied.
    [ "$(stat -c %i "$upper/bulk")" = "$bulk" ]
    [ -z "$(ls -A "$upper/../work")" ]
    show
    rm -r merged/bulk
    touch -d @1000000 merged
    diff small <(tree_manifest merged)
    umount merged
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

# bats test_tags=slow
@test "a million operations take the memory of a few, and a 2 GiB file that of none" {
    # peak COMMAND…: prints its peak memory, in KiB.
    peak() {
        python3 -c 'import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, close_fds=False)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)' "$@"
    }
    # Mostly parsing: the directory exists.
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

@test "an interrupted run ends at once and leaves nothing" {
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
            # It has started, and waits for more operations or is copying.
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
