#include "bpf.h"

#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "netns.h"
#include "syscall_error.h"
#include "unique_fd.h"

namespace netagent {
namespace {

// Of newer headers than the oldest we build with (Linux 6.6).
constexpr uint32_t kTcxIngress = 46;
constexpr uint32_t kTcxEgress = 47;
constexpr size_t kLogBytes = 64 * 1024;
/** Of a verifier's log, its last words say what it did not like. */
constexpr size_t kLogShown = 400;

int Bpf(int command, bpf_attr& attributes) {
  return static_cast<int>(syscall(SYS_bpf, command, &attributes, sizeof attributes));
}

uint64_t Pointer(const void* at) { return reinterpret_cast<uint64_t>(at); }

/** bpfCreateMap(array, keyBytes, valueBytes, maxEntries): an array or a hash map; the caller owns it. */
Napi::Value CreateMap(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 4 || !info[0].IsBoolean() || !info[1].IsNumber() || !info[2].IsNumber() || !info[3].IsNumber())
    return ThrowArgumentError(env, "bpfCreateMap(array, keyBytes, valueBytes, maxEntries)");
  bpf_attr create{};
  const bool array = info[0].As<Napi::Boolean>().Value();
  create.map_type = array ? BPF_MAP_TYPE_ARRAY : BPF_MAP_TYPE_HASH;
  create.key_size = info[1].As<Napi::Number>().Uint32Value();
  create.value_size = info[2].As<Napi::Number>().Uint32Value();
  create.max_entries = info[3].As<Napi::Number>().Uint32Value();
  // A hash map then takes memory as it is filled.
  create.map_flags = array ? 0 : static_cast<uint32_t>(BPF_F_NO_PREALLOC);
  const int fd = Bpf(BPF_MAP_CREATE, create);
  if (fd < 0) return ThrowSyscallError(env, errno, "bpf", "BPF_MAP_CREATE");
  return Napi::Number::New(env, fd);
}

/** bpfUpdate(mapFd, keys, values, count): makes or replaces entries; keys and values stand one after the other. */
Napi::Value Update(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 4 || !info[0].IsNumber() || !info[1].IsTypedArray() || !info[2].IsTypedArray() ||
      !info[3].IsNumber())
    return ThrowArgumentError(env, "bpfUpdate(mapFd, keys, values, count)");
  const auto keys = info[1].As<Napi::Uint8Array>();
  const auto values = info[2].As<Napi::Uint8Array>();
  const uint32_t count = info[3].As<Napi::Number>().Uint32Value();
  bpf_attr update{};
  update.map_fd = info[0].As<Napi::Number>().Uint32Value();
  for (uint32_t at = 0; at < count; at++) {
    update.key = Pointer(keys.Data() + at * (keys.ByteLength() / count));
    update.value = Pointer(values.Data() + at * (values.ByteLength() / count));
    if (Bpf(BPF_MAP_UPDATE_ELEM, update) != 0) return ThrowSyscallError(env, errno, "bpf", "BPF_MAP_UPDATE_ELEM");
  }
  return env.Undefined();
}

/** bpfDelete(mapFd, keys, count): not there is not an error. */
Napi::Value Delete(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 3 || !info[0].IsNumber() || !info[1].IsTypedArray() || !info[2].IsNumber())
    return ThrowArgumentError(env, "bpfDelete(mapFd, keys, count)");
  const auto keys = info[1].As<Napi::Uint8Array>();
  const uint32_t count = info[2].As<Napi::Number>().Uint32Value();
  bpf_attr erase{};
  erase.map_fd = info[0].As<Napi::Number>().Uint32Value();
  for (uint32_t at = 0; at < count; at++) {
    erase.key = Pointer(keys.Data() + at * (keys.ByteLength() / count));
    if (Bpf(BPF_MAP_DELETE_ELEM, erase) != 0 && errno != ENOENT)
      return ThrowSyscallError(env, errno, "bpf", "BPF_MAP_DELETE_ELEM");
  }
  return env.Undefined();
}

/** bpfLoad(instructions): a program for traffic control; the caller owns it. */
Napi::Value Load(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 1 || !info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().ByteLength() % 8 != 0)
    return ThrowArgumentError(env, "bpfLoad(instructions)");
  const auto instructions = info[0].As<Napi::Uint8Array>();
  bpf_attr load{};
  load.prog_type = BPF_PROG_TYPE_SCHED_CLS;
  load.insns = Pointer(instructions.Data());
  load.insn_cnt = static_cast<uint32_t>(instructions.ByteLength() / sizeof(bpf_insn));
  load.license = Pointer("Apache-2.0");
  int fd = Bpf(BPF_PROG_LOAD, load);
  if (fd >= 0) return Napi::Number::New(env, fd);
  const int error = errno;
  std::vector<char> log(kLogBytes);
  load.log_level = 1;
  load.log_buf = Pointer(log.data());
  load.log_size = kLogBytes;
  fd = Bpf(BPF_PROG_LOAD, load);
  if (fd >= 0) return Napi::Number::New(env, fd);
  std::string said(log.data(), strnlen(log.data(), log.size()));
  if (said.size() > kLogShown) said.erase(0, said.size() - kLogShown);
  return ThrowSyscallError(env, error, "bpf", "BPF_PROG_LOAD " + said);
}

