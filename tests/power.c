/* What os_confine keeps a program from: the program itself, included whole,
 * for tests/power.py.
 *
 *     musl-gcc -std=c99 -static -o power tests/power.c
 *     ./power tries DIR           each thing tried in each confinement
 *     ./power had                 what of it can be had here
 *     ./power without WHAT COMMAND...    as on a kernel without landlock,
 *                                 seccomp or both
 *
 * DIR has in/token, in/spare, out/secret, whole/file, bare, real/file and
 * link/file, a link to the latter; and nobody.sock, where nobody listens. */

int registrator_main(int, char **);
#define main registrator_main
#include "../registrator.c"
#undef main

#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

static const char *dir;
static int helper_go[2], helper_done[2];

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

static bool reads_allowed(void)
{
    return opens(in_dir("in/token"), O_RDONLY) &&
           opens(in_dir("link/file"), O_RDONLY) &&
           opens(in_dir("whole"), O_RDONLY | O_DIRECTORY) &&
           opens(in_dir("whole/file"), O_RDONLY) &&
           opens("bare", O_RDONLY) && opens("/etc/hosts", O_RDONLY);
}

/* After somebody else has put another file in its place. */
static bool reads_replaced(void)
{
    char c;

    return write(helper_go[1], "", 1) == 1 && read(helper_done[0], &c, 1) == 1
        && c == 'y' && reads_allowed();
}

