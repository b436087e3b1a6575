/* registrator - keeps a service registry in step with a Docker engine.
 *
 * It watches one engine and sees to it that every container port that others
 * can reach is a service in Consul, with the right address, and that nothing
 * else is.  README.md tells how to use it; this comment, what it can do.
 *
 *     cc -Os -o registrator registrator.c -lbearssl
 *
 * ==== 0. Contract ==========================================================
 *
 * To the engine it sends these requests and no others, all GET:
 *
 *     /version                  its API version, and whether it is Podman
 *     /info                     the same, and its ID: the marks are made of it
 *     /events                   once a session, read for as long as it lasts
 *     /containers/json[?all=1]  at start and at each resync; all of Podman
 *     /containers/ID/json       of a container that may have changed
 *     /networks/ID              of a container with ports that Docker does
 *                               not publish (Podman: any): macvlan, ipvlan?
 *
 * To Consul's agent, with ns= and partition= where the environment says so:
 *
 *     GET /v1/status/leader     at the beginning of a session, then
 *     GET /v1/agent/self        this host's address (Member.Addr)
 *     GET /v1/agent/services    then, and at each resync
 *     PUT /v1/agent/service/register[?replace-existing-checks=true]
 *     PUT /v1/agent/service/deregister/ID
 *
 * Both sides over HTTP/1.1, on at most CONNS_MAX connections each, kept open,
 * in TLS 1.2 where the address says so.
 *
 * An entry that it has written carries the Meta "registrator", the mark
 * OWNER-CONTENT (section 12): whose it is, and what was written.  It removes
 * what it wrote, what carries its mark and is explained by no container, and
 * with -cleanup what has no mark and an ID like one of its own.
 *
 * It reads: the files that the environment names: a token, certificates and
 * keys; with TLS and no CA named, the system's bundle of them (section 7);
 * what the C library needs to look up names (/etc/resolv.conf, /etc/hosts)
 * and the time zone.
 * Its environment (section 14): DOCKER_HOST, DOCKER_TLS_VERIFY,
 * DOCKER_CERT_PATH, HOME (for ~/.docker), CONSUL_HTTP_ADDR,
 * CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE, CONSUL_HTTP_AUTH,
 * CONSUL_HTTP_SSL, CONSUL_HTTP_SSL_VERIFY, CONSUL_CACERT, CONSUL_CLIENT_CERT,
 * CONSUL_CLIENT_KEY, CONSUL_TLSCERT, CONSUL_TLSKEY,
 * CONSUL_TLS_SERVER_NAME, CONSUL_NAMESPACE, CONSUL_PARTITION, and TZ.
 * Its signals: SIGTERM and SIGINT end it, SIGHUP compares everything now,
 * SIGUSR1 logs a summary; SIGPIPE is ignored.
 * It writes the log to stderr and, for print:, changes to stdout.
 *
 * It opens no listening socket, writes no file, starts no program, keeps
 * nothing that it could not ask for again, and logs no secret.
 *
 * It leaves no core, and its memory is not to be read by others of its user.
 * Once started it gives up for good what it does not need (os_confine; not
 * with -confine=false).  By Landlock: files are read only in the directories
 * of those above; none is written, made or run anywhere; no TCP port is bound;
 * no signal reaches others.  By seccomp: only these system calls do anything,
 *
 *     bind brk clock_gettime close connect exit_group fcntl getdents64
 *     getrandom getsockname getsockopt ioctl madvise mmap mprotect munmap
 *     open poll read recvfrom recvmsg restart_syscall rt_sigprocmask
 *     rt_sigreturn sendmsg sendto setsockopt socket stat tkill uname write
 *     writev
 *     arm64: newfstatat openat ppoll
 *     arm: clock_gettime32 clock_gettime64 fcntl64 mmap2 sigreturn stat64
 *     statx
 *
 * and of these open only to read, mmap and mprotect without execution, tkill
 * for itself alone (abort), socket for unix, IPv4 and IPv6; netlink sockets
 * and ioctl (getifaddrs) only with -ip.  To get there it also calls
 *
 *     arch_prctl execve fstat getpid landlock_add_rule
 *     landlock_create_ruleset landlock_restrict_self openat pipe prctl
 *     prlimit64 readlinkat rt_sigaction set_tid_address
 *
 * The sections, each of which uses only what stands above it:
 *
 *     1 Base         the platform, limits, CHECK
 *     2 Text         slices, buffers, memory, lists
 *     3 Log          the one sink
 *     4 JSON         tokens; a splitter for streams and lists
 *     5 URL          where a peer is
 *     6 System       sockets, clock, signals, names
 *     7 TLS          BearSSL as steps, certificates, keys
 *     8 HTTP         a response, however it is split
 *     9 Connections  requests over a few of them, none of which waits
 *    10 Docker       what the engine says
 *    11 Services     a container in, its services out: most of the rules
 *    12 Registries   Consul, print
 *    13 Bridge       wanted against present
 *    14 Program      options, environment, main
 */

/* ==== 1. Base ==============================================================
 *
 * What the rest stands on: the platform, limits with their reasons, CHECK.
 */

#define _XOPEN_SOURCE 700       /* POSIX.1-2008 with its XSI part: tsearch */

#include <arpa/inet.h>          /* inet_pton */
#include <bearssl.h>            /* 0.6, in section 7 alone */
#include <errno.h>
#include <fcntl.h>              /* fcntl, open: O_NONBLOCK, FD_CLOEXEC */
#include <limits.h>             /* CHAR_BIT, INT_MAX, UINT_MAX */
#include <netdb.h>              /* getaddrinfo */
#include <netinet/in.h>         /* sockaddr_in, sockaddr_in6, IPPROTO_TCP */
#include <netinet/tcp.h>        /* TCP_NODELAY */
#include <poll.h>
#include <search.h>             /* tsearch, tfind, tdelete */
#include <signal.h>             /* sigaction */
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>             /* offsetof */
#include <stdint.h>
#include <stdlib.h>             /* malloc, free, qsort, getenv, exit */
#include <string.h>             /* memcpy, memcmp, memchr, memmove, strlen */
#include <sys/resource.h>       /* setrlimit */
#include <sys/socket.h>
#include <sys/stat.h>           /* stat: whose group the engine's socket has */
#include <sys/un.h>             /* sockaddr_un */
#include <time.h>               /* clock_gettime, localtime_r */
#include <unistd.h>             /* read, write, close, pipe, gethostname */
#ifdef __linux__
#include <sys/random.h>         /* getrandom */
#endif
#if defined __linux__ || defined __FreeBSD__ || defined __OpenBSD__
#include <ifaddrs.h>            /* getifaddrs, for -ip INTERFACE */
#include <net/if.h>             /* IF_NAMESIZE, if_nametoindex */
#define HAVE_IFADDRS 1
#endif

#define VERSION "8.0.0"

/* The two limits that tests cripple to 1, so that every read and write moves
 * a single byte. */
#ifndef READ_MAX
#define READ_MAX 16384
#endif
#ifndef WRITE_MAX
#define WRITE_MAX 65536
#endif
/* All times are divided by this, so that tests need not wait for them. */
#ifndef HASTE
#define HASTE 1
#endif
#define MS(n) ((n) / HASTE)

enum {
    HEAD_MAX = 64 * 1024,       /* a response's head: Docker's is 300 bytes */
    CHUNK_LINE_MAX = 4096,      /* a chunk's size with its extensions */
    BODY_MAX = 16 * 1024 * 1024, /* an answer held whole: one inspect */
    ELEMENT_MAX = 4 * 1024 * 1024, /* an event, or one entry of a list */
    ROWS_MAX = 50 * 1000,       /* of a list: hosts have some hundreds */
    NETWORKS_MAX = 1000,        /* known by their drivers, at a resync */
    TEXT_MAX = 64 * 1024 * 1024, /* any text that we build */
    JSON_DEPTH = 64,            /* inspect of Docker 28 has 6 */
    JSON_VALUES = 1000 * 1000,  /* in one text: an inspect has about 300 */
    JSON_KEPT = 64 * 1024,      /* tokens whose memory is kept for the next */
    LOG_LINE_MAX = 2048,        /* the rest of a longer line is cut */
    ERR_MAX = 512,
    CONNS_MAX = 16,             /* connections to one peer, at the most */
    ADDRS_MAX = 8,              /* addresses of one host name */
    CONNECT_MS = MS(5000),
    CALL_MS = MS(10 * 1000),    /* an answer, or the next part of it */
    ANSWER_MS = MS(60 * 1000),  /* a whole answer, however it trickles */
    STALL_MS = MS(1000),        /* what waits behind an answer goes round */
    LATE_MS = MS(1000),         /* what a peer that hung still does of calls
                                   that we have given up, it does by then */
    SUBSCRIBE_MS = MS(500),     /* Docker 1.7 sends no head at once */
    PAUSE_MIN_MS = MS(100),
    PAUSE_PEER_MS = MS(10 * 1000), /* longest, between connections */
    PAUSE_CALL_MS = MS(60 * 1000), /* longest, of a refused call */
    METAS_MAX = 1000,           /* SERVICE_ variables of one container */
    EXIT_MS = MS(4500)           /* for -on-exit: 5 s, less what it takes */
};

#define CHECK(c) ((c) ? (void)0 : check_fail( \
    "registrator: bug: line " TEXT(__LINE__) ": " #c "\n"))
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
#define LENGTH(a) (sizeof(a) / sizeof *(a))
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define STATIC_CHECK(c) \
    typedef char JOIN(static_check_, __LINE__)[(c) ? 1 : -1]

STATIC_CHECK(CHAR_BIT == 8);
STATIC_CHECK(sizeof(size_t) >= 4);
STATIC_CHECK(TEXT_MAX < INT_MAX);       /* so "%.*s" takes any text of ours */
STATIC_CHECK(3 * BODY_MAX <= TEXT_MAX); /* json_str: U+FFFD for each byte */
STATIC_CHECK(64 * JSON_VALUES <= TEXT_MAX); /* a list of what is in a text */
STATIC_CHECK(READ_MAX >= 1 && WRITE_MAX >= 1);

/* Something that this program guarantees is not so: it stops at once, since
 * nothing that it does from here on could be trusted. */
static void check_fail(const char *what)
{
    (void)write(STDERR_FILENO, what, strlen(what));
    abort();
}

/* ==== 2. Text ================================= str_ buf_ mem_ list_ ====
 *
 * Slices, growing buffers, memory and lists.  Every byte from outside enters
 * a message through one of three encoders: buf_json, buf_url, buf_header.
 *
 * Calls: nothing but its own.
 */

/* A piece of somebody else's bytes: borrowed, not terminated. */
struct str {
    const char *p;
    size_t n;
};

#define STR_INIT(lit) { (lit), sizeof(lit) - 1 }
#define STR(lit) ((struct str)STR_INIT(lit))
#define PUT(s) (int)(s).n, (s).p        /* for "%.*s" */

/* Never NULL.  Without memory there is nothing to be done but to start again,
 * which loses nothing: the engine and the registry know it all. */
static void *mem_new(size_t n)
{
    void *p = n > TEXT_MAX ? NULL : malloc(n ? n : 1);

    if (p == NULL) {
        static const char why[] = "registrator: out of memory\n";

        (void)write(STDERR_FILENO, why, sizeof why - 1);
        _exit(1);
    }
    return p;
}

static void *mem_zero(size_t n)
{
    return memset(mem_new(n), 0, n);
}

/* The first n bytes of p in a block of `size`; p is released. */
static void *mem_grow(void *p, size_t n, size_t size)
{
    void *grown = mem_new(size);

    if (n > 0)
        memcpy(grown, p, n);
    free(p);
    return grown;
}

/* Memory that is released all at once: a chain of chunks, each twice as
 * large as the one before. */
struct arena {
    struct chunk *last;
};

union align {
    void *p;
    uint64_t u;
};

struct chunk {
    struct chunk *before;
    size_t used, room;          /* bytes of data[] */
    union align data[];
};

static void *mem_get(struct arena *a, size_t n)
{
    struct chunk *c = a->last;
    size_t room;

    CHECK(n <= TEXT_MAX);
    n = (n + sizeof(union align) - 1) / sizeof(union align) *
        sizeof(union align);
    if (c == NULL || c->room - c->used < n) {
        room = c == NULL ? 128 : c->room < 65536 ? c->room * 2 : c->room;
        room = room < n ? n : room;
        c = mem_new(sizeof *c + room);
        c->before = a->last;
        c->used = 0;
        c->room = room;
        a->last = c;
    }
    c->used += n;
    return (char *)c->data + (c->used - n);
}

static void mem_drop(struct arena *a)
{
    struct chunk *before;

    for (; a->last != NULL; a->last = before) {
        before = a->last->before;
        free(a->last);
    }
}

/* A literal or another terminated text. */
static struct str str_of(const char *z)
{
    struct str s = { z, 0 };

    s.n = z == NULL ? 0 : strlen(z);
    return s;
}

static struct str str_from(struct str s, size_t at)
{
    CHECK(at <= s.n);
    s.p += at;
    s.n -= at;
    return s;
}

static struct str str_upto(struct str s, size_t n)
{
    CHECK(n <= s.n);
    s.n = n;
    return s;
}

/* No more than the first n bytes. */
static struct str str_first(struct str s, size_t n)
{
    return str_upto(s, s.n < n ? s.n : n);
}

static bool str_eq(struct str a, struct str b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static int str_cmp(struct str a, struct str b)
{
    size_t n = a.n < b.n ? a.n : b.n;
    int d = n > 0 ? memcmp(a.p, b.p, n) : 0;

    return d != 0 ? d : (a.n > b.n) - (a.n < b.n);
}

static bool str_prefix(struct str s, struct str prefix)
{
    return s.n >= prefix.n &&
           (prefix.n == 0 || memcmp(s.p, prefix.p, prefix.n) == 0);
}

static bool str_suffix(struct str s, struct str end)
{
    return s.n >= end.n && memcmp(s.p + (s.n - end.n), end.p, end.n) == 0;
}

static char str_lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool str_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool str_letter(char c)
{
    return str_lower(c) >= 'a' && str_lower(c) <= 'z';
}

static bool str_hexdigit(char c)
{
    return str_digit(c) || (str_lower(c) >= 'a' && str_lower(c) <= 'f');
}

/* White space, as JSON and HTTP see it. */
static bool str_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Neither a blank nor a control character. */
static bool str_visible(char c)
{
    return (unsigned char)c > 0x20 && c != 0x7f;
}

static bool str_all(struct str s, bool (*is)(char))
{
    size_t i = 0;

    while (i < s.n && is(s.p[i]))
        i++;
    return i == s.n;
}

/* As str_eq, with ASCII letters of either case. */
static bool str_same(struct str a, struct str b)
{
    size_t i = 0;

    if (a.n != b.n)
        return false;
    while (i < a.n && str_lower(a.p[i]) == str_lower(b.p[i]))
        i++;
    return i == a.n;
}

/* Where c first stands in s, or s.n. */
static size_t str_index(struct str s, char c)
{
    const char *p = s.n ? memchr(s.p, c, s.n) : NULL;

    return p == NULL ? s.n : (size_t)(p - s.p);
}

static bool str_has(struct str s, char c)
{
    return str_index(s, c) < s.n;
}

/* Takes the part before the first c off *s, and c with it. */
static struct str str_cut(struct str *s, char c)
{
    size_t at = str_index(*s, c);
    struct str head = str_upto(*s, at);

    *s = str_from(*s, at < s->n ? at + 1 : at);
    return head;
}

/* What follows the last c of s; all of s where there is none. */
static struct str str_after(struct str s, char c)
{
    size_t at = s.n;

    while (at > 0 && s.p[at - 1] != c)
        at--;
    return str_from(s, at);
}

/* Where needle first stands in s, or s.n. */
static size_t str_find(struct str s, struct str needle)
{
    size_t i;

    for (i = 0; i + needle.n <= s.n; i++)
        if (str_prefix(str_from(s, i), needle))
            return i;
    return s.n;
}

static struct str str_trim(struct str s)
{
    while (s.n > 0 && str_blank(*s.p))
        s = str_from(s, 1);
    while (s.n > 0 && str_blank(s.p[s.n - 1]))
        s.n--;
    return s;
}

/* A number of the base 10 or 16, at most max: digits and nothing else. */
static bool str_number(struct str s, unsigned base, uint64_t max,
                       uint64_t *out)
{
    uint64_t v = 0, d;
    size_t i;

    if (s.n == 0)
        return false;
    for (i = 0; i < s.n; i++) {
        char c = str_lower(s.p[i]);

        if (!str_hexdigit(c))
            return false;
        d = str_digit(c) ? (uint64_t)(c - '0') : (uint64_t)(c - 'a') + 10;
        if (d >= base || d > max || v > (max - d) / base)
            return false;
        v = v * base + d;
    }
    *out = v;
    return true;
}

static bool str_u64(struct str s, uint64_t max, uint64_t *out)
{
    return str_number(s, 10, max, out);
}

/* A port that something can listen on: 1 to 65535. */
static bool str_port(struct str s, unsigned *out)
{
    uint64_t v;

    if (!str_u64(s, 65535, &v) || v == 0)
        return false;
    *out = (unsigned)v;
    return true;
}

/* FNV-1a with a last mix, 64 bits: a fingerprint, not a secret. */
static uint64_t str_hash(uint64_t h, struct str s)
{
    size_t i;

    h ^= 0xcbf29ce484222325u;
    for (i = 0; i < s.n; i++)
        h = (h ^ (unsigned char)s.p[i]) * 0x100000001b3u;
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

/* Takes one character off *s, which is not empty.  A byte that is not of
 * well-formed UTF-8 (Unicode 15, table 3-7) is U+FFFD by itself, as in Go. */
static uint32_t str_rune(struct str *s)
{
    const unsigned char *p = (const unsigned char *)s->p;
    unsigned more = p[0] < 0x80 ? 0 : p[0] < 0xe0 ? 1 : p[0] < 0xf0 ? 2 : 3;
    uint32_t c = p[0];
    unsigned i;

    if (more > 0) {
        static const unsigned char low[] = { 0, 0, 0xa0, 0x90 };
        bool ok = p[0] >= 0xc2 && p[0] <= 0xf4 && s->n > more;

        c &= 0x3fu >> more;
        for (i = 1; ok && i <= more; i++) {
            ok = (p[i] & 0xc0) == 0x80;
            c = c << 6 | (p[i] & 0x3f);
        }
        ok = ok && !((p[0] == 0xe0 || p[0] == 0xf0) && p[1] < low[more]) &&
             !(p[0] == 0xed && p[1] > 0x9f) && !(p[0] == 0xf4 && p[1] > 0x8f);
        if (!ok) {
            more = 0;
            c = 0xfffd;
        }
    }
    *s = str_from(*s, more + 1);
    return c;
}

/* Writes c as UTF-8 and returns its length, 1 to 4. */
static size_t str_utf8(uint32_t c, char out[4])
{
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4, i;

    if (n == 1) {
        out[0] = (char)c;
        return 1;
    }
    for (i = n; i-- > 1; c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((0xf00u >> n & 0xff) | c);
    return n;
}

static struct str str_copy(struct arena *a, struct str s)
{
    char *p = mem_get(a, s.n);
    struct str copy = { p, s.n };

    if (s.n > 0)
        memcpy(p, s.p, s.n);
    return copy;
}

/* A terminated copy, for the caller to free. */
static char *str_dup(struct str s)
{
    char *p = mem_new(s.n + 1);

    if (s.n > 0)
        memcpy(p, s.p, s.n);
    p[s.n] = '\0';
    return p;
}

/* Text that grows at its end.  Past max (0: TEXT_MAX) it is bad, and stays
 * so: write freely and ask once.  The owner frees it. */
struct buf {
    char *p;
    size_t n, room, max;
    bool bad;
};

static struct str buf_str(const struct buf *b)
{
    struct str s = { b->p, b->n };

    return s;
}

static void buf_free(struct buf *b)
{
    size_t max = b->max;

    free(b->p);
    memset(b, 0, sizeof *b);
    b->max = max;
}

/* The finished text, in memory of a; b is released. */
static struct str buf_done(struct buf *b, struct arena *a)
{
    struct str s = str_copy(a, buf_str(b));

    buf_free(b);
    return s;
}

/* Room for n more bytes, of which the caller then counts b->n up. */
static bool buf_need(struct buf *b, size_t n)
{
    size_t max = b->max ? b->max : TEXT_MAX, room;

    if (b->bad || n > max - b->n) {
        b->bad = true;
        return false;
    }
    if (b->room - b->n >= n)
        return true;
    room = b->room < 128 ? 128 : b->room;
    while (room - b->n < n)
        room = room > max / 2 ? max : room * 2;
    b->p = mem_grow(b->p, b->n, room);
    b->room = room;
    return true;
}

static void buf_add(struct buf *b, struct str s)
{
    if (s.n > 0 && buf_need(b, s.n)) {
        memcpy(b->p + b->n, s.p, s.n);
        b->n += s.n;
    }
}

static void buf_lit(struct buf *b, const char *z)
{
    buf_add(b, str_of(z));
}

static void buf_byte(struct buf *b, char c)
{
    struct str s = { &c, 1 };

    buf_add(b, s);
}

static void buf_u64(struct buf *b, uint64_t v)
{
    char digits[20];
    size_t at = sizeof digits;
    struct str s;

    do
        digits[--at] = (char)('0' + v % 10);
    while ((v /= 10) > 0);
    s.p = digits + at;
    s.n = sizeof digits - at;
    buf_add(b, s);
}

/* The last `digits` decimal digits of v, and then the text z. */
static void buf_digits(struct buf *b, int v, unsigned digits, const char *z)
{
    if (digits > 1)
        buf_digits(b, v / 10, digits - 1, "");
    buf_byte(b, (char)('0' + v % 10));
    buf_lit(b, z);
}

/* The last `digits` hexadecimal digits of v. */
static void buf_hex(struct buf *b, uint64_t v, unsigned digits)
{
    while (digits-- > 0)
        buf_byte(b, "0123456789abcdef"[v >> 4 * digits & 15]);
}

/* Takes n bytes off the front. */
static void buf_skip(struct buf *b, size_t n)
{
    CHECK(n <= b->n);
    b->n -= n;
    if (b->n > 0)
        memmove(b->p, b->p + n, b->n);
}

/* s as a JSON string (RFC 8259 section 7).  What is not UTF-8 becomes
 * U+FFFD. */
static void buf_json(struct buf *b, struct str s)
{
    char utf8[4];
    struct str one = { utf8, 0 };

    buf_byte(b, '"');
    while (s.n > 0) {
        uint32_t c = str_rune(&s);

        if (c == '"' || c == '\\') {
            buf_byte(b, '\\');
            buf_byte(b, (char)c);
        } else if (c < 0x20 || c == 0x7f) {
            buf_lit(b, "\\u00");
            buf_hex(b, c, 2);
        } else {
            one.n = str_utf8(c, utf8);
            buf_add(b, one);
        }
    }
    buf_byte(b, '"');
}

/* s as one part of a path or a query: what RFC 3986 section 2.3 does not
 * call unreserved is escaped, but for the colon, which IDs are full of. */
static void buf_url(struct buf *b, struct str s)
{
    size_t i;

    for (i = 0; i < s.n; i++) {
        char c = s.p[i];

        if (str_letter(c) || str_digit(c) || c == '-' || c == '.' ||
            c == '_' || c == '~' || c == ':') {
            buf_byte(b, c);
        } else {
            buf_byte(b, '%');
            buf_hex(b, (unsigned char)c, 2);
        }
    }
}

static bool buf_header_char(char c)
{
    return c == ' ' || str_visible(c);
}

/* One header line.  A value that could begin another line, or is not text,
 * makes the buffer bad, so the message is never sent (RFC 9110 5.5). */
static void buf_header(struct buf *b, const char *name, struct str value)
{
    if (!str_all(value, buf_header_char))
        b->bad = true;
    buf_lit(b, name);
    buf_lit(b, ": ");
    buf_add(b, value);
    buf_lit(b, "\r\n");
}

/* A ring of links, with its head among them.  A link is a struct's first
 * member or is reached by LIST_OF. */
struct link {
    struct link *next, *before;
};

#define LIST_OF(type, member, l) \
    ((type *)(void *)((char *)(l) - offsetof(type, member)))

static void list_init(struct link *l)
{
    l->next = l->before = l;
}

static bool list_empty(const struct link *l)
{
    return l->next == l;
}

/* Takes l out of whatever list it is in; it may be in none. */
static void list_take(struct link *l)
{
    l->before->next = l->next;
    l->next->before = l->before;
    list_init(l);
}

static void list_before(struct link *at, struct link *l)
{
    list_take(l);
    l->next = at;
    l->before = at->before;
    at->before->next = l;
    at->before = l;
}

/* ==== 3. Log ========================================== log_ err_ ====
 *
 * One sink: a line is formatted, then escaped, then written at once, so that
 * no text from outside can forge a second line or move a terminal's cursor.
 *
 * Calls: str_ buf_.
 */

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

static enum log_level log_limit = LOG_INFO;

/* A failure in words, written where it is known and logged once, by whoever
 * decides what to do about it. */
struct err {
    char text[ERR_MAX];
};

#ifdef __GNUC__
#define PRINTF(format_at, args_at) \
    __attribute__((format(printf, format_at, args_at)))
#else
#define PRINTF(format_at, args_at)
#endif

/* What vsnprintf would do with "%s", "%.Ns", "%d", "%u" and "%zu", and with
 * "%.*s", which here is a slice, NULs and all.  The C library's own brings
 * floating point and wide characters with it: 14 kB of 200. */
PRINTF(2, 0)
static void log_words(struct buf *b, const char *f, va_list args)
{
    for (; *f != '\0'; f++) {
        struct str s = { f, 1 };
        size_t most = SIZE_MAX;
        int v;

        if (*f != '%') {
            buf_add(b, s);
            continue;
        }
        f++;
        if (f[0] == '.' && f[1] == '*') {
            s.n = (size_t)va_arg(args, int);
            s.p = va_arg(args, const char *);
            buf_add(b, s);
            f += 2;
            continue;
        }
        if (*f == '.')
            for (most = 0, f++; str_digit(*f); f++)
                most = most * 10 + (size_t)(*f - '0');
        if (*f == 's') {
            s.p = va_arg(args, const char *);
            for (s.n = 0; s.n < most && s.p[s.n] != '\0'; s.n++)
                continue;
            buf_add(b, s);
        } else if (*f == 'd') {
            v = va_arg(args, int);
            buf_lit(b, v < 0 ? "-" : "");
            buf_u64(b, (uint64_t)(v < 0 ? -(int64_t)v : v));
        } else if (*f == 'u') {
            buf_u64(b, va_arg(args, unsigned));
        } else {
            CHECK(f[0] == 'z' && f[1] == 'u');
            buf_u64(b, va_arg(args, size_t));
            f++;
        }
    }
}

PRINTF(2, 0)
static void err_words(struct err *e, const char *format, va_list args)
{
    struct buf b = { 0 };
    size_t i;

    log_words(&b, format, args);
    for (i = 0; i < b.n && i < sizeof e->text - 1; i++)
        e->text[i] = b.p[i] == '\0' ? ' ' : b.p[i];
    e->text[i] = '\0';
    buf_free(&b);
}

/* Returns -1, for `return err_set(e, ...)`. */
PRINTF(2, 3)
static int err_set(struct err *e, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    err_words(e, format, args);
    va_end(args);
    return -1;
}

/* Whether a reader sees the character as what it is: no control character,
 * and none that ends a line or turns the direction of the text around it. */
static bool log_plain(uint32_t c)
{
    return c >= 0x20 && (c < 0x7f || c > 0x9f) && c != 0x61c &&
           (c < 0x200e || c > 0x200f) && (c < 0x2028 || c > 0x202e) &&
           (c < 0x2066 || c > 0x2069);
}

/* Adds s with what could mislead a reader, or is not UTF-8, made visible. */
static void log_escape(struct buf *b, struct str s)
{
    while (s.n > 0) {
        struct str at = s;
        uint32_t c = str_rune(&s);

        at.n -= s.n;
        if (c == 0xfffd && at.n == 1) {
            buf_lit(b, "\\x");
            buf_hex(b, (unsigned char)*at.p, 2);
        } else if (log_plain(c)) {
            buf_add(b, at);
        } else if (c == '\n') {
            buf_lit(b, "\\n");
        } else {
            buf_lit(b, c < 0x100 ? "\\x" : "\\u");
            buf_hex(b, c, c < 0x100 ? 2 : 4);
        }
    }
}

/* Year, month, day, hour, minute and second, what stands after each. */
static void log_time(struct buf *b, const struct tm *tm,
                     const char *const after[6])
{
    buf_digits(b, tm->tm_year + 1900, 4, after[0]);
    buf_digits(b, tm->tm_mon + 1, 2, after[1]);
    buf_digits(b, tm->tm_mday, 2, after[2]);
    buf_digits(b, tm->tm_hour, 2, after[3]);
    buf_digits(b, tm->tm_min, 2, after[4]);
    buf_digits(b, tm->tm_sec, 2, after[5]);
}

/* The local time as Go's log package has it: 2026/11/22 18:05:26. */
static void log_date(struct buf *b)
{
    static const char *const after[] = { "/", "/", " ", ":", ":", " " };
    time_t now = time(NULL);
    struct tm tm;

    if (localtime_r(&now, &tm) != NULL)
        log_time(b, &tm, after);
}

PRINTF(2, 3)
static void log_at(enum log_level level, const char *format, ...)
{
    struct buf text = { 0 }, line = { 0 };
    va_list args;

    if (level > log_limit)
        return;
    va_start(args, format);
    log_words(&text, format, args);
    va_end(args);
    log_date(&line);
    buf_lit(&line, "registrator: ");
    log_escape(&line, str_first(buf_str(&text), LOG_LINE_MAX));
    buf_lit(&line, text.n <= LOG_LINE_MAX ? "\n" : "...\n");
    if (write(STDERR_FILENO, line.p, line.n) < 0)
        log_limit = LOG_ERROR;  /* nobody reads it: say less */
    buf_free(&text);
    buf_free(&line);
}

/* ==== 4. JSON ============================================== json_ ====
 *
 * Strict RFC 8259, in linear time, of bounded depth, without recursion: what
 * is not JSON is refused.  One leniency: a string may hold bytes that are not
 * UTF-8, which old engines pass on; they become U+FFFD when it is read.
 *
 * Calls: str_ buf_ mem_ err_.
 */

enum json_type {
    JSON_NONE,          /* what json_get answers if there is none */
    JSON_NULL,
    JSON_BOOL,
    JSON_NUMBER,
    JSON_STRING,
    JSON_OBJECT,        /* then name, value, name, value ... */
    JSON_ARRAY          /* then its elements */
};

struct json_token {
    uint32_t at, n;     /* its text: a string's without the quotes */
    uint32_t next;      /* the token behind it and all that is in it */
    enum json_type type;
};

/* A text and its tokens.  Token 0 stands for "not there", so that look-ups
 * can be chained; the value itself is token JSON_ROOT. */
struct json {
    struct str text;    /* borrowed */
    struct json_token *token;
    size_t n, room;     /* of token */
};

enum { JSON_ROOT = 1 };

static void json_free(struct json *j)
{
    free(j->token);
    memset(j, 0, sizeof *j);
}

static enum json_type json_type(const struct json *j, size_t t)
{
    return j->token[t].type;
}

/* Adds a token and returns its index. */
static size_t json_add(struct json *j, enum json_type type, size_t at,
                       size_t n)
{
    struct json_token *t;

    if (j->n == j->room) {
        j->room = j->room ? j->room * 2 : 64;
        j->token = mem_grow(j->token, j->n * sizeof *t, j->room * sizeof *t);
    }
    t = &j->token[j->n];
    t->type = type;
    t->at = (uint32_t)at;
    t->n = (uint32_t)n;
    t->next = (uint32_t)++j->n;
    return j->n - 1;
}

/* The length of the string that begins with the quote at s.p, with both its
 * quotes; 0 if it is not one. */
static size_t json_string(struct str s)
{
    size_t i, k;

    for (i = 1; i < s.n && (unsigned char)s.p[i] >= 0x20; i++) {
        if (s.p[i] == '"')
            return i + 1;
        if (s.p[i] != '\\')
            continue;
        if (++i == s.n)
            return 0;
        if (s.p[i] == 'u') {
            for (k = 0; k < 4; k++)
                if (++i == s.n || !str_hexdigit(s.p[i]))
                    return 0;
        } else if (str_index(STR("\"\\/bfnrt"), s.p[i]) == 8) {
            return 0;
        }
    }
    return 0;
}

/* Where the digits that stand at i end; 0 if there are none. */
static size_t json_digits(struct str s, size_t i)
{
    size_t from = i;

    while (i < s.n && str_digit(s.p[i]))
        i++;
    return i > from ? i : 0;
}

/* The length of the number at s.p, or 0: RFC 8259 section 6. */
static size_t json_number(struct str s)
{
    size_t from = s.n > 0 && *s.p == '-' ? 1 : 0, i = json_digits(s, from);

    if (i > from + 1 && s.p[from] == '0')
        return 0;
    if (i > 0 && i < s.n && s.p[i] == '.')
        i = json_digits(s, i + 1);
    if (i > 0 && i < s.n && str_lower(s.p[i]) == 'e') {
        i++;
        if (i < s.n && (s.p[i] == '+' || s.p[i] == '-'))
            i++;
        i = json_digits(s, i);
    }
    return i;
}

/* Adds the string, number or word at `at` and returns its length; 0 if there
 * is none. */
static size_t json_scalar(struct json *j, size_t at)
{
    static const struct str word[] = { STR_INIT("null"), STR_INIT("true"),
                                       STR_INIT("false") };
    struct str s = str_from(j->text, at);
    bool string = *s.p == '"';
    size_t n = string ? json_string(s) : json_number(s), i;

    if (n > 0 && string)
        json_add(j, JSON_STRING, at + 1, n - 2);
    else if (n > 0)
        json_add(j, JSON_NUMBER, at, n);
    for (i = 0; n == 0 && i < LENGTH(word); i++)
        if (str_prefix(s, word[i])) {
            n = word[i].n;
            json_add(j, i == 0 ? JSON_NULL : JSON_BOOL, at, n);
        }
    return n;
}

/* What may stand next. */
enum json_want {
    JSON_VALUE,
    JSON_FIRST,         /* a value, or the end of an empty array */
    JSON_NAME,
    JSON_FIRST_NAME,    /* a name, or the end of an empty object */
    JSON_COLON,
    JSON_COMMA,         /* or the end of what we are in */
    JSON_END
};

/* Reads the text, whose bytes must stay as long as the tokens are used. */
static int json_parse(struct json *j, struct str text, struct err *e)
{
    size_t open[JSON_DEPTH], depth = 0, i, n;
    enum json_want want = JSON_VALUE;

    if (j->room > JSON_KEPT)
        json_free(j);
    j->text = text;
    j->n = 0;
    json_add(j, JSON_NONE, 0, 0);
    if (text.n > TEXT_MAX)
        return err_set(e, "JSON of more than %d bytes", TEXT_MAX);
    for (i = 0; i < text.n; i += n) {
        char c = text.p[i];
        bool name = want == JSON_NAME || want == JSON_FIRST_NAME;
        bool value = want == JSON_VALUE || want == JSON_FIRST;
        bool end = want == JSON_COMMA || want == JSON_FIRST ||
                   want == JSON_FIRST_NAME;
        bool object = depth > 0 &&
                      json_type(j, open[depth - 1]) == JSON_OBJECT;

        n = 1;
        if (j->n > JSON_VALUES)
            return err_set(e, "JSON of more than %d values", JSON_VALUES);
        if (str_blank(c))
            continue;
        if (want == JSON_COLON && c == ':') {
            want = JSON_VALUE;
        } else if (name && c == '"' && (n = json_scalar(j, i)) > 0) {
            want = JSON_COLON;
        } else if (value && (c == '{' || c == '[')) {
            if (depth == JSON_DEPTH)
                return err_set(e, "JSON of more than %d levels", JSON_DEPTH);
            open[depth++] =
                json_add(j, c == '{' ? JSON_OBJECT : JSON_ARRAY, i, 0);
            want = c == '{' ? JSON_FIRST_NAME : JSON_FIRST;
        } else if (end && c == (object ? '}' : ']')) {
            struct json_token *t = &j->token[open[--depth]];

            t->n = (uint32_t)(i + 1 - t->at);
            t->next = (uint32_t)j->n;
            want = depth > 0 ? JSON_COMMA : JSON_END;
        } else if (want == JSON_COMMA && c == ',') {
            want = object ? JSON_NAME : JSON_VALUE;
        } else if (value && (n = json_scalar(j, i)) > 0) {
            want = depth > 0 ? JSON_COMMA : JSON_END;
        } else {
            return err_set(e, "not JSON at byte %zu", i);
        }
    }
    if (want != JSON_END)
        return err_set(e, "JSON that ends early, after %zu bytes", text.n);
    return 0;
}

/* The text of a value as it stands there, a string's escapes and all. */
static struct str json_raw(const struct json *j, size_t t)
{
    return str_upto(str_from(j->text, j->token[t].at), j->token[t].n);
}

/* Steps through an array's elements, or an object's names (whose values are
 * one further): `for (i = 0; json_next(j, t, &i);)`. */
static bool json_next(const struct json *j, size_t t, size_t *i)
{
    bool object = json_type(j, t) == JSON_OBJECT;

    if (*i == 0)
        *i = t + 1;
    else
        *i = j->token[object ? *i + 1 : *i].next;
    return (object || json_type(j, t) == JSON_ARRAY) && *i < j->token[t].next;
}

/* The value of that name in object t, of several the last, as in Go; 0 if
 * there is none or t is no object.  No peer escapes letters in names. */
static size_t json_get(const struct json *j, size_t t, const char *name)
{
    struct str wanted = str_of(name);
    size_t i, found = 0;

    if (json_type(j, t) != JSON_OBJECT)
        return 0;
    for (i = 0; json_next(j, t, &i);)
        if (str_eq(json_raw(j, i), wanted))
            found = i + 1;
    return found;
}

static struct str json_get_raw(const struct json *j, size_t t,
                               const char *name)
{
    return json_raw(j, json_get(j, t, name));
}

/* The number that four hexadecimal digits make. */
static uint32_t json_unit(struct str s)
{
    uint64_t v = 0;

    CHECK(str_number(str_upto(s, 4), 16, 0xffff, &v));
    return (uint32_t)v;
}

/* Takes one character, as \uXXXX or two of them, off *s, which begins behind
 * the u.  Half a surrogate pair is U+FFFD. */
static uint32_t json_escape(struct str *s)
{
    uint32_t c = json_unit(*s), low;

    *s = str_from(*s, 4);
    if (c < 0xd800 || c > 0xdfff)
        return c;
    if (c > 0xdbff || !str_prefix(*s, STR("\\u")))
        return 0xfffd;
    low = json_unit(str_from(*s, 2));
    if (low < 0xdc00 || low > 0xdfff)
        return 0xfffd;
    *s = str_from(*s, 6);
    return 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
}

/* The text that a string stands for, as well-formed UTF-8, in memory of a;
 * empty for what is not a string. */
static struct str json_str(const struct json *j, size_t t, struct arena *a)
{
    struct str s = json_raw(j, t), out;
    char *p;

    if (json_type(j, t) != JSON_STRING)
        return STR("");
    out.p = p = mem_get(a, s.n * 3);    /* a bad byte becomes three */
    while (s.n > 0) {
        uint32_t c = str_rune(&s);

        if (c == '\\') {
            c = (unsigned char)*s.p;
            s = str_from(s, 1);
            if (c == 'u')
                c = json_escape(&s);
            else if (str_letter((char)c))
                c = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r'
                    : c == 'b' ? '\b' : '\f';
        }
        p += str_utf8(c, p);
    }
    out.n = (size_t)(p - out.p);
    return out;
}

static struct str json_get_str(const struct json *j, size_t t,
                               const char *name, struct arena *a)
{
    return json_str(j, json_get(j, t, name), a);
}

static bool json_true(const struct json *j, size_t t)
{
    return json_type(j, t) == JSON_BOOL && str_eq(json_raw(j, t), STR("true"));
}

/* A whole number from 0 to max, written without fraction or exponent. */
static bool json_u64(const struct json *j, size_t t, uint64_t max,
                     uint64_t *out)
{
    return json_type(j, t) == JSON_NUMBER && str_u64(json_raw(j, t), max, out);
}

/* A splitter finds the objects in a stream of bytes, whatever the packets:
 * one behind another (events), in an array (the engine's list) or as the
 * values of an object (Consul's services).  It only counts brackets;
 * json_parse says whether an object is one. */
enum split_kind { SPLIT_STREAM, SPLIT_ARRAY, SPLIT_OBJECT };

enum split {
    SPLIT_MORE,         /* everything is used up */
    SPLIT_ELEMENT,      /* the buffer holds a whole object */
    SPLIT_LARGE,        /* one of more than ELEMENT_MAX has passed by */
    SPLIT_BAD           /* this is no such list, or one without end */
};

struct splitter {
    enum split_kind kind;
    enum { SPLIT_OPEN, SPLIT_FIRST, SPLIT_KEY, SPLIT_COLON, SPLIT_VALUE,
           SPLIT_INSIDE, SPLIT_COMMA, SPLIT_DONE } state;
    unsigned depth;
    bool quoted;        /* in a string, a key's or one of the object */
    bool escaped;       /* there, behind a backslash */
    size_t n;           /* objects that have passed */
    struct buf element;
};

static void json_split_start(struct splitter *s, enum split_kind kind)
{
    s->kind = kind;
    s->depth = 0;
    s->n = 0;
    s->quoted = s->escaped = false;
    s->element.max = ELEMENT_MAX;
    s->state = kind == SPLIT_STREAM ? SPLIT_VALUE : SPLIT_OPEN;
}

/* True when a whole list has been seen, and nothing behind it. */
static bool json_split_done(const struct splitter *s)
{
    return s->state == SPLIT_DONE;
}

/* Whether c is of a string, its quotes among it. */
static bool json_split_quoted(struct splitter *s, char c)
{
    bool inside = s->quoted;

    if (c == '"' && !s->escaped)
        s->quoted = !s->quoted;
    s->escaped = inside && c == '\\' && !s->escaped;
    return inside || s->quoted;
}

/* One byte that is not of an object.  False: it may not stand there. */
static bool json_split_between(struct splitter *s, char c)
{
    bool array = s->kind == SPLIT_ARRAY;

    if (s->quoted)
        return json_split_quoted(s, c);
    if (str_blank(c) || (c == 0x1e && s->kind == SPLIT_STREAM)) /* RFC 7464 */
        return true;
    if (s->state == SPLIT_OPEN && c == (array ? '[' : '{'))
        s->state = SPLIT_FIRST;
    else if ((s->state == SPLIT_FIRST || s->state == SPLIT_COMMA) &&
             c == (array ? ']' : '}'))
        s->state = SPLIT_DONE;
    else if (s->state == SPLIT_COMMA && c == ',')
        s->state = array ? SPLIT_VALUE : SPLIT_KEY;
    else if ((s->state == SPLIT_FIRST || s->state == SPLIT_KEY) && !array &&
             json_split_quoted(s, c))
        s->state = SPLIT_COLON;
    else if (s->state == SPLIT_COLON && c == ':')
        s->state = SPLIT_VALUE;
    else
        return false;
    return true;
}

/* How many bytes of `in` belong to the object we are in. */
static size_t json_split_inside(struct splitter *s, struct str in)
{
    size_t i;

    for (i = 0; i < in.n; i++) {
        char c = in.p[i];

        if (json_split_quoted(s, c))
            continue;
        if (c == '{' || c == '[')
            s->depth++;
        else if ((c == '}' || c == ']') && --s->depth == 0)
            return i + 1;
    }
    return i;
}

/* Goes on with *in and takes off what it used.  After SPLIT_ELEMENT the
 * object is in s->element until the next call. */
static enum split json_split(struct splitter *s, struct str *in)
{
    if (s->state != SPLIT_INSIDE) {
        s->element.n = 0;
        s->element.bad = false;
    }
    while (in->n > 0) {
        bool starts = *in->p == '{' &&
                      (s->state == SPLIT_VALUE ||
                       (s->state == SPLIT_FIRST && s->kind == SPLIT_ARRAY));
        size_t n;

        if (s->state != SPLIT_INSIDE && !starts) {
            if (!json_split_between(s, *in->p))
                return SPLIT_BAD;
            *in = str_from(*in, 1);
            continue;
        }
        s->state = SPLIT_INSIDE;
        n = json_split_inside(s, *in);
        buf_add(&s->element, str_upto(*in, n));
        *in = str_from(*in, n);
        if (s->depth > 0)
            continue;
        if (++s->n > ROWS_MAX && s->kind != SPLIT_STREAM)
            return SPLIT_BAD;
        s->state = s->kind == SPLIT_STREAM ? SPLIT_VALUE : SPLIT_COMMA;
        return s->element.bad ? SPLIT_LARGE : SPLIT_ELEMENT;
    }
    return SPLIT_MORE;
}

/* ==== 5. URL ================================================ url_ ====
 *
 * Where a peer is to be found.  No CR, LF, NUL or blank leaves this section.
 *
 * Calls: str_ buf_ err_.
 */

/* scheme:[//[user@]host[:port]][/path]: pieces of the text it was read from,
 * each empty if it is not there. */
struct url {
    struct str scheme, user, host, path;
    unsigned port;      /* 0: none was given */
};

/* host[:port] or [IPv6][:port]. */
static bool url_host(struct str s, struct url *u)
{
    struct str port;
    size_t at;

    if (str_prefix(s, STR("["))) {
        at = str_index(s, ']');
        if (at == s.n || at == 1)
            return false;
        u->host = str_upto(str_from(s, 1), at - 1);
        port = str_from(s, at + 1);
    } else {
        at = str_index(s, ':');
        u->host = str_upto(s, at);
        port = str_from(s, at);
    }
    u->port = 0;
    if (port.n == 0)
        return true;
    return *port.p == ':' && str_port(str_from(port, 1), &u->port);
}

/* RFC 3986 section 3, as far as the addresses of peers need it.  The text
 * itself is never in the error: it may hold a password. */
static int url_parse(struct str s, struct url *u, struct err *e)
{
    struct str authority;
    size_t at;

    memset(u, 0, sizeof *u);
    u->user = u->host = u->path = STR("");
    if (!str_all(s, str_visible))
        return err_set(e, "a blank or control character in it");
    at = str_index(s, ':');
    if (at == 0 || at == s.n)
        return err_set(e, "no scheme, as in consul://");
    u->scheme = str_upto(s, at);
    s = str_from(s, at + 1);
    if (!str_prefix(s, STR("//"))) {
        u->path = s;
        return 0;
    }
    s = str_from(s, 2);
    at = str_index(s, '/');
    authority = str_upto(s, at);
    u->path = str_from(s, at);
    if (str_has(authority, '@')) {
        struct str host = str_after(authority, '@');

        u->user = str_upto(authority, authority.n - host.n - 1);
        authority = host;
    }
    if (!url_host(authority, u))
        return err_set(e, "its host or port is not valid (host:port with a "
                          "port from 1 to 65535, IPv6 as [::1]:port)");
    return 0;
}

/* Adds host or host:port, IPv6 in brackets (RFC 3986 3.2.2). */
static void url_put(struct buf *b, struct str host, unsigned port)
{
    bool six = str_has(host, ':');

    buf_lit(b, six ? "[" : "");
    buf_add(b, host);
    buf_lit(b, six ? "]" : "");
    if (port > 0) {
        buf_byte(b, ':');
        buf_u64(b, port);
    }
}

/* s in base64 (RFC 4648 section 4), for Basic authentication. */
static void url_base64(struct buf *b, struct str s)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                "abcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t i;

    for (; s.n > 0; s = str_from(s, s.n < 3 ? s.n : 3)) {
        uint32_t v = 0;

        for (i = 0; i < 3; i++)
            v = v << 8 | (i < s.n ? (unsigned char)s.p[i] : 0u);
        for (i = 0; i < 4; i++)
            buf_byte(b, i > s.n ? '=' : digit[v >> (18 - 6 * i) & 63]);
    }
}

/* ==== 6. System ============================================== os_ ====
 *
 * The only section with sockets, files, clocks, names and signals.  Nothing
 * in it waits, but os_wait, which is meant to, and os_resolve, which must.
 *
 * Calls: str_ buf_ log_ err_.
 * Kernel: socket connect read poll open close pipe fcntl sigaction
 * clock_gettime getaddrinfo getifaddrs gethostname getsockopt setsockopt
 * stat getrandom opendir readdir closedir isatty setrlimit sysconf
 * syscall.
 */

enum io { IO_OK, IO_WAIT, IO_END, IO_FAILED };

struct os_addr {
    struct sockaddr_storage sa;
    socklen_t n;
};

/* Milliseconds on a clock that never jumps. */
static uint64_t os_now(void)
{
    struct timespec t;

    CHECK(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* A number that differs from one process to the next: for jitter alone. */
static uint64_t os_seed(void)
{
    struct timespec t;

    CHECK(clock_gettime(CLOCK_REALTIME, &t) == 0);
    return (uint64_t)t.tv_nsec << 20 ^ (uint64_t)t.tv_sec ^
           (uint64_t)getpid() << 40;
}

/* The signals that have come, and the pipe that ends os_wait for them.  Even
 * as process 1, where none has a default action, these four do something. */
static volatile sig_atomic_t os_stop, os_resync, os_summary;
static int os_pipe[2] = { -1, -1 };

static void os_signal(int number)
{
    int saved = errno;

    if (number == SIGHUP)
        os_resync = 1;
    else if (number == SIGUSR1)
        os_summary = 1;
    else
        os_stop = 1;
    if (write(os_pipe[1], "", 1) < 0)
        errno = saved;          /* full: os_wait will end all the same */
    errno = saved;
}

static bool os_nonblock(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 &&
           fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
}

static int os_signals(struct err *e)
{
    static const int number[] = { SIGTERM, SIGINT, SIGHUP, SIGUSR1 };
    struct sigaction sa = { .sa_handler = os_signal };
    size_t i;

    if (pipe(os_pipe) != 0 || !os_nonblock(os_pipe[0]) ||
        !os_nonblock(os_pipe[1]))
        return err_set(e, "pipe: %s", strerror(errno));
    sigemptyset(&sa.sa_mask);
    for (i = 0; i < LENGTH(number); i++)
        CHECK(sigaction(number[i], &sa, NULL) == 0);
    sa.sa_handler = SIG_IGN;
    CHECK(sigaction(SIGPIPE, &sa, NULL) == 0);
    return 0;
}

/* Waits until one of p[n] is ready, a signal comes or ms have passed.  poll
 * is given those that are open and no others: it refuses more fields than
 * there may be descriptors (ulimit -n). */
static void os_wait(struct pollfd *p, size_t n, uint64_t ms)
{
    struct pollfd open[2 * CONNS_MAX + 1];
    char drain[64];
    size_t i, m = 0;
    int ready;

    CHECK(n < LENGTH(open));
    for (i = 0; i < n; i++)
        if (p[i].fd >= 0)
            open[m++] = p[i];
    open[m].fd = os_pipe[0];
    open[m].events = POLLIN;
    open[m].revents = 0;
    ready = poll(open, (nfds_t)(m + 1), ms > INT_MAX ? INT_MAX : (int)ms);
    for (i = m = 0; i < n; i++) {
        p[i].revents = 0;
        if (ready > 0 && p[i].fd >= 0)  /* else EINTR, or time is up */
            p[i].revents = open[m++].revents;
    }
    while (ready > 0 && open[m].revents != 0 &&
           read(os_pipe[0], drain, sizeof drain) > 0)
        continue;
}

/* How many descriptors are free, up to max. */
static size_t os_descriptors(size_t max)
{
    long limit = sysconf(_SC_OPEN_MAX);
    size_t n = 0;
    int fd;

    for (fd = 0; n < max && (limit < 0 || fd < limit); fd++)
        n += fcntl(fd, F_GETFD) < 0;
    return n;
}

/* The addresses of host:port, at most max, in the order to be tried.  This
 * may wait for a name server; no other call in this program waits. */
static int os_resolve(struct str host, unsigned port, struct os_addr *a,
                      size_t max, size_t *n, struct err *e)
{
    const struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
                                    .ai_flags = AI_NUMERICSERV };
    char *name = str_dup(host);
    struct buf service = { 0 };
    struct addrinfo *list, *i;
    int failed;

    buf_u64(&service, port);
    buf_byte(&service, '\0');
    failed = getaddrinfo(name, service.p, &hints, &list);
    buf_free(&service);
    free(name);
    *n = 0;
    if (failed)
        return err_set(e, "%.*s: %s", PUT(host), gai_strerror(failed));
    for (i = list; i != NULL && *n < max; i = i->ai_next)
        if (i->ai_addrlen <= sizeof a->sa) {
            memcpy(&a[*n].sa, i->ai_addr, i->ai_addrlen);
            a[(*n)++].n = i->ai_addrlen;
        }
    freeaddrinfo(list);
    return *n > 0 ? 0 : err_set(e, "%.*s: no address", PUT(host));
}

static int os_unix(struct str path, struct os_addr *a, struct err *e)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };

    if (path.n == 0 || path.n >= sizeof un.sun_path)
        return err_set(e, "the path of a socket has 1 to %zu bytes",
                       sizeof un.sun_path - 1);
    memcpy(un.sun_path, path.p, path.n);
    memset(a, 0, sizeof *a);
    memcpy(&a->sa, &un, sizeof un);
    a->n = sizeof un;
    return 0;
}

/* Starts to connect.  *fd is the new socket, or -1; IO_WAIT says that
 * os_connected tells the outcome once the socket is writable. */
static enum io os_connect(const struct os_addr *a, int *fd, int *error)
{
    int on = 1;

    *fd = socket(a->sa.ss_family, SOCK_STREAM, 0);
    if (*fd < 0 || !os_nonblock(*fd)) {
        *error = errno;
        return IO_FAILED;
    }
    if (a->sa.ss_family != AF_UNIX) {
        /* Both are only good manners: a failure changes nothing. */
        (void)setsockopt(*fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        (void)setsockopt(*fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
#ifdef TCP_KEEPIDLE
        on = 30;                /* seconds: a dead peer is known in 60 */
        (void)setsockopt(*fd, IPPROTO_TCP, TCP_KEEPIDLE, &on, sizeof on);
        on = 10;
        (void)setsockopt(*fd, IPPROTO_TCP, TCP_KEEPINTVL, &on, sizeof on);
        on = 3;
        (void)setsockopt(*fd, IPPROTO_TCP, TCP_KEEPCNT, &on, sizeof on);
#endif
    }
    if (connect(*fd, (const struct sockaddr *)(const void *)&a->sa, a->n) == 0)
        return IO_OK;
    *error = errno;
    /* A full backlog of a unix socket answers EAGAIN: nothing was begun. */
    return errno == EINPROGRESS ? IO_WAIT : IO_FAILED;
}

static enum io os_connected(int fd, int *error)
{
    socklen_t n = sizeof *error;

    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, error, &n) != 0)
        *error = errno;
    return *error == 0 ? IO_OK : IO_FAILED;
}

static void os_close(int fd)
{
    if (fd >= 0)
        (void)close(fd);
}

/* Reads what is there, at most *n bytes, and sets *n to what was read. */
static enum io os_read_into(int fd, void *p, size_t *n, int *error)
{
    ssize_t got = read(fd, p, *n < READ_MAX ? *n : READ_MAX);

    *error = got < 0 ? errno : 0;
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? IO_WAIT : IO_FAILED;
    *n = (size_t)got;
    return got == 0 ? IO_END : IO_OK;
}

/* Reads what is there, at most READ_MAX bytes, to the end of b. */
static enum io os_read(int fd, struct buf *b, int *error)
{
    size_t n = READ_MAX;
    enum io io;

    *error = ENOBUFS;
    if (!buf_need(b, n))
        return IO_FAILED;
    io = os_read_into(fd, b->p + b->n, &n, error);
    b->n += io == IO_OK ? n : 0;
    return io;
}

/* Writes all of s, however long that takes.  False: errno says why not. */
static bool os_print(int fd, struct str s)
{
    ssize_t n;

    while (s.n > 0 &&
           ((n = write(fd, s.p, s.n)) > 0 || (n < 0 && errno == EINTR)))
        s = str_from(s, n > 0 ? (size_t)n : 0);
    return s.n == 0;
}

/* Whether people see what is written there. */
static bool os_terminal(int fd)
{
    return isatty(fd) == 1;
}

/* Writes what there is room for off the front of *s. */
static enum io os_write(int fd, struct str *s, int *error)
{
    ssize_t n = write(fd, s->p, s->n < WRITE_MAX ? s->n : WRITE_MAX);

    *error = n < 0 ? errno : 0;
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? IO_WAIT : IO_FAILED;
    *s = str_from(*s, (size_t)n);
    return IO_OK;
}

/* The whole of a small file. */
static int os_file(const char *path, struct buf *b, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), error = errno;
    enum io io = fd < 0 ? IO_FAILED : IO_OK;

    while (io == IO_OK)
        io = os_read(fd, b, &error);
    os_close(fd);
    if (b->bad)
        error = EFBIG;
    return io == IO_END ? 0 : err_set(e, "%s: %s", path, strerror(error));
}

