#include "coalesce.h"

#include <algorithm>

#include "checksum.h"

namespace netagent::engine {
namespace {

constexpr uint32_t kMaxIpBytes = 65535;

bool IsTcp(const FrameView& frame) { return frame.kind == FrameView::Kind::kTcp; }

uint16_t ChecksumAt(const FrameView& frame) {
  return static_cast<uint16_t>(frame.l4 + (IsTcp(frame) ? 16 : 6));
}

bool Ipv4HeaderIsValid(const FrameView& frame) {
  const uint8_t* ip = frame.data + frame.l3;
  return FoldSum(SumBytes(ip, (ip[0] & 15u) * 4)) == 0xffff;
}

bool Equal(const uint8_t* a, const uint8_t* b, size_t from, size_t to) {
  return std::memcmp(a + from, b + from, to - from) == 0;
}

/** Ports and addresses; `a` and `b` hash alike, so this is nearly always true. */
bool SameFlow(const FrameView& a, const FrameView& b) {
  if (a.kind != b.kind || a.ip_version != b.ip_version || LoadRaw32(a.data + a.l4) != LoadRaw32(b.data + b.l4))
    return false;
  const uint8_t* x = a.data + a.l3;
  const uint8_t* y = b.data + b.l3;
  return a.ip_version == 4 ? Equal(x, y, 12, 20) : Equal(x, y, 8, 40);
}

/** virtio header for a frame whose transport checksum field holds the pseudo header's sum. */
VirtioHeader PartialHeader(const FrameView& frame) {
  VirtioHeader header{};
  header.flags = kVirtioNeedsChecksum;
  header.checksum_start = frame.l4;
  header.checksum_offset = static_cast<uint16_t>(ChecksumAt(frame) - frame.l4);
  return header;
}

void SetSegmentation(VirtioHeader& header, const FrameView& frame, uint32_t size, bool congestion_window_reduced) {
  header.gso_type = !IsTcp(frame)            ? kGsoUdpL4
                    : frame.ip_version == 4 ? kGsoTcpV4
                                            : kGsoTcpV6;
  if (congestion_window_reduced) header.gso_type |= kGsoEcn;
  header.gso_size = static_cast<uint16_t>(size);
  header.header_bytes = frame.payload;
}

/** A frame as it came; without its padding when the kernel is to sum up to the end. */
void EmitWhole(const FrameView& frame, VirtioHeader header, FrameSink& sink) {
  const uint32_t length = header.flags == 0 ? frame.length : frame.end;
  const iovec pieces[2] = {{&header, sizeof header}, {const_cast<uint8_t*>(frame.data), length}};
  sink.Emit(pieces, 2);
}

/** A superframe that arrived in one piece. False: its checksum is wrong. */
bool EmitJumbo(const FrameView& frame, uint32_t size, FrameSink& sink) {
  const ChecksumState state = InspectChecksum(frame);
  if (state == ChecksumState::kWrong || state == ChecksumState::kNone) return false;
  VirtioHeader header = PartialHeader(frame);
  SetSegmentation(header, frame, size, IsTcp(frame) && (frame.data[frame.l4 + 13] & kTcpCwr) != 0);
  // A finished checksum is replaced by the pseudo header's sum in a copy of the header: the frame is not ours to write.
  uint8_t copy[kMaxHeaderBytes];
  std::memcpy(copy, frame.data, frame.payload);
  StoreRaw16(copy + ChecksumAt(frame), FoldSum(PseudoHeaderSum(frame, frame.end - frame.l4)));
  const iovec pieces[3] = {{&header, sizeof header},
                           {copy, frame.payload},
                           {const_cast<uint8_t*>(frame.data) + frame.payload, frame.payload_length()}};
  sink.Emit(pieces, 3);
  return true;
}

}  // namespace

ChecksumState InspectChecksum(const FrameView& frame) {
  const uint16_t stored = LoadRaw16(frame.data + ChecksumAt(frame));
  if (!IsTcp(frame) && stored == 0) return frame.ip_version == 4 ? ChecksumState::kNone : ChecksumState::kWrong;
  const uint32_t l4_bytes = frame.end - frame.l4;
  const uint64_t pseudo = PseudoHeaderSum(frame, l4_bytes);
  if (SameSum(stored, FoldSum(pseudo))) return ChecksumState::kPartial;
  const uint16_t sum = FoldSum(SumBytes(frame.data + frame.l4, l4_bytes, pseudo));
  return sum == 0xffff ? ChecksumState::kValid : ChecksumState::kWrong;
}

bool Coalescer::Add(const FrameView& frame, uint32_t gso_size, FrameSink& sink) {
  if (frame.kind < FrameView::Kind::kTcp) {
    EmitWhole(frame, VirtioHeader{}, sink);
    return true;
  }
  const uint32_t hash = FlowHash(frame);
  Flow* flow = Find(hash, frame, sink);

  if (frame.end - frame.l3 > sink.mtu() && frame.payload <= kMaxHeaderBytes) {
    uint32_t size = gso_size;
    const uint32_t headers = static_cast<uint32_t>(frame.payload - frame.l3);
    if (size == 0 && IsTcp(frame) && sink.mtu() > headers) size = sink.mtu() - headers;
    if (size != 0 && (IsTcp(frame) || sink.udp_segmentation())) {
      if (flow != nullptr) Close(*flow);
      return EmitJumbo(frame, size, sink);
    }
  }

  const bool may_open = MayOpen(frame, sink);
  if (flow != nullptr) {
    if (may_open && MayJoin(*flow, frame)) {
      // The superframe's checksum is made anew downstream: a wrong one must not become right on the way.
      if (InspectChecksum(frame) == ChecksumState::kWrong) return false;
      if (flow->count > 1 || InspectChecksum(flow->first) != ChecksumState::kWrong) {
        Join(*flow, frame);
        return true;
      }
    }
    Close(*flow);
  }
  if (may_open) {
    for (int i = 0; flow == nullptr && i < kFlows; i++)
      if (flows_[i].count == 0) flow = &flows_[i];
    if (flow == nullptr) {
      flow = &flows_[victim_];
      victim_ = (victim_ + 1) % kFlows;
      Close(*flow);
    }
    Open(*flow, frame, hash, sink);
    return true;
  }
  VirtioHeader header{};
  // Complete or not, the endpoint's kernel verifies it; it must only be told when it is unfinished.
  const uint16_t stored = LoadRaw16(frame.data + ChecksumAt(frame));
  if ((IsTcp(frame) || stored != 0) && SameSum(stored, FoldSum(PseudoHeaderSum(frame, frame.end - frame.l4))))
    header = PartialHeader(frame);
  EmitWhole(frame, header, sink);
  return true;
}

void Coalescer::Flush() {
  for (int i = 0; open_ > 0 && i < kFlows; i++)
    if (flows_[i].count != 0) Close(flows_[i]);
}

Coalescer::Flow* Coalescer::Find(uint32_t hash, const FrameView& frame, const FrameSink& sink) {
  int seen = 0;
  for (int i = 0; seen < open_ && i < kFlows; i++) {
    Flow& flow = flows_[i];
    if (flow.count == 0) continue;
    seen++;
    if (flow.hash == hash && flow.sink == &sink && SameFlow(flow.first, frame)) return &flow;
  }
  return nullptr;
}

/** Whether a frame can be a part of a superframe at all. */
bool Coalescer::MayOpen(const FrameView& frame, const FrameSink& sink) {
  const uint32_t payload = frame.payload_length();
  // Padding behind the packet would have to vanish; a header without payload (a pure acknowledgement) must not wait.
  if (payload == 0 || payload > 0xffff || frame.end != frame.length || frame.payload > kMaxHeaderBytes) return false;
  // Options and extension headers are rare, and source routing makes the pseudo header's destination another.
  if (frame.l4 - frame.l3 != (frame.ip_version == 4 ? 20 : 40)) return false;
  if (frame.ip_version == 4 && !Ipv4HeaderIsValid(frame)) return false;
  const uint8_t* l4 = frame.data + frame.l4;
  if (!IsTcp(frame)) return sink.udp_segmentation() && LoadRaw16(l4 + 6) != 0;
  return (l4[13] & ~(kTcpFin | kTcpPsh | kTcpEce | kTcpCwr)) == kTcpAck;
}

bool Coalescer::MayJoin(const Flow& flow, const FrameView& frame) {
  const FrameView& first = flow.first;
  const uint32_t payload = frame.payload_length();
  if (flow.closed || flow.count == kMaxSegments || payload > flow.size) return false;
  if (frame.l3 != first.l3 || frame.l4 != first.l4 || frame.payload != first.payload) return false;
  if (frame.payload - frame.l3 + flow.payload + payload > kMaxIpBytes) return false;
  if (!Equal(first.data, frame.data, 0, frame.l3)) return false;

  const uint8_t* a = first.data + first.l3;
  const uint8_t* b = frame.data + frame.l3;
  if (frame.ip_version == 4) {
    // Everything but length (2), id (4) and checksum (10).
    if (!Equal(a, b, 0, 2) || !Equal(a, b, 6, 10) || !Equal(a, b, 12, 20)) return false;
    // Segmentation counts the id up. Atomic datagrams (RFC 6864: DF set) may all carry the same, it means nothing.
    const uint16_t distance = static_cast<uint16_t>(Load16(b + 4) - Load16(a + 4));
    const bool atomic = (b[6] & 0x40) != 0;
    const bool fixed = atomic && distance == 0 && (flow.count == 1 || flow.fixed_id);
    const bool counting = distance == flow.count && !flow.fixed_id;
    if (!fixed && !counting) return false;
  } else {
    if (!Equal(a, b, 0, 4) || !Equal(a, b, 6, 40)) return false;
  }
  if (!IsTcp(frame)) return true;

  a = first.data + first.l4;
  b = frame.data + frame.l4;
  if (Load32(b + 4) != flow.next_sequence) return false;
  // Acknowledgement, offset and reserved bits, window, urgent pointer and options equal; flags but FIN, PSH too.
  if (!Equal(a, b, 8, 13) || !Equal(a, b, 14, 16) || !Equal(a, b, 18, static_cast<size_t>(frame.payload - frame.l4)))
    return false;
  return (b[13] & ~(kTcpFin | kTcpPsh)) == (a[13] & ~kTcpCwr);
}

void Coalescer::Open(Flow& flow, const FrameView& frame, uint32_t hash, FrameSink& sink) {
  open_++;
  flow.first = frame;
  flow.sink = &sink;
  flow.hash = hash;
  flow.size = flow.payload = frame.payload_length();
  flow.count = 1;
  flow.fixed_id = false;
  flow.closed = false;
  if (IsTcp(frame)) {
    const uint8_t* tcp = frame.data + frame.l4;
    flow.next_sequence = Load32(tcp + 4) + flow.payload;
    flow.last_flags = tcp[13];
    flow.closed = (tcp[13] & (kTcpFin | kTcpPsh)) != 0;
  }
  flow.pieces[2] = {const_cast<uint8_t*>(frame.data) + frame.payload, flow.payload};
}

void Coalescer::Join(Flow& flow, const FrameView& frame) {
  const uint32_t payload = frame.payload_length();
  if (flow.count == 1 && frame.ip_version == 4)
    flow.fixed_id = LoadRaw16(frame.data + frame.l3 + 4) == LoadRaw16(flow.first.data + flow.first.l3 + 4);
  flow.pieces[2 + flow.count] = {const_cast<uint8_t*>(frame.data) + frame.payload, payload};
  flow.count++;
  flow.payload += payload;
  flow.closed = payload < flow.size;
  if (IsTcp(frame)) {
    flow.next_sequence += payload;
    flow.last_flags = frame.data[frame.l4 + 13];
    flow.closed |= (flow.last_flags & (kTcpFin | kTcpPsh)) != 0;
  }
}

void Coalescer::Close(Flow& flow) {
  const FrameView& first = flow.first;
  const int segments = flow.count;
  flow.count = 0;
  open_--;
  if (segments == 1) {
    VirtioHeader header{};
    const uint16_t stored = LoadRaw16(first.data + ChecksumAt(first));
    if (SameSum(stored, FoldSum(PseudoHeaderSum(first, first.end - first.l4)))) header = PartialHeader(first);
    EmitWhole(first, header, *flow.sink);
    return;
  }
  uint8_t* out = flow.header_bytes;
  std::memcpy(out, first.data, first.payload);
  const uint32_t ip_bytes = first.payload - first.l3 + flow.payload;
  uint8_t* ip = out + first.l3;
  if (first.ip_version == 4) {
    Store16(ip + 2, static_cast<uint16_t>(ip_bytes));
    StoreRaw16(ip + 10, 0);
    StoreRaw16(ip + 10, Checksum(SumBytes(ip, (ip[0] & 15u) * 4)));
  } else {
    Store16(ip + 4, static_cast<uint16_t>(ip_bytes - 40));
  }
  uint8_t* l4 = out + first.l4;
  const uint32_t l4_bytes = first.payload - first.l4 + flow.payload;
  if (IsTcp(first)) {
    l4[13] |= flow.last_flags & (kTcpFin | kTcpPsh);
  } else {
    Store16(l4 + 4, static_cast<uint16_t>(l4_bytes));
  }
  StoreRaw16(out + ChecksumAt(first), FoldSum(PseudoHeaderSum(first, l4_bytes)));

  flow.header = PartialHeader(first);
  SetSegmentation(flow.header, first, flow.size, IsTcp(first) && (l4[13] & kTcpCwr) != 0);
  flow.pieces[0] = {&flow.header, sizeof flow.header};
  flow.pieces[1] = {out, first.payload};
  flow.sink->Emit(flow.pieces, 2 + segments);
}

}  // namespace netagent::engine