static bool stats(void)
{
    return os_exists(in_dir("out/secret"));
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
    memcpy(&a.sa, &in, sizeof in);
    a.n = sizeof in;
    if (os_connect(&a, &fd, &error) != IO_OK && error == EINPROGRESS) {
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
        free(memset(mem_new(n), 1, n));
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
    return dprintf(helper_go[1], "%s", "") == 0 &&
           write(STDERR_FILENO, "", 0) == 0;
}

static bool aborts(void)
{
    abort();
}

static bool has_interface(void)
{
    struct buf b = { 0 };

    return os_is_interface(STR("lo")) && os_interface(STR("lo"), &b);
}

static bool reads_outside(void)
{
    return opens(in_dir("out/secret"), O_RDONLY);
}

static bool lists_outside(void)
{
    return opens(in_dir("out"), O_RDONLY | O_DIRECTORY);
}

static bool reads_root(void)
{
    return opens("/proc/self/maps", O_RDONLY);
}

static bool writes(void)
{
    return opens(in_dir("in/token"), O_WRONLY);
}

static bool appends(void)
{
    return opens(in_dir("in/token"), O_RDWR | O_APPEND);
}

static bool truncates(void)
{
    return opens(in_dir("in/spare"), O_RDONLY | O_TRUNC);
}

static bool makes(void)
{
    return opens(in_dir("in/new"), O_RDONLY | O_CREAT);
}

static bool creats(void)
{
    return syscall(SYS_openat, (long)AT_FDCWD, in_dir("in/new"),
                   (long)(O_WRONLY | O_CREAT | O_TRUNC), 0600L) >= 0;
}

static bool makes_dir(void)
{
    return mkdir(in_dir("in/dir"), 0700) == 0 && rmdir(in_dir("in/dir")) == 0;
}

static bool links(void)
{
    return symlink("token", in_dir("in/sym")) == 0 &&
           unlink(in_dir("in/sym")) == 0;
}

static bool chmods(void)
{
    return chmod(in_dir("in/token"), 0600) == 0;
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
    return child > 0 && waitpid(child, NULL, 0) == child;
}

static bool traces(void)
{
    return ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0;
}

static bool kills(void)
{
    return kill(getppid(), 0) == 0;
}

static bool tkills(void)
{
    return syscall(SYS_tkill, (long)getppid(), 0L) == 0;
}

static bool signals_by_socket(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    return fcntl(fd, F_SETOWN, getppid()) == 0;
}

static bool socket_of(int family, int type)
{
    int fd = socket(family, type, 0);

    os_close(fd);
    return fd >= 0;
}

static bool packets(void)
{
    return socket_of(17 /* AF_PACKET */, SOCK_DGRAM);
}

static bool netlinks(void)
{
    return socket_of(16 /* AF_NETLINK */, SOCK_RAW);
}

/* Port 7, which only we could have in this namespace. */
static bool binds(void)
{
    const struct sockaddr_in in = { .sin_family = AF_INET,
                                    .sin_port = htons(7) };
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    return bind(fd, (const struct sockaddr *)(const void *)&in,
                sizeof in) == 0;
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

static bool makes_code(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON,
                   -1, 0);

    return mprotect(p, 4096, PROT_READ | PROT_EXEC) == 0;
}

static bool other_ioctl(void)
{
    int n;

    return ioctl(helper_done[0], FIONREAD, &n) == 0;
}

static bool sets_user(void)
{
    return setuid(65534) == 0;
}

static bool changes_root(void)
{
    return chdir("/") == 0;
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

enum { LANDLOCK = 1, SECCOMP = 2, INTERFACE = 4, ABORT = 8 };

static const struct try {
    const char *name;
    bool (*go)(void);
    int by;             /* who refuses it: 0, nobody may */
    int abi;            /* Landlock does so from this one on */
} tries[] = {
    { "reading what is allowed", reads_allowed, 0, 1 },
    { "reading what replaced it", reads_replaced, 0, 1 },
    { "stat", stats, 0, 1 },
    { "looking up names", looks_up, 0, 1 },
    { "connecting", connects, 0, 1 },
    { "memory", allocates, 0, 1 },
    { "time", tells_time, 0, 1 },
    { "writing to what is open", logs, 0, 1 },
    { "abort", aborts, ABORT, 1 },
    { "an interface's address with -ip", has_interface, INTERFACE, 1 },
    { "an interface's address", has_interface, SECCOMP, 1 },
    { "reading another file", reads_outside, LANDLOCK, 1 },
    { "reading another directory", lists_outside, LANDLOCK, 1 },
    { "reading /proc", reads_root, LANDLOCK, 1 },
    { "opening for writing", writes, LANDLOCK | SECCOMP, 1 },
    { "opening for appending", appends, LANDLOCK | SECCOMP, 1 },
    { "truncating", truncates, LANDLOCK | SECCOMP, 3 },
    { "making a file", makes, LANDLOCK | SECCOMP, 1 },
    { "making a file, by openat", creats, LANDLOCK | SECCOMP, 1 },
    { "making a directory", makes_dir, LANDLOCK | SECCOMP, 1 },
    { "making a link", links, LANDLOCK | SECCOMP, 1 },
    { "chmod", chmods, SECCOMP, 1 },
    { "execve", executes, LANDLOCK | SECCOMP, 1 },
    { "fork", forks, SECCOMP, 1 },
    { "ptrace", traces, SECCOMP, 1 },
    { "kill", kills, LANDLOCK | SECCOMP, 6 },
    { "tkill", tkills, LANDLOCK | SECCOMP, 6 },
    { "F_SETOWN", signals_by_socket, SECCOMP, 1 },
    { "AF_PACKET", packets, SECCOMP, 1 },
    { "AF_NETLINK", netlinks, SECCOMP, 1 },
    { "binding a TCP port", binds, LANDLOCK, 4 },
    { "listen", listens, SECCOMP, 1 },
    { "mapping code", maps_code, SECCOMP, 1 },
    { "making code of data", makes_code, SECCOMP, 1 },
    { "another ioctl", other_ioctl, SECCOMP, 1 },
    { "setuid", sets_user, SECCOMP, 1 },
    { "chdir", changes_root, SECCOMP, 1 },
#ifdef __x86_64__
    { "calls of 32-bit programs", calls_32, SECCOMP, 1 },
    { "calls of x32 programs", calls_x32, SECCOMP, 1 },
#endif
};

/* Replaces the files once it is told to. */
static pid_t helper(void)
{
    pid_t child;
    char c;

    CHECK(pipe(helper_go) == 0 && pipe(helper_done) == 0);
    child = fork();
    if (child != 0)
        return child;
    (void)close(helper_go[1]);
    if (read(helper_go[0], &c, 1) == 1) {
        static const char *const name[] = { "in/token", "real/file" };
        char new[PATH_MAX];
        bool ok = true;
        size_t i;

        for (i = 0; i < LENGTH(name); i++) {
            (void)snprintf(new, sizeof new, "%s/out/%zu", dir, i);
            ok = opens(new, O_WRONLY | O_CREAT) &&
                 rename(new, in_dir(name[i])) == 0 && ok;
        }
        (void)!write(helper_done[1], ok ? "y" : "n", 1);
    }
    _exit(0);
}

/* Whether it goes through in a child that is so confined. */
static bool goes(const struct try *t, int by)
{
    struct buf files = { 0 };
    pid_t child;
    int status;

    os_name(&files, in_dir("in/token"));
    os_name(&files, in_dir("link/file"));
    os_name(&files, in_dir("whole/"));
    os_name(&files, "bare");
    os_name(&files, "/etc/hosts");
    os_name(&files, NULL);
    os_name(&files, "/etc/resolv.conf");
    child = fork();
    if (child == 0) {
        pid_t other = helper();
        struct err e;
        bool through;
        int error = 0;

        (void)unlink(in_dir("in/new"));
        os_protect_memory();
        if (by == (LANDLOCK | SECCOMP))
            error = os_confine(buf_str(&files), t->by & INTERFACE, &e);
        else if (by == LANDLOCK)
            error = os_landlock(buf_str(&files));
        else if (by == SECCOMP)
            error = os_seccomp(t->by & INTERFACE);
        through = t->go();
        (void)other;
        _exit(error != 0 ? 2 : !through);
    }
    CHECK(waitpid(child, &status, 0) == child);
    buf_free(&files);
    CHECK(!WIFEXITED(status) || WEXITSTATUS(status) < 2);
    if (t->by & ABORT)
        return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int try_all(void)
{
    static const char *const how[] = { "free", "under Landlock",
                                       "under seccomp", "confined" };
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0L, 1L);
    int bad = 0, by;
    size_t i;

    for (i = 0; i < LENGTH(tries); i++)
        for (by = 0; by < 4; by++) {
            const struct try *t = &tries[i];
            bool want = (t->by & by) == 0, got;

            if ((by & LANDLOCK) && abi < t->abi)
                continue;
            got = goes(t, by);
            if (by == 0 && !got && (t->by & (LANDLOCK | SECCOMP))) {
                printf("# %s: cannot be tried here\n", t->name);
                break;
            }
            if (got != want) {
                printf("%s, %s: %s\n", t->name, how[by],
                       got ? "goes through" : "fails");
                bad = 1;
            }
        }
    return bad;
}

/* ---- A kernel that lacks something ---- */

static int without(const char *what, char **command)
{
    bool no_landlock = strcmp(what, "seccomp") != 0;
    bool no_seccomp = strcmp(what, "landlock") != 0;
    struct os_step step[] = {
        { OS_LOAD, 0, 0, OS_CALL_AT },
        { OS_IS, no_landlock ? 0 : 1, 1, SYS_landlock_create_ruleset },
        { OS_ANSWER, 0, 0, OS_REFUSE },
        { OS_IS, 0, 3, SYS_prctl },
        { OS_LOAD, 0, 0, OS_ARGUMENTS_AT },
        { OS_IS, no_seccomp ? 0 : 1, 1, PR_SET_SECCOMP },
        { OS_ANSWER, 0, 0, 0x00050000 | EINVAL },
        { OS_ANSWER, 0, 0, OS_ALLOW },
    };
    const struct os_filter filter = { LENGTH(step), step };

    os_protect_memory();
    CHECK(syscall(SYS_prctl, (long)PR_SET_SECCOMP, 2L, &filter) == 0);
    (void)execv(command[0], command);
    return 127;
}

int main(int argc, char **argv)
{
    struct err e;

    (void)signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && strcmp(argv[1], "tries") == 0) {
        dir = argv[2];
        CHECK(chdir(dir) == 0);
        (void)setvbuf(stdout, NULL, _IONBF, 0);
        return try_all();
    }
    if (argc == 2 && strcmp(argv[1], "had") == 0) {
        os_protect_memory();
        if (os_confine(STR(""), false, &e) == 0)
            err_set(&e, "all");
        dprintf(STDOUT_FILENO, "%s\n", e.text);
        return 0;
    }
    if (argc > 3 && strcmp(argv[1], "without") == 0)
        return without(argv[2], argv + 3);
    return strcmp(argv[argc - 1], "nothing") == 0 ? 0 : 2;
}
