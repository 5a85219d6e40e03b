#pragma once
#include "parse.h"
#include "table.h"

namespace netagent::engine {

/** An ARP request or IPv6 neighbor solicitation, as the endpoint asked it. */
struct NeighborQuery {
  enum class Kind : uint8_t { kNone, kArp, kSolicitation, kIgnored };
  Kind kind = Kind::kNone;
  IpKey target;
};

constexpr size_t kMaxNeighborReply = 18 + 8 + 40 + 32;  // Ethernet with two VLAN tags, IPv6, advertisement with option

/**
 * kNone: an ordinary frame. kIgnored: ARP or neighbor discovery that asks nothing (reply, announcement, malformed): like
 * a VXLAN device with `proxy`, the engine sends none of it to other nodes (drivers/net/vxlan, arp_reduce, neigh_reduce).
 */
NeighborQuery ParseNeighborQuery(const FrameView& frame);

/** Writes the answer "`target` is at `mac`" to `out` (kMaxNeighborReply) and returns its length. */
size_t BuildNeighborReply(const FrameView& query, const NeighborQuery& parsed, uint64_t mac, uint8_t* out);

}  // namespace netagent::engine
