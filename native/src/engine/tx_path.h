#pragma once
#include <sys/socket.h>

#include <memory>
#include <vector>

#include "counters.h"
#include "network.h"
#include "parse.h"
#include "segment.h"
#include "tunnel_device.h"
#include "tunnel_frame.h"
#include "underlay.h"
#include "underlay_path.h"

namespace netagent::engine {

/**
 * TAP → VTEPs. Reads frames, answers what asks for an address, hands superframes to the kernel whole where it takes
 * them, else cuts them, and sends runs of equal datagrams to one VTEP as one message (UDP_SEGMENT), many messages at a
 * time.
 */
class TxPath {
 public:
  /** `tunnel` may be invalid. */
  TxPath(const Underlay& underlay, TunnelDevice tunnel, CounterCell& counters);

  /**
   * Reads at most one batch from one queue and sends it. False when the queue was empty; `broken` tells that it will
   * never have anything again (device deleted).
   */
  bool Poll(const Snapshot& snapshot, const Network& network, int tap, bool& broken);

 private:
  static constexpr int kBatchFrames = 64;
  static constexpr int kMaxRuns = 64;
  static constexpr int kMaxDatagrams = 64;        // UDP_MAX_SEGMENTS of older kernels
  static constexpr uint32_t kMaxRunBytes = 65'000;  // below what IP and UDP allow, either family
  static constexpr size_t kFrameRoom = 66 * 1024;  // headroom, virtio header, Ethernet, 64 KB of IP
  // With the virtio header that is read and no longer needed, enough for what goes in front of a whole superframe.
  static constexpr size_t kHeadroom = 64;
  static_assert(kHeadroom + sizeof(VirtioHeader) >= kTunnelHeadroom);
  static constexpr size_t kFrameArena = 4 * kFrameRoom;
  static constexpr size_t kHeaderArena = 256 * 1024;
  // A superframe fills its messages by itself: send while it is in the cache.
  static constexpr uint32_t kSendAtOnce = 16 * 1024;

  /** Datagrams of one size to one VTEP from one source port; only the last may be shorter. */
  struct Run {
    uint32_t vtep;
    uint32_t bytes;
    uint16_t size;
    uint16_t count;
    uint16_t pieces_used;
    uint8_t source;
    uint8_t ecn;
    bool closed;
    iovec pieces[2 * kMaxDatagrams];
  };

  void Handle(const Snapshot& snapshot, const Network& network, uint8_t* frame, uint32_t length,
              const VirtioHeader& header);
  bool SendWhole(const Snapshot& snapshot, const FrameView& frame, const VirtioHeader& header,
                 const SegmentPlan& plan, uint32_t vni, TunnelWay way, uint8_t* data);
  bool AnswerNeighbor(const Snapshot& snapshot, const Network& network, const FrameView& frame);
  Run* RunFor(const Snapshot& snapshot, uint32_t vtep, uint8_t source, uint8_t ecn, uint32_t size);
  void SendAll(const Snapshot& snapshot);
  void SendFrom(const Snapshot& snapshot, bool v4, int source);
  void SendSingly(int socket, const Run& run, const msghdr& message);
  void CountError(int error, uint32_t datagrams);

  const Underlay& underlay_;
  CounterCell& counters_;
  TunnelDevice tunnel_;
  UnderlayPaths paths_;
  uint16_t ip_id_ = 0;
  std::unique_ptr<uint8_t[]> frames_;
  std::unique_ptr<uint8_t[]> headers_;
  std::unique_ptr<Run[]> runs_;
  size_t headers_used_ = 0;
  int run_count_ = 0;
  uint64_t sources_v4_ = 0;  // bit per source port that this batch sends from
  uint64_t sources_v6_ = 0;
};

}  // namespace netagent::engine
