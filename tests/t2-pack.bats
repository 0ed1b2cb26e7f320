#!/usr/bin/env bats
# msb-diff: what an upper changes.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats sets variables
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/patch.bash"
    source "$BATS_TEST_DIRNAME/tree.bash"
    patch_setup
    PATH=$PATH:/usr/sbin:/sbin
}

teardown() {
    patch_teardown
}

@test "msb-diff names what has changed, was added and removed, and exits like diff" {
    msb-diff -r image.json >none
    [ ! -s none ]
    patch '{"op":"text","path":"/etc/motd","content":"new\n","replace":true}' '{"op":"chmod","path":"/bin/tar","mode":"0755"}' \
        '{"op":"mkdir","path":"/new"}' '{"op":"symlink","target":"x","link":"/new/link"}' '{"op":"remove","path":"/var/cache"}'
    run --separate-stderr msb-diff -r patched.json
    [ "$status" -eq 1 ]
    [ "$(jq -r '[.path, .change, (.what // [] | join("+")), .type // "-", .before.layer // "-"] | join(" ")' <<<"$output")" = \
'/etc/motd changed content+mtime file lower 1
/new added  directory -
/new/link added  symlink -
/usr/bin/tar changed mode file lower 1
/var/cache removed  - lower 1' ]
    jq -se '.[0] | .size == 4 and .before.size == 9 and .mode == "0644" and .layer == "upper"' <<<"$output"
    run ! msb-diff -q -r patched.json
    # Against another record, in both directions, and against itself.
    msb-diff -r patched.json image.json -o lines && false
    [ "$(wc -l <lines)" -eq 5 ]
    msb-diff -r image.json patched.json -o lines && false
    [ "$(jq -r .change lines | sort | uniq -c | xargs)" = '3 added 2 changed 1 removed' ]
    msb-diff -r patched.json patched.json
    # Trouble is 2, as for diff.
    run --separate-stderr msb-diff -r patched.json ./nowhere.json
    [ "$status" -eq 2 ]
    [[ $stderr == 'msb-diff: record "./nowhere.json": '* ]]
    run --separate-stderr msb-diff -r patched.json -o nowhere/lines
    [ "$status" -eq 2 ]
}

@test "msb-diff agrees with the kernel about opaque directories and names with newlines, while the root is mounted" {
    patch '{"op":"remove","path":"/var/cache"}'
    show
    rm -rf merged/etc/ssl
    mkdir -p merged/etc/ssl merged/var/cache
    touch merged/var/cache/$'a\nb' merged/var/cache/$'\xff'
    chown 5 merged/etc/hosts
    run --separate-stderr msb-diff -r patched.json
    [ "$status" -eq 1 ]
    [ "$(jq -c '[.path, .change]' <<<"$output")" = '["/etc/hosts","changed"]
["/var/cache/a\nb","added"]
["/var/cache/apt","removed"]
[[47,118,97,114,47,99,97,99,104,101,47,255],"added"]' ]
    [ "$(jq -r 'select(.path == "/etc/hosts").what | join(" ")' <<<"$output")" = owner ]
}

@test "msb-diff --which names the layer of each path" {
    patch '{"op":"text","path":"/new","content":""}'
    msb-diff -r patched.json --which /new bin/tar /etc /etc/hosts >found
    [ "$(jq -r '[.path, .resolved, .layer] | join(" ")' found)" = '/new /new upper
bin/tar /usr/bin/tar lower 1
/etc /etc lower 0
/etc/hosts /etc/hosts lower 0' ]
    [ "$(jq -rs '.[1].dir' found)" = "$PWD/bottom" ]
    run --separate-stderr msb-diff -r patched.json --which /nowhere /etc/motd
    [ "$status" -eq 1 ]
    [ "$stderr" = 'msb-diff: "/nowhere": no such path in the root' ]
    [ "$(jq -r .layer <<<"$output")" = 'lower 1' ]
}
