#include "segment.h"

#include <algorithm>

#include "checksum.h"

namespace netagent::engine {
namespace {

constexpr uint8_t kGsoTypeMask = 0x7f;  // without kGsoEcn

/** kVirtioNeedsChecksum: sum from checksum_start to the end; the field already holds the pseudo header's. */
bool FinishChecksum(const VirtioHeader& header, uint8_t* data, uint32_t length) {
  const uint32_t start = header.checksum_start;
  const uint32_t field = start + header.checksum_offset;
  if (start > length || field + 2 > length) return false;
  const uint16_t checksum = Checksum(SumBytes(data + start, length - start));
  // Zero means "no checksum" in UDP; 0xffff is the same number and never wrong elsewhere.
  StoreRaw16(data + field, checksum == 0 ? 0xffff : checksum);
  return true;
}

}  // namespace

bool PlanSegments(const FrameView& frame, const VirtioHeader& header, uint8_t* data, SegmentPlan& out) {
  out = SegmentPlan{};
  const uint8_t type = header.gso_type & kGsoTypeMask;
  if (type == kGsoNone) {
    out.count = 1;
    return (header.flags & kVirtioNeedsChecksum) == 0 || FinishChecksum(header, data, frame.length);
  }
  const bool tcp = (type == kGsoTcpV4 && frame.ip_version == 4) ||
                   (type == kGsoTcpV6 && frame.ip_version == 6);
  const bool udp = type == kGsoUdpL4;
  if (!(tcp && frame.kind == FrameView::Kind::kTcp) && !(udp && frame.kind == FrameView::Kind::kUdp))
    return false;
  if ((header.flags & kVirtioNeedsChecksum) == 0 || header.checksum_start != frame.l4) return false;
  if (header.gso_size == 0 || frame.payload > kMaxHeaderBytes || frame.payload_length() == 0) return false;

  out.size = header.gso_size;
  out.count = (frame.payload_length() + out.size - 1) / out.size;
  out.header_bytes = frame.payload;
  out.checksum_at = static_cast<uint16_t>(frame.l4 + (tcp ? 16 : 6));
  // Not recomputed from the addresses: with a routing header the final destination is elsewhere, the kernel knew.
  const uint16_t whole = static_cast<uint16_t>(frame.end - frame.l4);
  out.pseudo_sum = LoadRaw16(data + out.checksum_at) + static_cast<uint64_t>(static_cast<uint16_t>(~SumTerm(whole)));
  return true;
}

Bytes BuildSegment(const FrameView& frame, const SegmentPlan& plan, uint32_t index, uint8_t* out) {
  const uint32_t offset = index * plan.size;
  const Bytes payload(frame.data + frame.payload + offset, std::min(plan.size, frame.payload_length() - offset));
  const bool last = index + 1 == plan.count;
  std::memcpy(out, frame.data, plan.header_bytes);

  uint8_t* ip = out + frame.l3;
  const uint32_t ip_bytes = frame.payload - frame.l3 + static_cast<uint32_t>(payload.size());
  if (frame.ip_version == 4) {
    Store16(ip + 2, static_cast<uint16_t>(ip_bytes));
    Store16(ip + 4, static_cast<uint16_t>(Load16(ip + 4) + index));
    StoreRaw16(ip + 10, 0);
    StoreRaw16(ip + 10, Checksum(SumBytes(ip, (ip[0] & 15u) * 4)));
  } else {
    Store16(ip + 4, static_cast<uint16_t>(ip_bytes - 40));
  }

  uint8_t* l4 = out + frame.l4;
  const uint32_t l4_header = frame.payload - frame.l4;
  const uint16_t l4_bytes = static_cast<uint16_t>(l4_header + payload.size());
  if (frame.kind == FrameView::Kind::kTcp) {
    Store32(l4 + 4, Load32(l4 + 4) + offset);
    if (!last) l4[13] &= static_cast<uint8_t>(~(kTcpFin | kTcpPsh));
    if (index != 0) l4[13] &= static_cast<uint8_t>(~kTcpCwr);
  } else {
    Store16(l4 + 4, l4_bytes);
  }
  StoreRaw16(out + plan.checksum_at, 0);
  uint64_t sum = SumBytes(l4, l4_header, plan.pseudo_sum + SumTerm(l4_bytes));
  sum = SumBytes(payload.data(), payload.size(), sum);
  const uint16_t checksum = Checksum(sum);
  StoreRaw16(out + plan.checksum_at, checksum == 0 && frame.kind == FrameView::Kind::kUdp ? 0xffff : checksum);
  return payload;
}

}  // namespace netagent::engine
