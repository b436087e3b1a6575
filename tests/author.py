#!/usr/bin/env python3
"""The malicious author: what one container may say of itself, at its worst.

    author.py BINARY [PATTERN]      the cases whose names the pattern finds

On the scripted engine and Consul of fakes.py, then on a real engine and a real Consul in the namespaces
of e2e.py (needs root and what that needs).  Prints `ok NAME`, or `not ok NAME: why` and indented details.

One container has names, IDs, tags, labels, ports and an inspect that are too long, too many, odd or somebody
else's.  The contract's limits are tried at the limit, one above it and far above it.  While that container
runs, others start and stop, one after the other.  For each flood:

  - each of the others is registered and removed meanwhile.  What it waits is counted in processor time of the
    program, from the event to the request (STALL_S): other work of this machine does not count;
  - SIGUSR1 and SIGHUP are answered, and SIGTERM ends the program with 0 while it is at it;
  - peak memory (VmHWM) stays below what the inspect explains (room_mb);
  - there is one warning for each limit, and it names the container: not one for each port;
  - nothing of the container is left in Consul when it has stopped;
  - nothing that comes to Consul is beyond the limits, forged or somebody else's (class Warden).

For builds that are slow or large on purpose, set PEERS_CPU_S and HOSTILE_MEMORY as for hostile.py.  With
AUTHOR_FIGURES=1 it prints what each flood cost.
"""
import asyncio
import contextlib
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
from collections import namedtuple
from functools import partial
from urllib.parse import unquote

import e2e
import peers
from e2e import Registrator, docker, port_80, wait_for
from fakes import DEREGISTER, Consul, Engine, Request, box, listing
from hostile import MEMORY, service_of
from peers import Failure, demand, equal

SLOW = min(max(1.0, peers.CPU_S / 0.3), 8.0)    # what this build takes, of the time of the real one
STALL_S = 0.5 * SLOW    # processor time that others may have to wait
BEHIND = 1000           # writes of one container between the event of another and its own
CPU_S = 5.0 * SLOW      # processor time for a whole flood
PATIENCE_S = 60 * SLOW  # wall clock: others may work on this machine
SERVICES_MAX, NAME_MAX, TAGS_MAX, ID_MAX = 10000, 255, 16384, 1024
AT_ONCE = 3             # cases
INSPECT_MAX = 16 * 1024 * 1024
MARK = "registrator"    # our own attribute
HOST, OWN = "192.0.2.10", "172.17.0.5"      # addresses: of the host, of every container
CASES = peers.Cases()
add, case = CASES.add, CASES.case
FIGURES = []            # a line for each flood

# What a warning of a limit has in it; nobody is held to the very words.
WARNINGS = {
    "services": r"10[, ]?000", "name": r"\bname|255", "tags": r"\btags?\b", "id": r"\bIDs?\b|SERVICE_ID",
    "same": r"\bIDs?\b", "attributes": r"attribute|Meta", "memory": r"16 ?Mi?B|16,?777,?216|memory",
    "inspect": r"16 ?Mi?B|[Tt]oo|large|more than", "row": r"\brow\b|element|4 ?Mi?B|too large"}
ROUTINE = re.compile(
    r"Starting registrator|Using .* adapter|consul: current leader|Listening|Syncing|added:|removed:|summary"
    r"|waiting:|in sync|ignored: \w+ (no published|port \d+ not published|service on port)")


# ==== Peers that keep count =====================================================================

class Mill(Engine):
    """An engine that makes each long answer once, and before it is asked."""

    def __init__(self):
        super().__init__()
        self.made = {}      # (container, its status, what): the text
        self.asked = {}     # ID: how often it was inspected

    def make(self, one, what):
        key = one["Id"], one["Name"], one["State"]["Status"], what
        if key not in self.made:
            text = self.text(one if what == "inspect" else listing(one))
            self.made[key] = text.encode("utf-8", "surrogateescape")
        return self.made[key]

    def answer(self, request):
        if request.path == "/containers/json":
            all_ = request.query.get("all") in ("1", "true")
            return 200, b"[%s]" % b",".join(self.make(b, "row") for b in self.boxes.values()
                                            if all_ or b["State"]["Running"])
        one = self.boxes.get(request.path[12:-5])
        if one and request.path == "/containers/%s/json" % one["Id"]:
            self.asked[one["Id"]] = self.asked.get(one["Id"], 0) + 1
            return 200, self.make(one, "inspect")
        return super().answer(request)


class Warden(Consul):
    """An agent that complains of what is beyond the limits.  It keeps the order of the writes, and forgets
    those that are long: there may be gigabytes of them."""

    HEAD = re.compile(rb"(GET|PUT) (/[!-~]*) HTTP/1\.1\r\n((?:[A-Za-z-]+: [ \t!-~]*\r\n)+)\r\n")
    HEADERS = {"host", "user-agent", "accept", "content-type", "content-length", "connection"}

    def __init__(self):
        super().__init__()
        self.order = []         # ("register" or "deregister", ID), also what was refused
        self.awaited = {}       # the same: a future
        self.foreign = {}       # entries that must stay as they are: {ID: as it is listed}
        self.may_refuse = False     # what comes may be what an agent does not take
        self.cpu_s = None       # gives the processor time of the program

    async def read(self, reader):
        """As Peer's, in less time, and no header may be there that is not known here."""
        head = self.HEAD.fullmatch(await reader.readuntil(b"\r\n\r\n"))
        if not head:
            raise ValueError("a bad request")
        fields = [line.split(": ", 1) for line in head[3].decode().split("\r\n")[:-1]]
        headers = {name.lower(): value for name, value in fields}
        if len(headers) < len(fields) or headers.keys() - self.HEADERS:
            raise ValueError("odd headers: %.300r" % head[3])
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path, _, query = head[2].decode().partition("?")
        query = dict(part.partition("=")[::2] for part in query.split("&") if part)
        return Request(head[1].decode(), path, query, headers, body, path)

    def pretty(self, value):
        """As one line, which takes a tenth of the time."""
        return json.dumps(value)

    def slow(self, seconds):
        """Each answer takes so long."""
        async def late(writer, data):
            await asyncio.sleep(seconds)
            await peers.plainly(writer, data)
        self.deliver = late

    def guard(self, *services):
        """Puts entries that are nobody's business here."""
        for service in services:
            self.put(service)
            self.foreign[service["ID"]] = dict(self.services[service["ID"]])

    def comes(self, verb, name):
        """A future of this write: the program's processor time by then, and how many writes had come."""
        future = self.awaited[verb, name] = asyncio.get_running_loop().create_future()
        return future

    def wrote(self, verb, name):
        self.order.append((verb, name))
        if any(name.lower() == one.lower() for one in self.foreign):
            self.complain("%s of %r, which is another's" % (verb, name))
        future = self.awaited.pop((verb, name), None)
        if future and not future.done():
            future.set_result((self.cpu_s(), len(self.order)))

    def register(self, request):
        self.requests[-1] = request._replace(body=b"")
        answer = super().register(request)
        if answer[0] == 200:
            name, service = self.sent.popitem()
            self.sent[name] = service
        else:
            service = json.loads(request.body.decode("utf-8", "replace"))
        if answer[0] != 200 and not self.may_refuse:
            self.complain("a registration that Consul refuses: %s" % answer[1])
        self.wrote("register", service.get("ID"))
        self.judge(service)
        if len(request.body) > 200000 and service["ID"] in self.sent:
            self.sent[service["ID"]] = {"ID": service["ID"], "Name": service["Name"]}
            self.checks.pop(service["ID"], None)
        return answer

    def put(self, service, replace=False):
        self.sent.pop(service["ID"], None)      # it becomes the last again
        super().put(service, replace)

    def judge(self, service):
        name, tags = service["ID"], service.get("Tags") or []
        if len(name) > ID_MAX or not re.fullmatch("[ -~]+", name):
            self.complain("an ID of %d bytes: %.99r" % (len(name), name))
        if len(service["Name"].encode()) > NAME_MAX:
            self.complain("a name of %d bytes, of %.99r" % (len(service["Name"].encode()), name))
        if sum(len(tag.encode()) for tag in tags) > TAGS_MAX:
            self.complain("%d tags that are too long together, of %.99r" % (len(tags), name))

    def deregister(self, path):
        self.wrote("deregister", unquote(path[len(DEREGISTER):]))
        return super().deregister(path)

    def writes(self):
        return [(verb, name, {}) for verb, name in self.order]

    def untouched(self):
        """The foreign entries are as they were."""
        equal("foreign entries", {name: self.services.get(name) for name in self.foreign}, self.foreign)