static bool os_exists(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0;
}

/* Why a unix socket cannot be used, and what to do about it. */
static int os_advice(const char *path, int error, struct err *e)
{
    struct stat st;
    bool there = stat(path, &st) == 0;

    if (there && !S_ISSOCK(st.st_mode))
        return err_set(e, "not a socket (Docker makes a directory where what "
                          "is to be mounted does not exist)");
    if (there && (error == EACCES || error == EPERM))
        return err_set(e, "permission denied: run as root, or in the socket's "
                          "group (docker run --group-add %u)",
                       (unsigned)st.st_gid);
    if (error == ENOENT)
        return err_set(e, "no such socket: is its server running?  In a "
                          "container, mount it there (-v)");
    return err_set(e, "%s", strerror(error));
}

/* Adds a path to a list of them, each with a NUL behind it; NULL is none. */
static void os_name(struct buf *list, const char *path)
{
    if (path != NULL) {
        buf_lit(list, path);
        buf_byte(list, '\0');
    }
}

/* Bytes that nobody can guess.  False: there are none to be had. */
static bool os_random(void *p, size_t n)
{
#ifdef __linux__
    return getrandom(p, n, 0) == (ssize_t)n;
#else
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && read(fd, p, n) == (ssize_t)n;

    os_close(fd);
    return ok;
#endif
}

/* The bytes of an address in digits: 4 or 16 of them; 0: it is a name. */
static size_t os_ip(struct str name, unsigned char ip[16])
{
    char *z = str_dup(name);
    size_t n = inet_pton(AF_INET, z, ip) == 1 ? 4
               : inet_pton(AF_INET6, z, ip) == 1 ? 16 : 0;

    free(z);
    return n;
}

/* Hexadecimal without leading zeros. */
static void os_put_group(struct buf *b, unsigned v)
{
    buf_hex(b, v, v > 0xfff ? 4 : v > 0xff ? 3 : v > 0xf ? 2 : 1);
}

/* Adds an address of 4 or 16 bytes in digits, as RFC 5952 has them: of the
 * longest row of zero groups, the first, if it has two or more, is "::"; an
 * IPv4 address in IPv6 is ::ffff:10.0.0.1 (section 5). */
static void os_put_ip(struct buf *b, const unsigned char *ip, size_t n)
{
    static const unsigned char mapped[12] = { [10] = 0xff, [11] = 0xff };
    size_t i, k, row = 0, rows = 1;

    if (n == 16 && memcmp(ip, mapped, sizeof mapped) == 0) {
        buf_lit(b, "::ffff:");
        ip += 12;
        n = 4;
    }
    for (i = 0; n == 4 && i < 4; i++) {
        buf_u64(b, ip[i]);
        buf_lit(b, i < 3 ? "." : "");
    }
    for (i = 0; n == 16 && i < 16; i += 2) {
        for (k = i; k < 16 && ip[k] == 0; k++)
            continue;
        if ((k - i) / 2 > rows) {
            row = i;
            rows = (k - i) / 2;
        }
    }
    for (i = 0; n == 16 && i < 16; i += 2) {
        if (rows > 1 && i == row) {
            buf_lit(b, i == 0 ? "::" : ":");
            i += 2 * rows - 2;
            continue;
        }
        os_put_group(b, (unsigned)ip[i] << 8 | ip[i + 1]);
        buf_lit(b, i < 14 ? ":" : "");
    }
}

/* Adds an address in digits.  False for what is not IPv4 or IPv6. */
static bool os_digits(const struct sockaddr *sa, struct buf *b)
{
    const void *p = sa;
    const struct sockaddr_in *v4 = p;
    const struct sockaddr_in6 *v6 = p;

    if (sa->sa_family == AF_INET)
        os_put_ip(b, (const unsigned char *)&v4->sin_addr, 4);
    else if (sa->sa_family == AF_INET6)
        os_put_ip(b, (const unsigned char *)&v6->sin6_addr, 16);
    return sa->sa_family == AF_INET || sa->sa_family == AF_INET6;
}

/* An address by which nobody else reaches this host. */
static bool os_local(struct str ip)
{
    return str_prefix(ip, STR("127.")) || str_eq(ip, STR("::1")) ||
           str_eq(ip, STR("0.0.0.0")) || str_eq(ip, STR("::")) ||
           str_prefix(ip, STR("::ffff:127."));
}

static bool os_is_interface(struct str name)
{
    bool is = false;
#ifdef HAVE_IFADDRS
    char *z = str_dup(name);

    is = name.n > 0 && if_nametoindex(z) != 0;
    free(z);
#else
    (void)name;
#endif
    return is;
}

/* The first address of an interface, IPv4 before IPv6; link-local ones do
 * not count.  False: there is no such interface, or it has none. */
static bool os_interface(struct str name, struct buf *b)
{
    bool found = false;
#ifdef HAVE_IFADDRS
    static const int family[] = { AF_INET, AF_INET6 };
    struct ifaddrs *list, *i;
    size_t f;

    if (name.n == 0 || name.n >= IF_NAMESIZE || getifaddrs(&list) != 0)
        return false;
    for (f = 0; !found && f < LENGTH(family); f++)
        for (i = list; !found && i != NULL; i = i->ifa_next) {
            size_t n = b->n;

            found = i->ifa_addr != NULL &&
                    i->ifa_addr->sa_family == family[f] &&
                    str_eq(str_of(i->ifa_name), name) &&
                    os_digits(i->ifa_addr, b);
            if (found && str_prefix(str_from(buf_str(b), n), STR("fe80:"))) {
                b->n = n;
                found = false;
            }
        }
    freeifaddrs(list);
#else
    (void)name;
    (void)b;
#endif
    return found;
}

/* This machine's name; nothing if it has none. */
static void os_hostname(struct buf *b)
{
    char name[256];

    if (gethostname(name, sizeof name) == 0) {
        name[sizeof name - 1] = '\0';
        buf_lit(b, name);
    }
}

/* What this program gives up for good, so that whoever comes to rule it can
 * do no more with it than it does itself: on Linux and with musl 1.2.3 or
 * later, since what other C libraries call, and read to look up a name, is
 * theirs to change. */
#ifdef __linux__
#include <sys/prctl.h>
#include <sys/syscall.h>

long syscall(long, ...);        /* _XOPEN_SOURCE hides it */

#if !defined __GLIBC__ && defined SYS_landlock_create_ruleset
#if defined __x86_64__ && defined __LP64__
#define OS_ARCH 0xc000003e      /* AUDIT_ARCH_X86_64 */
#elif defined __AARCH64EL__ && defined __LP64__
#define OS_ARCH 0xc00000b7      /* AUDIT_ARCH_AARCH64 */
#elif defined __ARMEL__ && defined __ARM_EABI__
#define OS_ARCH 0x40000028      /* AUDIT_ARCH_ARM */
#endif
#endif
#endif

#ifdef OS_ARCH
#include <sys/ioctl.h>          /* SIOCGIFINDEX */
#include <sys/mman.h>           /* PROT_EXEC */

/* All that is left, and the same in the head of this file. */
static const uint16_t os_calls[] = {
    SYS_bind, SYS_brk, SYS_close, SYS_connect, SYS_exit_group,
    SYS_getdents64, SYS_getrandom, SYS_getsockname, SYS_getsockopt,
    SYS_madvise, SYS_munmap, SYS_read, SYS_recvfrom, SYS_recvmsg,
    SYS_restart_syscall, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sendmsg,
    SYS_sendto, SYS_setsockopt, SYS_uname, SYS_write, SYS_writev,
    /* recvmsg, sendmsg: musl 1.2.4 and later */
#if defined __x86_64__
    SYS_clock_gettime, SYS_poll, SYS_stat,
#elif defined __aarch64__
    SYS_clock_gettime, SYS_ppoll, SYS_newfstatat,
#else
    SYS_clock_gettime32, SYS_clock_gettime64, SYS_poll, SYS_sigreturn,
    SYS_stat64, SYS_statx,
#endif
};

/* And these, if an argument (0 is the first) has this value under a mask. */
static const struct os_rule {
    uint16_t call, argument;
    uint32_t mask, value;
} os_rules[] = {
    { SYS_socket, 0, UINT32_MAX, AF_UNIX },
    { SYS_socket, 0, UINT32_MAX, AF_INET },
    { SYS_socket, 0, UINT32_MAX, AF_INET6 },
    { SYS_mprotect, 2, PROT_EXEC, 0 },
    { SYS_tkill, 0, UINT32_MAX, 0 },    /* the value is our own number */
#if defined __aarch64__
    { SYS_openat, 2, O_WRONLY | O_RDWR | O_CREAT | O_TRUNC, 0 },
#else
    { SYS_open, 1, O_WRONLY | O_RDWR | O_CREAT | O_TRUNC, 0 },
#endif
#if defined __arm__
    { SYS_mmap2, 2, PROT_EXEC, 0 },
    { SYS_fcntl64, 1, ~7u, 0 },         /* below F_SETOWN, which signals */
#else
    { SYS_mmap, 2, PROT_EXEC, 0 },
    { SYS_fcntl, 1, ~7u, 0 },
#endif
    { SYS_socket, 0, UINT32_MAX, AF_NETLINK },  /* the last two: for -ip */
    { SYS_ioctl, 1, UINT32_MAX, SIOCGIFINDEX },
};

/* What stands in linux/filter.h, linux/seccomp.h and linux/landlock.h, where
 * musl-gcc does not look. */
struct os_step {                /* sock_filter */
    uint16_t code;
    uint8_t yes, no;            /* steps to skip */
    uint32_t k;
};

struct os_filter {              /* sock_fprog */
    unsigned short n;
    struct os_step *step;
};

struct os_rights {              /* landlock_ruleset_attr */
    uint64_t files, net, scoped;
};

struct os_below {               /* landlock_path_beneath_attr */
    uint64_t rights;
    int32_t fd;
};

enum {
    OS_LOAD = 0x20,             /* BPF_LD | BPF_W | BPF_ABS */
    OS_AND = 0x54,              /* BPF_ALU | BPF_AND | BPF_K */
    OS_IS = 0x15,               /* BPF_JMP | BPF_JEQ | BPF_K */
    OS_ANSWER = 0x06,           /* BPF_RET | BPF_K */
    OS_ALLOW = 0x7fff0000,      /* SECCOMP_RET_ALLOW */
    OS_REFUSE = 0x00050000 | ENOSYS, /* SECCOMP_RET_ERRNO */
    OS_CALL_AT = 0, OS_ARCH_AT = 4, OS_ARGUMENTS_AT = 16, /* seccomp_data */
    OS_READ_FILE = 1 << 2, OS_READ_DIR = 1 << 3,
    OS_LINKS_MAX = 8            /* as short as anybody's chain of links */
};

/* Refuses every system call but the above: 0, or why that cannot be. */
static int os_seccomp(bool interface)
{
    static const struct os_step
        begin[] = { { OS_LOAD, 0, 0, OS_ARCH_AT },
                    { OS_IS, 1, 0, OS_ARCH },
                    { OS_ANSWER, 0, 0, OS_REFUSE } },
        call[] = { { OS_LOAD, 0, 0, OS_CALL_AT }, { OS_IS, 0, 1, 0 },
                   { OS_ANSWER, 0, 0, OS_ALLOW } },
        rule[] = { { OS_LOAD, 0, 0, OS_CALL_AT }, { OS_IS, 0, 4, 0 },
                   { OS_LOAD, 0, 0, 0 }, { OS_AND, 0, 0, 0 },
                   { OS_IS, 0, 1, 0 }, { OS_ANSWER, 0, 0, OS_ALLOW } };
    struct os_step step[LENGTH(begin) + LENGTH(os_calls) * LENGTH(call) +
                        LENGTH(os_rules) * LENGTH(rule) + 1], *at = step;
    const struct os_rule *r = os_rules;
    const struct os_rule *end = r + LENGTH(os_rules) - (interface ? 0 : 2);
    struct os_filter filter = { 0, step };
    size_t i;

    memcpy(at, begin, sizeof begin);
    at += LENGTH(begin);
    for (i = 0; i < LENGTH(os_calls); i++, at += LENGTH(call)) {
        memcpy(at, call, sizeof call);
        at[1].k = os_calls[i];
    }
    for (; r < end; r++, at += LENGTH(rule)) {
        memcpy(at, rule, sizeof rule);
        at[1].k = r->call;
        at[2].k = OS_ARGUMENTS_AT + 8u * r->argument;
        at[3].k = r->mask;
        at[4].k = r->call == SYS_tkill ? (uint32_t)getpid() : r->value;
    }
    *at++ = begin[2];
    filter.n = (unsigned short)(at - step);
    return syscall(SYS_prctl, (long)PR_SET_SECCOMP, 2L, &filter) == 0
        ? 0 : errno;            /* 2 is SECCOMP_MODE_FILTER */
}

/* Lets be read what is in the directory of this file, so also what replaces
 * it, and where it leads if it is a link; and if that directory is a link
 * itself, what is beside it, so also where it may lead tomorrow.  The file
 * alone, if its directory is the root or the current one.  What ends in a
 * slash is a directory. */
static void os_readable(int ruleset, const char *path)
{
    struct str s = str_of(path);
    char link[PATH_MAX];
    long n = 1, at = AT_FDCWD;
    int i;

    for (i = 0; i < OS_LINKS_MAX && n > 0; i++) {
        struct str dir = str_upto(s, s.n - str_after(s, '/').n);
        char *whole = str_dup(s), *z = str_dup(dir.n > 1 ? dir : s);
        struct os_below below = { OS_READ_FILE, 0 };

        below.rights |= dir.n > 1 ? OS_READ_DIR : 0;
        below.fd = (int)syscall(SYS_openat, at, z, (long)O_PATH);
        if (i == 0 && dir.n > 1 && dir.n < s.n) {
            z[dir.n - 1] = '\0';
            if (syscall(SYS_readlinkat, at, z, link, sizeof link) > 0)
                os_readable(ruleset, z);
        }
        n = syscall(SYS_readlinkat, at, whole, link, sizeof link);
        free(whole);
        free(z);
        os_close((int)at);
        at = below.fd;
        (void)syscall(SYS_landlock_add_rule, (long)ruleset, 1L, &below, 0L);
        s.p = link;
        s.n = (size_t)n;
    }
    os_close((int)at);
}

