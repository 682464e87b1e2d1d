// A closed-loop HTTP load generator for LLM gateways: one thread, epoll, each connection sends its next request
// when its last one has ended. benchmarks/run.py compiles and starts it.
//
//   load PORT [-c CONNECTIONS] [-n REQUESTS] [-d MAX_SECONDS] [-s] [-e CHUNKS] [-r RAMP_MS]
//             [-p PATH] [-m MODEL] [-H 'Name: value']... [-b BYTES] [-a PERCENT] [-k]
//     -s  stream         -e  a stream with another number of chunks counts as an error
//     -r  connections start spread over this time      -b  length of the body at least
//     -a  so many of the streams are left by the client after half of the chunks that -e names
//     -k  the two-step v1.0 wire: POST /v1.0/worker/schedule until READY, then POST /v1.0/chat/completions
//
// Prints one JSON line: requests and chunks per second, percentiles in ms of time to first token, whole request
// and chunk latency (from the send time that the mock writes into each chunk), errors, streams left midway, reads (chunks per read
// tell how much was batched on the way), its own CPU.
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

#define MAX_HEAD 4096
#define MAX_REQUEST (8 << 20)
#define MAX_HEADERS 8192
#define STAMP_DIGITS 16       // of the send time behind each '@'
#define SCHEDULE_REPLY 15     // bytes kept of a v1.0 schedule reply
#define TOO_MANY_ERRORS 2000
#define GRACE_NS 20000000000ull // for requests still running when MAX_SECONDS are over

enum step { SCHEDULE, CHAT };                                             // of the v1.0 wire; else always CHAT
enum connection_state { STOPPED, CONNECTING, SENDING, WAITING };
enum framing { SIZE, DATA, DATA_END, TRAILER, EXTENSION };                // where in the chunked coding

typedef struct {
    int number, fd;
    enum connection_state state;
    enum step step;
    uint64_t starts_at, sent_at;
    int sent_bytes;           // of the request that is being sent
    int leaves;               // after half of the expected chunks

    char head[MAX_HEAD];
    int head_length;          // -1 once the head is whole
    int status;
    long content_length;      // -1: none announced
    int is_chunked, server_closes;
    long body_bytes;

    enum framing framing;
    long chunk_left;
    int trailer_bytes;        // on the current trailer line

    int stamp_digits;         // read so far, plus one for '@'; 0 outside a stamp
    unsigned long long stamp;
    int chunks, has_first_chunk;

    char schedule_reply[SCHEDULE_REPLY + 1];
    int schedule_reply_length;
} connection;

typedef struct {
    float *values;
    long count, capacity;
} samples;

static struct {
    int port, connections, stream, ramp_ms, v1, body_bytes, leave_percent;
    long requests, expected_chunks;
    double max_seconds;
    const char *path, *model;
    char headers[MAX_HEADERS];
} options = {.connections = 1, .requests = 1000, .max_seconds = 60, .path = "/v1/chat/completions", .model = "mock"};

static char *request;
static int request_length, epoll_fd, last_bad_status, running, stopping;
static long issued, succeeded, left, errors, chunks, reads, bytes;
static samples first_token_ms, request_ms, chunk_ms;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void add_sample(samples *s, double value) {
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? s->capacity * 2 : 65536;
        s->values = realloc(s->values, s->capacity * sizeof *s->values);
    }
    s->values[s->count++] = value;
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static double percentile(const samples *s, double p) { // of sorted samples; -1: there are none
    return s->count ? s->values[(long)(p * (s->count - 1) + .5)] : -1;
}

static void listen_for(connection *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, operation, c->fd, &event);
}

