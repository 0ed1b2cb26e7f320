#!/usr/bin/env bats
# msb-patch: operations that change existing files, their place, names and attributes. Judged by the kernel's overlayfs, and by
# stat, getcap, getfattr and getfacl on what that shows.

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

# refused MESSAGE OP: the operation fails with the message, for real and in a dry run, and nothing is left.
refused() {
    run --separate-stderr patch "$2"
    [ "$status" -eq 1 ]
    [[ $stderr == "msb-patch: op 1"*"$1"* ]] || { echo "$2: $stderr"; return 1; }
    msb-patch -n -r image.json -f - <<<"$2" >said 2>/dev/null && return 1
    jq -e --arg message "$1" '.error | contains($message)' said >/dev/null || { cat said; return 1; }
    [ -z "$(sandboxes)" ]
}

@test "chmod sets the modes of files and directories of a layer and of the upper, and changes nothing else" {
    setfacl -m u:7:rwx bottom/var/cache
    patch '{"op":"chmod","path":"/etc/shadow","mode":"4711"}' '{"op":"chmod","path":"/var","mode":"1777"}' '{"op":"text","path":"/new","content":""}' \
        '{"op":"chmod","path":"/new","mode":"0"}' '{"op":"chmod","path":"/bin/tar","mode":"0755"}' '{"op":"chmod","path":"/","mode":"0711"}' \
        '{"op":"chmod","path":"/var/cache/","mode":"0750"}'
    show
    [ "$(stat -c '%a %u:%g %Y' merged/etc/shadow)" = '4711 0:42 1000000' ]
    [ "$(stat -c %a merged/var merged/new merged/usr/bin/tar merged merged/var/cache | xargs)" = '1777 0 755 711 750' ]
    [ -L merged/bin ]
    getfacl -np merged/var/cache | grep -qx 'user:7:rwx.*#effective:r-x'
    [ -e merged/var/cache/apt/pkg ]
    umount merged
    rm -r "$MSB_HOME"
    refused 'chmod "/none": does not exist' '{"op":"chmod","path":"/none","mode":"0644"}'
    refused '"/etc/motd" is not a directory' '{"op":"chmod","path":"/etc/motd/","mode":"0644"}'
    refused 'missing field `mode`' '{"op":"chmod","path":"/etc/motd"}'
    refused 'member "mode": "u+x" is not an octal number' '{"op":"chmod","path":"/etc/motd","mode":"u+x"}'
}

@test "chown takes numbers, and names from the image's passwd and group as earlier operations have changed them" {
    printf 'root:x:0:0:::\nwww:x:33:34::/:\n33:x:77:7:::\n' >bottom/etc/passwd
    printf 'root:x:0:\nweb:x:44:www\n' >bottom/etc/group
    cp "$(type -P true)" bottom/usr/bin/setuid
    chmod 6755 bottom/usr/bin/setuid
    setcap cap_net_raw=ep bottom/usr/bin/setuid
    ln -s /etc/motd bottom/var/link
    patch '{"op":"chown","path":"/etc/motd","uid":"www","gid":"web"}' '{"op":"chown","path":"/etc/hosts","uid":4294967294}' \
        '{"op":"append","path":"/etc/passwd","content":"late:x:55:::/:\n"}' '{"op":"chown","path":"/etc/shadow","uid":"late"}' \
        '{"op":"chown","path":"/usr/bin/setuid","gid":9}' '{"op":"chown","path":"/var","uid":"33","gid":"33","recursive":true}' \
        '{"op":"text","path":"/own","content":"","uid":"www","gid":"web"}' '{"op":"mkdir","path":"/dir","uid":"late"}'
    show
    [ "$(stat -c '%u:%g %Y' merged/etc/motd)" = '33:44 1000000' ]
    [ "$(stat -c %u:%g merged/etc/hosts merged/etc/shadow merged/own merged/dir | xargs)" = '4294967294:0 55:42 33:44 55:0' ]
    # As the kernel does.
    [ "$(stat -c '%a %u:%g' merged/usr/bin/setuid)" = '755 0:9' ]
    [ -z "$(getcap merged/usr/bin/setuid)" ]
    # A name of digits is tried before the number, as in chown(1). Links are not followed.
    [ "$(find merged/var -printf '%U:%G\n' | sort -u)" = 77:33 ]
    [ "$(find merged/var | wc -l)" -eq 5 ]
    # Below a link, or the link itself.
    cp patched.json image.json
    umount merged
    patch '{"op":"chown","path":"/var/link","uid":5}' '{"op":"chown","path":"/var/link","uid":6,"follow":false}'
    show
    [ "$(stat -c %u merged/etc/motd merged/var/link | xargs)" = '5 6' ]
}

