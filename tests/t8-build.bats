#!/usr/bin/env bats
# Builds: msb-run --commit, which runs a step, and the examples, which go from a base to an image that is pushed.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/block.bash"
source "$BATS_TEST_DIRNAME/registry.bash"

teardown() {
    vm_teardown
    registry_stop "$BATS_TEST_TMPDIR/registry"
    rm -rf "${open:-}"
}

# example NAME: copies an example into the working directory, and enters it.
example() {
    cp -r "$BATS_TEST_DIRNAME/../examples/$1" .
    cd "$1" || return
}

# sandboxes: the names of all uppers in the store.
sandboxes() {
    ls -A "$MSB_HOME/sandboxes" 2>/dev/null
}

@test "a step that fails leaves nothing, one that succeeds gives a new upper, and the same step does nothing the second time" {
    echo patched >file
    echo '{"op":"text","path":"/srv/a","content":"one\n"}' | msb-patch -r image.json -f - >base.json
    echo '{"op":"copy_file","src":"file","dst":"/srv/file"}' >ops.jsonl
    before=$(sandboxes)
    run --separate-stderr msb-run -q --commit --cache -r base.json -o step.json -- sh -c 'echo lost >/srv/b; exit 7'
    [ "$status" = 7 ]
    [ ! -e step.json ]
    [ "$(sandboxes)" = "$before" ]
    vm_assert_nothing
    export NAME=value
    echo OTHER >variables
    step() {
        msb-run -q --commit --cache -e NAME --env-file variables --patch ops.jsonl -r base.json -o step.json -- \
            sh -c 'cat - /srv/*; echo "$NAME" >>/srv/a' "$@"
    }
    # Its stdin is not that of msb-run, which the cache does not know.
    [ "$(step 2>&1 <<<lost)" = $'one\npatched' ]
    upper=$(jq -r .upper.dir step.json)
    [ "$(cat "$upper/srv/a" "$upper/srv/file")" = $'one\nvalue\npatched' ]
    # The record that it started from is as before, and the new one has nothing of the VM.
    [ "$(cat "$(jq -r .upper.dir base.json)/srv/a")" = one ]
    diff <(jq 'del(.upper)' base.json) <(jq 'del(.upper)' step.json)
    vm_assert_nothing
    # Without msb-boot it can only come from the cache.
    mkdir cached
    cp "$release"/msb-{run,pull,patch,exec,stop,rm} cached/
    printf '#!/bin/sh\n[ "$1" = --generate ] && exec %s/msb-boot "$@"\nexit 3\n' "$release" >cached/msb-boot
    chmod +x cached/msb-boot
    PATH=$PWD/cached:$PATH
    cp step.json first.json
    before=$(sandboxes)
    step
    cmp first.json step.json
    # msb-run without -r reads the same root from an image's record.
    missed() {
        run -125 --separate-stderr step "$@"
        [ -z "$output" ] && [ "$(sandboxes)" = "$before" ]
    }
    missed another
    NAME=other missed
    OTHER=value missed
    SOURCE_DATE_EPOCH=1 missed
    echo changed >file
    missed
    echo patched >file
    touch -r ops.jsonl file
    # A result that somebody has changed is none.
    echo '{"op":"text","path":"/srv/late","content":""}' | msb-patch -r step.json -f - >changed.json
    missed
    run -125 msb-run --commit -r base.json
    [[ $output == *'--commit needs a command'* ]]
    run -125 msb-run --commit --cache --patch <(cat ops.jsonl) -r base.json -- true
    [[ $output == *'a pipe, which can be read only once'* ]]
}

