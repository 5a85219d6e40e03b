#include "tunnel_device.h"

#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "tunnel_frame.h"

namespace netagent::engine {
namespace {

// Of newer headers than the oldest we build with.
constexpr unsigned kTunUso4 = 0x20;
constexpr unsigned kTunUso6 = 0x40;
constexpr unsigned kTunTunnelGso = 0x80;
constexpr unsigned kTunTunnelChecksum = 0x100;
constexpr uint32_t kTcxIngress = 46;  // BPF_TCX_INGRESS, Linux 6.6

int Bpf(int command, bpf_attr& attributes) {
  return static_cast<int>(syscall(SYS_bpf, command, &attributes, sizeof attributes));
}

bpf_insn Instruction(int code, int to, int from, int16_t offset, int32_t value) {
  bpf_insn out{};
  out.code = static_cast<uint8_t>(code);
  out.dst_reg = static_cast<uint8_t>(to) & 15;
  out.src_reg = static_cast<uint8_t>(from) & 15;
  out.off = offset;
  out.imm = value;
  return out;
}

/**
 * uint32_t device;
 * if (bpf_skb_load_bytes(skb, 8, &device, 4) != 0) return TC_ACT_SHOT;
 * return bpf_redirect_neigh(ntohl(device), NULL, 0, 0);
 */
UniqueFd LoadProgram() {
  constexpr int kMove = BPF_ALU64 | BPF_MOV;
  constexpr int32_t kDrop = 2;  // TC_ACT_SHOT
  const bpf_insn program[] = {
      Instruction(kMove | BPF_K, 2, 0, 0, 8),
      Instruction(kMove | BPF_X, 3, 10, 0, 0),
      Instruction(BPF_ALU64 | BPF_ADD | BPF_K, 3, 0, 0, -8),
      Instruction(kMove | BPF_K, 4, 0, 0, 4),
      Instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_skb_load_bytes),
      Instruction(BPF_JMP | BPF_JNE | BPF_K, 0, 0, 7, 0),
      Instruction(BPF_LDX | BPF_MEM | BPF_W, 1, 10, -8, 0),
      Instruction(BPF_ALU | BPF_END | BPF_TO_BE, 1, 0, 0, 32),
      Instruction(kMove | BPF_K, 2, 0, 0, 0),
      Instruction(kMove | BPF_K, 3, 0, 0, 0),
      Instruction(kMove | BPF_K, 4, 0, 0, 0),
      Instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_neigh),
      Instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
      Instruction(kMove | BPF_K, 0, 0, 0, kDrop),
      Instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
  };
  bpf_attr load{};
  load.prog_type = BPF_PROG_TYPE_SCHED_CLS;
  load.insns = reinterpret_cast<uint64_t>(program);
  load.insn_cnt = sizeof program / sizeof program[0];
  load.license = reinterpret_cast<uint64_t>("Apache-2.0");
  return UniqueFd(Bpf(BPF_PROG_LOAD, load));
}

/** Up, without addresses of its own; what the host would send to it is dropped before it is queued. */
bool SetUp(int tap, const char* name) {
  sock_filter nothing = {BPF_RET | BPF_K, 0, 0, 0};
  sock_fprog filter = {1, &nothing};
  if (ioctl(tap, TUNATTACHFILTER, &filter) != 0) return false;
  const std::string setting = std::string("/proc/sys/net/ipv6/conf/") + name + "/disable_ipv6";
  // A host without IPv6 has no such file.
  if (UniqueFd file(open(setting.c_str(), O_WRONLY | O_CLOEXEC)); file.valid() && write(file.get(), "1", 1) != 1)
    return false;
  const UniqueFd any(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::memcpy(request.ifr_name, name, IFNAMSIZ);
  if (!any.valid() || ioctl(any.get(), SIOCGIFFLAGS, &request) != 0) return false;
  request.ifr_flags |= IFF_UP | IFF_NOARP;
  return ioctl(any.get(), SIOCSIFFLAGS, &request) == 0;
}

}  // namespace

TunnelDevice TunnelDevice::Open() {
  UniqueFd tap(open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  ifreq request{};
  std::strcpy(request.ifr_name, "na-engine%d");
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  if (!tap.valid() || ioctl(tap.get(), TUNSETIFF, &request) != 0) return {};
  int header_bytes = sizeof(TunnelVirtioHeader);
  const unsigned long offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | kTunUso4 | kTunUso6 |
                                 kTunTunnelGso | kTunTunnelChecksum;
  if (ioctl(tap.get(), TUNSETVNETHDRSZ, &header_bytes) != 0 || ioctl(tap.get(), TUNSETOFFLOAD, offloads) != 0 ||
      !SetUp(tap.get(), request.ifr_name))
    return {};
  const UniqueFd program = LoadProgram();
  if (!program.valid()) return {};
  const UniqueFd any(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!any.valid() || ioctl(any.get(), SIOCGIFINDEX, &request) != 0) return {};
  bpf_attr attach{};
  attach.link_create.prog_fd = static_cast<uint32_t>(program.get());
  attach.link_create.target_ifindex = static_cast<uint32_t>(request.ifr_ifindex);
  attach.link_create.attach_type = kTcxIngress;
  TunnelDevice out;
  out.program_ = UniqueFd(Bpf(BPF_LINK_CREATE, attach));
  out.tap_ = std::move(tap);
  return out;
}

int TunnelDevice::Write(const uint8_t* frame, size_t length) const {
  return write(tap_.get(), frame, length) < 0 ? errno : 0;
}

}  // namespace netagent::engine
