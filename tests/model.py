#!/usr/bin/env python3
"""A model test: containers live at random, both peers fail at random, and in the end all must be right.

    model.py BINARY [--seeds A-B] [-j N]    run these seeds, N at a time; "A-": until told to stop
    model.py BINARY --trace SEED            run one, and print all that happens
    model.py BINARY --shrink SEED           drop operations as long as it still fails, and print what is left

BINARY is compiled with -DHASTE=10 (another value: --haste N), so that its pauses are over in tenths of
a second.  A seed is a script that is written before it begins: which options registrator runs with (or
two of them, side by side), and at which millisecond which container starts, dies, changes its name, which
answer of a peer is late, cut or garbage, when registrator is killed.  Then the peers behave, and

  - the registry must be what oracle.py makes of the engine, checks included, foreign entries untouched;
  - at rest nothing is asked but the two lists of a resync, at its pace, and nothing is written.

While it runs, each write is judged as it arrives, by what the engine runs at that moment and by what
registrator has been told so far (class Life).  Wrong is

  - a removal of what is wanted: a container has claimed the ID ever since registrator inspected it, or
    since before registrator started or read its last list (so it has to be inspected first), and nothing
    that it was told since says otherwise;
  - after a rename, a removal of the old ID when the new one has never been tried;
  - a write over or a removal of an entry of somebody else's, who had it before the last list was read;
  - a write of what no container ever was, of a container that is known to be dead, in the place of a
    container that has the ID and runs, or, of an agent without faults, of what it has already.

What is told and what is sent cross on the way: MARGIN_S is forgiven, and more on a busy machine.

A trace repeats as far as processes can: what is drawn by lot comes from the seed, and an operation means
the same whatever became of those before it (so any of them can be left out).  What varies from run to run
is the order of requests on several connections, which of them meets a fault that waits for the next one,
registrator's own jitter, and how busy this machine is.
"""
import argparse
import asyncio
import collections
import copy
import hashlib
import itertools
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict, namedtuple
from functools import partial
from urllib.parse import unquote

import oracle
from fakes import DEREGISTER, REGISTER, Consul, Engine, Late, box, hang, message, state_of
from oracle import Options, fold
from peers import Failure, World, clean_text

MARGIN_S = 0.3
LIMIT_S = 40        # to come right, when all faults are over
REST_LISTS = 4      # of each peer, while nothing else is asked
OFTEN, OFTEN_S = 40, 1.0    # so often in so long: a loop.  Lists are 0.1 s apart
SHOWN = 200         # lines of a trace; --trace prints all
REST_S = 0.5        # or so long, without a resync
MARK = re.compile("[0-9a-f]{16}-[0-9a-f]{24}")
OTHERS_MARK = "0123456789abcdef-" + "5" * 24
OTHERS_PORT = 4000  # and more: of foreign entries
LIST = "/containers/json"


def keeps(code):
    """What on-success keeps: it has failed on its own."""
    return 0 < code < 128


# ==== The engine ================================================================================

class Container:
    """One, as its operations left it.  `box`: as inspect shows it; a new one with each change."""

    def __init__(self, host, number, spec):
        self.host, self.number, self.spec = host, number, spec
        self.id = hashlib.sha256(b"%d %d" % (host.seed, number)).hexdigest()
        self.name = spec["name"]
        self.status, self.code = "created", 0
        self.mode = spec["mode"]
        if self.mode.startswith("container:"):
            self.mode = "container:" + host.containers[int(self.mode[len("container:"):])].id
        self.nets = [] if self.mode in ("host", "none") or oracle.shares_mode(self.mode) else [self.mode]
        self.addresses, self.ports = {}, {}
        self.last = None        # (box, peer's box) when it last ran
        self.show()

    runs = property(lambda self: self.status in ("running", "paused"))

    def show(self):
        spec, ports = self.spec, {}
        if self.runs and self.nets and self.host.driver(self.nets[0]) == "bridge":
            ports = self.ports
        self.box = box(
            self.name, ports, image=spec["image"], env=spec["env"], labels=spec["labels"], mode=self.mode,
            nets={net: self.addresses.get(net, "") if self.runs else "" for net in self.nets},
            expose=spec["ports"])
        self.box["Id"] = self.id
        self.box["State"] = state_of(self.status, self.code)
        self.box["HostConfig"]["PortBindings"] = {
            key: [{"HostIp": "", "HostPort": "0"}] for key, to in spec["ports"].items() if to is not None}
        self.host.boxes[self.id] = self.box

    def address(self, net):
        self.addresses[net] = "10.%d.0.%d" % (sum(net.encode()) % 200, next(self.host.addresses) % 250 + 2)

    def publish(self):
        """Its ports on the host, a new one each time where none is given."""
        self.ports = {key: next(self.host.published) if to == "any" else to
                      for key, to in self.spec["ports"].items()}


class Host:
    """The engine's containers, and what each registrator has to make of them."""

    def __init__(self, seed, registrators, say):
        self.seed, self.registrators, self.say = seed, registrators, say
        self.containers = {}
        self.boxes = {}         # ID: box, for all engines to show
        self.drivers = {"mv": "macvlan"}
        self.addresses, self.published = itertools.count(), itertools.count(20000)
        self.order = ("die", "net")     # of the events of a death; since Docker 23 the other way round

    def driver(self, net):
        return self.drivers.get(net, "bridge")

    def short(self, container_id):
        return next(("c%d" % c.number for c in self.containers.values() if c.id == container_id), container_id[:12])

    def shown(self, container_id):
        c = self.by_id(container_id)
        return "%s (%s %d)" % (self.short(container_id), c.status, c.code) if c else "one that is gone"

    def by_id(self, container_id):
        return next((c for c in self.containers.values() if c.id == container_id), None)

    def peer(self, c):
        """The box of the container whose network c shares, if that runs."""
        x = self.by_id(c.mode[len("container:"):]) if oracle.shares_mode(c.mode) else None
        return x.box if x is not None and x.runs else None

    def sharers(self, container_id):
        return [c for c in self.containers.values() if c.mode == "container:" + container_id]

    def emit(self, action, c, kind="container", **attributes):
        for r in self.registrators:
            r.engine.emit(action, c.box, kind, **attributes)

    def changed(self, c):
        """It has: shows it, and works out anew what is wanted."""
        if c.number in self.containers:
            c.show()
        for one in [c, *self.sharers(c.id)]:
            if one.runs:
                one.last = one.box, self.peer(one)
        for r in self.registrators:
            r.want(self)

    def free(self, name):
        return all(c.name != name for c in self.containers.values())

    # -- what `docker` does; what cannot be done is not done

    def create(self, number, spec):
        x = re.fullmatch("container:([0-9]+)", spec["mode"])
        if self.free(spec["name"]) and (x is None or int(x[1]) in self.containers):
            c = self.containers[number] = Container(self, number, spec)
            self.changed(c)
            self.emit("create", c)

    def start(self, c, action="start"):
        if c.runs:
            return
        c.status, c.code = "running", 0
        c.publish()
        for net in c.nets:
            c.address(net)
        self.changed(c)
        for net in c.nets:
            self.emit("connect", c, "network", name=net)
        self.emit("start", c)
        if action != "start":
            self.emit(action, c)

    def die(self, c, code, told=False, status="exited"):
        """It ends; told: somebody has told it to."""
        if not c.runs:
            return
        if told:
            self.emit("kill", c, signal="9" if code == 137 else "15")
        c.status, c.code = status, code
        self.changed(c)
        for event in self.order:
            if event == "die":
                self.emit("die", c, exitCode=str(code))
            else:
                for net in c.nets:
                    self.emit("disconnect", c, "network", name=net)
        if told:
            self.emit("stop", c)

    def destroy(self, c):
        self.die(c, 137, told=True)
        del self.containers[c.number]
        del self.boxes[c.id]
        self.changed(c)
        self.emit("destroy", c)

    def rename(self, c, name):
        if self.free(name):
            old, c.name = c.name, name
            if c.last is not None:
                c.last = {**c.last[0], "Name": "/" + name}, c.last[1]
            self.changed(c)
            self.emit("rename", c, oldName="/" + old)

    def pause(self, c, paused):
        if c.status == ("running" if paused else "paused"):
            c.status = "paused" if paused else "running"
            self.changed(c)
            self.emit("pause" if paused else "unpause", c)

    def attach(self, c, net, on):
        if not c.nets or self.driver(c.nets[0]) != "bridge" or (net in c.nets) == on or (not on and len(c.nets) == 1):
            return
        if on:
            c.nets.append(net)
            if c.runs:
                c.address(net)
        else:
            c.nets.remove(net)
        self.changed(c)
        self.emit("connect" if on else "disconnect", c, "network", name=net)

    def crash_all(self):
        """The engine is killed and started again: who has the policy runs again, all without an event."""
        for c in list(self.containers.values()):
            if c.runs:
                c.status, c.code = "exited", 137
                self.changed(c)
                if c.spec["policy"]:
                    c.status, c.code = "running", 0
                    c.publish()
                    for net in c.nets:
                        c.address(net)
                    self.changed(c)


# ==== What registrator knows, and what it may do ================================================

Claim = namedtuple("Claim", "service container running since ran")
# since: without interruption; ran: the same, while it runs
Known = namedtuple("Known", "told made ids runs")   # an inspect: when it was answered, as of when, what it says
Foreign = namedtuple("Foreign", "row check marked placed tolerant")
# an entry of somebody else's; tolerant: ours was changed into it, and either may be right