/* Refuses all that Landlock can, but to read these files (each path with a
 * NUL behind it): 0, or why it cannot. */
static int os_landlock(struct str files)
{
    static const uint16_t rights[] = {  /* of the ABI 1, 2, 3, 4, 5 */
        0x1fff, 0x3fff, 0x7fff, 0x7fff, 0xffff
    };
    struct os_rights all = { 0, 0, 0 };
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0L, 1L);
    int ruleset, error;

    if (abi < 1)
        return errno;
    all.files = rights[abi > 5 ? 4 : abi - 1];
    all.net = abi > 3;                  /* to bind a TCP port */
    all.scoped = abi > 5 ? 3 : 0;       /* abstract sockets, signals */
    ruleset = (int)syscall(SYS_landlock_create_ruleset, &all, sizeof all, 0L);
    if (ruleset < 0)
        return errno;
    while (files.n > 0) {
        os_readable(ruleset, files.p);
        (void)str_cut(&files, '\0');
    }
    error = syscall(SYS_landlock_restrict_self, (long)ruleset, 0L) == 0
        ? 0 : errno;
    os_close(ruleset);
    return error;
}
#endif

/* Keeps secrets in memory: no core, no reading by others of the same user. */
static void os_hide(void)
{
#ifdef __linux__
    static const uint64_t none[2];      /* musl's setrlimit is 2 kB more */

    (void)syscall(SYS_prlimit64, 0L, (long)RLIMIT_CORE, none, NULL);
    (void)syscall(SYS_prctl, (long)PR_SET_DUMPABLE, 0L, 0L, 0L, 0L);
    (void)syscall(SYS_prctl, (long)PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L);
#else
    static const struct rlimit none;

    (void)setrlimit(RLIMIT_CORE, &none);
#endif
}

/* From here on only these files can be read (each path with a NUL behind it),
 * and what their directories hold; and interfaces asked for only if that is
 * said.  -1: not all of that can be had here; what can be is in force. */
static int os_confine(struct str files, bool interface, struct err *e)
{
#ifdef OS_ARCH
    int landlock, seccomp;

    tzset();                    /* reads the time zone for the last time */
    landlock = os_landlock(files);
    seccomp = os_seccomp(interface);
    if (landlock == 0 && seccomp == 0)
        return 0;
    return err_set(e, "Landlock: %s; seccomp: %s",
                   landlock == 0 ? "on" : strerror(landlock),
                   seccomp == 0 ? "on" : strerror(seccomp));
#else
    (void)files;
    (void)interface;
    return err_set(e, "Landlock, seccomp: not in a build for this system "
                      "and C library");
#endif
}

/* ==== 7. TLS =================================== der_ cert_ pem_ tls_ ====
 *
 * BearSSL 0.6 as steps that never wait, and the checks that it leaves out:
 * names that are addresses, extendedKeyUsage, nameConstraints, and all that
 * the certificate of a CA says about that CA.  TLS 1.2 with ECDHE and AES-GCM;
 * no more is linked, since each curve, cipher or hash that no Docker or Consul
 * insists on would be 3 to 8 kB.  No verified name, no connection.
 *
 * Calls: str_ buf_ mem_ err_ os_.
 */

enum {
    CERTS_MAX = 10,             /* in a chain, theirs or ours */
    CERT_MAX = 64 * 1024,       /* bytes; with a thousand names it has 30 kB */
    PEM_MAX = 8 * 1024 * 1024   /* a bundle of all public CAs has 220 kB */
};

/* What we look at in a certificate. */
struct cert_info {
    struct cert_info *next;     /* in the CA file */
    struct str der;             /* the whole, into which the others point */
    size_t signed_n;            /* how much of it is not signature */
    struct str issuer, subject;
    struct str names;           /* subjectAltName; empty: none */
    bool may_sign;              /* keyUsage allows it, or is missing */
    const char *unfit;          /* why it is neither for servers nor for their
                                   CAs; NULL: it may be */
    uint64_t seen;              /* extensions 2.5.29.N, a bit for each N */
};

/* What was read from the files of a configuration. */
struct tls_creds {
    struct arena arena;         /* all that the rest points to */
    struct cert_info *anchors;
    br_x509_certificate chain[CERTS_MAX];       /* our own */
    size_t chain_n;
    br_skey_decoder_context key;
    unsigned char slack[32];    /* 0.6 lets a key overrun key_data by 24 */
};

/* How to speak TLS to one peer.  Its connections point to it. */
struct tls_config {
    bool on;
    bool insecure;              /* CONSUL_HTTP_SSL_VERIFY=false */
    struct str name;            /* what the certificate must be for */
    const char *ca_file;        /* NULL: the system's; tls_load finds it */
    const char *cert_file, *key_file;   /* NULL: none */
    struct tls_creds *creds;    /* of tls_load */
    bool stale;                 /* a handshake failed: tls_reload is due */
    struct err reload_error;    /* of the last tls_reload; empty: none */
};

/* A connection.  The server's certificates are judged when all have come. */
struct tls {
    br_x509_minimal_context minimal;    /* first: BearSSL calls us with it */
    br_x509_class x509;         /* its functions, of which some are ours */
    br_x509_decoder_context decoder;    /* if insecure */
    br_ssl_client_context client;
    const struct tls_config *config;
    struct buf cert[CERTS_MAX]; /* of the server, its own first */
    const br_x509_pkey *key;    /* of that one; NULL: it is refused */
    struct err why;             /* more than BearSSL's error says, or empty */
    bool ca_failed;             /* the CA is to blame, and not the server */
    unsigned char first_bytes[4];       /* of the server, */
    size_t first_n;             /* and how many they are */
    bool ready;                 /* the handshake is done */
    bool dead;                  /* nothing can be sent: read out the alert */
    bool wants_write;           /* a record waits for room to be sent */
    unsigned char in[BR_SSL_BUFSIZE_INPUT];
    unsigned char out[BR_SSL_BUFSIZE_OUTPUT / 4];
};

/* ---- DER (X.690), as far as certificates need it ---- */

/* Takes the next element off *s; *in is its content.  False: there is none,
 * or it is malformed. */
static bool der_next(struct str *s, unsigned *tag, struct str *in)
{
    const unsigned char *p = (const unsigned char *)s->p;
    size_t n, more = 0, i;

    if (s->n < 2 || (p[0] & 31) == 31)  /* a tag of several bytes */
        return false;
    n = p[1];
    if (n > 127) {              /* the length is in that many bytes more */
        more = n & 127;
        if (more < 1 || more > 3 || s->n - 2 < more)
            return false;
        for (n = i = 0; i < more; i++)
            n = n << 8 | p[2 + i];
    }
    if (n > s->n - 2 - more)
        return false;
    *tag = p[0];
    *in = str_upto(str_from(*s, 2 + more), n);
    *s = str_from(*s, 2 + more + n);
    return true;
}

/* The same for an element that must have this tag; else *s stays. */
static bool der_take(struct str *s, unsigned want, struct str *in)
{
    struct str rest = *s;
    unsigned tag;

    if (!der_next(&rest, &tag, in) || tag != want)
        return false;
    *s = rest;
    return true;
}

/* ---- Certificates (RFC 5280 section 4) ---- */

/* Whether one of the names, dNSName [2] or iPAddress [7], is the one wanted.
 * The "*" of "*.example.com" stands for one label (RFC 6125 6.4.3).  Adds all
 * to `text`: a, b, 10.0.0.1. */
static bool cert_is_for(struct str names, struct str want, struct buf *text)
{
    unsigned char bytes[16];
    struct str ip = { (const char *)bytes, os_ip(want, bytes) };
    struct str parent = want, san;
    bool found = false;
    unsigned tag;

    (void)str_cut(&parent, '.');
    while (der_next(&names, &tag, &san)) {
        if (tag == 0x82 || tag == 0x87)
            buf_lit(text, text->n > 0 ? ", " : "");
        if (tag == 0x82) {
            buf_add(text, san);
            found |= ip.n == 0 &&
                     (str_same(san, want) ||
                      (parent.n > 0 && str_prefix(san, STR("*.")) &&
                       str_same(str_from(san, 2), parent)));
        } else if (tag == 0x87) {
            os_put_ip(text, (const unsigned char *)san.p, san.n);
            found |= ip.n > 0 && str_eq(san, ip);
        }
    }
    return found;
}

/* Whether extendedKeyUsage has a server's purpose, or any. */
static bool cert_is_server(struct str purposes)
{
    struct str server = STR("\x2b\x06\x01\x05\x05\x07\x03\x01");
    struct str any = STR("\x55\x1d\x25\x00"), oid;

    while (der_take(&purposes, 6, &oid))
        if (str_eq(oid, server) || str_eq(oid, any))
            return true;
    return false;
}

/* One Extension: SEQUENCE { OID, critical BOOLEAN DEFAULT FALSE, OCTETS }. */
static bool cert_extension(struct cert_info *c, struct str x)
{
    struct str oid, critical, value, in;
    unsigned id = 0, tag;

    if (!der_take(&x, 6, &oid))
        return false;
    (void)der_take(&x, 1, &critical);   /* BearSSL looks at it */
    if (!der_take(&x, 4, &value) || !der_next(&value, &tag, &in))
        return false;
    if (oid.n == 3 && str_prefix(oid, STR("\x55\x1d")))
        id = (unsigned char)oid.p[2];
    if (id < 64 && (c->seen >> id & 1) != 0)    /* 4.2: none comes twice */
        return false;
    c->seen |= id > 0 && id < 64 ? (uint64_t)1 << id : 0;
    switch (id) {
    case 15:                            /* keyUsage, after a count of bits */
        c->may_sign = in.n > 1 && (in.p[1] & 0x80) != 0;
        break;
    case 17:                            /* subjectAltName */
        c->names = in;
        break;
    case 30:
        c->unfit = "has nameConstraints, which are not supported";
        break;
    case 37:
        if (!cert_is_server(in))
            c->unfit = "is not for servers (extendedKeyUsage)";
    }
    return true;
}

/* Reads a certificate (4.1).  False: it is malformed. */
static bool cert_parse(struct str der, struct cert_info *c)
{
    struct str cert, tbs, part, list;
    unsigned tag;

    memset(c, 0, sizeof *c);
    c->der = der;
    c->names = STR("");
    c->may_sign = true;
    if (!der_take(&der, 0x30, &cert) || der.n > 0 ||
        !der_take(&cert, 0x30, &tbs))
        return false;
    c->signed_n = (size_t)(cert.p - c->der.p);
    (void)der_take(&tbs, 0xa0, &part);          /* version */
    if (!der_take(&tbs, 2, &part) ||            /* serialNumber */
        !der_take(&tbs, 0x30, &part) ||         /* signature */
        !der_take(&tbs, 0x30, &c->issuer) ||
        !der_take(&tbs, 0x30, &part) ||         /* validity */
        !der_take(&tbs, 0x30, &c->subject))
        return false;
    do {
        if (tbs.n == 0)
            return true;
        if (!der_next(&tbs, &tag, &part))
            return false;
    } while (tag != 0xa3);                      /* extensions */
    if (!der_take(&part, 0x30, &list))
        return false;
    while (list.n > 0)
        if (!der_take(&list, 0x30, &part) || !cert_extension(c, part))
            return false;
    return true;
}

/* ---- The verdict on the server's certificates ---- */

/* Collects them; BearSSL counts them. */
static void tls_append(const br_x509_class **x, const unsigned char *p,
                       size_t n)
{
    struct tls *t = (void *)x;
    struct str s = { (const char *)p, n };
    size_t i = t->minimal.num_certs;

    if (i < CERTS_MAX) {
        t->cert[i].max = CERT_MAX;
        buf_add(&t->cert[i], s);
    }
}

/* Our own verdict on the n certificates, which are read into c; -1 and why. */
static int tls_inspect(const struct tls *t, size_t n, struct cert_info *c,
                       struct err *e)
{
    struct buf names = { .max = ERR_MAX / 2 };
    struct str want = t->config->name, none = STR("no name (subjectAltName)");
    int result = 0;
    size_t i;

    for (i = 0; i < n; i++) {
        if (!cert_parse(buf_str(&t->cert[i]), &c[i]))
            c[i].unfit = "is malformed";
        if (c[i].unfit != NULL)
            return err_set(e, "%s certificate %s",
                           i == 0 ? "the" : "an intermediate", c[i].unfit);
    }
    if (!c->may_sign)
        return err_set(e, "the certificate may not sign (keyUsage)");
    if (!cert_is_for(c->names, want, &names))
        result = err_set(e, "the certificate is not for %.*s but for %.*s%s",
                         PUT(want), PUT(names.n > 0 ? buf_str(&names) : none),
                         names.bad ? " ..." : "");
    buf_free(&names);
    return result;
}

/* Gives the first n bytes of a certificate to BearSSL, which keeps the first
 * error that it finds in a chain. */
static void tls_feed(struct tls *t, struct str der, size_t n)
{
    const br_x509_class *x = &br_x509_minimal_vtable;

    x->start_cert(&t->minimal.vtable, (uint32_t)der.n);
    x->append(&t->minimal.vtable, (const unsigned char *)der.p, n);
}

/* Tries a CA as the end of the chain so far; 0, or what is wrong with both,
 * and the chain is as before.  BearSSL does not look at the certificates of
 * its trust anchors: so it has none, and the CA's is to it one more that was
 * sent, but without its signature, since it is trusted as it is. */
static unsigned tls_try_ca(struct tls *t, const struct cert_info *ca)
{
    br_x509_minimal_context before = t->minimal;
    int error;

    *t->why.text = '\0';
    if (ca->unfit != NULL) {
        err_set(&t->why, "the CA's certificate %s", ca->unfit);
        return BR_ERR_X509_NOT_TRUSTED;
    }
    tls_feed(t, ca->der, ca->signed_n);
    error = t->minimal.err;
    t->ca_failed = error != 0 && before.err == 0;
    if (error != 0)
        t->minimal = before;
    return (unsigned)error;
}

/* BearSSL's verdict on the n certificates with any CA of the file that has
 * signed one of them.  The server's own may be in that file: then it needs no
 * CA. */
static unsigned tls_verify(struct tls *t, size_t n, const struct cert_info *c)
{
    const struct cert_info *ca;
    unsigned error = BR_ERR_X509_NOT_TRUSTED;
    size_t i;

    br_x509_minimal_vtable.start_chain(&t->minimal.vtable, NULL);
    for (i = 0; error != 0 && i <= n; i++) {
        if (i > 0) {
            tls_feed(t, c[i - 1].der, c[i - 1].der.n);
            br_x509_minimal_vtable.end_cert(&t->minimal.vtable);
        }
        for (ca = t->config->creds->anchors; error != 0 && ca != NULL;
             ca = ca->next)
            if (i == 0 ? str_eq(ca->der, c->der)
                       : str_eq(ca->subject, c[i - 1].issuer))
                error = tls_try_ca(t, ca);
    }
    if (error == 0)
        t->key = &t->minimal.pkey;
    return error;
}

/* Without verification: any certificate with a key will do.  The decoder
 * gets it in one piece: after an error, one more would make 0.6 run on into
 * nowhere. */
static unsigned tls_accept_any_cert(struct tls *t)
{
    br_x509_decoder_init(&t->decoder, NULL, NULL);
    br_x509_decoder_push(&t->decoder, t->cert->p, t->cert->n);
    t->key = br_x509_decoder_get_pkey(&t->decoder);
    return t->key != NULL ? 0 : BR_ERR_X509_UNSUPPORTED;
}

static unsigned tls_end_chain(const br_x509_class **x)
{
    struct tls *t = (void *)x;
    size_t n = t->minimal.num_certs, i;
    struct cert_info c[CERTS_MAX];

    for (i = 0; i < n; i++)
        if (i == CERTS_MAX || t->cert[i].bad)
            return BR_ERR_X509_LIMIT_EXCEEDED;
    if (n == 0)
        return BR_ERR_X509_EMPTY_CHAIN;
    if (t->config->insecure)
        return tls_accept_any_cert(t);
    return tls_inspect(t, n, c, &t->why) != 0 ? BR_ERR_X509_NOT_TRUSTED
                                              : tls_verify(t, n, c);
}

static const br_x509_pkey *tls_get_pkey(const br_x509_class *const *x,
                                        unsigned *usages)
{
    if (usages != NULL)
        *usages = BR_KEYTYPE_SIGN;
    return ((const struct tls *)(const void *)x)->key;
}

/* ---- Files: PEM (RFC 7468) ---- */

/* Takes an object of a PEM file.  1: it is used; 0: it is of another kind;
 * -1: why it cannot be used. */
typedef int pem_use(struct tls_creds *, struct str name, struct str der,
                    const char *path, struct err *);

static void pem_collect(void *to, const void *p, size_t n)
{
    struct str s = { p, n };

    buf_add(to, s);
}

/* Calls use(c, ...) for each object of a file, which must have one at least
 * that is `what`.  BearSSL wants lines that end in LF, the last one too. */
static int pem_each(const char *path, const char *what, pem_use *use,
                    struct tls_creds *c, struct err *e)
{
    struct buf text = { .max = PEM_MAX }, der = { .max = 0 };
    br_pem_decoder_context pem;
    char name[sizeof pem.name] = "";    /* empty: between objects */
    int result = os_file(path, &text, e), event, used = 0;
    size_t i, n = 0;

    for (i = 0; i < text.n; i++)
        if (text.p[i] != '\r')
            text.p[n++] = text.p[i];
    text.n = n;
    buf_byte(&text, '\n');
    br_pem_decoder_init(&pem);
    for (i = 0; result >= 0 && i < text.n;) {
        i += br_pem_decoder_push(&pem, text.p + i, text.n - i);
        event = br_pem_decoder_event(&pem);
        if (event == BR_PEM_BEGIN_OBJ) {
            memcpy(name, br_pem_decoder_name(&pem), sizeof name);
            der.n = 0;
            br_pem_decoder_setdest(&pem, pem_collect, &der);
        } else if (event == BR_PEM_END_OBJ) {
            result = use(c, str_of(name), buf_str(&der), path, e);
            used |= result;
            *name = '\0';
        } else if (event == BR_PEM_ERROR) {
            result = err_set(e, "%s: PEM that is malformed or encrypted",
                             path);
        }
    }
    if (result >= 0 && *name != '\0')
        result = err_set(e, "%s: PEM that ends early", path);
    else if (result >= 0 && used == 0)
        result = err_set(e, "%s: no %s in it", path, what);
    buf_free(&der);
    buf_free(&text);
    return result < 0 ? -1 : 0;
}

/* ---- The files of a configuration ---- */

/* Adds a certificate of the CA file, whatever it is; tls_try_ca judges it if
 * a server needs it. */
static int tls_add_anchor(struct tls_creds *c, struct str name, struct str der,
                          const char *path, struct err *e)
{
    struct cert_info *a;

    if (!str_eq(name, STR("CERTIFICATE")))
        return 0;
    a = mem_get(&c->arena, sizeof *a);
    if (!cert_parse(str_copy(&c->arena, der), a))
        return err_set(e, "%s: malformed certificate", path);
    a->next = c->anchors;
    c->anchors = a;
    return 1;
}

/* Adds a certificate to our own chain. */
static int tls_add_cert(struct tls_creds *c, struct str name, struct str der,
                        const char *path, struct err *e)
{
    if (!str_eq(name, STR("CERTIFICATE")))
        return 0;
    if (c->chain_n == CERTS_MAX)
        return err_set(e, "%s: more than %d certificates", path, CERTS_MAX);
    c->chain[c->chain_n].data =
        memcpy(mem_get(&c->arena, der.n), der.p, der.n);
    c->chain[c->chain_n++].data_len = der.n;
    return 1;
}

/* Takes our private key: PKCS#1, PKCS#8 or SEC1. */
static int tls_add_key(struct tls_creds *c, struct str name, struct str der,
                       const char *path, struct err *e)
{
    int error;

    if (!str_suffix(name, STR("PRIVATE KEY")))
        return 0;               /* EC PARAMETERS, certificates */
    if (br_skey_decoder_key_type(&c->key) != 0)
        return err_set(e, "%s: more than one private key", path);
    br_skey_decoder_init(&c->key);
    br_skey_decoder_push(&c->key, der.p, der.n);
    error = br_skey_decoder_last_error(&c->key);
    if (error == BR_ERR_X509_UNSUPPORTED)
        return err_set(e, "%s: a kind of key that is not supported (RSA and "
                          "EC P-256, P-384, P-521 are)", path);
    return error == 0 ? 1 : err_set(e, "%s: a private key that is malformed "
                                       "or encrypted", path);
}

/* The CAs: of the file given, else of where systems keep them all. */
static int tls_load_ca(struct tls_creds *c, struct tls_config *cfg,
                       struct err *e)
{
    static const char *const bundle[] = {
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem"
    };
    size_t i;

    for (i = 0; cfg->ca_file == NULL && i < LENGTH(bundle); i++)
        if (os_exists(bundle[i]))
            cfg->ca_file = bundle[i];
    if (cfg->ca_file == NULL)
        return err_set(e, "TLS: no CA is given, and this system has no file "
                          "of all: name one in CONSUL_CACERT, or a folder "
                          "with ca.pem in DOCKER_CERT_PATH (in a container, "
                          "mount it with -v)");
    return pem_each(cfg->ca_file, "certificate", tls_add_anchor, c, e);
}

static void tls_free_creds(struct tls_creds *c)
{
    if (c != NULL)
        mem_drop(&c->arena);
    free(c);
}

/* Reads all files.  If they are good they replace those of before, which no
 * connection may use any more. */
static int tls_load(struct tls_config *cfg, struct err *e)
{
    struct tls_creds *c = mem_zero(sizeof *c);

    br_skey_decoder_init(&c->key);
    if ((!cfg->insecure && tls_load_ca(c, cfg, e) != 0) ||
        (cfg->cert_file != NULL &&
         (pem_each(cfg->cert_file, "certificate", tls_add_cert, c, e) != 0 ||
          pem_each(cfg->key_file, "private key", tls_add_key, c, e) != 0))) {
        tls_free_creds(c);
        return -1;
    }
    tls_free_creds(cfg->creds);
    cfg->creds = c;
    return 0;
}

/* Reads them again if a handshake has failed.  On failure those of before
 * stay in force, and the reason is kept for tls_why. */
static int tls_reload(struct tls_config *cfg, struct err *e)
{
    if (!cfg->stale)
        return 0;
    cfg->stale = false;
    *cfg->reload_error.text = '\0';
    if (tls_load(cfg, e) == 0)
        return 0;
    cfg->reload_error = *e;
    return -1;
}

/* ---- The engine ---- */

/* What we offer, the best first; what is not named here is not linked. */
static void tls_profile(struct tls *t)
{
    static const uint16_t suite[] = {
        BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        BR_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    };
    static const br_hash_class *const hash[] = {
        &br_sha256_vtable, &br_sha384_vtable, &br_sha512_vtable
    };
    static const int hash_id[] = { br_sha256_ID, br_sha384_ID, br_sha512_ID };
    br_ssl_engine_context *e = &t->client.eng;
    br_x509_minimal_context *x = &t->minimal;
    size_t i;

    br_ssl_client_zero(&t->client);
    br_ssl_engine_set_versions(e, BR_TLS12, BR_TLS12);
    br_ssl_engine_set_suites(e, suite, LENGTH(suite));
    br_ssl_engine_set_ec(e, &br_ec_prime_i31);
    br_ssl_engine_set_ecdsa(e, br_ecdsa_i31_vrfy_asn1);
    br_ssl_engine_set_rsavrfy(e, br_rsa_i31_pkcs1_vrfy);
    br_ssl_engine_set_prf_sha256(e, br_tls12_sha256_prf);
    br_ssl_engine_set_prf_sha384(e, br_tls12_sha384_prf);
    br_ssl_engine_set_default_aes_gcm(e);
    br_x509_minimal_init(x, &br_sha256_vtable, NULL, 0); /* tls_try_ca */
    br_x509_minimal_set_rsa(x, br_rsa_i31_pkcs1_vrfy);
    br_x509_minimal_set_ecdsa(x, &br_ec_prime_i31, br_ecdsa_i31_vrfy_asn1);
    br_x509_minimal_set_minrsa(x, 256);         /* bytes: 2048 bits */
    for (i = 0; i < LENGTH(hash); i++) {
        br_ssl_engine_set_hash(e, hash_id[i], hash[i]);
        br_x509_minimal_set_hash(x, hash_id[i], hash[i]);
    }
    br_ssl_engine_add_flags(e, BR_OPT_NO_RENEGOTIATION);
    t->x509 = br_x509_minimal_vtable;
    t->x509.append = tls_append;
    t->x509.end_chain = tls_end_chain;
    t->x509.get_pkey = tls_get_pkey;
    x->vtable = &t->x509;
    br_ssl_engine_set_x509(e, &x->vtable);
}

/* Has our certificate at hand for a server that asks for it. */
static void tls_show_cert(struct tls *t, const struct tls_creds *c)
{
    const br_rsa_private_key *rsa = br_skey_decoder_get_rsa(&c->key);
    const br_ec_private_key *ec = br_skey_decoder_get_ec(&c->key);

    if (rsa != NULL)
        br_ssl_client_set_single_rsa(&t->client, c->chain, c->chain_n, rsa,
                                     br_rsa_i31_pkcs1_sign);
    else if (ec != NULL)
        br_ssl_client_set_single_ec(&t->client, c->chain, c->chain_n, ec,
                                    BR_KEYTYPE_SIGN, 0, &br_ec_prime_i31,
                                    br_ecdsa_i31_sign_asn1);
}

/* Begins a connection.  A name that is an address is not sent as SNI (RFC
 * 6066 section 3).  NULL: why, in e. */
static struct tls *tls_open(const struct tls_config *cfg, struct err *e)
{
    unsigned char seed[32], ip[16];
    struct tls *t;
    char *name;

    CHECK(cfg->name.n > 0 && cfg->creds != NULL);
    if (!os_random(seed, sizeof seed)) {
        err_set(e, "TLS: no source of randomness");
        return NULL;
    }
    t = mem_zero(sizeof *t);
    t->config = cfg;
    tls_profile(t);
    tls_show_cert(t, cfg->creds);
    br_ssl_engine_set_buffers_bidi(&t->client.eng, t->in, sizeof t->in, t->out,
                                   sizeof t->out);
    br_ssl_engine_inject_entropy(&t->client.eng, seed, sizeof seed);
    name = os_ip(cfg->name, ip) > 0 ? NULL : str_dup(cfg->name);
    (void)br_ssl_client_reset(&t->client, name, 0);     /* the engine tells */
    free(name);
    return t;
}

static void tls_free(struct tls *t)
{
    size_t i;

    for (i = 0; t != NULL && i < CERTS_MAX; i++)
        buf_free(&t->cert[i]);
    free(t);
}

#define TLS_ALERT(n) BR_ERR_RECV_FATAL_ALERT + (n), "the server refuses: "

/* The errors on which a person can act; of others the number is told. */
static const struct {
    int error;
    const char *text;
} tls_errors[] = {
    { BR_ERR_UNSUPPORTED_VERSION, "the server does not speak TLS 1.2" },
    { BR_ERR_X509_UNSUPPORTED, "a certificate has a key or signature that is "
        "not supported (RSA PKCS#1 and ECDSA P-256, P-384, P-521 with SHA-2 "
        "are)" },
    { BR_ERR_X509_LIMIT_EXCEEDED, "too many certificates (10 can be read) or "
        "too large ones (64 kB, RSA keys of 4096 bits)" },
    { BR_ERR_X509_WEAK_PUBLIC_KEY, "an RSA key is shorter than 2048 bits" },
    { BR_ERR_X509_BAD_SIGNATURE, "a certificate has not been signed by the CA "
        "of that name" },
    { BR_ERR_X509_EXPIRED, "a certificate has expired or is not yet valid" },
    { BR_ERR_X509_DN_MISMATCH, "the server's certificates are out of order" },
    { BR_ERR_X509_NOT_CA, "a certificate is signed by what is no CA, or by "
        "one that allows no further CA (pathlen)" },
    { BR_ERR_X509_FORBIDDEN_KEY_USAGE, "a CA may not sign (keyUsage)" },
    { BR_ERR_X509_CRITICAL_EXTENSION, "an unknown extension is critical" },
    { TLS_ALERT(40) "handshake_failure (it wants a client certificate, or "
        "nothing is in common: TLS 1.2 with ECDHE on P-256, P-384 or P-521 "
        "and AES-GCM is needed)" },
    { TLS_ALERT(42) "bad_certificate (ours is missing or not accepted)" },
    { TLS_ALERT(48) "unknown_ca (of our client certificate)" },
    { TLS_ALERT(51) "decrypt_error (is our key that of our certificate?)" },
    { TLS_ALERT(70) "protocol_version (TLS 1.2 is needed)" },
    { TLS_ALERT(116) "certificate_required (it wants a client certificate)" },
};

/* Why the engine has failed: a sentence, which a person can act on. */
static int tls_why(const struct tls *t, struct err *e)
{
    const char *reload = t->config->reload_error.text;
    int error = br_ssl_engine_last_error(&t->client.eng);
    struct err why = t->why;
    size_t i;

    if (t->first_n == 4 && memcmp(t->first_bytes, "HTTP", 4) == 0)
        err_set(&why, "the server speaks plain HTTP on this port: use its TLS "
                      "port, or consul://");
    else if (t->first_n > 0 && (*t->first_bytes < 20 || *t->first_bytes > 23))
        err_set(&why, "the server does not speak TLS on this port");
    else if (*why.text == '\0' && error == BR_ERR_X509_NOT_TRUSTED)
        err_set(&why, "the server's certificate is not signed by a CA in %s, "
                      "or it does not send its intermediate certificates",
                t->config->ca_file);
    for (i = 0; *why.text == '\0' && i < LENGTH(tls_errors); i++)
        if (tls_errors[i].error == error)
            err_set(&why, t->ca_failed ? "%s (see the CA in %s)" : "%s%s",
                    tls_errors[i].text,
                    t->ca_failed ? t->config->ca_file : "");
    if (*why.text == '\0' && error >= BR_ERR_RECV_FATAL_ALERT)
        err_set(&why, "the server refuses: alert %d",
                error - BR_ERR_RECV_FATAL_ALERT);
    else if (*why.text == '\0')
        err_set(&why, "error %d of BearSSL", error);
    return err_set(e, *reload == '\0' ? "TLS: %s%s" : "TLS: %s; the files "
                      "could not be read again: %s", why.text, reload);
}

/* Moves one piece between the engine and its peers, in the order in which
 * that helps most.  IO_OK: something has moved. */
static enum io tls_move(struct tls *t, int fd, struct str *out, int *error)
{
    br_ssl_engine_context *e = &t->client.eng;
    unsigned state = br_ssl_engine_current_state(e);
    enum io io = IO_WAIT;
    unsigned char *p;
    struct str s;
    size_t n, i;

    if ((state & BR_SSL_SENDAPP) != 0 && out->n > 0) {
        p = br_ssl_engine_sendapp_buf(e, &n);
        n = n < out->n ? n : out->n;
        memcpy(p, out->p, n);
        *out = str_from(*out, n);
        br_ssl_engine_sendapp_ack(e, n);
        br_ssl_engine_flush(e, 0);
        return IO_OK;
    }
    t->wants_write = false;
    if ((state & BR_SSL_SENDREC) != 0 && !t->dead) {
        s.p = (const char *)br_ssl_engine_sendrec_buf(e, &n);
        s.n = n;
        io = os_write(fd, &s, error);
        if (io == IO_OK) {
            br_ssl_engine_sendrec_ack(e, n - s.n);
            return IO_OK;
        }
        t->dead = io == IO_FAILED;
        t->wants_write = io == IO_WAIT;
    }
    if ((state & BR_SSL_RECVREC) != 0) {
        p = br_ssl_engine_recvrec_buf(e, &n);
        io = os_read_into(fd, p, &n, error);
        if (io == IO_OK) {
            for (i = 0; i < n && t->first_n < sizeof t->first_bytes; i++)
                t->first_bytes[t->first_n++] = p[i];
            br_ssl_engine_recvrec_ack(e, n);
        }
    }
    return io;
}

/* Does what the engine and the socket allow: sends what is in *out, adds
 * what has come to `in`.  IO_OK: something has come; IO_WAIT: more has
 * to, or t->wants_write; IO_END: the peer has said goodbye, or merely closed
 * (*error is then EPIPE); IO_FAILED: tls_why tells, unless *error does.
 * After a write that failed it goes on to read: an alert may be there that
 * says why. */
static enum io tls_step(struct tls *t, int fd, struct buf *in,
                        struct str *out, int *error)
{
    br_ssl_engine_context *e = &t->client.eng;
    enum io io = IO_OK;

    *error = 0;
    while (io == IO_OK) {
        unsigned state = br_ssl_engine_current_state(e);
        struct str s;

        /* noted, since neither is set while a record is being sent */
        if ((state & (BR_SSL_SENDAPP | BR_SSL_RECVAPP)) != 0)
            t->ready = true;
        if ((state & BR_SSL_CLOSED) != 0)
            return br_ssl_engine_last_error(e) != 0 ? IO_FAILED : IO_END;
        if ((state & BR_SSL_RECVAPP) != 0) {
            s.p = (const char *)br_ssl_engine_recvapp_buf(e, &s.n);
            buf_add(in, s);
            br_ssl_engine_recvapp_ack(e, s.n);
            if (!in->bad)
                return IO_OK;
            *error = ENOBUFS;           /* with a gap, it is not the same */
            return IO_FAILED;
        }
        io = tls_move(t, fd, out, error);
    }
    if (io == IO_END)
        *error = EPIPE;
    return io;
}

/* Says goodbye, once, if that can be said at once.  0.6 never reaches its
 * closed state with data unread, so nothing waits for it. */
static void tls_close(struct tls *t, int fd)
{
    struct str s;
    int error;

    if (t->dead || !t->ready)
        return;
    br_ssl_engine_close(&t->client.eng);
    s.p = (const char *)br_ssl_engine_sendrec_buf(&t->client.eng, &s.n);
    while (s.n > 0 && os_write(fd, &s, &error) == IO_OK)
        continue;
}

/* ==== 8. HTTP ============================================== http_ ====
 *
 * Bytes in, a message out: no I/O, no allocation, and the same answer however
 * the bytes are split.  RFC 9112 sections 2.2, 4, 5, 6.3 and 7.1, read
 * strictly: lines end in CR LF, and a message with two framings is bad.
 *
 * Calls: str_ buf_ err_.
 */

enum http_found {
    HTTP_MORE,          /* all of it is used up, or more is needed */
    HTTP_HEAD,          /* the status is known */
    HTTP_BODY,          /* *body is a piece of the body */
    HTTP_DONE,          /* the message is complete */
    HTTP_BAD
};

/* A response as far as it has been read. */
struct http {
    enum { IN_HEAD, IN_LENGTH, IN_CHUNK_SIZE, IN_CHUNK, IN_CHUNK_END,
           IN_TRAILER, IN_REST, IN_NOTHING } state;
    unsigned status;
    bool old;           /* HTTP/1.0: it closes unless it says otherwise */
    bool close;         /* no second response comes on this connection */
    bool chunked, sized;
    uint64_t left;      /* of the body or the chunk, in bytes */
    unsigned retry_after; /* seconds, 0 if it does not say */
    size_t looked;      /* bytes in which the end of a line was not found */
};

static void http_start(struct http *h)
{
    memset(h, 0, sizeof *h);
}

/* tchar of RFC 9110 5.6.2. */
static bool http_token_char(char c)
{
    return str_letter(c) || str_digit(c) ||
           str_index(STR("!#$%&'*+-.^_`|~"), c) < 15;
}

