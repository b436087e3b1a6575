/* Unit tests: the program itself, included whole, section by section.
 *
 *     cc -std=c99 -g -fsanitize=address,undefined -o unit tests/unit.c
 *     ./unit [NAME...]
 *
 * Prints a line a case.  Inputs of parsers lie right before a page that
 * cannot be read, so that one byte read too far ends the run. */

int registrator_main(int, char **);
#define main registrator_main
#include "../registrator.c"
#undef main

#include <sys/mman.h>

/* ---- The frame ---- */

static struct buf unit_why;         /* the first failure of this case */

/* Notes the first thing that is not so, with the row of the table. */
#ifdef __GNUC__
__attribute__((format(printf, 3, 4)))
#endif
static void want(bool ok, int line, const char *format, ...)
{
    char text[2048];
    va_list args;

    if (ok || unit_why.n > 0)
        return;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    log_escape(&unit_why, str_of(text));
    buf_lit(&unit_why, " (tests/unit.c:");
    buf_u64(&unit_why, (uint64_t)line);
    buf_lit(&unit_why, ")");
}

#define WANT(c) want((c), __LINE__, "%s", #c)
#define ROW(c, row) want((c), __LINE__, "%s: %.1500s", #c, (row))
#define SAME(got, wanted, row) same((got), (wanted), __LINE__, (row))

static void same(struct str got, struct str wanted, int line, const char *row)
{
    want(str_eq(got, wanted), line, "%.300s: got \"%.*s\", not \"%.*s\"", row,
         PUT(str_upto(got, got.n < 600 ? got.n : 600)), PUT(wanted));
}

enum { EDGE_MAX = 8 * 1024 * 1024 };

/* A copy of s that ends where memory does; the next call takes it back. */
static struct str edge(struct str s)
{
    static char *end;

    if (end == NULL) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        int fd = open("/dev/zero", O_RDWR);
        char *p = mmap(NULL, EDGE_MAX + page, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE, fd, 0);

        CHECK(fd >= 0 && (void *)p != MAP_FAILED);
        CHECK(mprotect(p + EDGE_MAX, page, PROT_NONE) == 0);
        (void)close(fd);
        end = p + EDGE_MAX;
    }
    CHECK(s.n <= EDGE_MAX);
    if (s.n > 0)
        memmove(end - s.n, s.p, s.n);
    s.p = end - s.n;
    return s;
}

/* The text of JSON that a table writes with ' for " and @ for an ID. */
static struct str quoted(struct buf *b, const char *text)
{
    size_t i;

    b->n = 0;
    for (; *text != '\0'; text++)
        if (*text == '@')
            for (i = 0; i < 64; i++)
                buf_byte(b, "0123456789abcdef"[i % 16]);
        else
            buf_byte(b, *text == '\'' ? '"' : *text);
    return buf_str(b);
}

/* ---- Text ---- */

static void text_numbers(void)
{
    static const struct {
        const char *text;
        unsigned base;
        uint64_t max;
        bool ok;
        uint64_t value;
    } row[] = {
        { "18446744073709551615", 10, UINT64_MAX, true, UINT64_MAX },
        { "18446744073709551616", 10, UINT64_MAX, false, 0 },
        { "18446744073709551620", 10, UINT64_MAX, false, 0 },
        { "28446744073709551615", 10, UINT64_MAX, false, 0 },
        { "184467440737095516150", 10, UINT64_MAX, false, 0 },
        { "00000000000000000000000000000000000000012", 10, 12, true, 12 },
        { "ffffffffffffffff", 16, UINT64_MAX, true, UINT64_MAX },
        { "FFFFffffFFFFffff", 16, UINT64_MAX, true, UINT64_MAX },
        { "10000000000000000", 16, UINT64_MAX, false, 0 },
        { "0", 10, 0, true, 0 }, { "1", 10, 0, false, 0 },
        { "", 10, 9, false, 0 }, { "-1", 10, 9, false, 0 },
        { "+1", 10, 9, false, 0 }, { " 1", 10, 9, false, 0 },
        { "1 ", 10, 9, false, 0 }, { "1.", 10, 9, false, 0 },
        { "0x1", 16, 9, false, 0 }, { "1e1", 10, 99, false, 0 },
        { "a", 10, 99, false, 0 }, { "g", 16, 99, false, 0 },
        { "1_0", 10, 99, false, 0 }, { "\xd9\xa1", 10, 99, false, 0 },
    };
    static const unsigned base[] = { 10, 16 };
    char digits[16];
    uint64_t got, max, v;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        bool ok = str_number(edge(str_of(row[i].text)), row[i].base,
                             row[i].max, &got);

        ROW(ok == row[i].ok && (!ok || got == row[i].value), row[i].text);
    }
    for (i = 0; i < LENGTH(base); i++)
        for (max = 0; max < 130; max++)
            for (v = 0; v < 2000; v++) {
                bool ok;

                (void)snprintf(digits, sizeof digits,
                               base[i] == 10 ? "%u" : "%x", (unsigned)v);
                ok = str_number(str_of(digits), base[i], max, &got);
                ROW(ok == (v <= max) && (!ok || got == v), digits);
            }
}

static void text_ports(void)
{
    static const struct {
        const char *text;
        unsigned port;              /* 0: it is none */
    } row[] = {
        { "1", 1 }, { "80", 80 }, { "65535", 65535 }, { "080", 80 },
        { "0", 0 }, { "65536", 0 }, { "4294967376", 0 }, { "", 0 },
        { "-1", 0 }, { "80/tcp", 0 },
    };
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        unsigned port = 0;

        ROW(str_port(edge(str_of(row[i].text)), &port) == (row[i].port > 0),
            row[i].text);
        ROW(port == row[i].port, row[i].text);
    }
}

static void text_pieces(void)
{
    static const struct {
        const char *text, *head, *rest, *after;
        size_t find_ab;
    } row[] = {         /* cut at the first, after the last ':'; find "ab" */
        { "", "", "", "", 0 }, { ":", "", "", "", 1 },
        { "a", "a", "", "a", 1 }, { "a:", "a", "", "", 2 },
        { ":a", "", "a", "a", 2 }, { "a:b:c", "a", "b:c", "c", 5 },
        { "ab", "ab", "", "ab", 0 }, { "aab", "aab", "", "aab", 1 },
        { "aba:aab", "aba", "aab", "aab", 0 }, { "a:aa", "a", "aa", "aa", 4 },
    };
    struct str s, none = { NULL, 0 };
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        s = edge(str_of(row[i].text));
        ROW(str_find(s, STR("ab")) == row[i].find_ab, row[i].text);
        SAME(str_after(s, ':'), str_of(row[i].after), row[i].text);
        SAME(str_cut(&s, ':'), str_of(row[i].head), row[i].text);
        SAME(s, str_of(row[i].rest), row[i].text);
    }
    WANT(str_find(STR("abc"), STR("")) == 0);
    WANT(str_find(STR("a"), STR("aa")) == 1);
    SAME(str_trim(edge(STR(" \t\r\n a b \r\n"))), STR("a b"), "trim");
    SAME(str_trim(edge(STR(" \n "))), STR(""), "trim");
    WANT(str_same(STR("Content-LENGTH"), STR("cONTENT-length")));
    WANT(!str_same(STR("[a"), STR("{a")) && !str_same(STR("@"), STR("`")));
    WANT(str_eq(none, STR("")) && str_index(none, 'x') == 0);
    WANT(str_cmp(STR("a"), STR("b")) < 0 && str_cmp(STR("a"), STR("ab")) < 0);
    WANT(str_cmp(STR("\xff"), STR("a")) > 0 &&
         str_cmp(STR("a"), STR("a")) == 0);
}

static bool scalar(uint32_t c)
{
    return c < 0xd800 || (c > 0xdfff && c <= 0x10ffff);
}

/* What is read is what would be written, or one byte that is U+FFFD: so no
 * overlong form, surrogate or number over U+10FFFF can pass. */
static void rune_holds(struct str s)
{
    struct str rest = s;
    uint32_t c = str_rune(&rest);
    size_t used = s.n - rest.n, n;
    char back[4];

    n = str_utf8(c, back);
    want(scalar(c) && ((c == 0xfffd && used == 1) ||
                       (n == used && memcmp(back, s.p, n) == 0)), __LINE__,
         "%02x %02x %02x ... of %zu is read as U+%04x of %zu",
         (unsigned)(unsigned char)s.p[0],
         s.n > 1 ? (unsigned)(unsigned char)s.p[1] : 0,
         s.n > 2 ? (unsigned)(unsigned char)s.p[2] : 0, s.n, (unsigned)c,
         used);
}

