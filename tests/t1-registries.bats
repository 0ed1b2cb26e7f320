#!/usr/bin/env bats
# Where msb-pull fetches an image: registries.conf, certificates by registry, digests, and the stores of other tools.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats sets stderr and stderr_lines
bats_require_minimum_version 1.5.0

setup_file() {
    PATH="$BATS_TEST_DIRNAME/../target/release:$PATH"
    source "$BATS_TEST_DIRNAME/image.bash"
    source "$BATS_TEST_DIRNAME/registry.bash"
    tiny=$(tiny_image)
    registry_start "$BATS_FILE_TMPDIR/registry"
    export PATH tiny registry_host
    skopeo copy -q --dest-tls-verify=false "oci:$tiny:latest" "docker://$registry_host/group/tiny:v1"
}

teardown_file() {
    source "$BATS_TEST_DIRNAME/registry.bash"
    registry_stop "$BATS_FILE_TMPDIR/registry"
}

setup() {
    source "$BATS_TEST_DIRNAME/registry.bash"
    export MSB_HOME=$BATS_TEST_TMPDIR/home HOME=$BATS_TEST_TMPDIR
    export CONTAINERS_REGISTRIES_CONF=$BATS_TEST_TMPDIR/registries.conf
    unset REGISTRY_AUTH_FILE XDG_DATA_HOME XDG_RUNTIME_DIR DOCKER_CONFIG
    cd "$BATS_TEST_TMPDIR" || return
}

teardown() {
    registry_stop "$BATS_TEST_TMPDIR/registry"
}

# reference COMMAND…: the name of the image in the record that the command prints.
reference() { "$@" | jq -r .image.ref; }

