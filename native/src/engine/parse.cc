#include "parse.h"

#include "checksum.h"

namespace netagent::engine {
namespace {

constexpr int kMaxVlanTags = 2;        // 802.1ad: a service and a customer tag
constexpr int kMaxIpv6Extensions = 4;  // more is an attack or an experiment; such packets still pass, unsegmented

bool IsVlanTag(uint16_t ether_type) { return ether_type == 0x8100 || ether_type == 0x88a8; }

/** Fills everything up to `l4`; returns whether the packet is whole and unfragmented. */
bool ParseIpv4(FrameView& frame) {
  const uint8_t* ip = frame.data + frame.l3;
  const uint32_t room = frame.length - frame.l3;
  if (room < 20 || ip[0] >> 4 != 4) return false;
  const uint32_t header = (ip[0] & 15u) * 4;
  const uint32_t total = Load16(ip + 2);
  if (header < 20 || total < header || total > room) return false;
  frame.ip_version = 4;
  frame.kind = FrameView::Kind::kIp;
  frame.protocol = ip[9];
  frame.l4 = frame.payload = static_cast<uint16_t>(frame.l3 + header);
  frame.end = frame.l3 + total;
  return (Load16(ip + 6) & 0x3fff) == 0;  // neither more fragments nor an offset
}

bool ParseIpv6(FrameView& frame) {
  const uint8_t* ip = frame.data + frame.l3;
  const uint32_t room = frame.length - frame.l3;
  if (room < 40 || ip[0] >> 4 != 6) return false;
  const uint32_t total = 40u + Load16(ip + 4);
  if (total > room) return false;
  frame.ip_version = 6;
  frame.kind = FrameView::Kind::kIp;
  frame.end = frame.l3 + total;
  uint8_t next = ip[6];
  uint32_t at = 40;
  for (int i = 0; i < kMaxIpv6Extensions; i++) {
    // Hop-by-hop, routing and destination options: next header, length in 8 bytes beyond the first 8.
    if (next != 0 && next != 43 && next != 60) break;
    if (at + 8 > total) return false;
    const uint32_t size = (ip[at + 1] + 1u) * 8;
    if (at + size > total) return false;
    next = ip[at];
    at += size;
  }
  frame.protocol = next;
  frame.l4 = frame.payload = static_cast<uint16_t>(frame.l3 + at);
  return next != 44;  // fragment header
}

}  // namespace

bool ParseFrame(Bytes bytes, FrameView& out) {
  if (bytes.size() < kEthernetBytes) return false;
  out = FrameView{};
  out.data = bytes.data();
  out.length = out.end = static_cast<uint32_t>(bytes.size());
  out.l3 = out.l4 = out.payload = kEthernetBytes;
  out.ether_type = Load16(out.data + 12);
  for (int i = 0; i < kMaxVlanTags && IsVlanTag(out.ether_type); i++) {
    if (bytes.size() < out.l3 + 4u) return true;
    out.ether_type = Load16(out.data + out.l3 + 2);
    out.l3 += 4;
    out.l4 = out.payload = out.l3;
  }
  bool whole = false;
  if (out.ether_type == kEtherTypeIpv4) whole = ParseIpv4(out);
  if (out.ether_type == kEtherTypeIpv6) whole = ParseIpv6(out);
  if (!whole) return true;

  const uint8_t* l4 = out.data + out.l4;
  const uint32_t room = out.end - out.l4;
  if (out.protocol == kProtocolTcp) {
    if (room < 20) return true;
    const uint32_t header = (l4[12] >> 4) * 4u;
    if (header < 20 || header > room) return true;
    out.payload = static_cast<uint16_t>(out.l4 + header);
    out.kind = FrameView::Kind::kTcp;
  } else if (out.protocol == kProtocolUdp) {
    if (room < 8 || Load16(l4 + 4) != room) return true;
    out.payload = static_cast<uint16_t>(out.l4 + 8);
    out.kind = FrameView::Kind::kUdp;
  }
  return true;
}

uint64_t PseudoHeaderSum(const FrameView& frame, uint32_t l4_length) {
  const uint8_t* ip = frame.data + frame.l3;
  const uint64_t addresses = frame.ip_version == 4 ? SumBytes(ip + 12, 8) : SumBytes(ip + 8, 32);
  return addresses + SumTerm(frame.protocol) + SumTerm(static_cast<uint16_t>(l4_length)) +
         SumTerm(static_cast<uint16_t>(l4_length >> 16));
}

uint32_t FlowHash(const FrameView& frame) {
  uint64_t hash = 0x9e3779b97f4a7c15;
  const auto mix = [&hash](uint64_t value) {
    hash = (hash ^ value) * 0xff51afd7ed558ccd;
    hash ^= hash >> 32;
  };
  if (frame.ip_version == 4) {
    mix(LoadRaw64(frame.data + frame.l3 + 12));
  } else if (frame.ip_version == 6) {
    for (int i = 0; i < 4; i++) mix(LoadRaw64(frame.data + frame.l3 + 8 + 8 * i));
  } else {
    mix(LoadMac(frame.data));
    mix(LoadMac(frame.data + 6));
  }
  if (frame.kind >= FrameView::Kind::kTcp) mix(LoadRaw32(frame.data + frame.l4));
  mix(frame.protocol);
  return static_cast<uint32_t>(hash);
}

}  // namespace netagent::engine
