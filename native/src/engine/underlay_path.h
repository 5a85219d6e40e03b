#pragma once
#include <cstdint>

#include "table.h"
#include "unique_fd.h"

namespace netagent::engine {

/** Where the kernel would send a datagram for a VTEP just now. */
struct UnderlayPath {
  uint32_t ifindex = 0;  // 0: only a socket may send it
  uint32_t mtu = 0;      // of the path, as far as it is known
};

/**
 * Asks the kernel for paths, and again when an answer is a second old. Owned by one thread. IPv4 only.
 *
 * A host with IPsec policies has no path here: a superframe handed over whole would go past them, unprotected.
 */
class UnderlayPaths {
 public:
  /** In the caller's network namespace; `source` is our VTEP. */
  explicit UnderlayPaths(const IpKey& source);
  UnderlayPath Find(const IpKey& vtep);

 private:
  static constexpr int kSlots = 256;  // a collision only means asking more often
  struct Slot {
    IpKey vtep = {};
    int64_t asked_ms = -1;
    UnderlayPath path;
  };
  UnderlayPath Ask(const IpKey& vtep) const;
  uint32_t AskDevice(const IpKey& vtep) const;
  uint32_t AskMtu(const IpKey& vtep) const;
  bool HasPolicies() const;

  IpKey source_;
  UniqueFd routes_;
  UniqueFd policies_;  // invalid: the kernel has no IPsec
  bool policies_known_ = false;
  Slot slots_[kSlots];
};

}  // namespace netagent::engine
