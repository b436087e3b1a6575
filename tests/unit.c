/* Unit tests: the program itself, included whole, section by section.
 *
 *     cc -std=c99 -g -fsanitize=address,undefined -o unit tests/unit.c \
 *         -lbearssl
 *     ./unit [NAME...]
 *
 * Prints a line a case.  Inputs of parsers lie right before a page that
 * cannot be read, so that one byte read too far ends the run. */

int registrator_main(int, char **);
#define main registrator_main
#include "../registrator.c"
#undef main

#include "certs.h"
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>

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
    buf_escape(&unit_why, str_of(text), false);
    buf_fmt(&unit_why, " (tests/unit.c:%d)", line);
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
    WANT(str_find(STR("abc"), STR("")) == 0 && str_find(STR("a"), none) == 0);
    WANT(str_find(none, STR("")) == 0 && str_find(none, none) == 0);
    WANT(str_find(STR("a"), STR("aa")) == 1);
    SAME(str_trim(edge(STR(" \t\r\n a b \r\n"))), STR("a b"), "trim");
    SAME(str_trim(edge(STR(" \n "))), STR(""), "trim");
    WANT(str_caseeq(STR("Content-LENGTH"), STR("cONTENT-length")));
    WANT(!str_caseeq(STR("[a"), STR("{a")) && !str_caseeq(STR("@"), STR("`")));
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
    size_t used = s.n - rest.n;
    struct buf back = { .max = 0 };

    buf_rune(&back, c);
    want(scalar(c) && ((c == 0xfffd && used == 1) ||
                       str_eq(buf_str(&back), str_upto(s, used))), __LINE__,
         "%02x %02x %02x ... of %zu is read as U+%04x of %zu",
         (unsigned)(unsigned char)s.p[0],
         s.n > 1 ? (unsigned)(unsigned char)s.p[1] : 0,
         s.n > 2 ? (unsigned)(unsigned char)s.p[2] : 0, s.n, (unsigned)c,
         used);
    buf_free(&back);
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
    struct buf b = { .max = 0 };
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
            b.n = 0;
            buf_rune(&b, c);
            s = buf_str(&b);
            want(str_rune(&s) == c && s.n == 0, __LINE__, "U+%04x of %zu",
                 (unsigned)c, b.n);
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
    buf_free(&b);
}

static void text_encoders(void)
{
    struct buf b = { .max = 0 }, all = { .max = 0 };
    struct json j = { .n = 0 };
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
            while (back.n > 0)              /* as it must come back */
                buf_rune(&all, str_rune(&back));
            for (k = 0; k < b.n; k++)
                WANT((unsigned char)b.p[k] >= 0x20 && b.p[k] != 0x7f);
            WANT(json_parse(&j, edge(buf_str(&b)), &e) == 0);
            SAME(json_str(&j, JSON_ROOT, &a), buf_str(&all), "buf_json");
            arena_free(&a);

            b.n = 0;
            buf_url(&b, edge(in));
            for (s = buf_str(&b), all.n = 0; s.n > 0; s = str_from(s, 1)) {
                uint64_t v = (unsigned char)*s.p;

                WANT(isalnum((unsigned char)*s.p) ||
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
    WANT(!b.bad && b.n == 0 && b.p == NULL);
    for (i = 0; i < 100000; i++)
        buf_byte(&b, (char)i);
    for (i = 0; i < 100000; i++)
        WANT(b.p[i] == (char)i);
    WANT(!buf_need(&b, TEXT_MAX + 1u) && b.bad);
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
        p[i] = arena_alloc(&a, n);
        WANT((uintptr_t)p[i] % sizeof(uint64_t) == 0);
        memset(p[i], (int)(i % 251), n);
    }
    memset(arena_alloc(&a, 1000000), 1, 1000000);
    for (i = 0; i < MANY; i++)
        for (k = 0, n = i * i % 777; k < n; k++)
            WANT((unsigned char)p[i][k] == i % 251);
    arena_free(&a);
    WANT(a.last == NULL);
    arena_free(&a);
    (void)arena_alloc(&a, 1000);
    memset(arena_alloc(&a, 1), 1, 1);
    WANT(a.used == 1001);
    arena_free(&a);
    WANT(a.used == 0);
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
        list_insert(&x, &i[k].link);
    list_is(&x, "abc", __LINE__);
    list_insert(x.next, &i[2].link);        /* moves to the front */
    list_is(&x, "cab", __LINE__);
    list_insert(&y, &i[0].link);            /* moves to another list */
    list_is(&x, "cb", __LINE__);
    list_is(&y, "a", __LINE__);
    list_remove(&i[0].link);
    list_remove(&i[0].link);                  /* from none is no harm */
    WANT(list_empty(&y) && !list_empty(&x));
}

static void text_log(void)
{
    static const struct {
        struct str in, out;
    } row[] = {
        { STR_INIT("plain \xc3\xa9 \xe2\x82\xac"),
          STR_INIT("plain \xc3\xa9 \xe2\x82\xac") },
        { STR_INIT("a\nb\rc\td"), STR_INIT("a\\nb\\u000dc\\u0009d") },
        { STR_INIT("\x1b[2J\x7f"), STR_INIT("\\u001b[2J\\u007f") },
        { STR_INIT("\xc2\x9b" "2J"), STR_INIT("\\u009b2J") },   /* C1's CSI */
        { STR_INIT("\xff\xc0\x80"),
          STR_INIT("\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd") },
        { STR_INIT("\xef\xbf\xbd"), STR_INIT("\xef\xbf\xbd") },
        { STR_INIT("a\0b"), STR_INIT("a\\u0000b") },
        { STR_INIT("\xd8\x9c\xe2\x80\x8e\xe2\x80\x8f"),
          STR_INIT("\\u061c\\u200e\\u200f") },
        { STR_INIT("\xe2\x80\xa8\xe2\x80\xae\xe2\x81\xa6\xe2\x81\xa9"),
          STR_INIT("\\u2028\\u202e\\u2066\\u2069") },
        { STR_INIT("\xe2\x80\x8d\xe2\x80\x90\xe2\x80\xa7\xe2\x80\xaf"),
          STR_INIT("\xe2\x80\x8d\xe2\x80\x90\xe2\x80\xa7\xe2\x80\xaf") },
        { STR_INIT("\xc2\x80\xc2\x9f\xc2\xa0"),
          STR_INIT("\\u0080\\u009f\xc2\xa0") },
    };
    struct buf b = { .max = 0 };
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        b.n = 0;
        buf_escape(&b, edge(row[i].in), false);
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
    struct json j = { .n = 0 };
    struct err e;
    size_t i, n;

    for (i = 0; i < LENGTH(good); i++) {
        ROW(json_parse(&j, edge(good[i]), &e) == 0, good[i].p);
        ROW(j.token[JSON_ROOT].next == j.n, good[i].p);
        for (n = 0; n < str_trim(good[i]).n; n++)
            ROW(isdigit((unsigned char)*good[i].p) || *good[i].p == '-' ||
                json_parse(&j, edge(str_upto(good[i], n)), &e) != 0,
                good[i].p);
    }
    for (i = 0; i < LENGTH(bad); i++)
        ROW(json_parse(&j, edge(bad[i]), &e) != 0, bad[i].p);
    json_free(&j);
}

static void json_size(void)
{
    struct json j = { .n = 0 };
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
    struct json j = { .n = 0 };
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
    WANT(!str_u64(json_get_raw(&j, JSON_ROOT, "big"), UINT64_MAX, &v));
    WANT(!str_u64(json_get_raw(&j, JSON_ROOT, "neg"), UINT64_MAX, &v));
    WANT(!str_u64(json_get_raw(&j, JSON_ROOT, "f"), UINT64_MAX, &v));
    WANT(!str_u64(json_get_raw(&j, JSON_ROOT, "s"), UINT64_MAX, &v));
    WANT(!str_u64(json_get_raw(&j, JSON_ROOT, ""), 4, &v) && v == 7);
    WANT(str_u64(json_get_raw(&j, JSON_ROOT, ""), 5, &v) && v == 5);
    for (i = n = 0; json_next(&j, json_get(&j, JSON_ROOT, "e"), &i);)
        n++;
    for (i = 0; json_next(&j, json_get(&j, JSON_ROOT, "s"), &i);)
        n++;
    for (i = 0; json_next(&j, 0, &i);)
        n++;
    WANT(n == 0);
    arena_free(&a);
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
        { "\\ude00\\ude00", STR_INIT("\xef\xbf\xbd\xef\xbf\xbd") },
        { "\\ud83d\\ue000", STR_INIT("\xef\xbf\xbd\xee\x80\x80") },
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
    struct json j = { .n = 0 };
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
    arena_free(&a);
    buf_free(&b);
    json_free(&j);
}

/* What the splitter finds in `whole`, which comes as two pieces (one of `cut`
 * bytes), or with cut 0 byte by byte: each object and a bar, # for one that is
 * too large, ! for a byte that cannot stand there, and a full stop at the end
 * of a list. */
static struct str split_all(struct buf *out, unsigned depth, char open,
                            struct str whole, size_t cut)
{
    static struct splitter s;
    struct str in;
    size_t n;

    out->n = 0;
    json_split_start(&s, depth, open);
    for (; whole.n > 0; whole = str_from(whole, n)) {
        n = cut == 0 ? 1 : cut < whole.n ? cut : whole.n;
        in = edge(str_upto(whole, n));
        cut = cut == 0 ? 0 : whole.n - n;
        for (;;) {
            int found = json_split(&s, &in);
            bool large = found > 0 && s.element.bad;

            if (found == 0)
                break;
            if (found > 0 && !large)
                buf_add(out, buf_str(&s.element));
            buf_lit(out, large ? "#" : found < 0 ? "!" : "|");
        }
    }
    buf_lit(out, json_split_done(&s) && depth > 0 ? "." : "");
    return buf_str(out);
}

static void json_splits(void)
{
    static const struct {
        unsigned depth;
        char open;
        const char *in, *out;
    } row[] = {
        /* a stream */
        { 0, '{', "{}", "{}|" }, { 0, '{', "", "" },
        { 0, '{', "{'a':1}{'b':[{}]}", "{'a':1}|{'b':[{}]}|" },
        { 0, '{', "\x1e{'a':1}\n\r\n \t{'b':2}\n", "{'a':1}|{'b':2}|" },
        { 0, '{', "{'}{':'\\'}\\\\'}{}", "{'}{':'\\'}\\\\'}|{}|" },
        { 0, '{', "{},{}", "{}|!{}|" }, { 0, '{', "{} x'{}", "{}|!!{}|" },
        { 0, '{', "[{}]", "!{}|!" }, { 0, '{', "{'a':", "" },
        /* the engine's list */
        { 1, '[', "[]", "." }, { 1, '[', " [ ] \n", "." },
        { 1, '[', "[{}, {'a':[1]}\n]\n", "{}|{'a':[1]}|." },
        { 1, '[', "[{}", "{}|" }, { 1, '[', "[{},", "{}|" },
        { 1, '[', "[", "" }, { 1, '[', "[{'a':1", "" },
        { 1, '[', "[1]", "!." }, { 1, '[', "[null,{}]", "!!!!{}|." },
        { 1, '[', "[[],{}]", "!!!!!." },        /* one end too many */
        { 1, '[', "[{}]x", "{}|!." }, { 1, '[', "[{}][{}]", "{}|!!!!." },
        { 1, '[', "{}", "!!" }, { 1, '[', "null", "!!!!" },
        { 1, '[', "\x1e[]", "!." }, { 1, '[', "'[]", "!." },
        { 1, '[', "[{'a':{'b':[']}']}}]", "{'a':{'b':[']}']}}|." },
        /* Consul's */
        { 1, '{', "{}", "." }, { 1, '{', " {\n} ", "." },
        { 1, '{', "{'a':{},'b' : {'c':1}}", "{}|{'c':1}|." },
        { 1, '{', "{'\\'}:{':{}}", "{}|." }, { 1, '{', "{'\\\\':{}}", "{}|." },
        { 1, '{', "{'a':{}", "{}|" }, { 1, '{', "{'a", "" },
        { 1, '{', "{'a':1}", "!" }, { 1, '{', "[]", "!!" },
        { 1, '{', "{{}}", "{}|" }, { 1, '{', "{'a':'b'}", "" },
        { 1, '{', "{'a','b':{}}", "{}|" }, { 1, '[', "['a']", "" },
        { 1, '{', "{}{}", "!!." },
        /* an array in an object, with other members */
        { 2, '{', "{'a':[{'b':{}},{}],'c':[]}", "{'b':{}}|{}|." },
        { 2, '{', "{}", "." }, { 2, '{', "{'a':[]}", "." },
        { 2, '{', "{'h':{'n':7,'s':'x','o':{'p':[{}]},'m':[{},1]},'k':[{}]}",
          "{}|." },
        { 2, '{', "{'k':[{'o':1} ,\n{}],'h':{'o':{}},'n':-1}",
          "{'o':1}|{}|." },
        { 2, '{', "{'k':[{},'x']}", "{}|" },
        { 2, '{', "{'k':[1,{}]}", "!{}|." },
        { 2, '{', "{'k':[{}]", "{}|" }, { 2, '{', "[{}]", "!!." },
        { 2, '{', "{'k':[{}]}{}", "{}|!!." },
        /* an array in an object in an object */
        { 3, '{', "{'a':'g','n':{'d':true,'x':{'y':{}},'k':[{'k':[{}]},{}]}}",
          "{'k':[{}]}|{}|." },
        { 2, '{', "{'h':{'id':'1'},'k':[{}],'n':'1'}", "{}|." },
    };
    struct buf in = { .max = 0 }, out = { .max = 0 }, wanted = { .max = 0 };
    struct str whole;
    size_t i, cut;

    for (i = 0; i < LENGTH(row); i++) {
        whole = quoted(&in, row[i].in);
        (void)quoted(&wanted, row[i].out);
        for (cut = 0; cut <= whole.n; cut++)
            SAME(split_all(&out, row[i].depth, row[i].open, whole, cut),
                 buf_str(&wanted), row[i].in);
    }
    buf_free(&in);
    buf_free(&out);
    buf_free(&wanted);
}

/* One that is too large is passed over, and so is one that is cut there. */
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
        (void)split_all(&out, 1, '[', buf_str(&in), ELEMENT_MAX);
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
            if (found == HTTP_BODY && body.n == 0) {
                buf_fmt(out, "%u", h.status);
                buf_lit(out, h.close ? "c:" : ":");
            } else if (found == HTTP_BODY) {
                buf_add(out, body);
            } else if (found == HTTP_DONE) {
                buf_byte(out, ' ');
                http_start(&h);
                began = in.n > 0;
            }
        } while (found != HTTP_BAD && (found != HTTP_MORE) && began);
        if (in.n > 0)
            memmove(unread.p, in.p, in.n);
        unread.n = in.n;
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
        { OK200 "\r\nto_the_end", "200:to_the_end~" },
        { "HTTP/1.0 200 OK\r\n\r\nold", "200c:old~" },
        { "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" LENGTH_OF("1")
          "\r\nx", "200c:x " },
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
          "503: " },
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
            ROW(ends < all || (all == 0 && ends == 0) ||
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
        STR_INIT("HTTP/1.10 200 x\r\n\r\n"),
        STR_INIT("http/1.1 200 x\r\n\r\n"),
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

/* A field and a chunk's size of just the limit, and of one byte more: the same
 * however they are cut. */
static void http_limits(void)
{
    struct buf in = { .max = 0 }, out = { .max = 0 };
    const struct str field = STR(OK200 LENGTH_OF("0"));
    const struct str size = STR(OK200 CHUNKED "\r\n");
    size_t over, cut;
    struct str got;

    for (over = 0; over < 2; over++) {
        in.n = 0;
        buf_add(&in, field);
        buf_lit(&in, "X: ");
        while (in.n < field.n + HTTP_LINE_MAX - 2 + over)
            buf_byte(&in, 'x');
        buf_lit(&in, "\r\n\r\n");
        for (cut = in.n - 6; cut <= in.n; cut++) {
            got = http_all(&out, buf_str(&in), cut);
            want(str_eq(got, over ? STR("!") : STR("200: ")), __LINE__,
                 "a field of %d bytes, cut at %zu of %zu: %.*s",
                 HTTP_LINE_MAX + (int)over, cut, in.n, PUT(got));
        }
        in.n = 0;
        buf_add(&in, size);
        buf_lit(&in, "1;");
        while (in.n < size.n + HTTP_LINE_MAX - 2 + over)
            buf_byte(&in, 'x');
        buf_lit(&in, "\r\na\r\n0\r\n\r\n");
        for (cut = in.n - 16; cut <= in.n; cut++) {
            got = http_all(&out, buf_str(&in), cut);
            want(str_eq(got, over ? STR("200:!") : STR("200:a ")), __LINE__,
                 "a chunk line of %d bytes, cut at %zu of %zu: %.*s",
                 HTTP_LINE_MAX + (int)over, cut, in.n, PUT(got));
        }
    }
    in.n = 0;                               /* it never ends */
    while (in.n < HTTP_LINE_MAX + 100)
        buf_lit(&in, in.n == 0 ? OK200 "A: " : "bbbb");
    SAME(http_all(&out, buf_str(&in), 0), STR("!"), "a line without end");
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
        { "consul://:1", "consul|||1|" }, { "consul://h:", NULL },
        { "consul://:", NULL },
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
        buf_fmt(&b, "%.*s|%.*s|%.*s|%u|%.*s", PUT(u.scheme), PUT(u.user),
                PUT(u.host), u.port, PUT(u.path));
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
    static const char *const decode[][2] = {    /* NULL: it is refused */
        { "", "" }, { "a+b:c", "a+b:c" }, { "%41%2f%3A", "A/:" },
        { "%25%2541", "%%41" }, { "%ff", "\xff" }, { "a%2", NULL },
        { "%", NULL }, { "%%", NULL }, { "%0g", NULL }, { "%+1", NULL },
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
    for (i = 0; i < LENGTH(decode); i++) {
        bool ok;

        b.n = 0;
        ok = url_decode(&b, edge(str_of(decode[i][0])));
        ROW(ok == (decode[i][1] != NULL), decode[i][0]);
        if (ok)
            SAME(buf_str(&b), str_of(decode[i][1]), decode[i][0]);
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
    struct options f = { .log_level = OPT_ABSENT, .resync = 60,
                         .retry_attempts = OPT_ABSENT,
                         .retry_interval = 2000 };
    const struct { const char *name; const bool *is; } flag[] = {
        { " cleanup", &f.cleanup }, { " confine", &f.confine },
        { " explicit", &f.cfg.only_named },
        { " internal", &f.cfg.internal }, { " once", &f.once },
    };
    const struct { const char *name; const struct str *is; } text[] = {
        { " hostname=", &f.cfg.hostname }, { " ip=", &f.ip },
        { " tags=", &f.cfg.tags }, { " label=", &f.cfg.ip_label },
    };
    char *word[32], *copy = str_dup(str_of(line)), name[] = "registrator";
    char number[128];
    struct err e;
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
    code = opt_read(argc, word, &f, &e);
    quiet(false);
    out->n = 0;
    if (code >= 0) {
        buf_fmt(out, "%d", code);
    } else {
        buf_add(out, f.uri);
        for (i = 0; i < LENGTH(flag); i++)
            buf_lit(out, *flag[i].is ? flag[i].name : "");
        for (i = 0; i < LENGTH(text); i++)
            if (text[i].is->p != NULL) {
                buf_lit(out, text[i].name);
                buf_add(out, *text[i].is);
            }
        buf_lit(out, f.on_success == 1 ? " on-success" : "");
        buf_lit(out, f.deregister_on_exit == 1 ? " deregister" : "");
        if (f.log_level != OPT_ABSENT)
            buf_fmt(out, " level %u", (unsigned)f.log_level);
        if (f.retry_attempts == OPT_ABSENT)
            f.retry_attempts = -9;
        (void)snprintf(number, sizeof number, " %lld %lld %lld %lld %lld",
                       (long long)f.resync, (long long)f.retry_attempts,
                       (long long)f.retry_interval, (long long)f.ttl,
                       (long long)f.ttl_refresh);
        buf_lit(out, str_eq(str_of(number), STR(" 60 -9 2000 0 0"))
                         ? "" : number);
        free((void *)(uintptr_t)f.uri.p);
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
        { "-cleanup -cleanup=0 u:", "u:" },
        { "-internal=1 u:", "u: internal" },
        { "-explicit -once u:", "u: explicit once" },
        { "-ip 1.2.3.4 u:", "u: ip=1.2.3.4" },
        { "--ip=1.2.3.4 u:", "u: ip=1.2.3.4" },
        { "-ip= u:", "u: ip=" }, { "-ip _ u:", "u: ip=" },
        { "-tags=a=b,c u:", "u: tags=a=b,c" }, { "-ip -ip u:", "u: ip=-ip" },
        { "-ip a -ip b u:", "u: ip=b" }, { "-ip -- u:", "u: ip=--" },
        { "-hostname h -useIpFromLabel l -deregister on-success -on-exit "
          "deregister -log-level debug u:", "u: hostname=h label=l on-success "
          "deregister level 3" },
        { "-deregister always -on-exit=keep -log-level error u:",
          "u: level 0" },
        { "-log-level warn u:", "u: level 1" },
        { "-deregister _ u:", "1" }, { "-deregister=or u:", "1" },
        { "-on-exit keep\" u:", "1" }, { "-log-level Info u:", "1" },
        { "-resync 30 -ttl 10 -ttl-refresh=5 u:", "u: 30 -9 2000 10 5" },
        { "-resync=0 u:", "u: 0 -9 2000 0 0" },
        { "-retry-attempts -1 -retry-interval=1 u:", "u: 60 -1 1 0 0" },
        { "-retry-attempts=3 u:", "u: 60 3 2000 0 0" },
        { "-confine u:", "u: confine" }, { "-confine=false u:", "u:" },
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
        ROW(str_bool(str_of(word[i]), &on) == (i < 12) &&
            (i >= 12 || on == (i < 6)), word[i]);
    for (i = 0; i < LENGTH(number); i++)
        ROW(opt_number(edge(str_of(number[i].text)), &o, &v) == number[i].ok &&
            (!number[i].ok || v == number[i].value), number[i].text);
}

/* -ip: an address, a name with a dot, the name of an interface, which may not
 * be there yet, or none of these. */
static void opt_addresses(void)
{
    static const struct {
        const char *ip;
        bool ok, interface;
    } row[] = {
        { "", true, false }, { "10.1.2.3", true, false },
        { "::1", true, false }, { "fd00::1:2", true, false },
        { "web.example.test", true, false }, { "a.b", true, false },
        { "h1.example2", true, false }, { "web.", true, false },
        { "lo", true, true }, { "nosuch0", true, true },
        { "eth0.100", true, true }, { "br-0a1b2c3d4e5f", true, true },
        { "10.1.2", false, false }, { "10.1.2.3/24", false, false },
        { "10.1.2.3.4", false, false }, { "256.1.1.1", false, false },
        { "1234", false, false }, { "a/b", false, false },
        { "a:b", false, false }, { "a b", false, false },
        { "a b.c", false, false }, { "sixteen_letters_", false, false },
        { "[::1]", false, false }, { "10.1.2.3:80", false, false },
    };
    static struct containers cs;
    struct err e;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        cs.ip_is_interface = false;
        ROW((opt_ip(&cs, str_of(row[i].ip), &e) == 0) == row[i].ok, row[i].ip);
        ROW(!row[i].ok || cs.ip_is_interface == row[i].interface, row[i].ip);
        if (row[i].ok)
            SAME(cs.ip, str_of(row[i].ip), row[i].ip);
    }
}

/* Registry URIs: where they lead, PATH or HOST PORT [tls], and user and
 * password; or a part of the reason why they are refused. */
static void opt_uris(void)
{
    static const struct {
        const char *uri, *out;
    } row[] = {
        { "consul:", "127.0.0.1 8500" }, { "consul://", "127.0.0.1 8500" },
        { "consul:///", "127.0.0.1 8500" }, { "consul://h", "h 8500" },
        { "consul://h:1/", "h 1" }, { "consul://[::1]:1", "::1 1" },
        { "consul://u:p%40@h", "h 8500 Authorization: Basic dTpwQA==" },
        { "consul://u@h", "h 8500 Authorization: Basic dTo=" },
        { "consul-unix:///a@b/c", "/a@b/c" }, { "print:", "" },
        { "print://", "" },
        { "consul", "no scheme" }, { "print", "print: needs its colon" },
        { "print:x", "as in print:, without" },
        { "print:///", "as in print:, without" },
        { "consul:h:1", "did you mean consul://h:1?" },
        { "consul:/h", "did you mean consul://h?" },
        { "consul://h/p", "without another path or query" },
        { "consul://h?q", "without another path or query" },
        { "consul://h#f", "without another path or query" },
        { "consul-unix:a", "as in consul-unix:///path" },
        { "consul-unix://a/b", "as in consul-unix:///path" },
        { "consul-unix:///", "/" },
        { "CONSUL://h", "did you mean consul://h?" },
        { "Print:", "did you mean print:?" },
        { "http://h:1", "did you mean consul://h:1?" },
        { "https://h:1", "did you mean consul-tls://h:1?" },
        { "localhost:8500", "did you mean consul://localhost:8500?" },
        { "zookeeper://h/p", "ZooKeeper is not supported" },
        { "nosuch://h", "the known ones are consul, consul-tls, consul-unix, "
          "print" },
        { "consul://h:0", "not valid" }, { "consul://h:x", "not valid" },
        { "consul://%zz@h", "without two hexadecimal" },
        { "nosuch://s3cr3t@h", "unknown registry" },
        { "consul:s3cr3t@h", "needs //" },
    };
    static struct app app;
    struct buf out = { .max = 0 };
    struct err e;
    size_t i;
    int ok;

    for (i = 0; i < LENGTH(row); i++) {
        struct endpoint *p = &app.reg.peer;
        struct consul *c;

        memset(&app, 0, sizeof app);
        app.opt.uri = edge(str_of(row[i].uri));
        app.opt.log_level = LOG_INFO;
        quiet(true);
        ok = app_open_registry(&app, &e);
        quiet(false);
        c = app.reg.kind == &consul_kind ? app.reg.own : NULL;
        out.n = 0;
        if (ok != 0) {
            buf_add(&out, str_of(e.text));
        } else if (p->path.n > 0) {
            buf_add(&out, p->path);
        } else if (p->host.n > 0) {
            buf_fmt(&out, "%.*s %u", PUT(p->host), p->port);
            if (p->headers.n > 0)
                buf_fmt(&out, " %.*s", PUT(str_trim(buf_str(&p->headers))));
        }
        if (ok == 0)
            SAME(buf_str(&out), str_of(row[i].out), row[i].uri);
        else
            want(*row[i].out != '\0' &&
                 str_find(buf_str(&out), str_of(row[i].out)) < out.n, __LINE__,
                 "%s: %s", row[i].uri, e.text);
        if (c != NULL)
            buf_free(&c->user);
        free(c);
        buf_free(&p->headers);
        buf_free(&p->host_header);
    }
    buf_free(&out);
}

/* ---- Docker ---- */

#define ACTOR "'Actor':{'ID':'@','Attributes':{"
static const struct {
    const char *in;
    enum docker_action action;
    unsigned code;
} event_rows[] = {
    /* Docker 1.3 */
    { "{'status':'start','id':'@','from':'base:latest','time':1}",
      DOCKER_CHANGED, 1 },
    { "{'status':'die','id':'@','from':'b','time':1}", DOCKER_DIED,
      1 },
    { "{'status':'destroy','id':'@','from':'b','time':1}", DOCKER_GONE,
      1 },
    { "{'status':'pull','id':'base:latest','time':1}", DOCKER_OTHER, 0 },
    { "{'status':'untag','id':'@','time':1}", DOCKER_OTHER, 0 },
    /* Docker 1.10 to 28 */
    { "{'status':'die','id':'@','from':'b','Type':'container','Action':"
      "'die'," ACTOR "'exitCode':'137','image':'b'}},'scope':'local'}",
      DOCKER_DIED, 137 },
    { "{'status':'pause','id':'@','Type':'container','Action':'pause',"
      ACTOR "}}}", DOCKER_CHANGED, 1 },
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
      "'scope':'local','time':1,'timeNano':2}", DOCKER_CHANGED,
      1 },
    { "{'Type':'container','Action':'rename'," ACTOR "'oldName':'/a'}}}",
      DOCKER_CHANGED, 1 },
    { "{'Type':'container','Action':'update'," ACTOR "}}}", DOCKER_CHANGED,
      1 },
    { "{'Type':'container','Action':'unpause'," ACTOR "}}}", DOCKER_CHANGED,
      1 },
    /* Podman */
    { "{'status':'restore','id':'@','Type':'container','Action':'restore',"
      ACTOR "}}}", DOCKER_CHANGED, 1 },
    { "{'status':'died','id':'@','Type':'container','Action':'died',"
      ACTOR "'containerExitCode':'1'}}}", DOCKER_DIED, 1 },
    { "{'status':'remove','id':'@','Type':'container','Action':'remove',"
      ACTOR "}}}", DOCKER_GONE, 1 },
    { "{'status':'','id':'','Type':'container','Action':'died'," ACTOR
      "'exitCode':'0'}}}", DOCKER_DIED, 0 },
    { "{'Type':'pod','Action':'start'," ACTOR "}}}", DOCKER_OTHER, 0 },
    { "{'Type':'network','Action':'connect'," ACTOR "'name':'n'}}}",
      DOCKER_NETWORK, 1 },
    /* what is none */
    { "{'Type':'container','Action':'start','Actor':{'ID':'abc'}}",
      DOCKER_OTHER, 0 },
    { "{'Type':'container','Action':'start','Actor':null}",
      DOCKER_OTHER, 0 },
    { "{'status':'start','id':7}", DOCKER_OTHER, 0 },
    { "{'status':{'a':'start'},'id':'@'}", DOCKER_OTHER, 0 },
    { "{'Type':'container','Action':'die'," ACTOR "'exitCode':'-1'}}}",
      DOCKER_DIED, 1 },
    { "{}", DOCKER_OTHER, 0 }, { "[]", DOCKER_OTHER, 0 },
    { "null", DOCKER_OTHER, 0 }, { "'start'", DOCKER_OTHER, 0 },
};

static void docker_events(void)
{
    struct json j = { .n = 0 };
    struct buf text = { .max = 0 }, id = { .max = 0 };
    struct docker_event ev;
    struct err e;
    size_t i;

    for (i = 0; i < LENGTH(event_rows); i++) {
        bool is;

        ROW(json_parse(&j, edge(quoted(&text, event_rows[i].in)), &e) == 0,
            event_rows[i].in);
        is = docker_event(&j, &ev);
        ROW(is == (event_rows[i].action != DOCKER_OTHER), event_rows[i].in);
        if (!is)
            continue;
        ROW(ev.action == event_rows[i].action, event_rows[i].in);
        ROW(ev.action != DOCKER_DIED || ev.exit_code == event_rows[i].code,
            event_rows[i].in);
        SAME(ev.id, quoted(&id, "@"), event_rows[i].in);
    }
    json_free(&j);
    buf_free(&text);
    buf_free(&id);
}

static void docker_rows(void)
{
    static const struct {
        const char *in;
        bool ok, stopped;
        unsigned code;
    } row[] = {
        { "{'Id':'@','Names':['/web'],'Status':'Up 3 minutes'}", true, false,
          0 },
        { "{'Id':'@','State':'running','Status':'Up 1 second (healthy)'}",
          true, false, 0 },
        { "{'Id':'@','Status':'Up 3 minutes (Paused)'}", true, false, 0 },
        { "{'Id':'@','Status':'Up 3 minutes (7)'}", true, false, 0 },
        { "{'Id':'@','Status':'Exited (137) 2 hours ago'}", true, true, 137 },
        { "{'Id':'@','Status':'Exited (0) 2 hours ago'}", true, true, 0 },
        { "{'Id':'@','Status':'Exited (256) 2 hours ago'}", true, true, 0 },
        { "{'Id':'@','Status':'Exited'}", true, true, 0 },
        { "{'Id':'@','Status':'Restarting (5) 1 second ago'}", true, false,
          0 },
        { "{'Id':'@','Status':'Created'}", true, true, 0 },
        { "{'Id':'@','Status':'Dead'}", true, true, 0 },
        { "{'Id':'@','Status':'Frozen (1)'}", true, false, 0 },
        { "{'Id':'@','Names':null,'Status':''}", true, false, 0 },
        { "{'Id':'@'}", true, false, 0 },
        { "{'Id':'@','Names':'/w','Ports':7}", true, false, 0 },
        { "{'Id':'abc','Names':['/w']}", false, false, 0 },
        { "{'Names':['/w']}", false, false, 0 }, { "{}", false, false, 0 },
        { "[]", false, false, 0 },
    };
    static const char *const digest[] = {   /* two and two are the same */
        "{'Id':'@','Names':['/a'],'Status':'Up 3 minutes'}",
        "{'Id':'@','Names':['/a'],'Status':'Up 4 hours'}",
        "{'Id':'@','Names':['/b'],'Status':'Up 3 minutes'}",
        "{'Id':'@','Names':['/b'],'Status':'Up 4 minutes','Created':5}",
        "{'Id':'@','Names':['/b','/x/y'],'Status':'Up 3 minutes'}",
        "{'Id':'@','Status':'Up 4 minutes','Names':['/b','/x/y']}",
        "{'Id':'@','Status':'Up 3 minutes (healthy)'}",
        "{'Id':'@','Status':'Up 4 minutes (healthy)'}",
        "{'Id':'@','Status':'Up 3 minutes (unhealthy)'}",
        "{'Id':'@','Status':'Up 4 minutes (unhealthy)'}",
        "{'Id':'@','Status':'Exited (0) 1 hour ago'}",
        "{'Id':'@','Status':'Exited (0) 2 hours ago'}",
        "{'Id':'@','Status':'Exited (1) 1 hour ago'}",
        "{'Id':'@','Status':'Exited (1) 2 hours ago'}",
        "{'Id':'@','Names':['/a'],'Ports':[{'a':1},{'b':2}]}",
        "{'Id':'@','Names':['/a'],'Ports':[{'b':2},{'a':1}]}",
        "{'Id':'@','Names':['/a'],'Ports':[{'a':2},{'b':2}]}",
        "{'Id':'@','Names':['/a'],'Ports':[{'b':2},{'a':2}]}",
        "{'Id':'@','State':'paused'}", "{'State':'paused','Id':'@'}",
        "{'Id':'@','NetworkSettings':{'Networks':{'a':1}}}",
        "{'NetworkSettings':{'Networks':{'a':1}},'Id':'@'}",
    };
    uint64_t seen[LENGTH(digest)];
    struct json j = { .n = 0 };
    struct buf text = { .max = 0 };
    struct docker_row r;
    struct err e;
    size_t i, k;

    for (i = 0; i < LENGTH(row); i++) {
        ROW(json_parse(&j, edge(quoted(&text, row[i].in)), &e) == 0,
            row[i].in);
        ROW(docker_row(&j, &r) == row[i].ok, row[i].in);
        ROW(r.stopped == row[i].stopped && r.exit_code == row[i].code,
            row[i].in);
    }
    for (i = 0; i < LENGTH(digest); i++) {
        ROW(json_parse(&j, edge(quoted(&text, digest[i])), &e) == 0,
            digest[i]);
        ROW(docker_row(&j, &r), digest[i]);
        seen[i] = r.digest;
        for (k = 0; k < i; k++)
            ROW((seen[k] == seen[i]) == (k / 2 == i / 2), digest[i]);
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
    buf_fmt(b, "%.*s %.*s %.*s", PUT(c->name), PUT(c->image), PUT(c->mode));
    if (c->running)
        buf_lit(b, " runs");
    else
        buf_fmt(b, " ended %u", c->exit_code);
    for (i = 0; i < c->ports; i++) {
        const struct docker_port *p = &c->port[i];

        buf_fmt(b, " %u/%s%s%s", p->number, proto[p->proto],
                p->listed ? "L" : "", p->exposed ? "E" : "");
        if (p->host_port > 0) {
            buf_byte(b, '=');
            url_put(b, p->host_ip, p->host_port);
        }
    }
    for (i = 0; i < c->networks; i++)
        buf_fmt(b, " %.*s@%.*s", PUT(c->network[i].name),
                PUT(c->network[i].ip));
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
                "{},null,{'HostPort':'70000'}],'81/tcp':[]}"),
          "n i  runs 80/tcpL 81/tcpL" },
        { PORTS("{'53/udp':null,'53/tcp':null,'9/sctp':null,'7':null,"
                "'53/UDP':[{'HostPort':'5'}],'0/tcp':null,'x/tcp':null,"
                "'80/icmp':null,'70000/tcp':null}"),
          "n i  runs 7/tcpL 9/sctpL 53/tcpL 53/udpL=:5" },
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
          "n   runs web@10.0.0.2 app@fd00::2 none@" },
        /* environment and labels */
        { HEAD RUNS "'Config':{'Env':['A=1','B','C=','D=x=y\\nz','=e',7,null],"
          "'Labels':{'L':'v','M':null,'':''}},'NetworkSettings':{'Networks':"
          "{}}}", "n   runs A=1 C= D=x=y\nz =e -l L=v -l M= -l =" },
        { HEAD RUNS "'Config':{'Env':null,'Labels':null,'ExposedPorts':null},"
          "'HostConfig':null,'NetworkSettings':{}}", "n   runs bridge@" },
        { HEAD RUNS "'Config':{'Labels':['x','y'],'Env':{'A=1':2}},"
          "'NetworkSettings':{}}", "n   runs bridge@ A=1=" },
        { "{'Id':'@','Name':'noslash','State':{'Running':false,'ExitCode':"
          "256},'Config':{}}", "noslash   ended 0 bridge@" },
        /* no containers */
        { "{'Id':'@','Name':'','State':{'Running':false},'Config':{}}", NULL },
        { "{'Id':'abc','Name':'/n','State':{'Running':false},'Config':{}}",
          NULL },
        { HEAD "'State':{},'Config':{}}", NULL },
        { HEAD "'State':null,'Config':{}}", NULL },
        { HEAD "'State':{'Running':'true'},'Config':{}}", NULL },
        { HEAD "'State':{'Running':null},'Config':{}}", NULL },
        { HEAD RUNS "'Config':{}}", NULL },
        { HEAD RUNS "'Config':{},'NetworkSettings':null}", NULL },
        { HEAD RUNS "'Config':{},'NetworkSettings':[]}", NULL },
        { "{'Id':'@','Name':'/n','Config':{}}", NULL },
        { "{'Id':'@','Name':'/n','State':{'Running':false}}", NULL },
        { "{'message':'No such container: x'}", NULL }, { "[]", NULL },
        { "null", NULL },
    };
    struct json j = { .n = 0 };
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