@test "examples/dockerfile: the instructions become an image, whose second build runs nothing" {
    layout=$(tiny_image)
    example dockerfile
    mkdir -p context/site/sub
    echo page >context/site/sub/page
    echo '#!/bin/sh' >context/tool
    chmod 0755 context/tool
    cat >context/Dockerfile <<END
# A comment.
FROM oci:$layout:latest
ENV A=1 B="two words"
WORKDIR /work/$(printf '\x24')A
COPY site tool ./
  COPY --chown=12:34 tool /opt/owned
RUN echo "\$A \$B" >env && \\
    # not a part of the line
    pwd >>env
USER 12
CMD ["/bin/cat", "env"]
ENV C=\$B
ENV D=\$A \\
END
    ./msb-build oci:out:v1 context >one.json
    skopeo inspect --config oci:out:v1 | jq -e '.config | .Cmd == ["/bin/cat","env"] and .User == "12" and .WorkingDir == "/work/1"
        and (.Env | index("A=1") and index("B=two words") and index("C=two words") and index("D=1"))'
    umoci unpack --image out:v1 root
    [ "$(cat root/rootfs/work/1/env)" = $'1 two words\n/work/1' ]
    [ "$(cat root/rootfs/work/1/sub/page)" = page ]
    [ "$(stat -c '%a %u:%g' root/rootfs/work/1/tool root/rootfs/opt/owned)" = $'755 0:0\n755 12:34' ]
    # Each build has an upper of its own only where no step has made one.
    before=$(sandboxes)
    ./msb-build oci:out:v2 context >two.json
    [ "$(sandboxes)" = "$before" ]
    [ "$(jq .upper one.json)" = "$(jq .upper two.json)" ]
    [ "$(skopeo inspect --raw oci:out:v1 | jq -r '.layers[-1].digest')" = "$(skopeo inspect --raw oci:out:v2 | jq -r '.layers[-1].digest')" ]
    for line in 'ADD x /' 'COPY ../x /' 'COPY' 'ENV A="b' 'FROM a'; do
        run -1 ./msb-build -f <(printf 'FROM oci:%s:latest\n%s\n' "$layout" "$line") oci:bad context
        [[ $output == "msb-build: "* ]]
    done
    # A result goes with its upper.
    msb-store gc >collected
    [ -n "$(ls -A "$MSB_HOME/steps")" ]
    rm -r "$MSB_HOME"/sandboxes/*
    msb-store gc >collected
    [ -z "$(ls -A "$MSB_HOME/steps")" ]
}

# small: has mmdebstrap and apt-get made by scripts in a tiny root.
small() {
    umoci unpack --image "$(tiny_image):latest" ../tiny
    mkdir -p ../bin ../tiny/rootfs/var/lib/apt/lists
    printf '#!/bin/sh\necho "apt-get $*" >>/var/apt\n' >../tiny/rootfs/bin/apt-get
    chmod +x ../tiny/rootfs/bin/apt-get
    printf '#!/bin/sh\nfor to; do :; done\ntar -C %q -cf "$to" .\n' "$PWD/../tiny/rootfs" >../bin/mmdebstrap
    chmod +x ../bin/mmdebstrap
    PATH=$PWD/../bin:$PATH
}

@test "examples/debian-app: make -j gives a pushed image and a disk, a second make does nothing, and a change runs what depends on it" {
    example debian-app
    small
    registry_start "$BATS_TEST_TMPDIR/registry"
    make -j4 "REGISTRY=$registry_host"
    skopeo inspect --tls-verify=false --config "docker://$registry_host/debian-app:v1" | jq -e '.config.Cmd == ["/usr/local/bin/greet"]'
    [ "$(qemu-img info --output json disk.qcow2 | jq -r .format)" = qcow2 ]
    [ "$(cat "$(jq -r .upper.dir installed.json)/var/apt")" = 'apt-get update
apt-get install -y --no-install-recommends cowsay
apt-get clean' ]
    for ((n = 0; n < 3; n++)); do
        start=${EPOCHREALTIME/./}
        [[ $(make "REGISTRY=$registry_host") == *'Nothing to be done'* ]]
        echo "nothing to do: $((${EPOCHREALTIME/./} - start)) us"
    done
    # Only the image depends on how it is pushed.
    before=$(stat -c %Y.%i installed.json disk.json)
    rm image.json
    [ "$(make -j4 "REGISTRY=$registry_host" | grep -c '^msb-')" -eq 1 ]
    [ "$(stat -c %Y.%i installed.json disk.json)" = "$before" ]
    registry_stop "$BATS_TEST_TMPDIR/registry"
    make clean
    [ "$(echo *)" = 'Makefile app ops.jsonl' ]
}
