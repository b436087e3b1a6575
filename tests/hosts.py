#!/usr/bin/env python3
"""Three hosts, each with its own Docker engine, Consul server and registrator.

    python3 tests/hosts.py ./registrator [WORD]     a line a case
    python3 tests/hosts.py --show ./registrator     the same walk, to watch

A host is a network, a mount and a UTS namespace: an address on one wire (a
bridge), a name, and a /run and an /etc/docker of its own, so that commands
are those of a real host.  The three Consul servers are one cluster.  All of
it lives in the namespaces of e2e.py and ends with them.

The cases are one walk: each goes on where the one before it ended, and the
first that fails ends it, or the first that has the WORD.  What a person would
type is a line of shell; the walk shows it, the test compares what it printed.
"""
import json
import os
import socket
import subprocess
import sys
import time
import traceback

import e2e
import image
from e2e import Failure, case, same, sh

e2e.cases.clear()               # ours follow
PATIENCE = 180                  # seconds; Consul needs 10 to miss a server
SHOW = "--show" in sys.argv

NAME = "hello"                  # of the image, and so of the service
PAGE = 'hostname >/index.html; busybox httpd -p 8080 -h /; ' \
    'trap "exit 0" TERM; sleep 99999 & wait'

# What is asked on host-3.
CATALOG = "curl -s http://localhost:8500/v1/catalog/service/hello |\n" \
    "    jq -c '.[] | [.ServiceID, .ServiceAddress, .ServicePort, .Node]'"
HEALTH = "curl -s http://localhost:8500/v1/health/node/host-2 |\n" \
    "    jq -c '.[] | [.CheckID, .Status, .Output]'"
DIG = "dig +short @127.0.0.1 -p 8600 "
SRV = DIG + "hello.service.consul SRV"
A = DIG + "hello.service.consul A"
VISIT = SRV + " |\n    while read -r _ _ port target; do\n" \
    "        curl -s http://$(" + DIG + "$target A):$port/\n    done"
AGENT = "curl -s http://localhost:8500/v1/agent/services |\n" \
    "    jq -c '.[] | select(.Service == \"hello\") | [.ID, .Address, .Port]'"
LEADER = "curl -s http://localhost:8500/v1/status/leader"
WRITES = "curl -s http://localhost:8500/v1/catalog/service/hello |\n" \
    "    jq -c '.[] | [.ServiceID, .ModifyIndex]'"

LOG = "docker logs registrator 2>&1"

# Else the leader forgets a *server* that is away, with its services, within
# 10 s.  It does not forget a client agent, which is what most hosts have.
KEEP = "autopilot { cleanup_dead_servers = false }"

# README, "As a container"; the policy is for the engine that is restarted.
REGISTRATOR = "docker run -d --name=registrator --net=host " \
    "--restart=always \\\n    " \
    "--volume=/var/run/docker.sock:/tmp/docker.sock \\\n    " \
    "registrator consul://localhost:8500"


# ---- what is seen ----------------------------------------------------------

def say(text):
    if SHOW:
        print("    " + text)


def step(title):
    if SHOW:
        bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("",
                                                                          "")
        if sys.stdout.isatty():
            time.sleep(1)               # for a person to follow
        print("\n%s%s%s" % (bold, title, plain))


def eventually(what, want, probe):
    """As wait_same(), but each look is a few processes: not so often."""
    end = time.monotonic() + PATIENCE
    while (got := probe()) != want:
        if time.monotonic() > end:
            same(what, want, got)
        time.sleep(0.3)


# ---- a host ----------------------------------------------------------------

