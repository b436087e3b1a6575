#!/usr/bin/env python3
"""What registrator may do once it has started, and that it does no more.

    python3 tests/power.py ./registrator [WORD...]  only cases that have a WORD

In namespaces of its own, with the engine and the Consul of e2e.py, a name
server of a few names, strace, and tests/power.c, which has registrator.c in
it.  Needs what e2e.py needs, and strace and musl-gcc.  Prints a line a case.
"""
import glob
import http.client
import os
import re
import socket
import struct
import threading

import e2e
from e2e import (ADV, DIR, HOST, SOCK, TOP, Failure, Registrator, deregister,
                 docker, expect, once, run, same, sh, svc, wait_for)

CC = os.environ.get("POWER_CC", "musl-gcc")
HELPER = DIR + "/power/power"
WARNING = r"not as confined as it could be: (.*)"
cases = []


def case(name):
    def add(function):
        cases.append((name, function))
        return function
    return add


# ---- the list of system calls ----------------------------------------------

def read_source():
    with open(TOP + "/registrator.c") as f:
        return f.read()


def head_lists(all_machines=False):
    """The two lists at the head: (once started, before)."""
    lists = re.findall(r"(?m)(?:^ \*     [a-z].*\n)+", re.search(
        r"by seccomp(.*?)\n \* The rules", read_source(), re.S)[1])
    same("lists of system calls at the head", 2, len(lists))
    if not all_machines and os.uname().machine == "x86_64":
        lists[0] = lists[0].partition("arm64:")[0]
    return [set(re.findall(r"[a-z]\w+(?![\w:])", x)) for x in lists]


def words(sets):
    return " ".join(sorted(sets)) or "none"


@case("the list at the head is that of the filter, for all machines")
def _():
    code = re.search(r"const struct os_step step\[\] = \{.*?\n    \};",
                     read_source(), re.S)[0]
    filtered = set(re.findall(r"\bSYS_(\w+)", code))
    head = head_lists(all_machines=True)[0]
    same("only at the head", "none", words(head - filtered))
    same("only in the filter", "none", words(filtered - head))


# Of these the filter looks at an argument, and refuses -1.
RULED = {"open", "mmap", "fcntl", "mprotect", "tkill", "ioctl", "socket"}


@case("the list at the head is that of the kernel")
def _():
    only_x86()
    listed = sorted(head_lists()[0] - RULED)
    with open(DIR + "/calls", "w") as f:
        f.write("\n".join("SYS_" + name for name in listed))
    with open(DIR + "/calls") as f:
        numbers = sh(CC, "-E", "-P", "-include", "sys/syscall.h", "-x", "c",
                     "-", stdin=f).split()
    names = dict(zip(numbers, listed))
    status, out = helper("calls")
    same("allowed", words(listed), words(names.get(n, n) for n in out.split()))


@case("the kernel looks at arguments")
def _():
    passes("arguments")


# ---- what it calls ---------------------------------------------------------

class Traced(Registrator):
    """Under strace, which is not between it and its signals."""

    def __init__(self, *options, **kw):
        self.trace = "%s/logs/strace.%d" % (DIR, Registrator.count)
        super().__init__(*options, prefix=["strace", "-D", "-f", "-o",
                                           self.trace], **kw)

    def lines(self):
        with open(self.trace, errors="replace") as f:
            return f.read()

    def calls(self):
        """When it has ended: [(system call, line)] before and after it has
        given up the rest."""
        wait_for("the end of the trace", lambda: "+++ exited" in self.lines())
        before, after = [], []
        into = before
        for line in self.lines().split("\n"):
            found = re.match(r"\d+ +(\w+)\(", line)
            if not found:
                continue
            into.append((found[1], line))
            if "PR_SET_SECCOMP" in line:
                into = after
        return before, after


seen_before, seen_after = set(), set()


def check_calls(r, confined=True):
    once_started, before = head_lists()
    start, rest = r.calls()
    wrong = [line for name, line in start
             if name not in once_started | before]
    wrong += [line for name, line in rest if name not in once_started]
    if wrong:
        raise Failure("calls that the head does not list\n" +
                      "\n".join(wrong[:20]))
    same("it has confined itself", confined, bool(rest))
    refused = [line for _, line in rest if "ENOSYS" in line or
               ("EACCES" in line and "open" in line)]
    if refused:
        raise Failure("calls that were refused\n" + "\n".join(refused[:20]))
    if confined:
        seen_before.update(name for name, _ in start)
        seen_after.update(name for name, _ in rest)


