// Small traffic programs of the bench, compiled when it runs. Servers print "listening on PORT" and serve for ever;
// clients run for SECONDS and print "name=value" pairs.
//
//   netbench udp-sink PORT SECONDS          packets/s received, from the first one on
//   netbench udp-blast ADDRESS PORT BYTES SECONDS
//   netbench udp-echo PORT
//   netbench udp-rr ADDRESS PORT SECONDS    round trips one at a time: median and mean in µs
//   netbench dns ADDRESS PORT NAME ANSWERS OUTSTANDING SECONDS
//                                           so many A questions at a time: per second, median and p99 in µs
//   netbench tcp-serve PORT                 accept, read a request, answer, close
//   netbench tcp-crr ADDRESS PORT SECONDS   connect, request, read to the end: per second, median and p99 in µs

#include <algorithm>
#include <arpa/inet.h>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <netinet/tcp.h>
#include <poll.h>
#include <string>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <vector>

namespace {

constexpr int kBatch = 32;        // datagrams a system call
constexpr int kMaxDatagram = 65507;
constexpr int kBacklog = 4096;
constexpr int kLostMs = 200;      // a datagram that takes longer counts as lost

double Now() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<double>(ts.tv_sec) + static_cast<double>(ts.tv_nsec) * 1e-9;
}

[[noreturn]] void Fail(const char* what) {
  fprintf(stderr, "netbench: %s: %s\n", what, strerror(errno));
  exit(1);
}

sockaddr_in Address(const char* text, const char* port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(atoi(port)));
  if (inet_pton(AF_INET, text, &address.sin_addr) != 1) {
    errno = EINVAL;
    Fail(text);
  }
  return address;
}

int Bound(int type, const char* port) {
  int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
  int one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  sockaddr_in address = Address("0.0.0.0", port);
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0) Fail("bind");
  return fd;
}

int Connected(int type, const sockaddr_in& to) {
  int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
  if (fd < 0) Fail("socket");
  if (connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) < 0) Fail("connect");
  return fd;
}

void Listening(const char* port) {
  printf("listening on %s\n", port);
  fflush(stdout);
}

double Percentile(std::vector<double>& values, double part) {
  if (values.empty()) return 0;
  auto there = values.begin() + static_cast<long>(static_cast<double>(values.size()) * part);
  std::nth_element(values.begin(), there, values.end());
  return *there;
}

double Median(std::vector<double>& values) { return Percentile(values, 0.5); }

