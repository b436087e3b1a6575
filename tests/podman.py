#!/usr/bin/env python3
"""Podman: registrator between its Docker-compatible service and a Consul.

    python3 tests/podman.py ./registrator [WORD...]    cases that have a WORD

Needs what e2e.py needs, but Docker, and podman with runc or crun, conmon and
netavark or the CNI plugins.

It lives in the namespaces of e2e.py.  What Podman keeps outside of /run (its
settings, locks, addresses given out) is covered by a tmpfs too, so nothing of
this machine is seen or touched, and all of it ends with the namespaces.

Each case compares the whole of the registry with what must be there and
asserts no time.  A line a case: "ok podman NAME" or "not ok podman NAME: why"
with details below it.
"""
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading

import e2e
from e2e import (DIR, HOST, IDLE, MARK, Failure, Proxy, Registrator, case,
                 cases, consul, deregister, expect, expect_now, get, holds,
                 ids, once, passes, same, services, sh, svc, tail, wait_for)

SOCK = "/run/podman.sock"
PAUSE = "localhost/podman-pause:4.3.1-0"    # Podman's own name for it
STUBBORN = 'trap "" TERM; while :; do sleep 1; done'

cases.clear()                   # those of Docker came with the import


# ---- Podman ----------------------------------------------------------------

