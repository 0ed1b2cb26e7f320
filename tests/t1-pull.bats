#!/usr/bin/env bats
# msb-pull against real registries, archives written by skopeo, and umoci as the judge of what a layer means.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats sets stderr and stderr_lines
bats_require_minimum_version 1.5.0

setup_file() {
    PATH="$BATS_TEST_DIRNAME/../target/release:$PATH"
    source "$BATS_TEST_DIRNAME/image.bash"
    source "$BATS_TEST_DIRNAME/registry.bash"
    layered=$(layered_image)
    tiny=$(tiny_image)
    demo=$(demo_image)
    registry_start "$BATS_FILE_TMPDIR/registry"
    export PATH demo layered tiny registry_host
    skopeo copy -q --dest-tls-verify=false "oci:$layered:latest" "docker://$registry_host/layered:latest"
    skopeo copy -q --dest-tls-verify=false "oci:$tiny:latest" "docker://$registry_host/group/tiny:v1"
}

teardown_file() {
    source "$BATS_TEST_DIRNAME/registry.bash"
    registry_stop "$BATS_FILE_TMPDIR/registry"
}

setup() {
    source "$BATS_TEST_DIRNAME/registry.bash"
    export MSB_HOME=$BATS_TEST_TMPDIR/home
    unset REGISTRY_AUTH_FILE XDG_DATA_HOME XDG_RUNTIME_DIR
    export DOCKER_CONFIG=$BATS_TEST_TMPDIR/docker
    cd "$BATS_TEST_TMPDIR" || return
}

teardown() {
    if mountpoint -q "$BATS_TEST_TMPDIR/merged"; then umount "$BATS_TEST_TMPDIR/merged"; fi
    if mountpoint -q "$BATS_TEST_TMPDIR/small"; then umount "$BATS_TEST_TMPDIR/small"; fi
    registry_stop "$BATS_TEST_TMPDIR/registry"
}

# Prints everything about a tree: names, types, modes, owners, times, link targets and counts, sizes, devices, content, xattrs.
tree() (
    cd "$1" || exit
    find . -printf '%p|%y|%m|%U:%G|%T@|%l|%n\n' | awk -F'|' -v OFS='|' '$2 == "d" { $7 = "-" } 1' | sort
    find . -type f -printf '%p|%s\n' | sort
    find . \( -type c -o -type b \) -exec stat -c '%n %t,%T' {} + | sort
    find . -type f -print0 | sort -z | xargs -0 -r sha256sum
    find . -print0 | sort -z | xargs -0 -r getfattr -h -d -m '^(user\.|security\.|system\.|trusted\.note)' -e hex 2>&1
)

# same_as_umoci LAYOUT RECORD: the kernel's overlay of the record's layers is the tree that umoci unpacks.
same_as_umoci() {
    umoci unpack --image "$1:latest" unpacked
    mkdir -p merged
    local lower
    lower=$(jq -r '.rootfs.lower | if length == 1 then . + ["'"$PWD/empty"'"] else . end | join(":")' "$2")
    mkdir -p empty
    mount -t overlay overlay -o "lowerdir=$lower" merged
    tree unpacked/rootfs >expected
    tree merged >actual
    umount merged
    [[ $(wc -l <expected) -gt 50 ]]
    diff expected actual
}

