/* The floor: the least that a server can do to deliver events to WebSocket clients. One thread, one epoll instance. It
 * copies an event once, together with its frame header, and writes it to each client of its job with one system call per
 * client. It checks nothing and has no limits: only `tailwater bench` connects to it.
 *
 * Prints `ready WATCH_PORT PUBLISH_PORT`. The publisher sends one event a line, `JOB JSON`; an empty line asks for an
 * empty line in return. A client sends one `watch` frame. Its cursor begins with the sequence number of its last event.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

enum { JOBS = 1 << 17, CLIENTS = 1 << 16, ID = 64, LINES = 1 << 20, AT_ONCE = 64 };

struct job {
  char id[ID];
  struct iovec *frames;
  int frame_count, frame_room;
  int *clients;
  int client_count, client_room;
};

struct client {
  struct job *job; /* none until its `watch` */
  int next;        /* the next frame to write */
  int offset;      /* how much of it has been written */
  char upgraded, waits;
};

static struct job *jobs[JOBS];
static struct client clients[CLIENTS];
static char lines[LINES], upgrade_answer[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    /* The answer to the key that the benchmark sends, which is the one of RFC 6455. */
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: tailwater.v1.json\r\n\r\n";
static int epoll, publisher = -1, line_bytes;

static void die(const char *what) {
  perror(what);
  exit(1);
}

static void *grown(void *list, int count, int *room, size_t item) {
  if (count < *room) return list;
  *room = *room ? *room * 2 : 4;
  list = realloc(list, *room * item);
  if (!list) die("realloc");
  return list;
}

static int listens(int *port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (fd < 0 || bind(fd, (void *)&address, size) || listen(fd, 4096) || getsockname(fd, (void *)&address, &size))
    die("listen");
  *port = ntohs(address.sin_port);
  return fd;
}

static void watches(int fd, uint32_t events, int how) {
  struct epoll_event event = {.events = events, .data.fd = fd};
  if (epoll_ctl(epoll, how, fd, &event)) die("epoll_ctl");
}

static struct job *job_of(const char *id, size_t length) {
  unsigned hash = 2166136261u;
  for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)id[i]) * 16777619u;
  struct job **slot = &jobs[hash % JOBS];
  while (*slot && (strncmp((*slot)->id, id, length) || (*slot)->id[length])) {
    if (++slot == jobs + JOBS) slot = jobs;
  }
  if (!*slot) {
    if (length >= ID || !(*slot = calloc(1, sizeof **slot))) die("a job");
    memcpy((*slot)->id, id, length);
  }
  return *slot;
}

static void leaves(int fd) {
  struct job *job = clients[fd].job;
  for (int i = 0; job && i < job->client_count; i++) {
    if (job->clients[i] == fd) job->clients[i] = job->clients[--job->client_count];
  }
  close(fd);
}

