/* benchfloor - what nobody can go below: the requests that the start and the
 * death of a container cost, with nothing between them.
 *
 *     DOCKER_HOST=unix:///path benchfloor [ignored...] consul://127.0.0.1:PORT
 *
 * It reads an event, asks for the container, waits for the answer, registers
 * one service; at a death it only deregisters.  It believes everything that
 * it is told, blocks, keeps nothing, and ends when anything goes wrong.
 */

#define _GNU_SOURCE             /* memmem */

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char in[1 << 20];        /* an event, or an answer */

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int connect_engine(void)
{
    const char *host = getenv("DOCKER_HOST");
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    if (host == NULL || strncmp(host, "unix://", 7) != 0)
        fail("DOCKER_HOST is unix:///path");
    strncpy(a.sun_path, host + 7, sizeof a.sun_path - 1);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0)
        fail(host);
    return fd;
}

static int connect_consul(const char *uri)
{
    const char *port = strrchr(uri, ':');
    struct sockaddr_in a = { .sin_family = AF_INET };
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    a.sin_port = htons((unsigned short)atoi(port == NULL ? "0" : port + 1));
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0)
        fail(uri);
    return fd;
}

/* Reads until what has come ends in `end`. */
static void read_until(int fd, const char *end)
{
    size_t n = 0, k = strlen(end);
    ssize_t got;

    do {
        got = read(fd, in + n, sizeof in - 1 - n);
        if (got <= 0)
            fail("read");
        n += (size_t)got;
    } while (n < k || memcmp(in + n - k, end, k) != 0);
    in[n] = '\0';
}

static void write_all(int fd, const char *p, int n)
{
    if (write(fd, p, (size_t)n) != n)
        fail("write");
}

/* The text from `mark`, somewhere behind p, to the next quote. */
static void find(char word[200], const char *p, const char *mark)
{
    p = strstr(p, mark);
    p = p == NULL ? "" : p + strlen(mark);
    snprintf(word, 200, "%.*s", (int)strcspn(p, "\""), p);
}

static void start(const char *event, int engine, int consul)
{
    char out[2000], body[1000], id[200], name[200], port[200];
    int n, body_n;

    find(id, event, "\"id\":\"");
    find(name, event, "\"name\":\"");
    n = snprintf(out, sizeof out,
                 "GET /containers/%s/json HTTP/1.1\r\nHost: x\r\n\r\n", id);
    write_all(engine, out, n);
    read_until(engine, "\r\n0\r\n\r\n");
    find(port, in, "\"HostPort\":\"");
    body_n = snprintf(body, sizeof body,
                      "{\"ID\":\"floor:%s:5000\",\"Name\":\"web\",\"Address\""
                      ":\"10.0.0.1\",\"Port\":%s,\"Tags\":[\"green\",\"v2\"],"
                      "\"Meta\":{\"registrator\":\"0444b11a6a3f589c-"
                      "d8546d0e841d954c4fc52e7f\"}}", name, port);
    n = snprintf(out, sizeof out,
                 "PUT /v1/agent/service/register HTTP/1.1\r\nHost: x\r\n"
                 "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                 "%s", body_n, body);
    write_all(consul, out, n);
    read_until(consul, "\r\n\r\n");
}

static void die(const char *event, int consul)
{
    char out[1000], name[200];
    int n;

    find(name, event, "\"name\":\"");
    n = snprintf(out, sizeof out,
                 "PUT /v1/agent/service/deregister/floor:%s:5000 HTTP/1.1\r\n"
                 "Host: x\r\nContent-Length: 0\r\n\r\n", name);
    write_all(consul, out, n);
    read_until(consul, "\r\n\r\n");
}

int main(int argc, char **argv)
{
    static const char events[] = "GET /events HTTP/1.1\r\nHost: x\r\n\r\n";
    int stream = connect_engine(), engine = connect_engine();
    int consul = connect_consul(argv[argc - 1]);
    const char *event;

    write_all(stream, events, sizeof events - 1);
    read_until(stream, "\r\n\r\n");
    for (;;) {
        read_until(stream, "}\n\r\n");
        if ((event = strstr(in, "\"status\":\"start\"")) != NULL)
            start(event, engine, consul);
        else if ((event = strstr(in, "\"status\":\"die\"")) != NULL)
            die(event, consul);
    }
}
