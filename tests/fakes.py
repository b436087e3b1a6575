"""A scripted Docker engine and a scripted Consul agent, the peers of registrator in its tests.

Both speak HTTP/1.1 with keep-alive, as the real ones do (Content-Length for
short answers, chunks for long ones), keep state, and record every request.  A request that
registrator has no business to send is noted in `complaints`.

By default they behave well.  A test makes them misbehave with rules:

    peer.on("GET /containers/*/json", (500, {"message": "no"}), times=3)

The first rule whose glob matches "METHOD /path" gives the answer.  An answer is
    (status, value)          a message: a dict or list goes as JSON, str and bytes as they are
    b"..."                   these raw bytes, then the connection is closed
    async function(writer)   takes over the connection, which is closed when it returns
    Late(seconds, answer)    any of these, after a while
    function(request)        gives one of the above, or None to behave well after all
"""
import asyncio
import fnmatch
import hashlib
import inspect
import ipaddress
import json
import os
import re
import time
from collections import namedtuple
from urllib.parse import parse_qs, unquote, unquote_to_bytes

Request = namedtuple("Request", "method path query headers body target")
# path: as sent, without the query (and, for the engine, without "/v1.41"); query: {name: value}

REGISTER = "/v1/agent/service/register"
DEREGISTER = "/v1/agent/service/deregister/"
LONGEST_HEAD = 1 << 20      # an ID of 100 kB stands in a request line


async def hang(_writer):
    """An answer: none."""
    await asyncio.sleep(3600)


class Late:
    """An answer that comes after so many seconds; a function() is called only then, and gives it."""

    def __init__(self, seconds, answer):
        self.seconds = seconds
        self.answer = answer

    async def wait(self):
        await asyncio.sleep(self.seconds)
        plain = callable(self.answer) and not inspect.iscoroutinefunction(self.answer)
        return self.answer() if plain else self.answer


async def plainly(writer, data):
    writer.write(data)
    await writer.drain()


