#!/usr/bin/env python3
"""Peers that do what real ones will not do on demand, around registrator.

    hostile.py BINARY [PATTERN]     the cases whose names the pattern finds
    hostile.py --soak N BINARY      N events of churn, and what they cost

Prints `ok NAME`, or `not ok NAME: why` and indented details, as peers.py does,
whose harness this is.  Besides its own matter, every case sees to it that

  - no service is deregistered that the script does not let go (lets_go());
  - no descriptor is left over, and memory stays within World.memory_mb;
  - hardly any processor time is used: a twentieth of the time it runs, and
    PEERS_CPU_S seconds for the work itself;
  - whatever peers.py looks at: no crash, no complaints of the peers, exit
    status 0 on SIGTERM, a clean log.

For builds that are slow or large on purpose, such as one with sanitizers, set
PEERS_CPU_S=60 and HOSTILE_MEMORY=60, a factor.  One that reads single bytes
(-DIO_MAX=1) is too slow for `endless`.
"""
import asyncio
import atexit
import contextlib
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import glob as files_like
from shlex import quote

import peers
from fakes import (DEREGISTER, EVENTS_HEAD, REGISTER, Consul, Engine, body_of,
                   box, chunk, listing, message, state_of)
from peers import Failure, demand, equal

AT_ONCE = 24
MEMORY = float(os.environ.get("HOSTILE_MEMORY", "1"))
DESCRIPTORS = 3 + 2 + 9 + 4     # std, the pipe of signals, engine, registry
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CASES = peers.Cases()
add, case = CASES.add, CASES.case
THREADS = ThreadPoolExecutor(AT_ONCE)


# ==== The world ==============================================================

class Guarded(Consul):
    """Complains when a service is deregistered that may not go."""

    def __init__(self):
        super().__init__()
        self.may_go = set()

    def deregister(self, path):
        before = set(self.services)
        answer = super().deregister(path)
        for name in before - self.services.keys() - self.may_go:
            self.complain("a wrong removal: " + name)
        return answer


Ended = namedtuple("Ended", "status cpu_s log")


