/*
 * load SCENARIO key=value...: play agents, runtimes and shims, and measure who is between them.
 *
 * Through a proxy: socket=PATH. Through a relay of bytes: near=PATH, where that listens, and
 * far=PATH, where this does. pid=N is the process whose processor time is measured. Prints one
 * line of JSON; ends with status 1 when anything is not as it must be.
 *
 *   stdout, stdin   count frames of size bytes, in turns over vms with shims each
 *   echo            count keystrokes of size bytes to the first process of vms, and back, rate of
 *                   them a second or one behind the other
 *   ping            count commands to the agent
 *   setup           vms with shims each, to a depth: 0 with tokens alone, 1 with connected shims,
 *                   2 with started processes; keep=0 closes the runtimes' connections. The memory
 *                   is measured after every step of them; then come count keystrokes
 *   clients         the memory of count connections that do nothing
 *   fair            echo while the stdout or stdin of another VM floods, or (flood=own) the stdin
 *                   of another process of the same VM
 */
#include "peers.h"
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define CYCLE 64 /* frames that are written at a time, or a few more */
#define LARGE (4 << 20)
#define MOST_STDOUT 1024 /* in a message of a cc agent */
#define MOST_STDIN 8192  /* in a frame of cc-shim */
#define QUANTILES 200

static const char *scenario, *proxy, *near_, *far_, *flood = "stdout", *directory = "/tmp";
static long pid, vms = 1, shims = 1, size_ = 512, count = 1000, rate, step, depth = 2, keep = 1;
static clockid_t theirs;
static struct vm *vm;

/* -- the VMs */

