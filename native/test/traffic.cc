// Traffic for the engine's tests and benchmarks, endpoint side. No dependency on the engine.
//   traffic serve ADDRESS                    everything below answers here, until killed
//   traffic ping ADDRESS COUNT               ICMP or ICMPv6 echo; fails unless all come back
//   traffic bulk ADDRESS MIB up|down STREAMS TCP with a content both ends know; prints Mbit/s, fails on a wrong byte
//   traffic stream ADDRESS SECONDS STREAMS   TCP as fast as it goes, one way; prints Mbit/s that arrived
//   traffic crr ADDRESS SECONDS              TCP connect, one byte each way, close; prints connections/s
//   traffic rr ADDRESS SECONDS               UDP round trips of 64 bytes; prints µs (mean)
//   traffic pps ADDRESS SECONDS SIZE FLOWS   UDP as fast as it goes; prints datagrams/s that arrived
//   traffic udp ADDRESS COUNT SIZE           UDP echo with a content, one at a time, resent when lost
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/icmp6.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int kBulkPort = 5301;
constexpr int kCrrPort = 5302;
constexpr int kEchoPort = 5303;
constexpr int kSinkPort = 5304;
constexpr int kCountPort = 5305;  // answers how many datagrams the sink has had

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "traffic: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

double Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
};

Address Resolve(const char* text, int port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST;
  addrinfo* found = nullptr;
  if (getaddrinfo(text, std::to_string(port).c_str(), &hints, &found) != 0) Fail(text);
  Address address;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.length = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
}

int Open(const Address& address, int type) {
  const int fd = socket(address.family(), type, 0);
  if (fd < 0) Fail("socket");
  // BBR, where it is the default, paces and makes figures over a microsecond's round trip jump. A namespace may not
  // choose cubic by sysctl unless the whole machine allows it; a privileged socket may.
  if (type == SOCK_STREAM) setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
  return fd;
}

void SetTimeout(int fd, int milliseconds) {
  const timeval value = {milliseconds / 1000, milliseconds % 1000 * 1000};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof value);
}

int Listen(const Address& address, int type) {
  const int fd = Open(address, type);
  const int one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, address.get(), address.length) != 0) Fail("bind");
  if (type == SOCK_STREAM && listen(fd, 1024) != 0) Fail("listen");
  return fd;
}

/** Byte `offset` of every bulk stream: a period that no segment size divides. */
uint8_t ContentAt(uint64_t offset) { return static_cast<uint8_t>((offset % 65521) * 31 >> 3); }

const std::vector<uint8_t>& Content() {
  static const std::vector<uint8_t> content = [] {
    std::vector<uint8_t> bytes(65521 + (1 << 18));
    for (size_t i = 0; i < bytes.size(); i++) bytes[i] = ContentAt(i);
    return bytes;
  }();
  return content;
}

void SendContent(int fd, uint64_t total) {
  for (uint64_t sent = 0; sent < total;) {
    const size_t want = static_cast<size_t>(std::min<uint64_t>(1 << 18, total - sent));
    const ssize_t result = send(fd, Content().data() + sent % 65521, want, MSG_NOSIGNAL);
    if (result <= 0) return;
    sent += static_cast<uint64_t>(result);
  }
}

/** Bytes received; exits when one is wrong. */
uint64_t ReceiveContent(int fd, uint64_t total) {
  std::vector<uint8_t> buffer(1 << 18);
  uint64_t received = 0;
  while (received < total) {
    const ssize_t result = recv(fd, buffer.data(), buffer.size(), 0);
    if (result <= 0) break;
    if (std::memcmp(buffer.data(), Content().data() + received % 65521, static_cast<size_t>(result)) != 0) {
      std::fprintf(stderr, "traffic: wrong content after %llu bytes\n", static_cast<unsigned long long>(received));
      std::exit(1);
    }
    received += static_cast<uint64_t>(result);
  }
  return received;
}

enum class Mode : uint8_t { kUp, kDown, kCount };

struct BulkRequest {
  uint64_t bytes;
  Mode mode;
} __attribute__((packed));