static void open_connection(connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(options.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    connect(c->fd, (void *)&address, sizeof address);
    listen_for(c, EPOLL_CTL_ADD, EPOLLOUT);
    c->state = CONNECTING;
}

static void close_connection(connection *c) {
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

static int write_v1_request(connection *c, char *out) {
    char form[512];
    const char *input = c->step == CHAT ? "&input=%5B%7B%22isbot%22%3Afalse%2C%22msg%22%3A%22hi%22%7D%5D" : "";
    int length = sprintf(form, "name=%s&history_id=%d&user_id=7%s", options.model, c->number + 1, input);
    return sprintf(out,
                   "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                   "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s",
                   c->step == SCHEDULE ? "/v1.0/worker/schedule" : "/v1.0/chat/completions", options.port, length,
                   form);
}

// Sends what the socket takes; the rest follows when it takes more. A failure is found by the read that follows.
static void send_more(connection *c) {
    char v1_request[1024];
    const char *message = request;
    int length = request_length;
    if (options.v1) {
        length = write_v1_request(c, v1_request);
        message = v1_request;
    }
    int sent = send(c->fd, message + c->sent_bytes, length - c->sent_bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        sent = length; // the read that follows finds the connection dead, or an early answer
    c->sent_bytes += sent > 0 ? sent : 0;
    int is_sent = c->sent_bytes >= length;
    listen_for(c, EPOLL_CTL_MOD, is_sent ? EPOLLIN : EPOLLOUT);
    c->state = is_sent ? WAITING : SENDING;
}

static void send_request(connection *c) {
    c->head_length = 0;
    c->status = 0;
    c->content_length = -1;
    c->is_chunked = c->server_closes = 0;
    c->body_bytes = 0;
    c->framing = SIZE;
    c->chunk_left = c->trailer_bytes = 0;
    c->stamp_digits = 0;
    c->schedule_reply_length = 0;
    c->chunks = c->has_first_chunk = 0;
    c->sent_bytes = 0;
    send_more(c);
}

static void connect_or_send(connection *c) {
    if (c->fd < 0)
        open_connection(c);
    else
        send_request(c);
}

static void start_next(connection *c) {
    if (issued >= options.requests || stopping) {
        close_connection(c);
        c->state = STOPPED;
        running--;
        return;
    }
    c->leaves = issued % 100 * 37 % 100 < options.leave_percent; // 37: spread evenly over each hundred
    issued++;
    c->sent_at = now_ns();
    c->step = options.v1 ? SCHEDULE : CHAT;
    connect_or_send(c);
}

static int is_good_answer(const connection *c) {
    return c->status == 200 && (!options.stream || c->has_first_chunk) &&
           (!options.expected_chunks || c->chunks == options.expected_chunks);
}

static void leave(connection *c) {
    left++;
    close_connection(c);
    start_next(c);
}

static void finish(connection *c, int is_whole, int is_closed) {
    uint64_t now = now_ns();
    if (is_closed || c->server_closes)
        close_connection(c);
    if (c->step == SCHEDULE && is_whole) {
        if (!strncmp(c->schedule_reply, "READY", 5) && c->schedule_reply_length >= 5)
            c->step = CHAT; // BUSY: the same request again
        connect_or_send(c);
        return;
    }
    if (is_whole && is_good_answer(c)) {
        succeeded++;
        add_sample(&request_ms, (now - c->sent_at) / 1e6);
    } else {
        errors++;
        if (c->status != 200)
            last_bad_status = c->status;
        close_connection(c);
        if (errors > TOO_MANY_ERRORS)
            stopping = 1;
    }
    start_next(c);
}

static void count_chunk(connection *c, uint64_t now) {
    chunks++;
    c->chunks++;
    if (!c->has_first_chunk) {
        c->has_first_chunk = 1;
        add_sample(&first_token_ms, (now - c->sent_at) / 1e6);
    }
    add_sample(&chunk_ms, ((double)now - (double)c->stamp) / 1e6);
}

// Looks for stamps in decoded body bytes; a gateway may split one between two reads.
static void scan_body(connection *c, const char *body, int count, uint64_t now) {
    if (c->step == SCHEDULE) {
        int room = SCHEDULE_REPLY - c->schedule_reply_length;
        int kept = count < room ? count : room;
        memcpy(c->schedule_reply + c->schedule_reply_length, body, kept);
        c->schedule_reply_length += kept;
        return;
    }
    int i = 0;
    while (i < count) {
        if (!c->stamp_digits) {
            const char *at = memchr(body + i, '@', count - i);
            if (!at)
                return;
            i = at - body + 1;
            c->stamp_digits = 1;
            c->stamp = 0;
            continue;
        }
        char digit = body[i];
        if (digit < '0' || digit > '9') {
            c->stamp_digits = 0;
            continue;
        }
        c->stamp = c->stamp * 10 + digit - '0';
        i++;
        if (++c->stamp_digits == STAMP_DIGITS + 1) {
            c->stamp_digits = 0;
            count_chunk(c, now);
        }
    }
}

static int hex_value(char digit) {
    return digit <= '9' ? digit - '0' : (digit | 32) - 'a' + 10;
}

// A whole chunked decoder, since a gateway may frame anew in the middle of a stamp. Returns 1 at the body's end.
static int decode_chunked(connection *c, const char *bytes_, int count, uint64_t now) {
    int i = 0;
    while (i < count) {
        if (c->framing == DATA) {
            long length = count - i < c->chunk_left ? count - i : c->chunk_left;
            scan_body(c, bytes_ + i, length, now);
            i += length;
            c->chunk_left -= length;
            if (!c->chunk_left)
                c->framing = DATA_END;
            continue;
        }
        char byte = bytes_[i++];
        switch (c->framing) {
        case SIZE:
        case EXTENSION:
            if (byte == '\n') {
                c->framing = c->chunk_left ? DATA : TRAILER;
                c->trailer_bytes = 0;
            } else if (byte == ';')
                c->framing = EXTENSION;
            else if (byte != '\r' && c->framing == SIZE)
                c->chunk_left = c->chunk_left * 16 + hex_value(byte);
            break;
        case DATA_END:
            if (byte == '\n')
                c->framing = SIZE;
            break;
        case TRAILER:
            if (byte == '\n') {
                if (!c->trailer_bytes)
                    return 1;
                c->trailer_bytes = 0;
            } else if (byte != '\r')
                c->trailer_bytes = 1;
            break;
        case DATA:
            break;
        }
    }
    return 0;
}

// Takes head bytes; returns how many of them belong to the head (the rest is body), or -1: the head is too long.
static int read_head(connection *c, const char *received, int count) {
    int room = MAX_HEAD - 1 - c->head_length;
    int before = c->head_length;
    int kept = count < room ? count : room;
    memcpy(c->head + before, received, kept);
    c->head_length += kept;
    c->head[c->head_length] = 0;
    char *blank = strstr(c->head, "\r\n\r\n");
    if (!blank)
        return c->head_length >= MAX_HEAD - 1 ? -1 : count;
    blank[2] = 0;
    c->status = atoi(c->head + 9);
    char *length_field = strcasestr(c->head, "\r\ncontent-length:");
    if (length_field)
        c->content_length = atol(length_field + 17);
    c->is_chunked = !!strcasestr(c->head, "\r\ntransfer-encoding: chunked");
    c->server_closes = !!strcasestr(c->head, "\r\nconnection: close");
    c->head_length = -1;
    return blank + 4 - c->head - before;
}

static void receive(connection *c) {
    static char buffer[262144];
    int count = recv(c->fd, buffer, sizeof buffer, 0);
    if (count < 0 && errno == EAGAIN)
        return;
    uint64_t now = now_ns();
    if (count <= 0) {
        int ended_by_close = c->head_length < 0 && c->content_length < 0 && !c->is_chunked;
        finish(c, ended_by_close, 1);
        return;
    }
    reads++;
    bytes += count;
    const char *body = buffer;
    if (c->head_length >= 0) {
        int used = read_head(c, body, count);
        if (used < 0) {
            finish(c, 0, 1);
            return;
        }
        body += used;
        count -= used;
        if (c->head_length >= 0)
            return;
    }
    int is_whole = 0;
    if (c->is_chunked)
        is_whole = count > 0 && decode_chunked(c, body, count, now);
    else {
        scan_body(c, body, count, now);
        c->body_bytes += count;
        is_whole = c->content_length >= 0 && c->body_bytes >= c->content_length;
    }
    if (is_whole)
        finish(c, 1, 0);
    else if (c->leaves && c->chunks * 2 >= options.expected_chunks)
        leave(c);
}

static void on_event(connection *c) {
    if (c->state == WAITING)
        receive(c);
    else if (c->state == SENDING)
        send_more(c);
    else if (c->state == CONNECTING) {
        int failure = 0;
        socklen_t size = sizeof failure;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &failure, &size);
        if (failure) {
            c->status = -failure;
            finish(c, 0, 1);
        } else
            send_request(c);
    }
}

static void usage(void) {
    fprintf(stderr, "usage: load PORT [-c CONNECTIONS] [-n REQUESTS] [-d MAX_SECONDS] [-s] [-e CHUNKS] [-r RAMP_MS]\n"
                    "            [-p PATH] [-m MODEL] [-H 'Name: value']... [-b BYTES] [-a PERCENT] [-k]\n");
    exit(2);
}

static void add_header(const char *header) {
    size_t used = strlen(options.headers);
    int n = snprintf(options.headers + used, MAX_HEADERS - used, "%s\r\n", header);
    if ((size_t)n >= MAX_HEADERS - used) {
        fprintf(stderr, "load: the headers given by -H are longer than %d bytes\n", MAX_HEADERS);
        exit(2);
    }
}

static void read_options(int argc, char **argv) {
    if (argc < 2 || !(options.port = atoi(argv[1])))
        usage();
    optind = 2;
    for (int flag; (flag = getopt(argc, argv, "c:n:d:se:r:p:m:H:b:a:k")) > 0;)
        switch (flag) {
        case 'c': options.connections = atoi(optarg); break;
        case 'n': options.requests = atol(optarg); break;
        case 'd': options.max_seconds = atof(optarg); break;
        case 's': options.stream = 1; break;
        case 'e': options.expected_chunks = atol(optarg); break;
        case 'r': options.ramp_ms = atoi(optarg); break;
        case 'p': options.path = optarg; break;
        case 'm': options.model = optarg; break;
        case 'H': add_header(optarg); break;
        case 'b': options.body_bytes = atoi(optarg); break;
        case 'a': options.leave_percent = atoi(optarg); break;
        case 'k': options.v1 = options.stream = 1; break;
        default: usage();
        }
}

// The prompt is words, so that whoever looks at it finds text and not one long run of a letter.
static void write_prompt(char *out, int length) {
    static const char words[] = "many colours that it sees every day ";
    for (int i = 0; i < length; i++)
        out[i] = words[i % (sizeof words - 1)];
    out[length] = 0;
}

static void write_request(void) {
    static const char form[] = "{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}],"
                               "\"max_tokens\":256,\"stream\":%s}";
    const char *stream = options.stream ? "true" : "false";
    int frame = snprintf(NULL, 0, form, options.model, "", stream);
    int prompt_length = options.body_bytes - frame > 5 ? options.body_bytes - frame : 5;
    if (prompt_length > MAX_REQUEST / 2) {
        fprintf(stderr, "load: a body is at most %d bytes\n", MAX_REQUEST / 2);
        exit(2);
    }
    char *prompt = malloc(prompt_length + 1);
    write_prompt(prompt, prompt_length);
    request = malloc(MAX_REQUEST);
    request_length = snprintf(request, MAX_REQUEST,
                              "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                              "Accept: */*\r\n%sContent-Length: %d\r\n\r\n",
                              options.path, options.port, options.headers, frame + prompt_length);
    request_length += snprintf(request + request_length, MAX_REQUEST - request_length, form, options.model, prompt,
                               stream);
    free(prompt);
}

static void run_load(connection *connections, uint64_t begin) {
    struct epoll_event events[512];
    uint64_t end = begin + options.max_seconds * 1e9;
    int started = 0;
    while (running > 0) {
        uint64_t now = now_ns();
        while (started < options.connections && connections[started].starts_at <= now)
            start_next(&connections[started++]);
        if (now > end)
            stopping = 1;
        if (now > end + GRACE_NS)
            break;
        int timeout_ms = 200;
        if (started < options.connections) {
            long wait_ms = ((long)connections[started].starts_at - (long)now) / 1000000;
            timeout_ms = wait_ms < 1 ? 1 : wait_ms;
        }
        int ready = epoll_wait(epoll_fd, events, 512, timeout_ms);
        for (int i = 0; i < ready; i++)
            on_event(events[i].data.ptr);
    }
}

static void print_results(double seconds) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    double cpu = r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
    samples *all[] = {&first_token_ms, &request_ms, &chunk_ms};
    for (int i = 0; i < 3; i++)
        qsort(all[i]->values, all[i]->count, sizeof(float), compare_floats);
    printf("{\"seconds\":%.3f,\"ok\":%ld,\"left\":%ld,\"errors\":%ld,\"hung\":%d,\"last_bad_status\":%d,\"requests_per_s\":%.1f,"
           "\"first_token_ms_p50\":%.3f,\"first_token_ms_p99\":%.3f,"
           "\"request_ms_p50\":%.3f,\"request_ms_p99\":%.3f,\"request_ms_max\":%.3f,"
           "\"chunks\":%ld,\"chunks_per_s\":%.0f,\"chunk_ms_p50\":%.3f,\"chunk_ms_p99\":%.3f,"
           "\"reads\":%ld,\"bytes\":%ld,\"load_cpu_s\":%.3f}\n",
           seconds, succeeded, left, errors, running, last_bad_status, succeeded / seconds,
           percentile(&first_token_ms, .5), percentile(&first_token_ms, .99),
           percentile(&request_ms, .5), percentile(&request_ms, .99), percentile(&request_ms, 1),
           chunks, chunks / seconds, percentile(&chunk_ms, .5), percentile(&chunk_ms, .99), reads, bytes, cpu);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    write_request();
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files = {20000, 20000};
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(0);

    connection *connections = calloc(options.connections, sizeof *connections);
    uint64_t begin = now_ns(), ramp_ns = options.ramp_ms * 1000000ull;
    for (int i = 0; i < options.connections; i++) {
        connections[i].number = i;
        connections[i].fd = -1;
        connections[i].starts_at = begin + (options.connections > 1 ? ramp_ns * i / options.connections : 0);
    }
    running = options.connections;
    run_load(connections, begin);
    print_results((now_ns() - begin) / 1e9);
    return 0;
}