def no_warnings(r, but=None):
    """Of what it has logged, which line is not of the usual ones."""
    usual = (r"Starting|Using|consul: current|Listening|Syncing|in sync|added|"
             r"removed|ignored|summary|waiting")
    for more in (but, had() != "all" and WARNING):
        usual += "|" + more if more else ""
    odd = [line for line in r.log().splitlines() if not re.match(
        r"\S+ \S+ registrator: (" + usual + ")", line)]
    same("lines of the log", [], odd)


def web(name="web", port=8001):
    run("--name", name, "-p", "%d:80" % port, image="plain")
    return {"%s:%s:80" % (HOST, name): svc("plain", port)}


def session(options, uri, env, confined):
    """All that may happen to it, but for trouble."""
    want = web()
    r = Traced("-on-exit", "deregister", *options, uri=uri, env=env)
    expect(want)
    docker("kill", "web")
    expect({})
    docker("start", "web")
    expect(want)
    deregister(HOST + ":web:80")
    r.resync()
    expect(want)
    r.proc.send_signal(10)                  # SIGUSR1
    wait_for("the summary", lambda: "summary: " in r.log())
    r.proc.send_signal(19)                  # SIGSTOP
    wait_for("the stop", lambda: "stopped by SIGSTOP" in r.lines())
    r.proc.send_signal(18)                  # SIGCONT: restart_syscall
    docker("network", "create", "n-a")
    run("--name", "bb", "--net", "n-a", "--expose", "81", image="plain")
    run("--name", "cc", "-p", "8002:80", image="plain")
    want[HOST + ":cc:80"] = svc("plain", 8002)
    expect(want)
    r.stop()
    expect({})
    check_calls(r, confined)
    no_warnings(r, "consul: what was written is not listed")    # by us


@case("what it calls: unix socket to the engine, TCP and a name to Consul")
def _():
    session(["-ip", "wire0"], "consul://agent.test:8500", {}, True)


@case("what it calls: TCP to the engine, unix socket to Consul")
def _():
    gate = Gate(("127.0.0.1", 2375), SOCK)
    try:
        session([], "consul-unix://%s/consul.sock" % DIR,
                {"DOCKER_HOST": "tcp://engine.test:2375"}, True)
    finally:
        gate.close()


@case("what it calls: TLS to Consul")
def _():
    session([], "consul-tls://127.0.0.1", {"CONSUL_CACERT": DIR + "/cert.pem"},
            True)


@case("what it calls: the same without confinement")
def _():
    session(["-confine=false", "-ip", "wire0"], "consul://agent.test:8500",
            {}, False)


@case("what it calls: a token that is read again after a 403")
def _():
    token = [b"first"]
    gate = Gate(("127.0.0.1", 8599), e2e.CONSUL, lambda head:
                b"\nX-Consul-Token: " + token[0] + b"\r\n" in head)
    os.makedirs(DIR + "/token.d")
    file = DIR + "/token.d/token"

    def write(text):
        with open(file + ".new", "wb") as f:
            f.write(text)
        os.rename(file + ".new", file)
    write(b"first\n")
    want = web()
    r = Traced(uri="consul://127.0.0.1:8599",
               env={"CONSUL_HTTP_TOKEN_FILE": file})
    try:
        expect(want)
        token[0] = b"second"
        write(b"second\n")
        deregister(HOST + ":web:80")
        r.resync()
        expect(want)
        r.stop()
        check_calls(r)
        before, after = r.calls()
        if not any("token.d/token" in line for _, line in after):
            raise Failure("the file was not read again")
    finally:
        gate.close()


@case("what it calls: names that do not exist, peers that are not there")
def _():
    r = Traced("-once", "-ip", "none0", uri="consul://none.invalid")
    r.exit(1)
    check_calls(r)
    r = Traced("-retry-interval", "50", uri="consul://127.0.0.1:1",
               env={"DOCKER_HOST": "unix:///run/nobody.sock"})
    r.wait_log("consul: .*trying again")
    r.wait_log("docker: .*trying again")
    r.stop()
    check_calls(r)


@case("what it calls: SIGTERM while a name server is silent")
def _():
    r = Traced(uri="consul://agent.silent")
    wait_for("its question", lambda: unanswered)
    r.stop()
    check_calls(r)
    same("the end", ["SIGTERM", "setitimer", "SIGALRM", "exit_group"],
         re.findall(r"(?m)^\d+ +(?:--- )?(SIG\w+|setitimer|exit_group)\b",
                    r.lines()))


