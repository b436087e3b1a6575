#!/usr/bin/env python3
"""The faults of version 8.0.0, and some of 9 before its release: each is a case that fails there.

  regress.py BINARY [PATTERN]    run every case whose name the regular expression PATTERN finds

Black-box, on the scripted peers of fakes.py, in the harness of peers.py.  A name begins with the fault that
the case is of; the letters say of which kind it is, 7.N was found by reading:

  A  whose entry is it: what is somebody else's is neither written nor removed
  B  one stops all: a row, a container or a list that keeps all others from the registry
  C  what is never mended
  D  removed though it lives
  E  signals, the log, addresses
  F  those of version 9, found by reading it before its release

D2, E5, E7, E8, 7.10 and 7.13 run the program in namespaces of its own, or under strace: they need root.
"""
import asyncio
import base64
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from shlex import quote
from urllib.parse import unquote

import peers
from fakes import DEREGISTER, REGISTER, Consul, Engine, Late, box, hang, listing, message, state_of
from peers import HOST, ROUTINE, Failure, a, demand, entry, equal, life

LIST, LISTED, INSPECT = "GET /containers/json", "/v1/agent/services", "GET /containers/%s/json"
OTHER = "fedcba9876543210-" + "0123456789ab" * 2    # the mark of another engine's registrator
SLOW = float(os.environ.get("HOSTILE_MEMORY", "1")) != 1    # a build that is large on purpose
# The first keep this script busy, the last may be a flood: not beside those that count lists.
GROUPS = [re.compile(r"B1|B2|B5|7\.[389] "), re.compile(r"(?!B1|B2|B5|7\.[1389] |B4.* mark)"),
          re.compile("B4.* mark|7.1 ")]
CASES = peers.Cases()
add, case = CASES.add, CASES.case


# ==== The world =================================================================================

class Agent(Consul):
    """Consul's agent, what the catalog has of the same writes (there IDs have no case), and what is whose."""

    def __init__(self):
        super().__init__()
        self.catalog = {}       # ID in lower case: ID
        self.others = set()     # IDs, in lower case, of entries that are somebody else's
        self.view = dict        # function: what it lists of its services
        self.more = ""          # rows that it lists before them, as text
        self.lists = []         # the times when it was asked for its list

    async def read(self, reader):
        request = await super().read(reader)
        if request.path == LISTED:
            self.lists.append(asyncio.get_running_loop().time())
        return request

    def answer(self, request):
        if request.path == LISTED:
            text = self.pretty(self.view(self.services))
            return 200, text.replace("{", "{" + self.more + ("," if self.more and len(text) > 2 else ""), 1)
        return super().answer(request)

    def register(self, request):
        self.guard("registered", json.loads(request.body).get("ID", ""))
        return super().register(request)

    def deregister(self, path):
        before = set(self.services)
        name = unquote(path[len(DEREGISTER):])
        self.guard("deregistered", name)
        answer = super().deregister(path)
        if before != set(self.services):
            self.catalog.pop(name.lower(), None)
        return answer

    def put(self, service, replace=False):
        super().put(service, replace)
        name = service.get("ID") or service["Name"]
        self.catalog[name.lower()] = name

    def guard(self, deed, name):
        if name.lower() in self.others:
            self.complain("%s is somebody else's and is %s" % (name, deed))

    def of_others(self, *services):
        """These are somebody else's: a write of one is a complaint."""
        for service in services:
            self.put(service)
            self.others.add(service["ID"].lower())


class World(peers.World):
    limit_s = 150

    def __init__(self, binary, tmp):
        super().__init__(binary, tmp)
        self.consul = Agent()
        self.beside = []        # worlds of other programs on the same agent
        self.patience_s = 30

    async def open(self):
        await super().open()
        self.late_s = 0         # how late this script has been, at the worst: it runs other cases too
        self.watch = asyncio.ensure_future(self.watch_itself())

    async def watch_itself(self):
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.02
            await asyncio.sleep(0.02)
            self.late_s = max(self.late_s, loop.time() - due)

    async def another(self, engine=None):
        """The world of another program on this agent, and on the same engine or its own."""
        other = World(self.binary, self.path("other"))
        os.mkdir(other.tmp)
        other.consul, other.port, other.uri = self.consul, self.port, self.uri
        other.engine = engine or self.engine
        other.docker = await engine.listen(other.path("docker.sock")) if engine else self.docker
        other.watch = self.watch
        self.beside.append(other)
        return other

    def script(self, text):
        """The program is run by this shell script, as "$BINARY" "$@"."""
        path = self.path("script")
        with open(path, "w") as f:
            f.write("#!/bin/sh\nBINARY=%s\n%s\n" % (quote(self.binary), text))
        os.chmod(path, 0o755)
        self.binary = path

    def bounded(self, mb=200):
        """It gets no more memory than this, so that a fault stays its own."""
        if not SLOW:
            self.script('ulimit -v %d && exec "$BINARY" "$@"' % (mb << 10))

    def said(self, *words):
        """The lines with all these words, but for what is always said."""
        return [line for line in self.lines(ROUTINE) if all(re.search(word, line) for word in words)]

    def said_once(self, *words):
        equal("lines with %s" % ", ".join(words), len(self.said(*words)), 1)

    def calm(self):
        """Nobody has complained so far."""
        equal("complaints of the peers", self.engine.complaints + self.consul.complaints, [])

    def port_of(self, id_):
        return self.consul.services.get(id_, {}).get("Port")

    def lists_apart(self):
        """Consul was asked for no two lists within a second."""
        gaps = [b - a for a, b in zip(self.consul.lists, self.consul.lists[1:])]
        demand(min(gaps) > 0.9 - min(self.late_s, 0.6), "two lists in %.3f s" % min(gaps))

    def removals(self):
        return [name for verb, name in self.writes() if verb == "deregister"]

    async def lists(self, n=2):
        """So many more lists of Consul have been asked for, and dealt with."""
        end = len(self.consul.lists) + n
        await self.until(lambda: len(self.consul.lists) >= end, "asked for %d lists" % n)
        await asyncio.sleep(0.3)

    async def finish(self):
        for other in self.beside:
            await other.finish()
        await super().finish()

    async def close(self):
        self.watch.cancel()
        for other in self.beside:
            await other.close()
        await super().close()


def asked_for(w, path):
    """How often the engine was asked for this."""
    return [r.path for r in w.engine.requests].count(path)


def asked(w, container):
    return asked_for(w, "/containers/%s/json" % container["Id"])


def publish(container, port, to):
    container["NetworkSettings"]["Ports"]["%d/tcp" % port] = [{"HostIp": "0.0.0.0", "HostPort": str(to)}]


def named(container, name):
    container["Name"] = "/" + name
    return container


class Network:
    """A network namespace, entered by a thread of its own."""

    def __init__(self):
        demand(os.geteuid() == 0, "needs root")
        self.thread = ThreadPoolExecutor(1)
        self.path = self.inside(self.enter)

    def inside(self, function, *args):
        return self.thread.submit(function, *args).result()

    def enter(self):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x40000000):        # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "unshare")
        return "/proc/%d/task/%d/ns/net" % (os.getpid(), threading.get_native_id())

    def sh(self, command):
        self.inside(partial(subprocess.run, ["sh", "-e", "-c", command], check=True))

    def socket(self, address, family=socket.AF_INET, kind=socket.SOCK_STREAM):
        def bind():
            one = socket.socket(family, kind)
            one.bind(address)
            return one
        return self.inside(bind)

    def has_eth9(self, address):
        self.sh("ip link add eth9 type veth peer name eth8; ip link set eth8 up; ip link set eth9 up;"
                "ip " + address)

    def has(self, w):
        """The program runs in here."""
        w.script('exec nsenter --net=%s "$BINARY" "$@"' % self.path)


# ==== A. Whose entry is it ======================================================================

async def foreign(id_, mark, w):
    """An entry with another's mark, or with none and not as we want it, is somebody else's."""
    w.consul.of_others(entry(id_, mark))
    one = a(env=["SERVICE_ID=" + id_])
    await life(w, one, args=["-resync", "1"])
    await w.lists(3)
    w.calm()
    w.said_once(re.escape(id_), "-cleanup")
    w.engine.die(one)
    await w.lists()
    w.calm()
    w.same("h:first:80", id_)


