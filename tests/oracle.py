"""What must be registered: sections 4, 5 and 7 of the contract, written down a second time.

services() takes a container as inspect shows it, and the container whose network it shares; it knows
nothing of registrator.c.  Metadata that the contract refuses (a key Consul would not take, an ID that
could not be deregistered) are not handled: nobody here makes any.
"""
import json
import re
from collections import namedtuple

Service = namedtuple("Service", "id name address port tags meta check usual")
# usual: the ID is the default one, nobody has chosen it

Options = namedtuple("Options", "hostname internal explicit ip tags on_success cleanup host label",
                     defaults=("h", False, False, "", "", False, False, "192.0.2.10", ""))
# host: the address that Consul's agent advertises; label: -useIpFromLabel

Port = namedtuple("Port", "number udp to")
# to: [(address, port)] of its bindings, None: only exposed, "exposed": of Config.ExposedPorts alone

CHECKS = ["check_http", "check_https", "check_cmd", "check_script", "check_ttl", "check_tcp", "check_grpc"]
ROUTABLE = ("macvlan", "ipvlan")


def fold(name):
    """Consul's catalog knows no difference between these IDs."""
    return name.lower()


def is_usual(name, hostname):
    """Whether -cleanup speaks of an entry of that ID."""
    found = re.fullmatch(r"(.+?):([a-zA-Z0-9][a-zA-Z0-9_.-]+):[0-9]+(:udp)?", name)
    return bool(found) and found[1] == hostname


# ---- metadata: section 4 -----------------------------------------------------------------------

def metadata(box, number):
    """({key: value} that counts for this port, the keys that speak of this port alone)"""
    generic, narrow = {}, {}
    variables = [variable.split("=", 1) for variable in box["Config"]["Env"] if "=" in variable]
    for name, value in [*variables, *box["Config"]["Labels"].items()]:
        if not name.startswith("SERVICE_"):
            continue
        key = name[len("SERVICE_"):].lower()
        digits, _, rest = key.partition("_")
        if digits.isdigit() and rest:
            if int(digits) == number:
                narrow[rest] = value
        else:
            generic[key] = value
    return {**generic, **narrow}, narrow.keys()


def split_tags(text):
    return [tag.replace("\0", ",") for tag in text.replace("\\,", "\0").split(",") if tag]


def image_name(box):
    image = box["Config"]["Image"].split("@")[0]
    return image.rsplit("/", 1)[-1].split(":")[0]


# ---- where a port is reached: sections 4 and 5 -------------------------------------------------

def ports_of(box):
    """All ports, by number, tcp first."""
    listed = box["NetworkSettings"]["Ports"] or {}
    found = []
    for key in {**listed, **(box["Config"]["ExposedPorts"] or {})}:
        number, _, protocol = key.partition("/")
        to = "exposed"
        if key in listed:
            to = [(b["HostIp"], int(b["HostPort"])) for b in listed[key] or []] or None
        found.append(Port(int(number), protocol == "udp", to))
    return sorted(found, key=lambda p: (p.number, p.udp))


def own_address(box, drivers, routable=False):
    """On the network that NetworkMode names, else on the first by name; of the routable ones, if so told."""
    mode = box["HostConfig"]["NetworkMode"]
    nets = {name: row["IPAddress"] for name, row in box["NetworkSettings"]["Networks"].items()
            if row["IPAddress"] and (not routable or drivers.get(name) in ROUTABLE)}
    first = min(nets) if nets else None
    return nets.get("bridge" if mode == "default" else mode, nets.get(first, ""))


def best(bindings):
    """The first counts, an IPv4 one before an IPv6 one."""
    return next((b for b in bindings if ":" not in b[0]), bindings[0])


def particular(address):
    return address if address not in ("", "0.0.0.0", "::") else ""


def is_host(box):
    return box["HostConfig"]["NetworkMode"] == "host"


def shares_mode(mode):
    return mode.startswith("container:")


def shares(box):
    """Whether it is in another container's network."""
    return shares_mode(box["HostConfig"]["NetworkMode"])


