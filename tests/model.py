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
  - after a rename, a removal of the old ID while the new one has not been registered, or refused;
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
import traceback
from collections import defaultdict, namedtuple
from functools import partial
from urllib.parse import unquote

import oracle
from fakes import DEREGISTER, REGISTER, Consul, Engine, Late, box, hang, message, state_of
from oracle import fold
from peers import Failure, World, clean_text
from script import OTHERS_MARK, write_script

MARGIN_S = 0.3
LIMIT_S = 40        # to come right, when all faults are over
REST_LISTS = 4      # of each peer, while nothing else is asked
OFTEN, OFTEN_S = 40, 1.0    # so often in so long: a loop.  Lists are 0.1 s apart
SHOWN = 200         # lines of a trace; --trace prints all
REST_S = 0.5        # or so long, without a resync
MARK = re.compile("[0-9a-f]{16}-[0-9a-f]{24}")
LIST, SERVICES = "/containers/json", "/v1/agent/services"


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
        c = self.by_id(container_id)
        return "c%d" % c.number if c else container_id[:12]

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
        there = net in c.nets
        if not c.nets or self.driver(c.nets[0]) != "bridge" or there == on or (there and len(c.nets) == 1):
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
Known = namedtuple("Known", "told made ids runs")
# an inspect: when it was answered, as of when, what it says
Foreign = namedtuple("Foreign", "row check marked place placed tolerant")
# an entry of somebody else's; place: its name, address and port; placed: when; tolerant: ours was changed
# into it, and it may be taken for either


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
        self.asked = set()      # IDs: a registration has come
        self.tried = {}         # ID: when one had been answered, or was not going to be
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
        if action not in ("die", "destroy"):
            return
        self.lost[container] = self.now()
        if action == "die" and self.r.options.on_success and keeps(code):
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
        return service_id in {*self.asked, *self.wrote} or self.r.store.before.get(service_id) is self.r

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
        spellings = {*(claim.service.id for claim in claims), *(i for known in self.known.values() for i in known.ids)}
        if any(i != service_id and fold(i) == fold(service_id) for i in spellings):
            return None         # another spelling of the same ID may have won
        known_since = self.listed[1] if self.listed and self.past(self.listed[0]) else self.born
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
        new = [claim.service.id for claim in claims if claim.service.id.endswith(port)
               and claim.since > self.born and claim.service.id in known.ids and not self.is_taken(claim)]
        if new and not any(self.tried.get(i, 0) >= when for i in new) and all(map(self.knows, claims)):
            return "removes the old name before %s is tried" % new[0]
        return None

    def is_taken(self, claim):
        """Another has the place."""
        store, i = self.r.store, claim.service.id
        return len(self.r.rivals(i)) > 1 or any(
            fold(i) == fold(other) and (other != i or store.is_of_others(other, self.r))
            for other in store.services)

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
        allowed = usual or (not f.marked and f.place == service[1:4])
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
        later = [claim.ran > when for claim in self.r.rivals(i) if claim.container in authors]
        has = [claim for claim in self.r.rivals(i) if claim.container == owner and claim.running
               and claim.since <= when and self.knows(claim, True)]
        if has and self.lost.get(owner, 0) < when and owner not in authors and later and all(later):
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
    bodies = [b"", b"{", b"[{", b"<html><body>It works!</body></html>", b"\xff\xfe\x00", b'"',
              b"[" * 90 + b"]" * 90, b'{"message":"try again"', b"nul", b"{}}"]
    return bodies[number % len(bodies)]