static void text_utf8(void)
{
    static const struct {
        const char *bytes;
        uint32_t c;
        size_t used;
    } row[] = {
        { "a", 'a', 1 }, { "\xc2\x80", 0x80, 2 }, { "\xdf\xbf", 0x7ff, 2 },
        { "\xe0\xa0\x80", 0x800, 3 }, { "\xe2\x82\xac!", 0x20ac, 3 },
        { "\xed\x9f\xbf", 0xd7ff, 3 }, { "\xee\x80\x80", 0xe000, 3 },
        { "\xef\xbf\xbd", 0xfffd, 3 }, { "\xef\xbf\xbf", 0xffff, 3 },
        { "\xf0\x90\x80\x80", 0x10000, 4 }, { "\xf0\x9f\x98\x80", 0x1f600, 4 },
        { "\xf4\x8f\xbf\xbf", 0x10ffff, 4 },
        { "\x80", 0xfffd, 1 }, { "\xbf\xbf", 0xfffd, 1 },
        { "\xc0\x80", 0xfffd, 1 }, { "\xc1\xbf", 0xfffd, 1 },   /* overlong */
        { "\xe0\x9f\xbf", 0xfffd, 1 }, { "\xf0\x8f\xbf\xbf", 0xfffd, 1 },
        { "\xed\xa0\x80", 0xfffd, 1 }, { "\xed\xbf\xbf", 0xfffd, 1 },
        { "\xf4\x90\x80\x80", 0xfffd, 1 }, { "\xf5\x80\x80\x80", 0xfffd, 1 },
        { "\xf8\x88\x80\x80\x80", 0xfffd, 1 }, { "\xff", 0xfffd, 1 },
        { "\xc2", 0xfffd, 1 }, { "\xe2\x82", 0xfffd, 1 },
        { "\xf0\x9f\x98", 0xfffd, 1 }, { "\xc2" "a", 0xfffd, 1 },
        { "\xe2\x82" "a", 0xfffd, 1 }, { "\xf0\x9f\x98" "a", 0xfffd, 1 },
    };
    char bytes[4];
    struct str s = { bytes, 0 };
    uint32_t c;
    size_t i, n;

    for (i = 0; i < LENGTH(row); i++) {
        s = edge(str_of(row[i].bytes));
        n = s.n;
        ROW(str_rune(&s) == row[i].c, row[i].bytes);
        ROW(n - s.n == row[i].used, row[i].bytes);
    }
    for (c = 0; c <= 0x10ffff; c++)     /* each character and back */
        if (scalar(c)) {
            s.p = bytes;
            n = s.n = str_utf8(c, bytes);
            want(str_rune(&s) == c && s.n == 0, __LINE__, "U+%04x of %zu",
                 (unsigned)c, n);
        }
    for (c = 0; c < 1u << 24; c++) {    /* each three bytes, alone and cut */
        s.p = bytes;
        bytes[0] = (char)(c >> 16);
        bytes[1] = (char)(c >> 8);
        bytes[2] = (char)c;
        bytes[3] = (char)0x80;
        s.n = c % 5 == 0 ? 4 : 3;
        if ((unsigned char)bytes[0] >= 0x80)
            rune_holds(s);
    }
}

static void text_encoders(void)
{
    struct buf b = { .max = 0 }, all = { .max = 0 };
    struct json j = { { NULL, 0 }, NULL, 0, 0 };
    struct arena a = { NULL };
    struct err e;
    struct str s;
    unsigned c, i;
    size_t k;

    for (c = 0; c < 256; c++)
        for (i = 0; i < 256; i++) {
            char pair[3] = { (char)c, (char)i, 'z' };
            struct str in = { pair, 3 }, back = in;

            b.n = all.n = 0;
            buf_json(&b, edge(in));
            while (back.n > 0) {            /* as it must come back */
                char utf8[4];
                struct str one = { utf8, str_utf8(str_rune(&back), utf8) };

                buf_add(&all, one);
            }
            for (k = 0; k < b.n; k++)
                WANT((unsigned char)b.p[k] >= 0x20 && b.p[k] != 0x7f);
            WANT(json_parse(&j, edge(buf_str(&b)), &e) == 0);
            SAME(json_str(&j, JSON_ROOT, &a), buf_str(&all), "buf_json");
            mem_drop(&a);

            b.n = 0;
            buf_url(&b, edge(in));
            for (s = buf_str(&b), all.n = 0; s.n > 0; s = str_from(s, 1)) {
                uint64_t v = (unsigned char)*s.p;

                WANT(str_letter(*s.p) || str_digit(*s.p) ||
                     str_index(STR("-._~:%"), *s.p) < 6);
                if (*s.p == '%') {
                    WANT(str_number(str_upto(str_from(s, 1), 2), 16, 255, &v));
                    s = str_from(s, 2);
                }
                buf_byte(&all, (char)v);
            }
            SAME(buf_str(&all), in, "buf_url");
        }
    for (c = 0; c < 256; c++) {
        char one[2] = { (char)c, 'x' };
        struct str in = { one, 2 };

        b.n = 0;
        b.bad = false;
        buf_header(&b, "N", in);
        want(b.bad == (c < 0x20 || c == 0x7f), __LINE__, "header %02x", c);
    }
    buf_free(&b);
    buf_free(&all);
    json_free(&j);
}

static void text_buffers(void)
{
    struct buf b = { .max = 10 };
    size_t i;

    buf_lit(&b, "0123456789");
    WANT(!b.bad && b.n == 10);
    buf_lit(&b, "");
    WANT(!b.bad);
    buf_byte(&b, 'x');
    WANT(b.bad && b.n == 10);
    b.n = 0;
    buf_lit(&b, "a");
    WANT(b.bad && b.n == 0);                /* it stays bad */
    buf_free(&b);
    WANT(!b.bad && b.max == 10 && b.p == NULL);
    b.max = 0;
    for (i = 0; i < 100000; i++)
        buf_byte(&b, (char)i);
    for (i = 0; i < 100000; i++)
        WANT(b.p[i] == (char)i);
    buf_skip(&b, 99999);
    WANT(b.n == 1 && *b.p == (char)99999);
    buf_skip(&b, 1);
    WANT(b.n == 0 && !buf_need(&b, TEXT_MAX + 1u) && b.bad);
    buf_free(&b);
    buf_u64(&b, UINT64_MAX);
    buf_byte(&b, ' ');
    buf_u64(&b, 0);
    buf_byte(&b, ' ');
    buf_hex(&b, 0xabc, 2);
    SAME(buf_str(&b), STR("18446744073709551615 0 bc"), "numbers");
    buf_free(&b);
}

static void text_arena(void)
{
    enum { MANY = 3000 };
    static char *p[MANY];
    struct arena a = { NULL };
    size_t i, k, n;

    for (i = 0; i < MANY; i++) {
        n = i * i % 777;
        p[i] = mem_get(&a, n);
        WANT((uintptr_t)p[i] % sizeof(union align) == 0);
        memset(p[i], (int)(i % 251), n);
    }
    memset(mem_get(&a, 1000000), 1, 1000000);
    for (i = 0; i < MANY; i++)
        for (k = 0, n = i * i % 777; k < n; k++)
            WANT((unsigned char)p[i][k] == i % 251);
    mem_drop(&a);
    WANT(a.last == NULL);
    mem_drop(&a);
}

struct item {
    char name;
    struct link link;
};

static void list_is(struct link *head, const char *wanted, int line)
{
    struct link *l;
    const char *w = wanted;

    for (l = head->next; l != head; l = l->next, w += *w != '\0')
        want(LIST_OF(struct item, link, l)->name == *w &&
             l->next->before == l, line, "not %s", wanted);
    want(*w == '\0', line, "shorter than %s", wanted);
}

static void text_lists(void)
{
    struct item i[3] = { { 'a', { 0 } }, { 'b', { 0 } }, { 'c', { 0 } } };
    struct link x, y;
    size_t k;

    list_init(&x);
    list_init(&y);
    for (k = 0; k < 3; k++)
        list_init(&i[k].link);
    WANT(list_empty(&x));
    for (k = 0; k < 3; k++)
        list_before(&x, &i[k].link);
    list_is(&x, "abc", __LINE__);
    list_before(x.next, &i[2].link);        /* moves to the front */
    list_is(&x, "cab", __LINE__);
    list_before(&y, &i[0].link);            /* moves to another list */
    list_is(&x, "cb", __LINE__);
    list_is(&y, "a", __LINE__);
    list_take(&i[0].link);
    list_take(&i[0].link);                  /* from none is no harm */
    WANT(list_empty(&y) && !list_empty(&x));
}

static void text_log(void)
{
    static const struct {
        struct str in, out;
    } row[] = {
        { STR_INIT("plain \xc3\xa9 \xe2\x82\xac"),
          STR_INIT("plain \xc3\xa9 \xe2\x82\xac") },
        { STR_INIT("a\nb\rc\td"), STR_INIT("a\\nb\\x0dc\\x09d") },
        { STR_INIT("\x1b[2J\x7f"), STR_INIT("\\x1b[2J\\x7f") },
        { STR_INIT("\xc2\x9b" "2J"), STR_INIT("\\x9b2J") },     /* C1's CSI */
        { STR_INIT("\xff\xc0\x80"), STR_INIT("\\xff\\xc0\\x80") },
        { STR_INIT("\xef\xbf\xbd"), STR_INIT("\xef\xbf\xbd") },
        { STR_INIT("a\0b"), STR_INIT("a\\x00b") },
    };
    struct buf b = { .max = 0 };
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        b.n = 0;
        log_escape(&b, edge(row[i].in));
        SAME(buf_str(&b), row[i].out, row[i].out.p);
    }
    buf_free(&b);
}

/* ---- JSON ---- */

