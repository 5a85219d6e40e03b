#include "tx_path.h"

#include <netinet/udp.h>
#include <unistd.h>

#include <algorithm>

#include "neighbor.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

namespace netagent::engine {
namespace {

/** Room for the segment size and the traffic class. */
union ControlBuffer {
  cmsghdr align;
  uint8_t bytes[CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(int))];
};

template <typename T>
void AddControl(msghdr& message, int level, int type, T value) {
  auto* at = reinterpret_cast<cmsghdr*>(static_cast<uint8_t*>(message.msg_control) + message.msg_controllen);
  at->cmsg_level = level;
  at->cmsg_type = type;
  at->cmsg_len = CMSG_LEN(sizeof value);
  std::memcpy(CMSG_DATA(at), &value, sizeof value);
  message.msg_controllen += CMSG_SPACE(sizeof value);
}

/** The kernel's tunnels copy the mark, but show "experienced" outside as "capable": RFC 6040 §4.1, normal mode. */
uint8_t OuterEcn(uint8_t inner) { return inner == 3 ? 2 : inner; }

}  // namespace

TxPath::TxPath(const Underlay& underlay, TunnelDevice tunnel, CounterCell& counters)
    : underlay_(underlay),
      counters_(counters),
      tunnel_(std::move(tunnel)),
      paths_(underlay.source_v4()),
      frames_(new uint8_t[kFrameArena]),
      headers_(new uint8_t[kHeaderArena]),
      runs_(new Run[kMaxRuns]) {}

bool TxPath::Poll(const Snapshot& snapshot, const Network& network, int tap, bool& broken) {
  const int fd = network.taps()[static_cast<size_t>(tap)].get();
  size_t used = 0;
  bool worked = false;
  for (int i = 0; i < kBatchFrames; i++) {
    if (used + kFrameRoom > kFrameArena) {
      SendAll(snapshot);
      used = 0;
    }
    uint8_t* at = frames_.get() + used + kHeadroom;
    const ssize_t length = read(fd, at, kFrameRoom - kHeadroom);
    if (length < 0) {
      broken = errno != EAGAIN && errno != EINTR;
      break;
    }
    worked = true;
    VirtioHeader header;
    if (length < static_cast<ssize_t>(sizeof header + kEthernetBytes)) {
      counters_.Add(Counter::txDropMalformed);
      continue;
    }
    std::memcpy(&header, at, sizeof header);
    const uint32_t frame_bytes = static_cast<uint32_t>(length - sizeof header);
    Handle(snapshot, network, at + sizeof header, frame_bytes, header);
    if (frame_bytes >= kSendAtOnce) {
      SendAll(snapshot);
      used = 0;
    } else {
      used += (kHeadroom + static_cast<size_t>(length) + 63) & ~size_t{63};
    }
  }
  SendAll(snapshot);
  return worked;
}

