#!/usr/bin/env python3
"""The image: what is in it, and that it runs as the README says.

    python3 tests/image.py ./registrator [WORD...]  only cases that have a WORD

It lives in the namespaces of e2e.py, beside a real engine and a real Consul,
and ends with them.  Only the case "docker build ." leaves them, for the
network: an engine of its own, without bridge and iptables, builds the whole
Dockerfile in the network that this program was started in.  Its base image
is Debian from the mirror that apt uses, for nothing can be pulled.  That
takes two minutes, and 1 GB of memory.
"""
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import time

import e2e
from e2e import (ADV, DIR, HOST, SOCK, TOP, Agent, Failure, case, docker,
                 expect, inspect, run, same, sh, svc, wait_for)

e2e.cases.clear()               # ours follow
SIZE_MAX = 200 * 1000           # bytes, all layers
GROUP = 4242                    # of the engine's socket
CONSUL_PATH = ":/var/cache/registrator-test"    # where setup.sh puts it
TREE = ["bin/", "bin/registrator"]
OUTSIDE = "IMAGE_OUTSIDE"       # the variable that tells the network to use


def read(name):
    """A file of the project."""
    return read_file(TOP + "/" + name)


def read_file(path, mode="r"):
    with open(path, mode) as f:
        return f.read()


# ---- the image -------------------------------------------------------------

def context(folder):
    """A folder to build the image in: the Dockerfile's final stage, with
    the binary that is tested in place of the stage that compiles one."""
    text = read("Dockerfile")
    os.makedirs(folder)
    shutil.copy(DIR + "/registrator", folder)
    with open(folder + "/Dockerfile", "w") as f:
        f.write("FROM scratch AS build\nCOPY registrator /src/registrator\n"
                + text[text.index("FROM scratch"):])
    return folder


def empty_image():
    folder = "/tmp/empty"
    os.makedirs(folder, exist_ok=True)
    with open(folder + "/Dockerfile", "w") as f:
        f.write("FROM scratch\nLABEL empty=yes\n")
    docker("build", "-t", "empty", folder)


def exported(image):
    """What docker export gives of a container of this image, as a tar."""
    container = docker("create", image, "none")
    raw = subprocess.run(["docker", "export", container], check=True,
                         stdout=subprocess.PIPE).stdout
    docker("rm", container)
    return tarfile.open(fileobj=io.BytesIO(raw))


def names(tar):
    return {m.name + "/" * m.isdir() for m in tar}


def only_the_binary():
    """Compared with an image of nothing: an engine adds files of its own to
    each container.  Gives the binary."""
    empty_image()
    tar = exported("registrator")
    same("what the image adds to a container", TREE,
         sorted(names(tar) - names(exported("empty"))))
    seen = inspect("registrator")
    same("entry point", ["/bin/registrator"], seen["Config"]["Entrypoint"])
    same("layers", 1, len(seen["RootFS"]["Layers"]))
    if seen["Size"] >= SIZE_MAX:
        raise Failure("%d bytes" % seen["Size"])
    print("# the image has %d bytes" % seen["Size"])
    return tar.extractfile("bin/registrator").read()


def tested():
    return read_file(DIR + "/registrator", "rb")


# ---- the container ---------------------------------------------------------

def commands():
    """The "docker run" commands of the README."""
    found = re.findall(r"(?m)^    (docker run -d --name=registrator"
                       r"(?:.*\\\n)*.*)$", read("README.md"))
    same("docker run commands in the README", 2, len(found))
    return found


def registrator(*words, uri="consul://localhost:8500", options=()):
    """docker run, with no more than the engine's socket."""
    docker("run", "-d", "--name=registrator", *words,
           "--volume=/var/run/docker.sock:/tmp/docker.sock", "registrator",
           *options, uri)


def log():
    out = sh("docker", "logs", "registrator", check=False)
    return (out.stdout + out.stderr).decode()


