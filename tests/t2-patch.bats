#!/usr/bin/env bats
# msb-patch: operations into an upper, judged by the kernel's overlayfs on the record's directories.

bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/patch.bash"
    patch_setup
}

teardown() {
    patch_teardown
}

@test "the seed page's example does what the page says, and the image does not change" {
    base > before
    echo certificate > cert.pem
    patch '{"op":"text","path":"/etc/greeting.txt","content":"Hello from a patched rootfs!\n"}' \
        '{"op":"text","path":"/etc/motd","content":"Custom message of the day.\n","replace":true}' \
        '{"op":"mkdir","path":"/app","mode":"0755"}' \
        '{"op":"text","path":"/app/config.json","content":"{\"debug\": true}","mode":"0644"}' \
        '{"op":"copy_file","src":"./cert.pem","dst":"/etc/ssl/cert.pem"}' \
        '{"op":"append","path":"/etc/hosts","content":"127.0.0.1 myapp.local\n"}'
    base | diff before -
    show
    [ "$(cat merged/etc/greeting.txt)" = 'Hello from a patched rootfs!' ]
    [ "$(cat merged/etc/motd)" = 'Custom message of the day.' ]
    [ "$(cat merged/app/config.json)" = '{"debug": true}' ]
    [ "$(stat -c '%a %u %g' merged/app/config.json)" = '644 0 0' ]
    [ "$(cat merged/etc/ssl/cert.pem)" = certificate ]
    [ "$(cat merged/etc/hosts)" = $'127.0.0.1 localhost\n127.0.0.1 myapp.local' ]
    [ "$(find merged -path '*tar')" = merged/usr/bin/tar ]
}

@test "a path is resolved through the image's symlinks: /bin/x is written to /usr/bin" {
    patch '{"op":"text","path":"/bin/x","content":"x","mode":"0755"}'
    show
    [ -L merged/bin ]
    [ "$(cat merged/usr/bin/x)" = x ]
    [ "$(stat -c %a merged/usr/bin/x)" = 755 ]
}

@test "remove /bin/tar removes /usr/bin/tar" {
    patch '{"op":"remove","path":"/bin/tar"}'
    show
    [ -L merged/bin ]
    [ ! -e merged/usr/bin/tar ]
}

@test "append to /etc/shadow leaves it 0640 root:shadow with its times" {
    patch '{"op":"append","path":"/etc/shadow","content":"app:*:::::::\n"}'
    show
    [ "$(stat -c '%a %u %g %Y' merged/etc/shadow)" = '640 0 42 1000000' ]
    [ "$(tail -n 1 merged/etc/shadow)" = 'app:*:::::::' ]
    [ "$(wc -l < merged/etc/shadow)" = 2 ]
}

@test "replacing /etc/shadow without a mode keeps it 0640 root:shadow" {
    patch '{"op":"text","path":"/etc/shadow","content":"new\n","replace":true}'
    show
    [ "$(stat -c '%a %u %g' merged/etc/shadow)" = '640 0 42' ]
    [ "$(cat merged/etc/shadow)" = new ]
}

@test "mkdir on an existing directory sets a given mode, and without one leaves it" {
    patch '{"op":"mkdir","path":"/var/cache","mode":"1777"}' '{"op":"mkdir","path":"/var"}' \
        '{"op":"mkdir","path":"/srv/a/b","mode":"0700","uid":5,"gid":6}'
    show
    [ "$(stat -c %a merged/var/cache)" = 1777 ]
    [ "$(stat -c %a merged/var)" = "$(stat -c %a bottom/var)" ]
    [ "$(stat -c '%a %u %g' merged/srv/a/b)" = '700 5 6' ]
    [ "$(stat -c '%a %u %g' merged/srv/a)" = '755 0 0' ]
    [ -e merged/var/cache/apt/pkg ]
}

