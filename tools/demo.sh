#!/usr/bin/env bash
# The whole pipe on a real image in a real VM. Prints every command as a user would type it, runs it, and prints the time that it
# took. Cleans up when it ends, also on Ctrl-C.
set -uo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$checkout/target/release:$PATH"
# shellcheck source-path=SCRIPTDIR/..
source "$checkout/tests/image.bash"
# shellcheck source-path=SCRIPTDIR/..
source "$checkout/tests/registry.bash"
# shellcheck source-path=SCRIPTDIR/..
source "$checkout/tests/tree.bash"

if [ "$(id -u)" != 0 ]; then
    echo "demo: root is needed for owners, devices and mounts: continuing with sudo" >&2
    exec sudo env "PATH=$PATH" "HOME=$HOME" "$0" "$@"
fi

work=$(mktemp -d /tmp/msb-demo.XXXXXX) || exit 1
export MSB_HOME="$work/home" XDG_RUNTIME_DIR="$work/run" MSB_RUN="$work/run/msb"
mkdir "$XDG_RUNTIME_DIR"
cd "$work" || exit 1

clean_up() {
    trap '' INT TERM
    trap - EXIT
    [ ! -s vm.json ] || msb-stop -r vm.json -t 3 >/dev/null 2>&1
    # If it was interrupted before vm.json was written, the VM still has its record in its run directory.
    for record in run/msb/*/record.json; do
        [ ! -e "$record" ] || msb-stop -r "$record" -t 3 >/dev/null 2>&1
    done
    [ -z "$(awk -v dir="$work/root" '$2 == dir' /proc/self/mounts)" ] || msb-mount -u root >/dev/null 2>&1
    registry_stop registry
    cd /
    rm -rf --one-file-system "$work"
}
trap clean_up EXIT
trap 'echo "demo: interrupted" >&2; exit 130' INT
trap 'exit 143' TERM

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi

say() { printf '\n%s# %s%s\n' "$dim" "$*" "$plain"; }

# step COMMAND: prints a command line, runs it, and prints how long it took. A failure ends the demo.
step() {
    local start=${EPOCHREALTIME/./} status=0 took
    printf '%s$ %s%s\n' "$bold" "$1" "$plain"
    eval "$1" || status=$?
    took=$(((${EPOCHREALTIME/./} - start) / 1000))
    printf '%s  %d.%03d s%s\n' "$dim" $((took / 1000)) $((took % 1000)) "$plain"
    if [ "$status" != 0 ]; then
        echo "demo: that command failed with $status" >&2
        exit "$status"
    fi
}

# base_facts: prints names, types, modes, owners, times, targets, xattrs and hashes of all files of the base layers.
base_facts() {
    jq -r '.rootfs.lower[]' image.json | while read -r layer; do tree_manifest "$layer"; done
}

say "A Debian image, made with mmdebstrap (once, in target/fixtures) and pushed to a registry on loopback with skopeo"
# shellcheck disable=SC2016 # step evaluates it
step 'layout=$(demo_image)'
step "registry_start registry"
step "skopeo copy --quiet --dest-tls-verify=false oci:$layout:latest docker://$registry_host/demo:latest"

say "The changes: a few patches and two scripts"
step "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=myapp.local -keyout key.pem -out cert.pem 2> openssl.log"
cat >ops.jsonl <<'END'
{"op":"text","path":"/etc/greeting.txt","content":"Hello from a patched rootfs!\n"}
{"op":"text","path":"/etc/motd","content":"Custom message of the day.\n","replace":true}
{"op":"mkdir","path":"/app","mode":"0755"}
{"op":"text","path":"/app/config.json","content":"{\"debug\": true}","mode":"0644"}
{"op":"copy_file","src":"./cert.pem","dst":"/etc/ssl/cert.pem"}
{"op":"append","path":"/etc/hosts","content":"127.0.0.1 myapp.local\n"}
{"op":"script","name":"setup","content":"#!/bin/bash\necho \"set up by $(id -un) on $(uname -sr)\" | tee /app/state\n"}
{"op":"script","name":"start","content":"#!/bin/bash\nexec cat /app/config.json /app/state\n"}
END
step "cat ops.jsonl"

say "The image's layers, unpacked once: the pipe below moves no blob"
step "msb-pull --plain-http $registry_host/demo:latest > image.json"
base_facts >before

say "From the image to a VM: patch, mount, boot"
step "{ msb-pull --plain-http $registry_host/demo:latest; cat ops.jsonl; } | msb-patch | msb-mount ./root | msb-boot -c 2 -m 1G > vm.json"
step "jq -c '{image: .image.ref, vm: (.vm | {name, vmm, cpus, memory_mib, timings_ms})}' vm.json"

say "The same files on the host, through the mount"
step "cat ./root/etc/greeting.txt ./root/etc/motd ./root/app/config.json && echo && tail -n 1 ./root/etc/hosts && ls -l ./root/etc/ssl/cert.pem"

say "In the VM"
step "msb-exec -r vm.json -- cat /etc/motd"
step "msb-exec -r vm.json -- uname -a"
step "msb-exec -r vm.json -- setup"
step "msb-exec -r vm.json --shell start"
step "cat ./root/app/state"

say "Stop and unmount: the base layers are unchanged"
step "msb-stop -r vm.json --unmount > stopped.json"
base_facts >after
step "cmp before after && echo 'the base layers are byte-identical to before'"

say "All of it in one command, with the image's init as PID 1: a Debian with systemd"
# shellcheck disable=SC2016 # step evaluates it
step 'systemd=$(systemd_image)'
step "msb run -q oci:\$systemd:latest -m 1G --init auto -- cat /proc/1/comm"
