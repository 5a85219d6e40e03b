#include "underlay.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <netinet/udp.h>
#include <sys/socket.h>

#ifndef UDP_GRO
#define UDP_GRO 104
#endif

namespace netagent::engine {
namespace {

// Bursts wait here while the thread is not running; root may exceed net.core.rmem_max.
constexpr int kBufferBytes = 8 << 20;
// A send that blocks longer than this is a device that does not drain: drop, the other peers want their turn.
constexpr timeval kSendTimeout = {0, 20'000};

int Set(int fd, int level, int option, int value) { return setsockopt(fd, level, option, &value, sizeof value); }

std::string Name(const IpKey& key, uint16_t port) {
  char text[INET6_ADDRSTRLEN] = "?";
  inet_ntop(key.is_v4() ? AF_INET : AF_INET6, key.is_v4() ? key.bytes + 12 : key.bytes, text, sizeof text);
  return std::string("UDP ") + text + " port " + std::to_string(port);
}

/** Of a bound socket. */
uint16_t LocalPort(int fd) {
  sockaddr_in6 local{};
  socklen_t length = sizeof local;
  // Both families have the port in the same place.
  return getsockname(fd, reinterpret_cast<sockaddr*>(&local), &length) == 0 ? ntohs(local.sin6_port) : 0;
}

SyscallResult OpenSocket(const IpKey& address, uint16_t port, UniqueFd& out) {
  const bool v4 = address.is_v4();
  const std::string object = Name(address, port);
  UniqueFd fd(socket(v4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (fd.get() < 0) return SyscallResult::Failed("socket", object);
  if (!v4 && Set(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 1) != 0) return SyscallResult::Failed("setsockopt", object);
  sockaddr_storage local;
  const socklen_t length = ToSockaddr(address, port, local);
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&local), length) != 0)
    return SyscallResult::Failed("bind", object);
  out = std::move(fd);
  return SyscallResult::Ok();
}

SyscallResult OpenReceiver(const IpKey& address, uint16_t port, UniqueFd& out) {
  if (SyscallResult result = OpenSocket(address, port, out); !result.ok()) return result;
  const int fd = out.get();
  if (Set(fd, SOL_SOCKET, SO_RCVBUFFORCE, kBufferBytes) != 0) Set(fd, SOL_SOCKET, SO_RCVBUF, kBufferBytes);
  // Without GRO (before Linux 5.0) frames come one by one: slower, not wrong.
  Set(fd, IPPROTO_UDP, UDP_GRO, 1);
  // For the congestion mark, RFC 6040.
  const int result = address.is_v4() ? Set(fd, IPPROTO_IP, IP_RECVTOS, 1) : Set(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
  return result == 0 ? SyscallResult::Ok() : SyscallResult::Failed("setsockopt", Name(address, port));
}

SyscallResult OpenSender(const IpKey& address, bool dont_fragment, UniqueFd& out) {
  if (SyscallResult result = OpenSocket(address, 0, out); !result.ok()) return result;
  const int fd = out.get();
  if (Set(fd, SOL_SOCKET, SO_SNDBUFFORCE, kBufferBytes) != 0) Set(fd, SOL_SOCKET, SO_SNDBUF, kBufferBytes);
  // Nobody is meant to send to these ports and nobody reads them: accept nothing.
  sock_filter nothing = {BPF_RET | BPF_K, 0, 0, 0};
  const sock_fprog filter = {1, &nothing};
  if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) != 0 ||
      setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kSendTimeout, sizeof kSendTimeout) != 0)
    return SyscallResult::Failed("setsockopt", Name(address, 0));
  // Like a VXLAN device with `df unset`: too large for the path means fragments, not silence. Or like one with `df set`,
  // but deaf to what routers say: whatever was lost once, the next try says anew.
  const int result =
      address.is_v4()
          ? Set(fd, IPPROTO_IP, IP_MTU_DISCOVER, dont_fragment ? IP_PMTUDISC_PROBE : IP_PMTUDISC_DONT)
          : Set(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, dont_fragment ? IPV6_PMTUDISC_PROBE : IPV6_PMTUDISC_DONT);
  return result == 0 ? SyscallResult::Ok() : SyscallResult::Failed("setsockopt", Name(address, 0));
}

}  // namespace

SyscallResult Underlay::Open(const std::vector<IpKey>& addresses, uint16_t port, int source_ports, Underlay& out) {
  Underlay underlay;
  underlay.port_ = port;
  for (const IpKey& address : addresses) {
    UniqueFd receiver;
    if (SyscallResult result = OpenReceiver(address, port, receiver); !result.ok()) return result;
    underlay.receivers_.push_back(std::move(receiver));
    // The first address of a family is the one peers know us by (source VTEP check at their side).
    std::vector<UniqueFd>& senders = address.is_v4() ? underlay.senders_v4_ : underlay.senders_v6_;
    std::vector<uint16_t>& ports = address.is_v4() ? underlay.ports_v4_ : underlay.ports_v6_;
    if (address.is_v4() && senders.empty()) underlay.source_v4_ = address;
    for (int i = static_cast<int>(senders.size()); i <= source_ports; i++) {
      UniqueFd sender;
      if (SyscallResult result = OpenSender(address, i == source_ports, sender); !result.ok()) return result;
      ports.push_back(LocalPort(sender.get()));
      senders.push_back(std::move(sender));
    }
  }
  out = std::move(underlay);
  return SyscallResult::Ok();
}

void Underlay::SetGrouping(bool grouping) const {
  for (const UniqueFd& receiver : receivers_) Set(receiver.get(), IPPROTO_UDP, UDP_GRO, grouping ? 1 : 0);
}

socklen_t ToSockaddr(const IpKey& key, uint16_t port, sockaddr_storage& out) {
  std::memset(&out, 0, sizeof out);
  if (key.is_v4()) {
    sockaddr_in v4{};
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    std::memcpy(&v4.sin_addr, key.bytes + 12, 4);
    std::memcpy(&out, &v4, sizeof v4);
    return sizeof v4;
  }
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v6.sin6_port = htons(port);
  std::memcpy(&v6.sin6_addr, key.bytes, 16);
  std::memcpy(&out, &v6, sizeof v6);
  return sizeof v6;
}

}  // namespace netagent::engine