STATUSES = [(500, "rpc error: deadline exceeded"), (503, "Service Unavailable"),
            (502, "<html>Bad Gateway</html>"), (429, "Too Many Requests"), (403, "Permission denied"),
            (400, "Bad Request")]


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
        if not isinstance(answer, (tuple, Late)):
            self.ended(request)
        return answer

    def ended(self, request):
        """It has its answer, or will have none."""

    def answered(self, request, answer):
        self.ended(request)
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
        if kind == "hang" and request.path == "/events":    # for ever: Docker 1.7 does so, if nothing happens
            self.r.model.later(seconds, lambda: None)
            return Late(seconds, b"")
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
    """The engine."""

    GLOBS = {"list": "GET " + LIST, "inspect": "GET /containers/*/json", "networks": "GET /networks*",
             "events": "GET /events", "info": "GET /info", "version": "GET /version",
             "any": "GET /containers/*"}

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
        return "inspect " + self.r.host.short(who) if kind == "inspect" else kind

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
        lives = {life for writer, life in self.ears.items()
                 if writer in self.streams and not writer.is_closing()}
        super().emit(action, who, kind, **attributes)
        self.r.say("event %s %s%s" % (action, self.r.host.short(who["Id"]),
                                      "" if lives else ": nobody listens"))
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
        for table in (self.services, self.checks, self.sent, self.foreign, self.writer, self.author,
                      self.before, self.unseen):
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
    """Consul's agent."""

    GLOBS = {"services": "GET " + SERVICES, "put": "PUT " + REGISTER, "drop": "PUT %s*" % DEREGISTER,
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
        if request.path == SERVICES:
            self.pace.of("the list of entries", life)
        if request.path == REGISTER and life:
            self.pace.of(json.loads(request.body.decode())["ID"], life)
            service, mark = oracle.read_registration(json.loads(request.body.decode()))
            row = self.services.get(service.id)
            same = row is not None and not self.store.is_of_others(service.id, self.r) \
                and service == oracle.read_entry(row, self.checks.get(service.id))[0]
            why = life.judge_put(service, mark, same)
            life.asked.add(service.id)
        elif request.path.startswith(DEREGISTER) and life:
            why = life.judge_drop(unquote(request.path[len(DEREGISTER):]))
        if why:
            self.r.say("%s %s" % (self.label, self.describe(request)))
            self.r.model.wrong("%s: %s" % (why, self.describe(request)))

    def ended(self, request):
        if request.path == REGISTER and self.life():
            self.life().tried[json.loads(request.body.decode())["ID"]] = self.r.model.now()

    def answer(self, request):
        return self.execute(request, self.life())

    def execute(self, request, life):
        """Does it, as this process's."""
        self.actor = life
        if self.life() is None:
            self.r.say("now done: " + self.describe(request))
        answer = super().answer(request)
        if answer[0] == 200 and request.path == SERVICES:
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
        """The containers that have failed and may have had this ID: who has not seen them run cannot know."""
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
    return any(not re.fullmatch("[0-9]+(ns|us|ms|s|m|h)", check.get(key, "1s"))
               for key in ("Interval", "TTL"))


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
        place = row["Service"], row["Address"], row["Port"]
        self.store.foreign[i] = Foreign(copy.deepcopy(row), copy.deepcopy(self.store.checks.get(i)),
                                        bool(row["Meta"]), place, self.now(), tolerant)

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
        before = store.before.get(i)
        store.forget(i)
        if writer:
            store.writer[i] = writer
        elif before:
            store.before[i] = before
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
                return [sum(1 for q in peer.requests[n:] if q.path in (SERVICES, LIST)) for peer, n in marks]

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
                    raise Failure("lists more often than each %.2f s" % pace,
                                  "%s in %.2f s" % (lists(), passed))
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
        quiet = [c for c in self.host.containers.values()
                 if c.runs and c.number not in touched and not self.host.sharers(c.id)]
        stuck = quiet[0].id if quiet else "none"
        for r in self.registrators:
            e, a = r.engine, r.consul
            peer, glob, answer = {
                "list hangs": (e, "GET " + LIST, hang), "list fails": (e, "GET " + LIST, (500, "try again")),
                "engine rows": (e, "GET " + LIST, lambda q, e=e: e.odd_rows(q, 2)),
                "agent rows": (a, "GET " + SERVICES, lambda q, a=a: a.odd_rows(q, 2)),
                "no marks": (a, "GET " + SERVICES, lambda q, a=a: a.without_marks(q)),
                "networks fail": (e, "GET /networks*", (403, "no")),
                "an inspect hangs": (e, "GET /containers/%s/json" % stuck, hang)}[kind]
            peer.on(glob, answer)
        if kind == "an inspect hangs" and quiet:
            self.host.emit("update", quiet[0])
        await self.do(self.script.besieged)
        if self.script.hup:
            await self.hang_up()
        await self.come_right()
        if kind == "an inspect hangs" and quiet:
            self.host.die(quiet[0], 0, told=True)       # nobody has to look to see that
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
            i = json.loads(q.body.decode())["ID"]
            return not any(refused(claim.service) for r in self.registrators for claim in r.rivals(i))
        return q.path not in (SERVICES, LIST)

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
                judge = self.foreign_row if row in store.foreign else self.our_row
                lines += judge(row, claims[i])
        return lines

    def our_row(self, i, claims):
        """What is wrong with an entry that registrator wrote."""
        service, mark = oracle.read_entry(self.store.services[i], self.store.checks.get(i))
        writer, want = self.store.writer[i][0], []
        if self.may_stay(writer, i):
            return []
        for r, claim in claims:
            if claim.service.id != i or r is not writer:
                continue
            if refused(claim.service):
                return []       # it may be as it was
            if not claim.running:
                continue
            want.append(oracle.fingerprint(claim.service))
            if not claim.service.check and (    # one that was written at the same time, by whomever, may stay
                    len(self.registrators) > 1 or self.store.unseen.get(i) == service.check):
                want.append(oracle.fingerprint(claim.service._replace(check=service.check)))
        if not want:
            return ["too much: %s, of %s; may be kept for %s: %s" % (
                i, self.host.shown(self.store.author.get(i)),
                " ".join(map(self.host.shown, writer.may_have_had(i))) or "nobody",
                oracle.fingerprint(service))]
        if oracle.fingerprint(service) not in want:
            return [*("differs: " + one for one in want), "     is: " + oracle.fingerprint(service)]
        return [] if mark[:16] == writer.owner else ["the mark of %s is %s" % (i, mark)]

    def may_stay(self, r, i):
        """Whether a container that has failed may keep it, and none that runs wants it.  But what has been
        registered for another container since registrator began is known to be that one's."""
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
        cleans = not f.marked and any(r.options.cleanup for r in self.registrators)
        due = cleans or (len(self.registrators) == 1 and all(
            claim.service.usual or (not f.marked and f.place == claim.service[1:4]) for claim in mine))
        due = due and mine and all(claim.service.id == i for claim in mine)
        return ["not taken over: " + i] if due else []


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
        failure = Failure(model.failure or "%s: %s" % (type(e).__name__, e),
                          *traceback.format_exc().splitlines())
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


def end(*_):
    """Once: a second signal would cut short what ends the registrators."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main():
    signal.signal(signal.SIGTERM, end)
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
