#!/usr/bin/env python3
"""The examples of the README, taken out of it and run.

    python3 tests/examples.py ./registrator [WORD...]   cases that have a WORD

They run in the namespaces of e2e.py, beside a real engine and a real Consul,
and end with them.  tests/image.py runs the README's "docker run" commands,
test.sh its own, tests/readme.py checks its figures.
"""
import json
import os
import pty
import re
import shlex
import subprocess

import e2e
from e2e import (ADV, DIR, HOST, TOP, Agent, Failure, case, docker, expect,
                 same, sh, svc, wait_for)

e2e.cases.clear()               # ours follow
GROUP = 4242                    # of the engine's socket
NET1 = "172.19.0.0/16"          # of the network net1 in an example
with open(os.path.dirname(__file__) + "/../README.md") as f:
    README = f.read()


# ---- taken out of the README -----------------------------------------------

def blocks():
    """The indented blocks, without the indentation."""
    found = re.findall(r"(?m)^\n((?:(?:    .*)?\n)+)(?=\S|$)", README)
    return [re.sub(r"(?m)^    ", "", text).strip("\n") for text in found]


def block(start):
    """The one that begins so."""
    found = [text for text in blocks() if text.startswith(start)]
    same("blocks that begin with " + start, 1, len(found))
    return found[0] + "\n"


def table(*head):
    """The rows of the table with this head, each a list of cells."""
    text = README.split("| %s |\n" % " | ".join(head))
    same("tables of " + " ".join(head), 2, len(text))
    rows = re.match(r"\|[-|]+\|\n((?:\|.*\n)+)", text[1]).group(1)
    return [row.strip("| ").split(" | ") for row in rows.splitlines()]


def code(cell):
    return re.findall(r"`([^`]*)`", cell)


# ---- run -------------------------------------------------------------------

def lines(*options, words, name="web"):
    """What print: says of a container that is run with these words."""
    words = shlex.split(words)
    if "--name" not in words:
        words[:0] = ["--name", name]
    docker("run", "-d", *words)
    r = e2e.once("-hostname", "host-1", *options, uri="print:",
                 env={"DOCKER_HOST": None})
    docker("rm", "-f", words[words.index("--name") + 1])
    return [json.loads(line) for line in r.output().splitlines()]


def registered(*options, **kw):
    return [line["service"] for line in lines(*options, **kw)
            if line["action"] == "register"]


def only(*options, **kw):
    (one,) = registered(*options, **kw)
    return one


USUAL = ("-ip", "10.1.2.3")
EARLY = {HOST + ":early:80": svc("plain", 8001)}


def early():
    e2e.run("--name", "early", "-p", "8001:80", image="plain")


def registers(*words, prefix):
    """As a user who has the engine's group alone, it does its work."""
    os.chown(e2e.SOCK, 0, GROUP)
    r = e2e.Registrator(*words, uri=None, prefix=prefix,
                        env={"DOCKER_HOST": None})
    early()
    expect(EARLY)
    r.stop()


# ---- the cases -------------------------------------------------------------

@case("the table of names")
def _():
    before, rows = None, table("arguments", "names")
    for cell, want in rows:
        words = code(cell)[0]
        if cell.startswith(("the same with", "and with")):
            words += " " + before
        before = words
        same(words, sorted(code(want)), sorted(
            s["Name"] for s in registered(*USUAL, words=words)))


@case("the table of IDs")
def _():
    for cell, want in table("arguments", "IDs"):
        want = code(want)
        want = [re.sub(r"^\.\.\.:53", want[0], one) for one in want]
        same(cell, sorted(want), sorted(
            s["ID"] for s in registered(*USUAL, words=code(cell)[0])))


@case("the table of addresses")
def _():
    docker("network", "create", "--subnet", NET1, "net1")
    for options, words, want in table("options", "arguments", "address"):
        options = [w for text in code(options) for w in text.split()]
        if not options:
            options = USUAL[:0]
        got = only(*options, words=code(words)[0])
        same("%s: %s" % (options, words), want,
             "%s:%d" % (got["Address"], got["Port"]))


