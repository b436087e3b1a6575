/* Fuzzers of the parsers, and of the way from a container to a registration.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -o fuzz tests/fuzz.c
 *     FUZZ=json ./fuzz -dict=tests/corpus/dict DIRECTORY tests/corpus/json
 *
 * Each looks for more than crashes: CHECK states what must hold.  The names
 * are at the end; the helpers are those of the unit tests. */

int unit_main(int, char **);
#define UNIT_MAIN unit_main
#include "unit.c"

/* Adds the value at t without blanks: its strings as JSON writes them. */
static void fuzz_print(struct buf *b, const struct json *j, size_t t,
                       struct arena *a)
{
    bool object = json_type(j, t) == JSON_OBJECT;
    size_t i;

    if (json_type(j, t) == JSON_STRING) {
        buf_json(b, json_str(j, t, a));
    } else if (object || json_type(j, t) == JSON_ARRAY) {
        buf_byte(b, object ? '{' : '[');
        for (i = 0; json_next(j, t, &i);) {
            buf_lit(b, i > t + 1 ? "," : "");
            fuzz_print(b, j, i, a);
            if (object) {
                CHECK(json_type(j, i) == JSON_STRING);
                buf_byte(b, ':');
                fuzz_print(b, j, i + 1, a);
            }
        }
        buf_byte(b, object ? '}' : ']');
    } else {
        buf_add(b, json_raw(j, t));
    }
}

/* Tokens lie in the text and in each other; what is read and written again
 * is the same; and nothing can follow it. */
static void fuzz_json(struct str in)
{
    static struct json j, k;
    struct buf once = { .max = 0 }, twice = { .max = 0 };
    struct arena a = { NULL };
    struct err e;
    size_t i;

    if (json_parse(&j, edge(in), &e) == 0) {
        for (i = JSON_ROOT; i < j.n; i++) {
            const struct json_token *t = &j.token[i];

            CHECK(t->at <= in.n && t->n <= in.n - t->at);
            CHECK(t->next > i && t->next <= j.n);
        }
        fuzz_print(&once, &j, JSON_ROOT, &a);
        CHECK(json_parse(&k, edge(buf_str(&once)), &e) == 0 && k.n == j.n);
        fuzz_print(&twice, &k, JSON_ROOT, &a);
        CHECK(str_eq(buf_str(&once), buf_str(&twice)));
        buf_byte(&twice, '}');
        CHECK(json_parse(&k, edge(buf_str(&twice)), &e) != 0);
    }
    mem_drop(&a);
    buf_free(&once);
    buf_free(&twice);
}

/* The first two bytes say where the rest is cut; the outcome must be that of
 * the whole, and of single bytes. */
static size_t fuzz_cut(struct str *in)
{
    size_t at = (size_t)(unsigned char)in->p[0] << 8 |
                (unsigned char)in->p[1];

    *in = str_from(*in, 2);
    return in->n > 0 ? at % in->n : 0;
}

static void fuzz_split(struct str in)
{
    struct buf whole = { .max = 0 }, part = { .max = 0 };
    enum split_kind kind;
    size_t cut;

    if (in.n < 3)
        return;
    kind = (enum split_kind)((unsigned char)*in.p % 3);
    in = str_from(in, 1);
    if (in.n < 2)
        return;
    cut = fuzz_cut(&in);
    (void)split_all(&whole, kind, in, in.n);
    CHECK(str_eq(split_all(&part, kind, in, cut), buf_str(&whole)));
    CHECK(str_eq(split_all(&part, kind, in, 0), buf_str(&whole)));
    buf_free(&whole);
    buf_free(&part);
}

static void fuzz_http(struct str in)
{
    struct buf whole = { .max = 0 }, part = { .max = 0 };
    size_t cut;

    if (in.n < 2)
        return;
    cut = fuzz_cut(&in);
    (void)http_all(&whole, in, in.n);
    CHECK(str_eq(http_all(&part, in, cut), buf_str(&whole)));
    CHECK(str_eq(http_all(&part, in, 0), buf_str(&whole)));
    buf_free(&whole);
    buf_free(&part);
}

/* The registration of s: JSON that says what s says, and that looks like s
 * when it is listed. */
static void fuzz_registration(const struct service *s)
{
    static struct json j;
    struct buf body = { .max = 0 }, list = { .max = 0 };
    struct arena a = { NULL };
    struct reg_row row;
    struct err e;

    consul_body(&body, s, STR("0123456789abcdef-0123456789abcdef01234567"));
    CHECK(json_parse(&j, edge(buf_str(&body)), &e) == 0);
    listed(&list, &j);
    CHECK(json_parse(&j, edge(buf_str(&list)), &e) == 0);
    CHECK(consul_row(&j, &a, &row) && row.marked);
    CHECK(str_eq(row.id, s->id) && row.view == reg_view_of(s));
    CHECK(s->port > 0 && s->port < 65536);
    mem_drop(&a);
    buf_free(&body);
    buf_free(&list);
}