class Host:
    BOOT = """hostname "$1" && mkdir -p /etc/docker &&
        mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /etc/docker &&
        ip link set lo up && echo up && exec sleep infinity"""

    def __init__(self, number):
        self.name = "host-%d" % number
        self.address = "10.98.0.%d" % number

    def boot(self):
        self.init = subprocess.Popen(
            ["unshare", "-n", "-m", "-u", "sh", "-c", self.BOOT, "sh",
             self.name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        same("first word of " + self.name, b"up\n",
             self.init.stdout.readline())
        self.enter = ["nsenter", "-t", str(self.init.pid), "-n", "-m", "-u"]
        sh("ip", "link", "add", self.name, "type", "veth", "peer",
           "name", "eth0", "netns", str(self.init.pid))
        sh("ip", "link", "set", self.name, "master", "wire", "up")
        self.sh("ip addr add %s/24 dev eth0; ip link set eth0 up" %
                self.address)

    def sh(self, command, **kw):
        return sh(*self.enter, "sh", "-c", command, **kw)

    def look(self, command):
        """The lines that it printed, sorted, whether it failed or not."""
        out = sh(*self.enter, "sh", "-c", command, check=False).stdout
        return sorted(out.decode(errors="replace").splitlines())

    def show(self, command):
        """The same, to be seen; gives the lines that it printed, sorted."""
        out = self.sh(command)
        if SHOW:
            print("\n".join("%s$ %s" % (self.name, x) if i == 0 else x
                            for i, x in enumerate(command.split("\n"))))
            for line in out.splitlines():
                print("    " + line)
        return sorted(out.splitlines())

    def start(self, *command):
        """In the background; its output goes to a file."""
        log = "%s/logs/%s.%s" % (e2e.DIR, self.name, command[0])
        with open(log, "a") as f:
            return subprocess.Popen([*self.enter, *command], stdout=f,
                                    stderr=f, stdin=subprocess.DEVNULL)

    def start_engine(self):
        self.engine = self.start(
            "dockerd", "--data-root", "/run/docker-data",
            "--exec-opt", "native.cgroupdriver=cgroupfs",
            "--cgroup-parent", "/" + e2e.CGROUP)

    def wait_engine(self):
        eventually("the engine of " + self.name, 0, lambda: sh(
            *self.enter, "docker", "version", check=False).returncode)

    def start_consul(self):
        self.start("consul", "agent", "-server", "-bootstrap-expect=3",
                   "-data-dir=/run/consul", "-bind=" + self.address,
                   "-client=127.0.0.1", "-retry-interval=1s",
                   "-hcl=disable_update_check=true", "-hcl=" + KEEP,
                   *("-retry-join=" + h.address for h in HOSTS))

    def port(self, container):
        """The port by which others reach it."""
        out = self.sh("docker port %s 8080/tcp" % container)
        return int(out.split("\n")[0].rsplit(":")[-1])

    def run(self, container, *options):
        self.show(" ".join(["docker run -d -P --name", container, "-h",
                            container, *options, NAME]))

    def log(self):
        return self.sh(LOG)


HOSTS = [Host(n) for n in (1, 2, 3)]
host1, host2, host3 = HOSTS


def wire():
    """The switch that the hosts' cables end in."""
    sh("ip", "link", "add", "wire", "type", "bridge")
    sh("ip", "link", "set", "wire", "up")
    for host in HOSTS:
        host.boot()


def images():
    """On each engine: what is tested, and a server that tells its name."""
    context = image.context("/tmp/registrator-image")
    root = "/tmp/hello"
    os.makedirs(root + "/bin")
    sh("cp", sh("which", "busybox"), root + "/bin/busybox")
    for tool in ("sh", "hostname", "sleep"):
        os.symlink("busybox", "%s/bin/%s" % (root, tool))
    for host in HOSTS:
        host.sh("docker build -t registrator " + context)
        host.sh("tar -C %s -c . | docker import --change 'EXPOSE 8080' "
                "--change 'CMD %s' - %s" % (
                    root, json.dumps(["sh", "-c", PAGE]), NAME))


def cable(state):
    """Of host-2, at the switch."""
    if SHOW:
        print("switch$ ip link set host-2 " + state)
    sh("ip", "link", "set", "host-2", state)


# ---- what is expected ------------------------------------------------------

def entry(host, container):
    """Its line of CATALOG."""
    return json.dumps(["%s:%s:8080" % (host.name, container), host.address,
                       host.port(container), host.name],
                      separators=(",", ":"))


def record(host, container):
    """Its line of SRV: the target is a name for the service's address."""
    return "1 1 %d %s.addr.dc1.consul." % (
        host.port(container), socket.inet_aton(host.address).hex())


def see(what, command, *want, host=host3):
    """Asked until it is so, then shown, and compared again."""
    want = sorted(want)
    eventually(what, want, lambda: host.look(command))
    same(what, want, host.show(command))


def see_dns(*services):
    see("DNS, SRV", SRV, *(record(*s) for s in services))
    see("DNS, A", A, *{host.address for host, _ in services})
    see("what answers there", VISIT, *(c for _, c in services))


# ---- the walk --------------------------------------------------------------

@case("three Consul servers are one cluster, registrator runs on each host")
def _():
    see("the members", "consul members | awk 'NR > 1 { print $1, $3 }'",
        *(h.name + " alive" for h in HOSTS))
    for host in HOSTS:
        host.show(REGISTRATOR)
    for host in HOSTS:
        eventually("registrator on " + host.name, True, lambda:
                   "Listening for Docker events" in host.log())
    see("the services", "curl -s http://localhost:8500/v1/catalog/services",
        '{"consul":[]}')


@case("a service on host-1 and one on host-2: host-3's catalog has both")
def _():
    host1.run("service1")
    host2.run("service2", "--restart=always")
    see("the catalog", CATALOG, entry(host1, "service1"),
        entry(host2, "service2"))


@case("host-3 finds both by DNS, and reaches them by what DNS said")
def _():
    see_dns((host1, "service1"), (host2, "service2"))


@case("service1 stops: service2 is left; it starts: both")
def _():
    host1.show("docker stop service1")
    see("the catalog", CATALOG, entry(host2, "service2"))
    see_dns((host2, "service2"))
    host1.show("docker start service1")
    see("the catalog", CATALOG, entry(host1, "service1"),
        entry(host2, "service2"))


@case("host-2 is cut off: the catalog lists it, its node's check is "
      "critical, DNS leaves it out")
def _():
    eventually("what host-2 knows", sorted([
        record(host1, "service1"), record(host2, "service2")]),
        lambda: host2.look(SRV))
    cable("down")
    see("the check of its node", HEALTH,
        '["serfHealth","critical","Agent not live or unreachable"]')
    see("the catalog", CATALOG, entry(host1, "service1"),
        entry(host2, "service2"))
    see_dns((host1, "service1"))


@case("cut off, registrator goes on: the agent there knows what starts")
def _():
    eventually("the loss of the leader", '""', lambda: host2.sh(LEADER))
    host2.show(LEADER)
    say("Its own DNS tells what it last knew:")
    see("DNS on host-2", SRV, record(host1, "service1"),
        record(host2, "service2"), host=host2)
    host2.show("docker restart registrator")
    say("A write takes the agent 7 s now, in which it looks for a leader.")
    host2.run("service3")
    see("host-2's agent", AGENT, *(
        json.dumps(["host-2:%s:8080" % c, host2.address, host2.port(c)],
                   separators=(",", ":")) for c in ("service2", "service3")),
        host=host2)
    see("the catalog", CATALOG, entry(host1, "service1"),
        entry(host2, "service2"))


@case("host-2 is joined again: all is right again, and service3 is there")
def _():
    cable("up")
    see("the check of its node", HEALTH,
        '["serfHealth","passing","Agent alive and reachable"]')
    all_three = ((host1, "service1"), (host2, "service2"),
                 (host2, "service3"))
    see("the catalog", CATALOG, *(entry(*s) for s in all_three))
    see_dns(*all_three)


@case("docker restart registrator: nothing is written; it sees what comes")
def _():
    before = host3.show(WRITES)
    started = host2.log().count("Syncing services")
    host2.show("docker restart registrator")
    eventually("the next pass", started + 1,
               lambda: host2.log().count("Syncing services"))
    host2.run("service4")
    see("the catalog", CATALOG, entry(host1, "service1"), *(
        entry(host2, c) for c in ("service2", "service3", "service4")))
    host2.show("docker rm -f service4")
    see("the catalog's writes", WRITES, *before)


@case("what stopped while registrator was stopped is gone when it starts")
def _():
    before = host3.look(SRV)
    host2.show("docker stop registrator")
    host2.show("docker stop service3")
    say("Nobody has told Consul:")
    see("DNS, SRV", SRV, *before)
    host2.show("docker start registrator")
    see("the catalog", CATALOG, entry(host1, "service1"),
        entry(host2, "service2"))


@case("the engine of host-2 is stopped and started: what --restart=always "
      "brings back is there")
def _():
    say("(The engine of host-2 is stopped: so are its containers.)")
    host2.engine.terminate()
    host2.engine.wait()
    say("(It is started.)")
    host2.start_engine()
    host2.wait_engine()
    eventually("the restart of both", "true\ntrue", lambda: host2.sh(
        "docker inspect -f {{.State.Running}} registrator service2"))
    host2.show("docker ps --format '{{.Names}} {{.Ports}}'")
    see("the catalog", CATALOG, entry(host1, "service1"),
        entry(host2, "service2"))
    see_dns((host1, "service1"), (host2, "service2"))


def play(words):
    for name, function in e2e.cases:
        step(name)
        try:
            function()
        except Exception as e:
            text = str(e) if isinstance(e, Failure) else traceback.format_exc()
            print("not ok hosts %s: %s" % (name, text.replace("\n", "\n  ")))
            for host in HOSTS:
                print("  log of registrator on %s:\n    %s" % (
                    host.name, "\n    ".join(host.look(LOG))))
            return 1
        if not SHOW:
            print("ok hosts " + name)
        if any(w in name for w in words):
            break
    return 0


def inside(*args):
    os.environ["PATH"] += image.CONSUL_PATH
    binary, *words = (a for a in args if a != "--show")
    e2e.prepare(binary)
    for name in ("DOCKER_HOST", "DOCKER_CONFIG"):
        del os.environ[name]            # a host's own
    step("Three hosts, each with an engine and a Consul server")
    wire()
    for host in HOSTS:
        host.start_engine()
        host.start_consul()
    for host in HOSTS:
        host.wait_engine()
    images()
    return play(words)


if __name__ == "__main__":
    e2e.enter("hosts", inside)