for id_, mark in [("vault", None), ("vault", OTHER), ("h:victim:80", None), ("g:victim:80", OTHER)]:
    add("A1 a SERVICE_ID of somebody else's entry is left alone: %s, mark %s" % (id_, mark), foreign,
        id_, mark)


@case("A1 a SERVICE_ID of somebody else's entry is left alone: the registration would be refused")
async def _(w):
    """What was never written is not removed."""
    w.consul.of_others(entry("vault"))
    one = a(env=["SERVICE_ID=vault", "SERVICE_CHECK_TTL=10x"])
    await life(w, one, args=["-resync", "1"])
    await w.lists()
    w.engine.die(one)
    await w.lists()
    w.calm()
    w.same("h:first:80", "vault")


@case("A1 a SERVICE_ID of somebody else's entry is left alone: the container ends while Consul is away")
async def _(w):
    """What was never written is not removed, though it was wanted when nobody could say whose it is."""
    w.consul.of_others(entry("vault"))
    one = a(env=["SERVICE_ID=vault"])
    await life(w, args=["-resync", "1"])
    w.consul.close()
    w.engine.start(one)
    await asyncio.sleep(0.5)
    w.engine.die(one)
    await asyncio.sleep(0.3)
    await w.consul.listen(port=w.port)
    await w.lists()
    w.calm()
    w.same("h:first:80", "vault")


async def consul_itself(id_, w):
    """The service `consul` of a server is in its catalog and not in the list of its agent (seen in 1.8.7)."""
    w.consul.others.add("consul")
    one = a(env=["SERVICE_ID=" + id_])
    await life(w, one, args=["-resync", "1"])
    await w.lists()
    w.calm()
    demand(w.said(r"\b%s\b" % id_), "not a word about it")
    w.engine.die(one)
    await w.lists()
    w.calm()


for id_ in ["consul", "Consul"]:
    add("A1 a SERVICE_ID of somebody else's entry is left alone: %s, the server itself" % id_,
        consul_itself, id_)


@case("A1 a SERVICE_ID of somebody else's entry is left alone: -on-exit deregister")
async def _(w):
    """It goes with what is ours only."""
    w.consul.of_others(entry("vault"))
    await life(w, a(env=["SERVICE_ID=vault"]), args=["-on-exit", "deregister"])
    await w.quiet()
    equal("exit status", await w.stop(), 0)
    w.calm()
    w.same("vault")


@case("A1 a SERVICE_ID of somebody else's entry is taken with -cleanup alone")
async def _(w):
    """From then on it is ours, and goes with the container."""
    one = a(env=["SERVICE_ID=vault"])
    w.consul.of_others(entry("vault"))
    await life(w, one)
    await w.quiet()
    w.calm()
    equal("exit status", await w.stop(), 0)
    w.consul.others.clear()
    await w.run("-cleanup")
    await w.until(lambda: w.port_of("vault") == 8080, "took it")
    w.engine.die(one)
    await w.until_services("h:first:80")


@case("A1 what says name, address and port that we want is taken over, anything else is not")
async def _(w):
    """So entries of the original under a SERVICE_ID are taken over."""
    right = {"Name": "app", "Address": HOST, "Port": 8080, "Meta": {}}
    w.consul.put({**right, "ID": "mine"})
    boxes = [a(env=["SERVICE_ID=mine"])]
    for key, value in [("Name", "other"), ("Address", "192.0.2.99"), ("Port", 1)]:
        name = "of-another-" + key.lower()
        w.consul.of_others({**right, "ID": name, key: value})
        boxes.append(box(name, {80: 8080}, env=["SERVICE_ID=" + name]))
    await life(w, *boxes, args=["-resync", "1"])
    await w.lists()
    w.calm()
    demand(w.consul.services["mine"]["Meta"].get("registrator"), "not taken over")


@case("A1 an entry of somebody else's that goes is ours to write at the next resync")
async def _(w):
    """It is looked at again at each resync."""
    w.consul.of_others(entry("vault"))
    await life(w, a(env=["SERVICE_ID=vault"]), args=["-resync", "1"])
    await w.lists()
    w.calm()
    del w.consul.services["vault"]
    w.consul.others.clear()
    await w.until_services("h:first:80", "vault")
    equal("port", w.port_of("vault"), 8080)


async def contested(id_, w):
    """What we wrote in this run and what another owner has marked since is left to that one, said once."""
    one = a(env=["SERVICE_ID=" + id_])
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", id_)
    w.consul.of_others(entry(id_, OTHER))
    await w.lists(3)
    w.calm()
    w.said_once(id_)
    w.engine.die(one)
    await w.lists()
    w.calm()
    w.same("h:first:80", id_)


for id_ in ["h:a:80", "mine"]:
    add("A1 what another owner has written over is left to that one: " + id_, contested, id_)


async def side_by_side(args, engine, w):
    """Two registrators with one host name on one agent: each ID is of one of them, and stays so."""
    w.has(a(labels={"SERVICE_NAME": "web"}), box("b", {80: 8081}))
    other = await w.another(Engine([a({80: 9090})]) if engine else None)
    if engine:
        other.engine.on("GET /info", (200, {"ID": "AN:OTHER:ENGINE", "Name": "engine"}))
    await w.run("-resync", "1")
    await w.until_services("h:a:80", "h:b:80")
    await other.run("-resync", "1", *args)
    await other.until_log("Listening")
    await w.lists(4)
    await w.quiet(2.5)
    equal("removals", w.removals(), [])
    await w.until(lambda: w.said("h:a:80"), "said whose h:a:80 is")
    w.said_once("h:a:80")
    for program in (w, other):
        equal("exit status", await program.stop(), 0)
        await program.run("-resync", "1", *(args if program is other else []))
        await program.until_log("Listening")
        await w.lists(4)
        await w.quiet(2)
    equal("removals", w.removals(), [])
    w.same("h:a:80", "h:b:80")
    demand(max(Counter(w.writes()).values()) <= 4, "more than a write a start", w.writes())
    for program in (w, other):
        demand(len(program.said("h:a:80")) <= 1, "said more than once", *program.said("h:a:80"))


add("A2 two registrators on one agent: -internal", side_by_side, ["-internal"], False)
add("A2 two registrators on one agent: two engines", side_by_side, [], True)
add("A3 two registrators on one agent: -explicit", side_by_side, ["-explicit"], False)
add("A3 two registrators on one agent: -explicit and -internal", side_by_side,
    ["-explicit", "-internal"], False)


@case("A2 -on-exit deregister leaves what another registrator has taken over")
async def _(w):
    other = await w.another()
    w.has(a())
    await w.run("-resync", "1", "-on-exit", "deregister")
    await w.until_services("h:a:80")
    await other.run("-resync", "1", "-internal")
    await w.lists(4)
    equal("exit status", await w.stop(), 0)
    equal("removals", w.removals(), [])
    await w.quiet(2)
    equal("port", w.port_of("h:a:80"), 80)


@case("A2 a container that ends does not take the entry of another engine's with it")
async def _(w):
    """When that goes too, whoever still wants it writes it again."""
    one, two = a(), a({80: 9090})
    other = await w.another(Engine([two]))
    other.engine.on("GET /info", (200, {"ID": "AN:OTHER:ENGINE", "Name": "engine"}))
    third = box("c", {80: 8082})
    w.has(one, third)
    other.engine.boxes[third["Id"]] = box("c", {80: 9092})
    await w.run("-resync", "1")
    await w.until_services("h:a:80", "h:c:80")
    await other.run("-resync", "1")
    await w.until(lambda: w.port_of("h:a:80") == 9090, "taken over")
    await w.lists(3)
    w.engine.die(one)
    await w.lists(2)
    equal("removals", w.removals(), [])
    equal("port", w.port_of("h:a:80"), 9090)
    equal("port", w.port_of("h:c:80"), 9092)
    other.engine.die(other.engine.boxes[third["Id"]])
    await w.until(lambda: w.port_of("h:c:80") == 8082, "written by who wants it")
    await w.quiet(2)