@test "a user that the image does not have, and a malformed passwd file, are errors" {
    refused 'uid "www": the image'\''s /etc/passwd: does not exist (give the number)' '{"op":"chown","path":"/etc/motd","uid":"www"}'
    echo 'root:x:0:0:::' >bottom/etc/passwd
    refused 'uid "www": the image'\''s /etc/passwd has no such name (add it first, or give the number)' '{"op":"chown","path":"/etc/motd","uid":"www"}'
    refused 'uid "www": the image'\''s /etc/passwd has no such name' '{"op":"text","path":"/x","content":"","uid":"www"}'
    refused 'uid "www": the image'\''s /etc/passwd has no such name' '{"op":"copy_dir","src":"top","dst":"/x","uid":"www"}'
    for id in 4294967295 '"4294967295"' 4294967296 -1; do
        for op in '"chown","path":"/etc/motd"' '"mkdir","path":"/x"' '"text","path":"/x","content":""' '"file","path":"/x","content_base64":""' \
            '"copy_file","src":"image.json","dst":"/x"' '"copy_dir","src":"top","dst":"/x"'; do
            for member in uid gid; do refused "member \"$member\": invalid value: $id: " "{\"op\":$op,\"$member\":$id}"; done
        done
    done
    echo 'www:x:4294967295:' >bottom/etc/passwd
    refused 'its line has the number "4294967295": 4294967295 is reserved' '{"op":"chown","path":"/etc/motd","uid":"www"}'
    refused 'a member "uid" or "gid" is expected' '{"op":"chown","path":"/etc/motd"}'
    refused 'one user or group is expected' '{"op":"chown","path":"/etc/motd","uid":"root:root"}'
    # Not the host's file, a file that is too large, and an endless one.
    ln -sf ../../../../../../../../etc/passwd bottom/etc/passwd
    refused 'too many levels of symlinks' '{"op":"chown","path":"/etc/motd","uid":"daemon"}'
    rm bottom/etc/passwd
    truncate -s 1G bottom/etc/passwd
    refused 'is larger than 4 MiB' '{"op":"chown","path":"/etc/motd","uid":"www"}'
    rm bottom/etc/passwd
    mkfifo bottom/etc/passwd
    refused 'is not a regular file' '{"op":"chown","path":"/etc/motd","uid":"www"}'
}

@test "touch sets times, and creates missing files" {
    ln -s motd bottom/etc/link
    touch -h -d @7 bottom/etc/link
    patch '{"op":"touch","path":"/etc/motd","mtime":1700000000}' '{"op":"touch","path":"/etc","mtime":"2001-09-09T03:46:40.25+02:00"}' \
        '{"op":"text","path":"/etc/new","content":""}' '{"op":"touch","path":"/var/lib/made","mtime":-5}' '{"op":"touch","path":"/etc/hosts"}' \
        '{"op":"touch","path":"/etc/link","mtime":9,"follow":false}' '{"op":"mkdir","path":"/d"}' '{"op":"touch","path":"/d","mtime":3}' '{"op":"text","path":"/d/x","content":""}'
    show
    [ "$(stat -c %Y merged/etc/motd merged/etc merged/var/lib/made merged/etc/hosts merged/etc/link merged/d | xargs)" = '1700000000 1000000000 -5 1000000 9 3' ]
    [ "$(stat -c %y merged/etc | cut -c 20-29)" = .250000000 ]
    [ "$(stat -c '%a %u:%g %s' merged/var/lib/made)" = '644 0:0 0' ]
    umount merged
    rm -r "$MSB_HOME"
    refused 'touch "/none": does not exist, and "create" is false' '{"op":"touch","path":"/none","create":false}'
    refused 'member "mtime": "yesterday": seconds since 1970 or a time as in "2026-01-31T12:00:00Z" (RFC 3339) is expected' '{"op":"touch","path":"/x","mtime":"yesterday"}'
    refused 'does not end with "/"' '{"op":"touch","path":"/none/"}'
}

