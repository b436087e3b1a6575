#!/usr/bin/env python3
"""Faults: what is killed, stopped, frozen, full or slow, and comes back.

    python3 tests/faults.py ./registrator [WORD...]     cases that have a WORD
    python3 tests/faults.py --soak SECONDS ./registrator

The little world of e2e.py: a real engine and a real Consul in namespaces.
A case breaks something while containers come and go.  It ends when nothing is
broken any more, and then Consul must have exactly what the engine runs: both
are asked, and compare() knows the rules by itself.  Registrator runs with
-resync 0, so what is wrong stays wrong.  Whatever is drawn by lot has a seed.

The soak starts and stops containers for so long, looks at registrator's memory
and descriptors meanwhile, and fails if they grow or if the end is wrong.
"""
import contextlib
import http.client
import os
import random
import re
import shutil
import signal
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("E2E_LIMIT", "120")   # seconds; this machine is busy
import e2e                                              # noqa: E402
from e2e import DIR, HOST, Failure, ask, holds, wait_for  # noqa: E402

REGISTER = "/v1/agent/service/register"
SEED = os.environ.get("FAULTS_SEED", "1")


def lots(what):
    """What is drawn by lot is drawn the same way the next time."""
    return random.Random(SEED + " " + what)


# What a call to an engine or agent that is going away may end with.
GONE = (OSError, http.client.HTTPException, Failure, ValueError)
cases = []


def case(name):
    """Whatever becomes of it, the next one finds an engine and an agent."""
    def add(function):
        def run():
            try:
                function()
            finally:
                for daemon in (e2e.engine, e2e.consul):
                    if daemon.proc.poll() is not None:
                        daemon.start()
        cases.append((name, run))
    return add


# ---- what must be, and what is ---------------------------------------------

def wanted():
    """The services of all containers, by what the engine says of them."""
    found = {}
    for row in ask("GET", "/containers/json?all=1"):
        try:
            found.update(services_of(
                ask("GET", "/containers/%s/json" % row["Id"])))
        except Failure as e:
            if "No such container" not in str(e):   # removed meanwhile
                raise
    return found


def services_of(c):
    """Those of one container, as `docker inspect` shows it."""
    if not c["State"]["Running"] or c["State"]["Restarting"]:
        return {}
    name = c["Name"].lstrip("/")
    env = dict(e.split("=", 1) for e in c["Config"]["Env"] if "=" in e)
    own = {k[8:].lower(): v for k, v in env.items()
           if k.startswith("SERVICE_")}
    base = own.pop("name", c["Config"]["Image"].split("/")[-1].split(":")[0])
    tags = [t for t in own.pop("tags", "").split(",") if t]
    bound = {p: b for p, b in c["NetworkSettings"]["Ports"].items() if b}
    found = {}
    for port, bindings in bound.items():
        number, proto = port.split("/")
        ip4 = [b for b in bindings if ":" not in b["HostIp"]] or bindings
        ip = ip4[0]["HostIp"]
        udp = proto == "udp"
        found["%s:%s:%s%s" % (HOST, name, number, ":udp" * udp)] = e2e.svc(
            base + ("-" + number) * (len(bound) > 1), int(ip4[0]["HostPort"]),
            e2e.ADV if ip in ("", "0.0.0.0", "::") else ip,
            tags + ["udp"] * udp, own)
    return found


def present():
    """All that Consul has; an entry without our mark is none of ours."""
    found = {}
    for i, entry in e2e.get("/v1/agent/services").items():
        mark = (entry["Meta"] or {}).get("registrator", "")
        found[i] = e2e.view(entry)
        if entry["ID"] != i or not re.fullmatch(e2e.MARK, mark):
            found[i] = entry
    return found


def compare(*but):
    """Every difference between engine and Consul, a line each; none: equal.
    The containers of the names `but` are left out."""
    want, got = wanted(), present()
    lines = []
    for i in sorted({**want, **got}):
        if i.split(":")[1] in but:
            continue
        if i not in got:
            lines.append("missing: %s %s" % (i, want[i]))
        elif i not in want:
            lines.append("extra:   %s %s" % (i, got[i]))
        elif want[i] != got[i]:
            lines += ["differs: %s %s" % (i, want[i]),
                      "     is: %s %s" % (i, got[i])]
    return lines