class World(peers.World):
    limit_s = 300       # nothing here is in a hurry: others work beside it
    cpu_share = 0.05
    memory_mb = 8       # at its height

    def __init__(self, binary, tmp):
        super().__init__(binary, tmp)
        self.consul = Guarded()
        self.patience_s = 120
        self.engine_at = None   # DOCKER_HOST, if it is not the unix socket

    def environment(self, **more):
        at = {"DOCKER_HOST": self.engine_at} if self.engine_at else {}
        return super().environment(**{**at, **more})

    async def over_tcp(self):
        """The engine too, for a unix socket cannot be reset."""
        self.engine_at = "tcp://127.0.0.1:%d" % await self.engine.listen()

    def lets_go(self, *boxes):
        self.consul.may_go |= {service_of(b) for b in boxes}

    def die(self, one, *args):
        self.lets_go(one)
        self.engine.die(one, *args)

    def right(self):
        """What Consul should have: a service of each that runs."""
        return {service_of(b): {"Port": port_of(b)}
                for b in self.engine.boxes.values() if b["State"]["Running"]}

    def signal(self, number):
        """As Process.send_signal, which may take the status of one that has
        ended from who waits for it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.proc.pid, number)

    async def until_right(self, *more):
        def wrong():
            return self.mismatch({**dict.fromkeys(more, {}), **self.right()})
        await self.until(lambda: not wrong(), "came to the right services",
                         lambda: wrong()[:20])

    async def brief(self, *args):
        """Runs it to its end: for the many short runs of a case."""
        log = self.path("brief")
        with open(log, "wb") as err:
            proc = subprocess.Popen(
                [self.binary, "-hostname", "h", *args, self.uri],
                env=self.environment(), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=err)
        loop = asyncio.get_running_loop()
        end = loop.run_in_executor(THREADS, os.wait4, proc.pid, 0)
        try:
            _, status, used = await asyncio.wait_for(
                asyncio.shield(end), self.patience_s)
        except asyncio.TimeoutError:
            raise Failure("still running") from None
        finally:
            if not end.done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(proc.pid, 9)
        proc.returncode = os.waitstatus_to_exitcode(status)
        with open(log, "rb") as f:
            text = f.read()
        peers.clean_text(text)
        return Ended(proc.returncode, used.ru_utime + used.ru_stime,
                     text.decode())

    async def comes_right(self, *args, status=(0,), what=""):
        """A short run in which something may go wrong; gives its log."""
        ended = await self.brief("-once", "-retry-attempts", "3",
                                 "-retry-interval", "1", *args)
        demand(ended.status in status, "status %d%s" % (ended.status, what),
               *ended.log.splitlines()[-3:])
        demand(ended.cpu_s < peers.CPU_S,
               "busy: %.2f s of processor time%s" % (ended.cpu_s, what))
        return ended.log

    def descriptors(self):
        return len(os.listdir("/proc/%d/fd" % self.proc.pid))

    async def finish(self):
        if self.proc and self.proc.returncode is None:
            await self.until(lambda: self.descriptors() <= DESCRIPTORS,
                             "down to %d descriptors" % DESCRIPTORS)
            most = self.proc_mb("VmHWM")
            demand(most < self.memory_mb * MEMORY, "%.1f MB of memory" % most)
        if self.proc:
            await super().finish()
        equal("complaints of the peers",
              self.engine.complaints + self.consul.complaints, [])


def service_of(one):
    return "h:%s:80" % one["Name"][1:]


def port_of(one):
    return int(one["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"])


def some(n, name="b"):
    """n containers, each with a port of its own."""
    return [box("%s%04d" % (name, i), {80: 10000 + i}) for i in range(n)]


async def life(w, *boxes, args=(), **env):
    """A program that has registered these and listens."""
    w.has(*boxes)
    await w.run(*args, **env)
    await w.until(lambda: w.engine.streams, "listening")
    await w.until_right()


def whole(peer, request):
    """The answer that the peer gives when it behaves, as it is sent."""
    answer = peer.answer(request)
    return EVENTS_HEAD if callable(answer) else message(*answer)


# ==== However the bytes come =================================================

async def in_bytes(writer, data):
    for i in range(len(data)):
        if writer.is_closing():
            return
        writer.write(data[i:i + 1])
        if i % 4 == 0:
            await asyncio.sleep(0)


def in_one_packet():
    """Answers are held back until no more are asked for."""
    held = {}

    def flush(writer):
        writer.write(b"".join(held.pop(writer)))

    async def deliver(writer, data):
        if writer not in held:
            held[writer] = []
            asyncio.get_running_loop().call_later(0.05, flush, writer)
        held[writer].append(data)
    return deliver


async def twice(writer, data):
    writer.write(data + data)
    await writer.drain()


def event(engine, deed, *args):
    """The bytes of the events of a deed, which nobody has been told of."""
    engine.held = b""
    deed(*args)
    data, engine.held = engine.held, None
    return data


async def paced(deliver, n, w):
    """A session in which every byte of both peers comes like this."""
    w.engine.deliver = w.consul.deliver = deliver
    boxes = some(n)
    await life(w, *boxes[n // 4:])
    for deed, these in [(w.engine.start, boxes[:n // 4]),
                        (w.die, boxes[n // 2:])]:
        data = b"".join(event(w.engine, deed, one) for one in these)
        for writer in list(w.engine.streams):
            await deliver(writer, chunk(data))
        await w.until_right()
    equal("event streams opened",
          [r.path for r in w.engine.requests].count("/events"), 1)


add("bytes: one at a time", paced, in_bytes, 4)
add("bytes: all answers in one packet", paced, in_one_packet(), 80)


@case("bytes: the stream's head and 3000 events in one packet")
async def _(w):
    boxes = some(20)
    w.has(*boxes[:10])
    data = EVENTS_HEAD + b"".join(chunk(event(w.engine, w.engine.start, one))
                                  for one in boxes[10:] * 300)

    async def stream(writer):
        writer.write(data)
        await asyncio.sleep(3600)

    w.engine.on("GET /events", stream)
    await w.run()
    await w.until_right()
    await w.quiet()


async def doubled(side, w):
    """Each answer comes twice: what answers another request is not believed.
    """
    boxes = some(40)
    w.has(*boxes)
    equal("exit status", await w.once(), 0)
    peer = getattr(w, side)
    peer.deliver = twice
    await w.run("-resync", "1")
    await asyncio.sleep(4)
    peer.deliver = peers.plainly
    await w.until_right()


for side in ["engine", "consul"]:
    add("bytes: each answer of the %s twice" % side, doubled, side)


# ==== Cut at every byte ======================================================

async def cut_off(data, how, writer):
    """An answer: these bytes, and the connection ends in this way."""
    writer.write(data)
    await writer.drain()
    if how == "reset":
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def cuts(data):
    """Where to cut it: everywhere, but in a long body in one place of seven.
    """
    head = data.index(b"\r\n\r\n") + 8
    n = len(data)
    return [at for at in range(n + 1)
            if n < 400 or at < head or at > n - 10 or at % 7 == 0]


async def cut_session(side, glob, how, w):
    """What a session begins with, cut once a run, which ends well."""
    w.has(*some(3))
    if how == "reset":
        await w.over_tcp()
    await w.comes_right()
    equal("services", w.mismatch(w.right()), [])
    peer = getattr(w, side)
    request = [r for r in peer.requests if glob == "GET " + r.path][-1]
    data = whole(peer, request)
    for at in cuts(data):
        del peer.rules[:], w.consul.requests[:]
        peer.on(glob, partial(cut_off, data[:at], how), times=1)
        await w.comes_right(what=" when cut at %d" % at)
        equal("writes when cut at %d" % at, w.writes(), [])


def whose(request):
    """What a call is about: a service, or a container."""
    if request.path == REGISTER:
        return json.loads(request.body)["ID"]
    return request.path


def each_cut(peer, n, how):
    """A rule: the first answer about each container or service is cut, of
    each at another byte."""
    met = set()

    def answer(request):
        if whose(request) in met:
            return None
        met.add(whose(request))
        data = whole(peer, request)
        assert n > len(data), "too few to cut it everywhere"
        if len(met) > len(data) + 1:
            return None
        return partial(cut_off, data[:len(met) - 1], how)
    return answer


async def cut_each(side, glob, n, how, w):
    """A call that is made for each of n: all come right in one run."""
    if how == "reset":
        await w.over_tcp()
    going, staying = some(n), some(10, "stay")
    peer = getattr(w, side)
    peer.on(glob, each_cut(peer, n, how))
    await life(w, *going, *staying)
    with w.engine.at_once():
        for one in going:
            w.die(one)
    await w.until_right()


async def cut_events(how, w):
    """What an event that is cut tells is found out all the same."""
    if how == "reset":
        await w.over_tcp()
    one, two = some(2)
    data = chunk(event(w.engine, w.engine.start, two))
    for at in range(how == "reset", len(data), 4):
        w.engine.boxes.pop(two["Id"], None)
        w.engine.streams.clear()        # that of the run before
        await life(w, one)
        w.engine.boxes[two["Id"]] = two
        (stream,) = w.engine.streams
        await cut_off(data[:at], how, stream)
        stream.close()
        await w.until_right()
        equal("exit status", await w.stop(), 0)
        w.consul.forget([service_of(one)])


for how in ["closed", "reset"]:
    for side, path in [("engine", "/version"), ("engine", "/info"),
                       ("engine", "/events"), ("engine", "/containers/json"),
                       ("consul", "/v1/status/leader"),
                       ("consul", "/v1/agent/self"),
                       ("consul", "/v1/agent/services")]:
        add("cut: %s, then %s" % (path, how), cut_session, side,
            "GET " + path, how)
    for side, glob, n in [("engine", "GET /containers/?*/json", 1600),
                          ("consul", "PUT " + REGISTER, 90),
                          ("consul", "PUT " + DEREGISTER + "*", 90)]:
        add("cut: %s, then %s" % (glob, how), cut_each, side, glob, n, how)
    add("cut: an event, then " + how, cut_events, how)


# ==== Messages that are wrong, or merely odd =================================

def sized(data, *fields, status=b"HTTP/1.1 200 OK"):
    """The answer with a right length, and these lines before that."""
    fields += (b"Content-Length: %d" % len(data),)
    return framed(data, *fields, status=status)


def framed(data, *fields, status=b"HTTP/1.1 200 OK"):
    return b"\r\n".join([status, *fields, b"", data])


def chunked(data, *fields):
    """The answer with this text as its chunks."""
    return framed(data, *fields, b"Transfer-Encoding: chunked")


def whole_chunk(data, size=b"%x", end=b"0\r\n\r\n"):
    """The text in one chunk, whose size is said like this."""
    size = size % len(data) if b"%" in size else size
    chunks = size + b"\r\n" + data + b"\r\n" if data else b""
    return chunked(chunks + end)


def odd_messages():
    """(what, function of the text): all say it in a way that is right."""
    for line in [b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.0 200 OK",
                 b"HTTP/1.1 200 \xe9\xff \t!", b"HTTP/1.1 200 404 No"]:
        yield ascii(line), lambda data, line=line: sized(data, status=line)
    for field in [b"CONNECTION:CLOSE", b"Connection: keep-alive, Close",
                  b"Connection: ,,", b"content-LENGTH:\t%d \t", b"X:",
                  b"Content-Length: 000%d", b"X: \xff\xe9", b"!#$%&'*: x",
                  b"Keep-Alive: timeout=0", b"Upgrade: h2c",
                  b"Retry-After: -1", b"Content-Encoding: identity"]:
        yield ascii(field), lambda data, field=field: sized(
            data, field % len(data) if b"%d" in field else field)
    yield "a thousand fields", lambda data: sized(data, *[b"X: y"] * 1000)
    for size in [b"%X", b"%064x", b"%x;a=b", b"%x ;a=\"b\"", b"%x\t;"]:
        yield "chunk size %a" % size, partial(whole_chunk, size=size)
    for end in [b"000\r\n\r\n", b"0;a\r\n\r\n", b"0\r\nX: y\r\nZ:\r\n\r\n",
                b"0\r\nContent-Length: 3\r\n\r\n", b"0\r\nno field\r\n\r\n"]:
        yield "last chunk %a" % end, partial(whole_chunk, end=end)
    yield "a chunk a byte", lambda data: chunked(
        b"".join(chunk(data[i:i + 1]) for i in range(len(data)))
        + b"0\r\n\r\n")
    yield "until the end", framed
    for first in [b"HTTP/1.1 100 Continue\r\n\r\n",
                  b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
                  b"HTTP/1.1 102 P\r\nContent-Length: 7\r\n\r\n",
                  b"HTTP/1.1 199 \r\n\r\n" * 50]:
        yield "after %a" % first[:40], \
            lambda data, first=first: first + sized(data)


def wrong_messages():
    """The same for what is to be taken for a failure."""
    for line in [b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 -20 OK",
                 b"HTTP/1.1 +20 OK", b"HTTP/1.1 099 OK", b"HTTP/1.1 600 OK",
                 b"HTTP/1.1 0x1 OK", b"HTTP/1.1 000 OK", b"HTTP/1.1  200 OK",
                 b"HTTP/1.1200 OK", b"HTTP/1.10 200 OK", b"HTTP/2 200 OK",
                 b"HTTP/0.9 200 OK", b"http/1.1 200 OK", b" HTTP/1.1 200 OK",
                 b"\r\nHTTP/1.1 200 OK", b"ICY 200 OK", b"HTTP/1.1\t200 OK",
                 b"HTTP/1.1 200\0OK", b"HTTP/1.1 200 O\0K", b"\0", b"HTTP",
                 b"HTTP/1.1 200 OK\n", b"HTTP/1.1 200 OK\rX: y", b"",
                 b"HTTP/1.1 101 Switching Protocols", b"GET / HTTP/1.1"]:
        yield ascii(line), lambda data, line=line: sized(data, status=line)
    for status in [201, 202, 203, 205, 206, 300, 301, 302, 303, 307, 308, 400,
                   401, 402, 405, 408, 410, 418, 429, 451, 501, 502, 599]:
        line = b"HTTP/1.1 %d X" % status
        yield str(status), lambda data, line=line: sized(
            data, b"Location: http://127.0.0.1:1/", status=line)
    for status in [204, 304]:
        line = b"HTTP/1.1 %d X" % status
        yield "%d with text" % status, \
            lambda data, line=line: sized(data or b"x", status=line)
        yield "%d" % status, lambda _, line=line: framed(b"", status=line)
    for length in [b"-1", b"+%d", b"0x%x", b"%d.0", b"1e3", b"%d,%d", b"",
                   b"%d %d", b"\xb2", b"18446744073709551616",
                   b"-18446744073709551615", b"99999999999999999999"]:
        field = b"Content-Length: " + length
        yield ascii(field), lambda data, field=field: framed(
            data, field % ((len(data),) * field.count(b"%")))
    yield "a length that is too long", \
        lambda data: framed(data, b"Content-Length: %d" % (len(data) + 1))
    yield "a huge length", \
        lambda data: framed(data, b"Content-Length: 9223372036854775807")
    yield "two lengths", lambda data: sized(data, b"Content-Length: 0",
                                            b"Content-Length: 1")
    yield "503 without text", \
        lambda _: sized(b"", status=b"HTTP/1.1 503 Service Unavailable")
    for coding in [b"gzip", b"identity", b"gzip, chunked", b"chunked, chunked",
                   b"chunked\r\nTransfer-Encoding: chunked", b"", b"xchunked",
                   b"chunked;q=1", b"\x0bchunked"]:
        field = b"Transfer-Encoding: " + coding
        yield ascii(field), lambda data, field=field: framed(
            chunk(data) + b"0\r\n\r\n", field)
    yield "two framings", lambda data: sized(
        chunk(data) + b"0\r\n\r\n", b"Transfer-Encoding: chunked")
    yield "chunks of HTTP/1.0", lambda data: framed(
        chunk(data) + b"0\r\n\r\n", b"Transfer-Encoding: chunked",
        status=b"HTTP/1.0 200 OK")
    for field in [b"no colon", b": no name", b" folded: x", b"X : y",
                  b"X: a\0b", b"X: a\x0bb", b"X\xe9: y", b"X: a\nY: b",
                  b"X: a\rY: b"]:
        yield ascii(field), lambda data, field=field: sized(data, field)
    for size in [b"zz", b"-1", b"+%x", b"0x%x", b" %x", b"%x ", b"",
                 b"ffffffffffffffff", b"10000000000000000", b"\xb2",
                 b"7fffffffffffffff", b"%x\r", b"%x\n", b"%x,", b"%x.0"]:
        yield "chunk size %a" % size, lambda data, size=size: whole_chunk(
            data or b"{}", size=size)
    for change in (-1, 1):
        yield "a chunk %d longer than its size" % change, \
            lambda data, change=change: chunked(
                b"%x\r\n%s\r\n0\r\n\r\n"
                % (len(data or b"{}") - change, data or b"{}"))
    for end in [b"", b"0", b"0\r\n", b"0\r\nX: y\r\n", b"0\r\nX: y",
                b"x\r\n\r\n"]:
        yield "last chunk %a" % end, partial(whole_chunk, end=end)


def text_of(data):
    """What a message of the fakes says."""
    head, _, text = data.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head, "it is too long for this"
    return text


async def messages(side, glob, odd, w):
    """In each run one answer comes in another way; and the next one, if that
    was no good.  A call about one service ends the run, and is made in the
    next."""
    w.has(*some(1))
    peer = getattr(w, side)
    for what, form in odd_messages() if odd else wrong_messages():
        w.consul.forget()
        del peer.rules[:]
        peer.on(glob, lambda r: form(text_of(whole(peer, r))), times=1)
        log = await w.comes_right(status=(0,) if odd else (0, 1),
                                  what=" after " + what)
        if odd and "no answer within" in log:
            continue            # it all came at once: the machine was busy
        failed = re.search("trying again|register failed|docker: inspect", log)
        equal("%s is wrong" % what, bool(failed), not odd)
        await w.comes_right(what=" in the next run, after " + what)
        equal("services after " + what, w.mismatch(w.right()), [])


for odd in [True, False]:
    for side, glob in [("engine", "GET /version"),
                       ("engine", "GET /containers/json"),
                       ("engine", "GET /containers/?*/json"),
                       ("consul", "GET /v1/status/leader"),
                       ("consul", "GET /v1/agent/services"),
                       ("consul", "PUT " + REGISTER)]:
        add("messages: %s: %s" % ("odd" if odd else "wrong", glob), messages,
            side, glob, odd)


# ==== Without end, and without haste =========================================

CHUNKED = framed(b"", b"Transfer-Encoding: chunked")


async def pour(start, piece, gap_s, writer):
    """An answer: the start, then piece after piece until nobody listens."""
    writer.write(start)
    while not writer.is_closing():
        writer.write(piece() if callable(piece) else piece)
        await writer.drain()
        await asyncio.sleep(gap_s)


async def endless(side, globs, flows, mb, gap_s, w):
    """Each of these is an answer once.  It is given up, at the latest after
    a minute and ten seconds, with no more memory than this."""
    w.memory_mb, w.cpu_share = mb, 0.5
    peer = getattr(w, side)
    one, two = some(2)
    w.has(one)
    for glob in globs:
        for start, piece in flows:
            peer.on(glob, partial(pour, start, piece, gap_s), times=1)
    await w.run("-resync", "1", "-retry-interval", "10")
    await w.until(lambda: not any(rule[2] for rule in peer.rules),
                  "asked again after each")
    await w.until_right()
    w.engine.start(two)
    await w.until_right()
    await w.until(lambda: w.proc_mb("VmRSS") < 8 * MEMORY,
                  "small again", lambda: ["%.1f MB" % w.proc_mb("VmRSS")])


def flow(row):
    """Rows of a list, each with a number of its own in it, twice."""
    number = 0
    while True:
        out = []
        for _ in range(40):
            number += 1
            out.append(row % (number, number))
        yield b"".join(out)


row_flow = partial(
    flow, b'{"Id":"%064x","Names":["/x%d"],"Status":"Up"},')
entry_flow = partial(flow, b'"x%d":{"ID":"x%d","Service":"x"},')


OK = b"HTTP/1.1 200 OK\r\n"
LONG = b"x" * 16000
HEADS = [(b"", b"HTTP/1.1 200 OK" * 1000), (OK, b"X: y\r\n" * 1000),
         (OK + b"X: ", LONG), (OK, LONG), (b"", b"HTTP/1.1 103 X\r\n\r\n" * 9)]
BODIES = [(framed(b""), LONG), (CHUNKED, chunk(LONG)),
          (framed(b"", b"Content-Length: 9000000000000000000"), LONG),
          (framed(b"", status=b"HTTP/1.1 500 X"), LONG), (CHUNKED, LONG),
          (CHUNKED + b"1;", LONG), (CHUNKED + b"0" * 100, b"0" * 16000),
          (CHUNKED + b"0\r\n", b"X: y\r\n" * 1000)]
LEADER, SERVICES = "GET /v1/status/leader", "GET /v1/agent/services"
LIST, INSPECT = "GET /containers/json", "GET /containers/?*/json"

for what, side, globs, flows, mb, *gap_s in [
        ("heads of the engine", "engine", ["GET /version", LIST], HEADS, 8),
        ("heads of Consul", "consul", [LEADER, SERVICES], HEADS, 8),
        ("head of an inspect", "engine", [INSPECT], HEADS, 8),
        ("head of a registration", "consul", ["PUT *"], HEADS, 8),
        ("answers of the engine", "engine", ["GET /info"], BODIES, 40),
        ("answers of Consul", "consul", ["GET /v1/agent/self"], BODIES, 40),
        ("inspects", "engine", [INSPECT], BODIES, 40),
        ("registrations", "consul", ["PUT *"], BODIES, 40),
        ("blanks of a list", "engine", [LIST], [(CHUNKED, chunk(b" " * 9999))],
         8, 0.02),
        ("row of a list", "engine", [LIST],
         [(CHUNKED + chunk(b'[{"Id":"'), chunk(LONG))], 16, 0.02),
        ("rows of a list", "engine", [LIST],
         [(framed(b"["), row_flow().__next__)], 40),
        ("blanks of the services", "consul", [SERVICES],
         [(framed(b"{"), b" " * 9999)], 8, 0.02),
        ("entry of the services", "consul", [SERVICES],
         [(framed(b'{"a":{"ID":"'), LONG)], 16, 0.02),
        ("entries of the services", "consul", [SERVICES],
         [(framed(b"{"), entry_flow().__next__)], 40)]:
    add("endless: " + what, endless, side, globs, flows, mb,
        *gap_s or [0.002])


async def endless_events(piece, w):
    """What comes is no event: those of the engine are found at a resync."""
    w.memory_mb, w.cpu_share = 16, 0.5
    one, two = some(2)
    await life(w, one, args=["-resync", "1"])
    (stream,) = w.engine.streams
    for _ in range(1000):
        stream.write(chunk(piece))
        await stream.drain()
        await asyncio.sleep(0.002)
    w.engine.start(two)
    await w.until_right()


@case("endless: events of containers that do not answer")
async def _(w):
    """They are made up.  All is well when the engine answers again."""
    w.memory_mb, w.cpu_share = 40, 0.5
    one, two = some(2)
    await life(w, one)
    w.engine.on(INSPECT, (500, "no"))
    (stream,) = w.engine.streams
    for i in range(6000):
        if stream.is_closing():
            break
        stream.write(chunk(b"".join(
            b'{"status":"start","id":"%064x"}' % (100 * i + k)
            for k in range(100))))
        with contextlib.suppress(ConnectionError):
            await stream.drain()
        await asyncio.sleep(0.001)
    w.engine.behave()
    w.engine.start(two)
    await w.until_right()


add("endless: blanks among the events", endless_events, b"\n" * 9999)
add("endless: an event", endless_events, b'{"a":"' + b"{[\\\\" * 4000)
add("endless: nothing but brackets", endless_events, b"{" * 9999)


async def slow(side, glob, part, w):
    """An answer of which this takes for ever; others do not wait for it."""
    peer = getattr(w, side)
    boxes = some(6)
    w.has(*boxes[:3])
    peer.on(glob, partial(pour, *part, 0.3), times=1)
    await w.run("-resync", "2", "-retry-interval", "10")
    await w.until_right()
    for one in boxes[3:]:
        w.engine.start(one)
    w.die(boxes[0])
    await w.until_right()
    await w.until(lambda: not any(rule[2] for rule in peer.rules), "asked")


for side, glob in [("engine", "GET /version"), ("engine", "GET /info"),
                   ("engine", "GET /events"), ("engine", LIST),
                   ("engine", INSPECT), ("consul", LEADER),
                   ("consul", "GET /v1/agent/self"), ("consul", SERVICES),
                   ("consul", "PUT *")]:
    add("slow: head of " + glob, slow, side, glob, (OK + b"X: y", b"z"))
    if glob != "GET /events":
        add("slow: text of " + glob, slow, side, glob, (CHUNKED, chunk(b" ")))


# ==== JSON ===================================================================

def nested(depth, inner="1"):
    return '{"x":[' * (depth // 2) + inner + "]}" * (depth // 2)


BAD_JSON = [
    ("", ""), ("blanks", " \n"), ("a word cut", "nul"), ("a word", "nullx"),
    ("NaN", '{"x":NaN}'), ("01", '{"x":01}'), ("1.", '{"x":1.}'),
    ("+1", '{"x":+1}'), (".5", '{"x":.5}'), ("1e", '{"x":1e}'),
    ("a comma at the end", '{"x":1,}'), ("no comma", '{"x":1 "y":2}'),
    ("two commas", "[1,,2]"), ("no colon", '{"x" 1}'), ("no name", "{1:2}"),
    ("a comment", "{}/**/"), ("two values", "{}{}"), ("closed twice", "{}}"),
    ("crossed", '{"x":[}]'), ("a mark", "\ufeff{}"), ("NUL", "{}\0"),
    ("an open string", '{"x":"'), ("an open escape", '{"x":"\\'),
    ("half an escape", '{"x":"\\u12"}'), ("no escape", '{"x":"\\x41"}'),
    ("a line end in a string", '{"x":"\n"}'), ("single quotes", "{'x':1}"),
    ("NUL in a string", '{"x":"\0"}'), ("deep", nested(66)),
    ("very deep", nested(200000)), ("deep and open", "[" * 1000000),
    ("a million values", "[%s]" % ",".join("1" * 1000001)),
    ("17 MB", '{"x":"%s"}' % ("y" * (17 << 20)))]
NO_JSON = [     # of use: it is some, but does not say what was asked for
    ("null", "null"), ("a number", "1e999"), ("text", '"x"'),
    ("false", "false"), ("a list", "[1]"), ("an object", "{}"),
    ("names", '{"":1,"\\u0000":2}'),
    ("a list of lists", "[[[]]]"), ("objects", '[{},{"Id":1},{"Id":null}]'),
    ("deep enough", nested(64)), ("wide", '{%s}' % ",".join(
        '"%d":{}' % i for i in range(50000)))]
JSON_PLACES = [("engine", "GET /version"), ("engine", "GET /info"),
               ("engine", LIST), ("engine", INSPECT), ("consul", LEADER),
               ("consul", "GET /v1/agent/self"), ("consul", SERVICES)]


async def bad_json(side, glob, w):
    """Each of these is an answer once: nothing is removed on account of it,
    and what is no JSON at all has nothing written."""
    w.has(*some(3))
    await w.comes_right()
    peer = getattr(w, side)
    for what, text in BAD_JSON + NO_JSON:
        peer.on(glob, (200, text), times=1)
        await w.comes_right(status=(0, 1), what=" after " + what)
        demand(not peer.rules[0][2], "it was not asked for")
        del peer.rules[:]
        equal("services after " + what, w.mismatch(w.right()), [])
        if (what, text) in BAD_JSON:
            equal("writes after " + what, len(w.consul.writes()), 3)
    await w.comes_right()
    equal("services", w.mismatch(w.right()), [])


async def cut_json(side, glob, w):
    """The message is whole, but what it says is cut."""
    w.has(*some(2))
    await w.comes_right()
    peer = getattr(w, side)
    request = [r for r in peer.requests if glob == "GET " + r.path][-1]
    text = text_of(whole(peer, request))
    for at in range(0, len(text), 1 + len(text) // 60):
        del peer.rules[:], w.consul.requests[:]
        peer.on(glob, (200, text[:at]), times=1)
        await w.comes_right(what=" when cut at %d" % at)
        equal("writes when cut at %d" % at, w.writes(), [])


@case("JSON: inspects cut at every byte")
async def _(w):
    met = set()

    def answer(request):
        if request.path in met:
            return None
        met.add(request.path)
        text = body_of(w.engine.answer(request)[1])
        return 200, text[:len(met) % len(text)]

    boxes = some(1600)
    w.engine.on(INSPECT, answer)
    await life(w, *boxes)


for side, glob in JSON_PLACES:
    add("JSON: " + glob, bad_json, side, glob)
    if glob != INSPECT:
        add("JSON: cut, " + glob, cut_json, side, glob)


WRONG_TYPES = [None, True, 0, -1, 1.5, 10**30, "", "x", [], [None], {},
               {"": None}, [[[]]], {"80/tcp": 1}, "0", "Up"]


def paths_of(value, path=()):
    """The ways to all that is in a value."""
    inner = (value.items() if isinstance(value, dict) else
             enumerate(value) if isinstance(value, list) else ())
    for key, item in inner:
        yield path + (key,)
        yield from paths_of(item, path + (key,))


def mutants(value):
    """(where and what, the value with one part of another type)."""
    for path in paths_of(value):
        for wrong in WRONG_TYPES:
            copy = at = json.loads(json.dumps(value))
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = wrong
            yield "%s = %r" % (".".join(map(str, path)), wrong), copy


def rich(name, port=8080):
    return box(name, {80: port}, env=["SERVICE_X=1"], labels={"y": "z"},
               nets={"bridge": "172.17.0.5"})


def has_gone(what):
    """Whether this makes sense, and says that the service is gone, or has
    another name."""
    return re.match(r"Name = '|State\.Restarting = True"
                    r"|NetworkSettings = \{|NetworkSettings\.Ports", what)


@case("JSON: an inspect with one part of another type")
async def _(w):
    """What is no description of a container changes nothing."""
    w.memory_mb = 16
    answer, boxes = {}, some(5)
    for number, (what, mutant) in enumerate(mutants(rich("x"))):
        one = rich("m%d" % number, 20000 + number)
        for key in ("Id", "Name"):
            if mutant[key] == rich("x")[key]:
                mutant[key] = one[key]
        answer["/containers/%s/json" % one["Id"]] = (200, mutant)
        boxes.append(one)
        if has_gone(what):
            w.lets_go(one, {**one, "Name": "/%s" % mutant["Name"]})
    await life(w, *boxes)
    w.engine.on(INSPECT, lambda r: answer.get(r.path))
    del w.engine.requests[:]
    with w.engine.at_once():
        for one in boxes[5:]:
            w.engine.emit("update", one)
    await w.until(lambda: answer.keys() <= {
        r.path for r in w.engine.requests}, "looked at all")
    await asyncio.sleep(2)
    w.engine.behave()
    w.signal(signal.SIGHUP)
    await w.until_right()


@case("JSON: a row of the list with one part of another type")
async def _(w):
    """Whatever the list shows, the containers run, and inspect says so."""
    boxes = some(3)
    w.has(*boxes)
    await w.comes_right()
    rows = [listing(b) for b in boxes]
    for what, mutant in mutants(rows[1]):
        w.engine.on(LIST, (200, [rows[0], mutant, rows[2]]))
        await w.comes_right(status=(0, 1), what=" after " + what)
        w.engine.behave()
    equal("writes", len(w.consul.writes()), 3)


@case("JSON: an entry of Consul with one part of another type")
async def _(w):
    """What Consul lists of a container's service may have it written again,
    but not removed."""
    w.has(*some(3))
    await w.comes_right()
    good = json.loads(json.dumps(w.consul.services))
    for what, mutant in mutants(good[service_of(some(1)[0])]):
        services = {**good, service_of(some(1)[0]): mutant}
        w.consul.on(SERVICES, (200, services), times=1)
        await w.comes_right(what=" after " + what)
        w.consul.behave()


@case("JSON: keys twice")
async def _(w):
    """The last one counts, as for Go."""
    def more(value, *keys):
        return re.sub('"(%s)": ' % "|".join(keys),
                      r'"\1": null, "\1": {"x": [1]}, "\1": ',
                      json.dumps(value))

    (one,) = some(1)
    w.engine.on(INSPECT, (200, more(one, "Id", "Name", "Running", "Ports",
                                    "HostPort", "Labels", "Config")))
    w.engine.on(LIST, (200, more([listing(one)], "Id", "Names", "Status")))
    w.engine.on("GET /info", (200, '{"ID":"x","ID":"PARI:TYEN:GINE"}'))
    w.consul.on(SERVICES, lambda _: (200, more(
        w.consul.services, "ID", "Service", "Meta", "Tags", "Port")))
    w.has(one)
    for _ in range(2):
        await w.comes_right()
    equal("writes", w.writes(), [("register", service_of(one))])


# ==== Sockets ================================================================

def deaf(engine, from_connection):
    """From this connection on the engine reads nothing and says nothing."""
    serve, count = engine.serve, 0

    async def hear(reader, writer):
        nonlocal count
        count += 1
        if count < from_connection:
            return await serve(reader, writer)
        writer.get_extra_info("socket").shutdown(socket.SHUT_RD)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(5)
        writer.close()
    engine.serve = hear
    return serve


async def deaf_engine(from_connection, w):
    """What cannot be written is not tried without a pause."""
    boxes = some(3)
    w.has(*boxes)
    w.engine.close()
    serve = deaf(w.engine, from_connection)
    await w.engine.listen(w.docker)
    await w.run("-resync", "1")
    await asyncio.sleep(4)
    w.engine.serve = serve
    w.engine.close()
    await w.engine.listen(w.docker)
    await w.until_right()


for number, what in [(1, "at all"), (2, "the events"), (3, "an inspect")]:
    add("sockets: the engine does not hear " + what, deaf_engine, number)


@case("sockets: the engine's queue is full")
async def _(w):
    w.has(*some(3))
    w.engine.close()
    os.unlink(w.docker)
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(w.docker)
        full.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(w.docker)
        await w.run()
        await w.until_log("docker.sock: Resource temporarily unavailable")
        for one in waiting:
            one.close()
    await w.engine.listen(w.docker)
    await w.until_right()


async def half_closed(side, w):
    """A peer that ends what it says after each answer, but goes on reading:
    the connection is of no use any more."""
    ended = set()

    async def answer_and_end(writer, data):
        if writer not in ended:
            ended.add(writer)
            writer.write(data)
            writer.write_eof()

    getattr(w, side).deliver = answer_and_end
    boxes = some(20)
    await life(w, *boxes[:10])
    for one in boxes[10:]:
        w.engine.start(one)
    w.die(boxes[0])
    await w.until_right()


for side in ["engine", "consul"]:
    add("sockets: the %s ends each connection by half" % side, half_closed,
        side)


# ==== Containers that are gone, and those that are not =======================

GONE = [
    ("Docker", '{"message":"No such container: %s"}\n'),
    ("Docker 1.3", "No such container: %s\n"),
    ("Podman", '{"cause":"no such container","message":"no container with '
     'name or ID \\"%s\\" found: no such container","response":404}')]
NOT_GONE = [
    ("page not found", '{"message":"page not found"}\n'),
    ("a proxy's HTML", "<html>404 Not Found</html>"),
    ("a proxy's JSON", '{"status":404,"path":"/containers/x/json"}'),
    ("nothing", ""), ("an empty object", "{}"),
    ("of another", '{"message":"No such container: %s"}' % ("ab" * 32))]


async def not_found(text, gone, w):
    """Inspect answers 404; only its own words that this container is not
    there have its services removed."""
    one, two = some(2)
    await life(w, one, two)
    if gone:
        w.lets_go(one)
        del w.engine.boxes[one["Id"]]
    text = text % one["Id"] if "%s" in text else text
    w.engine.on("GET /containers/%s/json" % one["Id"], (404, text))
    w.engine.emit("update", one)
    if gone:
        await w.until_right()
    await w.quiet()
    w.engine.behave()
    w.signal(signal.SIGHUP)
    await w.until_right()


for gone, texts in [(True, GONE), (False, NOT_GONE)]:
    for what, text in texts:
        add("gone: 404 of " + what, not_found, text, gone)


@case("gone: the list names ten that are gone at inspect")
async def _(w):
    here, gone = some(5), some(10, "gone")
    await life(w, *here, *gone)
    w.lets_go(*gone)
    rows = [listing(b) for b in gone + here]
    for one in gone:
        del w.engine.boxes[one["Id"]]
    w.engine.on(LIST, (200, rows))
    w.signal(signal.SIGHUP)
    await w.until_right()
    equal("exit status", await w.stop(), 0)
    await w.run()
    await w.until_log("Syncing services on 15")
    await w.quiet()
    equal("services", w.mismatch(w.right()), [])


@case("gone: the list lacks some that run")
async def _(w):
    """They are inspected, and stay."""
    boxes = some(10)
    await life(w, *boxes)
    w.engine.on(LIST, (200, [listing(b) for b in boxes[::2]]))
    w.signal(signal.SIGHUP)
    await w.quiet(2)
    equal("services", w.mismatch(w.right()), [])


@case("gone: a list that fails half-way, time and again")
async def _(w):
    """Nothing goes; what could be read is registered in the end."""
    boxes = some(30)
    await life(w, *boxes[:20], args=["-resync", "1"])
    w.has(*boxes[20:])
    data = framed(json.dumps([listing(b) for b in boxes]).encode()[:-3000])
    w.engine.on(LIST, data, times=4)
    await w.until(lambda: not w.engine.rules[0][2], "listed four times")
    await w.until_right()


# ==== Events =================================================================

@case("events: of 1 MB, between others")
async def _(w):
    w.memory_mb = 12
    boxes = some(30)
    await life(w, *boxes[:10])
    long = {"label%d" % i: "x" * 1000 for i in range(1000)}
    with w.engine.at_once():
        for one in boxes[10:]:
            w.engine.start(one)
            w.engine.emit("exec_start: x", one, **long)
        for one in boxes[:5]:
            w.die(one)
            w.engine.emit("start", boxes[7], **long)
    await w.until_right()


@case("events: one of 5 MB is not read, and has everything listed")
async def _(w):
    w.memory_mb = 12
    one, two, three = some(3)
    await life(w, one, two)
    w.engine.boxes[three["Id"]] = three
    w.engine.emit("start", three, label="x" * (5 << 20))
    await w.until_right()
    w.die(two)
    await w.until_right()
    equal("event streams opened",
          [r.path for r in w.engine.requests].count("/events"), 1)


@case("events: two objects in each other")
async def _(w):
    """What is told by an object within another is not told."""
    one, two = some(2)
    await life(w, one)
    inner = '{"status":"die","id":"%s"}' % one["Id"]
    w.engine.send(('{"x":%s}{"Actor":%s,"Type":[%s]}{"status":"x","y":[%s,{'
                   '"z":"}{"}]}' % (inner, inner, inner, inner)).encode())
    w.engine.start(two)
    await w.until_right()
    await w.quiet()


@case("events: keys twice")
async def _(w):
    """The last one counts, as for Go."""
    one, two = some(2)
    await life(w, one)
    w.engine.boxes[two["Id"]] = two
    w.engine.send(('{"status":"die","id":"%s","status":"start","id":"%s"}'
                   % (one["Id"], two["Id"])).encode())
    await w.until_right()
    w.lets_go(two)
    two["State"] = state_of("exited")
    w.engine.send(('{"Action":"start","Action":"die","Type":"image","Type":'
                   '"container","Actor":{"ID":"%s"},"Actor":{"ID":"%s"}}'
                   % (one["Id"], two["Id"])).encode())
    await w.until_right()


@case("events: one too deep, and one that is no JSON, again and again")
async def _(w):
    """The stream is opened anew each time, after a pause."""
    boxes = some(8)
    await life(w, boxes[0])
    for number, one in enumerate(boxes[1:]):
        w.engine.boxes[one["Id"]] = one
        w.engine.send(nested(70).encode() if number % 2 else b'{"x"}')
        w.engine.streams.clear()
        await w.until_right()
        await w.until(lambda: w.engine.streams, "listening again")


class Unreliable(Engine):
    """Its events are lost, told twice, put off and mixed up by chance."""

    def __init__(self, seed):
        super().__init__()
        self.chance = random.Random(seed)
        self.late = []

    def tell(self, writer, data):
        for _ in range(self.chance.choice([0, 1, 1, 1, 2])):
            self.late.append((writer, data))
        while self.late and self.chance.random() < 0.7:
            writer, one = self.late.pop(
                self.chance.randrange(len(self.late)))
            super().tell(writer, one)


async def unreliable(seed, form, w):
    """In the end all is right, and what never ended has never gone."""
    w.engine = Unreliable(seed)
    w.engine.form = form
    await w.engine.listen(w.docker)
    chance = random.Random(seed)
    steady, moving = some(10, "steady"), some(30)
    await life(w, *steady, *moving, args=["-resync", "2"])
    for _ in range(400):
        one = chance.choice(moving)
        if chance.random() < 0.5:
            w.engine.start(one)
        else:
            w.die(one)
        w.engine.emit("update", chance.choice(steady))
        await asyncio.sleep(chance.choice([0, 0, 0.01]))
    await w.until_right()


for number, form in enumerate(["1.3", "1.10", "29", "1.10"]):
    add("events: lost, twice, late and mixed up, %d" % number, unreliable,
        number, form)


# ==== Consul that has no time ================================================

BUSY = [(status, after) for status in (429, 500, 503)
        for after in (None, "2", "0", "-1", "99999999999999999999",
                      "Wed, 21 Oct 2015 07:28:00 GMT")]


def busy(status, after):
    fields = [] if after is None else [b"Retry-After: " + after.encode()]
    return sized(b"busy", *fields, status=b"HTTP/1.1 %d Busy" % status)


async def busy_consul(glob, w):
    """The first call, and some of those that follow, get such answers."""
    chance, turns = random.Random(glob), iter(range(10000))

    def answer(_):
        turn = next(turns)
        if turn > 0 and (turn > 24 or chance.random() < 0.5):
            return None
        text = busy(*BUSY[turn % len(BUSY)])

        async def stay(writer):     # the connection does, too
            writer.write(text)
            await asyncio.sleep(0.1)
        return chance.choice([text, stay])

    boxes = some(60)
    w.consul.on(glob, answer)
    await life(w, *boxes, args=["-retry-interval", "10"])
    for one in boxes[::2]:
        w.die(one)
    await w.until_right()
    demand(next(turns) > 0, "nothing was asked for")


for glob in [LEADER, "GET /v1/agent/self", SERVICES, "PUT " + REGISTER,
             "PUT " + DEREGISTER + "*", "*"]:
    add("busy Consul: " + glob, busy_consul, glob)


# ==== No memory, few descriptors, a clock that jumps =========================

WRAPPED = {}


def build_wrapped():
    """A static registrator in which wrap.c stands before libc."""
    to = tempfile.mkdtemp(prefix="hostile-")
    bearssl = files_like("bearssl-0.6*", root_dir=ROOT)[0]
    atexit.register(shutil.rmtree, to)
    wrap = ",".join("--wrap=" + name for name in (
        "malloc", "calloc", "realloc", "time", "clock_gettime"))
    subprocess.run(
        ["musl-gcc", "-O1", "-static", "-fno-pie", "-no-pie", "-Wl," + wrap,
         "-isystem", bearssl + "/inc", "-o", to + "/wrapped",
         "registrator.c", "tests/wrap.c",
         bearssl + "/build-musl-gcc/libbearssl.a"], cwd=ROOT, check=True)
    return to + "/wrapped"


async def wrapped():
    if not WRAPPED:
        WRAPPED["path"] = asyncio.get_running_loop().run_in_executor(
            None, build_wrapped)
    return await WRAPPED["path"]


async def soon(w, truth):
    """Waits for that, or the end of the program.  True: it runs."""
    while w.proc.returncode is None and not truth():
        await asyncio.sleep(0.002)
    return w.proc.returncode is None


async def short_session(w, env):
    """From start to end; or to where it ends by itself."""
    one, two, three = some(3)
    w.consul.forget()
    w.consul.put(peers.entry("other"))
    w.consul.may_go.clear()
    w.engine.boxes.clear()
    w.engine.streams.clear()
    w.has(one, two)

    def right():
        return w.engine.streams and not w.mismatch(
            {"other": {}, **w.right()})

    await w.run("-resync", "0", "-on-exit", "deregister", "-retry-interval",
                "1", **env)
    if not await soon(w, right):
        return
    w.engine.start(three)
    w.die(one)
    if not await soon(w, right):
        return
    w.lets_go(two, three)
    w.signal(signal.SIGTERM)


async def no_memory(first, step, sign, w):
    """One request for memory fails (or, sign -1, all that follow, too), in
    each run a later one, until there are no more."""
    w.binary, through = await wrapped(), 0
    for n in range(first, 100000, step):
        await asyncio.wait_for(
            short_session(w, {"NOMEM": str(sign * n)}), w.patience_s)
        status, log = await w.exit(), w.lines()
        failed = "wrap: no memory" in log
        if failed and status != 0:
            equal("status without request %d" % n, status, 1)
            equal("last words without request %d" % n, log[-1],
                  "registrator: out of memory")
        else:
            equal("status with all but request %d" % n, status, 0)
            equal("services", list(w.consul.services), ["other"])
        for path in w.runs.pop():
            os.unlink(path)
        through += not failed
        if through == 2:
            break
    await w.run()       # so that there is one that ends well
    await w.until_right("other")


for lane in range(8):
    add("no memory: one request fails, %d" % lane, no_memory, lane + 1, 8, 1)
add("no memory: from one request on", no_memory, 1, 5, -1)


@case("clock: it jumps by years, and nobody minds")
async def _(w):
    """Pauses and the like are of the monotonic clock; this is for the log."""
    w.binary = await wrapped()
    boxes = some(10)
    w.consul.on("PUT " + REGISTER, (500, "no"), times=3)
    await life(w, *boxes[:5], args=["-resync", "1"], WALL="1")
    w.engine.end_events()
    w.has(*boxes[5:])
    w.consul.drop()
    await w.until_right()
    w.consul.close()
    w.die(boxes[0])
    await asyncio.sleep(1)
    await w.consul.listen(port=w.port)
    await w.until_right()
    await w.quiet(3)
    years = {line[:4] for line in w.lines()}
    demand(years >= {"1970", "2038", "2100", "9999"}, "no jumps in the log",
           repr(years))


NO_MORE = "descriptors|Too many open files"     # musl's words, and glibc's


def with_descriptors(w, n):
    """The program under `ulimit -n`; a search for leaks would need more."""
    script = w.path("few")
    with open(script, "w") as f:
        f.write('#!/bin/sh\nexport ASAN_OPTIONS=detect_leaks=0\n'
                'ulimit -n %d && exec %s "$@"\n' % (n, quote(w.binary)))
    os.chmod(script, 0o755)
    w.binary = script


async def few_descriptors(n, w):
    """It works with those it has, and goes on after trouble."""
    with_descriptors(w, n)
    boxes = some(60)
    await life(w, *boxes[:30], args=["-resync", "2"])
    with w.engine.at_once():
        for one in boxes[30:]:
            w.engine.start(one)
        for one in boxes[:10]:
            w.die(one)
    await w.until_right()
    for trouble in [w.engine.drop, w.consul.drop, w.engine.end_events]:
        trouble()
        w.die(boxes[50])
        w.engine.start(boxes[0])
        await w.until_right()
        await w.until(lambda: w.engine.streams, "listening")
        w.engine.start(boxes[50])
        w.die(boxes[0])
        await w.until_right()
    w.engine.on(INSPECT, peers.hang, times=6)
    w.consul.on("PUT *", peers.hang, times=2)
    for one in boxes[:10]:
        w.engine.start(one)
    await w.until_right()
    equal("lines about descriptors",
          [line for line in w.lines() if re.search(NO_MORE, line)], [])


for n in [32, 33, 40]:
    add("descriptors: %d" % n, few_descriptors, n)


async def no_descriptors(n, w):
    """Too few: it says so and ends."""
    with_descriptors(w, n)
    w.has(*some(3))
    await w.run()
    equal("exit status", await w.exit(), 1)
    (line,) = w.lines(peers.ROUTINE)
    demand(re.search(NO_MORE, line), "does not say why", line)


for n in [4, 5, 8, 16, 24, 31]:
    add("descriptors: %d are too few" % n, no_descriptors, n)


# ==== Soak ===================================================================

class Churn:
    """Containers that come and go by chance, beside some that stay."""

    def __init__(self, w, seed=1):
        self.w = w
        self.engine = w.engine
        self.chance = random.Random(seed)
        self.steady = some(50, "steady")
        self.moving = some(250)
        self.events = self.names = 0
        self.nets = ["net%d" % i for i in range(20)]

    def start(self, one):
        if one["State"]["Running"]:
            return self.die(one)
        port = str(self.chance.randrange(1024, 65536))
        for to in one["NetworkSettings"]["Ports"]["80/tcp"]:
            to["HostPort"] = port
        self.engine.emit("create", one)
        self.engine.start(one)
        return 2

    def die(self, one):
        if not one["State"]["Running"]:
            return self.start(one)
        self.w.die(one, self.chance.choice([0, 1, 137]))
        self.engine.emit("stop", one)
        return 2

    def destroy(self, one):
        self.w.die(one)
        self.engine.destroy(one)
        self.engine.boxes[one["Id"]] = one      # to come again
        return 2

    def rename(self, one):
        self.w.lets_go(one)
        self.names += 1
        self.engine.rename(one, "n%d" % self.names)
        self.w.lets_go(one)
        return 1

    def attach(self, one):
        nets = self.chance.sample(self.nets, 2)
        self.engine.attach(one, {net: "10.0.0.9" for net in nets})
        return 3

    def noise(self, one):
        for word in ["exec_create: sh", "exec_start: sh", "exec_die"]:
            self.engine.emit(word, one)
        return 3

    def steady_noise(self, _):
        self.engine.emit("update", self.chance.choice(self.steady))
        return 1

    async def go_on(self, events):
        """At least so many events more."""
        deeds = [self.start] * 4 + [self.die] * 4 + [
            self.destroy, self.rename, self.attach, self.noise,
            self.steady_noise]
        end = self.events + events
        while self.events < end:
            one = self.chance.choice(self.moving)
            self.events += self.chance.choice(deeds)(one)
            if self.chance.random() < 0.05:
                await asyncio.sleep(0.005)
            for stream in list(self.engine.streams):
                with contextlib.suppress(ConnectionError):
                    await stream.drain()


Sample = namedtuple("Sample", "events rss_kb descriptors cpu_s")


async def soak(events, w):
    """Memory and descriptors stay flat, and all is right in the end."""
    churn, samples = Churn(w), []
    w.memory_mb, w.cpu_share = 12, 0.9
    await life(w, *churn.steady, *churn.moving)
    while churn.events < events:
        await churn.go_on(events // 40)
        await w.until_right()
        samples.append(Sample(churn.events, round(w.proc_mb("VmRSS") * 1024),
                              w.descriptors(), w.cpu_s()))
        for peer in (w.engine, w.consul):
            del peer.requests[:]
    early = max(s.rss_kb for s in samples[:10])
    late = max(s.rss_kb for s in samples[-10:])
    demand(late < early * (1.1 if MEMORY == 1 else 10) + 128,
           "memory grows from %d to %d kB" % (early, late))
    demand(max(s.descriptors for s in samples) <= DESCRIPTORS, "descriptors",
           repr(samples))
    await w.quiet()
    await w.until_right()
    return samples


add("soak: 1500 events", soak, 1500)


@case("soak: networks that come and go")
async def _(w):
    """Those that are gone are not kept for ever."""
    one = box("x", {80: 8080}, expose=[81])     # 81: which driver is it?
    w.cpu_share = 0.9
    await life(w, one, args=["-resync", "1"])
    used = []
    for number in range(6000):
        del w.engine.requests[:]
        w.engine.attach(one, {"net%d" % number: "10.0.0.2"})
        (net,) = one["NetworkSettings"]["Networks"].values()
        paths = {"/networks", "/networks/" + net["NetworkID"]}
        while not paths & {r.path for r in w.engine.requests}:
            await asyncio.sleep(0)
        if number % 2000 == 1999:
            used.append(w.proc_mb("VmRSS"))
    demand(used[-1] - used[0] < 0.6 * MEMORY, "memory grows", repr(used))


async def long_soak(events, binary):
    """For hand: prints what it finds."""
    async def measured(w):
        samples = await soak(events, w)
        for s in samples[::4] + samples[-1:]:
            print("%8d events  %6d kB  %2d descriptors  %6.2f s" % s)

    return await peers.run_cases(
        World, binary, {"soak: %d events" % events: measured}, 1)


async def main(argv, cases, doc):
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if len(argv) == 3 and argv[0] == "--soak":
        return await long_soak(int(argv[1]), argv[2])
    if len(argv) not in (1, 2):
        sys.exit(doc)
    pattern = argv[1] if argv[1:] else ""
    waits_long = re.compile("endless|slow|descriptors")     # these first
    chosen = {name: cases[name] for name in sorted(
        cases, key=lambda name: not waits_long.match(name))
              if re.search(pattern, name)}
    return await peers.run_cases(World, argv[0], chosen, AT_ONCE)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:], CASES, __doc__)))
