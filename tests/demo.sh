#!/bin/bash
# The demo: a container comes and goes, and Consul with it.  Run by
# "./test.sh demo", which installs, builds, and gives a folder as $1.
#
# Where an engine runs on this machine, it is used, and the Consul agent at
# 127.0.0.1:8500 if there is one.  Otherwise both are started in a network
# and a mount namespace of their own: nothing of this machine is touched.

set -u
tmp=$1
sock=/run/registrator-demo.sock
name=registrator-demo
consul=http://127.0.0.1:8500
address=127.0.0.1                       # that a Consul of our own advertises
bold='' plain=''
[ ! -t 1 ] || bold=$'\e[1m' plain=$'\e[0m'
pids=()

cleanup() {
    local pid
    trap '' INT TERM HUP
    docker rm -f "$name" >/dev/null 2>&1
    docker rmi "$name" >/dev/null 2>&1
    for pid in "${pids[@]}"; do                 # the last started goes first
        kill "$pid" 2>/dev/null && wait "$pid"
    done 2>/dev/null
}
trap cleanup EXIT
trap 'exit 143' INT TERM HUP

step() {
    [ ! -t 1 ] || sleep 1               # for a person to follow
    printf '\n%s%s%s\n' "$bold" "$*" "$plain"
}

# show COMMAND: as a person would type it, and what it prints.
show() {
    printf '$ %s\n' "$1"
    eval "$1" 2>&1 | sed 's/^/    /'
}

fail() {
    echo "demo: $*" >&2
    tail -n 5 "$tmp"/*.log >&2
    exit 1
}

# soon WHAT COMMAND: it succeeds within 20 seconds, or the demo fails.
soon() {
    local what=$1
    shift
    for _ in {1..200}; do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    fail "$what: waited in vain"
}

# start FILE PROGRAM...: in the background, its output into FILE.log
start() {
    local file=$tmp/$1.log
    shift
    "$@" >"$file" 2>&1 </dev/null &
    pids=("$!" "${pids[@]}")
}

catalog() {
    curl -fsS "$consul/v1/catalog/service/hello" | jq -e 'length == '"$1"
}

private_world() {
    set -e
    mount -t tmpfs tmpfs /run
    address=10.99.0.1
    ip link set lo up
    ip link add wire0 type veth peer name wire1
    ip addr add "$address/24" dev wire0
    ip link set wire0 up
    ip link set wire1 up
    set +e
    export DOCKER_HOST=unix://$sock
    start dockerd dockerd --data-root /run/docker --exec-root /run/docker-exec \
        --pidfile /run/docker.pid -H "$DOCKER_HOST" \
        --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$name"
    soon "the engine" docker info
    echo "an engine of our own, in a network namespace of its own"
}

step "A Docker engine and a Consul agent"
if docker info >/dev/null 2>&1; then
    echo "the engine of this machine"
else
    private_world
fi
if curl -fsS "$consul/v1/status/leader" >/dev/null 2>&1; then
    echo "the Consul agent of this machine"
else
    start consul consul agent -dev -bind "$address" -advertise "$address"
    soon "Consul" curl -fsS "$consul/v1/catalog/service/consul"
    echo "a Consul agent of our own"
fi
mkdir -p "$tmp/root/bin"
cp "$(command -v busybox)" "$tmp/root/bin/busybox"
echo "Hello from a container" >"$tmp/root/index.html"
tar -C "$tmp/root" -c . | docker import --change 'EXPOSE 8080' --change \
    'CMD ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/"]' \
    - "$name" >/dev/null || fail "no image"

step "registrator starts"
echo '$ ./registrator -hostname demo -explicit consul://127.0.0.1:8500 &'
start registrator ./registrator -hostname demo -explicit \
    -on-exit deregister consul://127.0.0.1:8500
soon "registrator" grep -q "Listening for Docker events" "$tmp/registrator.log"
sed 's/^/    /' "$tmp/registrator.log"
seen=$(wc -l <"$tmp/registrator.log")

step "A container starts"
show "docker run -d -P --name $name -e SERVICE_NAME=hello -e SERVICE_TAGS=demo $name"
soon "its service" catalog 1

step "registrator has seen it"
tail -n +$((seen + 1)) "$tmp/registrator.log" | sed 's/^/    /'
seen=$(wc -l <"$tmp/registrator.log")

step "It is in Consul's catalog"
show "curl -s $consul/v1/catalog/service/hello |
    jq -c '.[] | {ServiceID, ServiceName, ServiceAddress, ServicePort, ServiceTags}'"

step "and in Consul's DNS"
show "dig +short @127.0.0.1 -p 8600 hello.service.consul SRV"
show "dig +short @127.0.0.1 -p 8600 hello.service.consul A"
[ -n "$(dig +short @127.0.0.1 -p 8600 hello.service.consul A)" ] ||
    fail "DNS does not know it"

step "and there it answers"
where=$(curl -s "$consul/v1/catalog/service/hello" |
    jq -r '.[0] | "\(.ServiceAddress):\(.ServicePort)"')
show "curl -s http://$where/"

step "The container stops"
show "docker stop -t 1 $name"
soon "the end of its service" catalog 0
tail -n +$((seen + 1)) "$tmp/registrator.log" | sed 's/^/    /'

step "It is gone from the catalog and from DNS"
show "curl -s $consul/v1/catalog/service/hello | jq -c ."
show "dig +noall +comments @127.0.0.1 -p 8600 hello.service.consul | grep status"
[ -z "$(dig +short @127.0.0.1 -p 8600 hello.service.consul A)" ] ||
    fail "DNS still knows it"
step "That was it: it came and went by itself."
