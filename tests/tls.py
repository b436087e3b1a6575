#!/usr/bin/env python3
"""TLS: registrator before real and scripted servers that speak it.

    python3 tests/tls.py BINARY [PATTERN]    only cases whose name it finds

One line a case: "ok tls NAME", or "not ok tls NAME: why" and details below
it; exits 1 if a case failed.  Needs root and what e2e.py needs, and openssl.

It lives in the namespaces of e2e.py and ends with them.  The scripted cases
are the peers of peers.py behind a TLS server (Front): all certificates that
can be wrong.  The real ones are a dockerd with --tlsverify and Consul agents
that have no plain port.  Certificates are made anew by openssl each time.
"""
import asyncio
import glob
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import namedtuple
from functools import partial

import e2e
import peers
from e2e import ADV, HOST, Agent, Registrator, docker, engine, holds, same, svc, wait_for
from fakes import box
from peers import ROUTINE, SECRET, demand, equal

PKI = e2e.DIR + "/pki"
TOKEN = SECRET + "-token"
PATIENCE_S = 40         # retries are up to 10 s apart
AT_ONCE = 12            # scripted cases
DEAD = "consul-tls://127.0.0.1:9"       # where nobody listens
FORGED = b"x\n2026/01/01 00:00:00 registrator: removed: forged\r\n"
CERTIFICATES = "-----BEGIN CERTIFICATE-----"


# ==== Certificates ==============================================================================

CONFIG = """
[req]
distinguished_name = dn
prompt = no
[dn]
[ca]
default_ca = d
[d]
dir = %(dir)s
database = $dir/index.txt
new_certs_dir = $dir/issued
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copyall
[any]
commonName = supplied
"""


def pem(name):
    return "%s/%s.pem" % (PKI, name)


def key(name):
    return "%s/%s.key" % (PKI, name)


def write(name, *texts):
    """A file among the certificates; gives its path."""
    path = os.path.join(PKI, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "wb") as f:
        for text in texts:
            f.write(text if isinstance(text, bytes) else text.encode())
    os.rename(path + ".new", path)
    return path


def read(path):
    with open(path) as f:
        return f.read()


def openssl(*args):
    return e2e.sh("openssl", *args)


def make_key(name, *kind):
    openssl("genpkey", "-out", key(name), *kind)


def make(name, using, cn, issuer=None, san="", eku="", ca=False, digest="sha256", more=(), dates=(), pathlen=None,
         usage="keyCertSign,cRLSign"):
    """One certificate: name.pem, name.key; without an issuer it signs itself."""
    extensions = ["basicConstraints=critical,CA:%s%s" % ("TRUE" if ca else "FALSE",
                                                         "" if pathlen is None else ",pathlen:%d" % pathlen)]
    if ca:
        extensions.append("keyUsage=critical," + usage)
    if san:
        extensions.append("subjectAltName=" + san)
    if eku:
        extensions.append("extendedKeyUsage=" + eku)
    what = ["-new", "-config", PKI + "/openssl.cnf", "-key", key(using), "-subj", "/CN=" + cn, "-" + digest,
            *sum((["-addext", e] for e in [*extensions, *more]), [])]
    signer = ["-CA", pem(issuer), "-CAkey", key(issuer)] if issuer else []
    if dates:
        openssl("req", *what, "-out", PKI + "/csr")
        openssl("ca", "-batch", "-notext", "-config", PKI + "/openssl.cnf", "-cert", pem(issuer), "-keyfile",
                key(issuer), "-startdate", dates[0], "-enddate", dates[1], "-in", PKI + "/csr", "-out", pem(name))
    else:
        openssl("req", "-x509", "-days", "30", *what, *signer, "-out", pem(name))
    if using != name:
        os.symlink(key(using), key(name))


def der_names(*names):
    """A subjectAltName of any bytes, for make()."""
    def der(tag, data):
        size = len(data)
        return bytes([tag, size] if size < 128 else [tag, 130, size >> 8, size & 255]) + data
    return "DER:" + der(0x30, b"".join(der(0x82, name) for name in names)).hex()