class Peer:
    """An HTTP server whose answers come from rules or from the subclass's answer()."""

    methods = b"GET|PUT"        # all that it may be asked with

    def __init__(self):
        self.requests = []
        self.complaints = []
        self.banner = b""       # sent on a connection before anything is read
        self.rules = []
        self.servers = []
        self.connections = {}   # task: writer
        self.deliver = plainly  # async function(writer, data): sends an answer

    async def listen(self, path=None, port=0):
        """Listens on a unix socket or a loopback port; gives its path or the port."""
        if path:
            if os.path.exists(path):
                os.unlink(path)     # left over by close(), as by a killed engine
            server = await asyncio.start_unix_server(self.serve, path, limit=LONGEST_HEAD)
        else:
            server = await asyncio.start_server(self.serve, "127.0.0.1", port, limit=LONGEST_HEAD)
            port = server.sockets[0].getsockname()[1]
        self.servers.append(server)
        return path or port

    def drop(self):
        """Cuts every connection."""
        for task, writer in list(self.connections.items()):
            writer.transport.abort()
            task.cancel()

    def close(self):
        """Goes away: nothing listens any more, every connection is cut."""
        for server in self.servers:
            server.close()
        self.servers = []
        self.drop()

    def on(self, glob, answer, times=None):
        self.rules.append([glob, answer, times])

    def behave(self):
        self.rules = []
        self.banner = b""

    def complain(self, text):
        self.complaints.append("%s: %s" % (type(self).__name__, text))

    def ruled(self, request):
        for rule in self.rules:
            glob, answer, times = rule
            if times == 0 or not fnmatch.fnmatchcase("%s %s" % (request.method, request.path), glob):
                continue
            if callable(answer) and not inspect.iscoroutinefunction(answer):
                answer = answer(request)
            if answer is not None:
                if times:
                    rule[2] -= 1
                return answer
        return None

    def answered(self, request, answer):
        """A whole message has been sent."""

    async def serve(self, reader, writer):
        task = asyncio.current_task()
        self.connections[task] = writer
        try:
            writer.write(self.banner)
            while True:
                request = await self.read(reader)
                self.requests.append(request)
                answer = self.ruled(request)
                if answer is None:
                    answer = self.answer(request)
                if isinstance(answer, Late):
                    answer = await answer.wait()
                if callable(answer):
                    await answer(writer)
                    break
                await self.deliver(writer, answer if isinstance(answer, bytes) else message(*answer))
                if isinstance(answer, bytes):
                    break
                self.answered(request, answer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        except ValueError as e:     # also LimitOverrunError's cousins: what came is not HTTP
            self.complain(str(e))
        finally:
            del self.connections[task]
            writer.close()

    async def read(self, reader):
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head[:-4].split(b"\r\n")
        if not re.fullmatch(rb"(%s) /[!-~]* HTTP/1\.[01]" % self.methods, line):
            raise ValueError("bad request line %.200r" % line)
        method, target, _ = line.decode().split(" ")
        headers = {}
        for field in fields:
            if not re.fullmatch(rb"[A-Za-z0-9-]+:[ \t!-~]*", field):
                raise ValueError("bad header %.200r" % field)
            name, value = field.decode().split(":", 1)
            if name.lower() in headers:
                raise ValueError("header %s twice" % name)
            headers[name.lower()] = value.strip()
        if not headers.get("host"):
            raise ValueError("no Host in %.200r" % head)
        if "transfer-encoding" in headers:
            raise ValueError("a chunked request")
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path, _, query = target.partition("?")
        query = {k: v[-1] for k, v in parse_qs(query, keep_blank_values=True).items()}
        return Request(method, path, query, headers, body, target)


def message(status, value=b""):
    """One HTTP response, framed as Go's server frames it: chunked if it is long."""
    data = body_of(value)
    kind = "application/json" if data[:1] in (b"{", b"[") else "text/plain"
    head = "HTTP/1.1 %d %s\r\nContent-Type: %s\r\n" % (status, "OK" if status < 300 else "Error", kind)
    if len(data) < 2048:
        return b"%sContent-Length: %d\r\n\r\n%s" % (head.encode(), len(data), data)
    return b"%sTransfer-Encoding: chunked\r\n\r\n%s0\r\n\r\n" % (
        head.encode(), b"".join(chunk(data[i:i + 4000]) for i in range(0, len(data), 4000)))


def body_of(value):
    if isinstance(value, (dict, list)):
        value = json.dumps(value)
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


# ---- containers --------------------------------------------------------------------------------

def box(name, ports=None, *, image="app", env=(), labels=None, mode="bridge", nets=None, expose=(),
        state="running"):
    """The body of GET /containers/{id}/json.

    ports: {80: 8080}: published on all addresses; {80: "127.0.0.1:8080"}: on one; {80: None}: not
    published; a list of these for several bindings; "53/udp" for a udp port.  nets: {name: address}.
    """
    ports = {protocol(port): bindings(to) for port, to in (ports or {}).items()}
    if nets is None:
        own = mode not in ("host", "none") and not mode.startswith("container:")
        nets = {mode.replace("default", "bridge"): "172.17.0.5"} if own else {}
    return {
        "Id": hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest(),
        "Name": "/" + name,
        "Image": "sha256:" + "ab" * 32,
        "State": state_of(state),
        "Config": {"Image": image, "Env": list(env), "Labels": labels or {}, "Hostname": name,
                   "ExposedPorts": {protocol(p): {} for p in [*ports, *expose]} or None},
        "HostConfig": {"NetworkMode": mode, "PortBindings": {}},
        "NetworkSettings": {
            "Ports": ports, "IPAddress": nets.get("bridge", ""), "GlobalIPv6Address": "",
            "Networks": {net: {"NetworkID": hashlib.sha256(net.encode()).hexdigest(), "Gateway": "",
                               "IPAddress": address, "GlobalIPv6Address": ""}
                         for net, address in nets.items()}}}


def protocol(port):
    return str(port) if "/" in str(port) else "%s/tcp" % port


def bindings(to):
    if to is None:
        return None
    if isinstance(to, int):     # all addresses, as Docker shows it since 20.10
        to = ["0.0.0.0:%d" % to, ":::%d" % to]
    split = [one.rpartition(":") for one in ([to] if isinstance(to, str) else to)]
    return [{"HostIp": address, "HostPort": port} for address, _, port in split]


def state_of(status, code=0):
    return {"Status": status, "ExitCode": code, "Running": status in ("running", "paused", "restarting"),
            "Paused": status == "paused", "Restarting": status == "restarting", "Dead": status == "dead",
            "OOMKilled": False, "Pid": 4242 if status in ("running", "paused") else 0, "Error": ""}


def listing(container):
    """The GET /containers/json row of an inspected container."""
    ports = []
    for key, to in (container["NetworkSettings"].get("Ports") or {}).items():
        port, _, kind = key.partition("/")
        if not to:
            ports.append({"PrivatePort": int(port), "Type": kind or "tcp"})
        for b in to or []:
            ports.append({"IP": b["HostIp"], "PrivatePort": int(port),
                          "PublicPort": int(b["HostPort"] or 0), "Type": kind or "tcp"})
    return {"Id": container["Id"], "Names": [container["Name"]],
            "Image": container["Config"]["Image"], "Labels": container["Config"].get("Labels") or {},
            "State": container["State"].get("Status", "running"), "Status": since(container["State"]), "Ports": ports,
            "HostConfig": {"NetworkMode": container["HostConfig"]["NetworkMode"]},
            "NetworkSettings": {"Networks": container["NetworkSettings"].get("Networks") or {}}}


def since(state):
    """A state in the words of a list."""
    words = {"exited": "Exited (%d) 1 second ago", "restarting": "Restarting (%d) 1 second ago",
             "created": "Created", "dead": "Dead", "paused": "Up 1 second (Paused)"}.get(state.get("Status"))
    return (words or "Up 1 second").replace("%d", str(state.get("ExitCode")))


EVENTS_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


class Engine(Peer):
    """Docker.  The verbs (start, die, ...) change a container and tell it to who listens."""

    def __init__(self, boxes=(), name="engine"):
        super().__init__()
        self.boxes = {b["Id"]: b for b in boxes}
        self.name = name
        self.drivers = {}       # network name: driver, if it is not bridge
        self.form = "1.10"      # of events: 1.3 (status, id, from), 1.10 (both), 29 (Type, Action, Actor)
        self.between = "{}\n"   # an event in the stream
        self.raw = False        # text is sent as UTF-8, "\\udcXX" as the broken byte XX, not as \uXXXX
        self.head = EVENTS_HEAD     # of the event stream
        self.late_head = False  # as Docker 1.7: the head of the stream comes with the first event (of one stream)
        self.streams = {}       # writer: filters
        self.held = None        # events that wait to go out in one piece

    async def read(self, reader):
        request = await super().read(reader)
        return request._replace(path=re.sub(r"^/v\d+\.\d+(?=/)", "", request.path))

    def answer(self, request):
        parts = [unquote(p) for p in request.path.split("/")[1:]]
        if request.method != "GET":
            self.complain("asked to %s %s" % (request.method, request.target))
            return 405, {"message": "not allowed"}
        if parts == ["events"]:
            return lambda writer: self.follow(request, writer)
        if parts == ["_ping"]:
            return 200, "OK"
        if parts == ["version"]:
            return 200, {"Version": "20.10.24", "ApiVersion": "1.41", "MinAPIVersion": "1.12"}
        if parts == ["info"]:
            return 200, {"ID": "PARI:TYEN:GINE", "Name": self.name, "ServerVersion": "20.10.24",
                         "Swarm": {"LocalNodeState": "inactive"}}
        if parts == ["containers", "json"]:
            all_ = request.query.get("all") in ("1", "true")
            return 200, self.text([listing(b) for b in self.boxes.values() if all_ or b["State"]["Running"]])
        if len(parts) == 3 and parts[::2] == ["containers", "json"]:
            if parts[1] in self.boxes:
                return 200, self.text(self.boxes[parts[1]])
            return 404, {"message": "No such container: " + parts[1]}
        if parts == ["networks"]:
            return 200, list({net["Id"]: net for net in self.networks()}.values())
        if len(parts) == 2 and parts[0] == "networks":
            for net in self.networks():
                if parts[1] in (net["Name"], net["Id"]):
                    return 200, net
            return 404, {"message": "network %s not found" % parts[1]}
        self.complain("asked for " + request.target)
        return 404, {"message": "page not found"}

    def networks(self):
        """Of each container, those that it is on."""
        for b in self.boxes.values():
            for name, row in (b["NetworkSettings"].get("Networks") or {}).items():
                yield {"Name": name, "Id": row.get("NetworkID", ""), "Scope": "local",
                       "Driver": self.drivers.get(name, "bridge")}

    def text(self, value):
        return json.dumps(value, ensure_ascii=not self.raw)

    async def follow(self, request, writer):
        self.streams[writer] = json.loads(request.query.get("filters") or "{}")
        try:
            if not self.late_head:
                writer.write(self.head)
            await asyncio.sleep(3600)
        finally:
            self.streams.pop(writer, None)

    def send(self, data):
        """Writes raw bytes into every event stream."""
        for writer in self.streams:
            self.tell(writer, data)

    def tell(self, writer, data):
        if not writer.is_closing():
            writer.write((self.head if self.late_head else b"") + chunk(data))
            self.late_head = False

    def end_events(self, tail=b"0\r\n\r\n"):
        for writer in self.streams:
            writer.write(tail)
            writer.close()
        self.streams.clear()

    def emit(self, action, who, kind="container", **attributes):
        image = who["Config"]["Image"]
        if kind == "network":
            actor = {"ID": "6e64b97e" * 8, "Attributes": {"container": who["Id"], "type": "bridge", **attributes}}
        else:
            actor = {"ID": who["Id"], "Attributes": {**who["Config"]["Labels"], "image": image,
                                                     "name": who["Name"][1:], **attributes}}
        old = {"status": action, "id": who["Id"], "from": image} if kind == "container" else {}
        new = {"Type": kind, "Action": action, "Actor": actor, "scope": "local"}
        now = {"time": int(time.time()), "timeNano": time.time_ns()}
        event = {"1.3": {**old, "time": now["time"]}, "1.10": {**old, **new, **now}, "29": {**new, **now}}[self.form]
        data = self.between.replace("{}", self.text(event)).encode("utf-8", "surrogateescape")
        if self.held is not None:
            self.held += data
            return
        for writer, filters in self.streams.items():
            if all(value in filters.get(key, [value]) for key, value in (("event", action), ("type", kind))):
                self.tell(writer, data)

    def at_once(self):
        """with engine.at_once(): the events made inside reach the listeners in one piece."""
        return Held(self)

    def start(self, who, action="start"):
        who["State"] = state_of("running")
        self.boxes[who["Id"]] = who
        self.emit(action, who)

    def die(self, who, code=0, action="die"):
        who["State"] = state_of("exited", code)
        self.boxes[who["Id"]] = who
        self.emit(action, who, exitCode=str(code))

    def destroy(self, who, action="destroy"):
        del self.boxes[who["Id"]]
        self.emit(action, who)

    def rename(self, who, name):
        old, who["Name"] = who["Name"], "/" + name
        self.emit("rename", who, oldName=old)

    def attach(self, who, nets):
        """The container's networks are now these."""
        have, model = who["NetworkSettings"]["Networks"], box("x", nets=nets)
        gone, new = have.keys() - nets.keys(), nets.keys() - have.keys()
        who["NetworkSettings"]["Networks"] = model["NetworkSettings"]["Networks"]
        for net in gone:
            self.emit("disconnect", who, "network", name=net)
        for net in new:
            self.emit("connect", who, "network", name=net)


class Held:
    def __init__(self, engine):
        self.engine = engine

    def __enter__(self):
        self.engine.held = b""

    def __exit__(self, *_):
        data, self.engine.held = self.engine.held, None
        self.engine.send(data)


# ---- Consul ------------------------------------------------------------------------------------

CHECK_KEYS = {"CheckID", "Name", "Notes", "HTTP", "Method", "Header", "Body", "TLSSkipVerify", "TCP", "GRPC",
              "GRPCUseTLS", "Args", "TTL", "Interval", "Timeout", "Status", "DeregisterCriticalServiceAfter",
              "SuccessBeforePassing", "FailuresBeforeCritical"}
SERVICE_KEYS = {"ID", "Name", "Tags", "Port", "Address", "Meta", "Weights", "EnableTagOverride", "Check", "Checks"}
DURATION = re.compile(r"([0-9]+(\.[0-9]*)?(ns|us|ms|s|m|h))+|0")


def refusal(service):
    """Why Consul 1.8.7 would answer 400 to this registration, or None."""
    check = service.get("Check") or {}
    for extra in (service.keys() - SERVICE_KEYS) | (check.keys() - CHECK_KEYS):
        return 'Request decode failed: json: unknown field "%s"' % extra
    if not service.get("Name"):
        return "Missing service name"
    if not isinstance(service.get("Port", 0), int):
        return "Request decode failed: json: cannot unmarshal string into Go struct field .Port of type int"
    if service.get("Address") in ("0.0.0.0", "::"):
        return "Invalid service address"
    meta = service.get("Meta") or {}
    if len(meta) > 64:
        return "Invalid Service Meta: Node metadata cannot contain more than 64 key/value pairs"
    for key, value in meta.items():
        if not re.fullmatch("[A-Za-z0-9_-]{1,128}", key) or key.startswith("consul-") or len(value.encode()) > 512:
            return "Invalid Service Meta: Couldn't load metadata pair ('%s', ...)" % key
    for key in ("TTL", "Interval", "Timeout", "DeregisterCriticalServiceAfter"):
        if not DURATION.fullmatch(check.get(key) or "0"):
            return 'Request decode failed: time: unknown unit "x" in duration "%s"' % check[key]
    if check and not check.get("TTL") and not check.get("Interval"):
        return "Invalid check: Interval must be > 0 for Script, HTTP, or TCP checks"
    if check.get("Status", "") not in ("", "passing", "warning", "critical"):
        return "Status for checks must 'passing', 'warning', 'critical'"
    return None


def no_pair_twice(pairs):
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


class Consul(Peer):
    """A Consul 1.8.7 agent: keeps services and their checks as it does, and shows them as it does."""

    def __init__(self):
        super().__init__()
        self.address = "192.0.2.10"     # what it advertises
        self.services = {}      # ID: as /v1/agent/services shows it
        self.checks = {}        # ID: the check it runs for the service
        self.sent = {}          # ID: the last registration, as it was sent
        self.keeps_meta = True  # as since 1.0.7
        self.touched = None     # loop time of the last registration

    def answer(self, request):
        path = request.path
        if path == "/v1/status/leader":
            return 200, '"127.0.0.1:8300"'
        if path == "/v1/agent/self":
            version = "1.8.7" if self.keeps_meta else "0.9.3"
            return 200, {"Config": {"NodeName": "node", "Version": version, "Server": True},
                         "Member": {"Name": "node", "Addr": self.address, "Port": 8301}}
        if path == "/v1/agent/services":
            return 200, self.pretty(self.services)
        if path == REGISTER and request.method == "PUT":
            return self.register(request)
        if path.startswith(DEREGISTER) and request.method == "PUT":
            return self.deregister(path)
        self.complain("asked to %s %s" % (request.method, request.target))
        return 405, "method %s not allowed" % request.method

    def pretty(self, value):
        text = json.dumps(value, ensure_ascii=False, indent=4)
        return re.sub("[<>&\u2028\u2029]", lambda m: "\\u%04x" % ord(m[0]), text)     # as Go does

    def register(self, request):
        try:
            service = json.loads(request.body.decode(), object_pairs_hook=no_pair_twice)
            json.dumps(service, ensure_ascii=False).encode()    # no lone surrogates
        except ValueError as e:
            self.complain("registration %.300r: %s" % (request.body, e))
            return 400, "Request decode failed: %s" % e
        why = refusal(service)
        if why:
            return 400, why
        self.touched = asyncio.get_running_loop().time()
        self.put(service, "replace-existing-checks" in request.query)
        return 200, b""

    def put(self, service, replace=False):
        name = service.get("ID") or service["Name"]
        self.sent[name] = service
        self.services[name] = {
            "ID": name, "Service": service["Name"], "Tags": service.get("Tags") or ([] if self.keeps_meta else None),
            "Port": service.get("Port", 0), "Address": service.get("Address", ""),
            "EnableTagOverride": service.get("EnableTagOverride", False)}
        if self.keeps_meta:
            self.services[name].update(
                Meta=service.get("Meta") or {}, TaggedAddresses=self.tagged(service),
                Weights=service.get("Weights") or {"Passing": 1, "Warning": 1})
        if replace:
            self.checks.pop(name, None)
        if service.get("Check"):
            self.checks[name] = service["Check"]

    def tagged(self, service):
        try:
            kind = "ipv%d" % ipaddress.ip_address(service.get("Address", "")).version
        except ValueError:
            return {}
        here = {"Address": service["Address"], "Port": service.get("Port", 0)}
        return {"lan_" + kind: here, "wan_" + kind: here}

    def deregister(self, path):
        name = unquote_to_bytes(path[len(DEREGISTER):]).decode("utf-8", "replace")
        if name.startswith("/") or "//" in name or {".", ".."} & set(name.split("/")):
            return 301, "moved"
        if not name.isprintable():
            return 400, b""
        self.services.pop(name, None)
        self.checks.pop(name, None)
        return 200, b""

    def forget(self, keep=()):
        """As if it had been started again, empty but for these."""
        for table in (self.services, self.checks, self.sent):
            for name in table.keys() - set(keep):
                del table[name]
        self.drop()

    def writes(self):
        """Every write that came, also a refused one: [("register" or "deregister", ID, query)]."""
        out = []
        for r in self.requests:
            if r.path == REGISTER:
                service = json.loads(r.body.decode("utf-8", "replace"))
                out.append(("register", service.get("ID") or service.get("Name"), r.query))
            elif r.path.startswith(DEREGISTER):
                out.append(("deregister", unquote(r.path[len(DEREGISTER):]), r.query))
        return out