static void json_grammar(void)
{
    static const struct str good[] = {
        STR_INIT("{}"), STR_INIT("[]"), STR_INIT(" [ ] "), STR_INIT("null"),
        STR_INIT("true"), STR_INIT("false"), STR_INIT("0"), STR_INIT("-0"),
        STR_INIT("-1.5e+10"), STR_INIT("1E5"), STR_INIT("0.0"), STR_INIT("10"),
        STR_INIT("\"\""), STR_INIT("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00aF\""),
        STR_INIT("[1,2,[3,{}],{\"a\":[]}]"), STR_INIT("{\"\":{\"\":\"\"}}"),
        STR_INIT("\t{\"a\"\r:\n1 , \"b\":[ ]}\n"), STR_INIT("\"\x7f\""),
        STR_INIT("\"\xff\xc0\x80\""), STR_INIT("\"\xe2\x82\xac\""),
    };
    static const struct str bad[] = {
        STR_INIT(""), STR_INIT(" "), STR_INIT("{\"a\"}"),
        STR_INIT("{\"a\":1,}"), STR_INIT("{,}"), STR_INIT("[1,,3]"),
        STR_INIT("[1,]"), STR_INIT("[,1]"), STR_INIT("[,]"),
        STR_INIT("[\"a\":1]"), STR_INIT("{\"a\":\"b\":\"c\"}"),
        STR_INIT("{\"a\" 1}"), STR_INIT("{\"a\":}"), STR_INIT("{:1}"),
        STR_INIT("{1:1}"), STR_INIT("{a:1}"), STR_INIT("{'a':1}"),
        STR_INIT("[tru]"), STR_INIT("[truee]"), STR_INIT("[True]"),
        STR_INIT("[nul]"), STR_INIT("[nan]"), STR_INIT("[01]"),
        STR_INIT("[-01]"), STR_INIT("[1.]"), STR_INIT("[.5]"),
        STR_INIT("[1e]"), STR_INIT("[1e+]"), STR_INIT("[+1]"),
        STR_INIT("[-]"), STR_INIT("[--1]"), STR_INIT("[0x1]"),
        STR_INIT("[1 2]"), STR_INIT("[1][2]"), STR_INIT("{}{}"),
        STR_INIT("{}x"), STR_INIT("[}"), STR_INIT("{]"), STR_INIT("[1}"),
        STR_INIT("{\"a\":1]"), STR_INIT("]"), STR_INIT("}"), STR_INIT(","),
        STR_INIT("\"\\uZZZZ\""), STR_INIT("\"\\u12\""), STR_INIT("\"\\u123"),
        STR_INIT("\"\\x\""), STR_INIT("\"\\"), STR_INIT("\"\\\""),
        STR_INIT("\"a\nb\""), STR_INIT("\"\x1f\""), STR_INIT("\"\0\""),
        STR_INIT("[1\0]"), STR_INIT("[]\0"), STR_INIT("\f[]"),
        STR_INIT("\xef\xbb\xbf[]"), STR_INIT("[1]//"), STR_INIT("[\xff]"),
        STR_INIT("{\"a\":1 \"b\":2}"), STR_INIT("[\"a\" \"b\"]"),
        STR_INIT("[[]"), STR_INIT("{\"a\":{}"), STR_INIT("[\"a]"),
    };
    struct json j = { { NULL, 0 }, NULL, 0, 0 };
    struct err e;
    size_t i, n;

    for (i = 0; i < LENGTH(good); i++) {
        ROW(json_parse(&j, edge(good[i]), &e) == 0, good[i].p);
        ROW(j.token[JSON_ROOT].next == j.n, good[i].p);
        for (n = 0; n < str_trim(good[i]).n; n++)
            ROW(str_digit(*good[i].p) || *good[i].p == '-' ||
                json_parse(&j, edge(str_upto(good[i], n)), &e) != 0,
                good[i].p);
    }
    for (i = 0; i < LENGTH(bad); i++)
        ROW(json_parse(&j, edge(bad[i]), &e) != 0, bad[i].p);
    json_free(&j);
}

static void json_size(void)
{
    struct json j = { { NULL, 0 }, NULL, 0, 0 };
    struct buf b = { .max = 0 };
    struct err e;
    size_t depth, i, n;

    for (depth = 1; depth <= JSON_DEPTH + 1; depth++) {
        for (b.n = i = 0; i < depth; i++)
            buf_lit(&b, i % 2 ? "{\"a\":" : "[");
        buf_lit(&b, "1");
        while (i-- > 0)
            buf_lit(&b, i % 2 ? "}" : "]");
        want((json_parse(&j, edge(buf_str(&b)), &e) == 0) ==
             (depth <= JSON_DEPTH), __LINE__, "depth %zu", depth);
    }
    b.n = 0;
    for (n = 0; b.n < 1024 * 1024; n++)
        buf_lit(&b, n ? ",{\"a\":[1]}" : "[{\"a\":[1]}");
    buf_lit(&b, "]");
    WANT(json_parse(&j, edge(buf_str(&b)), &e) == 0);
    for (i = depth = 0; json_next(&j, JSON_ROOT, &i); depth++)
        WANT(str_eq(json_raw(&j, json_get(&j, i, "a")), STR("[1]")));
    WANT(depth == n);
    buf_free(&b);
    json_free(&j);
}

static void json_lookup(void)
{
    struct json j = { { NULL, 0 }, NULL, 0, 0 };
    struct buf b = { .max = 0 };
    struct arena a = { NULL };
    struct err e;
    uint64_t v = 7;
    size_t n = 0, i, t;

    WANT(json_parse(&j, edge(quoted(&b,
        "{'a':{'b':[1,{'c':true},'x']},'d':1,'d':2,'n':null,'s':'d',"
        "'big':18446744073709551616,'neg':-1,'f':1.0,'e':{},'':5}")),
        &e) == 0);
    t = json_get(&j, json_get(&j, JSON_ROOT, "a"), "b");
    WANT(json_type(&j, t) == JSON_ARRAY);
    for (i = 0; json_next(&j, t, &i); n++)
        if (json_type(&j, i) == JSON_OBJECT)
            WANT(json_true(&j, json_get(&j, i, "c")));
    WANT(n == 3);
    SAME(json_raw(&j, json_get(&j, JSON_ROOT, "d")), STR("2"), "last wins");
    WANT(json_get(&j, JSON_ROOT, "c") == 0);            /* only one level */
    WANT(json_get(&j, t, "c") == 0);                    /* not an object */
    WANT(json_get(&j, json_get(&j, 0, "x"), "y") == 0);
    WANT(json_type(&j, 0) == JSON_NONE && json_raw(&j, 0).n == 0);
    WANT(!json_true(&j, 0) && json_str(&j, 0, &a).n == 0);
    WANT(json_str(&j, t, &a).n == 0);
    WANT(!json_u64(&j, json_get(&j, JSON_ROOT, "big"), UINT64_MAX, &v));
    WANT(!json_u64(&j, json_get(&j, JSON_ROOT, "neg"), UINT64_MAX, &v));
    WANT(!json_u64(&j, json_get(&j, JSON_ROOT, "f"), UINT64_MAX, &v));
    WANT(!json_u64(&j, json_get(&j, JSON_ROOT, "s"), UINT64_MAX, &v));
    WANT(!json_u64(&j, json_get(&j, JSON_ROOT, ""), 4, &v) && v == 7);
    WANT(json_u64(&j, json_get(&j, JSON_ROOT, ""), 5, &v) && v == 5);
    for (i = n = 0; json_next(&j, json_get(&j, JSON_ROOT, "e"), &i);)
        n++;
    for (i = 0; json_next(&j, json_get(&j, JSON_ROOT, "s"), &i);)
        n++;
    for (i = 0; json_next(&j, 0, &i);)
        n++;
    WANT(n == 0);
    mem_drop(&a);
    buf_free(&b);
    json_free(&j);
}

static void json_strings(void)
{
    static const struct {
        const char *in;
        struct str out;
    } row[] = {
        { "", STR_INIT("") },
        { "\\\"\\\\\\/\\b\\f\\n\\r\\t", STR_INIT("\"\\/\b\f\n\r\t") },
        { "\\u0041\\u00e9\\u20AC", STR_INIT("A\xc3\xa9\xe2\x82\xac") },
        { "a\\u0000b", STR_INIT("a\0b") },
        { "\\ud83d\\ude00", STR_INIT("\xf0\x9f\x98\x80") },
        { "\\udbff\\udfff", STR_INIT("\xf4\x8f\xbf\xbf") },
        { "\\ud83d", STR_INIT("\xef\xbf\xbd") },
        { "\\ud83dx", STR_INIT("\xef\xbf\xbdx") },
        { "\\ude00\\ud83d", STR_INIT("\xef\xbf\xbd\xef\xbf\xbd") },
        { "\\ud83d\\u0041", STR_INIT("\xef\xbf\xbd" "A") },
        { "\\ud83d\\ud83d\\ude00",
          STR_INIT("\xef\xbf\xbd\xf0\x9f\x98\x80") },
        { "\\ud83d\\n", STR_INIT("\xef\xbf\xbd\n") },
        { "\xff\xc0\x80", STR_INIT("\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd") },
        { "\xe2\x82\\n", STR_INIT("\xef\xbf\xbd\xef\xbf\xbd\n") },
        { "\xed\xa0\x80",
          STR_INIT("\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd") },
        { "\xf0\x9f\x98\x80\xe2\x82\xac",
          STR_INIT("\xf0\x9f\x98\x80\xe2\x82\xac") },
    };
    struct json j = { { NULL, 0 }, NULL, 0, 0 };
    struct buf b = { .max = 0 };
    struct arena a = { NULL };
    struct err e;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        b.n = 0;
        buf_byte(&b, '"');
        buf_lit(&b, row[i].in);
        buf_byte(&b, '"');
        ROW(json_parse(&j, edge(buf_str(&b)), &e) == 0, row[i].in);
        SAME(json_str(&j, JSON_ROOT, &a), row[i].out, row[i].in);
    }
    mem_drop(&a);
    buf_free(&b);
    json_free(&j);
}

/* What the splitter finds in `whole`, which comes as two pieces (one of `cut`
 * bytes), or with cut 0 byte by byte: each object and a bar, # for one that
 * is too large, ! where it is bad, and a full stop at a good end. */
static struct str split_all(struct buf *out, enum split_kind kind,
                            struct str whole, size_t cut)
{
    static struct splitter s;
    struct str in;
    size_t n;

