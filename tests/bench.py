#!/usr/bin/env python3
"""Measures registrator, side by side with any other program of its kind.

    python3 tests/bench.py [--quick] [--only GROUP] [--json FILE]
                           [--picture FILE] [BINARY...]

A BINARY (./registrator if none is named) takes the original's command line:
BINARY -resync 0 -ip 10.0.0.1 consul://127.0.0.1:PORT with DOCKER_HOST.  All
of them are measured in turn, again and again, so that what else this machine
does meets them alike.

Most is measured between a scripted engine and Consul (benchpeer.c), which take
the times; "floor" is benchfloor.c, which sends what must be sent and does
nothing else.  The group "real" has a real dockerd and a real Consul in
namespaces of their own, like e2e.py; it needs root.

Prints a table, with ratios to the first binary, and draws tests/bench.svg.
Of repetitions the best counts, for what else the machine does only ever adds.
--quick is for trying the tool: some seconds, no picture, and figures that mean
little.
"""
import argparse
import hashlib
import http.client
import json
import math
import os
import platform
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import e2e

HERE = os.path.dirname(os.path.abspath(__file__))
ADDRESS = "10.0.0.1"            # of the services
FLOOR = "floor"
CLOCK_OF_PROCESS = 2            # CPUCLOCK_SCHED: see clock_getcpuclockid(3)
GROUPS = ["size", "start", "event", "storm", "rest", "tls", "real"]


def median(values):
    return statistics.median(values)


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


# ---- the results -----------------------------------------------------------

class Table:
    """What was measured: rows of a value for each binary."""

    def __init__(self, labels):
        self.labels = labels
        self.rows = []          # (group, title, unit, {label: value})
        self.samples = {}       # what the picture is made of

    def add(self, group, title, unit, values):
        """values: {label: number, text or None}."""
        self.rows.append((group, title, unit, values))

    def best(self, group, title, unit, values, of=lambda v: v):
        """The same from {label: [repetition, ...]}."""
        self.add(group, title, unit, {
            k: min(map(of, v)) if v else None for k, v in values.items()})

    def text(self):
        floor = [FLOOR] if any(FLOOR in r[3] for r in self.rows) else []
        ratios = self.labels[1:]
        head = ["", "", *self.labels, *floor, *("x " + r for r in ratios)]
        lines, group = [head], None
        for row in self.rows:
            if row[0] != group:
                group = row[0]
                lines.append([TITLES[group]])
            values = [row[3].get(label) for label in self.labels + floor]
            lines.append(["  " + row[1], row[2], *map(number, values),
                          *(ratio(v, values[0])
                            for v in values[1:len(self.labels)])])
        widths = [max(len(line[i]) for line in lines if len(line) > 1)
                  for i in range(len(head))]
        return "\n".join("  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths))).rstrip()
            for line in lines)

    def json(self, binaries):
        return {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": {"system": platform.platform(), "cpus": os.cpu_count(),
                        "cpu": cpu_model(), "load": os.getloadavg()},
            "binaries": {label: {
                "path": path, "bytes": os.path.getsize(path),
                "sha256": hashlib.sha256(open(path, "rb").read()).hexdigest()}
                for label, path in binaries.items()},
            "rows": [{"group": g, "title": t, "unit": u, "values": v}
                     for g, t, u, v in self.rows]}


TITLES = {
    "size": "binary",
    "start": "start with N containers, until all are registered",
    "event": "one event at a time",
    "storm": "containers that die and start again at once, 2 ms a request",
    "rest": "at rest, ten resyncs: what ten minutes are with -resync 60 (made "
            "of -resync 1)",
    "tls": "Consul over TLS 1.2, certificate and keys of P-256",
    "real": "a real Docker engine and a real Consul agent",
}


def number(v):
    if v is None:
        return "-"
    if isinstance(v, str):
        return v
    if isinstance(v, int) or abs(v) >= 1000:
        return "{:,.0f}".format(v)
    return "{:#.3g}".format(v).rstrip(".") if v else "0"


