#pragma once
#include <napi.h>
#include <uv.h>

namespace netagent {

/** Calls back from the event loop while a descriptor can be read; keeps no loop alive. Stops with its owner. */
class ReadableWatch {
 public:
  ReadableWatch() = default;
  ReadableWatch(const ReadableWatch&) = delete;
  ReadableWatch& operator=(const ReadableWatch&) = delete;
  ~ReadableWatch() { Stop(); }

  bool active() const { return poll_ != nullptr; }
  /** 0, or an errno. The descriptor must stay open until Stop. */
  int Start(Napi::Env env, int fd, Napi::Function callback);
  void Stop();

 private:
  void OnReadable();

  uv_poll_t* poll_ = nullptr;
  Napi::FunctionReference callback_;
};

}  // namespace netagent