async def until_right(w, *names):
    """Consul's agent and its catalog come to have these, and no others."""
    def right():
        have = {n.lower(): n for n in names}
        return not w.mismatch(dict.fromkeys(names, {})) and w.consul.catalog == have
    await w.until(right, "came to the services expected", lambda: [
        "agent: %r, catalog: %r, expected: %r" % (sorted(w.consul.services), w.consul.catalog, names)])


async def one_but_for_case(name_1, env_1, name_2, env_2, ids, w):
    """Of two containers whose IDs are one but for case, the one seen first has it; then the other."""
    one, two = box(name_1, {80: 8080}, env=env_1), box(name_2, {80: 8081}, env=env_2)
    await life(w, one, args=["-resync", "1"])
    await until_right(w, "h:first:80", ids[0])
    w.engine.start(two)
    await w.until(lambda: asked(w, two), "inspected it")
    await w.lists()
    w.same("h:first:80", ids[0])
    demand(w.said(ids[1]), "no warning")
    w.engine.die(one)
    await until_right(w, "h:first:80", ids[1])
    await w.quiet(1.5)


for what, *row in [
        ("SERVICE_ID", "a", ["SERVICE_ID=web"], "b", ["SERVICE_ID=Web"], ("web", "Web")),
        ("names", "web", [], "Web", [], ("h:web:80", "h:Web:80")),
        ("a victim's default ID", "victim", [], "evil", ["SERVICE_ID=h:VICTIM:80"],
         ("h:victim:80", "h:VICTIM:80"))]:
    add("A4 IDs that differ by case alone are one: " + what, one_but_for_case, *row)


@case("A4 IDs that differ by case alone are one: two ports of a container")
async def _(w):
    """They are told apart as two of the same ID are."""
    await life(w, a({80: 8080, 81: 8081}, env=["SERVICE_80_ID=x", "SERVICE_81_ID=X"]))
    await until_right(w, "h:first:80", "x", "X:81")


@case("A4 IDs that differ by case alone are one: somebody else's entry")
async def _(w):
    w.consul.of_others(entry("VAULT"))
    one = a(env=["SERVICE_ID=vault"])
    await life(w, one, args=["-resync", "1"])
    await w.lists()
    w.calm()
    w.same("h:first:80", "VAULT")
    w.said_once("(?i)vault", "-cleanup")
    w.engine.die(one)
    await w.lists()
    w.calm()


@case("A4 IDs that differ by case alone are one: our own orphan")
async def _(w):
    """Its removal, which takes the catalog's one entry for both, comes before the registration."""
    w.has(a(env=["SERVICE_ID=WEB"]))
    equal("exit status", await w.once(), 0)
    w.has(a(env=["SERVICE_ID=web"]))
    await w.run("-resync", "1")
    await w.until(lambda: len(w.writes()) >= 3, "wrote")
    await w.lists()
    await until_right(w, "web")
    await w.quiet(1.5)


@case("A4 IDs that differ by case alone are one: a rename")
async def _(w):
    one = a()
    await life(w, one, args=["-resync", "1"])
    await until_right(w, "h:first:80", "h:a:80")
    w.engine.rename(one, "A")
    await w.until(lambda: "h:A:80" in w.consul.services, "registered it anew")
    await w.lists()
    await until_right(w, "h:first:80", "h:A:80")


@case("A5 an ID that Consul would never deregister is not used")
async def _(w):
    """It is ASCII, 0x20 to 0x7e, of at most 1,024 bytes; what is not is refused with a warning."""
    ids = ["\u0378", "x\U0001fae8", "\U0001f9ff", "caf\xe9", "\ufffd", "x\x7f", "x" * 1025, "x" * 100000]
    boxes = [box("b%d" % i, {80: 8100 + i}, env=["SERVICE_ID=" + id_]) for i, id_ in enumerate(ids)]
    await life(w, *boxes, box("good", {80: 8081}, env=["SERVICE_ID= ~" + "x" * 1022]))
    right = ["h:b%d:80" % i for i in range(len(ids))]
    await w.until(lambda: len(w.consul.services) == len(ids) + 2, "registered all",
                  lambda: [ascii(sorted(w.consul.services))])
    w.same("h:first:80", " ~" + "x" * 1022, *right)
    for one in boxes:
        demand(w.said(one["Id"][:12]), "no warning about " + one["Name"])
        w.engine.die(one)
    await w.until_services("h:first:80", " ~" + "x" * 1022)


async def bad_hostname(name, w):
    """-hostname has to pass the test of an ID."""
    await w.spawn("-hostname", name, "-once", "-ip", "10.0.0.1", "print:")
    equal("exit status", await w.exit(), 1)
    demand("-hostname" in w.log, "does not say which option", w.log)


for name in ["h\xe9", "\u0378", "x\U0001fae8"]:
    add("A5 a -hostname that makes IDs that Consul would never deregister: " + ascii(name),
        bad_hostname, name)


# ==== B. One stops all ==========================================================================

