#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace netagent::engine {

/**
 * One value that one thread publishes and others read without a lock (read-copy-update, quiescent states):
 * a reader says when it starts and stops looking; a replaced value is freed when every reader has stopped
 * or started anew since. Readers never wait for the publisher, nor it for them.
 */
template <typename T, int kReaders>
class Published {
 public:
  explicit Published(std::unique_ptr<const T> first) : value_(first.release()) {}
  ~Published() { delete value_.load(); }
  Published(const Published&) = delete;
  Published& operator=(const Published&) = delete;

  // Reader `index`. All four accesses are sequentially consistent: either the publisher sees the reader's mark, or
  // the reader sees the publisher's value.
  const T& Enter(int index) {
    marks_[index].epoch.store(epoch_.load());
    return *value_.load();
  }
  void Leave(int index) { marks_[index].epoch.store(0, std::memory_order_release); }

  // Publisher.
  const T& current() const { return *value_.load(std::memory_order_relaxed); }
  void Publish(std::unique_ptr<const T> next) {
    std::unique_ptr<const T> old(value_.exchange(next.release()));
    retired_.push_back({std::move(old), epoch_.fetch_add(1) + 1});
    Reclaim();
  }
  /** Frees what no reader can hold any more; true when nothing is left waiting. */
  bool Reclaim() {
    uint64_t oldest = ~0ull;
    for (const Mark& mark : marks_) {
      const uint64_t epoch = mark.epoch.load();
      if (epoch != 0 && epoch < oldest) oldest = epoch;
    }
    std::erase_if(retired_, [oldest](const Retired& value) { return value.epoch <= oldest; });
    return retired_.empty();
  }

 private:
  struct Retired {
    std::unique_ptr<const T> value;
    uint64_t epoch;  // readers that entered at this epoch or later hold something newer
  };
  struct alignas(64) Mark {
    std::atomic<uint64_t> epoch{0};  // 0: not looking
  };
  std::atomic<const T*> value_;
  std::atomic<uint64_t> epoch_{1};
  Mark marks_[kReaders];
  std::vector<Retired> retired_;
};

}  // namespace netagent::engine