@case("what it calls: print:, and this machine's name")
def _():
    web()
    r = Traced("-once", "-ip", ADV, uri="print:")
    r.exit()
    check_calls(r)
    same("lines", 1, r.output().count("\n"))
    r = Traced("-once", uri="print:")
    r.exit()
    check_calls(r)
    same("its address", [ADV], re.findall('"Address":"(.*?)"', r.output()))


@case("what it calls before: the other list at the head")
def _():
    if not seen_before:
        raise e2e.Skip("no session was traced")
    only_x86()
    once_started, before = head_lists()
    same("system calls", words(before), words(seen_before - once_started))
    print("# listed and not seen: " + words(once_started - seen_after))


# ---- what it cannot do -----------------------------------------------------

def helper(*args):
    r = sh(HELPER, *args, check=False)
    return r.returncode, r.stdout.decode()


def passes(*args):
    status, out = helper(*args)
    for line in out.splitlines():
        if line.startswith("#"):
            print(line)
    if status != 0:
        raise Failure("tests/power.c: %d\n%s" % (status, out))


def had():
    """Whether there is a sandbox here: "all", or the reason of the warning."""
    return helper("had")[1].strip()


def only_x86():
    if os.uname().machine != "x86_64":
        raise e2e.Skip("that list is of x86-64")
    if had() != "all":
        raise e2e.Skip("this kernel has less: " + had())


@case("what must fail when confined, what must work")
def _():
    passes("tries", DIR + "/power")


def status_of(pid):
    with open("/proc/%s/status" % pid) as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f)


def confined(pid, filters=1):
    """As the kernel says it; filters are those that we have not."""
    got, ours = status_of(pid), status_of("self")
    same("Seccomp", "2" if filters else ours["Seccomp"], got["Seccomp"])
    same("NoNewPrivs", "1", got["NoNewPrivs"])
    if "Seccomp_filters" in got:        # since Linux 5.9
        same("filters", filters, int(got["Seccomp_filters"]) -
             int(ours["Seccomp_filters"]))


def readable(pid, user):
    """The files of /proc/PID that this user can read."""
    out = sh("/bin/sh", "-c", "for f in environ maps mem; do "
             "dd if=/proc/$0/$f bs=1 count=0 2>/dev/null && echo $f; done; "
             "true", str(pid), user=user, group=user, extra_groups=[])
    return out.split()


@case("the kernel knows: filter, no new privileges, not dumpable, no core")
def _():
    os.chmod(SOCK, 0o666)
    want = web()
    for options in ((), ("-confine=false",)):
        r = Registrator(*options, user=65534, group=65534, extra_groups=[])
        expect(want)
        r.wait_log("Listening")     # the second finds what the first wrote
        confined(r.proc.pid, 0 if options else 1)
        same("readable to its own user", [], readable(r.proc.pid, 65534))
        same("owner of its /proc", 0, os.stat("/proc/%d/environ" %
                                              r.proc.pid).st_uid)
        no_warnings(r)
        r.stop()
    other = e2e.subprocess.Popen(["sleep", "99"], user=65534, group=65534,
                                 extra_groups=[])
    try:                                # so that the above says something
        wait_for("another process that can be read",
                 lambda: "environ" in readable(other.pid, 65534))
    finally:
        other.kill()
        other.wait()


# ---- a kernel that cannot --------------------------------------------------

@case("a kernel without seccomp: a warning")
def _():
    want = web()
    prefix = [HELPER, "without"]
    r = Registrator(prefix=prefix)
    expect(want)
    docker("rm", "-f", "web")
    expect({})
    r.stop()
    no_warnings(r, WARNING)
    (said,) = re.findall(WARNING, r.log())
    if "seccomp: Invalid argument" not in said:
        raise Failure("it says: " + said)
    r = Registrator("-confine=false", prefix=prefix)
    r.wait_log("Listening")
    r.stop()
    no_warnings(r)


# ---- as a container --------------------------------------------------------

LEAST = ["--read-only", "--cap-drop", "ALL",
         "--security-opt", "no-new-privileges"]


@case("from scratch: unprivileged, read-only, no capabilities, with the "
      "socket's group")
