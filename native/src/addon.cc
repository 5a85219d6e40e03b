// Registers what the addon offers; each kernel object has its own file.
#include <napi.h>

static Napi::Object Init(Napi::Env, Napi::Object exports) { return exports; }

NODE_API_MODULE(netagent, Init)
