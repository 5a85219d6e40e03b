#pragma once
#include "bytes.h"

namespace netagent::engine {

constexpr size_t kEthernetBytes = 14;
constexpr size_t kVxlanBytes = 8;
constexpr uint16_t kEtherTypeIpv4 = 0x0800;
constexpr uint16_t kEtherTypeArp = 0x0806;
constexpr uint16_t kEtherTypeIpv6 = 0x86dd;
constexpr uint8_t kProtocolTcp = 6;
constexpr uint8_t kProtocolUdp = 17;
constexpr uint8_t kProtocolIcmpv6 = 58;

/** TCP flags, RFC 9293 §3.1, byte 13 of the header. */
constexpr uint8_t kTcpFin = 0x01;
constexpr uint8_t kTcpPsh = 0x08;
constexpr uint8_t kTcpAck = 0x10;
constexpr uint8_t kTcpEce = 0x40;
constexpr uint8_t kTcpCwr = 0x80;

/**
 * Where the headers of an Ethernet frame lie. Made only by ParseFrame, so every offset is inside the frame and
 * nobody downstream checks again:
 * `kNone`: Ethernet only (or an IP packet that contradicts itself); `kIp`: `l3` … `l4` is a whole IP header with
 * its extensions and the packet ends at `end`; `kTcp`, `kUdp`: not a fragment, `l4` … `payload` is the
 * whole transport header, for UDP its length field equals what IP says.
 */
struct FrameView {
  enum class Kind : uint8_t { kNone, kIp, kTcp, kUdp };

  const uint8_t* data = nullptr;
  uint32_t length = 0;     // of the frame, padding included
  uint32_t end = 0;        // offset behind the IP packet; ≤ length
  uint16_t l3 = 0;         // offset of what the last VLAN tag or the Ethernet header announces
  uint16_t l4 = 0;
  uint16_t payload = 0;
  uint16_t ether_type = 0;
  uint8_t ip_version = 0;  // 4, 6, or 0 when not IP
  uint8_t protocol = 0;    // after IPv6 extension headers
  Kind kind = Kind::kNone;

  Bytes bytes() const { return {data, length}; }
  uint32_t payload_length() const { return end - payload; }
  uint8_t ecn() const {
    if (kind == Kind::kNone || ip_version == 0) return 0;
    return ip_version == 4 ? data[l3 + 1] & 3 : (data[l3 + 1] >> 4) & 3;
  }
};

/** False when `bytes` is shorter than an Ethernet header; everything else gives a view of some kind. */
bool ParseFrame(Bytes bytes, FrameView& out);

/** Sum of addresses, protocol and `l4_length` (RFC 9293 §3.1, RFC 8200 §8.1); the view is of kind kIp or above. */
uint64_t PseudoHeaderSum(const FrameView& frame, uint32_t l4_length);

/** Hash of addresses and, for TCP and UDP, ports; of the MAC addresses when it is not IP. One flow, one value. */
uint32_t FlowHash(const FrameView& frame);

/** Writes flags and VNI, RFC 7348 §5. */
inline void StoreVxlanHeader(uint8_t* at, uint32_t vni) {
  Store32(at, 0x08000000);
  Store32(at + 4, vni << 8);
}

/**
 * The VNI, or -1 when the datagram is no VXLAN frame the kernel would take: flag I missing, any reserved bit set
 * (drivers/net/vxlan, vxlan_rcv: unparsed flags), or no room for an Ethernet header.
 */
inline int32_t ParseVxlanHeader(Bytes datagram) {
  if (datagram.size() < kVxlanBytes + kEthernetBytes) return -1;
  if (Load32(datagram.data()) != 0x08000000) return -1;
  const uint32_t word = Load32(datagram.data() + 4);
  return (word & 0xff) != 0 ? -1 : static_cast<int32_t>(word >> 8);
}

}  // namespace netagent::engine
