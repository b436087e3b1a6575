#!/usr/bin/env python3
"""Engines of all ages: Docker 1.3 (2014) to 29, each played by a script.

    ages.py BINARY [PATTERN]   the cases whose names the pattern finds

What an engine of some time says, and in which order, is in the tables below;
they come from recordings of 20.10, 26.1 and 28.5, and from the sources and
the API history of the others.  Every engine goes through the same life of a
container, and what Consul has must be right after each step.  Prints `ok
NAME` or `not ok NAME: why`; see hostile.py for what is looked at besides.
"""
import asyncio
import re
import sys
from collections import namedtuple
from functools import partial

import hostile
import peers
from fakes import Engine, bindings, state_of
from peers import equal

# api, least: the newest and the oldest version that a path may name; form,
# between: of the events, see Engine; order: one of those below.
Age = namedtuple("Age", "version api least form between order")

# Which events come when a container starts, ends by itself, is stopped and so
# on.  s and d are start and die; + and - a network that is joined, and left.
FIRST = {"start": "create s", "exit": "d", "stop": "d stop",
         "restart": "d s restart", "crash": "d s", "kill": "kill d",
         "remove": "d destroy", "fail": "create d",
         "mixed up": "s d"}         # each was told by a thread of its own
OLDER = {"start": "create + s", "exit": "d -", "stop": "kill d - stop",
         "restart": "kill d - stop + s restart", "crash": "d - + s",
         "kill": "kill d -", "remove": "kill d - destroy",
         "fail": "create + -"}
NEWER = {"start": "create + s", "exit": "- d", "stop": "kill - stop d",
         "restart": "kill - stop d + s restart", "crash": "- d + s",
         "kill": "kill - d", "remove": "kill - d destroy",
         "fail": "create + -"}

AGES = [
    Age("1.3.0", "1.15", None, "1.3", "{}", FIRST),
    Age("1.6.2", "1.18", None, "1.3", "{}", FIRST),
    Age("1.7.1", "1.19", None, "1.3", "{}\n", FIRST),
    Age("1.8.3", "1.20", "1.12", "1.3", "{}\n", FIRST),
    Age("1.9.1", "1.21", "1.12", "1.3", "{}\n", FIRST),
    Age("1.12.6", "1.24", "1.12", "1.10", "{}\n", OLDER),
    Age("17.06.2-ce", "1.30", "1.12", "1.10", "{}\n", OLDER),
    Age("20.10.24", "1.41", "1.12", "1.10", "{}\n", OLDER),
    Age("26.1.5", "1.45", "1.24", "1.10", "{}\n", NEWER),
    Age("28.5.2", "1.51", "1.24", "1.10", "{}\n", NEWER),
    Age("29.0.0", "1.52", "1.44", "29", "{}\n", NEWER),
    Age("29.7.2", "1.55", "1.40", "29", "\x1e{}\n", NEWER),
]


def number(version):
    return tuple(int(part) for part in version.split("."))


class Aged(Engine):
    """An engine of that age.  has(1.20): it speaks that version."""

    def __init__(self, age):
        super().__init__()
        self.age = age
        self.form, self.between = age.form, age.between
        self.late_head = age.api == "1.19"
        if self.has("1.52"):
            self.head = self.head.replace(b"json", b"x-ndjson")
        self.deliver = self.with_its_headers

    def has(self, version):
        return number(self.age.api) >= number(version)

    async def with_its_headers(self, writer, data):
        line, rest = data.split(b"\r\n", 1)
        more = b"Server: Docker/%s (linux)" % self.age.version.encode()
        if self.has("1.25"):
            more = (b"Api-Version: %s\r\nDocker-Experimental: false\r\n"
                    b"Ostype: linux\r\n%s" % (self.age.api.encode(), more))
        await peers.plainly(writer, b"\r\n".join([line, more, rest]))

    # -- what it says

    def answer(self, request):
        named = re.match(r"/v([\d.]+)/", request.target)
        if named and not self.takes(named[1]):
            return 400, "client version %s is too old or too new" % named[1]
        if request.path == "/version":
            least = self.age.least if self.has("1.25") else None
            return 200, {"Version": self.age.version, "Os": "linux",
                         "ApiVersion": self.age.api,
                         **({"MinAPIVersion": least} if least else {})}
        if request.path == "/info" and not self.has("1.17"):
            return 200, {"Containers": 1, "Driver": "aufs", "MemoryLimit": 1}
        answer = super().answer(request)
        if callable(answer) or answer[0] == 200 or self.has("1.24"):
            return answer
        return answer[0], answer[1]["message"] + "\n"

    def takes(self, version):
        return number(self.age.least or "1.0") <= number(version) \
            <= number(self.age.api)

    def text(self, value):
        if isinstance(value, list):
            value = [self.row(one) for one in value]
        elif "NetworkSettings" in value:
            value = self.inspect(value)
        return super().text(value)

    def row(self, row):
        row = {**row, "Command": "/bin/x", "Created": 1416355200}
        if not self.has("1.24"):        # as a link of another container
            row["Names"] = ["/other/alias"] + row["Names"]
        if self.has("1.52"):
            row["Ports"] = [{"IP": "", **port} for port in row["Ports"]]
        for key, since in [("Labels", "1.18"), ("HostConfig", "1.20"),
                           ("NetworkSettings", "1.22"), ("State", "1.23")]:
            if not self.has(since):
                del row[key]
        return row

    def inspect(self, one):
        network, state = dict(one["NetworkSettings"]), dict(one["State"])
        config = dict(one["Config"])
        if not self.has("1.18"):
            del config["Labels"]
        if not self.has("1.21"):
            del network["Networks"], state["Status"], state["Dead"]
        if not self.has("1.17"):
            del network["GlobalIPv6Address"], state["OOMKilled"]
        if self.has("1.52"):
            del network["GlobalIPv6Address"], network["IPAddress"]
        if not state["Running"]:
            network["Ports"] = {} if self.has("1.16") else None
        return {**one, "NetworkSettings": network, "State": state,
                "Config": config}

    # -- what it does

    def publish(self, one, port):
        """On all addresses: twice since 20.10."""
        both = ["0.0.0.0:%d" % port] + [":::%d" % port] * self.has("1.41")
        one["NetworkSettings"]["Ports"] = {"80/tcp": bindings(both)}

    def events_of(self, deed, one):
        for word in self.age.order[deed].split():
            if word in ("+", "-"):
                self.emit("connect" if word == "+" else "disconnect", one,
                          "network", name="bridge", type="bridge")
            else:
                word = {"s": "start", "d": "die"}.get(word, word)
                more = {"exitCode": "137"} if word == "die" else {}
                self.emit(word, one, **more)

    def runs(self, deed, one, port):
        """It runs from now on.  When it is restarted, inspect says so from
        the first of the events on: it waits until that is done."""
        one["State"] = state_of("running")
        self.publish(one, port)
        self.boxes[one["Id"]] = one
        self.events_of(deed, one)

    def ends(self, deed, one):
        one["State"] = state_of("exited", 137)
        if deed == "remove":
            del self.boxes[one["Id"]]
        self.events_of(deed, one)