@test "copied-up parents keep owner, mode, xattrs and times" {
    patch '{"op":"text","path":"/etc/new","content":""}'
    show
    [ "$(stat -c '%a %u %g %Y' merged/etc)" = '751 7 8 1000000' ]
    [ "$(getfattr --only-values -n user.note merged/etc)" = kept ]
    [ "$(stat -c '%a %Y' merged/)" = "$(stat -c '%a %Y' top)" ]
}

@test "remove then mkdir of the same directory gives an empty, opaque directory" {
    patch '{"op":"remove","path":"/var/cache"}' '{"op":"mkdir","path":"/var/cache"}'
    upper=$(jq -r .upper.dir patched.json)
    [ "$(getfattr --only-values -n trusted.overlay.opaque "$upper/var/cache")" = y ]
    show
    [ -d merged/var/cache ]
    [ -z "$(ls -A merged/var/cache)" ]
}

@test "remove leaves a whiteout only where a layer has the name, and is idempotent" {
    patch '{"op":"text","path":"/own","content":""}' '{"op":"remove","path":"/own"}' '{"op":"remove","path":"/etc/motd"}' \
        '{"op":"remove","path":"/etc/motd"}' '{"op":"remove","path":"/never/there"}' '{"op":"remove","path":"/etc/hosts/below"}'
    upper=$(jq -r .upper.dir patched.json)
    [ ! -e "$upper/own" ]
    [ "$(stat -c '%F %t %T' "$upper/etc/motd")" = 'character special file 0 0' ]
    show
    [ ! -e merged/etc/motd ]
    [ -e merged/etc/hosts ]
}

@test "symlink makes a link, and replaces an existing one only with replace" {
    patch '{"op":"symlink","target":"../usr/bin/tar","link":"/opt/tar"}' \
        '{"op":"symlink","target":"/run","link":"/bin","replace":true}'
    show
    [ "$(readlink merged/opt/tar)" = ../usr/bin/tar ]
    [ "$(readlink merged/bin)" = /run ]
    run --separate-stderr patch '{"op":"symlink","target":"x","link":"/bin"}'
    [ "$status" = 1 ]
    [[ $stderr == *'op 1: symlink "/bin": exists in the image (set "replace": true to overwrite it)'* ]]
}

@test "file writes any bytes, and copy_file copies files of any size, in order" {
    head -c 300000 /dev/urandom > big
    patch '{"op":"file","path":"/bytes","content_base64":"AP+ACg=="}' '{"op":"copy_file","src":"big","dst":"/big","mode":"4755"}' \
        '{"op":"append","path":"/big","content":"end"}'
    show
    printf '\0\377\200\n' | cmp - merged/bytes
    { cat big; printf end; } | cmp - merged/big
    [ "$(stat -c '%a %u' merged/big)" = '4755 0' ]
}

@test "copy_dir merges, and keeps modes, symlinks, hardlinks and xattrs" {
    mkdir -p src/etc/new.d src/bin
    echo a > src/etc/new.d/a
    chmod 0640 src/etc/new.d/a
    chmod 0710 src/etc/new.d
    ln src/etc/new.d/a src/etc/new.d/b
    ln -s a src/etc/new.d/link
    setfattr -n user.tag -v v src/etc/new.d/a
    echo tool > src/bin/tool
    patch '{"op":"copy_dir","src":"src","dst":"/"}'
    show
    [ "$(stat -c %a merged/etc)" = 751 ]
    [ "$(stat -c %a merged/etc/new.d)" = 710 ]
    [ "$(stat -c '%a %u' merged/etc/new.d/a)" = '640 0' ]
    [ "$(stat -c %i merged/etc/new.d/a)" = "$(stat -c %i merged/etc/new.d/b)" ]
    [ "$(readlink merged/etc/new.d/link)" = a ]
    [ "$(getfattr --only-values -n user.tag merged/etc/new.d/a)" = v ]
    [ -L merged/bin ]
    [ "$(cat merged/usr/bin/tool)" = tool ]
    [ "$(cat merged/etc/shadow)" = "$(cat bottom/etc/shadow)" ]
}

