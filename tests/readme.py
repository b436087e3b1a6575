#!/usr/bin/env python3
"""The figures of the README, held to those of this build.

    python3 tests/readme.py check       sizes, lines of sections, test suites
    python3 tests/readme.py weigh       the table of `make size`: half a minute
    python3 tests/readme.py update      writes all of them

Lines are those of the file.  Bytes are the compiler's: with another than the
one that the README was written with they may differ a little.
"""
import os
import re
import subprocess
import sys

SIZE_MAX = 200 * 1000           # bytes, static and stripped
TOLERANCE = 0.03                # of a number of bytes
LITTLE = 200                    # bytes that always may differ
WEIGH = "    make -s size | cut -c1-43 | grep -v '^  [^ ]'\n"
ROW = re.compile(r"^    ( *\S.*?) +([\d,]+)$", re.M)


def sections():
    """Lines of each section, by its name as in "1. Base"."""
    lines, name = {}, None
    for line in open("registrator.c"):
        banner = re.match(r"/\* ==== (\d+\. \w+) ", line)
        name = banner.group(1) if banner else name
        if name:
            lines[name] = lines.get(name, 0) + 1
    return lines


def suites():
    """The suites that test.sh runs, in its order."""
    with open("test.sh") as f:
        lists = re.findall(r"^(?:suites|beside)=\(([^)]*)\)", f.read(), re.M)
    return " ".join(lists).split()


def with_lines(text):
    for name, n in sections().items():
        text = re.sub(r"\| \d+ \| %s \|" % re.escape(name),
                      "| %d | %s |" % (n, name), text)
    return text


def size_told(text):
    """The bytes of the binary, as a match."""
    return re.search(r"([\d,]+) bytes\non x86-64", text)


def weights():
    """What the README has behind WEIGH, of this build."""
    said = subprocess.run(["sh", "-c", WEIGH.strip()], check=True,
                          capture_output=True, text=True).stdout
    rows = [line.rstrip() for line in said.splitlines()[2:]]
    return "".join("    %s\n" % row if row else "\n" for row in rows)


def weights_told(text):
    after = text[text.index(WEIGH) + len(WEIGH):]
    return re.search(r"(?m)(?:^    .*\n)+", after).group()


def number(digits):
    return int(digits.replace(",", ""))


def near(told, is_):
    return abs(told - is_) <= max(LITTLE, TOLERANCE * is_)


def update(text):
    text = with_lines(text).replace(weights_told(text), weights())
    size = "{:,}".format(os.path.getsize("registrator"))
    return text.replace(size_told(text).group(1), size)


def check(text):
    """What is wrong, a line each."""
    size = os.path.getsize("registrator")
    for name in sections():
        if "| %s |" % name not in text:
            yield "the lines of %s are not told" % name
    now = with_lines(text)
    yield from (line for line in text.splitlines() if line not in now)
    if not near(number(size_told(text).group(1)), size):
        yield "not %s bytes but %d" % (size_told(text).group(1), size)
    told = re.findall(r"^\| `([a-z\d]+)` \|", text, re.M)
    yield from ("only one of test.sh and the README has the suite %s" % name
                for name in sorted(set(told) ^ set(suites())))
    if size >= SIZE_MAX:
        yield "registrator has %d bytes, not under %d" % (size, SIZE_MAX)


def weigh(text):
    told, are = (dict(ROW.findall(t)) for t in (weights_told(text), weights()))
    yield from ("%s: only one of the README and make size has it" % name
                for name in sorted(told.keys() ^ are.keys()))
    yield from ("%s: not %s but %s" % (name.strip(), told[name], are[name])
                for name in told.keys() & are.keys()
                if not near(number(told[name]), number(are[name])))


def main():
    with open("README.md") as f:
        text = f.read()
    if sys.argv[1:] == ["update"]:
        with open("README.md", "w") as f:
            f.write(update(text))
        return
    wrong = list({"check": check, "weigh": weigh}[sys.argv[1]](text))
    if wrong:
        sys.exit("not so in this build (python3 tests/readme.py update):\n"
                 + "\n".join(wrong))


main()
