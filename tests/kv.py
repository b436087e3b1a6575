#!/usr/bin/env python3
"""The registry table with another row: a key-value store (tests/kv.c) with a scripted server.

  kv.py BINARY [PATTERN]      run every case whose name the regular expression PATTERN finds

BINARY is tests/kv.c, compiled with -DHASTE=10: its seconds are tenths here.  The engine, the world and
what holds for every case are those of fakes.py and peers.py.  The store expires what its leases do not
keep, and complains of whatever this registrator must not do:

  - a key of somebody else is written or removed
  - with -ttl a key is put without a lease of its own
  - something is asked for that the head of kv.c does not name
"""
import asyncio
import base64
import json
import os
import re
import signal
import sys
from collections import Counter
from functools import partial
from urllib.parse import unquote, unquote_to_bytes

import peers
from fakes import Late, Peer, box, hang, message
from peers import Failure, a, demand, equal, life

HASTE = 10              # of the build
PREFIX = "/services/"
HOST = "192.0.2.10"     # -ip
A, B, FIRST = [PREFIX + "app/h:%s:80" % name for name in ("a", "b", "first")]
TTL = ["-ttl", "300", "-ttl-refresh", "30"]     # for what nothing expires in
CASES = peers.Cases()
add, case = CASES.add, CASES.case


# ==== The store =================================================================================

def b64(text):
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


class Store(Peer):
    methods = b"GET|PUT|POST|DELETE"

    def __init__(self):
        super().__init__()
        self.rows = {}          # key: (value, lease or None)
        self.others = {}        # the rows of somebody else
        self.leases = {}        # ID: the loop's time when it ends
        self.granted = []       # the IDs of all leases
        self.used = []          # those that a put has named, in order
        self.expired = []       # keys
        self.leased = None      # whether every put must have a lease
        self.view = dict        # function: what the list shows of the rows
        self.shape = dict       # function: the list, or any text instead

    # -- what others do to it

    def other(self, key, value):
        """An entry of somebody else."""
        self.rows[key] = self.others[key] = value, None

    def alter(self, key, **fields):
        """Somebody changes an entry of ours by hand; None takes a field out."""
        value, lease = self.rows[key]
        fields = {**json.loads(value), **fields}
        self.rows[key] = json.dumps({k: v for k, v in fields.items() if v is not None}), lease

    def forget(self):
        """It is started again, without anything of ours."""
        self.rows = dict(self.others)
        self.leases = {}
        self.drop()

    # -- what there is

    def expire(self):
        now = asyncio.get_running_loop().time()
        for key, (_, lease) in list(self.rows.items()):
            if lease is not None and self.leases.get(lease, 0) <= now:
                del self.rows[key]
                self.expired.append(key)

    @property
    def services(self):
        """{ID: what is stored of it and its Name}, of what is not somebody else's."""
        self.expire()
        out = {}
        for key, (value, _) in self.rows.items():
            if key not in self.others:
                name, id_ = [unquote(part) for part in key[len(PREFIX):].split("/")]
                out[id_] = {"Name": name, **json.loads(value)}
        return out

    sent = services

    def writes(self):
        """Every put and removal that came: [(verb, key, query)]."""
        verbs = {"PUT": "put", "DELETE": "remove"}
        return [(verbs[r.method], r.query["key"], r.query) for r in self.requests if r.method in verbs]

    def lists(self):
        return sum(r.method == "GET" and r.path == "/kv" for r in self.requests)

    def leaked(self):
        return len(self.granted) - len(set(self.used))

    # -- what it answers

    def answer(self, request):
        self.expire()
        what = request.method, request.path
        if what == ("GET", "/version"):
            return 200, {"kv": "1.0"}
        if what == ("GET", "/kv") and request.query == {"prefix": PREFIX}:
            return self.list()
        if what == ("POST", "/lease"):
            return self.grant(json.loads(request.body))
        if what == ("PUT", "/kv"):
            return self.put(self.key_of(request), request)
        if what == ("DELETE", "/kv"):
            return self.remove(self.key_of(request))
        self.complain("asked to %s %s" % (request.method, request.target))
        return 405, "not allowed"

    def key_of(self, request):
        key = unquote_to_bytes(re.search("[?&]key=([^&]*)", request.target)[1]).decode("utf-8", "surrogateescape")
        if key in self.others:
            self.complain("%s of somebody else's %r" % (request.method, key))
        return key

    def header(self, **more):
        return {"header": {"cluster": "14841639068965178418", "revision": len(self.requests), "healthy": True,
                           "members": [{"key": "not a row"}, []]}, **more}

    def list(self):
        rows = [{"key": b64(key), "value": b64(value), "version": "1", **({"lease": lease} if lease else {})}
                for key, (value, lease) in self.view(self.rows).items()]
        if not rows:
            return 404, {"error": "no keys"}
        return 200, self.shape(self.header(kvs=rows, count=len(rows)))

    def grant(self, body):
        id_ = str(7587000000000000000 + len(self.granted))
        self.granted.append(id_)
        self.leases[id_] = asyncio.get_running_loop().time() + body["TTL"] / HASTE
        return 200, self.header(ID=id_, TTL=str(body["TTL"]))

    def put(self, key, request):
        lease = request.query.get("lease")
        if self.leased is not None and self.leased != bool(lease):
            self.complain("put with lease=%s" % lease)
        if lease and lease in self.used:
            self.complain("lease %s is named twice" % lease)
        if lease and lease not in self.leases:
            return 404, {"error": "lease not found"}
        if not key.startswith(PREFIX) or not request.body:
            return 400, {"error": "bad key or value"}
        self.used += [lease] if lease else []
        self.rows[key] = request.body.decode(), lease
        return 200, self.header()

    def remove(self, key):
        if key not in self.rows:
            return 404, {"error": "no such key"}
        del self.rows[key]
        return 200, self.header(deleted=1)