/* Writes what the client has not had yet. */
static void delivers(int fd) {
  struct client *client = &clients[fd];
  struct job *job = client->job;
  while (client->next < job->frame_count) {
    struct iovec ready[AT_ONCE];
    int count = job->frame_count - client->next;
    if (count > AT_ONCE) count = AT_ONCE;
    memcpy(ready, job->frames + client->next, count * sizeof *ready);
    ready[0].iov_base = (char *)ready[0].iov_base + client->offset;
    ready[0].iov_len -= client->offset;
    ssize_t written = writev(fd, ready, count);
    if (written < 0) {
      if (errno == EAGAIN && !client->waits) {
        client->waits = 1;
        watches(fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
      }
      return; /* A closed connection is noticed when it is read. */
    }
    written += client->offset;
    while (client->next < job->frame_count && written >= (ssize_t)job->frames[client->next].iov_len)
      written -= job->frames[client->next++].iov_len;
    client->offset = written;
  }
  if (client->waits) {
    client->waits = 0;
    watches(fd, EPOLLIN, EPOLL_CTL_MOD);
  }
}

static void reads_client(int fd) {
  char data[2048];
  ssize_t size = read(fd, data, sizeof data - 1);
  if (size < 0 && errno == EAGAIN) return;
  if (size <= 0) {
    leaves(fd);
    return;
  }
  data[size] = 0;
  struct client *client = &clients[fd];
  if (!client->upgraded) {
    client->upgraded = 1;
    if (write(fd, upgrade_answer, sizeof upgrade_answer - 1) < 0) leaves(fd);
    return;
  }
  /* The mask of the benchmark is 0. The head of a short frame with its mask takes 6 bytes, of a longer one 8. */
  char *frame = data + ((data[1] & 127) < 126 ? 6 : 8), *job = strstr(frame, "\"job\":\""), *cursor;
  if (client->job || !job) return;
  job += 7;
  client->job = job_of(job, strcspn(job, "\""));
  cursor = strstr(frame, "\"cursor\":\"");
  client->next = cursor ? atoi(cursor + 10) : 0;
  struct job *of = client->job;
  of->clients = grown(of->clients, of->client_count, &of->client_room, sizeof *of->clients);
  of->clients[of->client_count++] = fd;
  delivers(fd);
}

static void publishes(const char *line, size_t length) {
  const char *space = memchr(line, ' ', length);
  if (!space) {
    if (write(publisher, "\n", 1) < 0) die("publisher");
    return;
  }
  struct job *job = job_of(line, space - line);
  size_t size = length - (space + 1 - line), head = size < 126 ? 2 : 4;
  unsigned char *frame = malloc(head + size);
  if (!frame || size > 0xffff) die("an event");
  frame[0] = 0x81;
  frame[1] = size < 126 ? size : 126;
  if (head == 4) frame[2] = size >> 8, frame[3] = size;
  memcpy(frame + head, space + 1, size);
  job->frames = grown(job->frames, job->frame_count, &job->frame_room, sizeof *job->frames);
  job->frames[job->frame_count++] = (struct iovec){frame, head + size};
  for (int i = 0; i < job->client_count; i++) {
    if (!clients[job->clients[i]].waits) delivers(job->clients[i]);
  }
}

static void reads_publisher(void) {
  ssize_t size = read(publisher, lines + line_bytes, LINES - line_bytes);
  if (size < 0 && errno == EAGAIN) return;
  if (size <= 0) {
    close(publisher);
    publisher = -1;
    line_bytes = 0;
    return;
  }
  line_bytes += size;
  char *line = lines, *end;
  while ((end = memchr(line, '\n', lines + line_bytes - line))) {
    publishes(line, end - line);
    line = end + 1;
  }
  line_bytes -= line - lines;
  memmove(lines, line, line_bytes);
}

static int accepts(int listener) {
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), on = 1;
  if (fd < 0) return -1;
  if (fd >= CLIENTS) {
    close(fd);
    return -1;
  }
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  clients[fd] = (struct client){0};
  watches(fd, EPOLLIN, EPOLL_CTL_ADD);
  return fd;
}

int main(void) {
  int watch_port, publish_port, watch = listens(&watch_port), publish = listens(&publish_port);
  signal(SIGPIPE, SIG_IGN);
  epoll = epoll_create1(0);
  watches(watch, EPOLLIN, EPOLL_CTL_ADD);
  watches(publish, EPOLLIN, EPOLL_CTL_ADD);
  printf("ready %d %d\n", watch_port, publish_port);
  fflush(stdout);
  for (;;) {
    struct epoll_event events[256];
    int count = epoll_wait(epoll, events, 256, -1);
    for (int i = 0; i < count; i++) {
      int fd = events[i].data.fd;
      if (fd == watch)
        while (accepts(watch) >= 0) {}
      else if (fd == publish)
        publisher = accepts(publish);
      else if (fd == publisher)
        reads_publisher();
      else {
        if (clients[fd].waits && events[i].events & EPOLLOUT) delivers(fd);
        if (events[i].events & ~EPOLLOUT) reads_client(fd);
      }
    }
  }
}
