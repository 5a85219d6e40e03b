#include "datagram_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "syscall_error.h"

namespace netagent {
namespace {

constexpr char kObject[] = "datagram socket";
constexpr size_t kMaxSlotBytes = 65535;

}  // namespace

void DatagramSocket::Init(Napi::Env env, Napi::Object exports) {
  exports.Set("DatagramSocket", DefineClass(env, "DatagramSocket",
                                            {InstanceMethod("receive", &DatagramSocket::Receive),
                                             InstanceMethod("send", &DatagramSocket::Send),
                                             InstanceMethod("watch", &DatagramSocket::Watch),
                                             InstanceMethod("port", &DatagramSocket::Port),
                                             InstanceMethod("close", &DatagramSocket::Close)}));
}

DatagramSocket::DatagramSocket(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DatagramSocket>(info) {
  Napi::Env env = info.Env();
  if (info.Length() != 1 || !info[0].IsNumber()) {
    ThrowArgumentError(env, "new DatagramSocket(fd)");
    return;
  }
  UniqueFd fd(info[0].As<Napi::Number>().Int32Value());
  if (const int flags = fcntl(fd.get(), F_GETFL); flags < 0 || fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) < 0) {
    ThrowSyscallError(env, errno, "fcntl", kObject);
    return;
  }
  fd_ = std::move(fd);
}

Napi::Value DatagramSocket::Receive(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 3 || !info[0].IsTypedArray() || !info[1].IsNumber() || !info[2].IsTypedArray())
    return ThrowArgumentError(env, "receive(buffer, slotBytes, peers)");
  if (!fd_.valid()) return ThrowSyscallError(env, EBADF, "recvmmsg", kObject);
  auto buffer = info[0].As<Napi::Uint8Array>();
  const size_t slot = info[1].As<Napi::Number>().Uint32Value();
  if (info[2].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array)
    return ThrowArgumentError(env, "receive: peers is a Uint32Array");
  auto peers = info[2].As<Napi::Uint32Array>();
  if (slot == 0 || slot > kMaxSlotBytes) return ThrowArgumentError(env, "receive: slotBytes is 1 … 65535");
  const size_t count = std::min({kBatch, buffer.ByteLength() / slot, peers.ElementLength() / 3});
  for (size_t i = 0; i < count; i++) {
    vectors_[i] = {buffer.Data() + i * slot, slot};
    messages_[i].msg_hdr = {};
    messages_[i].msg_hdr.msg_iov = &vectors_[i];
    messages_[i].msg_hdr.msg_iovlen = 1;
    messages_[i].msg_hdr.msg_name = &peers_[i];
    messages_[i].msg_hdr.msg_namelen = sizeof peers_[i];
  }
  int received;
  do {
    received = recvmmsg(fd_.get(), messages_.data(), static_cast<unsigned>(count), MSG_DONTWAIT | MSG_TRUNC, nullptr);
  } while (received < 0 && errno == EINTR);
  if (received < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return Napi::Number::New(env, 0);
    return ThrowSyscallError(env, errno, "recvmmsg", kObject);
  }
  for (size_t i = 0; i < static_cast<size_t>(received); i++) {
    peers[3 * i] = messages_[i].msg_len;
    peers[3 * i + 1] = ntohl(peers_[i].sin_addr.s_addr);
    peers[3 * i + 2] = ntohs(peers_[i].sin_port);
  }
  return Napi::Number::New(env, received);
}

Napi::Value DatagramSocket::Send(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 4 || !info[0].IsTypedArray() || !info[1].IsTypedArray() || !info[2].IsTypedArray() ||
      !info[3].IsNumber() || info[1].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array ||
      info[2].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array)
    return ThrowArgumentError(env, "send(buffer, ends, peers, count)");
  if (!fd_.valid()) return ThrowSyscallError(env, EBADF, "sendmmsg", kObject);
  auto buffer = info[0].As<Napi::Uint8Array>();
  auto ends = info[1].As<Napi::Uint32Array>();
  auto peers = info[2].As<Napi::Uint32Array>();
  const size_t count = info[3].As<Napi::Number>().Uint32Value();
  if (count > kBatch || count > ends.ElementLength() || 2 * count > peers.ElementLength())
    return ThrowArgumentError(env, "send: count is larger than a batch, `ends` or `peers`");
  size_t start = 0;
  for (size_t i = 0; i < count; i++) {
    const size_t end = ends[i];
    if (end < start || end > buffer.ByteLength()) return ThrowArgumentError(env, "send: ends do not ascend within buffer");
    vectors_[i] = {buffer.Data() + start, end - start};
    peers_[i] = {};
    peers_[i].sin_family = AF_INET;
    peers_[i].sin_addr.s_addr = htonl(peers[2 * i]);
    peers_[i].sin_port = htons(static_cast<uint16_t>(peers[2 * i + 1]));
    messages_[i].msg_hdr = {};
    messages_[i].msg_hdr.msg_iov = &vectors_[i];
    messages_[i].msg_hdr.msg_iovlen = 1;
    messages_[i].msg_hdr.msg_name = &peers_[i];
    messages_[i].msg_hdr.msg_namelen = sizeof peers_[i];
    start = end;
  }
  for (size_t done = 0; done < count;) {
    const int sent = sendmmsg(fd_.get(), messages_.data() + done, static_cast<unsigned>(count - done), MSG_DONTWAIT);
    if (sent > 0) done += static_cast<size_t>(sent);
    else if (sent == 0 || errno != EINTR) done++;  // this one is lost; the next one's client may still be reached
  }
  return env.Undefined();
}

Napi::Value DatagramSocket::Port(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  sockaddr_in own{};
  socklen_t length = sizeof own;
  if (getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&own), &length) != 0)
    return ThrowSyscallError(env, errno, "getsockname", kObject);
  return Napi::Number::New(env, ntohs(own.sin_port));
}

Napi::Value DatagramSocket::Watch(const Napi::CallbackInfo& info) {
  return watch_.Watch(info, *this, fd_, kObject);
}

Napi::Value DatagramSocket::Close(const Napi::CallbackInfo& info) {
  watch_.Close(*this, fd_);
  return info.Env().Undefined();
}

}  // namespace netagent