/** Receives until the other side has no more and tells how much came, without looking at it. */
uint64_t CountContent(int fd) {
  std::vector<uint8_t> buffer(1 << 18);
  uint64_t received = 0;
  for (ssize_t result; (result = recv(fd, buffer.data(), buffer.size(), 0)) > 0;)
    received += static_cast<uint64_t>(result);
  return received;
}

void ServeBulk(int fd) {
  BulkRequest request;
  if (recv(fd, &request, sizeof request, MSG_WAITALL) == sizeof request) {
    if (request.mode == Mode::kDown) {
      SendContent(fd, request.bytes);
    } else {
      const uint64_t received =
          request.mode == Mode::kCount ? CountContent(fd) : ReceiveContent(fd, request.bytes);
      send(fd, &received, sizeof received, MSG_NOSIGNAL);
    }
  }
  close(fd);
}

void Serve(const char* text) {
  const int bulk = Listen(Resolve(text, kBulkPort), SOCK_STREAM);
  const int crr = Listen(Resolve(text, kCrrPort), SOCK_STREAM);
  const int echo = Listen(Resolve(text, kEchoPort), SOCK_DGRAM);
  const int sink = Listen(Resolve(text, kSinkPort), SOCK_DGRAM);
  const int count = Listen(Resolve(text, kCountPort), SOCK_DGRAM);
  const int buffer = 8 << 20;
  setsockopt(sink, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
  static std::atomic<uint64_t> sunk{0};
  std::thread([bulk] {
    for (int fd; (fd = accept(bulk, nullptr, nullptr)) >= 0;) std::thread(ServeBulk, fd).detach();
  }).detach();
  std::thread([crr] {
    for (int fd; (fd = accept(crr, nullptr, nullptr)) >= 0; close(fd)) {
      char byte;
      if (recv(fd, &byte, 1, 0) == 1) send(fd, &byte, 1, MSG_NOSIGNAL);
    }
  }).detach();
  std::thread([echo] {
    char bytes[65536];
    for (;;) {
      sockaddr_storage from;
      socklen_t length = sizeof from;
      const ssize_t got = recvfrom(echo, bytes, sizeof bytes, 0, reinterpret_cast<sockaddr*>(&from), &length);
      if (got >= 0) sendto(echo, bytes, static_cast<size_t>(got), 0, reinterpret_cast<sockaddr*>(&from), length);
    }
  }).detach();
  std::thread([sink] {
    static char bytes[64][2048];
    iovec pieces[64];
    mmsghdr messages[64] = {};
    for (int i = 0; i < 64; i++) {
      pieces[i] = {bytes[i], sizeof bytes[i]};
      messages[i].msg_hdr.msg_iov = &pieces[i];
      messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (;;) {
      const int got = recvmmsg(sink, messages, 64, MSG_WAITFORONE, nullptr);
      if (got > 0) sunk.fetch_add(static_cast<uint64_t>(got), std::memory_order_relaxed);
    }
  }).detach();
  std::puts("ready");
  std::fflush(stdout);
  for (;;) {
    char byte;
    sockaddr_storage from;
    socklen_t length = sizeof from;
    if (recvfrom(count, &byte, 1, 0, reinterpret_cast<sockaddr*>(&from), &length) < 0) continue;
    const uint64_t value = sunk.load();
    sendto(count, &value, sizeof value, 0, reinterpret_cast<sockaddr*>(&from), length);
  }
}

void Ping(const char* text, int count) {
  const Address address = Resolve(text, 0);
  const bool v4 = address.family() == AF_INET;
  const int fd = socket(address.family(), SOCK_RAW, v4 ? static_cast<int>(IPPROTO_ICMP) : static_cast<int>(IPPROTO_ICMPV6));
  if (fd < 0) Fail("socket");
  SetTimeout(fd, 200);
  int answered = 0;
  for (int sequence = 1; sequence <= count; sequence++) {
    uint8_t packet[64] = {};
    packet[0] = v4 ? static_cast<uint8_t>(ICMP_ECHO) : static_cast<uint8_t>(ICMP6_ECHO_REQUEST);
    const uint16_t id = htons(static_cast<uint16_t>(getpid()));
    const uint16_t number = htons(static_cast<uint16_t>(sequence));
    std::memcpy(packet + 4, &id, 2);
    std::memcpy(packet + 6, &number, 2);
    if (v4) {
      uint32_t sum = 0;
      for (int i = 0; i < 64; i += 2) sum += static_cast<uint32_t>(packet[i] | packet[i + 1] << 8);
      sum = (sum & 0xffff) + (sum >> 16);
      const uint16_t check = static_cast<uint16_t>(~(sum + (sum >> 16)));
      std::memcpy(packet + 2, &check, 2);
    }
    bool got = false;
    // Retried for 10 s: a path may need a moment to come up, but each answer must be to this question.
    for (int attempt = 0; attempt < 50 && !got; attempt++) {
      sendto(fd, packet, sizeof packet, 0, address.get(), address.length);
      uint8_t reply[2048];
      for (ssize_t length; (length = recv(fd, reply, sizeof reply, 0)) > 0;) {
        const uint8_t* icmp = v4 ? reply + (reply[0] & 15) * 4 : reply;
        if (icmp[0] == (v4 ? static_cast<uint8_t>(ICMP_ECHOREPLY) : static_cast<uint8_t>(ICMP6_ECHO_REPLY)) &&
            std::memcmp(icmp + 4, packet + 4, 4) == 0) {
          got = true;
          break;
        }
      }
    }
    answered += got ? 1 : 0;
    if (!got) break;
  }
  std::printf("%d of %d\n", answered, count);
  if (answered != count) std::exit(1);
}

void Bulk(const char* text, uint64_t mebibytes, bool down, int streams) {
  const Address address = Resolve(text, kBulkPort);
  const uint64_t total = mebibytes << 20;
  Content();
  const double start = Now();
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (int i = 0; i < streams; i++) {
    threads.emplace_back([&] {
      const int fd = Open(address, SOCK_STREAM);
      const BulkRequest request{total / static_cast<uint64_t>(streams), down ? Mode::kDown : Mode::kUp};
      uint64_t received = 0;
      if (connect(fd, address.get(), address.length) != 0) Fail("connect");
      send(fd, &request, sizeof request, MSG_NOSIGNAL);
      if (down) {
        received = ReceiveContent(fd, request.bytes);
      } else {
        SendContent(fd, request.bytes);
        recv(fd, &received, sizeof received, MSG_WAITALL);
      }
      if (received != request.bytes) failures++;
      close(fd);
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%.0f\n", static_cast<double>(total) * 8 / 1e6 / (Now() - start));
  if (failures != 0) Fail("stream ended early");
}

void Stream(const char* text, double seconds, int streams) {
  const Address address = Resolve(text, kBulkPort);
  Content();
  std::atomic<uint64_t> total{0};
  const double start = Now();
  std::vector<std::thread> threads;
  for (int i = 0; i < streams; i++) {
    threads.emplace_back([&] {
      const int fd = Open(address, SOCK_STREAM);
      if (connect(fd, address.get(), address.length) != 0) Fail("connect");
      const BulkRequest request{0, Mode::kCount};
      send(fd, &request, sizeof request, MSG_NOSIGNAL);
      while (Now() < start + seconds) send(fd, Content().data(), 1 << 17, MSG_NOSIGNAL);
      shutdown(fd, SHUT_WR);
      uint64_t received = 0;
      recv(fd, &received, sizeof received, MSG_WAITALL);
      total += received;
      close(fd);
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%.0f\n", static_cast<double>(total) * 8 / 1e6 / (Now() - start));
}

void Crr(const char* text, double seconds) {
  const Address address = Resolve(text, kCrrPort);
  const double end = Now() + seconds;
  int count = 0;
  while (Now() < end) {
    const int fd = Open(address, SOCK_STREAM);
    // Reset on close: no TIME_WAIT, so that ports do not run out.
    const linger reset = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    char byte = 'x';
    if (connect(fd, address.get(), address.length) != 0) Fail("connect");
    send(fd, &byte, 1, MSG_NOSIGNAL);
    // The other end closes first, as an HTTP/1.0 server does.
    while (recv(fd, &byte, 1, 0) == 1) {
    }
    close(fd);
    count++;
  }
  std::printf("%.0f\n", count / seconds);
}

void RoundTrips(const char* text, double seconds) {
  const Address address = Resolve(text, kEchoPort);
  const int fd = Open(address, SOCK_DGRAM);
  if (connect(fd, address.get(), address.length) != 0) Fail("connect");
  SetTimeout(fd, 100);
  char bytes[64] = {};
  int count = 0;
  const double start = Now();
  while (Now() < start + seconds) {
    send(fd, bytes, sizeof bytes, 0);
    if (recv(fd, bytes, sizeof bytes, 0) > 0) count++;
  }
  std::printf("%.2f\n", (Now() - start) * 1e6 / (count > 0 ? count : 1));
}

uint64_t AskSunk(const char* text) {
  const Address address = Resolve(text, kCountPort);
  const int fd = Open(address, SOCK_DGRAM);
  SetTimeout(fd, 200);
  uint64_t value = 0;
  for (int attempt = 0; attempt < 50; attempt++) {
    sendto(fd, "?", 1, 0, address.get(), address.length);
    if (recv(fd, &value, sizeof value, 0) == sizeof value) break;
  }
  close(fd);
  return value;
}

void Packets(const char* text, double seconds, size_t size, int flows) {
  const Address address = Resolve(text, kSinkPort);
  std::vector<int> sockets;
  for (int i = 0; i < flows; i++) {
    sockets.push_back(Open(address, SOCK_DGRAM));
    if (connect(sockets.back(), address.get(), address.length) != 0) Fail("connect");
  }
  std::vector<char> bytes(size);
  iovec piece = {bytes.data(), size};
  mmsghdr messages[32] = {};
  for (mmsghdr& message : messages) {
    message.msg_hdr.msg_iov = &piece;
    message.msg_hdr.msg_iovlen = 1;
  }
  const uint64_t before = AskSunk(text);
  const double start = Now();
  for (size_t i = 0; Now() < start + seconds; i++) sendmmsg(sockets[i % sockets.size()], messages, 32, 0);
  const double elapsed = Now() - start;
  std::printf("%.0f\n", static_cast<double>(AskSunk(text) - before) / elapsed);
}

void Echo(const char* text, int count, size_t size) {
  const Address address = Resolve(text, kEchoPort);
  const int fd = Open(address, SOCK_DGRAM);
  if (connect(fd, address.get(), address.length) != 0) Fail("connect");
  SetTimeout(fd, 200);
  std::vector<uint8_t> sent(size);
  std::vector<uint8_t> got(size + 1);
  for (int i = 0; i < count; i++) {
    for (size_t k = 0; k < size; k++) sent[k] = ContentAt(k + static_cast<size_t>(i));
    bool right = false;
    for (int attempt = 0; attempt < 50 && !right; attempt++) {
      if (send(fd, sent.data(), size, 0) < 0) Fail("send");
      for (ssize_t length; (length = recv(fd, got.data(), got.size(), 0)) >= 0;) {
        right = static_cast<size_t>(length) == size && std::memcmp(sent.data(), got.data(), size) == 0;
        if (right) break;
      }
    }
    if (!right) Fail("no such echo");
  }
  std::puts("ok");
}

}  // namespace

int main(int count, char** arguments) {
  const std::string verb = count > 2 ? arguments[1] : "";
  const auto number = [&](int index) { return count > index ? std::atof(arguments[index]) : 0; };
  if (verb == "serve") Serve(arguments[2]);
  else if (verb == "ping" && count == 4) Ping(arguments[2], static_cast<int>(number(3)));
  else if (verb == "bulk" && count == 6)
    Bulk(arguments[2], static_cast<uint64_t>(number(3)), std::string(arguments[4]) == "down", static_cast<int>(number(5)));
  else if (verb == "stream" && count == 5) Stream(arguments[2], number(3), static_cast<int>(number(4)));
  else if (verb == "crr" && count == 4) Crr(arguments[2], number(3));
  else if (verb == "rr" && count == 4) RoundTrips(arguments[2], number(3));
  else if (verb == "pps" && count == 6)
    Packets(arguments[2], number(3), static_cast<size_t>(number(4)), static_cast<int>(number(5)));
  else if (verb == "udp" && count == 5) Echo(arguments[2], static_cast<int>(number(3)), static_cast<size_t>(number(4)));
  else return std::fprintf(stderr, "usage: see the head of native/test/traffic.cc\n"), 2;
  return 0;
}