@test "copy_dir refuses an existing file, and a FIFO, before anything is visible" {
    mkdir -p src/etc
    echo x > src/etc/motd
    run --separate-stderr patch '{"op":"copy_dir","src":"src","dst":"/"}'
    [ "$status" = 1 ]
    [[ $stderr == *'/etc/motd'*'exists (set "replace": true'* ]]
    rm src/etc/motd
    mkfifo src/pipe
    run --separate-stderr patch '{"op":"copy_dir","src":"src","dst":"/"}'
    [ "$status" = 1 ]
    [[ $stderr == *'src/pipe'*'FIFO'* ]]
    [ -z "$(sandboxes)" ]
}

@test "scripts are stored beside the upper with mode 0755, and listed in the record" {
    patch '{"op":"script","name":"setup","content":"#!/bin/sh\necho set up\n"}' '{"op":"script","name":"start","content":"echo"}'
    setup=$(jq -r .scripts.setup patched.json)
    [ "$(stat -c %a "$setup")" = 755 ]
    [ "$("$setup")" = 'set up' ]
    [ "$(jq -r '.scripts | keys | join(" ")' patched.json)" = 'setup start' ]
    show
    [ ! -e merged/.msb ]
    for name in '' . .. a/b; do
        run --separate-stderr patch "{\"op\":\"script\",\"name\":\"$name\",\"content\":\"\"}"
        [ "$status" = 1 ]
    done
    run --separate-stderr patch '{"op":"script","name":"a","content":""}' '{"op":"script","name":"a","content":"x"}'
    [ "$status" = 1 ]
    [[ $stderr == *'op 2: script "a": exists with other content (set "replace": true to overwrite it)'* ]]
    patch '{"op":"script","name":"a","content":"1"}' '{"op":"script","name":"a","content":"1"}' '{"op":"script","name":"a","content":"2","replace":true}'
    cp patched.json image.json
    [ "$(cat "$(jq -r .scripts.a image.json)")" = 2 ]
    run --separate-stderr patch '{"op":"script","name":"a","content":"3"}'
    [ "$status" = 1 ]
    patch '{"op":"script","name":"a","content":"3","replace":true}' '{"op":"script","name":"b","content":"b"}'
    [ "$(cat "$(jq -r .scripts.a patched.json)" "$(jq -r .scripts.b patched.json)" "$(jq -r .scripts.a image.json)")" = 3b2 ]
}

@test "an existing path is an error that names the remedy" {
    run --separate-stderr patch '{"op":"mkdir","path":"/x"}' '{"op":"text","path":"/etc/motd","content":""}'
    [ "$status" = 1 ]
    [ -z "$output" ]
    [ "$stderr" = 'msb-patch: op 2: text "/etc/motd": exists in the image (set "replace": true to overwrite it)' ]
}

