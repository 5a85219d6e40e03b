#pragma once
#include <sys/socket.h>

#include <memory>

#include "coalesce.h"
#include "counters.h"
#include "network.h"
#include "underlay.h"

namespace netagent::engine {

/** VTEPs → TAP. Receives batches of datagrams (UDP_GRO), checks who may send what, coalesces, writes to the TAPs. */
class RxPath {
 public:
  RxPath(const Underlay& underlay, CounterCell& counters);

  /** Receives at most one batch from receiver `index` of the underlay. False when there was nothing. */
  bool Poll(const Snapshot& snapshot, size_t index);

 private:
  static constexpr int kMessages = 32;
  // While messages are large (superframes), fewer at a time: what was received is still in the cache when it is written.
  static constexpr int kLargeMessages = 4;
  static constexpr size_t kLargeBytes = 16 * 1024;
  static constexpr size_t kMessageRoom = 65536;
  static constexpr size_t kControlRoom = 128;

  struct Sender {
    IpKey address;
    uint8_t ecn;
  };
  void HandleMessage(const Snapshot& snapshot, const mmsghdr& message);
  void HandleDatagram(const Snapshot& snapshot, const Sender& sender, uint8_t* data, size_t length,
                      uint32_t inner_gso_size);

  const Underlay& underlay_;
  CounterCell& counters_;
  std::unique_ptr<uint8_t[]> buffers_;
  std::unique_ptr<Coalescer> coalescer_;
  mmsghdr messages_[kMessages] = {};
  iovec pieces_[kMessages];
  sockaddr_storage senders_[kMessages];
  alignas(cmsghdr) uint8_t control_[kMessages][kControlRoom];
  unsigned batch_ = kMessages;
};

}  // namespace netagent::engine
