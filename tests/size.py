#!/usr/bin/env python3
"""Accounts for every byte of the binary.

    python3 tests/size.py [BINARY] [VARIABLE=VALUE...]

Builds it again with a map of the linker and with debug information (the
variables go to make), says whether that gave the same bytes as BINARY
(./registrator), and tells what they are: registrator.c by its sections, the
libraries by what their members are for, the rest by name.  The rows add up to
the size of the file.

Code counts for the section in which it is written, wherever it was inlined; a
text for the function that the compiler keeps it with, the first one if several
have it.  "constants" are tables and texts, "data" is what may change, and
"zeroes" are in memory and not in the file.
"""
import bisect
import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KINDS = ("code", "constants", "data", "other", "zeroes")

# The compiler, with debug information and nothing stripped off: the code is
# the same, to the byte.
DEBUG_CC = """#!/bin/bash
for word; do
    [ "$word" = -s ] || words+=("$word")
done
exec %s -g "${words[@]}"
"""

# The first that is found in a member's name; the library's name is in the key.
GROUPS = {
    "libc": (
        ("names and addresses",
         r"addrinfo|gai_|lookup_|^res_|^dn_|^dns_|resolvconf|inet_|ifaddrs|"
         r"netlink|if_name|htons"),
        ("printf", r"printf|wctomb|wcrtomb|frexpl|fpclassify|signbit"),
        ("stdio", r"stdio|stdout|stderr|lockfile|fopen|fclose|fgets|fputs|"
                  r"fwrite|getc|ofl|towrite|toread|uflow|shgetc"),
        ("memory", r"malloc|calloc|free|replaced|madvise|map$|mprotect"),
        ("time and zone", r"time|__tz|_tm|_to_secs|langinfo|vdso|lctrans"),
        ("trees and sorting", r"tsearch|tfind|tdelete|qsort"),
        ("error texts", r"strerror"),
        ("text", r"^mem|^str|^stp|wcs|mbs|intscan|internal|isalnum"),
        ("start, signals, system calls", r""),
    ),
    "libbearssl": (
        ("certificates and encodings", r"x509|skey|pem|^dec|^enc"),
        ("TLS itself", r"^ssl|^prf"),
        ("elliptic curves", r"^ec|ecdsa|p256|c25519"),
        ("RSA", r"rsa"),
        ("big numbers", r"^i\d\d"),
        ("ciphers", r"aes|chacha|poly1305|ghash|gcm|ccm|eax|des|ctr|cbc"),
        ("hashes and random numbers", r""),
    ),
}


def banners(path):
    """The sections of registrator.c: [(first line, name)]."""
    with open(path) as f:
        return [(n, m[1]) for n, line in enumerate(f, 1)
                if (m := re.match(r"/\* ==== (\d+\. \w+)", line))]


def definitions(path, sections):
    """{name: {sections that define a function or a static variable of it}}."""
    found = collections.defaultdict(set)
    with open(path) as f:
        for n, line in enumerate(f, 1):
            here = [name for first, name in sections if first <= n]
            m = re.match(r"\w[^=;]*?\b(\w+)\(", line)       # a function
            if here and m and not line.rstrip().endswith(";"):
                found[m[1]].add(here[-1])
            if here and re.match(r"\s*(static [^(]*[=;]|} \w+\[)", line):
                for name in re.findall(r"(\w+)(?:\[\w*\])* *[=;,]", line):
                    found[name].add(here[-1])
    return found