def ratio(v, first):
    good = all(isinstance(x, (int, float)) for x in (v, first)) and first
    return "{:.2f}".format(v / first) if good else ""


def cpu_model():
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return ""


# ---- what is measured, and between whom ------------------------------------

class Run:
    """A binary at work; its log goes to a file."""
    all = []

    def __init__(self, binary, uri, engine, *options, env=None):
        options = options or ("-resync", "0")
        self.log = tempfile.TemporaryFile()
        self.began = time.monotonic_ns()
        self.proc = subprocess.Popen(
            [binary, *options, "-ip", ADDRESS, uri], stdin=subprocess.DEVNULL,
            stdout=self.log, stderr=self.log, close_fds=False,
            env={"PATH": "/usr/bin:/bin", "DOCKER_HOST": "unix://" + engine,
                 **(env or {})})
        Run.all.append(self)

    def cpu(self):
        """Seconds of processor time so far: the sum of utime and stime, which
        in /proc/PID/stat are only good to 10 ms."""
        return 0 if self.ended() else time.clock_gettime(
            ~self.proc.pid << 3 | CLOCK_OF_PROCESS)

    def memory(self):
        """KiB: (resident now, at the most)."""
        with open("/proc/%d/status" % self.proc.pid) as f:
            found = dict(line.split(":", 1) for line in f)
        return tuple(int(found[k].split()[0]) for k in ("VmRSS", "VmHWM"))

    def ended(self):
        return self.proc.poll() is not None

    def words(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def end(self):
        self.proc.kill()
        self.proc.wait()
        self.log.close()
        Run.all.remove(self)


class Peer:
    """The scripted engine and Consul."""

    def __init__(self, tools):
        with open(HERE + "/bench.json") as f:
            recorded = json.load(f)
        files = []
        for name in ("inspect", "row", "event"):
            text = json.dumps(recorded[name], separators=(",", ":"))
            for code in ("@R", "@P") if name != "inspect" else ("@R",):
                text = text.replace('"%s"' % code, code)
            files.append("%s/%s.json" % (tools, name))
            with open(files[-1], "w") as f:
                f.write(text + "\n")
        self.engine = tools + "/engine.sock"
        self.proc = subprocess.Popen(
            [tools + "/benchpeer", self.engine, *files], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port = json.loads(self.proc.stdout.readline())["port"]
        self.uri = "consul://127.0.0.1:%d" % self.port

    def ask(self, *command):
        print(*command, file=self.proc.stdin, flush=True)
        return json.loads(self.proc.stdout.readline())

    def run(self, binary, *options, **kw):
        return Run(binary, kw.pop("uri", self.uri), self.engine, *options,
                   **kw)

    def end(self):
        self.proc.stdin.close()
        self.proc.wait()


def compile_tools(where):
    for name in ("benchpeer", "benchfloor"):
        subprocess.run(["cc", "-std=c99", "-O2", "-o", where + "/" + name,
                        "%s/%s.c" % (HERE, name)], check=True)


class Bench:
    """A measure is a method that takes turns among the binaries."""

    def __init__(self, binaries, tools, quick):
        self.binaries = binaries        # {label: path}
        self.tools = tools
        self.quick = quick
        self.peer = Peer(tools)
        self.table = Table(list(binaries))

    def times(self, n):
        return range(1 if self.quick else n)

    def turns(self, n, floor=False):
        """(label, path) of each binary in turn, n times."""
        all_ = dict(self.binaries)
        if floor:
            all_[FLOOR] = self.tools + "/benchfloor"
        for _ in self.times(n):
            yield from all_.items()

    def started(self, boxes, binary, *options, limit=60, **kw):
        """A run that was given so many containers: `ready` is what the peer
        saw of it, `took` the ms until all were registered."""
        self.peer.ask("boxes", boxes)
        run = self.peer.run(binary, *options, **kw)
        run.ready = self.peer.ask("wait", limit * 1000, 100)
        run.took = (run.ready["at"] - run.began) / 1e6
        if not run.ready["right"]:
            print("# %s: not all of %d were registered within %d s; the end "
                  "of its log:\n%s" % (binary, boxes, limit,
                                       run.words()[-600:]), file=sys.stderr)
        return run

    # -- each adds its rows

    def size(self):
        self.table.add("size", "file", "bytes", {
            k: os.path.getsize(v) for k, v in self.binaries.items()})

    def start(self):
        sizes = (10, 100, 1000) if self.quick else (10, 100, 1000, 10000)
        plan = [(0, n) for n in sizes] + [(2000, n) for n in (*sizes, 300)]
        got = {}
        for delay, n in sorted(plan):
            for label, path in self.turns(7 if n < 1000 else
                                          3 if n * delay < 1e7 else 2):
                self.peer.ask("delay", delay)
                run = self.started(n, path)
                if run.ready["right"]:
                    got.setdefault((delay, n), {}).setdefault(
                        label, []).append((run.took, run.cpu(),
                                           *run.memory()))
                run.end()
        self.peer.ask("delay", 0)
        add = self.table.best
        for delay, n in sorted(plan):
            add("start", "{:,} containers, {}".format(
                n, "2 ms a request" if delay else "immediate answers"), "ms",
                got.get((delay, n), {}), lambda v: v[0])
        for title, unit, i, scale in (
                ("processor time of it", "ms", 1, 1e3),
                ("resident memory then", "KiB", 2, 1),
                ("resident memory at the most", "KiB", 3, 1)):
            for n in sizes:
                add("start", "{}, {:,}".format(title, n), unit,
                    got.get((0, n), {}), lambda v, i=i: v[i] * scale)
        self.table.samples["start"] = {
            "%d %d" % k: {label: [list(x) for x in v]
                          for label, v in got[k].items()} for k in got}

    def event(self):
        rounds, boxes = (100, 20) if self.quick else (1000, 100)
        took, cpu, lost = {}, {}, {}
        for label, path in self.turns(5, floor=True):
            self.peer.ask("boxes", boxes)
            run = self.peer.run(path)
            self.peer.ask("wait", 500 if label == FLOOR else 10000, 100)
            before = run.cpu()
            got = self.peer.ask("events", rounds, 500)
            cpu.setdefault(label, []).append(
                (run.cpu() - before) / (2 * rounds) * 1e3)
            run.end()
            lost[label] = lost.get(label, 0) + got["lost"]
            for kind in ("start", "die"):
                if got[kind]:
                    took.setdefault(kind, {}).setdefault(
                        label, []).append(got[kind])
        for kind, words in (("start", "from a start event to the register"),
                            ("die", "from a die event to the deregister")):
            took[kind] = all_ = {k: min(v, key=median)
                                 for k, v in took.get(kind, {}).items()}
            add = self.table.add
            add("event", words + ", median", "us",
                {k: median(v) for k, v in all_.items()})
            add("event", "... 99th percentile", "us",
                {k: percentile(v, .99) for k, v in all_.items()})
            add("event", "... median above the floor", "us",
                {k: median(v) - median(all_[FLOOR])
                 for k, v in all_.items() if k != FLOOR})
        self.table.best("event", "processor time (inspect and write)", "ms",
                        cpu)
        self.table.add("event", "lost of {:,}".format(
            2 * rounds * len(self.times(5))), "", lost)
        self.table.samples["event"] = took

    def storm(self):
        for die, start, early in ((10, 10, 0), (300, 150, 10)):
            took, wrong = {}, {}
            for label, path in self.turns(5):
                self.peer.ask("delay", 2000)
                run = self.started(die + early + 10, path)
                began = self.peer.ask("storm", die, start, early)["at"]
                got = self.peer.ask("wait", 20000, 500)
                took.setdefault(label, []).append(
                    (got["at"] - began) / 1e6 if got["right"] else math.inf)
                wrong.setdefault(label, []).append(got["wrong"])
                run.end()
            title = "%d die, %d start" % (die, start)
            title += ", %d of each under way" % early if early else ""
            self.table.add("storm", title, "ms", {
                k: min(v) if math.isfinite(min(v)) else "never"
                for k, v in took.items()})
            self.table.add("storm", "... ends right", "", {
                k: "yes" if max(v) == 0 else "%d of %d times" % (
                    v.count(0), len(v)) for k, v in wrong.items()})
        self.peer.ask("delay", 0)

    def rest(self):
        seconds = 1 if self.quick else 10
        rows = {}
        for n in (100,) if self.quick else (100, 10000):
            for label, path in self.binaries.items():
                run = self.started(n, path, "-resync", "1")
                time.sleep(0.5)
                self.peer.ask("count")      # from now on
                before = run.cpu()
                time.sleep(seconds)
                got = self.peer.ask("count")
                got["cpu"] = (run.cpu() - before) * 1e3
                got["rss"] = run.memory()[0]
                run.end()
                for key in got:
                    rows.setdefault((n, key), {})[label] = (
                        got[key] if key == "rss" else
                        got[key] * 10 / seconds)
        for (n, key), values in rows.items():
            title, unit = {
                "requests": ("{:,} containers: requests", ""),
                "writes": ("... of them writes", ""),
                "in": ("... sent", "bytes"), "out": ("... read", "bytes"),
                "cpu": ("... processor time", "ms"),
                "rss": ("... resident memory", "KiB")}[key]
            self.table.add("rest", title.format(n), unit, values)

    def tls(self):
        rounds = 50 if self.quick else 300
        try:
            certificates(self.tools)
        except (OSError, subprocess.CalledProcessError) as e:
            print("# tls: no certificate: %s" % e, file=sys.stderr)
            return
        ways = ((False, False), (True, False), (True, True))    # tls, close
        got = {}        # (label, way): [(processor time, [handshake time])]
        for label, path in self.turns(3):
            for way in ways:
                run = self.behind_relay(path, rounds, *way)
                if run:
                    got.setdefault((label, way), []).append(run)
        values = {}
        for label in self.binaries:
            if not all((label, way) in got for way in ways):
                values[label] = ["not available"] * 3
                continue
            (plain, _), (kept, _), (anew, shakes) = (
                min(got[label, way]) for way in ways)
            values[label] = [(anew - kept) / len(shakes) * 1e3,
                             median(shakes) * 1e3,
                             (kept - plain) / (2 * rounds) * 1e3]
        for i, title in enumerate((
                "a connection: processor time",
                "a connection: handshake, as the server sees it",
                "a request on an open one: processor time above plain")):
            self.table.add("tls", title, "ms", {
                k: v[i] for k, v in values.items()})

    def behind_relay(self, path, rounds, tls, close):
        """(processor time of so many dies and starts, [handshake time]), or
        None: the binary does not do it."""
        relay = Relay(self.peer.port, self.tools if tls else None)
        run = self.started_quietly(path, relay)
        if run is None:
            relay.end()
            return None
        self.peer.ask("close", int(close))
        relay.handshakes.clear()
        before = run.cpu()
        lost = self.peer.ask("events", rounds, 500)["lost"]
        took = run.cpu() - before
        self.peer.ask("close", 0)
        run.end()
        relay.end()
        return None if lost or close > len(relay.handshakes) else (
            took, relay.handshakes)

    def started_quietly(self, path, relay):
        """A run that has registered 10 containers over TLS, or None."""
        self.peer.ask("boxes", 10)
        run = self.peer.run(path, uri=relay.uri, env={
            "CONSUL_CACERT": self.tools + "/ca.pem"})
        for _ in range(20):
            if self.peer.ask("wait", 250, 100)["right"]:
                return run
            if run.ended():
                break
        run.end()
        return None

    def real(self):
        if os.geteuid() != 0 or not all(map(shutil.which, REAL_TOOLS)):
            print("# real: needs root, and %s" % " ".join(REAL_TOOLS),
                  file=sys.stderr)
            return
        with tempfile.NamedTemporaryFile("r") as out:
            inner = subprocess.Popen(
                e2e.namespaces(
                    self.tools, *(["--quick"] if self.quick else []),
                    "--json", out.name,
                    *("%s=%s" % b for b in self.binaries.items())),
                stdin=subprocess.DEVNULL, start_new_session=True)
            try:
                inner.wait()
            finally:
                inner.kill()
                e2e.remove_cgroups(CGROUP)
            self.table.rows += json.loads(out.read() or "[]")


# ---- TLS, and a relay that looks on ----------------------------------------

def certificates(where):
    """An authority, and a certificate for localhost, of P-256 keys."""
    def make(name, *options):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
             "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-keyout",
             "%s/%s.key" % (where, name), "-out", "%s/%s.pem" % (where, name),
             "-subj", "/CN=" + name, *options], check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    make("ca")
    make("localhost", "-CA", where + "/ca.pem", "-CAkey", where + "/ca.key",
         "-addext", "basicConstraints=critical,CA:FALSE", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1")


class Relay:
    """Between a binary and a Consul, over TLS if certificates are given; notes
    each request and handshake.  One request of a connection at a time."""

    def __init__(self, port, certificates=None):
        self.port, self.certificates = port, certificates
        self.requests = []      # [method, path, body, came, answered]: ns
        self.handshakes = []    # seconds
        self.socks = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.uri = "%s:%d" % (
            "consul-tls://localhost" if certificates else "consul://127.0.0.1",
            self.listener.getsockname()[1])
        threading.Thread(target=self.accept, daemon=True).start()

    def context(self):
        """A new one each time, so that no session is resumed."""
        c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        c.maximum_version = ssl.TLSVersion.TLSv1_2
        c.load_cert_chain(self.certificates + "/localhost.pem",
                          self.certificates + "/localhost.key")
        return c

    def accept(self):
        context = self.context() if self.certificates else None
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            began = time.monotonic()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, daemon=True,
                             args=(client, context, began)).start()
            context = self.context() if self.certificates else None

    def serve(self, client, context, began):
        server = None
        try:
            if context:
                client = context.wrap_socket(client, server_side=True)
                self.handshakes.append(time.monotonic() - began)
            server = socket.create_connection(("127.0.0.1", self.port))
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socks += [client, server]
            asked, answers = client.makefile("rb"), server.makefile("rb")
            while True:
                head, body = read_message(asked)
                method, path = head.decode("latin-1").split(" ")[:2]
                note = [method, path, body, time.time_ns(), 0]
                self.requests.append(note)
                server.sendall(head + body)
                head, body = read_message(answers)
                note[4] = time.time_ns()
                client.sendall(head + body)
        except (OSError, ValueError):
            pass
        finally:
            client.close()
            if server:
                server.close()

    def end(self):
        for s in (self.listener, *self.socks):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()


def read_message(stream):
    """A request or an answer: (head, body), the body as it came."""
    head, length, chunked = b"", 0, False
    while (line := stream.readline()) not in (b"\r\n", b"\n"):
        if not line:
            raise ValueError("the end")
        head += line
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        chunked |= line.lower().startswith(b"transfer-encoding: chunked")
    body = stream.read(length)
    while chunked:
        size = stream.readline()
        body += size + stream.read(int(size, 16) + 2)
        chunked = int(size, 16) > 0
    return head + b"\r\n", body


# ---- the real ones, inside namespaces --------------------------------------

REAL_TOOLS = ("unshare", "dockerd", "docker", "consul", "busybox", "ip",
              "iptables")
CGROUP = "registrator-bench"


def inside(binaries, tools, quick, out):
    """Runs in the namespaces, and writes its rows to the file."""
    e2e.CGROUP = CGROUP
    floor = tools + "/benchfloor"
    copies = {k: open(v, "rb").read()
              for k, v in {**binaries, FLOOR: floor}.items()}
    first = next(iter(binaries.values()))
    with open(out, "w") as result:
        e2e.prepare(first)      # from here on /tmp and /run are others
        for i, (label, data) in enumerate(copies.items()):
            path = "%s/bench-%d" % (e2e.DIR, i)
            with open(path, "wb") as f:
                f.write(data)
            os.chmod(path, 0o755)
            copies[label] = path
        e2e.consul.start()
        e2e.engine.start()
        e2e.images()
        real = Real(e2e, copies, 2 if quick else 30)
        real.starts(1 if quick else 5)
        real.events(1 if quick else 3, 2 if quick else 15)
        json.dump(real.table.rows, result)
    e2e.engine.kill()
    e2e.consul.kill()           # what else runs in here, the kernel ends


class Real:
    def __init__(self, e2e, binaries, n):
        self.e2e, self.binaries, self.n = e2e, binaries, n
        self.table = Table([])
        self.relay = Relay(e2e.CONSUL[1])
        for i in range(n):
            e2e.run("-P", "--name", "real-%d" % i)

    def run(self, path):
        for service in self.e2e.ids():
            self.e2e.deregister(service)
        self.relay.requests.clear()
        return Run(path, self.relay.uri, self.e2e.SOCK)

    def registered(self):
        """The registrations that have been answered, as Relay notes them."""
        return [r for r in list(self.relay.requests)
                if r[1].startswith("/v1/agent/service/register") and r[4]]

    def starts(self, times):
        took = {}
        for _ in range(times):
            for label, path in self.binaries.items():
                if label == FLOOR:
                    continue
                began = time.time_ns()
                run = self.run(path)
                self.e2e.wait_for("%d services" % self.n, lambda:
                                  len(self.registered()) >= self.n)
                took.setdefault(label, []).append(
                    (self.registered()[-1][4] - began) / 1e6)
                run.end()
        self.table.best("real", "%d containers at start" % self.n, "ms", took)

    def events(self, times, rounds):
        write, done = {}, {}
        for _ in range(times):
            for label, path in self.binaries.items():
                run = self.run(path)
                time.sleep(0.5)
                for i in range(rounds):
                    came, answered = self.restart("real-%d" % (i % self.n))
                    write.setdefault(label, []).append(came / 1e6)
                    done.setdefault(label, []).append(answered / 1e6)
                run.end()
        for title, values in (("from a start event to the register, median",
                               write), ("... to Consul's answer, median",
                                        done)):
            self.table.add("real", title, "ms", {
                k: median(v) for k, v in values.items()})

    def restart(self, name):
        """ns from the start event to its write, and to the answer of that."""
        began = time.time()
        self.docker("POST", "/containers/%s/kill" % name)
        self.docker("POST", "/containers/%s/wait" % name)
        self.relay.requests.clear()
        self.docker("POST", "/containers/%s/start" % name)
        self.e2e.wait_for("a registration", self.registered)
        _, _, _, came, answered = self.registered()[0]
        events = self.docker("GET", "/events?since=%d&until=%d" % (
            began, time.time() + 1))
        start = [e for e in map(json.loads, events.splitlines())
                 if e.get("status") == "start" and
                 e["Actor"]["Attributes"]["name"] == name][-1]["timeNano"]
        return came - start, answered - start

    def docker(self, method, path):
        conn = http.client.HTTPConnection("docker", timeout=30)
        conn.sock = socket.socket(socket.AF_UNIX)
        conn.sock.connect(self.e2e.SOCK)
        conn.request(method, path)
        body = conn.getresponse().read()
        conn.close()
        return body


# ---- the picture -----------------------------------------------------------

class Picture:
    """Panels side by side, as SVG."""
    WIDE, HIGH, LEFT, TOP, GAP = 250, 190, 62, 44, 76
    COLOURS = ["#1f6feb", "#d1242f", "#8250df", "#bf8700"]
    GREY = "#8c959f"

    def __init__(self):
        self.parts, self.panels = [], 0

    def panel(self, title, xs, ys, xlabels, ylabels, xname, legend=(.04, .9)):
        """xs, ys: (from, to, is logarithmic); labels: [(value, text)];
        legend: where it begins, in parts of width and height."""
        x0 = self.LEFT + self.panels * (self.WIDE + self.GAP)
        y0 = self.TOP + self.HIGH
        self.panels += 1

        def scale(v, axis, size):
            low, high, log = axis
            if log:
                v, low, high = map(math.log10, (max(v, low), low, high))
            return (min(max(v, low), high) - low) / (high - low) * size
        self.legend = x0 + legend[0] * self.WIDE, y0 - legend[1] * self.HIGH
        self.at = lambda x, y: (x0 + scale(x, xs, self.WIDE),
                                y0 - scale(y, ys, self.HIGH))
        self.text(x0, self.TOP - 18, title, "start", "600 13px")
        for v, text in ylabels:
            y = self.at(xs[0], v)[1]
            self.line([(x0, y), (x0 + self.WIDE, y)], "#d8dee4", 1)
            self.text(x0 - 7, y + 4, text, "end")
        for v, text in xlabels:
            self.text(self.at(v, ys[0])[0], y0 + 17, text, "middle")
        self.line([(x0, y0), (x0 + self.WIDE, y0)], "#57606a", 1)
        self.text(x0 + self.WIDE / 2, y0 + 36, xname, "middle")

    def text(self, x, y, text, anchor, font="11px", colour="#24292f"):
        self.parts.append(
            '<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" style="font:'
            '%s system-ui,sans-serif">%s</text>' % (
                x, y, anchor, colour, font,
                text.replace("&", "&amp;").replace("<", "&lt;")))

    def line(self, points, colour, width=2, dash=""):
        self.parts.append(
            '<polyline points="%s" fill="none" stroke="%s" stroke-width="%g" '
            'stroke-linejoin="round"%s/>' % (
                " ".join("%.1f,%.1f" % p for p in points), colour, width,
                ' stroke-dasharray="%s"' % dash if dash else ""))

    def curve(self, points, colour, name, dash="", dots=True):
        """A line through the points, with its name in the legend."""
        places = [self.at(*p) for p in points]
        self.line(places, colour, 2, dash)
        for x, y in places if dots else ():
            self.parts.append('<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>' %
                              (x, y, colour))
        x, y = self.legend
        if name:
            self.line([(x, y - 4), (x + 22, y - 4)], colour, 2, dash)
            self.text(x + 28, y, name, "start", "11px", colour)
            self.legend = x, y + 16

    def svg(self):
        wide = self.LEFT + self.panels * (self.WIDE + self.GAP) - 46
        high = self.TOP + self.HIGH + 52
        return ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" '
                'width="%d" height="%d">\n<rect width="%d" height="%d" rx="8" '
                'fill="#ffffff"/>\n%s\n</svg>\n' % (
                    wide, high, wide, high, wide, high,
                    "\n".join(self.parts)))