/* RFC 9110 5.5. */
static bool http_value_char(char c)
{
    return c == ' ' || c == '\t' || str_visible(c);
}

/* What Connection says (RFC 9112 9.3). */
static void http_connection(struct http *h, struct str list)
{
    while (list.n > 0) {
        struct str word = str_trim(str_cut(&list, ','));

        if (str_same(word, STR("close")))
            h->close = true;
        else if (str_same(word, STR("keep-alive")) && h->old)
            h->close = false;
    }
}

/* One header line: those that this program heeds. */
static int http_field(struct http *h, struct str line, struct err *e)
{
    struct str value = line, name = str_cut(&value, ':');
    uint64_t v;

    if (name.n == line.n || name.n == 0 || !str_all(name, http_token_char))
        return err_set(e, "a header line without a name: %.*s", PUT(line));
    if (!str_all(value, http_value_char))
        return err_set(e, "a control character in header %.*s", PUT(name));
    value = str_trim(value);
    if (str_same(name, STR("Content-Length"))) {
        if (!str_u64(value, UINT64_MAX / 2, &v) || (h->sized && h->left != v))
            return err_set(e, "Content-Length: %.*s", PUT(value));
        h->sized = true;
        h->left = v;
    } else if (str_same(name, STR("Transfer-Encoding"))) {
        if (!str_same(value, STR("chunked")) || h->chunked || h->old)
            return err_set(e, "Transfer-Encoding: %.*s", PUT(value));
        h->chunked = true;
    } else if (str_same(name, STR("Connection"))) {
        http_connection(h, value);
    } else if (str_same(name, STR("Retry-After"))) {
        if (str_u64(value, 3600, &v))   /* a date is not heeded */
            h->retry_after = (unsigned)v;
    }
    return 0;
}

/* Whether the first bytes can still become those of a response. */
static int http_hello(struct str in, struct err *e)
{
    struct str hello = STR("HTTP/1.");

    if (str_prefix(in, str_first(hello, in.n)))
        return 0;
    if (in.n >= 2 && (*in.p == 0x15 || *in.p == 0x16) && in.p[1] == 3)
        return err_set(e, "it answers in TLS, not HTTP");
    return err_set(e, "it does not speak HTTP: \"%.*s\"",
                   PUT(str_first(str_first(in, 16), str_index(in, '\r'))));
}

/* The status line: HTTP/1.x SP 3DIGIT [SP reason]. */
static int http_status(struct http *h, struct str line, struct err *e)
{
    struct str rest = line, version = str_cut(&rest, ' '), code;
    uint64_t v;
    size_t i;

    code = str_cut(&rest, ' ');
    for (i = 0; i < rest.n; i++)
        if ((unsigned char)rest.p[i] < 0x20 && rest.p[i] != '\t')
            return err_set(e, "a control character in its status line");
    if ((!str_eq(version, STR("HTTP/1.1")) &&
         !str_eq(version, STR("HTTP/1.0"))) ||
        code.n != 3 || !str_u64(code, 599, &v) || v < 100)
        return err_set(e, "its status line is \"%.*s\"",
                       PUT(str_first(line, 80)));
    h->status = (unsigned)v;
    h->old = h->close = str_eq(version, STR("HTTP/1.0"));
    return 0;
}

/* Takes a line off *in, without its CR LF.  Needs all of it there. */
static struct str http_line(struct str *in)
{
    struct str line = str_upto(*in, str_find(*in, STR("\r\n")));

    *in = str_from(*in, line.n + 2);
    return line;
}

/* All of a head, up to its empty line. */
static int http_head(struct http *h, struct str head, struct err *e)
{
    if (http_status(h, http_line(&head), e) != 0)
        return -1;
    while (head.n > 0) {
        struct str line = http_line(&head);

        if (line.n > 0 && http_field(h, line, e) != 0)
            return -1;
    }
    if (h->chunked && h->sized)
        return err_set(e, "both Content-Length and Transfer-Encoding");
    if (h->status == 101)
        return err_set(e, "it switches protocols");
    if (h->status < 200)                /* RFC 9110 15.2: the real one comes */
        http_start(h);
    else if (h->status == 204 || h->status == 304)
        h->state = IN_NOTHING;
    else if (h->chunked)
        h->state = IN_CHUNK_SIZE;
    else
        h->state = h->sized ? IN_LENGTH : IN_REST;
    return 0;
}

/* RFC 9112 7.1: hexadecimal digits, then extensions that are not heeded. */
static int http_chunk_size(struct http *h, struct str line, struct err *e)
{
    struct str size = str_upto(line, str_index(line, ';'));

    while (size.n < line.n && size.n > 0 &&
           (size.p[size.n - 1] == ' ' || size.p[size.n - 1] == '\t'))
        size.n--;               /* blanks may stand before the ; alone */
    if (!str_number(size, 16, UINT64_MAX / 2, &h->left))
        return err_set(e, "a chunk's size is \"%.*s\"",
                       PUT(str_first(size, 40)));
    h->state = h->left > 0 ? IN_CHUNK : IN_TRAILER;
    return 0;
}

/* The states in which whole lines are needed. */
static enum http_found http_lines(struct http *h, struct str *in,
                                  struct err *e)
{
    bool head = h->state == IN_HEAD;
    struct str end = head ? STR("\r\n\r\n") : STR("\r\n"), part;
    size_t max = head ? HEAD_MAX : CHUNK_LINE_MAX;
    /* What was looked at before is not looked at again. */
    size_t from = h->looked > end.n ? h->looked - end.n : 0;
    size_t at = from + str_find(str_from(*in, from), end);
    bool whole = at < in->n;
    int bad = 0;

    if (head && http_hello(*in, e) != 0)
        return HTTP_BAD;
    h->looked = whole ? 0 : in->n;
    if (whole ? at + end.n > max : in->n >= max) {
        err_set(e, "a head or chunk line of more than %zu bytes", max);
        return HTTP_BAD;
    }
    if (!whole)
        return HTTP_MORE;
    part = str_upto(*in, at + end.n);
    *in = str_from(*in, part.n);
    if (head) {
        bad = http_head(h, part, e);
        return bad ? HTTP_BAD : h->status ? HTTP_HEAD : HTTP_MORE;
    }
    part = str_upto(part, part.n - 2);
    if (h->state == IN_CHUNK_SIZE)
        bad = http_chunk_size(h, part, e);
    else if (h->state == IN_CHUNK_END && part.n > 0)
        bad = err_set(e, "a chunk that is longer than its size");
    else if (h->state == IN_CHUNK_END)
        h->state = IN_CHUNK_SIZE;
    else if (part.n == 0)               /* the trailer's end */
        h->state = IN_NOTHING;
    return bad ? HTTP_BAD : HTTP_MORE;
}

/* Goes on with *in, takes off what it used, and tells what it found.  Call
 * it until it says HTTP_MORE and *in has not become shorter. */
static enum http_found http_step(struct http *h, struct str *in,
                                 struct str *body, struct err *e)
{
    size_t n;

    if (h->state == IN_NOTHING || (h->state == IN_LENGTH && h->left == 0))
        return HTTP_DONE;
    if (in->n == 0)
        return HTTP_MORE;
    if (h->state != IN_LENGTH && h->state != IN_CHUNK && h->state != IN_REST)
        return http_lines(h, in, e);
    n = h->state != IN_REST && h->left < in->n ? (size_t)h->left : in->n;
    *body = str_upto(*in, n);
    *in = str_from(*in, n);
    if (h->state != IN_REST)
        h->left -= n;
    if (h->state == IN_CHUNK && h->left == 0)
        h->state = IN_CHUNK_END;
    return HTTP_BODY;
}

/* As http_step, until something is found or nothing is left to be found. */
static enum http_found http_next(struct http *h, struct str *in,
                                 struct str *body, struct err *e)
{
    enum http_found found;
    size_t n;

    do {
        n = in->n;
        found = http_step(h, in, body, e);
    } while (found == HTTP_MORE && in->n < n);
    return found;
}

/* Whether the message is complete if the connection ends here. */
static bool http_ends(const struct http *h)
{
    return h->state == IN_REST;
}

/* A whole request.  `headers` are lines that buf_header made; the path is
 * made of buf_url's parts.  Whatever could break out of its place makes b
 * bad. */
static void http_request(struct buf *b, const char *method, struct str path,
                         struct str host, struct str headers, struct str body)
{
    if (!str_all(path, str_visible))
        b->bad = true;
    buf_lit(b, method);
    buf_byte(b, ' ');
    buf_add(b, path);
    buf_lit(b, " HTTP/1.1\r\n");
    buf_header(b, "Host", host);
    buf_add(b, headers);
    if (body.n > 0) {
        buf_lit(b, "Content-Type: application/json\r\n");
        buf_lit(b, "Content-Length: ");
        buf_u64(b, body.n);
        buf_lit(b, "\r\n");
    } else if (!str_eq(str_of(method), STR("GET"))) {
        buf_lit(b, "Content-Length: 0\r\n");
    }
    buf_lit(b, "\r\n");
    buf_add(b, body);
}

/* ==== 9. Connections ======================================= conn_ ====
 *
 * Requests to a peer over a few connections that are kept open, each doing
 * what it can without waiting.  Every state has a deadline, but that of the
 * event stream, which may be silent for ever; after a failure a connection
 * is only closed.
 *
 * Calls: str_ buf_ mem_ list_ err_ os_ url_ tls_ http_.
 */

/* The answer to a request, gone when the function that takes it returns. */
struct answer {
    unsigned status;            /* 0: none came, and err says why */
    struct str body;            /* what the request's reader did not take */
    unsigned retry_after;       /* seconds, 0 if it does not say */
    const struct err *err;      /* NULL with status 0: called off by us */
    bool unreached;             /* with status 0: nobody was there at all */
};

/* A request, of the connections from conn_send on; freed after done(). */
struct request {
    struct link link;           /* in endpoint.waiting or conn.sent */
    struct buf bytes;
    bool stream;                /* its answer has no end: a connection alone */
    bool again;                 /* it has been sent before, in vain */
    void *owner, *context;      /* whose it is: for the two functions */
    /* Takes the body of a 200 as it comes, first of all an empty piece with
     * the head; NULL: the body is collected.  -1: the answer is no good. */
    int (*body)(struct request *, struct str, struct err *);
    void (*done)(struct request *, const struct answer *);
};

struct conn {
    enum { CONN_FREE, CONN_CONNECT, CONN_GREET, CONN_OPEN } state;
    struct endpoint *peer;
    int fd;
    struct tls *tls;            /* NULL: in the clear, or not yet */
    size_t address;             /* which of the peer's is being tried */
    struct link sent;           /* requests in the order of their answers */
    size_t sent_n;
    bool alone;                 /* carries a stream */
    bool last;                  /* is closed after the next answer */
    bool answered;              /* an answer has come over it before */
    bool began;                 /* bytes of the next answer have come */
    uint64_t since;             /* when the next answer became due */
    uint64_t deadline;          /* no answer by then: it has failed */
    struct buf out, in, body;
    size_t out_at;              /* of `out`, sent already */
    struct http http;
};

/* Whom we talk to: the engine, or the registry. */
struct endpoint {
    const char *name;           /* in messages */
    struct str path;            /* of a unix socket, or */
    struct str host;            /* a name or address, and */
    unsigned port;
    struct buf host_header;
    struct buf headers;         /* token, user and password */
    struct tls_config tls;
    size_t slots;               /* connections, at most CONNS_MAX */
    size_t conns_max;           /* of them, without streams */
    size_t depth;               /* requests under way on one of them */
    struct os_addr address[ADDRS_MAX];
    size_t addresses;           /* 0: to be looked up */
    struct link waiting;        /* requests for which no place was found */
    size_t requests;            /* all that have no answer yet */
    bool dropped;               /* the peer closed what we kept open */
    struct conn conn[CONNS_MAX];
};

static void conn_init(struct endpoint *p, const char *name, size_t conns_max,
                      size_t depth)
{
    memset(p, 0, sizeof *p);
    p->name = name;
    p->slots = CONNS_MAX;
    p->conns_max = conns_max;
    p->depth = depth;
    list_init(&p->waiting);
}

/* Makes do with that many connections, of which some are for streams. */
static void conn_limit(struct endpoint *p, size_t slots, size_t streams)
{
    p->slots = slots < p->slots ? slots : p->slots;
    if (p->conns_max > p->slots - streams)
        p->conns_max = p->slots - streams;
}

/* How many requests would be sent off at once. */
static size_t conn_room(const struct endpoint *p)
{
    size_t all = p->conns_max * p->depth;

    return p->requests < all ? all - p->requests : 0;
}

/* A request of the peer p, to be completed by the caller and sent. */
static struct request *conn_request(struct endpoint *p, const char *method,
                                    struct str path, struct str body)
{
    struct request *r = mem_zero(sizeof *r);

    list_init(&r->link);
    http_request(&r->bytes, method, path, buf_str(&p->host_header),
                 buf_str(&p->headers), body);
    return r;
}

/* Sends it off: done(r, answer) will be called, once. */
static void conn_send(struct endpoint *p, struct request *r, void *context,
                      void *owner,
                      void (*done)(struct request *, const struct answer *))
{
    r->context = context;
    r->owner = owner;
    r->done = done;
    p->requests++;
    list_before(&p->waiting, &r->link);
}

/* Hands the answer over and ends the request. */
static void conn_finish(struct endpoint *p, struct request *r,
                        const struct answer *a)
{
    list_take(&r->link);
    p->requests--;
    r->done(r, a);
    buf_free(&r->bytes);
    free(r);
}

static void conn_refuse(struct endpoint *p, struct request *r,
                        const struct err *e, bool unreached)
{
    struct answer none = { .err = e, .unreached = unreached };

    conn_finish(p, r, &none);
}

/* Whether the request has been ended by conn_reset. */
static bool conn_called_off(const struct answer *a)
{
    return a->status == 0 && a->err == NULL;
}

/* The request whose answer is next. */
static struct request *conn_head(const struct conn *c)
{
    return list_empty(&c->sent) ? NULL
                                : LIST_OF(struct request, link, c->sent.next);
}

/* Gives what stands behind `keep` requests back, to be sent first. */
static void conn_give_back(struct conn *c, size_t keep)
{
    while (c->sent_n > keep) {
        list_before(c->peer->waiting.next, c->sent.before);
        c->sent_n--;
    }
}

static void conn_close(struct conn *c)
{
    if (c->tls != NULL) {
        tls_close(c->tls, c->fd);
        tls_free(c->tls);
        c->tls = NULL;
    }
    os_close(c->fd);
    c->fd = -1;
    c->state = CONN_FREE;
    buf_free(&c->out);
    buf_free(&c->in);
    buf_free(&c->body);
}

/* Ends a connection that has failed.  The request whose answer was due gets
 * the error, unless the connection had merely been closed while it was idle
 * and the request crossed that; those behind it are sent anew. */
static void conn_fail(struct conn *c, const struct err *e)
{
    struct request *r = conn_head(c);
    bool unreached = c->state != CONN_OPEN;
    bool crossed = r != NULL && c->answered && !c->began && !r->again &&
                   os_now() < c->deadline;

    conn_give_back(c, crossed ? 0 : 1);
    if (crossed)
        r->again = true;
    c->sent_n = 0;
    conn_close(c);
    if (r != NULL && !crossed)
        conn_refuse(c->peer, r, e, unreached);
}

/* Closes every connection and ends every request, without an error. */
static void conn_reset(struct endpoint *p)
{
    size_t i;

    for (i = 0; i < CONNS_MAX; i++)
        if (p->conn[i].state != CONN_FREE) {
            conn_give_back(&p->conn[i], 0);
            conn_close(&p->conn[i]);
        }
    while (!list_empty(&p->waiting))
        conn_refuse(p, LIST_OF(struct request, link, p->waiting.next), NULL,
                    false);
    p->addresses = 0;
    p->dropped = false;
}

/* A session begins, so no connection is open. */
static void conn_begin(struct endpoint *p)
{
    struct err e;

    (void)tls_reload(&p->tls, &e);      /* if it fails, tls_why tells */
}

/* Gives the connection a request and asks for nothing yet. */
static void conn_add(struct conn *c, struct request *r, uint64_t now)
{
    if (c->sent_n++ == 0) {
        c->since = now;
        c->deadline = now + (c->state == CONN_OPEN ? CALL_MS : CONNECT_MS);
    }
    list_before(&c->sent, &r->link);
    buf_add(&c->out, buf_str(&r->bytes));
}

/* The connection is there: goes on with the handshake, if there is one. */
static void conn_opened(struct conn *c, uint64_t now)
{
    struct err e;

    c->deadline = now + CALL_MS;
    c->state = CONN_OPEN;
    if (!c->peer->tls.on)
        return;
    c->state = CONN_GREET;
    c->tls = tls_open(&c->peer->tls, &e);
    if (c->tls == NULL)
        conn_fail(c, &e);
}

/* Says why the peer cannot be reached. */
static void conn_unreachable(const struct endpoint *p, int error,
                             struct err *e)
{
    if (p->path.n > 0) {
        char *path = str_dup(p->path);

        os_advice(path, error, e);
        free(path);
    } else {
        err_set(e, "%s", strerror(error));
    }
}

/* Starts to connect to the first address, from c->address on, that does not
 * refuse at once. */
static void conn_connect(struct conn *c, int error, uint64_t now)
{
    struct endpoint *p = c->peer;
    struct err e;

    for (; c->address < p->addresses; c->address++) {
        enum io io;

        os_close(c->fd);
        io = os_connect(&p->address[c->address], &c->fd, &error);
        if (io == IO_FAILED)
            continue;
        c->state = CONN_CONNECT;
        c->deadline = now + CONNECT_MS;
        if (io == IO_OK)
            conn_opened(c, now);
        return;
    }
    p->addresses = 0;           /* next time they may be others */
    conn_unreachable(p, error, &e);
    conn_fail(c, &e);
}

/* Looks up where the peer is, if that is not known. */
static int conn_resolve(struct endpoint *p, struct err *e)
{
    if (p->addresses > 0)
        return 0;
    if (p->path.n == 0)
        return os_resolve(p->host, p->port, p->address, ADDRS_MAX,
                          &p->addresses, e);
    if (os_unix(p->path, p->address, e) != 0)
        return -1;
    p->addresses = 1;
    return 0;
}

/* Opens a connection for the request r. */
static void conn_open(struct endpoint *p, struct conn *c, struct request *r,
                      uint64_t now)
{
    struct err e;

    memset(c, 0, sizeof *c);
    c->peer = p;
    c->fd = -1;
    c->state = CONN_CONNECT;
    c->alone = r->stream;
    c->in.max = HEAD_MAX + READ_MAX;
    c->body.max = BODY_MAX;
    list_init(&c->sent);
    http_start(&c->http);
    conn_add(c, r, now);
    if (conn_resolve(p, &e) != 0)
        conn_fail(c, &e);
    else
        conn_connect(c, 0, now);
}

/* Finds a connection for each request that waits: an idle one, else a new
 * one, else the one with the least to do.  When all are taken, the one on
 * which an answer is overdue for longest has to go. */
static void conn_assign(struct endpoint *p, uint64_t now)
{
    while (!list_empty(&p->waiting)) {
        struct request *r = LIST_OF(struct request, link, p->waiting.next);
        struct conn *best = NULL, *unused = NULL, *stuck = NULL;
        size_t i, open = 0;
        struct err e;

        if (r->bytes.bad) {
            err_set(&e, "a request that cannot be sent: too long, or with "
                        "control characters in a header");
            conn_refuse(p, r, &e, false);
            continue;
        }
        for (i = 0; i < p->slots; i++) {
            struct conn *c = &p->conn[i];

            if (c->state == CONN_FREE)
                unused = unused == NULL ? c : unused;
            else if (c->last)
                stuck = stuck == NULL || c->since < stuck->since ? c : stuck;
            else if (!c->alone && ++open > 0 && c->sent_n < p->depth &&
                     (best == NULL || c->sent_n < best->sent_n))
                best = c;
        }
        if (unused != NULL &&
            (r->stream || ((best == NULL || best->sent_n > 0) &&
                           open < p->conns_max)))
            conn_open(p, unused, r, now);
        else if (best != NULL && !r->stream)
            conn_add(best, r, now);
        else if (unused == NULL && stuck != NULL) {
            err_set(&e, "no answer yet, and others wait for a connection");
            conn_fail(stuck, &e);
        } else
            return;
    }
}

/* The answer to the next request is complete. */
static void conn_answer(struct conn *c, uint64_t now)
{
    struct request *r = conn_head(c);
    bool close = c->http.close || c->last || c->alone;
    struct buf body = c->body;
    struct answer a = { .status = c->http.status, .body = buf_str(&body),
                        .retry_after = c->http.retry_after };

    memset(&c->body, 0, sizeof c->body);
    c->body.max = BODY_MAX;
    c->answered = true;
    c->began = false;
    c->since = now;
    c->deadline = now + CALL_MS;
    c->sent_n--;
    http_start(&c->http);
    if (close) {
        list_take(&r->link);
        conn_give_back(c, 0);
        conn_close(c);
    }
    conn_finish(c->peer, r, &a);
    buf_free(&body);
}

/* A piece of the next request's answer. */
static int conn_body(struct conn *c, struct str piece, uint64_t now,
                     struct err *e)
{
    struct request *r = conn_head(c);

    if (c->deadline < now + CALL_MS && now < c->since + ANSWER_MS)
        c->deadline = now + CALL_MS;
    if (r->body != NULL && c->http.status == 200)
        return r->body(r, piece, e);
    buf_add(&c->body, piece);
    return c->body.bad ? err_set(e, "an answer of more than %d bytes",
                                 BODY_MAX) : 0;
}

/* Makes answers of what has come. */
static void conn_parse(struct conn *c, uint64_t now)
{
    struct str in = buf_str(&c->in);
    enum http_found found = HTTP_DONE;
    struct err e;

    while (c->state == CONN_OPEN && found != HTTP_MORE && found != HTTP_BAD) {
        struct str piece = STR("");

        if (conn_head(c) == NULL) {
            err_set(&e, "an answer that nobody asked for");
            found = in.n > 0 ? HTTP_BAD : HTTP_MORE;
            break;
        }
        c->began = c->began || in.n > 0;
        found = http_next(&c->http, &in, &piece, &e);
        if (found == HTTP_DONE)
            conn_answer(c, now);
        else if ((found == HTTP_HEAD || found == HTTP_BODY) &&
                 conn_body(c, piece, now, &e) != 0)
            found = HTTP_BAD;
    }
    if (c->state != CONN_OPEN)
        return;
    buf_skip(&c->in, c->in.n - in.n);
    if (found == HTTP_BAD)
        conn_fail(c, &e);
}

/* The peer has closed the connection, or it has broken.  Not clean: it has
 * not said so in TLS, and somebody may have cut it. */
static void conn_ended(struct conn *c, int error, bool clean, uint64_t now)
{
    struct err e;

    if (error == 0 && clean && conn_head(c) != NULL && http_ends(&c->http)) {
        c->last = true;
        conn_answer(c, now);
        return;
    }
    if (c->answered || conn_head(c) == NULL)
        c->peer->dropped = true;
    if (c->state == CONN_GREET)
        err_set(&e, "TLS: the server closed the connection in the handshake");
    else if (error != 0)
        err_set(&e, "the connection broke: %s", strerror(error));
    else if (c->began)
        err_set(&e, "the connection was closed in the middle of an answer");
    else
        err_set(&e, "the connection was closed without an answer");
    conn_fail(c, &e);
}

/* After a failed write too: there may be an answer that tells why the peer
 * closed.  If there is none, the connection has broken. */
static void conn_read(struct conn *c, int unwritten, uint64_t now)
{
    int error;
    enum io io = os_read(c->fd, &c->in, &error);

    if (io == IO_OK)
        conn_parse(c, now);
    else if (io == IO_END || io == IO_FAILED)
        conn_ended(c, error, true, now);
    else if (unwritten != 0)
        conn_ended(c, unwritten, true, now);
}

/* All but the last `left` bytes of `out` have been sent. */
static void conn_sent(struct conn *c, size_t left)
{
    c->out_at = c->out.n - left;
    if (left == 0)
        c->out.n = c->out_at = 0;
}

/* The same, and writing, through TLS. */
static void conn_secure(struct conn *c, uint64_t now)
{
    struct str rest = str_from(buf_str(&c->out), c->out_at);
    unsigned steps = 16;        /* then it is the others' turn */
    struct err e;
    enum io io;
    int error;

    do {
        io = tls_step(c->tls, c->fd, &c->in, &rest, &error);
        conn_sent(c, rest.n);
        if (c->state == CONN_GREET && c->tls->ready) {
            c->state = CONN_OPEN;
            c->deadline = now + CALL_MS;
        }
        if (io == IO_OK)
            conn_parse(c, now);
    } while (io == IO_OK && c->state == CONN_OPEN && --steps > 0);
    if (c->state == CONN_FREE || io == IO_WAIT || io == IO_OK)
        return;
    c->peer->tls.stale = c->peer->tls.stale || c->state == CONN_GREET;
    if (io == IO_END || error != 0) {
        conn_ended(c, io == IO_END ? 0 : error, error == 0, now);
    } else {
        tls_why(c->tls, &e);
        conn_fail(c, &e);
    }
}

/* Returns the error of a failed write, or 0. */
static int conn_write(struct conn *c)
{
    struct str rest = str_from(buf_str(&c->out), c->out_at);
    enum io io = IO_OK;
    int error = 0;

    while (rest.n > 0 && io == IO_OK)
        io = os_write(c->fd, &rest, &error);
    conn_sent(c, rest.n);
    return io == IO_FAILED ? error : 0;
}

/* Sends what has just been asked: most often there is room for it.  What goes
 * through TLS is left to conn_ready, since it could bring answers, too. */
static void conn_flush(struct endpoint *p)
{
    size_t i;

    for (i = 0; i < CONNS_MAX; i++) {
        struct conn *c = &p->conn[i];

        if (c->state == CONN_OPEN && c->tls == NULL && c->out.n > c->out_at)
            (void)conn_write(c);        /* conn_ready will see it */
    }
}

/* Does what the connection can do now. */
static void conn_handle(struct conn *c, short events, uint64_t now)
{
    int error = 0;

    if (c->state == CONN_CONNECT && events != 0) {
        if (os_connected(c->fd, &error) != IO_OK) {
            c->address++;
            conn_connect(c, error, now);
            return;
        }
        conn_opened(c, now);
    }
    if (c->tls != NULL) {
        conn_secure(c, now);
        return;
    }
    if (c->state == CONN_OPEN && c->out.n > c->out_at)
        error = conn_write(c);
    if (c->state == CONN_OPEN &&
        (error != 0 || (events & (POLLIN | POLLERR | POLLHUP)) != 0))
        conn_read(c, error, now);
}

/* Whether others wait behind the next answer, or would. */
static bool conn_stalls(const struct conn *c)
{
    return c->peer->depth > 1 && !c->alone && !c->last &&
           c->state == CONN_OPEN;
}

/* When conn_overdue is to be called, if nothing else happens. */
static uint64_t conn_due(const struct conn *c)
{
    if (c->state == CONN_FREE || c->sent_n == 0)
        return UINT64_MAX;
    if (conn_stalls(c))
        return c->since + STALL_MS;
    return c->alone && c->state == CONN_OPEN ? UINT64_MAX : c->deadline;
}

/* An answer is overdue, or holds up those behind it, which then go round. */
static void conn_overdue(struct conn *c, uint64_t now)
{
    struct err e;

    if (c->state == CONN_CONNECT) {
        c->address++;
        conn_connect(c, ETIMEDOUT, now);
    } else if (now >= c->deadline) {
        err_set(&e, "%sno answer within %d s",
                c->state == CONN_GREET ? "TLS: " : "", HASTE * CALL_MS / 1000);
        conn_fail(c, &e);
    } else {
        conn_give_back(c, 1);
        c->last = true;
    }
}

/* Looks to what time has brought. */
static void conn_tick(struct endpoint *p, uint64_t now)
{
    size_t i;

    for (i = 0; i < CONNS_MAX; i++)
        if (now >= conn_due(&p->conn[i]))
            conn_overdue(&p->conn[i], now);
}

/* When conn_tick is to be called next, at the latest. */
static uint64_t conn_next(const struct endpoint *p)
{
    uint64_t next = UINT64_MAX;
    size_t i;

    for (i = 0; i < CONNS_MAX; i++)
        if (conn_due(&p->conn[i]) < next)
            next = conn_due(&p->conn[i]);
    return next;
}

/* What the connections wait for, in CONNS_MAX fields. */
static void conn_wants(const struct endpoint *p, struct pollfd *fd)
{
    size_t i;

    for (i = 0; i < CONNS_MAX; i++) {
        const struct conn *c = &p->conn[i];
        bool out = c->state == CONN_CONNECT ||
                   (c->state == CONN_OPEN && c->out.n > c->out_at) ||
                   (c->tls != NULL && c->tls->wants_write);

        fd[i].fd = c->state == CONN_FREE ? -1 : c->fd;  /* -1: skipped */
        fd[i].events = (short)((c->state != CONN_CONNECT ? POLLIN : 0) |
                               (out ? POLLOUT : 0));
        fd[i].revents = 0;
    }
}

/* Does what the connections can do now. */
static void conn_ready(struct endpoint *p, const struct pollfd *fd,
                       uint64_t now)
{
    size_t i;

    for (i = 0; i < CONNS_MAX; i++)
        if (fd[i].revents != 0 && p->conn[i].fd == fd[i].fd)
            conn_handle(&p->conn[i], fd[i].revents, now);
}

/* ==== 10. Docker ========================================= docker_ ====
 *
 * What the engine says, in our own terms: an event, a row of its list, a
 * container as inspect shows it.  Only the fields that are used are looked
 * at; any engine from Docker 1.3 (2014) to 29, and Podman's service.
 *
 * Calls: str_ buf_ mem_ json_.
 */

enum docker_action {
    DOCKER_OTHER,       /* of no concern */
    DOCKER_LOOK,        /* the container may have changed */
    DOCKER_NETWORK,     /* so it may, if it runs: it was (dis)connected */
    DOCKER_DIED,
    DOCKER_GONE
};

struct docker_event {
    enum docker_action action;
    struct str id;      /* of the container, 64 hexadecimal digits */
    unsigned exit_code; /* of DOCKER_DIED; DOCKER_NO_CODE: not told */
};

enum { DOCKER_NO_CODE = 256 };

/* A container's ID in full, as every engine writes it. */
static bool docker_id(struct str s)
{
    return s.n == 64 && str_all(s, str_hexdigit);
}

/* An event: {"Type","Action","Actor":{"ID","Attributes":{}}} since Docker
 * 1.10, {"status","id"} before and beside it until 28.  False: it does not
 * concern a container. */
static bool docker_event(const struct json *j, struct docker_event *ev)
{
    static const struct {
        struct str name;
        enum docker_action action;
    } known[] = {
        { STR_INIT("start"), DOCKER_LOOK }, { STR_INIT("pause"), DOCKER_LOOK },
        { STR_INIT("unpause"), DOCKER_LOOK },
        { STR_INIT("rename"), DOCKER_LOOK },
        { STR_INIT("restore"), DOCKER_LOOK },   /* Podman, of a checkpoint */
        { STR_INIT("update"), DOCKER_LOOK },
        { STR_INIT("die"), DOCKER_DIED }, { STR_INIT("died"), DOCKER_DIED },
        { STR_INIT("destroy"), DOCKER_GONE },
        { STR_INIT("remove"), DOCKER_GONE },
    };
    size_t actor = json_get(j, JSON_ROOT, "Actor"), exit, i;
    size_t attributes = json_get(j, actor, "Attributes");
    size_t type = json_get(j, JSON_ROOT, "Type");
    struct str action = json_get_raw(j, JSON_ROOT, "Action");
    uint64_t code;

    ev->action = DOCKER_OTHER;
    ev->exit_code = DOCKER_NO_CODE;
    ev->id = json_get_raw(j, actor, "ID");
    if (ev->id.n == 0)
        ev->id = json_get_raw(j, JSON_ROOT, "id");
    if (action.n == 0)
        action = json_get_raw(j, JSON_ROOT, "status");
    if (type == 0 || str_eq(json_raw(j, type), STR("container"))) {
        for (i = 0; i < LENGTH(known); i++)
            if (str_eq(action, known[i].name))
                ev->action = known[i].action;
        exit = json_get(j, attributes, "exitCode");
        if (exit == 0)          /* Podman 4 */
            exit = json_get(j, attributes, "containerExitCode");
        if (str_u64(json_raw(j, exit), 255, &code))
            ev->exit_code = (unsigned)code;
    } else if (str_eq(json_raw(j, type), STR("network")) &&
               (str_eq(action, STR("connect")) ||
                str_eq(action, STR("disconnect")))) {
        ev->action = DOCKER_NETWORK;
        if (json_get(j, attributes, "container") != 0)  /* else Podman's */
            ev->id = json_get_raw(j, attributes, "container");
    }
    return ev->action != DOCKER_OTHER && docker_id(ev->id);
}

/* A row of GET /containers/json. */
struct docker_row {
    struct str id;
    struct str name;    /* without its slash */
    uint64_t print;     /* differs when what inspect shows will differ */
    bool ended;         /* it does not run, and did not merely pause */
    unsigned exit_code; /* then: 0 if it has none */
};

/* A fingerprint of all elements, whatever their order: Docker 20.10 lists
 * ports in a random one. */
static uint64_t docker_print_ports(const struct json *j, size_t t)
{
    uint64_t sum = 0;
    size_t i;

    for (i = 0; json_next(j, t, &i);)
        sum += str_hash(1, json_raw(j, i));
    return sum;
}

/* Names may hold aliases of links, as "/other/alias": the name is the one
 * with a single slash.  Status is "Up 3 minutes (Paused)" or "Exited (1) 2
 * hours ago": engines before 1.11 have no State beside it.  False: no ID. */
static bool docker_row(const struct json *j, struct docker_row *row)
{
    size_t names = json_get(j, JSON_ROOT, "Names"), i;
    struct str status = json_get_raw(j, JSON_ROOT, "Status");
    struct str word = str_cut(&status, ' ');
    uint64_t code = 0;

    row->ended = str_eq(word, STR("Exited")) || str_eq(word, STR("Dead")) ||
                 str_eq(word, STR("Created"));
    (void)str_cut(&status, '(');
    (void)str_u64(str_cut(&status, ')'), 255, &code);
    row->exit_code = row->ended ? (unsigned)code : 0;
    row->id = json_get_raw(j, JSON_ROOT, "Id");
    row->name = STR("");
    for (i = 0; json_next(j, names, &i);) {
        struct str name = json_raw(j, i);

        if (str_prefix(name, STR("/")))
            name = str_from(name, 1);
        if (!str_has(name, '/'))
            row->name = name;
    }
    row->print = str_hash(2, row->name);
    row->print = str_hash(row->print, word);
    row->print = str_hash(row->print, json_get_raw(j, JSON_ROOT, "State"));
    row->print = str_hash(row->print,
                          json_get_raw(j, JSON_ROOT, "NetworkSettings"));
    row->print += docker_print_ports(j, json_get(j, JSON_ROOT, "Ports"));
    return docker_id(row->id);
}

enum docker_proto { DOCKER_TCP, DOCKER_UDP, DOCKER_SCTP };

struct docker_port {
    unsigned number;            /* in the container */
    enum docker_proto proto;
    bool listed;                /* NetworkSettings.Ports has an entry for it */
    bool exposed;               /* so has Config.ExposedPorts */
    unsigned host_port;         /* 0: not published */
    struct str host_ip;         /* of the binding; "" is any */
};

struct docker_network {
    struct str name, id;
    struct str ip;              /* IPv4, else IPv6; empty: not attached */
    bool direct;                /* macvlan, ipvlan: set by whoever knows */
    bool asked;                 /* and whether that is being asked */
};