# fails MESSAGE COMMAND…: it ends with 1 and a line with MESSAGE, prints no record, and leaves no partial files.
fails() {
    local message=$1
    shift
    run --separate-stderr "$@"
    echo "status $status: $stderr"
    [[ $status -eq 1 ]]
    [[ -z $output ]]
    [[ $stderr == "msb-pull: "*"$message"* ]]
    [[ ${#stderr_lines[@]} -eq 1 ]]
    nothing_half_made
}

nothing_half_made() {
    [[ -z $(ls -A "$MSB_HOME/tmp" 2>/dev/null) ]]
    [[ -z $(ls -A "$MSB_HOME/layers/sha256" 2>/dev/null) ]]
    [[ -z $(ls -A "$MSB_HOME/blobs/sha256" 2>/dev/null) ]]
}

# image_of LAYER [MEDIA_TYPE] [DIFF_ID]: makes a layout ./made of one layer file by hand, so that its metadata can be wrong.
image_of() {
    local layer=$1 media=${2:-application/vnd.oci.image.layer.v1.tar} diff_id=${3:-}
    local blobs=made/blobs/sha256
    rm -rf made
    mkdir -p "$blobs"
    [[ -n $diff_id ]] || diff_id=sha256:$(sha256sum <"$layer" | cut -d' ' -f1)
    printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["%s"]}}' "$diff_id" >config
    put_blob config
    put_blob "$layer"
    printf '{"schemaVersion":2,"config":%s,"layers":[%s]}' "$(descriptor config)" "$(descriptor "$layer" "$media")" >manifest
    put_blob manifest
    printf '{"schemaVersion":2,"manifests":[%s]}' \
        "$(descriptor manifest application/vnd.oci.image.manifest.v1+json)" >made/index.json
    printf '{"imageLayoutVersion":"1.0.0"}' >made/oci-layout
}

put_blob() { cp "$1" "made/blobs/sha256/$(sha256sum <"$1" | cut -d' ' -f1)"; }

descriptor() {
    printf '{"mediaType":"%s","digest":"sha256:%s","size":%d}' "${2:-application/octet-stream}" \
        "$(sha256sum <"$1" | cut -d' ' -f1)" "$(stat -c %s "$1")"
}

@test "the layers, mounted with the kernel's overlayfs, are the tree that umoci unpacks" {
    msb-pull --plain-http "$registry_host/layered" >record
    same_as_umoci "$layered" record
}

# bats test_tags=slow
@test "a Debian image from the registry is the tree that umoci unpacks, to the last file" {
    skopeo copy -q --dest-tls-verify=false "oci:$demo:latest" "docker://$registry_host/demo:latest"
    msb-pull --plain-http "$registry_host/demo" >record
    same_as_umoci "$demo" record
    [[ $(wc -l <expected) -gt 5000 ]]
}

@test "ten generated images, mounted with the kernel's overlayfs, are the trees that umoci unpacks" {
    "$BATS_TEST_DIRNAME/layers-diff.py" --first 12 --count 10
}

@test "whiteouts are 0/0 devices, opaque directories have the xattr, and hardlinks share an inode" {
    msb-pull "oci:$layered" >record
    local changes
    changes=$(jq -r '.rootfs.lower[1]' record)
    [[ $(stat -c '%F %t,%T' "$changes/etc/one") == "character special file 0,0" ]]
    [[ $(stat -c '%t,%T' "$changes/opt/gone") == 0,0 ]]
    [[ $(getfattr --only-values -n trusted.overlay.opaque "$changes/etc/conf.d") == y ]]
    run getfattr -n trusted.overlay.opaque "$changes/etc"
    [[ $status -ne 0 ]]
    [[ $(stat -c %i "$changes/opt/link-a") == "$(stat -c %i "$changes/opt/link-b")" ]]
    [[ $(stat -c '%F %t,%T' "$changes/opt/dev/null") == "character special file 1,3" ]]
    [[ -z $(find "$MSB_HOME" -name '.wh.*') ]]
}

@test "a directory without an entry of its own keeps the attributes of the layer below, and a symlink below is followed" {
    msb-pull "oci:$layered" >record
    local top
    top=$(jq -r '.rootfs.lower[0]' record)
    [[ $(stat -c '%a %u:%g %Y' "$top/var/spool") == "2750 13:37 1700000000" ]]
    [[ $(getfattr --only-values -n user.note "$top/var/spool") == base ]]
    [[ -f $top/usr/bin/late ]]
    [[ ! -e $top/bin ]]
}

@test "the record names the image, its platform and configuration, and the layers top first" {
    msb-pull --plain-http "$registry_host/group/tiny:v1" >record
    [[ $(wc -l <record) -eq 1 ]]
    jq -e --arg ref "$registry_host/group/tiny:v1" --arg home "$MSB_HOME" '.msb == 1 and .image.ref == $ref
        and (.image.digest | startswith("sha256:")) and .image.platform == "linux/amd64"
        and .image.config.Entrypoint == ["/bin/echo"] and .image.config.Cmd == ["hello"]
        and (.image.config.Env | index("GREETING=hi")) != null and .image.config.WorkingDir == "/root"
        and .image.config.StopSignal == "SIGTERM"
        and .rootfs.kind == "layers" and (.rootfs.lower | all(startswith($home)))' record
    [[ $(skopeo inspect --tls-verify=false "docker://$registry_host/group/tiny:v1" | jq -r .Digest) == "$(jq -r .image.digest record)" ]]
    msb-pull "oci:$layered" | jq -e '.image.config.Labels.kept == "yes" and (.rootfs.lower | length) == 3'
}

@test "only root can enter the store" {
    msb-pull "oci:$tiny" >/dev/null
    [[ $(stat -c %a "$MSB_HOME" "$MSB_HOME/layers" "$MSB_HOME/blobs" "$MSB_HOME/tmp" | sort -u) == 700 ]]
}

@test "a second pull downloads no blob, and a pull by digest needs no registry at all" {
    registry_start registry
    skopeo copy -q --dest-tls-verify=false "oci:$layered:latest" "docker://$registry_host/layered:latest"
    msb-pull --plain-http "$registry_host/layered" >first
    : >registry/log
    msb-pull --plain-http "$registry_host/layered" >second
    cmp first second
    grep -q 'HEAD /v2/layered/manifests/latest' registry/log
    run grep -E 'GET /v2/layered/' registry/log
    [[ $status -eq 1 ]]
    registry_stop registry
    msb-pull "$registry_host/layered@$(jq -r .image.digest first)" | jq -e --slurpfile first first '.rootfs == $first[0].rootfs'
}

@test "a layer that two images share is fetched once" {
    local more=$BATS_TEST_TMPDIR/more
    cp -a "$tiny" "$more"
    mkdir extra
    echo extra >extra/file
    tar -C extra -cf extra.tar .
    umoci raw add-layer --image "$more:latest" extra.tar
    msb-pull "oci:$tiny" | jq -r '.rootfs.lower[]' >one
    msb-pull "oci:$more" | jq -r '.rootfs.lower[]' >two
    [[ $(tail -n 1 two) == "$(cat one)" ]]
    [[ $(find "$MSB_HOME/layers/sha256" -mindepth 1 -maxdepth 1 | wc -l) -eq 2 ]]
}

@test "HTTPS works with a private certificate authority that is configured, and fails without it" {
    registry_start registry --tls
    skopeo copy -q --dest-tls-verify=false "oci:$tiny:latest" "docker://$registry_host/tiny:v1"
    fails "unknown authority (name it with --ca-file)" msb-pull "$registry_host/tiny:v1"
    msb-pull --ca-file registry/ca.pem "$registry_host/tiny:v1" | jq -e '.rootfs.lower | length == 1'
}

@test "basic auth comes from docker's config file, an authfile or a credential helper" {
    registry_start registry --auth 'user:pass:word'
    skopeo copy -q --dest-tls-verify=false --dest-creds 'user:pass:word' "oci:$tiny:latest" "docker://$registry_host/tiny:v1"
    fails "not authorized" msb-pull --plain-http "$registry_host/tiny:v1"
    mkdir -p docker bin
    printf '{"auths":{"http://%s/v1/":{"auth":"%s"}}}' "$registry_host" "$(printf 'user:pass:word' | base64)" >good
    printf '{"auths":{"%s":{"auth":"%s"}}}' "$registry_host" "$(printf 'user:wrong' | base64)" >bad
    cp bad docker/config.json
    fails "not authorized" msb-pull --plain-http "$registry_host/tiny:v1"
    msb-pull --plain-http --authfile good "$registry_host/tiny:v1" | jq -e .rootfs
    cp good docker/config.json
    rm -r home
    msb-pull --plain-http "$registry_host/tiny:v1" | jq -e .rootfs
    rm -r home docker/config.json
    mkdir -p run/containers
    printf '{"auths":{"%s":{"auth":"%s"},"%s/tiny":{"auth":"%s"}}}' "$registry_host" "$(printf 'user:wrong' | base64)" \
        "$registry_host" "$(printf 'user:pass:word' | base64)" >run/containers/auth.json
    XDG_RUNTIME_DIR=$PWD/run msb-pull --plain-http "$registry_host/tiny:v1" | jq -e .rootfs
    # shellcheck disable=SC2016 # the helper's own variable
    printf '#!/bin/sh\nread host; [ "$host" = "%s" ] && echo %s\n' "$registry_host" \
        "'{\"Username\":\"user\",\"Secret\":\"pass:word\"}'" >bin/docker-credential-test
    chmod +x bin/docker-credential-test
    printf '{"credHelpers":{"%s":"test"}}' "$registry_host" >docker/config.json
    rm -r home
    PATH=$PWD/bin:$PATH msb-pull --plain-http "$registry_host/tiny:v1" | jq -e .rootfs
}

@test "a layout, an archive of either kind, and stdin give the same layers as the registry" {
    skopeo copy -q "oci:$layered:latest" oci-archive:oci.tar:v1
    skopeo copy -q "oci:$layered:latest" docker-archive:docker.tar:name:v1
    msb-pull --plain-http "$registry_host/layered" | jq -c '.rootfs.lower | map(split("/") | last)' >expected
    local source
    for source in "oci:$layered" "oci:$layered:latest" oci-archive:oci.tar oci-archive:oci.tar:v1 docker-archive:docker.tar \
        docker-archive:docker.tar:docker.io/library/name:v1; do
        MSB_HOME=$PWD/other msb-pull "$source" >record
        jq -c '.rootfs.lower | map(split("/") | last)' record | cmp - expected
        [[ $(jq -r .image.ref record) == "${source%%:*}:/"* ]]
        rm -r other
    done
    for source in oci.tar docker.tar; do
        MSB_HOME=$PWD/other msb-pull - <"$source" | jq -c '.rootfs.lower | map(split("/") | last)' | cmp - expected
        [[ -z $(ls -A other/tmp) ]]
        rm -r other
    done
}

@test "gzip, multi-member gzip, zstd and uncompressed layers unpack alike" {
    tar -C "$BATS_TEST_DIRNAME" -cf layer.tar .
    local id half
    id=sha256:$(sha256sum <layer.tar | cut -d' ' -f1)
    half=$(($(stat -c %s layer.tar) / 2))
    gzip -n <layer.tar >one.gz
    { head -c "$half" layer.tar | gzip; tail -c +$((half + 1)) layer.tar | gzip; } >two.gz
    zstd -q layer.tar -o layer.zst
    local gzip=application/vnd.oci.image.layer.v1.tar+gzip zstd=application/vnd.oci.image.layer.v1.tar+zstd
    local layer media
    while read -r layer media; do
        image_of "$layer" "$media" "$id"
        rm -rf home
        msb-pull oci:made >record
        diff -r "$BATS_TEST_DIRNAME" "$(jq -r '.rootfs.lower[0]' record)"
    done <<END
layer.tar application/vnd.oci.image.layer.v1.tar
one.gz $gzip
two.gz $gzip
one.gz application/vnd.docker.image.rootfs.diff.tar.gzip
layer.zst $zstd
layer.zst $gzip
one.gz $zstd
layer.tar $gzip
END
}

@test "twelve layers with alternating compressions unpack, and a truncated one is named" {
    local number file ids=() layers=()
    mkdir -p made/blobs/sha256
    for number in {0..11}; do
        mkdir -p "tree$number/$number"
        head -c "$((number * 70000))" /dev/urandom >"tree$number/$number/noise"
        head -c 200000 /dev/zero >"tree$number/$number/zeros"
        tar -C "tree$number" -cf "$number.tar" .
        ids+=("\"sha256:$(sha256sum <"$number.tar" | cut -d' ' -f1)\"")
        file=$number.layer
        case $((number % 4)) in
        0) gzip -n ;;
        1) zstd -q ;;
        2) xz -0 ;;
        3) cat ;;
        esac <"$number.tar" >"$file"
        put_blob "$file"
        layers+=("$(descriptor "$file")")
    done
    # index: writes the documents.
    index() {
        local IFS=,
        printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%s]}}' "${ids[*]}" >config
        put_blob config
        printf '{"schemaVersion":2,"config":%s,"layers":[%s]}' "$(descriptor config)" "${layers[*]}" >manifest
        put_blob manifest
        printf '{"schemaVersion":2,"manifests":[%s]}' "$(descriptor manifest application/vnd.oci.image.manifest.v1+json)" >made/index.json
    }
    index
    msb-pull oci:made >record
    for number in {0..11}; do
        diff -r "tree$number" "$(jq -r --argjson number "$number" '.rootfs.lower[11 - $number]' record)"
    done
    msb-store check
    # One that is cut off is named, though its process has had others before it.
    rm -r home
    head -c 2000 8.layer >cut
    put_blob cut
    layers[8]=$(descriptor cut)
    index
    run --separate-stderr msb-pull -q oci:made
    [[ $status -eq 1 && $stderr == *"layer \"sha256:$(sha256sum <cut | cut -d' ' -f1)\": truncated gzip data" ]]
    [[ -z $(ls -A home/tmp) ]]
}