@test "each malformed operation has an error message of its own" {
    echo file > plain
    mkfifo pipe
    while IFS='|' read -r op message; do
        run --separate-stderr patch "$op"
        [ "$status" = 1 ] || { echo "$op: status $status"; return 1; }
        [[ $stderr == *"$message"* ]] || { echo "$op: $stderr"; return 1; }
        [ -z "$output" ]
    done <<'END'
{"op":"text","path":"etc/motd","content":""}|the path is not absolute
{"op":"text","path":"/etc","content":"","replace":true}|exists and is a directory
{"op":"text","path":"/etc/motd/x","content":""}|"/etc/motd" is not a directory
{"op":"text","path":"/new/","content":""}|does not end with "/"
{"op":"mkdir","path":"/etc/motd"}|exists in the image and is a file
{"op":"append","path":"/none","content":""}|does not exist (append adds to a file that is there; set "create": true to make it)
{"op":"append","path":"/etc","content":""}|is a directory
{"op":"copy_file","src":"none","dst":"/x"}|src "none": No such file
{"op":"copy_file","src":".","dst":"/x"}|is a directory (use copy_dir)
{"op":"copy_file","src":"pipe","dst":"/x"}|not a regular file
{"op":"copy_dir","src":"plain","dst":"/x"}|not a directory (use copy_file)
{"op":"symlink","target":"","link":"/x"}|the target is empty
{"op":"remove","path":"/"}|is the root, which stays
{"op":"text","path":"/none","content":"","create":false}|does not exist, and "create" is false
{"op":"append","path":"/none/","content":"","create":true}|a file's path does not end with "/"
{"op":"teleport"}|op 1, line 1: unknown operation `teleport`
{"op":"copyFile"}|op 1, line 1: unknown operation `copyFile` (did you mean copy_file?)
{"op":"mkdri","path":"/x"}|op 1, line 1: unknown operation `mkdri` (did you mean mkdir?)
{"op":"text","path":"/x","contents":""}|unknown field `contents` (did you mean content?)
{"op":"mkdir","path":"/x","mode":"0755","mode":"0700"}|op 1, line 1: duplicate member "mode"
{"op":"file","path":"/x","content_base64":"AA@="}|member "content_base64": not base64: invalid character "@" at offset 2
# a comment|op 1, line 1: not JSON (operations are JSON objects, see msb-ops(5))
- op: mkdir|op 1, line 1: not JSON (operations are JSON objects, see msb-ops(5))
[{"op":"mkdir","path":"/x"}]|an array, but an operation is an object (write one after the other
{"op":"remove","path":"/a","replace":true}|unknown field `replace`
END
}

@test "a failing operation leaves no new upper, and an existing one unchanged" {
    run patch '{"op":"text","path":"/a","content":"a"}' '{"op":"append","path":"/none","content":""}'
    [ "$status" = 1 ]
    [ -z "$(sandboxes)" ]
    patch '{"op":"text","path":"/a","content":"first"}' '{"op":"remove","path":"/etc/motd"}'
    upper=$(jq -r .upper.dir patched.json)
    facts() { find "$upper" -printf '%P %y %m %U %G %s %T@ %n %l\n' | sort; find "$upper" -type f -exec sha256sum {} +; }
    facts > before
    run msb-patch -r patched.json -f - <<< '{"op":"append","path":"/a","content":"second"} {"op":"append","path":"/none","content":""}'
    [ "$status" = 1 ]
    facts | diff before -
    [ -z "$(ls -A "$upper/../work")" ]
}

@test "a second run continues the upper, whiteouts and opaque directories included" {
    patch '{"op":"text","path":"/a","content":"first "}' '{"op":"remove","path":"/etc/motd"}' \
        '{"op":"remove","path":"/var/cache"}' '{"op":"mkdir","path":"/var/cache"}'
    upper=$(jq -r .upper.dir patched.json)
    msb-patch -r patched.json -f - <<< '{"op":"append","path":"/a","content":"second"}' > again.json
    [ "$(jq -r .upper.dir again.json)" = "$upper" ]
    show
    [ "$(cat merged/a)" = 'first second' ]
    [ "$(stat -c %h merged/a)" = 1 ]
    [ ! -e merged/etc/motd ]
    [ -z "$(ls -A merged/var/cache)" ]
}

@test "--upper DIR gives DIR mode 0700, makes the upper in it, and continues one that is there" {
    export SOURCE_DATE_EPOCH=1700000000
    mkdir -m 0755 empty
    for dir in mine empty; do
        msb-patch --upper "./$dir" -r image.json -f - <<< '{"op":"text","path":"/a","content":"1"}' > patched.json
        [ "$(jq -r '.upper | .dir, .work' patched.json)" = "$PWD/$dir/upper"$'\n'"$PWD/$dir/work" ]
        [ "$(stat -c '%a %a' "$dir")" = '700 700' ]
        [ "$(stat -c %Y "$dir/upper/a")" = 1700000000 ]
        # Named as the directory, by the record, and as the upper in it.
        msb-patch --upper "$dir" -r image.json -f - <<< '{"op":"text","path":"/b","content":"2"}' > patched.json
        msb-patch --upper "$dir" -r patched.json -f - <<< '{"op":"text","path":"/c","content":"3"}' > again.json
        msb-patch --upper "$dir/upper" -r image.json -f - <<< '{"op":"text","path":"/d","content":"4"}' > again.json
        cmp patched.json again.json
        show
        [ "$(cat merged/a merged/b merged/c merged/d)" = 1234 ]
        umount merged
    done
}

@test "--upper continues an upper of the older form, whose work directory is beside it" {
    patch '{"op":"text","path":"/a","content":"1"}'
    cp -a "$(jq -r .upper.dir patched.json)" old
    mkdir -m 0700 old.work
    # A root may contain directories of these names.
    mkdir old/upper old/work
    msb-patch --upper old -r image.json -f - <<< '{"op":"text","path":"/b","content":"2"}' > patched.json
    [ "$(jq -r '.upper | .dir, .work' patched.json)" = "$PWD/old"$'\n'"$PWD/old.work" ]
    show
    [ "$(cat merged/a merged/b)" = 12 ]
    [ -d merged/upper ]
    umount merged
    # A missing one is made in the new form, even if its work directory is left.
    rm -r old
    for content in 1 2; do
        msb-patch --upper old -r image.json -f - <<< '{"op":"append","path":"/etc/motd","content":"'$content'"}' > patched.json
    done
    [ "$(jq -r .upper.dir patched.json)" = "$PWD/old/upper" ]
    show
    [ "$(tail -n 1 merged/etc/motd)" = 12 ]
}

@test "a path that a record cannot hold is refused before anything is made" {
    bad=$'bad\xff'
    run --separate-stderr msb-patch --upper "./$bad" -r image.json -f - <<< '{"op":"mkdir","path":"/a"}'
    [ "$status" = 1 ]
    [[ $stderr == 'msb-patch: --upper: "'*'\xFF" is not UTF-8, and a record cannot hold such a path (choose another)' ]]
    for ops in '{"op":"mkdir","path":"/a"}' '{"op":"script","name":"a","content":"x"}'; do
        MSB_HOME=$PWD/$bad run --separate-stderr msb-patch -r image.json -f - <<< "$ops"
        [ "$status" = 1 ]
        [[ $stderr == *'is not UTF-8'* ]]
    done
    MSB_HOME=$PWD/$bad run --separate-stderr msb-mount -r image.json
    [ "$status" = 1 ]
    [[ $stderr == *'is not UTF-8'* ]]
    run --separate-stderr msb-mount -r image.json "./$bad"
    [ "$status" = 1 ]
    [[ $stderr == *'is not UTF-8'* ]]
    [ -z "$(sandboxes)" ]
    [ ! -e "$bad" ]
    mkdir "$bad"
    cd "$bad"
    run --separate-stderr msb-patch --upper mine -r ../image.json -f - <<< '{"op":"mkdir","path":"/a"}'
    [ "$status" = 1 ]
    [[ $stderr == *'is not UTF-8'* ]]
    run --separate-stderr msb-mount -r ../image.json mnt
    [ "$status" = 1 ]
    [[ $stderr == *'is not UTF-8'* ]]
    run --separate-stderr msb-pull .
    [ "$status" = 1 ]
    [[ $stderr == *'is not UTF-8'* ]]
    [ -z "$(ls -A)" ]
}

@test "if the record cannot be printed, the old upper or none is left, and no script" {
    ops='{"op":"text","path":"/a","content":"new","replace":true} {"op":"script","name":"setup","content":"x"}'
    for upper in '' "$PWD/mine"; do
        run --separate-stderr sh -c 'msb-patch -r image.json ${1:+--upper "$1"} -f - > /dev/full' - "$upper" <<< "$ops"
        [ "$status" = 1 ]
        [[ $stderr == 'msb-patch: stdout: '* ]]
        [ -z "$(sandboxes)" ]
        [ ! -e mine ]
    done
    patch '{"op":"text","path":"/a","content":"old"}'
    upper=$(jq -r .upper.dir patched.json)
    run --separate-stderr sh -c 'msb-patch -r patched.json -f - > /dev/full' <<< "$ops"
    [ "$status" = 1 ]
    [ "$(cat "$upper/a")" = old ]
    [ "$(sandboxes | wc -l)" = 1 ]
    [ -z "$(ls -A "$upper/../work")" ]
}

@test "a failed sync after the rename is a warning, and the new upper stays" {
    cat > sync.c <<'END'
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int fsync(int fd) {
    struct stat st;
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) { errno = EIO; return -1; }
    return syscall(SYS_fsync, fd);
}
END
    cc -shared -fPIC -o sync.so sync.c
    for upper in mine ''; do
        LD_PRELOAD=$PWD/sync.so run --separate-stderr msb-patch -r image.json ${upper:+--upper "$upper"} -f - <<< '{"op":"text","path":"/a","content":"old"}'
        [ "$status" = 0 ]
        [[ $stderr == *', so a crash now may restore the old one: Input/output error'* ]]
        echo "$output" > patched.json
        LD_PRELOAD=$PWD/sync.so run --separate-stderr msb-patch -r patched.json -f - <<< '{"op":"text","path":"/a","content":"new","replace":true}'
        [ "$status" = 0 ]
        [ "$(cat "$(jq -r .upper.dir patched.json)/a")" = new ]
        [ -z "$(ls -A "$(jq -r .upper.work patched.json)")" ]
    done
}

