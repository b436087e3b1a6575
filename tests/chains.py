#!/usr/bin/env python3
"""Which chains of certificates registrator accepts, compared with OpenSSL.

    python3 tests/chains.py [PATTERN]    only cases whose name it finds

Hundreds of chains are made by openssl, and each is judged twice: by section 7 of registrator.c (through
tests/chains.c, which needs no network) and by `openssl verify`.  Where they differ a table here must say so
and why: STRICTER and LENIENT.  One line a case, "ok chains NAME" or "not ok chains NAME: why".

How openssl is asked, and why:
  -purpose sslserver       as TLS clients do
  -verify_hostname, -verify_ip    the same for names
  -partial_chain           what is in the CA file is trusted even if it has not signed itself, as in Go
  -auth_level 2            what TLS clients of Debian use: RSA of 2048 bits or more, no SHA-1
  -no-CApath, -no-CAstore  nothing of this system
  and not -x509_strict: neither Go nor OpenSSL's own clients set it.
"""
import glob
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAME = "server.test"
IP = "10.1.2.3"
SERVER, CLIENT, ANY = "serverAuth", "clientAuth", "anyExtendedKeyUsage"
PAST, FUTURE = ("20200101000000Z", "20210203040506Z"), ("20980102030405Z", "20990102030405Z")
NOW, LATER = ("20200101000000Z", "20991231235959Z"), ("20210101000000Z", "20991231235959Z")

CONFIG = """
[ca]
default_ca = d
[d]
database = $ENV::DB
new_certs_dir = $ENV::ISSUED
rand_serial = yes
policy = any
unique_subject = no
[any]
commonName = supplied
[dn]
[req]
distinguished_name = dn
"""

Cert = namedtuple("Cert", "cn key issuer issuer_key extensions digest dates")
Chain = namedtuple("Chain", "tags sent anchors name")
# tags: what is special about it.  sent: by the server.  anchors: in the CA file.


# ==== Kinds of certificates =====================================================================

def kind(base, **changes):
    return {**base, **changes}


LEAF = {"cn": "leaf", "bc": "critical,CA:FALSE", "ku": "critical,digitalSignature", "eku": SERVER,
        "san": "DNS:%s,DNS:*.wild.test,IP:%s,IP:2001:db8::7" % (NAME, IP), "more": (), "digest": "sha256", "dates": NOW}
CA = {"cn": "inter", "bc": "critical,CA:TRUE", "ku": "critical,keyCertSign,cRLSign", "eku": "", "san": "", "more": (),
      "digest": "sha256", "dates": NOW}
CONSTRAINTS = "permitted;DNS:test,permitted;IP:10.0.0.0/255.0.0.0,permitted;IP:2001:db8::/ffff:ffff::"
CRITICAL = "1.2.3.4=critical,DER:0500"

