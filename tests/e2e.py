#!/usr/bin/env python3
"""End to end: registrator between a real Docker engine and a real Consul.

    python3 tests/e2e.py ./registrator [WORD...]    only cases that have a WORD

Needs root, dockerd, docker, consul, busybox (static), dig, ip, iptables.

All of it lives in namespaces of its own: network, mounts, processes and host
name.  A tmpfs covers /run and /tmp there, so nothing of this machine is seen
or touched, the usual ports are free, and whatever ends this program, the
kernel takes away everything that it started.  This project, which may lie
below them, is at TOP in there.

A case has its own containers and is compared with the whole of the registry;
it waits for what it expects and asserts no time.  One line a case: "ok NAME",
"not ok NAME: why" with details below it, or "# skip NAME: why".

tests/faults.py uses this little world too, with cases of its own.
"""
import http.client
import json
import os
import pprint
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from urllib.parse import quote, unquote

# Seconds that something expected may take.
LIMIT = float(os.environ.get("E2E_LIMIT", 60))
HOST = "e2e-host"               # the host name in this namespace
ADV = "10.99.0.1"               # what the Consul agent advertises
DIR = "/run/e2e"
TOP = DIR + "/top"              # in there: this project, read-only
SUITE = "e2e"                   # of the script that runs: see enter()
RUN = os.environ.setdefault("E2E_RUN", str(os.getpid()))
CGROUP = "registrator-e2e-" + RUN       # several may run side by side
SOCK = "/run/docker.sock"
CONSUL = ("127.0.0.1", 8500)
IMG = "jlordiales/python-micro-service"
MARK = "[0-9a-f]{16}-[0-9a-f]{24}"      # in the Meta of each entry of ours
IDLE = 'trap "exit 0" TERM; trap "exit 1" USR1; sleep 9999 & wait'


# ---- outside: the namespaces ----------------------------------------------

def enter(suite, inside, **kw):
    """The whole of a suite's script: calls inside(*its arguments) in there,
    and ends with the status that this returns."""
    global SUITE, CGROUP
    SUITE, CGROUP = suite, "registrator-%s-%s" % (suite, RUN)
    if sys.argv[1:2] != ["--inside"]:
        outside(**kw)
    try:
        sys.exit(inside(*sys.argv[2:]))
    except Failure as e:
        print("not ok %s set-up: %s" % (suite, str(e).replace("\n", "\n  ")))
        sys.exit(1)


def namespaces(*args):
    """The command that runs this script in there, --inside before args."""
    # sh is process 1 in there: it collects orphans, and all ends with it.
    return ["unshare", "-n", "-m", "-p", "-u", "-f", "--kill-child",
            "--mount-proc", "sh", "-c", '"$@" & wait $!', "sh",
            sys.executable, "-u",
            os.path.abspath(sys.modules["__main__"].__file__), "--inside",
            *args]


def outside(**kw):
    if len(sys.argv) < 2:
        sys.exit(sys.modules["__main__"].__doc__)
    if os.geteuid() != 0:
        print("not ok %s: needs root" % SUITE)
        sys.exit(1)
    inner = subprocess.Popen(namespaces(*sys.argv[1:]),
                             stdin=subprocess.DEVNULL, start_new_session=True,
                             **kw)

    def end(*_):
        inner.kill()
    for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(s, end)
    status = inner.wait()
    remove_cgroups(CGROUP)
    sys.exit(status if status >= 0 else 1)


def remove_cgroups(name):
    """What the containers of a world leave behind."""
    for top, _, _ in os.walk("/sys/fs/cgroup"):
        if os.path.basename(top) == name:
            for sub, _, _ in os.walk(top, topdown=False):
                remove_cgroup(sub)


def remove_cgroup(path):
    for _ in range(50):
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)


def sh(*cmd, check=True, **kw):
    """Runs a command; its standard output, or with check=False the result."""
    r = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       stdin=kw.pop("stdin", subprocess.DEVNULL), **kw)
    if not check:
        return r
    if r.returncode != 0:
        raise Failure("%s: %s" % (" ".join(map(str, cmd))[:300],
                                  r.stderr.decode(errors="replace").strip()))
    return r.stdout.decode(errors="replace").strip()


def held(path):
    """Another name of it, still good when a mount covers where it lies."""
    return "/proc/%d/fd/%d" % (os.getpid(), os.open(path, os.O_PATH))


def prepare(binary):
    """The little world: mounts, addresses, host name, files."""
    consul = shutil.which("consul")
    if consul is None:
        raise Failure("no consul on PATH")
    binary, consul, top = map(held, (binary, consul,
                                     os.path.dirname(__file__) + "/.."))
    sh("mount", "--make-rprivate", "/")
    sh("mount", "-t", "tmpfs", "tmpfs", "/run")
    if os.path.isdir("/etc/docker"):    # this machine's settings and key
        sh("mount", "-t", "tmpfs", "tmpfs", "/etc/docker")
    for d in ("bin", "images", "logs", "top"):
        os.makedirs("%s/%s" % (DIR, d))
    sh("mount", "-c", "-o", "bind,ro", top, TOP)
    shutil.copy(binary, DIR + "/registrator")
    os.chmod(DIR + "/registrator", 0o755)
    os.chmod(DIR, 0o755)
    shutil.copy(consul, DIR + "/bin/consul")
    with open(DIR + "/bin/check-cmd", "w") as f:
        f.write('#!/bin/sh\necho "check-cmd $*"\n')
    os.chmod(DIR + "/bin/check-cmd", 0o755)
    os.chdir(DIR)
    sh("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp")
    socket.sethostname(HOST)
    sh("ip", "link", "set", "lo", "up")
    sh("ip", "link", "add", "wire0", "type", "veth", "peer", "name", "wire1")
    sh("ip", "addr", "add", ADV + "/24", "dev", "wire0")
    sh("ip", "addr", "add", "10.97.0.1/24", "dev", "wire1")
    sh("ip", "link", "set", "wire0", "up")
    sh("ip", "link", "set", "wire1", "up")
    for name in list(os.environ):
        if name.startswith(("DOCKER_", "CONSUL_")):
            del os.environ[name]
    os.environ["PATH"] = DIR + "/bin:" + os.environ["PATH"]
    os.environ["DOCKER_HOST"] = "unix://" + SOCK
    os.environ["DOCKER_CONFIG"] = DIR + "/docker-config"


# ---- waiting and failing ---------------------------------------------------

class Failure(Exception):
    pass


class Skip(Exception):
    pass


def wait_for(what, probe, limit=LIMIT):
    """Polls until probe() is true and returns what it returned."""
    end = time.monotonic() + limit
    while True:
        got = probe()
        if got:
            return got
        if time.monotonic() > end:
            raise Failure("waited in vain for " + what)
        time.sleep(0.02)


def same(what, want, got):
    if want == got:
        return
    if isinstance(want, dict) and isinstance(got, dict):    # what differs
        differ = [k for k in {**want, **got} if k not in want or k not in got
                  or want[k] != got[k]]
        want = {k: want[k] for k in differ if k in want}
        got = {k: got[k] for k in differ if k in got}
    raise Failure("%s\nexpected: %s\ngot:      %s" % (
        what, *("\n    ".join(pprint.pformat(x, width=100).splitlines()[:40])
                for x in (want, got))))


def wait_same(what, want, probe, limit=LIMIT):
    end = time.monotonic() + limit
    while True:
        got = probe()
        if got == want:
            return
        if time.monotonic() > end:
            same(what, want, got)
        time.sleep(0.02)