# ==== The life of a container ================================================

async def an_age(age, w):
    w.engine = engine = Aged(age)
    await engine.listen(w.docker)
    one, *others = hostile.some(4)
    for number_, other in enumerate(others):
        engine.publish(other, 9000 + number_)
    w.lets_go(one)
    await hostile.life(w, *others[:2])

    for deed in ["exit", "stop", "kill", "remove"]:
        engine.runs("start", one, 8001)
        await w.until_right()
        for port, again in enumerate(["restart", "crash", "mixed up"], 8002):
            if again in age.order:
                engine.runs(again, one, port)
                await w.until_right()
        await at_rest(one, w)
        engine.ends(deed, one)
        await w.until_right()
    engine.boxes[one["Id"]] = one
    engine.ends("fail", one)
    await w.quiet(0.5)
    if engine.has("1.21"):
        await renamed(others[0], w)
    engine.runs("start", others[2], 9002)
    await w.until_right()

    equal("event streams opened",
          [r.path for r in engine.requests].count("/events"), 1)
    equal("paths with a version", [r.target for r in engine.requests
                                   if r.target.startswith("/v1.")], [])


async def at_rest(one, w):
    """What says nothing of services writes nothing."""
    words = ["pause", "unpause"]
    if w.engine.has("1.17"):
        words += ["exec_create: sh", "exec_start: sh", "oom"]
    if w.engine.has("1.24"):
        words += ["update", "exec_die", "health_status: healthy"]
    for word in words:
        one["State"] = state_of("paused" if word == "pause" else "running")
        w.engine.emit(word, one)
    await w.quiet(0.3)


async def renamed(one, w):
    w.lets_go(one)
    w.engine.rename(one, "new")
    await w.until_right()


async def found_again(age, w):
    """It is killed, and the next one finds all as it was, but for a change
    that it makes up for."""
    w.engine = engine = Aged(age)
    await engine.listen(w.docker)
    boxes = hostile.some(6)
    for port, one in enumerate(boxes, 9000):
        engine.publish(one, port)
    await hostile.life(w, *boxes[:5])
    w.proc.kill()
    await w.exit()
    engine.streams.clear()
    before = len(w.consul.writes())
    w.lets_go(boxes[0])
    engine.ends("stop", boxes[0])
    engine.runs("start", boxes[5], 9005)
    await hostile.life(w)
    await w.quiet(0.5)
    equal("writes", sorted(w.writes(before)),
          [("deregister", "h:b0000:80"), ("register", "h:b0005:80")])


async def wants_versions(age, w):
    """A proxy before it lets only paths with a version through."""
    w.engine = engine = Aged(age)
    await engine.listen(w.docker)
    engine.on("GET /*", lambda r: None if r.path == "/version"
              or r.target.startswith("/v%s/" % age.api)
              else (400, "which version?"))
    boxes = hostile.some(3)
    for port, one in enumerate(boxes, 9000):
        engine.publish(one, port)
    await hostile.life(w, *boxes)


def cases():
    for age in AGES:
        for test, what in [(an_age, "a container's life"),
                           (found_again, "found again"),
                           (wants_versions, "only paths with a version")]:
            yield ("ages: Docker %s: %s" % (age.version, what),
                   partial(test, age))


if __name__ == "__main__":
    sys.exit(asyncio.run(hostile.main(sys.argv[1:], dict(cases()), __doc__)))