class World(peers.World):
    def __init__(self, binary, tmp):
        super().__init__(binary, tmp)
        self.consul = self.store = Store()
        self.beside = []        # worlds of other programs on the same store

    async def open(self):
        await super().open()
        self.uri = "kv://127.0.0.1:%d" % self.port

    async def run(self, *args, **more):
        self.store.leased = "-ttl" in args
        await super().run("-ip", HOST, *args, **more)

    async def another(self, engine):
        """The world of another program on this store, with an engine of its own."""
        other = World(self.binary, self.path("other"))
        os.mkdir(other.tmp)
        other.consul = other.store = self.store
        other.uri, other.engine = self.uri, engine
        other.docker = await engine.listen(other.path("docker.sock"))
        self.beside.append(other)
        return other

    def keys(self):
        self.store.expire()
        return sorted(self.store.rows.keys() - self.store.others.keys())

    async def until_keys(self, *keys):
        """These and no others, but for those of somebody else."""
        await self.until(lambda: self.keys() == sorted(keys), "came to the keys expected",
                         lambda: ["expected %r" % sorted(keys), "got      %r" % self.keys()])

    def said(self, word):
        """The lines with this word, but for what is always said."""
        return [line for line in self.lines(peers.ROUTINE + "|removed:") if re.search(word, line)]

    async def listed(self, n=2):
        """So many more lists have been asked for, and dealt with."""
        end = self.store.lists() + n
        await self.until(lambda: self.store.lists() >= end, "asked for %d lists" % n)
        await asyncio.sleep(0.3)

    async def renewed(self, n, *keys):
        """Each of these keys has been put n more times."""
        before = Counter(self.writes())

        def least():
            now = Counter(self.writes())
            return min(now["put", key] - before["put", key] for key in keys)
        await self.until(lambda: least() >= n, "renewed every key %d times" % n)

    async def kill(self):
        self.proc.kill()
        self.may_end = True
        await self.proc.wait()

    async def finish(self):
        for other in self.beside:
            await other.finish()
        await super().finish()
        missing = {key for key in self.store.others if self.store.rows.get(key) != self.store.others[key]}
        equal("keys of somebody else that have changed", missing, set())

    async def close(self):
        for other in self.beside:
            await other.close()
        await super().close()


def twice(name, test):
    """A case with entries that stay, and one with entries that expire."""
    add(name, test, [])
    add(name + ", with -ttl", test, TTL)


# ==== The life of a container ===================================================================

async def lives(args, w):
    one = a(env=["SERVICE_TAGS=x,y"])
    await life(w, args=args)
    for _ in range(3):
        w.engine.start(one)
        await w.until_services(first={"Name": "app", "host": HOST, "port": 8000, "tags": []},
                               a={"Name": "app", "host": HOST, "port": 8080, "tags": ["x", "y"]})
        w.engine.die(one, 137)
        await w.until_services("h:first:80")
    await w.quiet()
    equal("writes", [verb for verb, key in w.writes() if key == A], ["put", "remove"] * 3)
    equal("leases", len(w.store.granted), 4 if args else 0)
    equal("leases without a key", w.store.leaked(), 0)
    demand("in sync: " in w.log, "no line of the first pass")


async def renames(args, w):
    """The container's new name is another key, which is there before the old one goes."""
    await life(w, args=args)
    one, keys = a(), set()
    w.engine.start(one)
    await w.until_services("h:first:80", "h:a:80")
    w.store.on("DELETE *", lambda r: keys.update(w.keys()))
    w.engine.rename(one, "b")
    await w.until_keys(FIRST, B)
    demand(B in keys, "the new key was not there when the old one went", *keys)
    equal("writes", w.writes()[-2:], [("put", B), ("remove", A)])


async def renames_service(args, w):
    """The ID stays, the key does not: here the name is a part of it."""
    one = a(env=["SERVICE_NAME=web"])
    await life(w, one, args=args)
    await w.until_keys(FIRST, PREFIX + "web/h:a:80")
    one["Config"]["Env"] = ["SERVICE_NAME=Web"]
    w.engine.emit("update", one)
    await w.until_keys(FIRST, PREFIX + "Web/h:a:80")
    equal("writes", w.writes()[-2:], [("put", PREFIX + "Web/h:a:80"), ("remove", PREFIX + "web/h:a:80")])


async def changes(args, w):
    """What only the content digest tells of is written, once."""
    one = a(env=["SERVICE_TAGS=x"])
    await life(w, one, args=["-resync", "1", *args])
    await w.until_services(first={}, a={"tags": ["x"]})
    for tags in ["y", "y,x", "x,y"]:
        one["Config"]["Env"] = ["SERVICE_TAGS=" + tags]
        w.engine.emit("update", one)
        await w.until_services(first={}, a={"tags": tags.split(",")})
    await w.listed()
    if not args:
        equal("puts", w.writes().count(("put", A)), 4)