/* Which networks are known, and which of them are on the wire: where that
 * matters. */
static void docker_wires(void)
{
    static const char *const in =
        "[{'Id':'@','Driver':'macvlan'},{'Id':'x','Driver':'macvlan'},null,"
        "{'Driver':'ipvlan'},{'Id':'%','Driver':'bridge'},{'Id':'$'},"
        "{'Id':'&','Driver':'ipvlan'}]";
    static const struct {
        const char *ids;            /* of the container's networks */
        bool known;
        const char *routable;
    } row[] = {
        { "", true, "" }, { "@", true, "+" }, { "%", true, "-" },
        { "$", true, "-" }, { "@%", true, "+-" }, { "@&", true, "++" },
        { "!", false, "-" }, { "@!", false, "+-" }, { "x", true, "+" },
    };
    struct json j = { .n = 0 };
    struct buf text = { .max = 0 }, known = { .max = 0 };
    char id[127][64];
    struct err e;
    size_t i, k;

    for (i = '!'; i < LENGTH(id); i++)      /* an ID for each character */
        for (k = 0; k < 64; k++)
            id[i][k] = "0123456789abcdef"[(k + i) % 16];
    for (i = 0; in[i] != '\0'; i++)
        if (strchr("@%$&", in[i]) != NULL)
            for (k = 0; k < 64; k++)
                buf_byte(&text, id[(size_t)in[i]][k]);
        else
            buf_byte(&text, in[i] == '\'' ? '"' : in[i]);
    WANT(json_parse(&j, edge(buf_str(&text)), &e) == 0);
    buf_lit(&known, "what was known before");
    docker_read_networks(&known, &j);
    for (i = 0; i < LENGTH(row); i++) {
        struct docker_network n[2];
        struct docker_port port = { .number = 80, .exposed = true };
        struct docker_container c = { .running = true, .port = &port,
                                      .ports = 1, .network = n };

        memset(n, 0, sizeof n);
        for (k = 0; row[i].ids[k] != '\0'; k++) {
            n[k].id.p = row[i].ids[k] == 'x' ? "x"
                                             : id[(size_t)row[i].ids[k]];
            n[k].id.n = row[i].ids[k] == 'x' ? 1 : 64;
        }
        c.networks = k;
        ROW(docker_set_routable(&c, edge(buf_str(&known)), false) ==
            row[i].known, row[i].ids);
        for (k = 0; k < c.networks; k++)
            ROW(n[k].routable == (row[i].routable[k] == '+'), row[i].ids);
    }
    json_free(&j);
    buf_free(&text);
    buf_free(&known);
}

/* Whether the networks of a container have to be known, with Docker and with
 * Podman. */
static void docker_wires_matter(void)
{
    static const struct {
        const char *ports, *exposed, *mode;
        bool docker, podman;
    } row[] = {
        { "", "", "bridge", false, false },
        { "'80/tcp':null", "", "bridge", false, true },
        { "'80/tcp':null", "'80/tcp':{}", "bridge", false, true },
        { "'80/tcp':null", "'81/tcp':{}", "bridge", true, true },
        { "", "'80/tcp':{}", "lan", true, true },
        { "", "'80/tcp':{}", "host", false, false },
        { "", "'80/tcp':{}", "none", false, false },
        { "", "'80/tcp':{}", "container:x", false, false },
    };
    struct json j = { .n = 0 };
    struct buf in = { .max = 0 }, text = { .max = 0 };
    struct err e;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        struct docker_container *c;

        in.n = 0;
        buf_fmt(&in, "{'Id':'@','Name':'/n','State':{'Running':true},'Config':"
                "{'ExposedPorts':{%s}},'HostConfig':{'NetworkMode':'%s'},"
                "'NetworkSettings':{'Ports':{%s},'Networks':{'a':{'NetworkID':"
                "'@'}}}}", row[i].exposed, row[i].mode, row[i].ports);
        buf_byte(&in, '\0');
        WANT(json_parse(&j, edge(quoted(&text, in.p)), &e) == 0);
        c = docker_inspect(&j);
        WANT(c != NULL);
        want(docker_set_routable(c, STR(""), false) == !row[i].docker &&
             docker_set_routable(c, STR(""), true) == !row[i].podman,
             __LINE__, "row %zu", i);
        c->running = false;
        want(docker_set_routable(c, STR(""), true), __LINE__, "row %zu", i);
        docker_free(c);
    }
    json_free(&j);
    buf_free(&in);
    buf_free(&text);
}

/* What Podman lists, where each network is on the wire, and where one is
 * not. */
static void docker_podman_ports(void)
{
    static const char *const in =
        HEAD RUNS "'Config':{'ExposedPorts':{'80/tcp':{},'81/tcp':{}}},"
        "'NetworkSettings':{'Ports':{'80/tcp':[{'HostIp':'','HostPort':'8'}],"
        "'81/tcp':null},'Networks':{'a':{'IPAddress':'1.1.1.1','NetworkID':"
        "'@'},'b':{'IPAddress':'2.2.2.2','NetworkID':'wire'}}}}";
    static const char *const listed =
        "n   runs 80/tcpLE=:8 81/tcpLE a@1.1.1.1 b@2.2.2.2";
    static const struct {
        bool podman;
        const char *known, *out;
    } row[] = {
        { false, "'@'+", listed }, { true, "", listed },
        { true, "'@'-'wire'+", listed }, { true, "'@'+", listed },
        { true, "'@'+'wire'+", "n   runs 80/tcpE 81/tcpE a@1.1.1.1 b@2.2.2.2" },
    };
    struct json j = { .n = 0 };
    struct buf text = { .max = 0 };
    struct err e;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        struct docker_container *c;

        WANT(json_parse(&j, edge(quoted(&text, in)), &e) == 0);
        c = docker_inspect(&j);
        (void)docker_set_routable(c, quoted(&text, row[i].known),
                                  row[i].podman);
        SAME(container_text(&text, c), str_of(row[i].out), row[i].known);
        docker_free(c);
    }
    json_free(&j);
    buf_free(&text);
}

/* Which 404 says that there is no such container. */
static void docker_gone(void)
{
    static const struct {
        const char *body;           /* @ is the ID */
        bool gone;
    } row[] = {
        { "No such container: @\n", true },
        { "{'message':'No such container: @'}", true },
        { "no such id: @\n", true },
        { "{'cause':'no such container','message':'no container with name or "
          "ID \\'@\\' found: no such container','response':404}", true },
        { "", false }, { "404 page not found", false },
        { "No such container: 0123", false }, { "@", false },
        { "<h1>Not Found</h1> /containers/@/json was not found", false },
        { "No such path: /v1.41/containers/@/json", false },
        { "Cannot GET /containers/@/json", false },
    };
    struct buf text = { .max = 0 }, id = { .max = 0 };
    size_t i;

    (void)quoted(&id, "@");
    for (i = 0; i < LENGTH(row); i++)
        ROW(docker_is_gone(edge(quoted(&text, row[i].body)), buf_str(&id)) ==
            row[i].gone, row[i].body);
    buf_free(&text);
    buf_free(&id);
}

/* Who an engine is, by its /info. */
static void docker_engines(void)
{
    static const char *const row[][3] = {   /* /info, of Docker, of Podman */
        { "{'ID':'A:B','Name':'n'}", "A:B", "n" },
        { "{'ID':'','Name':'n'}", "n", "n" }, { "{'Name':'n'}", "n", "n" },
        { "{'ID':'A:B'}", "A:B", "" }, { "{'ID':7,'Name':null}", "", "" },
        { "[]", "", "" },
        { "{'ID':'A:B','Name':'n','DockerRootDir':'/r'}", "A:B", "n/r" },
        { "{'ID':'A:B','DockerRootDir':'/r'}", "A:B", "" },
        { "{'Name':'n','DockerRootDir':'/r'}", "n", "n/r" },
    };
    static const char *const version[] = {  /* the first two are Podman's */
        "{'Components':[{'Name':'Conmon'},{'Name':'Podman Engine'}]}",
        "{'ID':'a-b','Name':'n','BuildahVersion':'1.28.2'}",
        "{'Components':[{'Name':'Engine'}],'Version':'20.10'}",
        "{'Version':'1.3'}", "{'Components':null}", "{'Components':[7]}",
    };
    struct json j = { .n = 0 };
    struct buf text = { .max = 0 };
    struct arena a = { NULL };
    struct err e;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        WANT(json_parse(&j, edge(quoted(&text, row[i][0])), &e) == 0);
        SAME(docker_identity(&j, false, &a), str_of(row[i][1]), row[i][0]);
        SAME(docker_identity(&j, true, &a), str_of(row[i][2]), row[i][0]);
    }
    for (i = 0; i < LENGTH(version); i++) {
        WANT(json_parse(&j, edge(quoted(&text, version[i])), &e) == 0);
        ROW(docker_is_podman(&j) == (i < 2), version[i]);
    }
    arena_free(&a);
    json_free(&j);
    buf_free(&text);
}

/* An inspect of BODY_MAX bytes that is full of `what`: to be taken or to be
 * refused, but not to end the program, since containers' authors fill it. */
static void docker_fill(const char *what)
{
    struct json j = { .n = 0 };
    struct buf b = { .max = 0 }, text = { .max = 0 };
    struct svc_config cfg = { .hostname = STR_INIT("h") };
    struct svc_notes notes = { .first = NULL };
    struct docker_container *c = NULL;
    struct err e;
    size_t head, n = strlen(what);

    buf_add(&b, quoted(&text, "{'Id':'@','Name':'/n','State':{'Running':true}"
                              ",'NetworkSettings':{},'Config':{'Env':["));
    if (*what == 'x' || str_find(str_of(what), STR(":")) < n) {
        b.n -= strlen("'Env':[");
        buf_add(&b, quoted(&text, "'Labels':{"));
    }
    if (*what == 'x')
        buf_lit(&b, "\"SERVICE_X\":\"");
    for (head = b.n; b.n + n + 8 < BODY_MAX;)
        buf_add(&b, quoted(&text, what + (b.n == head && *what == ',')));
    buf_lit(&b, *what == 'x' ? "\"}}}" : b.p[head - 1] == '{' ? "}}}"
                                                              : "]}}");
    if (json_parse(&j, buf_str(&b), &e) == 0)
        c = docker_inspect(&j);
    if (c != NULL)
        svc_free(svc_derive(&cfg, c, NULL, NULL, &notes));
    docker_free(c);
    _exit(0);
}

static void docker_largest(void)
{
    static const char *const row[] = {
        ",''", ",'='", ",'SERVICE_='", ",'':''", ",'SERVICE_':''", ",[]",
        "x"
    };
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        int status = 0;
        pid_t child;

        quiet(true);
        child = fork();
        if (child == 0)
            docker_fill(row[i]);
        ROW(child > 0 && waitpid(child, &status, 0) == child, row[i]);
        quiet(false);
        want(status == 0, __LINE__, "%d bytes of %s: status %d", BODY_MAX,
             row[i], status);
    }
}

/* ---- Services ---- */

/* A container in few words.  Lists are split at blanks or, the variables, at
 * bars.  A port is NUMBER[/PROTO][=[IP@]HOSTPORT], a network NAME[=IP][!],
 * where ! says that its addresses are on the wire. */
struct box {
    const char *image, *ports, *exposed, *mode, *networks, *env, *labels;
    const char *name;
    bool ended;
    unsigned exit_code;
};

static void box_ports(struct buf *b, struct str list, bool bindings)
{
    bool first = true;

    buf_byte(b, '{');
    while (list.n > 0) {
        struct str port = str_cut(&list, ' '), key = str_cut(&port, '=');
        struct str ip = port;

        buf_lit(b, first ? "\"" : ",\"");
        first = false;
        buf_add(b, key);
        buf_lit(b, str_index(key, '/') == key.n ? "/tcp\":" : "\":");
        if (port.n > 0) {
            ip = str_cut(&port, '@');
            if (port.n == 0) {
                port = ip;
                ip = STR("0.0.0.0");
            }
            buf_lit(b, "[{\"HostIp\":");
            buf_json(b, ip);
            buf_lit(b, ",\"HostPort\":");
            buf_json(b, port);
            buf_lit(b, "}]");
        } else {
            buf_lit(b, bindings ? "null" : "{}");
        }
    }
    buf_byte(b, '}');
}

static void box_vars(struct buf *b, struct str list, bool object)
{
    bool first = true;

    buf_byte(b, object ? '{' : '[');
    while (list.n > 0) {
        struct str var = str_cut(&list, '|');

        buf_lit(b, first ? "" : ",");
        first = false;
        if (object) {
            buf_json(b, str_cut(&var, '='));
            buf_byte(b, ':');
        }
        buf_json(b, var);
    }
    buf_byte(b, object ? '}' : ']');
}

static struct str box_word(const char *text, const char *usual)
{
    return str_of(text == NULL ? usual : text);
}

/* What the engine's inspect says of it. */
static struct str box_text(struct buf *b, const struct box *x)
{
    struct buf id = { .max = 0 };
    struct str nets = box_word(x->networks, "bridge=172.17.0.2");
    bool first = true;

    b->n = 0;
    buf_lit(b, "{\"Id\":");
    buf_json(b, quoted(&id, "@"));
    buf_lit(b, ",\"Name\":\"/");
    buf_add(b, box_word(x->name, "c"));
    buf_lit(b, "\",\"Image\":\"sha256:c0ffee0123\",\"State\":{\"Running\":");
    buf_lit(b, x->ended ? "false" : "true");
    buf_fmt(b, ",\"ExitCode\":%u},\"Config\":{\"Image\":", x->exit_code);
    buf_json(b, box_word(x->image, "web"));
    buf_lit(b, ",\"ExposedPorts\":");
    box_ports(b, box_word(x->exposed, ""), false);
    buf_lit(b, ",\"Env\":");
    box_vars(b, box_word(x->env, ""), false);
    buf_lit(b, ",\"Labels\":");
    box_vars(b, box_word(x->labels, ""), true);
    buf_lit(b, "},\"HostConfig\":{\"NetworkMode\":");
    buf_json(b, box_word(x->mode, "bridge"));
    buf_lit(b, "},\"NetworkSettings\":{\"Ports\":");
    box_ports(b, box_word(x->ports, ""), true);
    buf_lit(b, ",\"Networks\":{");
    while (nets.n > 0) {
        struct str net = str_cut(&nets, ' '), name = str_cut(&net, '=');

        buf_lit(b, first ? "" : ",");
        first = false;
        buf_json(b, name);
        buf_lit(b, ":{\"IPAddress\":");
        buf_json(b, str_upto(net, str_index(net, '!')));
        buf_lit(b, ",\"NetworkID\":\"id-of-");
        buf_add(b, name);
        buf_lit(b, str_suffix(net, STR("!")) ? "!\"}" : "\"}");
    }
    buf_lit(b, "}}}");
    buf_free(&id);
    return buf_str(b);
}

/* The container itself, by way of that. */
static struct docker_container *box_open(const struct box *x)
{
    struct json j = { .n = 0 };
    struct buf b = { .max = 0 };
    struct docker_container *c;
    struct err e;
    size_t i;

    CHECK(json_parse(&j, edge(box_text(&b, x)), &e) == 0);
    c = docker_inspect(&j);
    CHECK(c != NULL);
    for (i = 0; i < c->networks; i++)
        c->network[i].routable = str_suffix(c->network[i].id, STR("!"));
    json_free(&j);
    buf_free(&b);
    return c;
}

/* Its services in a line: `id name address:port [tags] {attributes}`; of one
 * that is only kept, `id kept`. */
static struct str services_text(struct buf *b, const struct svc_set *set)
{
    size_t i, k;

    b->n = 0;
    for (i = 0; i < set->n; i++) {
        const struct service *s = &set->service[i];

        buf_lit(b, b->n > 0 ? " | " : "");
        buf_add(b, s->id);
        if (s->kept) {
            buf_lit(b, " kept");
            continue;
        }
        buf_fmt(b, " %.*s ", PUT(s->name));
        url_put(b, s->address, s->port);
        for (k = 0; k < s->tags; k++)
            buf_fmt(b, "%s%.*s", k > 0 ? "," : " [", PUT(s->tag[k]));
        buf_lit(b, s->tags > 0 ? "]" : "");
        for (k = 0; k < s->attrs; k++)
            buf_fmt(b, "%s%.*s=%.*s", k > 0 ? " " : " {", PUT(s->attr[k]->key),
                    PUT(s->attr[k]->value));
        buf_lit(b, s->attrs > 0 ? "}" : "");
    }
    return buf_str(b);
}

/* What the notes say, a line each, after the digit of its level, with the
 * number of others like it; and frees them. */
static struct str notes_text(struct buf *b, struct svc_notes *notes)
{
    const struct svc_note *note;

    b->n = 0;
    for (note = notes->first; note != NULL; note = note->next) {
        buf_fmt(b, "%d%s%.*s", (int)note->level,
                note->ignored ? "ignored: " : "", PUT(note->text));
        if (note->others > 0)
            buf_fmt(b, " +%zu", note->others);
        buf_byte(b, '\n');
    }
    arena_free(&notes->arena);
    memset(notes, 0, sizeof *notes);
    return buf_str(b);
}

struct svc_row {
    const char *why;
    struct svc_config cfg;
    struct box box;
    const struct box *shared;   /* whose network it shares */
    const struct box *before;   /* as it was while it ran */
    const char *out, *notes;    /* a part of the notes; NULL: there are none */
};

static void svc_rows(const struct svc_row *row, size_t n)
{
    struct buf out = { .max = 0 }, again = { .max = 0 }, id = { .max = 0 };
    struct buf notes_one = { .max = 0 }, notes_two = { .max = 0 };
    size_t i, k;

    for (i = 0; i < n; i++) {
        struct svc_config cfg = row[i].cfg;
        struct svc_notes notes = { .first = NULL };
        struct docker_container *c = box_open(&row[i].box), *shared, *past;
        struct svc_set *set, *before = NULL;

        cfg.hostname = STR("h");
        cfg.host = cfg.no_host ? STR("") : STR("10.0.0.9");
        shared = row[i].shared != NULL ? box_open(row[i].shared) : NULL;
        past = row[i].before != NULL ? box_open(row[i].before) : NULL;
        if (past != NULL) {
            before = svc_derive(&cfg, past, NULL, NULL, &notes);
            (void)notes_text(&notes_one, &notes);
        }
        set = svc_derive(&cfg, c, shared, before, &notes);
        (void)notes_text(&notes_one, &notes);
        SAME(services_text(&out, set), str_of(row[i].out), row[i].why);
        for (k = 0; k < set->n; k++) {
            const struct service *s = &set->service[k];

            id.n = 0;
            buf_fmt(&id, "h:%.*s:%u%s", PUT(c->name), s->exposed,
                    s->proto == DOCKER_UDP ? ":udp" : "");
            ROW(s->default_id == str_eq(s->id, buf_str(&id)), row[i].why);
            ROW(s->set == set && set->arena.used <= SERVICES_SIZE, row[i].why);
        }
        svc_free(set);
        want(row[i].notes == NULL ? notes_one.n == 0
             : str_find(buf_str(&notes_one), str_of(row[i].notes)) <
                   notes_one.n, __LINE__, "%s: notes are \"%.*s\"",
             row[i].why, PUT(buf_str(&notes_one)));
        set = svc_derive(&cfg, c, shared, before, &notes);
        SAME(services_text(&again, set), buf_str(&out), "a second time");
        SAME(notes_text(&notes_two, &notes), buf_str(&notes_one), "notes");
        svc_free(set);
        svc_free(before);
        docker_free(c);
        docker_free(shared);
        docker_free(past);
    }
    buf_free(&out);
    buf_free(&again);
    buf_free(&id);
    buf_free(&notes_one);
    buf_free(&notes_two);
}

#define S(lit) STR_INIT(lit)
#define NOT_ON_HOST(n) "2ignored: port " n " not published on host\n"
#define IGNORED(n) "2ignored: service on port " n ": "

static void svc_ports(void)
{
    static const struct box publisher = {
        .ports = "80=8080 53/udp=10.1.1.1@5353 81", .name = "x",
        .exposed = "80 81 53/udp"
    }, on_host = { .mode = "host", .networks = "host=" },
    on_nets = { .mode = "b", .networks = "a=10.2.0.2 b=10.3.0.2" };
    static const struct svc_row row[] = {
        { .why = "plain", .box = { .ports = "80=8080" },
          .out = "h:c:80 web 10.0.0.9:8080" },
        { .why = "no ports", .out = "",
          .notes = "2ignored: no published ports\n" },
        { .why = "not published", .box = { .ports = "80", .exposed = "80" },
          .out = "", .notes = NOT_ON_HOST("80") },
        { .why = "several: the port is appended, published ones count",
          .box = { .ports = "80=8080 81=8081 82" }, .notes = NOT_ON_HOST("82"),
          .out = "h:c:80 web-80 10.0.0.9:8080 | h:c:81 web-81 10.0.0.9:8081" },
        { .why = "one published of two", .box = { .ports = "80=8080 82" },
          .out = "h:c:80 web 10.0.0.9:8080", .notes = NOT_ON_HOST("82") },
        { .why = "-internal: exposed ones count", .cfg = { .internal = true },
          .box = { .ports = "80=8080 82" },
          .out = "h:c:80 web-80 172.17.0.2:80 | h:c:82 web-82 172.17.0.2:82" },
        { .why = "udp", .box = { .ports = "53/udp=53" },
          .out = "h:c:53:udp web 10.0.0.9:53 [udp]" },
        { .why = "tcp and udp on one number count as two, tcp first",
          .box = { .ports = "53/udp=1053 53=53" },
          .out = "h:c:53 web-53 10.0.0.9:53 | "
                 "h:c:53:udp web-53 10.0.0.9:1053 [udp]" },
        { .why = "sctp on the same number", .box = { .ports =
          "9/sctp=2 9=1" }, .notes = "two services with the ID h:c:9",
          .out = "h:c:9 web-9 10.0.0.9:1 | h:c:9:9 web-9 10.0.0.9:2" },
        { .why = "host mode", .box = { .mode = "host", .exposed = "80 53/udp",
          .networks = "host=" }, .out = "h:c:53:udp web-53 10.0.0.9:53 [udp]"
          " | h:c:80 web-80 10.0.0.9:80" },
        { .why = "host mode, -internal", .cfg = { .internal = true },
          .box = { .mode = "host", .exposed = "80", .networks = "host=" },
          .out = "h:c:80 web 10.0.0.9:80" },
        { .why = "mode none", .box = { .mode = "none", .exposed = "80",
          .networks = "none=" }, .out = "", .notes = NOT_ON_HOST("80") },
        { .why = "exposed, but no entry for it", .box = { .exposed = "80" },
          .out = "", .notes = NOT_ON_HOST("80") },
        { .why = "macvlan", .box = { .mode = "lan", .exposed = "80",
          .networks = "lan=192.0.2.7!" },
          .out = "h:c:80 web 192.0.2.7:80" },
        { .why = "macvlan beside a bridge", .box = { .mode = "br",
          .exposed = "80 81", .ports = "81=8081",
          .networks = "br=10.1.0.2 lan=192.0.2.7!" },
          .out = "h:c:80 web-80 192.0.2.7:80 | h:c:81 web-81 10.0.0.9:8081" },
        { .why = "shares, X publishes", .shared = &publisher, .box = {
          .mode = "container:x", .exposed = "80 53/udp 81", .networks = "" },
          .out = "h:c:53:udp web-53 10.1.1.1:5353 [udp] | "
                 "h:c:80 web-80 10.0.0.9:8080 | h:c:81 web-81 172.17.0.2:81" },
        { .why = "shares, -internal", .shared = &publisher, .box = {
          .mode = "container:x", .exposed = "80", .networks = "" },
          .cfg = { .internal = true }, .out = "h:c:80 web 172.17.0.2:80" },
        { .why = "shares, X's networks looked at the same way",
          .shared = &on_nets, .box = { .mode = "container:x", .exposed = "80",
          .networks = "" }, .out = "h:c:80 web 10.3.0.2:80" },
        { .why = "shares the host's", .shared = &on_host, .box = {
          .mode = "container:x", .exposed = "80", .networks = "" },
          .out = "h:c:80 web 10.0.0.9:80" },
        { .why = "shares the host's, -internal", .shared = &on_host,
          .cfg = { .internal = true }, .box = { .mode = "container:x",
          .exposed = "80", .networks = "" },
          .out = "h:c:80 web 10.0.0.9:80" },
        { .why = "shares, X does not run", .box = { .mode = "container:x",
          .exposed = "80", .networks = "" }, .out = "",
          .notes = NOT_ON_HOST("80") },
        { .why = "shares, Podman copies X's ports", .shared = &publisher,
          .box = { .mode = "container:x", .ports = "80=8080" }, .out = "",
          .notes = NOT_ON_HOST("80") },
        { .why = "shares, Podman, -internal", .shared = &publisher,
          .cfg = { .internal = true }, .box = { .mode = "container:x",
          .ports = "80=8080" }, .out = "", .notes = NOT_ON_HOST("80") },
        { .why = "a port of X that it publishes for sctp alone", .shared =
          &on_nets, .box = { .mode = "container:x", .ports = "80",
          .exposed = "80", .networks = "" },
          .out = "h:c:80 web 10.3.0.2:80" },
    };

    svc_rows(row, LENGTH(row));
}