void TxPath::Handle(const Snapshot& snapshot, const Network& network, uint8_t* data, uint32_t length,
                    const VirtioHeader& header) {
  FrameView frame;
  if (!ParseFrame({data, length}, frame)) return counters_.Add(Counter::txDropMalformed);
  if (AnswerNeighbor(snapshot, network, frame)) return;
  if (IsMulticastMac(data)) return counters_.Add(Counter::txDropBroadcast);
  const uint32_t vtep = snapshot.table->FindVtep(network.vni(), LoadMac(data));
  if (vtep == ForwardingTable::kNoVtep) return counters_.Add(Counter::txDropUnknownMac);
  const bool v4 = snapshot.table->vtep(vtep).is_v4();
  const std::vector<UniqueFd>& senders = underlay_.senders(v4);
  if (senders.empty()) return counters_.Add(Counter::txDropNoAddress);
  SegmentPlan plan;
  if (!PlanSegments(frame, header, data, plan)) return counters_.Add(Counter::txDropMalformed);

  const uint8_t ecn = OuterEcn(frame.ecn());
  const size_t flows = senders.size() - 1;
  const uint8_t source = static_cast<uint8_t>(network.dont_fragment() ? flows : FlowHash(frame) % flows);
  if (plan.header_bytes == 0) {
    if (length + kVxlanBytes > kMaxRunBytes) return counters_.Add(Counter::txDropTooBig);
    // The virtio header has been read: its last bytes make room for ours.
    uint8_t* datagram = data - kVxlanBytes;
    Run* run = RunFor(snapshot, vtep, source, ecn, length + kVxlanBytes);
    StoreVxlanHeader(datagram, network.vni());
    run->pieces[run->pieces_used++] = {datagram, length + kVxlanBytes};
    counters_.Add(Counter::txFrames);
    counters_.Add(Counter::txBytes, length);
    return;
  }
  counters_.Add(Counter::txSuperframes);
  counters_.Add(Counter::txFrames, plan.count);
  if (v4 && tunnel_.valid() && !network.dont_fragment()) {
    const TunnelWay way = {.source = underlay_.source_v4(),
                           .destination = snapshot.table->vtep(vtep),
                           .source_port = underlay_.source_port(true, source),
                           .destination_port = underlay_.port(),
                           .ifindex = 0,
                           .ip_id = ip_id_,
                           .ecn = ecn};
    if (SendWhole(snapshot, frame, header, plan, network.vni(), way, data)) return;
  }
  const size_t head = kVxlanBytes + plan.header_bytes;
  const size_t header_room = (head + 7) & ~size_t{7};
  for (uint32_t i = 0; i < plan.count; i++) {
    if (headers_used_ + header_room > kHeaderArena) SendAll(snapshot);
    const uint32_t size = static_cast<uint32_t>(head) + std::min(plan.size, frame.payload_length() - i * plan.size);
    Run* run = RunFor(snapshot, vtep, source, ecn, size);
    // After RunFor, which may send everything and so empty the arena.
    uint8_t* out = headers_.get() + headers_used_;
    headers_used_ += header_room;
    StoreVxlanHeader(out, network.vni());
    const Bytes payload = BuildSegment(frame, plan, i, out + kVxlanBytes);
    run->pieces[run->pieces_used++] = {out, head};
    run->pieces[run->pieces_used++] = {const_cast<uint8_t*>(payload.data()), payload.size()};
    counters_.Add(Counter::txBytes, size - kVxlanBytes);
  }
}

/** False: it has to be segmented. */
bool TxPath::SendWhole(const Snapshot& snapshot, const FrameView& frame, const VirtioHeader& header,
                       const SegmentPlan& plan, uint32_t vni, TunnelWay way, uint8_t* data) {
  if (!FitsTunnelFrame(frame, plan)) return false;
  const UnderlayPath path = paths_.Find(way.destination);
  // Nobody on the way may have to cut a segment once more: the device would lose it.
  const uint32_t largest = plan.size + plan.header_bytes + kOuterBytes - kEthernetBytes;
  if (path.ifindex == 0 || largest > path.mtu) return false;
  way.ifindex = path.ifindex;
  // What the flow has sent before is not overtaken.
  if (run_count_ > 0) SendAll(snapshot);
  const uint8_t* start = BuildTunnelFrame(frame, header, plan, vni, way, data);
  const int error = tunnel_.Write(start, kTunnelHeadroom + frame.length);
  if (error != 0) {
    // A kernel that does not understand the frame will not understand the next one.
    if (error == EINVAL) tunnel_ = TunnelDevice();
    return false;
  }
  ip_id_ = static_cast<uint16_t>(ip_id_ + plan.count);
  counters_.Add(Counter::txWhole);
  counters_.Add(Counter::txSends);
  counters_.Add(Counter::txBytes, frame.length);
  return true;
}

bool TxPath::AnswerNeighbor(const Snapshot& snapshot, const Network& network, const FrameView& frame) {
  const NeighborQuery query = ParseNeighborQuery(frame);
  if (query.kind == NeighborQuery::Kind::kNone) return false;
  if (query.kind == NeighborQuery::Kind::kIgnored) {
    counters_.Add(Counter::txDropBroadcast);
    return true;
  }
  const uint64_t mac = snapshot.table->FindMac(network.vni(), query.target);
  if (mac == ForwardingTable::kNoMac) {
    counters_.Add(Counter::txDropUnknownIp);
    return true;
  }
  uint8_t reply[kMaxNeighborReply];
  const size_t length = BuildNeighborReply(frame, query, mac, reply);
  counters_.Add(network.Write(reply, length) ? Counter::txAnswered : Counter::txDropSend);
  return true;
}