# What may be special about any of them.
COMMON = {
    "EKU none": {"eku": ""}, "EKU server": {"eku": SERVER}, "EKU client": {"eku": CLIENT}, "EKU any": {"eku": ANY},
    "EKU both": {"eku": "%s,%s" % (CLIENT, SERVER)}, "EKU critical": {"eku": "critical," + SERVER},
    "EKU mail": {"eku": "emailProtection,codeSigning"}, "EKU SGC": {"eku": "msSGC"},
    "KU none": {"ku": ""}, "KU not critical": {"ku": "keyCertSign,digitalSignature"},
    "KU encipherment": {"ku": "keyEncipherment"}, "KU agreement": {"ku": "critical,keyAgreement"},
    "KU certSign": {"ku": "critical,keyCertSign"}, "KU signature": {"ku": "digitalSignature"},
    "KU nonRepudiation": {"ku": "nonRepudiation"}, "KU both": {"ku": "digitalSignature,keyEncipherment"},
    "BC none": {"bc": ""}, "BC CA": {"bc": "CA:TRUE"}, "BC no CA": {"bc": "CA:FALSE"},
    "BC pathlen 0": {"bc": "critical,CA:TRUE,pathlen:0"}, "BC pathlen 1": {"bc": "critical,CA:TRUE,pathlen:1"},
    "BC pathlen 200": {"bc": "critical,CA:TRUE,pathlen:200"},
    "NC": {"more": ("nameConstraints=" + CONSTRAINTS,)},
    "NC critical": {"more": ("nameConstraints=critical," + CONSTRAINTS,)},
    "NC other": {"more": ("nameConstraints=permitted;DNS:other.test",)},
    "NC excluded": {"more": ("nameConstraints=excluded;DNS:" + NAME,)},
    "expired": {"dates": PAST}, "not yet valid": {"dates": FUTURE},
    "SHA-1": {"digest": "sha1"}, "SHA-384": {"digest": "sha384"}, "SHA-512": {"digest": "sha512"},
    "unknown extension": {"more": ("1.2.3.4=DER:0500",)}, "unknown critical extension": {"more": (CRITICAL,)},
    "policies": {"more": ("certificatePolicies=1.2.3.4",)},
    "policies critical": {"more": ("certificatePolicies=critical,1.2.3.4",)},
    "policy constraints": {"more": ("policyConstraints=critical,requireExplicitPolicy:3",)},
    "must staple": {"more": ("tlsfeature=status_request",)},
    "version 1": {"bc": "", "ku": "", "eku": "", "san": "", "more": None},
}
NAMES = {
    "SAN name": {"san": "DNS:" + NAME}, "SAN IP": {"san": "IP:" + IP}, "SAN none": {"san": ""},
    "CN": {"san": "", "cn": NAME}, "CN IP": {"san": "", "cn": IP}, "CN and mail": {"san": "email:a@b.test", "cn": NAME},
    "CN and IP": {"san": "IP:" + IP, "cn": NAME},
    "SAN other": {"san": "DNS:other.test,IP:10.9.9.9"}, "SAN capitals": {"san": "DNS:Server.TEST"},
    "SAN critical": {"san": "critical,DNS:%s,IP:%s" % (NAME, IP)},
    "SAN wildcard": {"san": "DNS:*.wild.test"}, "SAN *.test": {"san": "DNS:*.test"},
    "SAN partial wildcard": {"san": "DNS:ser*.wild.test"}, "SAN inner wildcard": {"san": "DNS:a.*.test"},
    "SAN two wildcards": {"san": "DNS:*.*.test"}, "SAN *": {"san": "DNS:*"},
    "SAN IP as a name": {"san": "DNS:" + IP}, "SAN URI": {"san": "URI:https://" + NAME},
    "SAN IPv6": {"san": "IP:2001:db8:0:0:0:0:0:7"},
    "SAN IPv4 in IPv6": {"san": "IP:::ffff:10.1.2.3"}, "SAN dot": {"san": "DNS:" + NAME + "."},
    "SAN many": {"san": ",".join("DNS:n%d.test" % i for i in range(300)) + ",DNS:" + NAME + ",IP:" + IP},
}
ASKED = [NAME, "SERVER.test", "other.test", "test", "a.wild.test", "wild.test", "a.b.wild.test", "server.wild.test",
         "x.y.test", IP, "10.1.2.4", "2001:db8::7", "2001:db8::8", "::ffff:10.1.2.3"]


def cert(what, key="rsa", issuer="root", issuer_key="rsa"):
    """The certificate of a kind; an issuer of None is itself."""
    lines = [] if what["more"] is None else ["subjectKeyIdentifier=hash", "authorityKeyIdentifier=keyid"]
    lines += [name + "=" + what[short] for name, short in [
        ("basicConstraints", "bc"), ("keyUsage", "ku"), ("extendedKeyUsage", "eku"), ("subjectAltName", "san")]
        if what[short]]
    return Cert(what["cn"], key, issuer or what["cn"], issuer_key if issuer else key,
                (*lines, *(what["more"] or ())), what["digest"], what["dates"])


