/* benchpeer - the scripted engine and Consul of bench.py, and its stopwatch.
 *
 *     benchpeer SOCKET INSPECT ROW EVENT
 *
 * It answers as Docker on the unix socket and as Consul on a port of
 * 127.0.0.1.  INSPECT, ROW and EVENT are files, what the engine says of a
 * container: in them @I stands for its ID, @N for its number, @P for its
 * published port, @R for whether it runs, @S for that in a word and @A for
 * what has happened to it.
 *
 * Commands come from stdin, a line each; each is answered with a line of JSON
 * on stdout.  Times in answers are of CLOCK_MONOTONIC, in nanoseconds.
 *
 *     boxes N             anew: N containers run, nothing is registered, all
 *                         connections are cut
 *     delay US            each answer comes so long after its request
 *     close 0|1           whether Consul closes after each answer
 *     wait MS QUIET       until Consul has what it should have and nothing
 *                         has been asked for QUIET ms, at the most MS
 *     events N GAP        N times: a container dies; when that is written and
 *                         GAP us of quiet have passed, it starts again
 *     storm DIE START EARLY
 *                         DIE die and START of them start again at once, 1 ms
 *                         after EARLY others did both
 *     count               what has been asked since the last count
 *
 * Like Go's servers it takes up the requests of a connection one after the
 * other; those of several connections overlap.
 */

#define _GNU_SOURCE             /* ppoll, memmem */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNS_MAX = 1000,
    PIECE = 65536,              /* read at once */
    CHUNKED_FROM = 2048,        /* bytes: as Go's server does it */
    GIVEN_UP = 5000,            /* ms after which an event counts as lost */
    LOST_MAX = 10               /* then no more of them are tried */
};

#define MS INT64_C(1000000)
#define REGISTER "/v1/agent/service/register"
#define DEREGISTER "/v1/agent/service/deregister/"

/* ---- Text ---- */

struct text {
    char *p;                    /* there is a NUL behind it */
    size_t n, room;
};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void need(struct text *t, size_t n)
{
    if (t->room > t->n + n)
        return;
    t->room = 2 * (t->n + n) + 64;
    t->p = realloc(t->p, t->room);
    if (t->p == NULL)
        fail("realloc");
}

static void add(struct text *t, const char *p, size_t n)
{
    need(t, n);
    memcpy(t->p + t->n, p, n);
    t->n += n;
    t->p[t->n] = '\0';
}

static void add_z(struct text *t, const char *z)
{
    add(t, z, strlen(z));
}

__attribute__((format(printf, 2, 3)))
static void add_f(struct text *t, const char *format, ...)
{
    char line[512];
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    add(t, line, (size_t)n);
}

static void clear(struct text *t)
{
    free(t->p);
    memset(t, 0, sizeof *t);
}

static struct text file(const char *path)
{
    struct text t = { 0 };
    FILE *f = fopen(path, "r");
    int c;

    if (f == NULL)
        fail(path);
    while ((c = getc(f)) != EOF)
        add(&t, (char[]){ (char)c }, 1);
    fclose(f);
    return t;
}

/* What stands behind the first `mark` in p[n], or NULL. */
static const char *behind(const char *p, size_t n, const char *mark)
{
    const char *at = memmem(p, n, mark, strlen(mark));

    return at == NULL ? NULL : at + strlen(mark);
}

static int64_t clock_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* ---- The containers, and what is registered of them ---- */

struct box {
    char id[65];
    bool runs;
    unsigned port;              /* published: another one at each start */
    struct text entry;          /* its service, as it was sent */
    unsigned entry_port;
    bool right;                 /* the one fits the other */
};

static struct box *boxes;
static size_t boxes_n;
static size_t wrong;            /* those that are not right, and what was
                                   written of none that we know */
static int64_t right_at;        /* when `wrong` became 0 */
static int64_t asked_at;        /* the last request was taken up, or done */
static struct text inspect, row, event;         /* the three files */

/* The container whose write is being timed. */
static const struct box *timed;
static int64_t timed_from, timed_to;

static void judge(struct box *b)
{
    bool right = b->runs ? b->entry.n > 0 && b->entry_port == b->port
                         : b->entry.n == 0;

    wrong += (size_t)b->right - (size_t)right;
    b->right = right;
    if (wrong == 0)
        right_at = clock_ns();
}

