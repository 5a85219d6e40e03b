#include "engine.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

namespace netagent::engine {
namespace {

constexpr uint64_t kWakeEvent = ~0ull;
constexpr int kMaxEvents = 64;

uint64_t NowMicros() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
}

uint64_t TapEvent(uint32_t vni, size_t queue) { return static_cast<uint64_t>(vni) << 8 | queue; }

}  // namespace

/**
 * Adaptive spinning with KVM's rule for halt polling (virt/kvm/kvm_main.c, kvm_vcpu_halt): a sleep that was shorter
 * than the limit would have been better spent looking, so look longer next time; a long one was right, look less.
 * An idle engine therefore costs nothing, and a busy one is rarely woken.
 */
class Engine::Waiter {
 public:
  Waiter(int epoll, uint32_t limit_micros, CounterCell& counters)
      : epoll_(epoll), limit_(limit_micros), counters_(counters) {}

  void Worked() { idle_since_ = 0; }

  /** Called when there was nothing to do. Returns the number of events, 0 when the caller should look again itself. */
  int Idle(epoll_event* events) {
    if (budget_ > 0) {
      const uint64_t now = NowMicros();
      if (idle_since_ == 0) idle_since_ = now;
      if (now - idle_since_ < budget_) {
        // Others on this processor go first: on a small machine they are the endpoints we wait for.
        sched_yield();
        return 0;
      }
    }
    const uint64_t before = NowMicros();
    const int count = epoll_wait(epoll_, events, kMaxEvents, -1);
    counters_.Add(Counter::wakeups);
    const uint64_t slept = NowMicros() - before;
    if (slept < limit_) {
      budget_ = std::min(limit_, std::max(kFirstBudget, budget_ * 2));
    } else {
      budget_ = budget_ / 2 < kFirstBudget ? 0 : budget_ / 2;
    }
    idle_since_ = 0;
    return count;
  }

 private:
  static constexpr uint32_t kFirstBudget = 10;
  int epoll_;
  uint32_t limit_;
  CounterCell& counters_;
  uint32_t budget_ = 0;
  uint64_t idle_since_ = 0;
};

SyscallResult Engine::Start(const EngineOptions& options, std::unique_ptr<Engine>& out) {
  std::unique_ptr<Engine> engine(new Engine(options));
  if (SyscallResult result =
          Underlay::Open(options.addresses, options.port, options.source_ports, engine->underlay_);
      !result.ok())
    return result;
  engine->wake_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!engine->wake_.valid()) return SyscallResult::Failed("eventfd", "engine");
  for (UniqueFd& epoll : engine->epoll_) {
    epoll = UniqueFd(epoll_create1(EPOLL_CLOEXEC));
    epoll_event event{EPOLLIN, {.u64 = kWakeEvent}};
    if (!epoll.valid() || epoll_ctl(epoll.get(), EPOLL_CTL_ADD, engine->wake_.get(), &event) != 0)
      return SyscallResult::Failed("epoll", "engine");
  }
  for (size_t i = 0; i < engine->underlay_.receivers().size(); i++) {
    epoll_event event{EPOLLIN, {.u64 = i}};
    if (epoll_ctl(engine->epoll_[kRx].get(), EPOLL_CTL_ADD, engine->underlay_.receivers()[i].get(), &event) != 0)
      return SyscallResult::Failed("epoll_ctl", "engine");
  }
  // Signals are JavaScript's: none may be delivered to these threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  engine->threads_[kTx] = std::thread(&Engine::RunTx, engine.get(),
                                      options.tunnel_offload ? TunnelDevice::Open() : TunnelDevice());
  engine->threads_[kRx] = std::thread(&Engine::RunRx, engine.get());
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_setname_np(engine->threads_[kTx].native_handle(), "engine-tx");
  pthread_setname_np(engine->threads_[kRx].native_handle(), "engine-rx");
  out = std::move(engine);
  return SyscallResult::Ok();
}

Engine::Engine(const EngineOptions& options)
    : options_(options), snapshot_([] {
        auto first = std::make_unique<Snapshot>();
        first->table = ForwardingTable::Empty();
        return first;
      }()) {}

Engine::~Engine() {
  stopping_.store(true);
  if (wake_.valid()) Wake();
  for (std::thread& thread : threads_)
    if (thread.joinable()) thread.join();
}

