#!/usr/bin/env bats
# Help texts, manual pages, the schema; and that the tools do not depend on one another.

bats_require_minimum_version 1.5.0

setup() {
    root=$(cd "$BATS_TEST_DIRNAME/.." && pwd)
    PATH="$root/target/release:$PATH"
    tools=(msb msb-run msb-pull msb-patch msb-mount msb-boot msb-exec msb-cp msb-pack msb-diff msb-stop msb-snapshot msb-fork msb-ls msb-logs msb-stats msb-rm msb-store msb-oci)
    unset MSB_RECORD
    export MSB_NETWORK=none
}

teardown() {
    cd "$BATS_TEST_TMPDIR" || return
    local record mount
    for record in run/*/record.json; do
        [ ! -e "$record" ] || msb-stop -r "$record" -t 1 >stopped.log 2>&1 || cat stopped.log
    done
    for mount in root image result; do
        ! mountpoint -q "$mount" || msb-mount -u "$mount"
    done
    if [ -e registry/pid ]; then
        source "$root/tests/registry.bash"
        registry_stop registry
    fi
}

@test "every tool has help with an example, and a version, and msb --help lists them" {
    for tool in "${tools[@]}"; do
        help=$("$tool" --help)
        [[ $help == *"Usage: $tool"* ]]
        [[ $help == *xample* ]]
        [ "$("$tool" --version)" = "$tool $(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)" ]
    done
    help=$(msb --help)
    for tool in "${tools[@]:1}"; do
        # Engines start msb-oci, not people.
        [[ $tool = msb-oci || $help == *$'\n'"  ${tool#msb-} "* ]]
    done
}

@test "usage errors have one form, with status 2, and 125 from msb-exec and msb-run" {
    for tool in "${tools[@]}"; do
        run --separate-stderr "$tool" --no-such-flag
        expected=2
        [[ $tool != msb-exec && $tool != msb-run ]] || expected=125
        [ "$status" = "$expected" ]
        [ -z "$output" ]
        [[ $stderr == "$tool: unexpected argument '--no-such-flag'"* ]]
    done
}

@test "an empty stdin, and a record of another version, are errors in every stage" {
    for tool in msb-patch msb-mount msb-boot msb-exec msb-stop; do
        expected=1
        [ "$tool" != msb-exec ] || expected=125
        run --separate-stderr "$tool" < /dev/null
        [ "$status" = "$expected" ]
        [ "$stderr" = "$tool: no record on stdin (the previous stage failed, or nothing is piped in: use -r FILE)" ]
        run --separate-stderr "$tool" <<< '{"msb":7}'
        [ "$status" = "$expected" ]
        [[ $stderr == "$tool: stdin: record version 7 is not supported"* ]]
        run --separate-stderr "$tool" <<< 'no json'
        [ "$status" = "$expected" ]
        [[ $stderr == "$tool: stdin: not a record"* ]]
        run --separate-stderr "$tool" -r no-such-vm
        [ "$status" = "$expected" ]
        [[ $stderr == *'record "no-such-vm": no such file, and no VM of that name is running'* ]]
    done
}

@test "the pages of section 1 and the schema match the flags (make man updates them)" {
    for tool in "${tools[@]}"; do
        "$tool" --generate man | diff "$root/man/$tool.1" -
    done
    msb-boot --generate security | diff "$root/man/msb-security.7" -
    msb-pull --generate schema | diff "$root/man/msb-record.schema.json" -
}

@test "completions are valid scripts, and complete the names of running VMs after -r and as the first word" {
    export MSB_RUN=$BATS_TEST_TMPDIR/run
    mkdir -p "$MSB_RUN"/{worker,wonder,ended}
    touch "$MSB_RUN"/{worker,wonder,ended}/record.json "$MSB_RUN/ended/ended.json"
    cd "$MSB_RUN"
    for tool in "${tools[@]}"; do
        "$tool" --generate bash >"$BATS_TEST_TMPDIR/$tool.bash"
        bash -n "$BATS_TEST_TMPDIR/$tool.bash"
        "$tool" --generate zsh >"$BATS_TEST_TMPDIR/$tool.zsh"
        ! command -v zsh || zsh -n "$BATS_TEST_TMPDIR/$tool.zsh"
    done
    # completed TOOL WORD…: prints bash's completions of the last word.
    completed() {
        bash -c 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            complete -p "$1" | grep -q _or_vms
            _msb__"${1#msb-}"_or_vms "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf "%s\n" "${COMPREPLY[@]}" | sort -u | xargs' - "$BATS_TEST_TMPDIR/$1.bash" "$@"
    }
    mkdir "$BATS_TEST_TMPDIR/empty"
    cd "$BATS_TEST_TMPDIR/empty"
    for tool in msb-patch msb-mount msb-boot msb-exec msb-stop; do
        [ "$(completed "$tool" -r '')" = 'wonder worker' ]
        [ "$(completed "$tool" --record wor)" = worker ]
        [[ $(completed "$tool" --rec) == --record ]]
        grep -q ':NAME|FILE:_msb_vms_or_files' "$BATS_TEST_TMPDIR/$tool.zsh"
    done
    [ "$(completed msb-exec won)" = wonder ]
    [ "$(completed msb-stop '')" = 'wonder worker' ]
    [ -z "$(completed msb-mount won)" ]
    [ "$(completed msb-rm wonder wor)" = worker ]
    mkdir -p "$BATS_TEST_TMPDIR/home/references"
    echo 'docker.io/library/alpine:3.20 sha256:0' >"$BATS_TEST_TMPDIR/home/references/0"
    [ "$(MSB_HOME=$BATS_TEST_TMPDIR/home completed msb-run alp)" = alpine:3.20 ]
    mkdir -p "$BATS_TEST_TMPDIR"/home/volumes/{cache,code}
    for tool in msb-run msb-boot; do
        [ "$(MSB_HOME=$BATS_TEST_TMPDIR/home completed $tool -v ca)" = cache: ]
        grep -q ':volume:_msb_volumes' "$BATS_TEST_TMPDIR/$tool.zsh"
    done
    [ "$(completed msb-cp wor)" = worker: ]
    [ "$(completed msb-cp -a ./x '')" = 'wonder: worker:' ]
    grep -q ':target .*:_msb_places' "$BATS_TEST_TMPDIR/msb-cp.zsh"
    # msb completes the tools, and behind one of them as the tool does.
    front() {
        bash -c 'source "$1"; source "$2"; shift 2; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _msb_front msb "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[*]}"' - "$BATS_TEST_TMPDIR"/{msb,msb-exec}.bash "$@"
    }
    [ "$(front msb ru)" = run ]
    [ "$(front msb exec won)" = wonder ]
}

@test "every page passes mandoc's lint, and has the same date; those of section 1 fit into 80 columns" {
    run mandoc -T lint "$root"/man/*.[1578]
    [ "$status" = 0 ] || { echo "$output"; return 1; }
    [ "$(sed -n '1s/^\.TH [^ ]* [1578] \([0-9-]*\) .*/\1/p' -s "$root"/man/*.[1578] | sort | uniq -c | wc -l)" = 1 ]
    for page in "$root"/man/*.1; do
        if mandoc -T ascii -O width=80 "$page" | col -bx | grep -E '.{81}'; then
            echo "$page"
            return 1
        fi
    done
}

# examples_of PAGE: the examples of a page of section 1 as a shell reads them, each after a line "# what it is for:".
examples_of() {
    sed -n '/^\.SH EXAMPLES/,/^\.SH SEE/p' "$root/man/$1.1" | grep -v '^\.' |
        sed '/^[A-Z].*:$/s/^/# /; s/\\-/-/g; s/\\e/\\/g; s/\\(aq/'"'"'/g; s/\\(ha/^/g; s/\\(ti/~/g'
}

# local_images: a busybox image that msb-pull finds as alpine and docker as an archive, and a registry's name for the local one.
local_images() {
    source "$root/tests/image.bash"
    source "$root/tests/registry.bash"
    local layout
    layout=$(tiny_image)
    registry_start registry
    skopeo copy --quiet --dest-tls-verify=false "oci:$layout:latest" "docker://$registry_host/demo:v1"
    skopeo copy --quiet "oci:$layout:latest" oci:layout:v1
    skopeo copy --quiet "oci:$layout:latest" docker-archive:alpine.tar:alpine:latest
    mkdir -p rootfs bin debian/{bin,dev,etc,proc,sys,usr,var}
    printf '#!/bin/sh\ncat alpine.tar\n' >bin/docker
    printf '#!/bin/sh\ntar -cC debian .\n' >bin/mmdebstrap
    printf '#!/bin/sh\nfor arg do shift; case $arg in alpine) arg=oci:layout:v1 ;; 127.*|localhost:*) arg=%s/demo:v1 ;; esac; set -- "$@" "$arg"; done
exec %s "$@"\n' "$registry_host" "$root/target/release/msb-pull" >bin/msb-pull
    chmod +x bin/*
    PATH="$PWD/bin:$PATH"
    hash -r
}

@test "the examples of msb-pull(1), msb-patch(1) and msb-mount(1) work as they stand" {
    cd "$BATS_TEST_TMPDIR"
    export MSB_HOME=$PWD/home
    local_images
    bash -euxo pipefail <(examples_of msb-pull) 3>&-
    registry_stop registry
    [ "$(jq -r .image.ref image.json)" = docker.io/library/alpine:latest ]
    [ "$(jq -r .rootfs.kind dir.json)" = dir ]
    msb-mount -u ./root
    echo cert >cert.pem
    msb-patch --help | grep '^  {"op"' >ops.jsonl
    [ "$(wc -l <ops.jsonl)" = 6 ]
    bash -euxo pipefail <(examples_of msb-patch)
    [ "$(jq -r .upper.dir patched.json)" = "$PWD/upper/upper" ]
    [ -d upper/upper/app ]
    [ ! -e upper/upper/etc/motd ]
    bash -euxo pipefail <(examples_of msb-mount) >shown 3>&-
    grep -qx 1 shown
    msb-mount -u ./image
    rm rootfs -r
    bash -euxo pipefail <(examples_of msb-store)
}

@test "the examples of msb-boot(1), msb-exec(1) and msb-stop(1) work as they stand" {
    cd "$BATS_TEST_TMPDIR"
    export MSB_HOME=$PWD/home MSB_RUN=$PWD/run
    local_images
    registry_stop registry
    # t8-handoff boots inits, t8-life boots a VM again, and the image has neither rsync nor git.
    examples_of msb-boot | grep -v -e --init -e --probe >boot.sh
    sed -i '/again\|ended/,$d' boot.sh
    bash -euxo pipefail boot.sh 3>&-
    mkdir -p src dst
    echo one >src/one
    echo hello >motd
    printf 'a\nb\n' >list
    examples_of msb-exec | sed '/rsync in/,$d' >exec.sh
    msb-exec worker -n -- mkdir -p /srv /etc
    bash -euxo pipefail exec.sh </dev/null >shown
    grep -qx a shown
    [ "$(cat dst/one)" = one ]
    [ "$(msb-exec worker -n -- cat /etc/motd)" = hello ]
    bash -euxo pipefail <(examples_of msb-stop | sed '/^# By name/,+1d') 3>&-
    [ "$(cat result/etc/motd)" = hello ]
    ! mountpoint -q root
}

# example_of PAGE: prints the text between "example:" and "end" of the rendered page.
example_of() {
    sed -n '/^\.\\" example:/,/^\.\\" end/p' "$root/man/$1" | grep -v '^\.' | sed 's/\\-/-/g; s/\\e/\\/g'
}

# check_record: whether stdin is a record according to the schema.
check_record() {
    /usr/bin/python3 -c '
import json, sys, jsonschema
jsonschema.Draft202012Validator(json.load(open(sys.argv[1]))).validate(json.load(sys.stdin))' "$root/man/msb-record.schema.json"
}

@test "the example in msb-record(5) is valid according to the schema, and broken variants are not" {
    example=$(example_of msb-record.5)
    check_record <<< "$example"
    run check_record <<< "${example/\"layers\"/\"tape\"}"
    [ "$status" != 0 ]
    run check_record <<< "${example/\"msb\":1,/}"
    [ "$status" != 0 ]
}

@test "every example in msb-ops(5) does what the page says" {
    cd "$BATS_TEST_TMPDIR"
    export MSB_HOME="$PWD/home"
    mkdir -p base/{etc,usr/bin,var/cache/apt} site
    ln -s usr/bin base/bin
    touch base/etc/hosts base/var/cache/apt/pkg cert.pem site/index.html
    echo old >base/etc/motd
    chmod 0751 base/etc
    ops=$(grep '^{"op"' "$root/man/msb-ops.5" | sed 's/\\\\/\\/g')
    # Each operation has a section with at least one example.
    diff <(sed -n '/^.SH OPERATIONS/,/^.SH OUTPUT/s/^.SS //p' "$root/man/msb-ops.5" | sort) <(jq -r .op <<<"$ops" | sort -u)
    { printf '{"msb":1,"rootfs":{"kind":"dir","lower":["%s/base"]}}\n%s\n' "$PWD" "$ops"; } | msb-patch > patched.json
    check_record < patched.json
    upper=$(jq -r .upper.dir patched.json)
    [ "$(cat "$upper/app/config.json")" = '{"debug": true}' ]
    [ "$(cat "$upper/etc/motd")" = hi ]
    [ "$(stat -c '%a %u' "$upper/etc/motd")" = '640 7' ]
    [ "$(od -An -tx1 "$upper/etc/key")" = ' 00 01 02' ]
    [ "$(stat -c '%a %u %g' "$upper/app/data")" = '700 1000 1000' ]
    [ "$(stat -c %a "$upper/etc")" = 751 ]
    [ "$(cat "$upper/etc/hosts")" = '127.0.0.1 myapp.local' ]
    [ -e "$upper/etc/ssl/cert.pem" ]
    [ -e "$upper/srv/www/index.html" ]
    [ "$(readlink "$upper/etc/localtime")" = /usr/share/zoneinfo/UTC ]
    [ "$(stat -c %t:%T "$upper/var/cache/apt")" = 0:0 ]
    [ "$(jq -r '.scripts | keys[]' patched.json)" = setup ]
    [ "$(cat "$upper/etc/app.conf")" = $'port = 8080\nhost = a.local\nhost = c' ]
    [ "$(stat -c '%u:%g %Y' "$upper/app/run")" = '1000:1000 1700000000' ]
    [ "$(stat -c %i "$upper/app/run")" = "$(stat -c %i "$upper/app/bin/start")" ]
    [ "$(stat -c '%a %n' "$upper"/app/site{,/index.html} | sed "s|$upper||")" = $'2750 /app/site\n640 /app/site/index.html' ]
    [ "$(stat -c %Y "$upper/app/installed")" = "$(date -d 2026-01-31T12:00:00Z +%s)" ]
    [ "$(cd "$upper/app" && PATH=$PATH:/usr/sbin:/sbin getcap run)" = 'run cap_net_bind_service=ep' ]
    # The line that -n prints.
    line=$(grep '^{"n"' "$root/man/msb-ops.5")
    printf '{"msb":1,"rootfs":{"kind":"dir","lower":["%s/base"]}}\n{"op":"text","path":"/bin/x","content":"12345"}' "$PWD" | msb-patch -n > said
    [ "$(cat said)" = "$line" ]
}

@test "the script in msb-ops(5) makes a layer: umoci and msb-pull show what the kernel shows of the upper" {
    source "$root/tests/image.bash"
    source "$root/tests/tree.bash"
    cd "$BATS_TEST_TMPDIR"
    export MSB_HOME="$PWD/home" SOURCE_DATE_EPOCH=1700000000
    example_of msb-ops.5 >upper-to-layer
    [ "$(head -n 1 upper-to-layer)" = '#!/bin/bash' ]
    bash -n upper-to-layer
    shellcheck upper-to-layer
    cp -a "$(layered_image)" image
    msb-pull oci:image >image.json
    mkdir -p src/sub merged expected
    echo one >src/one
    ln src/one src/sub/again
    ln -s one src/soft
    chmod 2750 src/sub
    setfattr -n user.note -v "$(printf 'a\nb')" src/sub/again
    msb-patch -r image.json -f - >patched.json <<'END'
{"op":"remove","path":"/etc/two"}
{"op":"remove","path":"/opt/kept"}
{"op":"remove","path":"/var/cache"}
{"op":"mkdir","path":"/var/cache","mode":"1770","uid":5,"gid":6}
{"op":"text","path":"/var/cache/new file","content":"new"}
{"op":"remove","path":"/opt/absolute"}
{"op":"append","path":"/bin/tool","content":"exit\n"}
{"op":"copy_dir","src":"src","dst":"/srv"}
{"op":"symlink","target":"/nowhere","link":"/etc/link"}
{"op":"remove","path":"/bin"}
{"op":"mkdir","path":"/bin"}
{"op":"text","path":"/bin/own","content":"own","mode":"4711","uid":9}
END
    upper=$(jq -r .upper.dir patched.json)
    mount -t overlay overlay -o "lowerdir=$(jq -r '.rootfs.lower | join(":")' patched.json),upperdir=$upper,workdir=$(jq -r .upper.work patched.json)" merged
    tree_manifest merged >expected/tree
    umount merged
    [ "$(grep -c '^f ' expected/tree)" -gt 5 ]
    bash upper-to-layer "$upper" layer.tar
    [ "$(tar -tf layer.tar | grep -c '/\.wh\.')" -eq 4 ]
    [[ $(tar -tf layer.tar) == *./var/cache/.wh..wh..opq* ]]
    umoci raw add-layer --image image:latest layer.tar
    umoci unpack --image image:latest unpacked
    tree_manifest unpacked/rootfs | diff expected/tree -
    msb-pull oci:image >again.json
    [ "$(jq '.rootfs.lower | length' again.json)" -eq $(($(jq '.rootfs.lower | length' image.json) + 1)) ]
    mount -t overlay overlay -o "lowerdir=$(jq -r '.rootfs.lower | join(":")' again.json)" merged
    tree_manifest merged >shown
    umount merged
    diff expected/tree shown
}

@test "the picture of the pipe is the one that its text gives (make docs/pipe.svg)" {
    cd "$root"
    tools/pipe-svg.py docs/pipe.txt | diff docs/pipe.svg -
}

@test "the files that README.md, CONTRIBUTING.md and ARCHITECTURE.md name exist" {
    cd "$root"
    find . -path ./target -prune -o -path ./.git -prune -o -print >"$BATS_TEST_TMPDIR/files"
    # Paths of the repository in backticks, which may leave out their first directories. Patterns are not paths.
    grep -ho '`[^` ]*`' README.md CONTRIBUTING.md docs/ARCHITECTURE.md | tr -d '`' |
        grep -E '\.(rs|bats|py|md|[1578])$|^(msb|msb-[a-z]*|agentd|tests|docs|tools|man)/' | grep -v -e NAME -e '[*$]' | sort -u >"$BATS_TEST_TMPDIR/named"
    [ "$(wc -l <"$BATS_TEST_TMPDIR/named")" -gt 40 ]
    while read -r path; do
        grep -qF "/${path%/}" "$BATS_TEST_TMPDIR/files" || { echo "no file $path"; return 1; }
    done <"$BATS_TEST_TMPDIR/named"
}

@test "the commands in README.md print what it shows" {
    cd "$BATS_TEST_TMPDIR"
    export MSB_HOME=$PWD/home MSB_RUN=$PWD/run
    local_images
    registry_stop registry
    sed -n '/^<!-- ops.jsonl/,/^```$/p' "$root/README.md" | grep '^{' >ops.jsonl
    sed -n '/^<!-- session/,/^```$/p' "$root/README.md" | grep -v -e '^<!--' -e '^```' >session
    [ "$(wc -l <ops.jsonl)" = 3 ]
    [ "$(grep -c '^\$ ' session)" -ge 5 ]
    while IFS= read -r line <&4; do
        if [[ $line == '$ '* ]]; then
            echo "$line"
            eval "${line#??}" 3>&- 4<&-
        fi
    done 4<session >shown
    diff session shown
}

@test "tools depend on the shared crates and never on one another" {
    cd "$root"
    cargo metadata --offline --locked --no-deps --format-version 1 |
        jq -r '.packages[] | .name as $name | .dependencies[] | select(.path) | "\($name) \(.name)"' | sort -u > "$BATS_TEST_TMPDIR/edges"
    [ "$(grep -c ' msb$' "$BATS_TEST_TMPDIR/edges")" = 18 ]
    [ "$(grep -v ' msb$' "$BATS_TEST_TMPDIR/edges" | paste -sd,)" = 'msb-boot msb-gate,msb-cp msb-archive,msb-pack msb-registry,msb-pull msb-archive,msb-pull msb-registry' ]
}

@test "the imports between a crate's files have no cycle" {
    cd "$root"
    local crates
    mapfile -t crates < <(cargo metadata --offline --locked --no-deps --format-version 1 |
        jq -r '.packages[].manifest_path | split("/")[-2]')
    [ "${#crates[@]}" -ge 9 ]
    python3 tests/import-cycles.py "${crates[@]}"
}

@test "the merge rule and the wire protocol are implemented in one place each" {
    cd "$root"
    # As literals: other code may mention them, but only one place spells them.
    run grep -rln --include=*.rs '"\.wh\.' msb*/src agentd/src
    [ "$output" = msb/src/overlay/whiteout.rs ]
    run grep -rln --include=*.rs '"trusted\.overlay' msb*/src agentd/src
    [ "$output" = msb/src/overlay/marks.rs ]
    # agentd's init/find.rs reads ELF files, and the store's checksums hash numbers: those are not the wire protocol's.
    run grep -rln --include=*.rs --exclude=find.rs --exclude=checksums.rs --exclude-dir=checksums 'to_le_bytes\|from_le_bytes' msb/src agentd/src msb-exec/src msb-stop/src
    [[ $output == *msb/src/wire/frame.rs* && $output == *msb/src/wire/channel/frame.rs* ]]
    run ! grep -v '^msb/src/wire/' <<<"$output"
}