def wait_log(words, times=1):
    wait_for("%d x %s in the log" % (times, words),
             lambda: log().count(words) >= times)


def gateway():
    """The host's address on the bridge of the containers."""
    return json.loads(sh("ip", "-j", "-4", "addr", "show", "docker0"))[0][
        "addr_info"][0]["local"]


def neighbours(host=HOST):
    """One that was there and one that comes; both go."""
    run("--name", "late", "-p", "8002:80", image="plain")
    try:
        expect({host + ":early:80": svc("plain", 8001),
                host + ":late:80": svc("plain", 8002)})
        docker("rm", "-f", "early", "late")
        expect({})
    except Failure as e:
        raise Failure("%s\nlog:\n%s" % (e, log())) from None


def early():
    run("--name", "early", "-p", "8001:80", image="plain")


def stops():
    """It ends by SIGTERM alone: no second signal, exit code 0."""
    began = time.time()
    docker("stop", "-t", "60", "registrator")
    ended = time.time()
    signals = docker("events", "--since", "%.6f" % began, "--until",
                     "%.6f" % ended, "--filter", "container=registrator",
                     "--filter", "event=kill", "--format",
                     "{{.Actor.Attributes.signal}}")
    same("signals", "15", signals)
    same("exit code", 0, inspect("registrator")["State"]["ExitCode"])
    print("# docker stop took %.1f s" % (ended - began))


# ---- the cases -------------------------------------------------------------

@case("the Dockerfile's final stage gives the binary and nothing else")
def _():
    if only_the_binary() != tested():
        raise Failure("not the binary that is tested")


@case("README: docker run, --net=host")
def _():
    early()
    sh("sh", "-c", commands()[0])
    neighbours()
    stops()


@case("README: docker run with the least power, --user and --group-add")
def _():
    early()
    os.chown(SOCK, 0, GROUP)
    sh("sh", "-c", commands()[1])
    neighbours()
    stops()


@case("--user without the group: the log says which --group-add helps")
def _():
    early()
    os.chown(SOCK, 0, GROUP)
    registrator("--net=host", "--user=65534")
    wait_log("permission denied: run as root, or in the socket's group "
             "(docker run --group-add %d)" % GROUP)
    stops()
    docker("rm", "registrator")
    registrator("--net=host", "--user=65534", "--group-add=%d" % GROUP)
    neighbours()


@case("on the bridge: -hostname NAME; Consul at the bridge's address")
def _():
    early()
    registrator(uri="consul://%s:8500" % gateway(),
                options=["-hostname", "host-1"])
    neighbours("host-1")
    stops()


@case("on the bridge: the container's own name (-h) is in the IDs")
def _():
    early()
    registrator("-h", "host-2", uri="consul://%s:8500" % ADV)
    neighbours("host-2")
    stops()


@case("docker restart: the entries stay as they are, and it goes on")
def _():
    early()
    registrator("--net=host")
    want = {HOST + ":early:80": svc("plain", 8001)}
    expect(want)
    before = e2e.get("/v1/catalog/service/plain")
    docker("restart", "-t", "60", "registrator")
    wait_log("Syncing services", 2)
    run("--name", "next", "-p", "8003:80", image="plain")
    expect({**want, HOST + ":next:80": svc("plain", 8003)})
    docker("rm", "-f", "next")
    expect(want)
    same("the catalog's entry, with the index of its last write", before,
         e2e.get("/v1/catalog/service/plain"))
    neighbours()
    stops()


# ---- the whole Dockerfile --------------------------------------------------