@test "an index yields the image of the wanted platform, and an error lists the platforms that it has" {
    mkdir -p one/etc
    echo amd64 >one/etc/arch
    tar -C one -cf amd64.tar .
    echo arm64 >one/etc/arch
    tar -C one -cf arm64.tar .
    local arch
    for arch in amd64 arm64; do
        umoci init --layout $arch
        umoci new --image $arch:latest
        umoci raw add-layer --image $arch:latest $arch.tar
        umoci config --image $arch:latest --architecture $arch
        skopeo copy -q --dest-tls-verify=false oci:$arch:latest "docker://$registry_host/multi:$arch"
        skopeo inspect --raw --tls-verify=false "docker://$registry_host/multi:$arch" >$arch.json
    done
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s,%s]}' \
        "$(descriptor arm64.json application/vnd.oci.image.manifest.v1+json | jq -c '.platform={os:"linux",architecture:"arm64",variant:"v8"}')" \
        "$(descriptor amd64.json application/vnd.oci.image.manifest.v1+json | jq -c '.platform={os:"linux",architecture:"amd64"}')" >index
    curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.index.v1+json' --data-binary @index \
        "http://$registry_host/v2/multi/manifests/all"
    for arch in amd64 arm64; do
        msb-pull --plain-http --platform linux/$arch "$registry_host/multi:all" >record
        [[ $(cat "$(jq -r '.rootfs.lower[0]' record)/etc/arch") == "$arch" ]]
        [[ $(jq -r .image.platform record) == linux/$arch ]]
    done
    rm -r home
    fails "no image for linux/s390x: it offers linux/arm64/v8, linux/amd64" \
        msb-pull --plain-http --platform linux/s390x "$registry_host/multi:all"
    fails "the image is for linux/arm64, not for linux/amd64" msb-pull --plain-http --platform linux/amd64 "$registry_host/multi:arm64"
}

@test "in an index without platforms, the configurations decide, and a lone variant of the host's architecture is taken" {
    local arch entries name
    for arch in amd64 arm64; do
        mkdir -p $arch/etc
        echo $arch >$arch/etc/arch
        tar -C $arch -cf $arch.tar .
        umoci init --layout $arch.image
        umoci new --image $arch.image:latest
        umoci raw add-layer --image $arch.image:latest $arch.tar
        umoci config --image $arch.image:latest --architecture $arch
        skopeo copy -q --dest-tls-verify=false oci:$arch.image:latest "docker://$registry_host/silent:$arch"
        skopeo inspect --raw --tls-verify=false "docker://$registry_host/silent:$arch" >$arch.json
        descriptor $arch.json application/vnd.oci.image.manifest.v1+json >$arch.entry
    done
    # put_index NAME ENTRY…: pushes an index.
    put_index() {
        jq -s -c '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: .}' "${@:2}" >index
        curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.index.v1+json' --data-binary @index \
            "http://$registry_host/v2/silent/manifests/$1"
    }
    # pulled NAME [ARG…]: the image's architecture, in its root and in the record.
    pulled() {
        msb-pull -q --plain-http "${@:2}" "$registry_host/silent:$1" >record
        echo "$(cat "$(jq -r '.rootfs.lower[0]' record)/etc/arch") $(jq -r .image.platform record)"
    }
    put_index both arm64.entry amd64.entry
    put_index alone amd64.entry
    for arch in amd64 arm64; do [ "$(pulled both --platform linux/$arch)" = "$arch linux/$arch" ]; done
    [ "$(pulled alone --platform linux/amd64)" = "amd64 linux/amd64" ]
    rm -r home
    fails "the image is for linux/amd64, not for linux/arm64" msb-pull --plain-http --platform linux/arm64 "$registry_host/silent:alone"
    fails "no image for linux/s390x: it offers linux/arm64, linux/amd64" msb-pull --plain-http --platform linux/s390x "$registry_host/silent:both"

    [ "$(uname -m)" = x86_64 ] || skip "the rest is about the levels of x86-64"
    grep -q '^flags.* sse4_2 ' /proc/cpuinfo || skip "this processor has the lowest level"
    for name in v2 v4; do
        jq -c --arg variant $name '.platform = {os: "linux", architecture: "amd64", variant: $variant}' amd64.entry >$name.entry
    done
    put_index v2 v2.entry
    put_index v4 v4.entry
    [ "$(pulled v2)" = "amd64 linux/amd64" ]
    rm -r home
    fails "no image for linux/amd64: it offers linux/amd64/v4" msb-pull --plain-http "$registry_host/silent:v4"
    [ "$(pulled v4 --platform linux/amd64/v4)" = "amd64 linux/amd64" ]
}