@case("tags, attributes, a check")
def _():
    words, more, want = re.search(
        r"`(SERVICE_TAGS=.*)` with `(-tags \w+)` is `(.*)`", README).groups()
    same("tags", json.loads(want), only(
        *USUAL, *more.split(), words="-p 8080:80 -e " + words + " nginx")[
            "Tags"])
    words, want = re.search(
        r"`(.* -e SERVICE_REGION=b nginx)`\ngives `\"Meta\":(.*)`",
        README).groups()
    same("attributes", json.loads(want), only(*USUAL, words=words)["Meta"])
    words, want = re.search(r"Example: `([^`]*)` is\n`([^`]*)`",
                            README).groups()
    same("check", json.loads(want),
         only(*USUAL, words=" ".join(words.split()))["Check"])


@case("print: for a terminal, and as JSON")
def _():
    text = block("$ docker run -d --name web -p 8080:80 --expose 443")
    start, look, *table_of = text.splitlines()
    identity = sh("sh", "-c", start.removeprefix("$ "))
    options = shlex.split(look.removeprefix("$ ./registrator "))
    short = re.search(r"[0-9a-f]{12}", text).group()

    def squeezed(text):
        """Sorted, one blank between words, no line broken."""
        return sorted(" ".join(one.split()).replace(short, identity[:12])
                      for one in text.splitlines())
    same("on a terminal", squeezed("\n".join(table_of)),
         squeezed(on_terminal(options)))
    want = re.sub(r"\n(?!\{)", "", block('{"action":"ignore"')).replace(
        short, identity[:12])
    r = e2e.once(*options[1:-1], uri="print:")
    same("in a pipe", sorted(want.splitlines()),
         sorted(r.output().splitlines()))


def on_terminal(options):
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [DIR + "/registrator", *options], stdin=subprocess.DEVNULL,
        stdout=its, stderr=subprocess.DEVNULL)
    os.close(its)
    said = b""
    try:
        while True:
            piece = os.read(ours, 65536)
            if not piece:
                break
            said += piece
    except OSError:                     # EIO: the other end is closed
        pass
    os.close(ours)
    same("exit status", 0, process.wait())
    return said.decode()


@case("moving over: a look, then the same IDs are taken over in place")
def _():
    early()
    for name, port in (("early", 8001), ("gone", 8009)):
        e2e.put("/v1/agent/service/register",
                {"ID": "%s:%s:80" % (HOST, name), "Name": "plain",
                 "Port": port, "Address": ADV})
    look = re.search(r"(?m)^        (docker run --rm(?:.*\\\n)*.*)$",
                     README).group(1)
    said = sh("sh", "-c", look)
    same("the look", [HOST + ":early:80"], [
        line["service"]["ID"] for line in map(json.loads, said.splitlines())
        if line["action"] == "register"])
    r = e2e.Registrator(uri="consul://localhost:8500")
    wait_for("the entry is marked", lambda: "registrator" in e2e.get(
        "/v1/agent/services")[HOST + ":early:80"]["Meta"])
    left = {HOST + ":gone:80": svc("plain", 8009)}
    expect({**EARLY, **left})
    r.stop()
    if "removed: " in r.log():
        raise Failure("something was removed:\n" + r.log())
    e2e.once("-cleanup", uri="consul://localhost:8500")
    expect(EARLY)


def compose():
    """What this machine has: the engine's plug-in, or the older program."""
    if sh("docker", "compose", "version", check=False).returncode == 0:
        return "docker compose"
    return "docker-compose -f compose.yaml"


@case("with compose: the file, and its command")
def _():
    folder = DIR + "/compose"
    os.makedirs(folder)
    with open(folder + "/compose.yaml", "w") as f:
        f.write(block("services:"))
    command = block("DOCKER_GROUP=").strip().replace("docker compose",
                                                     compose())
    os.chown(e2e.SOCK, 0, GROUP)
    early()
    sh("sh", "-c", command, cwd=folder)
    expect(EARLY)
    e2e.run("--name", "late", "-p", "8002:80", image="plain")
    expect({**EARLY, HOST + ":late:80": svc("plain", 8002)})
    sh("sh", "-c", command.replace("up -d", "down"), cwd=folder)


