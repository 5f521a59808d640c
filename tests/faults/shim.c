/* Faults below libc, for a daemon that knows nothing of them: preload this library and steer it while it runs.
 *
 *     SHIM_PAGE=FILE        a file of sizeof(struct page) bytes, mapped by the test too
 *     SHIM_DIRECTORY=DIR    operations on files below it are counted and can fail; real path, no slash
 *
 * An operation whose kind is in `counted` gets the next number; numbers from `first` to `last` fail. The clock
 * moves for the whole process. tests/support_shim.py holds the other end: both describe the same page.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum kind { WRITE = 1, SYNC = 2, RENAME = 4, TRUNCATE = 8, CREATE = 16, UNLINK = 32 };
enum { ENTRIES = 512, NAME_BYTES = 52 };

struct entry {
    uint64_t number;
    uint32_t kind;
    int32_t fault; /* errno, 0 for a short write */
    char name[NAME_BYTES + 4];
};

struct page {
    int64_t clock_offset_ns;
    uint64_t count;       /* operations numbered so far */
    uint64_t first, last; /* these numbers fail; first 0: none */
    uint64_t failed;      /* how many did */
    uint64_t sync_delay_ns;
    uint64_t unsynced; /* writes to a write-ahead log since it was last synced */
    uint32_t counted;  /* kinds that are numbered */
    uint32_t blocked;  /* kinds that wait until this is cleared */
    int32_t fault;     /* errno of a failing operation; 0: a failing write is short, others succeed */
    uint32_t partly;   /* a failing write has written half before it fails */
    struct entry log[ENTRIES]; /* the operations that failed, the newest over the oldest */
};

static struct page *page;
static char directory[4096];
static size_t directory_length;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (real == NULL) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("SHIM_PAGE"), *below = getenv("SHIM_DIRECTORY");
    if (file == NULL) return;
    int descriptor = open(file, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return;
    void *mapped = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped == MAP_FAILED) return;
    if (below != NULL) directory_length = (size_t)snprintf(directory, sizeof directory, "%s", below);
    page = mapped;
}

static int is_ours(const char *path) {
    return page != NULL && directory_length > 0 && strncmp(path, directory, directory_length) == 0 &&
           (path[directory_length] == '/' || path[directory_length] == '\0');
}

static int path_of(int descriptor, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, size - 1);
    path[length < 0 ? 0 : length] = '\0';
    return is_ours(path);
}

static void pause_ns(uint64_t ns) {
    struct timespec rest = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    while (nanosleep(&rest, &rest) != 0 && errno == EINTR) {}
}

/* Whether this operation fails; waits first where it is to wait. */
static int fails(enum kind kind, const char *path) {
    while (__atomic_load_n(&page->blocked, __ATOMIC_SEQ_CST) & kind) pause_ns(1000000);
    if (kind == SYNC && page->sync_delay_ns > 0) pause_ns(page->sync_delay_ns);
    if (!(page->counted & kind)) return 0;
    uint64_t number = __atomic_add_fetch(&page->count, 1, __ATOMIC_SEQ_CST);
    if (page->first == 0 || number < page->first || number > page->last) return 0;
    if (page->fault == 0 && kind != WRITE) return 0;
    uint64_t failed = __atomic_fetch_add(&page->failed, 1, __ATOMIC_SEQ_CST);
    struct entry *entry = &page->log[failed % ENTRIES];
    const char *name = strrchr(path, '/');
    entry->number = number;
    entry->kind = kind;
    entry->fault = page->fault;
    snprintf(entry->name, sizeof entry->name, "%s", name == NULL ? path : name + 1);
    return 1;
}

static int refuse(enum kind kind, const char *path) {
    if (!is_ours(path) || !fails(kind, path)) return 0;
    errno = page->fault;
    return 1;
}

static int is_log(const char *path) {
    size_t length = strlen(path);
    return length > 4 && strcmp(path + length - 4, "-wal") == 0;
}