/* A variable of the environment, or a label. */
struct docker_var {
    struct str name, value;
};

/* A container, with all its texts in its own arena. */
struct docker_container {
    struct arena arena;
    struct str id, name, image;
    struct str digest;          /* the image's, in hexadecimal */
    struct str mode;            /* HostConfig.NetworkMode */
    bool runs;                  /* Running and not Restarting */
    unsigned exit_code;
    struct docker_port *port;   /* by number, tcp first */
    size_t ports;
    struct docker_network *network;     /* by name */
    size_t networks;
    struct docker_var *env, *label;     /* in the engine's order */
    size_t envs, labels;
};

/* The value of `name` in the object `part` of an inspect. */
static size_t docker_get(const struct json *j, const char *part,
                         const char *name)
{
    return json_get(j, json_get(j, JSON_ROOT, part), name);
}

static void docker_free(struct docker_container *c)
{
    if (c != NULL) {
        mem_drop(&c->arena);
        free(c);
    }
}

/* "5000/tcp"; engines of old write "5000".  False: neither. */
static bool docker_port_key(struct str s, struct docker_port *p)
{
    struct str number = str_cut(&s, '/');

    memset(p, 0, sizeof *p);
    p->host_ip = STR("");
    if (s.n == 0 || str_same(s, STR("tcp")))
        p->proto = DOCKER_TCP;
    else if (str_same(s, STR("udp")))
        p->proto = DOCKER_UDP;
    else if (str_same(s, STR("sctp")))
        p->proto = DOCKER_SCTP;
    else
        return false;
    return str_port(number, &p->number);
}

/* Of several bindings the first counts, an IPv4 one before an IPv6 one. */
static void docker_bindings(struct docker_container *c, const struct json *j,
                            size_t list, struct docker_port *p)
{
    size_t i;

    for (i = 0; json_next(j, list, &i);) {
        struct str ip = json_get_str(j, i, "HostIp", &c->arena);
        bool better = p->host_port == 0 ||
                      (str_has(p->host_ip, ':') && !str_has(ip, ':'));

        if (better &&
            str_port(json_get_raw(j, i, "HostPort"), &p->host_port))
            p->host_ip = ip;
    }
}

static int docker_port_cmp(const void *a, const void *b)
{
    const struct docker_port *p = a, *q = b;

    if (p->number != q->number)
        return p->number < q->number ? -1 : 1;
    if (p->proto != q->proto)
        return p->proto < q->proto ? -1 : 1;
    return (p->listed < q->listed) - (p->listed > q->listed);
}

/* Adds the ports that are the names of object t. */
static void docker_add_ports(struct docker_container *c, const struct json *j,
                             size_t t, bool listed)
{
    struct docker_port p;
    size_t i;

    for (i = 0; json_next(j, t, &i);)
        if (json_type(j, t) == JSON_OBJECT &&
            docker_port_key(json_raw(j, i), &p)) {
            p.listed = listed;
            p.exposed = !listed;
            if (listed)
                docker_bindings(c, j, i + 1, &p);
            c->port[c->ports++] = p;
        }
}

static size_t docker_count(const struct json *j, size_t t)
{
    size_t i, n = 0;

    for (i = 0; json_next(j, t, &i);)
        n++;
    return n;
}

/* All ports of the container, each once: those of NetworkSettings.Ports,
 * Config.ExposedPorts and, since a container that has exited is in neither,
 * HostConfig.PortBindings. */
static void docker_ports(struct docker_container *c, const struct json *j)
{
    size_t ports = docker_get(j, "NetworkSettings", "Ports");
    size_t exposed = docker_get(j, "Config", "ExposedPorts");
    size_t bound = docker_get(j, "HostConfig", "PortBindings");
    size_t n = docker_count(j, ports) + docker_count(j, exposed) +
               docker_count(j, bound), i, kept = 0;

    c->port = mem_get(&c->arena, n * sizeof *c->port);
    docker_add_ports(c, j, ports, true);
    docker_add_ports(c, j, exposed, false);
    if (!c->runs)
        docker_add_ports(c, j, bound, false);
    qsort(c->port, c->ports, sizeof *c->port, docker_port_cmp);
    for (i = 0; i < c->ports; i++)
        if (kept > 0 && c->port[kept - 1].number == c->port[i].number &&
            c->port[kept - 1].proto == c->port[i].proto)
            c->port[kept - 1].exposed |= c->port[i].exposed;
        else
            c->port[kept++] = c->port[i];
    c->ports = kept;
}

static int docker_network_cmp(const void *a, const void *b)
{
    const struct docker_network *p = a, *q = b;

    return str_cmp(p->name, q->name);
}

/* NetworkSettings.Networks since Docker 1.9; before, the default bridge's
 * address stands in NetworkSettings itself.  The swarm's ingress network is
 * nobody's address. */
static void docker_networks(struct docker_container *c, const struct json *j)
{
    size_t list = docker_get(j, "NetworkSettings", "Networks"), i;
    size_t size = (docker_count(j, list) + 1) * sizeof *c->network;
    struct docker_network *n = memset(mem_get(&c->arena, size), 0, size);

    c->network = n;
    if (json_type(j, list) != JSON_OBJECT) {
        n->name = STR("bridge");
        n->ip = json_str(j, docker_get(j, "NetworkSettings", "IPAddress"),
                         &c->arena);
        c->networks = 1;
        return;
    }
    for (i = 0; json_next(j, list, &i);) {
        if (str_eq(json_raw(j, i), STR("ingress")))
            continue;
        n = &c->network[c->networks++];
        n->name = json_str(j, i, &c->arena);
        n->id = json_get_str(j, i + 1, "NetworkID", &c->arena);
        n->ip = json_get_str(j, i + 1, "IPAddress", &c->arena);
        if (n->ip.n == 0)
            n->ip = json_get_str(j, i + 1, "GlobalIPv6Address", &c->arena);
    }
    qsort(c->network, c->networks, sizeof *c->network, docker_network_cmp);
}

/* Config.Env: ["K=V", "K"], of which the second is no variable. */
static void docker_env(struct docker_container *c, const struct json *j,
                       size_t list)
{
    size_t i;

    c->env = mem_get(&c->arena, docker_count(j, list) * sizeof *c->env);
    for (i = 0; json_next(j, list, &i);) {
        struct str value = json_str(j, i, &c->arena);
        struct str name = str_cut(&value, '=');

        if (name.p + name.n == value.p)
            continue;           /* no = in it */
        c->env[c->envs].name = name;
        c->env[c->envs++].value = value;
    }
}

/* Config.Labels: {"K": "V"}. */
static void docker_labels(struct docker_container *c, const struct json *j,
                          size_t list)
{
    size_t i;

    if (json_type(j, list) != JSON_OBJECT)
        return;
    c->label = mem_get(&c->arena, docker_count(j, list) * sizeof *c->label);
    for (i = 0; json_next(j, list, &i);) {
        c->label[c->labels].name = json_str(j, i, &c->arena);
        c->label[c->labels++].value = json_str(j, i + 1, &c->arena);
    }
}

/* The answer of GET /containers/{id}/json; the caller frees it.  NULL: it is
 * not one. */
static struct docker_container *docker_inspect(const struct json *j)
{
    struct docker_container *c = mem_zero(sizeof *c);
    size_t net = json_get(j, JSON_ROOT, "NetworkSettings");
    uint64_t code = 0;

    c->id = json_get_str(j, JSON_ROOT, "Id", &c->arena);
    c->name = json_get_str(j, JSON_ROOT, "Name", &c->arena);
    if (str_prefix(c->name, STR("/")))
        c->name = str_from(c->name, 1);
    c->runs = json_true(j, docker_get(j, "State", "Running")) &&
              !json_true(j, docker_get(j, "State", "Restarting"));
    if (!docker_id(c->id) || c->name.n == 0 ||
        json_type(j, docker_get(j, "State", "Running")) != JSON_BOOL ||
        json_get(j, JSON_ROOT, "Config") == 0 ||
        (c->runs && json_type(j, net) != JSON_OBJECT)) {
        docker_free(c);
        return NULL;
    }
    c->image = json_str(j, docker_get(j, "Config", "Image"), &c->arena);
    c->digest = str_after(json_get_str(j, JSON_ROOT, "Image", &c->arena), ':');
    c->mode = json_str(j, docker_get(j, "HostConfig", "NetworkMode"),
                       &c->arena);
    if (json_u64(j, docker_get(j, "State", "ExitCode"), 255, &code))
        c->exit_code = (unsigned)code;
    docker_ports(c, j);
    docker_networks(c, j);
    docker_env(c, j, docker_get(j, "Config", "Env"));
    docker_labels(c, j, docker_get(j, "Config", "Labels"));
    return c;
}

/* On macvlan and ipvlan nothing is published.  Podman lists ports there all
 * the same (seen in 4.3), which is undone: what remains is as Docker has it.
 * The drivers are known. */
static void docker_unlist(struct docker_container *c)
{
    size_t i;

    for (i = 0; i < c->networks; i++)
        if (!c->network[i].direct)
            return;
    for (i = 0; i < c->ports; i++) {
        c->port[i].listed = false;
        c->port[i].host_port = 0;
    }
}

/* Whether a 404 says that there is no such container: all engines name it.
 * One of a proxy, or of a path, does not. */
static bool docker_says_gone(struct str body, struct str id)
{
    return str_find(body, id) < body.n;
}

/* The network whose driver is being asked for. */
static struct str docker_asked_network(const struct docker_container *c)
{
    size_t i;

    for (i = 0; i < c->networks; i++)
        if (c->network[i].asked)
            return c->network[i].id;
    return STR("");
}

/* GET /info: who the engine is.  Docker before 1.5 has no ID: there it is
 * the host.  Podman makes up a new one for each answer (seen in 4.3), and a
 * host may have one for each user: it is the host and where its files are. */
static struct str docker_identity(const struct json *j, bool podman,
                                  struct arena *a)
{
    struct str id = json_get_str(j, JSON_ROOT, "ID", a);
    struct buf b = { 0 };

    if (id.n > 0 && !podman)
        return id;
    buf_add(&b, json_get_str(j, JSON_ROOT, "Name", a));
    if (podman && b.n > 0)
        buf_add(&b, json_get_str(j, JSON_ROOT, "DockerRootDir", a));
    return buf_done(&b, a);
}

/* GET /version or /info: whether this is Podman's service. */
static bool docker_is_podman(const struct json *j)
{
    size_t list = json_get(j, JSON_ROOT, "Components"), i;

    if (json_get(j, JSON_ROOT, "BuildahVersion") != 0)
        return true;
    for (i = 0; json_next(j, list, &i);)
        if (str_prefix(json_get_raw(j, i, "Name"), STR("Podman")))
            return true;
    return false;
}

/* ==== 11. Services ========================================== svc_ ====
 *
 * A container in, its services out: no I/O, no clock, and the same bytes for
 * the same container.  Nearly all of what users rely on is decided here.
 *
 * Calls: str_ buf_ mem_ err_ docker_.
 */

struct svc_attr {
    struct str key, value;
    bool hidden;        /* of use to us alone: the registry refuses it */
};

struct service {
    struct str id, name;
    struct str address; /* empty: the registry knows what to put there */
    unsigned port;
    unsigned exposed;   /* the port in the container */
    bool udp;
    struct str container;       /* its ID, 12 digits */
    struct str *tag;
    size_t tags;
    struct svc_attr *attr;      /* by key */
    size_t attrs;
};

/* The services of one container, in a block of their own. */
struct svc_set {
    struct arena arena;
    struct service *service;
    size_t n;
    bool hollow;        /* made of a container that does not run: of its
                           services only the IDs mean something */
};

/* What is to be said about a container: for each line a digit, the
 * log_level, then the text and a NUL. */
struct svc_notes {
    struct buf text;
};

/* What of the command line, the engine and the registry bears on services. */
struct svc_config {
    bool only_named;            /* -explicit */
    bool internal;
    struct str hostname;        /* the first part of IDs */
    struct str ip;              /* -ip, an interface already replaced */
    struct str ip_label;        /* -useIpFromLabel */
    struct str tags;            /* -tags */
    struct str host;            /* this host's address (contract, 5.6) */
    bool no_host;               /* it has none that others could use */
    size_t attrs_max;           /* how many the registry takes; 0: any */
    /* Why the registry would refuse an attribute, or NULL. */
    const char *(*refuses)(struct str key, struct str value);
};

PRINTF(3, 4)
static void svc_note(struct svc_notes *notes, enum log_level level,
                     const char *format, ...)
{
    va_list args;
    struct err e;

    va_start(args, format);
    err_words(&e, format, args);
    va_end(args);
    buf_byte(&notes->text, (char)('0' + level));
    buf_lit(&notes->text, e.text);
    buf_byte(&notes->text, '\0');
}

static void svc_free(struct svc_set *set)
{
    if (set != NULL) {
        mem_drop(&set->arena);
        free(set);
    }
}

/* One SERVICE_ variable or label. */
struct svc_meta {
    struct str key, value;
    struct str port;    /* the port it speaks of; empty: all */
    size_t order;       /* of two, the later one counts */
};

/* What goes into the services of one container. */
struct svc_job {
    const struct svc_config *cfg;
    const struct docker_container *c;
    const struct docker_container *peer;    /* whose network it shares */
    struct str base;            /* of IDs: hostname:container */
    struct svc_meta *meta;      /* by key, of each key the weakest first */
    size_t metas;
    struct svc_attr *attr;      /* room for as many */
    bool several;               /* ports that others can reach */
    struct arena *a;            /* of the set: the texts */
    struct svc_notes *notes;
};

static int svc_meta_cmp(const void *a, const void *b)
{
    const struct svc_meta *p = a, *q = b;
    int d = str_cmp(p->key, q->key);

    return d != 0 ? d : p->order < q->order ? -1 : 1;
}

static bool svc_all_digits(struct str s)
{
    return s.n > 0 && str_all(s, str_digit);
}

/* SERVICE_8080_NAME=web is key "name" of port "8080", SERVICE_NAME=web the
 * same of all ports; any other variable is none. */
static void svc_add_meta(struct svc_job *job, struct docker_var v)
{
    struct svc_meta *m = &job->meta[job->metas];
    struct str rest, port;
    char *p;
    size_t i;

    if (!str_prefix(v.name, STR("SERVICE_")))
        return;
    rest = str_from(v.name, STR("SERVICE_").n);
    p = mem_get(job->a, rest.n);
    for (i = 0; i < rest.n; i++)
        p[i] = str_lower(rest.p[i]);
    rest.p = p;
    m->key = rest;
    m->value = str_copy(job->a, v.value);
    m->port = STR("");
    m->order = job->metas++;
    port = str_cut(&rest, '_');
    if (svc_all_digits(port) && rest.n > 0) {
        m->port = port;
        m->key = rest;
    }
}

/* A label whose name has an = in it: as the variable that its text makes, for
 * so the original reads it. */
static struct docker_var svc_label_var(struct arena *a, struct docker_var v)
{
    struct buf b = { 0 };

    if (str_has(v.name, '=')) {
        buf_add(&b, v.name);
        buf_byte(&b, '=');
        buf_add(&b, v.value);
        v.value = buf_done(&b, a);
        v.name = str_cut(&v.value, '=');
    }
    return v;
}

/* All metadata of the container: environment before labels, each in its
 * order.  The list is in memory of `list`.  METAS_MAX bounds the work, which
 * is done for each port. */
static void svc_metas(struct svc_job *job, struct arena *list)
{
    const struct docker_container *c = job->c;
    size_t i;

    job->meta = mem_get(list, (c->envs + c->labels) * sizeof *job->meta);
    for (i = 0; i < c->envs && job->metas < METAS_MAX; i++)
        svc_add_meta(job, c->env[i]);
    for (i = 0; i < c->labels && job->metas < METAS_MAX; i++)
        svc_add_meta(job, svc_label_var(job->a, c->label[i]));
    qsort(job->meta, job->metas, sizeof *job->meta, svc_meta_cmp);
}

/* Steps from *i past the metas of one key and returns the one that counts
 * for this port; NULL if none speaks of it. */
static const struct svc_meta *svc_meta_next(const struct svc_job *job,
                                            struct str port, size_t *i)
{
    const struct svc_meta *best = NULL, *m = job->meta;
    struct str key = m[*i].key;

    for (; *i < job->metas && str_eq(m[*i].key, key); ++*i) {
        bool mine = str_eq(m[*i].port, port);

        if (mine || (m[*i].port.n == 0 &&
                     (best == NULL || best->port.n == 0)))
            best = &m[*i];
    }
    return best;
}

static struct str svc_attr(const struct service *s, const char *key)
{
    size_t i;

    for (i = 0; i < s->attrs; i++)
        if (str_eq(s->attr[i].key, str_of(key)))
            return s->attr[i].value;
    return STR("");
}

/* Splits at commas, of which "\," is none; what is empty vanishes. */
static void svc_add_tags(struct arena *a, struct service *s, struct str list)
{
    struct buf tag = { 0 };

    while (list.n > 0) {
        bool escaped = str_prefix(list, STR("\\,")), ends;

        list = str_from(list, escaped ? 1 : 0);
        ends = *list.p == ',' && !escaped;
        if (!ends)
            buf_byte(&tag, *list.p);
        list = str_from(list, 1);
        if ((ends || list.n == 0) && tag.n > 0) {
            s->tag[s->tags++] = str_copy(a, buf_str(&tag));
            tag.n = 0;
        }
    }
    buf_free(&tag);
}

static size_t svc_count_tags(struct str list)
{
    size_t n = 0;

    for (; list.n > 0; n++)
        (void)str_cut(&list, ',');
    return n;
}

/* The tags of the container, of the command line, and of UDP. */
static void svc_tags(struct arena *a, struct service *s, struct str own,
                     struct str forced)
{
    size_t most = svc_count_tags(own) + svc_count_tags(forced) + 1;

    s->tag = mem_get(a, most * sizeof *s->tag);
    svc_add_tags(a, s, own);
    svc_add_tags(a, s, forced);
    if (s->udp)
        s->tag[s->tags++] = STR("udp");
}

/* An image that is named by nothing but its ID, whole or the beginning; six
 * digits are too many to be a name by chance. */
static bool svc_is_image_id(const struct docker_container *c)
{
    struct str s = c->image;

    if (str_prefix(s, STR("sha256:")))
        return true;
    return str_all(s, str_hexdigit) &&
           (s.n == 64 || s.n == 12 ||
            (s.n >= 6 && str_prefix(c->digest, s)));
}

/* The name of a service that nobody has named. */
static struct str svc_default_name(const struct docker_container *c)
{
    struct str s = c->image;
    size_t i;

    if (!svc_is_image_id(c)) {
        s = str_cut(&s, '@');
        while (s.n > 1 && s.p[s.n - 1] == '/')
            s.n--;
        s = str_after(s, '/');
        s = str_upto(s, str_index(s, ':'));
        if (s.n > 0)
            return s;
    }
    for (i = 0; i < c->labels; i++)
        if (str_eq(c->label[i].name, STR("com.docker.compose.service")) &&
            c->label[i].value.n > 0)
            return c->label[i].value;
    return c->name;
}

/* Whether Consul can deregister the ID, which it takes from a path: it
 * answers 301 where //, . or .. is in it, and 400 where a character is that
 * Go calls unprintable, however escaped (seen in 1.8.7). */
static bool svc_id_ok(struct str id)
{
    static const struct {
        uint32_t from, to;
    } unprintable[] = {
        { 0, 0x1f }, { 0x7f, 0xa0 }, { 0xad, 0xad }, { 0x600, 0x605 },
        { 0x61c, 0x61c }, { 0x1680, 0x1680 }, { 0x180e, 0x180e },
        { 0x2000, 0x200f }, { 0x2028, 0x202f }, { 0x205f, 0x206f },
        { 0x3000, 0x3000 }, { 0xe000, 0xf8ff }, { 0xfdd0, 0xfdef },
        { 0xfeff, 0xfeff }, { 0xfff0, 0xfffb }, { 0xfffe, 0xffff },
        { 0xe0000, 0x10ffff },
    };
    struct str rest = id, part;
    size_t i;

    if (id.n == 0 || *id.p == '/' || str_find(id, STR("//")) < id.n)
        return false;
    while (rest.n > 0) {
        uint32_t c = str_rune(&rest);

        for (i = 0; i < LENGTH(unprintable); i++)
            if (c >= unprintable[i].from && c <= unprintable[i].to)
                return false;
    }
    while (id.n > 0) {
        part = str_cut(&id, '/');
        if (str_eq(part, STR(".")) || str_eq(part, STR("..")))
            return false;
    }
    return true;
}

/* <base>:<port>[:udp] */
static struct str svc_port_id(struct arena *a, struct str base,
                              const struct service *s)
{
    struct buf b = { 0 };

    buf_add(&b, base);
    buf_byte(&b, ':');
    buf_u64(&b, s->exposed);
    buf_lit(&b, s->udp ? ":udp" : "");
    return buf_done(&b, a);
}

static bool svc_shares(const struct docker_container *c)
{
    return str_prefix(c->mode, STR("container:"));
}

/* The container's own address: on the network that NetworkMode names, else
 * on the first by name.  With `direct`, only networks on which it stands on
 * the wire. */
static struct str svc_own_address(const struct docker_container *c,
                                  bool direct)
{
    struct str mode = str_eq(c->mode, STR("default")) ? STR("bridge")
                                                      : c->mode;
    struct str found = STR("");
    size_t i;

    for (i = 0; i < c->networks; i++) {
        const struct docker_network *n = &c->network[i];

        if (n->ip.n == 0 || (direct && !n->direct))
            continue;
        if (str_eq(n->name, mode) || (n->id.n > 0 && str_eq(n->id, mode)))
            return n->ip;
        found = found.n == 0 ? n->ip : found;
    }
    return found;
}

/* How others reach a port. */
struct svc_place {
    enum { SVC_NOT, SVC_PUBLISHED, SVC_DIRECT, SVC_INTERNAL } reach;
    unsigned port;
    struct str ip;      /* of the binding, or the container's own */
};

/* What another container's network makes of the port: X is `peer`, NULL if
 * it does not run. */
static struct svc_place svc_shared_place(const struct docker_container *peer,
                                         const struct docker_port *p)
{
    struct svc_place at = { SVC_NOT, 0, { "", 0 } };
    size_t i;

    if (peer == NULL || !p->exposed)
        return at;
    at.port = p->number;
    if (str_eq(peer->mode, STR("host"))) {
        at.reach = SVC_PUBLISHED;
        return at;
    }
    for (i = 0; i < peer->ports; i++)
        if (peer->port[i].number == p->number &&
            peer->port[i].proto == p->proto && peer->port[i].host_port > 0) {
            at.reach = SVC_PUBLISHED;
            at.port = peer->port[i].host_port;
            at.ip = peer->port[i].host_ip;
            return at;
        }
    at.ip = svc_own_address(peer, false);
    at.reach = at.ip.n > 0 ? SVC_DIRECT : SVC_NOT;
    return at;
}

/* How the port p of c is reached, and whether at all (contract, 4 and 5). */
static struct svc_place svc_place(const struct svc_job *job,
                                  const struct docker_port *p)
{
    struct svc_place at = { SVC_NOT, 0, { "", 0 } };
    const struct docker_container *c = job->c, *peer = job->peer;
    bool host = str_eq(c->mode, STR("host")), shares = svc_shares(c);

    if (shares) {
        at = svc_shared_place(peer, p);
        host = peer != NULL && str_eq(peer->mode, STR("host"));
    } else if (host && !p->listed) {
        at.reach = SVC_PUBLISHED;
        at.port = p->number;
    } else if (p->host_port > 0) {
        at.reach = SVC_PUBLISHED;
        at.port = p->host_port;
        at.ip = p->host_ip;
    } else if (!p->listed) {
        at.ip = svc_own_address(c, true);
        at.reach = at.ip.n > 0 ? SVC_DIRECT : SVC_NOT;
        at.port = p->number;
    }
    if (job->cfg->internal &&
        (at.reach != SVC_NOT || (p->listed && !shares))) {
        at.port = p->number;
        at.ip = host ? STR("") : svc_own_address(shares ? peer : c, false);
        at.reach = host ? SVC_PUBLISHED
                        : at.ip.n > 0 ? SVC_INTERNAL : SVC_NOT;
    }
    return at;
}

/* The label that -useIpFromLabel names: its value without a mask. */
static struct str svc_label_address(const struct svc_config *cfg,
                                    const struct docker_container *c)
{
    struct str s = STR(""), mask;
    size_t i;

    for (i = 0; cfg->ip_label.n > 0 && i < c->labels; i++)
        if (str_eq(c->label[i].name, cfg->ip_label))
            s = c->label[i].value;
    mask = str_after(s, '/');
    return mask.n < s.n ? str_upto(s, s.n - mask.n - 1) : s;
}

/* The address, by the rules of section 5 of the contract, in their order.
 * False: there is none that others could use. */
static bool svc_address(const struct svc_config *cfg,
                        const struct docker_container *c,
                        const struct svc_place *at, struct str *out)
{
    *out = svc_label_address(cfg, c);
    if (out->n > 0)
        return true;
    *out = at->ip;
    if (at->reach == SVC_DIRECT || at->reach == SVC_INTERNAL)
        return true;
    *out = cfg->ip;
    if (out->n > 0)
        return true;
    *out = at->ip;
    if (out->n > 0 && !str_eq(*out, STR("0.0.0.0")) &&
        !str_eq(*out, STR("::")))
        return true;
    *out = cfg->host;
    return !cfg->no_host;
}

/* Everything but the attributes that a service takes from its metadata. */
struct svc_keys {
    struct str name, tags;
    struct str id;              /* .p NULL: none was given */
    bool name_of_port;          /* it was given for this very port */
    bool ignore;
};

/* Why the registry would refuse an attribute, or NULL. */
static const char *svc_refused(const struct svc_job *job,
                               const struct svc_meta *m)
{
    return job->cfg->refuses == NULL ? NULL
                                     : job->cfg->refuses(m->key, m->value);
}

/* Sorts the metadata that counts for port p into keys and attributes. */
static void svc_read_metas(const struct svc_job *job, struct service *s,
                           struct svc_keys *k)
{
    struct buf port = { 0 }, lost = { .max = ERR_MAX / 2 };
    size_t i = 0, sent = 0, most = job->cfg->attrs_max;

    memset(k, 0, sizeof *k);
    buf_u64(&port, s->exposed);
    while (i < job->metas) {
        const struct svc_meta *m = svc_meta_next(job, buf_str(&port), &i);

        if (m == NULL)
            continue;
        if (str_eq(m->key, STR("name"))) {
            k->name = m->value;
            k->name_of_port = m->port.n > 0;
        } else if (str_eq(m->key, STR("id"))) {
            k->id = m->value;
        } else if (str_eq(m->key, STR("tags"))) {
            k->tags = m->value;
        } else if (str_eq(m->key, STR("ignore"))) {
            k->ignore = m->value.n > 0;
        } else {
            bool hidden = svc_refused(job, m) != NULL;

            if (!hidden && most > 0 && sent == most) {
                hidden = true;
                buf_byte(&lost, ' ');
                buf_add(&lost, m->key);
            }
            sent += !hidden;
            /* The checks have a use here, whatever the registry thinks. */
            if (!hidden || str_prefix(m->key, STR("check_"))) {
                job->attr[s->attrs].key = m->key;
                job->attr[s->attrs].value = m->value;
                job->attr[s->attrs++].hidden = hidden;
            }
        }
    }
    s->attr = mem_get(job->a, s->attrs * sizeof *s->attr);
    if (s->attrs > 0)
        memcpy(s->attr, job->attr, s->attrs * sizeof *s->attr);
    if (lost.n > 0 || lost.bad)
        svc_note(job->notes, LOG_WARN,
                 "%.*s port %u: more than %zu attributes, left out:%.*s%s",
                 PUT(s->container), s->exposed, most, PUT(buf_str(&lost)),
                 lost.bad ? " ..." : "");
    buf_free(&port);
    buf_free(&lost);
}

/* Says once for a container which attributes the registry would refuse. */
static void svc_note_refused(const struct svc_job *job)
{
    size_t i;

    for (i = 0; i < job->metas; i++) {
        const struct svc_meta *m = &job->meta[i];
        const char *why = svc_refused(job, m);

        if (why != NULL && !str_eq(m->key, STR("name")) &&
            !str_eq(m->key, STR("id")) && !str_eq(m->key, STR("tags")) &&
            !str_eq(m->key, STR("ignore")))
            svc_note(job->notes, LOG_WARN,
                     "%.12s: attribute \"%.*s\" left out: %s",
                     job->c->id.p, PUT(str_first(m->key, 140)), why);
    }
}

/* "web" and, where a container has several ports, "web-8080"; a name that is
 * given for the very port stays as it is. */
static struct str svc_name(const struct svc_job *job, const struct service *s,
                           const struct svc_keys *k)
{
    struct buf b = { 0 };

    buf_add(&b, k->name.n > 0 ? k->name : svc_default_name(job->c));
    if (job->several && !(k->name_of_port && k->name.n > 0)) {
        buf_byte(&b, '-');
        buf_u64(&b, s->exposed);
    }
    return buf_done(&b, job->a);
}

/* The ID: the container's own, if it can be used, or the usual one. */
static struct str svc_id(const struct svc_job *job, const struct service *s,
                         struct str own)
{
    struct str id;

    if (own.p != NULL && svc_id_ok(own))
        return own;
    id = svc_port_id(job->a, job->base, s);
    if (own.p != NULL)
        svc_note(job->notes, LOG_WARN, "%.12s port %u: SERVICE_ID \"%.*s\" is "
                 "not used, for it could never be deregistered (empty, a "
                 "leading /, //, a . or .. part, an unprintable character): "
                 "it is %.*s", job->c->id.p, s->exposed,
                 PUT(str_first(own, 200)), PUT(id));
    return id;
}

/* Makes the service of one port.  False: there is to be none, and a note
 * tells why. */
static bool svc_make(const struct svc_job *job, const struct docker_port *p,
                     const struct svc_place *at, struct service *s)
{
    const struct docker_container *c = job->c;
    struct svc_keys k;

    memset(s, 0, sizeof *s);
    s->container = str_copy(job->a, str_upto(c->id, 12));
    s->port = at->port;
    s->exposed = p->number;
    s->udp = p->proto == DOCKER_UDP;
    svc_read_metas(job, s, &k);
    if (k.ignore || (job->cfg->only_named && k.name.n == 0)) {
        svc_note(job->notes, LOG_INFO, "ignored: %.12s service on port %u",
                 c->id.p, p->number);
        return false;
    }
    if (!svc_address(job->cfg, c, at, &s->address) && c->runs) {
        svc_note(job->notes, LOG_WARN, "ignored: %.12s port %u: this host's "
                 "address is not known, give it with -ip", c->id.p, p->number);
        return false;
    }
    s->address = str_copy(job->a, s->address);
    s->name = svc_name(job, s, &k);
    s->id = svc_id(job, s, k.id);
    svc_tags(job->a, s, k.tags, job->cfg->tags);
    return true;
}

static int svc_id_cmp(const void *a, const void *b)
{
    const struct service *const *p = a, *const *q = b;
    int d = str_cmp((*p)->id, (*q)->id);

    return d != 0 ? d : (*p > *q) - (*p < *q);
}

/* Sees to it that no two services of a container have the same ID. */
static void svc_unique_ids(struct svc_set *set, struct svc_notes *notes)
{
    struct arena scratch = { NULL };
    struct service **by_id = mem_get(&scratch, set->n * sizeof *by_id);
    bool again = set->n > 1;
    size_t i;

    while (again) {
        again = false;
        for (i = 0; i < set->n; i++)
            by_id[i] = &set->service[i];
        qsort(by_id, set->n, sizeof *by_id, svc_id_cmp);
        for (i = set->n - 1; i > 0; i--)
            if (str_eq(by_id[i]->id, by_id[i - 1]->id)) {
                struct str id = svc_port_id(&set->arena, by_id[i]->id,
                                            by_id[i]);

                svc_note(notes, LOG_WARN, "%.*s: two services with the ID "
                         "%.*s: that of port %u is %.*s",
                         PUT(by_id[i]->container), PUT(by_id[i]->id),
                         by_id[i]->exposed, PUT(id));
                by_id[i]->id = id;
                again = true;
            }
    }
    mem_drop(&scratch);
}

/* The services of a container.  `peer` is the container whose network it
 * shares, if it does and that one runs.  One that does not run gives a hollow
 * set, for -deregister on-success.  The caller frees the set. */
static struct svc_set *svc_derive(const struct svc_config *cfg,
                                  const struct docker_container *c,
                                  const struct docker_container *peer,
                                  struct svc_notes *notes)
{
    struct svc_set *set = mem_zero(sizeof *set);
    struct arena scratch = { NULL };
    struct svc_place *at = mem_get(&scratch, c->ports * sizeof *at);
    struct svc_job job = { .cfg = cfg, .c = c, .peer = peer,
                           .a = &set->arena, .notes = notes };
    struct buf base = { 0 };
    size_t open = 0, i;

    buf_add(&base, cfg->hostname);
    buf_byte(&base, ':');
    buf_add(&base, c->name);
    job.base = buf_done(&base, &scratch);
    svc_metas(&job, &scratch);
    job.attr = mem_get(&scratch, job.metas * sizeof *job.attr);
    set->hollow = !c->runs;
    for (i = 0; i < c->ports; i++) {
        at[i] = svc_place(&job, &c->port[i]);
        if (!c->runs)
            at[i].reach = SVC_PUBLISHED;
        open += at[i].reach != SVC_NOT;
    }
    job.several = open > 1;
    set->service = mem_get(&set->arena, open * sizeof *set->service);
    if (c->ports == 0)
        svc_note(notes, LOG_INFO, "ignored: %.12s no published ports",
                 c->id.p);
    if (job.metas == METAS_MAX)
        svc_note(notes, LOG_WARN,
                 "%.12s: only the first %d SERVICE_ variables count", c->id.p,
                 METAS_MAX);
    svc_note_refused(&job);
    for (i = 0; i < c->ports; i++)
        if (at[i].reach == SVC_NOT)
            svc_note(notes, LOG_INFO,
                     "ignored: %.12s port %u not published on host",
                     c->id.p, c->port[i].number);
        else if (svc_make(&job, &c->port[i], &at[i], &set->service[set->n]))
            set->n++;
    svc_unique_ids(set, notes);
    mem_drop(&scratch);
    return set;
}

/* ==== 12. Registries ============================ reg_ consul_ print_ ====
 *
 * What differs from one registry to the next: rows of a constant table.  A
 * registry keeps no state of services; it words requests and reads answers.
 *
 * Calls: str_ buf_ mem_ err_ log_ json_ url_ os_ http_ conn_ svc_.
 */

struct registry {
    const struct reg_kind *kind;
    struct endpoint peer;
    struct buf query;           /* "ns=...&partition=...", or empty */
    struct buf token, user;     /* secrets: into headers and nowhere else */
    const char *token_file;     /* read again on a 403; NULL: none */
    bool ip_given;              /* this host's address is not needed: -ip */
    struct buf host;            /* this host's address, as it knows it */
    bool no_host;               /* it has none that others could use */
    struct buf leader;          /* the last that was logged */
    bool table;                 /* print: what it writes is for people */
};

/* An entry as the registry lists it. */
struct reg_row {
    struct str id;
    uint64_t view;              /* fingerprint of what it shows of a service */
    bool keeps_marks;           /* false: too old to have Meta */
    bool marked;
    uint64_t owner, content, checks;    /* of the mark */
};

enum reg_verdict {
    REG_DONE,
    REG_REFUSED,        /* and will be again, until something is changed */
    REG_LATER           /* it may work the next time */
};

enum reg_call { REG_PUT, REG_DROP };

