#!/usr/bin/env python3
"""Counts the mutable state of the program: fields of its long-lived structs that change after they were made.

    python3 tests/fields.py [FILE]

Each of them is something that a reader must keep in mind.  design.md allows 90; version 8.0.0 had 137, counted
on the same ground: connections, sides, containers, entries.  What hangs in these and was not counted then is
counted apart, with a limit of its own, so that nothing can hide there.

Every struct that can be reached from ROOTS must be in one of the tables here.  A field counts unless it is
listed as fixed; a struct that has a line of its own is not counted again where it is a member (a side has two
retries: their fields count once).  A name in a table that the program does not have is an error.
"""
import re
import sys

LIMIT, LIMIT_BESIDES = 90, 20
# Where no member leads: registry.own, the context of a request, and the bytes of entries.others.
ROOTS = ["app", "consul", "other"]

# The structs of the limit, in the order of the file; and why a field of them never changes.
STATE = {
    "request": {"bytes alone stream context body done": "set before it is sent"},
    "conn": {"peer": "the endpoint that has it"},
    "endpoint": {"name pool": "of conn_init",
                 "host port host_header": "set at the start; the default socket, which changes, has none",
                 "conn": "its connections, counted as such"},
    "retry": {},
    "node": {"key": "of index_add", "all": "in it until index_remove"},
    "index": {},
    "queue": {},
    "side": {"kind peer": "of side_init", "first_pause_ms": "of app_open",
             "json": "scratch: nothing of it outlives a callback"},
    "reg_entry": {},
    "entries": {"reg": "of entries_init", "cleanup hostname": "of the command line"},
    "container": {"containers": "of container_get"},
    "containers": {"entries": "of containers_init",
                   "default_socket on_success ip ip_is_interface resync_ms options": "of the command line"},
    "app": {"opt": "of the command line"},
}

# What hangs in these and was not counted in 8.0.0.
BESIDES = {
    "tls_config": {"on insecure name ca_file cert_file key_file": "of the start"},
    "registry": {"kind own": "of app_open_registry", "ip_given ttl_s refresh_s": "of the command line"},
    "consul": {"query user token_file": "of consul_open"},
    "write": {"entries entry key text want owner renewal": "of entry_write"},
    "reg_write": {"op key text replace_checks": "of entry_write"},
    "service": {"id name address port exposed proto default_id tag tags attr attrs": "of svc_derive",
                "id_digest set": "the same", "entry order key want": "of entries_claim"},
    "svc_set": {"arena service n container several": "of svc_derive"},
    "svc_config": {"only_named internal hostname ip_label tags": "of the command line"},
    "options": {"*": "of the command line"},
    "other": {"*": "of a row of the list"},
}

# Types that count as one field wherever they are a member, and why.
WHOLE = {
    "buf": "bytes and their number", "str": "a slice", "link": "a place in a list", "arena": "memory",
    "splitter": "a parser, tested for every split of its input", "http": "the same",
    "json": "tokens of one text",
    "tls": "BearSSL's engine and what it has seen: tested by itself", "digest": "one value, set at once",
    "os_addr": "an address", "err": "a sentence", "svc_meta": "of svc_derive", "tls_creds": "of tls_load",
    "docker_container": "the inspect at hand", "reg_kind": "constant", "side_kind": "constant",
}


def structs(text):
    """Of each struct its fields: [(name, the struct that it is or points to, whether it is a pointer)]."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    found = {}
    for match in re.finditer(r"^struct (\w+) \{\n(.*?)^\};", text, re.M | re.S):
        fields = []
        body = re.sub(r"\benum \{[^}]*\}", "enum", match.group(2))
        for part in body.split(";"):
            part = " ".join(part.split())
            if not part:
                continue
            function = re.search(r"\(\*(\w+)\)\(", part)
            if function:
                fields.append((function.group(1), None, True))
                continue
            of = re.search(r"\bstruct (\w+)", part)
            names = re.sub(r"^(?:(?:const|unsigned|struct \w+|enum \w+|enum|\w+) )+(?=[*\w])", "", part)
            for name in names.split(","):
                plain = re.sub(r"\[.*?\]", "", name.split(":")[0])
                fields.append((plain.strip(" *"), of and of.group(1), "*" in name))
        found[match.group(1)] = fields
    return found


def count(found, fixed, name, problems):
    """The mutable fields of a struct."""
    listed = set()
    for names in fixed:
        listed |= set(names.split())
    have = {field for field, _, _ in found[name]}
    problems += [f"struct {name} has no field {field}" for field in sorted(listed - have - {"*"})]
    return [field for field, of, pointer in found[name]
            if field not in listed and "*" not in listed and (pointer or of not in {**STATE, **BESIDES})]


def reach(found, problems):
    """Follows the members from ROOTS: each struct on the way must be in a table."""
    todo, seen = list(ROOTS), set()
    while todo:
        name = todo.pop()
        if name in seen or name in WHOLE:
            continue
        seen.add(name)
        if name not in STATE and name not in BESIDES:
            problems.append(f"struct {name} is in no table")
        todo += [of for _, of, _ in found.get(name, []) if of]
    for name in sorted({*STATE, *BESIDES, *WHOLE} - set(found)):
        problems.append(f"there is no struct {name}")


def main():
    with open(sys.argv[1] if sys.argv[1:] else "registrator.c", encoding="utf-8") as file:
        found = structs(file.read())
    problems, lines, sums = [], [], []
    reach(found, problems)
    for table in STATE, BESIDES:
        sums.append(0)
        for name, fixed in table.items():
            fields = count(found, fixed, name, problems) if name in found else []
            sums[-1] += len(fields)
            lines.append(f"# {name} {len(fields)}: {' '.join(fields)}".rstrip(': '))
        lines.append(f"# sum {sums[-1]}")
    for sum_, limit in zip(sums, (LIMIT, LIMIT_BESIDES)):
        if sum_ > limit:
            problems.append(f"{sum_} mutable fields, not {limit}")
    print("\n".join(lines))
    print("not ok lint fields: " + "; ".join(problems) if problems
          else f"ok lint fields: {sums[0]} that change, and {sums[1]} besides")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