@test "xattr sets and removes attributes, and refuses overlayfs's own" {
    setfattr -n user.old -v old bottom/etc/motd
    ln -s motd bottom/etc/link
    patch '{"op":"xattr","path":"/etc/motd","name":"user.note","value":"text"}' '{"op":"xattr","path":"/etc/link","name":"user.bytes","value_base64":"AP8="}' \
        '{"op":"xattr","path":"/etc/motd","name":"user.old","remove":true}' '{"op":"xattr","path":"/etc/motd","name":"user.never","remove":true}' \
        '{"op":"xattr","path":"/var/cache","name":"trusted.dir","value":""}' '{"op":"xattr","path":"/etc/link","name":"trusted.link","value":"l","follow":false}'
    show
    diff <(getfattr -hdm - -e hex merged/etc/motd merged/etc/link merged/var/cache | grep =) - <<'END'
user.bytes=0x00ff
user.note=0x74657874
trusted.link=0x6c
trusted.dir=0x
END
    umount merged
    rm -r "$MSB_HOME"
    for name in trusted.overlay.opaque user.overlay.redirect trusted.overlay.metacopy; do
        refused "xattr \"$name\": reserved for overlayfs" '{"op":"xattr","path":"/etc/motd","name":"'$name'","value":"y"}'
        refused "xattr \"$name\": reserved for overlayfs" '{"op":"xattr","path":"/etc/motd","name":"'$name'","remove":true}'
    done
    for name in '' note user. "user.$(printf 'n%.0s' {1..251})"; do
        refused 'not the name of an xattr' '{"op":"xattr","path":"/etc/motd","name":"'"$name"'","value":"y"}'
    done
    refused 'xattr "other.note": Operation not supported' '{"op":"xattr","path":"/etc/motd","name":"other.note","value":"y"}'
    refused 'only files and directories can have user xattrs' '{"op":"xattr","path":"/etc/link","name":"user.note","value":"y","follow":false}'
    refused 'one of the members "value", "value_base64" and "remove" is expected' '{"op":"xattr","path":"/etc/motd","name":"user.note"}'
    refused 'one of the members "value", "value_base64" and "remove" is expected' '{"op":"xattr","path":"/etc/motd","name":"user.note","value":"","remove":true}'
    refused 'does not exist' '{"op":"xattr","path":"/none","name":"user.note","value":"y"}'
}

@test "capability sets what setcap would set, as getcap shows it" {
    for file in one two three four five; do cp "$(type -P true)" bottom/usr/bin/$file; done
    setcap cap_net_raw=ep bottom/usr/bin/four
    setcap cap_net_raw=ep bottom/usr/bin/five
    mkdir by-setcap
    cp bottom/usr/bin/{one,two,three} by-setcap
    setcap cap_net_bind_service=ep by-setcap/one
    setcap 'cap_chown,cap_checkpoint_restore+ip cap_kill=p' by-setcap/two
    setcap -n 100000 all=eip by-setcap/three
    patch '{"op":"capability","path":"/bin/one","caps":"cap_net_bind_service=ep"}' '{"op":"capability","path":"/bin/two","caps":"cap_chown,cap_checkpoint_restore+ip CAP_KILL=p"}' \
        '{"op":"capability","path":"/bin/three","caps":"all=eip","rootid":100000}' '{"op":"capability","path":"/bin/four","caps":""}' '{"op":"chmod","path":"/bin/five","mode":"0700"}'
    show
    for file in one two three; do
        diff <(cd by-setcap && getcap -n "$file" && getfattr -n security.capability -e hex "$file") <(cd merged/usr/bin && getcap -n "$file" && getfattr -n security.capability -e hex "$file")
    done
    [ "$(cd merged/usr/bin && getcap one)" = 'one cap_net_bind_service=ep' ]
    [ -z "$(getcap merged/usr/bin/four)" ]
    [ "$(cd merged/usr/bin && getcap five)" = 'five cap_net_raw=ep' ]
    umount merged
    rm -r "$MSB_HOME"
    refused 'member "caps": unknown capability "cap_everything"' '{"op":"capability","path":"/bin/one","caps":"cap_everything=ep"}'
    refused 'has the flag "e" for all of its capabilities or for none' '{"op":"capability","path":"/bin/one","caps":"cap_kill=ep cap_chown=p"}'
    refused 'is a directory, which has no capabilities' '{"op":"capability","path":"/etc","caps":"cap_kill=ep"}'
    refused 'does not exist' '{"op":"capability","path":"/none","caps":"cap_kill=ep"}'
}