def waiting(r):
    """What registrator says it has not done yet: all lines between one
    summary and the next."""
    for _ in range(2):
        before = r.log().count("summary: ")
        r.proc.send_signal(signal.SIGUSR1)
        wait_for("the summary",
                 lambda: r.log().count("summary: ") > before)
    return re.findall(" (waiting: .*)", r.log().split("summary: ")[-2])


def equal(r, limit=e2e.LIMIT):
    """Waits until Consul has what the engine runs, and nothing is left to be
    done.  Three looks: a late event may still undo what is right."""
    end = time.monotonic() + limit
    right = 0
    while right < 3:
        e2e.same("end of registrator", None, r.proc.poll())
        lines = compare() or waiting(r)
        right = right + 1 if not lines else 0
        if lines and time.monotonic() > end:
            raise Failure("\n".join(["not equal:", *lines]))
        time.sleep(0.1)


# ---- containers ------------------------------------------------------------

PORTS = (["80/tcp"], ["80/tcp"], ["80/tcp", "81/tcp"], ["53/udp"], [])
WEB = ["80/tcp"]
LOTS = lots("containers")


def config(rng, restart="no", cmd=("sleep", "9999"), ports=None):
    """A container that dies at once when it is told to; its tag changes with
    each that has its name, so what is left of another shows."""
    ports = rng.choice(PORTS) if ports is None else ports
    policy, _, times = restart.partition(":")
    env = ["SERVICE_TAGS=t%d,x" % rng.randrange(10 ** 6)]
    if rng.random() < 0.5:
        env += ["SERVICE_NAME=n%d" % rng.randrange(9), "SERVICE_COLOUR=red"]
    return {"Image": "plain", "Cmd": list(cmd), "StopSignal": "SIGKILL",
            "Env": env, "ExposedPorts": {p: {} for p in ports},
            "HostConfig": {"PublishAllPorts": True, "RestartPolicy": {
                "Name": policy, "MaximumRetryCount": int(times or 0)}}}


def create(name, rng, **kw):
    ask("POST", "/containers/create?name=" + name, config(rng, **kw))


def do(verb, name):
    ask("POST", "/containers/%s/%s" % (name, verb))


def launch(name, rng=LOTS, **kw):
    create(name, rng, **kw)
    do("start", name)


def rename(old, new):
    do("rename?name=" + new, old)


def remove(name):
    ask("DELETE", "/containers/%s?force=1" % name)


