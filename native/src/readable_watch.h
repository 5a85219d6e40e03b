#pragma once
#include <napi.h>
#include <uv.h>

#include "unique_fd.h"

namespace netagent {

/** Calls back from the event loop while a descriptor can be read; keeps no loop alive. Stops with its owner. */
class ReadableWatch {
 public:
  ReadableWatch() = default;
  ReadableWatch(const ReadableWatch&) = delete;
  ReadableWatch& operator=(const ReadableWatch&) = delete;
  ~ReadableWatch() { Stop(); }

  /**
   * The method `watch(callback)` of the JavaScript object that owns `fd` and calls itself `name`; the object is not
   * garbage until Close.
   */
  Napi::Value Watch(const Napi::CallbackInfo& info, Napi::Reference<Napi::Object>& owner, const UniqueFd& fd,
                    const char* name);
  /** Ends the watch, if there is one, and then closes the descriptor. */
  void Close(Napi::Reference<Napi::Object>& owner, UniqueFd& fd);

 private:
  /** 0, or an errno. The descriptor must stay open until Stop. */
  int Start(Napi::Env env, int fd, Napi::Function callback);
  void Stop();
  void OnReadable();

  uv_poll_t* poll_ = nullptr;
  Napi::FunctionReference callback_;
};

}  // namespace netagent