static void svc_addresses(void)
{
#define TO(a) .cfg = { .ip = S(a) }
    static const struct svc_row row[] = {
        { .why = "rule 1: label", .cfg = { .ip_label = S("ip"),
          .ip = S("9.9.9.9") }, .box = { .ports = "80=1.1.1.1@81",
          .labels = "ip=8.8.8.8" }, .out = "h:c:80 web 8.8.8.8:81" },
        { .why = "rule 1: its mask", .cfg = { .ip_label = S("ip") },
          .box = { .ports = "80=81", .labels = "ip=fd00::1/64" },
          .out = "h:c:80 web [fd00::1]:81" },
        { .why = "rule 1: an empty one", .cfg = { .ip_label = S("ip") },
          .box = { .ports = "80=81", .labels = "ip=" },
          .out = "h:c:80 web 10.0.0.9:81" },
        { .why = "rule 1: before -internal", .cfg = { .ip_label = S("ip"),
          .internal = true }, .box = { .ports = "80=81",
          .labels = "ip=8.8.8.8" }, .out = "h:c:80 web 8.8.8.8:80" },
        { .why = "rule 2: before -ip", .cfg = { .internal = true,
          .ip = S("9.9.9.9") }, .box = { .ports = "80=81" },
          .out = "h:c:80 web 172.17.0.2:80" },
        { .why = "rule 2: the network of NetworkMode", .cfg = { .internal =
          true }, .box = { .ports = "80", .mode = "web",
          .networks = "app=10.1.0.2 web=10.2.0.2" },
          .out = "h:c:80 web 10.2.0.2:80" },
        { .why = "rule 2: NetworkMode by ID", .cfg = { .internal = true },
          .box = { .ports = "80", .mode = "id-of-web",
          .networks = "app=10.1.0.2 web=10.2.0.2" },
          .out = "h:c:80 web 10.2.0.2:80" },
        { .why = "rule 2: mode default is the bridge", .cfg = { .internal =
          true }, .box = { .ports = "80", .mode = "default",
          .networks = "app=10.1.0.2 bridge=172.17.0.3" },
          .out = "h:c:80 web 172.17.0.3:80" },
        { .why = "rule 2: else the first by name", .cfg = { .internal = true },
          .box = { .ports = "80", .mode = "gone",
          .networks = "web=10.2.0.2 app=10.1.0.2 aaa=" },
          .out = "h:c:80 web 10.1.0.2:80" },
        { .why = "rule 2: no network at all", .cfg = { .internal = true },
          .box = { .ports = "80", .networks = "web=" }, .out = "",
          .notes = NOT_ON_HOST("80") },
        { .why = "rule 3", TO("9.9.9.9"), .box = { .ports = "80=1.1.1.1@81" },
          .out = "h:c:80 web 9.9.9.9:81" },
        { .why = "rule 3: host mode", TO("9.9.9.9"), .box = { .mode = "host",
          .exposed = "80", .networks = "host=" },
          .out = "h:c:80 web 9.9.9.9:80" },
        { .why = "rule 3: any text", TO("no address"), .box = { .ports =
          "80=81" }, .out = "h:c:80 web no address:81" },
        { .why = "rule 3: an interface without an address: nothing is "
          "concluded", .cfg = { .ip_unknown = true }, .box = { .ports =
          "80=1.1.1.1@81 82" }, .out = "h:c:80 kept",
          .notes = NOT_ON_HOST("82") },
        { .why = "rule 3: the same does not matter here", .cfg = {
          .ip_unknown = true, .internal = true }, .box = { .ports = "80=81" },
          .out = "h:c:80 web 172.17.0.2:80" },
        { .why = "rule 4", .box = { .ports = "80=127.0.0.1@81" },
          .out = "h:c:80 web 127.0.0.1:81" },
        { .why = "rule 4: IPv6", .box = { .ports = "80=::1@81" },
          .out = "h:c:80 web [::1]:81" },
        { .why = "rule 4: 0.0.0.0 is none", .box = { .ports =
          "80=0.0.0.0@81" }, .out = "h:c:80 web 10.0.0.9:81" },
        { .why = "rule 4: :: is none", .box = { .ports = "80=::@81" },
          .out = "h:c:80 web 10.0.0.9:81" },
        { .why = "rule 5: -ip is of published ports", TO("9.9.9.9"),
          .box = { .mode = "lan", .exposed = "80",
          .networks = "lan=192.0.2.7!" }, .out = "h:c:80 web 192.0.2.7:80" },
        { .why = "user-defined network: host's address and port",
          .box = { .mode = "proj_default", .ports = "80=8080",
          .networks = "proj_default=172.20.0.2" },
          .out = "h:c:80 web 10.0.0.9:8080" },
        { .why = "rule 6: none", .cfg = { .no_host = true }, .box = { .ports =
          "80=8080" }, .out = "", .notes = "1ignored: port 80: this "
          "host's address is not known, give it with -ip" },
        { .why = "rule 6: none, but not needed", .cfg = { .no_host = true },
          .box = { .ports = "80=1.1.1.1@8080" },
          .out = "h:c:80 web 1.1.1.1:8080" },
    };

    svc_rows(row, LENGTH(row));
}

static void svc_names(void)
{
#define IMAGE(i, n) { .why = i, .box = { .image = i, .ports = "80=1", \
    .labels = "com.docker.compose.service=compose" }, \
    .out = "h:c:80 " n " 10.0.0.9:1" }
    static const struct svc_row row[] = {
        IMAGE("web", "web"), IMAGE("registry:5000/team/app:1.2", "app"),
        IMAGE("registry:5000/app", "app"), IMAGE("a/b/c", "c"),
        IMAGE("app@sha256:0123", "app"), IMAGE("r:1/a:2@sha256:01", "a"),
        IMAGE("Mixed.Case_x", "Mixed.Case_x"), IMAGE("", "compose"),
        IMAGE("sha256:c0ffee", "compose"), IMAGE("c0ffee", "compose"),
        IMAGE("c0ffee012345", "compose"), IMAGE("facade", "facade"),
        IMAGE("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde"
              "f", "compose"),
        { .why = "an image ID, no label", .box = { .image = "c0ffee01",
          .ports = "80=1" }, .out = "h:c:80 c 10.0.0.9:1" },
        { .why = "SERVICE_NAME", .box = { .ports = "80=1",
          .env = "SERVICE_NAME=n" },
          .out = "h:c:80 n 10.0.0.9:1" },
        { .why = "an empty name is none", .box = { .ports = "80=1",
          .env = "SERVICE_NAME=" }, .out = "h:c:80 web 10.0.0.9:1" },
        { .why = "a name of all ports is suffixed, of this port is not",
          .box = { .ports = "80=1 81=2",
          .env = "SERVICE_NAME=n|SERVICE_81_NAME=m" },
          .out = "h:c:80 n-80 10.0.0.9:1 | h:c:81 m 10.0.0.9:2" },
        { .why = "an empty name of the port", .box = { .ports = "80=1 81=2",
          .env = "SERVICE_81_NAME=" },
          .out = "h:c:80 web-80 10.0.0.9:1 | h:c:81 web-81 10.0.0.9:2" },
        { .why = "-explicit", .cfg = { .only_named = true }, .box = {
          .ports = "80=1 81=2", .env = "SERVICE_81_NAME=m" },
          .out = "h:c:81 m 10.0.0.9:2", .notes = IGNORED("80") },
        { .why = "-explicit, a name of all", .cfg = { .only_named = true },
          .box = { .ports = "80=1", .env = "SERVICE_NAME=n" },
          .out = "h:c:80 n 10.0.0.9:1" },
        { .why = "-explicit, another port's", .cfg = { .only_named = true },
          .box = { .ports = "80=1", .env = "SERVICE_81_NAME=n" },
          .out = "", .notes = IGNORED("80") },
        { .why = "ID", .box = { .ports = "80=1", .env = "SERVICE_ID=i/d x" },
          .out = "i/d x web 10.0.0.9:1" },
        { .why = "ID of a port", .box = { .ports = "80=1 81=2",
          .env = "SERVICE_81_ID=i" },
          .out = "h:c:80 web-80 10.0.0.9:1 | i web-81 10.0.0.9:2" },
        { .why = "the same ID: the later ones get more", .box = {
          .ports = "80=1 80/udp=2 81=3", .env = "SERVICE_ID=i" },
          .out = "i web-80 10.0.0.9:1 | i:80:udp web-80 10.0.0.9:2 [udp] | "
                 "i:81 web-81 10.0.0.9:3", .notes = "1" },
        { .why = "the same ID again", .box = { .ports = "80=1 81=2 82=3",
          .env = "SERVICE_ID=i|SERVICE_82_ID=i:81" },
          .out = "i web-80 10.0.0.9:1 | i:81 web-81 10.0.0.9:2 | "
                 "i:81:82 web-82 10.0.0.9:3", .notes = "1" },
        { .why = "an ID that could never be deregistered", .box = {
          .ports = "80=1 81=2 82=3 83=4 84=5", .env = "SERVICE_80_ID=|"
          "SERVICE_81_ID=/a|SERVICE_82_ID=a//b|SERVICE_83_ID=a/../b|"
          "SERVICE_84_ID=.", .image = "w" },
          .out = "h:c:80 w-80 10.0.0.9:1 | h:c:81 w-81 10.0.0.9:2 | "
                 "h:c:82 w-82 10.0.0.9:3 | h:c:83 w-83 10.0.0.9:4 | "
                 "h:c:84 w-84 10.0.0.9:5",
          .notes = "1port 80: SERVICE_ID \"\" cannot be used (1 to 1024 "
          "characters of ASCII, no leading /, no //, no . or .. part): the ID "
          "is h:c:80 +4\n" },
        { .why = "one with bytes that are not plain ASCII", .box = { .ports =
          "80=1 81=2 82=3", .env = "SERVICE_80_ID=\xc3\xa9|SERVICE_81_ID=a\nb"
          "|SERVICE_82_ID=a\x7f", .image = "w" },
          .out = "h:c:80 w-80 10.0.0.9:1 | h:c:81 w-81 10.0.0.9:2 | "
                 "h:c:82 w-82 10.0.0.9:3", .notes = "1port 80: SERVICE_ID" },
        { .why = "the same ID but for its case", .box = { .ports =
          "80=1 81=2 82=3", .env = "SERVICE_80_ID=Web|SERVICE_81_ID=wEb|"
          "SERVICE_82_ID=H:C:82", .image = "w" },
          .out = "Web w-80 10.0.0.9:1 | wEb:81 w-81 10.0.0.9:2 | "
                 "H:C:82 w-82 10.0.0.9:3", .notes =
          "1two services with the ID wEb: that of port 81 is wEb:81\n" },
        { .why = "the default ID, given", .box = { .ports = "80=1",
          .env = "SERVICE_ID=h:c:80" }, .out = "h:c:80 web 10.0.0.9:1" },
        { .why = "dots elsewhere", .box = { .ports = "80=1",
          .env = "SERVICE_ID=a..b/.c/d./..." },
          .out = "a..b/.c/d./... web 10.0.0.9:1" },
    };

    svc_rows(row, LENGTH(row));
}

static void svc_metadata(void)
{
#define ENV(e) .box = { .ports = "80=1", .env = e }
#define ONE "h:c:80 web 10.0.0.9:1"
    static const struct svc_row row[] = {
        { .why = "only SERVICE_, exactly so", ENV("XSERVICE_A=1|service_b=2|"
          "SERVICE=3|SERVICE_C=4|SERVICE_D"), .out = ONE " {c=4}" },
        { .why = "folded", ENV("SERVICE_Ab_CD=Ef"), .out = ONE " {ab_cd=Ef}" },
        { .why = "the value is all behind the first =",
          ENV("SERVICE_A=x=y=|SERVICE_B="), .out = ONE " {a=x=y= b=}" },
        { .why = "of this port, before all ports", ENV("SERVICE_80_A=p|"
          "SERVICE_A=q|SERVICE_B=r"), .out = ONE " {a=p b=r}" },
        { .why = "of other ports", ENV("SERVICE_81_A=p|SERVICE_8_A=q|"
          "SERVICE_080_A=r|SERVICE_800_A=s"), .out = ONE },
        { .why = "digits alone are an attribute", ENV("SERVICE_8080=x|"
          "SERVICE_80=y"), .out = ONE " {80=y 8080=x}" },
        { .why = "digits and no more", ENV("SERVICE_80_=x"),
          .out = ONE " {80_=x}" },
        { .why = "not all digits", ENV("SERVICE_80X_A=x"),
          .out = ONE " {80x_a=x}" },
        { .why = "tags of several ports, tcp and udp", .box = { .ports =
          "1=1 1/udp=1 2=2 3=3 3/udp=3 4=4", .image = "w",
          .env = "SERVICE_TAGS=a|SERVICE_2_TAGS=b|SERVICE_3_TAGS=" },
          .cfg = { .tags = S("x") },
          .out = "h:c:1 w-1 10.0.0.9:1 [a,x] | "
          "h:c:1:udp w-1 10.0.0.9:1 [a,x,udp] | h:c:2 w-2 10.0.0.9:2 [b,x] | "
          "h:c:3 w-3 10.0.0.9:3 [x] | h:c:3:udp w-3 10.0.0.9:3 [x,udp] | "
          "h:c:4 w-4 10.0.0.9:4 [a,x]" },
        { .why = "the later variable", ENV("SERVICE_A=1|SERVICE_a=2"),
          .out = ONE " {a=2}" },
        { .why = "label over environment", .box = { .ports = "80=1",
          .env = "SERVICE_A=e|SERVICE_B=e", .labels = "SERVICE_A=l" },
          .out = ONE " {a=l b=e}" },
        { .why = "of this port in the environment, over a label", .box = {
          .ports = "80=1", .env = "SERVICE_80_A=e", .labels = "SERVICE_A=l" },
          .out = ONE " {a=e}" },
        { .why = "tags", ENV("SERVICE_TAGS=b,a,b"), .out = ONE " [b,a,b]" },
        { .why = "tags: empty ones vanish, blanks stay",
          ENV("SERVICE_TAGS=,a,, b ,"), .out = ONE " [a, b ]" },
        { .why = "tags: \\, is a comma, \\ else itself",
          ENV("SERVICE_TAGS=a\\,b,\\,,c\\d,e\\"),
          .out = ONE " [a,b,,,c\\d,e\\]" },
        { .why = "tags of the port, of the line, of udp", .cfg = { .tags =
          S("x,y") }, .box = { .ports = "53/udp=1",
          .env = "SERVICE_TAGS=a|SERVICE_53_TAGS=b" },
          .out = "h:c:53:udp web 10.0.0.9:1 [b,x,y,udp]" },
        { .why = "tags: empty ones of the port", ENV("SERVICE_TAGS=a|"
          "SERVICE_80_TAGS="), .out = ONE },
        { .why = "ignore", ENV("SERVICE_IGNORE=true"), .out = "",
          .notes = IGNORED("80") },
        { .why = "ignore: also false", ENV("SERVICE_IGNORE=false"), .out = "",
          .notes = IGNORED("80") },
        { .why = "ignore: not the empty one", ENV("SERVICE_IGNORE="),
          .out = ONE },
        { .why = "ignore one port", .box = { .ports = "80=1 81=2",
          .env = "SERVICE_80_IGNORE=x" }, .out = "h:c:81 web-81 10.0.0.9:2",
          .notes = IGNORED("80") },
        { .why = "ignore all but one", .box = { .ports = "80=1 81=2",
          .env = "SERVICE_IGNORE=x|SERVICE_81_IGNORE=" },
          .out = "h:c:81 web-81 10.0.0.9:2", .notes = IGNORED("80") },
        { .why = "check_ are attributes too", ENV("SERVICE_CHECK_HTTP=/|"
          "SERVICE_80_CHECK_INTERVAL=5s"),
          .out = ONE " {check_http=/ check_interval=5s}" },
        { .why = "any attribute", ENV("SERVICE_A.B=1|SERVICE_REGISTRATOR=2|"
          "SERVICE_=3|SERVICE_\xc3\x89=4"),
          .out = ONE " {=3 a.b=1 registrator=2 \xc3\x89=4}" },
        { .why = "a number that no port can have is for none",
          ENV("SERVICE_0_A=1|SERVICE_65536_A=2|SERVICE_99999999999_A=3|"
          "SERVICE_0=4"), .out = ONE " {0=4}" },
        { .why = "each port its own and those of all", .box = { .ports =
          "80=1 81=2 82=3", .env = "SERVICE_81_B=p|SERVICE_A=q|SERVICE_C=r|"
          "SERVICE_82_A=s|SERVICE_82_D=t", .image = "w" },
          .out = "h:c:80 w-80 10.0.0.9:1 {a=q c=r} | "
                 "h:c:81 w-81 10.0.0.9:2 {a=q b=p c=r} | "
                 "h:c:82 w-82 10.0.0.9:3 {a=s c=r d=t}" },
        { .why = "tags of several ports", .box = { .ports = "80=1 53/udp=2 "
          "53=3 81=4", .image = "w", .env = "SERVICE_TAGS=a|SERVICE_81_TAGS=b"
          }, .out = "h:c:53 w-53 10.0.0.9:3 [a] | "
          "h:c:53:udp w-53 10.0.0.9:2 [a,udp] | h:c:80 w-80 10.0.0.9:1 [a] | "
          "h:c:81 w-81 10.0.0.9:4 [b]" },
    };

    svc_rows(row, LENGTH(row));
}

/* Containers that do not run: where their services were while they ran, or,
 * where that is not known, only which they were. */
static void svc_stopped(void)
{
    static const struct box two = { .ports = "80=8080 53/udp=1.1.1.1@5353" },
        inner = { .ports = "80" }, dns = { .exposed = "53 53/udp",
          .ports = "53 53/udp=5353" }, sctp = { .ports = "9=1 9/sctp=2" };
    static const struct svc_row row[] = {
        { .why = "exposed ports", .box = { .ended = true, .exposed =
          "80 53/udp", .networks = "bridge=" },
          .out = "h:c:53:udp kept | h:c:80 kept" },
        { .why = "its own ID", .box = { .ended = true, .exposed = "80 81",
          .env = "SERVICE_ID=i|SERVICE_80_IGNORE=1" }, .out = "i kept",
          .notes = IGNORED("80") },
        { .why = "-internal", .cfg = { .internal = true }, .box = { .ended =
          true, .exposed = "80", .networks = "" }, .out = "h:c:80 kept" },
        { .why = "shares a network", .box = { .ended = true, .exposed = "80",
          .mode = "container:x", .networks = "" }, .out = "h:c:80 kept" },
        { .why = "stale ports", .box = { .ended = true, .ports = "80=8080" },
          .out = "h:c:80 kept" },
        { .why = "no address of the host", .cfg = { .no_host = true },
          .box = { .ended = true, .exposed = "80" }, .out = "h:c:80 kept" },
        { .why = "no ports", .box = { .ended = true }, .out = "",
          .notes = "no published ports" },
        { .why = "as it was before", .before = &two, .box = { .ended = true,
          .exposed = "80 53/udp 9", .networks = "bridge=", .image = "w" },
          .out = "h:c:53:udp w-53 1.1.1.1:5353 [udp] | "
                 "h:c:80 w-80 10.0.0.9:8080", .notes = NOT_ON_HOST("9") },
        { .why = "udp, beside an unpublished tcp", .before = &dns,
          .box = { .ended = true, .exposed = "53 53/udp" },
          .out = "h:c:53:udp web 10.0.0.9:5353 [udp]",
          .notes = NOT_ON_HOST("53") },
        { .why = "renamed", .before = &two, .box = { .ended = true,
          .name = "d", .exposed = "80" }, .out = "h:d:80 web-80 10.0.0.9:8080" },
        { .why = "-internal, as it was before", .before = &inner,
          .cfg = { .internal = true }, .box = { .ended = true, .exposed =
          "80", .networks = "bridge=" }, .out = "h:c:80 web 172.17.0.2:80" },
        { .why = "only udp then", .before = &two, .box = { .ended = true,
          .exposed = "53 53/udp 80", .image = "w" },
          .out = "h:c:53:udp w-53 1.1.1.1:5353 [udp] | "
                 "h:c:80 w-80 10.0.0.9:8080", .notes = NOT_ON_HOST("53") },
        { .why = "tcp and sctp, each as it was", .before = &sctp,
          .box = { .ended = true, .exposed = "9 9/sctp" }, .out =
          "h:c:9 web-9 10.0.0.9:1 | h:c:9:9 web-9 10.0.0.9:2",
          .notes = "two services with the ID h:c:9" },
        { .why = "its address was not known then", .before = &two,
          .cfg = { .ip_unknown = true }, .box = { .ended = true,
          .exposed = "80" }, .out = "h:c:80 kept" },
        { .why = "tcp then, udp now", .before = &two, .box = { .ended = true,
          .exposed = "80/udp 53" }, .out = "", .notes = NOT_ON_HOST("80") },
    };

    svc_rows(row, LENGTH(row));
}

/* A container of this environment and its services, for the cases below,
 * which look at what a table cannot say. */
struct derived {
    struct docker_container *c;
    struct svc_set *set;
    struct svc_notes notes;
};

static struct derived derive(const char *ports, struct buf *env)
{
    struct svc_config cfg = { .hostname = S("h"), .host = S("10.0.0.9") };
    struct box box = { .ports = ports };
    struct derived d = { .c = NULL };

    buf_byte(env, '\0');
    box.env = env->p;
    d.c = box_open(&box);
    d.set = svc_derive(&cfg, d.c, NULL, NULL, &d.notes);
    env->n = 0;
    return d;
}

static void underive(struct derived *d)
{
    arena_free(&d->notes.arena);
    svc_free(d->set);
    docker_free(d->c);
}

static void fill(struct buf *b, char c, size_t n)
{
    while (n-- > 0)
        buf_byte(b, c);
}

/* Names of 255 bytes, IDs of 1,024 and tags of 16 KiB are good, and no more
 * than that. */
static void svc_limits(void)
{
    struct buf env = { .max = 0 }, notes = { .max = 0 };
    struct derived d;
    size_t over;

    for (over = 0; over < 2; over++) {
        const struct service *s;

        buf_lit(&env, "SERVICE_NAME=");
        fill(&env, 'n', SERVICE_NAME_MAX + over);
        buf_lit(&env, "|SERVICE_ID=");
        fill(&env, 'i', SERVICE_ID_MAX + over);
        buf_lit(&env, "|SERVICE_TAGS=");
        fill(&env, 't', SERVICE_TAGS_MAX - 1 + over);
        buf_lit(&env, ",u,,v");
        d = derive(over ? "80=1 81=2" : "80=1", &env);
        s = d.set->service;
        WANT(d.set->n == 1 + over);
        WANT(over ? str_eq(s->name, STR("web-80")) : s->name.n == 255);
        WANT(over ? str_eq(s->id, STR("h:c:80")) : s->id.n == 1024);
        WANT(s->default_id == (over == 1));
        WANT(over ? s->tags == 1 : s->tags == 2 && s->tag[1].n == 1);
        (void)notes_text(&notes, &d.notes);
        SAME(buf_str(&notes), over
             ? STR("1port 80: the name nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"
                   "nn... has more than 255 bytes and is not used +1\n"
                   "1port 80: SERVICE_ID \"iiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiii"
                   "iiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiii"
                   "iiiiiii\" cannot be used (1 to 1024 characters of ASCII, "
                   "no leading /, no //, no . or .. part): the ID is h:c:80 +1"
                   "\n"
                   "1more than 16384 bytes of tags: 2 of them are left out\n")
             : STR("1more than 16384 bytes of tags: 1 of them are left out\n"),
             "notes");
        underive(&d);
    }
    buf_lit(&env, "SERVICE_ID=");       /* with its port it would be longer */
    fill(&env, 'i', SERVICE_ID_MAX - 2);
    d = derive("80=1 81=2 82=3", &env);
    WANT(d.set->n == 1);
    WANT(str_find(notes_text(&notes, &d.notes),
                  STR("1ignored: port 81: no usable ID +1\n")) < notes.n);
    underive(&d);
    buf_free(&env);
    buf_free(&notes);
}

/* Of more than 10,000 ports the first have services; what comes to more than
 * 16 MiB is too large; warnings of a kind are counted, and so are other notes
 * after the first 100. */
static void svc_many(void)
{
    struct buf env = { .max = 0 }, ports = { .max = 0 }, text = { .max = 0 };
    struct buf closed = { .max = 0 };
    struct derived d;
    size_t i, lines;

    for (i = 1; i <= NOTES_MAX + 50; i++)
        buf_fmt(&closed, "%s%zu", i > 1 ? " " : "", i);
    buf_byte(&closed, '\0');

    for (i = 1; i <= SERVICES_MAX + 3; i++)
        buf_fmt(&ports, "%s%zu=%zu", i > 1 ? " " : "", i, i);
    buf_byte(&ports, '\0');
    d = derive(ports.p, &env);
    WANT(d.set->n == SERVICES_MAX && d.set->arena.used <= SERVICES_SIZE);
    WANT(d.set->service[SERVICES_MAX - 1].exposed == SERVICES_MAX);
    SAME(notes_text(&text, &d.notes), STR("1more than 10000 services: that "
         "of port 10001 is left out +2\n"), "services");
    underive(&d);

    buf_lit(&env, "SERVICE_ID=");
    fill(&env, 'x', 900);
    d = derive(ports.p, &env);
    WANT(d.set->arena.used <= SERVICES_SIZE && d.set->arena.used > 9000 * 900);
    (void)notes_text(&text, &d.notes);
    WANT(str_prefix(buf_str(&text), STR("1two services with the ID xxx")));
    WANT(str_suffix(buf_str(&text), STR(" +9998\n1more than 10000 services: "
         "that of port 10001 is left out +2\n")));
    underive(&d);

    ports.n = 0;
    for (i = 1; i <= NOTES_MAX + 5; i++)
        buf_fmt(&ports, "%s%zu", i > 1 ? " " : "", i);
    buf_byte(&ports, '\0');
    d = derive(ports.p, &env);
    (void)notes_text(&text, &d.notes);
    for (i = lines = 0; i < text.n; i++)
        lines += text.p[i] == '\n';
    WANT(lines == NOTES_MAX && str_suffix(buf_str(&text), STR(" +5\n")));
    underive(&d);
    ports.n = 0;
    for (i = 1; i <= SERVICES_MAX; i++)
        buf_fmt(&ports, "%s%zu=%zu", i > 1 ? " " : "", i, i);
    buf_byte(&ports, '\0');

    for (i = 0; i < 200; i++) {
        buf_fmt(&env, "%sSERVICE_A%zu=", i > 0 ? "|" : "", i);
        fill(&env, 'y', 10);
    }
    buf_lit(&env, "|SERVICE_NAME=");
    fill(&env, 'n', 200);
    d = derive(ports.p, &env);
    WANT(d.set->arena.used > SERVICES_SIZE);
    underive(&d);
    buf_free(&closed);
    buf_free(&env);
    buf_free(&ports);
    buf_free(&text);
}

/* ---- Registries ---- */

static size_t count_of(const struct json *j, size_t t)
{
    size_t i, n = 0;

    for (i = 0; json_next(j, t, &i);)
        n++;
    return n;
}

static void consul_check_kinds(void)
{
#define TEN ",'Interval':'10s'"
    static const struct {
        const char *env, *ip, *out;
    } row[] = {
        { "", NULL, "" }, { "SERVICE_CHECK_INTERVAL=5s", NULL, "" },
        { "SERVICE_CHECK_HTTP=", NULL, "" },
        { "SERVICE_CHECK_HTTP=/x?y", NULL,
          "{'HTTP':'http://10.0.0.9:81/x?y'" TEN "}" },
        { "SERVICE_CHECK_HTTP=x", NULL,
          "{'HTTP':'http://10.0.0.9:81/x'" TEN "}" },
        { "SERVICE_CHECK_HTTP=/|SERVICE_CHECK_HTTP_METHOD=HEAD|"
          "SERVICE_CHECK_INTERVAL=1m|SERVICE_CHECK_TIMEOUT=2s|"
          "SERVICE_CHECK_TLS_SKIP_VERIFY=1|SERVICE_CHECK_INITIAL_STATUS="
          "passing|SERVICE_CHECK_DEREGISTER_AFTER=3m", NULL,
          "{'HTTP':'http://10.0.0.9:81/','Method':'HEAD','Interval':'1m',"
          "'Timeout':'2s','Status':'passing',"
          "'DeregisterCriticalServiceAfter':'3m'}" },
        { "SERVICE_CHECK_HTTP=/", "fd00::1",
          "{'HTTP':'http://[fd00::1]:81/'" TEN "}" },
        { "SERVICE_CHECK_HTTPS=/|SERVICE_CHECK_HTTPS_METHOD=PUT|"
          "SERVICE_CHECK_TLS_SKIP_VERIFY=true", NULL,
          "{'HTTP':'https://10.0.0.9:81/','Method':'PUT',"
          "'TLSSkipVerify':true" TEN "}" },
        { "SERVICE_CHECK_CMD=echo 'x'|SERVICE_CHECK_TIMEOUT=2s", NULL,
          "{'Args':['check-cmd','0123456789ab','80','echo \\'x\\'']" TEN "}" },
        { "SERVICE_CHECK_SCRIPT=nc $SERVICE_IP $SERVICE_PORT # $SERVICE_IP",
          NULL, "{'Args':['/bin/sh','-c','nc 10.0.0.9 81 # 10.0.0.9']" TEN
          "}" },
        { "SERVICE_CHECK_TTL=30s|SERVICE_CHECK_INTERVAL=5s|"
          "SERVICE_CHECK_TIMEOUT=2s", NULL, "{'TTL':'30s'}" },
        { "SERVICE_CHECK_TCP=true|SERVICE_CHECK_TIMEOUT=2s", "fd00::1",
          "{'TCP':'[fd00::1]:81'" TEN ",'Timeout':'2s'}" },
        { "SERVICE_CHECK_GRPC=true", NULL, "{'GRPC':'10.0.0.9:81'" TEN "}" },
        { "SERVICE_CHECK_GRPC=true|SERVICE_CHECK_TLS_SKIP_VERIFY=1", NULL,
          "{'GRPC':'10.0.0.9:81'" TEN "}" },
        { "SERVICE_CHECK_GRPC=true|SERVICE_CHECK_GRPC_USE_TLS=1|"
          "SERVICE_CHECK_TLS_SKIP_VERIFY=1", NULL,
          "{'GRPC':'10.0.0.9:81','GRPCUseTLS':true,'TLSSkipVerify':true" TEN
          "}" },
        /* the first that is not empty */
        { "SERVICE_CHECK_TTL=30s|SERVICE_CHECK_HTTP=|SERVICE_CHECK_TCP=1",
          NULL, "{'TTL':'30s'}" },
        { "SERVICE_CHECK_GRPC=1|SERVICE_CHECK_CMD=x|SERVICE_CHECK_HTTPS=/",
          NULL, "{'HTTP':'https://10.0.0.9:81/'" TEN "}" },
        /* text cannot leave its place */
        { "SERVICE_CHECK_TTL=1s'},'Name':'evil", NULL,
          "{'TTL':'1s\\'},\\'Name\\':\\'evil'}" },
    };
    struct buf out = { .max = 0 }, wanted = { .max = 0 }, env = { .max = 0 };
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        struct box box = { .ports = "80=81" };
        struct svc_config cfg = { .host = S("10.0.0.9"), .hostname = S("h") };
        struct svc_notes notes = { .first = NULL };
        struct docker_container *c;
        struct svc_set *set;

        (void)quoted(&env, row[i].env);
        buf_byte(&env, '\0');
        box.env = env.p;
        cfg.ip = str_of(row[i].ip);
        c = box_open(&box);
        set = svc_derive(&cfg, c, NULL, NULL, &notes);
        out.n = 0;
        consul_check(&out, "", &set->service[0]);
        SAME(buf_str(&out), quoted(&wanted, row[i].out), row[i].env);
        svc_free(set);
        docker_free(c);
    }
    buf_free(&out);
    buf_free(&wanted);
    buf_free(&env);
}

