#!/usr/bin/env python3
"""The figures of the README, held to those of this build.

    python3 tests/readme.py check|update

Binary size, and lines a section of registrator.c.  "update" writes them.
"""
import os
import re
import sys

SIZE_MAX = 200 * 1000           # bytes, static and stripped


def sections():
    """Lines of each section, by its name as in "1. Base"."""
    lines, name = {}, None
    for line in open("registrator.c"):
        banner = re.match(r"/\* ==== (\d+\. \w+) ", line)
        name = banner.group(1) if banner else name
        if name:
            lines[name] = lines.get(name, 0) + 1
    return lines


def figures(text):
    """The text with the figures of this build in place of its own."""
    size = "{:,}".format(os.path.getsize("registrator"))
    text = re.sub(r"[\d,]+( bytes\non x86-64)", size + r"\1", text)
    for name, n in sections().items():
        text = re.sub(r"\| \d+ \| %s \|" % re.escape(name),
                      "| %d | %s |" % (n, name), text)
    return text


def main():
    old = open("README.md").read()
    new = figures(old)
    if sys.argv[1:] == ["update"]:
        open("README.md", "w").write(new)
        return
    for name in sections():
        if "| %s |" % name not in old:
            sys.exit("README.md does not tell the lines of " + name)
    wrong = [line for line in old.splitlines() if line not in new]
    if wrong:
        sys.exit("not so in this build (python3 tests/readme.py update):\n"
                 + "\n".join(wrong))
    size = os.path.getsize("registrator")
    if size >= SIZE_MAX:
        sys.exit("registrator has %d bytes, not under %d" % (size, SIZE_MAX))


main()
