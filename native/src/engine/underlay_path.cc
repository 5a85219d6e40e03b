#include "underlay_path.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/xfrm.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "bytes.h"

namespace netagent::engine {
namespace {

constexpr int64_t kFreshMs = 1000;
constexpr size_t kAnswerRoom = 4096;

int64_t NowMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

/** One request, one answer; the length of the answer's message, 0 when there is none or an error. The kernel answers at once. */
size_t Exchange(int socket, const void* request, size_t length, uint8_t* answer) {
  if (send(socket, request, length, 0) != static_cast<ssize_t>(length)) return 0;
  const ssize_t got = recv(socket, answer, kAnswerRoom, 0);
  nlmsghdr header;
  if (got < static_cast<ssize_t>(sizeof header)) return 0;
  std::memcpy(&header, answer, sizeof header);
  return header.nlmsg_type != NLMSG_ERROR && header.nlmsg_len <= static_cast<size_t>(got) ? header.nlmsg_len : 0;
}

/** The attribute's payload of at least `size` bytes among those at `from` … `end`, or null. */
const uint8_t* FindAttribute(const uint8_t* answer, size_t from, size_t end, uint16_t type, size_t size) {
  while (from + sizeof(nlattr) <= end) {
    nlattr attribute;
    std::memcpy(&attribute, answer + from, sizeof attribute);
    if (attribute.nla_len < sizeof attribute || from + attribute.nla_len > end) return nullptr;
    if (attribute.nla_type == type && attribute.nla_len >= sizeof attribute + size)
      return answer + from + sizeof attribute;
    from += NLA_ALIGN(attribute.nla_len);
  }
  return nullptr;
}

template <typename T>
T Read(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

sockaddr_in Address(const IpKey& key) {
  sockaddr_in out{};
  out.sin_family = AF_INET;
  out.sin_port = htons(9);  // any: nothing is sent
  std::memcpy(&out.sin_addr, key.bytes + 12, 4);
  return out;
}

}  // namespace

UnderlayPaths::UnderlayPaths(const IpKey& source)
    : source_(source),
      routes_(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)),
      policies_(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_XFRM)),
      policies_known_(policies_.valid() || errno == EPROTONOSUPPORT) {}

UnderlayPath UnderlayPaths::Find(const IpKey& vtep) {
  const int64_t now = NowMs();
  Slot& slot = slots_[(LoadRaw32(vtep.bytes + 12) * 0x9e3779b1u) >> 24];
  static_assert(kSlots == 256);
  if (slot.asked_ms < 0 || now - slot.asked_ms >= kFreshMs || !(slot.vtep == vtep))
    slot = {vtep, now, Ask(vtep)};
  return slot.path;
}

UnderlayPath UnderlayPaths::Ask(const IpKey& vtep) const {
  if (!routes_.valid() || !vtep.is_v4() || !source_.is_v4() || HasPolicies()) return {};
  return {AskDevice(vtep), AskMtu(vtep)};
}

uint32_t UnderlayPaths::AskDevice(const IpKey& vtep) const {
  struct {
    nlmsghdr header;
    rtmsg route;
    nlattr destination_header;
    uint8_t destination[4];
    nlattr source_header;
    uint8_t source[4];
  } request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = RTM_GETROUTE;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.route.rtm_family = AF_INET;
  request.route.rtm_dst_len = request.route.rtm_src_len = 32;
  request.destination_header = {sizeof(nlattr) + 4, RTA_DST};
  std::memcpy(request.destination, vtep.bytes + 12, 4);
  request.source_header = {sizeof(nlattr) + 4, RTA_SRC};
  std::memcpy(request.source, source_.bytes + 12, 4);
  uint8_t answer[kAnswerRoom];
  const size_t length = Exchange(routes_.get(), &request, sizeof request, answer);
  const size_t attributes = NLMSG_HDRLEN + sizeof(rtmsg);
  if (length < attributes || Read<rtmsg>(answer + NLMSG_HDRLEN).rtm_type != RTN_UNICAST) return 0;
  const uint8_t* device = FindAttribute(answer, attributes, length, RTA_OIF, sizeof(uint32_t));
  return device == nullptr ? 0 : Read<uint32_t>(device);
}

uint32_t UnderlayPaths::AskMtu(const IpKey& vtep) const {
  const UniqueFd probe(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in from = Address(source_);
  from.sin_port = 0;
  const sockaddr_in to = Address(vtep);
  int mtu = 0;
  socklen_t size = sizeof mtu;
  if (!probe.valid() || bind(probe.get(), reinterpret_cast<const sockaddr*>(&from), sizeof from) != 0 ||
      connect(probe.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0 ||
      getsockopt(probe.get(), IPPROTO_IP, IP_MTU, &mtu, &size) != 0 || mtu < 0)
    return 0;
  return static_cast<uint32_t>(mtu);
}

/** Also true when that cannot be found out. */
bool UnderlayPaths::HasPolicies() const {
  if (!policies_.valid()) return !policies_known_;
  struct {
    nlmsghdr header;
    uint32_t flags;
  } request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = XFRM_MSG_GETSPDINFO;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  uint8_t answer[kAnswerRoom];
  const size_t length = Exchange(policies_.get(), &request, sizeof request, answer);
  const uint8_t* info =
      FindAttribute(answer, NLMSG_HDRLEN + sizeof(uint32_t), length, XFRMA_SPD_INFO, sizeof(xfrmu_spdinfo));
  return info == nullptr || Read<xfrmu_spdinfo>(info).outcnt != 0;
}

}  // namespace netagent::engine