def nested(depth):
    return '{"x":[' * (depth // 2) + "]}" * (depth // 2)


def odd_row(more):
    return '"odd":{"ID":"odd","Service":"x",%s"Port":1}' % more


async def bad_row(row, w):
    """A row of Consul's list that cannot be read is skipped, said once; nothing is concluded to be absent."""
    w.consul.more, w.cpu_share = row, 0.6
    one = a()
    await life(w, args=["-resync", "1"])
    w.engine.start(one)
    await w.until_services("h:first:80", "h:a:80")
    await w.lists()
    w.engine.die(one)
    await w.until_services("h:first:80")
    await w.lists()
    equal("lines about it", len(w.lines(ROUTINE + "|removed:")), 1)
    del w.consul.services["h:first:80"]
    await w.lists()
    equal("services", list(w.consul.services), [])
    w.consul.more = ""
    await w.until_services("h:first:80")


for what, row in [("large", odd_row('"Tags":["%s"],' % ("\\u0001" * 800000))),
                  ("deep", odd_row('"Proxy":{"Config":%s},' % nested(70))),
                  ("no JSON", odd_row('"Tags":[],,'))]:
    add("B1 a row of Consul's list that cannot be read stops nobody: " + what, bad_row, row)


@case("B1 a list of Consul's of more than 50,000 rows stops nobody")
async def _(w):
    w.consul.more = ",".join('"x%d":{"ID":"x%d","Service":"x","Tags":[],"Meta":{},"Port":1}' % (i, i)
                             for i in range(60000))
    w.cpu_share = 0.6
    one = a()
    await life(w, args=["-resync", "2"])
    w.engine.start(one)
    await w.until_services("h:first:80", "h:a:80")
    del w.consul.services["h:a:80"]
    await w.until_services("h:first:80", "h:a:80")
    w.engine.die(one)
    await w.until_services("h:first:80")


async def bad_engine_row(spoil, w):
    """The same of the engine's list: what it does not show may run, and may explain any entry."""
    x = box("x", {80: 8082})
    w.has(x, box("first", {80: 8000}))
    equal("exit status", await w.once(), 0)
    w.consul.put(entry("ghost", w.consul.services["h:x:80"]["Meta"]["registrator"]))

    def spoiled(_):
        rows = [json.dumps(listing(b)) for b in w.engine.boxes.values() if b["State"]["Running"]]
        return 200, "[%s]" % ",".join(spoil(row) if '"/x"' in row else row for row in rows)

    w.engine.on(LIST, spoiled)
    await life(w, args=["-resync", "1"])
    w.engine.start(a())
    await w.until_services("h:first:80", "h:x:80", "ghost", "h:a:80")
    await w.lists(3)
    w.same("h:first:80", "h:x:80", "ghost", "h:a:80")
    equal("lines about it", len(w.lines(ROUTINE)), 1)
    w.engine.behave()
    await w.until_services("h:first:80", "h:x:80", "h:a:80")
    equal("removals", w.removals(), ["ghost"])


for what, spoil in [("deep", lambda row: row[:-1] + ',"Mounts":%s}' % nested(70)),
                    ("no JSON", lambda row: row[:-1] + ",,}")]:
    add("B1 a row of the engine's list that cannot be read stops nobody: " + what, bad_engine_row, spoil)


async def greedy(many, w):
    """However much a container says: it costs bounded memory and time, and others are registered."""
    w.bounded()
    w.cpu_share = 0.9
    await life(w, many, args=["-resync", "0"])
    await w.until(lambda: many["Id"][:12] in w.log, "dealt with it")
    w.engine.start(box("b", {80: 8081}))
    await w.until(lambda: "h:b:80" in w.consul.services, "registered another container's service")
    demand(SLOW or w.proc_mb("VmHWM") < 64, "%.0f MB of memory" % w.proc_mb("VmHWM"))
    demand(w.cpu_s() < 8 or SLOW, "%.0f s of processor time" % w.cpu_s())


def ports(n):
    return {port: port for port in range(1, n + 1)}


def exposing(n, **more):
    return box("many", expose=range(1, n + 1), mode="host", **more)


CHECKS = ["SERVICE_CHECK_%d=x" % i for i in range(990)]
CHAIN = ["SERVICE_%d_ID=x%s" % (n, "".join(":%d" % i for i in range(2, n))) for n in range(1, 900)]
TAGS = ",".join("t%05d" % i for i in range(100000))

for what, make in [
        ("7.3 20,000 ports and 990 variables", lambda: exposing(20000, env=CHECKS)),
        ("B2 65,535 ports and 990 checks", lambda: exposing(65535, env=CHECKS)),
        ("B2 1,000 ports with a name of 1 MB",
         lambda: box("many", ports(1000), env=["SERVICE_NAME=" + "n" * 10**6])),
        ("B2 3,000 ports with many tags",
         lambda: box("many", ports(3000), env=["SERVICE_TAGS=" + TAGS[:16000]])),
        ("B2 IDs that collide in a chain", lambda: exposing(60000, env=CHAIN))]:
    add(what + " stop nobody", lambda make, w: greedy(make(), w), make)


@case("B2 100 ports with a name of 1.9 MB: a name of more than 255 bytes is not used")
async def _(w):
    w.bounded()
    w.cpu_share = 0.6
    many = box("many", ports(100), env=["SERVICE_NAME=" + "n" * 1900000])
    await life(w, many, a(env=["SERVICE_NAME=" + "n" * 255]),
               box("b", {80: 8081}, env=["SERVICE_NAME=" + "n" * 256]))
    names = ["h:many:%d" % port for port in range(1, 101)]
    await w.until_services("h:first:80", "h:a:80", "h:b:80", *names)
    equal("names", {w.consul.services["h:many:%d" % i]["Service"] for i in range(1, 101)},
          {"app-%d" % i for i in range(1, 101)})
    equal("the longest", len(w.consul.services["h:a:80"]["Service"]), 255)
    equal("too long", w.consul.services["h:b:80"]["Service"], "app")
    w.said_once(many["Id"][:12])
    demand(SLOW or w.proc_mb("VmHWM") < 64, "%.0f MB of memory" % w.proc_mb("VmHWM"))


@case("B2 of more than 10,000 services of a container the first by port count")
async def _(w):
    """One warning names the container."""
    w.cpu_share = 0.9
    many = exposing(10100)
    w.has(many)
    await w.run("-ip", "10.0.0.1", uri="print:")
    await w.until(lambda: w.out.count("register") >= 10000, "registered 10,000")
    await asyncio.sleep(1)
    said = [json.loads(line) for line in w.out.splitlines()]
    equal("IDs", {one["service"]["ID"] for one in said if one["action"] == "register"},
          {"h:many:%d" % i for i in range(1, 10001)})
    w.said_once(many["Id"][:12])


@case("B2 a container's many services do not stand before another's")
async def _(w):
    """Of several containers whose services wait to be written each gets its turn."""
    w.cpu_share = 0.6
    many, one, seen = box("many", ports(4000)), box("b", {80: 8081}), []
    w.engine.on(INSPECT % one["Id"], lambda _: seen.append(len(w.consul.writes())))
    await life(w)
    w.engine.start(many)
    await w.until(lambda: len(w.consul.requests) > 100, "began to write")
    w.engine.start(one)
    await w.until(lambda: "h:b:80" in w.consul.services, "registered it")
    writes = w.writes()
    demand(seen and seen[0] < 3000, "too slow a start for this test")
    between = writes.index(("register", "h:b:80")) - seen[0]
    demand(between < 500, "%d writes came before it" % between)


@case("B2 4 million commas in SERVICE_TAGS are no tags")
async def _(w):
    """What is empty vanishes."""
    w.bounded()
    w.cpu_share = 0.6
    await life(w, a(env=["SERVICE_TAGS=" + "," * 4300000]), args=["-resync", "0"])
    await w.until_services(first={}, a={"Tags": None})


@case("B2 of more than 16 KiB of tags those that fit count")
async def _(w):
    """They are in the order written, and one warning names the container."""
    one = a(env=["SERVICE_TAGS=" + TAGS])
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    tags = w.consul.sent["h:a:80"].get("Tags") or []
    demand(8 << 10 < len("".join(tags)) <= 16 << 10, "%d bytes of tags" % len("".join(tags)))
    equal("tags", tags, TAGS.split(",")[:len(tags)])
    await w.quiet(2)
    w.said_once(one["Id"][:12])


@case("7.9 a registration too large to be sent: what makes it so is left out")
async def _(w):
    """11 MB of DEL in a tag are 66 MB of JSON."""
    w.cpu_share, w.engine.raw, w.patience_s = 0.9, True, 15
    one = a(env=["SERVICE_TAGS=small," + "\x7f" * (11 << 20)])
    await life(w, one, args=["-resync", "0"])
    await w.until_services(first={}, a={"Tags": ["small"]})


async def no_list(answer, at_start, w):
    """Events and inspects go on; the list is tried again, said once; what it may show stays meanwhile."""
    one, two = a(), box("b", {80: 8081})
    w.has(box("first", {80: 8000}))
    equal("exit status", await w.once(), 0)
    w.consul.put(entry("ghost", w.consul.services["h:first:80"]["Meta"]["registrator"]))
    if at_start:
        w.engine.on(LIST, answer)
    await w.run("-resync", "1")
    await w.until_log("Listening")
    if not at_start:
        await w.until_services("h:first:80")
        w.engine.on(LIST, answer)
        await w.lists(1)
    w.patience_s = 15
    before = asked_for(w, "/containers/json")
    w.engine.start(one)
    w.engine.start(two)
    await w.until(lambda: {"h:a:80", "h:b:80"} <= w.consul.services.keys(), "registered what was started")
    w.engine.die(one)
    await w.until(lambda: "h:a:80" not in w.consul.services, "removed what ended")
    w.patience_s = 40       # a call is given 10 s
    await w.until(lambda: asked_for(w, "/containers/json") > before + at_start, "tried the list again")
    equal("event streams opened", asked_for(w, "/events") - 1, 1)
    demand("h:first:80" in w.consul.services, "removed without a list")
    demand("ghost" in w.consul.services or not at_start, "removed without a list")
    w.said_once("docker: ")
    w.has(box("c", {80: 8082}))
    w.engine.behave()
    await w.until_services("h:first:80", "h:b:80", "h:c:80")


for what, answer in [("hangs", hang), ("is a 500", (500, {"message": "oops"})), ("is cut", (200, '[{"Id":'))]:
    for at_start in [True, False]:
        when = "from the start" if at_start else "at a resync"
        add("B3 the engine's list %s %s, events go on" % (what, when), no_list, answer, at_start)


@case("7.12 one list that answers 404 is no word about versions")
async def _(w):
    """Paths get a version when the engine asks for it; a page that was not found for once ends no session."""
    w.engine.on(LIST, (404, {"message": "page not found"}), times=1)
    await life(w, a(), args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    equal("paths with a version", [r.target for r in w.engine.requests if r.target.startswith("/v1")], [])
    equal("event streams opened", asked_for(w, "/events"), 1)


def without_marks(services):
    return {name: {**s, "Meta": {k: v for k, v in s["Meta"].items() if k != "registrator"}}
            for name, s in services.items()}


def with_a_tag(services):
    return {name: {**s, "Tags": ["proxied"]} for name, s in services.items()}


def elsewhere(services):
    return {name: {**s, "Address": "192.0.2.77"} for name, s in services.items()}


class Lagging:
    """Lists what was there some writes ago."""

    def __init__(self, by):
        self.past, self.by = [], by

    def __call__(self, services):
        if not self.past or self.past[-1] != services:
            self.past.append(dict(services))
        return self.past[max(0, len(self.past) - 1 - self.by)]


async def distorted(view, w):
    """What is not listed as it was sent is written again at each resync at most, and that is said once."""
    w.consul.view = view
    w.has(a(env=["SERVICE_X=1"]), box("b", {80: 8081}, env=["SERVICE_ID=vault"]))
    await w.run("-resync", "1")
    await w.until(lambda: {"h:a:80", "vault"} <= w.consul.services.keys(), "registered both")
    loop = asyncio.get_running_loop()
    begin, before = loop.time(), len(w.writes())
    await asyncio.sleep(4)
    counts, seconds = Counter(w.writes()[before:]), loop.time() - begin
    demand(all(n <= seconds + 2 for n in counts.values()), "writes in %.1f s" % seconds, repr(counts))
    equal("removals", w.removals(), [])
    w.lists_apart()
    equal("what it has said more than once", [line for line, n in Counter(
        line[20:] for line in w.lines(ROUTINE)).items() if n > 1], [])


for what, make in [("drops our mark", lambda: without_marks), ("adds a tag", lambda: with_a_tag),
                   ("shows another address", lambda: elsewhere), ("never shows them", lambda: lambda _: {}),
                   ("lags by two writes", lambda: Lagging(2))]:
    add("B4 a list that %s is no loop" % what, lambda make, w: distorted(make(), w), make)


@case("B4 an agent that closes each connection is not asked without a pause")
async def _(w):
    """It may have been started anew, so that is a reason for a list; they are a second apart all the same."""
    w.consul.on("*", lambda r: message(*w.consul.answer(r)))
    await life(w, a(), args=["-resync", "1"])
    await w.lists(3)
    w.same("h:first:80", "h:a:80")
    w.lists_apart()


@case("7.1 -once ends though the list never shows our mark")
async def _(w):
    w.consul.view = without_marks
    w.has(a(), box("b", {80: 8081}, env=["SERVICE_ID=vault"]))
    w.cpu_share = 0.9
    await w.run("-once")
    w.may_end = True
    try:
        await asyncio.wait_for(w.proc.wait(), 15)
    except asyncio.TimeoutError:
        raise Failure("still running after %d writes" % len(w.writes())) from None
    demand(w.proc.returncode in (0, 1), "exit status %d" % w.proc.returncode)
    demand(len(w.writes()) < 10, "%d writes" % len(w.writes()))
    w.same("h:a:80", "vault")


@case("B5 rows of others are not kept")
async def _(w):
    """60 of them with IDs of 1 MB each."""
    w.cpu_share = 0.9
    ids = ["%02d" % i + "x" * 10**6 for i in range(60)]
    w.consul.more = ",".join('"%s":{"ID":"%s","Service":"x"}' % (id_, id_) for id_ in ids)
    await life(w, a(), args=["-resync", "0"])
    await w.until_services("h:first:80", "h:a:80")
    demand(SLOW or w.proc_mb("VmHWM") < 32, "%.0f MB of memory" % w.proc_mb("VmHWM"))


@case("7.8 orphans that wait for an inspect cost nothing meanwhile")
async def _(w):
    """1,000 entries that may have to go, 1,000 containers, and one of them cannot be inspected."""
    w.cpu_share = 0.9
    n = 1000
    w.has(*[box("old%d" % i, {80: 10000 + i}) for i in range(n)])
    equal("exit status", await w.once(), 0)
    w.engine.boxes.clear()
    boxes = [box("new%d" % i, {80: 10000 + i}) for i in range(n)]
    w.has(*boxes)
    w.engine.on(INSPECT % boxes[-1]["Id"], hang)
    await w.run("-resync", "0")
    await w.until(lambda: len(w.consul.services) >= 2 * n - 1, "registered the new ones")
    for i in range(400):
        w.engine.emit("exec_die", boxes[i])
        await asyncio.sleep(0.003)
    demand(w.cpu_s() < 1 or SLOW, "%.1f s of processor time" % w.cpu_s())
    equal("removals", w.removals(), [])


# ==== C. What is never mended ===================================================================

@case("C1 a container that failed gives its ID to one that runs")
async def _(w):
    """on-success keeps the services of a failed one, but those that run come first."""
    one, two = a(env=["SERVICE_ID=x"]), box("b", {80: 8081}, env=["SERVICE_ID=x"])
    await life(w, one, args=["-deregister", "on-success", "-resync", "1"])
    await w.until_services("h:first:80", "x")
    w.engine.start(two)
    await w.lists()
    equal("port", w.port_of("x"), 8080)
    w.engine.die(one, 1)
    await w.until(lambda: w.port_of("x") == 8081, "gave it over")
    await w.quiet(1.5)
    w.same("h:first:80", "x")


@case("C1 a container that failed gives its ID to one that took its name while the engine was away")
async def _(w):
    old, new = a(), named(box("new", {80: 8081}), "a")
    await life(w, old, args=["-deregister", "on-success", "-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    w.engine.close()
    old["State"] = state_of("exited", 1)
    named(old, "old")
    w.engine.boxes = {new["Id"]: new, **w.engine.boxes}     # the newest comes first
    await w.engine.listen(w.docker)
    await w.until(lambda: w.port_of("h:a:80") == 8081, "gave it over")
    await w.quiet(1.5)


async def loses(lose, w):
    """What the agent has lost is written again, however often."""
    lost = []

    def forgetful(request):
        if len(lost) < 5 and json.loads(request.body)["ID"] == "h:a:80":
            lost.append(w.consul.answer(request))
            lose(w)
            return lost[-1]
        return None

    w.consul.on("PUT " + REGISTER, forgetful)
    await life(w, args=["-resync", "1"])
    w.engine.start(a())
    await w.until(lambda: len(lost) == 5, "written it again", lambda: ["%d times" % len(lost)])
    await w.until_services("h:first:80", "h:a:80")
    await w.quiet(2)


def forgets(w):
    """It ends, a moment after it has answered."""
    w.consul.services.clear()
    asyncio.get_running_loop().call_later(0.05, w.consul.drop)


add("C2 an entry that is lost as often as it is written: by a script", loses,
    lambda w: w.consul.services.pop("h:a:80"))
add("C2 an entry that is lost as often as it is written: the agent restarts", loses, forgets)


async def shared(change, want, w):
    """A container in X's network follows X, also when X's events are lost."""
    x = box("x", {80: 8080}, nets={"bridge": "172.17.0.9"})
    one = box("a", expose=[80], mode="container:" + x["Id"])
    two = box("b", expose=[80], mode="container:" + one["Id"])
    await life(w, x, one, two, args=["-resync", "1"])
    await w.until_services(first={}, x={"Port": 8080}, a={"Port": 8080}, b={"Port": 8080})
    change(x)
    await w.until_services(first={}, **{name: {"Port": want} for name in "xab" if want})
    await w.quiet(1.5)


add("C3 who shares a network follows its owner at a resync: another port", shared,
    lambda x: publish(x, 80, 9090), 9090)
add("C3 who shares a network follows its owner at a resync: it has ended", shared,
    lambda x: x.update(State=state_of("exited")), None)


@case("C3 who shares a network follows its owner at a resync: -internal, another address")
async def _(w):
    x = box("x", {80: 8080}, nets={"bridge": "172.17.0.9"})
    await life(w, x, box("a", expose=[80], mode="container:" + x["Id"]), args=["-resync", "1", "-internal"])
    await w.until_services(first={}, x={"Address": "172.17.0.9"}, a={"Address": "172.17.0.9"})
    x["NetworkSettings"] = box("x", {80: 8080}, nets={"bridge": "172.17.0.11"})["NetworkSettings"]
    await w.until_services(first={}, x={"Address": "172.17.0.11"}, a={"Address": "172.17.0.11"})


@case("C3 how a container has ended is seen at a resync")
async def _(w):
    """on-success: it failed, ran again and ended well, and no event told of that."""
    one = a()
    await life(w, one, args=["-deregister", "on-success", "-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    w.engine.die(one, 1)
    await w.lists()
    w.same("h:first:80", "h:a:80")
    one["State"] = state_of("exited", 0)
    await w.until_services("h:first:80")


@case("C4 a check that nobody wants goes, though the answer to its registration was lost")
async def _(w):
    """A write whose answer is lost may have been done: after it nothing is known of the checks."""
    one, met = a(), []

    def lose(request):
        if "Check" not in json.loads(request.body) or met:
            return None
        met.append(w.consul.answer(request))
        one["Config"]["Labels"] = {}
        w.engine.emit("update", one)
        return b"HTTP/1.1 200 O"

    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    w.consul.on("PUT " + REGISTER, lose)
    one["Config"]["Labels"] = {"SERVICE_CHECK_TTL": "30s"}
    w.engine.emit("update", one)
    await w.until(lambda: met, "wrote the check")
    await w.until_services(first={}, a={"Check": None})
    await w.lists()
    equal("checks left", w.consul.checks, {})


async def no_networks(answer, w):
    """A failed answer about networks decides nothing: services stay, it is asked again."""
    w.engine.drivers = {"wire": "macvlan"}
    w.has(box("a", {}, expose=[80], mode="wire", nets={"wire": "192.168.5.9"}))
    equal("exit status", await w.once(), 0)
    w.engine.on("GET /networks*", answer)
    await life(w, args=["-resync", "1"])
    await w.lists()
    w.proc.send_signal(signal.SIGHUP)
    w.engine.start(box("b", {80: 8081}, expose=[81]))       # 81: which driver is it?
    await w.until(lambda: "h:b:80" in w.consul.services, "registered a published port")
    await w.lists()
    equal("removals", w.removals(), [])
    w.engine.behave()
    w.engine.start(box("c", {}, expose=[80], mode="wire", nets={"wire": "192.168.5.10"}))
    w.proc.send_signal(signal.SIGHUP)
    await w.until_services(first={}, a={"Address": "192.168.5.9"}, b={},
                           c={"Address": "192.168.5.10", "Port": 80})
    equal("removals", w.removals(), [])


for answer in [(403, "Forbidden"), (404, {"message": "page not found"}),
               (404, {"message": "network x not found"})]:
    add("C5 networks that may not be asked for: %d %s" % answer, no_networks, answer)


@case("C5 networks that may not be asked for: later, of one that is new")
async def _(w):
    """A macvlan network that is refused once is one all the same."""
    w.engine.drivers = {"wire": "macvlan"}
    one = box("a", {}, expose=[80], mode="wire", nets={"wire": "192.168.5.9"})
    await life(w, args=["-resync", "1"])
    w.engine.on("GET /networks*", (403, "Forbidden"), times=2)
    w.engine.start(one)
    await w.until_services(first={}, a={"Address": "192.168.5.9", "Port": 80})


@case("C6 what a failed container's services are is derived anew after a rename")
async def _(w):
    """Its old ID goes, as it would after a restart of registrator."""
    one, args = a(), ["-deregister", "on-success", "-resync", "1"]
    await life(w, one, args=args)
    await w.until_services("h:first:80", "h:a:80")
    w.engine.die(one, 1)
    await w.quiet()
    w.engine.rename(one, "b")
    await w.until(lambda: "h:a:80" not in w.consul.services, "let the old ID go")
    await w.quiet(1.5)
    right = sorted(w.consul.services)
    equal("exit status", await w.stop(), 0)
    await w.run(*args)
    await w.lists(3)
    equal("services after a restart", sorted(w.consul.services), right)


# ==== D. Removed though it lives ================================================================

PATHS = [
    ("Apache", "<html><p>The requested URL /containers/%s/json was not found on this server.</p></html>"),
    ("Express", "<pre>Cannot GET /containers/%s/json</pre>"),
    ("Spring", '{"timestamp":"2026-11-24","status":404,"error":"Not Found","path":"/containers/%s/json"}'),
    ("a message with the path", '{"message":"no route for /containers/%s/json"}'),
    ("a message with the URL", '{"message":"http://docker/v1.41/containers/%s/json: not found"}')]


async def proxy_404(text, w):
    """A 404 means that a container is gone if it has the engine's own words, and then it does."""
    one = a()
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    w.engine.on(INSPECT % one["Id"], (404, text % one["Id"]))
    w.engine.emit("update", one)
    await w.quiet(2)
    equal("removals", w.removals(), [])
    w.engine.behave()
    del w.engine.boxes[one["Id"]]
    w.engine.emit("update", one)
    await w.until_services("h:first:80")


for what, text in PATHS:
    add("D1 a proxy's 404 that repeats the path is no word of the engine: " + what, proxy_404, text)


async def on_unix_sockets(w):
    w.uri = "consul-unix://" + await w.consul.listen(w.path("consul.sock"))


@case("D2 -ip names an interface that has no address yet")
async def _(w):
    """Nothing is written for want of it and nothing removed; it is asked again every second, said once."""
    net = Network()
    net.has(w)
    await on_unix_sockets(w)
    net.sh("ip link set lo up")
    w.has(a())
    equal("exit status", await w.once("-ip", "lo"), 0)
    w.same_as({"h:a:80": {"Address": "127.0.0.1"}})
    net.sh("ip link set lo down; ip addr flush dev lo")
    await w.run("-ip", "lo", "-resync", "1")
    w.engine.start(box("b", {80: 8081}))
    await w.lists(3)
    equal("writes", w.writes(), [("register", "h:a:80")])
    w.said_once(r"\blo\b")
    net.sh("ip link set lo up")
    await w.until_services(a={"Address": "127.0.0.1"}, b={"Address": "127.0.0.1"})
    equal("removals", w.removals(), [])


@case("D2 -ip names an interface that does not exist yet")
async def _(w):
    """Its name is no address: it is waited for, also without a resync."""
    net = Network()
    net.has(w)
    await on_unix_sockets(w)
    w.has(a())
    await w.run("-ip", "eth9", "-resync", "0")
    await w.until_log("Using")
    await asyncio.sleep(2.5)
    equal("writes", w.writes(), [])
    w.said_once(r"\beth9\b")
    net.has_eth9("addr add 10.7.7.7/24 dev eth9")
    await w.until_services(a={"Address": "10.7.7.7"})


def late(container, seconds):
    """An answer: its inspect, after a while."""
    async def answer(writer):
        await asyncio.sleep(seconds)
        writer.write(message(200, container))
        await writer.drain()
    return answer


async def recreated(how, w):
    """What has vanished unseen goes when every listed container was inspected: its successor takes over."""
    old, new = a(), named(box("new", {80: 8081}), "a")
    await life(w, old, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    w.engine.on(INSPECT % new["Id"], lambda _: late(new, 2))
    del w.engine.boxes[old["Id"]]
    w.has(new)
    how(w)
    await w.until(lambda: w.port_of("h:a:80") == 8081 or w.removals(), "took over")
    equal("removals", w.removals(), [])
    await w.quiet()
    w.same("h:first:80", "h:a:80")


for what, how in [("the stream is cut", lambda w: w.engine.end_events(b"")),
                  ("the engine is away", lambda w: w.engine.drop()),
                  ("its events are lost", lambda w: None)]:
    add("D3 a container that is recreated while %s keeps its service" % what, recreated, how)


async def not_deregistered(answer, w):
    """A deregistration is done when Consul says so."""
    one = a()
    await life(w, one, args=["-resync", "0"])
    await w.until_services("h:first:80", "h:a:80")
    w.consul.on("PUT %s*" % DEREGISTER, answer, times=2)
    w.engine.die(one)
    await w.until_services("h:first:80")


for what, answer in [("a 404 in HTML", (404, "<html>404 Not Found</html>")), ("an empty 404", (404, "")),
                     ("a 404 that names the ID", (404, '{"status":404,"path":"%sh:a:80"}' % DEREGISTER))]:
    add("D4 what a proxy says to a deregistration is not Consul's word: " + what, not_deregistered, answer)


# ==== E. Signals, the log, addresses ============================================================

@case("E4 a path with an @ is a path")
async def _(w):
    """Only the user part of a URI is blotted out."""
    os.mkdir(w.path("run@x"))
    w.uri = "consul-unix://" + await w.consul.listen(w.path("run@x/c.sock"))
    w.patience_s = 10
    await life(w)
    with open("/proc/%d/cmdline" % w.proc.pid) as f:
        demand("/run@x/c.sock" in f.read(), "the list of processes does not show the address")


@case("E4 the user part of a URI is blotted out, and nothing else")
async def _(w):
    """The password may have an @ too, and be percent-encoded."""
    w.uri = "consul://me:%s%%40x@127.0.0.1:%d" % (peers.SECRET, w.port)
    w.patience_s = 10
    await life(w, a())
    equal("authorization", {r.headers.get("authorization") for r in w.consul.requests},
          {"Basic " + base64.b64encode(b"me:%s@x" % peers.SECRET.encode()).decode()})
    with open("/proc/%d/cmdline" % w.proc.pid) as f:
        line = f.read()
    demand(peers.SECRET not in line, "the password is in the list of processes")
    demand("127.0.0.1:%d" % w.port in line, "the list of processes does not show the address", line)


@case("E4 a path where Consul has none is refused, in words that show it")
async def _(w):
    await w.run("-retry-attempts", "1", "-retry-interval", "10", uri="consul://127.0.0.1:1/p@th")
    equal("exit status", await w.exit(), 1)
    demand("**" not in w.log, "the address is blotted out", w.log)
    demand("path" in w.log or "/p@th" in w.log, "does not say what is wrong", w.log)


@case("E5 the zone of a link-local address is looked up")
async def _(w):
    """Without -ip too."""
    net = Network()
    net.sh("ip link set lo up")
    net.has_eth9("-6 addr add fe80::1/64 dev eth9 nodad")
    net.has(w)
    scope = net.inside(socket.if_nametoindex, "eth9")
    sock = net.socket(("fe80::1", 8500, 0, scope), socket.AF_INET6)
    w.consul.servers.append(await asyncio.start_server(w.consul.serve, sock=sock))
    w.uri = "consul://[fe80::1%eth9]"
    w.patience_s = 10
    await life(w, args=["-retry-interval", "100"])


@case("E6 one line that cannot be written is lost alone")
async def _(w):
    """stderr is a pipe that is full, and not waited for; later it is read."""
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        pass
    w.has(box("first", {80: 8000}))
    await w.spawn("-hostname", "h", w.uri, stderr=write)
    await w.until_services("h:first:80")
    try:
        while os.read(read, 65536):
            pass
    except BlockingIOError:
        pass
    w.engine.start(a())
    await w.until_services("h:first:80", "h:a:80")
    w.proc.send_signal(signal.SIGUSR1)
    await asyncio.sleep(0.5)
    try:
        said = os.read(read, 65536).decode()
    except BlockingIOError:
        said = ""
    finally:
        os.close(read)
        os.close(write)
    demand("h:a:80" in said, "a line is lost", repr(said))


async def early(number, w):
    """A signal that comes when it has hardly begun is one that comes to a running program.  strace sends it
    with the first of these calls, by which it makes itself unreadable to others."""
    w.script("exec strace -D -f -o /dev/null -e trace=prctl,prlimit64 "
             "-e inject=prctl,prlimit64:signal=%d:when=1 \"$BINARY\" \"$@\"" % number)
    w.has(a())
    await w.run()
    if number in (signal.SIGTERM, signal.SIGINT):
        equal("exit status", await w.exit(), 0)
    else:
        w.patience_s = 10
        await w.until_services("h:a:80")


for number in [signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]:
    add("E7 %s is heeded from the start" % number.name, early, number)


@case("E8 CONSUL_HTTP_ADDR=http://host is port 80")
async def _(w):
    """As Consul's own tool dials it."""
    net = Network()
    net.sh("ip link set lo up")
    net.has(w)
    for port in (80, 8500):
        server = await asyncio.start_server(partial(at, w, port), sock=net.socket(("127.0.0.1", port)))
        w.consul.servers.append(server)
    w.has(a())
    await w.run(uri="consul:", CONSUL_HTTP_ADDR="http://127.0.0.1")
    await w.until_services("h:a:80")
    equal("ports", w.dialled, {80})


async def at(w, port, reader, writer):
    w.dialled = getattr(w, "dialled", set()) | {port}
    await w.consul.serve(reader, writer)


@case("E8 CONSUL_HTTP_ADDR=https://host is port 443")
async def _(w):
    net = Network()
    net.sh("ip link set lo up")
    net.has(w)
    dialled = asyncio.get_running_loop().create_future()

    async def take(port, reader, writer):
        first = await reader.read(3)
        if not dialled.done():
            dialled.set_result((port, first[:2]))
        writer.close()

    for port in (443, 8500, 8501):
        server = await asyncio.start_server(partial(take, port), sock=net.socket(("127.0.0.1", port)))
        w.consul.servers.append(server)
    await w.run(uri="consul://", CONSUL_HTTP_ADDR="https://127.0.0.1", CONSUL_HTTP_SSL_VERIFY="false")
    await w.until(dialled.done, "dialled")
    equal("port and first bytes", dialled.result(), (443, b"\x16\x03"))


@case("7.6 a path in CONSUL_HTTP_ADDR is not passed over")
async def _(w):
    """It means another thing than it says: it is refused."""
    w.has(a())
    await w.run("-once", uri="consul:", CONSUL_HTTP_ADDR="http://127.0.0.1:%d/prefix" % w.port)
    equal("exit status", await w.exit(), 1)
    demand("CONSUL_HTTP_ADDR" in w.log, "does not say which variable", w.log)
    equal("requests", [r.target for r in w.consul.requests], [])


@case("7.7 the user part of a URI is percent-decoded")
async def _(w):
    """As by Go's net/url."""
    w.has(a())
    await w.once(uri="consul://m%%65:a%%2Fb%%3A%%25@127.0.0.1:%d" % w.port)
    equal("authorization", {r.headers.get("authorization") for r in w.consul.requests},
          {"Basic " + base64.b64encode(b"me:a/b:%").decode()})
    w.same("h:a:80")


@case("7.10 SIGTERM ends it within 5 seconds though the name server hangs")
async def _(w):
    """The agent has a name, a name server takes questions and answers none."""
    net = Network()
    net.sh("ip link set lo up")
    dumb = net.socket(("127.0.0.1", 53), kind=socket.SOCK_DGRAM)
    with open(w.path("resolv.conf"), "w") as f:
        f.write("nameserver 127.0.0.1\n")
    w.script("""exec unshare -m sh -e -c 'mount --bind "$1" /etc/resolv.conf; shift; exec "$@"' sh %s """
             """nsenter --net=%s "$BINARY" "$@" """ % (quote(w.path("resolv.conf")), net.path))
    w.has(a())
    await w.run("-on-exit", "deregister", uri="consul://agent.test")
    await asyncio.sleep(1)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    equal("exit status", await w.stop(), 0)
    demand(loop.time() - begin < 7, "it took %.1f s" % (loop.time() - begin))
    dumb.close()


async def odd_machine(name, w):
    """The name of this machine has to pass the test of an ID, as -hostname has."""
    with open(w.path("name"), "wb") as f:
        f.write(name)
    w.script("""exec unshare -u sh -e -c 'cat "$1" >/proc/sys/kernel/hostname; shift; exec "$@"' sh %s """
             """"$BINARY" "$@" """ % quote(w.path("name")))
    await w.spawn("-once", "-ip", "10.0.0.1", "print:")
    equal("exit status", await w.exit(), 1)
    demand("host name" in w.log or "-hostname" in w.log, "does not say what is wrong", w.log)


for name in [b"a//b", b"/a", b"..", b"h\xc3\xa9"]:
    add("7.13 a machine's name that makes IDs that Consul would never deregister: %s" % repr(name)[2:-1],
        odd_machine, name)


# ==== F. Version 9, before its release ==========================================================

NEW_ENGINE = (200, {"ID": "AN:OTHER:ENGINE", "Name": "engine"})


async def reconnect(w, info, times=None):
    """The engine drops every connection, and says this about itself when it is asked again."""
    before = asked_for(w, "/info")
    w.engine.on("GET /info", info, times)
    w.engine.drop()
    await w.until(lambda: asked_for(w, "/info") > before and w.engine.streams, "subscribed again")


def attempts(w, *write):
    return w.writes().count(write)


async def new_owner(info, w):
    """A removal that waits in its pause when the entry becomes another's is no reason to abort."""
    one = a(env=["SERVICE_ID=mine"])
    await life(w, one, args=["-resync", "0"])
    await w.until_services("h:first:80", "mine")
    w.consul.on("PUT %s*" % DEREGISTER, (404, ""))
    w.engine.die(one)
    await w.until(lambda: attempts(w, "deregister", "mine") == 3, "tried three times")
    w.consul.on("GET " + LISTED, (500, "no"))
    await reconnect(w, info)
    await asyncio.sleep(5)      # the pause is over
    w.consul.behave()
    w.engine.start(box("b", {80: 8081}))
    await w.until(lambda: "h:b:80" in w.consul.services, "went on")


add("F1 no abort when the owner changes while a removal waits: another engine", new_owner, NEW_ENGINE)
add("F1 no abort when the owner changes while a removal waits: a 403 to /info", new_owner, (403, "no"))


@case("F2 one 403 to /info changes nothing about whose the entries are")
async def _(w):
    """A proxy's refusal when it connects again is no other engine: what was ours is still removed."""
    one = a(env=["SERVICE_ID=mine"])
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "mine")
    await w.quiet()
    await reconnect(w, (403, "no"), 1)
    await w.lists()
    w.engine.die(one)
    await w.until_services("h:first:80")
    equal("registrations", attempts(w, "register", "h:first:80"), 1)


@case("F3 a container that was not found, is listed again and cannot be inspected keeps its service")
async def _(w):
    """The list has it again, so the 404 is not the last word; another's inspect hangs meanwhile."""
    one, two, gate = a(), box("b", {80: 8081}), asyncio.Event()

    async def when_told(writer):
        await gate.wait()
        writer.write(message(200, two))
        await writer.drain()

    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    await w.quiet()
    w.engine.on(INSPECT % two["Id"], when_told, times=1)
    w.engine.start(two)
    await w.until(lambda: asked(w, two), "inspected b")
    before = asked(w, one)
    w.engine.on(INSPECT % one["Id"], (404, {"message": "No such container: " + one["Id"]}), times=1)
    w.engine.on(INSPECT % one["Id"], (500, {"message": "busy"}))
    w.engine.emit("update", one)
    await w.until(lambda: asked(w, one) >= before + 2, "inspected a again")
    gate.set()
    await w.until(lambda: "h:b:80" in w.consul.services, "registered b")
    await w.lists()
    equal("removals", w.removals(), [])
    w.engine.behave()
    w.engine.die(one)
    await w.until_services("h:first:80", "h:b:80")


@case("F4 who shares a network by name follows its owner")
async def _(w):
    """The events of a container have its ID, and NetworkMode may have its name."""
    web = box("web", {80: 8080})
    w.engine.on("GET /containers/web/json", lambda _: (200, web))
    await life(w, web, box("a", expose=[80], mode="container:web"), args=["-resync", "1"])
    await w.until_services(first={}, web={"Port": 8080}, a={"Port": 8080})
    w.engine.die(web)
    publish(web, 80, 9090)
    w.engine.start(web)
    await w.until_services(first={}, web={"Port": 9090}, a={"Port": 9090})


@case("F5 after a rename the old entry stays until the new one is registered")
async def _(w):
    """A 500 to the new one is no registration."""
    one = a()
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    w.consul.on("PUT " + REGISTER, lambda r: (500, "no leader") if b'"h:b:80"' in r.body else None)
    w.engine.rename(one, "b")
    await w.until(lambda: attempts(w, "register", "h:b:80") == 2, "tried twice")
    await w.lists()
    w.same("h:first:80", "h:a:80")
    w.consul.behave()
    await w.until_services("h:first:80", "h:b:80")
    equal("the last write", w.writes()[-1], ("deregister", "h:a:80"))


@case("F6 what another registrator has taken over stays with it when our container starts again")
async def _(w):
    """Not even its default ID is written over: who took it is remembered, also while nobody claims it."""
    one = a()
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    w.consul.of_others(entry("h:a:80", OTHER))
    await w.lists()
    w.engine.die(one)
    await w.lists()
    w.engine.start(one)
    await w.lists()
    w.calm()
    w.same("h:first:80", "h:a:80")


async def twin(listed_first, w):
    """The catalog takes both IDs for one: nothing is written beside another's, which is said once."""
    one = box("web", {80: 8080})
    w.consul.of_others(entry("h:WEB:80", OTHER))
    if not listed_first:
        w.has(one)
        w.consul.on("GET " + LISTED, lambda r: Late(1, partial(w.consul.answer, r)), times=1)
    await life(w, args=["-resync", "1"])
    if listed_first:
        await w.lists(1)
        w.engine.start(one)
    await w.lists(3)
    w.calm()
    w.same("h:first:80", "h:WEB:80")
    w.said_once("(?i)h:web:80")
    w.engine.die(one)
    await w.lists()
    w.calm()


add("F7 a default ID is not written beside one that differs by case alone: a list came first", twin, True)
add("F7 a default ID is not written beside one that differs by case alone: the container came first", twin,
    False)


@case("F8 a deregistration that does nothing is not sent again without longer pauses")
async def _(w):
    """The agent says 200 to it and still lists the entry, under an ID that differs by case from ours."""
    one, times = a(env=["SERVICE_ID=Web"]), []
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "Web")

    def nothing(_):
        times.append(asyncio.get_running_loop().time())
        return 200, b""

    w.consul.on("PUT %s*" % DEREGISTER, nothing)
    one["Config"]["Env"] = ["SERVICE_ID=web"]
    w.engine.emit("update", one)
    await w.until(lambda: len(times) == 4, "tried four times")
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    demand(gaps[-1] > 1.8, "after pauses of " + ", ".join("%.1f s" % gap for gap in gaps))
    w.consul.behave()
    w.patience_s = 60       # it may be in such a pause
    await until_right(w, "h:first:80", "web")


async def replaced(away, dies, w):
    """What we held and what stands, without a mark and of another place, in an agent that has been started
    again is somebody else's."""
    one = a(env=["SERVICE_ID=vault"])
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "vault")
    await w.lists()
    if away:
        w.consul.close()
        await w.until_log("consul: .*trying again")
    w.consul.forget()
    w.consul.of_others(entry("vault"))
    if dies:
        w.engine.die(one)
        await asyncio.sleep(0.3)
    if away:
        await w.consul.listen(port=w.port)
    await w.lists()
    if not dies:
        w.engine.die(one)
        await w.lists()
    w.calm()
    w.same("h:first:80", "vault")


add("F9 an unmarked entry in place of ours is left alone: the agent restarts at once", replaced, False, False)
add("F9 an unmarked entry in place of ours is left alone: it was away", replaced, True, False)
add("F9 an unmarked entry in place of ours is left alone: the container ends meanwhile", replaced, True, True)


@case("F10 an error page that repeats our credentials: they are not logged")
async def _(w):
    """A proxy, say, that shows the request with its headers."""
    w.has(a())
    w.consul.on("PUT *", lambda r: (502, "\n".join("%s: %s" % field for field in r.headers.items())))
    await w.run(CONSUL_HTTP_TOKEN="s3cr3t-token", CONSUL_HTTP_AUTH="me:pass")
    await w.until_log("register failed: .*HTTP 502: .*repeat our credentials")
    for secret in ("s3cr3t-token", base64.b64encode(b"me:pass").decode()):
        demand(secret not in w.log, "a secret is in the log")


async def main(argv):
    if not 1 <= len(argv) <= 2:
        sys.exit(__doc__)
    pattern = argv[1] if argv[1:] else ""
    chosen = {name: test for name, test in CASES.items() if re.search(pattern, name)}
    status = int(not chosen)
    for group in GROUPS:
        cases = {name: test for name, test in chosen.items() if group.match(name)}
        if cases:
            status |= await peers.run_cases(World, argv[0], cases)
    return status


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