/** bpfAttach(netnsFd, programFd, ifindex, egress): a link (tcx) that goes with its descriptor; the caller owns it. */
Napi::Value Attach(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 4 || !info[0].IsNumber() || !info[1].IsNumber() || !info[2].IsNumber() ||
      !info[3].IsBoolean())
    return ThrowArgumentError(env, "bpfAttach(netnsFd, programFd, ifindex, egress)");
  NamespaceGuard guard;
  if (const int error = guard.Enter(info[0].As<Napi::Number>().Int32Value()); error != 0)
    return ThrowSyscallError(env, error, "setns", "BPF_LINK_CREATE");
  bpf_attr attach{};
  attach.link_create.prog_fd = info[1].As<Napi::Number>().Uint32Value();
  attach.link_create.target_ifindex = info[2].As<Napi::Number>().Uint32Value();
  attach.link_create.attach_type = info[3].As<Napi::Boolean>().Value() ? kTcxEgress : kTcxIngress;
  const int fd = Bpf(BPF_LINK_CREATE, attach);
  if (fd < 0) return ThrowSyscallError(env, errno, "bpf", "BPF_LINK_CREATE");
  return Napi::Number::New(env, fd);
}

/** bpfDevice(linkFd): the ifindex a link is attached to, 0 when its device is gone or another hand has detached it. */
Napi::Value Device(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 1 || !info[0].IsNumber()) return ThrowArgumentError(env, "bpfDevice(linkFd)");
  // struct bpf_link_info: type, id, program, 4 bytes of padding, and then of a tcx link: ifindex, attach type.
  uint32_t link[16] = {};
  bpf_attr ask{};
  ask.info.bpf_fd = info[0].As<Napi::Number>().Uint32Value();
  ask.info.info_len = sizeof link;
  ask.info.info = Pointer(link);
  if (Bpf(BPF_OBJ_GET_INFO_BY_FD, ask) != 0)
    return ThrowSyscallError(env, errno, "bpf", "BPF_OBJ_GET_INFO_BY_FD");
  return Napi::Number::New(env, link[4]);
}

/** bpfTestRun(programFd, frame, room): what the program returns for a frame, and what it has made of it. */
Napi::Value TestRun(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 3 || !info[0].IsNumber() || !info[1].IsTypedArray() || !info[2].IsNumber())
    return ThrowArgumentError(env, "bpfTestRun(programFd, frame, room)");
  const auto frame = info[1].As<Napi::Uint8Array>();
  std::vector<uint8_t> out(frame.ByteLength() + info[2].As<Napi::Number>().Uint32Value());
  bpf_attr run{};
  run.test.prog_fd = info[0].As<Napi::Number>().Uint32Value();
  run.test.data_in = Pointer(frame.Data());
  run.test.data_size_in = static_cast<uint32_t>(frame.ByteLength());
  run.test.data_out = Pointer(out.data());
  run.test.data_size_out = static_cast<uint32_t>(out.size());
  run.test.repeat = 1;
  if (Bpf(BPF_PROG_TEST_RUN, run) != 0) return ThrowSyscallError(env, errno, "bpf", "BPF_PROG_TEST_RUN");
  Napi::Object result = Napi::Object::New(env);
  result.Set("verdict", Napi::Number::New(env, static_cast<int32_t>(run.test.retval)));
  result.Set("frame", Napi::Buffer<uint8_t>::Copy(env, out.data(), run.test.data_size_out));
  return result;
}

}  // namespace

void InitBpf(Napi::Env env, Napi::Object exports) {
  exports.Set("bpfCreateMap", Napi::Function::New(env, CreateMap, "bpfCreateMap"));
  exports.Set("bpfUpdate", Napi::Function::New(env, Update, "bpfUpdate"));
  exports.Set("bpfDelete", Napi::Function::New(env, Delete, "bpfDelete"));
  exports.Set("bpfLoad", Napi::Function::New(env, Load, "bpfLoad"));
  exports.Set("bpfAttach", Napi::Function::New(env, Attach, "bpfAttach"));
  exports.Set("bpfDevice", Napi::Function::New(env, Device, "bpfDevice"));
  exports.Set("bpfTestRun", Napi::Function::New(env, TestRun, "bpfTestRun"));
}

}  // namespace netagent