/** A run with room for one more datagram of `size` bytes, which is counted in. */
TxPath::Run* TxPath::RunFor(const Snapshot& snapshot, uint32_t vtep, uint8_t source, uint8_t ecn, uint32_t size) {
  // Only the newest run of a flow may grow, or frames would overtake; a flow is always in the runs of its source port.
  // Looking further back than a few runs costs more than a message.
  for (int i = run_count_ - 1; i >= std::max(0, run_count_ - 8); i--) {
    Run& run = runs_[i];
    if (run.vtep != vtep || run.source != source || run.ecn != ecn) {
      if (run.source == source && run.vtep == vtep) break;
      continue;
    }
    if (run.closed || size > run.size || run.count == kMaxDatagrams || run.bytes + size > kMaxRunBytes) break;
    run.count++;
    run.bytes += size;
    run.closed = size < run.size;
    return &run;
  }
  if (run_count_ == kMaxRuns) SendAll(snapshot);
  const bool v4 = snapshot.table->vtep(vtep).is_v4();
  (v4 ? sources_v4_ : sources_v6_) |= uint64_t{1} << source;
  Run& run = runs_[run_count_++];
  run.vtep = vtep;
  run.bytes = size;
  run.size = static_cast<uint16_t>(size);
  run.count = 1;
  run.pieces_used = 0;
  run.source = source;
  run.ecn = ecn;
  run.closed = false;
  return &run;
}

void TxPath::SendAll(const Snapshot& snapshot) {
  for (int source = 0; sources_v4_ >> source != 0; source++)
    if ((sources_v4_ >> source & 1) != 0) SendFrom(snapshot, true, source);
  for (int source = 0; sources_v6_ >> source != 0; source++)
    if ((sources_v6_ >> source & 1) != 0) SendFrom(snapshot, false, source);
  sources_v4_ = sources_v6_ = 0;
  run_count_ = 0;
  headers_used_ = 0;
}

void TxPath::SendFrom(const Snapshot& snapshot, bool v4, int source) {
  mmsghdr messages[kMaxRuns];
  ControlBuffer control[kMaxRuns];
  sockaddr_storage addresses[kMaxRuns];
  const Run* sent[kMaxRuns];
  int count = 0;
  for (int i = 0; i < run_count_; i++) {
    Run& run = runs_[i];
    const IpKey& vtep = snapshot.table->vtep(run.vtep);
    if (run.source != source || vtep.is_v4() != v4) continue;
    msghdr& message = messages[count].msg_hdr;
    message = msghdr{};
    message.msg_name = &addresses[count];
    message.msg_namelen = ToSockaddr(vtep, underlay_.port(), addresses[count]);
    message.msg_iov = run.pieces;
    message.msg_iovlen = run.pieces_used;
    message.msg_control = control[count].bytes;
    if (run.ecn != 0) AddControl<int>(message, v4 ? IPPROTO_IP : IPPROTO_IPV6, v4 ? IP_TOS : IPV6_TCLASS, run.ecn);
    if (run.count > 1) AddControl<uint16_t>(message, IPPROTO_UDP, UDP_SEGMENT, run.size);
    if (message.msg_controllen == 0) message.msg_control = nullptr;
    sent[count++] = &run;
  }
  const int fd = underlay_.senders(v4)[static_cast<size_t>(source)].get();
  for (int done = 0; done < count;) {
    const int result = sendmmsg(fd, messages + done, static_cast<unsigned>(count - done), 0);
    if (result > 0) {
      counters_.Add(Counter::txSends, static_cast<uint64_t>(result));
      done += result;
      continue;
    }
    if (errno == EINTR) continue;
    const Run& run = *sent[done];
    // Datagrams above the device's MTU cannot be a run, and some devices and tunnels refuse runs at all.
    if (run.count > 1 && (errno == EINVAL || errno == EMSGSIZE || errno == EIO)) {
      SendSingly(fd, run, messages[done].msg_hdr);
    } else {
      CountError(errno, run.count);
    }
    done++;
  }
}

void TxPath::SendSingly(int socket, const Run& run, const msghdr& whole) {
  const iovec* piece = run.pieces;
  for (int i = 0; i < run.count; i++) {
    const size_t size = std::min<size_t>(run.size, run.bytes - static_cast<size_t>(i) * run.size);
    msghdr message = whole;
    message.msg_iov = const_cast<iovec*>(piece);
    message.msg_iovlen = 0;
    for (size_t bytes = 0; bytes < size; piece++, message.msg_iovlen++) bytes += piece->iov_len;
    // The segment size is the last control message: leave it out.
    message.msg_controllen -= CMSG_SPACE(sizeof(uint16_t));
    if (message.msg_controllen == 0) message.msg_control = nullptr;
    if (sendmsg(socket, &message, 0) >= 0) {
      counters_.Add(Counter::txSends);
    } else {
      CountError(errno, 1);
    }
  }
}

void TxPath::CountError(int error, uint32_t datagrams) {
  counters_.Add(error == EMSGSIZE ? Counter::txDropTooBig : Counter::txDropSend, datagrams);
}

}  // namespace netagent::engine