static bool fuzz_has(const struct svc_set *set, struct str id)
{
    size_t i;

    for (i = 0; i < set->n; i++)
        if (str_eq(set->service[i].id, id))
            return true;
    return false;
}

/* The services of a container: the same each time, each with an ID of its
 * own, each a good registration, and all of them still known by their IDs
 * when it has ended. */
static void fuzz_derive(const struct docker_container *c,
                        const struct docker_container *peer, unsigned how)
{
    struct svc_config cfg = { .hostname = S("h"), .host = S("10.0.0.9"),
                              .attrs_max = 63,
                              .refuses = consul_attr_refused };
    struct svc_notes notes = { { .max = 0 } };
    struct buf once = { .max = 0 }, twice = { .max = 0 };
    struct docker_container ended = *c;
    struct svc_set *set, *again, *hollow;
    size_t i, k, sent;

    ended.runs = false;
    cfg.internal = how & 1;
    cfg.only_named = how & 2;
    cfg.ip = how & 4 ? STR("192.0.2.1") : STR("");
    cfg.ip_label = how & 8 ? STR("ip") : STR("");
    cfg.tags = how & 16 ? STR("x,\\,,udp") : STR("");
    set = svc_derive(&cfg, c, peer, &notes);
    again = svc_derive(&cfg, c, peer, &notes);
    hollow = svc_derive(&cfg, &ended, NULL, &notes);
    (void)services_text(&once, set);
    CHECK(str_eq(services_text(&twice, again), buf_str(&once)));
    for (i = 0; i < set->n; i++) {
        for (k = sent = 0; k < set->service[i].attrs; k++)
            sent += !set->service[i].attr[k].hidden;
        CHECK(sent <= 63 && fuzz_has(hollow, set->service[i].id));
        for (k = 0; k < i; k++)
            CHECK(!str_eq(set->service[i].id, set->service[k].id));
        if (!set->hollow)
            fuzz_registration(&set->service[i]);
    }
    svc_free(set);
    svc_free(again);
    svc_free(hollow);
    buf_free(&notes.text);
    buf_free(&once);
    buf_free(&twice);
}

/* Any JSON as an event, a row, a container, and /info and /version. */
static void fuzz_docker(struct str in)
{
    static struct json j;
    struct docker_container *c;
    struct docker_event ev;
    struct docker_row row;
    struct arena a = { NULL };
    struct err e;

    if (in.n < 1 || json_parse(&j, edge(str_from(in, 1)), &e) != 0)
        return;
    if (docker_event(&j, &ev))
        CHECK(ev.action != DOCKER_OTHER && docker_id(ev.id));
    if (docker_row(&j, &row))
        CHECK(docker_id(row.id) && str_index(row.name, '/') == row.name.n);
    (void)docker_identity(&j, docker_is_podman(&j), &a);
    c = docker_inspect(&j);
    if (c != NULL)
        fuzz_derive(c, c->ports % 2 ? c : NULL, (unsigned char)*in.p);
    docker_free(c);
    mem_drop(&a);
}

/* The next line of *in, terminated, for the caller to free.  Its quotes and
 * control characters go where the text is to be part of a JSON string. */
static char *fuzz_line(struct str *in, bool plain)
{
    char *z = str_dup(str_cut(in, '\n'));
    size_t i;

    for (i = 0; z[i] != '\0'; i++)
        if (plain && (z[i] == '"' || z[i] == '\\' ||
                      (unsigned char)z[i] < 0x20))
            z[i] = '_';
    return z;
}

/* Containers as the tables of the unit tests write them, a word a line. */
static void fuzz_services(struct str in)
{
    unsigned how = in.n > 0 ? (unsigned char)*in.p : 0;
    struct docker_container *c[2];
    char *line[8];
    size_t i, k;

    (void)str_cut(&in, '\n');
    for (i = 0; i < 2; i++) {
        struct box box = { .ended = (how & 32) && i == 0 };

        for (k = 0; k < LENGTH(line); k++)
            line[k] = fuzz_line(&in, k < 4);
        box.name = *line[0] != '\0' ? line[0] : "x";
        box.ports = line[1];
        box.exposed = line[2];
        box.networks = line[3];
        box.mode = line[4];
        box.image = line[5];
        box.env = line[6];
        box.labels = line[7];
        c[i] = box_open(&box);
        for (k = 0; k < LENGTH(line); k++)
            free(line[k]);
    }
    fuzz_derive(c[0], how & 64 ? c[1] : NULL, how);
    docker_free(c[0]);
    docker_free(c[1]);
}

static bool fuzz_inside(struct str piece, struct str in)
{
    return piece.n == 0 ||
           (piece.p >= in.p && piece.p + piece.n <= in.p + in.n);
}