def place(box, peer, port, options, drivers):
    """(address, port) at which others reach it, or None."""
    here = box
    published = options.ip or options.host
    if shares(box):
        if peer is None or port.to != "exposed":
            return None
        here = peer
        same = [p for p in ports_of(peer) if p[:2] == port[:2] and isinstance(p.to, list)]
        to = same[0].to if same else None
    else:
        to = port.to
    if is_host(here):
        return (published, port.number)
    if options.internal:
        address = own_address(here, drivers)
        if port.to == "exposed" and not shares(box) and not own_address(here, drivers, True):
            return None
        return (address, port.number) if address else None
    if isinstance(to, list):
        address, number = best(to)
        return (options.ip or particular(address) or options.host, number)
    if shares(box):
        address = own_address(peer, drivers)
        return (address, port.number) if address else None
    if to == "exposed":
        address = own_address(here, drivers, True)
        return (address, port.number) if address else None
    return None


# ---- checks: section 7 -------------------------------------------------------------------------

def check_of(box, number, address, port, meta):
    kind = next((key for key in CHECKS if meta.get(key)), None)
    if kind is None:
        return None
    value, at = meta[kind], "%s:%d" % ("[%s]" % address if ":" in address else address, port)
    check = {}
    if kind in ("check_http", "check_https"):
        value = value if value.startswith("/") else "/" + value
        check["HTTP"] = "%s://%s%s" % (kind[len("check_"):], at, value)
        if meta.get(kind + "_method"):
            check["Method"] = meta[kind + "_method"]
        if kind == "check_https" and meta.get("check_tls_skip_verify"):
            check["TLSSkipVerify"] = True
    elif kind == "check_cmd":
        check["Args"] = ["check-cmd", box["Id"][:12], str(number), value]
    elif kind == "check_script":
        value = value.replace("$SERVICE_IP", address).replace("$SERVICE_PORT", str(port))
        check["Args"] = ["/bin/sh", "-c", value]
    elif kind == "check_ttl":
        check["TTL"] = value
    else:
        check["TCP" if kind == "check_tcp" else "GRPC"] = at
    if kind != "check_ttl":
        check["Interval"] = meta.get("check_interval") or "10s"
    more = [("check_initial_status", "Status"), ("check_deregister_after", "DeregisterCriticalServiceAfter")]
    if kind not in ("check_ttl", "check_cmd", "check_script"):
        more.append(("check_timeout", "Timeout"))
    check.update({name: meta[key] for key, name in more if meta.get(key)})
    return check


# ---- services ----------------------------------------------------------------------------------

def services(box, peer, options, drivers):
    """Those of a container that runs; peer: the one whose network it shares, if that runs."""
    places = [(port, place(box, peer, port, options, drivers)) for port in ports_of(box)]
    places = [(port, at) for port, at in places if at is not None]
    found, taken = [], set()
    for port, (address, number) in places:
        meta, narrow = metadata(box, port.number)
        own_name, own_id, tags = (meta.pop(key, "") for key in ("name", "id", "tags"))
        if meta.pop("ignore", "") or (options.explicit and not own_name):
            continue
        name = own_name or image_name(box)
        if len(places) > 1 and not (own_name and "name" in narrow):
            name += "-%d" % port.number
        more = ":%d%s" % (port.number, ":udp" if port.udp else "")
        service_id = own_id or "%s:%s%s" % (options.hostname, box["Name"][1:], more)
        while fold(service_id) in taken:
            service_id += more
        taken.add(fold(service_id))
        address = box["Config"]["Labels"].get(options.label, "").split("/")[0] or address
        found.append(Service(
            service_id, name, address, number,
            split_tags(tags) + split_tags(options.tags) + ["udp"] * port.udp,
            meta, check_of(box, port.number, address, number, meta), not own_id))
    return found


def possible_ids(box, options):
    """All that its services could have, wherever its ports are reached."""
    found = set()
    for port in ports_of(box):
        more = ":%d%s" % (port.number, ":udp" if port.udp else "")
        usual = "%s:%s" % (options.hostname, box["Name"][1:])
        for base in (metadata(box, port.number)[0].get("id") or usual, usual):
            found |= {base, base + more}
    return found


def fingerprint(service):
    """The same for what was sent and for what was to be sent."""
    return json.dumps([service.id, service.name, service.address, service.port, service.tags, service.meta,
                       service.check], sort_keys=True)


def read_registration(body):
    """(what a registration says as a Service, our mark in it)"""
    meta = dict(body.get("Meta") or {})
    mark = meta.pop("registrator", "")
    return Service(body.get("ID") or body["Name"], body["Name"], body.get("Address", ""), body.get("Port", 0),
                   body.get("Tags") or [], meta, body.get("Check"), False), mark


def read_entry(row, check):
    """The same of an entry that Consul shows."""
    return read_registration({**row, "Name": row["Service"], "Check": check})
