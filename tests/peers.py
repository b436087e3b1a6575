#!/usr/bin/env python3
"""Black-box tests of registrator: a scripted engine and a scripted Consul (fakes.py) around the binary.

  peers.py BINARY [PATTERN]      run every case whose name the regular expression PATTERN finds

Prints `ok NAME` or `not ok NAME: reason` and indented details; exits 1 if a case failed.  "Section"
in the banners below is one of the contract.

Besides what a case itself looks at, every case fails if a peer was asked for something registrator
has no business with, a secret or a control character shows in the output, a log line does not begin
with a date, or the program burns processor time, ends by itself, or does not end with 0 on SIGTERM.
"""
import asyncio
import base64
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
from collections import Counter, namedtuple
from functools import partial

from fakes import Consul, Engine, body_of, box, hang, listing, plainly, state_of

LIMIT_S = 40        # for what must happen
QUIET_S = 1.0       # for what must not
CASE_S = 240        # for a whole case
AT_ONCE = 8         # cases
CPU_S = float(os.environ.get("PEERS_CPU_S", "0.3"))     # what a case may cost; more for a torture build
SECRET = "s3cr3t"   # part of every token and password below
ROUTINE = "Starting registrator|Using .* adapter|consul: current leader|Listening|Syncing|in sync:|added:|ignored:"
MARK = "[0-9a-f]{16}-[0-9a-f]{24}"      # OWNER-CONTENT


class Failure(Exception):
    """What was expected and did not happen: a reason and lines of details."""

    def __init__(self, reason, *details):
        super().__init__(reason)
        self.details = details


class Cases(dict):
    """{name: what is called with the world}"""

    def add(self, name, test, *args):
        assert name not in self, name
        self[name] = partial(test, *args) if args else test

    def case(self, name):
        def keep(test):
            self.add(name, test)
            return test
        return keep


CASES = Cases()
add, case = CASES.add, CASES.case


def equal(what, got, want):
    if got != want:
        raise Failure(what, "expected %.2000r" % (want,), "got      %.2000r" % (got,))


def demand(truth, reason, *details):
    if not truth:
        raise Failure(reason, *details)


class World:
    """The peers of one case, and the program between them."""

    limit_s = CASE_S
    cpu_share = 0.25    # of the time it runs, beside CPU_S

    def __init__(self, binary, tmp):
        self.binary = binary
        self.tmp = tmp
        self.engine = Engine()
        self.consul = Consul()
        self.proc = None
        self.user = None    # to run it as, if not this one
        self.patience_s = LIMIT_S
        self.runs = []      # [path of stdout, path of stderr] of each run

    async def open(self):
        self.docker = await self.engine.listen(self.path("docker.sock"))
        self.port = await self.consul.listen()
        self.uri = "consul://127.0.0.1:%d" % self.port

    def path(self, name):
        return os.path.join(self.tmp, name)

    def has(self, *boxes):
        """The engine runs these, without a word about it."""
        self.engine.boxes.update({b["Id"]: b for b in boxes})

    # -- the program

    def environment(self, **more):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "CONSUL_", "SERVICE_"))}
        return {**clean, "DOCKER_HOST": "unix://" + self.docker, **more}

    async def spawn(self, *argv, stdout=None, stderr=None, **env):
        env = self.environment(**env)
        self.runs.append([self.path("out-%d" % len(self.runs)), self.path("err-%d" % len(self.runs))])
        with open(self.runs[-1][0], "wb") as out, open(self.runs[-1][1], "wb") as err:
            self.proc = await asyncio.create_subprocess_exec(
                self.binary, *argv, env=env, user=self.user, stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout or out, stderr=stderr or err)
        self.began = asyncio.get_running_loop().time()
        self.may_end = False

    async def run(self, *args, uri=None, **env):
        await self.spawn("-hostname", "h", *args, uri or self.uri, **env)

    def read(self, which):
        with open(self.runs[-1][which], "rb") as f:
            text = f.read().decode("utf-8", "replace")
        return re.sub(r"(?m)^.* not as confined as .*\n", "", text)     # this machine's matter: see power.py

    out = property(lambda self: self.read(0))
    log = property(lambda self: self.read(1))

    def lines(self, unlike=r"$."):
        return [line for line in self.log.split("\n")[:-1] if not re.search(unlike, line)]

    async def exit(self):
        """Its exit status, once it has ended."""
        self.may_end = True
        try:
            return await asyncio.wait_for(self.proc.wait(), LIMIT_S)
        except asyncio.TimeoutError:
            raise Failure("still running") from None

    async def once(self, *args, **more):
        await self.run("-once", *args, **more)
        return await self.exit()

    async def stop(self, number=signal.SIGTERM):
        self.proc.send_signal(number)
        return await self.exit()

    def cpu_s(self):
        with open("/proc/%d/stat" % self.proc.pid) as f:
            fields = f.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def proc_mb(self, key):
        with open("/proc/%d/status" % self.proc.pid) as f:
            return int(re.search(key + r":\s*(\d+)", f.read())[1]) / 1024

    # -- looking

    async def until(self, truth, what, *details):
        """Waits for truth(); details are functions, called when it does not come."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.patience_s
        while not truth():
            if self.proc.returncode is not None and not truth():
                raise Failure("exited with %d before %s" % (self.proc.returncode, what))
            if loop.time() > end:
                raise Failure("never " + what, *[line for f in details for line in f()])
            await asyncio.sleep(0.02)

    def mismatch(self, want):
        """How Consul's services differ from {ID: {field: value}}; fields not named are not looked at."""
        out = []
        for name in sorted(want.keys() | self.consul.services.keys()):
            if name not in want or name not in self.consul.services:
                out.append("%s: %.300r" % ("missing" if name in want else "too much", name))
                continue
            have = dict(self.consul.sent[name])
            have["Meta"] = {k: v for k, v in (have.get("Meta") or {}).items() if k != "registrator"}
            for key, value in want[name].items():
                if (have.get(key) or None) != (value or None):
                    out += ["%.200s %s expected %.1000r" % (name, key, value),
                            "%.200s %s got      %.1000r" % (name, key, have.get(key))]
        return out

    async def until_services(self, *names, **fields):
        """Waits until Consul has exactly these: IDs; `a={...}` is the service h:a:80 with such fields."""
        want = {**{name: {} for name in names}, **{"h:%s:80" % k: v for k, v in fields.items()}}
        await self.until(lambda: not self.mismatch(want), "came to the services expected", lambda: self.mismatch(want))

    def same_as(self, want):
        wrong = self.mismatch(want)
        demand(not wrong, "not the services expected", *wrong)

    def same(self, *names):
        self.same_as(dict.fromkeys(names, {}))

    async def until_log(self, regex):
        await self.until(lambda: re.search(regex, self.log), "logged %r" % regex)

    def writes(self, since=0):
        return [(verb, name) for verb, name, _ in self.consul.writes()[since:]]

    async def quiet(self, seconds=QUIET_S):
        """No write to Consul comes for a while."""
        before = len(self.consul.writes())
        await asyncio.sleep(seconds)
        equal("writes that should not be", self.consul.writes()[before:], [])

    async def finish(self):
        """What holds for every case."""
        if self.proc.returncode is None:
            busy, lived = self.cpu_s(), asyncio.get_running_loop().time() - self.began
            demand(busy < CPU_S + lived * self.cpu_share, "busy: %.1f s of processor time in %.1f s" % (busy, lived))
            equal("exit status on SIGTERM", await self.stop(), 0)
        demand(self.may_end, "ended by itself with %d" % self.proc.returncode)
        equal("complaints of the peers", self.engine.complaints + self.consul.complaints, [])
        for path in [path for run in self.runs for path in run]:
            with open(path, "rb") as f:
                clean_text(f.read())
        if self.proc.returncode == 0:
            undated = self.lines(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d registrator: ")
            equal("log lines without a date", undated, [])


    async def close(self):
        """The peers go away; the program too, if it still runs."""
        self.engine.close()
        self.consul.close()
        if self.proc and self.proc.returncode is None:
            self.proc.kill()
            await self.proc.wait()


def clean_text(data):
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        raise Failure("the output is not UTF-8", str(e)) from None
    demand(SECRET not in text, "a secret in the output")
    for line in text.split("\n"):
        odd = [c for c in line if unicodedata.category(c) == "Cc" and c != "\t"]
        demand(not odd, "control characters in the output", repr(line[:300]))


# ==== A. Options and bad addresses: sections 1 to 3 =============================================

NOWHERE = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}


async def refused(argv, env, status, words, w):
    """It ends at once with one line (but for what a start says) that has the words."""
    await w.spawn(*argv, **{**NOWHERE, **env})
    equal("exit status", await w.exit(), status)
    lines = w.lines(ROUTINE) if status == 1 else [w.log]
    equal("lines on stderr", len(lines), 1)
    for word in words:
        demand(word in lines[0], "no %r in the message" % word)
    equal("stdout", w.out, "")


def option_cases():
    def bad(option, value, *words, more=()):
        words = words or (option, value)
        add("option %s=%s" % (option, value), refused, ["%s=%s" % (option, value), *more, "print:"], {}, 1, words)

    numbers = ["abc", "1.5", "1e3", "0x10", "5s", "4 ", " 4", "", "--4", "4294967296",
               "18446744073709551617", "99999999999999999999"]
    for value in numbers:
        bad("-resync", value)
        bad("-retry-interval", value)
        bad("-ttl", value, more=["-ttl-refresh", "1"])
        bad("-ttl-refresh", value, more=["-ttl", "9"])
    for value in ["abc", "1.5", "0x10", "", "--1", "99999999999999999999", "-99999999999999999999"]:
        bad("-retry-attempts", value)
    for option in ["-explicit", "-cleanup", "-internal", "-once"]:
        for value in ["maybe", "yes", "2", "tRUE", "on"]:
            bad(option, value)
    bad("-resync", "-1")
    bad("-log-level", "loud")
    bad("-log-level", "")
    bad("-on-exit", "stop")
    bad("-on-exit", "")
    for value in ["10.1.2", "10.1.2.3/24", "10.1.2.3.4", "256.1.1.1", "any text", "http://10.1.2.3", "10.1.2.3:80"]:
        bad("-ip", value)
    for value in ["never", "", "Always"]:
        bad("-deregister", value, '-deregister must be "always" or "on-success"')
    for value in ["0", "-5"]:
        bad("-retry-interval", value, "-retry-interval must be greater than 0")
    for more in [["-ttl", "5"], ["-ttl-refresh", "5"], ["-ttl", "5", "-ttl-refresh", "0"]]:
        add("options " + " ".join(more), refused, [*more, "print:"], {}, 1,
            ["-ttl and -ttl-refresh must be specified together or not at all"])
    for ttl in ["5", "4"]:
        add("options -ttl %s -ttl-refresh 5" % ttl, refused, ["-ttl", ttl, "-ttl-refresh", "5", "print:"], {}, 1,
            ["-ttl must be greater than -ttl-refresh"])

    usage = ["[options] <registry URI>", "-hostname"]
    for name, argv, words in [
            ("unknown", ["-nosuch", "print:"], ["nosuch"]),
            ("unknown with a value", ["--nosuch=1", "print:"], ["nosuch"]),
            ("in another case", ["-Explicit", "print:"], ["Explicit"]),
            ("cut short", ["-cleanu", "print:"], ["cleanu"]),
            ("with three dashes", ["---explicit", "print:"], []),
            ("without a name", ["-=1", "print:"], []),
            ("none, and no URI", [], ["Missing required argument for registry URI."]),
            ("and no URI", ["-explicit", "--"], ["Missing required argument for registry URI."]),
            ("after the URI", ["print:", "-explicit"], ["Options should come before the registry URI argument."]),
            ("secret after the URI", ["print:", "consul://me:%s@h" % SECRET], []),
            ("argument after the URI", ["print:", "more"], ["Options should come before the registry URI argument."]),
            ("value of a boolean", ["-explicit", "true", "print:"], ["Options should come before"])]:
        add("usage: option " + name, refused, argv, {}, 2, words + usage)


@case("options: -version and -help")
async def _(w):
    for option in ["version", "help"]:
        for form in ["-%s", "--%s", "-%s=true"]:
            await w.spawn(form % option)
            equal("exit status of " + form % option, await w.exit(), 0)
            equal("stderr", w.log, "")
            demand(w.out.strip(), "nothing on stdout")
    for option in ("cleanup deregister explicit hostname internal ip on-exit once resync retry-attempts retry-interval "
                   "tags ttl ttl-refresh useIpFromLabel log-level version help").split():
        demand(re.search(r"-%s\b" % option, w.out), "-help does not tell of -" + option)