/* What Consul lists of a registration: the same in another dress. */
static void listed(struct buf *b, const struct json *j)
{
    static const char *const name[][2] = {
        { "Weights", NULL }, { "Service", "Name" }, { "Address", "Address" },
        { "ID", "ID" }, { "Tags", "Tags" }, { "Port", "Port" },
        { "Meta", "Meta" }, { "EnableTagOverride", NULL },
    };
    size_t i;

    for (i = 0; i < LENGTH(name); i++) {
        size_t t = name[i][1] == NULL ? 0 : json_get(j, 1, name[i][1]);
        struct str raw = json_raw(j, t);

        if (json_type(j, t) == JSON_STRING) {   /* with its quotes */
            raw.p--;
            raw.n += 2;
        }
        buf_lit(b, i > 0 ? "," : "{");
        buf_json(b, str_of(name[i][0]));
        buf_byte(b, ':');
        buf_add(b, t != 0 ? raw : STR("\"\""));
    }
    buf_byte(b, '}');
}

/* A registration, and what Consul then lists of it: it looks the same. */
static void consul_round_trip(void)
{
    static const struct {
        struct box box;
        const char *body;       /* with mark M; NULL: whatever it is */
    } row[] = {
        { { .ports = "80=81" }, "{'ID':'h:c:80','Name':'web','Address':"
          "'10.0.0.9','Port':81,'Meta':{M}}" },
        { { .ports = "80=81", .env = "SERVICE_TAGS=b,a|SERVICE_X=y|"
            "SERVICE_CHECK_TTL=30s" }, "{'ID':'h:c:80','Name':'web',"
          "'Address':'10.0.0.9','Port':81,'Tags':['b','a'],'Meta':{"
          "'check_ttl':'30s','x':'y',M},'Check':{'TTL':'30s'}}" },
        { { .ports = "80=81", .env = "SERVICE_NAME=\"\\\n\xe2\x82\xac\xff<|"
            "SERVICE_TAGS=\x01,\",\\\\,\xf0\x9f\x98\x80|SERVICE_ID=a/b c%20?#"
            "|SERVICE_X=\x7f" }, NULL },
    };
    const uint64_t owner = 0xfedcba9876543210u;
    static struct registry reg = { .kind = &consul_kind };
    struct json j = { .n = 0 };
    struct buf body = { .max = 0 }, list = { .max = 0 }, wanted = { .max = 0 };
    struct buf mark = { .max = 0 };
    struct arena a = { NULL };
    struct err e;
    size_t i, at;

    for (i = 0; i < LENGTH(row); i++) {
        struct svc_config cfg = { .host = S("10.0.0.9"), .hostname = S("h") };
        struct svc_notes notes = { .first = NULL };
        struct docker_container *c = box_open(&row[i].box);
        struct svc_set *set = svc_derive(&cfg, c, NULL, NULL, &notes);
        const struct service *s = &set->service[0];
        struct reg_item item = { .owner = 0 };
        struct digest sent, again;

        body.n = list.n = wanted.n = mark.n = 0;
        consul_value(&reg, s, STR(""), &body, &sent, NULL);
        WANT(sent.checks <= 0xffffffff);
        reg_mark(&mark, owner, &sent);
        body.n = 0;
        consul_value(&reg, s, buf_str(&mark), &body, &again, NULL);
        if (row[i].body != NULL) {
            struct str text = quoted(&list, row[i].body);

            at = str_find(text, STR("{M}"));
            at = at < text.n ? at + 1 : str_find(text, STR(",M}")) + 1;
            buf_fmt(&wanted, "%.*s\"registrator\":\"%.*s\"%.*s",
                    PUT(str_upto(text, at)), PUT(buf_str(&mark)),
                    PUT(str_from(text, at + 1)));
            SAME(buf_str(&body), buf_str(&wanted), row[i].body);
        }
        WANT(json_parse(&j, edge(buf_str(&body)), &e) == 0);
        list.n = 0;
        listed(&list, &j);
        WANT(json_parse(&j, edge(buf_str(&list)), &e) == 0);
        WANT(consul_item(&reg, &j, &a, &item) && item.owner == owner);
        SAME(item.key, s->id, "the key");
        SAME(item.id, s->id, "the ID");
        want(item.have.place == sent.place && item.have.tags == sent.tags &&
             item.have.content == sent.content &&
             item.have.checks == sent.checks, __LINE__, "digests of %.*s",
             PUT(buf_str(&body)));
        svc_free(set);
        docker_free(c);
    }
    arena_free(&a);
    json_free(&j);
    buf_free(&body);
    buf_free(&list);
    buf_free(&wanted);
    buf_free(&mark);
}

/* What makes another registration makes another digest, and only that. */
static void consul_digests(void)
{
    static const struct {
        const char *env, *ports;
        bool place, tags, content, checks;      /* the same as plain? */
    } row[] = {
        { "SERVICE_X=1", "80=81", true, true, true, true },
        { "SERVICE_X=2", "80=81", true, true, false, true },
        { "", "80=81", true, true, false, true },
        { "SERVICE_X=1|SERVICE_A.B=2", "80=81", true, true, true, true },
        { "SERVICE_X=1|SERVICE_TAGS=a", "80=81", true, false, false, true },
        { "SERVICE_X=1|SERVICE_NAME=n", "80=81", false, true, false, true },
        { "SERVICE_X=1", "80=82", false, true, false, true },
        { "SERVICE_X=1", "80=1.1.1.1@81", false, true, false, true },
        { "SERVICE_X=1|SERVICE_CHECK_TTL=1s", "80=81", true, true, false,
          false },
        { "SERVICE_X=1|SERVICE_ID=i", "80=81", true, true, false, true },
    };
    static struct registry reg = { .kind = &consul_kind };
    struct buf env = { .max = 0 }, body = { .max = 0 };
    struct digest plain, d;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        struct derived v;

        buf_lit(&env, row[i].env);
        v = derive(row[i].ports, &env);
        body.n = 0;
        consul_value(&reg, &v.set->service[0], STR(""), &body, &d, NULL);
        plain = i == 0 ? d : plain;
        ROW((d.place == plain.place) == row[i].place, row[i].env);
        ROW((d.tags == plain.tags) == row[i].tags, row[i].env);
        ROW((d.content == plain.content) == row[i].content, row[i].env);
        ROW((d.checks == plain.checks) == row[i].checks, row[i].env);
        underive(&v);
    }
    buf_free(&env);
    buf_free(&body);
}

/* Which attributes Consul can keep, and what is said of the others: in one
 * note, though they may be those of several ports. */
static void consul_metas(void)
{
    static struct registry reg = { .kind = &consul_kind };
    struct buf env = { .max = 0 }, body = { .max = 0 }, text = { .max = 0 };
    struct json j = { .n = 0 };
    struct derived v;
    struct digest d;
    struct err e;
    size_t i, n, meta, turn;

    for (n = 62; n <= 65; n++) {        /* 63, and our own mark */
        buf_lit(&env, "SERVICE_NAME=n|SERVICE_TAGS=t");
        for (i = 0; i < n; i++)
            buf_fmt(&env, "|SERVICE_A%zu=x", 100 + i);
        v = derive("80=1 81=2", &env);
        WANT(v.set->n == 2 && v.set->service[0].attrs == n);
        for (turn = 0; turn < 2; turn++) {
            body.n = 0;
            consul_value(&reg, &v.set->service[turn], STR("m"), &body, &d,
                         &v.notes);
            WANT(json_parse(&j, buf_str(&body), &e) == 0);
            meta = json_get(&j, JSON_ROOT, "Meta");
            WANT(count_of(&j, meta) == (n < 63 ? n : 63) + 1);
        }
        (void)notes_text(&text, &v.notes);
        SAME(str_after(buf_str(&text), ':'), n <= 63 ? STR("") : n == 64
             ? STR(" \"a163\" +1\n") : STR(" \"a163\" \"a164\" +1\n"),
             "left out");
        underive(&v);
    }
    buf_lit(&env, "SERVICE_A.B=1|SERVICE_A=2|SERVICE_consul-x=3|"
                  "SERVICE_REGISTRATOR=4|SERVICE_=5|SERVICE_\xc3\xa9=6|"
                  "SERVICE_81_A=7|SERVICE_81_C!=8");
    v = derive("80=1 81=2", &env);
    for (turn = 0; turn < 2; turn++) {
        body.n = 0;
        consul_value(&reg, &v.set->service[turn], STR(""), &body, &d,
                     &v.notes);
        WANT(str_find(buf_str(&body), turn == 0
                      ? STR("\"Meta\":{\"a\":\"2\"}")
                      : STR("\"Meta\":{\"a\":\"7\"}")) < body.n);
    }
    SAME(notes_text(&text, &v.notes), STR("1port 80: attributes left out, "
         "since Consul keeps 63 with names of 1 to 128 characters A-Z a-z 0-9 "
         "_ -, but not consul-... and registrator, and values of up to 512 "
         "bytes: \"\" \"a.b\" \"consul-x\" \"registrator\" \"\xc3\xa9\" "
         "+1\n"), "left out");
    underive(&v);
    for (i = 0; i < 3; i++) {   /* the longest that it keeps, and longer */
        buf_lit(&env, "SERVICE_");
        fill(&env, 'x', 128 + (i == 1));
        buf_byte(&env, '=');
        fill(&env, 'y', 512 + (i == 2));
        v = derive("80=1", &env);
        body.n = 0;
        consul_value(&reg, &v.set->service[0], STR(""), &body, &d, &v.notes);
        WANT(str_has(buf_str(&body), 'y') == (i == 0));
        WANT((v.notes.first != NULL) == (i > 0));
        underive(&v);
    }
    json_free(&j);
    buf_free(&env);
    buf_free(&body);
    buf_free(&text);
}

/* Items of a list that do not show the same service. */
static void consul_views(void)
{
    static const struct {
        const char *a, *b;
    } differs[] = {
        { "'Service':'a'", "'Service':'b'" }, { "'Port':1", "'Port':2" },
        { "'Address':'a'", "'Address':''" }, { "'Tags':['a']", "'Tags':[]" },
        { "'Tags':['a','b']", "'Tags':['b','a']" },
        { "'Tags':['ab']", "'Tags':['a','b']" },
        { "'Tags':['a','']", "'Tags':['a']" },
        { "'Service':'a','Address':''", "'Service':'','Address':'a'" },
    };
    static struct registry reg = { .kind = &consul_kind };
    struct json j = { .n = 0 };
    struct buf body = { .max = 0 }, list = { .max = 0 };
    struct arena a = { NULL };
    struct err e;
    size_t i;

    for (i = 0; i < LENGTH(differs); i++) {
        struct reg_item one = { .owner = 0 }, two = { .owner = 0 };

        body.n = 0;
        buf_fmt(&body, "{\"ID\":\"x\",%.*s}", PUT(quoted(&list,
                                                         differs[i].a)));
        WANT(json_parse(&j, buf_str(&body), &e) == 0);
        WANT(consul_item(&reg, &j, &a, &one) && one.owner == 0);
        WANT(one.have.content == REG_ANY && one.have.checks == REG_ANY);
        body.n = 0;
        buf_fmt(&body, "{\"ID\":\"x\",\"Meta\":null,%.*s}",
                PUT(quoted(&list, differs[i].b)));
        WANT(json_parse(&j, buf_str(&body), &e) == 0);
        WANT(consul_item(&reg, &j, &a, &two) && two.owner == 0);
        WANT(two.have.content != REG_ANY);
        ROW(one.have.place != two.have.place || one.have.tags != two.have.tags,
            differs[i].a);
    }
    arena_free(&a);
    json_free(&j);
    buf_free(&body);
    buf_free(&list);
}

static void consul_rows(void)
{
    static const struct {
        const char *in;
        bool ok, marked;
    } row[] = {
        { "{}", false, false }, { "[]", false, false },
        { "{'ID':''}", false, false }, { "{'ID':7}", false, false },
        { "{'ID':'x','Tags':null,'Meta':null,'Port':-1}", true, false },
        { "{'ID':'x','Tags':{'a':'b'},'Meta':[1],'Port':70000}", true, false },
        { "{'ID':'x','Meta':{'registrator':"
          "'0123456789abcdef-0123456789abcdef01234567'}}", true, true },
        { "{'ID':'x','Meta':{'registrator':"
          "'0123456789abcdef-0123456789abcdef0123456'}}", true, false },
        { "{'ID':'x','Meta':{'registrator':"
          "'0123456789abcdef-0123456789abcdef012345678'}}", true, false },
        { "{'ID':'x','Meta':{'registrator':"
          "'0123456789abcdeg-0123456789abcdef01234567'}}", true, false },
        { "{'ID':'x','Meta':{'registrator':"
          "'123456789abcdef-00123456789abcdef01234567'}}", true, false },
        { "{'ID':'x','Meta':{'registrator':"
          "'123456789abcdef-0123456789abcdef01234567'}}", true, false },
        { "{'ID':'x','Meta':{'registrator':"
          "'0123456789abcdef-0123456789abcdef0123456g'}}", true, false },
        { "{'ID':'x','Meta':{'registrator':'-'}}", true, false },
        { "{'ID':'x','Meta':{'registrator':''}}", true, false },
        { "{'ID':'x','Meta':{'registrator':null}}", true, false },
    };
    static const struct {
        enum reg_op op;
        unsigned status;
        const char *body;
        enum reg_verdict verdict;
    } verdict[] = {
        { REG_REGISTER, 200, "", REG_DONE },
        { REG_DEREGISTER, 200, "", REG_DONE },
        { REG_REGISTER, 400, "Invalid check", REG_REJECTED },
        { REG_REGISTER, 403, "Permission denied", REG_RETRY },
        { REG_REGISTER, 404, "", REG_RETRY },
        { REG_REGISTER, 500, "", REG_RETRY },
        { REG_REGISTER, 500, "Scripts are disabled on this agent",
          REG_REJECTED },
        { REG_DEREGISTER, 400, "", REG_REJECTED },
        { REG_DEREGISTER, 403, "", REG_RETRY },
        { REG_DEREGISTER, 404, "Unknown service ID \"x\".", REG_DONE },
        { REG_DEREGISTER, 404, "not found", REG_RETRY },
        { REG_DEREGISTER, 500, "Unknown service {\"x\" {}}", REG_DONE },
        { REG_DEREGISTER, 500, "No known Consul servers", REG_RETRY },
        { REG_REGISTER, 500, "Unknown service {\"x\" {}}", REG_RETRY },
        { REG_DEREGISTER, 403, "Unknown service", REG_RETRY },
        { REG_REGISTER, 429, "", REG_RETRY },
        { REG_REGISTER, 301, "", REG_RETRY },
        { REG_LIST, 400, "", REG_RETRY }, { REG_LIST, 404, "", REG_RETRY },
    };
    static struct consul own;
    static struct registry reg = { .own = &own };
    struct json j = { .n = 0 };
    struct buf text = { .max = 0 };
    struct arena a = { NULL };
    struct err e;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        struct reg_item item = { .owner = 0 };

        ROW(json_parse(&j, edge(quoted(&text, row[i].in)), &e) == 0,
            row[i].in);
        ROW(consul_item(&reg, &j, &a, &item) == row[i].ok, row[i].in);
        ROW((item.owner != 0) == row[i].marked, row[i].in);
    }
    for (i = 0; i < LENGTH(verdict); i++) {
        struct answer ans = { .status = verdict[i].status };

        ans.body = str_of(verdict[i].body);
        want(consul_verdict(&reg, verdict[i].op, 0, &ans) ==
             verdict[i].verdict, __LINE__, "%u %s", verdict[i].status,
             verdict[i].body);
    }
    arena_free(&a);
    json_free(&j);
    buf_free(&text);
}

/* The lines of requests: no ID can leave its place in the path. */
static void consul_requests(void)
{
    static const char *const row[][3] = {   /* the query, the ID, the line */
        { "", "h:c:80", "h:c:80" }, { "ns=a", "h:c:80", "h:c:80?ns=a" },
        { "", "a/b c", "a%2fb%20c" }, { "", "\xc3\xa9%?#&+", "%c3%a9%25%3f%23"
          "%26%2b" }, { "", "x HTTP/1.1\r\nA: b", "x%20HTTP%2f1.1%0d%0aA:%20"
          "b" },
    };
    static struct consul own;
    static struct registry r = { .own = &own };
    struct reg_write w = { .op = REG_DEREGISTER };
    struct buf b = { .max = 0 };
    struct request *q;
    size_t i;

    conn_init(&r.peer, "consul", 1);
    conn_set_address(&r.peer, STR(""), STR("c"), 8500);
    for (i = 0; i < LENGTH(row); i++) {
        own.query.n = b.n = 0;
        buf_lit(&own.query, row[i][0]);
        buf_fmt(&b, "PUT /v1/agent/service/deregister/%s HTTP/1.1\r\nHost: "
                    "c:8500\r\nContent-Length: 0\r\n\r\n", row[i][2]);
        w.key = str_of(row[i][1]);
        q = consul_write(&r, &w, 0);
        SAME(buf_str(&q->bytes), buf_str(&b), row[i][1]);
        WANT(!q->bytes.bad && consul_write(&r, &w, 1) == NULL);
        buf_free(&q->bytes);
        free(q);
    }
    w.op = REG_REGISTER;
    w.text = STR("{}");
    for (i = 0; i < 2; i++) {
        w.replace_checks = i > 0;
        own.query.n = b.n = 0;
        buf_lit(&own.query, "partition=p");
        buf_fmt(&b, "PUT /v1/agent/service/register%spartition=p HTTP/1.1\r\n"
                    "Host: c:8500\r\nContent-Type: application/json\r\n"
                    "Content-Length: 2\r\n\r\n{}",
                i > 0 ? "?replace-existing-checks=true&" : "?");
        q = consul_write(&r, &w, 0);
        SAME(buf_str(&q->bytes), buf_str(&b), "register");
        buf_free(&q->bytes);
        free(q);
    }
    own.query.n = 0;
    q = consul_list(&r);
    SAME(buf_str(&q->bytes), STR("GET /v1/agent/services HTTP/1.1\r\nHost: "
                                 "c:8500\r\n\r\n"), "list");
    buf_free(&q->bytes);
    free(q);
    buf_free(&b);
    buf_free(&own.query);
    buf_free(&r.peer.host_header);
}

/* What -cleanup takes for an entry of this host. */
static void reg_ids(void)
{
    static const struct {
        const char *host, *id;
        bool is;
    } row[] = {
        { "h", "h:web:80", true }, { "h", "h:web:80:udp", true },
        { "h", "h:w1_.-x:0", true }, { "h", "h:80:80", true },
        { "h", "h:udp:80:udp", true }, { "h:1", "h:1:web:80", true },
        { "h.d", "h.d:web:80", true },
        { "h", "h:w:80", false }, { "h", "hh:web:80", false },
        { "h", "g:web:80", false }, { "h", "h:web:", false },
        { "h", "h:web", false }, { "h", "h:web:80x", false },
        { "h", "h:web:80:tcp", false }, { "h", "h:web:80:udp:udp", false },
        { "h", "h::80", false }, { "h", "h:.web:80", false },
        { "h", "h:-web:80", false }, { "h", "h:we b:80", false },
        { "h", "h:web:80:81", false }, { "h", "h:1:web:80", false },
        { "h", "h", false }, { "h", "", false }, { "h", ":udp", false },
        { "h", "h:web:80\n", false }, { "h.d", "hxd:web:80", false },
    };
    size_t i;

    for (i = 0; i < LENGTH(row); i++)
        ROW(reg_is_default_id(edge(str_of(row[i].id)), str_of(row[i].host)) ==
            row[i].is, row[i].id);
}

/* ---- Connections ---- */

/* A peer within this process, on the loopback: what the script of a case
 * tells it to do.  `said` is what became of our requests, in order. */
struct scene {
    struct endpoint p;
    int listener, peer[16];
    size_t peers;
    uint64_t now;
    struct call {               /* the context of a request: its name */
        struct scene *scene;
        char name;
    } call[26];
    size_t calls;
    struct buf said;
};

static void scene_say(struct scene *s, char what, const char *more)
{
    buf_fmt(&s->said, "%s%.*s%s", s->said.n > 0 ? " " : "", 1, &what, more);
}

static void scene_done(struct request *r, const struct answer *a)
{
    const struct call *call = r->context;
    struct scene *s = call->scene;

    scene_say(s, call->name, a->status > 0 ? "" :
              a->err == NULL ? "-" : a->not_connected ? "~" : "!");
    if (a->status > 0)
        buf_fmt(&s->said, "%u%.*s", a->status, PUT(a->body));
}

/* The reader of a stream: <> for its head, then what comes. */
static int scene_body(struct request *r, struct str piece, struct err *e)
{
    struct scene *s = ((struct call *)r->context)->scene;

    if (str_prefix(piece, STR("b")))
        return err_set(e, "bad");
    buf_lit(&s->said, piece.n == 0 ? "<>" : "");
    buf_add(&s->said, piece);
    return 0;
}

/* Each connection is as the table at struct conn says. */
static void scene_holds(const struct scene *s)
{
    size_t i;

    for (i = 0; i < CONNS_MAX; i++) {
        const struct conn *c = &s->p.conn[i];
        bool asked = c->state == CONN_ASKED || c->state == CONN_READING;
        bool opening = c->state == CONN_CONNECTING ||
                       c->state == CONN_HANDSHAKE;

        WANT((c->state == CONN_FREE) == (c->fd < 0));
        WANT((c->request != NULL) == (asked || opening));
        WANT(c->tls == NULL && (c->state != CONN_IDLE || c->in.n == 0));
        WANT(c->request == NULL || list_empty(&c->request->link));
        WANT(conn_due(c) == UINT64_MAX
             ? !opening && (!asked || c->request->stream)
             : c->request != NULL && conn_due(c) <= s->now + CALL_MS);
    }
}

/* Lets our side do all that it can. */
static void scene_turn(struct scene *s)
{
    struct pollfd p[CONNS_MAX + 1];
    bool again = true;
    int on = 1;

    while (again) {
        int fd;

        conn_assign(&s->p, s->now);
        scene_holds(s);
        conn_pollfds(&s->p, p);
        p[CONNS_MAX].fd = s->listener;
        p[CONNS_MAX].events = POLLIN;
        again = poll(p, LENGTH(p), 3) > 0;
        if (again && p[CONNS_MAX].revents != 0) {
            fd = accept(s->listener, NULL, NULL);
            CHECK(fd >= 0 && s->peers < LENGTH(s->peer) && os_nonblock(fd));
            CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on)
                  == 0);
            s->peer[s->peers++] = fd;
        }
        conn_ready(&s->p, p, s->now);
    }
    scene_holds(s);
}

static void scene_ask(struct scene *s, char how)
{
    struct request *r = conn_request(&s->p, "GET", STR("/"), STR(""));
    struct call *call = &s->call[s->calls];

    r->stream = how == 'S';
    r->alone = how == 'S' || how == 'L';
    r->body = how == 'S' ? scene_body : NULL;
    r->bytes.bad = how == 'B';
    call->scene = s;
    call->name = (char)('a' + s->calls++);
    conn_send(&s->p, r, call, scene_done);
}

/* Two addresses, of which nobody listens on the first. */
static void scene_two_addresses(struct scene *s)
{
    struct sockaddr_in *in = (struct sockaddr_in *)(void *)
        &s->p.address[0].is;
    struct err e;
    size_t n;

    CHECK(os_resolve(s->p.host, s->p.port, s->p.address, 1, &n, &e) == 0);
    s->p.address[1] = s->p.address[0];
    in->sin_port = htons(1);
    s->p.addresses = 2;
}

/* q asks, S asks for a stream, L alone, B what cannot be sent; the peer of the
 * last digit answers whole (o), twice (D), with a last answer (c), without a
 * length (e), half (h), the other half (H), "no" (f), a long one's head (k)
 * and a byte of it (y), a stream's head (s) and event (v, V: one that its
 * reader refuses), garbage (g); it closes (x).  T and t: ten seconds and six;
 * R: all is called off; K: nobody listens any more; M: two addresses, U: a
 * socket that is not there; n: how many connections have come; d: was a kept
 * one closed; r: for how many requests there is room. */
static void scene_step(struct scene *s, char step, size_t peer)
{
    static const struct {
        char step;
        const char *text;
    } line[] = {
        { 'o', OK200 LENGTH_OF("2") "\r\nok" },
        { 'D', OK200 LENGTH_OF("2") "\r\nok" OK200 LENGTH_OF("2") "\r\nok" },
        { 'c', OK200 "Connection: close\r\n" LENGTH_OF("1") "\r\nc" },
        { 'e', OK200 "\r\nend" }, { 'h', OK200 LENGTH_OF("4") "\r\nha" },
        { 'H', "lf" }, { 's', OK200 CHUNKED "\r\n" },
        { 'f', "HTTP/1.1 404 x\r\n" LENGTH_OF("2") "\r\nno" },
        { 'k', OK200 LENGTH_OF("99") "\r\n" }, { 'y', "y" },
        { 'v', "3\r\n{1}\r\n" }, { 'V', "3\r\nbad\r\n" },
        { 'g', "SSH-2.0\r\n" }, { 'z', "0\r\n\r\n" },
    };
    char drop[4096], digit[2] = "0";
    size_t i;

    for (i = 0; i < LENGTH(line); i++)
        if (line[i].step == step)
            CHECK(peer < s->peers &&
                  send(s->peer[peer], line[i].text, strlen(line[i].text),
                       MSG_NOSIGNAL) == (ssize_t)strlen(line[i].text));
    if (strchr("qSLB", step) != NULL)
        scene_ask(s, step);
    if (step == 'x') {
        while (read(s->peer[peer], drop, sizeof drop) > 0)
            continue;
        (void)close(s->peer[peer]);
        s->peer[peer] = -1;
    }
    if (step == 't' || step == 'T') {
        s->now += step == 'T' ? CALL_MS : CALL_MS * 6 / 10;
        conn_tick(&s->p, s->now);
    }
    if (step == 'R')
        conn_reset(&s->p);
    if (step == 'K') {
        (void)close(s->listener);
        s->listener = -1;
    }
    if (step == 'M')
        scene_two_addresses(s);
    if (step == 'U')
        conn_set_address(&s->p, STR("/proc/self/nosuch"), STR(""), 0);
    digit[0] = (char)('0' + (step == 'n' ? s->peers
                             : step == 'd' ? s->p.closed_idle
                             : conn_room(&s->p)));
    if (strchr("ndr", step) != NULL)
        scene_say(s, step, digit);
    scene_turn(s);
}

static const struct {
    const char *why;
    size_t pool;
    const char *script, *said;
} conn_rows[] = {
    { "an answer", 1, "q0o", "a200ok" },
    { "one after another, kept open", 1, "q0oq0on", "a200ok b200ok n1" },
    { "a no is an answer", 1, "q0fq0on", "a404no b200ok n1" },
    { "no more than the pool at a time", 2, "qqqn0o1o0on",
      "n2 a200ok b200ok c200ok n2" },
    { "one request a connection", 1, "qqqn0ooo",
      "n1 a200ok b200ok c200ok" },
    { "an idle one before a new one", 2, "q0oqn0o", "a200ok n1 b200ok" },
    { "room", 2, "rqrSrqrqrRr", "r2 r1 r1 r0 r0 d- c- a- b- r2" },
    { "a stream takes no room", 1, "Sr0svr", "r1<>{1} r1" },
    { "alone, on a connection of its own", 1, "Ln0oqn1o",
      "n1 a200ok n2 b200ok" },
    { "alone, beside a pool that is busy", 1, "qLn1o0o",
      "n2 b200ok a200ok" },
    { "alone, not on an idle one", 1, "q0oLn1oq0on",
      "a200ok n2 b200ok c200ok n2" },
    { "two alone, beside a pool that is busy", 1, "qSLn2o0o",
      "n3 c200ok a200ok" },
    { "last answer", 1, "q0cqn1o", "a200c n2 b200ok" },
    { "without a length", 1, "q0exqn1o", "a200end n2 b200ok" },
    { "half and half", 1, "q0hH", "a200half" },
    { "closed in the middle", 1, "q0hxq1o", "a! b200ok" },
    { "closed without an answer", 1, "q0xn", "a! n1" },
    { "closed while idle", 1, "q0oxdq1odn", "a200ok d1 b200ok d1 n2" },
    { "crossing is sent again", 1, "q0oq0xn1o", "a200ok n2 b200ok" },
    { "crossing is sent again before others", 1, "q0oqq0x1oon",
      "a200ok b200ok c200ok n2" },
    { "crossing is sent again, at last over a new one", 2, "qq0o1oq1x0xn2o",
      "a200ok b200ok n3 c200ok" },
    { "not that over a new one", 1, "q0oq0x1xn", "a200ok b! n2" },
    { "later it is not sent again", 1, "q0oqt0xq1o", "a200ok b! c200ok" },
    { "after half an answer it is not sent again", 1, "q0oq0hx",
      "a200ok b!" },
    { "an answer that nobody asked for", 1, "q0ooqn1o",
      "a200ok n2 b200ok" },
    { "two answers to one request", 1, "q0Dqn1o", "a200ok n2 b200ok" },
    { "not HTTP", 1, "q0gq1o", "a! b200ok" },
    { "the deadline", 1, "qTnq1o", "a! n1 b200ok" },
    { "the deadline of one, not of others", 2, "qtqt1on", "a! b200ok n2" },
    { "half an answer has it too", 1, "q0hT", "a!" },
    { "what comes puts it off", 1, "qt0htH", "a200half" },
    { "but not for ever", 1, "qt0ktytytytytytytytytyntn", "n1 a! n1" },
    { "a stream", 1, "S0svvn", "<>{1}{1} n1" },
    { "a stream never times out", 1, "STT0sTTv", "<>{1}" },
    { "a stream and others", 1, "Sqn0s1o0v", "n2<> b200ok{1}" },
    { "a stream that ends", 1, "S0svz", "<>{1} a200" },
    { "a stream that breaks", 1, "S0svx", "<>{1} a!" },
    { "a stream that its reader refuses", 1, "S0sV", "<> a!" },
    { "a stream without a length", 1, "S0ex", "<>end a200" },
    { "no stream", 1, "S0f", "a404no" },
    { "called off", 1, "qqqR", "b- c- a-" },
    { "called off, then anew", 1, "q0oqRq1on", "a200ok b- c200ok n2" },
    { "called off with a stream", 2, "SqqR", "c- b- a-" },
    { "cannot be sent", 1, "Bqn0o", "a! n1 b200ok" },
    { "nobody listens", 1, "Kq", "a~" },
    { "nobody listens any more", 1, "q0oxKq", "a200ok b~" },
    { "the second address", 1, "Mqn0o", "n1 a200ok" },
    { "no such socket", 1, "Uq", "a~" },
};

static void scene_open(struct scene *s, size_t pool)
{
    struct sockaddr_in in;
    socklen_t n = sizeof in;
    int tries = 50;             /* other tests may hold all ports */

    memset(s, 0, sizeof *s);
    memset(&in, 0, sizeof in);
    in.sin_family = AF_INET;
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    s->listener = socket(AF_INET, SOCK_STREAM, 0);
    while (bind(s->listener, (struct sockaddr *)(void *)&in, n) != 0) {
        CHECK(tries-- > 0);
        (void)poll(NULL, 0, 100);
    }
    CHECK(listen(s->listener, 16) == 0);
    CHECK(getsockname(s->listener, (struct sockaddr *)(void *)&in, &n) == 0);
    conn_init(&s->p, "test", pool);
    conn_set_address(&s->p, STR(""), STR("127.0.0.1"), ntohs(in.sin_port));
    s->now = os_now();
}