def root(key="rsa", cn="root", **changes):
    return cert(kind(CA, cn=cn, **changes), key, None)


def inter(key="rsa", issuer="root", issuer_key="rsa", **changes):
    return cert(kind(CA, **changes), key, issuer, issuer_key)


def leaf(key="rsa", issuer="root", issuer_key="rsa", **changes):
    return cert(kind(LEAF, **changes), key, issuer, issuer_key)


# ==== The chains ================================================================================

def chain(tags, sent, anchors, name=NAME):
    return Chain(frozenset(tags), tuple(sent), tuple(anchors), name)


def special():
    """Each kind of leaf, intermediate and root, and each intermediate with each root."""
    for tag, changes in COMMON.items():
        for via in ([], [inter()]):
            issuer = "inter" if via else "root"
            yield chain(["leaf " + tag], [leaf(issuer=issuer, **changes), *via], [root()])
        yield chain(["leaf " + tag, "pinned"], [leaf(**changes)], [leaf(**changes)])
        yield chain(["self " + tag, "pinned"], [leaf(issuer=None, **changes)], [leaf(issuer=None, **changes)])
        yield chain(["root " + tag, "direct"], [leaf()], [root(**changes)])
        yield chain(["inter " + tag, "inter is anchor: " + tag], [leaf(issuer="inter")], [inter(**changes)])
        yield chain(["inter " + tag, "behind the anchor"], [leaf(), inter(**changes)], [root()])
    for (a, inner), (b, outer) in itertools.product({"plain": {}, **COMMON}.items(), repeat=2):
        yield chain(["inter " + a, "root " + b], [leaf(issuer="inter"), inter(**inner)], [root(**outer)])


def names():
    for (tag, changes), name in itertools.product(NAMES.items(), ASKED):
        yield chain(["leaf " + tag, "for " + name], [leaf(**changes)], [root()], name)
    for name in ASKED:
        yield chain(["plain", "for " + name], [leaf()], [root()], name)


def purposes():
    """extendedKeyUsage of leaf, intermediate and root."""
    tags = ["EKU none", "EKU server", "EKU client", "EKU any", "EKU both"]
    for three in itertools.product(tags, repeat=3):
        yield chain(["%s %s" % pair for pair in zip(("leaf", "inter", "root"), three)],
                    [leaf(issuer="inter", **COMMON[three[0]]), inter(**COMMON[three[1]])], [root(**COMMON[three[2]])])


def lengths():
    """pathlen of the root and two intermediates, with and without the second."""
    tags = {"": {}, "pathlen 0": {"bc": "critical,CA:TRUE,pathlen:0"}, "pathlen 1": {"bc": "CA:TRUE,pathlen:1"},
            "pathlen 2": {"bc": "CA:TRUE,pathlen:2"}}
    for a, b, c in itertools.product(tags, repeat=3):
        first, second = inter(**tags[b]), inter("p256", "inter", cn="inter 2", **tags[c])
        yield chain(["lengths", "root " + a, "inter " + b, "inter 2 " + c],
                    [leaf(issuer="inter 2", issuer_key="p256"), second, first], [root(**tags[a])])
        yield chain(["lengths, anchor in the middle", "inter " + b, "inter 2 " + c],
                    [leaf(issuer="inter 2", issuer_key="p256"), second], [first])
    for a, b in itertools.product(tags, repeat=2):
        yield chain(["lengths", "root " + a, "inter " + b, "root sent"],
                    [leaf(issuer="inter"), inter(**tags[b]), root(**tags[a])], [root(**tags[a])])
        # A CA that has got a new key, and signs that with the old one, under its own name.
        yield chain(["lengths", "root " + a, "self-issued " + b],
                    [leaf(issuer="root", issuer_key="p256"), cert(kind(CA, cn="root", **tags[b]), "p256")],
                    [root(**tags[a])])