@test "edit replaces lines, and reports how many match if another number is expected" {
    printf '#Port 22\nPort 22\n# Port\nUser a\r\nUser b' >bottom/etc/conf
    chmod 0640 bottom/etc/conf
    chown 7:8 bottom/etc/conf
    setfattr -n user.note -v kept bottom/etc/conf
    patch '{"op":"edit","path":"/etc/conf","line":"#Port 22","with":"Port 23"}' '{"op":"edit","path":"/etc/conf","regex":"^User (.)$","with":"Group ${1}$$","count":2}' \
        '{"op":"edit","path":"/etc/conf","regex":"^Port ","with":"Port 24","count":2}'
    show
    printf 'Port 24\nPort 24\n# Port\nGroup a$\r\nGroup b$' | cmp - merged/etc/conf
    [ "$(stat -c '%a %u:%g' merged/etc/conf)" = '640 7:8' ]
    [ "$(getfattr --only-values -n user.note merged/etc/conf)" = kept ]
    umount merged
    rm -r "$MSB_HOME"
    refused '0 lines match, not 1' '{"op":"edit","path":"/etc/conf","line":"Port","with":"x","count":1}'
    refused 'no line matches' '{"op":"edit","path":"/etc/conf","line":"Port","with":"x"}'
    refused '3 lines match, not 2' '{"op":"edit","path":"/etc/conf","regex":"Port","with":"x","count":2}'
    refused 'member "regex": unclosed group' '{"op":"edit","path":"/etc/conf","regex":"(","with":"x"}'
    refused 'one of the members "line" and "regex" is expected' '{"op":"edit","path":"/etc/conf","line":"a","regex":"a","with":"x"}'
    refused 'does not exist' '{"op":"edit","path":"/none","line":"a","with":"x"}'
    refused 'is a directory' '{"op":"edit","path":"/etc","line":"a","with":"x"}'
    truncate -s 65M bottom/etc/large
    refused 'is larger than 64 MiB' '{"op":"edit","path":"/etc/large","line":"a","with":"x"}'
}

@test "rename moves files and whole directories of layers with all their attributes, as mv does on the kernel's overlayfs" {
    mkdir -p bottom/srv/{data/{sub/deep,gone,hidden},other} top/srv/data/{sub,hidden} top/srv/free
    echo 1 >bottom/srv/data/one
    ln bottom/srv/data/one bottom/srv/data/sub/two
    echo 2 >bottom/srv/data/sub/deep/file
    ln -s ../one bottom/srv/data/sub/link
    mkfifo bottom/srv/data/sub/fifo
    mknod bottom/srv/data/null c 1 3
    echo 3 >top/srv/data/sub/three
    echo x >bottom/srv/data/hidden/x
    echo x | tee bottom/srv/data/gone/x bottom/srv/data/away >/dev/null
    mknod top/srv/data/gone c 0 0
    mknod top/srv/data/away c 0 0
    mknod top/srv/other c 0 0
    setfattr -n trusted.overlay.opaque -v y top/srv/data/hidden
    setfattr -n user.note -v kept top/srv/data/sub
    setfacl -d -m u:7:rwx bottom/srv/data/sub/deep
    chmod 2750 top/srv/data
    chown 5:6 top/srv/data
    cp "$(type -P true)" bottom/srv/data/sub/cap
    chmod 4755 bottom/srv/data/sub/cap
    setcap cap_kill=ep bottom/srv/data/sub/cap
    find bottom top -depth -exec touch -h -d @1000000 {} +
    # With mv, which copies and removes if the kernel returns EXDEV; the parents' times are restored, as msb-patch does.
    mkdir -p kernel/{upper,work}
    mount -t overlay overlay -o "lowerdir=$PWD/top:$PWD/bottom,upperdir=$PWD/kernel/upper,workdir=$PWD/kernel/work" merged
    echo upper >merged/srv/data/sub/upper
    touch -d @2000000 merged/srv/data/sub/upper merged/srv/data/sub
    mv merged/srv/data merged/srv/other
    mv merged/etc/shadow merged/srv/free/shadow
    mv merged/bin merged/sbin
    touch -d @1000000 merged/srv merged/srv/free merged/etc merged
    tree_manifest merged >expected
    umount merged
    base >before
    patch '{"op":"text","path":"/srv/data/sub/upper","content":"upper\n"}' '{"op":"touch","path":"/srv/data/sub/upper","mtime":2000000}' '{"op":"touch","path":"/srv/data/sub","mtime":2000000}' \
        '{"op":"rename","from":"/srv/data","to":"/srv/other"}' '{"op":"rename","from":"/etc/shadow","to":"/srv/free/shadow"}' '{"op":"rename","from":"/bin","to":"/sbin"}'
    base | diff before -
    show
    tree_manifest merged | diff expected -
    [ ! -e merged/srv/data ]
    [ ! -e merged/srv/other/gone ]
    [ -z "$(ls -A merged/srv/other/hidden)" ]
    [ "$(stat -c '%h %i' merged/srv/other/one)" = "$(stat -c '%h %i' merged/srv/other/sub/two)" ]
    [ "$(cd merged/srv/other/sub && getcap cap)" = 'cap cap_kill=ep' ]
    # No whiteout is left in a directory that only the upper has: the kernel would list it.
    [ -z "$(find "$(jq -r .upper.dir patched.json)/srv/other" -type c ! -name null)" ]
}

