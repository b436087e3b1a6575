"""Random lives for model.py: what containers do, and what goes wrong, written down before it begins.

A script has the options of registrator, or of two of them, and operations with their milliseconds:

    create NUMBER SPEC, start, die, destroy, rename, attach, pause, noise     of a container
    order                     of the events of a death
    fault WHO SIDE WHAT KIND TIMES SECONDS NUMBER      the next answers of a peer to such requests are wrong
    fates WHO [...]           the next events come twice, or late, so that they overtake each other
    stream WHO HOW            the event stream ends, breaks, or has garbage in it
    away SIDE FORGETS MS      a peer is gone for a while; crash: the engine, and all containers with it
    cut WHO SIDE              all connections break
    forget, alter, others, ghost      what Consul has is changed behind registrator's back
    begin, kill, freeze, signal       registrator

They are do_NAME of class Model.  None depends on those before it: what cannot be done is left out.
"""
import itertools
import random
from collections import namedtuple

from oracle import Options

OTHERS_MARK = "0123456789abcdef-" + "5" * 24    # of another engine's registrator
OTHERS_PORT = 4000      # and more: of foreign entries

Script = namedtuple(
    "Script", "seed modes registrators resync hup lossy form agent_is_calm ops siege besieged")
# registrators: [(Options, more arguments)]
# hup: the end needs a SIGHUP, for no resync comes, and the registry was changed behind registrator's back
# lossy: events are lost at random; form: theirs, as fakes.Engine has it; agent_is_calm: it has no faults
# ops: [(milliseconds, name, arguments...)]
# siege: a fault that stays, when all is right, while these (`besieged`) are done: it comes right all the same

NAMES = ["a", "bb", "web", "db", "app.1", "x-y"]
IDS = ["shared", "x1", "vault"]
OTHERS = ["vault", "consul", "h:bb:80", "h:gone:80", "far:web:80", "h:web:81:udp"]
KINDS = ["late", "hang", "done", "after", "cut", "close", "reset", "twice", "status", "busy", "proxy",
         "garbage", "rows", "swallow"]      # of faults: class Front of model.py has what they are