@test "an index in a layout may be nested" {
    tar -C "$BATS_TEST_DIRNAME" -cf layer.tar .
    image_of layer.tar
    cp made/index.json inner
    put_blob inner
    printf '{"schemaVersion":2,"manifests":[%s]}' \
        "$(descriptor inner application/vnd.oci.image.index.v1+json)" >made/index.json
    msb-pull oci:made >record
    diff -r "$BATS_TEST_DIRNAME" "$(jq -r '.rootfs.lower[0]' record)"
}

@test "a proxy from the environment is not used for loopback" {
    http_proxy=http://127.0.0.1:1 msb-pull --plain-http "$registry_host/layered" | jq -e .rootfs
    rm -r home
    fails "connection refused" env http_proxy=http://127.0.0.1:1 msb-pull --plain-http no-such-host.invalid/demo
}

@test "a directory is a root as it is, and a disk is recognized by its name and magic number" {
    mkdir root
    printf 'QFI\373\0\0\0\3' >disk.qcow2
    truncate -s 1M disk.qcow2 disk.raw fake.qcow2
    cp disk.qcow2 lying.img
    [[ $(msb-pull ./root) == '{"msb":1,"rootfs":{"kind":"dir","lower":["'"$PWD"'/root"]}}' ]]
    [[ $(msb-pull ./disk.qcow2 | jq -r '.rootfs | "\(.kind) \(.format) \(.path)"') == "disk qcow2 $PWD/disk.qcow2" ]]
    [[ $(msb-pull "$PWD/disk.raw" | jq -r .rootfs.format) == raw ]]
    [[ $(msb-pull ./lying.img | jq -r .rootfs.format) == raw ]]
    fails "not a qcow2 image" msb-pull ./fake.qcow2
    fails "neither a directory nor a disk" msb-pull "$layered/index.json"
    fails "No such file or directory" msb-pull ./missing
    [[ ! -e home ]]
}

@test "an image with a layer twice and an empty layer mounts" {
    mkdir base middle
    echo base >base/file
    touch middle/.wh.file
    tar -C base -cf base.tar file
    tar -C middle -cf middle.tar .wh.file
    tar -cf empty.tar -T /dev/null
    umoci init --layout twice
    umoci new --image twice:latest
    local layer
    for layer in base empty middle empty base; do umoci raw add-layer --image twice:latest $layer.tar; done
    msb-pull oci:twice >record
    mkdir merged
    mount -t overlay overlay -o "lowerdir=$(jq -r '.rootfs.lower | join(":")' record)" merged
    [[ $(cat merged/file) == base ]]
    umount merged
    msb-pull oci:twice | cmp - record
}

# image_of_tars NAME LAYER.tar…: a layout ./NAME, bottom layer first.
image_of_tars() {
    umoci init --layout "$1"
    umoci new --image "$1:latest"
    local layer
    for layer in "${@:2}"; do umoci raw add-layer --image "$1:latest" "$layer"; done
}

@test "a layer that is the bottom of one image keeps its attributes in another image" {
    mkdir -p base/var/spool upper/var/spool
    chmod 2750 base/var/spool
    chown 13:37 base/var/spool
    echo mail >upper/var/spool/mail
    tar -C base -cf base.tar .
    tar -C upper -cf upper.tar var/spool/mail
    image_of_tars one upper.tar
    image_of_tars two base.tar upper.tar
    mkdir merged
    MSB_HOME=$PWD/alone msb-pull oci:two >alone.record
    msb-pull oci:one >one.record
    msb-pull oci:two >two.record
    local record
    for record in alone two; do
        mount -t overlay overlay -o "lowerdir=$(jq -r '.rootfs.lower | join(":")' $record.record)" merged
        tree merged >$record.tree
        umount merged
    done
    diff alone.tree two.tree
    [[ $(stat -c '%a %u:%g' "$(jq -r '.rootfs.lower[0]' two.record)/var/spool") == "2750 13:37" ]]
    [[ $(stat -c '%a %u:%g' "$(jq -r '.rootfs.lower[0]' one.record)/var/spool") == "755 0:0" ]]
}

@test "a whiteout of what does not exist below is not listed, neither in a new directory nor in an opaque one" {
    hostile_layer "
add('new', DIR); add('new/.wh.ghost'); add('new/x', data=b'x')
add('opaque', DIR); add('opaque/.wh..wh..opq'); add('opaque/.wh.ghost'); add('opaque/x', data=b'x')"
    msb-pull oci:made >record
    mkdir merged empty
    mount -t overlay overlay -o "lowerdir=$(jq -r '.rootfs.lower[0]' record):$PWD/empty" merged
    [[ $(ls -A merged/new merged/opaque) == $'merged/new:\nx\n\nmerged/opaque:\nx' ]]
}

@test "a layer whose root is opaque hides all layers below it" {
    mkdir base opaque top
    echo base >base/base
    touch opaque/.wh..wh..opq
    echo opaque >opaque/opaque
    echo top >top/top
    local layer
    for layer in base opaque top; do tar -C $layer -cf $layer.tar .; done
    image_of_tars image base.tar opaque.tar top.tar
    msb-pull oci:image >first
    msb-pull oci:image | cmp - first
    mkdir merged
    mount -t overlay overlay -o "lowerdir=$(jq -r '.rootfs.lower | join(":")' first)" merged
    [[ $(cd merged && echo *) == "opaque top" ]]
    umount merged
}