def keys():
    for a, b, c in itertools.product(("rsa", "p256", "p384"), repeat=3):
        yield chain(["keys", a, b, c], [leaf(a, "inter", b), inter(b, "root", c)], [root(c)])
    for key in ("rsa1024", "rsa4096", "p521", "ed25519", "secp256k1"):
        yield chain(["leaf key " + key], [leaf(key)], [root()])
        yield chain(["inter key " + key], [leaf(issuer="inter", issuer_key=key), inter(key)], [root()])
        yield chain(["root key " + key], [leaf(issuer_key=key)], [root(key)])
    for key, digest in itertools.product(("rsa", "p256", "p384"), ("sha1", "sha224", "sha256", "sha384", "sha512")):
        yield chain(["leaf " + digest], [leaf(issuer_key=key, digest=digest)], [root(key)])
        yield chain(["inter " + digest], [leaf(issuer="inter"), inter(issuer_key=key, digest=digest)], [root(key)])
        yield chain(["root " + digest], [leaf(issuer_key=key)], [root(key, digest=digest)])


def orders():
    """What is sent in which order, and what is in the CA file."""
    a, i, r = leaf(issuer="inter"), inter(), root()
    i2, a2 = inter("p256", "inter", cn="inter 2"), leaf(issuer="inter 2", issuer_key="p256")
    stranger, other_key = root("p256", cn="stranger"), root("p256")
    old_root, narrow_root, short_root = root(dates=PAST), root(**COMMON["NC"]), root(bc="CA:TRUE,pathlen:0")
    # The root, as signed by the stranger: what is sent after a change of roots.
    crossed = cert(kind(CA, cn="root"), "rsa", "stranger", "p256")
    crossed_old = cert(kind(CA, cn="root", dates=PAST), "rsa", "stranger", "p256")
    alone, alone_ca = leaf(issuer=None), leaf(issuer=None, bc="CA:TRUE", ku="")
    for tag, sent, anchors in [
            ("root sent", [a, i, r], [r]), ("root sent, direct", [leaf(), r], [r]),
            ("two intermediates", [a2, i2, i], [r]), ("intermediate missing", [a], [r]),
            ("intermediate is anchor", [a], [i]), ("intermediate is anchor, and sent", [a, i], [i]),
            ("both are anchors", [a, i], [i, r]), ("both are anchors", [a], [r, i]),
            ("nothing fits", [a, i], [stranger]), ("stranger in the file", [a, i], [stranger, r]),
            ("stranger in the file", [a, i], [r, stranger]), ("CA of the same name", [leaf()], [other_key]),
            ("CA of the same name", [a, i], [other_key]), ("two CAs of the same name", [leaf()], [other_key, r]),
            ("two CAs of the same name", [a, i], [r, other_key]),
            ("expired and new CA", [leaf()], [old_root, r]), ("expired and new CA", [a, i], [r, old_root]),
            ("constrained and free CA", [leaf()], [narrow_root, r]),
            ("constrained and free CA", [leaf()], [r, narrow_root]),
            ("free and pathlen 0 CA", [a, i], [r, short_root]),
            ("pathlen 0 and free CA", [a, i], [short_root, r]),
            ("out of order", [a, r, i], [r]), ("out of order", [a2, i, i2], [r]),
            ("out of order, stranger between", [a, stranger, i], [r]), ("out of order, leaf twice", [a, a, i], [r]),
            ("stranger last", [a, i, stranger], [r]), ("stranger last", [leaf(), stranger], [r]),
            ("leaf twice, needed once", [leaf(), leaf()], [r]), ("CA first", [i, a], [r]), ("CA alone", [i], [r]),
            ("root alone", [r], [r]), ("self-signed", [alone], [r]), ("self-signed, is anchor", [alone], [alone]),
            ("self-signed, another is anchor", [alone], [leaf(issuer=None, dates=LATER)]),
            ("self-signed CA, is anchor", [alone_ca], [alone_ca]),
            ("leaf is anchor", [a], [a]), ("leaf is anchor, and its CA sent", [a, i], [a]),
            ("leaf of the same key is anchor", [leaf()], [leaf(dates=LATER)]),
            ("leaf is anchor, expired", [leaf(dates=PAST)], [leaf(dates=PAST)]),
            ("signed by a leaf", [leaf(issuer="leaf", cn="below"), leaf()], [r]),
            ("signed by a leaf that is anchor", [leaf(issuer="leaf", cn="below")], [leaf()]),
            ("cross-signed", [a, i, crossed], [r]), ("cross-signed", [a, i, crossed], [stranger]),
            ("cross-signed by an expired one", [a, i, crossed], [r, root("p256", cn="stranger", dates=PAST)]),
            ("cross-signed, expired", [a, i, crossed_old], [r]),
            ("ten certificates", [leaf(), *[stranger] * 9], [r]),
            ("eleven certificates", [leaf(), *[stranger] * 10], [r])]:
        yield chain([tag], sent, anchors)


