/* registrator - keeps a service registry in step with a Docker engine.
 *
 * It watches one engine and sees to it that every container port that others
 * can reach is a service in Consul, with the right address.  README.md tells
 * how to use it; this comment, what it can do.
 *
 *     cc -Os -o registrator registrator.c -lbearssl
 *
 * ==== 0. Contract ==========================================================
 *
 * To the engine it sends these requests and no others, all GET:
 *
 *     /version, /info           which engine it is; marks are made of its ID
 *     /events                   once a session, read for as long as it lasts
 *     /containers/json[?all=1]  at start and at each resync; all of Podman
 *     /containers/ID/json       of a container that may have changed
 *     /networks                 for a port that is exposed but not published
 *
 * To Consul's agent, with ns= and partition= if the environment names them:
 *
 *     GET /v1/status/leader     at the beginning of a session, then
 *     GET /v1/agent/self        this host's address (Member.Addr)
 *     GET /v1/agent/services    then, and at each resync
 *     PUT /v1/agent/service/register[?replace-existing-checks=true]
 *     PUT /v1/agent/service/deregister/ID
 *
 * Both sides over HTTP/1.1, on at most CONNS_MAX connections each, in TLS 1.2
 * if the address says so.
 *
 * Its files: those that the environment names (a token, certificates, keys);
 * with TLS and no CA named, the system's bundle of CAs; what the C library
 * reads to look up names (/etc/resolv.conf, /etc/hosts).
 * Its environment: DOCKER_HOST, DOCKER_TLS_VERIFY, DOCKER_CERT_PATH, HOME (for
 * ~/.docker), CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE,
 * CONSUL_HTTP_AUTH, CONSUL_HTTP_SSL, CONSUL_HTTP_SSL_VERIFY, CONSUL_CACERT,
 * CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY, CONSUL_TLSCERT, CONSUL_TLSKEY,
 * CONSUL_TLS_SERVER_NAME, CONSUL_NAMESPACE, CONSUL_PARTITION; CONSUL_CAPATH is
 * refused.
 * Its signals: SIGTERM and SIGINT end it within 5 s, SIGHUP compares
 * everything now, SIGUSR1 logs a summary; SIGPIPE is ignored.
 * It writes the log to stderr and, for print:, changes to stdout.  It opens no
 * listening socket, writes no file, starts no program, keeps nothing that it
 * could not ask for again, and logs no secret.
 *
 * On Linux, it leaves no core file, and other processes of its user cannot
 * read its memory.  After start, by seccomp (not with -confine=false), only
 * these system calls do anything:
 *
 *     bind brk clock_gettime close connect exit_group fcntl getrandom
 *     getsockname getsockopt ioctl madvise mmap mprotect munmap open poll
 *     read recvfrom recvmsg restart_syscall rt_sigprocmask rt_sigreturn
 *     sendmsg sendto setitimer setsockopt socket stat tkill uname write
 *     arm64: newfstatat openat ppoll
 *     arm: clock_gettime32 clock_gettime64 fcntl64 mmap2 sigreturn stat64
 *     statx
 *
 * and of these open only to read, mmap and mprotect without execution, tkill
 * for itself alone (abort), ioctl to find the number of an interface, fcntl
 * for flags and locks, socket for unix, IPv4 and IPv6, and with -ip for
 * netlink.  Before, it also calls
 *
 *     arch_prctl execve getpid pipe prctl prlimit64 rt_sigaction
 *     set_tid_address
 *
 * The rules that comments cite:
 *
 * Ports.  A port is reached at its binding if it is published; under its own
 * number in host mode; at the container's address on macvlan and ipvlan, and
 * with -internal; in the network of container X at X's binding, else at X's
 * address.  Any other port is no service.
 *
 * Address.  The first of: the label that -useIpFromLabel names; the
 * container's address where the port is reached there; -ip; the host address
 * of the binding, unless that is any; the host's address as the registry
 * knows it.
 *
 * Owner.  An entry that it writes carries the mark OWNER-CONTENT.  OWNER is 32
 * bits of the engine's ID and 32 of the options that make other services of
 * the same containers (-internal, -explicit, -ip, -hostname).  It removes what
 * carries its OWNER, and what has no mark but was, in this run, as it would
 * have written it, and is at the same place; with -cleanup also what has no
 * mark and a default ID of this host.  A service is written over an entry that
 * it may remove, that has its engine's half of OWNER, whose ID is the default
 * one of this very service, that has no mark and the same name, address and
 * port, and over any with -cleanup; but not over one that another registrator
 * has taken in this run, nor beside one whose ID differs by case alone.  What
 * others have written since the last list was read is not known, and Consul
 * cannot be asked to write only over what is known.
 *
 * The sections, each of which uses only what stands above it: 1 Base, 2 Text,
 * 3 Log, 4 JSON, 5 URL, 6 System, 7 TLS, 8 HTTP, 9 Connections, 10 Docker,
 * 11 Services (most of the rules), 12 Registries, 13 Entries (desired against
 * observed), 14 Containers, 15 Program.
 */

/* ==== 1. Base ==============================================================
 *
 * What the rest stands on: the platform, limits with their reasons, CHECK.
 */

#define _XOPEN_SOURCE 700       /* POSIX.1-2008 with its XSI part: search.h */

#include <arpa/inet.h>          /* inet_pton */
#include <bearssl.h>            /* 0.6, in section 7 alone */
#include <ctype.h>              /* isalnum, tolower */
#include <errno.h>
#include <fcntl.h>              /* fcntl, open: O_NONBLOCK */
#include <ifaddrs.h>            /* getifaddrs: not POSIX, but everywhere */
#include <limits.h>             /* INT_MAX */
#include <netdb.h>              /* getaddrinfo */
#include <netinet/in.h>         /* sockaddr_in, sockaddr_in6, IPPROTO_TCP */
#include <netinet/tcp.h>        /* TCP_NODELAY */
#include <poll.h>
#include <search.h>             /* tsearch, insque */
#include <signal.h>             /* sigaction */
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>             /* offsetof */
#include <stdint.h>
#include <stdlib.h>             /* malloc, free, qsort, getenv, exit */
#include <string.h>             /* memcpy, memcmp, memchr, memmove, strlen */
#include <sys/resource.h>       /* getrlimit */
#include <sys/socket.h>
#include <sys/stat.h>           /* stat: whose group the engine's socket has */
#include <sys/un.h>             /* sockaddr_un */
#include <time.h>               /* clock_gettime, gmtime_r */
#include <unistd.h>             /* read, write, close, pipe, gethostname */

#define VERSION "9.0.0"

/* What a read or a write moves at most; a single byte, where tests say so. */
#ifndef IO_MAX
#define IO_MAX 16384
#endif
/* All times are divided by this, so that tests need not wait for them. */
#ifndef HASTE
#define HASTE 1
#endif
#define MS(n) ((n) / HASTE)

enum {
    HTTP_LINE_MAX = 64 * 1024,  /* a line of a response; a token's file */
    BODY_MAX = 16 * 1024 * 1024, /* an answer held whole: one inspect */
    ELEMENT_MAX = 4 * 1024 * 1024, /* an event, or one entry of a list */
    CONTAINERS_MAX = 50 * 1000, /* of the engine: hosts have some hundreds */
    TEXT_MAX = 64 * 1024 * 1024, /* any text that we build */
    CHUNK_MAX = 64 * 1024,      /* of an arena that grows */
    JSON_DEPTH = 64,            /* inspect of Docker 28 has 6 */
    JSON_SIZE = 16 * 1000 * 1000, /* of the tokens of one text: a million */
    LOG_LINE_MAX = 2048,        /* the rest of a longer line is cut */
    ERR_MAX = 512,
    ALONE_MAX = 2,              /* on their own: the engine's events, a list */
    CONNS_MAX = 8 + ALONE_MAX,  /* connections to one peer */
    ADDRS_MAX = 8,              /* addresses of one host name */
    TURNS = 16,                 /* in a queue; log2 of SERVICES_MAX, and 2 */
    SERVICES_MAX = 10 * 1000,   /* of one container */
    SERVICES_SIZE = 16 * 1024 * 1024, /* of one container, in bytes */
    SERVICE_NAME_MAX = 255,     /* bytes of a service's name; its address */
    SERVICE_ID_MAX = 1024,      /* of its ID, which is part of a path */
    SERVICE_ATTR_MAX = 128 * 1024, /* an attribute; Linux's of an argument */
    SERVICE_TAGS_MAX = 16 * 1024, /* of its tags */
    OTHERS_SIZE = 8 * 1024 * 1024, /* of others' entries: 170,000 of them */
    NOTES_MAX = 100,            /* log lines about a container at a time */
    CONNECT_MS = MS(5000),      /* to one address */
    CALL_MS = MS(10 * 1000),    /* an answer, or the next part of it */
    ANSWER_MS = MS(60 * 1000),  /* a whole answer, however slowly it comes */
    RESEND_MS = MS(1000),       /* for a request over a connection that the
                                   peer was closing just then */
    SUBSCRIBE_MS = MS(500),     /* Docker 1.7 sends no head of /events */
    RELIST_MIN_MS = MS(1000),   /* from one list of a peer to the next */
    IN_DOUBT_MS = MS(1000),     /* a hung peer may still execute a call that
                                   timed out: when that is looked at, */
    IN_DOUBT_LISTS = 2,         /* ... and how often */
    PAUSE_MIN_MS = MS(100),     /* after the loss of a peer */
    PAUSE_PEER_MS = MS(10 * 1000), /* ... the longest */
    RETRY_MIN_MS = MS(1000),    /* after a call that failed */
    PAUSE_CALL_MS = MS(60 * 1000), /* ... the longest */
    ADDRESS_MS = MS(1000),      /* until an interface is asked for it again */
    EXIT_MS = MS(4500)          /* for -on-exit: 5 s, less what it takes */
};

#define CHECK(c) ((c) ? (void)0 : check_fail( \
    "registrator: bug: line " TEXT(__LINE__) ": " #c "\n"))
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
#define LENGTH(a) (sizeof(a) / sizeof *(a))
#define STATIC_CHECK(c) extern char static_check[(c) ? 1 : -1]

#ifdef __GNUC__
#define PRINTF(format_at, args_at) \
    __attribute__((format(printf, format_at, args_at)))
#else
#define PRINTF(format_at, args_at)
#endif

STATIC_CHECK(TEXT_MAX < INT_MAX);       /* so "%.*s" takes any text of ours */
STATIC_CHECK(3 * BODY_MAX <= TEXT_MAX); /* json_str: U+FFFD for each byte */

/* An invariant of this program does not hold: it stops at once, since nothing
 * that it does from here on could be trusted. */
static void check_fail(const char *what)
{
    (void)write(STDERR_FILENO, what, strlen(what));
    abort();
}

/* ==== 2. Text ========================== str_ buf_ mem_ arena_ list_ ====
 *
 * Slices, growing buffers, memory and lists.  Every byte from outside enters
 * a message through one of three encoders: buf_json, buf_url, buf_header.
 *
 * It calls nothing but its own.
 */

/* A piece of somebody else's bytes: borrowed, not terminated. */
struct str {
    const char *p;
    size_t n;
};

#define STR_INIT(lit) { (lit), sizeof(lit) - 1 }
#define STR(lit) ((struct str)STR_INIT(lit))
#define BYTES(x) ((struct str){ (const char *)&(x), sizeof(x) })
#define PUT(s) (int)(s).n, (s).p        /* for "%.*s" */

/* Without memory the program ends, and is started again by what runs it.  That
 * loses nothing: the engine and the registry know it all. */
static void mem_none(void)
{
    static const char why[] = "registrator: out of memory\n";

    (void)write(STDERR_FILENO, why, sizeof why - 1);
    _exit(1);
}

/* Never NULL. */
static void *mem_zero(size_t n)
{
    void *p = n > TEXT_MAX ? NULL : calloc(n ? n : 1, 1);

    if (p == NULL)
        mem_none();
    return p;
}

/* Memory that is released all at once: a chain of chunks, each as large as all
 * before it and taken from its end on.  It has no limit: take freely, and look
 * at `used` before more work is begun. */
struct arena {
    struct chunk *last;
    size_t room;                /* bytes of it that are left */
    size_t used;                /* bytes taken in all */
};

struct chunk {
    struct chunk *before;
    uint64_t data[];            /* nothing has to be aligned to more */
};

static void *arena_alloc(struct arena *a, size_t n)
{
    size_t room = a->used < CHUNK_MAX ? a->used : CHUNK_MAX;
    size_t unit = sizeof a->last->data[0];
    struct chunk *c;

    CHECK(n <= TEXT_MAX);
    a->used += n;
    n = (n + unit - 1) / unit * unit;
    if (a->last == NULL || n > a->room) {
        a->room = ((n > room ? n : room) / unit + 16) * unit;
        c = mem_zero(sizeof *c + a->room);
        c->before = a->last;
        a->last = c;
    }
    a->room -= n;
    return (char *)a->last->data + a->room;
}

static void arena_free(struct arena *a)
{
    struct chunk *before;

    for (; a->last != NULL; a->last = before) {
        before = a->last->before;
        free(a->last);
    }
    *a = (struct arena){ 0 };
}

/* A literal or another terminated text; NULL is empty. */
static struct str str_of(const char *z)
{
    return (struct str){ z, z == NULL ? 0 : strlen(z) };
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
    return s.n >= prefix.n && str_eq(str_upto(s, prefix.n), prefix);
}

static bool str_suffix(struct str s, struct str end)
{
    return s.n >= end.n && str_eq(str_from(s, s.n - end.n), end);
}

/* What a byte is, as the functions of ctype.h, which know ASCII alone: nothing
 * here calls setlocale.  White space, as JSON and HTTP see it. */