async def accepted(option, value, more, stdout, stderr, w):
    """All four forms of the option are taken, and have their effect on what print: shows."""
    w.has(box("c", {80: 8080}, labels={"addr": "9.9.9.9/24"}))
    for argv in [["-" + option, value], ["-%s=%s" % (option, value)],
                 ["--" + option, value], ["--%s=%s" % (option, value)]]:
        await w.spawn("-once", "-ip", "10.0.0.1", "-hostname", "h", *argv, *more, "print:")
        equal("exit status of %s" % argv, await w.exit(), 0)
        for got, regex in [(w.out, stdout), (w.log, stderr)]:
            demand(re.search(regex, got), "%s has no effect" % argv, "no %r in %r" % (regex, got))


def accepted_cases():
    always, nothing, listed = "", r"\A\Z", "h:c:80"
    for option, value, more, stdout, stderr in [
            ("hostname", "zz", [], "zz:c:80", always),
            ("ip", "10.9.8.7", [], r"10\.9\.8\.7", always),
            ("ip", "lo", [], r"127\.0\.0\.1", always),
            ("ip", "db.example.com", [], r"db\.example\.com", always),
            ("tags", "blue", [], "blue", always),
            ("useIpFromLabel", "addr", [], r"\b9\.9\.9\.9\b(?!/)", always),
            ("log-level", "error", [], listed, nothing),
            ("log-level", "warn", [], listed, nothing),
            ("log-level", "info", [], listed, "added: "),
            ("log-level", "debug", [], listed, "added: "),
            ("deregister", "always", [], listed, always),
            ("deregister", "on-success", [], listed, always),
            ("on-exit", "keep", [], listed, always),
            ("resync", "0", [], listed, always),
            ("retry-attempts", "-1", [], listed, always),
            ("retry-attempts", "3", [], listed, always),
            ("retry-interval", "1", [], listed, always),
            ("ttl", "10", ["-ttl-refresh", "5"], listed, always),
            ("ttl-refresh", "5", ["-ttl=10"], listed, always),
            ("ttl", "0", ["-ttl-refresh", "0"], listed, always)]:
        add("option forms: -%s %s" % (option, value), accepted, option, value, more, stdout, stderr)


@case("print: what is no service, and why, in JSON")
async def _(w):
    c = box("c", {80: 8080, 81: None})
    w.has(c, box("d", {}))
    await w.spawn("-hostname", "h", "-once", "-ip", "10.0.0.1", "print:")
    equal("exit status", await w.exit(), 0)
    said = [json.loads(line) for line in w.out.splitlines()]
    equal("actions", sorted((one["action"], one.get("reason", "")) for one in said),
          [("ignore", "no published ports"), ("ignore", "port 81 not published on host"), ("register", "")])
    equal("container", {one["container"] for one in said if "81" in one.get("reason", "")}, {c["Id"][:12]})


@case("print: a table on a terminal")
async def _(w):
    c = box("c", {80: 8080, 81: None}, env=["SERVICE_TAGS=a,b\x1b[2J", "SERVICE_80_CHECK_TCP=true"])
    w.has(c)
    leader, follower = os.openpty()
    await w.spawn("-hostname", "h", "-ip", "10.0.0.1", "-resync", "1", "print:", stdout=follower)
    os.close(follower)
    os.set_blocking(leader, False)
    said = bytearray()

    def shows(words):
        try:
            said.extend(os.read(leader, 65536))
        except BlockingIOError:
            pass
        return words in said.decode()

    await w.until(lambda: shows("register"), "a row", lambda: said)
    await w.until(lambda: shows("not published"), "the port that is no service", lambda: said)
    w.engine.die(c)
    await w.until(lambda: shows("deregister h:c:80"), "the service going", lambda: said)
    os.close(leader)
    rows = said.decode().split("\r\n")
    equal("title", rows[0].split(), "ACTION CONTAINER PORT SERVICE ADDRESS TAGS CHECK".split())
    row = [row for row in rows if row.startswith("register ")][0]
    equal("cells", row.split(), ["register", c["Id"][:12], "80/tcp", "app", "10.0.0.1:8080", "a,b\\u001b[2J",
                                 '{"TCP":"10.0.0.1:8080","Interval":"10s"}'])
    equal("where cells begin", [row.index(cell) for cell in ("80/tcp", "app", "10.0", "a,b", "{")],
          [rows[0].index(title) for title in ("PORT", "SERVICE", "ADDRESS", "TAGS", "CHECK")])
    equal("the port that is none", [row for row in rows if row.startswith("ignore ")],
          ["ignore     %s port 81 not published on host" % c["Id"][:12]])
    equal("log", w.lines("Starting|Using"), [])


@case("options: booleans in all forms")
async def _(w):
    w.has(box("c", {80: 8080}))
    on = ["-explicit", "--explicit"] + ["-explicit=" + v for v in "1 t T TRUE true True".split()]
    off = ["-explicit=" + v for v in "0 f F FALSE false False".split()] + ["--explicit=false"]
    for form in on + off:
        await w.spawn("-once", "-ip", "10.0.0.1", form, "print:")
        equal("exit status of " + form, await w.exit(), 0)
        equal("services with " + form, w.out.count('"register"'), int(form in off))
    for form in ["-cleanup", "-cleanup=false", "-internal=F", "-once=0", "--once=true"]:
        await w.spawn(form, "-ip", "10.0.0.1", "-once", "print:")
        equal("exit status of " + form, await w.exit(), 0)


@case("options: the last one counts, -- ends them")
async def _(w):
    w.has(box("c", {80: 8080}))
    await w.spawn("-once", "-ip", "10.0.0.1", "-hostname", "a", "-hostname=b", "-explicit", "-explicit=false", "--",
                  "print:")
    equal("exit status", await w.exit(), 0)
    demand("b:c:80" in w.out, "not the last -hostname", w.out)


@case("print: one line of JSON a change")
async def _(w):
    a, b = box("a", {80: 8080}), box("b", {80: 8081}, env=['SERVICE_NOTE="\n\\'])
    w.has(a, b)
    await w.run("-ip", "10.0.0.1", uri="print:")
    await w.until(lambda: w.out.count("\n") == 2, "printed two lines", lambda: [w.out])
    w.engine.die(a)
    await w.until(lambda: w.out.count("\n") == 3, "printed a third line", lambda: [w.out])
    for line in w.out.splitlines():
        json.loads(line)
    for number, text in enumerate(["h:", "h:", "h:a:80"]):
        demand(text in w.out.splitlines()[number], "no %r in line %d" % (text, number), w.out)
    equal("requests to Consul", w.consul.requests, [])


def address_cases():
    def shown(text):
        return repr(text.replace(SECRET, "***")[:40])

    far, user = "unix://" + "/x" * 100, "me:%s@" % SECRET
    for uri in ["nosuch://x", "Consul2:", "consulx://h", "x://" + user]:
        add("URI: unknown scheme " + shown(uri), refused, [uri], {}, 1, ["consul", "consul-unix", "print"])
    for uri, meant in [("http://127.0.0.1:8500", "consul://"), ("https://h", "consul-tls://"),
                       ("localhost:8500", "consul://"), ("10.1.2.3:8500", "consul://"),
                       ("consul:10.1.2.3:8500", "consul://10.1.2.3:8500"), ("consul-tls:h", "consul-tls://h"),
                       ("CONSUL://h", "consul://"), ("Consul:", "consul:"), ("Print:", "print:"),
                       ("print", "print:"), ("print:x", "print:"), ("consul://h:8500/v1", "path"),
                       ("consul://h?dc=x", "query"), ("consul-tls://h/x", "path"),
                       ("zookeeper://h/x", "ZooKeeper is not supported")]:
        add("URI: means another thing than it says: " + shown(uri), refused, [uri], {}, 1, [meant])
    for uri in ["consul://h:70000", "consul://h:0", "consul://h:-1", "consul://h:x", "consul://h:8500:9",
                "consul://h\x01:8500", "consul://h\r\nX: y", "consul://a b:8500", "consul://[::1",
                "consul://" + user + "h:70000", "consul-" + far, "consul-unix:", "consul-unix://"]:
        add("URI: bad " + shown(uri), refused, [uri], {}, 1, [])
    for value in ["nosuch://x", "tcp://h:70000", "tcp://h:0", "tcp://h:x", "tcp://a b:1", "tcp://h\x01:2375", "ssh://h",
                  "tcp://", "tcp://" + user + "h:70000", far]:
        add("DOCKER_HOST: bad " + shown(value), refused, ["print:"], {"DOCKER_HOST": value}, 1, ["DOCKER_HOST"])
    for value in ["tcp://h:1", "ftp://h", "h:70000", "h:0", "h:x", "a b:1", "h\n:1", "http://" + user + "h:70000", far]:
        add("CONSUL_HTTP_ADDR: bad " + shown(value), refused, ["consul:"], {"CONSUL_HTTP_ADDR": value}, 1,
            ["CONSUL_HTTP_ADDR"])


option_cases()
accepted_cases()
address_cases()


# ==== B. Environment: section 2 =================================================================

def agent_requests(w):
    return [r for r in w.consul.requests if r.path.startswith("/v1/agent/")]


async def sends(env, header, value, w):
    """With this environment each request to the agent has the header (or, ?name, query parameter)."""
    w.has(box("a", {80: 8080}))
    equal("exit status", await w.once(**env), 0)
    await w.run("-log-level", "debug", **env)
    await w.until_services("h:a:80")
    w.engine.die(*w.engine.boxes.values())
    await w.until_services()
    for request in agent_requests(w):
        got = request.query.get(header[1:]) if header[0] == "?" else request.headers.get(header)
        equal("%s of %s" % (header, request.target), got, value)
    demand(header[0] == "?" or not value or value not in w.log, "a secret in the log")


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


def environment_cases():
    token, user = "token-" + SECRET, "me:%s:more" % SECRET
    for name, env, header, value in [
            ("CONSUL_HTTP_TOKEN", {"CONSUL_HTTP_TOKEN": token}, "x-consul-token", token),
            ("CONSUL_HTTP_AUTH", {"CONSUL_HTTP_AUTH": user}, "authorization", basic(user)),
            ("CONSUL_HTTP_AUTH without a password", {"CONSUL_HTTP_AUTH": SECRET}, "authorization", basic(SECRET + ":")),
            ("CONSUL_NAMESPACE", {"CONSUL_NAMESPACE": "team"}, "?ns", "team"),
            ("CONSUL_NAMESPACE odd", {"CONSUL_NAMESPACE": "a b&c=\xe9%"}, "?ns", "a b&c=\xe9%"),
            ("CONSUL_PARTITION", {"CONSUL_PARTITION": "part"}, "?partition", "part"),
            ("CONSUL_HTTP_SSL=false", {"CONSUL_HTTP_SSL": "false"}, "x-consul-token", None),
            ("DOCKER_TLS_VERIFY empty", {"DOCKER_TLS_VERIFY": ""}, "x-consul-token", None),
            ("no token", {}, "x-consul-token", None),
            ("empty token", {"CONSUL_HTTP_TOKEN": ""}, "x-consul-token", None)]:
        add("environment: " + name, sends, env, header, value)


@case("environment: CONSUL_HTTP_TOKEN_FILE wins, is trimmed, and read again on a 403")
async def _(w):
    token, other = SECRET + "-1", SECRET + "-2"
    valid = [token]
    w.consul.on("* /v1/agent/*", lambda r: None if r.headers.get("x-consul-token") in valid else (403, "ACL not found"))
    with open(w.path("token"), "w") as f:
        f.write(token + "\n")
    w.has(box("a", {80: 8080}))
    await w.run("-resync", "1", CONSUL_HTTP_TOKEN_FILE=w.path("token"), CONSUL_HTTP_TOKEN=SECRET + "-wrong")
    await w.until_services("h:a:80")
    equal("tokens", {r.headers.get("x-consul-token") for r in agent_requests(w)}, {token})
    with open(w.path("token"), "w") as f:
        f.write(other)
    valid[:] = [other]
    w.engine.start(box("b", {80: 8081}))
    await w.until_services("h:a:80", "h:b:80")


@case("environment: a token that would break the request")
async def _(w):
    w.has(box("a", {80: 8080}))
    await w.run("-retry-attempts", "1", "-retry-interval", "10", CONSUL_HTTP_TOKEN=SECRET + "\r\nX-Evil: 1")
    await asyncio.sleep(QUIET_S)
    equal("forged headers", [r for r in w.consul.requests if "x-evil" in r.headers], [])
    if w.proc.returncode is not None:       # to refuse it is fine, too
        equal("exit status", await w.exit(), 1)