@test "mirrors are asked first, one that does not answer is passed over, and the record has the image's own name" {
    cat >registries.conf <<END
        [[registry]]
        prefix = "registry.invalid/team"
        location = "registry.invalid/nowhere"
        [[registry.mirror]]
        location = "127.0.0.1:1/none"
        [[registry.mirror]]
        location = "$registry_host/no-such"
        [[registry.mirror]]
        location = "$registry_host/group"
END
    [[ $(reference msb-pull registry.invalid/team/tiny:v1) == registry.invalid/team/tiny:v1 ]]
    [[ $(reference msb-pull --policy never registry.invalid/team/tiny:v1) == registry.invalid/team/tiny:v1 ]]
    run -1 --separate-stderr msb-pull registry.invalid/team/other:v1
    [[ ${#stderr_lines[@]} -eq 1 ]]
    [[ $stderr == *"127.0.0.1:1"*"$registry_host"*"registry.invalid"* ]]
}

@test "a short name is an alias, or is searched in the registries that are configured" {
    cat >registries.conf <<END
        unqualified-search-registries = ["127.0.0.1:1", "$registry_host"]
        [aliases]
        "small" = "$registry_host/group/tiny"
END
    [[ $(reference msb-pull small:v1) == "$registry_host/group/tiny:v1" ]]
    [[ $(reference msb-pull group/tiny:v1) == "$registry_host/group/tiny:v1" ]]
    echo 'short-name-mode = "enforcing"' | cat - registries.conf >strict
    CONTAINERS_REGISTRIES_CONF=strict run -1 --separate-stderr msb-pull group/tiny:v1
    [[ $stderr == *ambiguous* ]]
}

@test "a blocked registry is not asked, drop-ins override, and a broken file is named" {
    printf '[[registry]]\nlocation = "%s"\n' "$registry_host" >registries.conf
    mkdir -p .config/containers/registries.conf.d
    printf '[[registry]]\nlocation = "%s"\nblocked = true\n' "$registry_host" >.config/containers/registries.conf.d/5.conf
    run -1 --separate-stderr msb-pull "$registry_host/group/tiny:v1"
    [[ $stderr == *"registries.conf blocks \"$registry_host\""* ]]
    echo 'registry = 5' >.config/containers/registries.conf.d/5.conf
    run -1 --separate-stderr msb-pull "$registry_host/group/tiny:v1"
    [[ $stderr == *"5.conf"*"line 1"* && ${#stderr_lines[@]} -eq 1 ]]
    CONTAINERS_REGISTRIES_CONF=missing run -1 --separate-stderr msb-pull small
    [[ $stderr == *'"missing"'*"No such file"* ]]
}

@test "certs.d has the authority and the client's certificate, and an insecure registry needs neither" {
    touch registries.conf
    registry_start "$PWD/registry" --tls --client-ca
    skopeo copy -q --dest-cert-dir registry/certs "oci:$tiny:latest" "docker://$registry_host/tiny"
    run -1 --separate-stderr msb-pull "$registry_host/tiny"
    [[ $stderr == *"unknown authority"* ]]
    mkdir -p ".config/containers/certs.d/$registry_host"
    cp registry/certs/* ".config/containers/certs.d/$registry_host"
    msb-pull -q "$registry_host/tiny" >record
    rm ".config/containers/certs.d/$registry_host/"client.*
    run -1 --separate-stderr msb-pull "$registry_host/tiny"
    rm -r .config
    msb-pull -q --cert-dir registry/certs "$registry_host/tiny" | cmp - record
    # The authority is unknown again, which "insecure" accepts; the client's certificate stays necessary.
    mv registry/certs/ca.crt .
    run -1 msb-pull -q --cert-dir registry/certs "$registry_host/tiny"
    printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$registry_host" >registries.conf
    msb-pull -q --cert-dir registry/certs "$registry_host/tiny" | cmp - record
    run -1 msb-pull -q --tls-verify --cert-dir registry/certs "$registry_host/tiny"
}

@test "--require-digest wants a digest, and --verify lets a command decide before layers are fetched" {
    touch registries.conf
    run -2 --separate-stderr msb-pull --require-digest "$registry_host/group/tiny:v1"
    [[ $stderr == *"NAME@sha256"* ]]
    digest=$(skopeo inspect --tls-verify=false --format '{{.Digest}}' "docker://$registry_host/group/tiny:v1")
    run -1 --separate-stderr msb-pull --verify 'cat >manifest; echo no; false' "$registry_host/group/tiny:v1"
    [[ $stderr == no*"refused by --verify"* && -z $output ]]
    [[ sha256:$(sha256sum <manifest | cut -d' ' -f1) == "$digest" ]]
    [[ -z $(ls "$MSB_HOME/layers/sha256") ]]
    # shellcheck disable=SC2016 # for the shell of --verify
    msb-pull -q --require-digest --verify "[ \$MSB_DIGEST = $digest ]" "$registry_host/group/tiny@$digest" >record
    # What is in the store is verified as well.
    run -1 msb-pull -q --verify false "$registry_host/group/tiny@$digest"
    run -1 --separate-stderr msb-pull -q --verify false "oci:$tiny:latest"
    [[ $stderr == *"refused by"* ]]
}

@test "an image whose digests are SHA-512 is pulled once, and a wrong one is refused" {
    touch registries.conf
    python3 - "$tiny" <<'END'
import hashlib, json, os, shutil, sys
source, blobs = sys.argv[1], "made/blobs/sha512"
os.makedirs(blobs)
def get(d): return open(f"{source}/blobs/" + d.replace(":", "/"), "rb").read()
def put(data):
    name = hashlib.sha512(data).hexdigest()
    open(f"{blobs}/{name}", "wb").write(data)
    return {"digest": f"sha512:{name}", "size": len(data)}
import gzip
manifest = json.loads(get(json.load(open(f"{source}/index.json"))["manifests"][0]["digest"]))
config = json.loads(get(manifest["config"]["digest"]))
layers = [gzip.decompress(get(l["digest"])) for l in manifest["layers"]]
config["rootfs"]["diff_ids"] = ["sha512:" + hashlib.sha512(l).hexdigest() for l in layers]
manifest["config"].update(put(json.dumps(config).encode()))
for at, l in enumerate(layers): manifest["layers"][at].update(put(l), mediaType="application/vnd.oci.image.layer.v1.tar")
entry = put(json.dumps(manifest).encode()) | {"mediaType": "application/vnd.oci.image.manifest.v1+json"}
json.dump({"schemaVersion": 2, "manifests": [entry]}, open("made/index.json", "w"))
open("made/oci-layout", "w").write('{"imageLayoutVersion":"1.0.0"}')
os.rename(f"{blobs}/" + manifest["layers"][0]["digest"][7:], "layer")
END
    run -1 msb-pull -q oci:made
    { head -c -1 layer; printf x; } >"made/blobs/sha512/$(sha512sum <layer | cut -d' ' -f1)"
    run -1 --separate-stderr msb-pull -q oci:made
    [[ $stderr == *"wrong digest: expected sha512:"* ]]
    cp layer "made/blobs/sha512/$(sha512sum <layer | cut -d' ' -f1)"
    msb-pull -q oci:made >record
    [[ $(jq -r .image.digest record) == sha512:* ]]
    msb-pull -q "oci:$tiny" >other
    diff -r "$(jq -r .rootfs.lower[0] record)" "$(jq -r .rootfs.lower[0] other)"
    # The documents and the layer are found again: the layout is not needed for the layer.
    rm "made/blobs/sha512/$(sha512sum <layer | cut -d' ' -f1)"
    msb-pull -q oci:made | cmp - record
}

@test "images of podman and docker come through those tools or skopeo, whose message is shown if they fail" {
    touch registries.conf
    skopeo copy -q "oci:$tiny:latest" docker-archive:saved.tar:local/tiny:v1
    mkdir bin
    # shellcheck disable=SC2016 # for the script
    printf '#!/bin/sh\n[ "$*" = "save -q --format docker-archive -- tiny:v1" ] && exec cat saved.tar\n' >bin/podman
    printf '#!/bin/sh\necho half; echo "no such image" >&2; exit 1\n' >bin/docker
    chmod +x bin/*
    [[ $(PATH=$PWD/bin:$PATH reference msb-pull containers-storage:tiny:v1) == containers-storage:tiny:v1 ]]
    PATH=$PWD/bin:$PATH run -1 --separate-stderr msb-pull docker-daemon:tiny:v1
    [[ $stderr == *'"docker" failed: no such image'* && ${#stderr_lines[@]} -eq 1 ]]
    storage="[vfs@$PWD/storage+$PWD/run]localhost/tiny:v1"
    skopeo copy -q "oci:$tiny:latest" "containers-storage:$storage"
    mkdir only && ln -s "$(command -v skopeo)" "$(command -v msb-pull)" only
    env PATH="$PWD/only" msb-pull -q "containers-storage:$storage" >record
    rm only/skopeo
    run -1 --separate-stderr env PATH="$PWD/only" msb-pull containers-storage:tiny
    [[ $stderr == *'neither podman nor skopeo is on PATH'* ]]
}

@test "an image is pulled where HEAD fails, where manifests have no digest in their path, and a wrong one is refused" {
    touch registries.conf
    mkfifo port
    # The repository's name is the fault.
    python3 - "$tiny" >port 2>log 3>&- <<'END' &
import http.server, json, sys
def blob(digest): return open(f"{sys.argv[1]}/blobs/" + digest.replace(":", "/"), "rb").read()
named = json.load(open(f"{sys.argv[1]}/index.json"))["manifests"][0]["digest"]
class Faulty(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status, body=b"", digest=None):
        self.send_response(status)
        if digest: self.send_header("Docker-Content-Digest", digest)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET": self.wfile.write(body)
    def do_GET(self):
        print(self.command, self.path, file=sys.stderr, flush=True)
        if self.path == "/v2/": return self.answer(200)
        _, _, fault, kind, name = self.path.split("/")
        if kind == "blobs": return self.answer(200, blob(name))
        if self.command == "HEAD" and fault == "status": return self.answer(500)
        if self.command == "HEAD" and fault == "drop": self.close_connection = True; return
        if name != "v1" and fault in ("tree", "other"): return self.answer(404)
        if fault == "down": return self.answer(503)
        self.answer(200, blob(named), "sha256:" + "0" * 64 if fault == "other" else named)
    do_HEAD = do_GET
    def log_message(self, *words): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
print(server.server_port, flush=True)
server.serve_forever()
END
    # The end of the test stops it.
    mkdir registry
    echo $! >registry/pid
    local port fault
    read -r port <port
    for fault in status drop tree; do
        MSB_HOME=$PWD/$fault msb-pull -q "127.0.0.1:$port/$fault:v1" >record
    done
    # One HEAD, without retries.
    [[ $(grep -c HEAD log) -eq 3 ]]
    run -1 --separate-stderr msb-pull -q "127.0.0.1:$port/other:v1"
    [[ $stderr == *"wrong digest: expected sha256:0000"* ]]
    # A mirror has one more attempt; the trouble that is reported is that of GET.
    printf '[[registry]]\nlocation = "127.0.0.1:%s/tree"\n[[registry.mirror]]\nlocation = "127.0.0.1:%s/down"\n' \
        "$port" "$port" >registries.conf
    msb-pull -q "127.0.0.1:$port/tree:v1" >record
    [[ $(grep -c '/down/manifests/v1' log) -eq 3 ]]
}