    out->n = 0;
    json_split_start(&s, kind);
    for (; whole.n > 0; whole = str_from(whole, n)) {
        n = cut == 0 ? 1 : cut < whole.n ? cut : whole.n;
        in = edge(str_upto(whole, n));
        cut = cut == 0 ? 0 : whole.n - n;
        for (;;) {
            enum split found = json_split(&s, &in);

            if (found == SPLIT_MORE)
                break;
            if (found == SPLIT_ELEMENT)
                buf_add(out, buf_str(&s.element));
            buf_lit(out, found == SPLIT_LARGE ? "#"
                         : found == SPLIT_BAD ? "!" : "|");
            if (found == SPLIT_BAD)
                return buf_str(out);
        }
    }
    buf_lit(out, json_split_done(&s) ? "." : "");
    return buf_str(out);
}

static void json_splits(void)
{
    static const struct {
        enum split_kind kind;
        const char *in, *out;
    } row[] = {
        { SPLIT_STREAM, "{}", "{}|" },
        { SPLIT_STREAM, "{'a':1}{'b':[{}]}", "{'a':1}|{'b':[{}]}|" },
        { SPLIT_STREAM, "\x1e{'a':1}\n\r\n \t{'b':2}\n", "{'a':1}|{'b':2}|" },
        { SPLIT_STREAM, "{'}{':'\\'}\\\\'}{}", "{'}{':'\\'}\\\\'}|{}|" },
        { SPLIT_STREAM, "{},{}", "{}|!" }, { SPLIT_STREAM, "[{}]", "!" },
        { SPLIT_STREAM, "{} x", "{}|!" }, { SPLIT_STREAM, "", "" },
        { SPLIT_ARRAY, "[]", "." }, { SPLIT_ARRAY, " [ ] \n", "." },
        { SPLIT_ARRAY, "[{}, {'a':[1]}\n]\n", "{}|{'a':[1]}|." },
        { SPLIT_ARRAY, "[{}", "{}|" }, { SPLIT_ARRAY, "[{},", "{}|" },
        { SPLIT_ARRAY, "[", "" }, { SPLIT_ARRAY, "[{'a':1", "" },
        { SPLIT_ARRAY, "[{},]", "{}|!" }, { SPLIT_ARRAY, "[,{}]", "!" },
        { SPLIT_ARRAY, "[{}{}]", "{}|!" }, { SPLIT_ARRAY, "[1]", "!" },
        { SPLIT_ARRAY, "[{}}", "{}|!" }, { SPLIT_ARRAY, "[{}]x", "{}|!" },
        { SPLIT_ARRAY, "[{}][{}]", "{}|!" }, { SPLIT_ARRAY, "{}", "!" },
        { SPLIT_ARRAY, "null", "!" }, { SPLIT_ARRAY, "\x1e[]", "!" },
        { SPLIT_OBJECT, "{}", "." }, { SPLIT_OBJECT, " {\n} ", "." },
        { SPLIT_OBJECT, "{'a':{},'b' : {'c':1}}", "{}|{'c':1}|." },
        { SPLIT_OBJECT, "{'\\'}:{':{}}", "{}|." },
        { SPLIT_OBJECT, "{'\\\\':{}}", "{}|." },
        { SPLIT_OBJECT, "{'a':{}", "{}|" }, { SPLIT_OBJECT, "{'a", "" },
        { SPLIT_OBJECT, "{'a':{},}", "{}|!" },
        { SPLIT_OBJECT, "{'a'{}}", "!" }, { SPLIT_OBJECT, "{{}}", "!" },
        { SPLIT_OBJECT, "{'a':1}", "!" }, { SPLIT_OBJECT, "[]", "!" },
        { SPLIT_OBJECT, "{'a':{} 'b':{}}", "{}|!" },
        { SPLIT_OBJECT, "{}{}", "!" },
    };
    struct buf in = { .max = 0 }, out = { .max = 0 }, wanted = { .max = 0 };
    struct str whole;
    size_t i, cut;

    for (i = 0; i < LENGTH(row); i++) {
        whole = quoted(&in, row[i].in);
        (void)quoted(&wanted, row[i].out);
        for (cut = 0; cut <= whole.n; cut++)
            SAME(split_all(&out, row[i].kind, whole, cut), buf_str(&wanted),
                 row[i].in);
    }
    buf_free(&in);
    buf_free(&out);
    buf_free(&wanted);
}

static void json_large(void)
{
    static const size_t size[] = { ELEMENT_MAX, ELEMENT_MAX + 1,
                                   ELEMENT_MAX + 70000 };
    struct buf in = { .max = 0 }, out = { .max = 0 };
    size_t i, n;

    for (i = 0; i < LENGTH(size); i++) {
        in.n = 0;
        buf_lit(&in, "[{},{\"");
        for (n = 6; n < size[i]; n++)
            buf_byte(&in, 'x');
        buf_lit(&in, "\":1},{\"b\":2}]");
        (void)split_all(&out, SPLIT_ARRAY, buf_str(&in), ELEMENT_MAX);
        want(i == 0 ? out.n == 3 + ELEMENT_MAX + 1 + 8 + 1
                    : str_eq(buf_str(&out), STR("{}|#{\"b\":2}|.")), __LINE__,
             "object of %zu bytes: %zu of output", size[i], out.n);
    }
    buf_free(&in);
    buf_free(&out);
}

/* ---- HTTP ---- */

/* What comes of the bytes of `whole`, in two pieces (one of `cut` bytes), or
 * with cut 0 one by one, as a connection would read them: for each answer its
 * status, a colon, the body and a blank.  Then + in the middle of an answer,
 * ~ where its end would complete it, ! where it is bad. */
static struct str http_all(struct buf *out, struct str whole, size_t cut)
{
    struct buf unread = { .max = 0 };
    struct str in, body = STR("");
    enum http_found found = HTTP_MORE;
    struct http h;
    struct err e;
    bool began = false;
    size_t n;

    out->n = 0;
    http_start(&h);
    for (; whole.n > 0 && found != HTTP_BAD; whole = str_from(whole, n)) {
        n = cut == 0 ? 1 : cut < whole.n ? cut : whole.n;
        cut = cut == 0 ? 0 : whole.n - n;
        buf_add(&unread, str_upto(whole, n));
        in = edge(buf_str(&unread));
        do {
            began = began || in.n > 0;
            found = http_next(&h, &in, &body, &e);
            if (found == HTTP_HEAD) {
                buf_u64(out, h.status);
                if (h.retry_after > 0) {
                    buf_byte(out, '@');
                    buf_u64(out, h.retry_after);
                }
                buf_lit(out, h.close ? "c:" : ":");
            } else if (found == HTTP_BODY) {
                buf_add(out, body);
            } else if (found == HTTP_DONE) {
                buf_byte(out, ' ');
                http_start(&h);
                began = in.n > 0;
            }
        } while (found != HTTP_BAD && (found != HTTP_MORE) && began);
        buf_skip(&unread, unread.n - in.n);
    }
    buf_lit(out, found == HTTP_BAD ? "!" : http_ends(&h) ? "~"
                 : began ? "+" : "");
    buf_free(&unread);
    return buf_str(out);
}

#define OK200 "HTTP/1.1 200 OK\r\n"
#define LENGTH_OF(n) "Content-Length: " n "\r\n"
#define CHUNKED "Transfer-Encoding: chunked\r\n"

static void http_answers(void)
{
    static const struct {
        const char *in, *out;
    } row[] = {
        { OK200 LENGTH_OF("5") "\r\nhello", "200:hello " },
        { OK200 "content-LENGTH:5\r\n\r\nhello", "200:hello " },
        { OK200 LENGTH_OF(" \t 0 \t") "\r\n", "200: " },
        { OK200 LENGTH_OF("2") LENGTH_OF("2") "\r\nab", "200:ab " },
        { OK200 LENGTH_OF("0002") "\r\nab", "200:ab " },
        { OK200 CHUNKED "\r\n5\r\nhello\r\n0\r\n\r\n", "200:hello " },
        { OK200 "transfer-encoding:ChUnKeD\r\n\r\n0\r\n\r\n", "200: " },
        { OK200 CHUNKED "\r\n5;a=b;c\r\nhello\r\n00A\r\n0123456789\r\n"
          "0;x\r\nA: b\r\nC: d\r\n\r\n", "200:hello0123456789 " },
        { OK200 CHUNKED "\r\n4 ; a=\"b\"\r\n\r\n\r\n\r\n0\r\n\r\n",
          "200:\r\n\r\n " },
        { OK200 "\r\nto the end", "200:to the end~" },
        { "HTTP/1.0 200 OK\r\n\r\nold", "200c:old~" },
        { "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" LENGTH_OF("1")
          "\r\nx", "200:x " },
        { OK200 "Connection: close\r\n" LENGTH_OF("1") "\r\nx", "200c:x " },
        { OK200 "CONNECTION: foo , Close\r\n" LENGTH_OF("1") "\r\nx",
          "200c:x " },
        { OK200 "X-Connection: close\r\nX: Content-Length: 9\r\n"
          LENGTH_OF("1") "\r\nx", "200:x " },
        { "HTTP/1.1 100 Continue\r\n\r\n" "HTTP/1.1 103 Hints\r\n"
          "Link: </a>\r\n" LENGTH_OF("7") "\r\n" OK200 LENGTH_OF("2")
          "\r\nok", "200:ok " },
        { "HTTP/1.1 204 No Content\r\n\r\n" OK200 LENGTH_OF("1") "\r\nx",
          "204: 200:x " },
        { "HTTP/1.1 304 Not Modified\r\n" LENGTH_OF("9") "\r\n"
          "HTTP/1.1 404\r\n" LENGTH_OF("2") "\r\nno", "304: 404:no " },
        { "HTTP/1.1 503 \r\nRetry-After: 7\r\n" LENGTH_OF("0") "\r\n",
          "503@7: " },
        { "HTTP/1.1 429 x\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n"
          LENGTH_OF("0") "\r\n", "429: " },
        { OK200 LENGTH_OF("1") "\r\na" OK200 CHUNKED "\r\n1\r\nb\r\n0\r\n\r\n"
          OK200 LENGTH_OF("1") "\r\nc", "200:a 200:b 200:c " },
        { OK200 LENGTH_OF("2") "\r\nabjunk", "200:ab !" },
        { OK200 "Empty:\r\nX: \xe2\x82\xac\ttab\r\n" LENGTH_OF("1") "\r\nx",
          "200:x " },
    };
    struct buf whole = { .max = 0 }, part = { .max = 0 };
    struct str in, got;
    size_t i, n, ends, all;

    for (i = 0; i < LENGTH(row); i++) {
        in = str_of(row[i].in);
        for (n = 0; n <= in.n; n++)
            SAME(http_all(&whole, in, n), str_of(row[i].out), row[i].in);
        for (n = all = 0; n < whole.n; n++)
            all += whole.p[n] == ' ' && !str_suffix(buf_str(&whole), STR("~"));
        for (n = 0; n < in.n; n++) {
            got = http_all(&part, str_upto(in, n), n);
            for (ends = 0; got.n > 0; got = str_from(got, 1))
                ends += *got.p == ' ';
            got = buf_str(&part);
            ROW(n == 0 || ends < all || str_suffix(got, STR("~")) ||
                str_suffix(buf_str(&whole), STR("!")), row[i].in);
        }
    }
    buf_free(&whole);
    buf_free(&part);
}