def holds(what, probe, seconds=0.3):
    """What must stay as it is: looked at for a while after the last event."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not probe():
            raise Failure(what)
        time.sleep(0.02)


# ---- Consul ----------------------------------------------------------------

def call(method, path, body=None, server=CONSUL, token=None):
    """One request: (status, body); the body as JSON if it is that."""
    conn = http.client.HTTPConnection(*server, timeout=LIMIT)
    try:
        if body is not None and not isinstance(body, (str, bytes)):
            body = json.dumps(body)
        conn.request(method, path, body,
                     {"X-Consul-Token": token} if token else {})
        answer = conn.getresponse()
        raw = answer.read()
        try:
            return answer.status, json.loads(raw)
        except ValueError:
            return answer.status, raw.decode(errors="replace")
    finally:
        conn.close()


def get(path, **kw):
    status, body = call("GET", path, **kw)
    if status != 200:
        raise Failure("GET %s: %d %s" % (path, status, body))
    return body


def put(path, body=None, **kw):
    status, answer = call("PUT", path, body, **kw)
    if status != 200:
        raise Failure("PUT %s: %d %s" % (path, status, answer))
    return answer


class Agent:
    """A Consul agent, empty whenever it starts, unless it has a data_dir."""

    def __init__(self, name="consul", server=CONSUL, **config):
        self.server = server
        self.mode = ["-server"] if "data_dir" in config else ["-dev"]
        self.log = "%s/logs/%s" % (DIR, name)
        self.file = "%s/%s.json" % (DIR, name)
        self.config = {"bind_addr": ADV, "advertise_addr": ADV,
                       "node_name": name, "disable_update_check": True,
                       **config}

    def start(self, token=None):
        with open(self.file, "w") as f:
            json.dump(self.config, f)
        with open(self.log, "w") as log:
            self.proc = subprocess.Popen(
                ["consul", "agent", *self.mode, "-config-file", self.file],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL)

        def ready():
            if self.proc.poll() is not None:
                raise Failure("consul ended:\n" + tail(self.log))
            try:
                return get("/v1/status/leader", server=self.server) and \
                    get("/v1/catalog/nodes", server=self.server, token=token)
            except (OSError, Failure, http.client.HTTPException):
                return False
        wait_for("consul", ready)

    def stop(self):
        self.proc.terminate()
        self.proc.wait()

    def kill(self):
        self.proc.kill()
        self.proc.wait()


def svc(name, port, address=ADV, tags=(), meta=None):
    return {"name": name, "port": port, "address": address,
            "tags": list(tags), "meta": meta or {}}


def view(entry, mark=False):
    meta = dict(entry["Meta"] or {})
    if not mark:
        meta.pop("registrator", None)
    return svc(entry["Service"], entry["Port"], entry["Address"],
               entry["Tags"] or [], meta)


def services(**kw):
    return {i: view(s) for i, s in get("/v1/agent/services", **kw).items()}


def ids():
    return sorted(get("/v1/agent/services"))


def checks():
    """The checks by service ID; one service has one."""
    return {c["ServiceID"]: c for c in get("/v1/agent/checks").values()}


def expect(want, **kw):
    """The whole of the registry, soon."""
    wait_same("services", want, lambda: services(**kw))


def expect_now(want):
    same("services", want, services())


def deregister(service):
    put("/v1/agent/service/deregister/" + quote(service, safe=""))


class Proxy:
    """Between registrator and Consul: keeps each request that passes."""

    def __init__(self, port=8600 - 1, target=CONSUL):
        self.target, self.requests, self.socks = target, [], []
        self.listener = self.listen(port)
        self.uri = "consul://127.0.0.1:%s" % port
        threading.Thread(target=self.accept, daemon=True).start()
        proxies.append(self)

    @staticmethod
    def listen(port):
        return socket.create_server(("127.0.0.1", port), backlog=64)

    def connect(self):
        return socket.create_connection(self.target)

    def passing(self, method, path):
        """Called before a request is passed on."""

    def returning(self, data):
        """Called before a piece of an answer is passed back."""

    def accept(self):
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            try:
                server = self.connect()
            except OSError:
                client.close()
                continue
            self.socks += [client, server]
            threading.Thread(target=self.answers, args=(server, client),
                             daemon=True).start()
            threading.Thread(target=self.serve, args=(client, server),
                             daemon=True).start()

    def answers(self, server, client):
        try:
            while data := server.recv(65536):
                self.returning(data)
                client.sendall(data)
        except OSError:
            pass
        self.shut(client, server)

    def serve(self, client, server):
        stream = client.makefile("rb")
        try:
            while line := stream.readline():
                head, length = line, 0
                while (h := stream.readline()) not in (b"\r\n", b""):
                    head += h
                    if h.lower().startswith(b"content-length:"):
                        length = int(h.split(b":")[1])
                body = stream.read(length)
                method, path = line.decode("latin-1").split(" ")[:2]
                self.requests.append((method, path, body))
                self.passing(method, path)
                server.sendall(head + b"\r\n" + body)
        except (OSError, ValueError):
            pass
        self.shut(client, server)

    @staticmethod
    def shut(*socks):
        for s in socks:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.shut(self.listener)
        self.listener.close()
        self.shut(*self.socks)

    def puts(self):
        return [(p, b) for m, p, b in list(self.requests) if m != "GET"]

    def lists(self):
        return sum(p.startswith("/v1/agent/services")
                   for m, p, b in list(self.requests))

    def sent(self, service):
        """The registration of this ID as it was last sent."""
        for path, body in reversed(self.puts()):
            if path.startswith("/v1/agent/service/register"):
                found = json.loads(body)
                if found.get("ID") == service:
                    return found
        raise Failure("no registration of %s was sent" % service)

    def paths(self):
        """What was written: ("register", ID, query) or ("deregister", ID)."""
        out = []
        for path, body in self.puts():
            path, _, query = path.partition("?")
            verb = path.split("/")[4] if path.count("/") > 3 else path
            if verb == "register":
                out.append((verb, json.loads(body)["ID"], query))
            else:
                out.append((verb, unquote(path.split("/", 5)[-1])))
        return out


# ---- the engine ------------------------------------------------------------

class Engine:
    always = ()                 # options of every start

    def start(self, *options):
        """As a supervisor does: a dockerd that waits for its containerd in
        vain, on a machine under load, ends and is started again."""
        for _ in range(3):
            self.launch(*options)
            if wait_for("dockerd", self.there, 3 * LIMIT) == "here":
                return
        raise Failure("dockerd ended:\n" + tail(DIR + "/logs/dockerd"))

    def launch(self, *options):
        with open(DIR + "/logs/dockerd", "a") as log:
            self.proc = subprocess.Popen(
                ["dockerd", "--data-root", DIR + "/docker",
                 "--exec-root", DIR + "/docker-exec",
                 "--pidfile", DIR + "/docker.pid", "-H", "unix://" + SOCK,
                 "--userland-proxy=false", "--cgroup-parent", "/" + CGROUP,
                 "--exec-opt", "native.cgroupdriver=cgroupfs",
                 *self.always, *options],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def there(self):
        if self.proc.poll() is not None:
            return "ended"
        answers = sh("docker", "version", check=False).returncode == 0
        return "here" if answers else None

    def stop(self):
        self.proc.terminate()
        self.proc.wait()

    def kill(self):
        self.proc.kill()
        self.proc.wait()


def docker(*args, **kw):
    return sh("docker", *args, **kw)


def run(*args, image=IMG, cmd=()):
    """docker run -d: the ID."""
    return docker("run", "-d", *args, image, *cmd)


def inspect(name):
    return json.loads(docker("inspect", name))[0]


def published(name, port="5000/tcp"):
    return int(inspect(name)["NetworkSettings"]["Ports"][port][0]["HostPort"])


def address(name, network="bridge"):
    return inspect(name)["NetworkSettings"]["Networks"][network]["IPAddress"]


def ask(method, path, body=None):
    """By the engine's API: its answer, as JSON."""
    conn = http.client.HTTPConnection("docker", timeout=LIMIT)
    conn.sock = socket.socket(socket.AF_UNIX)
    try:
        conn.sock.connect(SOCK)
        conn.request(method, path, json.dumps(body or {}),
                     {"Content-Type": "application/json"})
        answer = conn.getresponse()
        raw = answer.read()
    finally:
        conn.close()
    if answer.status >= 400:
        raise Failure("%s %s: %d %r" % (method, path, answer.status, raw))
    return json.loads(raw) if raw else None


def create(name, config):
    """By the API, for what no command line takes; started, the ID."""
    made = ask("POST", "/containers/create?name=" + name,
               {"Image": IMG, **config})
    ask("POST", "/containers/%s/start" % made["Id"])
    return made["Id"]


def port_80(port):
    """For create: port 80 is published as this one."""
    return {"Image": "plain", "ExposedPorts": {"80/tcp": {}}, "HostConfig": {
        "PortBindings": {"80/tcp": [{"HostPort": str(port)}]}}}


def busybox_tree():
    """What is in the images: the folder."""
    root = DIR + "/images/root"
    os.makedirs(root + "/bin")
    shutil.copy(shutil.which("busybox"), root + "/bin/busybox")
    for tool in ("sh", "sleep", "kill", "httpd"):
        os.symlink("busybox", "%s/bin/%s" % (root, tool))
    return root


def images():
    """All from one busybox; nothing can be pulled."""
    root = busybox_tree()
    import_image(root, IMG, "EXPOSE 5000")
    import_image(root, "plain")
    import_image(root, "shares", "EXPOSE 7000 7001")
    docker("tag", "plain", "registry:5000/team/app:1.2")
    root = DIR + "/images/registrator"
    os.makedirs(root + "/bin")
    shutil.copy(DIR + "/registrator", root + "/bin")
    # A build that is not static (sanitizers) takes its libraries with it.
    linked = sh("ldd", DIR + "/registrator", check=False).stdout.decode()
    for path in re.findall(r"(/\S+) \(", linked):
        os.makedirs(root + os.path.dirname(path), exist_ok=True)
        shutil.copy(path, root + path)
    import_image(root, "e2e/registrator",
                 'ENTRYPOINT ["/bin/registrator"]', idle=False)


def import_image(root, name, *changes, idle=True):
    tar = root + ".tar"
    sh("tar", "-C", root, "-cf", tar, ".")
    if idle:
        changes += ("CMD " + json.dumps(["sh", "-c", IDLE]),)
    docker("import", *sum((["--change", c] for c in changes), []), tar, name)


# ---- registrator -----------------------------------------------------------

class Registrator:
    """The program under test; its log goes to a file."""
    count = 0

    def __init__(self, *options, uri="consul://127.0.0.1:8500", env=None,
                 prefix=(), **kw):
        Registrator.count += 1
        self.file = "%s/logs/registrator.%d" % (DIR, Registrator.count)
        self.out = self.file + ".out"
        env = {**os.environ, **(env or {})}
        env = {k: v for k, v in env.items() if v is not None}
        with open(self.file, "w") as err, open(self.out, "w") as out:
            self.proc = subprocess.Popen(
                [*prefix, DIR + "/registrator", *options,
                 *([uri] if uri is not None else [])],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env,
                **kw)
        registrators.append(self)

    def log(self):
        with open(self.file, errors="replace") as f:
            return f.read()

    def output(self):
        with open(self.out, errors="replace") as f:
            return f.read()

    def wait_log(self, pattern):
        wait_for("the log line /%s/" % pattern,
                 lambda: re.search(pattern, self.log()))

    def exit(self, want=0):
        """Waits for its end by itself."""
        try:
            got = self.proc.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise Failure("registrator does not end") from None
        same("exit status", want, got)

    def stop(self, want=0, sig=signal.SIGTERM):
        self.proc.send_signal(sig)
        self.exit(want)

    def kill(self):
        self.proc.kill()
        self.proc.wait()

    def resync(self):
        self.proc.send_signal(signal.SIGHUP)


def once(*options, want=0, **kw):
    """One pass over the world."""
    r = Registrator("-once", *options, **kw)
    r.exit(want)
    return r


def passes(r, proxy, n=2):
    """That many more passes over the world, and a moment."""
    for _ in range(n):
        seen = proxy.lists()
        r.resync()
        wait_for("a resync", lambda: proxy.lists() > seen)
        time.sleep(0.1)


def tail(file, lines=25):
    with open(file, errors="replace") as f:
        return "".join(f.readlines()[-lines:])


# ---- the cases -------------------------------------------------------------

cases, registrators, proxies = [], [], []


def case(name):
    def add(function):
        cases.append((name, function))
        return function
    return add


def clean():
    for r in registrators:
        if r.proc.poll() is None:
            r.kill()
    for p in proxies:
        p.close()
    registrators.clear()
    proxies.clear()
    left = docker("ps", "-aq", "--no-trunc").split()
    if left:
        docker("rm", "-f", "-v", *left)
    for network in docker("network", "ls", "-q", "--filter",
                          "type=custom").split():
        docker("network", "rm", network)
    try:
        for i in ids():
            deregister(i)
    except Failure:                     # an ID that no request can name
        consul.kill()
        consul.start()