static void conn_arrows(void)
{
    static struct scene s;
    size_t i, k, peer;

    for (i = 0; i < LENGTH(conn_rows); i++) {
        scene_open(&s, conn_rows[i].pool);
        for (k = peer = 0; conn_rows[i].script[k] != '\0'; k++)
            if (isdigit((unsigned char)conn_rows[i].script[k]))
                peer = (size_t)(conn_rows[i].script[k] - '0');
            else
                scene_step(&s, conn_rows[i].script[k], peer);
        SAME(buf_str(&s.said), str_of(conn_rows[i].said), conn_rows[i].why);
        conn_reset(&s.p);
        scene_holds(&s);
        ROW(conn_room(&s.p) == s.p.pool && s.p.addresses == 0,
            conn_rows[i].why);
        for (k = 0; k < s.peers; k++)
            os_close(s.peer[k]);
        os_close(s.listener);
        buf_free(&s.said);
        buf_free(&s.p.host_header);
    }
}

/* Pauses grow from the least to the most, and half of each is by chance. */
static void conn_pauses(void)
{
    static const uint64_t pause[] = { 100, 200, 400, 800, 1000, 1000, 1000 };
    struct retry r = { .tries = 0 };
    size_t i;

    for (i = 0; i < LENGTH(pause); i++) {
        WANT(retry_failed(&r, i < 6 ? "one" : "two", 50, 100, 1000) ==
             (i == 0 || i == 6));
        want(r.due >= 50 + pause[i] / 2 && r.due <= 50 + pause[i], __LINE__,
             "pause %zu", i);
        WANT(r.tries == i + 1 && *r.why == (i < 6 ? 'o' : 't'));
    }
    WANT(!retry_failed(&r, "one", 50, 100, 1000));
    retry_reset(&r);
    WANT(r.tries == 0 && r.due == 0 && r.why == NULL);
    WANT(retry_failed(&r, "one", 50, 100, 1000));
    retry_reset(&r);
}

/* Nodes are found by their keys, in the order of coming, and taken from the
 * queue by their turns when their pauses are over. */
static void conn_queues(void)
{
    static struct side s;
    struct index *x = &s.index;
    struct queue *q = &s.queue;
    struct node *n[3], *at;
    size_t i;

    side_init(&s, NULL, NULL);
    for (i = 0; i < 3; i++)
        n[i] = index_add(x, sizeof *n[i], str_upto(STR("cab"), i + 1));
    WANT(x->n == 3 && index_find(x, STR("ca")) == n[1]);
    WANT(index_find(x, STR("")) == NULL && index_find(x, STR("C")) == NULL);
    for (at = NULL, i = 0; (at = index_next(x, at)) != NULL; i++)
        WANT(at == n[i]);
    WANT(i == 3 && queue_first(q) == NULL && q->due == UINT64_MAX);
    n[0]->turn = 2;
    n[1]->retry.due = 20;
    n[2]->turn = TURNS - 1;
    for (i = 3; i-- > 0;)
        queue_put(q, n[i], 10);
    WANT(queue_first(q) == n[0] && q->due == 20);
    queue_put(q, n[0], 10);             /* twice is once */
    list_remove(&n[0]->queue);
    WANT(queue_first(q) == n[2]);
    queue_tick(q, 19);
    WANT(queue_first(q) == n[2] && q->due == 20);
    queue_tick(q, 20);
    WANT(queue_first(q) == n[1] && q->due == UINT64_MAX);
    index_remove(x, n[1]);
    WANT(queue_first(q) == n[2] && index_find(x, STR("ca")) == NULL);
    index_remove(x, n[0]);
    index_remove(x, n[2]);
    WANT(x->n == 0 && queue_first(q) == NULL && x->tree == NULL);
}

/* Lists are never closer together than RELIST_MIN_MS, whatever the reason. */
static void conn_relists(void)
{
    static struct side s;

    side_init(&s, NULL, NULL);
    WANT(s.list_due == UINT64_MAX);     /* nobody has asked */
    relist(&s, 500);
    relist(&s, 700);                    /* the earlier one counts */
    WANT(s.list_due == 500);
    s.epoch = 1;                        /* one was begun at 500 */
    s.list_begun = 500;
    s.list_due = UINT64_MAX;
    relist(&s, 0);
    WANT(s.list_due == 500 + RELIST_MIN_MS);
    s.list_due = UINT64_MAX;
    relist(&s, 600 + RELIST_MIN_MS);
    WANT(s.list_due == 600 + RELIST_MIN_MS);
}

/* ---- Sides, without a network: a case writes the answers by hand ---- */

/* Answers the first request that waits for a connection: status 0 is none.
 * The body comes as a connection hands it over.  False: none waits. */
static bool peer_answers(struct endpoint *p, unsigned status, struct str body)
{
    struct request *r = LIST_OF(struct request, link, p->waiting.next);
    struct answer a = { .status = status, .body = body };
    struct err e = { "it broke" };

    if (list_empty(&p->waiting))
        return false;
    if (status == 200 && r->body != NULL) {
        a.body = STR("");
        if (r->body(r, STR(""), &e) != 0 || r->body(r, edge(body), &e) != 0)
            a.status = 0;
    }
    a.err = a.status == 0 ? &e : NULL;
    conn_complete(r, &a);
    return true;
}

/* The same when no connection could be made at all. */
static void peer_refuses(struct endpoint *p)
{
    const struct err e = { "refused" };
    const struct answer a = { .err = &e, .not_connected = true };

    if (!list_empty(&p->waiting))
        conn_complete(LIST_OF(struct request, link, p->waiting.next), &a);
}

static void peer_unanswered(struct request *r, const struct answer *a)
{
    WANT(conn_canceled(a) && r->context == NULL);
}

/* A side that only notes what it is told to do. */
struct tale {
    struct side side;           /* first: the hooks get this */
    struct endpoint peer;
    bool shut;                  /* there is no request of a list now */
    struct buf said;
};

static void tale_say(struct side *side, const char *what)
{
    struct tale *t = (struct tale *)side;

    buf_fmt(&t->said, "%s%s", t->said.n > 0 ? " " : "", what);
}

static struct request *tale_hello(struct side *side, unsigned step)
{
    if (step == 2)
        return NULL;
    tale_say(side, step == 0 ? "h0" : "h1");
    return conn_request(side->peer, "GET", STR("/"), STR(""));
}

static int tale_on_hello(struct side *side, unsigned step,
                         const struct answer *a, struct err *e)
{
    (void)side;
    (void)step;
    return a->status == 200 ? 0 : err_set(e, "no");
}

static void tale_ready(struct side *side)
{
    tale_say(side, "ready");
    relist(side, side->now);
}

static void tale_down(struct side *side)
{
    tale_say(side, "down");
}

static struct request *tale_list(struct side *side)
{
    if (((struct tale *)side)->shut)
        return NULL;
    tale_say(side, "list");
    json_split_start(&side->split, 1, '[');
    return conn_request(side->peer, "GET", STR("/"), STR(""));
}

static bool tale_row(struct side *side, const struct json *j)
{
    tale_say(side, "row");
    return json_get(j, JSON_ROOT, "bad") == 0;
}

static void tale_listed(struct side *side)
{
    tale_say(side, side->whole ? "listed" : "in-part");
}

static bool tale_no_list(struct side *side, const struct answer *a)
{
    (void)side;
    return a->status == 404;
}

static const struct side_kind tale_kind = {
    tale_hello, tale_on_hello, tale_ready, tale_down, tale_list, tale_row,
    tale_listed, tale_no_list
};

/* Time passes; what is done is done because side_due said so. */
static void tale_tick(struct tale *t, uint64_t ms, const char *row)
{
    uint64_t now = t->side.now + ms, due = side_due(&t->side);
    size_t said = t->said.n;

    side_tick(&t->side, now);
    ROW(due <= now || t->said.n == said, row);
}

/* The peer answers o: 200 and two rows, p: one row that is bad and a good one,
 * c: a list that is cut, g: no list, N: 500, 0: 404; !: not at all, and ~: it
 * cannot be reached.  A dot is a tick; m: in a millisecond, s: in a second, T:
 * in 20.  r asks for a list, R for one in five seconds; x: no list is possible
 * now, or it is again; D: the peer is lost.  ? tells how it stands: the state,
 * (l)isted, (e)ver, (p)artial, (r)eading, (i)dle, and how often in a row the
 * session has failed. */
static void tale_step(struct tale *t, char step, const char *row)
{
    static const struct {
        char step;
        unsigned status;
        const char *body;
    } answer[] = {
        { 'o', 200, "[{},{}]" }, { 'p', 200, "[{\"bad\":1},{}]" },
        { 'c', 200, "[{}," }, { 'g', 200, "x" }, { 'N', 500, "no" },
        { '0', 404, "none" }, { '!', 0, "" },
    };
    static const char state[] = "DHAR";
    struct side *s = &t->side;
    struct err e = { "lost" };
    size_t i;

    for (i = 0; i < LENGTH(answer); i++)
        if (answer[i].step == step)
            ROW(peer_answers(&t->peer, answer[i].status,
                             str_of(answer[i].body)), row);
    if (strchr(".msT", step) != NULL)
        tale_tick(t, step == 'm' ? 1 : step == 's' ? RELIST_MIN_MS
                  : step == 'T' ? 2 * PAUSE_PEER_MS : 0, row);
    if (step == '~')
        peer_refuses(&t->peer);
    if (step == 'r' || step == 'R')
        relist(s, s->now + (step == 'R' ? 5 * RELIST_MIN_MS : 0));
    t->shut = t->shut != (step == 'x');
    if (step == 'D')
        side_down(s, &e);
    if (step == '?')
        buf_fmt(&t->said, " %.*s%s%s%s%s%s%.*s", 1, &state[s->state],
                s->listed ? "l" : "", s->ever ? "e" : "",
                s->partial ? "p" : "", s->reading ? "r" : "",
                side_idle(s) ? "i" : "", s->retry.tries > 0,
                &"0123456789"[s->retry.tries % 10]);
}

static void side_arrows(void)
{
#define UP ".o.o."              /* up to the first list, that is asked for */
#define UP_SAYS "h0 h1 ready list"
#define READ " row row listed"
    static const char *const row[][3] = {
        { "a session", "?" UP "?o?", " D h0 h1 ready list Rr row row listed "
          "Rlei" },
        { "a question at a time", "....?", "h0 A" },
        { "of no use", ".N?.m", "h0 down D1" },
        { "of no use, then again", ".NT", "h0 down h0" },
        { "the second answer is of no use", ".o.NT", "h0 h1 down h0" },
        { "no answer", ".!T", "h0 down h0" },
        { "not reached", ".~T", "h0 down h0" },
        { "a list that fails", UP "N?mmsT", UP_SAYS " R list" },
        { "a list that fails, and is read", UP "Nso?", UP_SAYS " list" READ
          " Rlei" },
        { "no answer to a list", UP "!?so", UP_SAYS " R list" READ },
        { "a list that is cut", UP "c?so", UP_SAYS " row R list" READ },
        { "what is no list", UP "gso", UP_SAYS " list" READ },
        { "no list is an empty one", UP "0?", UP_SAYS " listed Rlei" },
        { "a row is bad", UP "p?", UP_SAYS " row row in-part Rlepi" },
        { "... and then good", UP "prso?", UP_SAYS " row row in-part list"
          READ " Rlei" },
        { "the list finds nobody", UP "~?T", UP_SAYS " down D1 h0" },
        { "nobody asks", UP "oTTT", UP_SAYS READ },
        { "a second between lists", UP "or.m.ms", UP_SAYS READ " list" },
        { "whoever asks", UP "orrrs", UP_SAYS READ " list" },
        { "later", UP "oRsssss?", UP_SAYS READ " list Rler" },
        { "the earlier one counts", UP "oRrs", UP_SAYS READ " list" },
        { "not while one is read", UP "rssso.", UP_SAYS READ " list" },
        { "a second, also after a loss", UP "oDT.o.o.", UP_SAYS READ
          " down h0 h1 ready list" },
        { "asked for while it is lost", UP "oDrT", UP_SAYS READ " down h0" },
        { "none is possible", "x" UP "?x.r.", "h0 h1 ready R list" },
        { "lost while it is asked", ".D?T", "h0 down D1 h0" },
        { "lost while a list is read", UP "D?To.o.", UP_SAYS
          " down D1 h0 h1 ready list" },
        { "lost again", UP "oDD?", UP_SAYS READ " down De1" },
        { "lost again and again", ".NTo.NTo.o.~?To.o.o?D?", "h0 down h0 h1 "
          "down h0 h1 ready list down D3 h0 h1 ready list" READ " Rlei down "
          "De1" },
        { "back", UP "oDTo.o.o?", UP_SAYS READ " down h0 h1 ready list" READ
          " Rlei" },
    };
    static struct tale t;
    size_t i, k;

    quiet(true);
    for (i = 0; i < LENGTH(row); i++) {
        memset(&t, 0, sizeof t);
        conn_init(&t.peer, "test", 1);
        conn_set_address(&t.peer, STR(""), STR("h"), 1);
        side_init(&t.side, &tale_kind, &t.peer);
        t.side.now = 1000;
        for (k = 0; row[i][1][k] != '\0'; k++)
            tale_step(&t, row[i][1][k], row[i][0]);
        SAME(buf_str(&t.said), str_of(row[i][2]), row[i][0]);
        ROW(side_ready(&t.side) == (t.side.state == SIDE_READY), row[i][0]);
        conn_reset(&t.peer);
        retry_reset(&t.side.retry);
        retry_reset(&t.side.list_retry);
        json_free(&t.side.json);
        buf_free(&t.side.split.element);
        buf_free(&t.peer.host_header);
        buf_free(&t.said);
    }
    quiet(false);
}

/* The pause before the first session is that of -retry-interval; afterwards,
 * and without it, pauses grow, and a list that was read ends that. */
static void side_pauses(void)
{
    static struct tale t;
    struct err e = { "lost" };
    uint64_t pause;
    size_t i;

    memset(&t, 0, sizeof t);
    conn_init(&t.peer, "test", 1);
    side_init(&t.side, &tale_kind, &t.peer);
    t.side.now = 1000;
    t.side.first_pause_ms = 7;
    quiet(true);
    for (i = 0; i < 20; i++) {
        t.side.ever = i >= 4;
        if (i == 10)            /* as when a list has been read */
            retry_reset(&t.side.retry);
        t.side.state = SIDE_READY;
        side_down(&t.side, &e);
        pause = t.side.retry.due - t.side.now;
        want(i < 4 ? pause == 7
             : i == 10 ? pause <= PAUSE_MIN_MS && pause >= PAUSE_MIN_MS / 2
             : i == 9 ? pause >= 16 * PAUSE_MIN_MS
             : pause <= PAUSE_PEER_MS, __LINE__, "%zu: %d ms", i, (int)pause);
        WANT(side_due(&t.side) == t.side.retry.due);
    }
    quiet(false);
    retry_reset(&t.side.retry);
    buf_free(&t.said);
}

/* ---- Words, addresses and files ---- */

#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
static struct str words(struct buf *b, const char *format, ...)
{
    va_list args;

    b->n = 0;
    va_start(args, format);
    buf_vfmt(b, format, args);
    va_end(args);
    return buf_str(b);
}

/* What snprintf makes of it. */
#define WORDS(...) do { \
        (void)snprintf(text, sizeof text, __VA_ARGS__); \
        SAME(words(&b, __VA_ARGS__), str_of(text), text); \
    } while (0)

static void log_formats(void)
{
    static const int d[] = { 0, 9, -9, 10, 2147483647, -2147483647, INT_MIN };
    static const unsigned long long x[] = { 0, 0xabc, 0x123456789abcdef };
    struct str twelve = edge(STR("0123456789ab"));
    struct buf b = { .max = 0 };
    char text[256];
    size_t i;

    WORDS("words: %s", "");
    WORDS("%s%s, %s", "a", "", "b c");
    WORDS("%.12s|", twelve.p);          /* it is not terminated */
    WORDS("%.12s|%.12s", "short", "0123456789abcdef");
    WORDS("%.1s%.2s|", "a", "bcd");
    WORDS("%.*s|%.*s|%.*s", PUT(twelve), 0, "x", 2, "xyz");
    for (i = 0; i < LENGTH(d); i++)
        WORDS("%d %d%u", d[i], -1, (unsigned)d[i]);
    WORDS("%02d:%02d:%02d%02d", 0, 9, 10, 123);
    WORDS("%%");
    for (i = 0; i < LENGTH(x); i++)
        WORDS("%llx %016llx %016llx", x[i], x[i], ~x[i]);
    WORDS("%x %x %02x %04x %08x", 0u, UINT_MAX, 0xfu, 0x12345u, 0xabcu);
    WORDS("%u %u", 0u, UINT_MAX);
    WORDS("%zu %zu %s", (size_t)0, SIZE_MAX, "end");
    SAME(words(&b, "%s", ""), STR(""), "nothing");
    SAME(words(&b, "<%.*s>", PUT(STR("a\0b\0"))), STR("<a\0b\0>"), "NULs");
    buf_free(&b);
}

static void log_errors(void)
{
    static char large[2 * ERR_MAX];
    struct str cut = { large, ERR_MAX - 1 };
    struct err e;
    size_t n;

    memset(large, 'x', sizeof large);
    for (n = ERR_MAX - 2; n < ERR_MAX + 2; n++) {
        WANT(err_set(&e, "%.*s", (int)n, large) == -1);
        SAME(str_of(e.text), str_first(cut, n), "cut");
    }
    WANT(err_set(&e, "%s!", e.text) == -1);         /* of itself */
    SAME(str_of(e.text), cut, "its own");
    err_set(&e, "a%.*sz", PUT(STR("\0b\0")));
    SAME(str_of(e.text), STR("a b z"), "NUL");
    err_set(&e, "%s", "");
    SAME(str_of(e.text), STR(""), "empty");
}

/* A path at which the text can be read; there are four such files, all in
 * memory. */
static const char *spill(size_t i, struct str text)
{
    static char path[4][32];
    static int file[4];

    if (*path[i] == '\0') {
        char name[64];

        (void)snprintf(name, sizeof name, "/registrator-unit-%d",
                       (int)getpid());
        file[i] = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
        CHECK(file[i] >= 0 && shm_unlink(name) == 0);
        (void)snprintf(path[i], sizeof path[i], "/proc/self/fd/%d", file[i]);
    }
    CHECK(ftruncate(file[i], 0) == 0 &&
          pwrite(file[i], text.p, text.n, 0) == (ssize_t)text.n);
    return path[i];
}

/* Lines in the log: dated, of one level or a graver one, and cut. */
static void log_lines(void)
{
    enum { N = LOG_LINE_MAX };
    static char large[N + 1];
    const char *path = spill(0, STR(""));
    enum log_level limit = log_limit;
    struct buf b = { .max = 0 };
    int saved = dup(STDERR_FILENO), fd = open(path, O_WRONLY | O_APPEND), i;
    struct str rest, line;
    struct err e;

    memset(large, 'x', sizeof large);
    CHECK(saved >= 0 && fd >= 0 && dup2(fd, STDERR_FILENO) >= 0);
    log_limit = LOG_WARN;
    log_at(LOG_INFO, "not %s", "this");
    CHECK(dup2(open("/dev/null", O_RDONLY), STDERR_FILENO) >= 0);
    log_at(LOG_ERROR, "this is lost");  /* and no other */
    CHECK(dup2(fd, STDERR_FILENO) >= 0);
    log_at(LOG_WARN, "one\n%d", -1);
    for (i = 0; i < 2; i++)
        log_at(LOG_ERROR, "%.*s", N + i, large);
    log_limit = limit;
    CHECK(dup2(saved, STDERR_FILENO) >= 0);
    (void)close(saved);
    (void)close(fd);
    CHECK(os_file(path, &b, &e) == 0);
    for (rest = buf_str(&b), i = 0; i < 3; i++) {
        line = str_cut(&rest, '\n');
        WANT(line.n > 33 && line.p[4] == '/' && line.p[7] == '/' &&
             line.p[10] == ' ' && line.p[13] == ':' && line.p[16] == ':');
        SAME(str_first(str_from(line, 19), 14), STR(" registrator: "), "log");
        line = str_from(line, 33);
        if (i == 0)
            SAME(line, STR("one\\n-1"), "log");
        else
            WANT(line.n == N + (i == 2 ? 3 : 0) &&
                 str_suffix(line, i == 2 ? STR("x...") : STR("xx")));
    }
    WANT(rest.n == 0);
    buf_free(&b);
}

/* Ours is what the C library says, but for IPv4 in IPv6, which is groups like
 * any other; and it can be read again. */
static void address_holds(const unsigned char *ip, size_t n)
{
    static const unsigned char zero[12], ones[2] = { 0xff, 0xff };
    unsigned char back[16];
    struct buf b = { .max = 0 };
    char text[64] = "";
    bool mapped = n == 16 && memcmp(ip + 10, ones, 2) == 0;

    if (n == 16 && memcmp(ip, zero, 10) == 0 && (mapped ||
        (memcmp(ip + 10, zero, 2) == 0 && (ip[12] | ip[13]) != 0)))
        (void)snprintf(text, sizeof text, "::%s%x:%x", mapped ? "ffff:" : "",
                       ip[12] << 8 | ip[13], ip[14] << 8 | ip[15]);
    else
        CHECK(inet_ntop(n == 4 ? AF_INET : AF_INET6, ip, text, sizeof text));
    ip_format(&b, ip, n);
    SAME(buf_str(&b), str_of(text), text);
    want(ip_parse(buf_str(&b), back) == n && memcmp(back, ip, n) == 0,
         __LINE__, "%s is not read again", text);
    buf_free(&b);
}

static void os_addresses(void)
{
    static const unsigned group[] = { 1, 0xf, 0x10, 0xabc, 0xffff, 0x100 };
    static const char *const name[] = {
        "", "a", "1", "1.2.3", "1.2.3.4.", "1.2.3.4.5", "256.1.1.1", "1.2.3.x",
        " 1.2.3.4", ":", ":::", "[::1]", "::1%lo", "1:2:3:4:5:6:7", "::g",
        "::1.2.3", "12345::", "localhost",
    };
    static const size_t none[] = { 0, 3, 5, 15, 17 };
    unsigned char ip[17] = { 0 };
    struct buf b = { .max = 0 };
    size_t pattern, i, k;
    uint32_t x = 1;

    for (pattern = 0; pattern < 256; pattern++)
        for (i = 0; i < LENGTH(group); i++) {
            for (k = 0; k < 8; k++) {
                unsigned v = (pattern >> k & 1) != 0 ? group[i] : 0;

                ip[2 * k] = (unsigned char)(v >> 8);
                ip[2 * k + 1] = (unsigned char)v;
            }
            address_holds(ip, 16);
            if (pattern < 16)
                address_holds(ip, 4);
        }
    for (i = 0; i < 100000; i++) {
        for (k = 0; k < 16; k++) {
            x = x * 1664525 + 1013904223;
            ip[k] = x >> 30 == 0 ? (unsigned char)(x >> 16) : 0;
            if (i % 3 == 0 && k >= 10)      /* 1/3: IPv4, mapped */
                ip[k] = k < 12 ? 0xff : (unsigned char)(x >> 20);
            else if (i % 3 == 1)
                ip[k] = (unsigned char)(x >> 24);
            if (i % 3 == 0 && k < 10)
                ip[k] = 0;
        }
        address_holds(ip, i % 5 == 0 ? 4 : 16);
    }
    for (i = 0; i < LENGTH(name); i++)
        ROW(ip_parse(edge(str_of(name[i])), ip) == 0, name[i]);
    for (i = 0; i < LENGTH(none); i++)
        ip_format(&b, ip, none[i]);
    WANT(b.n == 0);
    WANT(ip_is_local(STR("127.0.1.1")));
    WANT(!ip_is_local(STR("12.7.0.0")));
    buf_free(&b);
}

/* ---- TLS: certificates ---- */

/* The first certificate of a PEM text. */
static struct str der_of(const char *pem, struct arena *a)
{
    const br_x509_certificate *cert;
    struct err e;
    size_t n;

    cert = pem_load(a, spill(3, str_of(pem)), "CERTIFICATE", &n, &e);
    CHECK(cert != NULL);
    return (struct str){ (const char *)cert->data, cert->data_len };
}

static void tls_certificates(void)
{
    static const struct {
        const char *pem, *name;
        bool match, servers;
        const char *names;
    } row[] = {
        { PEM_SERVER, "10.1.2.3", true, true,
          "10.1.2.3, a.example.test, 2001:db8::7" },
        { PEM_SERVER, "2001:db8:0::7", true, true,
          "10.1.2.3, a.example.test, 2001:db8::7" },
        { PEM_SERVER, "A.example.TEST", true, true,
          "10.1.2.3, a.example.test, 2001:db8::7" },
        { PEM_SERVER, "10.1.2.4", false, true,
          "10.1.2.3, a.example.test, 2001:db8::7" },
        { PEM_SERVER, "::ffff:10.1.2.3", false, true,
          "10.1.2.3, a.example.test, 2001:db8::7" },
        { PEM_SERVER, "::", false, true,
          "10.1.2.3, a.example.test, 2001:db8::7" },
        { PEM_CRITICAL, "10.1.2.3", true, true, "10.1.2.3" },
        { PEM_BARE, "a.example.test", false, true, "" },
        { PEM_NAMES, "b.example.test", true, true, "b.example.test" },
        { PEM_NAMES, "a.example.test", false, true, "b.example.test" },
        { PEM_CLIENT, "a.example.test", true, false, "a.example.test" },
        { PEM_RSA, "r", false, true, "" },
    };
    struct buf names = { .max = 0 };
    struct arena a = { NULL };
    struct cert_info c;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        struct str der = edge(der_of(row[i].pem, &a));

        names.n = 0;
        ROW(cert_parse(der, &c), row[i].name);
        ROW(cert_is_for(c.names, str_of(row[i].name), &names) == row[i].match,
            row[i].name);
        ROW((c.unfit == NULL) == row[i].servers && c.may_sign, row[i].name);
                ROW(c.subject.n > 0 && c.issuer.n > 0 && c.signed_n < der.n,
            row[i].name);
        SAME(buf_str(&names), str_of(row[i].names), row[i].name);
    }
    buf_free(&names);
    arena_free(&a);
}

/* A wildcard is one label, at the beginning; an address is not a name. */
static void tls_wildcards(void)
{
    static const struct {
        struct str san;                 /* with its tag */
        const char *name;
        bool match;
    } row[] = {
        { STR_INIT("\x82\x03" "*.a"), "x.a", true },
        { STR_INIT("\x82\x03" "*.a"), "X.A", true },
        { STR_INIT("\x82\x03" "*.a"), "a", false },
        { STR_INIT("\x82\x03" "*.a"), ".a", true },
        { STR_INIT("\x82\x03" "*.a"), "x.y.a", false },
        { STR_INIT("\x82\x03" "*.a"), "x.a.", false },
        { STR_INIT("\x82\x05" "*.*.a"), "x.y.a", false },
        { STR_INIT("\x82\x04" "x*.a"), "xy.a", false },
        { STR_INIT("\x82\x05" "x.*.a"), "x.y.a", false },
        { STR_INIT("\x82\x01" "*"), "x", false },
        { STR_INIT("\x82\x02" "*."), "x", false },
        { STR_INIT("\x82\x02" "*."), "x.", false },
        { STR_INIT("\x82\x00"), "x", false },
        { STR_INIT("\x82\x04" "x.a\0"), "x.a", false },
        { STR_INIT("\x82\x03" "x.a"), "x.a", true },
        { STR_INIT("\x81\x03" "x.a"), "x.a", false },
        { STR_INIT("\x86\x03" "x.a"), "x.a", false },
        { STR_INIT("\x87\x03" "x.a"), "x.a", false },
        { STR_INIT("\x82\x07" "1.2.3.4"), "1.2.3.4", false },
        { STR_INIT("\x82\x07" "*.2.3.4"), "1.2.3.4", false },
        { STR_INIT("\x87\x04" "\1\2\3\4"), "1.2.3.4", true },
        { STR_INIT("\x87\x05" "\1\2\3\4\0"), "1.2.3.4", false },
        { STR_INIT("\x87\x04" "1234"), "1234", false },
        { STR_INIT("\x82\x01" "y\x82\x01" "x"), "x", true },
        { STR_INIT("\x82\x01" "y\x82\x02" "x"), "x", false },
    };
    struct buf names = { .max = 0 };
    size_t i;

    for (i = 0; i < LENGTH(row); i++)
        want(cert_is_for(edge(row[i].san), str_of(row[i].name), &names) ==
             row[i].match, __LINE__, "row %zu: %s", i, row[i].name);
    buf_free(&names);
}

static bool within(struct str piece, struct str in)
{
    return piece.n == 0 || (piece.p >= in.p && piece.n <= in.n &&
                            (size_t)(piece.p - in.p) <= in.n - piece.n);
}

static void want_within(const struct cert_info *c, struct str der)
{
    struct buf names = { .max = 0 };

    WANT(within(c->der, der) && c->signed_n <= der.n);
    WANT(within(c->issuer, der) && within(c->subject, der));
    WANT(c->names.n == 0 || within(c->names, der));
    (void)cert_is_for(c->names, STR("2001:db8::7"), &names);
    buf_free(&names);
}

/* Every beginning of a certificate is refused; any byte may be another one
 * without harm. */
static void tls_damage(void)
{
    static const char *const pem[] = { PEM_SERVER, PEM_BARE, PEM_RSA };
    struct arena a = { NULL };
    struct cert_info c;
    size_t i, n;
    int v;

    for (i = 0; i < LENGTH(pem); i++) {
        struct str der = der_of(pem[i], &a), s;
        char *bytes = arena_alloc(&a, der.n);

        memcpy(bytes, der.p, der.n);
        for (n = 0; n < der.n; n++) {
            want(!cert_parse(edge(str_upto(der, n)), &c), __LINE__,
                 "%zu of the %zu bytes of certificate %zu", n, der.n, i);
            for (v = 0; v < 256; v++) {
                bytes[n] = (char)v;
                s.p = bytes;
                s.n = der.n;
                s = edge(s);
                if (cert_parse(s, &c))
                    want_within(&c, s);
            }
            bytes[n] = der.p[n];
        }
    }
    arena_free(&a);
}

static void tls_elements(void)
{
    static const struct {
        struct str in;
        bool ok;
        unsigned tag;
        size_t n, left;
    } row[] = {
        { STR_INIT(""), false, 0, 0, 0 }, { STR_INIT("\x30"), false, 0, 0, 0 },
        { STR_INIT("\x30\x00"), true, 0x30, 0, 0 },
        { STR_INIT("\xa3\x02xyz"), true, 0xa3, 2, 1 },
        { STR_INIT("\x04\x03xy"), false, 0, 0, 0 },
        { STR_INIT("\x04\x80xy\0\0"), false, 0, 0, 0 },     /* indefinite */
        { STR_INIT("\x04\x81"), false, 0, 0, 0 },
        { STR_INIT("\x04\x81\x01x"), true, 4, 1, 0 },
        { STR_INIT("\x04\x82\x00\x01xy"), true, 4, 1, 1 },
        { STR_INIT("\x04\x83\x00\x00\x01x"), true, 4, 1, 0 },
        { STR_INIT("\x04\x83\xff\xff\xff"), false, 0, 0, 0 },
        { STR_INIT("\x04\x84\x00\x00\x00\x01x"), false, 0, 0, 0 },
        { STR_INIT("\x04\xffx"), false, 0, 0, 0 },
        { STR_INIT("\x04\x82\x01"), false, 0, 0, 0 },
        { STR_INIT("\x1f\x01x"), false, 0, 0, 0 },      /* a longer tag */
        { STR_INIT("\xbf\x01x"), false, 0, 0, 0 },
    };
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        struct str s = edge(row[i].in);
        struct str in, whole = s;
        unsigned tag = der_tag(s);

        want(!der_take(&s, tag + 1, &in) && s.n == whole.n, __LINE__,
             "row %zu", i);
        want(der_take(&s, tag, &in) == row[i].ok, __LINE__, "row %zu", i);
        want(row[i].ok ? tag == row[i].tag && in.n == row[i].n &&
                         s.n == row[i].left && within(in, whole)
                       : s.n == whole.n, __LINE__, "row %zu: %u %zu", i, tag,
             s.n);
    }
}