static void http_refusals(void)
{
    static const struct str row[] = {
        STR_INIT(OK200 LENGTH_OF("1") CHUNKED "\r\n"),
        STR_INIT(OK200 LENGTH_OF("1") LENGTH_OF("2") "\r\n"),
        STR_INIT(OK200 LENGTH_OF("0") LENGTH_OF("1") "\r\n"),
        STR_INIT(OK200 LENGTH_OF("-1") "\r\n"),
        STR_INIT(OK200 LENGTH_OF("+1") "\r\n"),
        STR_INIT(OK200 LENGTH_OF("1, 1") "\r\n"),
        STR_INIT(OK200 LENGTH_OF("0x1") "\r\n"),
        STR_INIT(OK200 LENGTH_OF("1 1") "\r\n"),
        STR_INIT(OK200 LENGTH_OF("") "\r\n"),
        STR_INIT(OK200 LENGTH_OF("18446744073709551616") "\r\n"),
        STR_INIT(OK200 LENGTH_OF("18446744073709551615") "\r\n"),
        STR_INIT(OK200 "Transfer-Encoding: chunked, gzip\r\n\r\n"),
        STR_INIT(OK200 "Transfer-Encoding: gzip, chunked\r\n\r\n"),
        STR_INIT(OK200 "Transfer-Encoding: identity\r\n\r\n"),
        STR_INIT(OK200 CHUNKED CHUNKED "\r\n"),
        STR_INIT("HTTP/1.0 200 OK\r\n" CHUNKED "\r\n"),
        STR_INIT("HTTP/1.1 200 OK\nA: b\r\n\r\n"),          /* bare LF */
        STR_INIT("HTTP/1.1 200 O\0K\r\n\r\n"),
        STR_INIT(OK200 "A: b\nC: d\r\n\r\n"),
        STR_INIT(OK200 "A: b\r\n c\r\n\r\n"),               /* folded */
        STR_INIT(OK200 "A : b\r\n\r\n"), STR_INIT(OK200 " A: b\r\n\r\n"),
        STR_INIT(OK200 ": b\r\n\r\n"), STR_INIT(OK200 "A\r\n\r\n"),
        STR_INIT(OK200 "A: b\0c\r\n\r\n"), STR_INIT(OK200 "A\0: b\r\n\r\n"),
        STR_INIT(OK200 "A: b\rc\r\n\r\n"), STR_INIT(OK200 "A: \x7f\r\n\r\n"),
        STR_INIT("HTTP/1.1 099 x\r\n\r\n"), STR_INIT("HTTP/1.1 600 x\r\n\r\n"),
        STR_INIT("HTTP/1.1 20 x\r\n\r\n"), STR_INIT("HTTP/1.1 2000 x\r\n\r\n"),
        STR_INIT("HTTP/1.1  200 x\r\n\r\n"), STR_INIT("HTTP/1.1 \r\n\r\n"),
        STR_INIT("HTTP/1.1 +20 x\r\n\r\n"), STR_INIT("HTTP/1.1\r\n\r\n"),
        STR_INIT("HTTP/1.2 200 x\r\n\r\n"), STR_INIT("HTTP/2.0 200 x\r\n\r\n"),
        STR_INIT("HTTP/1.10 200 x\r\n\r\n"), STR_INIT("http/1.1 200 x\r\n\r\n"),
        STR_INIT("HTTP/1.1 101 Switching\r\n\r\n"),
        STR_INIT("SSH-2.0-OpenSSH_9.2\r\n"), STR_INIT("\x15\x03\x03\0\x02\2("),
        STR_INIT("\x16\x03\x01\0"), STR_INIT("<html>"), STR_INIT("\r\n"),
        STR_INIT(" HTTP/1.1 200"), STR_INIT("\0"), STR_INIT("+OK\r\n"),
    };
    static const struct str size[] = {
        STR_INIT("ffffffffffffffffff\r\n"), STR_INIT("ffffffffffffffff\r\n"),
        STR_INIT("-1\r\n"), STR_INIT(" \r\n"), STR_INIT("\r\n"),
        STR_INIT("0x5\r\n"), STR_INIT("+5\r\n"), STR_INIT("5 5\r\n"),
        STR_INIT(";a=b\r\n"), STR_INIT("g\r\n"), STR_INIT("5\n\r\n"),
        STR_INIT("\n5\r\n"), STR_INIT("5\0\r\n"),
        STR_INIT("1\r\nab\r\n"), STR_INIT("1\r\na\n\r\n"),
        STR_INIT("1\r\na0\r\n\r\n"), STR_INIT("1\r\na\r\n\r\n"),
    };
    struct buf in = { .max = 0 }, out = { .max = 0 };
    size_t i, n;

    for (i = 0; i < LENGTH(row); i++)
        for (n = 0; n <= row[i].n; n++)
            ROW(str_suffix(http_all(&out, row[i], n), STR("!")), row[i].p);
    for (i = 0; i < LENGTH(size); i++) {
        in.n = 0;
        buf_lit(&in, OK200 CHUNKED "\r\n");
        buf_add(&in, size[i]);
        for (n = 0; n <= in.n; n++)
            ROW(str_suffix(http_all(&out, buf_str(&in), n), STR("!")),
                size[i].p);
    }
    buf_free(&in);
    buf_free(&out);
}

/* A head and a chunk's line of just the limit, and of one byte more: the same
 * however they are cut. */
static void http_limits(void)
{
    struct buf in = { .max = 0 }, out = { .max = 0 };
    size_t over, cut;
    struct str got;

    for (over = 0; over < 2; over++) {
        in.n = 0;
        buf_lit(&in, OK200 LENGTH_OF("0") "X: ");
        while (in.n < HEAD_MAX - 4 + over)
            buf_byte(&in, 'x');
        buf_lit(&in, "\r\n\r\n");
        for (cut = in.n - 6; cut <= in.n; cut++) {
            got = http_all(&out, buf_str(&in), cut);
            want(str_eq(got, over ? STR("!") : STR("200: ")), __LINE__,
                 "a head of %zu bytes, cut at %zu: %.*s", in.n, cut, PUT(got));
        }
        in.n = 0;
        buf_lit(&in, OK200 CHUNKED "\r\n1;");
        while (in.n < sizeof OK200 CHUNKED + 1 + CHUNK_LINE_MAX - 2 + over)
            buf_byte(&in, 'x');
        buf_lit(&in, "\r\na\r\n0\r\n\r\n");
        for (cut = in.n - 16; cut <= in.n; cut++) {
            got = http_all(&out, buf_str(&in), cut);
            want(str_eq(got, over ? STR("200:!") : STR("200:a ")), __LINE__,
                 "a chunk line of %d bytes, cut at %zu of %zu: %.*s",
                 CHUNK_LINE_MAX + (int)over, cut, in.n, PUT(got));
        }
    }
    in.n = 0;                               /* it never ends */
    while (in.n < HEAD_MAX + 100)
        buf_lit(&in, in.n == 0 ? OK200 : "A: b\r\n");
    SAME(http_all(&out, buf_str(&in), 0), STR("!"), "a head without end");
    buf_free(&in);
    buf_free(&out);
}