class Draft:
    """A script that is being written.  What it knows of the engine is rough: an operation may be left out."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.ops, self.now = [], 0
        self.boxes = {}         # number: [name, whether it runs]
        self.sharers = set()    # those in another's network
        self.numbers = itertools.count(1)
        self.ids, self.names = list(IDS), list(NAMES)
        self.kinds = self.rng.sample(KINDS, self.pick(1, 2, 4, len(KINDS)))     # of faults
        self.mild = self.chance(0.5)        # nothing happens that only a resync mends

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
            ports[key] = pick("any", "any", 8000 + len(self.boxes) * 10 + len(ports), None,
                              "127.0.0.1:9%03d" % (len(self.ops) % 1000))
        env, labels = [], {}
        for key, values, likely in [
                ("NAME", ["one", "two", "Web site"], 0.3), ("TAGS", ["t", "a,b\\,c", "x,,y"], 0.3),
                ("COLOUR", ["red", "grün", ""], 0.3), ("80_NAME", ["eighty"], 0.15),
                ("81_IGNORE", ["1"], 0.1), ("443_TAGS", ["tls"], 0.1), ("80_WEIGHT", ["7"], 0.1),
                ("53_NAME", ["dns"], 0.1)]:
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
        return {"name": name, "image": pick("app", "team/app:1.2", "registry:5000/db"), "env": env,
                "labels": labels, "mode": mode, "ports": ports, "policy": chance(0.5)}

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
        self.add("noise", self.some(),
                 self.pick("update", "exec_create: sh", "attach", "health_status: healthy"))

    # -- faults

    def engine_fault(self):
        what = self.pick("list", "inspect", "inspect", "inspect", "networks", "events", "info", "version",
                         "any")
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
        if what in ("inspect", "networks"):
            for _ in range(self.pick(0, 0, 1, 3)):
                self.add("noise", self.some(True), "update")
            if self.chance(0.4):
                self.meanwhile(self.some(True))
        if what in ("put", "write") and self.chance(0.3):
            self.rename()

    def meanwhile(self, number):
        """It changes while an inspect of it is on its way."""
        self.add("noise", number, "update")
        self.wait(1, 10)
        deed = self.pick("die", "rename", "attach", "restart")
        if deed == "rename":
            self.boxes[number][0] = self.fresh("m")
            self.add("rename", number, self.boxes[number][0])
        elif deed == "attach":
            self.add("attach", number, self.pick("n1", "aa"), self.chance(0.6))
        else:
            self.die(number, 0, True)
            if deed == "restart":
                self.start(number)

    def who(self):
        return self.rng.randrange(2)        # of one registrator, that one

    def events(self):
        self.add("fates", self.who(), [self.pick("twice", 0.005, 0.03, 0.15)
                                       for _ in range(self.pick(1, 2, 5))])

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
        self.add("forget", self.pick("all", "ours", "one", "one", "one"), self.rng.randrange(100),
                 self.chance(0.5))

    def alter(self):
        self.add("alter", self.rng.randrange(100),
                 self.pick("tags", "port", "address", "name", "mark", "usurp"))

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

    def live(self, moves):
        """So goes it for a while; each script dwells on some of the moves."""
        moves = {move: weight * self.pick(0.2, 1, 1, 3) for move, weight in moves.items()}
        for _ in range(self.pick(30, 80, 160)):
            if len(self.boxes) > 12:
                self.destroy()
            self.rng.choices(list(moves), moves.values())[0](self)
            self.wait(0, 0, 1, 3, 10, 30, 60)

    def besieged(self):
        """What is done while a fault stays: nothing that it could stand in the way of."""
        ops, self.ops, self.now = self.ops, [], 100
        self.now += self.pick(0, 0, 1500)       # a call that hangs is given up
        for _ in range(3):
            number = self.new(self.fresh("late"), start=False)
            spec = self.ops[-1][3]
            spec.update(mode=self.pick("bridge", "default", "n1"), env=[], labels={})
            self.start(number)
            self.wait(0, 50)
            self.rename() if self.chance(0.3) else self.stop()
            self.wait(0, 50)
        found, self.ops = self.ops, ops
        return found


SIEGES = ["list hangs", "list fails", "engine rows", "agent rows", "no marks", "networks fail",
          "an inspect hangs"]

# How often what happens.
LIFE = {Draft.new: 8, Draft.begin: 6, Draft.stop: 6, Draft.crash: 5, Draft.restart: 5, Draft.rename: 4,
        Draft.swap: 2, Draft.recreate: 4, Draft.replace: 4, Draft.destroy: 3, Draft.hand_over: 3,
        Draft.network: 4, Draft.pause: 1, Draft.noise: 2}
ENGINE = {Draft.engine_fault: 12, Draft.events: 5, Draft.stream: 4, Draft.engine_away: 2}
AGENT = {Draft.agent_fault: 12, Draft.agent_away: 3}
BEHIND = {Draft.forget: 3, Draft.alter: 5, Draft.foreign: 4, Draft.ghost: 2}
SIGNALS = {Draft.kill: 4, Draft.freeze: 1, Draft.hang_up: 2, Draft.cut: 2}


def write_options(chance, pick, two, resync):
    """The rows of Script.registrators."""
    options = Options(internal=not two and chance(0.25), explicit=chance(0.1),
                      ip=pick("", "", "", "192.0.2.77"), tags=pick("", "", "", "all,of it"),
                      label=pick("", "", "addr"), on_success=chance(0.35), cleanup=not two and chance(0.2))
    rows = [options]
    if two:             # side by side, and what differs between them
        hostname = pick("inner", "inner", options.hostname)
        differs = pick("internal", "internal", "explicit")
        rows.append(options._replace(hostname=hostname, **{differs: not getattr(options, differs)}))
    on_exit = ["-on-exit", "deregister"] if chance(0.15) else []
    return [(row, ["-resync", str(resync), *on_exit, *arguments(row)]) for row in rows]


def arguments(options):
    """But for -hostname."""
    found = ["-" + name for name in ("internal", "explicit", "cleanup") if getattr(options, name)]
    found += ["-%s=%s" % (name, value) for name, value in [
        ("ip", options.ip), ("tags", options.tags), ("useIpFromLabel", options.label)] if value]
    return found + (["-deregister", "on-success"] if options.on_success else [])


def write_script(seed):
    w = Draft(seed)
    chance, pick = w.chance, w.pick
    two, lossy, cases = chance(0.2), chance(0.2), chance(0.25)
    cases = cases and not two       # each would leave the place to the other, spelled its own way
    engine, agent, signals = chance(0.6), chance(0.6), chance(0.6)
    resync = pick(2, 4) if lossy else pick(0, 2, 4) if two else pick(0, 0, 2, 4, 60)
    rows = write_options(chance, pick, two, resync)
    w.mild = w.mild and not two
    if cases:
        w.ids += ["Shared", "SHARED", "X1"]
        w.names += ["Web", "DB"]
    modes = [word for word, on in [("two", two), ("lossy", lossy), ("cases", cases), ("signals", signals),
                                   ("engine faults", engine), ("agent faults", agent)] if on]
    w.add("order", pick(["die", "net"], ["net", "die"]))
    for _ in range(pick(0, 2, 4)):
        w.new()
        if chance(0.2):
            w.stop()
    for _ in range(pick(0, 0, 1, 2) + 2 * agent):
        w.foreign()
    w.add("begin", 0)
    w.wait(0, 50, 100)
    w.add("begin", 1)
    w.wait(20, 100, 200)
    w.live({**LIFE, **(ENGINE if engine else {}), **(AGENT if agent else {}), **(SIGNALS if signals else {}),
            **(BEHIND if agent and not w.mild else {})})
    siege, besieged = None, []
    if chance(0.3):
        siege = pick(*[s for s in SIEGES if s != "no marks" or not (two or rows[0][0].cleanup)])
        modes.append(siege)
        besieged = w.besieged()
    hup = resync == 60 or (resync == 0 and (
        two or (agent and not w.mild) or any("rows" in op for op in w.ops)))
    return Script(seed, modes, rows, resync, hup, lossy, pick("1.10", "1.10", "29"), not agent, w.ops, siege,
                  besieged)