int UdpSink(const char* port, double seconds) {
  int fd = Bound(SOCK_DGRAM, port);
  int bytes = 8 << 20;
  setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
  Listening(port);
  std::vector<char> space(static_cast<size_t>(kBatch) * 2048);
  iovec vectors[kBatch];
  mmsghdr messages[kBatch]{};
  for (int i = 0; i < kBatch; i++) {
    vectors[i] = {space.data() + i * 2048, 2048};
    messages[i].msg_hdr.msg_iov = &vectors[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  double start = 0;
  long count = 0;
  for (;;) {
    int got = recvmmsg(fd, messages, kBatch, MSG_WAITFORONE, nullptr);
    if (got < 0) Fail("recvmmsg");
    double now = Now();
    if (start == 0) {
      start = now;
      continue;
    }
    count += got;
    if (now - start < seconds) continue;
    printf("rate=%.0f\n", static_cast<double>(count) / (now - start));
    return 0;
  }
}

int UdpBlast(const sockaddr_in& to, int size, double seconds) {
  if (size < 1 || size > kMaxDatagram) {
    errno = EINVAL;
    Fail("size");
  }
  int fd = Connected(SOCK_DGRAM, to);
  std::vector<char> payload(static_cast<size_t>(size), 'x');
  iovec vector{payload.data(), payload.size()};
  mmsghdr messages[kBatch]{};
  for (mmsghdr& message : messages) {
    message.msg_hdr.msg_iov = &vector;
    message.msg_hdr.msg_iovlen = 1;
  }
  double end = Now() + seconds;
  long count = 0;
  while (Now() < end) {
    int sent = sendmmsg(fd, messages, kBatch, 0);
    if (sent > 0) count += sent;
    else if (errno != ENOBUFS && errno != EAGAIN && errno != ECONNREFUSED) Fail("sendmmsg");
  }
  printf("rate=%.0f\n", static_cast<double>(count) / seconds);
  return 0;
}

int UdpEcho(const char* port) {
  int fd = Bound(SOCK_DGRAM, port);
  Listening(port);
  char buffer[2048];
  sockaddr_in from;
  for (;;) {
    socklen_t length = sizeof from;
    ssize_t got = recvfrom(fd, buffer, sizeof buffer, 0, reinterpret_cast<sockaddr*>(&from), &length);
    if (got >= 0) sendto(fd, buffer, static_cast<size_t>(got), 0, reinterpret_cast<sockaddr*>(&from), length);
  }
}

// `outstanding` questions at a time over one socket, each with an id of its own; a new one for every answer.
int DnsQuestions(const sockaddr_in& to, const char* name, int answers, int outstanding, double seconds) {
  std::string question;
  for (const char* label = name; *label != 0;) {
    size_t length = strcspn(label, ".");
    question += static_cast<char>(length);
    question.append(label, length);
    label += length + (label[length] == '.' ? 1 : 0);
  }
  question.append("\0\0\1\0\1", 5);  // root, type A, class IN
  std::string header("\0\0\1\0\0\1\0\0\0\0\0\0", 12);
  int fd = Connected(SOCK_DGRAM, to);
  std::vector<double> sent(static_cast<size_t>(outstanding)), times;
  auto ask = [&](int id) {
    header[0] = static_cast<char>(id >> 8);
    header[1] = static_cast<char>(id & 0xff);
    std::string message = header + question;
    sent[static_cast<size_t>(id)] = Now();
    if (send(fd, message.data(), message.size(), 0) < 0) Fail("send");
  };
  long lost = 0, wrong = 0;
  double start = Now(), end = start + seconds;
  for (int id = 0; id < outstanding; id++) ask(id);
  while (Now() < end) {
    unsigned char answer[4096];
    ssize_t length = recv(fd, answer, sizeof answer, MSG_DONTWAIT);
    if (length < 12) {
      pollfd waiting{fd, POLLIN, 0};
      if (poll(&waiting, 1, kLostMs) != 0) continue;
      lost += outstanding;
      for (int id = 0; id < outstanding; id++) ask(id);
      continue;
    }
    int id = answer[0] << 8 | answer[1];
    if (id >= outstanding) continue;
    if ((answer[3] & 15) != 0 || (answer[6] << 8 | answer[7]) != answers) wrong++;
    times.push_back((Now() - sent[static_cast<size_t>(id)]) * 1e6);
    ask(id);
  }
  double rate = static_cast<double>(times.size()) / (Now() - start);
  if (times.empty() || wrong > 0) {
    fprintf(stderr, "netbench: %zu answers, %ld of them not what was expected\n", times.size(), wrong);
    return 1;
  }
  double median = Median(times);
  auto last = times.begin() + static_cast<long>(times.size() * 99 / 100);
  std::nth_element(times.begin(), last, times.end());
  printf("rate=%.0f median=%.1f p99=%.1f lost=%ld\n", rate, median, *last, lost);
  return 0;
}

int UdpRoundTrips(const sockaddr_in& to, double seconds) {
  int fd = Connected(SOCK_DGRAM, to);
  std::vector<double> times;
  long lost = 0;
  double total = 0;
  double end = Now() + seconds;
  for (uint64_t number = 1; Now() < end; number++) {
    double start = Now();
    if (send(fd, &number, sizeof number, 0) < 0) {
      lost++;
      continue;
    }
    uint64_t answer = 0;
    while (answer != number) {
      // Blocking with a limit: a late answer to an earlier question is read and dropped.
      pollfd waiting{fd, POLLIN, 0};
      if (recv(fd, &answer, sizeof answer, MSG_DONTWAIT) < 0 && poll(&waiting, 1, kLostMs) == 0) break;
    }
    if (answer != number) {
      lost++;
      continue;
    }
    double took = (Now() - start) * 1e6;
    total += took;
    times.push_back(took);
  }
  double mean = times.empty() ? 0 : total / static_cast<double>(times.size());
  printf("median=%.2f mean=%.2f count=%zu lost=%ld\n", Median(times), mean, times.size(), lost);
  return 0;
}

int TcpServe(const char* port) {
  int listener = Bound(SOCK_STREAM, port);
  if (listen(listener, kBacklog) < 0) Fail("listen");
  Listening(port);
  char buffer[256];
  for (;;) {
    int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    // Whoever closes first keeps the tuple for a minute: the server, so that the client's ports are free again.
    if (recv(fd, buffer, sizeof buffer, 0) > 0) send(fd, buffer, 64, MSG_NOSIGNAL);
    close(fd);
  }
}

int TcpConnectRequestClose(const sockaddr_in& to, double seconds) {
  std::vector<double> times;
  long failed = 0;
  char buffer[256]{};
  double end = Now() + seconds;
  double begin = Now();
  while (Now() < end) {
    double start = Now();
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) Fail("socket");
    bool good = connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0 && send(fd, buffer, 64, MSG_NOSIGNAL) == 64;
    ssize_t got = 0;
    size_t total = 0;
    while (good && (got = recv(fd, buffer, sizeof buffer, 0)) > 0) total += static_cast<size_t>(got);
    close(fd);
    if (!good || total != 64) failed++;
    else times.push_back((Now() - start) * 1e6);
  }
  double took = Now() - begin;
  double rate = static_cast<double>(times.size()) / took;
  printf("rate=%.0f median=%.1f p99=%.1f failed=%ld\n", rate, Median(times), Percentile(times, 0.99), failed);
  return 0;
}

}  // namespace

int main(int count, char** words) {
  std::string mode = count > 1 ? words[1] : "";
  if (mode == "udp-sink" && count == 4) return UdpSink(words[2], atof(words[3]));
  if (mode == "udp-blast" && count == 6) return UdpBlast(Address(words[2], words[3]), atoi(words[4]), atof(words[5]));
  if (mode == "udp-echo" && count == 3) return UdpEcho(words[2]);
  if (mode == "udp-rr" && count == 5) return UdpRoundTrips(Address(words[2], words[3]), atof(words[4]));
  if (mode == "dns" && count == 8)
    return DnsQuestions(Address(words[2], words[3]), words[4], atoi(words[5]), atoi(words[6]), atof(words[7]));
  if (mode == "tcp-serve" && count == 3) return TcpServe(words[2]);
  if (mode == "tcp-crr" && count == 5) return TcpConnectRequestClose(Address(words[2], words[3]), atof(words[4]));
  fprintf(stderr, "netbench: see the top of netbench.cc for the modes\n");
  return 2;
}
