/* Judges chains of certificates as registrator does, without a network: the
 * half of tests/chains.py that is in C.
 *
 * Reads lines "NAME CA-FILE CHAIN-FILE" (PEM), and answers each by a line: 0,
 * or the number of BearSSL's error and what there is to say beside it. */
int unit_main(int, char **);
#define UNIT_MAIN unit_main
#include "unit.c"

static void judge(char *line)
{
    struct str rest = str_of(line), name = str_cut(&rest, ' ');
    struct str ca = str_cut(&rest, ' '), cert[CERTS_MAX + 1];
    struct tls_config cfg = { .name = name };
    struct arena a = { NULL };
    br_x509_certificate *sent;
    char *path[2] = { str_dup(ca), str_dup(rest) };
    struct err why = { "" };
    unsigned error = 0;
    size_t i, n;

    cfg.ca_file = path[0];
    if (tls_load(&cfg, &why) != 0 ||
        (sent = pem_load(&a, path[1], "CERTIFICATE", &n, &why)) == NULL) {
        printf("files %s\n", why.text);
    } else {
        n = n < LENGTH(cert) ? n : LENGTH(cert);
        for (i = 0; i < n; i++) {
            cert[i].p = (const char *)sent[i].data;
            cert[i].n = sent[i].data_len;
        }
        error = verdict(&cfg, cert, n, SIZE_MAX, &why);
        printf("%u %s\n", error, why.text);
    }
    distrust(&cfg);
    arena_free(&a);
    free(path[0]);
    free(path[1]);
}

int main(void)
{
    static char line[4096];

    while (fgets(line, sizeof line, stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        judge(line);
        (void)fflush(stdout);
    }
    return 0;
}
