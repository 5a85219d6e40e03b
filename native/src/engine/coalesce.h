#pragma once
#include <sys/uio.h>

#include "parse.h"
#include "segment.h"
#include "virtio.h"

namespace netagent::engine {

/** What the transport checksum of a received frame is. */
enum class ChecksumState {
  kValid,
  /** Only the pseudo header's sum: the sending kernel left the rest to a device that was never there (T6). */
  kPartial,
  kNone,  // UDP over IPv4 without a checksum
  kWrong,
};
ChecksumState InspectChecksum(const FrameView& frame);

/** Where coalesced frames of one network go. */
class FrameSink {
 public:
  /** `pieces[0]` is the virtio header; the memory lasts for the call. */
  virtual void Emit(const iovec* pieces, int count) = 0;
  /** Largest IP packet of the network. */
  uint32_t mtu() const { return mtu_; }
  /** Whether superframes of UDP are understood (kGsoUdpL4, Linux 6.2). */
  bool udp_segmentation() const { return udp_segmentation_; }

 protected:
  FrameSink(uint32_t mtu, bool udp_segmentation) : mtu_(mtu), udp_segmentation_(udp_segmentation) {}
  ~FrameSink() = default;

 private:
  uint32_t mtu_;
  bool udp_segmentation_;
};

/**
 * Joins consecutive segments of a TCP flow (and equal UDP datagrams) into superframes, the inverse of segmentation and
 * with the rules of the kernel's GRO (tcp_gro_receive, inet_gro_receive), stricter where GRO would lose a
 * bit: all header bytes equal but those segmentation itself rewrites. Frames of one flow leave in the order they came.
 *
 * Added frames and their sinks must stay in memory until Flush.
 */
class Coalescer {
 public:
  /**
   * A TCP frame above the sink's MTU is a superframe that a kernel peer sent whole (T7) and is handed on as one.
   * `gso_size`: payload per datagram of a superframe of UDP if the sender's kernel told it, else 0.
   * False when the frame had to be dropped: wrong checksum where we would have replaced it by a right one.
   */
  bool Add(const FrameView& frame, uint32_t gso_size, FrameSink& sink);
  void Flush();

 private:
  static constexpr int kFlows = 16;     // open at once; more flows in one batch only coalesce less
  static constexpr int kMaxSegments = 64;

  struct Flow {
    FrameView first;
    FrameSink* sink = nullptr;
    uint32_t hash = 0;
    uint32_t size = 0;        // payload bytes of every segment but the last
    uint32_t payload = 0;     // bytes so far
    uint32_t next_sequence = 0;
    uint16_t count = 0;       // 0: free
    bool fixed_id = false;
    bool closed = false;      // nothing may follow: a short segment, PSH or FIN
    uint8_t last_flags = 0;
    iovec pieces[2 + kMaxSegments];
    VirtioHeader header;
    uint8_t header_bytes[kMaxHeaderBytes];
  };

  static bool MayOpen(const FrameView& frame, const FrameSink& sink);
  static bool MayJoin(const Flow& flow, const FrameView& frame);
  void Open(Flow& flow, const FrameView& frame, uint32_t hash, FrameSink& sink);
  static void Join(Flow& flow, const FrameView& frame);
  void Close(Flow& flow);
  Flow* Find(uint32_t hash, const FrameView& frame, const FrameSink& sink);

  int open_ = 0;
  int victim_ = 0;
  Flow flows_[kFlows];
};

}  // namespace netagent::engine
