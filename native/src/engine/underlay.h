#pragma once
#include <netinet/in.h>

#include <vector>

#include "syscall_result.h"
#include "table.h"
#include "unique_fd.h"

namespace netagent::engine {

/**
 * The UDP sockets, in the network namespace of the thread that opens them. Per local address one that receives on the
 * VXLAN port, with UDP_GRO; per family a pool that only sends, each from a port of its own: the inner flow's
 * hash picks the socket, so that receivers and fabrics spread load (RFC 7348 §5). The last of a pool is for what must
 * not be cut into pieces on the way.
 */
class Underlay {
 public:
  static constexpr int kMaxSourcePorts = 32;

  static SyscallResult Open(const std::vector<IpKey>& addresses, uint16_t port, int source_ports, Underlay& out);

  const std::vector<UniqueFd>& receivers() const { return receivers_; }
  /** Whether the kernel may put datagrams of a flow together for us. */
  void SetGrouping(bool grouping) const;
  /** Empty when there is no local address of that family. */
  const std::vector<UniqueFd>& senders(bool v4) const { return v4 ? senders_v4_ : senders_v6_; }
  uint16_t port() const { return port_; }
  /** Local port of a sender. */
  uint16_t source_port(bool v4, size_t index) const { return (v4 ? ports_v4_ : ports_v6_)[index]; }
  /** The address peers know us by in IPv4; all zero without one. */
  const IpKey& source_v4() const { return source_v4_; }

 private:
  std::vector<UniqueFd> receivers_;
  std::vector<UniqueFd> senders_v4_;
  std::vector<UniqueFd> senders_v6_;
  std::vector<uint16_t> ports_v4_;
  std::vector<uint16_t> ports_v6_;
  IpKey source_v4_ = {};
  uint16_t port_ = 0;
};

/** `key` and `port` as a socket address; returns its length. */
socklen_t ToSockaddr(const IpKey& key, uint16_t port, sockaddr_storage& out);

}  // namespace netagent::engine