def play(words, clean=clean, cases=cases):
    """The cases that have one of the words; how many failed."""
    suite, failed = SUITE, 0
    for name, function in cases:
        if words and not any(w in name for w in words):
            continue
        try:
            function()
            print("ok %s %s" % (suite, name))
        except Skip as e:
            print("# skip %s %s: %s" % (suite, name, e))
        except Exception as e:
            failed += 1
            text = str(e) if isinstance(e, Failure) else traceback.format_exc()
            first, *rest = (text or repr(e)).splitlines()
            print("not ok %s %s: %s" % (suite, name, first))
            for line in rest:
                print("  " + line)
            for r in registrators:
                print("  log of %s:" % " ".join(r.proc.args))
                for line in tail(r.file).splitlines():
                    print("    " + line[:400])
        clean()
    return failed


engine = Engine()
consul = Agent(
    client_addr="127.0.0.1 " + ADV, enable_script_checks=True,
    limits={"http_max_conns_per_client": 2000}, ports={"dns": 8600},
    addresses={"http": "127.0.0.1 %s unix://%s/consul.sock" % (ADV, DIR)})


# The walk of the tutorial, with the program and as a container.

def dns(kind):
    return sh("dig", "+short", "@127.0.0.1", "-p", "8600",
              "python-micro-service.service.consul", kind).split("\n")


def tutorial(r_log, when_up=lambda: None):
    cid = run("-P", "--name", "service1")
    port = published("service1")
    expect({"registrator:service1:5000": svc("python-micro-service", port)})
    entry = get("/v1/catalog/service/python-micro-service")[0]
    same("catalog", ("python-micro-service", "registrator:service1:5000",
                     port, ADV),
         (entry["ServiceName"], entry["ServiceID"], entry["ServicePort"],
          entry["ServiceAddress"]))
    same("DNS, A", [ADV], dns("A"))
    same("DNS, port of SRV", str(port), dns("SRV")[0].split()[2])
    line = r"(?m)^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d registrator: added: %s " \
        r"registrator:service1:5000$" % cid[:12]
    wait_for("the log line " + line, lambda: re.search(line, r_log()))
    when_up()
    docker("stop", "service1")
    expect({})
    same("catalog", [], get("/v1/catalog/service/python-micro-service"))
    line = r"(?m) removed: %s registrator:service1:5000$" % cid[:12]
    wait_for("the log line " + line, lambda: re.search(line, r_log()))
    same("DNS, A", [""], dns("A"))


@case("tutorial: -hostname registrator")
def _():
    r = Registrator("-hostname", "registrator")
    tutorial(r.log)
    for words in ("Starting registrator ", "Using consul adapter: consul://",
                  "consul: current leader " + ADV,
                  "Listening for Docker events ...", "Syncing services on "):
        if words not in r.log():
            raise Failure("no line in the log: " + words)
    r.stop()


@case("tutorial: as a container from scratch, -h registrator")
def _():
    docker("run", "-d", "--name", "registrator", "-h", "registrator",
           "--read-only", "--cap-drop", "ALL",
           "--security-opt", "no-new-privileges",
           "-v", "%s:/tmp/docker.sock" % SOCK, "e2e/registrator",
           "consul://%s:8500" % ADV)

    def log():
        out = sh("docker", "logs", "registrator", check=False)
        return (out.stdout + out.stderr).decode()
    wait_for("the start of the container",
             lambda: "Listening for Docker events" in log())
    tutorial(log)
    docker("stop", "registrator")
    same("exit status of process 1 after docker stop", 0,
         inspect("registrator")["State"]["ExitCode"])


# From a container to services, by one pass of -once.

@case("defaults: name of the image, host:name:port, published port, "
      "advertised address")
def _():
    run("--name", "web", "-p", "8001:5000")
    run("--name", "app.1_x", "-p", "8002:80",
        image="registry:5000/team/app:1.2")
    run("--name", "idle", image="plain")
    once()
    expect_now({
        HOST + ":web:5000": svc("python-micro-service", 8001),
        HOST + ":app.1_x:80": svc("app", 8002)})
    for entry in get("/v1/agent/services").values():
        if not re.fullmatch(MARK, entry["Meta"]["registrator"]):
            raise Failure("no mark: %r" % entry["Meta"])


@case("no published ports: nothing, and the log says so")
def _():
    bare = run("--name", "bare", image="plain")
    exposed = run("--name", "exposed", "-p", "8001:80")
    r = once()
    expect_now({HOST + ":exposed:80": svc("python-micro-service", 8001)})
    for line in ("ignored: %s no published ports" % bare[:12],
                 "ignored: %s port 5000 not published on host" % exposed[:12]):
        if line not in r.log():
            raise Failure("no line in the log: " + line)


@case("name of an image that is only an ID: compose service, container name")
def _():
    image = inspect("plain")["Id"]
    run("--name", "c1", "-p", "8001:80", image=image)
    run("--name", "c2", "-p", "8002:80", "-l",
        "com.docker.compose.service=front", image=image)
    run("--name", "c3", "-p", "8003:80", "-l",
        "com.docker.compose.service=front", "-e", "SERVICE_NAME=own",
        image=image)
    once()
    expect_now({HOST + ":c1:80": svc("c1", 8001),
                HOST + ":c2:80": svc("front", 8002),
                HOST + ":c3:80": svc("own", 8003)})


@case("SERVICE_NAME from environment and label; a label wins; exact prefix")
def _():
    run("--name", "env", "-p", "8001:5000", "-e", "SERVICE_NAME=a=b")
    run("--name", "label", "-p", "8002:5000", "-l", "SERVICE_Name=lower")
    run("--name", "both", "-p", "8003:5000", "-e", "SERVICE_NAME=env",
        "-l", "SERVICE_NAME=label")
    run("--name", "other", "-p", "8004:5000", "-e", "service_name=no",
        "-l", "MY_SERVICE_NAME=no")
    run("--name", "port", "-p", "8005:5000", "-l", "SERVICE_NAME=label",
        "-e", "SERVICE_5000_NAME=env")
    once()
    expect_now({
        HOST + ":env:5000": svc("a=b", 8001),
        HOST + ":label:5000": svc("lower", 8002),
        HOST + ":both:5000": svc("label", 8003),
        HOST + ":other:5000": svc("python-micro-service", 8004),
        HOST + ":port:5000": svc("env", 8005)})


@case("tags: order, comma escaped, blanks, empty ones, -tags, udp last")
def _():
    run("--name", "tt", "-p", "8001:53/udp", image="plain",
        *("-e", r"SERVICE_TAGS=z,a\,b,, c d ,z"))
    run("--name", "uu", "-p", "8002:80", "-e", "SERVICE_TAGS=", image="plain")
    once("-tags", r"all,x\,y")
    expect_now({
        HOST + ":tt:53:udp": svc("plain", 8001, tags=[
            "z", "a,b", " c d ", "z", "all", "x,y", "udp"]),
        HOST + ":uu:80": svc("plain", 8002, tags=["all", "x,y"])})


@case("several ports: -PORT, and metadata of one port alone")
def _():
    run("--name", "mm", "-p", "8001:80", "-p", "8002:443", "-p", "8003:9000",
        *sum((["-e", e] for e in (
            "SERVICE_TAGS=all", "SERVICE_REGION=eu", "SERVICE_443_NAME=tls",
            "SERVICE_443_TAGS=secure", "SERVICE_443_REGION=us",
            "SERVICE_9000_ID=my-id", "SERVICE_9999_REGION=none",
            "SERVICE_8080=attribute")), []), image="plain")
    run("--name", "nn", "-p", "8004:80", "-p", "8005:81", image="plain",
        *("-e", "SERVICE_NAME=n"))
    once()
    meta = {"region": "eu", "8080": "attribute"}
    expect_now({
        HOST + ":mm:80": svc("plain-80", 8001, tags=["all"], meta=meta),
        HOST + ":mm:443": svc("tls", 8002, tags=["secure"],
                             meta={**meta, "region": "us"}),
        "my-id": svc("plain-9000", 8003, tags=["all"], meta=meta),
        HOST + ":nn:80": svc("n-80", 8004),
        HOST + ":nn:81": svc("n-81", 8005)})


@case("a port that is only exposed does not make several")
def _():
    run("--name", "one", "-p", "8001:80")           # and 5000, of the image
    once()
    expect_now({HOST + ":one:80": svc("python-micro-service", 8001)})


@case("udp, and tcp and udp on one port")
def _():
    run("--name", "uu", "-p", "8001:514/udp", image="plain")
    run("--name", "dd", "-p", "8002:53", "-p", "8002:53/udp", image="plain")
    once()
    expect_now({
        HOST + ":uu:514:udp": svc("plain", 8001, tags=["udp"]),
        HOST + ":dd:53": svc("plain-53", 8002),
        HOST + ":dd:53:udp": svc("plain-53", 8002, tags=["udp"])})


@case("several bindings of one port: one service")
def _():
    run("--name", "bb", "-p", "8001:80", "-p", "8002:80", image="plain")
    once()
    same("IDs", [HOST + ":bb:80"], ids())
    if services()[HOST + ":bb:80"]["port"] not in (8001, 8002):
        raise Failure("port: %r" % services())


@case("SERVICE_IGNORE: any value but the empty one")
def _():
    a = run("--name", "aa", "-p", "8001:80", "-e", "SERVICE_IGNORE=1",
            image="plain")
    run("--name", "bb", "-p", "8002:80", "-l", "SERVICE_IGNORE=false",
        image="plain")
    run("--name", "cc", "-p", "8003:80", "-e", "SERVICE_IGNORE=",
        image="plain")
    run("--name", "dd", "-p", "8004:80", "-p", "8005:81",
        "-e", "SERVICE_81_IGNORE=yes", image="plain")
    r = once()
    expect_now({HOST + ":cc:80": svc("plain", 8003),
                HOST + ":dd:80": svc("plain-80", 8004)})
    if "ignored: %s service on port 80: SERVICE_IGNORE is set" % a[:12] \
            not in r.log():
        raise Failure("the log does not say so")


@case("-explicit: only ports with a name")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    run("--name", "bb", "-p", "8002:80", "-e", "SERVICE_NAME=b", image="plain")
    run("--name", "cc", "-p", "8003:80", "-p", "8004:81",
        "-l", "SERVICE_80_NAME=c", image="plain")
    once("-explicit")
    expect_now({HOST + ":bb:80": svc("b", 8002),
                HOST + ":cc:80": svc("c", 8003)})