static void http_requests(void)
{
    struct buf b = { .max = 0 };
    unsigned c;

    http_request(&b, "GET", STR("/v1/x?y=%20"), STR("h:1"),
                 STR("A: b\r\n"), STR(""));
    SAME(buf_str(&b), STR("GET /v1/x?y=%20 HTTP/1.1\r\nHost: h:1\r\nA: b\r\n"
                          "\r\n"), "GET");
    b.n = 0;
    http_request(&b, "PUT", STR("/"), STR("h"), STR(""), STR("{}"));
    SAME(buf_str(&b), STR("PUT / HTTP/1.1\r\nHost: h\r\nContent-Type: "
                          "application/json\r\nContent-Length: 2\r\n\r\n{}"),
         "PUT");
    b.n = 0;
    http_request(&b, "PUT", STR("/"), STR("h"), STR(""), STR(""));
    SAME(buf_str(&b), STR("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n"
                          "\r\n"), "PUT of nothing");
    for (c = 0; c < 256; c++) {
        char path[] = { '/', (char)c, 'x' };
        struct str s = { path, sizeof path };

        b.n = 0;
        b.bad = false;
        http_request(&b, "GET", s, STR("h"), STR(""), STR(""));
        want(b.bad == (c <= ' ' || c == 0x7f), __LINE__, "path %02x", c);
        b.n = 0;
        b.bad = false;
        http_request(&b, "GET", STR("/"), s, STR(""), STR(""));
        want(b.bad == (c < ' ' || c == 0x7f), __LINE__, "host %02x", c);
    }
    buf_free(&b);
}

/* ---- URL ---- */

static void url_addresses(void)
{
    static const struct {
        const char *in, *out;       /* scheme|user|host|port|path, NULL: bad */
    } row[] = {
        { "consul:", "consul|||0|" }, { "consul://", "consul|||0|" },
        { "consul:///", "consul|||0|/" }, { "print:", "print|||0|" },
        { "consul://h", "consul||h|0|" }, { "consul://h/", "consul||h|0|/" },
        { "consul://h:1/p/q", "consul||h|1|/p/q" },
        { "consul://10.0.0.1:65535", "consul||10.0.0.1|65535|" },
        { "consul://[::1]:8500", "consul||::1|8500|" },
        { "consul://[fe80::1%25eth0]", "consul||fe80::1%25eth0|0|" },
        { "consul://u:p@h:1", "consul|u:p|h|1|" },
        { "consul://u@x@h", "consul|u@x|h|0|" },
        { "consul-unix:///run/c.sock", "consul-unix|||0|/run/c.sock" },
        { "unix:/run/c.sock", "unix|||0|/run/c.sock" },
        { "consul://h/a@b:c", "consul||h|0|/a@b:c" },
        { "", NULL }, { "consul", NULL }, { ":", NULL }, { "://h", NULL },
        { "consul://h:", NULL }, { "consul://:1", NULL },
        { "consul://h:0", NULL }, { "consul://h:65536", NULL },
        { "consul://h:-1", NULL }, { "consul://h:1x", NULL },
        { "consul://h:1:2", NULL }, { "consul://::1", NULL },
        { "consul://[::1", NULL }, { "consul://[]", NULL },
        { "consul://[::1]8500", NULL }, { "consul://[::1]:", NULL },
        { "consul://a b", NULL }, { "consul://h\r\nX: y", NULL },
        { "consul://h\x7f", NULL }, { "consul://h/\n", NULL },
    };
    struct buf b = { .max = 0 };
    struct url u;
    struct err e;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        bool ok = url_parse(edge(str_of(row[i].in)), &u, &e) == 0;

        ROW(ok == (row[i].out != NULL), row[i].in);
        if (!ok || row[i].out == NULL)
            continue;
        b.n = 0;
        buf_add(&b, u.scheme);
        buf_byte(&b, '|');
        buf_add(&b, u.user);
        buf_byte(&b, '|');
        buf_add(&b, u.host);
        buf_byte(&b, '|');
        buf_u64(&b, u.port);
        buf_byte(&b, '|');
        buf_add(&b, u.path);
        SAME(buf_str(&b), str_of(row[i].out), row[i].in);
    }
    buf_free(&b);
    WANT(url_parse(STR("consul://user:secret@h:x"), &u, &e) != 0 &&
         str_find(str_of(e.text), STR("secret")) == strlen(e.text));
}

static void url_texts(void)
{
    static const struct {
        const char *host;
        unsigned port;
        const char *out;
    } row[] = {
        { "h", 0, "h" }, { "h", 80, "h:80" }, { "1.2.3.4", 65535,
          "1.2.3.4:65535" }, { "::1", 0, "[::1]" }, { "::1", 80, "[::1]:80" },
    };
    static const char *const base64[][2] = {    /* RFC 4648 section 10 */
        { "", "" }, { "f", "Zg==" }, { "fo", "Zm8=" }, { "foo", "Zm9v" },
        { "foob", "Zm9vYg==" }, { "fooba", "Zm9vYmE=" },
        { "foobar", "Zm9vYmFy" }, { "\xff\xfe\xfb\xf0", "//778A==" },
    };
    struct buf b = { .max = 0 };
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        b.n = 0;
        url_put(&b, str_of(row[i].host), row[i].port);
        SAME(buf_str(&b), str_of(row[i].out), row[i].host);
    }
    for (i = 0; i < LENGTH(base64); i++) {
        b.n = 0;
        url_base64(&b, edge(str_of(base64[i][0])));
        SAME(buf_str(&b), str_of(base64[i][1]), base64[i][0]);
    }
    buf_free(&b);
}

/* ---- Options ---- */

/* Lets nothing out on stdout and stderr between quiet(true) and false. */
static void quiet(bool on)
{
    static int saved[2];
    int i;

    (void)fflush(NULL);
    for (i = 0; i < 2; i++) {
        int null;

        if (on) {
            saved[i] = dup(i + 1);
            null = open("/dev/null", O_WRONLY);
            CHECK(saved[i] >= 0 && dup2(null, i + 1) == i + 1);
            (void)close(null);
        } else {
            CHECK(dup2(saved[i], i + 1) == i + 1);
            (void)close(saved[i]);
        }
    }
}

/* What the command line, split at blanks, comes to: an exit code, or the
 * options that are not as usual. */
static struct str options_of(struct buf *out, const char *line)
{
    struct flags f = { .deregister = STR_INIT("-"), .on_exit = STR_INIT("-"),
                       .log_level = STR_INIT("-"), .resync = 60,
                       .retry_attempts = -1, .retry_interval = 2000 };
    const struct { const char *name; const bool *is; } flag[] = {
        { " cleanup", &f.cleanup }, { " explicit", &f.only_named },
        { " internal", &f.internal }, { " once", &f.once },
    };
    const struct { const char *name; const struct str *is; } text[] = {
        { " deregister=", &f.deregister }, { " hostname=", &f.hostname },
        { " ip=", &f.ip }, { " on-exit=", &f.on_exit }, { " tags=", &f.tags },
        { " label=", &f.label }, { " log-level=", &f.log_level },
    };
    char *word[32], *copy = str_dup(str_of(line)), name[] = "registrator";
    char number[128];
    int argc = 1, code;
    size_t i;

    word[0] = name;
    for (i = 0; copy[i] != '\0'; i++)
        if (i == 0 || copy[i - 1] == '\0') {
            CHECK(argc < 31);
            word[argc++] = &copy[i] + (copy[i] == '_');     /* _: empty */
            while (copy[i + 1] != ' ' && copy[i + 1] != '\0')
                i++;
            if (copy[i + 1] == ' ')
                copy[++i] = '\0';
        }
    word[argc] = NULL;
    quiet(true);
    code = opt_read(argc, word, &f);
    quiet(false);
    out->n = 0;
    if (code >= 0) {
        buf_u64(out, (uint64_t)code);
    } else {
        buf_add(out, f.uri);
        for (i = 0; i < LENGTH(flag); i++)
            buf_lit(out, *flag[i].is ? flag[i].name : "");
        for (i = 0; i < LENGTH(text); i++)
            if (text[i].is->p != NULL && !str_eq(*text[i].is, STR("-"))) {
                buf_lit(out, text[i].name);
                buf_add(out, *text[i].is);
            }
        (void)snprintf(number, sizeof number, " %lld %lld %lld %lld %lld",
                       (long long)f.resync, (long long)f.retry_attempts,
                       (long long)f.retry_interval, (long long)f.ttl,
                       (long long)f.ttl_refresh);
        buf_lit(out, str_eq(str_of(number), STR(" 60 -1 2000 0 0"))
                         ? "" : number);
    }
    free(copy);
    return buf_str(out);
}

static void opt_lines(void)
{
    static const char *const row[][2] = {
        { "u:", "u:" }, { "-- u:", "u:" }, { "-cleanup u:", "u: cleanup" },
        { "--cleanup u:", "u: cleanup" }, { "-cleanup=true u:", "u: cleanup" },
        { "--cleanup=T u:", "u: cleanup" }, { "-cleanup=false u:", "u:" },
        { "-cleanup -cleanup=0 u:", "u:" }, { "-internal=1 u:", "u: internal" },
        { "-explicit -once u:", "u: explicit once" },
        { "-ip 1.2.3.4 u:", "u: ip=1.2.3.4" },
        { "--ip=1.2.3.4 u:", "u: ip=1.2.3.4" },
        { "-ip= u:", "u: ip=" }, { "-ip _ u:", "u: ip=" },
        { "-tags=a=b,c u:", "u: tags=a=b,c" }, { "-ip -ip u:", "u: ip=-ip" },
        { "-ip a -ip b u:", "u: ip=b" }, { "-ip -- u:", "u: ip=--" },
        { "-hostname h -useIpFromLabel l -deregister on-success -on-exit "
          "deregister -log-level debug u:", "u: deregister=on-success "
          "hostname=h on-exit=deregister label=l log-level=debug" },
        { "-resync 30 -ttl 10 -ttl-refresh=5 u:", "u: 30 -1 2000 10 5" },
        { "-resync=0 u:", "u: 0 -1 2000 0 0" },
        { "-retry-attempts -1 -retry-interval=1 u:", "u: 60 -1 1 0 0" },
        { "-retry-attempts=3 u:", "u: 60 3 2000 0 0" },
        { "-version", "0" }, { "-help", "0" }, { "--help", "0" },
        { "-help=false u:", "u:" }, { "_", "" }, { "-", "-" },
        { "", "2" }, { "--", "2" }, { "-cleanup", "2" }, { "u: v:", "2" },
        { "u: -cleanup", "2" }, { "-cleanup false u:", "2" },
        { "-nosuch u:", "2" }, { "---cleanup u:", "2" }, { "-=x u:", "2" },
        { "--=x u:", "2" }, { "-Cleanup u:", "2" }, { "-ip", "2" },
        { "-resync", "2" }, { "-cleanup=yes u:", "1" },
        { "-cleanup= u:", "1" }, { "-resync x u:", "1" },
        { "-resync= u:", "1" }, { "-resync -1 u:", "1" },
        { "-resync 1.5 u:", "1" }, { "-resync 18446744073709551617 u:", "1" },
        { "-resync 4294967297 u:", "1" }, { "-retry-attempts -2 u:", "1" },
        { "-retry-attempts --1 u:", "1" }, { "-ttl -1 u:", "1" },
    };
    struct buf out = { .max = 0 };
    size_t i;

    for (i = 0; i < LENGTH(row); i++)
        SAME(options_of(&out, row[i][0]), str_of(row[i][1]), row[i][0]);
    buf_free(&out);
}

