#!/usr/bin/env python3
"""Replay recorded containers through a registrator binary and compare what it registers.

A suite is a JSON file:
  {"cases": [{"name": str, "args": [str], "env": {str: str},
              "containers": [<body of GET /containers/{id}/json>, ...],
              "expect": [<normalised service registration>, ...]}, ...]}

Each case plays both peers of the binary (fakes.py): a Docker engine on a unix socket and a
Consul agent on a loopback port.  It collects the bodies of PUT /v1/agent/service/register
until they stop coming, normalises them and compares them with "expect", ignoring the order
of services and of tags.

  parity.py check BINARY SUITE...        a line a case; exit 0 when every case matches
  parity.py record BINARY SUITE          rewrite "expect" from what BINARY does
  parity.py show BINARY SUITE CASE       print the registrations of one case

Normalised: null, "", 0, false, [] and {} members are dropped at every depth,
tags are sorted, the Meta key "registrator" is dropped, and the host name that
begins an ID is written "{host}", so that only meaning is compared.
"""
import asyncio
import json
import os
import socket
import sys
import tempfile

from fakes import Consul, Engine

QUIET_S = 0.6   # no new registration for so long: done
FIRST_S = 5     # the time the first one may take
LIMIT_S = 20
HOST = socket.gethostname()     # written "{host}" in suites, where an ID begins with it


def normalise(value):
    if isinstance(value, dict):
        out = {k: normalise(v) for k, v in value.items()}
        if "ScriptArgs" in out:             # the older name of a check's Args
            out["Args"] = out.pop("ScriptArgs")
        if isinstance(out.get("Meta"), dict):
            out["Meta"].pop("registrator", None)
        out = {k: v for k, v in out.items() if v not in (None, "", 0, False, [], {})}
        if isinstance(out.get("Tags"), list):
            out["Tags"] = sorted(out["Tags"])
        return out
    if isinstance(value, list):
        return [normalise(v) for v in value]
    return value


def suite_text(suite):
    """A suite as JSON text: a line for each container and each expected service."""
    def rows(values):
        lines = ",\n    ".join(json.dumps(v, sort_keys=True) for v in values)
        return "[\n    %s]" % lines if values else "[]"
    cases = ",\n".join('  {"name": %s,\n   "args": %s, "env": %s,\n   "containers": %s,\n   "expect": %s}' %
                       (json.dumps(c["name"]), json.dumps(c["args"]), json.dumps(c.get("env", {})),
                        rows(c["containers"]), rows(c["expect"])) for c in suite["cases"])
    return '{"cases": [\n%s\n]}\n' % cases


async def play(binary, case):
    """Runs one case; gives what was registered, normalised and by ID, and the log."""
    engine, consul = Engine(case["containers"], HOST), Consul()
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as tmp:
        sock = os.path.join(tmp, "docker.sock")
        await engine.listen(sock)
        port = await consul.listen()
        env = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "CONSUL_"))}
        env.update(case.get("env", {}), DOCKER_HOST="unix://" + sock)
        with open(os.path.join(tmp, "log"), "wb+") as log:
            proc = await asyncio.create_subprocess_exec(
                binary, *case["args"], "consul://127.0.0.1:%d" % port, env=env, stdout=log, stderr=log)
            start = loop.time()
            while loop.time() - start < LIMIT_S and proc.returncode is None:
                await asyncio.sleep(0.02)
                if loop.time() - (consul.touched or start + FIRST_S) > QUIET_S:
                    break
            if proc.returncode is None:
                proc.kill()
            await proc.wait()
            engine.close()
            consul.close()
            log.seek(0)
            text = log.read().decode("utf-8", "replace")
    seen = []
    for service in map(normalise, consul.sent.values()):
        if service["ID"].startswith(HOST + ":"):
            service["ID"] = "{host}" + service["ID"][len(HOST):]
        seen.append(service)
    return sorted(seen, key=lambda s: s["ID"]), text


def differences(expect, got):
    want = {s["ID"]: s for s in normalise(expect)}
    have = {s["ID"]: s for s in got}
    for key in sorted(want.keys() | have.keys()):
        if want.get(key) != have.get(key):
            yield "  expected %s\n  got      %s" % (json.dumps(want.get(key), sort_keys=True),
                                                   json.dumps(have.get(key), sort_keys=True))


async def check(binary, paths):
    failed = 0
    for path in paths:
        with open(path) as f:
            suite = json.load(f)
        for case in suite["cases"]:
            got, log = await play(binary, case)
            diffs = list(differences(case["expect"], got))
            if not diffs:
                print("ok parity %s" % case["name"])
                continue
            failed += 1
            print("not ok parity %s: %d services differ" % (case["name"], len(diffs)))
            print("\n".join(diffs[:5] + ["  log: " + line for line in log.splitlines()[-10:]]))
    return int(failed > 0)


async def record(binary, path):
    with open(path) as f:
        suite = json.load(f)
    for case in suite["cases"]:
        case["expect"], _ = await play(binary, case)
        print("%-40s %d services" % (case["name"], len(case["expect"])))
    with open(path, "w") as f:
        f.write(suite_text(suite))


async def show(binary, path, name):
    with open(path) as f:
        suite = json.load(f)
    for case in suite["cases"]:
        if case["name"] == name:
            got, log = await play(binary, case)
            print(json.dumps(got, indent=1, sort_keys=True), log, sep="\n")


async def main(argv):
    verb, binary, *paths = argv + ["", ""][len(argv):]
    binary = os.path.abspath(binary)
    if verb == "check" and paths:
        return await check(binary, paths)
    if verb == "record" and len(paths) == 1:
        return await record(binary, *paths)
    if verb == "show" and len(paths) == 2:
        return await show(binary, *paths)
    return __doc__


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
