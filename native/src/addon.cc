// Registers what the addon offers; each kernel object has its own file.
#include <napi.h>

#include "bpf.h"
#include "datagram_socket.h"
#include "engine/binding.h"
#include "netlink_socket.h"
#include "netns.h"
#include "tap_device.h"

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  netagent::engine::EngineBinding::Init(env, exports);
  netagent::DatagramSocket::Init(env, exports);
  netagent::NetlinkSocket::Init(env, exports);
  netagent::InitNetns(env, exports);
  netagent::InitTapDevice(env, exports);
  netagent::InitBpf(env, exports);
  return exports;
}

NODE_API_MODULE(netagent, Init)