@test "concurrent pulls of one image fetch each layer once, and all print the same record" {
    local i pids=() log=$BATS_FILE_TMPDIR/registry/log start
    start=$(stat -c %s "$log")
    for i in 1 2 3 4; do
        msb-pull --plain-http "$registry_host/layered" >"record$i" &
        pids+=($!)
    done
    for i in "${pids[@]}"; do wait "$i"; done
    for i in 2 3 4; do cmp record1 "record$i"; done
    tail -c "+$((start + 1))" "$log" | grep -ao '"GET /v2/layered/blobs/sha256:[0-9a-f]*' | sort >fetched
    # At most the configuration, which nobody waits for, was fetched by several.
    [[ $(uniq -d fetched | wc -l) -le 1 && $(uniq fetched | wc -l) -ge $(jq '.rootfs.lower | length' record1) ]]
    [[ -z $(ls -A home/tmp) ]]
    same_as_umoci "$layered" record1
}

@test "an interrupted pull says what is kept, and the next one goes on from there" {
    mkfifo slow
    env --default-signal=INT msb-pull - <slow >out 2>err &
    local pid=$! code=0
    exec 5>slow
    head -c 100000 /dev/zero >&5
    until [[ -s $(echo home/tmp/*/archive) ]]; do kill -0 $pid; done
    kill -INT $pid
    wait $pid || code=$?
    exec 5>&-
    [[ $code -eq 130 && ! -s out ]]
    [[ $(cat err) == 'msb-pull: interrupted (the layers that are complete are kept; run it again to fetch the rest)' ]]
    msb-pull "oci:$tiny" >/dev/null
    [[ -z $(ls -A home/tmp) ]]
}

# bats test_tags=kill
@test "killed at many moments, msb-pull leaves no half-made layer or document, and the next pull has the whole image" {
    local moments=${MSB_KILLS:-10} start longest moment delay
    msb-pull -q "oci:$layered" >expected
    # Whiteouts have the time at which they were made.
    layers() { for layer in $(jq -r '.rootfs.lower[]' expected); do tree "$layer"; done | grep -v '|c|0|0:0|'; }
    layers >whole
    start=${EPOCHREALTIME/./}
    MSB_HOME=$PWD/timed msb-pull -q "oci:$layered" >/dev/null
    longest=$((${EPOCHREALTIME/./} - start))
    rm -rf home timed
    for moment in $(seq "$moments"); do
        delay=$((RANDOM * longest / 32768))
        timeout --foreground -s KILL "$(printf '%d.%06d' $((delay / 1000000)) $((delay % 1000000)))" \
            msb-pull -q "oci:$layered" >/dev/null || true
        # What has a name is complete, so a pull takes it as it is.
        for blob in home/blobs/sha256/*; do
            [[ ! -e $blob || $(sha256sum <"$blob" | cut -d' ' -f1) == "${blob##*/}" ]]
        done
        ((moment % 3)) || continue
        msb-pull -q "oci:$layered" | cmp - expected
        layers | diff - whole
        [[ -z $(ls -A home/tmp) ]]
        # From nothing, from some of the layers, or from all of them without the documents.
        case $((moment % 4)) in
        0) rm -rf home ;;
        1) rm -rf home/blobs ;;
        *) rm -rf "$(jq -r '.rootfs.lower[0]' expected)" ;;
        esac
    done
}