static int str_blank(int c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Not a blank, not a control character. */
static int str_graph(int c)
{
    return c > 0x20 && c != 0x7f;
}

/* How many bytes at the front of s are so. */
static size_t str_span(struct str s, int (*is)(int))
{
    size_t i = 0;

    while (i < s.n && is((unsigned char)s.p[i]))
        i++;
    return i;
}

static bool str_all(struct str s, int (*is)(int))
{
    return str_span(s, is) == s.n;
}

/* As str_eq, without regard to the case of ASCII letters. */
static bool str_caseeq(struct str a, struct str b)
{
    size_t i = 0;

    while (a.n == b.n && i < a.n &&
           tolower((unsigned char)a.p[i]) == tolower((unsigned char)b.p[i]))
        i++;
    return a.n == b.n && i == a.n;
}

/* Where c first stands in s, or s.n. */
static size_t str_index(struct str s, int c)
{
    const char *p = s.n ? memchr(s.p, c, s.n) : NULL;

    return p == NULL ? s.n : (size_t)(p - s.p);
}

static bool str_has(struct str s, int c)
{
    return str_index(s, c) < s.n;
}

/* Takes the part before the first c off *s, and c with it. */
static struct str str_cut(struct str *s, char c)
{
    struct str head = str_upto(*s, str_index(*s, c));

    *s = str_from(*s, head.n < s->n ? head.n + 1 : head.n);
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
    size_t at = needle.n > 0 ? str_index(s, *needle.p) : 0;

    while (at < s.n && !str_prefix(str_from(s, at), needle))
        at += 1 + str_index(str_from(s, at + 1), *needle.p);
    return at;
}

static struct str str_trim(struct str s)
{
    s = str_from(s, str_span(s, str_blank));
    while (s.n > 0 && str_blank(s.p[s.n - 1]))
        s.n--;
    return s;
}

/* A number of the base 10 or 16, at most max: digits and nothing else. */
static bool str_number(struct str s, unsigned base, uint64_t max,
                       uint64_t *out)
{
    uint64_t v = 0;
    size_t i;

    if (s.n == 0)
        return false;
    for (i = 0; i < s.n; i++) {
        size_t d = str_index(STR("0123456789abcdef"),
                             tolower((unsigned char)s.p[i]));

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

/* As Go's strconv.ParseBool. */
static bool str_bool(struct str s, bool *out)
{
    static const char *const word[] = { "0", "1", "f", "t", "F", "T", "FALSE",
        "TRUE", "false", "true", "False", "True" };
    size_t i;

    for (i = 0; i < LENGTH(word); i++)
        if (str_eq(s, str_of(word[i]))) {
            *out = i % 2 != 0;
            return true;
        }
    return false;
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
    static const uint32_t least[] = { 0, 0x80, 0x800, 0x10000 };
    const unsigned char *p = (const unsigned char *)s->p;
    unsigned more = p[0] < 0xc0 ? 0 : p[0] < 0xe0 ? 1 : p[0] < 0xf0 ? 2 : 3;
    uint32_t c = more > 0 ? p[0] & 0x7fu >> more : p[0];
    size_t n = 1;

    for (; n <= more && n < s->n && (p[n] & 0xc0) == 0x80; n++)
        c = c << 6 | (p[n] & 0x3f);
    if (n <= more || (more == 0 && c >= 0x80) || c < least[more] ||
        (c >= 0xd800 && c <= 0xdfff) || c > 0x10ffff) {
        n = 1;
        c = 0xfffd;
    }
    *s = str_from(*s, n);
    return c;
}

/* Copies s, and returns where to. */
static void *str_copy_to(void *p, struct str s)
{
    return s.n > 0 ? memcpy(p, s.p, s.n) : p;   /* s.p may be NULL */
}

static struct str str_copy(struct arena *a, struct str s)
{
    return (struct str){ str_copy_to(arena_alloc(a, s.n), s), s.n };
}

/* A terminated copy, for the caller to free. */
static char *str_dup(struct str s)
{
    return str_copy_to(mem_zero(s.n + 1), s);
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
    return (struct str){ b->p, b->n };
}

static void buf_free(struct buf *b)
{
    free(b->p);
    memset(b, 0, sizeof *b);
}

/* The finished array, in memory of a; b is released. */
static void *buf_array(struct buf *b, struct arena *a)
{
    void *p = str_copy_to(arena_alloc(a, b->n), buf_str(b));

    buf_free(b);
    return p;
}

/* The same for a text. */
static struct str buf_done(struct buf *b, struct arena *a)
{
    size_t n = b->n;

    return (struct str){ buf_array(b, a), n };
}

/* Room for n more bytes, of which the caller then counts b->n up. */
static bool buf_need(struct buf *b, size_t n)
{
    size_t max = b->max ? b->max : TEXT_MAX, room = b->room;
    char *p;

    b->bad = b->bad || n > max - b->n;
    if (b->bad || room - b->n >= n)
        return !b->bad;
    for (room = room < 128 ? 128 : room; room - b->n < n;)
        room = room > max / 2 ? max : room * 2;
    p = str_copy_to(mem_zero(room), buf_str(b));
    free(b->p);
    b->p = p;
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
    if (buf_need(b, 1))
        b->p[b->n++] = c;
}

/* c as UTF-8. */
static void buf_rune(struct buf *b, uint32_t c)
{
    static const unsigned char lead[] = { 0, 0xc0, 0xe0, 0xf0 };
    unsigned more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;

    buf_byte(b, (char)(lead[more] | c >> 6 * more));
    while (more-- > 0)
        buf_byte(b, (char)(0x80 | (c >> 6 * more & 0x3f)));
}

/* At least so many digits of v, in base 10 or 16. */
static void buf_number(struct buf *b, uint64_t v, unsigned base, size_t least)
{
    char digits[20];
    size_t at = sizeof digits;

    CHECK(least <= sizeof digits);
    do
        digits[--at] = "0123456789abcdef"[v % base];
    while ((v /= base) > 0 || sizeof digits - at < least);
    buf_add(b, (struct str){ digits + at, sizeof digits - at });
}

/* What vsnprintf would do with "%s", "%.Ns", "%d", "%u", "%x", "%zu", "%llx",
 * "%0Nd" or another number of at least N digits, "%%" and, for a slice with
 * all its NULs, "%.*s".  The C library's own brings floating point and wide
 * characters with it: 14 kB of 200. */
PRINTF(2, 0)
static void buf_vfmt(struct buf *b, const char *f, va_list args)
{
    for (;;) {
        struct str s = { f, strcspn(f, "%") };
        size_t n = 0;
        int v;

        buf_add(b, s);
        f += s.n;
        if (*f++ == '\0')
            return;
        for (f += *f == '.'; isdigit((unsigned char)*f); f++)
            n = n * 10 + (size_t)(*f - '0');
        switch (*f++) {
        case '%':
            buf_byte(b, '%');
            break;
        case '*':
            s.n = (size_t)va_arg(args, int);
            s.p = va_arg(args, const char *);
            buf_add(b, s);
            f++;
            break;
        case 's':
            s.p = va_arg(args, const char *);
            s.n = strnlen(s.p, n > 0 ? n : SIZE_MAX);
            buf_add(b, s);
            break;
        case 'd':
            v = va_arg(args, int);
            buf_lit(b, v < 0 ? "-" : "");
            buf_number(b, (uint64_t)(v < 0 ? -(int64_t)v : v), 10, n);
            break;
        case 'u':
        case 'x':
            buf_number(b, va_arg(args, unsigned), f[-1] == 'u' ? 10 : 16, n);
            break;
        case 'z':
            buf_number(b, va_arg(args, size_t), 10, n);
            f++;
            break;
        default:
            CHECK(f[-1] == 'l');
            buf_number(b, va_arg(args, unsigned long long), 16, n);
            f += strlen("lx");
        }
    }
}

/* In a function with a format and its arguments: adds what they make. */
#define BUF_FORMAT(b, format) do { \
        va_list args; \
        va_start(args, format); \
        buf_vfmt(b, format, args); \
        va_end(args); \
    } while (0)

PRINTF(2, 3)
static void buf_fmt(struct buf *b, const char *format, ...)
{
    BUF_FORMAT(b, format);
}

/* The same as a text in memory of a. */
PRINTF(2, 3)
static struct str str_fmt(struct arena *a, const char *format, ...)
{
    struct buf b = { 0 };

    BUF_FORMAT(&b, format);
    return buf_done(&b, a);
}

/* Adds s in lower case, as far as it is ASCII. */
static void buf_lower(struct buf *b, struct str s)
{
    size_t i;

    for (i = 0; i < s.n; i++)
        buf_byte(b, (char)tolower((unsigned char)s.p[i]));
}

/* Whether c stands for itself in a JSON string and is one byte of UTF-8. */
static int buf_json_plain(int c)
{
    return isprint(c) && c != '"' && c != '\\';
}

/* Adds s.  What is not UTF-8 becomes U+FFFD.  Escaped as JSON has it (RFC 8259
 * section 7) is what could mislead a reader: control characters, and those
 * that end a line or reverse the direction of text; for a place between quotes
 * also what has a meaning there. */
static void buf_escape(struct buf *b, struct str s, bool quoted)
{
    for (;;) {
        size_t plain = str_span(s, buf_json_plain);
        uint32_t c;

        buf_add(b, str_upto(s, plain));
        s = str_from(s, plain);
        if (s.n == 0)
            return;
        c = str_rune(&s);
        if (quoted && (c == '"' || c == '\\'))
            buf_byte(b, '\\');
        if (c == '\n')
            buf_lit(b, "\\n");
        else if (c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x61c ||
                 c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) ||
                 (c >= 0x2066 && c <= 0x2069))
            buf_fmt(b, "\\u%04x", c);
        else
            buf_rune(b, c);
    }
}

/* s as a JSON string. */
static void buf_json(struct buf *b, struct str s)
{
    buf_byte(b, '"');
    buf_escape(b, s, true);
    buf_byte(b, '"');
}

/* s as one part of a path or a query: what RFC 3986 section 2.3 does not
 * call unreserved is escaped, but for the colon, which IDs are full of. */
static void buf_url(struct buf *b, struct str s)
{
    for (; s.n > 0; s = str_from(s, 1))
        if (isalnum((unsigned char)*s.p) || str_has(STR("-._~:"), *s.p))
            buf_byte(b, *s.p);
        else
            buf_fmt(b, "%%%02x", (unsigned char)*s.p);
}

/* Text, in headers (RFC 9110 5.5). */
static int buf_header_char(int c)
{
    return c == ' ' || str_graph(c);
}

/* One header line.  A value that could begin another line, or is not text,
 * makes the buffer bad, so the message is never sent. */
static void buf_header(struct buf *b, const char *name, struct str value)
{
    b->bad = b->bad || !str_all(value, buf_header_char);
    buf_fmt(b, "%s: %.*s\r\n", name, PUT(value));
}

/* A ring of links, with its head among them, as insque and remque know them.
 * A link is a struct's first member or is reached by LIST_OF. */
struct link {
    struct link *next, *before;
};

#define LIST_OF(type, member, l) \
    ((type *)(void *)((char *)(uintptr_t)(l) - offsetof(type, member)))

static void list_init(struct link *l)
{
    l->next = l->before = l;
}

static bool list_empty(const struct link *l)
{
    return l->next == l;
}

/* Removes l from its list, if it is in one. */
static void list_remove(struct link *l)
{
    remque(l);
    list_init(l);
}

/* Moves l before `at`: if that is the head, to the end. */
static void list_insert(struct link *at, struct link *l)
{
    remque(l);
    insque(l, at->before);
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

/* A failure in words: written where it is known, logged once, by the code
 * that decides what to do about it. */
struct err {
    char text[ERR_MAX];
};

/* Returns -1, for `return err_set(e, ...)`. */
PRINTF(2, 3)
static int err_set(struct err *e, const char *format, ...)
{
    struct buf b = { 0 };
    size_t i;

    BUF_FORMAT(&b, format);
    for (i = 0; i < b.n && i < sizeof e->text - 1; i++)
        e->text[i] = b.p[i] == '\0' ? ' ' : b.p[i];
    e->text[i] = '\0';
    buf_free(&b);
    return -1;
}

/* A line begins with the time as Go's log package writes it, in UTC.  One that
 * cannot be written is lost; the next one is tried again. */
PRINTF(2, 3)
static void log_at(enum log_level level, const char *format, ...)
{
    struct buf text = { 0 }, line = { 0 };
    time_t now = time(NULL);
    struct tm tm = { 0 };

    if (level > log_limit)
        return;
    BUF_FORMAT(&text, format);
    (void)gmtime_r(&now, &tm);
    buf_fmt(&line, "%d/%02d/%02d %02d:%02d:%02d registrator: ",
            tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour,
            tm.tm_min, tm.tm_sec);
    buf_escape(&line, str_first(buf_str(&text), LOG_LINE_MAX), false);
    buf_lit(&line, text.n <= LOG_LINE_MAX ? "\n" : "...\n");
    (void)!write(STDERR_FILENO, line.p, line.n);
    buf_free(&text);
    buf_free(&line);
}

/* ==== 4. JSON ============================================== json_ ====
 *
 * Strict RFC 8259, in linear time, of bounded depth: what is not JSON is
 * refused.  One leniency: a string may hold bytes that are not UTF-8, which
 * old engines pass on; they become U+FFFD when it is read.
 *
 * Calls: str_ buf_ err_.
 */

enum json_type {
    JSON_NONE,          /* null, or what json_get answers if there is none */
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
    size_t at;          /* how far it has been read */
    struct json_token *token;   /* n of them */
    size_t n;
    struct buf memory;  /* of the tokens */
};

enum { JSON_ROOT = 1 };

static void json_free(struct json *j)
{
    buf_free(&j->memory);
    memset(j, 0, sizeof *j);
}

static enum json_type json_type(const struct json *j, size_t t)
{
    return j->token[t].type;
}

/* Adds a token for what has been read since `from`.  False: it has no room. */
static bool json_add(struct json *j, enum json_type type, size_t from)
{
    struct json_token t = { (uint32_t)from, (uint32_t)(j->at - from),
                            (uint32_t)++j->n, type };

    buf_add(&j->memory, BYTES(t));
    j->token = (struct json_token *)(void *)j->memory.p;
    return !j->memory.bad;
}

/* Reads all the bytes that are so, and returns how many. */
static size_t json_span(struct json *j, int (*is)(int))
{
    size_t n = str_span(str_from(j->text, j->at), is);

    j->at += n;
    return n;
}

/* Reads c, if that comes next. */
static bool json_char(struct json *j, char c)
{
    bool next = j->at < j->text.n && j->text.p[j->at] == c;

    j->at += next;
    return next;
}

/* The same, with white space before it. */
static bool json_take(struct json *j, char c)
{
    (void)json_span(j, str_blank);
    return json_char(j, c);
}

/* Reads what follows the first quote of a string. */
static bool json_string(struct json *j)
{
    struct str s = str_from(j->text, j->at);
    size_t from = j->at, i;

    for (i = 0; i < s.n && (unsigned char)s.p[i] >= 0x20 && s.p[i] != '"'; i++)
        if (s.p[i] == '\\') {
            i++;
            if (i == s.n || !str_has(STR("\"\\/bfnrtu"), s.p[i]) ||
                (s.p[i] == 'u' &&
                 str_span(str_first(str_from(s, i + 1), 4), isxdigit) < 4))
                return false;
        }
    j->at += i;
    return json_add(j, JSON_STRING, from) && json_char(j, '"');
}

/* Reads a word or a number: RFC 8259 sections 3 and 6. */
static bool json_bare(struct json *j)
{
    static const char *const word[] = { "null", "true", "false" };
    size_t from = j->at, i;

    for (i = 0; i < LENGTH(word); i++)
        if (str_prefix(str_from(j->text, from), str_of(word[i]))) {
            j->at += strlen(word[i]);
            return json_add(j, i == 0 ? JSON_NONE : JSON_BOOL, from);
        }
    (void)json_char(j, '-');
    if (!json_char(j, '0') && json_span(j, isdigit) == 0)
        return false;
    if (json_char(j, '.') && json_span(j, isdigit) == 0)
        return false;
    if (json_char(j, 'e') || json_char(j, 'E')) {
        (void)(json_char(j, '+') || json_char(j, '-'));
        if (json_span(j, isdigit) == 0)
            return false;
    }
    return json_add(j, JSON_NUMBER, from);
}

/* Reads a value with all that is in it, at most `depth` levels. */
static bool json_value(struct json *j, unsigned depth)
{
    bool object = json_take(j, '{');
    char end = object ? '}' : ']';
    size_t t = j->n;

    if (!object && !json_char(j, '['))
        return json_char(j, '"') ? json_string(j) : json_bare(j);
    if (depth == 0 ||
        !json_add(j, object ? JSON_OBJECT : JSON_ARRAY, j->at - 1))
        return false;
    if (!json_take(j, end)) {
        do {
            if (object && !(json_take(j, '"') && json_string(j) &&
                            json_take(j, ':')))
                return false;
            if (!json_value(j, depth - 1))
                return false;
        } while (json_take(j, ','));
        if (!json_take(j, end))
            return false;
    }
    j->token[t].n = (uint32_t)(j->at - j->token[t].at);
    j->token[t].next = (uint32_t)j->n;
    return true;
}

/* Reads the text, whose bytes must stay as long as the tokens are used. */
static int json_parse(struct json *j, struct str text, struct err *e)
{
    CHECK(text.n <= TEXT_MAX);
    json_free(j);
    *j = (struct json){ .text = text, .memory.max = JSON_SIZE };
    (void)json_add(j, JSON_NONE, 0);
    if (json_value(j, JSON_DEPTH) &&
        str_all(str_from(text, j->at), str_blank))
        return 0;
    return err_set(e, "not JSON, or too much of it, at byte %zu", j->at);
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

    *i = *i == 0 ? t + 1 : j->token[object ? *i + 1 : *i].next;
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

/* Takes what follows \u off *s: one character, for which there may have to be
 * a second \u.  Half a surrogate pair is U+FFFD. */
static uint32_t json_escape(struct str *s)
{
    uint64_t c = 0, low = 0;

    CHECK(str_number(str_upto(*s, 4), 16, 0xffff, &c));
    *s = str_from(*s, 4);
    if (c < 0xd800 || c > 0xdfff)
        return (uint32_t)c;
    if (str_prefix(*s, STR("\\u")))
        CHECK(str_number(str_upto(str_from(*s, 2), 4), 16, 0xffff, &low));
    if (c > 0xdbff || low < 0xdc00 || low > 0xdfff)
        return 0xfffd;
    *s = str_from(*s, 6);
    return (uint32_t)(0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00));
}

/* The text that a string stands for, as well-formed UTF-8, in memory of a;
 * empty for what is not a string. */
static struct str json_str(const struct json *j, size_t t, struct arena *a)
{
    static const char control[] = "\b\f\n\r\t";
    struct str s = json_raw(j, t);
    struct buf out = { 0 };

    if (json_type(j, t) != JSON_STRING)
        return STR("");
    if (str_all(s, buf_json_plain))
        return str_copy(a, s);
    while (s.n > 0) {
        uint32_t c = str_rune(&s);

        if (c == '\\') {
            size_t k = str_index(STR("bfnrtu"), *s.p);

            c = str_rune(&s);
            c = k < 5 ? (uint32_t)control[k] : k == 5 ? json_escape(&s) : c;
        }
        buf_rune(&out, c);
    }
    return buf_done(&out, a);
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

/* A splitter finds the objects at one depth of a text, however that is cut
 * into pieces: 0 in a stream of events, 1 in the lists of both peers; deeper,
 * only those in arrays: what else is there is passed over.  It only counts
 * brackets; json_parse judges each object. */
struct splitter {
    unsigned at;        /* the depth of the objects */
    char open;          /* the bracket that the text begins with */
    unsigned depth;
    bool begun;         /* that bracket has been seen */
    bool listed;        /* what is open at the depth of the objects has them */
    bool quoted;        /* in a string */
    bool escaped;       /* there, behind a backslash */
    size_t names;       /* strings at the depth of the objects, less the
                           objects if each must have one */
    struct buf element;
};

static void json_split_start(struct splitter *s, unsigned at, char open)
{
    buf_free(&s->element);
    *s = (struct splitter){ .at = at, .open = open, .listed = at == 0,
                            .element.max = ELEMENT_MAX };
}

/* Whether all of a list has been seen.  A stream never ends so. */
static bool json_split_done(const struct splitter *s)
{
    return s->begun && s->depth == 0 && s->names == 0;
}

/* Goes past one byte.  False: it cannot stand there. */
static bool json_split_byte(struct splitter *s, char c)
{
    bool outside = s->depth == 0, here = s->depth == s->at && s->listed;
    bool between = outside || here;

    if (s->quoted) {
        s->quoted = c != '"' || s->escaped;
        s->escaped = c == '\\' && !s->escaped;
    } else if (c == '"' && !outside) {
        s->quoted = true;
        s->names += between;
    } else if (c == '{' || c == '[') {
        if ((outside && (c != s->open || (s->begun && s->at > 0))) ||
            (here && c != '{'))
            return false;
        s->names -= here && s->at == 1 && s->open == '{';
        s->begun = true;
        s->depth++;
        if (s->depth == s->at)
            s->listed = s->at == 1 || c == '[';
    } else if (!outside && (c == '}' || c == ']')) {
        s->depth--;
    } else if (between) {
        return str_blank(c) || (!outside && (c == ',' || c == ':')) ||
               (c == 0x1e && s->at == 0);       /* RFC 7464 */
    }
    return true;
}

static bool json_split_inside(const struct splitter *s)
{
    return s->depth > s->at && s->listed;
}

/* Goes on with *in and takes off what it used.  1: a whole object is in
 * s->element until the next call, or that is bad: of more than ELEMENT_MAX
 * bytes.  0: *in is used up.  -1: a byte that cannot be there has passed. */
static int json_split(struct splitter *s, struct str *in)
{
    if (!json_split_inside(s)) {
        s->element.n = 0;
        s->element.bad = false;
    }
    while (in->n > 0) {
        char c = *in->p;
        bool inside = json_split_inside(s), ok = json_split_byte(s, c);

        *in = str_from(*in, 1);
        if (!ok)
            return -1;
        if (inside || json_split_inside(s))
            buf_byte(&s->element, c);
        if (inside && !json_split_inside(s))
            return 1;
    }
    return 0;
}

/* ==== 5. URL ================================================ url_ ====
 *
 * Where a peer is.  No CR, LF, NUL or blank leaves this section.
 *
 * Calls: str_ buf_ err_.
 */

/* scheme:[//[user@]host[:port]][/path]: pieces of the text it was read from,
 * each empty if it is missing.  The user is still percent-encoded. */
struct url {
    struct str scheme, user, host, path;
    unsigned port;      /* 0: none was given */
};

/* host[:port] or [IPv6][:port]. */
static bool url_host(struct str s, struct url *u)
{
    bool bracket = str_prefix(s, STR("["));
    size_t at = str_index(s, bracket ? ']' : ':');
    struct str port = str_from(s, at);

    u->host = str_upto(s, at);
    if (bracket) {
        if (at == 1 || port.n == 0)
            return false;
        u->host = str_from(u->host, 1);
        port = str_from(port, 1);
    }
    return port.n == 0 ||
           (*port.p == ':' && str_port(str_from(port, 1), &u->port));
}

/* Adds s with each %XX as the byte that it stands for (RFC 3986 2.1).  False:
 * a % without two hexadecimal digits. */
static bool url_decode(struct buf *b, struct str s)
{
    for (; s.n > 0; s = str_from(s, 1)) {
        uint64_t byte = (unsigned char)*s.p;

        if (byte == '%') {
            if (s.n < 3 ||
                !str_number(str_upto(str_from(s, 1), 2), 16, 255, &byte))
                return false;
            s = str_from(s, 2);
        }
        buf_byte(b, (char)byte);
    }
    return true;
}

/* RFC 3986 section 3, as far as the addresses of peers need it.  The text
 * itself is never in the error: it may hold a password. */
static int url_parse(struct str s, struct url *u, struct err *e)
{
    struct str host;

    *u = (struct url){ .user = STR(""), .host = STR("") };
    if (!str_all(s, str_graph))
        return err_set(e, "a blank or control character in it");
    if (!str_has(s, ':') || *s.p == ':')
        return err_set(e, "no scheme, as in consul://");
    u->scheme = str_cut(&s, ':');
    u->path = s;
    if (!str_prefix(s, STR("//")))
        return 0;
    s = str_from(s, 2);
    u->path = str_from(s, str_index(s, '/'));
    s.n -= u->path.n;
    host = str_after(s, '@');
    if (host.n < s.n)
        u->user = str_upto(s, s.n - host.n - 1);
    return url_host(host, u) ? 0
        : err_set(e, "not host:port or [IPv6]:port with a port up to 65535");
}

/* Adds host or host:port, IPv6 in brackets (RFC 3986 3.2.2). */
static void url_put(struct buf *b, struct str host, unsigned port)
{
    buf_fmt(b, str_has(host, ':') ? "[%.*s]" : "%.*s", PUT(host));
    if (port > 0)
        buf_fmt(b, ":%u", port);
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

/* ==== 6. System ========================================= os_ ip_ ====
 *
 * The only section with sockets, files, clocks, host names and signals.  Only
 * two of its functions wait: os_wait, as it should, and os_resolve, which the
 * C library gives no other way.
 *
 * Calls: str_ buf_ err_.
 * Kernel: socket connect read poll open close pipe fcntl sigaction
 * clock_gettime getaddrinfo getifaddrs gethostname getsockopt setsockopt
 * stat getentropy isatty getrlimit prctl getpid alarm.
 */

int getentropy(void *, size_t);         /* _XOPEN_SOURCE hides it */

enum io { IO_OK, IO_WAIT, IO_END, IO_FAILED };

struct os_addr {
    union {
        struct sockaddr sa;
        struct sockaddr_un un;
        struct sockaddr_storage any;
    } is;
    socklen_t n;
};

/* Milliseconds on a clock that never jumps. */
static uint64_t os_now(void)
{
    struct timespec t;

    CHECK(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* The signals that have come, and the pipe that ends os_wait for them.  As
 * process 1, where no signal has a default action, they still work. */
static volatile sig_atomic_t os_stop, os_resync, os_summary;
static int os_pipe[2] = { -1, -1 };

/* SIGALRM ends what SIGTERM has not: a name server that is silent keeps
 * getaddrinfo for longer than 5 s. */
static void os_signal(int number)
{
    int saved = errno;

    if (number == SIGALRM)
        _exit(EXIT_SUCCESS);
    os_resync |= number == SIGHUP;
    os_summary |= number == SIGUSR1;
    if ((number == SIGTERM || number == SIGINT) && !os_stop) {
        (void)alarm(5);
        os_stop = 1;
    }
    (void)!write(os_pipe[1], "", 1);    /* full: os_wait ends all the same */
    errno = saved;
}

static bool os_nonblock(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

static int os_signals(struct err *e)
{
    static const int number[] = { SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGALRM };
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

/* Waits until one of p[n] is ready, a signal comes or ms have passed.  There
 * must be room for one more behind them. */
static void os_wait(struct pollfd *p, size_t n, uint64_t ms)
{
    char drain[64];

    p[n] = (struct pollfd){ .fd = os_pipe[0], .events = POLLIN };
    if (poll(p, (nfds_t)n + 1, ms > INT_MAX ? INT_MAX : (int)ms) > 0 &&
        p[n].revents != 0)
        while (read(os_pipe[0], drain, sizeof drain) > 0)
            continue;
}

/* The addresses of host:port, at most max, in the order in which to try them.
 * It may wait for a name server (musl: 5 s). */
static int os_resolve(struct str host, unsigned port, struct os_addr *a,
                      size_t max, size_t *n, struct err *e)
{
    const struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
                                    .ai_flags = AI_NUMERICSERV };
    struct addrinfo *list, *i;
    struct buf name = { 0 };
    int failed;

    buf_add(&name, host);
    buf_byte(&name, '\0');
    buf_fmt(&name, "%u", port);
    buf_byte(&name, '\0');
    failed = getaddrinfo(name.p, name.p + host.n + 1, &hints, &list);
    buf_free(&name);
    *n = 0;
    if (failed)
        return err_set(e, "cannot resolve %.*s (DNS: %s)", PUT(host),
                       gai_strerror(failed));
    for (i = list; i != NULL && *n < max; i = i->ai_next) {
        CHECK(i->ai_addrlen <= sizeof a->is);
        memcpy(&a[*n].is, i->ai_addr, i->ai_addrlen);
        a[(*n)++].n = i->ai_addrlen;
    }
    freeaddrinfo(list);
    return 0;
}

static int os_unix(struct str path, struct os_addr *a, struct err *e)
{
    if (path.n == 0 || path.n >= sizeof a->is.un.sun_path)
        return err_set(e, "the path of a socket has 1 to %zu bytes",
                       sizeof a->is.un.sun_path - 1);
    memset(a, 0, sizeof *a);
    a->n = sizeof a->is.un;
    a->is.un.sun_family = AF_UNIX;
    memcpy(a->is.un.sun_path, path.p, path.n);
    return 0;
}

/* Starts to connect.  *fd is the new socket, or -1; when that is writable,
 * os_connected has the outcome.  False: it has failed at once. */
static bool os_connect(const struct os_addr *a, int *fd, int *error)
{
    static const int option[][3] = {    /* at best: a failure is harmless */
        { IPPROTO_TCP, TCP_NODELAY, 1 }, { SOL_SOCKET, SO_KEEPALIVE, 1 },
#ifdef TCP_KEEPIDLE                     /* a dead peer is noticed in 60 s */
        { IPPROTO_TCP, TCP_KEEPIDLE, 30 }, { IPPROTO_TCP, TCP_KEEPINTVL, 10 },
        { IPPROTO_TCP, TCP_KEEPCNT, 3 },
#endif
    };
    bool tcp = a->is.sa.sa_family != AF_UNIX;
    size_t i;

    *fd = socket(a->is.sa.sa_family, SOCK_STREAM, 0);
    for (i = 0; *fd >= 0 && tcp && i < LENGTH(option); i++)
        (void)setsockopt(*fd, option[i][0], option[i][1], &option[i][2],
                         sizeof option[i][2]);
    /* A full backlog of a unix socket answers EAGAIN: nothing was begun. */
    if (*fd >= 0 && os_nonblock(*fd) &&
        (connect(*fd, &a->is.sa, a->n) == 0 || errno == EINPROGRESS))
        return true;
    *error = errno;
    return false;
}

static bool os_connected(int fd, int *error)
{
    socklen_t n = sizeof *error;

    CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, error, &n) == 0);
    return *error == 0;
}

static void os_close(int fd)
{
    if (fd >= 0)
        (void)close(fd);
}

/* Reads what is there, at most *n bytes, and sets *n to what was read. */
static enum io os_read_into(int fd, void *p, size_t *n, int *error)
{
    ssize_t got = read(fd, p, *n < IO_MAX ? *n : IO_MAX);

    *error = got < 0 ? errno : 0;
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? IO_WAIT : IO_FAILED;
    *n = (size_t)got;
    return got == 0 ? IO_END : IO_OK;
}

/* Reads what is there, at most IO_MAX bytes, to the end of b. */
static enum io os_read(int fd, struct buf *b, int *error)
{
    size_t n = IO_MAX;
    enum io io = IO_FAILED;

    *error = EFBIG;
    if (buf_need(b, n))
        io = os_read_into(fd, b->p + b->n, &n, error);
    b->n += io == IO_OK ? n : 0;
    return io;
}

/* Writes all of s, however long that takes.  False: errno has the reason. */
static bool os_write_all(int fd, struct str s)
{
    ssize_t n;

    while (s.n > 0 &&
           ((n = write(fd, s.p, s.n)) > 0 || (n < 0 && errno == EINTR)))
        s = str_from(s, n > 0 ? (size_t)n : 0);
    return s.n == 0;
}

/* Whether it is a terminal. */
static bool os_terminal(int fd)
{
    return isatty(fd) == 1;
}

/* Writes what there is room for off the front of *s. */
static enum io os_write(int fd, struct str *s, int *error)
{
    ssize_t n = write(fd, s->p, s->n < IO_MAX ? s->n : IO_MAX);

    *error = n < 0 ? errno : 0;
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? IO_WAIT : IO_FAILED;
    *s = str_from(*s, (size_t)n);
    return IO_OK;
}

/* The whole of a small file. */
static int os_file(const char *path, struct buf *b, struct err *e)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK), error = errno;
    enum io io = fd < 0 ? IO_FAILED : IO_OK;

    while (io == IO_OK)
        io = os_read(fd, b, &error);
    os_close(fd);
    return io == IO_END ? 0 : err_set(e, "%s: %s", path, strerror(error));
}

static bool os_exists(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0;
}

/* Why a unix socket cannot be used, with what to do about it; another error
 * stays as it is. */
static void os_socket_hint(const struct os_addr *a, int error, struct err *e)
{
    struct stat st;

    if (error == ENOENT)
        err_set(e, "no such socket: is its server running?  In a container, "
                   "mount it there (-v)");
    else if (stat(a->is.un.sun_path, &st) != 0)
        return;
    else if (!S_ISSOCK(st.st_mode))
        err_set(e, "not a socket (Docker makes a directory where what is to "
                   "be mounted does not exist)");
    else if (error == EACCES || error == EPERM)
        err_set(e, "permission denied: run as root, or in the socket's group "
                   "(docker run --group-add %u)", (unsigned)st.st_gid);
}

/* Bytes that nobody can guess.  False: there are none to be had. */
static bool os_random(void *p, size_t n)
{
    return getentropy(p, n) == 0;
}

/* Reads an IP address: its 4 or 16 bytes; 0: it is not one. */
static size_t ip_parse(struct str name, unsigned char ip[16])
{
    char *z = str_dup(name);
    size_t n = inet_pton(AF_INET, z, ip) == 1 ? 4
               : inet_pton(AF_INET6, z, ip) == 1 ? 16 : 0;

    free(z);
    return n;
}

/* Adds an IP address of 4 or 16 bytes as RFC 5952 writes it: the first of the
 * longest runs of two or more zero groups is "::".  Of another length, it adds
 * nothing. */
static void ip_format(struct buf *b, const unsigned char *ip, size_t n)
{
    size_t i, k, from = 16, zeros = 2;  /* the run, in bytes */

    if (n == 4)
        buf_fmt(b, "%d.%d.%d.%d", ip[0], ip[1], ip[2], ip[3]);
    if (n != 16)
        return;
    for (i = 0; i < 16; i = k + 2) {
        for (k = i; k < 16 && ip[k] == 0 && ip[k + 1] == 0; k += 2)
            continue;
        if (k - i > zeros) {
            from = i;
            zeros = k - i;
        }
    }
    for (i = 0; i < 16; i += 2)
        if (i == from) {
            buf_lit(b, "::");
            i += zeros - 2;
        } else {
            buf_fmt(b, i == 0 || i == from + zeros ? "%x" : ":%x",
                    (unsigned)ip[i] << 8 | ip[i + 1]);
        }
}

/* Adds the IP address of a socket address, if it has one; none of fe80::/10,
 * which means nothing without its interface. */
static void ip_of_socket(const struct sockaddr *sa, struct buf *b)
{
    const unsigned char *p = (const void *)sa;
    const unsigned char *six = p + offsetof(struct sockaddr_in6, sin6_addr);

    if (sa->sa_family == AF_INET)
        ip_format(b, p + offsetof(struct sockaddr_in, sin_addr), 4);
    else if (sa->sa_family == AF_INET6 && (six[0] != 0xfe || six[1] >> 6 != 2))
        ip_format(b, six, 16);
}

/* Whether an address cannot be reached from other hosts. */
static bool ip_is_local(struct str ip)
{
    return str_prefix(ip, STR("127.")) || str_eq(ip, STR("0.0.0.0")) ||
           str_eq(ip, STR("::1")) || str_eq(ip, STR("::"));
}

/* An address of an interface: the first of IPv4, else of IPv6.  False: there
 * is no such interface, or it has none. */
static bool os_interface(struct str name, struct buf *b)
{
    static const int family[] = { AF_INET, AF_INET6 };
    struct ifaddrs *list, *i;
    size_t k;

    if (getifaddrs(&list) != 0)
        return false;
    for (k = 0; k < LENGTH(family); k++)
        for (i = list; i != NULL && b->n == 0; i = i->ifa_next)
            if (i->ifa_addr != NULL && str_eq(str_of(i->ifa_name), name) &&
                i->ifa_addr->sa_family == family[k])
                ip_of_socket(i->ifa_addr, b);
    freeifaddrs(list);
    return b->n > 0;
}

/* This machine's name; nothing if it has none. */
static void os_hostname(struct buf *b)
{
    char name[256] = "";        /* a longer one may not be terminated */

    if (gethostname(name, sizeof name - 1) == 0)
        buf_lit(b, name);
}

/* The sandbox: after start this program can only do what it does anyway, so
 * that somebody who takes it over can do no more.  On Linux with musl 1.2.3 or
 * later; which system calls another C library makes is not for us to know. */
#ifdef __linux__
#include <sys/prctl.h>
#ifndef __GLIBC__
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
#include <sys/syscall.h>

/* Of linux/filter.h and linux/seccomp.h, which musl-gcc does not find. */
struct os_step {                /* sock_filter */
    uint16_t code;
    uint8_t yes, no;            /* steps to skip */
    uint32_t k;
};

enum {
    OS_LOAD = 0x20,             /* BPF_LD | BPF_W | BPF_ABS */
    OS_AND = 0x54,              /* BPF_ALU | BPF_AND | BPF_K */
    OS_IS = 0x15,               /* BPF_JMP | BPF_JEQ | BPF_K */
    OS_ANSWER = 0x06,           /* BPF_RET | BPF_K */
    OS_ALLOW = 0x7fff0000,      /* SECCOMP_RET_ALLOW */
    OS_REFUSE = 0x00050000 | ENOSYS, /* SECCOMP_RET_ERRNO */
    OS_CALL_AT = 0, OS_ARCH_AT = 4, OS_ARGUMENTS_AT = 16, /* seccomp_data */
    OS_NO_READ = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC
};

/* Steps, before and after which the number of the system call is loaded.  They
 * allow it if it is this one, the second if in addition an argument (0 is the
 * first) has this value under a mask. */
#define ALLOW(call) { OS_IS, 0, 1, (call) }, { OS_ANSWER, 0, 0, OS_ALLOW }
#define ALLOW_IF(call, argument, mask, value) \
    { OS_IS, 0, 5, (call) }, \
    { OS_LOAD, 0, 0, OS_ARGUMENTS_AT + 8 * (argument) }, \
    { OS_AND, 0, 0, (mask) }, ALLOW(value), { OS_LOAD, 0, 0, OS_CALL_AT }

/* Refuses every system call but these from here on, which the head of this
 * file lists: with ENOSYS, so that a C library that tries another one goes on.
 * -1: that cannot be had. */
static int os_sandbox(bool interface, struct err *e)
{
    const struct os_step step[] = {
        { OS_LOAD, 0, 0, OS_ARCH_AT }, { OS_IS, 1, 0, OS_ARCH },
        { OS_ANSWER, 0, 0, OS_REFUSE }, { OS_LOAD, 0, 0, OS_CALL_AT },
        ALLOW(SYS_bind), ALLOW(SYS_brk), ALLOW(SYS_close), ALLOW(SYS_connect),
        ALLOW(SYS_exit_group), ALLOW(SYS_getrandom), ALLOW(SYS_getsockname),
        ALLOW(SYS_getsockopt), ALLOW(SYS_madvise), ALLOW(SYS_munmap),
        ALLOW(SYS_read), ALLOW(SYS_recvfrom), ALLOW(SYS_restart_syscall),
        ALLOW(SYS_rt_sigprocmask), ALLOW(SYS_rt_sigreturn), ALLOW(SYS_sendto),
        ALLOW(SYS_setitimer), ALLOW(SYS_setsockopt), ALLOW(SYS_uname),
        ALLOW(SYS_write),
        ALLOW(SYS_recvmsg), ALLOW(SYS_sendmsg), /* musl 1.2.4 and later */
        ALLOW_IF(SYS_mprotect, 2, PROT_EXEC, 0),
        ALLOW_IF(SYS_tkill, 0, UINT32_MAX, (uint32_t)getpid()),
        ALLOW_IF(SYS_ioctl, 1, UINT32_MAX, SIOCGIFINDEX), /* fe80::1%eth0 */
        ALLOW_IF(SYS_socket, 0, UINT32_MAX, AF_UNIX),
        ALLOW_IF(SYS_socket, 0, UINT32_MAX, AF_INET),
        ALLOW_IF(SYS_socket, 0, UINT32_MAX, AF_INET6),
        ALLOW_IF(SYS_socket, 0, UINT32_MAX, interface ? AF_NETLINK : AF_UNIX),
#if defined __arm__             /* fcntl: below F_SETOWN, which signals */
        ALLOW(SYS_clock_gettime32), ALLOW(SYS_clock_gettime64),
        ALLOW(SYS_poll), ALLOW(SYS_sigreturn), ALLOW(SYS_stat64),
        ALLOW(SYS_statx), ALLOW_IF(SYS_open, 1, OS_NO_READ, 0),
        ALLOW_IF(SYS_fcntl64, 1, ~7u, 0), ALLOW_IF(SYS_mmap2, 2, PROT_EXEC, 0),
#elif defined __aarch64__
        ALLOW(SYS_clock_gettime), ALLOW(SYS_ppoll), ALLOW(SYS_newfstatat),
        ALLOW_IF(SYS_openat, 2, OS_NO_READ, 0),
        ALLOW_IF(SYS_fcntl, 1, ~7u, 0), ALLOW_IF(SYS_mmap, 2, PROT_EXEC, 0),
#else
        ALLOW(SYS_clock_gettime), ALLOW(SYS_poll), ALLOW(SYS_stat),
        ALLOW_IF(SYS_open, 1, OS_NO_READ, 0),
        ALLOW_IF(SYS_fcntl, 1, ~7u, 0), ALLOW_IF(SYS_mmap, 2, PROT_EXEC, 0),
#endif
        { OS_ANSWER, 0, 0, OS_REFUSE }
    };
    const struct {              /* sock_fprog */
        unsigned short n;
        const struct os_step *step;
    } filter = { LENGTH(step), step };

    return prctl(PR_SET_SECCOMP, 2L /* SECCOMP_MODE_FILTER */, &filter) == 0
        ? 0 : err_set(e, "seccomp: %s", strerror(errno));
}
#else
static int os_sandbox(bool interface, struct err *e)
{
    (void)interface;
    return err_set(e, "seccomp: not in a build for this system and C library");
}
#endif

/* Whether as many descriptors may be open as all connections need, and what
 * start and a name server take beside them.  With fewer, poll fails. */
static int os_descriptors(struct err *e)
{
    const unsigned needed = 2 * CONNS_MAX + 12;
    struct rlimit limit;

    return getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= needed
        ? 0 : err_set(e, "ulimit -n: %u descriptors are needed", needed);
}

/* Keeps secrets in memory, on Linux: no core file, no reading by other
 * processes of the same user.  Best effort; failure is harmless. */
static void os_protect_memory(void)
{
#ifdef __linux__
    (void)prctl(PR_SET_DUMPABLE, 0L, 0L, 0L, 0L);
    (void)prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L);
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
 * Calls: str_ buf_ mem_ arena_ err_ os_ ip_.
 */

enum {
    CERTS_MAX = 10,             /* in a server's chain */
    CERT_MAX = 64 * 1024,       /* bytes; with a thousand names it has 30 kB */
    PEM_MAX = 8 * 1024 * 1024   /* a bundle of all public CAs has 220 kB */
};

/* What we look at in a certificate. */
struct cert_info {
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
    struct cert_info *ca;       /* all of the CA file, and */
    size_t cas;                 /* how many they are */
    br_x509_certificate *chain; /* our own */
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
    struct err why;             /* more than BearSSL's error says, or empty */
    bool ca_failed;             /* a CA is to blame or missing, and not what
                                   the server has sent */
    bool ready;                 /* the handshake is done */
    bool dead;                  /* nothing can be sent: read out the alert */
    bool wants_write;           /* a record waits for room to be sent */
    unsigned char in[BR_SSL_BUFSIZE_INPUT];
    unsigned char out[BR_SSL_BUFSIZE_OUTPUT / 4];
};

/* ---- DER (X.690), as far as certificates need it ---- */

/* The tag of the next element; 0: there is none. */
static unsigned der_tag(struct str s)
{
    return s.n > 0 ? (unsigned char)*s.p : 0;
}

/* Takes an element of this tag off *s; *in is its content.  False: there is
 * none, or it is malformed, and *s stays. */
static bool der_take(struct str *s, unsigned tag, struct str *in)
{
    const unsigned char *p = (const unsigned char *)s->p;
    size_t n, more = 0, i;

    if (s->n < 2 || p[0] != tag || (tag & 31) == 31)    /* of several bytes */
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
    *in = str_upto(str_from(*s, 2 + more), n);
    *s = str_from(*s, 2 + more + n);
    return true;
}

/* ---- Certificates (RFC 5280 section 4) ---- */

/* Whether one of the names, dNSName [2] or iPAddress [7], is the one wanted.
 * The "*" of "*.example.com" stands for one label (RFC 6125 6.4.3).  Adds all
 * to `text`: a, b, 10.0.0.1. */
static bool cert_is_for(struct str names, struct str want, struct buf *text)
{
    unsigned char bytes[16];
    struct str ip = { (const char *)bytes, ip_parse(want, bytes) };
    struct str parent = want, san;
    bool found = false;

    (void)str_cut(&parent, '.');
    for (;;) {
        unsigned tag = der_tag(names);

        if (!der_take(&names, tag, &san))
            return found;
        if (tag == 0x82 || tag == 0x87)
            buf_lit(text, text->n > 0 ? ", " : "");
        if (tag == 0x82) {
            buf_add(text, san);
            found |= ip.n == 0 &&
                     (str_caseeq(san, want) ||
                      (parent.n > 0 && str_prefix(san, STR("*.")) &&
                       str_caseeq(str_from(san, 2), parent)));
        } else if (tag == 0x87) {
            ip_format(text, (const unsigned char *)san.p, san.n);
            found |= ip.n > 0 && str_eq(san, ip);
        }
    }
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
    unsigned id = 0;

    if (!der_take(&x, 6, &oid))
        return false;
    (void)der_take(&x, 1, &critical);   /* BearSSL looks at it */
    if (!der_take(&x, 4, &value) || !der_take(&value, der_tag(value), &in))
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

    *c = (struct cert_info){ .der = der, .may_sign = true };
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
        tag = der_tag(tbs);
        if (!der_take(&tbs, tag, &part))
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
    size_t i = t->minimal.num_certs;

    if (i < CERTS_MAX) {
        t->cert[i].max = CERT_MAX;
        buf_add(&t->cert[i], (struct str){ (const char *)p, n });
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
    const struct tls_creds *creds = t->config->creds;
    unsigned error = BR_ERR_X509_NOT_TRUSTED;
    size_t i, k;

    t->ca_failed = true;
    br_x509_minimal_vtable.start_chain(&t->minimal.vtable, NULL);
    for (i = 0; error != 0 && i <= n; i++) {
        if (i > 0) {
            tls_feed(t, c[i - 1].der, c[i - 1].der.n);
            br_x509_minimal_vtable.end_cert(&t->minimal.vtable);
        }
        for (k = 0; error != 0 && k < creds->cas; k++)
            if (i == 0 ? str_eq(creds->ca[k].der, c->der)
                       : str_eq(creds->ca[k].subject, c[i - 1].issuer))
                error = tls_try_ca(t, &creds->ca[k]);
    }
    return error;
}

/* Without verification: any certificate with a key will do.  The decoder
 * gets it in one piece: after an error, one more would make 0.6 run on into
 * nowhere. */
static unsigned tls_accept_any_cert(struct tls *t)
{
    const br_x509_pkey *key;

    br_x509_decoder_init(&t->decoder, NULL, NULL);
    br_x509_decoder_push(&t->decoder, t->cert->p, t->cert->n);
    key = br_x509_decoder_get_pkey(&t->decoder);
    if (key == NULL)
        return BR_ERR_X509_UNSUPPORTED;
    t->minimal.pkey = *key;
    t->minimal.key_usages = BR_KEYTYPE_SIGN;
    return 0;
}

static unsigned tls_end_chain(const br_x509_class **x)
{
    struct tls *t = (void *)x;
    size_t n = t->minimal.num_certs, i;
    struct cert_info c[CERTS_MAX];
    unsigned error = BR_ERR_X509_NOT_TRUSTED;

    for (i = 0; i < n; i++)
        if (i == CERTS_MAX || t->cert[i].bad)
            return BR_ERR_X509_LIMIT_EXCEEDED;
    if (n == 0)
        return BR_ERR_X509_EMPTY_CHAIN;
    if (t->config->insecure)
        error = tls_accept_any_cert(t);
    else if (tls_inspect(t, n, c, &t->why) == 0)
        error = tls_verify(t, n, c);
    if (error == 0)
        t->minimal.err = BR_ERR_X509_OK;        /* it may tell the key */
    return error;
}

/* ---- The files of a configuration ---- */

static void pem_collect(void *to, const void *p, size_t n)
{
    buf_add(to, (struct str){ p, n });
}

/* OpenSSL's TRUSTED CERTIFICATE has more in it than a certificate. */
static bool pem_is(struct str name, const char *kind)
{
    return str_suffix(name, str_of(kind)) &&
           !str_prefix(name, STR("TRUSTED "));
}

/* The objects of a PEM file (RFC 7468) whose name ends in `kind`, in memory of
 * a: one at least.  NULL: why.  BearSSL wants lines that end in LF, the last
 * one too. */
static br_x509_certificate *pem_load(struct arena *a, const char *path,
                                     const char *kind, size_t *n,
                                     struct err *e)
{
    struct buf text = { .max = PEM_MAX }, der = { 0 }, list = { 0 };
    int event, last = BR_PEM_END_OBJ, failed = os_file(path, &text, e);
    br_x509_certificate object, *found;
    br_pem_decoder_context pem;
    size_t i = 0;

    buf_byte(&text, '\n');
    br_pem_decoder_init(&pem);
    while (!failed && last != BR_PEM_ERROR && i < text.n) {
        i += text.p[i] == '\r' ? 1
             : br_pem_decoder_push(&pem, text.p + i, 1);
        event = br_pem_decoder_event(&pem);
        last = event != 0 ? event : last;
        if (event == BR_PEM_BEGIN_OBJ) {
            der.n = 0;
            br_pem_decoder_setdest(&pem, pem_collect, &der);
        } else if (event == BR_PEM_END_OBJ &&
                   pem_is(str_of(br_pem_decoder_name(&pem)), kind)) {
            object.data_len = der.n;
            object.data = buf_array(&der, a);
            buf_add(&list, BYTES(object));
        }
    }
    *n = list.n / sizeof object;
    found = buf_array(&list, a);
    if (!failed && last != BR_PEM_END_OBJ)
        failed = err_set(e, "%s: PEM that is malformed, encrypted or cut "
                            "short", path);
    else if (!failed && *n == 0)
        failed = err_set(e, "%s: no %s in it", path, kind);
    buf_free(&der);
    buf_free(&text);
    return failed ? NULL : found;
}

/* The CAs: of the file given, else of where systems keep them all.  What they
 * are is not asked here; tls_try_ca judges the one that a server needs. */
static int tls_load_cas(struct tls_creds *c, struct tls_config *cfg,
                        struct err *e)
{
    static const char *const bundle[] = {
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem"
    };
    br_x509_certificate *cert;
    size_t i;

    for (i = 0; cfg->ca_file == NULL && i < LENGTH(bundle); i++)
        if (os_exists(bundle[i]))
            cfg->ca_file = bundle[i];
    if (cfg->ca_file == NULL)
        return err_set(e, "TLS: no CA is given, and this system has no file "
                          "of them: mount one by -v, and name it in "
                          "CONSUL_CACERT or its folder in DOCKER_CERT_PATH");
    cert = pem_load(&c->arena, cfg->ca_file, "CERTIFICATE", &c->cas, e);
    if (cert == NULL)
        return -1;
    c->ca = arena_alloc(&c->arena, c->cas * sizeof *c->ca);
    for (i = 0; i < c->cas; i++) {
        struct str der = { (const char *)cert[i].data, cert[i].data_len };

        if (!cert_parse(der, &c->ca[i]))
            return err_set(e, "%s: malformed certificate", cfg->ca_file);
    }
    return 0;
}

/* Our own certificate with its chain, and its key: PKCS#1, PKCS#8 or SEC1. */
static int tls_load_own(struct tls_creds *c, const struct tls_config *cfg,
                        struct err *e)
{
    br_x509_certificate *key;
    size_t keys;

    if (cfg->cert_file == NULL)
        return 0;
    c->chain = pem_load(&c->arena, cfg->cert_file, "CERTIFICATE", &c->chain_n,
                        e);
    key = c->chain == NULL ? NULL : pem_load(&c->arena, cfg->key_file,
                                             "PRIVATE KEY", &keys, e);
    if (key == NULL)
        return -1;
    br_skey_decoder_init(&c->key);
    br_skey_decoder_push(&c->key, key->data, key->data_len);
    return keys == 1 && br_skey_decoder_last_error(&c->key) == 0
        ? 0 : err_set(e, "%s: not one PRIVATE KEY that is supported: RSA or "
                         "EC P-256, P-384 or P-521, not encrypted",
                      cfg->key_file);
}

static void tls_free_creds(struct tls_creds *c)
{
    if (c != NULL)
        arena_free(&c->arena);
    free(c);
}

/* Reads all files.  If they are good they replace those of before, which no
 * connection may use any more. */
static int tls_load(struct tls_config *cfg, struct err *e)
{
    struct tls_creds *c = mem_zero(sizeof *c);

    if ((!cfg->insecure && tls_load_cas(c, cfg, e) != 0) ||
        tls_load_own(c, cfg, e) != 0) {
        tls_free_creds(c);
        return -1;
    }
    tls_free_creds(cfg->creds);
    cfg->creds = c;
    return 0;
}

/* Reads them again, before each session.  If they are not good those of before
 * stay in force, and tls_why tells the reason. */
static void tls_reload(struct tls_config *cfg)
{
    *cfg->reload_error.text = '\0';
    if (cfg->on)
        (void)tls_load(cfg, &cfg->reload_error);
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
    br_ssl_engine_context *e = &t->client.eng;
    br_x509_minimal_context *x = &t->minimal;
    int i;

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
    for (i = br_sha256_ID; i <= br_sha512_ID; i++) {
        br_ssl_engine_set_hash(e, i, hash[i - br_sha256_ID]);
        br_x509_minimal_set_hash(x, i, hash[i - br_sha256_ID]);
    }
    br_ssl_engine_add_flags(e, BR_OPT_NO_RENEGOTIATION);
    t->x509 = br_x509_minimal_vtable;
    t->x509.append = tls_append;
    t->x509.end_chain = tls_end_chain;
    x->vtable = &t->x509;
    br_ssl_engine_set_x509(e, &x->vtable);
}

/* Begins a connection, with our certificate at hand for a server that asks for
 * it.  A name that is an address is not sent as SNI (RFC 6066 section 3).
 * NULL: why, in e. */
static struct tls *tls_open(const struct tls_config *cfg, struct err *e)
{
    const struct tls_creds *c = cfg->creds;
    const br_rsa_private_key *rsa;
    const br_ec_private_key *ec;
    unsigned char seed[32], ip[16];
    struct tls *t;
    char *name;

    CHECK(cfg->name.n > 0 && c != NULL);
    if (!os_random(seed, sizeof seed)) {
        err_set(e, "TLS: no source of randomness");
        return NULL;
    }
    t = mem_zero(sizeof *t);
    t->config = cfg;
    tls_profile(t);
    rsa = br_skey_decoder_get_rsa(&c->key);
    ec = br_skey_decoder_get_ec(&c->key);
    if (rsa != NULL)
        br_ssl_client_set_single_rsa(&t->client, c->chain, c->chain_n, rsa,
                                     br_rsa_i31_pkcs1_sign);
    else if (ec != NULL)
        br_ssl_client_set_single_ec(&t->client, c->chain, c->chain_n, ec,
                                    BR_KEYTYPE_SIGN, 0, &br_ec_prime_i31,
                                    br_ecdsa_i31_sign_asn1);
    br_ssl_engine_set_buffers_bidi(&t->client.eng, t->in, sizeof t->in, t->out,
                                   sizeof t->out);
    br_ssl_engine_inject_entropy(&t->client.eng, seed, sizeof seed);
    name = ip_parse(cfg->name, ip) > 0 ? NULL : str_dup(cfg->name);
    (void)br_ssl_client_reset(&t->client, name, 0);     /* the engine tells */
    free(name);
    return t;
}

#define TLS_ALERT(n) (BR_ERR_RECV_FATAL_ALERT + (n))

/* The errors on which a person can act; of others the number is told. */
static const struct {
    int error;
    const char *text;
} tls_errors[] = {
    { BR_ERR_UNSUPPORTED_VERSION, "no TLS 1.2 is spoken on this port" },
    { BR_ERR_X509_NOT_TRUSTED, "the server's certificate is not signed by a "
        "known CA, or it does not send its intermediate certificates" },
    { BR_ERR_X509_UNSUPPORTED, "a certificate's key or signature is not "
        "supported (RSA PKCS#1, ECDSA P-256, P-384, P-521, with SHA-2)" },
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
    { TLS_ALERT(40), "handshake_failure (it wants a client certificate, or "
        "nothing is in common: TLS 1.2 with ECDHE on P-256, P-384 or P-521 "
        "and AES-GCM is needed)" },
    { TLS_ALERT(42), "bad_certificate (ours is missing or not accepted)" },
    { TLS_ALERT(48), "unknown_ca (of our client certificate)" },
    { TLS_ALERT(51), "decrypt_error (is our key that of our certificate?)" },
    { TLS_ALERT(70), "protocol_version (TLS 1.2 is needed)" },
    { TLS_ALERT(116), "certificate_required (it wants a client certificate)" },
};

/* Why the engine has failed: a sentence, which a person can act on. */
static int tls_why(const struct tls *t, struct err *e)
{
    int error = br_ssl_engine_last_error(&t->client.eng);
    bool alert = error >= BR_ERR_RECV_FATAL_ALERT;
    const char *reload = t->config->reload_error.text;
    struct err why = t->why;
    size_t i;

    if (memcmp(t->in, "HTTP", 4) == 0)  /* in place of a record's head */
        err_set(&why, "the server speaks plain HTTP on this port: use its TLS "
                      "port, or consul://");
    for (i = 0; *why.text == '\0' && i < LENGTH(tls_errors); i++)
        if (tls_errors[i].error == error)
            err_set(&why, "%s", tls_errors[i].text);
    if (*why.text == '\0')
        err_set(&why, alert ? "alert %d" : "error %d of BearSSL",
                error % BR_ERR_RECV_FATAL_ALERT);
    return err_set(e, "TLS: %s%s%s%s%s%s",
                   alert ? "the server refuses: " : "", why.text,
                   t->ca_failed ? ": see the CAs in " : "",
                   t->ca_failed ? t->config->ca_file : "",
                   *reload != '\0' ? "; the files could not be read again: "
                                   : "", reload);
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
    size_t n;

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
        if (io == IO_OK)
            br_ssl_engine_recvrec_ack(e, n);
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

/* Ends a connection, or what is none.  It says goodbye if that can be said at
 * once: 0.6 never reaches its closed state with data unread, so nothing waits
 * for it. */
static void tls_close(struct tls *t, int fd)
{
    struct str s;
    size_t i;
    int error;

    if (t == NULL)
        return;
    if (t->ready && !t->dead) {
        br_ssl_engine_close(&t->client.eng);
        s.p = (const char *)br_ssl_engine_sendrec_buf(&t->client.eng, &s.n);
        while (s.n > 0 && os_write(fd, &s, &error) == IO_OK)
            continue;
    }
    for (i = 0; i < CERTS_MAX; i++)
        buf_free(&t->cert[i]);
    free(t);
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
    HTTP_BODY,          /* *body is a piece of the body; an empty one: the head
                           has ended */
    HTTP_DONE,          /* the message is complete */
    HTTP_BAD = -1       /* what err_set returns */
};

/* A response as far as it has been read. */
struct http {
    enum { IN_STATUS, IN_FIELDS, IN_BODY, IN_CHUNK_SIZE, IN_CHUNK,
           IN_CHUNK_END, IN_TRAILER, IN_NOTHING } state;
    unsigned status;
    bool http10;
    bool close;         /* no second response comes on this connection */
    bool chunked;
    uint64_t left;      /* of the body or the chunk, in bytes; above HTTP_MOST:
                           what comes until the connection ends */
};

#define HTTP_MOST (UINT64_MAX / 2)

static void http_start(struct http *h)
{
    *h = (struct http){ .left = UINT64_MAX };
}

/* tchar of RFC 9110 5.6.2. */
static int http_token_char(int c)
{
    return isalnum(c) || str_has(STR("!#$%&'*+-.^_`|~"), c);
}

/* RFC 9110 5.5. */
static int http_value_char(int c)
{
    return c == '\t' || buf_header_char(c);
}

/* One header line: those that this program uses. */
static int http_field(struct http *h, struct str line, struct err *e)
{
    struct str value = line, name = str_cut(&value, ':');
    uint64_t v;

    if (name.n == line.n || name.n == 0 || !str_all(name, http_token_char) ||
        !str_all(value, http_value_char))
        return err_set(e, "not a header line: %.*s", PUT(line));
    value = str_trim(value);
    if (str_caseeq(name, STR("Content-Length"))) {
        if (!str_u64(value, HTTP_MOST, &v) ||
            (h->left <= HTTP_MOST && h->left != v))
            return err_set(e, "Content-Length: %.*s", PUT(value));
        h->left = v;
    } else if (str_caseeq(name, STR("Transfer-Encoding"))) {
        if (!str_caseeq(value, STR("chunked")) || h->chunked || h->http10)
            return err_set(e, "Transfer-Encoding: %.*s", PUT(value));
        h->chunked = true;
    } else if (str_caseeq(name, STR("Connection"))) {   /* RFC 9112 9.3 */
        while (value.n > 0)
            h->close |= str_caseeq(str_trim(str_cut(&value, ',')),
                                   STR("close"));
    }
    return 0;
}

/* The status line: HTTP/1.x SP 3DIGIT [SP reason]. */
static int http_status(struct http *h, struct str line, struct err *e)
{
    struct str reason = line, version = str_cut(&reason, ' ');
    struct str code = str_cut(&reason, ' ');
    uint64_t v;

    h->http10 = h->close = str_eq(version, STR("HTTP/1.0"));
    if ((!h->http10 && !str_eq(version, STR("HTTP/1.1"))) || code.n != 3 ||
        !str_u64(code, 599, &v) || v < 100 || v == 101 ||
        !str_all(reason, http_value_char))
        return err_set(e, "its status line is \"%.*s\"",
                       PUT(str_first(line, 80)));
    h->status = (unsigned)v;
    h->state = IN_FIELDS;
    return 0;
}

/* The head has ended: what follows it. */
static int http_head_end(struct http *h, struct err *e)
{
    if (h->chunked && h->left <= HTTP_MOST)
        return err_set(e, "both Content-Length and Transfer-Encoding");
    if (h->status < 200)                /* RFC 9110 15.2: the real one comes */
        http_start(h);
    else if (h->status == 204 || h->status == 304 || h->left == 0)
        h->state = IN_NOTHING;
    else
        h->state = h->chunked ? IN_CHUNK_SIZE : IN_BODY;
    return 0;
}

/* RFC 9112 7.1: hexadecimal digits, then extensions that are ignored. */
static int http_chunk_size(struct http *h, struct str line, struct err *e)
{
    struct str size = str_upto(line, str_span(line, isxdigit));
    struct str more = str_from(line, size.n);   /* blanks may begin it */

    if (!str_number(size, 16, HTTP_MOST, &h->left) ||
        (more.n > 0 && !str_prefix(str_trim(more), STR(";"))))
        return err_set(e, "a chunk's size is \"%.*s\"",
                       PUT(str_first(line, 40)));
    h->state = h->left > 0 ? IN_CHUNK : IN_TRAILER;
    return 0;
}

/* One line, in the states that read lines. */
static int http_line(struct http *h, struct str line, struct err *e)
{
    if (h->state == IN_STATUS)
        return http_status(h, line, e);
    if (h->state == IN_FIELDS)
        return line.n > 0 ? http_field(h, line, e) : http_head_end(h, e);
    if (h->state == IN_CHUNK_SIZE)
        return http_chunk_size(h, line, e);
    if (h->state == IN_CHUNK_END && line.n > 0)
        return err_set(e, "a chunk that is longer than its size");
    if (h->state == IN_CHUNK_END)
        h->state = IN_CHUNK_SIZE;
    else if (line.n == 0)               /* the trailer's end */
        h->state = IN_NOTHING;
    return 0;
}

/* Goes on with *in, takes off what it used, and returns what it found. */
static enum http_found http_next(struct http *h, struct str *in,
                                 struct str *body, struct err *e)
{
    while (h->state != IN_NOTHING && in->n > 0) {
        struct str line = str_first(*in, HTTP_LINE_MAX);
        bool head = h->state == IN_FIELDS;
        size_t n;

        if (h->state == IN_BODY || h->state == IN_CHUNK) {
            n = h->left < in->n ? (size_t)h->left : in->n;
            h->left -= n;
            if (h->left == 0)
                h->state = h->state == IN_BODY ? IN_NOTHING : IN_CHUNK_END;
            *body = str_upto(*in, n);
            *in = str_from(*in, n);
            return HTTP_BODY;
        }
        n = str_find(line, STR("\r\n"));
        if (h->state == IN_STATUS &&
            !str_prefix(line, str_first(STR("HTTP/1."), line.n)))
            return err_set(e, "it does not speak HTTP: \"%.*s\"",
                           PUT(str_first(line, 16)));
        if (n == HTTP_LINE_MAX)
            return err_set(e, "a line of more than %zu bytes", n);
        if (n == line.n)
            return HTTP_MORE;
        *in = str_from(*in, n + 2);
        if (http_line(h, str_upto(line, n), e) != 0)
            return HTTP_BAD;
        *body = STR("");
        if (head && h->state != IN_FIELDS && h->state != IN_STATUS)
            return HTTP_BODY;
    }
    return h->state == IN_NOTHING ? HTTP_DONE : HTTP_MORE;
}

/* Whether the message is complete if the connection ends here. */
static bool http_ends(const struct http *h)
{
    return h->state == IN_BODY && h->left > HTTP_MOST;
}

/* A whole request.  `headers` are lines that buf_header made; the path is
 * made of buf_url's parts.  Whatever could break out of its place makes b
 * bad. */
static void http_request(struct buf *b, const char *method, struct str path,
                         struct str host, struct str headers, struct str body)
{
    b->bad = b->bad || !str_all(path, str_graph);
    buf_fmt(b, "%s %.*s HTTP/1.1\r\n", method, PUT(path));
    buf_header(b, "Host", host);
    buf_add(b, headers);
    buf_lit(b, body.n > 0 ? "Content-Type: application/json\r\n" : "");
    if (body.n > 0 || !str_eq(str_of(method), STR("GET")))
        buf_fmt(b, "Content-Length: %zu\r\n", body.n);
    buf_lit(b, "\r\n");
    buf_add(b, body);
}

/* ==== 9. Connections ============ conn_ retry_ index_ queue_ side_ ====
 *
 * Requests to a peer over a few connections that are kept open, one request a
 * connection at a time; above them what the engine's and the registry's side
 * have in common: pauses that grow, an index and a queue of what is kept, the
 * session, and the list of all that the peer has.
 *
 * Callbacks: body() only reads, and refuses by -1.  done() may send requests
 * and end the session.  Neither opens a connection, nor frees what its caller
 * holds.
 *
 * Calls: str_ buf_ mem_ list_ err_ log_ json_ os_ url_ tls_ http_.
 */

/* The answer to a request, valid only during done(). */
struct answer {
    unsigned status;            /* 0: there is none, and err says why */
    struct str body;            /* what the request's body() did not take */
    const struct err *err;      /* NULL with status 0: canceled by us */
    bool not_connected;         /* with status 0: nothing has been sent */
};

struct request;
typedef int conn_body_fn(struct request *, struct str, struct err *);
typedef void conn_done_fn(struct request *, const struct answer *);

/* A request: of the connections from conn_send on, freed after done(). */
struct request {
    struct link link;           /* in endpoint.waiting until it has one */
    struct buf bytes;
    struct buf answer;          /* what body() does not take of it, so far */
    bool alone;                 /* gets a connection that is then closed */
    bool stream;                /* its answer has no end and no deadline */
    void *context;              /* for the two functions */
    conn_body_fn *body;         /* gets the body of a 200 as it comes, first an
                                   empty piece with the head; NULL: the body is
                                   collected */
    conn_done_fn *done;
};

/* A connection.  What counts in which state:
 *
 *     state       waits for                    request  deadline
 *     FREE        nothing: fd is -1            none     none
 *     CONNECTING  the socket to be connected   yes      CONNECT_MS an address
 *     HANDSHAKE   TLS                          yes      CALL_MS
 *     IDLE        a request                    none     none
 *     ASKED       the answer's first byte      yes      CALL_MS
 *     READING     the rest of the answer       yes      CALL_MS a piece, and
 *                                                       ANSWER_MS in all
 *
 * A stream has no deadline from ASKED on. */
struct conn {
    enum { CONN_FREE, CONN_CONNECTING, CONN_HANDSHAKE, CONN_IDLE, CONN_ASKED,
           CONN_READING } state;
    struct endpoint *peer;
    int fd;
    struct tls *tls;            /* NULL: in the clear, or not yet */
    size_t address;             /* of the peer's, those that were tried */
    struct request *request;
    size_t sent;                /* bytes of the request */
    bool reused;                /* an answer has come over it before */
    uint64_t asked;             /* when the request was given to it */
    uint64_t deadline;
    struct buf in;              /* unparsed bytes */
    struct http http;
};

/* A peer: the engine, or the registry. */
struct endpoint {
    const char *name;           /* in messages */
    struct str path;            /* of a unix socket, or */
    struct str host;            /* a name or address, and */
    unsigned port;
    struct buf host_header;
    struct buf headers;         /* token, user and password */
    struct tls_config tls;
    size_t pool;                /* connections that are kept, at most */
    struct os_addr address[ADDRS_MAX];
    size_t addresses;           /* 0: must be looked up */
    struct link waiting;        /* requests without a connection */
    bool closed_idle;           /* the peer closed a kept connection: it may
                                   have been restarted */
    struct conn conn[CONNS_MAX]; /* the pool, then those of `alone` */
};

static void conn_init(struct endpoint *p, const char *name, size_t pool)
{
    size_t i;

    CHECK(pool + ALONE_MAX <= CONNS_MAX);
    *p = (struct endpoint){ .name = name, .pool = pool };
    list_init(&p->waiting);
    for (i = 0; i < CONNS_MAX; i++)
        p->conn[i].fd = -1;
}

/* Where the peer is: the path of a socket, or else host and port. */
static void conn_set_address(struct endpoint *p, struct str path,
                             struct str host, unsigned port)
{
    p->path = path;
    p->host = host;
    p->port = port;
    p->host_header.n = 0;
    if (path.n > 0)
        buf_lit(&p->host_header, "localhost");
    else
        url_put(&p->host_header, host, port);
}

/* Turns TLS on, for a certificate of that name: without the dot at its end
 * or the zone of an address (fe80::1%eth0), which no certificate has.  Reads
 * the files, so that what is wrong with them is said at once. */
static int conn_use_tls(struct endpoint *p, struct str name, struct err *e)
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

/* A request of the peer p, for the caller to complete and send. */
static struct request *conn_request(struct endpoint *p, const char *method,
                                    struct str path, struct str body)
{
    struct request *r = mem_zero(sizeof *r);

    list_init(&r->link);
    r->answer.max = BODY_MAX;
    http_request(&r->bytes, method, path, buf_str(&p->host_header),
                 buf_str(&p->headers), body);
    return r;
}

/* Sends it as soon as there is a connection; done() is called once. */
static void conn_send(struct endpoint *p, struct request *r, void *context,
                      conn_done_fn *done)
{
    struct str line = buf_str(&r->bytes);

    log_at(LOG_DEBUG, "%s: %.*s", p->name,
           PUT(str_upto(line, str_find(line, STR(" HTTP/")))));
    r->context = context;
    r->done = done;
    list_insert(&p->waiting, &r->link);
}

/* How many requests would get a connection of the pool at once. */
static size_t conn_room(const struct endpoint *p)
{
    size_t used = 0, i;
    const struct link *l;

    for (i = 0; i < p->pool; i++)
        used += p->conn[i].request != NULL;
    for (l = p->waiting.next; l != &p->waiting; l = l->next)
        used++;
    return used < p->pool ? p->pool - used : 0;
}

/* Hands the answer over and frees the request, which no connection has. */
static void conn_complete(struct request *r, const struct answer *a)
{
    list_remove(&r->link);
    r->done(r, a);
    buf_free(&r->bytes);
    buf_free(&r->answer);
    free(r);
}

/* Whether the request was canceled by conn_reset. */
static bool conn_canceled(const struct answer *a)
{
    return a->status == 0 && a->err == NULL;
}

/* The reason why an answer says no: the peer's own words, on one line. */
static void conn_reason(const struct answer *a, struct err *e)
{
    struct str words = str_first(str_trim(a->body), 300);

    if (a->status == 0)
        err_set(e, "%s", a->err != NULL ? a->err->text : "canceled");
    else
        err_set(e, "HTTP %u%s%.*s", a->status, words.n > 0 ? ": " : "",
                PUT(words));
}

/* Closes the connection; its request, if it has one, is the caller's. */
static struct request *conn_close(struct conn *c)
{
    struct request *r = c->request;

    tls_close(c->tls, c->fd);
    c->tls = NULL;
    os_close(c->fd);
    c->fd = -1;
    c->state = CONN_FREE;
    c->request = NULL;
    buf_free(&c->in);
    return r;
}

/* Ends a connection that has failed, and its request with the error. */
static void conn_fail(struct conn *c, const struct err *e)
{
    bool handshake = c->state == CONN_HANDSHAKE;
    struct answer none = { .err = e, .not_connected = handshake ||
                                     c->state == CONN_CONNECTING };
    struct request *r = conn_close(c);

    if (r != NULL)
        conn_complete(r, &none);
}

/* Closes every connection and cancels every request. */
static void conn_reset(struct endpoint *p)
{
    const struct answer canceled = { .status = 0 };
    size_t i;

    for (i = 0; i < CONNS_MAX; i++) {
        struct request *r = conn_close(&p->conn[i]);

        if (r != NULL)
            list_insert(&p->waiting, &r->link);
    }
    while (!list_empty(&p->waiting))
        conn_complete(LIST_OF(struct request, link, p->waiting.next),
                      &canceled);
    p->addresses = 0;
    p->closed_idle = false;
}

/* Starts to connect to the next address that does not refuse at once.  One
 * that connects at once is found to be writable. */
static void conn_connect(struct conn *c, int error, uint64_t now)
{
    struct endpoint *p = c->peer;
    struct err e;

    while (c->address < p->addresses) {
        os_close(c->fd);
        if (os_connect(&p->address[c->address++], &c->fd, &error)) {
            c->deadline = now + CONNECT_MS;
            return;
        }
    }
    p->addresses = 0;           /* they may be others the next time */
    err_set(&e, "%s", strerror(error));
    if (p->path.n > 0)
        os_socket_hint(p->address, error, &e);
    conn_fail(c, &e);
}

/* Gives the request to a connection: an idle one, or a free one, which is
 * opened. */
static void conn_ask(struct endpoint *p, struct conn *c, struct request *r,
                     uint64_t now)
{
    bool open = c->state == CONN_FREE;
    struct err e;
    int failed = 0;

    CHECK(c->request == NULL && (open || c->state == CONN_IDLE));
    if (open)
        *c = (struct conn){ .peer = p, .fd = -1,
                            .in.max = HTTP_LINE_MAX + IO_MAX };
    list_remove(&r->link);
    c->request = r;
    c->sent = 0;
    c->asked = now;
    c->deadline = now + CALL_MS;
    c->state = open ? CONN_CONNECTING : CONN_ASKED;
    http_start(&c->http);
    if (r->bytes.bad) {
        c->state = CONN_ASKED;  /* it is not for want of a connection */
        failed = err_set(&e, "a request that cannot be sent: too long, or "
                             "with control characters in a header");
    } else if (open && p->addresses == 0) {
        p->addresses = 1;
        failed = p->path.n > 0 ? os_unix(p->path, p->address, &e)
            : os_resolve(p->host, p->port, p->address, ADDRS_MAX,
                         &p->addresses, &e);
    }
    if (failed)
        conn_fail(c, &e);
    else if (open)
        conn_connect(c, 0, now);
}

/* The connection that the request can have now: an idle one, else a free one;
 * NULL: none. */
static struct conn *conn_find(struct endpoint *p, const struct request *r)
{
    struct conn *c = p->conn + (r->alone ? p->pool : 0), *unused = NULL;
    const struct conn *end = p->conn + p->pool + (r->alone ? ALONE_MAX : 0);

    for (; c < end; c++) {
        if (c->state == CONN_IDLE)
            return c;
        if (c->state == CONN_FREE)
            unused = c;
    }
    return unused;
}

/* Gives each waiting request a connection, as long as there are any. */
static void conn_assign(struct endpoint *p, uint64_t now)
{
    struct link *l = p->waiting.next;

    while (l != &p->waiting) {
        struct request *r = LIST_OF(struct request, link, l);
        struct conn *c = conn_find(p, r);

        l = l->next;
        if (c != NULL) {
            conn_ask(p, c, r, now);
            l = p->waiting.next;        /* done() may have been called */
        }
    }
}

/* Whether the text, which may be logged, repeats one of our secrets. */
static bool conn_repeats(const struct endpoint *p, struct str text)
{
    struct str lines = buf_str(&p->headers), value;

    while (lines.n > 0) {
        value = str_cut(&lines, '\n');
        (void)str_cut(&value, ' ');
        value = str_trim(value);
        if (value.n > 0 && str_find(text, value) < text.n)
            return true;
    }
    return false;
}

/* The answer is complete. */
static void conn_answered(struct conn *c, bool close)
{
    struct request *r = c->request;
    struct answer a = { .status = c->http.status,
                        .body = buf_str(&r->answer) };

    if (a.status != 200 && conn_repeats(c->peer, a.body))
        a.body = STR("(its words repeat our credentials)");
    c->reused = true;
    c->request = NULL;
    c->state = CONN_IDLE;
    if (close || c->http.close || r->alone)
        (void)conn_close(c);
    conn_complete(r, &a);
}

/* Reads what has come as the answer. */
static void conn_parse(struct conn *c, uint64_t now)
{
    struct str in = buf_str(&c->in), piece;
    struct request *r = c->request;
    enum http_found found;
    struct err e;

    c->state = CONN_READING;
    do {
        found = http_next(&c->http, &in, &piece, &e);
        if (found != HTTP_BODY)
            break;
        if (now < c->asked + ANSWER_MS)
            c->deadline = now + CALL_MS;
        if (r->body == NULL || c->http.status != 200)
            buf_add(&r->answer, piece);
        else if (r->body(r, piece, &e) != 0)
            found = HTTP_BAD;
        if (r->answer.bad) {
            err_set(&e, "an answer of more than %d bytes", BODY_MAX);
            found = HTTP_BAD;
        }
        CHECK(c->state == CONN_READING && c->request == r);
    } while (found != HTTP_BAD);
    if (in.n > 0)
        memmove(c->in.p, in.p, in.n);
    c->in.n = in.n;
    if (found == HTTP_BAD)
        conn_fail(c, &e);
    else if (found == HTTP_DONE)
        conn_answered(c, c->in.n > 0);  /* more than an answer: no next one */
}

/* The connection is of no more use: it has broken (error), the peer has closed
 * it, or has sent what nobody asked for.  Not clean: in TLS it has not said
 * that it closes, and somebody may have cut it.  A request that was sent just
 * now over a kept connection, and has no byte of an answer, is sent again over
 * the next one: the peer may have closed it while it was idle (RFC 9112
 * 9.3.1).  Later it may be out of date. */
static void conn_ended(struct conn *c, int error, bool clean, uint64_t now)
{
    struct endpoint *p = c->peer;
    struct request *r = c->request;
    struct err e;

    p->closed_idle = p->closed_idle || c->reused;
    if (error == 0 && clean && c->state == CONN_READING &&
        http_ends(&c->http)) {
        conn_answered(c, true);
    } else if (c->state == CONN_ASKED && c->reused &&
               now < c->asked + RESEND_MS) {
        (void)conn_close(c);
        list_insert(p->waiting.next, &r->link);
    } else {
        err_set(&e, "%sthe connection was closed%s%s",
                c->state == CONN_HANDSHAKE ? "TLS: " : "",
                error != 0 ? ": " : " before the answer was complete",
                error != 0 ? strerror(error) : "");
        conn_fail(c, &e);
    }
}

/* What tls_step does, without TLS.  After a write that failed it reads: the
 * peer may have said why it closed. */
static enum io conn_step(struct conn *c, struct str *out, int *error)
{
    enum io wrote = IO_OK, io;
    int unwritten = 0;

    while (out->n > 0 && wrote == IO_OK)
        wrote = os_write(c->fd, out, &unwritten);
    io = os_read(c->fd, &c->in, error);
    if (wrote != IO_FAILED || io != IO_WAIT)
        return io;
    *error = unwritten;
    return IO_FAILED;
}

/* Does what the connection can do now. */
static void conn_io(struct conn *c, uint64_t now)
{
    unsigned steps = 16;        /* then it is the others' turn */
    enum io io = IO_OK;
    struct err e;
    int error = 0;

    if (c->state == CONN_CONNECTING) {
        if (!os_connected(c->fd, &error)) {
            conn_connect(c, error, now);
            return;
        }
        c->deadline = now + CALL_MS;
        c->state = c->peer->tls.on ? CONN_HANDSHAKE : CONN_ASKED;
        if (c->peer->tls.on && (c->tls = tls_open(&c->peer->tls, &e)) == NULL)
            conn_fail(c, &e);
    }
    while (io == IO_OK && c->state != CONN_FREE && steps-- > 0) {
        struct request *r = c->request;
        struct str out = STR("");

        if (r != NULL)
            out = str_from(buf_str(&r->bytes), c->sent);
        io = c->tls != NULL ? tls_step(c->tls, c->fd, &c->in, &out, &error)
                            : conn_step(c, &out, &error);
        if (r != NULL)
            c->sent = r->bytes.n - out.n;
        if (c->state == CONN_HANDSHAKE && c->tls->ready) {
            c->state = CONN_ASKED;
            c->deadline = now + CALL_MS;
        }
        if (io == IO_OK && r != NULL) {
            conn_parse(c, now);
        } else if (io == IO_FAILED && error == 0) {
            tls_why(c->tls, &e);
            conn_fail(c, &e);
        } else if (io != IO_WAIT) {
            conn_ended(c, io == IO_END ? 0 : error, error == 0, now);
        }
    }
}

/* When the connection is given up, if nothing comes. */
static uint64_t conn_due(const struct conn *c)
{
    const struct request *r = c->request;

    return r == NULL || (r->stream && c->state >= CONN_ASKED) ? UINT64_MAX
                                                              : c->deadline;
}

/* Gives up connections on which nothing has come for too long. */
static void conn_tick(struct endpoint *p, uint64_t now)
{
    struct err e;
    size_t i;

    for (i = 0; i < CONNS_MAX; i++) {
        struct conn *c = &p->conn[i];

        if (now < conn_due(c))
            continue;
        if (c->state == CONN_CONNECTING) {
            conn_connect(c, ETIMEDOUT, now);
        } else {
            err_set(&e, "%sno answer within %d s",
                    c->state == CONN_HANDSHAKE ? "TLS: " : "",
                    HASTE * CALL_MS / 1000);
            conn_fail(c, &e);
        }
    }
}

/* What the connections wait for, in CONNS_MAX fields. */
static void conn_pollfds(const struct endpoint *p, struct pollfd *fd)
{
    size_t i;

    for (i = 0; i < CONNS_MAX; i++) {
        const struct conn *c = &p->conn[i];
        bool unsent = c->request != NULL && c->sent < c->request->bytes.n &&
                      c->state != CONN_HANDSHAKE;
        bool out = unsent || (c->tls != NULL && c->tls->wants_write);
        bool in = c->state != CONN_CONNECTING;

        fd[i].fd = c->fd;       /* -1: skipped */
        fd[i].events = (short)((in ? POLLIN : 0) | (out ? POLLOUT : 0));
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
            conn_io(&p->conn[i], now);
}

/* ---- Pauses that grow ---- */

/* How often something has failed, and when to try again: a session, a list, a
 * container, an entry. */
struct retry {
    unsigned tries;             /* that failed, in a row */
    bool refused;               /* the last of them for good */
    uint64_t due;               /* not before */
    uint64_t said;              /* which reasons have been logged, as bits */
    char *why;                  /* the last reason; NULL: none */
};

/* Sets the pause: min_ms, doubled with each failure up to max_ms, the second
 * half of it by chance, so that many hosts do not come at once.  True: this
 * reason has not been logged since the last success.  (Of 2,000 different ones
 * one is taken for another.) */
static bool retry_failed(struct retry *r, const char *why, uint64_t now,
                         uint64_t min_ms, uint64_t max_ms)
{
    uint64_t h = str_hash(0, str_of(why)), ms = min_ms, chance = 0, said;
    unsigned i;

    for (i = 0; i < r->tries && ms < max_ms; i++)
        ms *= 2;
    ms = ms < max_ms ? ms : max_ms;
    (void)os_random(&chance, sizeof chance);
    r->tries++;
    r->due = now + ms / 2 + chance % (ms / 2 + 1);
    free(r->why);
    r->why = str_dup(str_of(why));
    said = r->said;
    r->said |= (uint64_t)1 << (h & 63) | (uint64_t)1 << (h >> 6 & 63);
    return r->said != said;
}

static void retry_reset(struct retry *r)
{
    free(r->why);
    memset(r, 0, sizeof *r);
}

/* ---- What is kept, and what of it is due ---- */

/* The first member of what is found by a key and tried until it is done: a
 * container, an entry. */
struct node {
    struct str key;             /* first: what the tree compares */
    struct link all;            /* in index.all, in the order of coming */
    struct link queue;          /* in a queue, or in none */
    unsigned turn;              /* there: the place among the due ones */
    struct retry retry;
};

struct index {
    void *tree;                 /* of tsearch */
    struct link all;
    size_t n;
};

static int index_cmp(const void *a, const void *b)
{
    const struct str *p = a, *q = b;

    return str_cmp(*p, *q);
}

static void *index_find(const struct index *x, struct str key)
{
    void *found = tfind(&key, &x->tree, index_cmp);

    return found == NULL ? NULL : *(void **)found;
}

/* What follows `at` in the order of coming (NULL: the first), or NULL. */
static void *index_next(const struct index *x, const void *at)
{
    const struct node *n = at;
    struct link *l = n == NULL ? x->all.next : n->all.next;

    return l == &x->all ? NULL : LIST_OF(struct node, all, l);
}

/* A new node of that size, all zero but for the key. */
static void *index_add(struct index *x, size_t size, struct str key)
{
    struct node *n = mem_zero(size + key.n + 1);

    n->key.p = memcpy((char *)n + size, key.p, key.n);
    n->key.n = key.n;
    list_init(&n->all);
    list_init(&n->queue);
    list_insert(&x->all, &n->all);
    if (tsearch(n, &x->tree, index_cmp) == NULL)
        mem_none();
    x->n++;
    return n;
}

static void index_remove(struct index *x, struct node *n)
{
    (void)tdelete(n, &x->tree, index_cmp);
    list_remove(&n->all);
    list_remove(&n->queue);
    x->n--;
    retry_reset(&n->retry);
    free(n);
}

/* Nodes to be dealt with, those of a lower turn first, and nodes whose pause
 * is not over. */
struct queue {
    struct link now[TURNS], later;
    uint64_t due;               /* the earliest of `later` */
};

static void queue_put(struct queue *q, struct node *n, uint64_t now)
{
    bool later = n->retry.due > now;

    CHECK(n->turn < TURNS);
    list_insert(later ? &q->later : &q->now[n->turn], &n->queue);
    if (later && n->retry.due < q->due)
        q->due = n->retry.due;
}

/* The next one to be dealt with, or NULL; it stays in the queue. */
static void *queue_first(const struct queue *q)
{
    size_t i;

    for (i = 0; i < TURNS; i++)
        if (!list_empty(&q->now[i]))
            return LIST_OF(struct node, queue, q->now[i].next);
    return NULL;
}

/* Moves those whose pause is over. */
static void queue_tick(struct queue *q, uint64_t now)
{
    struct link *l, *next;

    if (now < q->due)
        return;
    q->due = UINT64_MAX;
    for (l = q->later.next; l != &q->later; l = next) {
        struct node *n = LIST_OF(struct node, queue, l);

        next = l->next;
        if (n->retry.due <= now)
            queue_put(q, n, now);
        else if (n->retry.due < q->due)
            q->due = n->retry.due;
    }
}

/* ---- A side: the engine's, or the registry's ---- */

struct side;

/* What differs between the two. */
struct side_kind {
    /* The questions before all else, by step; NULL: no more.  The answer: 0:
     * go on, -1: the peer is of no use. */
    struct request *(*hello)(struct side *, unsigned step);
    int (*on_hello)(struct side *, unsigned step, const struct answer *,
                    struct err *);
    void (*ready)(struct side *);       /* all of it has been answered */
    void (*down)(struct side *);        /* the peer is lost; or NULL */
    /* The request of the list, for whose rows it starts the splitter.  NULL:
     * not now; what makes it possible calls relist(). */
    struct request *(*list)(struct side *);
    bool (*row)(struct side *, const struct json *);    /* false: unreadable */
    void (*listed)(struct side *);      /* the list has been read */
    /* An answer to the list that is no 200.  True: the list is empty.  NULL:
     * it never is. */
    bool (*no_list)(struct side *, const struct answer *);
};

/* The session with a peer:
 *
 *     DOWN    until retry.due               side_tick -> HELLO
 *     HELLO   question `step` is to be put  side_tick -> ASKED, or READY
 *     ASKED   it is under way               side_on_hello -> HELLO
 *     READY   until side_down -> DOWN, from wherever the loss is seen
 *
 * The peer's list of all that it has is asked for by relist() and in no other
 * way, whatever the reason, and never sooner than RELIST_MIN_MS after the one
 * before.  So no peer, however odd its lists, makes us ask in a loop. */
struct side {
    const struct side_kind *kind;
    struct endpoint *peer;
    enum { SIDE_DOWN, SIDE_HELLO, SIDE_ASKED, SIDE_READY } state;
    unsigned step;
    struct retry retry;         /* until a list has been read */
    uint64_t first_pause_ms;    /* before one ever has; 0: it grows */
    bool ever;                  /* one has */
    uint64_t list_due;          /* of the next list; UINT64_MAX: not asked */
    uint64_t list_begun;        /* when the last one was */
    unsigned epoch;             /* lists that have been begun */
    bool reading;               /* the last of them has not ended */
    bool whole;                 /* it has not failed, and all of its rows so
                                   far could be read */
    bool partial;               /* the last one that was read was not whole */
    bool listed;                /* one has been read in this session */
    struct retry list_retry;
    struct splitter split;
    struct json json;           /* the text at hand */
    struct index index;         /* what this side keeps, */
    struct queue queue;         /* and what of it has to be tried */
    uint64_t now;               /* of the last tick */
};

static void side_init(struct side *s, const struct side_kind *kind,
                      struct endpoint *peer)
{
    size_t i;

    s->kind = kind;
    s->peer = peer;
    s->list_due = s->queue.due = UINT64_MAX;
    list_init(&s->index.all);
    list_init(&s->queue.later);
    for (i = 0; i < TURNS; i++)
        list_init(&s->queue.now[i]);
}

static bool side_ready(const struct side *s)
{
    return s->state == SIDE_READY;
}

static void relist(struct side *s, uint64_t when)
{
    if (s->epoch > 0 && when < s->list_begun + RELIST_MIN_MS)
        when = s->list_begun + RELIST_MIN_MS;
    if (when < s->list_due)
        s->list_due = when;
}

/* The peer is lost: cancels all requests, and tries again after a pause. */
static void side_down(struct side *s, const struct err *e)
{
    const struct endpoint *p = s->peer;
    struct str where = p->path.n > 0 ? p->path : buf_str(&p->host_header);

    if (s->state == SIDE_DOWN)
        return;
    s->state = SIDE_DOWN;
    if (retry_failed(&s->retry, e->text, s->now, PAUSE_MIN_MS, PAUSE_PEER_MS))
        log_at(LOG_ERROR, "%s: %.*s: %s: trying again", p->name, PUT(where),
               e->text);
    if (!s->ever && s->first_pause_ms > 0)
        s->retry.due = s->now + s->first_pause_ms;
    conn_reset(s->peer);
    s->listed = false;
    s->list_due = UINT64_MAX;
    if (s->kind->down != NULL)
        s->kind->down(s);
}

static void side_on_hello(struct request *r, const struct answer *a)
{
    struct side *s = r->context;
    struct err e;
    int result = -1;

    if (conn_canceled(a))
        return;
    CHECK(s->state == SIDE_ASKED);
    if (a->status == 0)
        e = *a->err;
    else
        result = s->kind->on_hello(s, s->step, a, &e);
    s->step++;
    s->state = SIDE_HELLO;
    if (result != 0)
        side_down(s, &e);
}

/* The body of the list, piece by piece.  A row that cannot be read is skipped,
 * and from such a list nothing is concluded to be absent. */
static int side_on_rows(struct request *r, struct str piece, struct err *e)
{
    struct side *s = r->context;
    int found;

    while ((found = json_split(&s->split, &piece)) > 0)
        if (json_parse(&s->json, buf_str(&s->split.element), e) != 0 ||
            !s->kind->row(s, &s->json))
            s->whole = false;
    return found < 0 ? err_set(e, "this is not a list") : 0;
}

/* The list has ended.  One that failed is tried again after a pause; a peer
 * that is not there is lost. */
static void side_on_list(struct request *r, const struct answer *a)
{
    struct side *s = r->context;
    bool read = a->status == 200 && json_split_done(&s->split);
    struct err e;

    s->reading = false;
    if (a->status != 200 && a->status != 0 && s->kind->no_list != NULL)
        read = s->kind->no_list(s, a);
    s->whole = s->whole && read;
    if (conn_canceled(a) || !side_ready(s))
        return;
    if (read) {
        if (s->retry.said != 0)
            log_at(LOG_INFO, "%s: reached%s", s->peer->name,
                   s->ever ? " again" : "");
        if (!s->whole && !s->partial)
            log_at(LOG_WARN, "%s: a row of the list cannot be read: nothing "
                             "is concluded to be missing", s->peer->name);
        s->partial = !s->whole;
        retry_reset(&s->retry);
        retry_reset(&s->list_retry);
        s->ever = s->listed = true;
        s->kind->listed(s);
        return;
    }
    conn_reason(a, &e);
    if (a->status == 200)
        err_set(&e, "what came is not a list, or ends early");
    if (a->not_connected) {
        side_down(s, &e);
        return;
    }
    if (retry_failed(&s->list_retry, e.text, s->now, RETRY_MIN_MS,
                     PAUSE_CALL_MS))
        log_at(LOG_ERROR, "%s: the list failed: %s: trying again",
               s->peer->name, e.text);
    relist(s, s->list_retry.due);
}

/* Does what time has made possible: gives up what hangs, goes on with the
 * session, begins a list that is due. */
static void side_tick(struct side *s, uint64_t now)
{
    struct request *r;

    s->now = now;
    conn_tick(s->peer, now);
    if (s->state == SIDE_DOWN && now >= s->retry.due) {
        s->state = SIDE_HELLO;
        s->step = 0;
        tls_reload(&s->peer->tls);
    }
    if (s->state == SIDE_HELLO) {
        r = s->kind->hello(s, s->step);
        s->state = r != NULL ? SIDE_ASKED : SIDE_READY;
        if (r != NULL)
            conn_send(s->peer, r, s, side_on_hello);
        else
            s->kind->ready(s);
    }
    if (side_ready(s) && !s->reading && now >= s->list_due) {
        r = s->kind->list(s);
        s->list_due = UINT64_MAX;
        if (r != NULL) {
            s->list_begun = now;
            s->epoch++;
            s->reading = s->whole = true;
            r->body = side_on_rows;
            conn_send(s->peer, r, s, side_on_list);
        }
    }
    queue_tick(&s->queue, now);
}

/* When side_tick is due, at the latest. */
static uint64_t side_due(const struct side *s)
{
    uint64_t due = s->queue.due;
    size_t i;

    if (s->state == SIDE_HELLO)
        return 0;
    if (s->state == SIDE_DOWN && s->retry.due < due)
        due = s->retry.due;
    if (side_ready(s) && !s->reading && s->list_due < due)
        due = s->list_due;
    for (i = 0; i < CONNS_MAX; i++)
        if (conn_due(&s->peer->conn[i]) < due)
            due = conn_due(&s->peer->conn[i]);
    return due;
}

/* Whether nothing is to be done but what has failed. */
static bool side_idle(const struct side *s)
{
    return side_ready(s) && s->listed && s->list_due == UINT64_MAX &&
           !s->reading && queue_first(&s->queue) == NULL &&
           conn_room(s->peer) == s->peer->pool;
}

/* ==== 10. Docker ========================================= docker_ ====
 *
 * What the engine answers: events, rows of its list, the inspect of a
 * container, networks.  Only the fields that are used are read; any engine
 * from Docker 1.3 (2014) to 29, and Podman's service.  All that differs from
 * one to the other is in this section.
 *
 * Calls: str_ buf_ mem_ arena_ json_.
 */

enum docker_action {
    DOCKER_OTHER,       /* not used */
    DOCKER_CHANGED,     /* the container may have changed */
    DOCKER_NETWORK,     /* it was connected or disconnected */
    DOCKER_DIED,
    DOCKER_GONE
};

struct docker_event {
    enum docker_action action;
    struct str id;      /* of the container, 64 hexadecimal digits */
    unsigned exit_code; /* of DOCKER_DIED; 1 if it does not say (Podman 4) */
};

/* A container's ID in full, as every engine writes it. */
static bool docker_id(struct str s)
{
    return s.n == 64 && str_all(s, isxdigit);
}

/* An event: {"Type","Action","Actor":{"ID","Attributes":{}}} since Docker
 * 1.10, {"status","id"} before and beside it until 28.  Podman has "restore",
 * of a checkpoint.  False: it does not concern a container. */
static bool docker_event(const struct json *j, struct docker_event *ev)
{
    static const struct {
        const char *name;
        enum docker_action action;
    } known[] = {
        { "start", DOCKER_CHANGED }, { "pause", DOCKER_CHANGED },
        { "unpause", DOCKER_CHANGED }, { "rename", DOCKER_CHANGED },
        { "update", DOCKER_CHANGED }, { "restore", DOCKER_CHANGED },
        { "die", DOCKER_DIED }, { "died", DOCKER_DIED },
        { "destroy", DOCKER_GONE }, { "remove", DOCKER_GONE },
        { "connect", DOCKER_NETWORK }, { "disconnect", DOCKER_NETWORK },
    };
    size_t actor = json_get(j, JSON_ROOT, "Actor"), i;
    size_t attributes = json_get(j, actor, "Attributes");
    size_t container = json_get(j, attributes, "container");
    struct str type = json_get_raw(j, JSON_ROOT, "Type");
    struct str action = json_get_raw(j, JSON_ROOT, "Action");
    struct str code = json_get_raw(j, attributes, "exitCode");
    uint64_t v;

    if (action.n == 0)
        action = json_get_raw(j, JSON_ROOT, "status");
    if (type.n == 0)
        type = STR("container");
    ev->action = DOCKER_OTHER;
    for (i = 0; i < LENGTH(known); i++)
        if (str_eq(action, str_of(known[i].name)))
            ev->action = known[i].action;
    ev->exit_code = str_u64(code, 255, &v) ? (unsigned)v : 1;
    ev->id = json_get_raw(j, actor, "ID");
    if (ev->id.n == 0)
        ev->id = json_get_raw(j, JSON_ROOT, "id");
    if (ev->action == DOCKER_NETWORK && container != 0) /* else Podman's */
        ev->id = json_raw(j, container);
    return ev->action != DOCKER_OTHER && docker_id(ev->id) &&
           str_eq(type, ev->action == DOCKER_NETWORK ? STR("network")
                                                     : STR("container"));
}

/* A row of GET /containers/json. */
struct docker_row {
    struct str id;
    uint64_t digest;    /* differs if what inspect shows differs */
    bool stopped;       /* it does not run, and is not just paused */
    unsigned exit_code; /* then; 0 if it has none */
};

/* Status is "Up 3 minutes (Paused)" or "Exited (1) 2 hours ago"; engines
 * before 1.11 have no State beside it.  The row shows all that can change of a
 * container without an event: state and exit code, health, name, networks, and
 * ports, which Docker 20.10 lists in a random order.  False: no ID. */
static bool docker_row(const struct json *j, struct docker_row *row)
{
    static const char *const shown[] = { "Names", "State", "NetworkSettings" };
    struct str status = json_get_raw(j, JSON_ROOT, "Status");
    struct str word = str_cut(&status, ' ');
    size_t ports = json_get(j, JSON_ROOT, "Ports"), i;
    uint64_t code = 0;

    row->stopped = str_eq(word, STR("Exited")) || str_eq(word, STR("Dead")) ||
                   str_eq(word, STR("Created"));
    (void)str_cut(&status, '(');
    status = str_cut(&status, ')');     /* exit code, health, "Paused" */
    (void)str_u64(status, 255, &code);
    row->exit_code = row->stopped ? (unsigned)code : 0;
    row->id = json_get_raw(j, JSON_ROOT, "Id");
    row->digest = str_hash(str_hash(0, word), status);
    for (i = 0; i < LENGTH(shown); i++)
        row->digest = str_hash(row->digest,
                               json_get_raw(j, JSON_ROOT, shown[i]));
    for (i = 0; json_next(j, ports, &i);)
        row->digest += str_hash(1, json_raw(j, i));
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
    bool routable;              /* set by docker_set_routable */
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
    bool running;               /* State.Running and not Restarting */
    unsigned exit_code;
    struct docker_port *port;   /* by number, tcp first */
    size_t ports;
    struct docker_network *network;
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

/* Whether it shares the network of another container. */
static bool docker_shares(const struct docker_container *c)
{
    return str_prefix(c->mode, STR("container:"));
}

static void docker_free(struct docker_container *c)
{
    if (c != NULL) {
        arena_free(&c->arena);
        free(c);
    }
}

/* "5000/tcp"; old engines write "5000".  False: neither. */
static bool docker_port_key(struct str s, struct docker_port *p)
{
    static const char *const proto[] = { "tcp", "udp", "sctp" };
    struct str number = str_cut(&s, '/');
    size_t i = 0;

    while (s.n > 0 && i < LENGTH(proto) && !str_caseeq(s, str_of(proto[i])))
        i++;
    p->proto = (enum docker_proto)i;
    return i < LENGTH(proto) && str_port(number, &p->number);
}

/* By number, tcp first: the order of docker_container.port. */
static int docker_port_cmp(const void *a, const void *b)
{
    const struct docker_port *p = a, *q = b;

    return p->number != q->number ? (int)p->number - (int)q->number
                                  : (int)p->proto - (int)q->proto;
}

/* Adds the ports that are the names of object t.  Of several bindings the
 * first counts, an IPv4 one before an IPv6 one. */
static void docker_add_ports(struct docker_container *c, const struct json *j,
                             size_t t, bool listed, struct buf *ports)
{
    size_t i, k;

    for (i = 0; json_type(j, t) == JSON_OBJECT && json_next(j, t, &i);) {
        struct docker_port p = { .listed = listed, .exposed = !listed,
                                 .host_ip = STR_INIT("") };

        if (!docker_port_key(json_raw(j, i), &p))
            continue;
        for (k = 0; listed && json_next(j, i + 1, &k);) {
            struct str ip = json_get_str(j, k, "HostIp", &c->arena);
            bool better = p.host_port == 0 ||
                          (str_has(p.host_ip, ':') && !str_has(ip, ':'));

            if (better &&
                str_port(json_get_raw(j, k, "HostPort"), &p.host_port))
                p.host_ip = ip;
        }
        buf_add(ports, BYTES(p));
    }
}

/* All ports of the container, each once: those of NetworkSettings.Ports,
 * Config.ExposedPorts and, since a container that has exited is in neither,
 * HostConfig.PortBindings. */
static void docker_ports(struct docker_container *c, const struct json *j)
{
    struct docker_port *p, *last = NULL;
    struct buf all = { 0 };
    size_t n, i;

    docker_add_ports(c, j, docker_get(j, "NetworkSettings", "Ports"), true,
                     &all);
    docker_add_ports(c, j, docker_get(j, "Config", "ExposedPorts"), false,
                     &all);
    if (!c->running)
        docker_add_ports(c, j, docker_get(j, "HostConfig", "PortBindings"),
                         false, &all);
    n = all.n / sizeof *p;
    c->port = p = buf_array(&all, &c->arena);
    qsort(p, n, sizeof *p, docker_port_cmp);
    for (i = 0; i < n; i++) {
        if (last == NULL || docker_port_cmp(last, &p[i]) != 0) {
            last = &p[c->ports++];
            *last = p[i];
            continue;
        }
        last->listed |= p[i].listed;
        last->exposed |= p[i].exposed;
        if (last->host_port == 0) {
            last->host_port = p[i].host_port;
            last->host_ip = p[i].host_ip;
        }
    }
}

/* NetworkSettings.Networks since Docker 1.9; before, the default bridge's
 * address stands in NetworkSettings itself.  The swarm's ingress network is
 * nobody's address. */
static void docker_networks(struct docker_container *c, const struct json *j)
{
    size_t list = docker_get(j, "NetworkSettings", "Networks"), i;
    size_t old = docker_get(j, "NetworkSettings", "IPAddress");
    bool listed = json_type(j, list) == JSON_OBJECT;
    struct docker_network n = { .name = STR_INIT("bridge"),
                                .ip = json_str(j, old, &c->arena) };
    struct buf all = { 0 };

    if (!listed)
        buf_add(&all, BYTES(n));
    for (i = 0; listed && json_next(j, list, &i);) {
        if (str_eq(json_raw(j, i), STR("ingress")))
            continue;
        n.name = json_str(j, i, &c->arena);
        n.id = json_get_str(j, i + 1, "NetworkID", &c->arena);
        n.ip = json_get_str(j, i + 1, "IPAddress", &c->arena);
        if (n.ip.n == 0)
            n.ip = json_get_str(j, i + 1, "GlobalIPv6Address", &c->arena);
        buf_add(&all, BYTES(n));
    }
    c->networks = all.n / sizeof n;
    c->network = buf_array(&all, &c->arena);
}

/* The n variables of Config.Env: ["K=V", "K"] (the second is none), or of
 * Config.Labels: {"K": "V"}. */
static struct docker_var *docker_vars(struct docker_container *c,
                                      const struct json *j, const char *name,
                                      size_t *n)
{
    size_t list = docker_get(j, "Config", name), i;
    struct docker_var v;
    struct buf all = { 0 };

    for (i = 0; json_next(j, list, &i);) {
        v.name = v.value = json_str(j, i, &c->arena);
        if (json_type(j, list) == JSON_OBJECT)
            v.value = json_str(j, i + 1, &c->arena);
        else if (str_has(v.value, '='))
            v.name = str_cut(&v.value, '=');
        else
            continue;
        buf_add(&all, BYTES(v));
    }
    *n = all.n / sizeof v;
    return buf_array(&all, &c->arena);
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
    c->running = json_true(j, docker_get(j, "State", "Running")) &&
              !json_true(j, docker_get(j, "State", "Restarting"));
    if (!docker_id(c->id) || c->name.n == 0 ||
        json_type(j, docker_get(j, "State", "Running")) != JSON_BOOL ||
        json_get(j, JSON_ROOT, "Config") == 0 ||
        (c->running && json_type(j, net) != JSON_OBJECT)) {
        docker_free(c);
        return NULL;
    }
    c->image = json_str(j, docker_get(j, "Config", "Image"), &c->arena);
    c->digest = str_after(json_get_str(j, JSON_ROOT, "Image", &c->arena), ':');
    c->mode = json_str(j, docker_get(j, "HostConfig", "NetworkMode"),
                       &c->arena);
    if (str_u64(json_raw(j, docker_get(j, "State", "ExitCode")), 255, &code))
        c->exit_code = (unsigned)code;
    docker_ports(c, j);
    docker_networks(c, j);
    c->env = docker_vars(c, j, "Env", &c->envs);
    c->label = docker_vars(c, j, "Labels", &c->labels);
    return c;
}

/* ---- Networks ---- */

/* Reads GET /networks: [{"Id", "Name", "Driver"}], into `known`: "ID" and
 * "NAME" of each in quotes, with a + behind them if its containers have
 * addresses of their own on the wire (macvlan, ipvlan), with a - if not. */
static void docker_read_networks(struct buf *known, const struct json *j)
{
    size_t i;

    known->n = 0;
    for (i = 0; json_next(j, JSON_ROOT, &i);) {
        struct str id = json_get_raw(j, i, "Id");
        struct str name = json_get_raw(j, i, "Name");
        struct str driver = json_get_raw(j, i, "Driver");
        const char *sign = str_eq(driver, STR("macvlan")) ||
                           str_eq(driver, STR("ipvlan")) ? "+" : "-";

        buf_fmt(known, "\"%.*s\"%s\"%.*s\"%s", PUT(id), sign, PUT(name),
                sign);
    }
}

/* Sets `routable` of the container's networks.  It matters if a port may be
 * reached at the container's own address: one that is exposed but missing in
 * Ports; with Podman, any, since that (seen in 4.3) lists ports as published
 * on macvlan and ipvlan, where nothing is, which is undone here.  Podman's
 * NetworkID is a name.  False: it matters, and a network is not among the
 * known ones. */
static bool docker_set_routable(struct docker_container *c, struct str known,
                                bool podman)
{
    bool matters = false, all_known = true, all_routable = true;
    struct buf key = { 0 };
    size_t i, at;

    for (i = 0; i < c->ports; i++)
        matters = matters || podman || !c->port[i].listed;
    if (!matters || !c->running || docker_shares(c) ||
        str_eq(c->mode, STR("host")) || str_eq(c->mode, STR("none")))
        return true;
    for (i = 0; i < c->networks; i++) {
        struct docker_network *n = &c->network[i];

        if (n->id.n > 0) {
            key.n = 0;
            buf_fmt(&key, "\"%.*s\"", PUT(n->id));
            at = str_find(known, buf_str(&key));
            all_known = all_known && at < known.n;
            n->routable = at < known.n && known.p[at + key.n] == '+';
        }
        all_routable = all_routable && n->routable;
    }
    buf_free(&key);
    for (i = 0; podman && all_routable && i < c->ports; i++) {
        c->port[i].listed = false;
        c->port[i].host_port = 0;
    }
    return all_known;
}

/* ---- The engine ---- */

/* Whether a 404 says that there is no such container: "No such container: ID"
 * as text or as the message of an object, "no such id: ID" before Docker 1.9,
 * "no container with name or ID "ID" found: no such container" of Podman.  The
 * 404 of a proxy has other words, and may repeat the path with the ID. */
static bool docker_is_gone(struct str body, struct str id)
{
    return str_find(body, id) < body.n &&
           str_find(body, STR("o such ")) < body.n &&
           str_find(body, STR("/containers/")) == body.n;
}

/* GET /info: which engine it is.  Docker before 1.5 has no ID: the host's name
 * stands for it.  Podman makes up a new one for each answer (seen in 4.3), and
 * a host may have one engine for each user: the host's name and the folder of
 * its files stand for it. */
static struct str docker_identity(const struct json *j, bool podman,
                                  struct arena *a)
{
    struct str id = json_get_str(j, JSON_ROOT, "ID", a);
    struct str name = json_get_str(j, JSON_ROOT, "Name", a);
    struct str folder = json_get_str(j, JSON_ROOT, "DockerRootDir", a);

    if (podman && name.n > 0)
        return str_fmt(a, "%.*s%.*s", PUT(name), PUT(folder));
    return podman || id.n == 0 ? name : id;
}

/* GET /version or /info: whether this is Podman's service. */
static bool docker_is_podman(const struct json *j)
{
    size_t list = json_get(j, JSON_ROOT, "Components"), i;
    bool podman = json_get(j, JSON_ROOT, "BuildahVersion") != 0;

    for (i = 0; json_next(j, list, &i);)
        podman |= str_prefix(json_get_raw(j, i, "Name"), STR("Podman"));
    return podman;
}

/* ==== 11. Services ========================================== svc_ ====
 *
 * A container in, its services out: no I/O, no clock, and the same result for
 * the same container.  Nearly all that users rely on is decided here.  Work
 * and memory are linear in what inspect returned: whatever a container's
 * author writes, it holds up nobody else for long.
 *
 * Calls: str_ buf_ mem_ arena_ docker_.
 */

/* One SERVICE_ variable or label. */
struct svc_meta {
    struct str key, value;
    unsigned port;      /* the one that it is for; 0: all */
    size_t order;       /* of two with one key, the later one counts */
    struct str *tag;    /* of svc_split_tags: of this list and of -tags, */
    size_t tags;        /* and a last one for UDP; NULL: not split yet */
};

/* What registries compare of an entry: digests, each of what it names. */
struct digest {
    uint64_t place;             /* name, address, port */
    uint64_t tags;
    uint64_t content;           /* all that is stored */
    uint64_t checks;            /* 32 bits */
};

struct service {
    struct str id, name;
    struct str address; /* empty: the registry puts in the node's */
    unsigned port;
    unsigned exposed;   /* the port in the container */
    enum docker_proto proto;
    bool default_id;    /* <hostname>:<container name>:<port>[:udp] */
    bool kept;          /* only its ID counts: its entry is neither written
                           nor removed */
    struct str *tag;
    size_t tags;
    struct svc_meta **attr;     /* by key */
    size_t attrs;
    uint64_t id_digest;         /* of the ID in lower case */
    struct svc_set *set;        /* that it belongs to */
    struct link claim;          /* section 13: in the claims of its entry */
    struct reg_entry *entry;
    uint64_t order;             /* among them */
    struct str key;             /* of the entry, as it is written */
    struct digest want;         /* and what is compared */
};

/* The services of one container, by port, tcp first.  The arena has all of
 * their texts. */
struct svc_set {
    struct arena arena;
    struct service *service;
    size_t n;
    char container[13];         /* 12 digits of its ID */
    bool running;               /* a container that has stopped gives way */
    bool several;               /* ports, which the default names tell apart */
};

/* Something to be logged about a container. */
struct svc_note {
    struct svc_note *next;
    enum log_level level;
    bool ignored;       /* the reason why a port has no service */
    const char *format;
    struct str text;
    size_t others;      /* of this format, which are only counted */
};

struct svc_notes {
    struct arena arena;
    struct svc_note *first;
};

/* What of the command line and the registry matters to services. */
struct svc_config {
    bool only_named;            /* -explicit */
    bool internal;
    struct str hostname;        /* the first part of IDs */
    struct str ip;              /* -ip; of an interface, its address */
    bool ip_unknown;            /* ... which it does not have yet */
    struct str ip_label;        /* -useIpFromLabel */
    struct str tags;            /* -tags */
    struct str host;            /* this host's address; empty: not told */
    bool no_host;               /* none is known that others could use */
};

/* Adds a note: of one format one warning, or NOTES_MAX that are none. */
PRINTF(4, 5)
static void svc_note(struct svc_notes *notes, enum log_level level,
                     bool ignored, const char *format, ...)
{
    struct svc_note **end = &notes->first;
    size_t same = 0, most = level == LOG_WARN ? 1 : NOTES_MAX;
    struct buf text = { 0 };

    for (; *end != NULL; end = &(*end)->next)
        if ((*end)->format == format && ++same == most) {
            (*end)->others++;
            return;
        }
    BUF_FORMAT(&text, format);
    *end = arena_alloc(&notes->arena, sizeof **end);
    **end = (struct svc_note){ .level = level, .ignored = ignored,
                               .format = format };
    (*end)->text = buf_done(&text, &notes->arena);
}

static void svc_free(struct svc_set *set)
{
    if (set != NULL) {
        arena_free(&set->arena);
        free(set);
    }
}

/* What goes into the services of one container. */
struct svc_job {
    const struct svc_config *cfg;
    const struct docker_container *c;
    const struct docker_container *net;     /* whose network it has, or NULL */
    const struct svc_set *before;           /* its services while it ran */
    struct svc_meta *meta;      /* by port and key, each pair once */
    size_t metas;
    struct svc_meta *at_meta;   /* before it are those of lower ports */
    struct str own;             /* the container's address */
    struct str direct;          /* ... where ports are reached directly */
    struct str label_ip;        /* ... of -useIpFromLabel */
    struct str image, compose;  /* names of services without SERVICE_NAME */
    struct str id;              /* how default IDs begin */
    struct svc_meta none;       /* stands for a variable that is missing */
    void *by_id;                /* of tsearch: the services so far */
    struct svc_set *set;
    struct arena *a;            /* of the set */
    struct svc_notes *notes;
};

/* ---- Metadata ---- */

/* By port and key; of one key the later one first. */
static int svc_meta_cmp(const void *a, const void *b)
{
    const struct svc_meta *p = a, *q = b;
    int d = p->port < q->port ? -1 : p->port > q->port;

    if (d == 0)
        d = str_cmp(p->key, q->key);
    return d != 0 ? d : p->order > q->order ? -1 : 1;
}

/* SERVICE_8080_NAME=web is key "name" of port 8080, SERVICE_NAME=web the same
 * of all ports; any other variable is none.  A number that no port can have
 * is for none. */
static void svc_add_meta(struct buf *metas, struct docker_var v,
                         struct arena *a)
{
    struct svc_meta m = { .order = metas->n };
    struct str rest, digits;
    struct buf key = { 0 };

    if (!str_prefix(v.name, STR("SERVICE_")))
        return;
    buf_lower(&key, str_from(v.name, strlen("SERVICE_")));
    m.key = rest = buf_done(&key, a);
    digits = str_cut(&rest, '_');
    if (digits.n > 0 && str_all(digits, isdigit) && rest.n > 0) {
        if (*digits.p == '0' || !str_port(digits, &m.port))
            return;
        m.key = rest;
    }
    m.value = str_copy(a, v.value);
    buf_add(metas, BYTES(m));
}

/* All metadata of the container: environment before labels, each in its
 * order.  Of a key the later one counts. */
static void svc_metas(struct svc_job *job)
{
    const struct docker_container *c = job->c;
    struct svc_meta *meta;
    struct buf all = { 0 };
    size_t i, n;

    for (i = 0; i < c->envs; i++)
        svc_add_meta(&all, c->env[i], job->a);
    for (i = 0; i < c->labels; i++)
        svc_add_meta(&all, c->label[i], job->a);
    n = all.n / sizeof *meta;
    meta = (void *)all.p;
    if (n > 0)
        qsort(meta, n, sizeof *meta, svc_meta_cmp);
    for (i = 0; i < n; i++)
        if (i == 0 || meta[i].port != meta[job->metas - 1].port ||
            !str_eq(meta[i].key, meta[job->metas - 1].key))
            meta[job->metas++] = meta[i];
    all.n = job->metas * sizeof *meta;
    job->meta = job->at_meta = buf_array(&all, job->a);
}

/* The value of an attribute; empty: there is none, or one that is too long to
 * be used. */
static struct str svc_attr(const struct service *s, const char *key)
{
    size_t i;

    for (i = 0; i < s->attrs; i++)
        if (str_eq(s->attr[i]->key, str_of(key)) &&
            s->attr[i]->value.n <= SERVICE_ATTR_MAX)
            return s->attr[i]->value;
    return STR("");
}

/* The keys that are no attributes. */
enum { SVC_NAME, SVC_ID, SVC_TAGS, SVC_IGNORE, SVC_KEYS };

static const char *const svc_key[] = { "name", "id", "tags", "ignore" };

/* Sorts the metadata of port s->exposed into keys and attributes: those for
 * all ports and its own, which win.  Ports come in their order. */
static void svc_read_metas(struct svc_job *job, struct service *s,
                           struct svc_meta **given)
{
    struct svc_meta *general = job->meta, *end = job->meta + job->metas, *own;
    struct buf attrs = { 0 };
    size_t k;

    while (job->at_meta < end && job->at_meta->port < s->exposed)
        job->at_meta++;
    own = job->at_meta;
    for (k = 0; k < SVC_KEYS; k++)
        given[k] = &job->none;
    for (;;) {
        bool more = general < end && general->port == 0;
        bool more_own = own < end && own->port == s->exposed;
        int d = !more ? 1 : !more_own ? -1 : str_cmp(general->key, own->key);
        struct svc_meta *m = d < 0 ? general : own;

        if (!more && !more_own)
            break;
        general += d <= 0;
        own += d >= 0;
        for (k = 0; k < SVC_KEYS && !str_eq(m->key, str_of(svc_key[k]));)
            k++;
        if (k < SVC_KEYS)
            given[k] = m;
        else
            buf_add(&attrs, BYTES(m));
    }
    s->attrs = attrs.n / sizeof *s->attr;
    s->attr = buf_array(&attrs, job->a);
}

/* ---- Tags, names, IDs ---- */

/* Splits a list of tags with commas between them, once for all ports that have
 * it: sets m->tag to those of the container, of the command line, and of UDP,
 * without empty ones and those that would be too much.  "\," is a comma in a
 * tag. */
static void svc_split_tags(struct svc_job *job, struct svc_meta *m)
{
    struct str list[] = { m->value, STR(","), job->cfg->tags, STR(",") };
    struct str udp = STR("udp"), copy;
    struct buf tags = { 0 }, tag = { 0 };
    size_t room = SERVICE_TAGS_MAX, lost = 0, i, used;

    for (i = 0; i < LENGTH(list); i++)
        for (; list[i].n > 0; list[i] = str_from(list[i], used)) {
            used = str_prefix(list[i], STR("\\,")) ? 2 : 1;
            if (used == 2 || *list[i].p != ',') {
                buf_byte(&tag, used == 2 ? ',' : *list[i].p);
                continue;
            }
            if (tag.n > room) {
                lost++;
            } else if (tag.n > 0) {
                room -= tag.n;
                copy = str_copy(job->a, buf_str(&tag));
                buf_add(&tags, BYTES(copy));
            }
            tag.n = 0;
        }
    buf_add(&tags, BYTES(udp));
    m->tags = tags.n / sizeof *m->tag;
    m->tag = buf_array(&tags, job->a);
    buf_free(&tag);
    if (lost > 0)
        svc_note(job->notes, LOG_WARN, false, "more than %d bytes of tags: "
                 "%zu of them are left out", SERVICE_TAGS_MAX, lost);
}

/* The value of the container's label of that name; empty: it has none, or the
 * name is empty. */
static struct str svc_label(const struct docker_container *c, struct str name)
{
    size_t i;

    for (i = 0; name.n > 0 && i < c->labels; i++)
        if (str_eq(c->label[i].name, name))
            return c->label[i].value;
    return STR("");
}

/* The last part of the image's name; empty if that is an ID, whole or the
 * beginning; six digits are too many to be a name by chance. */
static struct str svc_image_name(const struct docker_container *c)
{
    struct str s = c->image;

    if (str_prefix(s, STR("sha256:")) ||
        (str_all(s, isxdigit) &&
         (s.n == 64 || s.n == 12 || (s.n >= 6 && str_prefix(c->digest, s)))))
        return STR("");
    s = str_cut(&s, '@');
    while (s.n > 1 && s.p[s.n - 1] == '/')
        s.n--;
    s = str_after(s, '/');
    return str_cut(&s, ':');
}

/* "web" and, if the container has several ports, "web-8080"; a name that is
 * given for this very port stays as it is.  SERVICE_NAME or, if that is
 * missing or too long, the image's, the compose service's, the container's,
 * its ID. */
static struct str svc_name(const struct svc_job *job, const struct service *s,
                           const struct svc_meta *given)
{
    const struct str names[] = { given->value, job->image, job->compose,
                                 job->c->name, str_first(job->c->id, 12) };
    size_t i;

    for (i = 0; i < LENGTH(names); i++) {
        struct buf name = { .max = SERVICE_NAME_MAX };

        if (names[i].n == 0)
            continue;
        buf_add(&name, names[i]);
        if (job->set->several && (i > 0 || given->port == 0))
            buf_fmt(&name, "-%u", s->exposed);
        if (!name.bad)
            return buf_done(&name, job->a);
        buf_free(&name);
        svc_note(job->notes, LOG_WARN, false, "port %u: the name %.*s... has "
                 "more than %d bytes and is not used", s->exposed,
                 PUT(str_first(names[i], 40)), SERVICE_NAME_MAX);
    }
    return STR("");
}

/* Whether Consul can deregister the ID, which it takes from a path: it answers
 * 301 if // or a . or .. part is in it, and 400 to many characters beyond
 * ASCII, however they are escaped (seen in 1.8.7). */
static bool svc_id_ok(struct str id)
{
    struct str rest = id, part;

    if (id.n == 0 || id.n > SERVICE_ID_MAX || !str_all(id, isprint))
        return false;
    while (rest.n > 0) {
        part = str_cut(&rest, '/');
        if (part.n == 0 || str_eq(part, STR(".")) || str_eq(part, STR("..")))
            return false;
    }
    return true;
}

/* <base>:<port>[:udp] */
static struct str svc_port_id(const struct svc_job *job, struct str base,
                              const struct service *s)
{
    return str_fmt(job->a, "%.*s:%u%s", PUT(base), s->exposed,
                   s->proto == DOCKER_UDP ? ":udp" : "");
}

/* By the digests of IDs in lower case, since Consul's catalog compares them
 * without regard to it.  Two that are one by chance get different IDs. */
static int svc_id_cmp(const void *a, const void *b)
{
    const struct service *p = a, *q = b;

    return p->id_digest < q->id_digest ? -1 : p->id_digest > q->id_digest;
}

/* Sets the ID: SERVICE_ID if that can be used, else the default one.  No two
 * services of a container have the same: the later one gets its port appended.
 * False: there is none that can be used. */
static bool svc_set_id(struct svc_job *job, struct service *s,
                       const struct svc_meta *given)
{
    struct str usual = svc_port_id(job, job->id, s);
    bool ok = svc_id_ok(given->value);
    struct str first = ok ? given->value : usual;
    struct buf lower = { 0 };
    struct service **found;

    if (!ok && given != &job->none)
        svc_note(job->notes, LOG_WARN, false, "port %u: SERVICE_ID \"%.*s\" "
                 "cannot be used (1 to %d characters of ASCII, no leading /, "
                 "no //, no . or .. part): the ID is %.*s", s->exposed,
                 PUT(str_first(given->value, 100)), SERVICE_ID_MAX,
                 PUT(usual));
    ok = ok || svc_id_ok(usual);
    for (s->id = first; ok && s->id.n <= SERVICE_ID_MAX;
         s->id = svc_port_id(job, s->id, s)) {
        lower.n = 0;
        buf_lower(&lower, s->id);
        s->id_digest = str_hash(0, buf_str(&lower));
        found = tsearch(s, &job->by_id, svc_id_cmp);
        if (found == NULL)
            mem_none();
        if (*found == s)
            break;
    }
    buf_free(&lower);
    ok = ok && s->id.n <= SERVICE_ID_MAX;
    s->default_id = str_eq(s->id, usual);
    if (ok && s->id.p != first.p)
        svc_note(job->notes, LOG_WARN, false, "two services with the ID "
                 "%.*s: that of port %u is %.*s", PUT(str_first(first, 100)),
                 s->exposed, PUT(str_first(s->id, 200)));
    return ok;
}

/* ---- Where a port is reached ---- */

/* The container's own address: on the network that NetworkMode names, else on
 * the first by name.  With `routable`, only on networks whose addresses are
 * reachable from outside. */
static struct str svc_own_address(const struct docker_container *c,
                                  bool routable)
{
    struct str mode = str_eq(c->mode, STR("default")) ? STR("bridge")
                                                      : c->mode;
    const struct docker_network *first = NULL, *n = c->network;

    for (; n < c->network + c->networks; n++) {
        if (n->ip.n == 0 || (routable && !n->routable))
            continue;
        if (str_eq(n->name, mode) || (n->id.n > 0 && str_eq(n->id, mode)))
            return n->ip;
        if (first == NULL || str_cmp(n->name, first->name) < 0)
            first = n;
    }
    return first != NULL ? first->ip : STR("");
}

/* As docker_port_cmp: a port of the container, and one of its services. */
static int svc_port_cmp(const void *port, const void *service)
{
    const struct service *s = service;
    struct docker_port q = { .number = s->exposed, .proto = s->proto };

    return docker_port_cmp(port, &q);
}

/* The address of a port that the host has: section 0, Address. */
static void svc_at_host(const struct svc_config *cfg, struct str bound,
                        struct service *s)
{
    bool any = bound.n == 0 || str_eq(bound, STR("0.0.0.0")) ||
               str_eq(bound, STR("::"));

    s->address = cfg->ip.n > 0 ? cfg->ip : any ? cfg->host : bound;
    s->kept = cfg->ip_unknown;  /* nothing is concluded from that */
}

/* A port of a container that does not run: where it was while it ran.  One
 * that was never seen running has port 0: it keeps what its ID names, no
 * more. */
static bool svc_locate_former(const struct svc_job *job,
                              const struct docker_port *p, struct service *s)
{
    const struct svc_set *before = job->before;
    const struct service *was = NULL;

    if (before != NULL)
        was = bsearch(p, before->service, before->n, sizeof *was,
                      svc_port_cmp);
    s->port = was != NULL ? was->port : 0;
    s->address = was != NULL ? was->address : STR("");
    s->kept = was == NULL || was->kept;
    return before == NULL || was != NULL;
}

/* Begins the service of a port with where it is reached: section 0, Ports.
 * With a network that is shared, the binding is that of the container that has
 * it.  False: it is not reached. */
static bool svc_locate(const struct svc_job *job, const struct docker_port *p,
                       struct service *s)
{
    const struct docker_container *net = job->net;
    bool shares = net != job->c, internal = job->cfg->internal;
    bool listed = p->listed && !shares;         /* Ports has an entry */

    *s = (struct service){ .port = p->number, .exposed = p->number,
                           .proto = p->proto, .set = job->set };
    if (!job->c->running)
        return svc_locate_former(job, p, s);
    if (shares && (net == NULL || !p->exposed))
        return false;
    if (shares)
        p = net->ports == 0 ? NULL
            : bsearch(p, net->port, net->ports, sizeof *p, docker_port_cmp);
    if (str_eq(net->mode, STR("host")) && (internal || !listed)) {
        svc_at_host(job->cfg, STR(""), s);
    } else if (p != NULL && p->host_port > 0 && !internal) {
        s->port = p->host_port;
        svc_at_host(job->cfg, p->host_ip, s);
    } else if (listed ? internal : job->direct.n > 0) {
        s->address = internal ? job->own : job->direct;
        if (s->address.n == 0)
            return false;
    } else {
        return false;
    }
    if (job->label_ip.n > 0) {
        s->address = job->label_ip;
        s->kept = false;
    }
    return true;
}

/* ---- All services of a container ---- */

/* Makes the service of a port that is reached.  False: it has none, and a note
 * says why. */
static bool svc_make(struct svc_job *job, struct service *s)
{
    struct svc_notes *notes = job->notes;
    struct svc_meta *given[SVC_KEYS];
    bool ignore;

    svc_read_metas(job, s, given);
    ignore = given[SVC_IGNORE]->value.n > 0;
    if (ignore || (job->cfg->only_named && given[SVC_NAME]->value.n == 0)) {
        svc_note(notes, LOG_INFO, true, "service on port %u: %s", s->exposed,
                 ignore ? "SERVICE_IGNORE is set"
                        : "no SERVICE_NAME (-explicit)");
        return false;
    }
    if (s->address.n == 0 && job->cfg->no_host && !s->kept) {
        svc_note(notes, LOG_WARN, true, "port %u: this host's address is not "
                 "known, give it with -ip", s->exposed);
        return false;
    }
    s->address = str_copy(job->a, s->address);
    s->name = svc_name(job, s, given[SVC_NAME]);
    if (!svc_set_id(job, s, given[SVC_ID])) {
        svc_note(notes, LOG_WARN, true, "port %u: no usable ID", s->exposed);
        return false;
    }
    if (given[SVC_TAGS]->tag == NULL)
        svc_split_tags(job, given[SVC_TAGS]);
    s->tag = given[SVC_TAGS]->tag;
    s->tags = given[SVC_TAGS]->tags - (s->proto != DOCKER_UDP);
    return true;
}

/* The services of a container.  `shared` is the container whose network it
 * shares, if it does and that one runs; `before`, of one that does not run,
 * are its services while it ran, or NULL.  Too large: more than SERVICES_SIZE
 * of the set's arena is used.  The caller frees the set. */
static struct svc_set *svc_derive(const struct svc_config *cfg,
                                  const struct docker_container *c,
                                  const struct docker_container *shared,
                                  const struct svc_set *before,
                                  struct svc_notes *notes)
{
    struct svc_set *set = mem_zero(sizeof *set);
    struct svc_job job = { .cfg = cfg, .c = c, .before = before,
                           .net = docker_shares(c) ? shared : c, .set = set,
                           .a = &set->arena, .notes = notes };
    struct str ip = svc_label(c, cfg->ip_label);
    struct service *s, unused;
    size_t open = 0, i;

    set->running = c->running;
    memcpy(set->container, c->id.p, 12);
    svc_metas(&job);
    job.own = svc_own_address(job.net != NULL ? job.net : c, false);
    job.direct = job.net == c ? svc_own_address(c, true) : job.own;
    job.label_ip = str_cut(&ip, '/');
    if (job.label_ip.n > SERVICE_NAME_MAX)
        job.label_ip.n = 0;             /* it is no address */
    job.image = svc_image_name(c);
    job.compose = svc_label(c, STR("com.docker.compose.service"));
    job.id = str_fmt(job.a, "%.*s:%.*s", PUT(cfg->hostname), PUT(c->name));
    for (i = 0; i < c->ports; i++)
        open += svc_locate(&job, &c->port[i], &unused);
    set->several = c->running || before == NULL ? open > 1 : before->several;
    open = open < SERVICES_MAX ? open : SERVICES_MAX;
    set->service = arena_alloc(job.a, (open + 1) * sizeof *set->service);
    for (i = 0; i < c->ports && job.a->used <= SERVICES_SIZE; i++) {
        s = &set->service[set->n];
        if (!svc_locate(&job, &c->port[i], s))
            svc_note(notes, LOG_INFO, true, "port %u not published on host",
                     s->exposed);
        else if (set->n == SERVICES_MAX)
            svc_note(notes, LOG_WARN, false, "more than %d services: that of "
                     "port %u is left out", SERVICES_MAX, s->exposed);
        else
            set->n += svc_make(&job, s);
    }
    for (i = 0; i < set->n; i++)
        (void)tdelete(&set->service[i], &job.by_id, svc_id_cmp);
    if (c->ports == 0)
        svc_note(notes, LOG_INFO, true, "no published ports");
    return set;
}

/* ==== 12. Registries ====================== reg_ env_ consul_ print_ ====
 *
 * All that differs from one registry to the next: rows of one constant table.
 * A row makes requests and reads answers; it keeps nothing about services.  No
 * other section knows a word of Consul.
 *
 * Calls: str_ buf_ mem_ err_ log_ json_ url_ os_ ip_ conn_ svc_.
 */

struct registry {
    const struct reg_kind *kind;
    struct endpoint peer;
    void *own;                  /* what the row keeps: tokens and the like */
    bool ip_given;              /* this host's address is not needed: -ip */
    struct buf host;            /* this host's address, as it knows it */
    bool no_host;               /* it knows none that others could use */
    uint64_t owner;             /* the first half of our marks */
    unsigned ttl_s, refresh_s;  /* -ttl, -ttl-refresh; 0: entries stay, and
                                   need not be written again */
};

/* In a digest: not known, or not kept by this registry. */
#define REG_ANY UINT64_MAX

/* An entry as the registry lists it. */
struct reg_item {
    struct str key;             /* what write() has to name */
    struct str id;              /* of the service */
    struct digest have;
    uint64_t owner;             /* of its mark; 0: it has none */
};

enum reg_op { REG_REGISTER, REG_DEREGISTER, REG_LIST };

/* A registration or a removal. */
struct reg_write {
    enum reg_op op;
    struct str key;
    struct str text;            /* to be stored, from value() */
    const struct service *service;      /* in step 0 only */
    bool replace_checks;
};

enum reg_verdict {
    REG_DONE,
    REG_NEXT,           /* a further step has to follow */
    REG_RENEWED,        /* the token is another one now */
    REG_RETRY,          /* later */
    REG_REJECTED        /* for good, until something is changed */
};

/* The registries by the scheme of their URI. */
struct reg_scheme {
    struct str scheme;
    const struct reg_kind *kind;
    unsigned port;              /* 0: no host in the URI */
    bool tls;
    const char *example;
};

struct reg_kind {
    bool caseless;      /* keys that differ by case alone are one */
    const char *reserved;       /* a key that the registry keeps to itself */
    bool expires;       /* entries have to be written anew: -ttl */
    unsigned list_depth;        /* of a list's items, and the bracket that */
    char list_open;             /* it begins with: see struct splitter */
    /* Reads its address, credentials and environment. */
    int (*setup)(struct registry *, const struct reg_scheme *,
                const struct url *, struct err *);
    /* The questions before all others: as in struct side_kind. */
    struct request *(*hello)(struct registry *, unsigned step);
    int (*on_hello)(struct registry *, unsigned step, const struct answer *,
                    struct err *);
    /* The key of the service in this registry (NULL: its ID), and what is
     * stored under it; without a mark it is what the digest is of.  What
     * cannot be stored is left out, and the notes (unless NULL) say so. */
    struct str (*key)(const struct registry *, const struct service *,
                      struct arena *);
    void (*value)(const struct registry *, const struct service *,
                  struct str mark, struct buf *, struct digest *,
                  struct svc_notes *);
    /* The request of a step; NULL: it is done. */
    struct request *(*write)(struct registry *, const struct reg_write *,
                             unsigned step);
    enum reg_verdict (*verdict)(struct registry *, enum reg_op,
                                unsigned step, const struct answer *);
    /* The request of the list, and what one of its items says; false: it
     * cannot be read.  NULL: there is no list, and nothing is there at the
     * start. */
    struct request *(*list)(struct registry *);
    bool (*item)(const struct registry *, const struct json *,
                 struct arena *, struct reg_item *);
    /* Why a port has no service; NULL: the log will do. */
    void (*ignored)(struct str container, struct str why);
};

/* The digest of an entry's name, address and port. */
static uint64_t reg_place(struct str name, struct str address, uint64_t port)
{
    return str_hash(str_hash(port, name), address);
}

/* The mark of an entry, OWNER-CONTENT: whose it is, 16 digits; 16 of what is
 * stored, which is never REG_ANY, and 8 of its checks. */
static void reg_mark(struct buf *b, uint64_t owner, const struct digest *d)
{
    buf_fmt(b, "%016llx-%016llx%08x", (unsigned long long)owner,
            (unsigned long long)d->content, (unsigned)d->checks);
}

/* False: it is no mark, and nothing is set. */
static bool reg_read_mark(struct str s, struct reg_item *item)
{
    struct str owner = str_cut(&s, '-');
    struct reg_item read = *item;

    if (owner.n != 16 || s.n != 24 ||
        !str_number(owner, 16, UINT64_MAX, &read.owner) ||
        !str_number(str_upto(s, 16), 16, REG_ANY - 1, &read.have.content) ||
        !str_number(str_from(s, 16), 16, UINT64_MAX, &read.have.checks))
        return false;
    *item = read;
    return true;
}

/* Whether an ID is one that a registrator on this host makes by default:
 * ^(.+?):([a-zA-Z0-9][a-zA-Z0-9_.-]+):[0-9]+(:udp)?$, the first group being
 * the host name. */
static bool reg_is_default_id(struct str id, struct str host)
{
    struct str end = STR(":udp"), name;
    size_t i;

    if (str_suffix(id, end))
        id = str_upto(id, id.n - end.n);
    if (!str_prefix(id, host) || id.n <= host.n || id.p[host.n] != ':')
        return false;
    id = str_from(id, host.n + 1);
    name = str_cut(&id, ':');
    for (i = 0; i < name.n; i++)
        if (!isalnum((unsigned char)name.p[i]) &&
            (i == 0 || !str_has(STR("_.-"), name.p[i])))
            return false;
    return name.n >= 2 && id.n > 0 && str_all(id, isdigit);
}

/* ---- The environment ---- */

static struct str env_get(const char *name)
{
    return str_of(getenv(name));
}

/* A Go bool; what is none counts as false, with a warning, as in Consul's own
 * tool. */
static bool env_bool(const char *name)
{
    struct str value = env_get(name);
    bool on = false;

    if (value.n > 0 && !str_bool(value, &on))
        log_at(LOG_WARN, "%s is true or false, not \"%.*s\": it counts as "
                         "false", name, PUT(value));
    return on;
}

/* The file that the first of two variables names that is set; NULL: none. */
static const char *env_file(const char *name, const char *older)
{
    struct str path = env_get(env_get(name).n > 0 ? name : older);

    return path.n > 0 ? path.p : NULL;
}

static int env_check_socket(struct str path, const char *what, struct err *e)
{
    struct os_addr unused;
    struct err why;

    if (os_unix(path, &unused, &why) == 0)
        return 0;
    return err_set(e, "%s: %s (as in unix:///path)", what, why.text);
}

/* ---- Consul's agent: developer.hashicorp.com/consul/api-docs ---- */

struct consul {
    struct buf query;           /* "ns=...&partition=...", or empty */
    struct buf user;            /* the header of user and password: a secret */
    const char *token_file;     /* NULL: none */
    struct buf leader;          /* the last that was logged */
    bool no_self;               /* that it may not be asked is logged */
};

/* Makes the headers with our credentials; the token's file is read again.  1:
 * they are others now; -1: they are those of before. */
static int consul_headers(struct registry *r, struct err *e)
{
    const struct consul *c = r->own;
    struct str token = env_get("CONSUL_HTTP_TOKEN");
    struct buf file = { .max = HTTP_LINE_MAX }, b = { 0 };
    int result = c->token_file == NULL ? 0 : os_file(c->token_file, &file, e);

    if (c->token_file != NULL)
        token = str_trim(buf_str(&file));
    if (token.n > 0)
        buf_header(&b, "X-Consul-Token", token);
    buf_add(&b, buf_str(&c->user));
    buf_free(&file);
    if (b.bad)
        result = err_set(e, "%s: not a token", c->token_file != NULL
                         ? c->token_file : "CONSUL_HTTP_TOKEN");
    if (result == 0 && !str_eq(buf_str(&b), buf_str(&r->peer.headers))) {
        result = 1;
        r->peer.headers.n = 0;
        buf_add(&r->peer.headers, buf_str(&b));
    }
    buf_free(&b);
    return result;
}

/* TLS, with the files that Consul's own tool takes. */
static int consul_open_tls(struct registry *r, struct err *e)
{
    struct tls_config *tls = &r->peer.tls;
    struct str verify = env_get("CONSUL_HTTP_SSL_VERIFY");
    struct str name = env_get("CONSUL_TLS_SERVER_NAME");
    bool on = true;

    if (verify.n > 0 && !str_bool(verify, &on))
        return err_set(e, "CONSUL_HTTP_SSL_VERIFY is true or false, not "
                          "\"%.*s\"", PUT(verify));
    if (!on)
        log_at(LOG_WARN, "CONSUL_HTTP_SSL_VERIFY=false: ANYBODY between here "
                         "and Consul can read and change everything");
    tls->insecure = !on;
    tls->ca_file = env_file("CONSUL_CACERT", "");
    tls->cert_file = env_file("CONSUL_CLIENT_CERT", "CONSUL_TLSCERT");
    tls->key_file = env_file("CONSUL_CLIENT_KEY", "CONSUL_TLSKEY");
    if ((tls->cert_file == NULL) != (tls->key_file == NULL))
        return err_set(e, "of CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY only "
                          "one is set: a client certificate needs its key");
    return conn_use_tls(&r->peer, name.n > 0 ? name : r->peer.host, e);
}

/* CONSUL_HTTP_ADDR: [http://|https://]host[:port], or unix:///path.  Ports as
 * Go's HTTP client has them: 443 of https://, 80 of http://. */
static int consul_read_addr(struct str text, struct url *u, struct err *e)
{
    static struct buf whole;    /* u points into it */
    bool bare = str_find(text, STR("://")) == text.n, https;
    struct err why;

    buf_fmt(&whole, "%s%.*s", bare ? "http://" : "", PUT(text));
    if (url_parse(buf_str(&whole), u, &why) != 0)
        return err_set(e, "CONSUL_HTTP_ADDR: %s", why.text);
    if (str_eq(u->scheme, STR("unix")))
        return env_check_socket(u->path, "CONSUL_HTTP_ADDR", e);
    https = str_eq(u->scheme, STR("https"));
    if ((!https && !str_eq(u->scheme, STR("http"))) ||
        (u->path.n > 0 && !str_eq(u->path, STR("/"))))
        return err_set(e, "CONSUL_HTTP_ADDR is host:port, http://host, "
                          "https://host or unix:///path, without another "
                          "path");
    u->path.n = 0;
    if (u->port == 0 && !bare)
        u->port = https ? 443 : 80;
    return 0;
}

/* Token, user and password, namespace and partition. */
static int consul_open_access(struct registry *r, struct str uri_user,
                              struct err *e)
{
    static const char *const part[2][2] = {
        { "CONSUL_NAMESPACE", "ns=" }, { "CONSUL_PARTITION", "partition=" }
    };
    struct str auth = env_get("CONSUL_HTTP_AUTH");
    struct consul *c = r->own;
    struct buf user = { 0 };
    bool ok = url_decode(&user, auth.n > 0 ? STR("") : uri_user);
    size_t i;

    for (i = 0; i < 2; i++)
        if (env_get(part[i][0]).n > 0) {
            buf_fmt(&c->query, "%s%s", c->query.n > 0 ? "&" : "", part[i][1]);
            buf_url(&c->query, env_get(part[i][0]));
        }
    buf_add(&user, auth);
    if (user.n > 0) {
        buf_lit(&user, str_has(buf_str(&user), ':') ? "" : ":");
        buf_lit(&c->user, "Authorization: Basic ");
        url_base64(&c->user, buf_str(&user));
        buf_lit(&c->user, "\r\n");
    }
    buf_free(&user);
    if (!ok)
        return err_set(e, "the user part of the URI has a %% without two "
                          "hexadecimal digits");
    c->token_file = env_file("CONSUL_HTTP_TOKEN_FILE", "");
    return consul_headers(r, e) < 0 ? -1 : 0;
}

static int consul_open(struct registry *r, const struct reg_scheme *scheme,
                       const struct url *uri, struct err *e)
{
    struct str addr = env_get("CONSUL_HTTP_ADDR");
    struct url u = *uri;
    bool tls;

    if (env_get("CONSUL_CAPATH").n > 0)
        return err_set(e, "CONSUL_CAPATH is not supported: name a file of CAs "
                          "in CONSUL_CACERT instead");
    r->own = mem_zero(sizeof(struct consul));
    conn_init(&r->peer, "consul", 4);
    if (scheme->port == 0 &&
        env_check_socket(u.path, "the registry URI", e) != 0)
        return -1;
    if (scheme->port > 0)
        u.path.n = 0;           /* it may be "/" */
    if (scheme->port > 0 && u.host.n == 0 && addr.n > 0 &&
        consul_read_addr(addr, &u, e) != 0)
        return -1;
    conn_set_address(&r->peer, u.path, u.host.n > 0 ? u.host
                     : STR("127.0.0.1"), u.port > 0 ? u.port : scheme->port);
    tls = scheme->tls || str_eq(u.scheme, STR("https")) ||
          (u.path.n == 0 && env_bool("CONSUL_HTTP_SSL"));
    if (tls && consul_open_tls(r, e) != 0)
        return -1;
    return consul_open_access(r, uri->user.n > 0 ? uri->user : u.user, e);
}

/* A request for the path, the ID as its end, with namespace and partition. */
static struct request *consul_request(struct registry *r, const char *method,
                                      const char *path, struct str id,
                                      struct str body)
{
    const struct consul *c = r->own;
    struct buf b = { 0 };
    struct request *q;

    buf_lit(&b, path);
    buf_url(&b, id);
    if (c->query.n > 0)
        buf_byte(&b, str_has(str_of(path), '?') ? '&' : '?');
    buf_add(&b, buf_str(&c->query));
    q = conn_request(&r->peer, method, buf_str(&b), body);
    buf_free(&b);
    return q;
}

static const char *const consul_hellos[] = { "/v1/status/leader",
                                             "/v1/agent/self" };

static struct request *consul_hello(struct registry *r, unsigned step)
{
    return step == LENGTH(consul_hellos) ? NULL
        : consul_request(r, "GET", consul_hellos[step], STR(""), STR(""));
}

/* The leader is logged; an agent without one takes registrations all the same.
 * What the agent advertises is this host's address, since both share a host;
 * without the right to ask (agent:read) it stays empty, and Consul puts in the
 * node's. */
static int consul_on_hello(struct registry *r, unsigned step,
                           const struct answer *a, struct err *e)
{
    struct consul *c = r->own;
    struct json j = { .n = 0 };
    bool self = step > 0, allowed = a->status == 200, ok;
    struct str body = self ? STR("{}") : STR("\"\""), found;
    int renewed = self && a->status == 403 ? consul_headers(r, e) : 0;
    struct err why;

    if (renewed != 0)
        return renewed < 0 ? -1 : err_set(e, "the token was refused, and is "
                                             "another one now");
    conn_reason(a, &why);
    if (!allowed && a->status != (self ? 403 : 500))
        return err_set(e, "GET %s: %.400s", consul_hellos[step], why.text);
    ok = json_parse(&j, allowed ? a->body : body, &why) == 0 &&
         json_type(&j, JSON_ROOT) == (self ? JSON_OBJECT : JSON_STRING);
    if (!ok) {
        err_set(e, "this does not look like a Consul agent: GET %s: %.300s",
                consul_hellos[step], why.text);
    } else if (self) {
        found = json_get_raw(&j, json_get(&j, JSON_ROOT, "Member"), "Addr");
        r->host.n = 0;
        buf_add(&r->host, found);
        if (!allowed && !c->no_self)
            log_at(LOG_INFO, "consul: /v1/agent/self is not allowed "
                             "(agent:read): services get the node's address");
        c->no_self = !allowed;
    } else {
        found = json_raw(&j, JSON_ROOT);
        if (found.n == 0)
            log_at(LOG_WARN, "consul: no leader yet");
        else if (!str_eq(found, buf_str(&c->leader)))
            log_at(LOG_INFO, "consul: current leader %.*s", PUT(found));
        c->leader.n = 0;
        buf_add(&c->leader, found);
    }
    json_free(&j);
    return ok ? 0 : -1;
}

/* Adds "name":"value", if there is a value, and a comma before it, but for the
 * first. */
static void consul_member(struct buf *b, const char *name, struct str value)
{
    if (value.n == 0)
        return;
    buf_lit(b, b->n > 0 && b->p[b->n - 1] != '{' ? "," : "");
    buf_json(b, str_of(name));
    buf_byte(b, ':');
    buf_json(b, value);
}

/* The script with $SERVICE_IP and $SERVICE_PORT replaced. */
static void consul_script(struct buf *b, struct str script,
                          struct str address, unsigned number)
{
    const struct str ip = STR("$SERVICE_IP"), port = STR("$SERVICE_PORT");

    while (script.n > 0) {
        size_t used = 1;

        if (str_prefix(script, ip)) {
            buf_add(b, address);
            used = ip.n;
        } else if (str_prefix(script, port)) {
            buf_fmt(b, "%u", number);
            used = port.n;
        } else {
            buf_byte(b, *script.p);
        }
        script = str_from(script, used);
    }
}

/* The check of a service as Consul's "Check" object, behind `before`, or
 * nothing: the first of the attributes that is there and not empty.  Only keys
 * that are needed: Consul refuses a registration with a key that it does not
 * know.  Where Consul puts the address in, it is that of the agent, which
 * makes the check. */
static void consul_check(struct buf *b, const char *before,
                         const struct service *s)
{
    enum { HTTP, HTTPS, CMD, SCRIPT, TTL, TCP, GRPC, NONE } k;
    static const struct {
        const char *attr, *start, *url;     /* url: how the place begins */
    } kind[] = {
        { "check_http", "{\"HTTP\":", "http://" },
        { "check_https", "{\"HTTP\":", "https://" },
        { "check_cmd", "{\"Args\":[\"check-cmd\",", NULL },
        { "check_script", "{\"Args\":[\"/bin/sh\",\"-c\",", NULL },
        { "check_ttl", "{\"TTL\":", NULL },
        { "check_tcp", "{\"TCP\":", "" }, { "check_grpc", "{\"GRPC\":", "" },
    };
    struct str address = s->address.n > 0 ? s->address : STR("127.0.0.1");
    struct str value = STR(""), interval = svc_attr(s, "check_interval");
    bool tls, skip = svc_attr(s, "check_tls_skip_verify").n > 0;
    struct buf text = { 0 };

    for (k = HTTP; k != NONE && value.n == 0; k++)
        value = svc_attr(s, kind[k].attr);
    if (value.n == 0)
        return;
    k--;
    if (kind[k].url != NULL) {
        buf_lit(&text, kind[k].url);
        url_put(&text, address, s->port);
    }
    if (k == HTTP || k == HTTPS)
        buf_lit(&text, *value.p != '/' ? "/" : "");
    if (k == SCRIPT)
        consul_script(&text, value, address, s->port);
    else if (k != TCP && k != GRPC)
        buf_add(&text, value);
    buf_fmt(b, "%s%s", before, kind[k].start);
    if (k == CMD)
        buf_fmt(b, "\"%s\",\"%u\",", s->set->container, s->exposed);
    buf_json(b, buf_str(&text));
    buf_free(&text);
    buf_lit(b, k == CMD || k == SCRIPT ? "]" : "");
    if (k == HTTP || k == HTTPS)
        consul_member(b, "Method", svc_attr(s, k == HTTP
                          ? "check_http_method" : "check_https_method"));
    tls = k == GRPC && svc_attr(s, "check_grpc_use_tls").n > 0;
    buf_lit(b, tls ? ",\"GRPCUseTLS\":true" : "");
    buf_lit(b, skip && (tls || k == HTTPS) ? ",\"TLSSkipVerify\":true" : "");
    if (k != TTL)
        consul_member(b, "Interval",
                      interval.n > 0 ? interval : STR("10s"));
    if (kind[k].url != NULL)
        consul_member(b, "Timeout", svc_attr(s, "check_timeout"));
    consul_member(b, "Status", svc_attr(s, "check_initial_status"));
    consul_member(b, "DeregisterCriticalServiceAfter",
                  svc_attr(s, "check_deregister_after"));
    buf_byte(b, '}');
}

static int consul_meta_char(int c)
{
    return isalnum(c) || c == '_' || c == '-';
}

/* Adds the attributes of a service that Consul can keep: one that it refuses
 * would lose the whole registration (seen in 1.8.7).  Of 64, one is for our
 * mark. */
static void consul_meta(struct buf *b, const struct service *s,
                        struct svc_notes *notes)
{
    struct buf left = { .max = ERR_MAX / 2 };
    size_t i, n = 0;

    for (i = 0; i < s->attrs; i++) {
        const struct svc_meta *a = s->attr[i];

        if (n < 63 && a->key.n > 0 && a->key.n <= 128 && a->value.n <= 512 &&
            str_all(a->key, consul_meta_char) &&
            !str_prefix(a->key, STR("consul-")) &&
            !str_eq(a->key, STR("registrator"))) {
            buf_lit(b, n++ > 0 ? "," : "");
            buf_json(b, a->key);
            buf_byte(b, ':');
            buf_json(b, a->value);
        } else {
            buf_fmt(&left, " \"%.*s\"", PUT(str_first(a->key, 140)));
        }
    }
    if (notes != NULL && left.n > 0)
        svc_note(notes, LOG_WARN, false, "port %u: attributes left out, since "
                 "Consul keeps 63 with names of 1 to 128 characters A-Z a-z "
                 "0-9 _ -, but not consul-... and registrator, and values of "
                 "up to 512 bytes:%.*s", s->exposed, PUT(buf_str(&left)));
    buf_free(&left);
}

/* A registration: PUT /v1/agent/service/register. */
static void consul_value(const struct registry *r, const struct service *s,
                         struct str mark, struct buf *b, struct digest *d,
                         struct svc_notes *notes)
{
    size_t i, checks;

    (void)r;
    d->place = reg_place(s->name, s->address, s->port);
    d->tags = 0;
    buf_byte(b, '{');
    consul_member(b, "ID", s->id);
    consul_member(b, "Name", s->name);
    consul_member(b, "Address", s->address);
    buf_fmt(b, ",\"Port\":%u%s", s->port, s->tags > 0 ? ",\"Tags\":[" : "");
    for (i = 0; i < s->tags; i++) {
        buf_lit(b, i > 0 ? "," : "");
        buf_json(b, s->tag[i]);
        d->tags = str_hash(d->tags, s->tag[i]);
    }
    buf_lit(b, s->tags > 0 ? "],\"Meta\":{" : ",\"Meta\":{");
    consul_meta(b, s, notes);
    consul_member(b, "registrator", mark);
    buf_byte(b, '}');
    checks = b->n;
    consul_check(b, ",\"Check\":", s);
    d->checks = str_hash(0, str_from(buf_str(b), checks)) & 0xffffffff;
    buf_byte(b, '}');
    d->content = str_hash(0, buf_str(b));
}

/* Without the parameter, checks that the new registration lacks would stay;
 * with it, maintenance mode ends: so it is sent if checks have changed, and
 * only then (Consul 1.6.1; older agents ignore it). */
static struct request *consul_write(struct registry *r,
                                    const struct reg_write *w, unsigned step)
{
    if (step > 0)
        return NULL;
    if (w->op == REG_DEREGISTER)
        return consul_request(r, "PUT", "/v1/agent/service/deregister/",
                              w->key, STR(""));
    return consul_request(r, "PUT", w->replace_checks
            ? "/v1/agent/service/register?replace-existing-checks=true"
            : "/v1/agent/service/register", STR(""), w->text);
}

/* An ID that the agent does not know is deregistered: 200 (1.8.7), 500 (with
 * ACLs) or 404 (1.11), both in these words.  A registration with a bad check
 * is a 400, or a 500 if scripts are not enabled. */
static enum reg_verdict consul_verdict(struct registry *r, enum reg_op op,
                                       unsigned step, const struct answer *a)
{
    struct str unknown = STR("Unknown service"), off = STR("Scripts are dis");
    struct err unused;

    (void)step;
    if (a->status == 200)
        return REG_DONE;
    if (a->status == 403 && consul_headers(r, &unused) > 0)
        return REG_RENEWED;
    if (op == REG_DEREGISTER && (a->status == 404 || a->status == 500) &&
        str_find(a->body, unknown) < a->body.n)
        return REG_DONE;
    if (op == REG_REGISTER && str_find(a->body, off) < a->body.n)
        return REG_REJECTED;
    return op != REG_LIST && a->status == 400 ? REG_REJECTED : REG_RETRY;
}

static struct request *consul_list(struct registry *r)
{
    return consul_request(r, "GET", "/v1/agent/services", STR(""), STR(""));
}

/* One value of GET /v1/agent/services.  An agent before 1.0.7 has no Meta. */
static bool consul_item(const struct registry *r, const struct json *j,
                        struct arena *a, struct reg_item *item)
{
    size_t tags = json_get(j, JSON_ROOT, "Tags"), i;
    size_t meta = json_get(j, JSON_ROOT, "Meta");
    uint64_t port = 0;

    (void)r;
    item->key = item->id = json_get_str(j, JSON_ROOT, "ID", a);
    (void)str_u64(json_get_raw(j, JSON_ROOT, "Port"), 65535, &port);
    item->have.place = reg_place(json_get_str(j, JSON_ROOT, "Service", a),
                                 json_get_str(j, JSON_ROOT, "Address", a),
                                 port);
    for (i = 0; json_next(j, tags, &i);)
        item->have.tags = str_hash(item->have.tags, json_str(j, i, a));
    item->have.checks = REG_ANY;
    if (meta == 0)
        item->have.content = REG_ANY;
    else if (!reg_read_mark(json_get_str(j, meta, "registrator", a), item))
        item->owner = 0;
    return item->key.n > 0;
}

/* The service `consul` of a server is in its catalog, not in its list. */
static const struct reg_kind consul_kind = {
    .caseless = true, .reserved = "consul", .list_depth = 1, .list_open = '{',
    .setup = consul_open, .hello = consul_hello, .on_hello = consul_on_hello,
    .value = consul_value, .write = consul_write, .verdict = consul_verdict,
    .list = consul_list, .item = consul_item
};

/* ---- print: no registry.  Each change is a line on stdout: of JSON, or, on a
 * terminal, of a table ---- */

static bool print_table;

/* Prints b as a line, and frees it.  In the table tabs separate cells, and one
 * that is wider than its column pushes the next. */
static void print_line(struct buf *b)
{
    static const size_t column[] = { 0, 11, 24, 34, 55, 77, 94 };
    struct str rest = buf_str(b);
    struct buf line = { 0 };
    size_t i;

    for (i = 0; print_table && rest.n > 0; i++) {
        buf_lit(&line, i > 0 ? " " : "");
        while (i < LENGTH(column) && line.n < column[i])
            buf_byte(&line, ' ');
        buf_escape(&line, str_cut(&rest, '\t'), false);
    }
    buf_add(&line, rest);
    buf_byte(&line, '\n');
    if (!os_write_all(STDOUT_FILENO, buf_str(&line)))
        log_at(LOG_ERROR, "stdout: %s", strerror(errno));
    buf_free(&line);
    buf_free(b);
}

static int print_open(struct registry *r, const struct reg_scheme *scheme,
                      const struct url *uri, struct err *e)
{
    struct buf title = { 0 };

    (void)scheme;
    (void)uri;
    (void)e;
    conn_init(&r->peer, "print", 0);
    print_table = os_terminal(STDOUT_FILENO);
    if (print_table) {
        buf_lit(&title, "ACTION\tCONTAINER\tPORT\tSERVICE\tADDRESS\t"
                        "TAGS\tCHECK");
        print_line(&title);
    }
    return 0;
}

/* Without a registry to ask, this host's address is that of its name. */
static struct request *print_hello(struct registry *r, unsigned step)
{
    struct os_addr address[ADDRS_MAX];
    struct buf name = { 0 };
    struct err e;
    size_t n = 0, i;

    (void)step;
    r->host.n = 0;
    os_hostname(&name);
    if (!r->ip_given)           /* a look-up may take seconds */
        (void)os_resolve(buf_str(&name), 1, address, ADDRS_MAX, &n, &e);
    for (i = 0; i < n && r->host.n == 0; i++) {
        ip_of_socket(&address[i].is.sa, &r->host);
        if (ip_is_local(buf_str(&r->host)))
            r->host.n = 0;
    }
    r->no_host = r->host.n == 0;
    buf_free(&name);
    return NULL;
}

static struct request *print_write(struct registry *r,
                                   const struct reg_write *w, unsigned step)
{
    const struct service *s = w->service;
    struct buf b = { 0 };
    size_t i;

    (void)r;
    (void)step;
    if (print_table && w->op == REG_REGISTER) {
        buf_fmt(&b, "register\t%s\t%u/%s\t%.*s\t", s->set->container,
                s->exposed, s->proto == DOCKER_UDP ? "udp" : "tcp",
                PUT(s->name));
        url_put(&b, s->address, s->port);
        buf_byte(&b, '\t');
        for (i = 0; i < s->tags; i++)
            buf_fmt(&b, "%s%.*s", i > 0 ? "," : "", PUT(s->tag[i]));
        consul_check(&b, "\t", s);
    } else if (print_table) {
        buf_fmt(&b, "deregister\t%.*s", PUT(w->key));
    } else if (w->op == REG_REGISTER) {
        buf_fmt(&b, "{\"action\":\"register\",\"container\":\"%s\","
                    "\"service\":%.*s}", s->set->container, PUT(w->text));
    } else {
        buf_lit(&b, "{\"action\":\"deregister\",\"service\":{");
        consul_member(&b, "ID", w->key);
        buf_lit(&b, "}}");
    }
    print_line(&b);
    return NULL;
}

static void print_ignored(struct str container, struct str why)
{
    struct buf b = { 0 };

    if (print_table) {
        buf_fmt(&b, "ignore\t%.*s\t%.*s", PUT(container), PUT(why));
    } else {
        buf_lit(&b, "{\"action\":\"ignore\"");
        consul_member(&b, "container", container);
        consul_member(&b, "reason", why);
        buf_byte(&b, '}');
    }
    print_line(&b);
}

static const struct reg_kind print_kind = {
    .caseless = true, .setup = print_open, .hello = print_hello,
    .value = consul_value, .write = print_write, .ignored = print_ignored
};

static const struct reg_scheme reg_schemes[] = {
    { STR_INIT("consul"), &consul_kind, 8500, false, "consul://host:8500" },
    { STR_INIT("consul-tls"), &consul_kind, 8501, true,
      "consul-tls://host:8501" },
    { STR_INIT("consul-unix"), &consul_kind, 0, false, "consul-unix:///path" },
    { STR_INIT("print"), &print_kind, 0, false, "print:" },
};

/* ==== 13. Entries ============================== entry_ entries_ ====
 *
 * What the registry has, or should have, under each key.  Containers claim
 * keys for their services; the registry's list says what is there; where the
 * two differ, one write is sent.  There is no queue of operations, only of
 * entries to be looked at: what is done to an entry follows from what is known
 * of it, by the one table at entry_decide.
 *
 * Calls: str_ buf_ mem_ arena_ list_ err_ log_ json_ conn_ retry_ index_
 * queue_ side_ svc_ reg_.
 */

/* An entry: one that is claimed, or ours to remove, or both.
 *
 * `claims` are the services that want this key, the best first (entry_claim):
 * the first one is what is desired.  A service is in the claims of s->entry
 * from entries_claim to entries_release, and nowhere else.
 *
 * `have` and `owner` mean something only while `observed` is PRESENT.  After a
 * write without an answer the entry is UNKNOWN until a list has shown it. */
struct reg_entry {
    struct node node;           /* its key; in lower case if those are one */
    struct link claims;
    enum { ENTRY_UNKNOWN, ENTRY_ABSENT, ENTRY_PRESENT } observed;
    char *spelled;              /* the key as it is there; NULL: not known */
    struct digest have;
    uint64_t owner;             /* of its mark; 0: it has none */
    bool held;                  /* in this run we have written it, or found
                                   it as we would write it */
    unsigned in_doubt;          /* a write of ours may still be executed: of
                                   its checks nothing is known, and so many
                                   lists have to be read until it is over */
    bool orphan;                /* ours, but never claimed in this run: only
                                   entries_prune lets it be removed */
    struct write *write;        /* that is in flight, or NULL */
    unsigned seen;              /* the list that showed it last */
    unsigned crossed;           /* the list that was begun last when a write
                                   of ours ended: it does not judge it */
    uint64_t said;              /* digest of the trouble that was logged */
    char container[13];         /* the last that claimed it, for the log */
};

/* An entry of the list that is not kept: somebody else's.  There may be any
 * number of them, so that they must be small. */
struct other {
    uint64_t key;               /* first: its digest */
    uint64_t owner;
    struct digest have;
};

/* A registration or a removal in flight, with all that it needs: the service
 * may be gone before it ends. */
struct write {
    struct entries *entries;
    struct reg_entry *entry;
    struct reg_write what;
    unsigned step;
    struct buf key, text;       /* what.key, what.text */
    struct digest want;
    uint64_t owner;             /* of its mark */
    bool renewal;               /* nothing changes: -ttl */
};

struct entries {
    struct side side;           /* first: its callbacks get this */
    struct registry *reg;
    struct buf others;          /* what the last list showed of somebody else's
                                   entries: struct other, by key; */
    struct buf others_next;     /* and the list that is being read */
    bool cleanup;               /* -cleanup */
    uint64_t owner_of_8;        /* what version 8 had as OWNER in our marks */
    struct str hostname;
    uint64_t order;             /* of the last claim */
    unsigned added, removed;    /* since it was logged how it stands, and */
    bool told;                  /* ... in this session of either side */
    bool prune_due;             /* a list has been read since entries_prune */
    struct retry closes;        /* of idle connections, until an entry was
                                   found to be missing */
    bool doubted;               /* that lists are odd has been logged */
};

/* ---- The table ---- */

/* What is desired, or NULL: the first claim.  A container that had stopped
 * before it was first seen keeps an entry, but not one that was another's in
 * this run. */
static struct service *entry_desired(const struct reg_entry *e)
{
    const struct link *l;

    for (l = e->claims.next; l != &e->claims; l = l->next) {
        struct service *s = LIST_OF(struct service, claim, l);

        if (s->port > 0 || !e->held)
            return s;
    }
    return NULL;
}

/* Whether the entry may be removed: it carries our mark, or none although we
 * have held it in this run. */
static bool entry_removable(const struct entries *es,
                            const struct reg_entry *e)
{
    return e->owner == es->reg->owner || (e->owner == 0 && e->held);
}

static bool entry_reserved(const struct entries *es, const struct reg_entry *e)
{
    return str_eq(e->node.key, str_of(es->reg->kind->reserved));
}

/* Whether the service may be written over what is there: section 0, Owner.
 * One that we have held and that has another mark now is contested: it is left
 * to that other registrator. */
static bool entry_writable(const struct entries *es,
                           const struct reg_entry *e, const struct service *s)
{
    if (entry_removable(es, e))
        return true;
    return !e->held && !entry_reserved(es, e) &&
           (es->cleanup || e->owner >> 32 == es->reg->owner >> 32 ||
            s->default_id ||
            (e->owner == 0 && e->have.place == s->want.place));
}

/* Whether what is there is the service, as we would write it. */
static bool entry_in_sync(const struct entries *es, const struct reg_entry *e)
{
    const struct service *s = entry_desired(e);

    return s != NULL && e->observed == ENTRY_PRESENT &&
           e->have.place == s->want.place && e->have.tags == s->want.tags &&
           (e->have.content == REG_ANY ||
            (e->have.content == s->want.content &&
             e->owner == es->reg->owner));
}

enum entry_action { ENTRY_KEEP, ENTRY_WRITE, ENTRY_REMOVE, ENTRY_FREE };

/* All that is ever done with an entry:
 *
 *     desired    observed                     in flight  what is done
 *     any        any                          yes        nothing until the
 *                                                        answer; then again
 *     a service  unknown                      no         nothing until a list
 *     nothing    unknown, held or in doubt    no         the same
 *     nothing    unknown otherwise            no         freed
 *     nothing    absent                       no         freed (1)
 *     nothing    present, removable           no         removed (2)
 *     nothing    present, another's           no         left alone (3)
 *     kept       any                          no         nothing
 *     a service  absent                       no         written
 *     a service  present, the key spelled     no         removed (the catalog
 *                otherwise                               takes both for one);
 *                                                        another's: it is said
 *     a service  the same digest              no         nothing; written,
 *                                                        if it expires (4)
 *     a service  present, writable            no         written
 *     a service  present, another's           no         nothing; it is said
 *
 * (1) Not while a list is read that our removal crossed: it may still show it;
 * nor while it is in doubt, or claimed all the same (entry_desired).
 * (2) An orphan only when entries_prune allows it.  (3) And freed at the end
 * of the next list, which has it among the others, unless it was taken from us
 * in this run, which is to be remembered.  (4) When its pause is over, which
 * after a write is -ttl-refresh; one that was only found has none, since
 * nobody knows how much of its time is left. */
static enum entry_action entry_decide(const struct entries *es,
                                      const struct reg_entry *e)
{
    const struct service *s = entry_desired(e);
    bool crossed = es->side.reading && e->crossed == es->side.epoch;
    bool in_doubt = e->in_doubt > 0, claimed = !list_empty(&e->claims);

    if (e->write != NULL || (s != NULL && s->kept))
        return ENTRY_KEEP;
    if (e->observed == ENTRY_UNKNOWN)
        return s == NULL && !e->held && !in_doubt ? ENTRY_FREE : ENTRY_KEEP;
    if (s == NULL && e->observed == ENTRY_ABSENT)
        return crossed || in_doubt || claimed ? ENTRY_KEEP : ENTRY_FREE;
    if (s == NULL)
        return entry_removable(es, e) && !e->orphan ? ENTRY_REMOVE
                                                     : ENTRY_KEEP;
    if (e->observed == ENTRY_ABSENT)
        return ENTRY_WRITE;
    if (e->spelled != NULL && !str_eq(str_of(e->spelled), s->key))
        return entry_removable(es, e) ? ENTRY_REMOVE : ENTRY_KEEP;
    if (entry_in_sync(es, e))
        return es->reg->refresh_s > 0 ? ENTRY_WRITE : ENTRY_KEEP;
    return entry_writable(es, e, s) ? ENTRY_WRITE : ENTRY_KEEP;
}

/* ---- Keeping entries ---- */

static void entry_free(struct entries *es, struct reg_entry *e)
{
    CHECK(list_empty(&e->claims) && e->write == NULL);
    free(e->spelled);
    index_remove(&es->side.index, &e->node);
}

static bool entry_same_container(const struct service *a,
                                 const struct service *b)
{
    return strcmp(a->set->container, b->set->container) == 0;
}

/* Why not all is as the claims of the entry demand; false: it is.  *taken: by
 * somebody else or another container, which is to be logged. */
static bool entry_waits(const struct entries *es, const struct reg_entry *e,
                        struct err *why, bool *taken)
{
    const struct service *s = entry_desired(e), *other = NULL;
    enum entry_action action = entry_decide(es, e);

    *taken = false;
    if (s != NULL && s->claim.next != &e->claims)
        other = LIST_OF(struct service, claim, s->claim.next);
    if (other != NULL && other->set->running &&
        !entry_same_container(s, other)) {
        *taken = true;
        err_set(why, "%s: the ID \"%.*s\" is already used by container %s: "
                     "not registered as long as that one has it",
                other->set->container, PUT(str_first(other->id, 200)),
                s->set->container);
    } else if (s != NULL ? s->kept || entry_in_sync(es, e)
                         : action != ENTRY_REMOVE && e->write == NULL) {
        return false;
    } else if (action == ENTRY_KEEP && e->observed == ENTRY_PRESENT &&
               e->write == NULL) {
        *taken = true;
        err_set(why, "%s: the ID \"%.*s\" %s: left alone", s->set->container,
                PUT(str_first(s->id, 200)),
                e->held ? "has been taken by another registrator"
                : "belongs to somebody else (-cleanup would take it)");
    } else {
        err_set(why, "%s%s%.*s to be %s: %s", e->container,
                *e->container ? " " : "", PUT(s ? s->key : e->node.key),
                s != NULL ? "registered" : "deregistered",
                e->node.retry.why != NULL ? e->node.retry.why
                : e->write != NULL ? "under way" : "not tried yet");
    }
    return true;
}

/* Something that entry_decide looks at has changed: queues what has to be
 * done, or frees the entry.  So it is in the queue if and only if something is
 * to be done, and whoever changes anything calls this. */
static void entry_touch(struct entries *es, struct reg_entry *e)
{
    enum entry_action action = entry_decide(es, e);
    uint64_t digest = 0;
    struct err why;
    bool taken;

    if (action == ENTRY_FREE) {
        entry_free(es, e);
        return;
    }
    e->held = e->held || entry_in_sync(es, e);
    if (entry_waits(es, e, &why, &taken) && taken)
        digest = str_hash(0, str_of(why.text));
    if (digest != 0 && digest != e->said)
        log_at(LOG_WARN, "%s", why.text);
    e->said = digest;
    if (e->node.retry.tries == 0 && !entry_in_sync(es, e))
        e->node.retry.due = 0;  /* it is more than a renewal now */
    if (action == ENTRY_KEEP)
        list_remove(&e->node.queue);
    else
        queue_put(&es->side.queue, &e->node, es->side.now);
}

/* By key: any order will do. */
static int entry_other_cmp(const void *a, const void *b)
{
    return memcmp(a, b, sizeof((const struct other *)a)->key);
}

/* Sets what the last list showed of an entry that was not kept then.  It does
 * not say how another's key is spelled, where case does not count: the next
 * list will.  (Without marks it may be ours, and is taken as it is.) */
static void entry_see_other(struct entries *es, struct reg_entry *e)
{
    struct other seen = { .key = str_hash(0, e->node.key) };
    const struct other *found = NULL;

    if (es->others.n > 0)
        found = bsearch(&seen, es->others.p, es->others.n / sizeof seen,
                        sizeof seen, entry_other_cmp);
    e->observed = found != NULL || entry_reserved(es, e) ? ENTRY_PRESENT
                                                         : ENTRY_ABSENT;
    if (found != NULL)
        seen = *found;
    e->have = seen.have;
    e->owner = seen.owner;
    if (found != NULL && es->reg->kind->caseless &&
        e->have.content != REG_ANY) {
        e->observed = ENTRY_UNKNOWN;
        relist(&es->side, es->side.now);
    }
}

/* The key as the index has it. */
static void entry_fold(const struct entries *es, struct str key,
                       struct buf *folded)
{
    folded->n = 0;
    if (es->reg->kind->caseless)
        buf_lower(folded, key);
    else
        buf_add(folded, key);
}

/* The entry of that key; a new one is as the last list showed it. */
static struct reg_entry *entry_get(struct entries *es, struct str folded)
{
    struct reg_entry *e = index_find(&es->side.index, folded);

    if (e == NULL) {
        e = index_add(&es->side.index, sizeof *e, folded);
        list_init(&e->claims);
        e->node.turn = TURNS - 1;
        if (es->side.listed)
            entry_see_other(es, e);
    }
    return e;
}

/* ---- Claims ---- */

/* Puts a service among the claims of its entry, or takes it away.  Those of
 * containers that run come first, in the order in which they came: what has an
 * ID and runs keeps it.  A claim of a container that has one already, and runs
 * since, comes in its place.  What is desired then, if that differs, is tried
 * at once. */
static void entry_claim(struct entries *es, struct service *s, bool wanted)
{
    struct reg_entry *e = s->entry;
    const struct service *before = entry_desired(e), *after, *other;
    struct link *l;

    list_remove(&s->claim);
    for (l = e->claims.next; s->order == 0 && l != &e->claims; l = l->next) {
        other = LIST_OF(struct service, claim, l);
        if (other->set->running && entry_same_container(s, other))
            s->order = other->order;
    }
    if (s->order == 0)
        s->order = ++es->order;
    for (l = e->claims.next; wanted && l != &e->claims; l = l->next) {
        other = LIST_OF(struct service, claim, l);
        if (s->set->running != other->set->running
                ? s->set->running : s->order < other->order)
            break;
    }
    if (wanted) {
        list_insert(l, &s->claim);
        e->orphan = false;
    }
    after = entry_desired(e);
    if (before == NULL || after == NULL ||
        before->want.content != after->want.content)
        retry_reset(&e->node.retry);
    if (after != NULL)
        memcpy(e->container, after->set->container, sizeof e->container);
    entry_touch(es, e);
}

/* Claims the keys of all services of the set.  The first of each container are
 * written first, then the next two, the next four: so many services of one do
 * not stand before those of another.  The notes say what the registry cannot
 * store.  False, and nothing is claimed: all of it would be too large. */
static bool entries_claim(struct entries *es, struct svc_set *set,
                          struct svc_notes *notes)
{
    const struct reg_kind *kind = es->reg->kind;
    struct arena *a = &set->arena;
    struct buf text = { 0 };
    unsigned turn = 0;
    size_t i;

    for (i = 0; i < set->n && a->used <= SERVICES_SIZE; i++) {
        struct service *s = &set->service[i];

        list_init(&s->claim);
        text.n = 0;
        kind->value(es->reg, s, STR(""), &text, &s->want, notes);
        a->used += text.n;
        s->key = kind->key != NULL ? kind->key(es->reg, s, a) : s->id;
    }
    for (i = 0; i < set->n && a->used <= SERVICES_SIZE; i++) {
        struct service *s = &set->service[i];

        entry_fold(es, s->key, &text);
        s->entry = entry_get(es, buf_str(&text));
        turn += i + 1 == (size_t)2 << turn;
        s->entry->node.turn = turn;
        entry_claim(es, s, true);
    }
    buf_free(&text);
    return a->used <= SERVICES_SIZE;
}

/* The container of the set has stopped: its services give way to those of
 * others.  `kept`: they are not written any more either, only kept from being
 * removed. */
static void entries_demote(struct entries *es, struct svc_set *set, bool kept)
{
    size_t i;

    set->running = false;
    for (i = 0; i < set->n; i++) {
        set->service[i].kept = set->service[i].kept || kept;
        entry_claim(es, &set->service[i], true);
    }
}

/* Gives up the claims of all services of the set, and frees it. */
static void entries_release(struct entries *es, struct svc_set *set)
{
    size_t i;

    for (i = 0; set != NULL && i < set->n; i++)
        entry_claim(es, &set->service[i], false);
    svc_free(set);
}

/* Whether each service of the set is registered, or has been refused, or is
 * not to be. */
static bool entries_settled(const struct entries *es,
                            const struct svc_set *set)
{
    size_t i;

    for (i = 0; set != NULL && i < set->n; i++) {
        const struct reg_entry *e = set->service[i].entry;

        if (e->write != NULL || e->observed == ENTRY_UNKNOWN ||
            (entry_decide(es, e) == ENTRY_WRITE && !e->node.retry.refused &&
             !entry_in_sync(es, e)))
            return false;
    }
    return true;
}

/* ---- Writing ---- */

/* The entry is as it was to be written.  One that expires is written again at
 * a whole second, so that the queue is gone through only once in each. */
static void entry_written(struct entries *es, struct reg_entry *e,
                          const struct write *w)
{
    const uint64_t second = MS((uint64_t)1000);
    bool added = w->what.op == REG_REGISTER;
    const struct service *s = entry_desired(e);
    bool respelled = !added && s != NULL && !str_eq(s->key, w->what.key);

    log_at(w->renewal ? LOG_DEBUG : LOG_INFO, "%s: %s%s%.*s",
           added ? "added" : "removed", e->container,
           *e->container ? " " : "", PUT(w->what.key));
    es->added += added && !w->renewal;
    es->removed += !added;
    e->held = added;
    e->observed = added ? ENTRY_PRESENT : ENTRY_ABSENT;
    if (respelled) {
        e->observed = ENTRY_UNKNOWN;    /* it may be there, spelled so */
        (void)retry_failed(&e->node.retry, "another spelling of it has to go",
                           es->side.now, RELIST_MIN_MS, PAUSE_CALL_MS);
        relist(&es->side, e->node.retry.due);
    } else {
        retry_reset(&e->node.retry);
    }
    if (added) {
        e->have = w->want;
        e->owner = w->owner;
        free(e->spelled);
        e->spelled = str_dup(w->what.key);
        if (es->reg->refresh_s > 0)
            e->node.retry.due =
                (es->side.now / second + es->reg->refresh_s) * second;
    }
}

/* The write has failed.  Unless it was refused it may have been executed, or
 * may yet be: then what is there is not known until it has been listed. */
static void entry_failed(struct entries *es, struct reg_entry *e,
                         const struct write *w, enum reg_verdict verdict,
                         const struct answer *a)
{
    struct retry *retry = &e->node.retry;
    uint64_t now = es->side.now;
    struct err why;

    if (verdict != REG_REJECTED && !a->not_connected &&
        (a->status < 400 || a->status >= 500)) {
        e->observed = ENTRY_UNKNOWN;
        e->in_doubt = IN_DOUBT_LISTS;
        relist(&es->side, now + IN_DOUBT_MS);
    }
    if (conn_canceled(a) || a->not_connected || verdict == REG_RENEWED)
        return;                 /* the side is down, and not this entry */
    conn_reason(a, &why);
    if (retry_failed(retry, why.text, now,
                     verdict == REG_REJECTED ? PAUSE_CALL_MS
                     : a->status == 0 ? PAUSE_MIN_MS : RETRY_MIN_MS,
                     PAUSE_CALL_MS))
        log_at(LOG_ERROR, "%s failed: %.*s %s",
               w->what.op == REG_REGISTER ? "register" : "deregister",
               PUT(w->what.key), why.text);
    retry->refused = verdict == REG_REJECTED;
}

/* Why a session ends after REG_RENEWED: another token may see other things. */
static const struct err entries_renewed = {
    "the token was refused, and is another one now"
};

/* Ends the write and takes its outcome from the answer; NULL: it is done. */
static void entry_end_write(struct write *w, enum reg_verdict verdict,
                            const struct answer *a)
{
    struct entries *es = w->entries;
    struct reg_entry *e = w->entry;

    e->write = NULL;
    e->crossed = es->side.epoch;
    if (verdict == REG_DONE)
        entry_written(es, e, w);
    else
        entry_failed(es, e, w, verdict, a);
    buf_free(&w->key);
    buf_free(&w->text);
    free(w);
    entry_touch(es, e);         /* and e may be freed */
    if (verdict == REG_RENEWED)
        side_down(&es->side, &entries_renewed);
    else if (verdict != REG_DONE && a->not_connected)
        side_down(&es->side, a->err);
}

/* The answer to a step of a write: goes on with the next one, if there is
 * one. */
static void entry_on_write(struct request *r, const struct answer *a)
{
    struct write *w = r->context;
    struct registry *reg = w->entries->reg;
    enum reg_verdict verdict = REG_RETRY;

    if (a->status != 0)
        verdict = reg->kind->verdict(reg, w->what.op, w->step, a);
    w->what.service = NULL;
    r = verdict == REG_NEXT ? reg->kind->write(reg, &w->what, ++w->step)
                            : NULL;
    if (r != NULL)
        conn_send(&reg->peer, r, w, entry_on_write);
    else
        entry_end_write(w, verdict == REG_NEXT ? REG_DONE : verdict, a);
}

/* Begins the write that the table demands. */
static void entry_write(struct entries *es, struct reg_entry *e)
{
    struct registry *reg = es->reg;
    const struct service *s = entry_desired(e);
    enum entry_action action = entry_decide(es, e);
    struct write *w = mem_zero(sizeof *w);
    struct digest unused;
    struct buf mark = { 0 };
    struct request *r;

    CHECK(action == ENTRY_WRITE || action == ENTRY_REMOVE);
    list_remove(&e->node.queue);
    w->entries = es;
    w->entry = e;
    w->what.op = action == ENTRY_WRITE ? REG_REGISTER : REG_DEREGISTER;
    if (action == ENTRY_WRITE) {
        w->want = s->want;
        w->owner = reg->owner;
        if (reg->kind->list != NULL)    /* else nobody reads it */
            reg_mark(&mark, reg->owner, &w->want);
        reg->kind->value(reg, s, buf_str(&mark), &w->text, &unused, NULL);
        buf_free(&mark);
        w->what.service = s;
        w->what.replace_checks = e->in_doubt > 0 ||
            (e->observed == ENTRY_PRESENT && e->have.checks != s->want.checks);
        w->renewal = entry_in_sync(es, e);
        buf_add(&w->key, s->key);
    } else {
        buf_add(&w->key, e->spelled != NULL ? str_of(e->spelled)
                                            : e->node.key);
    }
    w->what.key = buf_str(&w->key);
    w->what.text = buf_str(&w->text);
    e->write = w;
    r = reg->kind->write(reg, &w->what, 0);
    if (r == NULL) {
        entry_end_write(w, REG_DONE, NULL);
        return;
    }
    r->bytes.bad = r->bytes.bad || w->text.bad;
    conn_send(&reg->peer, r, w, entry_on_write);
}

/* Sends as many writes as there is room for. */
static void entries_write(struct entries *es)
{
    struct reg_entry *e;

    while (side_ready(&es->side) && es->reg->owner != 0 &&
           (es->reg->kind->list == NULL || conn_room(&es->reg->peer) > 0) &&
           (e = queue_first(&es->side.queue)) != NULL)
        entry_write(es, e);
}

/* ---- What is there ---- */

/* The list shows an entry otherwise than we wrote it, and has not shown it so
 * since.  It may have been changed in between, or the list is not to be
 * trusted: the token may not read it, say.  It is written again after each
 * list at most, so that this never becomes a loop. */
static void entry_doubt(struct entries *es, const struct reg_entry *e)
{
    if (es->doubted || !e->held || e->seen > e->crossed)
        return;
    log_at(LOG_WARN, "%s: what was written is not listed, or not as it was "
                     "sent: %.*s (forgotten?  may the token read it?  does "
                     "another writer change it?): written again",
           es->reg->peer.name, PUT(e->node.key));
    es->doubted = true;
}

/* Of two items with one key, spelled differently, the one that decides: ours
 * that nobody wants so spelled, which has to go first; then another's. */
static int entry_rank(const struct entries *es, const struct reg_entry *e,
                      uint64_t owner, struct str key)
{
    const struct service *s = entry_desired(e);

    return owner != es->reg->owner ? 1
           : s != NULL && str_eq(s->key, key) ? 0 : 2;
}

/* An item of the registry's list.  It is kept only if it is claimed or ours:
 * of others there may be any number. */
static bool entries_row(struct side *side, const struct json *j)
{
    struct entries *es = (struct entries *)side;
    struct arena scratch = { 0 };
    struct reg_item item = { .owner = 0 };
    bool ok = es->reg->kind->item(es->reg, j, &scratch, &item), ours, was;
    struct buf folded = { 0 };
    struct reg_entry *e = NULL;

    if (item.owner == es->owner_of_8) {
        item.owner = es->reg->owner;
        item.have.content = 0;          /* so that it gets our mark */
    }
    if (item.owner == 0 && es->cleanup &&
        reg_is_default_id(item.id, es->hostname))
        item.owner = es->reg->owner;
    ours = item.owner == es->reg->owner;
    entry_fold(es, item.key, &folded);
    if (ok)
        e = index_find(&side->index, buf_str(&folded));
    if (ok && e == NULL && ours) {
        e = entry_get(es, buf_str(&folded));
        e->orphan = true;
    }
    if (ok && !ours) {
        struct other other = { str_hash(0, buf_str(&folded)), item.owner,
                               item.have };

        buf_add(&es->others_next, BYTES(other));
    }
    if (e != NULL && e->write == NULL && e->crossed != side->epoch &&
        (e->seen != side->epoch || entry_rank(es, e, item.owner, item.key) >
         entry_rank(es, e, e->owner, str_of(e->spelled)))) {
        const struct service *s = entry_desired(e);

        was = entry_in_sync(es, e);
        if (item.owner == 0 && item.have.content != REG_ANY &&
            item.have.place != e->have.place &&
            (s == NULL || item.have.place != s->want.place))
            e->held = false;            /* somebody else's, without a mark */
        e->observed = ENTRY_PRESENT;
        e->have = item.have;
        e->owner = item.owner;
        free(e->spelled);
        e->spelled = str_dup(item.key);
        if (was && !entry_in_sync(es, e) && (ours || e->owner == 0))
            entry_doubt(es, e);
    }
    if (e != NULL) {
        e->seen = side->epoch;
        entry_touch(es, e);             /* e may be freed */
    }
    buf_free(&folded);
    arena_free(&scratch);
    return ok && !es->others_next.bad;
}

/* The list has been read.  What it does not show is absent, if all of its rows
 * could be read.  What is not known otherwise is assumed to be absent even so:
 * else nothing would be written any more because of somebody else's row. */
static void entries_listed(struct side *side)
{
    struct entries *es = (struct entries *)side;
    struct reg_entry *e, *next;

    buf_free(&es->others);
    es->others = es->others_next;
    memset(&es->others_next, 0, sizeof es->others_next);
    if (es->others.n > 0)
        qsort(es->others.p, es->others.n / sizeof(struct other),
              sizeof(struct other), entry_other_cmp);
    for (e = index_next(&side->index, NULL); e != NULL; e = next) {
        bool judged = e->write == NULL && e->crossed != side->epoch;

        next = index_next(&side->index, e);     /* e may be freed */
        if (e->seen != side->epoch && judged &&
            (side->whole || e->observed == ENTRY_UNKNOWN)) {
            if (entry_in_sync(es, e)) {
                entry_doubt(es, e);
                retry_reset(&es->closes);
            }
            entry_see_other(es, e);     /* it may have been claimed since */
        }
        if (e->in_doubt > 0 && (!judged || --e->in_doubt > 0))
            relist(side, side->now + IN_DOUBT_MS);
        if (judged && list_empty(&e->claims) && !e->held &&
            e->observed == ENTRY_PRESENT && !entry_removable(es, e))
            entry_free(es, e);
        else
            entry_touch(es, e);
    }
    es->prune_due = true;
}

/* Begins a list when our marks can be told from those of others, which
 * entries_set_owner sees to. */
static struct request *entries_list(struct side *side)
{
    struct entries *es = (struct entries *)side;
    const struct reg_kind *kind = es->reg->kind;

    if (kind->list == NULL || es->reg->owner == 0)
        return NULL;
    json_split_start(&side->split, kind->list_depth, kind->list_open);
    buf_free(&es->others_next);
    es->others_next.max = OTHERS_SIZE;
    return kind->list(es->reg);
}

static bool entries_no_list(struct side *side, const struct answer *a)
{
    struct entries *es = (struct entries *)side;
    enum reg_verdict verdict = es->reg->kind->verdict(es->reg, REG_LIST, 0, a);

    if (verdict == REG_RENEWED)
        side_down(side, &entries_renewed);
    return verdict == REG_DONE;
}

/* Lets orphans be removed: no container that the engine has explains them. */
static void entries_prune(struct entries *es)
{
    struct reg_entry *e, *next;

    for (e = index_next(&es->side.index, NULL); e != NULL; e = next) {
        next = index_next(&es->side.index, e);
        if (!e->orphan)
            continue;
        log_at(LOG_INFO, "dangling: %s", e->spelled);
        e->orphan = false;
        entry_touch(es, e);
    }
    es->prune_due = false;
}

/* ---- The side of the registry ---- */

static struct request *entries_hello(struct side *side, unsigned step)
{
    struct registry *reg = ((struct entries *)side)->reg;

    return reg->kind->hello(reg, step);
}

static int entries_on_hello(struct side *side, unsigned step,
                            const struct answer *a, struct err *e)
{
    struct registry *reg = ((struct entries *)side)->reg;

    return reg->kind->on_hello(reg, step, a, e);
}

/* Of a registry without a list all is known: nothing is there. */
static void entries_ready(struct side *side)
{
    struct entries *es = (struct entries *)side;

    es->told = es->doubted = false;
    relist(side, side->now);
    if (es->reg->kind->list == NULL) {
        side->listed = side->whole = true;
        entries_listed(side);
    }
}

/* What is there is not known any more. */
static void entries_down(struct side *side)
{
    struct reg_entry *e, *next;

    for (e = index_next(&side->index, NULL); e != NULL; e = next) {
        next = index_next(&side->index, e);
        e->observed = ENTRY_UNKNOWN;
        entry_touch((struct entries *)side, e);
    }
}

static const struct side_kind entries_side = {
    entries_hello, entries_on_hello, entries_ready, entries_down,
    entries_list, entries_row, entries_listed, entries_no_list
};

/* Who owns our marks: the engine and the options of this run.  Of another
 * engine, other entries are ours. */
static void entries_set_owner(struct entries *es, uint64_t owner)
{
    struct reg_entry *e, *next;

    if (es->reg->owner == owner)
        return;
    es->reg->owner = owner;
    for (e = index_next(&es->side.index, NULL); e != NULL; e = next) {
        next = index_next(&es->side.index, e);  /* e may be freed */
        e->held = false;
        entry_touch(es, e);
    }
    relist(&es->side, es->side.now);
}

/* What time has made possible, but writes.  A peer that closes a connection
 * which was kept open may have been restarted, and have forgotten everything:
 * it is asked, but less and less often if it is only its habit. */
static void entries_tick(struct entries *es, uint64_t now)
{
    struct endpoint *p = &es->reg->peer;

    side_tick(&es->side, now);
    if (p->closed_idle && side_ready(&es->side) && now >= es->closes.due) {
        p->closed_idle = false;
        relist(&es->side, now);
        (void)retry_failed(&es->closes, "", now, RELIST_MIN_MS, PAUSE_CALL_MS);
    }
}

/* When entries_tick is due, at the latest. */
static uint64_t entries_due(const struct entries *es)
{
    uint64_t due = side_due(&es->side);

    return es->reg->peer.closed_idle && side_ready(&es->side) &&
           es->closes.due < due ? es->closes.due : due;
}

/* How many services are desired; *waiting: for how many something has still to
 * be done, which `log` logs. */
static size_t entries_count(const struct entries *es, size_t *waiting,
                            bool log)
{
    const struct reg_entry *e = NULL;
    size_t n = 0;
    struct err why;
    bool taken;

    *waiting = 0;
    while ((e = index_next(&es->side.index, e)) != NULL) {
        n += entry_desired(e) != NULL;
        if (!entry_waits(es, e, &why, &taken))
            continue;
        ++*waiting;
        if (log)
            log_at(LOG_INFO, "waiting: %s", why.text);
    }
    return n;
}

static void entries_init(struct entries *es, struct registry *reg)
{
    es->reg = reg;
    side_init(&es->side, &entries_side, &reg->peer);
}

/* ==== 14. Containers ================== container_ containers_ ====
 *
 * What is desired: the session with the engine, its list, its events, and the
 * inspect of each container that may have changed.  Events carry no truth,
 * they only say which container to inspect again; but one that has died has no
 * services from then on.  Nothing is removed because of an answer that failed.
 *
 * Calls: str_ buf_ arena_ list_ err_ log_ json_ os_ conn_ retry_ index_ queue_
 * side_ docker_ svc_ entries_.
 */

/* A container that the engine has told of.
 *
 *     asked      questions about it are under way, one after another: itself,
 *                its networks, and the one whose network it shares; when they
 *                have been answered:
 *     IDLE       (none is)
 *     ASKED      the answer is applied
 *     DIRTY      something happened since: applied, and inspected again
 *     STALE      it died since: ignored, and inspected again
 *     FORGOTTEN  it was destroyed since: freed
 *
 * `former` are services that it had before a change, if there are any under
 * other keys: they stay until the new ones are registered. */
struct container {
    struct node node;           /* its ID; in the queue if it is dirty */
    enum { CONTAINER_IDLE, CONTAINER_ASKED, CONTAINER_DIRTY, CONTAINER_STALE,
           CONTAINER_FORGOTTEN } asked;
    bool inspected;             /* its services are known */
    bool vanished;              /* the engine does not know it any more, but
                                   has not said so by an event: its services
                                   stay until containers_prune */
    struct svc_set *set;        /* its services; NULL: none */
    struct svc_set *former;
    struct link unsettled;      /* in containers.unsettled if it has those */
    struct link sharing;        /* in containers.sharing if it shares ... */
    char *network_of;           /* the network of this one: an ID, or a name */
    unsigned seen;              /* the list that showed it last */
    uint64_t row;               /* digest of its row there */
    uint64_t said;              /* digest of the notes that were logged */
    struct containers *containers;
    /* While it is asked: */
    struct docker_container *info;      /* NULL until it is known */
    unsigned hops;              /* on the way to the one that it shares */
};

struct containers {
    struct side side;           /* first: its callbacks get this */
    struct endpoint engine;
    struct entries *entries;
    struct svc_config cfg;
    struct link unsettled, sharing;
    struct splitter events;
    struct buf prefix;          /* of the engine's paths: "" or "/v1.41" */
    struct buf api;             /* its version, as "1.41" */
    struct buf networks;        /* that are known: docker_read_networks */
    bool podman;
    uint64_t addresses;         /* digest of what services may get as address;
                                   0: that is not known yet */
    struct buf interface;       /* the last address of -ip INTERFACE */
    uint64_t address_due;       /* when that is asked for again */
    uint64_t resync_due;
    /* Set at the start: */
    bool default_socket;        /* DOCKER_HOST does not name one */
    bool on_success;            /* -deregister on-success */
    struct str ip;              /* -ip */
    bool ip_is_interface;
    uint64_t resync_ms;         /* UINT64_MAX / 2: never */
    uint64_t options;           /* digest of those that OWNER covers, but for
                                   -explicit */
};

/* ---- Dirty containers ---- */

/* The container is to be inspected, now or when what is under way has been
 * answered. */
static void container_queue(struct containers *cs, struct container *c,
                            const char *why)
{
    log_at(LOG_DEBUG, "inspect %.12s: %s", c->node.key.p, why);
    if (c->asked == CONTAINER_ASKED)
        c->asked = CONTAINER_DIRTY;
    if (c->asked == CONTAINER_IDLE) {
        c->node.retry.due = 0;
        c->node.turn = c->node.retry.tries > 0;     /* after new ones */
        queue_put(&cs->side.queue, &c->node, cs->side.now);
    }
}

/* The container may have changed, and so may those that share its network. */
static void container_mark_dirty(struct containers *cs, struct container *c,
                                 const char *why)
{
    struct link *l;

    container_queue(cs, c, why);
    for (l = cs->sharing.next; l != &cs->sharing; l = l->next) {
        struct container *s = LIST_OF(struct container, sharing, l);

        if (str_eq(str_of(s->network_of), c->node.key))
            container_queue(cs, s, "another one changed, whose network it "
                                   "shares");
    }
}

static struct container *container_get(struct containers *cs, struct str id)
{
    struct container *c = index_find(&cs->side.index, id);

    if (c == NULL) {
        c = index_add(&cs->side.index, sizeof *c, id);
        c->containers = cs;
        list_init(&c->unsettled);
        list_init(&c->sharing);
    }
    return c;
}

/* Notes whose network the container shares; nobody's: an empty ID. */
static void container_share(struct containers *cs, struct container *c,
                            struct str id)
{
    list_remove(&c->sharing);
    free(c->network_of);
    c->network_of = NULL;
    if (id.n > 0) {
        c->network_of = str_dup(id);
        list_insert(&cs->sharing, &c->sharing);
    }
}

/* ---- Its services ---- */

/* The container has no services any more. */
static void container_release(struct containers *cs, struct container *c)
{
    list_remove(&c->unsettled);
    entries_release(cs->entries, c->set);
    entries_release(cs->entries, c->former);
    c->set = c->former = NULL;
}

/* Gives up former services, once the new ones are registered or refused, and
 * nothing about the container is in doubt. */
static void container_settle(struct containers *cs, struct container *c)
{
    if (c->node.retry.tries > 0 || !entries_settled(cs->entries, c->set))
        return;
    list_remove(&c->unsettled);
    entries_release(cs->entries, c->former);
    c->former = NULL;
}

/* Logs what the notes say, if that is news. */
static void container_tell(struct containers *cs, struct container *c,
                           struct svc_notes *notes)
{
    struct registry *reg = cs->entries->reg;
    const struct svc_note *note;
    struct str id = str_upto(c->node.key, 12);
    struct buf text = { 0 };
    uint64_t digest = str_hash(0, STR(""));

    for (note = notes->first; note != NULL; note = note->next)
        digest = str_hash(digest, note->text) + note->others;
    note = digest != c->said ? notes->first : NULL;
    for (; note != NULL; note = note->next) {
        text.n = 0;
        buf_add(&text, note->text);
        if (note->others > 0)
            buf_fmt(&text, " (and %zu more like this)", note->others);
        log_at(note->level, note->ignored ? "ignored: %.*s %.*s"
                                          : "%.*s: %.*s",
               PUT(id), PUT(text));
        if (note->ignored && reg->kind->ignored != NULL)
            reg->kind->ignored(id, buf_str(&text));
    }
    buf_free(&text);
    c->said = digest;
    arena_free(&notes->arena);
}

/* The container has these services now, instead of those it had.  Those that
 * it had under other keys stay until the new ones are registered: so after a
 * rename it is never without any. */
static void container_set_services(struct containers *cs, struct container *c,
                                   struct svc_set *set,
                                   struct svc_notes *notes)
{
    struct svc_set *last = c->set;

    if (!entries_claim(cs->entries, set, notes)) {
        svc_note(notes, LOG_WARN, true, "its services would take more than %d "
                 "bytes: it has none", SERVICES_SIZE);
        svc_free(set);
        set = NULL;
    }
    c->set = set;
    c->vanished = false;
    if (c->former != NULL) {
        entries_release(cs->entries, last);     /* the former are older */
    } else if (last != NULL) {
        entries_demote(cs->entries, last, true);
        c->former = last;
        list_insert(&cs->unsettled, &c->unsettled);
    }
    if (c->former != NULL)
        container_settle(cs, c);
}

/* Frees the container, or has it freed when what is under way has been
 * answered. */
static void container_forget(struct containers *cs, struct container *c)
{
    container_release(cs, c);
    container_share(cs, c, STR(""));
    if (c->asked == CONTAINER_IDLE)
        index_remove(&cs->side.index, &c->node);
    else
        c->asked = CONTAINER_FORGOTTEN;
}

/* The engine does not know the container, though no event has said so.  A
 * successor with the same IDs may not have been inspected yet. */
static void container_vanished(struct containers *cs, struct container *c)
{
    if (c->set == NULL && c->former == NULL) {
        container_forget(cs, c);
        return;
    }
    c->vanished = true;
    c->inspected = true;
    if (c->set != NULL)
        entries_demote(cs->entries, c->set, true);
    cs->entries->prune_due = true;
}

/* Whether -deregister on-success keeps the services of a container that has
 * ended with this code: an error of its own, not a signal's. */
static bool container_failed_itself(const struct containers *cs,
                                    unsigned code)
{
    return cs->on_success && code > 0 && code < 128;
}

/* ---- Inspect ---- */

/* The questions about the container have ended.  If something has happened
 * since they began, it is inspected again. */
static void container_end(struct containers *cs, struct container *c)
{
    bool again = c->asked == CONTAINER_DIRTY || c->asked == CONTAINER_STALE;

    c->asked = CONTAINER_IDLE;
    docker_free(c->info);
    c->info = NULL;
    if (again)
        container_queue(cs, c, "it changed before the answer came");
}

/* The container could not be inspected: its services stay as they are, and it
 * is tried again after a pause. */
static void container_failed(struct containers *cs, struct container *c,
                             const struct err *e)
{
    if (retry_failed(&c->node.retry, e->text, cs->side.now, RETRY_MIN_MS,
                     PAUSE_CALL_MS))
        log_at(LOG_ERROR, "docker: inspect %.12s: %s", c->node.key.p, e->text);
    container_end(cs, c);
    c->node.turn = 1;
    queue_put(&cs->side.queue, &c->node, cs->side.now);
}

/* An answer has come to a question about the container.  False: it is of no
 * use, and the questions have ended.  If container `id` was asked for, *info
 * is what the answer tells of it, or NULL: it is gone.  With `info` NULL
 * something else was asked for, and any answer will do. */
static bool container_answered(struct containers *cs, struct container *c,
                               const struct answer *a, struct str id,
                               struct docker_container **info)
{
    struct docker_container *told;
    struct err e;

    CHECK(c->asked != CONTAINER_IDLE);
    if (c->asked == CONTAINER_FORGOTTEN) {
        container_end(cs, c);
        container_forget(cs, c);
        return false;
    }
    if (conn_canceled(a) || c->asked == CONTAINER_STALE) {
        c->asked = CONTAINER_DIRTY;
        container_end(cs, c);
        return false;
    }
    if (info == NULL || (a->status == 404 && docker_is_gone(a->body, id)))
        return true;
    conn_reason(a, &e);
    if (a->status == 200 && json_parse(&cs->side.json, a->body, &e) == 0) {
        told = docker_inspect(&cs->side.json);
        /* It may have been asked for by name: one that shares its network. */
        if (told != NULL && (!docker_id(id) || str_eq(told->id, id))) {
            *info = told;
            return true;
        }
        docker_free(told);
        err_set(&e, "the answer does not describe this container");
    }
    container_failed(cs, c, &e);
    return false;
}

/* All has been asked: makes the container's services what is desired.
 * `unsure`, if not NULL, is why not all of them are known: then those that it
 * had stay as well, and it is inspected again after a pause. */
static void container_apply(struct containers *cs, struct container *c,
                            const struct docker_container *shared,
                            const struct err *unsure)
{
    struct docker_container *info = c->info;
    struct svc_notes notes = { 0 };
    bool dirty = c->asked == CONTAINER_DIRTY;

    c->info = NULL;             /* not yet to be freed */
    if (unsure != NULL) {
        container_failed(cs, c, unsure);
    } else {
        c->inspected = true;
        retry_reset(&c->node.retry);
        container_end(cs, c);
    }
    if (info->running || container_failed_itself(cs, info->exit_code)) {
        container_set_services(cs, c, svc_derive(&cs->cfg, info, shared,
                                                 c->set, &notes), &notes);
        container_tell(cs, c, &notes);
    } else {
        container_release(cs, c);
        if (!dirty)
            container_forget(cs, c);
    }
    docker_free(info);
}

/* A request to the engine for a path, which may have an ID in it. */
static struct request *containers_get(struct containers *cs, const char *path,
                                      struct str id, const char *end)
{
    struct buf whole = { 0 };
    struct request *r;

    buf_fmt(&whole, "%.*s%s", PUT(buf_str(&cs->prefix)), path);
    buf_url(&whole, id);
    buf_lit(&whole, end);
    r = conn_request(&cs->engine, "GET", buf_str(&whole), STR(""));
    buf_free(&whole);
    return r;
}

/* Inspects a container, this one or the one whose network it shares. */
static void container_ask(struct containers *cs, struct container *c,
                          struct str id, conn_done_fn *done)
{
    conn_send(&cs->engine, containers_get(cs, "/containers/", id, "/json"), c,
              done);
}

/* The inspect of the container whose network this one shares. */
static void container_on_shared(struct request *r, const struct answer *a)
{
    struct container *c = r->context;
    struct containers *cs = c->containers;
    struct docker_container *shared = NULL;

    if (!container_answered(cs, c, a, str_of(c->network_of), &shared))
        return;
    if (shared != NULL && docker_shares(shared) && c->hops++ < 4) {
        container_share(cs, c, str_after(shared->mode, ':'));
        container_ask(cs, c, str_of(c->network_of), container_on_shared);
    } else {
        if (shared != NULL)             /* it may have been a name */
            container_share(cs, c, shared->id);
        container_apply(cs, c, shared != NULL && shared->running ? shared
                                                                 : NULL, NULL);
    }
    docker_free(shared);
}

/* The list of networks.  If it does not show those of the container (a proxy
 * may refuse it), nothing is decided by that; but Podman has its default one
 * under another name there (seen in 4.3). */
static void container_on_networks(struct request *r, const struct answer *a)
{
    struct container *c = r->context;
    struct containers *cs = c->containers;
    struct err e, why;
    bool read, known;

    if (!container_answered(cs, c, a, STR(""), NULL))
        return;
    conn_reason(a, &why);
    read = a->status == 200 && json_parse(&cs->side.json, a->body, &why) == 0;
    if (read)
        docker_read_networks(&cs->networks, &cs->side.json);
    known = docker_set_routable(c->info, buf_str(&cs->networks), cs->podman) ||
            (read && cs->podman);
    err_set(&e, "GET /networks: %.400s", read ? "it does not show the network "
            "of the container" : why.text);
    container_apply(cs, c, NULL, known ? NULL : &e);
}

/* The container is described or gone: asks what else must be known of it. */
static void container_on_inspect(struct request *r, const struct answer *a)
{
    struct container *c = r->context;
    struct containers *cs = c->containers;
    bool dirty = c->asked == CONTAINER_DIRTY, shares;

    if (!container_answered(cs, c, a, c->node.key, &c->info))
        return;
    if (c->info == NULL) {
        container_end(cs, c);
        if (!dirty)
            container_vanished(cs, c);
        return;
    }
    shares = docker_shares(c->info);
    container_share(cs, c, shares ? str_after(c->info->mode, ':') : STR(""));
    c->hops = 0;
    if (cs->podman)
        cs->networks.n = 0;     /* a name may be another network's by now */
    if (!docker_set_routable(c->info, buf_str(&cs->networks), cs->podman))
        conn_send(&cs->engine, containers_get(cs, "/networks", STR(""), ""), c,
                  container_on_networks);
    else if (shares && c->info->running)
        container_ask(cs, c, str_of(c->network_of), container_on_shared);
    else
        container_apply(cs, c, NULL, NULL);
}

/* Inspects as many dirty containers as there is room for; half of the room is
 * for those whose last inspect did not fail. */
static void containers_inspect(struct containers *cs)
{
    struct container *c;
    size_t room;

    while (side_ready(&cs->side) && cs->addresses != 0 &&
           (room = conn_room(&cs->engine)) > 0 &&
           (c = queue_first(&cs->side.queue)) != NULL &&
           (c->node.turn == 0 || room > cs->engine.pool / 2)) {
        CHECK(c->asked == CONTAINER_IDLE);
        list_remove(&c->node.queue);
        c->asked = CONTAINER_ASKED;
        container_ask(cs, c, c->node.key, container_on_inspect);
    }
}

/* ---- Events ---- */

/* An event says which container to inspect; what is true of it, inspect says.
 * But one that has died gets no more requests at once, however long its
 * inspect waits for the engine's lock. */
static void containers_event(struct containers *cs,
                             const struct docker_event *ev)
{
    struct container *c = ev->action == DOCKER_CHANGED
                              ? container_get(cs, ev->id)
                              : index_find(&cs->side.index, ev->id);

    if (c == NULL)
        return;
    container_mark_dirty(cs, c, "an event");
    if (ev->action == DOCKER_GONE) {
        container_forget(cs, c);
    } else if (ev->action == DOCKER_DIED) {
        if (!container_failed_itself(cs, ev->exit_code))
            container_release(cs, c);
        else if (c->set != NULL)
            entries_demote(cs->entries, c->set, false);
        if (c->asked == CONTAINER_DIRTY)
            c->asked = CONTAINER_STALE;
    }
}

/* The event stream.  An empty piece is its head: from now on nothing happens
 * unseen, and all that has happened before is in the list. */
static int containers_on_events(struct request *r, struct str piece,
                                struct err *e)
{
    struct containers *cs = r->context;
    struct docker_event ev;
    int found;

    if (piece.n == 0) {
        log_at(LOG_INFO, "Listening for Docker events ...");
        relist(&cs->side, cs->side.now);
    }
    while ((found = json_split(&cs->events, &piece)) > 0) {
        if (cs->events.element.bad)
            relist(&cs->side, cs->side.now);        /* whatever it was */
        else if (json_parse(&cs->side.json, buf_str(&cs->events.element),
                            e) != 0)
            return -1;
        else if (docker_event(&cs->side.json, &ev))
            containers_event(cs, &ev);
        if (cs->side.index.n > CONTAINERS_MAX)
            return err_set(e, "events of more than %d containers",
                           CONTAINERS_MAX);
    }
    return found < 0 ? err_set(e, "these are no events") : 0;
}

/* An engine may want its API's version in the paths, or no more. */
static void containers_switch_prefix(struct containers *cs,
                                     const struct answer *a)
{
    if (a->status != 400 && a->status != 404)
        return;
    if (cs->prefix.n > 0)
        cs->prefix.n = 0;
    else if (cs->api.n > 0)
        buf_fmt(&cs->prefix, "/v%.*s", PUT(buf_str(&cs->api)));
}

static void containers_events_end(struct request *r, const struct answer *a)
{
    struct containers *cs = r->context;
    struct err e, why;

    if (conn_canceled(a))
        return;
    conn_reason(a, &why);
    err_set(&e, "GET /events: %.400s",
            a->status == 200 ? "the stream has ended" : why.text);
    containers_switch_prefix(cs, a);
    side_down(&cs->side, &e);
}

/* ---- The session with the engine ---- */

static struct request *containers_hello(struct side *side, unsigned step)
{
    struct containers *cs = (struct containers *)side;

    if (step == 2)
        return NULL;
    if (step == 0 && cs->default_socket)
        conn_set_address(&cs->engine, os_exists("/tmp/docker.sock")
                         ? STR("/tmp/docker.sock")
                         : STR("/var/run/docker.sock"), STR(""), 0);
    return containers_get(cs, step == 0 ? "/version" : "/info", STR(""), "");
}

/* Whose the marks are: half of OWNER is of the engine, half of the options
 * which make another set of services of the same containers. */
static void containers_set_owner(struct containers *cs)
{
    struct arena scratch = { 0 };
    struct str id = docker_identity(&cs->side.json, cs->podman, &scratch);

    if (id.n == 0) {
        log_at(LOG_WARN, "docker: the engine does not tell its ID: entries "
                         "are marked as this host's");
        id = cs->cfg.hostname;
    }
    cs->entries->owner_of_8 = str_hash(cs->options, id);
    entries_set_owner(cs->entries, str_hash(1, id) << 32 |
                      ((cs->options + cs->cfg.only_named) & 0xffffffff));
    arena_free(&scratch);
}

/* GET /version, then GET /info, which a proxy may forbid (403). */
static int containers_on_hello(struct side *side, unsigned step,
                               const struct answer *a, struct err *e)
{
    struct containers *cs = (struct containers *)side;
    const char *path = step == 0 ? "/version" : "/info";
    struct json *j = &side->json;
    struct err why;

    if (a->status != 200 && a->status != 403) {
        containers_switch_prefix(cs, a);
        conn_reason(a, &why);
        return err_set(e, "GET %s: %.400s", path, why.text);
    }
    if (json_parse(j, a->status == 403 ? STR("{}") : a->body, &why) != 0)
        return err_set(e, "this does not look like a Docker engine: GET %s: "
                          "%.300s", path, why.text);
    cs->podman = (step > 0 && cs->podman) || docker_is_podman(j);
    if (step > 0) {
        if (a->status == 200 || cs->entries->reg->owner == 0)
            containers_set_owner(cs);   /* else it is that of before */
        return 0;
    }
    cs->api.n = 0;
    buf_url(&cs->api, json_get_raw(j, JSON_ROOT, "ApiVersion"));
    return 0;
}

/* The next list shows every container otherwise than before, and how it stands
 * then is logged. */
static void containers_inspect_all(struct containers *cs)
{
    struct container *c = NULL;

    while ((c = index_next(&cs->side.index, c)) != NULL)
        c->row = 0;
    cs->entries->told = false;
}

/* First subscribe, then list: so nothing happens unseen in between.  The list
 * is due when the head of the stream has come (Docker 1.7 sends none before
 * the first event), and everything is inspected. */
static void containers_ready(struct side *side)
{
    struct containers *cs = (struct containers *)side;
    struct request *r = containers_get(cs, "/events", STR(""), "");

    json_split_start(&cs->events, 0, '{');
    r->stream = r->alone = true;
    r->body = containers_on_events;
    containers_inspect_all(cs);
    conn_send(&cs->engine, r, cs, containers_events_end);
    relist(side, side->now + SUBSCRIBE_MS);
}

/* ---- The engine's list ---- */

static bool containers_row(struct side *side, const struct json *j)
{
    struct containers *cs = (struct containers *)side;
    struct docker_row row;
    struct container *c;

    if (!docker_row(j, &row))
        return false;
    c = index_find(&cs->side.index, row.id);
    if (c == NULL && row.stopped &&
        !container_failed_itself(cs, row.exit_code))
        return true;
    if (c == NULL && cs->side.index.n >= CONTAINERS_MAX)
        return false;
    c = container_get(cs, row.id);
    c->seen = cs->side.epoch;
    if (c->row != row.digest || !c->inspected || c->vanished)
        container_mark_dirty(cs, c, "the list shows it otherwise than before");
    c->inspected = c->inspected && !c->vanished;
    c->vanished = false;
    c->row = row.digest;
    return true;
}

/* The list has been read: a container that it does not show is inspected, and
 * will be found to be gone. */
static void containers_listed(struct side *side)
{
    struct containers *cs = (struct containers *)side;
    struct container *c = NULL;
    size_t n = 0;

    while ((c = index_next(&side->index, c)) != NULL) {
        n += c->seen == side->epoch;
        if (c->seen != side->epoch && side->whole && !c->vanished)
            container_mark_dirty(cs, c, "the list does not show it");
    }
    log_at(cs->entries->told ? LOG_DEBUG : LOG_INFO,
           "Syncing services on %zu containers", n);
    cs->entries->prune_due = true;
}

/* Asks for the containers that run; with -deregister on-success for all others
 * too, since of some the services stay; and of Podman, whose short list does
 * not show those that are paused (seen in 4.3).  On a connection of its own:
 * before Docker 17.07 one stuck container holds the list up for ever. */
static struct request *containers_list(struct side *side)
{
    struct containers *cs = (struct containers *)side;
    struct request *r;

    json_split_start(&side->split, 1, '[');
    r = containers_get(cs, "/containers/json", STR(""),
                       cs->on_success || cs->podman ? "?all=1" : "");
    r->alone = true;
    return r;
}

static const struct side_kind containers_side = {
    containers_hello, containers_on_hello, containers_ready, NULL,
    containers_list, containers_row, containers_listed, NULL
};

/* Compares engine and registry; with `all`, every container is inspected,
 * whatever the list shows of it. */
static void containers_resync(struct containers *cs, bool all)
{
    if (all)
        containers_inspect_all(cs);
    cs->address_due = cs->side.now;
    relist(&cs->side, cs->side.now);
    relist(&cs->entries->side, cs->side.now);
    cs->resync_due = cs->side.now + cs->resync_ms;
}

/* ---- Time ---- */

/* Whether all that the engine has is known: a whole list of it has been read,
 * and every container of that list has been inspected. */
static bool containers_all_known(const struct containers *cs)
{
    const struct link *l;

    if (!side_idle(&cs->side) || !cs->side.whole)
        return false;
    for (l = cs->side.queue.later.next; l != &cs->side.queue.later;
         l = l->next)
        if (!LIST_OF(struct container, node.queue, l)->inspected)
            return false;
    return true;
}

/* Whether all is known that services depend on, so that nothing is missing for
 * that reason. */
static bool containers_certain(const struct containers *cs)
{
    return containers_all_known(cs) && !cs->cfg.ip_unknown;
}

/* Lets go what no container explains: the services of containers that have
 * vanished, and entries of ours that were never claimed. */
static void containers_prune(struct containers *cs)
{
    struct container *c, *next;

    for (c = index_next(&cs->side.index, NULL); c != NULL; c = next) {
        next = index_next(&cs->side.index, c);
        if (c->vanished)
            container_forget(cs, c);
    }
    entries_prune(cs->entries);
}

/* Logs, once in a session, how it stands. */
static void containers_tell(struct containers *cs)
{
    struct entries *es = cs->entries;
    size_t waiting, n = entries_count(es, &waiting, false);

    if (waiting > 0 || !containers_certain(cs))
        log_at(LOG_WARN, "not in sync: %zu of %zu services of %zu containers "
                         "wait%s", waiting, n, cs->side.index.n,
               containers_certain(cs) ? "" : ", and not all are known");
    else
        log_at(LOG_INFO, "in sync: %zu services of %zu containers, %u "
                         "written, %u removed", n, cs->side.index.n,
               es->added, es->removed);
    es->added = es->removed = 0;
    es->told = true;
}

/* Settles which addresses services may get: -ip, that of the interface which
 * it names, and what the registry knows of this host.  If they have changed,
 * every container is inspected.  Nothing is known before the registry has been
 * asked. */
static void containers_set_addresses(struct containers *cs)
{
    struct svc_config *cfg = &cs->cfg;
    const struct registry *reg = cs->entries->reg;
    struct buf found = { 0 };
    bool unknown = cfg->ip_unknown;
    uint64_t digest;

    if (!side_ready(&cs->entries->side))
        return;
    if (cs->ip_is_interface && cs->side.now >= cs->address_due) {
        if (os_interface(cs->ip, &found)) {
            buf_free(&cs->interface);   /* else the last one still counts */
            cs->interface = found;
        }
        cfg->ip_unknown = cs->interface.n == 0;
        cs->address_due = cfg->ip_unknown ? cs->side.now + ADDRESS_MS
                                          : UINT64_MAX;
        if (cfg->ip_unknown && !unknown)
            log_at(LOG_WARN, "-ip %.*s: there is no interface of this name, "
                             "or it has no address: waiting for it",
                   PUT(cs->ip));
    }
    cfg->ip = cs->ip_is_interface ? buf_str(&cs->interface) : cs->ip;
    cfg->host = buf_str(&reg->host);
    cfg->no_host = reg->no_host;
    digest = str_hash(str_hash(cfg->no_host, cfg->ip), cfg->host) | 1;
    if (cs->addresses != 0 && digest != cs->addresses) {
        containers_inspect_all(cs);
        relist(&cs->side, cs->side.now);
    }
    cs->addresses = digest;
}

/* What time has made possible, inspects among it. */
static void containers_tick(struct containers *cs, uint64_t now)
{
    struct entries *es = cs->entries;
    struct link *l, *next;

    if (now >= cs->resync_due)
        containers_resync(cs, false);
    side_tick(&cs->side, now);
    containers_set_addresses(cs);
    containers_inspect(cs);
    for (l = cs->unsettled.next; l != &cs->unsettled; l = next) {
        next = l->next;
        container_settle(cs, LIST_OF(struct container, unsettled, l));
    }
    if (es->prune_due && es->side.listed && !es->side.reading &&
        containers_all_known(cs))
        containers_prune(cs);
    if (!es->told && side_idle(&cs->side) && side_idle(&es->side))
        containers_tell(cs);
}

/* When containers_tick is due, at the latest. */
static uint64_t containers_due(const struct containers *cs)
{
    uint64_t due = side_due(&cs->side);

    if (cs->resync_due < due)
        due = cs->resync_due;
    if (cs->ip_is_interface && side_ready(&cs->entries->side) &&
        cs->address_due < due)
        due = cs->address_due;
    return due;
}

/* For SIGUSR1: how things stand, and what waits for what. */
static void containers_summary(const struct containers *cs)
{
    const struct side *reg = &cs->entries->side;
    const struct container *c = NULL;
    size_t waiting, n = entries_count(cs->entries, &waiting, true);

    log_at(LOG_INFO, "summary: docker %s, %s %s, %zu containers, %zu "
                     "services, %zu of them wait",
           side_ready(&cs->side) ? "reached" : "away", reg->peer->name,
           side_ready(reg) ? "reached" : "away", cs->side.index.n, n, waiting);
    while ((c = index_next(&cs->side.index, c)) != NULL)
        if (!c->inspected || c->node.retry.why != NULL)
            log_at(LOG_INFO, "waiting: %.12s to be inspected: %s",
                   c->node.key.p, c->node.retry.why != NULL
                   ? c->node.retry.why : "not tried yet");
}

/* With -on-exit deregister: nothing is desired any more, and the engine not
 * asked again. */
static void containers_exit(struct containers *cs)
{
    struct container *c = NULL;

    cs->side.state = SIDE_DOWN;
    cs->side.retry.due = UINT64_MAX;
    conn_reset(&cs->engine);
    while ((c = index_next(&cs->side.index, c)) != NULL)
        container_release(cs, c);
}

static void containers_init(struct containers *cs, struct entries *es)
{
    cs->entries = es;
    side_init(&cs->side, &containers_side, &cs->engine);
    list_init(&cs->unsettled);
    list_init(&cs->sharing);
    cs->side.now = os_now();
    cs->resync_due = cs->side.now + cs->resync_ms;
}

/* ==== 15. Program ====================================== opt_ app_ ====
 *
 * Options and environment in, exit codes out; between them, the loop.
 *
 * Calls: str_ buf_ list_ err_ log_ url_ os_ ip_ conn_ side_ svc_ env_
 * entries_ containers_.
 */

/* What the command line says. */
struct options {
    bool cleanup, confine, once, version, help;
    struct svc_config cfg;      /* as far as options make it */
    struct str ip;
    /* Which of the two words of -deregister and -on-exit, 0 or 1: */
    int64_t on_success, deregister_on_exit;
    int64_t log_level;          /* an enum log_level, or OPT_ABSENT */
    int64_t retry_attempts;     /* maybe OPT_ABSENT, too */
    int64_t resync, retry_interval, ttl, ttl_refresh;
    struct str uri;
    struct str shown_uri;       /* without user and password */
};

#define OPT_ABSENT INT64_MIN

enum opt_type { OPT_BOOL, OPT_TEXT, OPT_NUMBER, OPT_WORD };

struct opt {
    const char *name;
    enum opt_type type;
    size_t field;               /* in struct options */
    int64_t min, max;           /* of OPT_NUMBER */
    const char *argument;       /* of OPT_WORD: all words that it may be */
    const char *help;
};

#define FLAG(f) offsetof(struct options, f)
#define YEAR_S 31536000

static const struct opt opt_table[] = {
    { "cleanup", OPT_BOOL, FLAG(cleanup), 0, 0, "",
      "take over what has our IDs, and remove this host's leftovers" },
    { "confine", OPT_BOOL, FLAG(confine), 0, 0, "",
      "sandbox itself after start, by seccomp (default: true)" },
    { "deregister", OPT_WORD, FLAG(on_success), 0, 0,
      " \"always\" or \"on-success\"",
      "on-success: keep the services of a container that failed" },
    { "explicit", OPT_BOOL, FLAG(cfg.only_named), 0, 0, "",
      "only ports that have a SERVICE_NAME" },
    { "hostname", OPT_TEXT, FLAG(cfg.hostname), 0, 0, " NAME",
      "the host name in service IDs (default: this machine's)" },
    { "internal", OPT_BOOL, FLAG(cfg.internal), 0, 0, "",
      "container address and exposed port, not host's and published" },
    { "ip", OPT_TEXT, FLAG(ip), 0, 0, " ADDRESS",
      "address of published ports, or an interface that has it" },
    { "log-level", OPT_WORD, FLAG(log_level), 0, 0,
      " \"error\", \"warn\", \"info\" or \"debug\"", "(default: info)" },
    { "on-exit", OPT_WORD, FLAG(deregister_on_exit), 0, 0,
      " \"keep\" or \"deregister\"",
      "what SIGTERM and SIGINT do with the services (default: keep)" },
    { "once", OPT_BOOL, FLAG(once), 0, 0, "",
      "make the registry right, then exit: 0 if all is well" },
    { "resync", OPT_NUMBER, FLAG(resync), 0, YEAR_S, " SECONDS",
      "between comparisons of engine and registry (default: 60; 0: off)" },
    { "retry-attempts", OPT_NUMBER, FLAG(retry_attempts), -1, INT32_MAX, " N",
      "tries to reach the registry at start (default: -1, for ever)" },
    { "retry-interval", OPT_NUMBER, FLAG(retry_interval), INT32_MIN,
      INT32_MAX, " MS", "pause between them (default: 2000)" },
    { "tags", OPT_TEXT, FLAG(cfg.tags), 0, 0, " LIST",
      "tags added to every service, with commas between them" },
    { "ttl", OPT_NUMBER, FLAG(ttl), 0, YEAR_S, " SECONDS",
      "expiry of entries, in registries that have it" },
    { "ttl-refresh", OPT_NUMBER, FLAG(ttl_refresh), 0, YEAR_S, " SECONDS",
      "how often it is renewed" },
    { "useIpFromLabel", OPT_TEXT, FLAG(cfg.ip_label), 0, 0, " LABEL",
      "a container's address is the value of its label of that name" },
    { "version", OPT_BOOL, FLAG(version), 0, 0, "", "print the version" },
    { "help", OPT_BOOL, FLAG(help), 0, 0, "", "print this text (also -h)" },
};

/* Prints how the program is used, after what was wrong with that: on stdout if
 * the code is 0.  Returns the code. */
static int opt_usage(int code, const char *what, struct str word)
{
    struct buf b = { 0 };
    size_t i;

    buf_fmt(&b, "%s%.*s%s", what, PUT(word), code == 0 ? "" : "\n\n");
    buf_lit(&b, "Usage of registrator:\n"
                "  registrator [options] <registry URI>\n\n"
                "  <registry URI> is one of consul://[host[:port]],\n"
                "  consul-tls://host[:port], consul-unix:///path, print:\n\n");
    for (i = 0; i < LENGTH(opt_table); i++)
        buf_fmt(&b, "  -%s%s\n        %s\n", opt_table[i].name,
                opt_table[i].argument, opt_table[i].help);
    if (!os_write_all(code == 0 ? STDOUT_FILENO : STDERR_FILENO, buf_str(&b)))
        code = 1;
    buf_free(&b);
    return code;
}

/* A whole number, maybe negative, within the option's limits. */
static bool opt_number(struct str s, const struct opt *o, int64_t *out)
{
    bool minus = str_prefix(s, STR("-"));
    uint64_t v;

    if (!str_u64(str_from(s, minus), INT32_MAX, &v))
        return false;
    *out = minus ? -(int64_t)v : (int64_t)v;
    return *out >= o->min && *out <= o->max;
}

/* Which of the words in quotes it is, from 0. */
static bool opt_word(struct str s, struct str words, int64_t *out)
{
    for (*out = 0; words.n > 0; ++*out) {
        (void)str_cut(&words, '"');
        if (str_eq(s, str_cut(&words, '"')))
            return true;
    }
    return false;
}

/* Sets the field of the option.  -1: the value cannot be used. */
static int opt_set(struct options *f, const struct opt *o, struct str value,
                   struct err *e)
{
    void *field = (char *)f + o->field;
    const char *accepted = o->argument;
    struct str rest = value;
    bool ok = true;

    switch (o->type) {
    case OPT_BOOL:
        ok = str_bool(value, field);
        accepted = " true or false";
        break;
    case OPT_TEXT:
        *(struct str *)field = value;
        while (rest.n > 0)
            ok = str_rune(&rest) != 0xfffd && ok;
        accepted = " UTF-8 text";
        break;
    case OPT_WORD:
        ok = opt_word(value, str_of(o->argument), field);
        break;
    case OPT_NUMBER:
        if (!opt_number(value, o, field))
            return err_set(e, "-%s must be a whole number from %d to %d, not "
                              "\"%.*s\"", o->name, (int)o->min, (int)o->max,
                           PUT(value));
    }
    return ok ? 0 : err_set(e, "-%s must be%s, not \"%.*s\"", o->name,
                            accepted, PUT(value));
}

/* Keeps a copy of the URI, and blots out user and password where others can
 * read them, in the list of processes. */
static void opt_uri(struct options *f, char *uri)
{
    struct err unused;
    struct url u;

    f->shown_uri = str_of(uri);
    f->uri = str_of(str_dup(f->shown_uri));
    if (url_parse(f->uri, &u, &unused) == 0 && u.user.n > 0)
        memset(uri + (u.user.p - f->uri.p), '*', u.user.n);
}

/* Reads the command line as Go's flag package does.  The exit code, or -1 to
 * go on; if there is more to say, it is in e. */
static int opt_read(int argc, char **argv, struct options *f, struct err *e)
{
    const struct opt *o, *end = opt_table + LENGTH(opt_table);
    int i;

    for (i = 1; i < argc && argv[i][0] == '-' && argv[i][1] != '\0'; i++) {
        struct str value = str_of(argv[i] + 1 + (argv[i][1] == '-'));
        bool given = str_has(value, '=');
        struct str name = str_cut(&value, '=');

        if (name.n == 0 && !given) {            /* -- */
            i++;
            break;
        }
        if (str_eq(name, STR("h")))
            name = STR("help");
        for (o = opt_table; o < end && !str_eq(name, str_of(o->name)); o++)
            continue;
        if (o == end)
            return opt_usage(2, "flag provided but not defined: -", name);
        if (!given && o->type == OPT_BOOL)
            value = STR("true");
        else if (!given && i + 1 == argc)
            return opt_usage(2, "flag needs an argument: -", name);
        else if (!given)
            value = str_of(argv[++i]);
        if (opt_set(f, o, value, e) != 0)
            return 1;
    }
    if (f->version)
        return os_write_all(STDOUT_FILENO, STR(VERSION "\n")) ? 0 : 1;
    if (f->help)
        return opt_usage(0, "", STR(""));
    if (i == argc)
        return opt_usage(2, "Missing required argument for registry URI.",
                         STR(""));
    if (i + 1 < argc)
        return opt_usage(2, "Extra unparsed arguments.\nOptions should come "
                            "before the registry URI argument.", STR(""));
    opt_uri(f, argv[i]);
    return -1;
}

/* -ip: an IP address, a DNS name with a dot and a letter, or the name of an
 * interface, which is at most 15 bytes long (IF_NAMESIZE) and may have no
 * address yet.  A name whose last label is a number, as eth0.100, is that of
 * an interface. */
static int opt_ip(struct containers *cs, struct str ip, struct err *e)
{
    struct buf unused = { 0 };
    struct str last = str_after(ip, '.');
    bool number = last.n > 0 && str_all(last, isdigit), letter = false;
    bool word = str_all(ip, str_graph), dns = str_has(ip, '.') && !number;
    unsigned char bytes[16];
    size_t i;

    cs->ip = ip;
    if (ip.n == 0 || ip_parse(ip, bytes) > 0)
        return 0;
    for (i = 0; i < ip.n; i++)
        letter = letter || isalpha((unsigned char)ip.p[i]);
    cs->ip_is_interface =
        os_interface(ip, &unused) ||
        (letter && word && !dns && ip.n < 16 && !str_has(ip, '/') &&
         !str_has(ip, ':'));
    buf_free(&unused);
    return cs->ip_is_interface || (letter && word && dns) ? 0
        : err_set(e, "-ip %.*s: neither an address nor an interface of this "
                     "machine (as in 10.1.2.3 or eth0)", PUT(ip));
}

/* ---- The program ---- */

struct app {
    struct options opt;
    struct registry reg;
    struct entries entries;
    struct containers containers;
};

/* What the options mean, and whether they go together. */
static int app_check(struct app *app, struct err *e)
{
    static struct buf name;     /* of this machine; entries point to it */
    struct options *f = &app->opt;
    struct containers *cs = &app->containers;
    struct str *host = &cs->cfg.hostname;

    if (f->log_level != OPT_ABSENT)
        log_limit = (enum log_level)f->log_level;
    if (opt_ip(cs, f->ip, e) != 0)
        return -1;
    if ((f->ttl > 0) != (f->ttl_refresh > 0))
        return err_set(e, "-ttl and -ttl-refresh must be specified together "
                          "or not at all");
    if (f->ttl > 0 && f->ttl <= f->ttl_refresh)
        return err_set(e, "-ttl must be greater than -ttl-refresh");
    if (f->retry_interval <= 0)
        return err_set(e, "-retry-interval must be greater than 0");
    if (f->retry_attempts == OPT_ABSENT)
        f->retry_attempts = f->once ? 0 : -1;
    cs->options = str_hash(str_hash(f->cfg.internal, f->ip), f->cfg.hostname);
    cs->on_success = f->on_success == 1;
    cs->resync_ms = f->resync > 0 ? MS((uint64_t)f->resync * 1000)
                                  : UINT64_MAX / 2;
    cs->cfg = f->cfg;
    app->reg.ip_given = f->ip.n > 0;
    app->reg.ttl_s = (unsigned)f->ttl;
    app->reg.refresh_s = (unsigned)f->ttl_refresh;
    app->entries.cleanup = f->cleanup;
    if (host->n == 0) {
        os_hostname(&name);
        *host = buf_str(&name);
    }
    app->entries.hostname = *host;
    return svc_id_ok(*host) ? 0
        : err_set(e, "the host name \"%.*s\" cannot be part of an ID (1 to %d "
                     "characters of ASCII, no leading /, no //, no . or .. "
                     "part): give another one by -hostname",
                  PUT(*host), SERVICE_ID_MAX);
}

/* DOCKER_CERT_PATH, or ~/.docker, with cert.pem and key.pem, or neither, and
 * ca.pem; without one in ~/.docker, the system's CAs. */
static int app_engine_tls(struct endpoint *p, struct err *e)
{
    static const char *const file[] = { "/ca.pem", "/cert.pem", "/key.pem" };
    static struct buf path[3];  /* for as long as the program runs */
    struct str folder = env_get("DOCKER_CERT_PATH"), home = env_get("HOME");
    size_t i;

    for (i = 0; i < 3; i++) {
        buf_fmt(&path[i], "%.*s%s%s", PUT(folder.n > 0 ? folder : home),
                folder.n > 0 ? "" : "/.docker", file[i]);
        buf_byte(&path[i], '\0');
    }
    if (folder.n > 0 || os_exists(path[0].p))
        p->tls.ca_file = path[0].p;
    if (os_exists(path[1].p) || os_exists(path[2].p)) {
        p->tls.cert_file = path[1].p;
        p->tls.key_file = path[2].p;
    }
    return conn_use_tls(p, p->host, e);
}

/* DOCKER_HOST, with the ports that Docker's own client has for it. */
static int app_open_engine(struct app *app, struct err *e)
{
    struct endpoint *p = &app->containers.engine;
    struct str host = env_get("DOCKER_HOST");
    struct err why;
    struct url u;
    bool tcp, tls;

    conn_init(p, "docker", 8);
    app->containers.default_socket = host.n == 0 ||
                                     str_eq(host, STR("unix://"));
    if (app->containers.default_socket)
        host = STR("unix:///var/run/docker.sock");
    if (url_parse(host, &u, &why) != 0)
        return err_set(e, "DOCKER_HOST: %s (as in unix:///path)", why.text);
    if (str_eq(u.scheme, STR("unix"))) {
        conn_set_address(p, u.path, STR(""), 0);
        return env_check_socket(u.path, "DOCKER_HOST", e);
    }
    tcp = str_eq(u.scheme, STR("tcp"));
    tls = str_eq(u.scheme, STR("https")) ||
          (tcp && env_get("DOCKER_TLS_VERIFY").n > 0);
    if (u.host.n == 0 || (!tls && !tcp && !str_eq(u.scheme, STR("http"))))
        return err_set(e, "DOCKER_HOST is unix:///path, tcp://host:port, "
                          "http://host:port or https://host:port");
    conn_set_address(p, STR(""), u.host,
                     u.port > 0 ? u.port : tls ? 2376 : 2375);
    return tls ? app_engine_tls(p, e) : 0;
}

/* What a URI has behind its scheme and slashes, to be shown: what stands
 * before an @ may be a password. */
static struct str app_uri_rest(struct str uri)
{
    size_t slashes;

    (void)str_cut(&uri, ':');
    for (slashes = 0; slashes < 2 && str_prefix(uri, STR("/")); slashes++)
        uri = str_from(uri, 1);
    return str_first(str_after(uri, '@'), 200);
}

/* A scheme that no registry has: with what was probably meant. */
static int app_unknown_scheme(struct str uri, struct str scheme,
                              struct err *e)
{
    struct str rest = app_uri_rest(uri), meant = STR("");
    struct buf known = { 0 }, hint = { 0 };
    unsigned unused;
    size_t i;

    for (i = 0; i < LENGTH(reg_schemes); i++) {
        buf_fmt(&known, "%s%.*s", i > 0 ? ", " : "",
                PUT(reg_schemes[i].scheme));
        if (str_caseeq(scheme, reg_schemes[i].scheme))
            meant = reg_schemes[i].scheme;
    }
    if (str_eq(scheme, STR("http"))) {
        meant = STR("consul");
    } else if (str_eq(scheme, STR("https"))) {
        meant = STR("consul-tls");
    } else if (str_port(str_upto(rest, str_index(rest, '/')), &unused)) {
        meant = STR("consul");          /* of host:port */
        rest = str_first(str_after(uri, '@'), 200);
    }
    if (meant.n > 0)
        buf_fmt(&hint, "did you mean %.*s:%s%.*s?  ", PUT(meant),
                rest.n > 0 ? "//" : "", PUT(rest));
    err_set(e, "unknown registry \"%.*s\": %s%.*sthe known ones are %.*s",
            PUT(str_first(str_after(scheme, '@'), 80)),
            str_eq(scheme, STR("zookeeper"))
                ? "ZooKeeper is not supported; " : "",
            PUT(buf_str(&hint)), PUT(buf_str(&known)));
    buf_free(&known);
    buf_free(&hint);
    return -1;
}

/* Refuses a URI that means another thing than it says. */
static int app_check_uri(const struct reg_scheme *s, const struct url *u,
                         struct str uri, struct err *e)
{
    struct str rest = uri;
    bool ok;

    (void)str_cut(&rest, ':');
    if (s->kind == &print_kind)
        ok = rest.n == 0 || str_eq(rest, STR("//"));
    else if (s->port == 0)
        ok = str_prefix(rest, STR("///"));
    else if (rest.n > 0 && !str_prefix(rest, STR("//")))
        return err_set(e, "the registry URI needs //: did you mean "
                          "%.*s://%.*s?", PUT(s->scheme),
                       PUT(app_uri_rest(uri)));
    else
        ok = (u->path.n == 0 || str_eq(u->path, STR("/"))) &&
             !str_has(rest, '?') && !str_has(rest, '#');
    return ok ? 0 : err_set(e, "the registry URI is as in %s, without another "
                               "path or query", s->example);
}

/* The registry that the URI and the environment name. */
static int app_open_registry(struct app *app, struct err *e)
{
    const struct reg_scheme *s = reg_schemes;
    struct registry *r = &app->reg;
    struct str uri = app->opt.uri;
    struct err why;
    struct url u;

    if (str_eq(uri, STR("print")))
        return err_set(e, "print: needs its colon");
    if (url_parse(uri, &u, &why) != 0)
        return err_set(e, "the registry URI is not valid: %s", why.text);
    while (s < reg_schemes + LENGTH(reg_schemes) &&
           !str_eq(s->scheme, u.scheme))
        s++;
    if (s == reg_schemes + LENGTH(reg_schemes))
        return app_unknown_scheme(uri, u.scheme, e);
    if (app_check_uri(s, &u, uri, e) != 0)
        return -1;
    r->kind = s->kind;
    log_at(LOG_INFO, "Using %.*s adapter: %.*s", PUT(s->scheme),
           PUT(app->opt.shown_uri));
    if (r->kind == &print_kind && os_terminal(STDOUT_FILENO) &&
        app->opt.log_level == OPT_ABSENT)
        log_limit = LOG_WARN;           /* the table tells the rest */
    if (r->ttl_s > 0 && !r->kind->expires) {
        log_at(LOG_WARN, "-ttl has no effect: entries of %.*s do not expire",
               PUT(s->scheme));
        r->ttl_s = r->refresh_s = 0;
    }
    return r->kind->setup(r, s, &u, e);
}

/* ---- The loop ---- */

/* Everything that time or an answer has made possible. */
static void app_tick(struct app *app)
{
    uint64_t now = os_now();

    entries_tick(&app->entries, now);
    containers_tick(&app->containers, now);
    entries_write(&app->entries);
    conn_assign(&app->containers.engine, now);
    conn_assign(&app->reg.peer, now);
}

/* Waits until something comes or is due, at the latest at at_most, and takes
 * what has come. */
static void app_wait(struct app *app, uint64_t at_most)
{
    struct entries *es = &app->entries;
    struct containers *cs = &app->containers;
    struct pollfd fd[2 * CONNS_MAX + 1];
    uint64_t due = entries_due(es), other = containers_due(cs);
    uint64_t now = os_now();

    due = due < other ? due : other;
    due = due < at_most ? due : at_most;
    conn_pollfds(&cs->engine, fd);
    conn_pollfds(&app->reg.peer, fd + CONNS_MAX);
    os_wait(fd, 2 * CONNS_MAX, due > now ? due - now : 0);
    es->side.now = cs->side.now = now = os_now();
    conn_ready(&cs->engine, fd, now);
    conn_ready(&app->reg.peer, fd + CONNS_MAX, now);
}

/* Whether to give up: at start, or with -once, after so many tries. */
static bool app_gives_up(const struct app *app)
{
    const struct side *reg = &app->entries.side;
    const struct side *docker = &app->containers.side;
    uint64_t most = (uint64_t)app->opt.retry_attempts;

    if (app->opt.retry_attempts < 0)
        return false;
    if (!reg->ever && reg->retry.tries > most)
        return true;
    return app->opt.once &&
           (reg->retry.tries > most || reg->list_retry.tries > most ||
            docker->retry.tries > most || docker->list_retry.tries > most);
}

/* With -once: the exit code, 1 if something could not be done.  -1: not all
 * has been done yet that could be, or it is not -once. */
static int app_once(const struct app *app)
{
    const struct containers *cs = &app->containers;
    size_t waiting;

    if (!app->opt.once || !side_idle(&app->entries.side) ||
        !side_idle(&cs->side) || !list_empty(&cs->unsettled) ||
        (containers_all_known(cs) && app->entries.prune_due))
        return -1;
    (void)entries_count(&app->entries, &waiting, false);
    return waiting > 0 || !containers_certain(cs) ||
           !list_empty(&cs->side.queue.later);
}

/* With -on-exit deregister: removes what we registered, as far as the
 * registry lets us within five seconds. */
static void app_deregister(struct app *app)
{
    struct side *side = &app->entries.side;
    uint64_t end = os_now() + EXIT_MS;
    size_t waiting;

    containers_exit(&app->containers);
    side->retry.due = 0;        /* a peer that was away is tried now */
    app_tick(app);
    while (side->now < end && !side_idle(side)) {
        app_wait(app, end);
        app_tick(app);
    }
    (void)entries_count(&app->entries, &waiting, false);
    if (waiting > 0)
        log_at(LOG_WARN, "not all services could be deregistered");
}

/* Until something ends the program; returns its exit code. */
static int app_run(struct app *app)
{
    int code;

    while (!os_stop) {
        app_tick(app);
        if ((code = app_once(app)) >= 0)
            return code;
        if (app_gives_up(app)) {
            log_at(LOG_ERROR, "giving up");
            return 1;
        }
        app_wait(app, UINT64_MAX);
        if (os_resync) {
            os_resync = 0;
            containers_resync(&app->containers, true);
        }
        if (os_summary) {
            os_summary = 0;
            containers_summary(&app->containers);
        }
    }
    if (app->opt.deregister_on_exit == 1)
        app_deregister(app);
    return 0;
}

/* Prepares everything of which the options and the environment decide. */
static int app_open(struct app *app, struct err *e)
{
    if (app_check(app, e) != 0)
        return -1;
    log_at(LOG_INFO, "Starting registrator %s ...", VERSION);
    if (app_open_registry(app, e) != 0 || app_open_engine(app, e) != 0)
        return -1;
    entries_init(&app->entries, &app->reg);
    containers_init(&app->containers, &app->entries);
    app->entries.side.first_pause_ms =
        MS((uint64_t)app->opt.retry_interval);
    return 0;
}

int main(int argc, char **argv)
{
    static struct app app;      /* zero, and not on the stack */
    struct err e = { "" };
    int code = 1;

    app.opt = (struct options){ .confine = true, .log_level = OPT_ABSENT,
                                .retry_attempts = OPT_ABSENT, .resync = 60,
                                .retry_interval = 2000 };
    if (os_signals(&e) == 0 && os_descriptors(&e) == 0)
        code = opt_read(argc, argv, &app.opt, &e);
    os_protect_memory();
    if (code < 0 && app_open(&app, &e) != 0)
        code = 1;
    if (code >= 0) {
        if (*e.text != '\0')
            log_at(LOG_ERROR, "%s", e.text);
        return code;
    }
    if (app.opt.confine && os_sandbox(app.opt.ip.n > 0, &e) != 0)
        log_at(LOG_WARN, "not as confined as it could be: %s", e.text);
    code = app_run(&app);
    conn_reset(&app.containers.engine);         /* in TLS: says goodbye */
    conn_reset(&app.reg.peer);
    return code;
}
