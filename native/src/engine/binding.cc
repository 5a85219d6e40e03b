#include "binding.h"

#include <fcntl.h>
#include <sys/random.h>

#include <algorithm>

#include "netns.h"
#include "syscall_error.h"

namespace netagent::engine {
namespace {

constexpr size_t kMaxAddresses = 16;
constexpr size_t kMaxTaps = 64;

Napi::Value Throw(Napi::Env env, const SyscallResult& result) {
  return ThrowSyscallError(env, result.error, result.syscall, result.object);
}

/** A property in `low` … `high`. */
bool ReadNumber(const Napi::Object& options, const char* name, uint32_t low, uint32_t high, uint32_t& out) {
  const Napi::Value value = options.Get(name);
  if (!value.IsNumber()) return false;
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= low && number <= high)) return false;
  out = static_cast<uint32_t>(number);
  return out == number;
}

bool ReadAddresses(const Napi::Object& options, std::vector<IpKey>& out) {
  const Napi::Value value = options.Get("addresses");
  if (!value.IsArray()) return false;
  const Napi::Array list = value.As<Napi::Array>();
  if (list.Length() == 0 || list.Length() > kMaxAddresses) return false;
  for (uint32_t i = 0; i < list.Length(); i++) {
    const Napi::Value item = list.Get(i);
    if (!item.IsTypedArray() || item.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) return false;
    const auto bytes = item.As<Napi::Uint8Array>();
    if (bytes.ByteLength() != 4 && bytes.ByteLength() != 16) return false;
    out.push_back(bytes.ByteLength() == 4 ? IpKey::FromV4(bytes.Data()) : IpKey::FromV6(bytes.Data()));
  }
  return true;
}

bool ReadTaps(const Napi::Object& options, std::vector<int>& out) {
  const Napi::Value value = options.Get("tapFds");
  if (!value.IsArray()) return false;
  const Napi::Array list = value.As<Napi::Array>();
  if (list.Length() == 0 || list.Length() > kMaxTaps) return false;
  for (uint32_t i = 0; i < list.Length(); i++) {
    const Napi::Value item = list.Get(i);
    if (!item.IsNumber()) return false;
    const int fd = item.As<Napi::Number>().Int32Value();
    // The same descriptor twice would be closed twice.
    if (fd < 0 || std::find(out.begin(), out.end(), fd) != out.end()) return false;
    out.push_back(fd);
  }
  return true;
}

uint64_t RandomSeed() {
  uint64_t seed = 0;
  // Cannot fail for eight bytes once the kernel has started; an unseeded table would still be a right one.
  [[maybe_unused]] const ssize_t got = getrandom(&seed, sizeof seed, 0);
  return seed;
}

}  // namespace

void EngineBinding::Init(Napi::Env env, Napi::Object exports) {
  exports.Set("Engine", DefineClass(env, "Engine",
                                    {
                                        InstanceMethod<&EngineBinding::AddNetwork>("addNetwork"),
                                        InstanceMethod<&EngineBinding::RemoveNetwork>("removeNetwork"),
                                        InstanceMethod<&EngineBinding::PublishTable>("publishTable"),
                                        InstanceMethod<&EngineBinding::SetGrouping>("setGrouping"),
                                        InstanceMethod<&EngineBinding::Counters>("counters"),
                                        InstanceMethod<&EngineBinding::Close>("close"),
                                    }));
}

/** new Engine({ netnsFd, addresses: Uint8Array[] (4 or 16 bytes), port, sourcePorts, tunnelOffload, spinMicros }) */
EngineBinding::EngineBinding(const Napi::CallbackInfo& info) : Napi::ObjectWrap<EngineBinding>(info) {
  constexpr char kUsage[] = "new Engine({ netnsFd, addresses, port, sourcePorts, tunnelOffload, spinMicros })";
  const Napi::Env env = info.Env();
  if (info.Length() != 1 || !info[0].IsObject()) {
    ThrowArgumentError(env, kUsage);
    return;
  }
  const Napi::Object options = info[0].As<Napi::Object>();
  EngineOptions parsed;
  uint32_t port = 0;
  uint32_t source_ports = 0;
  if (!options.Get("netnsFd").IsNumber() || !options.Get("tunnelOffload").IsBoolean() || !ReadAddresses(options, parsed.addresses) ||
      !ReadNumber(options, "port", 1, 65535, port) ||
      !ReadNumber(options, "sourcePorts", 1, Underlay::kMaxSourcePorts, source_ports) ||
      !ReadNumber(options, "spinMicros", 0, 1'000'000, parsed.spin_micros)) {
    ThrowArgumentError(env, kUsage);
    return;
  }
  parsed.port = static_cast<uint16_t>(port);
  parsed.tunnel_offload = options.Get("tunnelOffload").As<Napi::Boolean>().Value();
  parsed.source_ports = static_cast<int>(source_ports);
  NamespaceGuard guard;
  if (const int error = guard.Enter(options.Get("netnsFd").As<Napi::Number>().Int32Value()); error != 0) {
    ThrowSyscallError(env, error, "setns", "engine");
    return;
  }
  if (SyscallResult result = Engine::Start(parsed, engine_); !result.ok()) Throw(env, result);
}

