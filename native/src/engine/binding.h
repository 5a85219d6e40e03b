#pragma once
#include <napi.h>

#include <memory>

#include "engine.h"

namespace netagent::engine {

/** The class `Engine` of the addon; its typed face is src/kernel/engine.ts. */
class EngineBinding final : public Napi::ObjectWrap<EngineBinding> {
 public:
  static void Init(Napi::Env env, Napi::Object exports);
  explicit EngineBinding(const Napi::CallbackInfo& info);

 private:
  Napi::Value AddNetwork(const Napi::CallbackInfo& info);
  Napi::Value RemoveNetwork(const Napi::CallbackInfo& info);
  Napi::Value PublishTable(const Napi::CallbackInfo& info);
  Napi::Value SetGrouping(const Napi::CallbackInfo& info);
  Napi::Value Counters(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
  /** False, with a JavaScript error pending, after close(). */
  bool Open(Napi::Env env) const;

  std::unique_ptr<Engine> engine_;
};

}  // namespace netagent::engine