class World(peers.World):
    limit_s = 600
    cpu_share = 1.0         # floods have a budget of their own
    memory_mb = 4           # at its height

    def __init__(self, binary, tmp):
        super().__init__(binary, tmp)
        self.engine, self.consul, self.others = Mill(), Warden(), None
        self.patience_s, self.used_s = PATIENCE_S, 0.0
        self.consul.cpu_s = self.cpu_s
        self.odd = None, 0, []      # of the log: its path, what has been read, the lines that are not routine

    def cpu_s(self):
        """As the kernel's scheduler counts it, in nanoseconds if it does; of one that has ended, the last."""
        try:
            if not os.path.exists("/proc/self/schedstat"):
                self.used_s = super().cpu_s()
            else:
                with open("/proc/%d/schedstat" % self.proc.pid) as f:
                    self.used_s = int(f.read().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError):
            pass
        return self.used_s

    @staticmethod
    def now():
        return asyncio.get_running_loop().time()

    def lines(self, unlike=r" (added|removed): \w+ h:p\d+:80$"):
        """Without those of the others, if nothing else is said."""
        return super().lines(unlike)

    def peak_mb(self):
        with open("/proc/%d/status" % self.proc.pid) as f:
            return int(re.search(r"VmHWM:\s*(\d+)", f.read())[1]) / 1024

    async def until(self, truth, what, *details):
        """Also fails when the others do."""
        def said():
            if self.others:
                self.others.well()
            return truth()
        await super().until(said, what, *details)

    def known(self):
        return {"h:first:80", *self.consul.foreign, *(self.others.ids if self.others else ())}

    def count(self):
        """As len(theirs()), in less time."""
        there = self.consul.services
        return len(there) - sum(name in there for name in self.known())

    def theirs(self, *but):
        """The IDs of what Consul has of the malicious container, or of anybody that is not known here."""
        found = self.consul.services.keys() - self.known()
        for one in but:
            found = {name for name in found if not name.startswith("h:%s:" % one["Name"][1:])}
        return found

    def not_of_others(self, since=0):
        """The writes that are not about the others."""
        return [deed for deed in self.consul.order[since:] if not re.fullmatch(r"h:p\d+:80", deed[1])]

    def warnings(self, *boxes):
        """What the log has of these containers, but for what it says of every one."""
        path, at, found = self.odd
        if path != self.runs[-1][1]:
            path, at, found = self.runs[-1][1], 0, []
        with open(path, "rb") as f:
            f.seek(at)
            text = f.read()
        text = text[:text.rfind(b"\n") + 1]
        found += [line for line in text.decode("utf-8", "replace").split("\n") if not ROUTINE.search(line)]
        self.odd = path, at + len(text), found
        marks = [mark for one in boxes for mark in (one["Id"][:12], ":%s:" % one["Name"][1:])]
        return [line for line in found if any(mark in line for mark in marks)]

    def stands(self, want):
        """The services of others aside, Consul has these: {ID: fields}."""
        equal("services", sorted(self.theirs() ^ want.keys())[:20], [])
        wrong = self.mismatch({**dict.fromkeys(self.consul.services, {}), **want})
        demand(not wrong, "not the services expected", *[line[:300] for line in wrong[:20]])

    def differs(self, want):
        """For until(): what did not come, and how it is instead."""
        return "came to the %d services expected" % len(want), lambda: [
            "it has %d" % self.count(),
            "what differs: %.900r" % sorted(self.theirs() ^ want.keys())[:9]]

    async def until_theirs(self, want):
        await self.until(lambda: self.count() == len(want) and self.theirs() == want.keys(),
                         *self.differs(want))
        self.stands(want)

    def small(self):
        most = self.peak_mb()
        demand(most < self.memory_mb * MEMORY, "%.1f MB of memory, not %.1f" % (most, self.memory_mb))

    async def soon(self, what, future):
        """What comes of that.  It may take long on a busy machine, but the program must not do much else."""
        future = asyncio.ensure_future(future)
        cpu_s, order, end = self.cpu_s(), len(self.consul.order), self.now() + PATIENCE_S
        try:
            while not (await asyncio.wait([future], timeout=0.1))[0]:
                used, writes = self.cpu_s() - cpu_s, len(self.consul.order) - order
                if used > 4 * STALL_S or writes > 4 * BEHIND or self.now() > end:
                    raise Failure("%s: not yet after %.1f s of processor time and %d writes" % (
                        what, used, writes))
            return future.result()
        finally:
            future.cancel()

    async def stop_soon(self):
        """SIGTERM is answered."""
        self.small()
        self.may_end = True
        self.proc.send_signal(signal.SIGTERM)
        equal("exit status on SIGTERM", await self.soon("SIGTERM", self.proc.wait()), 0)

    async def finish(self):
        if self.proc.returncode is None:
            self.small()
        self.consul.untouched()
        await super().finish()
        longest = max(map(len, self.log.split("\n")))
        demand(longest < 10000, "a log line of %d characters" % longest)


def warned(said, *kinds):
    """Of these warnings of a container, there is one of each kind and no other."""
    left = list(said)
    for kind in kinds:
        found = [line for line in left if re.search(WARNINGS[kind], line)]
        demand(found, "no warning of the limit: %s" % kind, *[line[:300] for line in said[:9]])
        left.remove(found[0])
    demand(not left, "%d warnings, not %d" % (len(said), len(kinds)), *[line[:300] for line in said[:9]])


async def life(w, *boxes, args=()):
    """A program that has registered `first` and seen these."""
    w.has(box("first", {80: 8001}), *boxes)
    await w.run("-resync", "0", *args)
    await w.until(lambda: "h:first:80" in w.consul.services and w.engine.streams, "registered the first")


class Others:
    """async with Others(w) as others: containers start and stop all the time, one after the other."""

    def __init__(self, w):
        self.w, self.ids, self.rounds, self.ended = w, set(), 0, False
        self.stall_s, self.what = 0.0, ""       # the longest that one of them waited: processor time
        self.behind, self.after = 0, ""         # the most writes of others before its own

    async def __aenter__(self):
        self.w.others = self
        self.task = asyncio.ensure_future(self.go_on())
        await self.more(2)
        return self

    async def __aexit__(self, *_):
        self.ended = True
        with contextlib.suppress(Exception):    # well() tells
            await self.task
        self.w.others = None

    def well(self):
        if self.task.done() and not self.ended:
            self.task.result()

    async def go_on(self):
        engine = self.w.engine
        while not self.ended:
            one = box("p%d" % self.rounds, {80: 20000 + self.rounds % 20000})
            self.ids.add(service_of(one))
            await self.served("register", engine.start, one)
            await self.served("deregister", engine.die, one)
            engine.destroy(one)
            self.rounds += 1
            await asyncio.sleep(0.004)      # the peers have other work, too

    async def served(self, verb, deed, one):
        await self.answered("%s of %s" % (verb, service_of(one)), lambda: deed(one),
                            self.w.consul.comes(verb, service_of(one)))

    async def answered(self, what, deed, future):
        cpu_s, order = self.w.cpu_s(), len(self.w.consul.order)
        deed()
        then_s, then = await self.w.soon(what, future)
        self.behind, self.after = max((self.behind, self.after), (then - order, what))
        self.stall_s, self.what = max((self.stall_s, self.what), (then_s - cpu_s, what))

    def fair(self):
        """None had to wait for long, nor behind many."""
        demand(self.stall_s < STALL_S,
               "%s: it was busy with something else for %.2f s" % (self.what, self.stall_s))
        demand(self.behind < BEHIND, "%s came behind %d writes" % (self.after, self.behind))

    async def more(self, n):
        """So many more have come and gone."""
        end = self.rounds + n
        await self.w.until(lambda: self.rounds >= end, "served %d others" % n)

    async def summary(self):
        """SIGUSR1 is answered."""
        before = os.path.getsize(self.w.runs[-1][1])

        async def said():
            while b"summary" not in self.tail(before):
                await asyncio.sleep(0.005)
            return self.w.cpu_s(), len(self.w.consul.order)
        await self.answered("SIGUSR1", lambda: self.w.proc.send_signal(signal.SIGUSR1), said())

    def tail(self, at):
        with open(self.w.runs[-1][1], "rb") as f:
            f.seek(at)
            return f.read()


# ==== Floods ====================================================================================

Flood = namedtuple("Flood", "name make args want warns enough mb large")
# make: gives the malicious container, or a list, of which it is the last
# want: {ID: fields}, all of its services; None: what there is must be within the limits
# warns: kinds of warnings, each once; None: none is needed
# enough: so many of its services will do
# mb: memory that it may take besides what room_mb() says
# large: all of it may need more than 16 MiB; if so, there is no service, and one warning