class Life:
    """One process: what it has been told since it began, and a judge of what it writes."""

    def __init__(self, registrator):
        self.r = registrator
        self.born = self.awake = self.now()
        self.known = {}         # container: the last inspect
        self.dead = {}          # container: when that was told
        self.lost = {}          # container: when it was told that it may have no services
        self.released = {}      # ID: (when, by which container, that runs on), told since it was written
        self.listed = self.seen = None      # (told, made) of the last good list of containers, of entries
        self.partly = False     # a list of entries had rows that cannot be read
        self.wrote = {}         # ID: (when, verb, fingerprint) that was done
        self.tried = {}         # ID: when a registration of it came
        self.has = {}           # folded ID: (container, since when it is registered)
        self.leaving = False    # -on-exit deregister

    def now(self):
        return asyncio.get_running_loop().time()

    def past(self, when):
        """What was told then has been understood."""
        return self.now() - max(when, self.awake) > MARGIN_S + 4 * self.r.model.lag()

    # -- what it is told

    def release(self, service_id, container, runs):
        self.released[service_id] = self.now(), container, runs

    def lose(self, container):
        known = self.known.pop(container, None)
        self.lost[container] = self.now()
        for service_id in known.ids if known else ():
            self.release(service_id, container, False)

    def heard(self, action, container, code):
        if action in ("die", "destroy"):
            self.lost[container] = self.now()
        if action not in ("die", "destroy") or (action == "die" and self.r.options.on_success and keeps(code)):
            return
        self.dead[container] = self.now()
        self.lose(container)
        for c in self.r.host.sharers(container):
            self.lose(c.id)

    def inspected(self, container, made, ids, runs):
        """ids: None if there is no such container."""
        if made <= self.dead.get(container, 0):
            return              # it is older than the death
        if ids is None:
            self.known.pop(container, None)
            return
        before = self.known.get(container)
        for service_id in before.ids - ids if before else ():
            self.release(service_id, container, runs)
        self.known[container] = Known(self.now(), made, ids, runs)
        if runs or ids:
            self.dead.pop(container, None)
        if not runs:
            self.lost[container] = self.now()
            for c in self.r.host.sharers(container):
                self.lose(c.id)

    # -- what it writes

    def knows(self, claim, now=False):
        """Whether it has learnt of the claim, and nothing since says otherwise; now: however short ago."""
        known = self.known.get(claim.container)
        if known is None or claim.service.id not in known.ids or known.made < claim.since \
                or (claim.running and not known.runs):
            return False
        mode = self.r.host.by_id(claim.container).mode
        if claim.running and oracle.shares_mode(mode):
            x = self.known.get(mode[len("container:"):])
            if x is None or not x.runs:
                return False
        return now or self.past(known.told)

    def has_seen(self, placed):
        """Whether it has been shown an entry that is there since then."""
        if self.seen is None:
            return placed < self.born and not self.partly
        crossed = 0.05 + 4 * self.r.model.lag()     # a list is not asked about a write that ends meanwhile
        return placed < self.seen[1] and (placed < self.born or (
            placed + crossed < self.seen[1] and self.past(self.seen[0])))

    def had(self, service_id):
        """Whether it was ours, as far as it knows."""
        return service_id in self.tried or service_id in self.wrote or self.r.store.before.get(service_id) is self.r

    def judge_drop(self, service_id):
        """Why this must not be removed, or None."""
        store, r = self.r.store, self.r
        if service_id not in store.services:
            return None
        if service_id in store.foreign:
            f, rivals = store.foreign[service_id], r.rivals(service_id)
            cleans = r.options.cleanup and oracle.is_usual(service_id, r.options.hostname)
            if f.tolerant or (cleans and not f.marked and not any(map(self.knows, rivals))):
                return None
            if self.has_seen(f.placed) or not (cleans or self.had(service_id)):
                return "removes an entry of somebody else's"
            return None
        writer, when = store.writer[service_id]
        if writer is not r:
            if self.has_seen(when) or not self.had(service_id):
                return "removes an entry of the other registrator's"
            return None
        return None if self.leaving else self.judge_removal(service_id)

    def judge_removal(self, service_id):
        claims = self.r.rivals(service_id)
        if any(claim.service.id != service_id for claim in claims):
            return None         # another spelling of the same ID may have won
        known_since = max([self.born] + ([self.listed[1]] if self.listed and self.past(self.listed[0]) else []))
        for claim in claims:
            if not claim.running and self.r.store.author.get(service_id) != claim.container:
                continue        # it is kept, but another's is registered
            who = self.r.host.short(claim.container)
            if self.knows(claim):
                return "removes a service of %s, which is known to want it" % who
            if claim.since < known_since and service_id not in self.released \
                    and claim.container not in self.dead:
                return "removes a service of %s, which has not been inspected" % who
        return self.judge_rename(service_id)

    def judge_rename(self, service_id):
        """The new name first."""
        when, container, runs = self.released.get(service_id, (0, None, False))
        known = self.known.get(container)
        if not runs or known is None or not known.runs or self.r.model.lag() > 0.03:
            return None         # or it is too close to tell
        port = re.search("(:[0-9]+(:udp)?)?$", service_id)[0]
        claims = [claim for claim in self.r.claims.values() if claim.container == container and claim.running]
        new = [claim.service.id for claim in claims if claim.service.id.endswith(port) and claim.since > self.born
               and claim.service.id in known.ids and not self.is_taken(claim)]
        if new and not any(self.tried.get(i, 0) >= when for i in new) and all(self.knows(claim) for claim in claims):
            return "removes the old name before %s is tried" % new[0]
        return None

    def is_taken(self, claim):
        """Another has the place."""
        store, i = self.r.store, claim.service.id
        return len(self.r.rivals(i)) > 1 or any(
            fold(i) == fold(other) and (other != i or store.is_of_others(other, self.r)) for other in store.services)

    def judge_put(self, service, mark, same):
        """The same of a registration; same: the agent has it so already."""
        r, store, i = self.r, self.r.store, service.id
        text = oracle.fingerprint(service)
        authors = r.history.get(text, {})
        if not MARK.fullmatch(mark):
            return "registers without a mark"
        if r.owner not in (None, mark[:16]):
            return "changes the owner in its mark"
        if any(o.owner == mark[:16] for o in r.host.registrators if o is not r):
            return "has the mark of the other registrator"
        if not authors and i not in r.shared_ids:
            known = [other for other in r.history if json.loads(other)[0] == i]
            return "registers what no container ever was, %s, but %s," % (text, known[-1:])
        if i in store.foreign:
            why = self.judge_over(service, store.foreign[i], any(authors.values()))
            if why:
                return why
        elif i in store.writer and store.writer[i][0] is not r:
            wrote, theirs = self.wrote.get(i), store.writer[i][1]
            if wrote and wrote[1] == "register" and wrote[0] < theirs and self.has_seen(theirs) \
                    and all(claim.since < wrote[0] for claim in r.rivals(i)):
                return "fights with the other registrator"
        for other, f in store.foreign.items():
            if other != i and fold(other) == fold(i) and not f.tolerant and not r.options.cleanup \
                    and self.has_seen(f.placed):
                return "registers what differs from somebody else's by case alone"
        if authors and all(self.past(self.dead[a]) for a in authors if a in self.dead) \
                and all(a in self.dead for a in authors):
            return "registers a container that is known to be dead"
        return self.judge_place(i, authors) or self.judge_need(i, text, same)

    def judge_over(self, service, f, usual):
        """Whether it may be written over an entry of somebody else's."""
        r, wrote = self.r, self.wrote.get(service.id)
        allowed = usual or not f.marked and f.row["Service"] == service.name and f.row["Port"] == service.port \
            and f.row["Address"] == service.address
        if f.tolerant or r.options.cleanup:
            return None
        if f.marked and wrote and wrote[1] == "register" and wrote[0] < f.placed and self.has_seen(f.placed) \
                and all(claim.since < wrote[0] for claim in r.rivals(service.id)):
            return "takes back what is contested"
        if not allowed and self.has_seen(f.placed):
            return "writes over an entry of somebody else's"
        return None

    def judge_place(self, i, authors):
        """Who has the ID and runs keeps it."""
        owner, when = self.has.get(fold(i), (None, 0))
        claims = self.r.rivals(i)
        for claim in claims:
            if claim.container == owner and claim.running and claim.since <= when and self.knows(claim, True) \
                    and self.lost.get(owner, 0) < when and owner not in authors and any(other.container in authors for other in claims) \
                    and all(other.ran > when for other in claims if other.container in authors):
                return "gives the place of %s to another" % self.r.host.short(owner)
        return None

    def judge_need(self, i, text, same):
        when, verb, last = self.wrote.get(i, (0, None, None))
        if same and self.r.model.agent_is_calm and verb == "register" and last == text and self.past(when):
            return "registers again what is registered"
        return None

    def did(self, verb, i, text=None):
        """It has been done."""
        self.wrote[i] = self.now(), verb, text
        authors = self.r.history.get(text, {})
        if verb == "register":
            if i in self.released and self.past(self.released[i][0]):
                del self.released[i]
            self.r.store.author[i] = next(iter(authors), None) if len(authors) == 1 else None
            if len(authors) == 1:
                (author,) = authors
                self.has[fold(i)] = author, self.now()
        elif self.has.get(fold(i)):
            del self.has[fold(i)]


# ==== The peers =================================================================================