static void opt_values(void)
{
    static const char *const word[] = { "1", "t", "T", "TRUE", "true", "True",
        "0", "f", "F", "FALSE", "false", "False", "", "tRUE", "yes", "on",
        "2", "true ", "00" };
    static const struct {
        const char *text;
        bool ok;
        int64_t value;
    } number[] = {                      /* from -1 to 2147483647 */
        { "0", true, 0 }, { "-0", true, 0 }, { "-1", true, -1 },
        { "2147483647", true, INT32_MAX }, { "007", true, 7 },
        { "2147483648", false, 0 }, { "-2", false, 0 }, { "", false, 0 },
        { "-", false, 0 }, { "--1", false, 0 }, { " 1", false, 0 },
        { "1s", false, 0 }, { "99999999999999999999", false, 0 },
        { "-99999999999999999999", false, 0 },
    };
    const struct opt o = { "o", OPT_NUMBER, 0, -1, INT32_MAX, "", "" };
    int64_t v = 0;
    bool on = false;
    size_t i;

    for (i = 0; i < LENGTH(word); i++)
        ROW(opt_bool(str_of(word[i]), &on) == (i < 12) &&
            (i >= 12 || on == (i < 6)), word[i]);
    for (i = 0; i < LENGTH(number); i++)
        ROW(opt_number(edge(str_of(number[i].text)), &o, &v) == number[i].ok &&
            (!number[i].ok || v == number[i].value), number[i].text);
}

/* ---- Docker ---- */

static void docker_events(void)
{
#define ACTOR "'Actor':{'ID':'@','Attributes':{"
    static const struct {
        const char *in;
        enum docker_action action;
        unsigned code;
    } row[] = {
        /* Docker 1.3 */
        { "{'status':'start','id':'@','from':'base:latest','time':1}",
          DOCKER_LOOK, DOCKER_NO_CODE },
        { "{'status':'die','id':'@','from':'b','time':1}", DOCKER_DIED,
          DOCKER_NO_CODE },
        { "{'status':'destroy','id':'@','from':'b','time':1}", DOCKER_GONE,
          DOCKER_NO_CODE },
        { "{'status':'pull','id':'base:latest','time':1}", DOCKER_OTHER, 0 },
        { "{'status':'untag','id':'@','time':1}", DOCKER_OTHER, 0 },
        /* Docker 1.10 to 28 */
        { "{'status':'die','id':'@','from':'b','Type':'container','Action':"
          "'die'," ACTOR "'exitCode':'137','image':'b'}},'scope':'local'}",
          DOCKER_DIED, 137 },
        { "{'status':'pause','id':'@','Type':'container','Action':'pause',"
          ACTOR "}}}", DOCKER_LOOK, DOCKER_NO_CODE },
        { "{'status':'exec_create: sh','id':'@','Type':'container','Action':"
          "'exec_create: sh'," ACTOR "}}}", DOCKER_OTHER, 0 },
        { "{'status':'delete','id':'sha256:@','Type':'image','Action':"
          "'delete','Actor':{'ID':'sha256:@','Attributes':{}}}",
          DOCKER_OTHER, 0 },
        { "{'Type':'network','Action':'connect','Actor':{'ID':'n','Attributes'"
          ":{'container':'@','name':'bridge'}}}", DOCKER_NETWORK, 0 },
        { "{'Type':'network','Action':'disconnect','Actor':{'ID':'n',"
          "'Attributes':{'container':'@'}}}", DOCKER_NETWORK, 0 },
        { "{'Type':'network','Action':'destroy','Actor':{'ID':'n',"
          "'Attributes':{'container':'@'}}}", DOCKER_OTHER, 0 },
        { "{'Type':'network','Action':'connect','Actor':{'ID':'n',"
          "'Attributes':{}}}", DOCKER_OTHER, 0 },
        { "{'Type':'volume','Action':'destroy','Actor':{'ID':'@'}}",
          DOCKER_OTHER, 0 },
        { "{'Type':'daemon','Action':'reload','Actor':{'ID':'@'}}",
          DOCKER_OTHER, 0 },
        /* Docker 29: nothing of the top-level address */
        { "{'Type':'container','Action':'start'," ACTOR "'image':'x'}},"
          "'scope':'local','time':1,'timeNano':2}", DOCKER_LOOK,
          DOCKER_NO_CODE },
        { "{'Type':'container','Action':'rename'," ACTOR "'oldName':'/a'}}}",
          DOCKER_LOOK, DOCKER_NO_CODE },
        { "{'Type':'container','Action':'update'," ACTOR "}}}", DOCKER_LOOK,
          DOCKER_NO_CODE },
        { "{'Type':'container','Action':'unpause'," ACTOR "}}}", DOCKER_LOOK,
          DOCKER_NO_CODE },
        /* Podman */
        { "{'status':'died','id':'@','Type':'container','Action':'died',"
          ACTOR "'containerExitCode':'1'}}}", DOCKER_DIED, DOCKER_NO_CODE },
        { "{'status':'remove','id':'@','Type':'container','Action':'remove',"
          ACTOR "}}}", DOCKER_GONE, DOCKER_NO_CODE },
        { "{'status':'','id':'','Type':'container','Action':'died'," ACTOR
          "'exitCode':'0'}}}", DOCKER_DIED, 0 },
        { "{'Type':'pod','Action':'start'," ACTOR "}}}", DOCKER_OTHER, 0 },
        /* what is none */
        { "{'Type':'container','Action':'start','Actor':{'ID':'abc'}}",
          DOCKER_OTHER, 0 },
        { "{'Type':'container','Action':'start','Actor':null}",
          DOCKER_OTHER, 0 },
        { "{'status':'start','id':7}", DOCKER_OTHER, 0 },
        { "{'status':{'a':'start'},'id':'@'}", DOCKER_OTHER, 0 },
        { "{'Type':'container','Action':'die'," ACTOR "'exitCode':'-1'}}}",
          DOCKER_DIED, DOCKER_NO_CODE },
        { "{}", DOCKER_OTHER, 0 }, { "[]", DOCKER_OTHER, 0 },
        { "null", DOCKER_OTHER, 0 }, { "'start'", DOCKER_OTHER, 0 },
    };
    struct json j = { { NULL, 0 }, NULL, 0, 0 };
    struct buf text = { .max = 0 }, id = { .max = 0 };
    struct docker_event ev;
    struct err e;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        bool is;

        ROW(json_parse(&j, edge(quoted(&text, row[i].in)), &e) == 0,
            row[i].in);
        is = docker_event(&j, &ev);
        ROW(is == (row[i].action != DOCKER_OTHER), row[i].in);
        if (!is)
            continue;
        ROW(ev.action == row[i].action, row[i].in);
        ROW(ev.action != DOCKER_DIED || ev.exit_code == row[i].code,
            row[i].in);
        SAME(ev.id, quoted(&id, "@"), row[i].in);
    }
    json_free(&j);
    buf_free(&text);
    buf_free(&id);
}

