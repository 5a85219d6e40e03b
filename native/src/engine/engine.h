#pragma once
#include <sys/epoll.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "counters.h"
#include "epoch.h"
#include "network.h"
#include "rx_path.h"
#include "syscall_result.h"
#include "tx_path.h"
#include "underlay.h"

namespace netagent::engine {

struct EngineOptions {
  std::vector<IpKey> addresses;  // local VTEPs; at least one
  uint16_t port = 4789;
  int source_ports = 16;    // 1 … Underlay::kMaxSourcePorts, per family
  bool tunnel_offload = true;  // hand superframes to the kernel whole, where it takes them
  uint32_t spin_micros = 50;  // longest time a thread looks for work before it sleeps; 0: sleep at once
};

/**
 * Owns the threads, one per direction, and what they share. All methods belong to the thread that made it; none of
 * them waits for traffic, and traffic never waits for them.
 */
class Engine {
 public:
  /** Opens the sockets in the caller's network namespace and starts the threads. */
  static SyscallResult Start(const EngineOptions& options, std::unique_ptr<Engine>& out);
  /** Stops the threads, closes everything. */
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /** Takes over the TAP queues on success only. EEXIST when the VNI is there already. */
  SyscallResult AddNetwork(uint32_t vni, uint32_t mtu, bool dont_fragment, std::vector<UniqueFd>& taps);
  /** False when there is no such network. Its TAP queues are closed when this returns. */
  bool RemoveNetwork(uint32_t vni);
  void PublishTable(std::unique_ptr<const ForwardingTable> table);
  /** Whether the kernel may put datagrams that it receives together. On at the start. */
  void SetGrouping(bool grouping) { underlay_.SetGrouping(grouping); }
  uint64_t ReadCounter(Counter counter) const;

 private:
  enum Direction : int { kTx = 0, kRx = 1, kDirections = 2 };

  /** Sleeps in epoll when looking for work has not paid for a while. */
  class Waiter;

  explicit Engine(const EngineOptions& options);
  void RunTx(TunnelDevice tunnel);
  void RunRx();
  void Publish(std::unique_ptr<Snapshot> next);
  void Wake();

  EngineOptions options_;
  Underlay underlay_;
  CounterCell counters_[kDirections];
  Published<Snapshot, kDirections> snapshot_;
  UniqueFd epoll_[kDirections];
  UniqueFd wake_;
  std::atomic<bool> stopping_{false};
  std::thread threads_[kDirections];
};

}  // namespace netagent::engine