class Told(tuple):
    """A message that means something: what it tells, and when it was made."""

    fact = None


def garbage(number):
    bodies = [b"", b"{", b"[{", b"<html><body>It works!</body></html>", b"\xff\xfe\x00", b'"', b"[" * 90 + b"]" * 90,
              b'{"message":"try again"', b"nul", b"{}}"]
    return bodies[number % len(bodies)]


STATUSES = [(500, "rpc error: deadline exceeded"), (503, "Service Unavailable"), (502, "<html>Bad Gateway</html>"),
            (429, "Too Many Requests"), (403, "Permission denied"), (400, "Bad Request")]


class Pace:
    """Nothing is asked for again and again: that would be a loop."""

    def __init__(self, model):
        self.model = model
        self.times = defaultdict(list)

    def of(self, what, life):
        times, now = self.times[what, life], self.model.now()
        times.append(now)
        if len(times) > OFTEN and now - times[-OFTEN] < OFTEN_S:
            self.model.wrong("a loop: %s %d times in %.1f s" % (what, OFTEN, now - times[-OFTEN]))


class Front:
    """One registrator's own way to a peer that all share: with faults of its own, and heard by its judge."""

    def attach_to(self, registrator, label):
        self.r, self.label = registrator, label
        self.lives, self.readers = {}, {}
        self.pace = Pace(registrator.model)
        self.note = ""

    async def serve(self, reader, writer):
        task = asyncio.current_task()
        self.lives[task], self.readers[task] = self.r.life, reader
        try:
            await super().serve(reader, writer)
        finally:
            del self.lives[task], self.readers[task]

    def life(self):
        return self.lives.get(asyncio.current_task())

    def ruled(self, request):
        """All answers are made here, so that the trace has them."""
        self.note = ""
        self.arrived(request)
        answer = super().ruled(request)
        if answer is None:
            answer = self.answer(request)
        self.r.say("%s %s%s" % (self.label, self.describe(request), self.note and ": " + self.note))
        return answer

    def answered(self, request, answer):
        reader = self.readers.get(asyncio.current_task())
        if isinstance(answer, Told) and not reader.at_eof() and self.life():
            self.told(self.life(), *answer.fact)

    def misbehave(self, what, kind, times, seconds, number):
        self.on(self.GLOBS[what], partial(self.fault, kind, seconds, number), times)

    def pretend(self, request):
        """It says that this has been done."""

    def fault(self, kind, seconds, number, request):
        """An answer that is wrong in this way."""
        does = kind in ("late", "done", "cut", "twice") or (kind in ("garbage", "status") and number % 4 == 3)
        answer = self.answer(request) if does else None
        if callable(answer):
            return None         # the event stream: it has faults of its own
        self.note = "%s%s" % (kind, self.note and " (%s)" % self.note)
        if kind == "late":
            self.note += " %d ms" % (seconds * 1000)
            return Late(seconds, answer)
        if kind in ("hang", "done"):
            return hang
        if kind == "after":     # done when nobody waits any more
            self.r.model.later(seconds, partial(self.execute, request, self.life()))
            return hang
        if kind == "cut":
            data = message(*answer)
            return data[:number * 37 % max(1, len(data) - 1)]
        if kind == "twice":
            return partial(self.twice, request, answer)
        if kind == "close":
            return b""
        if kind == "reset":
            return reset
        if kind == "status":
            return STATUSES[number % len(STATUSES)]
        if kind == "busy":
            return b"HTTP/1.1 429 Busy\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nbusy"
        if kind == "proxy":     # one that does not know the path, and says so
            return 404, ["<h1>Not Found</h1><p>The requested URL %s was not found on this server.</p>",
                         "Cannot GET %s", '{"timestamp":1,"status":404,"error":"Not Found","path":"%s"}',
                         '{"message":"page not found"}%.0s'][number % 4] % request.path
        if kind == "garbage":
            if not does:
                self.pretend(request)
            return 200, garbage(number)
        if kind == "rows":
            return self.odd_rows(request, number)
        if kind == "swallow":
            self.pretend(request)
            return 200, b""
        raise ValueError(kind)


    async def twice(self, request, answer, writer):
        writer.write(message(*answer) * 2)
        await writer.drain()
        self.answered(request, answer)
        await asyncio.sleep(2)


async def reset(writer):
    writer.transport.abort()


DEEP = "[" * 70 + "]" * 70