static void docker_rows(void)
{
    static const struct {
        const char *in, *name;
        bool ok, ended;
        unsigned code;
    } row[] = {
        { "{'Id':'@','Names':['/web'],'Status':'Up 3 minutes'}", "web", true,
          false, 0 },
        { "{'Id':'@','Names':['/x/db','/web','/y/db'],'State':'running',"
          "'Status':'Up 1 second (healthy)'}", "web", true, false, 0 },
        { "{'Id':'@','Names':['web'],'Status':'Up 3 minutes (Paused)'}",
          "web", true, false, 0 },
        { "{'Id':'@','Names':['/w'],'Status':'Exited (137) 2 hours ago'}",
          "w", true, true, 137 },
        { "{'Id':'@','Names':['/w'],'Status':'Exited (0) 2 hours ago'}", "w",
          true, true, 0 },
        { "{'Id':'@','Names':['/w'],'Status':'Restarting (5) 1 second ago'}",
          "w", true, false, 0 },
        { "{'Id':'@','Names':['/w'],'Status':'Created'}", "w", true, true, 0 },
        { "{'Id':'@','Names':['/w'],'Status':'Dead'}", "w", true, true, 0 },
        { "{'Id':'@','Names':null,'Status':''}", "", true, true, 0 },
        { "{'Id':'@'}", "", true, true, 0 },
        { "{'Id':'@','Names':'/w','Ports':7}", "", true, true, 0 },
        { "{'Id':'abc','Names':['/w']}", "w", false, true, 0 },
        { "{'Names':['/w']}", "w", false, true, 0 }, { "{}", "", false, true,
          0 }, { "[]", "", false, true, 0 },
    };
    static const char *const print[] = {    /* two and two are the same */
        "{'Id':'@','Names':['/a'],'Status':'Up 3 minutes'}",
        "{'Id':'@','Names':['/a'],'Status':'Up 4 hours'}",
        "{'Id':'@','Names':['/b'],'Status':'Up 3 minutes'}",
        "{'Id':'@','Names':['/b','/x/y'],'Status':'Up 3 minutes'}",
        "{'Id':'@','Names':['/a'],'Ports':[{'a':1},{'b':2}]}",
        "{'Id':'@','Names':['/a'],'Ports':[{'b':2},{'a':1}]}",
        "{'Id':'@','Names':['/a'],'Ports':[{'a':2},{'b':2}]}",
        "{'Id':'@','Names':['/a'],'Ports':[{'b':2},{'a':2}]}",
        "{'Id':'@','State':'paused'}", "{'State':'paused','Id':'@'}",
        "{'Id':'@','NetworkSettings':{'Networks':{'a':1}}}",
        "{'Id':'@','Names':[],'NetworkSettings':{'Networks':{'a':1}}}",
    };
    uint64_t seen[LENGTH(print)];
    struct json j = { { NULL, 0 }, NULL, 0, 0 };
    struct buf text = { .max = 0 };
    struct docker_row r;
    struct err e;
    size_t i, k;

    for (i = 0; i < LENGTH(row); i++) {
        ROW(json_parse(&j, edge(quoted(&text, row[i].in)), &e) == 0,
            row[i].in);
        ROW(docker_row(&j, &r) == row[i].ok, row[i].in);
        SAME(r.name, str_of(row[i].name), row[i].in);
        ROW(r.ended == row[i].ended && r.exit_code == row[i].code, row[i].in);
    }
    for (i = 0; i < LENGTH(print); i++) {
        ROW(json_parse(&j, edge(quoted(&text, print[i])), &e) == 0, print[i]);
        ROW(docker_row(&j, &r), print[i]);
        seen[i] = r.print;
        for (k = 0; k < i; k++)
            ROW((seen[k] == seen[i]) == (k / 2 == i / 2), print[i]);
    }
    json_free(&j);
    buf_free(&text);
}

/* A container in a line: name image mode runs|ended CODE; then its ports, as
 * number/protocol[L][E][=IP:PORT], networks, variables and labels. */
static struct str container_text(struct buf *b,
                                 const struct docker_container *c)
{
    static const char *const proto[] = { "tcp", "udp", "sctp" };
    size_t i;

    b->n = 0;
    buf_add(b, c->name);
    buf_byte(b, ' ');
    buf_add(b, c->image);
    buf_byte(b, ' ');
    buf_add(b, c->mode);
    buf_lit(b, c->runs ? " runs" : " ended ");
    if (!c->runs)
        buf_u64(b, c->exit_code);
    for (i = 0; i < c->ports; i++) {
        const struct docker_port *p = &c->port[i];

        buf_byte(b, ' ');
        buf_u64(b, p->number);
        buf_byte(b, '/');
        buf_lit(b, proto[p->proto]);
        buf_lit(b, p->listed ? "L" : "");
        buf_lit(b, p->exposed ? "E" : "");
        if (p->host_port > 0) {
            buf_byte(b, '=');
            url_put(b, p->host_ip, p->host_port);
        }
    }
    for (i = 0; i < c->networks; i++) {
        buf_byte(b, ' ');
        buf_add(b, c->network[i].name);
        buf_byte(b, '@');
        buf_add(b, c->network[i].ip);
    }
    for (i = 0; i < c->envs + c->labels; i++) {
        const struct docker_var *v = i < c->envs ? &c->env[i]
                                                 : &c->label[i - c->envs];

        buf_lit(b, i < c->envs ? " " : " -l ");
        buf_add(b, v->name);
        buf_byte(b, '=');
        buf_add(b, v->value);
    }
    return buf_str(b);
}

static void docker_inspects(void)
{
#define HEAD "{'Id':'@','Name':'/n',"
#define RUNS "'State':{'Running':true},"
#define PORTS(p) HEAD RUNS "'Config':{'Image':'i'},'NetworkSettings':" \
    "{'Ports':" p ",'Networks':{}}}"
    static const char *const row[][2] = {
        { PORTS("{'80/tcp':[{'HostIp':'0.0.0.0','HostPort':'8090'},{'HostIp':"
                "'::','HostPort':'8090'}],'5000/tcp':null}"),
          "n i  runs 80/tcpL=0.0.0.0:8090 5000/tcpL" },
        { PORTS("{'443/tcp':[{'HostIp':'::1','HostPort':'8443'}]}"),
          "n i  runs 443/tcpL=[::1]:8443" },
        { PORTS("{'80/tcp':[{'HostIp':'::','HostPort':'1'},{'HostIp':"
                "'10.0.0.1','HostPort':'2'},{'HostIp':'10.0.0.2','HostPort':"
                "'3'}]}"), "n i  runs 80/tcpL=10.0.0.1:2" },
        { PORTS("{'80/tcp':[{'HostIp':'','HostPort':'1'},{'HostIp':'1.1.1.1',"
                "'HostPort':'2'}]}"), "n i  runs 80/tcpL=:1" },
        { PORTS("{'80/tcp':[{'HostIp':'','HostPort':''},{'HostPort':'0'},"
                "{'HostPort':7},{},null,{'HostPort':'70000'}],'81/tcp':[]}"),
          "n i  runs 80/tcpL 81/tcpL" },
        { PORTS("{'53/udp':null,'53/tcp':null,'9/sctp':null,'7':null,"
                "'53/UDP':[{'HostPort':'5'}],'0/tcp':null,'x/tcp':null,"
                "'80/icmp':null,'70000/tcp':null}"),
          "n i  runs 7/tcpL 9/sctpL 53/tcpL 53/udpL" },
        { PORTS("null"), "n i  runs" }, { PORTS("[]"), "n i  runs" },
        { PORTS("['80/tcp']"), "n i  runs" }, { PORTS("7"), "n i  runs" },
        /* listed and exposed; of one that has ended, also what is bound */
        { HEAD RUNS "'Config':{'ExposedPorts':{'80/tcp':{},'53/udp':{}}},"
          "'HostConfig':{'NetworkMode':'host','PortBindings':{'1/tcp':[]}},"
          "'NetworkSettings':{'Ports':{'80/tcp':null}}}",
          "n  host runs 53/udpE 80/tcpLE bridge@" },
        { HEAD "'State':{'Running':false,'ExitCode':3},'Config':{},"
          "'HostConfig':{'PortBindings':{'80/tcp':[{'HostPort':'8'}]}}}",
          "n   ended 3 80/tcpE bridge@" },
        { HEAD "'State':{'Running':true,'Restarting':true,'ExitCode':1},"
          "'Config':{}}", "n   ended 1 bridge@" },
        /* networks: by name; legacy address; ingress is none */
        { HEAD RUNS "'Config':{},'NetworkSettings':{'IPAddress':'172.17.0.2'"
          ",'Ports':{}}}", "n   runs bridge@172.17.0.2" },
        { HEAD RUNS "'Config':{},'NetworkSettings':{'IPAddress':'','Networks':"
          "{'web':{'IPAddress':'10.0.0.2','NetworkID':'f'},'ingress':"
          "{'IPAddress':'10.255.0.3'},'app':{'IPAddress':'',"
          "'GlobalIPv6Address':'fd00::2'},'none':null}}}",
          "n   runs app@fd00::2 none@ web@10.0.0.2" },
        /* environment and labels */
        { HEAD RUNS "'Config':{'Env':['A=1','B','C=','D=x=y\\nz','=e',7,null],"
          "'Labels':{'L':'v','M':null,'':''}},'NetworkSettings':{'Networks':"
          "{}}}", "n   runs A=1 C= D=x=y\nz =e -l L=v -l M= -l =" },
        { HEAD RUNS "'Config':{'Env':null,'Labels':null,'ExposedPorts':null},"
          "'HostConfig':null,'NetworkSettings':null}", "n   runs bridge@" },
        { HEAD RUNS "'Config':{'Labels':['x','y'],'Env':{'A=1':2}}}",
          "n   runs bridge@ A=1" },
        { "{'Id':'@','Name':'noslash','State':{'Running':'true','ExitCode':"
          "256},'Config':{}}", "noslash   ended 0 bridge@" },
        /* no containers */
        { "{'Id':'@','Name':'','State':{},'Config':{}}", NULL },
        { "{'Id':'abc','Name':'/n','State':{},'Config':{}}", NULL },
        { "{'Id':'@','Name':'/n','Config':{}}", NULL },
        { "{'Id':'@','Name':'/n','State':{}}", NULL },
        { "{'message':'No such container: x'}", NULL }, { "[]", NULL },
        { "null", NULL },
    };
    struct json j = { { NULL, 0 }, NULL, 0, 0 };
    struct buf text = { .max = 0 };
    struct docker_container *c;
    struct err e;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        ROW(json_parse(&j, edge(quoted(&text, row[i][0])), &e) == 0,
            row[i][0]);
        c = docker_inspect(&j);
        ROW((c != NULL) == (row[i][1] != NULL), row[i][0]);
        if (c != NULL && row[i][1] != NULL)
            SAME(container_text(&text, c), str_of(row[i][1]), row[i][0]);
        docker_free(c);
    }
    json_free(&j);
    buf_free(&text);
}