bool EngineBinding::Open(Napi::Env env) const {
  if (engine_ == nullptr) ThrowArgumentError(env, "Engine is closed");
  return engine_ != nullptr;
}

/** addNetwork({ vni, mtu, dontFragment, tapFds: number[] }): the descriptors are the engine's from here on, unless it throws. */
Napi::Value EngineBinding::AddNetwork(const Napi::CallbackInfo& info) {
  constexpr char kUsage[] = "addNetwork({ vni, mtu, dontFragment, tapFds })";
  const Napi::Env env = info.Env();
  if (!Open(env)) return env.Undefined();
  if (info.Length() != 1 || !info[0].IsObject()) return ThrowArgumentError(env, kUsage);
  const Napi::Object options = info[0].As<Napi::Object>();
  uint32_t vni = 0;
  uint32_t mtu = 0;
  std::vector<int> descriptors;
  if (!ReadNumber(options, "vni", 0, 0xffffff, vni) || !ReadNumber(options, "mtu", 68, 65535, mtu) ||
      !options.Get("dontFragment").IsBoolean() || !ReadTaps(options, descriptors))
    return ThrowArgumentError(env, kUsage);
  const bool dont_fragment = options.Get("dontFragment").As<Napi::Boolean>();
  std::vector<UniqueFd> taps;
  for (const int fd : descriptors) taps.emplace_back(fd);
  if (SyscallResult result = engine_->AddNetwork(vni, mtu, dont_fragment, taps); !result.ok()) {
    for (UniqueFd& tap : taps) tap.release();
    return Throw(env, result);
  }
  return env.Undefined();
}

/** removeNetwork(vni): whether there was one. */
Napi::Value EngineBinding::RemoveNetwork(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!Open(env)) return env.Undefined();
  if (info.Length() != 1 || !info[0].IsNumber()) return ThrowArgumentError(env, "removeNetwork(vni)");
  return Napi::Boolean::New(env, engine_->RemoveNetwork(info[0].As<Napi::Number>().Uint32Value()));
}

/** publishTable(bytes): replaces the forwarding table; the bytes are copied. */
Napi::Value EngineBinding::PublishTable(const Napi::CallbackInfo& info) {
  constexpr char kUsage[] = "publishTable(Uint8Array of src/overlay/engine-table.ts)";
  const Napi::Env env = info.Env();
  if (!Open(env)) return env.Undefined();
  if (info.Length() != 1 || !info[0].IsTypedArray() ||
      info[0].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    return ThrowArgumentError(env, kUsage);
  const auto bytes = info[0].As<Napi::Uint8Array>();
  auto table = ForwardingTable::Decode({bytes.Data(), bytes.ByteLength()}, RandomSeed());
  if (table == nullptr) return ThrowArgumentError(env, kUsage);
  engine_->PublishTable(std::move(table));
  return env.Undefined();
}

/** setGrouping(on): whether the kernel may put datagrams that it receives together. On at the start. */
Napi::Value EngineBinding::SetGrouping(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!Open(env)) return env.Undefined();
  if (info.Length() != 1 || !info[0].IsBoolean()) return ThrowArgumentError(env, "setGrouping(boolean)");
  engine_->SetGrouping(info[0].As<Napi::Boolean>().Value());
  return env.Undefined();
}

/** counters(): name → sum over all threads since the start. */
Napi::Value EngineBinding::Counters(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!Open(env)) return env.Undefined();
  Napi::Object out = Napi::Object::New(env);
  for (int i = 0; i < static_cast<int>(Counter::kCount); i++)
    out.Set(kCounterNames[i],
            Napi::Number::New(env, static_cast<double>(engine_->ReadCounter(static_cast<Counter>(i)))));
  return out;
}

/** close(): stops the threads and closes every descriptor; again does nothing. */
Napi::Value EngineBinding::Close(const Napi::CallbackInfo& info) {
  engine_.reset();
  return info.Env().Undefined();
}

}  // namespace netagent::engine
