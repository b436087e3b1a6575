/* For hostile.py: memory that runs out, and a wall clock that jumps.  Linked
 * into registrator by -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,
 * --wrap=time,--wrap=clock_gettime.
 *
 *     NOMEM=N     the Nth request for memory fails; NOMEM=-N: all from there
 *     WALL=1      each look at the wall clock finds it years away
 */
#include <stddef.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

void *__real_malloc(size_t);
void *__real_calloc(size_t, size_t);
void *__real_realloc(void *, size_t);
time_t __real_time(time_t *);
int __real_clock_gettime(clockid_t, struct timespec *);

void *__wrap_malloc(size_t);
void *__wrap_calloc(size_t, size_t);
void *__wrap_realloc(void *, size_t);
time_t __wrap_time(time_t *);
int __wrap_clock_gettime(clockid_t, struct timespec *);

/* Says so when it fails a request: else hostile.py is through. */
static int fails(void)
{
    static const char said[] = "wrap: no memory\n";
    static long at, calls;

    if (calls == 0 && getenv("NOMEM") != NULL)
        at = atol(getenv("NOMEM"));
    calls++;
    if (at == 0 || (at > 0 ? calls != at : calls < -at))
        return 0;
    return write(STDERR_FILENO, said, sizeof said - 1) > 0;
}

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return fails() ? NULL : __real_realloc(p, n);
}

/* 1969, 1970, 2038 and a second later, 2100, the end of 9999. */
static time_t wall(time_t now)
{
    static const time_t jump[] = { -1, 0, 2147483647, 2147483648, 4102444800,
                                   253402300799 };
    static size_t at;

    if (getenv("WALL") == NULL)
        return now;
    return jump[at++ % (sizeof jump / sizeof *jump)];
}

time_t __wrap_time(time_t *t)
{
    time_t now = wall(__real_time(NULL));

    if (t != NULL)
        *t = now;
    return now;
}

int __wrap_clock_gettime(clockid_t id, struct timespec *t)
{
    int failed = __real_clock_gettime(id, t);

    if (id == CLOCK_REALTIME)
        t->tv_sec = wall(t->tv_sec);
    return failed;
}
