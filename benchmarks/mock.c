// A mock OpenAI-compatible model server: one thread, epoll, next to no cost of its own, so that what a
// benchmark sees is the gateway in front of it. benchmarks/run.py compiles and starts it.
//
//   mock PORT [chunks=50] [delay_us=0] [ttft_us=0] [pad=0] [hosts=1]
//     hosts   how many loopback addresses to listen on: 127.0.0.1, 127.0.0.2 and so on, as that many servers
//
//   POST any path        "stream":true in the body -> SSE, else one JSON answer
//   POST /kuwa...        a plain text stream, as a v1.0 executor sends it
//   GET  /cfg?chunks=N&delay=US&ttft=US&pad=N&pings=0|1&step=N   changes a running mock; answers its settings,
//                        counters and CPU. pings: of a stream only the first and the last chunk have content, the
//                        others are SSE comments, as of a model that has nothing to say yet. step: a stream sends
//                        so many chunks in one piece and waits for GET /step before the next ones, so that how many
//                        the gateway reads at a time does not hang on the machine's speed
//   GET  /v1/models, /metrics, server-info routes   what routers ask a model server before they trust it
//
// Each streamed chunk's text begins with '@' and the 16-digit CLOCK_MONOTONIC time in ns at which it was sent;
// the load generator on the same machine computes each chunk's latency from it.
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 65536
#define MAX_HEAD 1000000     // bytes of a request without a complete head before the connection is dropped
#define MAX_PAD 65536
#define MAX_CHUNK 70000      // a chunk's text with its padding and framing
#define FIRST_BUFFER 8192

typedef struct connection {
    int fd;                  // -1: the client left while a stream was scheduled; freed when its turn comes
    int length, capacity;    // of buffer; one byte more than capacity is allocated for a terminating zero
    char *buffer;            // bytes received and not yet answered
    int chunks_left, chunks_total;
    int plain_text;          // v1.0 stream instead of SSE
    int streaming;           // in one of the two queues
    uint64_t due;            // when its next chunk is sent, ns
    struct connection *next; // in its queue
} connection;

typedef struct {
    connection *head, *tail;
} queue;

static connection *connections[MAX_FDS];
static int epoll_fd;
static char is_listener[MAX_FDS];
static long answers, chunks_sent;
static long setting_chunks = 50, setting_delay_us, setting_ttft_us, setting_pad, setting_pings, setting_step;
static char padding[MAX_PAD];