@case("as a service: systemd finds nothing wrong with the unit")
def _():
    unit = DIR + "/registrator.service"
    text = block("[Unit]")
    with open(unit, "w") as f:
        f.write(text.replace("/usr/local/bin/", DIR + "/").replace(
            "docker.service ", ""))
    said = sh("systemd-analyze", "verify", "--man=no", unit, check=False)
    same("what systemd-analyze says", "", "\n".join(
        line for line in said.stderr.decode().splitlines()
        if "registrator" in line))
    same("status", 0, said.returncode)
    with open(unit, "a") as f:          # that it would say something
        f.write("[Service]\nRestart=perhaps\n")
    said = sh("systemd-analyze", "verify", "--man=no", unit, check=False)
    if b"perhaps" not in said.stderr:
        raise Failure("systemd-analyze does not look: %r" % said.stderr)


@case("as a service: the unit's command, with what the unit takes away")
def _():
    text = block("[Unit]")
    command = re.search(r"(?m)^ExecStart=\S*/registrator (.*)$", text).group(1)
    registers(*command.split(), prefix=[
        "setpriv", "--reuid=61184", "--regid=61184", "--groups=%d" % GROUP,
        "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"])


@case("as a program: setpriv")
def _():
    command = block("setpriv --reuid").replace("\\\n", "").split()
    same("the program", "registrator", command[-2])
    command[command.index("docker")] = str(GROUP)   # it has no name here
    registers(command[-1], prefix=command[:-2])


@case("the audit's commands say what the README says")
def _():
    text = README[README.index("## How to audit it"):]
    grep = re.search(r"(?m)^        (grep -nE (?:.*\\\n)+.*\n(?:.*\n)*?)\n",
                     text).group(1)
    said = sh("sh", "-c", grep, cwd=TOP, check=False)
    same("what could do harm", (b"", b""), (said.stdout, said.stderr))
    places = re.search(r"`(grep -n '\"GET\"[^`]*)`", text).group(1)
    sh("sh", "-c", places, cwd=TOP)     # fails if nothing is found
    layers = re.search(r"`(awk -f tests/layers.awk[^`]*)`", text).group(1)
    same("layers", "", sh("sh", "-c", layers, cwd=TOP))
    awk = re.search(r"(?m)^        (awk '(?:.*\n)*?.*registrator\.c)$",
                    text).group(1)
    said = [line.split(None, 1)
            for line in sh("sh", "-c", awk, cwd=TOP).splitlines()]
    same("sections", [row[:2] for row in sections(text)], said)


def sections(text):
    return [row.strip("| ").split(" | ")
            for row in re.findall(r"(?m)^ +(\| \d+ \| \d+\. .*)$", text)]


@case("every URI of the table is one")
def _():
    uris = [code(row)[0] for row, _ in table("URI", "registry")]
    for uri in uris:
        # [host[:port]] is what may be left out: both forms.
        for form in {re.sub(r"\[.*\]", "", uri), re.sub(
                r"\[?host.*", "localhost:9", uri)}:
            r = e2e.Registrator("-once", uri=form, env=None)
            status = r.proc.wait(e2e.LIMIT)
            if status not in (0, 1) or "Unrecognized" in r.log() or \
                    "unknown" in r.log().lower():
                raise Failure("%s: %d\n%s" % (form, status, r.log()))


@case("every option of the table is one, and none is left out")
def _():
    help_ = sh(DIR + "/registrator", "-help", check=False)
    there = set(re.findall(r"(?m)^\s+(-[\w-]+)",
                           (help_.stdout + help_.stderr).decode()))
    told = {word for row in table("option", "default", "meaning")
            for word in re.findall(r"`(-[\w-]+)", row[0])}
    same("options", sorted(there | {"-help"}), sorted(told | {"-help"}))


# ---- inside ----------------------------------------------------------------

def inside(binary, *words):
    e2e.prepare(binary)
    e2e.engine.start()
    e2e.consul = Agent(client_addr="0.0.0.0")
    e2e.consul.start()
    e2e.images()
    for name in ("nginx", "registry.example.com:5000/team/app:1.2"):
        docker("tag", "plain", name)
    docker("tag", "e2e/registrator", "registrator")
    return 1 if e2e.play(words) else 0


if __name__ == "__main__":
    e2e.enter("examples", inside)
