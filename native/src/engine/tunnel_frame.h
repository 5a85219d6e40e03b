#pragma once
#include "parse.h"
#include "segment.h"
#include "table.h"
#include "virtio.h"

namespace netagent::engine {

/**
 * What a TAP with TUN_F_UDP_TUNNEL_GSO expects before a frame: virtio_net_hdr_v1_hash_tunnel of <linux/virtio_net.h>,
 * Linux 6.17. Host byte order is the header's: little endian.
 */
struct TunnelVirtioHeader {
  VirtioHeader basic;
  uint16_t buffers;
  uint16_t hash[4];
  uint16_t outer_transport;  // offsets of the outer UDP and the inner IP header
  uint16_t inner_network;
};
static_assert(sizeof(TunnelVirtioHeader) == 24);

constexpr size_t kOuterBytes = kEthernetBytes + 20 + 8 + kVxlanBytes;
/** What BuildTunnelFrame writes before a frame. */
constexpr size_t kTunnelHeadroom = sizeof(TunnelVirtioHeader) + kOuterBytes;

/** The way of a superframe through the underlay, IPv4. */
struct TunnelWay {
  IpKey source;
  IpKey destination;
  uint16_t source_port;
  uint16_t destination_port;
  uint32_t ifindex;  // of the device it leaves by; goes where the outer Ethernet source address would be
  uint16_t ip_id;    // of the first segment
  uint8_t ecn;
};

/** Whether a superframe (`plan` of PlanSegments) fits an outer packet as it is. */
bool FitsTunnelFrame(const FrameView& frame, const SegmentPlan& plan);

/**
 * Writes everything that makes a superframe one VXLAN packet that the kernel or a device will cut: kTunnelHeadroom bytes
 * that end where `frame` (writable, as `data`) begins. Returns where they begin. Both checksums stay unfinished.
 */
uint8_t* BuildTunnelFrame(const FrameView& frame, const VirtioHeader& header, const SegmentPlan& plan, uint32_t vni,
                          const TunnelWay& way, uint8_t* data);

}  // namespace netagent::engine