@test "rename works in a continued upper: back, onto a file, onto a whiteout, into a new parent" {
    mkdir bottom/srv
    echo file >bottom/srv/file
    patch '{"op":"rename","from":"/srv","to":"/opt/srv"}' '{"op":"text","path":"/new/a","content":"a"}' '{"op":"text","path":"/new/b","content":"b"}'
    cp patched.json image.json
    patch '{"op":"rename","from":"/opt/srv","to":"/srv"}' '{"op":"rename","from":"/new/a","to":"/new/b","replace":true}' '{"op":"rename","from":"/new","to":"/deep/er/new"}' \
        '{"op":"rename","from":"/etc/hosts","to":"/etc/motd","replace":true}' '{"op":"rename","from":"/var","to":"/new"}' '{"op":"text","path":"/var","content":"a file"}'
    show
    [ "$(cat merged/srv/file merged/deep/er/new/b merged/var)" = $'file\naa file' ]
    [ "$(ls merged/srv merged/opt merged/deep/er/new | xargs)" = 'merged/deep/er/new: b merged/opt: merged/srv: file' ]
    [ "$(cat merged/etc/motd)" = '127.0.0.1 localhost' ]
    [ ! -e merged/etc/hosts ]
    [ -e merged/new/cache/apt/pkg ]
}

