#include "tap_device.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include <cstring>
#include <string>

#include "netns.h"
#include "syscall_error.h"
#include "unique_fd.h"

namespace netagent {
namespace {

constexpr char kTunPath[] = "/dev/net/tun";

/**
 * openTap(netnsFd, name, flags, vnetHeaderBytes, offload): one queue of the TAP device `name`, made if absent.
 * `flags` are IFF_* bits beside IFF_TAP | IFF_NO_PI; a header size of 0 and an offload of 0 leave the defaults.
 * Returns the descriptor, non-blocking; the caller owns it. The device lives as long as its last queue, or with
 * IFF_PERSIST among the flags until it is deleted.
 */
Napi::Value OpenTap(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 5 || !info[0].IsNumber() || !info[1].IsString() || !info[2].IsNumber() ||
      !info[3].IsNumber() || !info[4].IsNumber())
    return ThrowArgumentError(env, "openTap(netnsFd, name, flags, vnetHeaderBytes, offload)");
  const std::string name = info[1].As<Napi::String>();
  const uint32_t extra = info[2].As<Napi::Number>().Uint32Value();
  int header_bytes = info[3].As<Napi::Number>().Int32Value();
  const uint32_t offload = info[4].As<Napi::Number>().Uint32Value();
  if (name.empty() || name.size() >= IFNAMSIZ) return ThrowArgumentError(env, "openTap: name has 1 to 15 bytes");
  if (extra > 0xffff) return ThrowArgumentError(env, "openTap: flags has 16 bits");

  UniqueFd fd;
  {
    // The device belongs to the namespace in which the character device is opened.
    NamespaceGuard guard;
    if (const int error = guard.Enter(info[0].As<Napi::Number>().Int32Value()); error != 0)
      return ThrowSyscallError(env, error, "setns", name);
    fd = UniqueFd(open(kTunPath, O_RDWR | O_CLOEXEC | O_NONBLOCK));
  }
  if (!fd.valid()) return ThrowSyscallError(env, errno, "open", kTunPath);
  ifreq request{};
  std::memcpy(request.ifr_name, name.c_str(), name.size());
  // What TUNGETIFF shows as a flag is asked for in a call of its own.
  request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | (extra & ~uint32_t{IFF_PERSIST}));
  if (ioctl(fd.get(), TUNSETIFF, &request) != 0) return ThrowSyscallError(env, errno, "TUNSETIFF", name);
  if ((extra & IFF_PERSIST) != 0 && ioctl(fd.get(), TUNSETPERSIST, 1ul) != 0)
    return ThrowSyscallError(env, errno, "TUNSETPERSIST", name);
  if (header_bytes > 0 && ioctl(fd.get(), TUNSETVNETHDRSZ, &header_bytes) != 0)
    return ThrowSyscallError(env, errno, "TUNSETVNETHDRSZ", name);
  if (offload > 0 && ioctl(fd.get(), TUNSETOFFLOAD, static_cast<unsigned long>(offload)) != 0)
    return ThrowSyscallError(env, errno, "TUNSETOFFLOAD", name);
  return Napi::Number::New(env, fd.release());
}

}  // namespace

void InitTapDevice(Napi::Env env, Napi::Object exports) {
  exports.Set("openTap", Napi::Function::New(env, OpenTap, "openTap"));
}

}  // namespace netagent