def make_all():
    os.makedirs(PKI + "/issued")
    write("openssl.cnf", CONFIG % {"dir": PKI})
    write("index.txt")
    for name in ("ca", "ca2", "ca3", "k", "k2"):
        make_key(name, "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    for name, curve in (("p384", "P-384"), ("p521", "P-521"), ("koblitz", "secp256k1")):
        make_key(name, "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:" + curve)
    for name, bits in (("rsa", 2048), ("rsa2", 2048), ("rsa1024", 1024)):
        make_key(name, "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:%d" % bits)
    make_key("ed", "-algorithm", "ED25519")

    make("ca", "ca", "test CA", ca=True)
    make("ca2", "ca2", "another CA", ca=True)
    make("ca3", "ca3", "test CA", ca=True)      # the same name, another key
    make("ca-rsa", "rsa2", "RSA CA", ca=True)
    make("ca-ed", "ed", "Ed25519 CA", ca=True)
    make("inter", "k2", "intermediate", "ca", ca=True)

    def server(name, san, using="k", issuer="ca", cn="server", eku="serverAuth", **more):
        make(name, using, cn, issuer, san, eku, **more)
    here = "IP:127.0.0.1"
    server("ip", here)
    server("ip-rsa", here, "rsa", "ca-rsa")
    server("ip-p384", here, "p384")
    server("ip-p521", here, "p521")
    server("ip-many", "DNS:a.example.test,IP:10.0.0.1,IP:::1,IP:127.0.0.1")
    server("ip-critical-san", "critical," + here)
    server("ip-any-use", here, eku="anyExtendedKeyUsage")
    server("ip-no-use", here, eku="")
    server("ip-sha512", here, "rsa", digest="sha512")
    server("ip6", "IP:::1")
    server("name", "DNS:localhost,DNS:server.dc1.consul")
    server("capitals", "DNS:LocalHost")
    server("wild", "DNS:*.example.test")
    server("a", "DNS:a.example.test")
    server("a-b", "DNS:a.b.example.test")
    server("bare", "DNS:example.test")
    server("dc2", "DNS:server.dc2.consul")
    server("other", "DNS:other.example.test,DNS:second.example.test")
    server("ip-other", "IP:10.1.2.3,IP:2001:db8::7")
    server("nul", der_names(b"localhost\0.example.test"))
    server("hostile", der_names(FORGED, b"\x1b[31m\xff\x80", b"%s%n", b"", b'"\\'))
    server("many", der_names(*(b"%03d." % i + b"x" * 56 for i in range(200))))
    server("no-san", "", cn="server")
    server("cn-ip", "", cn="127.0.0.1")
    server("cn-localhost", "", cn="localhost")
    server("dns-ip", "DNS:127.0.0.1")
    server("expired", here, dates=("20200101000000Z", "20210203040506Z"))
    server("future", here, dates=("20980102030405Z", "20990102030405Z"))
    server("for-ever", here, dates=("20200101000000Z", "99991231235959Z"))
    server("self", here, issuer=None)
    server("self-wrong", "DNS:wrong.example.test", "k2", issuer=None)
    server("ca2-ip", here, issuer="ca2")
    server("ca2-localhost", "DNS:localhost", issuer="ca2")
    server("ca3-ip", here, issuer="ca3")
    server("inter-ip", here, issuer="inter")
    for name, more in [("client-use", ["extendedKeyUsage=clientAuth"]),
                       ("limits", ["nameConstraints=permitted;IP:127.0.0.0/255.0.0.0"])]:
        make("inter-" + name, "k2", "intermediate", "ca", ca=True, more=more)
        make("ca-" + name, "ca", "test CA", ca=True, more=more)
    make("ca-old", "ca", "test CA", "ca", ca=True, dates=("20200101000000Z", "20210203040506Z"))
    make("ca-0", "ca", "test CA", ca=True, pathlen=0)
    make("inter-no-sign", "k2", "intermediate", "ca", ca=True, usage="digitalSignature")
    server("huge", here, more=["1.2.3.%d=DER:%s" % (i, "00" * 35000) for i in range(2)])
    server("ed-signed", here, issuer="ca-ed")
    server("client-only", here, eku="clientAuth")
    server("critical", here, more=["1.2.3.4=critical,DER:0500"])
    server("sha1", here, "rsa", digest="sha1")
    server("weak", here, "rsa1024")
    server("ed-leaf", here, "ed")
    server("by-leaf", here, "k2", issuer="a")
    make("inter-old", "k2", "intermediate", "ca", ca=True, dates=("20200101000000Z", "20210203040506Z"))
    for name, first, second in (("inter-chain", "inter-ip", "inter"), ("old-chain", "inter-ip", "inter-old"),
                                ("leaf-chain", "by-leaf", "a"), ("client-use-chain", "inter-ip", "inter-client-use"),
                                ("limits-chain", "inter-ip", "inter-limits"),
                                ("no-sign-chain", "inter-ip", "inter-no-sign"), ("long-chain", "ip", "ca2")):
        write(name + ".pem", read(pem(first)), *[read(pem(second))] * (10 if name == "long-chain" else 1))
        os.symlink(key(first), key(name))

    make("client", "k", "client", "ca", eku="clientAuth")
    make("client-rsa", "rsa", "client", "ca", eku="clientAuth")
    make("client-p384", "p384", "client", "ca", eku="clientAuth")
    make("client-ed", "ed", "client", "ca", eku="clientAuth")
    make("client-koblitz", "koblitz", "client", "ca", eku="clientAuth")
    make("client-ca2", "k2", "client", "ca2", eku="clientAuth")
    make("client-inter", "k", "client", "inter", eku="clientAuth")
    write("client-chain.pem", read(pem("client-inter")), read(pem("inter")))
    os.symlink(key("k"), key("client-chain"))

    openssl("pkey", "-in", key("k"), "-traditional", "-out", key("k.sec1"))
    openssl("pkey", "-in", key("rsa"), "-traditional", "-out", key("rsa.pkcs1"))
    write("k.params.key", openssl("ecparam", "-name", "prime256v1"), "\n", read(key("k.sec1")))
    for name in ("k", "rsa"):
        openssl("pkcs8", "-topk8", "-in", key(name), "-passout", "pass:" + SECRET, "-out", key(name + ".encrypted8"))
    openssl("ec", "-aes128", "-in", key("k"), "-passout", "pass:" + SECRET, "-out", key("k.encrypted1"))
    openssl("rsa", "-traditional", "-aes128", "-in", key("rsa"), "-passout", "pass:" + SECRET,
            "-out", key("rsa.encrypted1"))
    for name in ("k.sec1", "rsa.pkcs1", "client", "client-rsa"):
        for path in (key(name), pem(name)):
            if os.path.exists(path):
                text = read(path)
                write(os.path.basename(path) + ".crlf", text.replace("\n", "\r\n"))
                write(os.path.basename(path) + ".cut-newline", text.rstrip("\n"))
    for name, start in (("both", "client"), ("both-rsa", "client-rsa")):
        write(name + ".pem", read(pem(start)), read(key(start)))
    write("both-key-first.pem", read(key("k.params")), read(pem("client")))

    write("empty.pem")
    write("garbage.pem", os.urandom(3000))
    write("text.pem", "This is no certificate.\n")
    body = read(pem("ca"))
    write("cut.pem", body[:len(body) // 2])
    write("cut-line.pem", body[:-len("-----END CERTIFICATE-----\n")])
    write("bad-base64.pem", body.replace("\n", "\n!!", 2))
    write("bad-der.pem", CERTIFICATES, "\nAAAA\n", CERTIFICATES.replace("BEGIN", "END"), "\n")
    write("bad-key.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    write("ca.crlf.pem", body.replace("\n", "\r\n"))
    write("ca.cut-newline.pem", body.rstrip("\n"))
    write("ca.mixed.pem", "# of a bundle\n", read(pem("ca2")), "\nSome words: x\n", read(pem("ca-rsa")),
          read(pem("ca-ed")), body)
    write("ca.renewed.pem", read(pem("ca-old")), read(pem("ca-limits")), read(pem("ca-ed")), body)
    os.makedirs(PKI + "/capath")
    for folder, cert, using in (("docker", "client", "client"), ("docker-rsa", "client-rsa", "rsa.pkcs1"),
                                ("docker-mixed", "client", "k2"), ("docker-foreign", "client-ca2", "k2")):
        docker_folder(folder, cert, using)
    write("docker-other/ca.pem", read(pem("ca2")))
    for name in ("cert", "key"):
        write("docker-other/%s.pem" % name, read("%s/docker/%s.pem" % (PKI, name)))
    write("docker-no-ca/x")
    write("docker-only-ca/ca.pem", body)
    write("docker-no-key/ca.pem", body)
    write("docker-no-key/cert.pem", read(pem("client")))


def docker_folder(name, cert, using, ca="ca"):
    write(name + "/ca.pem", read(pem(ca)))
    write(name + "/cert.pem", read(pem(cert)))
    write(name + "/key.pem", read(key(using)))


secrets = [TOKEN]


def know_secrets():
    """The lines of every private key that was made."""
    for path in glob.glob(PKI + "/**/*", recursive=True):
        if not os.path.isfile(path):
            continue
        with open(path, errors="replace") as f:
            inside = False
            for line in f:
                inside = "PRIVATE KEY" in line if line.startswith("-----") else inside
                if inside and len(line) > 40 and not line.startswith("-----"):
                    secrets.append(line.strip())


def leaks(text):
    """What must not be in a log or a command line."""
    return [s[:12] + "..." for s in [*secrets, SECRET, "-----BEGIN"] if s in text]


# ==== A TLS server before a scripted peer =======================================================

Server = namedtuple("Server", "cert low high ciphers curve clients weak")
Server.__new__.__defaults__ = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3, None, None, None, False)
# cert: its name.  low, high: TLS versions.  clients: the CA of the client certificates it demands.


def context(server):
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        c.minimum_version, c.maximum_version = server.low, server.high
    if server.weak or server.ciphers:
        c.set_ciphers(server.ciphers or "ALL:@SECLEVEL=0")
    c.load_cert_chain(pem(server.cert), key(server.cert))
    if server.curve:
        c.set_ecdh_curve(server.curve)
    if server.clients:
        c.load_verify_locations(pem(server.clients))
        c.verify_mode = ssl.CERT_REQUIRED
    return c


class Front:
    """Takes TLS connections and hands what they say on to a peer.  One thread a connection, with blocking
    sockets: asyncio's TLS server sends no alert when a handshake fails."""

    def __init__(self, backend, server, host="127.0.0.1"):
        self.backend = backend          # a port or the path of a socket
        self.came = 0                   # connections
        self.agreed = 0                 # handshakes
        self.names = []                 # SNI of each
        self.farewells = []             # of each: the client sent close_notify before it closed
        self.said = b""                 # what came to a server that is not TLS
        self.rude = False               # closes without close_notify
        self.live = set()
        self.use(server)
        self.listener = socket.create_server((host, 0), backlog=64,
                                             family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def use(self, server):
        """From now on; a Server, or function(front, socket)."""
        if isinstance(server, Server):
            server = context(server)
            server.sni_callback = lambda _s, name, _c: self.names.append(name)
        self.server = server

    def accept(self):
        while True:
            try:
                raw = self.listener.accept()[0]
            except OSError:
                return
            self.came += 1
            threading.Thread(target=self.serve, args=(raw,), daemon=True).start()

    def serve(self, raw):
        raw.settimeout(60)
        sock, server = raw, self.server
        self.live.add(raw)
        try:
            if callable(server):
                server(self, raw)
                return
            sock = server.wrap_socket(raw, server_side=True, suppress_ragged_eofs=False)
            self.live.discard(raw)
            self.live.add(sock)
            self.agreed += 1
            with socket.socket(socket.AF_UNIX if isinstance(self.backend, str) else socket.AF_INET) as plain:
                plain.connect(self.backend if isinstance(self.backend, str) else ("127.0.0.1", self.backend))
                self.relay(sock, plain)
        except (OSError, ValueError):       # also ssl.SSLError
            pass
        finally:
            self.live.discard(raw)
            self.live.discard(sock)
            sock.close()

    def relay(self, tls, plain):
        while True:
            ready = [tls] if tls.pending() else select.select([tls, plain], [], [])[0]
            if tls in ready:
                try:
                    data = tls.recv(65536)
                except OSError:
                    self.farewells.append(False)
                    return
                if not data:
                    self.farewells.append(True)
                    tls.settimeout(2)
                    tls.unwrap()
                    return
                plain.sendall(data)
            if plain in ready:
                data = plain.recv(65536)
                if not data and self.rude:
                    socket.socket.shutdown(tls, socket.SHUT_WR)
                    time.sleep(0.2)         # a FIN, not a reset that could overtake the data
                    return
                if not data:
                    tls.settimeout(2)
                    tls.unwrap()
                    return
                tls.sendall(data)

    def cut(self):
        for sock in list(self.live):
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        for end in (lambda: self.listener.shutdown(socket.SHUT_RDWR), self.listener.close, self.cut):
            try:
                end()
            except OSError:
                pass


def hangs(_front, sock):
    while sock.recv(65536):
        pass


def closes(_front, sock):
    sock.recv(65536)


def hangs_up(_front, sock):         # at once, by a reset
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def babbles(_front, sock):
    sock.recv(65536)
    sock.sendall(bytes(range(256)) * 40)
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(65536):
        pass


def speaks_http(front, sock):
    """As Go's server answers what is not HTTP."""
    front.said += sock.recv(65536)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
                 b"400 Bad Request")


def stops_halfway(_front, sock):
    """A record of the server's handshake is begun, and the connection ends."""
    sock.recv(65536)
    sock.sendall(b"\x16\x03\x03\x00\x5a\x02\x00\x00\x56\x03\x03" + bytes(20))


def spoils(front, sock):
    """A good handshake, and then a record that nobody encrypted."""
    with context(Server("ip")).wrap_socket(sock, server_side=True) as tls:
        tls.recv(65536)
        os.write(tls.fileno(), b"\x17\x03\x03\x00\x40" + b"x" * 64)
        tls.recv(1)


def knows_no_name(_front, sock):
    c = context(Server("ip"))
    c.sni_callback = lambda *_: ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    c.wrap_socket(sock, server_side=True).close()


class Dribble:
    """Between two ends of a TCP connection: hands on so many bytes at a time, with pauses."""

    def __init__(self, target, piece, pause_s=0):
        self.target, self.piece, self.pause_s = target, piece, pause_s
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                a = self.listener.accept()[0]
            except OSError:
                return
            try:
                b = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                a.close()
                continue
            for pair in ((a, b), (b, a)):
                pair[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self.pump, args=pair, daemon=True).start()

    def pump(self, a, b):
        try:
            while data := a.recv(self.piece):
                b.sendall(data)
                time.sleep(self.pause_s)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self.listener.close()


# ==== Scripted cases ============================================================================

SCRIPTED = {}


async def guarded(test, w):
    """A case, and what holds for each."""
    w.fronts, w.patience_s = [], PATIENCE_S
    try:
        await test(w)
        if w.proc.returncode is None:
            equal("secrets in the command line", leaks(read("/proc/%d/cmdline" % w.proc.pid)), [])
        for path in [path for run in w.runs for path in run]:
            equal("secrets in the output", leaks(read(path)), [])
    finally:
        for front in w.fronts:
            front.close()


def add(name, test, *args, **more):
    assert name not in SCRIPTED, name
    SCRIPTED[name] = partial(guarded, partial(test, *args, **more))


def scripted(name):
    def keep(test):
        add(name, test)
        return test
    return keep


def before_consul(w, server, **more):
    w.fronts.append(Front(w.port, server, **more))
    return w.fronts[-1]


def before_engine(w, server):
    w.fronts.append(Front(w.docker, server))
    return w.fronts[-1]


def a(name="a", port=8080, **more):
    return box(name, {80: port}, **more)


def mutual(name="client", using=None):
    return {"CONSUL_CLIENT_CERT": pem(name), "CONSUL_CLIENT_KEY": key(using or name)}


def troubles(w):
    return w.lines(ROUTINE)


def has_words(line, words):
    return all(re.search(word, line, re.I) for word in words)


async def one_line(w, words, subject):
    """The log says it, in one line, which names who it is about, and at most one other: a reset has two faces."""
    words = [*words, subject]
    await w.until(lambda: any(has_words(line, words) for line in troubles(w)),
                  "said so (%s)" % " & ".join(words), lambda: troubles(w))
    demand(len(troubles(w)) < 3, "more lines than that: %s" % troubles(w))
    demand(len(troubles(w)[0]) < 1000, "a line of %d bytes" % len(troubles(w)[0]))


async def tries_again(w, front, tries):
    before = front.came
    await w.until(lambda: front.came >= before + tries, "tried again", lambda: troubles(w))
    demand(front.came < 100, "busy: %d connections" % front.came)


async def refuses(server, words, w, host="127.0.0.1", good="ip", tries=3, **env):
    """Consul behind this server is not spoken to; when the server is right, it is."""
    front = before_consul(w, server)
    w.has(a())
    uri = "consul-tls://%s:%d" % (host, front.port)
    await w.run("-retry-interval", "100", uri=uri,
                **{"CONSUL_CACERT": pem("ca"), "CONSUL_HTTP_TOKEN": TOKEN, **env})
    await one_line(w, words, "consul.*" + re.escape(host))
    await tries_again(w, front, tries)
    said = [line.split(" ", 2)[2] for line in troubles(w)]
    equal("lines that were said twice: %s" % "\n".join(said), len(said), len(set(said)))
    demand(len(said) <= 3, "too many lines: %s" % said)         # a reset has three faces
    equal("requests that reached Consul", w.consul.requests, [])
    demand(SECRET.encode() not in front.said, "the token was sent to whoever listened")
    if good:
        front.use(Server(good))
        await w.until_services("h:a:80")


NAME = "CONSUL_TLS_SERVER_NAME"
V = ssl.TLSVersion
OURS = r"client certificate|\bours?\b"
UNTRUSTED = ["certificate", r"signed by a known CA.*: see the CAs in /\S+\.(pem|crt)\b"]

REFUSED = [
    ("wrong name", Server("other"), [r"127\.0\.0\.1", r"\bother\.example\.test", r"\bsecond\.example\.test"], {}),
    ("wrong name, a host asked for", Server("other"), [r"\blocalhost\b", r"\bother\.example\.test"],
     {"host": "localhost", "good": "name"}),
    ("wrong name, CONSUL_TLS_SERVER_NAME asked for", Server("name"),
     [r"server\.dc2\.consul", r"server\.dc1\.consul", "localhost"], {NAME: "server.dc2.consul", "good": "dc2"}),
    ("wrong IP", Server("ip-other"), [r"127\.0\.0\.1", r"10\.1\.2\.3", "2001:db8::7"], {}),
    ("an address where a name is wanted", Server("ip"), ["localhost", r"127\.0\.0\.1"],
     {"host": "localhost", "good": "name"}),
    ("a name where an address is wanted", Server("name"), ["localhost", r"127\.0\.0\.1"], {}),
    ("::1 where 127.0.0.1 is wanted", Server("ip6"), [r"127\.0\.0\.1", "::1"], {}),
    ("a name with a NUL in it", Server("nul"), ["localhost"], {"host": "localhost", "good": "name"}),
    ("names that would forge a log line", Server("hostile"), [r"127\.0\.0\.1"], {}),
    ("200 long names", Server("many"), [r"127\.0\.0\.1", r"000\.xxx"], {}),
    ("no subjectAltName", Server("no-san"), [r"127\.0\.0\.1", "subjectAltName|SAN|no name|alternative"], {}),
    ("only a common name, the right IP", Server("cn-ip"), ["subjectAltName|SAN|no name|alternative"], {}),
    ("only a common name, the right host", Server("cn-localhost"),
     ["localhost", "subjectAltName|SAN|no name|alternative"], {"host": "localhost", "good": "name"}),
    ("dNSName 127.0.0.1", Server("dns-ip"), [r"127\.0\.0\.1", "certificate"], {}),
    ("wildcard, two labels below", Server("wild"), [r"a\.b\.example\.test", r"\*\.example\.test"],
     {NAME: "a.b.example.test", "good": "a-b"}),
    ("wildcard, its bare domain", Server("wild"), [r"(?<!\.)\bexample\.test", r"\*\.example\.test"],
     {NAME: "example.test", "good": "bare"}),
    ("expired", Server("expired"), ["has expired or is not yet valid: trying"], {}),
    ("not yet valid", Server("future"), ["has expired or is not yet valid: trying"], {}),
    ("self-signed, unknown", Server("self"), UNTRUSTED, {}),
    ("signed by another CA", Server("ca2-ip"), UNTRUSTED, {}),
    ("signed by a CA of the same name", Server("ca3-ip"), ["certificate", "signed", "CA of that name"], {}),
    ("signed by an Ed25519 CA", Server("ed-signed"), ["certificate", "not supported"],
     {"CONSUL_CACERT": pem("ca.mixed")}),
    ("intermediate missing", Server("inter-ip"), UNTRUSTED, {}),
    ("intermediate expired", Server("old-chain"), ["expired"], {}),
    ("signed by a certificate that is no CA", Server("leaf-chain"), ["certificate", "signed by what is no CA"], {}),
    ("extendedKeyUsage clientAuth only", Server("client-only"), ["extendedKeyUsage"], {}),
    ("intermediate with extendedKeyUsage clientAuth only", Server("client-use-chain"),
     ["intermediate", "extendedKeyUsage"], {}),
    ("intermediate with nameConstraints", Server("limits-chain"), ["intermediate", "nameConstraints"], {}),
    ("intermediate that may not sign", Server("no-sign-chain"), [r"may not sign \(keyUsage\)"], {}),
    ("CA file: an expired CA", Server("ip"), ["expired", "see the CAs in /"], {"CONSUL_CACERT": pem("ca-old"), "good": None}),
    ("CA file: a CA with extendedKeyUsage clientAuth only", Server("ip"), ["CA's", "extendedKeyUsage"],
     {"CONSUL_CACERT": pem("ca-client-use"), "good": None}),
    ("CA file: a CA with nameConstraints", Server("ip"), ["CA's", "nameConstraints"],
     {"CONSUL_CACERT": pem("ca-limits"), "good": None}),
    ("CA file: a CA with pathlen:0, and one below it", Server("inter-chain"), ["pathlen", "see the CAs in /"],
     {"CONSUL_CACERT": pem("ca-0")}),
    ("CA file: only an Ed25519 CA", Server("ip"), UNTRUSTED, {"CONSUL_CACERT": pem("ca-ed"), "good": None}),
    ("a certificate of 70 kB", Server("huge"), ["too large", "64 kB"], {}),
    ("eleven certificates", Server("long-chain"), ["too many certificates"], {}),
    ("unknown critical extension", Server("critical"), ["critical"], {}),
    ("signed with SHA-1", Server("sha1", weak=True), ["SHA-?1|signature|algorithm"], {}),
    ("RSA-1024", Server("weak", weak=True), ["RSA", "short|weak|small|1024|less than"], {}),
    ("TLS 1.3 only", Server("ip", V.TLSv1_3), [r"TLS 1\.2"], {}),
    ("TLS 1.1 only", Server("ip", V.TLSv1_1, V.TLSv1_1, weak=True), [r"TLS 1\.2|cipher|version"], {}),
    ("Ed25519 leaf", Server("ed-leaf"), ["cipher|algorithm|suite|in common"], {}),
    ("CBC only", Server("ip", V.TLSv1_2, V.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA"),
     ["cipher|algorithm|suite|in common"], {}),
    ("RSA key exchange only", Server("ip-rsa", V.TLSv1_2, V.TLSv1_2, "AES128-GCM-SHA256"),
     ["cipher|algorithm|suite|in common"], {}),
    ("ChaCha20 only", Server("ip", V.TLSv1_2, V.TLSv1_2, "ECDHE-ECDSA-CHACHA20-POLY1305"), ["in common.*AES-GCM"], {}),
    ("a curve that we have not", Server("ip", curve="brainpoolP256r1"), ["in common.*P-256"], {}),
    ("the server does not know the name", knows_no_name, ["alert 112"], {"host": "localhost", "good": "name"}),
    ("plain HTTP", speaks_http, ["plain HTTP", "TLS port", "consul://"], {}),
    ("client certificate required, none given", Server("ip", clients="ca"),
     [OURS], {}),
    ("client certificate required, none given, TLS 1.2 server", Server("ip", high=V.TLSv1_2, clients="ca"),
     [OURS], {}),
    ("client certificate of a foreign CA", Server("ip", clients="ca"), [OURS],
     {"CONSUL_CLIENT_CERT": pem("client-ca2"), "CONSUL_CLIENT_KEY": key("k2")}),
    ("client key of another certificate, EC", Server("ip", clients="ca"), ["decrypt_error", "our key"],
     mutual("client", "k2")),
    ("client key of another certificate, RSA", Server("ip", clients="ca"), ["decrypt_error", "our key"],
     mutual("client-rsa", "rsa2")),
    ("client key of another kind, RSA for EC", Server("ip", clients="ca"), ["the server refuses"],
     mutual("client", "rsa")),
    ("client key of another kind, EC for RSA", Server("ip", clients="ca"), ["the server refuses"],
     mutual("client-rsa", "k")),
    ("client key of another kind, P-384", Server("ip", clients="ca"), ["the server refuses"],
     mutual("client", "p384")),
    ("the server hangs in the handshake", hangs, ["no answer|time|within|second"], {"tries": 1}),
    ("the server closes in the handshake", closes, ["clos|ended|lost|connection|handshake"], {}),
    ("the server resets the connection", hangs_up, ["(?i)reset|clos|ended|lost"], {}),
    ("the server stops in the middle of a message", stops_halfway, ["clos|ended|lost|connection|handshake"], {}),
    ("the server sends garbage", babbles, ["TLS"], {}),
    ("a record that is not encrypted after the handshake", spoils, ["TLS"], {}),
]
for case, served, said, more in REFUSED:
    add("refused: " + case, refuses, served, said, **more)


async def engine_refused(server, words, w, folder="docker", good="ip"):
    """As above, for the engine: the services of before stay."""
    front = before_engine(w, server)
    w.has(a())
    equal("exit status before", await w.once(), 0)
    writes = len(w.consul.writes())
    w.engine.requests.clear()
    w.has(a("b", 8081))
    await w.run(DOCKER_HOST="tcp://127.0.0.1:%d" % front.port, DOCKER_TLS_VERIFY="1",
                DOCKER_CERT_PATH=PKI + "/" + folder)
    await one_line(w, words, r"docker.*127\.0\.0\.1")
    await tries_again(w, front, 3)
    equal("lines about it: %s" % "\n".join(troubles(w)), len(troubles(w)), 1)
    equal("requests that reached the engine", w.engine.requests, [])
    equal("writes to Consul", w.consul.writes()[writes:], [])
    if good:
        front.use(Server(good))
        await w.until_services("h:a:80", "h:b:80")


for case, served, said, more in [
        ("wrong name", Server("other"), [r"127\.0\.0\.1", r"\bother\.example\.test"], {}),
        ("wrong IP", Server("ip-other"), [r"127\.0\.0\.1", r"10\.1\.2\.3"], {}),
        ("expired", Server("expired"), ["expired"], {}),
        ("signed by another CA", Server("ca2-ip"), UNTRUSTED, {}),
        ("extendedKeyUsage clientAuth only", Server("client-only"), ["usage|purpose|server"], {}),
        ("TLS 1.3 only", Server("ip", V.TLSv1_3), [r"TLS 1\.2"], {}),
        ("plain HTTP", speaks_http, ["HTTP", "TLS"], {}),
        ("client certificate of a foreign CA", Server("ip", clients="ca"), [OURS],
         {"folder": "docker-foreign"}),
        ("key.pem of another certificate", Server("ip", clients="ca"), ["decrypt_error", "our key"],
         {"folder": "docker-mixed", "good": None}),
        ("the server closes in the handshake", closes, ["clos|ended|lost|connection|handshake"], {})]:
    add("engine refused: " + case, engine_refused, served, said, **more)


# What is right.

async def accepts(server, w, host="127.0.0.1", sni=None, listen="127.0.0.1", **env):
    """-once registers, and sends this server name in the clear."""
    front = before_consul(w, server, host=listen)
    w.has(a())
    status = await w.once("-retry-attempts", "2", "-retry-interval", "50",
                          uri="consul-tls://%s:%d" % (host, front.port), **{"CONSUL_CACERT": pem("ca"), **env})
    demand(status == 0, "ended with %d" % status, *w.lines())
    w.same("h:a:80")
    equal("server names that were sent", set(front.names), {sni})


for case, served, more in [
        ("P-256, IP", Server("ip"), {}),
        ("RSA-2048 key and CA", Server("ip-rsa"), {"CONSUL_CACERT": pem("ca-rsa")}),
        ("P-384 key", Server("ip-p384"), {}),
        ("P-521 key", Server("ip-p521"), {}),
        ("IP among many names", Server("ip-many"), {}),
        ("critical subjectAltName", Server("ip-critical-san"), {}),
        ("anyExtendedKeyUsage", Server("ip-any-use"), {}),
        ("no extendedKeyUsage", Server("ip-no-use"), {}),
        ("signed with SHA-512", Server("ip-sha512"), {}),
        ("valid until 9999", Server("for-ever"), {}),
        ("intermediate sent", Server("inter-chain"), {}),
        ("the intermediate is the anchor", Server("inter-ip"), {"CONSUL_CACERT": pem("inter")}),
        ("self-signed, is the anchor", Server("self"), {"CONSUL_CACERT": pem("self")}),
        ("host name", Server("name"), {"host": "localhost", "sni": "localhost"}),
        ("host name in capitals", Server("capitals"), {"host": "localhost", "sni": "localhost"}),
        (NAME, Server("name"), {NAME: "server.dc1.consul", "sni": "server.dc1.consul"}),
        (NAME + " for an address", Server("ip"), {"host": "localhost", NAME: "127.0.0.1"}),
        ("wildcard", Server("wild"), {NAME: "a.example.test", "sni": "a.example.test"}),
        ("TLS 1.2 only", Server("ip", high=V.TLSv1_2), {}),
        ("AES-256-GCM only", Server("ip", V.TLSv1_2, V.TLSv1_2, "ECDHE-ECDSA-AES256-GCM-SHA384"), {}),
        ("curve P-384", Server("ip", curve="secp384r1"), {}),
        ("curve P-521", Server("ip", curve="secp521r1"), {}),
        ("client certificate asked for", Server("ip", clients="ca"), mutual()),
        ("client certificate not asked for", Server("ip"), mutual()),
        ("CA file with CR LF", Server("ip"), {"CONSUL_CACERT": pem("ca.crlf")}),
        ("CA file without a last newline", Server("ip"), {"CONSUL_CACERT": pem("ca.cut-newline")}),
        ("CA file with other text, other CAs, an Ed25519 CA", Server("ip"), {"CONSUL_CACERT": pem("ca.mixed")}),
        ("CA file with an expired, a constrained and the renewed CA, of one name and key", Server("ip"),
         {"CONSUL_CACERT": pem("ca.renewed")}),
        ("CA file: a CA with pathlen:0", Server("ip"), {"CONSUL_CACERT": pem("ca-0")}),
        ("CONSUL_TLSCERT, CONSUL_TLSKEY", Server("ip", clients="ca"),
         {"CONSUL_TLSCERT": pem("client"), "CONSUL_TLSKEY": key("client")})]:
    add("accepted: " + case, accepts, served, **more)


@scripted("accepted: IPv6 address")
async def _(w):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        equal("exit status", await w.once(), 0)     # no IPv6 here: nothing to see
        return
    await accepts(Server("ip6"), w, host="[::1]", listen="::1")


@scripted("accepted: CONSUL_HTTP_SSL, CONSUL_HTTP_ADDR=https://")
async def _(w):
    front = before_consul(w, Server("name"))
    where = "localhost:%d" % front.port
    w.has(a())
    for uri, env in [("consul://" + where, {"CONSUL_HTTP_SSL": "true"}),
                     ("consul://" + where, {"CONSUL_HTTP_SSL": "1"}),
                     ("consul:", {"CONSUL_HTTP_ADDR": "https://" + where}),
                     ("consul://", {"CONSUL_HTTP_ADDR": where, "CONSUL_HTTP_SSL": "TRUE"}),
                     ("consul-tls://" + where, {"CONSUL_HTTP_SSL": "false"}),
                     ("consul-tls://" + where, {"CONSUL_HTTP_ADDR": "127.0.0.1:1"})]:
        w.consul.forget()
        agreed = front.agreed
        equal("exit status of %s %r" % (uri, env),
              await w.once("-retry-attempts", "2", "-retry-interval", "50", uri=uri, CONSUL_CACERT=pem("ca"), **env), 0)
        w.same("h:a:80")
        demand(front.agreed > agreed, "not over TLS")


@scripted("accepted: a byte at a time")
async def _(w):
    front = before_consul(w, Server("ip", clients="ca"))
    w.fronts.append(Dribble(front.port, 1))
    w.has(a())
    await w.run(uri="consul-tls://127.0.0.1:%d" % w.fronts[-1].port, CONSUL_CACERT=pem("ca"), **mutual())
    await w.until_services("h:a:80")


LONG = {"SERVICE_CHECK_SCRIPT": "x" * 100000}
LONG_CHECK = {"Check": {"Args": ["/bin/sh", "-c", "x" * 100000], "Interval": "10s"}}


@scripted("accepted: long registrations, and a server that reads slowly")
async def _(w):
    front = before_consul(w, Server("ip"))
    w.fronts.append(Dribble(front.port, 8192, 0.001))
    w.has(*(a("c%d" % i, 9000 + i, labels=LONG) for i in range(20)))
    await w.run(uri="consul-tls://127.0.0.1:%d" % w.fronts[-1].port, CONSUL_CACERT=pem("ca"))
    await w.until_services(**{"c%d" % i: LONG_CHECK for i in range(20)})
    w.proc.send_signal(signal.SIGHUP)
    await w.quiet()


@scripted("accepted: an engine that wants no client certificate, and DOCKER_CERT_PATH has only ca.pem")
async def _(w):
    engine = before_engine(w, Server("ip"))
    w.has(a())
    equal("exit status", await w.once(
        "-retry-attempts", "2", "-retry-interval", "50", DOCKER_HOST="https://127.0.0.1:%d" % engine.port,
        DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=PKI + "/docker-only-ca"), 0)
    w.same("h:a:80")


@scripted("accepted: DOCKER_TLS_VERIFY and a unix socket: no TLS")
async def _(w):
    w.has(a())
    equal("exit status", await w.once(DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=PKI + "/docker"), 0)
    w.same("h:a:80")


@scripted("accepted: both sides at once, many containers, long values, a life")
async def _(w):
    front, engine = before_consul(w, Server("ip")), before_engine(w, Server("ip", clients="ca"))
    long = a("long", 8000, env=["SERVICE_TAGS=" + "x" * 100000, "PATH=" + "y" * 200000])
    w.has(long, *(a("c%d" % i, 9000 + i) for i in range(200)))
    await w.run(uri="consul-tls://127.0.0.1:%d" % front.port, CONSUL_CACERT=pem("ca"),
                DOCKER_HOST="tcp://127.0.0.1:%d" % engine.port, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=PKI + "/docker")
    names = ["h:c%d:80" % i for i in range(200)]
    await w.until_services("h:long:80", *names)
    late = a("late")
    w.engine.start(late)
    await w.until_services("h:long:80", "h:late:80", *names)
    w.engine.die(late)
    w.engine.die(long)
    await w.until_services(*names)
    w.proc.send_signal(signal.SIGHUP)
    await w.quiet()
    equal("connections to Consul", front.came < 8, True)
    equal("connections to the engine", engine.came < 24, True)


@scripted("accepted: a long life does not grow")
async def _(w):
    """10 MB of requests over a few connections: what was sent is not kept."""
    front = before_consul(w, Server("ip"))
    c = a(labels=LONG)
    w.has(c)
    await w.run(uri="consul-tls://127.0.0.1:%d" % front.port, CONSUL_CACERT=pem("ca"))
    for number in range(110):
        await w.until_services(a=LONG_CHECK)
        w.engine.die(c)
        await w.until_services()
        w.engine.start(c)
        if number == 10:
            before = resident_kb(w.proc.pid)
    grown = resident_kb(w.proc.pid) - before
    demand(grown < 1000 * float(os.environ.get("HOSTILE_MEMORY", "1")), "grew by %d kB" % grown)


def resident_kb(pid):
    return int(re.search(r"VmRSS:\s*(\d+)", read("/proc/%d/status" % pid)).group(1))


@scripted("accepted: TLS connections that are cut are opened again")
async def _(w):
    front, engine = before_consul(w, Server("ip")), before_engine(w, Server("ip", clients="ca"))
    w.has(a())
    await w.run("-retry-interval", "100", uri="consul-tls://127.0.0.1:%d" % front.port, CONSUL_CACERT=pem("ca"),
                DOCKER_HOST="https://127.0.0.1:%d" % engine.port, DOCKER_TLS_VERIFY="1",
                DOCKER_CERT_PATH=PKI + "/docker")
    await w.until_services("h:a:80")
    names = ["h:a:80"]
    for number in range(3):
        engine.cut()
        front.cut()
        w.has(a("b%d" % number, 8100 + number))
        names.append("h:b%d:80" % number)
        await w.until_services(*names)


@scripted("the end of a connection: close_notify is sent, by -once and on SIGTERM")
async def _(w):
    front = before_consul(w, Server("ip"))
    w.has(a())
    env = {"uri": "consul-tls://127.0.0.1:%d" % front.port, "CONSUL_CACERT": pem("ca")}
    equal("exit status", await w.once(**env), 0)
    w.consul.forget()
    await w.run(**env)
    await w.until_services("h:a:80")
    equal("exit status on SIGTERM", await w.stop(), 0)
    end = time.monotonic() + 5
    while len(front.farewells) < front.agreed and time.monotonic() < end:
        await asyncio.sleep(0.02)
    equal("connections that ended with close_notify", front.farewells, [True] * front.agreed)


@scripted("the end of a connection: SIGTERM while a handshake hangs")
async def _(w):
    front, engine = before_consul(w, hangs), before_engine(w, hangs)
    await w.run("-on-exit", "deregister", uri="consul-tls://127.0.0.1:%d" % front.port, CONSUL_CACERT=pem("ca"),
                DOCKER_HOST="tcp://127.0.0.1:%d" % engine.port, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=PKI + "/docker")
    await w.until(lambda: front.came and engine.came, "connected to both")
    await asyncio.sleep(0.2)
    equal("exit status", await w.stop(), 0)


# Answers that are cut short.

@scripted("cut: an answer of Consul ends before its Content-Length")
async def _(w):
    front = before_consul(w, Server("ip"))
    w.has(a())
    w.consul.on("GET /v1/agent/services", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}")
    await w.run("-retry-interval", "100", uri="consul-tls://127.0.0.1:%d" % front.port, CONSUL_CACERT=pem("ca"))
    for rude in (True, False):
        front.rude = rude
        await tries_again(w, front, 2)      # the pauses double, with a part of chance
        equal("writes on the strength of half an answer", w.consul.writes(), [])
    demand(1 <= len(troubles(w)) <= 3, "%d lines about it" % len(troubles(w)), *troubles(w))
    w.consul.behave()
    await w.until_services("h:a:80")


async def cut_list(answer, w):
    """A list of containers that ends without close_notify removes nothing."""
    engine = before_engine(w, Server("ip", clients="ca"))
    w.has(a())
    equal("exit status before", await w.once(), 0)
    writes = len(w.consul.writes())
    w.has(a("b", 8081))
    engine.rude = True
    w.engine.on("GET /containers/json", answer)
    await w.run(DOCKER_HOST="tcp://127.0.0.1:%d" % engine.port, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=PKI + "/docker")
    await w.until(lambda: sum(r.path == "/containers/json" for r in w.engine.requests) >= 3, "asked again")
    equal("writes on the strength of half an answer", w.consul.writes()[writes:], [])
    w.engine.behave()           # and the front stays rude: an answer may be on its way
    await w.until_services("h:a:80", "h:b:80")


for case, answered in [
        ("Content-Length", b"Content-Length: 3\r\n\r\n[]"),
        ("chunks", b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n"),
        ("the end of the connection", b"Connection: close\r\n\r\n[]")]:
    add("cut: the engine's list, framed by " + case, cut_list,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + answered)


@scripted("cut: no answer over TLS")
async def _(w):
    front = before_consul(w, Server("ip"))
    w.has(a())
    w.consul.on("GET /v1/agent/services", peers.hang, times=1)
    await w.run("-retry-interval", "100", uri="consul-tls://127.0.0.1:%d" % front.port, CONSUL_CACERT=pem("ca"))
    await w.until_services("h:a:80")


@scripted("a server that was away comes back with an expired certificate: the log says so")
async def _(w):
    front = before_consul(w, hangs_up)
    w.has(a())
    await w.run("-retry-interval", "100", uri="consul-tls://127.0.0.1:%d" % front.port, CONSUL_CACERT=pem("ca"))
    await w.until(lambda: troubles(w) and front.came > 2, "said that it is away")
    front.use(Server("expired"))
    await w.until_log("expired")
    front.use(Server("ip"))
    await w.until_services("h:a:80")


# Refused at start.

async def refused_at_start(env, words, w, uri=DEAD, most=1):
    await w.spawn("-hostname", "h", uri, **{"CONSUL_CACERT": pem("ca"), "CONSUL_HTTP_TOKEN": TOKEN, **env})
    equal("exit status", await w.exit(), 1)
    demand(1 <= len(troubles(w)) <= most, "%d lines" % len(troubles(w)), *troubles(w))
    for word in words:
        demand(has_words(troubles(w)[-1], [word]), "no %r in the line" % word, *troubles(w))


NO_CERT = "no certificate|no CA|not a certificate|PEM|empty"
BROKEN = "PEM|malformed|broken|cut|END|damaged|certificate"
NO_KEY = "no (private )?key|empty|PEM|not a (private )?key"

for case, name, value, words in [
        ("missing", "CONSUL_CACERT", pem("nowhere"), ["No such file"]),
        ("empty", "CONSUL_CACERT", pem("empty"), [NO_CERT]),
        ("a directory", "CONSUL_CACERT", PKI, ["directory"]),
        ("garbage", "CONSUL_CACERT", pem("garbage"), [NO_CERT]),
        ("text", "CONSUL_CACERT", pem("text"), [NO_CERT]),
        ("cut in the middle", "CONSUL_CACERT", pem("cut"), [BROKEN]),
        ("without its last line", "CONSUL_CACERT", pem("cut-line"), [BROKEN]),
        ("not base64", "CONSUL_CACERT", pem("bad-base64"), [BROKEN]),
        ("not a certificate inside", "CONSUL_CACERT", pem("bad-der"), [BROKEN]),
        ("a private key", "CONSUL_CACERT", key("k"), [NO_CERT]),
        ("a device without end", "CONSUL_CACERT", "/dev/zero", ["large|big|long|regular|space|PEM|not a"])]:
    add("start, CA: " + case, refused_at_start, {name: value}, [re.escape(value), *words])

add("start, CA: CONSUL_CAPATH", refused_at_start, {"CONSUL_CACERT": "", "CONSUL_CAPATH": PKI + "/capath"},
    ["CONSUL_CAPATH is not supported", "file.*CONSUL_CACERT"])

for case, cert, using, words in [
        ("key encrypted, PKCS#8", pem("client"), key("k.encrypted8"), ["encrypted"]),
        ("key encrypted, PKCS#8 RSA", pem("client-rsa"), key("rsa.encrypted8"), ["encrypted"]),
        ("key encrypted, SEC1", pem("client"), key("k.encrypted1"), ["encrypted"]),
        ("key encrypted, PKCS#1", pem("client-rsa"), key("rsa.encrypted1"), ["encrypted"]),
        ("Ed25519 key", pem("client-ed"), key("ed"), ["unsupported|not supported|RSA or EC|RSA, EC|Ed25519"]),
        ("secp256k1 key", pem("client-koblitz"), key("koblitz"), ["unsupported|not supported|P-256|curve"]),
        ("key file empty", pem("client"), pem("empty"), [NO_KEY]),
        ("key file missing", pem("client"), key("nowhere"), ["No such file"]),
        ("key file is a directory", pem("client"), PKI, ["directory"]),
        ("key file is a certificate", pem("client"), pem("client"), [NO_KEY]),
        ("key broken inside", pem("client"), key("bad-key"), ["malformed|broken|not a|damaged|key"]),
        ("key file garbage", pem("client"), pem("garbage"), [NO_KEY])]:
    add("start, client certificate: " + case, refused_at_start,
        {"CONSUL_CLIENT_CERT": cert, "CONSUL_CLIENT_KEY": using}, [re.escape(using), *words])

for case, cert, words in [
        ("file empty", pem("empty"), [NO_CERT]),
        ("file missing", pem("nowhere"), ["No such file"]),
        ("file is a directory", PKI, ["directory"]),
        ("file is a key", key("k"), [NO_CERT]),
        ("file cut", pem("cut"), [BROKEN])]:
    add("start, client certificate: " + case, refused_at_start,
        {"CONSUL_CLIENT_CERT": cert, "CONSUL_CLIENT_KEY": key("k")}, [re.escape(cert), *words])
add("start, client certificate: without a key", refused_at_start, {"CONSUL_CLIENT_CERT": pem("client")},
    ["CONSUL_CLIENT_KEY|CONSUL_CLIENT_CERT", "key"])
add("start, client certificate: a key without one", refused_at_start, {"CONSUL_CLIENT_KEY": key("client")},
    ["CONSUL_CLIENT_KEY|CONSUL_CLIENT_CERT", "certificate|CONSUL_CLIENT_CERT"])

add("start, CONSUL_HTTP_SSL_VERIFY that is neither true nor false", refused_at_start,
    {"CONSUL_HTTP_SSL_VERIFY": "no"}, ["CONSUL_HTTP_SSL_VERIFY", "no"])

for case, folder, words in [
        ("no such directory", "nowhere", ["nowhere", "No such file"]),
        ("ca.pem missing", "docker-no-ca", [r"docker-no-ca/ca\.pem", "No such file"]),
        ("key.pem missing", "docker-no-key", [r"docker-no-key/key\.pem", "No such file|key"])]:
    add("start, DOCKER_CERT_PATH: " + case, refused_at_start,
        {"DOCKER_HOST": "tcp://127.0.0.1:9", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": PKI + "/" + folder},
        words, uri="print:")


@scripted("start, client certificate: a key that may not be read")
async def _(w):
    w.user = 65534
    await refused_at_start(mutual(), [re.escape(key("client")), "Permission denied"], w)


def with_system_bundle(w, bundle=None):
    """The program sees this file, or none, as the bundle of CAs of its system."""
    real, hidden = w.binary, [d for d in ("/etc/ssl", "/etc/pki", "/usr/lib/ssl") if os.path.isdir(d)]
    w.binary = w.path("wrapped")
    with open(w.binary, "w") as f:
        f.write("#!/bin/sh\nexec unshare -m sh -e -c '\n")
        for folder in hidden:
            f.write("mount -t tmpfs tmpfs %s\n" % folder)
        if bundle:
            f.write("mkdir /etc/ssl/certs\ncp %s /etc/ssl/certs/ca-certificates.crt\n" % bundle)
        f.write("exec \"$@\"' sh %s \"$@\"\n" % real)
    os.chmod(w.binary, 0o755)


@scripted("start, CA: none given, and no bundle on the system")
async def _(w):
    with_system_bundle(w)
    await refused_at_start({"CONSUL_CACERT": ""}, ["no CA is given", "CONSUL_CACERT", "DOCKER_CERT_PATH", " -v"], w)


@scripted("accepted: no CA given, the system's bundle has it")
async def _(w):
    with_system_bundle(w, pem("ca.mixed"))
    await accepts(Server("ip"), w, CONSUL_CACERT="")


@scripted("refused: no CA given, the system's bundle does not have it")
async def _(w):
    with_system_bundle(w, pem("ca2"))
    await refuses(Server("ip"), UNTRUSTED, w, good="ca2-ip", CONSUL_CACERT="")


# Without verification.

@scripted("CONSUL_HTTP_SSL_VERIFY=false: any certificate, with one loud warning")
async def _(w):
    for server, env in [(Server("self-wrong"), {}), (Server("expired"), {}), (Server("other"), {}),
                        (Server("ip-rsa"), {}), (Server("cn-ip"), {"CONSUL_CACERT": pem("ca")}),
                        (Server("self-wrong", clients="ca"), mutual()), (Server("ca2-ip"), {"word": "0"})]:
        w.consul.forget()
        word = env.get("word", "false")
        front = before_consul(w, server)
        w.has(a())
        await w.run("-retry-interval", "100", uri="consul-tls://127.0.0.1:%d" % front.port,
                    CONSUL_HTTP_SSL_VERIFY=word, **{k: v for k, v in env.items() if k != "word"})
        await w.until_services("h:a:80")
        front.cut()
        w.proc.send_signal(signal.SIGHUP)
        w.engine.start(a("b", 8081))
        await w.until_services("h:a:80", "h:b:80")
        loud = w.lines(ROUTINE + "|reached|trying again")
        equal("warnings with %s: %s" % (server.cert, loud), len(loud), 1)
        demand(has_words(loud[0], ["CONSUL_HTTP_SSL_VERIFY", "verif|check|certificate"]), "not a warning", *loud)
        demand(w.log.index(loud[0]) < w.log.index("added:"), "not at start", *w.lines())
        w.engine.destroy(w.engine.boxes[a("b")["Id"]])
        equal("exit status", await w.stop(), 0)


@scripted("CONSUL_HTTP_SSL_VERIFY=true, or empty: verified")
async def _(w):
    front = before_consul(w, Server("self-wrong"))
    w.has(a())
    for value in ("true", "1", "T", ""):
        equal("exit status with %r" % value, await w.once(
            "-retry-attempts", "1", "-retry-interval", "50", uri="consul-tls://127.0.0.1:%d" % front.port,
            CONSUL_CACERT=pem("ca"), CONSUL_HTTP_SSL_VERIFY=value), 1)
        equal("requests that reached Consul", w.consul.requests, [])


@scripted("CONSUL_HTTP_SSL_VERIFY=false is not for the engine")
async def _(w):
    front, engine = before_consul(w, Server("self-wrong")), before_engine(w, Server("self-wrong"))
    w.has(a())
    await w.run("-retry-interval", "100", uri="consul-tls://127.0.0.1:%d" % front.port, CONSUL_HTTP_SSL_VERIFY="false",
                DOCKER_HOST="tcp://127.0.0.1:%d" % engine.port, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=PKI + "/docker")
    await w.until_log("docker: .*certificate")
    await tries_again(w, engine, 3)
    equal("requests that reached the engine", w.engine.requests, [])
    engine.use(Server("ip"))
    await w.until_services("h:a:80")


# Files that change.

@scripted("rotation: server certificate and CA, with a broken CA file between")
async def _(w):
    front = before_consul(w, Server("ip"))
    ca = write("rotation/ca.pem", read(pem("ca")))
    w.has(a())
    await w.run("-retry-interval", "100", uri="consul-tls://127.0.0.1:%d" % front.port, CONSUL_CACERT=ca)
    await w.until_services("h:a:80")
    front.use(Server("ca2-ip"))
    front.cut()
    await w.until(lambda: any(has_words(line, UNTRUSTED) for line in troubles(w)), "said that it is not trusted",
                  lambda: troubles(w))
    w.engine.start(a("b", 8081))
    await tries_again(w, front, 2)
    w.same("h:a:80")
    for broken in ("empty", "cut", "garbage", None):
        os.unlink(ca)
        if broken:
            shutil.copy(pem(broken), ca)
        await w.until(lambda: any(has_words(line, [*UNTRUSTED, "could not be read again: " + re.escape(ca)])
                                  for line in troubles(w)), "told of the file", lambda: troubles(w))
        w.same("h:a:80")
    with open(ca, "w") as f:
        f.write(read(pem("ca2")))
    await w.until_services("h:a:80", "h:b:80")
    demand(len(troubles(w)) < 12, "too many words", *troubles(w))


@scripted("rotation: the CA comes first, by a link to another directory")
async def _(w):
    front = before_consul(w, Server("ip"))
    write("mounted/one/ca.pem", read(pem("ca")))
    write("mounted/two/ca.pem", read(pem("ca")), read(pem("ca2")))
    os.symlink("one", PKI + "/mounted/data")
    w.has(a())
    await w.run("-retry-interval", "100", uri="consul-tls://127.0.0.1:%d" % front.port,
                CONSUL_CACERT=PKI + "/mounted/data/ca.pem")
    await w.until_services("h:a:80")
    os.symlink("two", PKI + "/mounted/new")
    os.rename(PKI + "/mounted/new", PKI + "/mounted/data")
    front.use(Server("ca2-ip"))
    front.cut()
    w.engine.start(a("b", 8081))
    await w.until_services("h:a:80", "h:b:80")


@scripted("rotation: client certificate and key, one after the other")
async def _(w):
    front = before_consul(w, Server("ip", clients="ca"))
    cert, using = write("client/cert.pem", read(pem("client"))), write("client/key.pem", read(key("client")))
    w.has(a())
    await w.run("-retry-interval", "100", uri="consul-tls://127.0.0.1:%d" % front.port, CONSUL_CACERT=pem("ca"),
                CONSUL_CLIENT_CERT=cert, CONSUL_CLIENT_KEY=using)
    await w.until_services("h:a:80")
    front.use(Server("ip", clients="ca2"))
    front.cut()
    w.engine.start(a("b", 8081))
    await w.until(lambda: any(has_words(line, [OURS]) for line in troubles(w)),
                  "said that the client certificate is refused", lambda: troubles(w))
    await tries_again(w, front, 2)
    write("client/cert.pem", read(pem("client-ca2")))
    await asyncio.sleep(1)              # the key does not fit: it must only survive this
    w.same("h:a:80")
    write("client/key.pem", read(key("k2")))
    await w.until_services("h:a:80", "h:b:80")


@scripted("rotation: the engine's, by DOCKER_CERT_PATH")
async def _(w):
    engine = before_engine(w, Server("ip", clients="ca"))
    docker_folder("rotated", "client", "client")
    w.has(a())
    await w.run(DOCKER_HOST="tcp://127.0.0.1:%d" % engine.port, DOCKER_TLS_VERIFY="1",
                DOCKER_CERT_PATH=PKI + "/rotated")
    await w.until_services("h:a:80")
    engine.use(Server("ca2-ip", clients="ca2"))
    engine.cut()
    w.has(a("b", 8081))
    await tries_again(w, engine, 3)
    w.same("h:a:80")
    docker_folder("rotated", "client-ca2", "k2", "ca2")
    await w.until_services("h:a:80", "h:b:80")


# Secrets.

def shown(pid):
    """The secrets that the list of processes shows; none once it has ended."""
    try:
        return leaks(read("/proc/%d/cmdline" % pid))
    except OSError:
        return []


@scripted("secrets: none in the log at debug level, whatever goes wrong")
async def _(w):
    front = before_consul(w, Server("ip", clients="ca"))
    w.has(a())
    env = {"CONSUL_CACERT": pem("ca"), "CONSUL_HTTP_TOKEN": TOKEN, "CONSUL_HTTP_AUTH": "me:" + SECRET}
    host = "127.0.0.1:%d" % front.port
    w.consul.on("PUT *", (403, "Permission denied"), times=2)
    for uri, more in [("consul-tls://" + host, mutual()), ("consul-tls://" + host, {}),
                      ("consul-tls://" + host, mutual("both")), ("consul-tls://" + host, mutual("client", "k2")),
                      ("consul-tls://" + host, mutual("client", "k.encrypted1")),
                      ("consul-tls://" + host, mutual("client", "k.encrypted8")),
                      ("consul-tls://" + host, {**mutual(), "CONSUL_CACERT": key("k")}),
                      ("consul-tls://" + host, {"CONSUL_CLIENT_CERT": key("k"), "CONSUL_CLIENT_KEY": key("k")}),
                      ("consul-tls://" + host, {**mutual(), "CONSUL_TLS_SERVER_NAME": "wrong.example.test"}),
                      ("consul:", {**mutual(), "CONSUL_HTTP_ADDR": "https://me:%s@%s" % (SECRET, host)}),
                      ("consul-tls://me:%s@%s" % (SECRET, host), mutual())]:
        await w.run("-log-level", "debug", "-retry-attempts", "1", "-retry-interval", "50", "-once", uri=uri,
                    **{**env, **more})
        await w.until(lambda: not shown(w.proc.pid), "blotted out in the command line")
        await w.exit()
    demand(any(r.headers.get("x-consul-token") == TOKEN for r in w.consul.requests), "the token was never sent")


# ==== Real servers ==============================================================================

REAL = {}
ENGINE = ("127.0.0.1", 2376)


def start_engine():
    engine.start("-H", "tcp://%s:%d" % ENGINE, "--tlsverify", "--tlscacert", pem("ca"), "--tlscert", pem("ip"),
                 "--tlskey", key("ip"))


def real(name):
    def keep(test):
        assert name not in REAL, name
        REAL[name] = test
        return test
    return keep


class Tls(Agent):
    """A Consul agent that has only an HTTPS port."""
    agents = []

    def __init__(self, name, cert, mutual_tls=False, **config):
        first = 9000 + 10 * len(Tls.agents)
        super().__init__(name, ("127.0.0.1", first), ports={
            "https": first, "http": -1, "dns": first + 1, "server": first + 2, "serf_lan": first + 3,
            "serf_wan": first + 4, "grpc": -1}, client_addr="127.0.0.1", ca_file=pem("ca"), cert_file=pem(cert),
            key_file=key(cert), verify_incoming=mutual_tls, **config)
        self.token = None
        Tls.agents.append(self)

    def start(self, token=None):
        self.token = token
        super().start(token)

    def where(self, host="127.0.0.1"):
        return "%s:%d" % (host, self.server[1])

    def count(self, words):
        """Requests of this kind, as its log tells."""
        return len(re.findall("Request finished: " + words, read(self.log)))

    def writes(self):
        return self.count("method=PUT url=/v1/agent/service/(?:de)?register")


def eyes():
    """How this program itself looks at the agents."""
    c = ssl.create_default_context(cafile=pem("ca"))
    c.load_verify_locations(pem("ca2"))
    c.check_hostname = False
    c.load_cert_chain(pem("client"), key("client"))
    return c


def call(method, path, body=None, server=None, token=None):
    """As call() of e2e.py, which it replaces, by HTTPS."""
    conn = http.client.HTTPSConnection(*(server or Tls.agents[0].server), timeout=e2e.LIMIT, context=call.eyes)
    try:
        conn.request(method, path, body if body is None or isinstance(body, (str, bytes)) else json.dumps(body),
                     {"X-Consul-Token": token} if token else {})
        answer = conn.getresponse()
        raw = answer.read()
        try:
            return answer.status, json.loads(raw)
        except ValueError:
            return answer.status, raw.decode(errors="replace")
    finally:
        conn.close()


def expect(agent, want):
    e2e.expect(want, server=agent.server, token=agent.token)


def forget(agent):
    for name in e2e.services(server=agent.server, token=agent.token):
        e2e.put("/v1/agent/service/deregister/" + e2e.quote(name, safe=""), server=agent.server, token=agent.token)


def once(agent, uri, env, want=0):
    r = Registrator("-once", "-retry-attempts", "2", "-retry-interval", "100", uri=uri, env=env)
    r.exit(want)
    return r


def plain_service(name="aa", port=8001):
    return {"%s:%s:80" % (HOST, name): svc("plain", port)}


def run_plain(name="aa", port=8001):
    return e2e.run("--name", name, "-p", "%d:80" % port, image="plain")


def forms(agent, host):
    """The ways to say that this agent speaks TLS: [(URI, environment)]."""
    where = agent.where(host)
    return [("consul-tls://" + where, {}), ("consul://" + where, {"CONSUL_HTTP_SSL": "true"}),
            ("consul:", {"CONSUL_HTTP_ADDR": "https://" + where})]


def walk(agent, uri, env):
    """A container comes and goes."""
    r = Registrator(uri=uri, env=env)
    r.wait_log("Listening for Docker events")
    cid = run_plain()
    expect(agent, plain_service())
    r.wait_log("added: %s %s:aa:80" % (cid[:12], HOST))
    docker("stop", "aa")
    expect(agent, {})
    r.wait_log("removed: %s %s:aa:80" % (cid[:12], HOST))
    docker("rm", "aa")
    r.stop()


def real_cases(ip, ip_mutual, name, name_mutual, acl):
    base = {"CONSUL_CACERT": pem("ca")}

    for agent, host, more in [(ip, "127.0.0.1", {}), (ip_mutual, "127.0.0.1", mutual()),
                              (name, "localhost", {}), (name_mutual, "localhost", mutual("client-rsa", "rsa.pkcs1"))]:
        def walks(agent=agent, host=host, more=more):
            for uri, env in forms(agent, host):
                walk(agent, uri, {**base, **more, **env})
        REAL["real Consul, certificate for %s%s: consul-tls://, CONSUL_HTTP_SSL, https://" % (
            host, ", client certificates required" if more else "")] = walks

    @real("real Consul: CONSUL_TLS_SERVER_NAME=server.dc1.consul")
    def _():
        run_plain()
        for agent, more in ((name, {}), (name_mutual, mutual())):
            env = {**base, **more, NAME: "server.dc1.consul"}
            once(agent, "consul-tls://" + agent.where(), env)
            expect(agent, plain_service())

    @real("real Consul: client certificates and keys in every form")
    def _():
        run_plain()
        wrong = []
        for what, cert, using in [
                ("RSA, PKCS#1", pem("client-rsa"), key("rsa.pkcs1")),
                ("RSA, PKCS#8", pem("client-rsa"), key("rsa")),
                ("RSA, CR LF", pem("client-rsa") + ".crlf", key("rsa.pkcs1") + ".crlf"),
                ("RSA, no last newline", pem("client-rsa") + ".cut-newline", key("rsa.pkcs1") + ".cut-newline"),
                ("RSA, one file", pem("both-rsa"), pem("both-rsa")),
                ("EC, SEC1", pem("client"), key("k.sec1")),
                ("EC, SEC1 after EC PARAMETERS", pem("client"), key("k.params")),
                ("EC, PKCS#8", pem("client"), key("k")),
                ("EC, CR LF", pem("client") + ".crlf", key("k.sec1") + ".crlf"),
                ("EC, no last newline", pem("client") + ".cut-newline", key("k.sec1") + ".cut-newline"),
                ("EC, one file", pem("both"), pem("both")),
                ("EC, one file, key first, EC PARAMETERS", pem("both-key-first"), pem("both-key-first")),
                ("EC, a chain", pem("client-chain"), key("client-chain")),
                ("P-384", pem("client-p384"), key("p384"))]:
            r = Registrator("-once", "-retry-attempts", "2", "-retry-interval", "100",
                            uri="consul-tls://" + ip_mutual.where(),
                            env={**base, "CONSUL_CLIENT_CERT": cert, "CONSUL_CLIENT_KEY": using})
            if r.proc.wait(e2e.LIMIT) != 0:
                wrong.append("%s: %s" % (what, r.log().strip().splitlines()[-1:]))
                continue
            expect(ip_mutual, plain_service())
            forget(ip_mutual)
        same("forms that do not work", [], wrong)

    @real("real Consul: a client certificate is required; none, a foreign one, a chain cut short")
    def _():
        run_plain()
        for what, more in [("none", {}), ("foreign", mutual("client-ca2", "k2")), ("short", mutual("client-inter"))]:
            r = Registrator("-retry-interval", "100", uri="consul-tls://" + ip_mutual.where(), env={**base, **more})
            r.wait_log("(?i)consul.*(%s)" % OURS)
            holds("it ended (%s)" % what, lambda r=r: r.proc.poll() is None, 1.5)
            said = [line for line in r.log().splitlines() if not re.search(ROUTINE + "|not as confined", line)]
            same("lines about it (%s): %s" % (what, said), 1, len(said))
            same("services (%s)" % what, {}, e2e.services(server=ip_mutual.server))
            r.stop()

    @real("real Consul: the wrong name, and the certificate's names")
    def _():
        run_plain()
        for agent, host, words in ((ip, "localhost", ["localhost", r"127\.0\.0\.1"]),
                                   (name, "127.0.0.1", [r"127\.0\.0\.1", "localhost", r"server\.dc1\.consul"])):
            r = Registrator("-retry-interval", "100", uri="consul-tls://" + agent.where(host), env=base)
            wait_for("a line with %s" % words, lambda r=r, words=words: any(
                has_words(line, words) for line in r.log().splitlines() if "adapter" not in line))
            same("services", {}, e2e.services(server=agent.server))
            r.stop()

    @real("real Consul: plain HTTP to its TLS port is told as such")
    def _():
        r = Registrator("-retry-interval", "100", uri="consul://" + ip.where())
        r.wait_log("consul.*(HTTPS|TLS)")
        r.stop()

    @real("real Consul: certificates and CA rotate under a running program")
    def _():
        ca = write("real-rotation/ca.pem", read(pem("ca")))
        run_plain()
        r = Registrator("-retry-interval", "100", uri="consul-tls://" + ip.where(), env={"CONSUL_CACERT": ca})
        expect(ip, plain_service())
        old = {k: ip.config[k] for k in ("ca_file", "cert_file", "key_file")}
        try:
            ip.kill()
            ip.config.update(ca_file=pem("ca2"), cert_file=pem("ca2-ip"), key_file=key("ca2-ip"))
            ip.start()
            r.wait_log("consul: .*trying again")
            holds("an agent that is not trusted got a service", lambda: e2e.services(server=ip.server) == {}, 1)
            write("real-rotation/ca.pem", read(pem("ca2")))
            e2e.wait_same("services", plain_service(), lambda: e2e.services(server=ip.server), PATIENCE_S)
            same("end of registrator", None, r.proc.poll())
        finally:
            ip.kill()
            ip.config.update(old)
            ip.start()

    for what, docker_host, env in [
            ("tcp:// and DOCKER_TLS_VERIFY", "tcp://%s:%d" % ENGINE, {"DOCKER_TLS_VERIFY": "1"}),
            ("https://", "https://%s:%d" % ENGINE, {}),
            ("https:// and DOCKER_TLS_VERIFY, RSA", "https://%s:%d" % ENGINE,
             {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": PKI + "/docker-rsa"})]:
        def both(docker_host=docker_host, env=env):
            walk(ip_mutual, "consul-tls://" + ip_mutual.where(), {
                **base, **mutual(), "DOCKER_CERT_PATH": PKI + "/docker", "DOCKER_HOST": docker_host, **env})
        REAL["real engine and real Consul, TLS on both sides: " + what] = both

    @real("real engine: the events of a long life, 10 containers at once")
    def _():
        r = Registrator(uri="consul-tls://" + ip.where(), env={
            **base, "DOCKER_CERT_PATH": PKI + "/docker", "DOCKER_HOST": "tcp://%s:%d" % ENGINE,
            "DOCKER_TLS_VERIFY": "1"})
        r.wait_log("Listening for Docker events")
        runs = [subprocess.Popen(["docker", "run", "-d", "--name", "c%d" % i, "-p", "%d:80" % (8100 + i), "plain"],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for i in range(10)]
        same("docker run", [0] * 10, [p.wait() for p in runs])
        want = {}
        for i in range(10):
            want.update(plain_service("c%d" % i, 8100 + i))
        expect(ip, want)
        writes = ip.writes()
        for _ in range(2):
            seen = ip.count("method=GET url=/v1/agent/services")
            r.resync()
            wait_for("a resync", lambda: ip.count("method=GET url=/v1/agent/services") > seen)
            time.sleep(0.1)
        same("writes of a resync", writes, ip.writes())
        docker("rm", "-f", *("c%d" % i for i in range(10)))
        expect(ip, {})
        r.stop()

    @real("real engine: killed and started again")
    def _():
        r = Registrator(uri="consul-tls://" + ip.where(), env={
            **base, "DOCKER_CERT_PATH": PKI + "/docker", "DOCKER_HOST": "tcp://%s:%d" % ENGINE,
            "DOCKER_TLS_VERIFY": "1"})
        e2e.run("--name", "aa", "-p", "8001:80", "--restart", "always", image="plain")
        run_plain("bb", 8002)
        both = {**plain_service(), **plain_service("bb", 8002)}
        expect(ip, both)
        engine.kill()
        holds("a service went", lambda: e2e.services(server=ip.server) == both, 1)
        start_engine()
        expect(ip, plain_service())
        same("end of registrator", None, r.proc.poll())
        r.stop()

    @real("real engine: a client certificate is required; a foreign one, another CA")
    def _():
        run_plain()
        once(ip, "consul-tls://" + ip.where(), base)
        expect(ip, plain_service())
        for folder, words in (("docker-foreign", ["docker", OURS]),
                              ("docker-other", ["docker", *UNTRUSTED])):
            r = Registrator("-retry-interval", "100", uri="consul-tls://" + ip.where(), env={
                **base, "DOCKER_CERT_PATH": "%s/%s" % (PKI, folder), "DOCKER_HOST": "tcp://%s:%d" % ENGINE,
                "DOCKER_TLS_VERIFY": "1"})
            wait_for("a line with %s" % words,
                     lambda r=r, words=words: any(has_words(line, words) for line in r.log().splitlines()))
            holds("a service went", lambda: e2e.services(server=ip.server) == plain_service(), 1)
            same("end of registrator", None, r.proc.poll())
            r.stop()

    def token(number, rules):
        secret, policy = "5eed5eed-0000-4000-8000-00000000000%d" % number, "p%d" % number
        ask = {"server": acl.server, "token": acl.token}
        e2e.put("/v1/acl/policy", {"Name": policy, "Rules": rules}, **ask)
        e2e.put("/v1/acl/token", {"SecretID": secret, "Policies": [{"Name": policy}]}, **ask)
        secrets.append(secret)
        return secret

    for number, what, rules, address in [
            (1, "the least", 'service_prefix "" { policy = "write" }', ""),
            (2, "agent:read", 'service_prefix "" { policy = "write" } agent_prefix "" { policy = "read" }', ADV)]:
        def policy(number=number, rules=rules, address=address):
            secret = token(number, rules)
            want = {HOST + ":aa:80": svc("plain", 8001, address)}
            run_plain()
            r = Registrator("-log-level", "debug", uri="consul-tls://" + acl.where(),
                            env={**base, "CONSUL_HTTP_TOKEN": secret})
            expect(acl, want)
            writes = acl.writes()
            for _ in range(3):
                seen = acl.count("method=GET url=/v1/agent/services")
                r.resync()
                # Each look of expect() counts here too; none is made now.
                wait_for("a resync", lambda: acl.count("method=GET url=/v1/agent/services") > seen)
                time.sleep(0.2)
            same("writes of a resync", writes, acl.writes())
            expect(acl, want)
            run_plain("bb", 8002)
            expect(acl, {**want, HOST + ":bb:80": svc("plain", 8002, address)})
            docker("rm", "-f", "aa", "bb")
            expect(acl, {})
            r.stop()
            same("mention of a refusal", [], re.findall("(?i).*(?:permission denied|register failed).*", r.log())
                 if address else [])
            run_plain()
            file = write("token-file", secret + "\n")
            once(acl, "consul-tls://" + acl.where(), {**base, "CONSUL_HTTP_TOKEN_FILE": file})
            expect(acl, want)
        REAL["ACL default deny, policy: " + what] = policy

    @real("ACL default deny: no token, over TLS")
    def _():
        run_plain()
        r = Registrator("-retry-interval", "100", uri="consul-tls://" + acl.where(), env=base)
        r.wait_log("(?i)permission denied")
        holds("it ended", lambda: r.proc.poll() is None, 1)
        expect(acl, {})
        r.stop()


def clean_real():
    for r in e2e.registrators:
        if r.proc.poll() is None:
            r.kill()
    e2e.registrators.clear()
    left = docker("ps", "-aq", "--no-trunc").split()
    if left:
        docker("rm", "-f", "-v", *left)
    for agent in Tls.agents:
        forget(agent)


def check_secrets():
    for r in e2e.registrators:
        found = leaks(r.log() + r.output())
        if r.proc.poll() is None:
            found += leaks(read("/proc/%d/cmdline" % r.proc.pid))
        same("secrets in the log or the command line", [], found)


# ==== Running ===================================================================================

def report(lines):
    """Lines of a result, the first as peers.py makes it: with the name of this suite."""
    print("\n".join([re.sub("^(ok|not ok) ", r"\1 tls ", lines[0]), *lines[1:]]), flush=True)
    return lines[0].startswith("not ok")


async def play_scripted(binary, chosen):
    limit = asyncio.Semaphore(AT_ONCE)
    tasks = [asyncio.ensure_future(peers.run_case(peers.World, binary, name, test, limit)) for name, test in chosen.items()]
    return sum([report(await task) for task in tasks])


def play_real(chosen):
    failed = 0
    for name, test in chosen.items():
        lines = ["ok " + name]
        try:
            test()
            check_secrets()
        except Exception as e:          # a mistake of the test is a failure too
            text = str(e) if isinstance(e, e2e.Failure) else traceback.format_exc()
            first, *rest = text.splitlines() or [repr(e)]
            lines = ["not ok %s: %s" % (name, first), *("  " + line for line in rest)]
            for r in e2e.registrators:
                lines.append("  log of %s:" % " ".join(r.proc.args))
                lines += ["    " + line[:400] for line in e2e.tail(r.file).splitlines()]
        failed += report(lines)
        clean_real()
    return failed


def inside(binary, pattern=""):
    os.environ["PATH"] += ":/var/cache/registrator-test"        # where setup.sh puts consul
    e2e.prepare(binary)
    make_all()
    know_secrets()
    call.eyes, e2e.call = eyes(), call
    master = "5eed5eed-0000-4000-8000-00000000000f"
    secrets.append(master)
    agents = [Tls("ip", "ip"), Tls("ip-mutual", "ip", True), Tls("name", "name"), Tls("name-mutual", "name", True),
              Tls("acl", "ip", acl={"enabled": True, "default_policy": "deny",
                                    "tokens": {"master": master, "agent": master}})]
    real_cases(*agents)
    first, then = ({name: test for name, test in cases.items() if re.search(pattern, name)}
                   for cases in (SCRIPTED, REAL))
    failed = asyncio.run(play_scripted(e2e.DIR + "/registrator", first)) if first else 0
    if then:
        starts = [partial(agent.start, master if agent is agents[-1] else None) for agent in agents]
        starts.append(start_engine)
        threads = [threading.Thread(target=start) for start in starts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        e2e.images()
        failed += play_real(then)
        engine.stop()
    return int(failed > 0 or not (first or then))


if __name__ == "__main__":
    if len(sys.argv) > 3 + ("--inside" in sys.argv):
        sys.exit(__doc__)
    e2e.enter("tls", inside)