class Docker(Front, Engine):
    GLOBS = {"list": "GET " + LIST, "inspect": "GET /containers/*/json", "networks": "GET /networks*",
             "events": "GET /events", "info": "GET /info", "version": "GET /version", "any": "GET /containers/*"}

    def __init__(self, registrator, form, loss):
        Engine.__init__(self)
        self.attach_to(registrator, "engine")
        self.form = form
        self.chance = random.Random(loss)   # an event may be lost
        self.lossy = loss is not None
        self.fates = []         # of the next events: seconds of delay, or "twice"
        self.ears = {}          # event stream: whose it is

    def describe(self, request):
        kind, who = self.meaning(request)
        return "%s %s" % (kind, self.r.host.short(who) if kind == "inspect" else who) if who else kind

    def meaning(self, request):
        found = re.fullmatch("/containers/([^/]+)/json", request.path)
        if found:
            return "inspect", found[1]
        return ("list", "") if request.path == LIST else (request.path[1:], "")

    def arrived(self, request):
        if request.path == LIST:
            self.pace.of("the list of containers", self.life())

    def answer(self, request):
        answer = super().answer(request)
        if callable(answer):
            return answer
        kind, who = self.meaning(request)
        answer = Told(answer)
        answer.fact = kind, who, self.r.model.now(), None, False
        c = self.r.host.by_id(who)
        if kind == "inspect" and c:
            self.note = "%s %s" % (c.name, c.status)
            ids = frozenset(i for container, i in self.r.claims if container == who)
            answer.fact = kind, who, self.r.model.now(), ids, c.runs
        return answer

    def told(self, life, kind, who, made, ids, runs):
        if kind == "inspect":
            life.inspected(who, made, ids, runs)
        elif kind == "list":
            life.listed = self.r.model.now(), made

    def odd_rows(self, request, number):
        """A list with a row that cannot be read: one more, or instead of a real one."""
        rows = json.loads(self.answer(request)[1])
        odd = ['{"Id":5}', '{"Names":["/x"]}', DEEP, '"row"', '{"Id":"%s","Names":%s}' % ("a" * 64, DEEP)]
        texts = [json.dumps(row) for row in rows]
        if number % 2 and texts:
            del texts[number % len(texts)]
        texts.insert(number % (len(texts) + 1), odd[number // 2 % len(odd)])
        return 200, "[%s]" % ",".join(texts)

    # -- events

    async def follow(self, request, writer):
        self.ears[writer] = self.life()
        try:
            await super().follow(request, writer)
        finally:
            self.ears.pop(writer, None)

    def emit(self, action, who, kind="container", **attributes):
        fate = self.fates.pop(0) if self.fates else 0
        if self.lossy and self.chance.random() < 0.4:
            self.r.say("lost: %s %s" % (action, self.r.host.short(who["Id"])))
            return
        tell = partial(self.tell_all, action, who, kind, attributes)
        if fate == "twice":
            tell()
        if isinstance(fate, float):
            self.r.model.later(fate, tell)
        else:
            tell()

    def tell_all(self, action, who, kind, attributes):
        lives = {life for writer, life in self.ears.items() if writer in self.streams and not writer.is_closing()}
        super().emit(action, who, kind, **attributes)
        self.r.say("event %s %s%s" % (action, self.r.host.short(who["Id"]), "" if lives else ": nobody listens"))
        for life in lives:
            if life:
                life.heard(action, who["Id"], int(attributes.get("exitCode", 0)))


class Store:
    """What Consul's agent has: one, whoever asks it."""

    def __init__(self):
        self.services, self.checks, self.sent = {}, {}, {}
        self.foreign = {}       # ID: Foreign
        self.writer = {}        # ID: (registrator, when it was registered)
        self.unseen = {}        # ID: a check that stays there from an entry that was written over unseen
        self.before = {}        # ID: whose it was before it was another's
        self.author = {}        # ID: the container it was registered for

    def forget(self, i):
        for table in (self.services, self.checks, self.sent, self.foreign, self.writer, self.author, self.before,
                      self.unseen):
            table.pop(i, None)

    def set_writer(self, i, registrator, now):
        """It is that registrator's from now on, or somebody else's (None)."""
        writer = self.writer.pop(i, (None, 0))[0]
        if writer not in (None, registrator):
            self.before[i] = writer
        if registrator:
            self.writer[i] = registrator, now

    def is_of_others(self, i, registrator):
        return i in self.foreign or (i in self.writer and self.writer[i][0] is not registrator)

    def ours(self):
        return sorted(self.writer)


class Agent(Front, Consul):
    GLOBS = {"services": "GET /v1/agent/services", "put": "PUT " + REGISTER, "drop": "PUT %s*" % DEREGISTER,
             "write": "PUT *", "self": "GET /v1/agent/self", "leader": "GET /v1/status/leader", "any": "*"}

    def __init__(self, registrator, store):
        Consul.__init__(self)
        self.attach_to(registrator, "consul")
        self.store = store
        self.services, self.checks, self.sent = store.services, store.checks, store.sent
        self.actor = None       # the life whose request it is

    def describe(self, request):
        if request.path == REGISTER:
            text = "register %(ID)s port %(Port)s" % json.loads(request.body.decode())
            return text + (" and its checks" if request.query else "")
        if request.path.startswith(DEREGISTER):
            return "deregister " + unquote(request.path[len(DEREGISTER):])
        return request.path[len("/v1/"):]

    def arrived(self, request):
        """Judges a write."""
        life, why = self.life(), None
        if request.path == "/v1/agent/services":
            self.pace.of("the list of entries", life)
        if request.path == REGISTER and life:
            self.pace.of(json.loads(request.body.decode())["ID"], life)
            service, mark = oracle.read_registration(json.loads(request.body.decode()))
            row = self.services.get(service.id)
            same = row is not None and not self.store.is_of_others(service.id, self.r) and oracle.fingerprint(
                oracle.read_entry(row, self.checks.get(service.id))[0]) == oracle.fingerprint(service)
            why = life.judge_put(service, mark, same)
            life.tried[service.id] = life.now()
        elif request.path.startswith(DEREGISTER) and life:
            why = life.judge_drop(unquote(request.path[len(DEREGISTER):]))
        if why:
            self.r.say("%s %s" % (self.label, self.describe(request)))
            self.r.model.wrong("%s: %s" % (why, self.describe(request)))

    def answer(self, request):
        return self.execute(request, self.life())

    def execute(self, request, life):
        """Does it, as this process's."""
        self.actor = life
        if self.life() is None:
            self.r.say("now done: " + self.describe(request))
        answer = super().answer(request)
        if answer[0] == 200 and request.path == "/v1/agent/services":
            answer = Told(answer)
            answer.fact = "services", self.r.model.now()
        elif answer[0] != 200:
            self.note = "%d %.60s" % answer
        return answer

    def told(self, life, kind, made):
        life.seen = self.r.model.now(), made

    def put(self, service, replace=False):
        """As the agent does, for registrator."""
        read, mark = oracle.read_registration(service)
        i, store, life = read.id, self.store, self.actor
        late = self.life() is None
        if late and i in store.foreign:
            return              # that one has written it again
        theirs = store.foreign.pop(i, None)
        if theirs and life and not life.has_seen(theirs.placed):
            store.unseen[i] = theirs.check      # nobody knew that it has to be replaced
        super().put(service, replace)
        store.set_writer(i, self.r, self.r.model.now())
        self.r.owner = mark[:16]
        if life:
            life.did("register", i, oracle.fingerprint(read))

    def deregister(self, path):
        i = unquote(path[len(DEREGISTER):])
        if self.life() is None and self.store.is_of_others(i, self.r):
            return 200, b""
        answer = super().deregister(path)
        if answer[0] == 200:
            self.store.forget(i)
            if self.actor:
                self.actor.did("deregister", i)
        return answer

    def pretend(self, request):
        """It says that this has been done."""
        if request.path.startswith(DEREGISTER) and self.life():
            self.life().did("deregister", unquote(request.path[len(DEREGISTER):]))

    def without_marks(self, request):
        """The list as a proxy shows it that knows no Meta."""
        rows = json.loads(self.answer(request)[1])
        return 200, {i: {**row, "Meta": {}} for i, row in rows.items()}

    def odd_rows(self, request, number):
        """Instead of a list, one with a row that cannot be read."""
        rows = {i: json.dumps(row) for i, row in json.loads(self.answer(request)[1]).items()}
        odd = ['{"ID":5}', '{"ID":"zz","Service":"zz","Proxy":{"Config":%s}}' % DEEP, "5"]
        mine = self.store.ours()
        rows[mine[number % len(mine)] if number % 2 and mine else "zz"] = odd[number // 2 % len(odd)]
        if self.life():
            self.life().partly = True
        return 200, "{%s}" % ",".join("%s:%s" % (json.dumps(i), row) for i, row in rows.items())


# ==== registrator ===============================================================================

class Registrator(World):
    """One of those under test, its ways to the peers, and what it should have registered."""

    def __init__(self, model, number, binary, tmp, row):
        super().__init__(binary, tmp)
        self.model, self.number, self.host, self.store = model, number, model.host, model.store
        self.options, self.args = row
        self.engine = Docker(self, model.script.form, model.script.seed if model.script.lossy else None)
        self.engine.boxes, self.engine.drivers = self.host.boxes, self.host.drivers
        self.consul = Agent(self, self.store)
        self.life = self.owner = None
        self.claims = {}        # (container, ID): Claim
        self.history = defaultdict(dict)    # fingerprint: {container: it is a default ID}
        self.shared_ids = set()             # of containers in another's network
        self.wanted = True      # it is to run

    def say(self, text):
        self.model.say("r%d %s" % (self.number, text))

    async def open(self):
        self.docker = self.path("docker.sock")
        await self.listen("engine")
        self.socket = self.path("consul.sock") if self.model.script.seed % 2 else None
        self.port = 0
        await self.listen("consul")
        self.uri = "consul-unix://" + self.socket if self.socket else "consul://127.0.0.1:%d" % self.port

    async def listen(self, side):
        if side == "engine":
            await self.engine.listen(self.docker)
        elif self.socket:
            await self.consul.listen(self.socket)
        else:
            while not self.consul.servers:      # its port may have been lent to somebody
                try:
                    self.port = await self.consul.listen(port=self.port)
                except OSError:
                    await asyncio.sleep(0.1)

    async def begin(self):
        self.life = Life(self)
        await self.spawn("-hostname", self.options.hostname, *self.args, self.uri,
                         ASAN_OPTIONS="quarantine_size_mb=4:detect_leaks=0")
        self.say("runs")
        self.model.watches.append(asyncio.ensure_future(self.watch(self.proc)))

    async def has_spoken(self):
        """It catches signals before it says or asks anything.  False: it is not there."""
        while self.alive() and not os.path.getsize(self.runs[-1][1]):
            await asyncio.sleep(0.005)
        return self.alive()

    def alive(self):
        return self.proc is not None and self.proc.returncode is None and not self.may_end

    async def watch(self, proc):
        code = await proc.wait()
        if not self.may_end:
            self.model.wrong("registrator ended by itself with %d" % code)

    async def end(self, number):
        """It is told to, or killed, and is gone."""
        self.may_end = True
        if self.proc.returncode is None:
            self.life.leaving = number == signal.SIGTERM and "-on-exit" in self.args
            self.proc.send_signal(number)
            code = await asyncio.wait_for(self.proc.wait(), LIMIT_S)
            if number == signal.SIGTERM and code != 0:
                self.model.wrong("exit status %d on SIGTERM" % code)

    # -- what is wanted

    def services_of(self, c):
        """[Service], and whether it runs: else they may stay."""
        if c.runs:
            return oracle.services(c.box, self.host.peer(c), self.options, self.host.drivers)
        if not self.options.on_success or not keeps(c.code) or c.last is None \
                or (oracle.shares(c.last[0]) and c.last[1] is None):
            return []
        return oracle.services(*c.last, self.options, self.host.drivers)

    def want(self, host):
        """Something has changed."""
        now, claims = self.model.now(), {}
        for c in host.containers.values():
            if oracle.shares_mode(c.mode):
                self.shared_ids |= oracle.possible_ids(c.box, self.options)
            for s in self.services_of(c):
                old = self.claims.get((c.id, s.id))
                claims[c.id, s.id] = Claim(s, c.id, c.runs, old.since if old else now,
                                           old.ran if old and old.running else now)
                self.history[oracle.fingerprint(s)][c.id] = s.usual
        self.claims = claims

    def may_have_had(self, i):
        """The containers that have failed and may have had this ID: who has not seen them run cannot know better."""
        return [c.id for c in self.host.containers.values()
                if self.options.on_success and not c.runs and keeps(c.code)
                and fold(i) in map(fold, oracle.possible_ids(c.box, self.options))]

    def rivals(self, i):
        """All claims of the ID, however it is spelt."""
        return [claim for claim in self.claims.values() if fold(claim.service.id) == fold(i)]

    def winners(self, i):
        """Who may have it: those that run first."""
        claims = self.rivals(i)
        return [claim for claim in claims if claim.running] or claims


def refused(service):
    """Whether Consul takes no such registration."""
    check = service.check or {}
    return any(not re.fullmatch("[0-9]+(ns|us|ms|s|m|h)", check.get(key, "1s")) for key in ("Interval", "TTL"))


# ==== A script ==================================================================================

Script = namedtuple("Script", "seed modes registrators resync hup lossy form agent_is_calm ops siege besieged")
# registrators: [(Options, more arguments)]; ops: [(milliseconds, name, arguments...)];
# hup: the end needs a SIGHUP, since no resync comes and the registry was changed behind registrator's back;
# siege: a fault that stays, when all is right, while these (`besieged`) are done: they must come right all the same

NAMES = ["a", "bb", "web", "db", "app.1", "x-y"]
IDS = ["shared", "x1", "vault"]
OTHERS = ["vault", "consul", "h:bb:80", "h:gone:80", "far:web:80", "h:web:81:udp"]


KINDS = ["late", "hang", "done", "after", "cut", "close", "reset", "twice", "status", "busy", "proxy", "garbage",
         "rows", "swallow"]


class Writer:
    """Writes a script: what it knows of the engine is rough, for an operation may come to nothing."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.ops, self.now = [], 0
        self.boxes = {}         # number: [name, whether it runs]
        self.sharers = set()    # those in another's network
        self.numbers = itertools.count(1)
        self.ids, self.names = list(IDS), list(NAMES)
        self.kinds = self.rng.sample(KINDS, self.pick(1, 2, 4, len(KINDS)))     # of faults
        self.mild = self.chance(0.5)        # nothing but a resync could mend

    def chance(self, probability):
        return self.rng.random() < probability

    def pick(self, *values):
        return self.rng.choice(values)

    def add(self, *op):
        self.ops.append((self.now, *op))

    def wait(self, *values):
        self.now += self.pick(*values)

    def fresh(self, base):
        return "%s%d" % (base, next(self.numbers))

    # -- containers

    def spec(self, name, service_id=None):
        rng, chance, pick = self.rng, self.chance, self.pick
        ports = {}
        for key in rng.sample(["80/tcp", "81/tcp", "53/udp", "443/tcp"], pick(1, 1, 1, 2, 2, 3)):
            ports[key] = pick("any", "any", 8000 + len(self.boxes) * 10 + len(ports), None, "127.0.0.1:9%03d" % (
                len(self.ops) % 1000))
        env, labels = [], {}
        for key, values, likely in [
                ("NAME", ["one", "two", "Web site"], 0.3), ("TAGS", ["t", "a,b\\,c", "x,,y"], 0.3),
                ("COLOUR", ["red", "grün", ""], 0.3), ("80_NAME", ["eighty"], 0.15), ("81_IGNORE", ["1"], 0.1),
                ("443_TAGS", ["tls"], 0.1), ("80_WEIGHT", ["7"], 0.1), ("53_NAME", ["dns"], 0.1)]:
            if chance(likely):
                if chance(0.3):
                    labels["SERVICE_" + key] = rng.choice(values)
                else:
                    env.append("SERVICE_%s=%s" % (key, rng.choice(values)))
        if chance(0.35):
            kind = pick("HTTP", "TCP", "TTL", "SCRIPT", "CMD", "HTTPS")
            port = pick("", "", "80_")
            env.append("SERVICE_%sCHECK_%s=%s" % (port, kind, {"TTL": "30s", "TCP": "true"}.get(kind, pick(
                "/health", "/x?a=b"))))
            if chance(0.4):
                env.append("SERVICE_CHECK_INTERVAL=" + pick("5s", "15s", "15s", "15s", "10"))
            if chance(0.3):
                env.append("SERVICE_CHECK_TIMEOUT=2s")
        if chance(0.1):
            labels["addr"] = "10.5.5.5/24"
        if service_id is None and chance(0.35):
            service_id = rng.choice(self.ids)
        if service_id:
            env.append("SERVICE_%sID=%s" % (pick("", "", "80_"), service_id))
        mode = pick("bridge", "bridge", "default", "n1", "n2", "host", "none", "mv", "container")
        if mode == "container":
            peers = [number for number in self.boxes if number not in self.sharers]
            mode = "container:%d" % rng.choice(peers) if peers else "bridge"
        return {"name": name, "image": pick("app", "team/app:1.2", "registry:5000/db"), "env": env, "labels": labels,
                "mode": mode, "ports": ports, "policy": chance(0.5)}

    def new(self, name=None, service_id=None, start=True):
        free = [n for n in self.names if all(n != name for name, _ in self.boxes.values())]
        name = name or (self.rng.choice(free) if free else self.fresh("n"))
        spec = self.spec(name, service_id)
        number = next(self.numbers)
        self.boxes[number] = [name, False]
        if spec["mode"].startswith("container:"):
            self.sharers.add(number)
        self.add("create", number, spec)
        if start:
            self.start(number)
        return number

    def start(self, number):
        self.boxes[number][1] = True
        self.add("start", number)

    def die(self, number, *more):
        self.boxes[number][1] = False
        self.add("die", number, *more)

    def some(self, runs=None):
        found = [n for n, (_, state) in self.boxes.items() if runs in (None, state)]
        return self.rng.choice(found) if found else self.new(start=bool(runs))

    def stop(self):
        self.die(self.some(True), self.pick(0, 0, 137, 143), True)

    def crash(self):
        number, policy = self.some(True), self.chance(0.4)
        self.die(number, self.pick(1, 3, 127, 0, 128, 139), False, "restarting" if policy else "exited")
        if policy:
            self.wait(1, 5, 30)
            self.start(number)

    def restart(self):
        number = self.some(True)
        self.die(number, self.pick(0, 143), True)
        self.wait(0, 0, 1, 5, 20)
        self.boxes[number][1] = True
        self.add("start", number, "restart")

    def begin(self):
        self.start(self.some(False))

    def rename(self):
        number = self.some(self.pick(True, True, True, None))
        free = [n for n in self.names if all(n != name for name, _ in self.boxes.values())]
        name = self.rng.choice(free) if free and self.chance(0.6) else self.fresh("r")
        self.boxes[number][0] = name
        self.add("rename", number, name)

    def swap(self):
        one, other = self.some(), self.some()
        (old, _), (new, _) = self.boxes[one], self.boxes[other]
        gap = self.pick(0, 0, 3, 20)
        for number, name in [(one, "tmp"), (other, old), (one, new)]:
            self.add("rename", number, name)
            self.now += gap
        self.boxes[one][0], self.boxes[other][0] = new, old

    def recreate(self):
        """As compose does."""
        old = self.some(True)
        name, gap = self.boxes[old][0], self.pick(0, 1, 5)
        self.add("rename", old, self.fresh("old"))
        new = self.new(name, start=False)
        deeds = [lambda: self.die(old, 0, True), lambda: self.start(new)]
        for deed in deeds if self.chance(0.7) else reversed(deeds):
            self.now += gap
            deed()
        self.now += gap
        self.destroy(old)

    def replace(self):
        """rm -f, run."""
        old = self.some()
        name = self.boxes[old][0]
        self.destroy(old)
        self.wait(0, 0, 2, 10)
        self.new(name)

    def destroy(self, number=None):
        number = number or self.some()
        del self.boxes[number]
        self.add("destroy", number)

    def hand_over(self):
        """A SERVICE_ID goes from one to the next."""
        service_id = self.rng.choice(self.ids)
        old = self.new(service_id=service_id)
        self.wait(10, 40, 100)
        if self.chance(0.5):
            self.new(service_id=service_id)
            self.wait(0, 5, 30)
            self.die(old, self.pick(0, 3), False)
        else:
            self.die(old, self.pick(0, 3), False)
            self.wait(0, 1, 5)
            self.new(service_id=service_id)

    def network(self):
        self.add("attach", self.some(True), self.pick("n1", "n2", "aa"), self.chance(0.6))

    def pause(self):
        number = self.some(True)
        self.add("pause", number, True)
        self.wait(1, 10)
        self.add("pause", number, False)

    def noise(self):
        self.add("noise", self.some(), self.pick("update", "exec_create: sh", "attach", "health_status: healthy"))

    # -- faults

    def engine_fault(self):
        what = self.pick("list", "inspect", "inspect", "inspect", "networks", "events", "info", "version", "any")
        kinds = ["late", "late", "late", "hang", "cut", "close", "reset", "twice"]
        if what not in ("info", "version"):
            kinds += ["status", "garbage", "proxy"]
        if what == "list":
            kinds += ["rows", "rows"]
        self.rule("engine", what, kinds)

    def agent_fault(self):
        what = self.pick("services", "put", "put", "drop", "drop", "write", "self", "leader", "any")
        kinds = ["late", "late", "hang", "cut", "close", "reset", "twice"]
        if what not in ("self", "leader", "any"):
            kinds += ["status", "status", "proxy"]
        if what in ("put", "drop", "write"):    # to a write, 200 and garbage is a yes
            kinds += ["done", "busy"] + ([] if self.mild else ["after", "after", "swallow", "garbage"])
        if what == "services":
            kinds += ["rows", "rows", "garbage"]
        self.rule("consul", what, kinds)

    def rule(self, side, what, kinds):
        """The more of one kind in one script, the more often it meets what it harms."""
        kind = self.rng.choice([kind for kind in kinds if kind in self.kinds] or kinds)
        self.add("fault", self.who(), side, what, kind, self.pick(1, 1, 1, 2, 3, 5),
                 self.pick(0.01, 0.03, 0.1, 0.3) + self.pick(0, 0, 0, 1.1), self.rng.randrange(1000))
        for _ in range(self.pick(0, 0, 1, 3) if what in ("inspect", "networks") else 0):
            self.add("noise", self.some(True), "update")

    def who(self):
        return self.rng.randrange(2)        # of one registrator, that one

    def events(self):
        self.add("fates", self.who(), [self.pick("twice", 0.005, 0.03, 0.15) for _ in range(self.pick(1, 2, 5))])

    def stream(self):
        self.add("stream", self.who(), self.pick("end", "eof", "reset", "garbage", "half"))

    def engine_away(self):
        if self.chance(0.3):
            self.add("crash")
        else:
            self.add("away", "engine", None, self.pick(5, 50, 200, 500))

    def agent_away(self):       # an agent that begins anew closes its connections
        self.add("away", "consul", self.pick(None, None, "all", "ours"), self.pick(5, 50, 200, 500))

    def forget(self):
        self.add("forget", self.pick("all", "ours", "one", "one", "one"), self.rng.randrange(100), self.chance(0.5))

    def alter(self):
        self.add("alter", self.rng.randrange(100), self.pick("tags", "port", "address", "name", "mark", "usurp"))

    def foreign(self):
        if self.chance(0.3):
            self.add("others", self.rng.choice(OTHERS), None)
        else:
            self.add("others", self.rng.choice(OTHERS), self.others_row())

    def others_row(self):
        check = self.pick(None, None, {"TTL": "9s"})
        return {"Name": self.pick("vault", "app", "theirs"), "Port": OTHERS_PORT + self.rng.randrange(99),
                "Address": "10.9.9.9", "Tags": [], "Meta": self.pick({}, {}, {"registrator": OTHERS_MARK}),
                **({"Check": check} if check else {})}

    def ghost(self):
        self.add("ghost", self.who(), self.pick("old:thing:80", "ghost", "h:thing:80", "Ghost"))

    def kill(self):
        self.add("kill", self.who(), self.pick(9, 9, 9, 15), self.pick(0, 5, 50, 200))

    def freeze(self):
        self.add("freeze", self.who(), self.pick(20, 100, 300))

    def hang_up(self):
        self.add("signal", self.who(), self.pick("SIGHUP", "SIGHUP", "SIGUSR1"))

    def cut(self):
        self.add("cut", self.who(), self.pick("engine", "consul"))

    def besieged(self):
        """What is done while a fault stays: nothing that it could stand in the way of."""
        ops, self.ops, self.now = self.ops, [], 100
        self.now += self.pick(0, 0, 1500)       # a call that hangs is given up
        for _ in range(3):
            number = self.new(self.fresh("late"), start=False)
            self.ops[-1][2 + 1].update(mode=self.pick("bridge", "default", "n1"), env=[], labels={})
            self.start(number)
            self.wait(0, 50)
            self.rename() if self.chance(0.3) else self.stop()
            self.wait(0, 50)
        found, self.ops = self.ops, ops
        return found


SIEGES = ["list hangs", "list fails", "engine rows", "agent rows", "no marks", "networks fail", "an inspect hangs"]

LIFE = {Writer.new: 8, Writer.begin: 6, Writer.stop: 6, Writer.crash: 5, Writer.restart: 5, Writer.rename: 4,
        Writer.swap: 2, Writer.recreate: 4, Writer.replace: 4, Writer.destroy: 3, Writer.hand_over: 3,
        Writer.network: 4, Writer.pause: 1, Writer.noise: 2}
ENGINE = {Writer.engine_fault: 12, Writer.events: 5, Writer.stream: 4, Writer.engine_away: 2}
AGENT = {Writer.agent_fault: 12, Writer.agent_away: 3}
BEHIND = {Writer.forget: 3, Writer.alter: 5, Writer.foreign: 4, Writer.ghost: 2}
SIGNALS = {Writer.kill: 4, Writer.freeze: 1, Writer.hang_up: 2, Writer.cut: 2}


def write_script(seed):
    w = Writer(seed)
    chance, pick = w.chance, w.pick
    two, lossy, cases = chance(0.2), chance(0.2), chance(0.25)
    cases = cases and not two       # each would leave the place to the other, spelled its own way
    engine, agent, signals = chance(0.6), chance(0.6), chance(0.6)
    options = Options(internal=not two and chance(0.25), explicit=chance(0.1), ip=pick("", "", "", "192.0.2.77"),
                      tags=pick("", "", "", "all,of it"), label=pick("", "", "addr"), on_success=chance(0.35), cleanup=not two and chance(0.2))
    resync = pick(2, 4) if lossy else pick(0, 2, 4) if two else pick(0, 0, 2, 4, 60)
    w.mild = w.mild and not two
    more = ["-resync", str(resync)]
    for name in ("internal", "explicit", "cleanup"):
        more += ["-" + name] if getattr(options, name) else []
    for name, value in (("ip", options.ip), ("tags", options.tags), ("useIpFromLabel", options.label)):
        more += ["-%s=%s" % (name, value)] if value else []
    more += ["-deregister", "on-success"] if options.on_success else []
    more += ["-on-exit", "deregister"] if chance(0.15) else []
    rows = [(options, more)]
    if two:
        other = pick("inner", "inner", options.hostname)
        rows.append((options._replace(hostname=other, internal=True), [*more, "-internal"]))
    if cases:
        w.ids += ["Shared", "SHARED", "X1"]
        w.names += ["Web", "DB"]
    modes = [word for word, on in [("two", two), ("lossy", lossy), ("cases", cases), ("engine faults", engine),
                                   ("agent faults", agent), ("signals", signals)] if on]

    w.add("order", pick(["die", "net"], ["net", "die"]))
    for _ in range(pick(0, 2, 4)):
        w.new()
        if chance(0.2):
            w.stop()
    for _ in range(pick(0, 0, 1, 2) + 2 * agent):
        w.foreign()
    moves = {**LIFE, **(ENGINE if engine else {}), **(AGENT if agent else {}), **(SIGNALS if signals else {}),
             **(BEHIND if agent and not w.mild else {})}
    moves = {move: weight * pick(0.2, 1, 1, 3) for move, weight in moves.items()}   # each script dwells on some
    w.add("begin", 0)
    w.wait(0, 50, 100)
    w.add("begin", 1)
    w.wait(20, 100, 200)
    for _ in range(pick(30, 80, 160)):
        if len(w.boxes) > 12:
            w.destroy()
        w.rng.choices(list(moves), moves.values())[0](w)
        w.now += pick(0, 0, 1, 3, 10, 30, 60)
    siege, besieged = None, []
    if chance(0.3):
        siege = pick(*[s for s in SIEGES if s != "no marks" or not (two or options.cleanup)])
        modes.append(siege)
        besieged = w.besieged()
    hup = resync == 60 or (resync == 0 and (two or (agent and not w.mild) or any("rows" in op for op in w.ops)))
    return Script(seed, modes, rows, resync, hup, lossy, pick("1.10", "1.10", "29"), not agent, w.ops, siege, besieged)


# ==== Running one ===============================================================================

class Model:
    """The world of one script."""

    def __init__(self, binary, script, haste, tmp):
        self.script, self.haste = script, haste
        self.trace = []
        self.began = None
        self.at_rest = 0        # all behave; and so many lists have been asked for since
        self.failure = None
        self.pending = 0        # deeds put off
        self.tasks, self.watches = [], []
        self.lags = collections.deque([0], 200)
        self.store = Store()
        self.agent_is_calm = script.agent_is_calm
        self.registrators = []
        self.host = Host(script.seed, self.registrators, self.say)
        for number, row in enumerate(script.registrators):
            folder = os.path.join(tmp, "r%d" % number)
            os.mkdir(folder)
            self.registrators.append(Registrator(self, number, binary, folder, row))

    def now(self):
        return asyncio.get_running_loop().time()

    async def tick(self):
        """How late this process has been of late: so late may be all others, too."""
        while True:
            began = self.now()
            await asyncio.sleep(0.01)
            self.lags.append(self.now() - began - 0.01)

    def lag(self):
        return max(self.lags)

    def say(self, text):
        if self.at_rest and text.endswith(("engine list", "consul agent/services")):
            self.at_rest += 1
            if self.at_rest > 20:
                return          # the rest of them is no news
        self.trace.append("%7.3f %s" % (self.now() - self.began, text))

    def wrong(self, text):
        """Something that must never be."""
        if self.failure is None:
            self.failure = text
            self.say("WRONG: " + text)

    def later(self, seconds, deed):
        def do():
            self.pending -= 1
            deed()
        self.pending += 1
        asyncio.get_running_loop().call_later(seconds, do)

    def check(self):
        if self.failure is not None:
            raise Failure(self.failure)

    async def run(self):
        self.began = self.now()
        self.watches.append(asyncio.ensure_future(self.tick()))
        try:
            for r in self.registrators:
                await r.open()
            await self.do(self.script.ops)
            await self.quiet()
            await self.come_right()
            await self.rest()
            if self.script.siege:
                await self.siege(self.script.siege)
            await self.leave()
        finally:
            for task in self.tasks + self.watches:
                task.cancel()       # before the processes: one may be about to begin
            await asyncio.gather(*self.tasks, *self.watches, return_exceptions=True)
            for r in self.registrators:
                r.engine.close()
                r.consul.close()
                if r.proc and r.proc.returncode is None:
                    r.proc.kill()
                    await r.proc.wait()

    async def do(self, ops):
        began = self.now()
        for number, (at, name, *arguments) in enumerate(ops):
            while self.now() < began + at / 1000:
                await asyncio.sleep(began + at / 1000 - self.now())
            self.check()
            self.say("-- %d %s %s" % (number, name, " ".join(map(str, arguments))))
            result = getattr(self, "do_" + name)(*arguments)
            if asyncio.iscoroutine(result):
                self.tasks.append(asyncio.ensure_future(result))
            await asyncio.sleep(0)

    # -- operations: the engine

    def box(self, number):
        return self.host.containers.get(number)

    def do_order(self, order):
        self.host.order = order

    def do_create(self, number, spec):
        self.host.create(number, spec)

    def do_start(self, number, action="start"):
        if self.box(number):
            self.host.start(self.box(number), action)

    def do_die(self, number, *more):
        if self.box(number):
            self.host.die(self.box(number), *more)

    def do_destroy(self, number):
        if self.box(number):
            self.host.destroy(self.box(number))

    def do_rename(self, number, name):
        if self.box(number):
            self.host.rename(self.box(number), name)

    def do_attach(self, number, net, on):
        if self.box(number):
            self.host.attach(self.box(number), net, on)

    def do_pause(self, number, on):
        if self.box(number):
            self.host.pause(self.box(number), on)

    def do_noise(self, number, action):
        if self.box(number):
            self.host.emit(action, self.box(number))

    # -- faults

    def one(self, number):
        return self.registrators[number % len(self.registrators)]

    def front(self, number, side):
        return getattr(self.one(number), side)

    def do_fault(self, number, side, *more):
        self.front(number, side).misbehave(*more)

    def do_fates(self, number, fates):
        self.one(number).engine.fates += fates

    def do_stream(self, number, how):
        engine = self.one(number).engine
        if how == "reset":
            for writer in engine.streams:
                writer.transport.abort()
            engine.streams.clear()
        else:
            engine.end_events({"end": b"0\r\n\r\n", "eof": b"", "garbage": b"5\r\n}{]]x\r\n",
                               "half": b'14\r\n{"status":"start","i\r\n'}[how])

    async def do_crash(self):
        self.host.crash_all()
        await self.do_away("engine", None, 30)

    async def do_away(self, side, forgets, ms):
        """Nobody listens for a while."""
        for r in self.registrators:
            getattr(r, side).close()
        if forgets:
            self.forget(forgets)
        await asyncio.sleep(ms / 1000)
        for r in self.registrators:
            if not getattr(r, side).servers:
                await r.listen(side)

    def do_cut(self, number, side):
        self.front(number, side).drop()

    # -- the agent's entries

    def do_forget(self, which, number, drops):
        self.forget(which, number)
        if drops:
            for r in self.registrators:
                r.consul.drop()

    def forget(self, which, number=0):
        ours = self.store.ours()
        chosen = {"all": list(self.store.services), "ours": ours,
                  "one": ours[number % len(ours):][:1] if ours else []}[which]
        for i in chosen:
            self.store.forget(i)
        self.say("forgot " + " ".join(chosen))

    def do_alter(self, number, what):
        ours = self.store.ours()
        if not ours:
            return
        i = ours[number % len(ours)]
        self.say("alters " + i)
        row = self.store.services[i] = copy.deepcopy(self.store.services[i])
        if what == "tags":
            row["Tags"] = [*row["Tags"], "altered"]
        elif what == "port":
            row["Port"] += 1
        elif what == "address":
            row["Address"] = "10.8.8.8"
        elif what == "name":
            row["Service"] += "-x"
        elif what == "mark":
            row["Meta"] = {}
            self.is_of_others(i, tolerant=True)
        else:
            row["Meta"] = {"registrator": OTHERS_MARK}
            self.is_of_others(i)

    def is_of_others(self, i, tolerant=False):
        row = self.store.services[i]
        self.store.set_writer(i, None, self.now())
        self.store.author.pop(i, None)
        self.store.foreign[i] = Foreign(copy.deepcopy(row), copy.deepcopy(self.store.checks.get(i)),
                                        bool(row["Meta"]), self.now(), tolerant)

    def do_others(self, i, row):
        """Somebody else registers it, or takes it away."""
        store = self.store
        if row is None:
            if i in store.foreign:
                store.forget(i)
            return
        ours = i in store.writer
        writer = store.writer.get(i)
        if i not in store.services and any(fold(i) == fold(other) for other in store.services):
            return              # there they are one: nobody tells what this means
        store.forget(i)
        if writer:
            store.writer[i] = writer
        Consul.put(self.registrators[0].consul, {"ID": i, **row})
        self.is_of_others(i, tolerant=ours and not row["Meta"])

    def do_ghost(self, number, i):
        """An entry with our mark that no container explains."""
        r = self.one(number)
        if r.owner and not any(fold(i) == fold(other) for other in self.store.services):
            Consul.put(r.consul, {"ID": i, "Name": "ghost", "Port": 1, "Address": "10.7.7.7",
                                  "Meta": {"registrator": r.owner + "-" + "7" * 24}})
            self.store.set_writer(i, r, self.now())

    # -- registrator

    async def do_begin(self, number):
        if number < len(self.registrators):
            await self.registrators[number].begin()

    async def do_kill(self, number, sign, ms):
        r = self.one(number)
        if r.alive() if sign == signal.SIGKILL else await r.has_spoken():
            await r.end(sign)
            self.say("r%d is dead" % r.number)
            await asyncio.sleep(ms / 1000)
            await r.begin()

    async def do_freeze(self, number, ms):
        r = self.one(number)
        if r.alive():
            proc = r.proc
            proc.send_signal(signal.SIGSTOP)
            r.life.awake = self.now() + ms / 1000 + 1
            await asyncio.sleep(ms / 1000)
            if proc.returncode is None:
                proc.send_signal(signal.SIGCONT)
            r.life.awake = self.now()

    async def do_signal(self, number, name):
        if await self.one(number).has_spoken():
            self.one(number).proc.send_signal(getattr(signal, name))

    # -- the end: all behave

    async def quiet(self):
        self.say("== quiet")
        for r in self.registrators:
            for peer in (r.engine, r.consul):
                peer.behave()
            r.engine.fates.clear()
            r.engine.lossy = False
        await asyncio.gather(*self.tasks)
        while self.pending:
            await asyncio.sleep(0.01)
        for r in self.registrators:
            for peer in (r.engine, r.consul):
                peer.behave()
        if self.script.hup:
            await self.hang_up()
        self.say("== all behave")
        self.at_rest = 1

    async def hang_up(self):
        """In the place of a resync, when they have been told all."""
        await asyncio.sleep(MARGIN_S + 4 * self.lag())
        for r in self.registrators:
            await self.do_signal(r.number, "SIGHUP")

    async def come_right(self):
        end = self.now() + LIMIT_S
        while self.differences():
            self.check()
            if self.now() > end:
                raise Failure("never right", *self.differences())
            await asyncio.sleep(0.02)
        self.say("== right")

    async def rest(self):
        """Nothing but the lists of a resync is asked, at its pace; what was put off may come before."""
        end, pace = self.now() + LIMIT_S, self.script.resync / self.haste
        late = defaultdict(int)
        while True:
            marks = [(peer, len(peer.requests)) for r in self.registrators for peer in (r.engine, r.consul)]
            began, odd, busy = self.now(), [], [r.cpu_s() for r in self.registrators]

            def lists():
                return [sum(1 for q in peer.requests[n:] if q.path.endswith(("/services", LIST))) for peer, n in marks]
            while not odd:
                await asyncio.sleep(0.02)
                self.check()
                passed = self.now() - began
                if self.now() > end:
                    raise Failure("no rest", "lists since %.1f s: %s" % (passed, lists()))
                odd = [(peer, q) for peer, n in marks for q in peer.requests[n:] if self.is_odd(q)]
                if pace in (0, 60 / self.haste):
                    if passed > REST_S and sum(lists()) == 0:
                        break
                    odd = odd or [(peer, "list") for (peer, _), n in zip(marks, lists()) if n > 0]
                elif min(lists()) >= REST_LISTS:
                    break
            if not odd:
                if max(lists()) > 1 + 2 * passed / (pace or 1):
                    raise Failure("lists more often than each %.2f s" % pace, "%s in %.2f s" % (lists(), passed))
                busy = [r.cpu_s() - before for r, before in zip(self.registrators, busy)]
                if max(busy) > 0.2 + passed / 2:
                    raise Failure("busy at rest", "%s s of processor time in %.2f s" % (busy, passed))
                return self.still_right()
            for what in {q if isinstance(q, str) else peer.describe(q) for peer, q in odd}:
                late[what] += 1
                if late[what] > 6:
                    raise Failure("no rest: %s again and again" % what)

    async def siege(self, kind):
        """A fault that stays harms nothing but what it stands in the way of."""
        self.say("== " + kind)
        self.at_rest = 0
        self.agent_is_calm = False
        began = self.now()
        touched = {op[2] for op in self.script.besieged}
        quiet = [c for c in self.host.containers.values() if c.runs and c.number not in touched]
        stuck = quiet[0].id if quiet else "none"
        for r in self.registrators:
            e, a = r.engine, r.consul
            peer, glob, answer = {
                "list hangs": (e, "GET " + LIST, hang), "list fails": (e, "GET " + LIST, (500, "try again")),
                "engine rows": (e, "GET " + LIST, lambda q, e=e: e.odd_rows(q, 2)),
                "agent rows": (a, "GET /v1/agent/services", lambda q, a=a: a.odd_rows(q, 2)),
                "no marks": (a, "GET /v1/agent/services", lambda q, a=a: a.without_marks(q)),
                "networks fail": (e, "GET /networks*", (403, "no")),
                "an inspect hangs": (e, "GET /containers/%s/json" % stuck, hang)}[kind]
            peer.on(glob, answer)
        if kind == "an inspect hangs" and quiet:
            self.host.emit("update", quiet[0])
        await self.do(self.script.besieged)
        if self.script.hup:
            await self.hang_up()
        await self.come_right()
        self.say("== over, after %.1f s" % (self.now() - began))
        for r in self.registrators:
            r.engine.behave()
            r.consul.behave()
        await self.come_right()
        await self.rest()

    def is_odd(self, q):
        """Whether nobody should ask for it at rest; what Consul refuses is tried again."""
        if q.path == REGISTER:
            body = json.loads(q.body.decode())
            return not any(refused(claim.service) for r in self.registrators for claim in r.rivals(body["ID"]))
        return not q.path.endswith(("/services", LIST))

    def still_right(self):
        lines = self.differences()
        if lines:
            raise Failure("right, and wrong again at rest", *lines)

    async def leave(self):
        self.say("== the end")
        for r in self.registrators:
            foreign = {i: self.store.services[i] for i in self.store.foreign}
            await r.has_spoken()
            began = self.now()
            await r.end(signal.SIGTERM)
            self.check()
            if self.now() - began > 3 / self.haste:
                continue        # it has no more than 4.5 s for that; this machine was busy
            own = [i for i, (writer, _) in self.store.writer.items() if writer is r]
            if "-on-exit" in r.args and own:
                raise Failure("still there after -on-exit deregister: %s" % " ".join(own))
            if any(self.store.services.get(i) != row for i, row in foreign.items()):
                raise Failure("takes somebody else's with it")
        for r in self.registrators:
            if r.engine.complaints + r.consul.complaints:
                raise Failure("the peers complain", *r.engine.complaints + r.consul.complaints)
            for path in [path for run in r.runs for path in run]:
                with open(path, "rb") as f:
                    clean_text(f.read())

    def differences(self):
        """How the registry differs from what is wanted, a line each."""
        store, lines = self.store, []
        claims = defaultdict(list)      # folded ID: [(registrator, claim)]
        for r in self.registrators:
            for claim in r.claims.values():
                if claim in r.winners(claim.service.id):
                    claims[fold(claim.service.id)].append((r, claim))
        rows = defaultdict(list)
        for i in store.services:
            rows[fold(i)].append(i)
        for i in sorted({*claims, *rows}):
            must = [claim for _, claim in claims[i] if claim.running]
            if must and not rows[i] and not any(refused(claim.service) for claim in must):
                lines.append("missing: " + must[0].service.id)
            if len(rows[i]) > 1:
                lines.append("two in one place: " + " ".join(rows[i]))
            for row in rows[i]:
                lines += self.foreign_row(row, claims[i]) if row in store.foreign else self.our_row(row, claims[i])
        return lines

    def our_row(self, i, claims):
        """What is wrong with an entry that registrator wrote."""
        service, mark = oracle.read_entry(self.store.services[i], self.store.checks.get(i))
        writer, want = self.store.writer[i][0], []
        if self.may_stay(writer, i):
            return []
        for r, claim in claims:
            if claim.service.id != i or r is not writer or not claim.running:
                continue
            if refused(claim.service):
                return []       # it may be as it was
            want.append(oracle.fingerprint(claim.service))
            if not claim.service.check and (    # one that was written at the same time, by whomever, may stay
                    len(self.registrators) > 1 or self.store.unseen.get(i) == service.check):
                want.append(oracle.fingerprint(claim.service._replace(check=service.check)))
        if not want:
            return ["too much: %s, of %s; may be kept for %s: %s" % (
                i, self.host.shown(self.store.author.get(i)),
                " ".join(map(self.host.shown, writer.may_have_had(i))) or "nobody", oracle.fingerprint(service))]
        if oracle.fingerprint(service) not in want:
            return ["differs: %s" % one for one in want] + ["     is: " + oracle.fingerprint(service)]
        return [] if mark[:16] == writer.owner else ["the mark of %s is %s" % (i, mark)]

    def may_stay(self, r, i):
        """Whether a container that has failed may keep it, and none that runs wants it: one that has been registered
        for another container since registrator began is known to be none of its."""
        claims = r.rivals(i)
        known = r.life.wrote.get(i, (0, None))[1] == "register"
        failed = r.may_have_had(i)
        return not any(claim.running for claim in claims) and bool(failed) and (
            not known or self.store.author.get(i) in (None, *failed))

    def foreign_row(self, i, claims):
        """The same of an entry of somebody else's: is it still there though it is ours to take?"""
        f, row = self.store.foreign[i], self.store.services[i]
        if row != f.row or self.store.checks.get(i) != f.check:
            return ["not theirs any more: %s %s" % (i, row)]
        if not claims:
            due = not f.marked and any(r.options.cleanup and oracle.is_usual(i, r.options.hostname)
                                       for r in self.registrators)
            return ["-cleanup left: " + i] if due else []
        mine = [claim for _, claim in claims if claim.running]
        if any(refused(claim.service) for claim in mine) or (f.marked and f.placed > self.began):
            return []           # the latter may be contested
        due = mine and len(self.registrators) == 1 and all(
            claim.service.id == i and (claim.service.usual or not f.marked and (
                f.row["Service"], f.row["Address"], f.row["Port"]) == (
                    claim.service.name, claim.service.address, claim.service.port)) for claim in mine)
        if due or (mine and any(r.options.cleanup and not f.marked for r in self.registrators)
                   and all(claim.service.id == i for claim in mine)):
            return ["not taken over: " + i]
        return []


# ==== Many ======================================================================================

async def play(binary, script, haste, tmp):
    """(None or a Failure, the trace)"""
    model = Model(binary, script, haste, tmp)
    failure = None
    try:
        await model.run()
        model.check()
    except Failure as e:
        failure = e
    except Exception as e:      # a mistake of the test is a failure too
        await asyncio.sleep(0.1)
        failure = Failure(model.failure or "%s: %s" % (type(e).__name__, e), *traceback.format_exc().splitlines())
    logs = ["r%d log: %s" % (r.number, repr(line[:400])[1:-1])
            for r in model.registrators if r.runs for line in last_words(r.log)]
    return failure, model.trace, logs


def last_words(log):
    """Its last lines, or what a sanitizer has to say."""
    lines = log.splitlines()
    found = [n for n, line in enumerate(lines) if re.search("ERROR: .*Sanitizer|runtime error:", line)]
    return lines[found[0]:][:60] if found else lines[-30:]


def run_script(binary, script, haste):
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="model-") as tmp:
        return asyncio.run(play(os.path.abspath(binary), script, haste, tmp))


def title(script):
    """Options and modes, in a line."""
    return "; ".join([" ".join(row[1]) for row in script.registrators] + script.modes)


def run_seed(binary, seed, haste):
    """The lines of its result."""
    script = write_script(seed)
    failure, trace, logs = run_script(binary, script, haste)
    if failure is None:
        return ["ok model %d" % seed]
    again = "all of it: python3 tests/model.py %s --haste %d --trace %d" % (binary, haste, seed)
    return ["not ok model %d: %s" % (seed, failure)] + ["  " + line for line in [
        *failure.details, title(script), *trace[-SHOWN:], *logs, again]]


def shrink(binary, script, haste, tries=3):
    """Drops operations, many at once and then single ones, as long as it still fails in the same way."""
    def reason(ops):
        for _ in range(tries):
            failure = run_script(binary, script._replace(ops=ops), haste)[0]
            if failure is not None:
                return re.sub("[:,].*", "", " ".join([str(failure), *failure.details[:1]]))
        return None

    ops, size = script.ops, len(script.ops) // 2
    why = reason(ops)
    while why and size > 0:
        at = 0
        while at < len(ops):
            fewer = ops[:at] + [op for op in ops[at:at + size] if op[1] == "begin"] + ops[at + size:]
            if fewer != ops and reason(fewer) == why:
                ops = fewer
                print("# %d operations: %s" % (len(ops), why), flush=True)
            else:
                at += size
        size //= 2
    return script._replace(ops=ops)


def show(binary, script, haste):
    failure, trace, logs = run_script(binary, script, haste)
    print("\n".join(["# " + title(script), *trace, *logs]))
    print("ok" if failure is None else "not ok: %s" % "\n  ".join([str(failure), *failure.details]))
    return int(failure is not None)


def child(pipe, *args):
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # its parent tells it
    pipe.send(run_seed(*args))


def run_many(binary, seeds, jobs, haste, endless):
    """Each seed in a process of its own; prints the results as they come, and gives the exit status."""
    failed = done = 0
    running = {}        # where its lines come from: (process, seed)
    seeds = iter(seeds)
    try:
        while True:
            for seed in itertools.islice(seeds, jobs - len(running)):
                here, there = multiprocessing.Pipe(False)
                running[here] = multiprocessing.Process(target=child, args=(there, binary, seed, haste)), seed
                running[here][0].start()
                there.close()
            if not running:
                return int(failed > 0 or not done)
            for pipe in multiprocessing.connection.wait(running):
                process, seed = running.pop(pipe)
                try:
                    lines = pipe.recv()
                except EOFError:
                    lines = ["not ok model %d: its process ended" % seed]
                process.join()
                done += 1
                failed += lines[0].startswith("not ok")
                if not endless or lines[0].startswith("not ok"):
                    print("\n".join(lines), flush=True)
                if endless and done % 100 == 0:
                    print("# %d seeds, %d failed" % (done, failed), flush=True)
    finally:
        for process, _ in running.values():     # it ends its registrator
            process.terminate()
        for process, _ in running.values():
            process.join()


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("binary")
    parser.add_argument("--seeds", default="1-40")
    parser.add_argument("-j", type=int, default=8)
    parser.add_argument("--modes", default="")
    parser.add_argument("--limit", type=int, default=LIMIT_S)
    parser.add_argument("--haste", type=int, default=10)
    parser.add_argument("--trace", type=int)
    parser.add_argument("--shrink", type=int)
    o = parser.parse_args()
    globals()["LIMIT_S"] = o.limit
    if o.trace is not None:
        return show(o.binary, write_script(o.trace), o.haste)
    if o.shrink is not None:
        return show(o.binary, shrink(o.binary, write_script(o.shrink), o.haste), o.haste)
    first, _, last = o.seeds.partition("-")
    seeds = range(int(first), int(last) + 1) if last else itertools.count(int(first))
    seeds = (seed for seed in seeds if re.search(o.modes, title(write_script(seed))))
    return run_many(o.binary, seeds, o.j, o.haste, not last)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