def flood(name, make, want=None, warns=(), args=(), enough=None, mb=0, large=False):
    add(name, partial(flooded, Flood(name, make, args, want, warns, enough, mb, large)))


def room_mb(engine, *boxes):
    """What the program may need for these at its height, of which 4 MB are for everything else.  An inspect
    is read into a buffer that grows (two texts).  Its values are looked at (48 bytes for each, of at most a
    million).  What is derived from it for each port has no more than the contract's 16 MiB in all.  A service
    has 1.5 kB with its entry.  The row of a list and an event have 4 MB at most, at other times."""
    most = 0
    for one in boxes:
        text = min(len(engine.make(one, "inspect")), INSPECT_MAX)
        row = min(len(engine.make(one, "row")), 4 << 20)
        ports = max(len(one["Config"]["ExposedPorts"] or ()), len(one["NetworkSettings"]["Ports"]))
        values = min(sum(engine.make(one, "inspect").count(mark) for mark in (b", ", b": ")), 1000000)
        most = max(most, 2 * max(text, row) + 48 * values
                   + min(2 * text * max(ports, 1), 16 << 20) + 1500 * min(ports, SERVICES_MAX))
    return min(100, 4 + most / 1e6)


async def settled(w, others, row, evil):
    """All that is to come of it has come.  Whether it was too large."""
    def too_large():
        return (row.large or row.want is None) and [line for line in w.warnings(evil)
                                                    if re.search(WARNINGS["memory"], line)]
    if row.warns == ["row"]:    # which has not been read, so no name is known
        await w.until_log(WARNINGS["row"])
        return False
    await w.until(lambda: w.engine.asked.get(evil["Id"]), "inspected it")
    if row.want == {} and row.warns:
        await w.until(lambda: w.warnings(evil), "warned of it")
    if row.enough:
        await w.until(lambda: w.count() >= row.enough or too_large(),
                      "registered %d of its services" % row.enough)
        if row.want:
            w.stands({name: row.want.get(name, {"Name": "none of that ID"}) for name in w.theirs()})
    elif row.want is not None:
        await w.until(lambda: w.count() == len(row.want) and w.theirs() == row.want.keys() or too_large(),
                      *w.differs(row.want))
        await said_by_now(w, others, evil, row.warns)
        if not too_large():
            w.stands(row.want)
    else:
        written = -1
        while written != w.count():
            written = w.count()
            await others.more(20)
            await asyncio.sleep(0.3)
    if too_large():
        equal("services of one that is too large", w.theirs(), set())
    return too_large()


async def said_by_now(w, others, one, kinds=(1,)):
    """All that it wants is there, so the warnings must be, too."""
    for _ in range(10):
        if not kinds or w.warnings(one):
            break
        await others.more(1)


async def flooded(row, w):
    made = row.make()
    boxes = made if isinstance(made, list) else [made]
    evil = boxes[-1]
    w.memory_mb = room_mb(w.engine, *boxes) + row.mb
    await life(w, *boxes[:-1], args=row.args)
    async with Others(w) as others:
        w.engine.start(evil)
        await others.summary()
        await others.more(3)
        large = await settled(w, others, row, evil)
        had, said = w.theirs(), w.warnings(evil)
        w.proc.send_signal(signal.SIGHUP)
        await others.more(10)
        again = w.warnings(evil)
        w.engine.die(evil)
        await w.until(lambda: not w.theirs(*boxes[:-1]), "removed all of its services",
                      lambda: ["%.900r" % sorted(w.theirs())[:9]])
        await others.more(3)
    FIGURES.append("%6.1f ms %6.1f MB of %5.1f %6.2f s %5d  %5.1f s %s (%s)" % (
        others.stall_s * 1000, w.peak_mb(), w.memory_mb, w.cpu_s(), others.behind,
        w.now() - w.began, row.name, others.what))
    others.fair()
    demand(w.cpu_s() < CPU_S, "%.1f s of processor time" % w.cpu_s())
    await ends_amid(w, evil)
    if large:
        warned([line for line in said if re.search(WARNINGS["memory"], line)], "memory")
    elif row.warns is not None and row.warns != ["row"]:
        warned(said, *row.warns)
    demand(len(said) <= 5, "%d warnings" % len(said), *said[:9])
    demand(had or said or row.warns is not None, "neither a service nor a warning")
    equal("warnings after SIGHUP", again[len(said):], [])


async def ends_amid(w, evil):
    """SIGTERM, some moment after the container has been started once more."""
    asked = w.engine.asked.get(evil["Id"], 0)
    w.engine.start(evil)
    with contextlib.suppress(asyncio.TimeoutError):     # it may be too large to be asked for
        await asyncio.wait_for(w.until(lambda: w.engine.asked.get(evil["Id"], 0) > asked, "inspected"), 2)
    await asyncio.sleep(random.Random(evil["Id"] + str(asked)).random() * 0.04)
    await w.stop_soon()


def evil(ports=None, name="evil", **more):
    return box(name, {80: 8080} if ports is None else ports, **more)


def ports_to(n, published=True):
    return {port: port if published else None for port in range(1, n + 1)}


def firsts(n=SERVICES_MAX, name="app-%d", address=HOST, **fields):
    """The default services of the first n ports of many."""
    return {"h:evil:%d" % port: {"Name": name % port, "Port": port, "Address": address, **fields}
            for port in range(1, min(n, SERVICES_MAX) + 1)}


ONE = {"h:evil:80": {"Name": "app", "Port": 8080, "Address": HOST}}
MB = 1000000

flood("flood: 65,535 exposed ports, -internal", lambda: evil(ports_to(65535, False)), firsts(address=OWN),
      ["services"], ["-internal"], enough=2000)
flood("flood: 65,535 exposed ports, host mode", lambda: evil({}, mode="host", expose=range(1, 65536)),
      firsts(), ["services"])
flood("flood: 65,535 published ports", lambda: evil(ports_to(65535)), firsts(), ["services"], enough=2000)
flood("flood: 10,001 published ports", lambda: evil(ports_to(10001)), firsts(), ["services"])
flood("flood: 10,000 published ports", lambda: evil(ports_to(10000)), firsts(), enough=1000)
flood("flood: 65,535 exposed ports, none published", lambda: evil(ports_to(65535, False)), {})
flood("flood: 65,534 ports of two kinds", lambda: evil({
    "%d/%s" % (port, kind): port for port in range(1, 32768) for kind in ("udp", "tcp")}),
      {"h:evil:%d%s" % (port, ":udp" * udp): {"Port": port, "Tags": ["udp"] * udp}
       for port in range(1, 5001) for udp in (0, 1)}, ["services"])

flood("flood: 20,000 labels SERVICE_X<n>", lambda: evil(
    labels={"SERVICE_X%d" % i: "v" for i in range(20000)}), ONE, ["attributes"])
flood("flood: 100,000 labels", lambda: evil(labels={"l%d" % i: "x" for i in range(100000)}), ONE)
flood("flood: labels of 6 MB", lambda: evil(labels={"com.example.l%d" % i: "x" * 500 for i in range(11000)}),
      {}, ["row"])
flood("flood: one label of 3 MB", lambda: evil(labels={"com.example.x": "x" * 3 * MB}), ONE)
flood("flood: 990 SERVICE_CHECK_n x 20,000 ports", lambda: evil(
    {}, mode="host", expose=range(1, 20001), env=["SERVICE_CHECK_%d=x" % i for i in range(990)]),
      firsts(), ["services", "attributes"], large=True)
flood("flood: names and tags of each of 65,535 ports", lambda: evil(
    {}, mode="host", expose=range(1, 65536),
    env=["SERVICE_%d_%s" % (port, key) for port in range(1, 65536)
         for key in ("NAME=n%d" % port, "TAGS=t%d,x" % port)]),
      {"h:evil:%d" % port: {"Name": "n%d" % port, "Tags": ["t%d" % port, "x"]}
       for port in range(1, SERVICES_MAX + 1)}, ["services"], enough=1000)
flood("flood: 4.3 million commas", lambda: evil(env=["SERVICE_TAGS=" + "," * 4300000]), ONE)
flood("flood: 4.3 million tags", lambda: evil(env=["SERVICE_TAGS=" + "a," * 4300000]), ONE, ["tags"])
flood("flood: 4.3 million commas x 100 ports", lambda: evil(
    ports_to(100), env=["SERVICE_TAGS=" + "," * 4300000 + "end"]), firsts(100, Tags=["end"]))
flood("flood: tags of 800 kB of control bytes", lambda: evil(env=["SERVICE_TAGS=" + "\1" * 800000]), ONE,
      ["tags"])
flood("flood: 1,000 ports x a name of 1 MB", lambda: evil(ports_to(1000), env=["SERVICE_NAME=" + "n" * MB]),
      firsts(1000), ["name"])