async def finds_consul(uri, address, w):
    """The agent is found by this URI and CONSUL_HTTP_ADDR; {} stands for its port or socket."""
    path = await w.consul.listen(w.path("consul.sock"))
    uri, address = [text and text.replace("{}", str(w.port)).replace("<>", path) for text in (uri, address)]
    w.has(box("a", {80: 8080}))
    equal("exit status", await w.once(uri=uri, **({"CONSUL_HTTP_ADDR": address} if address else {})), 0)
    w.same("h:a:80")


async def finds_engine(form, w):
    port = await w.engine.listen()
    w.has(box("a", {80: 8080}))
    equal("exit status", await w.once(DOCKER_HOST=form % port), 0)
    w.same("h:a:80")


def finding_cases():
    for uri, address in [("consul:", "127.0.0.1:{}"), ("consul://", "http://127.0.0.1:{}"),
                         ("consul:///", "unix://<>"), ("consul://", "localhost:{}"),
                         ("consul://127.0.0.1:{}", "127.0.0.1:1"), ("consul://localhost:{}", None),
                         ("consul-unix://<>", "127.0.0.1:1"), ("consul://someone:%s@127.0.0.1:{}" % SECRET, None)]:
        name = "environment: %s with CONSUL_HTTP_ADDR=%s" % (uri.replace(SECRET, "***"), address)
        add(name, finds_consul, uri, address)
    for form in ["tcp://127.0.0.1:%d", "http://127.0.0.1:%d", "tcp://localhost:%d"]:
        add("environment: DOCKER_HOST=" + form, finds_engine, form)


environment_cases()
finding_cases()


# ==== C. Services: sections 4, 5 and 7 ==========================================================

Row = namedtuple("Row", "name boxes want args drivers rules warns", defaults=((), {}, (), ()))
# want: {ID: {field of the registration: value}}; warns: regexes, each finds a log line that is not of an addition


async def services(row, w):
    w.has(*row.boxes)
    w.engine.drivers = row.drivers
    for glob, answer in row.rules:
        w.consul.on(glob, answer)
    equal("exit status", await w.once(*row.args), 0)
    w.same_as(row.want)
    for regex in row.warns:
        demand(any(re.search(regex, line) for line in w.lines(ROUTINE)), "no warning with %r" % regex)


HOST = "192.0.2.10"     # what the scripted agent advertises
OWN = "172.17.0.5"      # what box() gives a container
HEX = "0123456789abcdef" * 4
COMPOSE = "com.docker.compose.service"


def a(ports=80, **more):
    """The container named a; a single port is published as 8080."""
    return box("a", {ports: 8080} if isinstance(ports, (int, str)) else ports, **more)


def name_rows():
    for image, labels, name in [
            ("registry:5000/team/app:1.2", {}, "app"),
            ("app@sha256:" + HEX, {}, "app"),
            ("registry:5000/team/app@sha256:" + HEX, {}, "app"),
            ("registry:5000/team/app:1.2@sha256:" + HEX, {}, "app"),
            ("sha256:" + HEX, {}, "a"),
            ("sha256:" + HEX, {COMPOSE: "web"}, "web"),
            (HEX[:12], {}, "a"),
            (HEX[:12], {COMPOSE: "web"}, "web"),
            (HEX, {}, "a"),
            ("app", {COMPOSE: "web"}, "app"),
            ("sha256:" + HEX, {COMPOSE: "web", "SERVICE_NAME": "mine"}, "mine")]:
        yield Row("image %.45s %s" % (image, "".join(labels.values())), [a(image=image, labels=labels)],
                  {"h:a:80": {"Name": name}})
    yield Row("name of one of two ports", [a({80: 8080, 81: 8081}, env=["SERVICE_80_NAME=web"])],
              {"h:a:80": {"Name": "web"}, "h:a:81": {"Name": "app-81"}})
    yield Row("name, a single port of two published", [a({80: 8080, 81: None})], {"h:a:80": {"Name": "app"}})
    yield Row("name, -internal counts exposed ports", [a({80: 8080, 81: None})],
              {"h:a:80": {"Name": "app-80"}, "h:a:81": {"Name": "app-81"}}, ["-internal"])
    yield Row("name, tcp and udp on one number", [a({"53/tcp": 5353, "53/udp": 5353})],
              {"h:a:53": {"Name": "app-53", "Tags": []}, "h:a:53:udp": {"Name": "app-53", "Tags": ["udp"]}})


def metadata_rows():
    for name, env, labels, meta in [
            ("label beats environment", ["SERVICE_X=env"], {"SERVICE_X": "label"}, {"x": "label"}),
            ("later variable beats earlier", ["SERVICE_X=1", "SERVICE_X=2"], {}, {"x": "2"}),
            ("port beats generic", ["SERVICE_80_X=port", "SERVICE_X=generic"], {}, {"x": "port"}),
            ("port in environment beats generic label", ["SERVICE_80_X=port"], {"SERVICE_X": "generic"}, {"x": "port"}),
            ("another port's key", ["SERVICE_81_X=1", "SERVICE_Y=2"], {}, {"y": "2"}),
            ("a number alone is an attribute", ["SERVICE_8080=x", "SERVICE_80=y"], {}, {"8080": "x", "80": "y"}),
            ("only SERVICE_ counts", ["service_x=1", "Service_y=2", "XSERVICE_Z=3"], {"service_q": "4"}, {}),
            ("key folded, value after the first =", ["SERVICE_Some_Key=A=b=C"], {}, {"some_key": "A=b=C"}),
            ("no = at all", ["SERVICE_X", "SERVICE_Y=1"], {}, {"y": "1"}),
            ("check attributes stay", ["SERVICE_CHECK_TTL=9s"], {}, {"check_ttl": "9s"})]:
        yield Row("metadata: " + name, [a(env=env, labels=labels)], {"h:a:80": {"Meta": meta}})
    for value, want in [("true", {}), ("false", {}), ("0", {}), ("", {"h:a:80": {}})]:
        yield Row("ignore=" + value, [a(env=["SERVICE_IGNORE=" + value])], want)
    yield Row("ignore of one port", [a({80: 8080, 81: 8081}, labels={"SERVICE_81_IGNORE": "1"})], {"h:a:80": {}})
    for option, text, tags in [
            ("y,b", "z,a,m", ["z", "a", "m", "y", "b", "udp"]),
            ("", r",a\,b,, c ,", ["a,b", " c ", "udp"]),
            (r"x\,y,", "", ["x,y", "udp"])]:
        yield Row("tags %s and %s" % (text, option), [a("80/udp", env=["SERVICE_TAGS=" + text])],
                  {"h:a:80:udp": {"Tags": tags}}, ["-tags", option])


def id_rows():
    me = "|".join([a()["Id"][:12], "h:a:80"])
    for id_ in ["", "/x", "x//y", ".", "..", "x/..", "x/../y", "./x", "x/./y", "x\ty", "x\xa0y", "x\u200by", "\ufeffx",
                "\xe9\u65e5\U0001f600", "caf\xe9", "x" * 1025]:
        yield Row("id refused: " + ascii(id_), [a(env=["SERVICE_ID=" + id_])], {"h:a:80": {}}, warns=[me])
    for id_ in ["x", "x/y", "x..y", ".x", "my id", "a:b:80", "~!\"#$%&'()*+,;<=>?@[\\]^_`{|}", "x" * 1024]:
        yield Row("id taken: " + ascii(id_), [a(env=["SERVICE_ID=" + id_])], {id_: {"Port": 8080}})
    yield Row("one id for all ports", [a({443: 3, "80/udp": 2, 80: 1, "9/udp": 4}, env=["SERVICE_ID=x"])],
              {"x": {"Port": 4}, "x:80": {"Port": 1}, "x:80:udp": {"Port": 2}, "x:443": {"Port": 3}},
              warns=["x:80 \\(and 2 more"])
    yield Row("one id, and a tag that says udp", [a({80: 1, 443: 2}, env=["SERVICE_ID=x", "SERVICE_TAGS=udp"])],
              {"x": {"Port": 1}, "x:443": {"Port": 2}}, ["-tags", "udp"])


def attribute_rows():
    for name, key, value, kept in [
            ("a dot in the key", "a.b", "1", False), ("a blank in the key", "a b", "1", False),
            ("a letter that is not ASCII", "\xe9", "1", False), ("dash and underscore", "a-b_c", "1", True),
            ("key of 128", "k" * 128, "1", True), ("key of 129", "k" * 129, "1", False),
            ("value of 512", "x", "v" * 512, True), ("value of 513", "long", "v" * 513, False),
            ("value of 512 bytes in 256 letters", "x", "\xe9" * 256, True),
            ("value of 514 bytes in 257 letters", "long", "\xe9" * 257, False),
            ("consul- prefix", "consul-x", "1", False), ("our own mark", "registrator", "mine", False)]:
        yield Row("attribute: " + name, [a(labels={"SERVICE_" + key: value, "SERVICE_OK": "1"})],
                  {"h:a:80": {"Meta": {"ok": "1", **({key: value} if kept else {})}}},
                  warns=[] if kept else ["registrator: .*" + re.escape(key[:20])])


@case("services: attribute: more than 64")
async def _(w):
    w.has(a(labels={"SERVICE_X%d" % i: "1" for i in range(70)}))
    equal("exit status", await w.once(), 0)
    w.same("h:a:80")
    sent = w.consul.sent["h:a:80"]["Meta"]
    equal("attributes sent", len(sent), 64)
    for key in {"x%d" % i for i in range(70)} - sent.keys():
        demand(re.search(r"\b%s\b" % key, w.log), "no warning about " + key)


def address_rows():
    def at(address, port=8080):
        return {"h:a:80": {"Address": address, "Port": port}}

    two = {"zeta": "10.2.0.5", "alpha": "10.1.0.5"}
    yield Row("address: what the agent advertises", [a()], at(HOST))
    yield Row("address: -ip", [a({80: "127.0.0.1:8080"})], at("10.0.0.1"), ["-ip", "10.0.0.1"])
    yield Row("address: a particular one of the binding", [a({80: "192.168.3.7:8080"})], at("192.168.3.7"))
    for value, want in [("10.2.3.4/24", "10.2.3.4"), ("10.2.3.4", "10.2.3.4"), ("", "10.0.0.1")]:
        yield Row("address: -useIpFromLabel %s" % value, [a(labels={"addr": value})], at(want),
                  ["-ip", "10.0.0.1", "-useIpFromLabel", "addr"])
    yield Row("address: -useIpFromLabel with -internal", [a(labels={"addr": "10.2.3.4"})], at("10.2.3.4", 80),
              ["-internal", "-useIpFromLabel", "addr"])
    yield Row("address: -ip is an interface", [a()], at("127.0.0.1"), ["-ip", "lo"])
    yield Row("address: IPv4 binding before IPv6", [a({80: [":::8081", "0.0.0.0:8080"]})], at(HOST))
    yield Row("address: particular IPv4 before IPv6", [a({80: ["::1:8081", "127.0.0.1:8080"]})], at("127.0.0.1"))
    yield Row("address: only IPv6", [a({80: "fd00::7:8080"})], at("fd00::7"))
    yield Row("address: first of several", [a({80: ["0.0.0.0:8080", ":::8080", "0.0.0.0:8181"]})], at(HOST))
    yield Row("address: user-defined network is the host's",
              [a(mode="proj_default", nets={"proj_default": "10.5.0.2"})], at(HOST))
    for which, mode, address in [("the network of NetworkMode", "zeta", "10.2.0.5"),
                                 ("first network by name", "default", "10.1.0.5")]:
        yield Row("address: -internal, " + which, [a(mode=mode, nets=two)], at(address, 80), ["-internal"])
    yield Row("address: -internal, port not published", [a({80: None})], at(OWN, 80), ["-internal"])
    only_6 = a(mode="six", nets={"six": ""})
    only_6["NetworkSettings"]["Networks"]["six"]["GlobalIPv6Address"] = "fd00::5"
    yield Row("address: -internal, IPv6 only", [only_6], at("fd00::5", 80), ["-internal"])
    yield Row("address: -internal before -ip", [a()], at(OWN, 80), ["-internal", "-ip", "10.0.0.1"])
    yield Row("address: -internal, host mode", [a({}, expose=[80], mode="host")], at(HOST, 80), ["-internal"])
    yield Row("address: host mode", [a({}, expose=[80], mode="host")], at(HOST, 80))
    for mode in ["none", "bridge"]:
        yield Row("address: exposed only, mode " + mode, [a({}, expose=[80], mode=mode)], {})
    for driver in ["macvlan", "ipvlan"]:
        yield Row("address: " + driver, [a({}, expose=[80], mode="wire", nets={"wire": "192.168.5.9"})],
                  at("192.168.5.9", 80), drivers={"wire": driver})
    yield Row("address: exposed only, user-defined network",
              [a({}, expose=[80], mode="net", nets={"net": "10.6.0.2"})], {})
    denied = [("GET /v1/agent/self", (403, "Permission denied"))]
    yield Row("address: the agent may not be asked", [a(env=["SERVICE_CHECK_HTTP=/up"])],
              {"h:a:80": {"Address": None, "Port": 8080,
                          "Check": {"HTTP": "http://127.0.0.1:8080/up", "Interval": "10s"}}}, rules=denied)
    yield Row("address: the agent may not be asked, -ip", [a()], at("10.0.0.1"), ["-ip", "10.0.0.1"], rules=denied)


