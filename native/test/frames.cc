/**
 * Frames as no ordinary sender makes them, over raw sockets.
 *
 *   frames send DEVICE SOURCE-MAC TARGET-MAC COUNT [SYN]   frames 0 … COUNT − 1, or that many SYNs, each of another flow
 *   frames receive DEVICE SOURCE-MAC COUNT                 until all of `send`'s came from there, byte for byte
 *
 * Which frame is which is in its last four bytes; everything else follows from that number, so both ends know it.
 */
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

using Frame = std::vector<uint8_t>;
using Mac = uint8_t[6];

constexpr size_t kMtu = 1430;  // fits over IPv6, too
constexpr int kPatienceMillis = 20'000;

[[noreturn]] void Fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

void Put(Frame& frame, uint32_t value, int bytes) {
  for (int i = bytes - 1; i >= 0; i--) frame.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

void Set16(Frame& frame, size_t at, uint32_t value) {
  frame[at] = static_cast<uint8_t>(value >> 8);
  frame[at + 1] = static_cast<uint8_t>(value);
}

uint32_t Get16(const Frame& frame, size_t at) { return static_cast<uint32_t>(frame[at] << 8 | frame[at + 1]); }

uint32_t Sum(const Frame& frame, size_t from, size_t to, uint32_t sum) {
  for (size_t at = from; at < to; at += 2) sum += static_cast<uint32_t>(frame[at] << 8) + (at + 1 < to ? frame[at + 1] : 0u);
  return sum;
}

uint16_t Fold(uint32_t sum) {
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

/** Fills the checksum at `at` of what begins at `l4`, over the IPv4 addresses of the header at 14. */
void FinishL4(Frame& frame, size_t l4, size_t at, uint8_t protocol) {
  Set16(frame, at, 0);
  const uint32_t pseudo = Sum(frame, 26, 34, protocol + static_cast<uint32_t>(frame.size() - l4));
  const uint16_t sum = Fold(Sum(frame, l4, frame.size(), pseudo));
  Set16(frame, at, sum == 0 && protocol == 17 ? 0xffff : sum);
}

void PutIpv4(Frame& frame, uint8_t protocol, uint32_t fragment, size_t option_bytes, uint32_t number) {
  Put(frame, 0x4500 + static_cast<uint32_t>(option_bytes / 4 << 8), 2);
  Put(frame, 0, 2);  // length, later
  Put(frame, number, 2);
  Put(frame, fragment, 2);
  Put(frame, 64u << 8 | protocol, 2);
  Put(frame, 0, 2);
  Put(frame, 0x0a630002, 4);
  Put(frame, 0x0a630003, 4);
  for (size_t i = 0; i < option_bytes; i++) frame.push_back(1);  // no operation
}

void FinishIpv4(Frame& frame) {
  const size_t end = 14 + (frame[14] & 15u) * 4;
  Set16(frame, 16, static_cast<uint32_t>(frame.size() - 14));
  Set16(frame, 24, Fold(Sum(frame, 14, end, 0)));
}

/** Pads to `size` bytes of frame, the last four being the number. */
void Fill(Frame& frame, size_t size, uint32_t number) {
  while (frame.size() + 4 < size) frame.push_back(static_cast<uint8_t>(frame.size() * 7 + number));
  Put(frame, number, 4);
}

void PutTcp(Frame& frame, uint32_t number, uint8_t flags, size_t option_bytes) {
  Put(frame, 1024 + number % 60'000, 2);
  Put(frame, 9, 2);
  Put(frame, number * 2'654'435'761u, 4);
  Put(frame, 0, 4);
  Put(frame, static_cast<uint32_t>((20 + option_bytes) / 4 << 12) | flags, 2);
  Put(frame, 500, 2);
  Put(frame, 0, 2);
  Put(frame, number, 2);  // urgent, whether flagged or not
  for (size_t i = 0; i < option_bytes; i++) frame.push_back(static_cast<uint8_t>(i == 0 ? 254 : i == 1 ? option_bytes : number));
}

Frame Make(uint32_t number, const Mac& source, const Mac& target, bool syn) {
  Frame frame;
  frame.reserve(2 * kMtu);
  for (const uint8_t byte : target) frame.push_back(byte);
  for (const uint8_t byte : source) frame.push_back(byte);
  const uint32_t kind = syn ? 2 : number % 10;
  const size_t size = 14 + 100 + number * 37 % (kMtu - 100 + 1);
  if (kind == 9) {
    Put(frame, 0x86dd, 2);  // IPv6: hop-by-hop options, destination options, no next header
    Put(frame, 0x60000000, 4);
    Put(frame, static_cast<uint32_t>(size - 54), 2);
    Put(frame, 0x0040, 2);
    for (int end = 2; end <= 3; end++) {
      Put(frame, 0xfd990000, 4);
      Put(frame, 0, 4);
      Put(frame, 0, 4);
      Put(frame, static_cast<uint32_t>(end), 4);
    }
    Put(frame, 0x3c000104, 4);
    Put(frame, 0, 4);
    Put(frame, 0x3b000104, 4);
    Put(frame, 0, 4);
    Fill(frame, size, number);
    return frame;
  }
  if (kind == 8) {
    Put(frame, 0x88b5, 2);  // for experiments: nobody parses it
    Fill(frame, size, number);
    return frame;
  }
  Put(frame, 0x0800, 2);
  switch (kind) {
    case 0:  // UDP without a checksum
    case 1:  // and with one, of any size up to the MTU
      PutIpv4(frame, 17, 0x4000, 0, number);
      Put(frame, 1024 + number % 60'000, 2);
      Put(frame, 9, 2);
      Put(frame, static_cast<uint32_t>(size - 34), 2);
      Put(frame, 0, 2);
      Fill(frame, size, number);
      if (kind == 1) FinishL4(frame, 34, 40, 17);
      break;
    case 2:  // a SYN with as many options as fit, of an unknown kind
      PutIpv4(frame, 6, 0x4000, 0, number);
      PutTcp(frame, number, 2, 40);
      Fill(frame, 0, number);
      FinishL4(frame, 34, 50, 6);
      break;
    case 3:  // every flag at once
      PutIpv4(frame, 6, 0, 0, number);
      PutTcp(frame, number, 0xff, 12);
      Fill(frame, size, number);
      FinishL4(frame, 34, 50, 6);
      break;
    case 4:  // the first of several fragments
    case 5:  // and a later one
      PutIpv4(frame, 17, kind == 4 ? 0x2000 : 0x2010, 0, number);
      Fill(frame, size, number);
      break;
    case 6:  // IP options, and a protocol for experiments
      PutIpv4(frame, 253, 0x4000, 40, number);
      Fill(frame, size, number);
      break;
    default:  // SCTP, whose checksum is none of ours
      PutIpv4(frame, 132, 0x4000, 0, number);
      Fill(frame, size, number);
  }
  FinishIpv4(frame);
  return frame;
}

/** The kernel hands checksums over unfinished when it trusts whom it has them from. */
void Complete(Frame& frame) {
  if (frame.size() < 54 || Get16(frame, 12) != 0x0800) return;
  if (frame[23] == 6) FinishL4(frame, 34, 50, 6);
  if (frame[23] == 17) FinishL4(frame, 34, 40, 17);
}

int Open(const char* device) {
  const int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
  if (fd < 0) Fail("socket");
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = static_cast<int>(if_nametoindex(device));
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) Fail(device);
  return fd;
}

void ParseMac(const char* text, Mac& out) {
  unsigned parts[6];
  if (std::sscanf(text, "%x:%x:%x:%x:%x:%x", &parts[0], &parts[1], &parts[2], &parts[3], &parts[4], &parts[5]) != 6) {
    std::fprintf(stderr, "%s: no MAC address\n", text);
    std::exit(2);
  }
  std::copy_n(parts, 6, out);
}

void Send(const char* device, const char* source, const char* target, uint32_t count, bool syn) {
  Mac from, to;
  ParseMac(source, from);
  ParseMac(target, to);
  const int fd = Open(device);
  for (uint32_t number = 0; number < count; number++) {
    const Frame frame = Make(number, from, to, syn);
    while (send(fd, frame.data(), frame.size(), 0) < 0)
      if (errno != ENOBUFS && errno != EINTR) Fail("send");
    // Slower than any queue on the way, for a receiver that wants them all.
    if (!syn && number % 16 == 15) usleep(2'000);
  }
}

int Receive(const char* device, const char* source, uint32_t count) {
  Mac from;
  ParseMac(source, from);
  const int fd = Open(device);
  const int on = 1;
  const int room = 8 << 20;
  const timeval patience = {kPatienceMillis / 1000, 0};
  if (setsockopt(fd, SOL_PACKET, PACKET_AUXDATA, &on, sizeof on) != 0 ||
      setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) != 0)
    Fail("setsockopt");
  setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
  std::puts("ready");
  std::fflush(stdout);
  std::vector<bool> seen(count);
  uint32_t missing = count;
  while (missing > 0) {
    Frame frame(70'000);
    iovec piece = {frame.data(), frame.size()};
    alignas(cmsghdr) uint8_t control[CMSG_SPACE(sizeof(tpacket_auxdata))];
    sockaddr_ll sender{};
    msghdr message{};
    message.msg_name = &sender;
    message.msg_namelen = sizeof sender;
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t length = recvmsg(fd, &message, 0);
    if (length < 0) {
      const auto first = std::find(seen.begin(), seen.end(), false) - seen.begin();
      std::fprintf(stderr, "%u of %u frames did not come, the first is %ld\n", missing, count, static_cast<long>(first));
      return 1;
    }
    frame.resize(static_cast<size_t>(length));
    if (sender.sll_pkttype == PACKET_OUTGOING || frame.size() < 60 || std::memcmp(frame.data() + 6, from, 6) != 0) continue;
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    tpacket_auxdata data{};
    if (header != nullptr) std::memcpy(&data, CMSG_DATA(header), sizeof data);
    if ((data.tp_status & TP_STATUS_CSUMNOTREADY) != 0) Complete(frame);
    const size_t end = frame.size();
    const uint32_t number = Get16(frame, end - 4) << 16 | Get16(frame, end - 2);
    Mac to;
    std::copy_n(frame.data(), 6, to);
    if (number >= count || frame != Make(number, from, to, false)) {
      std::fprintf(stderr, "frame %u of %zu bytes is not as it was sent:\n", number, end);
      for (const uint8_t byte : frame) std::fprintf(stderr, "%02x", byte);
      std::fputc('\n', stderr);
      return 1;
    }
    if (!seen[number]) missing--;
    seen[number] = true;
  }
  std::printf("%u frames came as they were sent\n", count);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  if (mode == "send" && count >= 6) {
    Send(arguments[2], arguments[3], arguments[4], static_cast<uint32_t>(std::atoi(arguments[5])), count > 6);
    return 0;
  }
  if (mode == "receive" && count == 5)
    return Receive(arguments[2], arguments[3], static_cast<uint32_t>(std::atoi(arguments[4])));
  std::fprintf(stderr, "usage: frames send DEVICE SOURCE TARGET COUNT [SYN] | frames receive DEVICE SOURCE COUNT\n");
  return 2;
}
