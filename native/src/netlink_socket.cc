#include "netlink_socket.h"

#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

#include "netns.h"
#include "syscall_error.h"

namespace netagent {
namespace {

constexpr char kObject[] = "netlink socket";
// The kernel builds dump datagrams of at most 32 KiB; a longer single answer shows as MSG_TRUNC.
constexpr size_t kDatagramBytes = 32 * 1024;
constexpr int kMaxReceiveBuffer = 1 << 30;

size_t Align(size_t length) { return NLMSG_ALIGN(length); }

}  // namespace

void NetlinkSocket::Init(Napi::Env env, Napi::Object exports) {
  exports.Set("NetlinkSocket", DefineClass(env, "NetlinkSocket",
                                           {InstanceMethod("send", &NetlinkSocket::Send),
                                            InstanceMethod("receive", &NetlinkSocket::Receive),
                                            InstanceMethod("setMembership", &NetlinkSocket::SetMembership),
                                            InstanceMethod("listenAllNamespaces", &NetlinkSocket::ListenAllNamespaces),
                                            InstanceMethod("watch", &NetlinkSocket::Watch),
                                            InstanceMethod("close", &NetlinkSocket::Close)}));
}

NetlinkSocket::NetlinkSocket(const Napi::CallbackInfo& info) : Napi::ObjectWrap<NetlinkSocket>(info) {
  Napi::Env env = info.Env();
  if (info.Length() != 3 || !info[0].IsNumber() || !info[1].IsNumber() || !info[2].IsNumber()) {
    ThrowArgumentError(env, "new NetlinkSocket(protocol, netnsFd, receiveBufferBytes)");
    return;
  }
  const int protocol = info[0].As<Napi::Number>().Int32Value();
  const int buffer = info[2].As<Napi::Number>().Int32Value();
  if (buffer <= 0 || buffer > kMaxReceiveBuffer) {
    ThrowArgumentError(env, "NetlinkSocket: receiveBufferBytes is outside 1 … 2^30");
    return;
  }
  UniqueFd fd;
  {
    NamespaceGuard guard;
    if (const int error = guard.Enter(info[1].As<Napi::Number>().Int32Value()); error != 0) {
      ThrowSyscallError(env, error, "setns", kObject);
      return;
    }
    fd = UniqueFd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol));
  }
  if (!fd.valid()) {
    ThrowSyscallError(env, errno, "socket", kObject);
    return;
  }
  // FORCE goes past net.core.*mem_max and needs CAP_NET_ADMIN; without it the plain option is as good as it gets.
  for (const auto& [force, plain] : {std::pair{SO_RCVBUFFORCE, SO_RCVBUF}, std::pair{SO_SNDBUFFORCE, SO_SNDBUF}}) {
    if (setsockopt(fd.get(), SOL_SOCKET, force, &buffer, sizeof buffer) != 0 &&
        setsockopt(fd.get(), SOL_SOCKET, plain, &buffer, sizeof buffer) != 0) {
      ThrowSyscallError(env, errno, "setsockopt", kObject);
      return;
    }
  }
  // Each is a comfort that older kernels or other protocols lack; TypeScript lives without any of them.
  for (const int option : {NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK}) {
    const int one = 1;
    (void)setsockopt(fd.get(), SOL_NETLINK, option, &one, sizeof one);
  }
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    ThrowSyscallError(env, errno, "bind", kObject);
    return;
  }
  fd_ = std::move(fd);
}

Napi::Value NetlinkSocket::Send(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 1 || !info[0].IsTypedArray()) return ThrowArgumentError(env, "send(bytes)");
  if (!fd_.valid()) return ThrowSyscallError(env, EBADF, "send", kObject);
  const auto bytes = info[0].As<Napi::Uint8Array>();
  sockaddr_nl kernel{};
  kernel.nl_family = AF_NETLINK;
  ssize_t sent;
  do {
    sent = sendto(fd_.get(), bytes.Data(), bytes.ByteLength(), 0, reinterpret_cast<sockaddr*>(&kernel),
                  sizeof kernel);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) return ThrowSyscallError(env, errno, "send", kObject);
  return env.Undefined();
}

Napi::Value NetlinkSocket::Receive(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 2 || !info[0].IsTypedArray() || !info[1].IsNumber())
    return ThrowArgumentError(env, "receive(buffer, timeoutMs)");
  if (!fd_.valid()) return ThrowSyscallError(env, EBADF, "receive", kObject);
  auto buffer = info[0].As<Napi::Uint8Array>();
  const size_t capacity = buffer.ByteLength();
  if (capacity < kDatagramBytes) return ThrowArgumentError(env, "receive: buffer has at least 32 KiB");
  size_t filled = 0;
  bool waited = false;
  while (capacity - filled >= kDatagramBytes) {
    sockaddr_nl from{};
    iovec vector{buffer.Data() + filled, capacity - filled};
    msghdr message{};
    message.msg_name = &from;
    message.msg_namelen = sizeof from;
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    const ssize_t length = recvmsg(fd_.get(), &message, 0);
    if (length >= 0) {
      if ((message.msg_flags & MSG_TRUNC) != 0) return ThrowSyscallError(env, EMSGSIZE, "receive", kObject);
      // Other processes may send to our port; only the kernel (port 0) is believed.
      if (from.nl_pid == 0) filled = Align(filled + static_cast<size_t>(length));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
      // ENOBUFS: the queue overran and answers are missing, so what was read so far is worth nothing either.
      return ThrowSyscallError(env, errno, "receive", kObject);
    }
    const int timeout = info[1].As<Napi::Number>().Int32Value();
    if (filled > 0 || waited || timeout == 0) break;
    pollfd wait{fd_.get(), POLLIN, 0};
    if (poll(&wait, 1, timeout) < 0 && errno != EINTR) return ThrowSyscallError(env, errno, "poll", kObject);
    waited = true;
  }
  return Napi::Number::New(env, static_cast<double>(filled < capacity ? filled : capacity));
}

Napi::Value NetlinkSocket::SetMembership(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 2 || !info[0].IsNumber() || !info[1].IsBoolean())
    return ThrowArgumentError(env, "setMembership(group, member)");
  if (!fd_.valid()) return ThrowSyscallError(env, EBADF, "setsockopt", kObject);
  const int group = info[0].As<Napi::Number>().Int32Value();
  const int option = info[1].As<Napi::Boolean>() ? NETLINK_ADD_MEMBERSHIP : NETLINK_DROP_MEMBERSHIP;
  if (setsockopt(fd_.get(), SOL_NETLINK, option, &group, sizeof group) != 0)
    return ThrowSyscallError(env, errno, "setsockopt", "netlink group " + std::to_string(group));
  return env.Undefined();
}

Napi::Value NetlinkSocket::ListenAllNamespaces(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int one = 1;
  if (setsockopt(fd_.get(), SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, &one, sizeof one) != 0)
    return ThrowSyscallError(env, errno, "setsockopt", kObject);
  return env.Undefined();
}

Napi::Value NetlinkSocket::Watch(const Napi::CallbackInfo& info) {
  return watch_.Watch(info, *this, fd_, kObject);
}

Napi::Value NetlinkSocket::Close(const Napi::CallbackInfo& info) {
  watch_.Close(*this, fd_);
  return info.Env().Undefined();
}

}  // namespace netagent