@case("-internal: container address, exposed ports")
def _():
    run("--name", "aa", "-p", "8001:80")             # and 5000, of the image
    run("--name", "bb", "--expose", "53/udp", image="plain")
    run("--name", "hh", "--net", "host", "--expose", "7000", image="plain")
    once("-internal")
    expect_now({
        HOST + ":aa:80": svc("python-micro-service-80", 80, address("aa")),
        HOST + ":aa:5000": svc("python-micro-service-5000", 5000,
                              address("aa")),
        HOST + ":bb:53:udp": svc("plain", 53, address("bb"), tags=["udp"]),
        HOST + ":hh:7000": svc("plain", 7000)})


@case("-internal with several networks: NetworkMode's, container:X as X")
def _():
    docker("network", "create", "n-a")
    docker("network", "create", "n-z")
    run("--name", "aa", "--net", "n-z")
    docker("network", "connect", "n-a", "aa")
    run("--name", "bb")
    docker("network", "connect", "n-a", "bb")
    run("--name", "ss", "--net", "container:aa", image="shares")
    once("-internal")
    name = "python-micro-service"
    expect_now({
        HOST + ":aa:5000": svc(name, 5000, address("aa", "n-z")),
        HOST + ":bb:5000": svc(name, 5000, address("bb", "bridge")),
        HOST + ":ss:7000": svc("shares-7000", 7000, address("aa", "n-z")),
        HOST + ":ss:7001": svc("shares-7001", 7001, address("aa", "n-z"))})


@case("SERVICE_ID, and IDs that would collide")
def _():
    run("--name", "aa", "-p", "8001:80", "-e", "SERVICE_ID=one", image="plain")
    run("--name", "bb", "-p", "8002:80", "-p", "8002:80/udp", "-p", "8003:81",
        "-e", "SERVICE_ID=two", image="plain")
    r = once()
    expect_now({
        "one": svc("plain", 8001), "two": svc("plain-80", 8002),
        "two:80:udp": svc("plain-80", 8002, tags=["udp"]),
        "two:81": svc("plain-81", 8003)})
    if "two:81" not in r.log():
        raise Failure("no warning")


@case("SERVICE_ID that Consul could not deregister: the default ID")
def _():
    bad = ("/x", "a//b", "a/../b", "./a", "", "a\tb", "caf\u00e9", "\u0378",
           "x" * 1025)
    for i, text in enumerate(bad):
        create("c%d" % i, {"Labels": {"SERVICE_ID": text},
                           **port_80(8001 + i)})
    run("--name", "good", "-p", "8010:80", "-e", "SERVICE_ID=a/b c?d#e%41",
        image="plain")
    once()
    want = {HOST + ":c%d:80" % i: svc("plain", 8001 + i)
            for i in range(len(bad))}
    expect_now({**want, "a/b c?d#e%41": svc("plain", 8010)})
    docker("stop", "good")
    once()
    expect_now(want)


@case("host mode: the exposed ports on the host")
def _():
    run("--name", "hh", "--net", "host", "--expose", "7000/udp")
    once()
    name = "python-micro-service"
    expect_now({
        HOST + ":hh:5000": svc(name + "-5000", 5000),
        HOST + ":hh:7000:udp": svc(name + "-7000", 7000, tags=["udp"])})


@case("user-defined network, compose names: the host's address and port")
def _():
    docker("network", "create", "proj_default")
    run("--name", "proj_web_1", "--net", "proj_default", "-p", "8001:5000",
        "-l", "com.docker.compose.service=web",
        "-l", "com.docker.compose.project=proj")
    run("--name", "proj-db-1", "--net", "proj_default", image="plain")
    once()
    expect_now({HOST + ":proj_web_1:5000": svc("python-micro-service", 8001)})


@case("container:X: X's binding, else X's address")
def _():
    run("--name", "xx", "-p", "8001:7000", image="plain")
    run("--name", "ss", "--net", "container:xx", image="shares")
    once()
    expect_now({
        HOST + ":xx:7000": svc("plain", 8001),
        HOST + ":ss:7000": svc("shares-7000", 8001),
        HOST + ":ss:7001": svc("shares-7001", 7001, address("xx"))})


@case("mode none: nothing")
def _():
    run("--name", "nn", "--net", "none")
    run("--name", "ok", "-p", "8001:5000")
    once()
    expect_now({HOST + ":ok:5000": svc("python-micro-service", 8001)})


@case("macvlan: the container's address and the exposed port")
def _():
    made = docker("network", "create", "-d", "macvlan", "--subnet",
                  "10.98.0.0/24", "-o", "parent=wire1", "wire", check=False)
    if made.returncode != 0:
        raise Skip(made.stderr.decode().strip())
    run("--name", "mm", "--net", "wire")
    once()
    expect_now({HOST + ":mm:5000": svc("python-micro-service", 5000,
                                      address("mm", "wire"))})


@case("address of the binding, -ip, -useIpFromLabel: which one applies")
def _():
    run("--name", "aa", "-p", "127.0.0.1:8443:443", image="plain")
    run("--name", "bb", "-p", "8001:80", image="plain")
    run("--name", "cc", "-p", "8002:80", "-l", "ip=10.1.2.3/24",
        image="plain")
    run("--name", "dd", "-p", "8003:80", "-l", "ip=", image="plain")

    def want(a, b, c):
        return {HOST + ":aa:443": svc("plain", 8443, a),
                HOST + ":bb:80": svc("plain", 8001, b),
                HOST + ":cc:80": svc("plain", 8002, c),
                HOST + ":dd:80": svc("plain", 8003, b)}
    once()
    expect_now(want("127.0.0.1", ADV, ADV))
    for i in ids():
        deregister(i)
    once("-useIpFromLabel", "ip")
    expect_now(want("127.0.0.1", ADV, "10.1.2.3"))
    for i in ids():
        deregister(i)
    once("-useIpFromLabel", "ip", "-ip", "any.text.example")
    expect_now(want("any.text.example", "any.text.example", "10.1.2.3"))


@case("-ip INTERFACE: its address, asked again at a resync")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    r = Registrator("-ip", "wire1")
    expect({HOST + ":aa:80": svc("plain", 8001, "10.97.0.1")})
    sh("ip", "addr", "add", "10.97.0.2/24", "dev", "wire1")
    sh("ip", "addr", "del", "10.97.0.1/24", "dev", "wire1")
    if "10.97.0.2" not in sh("ip", "addr", "show", "wire1"):
        sh("ip", "addr", "add", "10.97.0.2/24", "dev", "wire1")
    try:
        r.resync()
        expect({HOST + ":aa:80": svc("plain", 8001, "10.97.0.2")})
    finally:
        sh("ip", "addr", "flush", "dev", "wire1")
        sh("ip", "addr", "add", "10.97.0.1/24", "dev", "wire1")


@case("attributes become Meta; what Consul would refuse is left out")
def _():
    labels = {"SERVICE_Region": "eu west", "SERVICE_a b": "key",
              "SERVICE_" + "k" * 129: "key", "SERVICE_LONG": "v" * 513,
              "SERVICE_JUST": "v" * 512, "SERVICE_REGISTRATOR": "forged",
              "SERVICE_CONSUL-X": "reserved", "SERVICE_EMPTY": ""}
    create("aa", {"Labels": labels, **port_80(8001)})
    r = once()
    got = services()
    got[HOST + ":aa:80"]["meta"].pop("empty", None)
    same("services", {HOST + ":aa:80": svc("plain", 8001, meta={
        "region": "eu west", "just": "v" * 512})}, got)
    for word in ("a b", "kkkk", "long", "registrator", "consul-x"):
        if not re.search("(?m)^.*%s.*$" % word, r.log()):
            raise Failure("no warning names %s" % word)


# Text that could do harm.

NASTY = ('q"u\'o\\te\nline\r\ttab\x01\x1b[31m\x7f%s%n%41/../?a=b#c <&> '
         '\u00e9\u2028')


FORGED = "x\n2026/11/22 18:05:26 registrator: added: forged "
PRINTABLE = 'q"u\'o\\te %s%n%41/..x/?a=b#c <&>+'


@case("hostile text in names, tags, attributes and IDs arrives as it is")
def _():
    create("hostile", {
        "Env": ["SERVICE_TAGS=" + NASTY + ",second"],
        "Labels": {"SERVICE_NAME": NASTY, "SERVICE_ATTR": NASTY,
                   "SERVICE_ID": PRINTABLE}, **port_80(8001)})
    # Consul's HTTP refuses any path with a control character: an ID with
    # one could never be deregistered.
    forger = create("forger", {
        "Labels": {"SERVICE_ID": FORGED + NASTY, "SERVICE_" + FORGED: "key",
                   "SERVICE_" + NASTY: "key"}, **port_80(8002)})
    r = Registrator("-log-level", "debug")
    expect({PRINTABLE: svc(NASTY, 8001, tags=[NASTY, "second"],
                           meta={"attr": NASTY}),
            HOST + ":forger:80": svc("plain", 8002)})
    r.wait_log("added: %s %s:forger:80" % (forger[:12], HOST))
    docker("stop", "hostile")
    expect({HOST + ":forger:80": svc("plain", 8002)})
    r.stop()
    for line in r.log().split("\n")[:-1]:
        if not re.match(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d registrator: ",
                        line) or line[20:].startswith(FORGED[22:]):
            raise Failure("a line of the log is forged or broken: %r" % line)
        if re.search(r"[\x00-\x1f\x7f]", line):
            raise Failure("control bytes in the log: %r" % line)


@case("bytes that are not UTF-8, 100 kB values, 300 labels")
def _():
    run("--name", "bytes", "-p", "8001:80", "-l",
        b"SERVICE_X=a\xff\xc3(b", image="plain")
    run("--name", "big", "-p", "8002:80", "-l", "SERVICE_BIG=" + "v" * 100000,
        "-l", "OTHER=" + "v" * 100000, image="plain")
    run("--name", "many", "-p", "8003:80", image="plain",
        *sum((["-l", "SERVICE_A%d=%d" % (i, i)] for i in range(300)), []))
    r = once()
    got = services()
    many = got.pop(HOST + ":many:80")
    same("services", {
        HOST + ":bytes:80": svc("plain", 8001, meta={"x": "a\ufffd\ufffd(b"}),
        HOST + ":big:80": svc("plain", 8002)}, got)
    same("port of the many", 8003, many["port"])
    if not 60 <= len(many["meta"]) <= 64:
        raise Failure("%d attributes" % len(many["meta"]))
    if "big" not in r.log():
        raise Failure("no warning about SERVICE_BIG")


