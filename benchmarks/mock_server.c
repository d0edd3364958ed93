/* An OpenAI-compatible mock server whose own log is the truth; one thread, epoll, no allocation for each event.
 *
 * mock_server PORT LOG SLOTS TTFT_MS TTFT_SIGMA ITL_MS ITL_SIGMA SEED
 *
 * A request waits for one of SLOTS, then its first token comes after a log-normal time (median TTFT_MS, sigma of the
 * logarithm), and each further one after a log-normal gap. max_tokens says how many. When a request ends, the log gets a
 * line: the instant its last byte was read, then the instants at which each token was written (CLOCK_MONOTONIC seconds).
 * GET /v1/models, /health and anything else are answered at once. Prints its port.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define STREAMS 16384
#define IN_MAX (1 << 20)
#define TOKENS_MAX 4096

typedef struct {
    int fd, is_streaming, tokens, sent, prompt, is_queued;
    size_t have, room;
    char *in;
    double arrived, due;
    double *written;
} stream;

static stream *streams[STREAMS];
static int heap[STREAMS], heap_size, queue[STREAMS], queue_head, queue_size, busy, slots, timer;
static double ttft_ms, ttft_sigma, itl_ms, itl_sigma;
static uint64_t state;
static FILE *out;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static double uniform(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return ((state >> 11) + 0.5) / 9007199254740992.0;
}

static double lognormal_s(double median_ms, double sigma) {
    double normal = sqrt(-2.0 * log(uniform())) * cos(6.283185307179586 * uniform());
    return median_ms * 1e-3 * exp(sigma * normal);
}

static void swap(int i, int j) { int k = heap[i]; heap[i] = heap[j], heap[j] = k; }

static void push(int fd) {
    int i = heap_size++;
    heap[i] = fd;
    for (; i && streams[heap[i]]->due < streams[heap[(i - 1) / 2]]->due; i = (i - 1) / 2) swap(i, (i - 1) / 2);
}

static void sink(int i) {
    for (int child; (child = 2 * i + 1) < heap_size; i = child) {
        if (child + 1 < heap_size && streams[heap[child + 1]]->due < streams[heap[child]]->due) child++;
        if (streams[heap[i]]->due <= streams[heap[child]]->due) return;
        swap(i, child);
    }
}

static void pop(void) {
    heap[0] = heap[--heap_size];
    sink(0);
}

static void arm(void) {
    struct itimerspec spec = {0};
    if (heap_size) {
        double at = streams[heap[0]]->due;
        spec.it_value.tv_sec = (time_t)at;
        spec.it_value.tv_nsec = (long)((at - (time_t)at) * 1e9) + 1;
        if (spec.it_value.tv_nsec > 999999999) spec.it_value.tv_nsec = 999999999;
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &spec, NULL);
}

static void put(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd full = {.fd = fd, .events = POLLOUT};
            if (poll(&full, 1, 1000) <= 0) return;
            continue;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return;
        data += n, size -= (size_t)n;
    }
}

static void answer(int fd, const char *type, const char *body) {
    char text[2048];
    int n = snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n%s", type,
                     strlen(body), body);
    put(fd, text, (size_t)n);
}

static void start(int fd) {
    stream *s = streams[fd];
    busy++;
    s->is_queued = 0;
    s->due = now() + lognormal_s(ttft_ms, ttft_sigma);
    push(fd);
}

static void leave(void) {
    busy--;
    while (busy < slots && queue_size) {
        int fd = queue[queue_head];
        queue_head = (queue_head + 1) % STREAMS, queue_size--;
        if (fd >= 0 && streams[fd] && streams[fd]->is_queued) start(fd);
    }
}

static const char *find(const char *text, const char *key) {
    const char *at = strstr(text, key);
    return at ? at + strlen(key) : NULL;
}

static void ask(int fd, char *body, int is_streaming) {
    stream *s = streams[fd];
    const char *at = find(body, "\"max_tokens\":");
    if (!at) at = find(body, "\"max_completion_tokens\":");
    s->tokens = at ? atoi(at) : 16;
    if (s->tokens < 1) s->tokens = 1;
    if (s->tokens > TOKENS_MAX) s->tokens = TOKENS_MAX;
    s->prompt = 1;
    for (char *c = body; *c; c++) s->prompt += *c == ' ';
    s->is_streaming = is_streaming;
    s->sent = 0;
    s->arrived = now();
    if (is_streaming) {
        static const char head[] =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        put(fd, head, sizeof head - 1);
    }
    if (busy < slots) start(fd);
    else s->is_queued = 1, queue[(queue_head + queue_size++) % STREAMS] = fd;
}

static void read_request(int fd) {
    stream *s = streams[fd];
    s->in[s->have] = 0;
    char *end = strstr(s->in, "\r\n\r\n");
    if (!end) return;
    char *length = strcasestr(s->in, "\r\ncontent-length:");
    size_t head = (size_t)(end - s->in) + 4, size = length && length < end ? strtoul(length + 17, NULL, 10) : 0;
    if (s->have < head + size) return;
    char *body = s->in + head;
    if (!strncmp(s->in, "POST", 4) && (strstr(s->in, "/completions"))) {
        for (char *c = body; *c; c++)  /* "key": value becomes "key":value */
            if (c[0] == '"' && c[1] == ':' && c[2] == ' ') memmove(c + 2, c + 3, strlen(c + 3) + 1);
        ask(fd, body, strstr(body, "\"stream\":true") != NULL);
    } else if (strstr(s->in, "/models"))
        answer(fd, "application/json",
               "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":0,\"owned_by\":\"mock\","
               "\"root\":\"mock\",\"max_model_len\":131072}]}");
    else answer(fd, "application/json", "{\"status\":\"ok\"}");
    s->have = 0;
}

