/* What the sandbox leaves a program: registrator.c itself, included whole, for
 * tests/power.py.
 *
 *     musl-gcc -std=c99 -static -o power tests/power.c
 *     ./power tries DIR           each thing tried, free and in the sandbox
 *     ./power arguments           each value of the arguments that rules see
 *     ./power calls               the numbers of the calls that are allowed,
 *                                 where no rule looks at an argument
 *     ./power had                 "all", or why there is no sandbox here
 *     ./power without COMMAND...  as on a kernel without seccomp
 *
 * DIR has a file, token, and nobody.sock, where nobody listens. */

int registrator_main(int, char **);
#define main registrator_main
#include "../registrator.c"
#undef main

#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

static const char *dir;
static pid_t self;       /* getpid is refused in there */

/* printf would writev, which the sandbox need not allow. */
PRINTF(1, 2)
static void say(const char *format, ...)
{
    struct buf b = { 0 };
    va_list args;

    va_start(args, format);
    buf_vfmt(&b, format, args);
    va_end(args);
    (void)os_write_all(STDOUT_FILENO, buf_str(&b));
    buf_free(&b);
}

static const char *in_dir(const char *name)
{
    static char path[PATH_MAX];

    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* ---- What may be tried: true if it went through ---- */

static bool opens(const char *name, int flags)
{
    int fd = open(name, flags, 0600);

    os_close(fd);
    return fd >= 0;
}

static bool reads(void)
{
    struct buf b = { 0 };
    struct err e;

    return os_file(in_dir("token"), &b, &e) == 0 && b.n > 0;
}

static bool stats(void)
{
    return os_exists(in_dir("token"));
}

static bool looks_up(void)
{
    struct os_addr a[ADDRS_MAX];
    struct err e;
    size_t n;

    return os_resolve(STR("agent.test"), 1, a, ADDRS_MAX, &n, &e) == 0 &&
           os_resolve(STR("none.invalid"), 1, a, ADDRS_MAX, &n, &e) != 0;
}

static bool connects(void)
{
    const struct sockaddr_in in = { .sin_family = AF_INET,
                                    .sin_port = htons(1),
                                    .sin_addr.s_addr = htonl(0x7f000001) };
    struct os_addr a;
    struct err e;
    int fd, error;

    if (os_unix(str_of(in_dir("nobody.sock")), &a, &e) != 0)
        return false;
    (void)os_connect(&a, &fd, &error);
    os_close(fd);
    if (error != ECONNREFUSED)
        return false;
    memcpy(&a.is, &in, sizeof in);
    a.n = sizeof in;
    if (os_connect(&a, &fd, &error)) {
        struct pollfd p = { fd, POLLOUT, 0 };

        (void)poll(&p, 1, -1);
        (void)os_connected(fd, &error);
    }
    os_close(fd);
    return error == ECONNREFUSED;
}

static bool allocates(void)
{
    struct buf b = { .max = 0 };
    size_t n;

    for (n = 1; n <= TEXT_MAX; n *= 2)
        free(memset(mem_zero(n), 1, n));
    while (!b.bad && b.n < TEXT_MAX)        /* it grows as it is filled */
        buf_lit(&b, "0123456789abcde\n");
    n = b.n;
    buf_free(&b);
    return n == TEXT_MAX;
}

static bool tells_time(void)
{
    time_t now = time(NULL);
    struct tm tm;

    return os_now() > 0 && gmtime_r(&now, &tm) != NULL;
}

static bool logs(void)
{
    return write(STDERR_FILENO, "", 0) == 0;
}

/* As after SIGTERM: os_signal ends it. */
static bool alarms(void)
{
    (void)alarm(1);
    (void)poll(NULL, 0, 60000);
    return false;
}

static bool aborts(void)
{
    abort();
}

static bool has_interface(void)
{
    struct buf b = { 0 };

    return os_interface(STR("lo"), &b);
}

static bool writes(void)
{
    return opens(in_dir("token"), O_WRONLY);
}

static bool makes(void)
{
    return opens(in_dir("new"), O_RDONLY | O_CREAT);
}

static bool executes(void)
{
    const char *path = in_dir("power");

    (void)execl(path, path, "nothing", (char *)NULL);
    return false;
}

static bool forks(void)
{
    pid_t child = fork();

    if (child == 0)
        _exit(0);
    return child > 0;           /* waiting for it would be refused, too */
}

static bool traces(void)
{
    return ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0;
}

static bool kills(void)
{
    return kill(getppid(), 0) == 0;
}

static bool listens(void)
{
    return listen(socket(AF_INET, SOCK_STREAM, 0), 1) == 0;
}

static bool maps_code(void)
{
    return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANON, -1,
                0) != MAP_FAILED;
}