SyscallResult Engine::AddNetwork(uint32_t vni, uint32_t mtu, bool dont_fragment, std::vector<UniqueFd>& taps) {
  const Snapshot& current = snapshot_.current();
  if (current.Find(vni) != nullptr) {
    errno = EEXIST;
    return SyscallResult::Failed("addNetwork", "VNI " + std::to_string(vni));
  }
  std::shared_ptr<Network> network;
  if (SyscallResult result = Network::Open(vni, mtu, dont_fragment, taps, counters_[kRx], network); !result.ok())
    return result;
  auto next = std::make_unique<Snapshot>(current);
  const auto place = std::lower_bound(next->networks.begin(), next->networks.end(), vni,
                                      [](const auto& other, uint32_t key) { return other->vni() < key; });
  next->networks.insert(place, network);
  Publish(std::move(next));
  // Only now: an event names a network that the snapshot has.
  for (size_t i = 0; i < network->taps().size(); i++) {
    epoll_event event{EPOLLIN, {.u64 = TapEvent(vni, i)}};
    epoll_ctl(epoll_[kTx].get(), EPOLL_CTL_ADD, network->taps()[i].get(), &event);
  }
  return SyscallResult::Ok();
}

bool Engine::RemoveNetwork(uint32_t vni) {
  auto next = std::make_unique<Snapshot>(snapshot_.current());
  const size_t removed =
      std::erase_if(next->networks, [vni](const auto& network) { return network->vni() == vni; });
  if (removed == 0) return false;
  Publish(std::move(next));
  // A thread holds a snapshot for one batch at most; the last of them closes the queues.
  while (!snapshot_.Reclaim()) sched_yield();
  return true;
}

void Engine::PublishTable(std::unique_ptr<const ForwardingTable> table) {
  auto next = std::make_unique<Snapshot>(snapshot_.current());
  next->table = std::move(table);
  Publish(std::move(next));
}

uint64_t Engine::ReadCounter(Counter counter) const {
  uint64_t sum = 0;
  for (const CounterCell& cell : counters_) sum += cell.Read(counter);
  return sum;
}

void Engine::Publish(std::unique_ptr<Snapshot> next) { snapshot_.Publish(std::move(next)); }

void Engine::Wake() {
  const uint64_t one = 1;
  // The counter stays up, so that every thread sees it however late it looks.
  [[maybe_unused]] const ssize_t written = write(wake_.get(), &one, sizeof one);
}

void Engine::RunTx(TunnelDevice tunnel) {
  TxPath path(underlay_, std::move(tunnel), counters_[kTx]);
  Waiter waiter(epoll_[kTx].get(), options_.spin_micros, counters_[kTx]);
  epoll_event events[kMaxEvents];
  while (!stopping_.load(std::memory_order_relaxed)) {
    bool worked = false;
    {
      const Snapshot& snapshot = snapshot_.Enter(kTx);
      const auto poll = [&](const Network& network, size_t queue) {
        bool broken = false;
        worked |= path.Poll(snapshot, network, static_cast<int>(queue), broken);
        // A deleted device reports an error for ever: stop listening, its owner will remove the network.
        if (broken) epoll_ctl(epoll_[kTx].get(), EPOLL_CTL_DEL, network.taps()[queue].get(), nullptr);
      };
      if (snapshot.networks.size() == 1 && snapshot.networks[0]->taps().size() == 1) {
        poll(*snapshot.networks[0], 0);
      } else {
        const int count = epoll_wait(epoll_[kTx].get(), events, kMaxEvents, 0);
        for (int i = 0; i < count; i++) {
          if (events[i].data.u64 == kWakeEvent) continue;
          const Network* network = snapshot.Find(static_cast<uint32_t>(events[i].data.u64 >> 8));
          const size_t queue = events[i].data.u64 & 0xff;
          if (network != nullptr && queue < network->taps().size()) poll(*network, queue);
        }
      }
      snapshot_.Leave(kTx);
    }
    if (worked) {
      waiter.Worked();
    } else {
      waiter.Idle(events);
    }
  }
}

void Engine::RunRx() {
  RxPath path(underlay_, counters_[kRx]);
  Waiter waiter(epoll_[kRx].get(), options_.spin_micros, counters_[kRx]);
  epoll_event events[kMaxEvents];
  while (!stopping_.load(std::memory_order_relaxed)) {
    bool worked = false;
    const Snapshot& snapshot = snapshot_.Enter(kRx);
    for (size_t i = 0; i < underlay_.receivers().size(); i++) worked |= path.Poll(snapshot, i);
    snapshot_.Leave(kRx);
    if (worked) {
      waiter.Worked();
    } else {
      waiter.Idle(events);
    }
  }
}

}  // namespace netagent::engine