def read_map(path):
    """The linker's map: [(output section, input section, from, to, file)].
    What lies between two pieces is the first one's."""
    pieces, output, wrapped = [], None, None
    with open(path) as f:
        for line in f:
            if line.startswith("Linker script and memory map"):
                break
        for line in f:
            m = re.match(r"(\.[\w.-]+)(?:\s+0x(\w+)\s+0x(\w+))?", line)
            if m:
                output = m[1]
            m = re.match(r" (\.\S+|\*fill\*|COMMON)$", line)
            if m:
                wrapped = m[1]          # the rest is on the next line
                continue
            m = re.match(r" (\.\S+|\*fill\*|COMMON)?\s+0x(\w{16})\s+"
                         r"0x(\w+)(?: (.*))?$", line)
            if m and (m[1] or wrapped) and output:
                pieces.append([output, m[1] or wrapped, int(m[2], 16),
                               int(m[3], 16), (m[4] or "").strip()])
            wrapped = None
    return pieces


def read_lines(path, source):
    """What the debug information says: [(address, line of the source or 0)],
    in order."""
    text = subprocess.run(["objdump", "--dwarf=decodedline", path], check=True,
                          text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL).stdout
    found = {}
    for m in re.finditer(r"^(\S+)\s+(\d+|-)\s+0x(\w+)", text, re.M):
        mine = os.path.basename(m[1]) == source and m[2] != "-"
        found[int(m[3], 16)] = int(m[2]) if mine else 0
    return sorted(found.items())


def read_elf(path):
    """(bytes of headers, [(section, address, size)])."""
    text = subprocess.run(["readelf", "-hSW", path], check=True, text=True,
                          stdout=subprocess.PIPE).stdout
    number = {k: int(v) for k, v in re.findall(
        r"(Size of \w+ headers|Number of \w+ headers|Size of this header):"
        r"\s+(\d+)", text)}
    headers = number["Size of this header"] + sum(
        number["Size of %s headers" % k] * number["Number of %s headers" % k]
        for k in ("program", "section"))
    sections = [(name, int(at, 16), int(size, 16)) for name, at, size in
                re.findall(r"\] (\.\S+)\s+\w+\s+(\w+) \w+ (\w+)", text)]
    return headers, sections


def kind(section):
    if section in (".text", ".init", ".fini", ".plt"):
        return "code"
    if section.startswith((".rodata", ".eh_frame", ".gcc_except")):
        return "constants"
    return "zeroes" if section in (".bss", ".tbss") else "data"


def library_group(file):
    """libc.a(vfprintf.lo): ("libc", "printf")."""
    m = re.search(r"(\w+)\.a\((.*?)\.\w+\)$", file)
    if m is None:
        return "compiler", os.path.basename(file) or "?"
    for group, names in GROUPS.get(m[1], (("", ""),)):
        if re.search(names, m[2]):
            return m[1], group
    return m[1], ""