def sharing_rows():
    def pair(published, exposed, **more):
        x = box("x", {published: 8080} if published else {}, nets={"bridge": "172.17.0.9"})
        return [x, box("a", more.pop("ports", {}), expose=exposed, mode="container:" + x["Id"], **more)]

    x = {"h:x:80": {"Port": 8080}}
    yield Row("container: with X's binding", pair(80, [80]), {**x, "h:a:80": {"Address": HOST, "Port": 8080}})
    yield Row("container: without X's binding", pair(80, [90]), {**x, "h:a:90": {"Address": "172.17.0.9", "Port": 90}})
    yield Row("container: -internal", pair(80, [80]),
              {"h:x:80": {"Address": "172.17.0.9", "Port": 80}, "h:a:80": {"Address": "172.17.0.9", "Port": 80}},
              ["-internal"])
    yield Row("container: X publishes nothing", pair(None, [90]), {"h:a:90": {"Address": "172.17.0.9", "Port": 90}})
    yield Row("container: nothing exposed", pair(80, []), x)
    podman = pair(80, [], ports={80: ":8080"}, nets={"podman": "172.17.0.9"})
    podman[1]["Config"]["ExposedPorts"] = None
    yield Row("container: Podman copies X's Ports", podman, x)
    yield Row("Podman: HostIp is empty", [a({80: ":8080"}, nets={"podman": "10.88.0.2"})],
              {"h:a:80": {"Address": HOST, "Port": 8080}})
    for name, missing in [("1.8", ["Networks"]), ("29", ["IPAddress", "GlobalIPv6Address"])]:
        one = a()
        for key in missing:
            del one["NetworkSettings"][key]
        yield Row("Docker %s: addresses" % name, [one], {"h:a:80": {"Address": OWN, "Port": 80}}, ["-internal"])
    one = a(labels=None)
    one["State"] = {"Running": True, "ExitCode": 0, "Paused": False, "Pid": 7}
    del one["Config"]["Labels"], one["NetworkSettings"]["Networks"]
    yield Row("Docker 1.3: what is not there", [one], {"h:a:80": {"Address": HOST, "Port": 8080}})
    for state, want in [("paused", {"h:a:80": {}}), ("restarting", {}), ("exited", {}), ("created", {}), ("dead", {})]:
        yield Row("state " + state, [a(state=state)], want)


def check_rows():
    at, every = "10.0.0.1:8080", {"Interval": "10s"}
    cmd = ["check-cmd", a()["Id"][:12], "80", "echo $SERVICE_IP"]
    for attributes, check in [
            ("http=/up?x=1", {"HTTP": "http://%s/up?x=1" % at, **every}),
            ("http=/ http_method=HEAD timeout=2s interval=5s",
             {"HTTP": "http://%s/" % at, "Method": "HEAD", "Timeout": "2s", "Interval": "5s"}),
            ("https=/up https_method=POST", {"HTTP": "https://%s/up" % at, "Method": "POST", **every}),
            ("https=/up tls_skip_verify=true", {"HTTP": "https://%s/up" % at, "TLSSkipVerify": True, **every}),
            ("cmd=echo_$SERVICE_IP", {"Args": cmd, **every}),
            ("script=curl_$SERVICE_IP:$SERVICE_PORT/$SERVICE_PORT",
             {"Args": ["/bin/sh", "-c", "curl %s/8080" % at], **every}),
            ("ttl=30s", {"TTL": "30s"}),
            ("ttl=30s interval=5s timeout=1s", {"TTL": "30s"}),
            ("tcp=true timeout=1s", {"TCP": at, "Timeout": "1s", **every}),
            ("grpc=true grpc_use_tls=true tls_skip_verify=true",
             {"GRPC": at, "GRPCUseTLS": True, "TLSSkipVerify": True, **every}),
            ("tcp=true initial_status=passing deregister_after=10m",
             {"TCP": at, "Status": "passing", "DeregisterCriticalServiceAfter": "10m", **every}),
            ("http=/a https=/b tcp=true", {"HTTP": "http://%s/a" % at, **every}),
            ("http= tcp=true", {"TCP": at, **every}),
            ("ttl=30s tcp=true", {"TTL": "30s"}),
            ("interval=5s timeout=1s", None)]:
        env = ["SERVICE_CHECK_" + one.split("=", 1)[0].upper() + "=" + one.split("=", 1)[1].replace("_$", " $")
               for one in attributes.split()]
        yield Row("check: " + attributes, [a(env=env)], {"h:a:80": {"Check": check}}, ["-ip", "10.0.0.1"])
    for kind, value, key, want in [
            ("http", "/up", "HTTP", "http://[fd00::1]:8080/up"), ("https", "/up", "HTTP", "https://[fd00::1]:8080/up"),
            ("tcp", "true", "TCP", "[fd00::1]:8080"), ("grpc", "true", "GRPC", "[fd00::1]:8080")]:
        yield Row("check: IPv6 brackets, " + kind, [a(env=["SERVICE_CHECK_%s=%s" % (kind.upper(), value)])],
                  {"h:a:80": {"Address": "fd00::1", "Check": {key: want, **every}}}, ["-ip", "fd00::1"])


for rows in (name_rows, metadata_rows, id_rows, attribute_rows, address_rows, sharing_rows, check_rows):
    for each in rows():
        add("services: " + each.name[:80], services, each)


@case("services: only keys that are needed")
async def _(w):
    w.has(a())
    equal("exit status", await w.once(), 0)
    sent = w.consul.sent["h:a:80"]
    demand(sent.keys() <= {"ID", "Name", "Port", "Address", "Tags", "Meta"}, "more keys than needed", repr(sent))
    demand(re.fullmatch(MARK, sent["Meta"]["registrator"]), "the mark is not OWNER-CONTENT", repr(sent))


# ==== D. Life: section 6 ========================================================================

async def life(w, *boxes, args=(), **env):
    """A program that has seen the container `first`, and these."""
    w.has(box("first", {80: 8000}), *boxes)
    await w.run(*args, **env)
    await w.until(lambda: "h:first:80" in w.consul.services and w.engine.streams, "registered the first service")


@case("life: start, die, start again")
async def _(w):
    await life(w)
    one = a()
    for _ in range(3):
        w.engine.start(one)
        await w.until_services("h:first:80", "h:a:80")
        w.engine.die(one, 137)
        await w.until_services("h:first:80")
    equal("writes", [verb for verb, name, _ in w.consul.writes() if name == "h:a:80"], ["register", "deregister"] * 3)


async def removes(action, w):
    await life(w, a())
    await w.until_services("h:first:80", "h:a:80")
    (one,) = [b for b in w.engine.boxes.values() if b["Name"] == "/a"]
    getattr(w.engine, "die" if action in ("die", "died") else "destroy")(one, action=action)
    await w.until_services("h:first:80")


async def understands(form, between, w):
    w.engine.form, w.engine.between = form, between
    await life(w)
    one, two = a(), box("b", {80: 8081})
    with w.engine.at_once():
        w.engine.start(one)
        w.engine.start(two)
    await w.until_services("h:first:80", "h:a:80", "h:b:80")
    with w.engine.at_once():
        w.engine.die(one)
        w.engine.emit("exec_create: /bin/sh -c \"{}[\\\"", two)
        w.engine.die(two)
    await w.until_services("h:first:80")


for what in ["die", "died", "destroy", "remove"]:
    add("life: removed on " + what, removes, what)
for what, form, between in [("1.3, no newline", "1.3", "{}"), ("1.10", "1.10", "{}\n"), ("29", "29", "{}\n"),
                            ("29, json-seq", "29", "\x1e{}\n"), ("1.10, CRLF and blanks", "1.10", " {}\r\n")]:
    add("life: events of Docker " + what, understands, form, between)


@case("life: an event in single bytes")
async def _(w):
    await life(w)
    w.engine.held = b""
    w.engine.start(a())
    data, w.engine.held = w.engine.held, None
    for i in range(len(data)):
        w.engine.send(data[i:i + 1])
        await asyncio.sleep(0)
    await w.until_services("h:first:80", "h:a:80")


@case("life: rename, the new one first")
async def _(w):
    one = a()
    await life(w, one)
    await w.until_services("h:first:80", "h:a:80")
    before = len(w.consul.writes())
    w.engine.rename(one, "b")
    await w.until_services("h:first:80", "h:b:80")
    equal("writes", w.writes(before), [("register", "h:b:80"), ("deregister", "h:a:80")])


@case("life: two containers swap their names")
async def _(w):
    one, two = a(), box("b", {80: 8081})
    await life(w, one, two)
    await w.until_services(first={}, a={"Port": 8080}, b={"Port": 8081})
    with w.engine.at_once():
        w.engine.rename(one, "tmp")
        w.engine.rename(two, "a")
        w.engine.rename(one, "b")
    await w.until_services(first={}, a={"Port": 8081}, b={"Port": 8080})
    await w.quiet()


@case("life: a container is replaced by another of its name")
async def _(w):
    old, new = a(), box("new", {80: 8081})
    await life(w, old)
    await w.until_services("h:first:80", "h:a:80")
    w.engine.die(old)
    w.engine.rename(old, "old_a")
    new["Name"] = "/a"
    w.engine.start(new)
    w.engine.destroy(old)
    await w.until_services(first={}, a={"Port": 8081})
    await w.quiet()
    await w.until_services(first={}, a={"Port": 8081})


@case("life: who shares a network follows its owner")
async def _(w):
    x = box("x", {80: 8080})
    await life(w, x, box("a", expose=[80], mode="container:" + x["Id"]))
    await w.until_services(first={}, x={"Port": 8080}, a={"Port": 8080})
    w.engine.die(x)
    x["NetworkSettings"]["Ports"]["80/tcp"] = [{"HostIp": "0.0.0.0", "HostPort": "9090"}]
    w.engine.start(x)
    await w.until_services(first={}, x={"Port": 9090}, a={"Port": 9090})


@case("life: an idle event stream is kept")
async def _(w):
    await life(w)
    await asyncio.sleep(13)     # longer than the 10 s for an answer
    equal("event streams opened", len([1 for r in w.engine.requests if r.path == "/events"]), 1)
    w.engine.start(a())
    await w.until_services("h:first:80", "h:a:80")


@case("life: Docker 1.7 sends the head of the stream with its first event")
async def _(w):
    w.engine.late_head = True
    await life(w)
    await asyncio.sleep(12)
    w.engine.start(a())
    await w.until_services("h:first:80", "h:a:80")


@case("life: nothing to write for pause, unpause and other events")
async def _(w):
    one = a()
    await life(w, one)
    await w.until_services("h:first:80", "h:a:80")
    one["State"] = state_of("paused")
    w.engine.emit("pause", one)
    await w.quiet()
    one["State"] = state_of("running")
    for action in ["unpause", "update", "exec_create: sh", "exec_die", "attach", "health_status: healthy", "start"]:
        w.engine.emit(action, one)
    w.engine.emit("pull", one, "image")
    w.engine.emit("create", one, "volume")
    await w.quiet()


@case("life: network connect and disconnect")
async def _(w):
    one = a(mode="zeta", nets={"zeta": "10.2.0.5"})
    await life(w, one, args=["-internal"])
    await w.until_services(first={}, a={"Address": "10.2.0.5"})
    for nets, address in [({"alpha": "10.1.0.5"}, "10.1.0.5"),
                          ({"alpha": "10.1.0.5", "zeta": "10.2.0.6"}, "10.2.0.6")]:
        before = len(w.consul.writes())
        w.engine.attach(one, nets)
        await w.until_services(first={}, a={"Address": address})
        await w.quiet()
        equal("writes", len(w.consul.writes()) - before, 1)


