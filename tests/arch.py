#!/usr/bin/env python3
"""registrator as built for other machines, under qemu, and with another libc.

    python3 tests/arch.py registrator NAME=BINARY... [PATTERN]

NAME is arm64, armhf (under qemu) or another (run as it is); registrator is
that of this machine.  A binary that is run as it is has all cases of peers.py;
one under qemu a choice of these and of the scripted ones of tls.py, and a life
before the real Consul, in the clear and over TLS.  One line a case whose name
PATTERN finds: "ok arch NAME", or "not ok arch NAME: why" and details below it.

Needs root and what e2e.py needs, and lives in namespaces as that does.
"""
import asyncio
import os
import re
import sys
from functools import partial

import e2e
import peers
import tls
from e2e import ADV, DIR, svc
from fakes import box
from peers import demand, equal

QEMU = {"arm64": "qemu-aarch64-static", "armhf": "qemu-arm-static"}
AT_ONCE = 12            # cases
# What depends on the machine: sizes and signs of numbers, alignment, order of
# bytes, the clock.  Not: what waits long or works hard; memory grows by qemu.
PEERS = (r"^(print|services|life|environment|limits|log|hostile(?!.*1000)|"
         r"option -(resync|retry-attempts)|options|signals: SIG(HUP|USR|PIPE)|"
         r"trouble: (the (event stream|list)|inspect|answers|ghosts|at rest))")
TLS = (r"^(accepted: (P-|RSA|signed|valid|AES|curve|client|IPv6|a byte)|"
       r"refused: (expired|not yet|wrong IP|signed|RSA-1024|names)|"
       r"start, client certificate: key )")
PORTS = {"http": 8500, "https": 8501}


def program(name, data):
    """What runs this binary."""
    path = "%s/%s" % (DIR, name)
    keep(path, data)
    if name not in QEMU:
        return path
    keep(path + ".sh", b'#!/bin/sh\nexec %s %s "$@"\n'
         % (QEMU[name].encode(), path.encode()))
    return path + ".sh"


def keep(path, data):
    with open(path, "wb") as f:
        f.write(data)
    os.chmod(path, 0o755)


# ==== A life before the real Consul ==================================

def mine(host):
    """The services of this host name, and when each was written last."""
    have = {i: e2e.view(s) for i, s in e2e.get("/v1/agent/services").items()
            if i.startswith(host + ":")}
    rows = [row for s in have.values()
            for row in e2e.get("/v1/catalog/service/" + s["name"])]
    return have, {row["ServiceID"]: row["ModifyIndex"] for row in rows
                  if row["ServiceID"] in have}


async def lives(name, uri, env, w):
    host = name + "-" + uri.partition(":")[0]

    async def run(*options):
        await w.spawn("-hostname", host, *options, uri, **env)

    async def becomes(*names):
        want = {i: s for i, s in every.items() if i.split(":")[1] in names}
        await w.until(lambda: mine(host)[0] == want, "shown by Consul",
                      lambda: ["expected %r" % want,
                               "got      %r" % mine(host)[0]])

    web = box("web", {80: 8080}, image=host + "-web", env=[
        "SERVICE_TAGS=a,b", "SERVICE_REGION=eu", "SERVICE_CHECK_TTL=30s",
        "SERVICE_CHECK_INITIAL_STATUS=passing"])
    dns = box("dns", {"53/udp": "10.1.2.3:5353"}, image=host + "-dns")
    late = box("late", {443: 8443}, image=host + "-late")
    every = {
        host + ":web:80": svc(host + "-web", 8080, ADV, ["a", "b"],
                              {"region": "eu", "check_ttl": "30s",
                               "check_initial_status": "passing"}),
        host + ":dns:53:udp": svc(host + "-dns", 5353, "10.1.2.3", ["udp"]),
        host + ":late:443": svc(host + "-late", 8443)}

    w.has(web, dns)
    await run()
    await becomes("web", "dns")
    equal("state of the check", e2e.checks()[host + ":web:80"]["Status"],
          "passing")
    w.engine.start(late)
    await becomes("web", "dns", "late")
    w.engine.die(dns)
    await becomes("web", "late")
    equal("exit status", await w.stop(), 0)

    # The marks are the same on every machine: nobody writes anew.
    written = mine(host)[1]
    own, w.binary = w.binary, DIR + "/registrator"
    for w.binary in (w.binary, own):
        await run("-once")
        equal("exit status of -once", await w.exit(), 0)
        equal("last written", mine(host)[1], written)

    await run("-on-exit", "deregister")
    w.engine.start(dns)
    await becomes("web", "dns", "late")
    equal("exit status", await w.stop(), 0)
    equal("services left", mine(host)[0], {})


async def refuses(name, env, w):
    """A real Consul whose certificate is of a CA that we do not know."""
    await w.spawn("-once", "consul-tls://127.0.0.1",
                  **{**env, "CONSUL_CACERT": tls.pem("ca2")})
    equal("exit status", await w.exit(), 1)
    demand("TLS: " in w.log, "the log does not say why", w.log)


# ==== Running =========================================================

def all_cases(programs):
    """{name of the case: (program, test)}"""
    cases = {}
    mutual = {"CONSUL_CACERT": tls.pem("ca"),
              "CONSUL_CLIENT_CERT": tls.pem("client"),
              "CONSUL_CLIENT_KEY": tls.key("client")}
    for name, binary in programs.items():
        tests = {"peers " + n: test for n, test in peers.CASES.items()
                 if name not in QEMU or re.search(PEERS, n)}
        if name in QEMU:
            tests.update({"tls " + n: test for n, test in tls.SCRIPTED.items()
                          if re.search(TLS, n)})
            tests["real Consul"] = partial(
                lives, name, "consul://127.0.0.1", {})
            tests["real Consul, mutual TLS"] = partial(
                lives, name, "consul-tls://127.0.0.1", mutual)
            tests["real Consul, another CA"] = partial(refuses, name, mutual)
        cases.update({"%s %s" % (name, n): (binary, test)
                      for n, test in tests.items()})
    return cases


async def play(cases):
    limit = asyncio.Semaphore(AT_ONCE)
    tasks = [asyncio.ensure_future(
                 peers.run_case(peers.World, binary, name, test, limit))
             for name, (binary, test) in cases.items()]
    failed = 0
    for task in tasks:
        first, *rest = await task
        print("\n".join([re.sub("^(not )?ok ", r"\g<0>arch ", first), *rest]),
              flush=True)
        failed += first.startswith("not ok")
    return failed


def inside(native, *words):
    binaries = dict(word.split("=", 1) for word in words if "=" in word)
    pattern = "".join(word for word in words if "=" not in word)
    data = {}
    for name, path in binaries.items():     # prepare() may hide them
        with open(path, "rb") as f:
            data[name] = f.read()
    os.environ["PATH"] += ":/var/cache/registrator-test"        # consul
    e2e.prepare(native)
    tls.make_all()
    peers.CPU_S = 3             # it is translated first
    cases = {name: case for name, case in all_cases(
        {name: program(name, data[name]) for name in binaries}).items()
        if re.search(pattern, name)}
    e2e.Agent(ports=PORTS, client_addr="127.0.0.1", ca_file=tls.pem("ca"),
              cert_file=tls.pem("ip"), key_file=tls.key("ip"),
              verify_incoming_https=True).start()
    return int(asyncio.run(play(cases)) > 0 or not cases)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    e2e.enter("arch", inside)
