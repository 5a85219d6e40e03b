#pragma once
#include <cstddef>
#include <cstdint>

#include "unique_fd.h"

namespace netagent::engine {

/**
 * Hands superframes to the kernel whole, as VXLAN packets that are cut where the kernel's own VXLAN device would have
 * them cut: by the network card, or not at all on a virtual link. A TAP device in the underlay's namespace with UDP
 * tunnel offload (Linux 6.17), and behind it a program of a few instructions that sends what we write out of the
 * device named in it, with a neighbor's address. Nothing of it passes the host's FORWARD or OUTPUT rules.
 *
 * It dies with its descriptors. Where the kernel lacks something, or forbids it, there is none and the engine segments.
 */
class TunnelDevice {
 public:
  /** In the caller's network namespace. Invalid when the kernel cannot. */
  static TunnelDevice Open();

  bool valid() const { return program_.valid(); }
  /** 0, or the errno; `frame` as of BuildTunnelFrame. */
  int Write(const uint8_t* frame, size_t length) const;

 private:
  UniqueFd tap_;
  UniqueFd program_;  // its attachment: a link
};

}  // namespace netagent::engine