@test "if scripts cannot be written, the upper does not change; a failure leaves no report" {
    msb-patch --upper mine -r image.json -f - <<< '{"op":"text","path":"/a","content":"old"}' > patched.json
    mkdir small
    mount -t tmpfs -o size=16k none small
    head -c 100000 /dev/zero | tr '\0' x > x
    { cat <<< '{"op":"text","path":"/a","content":"new","replace":true}'; printf '{"op":"script","name":"setup","content":"%s"}' "$(cat x)"; } > ops
    MSB_HOME=$PWD/small run msb-patch -r patched.json -f ops --report said.jsonl
    umount small
    [ "$status" = 1 ]
    [ "$(cat mine/upper/a)" = old ]
    rm said.jsonl
    rm -r mine
    run msb-patch -r patched.json -f ops --report said.jsonl
    [ "$status" = 1 ]
    [[ $output == *'is gone'* ]]
    [ -z "$(find . -maxdepth 1 -name '*said*')" ]
}

@test "--upper touches nothing beside it, and a dry run or a failure leaves nothing" {
    mkdir env && touch .env.local .env.production
    msb-patch --upper ./env -r image.json -f - <<< '{"op":"text","path":"/a","content":"1"}' > patched.json
    msb-patch --upper ./env -r image.json -f - <<< '{"op":"text","path":"/b","content":"2"}' > patched.json
    [ -e .env.local ]
    [ -e .env.production ]
    msb-patch -n --upper ./dry -r image.json -f - <<< '{"op":"mkdir","path":"/x"}'
    run msb-patch --upper ./dry -r image.json -f - <<< '{"op":"append","path":"/none","content":""}'
    [ "$status" = 1 ]
    [ -z "$(find . -maxdepth 1 -name '*dry*')" ]
}

