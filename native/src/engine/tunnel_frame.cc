#include "tunnel_frame.h"

#include "checksum.h"

namespace netagent::engine {
namespace {

constexpr uint8_t kTunnelChecksum = 8;  // VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM
constexpr uint8_t kTunnelIpv4 = 0x20;   // VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4
constexpr uint32_t kMaxIpBytes = 65535;
constexpr uint8_t kTimeToLive = 64;

}  // namespace

bool FitsTunnelFrame(const FrameView& frame, const SegmentPlan& plan) {
  // Padding behind the packet would become payload.
  return plan.header_bytes != 0 && frame.end == frame.length &&
         frame.length + kOuterBytes - kEthernetBytes <= kMaxIpBytes;
}

uint8_t* BuildTunnelFrame(const FrameView& frame, const VirtioHeader& header, const SegmentPlan& plan, uint32_t vni,
                          const TunnelWay& way, uint8_t* data) {
  uint8_t* const outer = data - kOuterBytes;
  TunnelVirtioHeader tunnel{};
  tunnel.basic.flags = kVirtioNeedsChecksum | kTunnelChecksum;
  tunnel.basic.gso_type = header.gso_type | kTunnelIpv4;
  tunnel.basic.header_bytes = static_cast<uint16_t>(kOuterBytes + plan.header_bytes);
  tunnel.basic.gso_size = header.gso_size;
  tunnel.basic.checksum_start = static_cast<uint16_t>(kOuterBytes + frame.l4);
  tunnel.basic.checksum_offset = static_cast<uint16_t>(plan.checksum_at - frame.l4);
  tunnel.outer_transport = kEthernetBytes + 20;
  tunnel.inner_network = static_cast<uint16_t>(kOuterBytes + frame.l3);
  uint8_t* const start = outer - sizeof tunnel;
  std::memcpy(start, &tunnel, sizeof tunnel);

  std::memset(outer, 0, kOuterBytes);
  // Nobody reads these addresses but the program behind the device (tunnel_device.cc).
  outer[0] = outer[6] = 0x02;
  Store32(outer + 8, way.ifindex);
  Store16(outer + 12, kEtherTypeIpv4);

  uint8_t* const ip = outer + kEthernetBytes;
  const uint16_t udp_bytes = static_cast<uint16_t>(8 + kVxlanBytes + frame.length);
  ip[0] = 0x45;
  ip[1] = way.ecn;
  Store16(ip + 2, static_cast<uint16_t>(20 + udp_bytes));
  Store16(ip + 4, way.ip_id);
  ip[8] = kTimeToLive;
  ip[9] = kProtocolUdp;
  std::memcpy(ip + 12, way.source.bytes + 12, 4);
  std::memcpy(ip + 16, way.destination.bytes + 12, 4);
  StoreRaw16(ip + 10, Checksum(SumBytes(ip, 20)));

  uint8_t* const udp = ip + 20;
  Store16(udp, way.source_port);
  Store16(udp + 2, way.destination_port);
  Store16(udp + 4, udp_bytes);
  // The pseudo header's sum; who cuts the packet derives each segment's checksum from it (udp_set_csum, GSO branch).
  StoreRaw16(udp + 6, FoldSum(SumBytes(ip + 12, 8) + SumTerm(kProtocolUdp) + SumTerm(udp_bytes)));
  StoreVxlanHeader(udp + 8, vni);
  return start;
}

}  // namespace netagent::engine
