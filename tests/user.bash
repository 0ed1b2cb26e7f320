# shellcheck shell=bash disable=SC2154 # bats sets variables
# A user other than root for a bats file: an account with ranges of IDs, a home, and the tools where the user can execute them.
#
# The caller has sourced host-lock.bash, since /etc/passwd changes.

# user_make TOOL…: makes the user $user and the directory $place with "home" and "tools", for setup_file.
user_make() {
    local tool
    # The directories of bats are closed to others.
    place=$(mktemp -d)
    user=msb-test-$$
    export place user
    chmod 0755 "$place"
    mkdir "$place/tools"
    for tool in "$@"; do
        tool=$BATS_TEST_DIRNAME/../target/release/$tool
        [ ! -e "$tool" ] || cp -l "$tool" "$place/tools/" 2>/dev/null || cp "$tool" "$place/tools/"
    done
    useradd --home-dir "$place/home" --create-home --shell /bin/sh "$user"
    chmod 0700 "$place/home"
    # Enough for the owners in any image; the range that useradd has chosen may be too short.
    touch /etc/subuid /etc/subgid
    sed -i "/^$user:/d" /etc/subuid /etc/subgid
    usermod --add-subuids 1000000000-1000999999 --add-subgids 1001000000-1001999999 "$user"
    [ "$(stat -c %G /dev/kvm 2>/dev/null)" != kvm ] || usermod --append --groups kvm "$user"
    mkdir -m 0700 "$place/run"
    chown "$user" "$place/run"
}

# user_remove: for teardown_file.
user_remove() {
    userdel "$user"
    rm -rf "$place"
}

# as_user COMMAND…: runs a command as the user. The array user_launcher, if set, is the command that executes it, such as
# "ip netns exec NAME".
as_user() {
    "${user_launcher[@]}" setpriv --reuid "$user" --regid "$user" --init-groups env -u MSB_RUN -u MSB_HOME -u XDG_DATA_HOME \
        HOME="$place/home" PATH="$place/tools:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" XDG_RUNTIME_DIR="$place/run" "$@"
}

# user_stop_vms: stops the user's VMs.
user_stop_vms() {
    # shellcheck disable=SC2016 # the user's shell expands it
    as_user sh -c 'for vm in "$XDG_RUNTIME_DIR"/msb/*/; do [ ! -e "$vm/record.json" ] || msb-stop -q -r "$vm/record.json" >/dev/null; done'
}