#ifdef __x86_64__
/* getpid by the interface of 32-bit programs. */
static bool calls_32(void)
{
    long a = 20;

    __asm__ volatile ("int $0x80" : "+a"(a) : : "memory", "cc");
    return a > 0;
}

static bool calls_x32(void)
{
    return syscall(0x40000000L | SYS_getpid) > 0;
}
#endif

enum { SANDBOX = 1, INTERFACE = 2, ABORT = 4 };

static const struct try {
    const char *name;
    bool (*go)(void);
    int how;            /* SANDBOX: this is what refuses it; 0, nobody may */
} tries[] = {
    { "reading a file", reads, 0 },
    { "stat", stats, 0 },
    { "looking up names", looks_up, 0 },
    { "connecting", connects, 0 },
    { "memory", allocates, 0 },
    { "time", tells_time, 0 },
    { "writing to what is open", logs, 0 },
    { "an alarm", alarms, 0 },
    { "abort", aborts, ABORT },
    { "an interface's address with -ip", has_interface, INTERFACE },
    { "an interface's address", has_interface, SANDBOX },
    { "opening for writing", writes, SANDBOX },
    { "making a file", makes, SANDBOX },
    { "execve", executes, SANDBOX },
    { "fork", forks, SANDBOX },
    { "ptrace", traces, SANDBOX },
    { "kill", kills, SANDBOX },
    { "listen", listens, SANDBOX },
    { "mapping code", maps_code, SANDBOX },
#ifdef __x86_64__
    { "calls of 32-bit programs", calls_32, SANDBOX },
    { "calls of x32 programs", calls_x32, SANDBOX },
#endif
};

static void protect(bool interface)
{
    struct err e;

    self = getpid();
    os_protect_memory();
    CHECK(os_sandbox(interface, &e) == 0);
}