static void startProcess(struct vm *v, int nth, const char *token) {
    char json[512];
    v->shim[nth] = connectTo(proxy);
    snprintf(json, sizeof json, "{\"token\":\"%s\"}", token);
    sendCommand(v->shim[nth], CONNECT_SHIM, json);
    response(v, v->shim[nth], CONNECT_SHIM);
    if (depth < 2) return;
    snprintf(json, sizeof json,
             "{\"hyperName\":\"newcontainer\",\"tokens\":[\"%s\"],\"data\":{\"id\":\"c%d\","
             "\"rootfs\":\"r\",\"image\":\"i\",\"process\":{\"terminal\":false,"
             "\"args\":[\"process#%d\"],\"workdir\":\"/\"}}}", token, nth, nth);
    sendCommand(v->runtime, HYPER, json);
    response(v, v->runtime, HYPER);
}
static void registerVM(struct vm *v, int nth) {
    char control[128], io[128], json[512];
    uint8_t ready[8] = {0, 0, 0, READY, 0, 0, 0, 8};
    snprintf(v->name, sizeof v->name, "bench-%d-%d", getpid(), nth);
    snprintf(control, sizeof control, "%s/%d.control", directory, nth);
    snprintf(io, sizeof io, "%s/%d.io", directory, nth);
    int controlListener = listenAt(control), ioListener = listenAt(io);
    v->runtime = connectTo(proxy);
    snprintf(json, sizeof json,
             "{\"containerId\":\"%s\",\"ctlSerial\":\"%s\",\"ioSerial\":\"%s\",\"numIOStreams\":%ld}",
             v->name, control, io, shims);
    sendCommand(v->runtime, REGISTER_VM, json);
    v->control = acceptOne(controlListener, control);
    v->io = acceptOne(ioListener, io);
    put(v->control, ready, 8);
    char *reply = strdup(response(v, v->runtime, REGISTER_VM)), *at = strstr(reply, "\"tokens\"");
    at = at ? strchr(at, '[') : 0;
    for (int i = 0; depth && i < shims; i++) {
        if (!at || !(at = strchr(at, '"'))) DIE("too few tokens: %s", reply);
        char *token = at + 1;
        at = strchr(token, '"');
        *at++ = 0;
        startProcess(v, i, token);
    }
    free(reply);
    if (!keep) close(v->runtime);
}
static void setUp(struct vm *v, int nth) {
    int large = LARGE;
    v->shim = calloc(shims, sizeof *v->shim);
    v->number = calloc(shims, sizeof *v->number);
    if (far_) {
        int listener = listenAt(far_);
        v->shim[0] = connectTo(near_);
        v->io = acceptOne(listener, far_);
    } else {
        registerVM(v, nth);
    }
    setsockopt(v->io, SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
}
static void unregister(struct vm *v) {
    char json[128];
    if (far_) return;
    if (!keep) v->runtime = connectTo(proxy);
    snprintf(json, sizeof json, "{\"containerId\":\"%s\"}", v->name);
    sendCommand(v->runtime, UNREGISTER_VM, json);
    response(0, v->runtime, UNREGISTER_VM);
    if (!keep) close(v->runtime);
}

/* -- what is printed */

static double began, theirsBegan, oursBegan;
static void begin(void) {
    theirsBegan = seconds(theirs);
    oursBegan = seconds(CLOCK_PROCESS_CPUTIME_ID);
    began = now();
}
/* Processor and wall time of each of n operations, and how busy both sides were. */
static void end(long n) {
    double wall = now() - began, cpu = seconds(theirs) - theirsBegan;
    double ours = seconds(CLOCK_PROCESS_CPUTIME_ID) - oursBegan;
    printf("\"cpu_us\": %.4f, \"wall_us\": %.4f, \"busy\": %.3f, \"load_busy\": %.3f, ",
           cpu * 1e6 / n, wall * 1e6 / n, cpu / wall, ours / wall);
}
static int ascending(const void *a, const void *b) {
    double x = *(double *)a, y = *(double *)b;
    return (x > y) - (x < y);
}
static void latencies(double *times, long n) {
    qsort(times, n, sizeof *times, ascending);
    printf("\"latency_us\": [");
    for (int i = 0; i <= QUANTILES; i++)
        printf("%s%.1f", i ? ", " : "", times[(n - 1) * i / QUANTILES] * 1e6);
    printf("], ");
}
static long pss(void) {
    char path[64], line[256];
    long kib = 0;
    usleep(300000);
    snprintf(path, sizeof path, "/proc/%ld/smaps_rollup", pid);
    FILE *file = fopen(path, "r");
    if (!file) DIE("%s: %s", path, strerror(errno));
    while (!kib && fgets(line, sizeof line, file)) sscanf(line, "Pss: %ld", &kib);
    fclose(file);
    return kib;
}

/* -- bulk: writers and readers of one loop */

struct writer { int fd; char *cycle; long size, at, left; };
struct reader { int fd, messages; uint8_t header[HEADER]; long have, rest; };
static struct writer *writers;
static struct reader *readers;
static long writerCount, readerCount;
static uint64_t echoed; /* the number whose messages are sent back */

static void addWriter(int fd, const struct vm *v, int messages, long frames) {
    long n = CYCLE - CYCLE % shims + (CYCLE % shims ? shims : 0), unit = HEADER + size_;
    struct writer *w = &writers[writerCount++];
    *w = (struct writer){fd, malloc(n * unit), n * unit, 0, frames * unit};
    memset(w->cycle, 'x', w->size);
    for (long i = 0; i < n; i++)
        if (messages) messageHeader((void *)(w->cycle + i * unit), v->number[i % shims], size_);
        else frameHeader((void *)(w->cycle + i * unit), STREAM, 0, size_);
}
static void addReader(int fd, int messages) {
    readers[readerCount++] = (struct reader){.fd = fd, .messages = messages};
}
static void writeMore(struct writer *w) {
    long n = w->size - w->at < w->left ? w->size - w->at : w->left;
    n = write(w->fd, w->cycle + w->at, n);
    if (n < 0 && errno != EAGAIN) DIE("write: %s", strerror(errno));
    if (n > 0) w->left -= n, w->at = (w->at + n) % w->size;
}
/* Take n bytes, cut anywhere; the payload among them. */
static long parse(struct reader *r, const char *at, long n) {
    long payload = 0;
    while (n) {
        long wanted = r->rest ? r->rest : HEADER - r->have, k = wanted < n ? wanted : n;
        if (r->rest) {
            r->rest -= k;
            payload += k;
        } else {
            memcpy(r->header + r->have, at, k);
            r->have = (r->have + k) % HEADER;
            if (!r->have) {
                r->rest = number32(r->header + 8) - (r->messages ? HEADER : 0);
                if (r->rest < 0 || r->rest > 1 << 20 || (!r->messages && r->header[6] != STREAM))
                    DIE("the stream has lost its step");
                uint64_t number;
                memcpy(&number, r->header, 8);
                if (echoed && be64toh(number) == echoed) {
                    char message[HEADER + 1] = {0};
                    messageHeader((void *)message, echoed, 1);
                    put(r->fd, message, sizeof message);
                }
            }
        }
        at += k;
        n -= k;
    }
    return payload;
}
static void bulk(int out, long machines, long processes, long frames) {
    static char buffer[1 << 18];
    long sources = out ? machines : machines * processes, want = frames * size_, got = 0;
    int epoll = epoll_create1(0);
    writers = calloc(machines * processes, sizeof *writers);
    readers = calloc(machines * processes, sizeof *readers);
    for (long m = 0; m < machines; m++) {
        long share = frames / sources;
        if (out) addWriter(vm[m].io, &vm[m], 1, share + (m ? 0 : frames % sources));
        else addReader(vm[m].io, !far_);
        for (long p = 0; p < processes; p++)
            if (out) addReader(vm[m].shim[p], !!far_);
            else addWriter(vm[m].shim[p], 0, 0, share + (m + p ? 0 : frames % sources));
    }
    for (long i = 0; i < writerCount; i++) {
        struct epoll_event e = {EPOLLOUT, {.ptr = &writers[i]}};
        epoll_ctl(epoll, EPOLL_CTL_ADD, writers[i].fd, &e);
    }
    int readersEpoll = epoll_create1(0);
    for (long i = 0; i < readerCount; i++) {
        struct epoll_event e = {EPOLLIN, {.ptr = &readers[i]}};
        epoll_ctl(readersEpoll, EPOLL_CTL_ADD, readers[i].fd, &e);
    }
    while (got < want) {
        struct epoll_event events[64];
        struct pollfd both[] = {{epoll, POLLIN, 0}, {readersEpoll, POLLIN, 0}};
        if (poll(both, 2, SILENCE) <= 0) DIE("stuck after %ld of %ld bytes", got, want);
        for (int i = 0, n = epoll_wait(epoll, events, 64, 0); i < n; i++) {
            struct writer *w = events[i].data.ptr;
            writeMore(w);
            if (!w->left) epoll_ctl(epoll, EPOLL_CTL_DEL, w->fd, 0);
        }
        for (int i = 0, n = epoll_wait(readersEpoll, events, 64, 0); i < n; i++) {
            struct reader *r = events[i].data.ptr;
            ssize_t k = read(r->fd, buffer, sizeof buffer);
            if (k <= 0) DIE("a connection was closed after %ld of %ld bytes", got, want);
            got += parse(r, buffer, k);
        }
    }
}

/* -- one at a time */

static void keystrokes(struct vm *v, int nth, int answered) {
    double *times = calloc(count, sizeof *times);
    long unit = HEADER + size_;
    char frame[HEADER + 4096], message[HEADER + 4096];
    if (size_ > 4084) DIE("a keystroke of %ld bytes would be cut", size_);
    memset(frame, 'k', sizeof frame);
    frameHeader((void *)frame, STREAM, 0, size_);
    begin();
    for (long k = 0; k < count; k++) {
        double sent = now();
        put(v->shim[nth], frame, unit);
        if (!answered) {
            get(v->io, message, unit);
            if (!far_ && memcmp(message + HEADER, frame + HEADER, size_)) DIE("not what was typed");
            put(v->io, message, unit);
        }
        get(v->shim[nth], message, unit);
        times[k] = now() - sent;
        if (rate) usleep(1000000 / rate);
    }
    end(count);
    latencies(times, count);
}
static void pings(void) {
    double *times = calloc(count, sizeof *times);
    begin();
    for (long k = 0; k < count; k++) {
        double sent = now();
        sendCommand(vm->runtime, HYPER, "{\"hyperName\":\"ping\"}");
        response(vm, vm->runtime, HYPER);
        times[k] = now() - sent;
    }
    end(count);
    latencies(times, count);
}
static void fair(void) {
    int own = !strcmp(flood, "own");
    if (own) echoed = vm[0].number[1];
    pid_t other = fork();
    if (!other) {
        /* The keystrokes' own process must not wait for this one. */
        struct sched_param none = {0};
        sched_setscheduler(0, SCHED_IDLE, &none);
        shims = 1;
        size_ = strcmp(flood, "stdout") ? MOST_STDIN : MOST_STDOUT;
        bulk(!strcmp(flood, "stdout"), 1, 1, 1L << 40);
    }
    usleep(200000);
    keystrokes(own ? vm : vm + 1, own, own);
    if (waitpid(other, 0, WNOHANG)) DIE("the flood has ended early");
    kill(other, SIGKILL);
    waitpid(other, 0, 0);
    /* Its streams are cut anywhere, so these VMs are given up. */
    printf("\"ok\": true}\n");
    exit(0);
}
static void setups(void) {
    double *times = calloc(vms, sizeof *times), paused = 0;
    printf("\"pss_kib\": [%ld", pss());
    begin();
    for (int i = 0; i < vms; i++) {
        double start = now();
        setUp(&vm[i], i);
        times[i] = now() - start;
        if (step && (i + 1) % step == 0) {
            start = now();
            printf(", %ld", pss());
            paused += now() - start;
        }
    }
    printf("], ");
    began += paused;
    end(vms);
    latencies(times, vms);
    if (!count) return;
    printf("\"echo\": {");
    keystrokes(vm, 0, 0);
    printf("\"count\": %ld}, ", count);
}
static void clients(void) {
    printf("\"pss_kib\": [%ld, ", pss());
    for (long i = 0; i < count; i++) connectTo(proxy);
    printf("%ld], ", pss());
}

int main(int argc, char **argv) {
    struct { const char *key; const char **text; long *number; } keys[] = {
        {"socket", &proxy, 0}, {"near", &near_, 0}, {"far", &far_, 0}, {"flood", &flood, 0},
        {"directory", &directory, 0}, {"pid", 0, &pid}, {"vms", 0, &vms}, {"shims", 0, &shims},
        {"size", 0, &size_}, {"count", 0, &count}, {"rate", 0, &rate}, {"step", 0, &step},
        {"depth", 0, &depth}, {"keep", 0, &keep}, {0, 0, 0}};
    scenario = argc > 1 ? argv[1] : "";
    for (int i = 2, k; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value) DIE("%s: key=value is wanted", argv[i]);
        *value++ = 0;
        for (k = 0; keys[k].key && strcmp(keys[k].key, argv[i]); k++);
        if (!keys[k].key) DIE("%s: unknown", argv[i]);
        if (keys[k].text) *keys[k].text = value;
        else *keys[k].number = atol(value);
    }
    if (clock_getcpuclockid(pid, &theirs)) DIE("pid=%ld: no such process", pid);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    vm = calloc(vms, sizeof *vm);
    printf("{");
    if (!strcmp(scenario, "setup")) setups();
    else if (!strcmp(scenario, "clients")) clients(), vms = 0;
    else for (int i = 0; i < vms; i++) setUp(&vm[i], i);
    if (!strcmp(scenario, "stdout") || !strcmp(scenario, "stdin")) {
        begin();
        bulk(!strcmp(scenario, "stdout"), vms, shims, count);
        end(count);
    } else if (!strcmp(scenario, "echo")) keystrokes(vm, 0, 0);
    else if (!strcmp(scenario, "ping")) pings();
    else if (!strcmp(scenario, "fair")) fair();
    else if (strcmp(scenario, "setup") && strcmp(scenario, "clients")) DIE("%s: no such scenario", scenario);
    for (int i = 0; i < vms; i++) unregister(&vm[i]);
    printf("\"ok\": true}\n");
}