flood("flood: 100 ports x names of 100 kB", lambda: evil(
    ports_to(100), env=["SERVICE_%d_NAME=%s" % (port, "n" * 100000) for port in range(1, 101)]),
      firsts(100), ["name"])
flood("flood: 1,000 ports x an ID of 1 MB", lambda: evil(ports_to(1000), env=["SERVICE_ID=" + "i" * MB]),
      firsts(1000), ["id"])
flood("flood: 1,000 ports x tags of 1 MB", lambda: evil(
    ports_to(1000), env=["SERVICE_TAGS=" + ",".join("%04d" % i + "t" * 1020 for i in range(1000))]),
      warns=None)
flood("flood: 500 ports x tags of 1 MB", lambda: evil(
    ports_to(500), env=["SERVICE_TAGS=" + ",".join("%04d" % i + "t" * 1020 for i in range(1000))]),
      firsts(500), ["tags"])
flood("flood: 1,000 ports x an attribute of 1 MB", lambda: evil(
    ports_to(1000), labels={"SERVICE_NOTE": "n" * MB}), firsts(1000), ["attributes"])
flood("flood: 1,000 ports x a check of 1 MB", lambda: evil(
    ports_to(1000), env=["SERVICE_CHECK_SCRIPT=" + "s" * MB]), warns=None, enough=40)
flood("flood: 10,000 ports x a check of 4 MB", lambda: evil(
    {}, mode="host", expose=range(1, 10001), env=["SERVICE_CHECK_HTTP=/" + "s" * 4 * MB]), warns=None,
      enough=10)
flood("flood: a check of 2.6 MB of control bytes", lambda: evil(
    env=["SERVICE_CHECK_SCRIPT=" + "\x7f\1" * 1300000]), warns=None, enough=1)
flood("flood: $SERVICE_IP 90,000 times, an address of 60 kB", lambda: evil(
    ports_to(100), labels={"addr": "a" * 60000}, env=["SERVICE_CHECK_SCRIPT=" + "$SERVICE_IP" * 90000]),
      warns=None, args=["-useIpFromLabel", "addr"])
flood("flood: 1,000 ports x an address of 1 MB", lambda: evil(ports_to(1000), labels={"addr": "a" * MB}),
      warns=None, args=["-useIpFromLabel", "addr"], enough=20)
flood("flood: 1,000 ports x a service of compose of 1 MB", lambda: evil(
    ports_to(1000), image="sha256:" + "ab" * 32, labels={"com.docker.compose.service": "c" * MB}),
      firsts(1000, "evil-%d"), ["name"])
flood("flood: 1,000 ports x an image of 1 MB", lambda: evil(ports_to(1000), image="a/" + "n" * MB),
      warns=None)
flood("flood: 1,000 ports x a container of 100 kB", lambda: evil(ports_to(1000), name="evil" + "n" * 100000),
      warns=None)
flood("flood: environment of 8 MB", lambda: evil(env=["V%d=%s" % (i, "x" * 990) for i in range(8000)]), ONE)
flood("flood: an environment of 14 MB of SERVICE_", lambda: evil(
    ports_to(100), env=["SERVICE_V%d=%s" % (i, "x" * 480) for i in range(28000)]), warns=None)
flood("flood: 63 attributes of 512 bytes x 10,000 ports", lambda: evil(
    ports_to(10000), env=["SERVICE_K%d=%s" % (i, "v" * 512) for i in range(63)]), warns=None, enough=500)
flood("flood: a key of 4 MB", lambda: evil(env=["SERVICE_" + "K" * 4 * MB + "=v"]), ONE, ["attributes"])
flood("flood: 30,000 variables of one key", lambda: evil(
    env=["SERVICE_%sNAME=n%d" % ("80_" * (i % 2), i) for i in range(30000)]),
      {"h:evil:80": {"Name": "n29999", "Port": 8080}})
flood("flood: 40,000 bindings of one port", lambda: evil(
    {80: ["10.%d.%d.1:8080" % divmod(i, 256) for i in range(40000)]}), {"h:evil:80": {"Address": "10.0.0.1"}})
flood("flood: 65,535 ports that are ignored", lambda: evil(ports_to(65535), env=["SERVICE_IGNORE=1"]), {}, ())
flood("flood: an inspect just below 16 MiB", lambda: sized_box(INSPECT_MAX - 100), warns=None)
flood("flood: an inspect above 16 MiB", lambda: sized_box(INSPECT_MAX + 1), {}, ["inspect"])
flood("flood: an inspect of 40 MB", lambda: sized_box(40 * MB), {}, ["inspect"])
flood("flood: an inspect of 900,000 values", lambda: evil(env=["x"] * 899000), warns=None)
flood("flood: an inspect of 4 million values", lambda: evil(env=["x"] * 4000000), {}, ["inspect"])
flood("flood: 14 MB of broken UTF-8", lambda: evil(env=["SERVICE_TAGS=" + "\udcff" * 14 * MB]), warns=None)
flood("flood: 500 networks", lambda: evil({80: 8080}, expose=[81], nets={
    "n%d" % i: "10.0.%d.%d" % divmod(i, 256) for i in range(500)}), ONE)


def sized_box(n):
    """A container whose inspect has n bytes."""
    one = evil(env=["X="])
    one["Config"]["Env"][0] += "x" * (n - len(json.dumps(one)))
    return one


# -- IDs that collide

def unique(ids):
    """What they become: {port: wanted} in, {port: ID} out."""
    taken, out = set(), {}
    for port, name in sorted(ids.items()):
        while name.lower() in taken:
            name += ":%d" % port
        taken.add(name.lower())
        out[port] = name
    return out


def colliding(name, ids, warns=("same",), want=True, **more):
    """A container with these IDs for its ports: {port: ID}."""
    wanted = {one: {"Port": port} for port, one in unique(ids).items()} if want else None
    flood("IDs: " + name, lambda: evil({}, mode="host", expose=ids, env=[
        "SERVICE_%d_ID=%s" % one for one in ids.items()]), wanted, warns, **more)


def chain(first, n, most=ID_MAX):
    """x, x, x:81, x:81:82 ...: each wants what the one before it has become."""
    name, ids = "x%d" % first, {first: "x%d" % first}
    for port in range(first + 1, first + n):
        if len(name) > most:
            break
        ids[port] = name
        name += ":%d" % port
    return ids


flood("IDs: one for 65,535 ports", lambda: evil(ports_to(65535), env=["SERVICE_ID=x"]),
      {one: {"Port": port} for port, one in unique(dict.fromkeys(range(1, 10001), "x")).items()},
      ["same", "services"], enough=2000)
flood("IDs: one of 1,024 bytes for 10,000 ports", lambda: evil(
    ports_to(10000), env=["SERVICE_ID=" + "x" * 1024]), warns=None, mb=25)
flood("IDs: one of 1,000 bytes for 10,000 ports", lambda: evil(
    ports_to(10000), env=["SERVICE_ID=" + "x" * 1000]), warns=None, mb=25)
flood("IDs: an odd one for 10,000 ports", lambda: evil(ports_to(10000), env=["SERVICE_ID=\U0001f600"]),
      firsts(), ["id"], enough=1000)
flood("IDs: one for 500 ports of two kinds", lambda: evil({
    "%d/%s" % (port, kind): port for port in range(1, 501) for kind in ("tcp", "udp")}, env=["SERVICE_ID=x"]),
      {"x" + ":%d" % port * (port > 1 or udp) + ":udp" * udp: {"Port": port}
       for port in range(1, 501) for udp in (0, 1)}, ["same"])
colliding("a chain of 800", {80: "x", 81: "x", **{port: "x:%d" % (port - 1) for port in range(82, 880)}})
colliding("a chain that grows", chain(1000, 900, ID_MAX - 6))
colliding("forty chains that grow", {port: name for i in range(40) for port, name in
                                     chain(1000 + 250 * i, 250, ID_MAX - 6).items()}, enough=500)
colliding("a chain of 990 that grows beyond the limit", chain(1000, 990, 1 << 20), ("same", "id", "id"), want=False)
colliding("by case alone", {port: "xX"[port % 2] + "y" for port in range(1, 1000)})
colliding("the default ones of others", {port: "h:evil:%d" % (port + port % 2) for port in range(1, 1000)})
colliding("what others become, backwards", {
    **{port: "x:%d" % (2001 - port) for port in range(1, 1000)}, **{port: "x" for port in range(1000, 2001)}})


# -- the network of another container

def shared():
    host = box("x", ports_to(65535), labels={"SERVICE_IGNORE": "1"})
    return [host, evil({}, mode="container:" + host["Id"], expose=range(1, 65536))]


