/* registrator with another registry, for tests alone: a key-value store that
 * is somewhat like etcd.  Its row of the registry table, and a main that is
 * that of the program but for this row.
 *
 *     cc -std=c99 -g -fsanitize=address,undefined -DHASTE=10 -o kv tests/kv.c
 *         -lbearssl
 *     ./kv [options] kv://host:port
 *
 * What it asks for (tests/kv.py has the server):
 *
 *     GET    /version
 *     GET    /kv?prefix=PREFIX          404: there are none
 *     POST   /lease                     {"TTL":30}, with -ttl only
 *     PUT    /kv?key=KEY[&lease=ID]     the body is the value
 *     DELETE /kv?key=KEY
 *
 * It differs from Consul wherever a registry can: keys are paths, in which
 * case counts; a registration is two requests if entries expire; the list is
 * an array in an object, of keys and values in base64; the mark is a part of
 * the value; there are no checks, and tags can only be compared with all else
 * that is stored. */

int registrator_main(int, char **);
#define main registrator_main
#include "../registrator.c"
#undef main

#define KV_PREFIX "/services/"

/* The lease that was granted, from the verdict on a step to the request of
 * the next one, which follows at once. */
struct kv {
    struct buf lease;
};

/* ---- Its answers ---- */

/* Adds the bytes that s stands for (RFC 4648 section 4, with padding). */
static bool kv_unbase64(struct buf *b, struct str s)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                "abcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t v = 0;
    size_t n = s.n, i, pad = 0;

    while (pad < 2 && n > 0 && s.p[n - 1] == '=') {
        pad++;
        n--;
    }
    for (i = 0; i < n; i++) {
        size_t k = str_index(str_of(digit), s.p[i]);

        if (k == 64)
            return false;
        v = v << 6 | (uint32_t)k;
        if (i % 4 > 0)
            buf_byte(b, (char)(v >> (6 - 2 * (i % 4)) & 255));
    }
    return s.n % 4 == 0;
}

/* A text of the list, in memory of a. */
static bool kv_text(const struct json *j, const char *name, struct arena *a,
                    struct str *out)
{
    size_t t = json_get(j, JSON_ROOT, name);
    struct buf b = { 0 };
    bool ok = json_type(j, t) == JSON_STRING &&
              kv_unbase64(&b, json_str(j, t, a));

    *out = buf_done(&b, a);
    return ok;
}

/* A part of a key, as it was before it was escaped.  Empty: it never was. */
static struct str kv_part(struct str s, struct arena *a)
{
    struct buf b = { 0 };

    if (!url_decode(&b, s))
        b.n = 0;
    return buf_done(&b, a);
}

/* Whether the answer says no in these words.  The 404 of a proxy has
 * others. */
static bool kv_says(const struct answer *a, unsigned status, const char *words)
{
    return a->status == status &&
           str_find(a->body, str_of(words)) < a->body.n;
}

/* Keeps the ID of the lease for the next step. */
static bool kv_read_lease(struct kv *kv, struct str body)
{
    struct json j = { .n = 0 };
    struct err e;
    struct str id = STR("");

    kv->lease.n = 0;
    if (json_parse(&j, body, &e) == 0)
        id = json_get_raw(&j, JSON_ROOT, "ID");
    if (str_all(id, str_digit))
        buf_add(&kv->lease, id);
    json_free(&j);
    return kv->lease.n > 0;
}

/* ---- The row ---- */

static int kv_open(struct registry *r, const struct reg_scheme *scheme,
                   const struct url *u, struct err *e)
{
    if (u->host.n == 0)
        return err_set(e, "%s", scheme->example);
    r->own = mem_zero(sizeof(struct kv));
    conn_init(&r->peer, "kv", 4);
    conn_set_address(&r->peer, STR(""), u->host,
                     u->port > 0 ? u->port : scheme->port);
    return 0;
}

static struct request *kv_hello(struct registry *r, unsigned step)
{
    return step > 0 ? NULL : conn_request(&r->peer, "GET", STR("/version"),
                                          STR(""));
}

static int kv_on_hello(struct registry *r, unsigned step,
                       const struct answer *a, struct err *e)
{
    (void)step;
    r->no_host = true;
    conn_reason(a, e);
    return a->status == 200 ? 0 : -1;
}

static struct str kv_key(const struct registry *r, const struct service *s,
                         struct arena *a)
{
    struct buf key = { 0 };

    (void)r;
    buf_lit(&key, KV_PREFIX);
    buf_url(&key, s->name);
    buf_byte(&key, '/');
    buf_url(&key, s->id);
    return buf_done(&key, a);
}

/* Tags are a part of the content and nothing else. */
static void kv_value(const struct registry *r, const struct service *s,
                     struct str mark, struct buf *b, struct digest *d,
                     struct svc_notes *notes)
{
    size_t i;

    (void)r;
    (void)notes;
    buf_lit(b, "{\"host\":");
    buf_json(b, s->address);
    buf_fmt(b, ",\"port\":%u,\"tags\":[", s->port);
    for (i = 0; i < s->tags; i++) {
        buf_lit(b, i > 0 ? "," : "");
        buf_json(b, s->tag[i]);
    }
    buf_byte(b, ']');
    d->place = reg_place(s->name, s->address, s->port);
    d->tags = d->checks = 0;
    d->content = str_hash(0, buf_str(b));
    if (mark.n > 0) {
        buf_lit(b, ",\"mark\":");
        buf_json(b, mark);
    }
    buf_byte(b, '}');
}

