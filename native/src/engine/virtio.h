#pragma once
#include <cstdint>

namespace netagent::engine {

// <linux/virtio_net.h> is not C++ (a member is called `class`), hence these; VIRTIO 1.2 §5.1.6, host byte order.

/** What comes before every frame of a TAP with IFF_VNET_HDR. */
struct VirtioHeader {
  uint8_t flags;
  uint8_t gso_type;
  uint16_t header_bytes;
  uint16_t gso_size;
  uint16_t checksum_start;
  uint16_t checksum_offset;
};
static_assert(sizeof(VirtioHeader) == 10);

/** The field at checksum_start + checksum_offset holds a sum so far; the rest of it is the reader's to do. */
constexpr uint8_t kVirtioNeedsChecksum = 1;

constexpr uint8_t kGsoNone = 0;
constexpr uint8_t kGsoTcpV4 = 1;
constexpr uint8_t kGsoTcpV6 = 4;
constexpr uint8_t kGsoUdpL4 = 5;  // Linux 6.2
constexpr uint8_t kGsoEcn = 0x80;  // beside a TCP type: the first segment has CWR set

}  // namespace netagent::engine