@test "metacopies and redirected directories that a kernel has made can be changed and moved" {
    mkdir -p bottom/srv/{dir/sub,plain} mine/{upper,work}
    chmod 0700 mine
    for file in moved linked edited alone dir/sub/deep plain/file; do
        echo "data of $file" >"bottom/srv/$file"
        chown 9:9 "bottom/srv/$file"
    done
    mount -t overlay overlay -o "redirect_dir=on,metacopy=on,lowerdir=$PWD/top:$PWD/bottom,upperdir=$PWD/mine/upper,workdir=$PWD/mine/work" merged
    chmod 0640 merged/srv/{moved,linked,edited,alone} merged/srv/dir/sub/deep merged/srv/plain/file
    mv merged/srv/dir merged/srv/redirected
    umount merged
    getfattr -n trusted.overlay.metacopy mine/upper/srv/moved
    getfattr -n trusted.overlay.redirect mine/upper/srv/redirected
    rm -rf mine/work/*
    jq -c --arg mine "$PWD/mine" '.upper = {dir: "\($mine)/upper", work: "\($mine)/work"}' image.json >upper.json
    mv upper.json image.json
    patch '{"op":"rename","from":"/srv/moved","to":"/new/moved"}' '{"op":"hardlink","target":"/srv/linked","link":"/new/linked"}' '{"op":"edit","path":"/srv/edited","line":"data of edited","with":"new"}' \
        '{"op":"chmod","path":"/srv/alone","mode":"0600"}' '{"op":"rename","from":"/srv/redirected","to":"/srv/again"}' '{"op":"rename","from":"/srv/plain","to":"/srv/fancy"}' \
        '{"op":"append","path":"/srv/alone","content":"data of alone\n","once":true}' '{"op":"text","path":"/srv/fancy/file","content":"data of plain/file\n"}'
    mount -t overlay overlay -o "redirect_dir=on,metacopy=on,lowerdir=$PWD/top:$PWD/bottom,upperdir=$PWD/mine/upper,workdir=$PWD/mine/work" merged
    [ "$(cd merged && cat new/moved new/linked srv/linked srv/edited srv/alone srv/again/sub/deep srv/fancy/file)" = 'data of moved
data of linked
data of linked
new
data of alone
data of dir/sub/deep
data of plain/file' ]
    [ "$(cd merged && stat -c '%a %u' new/moved new/linked srv/edited srv/again/sub/deep srv/fancy/file | sort -u)" = '640 9' ]
    [ "$(stat -c '%a %h' merged/srv/alone merged/srv/linked | xargs)" = '600 1 640 2' ]
    [ "$(ls merged/srv | xargs)" = 'again alone edited fancy linked' ]
}

@test "what rename refuses" {
    mkdir -p bottom/srv/inner bottom/empty
    refused 'rename "/none": does not exist' '{"op":"rename","from":"/none","to":"/x"}'
    refused 'rename "/etc/motd": to "/etc/hosts": exists in the image (set "replace": true to overwrite it)' '{"op":"rename","from":"/etc/motd","to":"/etc/hosts"}'
    refused 'to "/empty": exists and is a directory (remove it first)' '{"op":"rename","from":"/srv","to":"/empty","replace":true}'
    refused 'to "/empty": exists and is a directory (remove it first)' '{"op":"rename","from":"/etc/motd","to":"/empty","replace":true}'
    refused 'which a directory does not replace (remove it first)' '{"op":"rename","from":"/srv","to":"/etc/motd","replace":true}'
    refused 'to "/srv/inner/x": is inside it' '{"op":"rename","from":"/srv","to":"/srv/inner/x"}'
    refused 'is the root, which stays' '{"op":"rename","from":"/","to":"/x"}'
    refused 'to "/x/": a file'\''s path does not end with "/"' '{"op":"rename","from":"/etc/motd","to":"/x/"}'
    refused '"/etc/motd" is not a directory' '{"op":"rename","from":"/etc/motd/","to":"/x"}'
    refused 'to "/etc/motd/x": "/etc/motd" is not a directory' '{"op":"rename","from":"/var","to":"/etc/motd/x"}'
    patch '{"op":"rename","from":"/srv","to":"/srv/"}' '{"op":"rename","from":"/etc/motd","to":"/etc/motd"}'
    show
    [ -d merged/srv/inner ]
}

@test "hardlink gives a file a second name in the upper: also a layer's file, a symlink and a FIFO" {
    ln bottom/etc/motd bottom/etc/twin
    mkfifo bottom/etc/fifo
    mkdir bottom/srv
    setfacl -d -m u:7:rwx bottom/srv
    base >before
    patch '{"op":"hardlink","target":"/etc/motd","link":"/srv/deep/motd"}' '{"op":"append","path":"/srv/deep/motd","content":"more\n"}' '{"op":"hardlink","target":"/bin","link":"/sbin"}' \
        '{"op":"hardlink","target":"/etc/fifo","link":"/etc/pipe"}' '{"op":"hardlink","target":"/etc/shadow","link":"/etc/hosts","replace":true}' '{"op":"hardlink","target":"/etc/shadow","link":"/srv/shadow"}'
    base | diff before -
    show
    [ "$(cat merged/etc/motd)" = $'old motd\nmore' ]
    [ "$(cat merged/etc/twin)" = 'old motd' ]
    [ "$(stat -c '%h %i' merged/etc/motd)" = "2 $(stat -c %i merged/srv/deep/motd)" ]
    [ "$(stat -c '%h %i' merged/sbin)" = "2 $(stat -c %i merged/bin)" ]
    [ "$(readlink merged/sbin)" = usr/bin ]
    [ "$(stat -c '%h %i %F' merged/etc/pipe)" = "2 $(stat -c %i merged/etc/fifo) fifo" ]
    [ "$(stat -c '%h %a %u:%g' merged/etc/hosts merged/srv/shadow | sort -u)" = '3 640 0:42' ]
    [ -z "$(getfacl -nsp merged/srv/shadow)" ]
    umount merged
    # In a continued upper they stay one file.
    cp patched.json image.json
    patch '{"op":"chmod","path":"/etc/motd","mode":"0600"}' '{"op":"hardlink","target":"/srv/deep/motd","link":"/third"}'
    show
    [ "$(stat -c '%h %a' merged/etc/motd merged/srv/deep/motd merged/third | sort -u)" = '3 600' ]
}

@test "what hardlink refuses" {
    refused 'hardlink "/x": target "/none": does not exist' '{"op":"hardlink","target":"/none","link":"/x"}'
    refused 'target "/etc": is a directory, and a directory has only one name' '{"op":"hardlink","target":"/etc","link":"/x"}'
    refused 'target "none": the path is not absolute' '{"op":"hardlink","target":"none","link":"/x"}'
    refused 'exists in the image (set "replace": true to overwrite it)' '{"op":"hardlink","target":"/etc/motd","link":"/etc/hosts"}'
    refused 'exists and is a directory (remove it first)' '{"op":"hardlink","target":"/etc/motd","link":"/var","replace":true}'
    refused 'does not end with "/"' '{"op":"hardlink","target":"/etc/motd","link":"/x/"}'
}

@test "copy_dir gives its mode and owner to everything it copies, and a directory gets x wherever it has r" {
    echo 'web:x:33:' >bottom/etc/passwd
    mkdir -p src/sub
    echo a >src/sub/a
    ln -s a src/sub/link
    mkdir -p bottom/srv
    chmod 0700 bottom/srv
    chmod 0777 src/sub src/sub/a
    patch '{"op":"copy_dir","src":"src","dst":"/srv","mode":"0640","uid":"web","gid":7}' '{"op":"copy_dir","src":"src","dst":"/new","mode":"2604"}'
    show
    [ "$(cd merged && stat -c '%n %a %u:%g' srv srv/sub srv/sub/a new new/sub new/sub/a)" = 'srv 700 0:0
srv/sub 750 33:7
srv/sub/a 640 33:7
new 2705 0:0
new/sub 2705 0:0
new/sub/a 2604 0:0' ]
    [ "$(stat -c %u:%g merged/srv/sub/link)" = 33:7 ]
}

@test "paths that are not UTF-8 are given in base64, in every operation and in the report" {
    bad=$(printf 'b\377d')
    base64() { printf %s "$1" | command base64 -w 0; }
    echo source >"$bad"
    mkdir "dir$bad"
    echo x >"dir$bad/x"
    patch '{"op":"text","path_base64":"'"$(base64 "/$bad/text")"'","content":"t"}' '{"op":"copy_file","src_base64":"'"$(base64 "$bad")"'","dst_base64":"'"$(base64 "/$bad/file")"'"}' \
        '{"op":"copy_dir","src_base64":"'"$(base64 "dir$bad")"'","dst_base64":"'"$(base64 "/$bad")"'"}' '{"op":"symlink","target_base64":"'"$(base64 "$bad")"'","link_base64":"'"$(base64 "/l$bad")"'"}' \
        '{"op":"hardlink","target_base64":"'"$(base64 "/$bad/text")"'","link_base64":"'"$(base64 "/$bad/hard")"'"}' '{"op":"rename","from_base64":"'"$(base64 "/$bad/x")"'","to_base64":"'"$(base64 "/$bad/y$bad")"'"}' \
        '{"op":"chmod","path_base64":"'"$(base64 "/l$bad/file")"'","mode":"0600"}'
    show
    [ "$(cat "merged/$bad/text" "merged/$bad/file" "merged/$bad/y$bad")" = $'tsource\nx' ]
    [ "$(readlink "merged/l$bad")" = "$bad" ]
    [ "$(stat -c '%h' "merged/$bad/hard")" -eq 2 ]
    [ "$(stat -c '%a' "merged/$bad/file")" -eq 600 ]
    msb-patch -n -r patched.json -f - <<<'{"op":"rename","from_base64":"'"$(base64 "/l$bad/file")"'","to_base64":"'"$(base64 "/$bad/new")"'"}' >said
    [ "$(jq -r .resolved_base64 said | command base64 -d)" = "/$bad/file" ]
    [ "$(jq -r .to_base64 said | command base64 -d)" = "/$bad/new" ]
    [ "$(jq -r .path_base64 said | command base64 -d)" = "/l$bad/file" ]
    jq -e '.path | startswith("/lb") and endswith("d/file")' said
    umount merged
    rm -r "$MSB_HOME"
    refused 'members "path" and "path_base64": one of them is expected' '{"op":"remove","path":"/a","path_base64":"L2E="}'
    refused 'member "path_base64": not base64: invalid character "@" at offset 0' '{"op":"remove","path_base64":"@"}'
    refused 'the path holds a NUL' '{"op":"remove","path_base64":"L2EAYg=="}'
    refused 'the target holds a NUL' '{"op":"symlink","target_base64":"L2EAYg==","link":"/x"}'
}