# ==== Where the verdicts differ =================================================================

def has(*patterns):
    """Whether one of a chain's tags is one of these."""
    return lambda c: any(re.fullmatch(p, tag) for p in patterns for tag in c.tags)


def both(one, other):
    return lambda c: one(c) and other(c)


# OpenSSL accepts, and we do not: why, and for which chains.
STRICTER = [
    ("BearSSL knows neither extendedKeyUsage nor policyConstraints, and refuses what it does not know and what is "
     "critical (RFC 5280 4.2).  CAs do not mark extendedKeyUsage as critical",
     both(has(".* EKU critical", ".* policy constraints"), lambda c: "behind the anchor" not in c.tags)),
    ("with ECDHE the server's key signs, and this keyUsage forbids it (RFC 8422 5.3); OpenSSL says so in the "
     "handshake, or does not look (RSA)", has("(leaf|self) KU (encipherment|agreement)")),
    ("what nameConstraints say is not evaluated, so they are refused wherever they are", has(".* NC.*")),
    ("a CA without basicConstraints is none (RFC 5280 6.1.4 k); OpenSSL makes an exception for the anchor, Go "
     "does not", has("root (BC none|version 1)", "inter is anchor: BC none")),
    ("a CA that has signed its own new key counts for pathlen as any other (RFC 5280 6.1.4 l makes an exception)",
     both(has("root pathlen 0"), has("self-issued.*"))),
    ("key and signature algorithms that are not linked", has(".* key (ed25519|secp256k1)", "(leaf|inter) sha224")),
    ("the order in which TLS 1.2 wants certificates (RFC 5246 7.4.2)", has("out of order.*")),
    ("more than CERTS_MAX certificates", has("eleven certificates")),
    ("an intermediate that is not for servers is refused even if it was not needed",
     both(has("behind the anchor"), has("inter EKU (client|mail|SGC)"))),
    ("what Microsoft's SGC was for ended in 2000", has(".* EKU SGC")),
    ("the common name is no name of a server, as in Go", both(has("leaf CN.*"), has("for [a-zA-Z.]+"))),
    ("a wildcard is a whole label, as in Go", has("leaf SAN partial wildcard")),
]

# We accept, and OpenSSL does not: why, for which chains, and what it says.
LENIENT = [
    ("*.lan is for consul.lan in Go, too; for a public domain nobody can buy one", both(
        has(r"leaf SAN \*\.test"), has("for (server|SERVER|other|wild).test")), "hostname mismatch"),
    ("of two CAs with one name and one key one allows it; OpenSSL looks only at the first",
     has("pathlen 0 and free CA"), "path length constraint exceeded"),
]


