#include "readable_watch.h"

#include <cerrno>

#include "syscall_error.h"

namespace netagent {

Napi::Value ReadableWatch::Watch(const Napi::CallbackInfo& info, Napi::Reference<Napi::Object>& owner,
                                 const UniqueFd& fd, const char* name) {
  Napi::Env env = info.Env();
  if (info.Length() != 1 || !info[0].IsFunction()) return ThrowArgumentError(env, "watch(callback)");
  if (!fd.valid()) return ThrowSyscallError(env, EBADF, "watch", name);
  if (poll_ != nullptr) return ThrowArgumentError(env, "watch: already watched");
  if (const int error = Start(env, fd.get(), info[0].As<Napi::Function>()); error != 0)
    return ThrowSyscallError(env, error, "watch", name);
  owner.Ref();
  return env.Undefined();
}

void ReadableWatch::Close(Napi::Reference<Napi::Object>& owner, UniqueFd& fd) {
  if (poll_ != nullptr) {
    Stop();
    owner.Unref();
  }
  fd.reset();
}

int ReadableWatch::Start(Napi::Env env, int fd, Napi::Function callback) {
  uv_loop_t* loop = nullptr;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) return EINVAL;
  auto* poll = new uv_poll_t{};
  if (const int error = uv_poll_init(loop, poll, fd); error != 0) {
    delete poll;
    return -error;
  }
  poll->data = this;
  poll_ = poll;
  callback_ = Napi::Persistent(callback);
  uv_unref(reinterpret_cast<uv_handle_t*>(poll));
  uv_poll_start(poll, UV_READABLE, [](uv_poll_t* handle, int, int) {
    static_cast<ReadableWatch*>(handle->data)->OnReadable();
  });
  return 0;
}

void ReadableWatch::OnReadable() {
  Napi::Env env = callback_.Env();
  Napi::HandleScope scope(env);
  callback_.MakeCallback(env.Global(), {});
  // No JavaScript frame is above us to catch it.
  if (env.IsExceptionPending()) napi_fatal_exception(env, env.GetAndClearPendingException().Value());
}

void ReadableWatch::Stop() {
  if (poll_ == nullptr) return;
  uv_poll_stop(poll_);
  uv_close(reinterpret_cast<uv_handle_t*>(poll_),
           [](uv_handle_t* handle) { delete reinterpret_cast<uv_poll_t*>(handle); });
  poll_ = nullptr;
  callback_.Reset();
}

}  // namespace netagent