static uint64_t mix(uint64_t v)         /* splitmix64: IDs without order */
{
    v = (v + 1) * UINT64_C(0x9e3779b97f4a7c15);
    v = (v ^ v >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    v = (v ^ v >> 27) * UINT64_C(0x94d049bb133111eb);
    return v ^ v >> 31;
}

static void boxes_new(size_t n)
{
    size_t i;

    for (i = 0; i < boxes_n; i++)
        clear(&boxes[i].entry);
    free(boxes);
    boxes = calloc(n, sizeof *boxes);
    if (boxes == NULL)
        fail("calloc");
    boxes_n = wrong = n;
    timed = NULL;
    for (i = 0; i < n; i++) {
        snprintf(boxes[i].id, sizeof boxes[i].id,
                 "%016" PRIx64 "%016" PRIx64 "%016" PRIx64 "%016zx",
                 mix(3 * i), mix(3 * i + 1), mix(3 * i + 2), i);
        boxes[i].runs = true;
        boxes[i].port = (unsigned)(10000 + i);
    }
}

/* The container that an ID or a name such as box-00017 speaks of. */
static struct box *box_of_id(const char *id)
{
    size_t i = strtoull(id + 48, NULL, 16);

    return i < boxes_n && strncmp(boxes[i].id, id, 64) == 0 ? &boxes[i] : NULL;
}

static struct box *box_of_name(const char *p, size_t n)
{
    const char *number = behind(p, n, "box-");
    size_t i = number == NULL ? boxes_n : strtoull(number, NULL, 10);

    return i < boxes_n ? &boxes[i] : NULL;
}

static void expand(struct text *t, const struct text *model,
                   const struct box *b, const char *action)
{
    const char *p = model->p, *end = p + model->n, *at;

    for (; (at = memchr(p, '@', (size_t)(end - p))) != NULL; p = at + 2) {
        add(t, p, (size_t)(at - p));
        switch (at[1]) {
        case 'I': add(t, b->id, 64); break;
        case 'N': add_f(t, "%05zu", (size_t)(b - boxes)); break;
        case 'P': add_f(t, "%u", b->port); break;
        case 'R': add_z(t, b->runs ? "true" : "false"); break;
        case 'S': add_z(t, b->runs ? "running" : "exited"); break;
        case 'A': add_z(t, action); break;
        }
    }
    add(t, p, (size_t)(end - p));
}

/* ---- Connections ---- */

struct conn {
    int fd;
    bool engine;                /* Docker's, not Consul's */
    bool stream;                /* carries events */
    bool last;                  /* is closed when all is written */
    struct text in, out;
    size_t in_at, out_at;       /* done already */
    int64_t arrived;            /* the last bytes */
    /* The request that is being worked on: */
    bool taken;
    int64_t due;                /* its answer */
    size_t path, path_n, body, body_n;  /* where they are in `in` */
};

static struct conn conns[CONNS_MAX];
static size_t conns_n;
static int64_t delay;           /* ns */
static bool consul_closes;
static struct {
    unsigned long requests, writes, in, out;
} count;

static void conn_close(struct conn *c)
{
    close(c->fd);
    clear(&c->in);
    clear(&c->out);
    *c = conns[--conns_n];
}

static void conn_accept(int listener, bool engine)
{
    struct conn *c = &conns[conns_n];
    int fd = accept(listener, NULL, NULL), on = 1;

    if (fd < 0 || conns_n == CONNS_MAX)
        fail("accept");
    fcntl(fd, F_SETFL, O_NONBLOCK);
    if (!engine)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    memset(c, 0, sizeof *c);
    c->fd = fd;
    c->engine = engine;
    conns_n++;
}

/* False: it is over. */
static bool conn_read(struct conn *c)
{
    ssize_t n;

    need(&c->in, PIECE);
    n = read(c->fd, c->in.p + c->in.n, PIECE);
    c->arrived = clock_ns();
    if (n <= 0)
        return n < 0 && errno == EAGAIN;
    c->in.n += (size_t)n;
    c->in.p[c->in.n] = '\0';
    count.in += (unsigned long)n;
    return true;
}

static bool conn_write(struct conn *c)
{
    ssize_t n;

    while (c->out_at < c->out.n) {
        n = write(c->fd, c->out.p + c->out_at, c->out.n - c->out_at);
        if (n < 0)
            return errno == EAGAIN;
        c->out_at += (size_t)n;
        count.out += (unsigned long)n;
    }
    c->out.n = c->out_at = 0;
    return !c->last;
}

/* Takes up the next request, if all of it is there. */
static bool conn_take(struct conn *c, int64_t now)
{
    const char *p = c->in.p + c->in_at, *end, *line, *space;
    size_t n = c->in.n - c->in_at;

    if (c->taken || n == 0 || c->stream)
        return c->taken;
    end = behind(p, n, "\r\n\r\n");
    if (end == NULL)
        return false;
    c->body = (size_t)(end - c->in.p);
    c->body_n = 0;
    for (line = p; line < end - 2; line = behind(line, n, "\r\n"))
        if (strncasecmp(line, "Content-Length:", 15) == 0)
            c->body_n = strtoull(line + 15, NULL, 10);
    if (c->in.n - c->body < c->body_n)
        return false;
    space = memchr(p, ' ', n);
    c->path = (size_t)(space + 1 - c->in.p);
    c->path_n = strcspn(space + 1, " ");
    c->in.p[c->path + c->path_n] = '\0';
    c->taken = true;
    c->due = now + delay;
    asked_at = now;
    count.requests++;
    return true;
}

static void conn_answer(struct conn *c, int status, const char *p, size_t n)
{
    add_f(&c->out, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\n"
                   "Date: Mon, 23 Nov 2026 00:55:58 GMT\r\n%s", status,
          status == 200 ? "OK" : "Not Found",
          c->last ? "Connection: close\r\n" : "");
    if (n < CHUNKED_FROM) {
        add_f(&c->out, "Content-Length: %zu\r\n\r\n", n);
        add(&c->out, p, n);
        return;
    }
    add_f(&c->out, "Transfer-Encoding: chunked\r\n\r\n%zx\r\n", n);
    add(&c->out, p, n);
    add_z(&c->out, "\r\n0\r\n\r\n");
}

static void answer_z(struct conn *c, int status, const char *z)
{
    conn_answer(c, status, z, strlen(z));
}

/* ---- The engine ---- */

static void engine_list(struct conn *c)
{
    static struct text t;
    size_t i;

    t.n = 0;
    add_z(&t, "[");
    for (i = 0; i < boxes_n; i++)
        if (boxes[i].runs) {
            add_z(&t, t.n > 1 ? "," : "");
            expand(&t, &row, &boxes[i], "");
        }
    add_z(&t, "]\n");
    conn_answer(c, 200, t.p, t.n);
}

static void engine_inspect(struct conn *c, const char *id)
{
    static struct text t;
    const struct box *b = strlen(id) >= 64 ? box_of_id(id) : NULL;

    if (b == NULL) {
        answer_z(c, 404, "{\"message\":\"No such container\"}\n");
        return;
    }
    t.n = 0;
    expand(&t, &inspect, b, "");
    conn_answer(c, 200, t.p, t.n);
}

static void engine_answer(struct conn *c, const char *path)
{
    if (strncmp(path, "/v1.", 4) == 0)
        path += 4 + strcspn(path + 4, "/");
    if (strncmp(path, "/events", 7) == 0) {
        c->stream = true;
        add_z(&c->out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                       "Transfer-Encoding: chunked\r\n\r\n");
    } else if (strncmp(path, "/containers/json", 16) == 0) {
        engine_list(c);
    } else if (strncmp(path, "/containers/", 12) == 0) {
        engine_inspect(c, path + 12);
    } else if (strcmp(path, "/_ping") == 0) {
        answer_z(c, 200, "OK");
    } else if (strcmp(path, "/version") == 0) {
        answer_z(c, 200, "{\"Version\":\"20.10.24\",\"ApiVersion\":\"1.41\","
                         "\"MinAPIVersion\":\"1.12\"}\n");
    } else if (strcmp(path, "/info") == 0) {
        answer_z(c, 200, "{\"ID\":\"BENC:HPEE:R\",\"Name\":\"bench\","
                         "\"ServerVersion\":\"20.10.24\"}\n");
    } else {
        answer_z(c, 404, "{\"message\":\"page not found\"}\n");
    }
}

/* Tells all who listen that something has happened to the container. */
static void engine_tell(struct text *t, struct box *b, bool runs)
{
    size_t from = t->n;
    char size[16];

    b->runs = runs;
    b->port = runs ? 10000 + (b->port - 10000 + 20000) % 40000 : b->port;
    judge(b);
    expand(t, &event, b, runs ? "start" : "die");
    snprintf(size, sizeof size, "%zx\r\n", t->n - from);
    need(t, strlen(size));
    memmove(t->p + from + strlen(size), t->p + from, t->n - from);
    memcpy(t->p + from, size, strlen(size));
    t->n += strlen(size);
    add_z(t, "\r\n");
}

/* Sends the events off, in one piece; returns when that began. */
static int64_t engine_send(struct text *t)
{
    int64_t now = clock_ns();
    size_t i;

    for (i = 0; i < conns_n; i++)
        if (conns[i].stream) {
            add(&conns[i].out, t->p, t->n);
            conn_write(&conns[i]);
        }
    clear(t);
    return now;
}

/* ---- Consul ---- */

/* Something was written of the container b, NULL: of none that we know. */
static void consul_wrote(struct conn *c, struct box *b)
{
    count.writes++;
    if (b == NULL) {
        wrong++;
        return;
    }
    judge(b);
    if (b == timed && timed_to == 0 && b->right)
        timed_to = c->arrived;
}

/* Keeps the registration in the form in which /v1/agent/services shows it:
 * without the last brace, and with what Consul adds in consul_list. */
static void consul_register(struct conn *c, const char *body, size_t n)
{
    const char *id = behind(body, n, "\"ID\":\"");
    struct box *b = id == NULL ? NULL
                               : box_of_name(id, strcspn(id, "\""));
    const char *name = behind(body, n, "\"Name\":");
    const char *port = behind(body, n, "\"Port\":");

    if (b != NULL && name != NULL && port != NULL) {
        b->entry.n = 0;
        add(&b->entry, body, (size_t)(name - body) - 7);
        add_z(&b->entry, "\"Service\":");
        add(&b->entry, name, n - (size_t)(name - body) - 1);
        b->entry_port = (unsigned)strtoul(port, NULL, 10);
    }
    consul_wrote(c, b);
    answer_z(c, 200, "");
}

static void consul_deregister(struct conn *c, const char *id)
{
    struct box *b = box_of_name(id, strlen(id));

    if (b != NULL)
        clear(&b->entry);
    consul_wrote(c, b);
    answer_z(c, 200, "");
}

static void consul_list(struct conn *c)
{
    static struct text t;
    size_t i;

    t.n = 0;
    add_z(&t, "{");
    for (i = 0; i < boxes_n; i++) {
        const struct text *e = &boxes[i].entry;
        const char *id = e->n > 0 ? behind(e->p, e->n, "\"ID\":\"") : NULL;

        if (id == NULL)
            continue;
        add_f(&t, "%s\"%.*s\":", t.n > 1 ? "," : "", (int)strcspn(id, "\""),
              id);
        add(&t, e->p, e->n);
        add_f(&t, ",\"TaggedAddresses\":{\"lan_ipv4\":{\"Address\":"
                  "\"10.0.0.1\",\"Port\":%u},\"wan_ipv4\":{\"Address\":"
                  "\"10.0.0.1\",\"Port\":%u}},\"Weights\":{\"Passing\":1,"
                  "\"Warning\":1},\"EnableTagOverride\":false}",
              boxes[i].entry_port, boxes[i].entry_port);
    }
    add_z(&t, "}");
    conn_answer(c, 200, t.p, t.n);
}

static void consul_answer(struct conn *c, const char *path)
{
    c->last = consul_closes;
    if (strncmp(path, REGISTER, strlen(REGISTER)) == 0)
        consul_register(c, c->in.p + c->body, c->body_n);
    else if (strncmp(path, DEREGISTER, strlen(DEREGISTER)) == 0)
        consul_deregister(c, path + strlen(DEREGISTER));
    else if (strcmp(path, "/v1/agent/services") == 0)
        consul_list(c);
    else if (strcmp(path, "/v1/status/leader") == 0)
        answer_z(c, 200, "\"127.0.0.1:8300\"");
    else if (strcmp(path, "/v1/agent/self") == 0)
        answer_z(c, 200, "{\"Config\":{\"NodeName\":\"bench\",\"Version\":"
                         "\"1.8.7\"},\"Member\":{\"Name\":\"bench\","
                         "\"Addr\":\"10.0.0.1\",\"Port\":8301}}");
    else
        answer_z(c, 404, "");
}

/* Answers what is due.  False: the connection is over. */
static bool conn_serve(struct conn *c, int64_t now)
{
    while (!c->last && conn_take(c, now) && c->due <= now) {
        if (c->engine)
            engine_answer(c, c->in.p + c->path);
        else
            consul_answer(c, c->in.p + c->path);
        c->in_at = c->body + c->body_n;
        if (c->in_at == c->in.n)
            c->in_at = c->in.n = 0;
        c->taken = false;
        asked_at = clock_ns();
    }
    return conn_write(c);
}

/* ---- Commands ---- */

static struct {
    enum { NOTHING, WAIT, EVENTS, STORM } what;
    int64_t limit;              /* when to give up; STORM: when to break */
    int64_t quiet;              /* nothing asked for so long */
    size_t left;                /* events: a die when it is even, a start */
    size_t die, start;
    unsigned lost;
    struct text samples[2];     /* of dies and starts: us, with commas */
} command;

static bool busy(void)
{
    size_t i;

    for (i = 0; i < conns_n; i++)
        if (conns[i].taken)
            return true;
    return false;
}

static void say(const char *line)
{
    command.what = NOTHING;
    puts(line);
    fflush(stdout);
}

static void wait_step(int64_t now)
{
    char line[200];

    if (now < command.limit &&
        (wrong > 0 || busy() || now < asked_at + command.quiet))
        return;
    snprintf(line, sizeof line,
             "{\"right\":%s,\"wrong\":%zu,\"at\":%" PRId64 "}",
             wrong == 0 ? "true" : "false", wrong, right_at);
    say(line);
}

static void events_end(void)
{
    struct text t = { 0 };

    add_f(&t, "{\"lost\":%u,\"die\":[", command.lost);
    add(&t, command.samples[0].p, command.samples[0].n);
    add_z(&t, "],\"start\":[");
    add(&t, command.samples[1].p, command.samples[1].n);
    add_z(&t, "]}");
    say(t.p);
    clear(&t);
    clear(&command.samples[0]);
    clear(&command.samples[1]);
}

/* One event at a time: the next only when all is quiet again. */
static void events_step(int64_t now)
{
    struct text *samples = &command.samples[command.left % 2 == 0];
    struct text t = { 0 };
    struct box *b;

    if (timed != NULL && timed_to == 0 &&
        now < timed_from + GIVEN_UP * MS)
        return;
    if (now < asked_at + command.quiet || busy())
        return;
    if (timed != NULL && timed_to == 0)
        command.lost++;
    else if (timed != NULL)
        add_f(samples, "%s%.1f", samples->n > 0 ? "," : "",
              (double)(timed_to - timed_from) / 1000);
    timed = NULL;
    if (command.left == 0 || command.lost == LOST_MAX) {
        events_end();
        return;
    }
    command.left--;
    b = &boxes[command.left / 2 % boxes_n];
    engine_tell(&t, b, command.left % 2 == 0);
    timed = b;
    timed_to = 0;
    timed_from = asked_at = engine_send(&t);
}

/* Containers from `from` on: `die` die, and `start` of them start again. */
static int64_t storm(size_t from, size_t die, size_t start)
{
    struct text t = { 0 };
    size_t i;

    for (i = from; i < from + die && i < boxes_n; i++) {
        engine_tell(&t, &boxes[i], false);
        if ((i - from) * start / die != (i - from + 1) * start / die)
            engine_tell(&t, &boxes[i], true);
    }
    return engine_send(&t);
}

static void storm_step(int64_t now)
{
    char line[100];

    if (now < command.limit)
        return;
    snprintf(line, sizeof line, "{\"at\":%" PRId64 "}",
             storm(0, command.die, command.start));
    say(line);
}

static void command_step(int64_t now)
{
    if (command.what == WAIT)
        wait_step(now);
    else if (command.what == EVENTS)
        events_step(now);
    else if (command.what == STORM)
        storm_step(now);
}

/* When command_step is to be called, if nothing else happens. */
static int64_t command_due(void)
{
    int64_t quiet = asked_at + command.quiet;

    if (command.what == NOTHING)
        return INT64_MAX;
    if (command.what == EVENTS)
        return timed != NULL && timed_to == 0 ? timed_from + GIVEN_UP * MS
                                              : quiet;
    return command.what == WAIT && wrong == 0 && quiet < command.limit
        ? quiet : command.limit;
}

static void count_say(void)
{
    char line[200];

    snprintf(line, sizeof line, "{\"requests\":%lu,\"writes\":%lu,"
             "\"in\":%lu,\"out\":%lu}", count.requests, count.writes,
             count.in, count.out);
    memset(&count, 0, sizeof count);
    say(line);
}

static void command_read(const char *line)
{
    int64_t now = clock_ns();
    unsigned long a = 0, b = 0, c = 0;
    char word[16] = "";

    sscanf(line, "%15s %lu %lu %lu", word, &a, &b, &c);
    if (strcmp(word, "wait") == 0) {
        command.what = WAIT;
        command.limit = now + (int64_t)a * MS;
        command.quiet = (int64_t)b * MS;
    } else if (strcmp(word, "events") == 0) {
        command.what = EVENTS;
        command.left = 2 * a;
        command.quiet = (int64_t)b * 1000;
        command.lost = 0;
        timed = NULL;
    } else if (strcmp(word, "storm") == 0) {
        command.what = STORM;
        command.limit = now + (c > 0 ? MS : 0);
        command.die = a;
        command.start = b;
        if (c > 0)
            storm(a, c, c);
    } else if (strcmp(word, "count") == 0) {
        count_say();
    } else {
        if (strcmp(word, "boxes") == 0) {
            while (conns_n > 0)
                conn_close(&conns[conns_n - 1]);
            boxes_new(a);
            memset(&count, 0, sizeof count);
        } else if (strcmp(word, "delay") == 0) {
            delay = (int64_t)a * 1000;
        } else if (strcmp(word, "close") == 0) {
            consul_closes = a > 0;
        } else {
            exit(1);
        }
        say("{}");
    }
}

/* ---- The loop ---- */

static int listen_unix(const char *path)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    strncpy(a.sun_path, path, sizeof a.sun_path - 1);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 512) != 0)
        fail(path);
    return fd;
}