@case("life: update of tags and checks")
async def _(w):
    one = a(labels={"SERVICE_TAGS": "x", "SERVICE_CHECK_TTL": "30s", "SERVICE_ID": "h:a:80"})
    await life(w, one)
    await w.until_services(first={}, a={"Tags": ["x"], "Check": {"TTL": "30s"}})
    for labels, fields, replace in [
            ({"SERVICE_TAGS": "y", "SERVICE_CHECK_TTL": "30s"}, {"Tags": ["y"], "Check": {"TTL": "30s"}}, False),
            ({"SERVICE_TAGS": "y", "SERVICE_CHECK_SCRIPT": "true"},
             {"Check": {"Args": ["/bin/sh", "-c", "true"], "Interval": "10s"}}, True),
            ({"SERVICE_TAGS": "y"}, {"Tags": ["y"], "Check": None}, True)]:
        before = len(w.consul.writes())
        one["Config"]["Labels"] = labels
        w.engine.emit("update", one)
        await w.until_services(first={}, a=fields)
        await w.quiet(0.3)
        equal("writes after %s" % labels, [("replace-existing-checks" in query) for _, _, query in
                                           w.consul.writes()[before:]], [replace])
    equal("checks left", w.consul.checks, {})


@case("life: a restarting container has no services")
async def _(w):
    one = a()
    await life(w, one)
    await w.until_services("h:first:80", "h:a:80")
    w.engine.die(one, 1)
    one["State"] = state_of("restarting", 1)
    await w.until_services("h:first:80")
    w.engine.emit("update", one)
    await w.quiet()
    w.engine.start(one)
    await w.until_services("h:first:80", "h:a:80")


@case("life: doubled, late and reordered events")
async def _(w):
    one, two = a(), box("b", {80: 8081})
    await life(w)
    w.engine.start(one)
    w.engine.start(one)
    await w.until_services("h:first:80", "h:a:80")
    await w.quiet()
    equal("writes for a doubled start", len([1 for _, name, _ in w.consul.writes() if name == "h:a:80"]), 1)
    w.engine.emit("die", one)           # it has been started again since: its services come back
    await asyncio.sleep(0.5)
    await w.until_services("h:first:80", "h:a:80")
    with w.engine.at_once():            # swapped, as engines before 1.8 may
        w.engine.emit("die", two)
        w.engine.start(two)
    await w.until_services("h:first:80", "h:a:80", "h:b:80")
    w.engine.die(two)
    w.engine.emit("start", two)         # it is dead by now
    w.engine.emit("destroy", two)
    await w.until_services("h:first:80", "h:a:80")
    await w.quiet()
    await w.until_services("h:first:80", "h:a:80")


@case("life: die removes before the inspect answers")
async def _(w):
    one = a()
    await life(w, one)
    await w.until_services("h:first:80", "h:a:80")
    w.engine.on("GET /containers/%s/json" % one["Id"], hang)
    w.engine.die(one)
    await w.until_services("h:first:80")


@case("life: a hung inspect holds up nobody")
async def _(w):
    hung = box("hung", {80: 9000})
    w.engine.on("GET /containers/%s/json" % hung["Id"], hang)
    boxes = [box("b%d" % i, {80: 8100 + i}) for i in range(20)]
    await life(w, hung, *boxes[:10])
    for one in boxes[10:]:
        w.engine.start(one)
    await w.until_services("h:first:80", *["h:b%d:80" % i for i in range(20)])
    w.engine.die(boxes[0])
    await w.until_services("h:first:80", *["h:b%d:80" % i for i in range(1, 20)])


@case("life: a burst of 10 dies and 5 starts")
async def _(w):
    boxes = [box("b%d" % i, {80: 8100 + i}) for i in range(15)]
    await life(w, *boxes)
    await w.until_services("h:first:80", *["h:b%d:80" % i for i in range(15)])
    with w.engine.at_once():
        for one in boxes[:10]:
            w.engine.die(one)
        for one in boxes[:5]:
            w.engine.start(one)
    right = ["h:first:80", *["h:b%d:80" % i for i in [*range(5), *range(10, 15)]]]
    await w.until_services(*right)
    await w.quiet()
    await w.until_services(*right)


@case("life: 200 containers start, and 100 of them die, at once")
async def _(w):
    boxes = [box("b%d" % i, {80: 10000 + i}) for i in range(200)]
    await life(w)
    with w.engine.at_once():
        for one in boxes:
            w.engine.start(one)
        for one in boxes[::2]:
            w.engine.die(one)
    right = ["h:first:80", *["h:b%d:80" % i for i in range(1, 200, 2)]]
    await w.until_services(*right)
    await w.quiet()
    await w.until_services(*right)


@case("life: an engine that asks for versioned paths")
async def _(w):
    w.engine.on("GET /[!v_]*", lambda r: None if r.target.startswith("/v1.") else
                (400, {"message": "client version 1.24 is too old. Minimum supported API version is 1.40"}))
    await life(w)


async def on_success(code, form, kept, w):
    w.engine.form = form
    one, right = a(), ["h:first:80"] + kept * ["h:a:80"]
    args = ["-deregister", "on-success"]
    await life(w, one, args=args)
    await w.until_services("h:first:80", "h:a:80")
    w.engine.die(one, code)
    await w.until_services(*right)
    await w.quiet()
    await w.until_services(*right)
    equal("exit status", await w.stop(), 0)
    w.has(box("later", {80: 8001}))
    await w.run("-resync", "1", *args)
    await w.until_services(*right, "h:later:80")
    await w.quiet(2)
    await w.until_services(*right, "h:later:80")
    w.engine.start(one)
    await w.until_services("h:first:80", "h:a:80", "h:later:80")


for code, kept in [(0, False), (1, True), (127, True), (128, False), (137, False), (143, False)]:
    for form in ["1.3", "29"] if code == 1 else ["1.10"]:
        add("life: on-success, exit code %d, events of %s" % (code, form), on_success, code, form, kept)


# ==== E. Trouble: section 8 =====================================================================

async def stream_breaks(how, w):
    await life(w)
    w.has(a())              # what nobody tells
    if isinstance(how, bytes):
        w.engine.send(how)
    else:
        how(w)
    await w.until_services("h:first:80", "h:a:80")


for what, how in [("ends", lambda w: w.engine.end_events()), ("is cut", lambda w: w.engine.end_events(b"")),
                  ("is cut in an event", lambda w: w.engine.end_events(b"40\r\n{\"status\":\"sta")),
                  ("has a bad chunk", lambda w: w.engine.end_events(b"zz\r\n{}\r\n")),
                  ("and all connections are cut", lambda w: w.engine.drop()),
                  ("has garbage", b"}{ garbage\n"), ("has HTML", b"<html>\n"),
                  ("has a bad object", b'{"status":"start",}\n')]:
    add("trouble: the event stream " + what, stream_breaks, how)


@case("trouble: the engine is not there, then comes, goes and comes again")
async def _(w):
    w.engine.close()
    w.has(a())
    await w.run()
    await asyncio.sleep(QUIET_S)
    about = [line for line in w.lines(ROUTINE) if w.docker in line]
    equal("lines about the socket", len(about), 1)
    await w.engine.listen(w.docker)
    await w.until_services("h:a:80")
    equal("lines about it, with that it is back", len(w.lines(ROUTINE)), 2)
    w.engine.close()
    await w.quiet(2)
    w.same("h:a:80")
    w.engine.boxes.clear()
    w.has(box("b", {80: 8081}))
    await w.engine.listen(w.docker)
    await w.until_services("h:b:80")


@case("trouble: the engine's socket may not be opened")
async def _(w):
    w.has(a())
    if os.geteuid() == 0:       # root may open any
        os.chmod(w.tmp, 0o755)
        os.chmod(w.docker, 0o600)
        w.binary = shutil.copy(w.binary, w.tmp)     # where that user may run it
        w.user = 65534
        await w.run()
        await w.until(lambda: w.lines(ROUTINE), "said so")
        await w.quiet()
        (line,) = w.lines(ROUTINE)
        demand(w.docker in line and "group" in line, "does not say which, and what to do", line)
        os.chmod(w.docker, 0o666)
    else:
        await w.run()
    await w.until_services("h:a:80")


async def bad_inspect(status, w):
    """An inspect that fails removes nothing, and is made up for later."""
    one = a()
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    w.engine.on("GET /containers/%s/json" % one["Id"], status)
    one["Config"]["Labels"] = {"SERVICE_TAGS": "new"}
    w.engine.emit("update", one)
    await w.quiet(2)
    w.engine.behave()
    await w.until_services(first={}, a={"Tags": ["new"]})


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"transfer-encoding:  chunked \r\n\r\n"

for what, answer in [("500", (500, {"message": "oops"})), ("not JSON", (200, "<html>")),
                     ("cut JSON", (200, '{"Id":"x",')), ("of another shape", (200, [1, 2])),
                     ("cut", OK + b'Content-Length: 500\r\n\r\n{"Id":"')]:
    add("trouble: inspect answers " + what, bad_inspect, answer)


@case("trouble: inspect answers 404")
async def _(w):
    one = a()
    await life(w, one)
    await w.until_services("h:first:80", "h:a:80")
    del w.engine.boxes[one["Id"]]
    w.engine.emit("update", one)
    await w.until_services("h:first:80")


async def bad_list(peer, glob, answer, w):
    """A list that failed removes nothing; a good one does."""
    w.has(a(), box("b", {80: 8081}))
    equal("exit status", await w.once(), 0)
    w.same("h:a:80", "h:b:80")
    w.engine.boxes.popitem()
    getattr(w, peer).on(glob, answer)
    await w.run("-resync", "1")
    await asyncio.sleep(2)
    w.same("h:a:80", "h:b:80")
    equal("removals", [name for verb, name, _ in w.consul.writes() if verb == "deregister"], [])
    getattr(w, peer).behave()
    await w.until_services("h:a:80")


for what, answer in [("500", (500, "oops")), ("404", (404, {"message": "page not found"})),
                     ("HTML", (200, "<html></html>")), ("null", (200, "null")), ("nothing", (200, "")),
                     ("an error as 200", (200, '{"message":"no"}')), ("cut JSON", (200, "[")),
                     ("cut after a container", (200, "[" + json.dumps(listing(a())))),
                     ("cut after a chunk", OK + CHUNKED + b"2\r\n[]\r\n"),
                     ("a cut body", OK + b"Content-Length: 9\r\n\r\n[]"),
                     ("a bad length", OK + b"Content-Length: 2x\r\n\r\n[]"),
                     ("two framings", OK + b"Content-Length: 2\r\n" + CHUNKED + b"2\r\n[]\r\n0\r\n\r\n")]:
    add("trouble: the list of containers is " + what, bad_list, "engine", "GET /containers/json", answer)
for what, answer in [("500", (500, "oops")), ("HTML", (200, "<html></html>")), ("a list", (200, "[]")),
                     ("nothing", (200, "")), ("cut JSON", (200, "{")),
                     ("a cut body", OK + b"Content-Length: 9\r\n\r\n{}")]:
    add("trouble: the list of services is " + what, bad_list, "consul", "GET /v1/agent/services", answer)


async def unlooked(answer, w):
    """What cannot be looked at is no ghost; others are."""
    one = a(labels={"SERVICE_81_ID": "mine"}, ports={80: 8080, 81: 8081})
    w.has(one)
    equal("exit status", await w.once(), 0)
    w.same("h:a:80", "mine")
    w.consul.put(entry("h:gone:80", w.consul.services["mine"]["Meta"]["registrator"]))
    w.engine.on("GET /containers/%s/json" % one["Id"], answer)
    await w.run("-resync", "1")
    await asyncio.sleep(2)
    demand({"h:a:80", "mine"} <= w.consul.services.keys(), "removed", repr(w.consul.services.keys()))
    w.engine.start(box("b", {80: 8082}))
    await w.until(lambda: "h:b:80" in w.consul.services, "registered another")
    w.engine.behave()
    w.patience_s = 30       # the one that hangs is given 10 s
    await w.until_services("h:a:80", "mine", "h:b:80")
    equal("writes", w.writes()[2:].count(("register", "h:a:80")) + w.writes()[2:].count(("register", "mine")), 0)


add("trouble: inspect answers 500 at start", unlooked, (500, {"message": "oops"}))
add("trouble: inspect hangs at start", unlooked, hang)


@case("trouble: an engine that restarts lists nothing, and takes no listener")
async def _(w):
    w.has(a())
    equal("exit status", await w.once(), 0)
    w.engine.on("GET /events", (503, {"message": "starting"}))
    w.engine.on("GET /containers/json", (200, []))
    await w.run()
    await asyncio.sleep(2)
    w.same("h:a:80")
    w.engine.behave()
    w.has(box("b", {80: 8081}))
    await w.until_services("h:a:80", "h:b:80")
    equal("writes", w.writes(), [("register", "h:a:80"), ("register", "h:b:80")])