def cover():
    """A tmpfs over what Podman writes to, and its settings."""
    for folder in ("/etc/containers", "/var/lib", "/dev/shm"):
        sh("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
    settings = {
        "policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}',
        "storage.conf": """
            [storage]
            driver = "vfs"
            graphroot = "%s/storage"
            runroot = "%s/storage-run"
            """ % (DIR, DIR),
        # The defaults but for systemd, its journal, and what is not here.
        "containers.conf": """
            [containers]
            log_driver = "k8s-file"
            [engine]
            cgroup_manager = "cgroupfs"
            events_logger = "file"
            runtime = "%s"
            tmp_dir = "%s/libpod"
            infra_image = "%s"
            [network]
            network_config_dir = "%s/networks"
            """ % ("runc" if shutil.which("runc") else "crun", DIR, PAUSE,
                   DIR)}
    for name, text in settings.items():
        with open("/etc/containers/" + name, "w") as f:
            f.write(re.sub("(?m)^ +", "", text))
    os.environ["DOCKER_HOST"] = "unix://" + SOCK
    del os.environ["DOCKER_CONFIG"]         # Podman wants a file there


def podman(*args, **kw):
    return sh("podman", *args, **kw)


def images():
    """All from one busybox; nothing can be pulled."""
    root = e2e.busybox_tree()
    sh("tar", "-C", root, "-cf", root + ".tar", ".")
    idle = "CMD " + json.dumps(["sh", "-c", IDLE])
    for name, *changes in (("plain",), ("exposes", "EXPOSE 5000"), (PAUSE,)):
        podman("import", *("--change=" + c for c in (idle, *changes)),
               root + ".tar", name)


class Service:
    """podman system service; containers do not need it."""

    def __init__(self, sock=SOCK, *options):
        self.sock, self.options = sock, options

    def start(self, seconds=0):
        with open(DIR + "/logs/podman", "a") as log:
            self.proc = subprocess.Popen(
                ["podman", *self.options, "system", "service",
                 "--time=%d" % seconds, "unix://" + self.sock],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_for("podman's service", self.ready)

    def ready(self):
        if self.proc.poll() is not None:
            raise Failure("it ended:\n" + tail(DIR + "/logs/podman"))
        try:
            return ask("/_ping", self.sock)
        except OSError:
            return False

    def stop(self):
        self.proc.terminate()
        self.proc.wait()

    def kill(self):
        self.proc.kill()
        self.proc.wait()


service = Service()


def ask(path, sock=SOCK):
    """GET, as the service answers it: its JSON, or its text."""
    conn = http.client.HTTPConnection("podman", timeout=e2e.LIMIT)
    conn.sock = socket.socket(socket.AF_UNIX)
    try:
        conn.sock.connect(sock)
        conn.request("GET", path)
        raw = conn.getresponse().read()
    finally:
        conn.close()
    return json.loads(raw) if raw[:1] in (b"{", b"[") else raw.decode()


def run(*args, image="plain", cmd=()):
    """podman run -d: the ID."""
    return podman("run", "-d", "--cgroup-parent", "/" + e2e.CGROUP, *args, image,
                  *cmd)


def web(name, port, *args, **kw):
    """A container whose port 80 is published as that one."""
    return run("--name", name, "-p", "%d:80" % port, *args, **kw)


def pod(name, *args):
    podman("pod", "create", "--name", name, "--infra-name", name + "-infra",
           "--cgroup-parent", "/" + e2e.CGROUP, *args)


def webs(**ports):
    """What the registry has of containers of web(): NAME=PORT."""
    return {"%s:%s:80" % (HOST, name): svc("plain", port)
            for name, port in ports.items()}


def inspect(name):
    return json.loads(podman("container", "inspect", name))[0]


def running(name):
    return inspect(name)["State"]["Running"]


def address(name, network="podman"):
    return inspect(name)["NetworkSettings"]["Networks"][network]["IPAddress"]


def strike(name):
    """Its death, by no order to Podman."""
    os.kill(inspect(name)["State"]["Pid"], signal.SIGKILL)


def remove(*names):
    podman("rm", "-f", "-t", "0", *names)


# ---- between registrator and Podman ----------------------------------------

class Gate:
    """Hands requests on, keeps their first lines, and refuses some."""
    gates = []

    def __init__(self, refuses=lambda path: False, status=403):
        self.refuses, self.status, self.requests = refuses, status, []
        self.path = DIR + "/gate.%d" % len(self.gates)
        self.env = {"DOCKER_HOST": "unix://" + self.path}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self.gates.append(self)
        self.thread(self.accept)

    @staticmethod
    def thread(function, *args):
        threading.Thread(target=function, args=args, daemon=True).start()

    def accept(self):
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(SOCK)
            self.thread(self.serve, client, server)
            self.thread(self.answers, client, server)

    def serve(self, client, server):
        for head in self.heads(client.makefile("rb")):
            line = head.split(b"\r\n")[0].decode("latin-1")
            self.requests.append(line)
            if self.refuses(line.split(" ")[1]):
                client.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n"
                               % self.status)
            else:
                server.sendall(head)
        Proxy.shut(client, server)

    @staticmethod
    def heads(stream):
        """Requests; a GET has no body."""
        head = b""
        try:
            while line := stream.readline():
                head += line
                if line == b"\r\n":
                    yield head
                    head = b""
        except OSError:
            pass

    @staticmethod
    def answers(client, server):
        try:
            while data := server.recv(65536):
                client.sendall(data)
        except OSError:
            pass
        Proxy.shut(client, server)

    def close(self):
        Proxy.shut(self.listener)
        self.listener.close()
        os.unlink(self.path)


def clean():
    for r in e2e.registrators:
        if r.proc.poll() is None:
            r.kill()
    for p in e2e.proxies + Gate.gates:
        p.close()
    for left in (e2e.registrators, e2e.proxies, Gate.gates):
        left.clear()
    podman("pod", "rm", "-f", "-a", "-t", "0")
    # Those that share a network go before the one that has it.
    wait_for("the end of all containers", lambda: podman(
        "rm", "-f", "-a", "-t", "0", check=False).returncode == 0)
    podman("network", "prune", "-f")
    for i in ids():
        deregister(i)


# ---- the cases -------------------------------------------------------------

@case("list at the start: what runs and publishes, with a mark")
def _():
    web("aa", 8001)
    run("--name", "idle")
    podman("create", "--name", "created", "-p", "8002:80", "plain")
    web("ended", 8003, cmd=("sh", "-c", "exit 0"))
    wait_for("its end", lambda: not running("ended"))
    r = Registrator("-resync", "0")
    expect(webs(aa=8001))
    for entry in get("/v1/agent/services").values():
        if not re.fullmatch(MARK, entry["Meta"]["registrator"]):
            raise Failure("no mark: %r" % entry["Meta"])
    same("end of registrator", None, r.proc.poll())


@case("ports: wildcard, an address, udp, both, a range, random, several")
def _():
    run("--name", "many", "-p", "127.0.0.1:8001:80", "-p", "8010-8011:81-82",
        "-p", "8002:53", "-p", "8002:53/udp", "-p", "[::1]:8003:90")
    run("--name", "random", "-P", image="exposes")
    web("twice", 8004, "-p", "8005:80")
    web("both", 8006, image="exposes")          # and 5000, not published
    port = int(podman("port", "random", "5000").rsplit(":")[-1])
    once()
    many = HOST + ":many:"
    expect_now({
        many + "80": svc("plain-80", 8001, "127.0.0.1"),
        many + "81": svc("plain-81", 8010),
        many + "82": svc("plain-82", 8011),
        many + "53": svc("plain-53", 8002),
        many + "53:udp": svc("plain-53", 8002, tags=["udp"]),
        many + "90": svc("plain-90", 8003, "::1"),
        HOST + ":random:5000": svc("exposes", port),
        HOST + ":twice:80": svc("plain", 8004),
        HOST + ":both:80": svc("exposes", 8006)})


@case("metadata of environment and labels; an image that is only an ID")
def _():
    web("named", 8001, "-e", "SERVICE_NAME=env", "-l", "SERVICE_TAGS=b,a",
        "-e", "SERVICE_REGION=eu")
    web("hidden", 8002, "-l", "SERVICE_IGNORE=1")
    no_name = podman("import", "-q", DIR + "/images/root.tar")
    web("bare", 8003, image=no_name, cmd=("sh", "-c", IDLE))
    once()
    expect_now({
        HOST + ":named:80": svc("env", 8001, tags=["b", "a"],
                                meta={"region": "eu"}),
        HOST + ":bare:80": svc("bare", 8003)})


@case("life: run, stop, start, restart, kill, its own death, rm -f, --rm")
def _():
    p = Proxy()
    r = Registrator("-resync", "0", uri=p.uri)
    cid = web("aa", 8001)
    expect(webs(aa=8001))
    for end, again in ((("stop", "aa"), ("start", "aa")),
                       (("kill", "aa"), ("start", "aa")),
                       (("kill", "-s", "USR1", "aa"), ("restart", "aa"))):
        podman(*end)
        expect({})
        podman(*again)
        expect(webs(aa=8001))
    remove("aa")
    expect({})
    web("bb", 8002, "--rm")
    expect(webs(bb=8002))
    podman("kill", "-s", "USR1", "bb")
    expect({})
    same("writes", ["register", "deregister"] * 5, [w[0] for w in p.paths()])
    r.wait_log("(?m) removed: %s %s:aa:80$" % (cid[:12], HOST))


@case("restart: it runs again, and is registered again")
def _():
    p = Proxy()
    Registrator("-resync", "0", uri=p.uri)
    web("aa", 8001)
    expect(webs(aa=8001))
    podman("restart", "aa")
    web("bb", 8002)             # events come in order: it was seen
    expect(webs(aa=8001, bb=8002))
    same("writes of aa", ["register", "deregister", "register"],
         [w[0] for w in p.paths() if w[1] == HOST + ":aa:80"])


@case("restart policy: registered while it is restarted, not when it gave up")
def _():
    Registrator("-resync", "0")
    web("aa", 8001, "--restart", "on-failure:1")
    expect(webs(aa=8001))
    strike("aa")
    wait_for("its restart", lambda: running("aa") and
             inspect("aa")["RestartCount"] == 1)
    web("bb", 8002)
    expect(webs(aa=8001, bb=8002))
    strike("aa")
    expect(webs(bb=8002))


@case("rename: the new ID comes before the old one goes")
def _():
    p = Proxy()
    Registrator("-resync", "0", uri=p.uri)
    web("aa", 8001)
    expect(webs(aa=8001))
    podman("rename", "aa", "bb")
    expect(webs(bb=8001))
    same("writes", [("register", HOST + ":aa:80", ""),
                    ("register", HOST + ":bb:80", ""),
                    ("deregister", HOST + ":aa:80")], p.paths())


@case("pause: stays, also at a resync and for one that starts meanwhile")
def _():
    p = Proxy()
    r = Registrator("-resync", "0", uri=p.uri)
    web("aa", 8001)
    web("bb", 8002)
    expect(webs(aa=8001, bb=8002))
    podman("pause", "aa")
    passes(r, p)
    expect_now(webs(aa=8001, bb=8002))
    r.stop()
    once(uri=p.uri)
    expect_now(webs(aa=8001, bb=8002))
    same("number of writes", 2, len(p.puts()))
    deregister(HOST + ":aa:80")
    Registrator("-resync", "0", uri=p.uri)
    expect(webs(aa=8001, bb=8002))
    podman("unpause", "aa")
    podman("stop", "aa")
    expect(webs(bb=8002))


@case("-deregister on-success: what failed stays, until it is removed")
def _():
    options = ("-resync", "0", "-deregister", "on-success")
    r = Registrator(*options)
    for i, name in enumerate(("fails", "succeeds", "killed")):
        web(name, 8001 + i)
    expect(webs(fails=8001, succeeds=8002, killed=8003))
    podman("kill", "-s", "USR1", "fails")
    podman("stop", "succeeds")
    podman("kill", "killed")
    expect(webs(fails=8001))
    r.kill()
    once(*options)
    expect_now(webs(fails=8001))
    r = Registrator(*options)
    r.wait_log("Syncing services on")
    remove("fails")
    expect({})


@case("a stop that takes long holds up nobody")
def _():
    Registrator("-resync", "0")
    web("stubborn", 8001, cmd=("sh", "-c", STUBBORN))
    expect(webs(stubborn=8001))
    stop = subprocess.Popen(["podman", "stop", "-t", "600", "stubborn"],
                            stdout=subprocess.DEVNULL)
    wait_for("its beginning",
             lambda: inspect("stubborn")["State"]["Status"] == "stopping")
    web("bb", 8002)
    wait_for("the other", lambda: HOST + ":bb:80" in ids())
    strike("stubborn")
    stop.wait()
    expect(webs(bb=8002))


@case("networks: a published port is the host's, whatever they are")
def _():
    p = Proxy()
    r = Registrator("-resync", "0", uri=p.uri)
    for name in ("n-a", "n-b", "n-c"):
        podman("network", "create", name)
    podman("network", "create", "--ipv6", "--subnet", "fd00:1::/64",
           "--subnet", "10.77.0.0/24", "n-six")
    web("one", 8001, "--net", "n-b")
    web("two", 8002, "--net", "n-b", "--net", "n-a")
    web("six", 8003, "--net", "n-six")
    want = webs(one=8001, two=8002, six=8003)
    expect(want)
    podman("network", "connect", "n-c", "one")
    podman("network", "disconnect", "n-a", "two")
    passes(r, p)
    expect_now(want)
    same("number of writes", 3, len(p.puts()))


@case("-internal: container's address, the first network by alphabet; "
      "joining and leaving one is seen")
def _():
    def inside(name, network, port=80, image="plain"):
        return {"%s:%s:%d" % (HOST, name, port):
                svc(image, port, address(name, network))}
    Registrator("-internal", "-resync", "0")
    for name in ("n-a", "n-b"):
        podman("network", "create", name)
    run("--name", "one", image="exposes")
    web("two", 8002, "--net", "n-b")
    two = inside("two", "n-b")
    expect({**inside("one", "podman", 5000, "exposes"), **two})
    podman("network", "connect", "n-a", "one")
    expect({**inside("one", "n-a", 5000, "exposes"), **two})
    podman("network", "disconnect", "n-a", "one")
    expect({**inside("one", "podman", 5000, "exposes"), **two})
    podman("network", "connect", "n-a", "two")
    expect({**inside("one", "podman", 5000, "exposes"),
            **inside("two", "n-a")})


def direct(name, port, **kw):
    """Podman says that it publishes there too; nothing listens on the host."""
    return {"%s:%s:%d" % (HOST, name, port):
            svc("plain", port, address(name, "n-wire"), **kw)}


@case("macvlan: exposed ports at the container's address, published or not")
def _():
    podman("network", "create", "-d", "macvlan", "-o", "parent=wire1",
           "--subnet", "10.97.0.0/24", "n-wire")
    run("--name", "exp", "--net", "n-wire", "--expose", "80")
    web("pub", 8002, "--net", "n-wire")
    run("--name", "dns", "--net", "n-wire", "--expose", "53/udp")
    web("two", 8004, "--net", "n-wire", "--net", "podman")
    run("--name", "bridged", "--expose", "80")
    dns = {HOST + ":dns:53:udp": svc("plain", 53, address("dns", "n-wire"),
                                     tags=["udp"])}
    once("-ip", "10.1.1.1")
    expect_now({**direct("exp", 80), **direct("pub", 80), **dns,
                HOST + ":two:80": svc("plain", 8004, "10.1.1.1")})


@case("--network host, none: nothing but what Podman says they expose")
def _():
    run("--name", "hh", "--net", "host", "--expose", "7000")
    run("--name", "nn", "--net", "none", "--expose", "7000")
    r = once()
    if ask("/containers/hh/json")["Config"].get("ExposedPorts"):
        expect_now({HOST + ":hh:7000": svc("plain", 7000)})
    else:                       # Podman 4 says nothing
        expect_now({})
        r.wait_log("ignored: %s no published ports" % inspect("hh")["Id"][:12])


@case("--network container:X: X's ports are X's alone")
def _():
    Registrator("-resync", "0")
    web("xx", 8001, "-p", "8002:81")
    for name in ("ss", "tt"):
        run("--name", name, "--net", "container:xx")
    web("last", 8003)
    ports = ask("/containers/ss/json")["NetworkSettings"]["Ports"]
    same("ports that Podman copies", {"80/tcp", "81/tcp"}, set(ports))
    both = {HOST + ":xx:80": svc("plain-80", 8001),
            HOST + ":xx:81": svc("plain-81", 8002)}
    expect({**both, **webs(last=8003)})
    podman("stop", "xx")
    expect(webs(last=8003))
    podman("start", "xx")
    expect({**both, **webs(last=8003)})
    remove("ss")
    podman("rename", "tt", "uu")
    web("really", 8004)
    expect({**both, **webs(last=8003, really=8004)})


@case("pods: the infra container has ports and labels, the members none")
def _():
    p = Proxy()
    Registrator("-resync", "0", uri=p.uri)
    pod("pp", "-p", "8010:80", "-p", "8011:81", "-l", "SERVICE_80_NAME=web")
    run("--pod", "pp", "--name", "m1")
    run("--pod", "pp", "--name", "m2", image="exposes")
    web("last", 8003)
    want = {HOST + ":pp-infra:80": svc("web", 8010),
            HOST + ":pp-infra:81": svc("podman-pause-81", 8011),
            **webs(last=8003)}
    expect(want)
    podman("pod", "stop", "pp")
    expect(webs(last=8003))
    podman("pod", "start", "pp")
    expect(want)
    podman("stop", "m1")
    podman("pod", "pause", "pp")
    before = len(p.puts())
    once(uri=p.uri)
    expect_now(want)
    same("writes of a second one", [], p.puts()[before:])
    podman("pod", "rm", "-f", "-t", "0", "pp")
    expect(webs(last=8003))


@case("-internal: container:X and pods, once each")
def _():
    web("xx", 8001, image="exposes")
    run("--name", "ss", "--net", "container:xx")
    pod("pp", "-p", "8010:80")
    run("--pod", "pp", "--name", "m1")
    once("-internal")
    expect_now({
        HOST + ":xx:80": svc("exposes-80", 80, address("xx")),
        HOST + ":xx:5000": svc("exposes-5000", 5000, address("xx")),
        HOST + ":pp-infra:80": svc("podman-pause", 80, address("pp-infra"))})


def away(stop):
    """Containers change while the service is away."""
    p = Proxy()
    r = Registrator("-resync", "0", uri=p.uri)
    for i, name in enumerate(("stays", "goes", "stops", "renamed")):
        web(name, 8001 + i)
    before = webs(stays=8001, goes=8002, stops=8003, renamed=8004)
    expect(before)
    stop()
    remove("goes")
    podman("stop", "stops")
    podman("rename", "renamed", "other")
    web("new", 8005)
    holds("services changed while the service was away",
          lambda: services() == before, 1)
    service.start()
    expect(webs(stays=8001, other=8004, new=8005))
    web("later", 8006)          # its events are heard again
    expect(webs(stays=8001, other=8004, new=8005, later=8006))
    same("number of writes", 4 + 2 + 2 + 1 + 1, len(p.puts()))
    same("end of registrator", None, r.proc.poll())


@case("the service is stopped and started: right afterwards")
def _():
    away(service.stop)


@case("the service is killed and started: right afterwards")
def _():
    away(service.kill)


@case("the service that ends when idle: listening keeps it up")
def _():
    service.stop()
    service.start(seconds=1)
    try:
        Registrator("-resync", "0")
        web("aa", 8001)
        expect(webs(aa=8001))
        holds("the service ended", lambda: service.proc.poll() is None, 2.5)
        web("bb", 8002)
        expect(webs(aa=8001, bb=8002))
    finally:
        service.kill()
        service.start()


@case("registrator is killed: what changed meanwhile is right at the start")
def _():
    p = Proxy()
    r = Registrator(uri=p.uri)
    for i, name in enumerate(("stays", "goes", "stops", "renamed", "again")):
        web(name, 8001 + i)
    wait_for("all", lambda: len(ids()) == 5)
    r.kill()
    before = len(p.puts())
    remove("goes")
    podman("stop", "stops")
    podman("rename", "renamed", "other")
    podman("restart", "again")
    web("new", 8006)
    want = webs(stays=8001, other=8004, again=8005, new=8006)
    once(uri=p.uri)
    expect_now(want)
    same("number of writes", 2 + 2 + 1, len(p.puts()) - before)
    once(uri=p.uri)
    expect_now(want)
    same("number of writes", 2 + 2 + 1, len(p.puts()) - before)


def marks():
    return {i: entry["Meta"]["registrator"]
            for i, entry in get("/v1/agent/services").items()}


@case("identity: another ID each time, the same marks")
def _():
    if ask("/info")["ID"] == ask("/info")["ID"]:
        raise Failure("this Podman has an ID: let the marks have it")
    p = Proxy()
    r = Registrator(uri=p.uri)
    web("aa", 8001)
    web("bb", 8002, "-l", "SERVICE_CHECK_TTL=300s")
    expect({**webs(aa=8001), HOST + ":bb:80": svc(
        "plain", 8002, meta={"check_ttl": "300s"})})
    before = marks()
    service.stop()
    service.start()
    r.wait_log("reached again")
    passes(r, p)
    r.kill()
    r = Registrator(uri=p.uri)
    r.wait_log("Syncing services on")
    passes(r, p)
    same("marks", before, marks())
    same("number of writes", 2, len(p.puts()))
    r.kill()
    remove("aa", "bb")
    once()
    expect_now({})


@case("identity: the same marks where a proxy forbids /version or /info")
def _():
    p = Proxy()
    web("aa", 8001)
    for path in ("/version", "/info"):
        gate = Gate(path.__eq__)
        once(uri=p.uri, env=gate.env)
        before, writes = marks(), len(p.puts())
        podman("pause", "aa")
        once(uri=p.uri, env=gate.env)
        podman("unpause", "aa")
        expect_now(webs(aa=8001))
        same("marks without " + path, before, marks())
        same("number of writes", writes, len(p.puts()))


@case("identity: of two on one host neither removes what the other wrote")
def _():
    other = Service("/run/podman-other.sock", *(
        "--%s=%s/other/%s" % (x, DIR, x) for x in ("root", "runroot",
                                                   "tmpdir")))
    other.start()
    try:
        web("aa", 8001)
        once()
        once(env={"DOCKER_HOST": "unix://" + other.sock})
        expect_now(webs(aa=8001))
    finally:
        other.stop()


ALLOWED = r"GET (/v1\.\d+)?/(version|_ping|info|events|containers/json|" \
    r"containers/json\?all=1|containers/[0-9a-f]{64}/json|" \
    r"networks(/[^/ ?]+)?) HTTP/1\.1"


def all_kinds(r):
    """Containers of all kinds come and go."""
    podman("network", "create", "n-a")
    web("aa", 8001)
    run("--name", "bb", "--net", "n-a", image="exposes")
    run("--name", "cc", "--net", "container:aa")
    podman("rename", "aa", "dd")
    podman("network", "connect", "podman", "bb")
    expect(webs(dd=8001))
    r.resync()
    podman("stop", "dd")
    expect({})


@case("what it asks for: only GET, only what the contract lists, unversioned")
def _():
    gate = Gate()
    all_kinds(Registrator(env=gate.env))
    bad = [line for line in gate.requests if not re.fullmatch(ALLOWED, line)
           or line.startswith("GET /v1.")]
    same("other requests", [], bad)
    same("event streams", 1, gate.requests.count("GET /events HTTP/1.1"))


@case("what it asks for: versioned, where nothing else is answered")
def _():
    gate = Gate(lambda path: not re.match("/v1[.]|/version", path), 404)
    all_kinds(Registrator(env=gate.env))
    lines = gate.requests
    same("other requests", [], [line for line in lines if
                                not re.fullmatch(ALLOWED, line)])
    first = next(i for i, line in enumerate(lines) if " /v1." in line)
    version = ask("/version")["ApiVersion"]
    same("versions", {version}, {re.search(r" /v([\d.]+)/", line).group(1)
                                 for line in lines[first:]})


def churn(n):
    """Short lives: some end by themselves, some are removed."""
    for i in range(4):
        name = "churn-%d-%d" % (n, i)
        web(name, 8100 + 10 * n + i, *(("--rm",) if i % 2 else ()),
            cmd=("sleep", "0.1") if i % 2 else ())
        if i % 2 == 0:
            podman("rename", name, name + "x")
            remove(name + "x")


@case("many come and go, and everything is compared meanwhile")
def _():
    r = Registrator("-resync", "0")
    web("aa", 8001)
    threads = [threading.Thread(target=churn, args=(n,)) for n in range(3)]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        r.resync()
        threads[0].join(0.05)
    for t in threads:
        t.join()
    web("last", 8002)
    expect(webs(aa=8001, last=8002))
    r.resync()
    holds("it did not stay right",
          lambda: services() == webs(aa=8001, last=8002))
    same("end of registrator", None, r.proc.poll())


def inside(binary, *words):
    e2e.prepare(binary)
    cover()
    consul.start()
    images()
    service.start()
    failed = e2e.play(words, clean)
    service.stop()
    consul.kill()
    return 1 if failed else 0


if __name__ == "__main__":
    e2e.enter("podman", inside)