flood("flood: 65,535 ports of another's 65,535", shared, firsts(), ["services"], enough=1000)


# ==== Whose turn it is ==========================================================================

async def amid(w, others, n, truth):
    """So many others come and go while that holds."""
    for _ in range(n):
        await others.more(1)
        demand(truth(), "not soon enough: it was through with the 10,000")


@case("turns: 10,000 services of one, a Consul of 4 ms a request")
async def _(w):
    many = evil(ports_to(SERVICES_MAX))
    w.memory_mb = room_mb(w.engine, many)
    w.consul.slow(0.004)
    await life(w)
    async with Others(w) as others:
        w.engine.start(many)
        await w.until(lambda: w.count() > 100, "registered the first 100")
        await others.summary()
        await amid(w, others, 10, lambda: w.count() < SERVICES_MAX - 1000)
        await w.until(lambda: w.count() > 4000, "registered 4,000")
        w.engine.die(many)
        await w.until(lambda: w.count() < 3900, "removed 100")
        await amid(w, others, 10, lambda: w.count() > 1000)
        others.fair()
    await w.stop_soon()


@case("turns: three of 10,000 services each")
async def _(w):
    many = [evil({}, name="evil%d" % i, mode="host", expose=range(1, 20001)) for i in range(3)]
    w.memory_mb = 3 * room_mb(w.engine, *many)
    w.consul.slow(0.001)
    await life(w)
    async with Others(w) as others:
        for one in many:
            w.engine.start(one)
        await w.until(lambda: w.count() > 300, "registered the first 300")
        await amid(w, others, 10, lambda: w.count() < 25000)
        begun = {name.split(":")[1] for name in w.theirs()}
        equal("those that have had a turn", len(begun), 3)
        for one in many:
            w.engine.die(one)
        await others.more(5)
        others.fair()
    await w.stop_soon()


@case("turns: one of 10,000 services that starts and dies all the time")
async def _(w):
    many = evil(ports_to(SERVICES_MAX))
    w.memory_mb = room_mb(w.engine, many)
    await life(w)
    async with Others(w) as others:
        for number in range(25):
            w.engine.start(many)
            await asyncio.sleep(0.02 * (number % 3))
            w.engine.die(many)
            await others.more(1)
        await w.until(lambda: not w.theirs(), "removed all of it")
        others.fair()
    await w.stop_soon()


@case("turns: one of 5,000 services that is renamed all the time")
async def _(w):
    many = evil(ports_to(5000), labels={"note": "x"})
    w.memory_mb = 2 * room_mb(w.engine, many)
    await life(w)
    async with Others(w) as others:
        w.engine.start(many)
        for number in range(10):
            await others.more(1)
            w.engine.rename(many, "evil%d" % number)
        await w.until_theirs({"h:evil9:%d" % port: {"Port": port} for port in range(1, 5001)})
        w.engine.die(many)
        await w.until(lambda: not w.theirs(), "removed all of it")
        others.fair()
    await w.stop_soon()


@case("turns: events without end of one whose inspect has 15 MB")
async def _(w):
    many = sized_box(15 * MB)
    w.memory_mb = room_mb(w.engine, many)
    await life(w)
    async with Others(w) as others:
        w.engine.start(many)
        for number in range(200):
            w.engine.emit("health_status: %s" % ["healthy", "unhealthy"][number % 2], many)
            await asyncio.sleep(0.01)
        await others.summary()
        others.fair()
        w.engine.die(many)
        await others.more(3)
        await w.until(lambda: not w.theirs(), "removed it")
    await w.stop_soon()


@case("turns: 10,000 services that Consul refuses")
async def _(w):
    many = evil(ports_to(SERVICES_MAX), env=["SERVICE_CHECK_TCP=1", "SERVICE_CHECK_INTERVAL=1x"])
    w.memory_mb, w.consul.may_refuse = room_mb(w.engine, many), True
    await life(w)
    async with Others(w) as others:
        w.engine.start(many)
        await w.until(lambda: len(w.consul.order) > SERVICES_MAX, "tried them all")
        await others.more(20)
        await others.summary()
        tried = [name for _, name in w.consul.order if name not in others.ids]
        demand(len(tried) < 5 * SERVICES_MAX, "%d tries" % len(tried))
        w.engine.die(many)
        await others.more(3)
        equal("services", w.theirs(), set())
        others.fair()
    await w.stop_soon()


@case("turns: -deregister on-success, one of 10,000 services that fails")
async def _(w):
    many = evil(ports_to(SERVICES_MAX))
    w.memory_mb = room_mb(w.engine, many)
    await life(w, args=["-deregister", "on-success"])
    async with Others(w) as others:
        w.engine.start(many)
        await w.until_theirs(firsts())
        w.engine.die(many, 1)
        await others.more(5)
        w.stands(firsts())
        w.engine.destroy(many)
        await w.until(lambda: not w.theirs(), "removed all of it")
        others.fair()
    await w.stop_soon()


@case("turns: -on-exit deregister, with 10,000 services and a Consul of 4 ms a request")
async def _(w):
    many = evil(ports_to(SERVICES_MAX))
    w.memory_mb = room_mb(w.engine, many)
    w.has(many)
    await life(w, args=["-on-exit", "deregister"])
    await w.until(lambda: w.count() > 9000, "registered 9,000")
    w.consul.slow(0.004)
    await w.stop_soon()
    demand(w.count() < 9000, "nothing was removed")


def worst():
    """Three containers that cost as much as one can."""
    variables = ["SERVICE_CHECK_%d=x" % i for i in range(990)]
    return [evil({}, name="evil1", mode="host", expose=range(1, 65536)),
            evil({}, name="evil2", mode="host", expose=range(1, 20001), env=variables),
            evil(name="evil3", env=["SERVICE_TAGS=" + "a," * 2000000])]


@case("start: three floods are there already, and stay as they are")
async def _(w):
    many = worst()
    w.has(*many)
    w.memory_mb = 100
    await w.run("-resync", "0")
    await w.until(lambda: w.engine.streams, "listening")
    async with Others(w) as others:
        w.engine.start(box("first", {80: 8001}))
        await others.summary()
        await w.until(lambda: w.count() in (10001, 20001), "registered them all, but for one too large",
                      lambda: ["it has %d" % w.count()])
        await others.more(3)
        others.fair()
    await w.stop_soon()
    before = len(w.consul.order)
    await w.run("-resync", "0")
    await w.until(lambda: w.engine.streams and all(w.engine.asked[one["Id"]] > 1 for one in many),
                  "seen them again")
    async with Others(w) as others:
        await others.more(5)
        equal("writes for what was there", w.not_of_others(before), [])
        others.fair()


@case("start: SIGTERM at any moment of a first pass over three floods")
async def _(w):
    chance = random.Random(1)
    w.has(box("first", {80: 8001}), *worst())
    w.memory_mb = 100
    for _ in range(12):
        await w.run("-resync", "0")
        await w.until_log("Starting")
        await asyncio.sleep(chance.random() * 0.4)
        await w.stop_soon()
        w.consul.forget()


# ==== Somebody else's ===========================================================================

def entry(name, mark=None, port=5432):
    """Of Consul, not ours."""
    return {"ID": name, "Name": "db", "Port": port, "Address": "10.1.1.1", "Tags": ["precious"],
            "Meta": {MARK: mark} if mark else {}}


STRANGER = "0123456789abcdef-0123456789abcdef01234567"      # the mark of another registrator


async def takes_none(there, wanted, w):
    """A container that wants the ID of such an entry gets nothing, whatever happens."""
    w.consul.guard(there)
    one = evil(env=["SERVICE_ID=" + wanted])
    await life(w, args=["-on-exit", "deregister"])
    async with Others(w) as others:
        w.engine.start(one)
        await others.more(3)
        await w.until(lambda: w.warnings(one), "a warning")     # another list comes first
        await said_by_now(w, others, one)
        equal("services", w.theirs(), set())
        w.consul.untouched()
        demand("-cleanup" in w.warnings(one)[0] and wanted[:50] in w.warnings(one)[0],
               "a warning without ID and -cleanup", *w.warnings(one))
        w.proc.send_signal(signal.SIGHUP)
        await others.more(3)
        w.consul.drop()
        await others.more(3)
        equal("warnings", len(w.warnings(one)), 1)
        w.engine.die(one)
        await others.more(3)
        w.engine.start(one)
        await others.more(3)
    await w.stop_soon()     # -on-exit deregister
    equal("services", set(w.consul.services), {there["ID"]})


