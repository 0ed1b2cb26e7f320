# shellcheck shell=bash
# The lock of the bats files that change this host for a while: the mode of /dev/fuse, its users and their IDs, /etc/fuse.conf. Two such
# files at a time would put back what the other has changed.

# host_lock: waits for the lock. A process of its own holds it, so no daemon of a test inherits it. It ends with the bats file.
host_lock() {
    local taken
    exec {taken}< <(exec setpriv --pdeathsig KILL flock -F /tmp/msb-tests.lock sh -c 'echo; exec sleep infinity >/dev/null 2>&1' 3>&-)
    host_lock_pid=$!
    read -r _ <&"$taken"
    exec {taken}<&-
}

# host_unlock: gives the lock back.
host_unlock() {
    kill "$host_lock_pid"
}