async def many(args, w):
    """Leases do not come to the wrong key, however many are under way."""
    ports = {port: 10000 + port for port in range(1, 61)}
    w.has(*[box("n%d" % i, {80: 9000 + i}) for i in range(40)], box("m", ports))
    w.store.on("POST /lease", lambda r: Late(0.002 * (len(w.store.granted) * 7 % 5), partial(w.store.answer, r)))
    await w.run(*args)
    await w.until(lambda: len(w.keys()) == 100, "registered 100 services")
    await w.until_log("in sync: 100 services of 41 containers, 100 written, 0 removed")
    wrong = [id_ for id_, row in w.store.services.items()
             if row["port"] != (10000 + int(id_.split(":")[2]) if ":m:" in id_ else 9000 + int(id_.split(":")[1][1:]))]
    equal("services with a wrong port", wrong, [])
    equal("leases without a key", w.store.leaked(), 0)
    w.engine.boxes.clear()
    w.engine.drop()
    await w.until_keys()


for each in [("life: start, die, start again", lives), ("life: another name of the container", renames),
             ("life: another name of the service", renames_service), ("life: other tags", changes),
             ("life: 100 services", many)]:
    twice(*each)


async def on_success(args, w):
    """What has failed stays, and is renewed; what has ended well goes."""
    one, two = a(), box("b", {80: 8081})
    await life(w, one, two, args=["-deregister", "on-success", *args])
    await w.until_services("h:first:80", "h:a:80", "h:b:80")
    w.engine.die(one, 1)
    w.engine.die(two, 0)
    await w.until_services("h:first:80", "h:a:80")
    if "-ttl" in args:
        await w.renewed(2, A, FIRST)
    await w.listed(1)
    w.same("h:first:80", "h:a:80")
    equal("expired", w.store.expired, [])
    w.engine.destroy(one)
    await w.until_services("h:first:80")


add("life: -deregister on-success", on_success, ["-resync", "5"])
add("life: -deregister on-success, with -ttl", on_success, ["-resync", "5", "-ttl", "100", "-ttl-refresh", "5"])


@case("life: SIGTERM with -on-exit deregister")
async def _(w):
    w.store.other(PREFIX + "x/y", "z")
    await life(w, a(), args=["-on-exit", "deregister", *TTL])
    await w.until_services("h:first:80", "h:a:80")
    equal("exit status", await w.stop(), 0)
    equal("keys", w.keys(), [])


# ==== Starting again ============================================================================

@case("start: what is there is adopted")
async def _(w):
    w.has(a(), box("b", {80: 8081}, env=["SERVICE_TAGS=x", "SERVICE_NAME=a b/c"]))
    equal("exit status", await w.once(), 0)
    for _ in range(2):
        await w.run("-resync", "1")
        await w.until_log("in sync: 2 services of 2 containers, 0 written, 0 removed")
        await w.listed()
        equal("exit status", await w.stop(), 0)
    equal("puts", len(w.writes()), 2)


@case("start: with -ttl what is there is adopted and renewed at once")
async def _(w):
    """Nobody knows how much of its time is left."""
    ttl = ["-ttl", "6000", "-ttl-refresh", "3000"]
    w.has(a(), box("b", {80: 8081}))
    equal("exit status", await w.once(*ttl), 0)
    await w.run(*ttl)
    await w.until_log("in sync: 2 services of 2 containers, 0 written, 0 removed")
    await w.until(lambda: len(w.writes()) >= 4, "renewed both")
    await w.quiet()
    equal("writes", sorted(w.writes()), [("put", A)] * 2 + [("put", B)] * 2)
    demand("added: " not in w.log, "logs a renewal as an addition")


async def orphans(args, w):
    """Killed, and started again when one container has gone and another has come."""
    one = a()
    await life(w, one, box("b", {80: 8081}), args=args)
    await w.until_keys(FIRST, A, B)
    await w.kill()
    del w.engine.boxes[one["Id"]]
    w.has(box("c", {80: 8082}))
    await w.run(*args)
    await w.until_keys(FIRST, B, PREFIX + "app/h:c:80")
    await w.until_log("in sync: 3 services of 3 containers, 1 written, 1 removed")
    equal("dangling", [line.partition("registrator: ")[2] for line in w.said("dangling")], ["dangling: " + A])


async def orphans_elsewhere(args, w):
    """Orphans are known by their marks, whatever the host name was, and by nothing else."""
    w.has(a(env=["SERVICE_ID=my id/x y", "SERVICE_NAME=%s/ü"]))
    equal("exit status", await w.once("-ip", HOST, *args), 0)
    (key,) = w.keys()
    mark = w.store.services["my id/x y"]["mark"]
    w.store.rows[PREFIX + "any/thing"] = json.dumps({"mark": mark}), None
    w.store.other(PREFIX + "some/thing", json.dumps({"mark": mark[::-1]}))
    w.store.other(PREFIX + "some/h:thing:80", json.dumps({"host": HOST, "port": 8080}))
    w.engine.boxes.clear()
    await w.run(*args)
    await w.until_keys()
    equal("removals", sorted(k for verb, k in w.writes() if verb == "remove"), sorted([key, PREFIX + "any/thing"]))


twice("start: kill -9, then orphans are removed", orphans)
twice("start: orphans with any name, ID and value", orphans_elsewhere)