for what, there, wanted in [
        ("an entry of nobody", entry("db"), "db"),
        ("by another case", entry("db"), "DB"),
        ("a default ID", entry("h:gone:80"), "h:gone:80"),
        ("a default ID by another case", entry("h:gone:80"), "h:GONE:80"),
        ("another host's", entry("h2:web:80"), "h2:web:80"),
        ("of another registrator", entry("db", STRANGER), "db"),
        ("of another registrator, a default ID", entry("h:evil2:80", STRANGER), "h:evil2:80"),
        ("its port too", entry("db", None, 8080), "db"),
        ("an ID of 1,024 bytes", entry("d" * ID_MAX), "D" * ID_MAX)]:
    add("another's: " + what, takes_none, there, wanted)


async def not_written(how, w):
    """It is somebody else's, whatever becomes of our registration, should there be one."""
    def answer(request):
        if b'"late"' not in request.body:
            return None
        if not w.consul.foreign:
            w.consul.guard(entry("late"))
        return (400, "Invalid check") if how == "refused" else b""

    one = evil(env=["SERVICE_ID=late"])
    if how == "refused":
        w.consul.guard(entry("late"))
    await life(w)
    w.consul.on("PUT /v1/agent/service/register", answer)
    async with Others(w) as others:
        w.engine.start(one)
        await w.until(lambda: w.consul.foreign, "registered it")
        await others.more(3)
        w.engine.die(one)
        await others.more(5)
        w.proc.send_signal(signal.SIGHUP)
        await others.more(5)
    await w.stop_soon()


add("another's: the registration is refused", not_written, "refused")
add("another's: taken by somebody while our registration fails", not_written, "cut")


@case("another's: it starts and dies while Consul is away")
async def _(w):
    w.consul.guard(entry("db"))
    one = evil(env=["SERVICE_ID=DB"])
    await life(w)
    w.consul.close()
    w.engine.start(one)
    await w.until(lambda: w.engine.asked.get(one["Id"]), "inspected it")
    w.engine.die(one)
    await asyncio.sleep(0.2)
    w.engine.start(one)
    await w.consul.listen(port=w.port)
    async with Others(w) as others:
        await others.more(3)
        w.engine.die(one)
        await others.more(3)


async def takes_none_of_ours(wanted, w):
    """A container that wants the ID of one that runs."""
    one = evil(env=["SERVICE_ID=" + wanted, "SERVICE_NAME=trap"])
    await life(w)
    async with Others(w) as others:
        for _ in range(2):
            w.engine.start(one)
            await others.more(3)
            await said_by_now(w, others, one)
            w.proc.send_signal(signal.SIGHUP)
            await others.more(3)
            equal("services", w.theirs(), set())
            equal("warnings", len(w.warnings(one)), 1)
            w.engine.die(one)
            await others.more(3)
            equal("services", "h:first:80" in w.consul.services, True)
            one = evil(name="evil2", env=["SERVICE_ID=" + wanted, "SERVICE_NAME=trap"])
    equal("writes", w.not_of_others(), [("register", "h:first:80")])


for wanted in ["h:first:80", "h:FIRST:80", "H:first:80"]:
    add("another's: %s, which runs" % wanted, takes_none_of_ours, wanted)


# -- rows of Consul that cannot be read (B1, B5)

PLAIN = '"Service":"x","Tags":[],"Meta":{},"Port":1,"Address":""'
ROWS = {
    "of 5 MB": lambda: ['{"ID":"large",%s}' % PLAIN.replace("[]", '["%s"]' % ("\\u0001" * 850000))],
    "70 levels deep": lambda: ['{"ID":"tall",%s,"Proxy":{"Config":%s1%s}}' % (PLAIN, '{"a":' * 70, "}" * 70)],
    "60,000": lambda: ['{"ID":"e%d",%s}' % (i, PLAIN) for i in range(60000)],
    "100 with IDs of 1 MB": lambda: ['{"ID":"%d%s",%s}' % (i, "x" * MB, PLAIN) for i in range(100)]}


async def with_rows(rows, w):
    """Consul's list has such rows besides: it is one list like any other."""
    many = rows()
    more = ",".join('"%d":%s' % one for one in enumerate(many)).encode()

    def answer(_):
        return 200, json.dumps(w.consul.services).encode()[:-1] + b"," * bool(w.consul.services) + more + b"}"

    w.memory_mb = 20
    w.consul.on("GET /v1/agent/services", answer)
    await life(w)
    async with Others(w) as others:
        for _ in range(2):
            w.proc.send_signal(signal.SIGHUP)
            await others.more(5)
        equal("writes", w.not_of_others(), [("register", "h:first:80")])
        equal("sessions begun", [r.path for r in w.consul.requests].count("/v1/status/leader"), 1)


for what, rows in ROWS.items():
    add("rows of Consul: " + what, with_rows, rows)


# ==== At the limit, one above, far above ========================================================

async def limits(rows, w):
    """rows: {name of a container: (what it is, the service that it has on port 80, kinds of warnings)}.  They
    run, they stop, and nothing is left."""
    boxes = [evil({80: 8080 + i}, name=name, **more) if "ports" not in more else evil(name=name, **more)
             for i, (name, (more, _, _)) in enumerate(rows.items())]
    want = {}
    for name, (_, service, _) in rows.items():
        want[service.pop("ID", "h:%s:80" % name)] = service
    w.memory_mb = 30
    w.engine.raw = True
    await life(w)
    with w.engine.at_once():
        for one in boxes:
            w.engine.start(one)
    await w.until_theirs(want)
    for one, (_, _, kinds) in zip(boxes, rows.values()):
        try:
            demand(len(w.warnings(one)) < 2, "more than one warning", *w.warnings(one))
            if kinds is not None:
                warned(w.warnings(one), *kinds)
        except Failure as e:
            raise Failure("%s: %s" % (one["Name"], e), *e.details) from None
    w.proc.send_signal(signal.SIGHUP)
    for one in boxes:
        w.engine.die(one)
    await w.until_theirs({})
    equal("services", set(w.consul.services), {"h:first:80"})


def named(name, used=True, kinds=("name",), **more):
    return {"env": ["SERVICE_NAME=" + name], **more}, {"Name": name if used else "app"}, () if used else kinds


add("limits: a name", limits, {
    "n255": named("n" * 255), "n256": named("n" * 256, False), "n1mb": named("n" * MB, False),
    "u254": named("\xe9" * 127), "u256": named("\xe9" * 128, False),
    "label": ({"image": "sha256:" + "ab" * 32, "labels": {"com.docker.compose.service": "c" * 255}},
              {"Name": "c" * 255}, ()),
    "label2": ({"image": "sha256:" + "ab" * 32, "labels": {"com.docker.compose.service": "c" * 256}},
               {"Name": "label2"}, ["name"]),
    "other": ({"env": ["SERVICE_80_NAME=" + "n" * 256, "SERVICE_81_NAME=x"]}, {"Name": "app"}, ["name"])})


@case("limits: a name with the port behind it")
async def _(w):
    """What is registered has 255 bytes at the most."""
    await life(w)
    w.engine.start(evil({80: 8080, 8000: 8081}, env=["SERVICE_NAME=" + "n" * 251]))
    await w.until_theirs({"h:evil:80": {"Name": "n" * 251 + "-80"}, "h:evil:8000": {"Name": "app-8000"}})


def with_id(name, used=False):
    """A container with this ID."""
    return {"env": ["SERVICE_ID=" + name]}, {"ID": name} if used else {}, () if used else ["id"]


GOOD_IDS = ["i" * ID_MAX, "a b", " ", "a/b", "a/", "%2e%2e", "...", ".a", "a.", "a/.b/c..", "?x=1#y",
            "'\"<>&;\\`$(x)", "".join(map(chr, range(0x20, 0x2f))), "".join(map(chr, range(0x30, 0x7f))),
            ":", "-", "0"]
ODD_IDS = ["i" * (ID_MAX + 1), "i" * MB, "", "/", "/a", "a//b", "//", ".", "..", "./a", "../a", "a/..", "a/.",
           "a/../b", "a/./b", "\0", "a\0", "\1", "a\nb", "a\r\nHost: x\r\n\r\n", "\t", "\x1f", "\x7f",
           "a\x7fb", "\x80", "\x9f", "\xa0", "\xad", "\xe9", "\u0378", "\u0560", "\u200b", "\u202e", "\u2028",
           "\u2066", "\ufeff", "\ufffd", "\uffff", "\U0001f600", "\U0001fae8", "\U0001fac8", "\U000e0041",
           "\U0010ffff", "\udcff", "a\udcc0\udc80", "\udced\udca0\udc80"]
add("limits: IDs that can be used", limits, {
    "good%d" % i: with_id(name, True) for i, name in enumerate(GOOD_IDS)})
add("limits: IDs that cannot", limits, {"odd%d" % i: with_id(name) for i, name in enumerate(ODD_IDS)})