/* A request for a key, or for those with a prefix. */
static struct request *kv_request(struct registry *r, const char *method,
                                  const char *what, struct str key,
                                  struct str lease, struct str body)
{
    struct buf path = { 0 };
    struct request *q;

    buf_fmt(&path, "/kv?%s=", what);
    buf_url(&path, key);
    if (lease.n > 0)
        buf_fmt(&path, "&lease=%.*s", PUT(lease));
    q = conn_request(&r->peer, method, buf_str(&path), body);
    buf_free(&path);
    return q;
}

/* A lease, if entries expire, and then the entry; a removal is one step. */
static struct request *kv_write(struct registry *r, const struct reg_write *w,
                                unsigned step)
{
    struct kv *kv = r->own;
    bool expires = r->ttl_s > 0;
    struct request *q;
    struct buf body = { 0 };

    if (w->op == REG_DEREGISTER)
        return step > 0 ? NULL : kv_request(r, "DELETE", "key", w->key,
                                            STR(""), STR(""));
    if (step > expires)
        return NULL;
    if (step == expires)
        return kv_request(r, "PUT", "key", w->key,
                          expires ? buf_str(&kv->lease) : STR(""), w->text);
    buf_fmt(&body, "{\"TTL\":%u}", r->ttl_s);
    q = conn_request(&r->peer, "POST", STR("/lease"), buf_str(&body));
    buf_free(&body);
    return q;
}

static enum reg_verdict kv_verdict(struct registry *r, enum reg_op op,
                                   unsigned step, const struct answer *a)
{
    bool lease = op == REG_REGISTER && step == 0 && r->ttl_s > 0;

    if (kv_says(a, 404, op == REG_LIST ? "no keys" : "no such key"))
        return op == REG_REGISTER ? REG_RETRY : REG_DONE;
    if (a->status == 400)
        return op == REG_LIST ? REG_RETRY : REG_REJECTED;
    if (a->status != 200 || (lease && !kv_read_lease(r->own, a->body)))
        return REG_RETRY;
    return lease ? REG_NEXT : REG_DONE;
}

static struct request *kv_list(struct registry *r)
{
    return kv_request(r, "GET", "prefix", STR(KV_PREFIX), STR(""), STR(""));
}

/* {"key":"...","value":"...",...}.  What is no key or value of ours is
 * somebody else's. */
static bool kv_item(const struct registry *r, const struct json *j,
                    struct arena *a, struct reg_item *item)
{
    struct json v = { .n = 0 };
    struct str value, name, rest;
    uint64_t port = 0;
    struct err e;

    (void)r;
    if (!kv_text(j, "key", a, &item->key) || !kv_text(j, "value", a, &value) ||
        !str_prefix(item->key, STR(KV_PREFIX)))
        return false;
    rest = str_from(item->key, sizeof KV_PREFIX - 1);
    name = kv_part(str_cut(&rest, '/'), a);
    item->id = kv_part(rest, a);
    if (!str_all(item->key, str_graph) || str_has(rest, '/') ||
        item->id.n == 0 || json_parse(&v, value, &e) != 0) {
        json_free(&v);
        return true;
    }
    (void)json_u64(&v, json_get(&v, JSON_ROOT, "port"), 65535, &port);
    item->have.place =
        reg_place(name, json_get_str(&v, JSON_ROOT, "host", a), port);
    if (!reg_read_mark(json_get_str(&v, JSON_ROOT, "mark", a), item))
        item->owner = 0;
    json_free(&v);
    return true;
}

static const struct reg_kind kv_kind = {
    .name = "kv", .expires = true, .list_depth = 2, .list_open = '{',
    .setup = kv_open, .hello = kv_hello, .on_hello = kv_on_hello,
    .key = kv_key, .value = kv_value, .write = kv_write,
    .verdict = kv_verdict, .list = kv_list, .item = kv_item
};

static const struct reg_scheme kv_scheme = {
    STR_INIT("kv"), &kv_kind, 2379, false, "kv://host:2379"
};

/* ---- As app_open and main of the program, but with this row ---- */

static int kv_open_app(struct app *app, struct err *e)
{
    struct registry *r = &app->reg;
    struct url u;

    if (app_check(app, e) != 0 || app_hostname(app, e) != 0 ||
        url_parse(app->opt.uri, &u, e) != 0)
        return -1;
    log_at(LOG_INFO, "Starting registrator %s ...", VERSION);
    r->kind = kv_scheme.kind;
    if (r->kind->setup(r, &kv_scheme, &u, e) != 0 ||
        app_open_engine(app, e) != 0)
        return -1;
    entries_init(&app->entries, r);
    containers_init(&app->containers, &app->entries);
    app->entries.side.first_pause_ms = MS((uint64_t)app->opt.retry_interval);
    return 0;
}

int main(int argc, char **argv)
{
    static struct app app;
    struct options f = { .deregister = STR_INIT("always"),
                         .on_exit = STR_INIT("keep"), .confine = true,
                         .resync = 60, .retry_attempts = -1,
                         .retry_interval = 2000 };
    struct err e;
    int code;

    if (os_signals(&e) != 0)
        return 1;
    code = opt_read(argc, argv, &f);
    if (code >= 0)
        return code;
    app.opt = f;
    if (kv_open_app(&app, &e) != 0) {
        log_at(LOG_ERROR, "%s", e.text);
        return 1;
    }
    if (f.confine && os_sandbox(f.ip.n > 0, &e) != 0)
        log_at(LOG_WARN, "not as confined as it could be: %s", e.text);
    code = app_run(&app);
    conn_reset(&app.containers.engine);
    conn_reset(&app.reg.peer);
    return code;
}