@case("-internal: 1,000 exposed ports")
def _():
    run("--name", "kk", "--expose", "20000-20999", image="plain")
    once("-internal")
    a = address("kk")
    expect_now({HOST + ":kk:%d" % p: svc("plain-%d" % p, p, a)
                for p in range(20000, 21000)})
    docker("stop", "kk")
    once("-internal")
    expect_now({})


# The life of a service.

@case("life: start, stop, start again with another port, remove")
def _():
    r = Registrator()
    cid = run("-P", "--name", "aa")
    first = published("aa")
    expect({HOST + ":aa:5000": svc("python-micro-service", first)})
    docker("stop", "aa")
    expect({})
    docker("start", "aa")
    expect({HOST + ":aa:5000": svc("python-micro-service", published("aa"))})
    docker("restart", "aa")
    expect({HOST + ":aa:5000": svc("python-micro-service", published("aa"))})
    docker("rm", "-f", "aa")
    expect({})
    same("added lines", 3, r.log().count("added: %s " % cid[:12]))


@case("life: --rm, and a container that cannot start")
def _():
    r = Registrator()
    run("--name", "aa", "--rm", "-p", "8001:80", image="plain")
    expect({HOST + ":aa:80": svc("plain", 8001)})
    sh("docker", "run", "-d", "--name", "bad", "-p", "8002:80", "plain",
       "/no/such/program", check=False)
    docker("stop", "aa")
    expect({})
    run("--name", "bb", "-p", "8003:80", image="plain")
    expect({HOST + ":bb:80": svc("plain", 8003)})
    r.stop()


@case("life: rename")
def _():
    p = Proxy()
    r = Registrator(uri=p.uri)
    run("--name", "aa", "-p", "8001:80", image="plain")
    expect({HOST + ":aa:80": svc("plain", 8001)})
    docker("rename", "aa", "bb")
    expect({HOST + ":bb:80": svc("plain", 8001)})
    passes(r, p)
    same("writes", [("register", HOST + ":aa:80", ""),
                    ("register", HOST + ":bb:80", ""),
                    ("deregister", HOST + ":aa:80")], p.paths())
    docker("stop", "bb")
    expect({})


@case("life: pause and unpause change nothing")
def _():
    p = Proxy()
    r = Registrator(uri=p.uri)
    run("--name", "aa", "-p", "8001:80", image="plain")
    want = {HOST + ":aa:80": svc("plain", 8001)}
    expect(want)
    docker("pause", "aa")
    passes(r, p)
    expect_now(want)
    again = once(uri=p.uri)             # a start while it is paused
    again.exit()
    docker("unpause", "aa")
    passes(r, p)
    expect_now(want)
    same("writes", [("register", HOST + ":aa:80", "")], p.paths())


@case("life: network connect and disconnect")
def _():
    docker("network", "create", "n-a")
    docker("network", "create", "n-b")
    p = Proxy()
    r = Registrator("-internal", uri=p.uri)
    run("--name", "aa", "--net", "n-b")
    name = "python-micro-service"
    i = HOST + ":aa:5000"
    expect({i: svc(name, 5000, address("aa", "n-b"))})
    docker("network", "connect", "n-a", "aa")        # NetworkMode stays
    passes(r, p)
    expect_now({i: svc(name, 5000, address("aa", "n-b"))})
    docker("network", "disconnect", "n-b", "aa")
    expect({i: svc(name, 5000, address("aa", "n-a"))})
    docker("network", "connect", "n-b", "aa")
    expect({i: svc(name, 5000, address("aa", "n-b"))})
    same("writes", 3, len(p.puts()))


@case("life: network connect of a published container causes no write")
def _():
    docker("network", "create", "n-a")
    p = Proxy()
    r = Registrator(uri=p.uri)
    run("--name", "aa", "-p", "8001:5000")
    want = {HOST + ":aa:5000": svc("python-micro-service", 8001)}
    expect(want)
    docker("network", "connect", "n-a", "aa")
    passes(r, p)
    docker("network", "disconnect", "n-a", "aa")
    passes(r, p)
    expect_now(want)
    same("writes", 1, len(p.puts()))


def crash(name):
    """The container ends on its own with status 1."""
    docker("exec", name, "kill", "-USR1", "1", check=False)


@case("life: crash with --restart always and on-failure:1")
def _():
    Registrator()
    run("--name", "aa", "-P", "--restart", "always")
    run("--name", "ff", "-P", "--restart", "on-failure:1")
    name = "python-micro-service"

    def now(*names):
        return {HOST + ":%s:5000" % n: svc(name, published(n))
                for n in names}
    expect(now("aa", "ff"))
    crash("aa")
    wait_for("its restart", lambda: inspect("aa")["RestartCount"] == 1 and
             inspect("aa")["NetworkSettings"]["Ports"])
    expect(now("aa", "ff"))
    crash("ff")
    wait_for("its restart", lambda: inspect("ff")["RestartCount"] == 1 and
             inspect("ff")["NetworkSettings"]["Ports"])
    expect(now("aa", "ff"))
    crash("ff")                                      # and that was the last
    wait_for("its end", lambda: inspect("ff")["State"]["Status"] == "exited")
    expect(now("aa"))


@case("-deregister on-success: exit 0, 1, 137, --rm; kept over a restart")
def _():
    options = ("-deregister", "on-success")
    r = Registrator(*options)
    for i, name in enumerate(("zero", "one", "killed", "gone")):
        run("--name", name, "-p", "%d:80" % (8001 + i), image="plain",
            *(("--rm",) if name == "gone" else ()))
    want = {HOST + ":%s:80" % n: svc("plain", 8001 + i)
            for i, n in enumerate(("zero", "one", "killed", "gone"))}
    expect(want)
    docker("stop", "zero")                          # exits with 0
    docker("kill", "killed")                        # 137
    docker("stop", "gone")
    crash("one")                                    # 1
    wait_for("its end",
             lambda: inspect("one")["State"]["Status"] == "exited")
    same("status", 1, inspect("one")["State"]["ExitCode"])
    want = {HOST + ":one:80": svc("plain", 8002)}
    expect(want)
    r.stop()
    p = Proxy()
    r = Registrator(*options, uri=p.uri)
    run("--name", "next", "-p", "8005:80", image="plain")
    want[HOST + ":next:80"] = svc("plain", 8005)
    expect(want)
    passes(r, p)
    expect_now(want)                                # it is no ghost
    docker("start", "one")
    passes(r, p)
    expect_now(want)
    docker("stop", "one")
    del want[HOST + ":one:80"]
    expect(want)


@case("-deregister always: a container that failed is removed")
def _():
    Registrator()
    run("--name", "one", "-p", "8001:80", image="plain")
    expect({HOST + ":one:80": svc("plain", 8001)})
    crash("one")
    expect({})


@case("a storm of starts and stops ends right")
def _():
    Registrator()
    names = ["c%d" % i for i in range(8)]
    for i, n in enumerate(names):
        run("--name", n, "-P", "-e", "SERVICE_TAGS=t%d" % i)
    docker("restart", *names)
    docker("stop", *names[:6])
    docker("start", *names[:4])
    docker("kill", *names[2:4])
    docker("start", names[3])
    up = (0, 1, 3, 6, 7)
    expect({HOST + ":c%d:5000" % i: svc("python-micro-service",
                                        published("c%d" % i),
                                        tags=["t%d" % i]) for i in up})


# Checks.

def check_case(labels, port="8001:80", options=(), name="cc"):
    """A container with these labels, registered through a proxy: what was
    sent of its check, and the service's ID."""
    p = Proxy()
    cid = run("--name", name, "-p", port, image="plain",
              *sum((["-l", "SERVICE_CHECK_%s=%s" % kv]
                    for kv in labels.items()), []))
    once(*options, uri=p.uri)
    i = "%s:%s:%s" % (HOST, name, port.split(":")[1])
    if i not in services():
        raise Failure("not registered: %r" % services())
    check = dict(p.sent(i)["Check"])
    for key in ("CheckID", "Name"):
        check.pop(key, None)
    return check, i, cid, p


def consul_says(i, status, output=None):
    """How the check of this service stands in Consul."""
    wait_same("status of the check", status,
              lambda: checks().get(i, {}).get("Status"))
    if output is not None:
        wait_for("output with %r" % output, lambda: output in
                 (checks()[i]["Output"] or ""))


@case("check: http, method and defaults")
def _():
    check, i, _, _ = check_case({"HTTP": "/health?a=b", "HTTP_METHOD": "HEAD"})
    same("sent", {"HTTP": "http://%s:8001/health?a=b" % ADV, "Method": "HEAD",
                  "Interval": "10s"}, check)
    consul_says(i, "critical")


@case("check: http that passes")
def _():
    run("--name", "web", "-p", "8001:5000", "-l", "SERVICE_CHECK_HTTP=/",
        "-l", "SERVICE_CHECK_INTERVAL=1s", "-l", "SERVICE_CHECK_TIMEOUT=2s",
        image=IMG, cmd=("httpd", "-f", "-p", "5000", "-h", "/bin"))
    run("--name", "dot", "-p", "8002:5000", "-l", "SERVICE_CHECK_HTTP=/sh",
        "-l", "SERVICE_CHECK_INTERVAL=1s", "-l",
        "SERVICE_CHECK_INITIAL_STATUS=passing",
        image=IMG, cmd=("httpd", "-f", "-p", "5000", "-h", "/bin"))
    once()
    consul_says(HOST + ":dot:5000", "passing", "200 OK")
    consul_says(HOST + ":web:5000", "critical", "404")


@case("check: https, interval, timeout, skip verify, deregister after")
def _():
    check, i, _, _ = check_case({
        "HTTPS": "/h", "HTTPS_METHOD": "PUT", "INTERVAL": "20s",
        "TIMEOUT": "3s", "TLS_SKIP_VERIFY": "true",
        "INITIAL_STATUS": "warning", "DEREGISTER_AFTER": "10m"})
    same("sent", {"HTTP": "https://%s:8001/h" % ADV, "Method": "PUT",
                  "Interval": "20s", "Timeout": "3s", "TLSSkipVerify": True,
                  "Status": "warning",
                  "DeregisterCriticalServiceAfter": "10m"}, check)
    if i not in checks():
        raise Failure("no check: %r" % checks())