def tagged(text, tags, warn=False):
    return {"env": ["SERVICE_TAGS=" + text]}, {"Tags": tags}, ["tags"] if warn else ()


add("limits: tags", limits, {
    "one": tagged("t" * TAGS_MAX, ["t" * TAGS_MAX]), "above": tagged("t" * (TAGS_MAX + 1), [], True),
    "far": tagged("t" * MB + ",u", ["u"], True),
    "next": tagged("a," + "t" * TAGS_MAX + ",b", ["a", "b"], True),
    "commas": tagged("\\," * 100, ["," * 100]), "blanks": tagged(" ,  ,", [" ", "  "]),
    "none": tagged("," * 100000, [])})


@case("limits: many tags")
async def _(w):
    """Whether a comma counts or not: hardly less than 16 KiB of them."""
    tags = ["%03d" % i + "t" * 97 for i in range(400)]
    await life(w)
    one = evil(env=["SERVICE_TAGS=" + ",".join(tags)])
    w.engine.start(one)
    await w.until(w.theirs, "registered it")
    sent = w.consul.sent["h:evil:80"]["Tags"]
    equal("tags", sent, tags[:len(sent)])
    demand(160 <= len(sent) <= 163, "%d tags of 100 bytes" % len(sent))
    warned(w.warnings(one), "tags")


def attributed(labels, kept, warn=False):
    return {"labels": {"SERVICE_" + key: value for key, value in labels.items()}}, {"Meta": kept}, \
        ["attributes"] if warn else ()


add("limits: odd keys", limits, {
    "k%d" % i: ({"env": ["SERVICE_%s=x" % key]}, {"Name": "app"}, None) for i, key in enumerate([
        "", "_", "80_", "80__", "00080_TAGS", "80_80_TAGS", "9" * 100000 + "_NAME", "-1_NAME", "80 _NAME",
        "65616_NAME", "4294967376_NAME", "18446744073709551696_NAME", "=", "80", "80_=", "CHECK_",
        "80_CHECK_", "\0NAME", "NAME\0", "CHECK_" * 9999])})
add("limits: attributes", limits, {
    "key": attributed({"k" * 128: "v"}, {"k" * 128: "v"}), "key2": attributed({"k" * 129: "v"}, {}, True),
    "value": attributed({"k": "v" * 512}, {"k": "v" * 512}),
    "value2": attributed({"k": "v" * 513, "l": "v"}, {"l": "v"}, True),
    "odd": attributed({"a b": "v", "l": "v"}, {"l": "v"}, True),
    "ours": attributed({MARK: STRANGER, "l": "v"}, {"l": "v"}, True),
    "many": attributed({"k%d" % i: "v" for i in range(63)}, {"k%d" % i: "v" for i in range(63)})})


@case("limits: 64 attributes")
async def _(w):
    """With our own they would be 65."""
    one = evil(labels={"SERVICE_K%d" % i: "v" for i in range(64)})
    await life(w)
    w.engine.start(one)
    await w.until(w.theirs, "registered it")
    equal("attributes", len(w.consul.sent["h:evil:80"]["Meta"].keys() - {MARK}), 63)
    warned(w.warnings(one), "attributes")


# ==== Texts that are to break something =========================================================

TEXTS = {
    "NUL": "a\0b", "DEL": "a\x7fb\x7f",
    "CR LF": "a\r\nX-Forged: 1\r\n\r\nPUT /v1/agent/leave HTTP/1.1\r\n\r\n",
    "a log line": "x\n2026/11/22 18:05:26 registrator: removed: 000000000000 h:first:80\nx",
    "C1": "\x80\x85\x9b31m\x9f", "JSON": '","Port":1,"x":"\\u0000\\n\\"\\',
    "escapes": "\\u0041\\x41\\n%41%00%n",
    "terminal": "\x1b]0;x\7\x1b[2J\b\b\b\x0b\x0c", "bidi": "a\u202eb\u2066c\u2069d\u200fe\u061cf",
    "separators": "a\u2028b\u2029c\ufeffd\u200be",
    "broken": "a\udcff\udcc0\udc80b\udced\udca0\udc80\udcf4\udc90c\udce2\udc82",
    "surrogates": "a\ud800b\udfff", "tags": "\U000e0041\U000e0042\U0001f600\uffff\U0010ffff"}


def bare(value):
    """The value as JSON can say it: each run of what is not UTF-8 as one U+FFFD."""
    return json.loads(re.sub("[\ud800-\udfff\ufffd]+", "\ufffd", json.dumps(value, ensure_ascii=False)))


async def everywhere(text, w):
    """In each place where a container's author can put it."""
    w.engine.raw = not re.search("[\ud800-\udbff]", text)
    one = evil({80: 8080, 81: 8081}, image=text, env=[
        "SERVICE_80_NAME=" + text, "SERVICE_NOTE=" + text, "SERVICE_CHECK_HTTP=/" + text,
        "SERVICE_CHECK_INTERVAL=9s", "SERVICE_ID=" + text, text, "SERVICE_" + text + "=" + text],
        labels={"SERVICE_TAGS": text, text: text, "SERVICE_" + text: text, "SERVICE_81_" + text: text})
    one["Config"]["Hostname"] = text
    one["NetworkSettings"]["Networks"][text] = dict(one["NetworkSettings"]["Networks"]["bridge"])
    w.memory_mb = 5
    await life(w)
    async with Others(w) as others:
        w.engine.start(one)
        await w.until(lambda: w.count() == 2, "registered both")
        await others.summary()
        for service in map(w.consul.sent.get, w.theirs()):
            service = bare(service)
            if service["Port"] == 8080:
                equal("Name", service["Name"], bare(text))
            equal("Tags", ",".join(service["Tags"]), bare(text.replace("\\,", ",").strip(",")))
            equal("Meta", service["Meta"].get("note"), bare(text))
            equal("Check", service["Check"]["HTTP"], "http://%s:%d/%s" % (HOST, service["Port"], bare(text)))
        w.engine.die(one)
        await w.until_theirs({})
        w.engine.start(one)
        await w.until(lambda: w.count() == 2, "registered both again")
    await w.stop_soon()
    forged = [line for line in w.lines() if re.search(
        "[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c\u2028\u2029]", line)]
    equal("lines that show as something else", forged, [])
    equal("removals of the first", ("deregister", "h:first:80") in w.consul.order, False)
    await w.spawn("-hostname", "h", "-once", "-ip", "10.0.0.1", "print:")
    equal("exit status of print:", await w.exit(), 0)
    said = [json.loads(line) for line in w.out.split("\n")[:-1]]
    equal("lines of print:", [one["action"] for one in said], ["register"] * 3)


for what, text in TEXTS.items():
    add("text: " + what, everywhere, text)


@case("print: 65,535 ports")
async def _(w):
    many = evil({}, mode="host", expose=range(1, 65536))
    w.has(many)
    await w.spawn("-hostname", "h", "-once", "-ip", "10.0.0.1", "print:")
    equal("exit status of print:", await w.exit(), 0)
    said = [json.loads(line) for line in w.out.split("\n")[:-1]]
    equal("services", sorted(one["service"]["ID"] for one in said), sorted(firsts()))
    warned(w.warnings(many), "services")


# ==== A real engine, a real Consul ==============================================================

REAL = []       # [(name, function)], as e2e.play() takes them


def real(name):
    def keep(test):
        REAL.append(("real: " + name, test))
        return test
    return keep


def peak_mb(r):
    with open("/proc/%d/status" % r.proc.pid) as f:
        return int(re.search(r"VmHWM:\s*(\d+)", f.read())[1]) / 1024


def ours(name):
    """The default ID of port 80 of this container."""
    return "%s:%s:80" % (e2e.HOST, name)


def others_real(r, name, port):
    """One more container starts, and goes, and SIGUSR1 is answered."""
    e2e.create(name, port_80(port))
    wait_for(name, lambda: ours(name) in e2e.ids())
    before = r.log().count("summary")
    r.proc.send_signal(signal.SIGUSR1)
    wait_for("the summary", lambda: r.log().count("summary") > before)
    docker("rm", "-f", name)
    wait_for("the end of " + name, lambda: ours(name) not in e2e.ids())