FOREIGN = {
    "x/y": "10.0.0.1:80", "x": "", "x/y/z": "{}", "/": "x", "": "x", "app/": "{}", "app/h:a:80/more": "{}",
    "app/two words": "x", "app/%zz": "{}", "app/caf\xe9": '{"host":"10.0.0.1","port":80}', "app/\udcff\udcfe": "\udc80",
    "app/h:new\nline:80": "{", "app/nul\0h:a:80": "{}", "app/deep": "[" * 100, "app/long": "x" * 100000,
    "app/numbers": '{"host":1,"port":"80","mark":[]}', "app/list": "[]", "app/half": '{"mark":"0123456789abcdef"}',
    "app/theirs": '{"host":"10.0.0.1","port":80,"mark":"fedcba9876543210-0123456789abcdef01234567"}',
    "app/h:theirs:80": '{"host":"10.0.0.1","port":80,"mark":"fedcba9876543210-0123456789abcdef01234567"}',
    "app/h:old:80": '{"host":"10.0.0.1","port":80}', "APP/h:a:80": "x", "app/H:a:80": "x"}


async def foreign(args, w):
    """What others have in the store is neither written nor removed."""
    for key, value in FOREIGN.items():
        w.store.other(PREFIX + key, value)
    one = a()
    await life(w, one, args=["-resync", "1", *args])
    await w.until_services("h:first:80", "h:a:80")
    await w.listed()
    w.engine.die(one)
    await w.until_services("h:first:80")
    await w.listed()
    equal("what is said", w.said(""), [])


twice("start: what is somebody else's stays", foreign)