/* Puts a header before what b holds from `at` on. */
static void enclose(struct buf *b, size_t at, unsigned tag)
{
    char head[4] = { (char)tag, (char)0x82 };
    size_t n = b->n - at;

    CHECK(n < 65536 && buf_need(b, 4));
    head[2] = (char)(n >> 8);
    head[3] = (char)n;
    memmove(b->p + at + 4, b->p + at, n);
    memcpy(b->p + at, head, 4);
    b->n += 4;
}

/* Names without end: the last one counts, the first ones are shown. */
static void tls_many_names(void)
{
    struct buf b = { .max = 0 }, names = { .max = ERR_MAX / 2 };
    unsigned i;

    for (i = 1; i <= 4000; i++) {
        buf_lit(&b, "\x87\x04\x0a");
        buf_byte(&b, '\0');
        buf_byte(&b, (char)(i >> 8));
        buf_byte(&b, (char)i);
    }
    WANT(cert_is_for(edge(buf_str(&b)), STR("10.0.15.160"), &names));
    WANT(!cert_is_for(edge(buf_str(&b)), STR("10.0.15.161"), &names));
    WANT(names.bad && names.n <= ERR_MAX / 2 &&
         str_prefix(buf_str(&names), STR("10.0.0.1, 10.0.0.2, ")));
    buf_free(&names);
    buf_free(&b);
}

/* A certificate with these extensions. */
static struct str with_extensions(struct buf *b, struct str x)
{
    b->n = 0;
    buf_add(b, x);
    enclose(b, 0, 0x30);
    enclose(b, 0, 0xa3);
    b->bad = b->bad || !buf_need(b, 11);
    memmove(b->p + 11, b->p, b->n);
    memcpy(b->p, "\x02\x01\x01\x30\x00\x30\x00\x30\x00\x30\x00", 11);
    b->n += 11;
    enclose(b, 0, 0x30);
    enclose(b, 0, 0x30);
    return buf_str(b);
}

/* What extensions say, and which make a certificate malformed. */
static void tls_extensions(void)
{
#define USE "\x06\x03\x55\x1d\x25\x04"
#define USE_SERVER "\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01"
#define USE_CLIENT "\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02"
    static const struct {
        struct str in;
        bool ok, servers, sign, limited;
    } row[] = {
        { STR_INIT(""), true, true, true, false },
        { STR_INIT("\x30\x13" USE "\x0c\x30\x0a" USE_SERVER),
          true, true, true, false },
        { STR_INIT("\x30\x13" USE "\x0c\x30\x0a" USE_CLIENT),
          true, false, true, false },
        { STR_INIT("\x30\x1d" USE "\x16\x30\x14" USE_CLIENT USE_SERVER),
          true, true, true, false },
        { STR_INIT("\x30\x16\x06\x03\x55\x1d\x25\x01\x01\xff\x04\x0c\x30\x0a"
                   USE_SERVER), true, true, true, false },
        { STR_INIT("\x30\x0d" USE "\x06\x30\x04\x06\x02\x55\x1d"),
          true, false, true, false },
        { STR_INIT("\x30\x0f" USE "\x08\x30\x06\x06\x04\x55\x1d\x25\x00"),
          true, true, true, false },
        { STR_INIT("\x30\x09" USE "\x02\x30\x00"), true, false, true, false },
        { STR_INIT("\x30\x08" USE "\x01\x30"), false, false, false, false },
        { STR_INIT("\x30\x07" USE "\x00"), false, false, false, false },
        { STR_INIT("\x30\x09" USE "\x02\x30\x00" "\x30\x09" USE
                   "\x02\x30\x00"), false, false, false, false },
        { STR_INIT("\x30\x0b\x06\x03\x55\x1d\x0f\x04\x04\x03\x02\x07\x80"),
          true, true, true, false },
        { STR_INIT("\x30\x0b\x06\x03\x55\x1d\x0f\x04\x04\x03\x02\x05\x60"),
          true, true, false, false },
        { STR_INIT("\x30\x0a\x06\x03\x55\x1d\x0f\x04\x03\x03\x01\x00"),
          true, true, false, false },
        { STR_INIT("\x30\x09\x06\x03\x55\x1d\x0f\x04\x02\x03\x00"),
          true, true, false, false },
        { STR_INIT("\x30\x09\x06\x03\x55\x1d\x1e\x04\x02\x30\x00"),
          true, true, true, true },
        { STR_INIT("\x30\x09\x06\x03\x2a\x03\x04\x04\x02\x30\x00"
                   "\x30\x09\x06\x03\x2a\x03\x04\x04\x02\x30\x00"),
          true, true, true, false },
        { STR_INIT("\x30\x09\x06\x03\x55\x1d\x5e\x04\x02\x30\x00"),
          true, true, true, false },
        { STR_INIT("\x30\x09\x06\x03\x55\x1d\xde\x04\x02\x30\x00"),
          true, true, true, false },
        { STR_INIT("\x30\x05\x06\x03\x55\x1d\x25"), false, false, false,
          false },
        { STR_INIT("\x31\x00"), false, false, false, false },
    };
    struct buf b = { .max = 0 };
    struct cert_info c;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        bool ok = cert_parse(edge(with_extensions(&b, row[i].in)), &c);

        want(ok == row[i].ok, __LINE__, "row %zu: %d", i, ok);
        want(!ok || (c.may_sign == row[i].sign && (c.unfit == NULL) ==
                     (row[i].servers && !row[i].limited)), __LINE__,
             "row %zu", i);
    }
    buf_free(&b);
}

/* ---- TLS: chains ---- */

/* How the peer is to be judged: by these CAs, NULL for none at all. */
static struct tls_config trusting(const char *ca, const char *name)
{
    struct tls_config cfg = { .on = true, .name = str_of(name) };
    struct err e;

    cfg.ca_file = ca == NULL ? NULL : spill(0, str_of(ca));
    cfg.insecure = ca == NULL;          /* so that nothing is read */
    CHECK(tls_load(&cfg, &e) == 0);
    cfg.insecure = false;
    return cfg;
}

static void distrust(struct tls_config *cfg)
{
    tls_free_creds(cfg->creds);
    cfg->creds = NULL;
}

/* Judges the certificates, handed over in pieces, as the engine would. */
static unsigned verdict(struct tls_config *cfg, const struct str *cert,
                        size_t n, size_t piece, struct err *why)
{
    struct tls *t = tls_open(cfg, why);
    const br_x509_class **c;
    unsigned error, usages;
    size_t i;

    CHECK(t != NULL);
    c = &t->minimal.vtable;
    (*c)->start_chain(c, t->client.eng.server_name);
    CHECK((*c)->get_pkey(c, &usages) == NULL);
    for (i = 0; i < n; i++) {
        struct str rest = cert[i];

        (*c)->start_cert(c, (uint32_t)rest.n);
        while (rest.n > 0) {
            struct str one = str_first(rest, piece);

            (*c)->append(c, (const unsigned char *)one.p, one.n);
            rest = str_from(rest, one.n);
        }
        (*c)->end_cert(c);
    }
    error = (*c)->end_chain(c);
    CHECK(((*c)->get_pkey(c, &usages) != NULL) == (error == 0));
    CHECK(error != 0 || *t->why.text == '\0');
    *why = t->why;
    tls_close(t, -1);
    return error;
}

#define SERVER_NAMES "10.1.2.3, a.example.test, 2001:db8::7"

static void tls_chains(void)
{
    enum { TRUST = BR_ERR_X509_NOT_TRUSTED, LATE = BR_ERR_X509_EXPIRED,
           KIND = BR_ERR_X509_UNSUPPORTED, WRONG = BR_ERR_X509_BAD_SIGNATURE };
    static const struct {
        const char *cert[2], *name, *ca;    /* ca NULL: insecure */
        unsigned error;
        const char *why;                /* how it begins */
    } row[] = {
        { { PEM_SERVER }, "a.example.test", PEM_CA, 0, "" },
        { { PEM_SERVER }, "A.example.TEST", PEM_CA, 0, "" },
        { { PEM_SERVER, PEM_CA }, "10.1.2.3", PEM_CA, 0, "" },
        { { PEM_SERVER }, "2001:DB8:0::7", PEM_OTHER PEM_CA, 0, "" },
        { { PEM_SERVER }, "a.example.test", PEM_SERVER, 0, "" },
        { { PEM_SERVER, PEM_CA }, "a.example.test", PEM_SERVER, 0, "" },
        { { PEM_SERVER }, "10.1.2.4", PEM_CA, TRUST, "the certificate is not "
          "for 10.1.2.4 but for " SERVER_NAMES },
        { { PEM_SERVER }, "::ffff:10.1.2.3", PEM_CA, TRUST, "the certificate "
          "is not for ::ffff:10.1.2.3 but for " SERVER_NAMES },
        { { PEM_SERVER }, "b.example.test", PEM_CA, TRUST, "the certificate "
          "is not for b.example.test but for " SERVER_NAMES },
        { { PEM_SERVER }, "example.test", PEM_CA, TRUST, "the cert" },
        { { PEM_SERVER }, "b.a.example.test", PEM_CA, TRUST, "the cert" },
        { { PEM_SERVER }, "a.example.test2", PEM_CA, TRUST, "the cert" },
        { { PEM_SERVER }, "x@y", PEM_CA, TRUST, "the certificate is not" },
        { { PEM_SERVER }, "s", PEM_CA, TRUST, "the certificate is not for" },
        { { PEM_SERVER }, "10.1.2.4", PEM_SERVER, TRUST, "the cert" },
        { { PEM_CRITICAL }, "10.1.2.3", PEM_CA, 0, "" },
        { { PEM_CRITICAL }, "a.example.test", PEM_CA, TRUST, "the cert" },
        { { PEM_BARE }, "a.example.test", PEM_CA, TRUST, "the certificate is "
          "not for a.example.test but for no name (subjectAltName)" },
        { { PEM_NAMES }, "a.example.test", PEM_CA, TRUST, "the certificate is "
          "not for a.example.test but for b.example.test" },
        { { PEM_NAMES }, "b.example.test", PEM_CA, 0, "" },
        { { PEM_CLIENT }, "a.example.test", PEM_CA, TRUST,
          "the certificate is not for servers (extendedKeyUsage)" },
        { { PEM_SERVER, PEM_CLIENT }, "a.example.test", PEM_CA, TRUST,
          "an intermediate certificate is not for servers (extended" },
        { { PEM_EXPIRED }, "a.example.test", PEM_CA, LATE, "" },
        { { PEM_FUTURE }, "a.example.test", PEM_CA, LATE, "" },
        { { PEM_EXPIRED }, "a.example.test", PEM_EXPIRED, LATE, "" },
        { { PEM_SERVER }, "a.example.test", PEM_OTHER, TRUST, "" },
        { { PEM_SERVER, PEM_CA }, "a.example.test", PEM_OTHER, TRUST, "" },
        { { PEM_CA, PEM_SERVER }, "a.example.test", PEM_CA, TRUST,
          "the certificate is not for a.example.test but for no name" },
        { { PEM_SERVER, PEM_OTHER }, "a.example.test", PEM_CA, 0, "" },
        { { PEM_RSA }, "r", PEM_CA, TRUST, "the certificate is not for r" },
        { { NULL }, "a.example.test", PEM_CA, BR_ERR_X509_EMPTY_CHAIN, "" },
        { { PEM_SERVER }, "b.example.test", NULL, 0, "" },
        { { PEM_EXPIRED, PEM_OTHER }, "10.9.9.9", NULL, 0, "" },
        { { PEM_RSA }, "b.example.test", NULL, 0, "" },
        { { PEM_ED25519 }, "a.example.test", NULL, KIND, "" },
        { { NULL }, "a.example.test", NULL, BR_ERR_X509_EMPTY_CHAIN, "" },
    };
    static const size_t piece[] = { SIZE_MAX, 1, 7, 256 };
    struct arena a = { NULL };
    size_t i, k, n;

    for (i = 0; i < LENGTH(row); i++) {
        struct tls_config cfg = trusting(row[i].ca, row[i].name);
        struct str cert[2];
        struct err why;

        cfg.insecure = row[i].ca == NULL;
        for (n = 0; n < 2 && row[i].cert[n] != NULL; n++)
            cert[n] = der_of(row[i].cert[n], &a);
        for (k = 0; k < LENGTH(piece); k++) {
            unsigned error = verdict(&cfg, cert, n, piece[k], &why);

            want(error == row[i].error, __LINE__, "row %zu, %s: %u", i,
                 row[i].name, error);
            want(str_prefix(str_of(why.text), str_of(row[i].why)) &&
                 (*row[i].why != '\0' || *why.text == '\0'), __LINE__,
                 "row %zu, %s: %s", i, row[i].name, why.text);
        }
        distrust(&cfg);
        arena_free(&a);
    }
}

/* As many certificates as there is room for, and one more; one of 64 kB, and
 * one that is larger. */
static void tls_large_chains(void)
{
    struct tls_config cfg = trusting(PEM_CA, "a.example.test");
    struct str cert[CERTS_MAX + 2];
    struct buf large = { .max = 0 };
    struct arena a = { NULL };
    struct err why;
    size_t i;

    for (i = 0; i < LENGTH(cert); i++)
        cert[i] = der_of(i == 0 ? PEM_SERVER : PEM_OTHER, &a);
    WANT(verdict(&cfg, cert, CERTS_MAX, SIZE_MAX, &why) == 0);
    for (i = 0; i < 2; i++) {
        cfg.insecure = i == 1;
        WANT(verdict(&cfg, cert, CERTS_MAX + 1, 100, &why) ==
             BR_ERR_X509_LIMIT_EXCEEDED);
        WANT(verdict(&cfg, cert, CERTS_MAX + 2, SIZE_MAX, &why) ==
             BR_ERR_X509_LIMIT_EXCEEDED);
    }
    cfg.insecure = false;
    cert[2] = STR("");
    WANT(verdict(&cfg, cert, 3, SIZE_MAX, &why) == BR_ERR_X509_NOT_TRUSTED);
    SAME(str_of(why.text), STR("an intermediate certificate is malformed"),
         "empty");
    while (large.n < CERT_MAX)
        buf_byte(&large, '0');
    for (i = 0; i < 2; i++) {
        cert[1] = buf_str(&large);
        WANT(verdict(&cfg, cert, 2, 1000, &why) ==
             (i == 0 ? BR_ERR_X509_NOT_TRUSTED : BR_ERR_X509_LIMIT_EXCEEDED));
        buf_byte(&large, '0');
    }
    distrust(&cfg);
    buf_free(&large);
    arena_free(&a);
}

/* Without a CA nothing is trusted; and not one byte less or other of a
 * certificate is, unless we are insecure. */
static void tls_forgeries(void)
{
    struct tls_config cfg = trusting(PEM_CA, "a.example.test");
    struct tls_config none = trusting(NULL, "a.example.test");
    struct arena a = { NULL };
    struct str der = der_of(PEM_SERVER, &a), cert[2] = { der, der };
    char *bytes = arena_alloc(&a, der.n);
    struct err why;
    size_t n;

    cert[1] = der_of(PEM_CA, &a);
    WANT(verdict(&cfg, cert, 1, SIZE_MAX, &why) == 0);
    WANT(verdict(&none, cert, 2, SIZE_MAX, &why) != 0);
    memcpy(bytes, der.p, der.n);
    cert[0].p = bytes;
    for (n = 0; n < der.n; n++) {
        cert[0].n = n;
        WANT(verdict(&cfg, cert, 1, 64, &why) != 0);
        cert[0].n = der.n;
        bytes[n] = (char)(der.p[n] ^ 1 << n % 8);
        want(verdict(&cfg, cert, 1, n % 2 ? 16 : 256, &why) != 0, __LINE__,
             "byte %zu may be another one", n);
        cfg.insecure = true;            /* the decoder, on what is broken */
        (void)verdict(&cfg, cert, 1, 16, &why);
        cfg.insecure = false;
        bytes[n] = der.p[n];
    }
    distrust(&cfg);
    distrust(&none);
    arena_free(&a);
}

/* ---- TLS: files ---- */

#define BROKEN "PEM that is malformed, encrypted or cut short"
#define BAD_KEY "not one PRIVATE KEY that is supported: RSA or EC P-256, " \
    "P-384 or P-521, not encrypted"
#define EMPTY_PEM(name, body) \
    "-----BEGIN " name "-----\n" body "-----END " name "-----\n"

/* Loads our certificate and key, and says what is wrong: nothing, or "1: "
 * or "2: " and words, by the file that the message names first. */
static struct str load_own(struct buf *out, struct str cert, struct str key)
{
    struct tls_config cfg = { .insecure = true, .name = STR_INIT("x") };
    struct err e;
    struct str text;

    cfg.cert_file = spill(1, cert);
    cfg.key_file = spill(2, key);
    out->n = 0;
    if (tls_load(&cfg, &e) == 0) {
        CHECK(cfg.creds->chain_n > 0 && cfg.creds->ca == NULL);
    } else {
        CHECK(cfg.creds == NULL);
        text = str_of(e.text);
        if (str_prefix(text, str_of(cfg.cert_file)))
            buf_lit(out, "1: ");
        else if (str_prefix(text, str_of(cfg.key_file)))
            buf_lit(out, "2: ");
        (void)str_cut(&text, ' ');
        buf_add(out, str_first(text, str_find(text, STR("/proc"))));
    }
    distrust(&cfg);
    return buf_str(out);
}

/* The text with CR LF, or without its last line end. */
static struct str dressed(struct buf *b, const char *text, unsigned how)
{
    b->n = 0;
    for (; *text != '\0'; text++) {
        if (*text == '\n' && how == 1)
            buf_byte(b, '\r');
        if (*text != '\n' || text[1] != '\0' || how != 2)
            buf_byte(b, *text);
    }
    return buf_str(b);
}

static void tls_own(void)
{
    static const char *const row[][3] = {
        { PEM_SERVER, KEY_EC, "" }, { PEM_SERVER, KEY_EC_SEC1, "" },
        { PEM_RSA, KEY_RSA, "" }, { PEM_RSA, KEY_RSA_PKCS1, "" },
        { PEM_SERVER PEM_CA, KEY_EC, "" },
        { PEM_SERVER KEY_EC, PEM_SERVER KEY_EC, "" },
        { KEY_EC_SEC1 PEM_SERVER, KEY_EC_SEC1 PEM_SERVER, "" },
        { "words\n\n" PEM_SERVER "more\n", "\n" KEY_EC "-----\n", "" },
        { PEM_SERVER, KEY_OTHER, "" },
        { PEM_RSA, KEY_EC, "" },
        { PEM_SERVER, KEY_EC_LOCKED8, "2: " BAD_KEY },
        { PEM_SERVER, KEY_EC_LOCKED1, "2: " BROKEN },
        { PEM_SERVER, KEY_ED25519, "2: " BAD_KEY },
        { PEM_SERVER, KEY_EC KEY_RSA, "2: " BAD_KEY },
        { PEM_SERVER, "", "2: no PRIVATE KEY in it" },
        { PEM_SERVER, PEM_SERVER, "2: no PRIVATE KEY in it" },
        { PEM_SERVER, EMPTY_PEM("PRIVATE KEY", ""),
          "2: " BAD_KEY },
        { PEM_SERVER, EMPTY_PEM("EC PRIVATE KEY", "AAAA\n"),
          "2: " BAD_KEY },
        { PEM_SERVER, EMPTY_PEM("PRIVATE KEY", "A\n"), "2: " BROKEN },
        { PEM_SERVER, EMPTY_PEM("PRIVATE KEY", "====\n"),
          "2: " BROKEN },
        { "", KEY_EC, "1: no CERTIFICATE in it" },
        { KEY_EC, KEY_EC, "1: no CERTIFICATE in it" },
        { EMPTY_PEM("CERTIFICATE", "!\n"), KEY_EC, "1: " BROKEN },
        { PEM_BARE PEM_BARE PEM_BARE PEM_BARE PEM_BARE PEM_BARE PEM_BARE
          PEM_BARE PEM_BARE PEM_BARE, KEY_EC, "" },
        { PEM_BARE PEM_BARE PEM_BARE PEM_BARE PEM_BARE PEM_BARE PEM_BARE
          PEM_BARE PEM_BARE PEM_BARE PEM_BARE, KEY_EC, "" },
    };
    struct buf out = { .max = 0 }, cert = { .max = 0 }, key = { .max = 0 };
    unsigned how;
    size_t i;

    for (i = 0; i < LENGTH(row); i++)
        for (how = 0; how < 3; how++)
            SAME(load_own(&out, dressed(&cert, row[i][0], how),
                          dressed(&key, row[i][1], how)),
                 str_of(row[i][2]), row[i][2]);
    buf_free(&out);
    buf_free(&cert);
    buf_free(&key);
}

/* Whatever is cut off a file, the message names it; and nothing is missing
 * once the line of the END has begun. */
static void tls_cut_files(void)
{
    static const char *const pem[][2] = {
        { PEM_SERVER, KEY_EC }, { PEM_RSA, KEY_RSA_PKCS1 }
    };
    struct buf out = { .max = 0 };
    size_t i, k, n;

    for (i = 0; i < LENGTH(pem); i++)
        for (k = 0; k < 2; k++) {
            struct str text = str_of(pem[i][k]);
            size_t end = str_find(text, STR("-----END ")) + 9;

            for (n = 0; n <= text.n; n++) {
                struct str cut = str_upto(text, n), got;

                got = k == 0 ? load_own(&out, cut, str_of(pem[i][1]))
                             : load_own(&out, str_of(pem[i][0]), cut);
                want(n >= end ? got.n == 0
                              : str_prefix(got, k == 0 ? STR("1: ")
                                                       : STR("2: ")),
                     __LINE__, "%zu of %zu bytes, file %zu: \"%.*s\"", n,
                     text.n, k, PUT(got));
            }
        }
    buf_free(&out);
}

/* An EC key of n bytes, as SEC 1 has it. */
static struct str long_key(struct buf *b, size_t n)
{
    b->n = 0;
    buf_lit(b, "\x02\x01\x01");
    while (b->n < n + 3)
        buf_byte(b, '\x5a');
    enclose(b, 3, 4);
    buf_lit(b, "\xa0\x0a\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07");
    enclose(b, 0, 0x30);
    return buf_str(b);
}

/* Keys of any length: 0.6 writes up to 24 bytes past its own structure. */
static void tls_long_keys(void)
{
    struct tls_config cfg = { .cert_file = spill(1, STR(PEM_SERVER)) };
    struct tls_creds *c = mem_zero(sizeof *c);
    struct buf b = { .max = 0 }, pem = { .max = 0 };
    struct err e;
    size_t n, past = 0, i;

    for (n = 1; n < 2000; n++) {
        int result;

        memset(c, 0, sizeof *c);
        pem.n = 0;
        buf_lit(&pem, "-----BEGIN EC PRIVATE KEY-----\n");
        url_base64(&pem, long_key(&b, n));
        buf_lit(&pem, "\n-----END EC PRIVATE KEY-----\n");
        cfg.key_file = spill(2, buf_str(&pem));
        result = tls_load_own(c, &cfg, &e);
        want(result == 0 ||
             str_prefix(str_of(e.text), str_of(cfg.key_file)), __LINE__,
             "%zu bytes: %s", n, e.text);
        for (i = 0; i < sizeof c->slack; i++)
            if (c->slack[i] != 0 && i + 1 > past)
                past = i + 1;
        want((result == 0) == (n <= 1560), __LINE__, "%zu bytes: %d", n,
             result);
        arena_free(&c->arena);
    }
    want(past > 0 && past <= 24, __LINE__, "%zu bytes past the end", past);
    free(c);
    buf_free(&b);
    buf_free(&pem);
}

/* Loads CAs, and says how many they are or what is wrong. */
static struct str load_ca(struct buf *out, const char *path)
{
    struct tls_config cfg = { .name = STR_INIT("x"), .ca_file = path };
    struct err e;

    out->n = 0;
    if (tls_load(&cfg, &e) == 0)
        buf_fmt(out, "%zu", cfg.creds->cas);
    else
        buf_lit(out, str_prefix(str_of(e.text), str_of(path))
                         ? e.text + strlen(path) : e.text);
    distrust(&cfg);
    return buf_str(out);
}

static void tls_cas(void)
{
    static const char *const row[][2] = {
        { PEM_CA, "1" }, { PEM_CA PEM_OTHER PEM_CA, "3" },
        { PEM_ED25519 PEM_CA, "2" }, { "# a bundle\n" PEM_CA KEY_EC, "1" },
        { PEM_ED25519, "1" },       /* that it will not do is said later */
        { "", ": no CERTIFICATE in it" }, { "x", ": no CERTIFICATE in it" },
        { KEY_EC, ": no CERTIFICATE in it" },
        { EMPTY_PEM("CERTIFICATE", ""), ": malformed certificate" },
        { PEM_CA EMPTY_PEM("CERTIFICATE", "AAAA\n"),
          ": malformed certificate" },
        { PEM_CA "-----BEGIN CERTIFICATE-----\n", ": " BROKEN },
        { PEM_CA "-----BEGIN CERTIFICATE-----\nAAAA=\n", ": " BROKEN },
        { EMPTY_PEM("CERTIFICATE REQUEST", "AAAA\n"),
          ": no CERTIFICATE in it" },
        { EMPTY_PEM("TRUSTED CERTIFICATE", "AAAA\n"),
          ": no CERTIFICATE in it" },
    };
    struct buf out = { .max = 0 }, large = { .max = 0 };
    size_t i;

    log_limit = LOG_ERROR;
    for (i = 0; i < LENGTH(row); i++)
        SAME(load_ca(&out, spill(0, str_of(row[i][0]))),
             str_of(row[i][1]), row[i][1]);
    for (i = 0; i < 200; i++)
        buf_lit(&large, PEM_CA);
    SAME(load_ca(&out, spill(0, buf_str(&large))), STR("200"), "many");
    SAME(load_ca(&out, "/nowhere/ca"),
         STR(": No such file or directory"), "no file");
    SAME(load_ca(&out, "/tmp"), STR(": Is a directory"), "directory");
    buf_free(&out);
    buf_free(&large);
}

/* Files of many megabytes, and objects in them. */
static void tls_huge_files(void)
{
    enum { MEGA = 1024 * 1024 };
    struct buf out = { .max = 0 }, b = { .max = 0 };
    size_t i;

    while (b.n < 8 * MEGA + 1)
        buf_lit(&b, "################################\n");
    SAME(load_ca(&out, spill(0, buf_str(&b))), STR(": File too large"),
         "9 MB");
    b.n = 4 * MEGA;
    SAME(load_ca(&out, spill(0, buf_str(&b))),
         STR(": no CERTIFICATE in it"), "4 MB");
    for (i = 0; i < 2; i++) {
        b.n = 0;
        buf_lit(&b, i == 0 ? "-----BEGIN CERTIFICATE-----\n"
                           : "-----BEGIN PRIVATE KEY-----\n");
        while (b.n < 4 * MEGA)
            buf_lit(&b, "MIIBMIIBMIIBMIIB\n");
        buf_lit(&b, "-----END x");
        if (i == 0)
            SAME(load_ca(&out, spill(0, buf_str(&b))),
                 STR(": malformed certificate"), "a certificate of 3 MB");
        else
            SAME(load_own(&out, STR(PEM_SERVER), buf_str(&b)),
                 STR("2: " BAD_KEY), "a key of 3 MB");
    }
    buf_free(&out);
    buf_free(&b);
}

/* New files take the place of the old ones once they are good. */
static void tls_rotates(void)
{
    struct tls_config cfg = trusting(PEM_CA, "a.example.test");
    struct tls_creds *old = cfg.creds;
    struct err e, why;
    struct tls *t;

    (void)spill(0, STR("-----BEGIN CERTIFICATE-----\n"));
    cfg.on = false;
    tls_reload(&cfg);
    WANT(cfg.creds == old && *cfg.reload_error.text == '\0');
    cfg.on = true;
    tls_reload(&cfg);
    WANT(cfg.creds == old && *cfg.reload_error.text != '\0');
    t = tls_open(&cfg, &e);             /* with what was read before */
    CHECK(t != NULL);
    tls_why(t, &why);
    WANT(str_find(str_of(why.text), str_of(cfg.reload_error.text)) <
         strlen(why.text));
    tls_close(t, -1);
    (void)spill(0, STR(PEM_OTHER PEM_CA));
    tls_reload(&cfg);
    WANT(*cfg.reload_error.text == '\0' && cfg.creds->cas == 2);
    tls_close(NULL, -1);
    tls_free_creds(NULL);
    distrust(&cfg);
}

static void tls_named(void)
{
    static char large[255];
    static const char *const row[][2] = {   /* NULL: it is refused */
        { "a", "a" }, { "a.", "a" }, { "A.b", "A.b" },
        { "1.2.3.4", "1.2.3.4" },
        { "::1", "::1" }, { "fe80::1%eth0", "fe80::1" }, { "a%b", "a%b" },
        { "", NULL }, { ".", NULL }, { large + 1, large + 1 },
        { large, NULL },
    };
    size_t i;

    memset(large, 'x', sizeof large - 1);
    for (i = 0; i < LENGTH(row); i++) {
        static struct endpoint p;
        struct err e;
        struct tls *t;
        bool ok;

        conn_init(&p, "peer", 1);
        p.tls.ca_file = spill(0, STR(PEM_CA));
        ok = conn_use_tls(&p, str_of(row[i][0]), &e) == 0;
        ROW(ok == (row[i][1] != NULL), row[i][0]);
        if (ok) {
            SAME(p.tls.name, str_of(row[i][1]), row[i][0]);
            t = tls_open(&p.tls, &e);
            ROW(t != NULL && br_ssl_engine_last_error(&t->client.eng) == 0,
                row[i][0]);
            tls_close(t, -1);
            distrust(&p.tls);
        }
    }
}

/* ---- TLS: a server ---- */

/* The other end of a connection, by BearSSL's own server. */
struct talk {
    int fd[2];                          /* ours, the server's */
    struct tls_config cfg;
    struct tls *t;
    br_ssl_server_context server;
    unsigned char buffer[BR_SSL_BUFSIZE_BIDI];
    struct tls_creds own;
    br_ec_private_key key;
    struct str out, say;                /* of the client, of the server */
    struct buf in, heard;
    int spoil;                          /* xor into the next records' end */
    bool deaf;
};

/* Lets the server do what it can. */
static void talk_serve(struct talk *k)
{
    br_ssl_engine_context *e = &k->server.eng;
    bool moved = !k->deaf;
    unsigned char *p;
    size_t n;
    ssize_t done;

    while (moved) {
        unsigned state = br_ssl_engine_current_state(e);

        moved = false;
        if ((state & BR_SSL_RECVAPP) != 0) {
            struct str s;

            s.p = (const char *)br_ssl_engine_recvapp_buf(e, &s.n);
            buf_add(&k->heard, s);
            br_ssl_engine_recvapp_ack(e, s.n);
            moved = true;
        } else if ((state & BR_SSL_SENDREC) != 0) {
            p = br_ssl_engine_sendrec_buf(e, &n);
            p[n - 1] ^= (unsigned char)k->spoil;
            done = write(k->fd[1], p, n);
            if (done > 0)
                br_ssl_engine_sendrec_ack(e, (size_t)done);
            moved = done > 0;
        } else if ((state & BR_SSL_SENDAPP) != 0 && k->say.n > 0) {
            p = br_ssl_engine_sendapp_buf(e, &n);
            n = n < k->say.n ? n : k->say.n;
            memcpy(p, k->say.p, n);
            k->say = str_from(k->say, n);
            br_ssl_engine_sendapp_ack(e, n);
            br_ssl_engine_flush(e, 0);
            moved = true;
        } else if ((state & BR_SSL_RECVREC) != 0) {
            p = br_ssl_engine_recvrec_buf(e, &n);
            done = read(k->fd[1], p, n);
            if (done > 0)
                br_ssl_engine_recvrec_ack(e, (size_t)done);
            moved = done > 0;
        }
    }
}

/* Turn by turn, until the client has an end or nothing moves any more. */
static enum io talk_on(struct talk *k, int *error)
{
    enum io io = IO_WAIT;
    int turn;