@test "copy_dir refuses a tree that contains the upper" {
    run --separate-stderr patch "{\"op\":\"copy_dir\",\"src\":\"$PWD\",\"dst\":\"/copy\"}"
    [ "$status" = 1 ]
    [[ $stderr == *'is the upper that is being written (copy a smaller directory)'* ]]
    [ -z "$(sandboxes)" ]
}

@test "copy_file copies the content of a file in /proc" {
    patch '{"op":"copy_file","src":"/proc/version","dst":"/version"}'
    cmp "$(jq -r .upper.dir patched.json)/version" /proc/version
}

@test "operations may have a byte order mark, carriage returns, and base64 with line breaks" {
    head -c 100 /dev/urandom >bytes
    { printf '\xef\xbb\xbf{"op":"text","path":"/a",\r\n"content":"a"}\r\n'
        jq -c --null-input --arg bytes "$(base64 bytes)" '{op: "file", path: "/bytes", content_base64: $bytes}' | sed 's/$/\r/'; } >ops.jsonl
    grep -q '\\n' ops.jsonl
    msb-patch -r image.json -f ops.jsonl >patched.json
    show
    [ "$(cat merged/a)" = a ]
    cmp bytes merged/bytes
}

@test "a relative src is looked up in the working directory, or in that of -C, wherever the operations are" {
    mkdir -p elsewhere/ops
    echo here >one
    echo there >elsewhere/one
    printf '%s\n' '{"op":"copy_file","src":"one","dst":"/one","replace":true}' '{"op":"copy_dir","src":".","dst":"/all"}' "{\"op\":\"copy_file\",\"src\":\"$PWD/one\",\"dst\":\"/absolute\"}" >elsewhere/ops/ops.jsonl
    msb-patch -r image.json -f elsewhere/ops/ops.jsonl -C elsewhere >patched.json
    show
    [ "$(cat merged/one merged/all/one merged/absolute)" = $'there\nthere\nhere' ]
    umount merged
    msb-patch -r image.json -f <(head -n 1 elsewhere/ops/ops.jsonl) >patched.json
    show
    [ "$(cat merged/one)" = here ]
    for dir in none one; do
        run --separate-stderr msb-patch -r image.json -f elsewhere/ops/ops.jsonl -C "$dir"
        [ "$status" -eq 1 ]
        [[ $stderr == "msb-patch: directory \"$dir\": "* ]]
    done
    run --separate-stderr msb-patch -r image.json -f - -C elsewhere <<<'{"op":"copy_file","src":"two","dst":"/x"}'
    [[ $stderr == 'msb-patch: op 1: copy_file "/x": src "elsewhere/two": No such file'* ]]
}

