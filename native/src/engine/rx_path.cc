#include "rx_path.h"

#include <netinet/udp.h>

#include <algorithm>

#include "checksum.h"

#ifndef UDP_GRO
#define UDP_GRO 104
#endif

namespace netagent::engine {
namespace {

/** Length of the IP packet that the VXLAN datagram claims to carry, with everything around it; 0 when not IP. */
size_t ClaimedLength(const uint8_t* datagram, size_t length) {
  constexpr size_t kHeaders = kVxlanBytes + kEthernetBytes;
  if (length < kHeaders + 40) return 0;
  const uint8_t* ip = datagram + kHeaders;
  switch (Load16(datagram + kHeaders - 2)) {
    case kEtherTypeIpv4:
      return kHeaders + Load16(ip + 2);
    case kEtherTypeIpv6:
      return kHeaders + 40 + Load16(ip + 4);
    default:
      return 0;
  }
}

/**
 * RFC 6040 §4.2: the inner packet takes over a congestion mark of the outer one, or must be dropped when it could not
 * answer it. False: drop.
 */
bool TakeOverCongestion(const FrameView& frame, uint8_t outer, uint8_t* data) {
  if (outer != 3 || frame.ip_version == 0) return true;
  const uint8_t inner = frame.ecn();
  if (inner == 3) return true;
  if (inner == 0) return false;
  uint8_t* ip = data + frame.l3;
  if (frame.ip_version == 6) {
    ip[1] |= 0x30;
    return true;
  }
  ip[1] |= 3;
  StoreRaw16(ip + 10, 0);
  StoreRaw16(ip + 10, Checksum(SumBytes(ip, (ip[0] & 15u) * 4)));
  return true;
}

}  // namespace

RxPath::RxPath(const Underlay& underlay, CounterCell& counters)
    : underlay_(underlay),
      counters_(counters),
      buffers_(new uint8_t[kMessages * kMessageRoom]),
      coalescer_(std::make_unique<Coalescer>()) {
  for (int i = 0; i < kMessages; i++) {
    pieces_[i] = {buffers_.get() + static_cast<size_t>(i) * kMessageRoom, kMessageRoom};
    msghdr& header = messages_[i].msg_hdr;
    header.msg_name = &senders_[i];
    header.msg_iov = &pieces_[i];
    header.msg_iovlen = 1;
    header.msg_control = control_[i];
  }
}

bool RxPath::Poll(const Snapshot& snapshot, size_t index) {
  for (unsigned i = 0; i < batch_; i++) {
    messages_[i].msg_hdr.msg_namelen = sizeof(sockaddr_storage);
    messages_[i].msg_hdr.msg_controllen = kControlRoom;
  }
  const int count = recvmmsg(underlay_.receivers()[index].get(), messages_, batch_, MSG_DONTWAIT, nullptr);
  // Errors of earlier sends (ICMP) do not reach this socket; whatever it reports is cleared by reporting it.
  if (count <= 0) return false;
  counters_.Add(Counter::rxReceives, static_cast<uint64_t>(count));
  size_t bytes = 0;
  for (int i = 0; i < count; i++) {
    bytes += messages_[i].msg_len;
    HandleMessage(snapshot, messages_[i]);
  }
  coalescer_->Flush();
  batch_ = bytes / static_cast<size_t>(count) > kLargeBytes ? kLargeMessages : kMessages;
  return true;
}

void RxPath::HandleMessage(const Snapshot& snapshot, const mmsghdr& message) {
  const msghdr& header = message.msg_hdr;
  uint8_t* data = static_cast<uint8_t*>(header.msg_iov->iov_base);
  const size_t length = message.msg_len;
  if ((header.msg_flags & MSG_TRUNC) != 0) return counters_.Add(Counter::rxDropTruncated);
  Sender sender{IpKey::FromSockaddr(*static_cast<const sockaddr_storage*>(header.msg_name)), 0};
  size_t size = length;
  for (cmsghdr* at = CMSG_FIRSTHDR(&header); at != nullptr;
       at = CMSG_NXTHDR(const_cast<msghdr*>(&header), at)) {
    int value = 0;
    std::memcpy(&value, CMSG_DATA(at), std::min(sizeof value, static_cast<size_t>(at->cmsg_len - CMSG_LEN(0))));
    if (at->cmsg_level == IPPROTO_UDP && at->cmsg_type == UDP_GRO && value > 0) size = static_cast<size_t>(value);
    if ((at->cmsg_level == IPPROTO_IP && at->cmsg_type == IP_TOS) ||
        (at->cmsg_level == IPPROTO_IPV6 && at->cmsg_type == IPV6_TCLASS))
      sender.ecn = static_cast<uint8_t>(value & 3);
  }
  if (size < length && ClaimedLength(data, length) == length) {
    // Not a run of datagrams: a kernel peer sent a superframe of UDP whole, and `size` is the inner one's (T7).
    return HandleDatagram(snapshot, sender, data, length, static_cast<uint32_t>(size));
  }
  for (size_t at = 0; at < length; at += size)
    HandleDatagram(snapshot, sender, data + at, std::min(size, length - at), 0);
}

void RxPath::HandleDatagram(const Snapshot& snapshot, const Sender& sender, uint8_t* data, size_t length,
                            uint32_t inner_gso_size) {
  const int32_t vni = ParseVxlanHeader({data, length});
  if (vni < 0) return counters_.Add(Counter::rxDropHeader);
  Network* network = snapshot.Find(static_cast<uint32_t>(vni));
  if (network == nullptr) return counters_.Add(Counter::rxDropUnknownVni);
  uint8_t* inner = data + kVxlanBytes;
  const uint32_t vtep = snapshot.table->FindVtep(network->vni(), LoadMac(inner + 6));
  if (vtep == ForwardingTable::kNoVtep) return counters_.Add(Counter::rxDropUnknownSource);
  if (!(snapshot.table->vtep(vtep) == sender.address)) return counters_.Add(Counter::rxDropWrongVtep);
  FrameView frame;
  if (!ParseFrame({inner, length - kVxlanBytes}, frame)) return counters_.Add(Counter::rxDropHeader);
  if (!TakeOverCongestion(frame, sender.ecn, inner)) return counters_.Add(Counter::rxDropEcn);
  counters_.Add(Counter::rxFrames);
  counters_.Add(Counter::rxBytes, frame.length);
  if (!coalescer_->Add(frame, inner_gso_size, *network)) counters_.Add(Counter::rxDropChecksum);
}

}  // namespace netagent::engine
