#pragma once

#include "parse.h"
#include "virtio.h"

namespace netagent::engine {

constexpr size_t kMaxHeaderBytes = 256;  // Ethernet, VLAN, IP and TCP with all options; more is not segmented

/**
 * How a frame read from a TAP becomes frames of the wire. `count` 1 and `header_bytes` 0: it goes out as it is.
 * Otherwise each has its own first `header_bytes`, followed by up to `size` bytes of payload.
 */
struct SegmentPlan {
  uint32_t count = 0;
  uint32_t size = 0;
  uint16_t header_bytes = 0;
  uint16_t checksum_at = 0;  // offset of the transport checksum in the header
  uint64_t pseudo_sum = 0;   // pseudo header without the length
};

/**
 * Reads the virtio header of `frame`: segmentation and checksum work that the endpoint's kernel left to us.
 * A plain frame with an unfinished checksum is finished in place (`data` is `frame.data`, writable).
 * False: header and frame contradict each other, drop it.
 */
bool PlanSegments(const FrameView& frame, const VirtioHeader& header, uint8_t* data, SegmentPlan& out);

/**
 * Writes the header of segment `index` (0 … count − 1) to `out` (kMaxHeaderBytes) and returns its payload, a range of
 * the frame. As the kernel does it (tcp_gso_segment, inet_gso_segment): IP id counts up, FIN and PSH only
 * on the last, CWR only on the first, both checksums complete.
 */
Bytes BuildSegment(const FrameView& frame, const SegmentPlan& plan, uint32_t index, uint8_t* out);

}  // namespace netagent::engine