async def framed(frame, w):
    """Both peers frame their answers like this, and close the connection after each."""
    def answer(peer, request):
        plain_answer = peer.answer(request)
        return plain_answer if callable(plain_answer) else frame(body_of(plain_answer[1]))

    w.engine.on("*", partial(answer, w.engine))
    w.consul.on("*", partial(answer, w.consul))
    one = a()
    await life(w, one)
    await w.until_services("h:first:80", "h:a:80")
    w.engine.start(box("b", {80: 8081}))
    w.engine.die(one)
    await w.until_services("h:first:80", "h:b:80")


def in_chunks(data):
    parts = [data[i:i + 7] for i in range(0, len(data), 7)]
    return b"".join(b"%04X;a=b\r\n%s\r\n" % (len(part), part) for part in parts) + b'000;x="y"\r\nX: y\r\n\r\n'


BYE = b"CONNECTION: close\r\n"

for what, frame in [
        ("that go on until the end", lambda data: b"HTTP/1.0 200 OK\r\n\r\n" + data),
        ("after 100 Continue", lambda data: b"HTTP/1.1 100 Continue\r\n\r\n" + OK + BYE +
         b"content-length:%d\r\n\r\n" % len(data) + data),
        ("in odd chunks, with a trailer", lambda data: OK + BYE + CHUNKED + in_chunks(data)),
        ("with no word of closing", lambda data: OK + b"Content-Length: %d\r\n\r\n" % len(data) + data)]:
    add("trouble: answers " + what, framed, frame)


async def registers_after(answer, w):
    """The first three registrations fail in this way."""
    w.consul.on("PUT /v1/agent/service/register", answer, times=3)
    await life(w, a(), box("b", {80: 8081}))
    await w.until_services("h:first:80", "h:a:80", "h:b:80")


for what, answer in [("no more than the end", b""), ("500", (500, "No known Consul servers")),
                     ("429", (429, "slow down")), ("503", (503, "busy")), ("garbage", b"\0\1\2\3\r\n\r\n"),
                     ("half an answer", b"HTTP/1.1 200 O")]:
    add("trouble: registration answered by " + what, registers_after, answer)


async def one_refused(status, text, w):
    def answer(request):
        return (status, text) if json.loads(request.body)["ID"] == "h:a:80" else None

    w.consul.on("PUT /v1/agent/service/register", answer)
    boxes = [box("b%d" % i, {80: 8100 + i}) for i in range(10)]
    await life(w, a(), *boxes)
    await w.until_services("h:first:80", *["h:b%d:80" % i for i in range(10)])
    await w.until_log("register failed: h:a:80 .*" + re.escape(text))
    await asyncio.sleep(2)
    tries = len([1 for _, name, _ in w.consul.writes() if name == "h:a:80"])
    demand(tries < 8, "tried %d times in 2 seconds" % tries)
    equal("times it was logged", w.log.count("register failed"), 1)


for status, text in [(403, "Permission denied: Missing service:write on app"), (400, "Invalid Weights: x"),
                     (500, "rpc error")]:
    add("trouble: one service is refused with %d" % status, one_refused, status, text)


@case("trouble: refused for its check, then the container changes")
async def _(w):
    one = a(labels={"SERVICE_CHECK_TTL": "10x"})
    await life(w, one)
    await w.until_log('register failed: h:a:80 .*time: unknown unit')
    await w.quiet(2)        # it is not worth another try
    one["Config"]["Labels"] = {"SERVICE_CHECK_TTL": "10s"}
    w.engine.emit("update", one)
    await w.until_services(first={}, a={"Check": {"TTL": "10s"}})


async def unknown_to_consul(answer, w):
    """What Consul does not know needs no removal."""
    await life(w, a())
    await w.until_services("h:first:80", "h:a:80")
    w.consul.on("PUT /v1/agent/service/deregister/*", answer)
    w.engine.die(a())
    await w.until(lambda: w.consul.writes()[-1][0] == "deregister", "deregistered")
    await w.quiet()
    demand("deregister failed" not in w.log, "says it failed")


add("trouble: deregister answered by 500 Unknown service", unknown_to_consul, (500, 'Unknown service {"h:a:80" {}}'))
add("trouble: deregister answered by 404", unknown_to_consul,
    (404, 'Unknown service ID "h:a:80". Ensure that the service ID is passed, not the service name.'))


@case("trouble: deregister fails, and is tried again")
async def _(w):
    await life(w, a())
    await w.until_services("h:first:80", "h:a:80")
    w.consul.on("PUT /v1/agent/service/deregister/*", (500, "rpc error"), times=2)
    w.engine.die(a())
    await w.until_log("deregister failed: h:a:80 .*rpc error")
    await w.until_services("h:first:80")


async def no_answer(peer, glob, w):
    """The first call of this kind is never answered."""
    getattr(w, peer).on(glob, hang, times=1)
    w.has(a())
    await w.run()
    w.patience_s = 30       # it waits for 10 s
    await w.until_services("h:a:80")


for peer, glob in [("consul", "PUT /v1/agent/service/register"), ("consul", "GET /v1/agent/services"),
                   ("consul", "GET /v1/status/leader"), ("consul", "GET /v1/agent/self"), ("engine", "GET /info"),
                   ("engine", "GET /containers/json"), ("engine", "GET /containers/*/json")]:
    add("trouble: no answer to %s %s" % (peer, glob), no_answer, peer, glob)


async def busy_at_first(status, w):
    """That is said in its words, and is no other server's answer."""
    w.consul.on("GET /v1/status/leader", (status, "too busy"), times=2)
    w.has(a())
    await w.run("-retry-interval", "50")
    await w.until_services("h:a:80")
    (line,) = [line for line in w.lines() if "too busy" in line]
    demand("HTTP %d: too busy" % status in line, "other words", line)
    demand("look like" not in line, "it is a Consul agent", line)


for status in [429, 502, 503]:
    add("trouble: the first answer is %d" % status, busy_at_first, status)


@case("trouble: the agent comes back empty, or half empty")
async def _(w):
    w.has(a())
    await life(w)
    await w.until_services("h:first:80", "h:a:80")
    for keep, missing in [([], {"h:first:80", "h:a:80"}), (["h:first:80"], {"h:a:80"})]:
        before = len(w.consul.writes())
        w.consul.forget(keep)
        await w.until_services("h:first:80", "h:a:80")
        await w.quiet()
        equal("writes", sorted(w.writes(before)),
              sorted(("register", name) for name in missing))


@case("trouble: Consul is not there at start; what came to nothing is not written")
async def _(w):
    w.consul.close()
    one, two = a(), box("b", {80: 8081})
    w.has(one)
    await w.run()
    await asyncio.sleep(0.3)
    w.engine.start(two)
    w.engine.die(one)
    await asyncio.sleep(QUIET_S)
    equal("lines about it", len(w.lines(ROUTINE)), 1)
    await w.consul.listen(port=w.port)
    await w.until_services("h:b:80")
    w.engine.start(one)
    await w.until_services("h:a:80", "h:b:80")
    w.consul.close()
    w.engine.die(one)
    w.engine.start(box("c", {80: 8082}))
    await asyncio.sleep(0.5)
    w.engine.start(one)
    before = len(w.consul.writes())
    await w.consul.listen(port=w.port)
    await w.until_services("h:a:80", "h:b:80", "h:c:80")
    await w.quiet()
    equal("writes", w.writes(before), [("register", "h:c:80")])


def entry(name, mark=None):
    return {"ID": name, "Name": "x", "Port": 1, "Address": "10.9.9.9", "Meta": {"registrator": mark} if mark else {}}


async def owned(w, *args):
    """Runs once, to see the mark; then puts entries of ours, of another's, and of nobody's."""
    w.has(a())
    equal("exit status", await w.once(*args), 0)
    mark = w.consul.services["h:a:80"]["Meta"]["registrator"]
    owner, _, content = mark.partition("-")
    other = owner.translate(str.maketrans("0123456789abcdef", "fedcba9876543210"))
    for service in [entry("ghost", mark), entry("oldhost:gone:80", owner + "-" + content[::-1]),
                    entry("other", other + "-" + content), entry("h:other:80", other + "-" + content),
                    entry("odd", mark.replace("-", "")), entry("unmarked")]:
        w.consul.put(service)
    w.consul.put(entry("bare"))
    w.consul.services["bare"].update(Tags=None, Meta=None, Port=None, Proxy={"Upstreams": [{"x": [[], {}]}]})
    return ["h:a:80", "other", "h:other:80", "odd", "unmarked", "bare"]


@case("trouble: ghosts of ours are removed at start, nobody else's")
async def _(w):
    right = await owned(w)
    await w.run()
    await w.until_services(*right)
    await w.quiet()
    w.same(*right)
    demand(re.search("dangling: ghost", w.log), "does not log dangling: ghost")
    equal("registrations", [name for verb, name, _ in w.consul.writes() if verb == "register"], ["h:a:80"])


@case("trouble: ghosts of ours are removed at a resync")
async def _(w):
    await life(w, args=["-resync", "1"])
    mark = w.consul.services["h:first:80"]["Meta"]["registrator"]
    w.consul.put(entry("ghost", mark))
    w.consul.put(entry("unmarked"))
    await w.until_services("h:first:80", "unmarked")


@case("trouble: another mode or host name is another owner")
async def _(w):
    w.has(a())
    for args in [[], ["-internal", "-hostname", "i"], ["-ip", "10.0.0.1", "-hostname", "j"]]:
        equal("exit status", await w.once(*args), 0)
    w.same("h:a:80", "i:a:80", "j:a:80")


@case("trouble: -cleanup")
async def _(w):
    right = await owned(w, "-cleanup")
    for name in ["h:old:80", "h:old_x.y-z:8080:udp"]:
        w.consul.put(entry(name))
    for name in ["g:old:80", "hh:old:80", "old:80", "h:x:80", "h:-old:80", "h:a b:80", "h:old:", "h:old:80x",
                 "h:old:80:tcp", "h:old:80:81"]:
        w.consul.put(entry(name))
        right.append(name)
    await w.run("-cleanup")
    await w.until_services(*right)
    await w.quiet()
    w.same(*right)


@case("trouble: without -cleanup unmarked ones stay")
async def _(w):
    w.consul.put(entry("h:old:80"))
    await life(w)
    await w.quiet()
    w.same("h:first:80", "h:old:80")