@case("start: a key with NUL and our mark is not taken for the key before it")
async def _(w):
    await life(w, a(), args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    w.store.other(A + "\0x", json.dumps(w.store.services["h:a:80"]))
    await w.listed(4)
    await w.quiet()
    w.same("h:first:80", "h:a:80")


@case("start: -cleanup removes what has a default ID of this host and no mark")
async def _(w):
    gone = ["app/h:old:80", "a%20b/h:old_x.y-z:8080:udp"]
    for key in gone:
        w.store.rows[PREFIX + key] = "{}", None
    for key in ["app/hh:old:80", "app/h:old:", "app/h%3aold:80x", "app/h:a b:80", "app/h:old:80/h:old:80"]:
        w.store.other(PREFIX + key, "{}")
    await life(w, args=["-cleanup"])
    await w.until_services("h:first:80")
    equal("removals", sorted(k for verb, k in w.writes() if verb == "remove"), sorted(PREFIX + k for k in gone))


# ==== Keys ======================================================================================

@case("keys: case counts")
async def _(w):
    """Two containers whose IDs differ by case alone are two entries."""
    one, two = a(env=["SERVICE_ID=Web"]), box("b", {80: 8081}, env=["SERVICE_ID=web"])
    await life(w, one, two, args=["-resync", "1"])
    await w.until_keys(FIRST, PREFIX + "app/Web", PREFIX + "app/web")
    await w.listed()
    equal("ports", [w.store.services[id_]["port"] for id_ in ("Web", "web")], [8080, 8081])
    w.engine.die(one)
    await w.until_keys(FIRST, PREFIX + "app/web")
    equal("writes", len(w.writes()), 4)
    equal("what is said", w.said(""), [])


@case("keys: one ID of two containers with one name is one entry")
async def _(w):
    """The first one has it; the other follows."""
    one, two = a(env=["SERVICE_ID=x"]), box("b", {80: 8081}, env=["SERVICE_ID=x"])
    await life(w, one)
    await w.until_keys(FIRST, PREFIX + "app/x")
    w.engine.start(two)
    await w.until_log("already used by container " + one["Id"][:12])
    equal("port", w.store.services["x"]["port"], 8080)
    w.engine.die(one)
    await w.until(lambda: w.store.services.get("x", {}).get("port") == 8081, "gave it to the other one")


async def odd_keys(args, w):
    """Names and IDs with whatever may be in them; each is found again after a start, and removed."""
    ids = ["my id", "x/y", "a%2fb", "100%", "x?y#z&k=v", "~!\"#$%&'()*+,;<=>?@[\\]^_`{|}", "+", "x" * 1024]
    names = ["a b", "a/b", "%41", "\u65e5\u672c", "..", "/", "a\tb", "n" * 255]
    boxes = [box("c%d" % i, {80: 9000 + i}, env=["SERVICE_ID=" + ids[i], "SERVICE_NAME=" + names[i]])
             for i in range(len(ids))]
    w.has(*boxes)
    equal("exit status", await w.once(*args), 0)
    equal("IDs", sorted(w.store.services), sorted(ids))
    equal("names", [w.store.services[id_]["Name"] for id_ in ids], names)
    equal("ports", [w.store.services[id_]["port"] for id_ in ids], [9000 + i for i in range(len(ids))])
    demand(all(re.fullmatch(r"/services/[\w.~:%-]+/[\w.~:%-]+", key) for key in w.keys()), "odd keys", *w.keys())
    await w.run("-resync", "1", *args)
    await w.until_log("in sync: %d services of %d containers, 0 written, 0 removed" % (len(ids), len(ids)))
    await w.listed()
    for one in boxes:
        w.engine.die(one)
    await w.until_keys()


twice("keys: blanks, slashes and other odd characters", odd_keys)


# ==== What is altered behind its back ===========================================================

async def altered(fields, w):
    await life(w, a(), args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    good = w.store.rows[A]
    w.store.alter(A, **fields)
    await w.until(lambda: w.store.rows[A] == good, "mended it")
    await w.listed()
    equal("puts", w.writes().count(("put", A)), 2)


for fields in [{"host": "10.0.0.9"}, {"port": 1}, {"host": None}, {"mark": None}, {"mark": "x"}, {"mark": 7}]:
    add("altered: %r" % fields, altered, fields)


@case("altered: the value is garbage, or gone")
async def _(w):
    await life(w, a(), args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    good = w.store.rows[A]
    for bad in ["", "x", "{", '"' + "x" * 5000, None]:
        w.store.rows[A] = bad, None
        if bad is None:
            del w.store.rows[A]
        await w.until(lambda: w.store.rows.get(A) == good, "mended %r" % bad)
    await w.listed()
    equal("puts", w.writes().count(("put", A)), 6)


@case("altered: another registrator's mark is left to that one, and said once")
async def _(w):
    await life(w, a(), args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    mark = w.store.services["h:a:80"]["mark"]
    w.store.alter(A, mark=mark[::-1].replace("-", "0")[:16] + mark[16:])
    w.store.others[A] = w.store.rows[A]
    await w.until_log("h:a:80.*has been taken by another registrator")
    await w.listed()
    equal("times it is said", len(w.said("taken by another")), 1)


@case("altered: no mark, but the place that is wanted: adopted")
async def _(w):
    one = a(env=["SERVICE_ID=mine"])
    w.store.rows[PREFIX + "app/mine"] = json.dumps({"host": HOST, "port": 8080}), None
    await life(w, one)
    await w.until(lambda: "mark" in w.store.services["mine"], "wrote its mark")


@case("altered: no mark and another place: left alone, and said once")
async def _(w):
    w.store.other(PREFIX + "app/mine", json.dumps({"host": "10.0.0.9", "port": 8080}))
    await life(w, a(env=["SERVICE_ID=mine"]), args=["-resync", "1"])
    await w.until_log("mine.*belongs to somebody else")
    await w.listed()
    equal("times it is said", len(w.said("somebody else")), 1)


# ==== Steps that fail ===========================================================================

CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"header\":"
BAD = [("500", (500, {"error": "no leader"})), ("400", (400, {"error": "bad"})), ("429", (429, "slow down")),
       ("the 404 of a proxy", (404, "page not found")), ("nothing", b""), ("a cut answer", CUT),
       ("garbage", b"\0\1\2\r\n\r\n"), ("no answer", hang)]
STEPS = {"the lease": "POST /lease", "the put": "PUT /kv"}


async def fails(glob, answer, w):
    """It is tried again from the first step on, and others go on meanwhile.  (A 400 is tried again after 60 s.)"""
    w.store.on(glob, answer, times=3)
    await life(w, a(), box("b", {80: 8081}), args=TTL)
    await w.until_services("h:first:80", "h:a:80", "h:b:80")
    demand(w.store.leaked() <= 3, "%d leases without a key" % w.store.leaked())
    equal("keys whose lease is not their own", [key for key, (_, lease) in w.store.rows.items()
                                                if lease not in w.store.leases], [])


for step, glob in STEPS.items():
    for what, answer in BAD:
        add("fails: %s: %s" % (step, what), fails, glob, answer)
for what, answer in [("without an ID", (200, {"header": {}})), ("with an odd ID", (200, {"ID": "../x"})),
                     ("with an ID that is empty", (200, {"ID": ""})), ("not JSON", (200, "<html>"))]:
    add("fails: the lease: " + what, fails, STEPS["the lease"], answer)


async def done_but_unsaid(late, w):
    """The put is executed, but its answer does not come: the list tells, and nothing is put again."""
    def deed(request):
        if request.query["key"] == A and not done:
            done.append(w.store.answer(request))
            return Late(3, CUT) if late else CUT
        return None

    done = []
    w.store.on("PUT /kv", deed)
    await life(w, a())
    await w.until_services("h:first:80", "h:a:80")
    await w.until_log("in sync: 2 services of 2 containers")
    equal("writes", sorted(w.writes()), [("put", A), ("put", FIRST)])


add("fails: the put is executed, its answer is cut", done_but_unsaid, False)
add("fails: the put is executed, its answer is late", done_but_unsaid, True)


@case("fails: a put that timed out is executed later")
async def _(w):
    """Another one with the same key was put in between: that is an entry of ours, and it stays."""
    one = a()
    w.store.on("PUT /kv", lambda r: Late(2.5, partial(w.store.answer, r)) if r.query["key"] == A else None, times=1)
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    await asyncio.sleep(2.5)
    w.same("h:first:80", "h:a:80")
    w.engine.die(one)
    await w.until_services("h:first:80")
    await w.listed()
    w.same("h:first:80")


async def removal_fails(answer, w):
    one = a()
    await life(w, one, args=TTL)
    await w.until_services("h:first:80", "h:a:80")
    w.store.on("DELETE /kv", answer, times=2)
    w.engine.die(one)
    await w.until_services("h:first:80")


for what, answer in BAD:
    add("fails: the removal: " + what, removal_fails, answer)


@case("fails: what is to be removed is gone already")
async def _(w):
    one = a()
    await life(w, one)
    await w.until_services("h:first:80", "h:a:80")
    del w.store.rows[A]
    w.engine.die(one)
    await w.until_log("removed: .*h:a:80")
    equal("removals", w.writes().count(("remove", A)), 1)


@case("fails: the container dies between the two steps")
async def _(w):
    one = a()
    await life(w, args=TTL)
    w.store.on("POST /lease", lambda r: Late(0.5, partial(w.store.answer, r)))
    w.engine.start(one)
    await w.until(lambda: w.store.requests[-1].method == "POST", "asked for a lease")
    w.engine.die(one)
    await w.until(lambda: ("remove", A) in w.writes(), "removed it")
    await w.until_services("h:first:80")
    equal("writes", w.writes()[1:3], [("put", A), ("remove", A)])


@case("fails: the container changes between the two steps")
async def _(w):
    one = a(env=["SERVICE_TAGS=x"])
    await life(w, args=TTL)
    w.store.on("POST /lease", lambda r: Late(0.5, partial(w.store.answer, r)), times=1)
    w.engine.start(one)
    await w.until(lambda: w.store.requests[-1].method == "POST", "asked for a lease")
    one["Config"]["Env"] = ["SERVICE_TAGS=y"]
    w.engine.emit("update", one)
    await w.until_services(first={}, a={"tags": ["y"]})


@case("fails: the lease is forgotten between the two steps")
async def _(w):
    w.store.on("PUT /kv", lambda r: w.store.leases.pop(r.query["lease"], None) and None if r.query["key"] == A else None,
               times=None)
    await life(w, args=TTL)
    w.engine.start(a())
    await w.until_log("register failed: .*h:a:80.*lease not found")
    w.store.behave()
    await w.until_services("h:first:80", "h:a:80")


@case("fails: the store is away, and back")
async def _(w):
    one = a()
    await life(w, one, args=TTL)
    await w.until_services("h:first:80", "h:a:80")
    w.store.close()
    w.engine.die(one)
    w.engine.start(box("b", {80: 8081}))
    await w.until_log("kv: .*trying again")
    await w.store.listen(port=w.port)
    await w.until_keys(FIRST, B)


@case("fails: the store forgets everything")
async def _(w):
    await life(w, a(), args=TTL)
    await w.until_services("h:first:80", "h:a:80")
    w.store.forget()
    await w.until_services("h:first:80", "h:a:80")


# ==== The list ==================================================================================

@case("list: 404 is an empty one")
async def _(w):
    """At the start, and when everything has gone behind its back."""
    await w.run("-resync", "1")
    await w.until_log("in sync: 0 services of 0 containers, 0 written, 0 removed")
    w.engine.start(a())
    await w.until_services("h:a:80")
    w.store.rows.clear()
    await w.until(lambda: w.keys() == [A], "wrote it again")
    equal("what is said", [line for line in w.said("") if "not listed" not in line], [])


async def bad_list(answer, w):
    """From a list that failed nothing is concluded; a good one is asked for again."""
    w.has(a(), box("b", {80: 8081}))
    equal("exit status", await w.once(), 0)
    w.engine.boxes.popitem()
    w.store.on("GET /kv", answer)
    await w.run("-resync", "1")
    await w.listed(3)
    equal("keys", w.keys(), [A, B])
    equal("writes", len(w.writes()), 2)
    w.store.behave()
    await w.until_keys(A)
    equal("puts", len([verb for verb, _ in w.writes() if verb == "put"]), 2)


for what, answer in [("500", (500, "oops")), ("the 404 of a proxy", (404, "page not found")), ("HTML", (200, "<html>")),
                     ("400", (400, {"error": "no keys"})), ("nothing", (200, "")), ("null", (200, "null")),
                     ("an array", (200, '[{"key":"eA=="}]')), ("cut", CUT),
                     ("cut JSON", (200, '{"header":{"a":1},"kvs":[{"key":')), ("cut after the rows", (200, '{"kvs":[]')),
                     ("two of them", (200, '{"kvs":[]}{"kvs":[]}'))]:
    add("list: " + what, bad_list, answer)


async def odd_row(row, w):
    """A row that cannot be read: of the others all is known, but nothing is concluded to be missing."""
    def shape(whole):
        whole["kvs"].insert(1, row)
        return whole

    one = a()
    await life(w, one, box("b", {80: 8081}), args=["-resync", "1"])
    await w.until_keys(FIRST, A, B)
    w.store.shape = shape
    await w.until_log("a row of the list cannot be read")
    del w.store.rows[B]
    w.store.alter(A, host="10.0.0.9")
    await w.until(lambda: w.store.services["h:a:80"]["host"] == HOST, "mended what is listed")
    await w.listed()
    equal("keys", w.keys(), sorted([FIRST, A]))
    w.engine.die(one)
    await w.until_keys(FIRST)
    equal("times it is said", len(w.said("cannot be read")), 1)
    w.store.shape = dict
    await w.until_keys(FIRST, B)


for row in [{}, {"key": b64(A)}, {"value": b64("x")}, {"key": "!", "value": b64("x")}, {"key": b64(A), "value": "eA="},
            {"key": b64("/elsewhere/x"), "value": ""}, {"key": 7, "value": 7}, {"key": None, "value": {"key": b64(A)}}]:
    add("list: a row that cannot be read: %r" % row, odd_row, row)

GOOD = [("rows first, header last", lambda l: {"kvs": l["kvs"], "count": "1", "header": l["header"]}),
        ("no header", lambda l: {"kvs": l["kvs"]}),
        ("a header with more levels", lambda l: {"header": {"a": {"b": [{"key": "x"}, "]}"], "c": -1.5e3}}, **l}),
        ("more members", lambda l: {"a": None, "b": {"key": {}}, "c": "[{", **l, "more": False, "d": {"e": "f"}}),
        ("rows with more", lambda l: {**l, "kvs": [{"x": {"key": "no", "kvs": [{"key": "no"}]}, **row, "y": [[{}]]}
                                                   for row in l["kvs"]]}),
        ("laid out", lambda l: json.dumps(l, indent=3))]


async def good_list(shape, w):
    w.store.shape = shape
    one = a()
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    await w.listed()
    w.store.alter(A, port=1)
    await w.until(lambda: w.store.services["h:a:80"]["port"] == 8080, "mended it")
    equal("puts", len(w.writes()), 3)
    equal("exit status", await w.stop(), 0)
    w.engine.boxes.pop(one["Id"])
    await w.run()
    await w.until_keys(FIRST)
    equal("writes", len(w.writes()), 4)
    equal("what is said", w.said(r"WARN|cannot|failed"), [])


for what, shape in GOOD:
    add("list: another shape: " + what, good_list, shape)


@case("list: no rows member, and an empty one")
async def _(w):
    one = a()
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    for empty in [lambda l: {"header": l["header"]}, lambda l: {**l, "kvs": []}, lambda l: {}]:
        before = len(w.writes())
        w.store.shape = empty
        await w.until(lambda: {("put", A), ("put", FIRST)} <= set(w.writes()[before:]), "wrote again what is missing")
    w.store.shape = dict
    equal("removals", [key for verb, key in w.writes() if verb == "remove"], [])


async def bytewise(writer, data):
    """Every answer comes a byte at a time."""
    for i in range(len(data)):
        writer.write(data[i:i + 1])
        await writer.drain()
        await asyncio.sleep(0)


@case("list: split anywhere")
async def _(w):
    w.store.other(PREFIX + "x/\\\"}{][", '{"}]":"\\"}'), w.store.other(PREFIX + "x/y", "{}")
    w.store.deliver = bytewise
    one = a(env=["SERVICE_TAGS=]}\\\""])
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    for cut in range(1, 600, 7):
        async def in_two(writer, data, at=cut):
            writer.write(data[:at])
            await writer.drain()
            await asyncio.sleep(0.002)
            writer.write(data[at:])
        w.store.deliver = in_two
        await w.until(lambda n=w.store.lists(): w.store.lists() > n, "asked for a list")
    w.store.alter(A, port=1)
    await w.until(lambda: w.store.services["h:a:80"]["port"] == 8080, "mended it")
    equal("puts", len(w.writes()), 3)
    equal("what is said", [line for line in w.said("") if "not as it was sent" not in line], [])


@case("list: 3,000 entries of others")
async def _(w):
    for i in range(3000):
        w.store.other(PREFIX + "other%d/x:y%d:80" % (i % 50, i), '{"host":"10.0.0.1","port":%d}' % i)
    w.has(a())
    equal("exit status", await w.once(), 0)
    equal("exit status", await w.once(), 0)
    equal("writes", w.writes(), [("put", A)])


# ==== Entries that expire =======================================================================

@case("expiry: renewed for as long as it runs, then gone")
async def _(w):
    """The time that the store gives is four times that between renewals."""
    await life(w, a(), args=["-ttl", "40", "-ttl-refresh", "10", "-resync", "0"])
    await w.until_services("h:first:80", "h:a:80")
    await w.renewed(6, A, FIRST)
    equal("expired", w.store.expired, [])
    equal("additions in the log", w.log.count("added: "), 2)
    await w.kill()
    while w.keys():
        await asyncio.sleep(0.1)
    equal("expired", sorted(w.store.expired), [A, FIRST])
    await w.run("-ttl", "40", "-ttl-refresh", "10")
    await w.until_services("h:first:80", "h:a:80")


@case("expiry: without -ttl there is none")
async def _(w):
    await life(w, a(), args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    await w.listed(5)
    equal("puts", len(w.writes()), 2)
    equal("leases", w.store.granted, [])


@case("expiry: a list that comes in between does not put off a renewal")
async def _(w):
    """Of 60 entries, renewed four at a time, while one list follows the other."""
    w.has(*[box("n%d" % i, {80: 9000 + i}) for i in range(60)])
    w.store.on("PUT /kv", lambda r: Late(0.05, partial(w.store.answer, r)))
    await w.run("-ttl", "3000", "-ttl-refresh", "30", "-resync", "1")
    await w.until(lambda: len(w.keys()) == 60, "registered them")
    n = Counter()
    for _ in range(3):          # each renewal takes a second, and is due every three
        done = len(w.writes())
        await w.until(lambda: len(w.writes()) > done, "renewed one")
        await w.until(lambda: len(w.writes()) >= done + 60, "renewed 60",
                      lambda: ["%d of 60" % (len(w.writes()) - done)])
    n = Counter(w.writes())
    demand(max(n.values()) - min(n.values()) <= 1, "some are renewed more often than others",
           *["%d entries %d times" % (k, v) for v, k in Counter(n.values()).items()])


@case("expiry: what was due while the store was away is renewed when it is back")
async def _(w):
    await life(w, a(), args=["-ttl", "6000", "-ttl-refresh", "100", "-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    w.store.on("*", lambda r: b"")
    w.store.drop()
    await w.until_log("kv: .*trying again")
    await asyncio.sleep(100 / HASTE + 0.5)      # due, and nobody to renew it
    before = len(w.writes())
    w.store.behave()
    await w.listed(20)          # which takes less than the time to the next renewal
    equal("renewed", sorted(w.writes()[before:][:2]), [("put", A), ("put", FIRST)])


async def renewal_fails(glob, answer, w):
    """A renewal that failed is tried again; what is there stays meanwhile."""
    await life(w, a(), args=["-ttl", "600", "-ttl-refresh", "20", "-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    w.store.on(glob, answer, times=2)
    await w.renewed(3, A, FIRST)
    equal("expired", w.store.expired, [])
    equal("removals", [key for verb, key in w.writes() if verb == "remove"], [])


for step, glob in STEPS.items():
    for what, answer in BAD:
        if what != "400":
            add("expiry: a renewal fails: %s: %s" % (step, what), renewal_fails, glob, answer)


@case("expiry: what changes when a renewal is due is logged as an addition")
async def _(w):
    """The renewal waits for that of others, and so becomes the write of the change."""
    one = a(env=["SERVICE_TAGS=x"])
    w.has(*[box("n%d" % i, {80: 9000 + i}) for i in range(16)])
    await life(w, one, args=["-ttl", "600", "-ttl-refresh", "5"])
    await w.until(lambda: len(w.keys()) == 18, "registered them")
    w.store.on("PUT /kv", lambda r: Late(0.05, partial(w.store.answer, r)))
    for i in range(20):
        await asyncio.sleep(0.1)
        one["Config"]["Env"] = ["SERVICE_TAGS=t%d" % i]
        w.engine.emit("update", one)
        await w.until(lambda: w.store.services["h:a:80"]["tags"] == ["t%d" % i], "wrote the change")
        await w.until(lambda: w.log.count("added: %s %s\n" % (one["Id"][:12], A)) == i + 2, "logged the change")
    equal("additions in the log", w.log.count("added: "), 18 + 20)


@case("expiry: a lease of the store is shorter than the time between renewals")
async def _(w):
    """Everything goes again and again; it is written again at each list."""
    w.store.on("POST /lease", lambda r: w.store.grant({"TTL": 5}))
    await life(w, a(), args=["-ttl", "600", "-ttl-refresh", "500", "-resync", "5"])
    for _ in range(2):
        n = len(w.store.expired)
        await w.until(lambda: len(w.store.expired) >= n + 2 and w.keys() or w.keys() and False, "wrote again what expired")
    demand(len(w.said("not listed")) <= 1, "said more than once", *w.said("not listed"))


# ==== Side by side ==============================================================================

@case("side by side: two hosts on one store")
async def _(w):
    """Neither touches what is the other's; a common ID is left to the one that has it."""
    engine = type(w.engine)(name="other")
    engine.on("GET /info", (200, {"ID": "OTHE:RENG:INE2", "Name": "other"}))
    other = await w.another(engine)
    mine, theirs = a(env=["SERVICE_80_ID=common"], ports={80: 8080, 81: 8081}), box("b", {80: 8082, 81: 8083},
                                                                                   env=["SERVICE_80_ID=common"])
    w.has(mine)
    args = ["-resync", "1", *TTL]
    await w.run(*args)
    await w.until(lambda: len(w.keys()) == 2, "registered two services")
    other.has(theirs)
    await other.run("-hostname", "h2", "-ip", "192.0.2.20", *args)
    await other.until_log("common.*belongs to somebody else")
    await w.until(lambda: "h2:b:81" in w.store.services, "registered the other one's")
    await w.listed(3)
    equal("IDs", sorted(w.store.services), ["common", "h2:b:81", "h:a:81"])
    equal("host of the common one", w.store.services["common"]["host"], HOST)
    equal("removals", [key for verb, key in w.writes() if verb == "remove"], [])
    w.engine.die(mine)
    await w.until(lambda: w.store.services.get("common", {}).get("host") == "192.0.2.20", "gave up the common one")
    equal("exit status", await w.stop(), 0)
    await other.kill()
    other.has(theirs)
    await w.run(*args)
    await w.listed(2)
    equal("IDs", sorted(w.store.services), ["common", "h2:b:81"])


@case("side by side: two registrators on one engine")
async def _(w):
    """With other options: each has entries of its own under its host name."""
    other = await w.another(w.engine)
    w.has(a())
    await w.run("-resync", "1")
    await other.run("-resync", "1", "-internal", "-hostname", "inside")
    await w.until(lambda: sorted(w.store.services) == ["h:a:80", "inside:a:80"], "registered both")
    await w.listed(3)
    equal("writes", sorted(w.writes()), [("put", A), ("put", PREFIX + "app/inside:a:80")])
    equal("host", w.store.services["inside:a:80"]["host"], "172.17.0.5")
    w.engine.die(*w.engine.boxes.values())
    await w.until_keys()


# ==== Running ===================================================================================

def main(argv):
    if not 1 <= len(argv) <= 2:
        sys.exit(__doc__)
    pattern = argv[1] if argv[1:] else ""
    return peers.run_cases(World, argv[0], {name: test for name, test in CASES.items() if re.search(pattern, name)})


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