@case("check: cmd")
def _():
    check, i, cid, _ = check_case({"CMD": "/bin/probe -x 'a b'",
                                   "INTERVAL": "1s"})
    same("sent", {"Args": ["check-cmd", cid[:12], "80",
                           "/bin/probe -x 'a b'"], "Interval": "1s"}, check)
    consul_says(i, "passing", "check-cmd %s 80 /bin/probe -x 'a b'" % cid[:12])


@case("check: script")
def _():
    check, i, _, _ = check_case({
        "SCRIPT": "echo at $SERVICE_IP:$SERVICE_PORT; exit 1",
        "INTERVAL": "1s"})
    same("sent", {"Args": ["/bin/sh", "-c",
                           "echo at %s:8001; exit 1" % ADV],
                  "Interval": "1s"}, check)
    consul_says(i, "warning", "at %s:8001" % ADV)


@case("check: ttl")
def _():
    check, i, _, _ = check_case({"TTL": "300s", "INTERVAL": "5s"})
    same("sent", {"TTL": "300s"}, check)
    consul_says(i, "critical")
    same("type", "ttl", checks()[i]["Type"])


@case("check: tcp")
def _():
    check, i, _, _ = check_case({"TCP": "true", "INTERVAL": "1s",
                                 "TIMEOUT": "2s"})
    same("sent", {"TCP": ADV + ":8001", "Interval": "1s", "Timeout": "2s"},
         check)
    consul_says(i, "critical", ADV + ":8001")


@case("check: grpc")
def _():
    check, i, _, _ = check_case({"GRPC": "true", "GRPC_USE_TLS": "true",
                                 "TLS_SKIP_VERIFY": "true", "TIMEOUT": "1s"})
    same("sent", {"GRPC": ADV + ":8001", "GRPCUseTLS": True,
                  "TLSSkipVerify": True, "Interval": "10s", "Timeout": "1s"},
         check)
    if i not in checks():
        raise Failure("no check: %r" % checks())


@case("check: the first kind wins, an empty one is not there; per port")
def _():
    check, i, _, _ = check_case({"TTL": "30s", "TCP": "true", "HTTP": "/x",
                                 "HTTPS": ""})
    same("sent", {"HTTP": "http://%s:8001/x" % ADV, "Interval": "10s"}, check)
    same("attributes", {"check_ttl": "30s", "check_tcp": "true",
                        "check_http": "/x"},
         {k: v for k, v in services()[i]["meta"].items() if v})
    run("--name", "dd", "-p", "8002:80", "-p", "8003:81", "-l",
        "SERVICE_81_CHECK_TTL=30s", image="plain")
    once()
    same("checks", [HOST + ":cc:80", HOST + ":dd:81"], sorted(checks()))


@case("check: IPv6 in brackets")
def _():
    p = Proxy()
    for i, kind in enumerate(("HTTP=/x", "TCP=true", "GRPC=true")):
        run("--name", "c%d" % i, "-p", "%d:80" % (8001 + i), "-l",
            "ip=2001:db8::1/64", "-l", "SERVICE_CHECK_" + kind, image="plain")
    once("-useIpFromLabel", "ip", uri=p.uri)
    sent = [p.sent(HOST + ":c%d:80" % i) for i in range(3)]
    same("addresses", ["2001:db8::1"] * 3, [s["Address"] for s in sent])
    same("checks", ["http://[2001:db8::1]:8001/x", "[2001:db8::1]:8002",
                    "[2001:db8::1]:8003"],
         [sent[0]["Check"]["HTTP"], sent[1]["Check"]["TCP"],
          sent[2]["Check"]["GRPC"]])


@case("check: a refused one holds up nobody, Consul's words are in the log")
def _():
    r = Registrator()
    run("--name", "bad", "-p", "8001:80", "-l", "SERVICE_CHECK_TTL=10x",
        image="plain")
    run("--name", "good", "-p", "8002:80", image="plain")
    expect({HOST + ":good:80": svc("plain", 8002)})
    r.wait_log("register failed: %s:bad:80 .*time: unknown unit" % HOST)
    run("--name", "late", "-p", "8003:80", image="plain")
    expect({HOST + ":good:80": svc("plain", 8002),
            HOST + ":late:80": svc("plain", 8003)})
    docker("rm", "-f", "bad")
    run("--name", "bad", "-p", "8001:80", image="plain")
    wait_for("the mended one", lambda: HOST + ":bad:80" in ids())
    r.stop()


@case("-once: status 1 when a registration is refused, the rest is done")
def _():
    run("--name", "bad", "-p", "8001:80", "-l", "SERVICE_CHECK_TTL=10x",
        image="plain")
    run("--name", "good", "-p", "8002:80", image="plain")
    r = once(want=1)
    expect_now({HOST + ":good:80": svc("plain", 8002)})
    r.wait_log("time: unknown unit")


# Writes at rest, and no more than needed.

KINDS = {"http": "/x", "https": "/x", "cmd": "true", "script": "exit 0",
         "ttl": "300s", "tcp": "true", "grpc": "true"}


def every_kind():
    for i, (kind, value) in enumerate(KINDS.items()):
        run("--name", kind, "-p", "%d:80" % (8001 + i), image="plain",
            *sum((["-l", label] for label in (
                "SERVICE_CHECK_%s=%s" % (kind.upper(), value),
                "SERVICE_CHECK_INTERVAL=90s", "SERVICE_CHECK_TIMEOUT=1500ms",
                "SERVICE_CHECK_DEREGISTER_AFTER=90m", "SERVICE_TAGS=b,a,b",
                "SERVICE_REGION=\u00e9 \"x\" <&>", "SERVICE_EMPTY=")), []))
    run("--name", "bare", "-p", "8020:80", image="plain")
    docker("network", "create", "proj_default")
    run("--name", "proj_web_1", "--net", "proj_default", "-p", "8021:53",
        "-p", "8021:53/udp", image="plain")


@case("at rest: no write at a resync or a restart, whatever the services are")
def _():
    every_kind()
    p = Proxy()
    r = Registrator("-tags", "x,y", uri=p.uri)
    wait_for("all", lambda: len(ids()) == 10)
    passes(r, p)
    same("writes", sorted((("register", i, "") for i in ids())),
         sorted(p.paths()))
    r.stop()
    once("-tags", "x,y", uri=p.uri)
    r = Registrator("-tags", "x,y", uri=p.uri)
    r.wait_log("Syncing services on")
    passes(r, p)
    same("number of writes", 10, len(p.puts()))


@case("at rest: -resync SECONDS asks again, and writes nothing")
def _():
    p = Proxy()
    run("--name", "aa", "-p", "8001:80", image="plain")
    Registrator("-resync", "1", uri=p.uri)
    expect({HOST + ":aa:80": svc("plain", 8001)})
    seen = p.lists()
    wait_for("two resyncs", lambda: p.lists() >= seen + 2)
    same("number of writes", 1, len(p.puts()))


@case("a changed tag, check, port, address: one write each; "
      "a passing TTL stays passing")
def _():
    p = Proxy()
    i = HOST + ":aa:80"

    def change(port="8001", labels=(), options=()):
        """The container anew, while registrator is not there to see it."""
        docker("rm", "-f", "aa", check=False)
        run("--name", "aa", "-p", port + ":80", image="plain",
            *sum((["-l", "SERVICE_" + x] for x in labels), []))
        before = len(p.puts())
        once(*options, uri=p.uri)
        return p.paths()[before:]

    ttl = "CHECK_TTL=300s"
    plain, replacing = ("register", i, ""), ("register", i, "replace")

    def wrote(want, got):
        got = [(g[0], g[1], "replace" if "replace-existing-checks" in g[2]
                else "") for g in got]
        same("writes", want, got)

    wrote([plain], change(labels=[ttl]))
    check_id = [k for k, c in get("/v1/agent/checks").items()
                if c["ServiceID"] == i][0]
    put("/v1/agent/check/pass/" + quote(check_id, safe="") + "?note=fine")
    consul_says(i, "passing")
    wrote([], change(labels=[ttl]))
    wrote([plain], change(labels=[ttl, "TAGS=new"]))
    consul_says(i, "passing", "fine")
    same("tags", ["new"], services()[i]["tags"])
    wrote([plain], change(labels=[ttl, "TAGS=new,more"]))
    wrote([plain], change(labels=[ttl, "TAGS=more,new"]))
    wrote([plain], change(labels=[ttl, "REGION=eu"]))
    wrote([plain], change("8002", [ttl, "REGION=eu"]))
    wrote([plain], change("127.0.0.1:8002", [ttl, "REGION=eu"]))
    wrote([plain], change("8002", [ttl, "REGION=eu", "NAME=other"]))
    consul_says(i, "passing", "fine")
    wrote([replacing], change("8002", ["CHECK_TTL=301s"]))
    same("number of checks", 1, len(get("/v1/agent/checks")))
    wrote([replacing], change("8002", ["CHECK_TCP=true"]))
    same("types", ["tcp"], [c["Type"] for c in
                            get("/v1/agent/checks").values()])
    wrote([replacing], change("8002", ["CHECK_TCP=true",
                                       "CHECK_INTERVAL=20s"]))
    wrote([replacing], change("8002"))
    same("checks", {}, get("/v1/agent/checks"))
    wrote([], change("8002"))


@case("an entry changed or removed behind its back: one write mends it")
def _():
    p = Proxy()
    names = ("aa", "bb", "cc", "dd")
    for i, n in enumerate(names):
        run("--name", n, "-p", "%d:80" % (8001 + i), "-e", "SERVICE_TAGS=t",
            image="plain")
    r = Registrator(uri=p.uri)
    want = {HOST + ":%s:80" % n: svc("plain", 8001 + i, tags=["t"])
            for i, n in enumerate(names)}
    expect(want)
    passes(r, p)
    before = len(p.puts())
    entries = get("/v1/agent/services")

    def edit(n, **change):
        e = entries[HOST + ":%s:80" % n]
        put("/v1/agent/service/register",
            {"ID": e["ID"], "Name": e["Service"], "Port": e["Port"],
             "Address": e["Address"], "Tags": e["Tags"], "Meta": e["Meta"],
             **change})
    edit("aa", Tags=["other"])
    edit("bb", Port=9999)
    deregister(HOST + ":cc:80")
    passes(r, p)
    expect(want)
    edit("dd", Meta={})                             # no longer marked ours
    passes(r, p)
    expect(want)
    passes(r, p)
    same("IDs written", [HOST + ":%s:80" % n for n in names],
         sorted(w[1] for w in p.paths()[before:]))