struct reg_kind {
    const char *name;
    size_t attrs_max;
    const char *(*attr_refused)(struct str key, struct str value);
    /* Requests to be made before all others, by number, up to NULL; greeted
     * reads the answer: 0 go on, 1 ask again, -1 this will not do. */
    struct request *(*greet)(struct registry *, unsigned step);
    int (*greeted)(struct registry *, unsigned step, const struct answer *,
                   struct err *);
    /* The checks of a service and the whole registration, as texts: equal
     * texts are equal registrations. */
    void (*checks)(struct buf *, const struct service *);
    void (*body)(struct buf *, const struct service *, struct str mark);
    /* NULL: it is done already. */
    struct request *(*put)(struct registry *, const struct service *,
                           struct str mark, bool other_checks);
    struct request *(*drop)(struct registry *, struct str id);
    /* Why a port is no service; NULL: the log will do. */
    void (*ignored)(struct registry *, struct str container, struct str why);
    enum reg_verdict (*verdict)(enum reg_call, const struct answer *);
    /* All entries, as an object of objects; NULL: it cannot tell. */
    struct request *(*list)(struct registry *);
    bool (*row)(const struct json *, struct arena *, struct reg_row *);
};

/* What a registry shows of a service, in a number; each tag is hashed to
 * that in turn. */
static uint64_t reg_view(struct str name, struct str address, uint64_t port)
{
    return str_hash(str_hash(port, name), address);
}

static uint64_t reg_view_of(const struct service *s)
{
    uint64_t view = reg_view(s->name, s->address, s->port);
    size_t i;

    for (i = 0; i < s->tags; i++)
        view = str_hash(view, s->tag[i]);
    return view;
}

/* The mark of an entry, OWNER-CONTENT: whose it is; then 16 digits of all of
 * it and 8 of its checks, so that we know after a restart which changed. */
static void reg_mark(struct buf *b, uint64_t owner, uint64_t content,
                     uint64_t checks)
{
    buf_hex(b, owner, 16);
    buf_byte(b, '-');
    buf_hex(b, content, 16);
    buf_hex(b, checks, 8);
}

static bool reg_read_mark(struct str s, struct reg_row *row)
{
    struct str owner = str_cut(&s, '-');

    row->marked = owner.n == 16 && s.n == 24 &&
                  str_number(owner, 16, UINT64_MAX, &row->owner) &&
                  str_number(str_upto(s, 16), 16, UINT64_MAX, &row->content) &&
                  str_number(str_from(s, 16), 16, UINT64_MAX, &row->checks);
    return row->marked;
}

/* The words of an answer that says no: the registry's own, on one line. */
static void reg_words(const struct answer *a, struct err *e)
{
    struct str words = str_trim(a->body);

    if (a->status == 0)
        err_set(e, "%s", a->err != NULL ? a->err->text : "called off");
    else
        err_set(e, "HTTP %u%s%.*s", a->status, words.n > 0 ? ": " : "",
                PUT(str_first(words, 300)));
}

/* Makes the header lines that carry who we are. */
static void reg_headers(struct registry *r)
{
    struct buf basic = { 0 };
    struct buf *b = &r->peer.headers;

    b->n = 0;
    b->bad = false;
    if (r->token.n > 0)
        buf_header(b, "X-Consul-Token", buf_str(&r->token));
    if (r->user.n > 0) {
        buf_lit(&basic, "Basic ");
        url_base64(&basic, buf_str(&r->user));
        buf_header(b, "Authorization", buf_str(&basic));
        buf_free(&basic);
    }
}

/* Reads the token's file.  1: the token is another one now. */
static int reg_renew(struct registry *r, struct err *e)
{
    struct buf file = { .max = HEAD_MAX };
    struct str token;
    int changed;

    if (r->token_file == NULL)
        return 0;
    if (os_file(r->token_file, &file, e) != 0) {
        buf_free(&file);
        return -1;
    }
    token = str_trim(buf_str(&file));
    changed = !str_eq(token, buf_str(&r->token));
    if (changed) {
        r->token.n = 0;
        buf_add(&r->token, token);
        reg_headers(r);
    }
    buf_free(&file);
    if (r->peer.headers.bad)
        return err_set(e, "%s: not a token", r->token_file);
    return changed;
}

/* Consul's agent API, over HTTP: developer.hashicorp.com/consul/api-docs. */

/* Meta: at most 64 pairs, the key up to 128 of [A-Za-z0-9_-], the value up
 * to 512 bytes, or the whole registration is refused (seen in 1.8.7). */
static const char *consul_attr_refused(struct str key, struct str value)
{
    size_t i;

    if (key.n == 0)
        return "it has no name";
    if (key.n > 128)
        return "its name is longer than 128 bytes";
    for (i = 0; i < key.n; i++)
        if (!str_letter(key.p[i]) && !str_digit(key.p[i]) &&
            key.p[i] != '_' && key.p[i] != '-')
            return "its name has other characters than A-Z a-z 0-9 _ -";
    if (str_prefix(key, STR("consul-")))
        return "Consul keeps names that begin with consul- to itself";
    if (str_eq(key, STR("registrator")))
        return "registrator keeps this name to itself";
    return value.n > 512 ? "its value is longer than 512 bytes" : NULL;
}

/* A request for the path, the ID as its end, with namespace and partition. */
static struct request *consul_request(struct registry *r, const char *method,
                                      const char *path, struct str id,
                                      struct str body)
{
    struct buf b = { 0 };
    struct request *q;

    buf_lit(&b, path);
    buf_url(&b, id);
    if (r->query.n > 0)
        buf_byte(&b, str_index(str_of(path), '?') < strlen(path) ? '&' : '?');
    buf_add(&b, buf_str(&r->query));
    q = conn_request(&r->peer, method, buf_str(&b), body);
    buf_free(&b);
    return q;
}

static struct request *consul_greet(struct registry *r, unsigned step)
{
    if (step == 0)
        return conn_request(&r->peer, "GET", STR("/v1/status/leader"),
                            STR(""));
    if (step == 1)
        return consul_request(r, "GET", "/v1/agent/self", STR(""), STR(""));
    return NULL;
}

/* An agent without a leader takes registrations all the same: it is said,
 * once, and no reason to wait. */
static int consul_leader(struct registry *r, const struct json *j,
                         const struct answer *a, struct err *e)
{
    struct str leader = json_raw(j, JSON_ROOT);

    if (a->status == 500) {
        reg_words(a, e);
        log_at(LOG_WARN, "consul: no leader: %s", e->text);
        return 0;
    }
    if (a->status == 429 || a->status > 500) {
        reg_words(a, e);        /* too busy, or of a proxy before it */
        return -1;
    }
    if (a->status != 200 || json_type(j, JSON_ROOT) != JSON_STRING) {
        struct err why;

        reg_words(a, &why);
        return err_set(e, "this does not look like a Consul agent: "
                          "/v1/status/leader answered %.300s", why.text);
    }
    if (leader.n == 0)
        log_at(LOG_WARN, "consul: no leader yet");
    else if (!str_eq(leader, buf_str(&r->leader)))
        log_at(LOG_INFO, "consul: current leader %.*s", PUT(leader));
    r->leader.n = 0;
    buf_add(&r->leader, leader);
    return 0;
}

/* What the agent advertises is this host's address.  Without the right to
 * ask (agent:read) it is left empty, and Consul puts the node's in. */
static int consul_self(struct registry *r, const struct json *j,
                       const struct answer *a, struct err *e)
{
    struct arena scratch = { NULL };
    int renewed = a->status == 403 ? reg_renew(r, e) : 0;

    if (renewed != 0)
        return renewed;
    if (a->status != 200 && a->status != 403) {
        reg_words(a, e);
        return -1;
    }
    r->host.n = 0;
    if (a->status == 200)
        buf_add(&r->host,
                json_str(j, json_get(j, json_get(j, JSON_ROOT, "Member"),
                                     "Addr"), &scratch));
    else
        log_at(LOG_INFO, "consul: /v1/agent/self is not allowed (agent:read): "
                         "services get the node's address");
    mem_drop(&scratch);
    return 0;
}

static int consul_greeted(struct registry *r, unsigned step,
                          const struct answer *a, struct err *e)
{
    struct json j = { { NULL, 0 }, NULL, 0, 0 };
    int result;

    if (a->status == 200 && json_parse(&j, a->body, e) != 0) {
        struct err why = *e;

        json_free(&j);
        return err_set(e, "this does not look like a Consul agent: %.300s",
                       why.text);
    }
    if (j.n == 0)
        (void)json_parse(&j, STR("null"), e);
    result = step == 0 ? consul_leader(r, &j, a, e) : consul_self(r, &j, a, e);
    json_free(&j);
    return result;
}

/* Adds "name":"value" and a comma before it, but for the first. */
static void consul_member(struct buf *b, struct str name, struct str value)
{
    if (b->n > 0 && b->p[b->n - 1] != '{')
        buf_byte(b, ',');
    buf_json(b, name);
    buf_byte(b, ':');
    buf_json(b, value);
}

/* The same, if there is a value. */
static void consul_option(struct buf *b, const char *name, struct str value)
{
    if (value.n > 0)
        consul_member(b, str_of(name), value);
}

/* Where the address is Consul's to put in, it is that of the agent, which
 * makes the check. */
static struct str consul_address(const struct service *s)
{
    return s->address.n > 0 ? s->address : STR("127.0.0.1");
}

/* The script with $SERVICE_IP and $SERVICE_PORT replaced. */
static void consul_script(struct buf *b, const struct service *s,
                          struct str script)
{
    const struct str ip = STR("$SERVICE_IP"), port = STR("$SERVICE_PORT");
    struct buf text = { 0 };

    while (script.n > 0) {
        size_t used = 1;

        if (str_prefix(script, ip)) {
            buf_add(&text, consul_address(s));
            used = ip.n;
        } else if (str_prefix(script, port)) {
            buf_u64(&text, s->port);
            used = port.n;
        } else {
            buf_byte(&text, *script.p);
        }
        script = str_from(script, used);
    }
    buf_lit(b, "\"Args\":[\"/bin/sh\",\"-c\",");
    buf_json(b, buf_str(&text));
    buf_byte(b, ']');
    buf_free(&text);
}

/* The command is given the container and the port in it. */
static void consul_cmd(struct buf *b, const struct service *s, struct str cmd)
{
    buf_lit(b, "\"Args\":[\"check-cmd\",");
    buf_json(b, s->container);
    buf_lit(b, ",\"");
    buf_u64(b, s->exposed);
    buf_lit(b, "\",");
    buf_json(b, cmd);
    buf_byte(b, ']');
}

/* "HTTP":"http://address:port/path", "TCP":"address:port". */
static void consul_target(struct buf *b, const char *name, const char *scheme,
                          const struct service *s, struct str path)
{
    struct buf url = { 0 };

    buf_lit(&url, scheme);
    url_put(&url, consul_address(s), s->port);
    buf_lit(&url, path.n > 0 && *path.p != '/' ? "/" : "");
    buf_add(&url, path);
    consul_member(b, str_of(name), buf_str(&url));
    buf_free(&url);
}

/* The check of a service as Consul's "Check" object, or nothing: the first
 * of the attributes that is there and not empty.  Only keys that are needed:
 * Consul refuses a registration with one that it does not know. */
static void consul_checks(struct buf *b, const struct service *s)
{
    static const char *const kind[] = { "check_http", "check_https",
        "check_cmd", "check_script", "check_ttl", "check_tcp", "check_grpc" };
    enum { HTTP, HTTPS, CMD, SCRIPT, TTL, TCP, GRPC, NONE } k;
    struct str value = STR(""), interval = svc_attr(s, "check_interval");
    bool tls, skip = svc_attr(s, "check_tls_skip_verify").n > 0;

    for (k = HTTP; k != NONE && value.n == 0; k++)
        value = svc_attr(s, kind[k]);
    if (value.n == 0)
        return;
    k--;
    buf_byte(b, '{');
    if (k == HTTP || k == HTTPS) {
        consul_target(b, "HTTP", k == HTTP ? "http://" : "https://", s, value);
        consul_option(b, "Method", svc_attr(s, k == HTTP
                          ? "check_http_method" : "check_https_method"));
    } else if (k == CMD) {
        consul_cmd(b, s, value);
    } else if (k == SCRIPT) {
        consul_script(b, s, value);
    } else if (k == TTL) {
        consul_member(b, STR("TTL"), value);
    } else {
        consul_target(b, k == TCP ? "TCP" : "GRPC", "", s, STR(""));
    }
    tls = k == GRPC && svc_attr(s, "check_grpc_use_tls").n > 0;
    buf_lit(b, tls ? ",\"GRPCUseTLS\":true" : "");
    buf_lit(b, skip && (tls || k == HTTPS) ? ",\"TLSSkipVerify\":true" : "");
    if (k != TTL)
        consul_member(b, STR("Interval"),
                      interval.n > 0 ? interval : STR("10s"));
    if (k == HTTP || k == HTTPS || k == TCP || k == GRPC)
        consul_option(b, "Timeout", svc_attr(s, "check_timeout"));
    consul_option(b, "Status", svc_attr(s, "check_initial_status"));
    consul_option(b, "DeregisterCriticalServiceAfter",
                  svc_attr(s, "check_deregister_after"));
    buf_byte(b, '}');
}

/* A registration: PUT /v1/agent/service/register.  No mark: what it is the
 * fingerprint of. */
static void consul_body(struct buf *b, const struct service *s,
                        struct str mark)
{
    struct buf check = { 0 };
    size_t i;

    buf_byte(b, '{');
    consul_member(b, STR("ID"), s->id);
    consul_member(b, STR("Name"), s->name);
    consul_option(b, "Address", s->address);
    buf_lit(b, ",\"Port\":");
    buf_u64(b, s->port);
    buf_lit(b, s->tags > 0 ? ",\"Tags\":[" : "");
    for (i = 0; i < s->tags; i++) {
        buf_lit(b, i > 0 ? "," : "");
        buf_json(b, s->tag[i]);
    }
    buf_lit(b, s->tags > 0 ? "],\"Meta\":{" : ",\"Meta\":{");
    for (i = 0; i < s->attrs; i++)
        if (!s->attr[i].hidden)
            consul_member(b, s->attr[i].key, s->attr[i].value);
    consul_option(b, "registrator", mark);
    buf_byte(b, '}');
    consul_checks(&check, s);
    if (check.n > 0) {
        buf_lit(b, ",\"Check\":");
        buf_add(b, buf_str(&check));
    }
    buf_byte(b, '}');
    b->bad = b->bad || check.bad;
    buf_free(&check);
}

/* Without the parameter, checks that the new registration lacks would stay;
 * with it, maintenance mode ends: so it is sent when checks have changed and
 * only then (Consul 1.6.1; older agents ignore it). */
static struct request *consul_put(struct registry *r, const struct service *s,
                                  struct str mark, bool other_checks)
{
    struct buf body = { 0 };
    struct request *q;

    consul_body(&body, s, mark);
    q = consul_request(r, "PUT", other_checks
            ? "/v1/agent/service/register?replace-existing-checks=true"
            : "/v1/agent/service/register", STR(""), buf_str(&body));
    q->bytes.bad = q->bytes.bad || body.bad;
    buf_free(&body);
    return q;
}

static struct request *consul_drop(struct registry *r, struct str id)
{
    return consul_request(r, "PUT", "/v1/agent/service/deregister/", id,
                          STR(""));
}

/* An ID that the agent does not know is deregistered: 200 (1.8.7), 500 (with
 * ACLs) or 404 (1.11).  A registration with a bad check is a 400, or a 500
 * where scripts are not enabled. */
static enum reg_verdict consul_verdict(enum reg_call call,
                                       const struct answer *a)
{
    struct str unknown = STR("Unknown service"), off = STR("Scripts are dis");
    bool words = str_find(a->body, call == REG_DROP ? unknown : off) <
                 a->body.n;

    if (a->status == 200)
        return REG_DONE;
    if (call == REG_DROP && (a->status == 404 || (a->status == 500 && words)))
        return REG_DONE;
    return a->status == 400 || (call == REG_PUT && words) ? REG_REFUSED
                                                           : REG_LATER;
}

static struct request *consul_list(struct registry *r)
{
    return consul_request(r, "GET", "/v1/agent/services", STR(""), STR(""));
}

/* One value of GET /v1/agent/services. */
static bool consul_row(const struct json *j, struct arena *a,
                       struct reg_row *row)
{
    size_t tags = json_get(j, JSON_ROOT, "Tags"), i;
    size_t meta = json_get(j, JSON_ROOT, "Meta");
    uint64_t port = 0;

    memset(row, 0, sizeof *row);
    row->id = json_str(j, json_get(j, JSON_ROOT, "ID"), a);
    (void)json_u64(j, json_get(j, JSON_ROOT, "Port"), 65535, &port);
    row->view = reg_view(json_str(j, json_get(j, JSON_ROOT, "Service"), a),
                         json_str(j, json_get(j, JSON_ROOT, "Address"), a),
                         port);
    for (i = 0; json_next(j, tags, &i);)
        row->view = str_hash(row->view, json_str(j, i, a));
    row->keeps_marks = meta != 0;
    (void)reg_read_mark(json_str(j, json_get(j, meta, "registrator"), a), row);
    return row->id.n > 0;
}

static const struct reg_kind consul_kind = {
    "consul", 63, consul_attr_refused, consul_greet, consul_greeted,
    consul_checks, consul_body, consul_put, consul_drop, NULL, consul_verdict,
    consul_list, consul_row
};

/* No registry: each change is a line on stdout, of JSON, or, for people at a
 * terminal, of a table. */

static void print_line(struct buf *b)
{
    buf_byte(b, '\n');
    if (!os_print(STDOUT_FILENO, buf_str(b)))
        log_at(LOG_ERROR, "stdout: %s", strerror(errno));
    buf_free(b);
}

/* Without a registry to ask, this host's address is that of its name. */
static struct request *print_greet(struct registry *r, unsigned step)
{
    struct os_addr address[ADDRS_MAX];
    struct buf name = { 0 };
    struct err e;
    size_t n, i;

    struct buf title = { 0 };

    (void)step;
    if (r->table) {
        buf_lit(&title, "ACTION     CONTAINER    PORT      SERVICE           "
                        "   ADDRESS               TAGS             CHECK");
        print_line(&title);
    }
    if (r->ip_given)
        return NULL;            /* a look-up may take seconds */
    r->host.n = 0;
    os_hostname(&name);
    if (os_resolve(buf_str(&name), 1, address, ADDRS_MAX, &n, &e) == 0)
        for (i = 0; i < n && r->host.n == 0; i++) {
            (void)os_digits((const struct sockaddr *)(const void *)
                            &address[i].sa, &r->host);
            if (os_local(buf_str(&r->host)))
                r->host.n = 0;
        }
    r->no_host = r->host.n == 0;
    buf_free(&name);
    return NULL;
}

/* Adds the cell to the row, and empties it.  One that is longer than its
 * column pushes the rest. */
static void print_cell(struct buf *row, struct buf *cell, size_t width)
{
    size_t end = row->n + width;

    log_escape(row, buf_str(cell));
    while (row->n < end)
        buf_byte(row, ' ');
    buf_byte(row, ' ');
    buf_free(cell);
}

static void print_words(struct buf *row, const char *action,
                        struct str container)
{
    struct buf cell = { 0 };

    buf_lit(&cell, action);
    print_cell(row, &cell, 10);
    buf_add(&cell, container);
    print_cell(row, &cell, 12);
}

static void print_row(struct buf *row, const struct service *s)
{
    struct buf cell = { 0 };
    size_t i;

    print_words(row, "register", s->container);
    buf_u64(&cell, s->exposed);
    buf_lit(&cell, s->udp ? "/udp" : "/tcp");
    print_cell(row, &cell, 9);
    buf_add(&cell, s->name);
    print_cell(row, &cell, 20);
    url_put(&cell, s->address, s->port);
    print_cell(row, &cell, 21);
    for (i = 0; i < s->tags; i++) {
        buf_lit(&cell, i > 0 ? "," : "");
        buf_add(&cell, s->tag[i]);
    }
    print_cell(row, &cell, 16);
    consul_checks(&cell, s);
    print_cell(row, &cell, 0);
}

static struct request *print_put(struct registry *r, const struct service *s,
                                 struct str mark, bool other_checks)
{
    struct buf b = { 0 };

    (void)mark;
    (void)other_checks;
    if (r->table) {
        print_row(&b, s);
    } else {
        buf_lit(&b, "{\"action\":\"register\",\"container\":");
        buf_json(&b, s->container);
        buf_lit(&b, ",\"service\":");
        consul_body(&b, s, STR(""));
        buf_byte(&b, '}');
    }
    print_line(&b);
    return NULL;
}

static void print_ignored(struct registry *r, struct str container,
                          struct str why)
{
    struct buf b = { 0 };

    if (r->table) {
        print_words(&b, "ignore", container);
        log_escape(&b, why);
    } else {
        buf_lit(&b, "{\"action\":\"ignore\",\"container\":");
        buf_json(&b, container);
        buf_lit(&b, ",\"reason\":");
        buf_json(&b, why);
        buf_byte(&b, '}');
    }
    print_line(&b);
}

static struct request *print_drop(struct registry *r, struct str id)
{
    struct buf b = { 0 };

    if (r->table) {
        buf_lit(&b, "deregister ");
        log_escape(&b, id);
    } else {
        buf_lit(&b, "{\"action\":\"deregister\",\"service\":{\"ID\":");
        buf_json(&b, id);
        buf_lit(&b, "}}");
    }
    print_line(&b);
    return NULL;
}

static const struct reg_kind print_kind = {
    "print", 0, NULL, print_greet, NULL, consul_checks, consul_body,
    print_put, print_drop, print_ignored, NULL, NULL, NULL
};

/* The registries by the scheme of their URI. */
static const struct reg_scheme {
    struct str scheme;
    const struct reg_kind *kind;
    unsigned port;              /* 0: no host in the URI */
    bool tls;
} reg_schemes[] = {
    { STR_INIT("consul"), &consul_kind, 8500, false },
    { STR_INIT("consul-tls"), &consul_kind, 8501, true },
    { STR_INIT("consul-unix"), &consul_kind, 0, false },
    { STR_INIT("print"), &print_kind, 0, false },
};

/* ==== 13. Bridge ========================================= bridge_ ====
 *
 * Wanted against present.  The engine says what is wanted, the registry what
 * is present; where they differ and no request is under way, one is sent.
 * There is no queue of operations, only of things to be looked at.  The only
 * long-lived memory that changes; nothing is removed on a failed answer.
 *
 * Calls: str_ buf_ mem_ list_ err_ log_ json_ os_ conn_ docker_ svc_ reg_.
 */

/* What is kept by its ID and dealt with at once or after a pause: the first
 * member of a container, an entry and a network. */
struct node {
    struct str id;              /* first: what the tree compares; terminated */
    struct link all;            /* in table.all */
    struct link queue;          /* in table.now or .later, or none */
    unsigned tries;             /* failures in a row */
    uint64_t due;               /* not tried before */
    char *why;                  /* of the last failure */
};

struct table {
    void *tree;                 /* of tsearch, by ID */
    struct link all;
    size_t n;                   /* of them */
    struct link now, later;     /* to be dealt with */
    uint64_t due;               /* the earliest of those in `later` */
};

/* A container that the engine has told of. */
struct container {
    struct node it;
    char *name;                 /* as listed; NULL: not yet */
    char *peer;                 /* whose network it shares: an ID; or NULL */
    struct docker_container *facts;     /* while more is asked about it */
    struct svc_set *set;        /* its services; NULL: none */
    bool busy;                  /* a request of it is under way */
    bool again;                 /* something happened since that was sent */
    bool died, gone;            /* that is what happened */
    bool looked;                /* its services are known */
    bool ended;                 /* its services are kept, for it failed */
    bool listed;                /* by the list that is being read */
    unsigned hops;              /* on the way to that other container */
    uint64_t print;             /* of its row in the list */
    uint64_t said;              /* fingerprint of its notes */
};

/* A network whose driver has been asked for. */
struct network {
    struct node it;
    bool direct;                /* its containers can be reached */
};

/* Fingerprints of a registration. */
struct prints {
    uint64_t content, checks, view;
};

enum presence { UNKNOWN, ABSENT, PRESENT };

/* An entry of the registry: one that is wanted, or is there, or both. */
struct reg_entry {
    struct node it;
    const struct service *wanted;       /* NULL: not.  Of by->set */
    struct container *by;       /* who wants it; NULL: nobody */
    enum presence present;
    bool mine;                  /* it may be removed by us: it was wanted, or
                                   no container explains it */
    bool ours;                  /* as listed: it has our mark, or -cleanup
                                   speaks of it */
    bool no_marks;              /* as listed: the agent cannot keep a mark */
    bool any_checks;            /* have.checks is not known */
    bool busy;                  /* a write is under way */
    bool listed;                /* it has been listed since it was written */
    bool refused;               /* by the last answer, for good */
    enum reg_call call;         /* the last write */
    struct prints want, have, sent;     /* sent: by that write */
    unsigned seen, touched;     /* the list that showed it, or that a write of
                                   ours crossed: bridge.lists then */
    unsigned missed;            /* lists that lacked what was written */
    char *after;                /* the ID that has to be there first */
    char who[13];               /* its last container, for the log */
};

/* Talks with a peer begin with a few questions; when they are answered it is
 * LIVE.  They end when it cannot be reached, and begin again after a pause. */
struct session {
    enum {
        AWAY,
        ASKING,                 /* the next question is to be asked, */
        ASKED,                  /* to be answered, */
        GREETED,                /* there is none left */
        LIVE
    } state;
    unsigned step;              /* the question's number */
    unsigned failures;          /* in a row: the pause grows with them */
    uint64_t due;               /* AWAY: the end of the pause */
    uint64_t since;             /* LIVE: from when */
    uint64_t said[4];           /* fingerprints of why it is away, */
    size_t said_n;              /* and how often something was said */
    bool ever;                  /* it has been LIVE before */
};

/* What the command line says. */
struct flags {
    bool cleanup, confine, only_named, internal, once, version, help;
    bool attempts_given;
    struct str deregister, hostname, ip, on_exit, tags, label, log_level;
    int64_t resync, retry_attempts, retry_interval, ttl, ttl_refresh;
    struct str uri;
    bool on_success;            /* -deregister */
    bool leave_nothing;         /* -on-exit deregister */
};

struct bridge {
    struct flags opt;
    bool default_socket;        /* DOCKER_HOST does not name one */
    struct svc_config cfg;
    struct endpoint engine;
    struct registry reg;
    struct session with_engine, with_reg;

    struct table containers;    /* to be looked at */
    struct table entries;       /* to be written */
    struct table networks;
    size_t unlooked;            /* containers whose services are not known */
    size_t sharers;             /* containers in another's network */
    size_t shadowed;            /* services whose ID another container has */

    struct splitter events, list, entry_list;   /* what is being read */
    struct json json;           /* the element at hand */
    struct buf prefix;          /* of the engine's paths: "" or "/v1.41" */
    struct buf api;             /* its version, as "1.41" */
    bool podman;
    bool listing, whole_list;   /* all of its rows could be read */
    bool list_again;            /* something was missed meanwhile */
    bool look_at_all;           /* at the next list, whatever it shows */
    bool looking_at_all;        /* at this one */
    uint64_t list_due;          /* for the list, if no event stream opens:
                                   UINT64_MAX when it has been asked for */
    uint64_t given;             /* of the options that bear on services */
    uint64_t owner;             /* the first half of our marks: that, and the
                                   engine */
    bool ip_is_interface;       /* -ip has named one */
    struct buf interface;       /* its last address */
    uint64_t host_print;        /* of all addresses that services may get */

    bool listing_entries;
    bool readable;              /* an entry of ours has been listed */
    bool blind;                 /* what we write is not listed */
    bool verify;                /* to be found out */
    bool look_for_ghosts;
    bool host_known;            /* cfg.host: the registry has been asked */
    bool leaving;               /* nothing is wanted any more */
    unsigned lists;             /* of entries, counted */
    unsigned drops;             /* connections closed by it, since an entry was
                                   found to be missing */
    uint64_t relist_due;        /* for a list on account of that */
    bool unsure;                /* a write got no answer: it may yet be done,
                                   after one that was sent later */
    bool identified;            /* owner is known */
    uint64_t resync_due;
    uint64_t random;
    uint64_t now;
};

/* Nodes begin with the ID, and so does what is looked for. */
static int bridge_id_cmp(const void *a, const void *b)
{
    const struct str *p = a, *q = b;

    return str_cmp(*p, *q);
}

static void bridge_table(struct table *t)
{
    list_init(&t->all);
    list_init(&t->now);
    list_init(&t->later);
    t->due = UINT64_MAX;
}

static void *bridge_find(const struct table *t, struct str id)
{
    void *found = tfind(&id, &t->tree, bridge_id_cmp);

    return found == NULL ? NULL : *(void **)found;
}

/* What follows `at` in the order of coming (NULL: the first), or NULL. */
static void *bridge_next(const struct table *t, const void *at)
{
    const struct node *it = at;
    struct link *l = it == NULL ? t->all.next : it->all.next;

    return l == &t->all ? NULL : LIST_OF(struct node, all, l);
}

/* A new node of that size, which is zero but for the ID. */
static void *bridge_add(struct table *t, size_t size, struct str id)
{
    struct node *it = mem_zero(size + id.n + 1);

    it->id.p = memcpy((char *)it + size, id.p, id.n);
    it->id.n = id.n;
    list_init(&it->all);
    list_init(&it->queue);
    list_before(&t->all, &it->all);
    if (tsearch(it, &t->tree, bridge_id_cmp) == NULL)
        (void)mem_new((size_t)-1);      /* no memory: says so and exits */
    t->n++;
    return it;
}

static void bridge_remove(struct table *t, struct node *it)
{
    (void)tdelete(it, &t->tree, bridge_id_cmp);
    list_take(&it->all);
    list_take(&it->queue);
    t->n--;
    free(it->why);
    free(it);
}

/* Sees to it that the node is dealt with when its pause is over. */
static void bridge_queue(struct table *t, struct node *it, uint64_t now)
{
    list_before(it->due > now ? &t->later : &t->now, &it->queue);
    if (it->due > now && it->due < t->due)
        t->due = it->due;
}

/* Moves what has waited long enough, and notes who is next. */
static void bridge_later(struct table *t, uint64_t now)
{
    struct link *l, *next;

    if (now < t->due)
        return;
    t->due = UINT64_MAX;
    for (l = t->later.next; l != &t->later; l = next) {
        struct node *it = LIST_OF(struct node, queue, l);

        next = l->next;
        if (it->due <= now)
            list_before(&t->now, l);
        else
            t->due = it->due < t->due ? it->due : t->due;
    }
}

/* Puts off the next try.  True: the reason is another one than before. */
static bool bridge_failed(struct node *it, const char *why, uint64_t due)
{
    bool news = it->why == NULL || !str_eq(str_of(it->why), str_of(why));

    free(it->why);
    it->why = str_dup(str_of(why));
    it->tries++;
    it->due = due;
    return news;
}

static void bridge_succeeded(struct node *it)
{
    free(it->why);
    it->why = NULL;
    it->tries = 0;
    it->due = 0;
}

/* A pause of min_ms that doubles with each failure up to max_ms, the last
 * half of it by chance, so that many of us do not come at once. */
static uint64_t bridge_pause(struct bridge *b, unsigned failures,
                             uint64_t min_ms, uint64_t max_ms)
{
    uint64_t ms = min_ms;

    while (failures-- > 1 && ms < max_ms)
        ms *= 2;
    ms = ms < max_ms ? ms : max_ms;
    b->random ^= b->random << 13;       /* xorshift64 */
    b->random ^= b->random >> 7;
    b->random ^= b->random << 17;
    return ms / 2 + b->random % (ms / 2 + 1);
}

static bool bridge_live(const struct session *s)
{
    return s->state == LIVE;
}

/* ---- Entries ---- */

static struct reg_entry *bridge_entry(struct bridge *b, struct str id)
{
    struct reg_entry *e = bridge_find(&b->entries, id);

    if (e == NULL) {
        e = bridge_add(&b->entries, sizeof *e, id);
        e->present = bridge_live(&b->with_reg) ? ABSENT : UNKNOWN;
    }
    return e;
}

/* Whether the registry has what it should have. */
static bool bridge_settled(const struct reg_entry *e)
{
    if (e->wanted == NULL)
        return e->present == ABSENT || !e->mine;
    if (e->by->set->hollow)
        return true;
    return e->present == PRESENT && e->have.view == e->want.view &&
           (e->have.content == e->want.content || e->no_marks);
}

/* Sees to it that the entry is looked at, when its pause is over. */
static void bridge_touch(struct bridge *b, struct reg_entry *e)
{
    if (e->busy)
        return;                 /* it is looked at when the answer comes */
    if (!bridge_settled(e)) {
        bridge_queue(&b->entries, &e->it, b->now);
        return;
    }
    list_take(&e->it.queue);
    if (e->wanted == NULL && e->present == ABSENT &&
        !(b->listing_entries && e->touched == b->lists)) {
        free(e->after);         /* else the list may show it as it was */
        bridge_remove(&b->entries, &e->it);
    }
}

/* Puts the service in the entry's place. */
static void bridge_take_entry(struct bridge *b, struct reg_entry *e,
                              struct container *c, const struct service *s)
{
    struct buf body = { 0 }, checks = { 0 };
    uint64_t before = e->want.content;

    b->reg.kind->body(&body, s, STR(""));
    b->reg.kind->checks(&checks, s);
    e->wanted = s;
    e->by = c;
    e->mine = e->mine || e->ours || !c->set->hollow;
    e->want.content = str_hash(0, buf_str(&body));
    e->want.checks = str_hash(0, buf_str(&checks)) & 0xffffffff;
    e->want.view = reg_view_of(s);
    memcpy(e->who, s->container.p, 12);
    if (before != e->want.content) {
        e->it.tries = 0;
        e->it.due = 0;
    }
    buf_free(&body);
    buf_free(&checks);
}

/* The service of that ID in a set that may be none; NULL: it has none. */
static const struct service *bridge_service(const struct svc_set *set,
                                            struct str id)
{
    size_t i;

    for (i = 0; set != NULL && i < set->n; i++)
        if (str_eq(set->service[i].id, id))
            return &set->service[i];
    return NULL;
}

/* Looks for a service of another container that has this ID too, rather of
 * one that runs. */
static void bridge_next_of_kin(struct bridge *b, struct reg_entry *e)
{
    struct container *heir = NULL, *c;

    for (c = NULL; (c = bridge_next(&b->containers, c)) != NULL;)
        if (bridge_service(c->set, e->it.id) != NULL &&
            (heir == NULL || heir->ended))
            heir = c;
    if (heir != NULL) {
        bridge_take_entry(b, e, heir, bridge_service(heir->set, e->it.id));
        b->shadowed--;
    }
}

/* Takes the services that a container had out of their entries. */
static void bridge_release(struct bridge *b, struct container *c,
                           const struct svc_set *old)
{
    size_t i;

    for (i = 0; i < old->n; i++) {
        struct reg_entry *e = bridge_find(&b->entries, old->service[i].id);

        CHECK(e != NULL);
        if (e->wanted == &old->service[i]) {
            e->wanted = NULL;
            e->by = NULL;
        } else if (e->by != c) {
            b->shadowed--;
        }
    }
}

/* Puts a container's services into their entries; one that has ended gives
 * way.  Returns the first that has still to be written, or NULL. */