    for (turn = 0; turn < 200 && (io == IO_WAIT || io == IO_OK); turn++) {
        io = tls_step(k->t, k->fd[0], &k->in, &k->out, error);
        talk_serve(k);
    }
    return io;
}

static void talk_open(struct talk *k, const char *ca, const char *name)
{
    const br_ec_private_key *key;
    struct err e;

    memset(k, 0, sizeof *k);
    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, k->fd) == 0);
    CHECK(os_nonblock(k->fd[0]) && os_nonblock(k->fd[1]));
    k->cfg = trusting(ca, name);
    k->cfg.cert_file = spill(1, STR(PEM_SERVER));
    k->cfg.key_file = spill(2, STR(KEY_EC));
    CHECK(tls_load_own(&k->own, &k->cfg, &e) == 0);
    key = br_skey_decoder_get_ec(&k->own.key);
    br_ssl_server_init_full_ec(&k->server, k->own.chain, k->own.chain_n,
                               BR_KEYTYPE_EC, key);
    br_ssl_engine_set_buffer(&k->server.eng, k->buffer, sizeof k->buffer, 1);
    CHECK(br_ssl_server_reset(&k->server));
    k->t = tls_open(&k->cfg, &e);
    CHECK(k->t != NULL);
}

static void talk_close(struct talk *k)
{
    tls_close(k->t, -1);
    os_close(k->fd[0]);
    os_close(k->fd[1]);
    distrust(&k->cfg);
    arena_free(&k->own.arena);
    buf_free(&k->in);
    buf_free(&k->heard);
}

/* An answer counts as complete only if the server has said goodbye. */
static void tls_talks(void)
{
    static struct talk k;
    static char large[300000];
    struct str most = { large, sizeof large };
    int error, end;

    memset(large, 'x', sizeof large);
    for (end = 0; end < 4; end++) {
        talk_open(&k, PEM_CA, "10.1.2.3");
        WANT(!k.t->ready);
        k.out = STR("question");
        WANT(talk_on(&k, &error) == IO_WAIT && k.t->ready && error != EPIPE);
        SAME(buf_str(&k.heard), STR("question"), "heard");
        k.say = end == 1 ? most : STR("answer");
        k.spoil = end == 3;
        talk_serve(&k);
        if (end == 0)
            br_ssl_engine_close(&k.server.eng);
        talk_serve(&k);
        if (end != 3)
            WANT(shutdown(k.fd[1], SHUT_WR) == 0);
        if (end == 0) {                 /* goodbye */
            WANT(talk_on(&k, &error) == IO_END && error == 0);
        } else if (end < 3) {           /* merely closed */
            WANT(talk_on(&k, &error) == IO_END && error == EPIPE);
        } else {                        /* not authentic */
            WANT(talk_on(&k, &error) == IO_FAILED && error == 0);
            WANT(br_ssl_engine_last_error(&k.t->client.eng) ==
                 BR_ERR_BAD_MAC);
        }
        SAME(buf_str(&k.in), end == 3 ? STR("") : end != 1 ? STR("answer")
             : str_upto(most, k.in.n), "answer");
        talk_close(&k);
    }
}

/* The client is done with the handshake while what it says is stuck; and
 * what does not fit in the buffer is not passed over. */
static void tls_stuck(void)
{
    static struct talk k;
    static char large[4000000];
    struct str most = { large, sizeof large };
    int error, i;

    memset(large, 'x', sizeof large);
    talk_open(&k, PEM_CA, "a.example.test");
    for (i = 0; i < 6 && !k.t->ready; i++) {
        WANT(tls_step(k.t, k.fd[0], &k.in, &k.out, &error) == IO_WAIT);
        if (!k.t->ready)
            talk_serve(&k);
    }
    WANT(k.t->ready);
    k.out = most;
    k.deaf = true;
    WANT(talk_on(&k, &error) == IO_WAIT && k.t->wants_write && k.t->ready);
    WANT(k.out.n > 0);
    k.deaf = false;
    while (k.out.n > 0 && unit_why.n == 0)
        WANT(talk_on(&k, &error) == IO_WAIT);
    WANT(talk_on(&k, &error) == IO_WAIT && !k.t->wants_write);
    SAME(buf_str(&k.heard), most, "all of it");
    k.in.max = 10;
    k.say = STR("0123456789a");
    talk_serve(&k);
    WANT(talk_on(&k, &error) == IO_FAILED && error == ENOBUFS);
    talk_close(&k);
}

/* What a handshake that fails leaves: a sentence, and nothing said. */
static void tls_refusals(void)
{
    static const char *const row[][3] = {
        { PEM_CA, "b.example.test", "TLS: the certificate is not for "
          "b.example.test but for " SERVER_NAMES },
        { PEM_OTHER, "a.example.test", "TLS: the server's certificate is not "
          "signed by a known CA" },
    };
    static const struct str said[][2] = {
        { STR_INIT("HTTP/1.1 400 Bad Request\r\n\r\n"),
          STR_INIT("TLS: the server speaks plain HTTP on this port: use its "
                   "TLS port, or consul://") },
        { STR_INIT("SSH-2.0-OpenSSH_9.2\r\n"),
          STR_INIT("TLS: no TLS 1.2 is spoken on this port") },
        { STR_INIT("\x15\x03\x03\x00\x02\x02\x2a"),
          STR_INIT("TLS: the server refuses: bad_certificate (ours is missing "
                   "or not accepted)") },
        { STR_INIT("\x15\x03\x03\x00\x02\x02\x50"),
          STR_INIT("TLS: the server refuses: alert 80") },
        { STR_INIT("\x16\x03\x03\x00\x04\x0b\x00\x00\x00"),
          STR_INIT("TLS: error 10 of BearSSL") },
    };
    static struct talk k;
    struct err e;
    int error;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        talk_open(&k, row[i][0], row[i][1]);
        k.out = STR("secret");
        WANT(talk_on(&k, &error) == IO_FAILED && error == 0 && !k.t->ready);
        WANT(tls_why(k.t, &e) == -1);
        ROW(str_prefix(str_of(e.text), str_of(row[i][2])), e.text);
        WANT(k.out.n == 6 && k.heard.n == 0 && k.in.n == 0);
        WANT(talk_on(&k, &error) == IO_FAILED && k.out.n == 6);
        tls_close(k.t, k.fd[0]);
        k.t = NULL;
        talk_serve(&k);
        WANT(k.heard.n == 0);
        talk_close(&k);
    }
    for (i = 0; i < LENGTH(said); i++) {
        talk_open(&k, PEM_CA, "a.example.test");
        k.deaf = true;
        CHECK(write(k.fd[1], said[i][0].p, said[i][0].n) ==
              (ssize_t)said[i][0].n);
        WANT(talk_on(&k, &error) == IO_FAILED && error == 0);
        tls_why(k.t, &e);
        SAME(str_of(e.text), said[i][1], "said");
        talk_close(&k);
    }
}

/* ---- The core: registries ---- */

/* What is logged between captured(b, true) and false, which gives it back. */
static struct str captured(struct buf *b, bool on)
{
    static const char *path;
    static int saved;
    struct err e;

    (void)fflush(NULL);
    if (on) {
        int fd;

        path = spill(3, STR(""));
        fd = open(path, O_WRONLY | O_APPEND);
        saved = dup(STDERR_FILENO);
        CHECK(fd >= 0 && saved >= 0 && dup2(fd, STDERR_FILENO) >= 0);
        (void)close(fd);
        return STR("");
    }
    CHECK(dup2(saved, STDERR_FILENO) >= 0);
    (void)close(saved);
    b->n = 0;
    CHECK(os_file(path, b, &e) == 0);
    return buf_str(b);
}

/* A mark: OWNER of 16 digits, a hyphen, CONTENT of 16 and 8. */
static void reg_marks(void)
{
    static const struct {
        uint64_t owner, content, checks;
        const char *mark;
    } row[] = {
        { 0xfedcba9876543210, 0x0123456789abcdef, 0x89abcdef,
          "fedcba9876543210-0123456789abcdef89abcdef" },
        { 1, 2, 3, "0000000000000001-000000000000000200000003" },
        { 0, 0, 0, "0000000000000000-000000000000000000000000" },
        { UINT64_MAX, UINT64_MAX - 2, 0xffffffff,
          "ffffffffffffffff-fffffffffffffffdffffffff" },
    };
    static const char *const none[] = { "", "-", "x",
        "fedcba9876543210", "fedcba98765432100123456789abcdef89abcdef",
        "fedcba9876543210_0123456789abcdef89abcdef",
        "fedcba987654321-0123456789abcdef89abcdef",
        "fedcba98765432100-0123456789abcdef89abcdef",
        "fedcba987654321-00123456789abcdef89abcdef",
        "fedcba98765432100-123456789abcdef89abcdef",
        "fedcba9876543210-0123456789abcdef89abcde",
        "fedcba9876543210-0123456789abcdef89abcdef0",
        "fedcba9876543210-0123456789abcdef-89abcdef",
        "fedcba9876543210--123456789abcdef89abcdef",
        "fedcba987654321g-0123456789abcdef89abcdef",
        "fedcba9876543210-0123456789abcdeg89abcdef",
        "fedcba9876543210-0123456789abcdef89abcdeg",
        "+edcba9876543210-0123456789abcdef89abcdef",
        "fedcba9876543210- 123456789abcdef89abcdef",
        "fedcba9876543210-0x23456789abcdef89abcdef",
        " fedcba9876543210-0123456789abcdef89abcdef",
        "fedcba9876543210-0123456789abcdef89abcdef\n",
        /* content that would be REG_ANY: whoever's entry, it is in sync */
        "fedcba9876543210-ffffffffffffffff89abcdef" };
    struct buf mark = { .max = 0 };
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        struct digest d = { 0, 0, row[i].content, row[i].checks };
        struct reg_item item = { .have = { 7, 8, 0, 0 } };

        mark.n = 0;
        reg_mark(&mark, row[i].owner, &d);
        SAME(buf_str(&mark), str_of(row[i].mark), "encoded");
        ROW(reg_read_mark(edge(buf_str(&mark)), &item), row[i].mark);
        ROW(item.owner == row[i].owner && item.have.place == 7 &&
            item.have.tags == 8 && item.have.content == row[i].content &&
            item.have.checks == row[i].checks, row[i].mark);
    }
    for (i = 0; i < LENGTH(none); i++) {
        struct reg_item item = { .have = { 1, 2, 3, 4 } };

        ROW(!reg_read_mark(edge(str_of(none[i])), &item), none[i]);
        ROW(item.owner == 0 && item.have.content == 3 &&
            item.have.checks == 4, none[i]);        /* nothing is set */
    }
    buf_free(&mark);
}

/* Each row of the table is whole: what the core calls is there, its example
 * leads to it, and what the core compares is as the core has it. */
static void reg_rows(void)
{
    size_t i, k;

    for (i = 0; i < LENGTH(reg_schemes); i++) {
        const struct reg_scheme *s = &reg_schemes[i];
        const struct reg_kind *kind = s->kind;
        struct str example = str_of(s->example);
        struct registry reg = { .kind = kind };
        struct entries es = { .reg = &reg };
        struct buf b = { .max = 0 };
        struct err e;
        struct url u;

        for (k = 0; k < i; k++)
            ROW(!str_eq(s->scheme, reg_schemes[k].scheme), s->example);
        ROW(kind->setup != NULL && kind->hello != NULL &&
            kind->value != NULL && kind->write != NULL, s->example);
        ROW((kind->list != NULL) == (kind->item != NULL), s->example);
        ROW(kind->list == NULL || (kind->on_hello != NULL &&
            kind->verdict != NULL && (kind->list_open == '[' ||
                                      kind->list_open == '{')), s->example);
        ROW(url_parse(example, &u, &e) == 0 && str_eq(u.scheme, s->scheme) &&
            app_check_uri(s, &u, example, &e) == 0, s->example);
        ROW((s->port > 0) == (u.host.n > 0), s->example);
        if (kind->reserved != NULL) {
            entry_fold(&es, str_of(kind->reserved), &b);
            SAME(buf_str(&b), str_of(kind->reserved), s->example);
        }
        buf_free(&b);
    }
}

/* The requests of a session, as they are sent and logged; nobody answers.
 * True: the text is in each of them. */
static bool reg_sends(struct registry *r, struct str text)
{
    struct reg_write w = { .key = STR_INIT("h:c:80"),
                           .text = STR_INIT("{}") };
    struct request *sent[] = {
        consul_hello(r, 0), consul_hello(r, 1), consul_list(r),
        consul_write(r, &w, 0), NULL
    };
    bool all = true;
    size_t i;

    w.op = REG_DEREGISTER;
    sent[LENGTH(sent) - 1] = consul_write(r, &w, 0);
    for (i = 0; i < LENGTH(sent); i++) {
        all = all && str_find(buf_str(&sent[i]->bytes), text) <
                     sent[i]->bytes.n && !sent[i]->bytes.bad;
        conn_send(&r->peer, sent[i], NULL, peer_unanswered);
    }
    conn_reset(&r->peer);
    return all;
}

static void reg_close(struct app *app)
{
    struct consul *c = app->reg.own;

    if (c != NULL) {
        buf_free(&c->user);
        buf_free(&c->query);
    }
    free(c);
    buf_free(&app->reg.peer.headers);
    buf_free(&app->reg.peer.host_header);
    memset(app, 0, sizeof *app);
}

/* Secrets are in the headers of each request, and nowhere else: whatever is
 * logged, with debug too, and whatever is wrong. */
static void reg_secrets(void)
{
#define HIDE "s3cr3t"
#define IN_BASE64 "dTpzM2NyM3Q="        /* u:s3cr3t */
    static const struct {
        const char *uri, *name, *value;
        const char *header;     /* NULL: it is refused */
    } row[] = {
        { "consul://h", "CONSUL_HTTP_TOKEN", HIDE,
          "X-Consul-Token: " HIDE "\r\n" },
        { "consul://h", "CONSUL_HTTP_TOKEN_FILE", NULL,
          "X-Consul-Token: " HIDE "\r\n" },
        { "consul://h", "CONSUL_HTTP_AUTH", "u:" HIDE,
          "Authorization: Basic " IN_BASE64 "\r\n" },
        { "consul://u:" HIDE "@h", NULL, NULL,
          "Authorization: Basic " IN_BASE64 "\r\n" },
        { "consul:", "CONSUL_HTTP_ADDR", "http://u:" HIDE "@h",
          "Authorization: Basic " IN_BASE64 "\r\n" },
        { "consul://h", "CONSUL_HTTP_TOKEN", HIDE "\n", NULL },
        { "consul://h", "CONSUL_HTTP_TOKEN", HIDE "\x7f", NULL },
        { "consul:", "CONSUL_HTTP_ADDR", "http://u:" HIDE "@h/x", NULL },
        { "consul:", "CONSUL_HTTP_ADDR", "ftp://u:" HIDE "@h", NULL },
        { "consul:", "CONSUL_HTTP_ADDR", "u:" HIDE "@h:x", NULL },
        { "consul://u:" HIDE "%zz@h", NULL, NULL, NULL },
        { "consul://u:" HIDE "@h:x", NULL, NULL, NULL },
        { "consul://u:" HIDE "@h/x", NULL, NULL, NULL },
        { "consul://u:" HIDE "@h?x", NULL, NULL, NULL },
        { "CONSUL://u:" HIDE "@h", NULL, NULL, NULL },
        { "http://u:" HIDE "@h:8500", NULL, NULL, NULL },
        { "nosuch://u:" HIDE "@h", NULL, NULL, NULL },
        { "consul-unix://u:" HIDE "@h/x", NULL, NULL, NULL },
        { "print://u:" HIDE "@h", NULL, NULL, NULL },
        { "consul:u:" HIDE "@h", NULL, NULL, NULL },
        { "consul:/u:" HIDE "@h", NULL, NULL, NULL },
        { "CONSUL:u:" HIDE "@h", NULL, NULL, NULL },
        { "http:u:" HIDE "@h", NULL, NULL, NULL },
        { HIDE "@h:8500", NULL, NULL, NULL },
    };
    static struct app app;
    struct buf log = { .max = 0 };
    struct err e;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        enum log_level limit = log_limit;
        bool sent = true;
        int ok;

        app.opt.uri = str_of(row[i].uri);
        e.text[0] = '\0';
        if (row[i].name != NULL)
            CHECK(setenv(row[i].name, row[i].value != NULL ? row[i].value
                         : spill(2, STR(" " HIDE "\r\n")), 1) == 0);
        (void)captured(&log, true);
        log_limit = LOG_DEBUG;
        ok = app_open_registry(&app, &e);
        if (ok == 0)
            sent = reg_sends(&app.reg, str_of(row[i].header));
        log_limit = limit;
        (void)captured(&log, false);
        if (row[i].name != NULL)
            (void)unsetenv(row[i].name);
        ROW((ok == 0) == (row[i].header != NULL) && sent, row[i].uri);
        ROW(ok != 0 || str_find(buf_str(&log), STR("GET /v1/agent/services"))
            < log.n, row[i].uri);
        ROW((ok != 0) == (*e.text != '\0'), row[i].uri);
        buf_lit(&log, e.text);
        ROW(str_find(buf_str(&log), STR(HIDE)) == log.n &&
            str_find(buf_str(&log), STR(IN_BASE64)) == log.n, row[i].uri);
        reg_close(&app);
    }
    buf_free(&log);
}

/* The token's file is read again when a 403 comes: another token begins a new
 * session; the same one, a bad one and none do not. */
static void reg_tokens(void)
{
    static const struct {
        const char *file;       /* NULL: there is none */
        enum reg_verdict verdict;
        const char *token;      /* in the headers afterwards */
    } row[] = {
        { "one", REG_RETRY, "one" }, { "two\n", REG_RENEWED, "two" },
        { " two ", REG_RETRY, "two" }, { NULL, REG_RETRY, "two" },
        { "", REG_RENEWED, NULL }, { "one", REG_RENEWED, "one" },
    };
    static struct app app;
    struct answer a = { .status = 403, .body = STR_INIT("Permission denied") };
    struct buf wanted = { .max = 0 };
    struct err e;
    size_t i;

    app.opt.uri = STR("consul://h");
    CHECK(setenv("CONSUL_HTTP_TOKEN_FILE", spill(2, STR("one")), 1) == 0);
    quiet(true);
    CHECK(app_open_registry(&app, &e) == 0);
    quiet(false);
    for (i = 0; i < LENGTH(row); i++) {
        struct consul *c = app.reg.own;

        c->token_file = row[i].file == NULL ? "/proc/self/nosuch"
                                            : spill(2, str_of(row[i].file));
        ROW(consul_verdict(&app.reg, i % 2 ? REG_LIST : REG_REGISTER, 0, &a)
            == row[i].verdict, row[i].file != NULL ? row[i].file : "none");
        wanted.n = 0;
        if (row[i].token != NULL)
            buf_header(&wanted, "X-Consul-Token", str_of(row[i].token));
        SAME(buf_str(&app.reg.peer.headers), buf_str(&wanted), "headers");
        WANT(!app.reg.peer.headers.bad);
    }
    (void)unsetenv("CONSUL_HTTP_TOKEN_FILE");
    buf_free(&wanted);
    reg_close(&app);
}

/* A token is at most HTTP_LINE_MAX bytes long, a port of a row at most 65535; an ID
 * with all that URLs escape, 1,024 bytes of it, makes a request all the
 * same. */
static void reg_limits(void)
{
    static const struct {
        const char *port;
        bool same;              /* as port 0 */
    } port[] = { { "65535", false }, { "1", false }, { "0", true },
        { "65536", true }, { "-1", true }, { "1.0", true }, { "\"1\"", false },
        { "18446744073709551617", true }, { "null", true } };
    static struct app app;
    struct reg_write w = { .op = REG_DEREGISTER };
    struct buf b = { .max = 0 };
    struct json j = { .n = 0 };
    struct arena a = { NULL };
    struct request *q;
    struct err e;
    size_t i;

    for (i = 0; i < 2; i++) {
        b.n = 0;
        fill(&b, 't', i == 0 ? HTTP_LINE_MAX - IO_MAX : HTTP_LINE_MAX + 1);
        app.opt.uri = STR("consul://h");
        CHECK(setenv("CONSUL_HTTP_TOKEN_FILE", spill(2, buf_str(&b)), 1) == 0);
        quiet(true);
        WANT((app_open_registry(&app, &e) == 0) == (i == 0));
        quiet(false);
        WANT(i == 0 || str_suffix(str_of(e.text), STR(": File too large")));
        reg_close(&app);
    }
    (void)unsetenv("CONSUL_HTTP_TOKEN_FILE");
    for (i = 0; i < LENGTH(port); i++) {
        struct reg_item item = { .owner = 0 };

        b.n = 0;
        buf_fmt(&b, "{\"ID\":\"x\",\"Port\":%s}", port[i].port);
        CHECK(json_parse(&j, edge(buf_str(&b)), &e) == 0);
        ROW(consul_item(&app.reg, &j, &a, &item) && (item.have.place ==
            reg_place(STR(""), STR(""), 0)) == port[i].same, port[i].port);
    }
    b.n = 0;
    fill(&b, '\xff', SERVICE_ID_MAX);
    w.key = buf_str(&b);
    app.opt.uri = STR("consul://h");
    quiet(true);
    CHECK(app_open_registry(&app, &e) == 0);
    quiet(false);
    q = consul_write(&app.reg, &w, 0);
    WANT(!q->bytes.bad && q->bytes.n > 3 * SERVICE_ID_MAX &&
         q->bytes.n < HTTP_LINE_MAX);
    buf_free(&q->bytes);
    free(q);
    reg_close(&app);
    arena_free(&a);
    json_free(&j);
    buf_free(&b);
}

/* ---- The core: entries ---- */

enum {                          /* facts about an entry, as bits */
    IN_FLIGHT = 1, HELD = 2, IN_DOUBT = 4, ORPHAN = 8, CLEANUP = 16,
    RESERVED = 32, DEFAULT_ID = 64, LIST_READ = 128, AT_THIS_EPOCH = 256,
    EXPIRES = 512, FACTS = 1024,
    /* and what follows from the facts, by section 0, Owner: */
    CROSSED = 1024, REMOVABLE = 2048, WRITABLE = 4096, SAME = 8192,
    OTHER_SPELLING = 16384, CLAIMED = 32768
};

enum { OWNER_NONE, OWNER_OURS, OWNER_ENGINE, OWNER_OTHER, OWNERS };
enum { HAVE_SAME, HAVE_CONTENT, HAVE_TAGS, HAVE_PLACE, HAVE_ANY, HAVE_ANY_TAGS,
       HAVES };
enum { SPELLED_UNKNOWN, SPELLED_SAME, SPELLED_OTHERWISE, SPELLINGS };

/* An entry of the key "K", and what wants it: N: nothing, S: a service, K: one
 * that is only kept; F: the same, but where it was is not known. */
struct stage {
    struct registry reg;
    struct reg_kind kind;
    struct entries es;
    struct reg_entry e;
    struct service s, second;
    struct svc_set set, other;
    struct write write;
};

static void stage_set(struct stage *t, char desired, char observed,
                      size_t owner, size_t have, size_t spelled, unsigned is)
{
    static const uint64_t whose[] = { 0, 0xa00000001, 0xa00000002,
                                      0xb00000001 };
    static char same[] = "K", otherwise[] = "k";
    struct digest *d = &t->e.have;

    memset(t, 0, sizeof *t);
    t->reg.kind = &t->kind;
    t->reg.owner = whose[OWNER_OURS];
    t->kind.reserved = is & RESERVED ? "K" : "R";
    t->reg.refresh_s = is & EXPIRES ? 1 : 0;
    t->es.reg = &t->reg;
    t->es.cleanup = is & CLEANUP;
    t->es.side.epoch = 9;
    t->es.side.reading = is & LIST_READ;
    list_init(&t->e.claims);
    t->s.key = t->s.id = t->e.node.key = STR("K");
    t->s.want = (struct digest){ 1, 2, 3, 4 };
    t->s.port = desired != 'F';
    t->s.kept = desired == 'K' || desired == 'F';
    t->s.default_id = is & DEFAULT_ID;
    t->s.set = &t->set;
    t->set.running = true;
    memcpy(t->set.container, "aaaaaaaaaaaa", 13);
    list_init(&t->s.claim);
    if (desired != 'N')
        list_insert(&t->e.claims, &t->s.claim);
    t->e.observed = observed == 'U' ? ENTRY_UNKNOWN
                    : observed == 'A' ? ENTRY_ABSENT : ENTRY_PRESENT;
    t->e.owner = whose[owner];
    *d = t->s.want;
    d->place += have == HAVE_PLACE;
    d->tags += have == HAVE_TAGS || have == HAVE_ANY_TAGS;
    d->content = have == HAVE_ANY || have == HAVE_ANY_TAGS ? REG_ANY
                 : d->content + (have == HAVE_CONTENT);
    t->e.spelled = spelled == SPELLED_UNKNOWN ? NULL
                   : spelled == SPELLED_SAME ? same : otherwise;
    t->e.held = is & HELD;
    t->e.in_doubt = is & IN_DOUBT;
    t->e.orphan = is & ORPHAN;
    t->e.write = is & IN_FLIGHT ? &t->write : NULL;
    t->e.crossed = is & AT_THIS_EPOCH ? 9 : 8;
}

/* What section 0 makes of the facts. */
static unsigned stage_derive(size_t owner, size_t have, size_t spelled,
                             unsigned is)
{
    bool place = have != HAVE_PLACE;
    bool ours = owner == OWNER_OURS, unmarked = owner == OWNER_NONE;
    bool removable = ours || (unmarked && (is & HELD));
    bool taken = (is & HELD) && !removable;
    bool writable = removable || (!taken && !(is & RESERVED) &&
        ((is & CLEANUP) || (is & DEFAULT_ID) || owner == OWNER_ENGINE ||
         (unmarked && place)));

    if ((is & LIST_READ) && (is & AT_THIS_EPOCH))
        is |= CROSSED;
    is |= (removable ? REMOVABLE : 0) | (writable ? WRITABLE : 0);
    is |= have == HAVE_ANY || (have == HAVE_SAME && ours) ? SAME : 0;
    return is | (spelled == SPELLED_OTHERWISE ? OTHER_SPELLING : 0);
}

/* The table above entry_decide, line by line: the first line that fits.  K
 * stands for F too; and F, if it is held, for N. */
static const struct stage_row {
    char desired, observed;     /* a star: any */
    unsigned is, is_not;
    enum entry_action action;
} stage_rows[] = {
    { '*', '*', IN_FLIGHT, 0, ENTRY_KEEP },
    { 'S', 'U', 0, 0, ENTRY_KEEP },
    { 'N', 'U', HELD, 0, ENTRY_KEEP },
    { 'N', 'U', IN_DOUBT, 0, ENTRY_KEEP },
    { 'N', 'U', 0, 0, ENTRY_FREE },
    { 'N', 'A', 0, CROSSED | IN_DOUBT | CLAIMED, ENTRY_FREE },
    { 'N', 'A', 0, 0, ENTRY_KEEP },
    { 'N', 'P', REMOVABLE, ORPHAN, ENTRY_REMOVE },
    { 'N', 'P', REMOVABLE, 0, ENTRY_KEEP },
    { 'N', 'P', 0, 0, ENTRY_KEEP },
    { 'K', '*', 0, 0, ENTRY_KEEP },
    { 'S', 'A', 0, 0, ENTRY_WRITE },
    { 'S', 'P', REMOVABLE | OTHER_SPELLING, 0, ENTRY_REMOVE },
    { 'S', 'P', OTHER_SPELLING, 0, ENTRY_KEEP },
    { 'S', 'P', SAME | EXPIRES, 0, ENTRY_WRITE },
    { 'S', 'P', SAME, 0, ENTRY_KEEP },
    { 'S', 'P', WRITABLE, 0, ENTRY_WRITE },
    { 'S', 'P', 0, 0, ENTRY_KEEP },
};

static size_t stage_find(char desired, char observed, unsigned is)
{
    char as = desired != 'F' ? desired : is & HELD ? 'N' : 'K';
    size_t i = 0;

    while ((stage_rows[i].desired != '*' && stage_rows[i].desired != as) ||
           (stage_rows[i].observed != '*' &&
            stage_rows[i].observed != observed) ||
           (is & stage_rows[i].is) != stage_rows[i].is ||
           (is & stage_rows[i].is_not) != 0)
        i++;
    return i;
}

/* What entry_waits is to say of it; *taken as there. */
static bool stage_waits(char desired, char observed, unsigned is,
                        enum entry_action action, bool *taken)
{
    bool nothing = desired == 'N' || (desired == 'F' && (is & HELD));

    *taken = false;
    if (nothing)
        return action == ENTRY_REMOVE || (is & IN_FLIGHT);
    if (desired != 'S' || (observed == 'P' && (is & SAME)))
        return false;
    *taken = observed == 'P' && action == ENTRY_KEEP && !(is & IN_FLIGHT);
    return true;
}

/* Every combination of facts: the table says what is done.  What waits is
 * what the table has not settled, and what is taken waits for others. */
static void entry_table(void)
{
    static const char desired[] = "NSKF", observed[] = "UAP";
    static struct stage t;
    size_t used[LENGTH(stage_rows)] = { 0 };
    size_t d, o, owner, have, spelled, row;
    struct err why;
    unsigned facts;
    bool taken, is_taken;

    for (d = 0; d < 4; d++)
     for (o = 0; o < 3; o++)
      for (owner = 0; owner < OWNERS; owner++)
       for (have = 0; have < HAVES; have++)
        for (spelled = 0; spelled < SPELLINGS; spelled++)
         for (facts = 0; facts < FACTS; facts++) {
            unsigned is = stage_derive(owner, have, spelled, facts) |
                          (desired[d] != 'N' ? CLAIMED : 0);
            enum entry_action action;

            row = stage_find(desired[d], observed[o], is);
            used[row]++;
            stage_set(&t, desired[d], observed[o], owner, have, spelled,
                      facts);
            action = entry_decide(&t.es, &t.e);
            if (action != stage_rows[row].action)
                want(false, __LINE__, "%c %c owner %zu have %zu spelled %zu "
                     "facts 0x%x: action %d, not that of row %zu",
                     desired[d], observed[o], owner, have, spelled, facts,
                     (int)action, row);
            if ((facts & (LIST_READ | AT_THIS_EPOCH)) != 0)
                continue;
            if (entry_waits(&t.es, &t.e, &why, &taken) != stage_waits(
                    desired[d], observed[o], is, action, &is_taken) ||
                taken != is_taken)
                want(false, __LINE__, "%c %c owner %zu have %zu spelled %zu "
                     "facts 0x%x waits: %d", desired[d], observed[o], owner,
                     have, spelled, facts, taken);
         }
    for (row = 0; row < LENGTH(used); row++)
        want(used[row] > 0, __LINE__, "row %zu is never used", row);
}

/* What is said of an entry that waits, and whether it is logged at once; - if
 * it does not wait.  The second claim: r is of another container that runs, s
 * of one that has stopped, t of the same container. */
