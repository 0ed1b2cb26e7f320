#!/usr/bin/env bats
# A root served by msb-mount under load from the guest: common file system operations, judged in the guest and on the host.
# One VM serves the whole file.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; the guest's shells expand theirs
bats_require_minimum_version 1.5.0

# Prints operations that copy this machine's git and its libraries. git runs itself under a second name.
git_ops() {
    local git file
    git=$(command -v git) || return 0
    jq -nc --arg git "$git" '{op: "copy_file", src: $git, dst: "/bin/git"}'
    for file in $(ldd "$git" | grep -o '/[^ ]*'); do
        jq -nc --arg file "$file" '{op: "copy_file", src: $file, dst: $file}'
    done
    echo '{"op":"symlink","link":"/bin/git-upload-pack","target":"git"}'
}

setup_file() {
    BATS_TEST_TMPDIR=$BATS_FILE_TMPDIR
    # The guest's processes and files are counted.
    export BATS_NO_PARALLELIZE_WITHIN_FILE=true
    source "$BATS_TEST_DIRNAME/vm.bash"
    source "$BATS_TEST_DIRNAME/image.bash"
    vm_setup
    program=$(guest_program files)
    printf '{"op":"copy_file","src":"%s","dst":"/bin/files","mode":"0755"}\n' "$program" >ops
    echo '{"op":"mkdir","path":"/srv","mode":"0777"}' >>ops
    git_ops >>ops
    msb-pull -q "oci:$(tiny_image):latest" | msb-patch -f ops | msb-mount "$BATS_FILE_TMPDIR/root" >mount.json
    vm_record=$BATS_FILE_TMPDIR/mount.json
    vm_boot load -m 512M
    export MSB_RECORD=$BATS_FILE_TMPDIR/load.json mounted=$BATS_FILE_TMPDIR/root
}

teardown_file() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_teardown
    ! mountpoint -q "$BATS_FILE_TMPDIR/root" || msb-mount -u "$BATS_FILE_TMPDIR/root"
}

setup() {
    cd "$BATS_TEST_TMPDIR" || return
}

guest() {
    timeout 120 msb-exec -- sh -euc "$1"
}

@test "a tree that the guest unpacks is the same on the host" {
    mkdir -p tree/{a/b/c,empty}
    for n in $(seq 300); do echo "$n" >"tree/a/file-$n"; done
    ln tree/a/file-1 tree/a/b/hard
    ln -s ../file-2 tree/a/b/soft
    chmod 4711 tree/a/file-3
    chmod 1777 tree/empty
    chown 1234:5678 tree/a/file-4
    truncate -s 5M tree/a/sparse
    tar -C tree -c . | msb-exec -w /srv -- sh -c 'mkdir tree && tar -x -C tree'
    # BusyBox's tar does not set the owner of symlinks.
    chown -h 1234:5678 tree/a/b/soft
    guest 'chown -h 1234:5678 /srv/tree/a/b/soft'
    manifest() { (cd "$1" && find . ! -name . -printf '%P %y %m %U %G %n %l\n' | sort && find . -type f -exec sha256sum {} + | sort); }
    diff <(manifest tree) <(manifest "$mounted/srv/tree")
    guest 'cd /srv/tree; find . -type f -exec sha256sum {} + | sort' | diff <(cd tree && find . -type f -exec sha256sum {} + | sort) -
    guest 'rm -r /srv/tree; [ ! -e /srv/tree ]'
    [ ! -e "$mounted/srv/tree" ]
}

@test "links, renames onto existing names, and open files without a name work" {
    guest 'cd /srv; echo one >one; ln one two; [ "$(stat -c "%h %i" one)" = "$(stat -c "%h %i" two)" ]; [ "$(stat -c %h one)" = 2 ]
        echo more >>two; [ "$(tail -n 1 one)" = more ]; rm two; [ "$(stat -c %h one)" = 1 ]'
    guest 'cd /srv; echo new >new; mv new one; [ "$(cat one)" = new ]; [ ! -e new ]
        mkdir from to; echo x >from/x; mv -T from to; [ "$(cat to/x)" = x ]; [ ! -e from ]
        mkdir full; echo y >full/y; ! mv -T to full 2>/dev/null; rm -r to full'
    guest 'cd /srv; echo open >gone; exec 3<>gone; rm gone; echo again >&3; [ "$(cat /proc/self/fd/3)" = "open
again" ] || [ "$(cat /proc/self/fd/3)" = again ]'
    guest 'cd /etc; echo more:x:4711: >>group; mv group group.new; mv group.new group; tail -n 1 group' | grep -qx more:x:4711:
    [ "$(tail -n 1 "$mounted/etc/group")" = more:x:4711: ]
}