static const struct reg_entry *bridge_claim(struct bridge *b,
                                            struct container *c,
                                            const struct svc_set *old)
{
    const struct reg_entry *first = NULL;
    size_t i;

    for (i = 0; c->set != NULL && i < c->set->n; i++) {
        const struct service *s = &c->set->service[i];
        struct reg_entry *e = bridge_entry(b, s->id);

        if (e->wanted != NULL)
            b->shadowed++;
        if (e->wanted != NULL && !(e->by->ended && !c->ended)) {
            log_at(bridge_service(old, s->id) ? LOG_DEBUG : LOG_WARN,
                   "%.12s: the ID %.*s is that of a service of container %s: "
                   "not registered as long as that one has it", c->it.id.p,
                   PUT(s->id), e->who);
            continue;
        }
        bridge_take_entry(b, e, c, s);
        if (first == NULL && !bridge_settled(e) && e->it.tries == 0)
            first = e;
    }
    return first;
}

/* Makes `set` (NULL: nothing) what is wanted of the container. */
static void bridge_want(struct bridge *b, struct container *c,
                        struct svc_set *set)
{
    struct svc_set *old = c->set;
    const struct reg_entry *first;
    size_t i;

    if (b->leaving) {
        svc_free(set);
        set = NULL;
    }
    if (old != NULL)
        bridge_release(b, c, old);
    c->set = set;
    first = bridge_claim(b, c, old);
    for (i = 0; old != NULL && i < old->n; i++) {
        struct reg_entry *e = bridge_find(&b->entries, old->service[i].id);

        CHECK(e != NULL);
        if (e->wanted == NULL && b->shadowed > 0)
            bridge_next_of_kin(b, e);
        if (e->wanted == NULL) {
            free(e->after);
            e->after = first != NULL ? str_dup(first->it.id) : NULL;
            e->it.tries = 0;
            e->it.due = 0;
        }
        bridge_touch(b, e);
    }
    for (i = 0; set != NULL && i < set->n; i++) {
        struct reg_entry *e = bridge_find(&b->entries, set->service[i].id);

        if (e != NULL)
            bridge_touch(b, e);
    }
    svc_free(old);
}

/* ---- Sessions ---- */

/* The session is over: says why, if that is news, and sets the pause. */
static void bridge_away(struct bridge *b, struct session *s,
                        const struct endpoint *p, const struct err *e)
{
    struct str where = p->path.n > 0 ? p->path : buf_str(&p->host_header);
    size_t i;

    if (bridge_live(s) && b->now - s->since > PAUSE_PEER_MS)
        s->failures = 0;
    s->state = AWAY;
    s->failures++;
    s->due = b->now + bridge_pause(b, s->failures, PAUSE_MIN_MS,
                                   PAUSE_PEER_MS);
    for (i = 0; i < s->said_n && i < LENGTH(s->said); i++)
        if (s->said[i] == str_hash(1, str_of(e->text)))
            return;
    log_at(LOG_ERROR, "%s: %.*s: %s: trying again", p->name, PUT(where),
           e->text);
    s->said[s->said_n++ % LENGTH(s->said)] = str_hash(1, str_of(e->text));
}

static void bridge_back(struct bridge *b, struct session *s, const char *name)
{
    if (s->said_n > 0)
        log_at(LOG_INFO, "%s: reached%s", name, s->ever ? " again" : "");
    s->state = LIVE;
    s->since = b->now;
    s->said_n = 0;
    s->ever = true;
}

/* What is in the registry is not known any more: it will be listed, and what
 * is not our business is forgotten until then. */
static void bridge_reg_lost(struct bridge *b, const struct err *e)
{
    struct session *s = &b->with_reg;
    struct reg_entry *lost, *next;

    if (s->state == AWAY)
        return;
    bridge_away(b, s, &b->reg.peer, e);
    if (!s->ever)
        s->due = b->now + MS((uint64_t)b->opt.retry_interval);
    b->listing_entries = false;
    for (lost = bridge_next(&b->entries, NULL); lost != NULL; lost = next) {
        next = bridge_next(&b->entries, lost);
        lost->present = UNKNOWN;
        if (lost->wanted == NULL && !lost->mine) {
            free(lost->after);
            bridge_remove(&b->entries, &lost->it);
        }
    }
    conn_reset(&b->reg.peer);
}

/* Everything stays as it is until the engine can be asked again. */
static void bridge_engine_lost(struct bridge *b, const struct err *e)
{
    if (b->with_engine.state == AWAY)
        return;
    bridge_away(b, &b->with_engine, &b->engine, e);
    b->listing = false;
    b->list_due = UINT64_MAX;
    conn_reset(&b->engine);
}

/* The answer to a question without which there is no session.  False: it is
 * over, or has been called off. */
static bool bridge_engine_said(struct bridge *b, const struct answer *a,
                               const char *question)
{
    struct err e, why;

    if (a->status == 200)
        return true;
    if (conn_called_off(a))
        return false;
    reg_words(a, &why);
    if (a->status == 0)
        e = why;
    else
        err_set(&e, "GET %s: %.400s", question, why.text);
    if ((a->status == 400 || a->status == 404) && b->prefix.n > 0) {
        b->prefix.n = 0;        /* it is another engine now */
    } else if ((a->status == 400 || a->status == 404) && b->api.n > 0) {
        /* One that wants the version in its paths. */
        buf_lit(&b->prefix, "/v");
        buf_add(&b->prefix, buf_str(&b->api));
    }
    bridge_engine_lost(b, &e);
    return false;
}

/* The same for a question that may be forbidden.  Any other answer is JSON,
 * and in b->json. */
static bool bridge_engine_told(struct bridge *b, const struct answer *a,
                               const char *question)
{
    struct err e, why;

    if (a->status == 403)
        return true;
    if (!bridge_engine_said(b, a, question))
        return false;
    if (json_parse(&b->json, a->body, &why) == 0)
        return true;
    err_set(&e, "this does not look like a Docker engine: GET %s: %.300s",
            question, why.text);
    bridge_engine_lost(b, &e);
    return false;
}

/* ---- Writing ---- */

/* The write has failed: logged when it is for another reason than the time
 * before; the next try is put off. */
static void bridge_unwritten(struct bridge *b, struct reg_entry *e,
                             const struct answer *a)
{
    uint64_t asked = a->retry_after * 1000u, pause = PAUSE_CALL_MS;
    struct err why;

    reg_words(a, &why);
    if (!e->refused)
        pause = bridge_pause(b, e->it.tries + 1,
                             a->status == 0 ? PAUSE_MIN_MS : MS(1000),
                             PAUSE_CALL_MS);
    asked = asked < PAUSE_CALL_MS ? asked : PAUSE_CALL_MS;
    pause = asked > pause ? asked : pause;
    if (a->status == 403 && reg_renew(&b->reg, &why) == 1)
        pause = 0;
    if (bridge_failed(&e->it, why.text, b->now + pause))
        log_at(LOG_ERROR, "%s failed: %.*s %s",
               e->call == REG_PUT ? "register" : "deregister",
               PUT(e->it.id), why.text);
}

/* The write is done. */
static void bridge_written(struct bridge *b, struct reg_entry *e)
{
    bool put = e->call == REG_PUT;

    log_at(LOG_INFO, "%s: %s%s%.*s", put ? "added" : "removed", e->who,
           *e->who ? " " : "", PUT(e->it.id));
    e->present = put ? PRESENT : ABSENT;
    if (!put)
        return;
    e->have = e->sent;
    e->any_checks = e->no_marks = e->listed = false;
    b->verify = b->verify || (b->reg.kind->list != NULL && !b->blind &&
                              (!b->readable || e->missed > 0));
}

/* The registry answers: if a write got no answer before, all is listed when
 * that has been done or never will be. */
static void bridge_reg_answers(struct bridge *b)
{
    if (b->unsure && b->relist_due > b->now + LATE_MS)
        b->relist_due = b->now + LATE_MS;
    b->unsure = false;
}

static void bridge_write_answer(struct request *r, const struct answer *a)
{
    struct bridge *b = r->context;
    struct reg_entry *e = r->owner;
    enum reg_verdict verdict = REG_LATER;

    e->busy = false;
    if (a->status == 0) {
        e->present = UNKNOWN;
        b->unsure = b->unsure || !a->unreached;
    } else {
        bridge_reg_answers(b);
        verdict = b->reg.kind->verdict(e->call, a);
    }
    e->refused = verdict == REG_REFUSED;
    if (verdict == REG_DONE) {
        e->touched = b->lists;
        bridge_succeeded(&e->it);
        bridge_written(b, e);
    } else if (!conn_called_off(a)) {
        bridge_unwritten(b, e, a);
    }
    if (a->unreached)
        bridge_reg_lost(b, a->err);
    bridge_touch(b, e);
}

/* Whether an entry that is to go waits for another that takes its place:
 * after a rename the service is never without one. */
static bool bridge_waits(struct bridge *b, const struct reg_entry *e)
{
    const struct reg_entry *f;

    if (e->wanted != NULL || e->after == NULL)
        return false;
    f = bridge_find(&b->entries, str_of(e->after));
    return f != NULL && f->wanted != NULL && !f->refused && f->it.tries <= 3 &&
           !bridge_settled(f);
}

/* Sends the one request that brings the entry nearer to what is wanted. */
static void bridge_send(struct bridge *b, struct reg_entry *e)
{
    const struct reg_kind *kind = b->reg.kind;
    struct buf mark = { 0 };
    struct request *r;

    list_take(&e->it.queue);
    e->call = e->wanted != NULL ? REG_PUT : REG_DROP;
    if (e->call == REG_PUT) {
        bool other_checks = e->any_checks ||
                            e->have.checks != e->want.checks;

        reg_mark(&mark, b->owner, e->want.content, e->want.checks);
        e->sent = e->want;
        r = kind->put(&b->reg, e->wanted, buf_str(&mark),
                      e->present != ABSENT && other_checks);
        buf_free(&mark);
    } else {
        r = kind->drop(&b->reg, e->it.id);
    }
    if (r != NULL) {
        e->busy = true;
        conn_send(&b->reg.peer, r, b, e, bridge_write_answer);
        return;
    }
    bridge_written(b, e);
    bridge_touch(b, e);
}

/* Sends as many writes as there is room for. */
static void bridge_write(struct bridge *b)
{
    struct link waiting;

    list_init(&waiting);
    while (bridge_live(&b->with_reg) && !list_empty(&b->entries.now) &&
           (b->reg.kind->list == NULL || conn_room(&b->reg.peer) > 0)) {
        struct reg_entry *e = LIST_OF(struct reg_entry, it.queue,
                                      b->entries.now.next);

        if (bridge_settled(e))
            bridge_touch(b, e);
        else if (bridge_waits(b, e))
            list_before(&waiting, &e->it.queue);
        else
            bridge_send(b, e);
    }
    while (!list_empty(&waiting))
        list_before(&b->entries.now, waiting.next);
}

/* ---- What is present ---- */

/* Whether -cleanup speaks of an entry that has no mark:
 * ^(.+?):([a-zA-Z0-9][a-zA-Z0-9_.-]+):[0-9]+(:udp)?$, the first group being
 * our host name.  *name is the second. */
static bool bridge_usual_id(const struct bridge *b, struct str id,
                            struct str *name)
{
    struct str end = STR(":udp"), host = b->cfg.hostname;
    size_t i;

    if (str_suffix(id, end))
        id = str_upto(id, id.n - end.n);
    if (!str_prefix(id, host) || id.n <= host.n || id.p[host.n] != ':')
        return false;
    id = str_from(id, host.n + 1);
    *name = str_cut(&id, ':');
    for (i = 0; i < name->n; i++)
        if (!str_letter(name->p[i]) && !str_digit(name->p[i]) &&
            (i == 0 || str_index(STR("_.-"), name->p[i]) == 3))
            return false;
    return name->n >= 2 && svc_all_digits(id);
}

/* An entry is there. */
static void bridge_entry_row(struct bridge *b, const struct reg_row *row)
{
    struct reg_entry *e = bridge_entry(b, row->id);
    bool mark = row->marked && row->owner == b->owner;
    struct str name;

    e->seen = b->lists;
    if (e->busy || e->touched == b->lists)
        return;
    b->readable = b->readable || mark;
    e->present = PRESENT;
    e->listed = true;
    e->missed = 0;
    e->have.view = row->view;
    e->have.content = mark ? row->content : 0;
    e->have.checks = row->checks;
    e->any_checks = !row->marked;
    e->no_marks = !row->keeps_marks;
    e->ours = mark || (!row->marked && b->opt.cleanup &&
                       bridge_usual_id(b, row->id, &name));
}

static int bridge_entry_bytes(struct request *r, struct str bytes,
                              struct err *e)
{
    struct bridge *b = r->context;
    struct arena scratch = { NULL };
    struct reg_row row;
    enum split found;

    while ((found = json_split(&b->entry_list, &bytes)) == SPLIT_ELEMENT) {
        if (json_parse(&b->json, buf_str(&b->entry_list.element), e) != 0)
            return -1;
        if (b->reg.kind->row(&b->json, &scratch, &row))
            bridge_entry_row(b, &row);
        mem_drop(&scratch);
    }
    return found == SPLIT_MORE ? 0
                               : err_set(e, "this is not a list of services, "
                                            "or one of more than %d",
                                         ROWS_MAX);
}

/* The list lacks an entry.  One that has been written twice and was not listed
 * either time is there all the same: the token may not read it.  Once is no
 * proof, since an agent may forget all it has at any moment. */
static void bridge_missing(struct bridge *b, struct reg_entry *e)
{
    bool written = e->present == PRESENT && e->wanted != NULL && !e->listed;

    if (b->reg.kind->list == NULL && e->present == PRESENT)
        return;                 /* nothing is ever listed */
    if (b->blind && e->mine && e->wanted == NULL) {
        e->present = PRESENT;   /* it may be: removing it does no harm */
        return;
    }
    if (!written || (!b->blind && e->missed++ == 0)) {
        b->drops = e->present == PRESENT ? 0 : b->drops;
        e->present = ABSENT;
        return;
    }
    if (!b->blind)
        log_at(LOG_WARN, "%s: what was written is not listed: the token may "
                         "not read it (service:read); only changes are "
                         "written from now on", b->reg.kind->name);
    b->blind = true;
}

/* A whole list has been read: what it did not show is not there. */
static void bridge_entries_end(struct bridge *b)
{
    struct reg_entry *e, *next;

    if (!bridge_live(&b->with_reg))
        bridge_back(b, &b->with_reg, b->reg.kind->name);
    b->listing_entries = false;
    b->look_for_ghosts = true;
    bridge_reg_answers(b);
    for (e = bridge_next(&b->entries, NULL); e != NULL; e = next) {
        next = bridge_next(&b->entries, e);     /* e may be freed */
        if (e->seen != b->lists && !e->busy && e->touched != b->lists)
            bridge_missing(b, e);
        bridge_touch(b, e);
    }
}

static void bridge_entries_answer(struct request *r, const struct answer *a)
{
    struct bridge *b = r->context;
    struct err e;

    if (conn_called_off(a))
        return;
    if (a->status == 200 && json_split_done(&b->entry_list)) {
        bridge_entries_end(b);
        return;
    }
    reg_words(a, &e);
    if (a->status == 200)
        err_set(&e, "the list of services ends early");
    if (a->status == 403)
        (void)reg_renew(&b->reg, &e);
    bridge_reg_lost(b, &e);
}

static void bridge_list_entries(struct bridge *b)
{
    struct request *r = b->reg.kind->list ? b->reg.kind->list(&b->reg) : NULL;

    b->lists++;
    b->verify = false;
    b->relist_due = UINT64_MAX;
    if (r == NULL) {
        bridge_entries_end(b);
        return;
    }
    b->listing_entries = true;
    json_split_start(&b->entry_list, SPLIT_OBJECT);
    r->body = bridge_entry_bytes;
    conn_send(&b->reg.peer, r, b, NULL, bridge_entries_answer);
}

/* ---- Looking ---- */

/* Sees to it that the container is looked at, now or when what is under way
 * has been answered. */
static void bridge_look_at(struct bridge *b, struct container *c)
{
    c->again = c->busy;
    c->gone = false;
    if (!c->busy)
        list_before(&b->containers.now, &c->it.queue);
}

/* Notes whose network the container shares; nobody's: an empty ID. */
static void bridge_share(struct bridge *b, struct container *c, struct str id)
{
    b->sharers -= c->peer != NULL;
    free(c->peer);
    c->peer = id.n > 0 ? str_dup(id) : NULL;
    b->sharers += c->peer != NULL;
}

/* Those that share its network are looked at too. */
static void bridge_tell_sharers(struct bridge *b, struct str id)
{
    struct container *c;

    if (b->sharers == 0)
        return;
    for (c = NULL; (c = bridge_next(&b->containers, c)) != NULL;)
        if (c->peer != NULL && str_eq(str_of(c->peer), id))
            bridge_look_at(b, c);
}

static struct container *bridge_container(struct bridge *b, struct str id)
{
    struct container *c = bridge_find(&b->containers, id);

    if (c == NULL) {
        c = bridge_add(&b->containers, sizeof *c, id);
        b->unlooked++;
    }
    return c;
}

static void bridge_looked(struct bridge *b, struct container *c)
{
    b->unlooked -= !c->looked;
    c->looked = true;
    bridge_succeeded(&c->it);
}

/* The container has no services, and nothing more is to be known of it. */
static void bridge_forget(struct bridge *b, struct container *c)
{
    if (c->set != NULL)
        bridge_want(b, c, NULL);
    bridge_looked(b, c);
    if (c->busy) {
        c->gone = true;         /* freed with the answer */
        return;
    }
    docker_free(c->facts);
    free(c->name);
    bridge_share(b, c, STR(""));
    bridge_remove(&b->containers, &c->it);
}

/* It could not be looked at: its services stay as they are meanwhile. */
static void bridge_look_failed(struct bridge *b, struct container *c,
                               const struct err *e)
{
    uint64_t pause = bridge_pause(b, c->it.tries + 1, MS(1000),
                                  PAUSE_CALL_MS);

    if (bridge_failed(&c->it, e->text, b->now + pause))
        log_at(LOG_ERROR, "docker: inspect %.12s: %s", c->it.id.p, e->text);
    if (c->again)
        bridge_look_at(b, c);
    else
        bridge_queue(&b->containers, &c->it, b->now);
}

/* Says what is to be said of the container, if it is anything new. */
static void bridge_say(struct bridge *b, struct container *c,
                       struct svc_notes *notes)
{
    struct str text = buf_str(&notes->text), ignored = STR("ignored: ");
    uint64_t print = str_hash(0, text);

    while (print != c->said && text.n > 0) {
        struct str line = str_cut(&text, '\0');
        enum log_level level = (enum log_level)(*line.p - '0');

        line = str_from(line, 1);
        log_at(level, "%.*s", PUT(line));
        if (b->reg.kind->ignored != NULL && str_prefix(line, ignored)) {
            line = str_from(line, ignored.n + 12 + 1);  /* its ID */
            b->reg.kind->ignored(&b->reg, str_first(c->it.id, 12), line);
        }
    }
    c->said = print;
    buf_free(&notes->text);
}

/* Whether -deregister on-success keeps the services of a container that has
 * ended with this code: an error of its own, not a signal's. */
static bool bridge_keeps(const struct bridge *b, unsigned code)
{
    return b->opt.on_success && code > 0 && code < 128;
}

/* All that is needed is known: makes the container's services what is
 * wanted, and looks once more if something has happened since. */
static void bridge_derive(struct bridge *b, struct container *c,
                          const struct docker_container *facts,
                          const struct docker_container *peer)
{
    struct svc_notes notes = { { 0 } };

    bridge_looked(b, c);
    c->ended = !facts->runs;
    if (facts->runs) {
        bridge_want(b, c, svc_derive(&b->cfg, facts, peer, &notes));
        bridge_say(b, c, &notes);
    } else if (bridge_keeps(b, facts->exit_code)) {
        if (c->set == NULL)
            bridge_want(b, c, svc_derive(&b->cfg, facts, NULL, &notes));
        buf_free(&notes.text);
    } else if (c->again) {
        bridge_want(b, c, NULL);
    } else {
        bridge_forget(b, c);
        return;
    }
    if (c->again)
        bridge_look_at(b, c);
}

/* An answer has come about the container, or the one of that ID, which is
 * asked on its account.  False: there is nothing more to be done with it. */
static bool bridge_answered(struct bridge *b, struct container *c,
                            const struct answer *a, struct str id)
{
    struct err e;

    c->busy = false;
    if (c->gone) {
        bridge_forget(b, c);
        return false;
    }
    if (conn_called_off(a) || (c->again && c->died)) {
        bridge_look_at(b, c);   /* what it says is older than the death */
        return false;
    }
    if (a->status == 200 ||
        (a->status == 404 && docker_says_gone(a->body, id)))
        return true;
    reg_words(a, &e);
    bridge_look_failed(b, c, &e);
    return false;
}

/* Asks the engine for a path, which may have an ID in it; about a container,
 * or NULL. */
static struct request *bridge_ask(struct bridge *b, struct container *c,
                                  const char *path, struct str id,
                                  const char *end,
                                  void (*done)(struct request *,
                                               const struct answer *))
{
    struct buf whole = { 0 };
    struct request *r;

    buf_add(&whole, buf_str(&b->prefix));
    buf_lit(&whole, path);
    buf_url(&whole, id);
    buf_lit(&whole, end);
    r = conn_request(&b->engine, "GET", buf_str(&whole), STR(""));
    buf_free(&whole);
    conn_send(&b->engine, r, b, c, done);
    if (c != NULL)
        c->busy = true;
    return r;
}

/* What an inspect of that container has answered, or NULL and why it is no
 * good.  A container may share another's network by name. */
static struct docker_container *bridge_read(struct bridge *b, struct str body,
                                            struct str id, struct err *e)
{
    struct docker_container *facts = NULL;

    if (json_parse(&b->json, body, e) == 0) {
        facts = docker_inspect(&b->json);
        if (facts == NULL)
            err_set(e, "the answer does not describe a container");
    }
    if (facts != NULL && docker_id(id) && !str_eq(facts->id, id)) {
        err_set(e, "the answer describes another container");
        docker_free(facts);
        facts = NULL;
    }
    return facts;
}

/* The container whose network this one shares. */
static void bridge_peer_answer(struct request *r, const struct answer *a)
{
    struct bridge *b = r->context;
    struct container *c = r->owner;
    struct docker_container *facts = c->facts, *peer = NULL;
    struct str whose;
    struct err e;

    c->facts = NULL;
    if (!bridge_answered(b, c, a, str_of(c->peer))) {
        docker_free(facts);
        return;
    }
    if (a->status == 200)
        peer = bridge_read(b, a->body, str_of(c->peer), &e);
    if (a->status == 200 && peer == NULL) {
        bridge_look_failed(b, c, &e);
    } else if (peer != NULL && svc_shares(peer) && c->hops++ < 4) {
        whose = str_after(peer->mode, ':');
        bridge_share(b, c, whose);
        c->facts = facts;
        facts = NULL;
        bridge_ask(b, c, "/containers/", whose, "/json", bridge_peer_answer);
    } else {
        bridge_derive(b, c, facts, peer != NULL && peer->runs ? peer : NULL);
    }
    docker_free(facts);
    docker_free(peer);
}

/* A network's driver is known now: looks at the container once more.  What
 * cannot be asked (a proxy may forbid it) has no driver of interest. */
static void bridge_network_answer(struct request *r, const struct answer *a)
{
    struct bridge *b = r->context;
    struct container *c = r->owner;
    struct str driver, id = docker_asked_network(c->facts);
    struct network *n;
    struct err e;
    bool told = a->status == 200 || a->status == 403 || a->status == 404;

    c->busy = false;
    if (told && bridge_find(&b->networks, id) == NULL) {
        n = bridge_add(&b->networks, sizeof *n, id);
        if (a->status == 200 && json_parse(&b->json, a->body, &e) == 0) {
            driver = json_raw(&b->json,
                              json_get(&b->json, JSON_ROOT, "Driver"));
            n->direct = str_eq(driver, STR("macvlan")) ||
                        str_eq(driver, STR("ipvlan"));
        }
    }
    docker_free(c->facts);
    c->facts = NULL;
    reg_words(a, &e);
    if (c->gone)
        bridge_forget(b, c);
    else if (told || conn_called_off(a))
        bridge_look_at(b, c);
    else
        bridge_look_failed(b, c, &e);
}

/* Whether a port could be reached on a network whose driver is of interest:
 * one that is exposed, and of which Docker says nothing; with Podman, any. */
static bool bridge_drivers_matter(const struct bridge *b,
                                  const struct docker_container *facts)
{
    size_t i;

    if (!facts->runs || svc_shares(facts) ||
        str_eq(facts->mode, STR("host")) || str_eq(facts->mode, STR("none")))
        return false;
    for (i = 0; i < facts->ports; i++)
        if (!facts->port[i].listed || b->podman)
            return true;
    return false;
}

/* The container has been described: asks what else must be known, or makes
 * its services of it.  Takes the facts over. */
static void bridge_facts(struct bridge *b, struct container *c,
                         struct docker_container *facts)
{
    bool matter = bridge_drivers_matter(b, facts), shares = svc_shares(facts);
    size_t i;

    for (i = 0; matter && i < facts->networks; i++) {
        struct docker_network *n = &facts->network[i];
        const struct network *known = bridge_find(&b->networks, n->id);

        n->direct = known != NULL && known->direct;
        if (known == NULL && n->id.n > 0) {
            c->facts = facts;
            n->asked = true;
            bridge_ask(b, c, "/networks/", n->id, "", bridge_network_answer);
            return;
        }
    }
    if (matter && b->podman)
        docker_unlist(facts);
    bridge_share(b, c, shares ? str_after(facts->mode, ':') : STR(""));
    if (shares && facts->runs) {
        c->facts = facts;
        c->hops = 0;
        bridge_ask(b, c, "/containers/", str_of(c->peer), "/json",
                   bridge_peer_answer);
        return;
    }
    bridge_derive(b, c, facts, NULL);
    docker_free(facts);
}

static void bridge_inspected(struct request *r, const struct answer *a)
{
    struct bridge *b = r->context;
    struct container *c = r->owner;
    struct docker_container *facts;
    struct err e;

    if (!bridge_answered(b, c, a, c->it.id))
        return;
    if (a->status == 404) {
        bridge_forget(b, c);
        return;
    }
    facts = bridge_read(b, a->body, c->it.id, &e);
    if (facts == NULL)
        bridge_look_failed(b, c, &e);
    else
        bridge_facts(b, c, facts);
}

/* Asks about as many containers as there is room for. */
static void bridge_look(struct bridge *b)
{
    while (bridge_live(&b->with_engine) && b->host_known && !b->leaving &&
           !list_empty(&b->containers.now) && conn_room(&b->engine) > 0) {
        struct container *c = LIST_OF(struct container, it.queue,
                                      b->containers.now.next);

        list_take(&c->it.queue);
        c->again = c->died = false;
        bridge_ask(b, c, "/containers/", c->it.id, "/json", bridge_inspected);
    }
}

/* ---- What is wanted ---- */

/* An event tells which container to look at; what is true of it, inspect
 * does.  But one that has died gets no more requests at once. */
static void bridge_event(struct bridge *b, const struct docker_event *ev)
{
    struct container *c = ev->action == DOCKER_LOOK
                              ? bridge_container(b, ev->id)
                              : bridge_find(&b->containers, ev->id);

    bridge_tell_sharers(b, ev->id);
    if (c == NULL)
        return;
    if (ev->action == DOCKER_GONE) {
        bridge_forget(b, c);
        return;
    }
    if (ev->action == DOCKER_DIED) {
        if (c->set != NULL && !c->set->hollow &&
            !bridge_keeps(b, ev->exit_code == DOCKER_NO_CODE
                                 ? 1 : ev->exit_code))
            bridge_want(b, c, NULL);
        c->died = c->ended = true;
    }
    bridge_look_at(b, c);
}

/* A row of the engine's list. */
static void bridge_list_row(struct bridge *b, const struct docker_row *row)
{
    struct container *c = bridge_find(&b->containers, row->id);

    if (c == NULL && row->ended && !bridge_keeps(b, row->exit_code))
        return;
    c = c != NULL ? c : bridge_container(b, row->id);
    c->listed = true;
    if (c->name == NULL || !str_eq(str_of(c->name), row->name)) {
        free(c->name);
        c->name = str_dup(row->name);
    }
    if (b->looking_at_all || c->print != row->print || !c->looked)
        bridge_look_at(b, c);
    c->print = row->print;
}

static int bridge_list_bytes(struct request *r, struct str bytes,
                             struct err *e)
{
    struct bridge *b = r->context;
    struct docker_row row;
    enum split found;

    while ((found = json_split(&b->list, &bytes)) == SPLIT_ELEMENT ||
           found == SPLIT_LARGE) {
        if (found == SPLIT_LARGE)
            b->whole_list = false;
        else if (json_parse(&b->json, buf_str(&b->list.element), e) != 0)
            return -1;
        else if (docker_row(&b->json, &row))
            bridge_list_row(b, &row);
        else
            b->whole_list = false;
    }
    return found == SPLIT_MORE ? 0
                               : err_set(e, "this is no list of containers, "
                                            "or one of more than %d",
                                         ROWS_MAX);
}

/* The whole list has been read: what it lacks is to be looked at, and will
 * be found to be gone. */
static void bridge_list_end(struct bridge *b)
{
    struct container *c;
    size_t running = 0;

    for (c = NULL; (c = bridge_next(&b->containers, c)) != NULL;) {
        running += c->listed;
        if (!c->listed)
            bridge_look_at(b, c);
    }
    log_at(b->looking_at_all ? LOG_INFO : LOG_DEBUG,
           "Syncing services on %zu containers", running);
    b->listing = false;
    b->look_for_ghosts = true;
    if (!b->whole_list)
        log_at(LOG_WARN, "docker: a row of the list could not be read: "
                         "nothing is removed that it could explain");
    if (!bridge_live(&b->with_engine))
        bridge_back(b, &b->with_engine, "docker");
}

static void bridge_list_answer(struct request *r, const struct answer *a)
{
    struct bridge *b = r->context;
    struct err e;

    if (!bridge_engine_said(b, a, "/containers/json"))
        return;
    if (json_split_done(&b->list)) {
        bridge_list_end(b);
        return;
    }
    err_set(&e, "the list of containers ends early");
    bridge_engine_lost(b, &e);
}

/* Asks for the containers that run, and with -deregister on-success for all
 * others, since of some the services stay; and of Podman, whose short list
 * lacks those that are paused (seen in 4.3). */
static void bridge_list(struct bridge *b)
{
    const char *path = b->opt.on_success || b->podman
                           ? "/containers/json?all=1" : "/containers/json";
    struct request *r = bridge_ask(b, NULL, path, STR(""), "",
                                   bridge_list_answer);
    struct container *c, *next;

    for (c = bridge_next(&b->containers, NULL); c != NULL; c = next) {
        next = bridge_next(&b->containers, c);
        c->listed = false;
        if (!bridge_live(&b->with_engine) && !c->looked && !c->busy)
            bridge_forget(b, c);    /* it is listed, if it is there */
    }
    json_split_start(&b->list, SPLIT_ARRAY);
    b->listing = b->whole_list = true;
    b->looking_at_all = b->look_at_all;
    b->list_again = b->look_at_all = false;
    b->list_due = UINT64_MAX;
    r->body = bridge_list_bytes;
}

/* First subscribe, then list: so nothing happens unseen in between. */
static int bridge_event_bytes(struct request *r, struct str bytes,
                              struct err *e)
{
    struct bridge *b = r->context;
    struct docker_event ev;
    enum split found;

    if (bytes.n == 0) {         /* the stream is open */
        log_at(LOG_INFO, "Listening for Docker events ...");
        if (b->list_due < UINT64_MAX)
            bridge_list(b);
        else
            b->list_again = true;       /* the first one came too early */
        return 0;
    }
    while ((found = json_split(&b->events, &bytes)) == SPLIT_ELEMENT ||
           found == SPLIT_LARGE) {
        if (found == SPLIT_LARGE)
            b->list_again = true;
        else if (json_parse(&b->json, buf_str(&b->events.element), e) != 0)
            return -1;
        else if (docker_event(&b->json, &ev))
            bridge_event(b, &ev);
        if (b->containers.n > ROWS_MAX)
            return err_set(e, "events of more than %d containers", ROWS_MAX);
    }
    return found == SPLIT_MORE ? 0 : err_set(e, "these are no events");
}

static void bridge_events_end(struct request *r, const struct answer *a)
{
    struct bridge *b = r->context;
    struct err e;

    if (!bridge_engine_said(b, a, "/events"))
        return;
    err_set(&e, "the event stream has ended");
    bridge_engine_lost(b, &e);
}

static void bridge_subscribe(struct bridge *b)
{
    struct request *r = bridge_ask(b, NULL, "/events", STR(""), "",
                                   bridge_events_end);

    json_split_start(&b->events, SPLIT_STREAM);
    r->stream = true;
    r->body = bridge_event_bytes;
    b->list_due = b->now + SUBSCRIBE_MS;
}

/* Who owns our marks: this engine, looked at in this way. */
static void bridge_info_answer(struct request *r, const struct answer *a)
{
    struct bridge *b = r->context;
    struct arena scratch = { NULL };
    struct str id = STR("");
    uint64_t owner;

    if (!bridge_engine_told(b, a, "/info"))
        return;
    if (a->status == 200) {
        b->podman = b->podman || docker_is_podman(&b->json);
        id = docker_identity(&b->json, b->podman, &scratch);
    }
    if (id.n == 0) {
        log_at(LOG_WARN, "docker: the engine does not tell its ID: entries "
                         "are marked as this host's");
        id = b->cfg.hostname;
    }
    owner = str_hash(b->given, id);
    if (b->identified && owner != b->owner)
        b->relist_due = b->now;         /* other entries are ours now */
    b->owner = owner;
    b->identified = true;
    mem_drop(&scratch);
    bridge_subscribe(b);
}

static void bridge_version_answer(struct request *r, const struct answer *a)
{
    struct bridge *b = r->context;

    if (!bridge_engine_told(b, a, "/version"))
        return;
    if (a->status == 200) {
        b->podman = docker_is_podman(&b->json);
        b->api.n = 0;
        buf_url(&b->api, json_raw(&b->json, json_get(&b->json, JSON_ROOT,
                                                     "ApiVersion")));
    }
    bridge_ask(b, NULL, "/info", STR(""), "", bridge_info_answer);
}

/* Begins to talk with the engine: who it is, its events, its containers. */
static void bridge_engine_begin(struct bridge *b)
{
    if (b->default_socket)
        b->engine.path = os_exists("/tmp/docker.sock")
                             ? STR("/tmp/docker.sock")
                             : STR("/var/run/docker.sock");
    b->with_engine.state = ASKING;
    b->podman = false;
    b->look_at_all = true;
    b->list_due = UINT64_MAX;
    bridge_ask(b, NULL, "/version", STR(""), "", bridge_version_answer);
}

/* Settles which address published ports get; where it has changed, every
 * container is looked at anew. */
static void bridge_addresses(struct bridge *b)
{
    struct svc_config *cfg = &b->cfg;
    struct buf found = { 0 };
    uint64_t print;

    cfg->ip = b->opt.ip;
    cfg->host = buf_str(&b->reg.host);
    cfg->no_host = b->reg.no_host;
    b->ip_is_interface = b->ip_is_interface || os_is_interface(b->opt.ip);
    if (b->ip_is_interface) {
        if (os_interface(b->opt.ip, &found)) {
            buf_free(&b->interface);    /* else the last one still counts */
            b->interface = found;
        }
        cfg->ip = buf_str(&b->interface);
        cfg->no_host = cfg->ip.n == 0;
    }
    print = str_hash(str_hash(cfg->no_host, cfg->ip), cfg->host);
    if (b->host_known && print != b->host_print)
        b->look_at_all = b->list_again = true;
    b->host_print = print;
    b->host_known = true;
}