static void tick(int fd) {
    stream *s = streams[fd];
    static const char event[] =
        "data: {\"id\":\"chatcmpl-0\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"mock\",\"choices\":[{"
        "\"index\":0,\"delta\":{\"content\":\" word\"},\"text\":\" word\",\"logprobs\":null,\"finish_reason\":null}]}\n\n";
    char text[4096];
    int is_last = s->sent + 1 == s->tokens, n = 0;
    if (s->is_streaming) {
        n = snprintf(text, sizeof text, "%zx\r\n%s\r\n", sizeof event - 1, event);
        if (is_last) {
            char tail[1024];
            int size = snprintf(tail, sizeof tail,
                "data: {\"id\":\"chatcmpl-0\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"mock\","
                "\"choices\":[],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n"
                "data: [DONE]\n\n", s->prompt, s->tokens, s->prompt + s->tokens);
            n += snprintf(text + n, sizeof text - (size_t)n, "%x\r\n%s\r\n0\r\n\r\n", size, tail);
        }
    }
    s->written[s->sent++] = now();
    if (n) put(fd, text, (size_t)n);
    if (!is_last) {
        s->due += lognormal_s(itl_ms, itl_sigma);
        sink(0);
        return;
    }
    pop();
    if (!s->is_streaming) {
        char body[512];
        snprintf(body, sizeof body,
            "{\"id\":\"x\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"mock\",\"choices\":[{\"index\":0,\"message\":"
            "{\"role\":\"assistant\",\"content\":\"word\"},\"text\":\"word\",\"finish_reason\":\"length\"}],\"usage\":{"
            "\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}}", s->prompt, s->tokens, s->prompt + s->tokens);
        answer(fd, "application/json", body);
    }
    fprintf(out, "%.9f", s->arrived);
    for (int i = 0; i < s->sent; i++) fprintf(out, " %.6f", s->written[i] - s->arrived);
    fputc('\n', out);
    s->tokens = 0;
    leave();
}

static void drop(int fd) {
    stream *s = streams[fd];
    for (int i = 0; i < heap_size; i++)
        if (heap[i] == fd) {
            heap[i] = heap[--heap_size];
            for (int k = heap_size / 2; k >= 0; k--) sink(k);
            leave();
            break;
        }
    for (int i = 0; i < queue_size; i++)
        if (queue[(queue_head + i) % STREAMS] == fd) queue[(queue_head + i) % STREAMS] = -1;
    close(fd);
    free(s->in), free(s->written), free(s);
    streams[fd] = NULL;
}

static void take(int listener) {
    int fd, yes = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= STREAMS) { close(fd); continue; }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        streams[fd] = calloc(1, sizeof(stream));
        streams[fd]->room = 65536;
        streams[fd]->in = malloc(streams[fd]->room + 1);
        streams[fd]->written = malloc(TOKENS_MAX * sizeof(double));
    }
}

static void fill(int fd) {
    stream *s = streams[fd];
    for (;;) {
        if (s->have == s->room) {
            if (s->room >= 64 * IN_MAX) { drop(fd); return; }
            s->in = realloc(s->in, (s->room *= 2) + 1);
        }
        ssize_t n = recv(fd, s->in + s->have, s->room - s->have, 0);
        if (n > 0) s->have += (size_t)n;
        else if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
        else { drop(fd); return; }
    }
    if (s->have) read_request(fd);
}

int main(int argc, char **argv) {
    if (argc != 9) return 2;
    out = fopen(argv[2], "w");
    slots = atoi(argv[3]);
    ttft_ms = atof(argv[4]), ttft_sigma = atof(argv[5]), itl_ms = atof(argv[6]), itl_sigma = atof(argv[7]);
    state = strtoull(argv[8], NULL, 10) * 2654435761u + 88172645463325252ull;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (!out || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return 1;
    socklen_t size = sizeof address;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int events_fd = epoll_create1(0), watched[STREAMS] = {0};
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[512];
    epoll_ctl(events_fd, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = timer;
    epoll_ctl(events_fd, EPOLL_CTL_ADD, timer, &event);
    event.data.fd = 0;
    epoll_ctl(events_fd, EPOLL_CTL_ADD, 0, &event);
    for (;;) {
        arm();
        int n = epoll_wait(events_fd, events, 512, -1);
        double at = now();
        while (heap_size && streams[heap[0]]->due <= at) tick(heap[0]);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            char gone[64];
            if (fd == 0) { if (read(0, gone, sizeof gone) <= 0) { fclose(out); return 0; } }
            else if (fd == timer) { if (read(timer, gone, 8) < 0) continue; }
            else if (fd == listener) {
                take(listener);
                for (int k = 0; k < STREAMS; k++)
                    if (streams[k] && !watched[k]) {
                        event.events = EPOLLIN, event.data.fd = k;
                        epoll_ctl(events_fd, EPOLL_CTL_ADD, k, &event);
                        watched[k] = 1;
                    }
            } else if (streams[fd]) {
                fill(fd);
                if (!streams[fd]) watched[fd] = 0;
            }
        }
    }
}