# bats test_tags=vmm-slow
@test "memory maps, locks, offsets, holes, sizes and attributes behave as programs expect" {
    run guest 'cd /srv; files calls'
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$(grep -c '^ok ' <<<"$output")" -ge 12 ]
    run grep '^not ok' <<<"$output"
    [ -z "$output" ]
}

# bats test_tags=slow
@test "thousands of files can be open at once, and listed" {
    [ "$(guest 'mkdir /srv/open; cd /srv/open; files open 3000; rm -r /srv/open')" = 'opened 3000' ]
    [ "$(guest 'mkdir /srv/many; cd /srv/many; files make 3000; ls | wc -l; find . -type f | wc -l')" = $'made 3000\n3000\n3000' ]
    [ "$(find "$mounted/srv/many" -type f | wc -l)" -eq 3000 ]
    guest 'rm -r /srv/many'
}

# bats test_tags=vmm-slow
@test "the guest's users own what they create, and permissions are enforced" {
    guest 'mkdir -m 1777 /srv/shared; mkdir -m 2775 /srv/group; chown 0:77 /srv/group'
    timeout 60 msb-exec -u 1000:1001 -- sh -euc 'cd /srv/shared; echo mine >mine; mkdir dir; ln -s mine link; mkfifo fifo
        ! echo x >/etc/passwd && ! chown 0 mine && ! cat /root/x' 2>/dev/null
    [ "$(cd "$mounted/srv/shared" && stat -c '%u:%g' mine dir link fifo | sort -u)" = 1000:1001 ]
    timeout 60 msb-exec -u 2000 -- sh -euc '! rm /srv/shared/mine && ! mv /srv/shared/dir /srv/shared/other' 2>/dev/null
    guest 'touch /srv/group/file; mkdir /srv/group/dir; [ "$(stat -c %g /srv/group/file)" = 77 ]; [ "$(stat -c %a /srv/group/dir)" = 2755 ]'
    [ "$(stat -c %g "$mounted/srv/group/file")" = 77 ]
}

@test "concurrent writers and readers see every byte right" {
    guest 'mkdir /srv/load; cd /srv/load
        for n in 1 2 3 4 5 6; do (head -c 2000000 /dev/urandom >$n; for m in 1 2 3; do cp $n $n.$m; cmp $n $n.$m; mv $n.$m moved.$n.$m; done) & done; wait
        for n in 1 2 3 4 5 6; do for m in 1 2 3; do cmp $n moved.$n.$m; done; done
        sha256sum * >/srv/sums'
    (cd "$mounted/srv/load" && sha256sum --check --quiet ../sums)
    guest 'rm -r /srv/load /srv/sums'
}

@test "git clones in the guest, and the clone is whole on both sides" {
    command -v git || skip "git is not installed here"
    repository=$mounted/srv/repository
    git init -q "$repository"
    (cd "$repository" && for n in $(seq 50); do echo "$n" >"file-$n"; done && git add . && git -c user.name=a -c user.email=a@b commit -qm all)
    guest 'export HOME=/root; for way in "" --no-local; do
        rm -rf /srv/clone; git clone -q $way /srv/repository /srv/clone; git -C /srv/clone fsck --full --strict 2>&1; git -C /srv/clone status --short; done
        cat /srv/clone/file-50' >said
    [ "$(cat said)" = 50 ]
    git -c safe.directory='*' -C "$mounted/srv/clone" fsck --full --strict
    [ "$(git -c safe.directory='*' -C "$mounted/srv/clone" rev-parse HEAD)" = "$(git -C "$repository" rev-parse HEAD)" ]
}
