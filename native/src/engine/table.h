#pragma once
#include <netinet/in.h>

#include <memory>
#include <vector>

#include "bytes.h"

namespace netagent::engine {

/** An IPv4 address in its mapped form or an IPv6 address: one key for both families. */
struct IpKey {
  uint8_t bytes[16];

  static IpKey FromV4(const uint8_t* four);
  static IpKey FromV6(const uint8_t* sixteen);
  /** The address of a datagram's sender; all zero for other families. */
  static IpKey FromSockaddr(const sockaddr_storage& address);
  bool is_v4() const;
  bool operator==(const IpKey& other) const { return std::memcmp(bytes, other.bytes, 16) == 0; }
};

/**
 * What the cluster's tables say, as one immutable value: who owns a MAC address of a network (VTEP), and which MAC
 * address belongs to an IP address. Built on the JavaScript thread, read by the engine's threads.
 *
 * Encoding, all big endian, written by src/overlay/engine-table.ts:
 *   "nae1", u32 VTEPs, u32 forwarding entries, u32 neighbors
 *   VTEP:       16 bytes address, IPv4 mapped
 *   forwarding: u32 VNI, 6 bytes MAC, u16 zero, u32 VTEP index
 *   neighbor:   u32 VNI, 6 bytes MAC, u16 zero, 16 bytes address, IPv4 mapped
 */
class ForwardingTable {
 public:
  static constexpr uint32_t kNoVtep = 0xffffffff;
  static constexpr uint64_t kNoMac = ~0ull;

  /**
   * Null unless `encoded` is exactly one table. `seed` makes the hash unpredictable: peers choose the addresses.
   * Of two entries with one key the later wins.
   */
  static std::unique_ptr<const ForwardingTable> Decode(Bytes encoded, uint64_t seed);
  static std::unique_ptr<const ForwardingTable> Empty();

  /** Index of the VTEP that owns `mac` on network `vni`, or kNoVtep. */
  uint32_t FindVtep(uint32_t vni, uint64_t mac) const;
  /** MAC address of `ip` on network `vni`, or kNoMac. */
  uint64_t FindMac(uint32_t vni, const IpKey& ip) const;
  const IpKey& vtep(uint32_t index) const { return vteps_[index]; }
  size_t vtep_count() const { return vteps_.size(); }

 private:
  struct Forwarding {
    uint64_t mac;
    uint32_t vni;
    uint32_t vtep;  // kNoVtep: free slot
  };
  struct Neighbor {
    IpKey ip;
    uint64_t mac;  // kNoMac: free slot
    uint32_t vni;
  };
  size_t ForwardingSlot(uint32_t vni, uint64_t mac) const;
  size_t NeighborSlot(uint32_t vni, const IpKey& ip) const;

  uint64_t seed_ = 0;
  std::vector<IpKey> vteps_;
  // Open addressing, linear probing, at most half full.
  std::vector<Forwarding> forwarding_;
  std::vector<Neighbor> neighbors_;
};

}  // namespace netagent::engine