@test "killed at any moment, msb-patch leaves the old upper or the new one, also with --upper, and the next run succeeds" {
    head -c 3000000 /dev/urandom > big
    patch '{"op":"text","path":"/a","content":"old"}'
    upper=$(jq -r .upper.dir patched.json)
    for i in $(seq 300); do printf '{"op":"copy_file","src":"big","dst":"/f%s","replace":true}\n' "$i"; done > many.jsonl
    echo '{"op":"text","path":"/a","content":"new","replace":true}' >> many.jsonl
    for delay in 0.002 0.01 0.03 0.06 0.1 0.2 0.4; do
        timeout --foreground -s KILL "$delay" msb-patch -r patched.json -f many.jsonl > /dev/null || true
        count=$(find "$upper" -name 'f*' | wc -l)
        case $(cat "$upper/a") in
            old) [ "$count" = 0 ] ;;
            new) [ "$count" = 300 ] ;;
            *) false ;;
        esac
    done
    msb-patch -r patched.json -f many.jsonl > again.json
    [ "$(cat "$upper/a")" = new ]
    [ -z "$(ls -A "$upper/../work")" ]
    # One that the caller named is complete or missing.
    for delay in 0.002 0.01 0.03 0.06 0.1 0.2 0.4; do
        timeout --foreground -s KILL "$delay" msb-patch -r image.json --upper mine -f many.jsonl > /dev/null || true
        if [ -e mine/upper ]; then
            [ "$(find mine/upper -name 'f*' | wc -l)" = 300 ]
            rm -r mine
        fi
    done
    msb-patch -r image.json --upper mine -f many.jsonl > again.json
    [ "$(find mine/upper -name 'f*' | wc -l)" = 300 ]
    [ -z "$(ls -A mine/work)" ]
}

@test "of two concurrent runs on one upper the second is refused" {
    patch '{"op":"mkdir","path":"/a"}'
    mkfifo ops
    msb-patch -r patched.json -f ops > /dev/null &
    first=$!
    exec 9> ops
    echo '{"op":"mkdir","path":"/b"}' >&9
    # The first has locked the upper once it has read an operation.
    timeout 600 sh -c 'until msb-patch -r patched.json -f /dev/null 2>&1 | grep -q "in use"; do :; done'
    run --separate-stderr msb-patch -r patched.json -f /dev/null
    [ "$status" = 1 ]
    [[ $stderr == *'in use by msb-patch, msb-mount, msb-pack or a running VM'* ]]
    # A dry run only reads.
    [ "$(msb-patch -n -r patched.json -f - <<<'{"op":"mkdir","path":"/a"}' | jq -r '[.layer, .action] | join(" ")')" = 'upper nothing' ]
    exec 9>&-
    wait "$first"
}