@case("trouble: the token may write, not read")
async def _(w):
    w.consul.on("GET /v1/agent/services", (200, {}))
    await life(w, a(), args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    loop = asyncio.get_running_loop()
    begin, before = loop.time(), len(w.writes())
    await asyncio.sleep(4)
    again, most = Counter(w.writes(before)), loop.time() - begin + 1
    equal("what is written again", again.keys(), {("register", "h:first:80"), ("register", "h:a:80")})
    demand(max(again.values()) <= most, "more than a write a resync", repr(again))
    equal("lines about it", len(w.lines(ROUTINE)), 1)
    w.engine.start(box("b", {80: 8081}))
    await w.until_services("h:first:80", "h:a:80", "h:b:80")
    w.engine.die(a())
    await w.until_services("h:first:80", "h:b:80")


@case("trouble: an agent too old to keep Meta")
async def _(w):
    w.consul.keeps_meta = False
    one = a(labels={"SERVICE_TAGS": "x", "SERVICE_NOTE": "1"})
    w.consul.put(entry("h:ghost:80"))
    await life(w, one, args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80", "h:ghost:80")
    await w.quiet(2.5)
    equal("exit status", await w.stop(), 0)
    await w.run("-resync", "1", "-cleanup")
    await w.until_services("h:first:80", "h:a:80")
    w.engine.die(one)
    await w.until_services("h:first:80")
    await w.quiet(1.5)
    equal("registrations", [name for verb, name, _ in w.consul.writes() if verb == "register"].count("h:a:80"), 1)


async def behind_its_back(change, w):
    await life(w, a(labels={"SERVICE_TAGS": "x,y"}), args=["-resync", "1"])
    await w.until_services("h:first:80", "h:a:80")
    service, before = dict(w.consul.services["h:a:80"]), len(w.consul.writes())
    change(w.consul.services)
    await w.until(lambda: w.consul.services.get("h:a:80") == service, "mended",
                  lambda: ["expected %r" % service, "got      %r" % w.consul.services.get("h:a:80")])
    await w.quiet(2.5)
    equal("writes", w.writes(before), [("register", "h:a:80")])


for what, change in [("removed", lambda s: s.pop("h:a:80")),
                     ("given another port", lambda s: s["h:a:80"].update(Port=1)),
                     ("given another address", lambda s: s["h:a:80"].update(Address="10.1.1.1")),
                     ("given another name", lambda s: s["h:a:80"].update(Service="x")),
                     ("given another tag", lambda s: s["h:a:80"].update(Tags=["x", "z"])),
                     ("given tags in another order", lambda s: s["h:a:80"].update(Tags=["y", "x"])),
                     ("stripped of its mark", lambda s: s["h:a:80"].update(Meta={}))]:
    add("trouble: an entry is %s behind its back" % what, behind_its_back, change)


MANY = [a({80: 8080, "53/udp": 53, 443: "10.1.2.3:443"},
          env=["SERVICE_TAGS=b,a,b", "SERVICE_NOTE=<&>\u2028\xe9", "SERVICE_80_CHECK_HTTP=/",
               "SERVICE_53_CHECK_TTL=90s", "SERVICE_443_CHECK_INTERVAL=60s"]),
        box("b", {}, expose=[81], mode="host", labels={"SERVICE_CHECK_SCRIPT": "true", "SERVICE_X": "a.b"}),
        box("c", {80: "fd00::1:8080"}, labels={"SERVICE_CHECK_GRPC": "1", "SERVICE_a.b": "left out"})]


async def at_rest(args, w):
    """Over an unchanged world neither the same run nor another one writes, asked to look again or not."""
    w.has(*MANY)
    equal("exit status", await w.once(*args), 0)
    w.same("h:a:80", "h:a:53:udp", "h:a:443", "h:b:81", "h:c:80")
    writes = len(w.consul.writes())
    equal("exit status", await w.once(*args), 0)
    await w.run("-resync", "1", *args)
    await w.until_log("Listening")
    await w.quiet(2.5)
    w.proc.send_signal(signal.SIGHUP)
    w.engine.end_events()
    w.consul.drop()
    await w.quiet(1.5)
    equal("writes of the second and third run", w.consul.writes()[writes:], [])


add("trouble: at rest", at_rest, [])
add("trouble: at rest with options", at_rest,
    ["-cleanup", "-deregister", "on-success", "-tags", "t", "-ttl", "9", "-ttl-refresh", "3"])


@case("trouble: -ttl has no effect with Consul, which one line says")
async def _(w):
    await life(w, args=["-ttl", "9", "-ttl-refresh", "3"])
    equal("lines about it", len([line for line in w.lines(ROUTINE) if "-ttl" in line]), 1)


@case("trouble: a change while it was away is one write")
async def _(w):
    one = a(labels={"SERVICE_CHECK_TTL": "30s"})
    for labels in [{"SERVICE_CHECK_TTL": "30s"}, {"SERVICE_CHECK_TTL": "31s"}, {"SERVICE_TAGS": "x"},
                   {"SERVICE_TAGS": "x", "SERVICE_NOTE": "1"}, {}]:
        one["Config"]["Labels"] = labels
        w.has(one)
        before = len(w.consul.writes())
        equal("exit status", await w.once(), 0)
        equal("writes", w.writes(before), [("register", "h:a:80")])
        equal("checks", w.consul.checks.get("h:a:80", {}).get("TTL"), labels.get("SERVICE_CHECK_TTL"))


@case("trouble: killed at any moment")
async def _(w):
    boxes = [box("b%d" % i, {80: 8100 + i}) for i in range(40)]
    for number in range(12):
        w.engine.boxes.clear()
        w.has(*boxes[number:number + 25])
        await w.run()
        await asyncio.sleep(0.004 * number)
        w.proc.kill()
        await w.exit()
    await w.run()
    await w.until_log("Syncing")
    await w.until_services(*["h:b%d:80" % i for i in range(11, 36)])


async def anything(seed, w):
    """Whatever happens, in whatever order: in the end the services are right."""
    chance = random.Random(seed)
    engine, consul = w.engine, w.consul
    boxes = [box("b%d" % i, {80: 8100}) for i in range(12)]
    fresh = iter(range(10000, 60000))

    def start(one):
        one["NetworkSettings"]["Ports"]["80/tcp"] = [{"HostIp": "0.0.0.0", "HostPort": str(next(fresh))}]
        engine.start(one)

    def destroy(one):
        engine.die(one)
        engine.destroy(one)

    def fail(_):
        side = chance.choice([engine, consul])
        answer = chance.choice([b"", (500, "oops"), (503, ""), b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n[{"])
        side.on(chance.choice(["GET *", "PUT *", "* *"]), answer, times=chance.randrange(1, 4))

    def forget(_):
        consul.forget(chance.sample(sorted(consul.services), len(consul.services) // 2))

    deeds = [start] * 8 + [engine.die] * 6 + [destroy] * 2 + [
        lambda one: engine.rename(one, "n%d" % next(fresh)), lambda one: engine.emit("die", one),
        lambda one: engine.emit("start", one), lambda _: engine.end_events(), lambda _: engine.drop(),
        lambda _: consul.drop(), forget, fail, fail]
    await life(w, args=["-resync", "1"])
    for _ in range(400):
        chance.choice(deeds)(chance.choice(boxes))
        if chance.random() < 0.3:
            await asyncio.sleep(chance.choice([0, 0.001, 0.02]))
    engine.behave()
    consul.behave()
    right = {"h:%s:80" % b["Name"][1:]: {"Port": int(b["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"])}
             for b in engine.boxes.values() if b["State"]["Running"]}
    w.patience_s = 30
    await w.until(lambda: not w.mismatch(right), "right in the end", lambda: w.mismatch(right))
    await w.quiet(2)
    w.same_as(right)


for seed in range(6):
    add("trouble: anything in any order, %d" % seed, anything, seed)


WRONG = {
    "HTML": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 20\r\n\r\n<html>hello</html>\r\n",
    "HTML without a length": b"HTTP/1.0 404 Not Found\r\nServer: x\r\n\r\n<!DOCTYPE html><html><body>Not here",
    "a redirect": b"HTTP/1.1 301 Moved\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "TLS that talks": b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
    "a closing server": b"",
    "SSH": "banner",
    "nobody": None,
}


async def wrong_server(peer, what, w):
    """One line, little work, patience: and all is well once the right server is there."""
    side = getattr(w, peer)
    place = {"path": w.docker} if peer == "engine" else {"port": w.port}
    if WRONG[what] is None:
        side.close()
    elif WRONG[what] == "banner":
        side.banner = b"SSH-2.0-OpenSSH_9.2\r\n"
        side.on("*", b"Invalid SSH identification string.\r\n")
    else:
        side.on("*", WRONG[what])
    w.has(a())
    await w.run("-resync", "1")
    await asyncio.sleep(2)
    equal("exit status", w.proc.returncode, None)
    demand(w.cpu_s() < 0.2, "busy: %.2f s of processor time in 2 s" % w.cpu_s())
    demand(len(side.requests) < 40, "%d requests in 2 s" % len(side.requests))
    equal("lines about it", len(w.lines(ROUTINE)), 1)
    equal("services", w.consul.services, {})
    side.behave()
    if WRONG[what] is None:
        await side.listen(**place)
    await w.until_services("h:a:80")


for peer in ["engine", "consul"]:
    for what in WRONG:
        add("trouble: %s is %s" % (peer, what), wrong_server, peer, what)


@case("trouble: little work while a peer is away")
async def _(w):
    await life(w, args=["-resync", "1"])
    for away in [w.consul.close, w.engine.close]:
        away()
        w.engine.start(box("b", {80: 8081}))
        before = w.cpu_s()
        await asyncio.sleep(2)
        demand(w.cpu_s() - before < 0.1, "busy: %.2f s of processor time in 2 s" % (w.cpu_s() - before))
    await w.engine.listen(w.docker)
    await w.consul.listen(port=w.port)
    await w.until_services("h:first:80", "h:b:80")


async def gives_up(args, w):
    w.consul.close()
    w.has(a())
    await w.run(*args, "-retry-attempts", "2", "-retry-interval", "30")
    equal("exit status", await w.exit(), 1)
    demand(any(str(w.port) in line for line in w.lines(ROUTINE)), "does not say which registry")


add("trouble: -retry-attempts gives up with 1", gives_up, [])
add("trouble: -retry-attempts with -once", gives_up, ["-once"])


@case("trouble: -retry-attempts counts at the start only")
async def _(w):
    w.consul.close()
    w.has(a())
    await w.run("-retry-attempts", "50", "-retry-interval", "100")
    await asyncio.sleep(0.5)
    await w.consul.listen(port=w.port)
    await w.until_services("h:a:80")
    equal("exit status", await w.stop(), 0)
    await w.run("-retry-attempts", "1", "-retry-interval", "10")
    await w.until_log("Syncing")
    w.consul.close()
    w.engine.start(box("b", {80: 8081}))
    await asyncio.sleep(2)
    await w.consul.listen(port=w.port)
    await w.until_services("h:a:80", "h:b:80")


@case("trouble: -once ends with 1 when something could not be done")
async def _(w):
    w.has(a(), box("bad", {80: 8081}, env=["SERVICE_CHECK_TTL=1x"]))
    equal("exit status", await w.once(), 1)
    w.same("h:a:80")
    w.engine.boxes.popitem()
    equal("exit status", await w.once(), 0)


@case("limits: no listening socket, no other program, no file")
async def _(w):
    await life(w)
    w.engine.start(a())
    await w.until_services("h:first:80", "h:a:80")
    proc = "/proc/%d/" % w.proc.pid
    links = [os.readlink(proc + "fd/" + fd) for fd in os.listdir(proc + "fd")]
    equal("open files", [link for link in links if not re.match(r"(socket|pipe|anon_inode):|/dev/null$", link)
                         and link not in w.runs[-1]], [])
    listening = set()
    for table, state, inode, value in [("tcp", 3, 9, "0A"), ("tcp6", 3, 9, "0A"), ("unix", 3, 6, "00010000")]:
        with open(proc + "net/" + table) as f:
            rows = [line.split() for line in f][1:]
        listening |= {"socket:[%s]" % row[inode] for row in rows if row[state] == value}
    demand(listening, "the test sees no listening socket at all")
    equal("listening sockets", listening & set(links), set())
    with open(proc + "task/%d/children" % w.proc.pid) as f:
        equal("children", f.read(), "")


@case("signals: SIGTERM and SIGINT keep by default, -on-exit deregister removes ours")
async def _(w):
    w.consul.put(entry("unmarked"))
    for number in [signal.SIGTERM, signal.SIGINT]:
        for mode, left in [([], {"h:first:80", "unmarked"}), (["-on-exit", "deregister"], {"unmarked"})]:
            await life(w, args=mode)
            await w.quiet(0.5)
            equal("exit status", await w.stop(number), 0)
            equal("services left", w.consul.services.keys(), left)


@case("signals: SIGTERM when nobody answers")
async def _(w):
    await life(w, args=["-on-exit", "deregister"])
    w.consul.on("*", hang)
    w.engine.on("*", hang)
    w.engine.start(a())
    await asyncio.sleep(0.3)
    equal("exit status", await w.stop(), 0)


@case("signals: SIGTERM when nobody is there")
async def _(w):
    w.consul.close()
    w.engine.close()
    await w.run("-on-exit", "deregister")
    await w.until_log("Starting")
    await asyncio.sleep(0.3)
    equal("exit status", await w.stop(), 0)


@case("signals: SIGHUP resyncs")
async def _(w):
    w.consul.put(entry("unmarked"))
    await life(w, args=["-resync", "0"])
    await w.quiet()     # it looks whether what it wrote is listed
    del w.consul.services["h:first:80"]
    w.has(a())
    await w.quiet()
    w.proc.send_signal(signal.SIGHUP)
    await w.until_services("h:first:80", "h:a:80", "unmarked")


@case("signals: SIGUSR1 logs a summary")
async def _(w):
    await life(w)
    before = w.log
    w.proc.send_signal(signal.SIGUSR1)
    await w.until(lambda: w.log != before, "logged a summary")
    summary = w.log[len(before):]
    demand("container" in summary and "service" in summary, "not of containers and services", summary)


@case("signals: SIGPIPE and SIGCHLD do nothing")
async def _(w):
    await life(w)
    for number in [signal.SIGPIPE, signal.SIGCHLD]:
        w.proc.send_signal(number)
    w.engine.start(a())
    await w.until_services("h:first:80", "h:a:80")


@case("log: the words of the original, each once")
async def _(w):
    one = a({80: 8080, 81: None, 82: 8082}, env=["SERVICE_82_IGNORE=1"])
    bare = box("bare")
    w.has(one, bare)
    await w.run("-resync", "1")
    await w.until_log("in sync")
    w.same("h:a:80")
    id12 = one["Id"][:12]
    w.engine.die(one)
    await w.until_services()
    await asyncio.sleep(2.5)
    for text in ["Starting registrator ", "Using consul adapter: " + w.uri, "consul: current leader 127.0.0.1:8300",
                 "Listening for Docker events ...", "added: %s h:a:80" % id12, "removed: %s h:a:80" % id12,
                 "ignored: %s no published ports" % bare["Id"][:12],
                 "ignored: %s port 81 not published on host" % id12,
                 "ignored: %s service on port 82: SERVICE_IGNORE is set" % id12]:
        equal("times it logs %r" % text, w.log.count("registrator: " + text), 1)
    demand(re.search(r"registrator: Syncing services on \d+ containers", w.log), "no line about syncing")
    demand(re.search(r"registrator: in sync: 1 services? of 2 containers, 1 written, 0 removed\n", w.log),
           "no line about how it stands")


@case("log: in UTC, whatever the zone")
async def _(w):
    await life(w, TZ="XXX-5")
    hour, now = w.lines()[0][11:13], time.gmtime()
    demand((int(hour) - now.tm_hour) % 24 in (0, 1, 23), "not UTC", w.lines()[0], time.asctime(now))


@case("log: how it stands after each first pass")
async def _(w):
    """At the start, and when either side is back."""
    w.has(a(), box("b", {80: 8081}))
    await w.run()
    await w.until_log("in sync: 2 services of 2 containers, 2 written, 0 removed")
    w.engine.boxes.popitem()
    w.engine.drop()
    await w.until_log("in sync: 1 services? of 1 containers?, 0 written, 1 removed")
    w.consul.close()
    w.engine.start(box("c", {80: 8082}))
    await w.until_log("consul: .*trying again")
    await w.consul.listen(port=w.port)
    await w.until_log("in sync: 2 services of 2 containers, 1 written, 0 removed")


# ==== F. Hostile text ===========================================================================

Text = namedtuple("Text", "name text raw", defaults=(False,))   # raw: sent as UTF-8, "\udcXX" as a broken byte
TEXTS = [
    Text("quotes", "\"'\\`\\\"\\u0041"),
    Text("newlines", "a\nFORGED\r\nHost: evil\r\n\r\nb\u2028c"),
    Text("control bytes", "\x01\x1b[31m\x7f\x85\x9b\b\tx"),
    Text("NUL", "a\0b"),
    Text("lone surrogates", "x\ud800y\udfffz\udc00\ud800"),
    Text("URL", "%2e%00%?a=b#c d+e&f;=~"),
    Text("slashes", "a/b%2fc/d"),
    Text("formats", "%s%n%d%100000x"),
    Text("letters, escaped", "\xe9\u65e5\U0001f600"),
    Text("letters", "\xe9\u65e5\U0001f600", True),
    Text("markup", "</script>&amp;<!--"),
    Text("blanks", "  x  y  "),
    Text("broken UTF-8", "x\udcffy\udcc0\udc80z\udced\udca0\udc80\udcf4\udc90\udc80\udc80w\udce2\udc82", True),
]


def plain(value):
    """The value with each run of what is not UTF-8 as one U+FFFD."""
    text = re.sub("[\ud800-\udfff\ufffd]+", "\ufffd", json.dumps(value, ensure_ascii=False))
    return json.loads(text)


async def hostile(row, w):
    text = row.text
    w.engine.raw = row.raw
    good = box("good", {80: 8001})
    evil = box("evil", {80: 8080, 81: 8081}, image=text, env=["SERVICE_80_NAME=" + text, "SERVICE_NOTE=" + text,
                                                             "SERVICE_CHECK_SCRIPT=" + text],
               labels={"SERVICE_TAGS": text, "SERVICE_81_ID": text, text: text, "SERVICE_" + text: text})
    name = "n" + "".join(c for c in text if re.fullmatch("[ -.0-~]", c))    # as Docker's, not empty
    named = box(name, {80: 8082})
    id_ = text if re.fullmatch("[ -~]+", text) else "h:evil:81"     # Consul could not deregister it
    await life(w, good)
    w.engine.start(evil)
    w.engine.start(named)
    names = sorted(plain(["h:first:80", "h:good:80", "h:evil:80", id_, "h:%s:80" % name]))
    await w.until(lambda: sorted(plain(list(w.consul.services))) == names, "registered them all",
                  lambda: ["expected %r" % names, "got      %r" % sorted(plain(list(w.consul.services)))])
    sent = plain(w.consul.sent)["h:evil:80"]
    for what, got in [("Name", sent["Name"]), ("note", sent["Meta"].get("note")), ("Tags", sent.get("Tags")[0]),
                      ("Args", sent["Check"]["Args"][2])]:
        equal(what, got, plain(text))
    w.engine.die(evil)
    w.engine.die(named)
    await w.until_services("h:first:80", "h:good:80")


for each in TEXTS:
    add("hostile: " + each.name, hostile, each)


@case("hostile: values of 100 kB")
async def _(w):
    long = "x" * 100000
    await life(w, a(env=["SERVICE_TAGS=" + long, "SERVICE_NOTE=" + long, "PATH=" + long], labels={long: long}))
    w.engine.start(box("b", {80: 8081}, labels={"SERVICE_CHECK_HTTP": "/" + long}))
    await w.until_services(first={}, a={"Tags": None, "Meta": {}},
                           b={"Check": {"HTTP": "http://%s:8081/%s" % (HOST, long), "Interval": "10s"}})
    demand(re.search(a()["Id"][:12] + ".*tags", w.log), "no warning about the tags")
    demand(max(map(len, w.lines())) < 10000, "a log line of %d bytes" % max(map(len, w.lines())))


@case("hostile: 500 labels")
async def _(w):
    await life(w, a(labels={"SERVICE_X%d" % i: "v%d" % i for i in range(500)}), box("b", {80: 8081}))
    await w.until_services("h:first:80", "h:a:80", "h:b:80")
    sent = w.consul.sent["h:a:80"]["Meta"]
    mixed_up = [key for key in sent if key[0] == "x" and sent[key] != "v" + key[1:]]
    equal("attributes with another's value", mixed_up, [])


@case("hostile: 1000 published ports")
async def _(w):
    many = box("many", {port: 10000 + port for port in range(1, 1001)})
    await life(w, many, a())
    names = ["h:many:%d" % port for port in range(1, 1001)]
    await w.until_services("h:first:80", "h:a:80", *names)
    wrong = [name for port, name in enumerate(names, 1) if w.consul.services[name]["Port"] != 10000 + port]
    equal("services with a wrong port", wrong, [])
    w.engine.die(many)
    await w.until_services("h:first:80", "h:a:80")


@case("hostile: events with made-up IDs")
async def _(w):
    await life(w)
    for id_ in ["../../info", "x\r\nGET /secret HTTP/1.1\r\n\r\n", "", "%2e%2e", "a?all=1", "\ud800", "x" * 5000,
                None, 7, {}, []]:
        for event in [{"status": "start", "id": id_, "from": "x"},
                      {"Type": "container", "Action": "start", "Actor": {"ID": id_}},
                      {"Type": "network", "Action": "connect", "Actor": {"ID": id_, "Attributes": {"container": id_}}}]:
            w.engine.send(json.dumps(event).encode() + b"\n")
    for event in [{}, {"Type": None}, {"status": 1}, {"Type": "container", "Action": "start", "Actor": None},
                  {"Type": "container", "Action": [], "Actor": {"ID": {}}}]:
        w.engine.send(json.dumps(event).encode() + b"\n")
    w.engine.start(a())
    await w.until_services("h:first:80", "h:a:80")
    known = {b["Id"] for b in w.engine.boxes.values()}
    asked = {r.path for r in w.engine.requests if r.path.startswith("/containers/") and r.path != "/containers/json"}
    asked -= {"/containers/%s/json" % id_ for id_ in known}
    equal("odd requests", [path[:100] for path in asked if not re.fullmatch(r"/containers/[\w.%-]+/json", path)], [])


@case("hostile: a network's name")
async def _(w):
    net = "a/../b c?x#%2f\r\ny"
    w.engine.drivers = {net: "macvlan"}
    await life(w, a({}, expose=[80], mode=net, nets={net: "192.168.5.9"}))
    await w.until_services(first={}, a={"Address": "192.168.5.9", "Port": 80})


@case("hostile: what Consul says")
async def _(w):
    text = "no\nFORGED\x1b[31m\r%s%n \udcff " + "x" * 5000
    w.consul.on("PUT /v1/agent/service/register", lambda r: (400, text) if b'"h:a:80"' in r.body else None)
    await life(w, a())
    await w.until_log("register failed: h:a:80 .*no")


SHAPES = [
    ("Config", None), ("Config.Env", {}), ("Config.Env", [1, None, "SERVICE_X=1"]), ("Config.Labels", []),
    ("Config.Labels", {"SERVICE_NAME": 7, "SERVICE_X": None}), ("Config.Image", None),
    ("NetworkSettings", None), ("NetworkSettings.Networks", [1]), ("NetworkSettings.Networks", {"x": None}),
    ("NetworkSettings.Ports", []), ("NetworkSettings.Ports", {"x/tcp": [{"HostIp": "", "HostPort": "1"}]}),
    ("NetworkSettings.Ports", {"99999/tcp": [{"HostIp": "0.0.0.0", "HostPort": "1"}], "80/tcp/udp": None, "": []}),
    ("NetworkSettings.Ports", {"80/tcp": [{"HostIp": None, "HostPort": 80}, None, {}]}),
    ("NetworkSettings.Ports", {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "99999999999"}]}),
    ("NetworkSettings.Ports", {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "80 evil"}]}),
    ("HostConfig", None), ("HostConfig.NetworkMode", "container:"), ("HostConfig.NetworkMode", "container:../x"),
    ("State", None), ("Name", None),
]


@case("hostile: broken shapes of a container")
async def _(w):
    boxes = {}
    for number, (path, value) in enumerate(SHAPES):
        one = at = box("shape%d" % number, {80: 8100 + number})
        *way, last = path.split(".")
        for key in way:
            at = at[key]
        at[last] = value
        boxes["/containers/%s/json" % one["Id"]] = one
    w.engine.on("GET *", lambda r: (200, boxes[r.path]) if r.path in boxes else None)
    await life(w)
    for one in boxes.values():
        w.engine.send(json.dumps({"status": "start", "id": one["Id"], "from": "x"}).encode())
    w.engine.start(a())
    await w.until(lambda: {"h:first:80", "h:a:80"} <= w.consul.services.keys(), "registered the good ones")
    bad = [s for s in w.consul.sent.values() if not 0 < s["Port"] < 65536]
    equal("services with an impossible port", bad, [])


# ==== Running ===================================================================================

async def run_case(kind, binary, name, test, limit):
    """Runs one case in a world of this kind; gives the lines of its result."""
    async with limit:
        with tempfile.TemporaryDirectory(prefix="peers-") as tmp:
            w = kind(binary, tmp)
            await w.open()
            try:
                await asyncio.wait_for(test(w), w.limit_s)
                await w.finish()
                return ["ok " + name]
            except asyncio.TimeoutError:
                reason, details = "took more than %d s" % w.limit_s, []
            except Failure as e:
                reason, details = str(e), e.details
            except Exception as e:      # a mistake of the test is a failure too
                reason, details = "%s: %s" % (type(e).__name__, e), traceback.format_exc().splitlines()[-3:-1]
            finally:
                await w.close()
            log = ["log: " + repr(line[:500])[1:-1] for line in (w.lines()[-12:] if w.runs else [])]
            return ["not ok %s: %s" % (name, reason)] + ["  " + line for line in [*details, *log]]


async def run_cases(kind, binary, cases, at_once=AT_ONCE):
    """Runs them and prints their results; gives the exit status."""
    limit = asyncio.Semaphore(at_once)
    tasks = [asyncio.ensure_future(run_case(kind, os.path.abspath(binary), name, test, limit))
             for name, test in cases.items()]
    failed = 0
    for task in tasks:
        lines = await task
        failed += lines[0].startswith("not ok")
        print("\n".join(lines), flush=True)
    return int(failed > 0 or not tasks)


def main(argv):
    if not 1 <= len(argv) <= 2:
        sys.exit(__doc__)
    pattern = argv[1] if argv[1:] else ""
    return run_cases(World, argv[0], {name: test for name, test in CASES.items() if re.search(pattern, name)})


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