@test "a pull removes what a killed pull left behind, and leaves the files of a running one" {
    mkfifo slow
    msb-pull - <slow >/dev/null 2>&1 &
    local pid=$!
    exec 5>slow
    head -c 100000 /dev/zero >&5
    until [[ -s $(echo home/tmp/*/archive) ]]; do kill -0 $pid; done
    msb-pull "oci:$tiny" >/dev/null
    [[ $(find home/tmp -mindepth 1 -maxdepth 1 | wc -l) -eq 1 ]]
    kill -KILL $pid
    wait $pid || true
    exec 5>&-
    [[ $(find home/tmp -mindepth 1 -maxdepth 1 | wc -l) -eq 1 ]]
    msb-pull "oci:$tiny" >/dev/null
    [[ -z $(ls -A home/tmp) ]]
}

@test "leftovers of a killed pull that cannot be removed are a warning" {
    mkdir -p home/tmp/dead/small
    mount -t tmpfs tmpfs home/tmp/dead/small
    run --separate-stderr msb-pull "oci:$tiny"
    umount home/tmp/dead/small
    [[ $status -eq 0 ]]
    [[ $stderr == "msb-pull: \"$PWD/home/tmp/dead\": left by a killed pull, cannot be removed: "* ]]
    jq -e .rootfs <<<"$output"
}

# hostile_layer PYTHON: makes an image ./made of a layer written with Python's tarfile, with add(name, type, link, data).
hostile_layer() {
    python3 - "$1" <<'END'
import io, sys, tarfile
tar = tarfile.open("hostile.tar", "w", format=tarfile.PAX_FORMAT)
def add(name, type=tarfile.REGTYPE, link="", data=b"", **more):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = type, link, len(data), 0o755
    for key, value in more.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))
SYM, LINK, DIR, CHR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE
exec(sys.argv[1])
tar.close()
END
    image_of hostile.tar
}

@test "a layer whose entries lead outside is refused" {
    echo secret >victim
    local message layer
    while IFS='|' read -r message layer; do
        hostile_layer "$layer"
        fails "$message" msb-pull oci:made
    done <<END
leaves the layer|add("a/../../victim", data=b"owned")
leaves the layer|add("a/../../../victim", data=b"owned")
outside of the layer|add("link", LINK, "../../../../victim")
neither this layer nor one below has such a file|add("link", LINK, "$PWD/victim")
neither this layer nor one below has such a file|add("away", SYM, "$PWD"); add("link", LINK, "away/victim")
is a directory|add("d", DIR); add("link", LINK, "d")
a whiteout of no name|add("a/.wh...")
root must be a directory|add("./", SYM, "/etc")
takes for a whiteout|add("null", CHR, devmajor=0, devminor=0)
a symlink without a target|add("s", SYM)
its path is longer than 4095 bytes|long = "/".join(["d" * 250] * 16); add(long, DIR); add("s", SYM, long); add("s/" + "e" * 100, DIR)
MiB of xattrs|[add(f"d{i}", DIR, pax_headers={"SCHILY.xattr.user.big": "x" * 60000}) for i in range(300)]
too many levels of symlinks|add("a", SYM, "b"); add("b", SYM, "a"); add("a/x")
malformed sparse map|add("s", data=b"0", pax_headers={"GNU.sparse.major": "0", "GNU.sparse.size": "9", "GNU.sparse.map": "8,2"})
END
    [[ $(cat victim) == secret ]]
}

@test "a sparse file of each format has its holes and its data" {
    mkdir -p src/etc
    truncate -s 3M src/etc/hole
    local format at
    for at in 5000 500000 700000 900000 1100000 3000000; do
        printf 'data at %s' $at | dd of=src/etc/hole bs=1 seek=$at conv=notrunc status=none
    done
    for format in gnu '--sparse-version=0.0' '--sparse-version=0.1' '--sparse-version=1.0'; do
        tar -C src -S --format=pax "${format/#gnu/--format=gnu}" -cf layer.tar etc
        [[ $(stat -c %s layer.tar) -lt 100000 ]]
        image_of layer.tar
        msb-pull oci:made >record
        cmp src/etc/hole "$(jq -r '.rootfs.lower[0]' record)/etc/hole"
        [[ $(stat -c %b "$(jq -r '.rootfs.lower[0]' record)/etc/hole") -lt 1000 ]]
        rm -r home
    done
}

@test "a busy registry is asked again, and a broken blob continues where it stopped" {
    mkfifo port
    python3 "$BATS_TEST_DIRNAME/faults.py" "$registry_host" >port 2>log 3>&- &
    local pid=$! port
    read -r port <port
    msb-pull --plain-http "127.0.0.1:$port/layered" | jq -c '.rootfs.lower | map(split("/") | last)' >actual
    kill $pid
    MSB_HOME=$PWD/other msb-pull "oci:$layered" | jq -c '.rootfs.lower | map(split("/") | last)' | cmp - actual
    grep -E '^bytes=[1-9][0-9]*- [1-9]' log
}

@test "limits on size and number of files end a pull, and leave nothing" {
    head -c 4000000 /dev/zero >zeros
    tar -cf layer.tar zeros
    gzip -k layer.tar
    image_of layer.tar.gz '' "sha256:$(sha256sum <layer.tar | cut -d' ' -f1)"
    fails "unpacks to more than 1.00 MiB (allow more with --max-size)" msb-pull --max-size 1M oci:made
    fails "more than 0 files (allow more with --max-files)" msb-pull --max-files 0 oci:made
    msb-pull --max-size 4M --max-files 1 oci:made | jq -e .rootfs
}

@test "an archive that is compressed as a whole, and a root's tar archive, are read as they are" {
    skopeo copy -q "oci:$tiny:latest" docker-archive:docker.tar:name:v1
    msb-pull docker-archive:docker.tar | jq -c .rootfs >expected
    local tool
    for tool in gzip bzip2 xz zstd; do
        $tool -q -c docker.tar >packed
        msb-pull docker-archive:packed | jq -c .rootfs | cmp - expected
        msb-pull - <packed | jq -c .rootfs | cmp - expected
    done
    mkdir -p root/etc root/bin
    echo here >root/etc/hostname
    tar -C root -c . | xz | msb-pull --cmd '["/bin/true"]' --env A=b --workdir /etc - >record
    [[ $(cat "$(jq -r '.rootfs.lower[0]' record)/etc/hostname") == here ]]
    jq -e '.image.config | .Cmd == ["/bin/true"] and .WorkingDir == "/etc" and (.Env | index("A=b")) != null' record
}

@test "an archive is what it holds: a file that ends in .tar may be an image, and a root may have any files" {
    skopeo copy -q "oci:$tiny:latest" docker-archive:docker.tar:name:v1
    skopeo copy -q "oci:$tiny:latest" oci-archive:oci.tar:v1
    local kind
    for kind in oci docker; do
        msb-pull "./$kind.tar" >record
        msb-pull "$kind-archive:$kind.tar" | cmp - record
    done
    mkdir bare
    echo here >bare/hello
    tar -C bare -cf bare.tar hello
    msb-pull ./bare.tar >record
    [[ $(jq -r .image.ref record) == "$PWD/bare.tar" ]]
    [[ $(cat "$(jq -r '.rootfs.lower[0]' record)/hello") == here ]]
    msb-pull --cmd '["/hello"]' - <bare.tar >record
    jq -e '.image.config.Cmd == ["/hello"]' record
    # A root's directories decide, not a file that has the name of an image's document.
    mkdir bare/usr
    echo '[]' | tee bare/manifest.json >bare/index.json
    tar -C bare -c . | msb-pull - >record
    [[ $(cat "$(jq -r '.rootfs.lower[0]' record)/manifest.json") == "[]" ]]
}

@test "an entry of another platform may have a digest of any kind, and lists that are null are empty" {
    tar -cf layer.tar -C "$BATS_TEST_DIRNAME" registry.bash
    image_of layer.tar
    jq -c '.manifests[0].platform = {os: "linux", architecture: "amd64"} | .manifests +=
        [.manifests[0] + {digest: "blake3:00", platform: {os: "linux", architecture: "s390x"}}]' made/index.json >index
    cp index made/index.json
    msb-pull --platform linux/amd64 oci:made >record
    MSB_HOME=$PWD/other fails 'digest "blake3:00": neither sha256 nor sha512' msb-pull --platform linux/s390x oci:made
    printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null}}' >config
    put_blob config
    printf '{"schemaVersion":2,"config":%s,"layers":null,"manifests":null}' "$(descriptor config)" >manifest
    put_blob manifest
    printf '{"schemaVersion":2,"manifests":[%s]}' \
        "$(descriptor manifest application/vnd.oci.image.manifest.v1+json)" >made/index.json
    msb-pull --platform linux/amd64 oci:made >record
    [[ -z $(ls -A "$(jq -r '.rootfs.lower[0]' record)") ]]
    echo '{"schemaVersion":2,"manifests":null}' >made/index.json
    MSB_HOME=$PWD/other fails "the layout holds no image" msb-pull oci:made
}

@test "a hardlink leads to a file that aufs kept aside, and nothing of those stays" {
    hostile_layer "add('.wh..wh.plnk', DIR); add('.wh..wh.plnk/1.2', data=b'shared'); add('.wh..wh.plnk/3.4', data=b'alone')
add('.wh..wh.plnk/../a', data=b'a'); add('d/one', LINK, '.wh..wh.plnk/1.2'); add('two', LINK, '/.wh..wh.plnk/1.2')
add('.wh..wh.plnk/sub/5.6', data=b'no'); add('.wh..wh.plnk/s', SYM, '/etc'); add('.wh..wh.aufs/7.8', data=b'no')"
    msb-pull oci:made >record
    local root
    root=$(jq -r '.rootfs.lower[0]' record)
    [[ $(find "$root" -mindepth 1 -printf '%P\n' | sort | xargs) == "a d d/one two" ]]
    [[ $(cat "$root/d/one") == shared && $(stat -c '%i %h' "$root/two") == "$(stat -c %i "$root/d/one") 2" ]]
    msb-store check
    # Links to what is not there, and to a name that is skipped, are refused.
    local target
    for target in 9.9 sub/5.6; do
        hostile_layer "add('.wh..wh.plnk/1.2', data=b'x'); add('.wh..wh.plnk/sub/5.6', data=b'x'); add('h', LINK, '.wh..wh.plnk/$target')"
        MSB_HOME=$PWD/other fails "neither this layer nor one below has such a file" msb-pull oci:made
    done
    hostile_layer "add('.wh..wh.plnk/1.2', data=b'x' * 2000000)"
    MSB_HOME=$PWD/other fails "unpacks to more than" msb-pull --max-size 1M oci:made
}

@test "names in a docker archive need not be written alike" {
    skopeo copy -q "oci:$tiny:latest" docker-archive:docker.tar:name:v1
    msb-pull docker-archive:docker.tar | jq -c .rootfs >expected
    mkdir -p saved/l
    tar -C saved -xf docker.tar
    mv "saved/$(jq -r '.[0].Config' saved/manifest.json)" saved/c.json
    mv "saved/$(jq -r '.[0].Layers[0]' saved/manifest.json)" saved/l/layer.tar
    ln saved/l/layer.tar saved/second.tar
    local layer
    for layer in ./l/layer.tar /l//layer.tar l/./layer.tar second.tar l/../second.tar; do
        echo "[{\"Config\":\"./c.json\",\"Layers\":[\"$layer\"]}]" >saved/manifest.json
        tar -C saved -cf made.tar manifest.json c.json ./l/layer.tar second.tar
        msb-pull docker-archive:made.tar | jq -c .rootfs | cmp - expected
    done
}

@test "the last member of a layer or an archive may lack its padding, but not its data" {
    echo here >file
    tar -cf whole.tar file
    head -c 517 whole.tar >layer.tar
    image_of layer.tar
    msb-pull oci:made >record
    [[ $(cat "$(jq -r '.rootfs.lower[0]' record)/file") == here ]]
    MSB_HOME=$PWD/other msb-pull ./layer.tar >record
    head -c 516 whole.tar >cut.tar
    image_of cut.tar
    MSB_HOME=$PWD/none fails "truncated tar archive" msb-pull oci:made
    MSB_HOME=$PWD/none fails "truncated tar archive" msb-pull ./cut.tar
}

@test "a store on a file system that cannot hold whiteouts is named with the cause" {
    mkdir -p lower upper work merged empty
    touch empty/.wh.file
    tar -C empty -cf layer.tar .
    image_of layer.tar
    mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
    MSB_HOME=$PWD/merged/home run --separate-stderr msb-pull oci:made
    [[ $status -eq 1 && $stderr == *"(MSB_HOME is \"$PWD/merged/home\": its file system, overlayfs, cannot hold"* ]]
}

@test "symlinks, absolute names and overlayfs xattrs of a layer stay inside of it" {
    echo secret >victim
    hostile_layer "
add('abs', SYM, '$PWD'); add('abs/victim', data=b'inside')
add('up', SYM, '../../../../..'); add('up/over', data=b'inside')
add('/etc/rooted', data=b'inside')
add('redirect', DIR, pax_headers={'SCHILY.xattr.trusted.overlay.redirect': '/etc', 'SCHILY.xattr.user.fine': 'yes'})
add('twice', data=b'first'); add('twice', SYM, '$PWD/victim'); add('twice', data=b'last')
add('tree/deep/file', data=b'x'); add('tree', data=b'file')
add('file', data=b'x'); add('file/below', data=b'y')
add('target', DIR); add('swap', SYM, 'target'); add('swap/one'); add('swap', DIR); add('swap/two')"
    msb-pull oci:made >record
    local root
    root=$(jq -r '.rootfs.lower[0]' record)
    [[ $(cat victim) == secret ]]
    [[ $(cat "$root$PWD/victim") == inside ]]
    [[ $(cat "$root/over") == inside && $(cat "$root/etc/rooted") == inside ]]
    [[ $(getfattr --absolute-names -d -m . "$root/redirect" | grep -c =) -eq 1 ]]
    [[ -f $root/twice && ! -L $root/twice && $(cat "$root/twice") == last ]]
    [[ $(cat "$root/tree") == file ]]
    [[ $(cat "$root/file/below") == y ]]
    [[ $(cd "$root" && echo target/* swap/*) == "target/one swap/two" ]]
}

@test "a name that a layer both removes and creates is new, whichever entry comes first" {
    hostile_layer "
add('.wh.before'); add('before', DIR); add('after', DIR); add('.wh.after')
add('.wh.file'); add('file', data=b'new'); add('.wh.implied'); add('implied/x', data=b'x')
add('.wh.plain'); add('.wh.plain'); add('was-file', data=b'x'); add('was-file', DIR)
add('kept/.wh..wh..opq'); add('kept/y', data=b'y'); add('.wh..wh.plnk/1.2', data=b'aufs')"
    msb-pull oci:made >record
    local root dir
    root=$(jq -r '.rootfs.lower[0]' record)
    for dir in before after implied was-file kept; do
        [[ $(getfattr --absolute-names --only-values -n trusted.overlay.opaque "$root/$dir") == y ]]
    done
    [[ $(cat "$root/file") == new ]]
    [[ $(stat -c '%t,%T' "$root/plain") == 0,0 ]]
    [[ $(stat -c '%a %Y' "$root/implied") == "755 0" ]]
    [[ $(find "$root" -mindepth 1 -maxdepth 1 | wc -l) -eq 7 ]]
}

@test "an unreachable registry, a missing name and the wrong protocol have error messages of their own" {
    fails "connection refused" msb-pull --plain-http 127.0.0.1:1/demo
    fails "unknown host" msb-pull --plain-http no-such-host.invalid/demo
    fails "not found in registry" msb-pull --plain-http "$registry_host/layered:missing"
    fails "not found in registry" msb-pull --plain-http "$registry_host/missing"
    fails "it does not speak TLS (use --plain-http" msb-pull --ca-file /etc/ssl/certs/ca-certificates.crt "$registry_host/layered"
    fails "no PEM certificate" msb-pull --ca-file "$layered/index.json" "$registry_host/layered"
    fails "No such file or directory" msb-pull --plain-http --authfile missing "$registry_host/layered"
}

@test "a registry's error text cannot send escape sequences to the terminal" {
    mkfifo port
    python3 - >port <<'END' &
import http.server
class Rude(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.path == "/v2/"
        body = b"{}" if found else b'{"errors":[{"code":"UNKNOWN","message":"no\\u001b[2Jimage"}]}'
        self.send_response(200 if found else 418)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Rude)
print(server.server_port, flush=True)
server.serve_forever()
END
    local pid=$! port
    read -r port <port
    run --separate-stderr msb-pull --plain-http "127.0.0.1:$port/demo"
    kill $pid
    [[ $status -eq 1 && $stderr == *"no�[2Jimage"* ]]
}

@test "a damaged or truncated blob is an error that shows both digests or sizes" {
    registry_start registry
    skopeo copy -q --dest-tls-verify=false "oci:$tiny:latest" "docker://$registry_host/tiny:v1"
    local layer file
    layer=$(skopeo inspect --raw --tls-verify=false "docker://$registry_host/tiny:v1" | jq -r '.layers[0].digest')
    file=registry/storage/docker/registry/v2/blobs/sha256/${layer:7:2}/${layer:7}/data
    cp "$file" whole
    printf 'X' | dd of="$file" bs=1 seek=5000 conv=notrunc status=none
    fails "wrong digest: expected $layer, got sha256:$(sha256sum <"$file" | cut -d' ' -f1)" msb-pull --plain-http "$registry_host/tiny:v1"
    head -c 5000 whole >"$file"
    fails "truncated: 5000 of $(stat -c %s whole) bytes came" msb-pull --plain-http "$registry_host/tiny:v1"
    { cat whole; echo more; } >"$file"
    fails "longer than the $(stat -c %s whole) bytes" msb-pull --plain-http "$registry_host/tiny:v1"
    rm "$file"
    fails "registry \"$registry_host\"" msb-pull --plain-http "$registry_host/tiny:v1"
    cp whole "$file"
    msb-pull --plain-http "$registry_host/tiny:v1" | jq -e .rootfs
}

@test "sizes in a manifest whose sum does not fit into 64 bits are an error" {
    touch one two
    tar -cf one.tar one
    tar -cf two.tar two
    image_of_tars made one.tar two.tar
    jq '.layers[].size = "LARGEST"' "made/blobs/sha256/$(jq -r '.manifests[0].digest[7:]' made/index.json)" |
        sed 's/"LARGEST"/18446744073709551615/' >manifest
    put_blob manifest
    printf '{"schemaVersion":2,"manifests":[%s]}' \
        "$(descriptor manifest application/vnd.oci.image.manifest.v1+json)" >made/index.json
    fails "of 18446744073709551615 bytes came" msb-pull oci:made
}

@test "layers that do not match the image's manifest or configuration are errors" {
    local gzip=application/vnd.oci.image.layer.v1.tar+gzip zstd=application/vnd.oci.image.layer.v1.tar+zstd id
    tar -C "$BATS_TEST_DIRNAME" -cf layer.tar .
    id=sha256:$(sha256sum <layer.tar | cut -d' ' -f1)
    image_of layer.tar '' "sha256:$(printf '0%.0s' {1..64})"
    fails "wrong diff_id: expected sha256:0000" msb-pull oci:made
    head -c 5000 layer.tar >cut.tar
    image_of cut.tar
    fails "truncated tar archive" msb-pull oci:made
    gzip -n <layer.tar >layer.gz
    head -c 3000 layer.gz >cut.gz
    image_of cut.gz "$gzip" "$id"
    fails "truncated gzip data" msb-pull oci:made
    { head -c -8 layer.gz; head -c 8 /dev/zero; } >bad.gz
    image_of bad.gz "$gzip" "$id"
    fails "bad gzip data" msb-pull oci:made
    { zstd -q -c layer.tar | head -c 2000; } >cut.zst
    image_of cut.zst "$zstd" "$id"
    fails "truncated zstd data" msb-pull oci:made
    head -c 4096 /dev/urandom >noise
    image_of noise
    fails "not a tar archive" msb-pull oci:made
    image_of layer.tar
    printf 'X' >>"made/blobs/sha256/$(sha256sum <config | cut -d' ' -f1)"
    fails "configuration" msb-pull oci:made
    image_of layer.tar
    rm "made/blobs/sha256/$(sha256sum <layer.tar | cut -d' ' -f1)"
    fails "No such file or directory" msb-pull oci:made
}

@test "a file that is no archive, a truncated archive and a missing tag are errors" {
    skopeo copy -q "oci:$tiny:latest" oci-archive:oci.tar:v1
    skopeo copy -q "oci:$tiny:latest" docker-archive:docker.tar:name:v1
    head -c 300000 oci.tar >cut.tar
    head -c 4096 /dev/urandom >noise
    tar -cf other.tar "$BATS_TEST_DIRNAME/t1-pull.bats" 2>/dev/null
    mkdir no-layout
    fails "truncated" msb-pull oci-archive:cut.tar
    fails "truncated" msb-pull - <cut.tar
    fails "not a tar archive" msb-pull oci-archive:noise
    fails "not a tar archive" msb-pull - <noise
    fails "the archive is empty" msb-pull - </dev/null
    fails "not an OCI layout" msb-pull oci-archive:other.tar
    fails "not a docker archive" msb-pull docker-archive:oci.tar
    fails "neither an OCI nor a docker archive" msb-pull -- -:v1 <other.tar
    mkdir no-files
    tar -cf directories.tar no-files
    for file in directories.tar noise; do
        fails "not a" msb-pull - <"$file"
        cp "$file" bad.tar
        fails "not a" msb-pull ./bad.tar
    done
    fails "(leave them out)" msb-pull --cmd sh - <docker.tar
    fails 'no tag "v2": it has v1' msb-pull oci-archive:oci.tar:v2
    fails 'no tag "v2": it has docker.io/library/name:v1' msb-pull docker-archive:docker.tar:v2
    fails "No such file or directory" msb-pull oci:missing
    fails "No such file or directory" msb-pull docker-archive:missing
    fails "not an OCI layout" msb-pull oci:no-layout
    head -c 100000 oci.tar | gzip >cut.tar.gz
    fails "truncated" msb-pull - <cut.tar.gz
    { gzip <oci.tar | head -c 5000; } >cut.gz
    fails "truncated gzip data" msb-pull oci-archive:cut.gz
}

@test "a full disk is an error, and nothing is left behind" {
    mkdir small
    mount -t tmpfs -o size=1m tmpfs small
    export MSB_HOME=$PWD/small/home
    fails "(make room in \"$MSB_HOME\", or set MSB_HOME)" msb-pull "oci:$tiny"
    umount small
}

@test "a user without a range of IDs gets an error with the lines that are missing" {
    # Other users cannot enter the test's directory.
    local open
    open=$(mktemp -d)
    chmod 755 "$open"
    cp "$(command -v msb-pull)" "$open"
    run --separate-stderr setpriv --reuid 65534 --regid 65534 --clear-groups "$open/msb-pull" "oci:$tiny"
    rm -r "$open"
    [[ $status -eq 1 ]]
    [[ $stderr == *'nobody has no IDs in /etc/subuid and /etc/subgid'*'add "nobody:'*' to /etc/subgid'* ]]
}

@test "a usage error ends with 2 and a message" {
    local call
    for call in "" "a b" "UPPER" "oci:" "--platform x alpine" "--platform linux/amd64 ./root" "--ca-file f --plain-http a"; do
        # shellcheck disable=SC2086 # words on purpose
        run --separate-stderr msb-pull $call
        [[ $status -eq 2 && $stderr == "msb-pull: "* && -z $output ]]
    done
}

@test "a closed stdout is not an error message" {
    # The only reader closes its end, then lets the writer go on. A pipe of the shell may have another one for a moment.
    mkfifo gone out
    local code=0
    { read -r <gone; exec msb-pull ./ 2>err; } >out 3>&- &
    : <out
    echo >gone
    wait $! || code=$?
    [[ ! -s err && $code == 141 ]]
}