@test "a directory root is patched in an upper too, never in place" {
    printf '{"msb":1,"rootfs":{"kind":"dir","lower":["%s/bottom"]}}\n' "$PWD" > image.json
    base > before
    patch '{"op":"text","path":"/etc/motd","content":"new","replace":true}'
    base | diff before -
    show
    [ "$(cat merged/etc/motd)" = new ]
}

@test "a disk root takes scripts and refuses patches" {
    truncate -s 1M disk.qcow2
    printf '{"msb":1,"rootfs":{"kind":"disk","path":"%s/disk.qcow2","format":"qcow2"}}\n' "$PWD" > image.json
    patch '{"op":"script","name":"setup","content":"x"}'
    [ -e "$(jq -r .scripts.setup patched.json)" ]
    run --separate-stderr patch '{"op":"mkdir","path":"/a"}'
    [ "$status" = 1 ]
    [ "$stderr" = 'msb-patch: op 1: mkdir "/a": patches need a layered or directory root, and this is a qcow2 disk' ]
}

@test "-n prints what each operation would do, and changes nothing" {
    run --separate-stderr msb-patch -n -r image.json -f - <<'END'
{"op":"text","path":"/bin/x","content":"x"}
{"op":"remove","path":"/etc/motd"}
{"op":"append","path":"/bin/x","content":"y"}
END
    [ "$status" = 0 ]
    [ "$(jq -c '[.n, .op, .resolved, .exists, .layer]' <<< "$output")" = '[1,"text","/usr/bin/x",false,null]
[2,"remove","/etc/motd",true,"lower 1"]
[3,"append","/usr/bin/x",true,"upper"]' ]
    [ -z "$(sandboxes)" ]
}

@test "an image whose symlinks point at the host is patched inside itself" {
    mkdir -p outside
    echo untouched > outside/file
    ln -s "$PWD/outside" bottom/leak
    ln -s ../../../../../../../../../../etc bottom/up
    patch "{\"op\":\"text\",\"path\":\"/leak/file\",\"content\":\"x\"}" '{"op":"text","path":"/up/patched-by-test","content":"x"}'
    [ "$(cat outside/file)" = untouched ]
    [ ! -e /etc/patched-by-test ]
    show
    [ "$(cat "merged$PWD/outside/file")" = x ]
    [ "$(cat merged/etc/patched-by-test)" = x ]
}

@test "a missing record, another version, missing paths and a full disk are errors" {
    run --separate-stderr msb-patch < /dev/null
    [ "$status" = 1 ]
    [[ $stderr == 'msb-patch: no record on stdin'* ]]
    run --separate-stderr msb-patch <<< '{"msb":2}'
    [[ $stderr == *'record version 2 is not supported'* ]]
    run --separate-stderr msb-patch <<< '{"msb":1,"rootfs":{"kind":"dir","lower":["/gone"]}}'
    [ "$status" = 1 ]
    [[ $stderr == *'rootfs "/gone" is gone'* ]]
    mkdir small
    mount -t tmpfs -o size=1M tmpfs small
    head -c 2000000 /dev/zero > big
    MSB_HOME=$PWD/small run --separate-stderr patch '{"op":"copy_file","src":"big","dst":"/big"}'
    left=$(find small/sandboxes -mindepth 1 | wc -l)
    umount small
    [ "$status" = 1 ]
    [[ $stderr == *'No space left on device'* ]]
    [ "$left" = 0 ]
}

@test "a reader that closes the pipe causes no error message" {
    run --separate-stderr bash -c 'msb-patch -r image.json -f /dev/null | true; echo "${PIPESTATUS[0]}"'
    [ -z "$stderr" ]
}
