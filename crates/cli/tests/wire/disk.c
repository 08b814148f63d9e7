// A disk that keeps only what was synced. Preloaded into a process, it takes an image of each file below DISK_ROOT when
// that file is synced, and the list of names of each folder when that folder is synced, into DISK_SHADOW; and it kills
// the process before or after the sync of the number DISK_CUT ("12b", "12a"). What is not in the shadow was never durable.
//
// Names in the shadow are a file's inode and its time of birth, so that an inode that is used again is another file.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long syncs;

static void fail(const char *what) {
    dprintf(2, "disk: %s: %s\n", what, strerror(errno));
    _exit(99);
}

static void name_of(int dir, const char *path, char *name, int *is_dir) {
    struct statx s;
    int flags = AT_SYMLINK_NOFOLLOW | (*path ? 0 : AT_EMPTY_PATH);
    if (statx(dir, path, flags, STATX_INO | STATX_TYPE | STATX_BTIME, &s)) fail("statx");
    if (!(s.stx_mask & STATX_BTIME)) s.stx_btime.tv_sec = s.stx_btime.tv_nsec = 0;
    sprintf(name, "%llu.%lld.%u", (unsigned long long)s.stx_ino, (long long)s.stx_btime.tv_sec, s.stx_btime.tv_nsec);
    *is_dir = S_ISDIR(s.stx_mode);
}

static int create_in_shadow(const char *name, char *temporary) {
    snprintf(temporary, PATH_MAX, "%s/%s.tmp", getenv("DISK_SHADOW"), name);
    int out = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (out < 0) fail(temporary);
    return out;
}

static void finish_in_shadow(const char *name, const char *temporary, int out) {
    char final[PATH_MAX];
    snprintf(final, sizeof final, "%s/%s", getenv("DISK_SHADOW"), name);
    if (close(out) || rename(temporary, final)) fail(final);
}

// Reads by the caller's own descriptor where that may read: closing another one would drop the process's locks.
static void keep_file(int fd, const char *path, const char *name) {
    char temporary[PATH_MAX], buffer[1 << 16];
    int in = (fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY ? open(path, O_RDONLY | O_CLOEXEC) : fd;
    int out = create_in_shadow(name, temporary);
    off_t at = 0;
    for (ssize_t n; in >= 0 && (n = pread(in, buffer, sizeof buffer, at)) != 0; at += n)
        if (n < 0 || write(out, buffer, n) != n) fail(path);
    if (in >= 0 && in != fd) close(in);
    finish_in_shadow(name, temporary, out);
}

static void keep_folder(const char *path, const char *name) {
    char temporary[PATH_MAX], child[64];
    int out = create_in_shadow(name, temporary), is_dir;
    DIR *dir = opendir(path);
    if (!dir) fail(path);
    for (struct dirent *e; (e = readdir(dir));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        name_of(dirfd(dir), e->d_name, child, &is_dir);
        dprintf(out, "%c %s %s\n", is_dir ? 'd' : 'f', child, e->d_name);
    }
    closedir(dir);
    finish_in_shadow(name, temporary, out);
}

static void cut_at(char when) {
    char *end, *cut = getenv("DISK_CUT");
    if (cut && strtol(cut, &end, 10) == syncs && *end == when) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

static int sync_of(int fd, long number) {
    char link[64], path[PATH_MAX], name[64];
    const char *root = getenv("DISK_ROOT");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return syscall(number, fd);
    path[n] = 0;
    if (strncmp(path, root, strlen(root)) != 0) return syscall(number, fd);
    int is_dir;
    pthread_mutex_lock(&lock);
    syncs++;
    cut_at('b');
    name_of(fd, "", name, &is_dir);
    if (is_dir) keep_folder(path, name);
    else keep_file(fd, path, name);
    cut_at('a');
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int fd) { return sync_of(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_of(fd, SYS_fdatasync); }

__attribute__((destructor)) static void tell(void) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/syncs", getenv("DISK_SHADOW"));
    int out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (out < 0) fail(path);
    dprintf(out, "%ld", syncs);
    close(out);
}