BUILDER = "/run/builder.sock"
SOURCES = """Types: deb
URIs: %s
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def outside(*command, **kw):
    """Runs a command in the network that this program was started in."""
    return subprocess.Popen(
        ["nsenter", "--net=/proc/%d/fd/%s" % (os.getpid(),
                                              os.environ[OUTSIDE]), *command],
        stdin=subprocess.DEVNULL, **kw)


def succeed(process, log):
    if process.wait() != 0:
        raise Failure("%s:\n%s" % (" ".join(process.args), e2e.tail(log, 40)))


def mirror():
    return sh("apt-get", "indextargets", "--format", "$(REPO_URI)",
              "Created-By: Packages", "Label: Debian").split("\n")[0]


def debian():
    """debian:bookworm-slim, made here: apt's sources are as in Docker's."""
    root, log = DIR + "/debian", DIR + "/logs/debootstrap"
    with open(log, "w") as f:
        succeed(outside("debootstrap", "--variant=minbase", "bookworm", root,
                        mirror(), stdout=f, stderr=f), log)
    os.unlink(root + "/etc/apt/sources.list")
    with open(root + "/etc/apt/sources.list.d/debian.sources", "w") as f:
        f.write(SOURCES % mirror())
    sh("sh", "-c", "tar -C %s -c . | docker -H unix://%s import - "
       "debian:bookworm-slim" % (root, BUILDER))
    shutil.rmtree(root)


def build(log):
    """docker build, as the README says; the network is this machine's."""
    proxies = [name for name in ("http_proxy", "https_proxy", "no_proxy")
               if name in os.environ]
    with open(log, "w") as f:
        succeed(outside(
            "docker", "-H", "unix://" + BUILDER, "build", "--network=host",
            *("--build-arg=" + name for name in proxies),
            "-t", "registrator", ".", cwd=TOP, stdout=f, stderr=f), log)


def start_builder(log):
    engine = outside(
        "dockerd", "--data-root", DIR + "/builder", "--exec-root",
        DIR + "/builder-exec", "--pidfile", DIR + "/builder.pid", "-H",
        "unix://" + BUILDER, "--bridge=none", "--iptables=false",
        "--ip-masq=false", "--cgroup-parent", "/" + e2e.CGROUP,
        "--exec-opt", "native.cgroupdriver=cgroupfs", stdout=log, stderr=log)
    wait_for("the engine that builds", lambda: sh(
        "docker", "-H", "unix://" + BUILDER, "version",
        check=False).returncode == 0)
    return engine


@case("docker build .: the whole Dockerfile; its image runs")
def _():
    began = time.monotonic()
    with open(DIR + "/logs/builder", "w") as f:
        engine = start_builder(f)
    try:
        debian()
        print("# the base image took %d s" % (time.monotonic() - began))
        began = time.monotonic()
        build(DIR + "/logs/build")
        print("# docker build took %d s" % (time.monotonic() - began))
        docker("rmi", "registrator")
        sh("sh", "-c", "docker -H unix://%s save registrator | docker load" %
           BUILDER)
    finally:
        engine.terminate()
        engine.wait()
    print("# its binary has %s bytes as ./registrator" % (
        "the same" if only_the_binary() == tested() else "other"))
    early()
    sh("sh", "-c", commands()[0])
    neighbours()
    stops()


def inside(binary, *words):
    os.environ["PATH"] += CONSUL_PATH
    resolver = read_file("/etc/resolv.conf")
    e2e.prepare(binary)
    keep_resolver(resolver)
    e2e.engine.start()
    e2e.consul = Agent(client_addr="0.0.0.0")
    e2e.consul.start()
    e2e.images()
    docker("build", "-t", "registrator", context("/tmp/image"))
    return 1 if e2e.play(words) else 0


def keep_resolver(text):
    """Where /etc/resolv.conf is a link into /run, which is covered now."""
    path = os.path.realpath("/etc/resolv.conf")
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as f:
            f.write(text)


if __name__ == "__main__":
    if OUTSIDE not in os.environ:
        os.environ[OUTSIDE] = str(os.open("/proc/self/ns/net", os.O_RDONLY))
    e2e.enter("image", inside, pass_fds=[int(os.environ[OUTSIDE])])
