#pragma once
#include <napi.h>

namespace netagent {

void InitTapDevice(Napi::Env env, Napi::Object exports);

}  // namespace netagent
