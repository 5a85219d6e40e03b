#pragma once
#include <atomic>
#include <cstdint>

namespace netagent::engine {

// Name and meaning of every counter; the names are what JavaScript sees (src/kernel/engine.ts).
#define NETAGENT_ENGINE_COUNTERS(X)                                                        \
  X(txFrames)            /* inner frames sent to VTEPs, after segmentation */              \
  X(txBytes)             /* their bytes, inner Ethernet header included */                 \
  X(txSuperframes)       /* frames read from a TAP that had to be segmented */             \
  X(txWhole)             /* those of them that the kernel took whole, to segment itself */ \
  X(txSends)             /* messages handed to the kernel; txFrames ÷ txSends = batching */ \
  X(txAnswered)          /* ARP and neighbor solicitations answered from the table */      \
  X(txDropBroadcast)     /* broadcast or multicast: never leaves the node */               \
  X(txDropUnknownMac)    /* no VTEP owns the destination */                                \
  X(txDropUnknownIp)     /* ARP or neighbor solicitation for an address not in the table */ \
  X(txDropMalformed)     /* virtio header and frame contradict each other */               \
  X(txDropNoAddress)     /* no local address of the VTEP's family */                       \
  X(txDropTooBig)        /* kernel: exceeds the path MTU and may not be fragmented */      \
  X(txDropSend)          /* kernel: any other error */                                     \
  X(rxFrames)            /* inner frames received and accepted, before coalescing */       \
  X(rxBytes)             /* their bytes */                                                 \
  X(rxReceives)          /* messages taken from the kernel; rxFrames ÷ rxReceives = GRO */  \
  X(rxWrites)            /* frames written to TAPs; rxFrames ÷ rxWrites = coalescing */     \
  X(rxDropHeader)        /* not a VXLAN datagram the kernel would take */                  \
  X(rxDropTruncated)     /* larger than any buffer */                                      \
  X(rxDropUnknownVni)    /* no such network here */                                        \
  X(rxDropUnknownSource) /* nobody owns the inner source address */                        \
  X(rxDropWrongVtep)     /* the sender does not own the inner source address */            \
  X(rxDropChecksum)      /* inner checksum wrong where we must replace it */               \
  X(rxDropEcn)           /* congestion marked outside, not ECN-capable inside: RFC 6040 */  \
  X(rxDropTap)           /* the TAP did not take the frame */                              \
  X(wakeups)             /* times a thread went to sleep and came back */

enum class Counter {
#define NETAGENT_COUNTER_ENUM(name) name,
  NETAGENT_ENGINE_COUNTERS(NETAGENT_COUNTER_ENUM)
#undef NETAGENT_COUNTER_ENUM
      kCount
};

inline constexpr const char* kCounterNames[] = {
#define NETAGENT_COUNTER_NAME(name) #name,
    NETAGENT_ENGINE_COUNTERS(NETAGENT_COUNTER_NAME)
#undef NETAGENT_COUNTER_NAME
};

/** Counters of one thread: it alone writes, anybody reads and sums. No locked instruction on the frame path. */
class alignas(64) CounterCell {
 public:
  void Add(Counter counter, uint64_t amount = 1) {
    std::atomic<uint64_t>& cell = cells_[static_cast<int>(counter)];
    cell.store(cell.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
  }
  uint64_t Read(Counter counter) const {
    return cells_[static_cast<int>(counter)].load(std::memory_order_relaxed);
  }

 private:
  std::atomic<uint64_t> cells_[static_cast<int>(Counter::kCount)] = {};
};

}  // namespace netagent::engine
