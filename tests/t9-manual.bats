#!/usr/bin/env bats
# What the tools say of themselves: help, manual pages, the schema; and that they stand alone.

bats_require_minimum_version 1.5.0

setup() {
    root=$(cd "$BATS_TEST_DIRNAME/.." && pwd)
    PATH="$root/target/release:$PATH"
    tools=(msb-pull msb-patch msb-mount msb-boot msb-exec msb-stop)
    unset MSB_RECORD
}

@test "every tool has help with an example, and a version" {
    for tool in "${tools[@]}"; do
        help=$("$tool" --help)
        [[ $help == *"Usage: $tool"* ]]
        [[ $help == *xample* ]]
        [ "$("$tool" --version)" = "$tool $(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)" ]
    done
}

@test "a wrong call is said in one voice, with status 2, and 125 from msb-exec" {
    for tool in "${tools[@]}"; do
        run --separate-stderr "$tool" --no-such-flag
        expected=2
        [ "$tool" != msb-exec ] || expected=125
        [ "$status" = "$expected" ]
        [ -z "$output" ]
        [[ $stderr == "$tool: unexpected argument '--no-such-flag'"* ]]
    done
}

@test "no record on stdin, and one of another version, is an error of every stage" {
    for tool in msb-patch msb-mount msb-boot msb-exec msb-stop; do
        expected=1
        [ "$tool" != msb-exec ] || expected=125
        run --separate-stderr "$tool" < /dev/null
        [ "$status" = "$expected" ]
        [ "$stderr" = "$tool: no record on stdin: the stage before this one printed none" ]
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

@test "the pages of section 1 and the schema are those that the flags give (make man)" {
    for tool in "${tools[@]}"; do
        "$tool" --generate man | diff "$root/man/$tool.1" -
    done
    msb-pull --generate schema | diff "$root/man/msb-record.schema.json" -
}

@test "every page is clean for mandoc" {
    for page in "$root"/man/*.[1578]; do
        run mandoc -T lint -W error "$page"
        [ "$status" = 0 ] || { echo "$output"; return 1; }
    done
}

# check_record: whether stdin is a record by the schema.
check_record() {
    /usr/bin/python3 -c '
import json, sys, jsonschema
jsonschema.Draft202012Validator(json.load(open(sys.argv[1]))).validate(json.load(sys.stdin))' "$root/man/msb-record.schema.json"
}

@test "the example in msb-record(5) is a record, and a wrong one is none" {
    example=$(sed -n '/^\.\\" example:/,/^\.\\" end/p' "$root/man/msb-record.5" | grep -v '^\.')
    check_record <<< "$example"
    run check_record <<< "${example/\"layers\"/\"tape\"}"
    [ "$status" != 0 ]
    run check_record <<< "${example/\"msb\":1,/}"
    [ "$status" != 0 ]
}

@test "every example in msb-ops(5) works" {
    cd "$BATS_TEST_TMPDIR"
    export MSB_HOME="$PWD/home"
    mkdir -p base/etc base/bin site
    touch base/etc/motd base/etc/hosts cert.pem site/index.html
    ops=$(grep '^{"op"' "$root/man/msb-ops.5" | sed 's/\\\\/\\/g')
    [ "$(grep -c . <<< "$ops")" = 9 ]
    { printf '{"msb":1,"rootfs":{"kind":"dir","lower":["%s/base"]}}\n%s\n' "$PWD" "$ops"; } | msb-patch > patched.json
    check_record < patched.json
    upper=$(jq -r .upper.dir patched.json)
    [ "$(cat "$upper/etc/motd")" = hi ]
    [ "$(cat "$upper/etc/hosts")" = '127.0.0.1 myapp.local' ]
    [ -e "$upper/srv/www/index.html" ]
    [ "$(jq -r '.scripts | keys[]' patched.json)" = setup ]
}

@test "tools depend on the shared crate and never on one another" {
    cd "$root"
    cargo metadata --offline --locked --no-deps --format-version 1 |
        jq -r '.packages[] | .name as $name | .dependencies[] | select(.path) | "\($name) \(.name)"' | sort -u > "$BATS_TEST_TMPDIR/edges"
    [ "$(wc -l < "$BATS_TEST_TMPDIR/edges")" = 7 ]
    ! grep -v ' msb$' "$BATS_TEST_TMPDIR/edges"
}

@test "the overlay rule and the wire are decided in one room each" {
    cd "$root"
    # As literals: a room may speak of them, and spell them only in its one place.
    run grep -rn --include=*.rs -e '"\.wh\.' -e '"trusted\.overlay' msb*/src agentd/src
    [ -n "$output" ]
    [ -z "$(grep -v '^msb/src/overlay/whiteout.rs:' <<< "$output")" ]
    run grep -rln --include=*.rs 'to_le_bytes\|from_le_bytes' msb/src agentd/src msb-exec/src msb-stop/src
    [ "$output" = msb/src/wire/mod.rs ]
}
