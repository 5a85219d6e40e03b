#pragma once
#include <napi.h>

#include <cstring>
#include <string>

namespace netagent {

/**
 * A failed syscall as a JS Error `SYSCALL OBJECT: CODE (text)` with the properties code ("EPERM"), errno
 * (positive), syscall and object. It is left pending; return at once.
 */
inline Napi::Value ThrowSyscallError(Napi::Env env, int error, const char* syscall,
                                     const std::string& object) {
  const char* name = strerrorname_np(error);
  // Appending, not operator+ on temporaries: GCC 12 sees a bogus overlap there (-Wrestrict, GCC bug 105651).
  std::string code = name != nullptr ? name : "E";
  if (name == nullptr) code.append(std::to_string(error));
  const char* description = strerrordesc_np(error);
  std::string message = syscall;
  message.append(" ").append(object).append(": ").append(code);
  if (description != nullptr) message.append(" (").append(description).append(")");
  Napi::Error thrown = Napi::Error::New(env, message);
  thrown.Set("code", Napi::String::New(env, code));
  thrown.Set("errno", Napi::Number::New(env, error));
  thrown.Set("syscall", Napi::String::New(env, syscall));
  thrown.Set("object", Napi::String::New(env, object));
  thrown.ThrowAsJavaScriptException();
  return env.Undefined();
}

/** A wrong argument is a bug in our TypeScript: TypeError. */
inline Napi::Value ThrowArgumentError(Napi::Env env, const char* text) {
  Napi::TypeError::New(env, text).ThrowAsJavaScriptException();
  return env.Undefined();
}

}  // namespace netagent