/* How many bytes may be written: all, or what a failing write leaves behind (-1: nothing, errno is set). */
static ssize_t allowed(int descriptor, size_t wanted, int *failing) {
    char path[4096];
    int saved = errno;
    *failing = 0;
    if (page == NULL || !path_of(descriptor, path, sizeof path)) {
        errno = saved;
        return (ssize_t)wanted;
    }
    *failing = fails(WRITE, path);
    if (is_log(path)) __atomic_fetch_add(&page->unsynced, 1, __ATOMIC_SEQ_CST);
    errno = saved;
    if (!*failing) return (ssize_t)wanted;
    if (page->fault == 0) {
        *failing = 0; /* short, and the caller is told so */
        return wanted > 1 ? (ssize_t)(wanted / 2) : (ssize_t)wanted;
    }
    if (page->partly && wanted > 1) return (ssize_t)(wanted / 2);
    errno = page->fault;
    return -1;
}

ssize_t write(int descriptor, const void *bytes, size_t count) {
    REAL(write);
    int failing;
    ssize_t rest = allowed(descriptor, count, &failing);
    if (rest < 0) return -1;
    ssize_t done = real(descriptor, bytes, (size_t)rest);
    if (!failing) return done;
    errno = page->fault;
    return -1;
}

#define WRITES_AT(name, offset_type) \
    ssize_t name(int descriptor, const void *bytes, size_t count, offset_type offset) { \
        REAL(name); \
        int failing; \
        ssize_t rest = allowed(descriptor, count, &failing); \
        if (rest < 0) return -1; \
        ssize_t done = real(descriptor, bytes, (size_t)rest, offset); \
        if (!failing) return done; \
        errno = page->fault; \
        return -1; \
    }
WRITES_AT(pwrite, off_t)
WRITES_AT(pwrite64, off64_t)

#define SYNCS(name) \
    int name(int descriptor) { \
        REAL(name); \
        char path[4096]; \
        int ours = page != NULL && path_of(descriptor, path, sizeof path); \
        if (ours && fails(SYNC, path)) { \
            errno = page->fault; \
            return -1; \
        } \
        int done = real(descriptor); \
        if (ours && done == 0 && is_log(path)) __atomic_store_n(&page->unsynced, 0, __ATOMIC_SEQ_CST); \
        return done; \
    }
SYNCS(fsync)
SYNCS(fdatasync)

#define TRUNCATES(name, length_type) \
    int name(int descriptor, length_type length) { \
        REAL(name); \
        char path[4096]; \
        if (page != NULL && path_of(descriptor, path, sizeof path) && fails(TRUNCATE, path)) { \
            errno = page->fault; \
            return -1; \
        } \
        return real(descriptor, length); \
    }
TRUNCATES(ftruncate, off_t)
TRUNCATES(ftruncate64, off64_t)

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        mode_t mode = 0; \
        if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        if ((flags & O_CREAT) && refuse(CREATE, path)) return -1; \
        return real(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name) \
    int name(int base, const char *path, int flags, ...) { \
        REAL(name); \
        mode_t mode = 0; \
        if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        if ((flags & O_CREAT) && refuse(CREATE, path)) return -1; \
        return real(base, path, flags, mode); \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

int rename(const char *from, const char *to) {
    REAL(rename);
    return refuse(RENAME, to) ? -1 : real(from, to);
}

int renameat(int from_base, const char *from, int to_base, const char *to) {
    REAL(renameat);
    return refuse(RENAME, to) ? -1 : real(from_base, from, to_base, to);
}

int unlink(const char *path) {
    REAL(unlink);
    return refuse(UNLINK, path) ? -1 : real(path);
}

int unlinkat(int base, const char *path, int flags) {
    REAL(unlinkat);
    return refuse(UNLINK, path) ? -1 : real(base, path, flags);
}

/* --- the wall clock ------------------------------------------------------------------------------------- */

static int64_t offset_ns(void) {
    return page == NULL ? 0 : __atomic_load_n(&page->clock_offset_ns, __ATOMIC_SEQ_CST);
}

static struct timespec moved(struct timespec now) {
    int64_t ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec + offset_ns();
    if (ns < 0) ns = 0; /* no wall clock shows a time before 1970 */
    return (struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int done = real(clock, now);
    if (done == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) && offset_ns() != 0)
        *now = moved(*now);
    return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(gettimeofday);
    int done = real(now, zone);
    if (done == 0 && offset_ns() != 0) {
        struct timespec fine = moved((struct timespec){now->tv_sec, now->tv_usec * 1000L});
        *now = (struct timeval){fine.tv_sec, fine.tv_nsec / 1000};
    }
    return done;
}

time_t time(time_t *kept) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (kept != NULL) *kept = now.tv_sec;
    return now.tv_sec;
}