def any_is_server(c):
    """What openssl is asked about instead.  anyExtendedKeyUsage allows servers, says RFC 5280 4.2.1.12, and Go does
    so; OpenSSL does not."""
    def changed(certs):
        return tuple(one._replace(extensions=tuple(x.replace(ANY, SERVER) for x in one.extensions)) for one in certs)
    return c._replace(sent=changed(c.sent), anchors=changed(c.anchors))


def expected(c, said):
    """Whether we must accept a chain of which openssl says this ("": it is good), and the rules that decide."""
    strict = [rule for rule in STRICTER if rule[1](c)]
    if said == "":
        return not strict, strict
    lenient = [rule for rule in LENIENT if rule[1](c) and rule[2] == said]
    return bool(lenient), lenient


# ==== Judges ====================================================================================

class Pki:
    """Makes certificates in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.number = {}
        self.write("openssl.cnf", CONFIG)

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as f:
            f.write(text)
        return path

    def run(self, *args, **env):
        done = subprocess.run(["openssl", *args], env={**os.environ, "DB": "", "ISSUED": "", **env},
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError("openssl %s: %s" % (" ".join(args), done.stderr))

    def key(self, name):
        return "%s/%s.key" % (self.folder, name)

    def make_key(self, name):
        kinds = {"p256": "P-256", "p384": "P-384", "p521": "P-521", "secp256k1": "secp256k1"}
        if name in kinds:
            how = ["EC", "-pkeyopt", "ec_paramgen_curve:" + kinds[name]]
        elif name.startswith("rsa"):
            how = ["RSA", "-pkeyopt", "rsa_keygen_bits:" + (name[3:] or "2048")]
        else:
            how = [name]
        self.run("genpkey", "-out", self.key(name), "-algorithm", *how)
        self.run("req", "-new", "-config", self.folder + "/openssl.cnf", "-subj", "/CN=x", "-key", self.key(name),
                 "-out", "%s/%s.csr" % (self.folder, name))

    def make_issuer(self, issuer):
        """A certificate that only lends its name and key to sign others."""
        cn, key = issuer
        self.run("req", "-x509", "-new", "-config", self.folder + "/openssl.cnf", "-subj", "/CN=" + cn, "-key",
                 self.key(key), "-addext", "subjectKeyIdentifier=hash", "-out", self.issuer(issuer))

    def issuer(self, issuer):
        return "%s/issuer %s %s" % (self.folder, *issuer)

    def path(self, c):
        return "%s/%d.pem" % (self.folder, self.number[c])

    def make(self, c):
        n = self.number[c]
        folder = "%s/%d" % (self.folder, n)
        os.mkdir(folder)
        self.write("%d/index.txt" % n, "")
        extensions = self.write("%d/x" % n, "\n".join(["[x]", *c.extensions, ""]))
        self.run("ca", "-batch", "-notext", "-config", self.folder + "/openssl.cnf", "-md",
                 "null" if c.issuer_key == "ed25519" else c.digest, "-subj", "/CN=" + c.cn, "-in",
                 "%s/%s.csr" % (self.folder, c.key), "-cert", self.issuer((c.issuer, c.issuer_key)), "-keyfile",
                 self.key(c.issuer_key), "-startdate", c.dates[0], "-enddate", c.dates[1], "-out", self.path(c),
                 *(["-extfile", extensions, "-extensions", "x"] if c.extensions else []),
                 DB=folder + "/index.txt", ISSUED=folder)

    def make_all(self, certs, pool):
        for i, c in enumerate(certs):
            self.number[c] = i
        list(pool.map(self.make_key, {key for c in certs for key in (c.key, c.issuer_key)}))
        list(pool.map(self.make_issuer, {(c.issuer, c.issuer_key) for c in certs}))
        list(pool.map(self.make, certs))

    def bundle(self, certs):
        """A file of several."""
        if len(certs) == 1:
            return self.path(certs[0])
        path = "%s/%s.bundle" % (self.folder, "-".join(str(self.number[c]) for c in certs))
        if not os.path.exists(path):
            texts = []
            for c in certs:
                with open(self.path(c)) as f:
                    texts.append(f.read())
            with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False) as f:
                f.write("".join(texts))
            os.rename(f.name, path)     # several threads may be at it
        return path


def openssl_judges(pki, c):
    """What openssl says: "", or why not."""
    asked = "-verify_ip" if re.fullmatch(r"[0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*", c.name) else "-verify_hostname"
    rest = ["-untrusted", pki.bundle(c.sent[1:])] if c.sent[1:] else []
    done = subprocess.run(
        ["openssl", "verify", "-partial_chain", "-purpose", "sslserver", "-auth_level", "2", "-no-CApath",
         "-no-CAstore", asked, c.name, "-CAfile", pki.bundle(c.anchors), *rest, pki.path(c.sent[0])],
        capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    found = re.search(r"error \d+ at \d+ depth lookup: (.*)", done.stderr + done.stdout)
    if not found:
        raise RuntimeError("openssl verify: " + done.stderr)
    return found[1]


def build_driver(folder):
    """tests/chains.c, with the C library of this system."""
    bearssl = os.path.dirname(glob.glob(TOP + "/bearssl-0.6*/inc")[0])
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    subprocess.run(["make", "-s", "-C", TOP, "CC=cc", "bearssl"], check=True, env=env, stdout=subprocess.DEVNULL)
    driver = folder + "/chains"
    subprocess.run(["cc", "-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
                    "-fno-pie", "-no-pie", "-isystem", bearssl + "/inc", "-o", driver, TOP + "/tests/chains.c",
                    bearssl + "/build-cc/libbearssl.a"], check=True)
    return driver


def we_judge(driver, pki, chains):
    """What section 7 says of each: "0 ", or an error and why."""
    lines = ["%s %s %s\n" % (c.name, pki.bundle(c.anchors), pki.bundle(c.sent)) for c in chains]
    said = subprocess.run([driver], input="".join(lines), capture_output=True, text=True, check=True).stdout
    said = said.splitlines()
    if len(said) != len(chains):
        raise RuntimeError("%d answers to %d chains" % (len(said), len(chains)))
    return said


def main(pattern=""):
    groups = {group.__name__: list(dict.fromkeys(group()))
              for group in (special, names, purposes, lengths, keys, orders) if re.search(pattern, group.__name__)}
    chains = [c for group in groups.values() for c in group]
    asked = [any_is_server(c) for c in chains]
    certs = list(dict.fromkeys(one for c in chains + asked for one in (*c.sent, *c.anchors)))
    with tempfile.TemporaryDirectory(prefix="registrator-chains-") as folder, ThreadPoolExecutor(4) as pool:
        pki, driver = Pki(folder), pool.submit(build_driver, folder)
        pki.make_all(certs, pool)
        theirs = list(pool.map(partial(openssl_judges, pki), asked))
        ours = we_judge(driver.result(), pki, chains)
    verdicts = dict(zip(chains, zip(theirs, ours)))
    used, failed = set(), 0
    for name, group in groups.items():
        wrong, accepted = [], 0
        for c in group:
            their, our = verdicts[c]
            want, rules = expected(c, their)
            accepted += want
            used.update(map(id, rules))
            if want != our.startswith("0 "):
                wrong.append("  %s, for %s: openssl says %s, we say %s" % (
                    ", ".join(sorted(c.tags)), c.name, their or "ok", our))
        failed += bool(wrong)
        print("ok chains %s: %d, of which %d are good" % (name, len(group), accepted) if not wrong else
              "not ok chains %s: %d of %d" % (name, len(wrong), len(group)))
        print("".join(line + "\n" for line in wrong), end="")
    idle = [rule for rule in STRICTER + LENIENT if id(rule) not in used] if not pattern else []
    print("not ok chains table: rules that decide nothing" if idle else "ok chains table")
    print("".join("  %s\n" % rule[0] for rule in idle), end="")
    return int(failed > 0 or bool(idle))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