static int listen_tcp(unsigned *port)
{
    struct sockaddr_in a = { .sin_family = AF_INET };
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0 ||
        listen(fd, 512) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &n) != 0)
        fail("127.0.0.1");
    *port = ntohs(a.sin_port);
    return fd;
}

static void wait_for(struct pollfd *p)
{
    int64_t due = command_due(), now;
    struct timespec t;
    size_t i;

    for (i = 0; i < conns_n; i++) {
        p[3 + i].fd = conns[i].fd;
        p[3 + i].events = (short)(POLLIN | (conns[i].out.n > 0 ? POLLOUT : 0));
        if (conns[i].taken && conns[i].due < due)
            due = conns[i].due;
    }
    now = clock_ns();
    due = due == INT64_MAX ? 3600000 * MS : due > now ? due - now : 0;
    t.tv_sec = due / 1000000000;
    t.tv_nsec = due % 1000000000;
    if (ppoll(p, (nfds_t)(3 + conns_n), &t, NULL) < 0)
        fail("ppoll");
}

/* Backwards, since a connection that is closed is replaced by the last. */
static void serve(const struct pollfd *p, size_t n)
{
    while (n-- > 0) {
        struct conn *c = &conns[n];

        if (p[3 + n].revents & (POLLIN | POLLHUP | POLLERR) && !conn_read(c))
            conn_close(c);
        else if (!conn_serve(c, clock_ns()))
            conn_close(c);
    }
}