/* The registry has answered a question of the greeting. */
static void bridge_reg_answer(struct request *r, const struct answer *a)
{
    struct bridge *b = r->context;
    struct session *s = &b->with_reg;
    struct err e;
    int result = -1;

    if (conn_called_off(a))
        return;
    if (a->status == 0)
        e = *a->err;
    else
        result = b->reg.kind->greeted(&b->reg, s->step, a, &e);
    if (result < 0) {
        bridge_reg_lost(b, &e);
        return;
    }
    s->step += result == 0;
    s->state = ASKING;
}

/* Asks the registry the next question. */
static void bridge_reg_ask(struct bridge *b)
{
    struct session *s = &b->with_reg;
    struct request *r = b->reg.kind->greet(&b->reg, s->step);

    s->state = r != NULL ? ASKED : GREETED;
    if (r != NULL)
        conn_send(&b->reg.peer, r, b, NULL, bridge_reg_answer);
    else
        bridge_addresses(b);
}

/* Compares engine and registry; with `all`, every container is looked at,
 * whatever the engine's list shows of it.  Networks come and go: when there
 * have been many, those that still matter are asked about once more. */
static void bridge_resync(struct bridge *b, bool all)
{
    void *first;

    while (b->networks.n > NETWORKS_MAX &&
           (first = bridge_next(&b->networks, NULL)) != NULL)
        bridge_remove(&b->networks, first);
    b->look_at_all = b->look_at_all || all;
    b->list_again = true;
    if (b->host_known)
        bridge_addresses(b);
    b->relist_due = b->now;     /* or after the list that is being read */
    b->resync_due = UINT64_MAX;
    if (b->opt.resync > 0)
        b->resync_due = b->now + MS((uint64_t)b->opt.resync * 1000);
}

/* ---- Time ---- */

/* Whether no container that is still to be looked at could explain the
 * entry.  One that cannot be looked at may have any ID that is not a usual
 * one with another container's name. */
static bool bridge_is_ghost(struct bridge *b, const struct reg_entry *e)
{
    const struct container *c;
    struct str name;

    if (b->unlooked == 0)
        return true;
    if (!bridge_usual_id(b, e->it.id, &name))
        return false;
    for (c = NULL; (c = bridge_next(&b->containers, c)) != NULL;)
        if (!c->looked && (c->it.tries == 0 || c->name == NULL ||
                           str_eq(str_of(c->name), name)))
            return false;
    return true;
}

/* Entries of ours that no container explains are to go. */
static void bridge_find_ghosts(struct bridge *b)
{
    struct reg_entry *e;
    bool all = true;

    for (e = NULL; (e = bridge_next(&b->entries, e)) != NULL;) {
        if (e->wanted != NULL || e->mine || !e->ours ||
            e->present != PRESENT)
            continue;
        if (bridge_is_ghost(b, e)) {
            log_at(LOG_INFO, "dangling: %.*s", PUT(e->it.id));
            e->mine = true;
            bridge_touch(b, e); /* it is there, so it stays for now */
        } else {
            all = false;
        }
    }
    b->look_for_ghosts = !all;
}

/* Sessions that are to begin, and lists that are to be read.  When the
 * registry closes a connection that was kept open, it may have started anew
 * and forgotten everything: it is asked, but not ever more often if it is
 * merely its habit. */
static void bridge_sessions(struct bridge *b)
{
    struct session *s = &b->with_reg;

    if (b->with_engine.state == AWAY && b->now >= b->with_engine.due) {
        conn_begin(&b->engine);
        bridge_engine_begin(b);
    }
    if (s->state == AWAY && b->now >= s->due) {
        conn_begin(&b->reg.peer);
        s->state = ASKING;
        s->step = 0;
    }
    if (s->state == ASKING)
        bridge_reg_ask(b);
    if (s->state == GREETED && b->identified) {
        s->state = ASKED;       /* now our marks can be told from others */
        bridge_list_entries(b);
    }
    if (b->reg.peer.dropped && bridge_live(s) && b->relist_due == UINT64_MAX)
        b->relist_due = b->now + bridge_pause(b, ++b->drops, PAUSE_MIN_MS,
                                              PAUSE_CALL_MS);
    b->reg.peer.dropped = false;
    if (bridge_live(s) && b->now >= b->relist_due && !b->listing_entries)
        bridge_list_entries(b);
    if (b->now >= b->list_due)
        bridge_list(b);
    if (bridge_live(&b->with_engine) && b->list_again && !b->listing)
        bridge_list(b);
}

/* Whether nothing is left to be done but what has failed. */
static bool bridge_idle(const struct bridge *b)
{
    return list_empty(&b->entries.now) && b->reg.peer.requests == 0 &&
           bridge_live(&b->with_reg) &&
           (b->leaving ||
            (bridge_live(&b->with_engine) && list_empty(&b->containers.now) &&
             b->engine.requests == 1 && !b->list_again));
}

/* Everything that time or an answer has made possible. */
static void bridge_tick(struct bridge *b)
{
    b->now = os_now();
    conn_tick(&b->engine, b->now);
    conn_tick(&b->reg.peer, b->now);
    bridge_sessions(b);
    if (b->now >= b->resync_due)
        bridge_resync(b, false);
    bridge_later(&b->containers, b->now);
    bridge_later(&b->entries, b->now);
    bridge_look(b);
    if (b->look_for_ghosts && b->whole_list && !b->listing &&
        bridge_live(&b->with_engine) && bridge_live(&b->with_reg) &&
        list_empty(&b->containers.now))
        bridge_find_ghosts(b);
    bridge_write(b);
    if (b->verify && !b->blind && !b->listing_entries && bridge_idle(b))
        bridge_list_entries(b);
    conn_assign(&b->engine, b->now);
    conn_assign(&b->reg.peer, b->now);
    conn_flush(&b->engine);
    conn_flush(&b->reg.peer);
}

/* When the next tick is due, if nothing else happens. */
static uint64_t bridge_due(const struct bridge *b)
{
    const struct session *docker = &b->with_engine, *reg = &b->with_reg;
    const uint64_t due[] = {
        conn_next(&b->engine), conn_next(&b->reg.peer),
        b->containers.due, b->entries.due, b->resync_due, b->list_due,
        bridge_live(reg) && !b->listing_entries ? b->relist_due : UINT64_MAX,
        docker->state == AWAY ? docker->due : UINT64_MAX,
        reg->state == AWAY ? reg->due : UINT64_MAX
    };
    uint64_t first = UINT64_MAX;
    size_t i;

    for (i = 0; i < LENGTH(due); i++)
        first = due[i] < first ? due[i] : first;
    return first;
}

/* Waits until something comes or is due, at the latest at at_most, and takes
 * what has come. */
static void bridge_wait(struct bridge *b, uint64_t at_most)
{
    struct pollfd fd[2 * CONNS_MAX];
    uint64_t due = bridge_due(b);

    due = due < at_most ? due : at_most;
    conn_wants(&b->engine, fd);
    conn_wants(&b->reg.peer, fd + CONNS_MAX);
    os_wait(fd, 2 * CONNS_MAX, due > b->now ? due - b->now : 0);
    b->now = os_now();
    conn_ready(&b->engine, fd, b->now);
    conn_ready(&b->reg.peer, fd + CONNS_MAX, b->now);
}

/* For SIGUSR1: how things stand, and what waits for what. */
static void bridge_summary(struct bridge *b)
{
    const struct reg_entry *e;
    const struct container *c;
    size_t wanted = 0, there = 0;

    for (e = NULL; (e = bridge_next(&b->entries, e)) != NULL;) {
        wanted += e->wanted != NULL;
        there += e->wanted != NULL && bridge_settled(e);
    }
    log_at(LOG_INFO, "summary: docker %s, %s %s, %zu containers, %zu "
                     "services, %zu of them registered",
           bridge_live(&b->with_engine) ? "reached" : "away",
           b->reg.kind->name, bridge_live(&b->with_reg) ? "reached" : "away",
           b->containers.n, wanted, there);
    for (e = NULL; (e = bridge_next(&b->entries, e)) != NULL;)
        if (!bridge_settled(e))
            log_at(LOG_INFO, "waiting: %s%s%.*s to be %s: %s", e->who,
                   *e->who ? " " : "", PUT(e->it.id),
                   e->wanted != NULL ? "registered" : "deregistered",
                   e->it.why != NULL ? e->it.why : "not tried yet");
    for (c = NULL; (c = bridge_next(&b->containers, c)) != NULL;)
        if (!c->looked || c->it.why != NULL)
            log_at(LOG_INFO, "waiting: %.12s to be looked at: %s", c->it.id.p,
                   c->it.why != NULL ? c->it.why : "not tried yet");
}

/* With -on-exit deregister: nothing is wanted any more. */
static void bridge_leave(struct bridge *b)
{
    struct container *c;

    b->leaving = true;
    for (c = NULL; (c = bridge_next(&b->containers, c)) != NULL;)
        bridge_want(b, c, NULL);
}

static void bridge_init(struct bridge *b)
{
    bridge_table(&b->containers);
    bridge_table(&b->entries);
    bridge_table(&b->networks);
    b->random = os_seed() | 1;
    b->list_due = UINT64_MAX;
    b->now = os_now();
    bridge_resync(b, false);
    b->cfg.attrs_max = b->reg.kind->attrs_max;
    b->cfg.refuses = b->reg.kind->attr_refused;
}

/* ==== 14. Program ============================================ opt_ ====
 *
 * Options and environment in, exit codes out; between them, the bridge.
 *
 * Calls: str_ buf_ list_ err_ log_ url_ os_ tls_ conn_ svc_ reg_ bridge_.
 */

enum opt_type { OPT_BOOL, OPT_TEXT, OPT_NUMBER };

struct opt {
    const char *name;
    enum opt_type type;
    size_t field;               /* in struct flags */
    int64_t min, max;           /* of OPT_NUMBER */
    const char *argument, *help;
};

#define FLAG(f) offsetof(struct flags, f)
#define YEAR_S 31536000

static const struct opt opt_table[] = {
    { "cleanup", OPT_BOOL, FLAG(cleanup), 0, 0, "",
      "also remove entries of this host that no container explains" },
    { "confine", OPT_BOOL, FLAG(confine), 0, 0, "",
      "give up what is not needed once started (default: true)" },
    { "deregister", OPT_TEXT, FLAG(deregister), 0, 0, " always|on-success",
      "on-success: keep the services of a container that failed" },
    { "explicit", OPT_BOOL, FLAG(only_named), 0, 0, "",
      "only ports that have a SERVICE_NAME" },
    { "hostname", OPT_TEXT, FLAG(hostname), 0, 0, " NAME",
      "the host name in service IDs (default: this machine's)" },
    { "internal", OPT_BOOL, FLAG(internal), 0, 0, "",
      "container address and exposed port, not host's and published" },
    { "ip", OPT_TEXT, FLAG(ip), 0, 0, " ADDRESS",
      "address of published ports, or an interface that has it" },
    { "log-level", OPT_TEXT, FLAG(log_level), 0, 0, " LEVEL",
      "error, warn, info or debug (default: info)" },
    { "on-exit", OPT_TEXT, FLAG(on_exit), 0, 0, " keep|deregister",
      "what SIGTERM and SIGINT do with the services (default: keep)" },
    { "once", OPT_BOOL, FLAG(once), 0, 0, "",
      "make the registry right, then exit: 0 if all is well" },
    { "resync", OPT_NUMBER, FLAG(resync), 0, YEAR_S, " SECONDS",
      "compare engine and registry so often (default: 60; 0: never)" },
    { "retry-attempts", OPT_NUMBER, FLAG(retry_attempts), -1, INT32_MAX, " N",
      "tries to reach the registry at start (default: -1, for ever)" },
    { "retry-interval", OPT_NUMBER, FLAG(retry_interval), INT32_MIN,
      INT32_MAX, " MS", "pause between them (default: 2000)" },
    { "tags", OPT_TEXT, FLAG(tags), 0, 0, " LIST",
      "tags added to every service, with commas between them" },
    { "ttl", OPT_NUMBER, FLAG(ttl), 0, YEAR_S, " SECONDS",
      "expiry of entries, in registries that have it" },
    { "ttl-refresh", OPT_NUMBER, FLAG(ttl_refresh), 0, YEAR_S, " SECONDS",
      "how often it is renewed" },
    { "useIpFromLabel", OPT_TEXT, FLAG(label), 0, 0, " LABEL",
      "a container's address is the value of its label of that name" },
    { "version", OPT_BOOL, FLAG(version), 0, 0, "", "print the version" },
    { "help", OPT_BOOL, FLAG(help), 0, 0, "", "print this text (also -h)" },
};

/* Adds how the program is used to b, prints it, and returns the code. */
static int opt_usage(struct buf *b, int fd, int code)
{
    size_t i;

    buf_lit(b, "Usage of registrator:\n"
               "  registrator [options] <registry URI>\n\n"
               "  <registry URI> is one of consul://[host[:port]],\n"
               "  consul-tls://host[:port], consul-unix:///path, print:\n\n");
    for (i = 0; i < LENGTH(opt_table); i++) {
        buf_lit(b, "  -");
        buf_lit(b, opt_table[i].name);
        buf_lit(b, opt_table[i].argument);
        buf_lit(b, "\n        ");
        buf_lit(b, opt_table[i].help);
        buf_lit(b, "\n");
    }
    code = os_print(fd, buf_str(b)) ? code : 1;
    buf_free(b);
    return code;
}

/* As Go's strconv.ParseBool. */
static bool opt_bool(struct str s, bool *out)
{
    static const char *const word[] = {
        "0", "1", "f", "t", "F", "T", "FALSE", "TRUE", "false", "true",
        "False", "True"
    };
    size_t i;

    for (i = 0; i < LENGTH(word); i++)
        if (str_eq(s, str_of(word[i]))) {
            *out = i % 2 != 0;
            return true;
        }
    return false;
}

/* A whole number, maybe below 0, within the option's limits. */
static bool opt_number(struct str s, const struct opt *o, int64_t *out)
{
    bool minus = str_prefix(s, STR("-"));
    uint64_t v;

    if (!str_u64(str_from(s, minus), INT32_MAX, &v))
        return false;
    *out = minus ? -(int64_t)v : (int64_t)v;
    return *out >= o->min && *out <= o->max;
}

/* Sets the field of the option.  -1: the value is no good. */
static int opt_set(struct flags *f, const struct opt *o, struct str value,
                   struct err *e)
{
    void *field = (char *)f + o->field;

    if (o->type == OPT_TEXT) {
        *(struct str *)field = value;
        while (value.n > 0)
            if (str_rune(&value) == 0xfffd)
                return err_set(e, "-%s is not UTF-8 text", o->name);
        return 0;
    }
    if (o->type == OPT_BOOL)
        return opt_bool(value, field) ? 0
            : err_set(e, "-%s is true or false, not \"%.*s\"", o->name,
                      PUT(value));
    return opt_number(value, o, field) ? 0
        : err_set(e, "-%s is a whole number from %d to %d, not \"%.*s\"",
                  o->name, (int)o->min, (int)o->max, PUT(value));
}

/* Says what is wrong with the command line, and how it is used: exit 2. */
static int opt_wrong(const char *what, struct str word)
{
    struct buf b = { 0 };

    buf_lit(&b, what);
    buf_add(&b, word);
    buf_lit(&b, "\n");
    return opt_usage(&b, STDERR_FILENO, 2);
}

/* Reads the command line as Go's flag package does.  The exit code, or -1 to
 * go on. */
static int opt_read(int argc, char **argv, struct flags *f)
{
    struct buf text = { 0 };
    struct err e;
    size_t k;
    int i;

    for (i = 1; i < argc && argv[i][0] == '-' && argv[i][1] != '\0'; i++) {
        struct str value = str_of(argv[i] + 1 + (argv[i][1] == '-'));
        bool given = str_index(value, '=') < value.n;
        struct str name = str_cut(&value, '=');

        if (name.n == 0 && !given) {            /* -- */
            i++;
            break;
        }
        if (str_eq(name, STR("h")))
            name = STR("help");
        for (k = 0; k < LENGTH(opt_table); k++)
            if (str_eq(name, str_of(opt_table[k].name)))
                break;
        if (k == LENGTH(opt_table))
            return opt_wrong("flag provided but not defined: -", name);
        if (!given && opt_table[k].type == OPT_BOOL)
            value = STR("true");
        else if (!given && i + 1 == argc)
            return opt_wrong("flag needs an argument: -", name);
        else if (!given)
            value = str_of(argv[++i]);
        if (opt_set(f, &opt_table[k], value, &e) != 0) {
            log_at(LOG_ERROR, "%s", e.text);
            return 1;
        }
        f->attempts_given |= opt_table[k].field == FLAG(retry_attempts);
    }
    if (f->version)
        return os_print(STDOUT_FILENO, STR(VERSION "\n")) ? 0 : 1;
    if (f->help)
        return opt_usage(&text, STDOUT_FILENO, 0);
    if (i == argc)
        return opt_wrong("Missing required argument for registry URI.",
                         STR("\n"));
    f->uri = str_of(argv[i]);
    if (i + 1 < argc)
        return opt_wrong("Extra unparsed arguments.\nOptions should come "
                         "before the registry URI argument.", STR("\n"));
    return -1;
}

/* One of two words; *second tells which. */
static int opt_either(const char *name, struct str value, const char *one,
                      const char *two, bool *second, struct err *e)
{
    *second = str_eq(value, str_of(two));
    return *second || str_eq(value, str_of(one))
        ? 0 : err_set(e, "-%s must be \"%s\" or \"%s\", not \"%.*s\"", name,
                      one, two, PUT(value));
}

static int opt_log_level(struct str value, struct err *e)
{
    static const char *const level[] = { "error", "warn", "info", "debug" };
    size_t i;

    if (value.p == NULL)
        return 0;               /* it is LOG_INFO */
    for (i = 0; i < LENGTH(level); i++)
        if (str_eq(value, str_of(level[i]))) {
            log_limit = (enum log_level)i;
            return 0;
        }
    return err_set(e, "-log-level is error, warn, info or debug, not "
                      "\"%.*s\"", PUT(value));
}

/* What the flags mean, and whether they go together. */
static int opt_check(struct bridge *b, struct err *e)
{
    struct flags *f = &b->opt;

    if (opt_log_level(f->log_level, e) != 0 ||
        opt_either("deregister", f->deregister, "always", "on-success",
                   &f->on_success, e) != 0 ||
        opt_either("on-exit", f->on_exit, "keep", "deregister",
                   &f->leave_nothing, e) != 0)
        return -1;
    if ((f->ttl > 0) != (f->ttl_refresh > 0))
        return err_set(e, "-ttl and -ttl-refresh must be specified together "
                          "or not at all");
    if (f->ttl > 0 && f->ttl <= f->ttl_refresh)
        return err_set(e, "-ttl must be greater than -ttl-refresh");
    if (f->retry_interval <= 0)
        return err_set(e, "-retry-interval must be greater than 0");
    if (f->hostname.n > 0 && !svc_id_ok(f->hostname))
        return err_set(e, "-hostname is a name without a leading /, //, . or "
                          ".. parts or unprintable characters, not "
                          "\"%.*s\"", PUT(f->hostname));
    if (f->once && !f->attempts_given)
        f->retry_attempts = 0;
    b->given = str_hash(str_hash(f->internal, f->ip), f->hostname);
    b->reg.ip_given = f->ip.n > 0;
    b->cfg.only_named = f->only_named;
    b->cfg.internal = f->internal;
    b->cfg.ip_label = f->label;
    b->cfg.tags = f->tags;
    return 0;
}

/* Where a peer is, with what its requests say of that. */
static void opt_place(struct endpoint *p, const struct url *u, unsigned port,
                      struct str unix_path)
{
    p->path = unix_path;
    p->host = u->host.n > 0 ? u->host : STR("127.0.0.1");
    p->port = u->port > 0 ? u->port : port;
    if (unix_path.n > 0)
        buf_lit(&p->host_header, "localhost");
    else
        url_put(&p->host_header, p->host, p->port);
}

static struct str opt_env(const char *name)
{
    return str_of(getenv(name));
}

static int opt_check_path(struct str path, const char *what, struct err *e)
{
    struct os_addr unused;
    struct err why;

    if (os_unix(path, &unused, &why) == 0)
        return 0;
    return err_set(e, "%s: %s", what, why.text);
}

/* Turns TLS on, for a certificate of that name: without the dot at its end,
 * or the zone of an address (fe80::1%eth0), which no certificate has.  The
 * files are read, so that what is wrong with them is known at once. */
static int opt_tls(struct endpoint *p, struct str name, struct err *e)
{
    struct str rest = name;

    if (str_has(name, ':'))
        name = str_cut(&rest, '%');
    if (str_suffix(name, STR(".")))
        name.n--;
    if (name.n < 1 || name.n > 253)     /* RFC 1035 2.3.4, without the root */
        return err_set(e, "TLS: the name of a server has 1 to 253 characters");
    p->tls.on = true;
    p->tls.name = name;
    return tls_load(&p->tls, e);
}

/* DOCKER_CERT_PATH, or ~/.docker, with ca.pem, cert.pem and key.pem; without
 * a CA there, the system's. */
static int opt_engine_tls(struct endpoint *p, struct err *e)
{
    static const char *const file[] = { "/ca.pem", "/cert.pem", "/key.pem" };
    static struct buf path[3];  /* for as long as the program runs */
    struct str folder = opt_env("DOCKER_CERT_PATH"), home = opt_env("HOME");
    const char *found[3];
    size_t i;

    for (i = 0; i < 3; i++) {
        buf_add(&path[i], folder.n > 0 ? folder : home);
        buf_lit(&path[i], folder.n > 0 ? "" : "/.docker");
        buf_lit(&path[i], file[i]);
        buf_byte(&path[i], '\0');
        found[i] = os_exists(path[i].p) ? path[i].p : NULL;
    }
    if (folder.n > 0 && found[0] == NULL)
        return err_set(e, "%s: no such file", path[0].p);
    if ((found[1] == NULL) != (found[2] == NULL))
        return err_set(e, "%s: no such file, and a client certificate needs "
                          "its key", path[found[1] == NULL ? 1 : 2].p);
    p->tls.ca_file = found[0];
    p->tls.cert_file = found[1];
    p->tls.key_file = found[2];
    return opt_tls(p, p->host, e);
}

/* DOCKER_HOST: unix:///path, tcp://host:port, http://, https://. */
static int opt_engine(struct bridge *b, struct err *e)
{
    struct str host = opt_env("DOCKER_HOST");
    struct err why;
    struct url u;
    bool tcp, tls;

    conn_init(&b->engine, "docker", 4, 16);
    b->default_socket = host.n == 0 || str_eq(host, STR("unix://"));
    if (b->default_socket)
        host = STR("unix:///var/run/docker.sock");
    if (url_parse(host, &u, &why) != 0)
        return err_set(e, "DOCKER_HOST: %s", why.text);
    if (str_eq(u.scheme, STR("unix"))) {
        opt_place(&b->engine, &u, 0, u.path);
        return opt_check_path(u.path, "DOCKER_HOST", e);
    }
    tcp = str_eq(u.scheme, STR("tcp"));
    tls = str_eq(u.scheme, STR("https")) ||
          (tcp && opt_env("DOCKER_TLS_VERIFY").n > 0);
    if (!tls && !tcp && !str_eq(u.scheme, STR("http")))
        return err_set(e, "DOCKER_HOST is unix:///path, tcp://host:port, "
                          "http:// or https://, not %.*s:",
                       PUT(str_first(u.scheme, 40)));
    if (u.host.n == 0)
        return err_set(e, "DOCKER_HOST names no host");
    opt_place(&b->engine, &u, tls ? 2376 : 2375, STR(""));
    return tls ? opt_engine_tls(&b->engine, e) : 0;
}

/* A Go bool in the environment; what is none counts as false, with a
 * warning, as in Consul's own tool. */
static bool opt_env_bool(const char *name)
{
    struct str value = opt_env(name);
    bool on = false;

    if (value.n > 0 && !opt_bool(value, &on))
        log_at(LOG_WARN, "%s is true or false, not \"%.*s\": it counts as "
                         "false", name, PUT(value));
    return on;
}

/* The file that the first of two variables names that is set; NULL: none. */
static const char *opt_env_file(const char *name, const char *older)
{
    if (opt_env(name).n > 0)
        return opt_env(name).p;
    return opt_env(older).n > 0 ? opt_env(older).p : NULL;
}

/* TLS to Consul, with the files that its own tool takes. */
static int opt_consul_tls(struct endpoint *p, struct err *e)
{
    struct str verify = opt_env("CONSUL_HTTP_SSL_VERIFY");
    struct str name = opt_env("CONSUL_TLS_SERVER_NAME");
    bool on = true;

    if (verify.n > 0 && !opt_bool(verify, &on))
        return err_set(e, "CONSUL_HTTP_SSL_VERIFY is true or false, not "
                          "\"%.*s\"", PUT(verify));
    if (opt_env("CONSUL_CAPATH").n > 0)
        return err_set(e, "CONSUL_CAPATH is not supported: name a file of CAs "
                          "in CONSUL_CACERT instead");
    p->tls.insecure = !on;
    if (!on)
        log_at(LOG_WARN, "CONSUL_HTTP_SSL_VERIFY=false: ANYBODY between here "
                         "and Consul can read and change everything");
    p->tls.ca_file = opt_env_file("CONSUL_CACERT", "CONSUL_CACERT");
    p->tls.cert_file = opt_env_file("CONSUL_CLIENT_CERT", "CONSUL_TLSCERT");
    p->tls.key_file = opt_env_file("CONSUL_CLIENT_KEY", "CONSUL_TLSKEY");
    if ((p->tls.cert_file == NULL) != (p->tls.key_file == NULL))
        return err_set(e, "of CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY only "
                          "one is set: a client certificate needs its key");
    return opt_tls(p, name.n > 0 ? name : p->host, e);
}

/* CONSUL_HTTP_ADDR: [http://|https://]host[:port], or unix:///path. */
static int opt_consul_addr(struct str text, struct url *u, struct str *path,
                           bool *tls, struct err *e)
{
    static struct buf whole;    /* u points into it */
    struct err why;
    bool bare = str_find(text, STR("://")) == text.n;

    buf_lit(&whole, bare ? "http://" : "");
    buf_add(&whole, text);
    if (url_parse(buf_str(&whole), u, &why) != 0)
        return err_set(e, "CONSUL_HTTP_ADDR: %s", why.text);
    if (str_eq(u->scheme, STR("unix"))) {
        *path = u->path;
        return opt_check_path(u->path, "CONSUL_HTTP_ADDR", e);
    }
    if (str_eq(u->scheme, STR("https")))
        *tls = true;
    else if (!str_eq(u->scheme, STR("http")))
        return err_set(e, "CONSUL_HTTP_ADDR is host:port, http://, https:// "
                          "or unix:///path");
    return 0;
}

/* Tokens, passwords, namespaces: all of what Consul's own tool reads. */
static int opt_consul_access(struct registry *r, struct str user,
                             struct err *e)
{
    static const char *const part[2][2] = {
        { "CONSUL_NAMESPACE", "ns=" }, { "CONSUL_PARTITION", "partition=" }
    };
    struct str auth = opt_env("CONSUL_HTTP_AUTH");
    size_t i;

    for (i = 0; i < 2; i++)
        if (opt_env(part[i][0]).n > 0) {
            buf_lit(&r->query, r->query.n > 0 ? "&" : "");
            buf_lit(&r->query, part[i][1]);
            buf_url(&r->query, opt_env(part[i][0]));
        }
    auth = auth.n > 0 ? auth : user;
    buf_add(&r->user, auth);
    if (auth.n > 0 && str_index(auth, ':') == auth.n)
        buf_byte(&r->user, ':');
    buf_add(&r->token, opt_env("CONSUL_HTTP_TOKEN"));
    if (opt_env("CONSUL_HTTP_TOKEN_FILE").n > 0)
        r->token_file = opt_env("CONSUL_HTTP_TOKEN_FILE").p;
    reg_headers(r);
    if (reg_renew(r, e) < 0)
        return -1;
    return r->peer.headers.bad
        ? err_set(e, "CONSUL_HTTP_TOKEN: not a token") : 0;
}

static int opt_unknown_scheme(struct str scheme, struct err *e)
{
    struct buf known = { 0 };
    size_t i;

    for (i = 0; i < LENGTH(reg_schemes); i++) {
        buf_lit(&known, i > 0 ? ", " : "");
        buf_add(&known, reg_schemes[i].scheme);
    }
    err_set(e, "unknown registry \"%.*s\": the known ones are %.*s",
            PUT(str_first(scheme, 80)),
            PUT(buf_str(&known)));
    buf_free(&known);
    return -1;
}

/* The registry that the URI and the environment name. */
static int opt_registry(struct bridge *b, struct str uri, struct err *e)
{
    const struct reg_scheme *s = reg_schemes;
    struct registry *r = &b->reg;
    struct str path = STR(""), addr = opt_env("CONSUL_HTTP_ADDR"), user;
    struct err why;
    struct url u;
    bool tls;

    if (url_parse(uri, &u, &why) != 0)
        return err_set(e, "the registry URI is not valid: %s", why.text);
    while (s < reg_schemes + LENGTH(reg_schemes) &&
           !str_eq(s->scheme, u.scheme))
        s++;
    if (s == reg_schemes + LENGTH(reg_schemes))
        return opt_unknown_scheme(u.scheme, e);
    r->kind = s->kind;
    log_at(LOG_INFO, "Using %.*s adapter: %.*s%s%.*s", PUT(s->scheme),
           PUT(u.user.n > 0 ? u.scheme : STR("")),
           u.user.n > 0 ? "://" : "",
           PUT(u.user.n > 0 ? str_after(uri, '@') : uri));
    conn_init(&r->peer, s->kind->name, 4, 1);
    if (r->kind == &print_kind) {
        r->table = os_terminal(STDOUT_FILENO);
        if (r->table && b->opt.log_level.p == NULL)
            log_limit = LOG_WARN;       /* the table tells the rest */
        return 0;
    }
    user = u.user;
    tls = s->tls;
    if (s->port == 0) {
        path = u.path;
        if (opt_check_path(path, "the registry URI", e) != 0)
            return -1;
    } else if (u.host.n == 0 && addr.n > 0 &&
               opt_consul_addr(addr, &u, &path, &tls, e) != 0) {
        return -1;
    }
    tls = tls || (path.n == 0 && opt_env_bool("CONSUL_HTTP_SSL"));
    opt_place(&r->peer, &u, s->port, path);
    if (tls && opt_consul_tls(&r->peer, e) != 0)
        return -1;
    return opt_consul_access(r, user.n > 0 ? user : u.user, e);
}

/* Blots out user and password of the URI, which anybody can read in the list
 * of processes. */
static void opt_hide(char *uri)
{
    size_t at = str_find(str_of(uri), STR("://")) + 3;
    size_t end = strlen(uri) - str_after(str_of(uri), '@').n;

    while (at + 1 < end)
        uri[at++] = '*';
}

/* Shares out the descriptors that are free: one more for the engine, whose
 * events take one, and where there are enough one to look up a name or read
 * the token's file. */
static int opt_descriptors(struct bridge *b, struct err *e)
{
    size_t n = os_descriptors(2 * CONNS_MAX + 1);

    if (n < 3)
        return err_set(e, "too few file descriptors: %zu more are needed "
                          "(ulimit -n)", 3 - n);
    n -= n > 3;
    conn_limit(&b->engine, n - n / 2, 1);
    conn_limit(&b->reg.peer, n / 2, 0);
    return 0;
}

/* The first part of service IDs. */
static int opt_hostname(struct bridge *b, struct str given, struct err *e)
{
    static struct buf name;     /* of this machine */

    if (given.n == 0)
        os_hostname(&name);
    b->cfg.hostname = given.n > 0 ? given : buf_str(&name);
    return b->cfg.hostname.n > 0
        ? 0 : err_set(e, "this machine has no host name: give it by "
                         "-hostname");
}

/* Whether to give up: at start, or with -once, after so many tries. */
static bool opt_gives_up(const struct bridge *b)
{
    const struct flags *o = &b->opt;

    if (o->retry_attempts < 0)
        return false;
    if (b->with_reg.state == AWAY && (o->once || !b->with_reg.ever) &&
        b->with_reg.failures > (uint64_t)o->retry_attempts)
        return true;
    return b->with_engine.state == AWAY && o->once &&
           b->with_engine.failures > (uint64_t)o->retry_attempts;
}

/* With -on-exit deregister: removes what we registered, as far as the
 * registry lets us in five seconds. */
static void opt_leave(struct bridge *b)
{
    uint64_t end = b->now + EXIT_MS;

    bridge_leave(b);
    bridge_tick(b);
    while (b->now < end && !bridge_idle(b)) {
        bridge_wait(b, end);
        bridge_tick(b);
    }
    if (!bridge_idle(b) || !list_empty(&b->entries.later))
        log_at(LOG_WARN, "not all services could be deregistered");
}

/* Gives up what the bridge does not need. */
static void opt_confine(const struct bridge *b)
{
    struct buf files = { 0 };
    struct err e;

    if (!b->opt.confine)
        return;
    os_name(&files, "/etc/hosts");
    os_name(&files, "/etc/resolv.conf");
    os_name(&files, b->reg.token_file);
    os_name(&files, b->engine.tls.ca_file);
    os_name(&files, b->engine.tls.cert_file);
    os_name(&files, b->engine.tls.key_file);
    os_name(&files, b->reg.peer.tls.ca_file);
    os_name(&files, b->reg.peer.tls.cert_file);
    os_name(&files, b->reg.peer.tls.key_file);
    if (os_confine(buf_str(&files), b->opt.ip.n > 0, &e) != 0)
        log_at(LOG_WARN, "not as confined as it could be: %s", e.text);
    buf_free(&files);
}

/* Until something ends the program; returns its exit code. */
static int opt_run(struct bridge *b)
{
    while (!os_stop) {
        bridge_tick(b);
        if (b->opt.once && bridge_idle(b) && !b->verify &&
            (!b->look_for_ghosts || !b->whole_list ||
             !list_empty(&b->containers.later)))
            return !list_empty(&b->entries.later) ||
                   !list_empty(&b->containers.later) || b->shadowed > 0;
        if (opt_gives_up(b)) {
            log_at(LOG_ERROR, "giving up");
            return 1;
        }
        bridge_wait(b, UINT64_MAX);
        if (os_resync) {
            os_resync = 0;
            bridge_resync(b, true);
        }
        if (os_summary) {
            os_summary = 0;
            bridge_summary(b);
        }
    }
    if (b->opt.leave_nothing)
        opt_leave(b);
    return 0;
}

int main(int argc, char **argv)
{
    static struct bridge bridge;        /* zero, and not on the stack */
    struct bridge *b = &bridge;
    struct flags f = { .deregister = STR_INIT("always"),
                       .on_exit = STR_INIT("keep"), .confine = true,
                       .resync = 60, .retry_attempts = -1,
                       .retry_interval = 2000 };
    int code = opt_read(argc, argv, &f);
    struct err e;

    if (code >= 0)
        return code;
    b->opt = f;
    os_hide();
    if (os_signals(&e) == 0 && opt_check(b, &e) == 0 &&
        opt_hostname(b, f.hostname, &e) == 0) {
        log_at(LOG_INFO, "Starting registrator %s ...", VERSION);
        if (opt_registry(b, f.uri, &e) == 0 && opt_engine(b, &e) == 0 &&
            opt_descriptors(b, &e) == 0) {
            opt_hide(argv[argc - 1]);
            bridge_init(b);
            opt_confine(b);
            code = opt_run(b);
            conn_reset(&b->engine);     /* in TLS: says goodbye */
            conn_reset(&b->reg.peer);
            return code;
        }
    }
    log_at(LOG_ERROR, "%s", e.text);
    return 1;
}