// First chunks and later chunks wait in queues of their own: within each the delay is equal, so first in is
// first due and no heap is needed.
static queue first_chunks, later_chunks;
static queue held; // streams that wait for GET /step

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static double cpu_seconds(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static void push(queue *q, connection *c) {
    c->next = NULL;
    if (q->tail)
        q->tail->next = c;
    else
        q->head = c;
    q->tail = c;
}

static connection *pop(queue *q) {
    connection *c = q->head;
    q->head = c->next;
    if (!q->head)
        q->tail = NULL;
    return c;
}

static void drop(connection *c) {
    if (c->fd >= 0) {
        connections[c->fd] = NULL;
        close(c->fd);
        c->fd = -1;
    }
    if (!c->streaming) {
        free(c->buffer);
        free(c);
    }
}

// Sends everything or fails. Answers are small, so the socket's buffer takes them whole; a gateway that does
// not read makes the whole mock wait, which shows in the results as it should.
static int send_all(connection *c, const char *bytes, int count) {
    int sent = 0;
    while (sent < count) {
        int r = send(c->fd, bytes + sent, count - sent, MSG_NOSIGNAL);
        if (r < 0) {
            if (errno != EAGAIN)
                return -1;
            usleep(200);
            continue;
        }
        sent += r;
    }
    return 0;
}

static int send_chunk(connection *c, const char *text, int count, int last) {
    char framed[MAX_CHUNK + 32];
    int n = sprintf(framed, "%x\r\n", count);
    memcpy(framed + n, text, count);
    n += count;
    n += sprintf(framed + n, last ? "\r\n0\r\n\r\n" : "\r\n");
    return send_all(c, framed, n);
}

// While it is on, the system collects what is sent; turned off, all of it leaves in one piece.
static void cork(connection *c, int on) {
    setsockopt(c->fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on);
}

static void reply(connection *c, const char *content_type, const char *body) {
    char message[8192];
    int n = snprintf(message, sizeof message,
                     "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n%s",
                     content_type, strlen(body), body);
    send_all(c, message, n);
}

static int answer_requests(connection *c);

#define EVENT_HEAD                                                                                                 \
    "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"     \
    "\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{"

// Sends the connection's next chunk and puts it back into the queue, or ends its stream.
static void stream_step(connection *c) {
    char text[MAX_CHUNK];
    int n;
    c->chunks_left--;
    int first = c->chunks_total - c->chunks_left == 1;
    int last = c->chunks_left <= 0;
    unsigned long long sent_at = now_ns();
    if (setting_pings && !first && !last)
        n = sprintf(text, ": ping\n\n");
    else if (c->plain_text)
        n = sprintf(text, "@%016llu %.*s", sent_at, (int)setting_pad, padding);
    else
        n = sprintf(text, EVENT_HEAD "%s\"content\":\"@%016llu %.*s\"},\"logprobs\":null,\"finish_reason\":%s}]}\n\n%s",
                    first && !last ? "\"role\":\"assistant\"," : "", sent_at, (int)setting_pad, padding,
                    last ? "\"stop\"" : "null", last ? "data: [DONE]\n\n" : "");
    chunks_sent++;
    if (c->fd < 0 || send_chunk(c, text, n, last) < 0) {
        c->streaming = 0;
        drop(c);
        return;
    }
    int step_ends = setting_step && (last || (c->chunks_total - c->chunks_left) % setting_step == 0);
    if (step_ends)
        cork(c, 0);
    if (last) {
        c->streaming = 0;
        answers++;
        if (c->length && answer_requests(c) < 0)
            drop(c);
        return;
    }
    c->due = now_ns() + setting_delay_us * 1000;
    push(step_ends ? &held : &later_chunks, c);
}

static void release_held(void) {
    while (held.head) {
        connection *c = pop(&held);
        cork(c, 1);
        push(&later_chunks, c);
    }
}

static void read_setting(const char *query, const char *name, long *setting) {
    const char *found = strstr(query, name);
    if (found)
        *setting = atol(found + strlen(name));
}

static void answer_settings(connection *c, const char *query) {
    char body[400];
    read_setting(query, "chunks=", &setting_chunks);
    read_setting(query, "delay=", &setting_delay_us);
    read_setting(query, "ttft=", &setting_ttft_us);
    read_setting(query, "pad=", &setting_pad);
    read_setting(query, "pings=", &setting_pings);
    read_setting(query, "step=", &setting_step);
    if (setting_pad >= MAX_PAD)
        setting_pad = MAX_PAD - 1;
    sprintf(body,
            "{\"chunks\":%ld,\"delay\":%ld,\"ttft\":%ld,\"pad\":%ld,\"served\":%ld,\"nchunks\":%ld,\"cpu\":%.4f}",
            setting_chunks, setting_delay_us, setting_ttft_us, setting_pad, answers, chunks_sent, cpu_seconds());
    reply(c, "application/json", body);
}

static int starts_with(const char *text, const char *prefix) {
    return !strncmp(text, prefix, strlen(prefix));
}

static void answer_get(connection *c, const char *path) {
    if (starts_with(path, "/cfg"))
        answer_settings(c, path);
    else if (starts_with(path, "/step")) {
        release_held();
        reply(c, "application/json", "{}");
    } else if (starts_with(path, "/v1/models"))
        reply(c, "application/json",
              "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1700000000,"
              "\"owned_by\":\"mock\",\"root\":\"mock\",\"parent\":null}]}");
    else if (starts_with(path, "/get_model_info") || starts_with(path, "/model_info"))
        reply(c, "application/json",
              "{\"model_path\":\"mock\",\"tokenizer_path\":\"mock\",\"is_generation\":true}");
    else if (starts_with(path, "/get_server_info") || starts_with(path, "/server_info"))
        reply(c, "application/json",
              "{\"model_path\":\"mock\",\"served_model_name\":\"mock\",\"tokenizer_path\":\"mock\","
              "\"version\":\"0.5\"}");
    else if (starts_with(path, "/metrics"))
        reply(c, "text/plain",
              "vllm:num_requests_running{model_name=\"mock\"} 0\n"
              "vllm:num_requests_waiting{model_name=\"mock\"} 0\n");
    else
        reply(c, "application/json", "{\"status\":\"ok\"}");
}

static void answer_whole(connection *c) {
    answers++;
    reply(c, "application/json",
          "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000,"
          "\"model\":\"mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
          "\"content\":\"Hello there!\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
          "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":3,\"total_tokens\":8}}");
}

static int start_stream(connection *c, int plain_text) {
    char head[256];
    int n = sprintf(head,
                    "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nCache-Control: no-cache\r\n"
                    "Transfer-Encoding: chunked\r\n\r\n",
                    plain_text ? "text/plain; charset=utf-8" : "text/event-stream; charset=utf-8");
    if (setting_step)
        cork(c, 1);
    if (send_all(c, head, n) < 0)
        return -1;
    c->plain_text = plain_text;
    c->streaming = 1;
    c->chunks_left = c->chunks_total = setting_chunks;
    c->due = now_ns() + setting_ttft_us * 1000;
    push(&first_chunks, c);
    return 0;
}

// The length of the first request in the buffer, or 0 while it is not whole, or -1 when its head is too long.
static long whole_request(connection *c, char **body) {
    c->buffer[c->length] = 0;
    char *blank = strstr(c->buffer, "\r\n\r\n");
    if (!blank)
        return c->length > MAX_HEAD ? -1 : 0;
    *body = blank + 4;

    char saved = blank[2];
    blank[2] = 0; // header searches end at the head's end
    char *length_field = strcasestr(c->buffer, "\r\ncontent-length:");
    long content_length = length_field ? atol(length_field + 17) : 0;
    int is_chunked = !!strcasestr(c->buffer, "\r\ntransfer-encoding: chunked");
    int expects_continue = !!strcasestr(c->buffer, "\r\nexpect: 100");
    blank[2] = saved;

    long total = *body - c->buffer + content_length;
    if (is_chunked) {
        char *end = strstr(*body, "\r\n0\r\n\r\n");
        if (!end)
            return 0;
        total = end + 7 - c->buffer;
    }
    if (c->length >= total)
        return total;
    if (expects_continue)
        send_all(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    return 0;
}

// Answers the whole requests in the buffer, in order; one that streams makes those behind it wait.
// Returns -1 when the connection is to be dropped.
static int answer_requests(connection *c) {
    while (!c->streaming && c->length) {
        char *body;
        long total = whole_request(c, &body);
        if (total <= 0)
            return total;
        char saved = c->buffer[total];
        c->buffer[total] = 0; // body searches end at the body's end
        int failed = 0;
        int plain_text = starts_with(c->buffer, "POST /kuwa");
        if (starts_with(c->buffer, "GET "))
            answer_get(c, c->buffer + 4);
        else if (plain_text || strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true"))
            failed = start_stream(c, plain_text);
        else
            answer_whole(c);
        if (failed)
            return -1;
        c->buffer[total] = saved;
        memmove(c->buffer, c->buffer + total, c->length - total);
        c->length -= total;
    }
    return 0;
}

static void watch(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->capacity = FIRST_BUFFER;
        c->buffer = malloc(FIRST_BUFFER + 1);
        connections[fd] = c;
        watch(fd);
    }
}

static void receive(connection *c) {
    if (c->length >= c->capacity) {
        c->capacity *= 2;
        c->buffer = realloc(c->buffer, c->capacity + 1);
    }
    int r = recv(c->fd, c->buffer + c->length, c->capacity - c->length, 0);
    if (r < 0 && errno == EAGAIN)
        return;
    if (r <= 0) {
        drop(c);
        return;
    }
    c->length += r;
    if (answer_requests(c) < 0)
        drop(c);
}

static int listen_on(int port, int host) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK + host)};
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096))
        return -1;
    is_listener[listener] = 1;
    return listener;
}