def real_flood(config, *options):
    """65,535 ports.  Consul takes minutes for the 10,000 services of these, and others do not wait."""
    proxy = e2e.Proxy()
    r = Registrator("-resync", "0", *options, uri=proxy.uri)

    def evils():
        return {name for verb, name, *_ in proxy.paths() if verb == "register" and ":evil:" in name}

    e2e.create("first", port_80(8001))
    wait_for("the first", lambda: ours("first") in e2e.ids())
    e2e.create("evil", config)
    wait_for("50 of its services", lambda: len(evils()) >= 50)
    others_real(r, "web", 8002)
    if len(evils()) > SERVICES_MAX - 1000:
        raise e2e.Failure("not soon enough: it was through with the 10,000")
    e2e.same("ports beyond the first 10,000", [],
             [name for name in evils() if int(name.split(":")[2]) > SERVICES_MAX])
    docker("kill", "evil")
    wait_for("the end of all its services", lambda: e2e.ids() == [ours("first")], 2 * e2e.LIMIT)
    done = len(proxy.puts())
    docker("start", "evil")
    wait_for("20 of its services", lambda: len(proxy.puts()) > done + 20)
    most = peak_mb(r)
    r.stop()
    if most > 40 * MEMORY:      # room_mb() of the like
        raise e2e.Failure("%.1f MB of memory" % most)
    said = [line for line in r.log().split("\n")
            if re.search(WARNINGS["services"], line) and not ROUTINE.search(line)]
    if len(said) != 2:      # it was started twice
        raise e2e.Failure("\n".join(["%d warnings, not 2" % len(said), *said[:5]]))


EXPOSED = {"Image": "plain", "ExposedPorts": {"%d/tcp" % port: {} for port in range(1, 65536)}}


@real("65,535 exposed ports, host mode")
def _():
    real_flood({**EXPOSED, "HostConfig": {"NetworkMode": "host"}})


@real("65,535 exposed ports, -internal")
def _():
    real_flood(EXPOSED, "-internal")


@real("labels and environments of many MB, and a long name")
def _():
    """As far as dockerd goes: labels have no limit, nor have names; an environment has execve's."""
    r = Registrator("-resync", "0")
    e2e.create("first", port_80(8001))
    wait_for("the first", lambda: ours("first") in e2e.ids())
    name = "n" * 2000
    for number, (one, more) in enumerate([
            ("many", {"Labels": {"l%d" % i: "x" for i in range(100000)}}),
            ("large", {"Labels": {"x": "x" * 3 * MB, "SERVICE_TAGS": "a," * 250000}}),
            ("huge", {"Labels": {"x": "x" * 20 * MB}}),
            ("env", {"Env": ["X%d=%s" % (i, "x" * 1000) for i in range(1500)]}), (name, {})]):
        e2e.create(one, {**port_80(8010 + number), **more})
        others_real(r, "web", 8002)
    wait_for("theirs", lambda: {ours(one) for one in ("first", "many", "large", "env")} <= set(e2e.ids()))
    e2e.same("IDs that are too long", [], [one for one in e2e.ids() if len(one) > ID_MAX])
    e2e.same("tags that are too long", [], [one for one, at in e2e.services().items() if
                                           sum(map(len, at["tags"])) > TAGS_MAX])
    most = peak_mb(r)
    docker("rm", "-f", "many", "large", "huge", "env", name)
    e2e.expect({ours("first"): e2e.svc("plain", 8001)})
    r.stop()
    if most > 100 * MEMORY:
        raise e2e.Failure("%.1f MB of memory" % most)


def publishing(ports, labels):
    """For create(): these ports, published as 8100 and so on."""
    bound = {"%d/tcp" % port: [{"HostPort": str(8100 + i)}] for i, port in enumerate(ports)}
    return {"Image": "plain", "Labels": labels, "ExposedPorts": dict.fromkeys(bound, {}),
            "HostConfig": {"PortBindings": bound}}


def by_api(name):
    """What dockerd makes of a text: broken UTF-8 becomes U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@real("IDs: each that can be used, or cannot, is gone in the end")
def _():
    names = dict(enumerate([*GOOD_IDS, *map(by_api, ODD_IDS)], 1))
    r = Registrator("-resync", "0")
    e2e.create("evil", publishing(names, {"SERVICE_%d_ID" % port: name for port, name in names.items()}))
    want = {name if port <= len(GOOD_IDS) else "%s:evil:%d" % (e2e.HOST, port): 8099 + port
            for port, name in names.items()}
    e2e.wait_same("services", want, lambda: {name: one["port"] for name, one in e2e.services().items()})
    docker("kill", "evil")
    e2e.expect({})
    r.stop()


@real("IDs that collide, also by case alone, and in a chain")
def _():
    r = Registrator("-resync", "0")
    e2e.create("first", port_80(8001))
    wait_for("the first", lambda: ours("first") in e2e.ids())
    wanted = dict(enumerate(["x", "x", "X", "x:2", "y", "Y:7", "Y", "y", *["z"] * 9, *["Z"] * 9], 1))
    e2e.create("evil", publishing(wanted, {"SERVICE_%d_ID" % port: name for port, name in wanted.items()}))
    e2e.create("thief", {**port_80(8002), "Labels": {"SERVICE_ID": ours("FIRST")}})
    want = {name: 8099 + port for port, name in unique(wanted).items()}
    e2e.wait_same("services", {**want, ours("first"): 8001},
                  lambda: {name: one["port"] for name, one in e2e.services().items()})
    catalog = [one["ServiceID"] for one in e2e.get("/v1/catalog/service/plain-1")]
    e2e.same("catalog", ["x"], catalog)
    docker("rm", "-f", "evil", "thief")
    e2e.expect({ours("first"): e2e.svc("plain", 8001)})
    r.stop()


@real("names, tags and attributes at the limit")
def _():
    r = Registrator("-resync", "0")
    name, tag = "n" * NAME_MAX, "t" * TAGS_MAX
    labels = {"SERVICE_NAME": name, "SERVICE_TAGS": tag, "SERVICE_" + "K" * 128: "v" * 512}
    e2e.create("evil", {**port_80(8001), "Labels": labels})
    e2e.expect({ours("evil"): e2e.svc(name, 8001, tags=[tag], meta={"k" * 128: "v" * 512})})
    e2e.create("evil2", {**port_80(8002), "Labels": {
        "SERVICE_NAME": name + "n", "SERVICE_TAGS": tag + "t,u", "SERVICE_" + "K" * 129: "v"}})
    wait_for("the other", lambda: ours("evil2") in e2e.ids())
    e2e.same("the other", e2e.svc("plain", 8002, tags=["u"]), e2e.services()[ours("evil2")])
    docker("rm", "-f", "evil", "evil2")
    e2e.expect({})
    r.stop()


@real("another's IDs: of an entry, and Consul's own")
def _():
    foreign = {"ID": "db", "Name": "db", "Port": 5432, "Address": "10.1.1.1", "Tags": ["precious"]}
    e2e.put("/v1/agent/service/register", foreign)

    def there():
        return e2e.services(), [(one["ServiceID"], one["ServicePort"]) for name in ("db", "consul")
                                for one in e2e.get("/v1/catalog/service/" + name)]
    before = there()
    e2e.same("before", [("db", 5432), ("consul", 8300)], before[1])
    r = Registrator("-resync", "0", "-on-exit", "deregister")
    for number, name in enumerate(["db", "DB", "consul", "Consul", "CONSUL"]):
        e2e.create("evil%d" % number, {**port_80(8001 + number), "Labels": {"SERVICE_ID": name}})
    others_real(r, "web", 8020)
    e2e.same("meanwhile", before, there())
    docker("rm", "-f", *["evil%d" % number for number in range(5)])
    others_real(r, "web", 8020)
    r.resync()
    others_real(r, "web", 8020)
    r.stop()
    e2e.same("after", before, there())


def inside(binary, pattern=""):
    return e2e.world(binary, lambda: e2e.play((), cases=[one for one in REAL if re.search(pattern, one[0])]))


# ==== Running ===================================================================================

async def scripted(binary, pattern):
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    chosen = {name: test for name, test in CASES.items() if re.search(pattern, name)}
    status = await peers.run_cases(World, binary, chosen, AT_ONCE) if chosen else 0
    if os.environ.get("AUTHOR_FIGURES"):
        print("\n".join("# " + line for line in sorted(FIGURES)))
    return status


def main(argv):
    if argv[:1] == ["--inside"]:
        e2e.enter("author", inside)
    if argv[:1] == ["--real"]:
        del sys.argv[1]
        e2e.enter("author", inside)
    if len(argv) not in (1, 2):
        sys.exit(__doc__)
    pattern = argv[1] if argv[1:] else ""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    real = None
    if any(re.search(pattern, name) for name, _ in REAL):       # meanwhile: it mostly waits
        real = subprocess.Popen([sys.executable, __file__, "--real", *argv], stdout=subprocess.PIPE)
    try:
        status = asyncio.run(scripted(argv[0], pattern))
        if real:
            sys.stdout.buffer.write(real.communicate()[0])
            status = status or real.returncode
    finally:
        if real:
            real.terminate()
            real.wait()
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
