#pragma once
#include <napi.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>

#include "readable_watch.h"
#include "unique_fd.h"

namespace netagent {

/**
 * A bound IPv4 UDP socket that is read and written many datagrams a system call. node's own takes one at a time with a
 * fresh 64 KiB buffer each, which costs more than answering a name.
 */
class DatagramSocket : public Napi::ObjectWrap<DatagramSocket> {
 public:
  static constexpr size_t kBatch = 32;

  static void Init(Napi::Env env, Napi::Object exports);
  /** new DatagramSocket(fd): takes the descriptor over, bound elsewhere, and makes it non-blocking. */
  explicit DatagramSocket(const Napi::CallbackInfo& info);

 private:
  /**
   * receive(buffer, slotBytes, peers): datagram i goes to `buffer` at i * slotBytes, its length (larger than
   * slotBytes when it was cut), address and port to `peers` at 3 * i. Returns how many came, 0 … kBatch.
   */
  Napi::Value Receive(const Napi::CallbackInfo& info);
  /**
   * send(buffer, ends, peers, count): datagram i is what lies before ends[i] in `buffer` and behind the one before;
   * address and port are at 2 * i of `peers`. What the kernel does not take at once is lost, as datagrams are.
   */
  Napi::Value Send(const Napi::CallbackInfo& info);
  /** watch(callback): calls back from the event loop whenever something can be received; keeps no loop alive. */
  Napi::Value Watch(const Napi::CallbackInfo& info);
  /** port(): the local one. */
  Napi::Value Port(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  UniqueFd fd_;
  ReadableWatch watch_;  // behind fd_, so that it stops before the descriptor closes
  std::array<mmsghdr, kBatch> messages_{};
  std::array<iovec, kBatch> vectors_{};
  std::array<sockaddr_in, kBatch> peers_{};
};

}  // namespace netagent