def _():
    group = 4242
    os.chown(SOCK, 0, group)
    os.chmod(SOCK, 0o660)
    root = DIR + "/images/power"
    os.makedirs(root + "/bin")
    e2e.shutil.copy(HELPER, root + "/bin/power")
    e2e.import_image(root, "power", idle=False)
    user = ["--user", "65534:%d" % group]
    here = docker("run", "--rm", "--name", "had", *LEAST, *user, "power",
                 "/bin/power", "had")
    run("--name", "registrator", "--net", "host",
        "-v", SOCK + ":/tmp/docker.sock:ro", *LEAST, *user,
        image="e2e/registrator", cmd=("consul://localhost:8500",))
    want = web()
    expect(want)
    docker("rename", "web", "other")
    expect({HOST + ":other:80": svc("plain", 8001)})
    pid = e2e.inspect("registrator")["State"]["Pid"]
    got = status_of(pid)
    same("user", "65534", got["Uid"].split()[0])
    same("group", str(group), got["Gid"].split()[0])
    same("capabilities", {"0" * 16}, {got[x] for x in (
        "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")})
    confined(pid, 2)                    # Docker's filter and ours
    out = sh("docker", "logs", "registrator", check=False)
    log = (out.stdout + out.stderr).decode()
    print("# confinement that can be had in Docker's: " + here)
    same("warnings", [] if here == "all" else [here], re.findall(WARNING, log))
    same("complaints", [], re.findall("(?i).*(?:denied|fail|again).*", log))
    docker("stop", "registrator")
    same("exit status", 0, e2e.inspect("registrator")["State"]["ExitCode"])


# ---- behind a proxy --------------------------------------------------------

class Gate:
    """A proxy that asks whether a request may pass; the rest is 403.  Listens
    on and goes to a path or an address."""

    def __init__(self, at, to, may=lambda head: True):
        self.to, self.may = to, may
        self.passed, self.refused, self.socks = [], [], []
        self.listener = socket.socket(socket.AF_UNIX if isinstance(at, str)
                                      else socket.AF_INET)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(at)
        self.listener.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            self.socks.append(client)
            threading.Thread(target=self.serve, args=(client,),
                             daemon=True).start()

    def serve(self, client):
        stream = client.makefile("rb")
        upstream = http.client.HTTPConnection("upstream")
        try:
            server = socket.socket(socket.AF_UNIX if isinstance(self.to, str)
                                   else socket.AF_INET)
            self.socks.append(server)
            server.connect(self.to)
            upstream.sock = server
            while line := stream.readline():
                head, length = line, 0
                while (h := stream.readline()) not in (b"\r\n", b""):
                    head += h
                    if h.lower().startswith(b"content-length:"):
                        length = int(h.split(b":")[1])
                body = stream.read(length)
                if not self.may(head):
                    self.refused.append(line.decode("latin-1").strip())
                    client.sendall(b"HTTP/1.1 403 Forbidden\r\n"
                                   b"Content-Length: 3\r\n\r\nno\n")
                    continue
                self.passed.append(line.decode("latin-1").strip())
                server.sendall(head + b"\r\n" + body)
                self.answer(http.client.HTTPResponse(server), client)
        except (OSError, ValueError, http.client.HTTPException):
            pass
        e2e.Proxy.shut(client, *([upstream.sock] if upstream.sock else []))

    @staticmethod
    def answer(response, client):
        """All of it, as it comes, in chunks."""
        response.begin()
        names = [n for n in response.getheaders() if n[0].lower() not in (
            "transfer-encoding", "content-length", "connection")]
        head = "HTTP/1.1 %d x\r\nTransfer-Encoding: chunked\r\n%s\r\n" % (
            response.status, "".join("%s: %s\r\n" % n for n in names))
        client.sendall(head.encode("latin-1"))
        while data := response.read1(65536):
            client.sendall(b"%x\r\n%s\r\n" % (len(data), data))
        client.sendall(b"0\r\n\r\n")

    def close(self):
        e2e.Proxy.shut(self.listener, *self.socks)
        self.listener.close()


GETS = re.compile(
    rb"GET (/v1\.\d+)?/(version|_ping|info|events(\?[^ ]*)?|"
    rb"containers/json(\?[^ ]*)?|containers/[0-9a-f]{12,64}/json|"
    rb"networks(/[0-9a-f]{12,64})?) HTTP/1\.1\r\n")


