#include "netns.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "syscall_error.h"

namespace netagent {
namespace {

constexpr char kOwnNamespace[] = "/proc/thread-self/ns/net";

/** Pins the namespace behind `fd`, or a new one for a negative one, by a bind mount on a new file at `path`. */
Napi::Value Pin(Napi::Env env, const std::string& path, int fd) {
  // O_EXCL: a leftover file or another agent's pin is never mounted over.
  UniqueFd file(open(path.c_str(), O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444));
  if (!file.valid()) return ThrowSyscallError(env, errno, "open", path);
  file.reset();
  int error = 0;
  const char* syscall = fd < 0 ? "unshare" : "setns";
  {
    NamespaceGuard guard;
    error = fd < 0 ? guard.EnterNew() : guard.Enter(fd);
    if (error == 0 && mount(kOwnNamespace, path.c_str(), "none", MS_BIND, nullptr) != 0) {
      error = errno;
      syscall = "mount";
    }
  }
  if (error != 0) {
    unlink(path.c_str());
    return ThrowSyscallError(env, error, syscall, path);
  }
  return env.Undefined();
}

/** createNetns(path): makes a namespace and pins it. */
Napi::Value CreateNetns(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 1 || !info[0].IsString()) return ThrowArgumentError(env, "createNetns(path)");
  return Pin(env, info[0].As<Napi::String>(), -1);
}

/** pinNetns(path, fd): pins a namespace that is there. */
Napi::Value PinNetns(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 2 || !info[0].IsString() || !info[1].IsNumber())
    return ThrowArgumentError(env, "pinNetns(path, fd)");
  const int fd = info[1].As<Napi::Number>().Int32Value();
  if (fd < 0) return ThrowArgumentError(env, "pinNetns: no descriptor");
  return Pin(env, info[0].As<Napi::String>(), fd);
}

/** removeNetns(path): unpins. The namespace dies once no process, socket or descriptor is left in it. */
Napi::Value RemoveNetns(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 1 || !info[0].IsString()) return ThrowArgumentError(env, "removeNetns(path)");
  const std::string path = info[0].As<Napi::String>();
  // EINVAL: the file is there but nothing is mounted, a creation that died half way. Removing it is the cure.
  if (umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0 && errno != EINVAL)
    return ThrowSyscallError(env, errno, "umount", path);
  if (unlink(path.c_str()) != 0) return ThrowSyscallError(env, errno, "unlink", path);
  return env.Undefined();
}

/** runInNetns(fd, action): calls `action` with the thread inside the namespace and returns its value. */
Napi::Value RunInNetns(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 2 || !info[0].IsNumber() || !info[1].IsFunction())
    return ThrowArgumentError(env, "runInNetns(fd, action)");
  const int fd = info[0].As<Napi::Number>().Int32Value();
  NamespaceGuard guard;
  if (const int error = guard.Enter(fd); error != 0)
    return ThrowSyscallError(env, error, "setns", "fd " + std::to_string(fd));
  return info[1].As<Napi::Function>().Call({});
}

/** bindSocket(netnsFd, stream, address, port, flags): a bound UDP or TCP socket's descriptor; the caller owns it. */
enum BindFlags : uint32_t { kReuseAddress = 1, kReusePort = 2, kFreeBind = 4, kV6Only = 8 };

Napi::Value BindSocket(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 5 || !info[0].IsNumber() || !info[1].IsBoolean() || !info[2].IsString() ||
      !info[3].IsNumber() || !info[4].IsNumber())
    return ThrowArgumentError(env, "bindSocket(netnsFd, stream, address, port, flags)");
  const std::string address = info[2].As<Napi::String>();
  const uint32_t port = info[3].As<Napi::Number>().Uint32Value();
  const uint32_t flags = info[4].As<Napi::Number>().Uint32Value();
  const bool stream = info[1].As<Napi::Boolean>();
  if (port > 65535) return ThrowArgumentError(env, "bindSocket: port is outside 0 … 65535");

  sockaddr_storage storage{};
  socklen_t length = 0;
  if (auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
      inet_pton(AF_INET, address.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<uint16_t>(port));
    length = sizeof(sockaddr_in);
  } else if (auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
             inet_pton(AF_INET6, address.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(port));
    length = sizeof(sockaddr_in6);
  } else {
    return ThrowArgumentError(env, "bindSocket: address is not an IP address");
  }

  const std::string object = address + " port " + std::to_string(port) + (stream ? " tcp" : " udp");
  UniqueFd fd;
  {
    NamespaceGuard guard;
    if (const int error = guard.Enter(info[0].As<Napi::Number>().Int32Value()); error != 0)
      return ThrowSyscallError(env, error, "setns", object);
    fd = UniqueFd(socket(storage.ss_family, (stream ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  }
  if (!fd.valid()) return ThrowSyscallError(env, errno, "socket", object);
  const auto enable = [&](int level, int option) {
    const int one = 1;
    return setsockopt(fd.get(), level, option, &one, sizeof one) == 0;
  };
  if (((flags & kReuseAddress) != 0 && !enable(SOL_SOCKET, SO_REUSEADDR)) ||
      ((flags & kReusePort) != 0 && !enable(SOL_SOCKET, SO_REUSEPORT)) ||
      ((flags & kFreeBind) != 0 && !enable(IPPROTO_IP, IP_FREEBIND)) ||
      ((flags & kV6Only) != 0 && !enable(IPPROTO_IPV6, IPV6_V6ONLY)))
    return ThrowSyscallError(env, errno, "setsockopt", object);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&storage), length) != 0)
    return ThrowSyscallError(env, errno, "bind", object);
  return Napi::Number::New(env, fd.release());
}

}  // namespace

int NamespaceGuard::Remember() {
  home_ = UniqueFd(open(kOwnNamespace, O_RDONLY | O_CLOEXEC));
  return home_.valid() ? 0 : errno;
}

int NamespaceGuard::Enter(int fd) {
  if (fd < 0) return 0;
  if (const int error = Remember(); error != 0) return error;
  if (setns(fd, CLONE_NEWNET) == 0) return 0;
  const int error = errno;
  home_.reset();
  return error;
}

int NamespaceGuard::EnterNew() {
  if (const int error = Remember(); error != 0) return error;
  if (unshare(CLONE_NEWNET) == 0) return 0;
  const int error = errno;
  home_.reset();
  return error;
}

NamespaceGuard::~NamespaceGuard() {
  const int error = errno;  // the guarded call's, which the caller reads after us
  if (home_.valid() && setns(home_.get(), CLONE_NEWNET) != 0) {
    perror("netagent: cannot return to the own network namespace");
    abort();
  }
  home_.reset();
  errno = error;
}

void InitNetns(Napi::Env env, Napi::Object exports) {
  exports.Set("createNetns", Napi::Function::New(env, CreateNetns, "createNetns"));
  exports.Set("pinNetns", Napi::Function::New(env, PinNetns, "pinNetns"));
  exports.Set("removeNetns", Napi::Function::New(env, RemoveNetns, "removeNetns"));
  exports.Set("runInNetns", Napi::Function::New(env, RunInNetns, "runInNetns"));
  exports.Set("bindSocket", Napi::Function::New(env, BindSocket, "bindSocket"));
}

}  // namespace netagent
