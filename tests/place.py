#!/usr/bin/env python3
"""A few cases of other suites in a clone that lies where one may lie.

    python3 tests/place.py ./registrator

These places are below the folders that tests/e2e.py covers, with a blank and
a quote and worse in their paths.  Each gets a copy of the files, of BearSSL
as it was built, and of the binary; test.sh runs there as it does anywhere.
"""
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PLACES = {"/tmp": "some where 'it lies ",
          "/run": "a \"b\" $c `d` [e]* \\f:,;#%é "}
FILES = ("Dockerfile", "Makefile", "README.md", "registrator.c", "test.sh",
         "tests", "bearssl-0.6*/inc", "bearssl-0.6*/build-musl-gcc/*.a")
# One that is quick of each suite that needs more than the binary, and one.
CASES = ("build:musl-gcc -O0", "hostile:too few|memory: from", "power:head",
         "hosts:cluster", "image:final", "examples:audit", "e2e:print")


def copy(folder, binary):
    names = [n for f in FILES for n in glob.glob(f, root_dir=TOP)]
    subprocess.run(["cp", "-a", "--parents", *names, folder], cwd=TOP,
                   check=True)      # with times: nothing is to be made again
    shutil.copy(binary, folder + "/tested")


def run(where, folder):
    """By bash, for there may be no programs below /run."""
    with subprocess.Popen(
            ["bash", folder + "/test.sh", *CASES], text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "REGISTRATOR": folder + "/tested"}) as tests:
        try:
            for line in tests.stdout:
                print(re.sub("^(ok|not ok) ", r"\1 place %s: " % where, line),
                      end="", flush=True)
        except BaseException:       # a signal: it ends first
            tests.terminate()
            raise
    return tests.returncode


def main(binary):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = 0
    for where, name in PLACES.items():
        with tempfile.TemporaryDirectory(prefix=name, dir=where) as folder:
            copy(folder, binary)
            failed |= run(where, folder)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
