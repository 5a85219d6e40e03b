#pragma once
#include <napi.h>

namespace netagent {

void InitBpf(Napi::Env env, Napi::Object exports);

}  // namespace netagent