static void entry_waiting(void)
{
    static const struct {
        char desired, observed;
        size_t owner;
        unsigned facts;
        char second;
        const char *retry;      /* why the last try has failed */
        bool taken;
        const char *why;
    } row[] = {
        { 'S', 'A', 0, 0, 0, NULL, false,
          "cccccccccccc K to be registered: not tried yet" },
        { 'S', 'A', 0, 0, 0, "HTTP 500", false,
          "cccccccccccc K to be registered: HTTP 500" },
        { 'S', 'A', 0, IN_FLIGHT, 0, NULL, false,
          "cccccccccccc K to be registered: under way" },
        { 'S', 'U', 0, 0, 0, NULL, false,
          "cccccccccccc K to be registered: not tried yet" },
        { 'N', 'P', OWNER_OURS, 0, 0, NULL, false,
          "cccccccccccc K to be deregistered: not tried yet" },
        { 'N', 'P', OWNER_OURS, ORPHAN, 0, NULL, false, "-" },
        { 'N', 'P', OWNER_OTHER, 0, 0, NULL, false, "-" },
        { 'S', 'P', OWNER_OURS, 0, 0, NULL, false, "-" },
        { 'K', 'A', 0, 0, 0, NULL, false, "-" },
        { 'S', 'P', OWNER_OTHER, 0, 0, NULL, true,
          "aaaaaaaaaaaa: the ID \"K\" belongs to somebody else (-cleanup "
          "would take it): left alone" },
        { 'S', 'P', OWNER_OTHER, HELD, 0, NULL, true,
          "aaaaaaaaaaaa: the ID \"K\" has been taken by another registrator: "
          "left alone" },
        { 'S', 'P', OWNER_OURS, 0, 'r', NULL, true,
          "bbbbbbbbbbbb: the ID \"K\" is already used by container "
          "aaaaaaaaaaaa: not registered as long as that one has it" },
        { 'K', 'P', OWNER_OURS, 0, 'r', NULL, true,
          "bbbbbbbbbbbb: the ID \"K\" is already used by container "
          "aaaaaaaaaaaa: not registered as long as that one has it" },
        { 'S', 'P', OWNER_OURS, 0, 's', NULL, false, "-" },
        { 'S', 'P', OWNER_OURS, 0, 't', NULL, false, "-" },
        { 'S', 'A', 0, 0, 't', NULL, false,
          "cccccccccccc K to be registered: not tried yet" },
    };
    static struct stage t;
    struct err why;
    bool taken;
    size_t i;

    for (i = 0; i < LENGTH(row); i++) {
        char *retry = row[i].retry == NULL ? NULL
                                           : str_dup(str_of(row[i].retry));

        stage_set(&t, row[i].desired, row[i].observed, row[i].owner,
                  HAVE_SAME, SPELLED_SAME, row[i].facts);
        memcpy(t.e.container, "cccccccccccc", 13);
        t.e.node.retry.why = retry;
        t.second = t.s;
        t.second.set = row[i].second == 't' ? &t.set : &t.other;
        t.other.running = row[i].second == 'r';
        memcpy(t.other.container, "bbbbbbbbbbbb", 13);
        list_init(&t.second.claim);
        if (row[i].second != 0)
            list_insert(&t.e.claims, &t.second.claim);
        if (!entry_waits(&t.es, &t.e, &why, &taken))
            err_set(&why, "-");
        SAME(str_of(why.text), str_of(row[i].why), "waits");
        ROW(taken == row[i].taken, row[i].why);
        free(retry);
    }
}

/* ---- The core with a registry and an engine that are hand-made ---- */

/* The program between two peers that nobody connects to: both sides are
 * ready, and one empty list of each has been read. */
struct world {
    struct app app;
    struct consul consul;
    struct buf sent;            /* what the registry got */
};

static void world_open(struct world *w)
{
    struct containers *cs = &w->app.containers;
    struct entries *es = &w->app.entries;

    memset(w, 0, sizeof *w);
    w->app.reg.kind = &consul_kind;
    w->app.reg.own = &w->consul;
    w->app.reg.owner = 0xa00000001;
    conn_init(&w->app.reg.peer, "consul", 4);
    conn_set_address(&w->app.reg.peer, STR(""), STR("c"), 1);
    conn_init(&cs->engine, "docker", 8);
    conn_set_address(&cs->engine, STR(""), STR("d"), 1);
    es->hostname = cs->cfg.hostname = STR("h");
    cs->cfg.host = STR("10.0.0.9");
    entries_init(es, &w->app.reg);
    containers_init(cs, es);
    cs->addresses = 1;
    cs->side.now = es->side.now = 1000000;
    cs->side.state = es->side.state = SIDE_READY;
    cs->side.listed = es->side.listed = true;
    cs->side.whole = es->side.whole = true;
    cs->side.epoch = es->side.epoch = 1;
}

static void world_close(struct world *w)
{
    struct containers *cs = &w->app.containers;
    struct entries *es = &w->app.entries;
    struct container *c, *next;
    struct reg_entry *e, *after;

    conn_reset(&w->app.reg.peer);
    conn_reset(&cs->engine);
    for (c = index_next(&cs->side.index, NULL); c != NULL; c = next) {
        next = index_next(&cs->side.index, c);
        container_forget(cs, c);
    }
    for (e = index_next(&es->side.index, NULL); e != NULL; e = after) {
        after = index_next(&es->side.index, e);
        entry_free(es, e);
    }
    WANT(cs->side.index.tree == NULL && es->side.index.tree == NULL);
    WANT(list_empty(&cs->sharing) && list_empty(&cs->unsettled));
    retry_reset(&cs->side.retry);
    json_free(&cs->side.json);
    json_free(&es->side.json);
    buf_free(&cs->side.split.element);
    buf_free(&es->side.split.element);
    buf_free(&cs->engine.host_header);
    buf_free(&w->app.reg.peer.host_header);
    buf_free(&es->others);
    buf_free(&es->others_next);
    buf_free(&cs->prefix);
    buf_free(&cs->networks);
    buf_free(&w->sent);
}

/* A set of one service with the ID "K", of the container of that letter. */
static struct svc_set *world_set(char letter, bool running)
{
    struct buf env = { .max = 0 };
    struct derived d;

    buf_lit(&env, "SERVICE_ID=K");
    d = derive("80=80", &env);
    memset(d.set->container, letter, 12);
    d.set->running = running;
    docker_free(d.c);
    arena_free(&d.notes.arena);
    buf_free(&env);
    return d.set;
}

/* Services that want one ID, by the letters of their containers: A claims it
 * for A, which runs; .A for A, which has stopped; aA: the first set of A has
 * stopped, kA: and is only kept; -A: it is released; xA: the last set is.
 * Then their order: a small letter has stopped, with a dash it is kept. */
static void entry_claims(void)
{
    static const char *const row[][2] = {
        { "", "" }, { "A", "A" }, { "AB", "AB" }, { "ABC", "ABC" },
        { "AB-A", "B" }, { "A-A", "" }, { "AB-AA", "BA" },
        { "ABaA", "Ba" }, { "ABaB", "Ab" }, { "ABaAaB", "ab" },
        { "ABaBaA", "ab" }, { "ABCaA", "BCa" },
        { ".AB", "Ba" }, { ".A.B", "ab" }, { ".AB.C", "Bac" },
        { "ABkA", "Ba-" },
        /* a second set of a container: as it is renamed, or starts again */
        { "ABA", "AAB" }, { "ABAkA", "ABa-" }, { "ABAkA-A", "AB" },
        { "ABaAA", "BAa" }, { "ABaAA-A", "BA" }, { "AaAA-A", "A" },
        { "ABAxA", "AB" }, { ".ABA", "BAa" },
    };
    static struct world w;
    struct entries *es = &w.app.entries;
    struct buf got = { .max = 0 };
    struct svc_set *set[16];
    size_t i, k, n, at;

    quiet(true);
    for (i = 0; i < LENGTH(row); i++) {
        const char *z = row[i][0];
        struct svc_notes notes = { .first = NULL };
        struct reg_entry *e;
        struct link *l;

        world_open(&w);
        for (k = n = 0; z[k] != '\0'; k++) {
            char how = strchr(".ak-x", z[k]) != NULL ? z[k++] : 'c';

            if (how == 'c' || how == '.') {
                set[n] = world_set(z[k], how == 'c');
                CHECK(entries_claim(es, set[n++], &notes));
                continue;
            }
            for (at = 0; *set[at]->container != z[k];)
                at++;
            at = how == 'x' ? n - 1 : at;
            if (how == 'a' || how == 'k') {
                entries_demote(es, set[at], how == 'k');
                continue;
            }
            entries_release(es, set[at]);
            memmove(&set[at], &set[at + 1], (--n - at) * sizeof *set);
        }
        got.n = 0;
        e = index_find(&es->side.index, STR("k"));
        for (l = e == NULL ? NULL : e->claims.next;
             l != NULL && l != &e->claims; l = l->next) {
            const struct service *s = LIST_OF(struct service, claim, l);

            buf_byte(&got, s->set->running ? *s->set->container
                           : tolower(*s->set->container));
            buf_lit(&got, s->kept ? "-" : "");
        }
        SAME(buf_str(&got), str_of(row[i][1]), z);
        ROW(e == NULL ? *row[i][1] == '\0'
            : *e->container == *entry_desired(e)->set->container, z);
        while (n > 0)
            entries_release(es, set[--n]);
        world_close(&w);
    }
    quiet(false);
    buf_free(&got);
}

/* ---- The core: containers ---- */

static struct container *world_container(const struct world *w)
{
    return index_next(&w->app.containers.side.index, NULL);
}

/* An event of the container: its action, and its exit code or none. */
static void world_event(struct world *w, enum docker_action action,
                        unsigned code)
{
    struct buf id = { .max = 0 };
    struct docker_event ev = { .action = action, .exit_code = code };

    ev.id = quoted(&id, "@");
    containers_event(&w->app.containers, &ev);
    buf_free(&id);
}

/* A list of the engine, whole or not, with that row of the container; NULL:
 * it has none. */
static void world_list(struct world *w, const char *row, bool whole)
{
    struct side *side = &w->app.containers.side;
    struct json j = { .n = 0 };
    struct buf text = { .max = 0 };
    struct err e;

    side->epoch++;
    side->whole = whole;
    if (row != NULL) {
        CHECK(json_parse(&j, edge(quoted(&text, row)), &e) == 0);
        WANT(containers_row(side, &j));
    }
    containers_listed(side);
    json_free(&j);
    buf_free(&text);
}

/* The engine answers what was asked first. */
static void world_answer(struct world *w, const struct box *box,
                         unsigned status)
{
    struct buf b = { .max = 0 }, id = { .max = 0 };

    if (box != NULL)
        (void)box_text(&b, box);
    else if (status == 404)
        buf_fmt(&b, "No such container: %.*s", PUT(quoted(&id, "@")));
    (void)peer_answers(&w->app.containers.engine, status, buf_str(&b));
    buf_free(&b);
    buf_free(&id);
}

/* The registry takes all that is to be written, and former services go. */
static void world_settle(struct world *w)
{
    struct containers *cs = &w->app.containers;
    struct endpoint *p = &w->app.reg.peer;
    struct link *l, *next;
    struct str line;
    bool more;

    do {
        for (l = cs->unsettled.next; l != &cs->unsettled; l = next) {
            next = l->next;
            container_settle(cs, LIST_OF(struct container, unsettled, l));
        }
        entries_write(&w->app.entries);
        more = !list_empty(&p->waiting);
        while (!list_empty(&p->waiting)) {
            line = buf_str(&LIST_OF(struct request, link, p->waiting.next)
                               ->bytes);
            buf_lit(&w->sent, str_find(line, STR("/deregister/")) < line.n
                              ? "-" : "+");
            (void)peer_answers(p, 200, STR(""));
        }
    } while (more);
}

/* What happens to the container, by a letter:
 *
 *     events    C start and the like, N network, G destroyed, D died, with no
 *               code in the event, or with 0, 1 or 9 for 137
 *     lists     u it is up, a healthy one, e it has exited with 1, z with 0,
 *               v no row of it, p the same, but the list is not whole
 *     asks      i it is inspected, if it is its turn
 *     answers   r it runs, R it does, and has another port, x it has ended
 *               with 0, f with 1, m there is none, 5 HTTP 500, ! nothing
 *     besides   S the registry has taken all, P all is known: a prune, T a
 *               minute passes, d the engine is lost */
static void world_step(struct world *w, char step)
{
    static const struct box run = { .ports = "80=80" },
        moved = { .ports = "81=81" },
        well = { .exposed = "80", .ended = true },
        failed = { .exposed = "80", .ended = true, .exit_code = 1 };
    struct containers *cs = &w->app.containers;
    struct err e = { "lost" };

    switch (step) {
    case 'C': world_event(w, DOCKER_CHANGED, 0); break;
    case 'N': world_event(w, DOCKER_NETWORK, 0); break;
    case 'G': world_event(w, DOCKER_GONE, 0); break;
    case 'D': world_event(w, DOCKER_DIED, 1); break;
    case '0': world_event(w, DOCKER_DIED, 0); break;
    case '1': world_event(w, DOCKER_DIED, 1); break;
    case '9': world_event(w, DOCKER_DIED, 137); break;
    case 'u': world_list(w, "{'Id':'@','Status':'Up 1 s'}", true); break;
    case 'a': world_list(w, "{'Id':'@','Status':'Up 1 s (healthy)'}", true);
        break;
    case 'e': world_list(w, "{'Id':'@','Status':'Exited (1) 2 s'}", true);
        break;
    case 'z': world_list(w, "{'Id':'@','Status':'Exited (0) 2 s'}", true);
        break;
    case 'v': world_list(w, NULL, true); break;
    case 'p': world_list(w, NULL, false); break;
    case 'i': containers_inspect(cs); break;
    case 'r': world_answer(w, &run, 200); break;
    case 'R': world_answer(w, &moved, 200); break;
    case 'x': world_answer(w, &well, 200); break;
    case 'f': world_answer(w, &failed, 200); break;
    case 'm': world_answer(w, NULL, 404); break;
    case '5': world_answer(w, NULL, 500); break;
    case '!': world_answer(w, NULL, 0); break;
    case 'S': world_settle(w); break;
    case 'P': containers_prune(cs); break;
    case 'T': cs->side.now += PAUSE_CALL_MS;
        queue_tick(&cs->side.queue, cs->side.now); break;
    case 'd': side_down(&cs->side, &e); break;
    default: CHECK(step == ' ');
    }
}

/* How the container stands: - if it is not known; else the letter of what is
 * asked (Idle, Asked, Dirty, Stale, Forgotten); q if it is to be inspected, l
 * if later; its services: s it has some, h they give way to others since it
 * does not run, k they are only kept; + former ones; v it has vanished; ? it
 * has not been inspected yet. */
static void world_tell(const struct world *w, struct buf *b)
{
    static const char asked[] = "IADSF";
    const struct containers *cs = &w->app.containers;
    const struct container *c = world_container(w);
    const struct svc_set *set = c == NULL ? NULL : c->set;

    if (c == NULL) {
        buf_byte(b, '-');
        return;
    }
    buf_byte(b, asked[c->asked]);
    if (!list_empty(&c->node.queue))
        buf_byte(b, queue_first(&cs->side.queue) == c ? 'q' : 'l');
    if (set != NULL && set->n > 0)
        buf_byte(b, set->service->kept ? 'k' : set->running ? 's' : 'h');
    buf_lit(b, c->former != NULL ? "+" : "");
    buf_lit(b, c->vanished ? "v" : "");
    buf_lit(b, c->inspected ? "" : "?");
    WANT((c->former != NULL) == !list_empty(&c->unsettled));
    WANT(c->asked == CONTAINER_IDLE || list_empty(&c->node.queue));
    WANT(c->asked != CONTAINER_FORGOTTEN || (set == NULL && !c->former));
    WANT(cs->side.index.n == 1);
}

/* The world in which the letters of that script have happened. */
static void world_play(struct world *w, bool on_success, const char *script)
{
    world_open(w);
    w->app.containers.on_success = on_success;
    for (; *script != '\0'; script++)
        world_step(w, *script);
}

/* Adds how the container stands after each of the letters, had it been the
 * next one of the script. */
static void world_try(struct buf *b, bool on_success, const char *script,
                      const char *next)
{
    static struct world w;

    for (b->n = 0; *next != '\0'; next++) {
        world_play(&w, on_success, script);
        world_step(&w, *next);
        buf_lit(b, b->n > 0 ? " " : "");
        world_tell(&w, b);
        world_close(&w);
    }
}

/* Each state of a container, as a script leads to it, times all that can
 * happen to it; answers only where one is waited for. */
static void container_table(void)
{
    static const char *const letters[] = { "CNGD019", "uaezvp", "iSPTd",
                                           "rRxfm5!" };
    static const struct {
        const char *script;
        bool on_success;
        const char *out[4];     /* after an event, a list, ..., an answer */
    } row[] = {
        { "", false, { "Iq? - - - - - -", "Iq? Iq? - - - -", "- - - - -" } },
        { "", true, { "Iq? - - - - - -", "Iq? Iq? Iq? - - -" } },
        { "C", false, { "Iq? Iq? - Iq? Iq? Iq? Iq?",
          "Iq? Iq? Iq? Iq? Iq? Iq?", "A? Iq? Iq? Iq? Iq?" } },
        { "C", true, { "Iq? Iq? - Iq? Iq? Iq? Iq?" } },
        { "Ci", false, { "D? D? F? S? S? S? S?", "D? D? D? D? D? A?",
          "A? A? A? A? Iq?", "Is Is - - - Il? Il?" } },
        { "Ci", true, { "D? D? F? S? S? S? S?", "D? D? D? D? D? A?",
          "A? A? A? A? Iq?", "Is Is - Ik - Il? Il?" } },
        { "Cir", false, { "Iqs Iqs - Iq Iq Iq Iq", "Iqs Iqs Iqs Iqs Iqs Is",
          "Is Is Is Is Is" } },
        { "Cir", true, { "Iqs Iqs - Iqh Iq Iqh Iq",
          "Iqs Iqs Iqs Iqs Iqs Is", "Is Is Is Is Is" } },
        { "CiruCir", false, { "Iqs+ Iqs+ - Iq Iq Iq Iq",
          "Is+ Iqs+ Iqs+ Iqs+ Iqs+ Is+", "Is+ Is Is+ Is+ Is+" } },
        { "CirC", false, { "Iqs Iqs - Iq Iq Iq Iq",
          "Iqs Iqs Iqs Iqs Iqs Iqs", "As Iqs Iqs Iqs Iqs" } },
        { "CirCi", false, { "Ds Ds F S S S S", "Ds Ds Ds Ds Ds As",
          "As As As As Iqs", "Is+ Is+ - - Ikv Ils Ils" } },
        { "CirCi", true, { "Ds Ds F Sh S Sh S", "Ds Ds Ds Ds Ds As",
          "As As As As Iqs", "Is+ Is+ - Ih+ Ikv Ils Ils" } },
        { "CirCiC", false, { "Ds Ds F S S S S", "Ds Ds Ds Ds Ds Ds",
          "Ds Ds Ds Ds Iqs", "Iqs+ Iqs+ Iq Iq Iqs Iqs Iqs" } },
        { "CirCiC", true, { "Ds Ds F Sh S Sh S", "Ds Ds Ds Ds Ds Ds",
          "Ds Ds Ds Ds Iqs", "Iqs+ Iqs+ Iq Iqh+ Iqs Iqs Iqs" } },
        { "CirCi9", false, { "S S F S S S S", "S S S S S S", "S S S S Iq",
          "Iq Iq Iq Iq Iq Iq Iq" } },
        { "CirCi1", true, { "Sh Sh F Sh S Sh S", "Sh Sh Sh Sh Sh Sh",
          "Sh Sh Sh Sh Iqh", "Iqh Iqh Iqh Iqh Iqh Iqh Iqh" } },
        { "CirCiG", false, { "F F F F F F F", "F F F F F F", "F F F F -",
          "- - - - - - -" } },
        { "CirCiG", true, { "F F F F F F F", "F F F F F F", "F F F F -",
          "- - - - - - -" } },
        { "Ci5", false, { "Iq? Iq? - Iq? Iq? Iq? Iq?",
          "Iq? Iq? Iq? Iq? Iq? Il?", "Il? Il? Il? Iq? Il?" } },
        { "CirCi5", false, { "Iqs Iqs - Iq Iq Iq Iq",
          "Iqs Iqs Iqs Iqs Iqs Ils", "Ils Ils Ils Iqs Ils" } },
        { "CirCi5", true, { "Iqs Iqs - Iqh Iq Iqh Iq",
          "Iqs Iqs Iqs Iqs Iqs Ils", "Ils Ils Ils Iqs Ils" } },
        { "CirCim", false, { "Iqkv Iqkv - Iqv Iqv Iqv Iqv",
          "Iqk? Iqk? Iqk? Iqk? Ikv Ikv", "Ikv Ikv - Ikv Ikv" } },
        { "CirCim", true, { "Iqkv Iqkv - Iqkv Iqv Iqkv Iqv",
          "Iqk? Iqk? Iqk? Iqk? Ikv Ikv", "Ikv Ikv - Ikv Ikv" } },
        { "CirSCiR", false, { "Iqs+ Iqs+ - Iq Iq Iq Iq",
          "Iqs+ Iqs+ Iqs+ Iqs+ Iqs+ Is+", "Is+ Is Is+ Is+ Is+" } },
        { "CirSCiR", true, { "Iqs+ Iqs+ - Iqh+ Iq Iqh+ Iq",
          "Iqs+ Iqs+ Iqs+ Iqs+ Iqs+ Is+", "Is+ Is Is+ Is+ Is+" } },
        { "CirSCif", true, { "Iqh Iqh - Iqh Iq Iqh Iq",
          "Iqh Iqh Iqh Iqh Iqh Ih", "Ih Ih Ih Ih Ih" } },
    };
    struct buf got = { .max = 0 };
    size_t i, k;

    quiet(true);
    for (i = 0; i < LENGTH(row); i++)
        for (k = 0; k < LENGTH(letters); k++) {
            if (row[i].out[k] == NULL)
                continue;
            world_try(&got, row[i].on_success, row[i].script, letters[k]);
            want(str_eq(buf_str(&got), str_of(row[i].out[k])), __LINE__,
                 "%s%s, then one of %s: %.*s, not %s", row[i].script,
                 row[i].on_success ? ", on-success" : "", letters[k],
                 PUT(buf_str(&got)), row[i].out[k]);
        }
    quiet(false);
    buf_free(&got);
}

/* Longer lives: how the container stands, and what the registry has got then:
 * + for a registration, - for a removal. */
static void container_lives(void)
{
    static const char *const row[][3] = {
        { "starts", "CirS", "Is +" }, { "in the first list", "uirS", "Is +" },
        { "seen by both", "CuiruS", "Is +" },
        { "ends", "CirSDSix", "- +-" }, { "ends early", "CDiS", "A? " },
        { "ends before the answer", "CiDriS", "A? " },
        { "runs again before the answer", "CiDCrirS", "Is +" },
        { "gone before the answer", "CiGrS", "- " },
        { "nothing changed", "CirSCirSCirS", "Is +" },
        { "another port", "CirSCiRS", "Is ++-" },
        { "another port, inspect fails", "CirSCi5SCiRS", "Is ++-" },
        { "two changes at once", "CirSCiRCirS", "Is +" },
        { "vanished", "CirSCimS", "Ikv +" },
        { "vanished, for good", "CirSCimPS", "- +-" },
        { "vanished, and back", "CirSCimuirS", "Is +" },
        { "vanished, and listed as before", "uirSCimuirS", "Is +" },
        { "in doubt: former services stay", "CirSCiRCi5S", "Ils+ ++" },
        { "... until it is known", "CirSCiRCi5STiRS", "Is ++-" },
        { "not in the list", "CirSuvimPS", "- +-" },
        { "not in half a list", "CirSuirSpPS", "Is +" },
        { "a failed inspect", "CirSCi5PS", "Ils +" },
        { "... and again", "CirSCi5Ti!Tir", "Is +" },
        { "the engine is lost", "CirSCid", "Iqs +" },
        { "lost before the first answer", "Cid", "Iq? " },
    };
    static struct world w;
    struct buf got = { .max = 0 };
    size_t i;

    quiet(true);
    for (i = 0; i < LENGTH(row); i++) {
        got.n = 0;
        world_play(&w, false, row[i][1]);
        world_tell(&w, &got);
        buf_fmt(&got, " %.*s", PUT(buf_str(&w.sent)));
        SAME(buf_str(&got), str_of(row[i][2]), row[i][0]);
        world_close(&w);
    }
    quiet(false);
    buf_free(&got);
}

/* Whether all that the engine has is known, so that entries may be removed for
 * want of a container: not before each has been inspected once. */
static void container_known(void)
{
    static const struct {
        const char *script;
        bool known;
    } row[] = {
        { "", true }, { "C", false }, { "Ci", false }, { "Cir", true },
        { "CirC", false }, { "CirCi", false }, { "CirCiC", false },
        { "CirCi9", false }, { "CirCiG", false }, { "CirCiGr", true },
        { "Ci5", false }, { "Ci5Tir", true }, { "CirCi5", true },
        { "CirCim", true }, { "Cirp", false }, { "Cird", false },
        { "Ci5p", false },
    };
    static struct world w;
    size_t i;

    quiet(true);
    for (i = 0; i < LENGTH(row); i++) {
        world_play(&w, false, row[i].script);
        ROW(containers_all_known(&w.app.containers) == row[i].known,
            row[i].script);
        world_close(&w);
    }
    quiet(false);
}

/* The engine answers with a container of the ID of 64 times that letter. */
static void world_answer_as(struct world *w, const struct box *box, char id)
{
    struct buf b = { .max = 0 };

    (void)box_text(&b, box);
    memset(b.p + strlen("{'Id':'"), id, 64);
    WANT(peer_answers(&w->app.containers.engine, 200, buf_str(&b)));
    buf_free(&b);
}

/* The letter of the container that the engine is asked for next, 0 for @; a
 * full stop: none. */
static char world_asked(const struct world *w)
{
    const struct link *waiting = &w->app.containers.engine.waiting;
    const struct request *r = LIST_OF(struct request, link, waiting->next);
    struct str path = STR("GET /containers/");

    if (list_empty(waiting))
        return '.';
    WANT(str_prefix(buf_str(&r->bytes), path));
    return r->bytes.p[path.n];
}

/* A container that shares the network of another one, b: that one is asked
 * for, and whatever happens to it, this one is looked at again. */
static void container_sharing(void)
{
    static const char b_id[] = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
                               "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    static const enum docker_action action[] = {
        DOCKER_CHANGED, DOCKER_DIED, DOCKER_GONE
    };
    static const struct box b = { .ports = "80=8080" };
    static struct world w;
    struct containers *cs = &w.app.containers;
    struct docker_event ev = { .exit_code = 0 };
    struct box box = { .exposed = "80", .networks = "" };
    struct buf mode = { .max = 0 };
    struct container *c;
    size_t i;

    buf_fmt(&mode, "container:%s", b_id);
    buf_byte(&mode, '\0');
    box.mode = mode.p;
    ev.id = STR(b_id);
    quiet(true);
    world_play(&w, false, "Ci");
    WANT(world_asked(&w) == '0');
    world_answer(&w, &box, 200);
    WANT(world_asked(&w) == 'b');
    world_answer_as(&w, &b, 'b');
    c = world_container(&w);
    WANT(world_asked(&w) == '.' && cs->side.index.n == 1);
    WANT(c->set != NULL && c->set->n == 1 && c->set->service->port == 8080);
    for (i = 0; i < LENGTH(action); i++) {
        struct container *other = container_get(cs, STR(b_id));

        CHECK(other->asked == CONTAINER_IDLE && list_empty(&c->node.queue));
        ev.action = action[i];
        containers_event(cs, &ev);
        want(!list_empty(&c->node.queue), __LINE__, "event %zu", i);
        list_remove(&c->node.queue);
        if (action[i] != DOCKER_GONE)
            list_remove(&other->node.queue);
    }
    WANT(cs->side.index.n == 1);
    world_step(&w, 'C');                /* and now that one is gone */
    world_step(&w, 'i');
    world_answer(&w, &box, 200);
    WANT(world_asked(&w) == 'b');
    WANT(peer_answers(&cs->engine, 404, STR("No such container: bbbbbbbb"
                      "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
                      "bbbb")));
    WANT(c->set != NULL && c->set->n == 0 && c->former == NULL);
    world_step(&w, 'C');                /* one that shares itself: an end */
    world_step(&w, 'i');
    world_answer(&w, &box, 200);
    for (i = 0; i < 20 && world_asked(&w) != '.'; i++)
        world_answer_as(&w, &box, 'b');
    WANT(i == 5);
    world_close(&w);
    quiet(false);
    buf_free(&mode);
}

#ifndef UNIT_MAIN               /* tests/fuzz.c has another use for it */
#define UNIT_MAIN main
#endif

int UNIT_MAIN(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } all[] = {
        { "text numbers", text_numbers }, { "text ports", text_ports },
        { "text pieces", text_pieces }, { "text utf8", text_utf8 },
        { "text encoders", text_encoders }, { "text buffers", text_buffers },
        { "text arena", text_arena }, { "text lists", text_lists },
        { "text log", text_log },
        { "json grammar", json_grammar }, { "json size", json_size },
        { "json lookup", json_lookup }, { "json strings", json_strings },
        { "json splits", json_splits }, { "json large", json_large },
        { "http answers", http_answers }, { "http refusals", http_refusals },
        { "http limits", http_limits }, { "http requests", http_requests },
        { "url addresses", url_addresses }, { "url texts", url_texts },
        { "opt lines", opt_lines }, { "opt values", opt_values },
        { "opt addresses", opt_addresses }, { "opt uris", opt_uris },
        { "docker events", docker_events }, { "docker rows", docker_rows },
        { "docker inspects", docker_inspects },
        { "docker wires", docker_wires },
        { "docker wires matter", docker_wires_matter },
        { "docker podman ports", docker_podman_ports },
        { "docker gone", docker_gone },
        { "docker engines", docker_engines },
        { "docker largest", docker_largest },
        { "svc ports", svc_ports }, { "svc addresses", svc_addresses },
        { "svc names", svc_names }, { "svc metadata", svc_metadata },
        { "svc stopped", svc_stopped }, { "svc limits", svc_limits },
        { "svc many", svc_many },
        { "consul checks", consul_check_kinds },
        { "consul round trip", consul_round_trip },
        { "consul digests", consul_digests },
        { "consul metas", consul_metas }, { "consul views", consul_views },
        { "consul rows", consul_rows },
        { "consul requests", consul_requests }, { "reg ids", reg_ids },
        { "conn arrows", conn_arrows }, { "conn pauses", conn_pauses },
        { "conn queues", conn_queues }, { "conn relists", conn_relists },
        { "side arrows", side_arrows }, { "side pauses", side_pauses },
        { "log formats", log_formats },
        { "log errors", log_errors }, { "log lines", log_lines },
        { "os addresses", os_addresses },
        { "tls certificates", tls_certificates },
        { "tls wildcards", tls_wildcards }, { "tls damage", tls_damage },
        { "tls elements", tls_elements },
        { "tls many names", tls_many_names },
        { "tls extensions", tls_extensions }, { "tls chains", tls_chains },
        { "tls large chains", tls_large_chains },
        { "tls forgeries", tls_forgeries },
        { "tls own", tls_own }, { "tls cut files", tls_cut_files },
        { "tls long keys", tls_long_keys }, { "tls cas", tls_cas },
        { "tls huge files", tls_huge_files }, { "tls reload", tls_rotates },
        { "tls names", tls_named }, { "tls talks", tls_talks },
        { "tls stuck", tls_stuck }, { "tls refusals", tls_refusals },
        { "reg marks", reg_marks }, { "reg rows", reg_rows },
        { "reg secrets", reg_secrets }, { "reg tokens", reg_tokens },
        { "reg limits", reg_limits },
        { "entry table", entry_table }, { "entry waiting", entry_waiting },
        { "entry claims", entry_claims },
        { "container table", container_table },
        { "container lives", container_lives },
        { "container known", container_known },
        { "container sharing", container_sharing },
    };
    size_t i;
    int failed = 0, k;

    for (i = 0; i < LENGTH(all); i++) {
        bool wanted = argc < 2;

        for (k = 1; k < argc; k++)
            wanted = wanted || str_prefix(str_of(all[i].name),
                                          str_of(argv[k]));
        if (!wanted)
            continue;
        unit_why.n = 0;
        all[i].run();
        if (unit_why.n == 0)
            printf("ok unit %s\n", all[i].name);
        else
            printf("not ok unit %s: %.*s\n", all[i].name,
                   PUT(buf_str(&unit_why)));
        failed += unit_why.n > 0;
        (void)fflush(stdout);
    }
    buf_free(&unit_why);
    return failed > 0;
}