@case("behind a proxy that lets only the GETs of the contract through")
def _():
    path = DIR + "/gate.sock"
    gate = Gate(path, SOCK, GETS.match)
    env = {"DOCKER_HOST": "unix://" + path}
    try:
        r = Registrator("-deregister", "on-success", env=env)
        want = web()
        docker("network", "create", "n-a")
        docker("network", "create", "-d", "macvlan", "--subnet",
               "10.55.0.0/24", "-o", "parent=wire1", "n-mac")
        run("--name", "aa", "--net", "n-a", "-p", "8002:80", image="plain")
        run("--name", "mac", "--net", "n-mac", "--ip", "10.55.0.9",
            image="shares")
        run("--name", "in", "--net", "container:aa", image="shares")
        want[HOST + ":aa:80"] = svc("plain", 8002)
        for port in (7000, 7001):
            want["%s:mac:%d" % (HOST, port)] = svc("shares-%d" % port, port,
                                                   "10.55.0.9")
            want["%s:in:%d" % (HOST, port)] = svc(
                "shares-%d" % port, port, e2e.address("aa", "n-a"))
        expect(want)
        docker("kill", "-s", "USR1", "web")     # ends with 1: a failure
        wait_for("its end", lambda: not e2e.inspect("web")["State"]["Running"])
        docker("rm", "-f", "mac", "in", "aa")
        expect({k: v for k, v in want.items() if ":web:" in k})
        docker("rm", "web")
        expect({})
        r.stop()
        no_warnings(r)
        web("inner")
        once("-internal", env=env)
        expect({HOST + ":inner:80": svc("plain", 80, e2e.address("inner"))})
    finally:
        gate.close()
        os.unlink(path)
    same("requests that the proxy refused", [], gate.refused)
    for what in ("version", "info", "events", "containers/json", "/json ",
                 "networks"):
        if not any(what in line for line in gate.passed):
            raise Failure("nobody asked for " + what)


# ---- the frame -------------------------------------------------------------

unanswered = []


def name_server():
    """All names in test are ::1 and 127.0.0.1, where no peer and where some
    listen; this machine's is ADV; of those in silent it says nothing; there
    are no others."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))

    def serve():
        while True:
            query, client = server.recvfrom(512)
            end = query.index(b"\0", 12) + 5
            kind = query[end - 4:end]       # A or AAAA, and IN
            if query[:end - 4].endswith(b"\x06silent\0"):
                unanswered.append(query)
                continue
            address = None
            if query[:end - 4].endswith(b"\x04test\0"):
                address = {b"\0\1\0\1": socket.inet_aton("127.0.0.1"),
                           b"\0\x1c\0\1": b"\0" * 15 + b"\1"}.get(kind)
            elif HOST.encode() in query and kind == b"\0\1\0\1":
                address = socket.inet_aton(ADV)
            code = 0 if address or HOST.encode() in query else 3
            answer = query[:2] + struct.pack(
                ">HHHHH", 0x8180 | code, 1, 1 if address else 0, 0, 0) + \
                query[12:end]
            if address:
                answer += b"\xc0\x0c" + kind + struct.pack(
                    ">IH", 0, len(address)) + address
            server.sendto(answer, client)
    threading.Thread(target=serve, daemon=True).start()
    with open(DIR + "/resolv.conf", "w") as f:
        f.write("nameserver 127.0.0.1\noptions timeout:60\n")
    sh("mount", "--bind", DIR + "/resolv.conf", "/etc/resolv.conf")


def build_helper():
    os.mkdir(os.path.dirname(HELPER))
    with open(DIR + "/power/token", "w") as f:
        f.write("x\n")
    socket.socket(socket.AF_UNIX).bind(DIR + "/power/nobody.sock")
    bearssl = glob.glob(TOP + "/bearssl-0.6*")[0]
    sh(CC, "-std=c99", "-Os", "-static", "-no-pie", "-fno-pie",
       "-isystem", bearssl + "/inc", "-o", HELPER, TOP + "/tests/power.c",
       "%s/build-%s/libbearssl.a" % (bearssl, CC))


def certificate():
    """For Consul's port 8501: it is the CA, too."""
    cert, key = DIR + "/cert.pem", DIR + "/key.pem"
    sh("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
       "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=x",
       "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert)
    e2e.consul.config.update(cert_file=cert, key_file=key)
    e2e.consul.config["ports"]["https"] = 8501


def inside(binary, *chosen):
    e2e.prepare(binary)
    name_server()
    build_helper()
    certificate()
    e2e.engine.start()
    e2e.consul.start()
    e2e.images()
    failed = e2e.play(chosen, cases=cases)
    e2e.engine.stop()
    e2e.consul.kill()
    return 1 if failed else 0


if __name__ == "__main__":
    e2e.enter("power", inside)