int main(int argc, char **argv)
{
    static struct pollfd p[3 + CONNS_MAX];
    char line[200];
    unsigned port;
    size_t n;

    if (argc != 5) {
        fprintf(stderr, "usage: benchpeer SOCKET INSPECT ROW EVENT\n");
        return 2;
    }
    inspect = file(argv[2]);
    row = file(argv[3]);
    event = file(argv[4]);
    signal(SIGPIPE, SIG_IGN);           /* who is measured may be killed */
    prctl(PR_SET_TIMERSLACK, 1000);     /* ns: the delays are to be exact */
    p[0].fd = STDIN_FILENO;
    p[1].fd = listen_unix(argv[1]);
    p[2].fd = listen_tcp(&port);
    p[0].events = p[1].events = p[2].events = POLLIN;
    setvbuf(stdin, NULL, _IONBF, 0);    /* poll sees what stdio does not */
    printf("{\"port\":%u}\n", port);
    fflush(stdout);
    for (;;) {
        wait_for(p);
        n = conns_n;
        serve(p, n);
        if (p[1].revents)
            conn_accept(p[1].fd, true);
        if (p[2].revents)
            conn_accept(p[2].fd, false);
        if (p[0].revents) {
            if (fgets(line, sizeof line, stdin) == NULL)
                return 0;
            command_read(line);
        }
        command_step(clock_ns());
    }
}