def decades(values, low=None):
    low = math.floor(math.log10(low or min(values)))
    high = math.ceil(math.log10(max(values)))
    return (10 ** low, 10 ** max(high, low + 1), True)


def ticks(axis, name):
    low, high = (round(math.log10(v)) for v in axis[:2])
    return [(10 ** i, name(10 ** i)) for i in range(low, high + 1)]


def duration(ms):
    return "%g s" % (ms / 1e3) if ms >= 1000 else "%g ms" % ms


def mebibytes(v):
    return "%g MB" % v


def picture(table):
    """What was measured of starts and events; None without these."""
    starts = table.samples.get("start")
    events = table.samples.get("event", {}).get("start")
    if not starts or not events:
        return None
    p = Picture()
    series = {}         # (delay, label): [(n, ms, MB)]
    for key, values in starts.items():
        delay, n = map(int, key.split())
        for label, v in values.items():
            series.setdefault((delay, label), []).append(
                (n, min(x[0] for x in v), min(x[2] for x in v) / 1024))
    xs = decades([x[0] for s in series.values() for x in s])
    ys = decades([x[1] for s in series.values() for x in s])
    several = len(table.labels) > 1
    p.panel("From start to all registered", xs, ys,
            ticks(xs, "{:,}".format), ticks(ys, duration), "containers",
            (.46, .04 + .07 * len(series)))
    for (delay, label), s in sorted(series.items()):
        p.curve([(n, took) for n, took, _ in sorted(s)],
                p.COLOURS[table.labels.index(label) % 4],
                (label + ", " if several else "") + (
                    "2 ms a request" if delay else "immediate answers"),
                "4 3" if delay else "")
    ys = decades([x[2] for s in series.values() for x in s])
    p.panel("Resident memory", xs, ys, ticks(xs, "{:,}".format),
            ticks(ys, mebibytes), "containers")
    for (delay, label), s in sorted(series.items()):
        if not delay:
            p.curve([(n, mb) for n, _, mb in sorted(s)],
                    p.COLOURS[table.labels.index(label) % 4],
                    label if several else "")
    top = 50 * math.ceil(max(min(percentile(v, .98), 4 * median(v))
                             for v in events.values()) / 50)
    p.panel("From start event to registration", (0, top, False), (0, 1, False),
            [(top * i // 5, "%d" % (top * i // 5)) for i in range(6)],
            [(i / 4, "%d %%" % (25 * i)) for i in range(5)],
            "microseconds, for so many of all events", (.36, .4))
    for label in (*table.labels, FLOOR):
        v = sorted(events[label])
        points = [(x, i / len(v)) for i, x in enumerate(v) if x <= top]
        p.curve(points[::max(1, len(points) // 200)],
                p.GREY if label == FLOOR
                else p.COLOURS[table.labels.index(label) % 4],
                "%s: median %.0f" % ("by hand" if label == FLOOR else label,
                                     median(v)), dots=False)
    return p.svg()


# ---- main ------------------------------------------------------------------

def arguments():
    p = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true")
    p.add_argument("--only", action="append", metavar="GROUP", choices=GROUPS,
                   help=" ".join(GROUPS))
    p.add_argument("--json", metavar="FILE")
    p.add_argument("--picture", metavar="FILE")
    p.add_argument("--inside", help=argparse.SUPPRESS)
    p.add_argument("binaries", nargs="*", default=["./registrator"])
    return p.parse_args()


def labels(paths):
    """{label: path}: the shortest ends of the paths that tell them apart."""
    paths = [os.path.abspath(p) for p in paths]
    for n in range(1, 20):
        short = ["/".join(p.split("/")[-n:]) for p in paths]
        if len(set(short)) == len(paths):
            break
    return dict(zip(short, paths))


def main():
    args = arguments()
    if args.inside:
        binaries = dict(b.split("=", 1) for b in args.binaries)
        return inside(binaries, args.inside, args.quick, args.json)
    os.environ["PATH"] += ":/var/cache/registrator-test"    # of test.sh
    for s in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as tools:
        compile_tools(tools)
        bench = Bench(labels(args.binaries), tools, args.quick)
        if args.picture is None and not args.quick:
            args.picture = HERE + "/bench.svg"
        try:
            for group in GROUPS:
                if not args.only or group in args.only:
                    print("# %s" % group, file=sys.stderr)
                    getattr(bench, group)()
        finally:
            for run in list(Run.all):
                run.end()
            bench.peer.end()
    print(bench.table.text())
    if args.json:
        with open(args.json, "w") as f:
            json.dump(bench.table.json(bench.binaries), f, indent=1)
    svg = args.picture and picture(bench.table)
    if svg:
        with open(args.picture, "w") as f:
            f.write(svg)


if __name__ == "__main__":
    main()