# Trouble.

@case("ghosts after kill -9: removed at the start, what is new is added")
def _():
    run("--name", "stays", "-p", "8001:80", image="plain")
    run("--name", "goes", "-p", "8002:80", image="plain")
    run("--name", "renamed", "-p", "8003:80", image="plain")
    r = Registrator()
    wait_for("all", lambda: len(ids()) == 3)
    r.kill()
    docker("rm", "-f", "goes")
    docker("rename", "renamed", "other")
    run("--name", "new", "-p", "8004:80", image="plain")
    p = Proxy()
    once(uri=p.uri)
    expect_now({HOST + ":stays:80": svc("plain", 8001),
                HOST + ":other:80": svc("plain", 8003),
                HOST + ":new:80": svc("plain", 8004)})
    same("number of writes", 4, len(p.puts()))


@case("ghosts of another host name, with our mark, are removed")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    r = Registrator()
    wait_for("it", lambda: len(ids()) == 1)
    r.kill()
    socket.sethostname("renamed-host")
    try:
        once()
        expect_now({"renamed-host:aa:80": svc("plain", 8001)})
    finally:
        socket.sethostname(HOST)


@case("two registrators, -internal and not: neither removes the other's")
def _():
    run("--name", "aa", "-p", "8001:5000")
    once("-hostname", "one")
    once("-hostname", "two", "-internal")
    once("-hostname", "one")
    name = "python-micro-service"
    want = {"one:aa:5000": svc(name, 8001),
            "two:aa:5000": svc(name, 5000, address("aa"))}
    expect_now(want)
    docker("rm", "-f", "aa")
    once("-hostname", "two", "-internal")
    del want["two:aa:5000"]
    expect_now(want)


OTHERS = ({"ID": "by-hand", "Name": "by-hand", "Port": 1},
          {"ID": HOST + ":gone:80", "Name": "x", "Port": 2},
          {"ID": HOST + ":gone:81:udp", "Name": "x", "Port": 3},
          {"ID": "otherhost:xx:80", "Name": "x", "Port": 4},
          {"ID": HOST + ":xx:y", "Name": "x", "Port": 5},
          {"ID": "marked", "Name": "x", "Port": 6,
           "Meta": {"registrator": "0123456789abcdef-" + 4 * "012345"}})


@case("another's entries are left alone")
def _():
    for entry in OTHERS:
        put("/v1/agent/service/register", entry)
    p = Proxy()
    r = Registrator(uri=p.uri)
    run("--name", "aa", "-p", "8001:80", image="plain")
    wait_for("ours", lambda: HOST + ":aa:80" in ids())
    passes(r, p)
    docker("stop", "aa")
    wait_for("its end", lambda: HOST + ":aa:80" not in ids())
    passes(r, p)
    same("IDs", sorted(e["ID"] for e in OTHERS), ids())


@case("-cleanup: unmarked ones of our host name go, all others stay")
def _():
    for entry in OTHERS:
        put("/v1/agent/service/register", entry)
    run("--name", "aa", "-p", "8001:80", image="plain")
    r = once("-cleanup")
    same("IDs", sorted([HOST + ":aa:80", "by-hand", "otherhost:xx:80",
                        HOST + ":xx:y", "marked"]), ids())
    r.wait_log("dangling: %s:gone:80" % HOST)


@case("an agent restarted empty: registered again")
def _():
    names = ("aa", "bb", "cc")
    for i, n in enumerate(names):
        run("--name", n, "-p", "%d:80" % (8001 + i), image="plain")
    p = Proxy()
    r = Registrator("-resync", "0", uri=p.uri)
    want = {HOST + ":%s:80" % n: svc("plain", 8001 + i)
            for i, n in enumerate(names)}
    expect(want)
    saved = [b for q, b in p.puts() if HOST + ":aa:80" in b.decode()][0]
    r.proc.send_signal(signal.SIGSTOP)
    consul.kill()
    consul.start()
    same("services", {}, services())
    put("/v1/agent/service/register", saved)        # a is there again
    before = len(p.puts())
    r.proc.send_signal(signal.SIGCONT)
    expect(want)
    passes(r, p)
    same("IDs written", [HOST + ":bb:80", HOST + ":cc:80"],
         sorted(w[1] for w in p.paths()[before:]))


@case("Consul away: containers come and go, and it is right when it is back")
def _():
    run("--name", "stays", "-p", "8001:80", image="plain")
    run("--name", "goes", "-p", "8002:80", image="plain")
    r = Registrator()
    wait_for("both", lambda: len(ids()) == 2)
    consul.kill()
    docker("rm", "-f", "goes")
    run("--name", "new", "-p", "8003:80", image="plain")
    docker("restart", "stays")
    time.sleep(0.5)
    consul.start()
    expect({HOST + ":stays:80": svc("plain", 8001),
            HOST + ":new:80": svc("plain", 8003)})
    same("end of registrator", None, r.proc.poll())


@case("registrator waits for Consul at the start")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    r = Registrator("-retry-interval", "100", uri="consul://127.0.0.1:8599")
    r.wait_log("consul")
    time.sleep(0.5)
    same("end of registrator", None, r.proc.poll())
    Proxy(8599)
    expect({HOST + ":aa:80": svc("plain", 8001)})
    r.stop()


@case("-retry-attempts 2: gives up with status 1")
def _():
    r = Registrator("-retry-attempts", "2", "-retry-interval", "100",
                    uri="consul://127.0.0.1:8599")
    r.exit(1)
    if "127.0.0.1:8599" not in r.log():
        raise Failure("the log does not say whom it cannot reach")


@case("registrator waits for the engine at the start")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    late = DIR + "/late.sock"
    r = Registrator(env={"DOCKER_HOST": "unix://" + late})
    r.wait_log(late)
    time.sleep(0.3)
    same("end of registrator", None, r.proc.poll())
    lines = sum(late in line for line in r.log().splitlines())
    os.symlink(SOCK, late)
    try:
        expect({HOST + ":aa:80": svc("plain", 8001)})
        same("times that it said so", 1, lines)
    finally:
        r.stop()
        os.unlink(late)


@case("the engine is stopped and started: the registry equals it at the end")
def _():
    r = Registrator()
    run("--name", "always", "-P", "--restart", "always")
    run("--name", "never", "-P")
    wait_for("both", lambda: len(ids()) == 2)
    engine.stop()
    engine.start()
    wait_for("its restart",
             lambda: inspect("always")["State"]["Running"])
    expect({HOST + ":always:5000": svc("python-micro-service",
                                       published("always"))})
    run("--name", "after", "-P")
    wait_for("the next container", lambda: HOST + ":after:5000" in ids())
    same("end of registrator", None, r.proc.poll())


@case("the engine is killed: services stay while it is away")
def _():
    r = Registrator()
    run("--name", "always", "-P", "--restart", "always")
    run("--name", "never", "-P")
    wait_for("both", lambda: len(ids()) == 2)
    before = services()
    engine.kill()
    holds("services went while the engine was away",
          lambda: services() == before, 1)
    engine.start()
    wait_for("its restart",
             lambda: inspect("always")["State"]["Running"] and
             inspect("always")["NetworkSettings"]["Ports"])
    expect({HOST + ":always:5000": svc("python-micro-service",
                                       published("always"))})
    same("end of registrator", None, r.proc.poll())


@case("1,000 published ports")
def _():
    engine.stop()
    engine.start("--iptables=false")                # a minute without
    try:
        r = Registrator()
        run("--name", "kk", "-p", "20000-20999:20000-20999", image="plain")
        expect({HOST + ":kk:%d" % p: svc("plain-%d" % p, p)
                for p in range(20000, 21000)})
        docker("rm", "-f", "kk")
        expect({})
        r.stop()
    finally:
        clean()
        engine.stop()
        engine.start()


# Access.

@case("ACL: a refused service holds up nobody, and no secret is in the log")
def _():
    server = (ADV, 8700)
    master = "5eed5eed-0000-4000-8000-00000000000a"
    secret = "5eed5eed-0000-4000-8000-00000000000b"
    agent = Agent("acl", server, client_addr=ADV, acl={
        "enabled": True, "default_policy": "deny",
        "tokens": {"master": master, "agent": master}},
        ports={"http": 8700, "dns": 8701, "server": 8702, "serf_lan": 8703,
               "serf_wan": 8704, "grpc": -1})
    agent.start(master)
    try:
        put("/v1/acl/policy", {"Name": "p", "Rules":
                               'service "good" { policy = "write" }'},
            server=server, token=master)
        run("--name", "aa", "-p", "8001:80", "-e", "SERVICE_NAME=good",
            image="plain")
        run("--name", "bb", "-p", "8002:80", "-e", "SERVICE_NAME=bad",
            image="plain")
        uri = "consul://%s:8700" % ADV
        token_file = DIR + "/token"
        with open(token_file, "w") as f:
            f.write(secret + "\n")
        r = Registrator("-log-level", "debug", uri=uri,
                        env={"CONSUL_HTTP_TOKEN_FILE": token_file})
        r.wait_log("ACL not found")
        # The token comes to be: a 403 makes the file be read again.
        put("/v1/acl/token", {"SecretID": secret, "Policies": [{"Name": "p"}]},
            server=server, token=master)
        r.resync()
        # The agent may not be asked what it advertises: its node's address.
        want = {HOST + ":aa:80": svc("good", 8001, "")}
        expect(want, server=server, token=master)
        r.wait_log("register failed: %s:bb:80 .*Permission denied" % HOST)
        if "service:write" not in r.log():
            raise Failure("not Consul's own words")
        docker("rm", "-f", "aa")
        expect({}, server=server, token=master)
        r.stop()
        run("--name", "aa", "-p", "8001:80", "-e", "SERVICE_NAME=good",
            image="plain")
        s = Registrator("-once", "-log-level", "debug", uri=uri,
                        env={"CONSUL_HTTP_TOKEN": secret})
        s.exit(1)
        expect(want, server=server, token=master)
        for log in (r.log(), s.log()):
            if secret in log:
                raise Failure("the token is in the log")
    finally:
        agent.kill()


