#include "neighbor.h"

#include "checksum.h"

namespace netagent::engine {
namespace {

constexpr size_t kArpBytes = 28;               // RFC 826, IPv4 over Ethernet
constexpr size_t kSolicitationBytes = 24;      // RFC 4861 §4.3, without options
constexpr size_t kAdvertisementBytes = 24 + 8;  // §4.4, with the target link-layer address option
constexpr uint8_t kTypeSolicitation = 135;
constexpr uint8_t kTypeAdvertisement = 136;

NeighborQuery ParseArp(const FrameView& frame) {
  NeighborQuery query{NeighborQuery::Kind::kIgnored, {}};
  if (frame.length < frame.l3 + kArpBytes) return query;
  const uint8_t* arp = frame.data + frame.l3;
  constexpr uint8_t kRequest[8] = {0, 1, 8, 0, 6, 4, 0, 1};
  if (std::memcmp(arp, kRequest, sizeof kRequest) != 0) return query;
  // An announcement asks for its own address: nobody is to answer.
  if (LoadRaw32(arp + 14) == LoadRaw32(arp + 24)) return query;
  query.kind = NeighborQuery::Kind::kArp;
  query.target = IpKey::FromV4(arp + 24);
  return query;
}

size_t BuildArpReply(const FrameView& query, uint64_t mac, uint8_t* out) {
  const uint8_t* asked = query.data + query.l3;
  uint8_t* arp = out + query.l3;
  constexpr uint8_t kReply[8] = {0, 1, 8, 0, 6, 4, 0, 2};
  std::memcpy(arp, kReply, sizeof kReply);
  StoreMac(arp + 8, mac);
  std::memcpy(arp + 14, asked + 24, 4);
  std::memcpy(arp + 18, asked + 8, 10);
  return query.l3 + kArpBytes;
}

size_t BuildAdvertisement(const FrameView& query, uint64_t mac, uint8_t* out) {
  const uint8_t* asked = query.data + query.l3;
  const uint8_t* target = query.data + query.l4 + 8;
  uint8_t* ip = out + query.l3;
  std::memset(ip, 0, 40 + kAdvertisementBytes);
  ip[0] = 0x60;
  Store16(ip + 4, kAdvertisementBytes);
  ip[6] = kProtocolIcmpv6;
  ip[7] = 255;  // RFC 4861 §7.1.2: proof that it never crossed a router
  std::memcpy(ip + 8, target, 16);
  // Duplicate address detection asks from `::`; its answer goes to all nodes and is not "solicited" (§7.2.4).
  constexpr uint8_t kUnspecified[16] = {};
  constexpr uint8_t kAllNodes[16] = {0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  const bool detection = std::memcmp(asked + 8, kUnspecified, 16) == 0;
  std::memcpy(ip + 24, detection ? kAllNodes : asked + 8, 16);
  if (detection) StoreMac(out, 0x333300000001);

  uint8_t* icmp = ip + 40;
  icmp[0] = kTypeAdvertisement;
  icmp[4] = detection ? 0x20 : 0x60;  // override; solicited
  std::memcpy(icmp + 8, target, 16);
  icmp[24] = 2;  // target link-layer address, length 1 × 8 bytes
  icmp[25] = 1;
  StoreMac(icmp + 26, mac);
  uint64_t sum = SumBytes(ip + 8, 32) + SumTerm(kAdvertisementBytes) + SumTerm(kProtocolIcmpv6);
  StoreRaw16(icmp + 2, Checksum(SumBytes(icmp, kAdvertisementBytes, sum)));
  return query.l3 + 40 + kAdvertisementBytes;
}

}  // namespace

NeighborQuery ParseNeighborQuery(const FrameView& frame) {
  if (frame.ether_type == kEtherTypeArp) return ParseArp(frame);
  if (frame.ip_version != 6 || frame.protocol != kProtocolIcmpv6 || frame.end - frame.l4 < kSolicitationBytes)
    return {};
  const uint8_t* icmp = frame.data + frame.l4;
  if (icmp[0] != kTypeSolicitation || icmp[1] != 0) return {};
  NeighborQuery query{NeighborQuery::Kind::kIgnored, {}};
  // A packet with extension headers would not be answered in kind; the target must not be multicast (§7.1.1).
  if (frame.l4 - frame.l3 != 40 || frame.data[frame.l3 + 7] != 255 || icmp[8] == 0xff) return query;
  query.kind = NeighborQuery::Kind::kSolicitation;
  query.target = IpKey::FromV6(icmp + 8);
  return query;
}

size_t BuildNeighborReply(const FrameView& query, const NeighborQuery& parsed, uint64_t mac, uint8_t* out) {
  // Back to the asker, tags kept.
  std::memcpy(out, query.data, query.l3);
  std::memcpy(out, query.data + 6, 6);
  StoreMac(out + 6, mac);
  return parsed.kind == NeighborQuery::Kind::kArp ? BuildArpReply(query, mac, out)
                                                  : BuildAdvertisement(query, mac, out);
}

}  // namespace netagent::engine