/* Whether it goes through in a child, in the sandbox or free. */
static bool goes(const struct try *t, bool sandbox)
{
    pid_t child = fork();
    struct err e;
    int status;

    if (child == 0) {
        (void)unlink(in_dir("new"));
        CHECK(os_signals(&e) == 0);
        if (sandbox)
            protect(t->how & INTERFACE);
        else
            os_protect_memory();
        _exit(!t->go());
    }
    CHECK(waitpid(child, &status, 0) == child);
    if (t->how & ABORT)
        return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int try_all(void)
{
    int bad = 0;
    size_t i;

    for (i = 0; i < LENGTH(tries); i++) {
        const struct try *t = &tries[i];
        bool want = !(t->how & SANDBOX);

        if (!goes(t, false)) {
            say(want ? "%s, free: fails\n" : "# %s: cannot be tried here\n",
                t->name);
            bad |= want;
        } else if (goes(t, true) != want) {
            say("%s, in the sandbox: %s\n", t->name,
                want ? "fails" : "goes through");
            bad = 1;
        }
    }
    return bad;
}

/* ---- Each argument, each call ---- */

static bool reads_only(unsigned v)
{
    return (v & 01103) == 0;    /* O_WRONLY, O_RDWR, O_CREAT, O_TRUNC */
}

static bool no_code(unsigned v)
{
    return (v & 4) == 0;        /* PROT_EXEC */
}

static bool no_signals(unsigned v)
{
    return v < 8;               /* F_SETOWN */
}

static bool ourselves(unsigned v)
{
    return v == (unsigned)self;
}

static bool interfaces(unsigned v)
{
    return v == 0x8933;         /* SIOCGIFINDEX */
}

static bool unix_and_ip(unsigned v)
{
    return v == 1 || v == 2 || v == 10;
}

static bool netlink_too(unsigned v)
{
    return v == 16 || unix_and_ip(v);
}

static const struct rule {
    const char *name;
    long call;
    unsigned argument;
    bool (*allows)(unsigned);
    bool interface;
} rules[] = {
#ifdef __aarch64__
    { "open", SYS_openat, 2, reads_only, false },
#else
    { "open", SYS_open, 1, reads_only, false },
#endif
#ifdef __arm__
    { "mmap", SYS_mmap2, 2, no_code, false },
    { "fcntl", SYS_fcntl64, 1, no_signals, false },
#else
    { "mmap", SYS_mmap, 2, no_code, false },
    { "fcntl", SYS_fcntl, 1, no_signals, false },
#endif
    { "mprotect", SYS_mprotect, 2, no_code, false },
    { "tkill", SYS_tkill, 0, ourselves, false },
    { "ioctl", SYS_ioctl, 1, interfaces, false },
    { "socket", SYS_socket, 0, unix_and_ip, false },
    { "socket with -ip", SYS_socket, 0, netlink_too, true },
};

/* All other arguments are -1, with which no call does anything. */
static bool is_refused(long call, unsigned argument, long value)
{
    long a[6] = { -1, -1, -1, -1, -1, -1 };

    a[argument] = value;
    return syscall(call, a[0], a[1], a[2], a[3], a[4], a[5]) == -1 &&
           errno == ENOSYS;
}

/* Each value up to 65535, and each bit above. */
static int try_rule(const struct rule *r)
{
    unsigned v = 0;

    protect(r->interface);
    do
        if (is_refused(r->call, r->argument, (long)v) == r->allows(v)) {
            say("%s, %u: %s\n", r->name, v,
                r->allows(v) ? "refused" : "goes through");
            return 1;
        }
    while ((v = v < 1u << 16 ? v + 1 : v << 1) != 0);
    return 0;
}

static int try_arguments(void)
{
    int bad = 0, status;
    size_t i;

    for (i = 0; i < LENGTH(rules); i++) {
        if (fork() == 0)
            _exit(try_rule(&rules[i]));
        CHECK(wait(&status) > 0);
        if (status != 0)
            say("%s: status %d\n", rules[i].name, status);
        bad |= status != 0;
    }
    return bad;
}

/* Without 335 and 336, uretprobe and uprobe on x86: Linux lets them past
 * every filter, and they do nothing but where it has put them itself. */
static int try_calls(void)
{
    long call;
    int status;

    for (call = 0; call < 1024; call += call == 334 ? 3 : 1) {
        if (fork() == 0) {
            protect(true);
            (void)alarm(5);     /* what waits is allowed */
            _exit(is_refused(call, 0, -1) ? 99 : 0);
        }
        CHECK(wait(&status) > 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 99)
            say("%d\n", (int)call);
    }
    return 0;
}

/* ---- A kernel that lacks something ---- */

static int without(char **command)
{
    struct os_step step[] = {
        { OS_LOAD, 0, 0, OS_CALL_AT },
        { OS_IS, 0, 3, SYS_prctl },
        { OS_LOAD, 0, 0, OS_ARGUMENTS_AT },
        { OS_IS, 0, 1, PR_SET_SECCOMP },
        { OS_ANSWER, 0, 0, 0x00050000 | EINVAL },
        { OS_ANSWER, 0, 0, OS_ALLOW },
    };
    const struct {
        unsigned short n;
        const struct os_step *step;
    } filter = { LENGTH(step), step };

    os_protect_memory();
    CHECK(syscall(SYS_prctl, (long)PR_SET_SECCOMP, 2L, &filter) == 0);
    (void)execv(command[0], command);
    return 127;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    struct err e;

    (void)signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && strcmp(what, "tries") == 0) {
        dir = argv[2];
        return try_all();
    }
    if (strcmp(what, "arguments") == 0)
        return try_arguments();
    if (strcmp(what, "calls") == 0)
        return try_calls();
    if (strcmp(what, "had") == 0) {
        os_protect_memory();
        if (os_sandbox(false, &e) == 0)
            err_set(&e, "all");
        say("%s\n", e.text);
        return 0;
    }
    if (argc > 2 && strcmp(what, "without") == 0)
        return without(argv + 2);
    return strcmp(what, "nothing") == 0 ? 0 : 2;
}
