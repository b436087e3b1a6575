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
    arena_free(&a);
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

/* What JSON has at that depth is what the splitter finds, and it knows the
 * end. */
static void fuzz_list(unsigned depth, char open, struct str in)
{
    static struct json j;
    struct buf wanted = { .max = 0 }, got = { .max = 0 };
    bool plain = true;          /* of others, each byte is said to be odd */
    struct err e;
    bool odd = false;           /* each byte of another value is said to be */
    size_t i;

    if (depth != 1 || json_parse(&j, edge(in), &e) != 0 ||
        json_type(&j, JSON_ROOT) != (open == '{' ? JSON_OBJECT : JSON_ARRAY))
        return;
    for (i = 0; json_next(&j, JSON_ROOT, &i);) {
        size_t v = open == '{' ? i + 1 : i;

        if (json_type(&j, v) == JSON_OBJECT)
            buf_fmt(&wanted, "%.*s|", PUT(json_raw(&j, v)));
        else
            odd = true;
    }
    buf_byte(&wanted, '.');
    if (!odd)
        CHECK(str_eq(split_all(&got, depth, open, in, in.n),
                     buf_str(&wanted)));
    buf_free(&wanted);
    buf_free(&got);
}

static void fuzz_split(struct str in)
{
    static const struct {
        unsigned depth;
        char open;
    } kind[] = { { 0, '{' }, { 1, '[' }, { 1, '{' }, { 2, '{' } };
    struct buf whole = { .max = 0 }, part = { .max = 0 };
    unsigned k, depth;
    char open;
    size_t cut;

    if (in.n < 3)
        return;
    k = (unsigned char)*in.p % LENGTH(kind);
    depth = kind[k].depth;
    open = kind[k].open;
    in = str_from(in, 1);
    cut = fuzz_cut(&in);
    (void)split_all(&whole, depth, open, in, in.n);
    CHECK(str_eq(split_all(&part, depth, open, in, cut), buf_str(&whole)));
    CHECK(str_eq(split_all(&part, depth, open, in, 0), buf_str(&whole)));
    fuzz_list(depth, open, in);
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

/* The registration of s: JSON that says what s says, and whose digests are
 * those of what is then listed. */
static void fuzz_registration(const struct service *s)
{
    static struct registry reg = { .kind = &consul_kind };
    static struct json j;
    struct buf body = { .max = 0 }, list = { .max = 0 }, mark = { .max = 0 };
    struct reg_item item = { .owner = 0 };
    struct arena a = { NULL };
    struct digest sent, marked;
    struct err e;

    consul_value(&reg, s, STR(""), &body, &sent, NULL);
    reg_mark(&mark, 1, &sent);
    body.n = 0;
    consul_value(&reg, s, buf_str(&mark), &body, &marked, NULL);
    CHECK(json_parse(&j, edge(buf_str(&body)), &e) == 0);
    CHECK(count_of(&j, json_get(&j, JSON_ROOT, "Meta")) <= 64);
    listed(&list, &j);
    CHECK(json_parse(&j, edge(buf_str(&list)), &e) == 0);
    CHECK(consul_item(&reg, &j, &a, &item) && item.owner == 1);
    CHECK(str_eq(item.key, s->id) && str_eq(item.id, s->id));
    CHECK(item.have.place == sent.place && item.have.tags == sent.tags &&
          item.have.content == sent.content &&
          item.have.checks == sent.checks);
    arena_free(&a);
    buf_free(&body);
    buf_free(&list);
    buf_free(&mark);
}

/* What holds of every service, whatever a container's author has written. */
static void fuzz_service(const struct svc_set *set, size_t i)
{
    const struct service *s = &set->service[i];
    size_t k, tags = 0;

    CHECK(s->set == set && svc_id_ok(s->id));
    CHECK(s->kept || (s->port > 0 && s->port < 65536));
    CHECK(s->exposed > 0 && s->exposed < 65536);
    for (k = 0; k < s->tags; k++)
        tags += s->tag[k].n;
    CHECK(tags <= SERVICE_TAGS_MAX + strlen("udp"));
    for (k = 1; k < s->attrs; k++)
        CHECK(str_cmp(s->attr[k - 1]->key, s->attr[k]->key) < 0);
    for (k = 0; k < i; k++)
        CHECK(!str_caseeq(s->id, set->service[k].id));
    if (!s->kept)
        fuzz_registration(s);
}

/* The services of a container: the same each time.  When it has ended, they
 * are those that it had, where they were; without these, each port only keeps
 * its ID. */
static void fuzz_derive(const struct docker_container *c,
                        const struct docker_container *shared, unsigned how)
{
    struct svc_config cfg = { .hostname = S("h"), .host = S("10.0.0.9") };
    struct svc_notes notes = { .first = NULL };
    struct buf once = { .max = 0 }, twice = { .max = 0 };
    struct docker_container ended = *c;
    struct svc_set *set, *again, *after, *blank;
    const struct svc_note *note;
    size_t i;

    ended.running = false;
    cfg.internal = how & 1;
    cfg.only_named = how & 2;
    cfg.ip = how & 4 ? STR("192.0.2.1") : STR("");
    cfg.ip_label = how & 8 ? STR("ip") : STR("");
    cfg.tags = how & 16 ? STR("x,\\,,udp") : STR("");
    set = svc_derive(&cfg, c, shared, NULL, &notes);
    again = svc_derive(&cfg, c, shared, NULL, &notes);
    after = svc_derive(&cfg, &ended, NULL, set, &notes);
    blank = svc_derive(&cfg, &ended, NULL, NULL, &notes);
    (void)services_text(&once, set);
    CHECK(str_eq(services_text(&twice, again), buf_str(&once)));
    for (i = 0; i < set->n && set->arena.used <= SERVICES_SIZE &&
                after->arena.used <= SERVICES_SIZE; i++) {
        fuzz_service(set, i);
        CHECK(after->n == set->n &&
              str_eq(after->service[i].id, set->service[i].id) &&
              str_eq(after->service[i].address, set->service[i].address) &&
              after->service[i].port == set->service[i].port);
    }
    for (i = 0; i < after->n && after->arena.used <= SERVICES_SIZE; i++)
        CHECK((!c->running || !after->service[i].kept) &&
              svc_id_ok(after->service[i].id));
    for (i = 0; i < blank->n && blank->arena.used <= SERVICES_SIZE; i++)
        CHECK(blank->service[i].kept && svc_id_ok(blank->service[i].id));
    for (i = 0, note = notes.first; note != NULL; note = note->next)
        i++;
    CHECK(i <= 2 * NOTES_MAX + 20);     /* and a warning of each format */
    svc_free(set);
    svc_free(again);
    svc_free(after);
    svc_free(blank);
    arena_free(&notes.arena);
    buf_free(&once);
    buf_free(&twice);
}

/* Any JSON as an event, a row, a container, networks, and /info and
 * /version. */
static void fuzz_docker(struct str in)
{
    static struct json j;
    struct buf known = { .max = 0 };
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
        CHECK(docker_id(row.id) && (row.stopped || row.exit_code == 0));
    (void)docker_identity(&j, docker_is_podman(&j), &a);
    docker_read_networks(&known, &j);
    CHECK(known.n == 0 || strchr("+-", known.p[known.n - 1]) != NULL);
    c = docker_inspect(&j);
    if (c != NULL) {
        (void)docker_set_routable(c, edge(buf_str(&known)), *in.p & 1);
        fuzz_derive(c, c->ports % 2 ? c : NULL, (unsigned char)*in.p);
    }
    docker_free(c);
    arena_free(&a);
    buf_free(&known);
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

/* A URI: its parts are in it, and what is written of them is read again. */
static void fuzz_url(struct str in)
{
    struct str text = edge(in), s;
    struct buf b = { .max = 0 };
    struct url u, v;
    struct err e;

    if (url_parse(text, &u, &e) == 0) {
        CHECK(within(u.scheme, text) && within(u.user, text) &&
              within(u.host, text) && within(u.path, text));
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
    buf_free(&b);
}

/* Writes every option out as the words of a command line, with NULs. */
static void fuzz_flags(struct buf *b, const struct options *f)
{
    size_t k;

    for (k = 0; k < LENGTH(opt_table); k++) {
        const struct opt *o = &opt_table[k];
        const void *field = (const char *)f + o->field;

        if (o->type == OPT_TEXT && ((const struct str *)field)->p == NULL)
            continue;
        buf_lit(b, "--");
        buf_lit(b, o->name);
        buf_byte(b, '=');
        if (o->type == OPT_TEXT) {
            buf_add(b, *(const struct str *)field);
        } else if (o->type == OPT_BOOL) {
            buf_lit(b, *(const bool *)field ? "true" : "F");
        } else if (o->type == OPT_WORD) {
            struct str word = STR(""), rest = str_of(o->argument);
            int64_t left;

            for (left = *(const int64_t *)field; left >= 0; left--) {
                (void)str_cut(&rest, '"');
                word = str_cut(&rest, '"');
            }
            CHECK(word.n > 0);
            buf_add(b, word);
        } else {
            int64_t v = *(const int64_t *)field;

            CHECK(v >= o->min && v <= o->max);
            buf_lit(b, v < 0 ? "-" : "");
            buf_fmt(b, "%u", (unsigned)(v < 0 ? -v : v));
        }
        buf_byte(b, '\0');
    }
    buf_lit(b, "--");
    buf_byte(b, '\0');
    buf_add(b, f->uri);
    buf_byte(b, '\0');
    free((void *)(uintptr_t)f->uri.p);
}

/* Words with NULs behind them as a command line; the code. */
static int fuzz_words(struct str in, struct options *f)
{
    static const struct options usual = { .resync = 60, .retry_interval = 1 };
    char *word[66] = { NULL }, name[] = "registrator";
    struct err e;
    int argc = 1, code;

    *f = usual;
    word[0] = name;
    while (in.n > 0 && argc < 65)
        word[argc++] = (char *)(uintptr_t)str_cut(&in, '\0').p;
    quiet(true);
    code = opt_read(argc, word, f, &e);
    quiet(false);
    return code;
}

/* The words of a command line, a word a line: what is understood of it, when
 * it is written out, is understood the same. */
static void fuzz_options(struct str in)
{
    struct buf all = { .max = 0 }, once = { .max = 0 }, twice = { .max = 0 };
    struct options f, g;
    int code;
    size_t i;

    buf_add(&all, in);
    buf_byte(&all, '\n');
    for (i = 0; i < all.n; i++)
        all.p[i] = all.p[i] == '\n' ? '\0' : all.p[i];
    code = fuzz_words(edge(buf_str(&all)), &f);
    if (code < 0) {
        fuzz_flags(&once, &f);
        CHECK(fuzz_words(edge(buf_str(&once)), &g) < 0);
        fuzz_flags(&twice, &g);
        CHECK(str_eq(buf_str(&once), buf_str(&twice)));
    }
    CHECK(fuzz_words(edge(buf_str(&all)), &g) == code);
    if (code < 0)
        free((void *)(uintptr_t)g.uri.p);
    buf_free(&all);
    buf_free(&once);
    buf_free(&twice);
}

/* Any JSON as an entry that Consul lists, and as its answers to a greeting. */
static void fuzz_consul(struct str in)
{
    static struct consul own;
    static struct registry r = { .own = &own };
    static struct json j;
    struct answer answer = { .status = 200 };
    struct reg_item item = { .owner = 0 }, back = { .owner = 0 };
    struct buf mark = { .max = 0 };
    struct arena a = { NULL };
    struct err e;

    answer.body = edge(in);
    (void)consul_on_hello(&r, 0, &answer, &e);
    (void)consul_on_hello(&r, 1, &answer, &e);
    (void)consul_verdict(&r, REG_DEREGISTER, 0, &answer);
    conn_reason(&answer, &e);
    (void)docker_is_gone(answer.body, STR("0123456789ab"));
    if (json_parse(&j, answer.body, &e) == 0 &&
        consul_item(&r, &j, &a, &item)) {
        CHECK(item.key.n > 0);
        reg_mark(&mark, item.owner, &item.have);
        CHECK(item.owner == 0 || (reg_read_mark(buf_str(&mark), &back) &&
                                  back.owner == item.owner &&
                                  back.have.content == item.have.content &&
                                  back.have.checks == item.have.checks));
    }
    arena_free(&a);
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

    while (s.n > 0)
        buf_rune(&utf8, str_rune(&s));
    buf_json(&b, edge(in));
    CHECK(json_parse(&j, edge(buf_str(&b)), &e) == 0);
    CHECK(str_eq(json_str(&j, JSON_ROOT, &a), buf_str(&utf8)));
    b.n = 0;
    buf_escape(&b, edge(in), false);
    for (i = 0; i < b.n; i++)
        CHECK((unsigned char)b.p[i] >= 0x20 && b.p[i] != 0x7f);
    b.n = utf8.n = 0;
    buf_url(&b, edge(in));
    CHECK(url_decode(&utf8, edge(buf_str(&b))) && str_eq(buf_str(&utf8), in));
    b.n = 0;
    http_request(&b, "PUT", edge(in), STR("h"), STR(""), STR(""));
    CHECK(b.bad || str_find(buf_str(&b), STR(" HTTP/1.1\r\nHost: h\r\n")) ==
          4 + in.n);
    arena_free(&a);
    buf_free(&b);
    buf_free(&utf8);
}

/* What the objects of a PEM file are, and how it ended. */
static struct str fuzz_seen(struct buf *b, const char *kind, struct str in)
{
    const char *path = spill(0, in);
    const br_x509_certificate *object;
    struct arena a = { NULL };
    struct err e = { "" };
    size_t n, i;

    b->n = 0;
    object = pem_load(&a, path, kind, &n, &e);
    CHECK(object != NULL ? *e.text == '\0' && n > 0
                         : str_prefix(str_of(e.text), str_of(path)));
    buf_lit(b, e.text);
    for (i = 0; object != NULL && i < n; i++)
        buf_add(b, (struct str){ (const char *)object[i].data,
                                 object[i].data_len });
    arena_free(&a);
    return buf_str(b);
}

/* Uses a file as CAs, as our certificate and key, or as it is. */
static struct str fuzz_pem_used(struct buf *b, unsigned how, struct str in)
{
    const char *path = spill(0, in);
    struct tls_config cfg = { .ca_file = path, .cert_file = path,
                              .key_file = path };
    struct tls_creds *c;
    struct err e = { "" };
    size_t i;
    int result;

    if (how % 3 == 2)
        return fuzz_seen(b, "", in);
    c = mem_zero(sizeof *c);
    b->n = 0;
    result = how % 3 == 0 ? tls_load_cas(c, &cfg, &e)
                          : tls_load_own(c, &cfg, &e);
    CHECK(result == 0 ? *e.text == '\0'
                      : str_prefix(str_of(e.text), str_of(path)));
    buf_lit(b, e.text);
    for (i = 0; result == 0 && i < c->cas; i++)
        buf_add(b, c->ca[i].der);
    buf_fmt(b, "%d", br_skey_decoder_key_type(&c->key));
    tls_free_creds(c);
    return buf_str(b);
}

/* A PEM file, after a byte that says how it is used: the same twice, and with
 * CR LF; and bytes that are encoded come back. */
static void fuzz_pem(struct str in)
{
    struct buf once = { .max = 0 }, twice = { .max = 0 }, b = { .max = 0 };
    struct str rest, line;
    unsigned how;
    size_t i;

    if (in.n < 1)
        return;
    how = (unsigned char)*in.p;
    rest = in = str_from(in, 1);
    (void)fuzz_pem_used(&once, how, in);
    CHECK(str_eq(fuzz_pem_used(&twice, how, in), buf_str(&once)));
    for (i = 0; i < in.n; i++) {
        buf_lit(&b, in.p[i] == '\n' ? "\r" : "");
        buf_byte(&b, in.p[i]);
    }
    CHECK(str_eq(fuzz_pem_used(&twice, how, buf_str(&b)), buf_str(&once)));
    b.n = 0;
    buf_lit(&b, "-----BEGIN X-----\n");
    while (rest.n > 0) {
        line = str_first(rest, 48);
        url_base64(&b, line);
        buf_byte(&b, '\n');
        rest = str_from(rest, line.n);
    }
    buf_lit(&b, "-----END X-----");
    CHECK(str_eq(fuzz_seen(&once, "X", buf_str(&b)), in));
    buf_free(&once);
    buf_free(&twice);
    buf_free(&b);
}

/* A certificate, after 16 bytes that are an address: what is found is in it,
 * and in a copy of it; and without its last byte it is none. */
static void fuzz_der(struct str in)
{
    struct buf names = { .max = ERR_MAX / 2 }, again = { .max = ERR_MAX / 2 };
    struct str der, rest, part, want;
    struct cert_info c, d;
    bool ok;

    if (in.n < 16)
        return;
    ip_format(&again, (const unsigned char *)in.p, *in.p % 3 == 0 ? 4 : 16);
    want = *in.p % 5 == 0 ? STR("x.example.test") : buf_str(&again);
    in = str_from(in, 16);
    ok = cert_parse(in, &c);
    if (ok) {
        want_within(&c, in);
        (void)cert_is_for(c.names, want, &names);
        CHECK(names.n <= ERR_MAX / 2 && (c.names.n > 0 || names.n == 0));
        CHECK(!cert_parse(edge(str_upto(in, in.n - 1)), &d));
    }
    der = edge(in);
    CHECK(cert_parse(der, &d) == ok);
    if (ok) {
        want_within(&d, der);
        CHECK(cert_is_for(c.names, want, &names) ==
              cert_is_for(d.names, want, &names));
        CHECK(str_eq(c.issuer, d.issuer) && str_eq(c.subject, d.subject) &&
              str_eq(c.names, d.names) && c.signed_n == d.signed_n &&
              c.unfit == d.unfit && c.may_sign == d.may_sign &&
              c.seen == d.seen);
    }
    for (rest = der; der_take(&rest, der_tag(rest), &part);)
        CHECK(within(part, der));
    buf_free(&names);
    buf_free(&again);
}

/* Certificates, each after two bytes that are its length, judged whole and in
 * pieces: the verdict is the same.  Without a CA none is good, and with one
 * none but for the name that is asked for.  The first byte says how. */
static void fuzz_chain(struct str in)
{
    static const char *const name[] = {
        "a.example.test", "10.1.2.3", "2001:db8::7", "b.example.test"
    };
    static struct tls_config cfg, none;
    struct buf names = { .max = 0 };
    struct str cert[4];
    struct cert_info c;
    struct err why, again;
    unsigned how, error;
    size_t n = 0, piece;

    if (cfg.creds == NULL) {
        cfg = trusting(PEM_CA PEM_RSA, "x");
        none = trusting(NULL, "x");
    }
    if (in.n < 2)
        return;
    how = (unsigned char)in.p[0];
    piece = (unsigned char)in.p[1] + 1u;
    for (in = str_from(in, 2); n < 4 && in.n > 2; n++) {
        size_t most = (size_t)(unsigned char)in.p[0] << 8 |
                      (unsigned char)in.p[1];

        in = str_from(in, 2);
        cert[n] = str_first(in, most);
        in = str_from(in, cert[n].n);
    }
    none.name = cfg.name = str_of(name[how & 3]);
    cfg.insecure = how & 4;
    error = verdict(&cfg, cert, n, SIZE_MAX, &why);
    CHECK(verdict(&cfg, cert, n, piece, &again) == error);
    CHECK((*why.text == '\0') == (*again.text == '\0'));
    CHECK(verdict(&cfg, cert, n, 1, &again) == error);
    CHECK(verdict(&none, cert, n, SIZE_MAX, &again) != 0);
    if (error == 0 && !cfg.insecure) {
        CHECK(n > 0 && cert_parse(cert[0], &c) && c.unfit == NULL);
        CHECK(cert_is_for(c.names, cfg.name, &names));
        cfg.name = STR("c.example.test");
        CHECK(verdict(&cfg, cert, n, SIZE_MAX, &again) != 0 &&
              *again.text != '\0');
    }
    buf_free(&names);
}

/* A private key: the same twice, nothing past the room that is left for it,
 * and it signs or does not. */
static void fuzz_key(struct str in)
{
    static const unsigned char hash[32] = "a hash";
    struct tls_creds *c = mem_zero(sizeof *c);
    struct err e[2] = { { "" }, { "" } };
    const br_rsa_private_key *rsa;
    const br_ec_private_key *ec;
    unsigned char sig[512];
    size_t signed_n[2] = { 0, 0 }, i;
    struct tls_config cfg = { .cert_file = spill(1, STR(PEM_SERVER)) };
    struct buf b = { .max = 0 };
    int result[2], k;

    if (in.n < 1) {
        free(c);
        return;
    }
    buf_lit(&b, "-----BEGIN PRIVATE KEY-----\n");
    url_base64(&b, str_from(in, 1));
    buf_lit(&b, "\n-----END PRIVATE KEY-----\n");
    cfg.key_file = spill(2, buf_str(&b));
    for (k = 0; k < 2; k++) {
        memset(c, 0, sizeof *c);
        result[k] = tls_load_own(c, &cfg, &e[k]);
        CHECK(result[k] == 0 ? br_skey_decoder_key_type(&c->key) != 0
              : str_prefix(str_of(e[k].text), str_of(cfg.key_file)));
        for (i = 24; i < sizeof c->slack; i++)
            CHECK(c->slack[i] == 0);
        rsa = br_skey_decoder_get_rsa(&c->key);
        ec = br_skey_decoder_get_ec(&c->key);
        if (result[k] == 0 && ec != NULL)
            signed_n[k] = br_ecdsa_i31_sign_asn1(
                &br_ec_prime_i31, &br_sha256_vtable, hash, ec, sig);
        else if (result[k] == 0 && (rsa->n_bitlen + 7) / 8 <= sizeof sig)
            signed_n[k] = br_rsa_i31_pkcs1_sign(BR_HASH_OID_SHA256, hash, 32,
                                                rsa, sig);
        arena_free(&c->arena);
    }
    buf_free(&b);
    CHECK(result[0] == result[1] && signed_n[0] == signed_n[1] &&
          strcmp(e[0].text, e[1].text) == 0);
    free(c);
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
        { "options", fuzz_options }, { "pem", fuzz_pem }, { "der", fuzz_der },
        { "chain", fuzz_chain }, { "key", fuzz_key },
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