class Account:
    def __init__(self, source, elf, linker_map, debug, objects):
        self.rows = collections.defaultdict(collections.Counter)
        self.sections = banners(source)
        self.defined = definitions(source, self.sections)
        self.objects = objects
        self.lines = read_lines(debug, os.path.basename(source))
        headers, sections = read_elf(elf)
        pieces = read_map(linker_map)
        if not set(sections[:2]) <= set(read_elf(debug)[1]):
            sys.exit("the code with debug information is another one")
        for name, address, size in sections:
            mine = sorted((p for p in pieces if p[0] == name and
                           address <= p[2] < address + size),
                          key=lambda p: p[2])
            if not address or not mine:
                self.add(("ELF", name), "other", size)
                continue
            self.add(("alignment", ""), "other", mine[0][2] - address)
            ends = [p[2] for p in mine[1:]] + [address + size]
            for piece, end in zip(mine, ends):
                self.piece(piece, end, kind(name))
        self.add(("ELF", "headers"), "other", headers)
        self.size = os.path.getsize(elf)
        left = self.size - sum(
            n for row in self.rows.values() for k, n in row.items()
            if k != "zeroes")
        self.add(("alignment", ""), "other", left)

    def add(self, row, kind_, n):
        self.rows[row][kind_] += n

    def piece(self, piece, end, kind_):
        _, name, at, _, file = piece
        if name == "*fill*":
            in_file = "zeroes" if kind_ == "zeroes" else "other"
            self.add(("alignment", ""), in_file, end - at)
        elif not re.fullmatch(self.objects, file):
            self.add(library_group(file), kind_, end - at)
        elif kind_ == "code":
            self.code(at, end)
        else:
            self.add(self.owner(name), kind_, end - at)

    def code(self, at, end):
        """Code of registrator.c: by the lines that it was made of."""
        i = bisect.bisect_right(self.lines, (at, 1 << 62)) - 1
        row = ("registrator.c", "without a line")
        while at < end:
            line = self.lines[i][1] if i >= 0 else 0
            names = [name for first, name in self.sections if first <= line]
            row = ("registrator.c", names[-1]) if names else row
            i += 1
            to = self.lines[i][0] if i < len(self.lines) else end
            self.add(row, "code", min(to, end) - at)
            at = min(to, end)

    def owner(self, name):
        parts = name.lstrip(".").split(".")[1:]
        while parts and parts[0] in ("startup", "unlikely", "exit", "rel",
                                     "ro", "local"):
            parts = parts[1:]
        where = self.defined.get(parts[0] if parts else "", ())
        return "registrator.c", (next(iter(where)) if len(where) == 1
                                 else "texts in tables")

    def print(self):
        order = [name for _, name in self.sections]

        def key(item):
            (file, group), row = item
            files = ["registrator.c", "libbearssl", "libc"]
            tail = {"compiler": 7, "ELF": 8, "alignment": 9}
            at = files.index(file) if file in files else tail.get(file, 5)
            return (at, file, order.index(group) if group in order else
                    100 if file == "registrator.c" else -total(row))
        print("%-32s %9s %9s %9s %9s %9s %9s" % ("", "bytes", *KINDS))
        sums = collections.defaultdict(collections.Counter)
        for (file, _), row in self.rows.items():
            sums[file] += row
        last = None
        for (file, group), row in sorted(self.rows.items(), key=key):
            if file != last:
                self.line(file, sums[file])
            if group and file != "compiler" and any(row.values()):
                self.line("  " + group, row)
            last = file
        self.line("the file", sum(self.rows.values(), collections.Counter()))

    @staticmethod
    def line(title, row):
        print("%-32s %9s %9s %9s %9s %9s %9s" % (
            title, "{:,}".format(total(row)),
            *("{:,}".format(row[k]) if row[k] else "" for k in KINDS)))


def total(row):
    return sum(n for k, n in row.items() if k != "zeroes")


def main():
    words = sys.argv[1:]
    variables = [w for w in words if "=" in w]
    binary = next((w for w in words if "=" not in w), "./registrator")
    cc = subprocess.run(
        ["make", "-s", *variables, "--eval=its-cc: ; @echo $(CC)", "its-cc"],
        cwd=TOP, check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as tmp:
        build = tmp + "/build"
        shutil.copytree(TOP, build, ignore=shutil.ignore_patterns(
            ".git", "registrator"))
        with open(tmp + "/debug-cc", "w") as f:
            f.write(DEBUG_CC % cc)
        os.chmod(tmp + "/debug-cc", 0o755)
        for compiler in (tmp + "/debug-cc", "%s -Wl,-Map=%s/map" % (cc, tmp)):
            if os.path.exists(build + "/registrator"):
                os.rename(build + "/registrator", tmp + "/debug")
            subprocess.run(["make", "-s", *variables, "CC=" + compiler,
                            "registrator"], cwd=build, check=True,
                           stdout=subprocess.DEVNULL)
        account = Account(build + "/registrator.c", build + "/registrator",
                          tmp + "/map", tmp + "/debug",
                          r"/tmp/\S+\.o|(\./)?registrator\.o")
        with open(build + "/registrator", "rb") as f:
            built = f.read()
    same = os.path.exists(binary) and open(binary, "rb").read() == built
    print("# %s %s this build" % (binary, "is" if same else "is not"))
    account.print()


if __name__ == "__main__":
    main()
