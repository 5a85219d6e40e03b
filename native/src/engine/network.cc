#include "network.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include <algorithm>

namespace netagent::engine {
namespace {

// Linux 6.2; older headers lack them.
constexpr unsigned kTunUso4 = 0x20;
constexpr unsigned kTunUso6 = 0x40;

}  // namespace

SyscallResult Network::Open(uint32_t vni, uint32_t mtu, bool dont_fragment, std::vector<UniqueFd>& taps,
                            CounterCell& cell, std::shared_ptr<Network>& out) {
  const std::string object = "TAP of VNI " + std::to_string(vni);
  bool udp_segmentation = true;
  for (const UniqueFd& tap : taps) {
    ifreq request{};
    if (ioctl(tap.get(), TUNGETIFF, &request) != 0) return SyscallResult::Failed("TUNGETIFF", object);
    if ((request.ifr_flags & IFF_TAP) == 0 || (request.ifr_flags & IFF_VNET_HDR) == 0 ||
        (request.ifr_flags & IFF_NO_PI) == 0) {
      errno = EINVAL;
      return SyscallResult::Failed("TUNGETIFF", object);
    }
    const int flags = fcntl(tap.get(), F_GETFL);
    if (flags < 0 || fcntl(tap.get(), F_SETFL, flags | O_NONBLOCK) != 0)
      return SyscallResult::Failed("fcntl", object);
    int header_bytes = sizeof(VirtioHeader);
    if (ioctl(tap.get(), TUNSETVNETHDRSZ, &header_bytes) != 0)
      return SyscallResult::Failed("TUNSETVNETHDRSZ", object);
    const unsigned long offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    if (ioctl(tap.get(), TUNSETOFFLOAD, offloads | kTunUso4 | kTunUso6) == 0) continue;
    udp_segmentation = false;
    if (ioctl(tap.get(), TUNSETOFFLOAD, offloads) != 0) return SyscallResult::Failed("TUNSETOFFLOAD", object);
  }
  out = std::shared_ptr<Network>(new Network(vni, mtu, dont_fragment, udp_segmentation, std::move(taps), cell));
  return SyscallResult::Ok();
}

void Network::Emit(const iovec* pieces, int count) {
  // A full or closed device is the endpoint's loss, as with a full veth queue: counted, never retried.
  const ssize_t written = writev(taps_[0].get(), pieces, count);
  cell_.Add(written < 0 ? Counter::rxDropTap : Counter::rxWrites);
}

bool Network::Write(const uint8_t* frame, size_t length) const {
  VirtioHeader header{};
  const iovec pieces[2] = {{&header, sizeof header}, {const_cast<uint8_t*>(frame), length}};
  return writev(taps_[0].get(), pieces, 2) >= 0;
}

Network* Snapshot::Find(uint32_t vni) const {
  const auto found = std::lower_bound(networks.begin(), networks.end(), vni,
                                      [](const auto& network, uint32_t key) { return network->vni() < key; });
  return found != networks.end() && (*found)->vni() == vni ? found->get() : nullptr;
}

}  // namespace netagent::engine
