/*
 * The peers of a proxy, as the load generator plays them: sockets, frames, messages, clocks.
 *
 * All of it is one thread that waits with poll, as a hypervisor and a shim do. A peer that blocks
 * in read instead is woken by the kernel for each buffer of its that the proxy has read, at the
 * proxy's cost.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DIE(...) (fprintf(stderr, "load: " __VA_ARGS__), fputc('\n', stderr), exit(1))
#define SILENCE 20000 /* milliseconds until a peer that says nothing counts as stuck */
#define HEADER 12     /* bytes, of a frame and of an I/O message */

enum { RESPONSE = 1, STREAM = 2 };
enum { REGISTER_VM = 0, UNREGISTER_VM = 1, HYPER = 3, CONNECT_SHIM = 4 };
enum { EXECCMD = 6, READY = 8, ACK = 9, NEWCONTAINER = 17 };

static double seconds(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t)) DIE("the measured process has gone");
    return t.tv_sec + t.tv_nsec * 1e-9;
}
static double now(void) { return seconds(CLOCK_MONOTONIC); }

static struct sockaddr_un address(const char *path) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path) DIE("%s: too long for a socket", path);
    strcpy(a.sun_path, path);
    return a;
}
static int connectTo(const char *path) {
    struct sockaddr_un a = address(path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    for (int tries = 0; connect(fd, (void *)&a, sizeof a); tries++) {
        if (tries == 500 || (errno != EAGAIN && errno != ECONNREFUSED && errno != ENOENT))
            DIE("%s: %s", path, strerror(errno));
        usleep(10000);
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}
static int listenAt(const char *path) {
    struct sockaddr_un a = address(path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    unlink(path);
    if (bind(fd, (void *)&a, sizeof a) || listen(fd, 4)) DIE("%s: %s", path, strerror(errno));
    return fd;
}
static void await(int fd, int events) {
    struct pollfd p = {fd, events, 0};
    if (poll(&p, 1, SILENCE) <= 0) DIE("nothing happens any more");
}
/* Accept one connection, and listen no more. */
static int acceptOne(int listener, const char *path) {
    await(listener, POLLIN);
    int fd = accept(listener, 0, 0);
    if (fd < 0) DIE("accept: %s", strerror(errno));
    close(listener);
    unlink(path);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}
static void put(int fd, const void *data, size_t size) {
    for (const char *at = data; size;) {
        ssize_t n = write(fd, at, size);
        if (n < 0 && errno != EAGAIN) DIE("write: %s", strerror(errno));
        if (n < 0) await(fd, POLLOUT);
        else at += n, size -= n;
    }
}
static void get(int fd, void *data, size_t size) {
    for (char *at = data; size;) {
        await(fd, POLLIN);
        ssize_t n = read(fd, at, size);
        if (n <= 0 && !(n < 0 && errno == EAGAIN)) DIE("a connection was closed");
        if (n > 0) at += n, size -= n;
    }
}

static void frameHeader(uint8_t *to, int type, int opcode, uint32_t size) {
    uint8_t start[] = {0, 2, 3, 0, 0, 0, type, opcode};
    size = htonl(size);
    memcpy(to, start, 8);
    memcpy(to + 8, &size, 4);
}
static void messageHeader(uint8_t *to, uint64_t number, uint32_t size) {
    number = htobe64(number);
    size = htonl(size + HEADER);
    memcpy(to, &number, 8);
    memcpy(to + 8, &size, 4);
}
static uint32_t number32(const void *at) {
    uint32_t n;
    memcpy(&n, at, 4);
    return ntohl(n);
}
static void sendCommand(int fd, int opcode, const char *json) {
    uint8_t frame[HEADER + 1024];
    size_t size = strlen(json);
    if (size > 1024) DIE("a command is too long");
    frameHeader(frame, 0, opcode, size);
    memcpy(frame + HEADER, json, size);
    put(fd, frame, HEADER + size);
}

/* One VM: its agent, its runtime's connection, and its shims. */
struct vm {
    char name[64];
    int control, io, runtime, *shim;
    uint64_t *number; /* that of each process's stdin and stdout */
};

/* The agent answers one command; a start tells the number of its process. */
static void answer(struct vm *vm) {
    static char body[1 << 16];
    uint8_t header[8], ack[8] = {0, 0, 0, ACK, 0, 0, 0, 8};
    get(vm->control, header, 8);
    uint32_t code = number32(header), size = number32(header + 4) - 8;
    if (size >= sizeof body) DIE("a command of %u bytes", size);
    get(vm->control, body, size);
    body[size] = 0;
    if (code == NEWCONTAINER || code == EXECCMD) {
        char *stdio = strstr(body, "\"stdio\":"), *which = strstr(body, "process#");
        if (!stdio || !which) DIE("a start without its number: %s", body);
        vm->number[atoi(which + 8)] = strtoull(stdio + 8, 0, 10);
    }
    put(vm->control, ack, 8);
}
/* Read the response to a command, while the agent does its part. The payload is valid until the
 * next call. */
static char *response(struct vm *vm, int fd, int opcode) {
    static char payload[1 << 20];
    uint8_t header[HEADER];
    struct pollfd p[] = {{fd, POLLIN, 0}, {vm ? vm->control : -1, POLLIN, 0}};
    while (poll(p, 2, SILENCE) > 0 && !p[0].revents) answer(vm);
    get(fd, header, HEADER);
    uint32_t size = number32(header + 8);
    if (size >= sizeof payload) DIE("a response of %u bytes", size);
    get(fd, payload, size);
    payload[size] = 0;
    if (header[6] != RESPONSE || header[7] != opcode) DIE("command %d failed: %s", opcode, payload);
    return payload;
}
