#pragma once
#include <memory>
#include <vector>

#include "coalesce.h"
#include "counters.h"
#include "syscall_result.h"
#include "table.h"
#include "unique_fd.h"

namespace netagent::engine {

/** A network as this node has it: its VNI and the TAP device that stands in its namespace. */
class Network final : public FrameSink {
 public:
  /**
   * Takes over the queues of one TAP device (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR), makes them non-blocking and asks for
   * every offload the kernel has. `dont_fragment`: outer packets that are too big are lost, not cut. `cell`: counters
   * of the thread that will call Emit.
   */
  static SyscallResult Open(uint32_t vni, uint32_t mtu, bool dont_fragment, std::vector<UniqueFd>& taps,
                            CounterCell& cell, std::shared_ptr<Network>& out);

  uint32_t vni() const { return vni_; }
  bool dont_fragment() const { return dont_fragment_; }
  const std::vector<UniqueFd>& taps() const { return taps_; }

  /** Receiving thread only. */
  void Emit(const iovec* pieces, int count) override;
  /** A frame without any offload; any thread. */
  bool Write(const uint8_t* frame, size_t length) const;

 private:
  Network(uint32_t vni, uint32_t mtu, bool dont_fragment, bool udp_segmentation, std::vector<UniqueFd> taps,
          CounterCell& cell)
      : FrameSink(mtu, udp_segmentation),
        vni_(vni),
        dont_fragment_(dont_fragment),
        taps_(std::move(taps)),
        cell_(cell) {}

  uint32_t vni_;
  bool dont_fragment_;
  std::vector<UniqueFd> taps_;
  CounterCell& cell_;
};

/** Everything the threads look at, published as one. */
struct Snapshot {
  std::shared_ptr<const ForwardingTable> table;
  std::vector<std::shared_ptr<Network>> networks;  // by VNI

  Network* Find(uint32_t vni) const;
};

}  // namespace netagent::engine