@case("ACL: CONSUL_HTTP_TOKEN_FILE is read again after a 403")
def _():
    server = (ADV, 8700)
    master = "5eed5eed-0000-4000-8000-00000000000a"
    agent = Agent("acl2", server, client_addr=ADV, acl={
        "enabled": True, "default_policy": "deny",
        "tokens": {"master": master, "agent": master}},
        ports={"http": 8700, "dns": 8701, "server": 8702, "serf_lan": 8703,
               "serf_wan": 8704, "grpc": -1})
    agent.start(master)
    token_file = DIR + "/token2"
    try:
        with open(token_file, "w") as f:
            f.write("5eed5eed-0000-4000-8000-00000000000c\n")
        run("--name", "aa", "-p", "8001:80", image="plain")
        r = Registrator(uri="consul://%s:8700" % ADV,
                        env={"CONSUL_HTTP_TOKEN_FILE": token_file})
        r.wait_log("ACL not found")
        with open(token_file, "w") as f:
            f.write(master + "\n")
        r.resync()
        expect({HOST + ":aa:80": svc("plain", 8001)}, server=server,
               token=master)
    finally:
        agent.kill()


@case("an unreadable socket: one line with the path and what to do")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    os.chmod(SOCK, 0o660)
    r = Registrator(user=65534, group=65534, extra_groups=[])
    r.wait_log(SOCK)
    line = [x for x in r.log().splitlines() if SOCK in x][-1]
    if not re.search("(?i)permission denied", line) or "group" not in line:
        raise Failure("the line does not help: " + line)
    time.sleep(0.5)
    same("lines about it", 1, sum("ermission denied" in x
                                  for x in r.log().splitlines()))
    r.stop()


def answering(port, data):
    """A server that says this to whoever comes."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(16)
    came = []

    def serve():
        while True:
            try:
                s = listener.accept()[0]
            except OSError:
                return
            came.append(1)
            try:
                s.recv(65536)
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                s.recv(65536)
            except OSError:
                pass
            s.close()
    threading.Thread(target=serve, daemon=True).start()
    return listener, came


HTML = (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 27"
        b"\r\nConnection: close\r\n\r\n<html><body>hi</body></html"[:500])
ALERT = b"\x15\x03\x01\x00\x02\x02\x46"


def calm(r, came):
    """No crash, no busy loop, few words."""
    time.sleep(1.5)
    same("end of registrator", None, r.proc.poll())
    with open("/proc/%d/stat" % r.proc.pid) as f:
        used = sum(map(int, f.read().rsplit(")")[-1].split()[11:13]))
    if used > 50 or len(came) > 60:
        raise Failure("busy: %d ticks, %d connections" % (used, len(came)))
    if r.log().count("\n") > 30:
        raise Failure("too many words")
    r.stop()


@case("the wrong server instead of Consul: HTML, TLS; patience")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    for data in (HTML, ALERT):
        listener, came = answering(8590, data)
        try:
            r = Registrator(uri="consul://127.0.0.1:8590")
            wait_for("a connection", lambda: came)
            calm(r, came)
        finally:
            Proxy.shut(listener)
            listener.close()


@case("the wrong server instead of the engine: HTML, TLS; patience, "
      "and nothing is removed")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    once()
    want = {HOST + ":aa:80": svc("plain", 8001)}
    expect_now(want)
    for data in (HTML, ALERT):
        listener, came = answering(8591, data)
        try:
            r = Registrator(env={"DOCKER_HOST": "tcp://127.0.0.1:8591"})
            wait_for("a connection", lambda: came)
            calm(r, came)
            expect_now(want)
        finally:
            Proxy.shut(listener)
            listener.close()


# The program.

@case("-on-exit deregister; by default services stay; SIGTERM and SIGINT "
      "end with 0")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    put("/v1/agent/service/register", OTHERS[0])
    r = Registrator()
    wait_for("it", lambda: HOST + ":aa:80" in ids())
    r.stop()
    same("IDs", ["by-hand", HOST + ":aa:80"], ids())
    r = Registrator("-on-exit", "deregister")
    r.wait_log("Syncing services")
    r.stop(sig=signal.SIGINT)
    same("IDs", ["by-hand"], ids())
    r = Registrator("-on-exit=deregister")
    wait_for("it", lambda: HOST + ":aa:80" in ids())
    r.stop()
    same("IDs", ["by-hand"], ids())


@case("SIGHUP resyncs, SIGUSR1 logs a summary")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    r = Registrator("-resync", "0")
    expect({HOST + ":aa:80": svc("plain", 8001)})
    deregister(HOST + ":aa:80")
    r.resync()
    expect({HOST + ":aa:80": svc("plain", 8001)})
    r.proc.send_signal(signal.SIGUSR1)
    r.wait_log(r"1 container.*1 service")
    r.stop()


@case("process 1 of its own namespace ends on SIGTERM")
def _():
    r = Registrator(prefix=("unshare", "-p", "-f", "--kill-child"))
    r.wait_log("Listening for Docker events")
    with open("/proc/%d/task/%d/children" % (r.proc.pid, r.proc.pid)) as f:
        os.kill(int(f.read()), signal.SIGTERM)
    r.exit()


@case("print: each change is one line of JSON")
def _():
    cid = run("--name", "aa", "-p", "8001:80", image="plain")
    r = Registrator("-ip", "10.1.1.1", uri="print:")
    wait_for("a line", lambda: r.output().count("\n") == 1)
    docker("stop", "aa")
    wait_for("a second line", lambda: r.output().count("\n") == 2)
    for line in r.output().splitlines():
        json.loads(line)
        if HOST + ":aa:80" not in line:
            raise Failure("no ID in %s" % line)
    added = r.output().splitlines()[0]
    for text in ("plain", "10.1.1.1", "8001"):
        if text not in added:
            raise Failure("no %s in %s" % (text, added))
    r.stop()
    docker("start", "aa")
    out = once("-ip", "10.1.1.1", uri="print:").output()
    same("lines", 1, out.count("\n"))
    if "added: %s" % cid[:12] not in r.log():
        raise Failure("no log line")


@case("consul-unix://, CONSUL_HTTP_ADDR, the default address, localhost")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    sock = DIR + "/consul.sock"
    p = Proxy()
    for uri, env in (("consul-unix://" + sock, {}),
                     ("consul:", {"CONSUL_HTTP_ADDR": "unix://" + sock}),
                     ("consul:", {"CONSUL_HTTP_ADDR": "127.0.0.1:8599"}),
                     ("consul://", {}), ("consul:///", {}), ("consul:", {}),
                     ("consul://localhost", {}),
                     ("consul://127.0.0.1:8500",
                      {"CONSUL_HTTP_ADDR": "127.0.0.1:1"})):
        once(uri=uri, env=env)
        expect_now({HOST + ":aa:80": svc("plain", 8001)})
        deregister(HOST + ":aa:80")
    same("writes by the proxy", 1, len(p.puts()))


@case("DOCKER_HOST unset: /tmp/docker.sock, else /var/run/docker.sock")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    unset = {"DOCKER_HOST": None}
    once(env=unset)
    expect_now({HOST + ":aa:80": svc("plain", 8001)})
    deregister(HOST + ":aa:80")
    os.rename(SOCK, SOCK + ".away")
    os.symlink(SOCK + ".away", "/tmp/docker.sock")
    try:
        once(env=unset)
        expect_now({HOST + ":aa:80": svc("plain", 8001)})
    finally:
        os.rename(SOCK + ".away", SOCK)
        os.unlink("/tmp/docker.sock")


@case("DOCKER_HOST=tcp://")
def _():
    run("--name", "aa", "-p", "8001:80", image="plain")
    listener = socket.create_server(("127.0.0.1", 2375))

    def pump(a, b):
        try:
            while data := a.recv(65536):
                b.sendall(data)
        except OSError:
            pass
        Proxy.shut(a, b)

    def serve():
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(SOCK)
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()
    threading.Thread(target=serve, daemon=True).start()
    try:
        for host in ("tcp://127.0.0.1:2375", "http://127.0.0.1:2375"):
            once(env={"DOCKER_HOST": host})
            expect_now({HOST + ":aa:80": svc("plain", 8001)})
            deregister(HOST + ":aa:80")
    finally:
        Proxy.shut(listener)
        listener.close()


@case("what it asks the engine for: only GET, only what the contract lists")
def _():
    asked = []
    listener = socket.socket(socket.AF_UNIX)
    spy = DIR + "/spy.sock"
    listener.bind(spy)
    listener.listen(64)

    def requests(client, server):
        stream = client.makefile("rb")
        try:
            while line := stream.readline():
                head = line
                while (h := stream.readline()) not in (b"\r\n", b""):
                    head += h
                asked.append(line.decode("latin-1"))
                server.sendall(head + b"\r\n")
        except OSError:
            pass
        Proxy.shut(client, server)

    def answers(server, client):
        try:
            while data := server.recv(65536):
                client.sendall(data)
        except OSError:
            pass
        Proxy.shut(client, server)

    def serve():
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(SOCK)
            threading.Thread(target=requests, args=(client, server),
                             daemon=True).start()
            threading.Thread(target=answers, args=(server, client),
                             daemon=True).start()
    threading.Thread(target=serve, daemon=True).start()
    Registrator(env={"DOCKER_HOST": "unix://" + spy})
    docker("network", "create", "n-a")
    run("--name", "aa", "-p", "8001:80", image="plain")
    run("--name", "bb", "--net", "n-a", "-p", "8002:80", image="plain")
    run("--name", "cc", "--net", "container:aa", image="shares")
    wait_for("all", lambda: len(ids()) == 4)
    docker("rm", "-f", "aa", "bb", "cc")
    expect({})
    Proxy.shut(listener)
    listener.close()
    os.unlink(spy)
    allowed = r"GET (/v1\.\d+)?/(version|_ping|info|events(\?[^ ]*)?|" \
        r"containers/json(\?[^ ]*)?|containers/[0-9a-f]+/json|" \
        r"networks(/[^/ ]+)?) HTTP/1\.[01]\r\n"
    bad = [a for a in asked if not re.fullmatch(allowed, a)]
    same("requests that the contract does not list", [], bad)
    if not asked:
        raise Failure("nothing was asked")


def world(binary, run_cases):
    """Inside: makes the world, and what is to be done in it; exit status."""
    prepare(binary)
    engine.start()
    consul.start()
    images()
    failed = run_cases()
    engine.stop()
    consul.kill()
    return 1 if failed else 0


if __name__ == "__main__":
    enter("e2e", lambda binary, *words: world(binary, lambda: play(words)))
