// Preloaded into a process, it writes to the file SOCKETS where the process would connect or send to, and which names it
// looks up; and it lets nothing out but to loopback addresses and local sockets.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void note(const char *what, const char *where, int port) {
    int out = open(getenv("SOCKETS"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (out < 0) _exit(99);
    dprintf(out, "%s %s %d\n", what, where, port);
    close(out);
}

static int is_allowed(const char *what, const struct sockaddr *a) {
    char text[INET6_ADDRSTRLEN] = "?";
    if (!a || a->sa_family == AF_UNIX || a->sa_family == AF_UNSPEC) return 1;
    if (a->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)a;
        inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
        note(what, text, ntohs(in->sin_port));
        return ntohl(in->sin_addr.s_addr) >> 24 == 127;
    }
    if (a->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const void *)a;
        inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof text);
        note(what, text, ntohs(in->sin6_port));
        return IN6_IS_ADDR_LOOPBACK(&in->sin6_addr);
    }
    note(what, "another family", a->sa_family);
    return 0;
}

static int refuse(void) {
    errno = ENETUNREACH;
    return -1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int connect(int fd, const struct sockaddr *a, socklen_t n) {
    return is_allowed("connect", a) ? REAL(connect)(fd, a, n) : refuse();
}

ssize_t sendto(int fd, const void *b, size_t n, int flags, const struct sockaddr *a, socklen_t an) {
    return is_allowed("sendto", a) ? REAL(sendto)(fd, b, n, flags, a, an) : refuse();
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags) {
    return is_allowed("sendmsg", m->msg_name) ? REAL(sendmsg)(fd, m, flags) : refuse();
}

int sendmmsg(int fd, struct mmsghdr *m, unsigned n, int flags) {
    for (unsigned i = 0; i < n; i++)
        if (!is_allowed("sendmmsg", m[i].msg_hdr.msg_name)) return refuse();
    return REAL(sendmmsg)(fd, m, n, flags);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    struct in6_addr any;
    int is_address = node && (inet_pton(AF_INET, node, &any) == 1 || inet_pton(AF_INET6, node, &any) == 1);
    if (node && !is_address) {
        note("lookup", node, 0);
        if (strcmp(node, "localhost")) return EAI_FAIL;
    }
    return REAL(getaddrinfo)(node, service, hints, found);
}
