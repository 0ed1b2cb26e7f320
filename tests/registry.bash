# shellcheck shell=bash
# A Docker registry on a free loopback port, for tests and the demo.
#
#   registry_start DIR [--tls [--client-ca]] [--auth USER:PASSWORD]
#                        sets registry_host; the log is DIR/log, the pid DIR/pid, with --tls the certificate authority DIR/ca.pem; with
#                        --client-ca it wants a certificate of its client, and DIR/certs is a directory as in certs.d
#   registry_stop DIR

registry_start() {
    local dir=$1 tls='' auth='' port clients=''
    shift
    while (($#)); do
        case $1 in
        --tls) tls=yes ;;
        --client-ca) clients=yes ;;
        --auth) auth=$2; shift ;;
        *) echo "registry: unknown option $1" >&2; return 2 ;;
        esac
        shift
    done
    mkdir -p "$dir/storage"
    [[ -z $tls ]] || registry_certificates "$dir"
    [[ -z $clients ]] || registry_client_certificate "$dir"
    [[ -z $auth ]] || htpasswd -Bbn "${auth%%:*}" "${auth#*:}" >"$dir/htpasswd"
    # A free port may be taken before the registry binds it: then another one is tried.
    for _ in {1..20}; do
        port=$((20000 + RANDOM % 20000))
        registry_config "$dir" "$port" "$tls" "$auth" "$clients" >"$dir/config.yml"
        OTEL_TRACES_EXPORTER=none docker-registry serve "$dir/config.yml" >"$dir/log" 2>&1 3>&- &
        echo $! >"$dir/pid"
        if registry_answers "$dir" "$port"; then
            # shellcheck disable=SC2034 # for the caller
            registry_host=127.0.0.1:$port
            return 0
        fi
    done
    cat "$dir/log" >&2
    return 1
}

# The registry does not announce that it is ready, so its port is polled as long as the process lives.
registry_answers() {
    local dir=$1 port=$2
    for _ in {1..3600}; do
        kill -0 "$(<"$dir/pid")" 2>/dev/null || return 1
        if (exec 4<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && grep -q 'listening on' "$dir/log"; then
            return 0
        fi
        sleep 0.05
    done
    return 1
}

registry_stop() {
    local pid
    [[ -f $1/pid ]] || return 0
    pid=$(<"$1/pid")
    rm -f "$1/pid"
    kill "$pid" 2>/dev/null || return 0
    wait "$pid" 2>/dev/null || true
}

registry_config() {
    local dir=$1 port=$2 tls=$3 auth=$4 clients=$5
    printf 'version: 0.1\nlog: {level: info, accesslog: {disabled: false}}\n'
    printf 'storage: {filesystem: {rootdirectory: "%s"}, delete: {enabled: true}}\n' "$dir/storage"
    printf 'http:\n  addr: 127.0.0.1:%s\n' "$port"
    [[ -z $tls ]] || printf '  tls: {certificate: "%s", key: "%s"%s}\n' "$dir/server.pem" "$dir/server.key" \
        "${clients:+, clientcas: [\"$dir/ca.pem\"]}"
    [[ -z $auth ]] || printf 'auth: {htpasswd: {realm: msb, path: "%s"}}\n' "$dir/htpasswd"
}

# A private certificate authority, and its certificate for loopback.
registry_certificates() {
    local dir=$1
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj '/CN=msb test CA' \
        -addext 'basicConstraints=critical,CA:TRUE' -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj '/CN=127.0.0.1' \
        -keyout "$dir/server.key" -out "$dir/server.csr" 2>/dev/null
    openssl x509 -req -in "$dir/server.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -days 2 \
        -extfile <(printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n') \
        -out "$dir/server.pem" 2>/dev/null
}

# A certificate of that authority for a client, in a directory as in certs.d.
registry_client_certificate() {
    local dir=$1
    mkdir -p "$dir/certs"
    cp "$dir/ca.pem" "$dir/certs/ca.crt"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj '/CN=client' \
        -keyout "$dir/certs/client.key" -out "$dir/client.csr" 2>/dev/null
    openssl x509 -req -in "$dir/client.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -days 2 \
        -extfile <(printf 'extendedKeyUsage=clientAuth\n') -out "$dir/certs/client.cert" 2>/dev/null
}