static void wait_and_receive(void) {
    struct epoll_event events[512];
    struct timespec timeout, *until = NULL;
    uint64_t due = UINT64_MAX, now = now_ns();
    if (later_chunks.head)
        due = later_chunks.head->due;
    if (first_chunks.head && first_chunks.head->due < due)
        due = first_chunks.head->due;
    if (due != UINT64_MAX) {
        uint64_t wait = due > now ? due - now : 0;
        timeout.tv_sec = wait / 1000000000ull;
        timeout.tv_nsec = wait % 1000000000ull;
        until = &timeout;
    }
    int ready = epoll_pwait2(epoll_fd, events, 512, until, NULL);
    for (int i = 0; i < ready; i++) {
        int fd = events[i].data.fd;
        if (is_listener[fd])
            accept_all(fd);
        else if (connections[fd])
            receive(connections[fd]);
    }
}

static void send_due_chunks(void) {
    uint64_t now = now_ns();
    // Without a delay a stream is due again at once: one turn each, then the sockets are looked at again.
    connection *last_of_turn = later_chunks.tail;
    while (later_chunks.head && later_chunks.head->due <= now) {
        connection *c = pop(&later_chunks);
        int turn_ends = c == last_of_turn; // read before the step, which may free c
        stream_step(c);
        if (turn_ends)
            break;
    }
    while (first_chunks.head && first_chunks.head->due <= now)
        stream_step(pop(&first_chunks));
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: mock PORT [chunks=50] [delay_us=0] [ttft_us=0] [pad=0] [hosts=1]\n");
        return 2;
    }
    long hosts = 1;
    long *settings[] = {&setting_chunks, &setting_delay_us, &setting_ttft_us, &setting_pad, &hosts};
    for (int i = 2; i < argc && i < 7; i++)
        *settings[i - 2] = atol(argv[i]);
    memset(padding, 'x', sizeof padding - 1);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files = {20000, 20000};
    setrlimit(RLIMIT_NOFILE, &files);

    epoll_fd = epoll_create1(0);
    for (int host = 0; host < hosts; host++) {
        int listener = listen_on(atoi(argv[1]), host);
        if (listener < 0) {
            perror("mock: cannot listen on that port");
            return 1;
        }
        watch(listener);
    }
    for (;;) {
        wait_and_receive();
        send_due_chunks();
    }
}