/* The first line as a URI; the words of the second as a command line. */
static void fuzz_url(struct str in)
{
    struct str text = edge(str_cut(&in, '\n')), s;
    struct buf b = { .max = 0 };
    struct url u, v;
    struct flags f = { .resync = 0 };
    char *word[34] = { NULL };
    struct err e;
    int argc = 1, i, code;

    if (url_parse(text, &u, &e) == 0) {
        CHECK(fuzz_inside(u.scheme, text) && fuzz_inside(u.user, text) &&
              fuzz_inside(u.host, text) && fuzz_inside(u.path, text));
        CHECK(u.port < 65536 && u.scheme.n > 0);
        for (s = text; s.n > 0; s = str_from(s, 1))
            CHECK((unsigned char)*s.p > 0x20 && *s.p != 0x7f);
        buf_lit(&b, "x://");
        url_put(&b, u.host, u.port);
        if (str_index(u.host, '@') == u.host.n &&
            str_index(u.host, ']') == u.host.n &&
            str_index(u.host, '/') == u.host.n &&
            !str_prefix(u.host, STR("["))) {
            CHECK(url_parse(buf_str(&b), &v, &e) == 0);
            CHECK(str_eq(u.host, v.host) && u.port == v.port);
        }
    }
    word[0] = str_dup(STR("registrator"));
    while (in.n > 0 && argc < 33)
        word[argc++] = str_dup(str_cut(&in, ' '));
    quiet(true);
    code = opt_read(argc, word, &f);
    quiet(false);
    CHECK(code >= 0 || (f.resync >= 0 && f.retry_attempts >= -1));
    for (i = 0; i < argc; i++)
        free(word[i]);
    buf_free(&b);
}

/* Any JSON as an entry that Consul lists, and as its answers to a greeting. */
static void fuzz_consul(struct str in)
{
    static struct registry r;
    static struct json j;
    struct answer answer = { .status = 200 };
    struct buf mark = { .max = 0 };
    struct arena a = { NULL };
    struct reg_row row, back;
    struct err e;

    answer.body = edge(in);
    (void)consul_greeted(&r, 0, &answer, &e);
    (void)consul_greeted(&r, 1, &answer, &e);
    (void)consul_verdict(REG_DROP, &answer);
    reg_words(&answer, &e);
    if (json_parse(&j, answer.body, &e) == 0 && consul_row(&j, &a, &row)) {
        CHECK(row.id.n > 0);
        reg_mark(&mark, row.owner, row.content, row.checks);
        CHECK(!row.marked || (reg_read_mark(buf_str(&mark), &back) &&
                              back.owner == row.owner &&
                              back.content == row.content &&
                              back.checks == row.checks));
    }
    mem_drop(&a);
    buf_free(&mark);
}

/* The encoders: what comes out is plain, and means what went in. */
static void fuzz_text(struct str in)
{
    static struct json j;
    struct buf b = { .max = 0 }, utf8 = { .max = 0 };
    struct arena a = { NULL };
    struct str s = in;
    struct err e;
    size_t i;

    while (s.n > 0) {
        char c[4];
        struct str one = { c, str_utf8(str_rune(&s), c) };

        buf_add(&utf8, one);
    }
    buf_json(&b, edge(in));
    CHECK(json_parse(&j, edge(buf_str(&b)), &e) == 0);
    CHECK(str_eq(json_str(&j, JSON_ROOT, &a), buf_str(&utf8)));
    b.n = 0;
    log_escape(&b, edge(in));
    for (i = 0; i < b.n; i++)
        CHECK((unsigned char)b.p[i] >= 0x20 && b.p[i] != 0x7f);
    b.n = 0;
    http_request(&b, "PUT", edge(in), STR("h"), STR(""), STR(""));
    CHECK(b.bad || str_find(buf_str(&b), STR(" HTTP/1.1\r\nHost: h\r\n")) ==
          4 + in.n);
    mem_drop(&a);
    buf_free(&b);
    buf_free(&utf8);
}

int LLVMFuzzerTestOneInput(const unsigned char *, size_t);
int LLVMFuzzerTestOneInput(const unsigned char *p, size_t n)
{
    static const struct {
        const char *name;
        void (*run)(struct str);
    } all[] = {
        { "json", fuzz_json }, { "split", fuzz_split }, { "http", fuzz_http },
        { "docker", fuzz_docker }, { "services", fuzz_services },
        { "url", fuzz_url }, { "consul", fuzz_consul }, { "text", fuzz_text },
    };
    static size_t chosen = SIZE_MAX;
    const char *name = getenv("FUZZ");
    struct str in = { (const char *)p, n };

    if (chosen == SIZE_MAX) {
        log_limit = LOG_ERROR;
        for (chosen = 0; chosen < LENGTH(all); chosen++)
            if (name != NULL && strcmp(all[chosen].name, name) == 0)
                break;
        CHECK(chosen < LENGTH(all));    /* FUZZ=json ./fuzz ... */
    }
    if (n <= 1024 * 1024)
        all[chosen].run(in);
    return 0;
}
