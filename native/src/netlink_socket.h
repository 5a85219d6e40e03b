#pragma once
#include <napi.h>

#include "readable_watch.h"
#include "unique_fd.h"

namespace netagent {

/**
 * One netlink socket of one protocol in one network namespace.
 *
 * Calls are synchronous on purpose: the kernel handles a netlink request inside sendmsg, so the answers are
 * queued when send returns, and a round trip through the event loop would only make it slower. Message
 * framing, sequence numbers and errors are TypeScript's (src/kernel/netlink-socket.ts).
 */
class NetlinkSocket : public Napi::ObjectWrap<NetlinkSocket> {
 public:
  static void Init(Napi::Env env, Napi::Object exports);
  /** new NetlinkSocket(protocol, netnsFd, receiveBufferBytes); a negative fd means the current namespace. */
  explicit NetlinkSocket(const Napi::CallbackInfo& info);

 private:
  /** send(bytes): one datagram of one or more aligned messages. */
  Napi::Value Send(const Napi::CallbackInfo& info);
  /**
   * receive(buffer, timeoutMs): waits for the first datagram, then appends what else is queued while a
   * whole one surely fits. Returns the bytes written, 0 when nothing came in time.
   */
  Napi::Value Receive(const Napi::CallbackInfo& info);
  /** setMembership(group, member): joins or leaves a multicast group. */
  Napi::Value SetMembership(const Napi::CallbackInfo& info);
  /** listenAllNamespaces(): also hear notifications of every namespace that has an id in ours. */
  Napi::Value ListenAllNamespaces(const Napi::CallbackInfo& info);
  /** watch(callback): calls back from the event loop whenever something can be received; keeps no loop alive. */
  Napi::Value Watch(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  UniqueFd fd_;
  ReadableWatch watch_;  // behind fd_, so that it stops before the descriptor closes
};

}  // namespace netagent