def at_once(function, names, threads=16):
    """For each name, as many as possible at the same time."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, names))


def populate():
    """Containers for change()."""
    at_once(lambda n: launch(n, ports=WEB), ["stays", "goes", "moves", "dies"])
    launch("old", ports=["80/tcp", "81/tcp"])
    create("sleeps", LOTS, ports=WEB)


def change():
    """One of each that can happen, all at once: a new one, one that goes, one
    that gets other ports, one that dies, another name, an old one again."""
    at_once(lambda f: f(), [
        lambda: launch("comes", ports=WEB), lambda: remove("goes"),
        lambda: do("restart", "moves"), lambda: do("kill", "dies"),
        lambda: rename("old", "new"), lambda: do("start", "sleeps")])


# What may happen to a container of a Churn.
MOVES = {"none": ["start"], "down": ["start", "start", "remove"],
         "up": ["stop", "kill", "restart", "remove"]}


class Churn:
    """Threads with a few containers each, to which something happens all the
    time, whatever the engine answers."""

    def __init__(self, what, threads=4, each=3):
        self.starts = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(
            lots("%s %d" % (what, t)),
            ["k%d-%d" % (t, i) for i in range(each)]), daemon=True)
            for t in range(threads)]

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for t in self.threads:
            t.join()

    def work(self, rng, names):
        state = dict.fromkeys(names, "none")
        while not self.stopping.is_set():
            name = rng.choice(names)
            try:
                state[name] = self.step(rng, name, state[name])
            except GONE:
                state[name] = "lost"
                self.stopping.wait(0.05)

    def step(self, rng, name, state):
        """The next thing that happens to the container: its new state."""
        if state == "lost":
            if name in ask_names():
                remove(name)
            return "none"
        if state == "none":
            restart = rng.choice(("no", "no", "always", "on-failure:3"))
            create(name, rng, restart=restart)
        move = rng.choice(MOVES[state])
        if move == "remove":
            remove(name)
            return "none"
        do(move, name)
        if move in ("stop", "kill"):
            return "down"
        with self.lock:
            self.starts += 1
        return "up"


def ask_names():
    """Of all containers."""
    return [n.lstrip("/") for row in ask("GET", "/containers/json?all=1")
            for n in row["Names"]]


def more(churn, starts):
    """Waits until it has started so many more."""
    least = churn.starts + starts
    wait_for("containers that start", lambda: churn.starts >= least)


# ---- registrator, the engine, the agent ------------------------------------

# Rules of iptables cost much of the time of a start, and tell nothing here.
RULELESS = ("--iptables=false",)
DATA = DIR + "/agent"


def watch(**kw):
    return e2e.Registrator("-resync", "0", **kw)


def gone(r, who):
    """Waits until registrator says that it cannot reach one of the two."""
    r.wait_log(who + ": .*: trying again")


def engine_with(live):
    """The engine with --live-restore or without; started anew if need be."""
    options = RULELESS + ("--live-restore",) * live
    if e2e.engine.always != options:
        e2e.engine.always = options
        e2e.engine.stop()
        e2e.engine.start()


@contextlib.contextmanager
def agent_with_data():
    """Instead of the usual agent, which is empty whenever it starts, one that
    keeps what it knows in DATA."""
    agent = e2e.Agent(
        "server", data_dir=DATA, client_addr="127.0.0.1", bootstrap=True,
        performance={"raft_multiplier": 1}, ports={"dns": 8600, "grpc": -1})
    e2e.consul.kill()
    try:
        agent.start()
        yield agent
    finally:
        agent.kill()
        shutil.rmtree(DATA, ignore_errors=True)
        e2e.consul.start()


@contextlib.contextmanager
def frozen(agent):
    """It neither answers nor goes away."""
    agent.proc.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        agent.proc.send_signal(signal.SIGCONT)


# ---- the test itself -------------------------------------------------------

@case("what is missing, extra or different is seen")
def _():
    r = watch()
    populate()
    equal(r)
    e2e.deregister(HOST + ":stays:80")
    for name in ("goes", "more"):
        e2e.put(REGISTER, {"ID": HOST + ":%s:80" % name, "Name": "plain"})
    e2e.same("differences", ["differs", "is", "extra", "missing"],
             [line.split(":")[0].strip() for line in compare()])
    e2e.deregister(HOST + ":more:80")           # not of registrator's
    r.resync()
    equal(r)


# ---- 1. registrator --------------------------------------------------------

@case("registrator is killed 30 times in a churn")
def _():
    rng = lots("kills")
    writes = 0
    with Churn("kills") as churn:
        for _ in range(30):
            r = watch()
            time.sleep(rng.random() * 0.6)
            r.kill()
            writes += r.log().count("added: ") + r.log().count("removed: ")
            e2e.registrators.remove(r)
    if churn.starts < 10 or writes < 10:
        raise Failure("hardly anything happened: %d starts, %d writes" %
                      (churn.starts, writes))
    equal(watch())


# ---- 2. the engine ---------------------------------------------------------

POLICIES = ("no", "always", "unless-stopped", "on-failure:5")


def engine_away(how, live):
    """It goes away, containers die meanwhile, it comes back.  What Consul has
    stays as it is in between."""
    engine_with(live)
    rng = lots("away")
    r = watch()
    kept = ["kept%d" % i for i in range(4)]
    doomed = ["doomed%d" % i for i in range(4)]
    at_once(lambda n: launch(n, rng, restart=POLICIES[int(n[-1])],
                             ports=WEB), kept + doomed)
    equal(r)
    before = present()
    pids = [e2e.inspect(n)["State"]["Pid"] for n in doomed]
    getattr(e2e.engine, how)()
    gone(r, "docker")
    wait_for("the last writes",
             lambda: not any("registered" in w for w in waiting(r)))
    # Stopped in good order, it has ended all its containers before.
    survive = live or how == "kill"
    e2e.same("services", before if survive else {}, present())
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    holds("services changed while the engine was away", lambda: present() ==
          (before if survive else {}), 1)
    e2e.engine.start()
    equal(r)
    launch("after", ports=WEB)
    equal(r)
    if not any(i.startswith(HOST + ":kept1:") for i in present()):
        raise Failure("restart=always did not bring it back")


def engine_restarts(live):
    """While all that can happen to containers happens."""
    engine_with(live)
    r = watch()
    with Churn("engine") as churn:
        for how in ("stop", "kill"):
            more(churn, 8)
            getattr(e2e.engine, how)()
            e2e.engine.start()
        more(churn, 8)
    equal(r)


for _live in (False, True):
    _with = "with live-restore" if _live else "without live-restore"
    case("engine stopped and started, " + _with)(
        lambda live=_live: engine_away("stop", live))
    case("engine killed and started, " + _with)(
        lambda live=_live: engine_away("kill", live))
    case("engine restarted in a churn, " + _with)(
        lambda live=_live: engine_restarts(live))


# ---- 3. Consul -------------------------------------------------------------

def agent_away(agent, how):
    """It goes away, containers change, it comes back."""
    r = watch()
    populate()
    equal(r)
    getattr(agent, how)()
    change()
    gone(r, "consul")
    agent.start()
    equal(r)


@case("agent stopped, containers change, started empty")
def _():
    agent_away(e2e.consul, "stop")


@case("agent killed, containers change, started empty")
def _():
    agent_away(e2e.consul, "kill")


@case("agent stopped, containers change, started with its data")
def _():
    with agent_with_data() as agent:
        agent_away(agent, "stop")


@case("agent killed, containers change, started with its data")
def _():
    with agent_with_data() as agent:
        agent_away(agent, "kill")


@case("agent killed 3 times in a churn, empty each time")
def _():
    r = watch()
    with Churn("empty") as churn:
        for _ in range(3):
            more(churn, 5)
            e2e.consul.kill()
            e2e.consul.start()
    equal(r)


@case("agent killed in a churn, started with its data, then without")
def _():
    with agent_with_data() as agent:
        r = watch()
        with Churn("data") as churn:
            for fresh in (False, True):
                more(churn, 5)
                agent.kill()
                if fresh:
                    shutil.rmtree(DATA)
                agent.start()
        equal(r)


@case("agent frozen for 15 s in a churn")
def _():
    r = watch()
    with Churn("frozen") as churn:
        more(churn, 10)
        with frozen(e2e.consul):
            time.sleep(15)
    equal(r)


class Withholding(e2e.Proxy):
    """Between registrator and Consul: the first registration is not passed on
    until the first list after it has been answered."""

    def __init__(self):
        self.body = self.listed = None
        self.never, self.done = threading.Event(), threading.Event()
        super().__init__()

    def passing(self, method, path):
        if self.body is None and path.startswith(REGISTER):
            self.body = self.requests[-1][2]
            self.never.wait()
        elif self.body and path.startswith("/v1/agent/services"):
            self.listed = True

    def returning(self, data):
        if self.listed and b"HTTP/1.1 200" in data:
            self.listed = False
            threading.Timer(0.5, self.register).start()

    def register(self):
        e2e.put(REGISTER, self.body)
        self.done.set()


@case("a registration that was given up is done after a list did not show it")
def _():
    # What an agent that was frozen may do: it has no order of connections.
    proxy = Withholding()
    r = watch(uri=proxy.uri)
    launch("late", ports=WEB)
    wait_for("the registration", lambda: proxy.body)
    do("kill", "late")
    wait_for("a list, and then the registration", proxy.done.is_set)
    equal(r)


# ---- 4. both ---------------------------------------------------------------

@case("engine and agent killed at once, twice, in a churn")
def _():
    engine_with(live=False)
    r = watch()
    with Churn("both") as churn:
        for order in ((e2e.engine, e2e.consul), (e2e.consul, e2e.engine)):
            more(churn, 8)
            for daemon in order:
                daemon.kill()
            for daemon in order:
                daemon.start()
        more(churn, 8)
    equal(r)


@case("engine, agent and registrator killed; nothing goes while the engine "
      "is away")
def _():
    engine_with(live=False)
    with agent_with_data() as agent:
        r = watch()
        populate()
        equal(r)
        before = present()
        change()
        equal(r)
        between = present()
        e2e.engine.kill()
        agent.kill()
        r.kill()
        agent.start()
        e2e.same("services that the agent kept", between, present())
        r = watch()
        gone(r, "docker")
        holds("services changed while the engine was away",
              lambda: present() == between, 1)
        e2e.engine.start()
        equal(r)
        if before == between:
            raise Failure("nothing had changed")


# ---- 5. to 7. containers ---------------------------------------------------

@case("60 containers started and stopped at once, in waves")
def _():
    rng = lots("waves")
    r = watch()
    names = ["w%d" % i for i in range(60)]
    at_once(lambda n: launch(n, rng, ports=WEB), names)
    equal(r)
    moves = (lambda n: do("kill", n), lambda n: do("restart", n), remove)
    at_once(lambda n: moves[int(n[1:]) % 3](n), names)
    equal(r)
    at_once(remove, ask_names())
    equal(r)
    e2e.same("services", {}, present())


@case("containers that die within milliseconds")
def _():
    r = watch()
    rng = lots("moments")
    names = ["m%d" % i for i in range(30)]
    kinds = ([("no", "true")] * 5 + [("on-failure:2", "false")] * 3 +
             [("always", "true")])
    for n in names:
        restart, cmd = rng.choice(kinds)
        create(n, rng, restart=restart, cmd=["busybox", cmd],
               ports=["80/tcp", "81/tcp"])
    at_once(lambda n: do("start", n), names)
    at_once(launch, ["lives0", "lives1"])
    at_once(lambda n: do("stop", n), names)     # ends the flapping ones
    equal(r)
    if "added: " not in r.log():
        raise Failure("nothing was ever registered")


@case("renames in a churn, and two that swap their names")
def _():
    rng = lots("renames")
    r = watch()
    with Churn("renames", threads=2) as churn:
        at_once(lambda n: launch(n, rng, ports=WEB), ["r0", "r1", "r2"])
        for _ in range(200):
            # To a name that is taken: refused.
            with contextlib.suppress(*GONE):
                rename("r%d" % rng.randrange(5), "r%d" % rng.randrange(5))
            if rng.random() < 0.1:
                with contextlib.suppress(*GONE):
                    do(rng.choice(("restart", "kill", "start")),
                       "r%d" % rng.randrange(5))
    at_once(lambda n: launch(n, rng, ports=WEB), ["one", "two"])
    equal(r)
    for _ in range(9):
        rename("one", "spare")
        rename("two", "one")
        rename("spare", "two")
    equal(r)


# ---- 8. answers that do not come, or late ----------------------------------

class EngineProxy(e2e.Proxy):
    """Between registrator and the engine."""

    def __init__(self, path):
        super().__init__(path, e2e.SOCK)
        self.env = {"DOCKER_HOST": "unix://" + path}

    @staticmethod
    def listen(path):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
        return listener

    def connect(self):
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.target)
        return server


class Hanging(EngineProxy):
    """An inspect of the container with the ID `held` is not passed on while
    there is one."""

    def __init__(self, path):
        self.held, self.hangs = None, 0
        self.ended = threading.Event()
        super().__init__(path)

    def passing(self, method, path):
        if self.held and self.held in path:
            self.hangs += 1
            self.ended.wait()

    def release(self):
        self.held = None
        self.ended.set()


@case("a container whose inspect hangs holds up no other")
def _():
    proxy = Hanging(DIR + "/hanging.sock")
    r = watch(env=proxy.env)
    launch("hangs", ports=WEB)
    populate()
    equal(r)
    proxy.held = e2e.inspect("hangs")["Id"]
    do("restart", "hangs")
    wait_for("the inspect", lambda: proxy.hangs)
    change()
    at_once(launch, ["x%d" % i for i in range(5)])
    wait_for("the others", lambda: not compare("hangs"))
    wait_for("the end of one that has died, whatever it is now",
             lambda: "%s:hangs:80" % HOST not in present())
    # Another registrator: what it finds there is wrong, and it hangs again.
    # What no container explains stays until all have been inspected.
    r.kill()
    remove("x0")
    do("restart", "x1")
    r = watch(env=proxy.env)
    wait_for("the others", lambda: not compare("hangs", "x0"))
    proxy.release()
    equal(r)


class Late:
    """Each piece of an answer may be late: what it says is no longer so, and
    the events that tell so have come before."""

    def returning(self, data):
        if b'"Actor":' not in data:
            time.sleep(LOTS.random() ** 2 * 0.5)


class LateEngine(Late, EngineProxy):
    pass


class LateConsul(Late, e2e.Proxy):
    pass


@case("all answers of engine and agent are late, in a churn")
def _():
    r = watch(uri=LateConsul().uri, env=LateEngine(DIR + "/late.sock").env)
    launch("again", ports=WEB)
    for _ in range(3):
        with Churn("late") as churn:
            more(churn, 6)
            for _ in range(4):
                do("kill", "again")
                do("start", "again")
        equal(r)


# ---- 9. a full disk --------------------------------------------------------

def fill(path):
    with contextlib.suppress(OSError), open(path, "wb", 0) as f:
        while True:
            f.write(b"x" * 4096)


@case("the agent's disk is full: it answers 500 until there is room")
def _():
    os.makedirs(DATA)
    e2e.sh("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", DATA)
    try:
        with agent_with_data():
            r = watch()
            populate()
            equal(r)
            fill(DATA + "/filler")
            launch("refused", ports=WEB)
            r.wait_log("register failed: .*:refused:80 HTTP 500: .*no space")
            change()                    # what is removed makes a little room
            wait_for("what can be removed", lambda:     # a rename: the new first
                     not [x for x in compare("old") if x.startswith("extra")])
            os.unlink(DATA + "/filler")
            equal(r)
    finally:
        e2e.sh("umount", "-l", DATA)


# ---- 10. where the original ends wrong -------------------------------------

@case("ten die and five of them start again, in one burst")
def _():
    rng = lots("burst")
    r = watch()
    names = ["b%d" % i for i in range(10)]
    at_once(lambda n: launch(n, rng, ports=WEB), names)
    equal(r)

    def burst(name):
        do("kill", name)
        if int(name[1:]) % 2:
            do("start", name)
    for _ in range(2):
        at_once(burst, names)
        equal(r)
        e2e.same("services", 5, len(present()))
        at_once(lambda n: do("start", n), names)
        equal(r)


# ---- the soak --------------------------------------------------------------

def usage(pid):
    """Resident kB, descriptors, and seconds of processor time."""
    with open("/proc/%d/status" % pid) as f:
        rss = int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1))
    with open("/proc/%d/stat" % pid) as f:
        ticks = sum(map(int, f.read().rsplit(")")[-1].split()[11:13]))
    return (rss, len(os.listdir("/proc/%d/fd" % pid)),
            ticks / os.sysconf("SC_CLK_TCK"))


def sample(pid, ended, samples):
    while not ended.wait(0.5):
        samples.append(usage(pid))


def soak(seconds):
    """Churn for so long; now and then it pauses, and all must be equal."""
    r = watch()
    samples, starts, rounds = [], 0, 0
    ended = threading.Event()
    sampler = threading.Thread(target=sample, daemon=True,
                               args=(r.proc.pid, ended, samples))
    sampler.start()
    end = time.monotonic() + seconds
    try:
        while (left := end - time.monotonic()) > 0:
            rounds += 1
            with Churn("soak %d" % rounds) as churn:
                for _ in range(3):
                    time.sleep(max(0, min(left, 24)) / 3)
                    r.resync()
            starts += churn.starts
            equal(r)
            at_once(remove, ask_names())    # all are new in the next round
    finally:
        ended.set()
        sampler.join()
    r.stop()                            # a sanitizer speaks at the end
    report(starts, rounds, samples, r)


def report(starts, rounds, samples, r):
    """Prints the summary; fails if something has grown."""
    half = len(samples) // 2
    rss, fds = ([[s[k] for s in part] for part in
                 (samples[:half], samples[half:])] for k in (0, 1))
    print("# %d starts in %d rounds, each ended equal; %d added, %d removed"
          % (starts, rounds, r.log().count("added: "),
             r.log().count("removed: ")))
    print("# samples: %d, halves compared; processor: %.2f s"
          % (len(samples), samples[-1][2]))
    for what, (a, b) in (("RSS, kB", rss), ("descriptors", fds)):
        print("# %s: %d to %d, median %d; then %d to %d, median %d"
              % (what, min(a), max(a), statistics.median(a),
                 min(b), max(b), statistics.median(b)))
    # Connections come and go, and a burst may be larger than any before.
    if max(rss[1]) > max(rss[0]) * 1.1 + 64:
        raise Failure("its memory grows")
    if max(fds[1]) > max(fds[0]) + 2:
        raise Failure("its descriptors grow")


def inside(*args):
    todo = cases
    if args[:1] == ("--soak",):
        seconds = float(args[1]) if len(args) > 2 else 300
        todo = [("soak", lambda: soak(seconds))]
        args = args[-1:]
    binary, *words = args
    e2e.engine.always = RULELESS
    return e2e.world(binary, lambda: e2e.play(words, cases=todo))


if __name__ == "__main__":
    e2e.enter("faults", inside)
