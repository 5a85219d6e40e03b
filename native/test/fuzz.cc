// One fuzzing entry over everything in the engine that reads bytes of others: frames of endpoints and of peers, virtio
// headers, tables. The first byte of the input chooses. libFuzzer's signature, so that it also runs there and
// under AFL++; fuzz_driver.cc runs it with nothing but g++.
#include <cstdlib>
#include <memory>
#include <vector>

#include "engine/coalesce.h"
#include "engine/neighbor.h"
#include "engine/segment.h"
#include "engine/table.h"
#include "engine/tunnel_frame.h"
#include "reference.h"

namespace netagent::engine {
namespace {

using reference::Frame;

void Require(bool condition) {
  if (!condition) std::abort();
}

void ParseAnything(Bytes input) {
  FrameView frame;
  if (!ParseFrame(input, frame)) return;
  FlowHash(frame);
  const NeighborQuery query = ParseNeighborQuery(frame);
  if (query.kind == NeighborQuery::Kind::kArp || query.kind == NeighborQuery::Kind::kSolicitation) {
    uint8_t reply[kMaxNeighborReply];
    Require(BuildNeighborReply(frame, query, 0x0242'0a00'0001, reply) <= sizeof reply);
  }
  ParseVxlanHeader(input);
}

void SegmentAnything(Bytes input) {
  VirtioHeader header;
  if (input.size() < sizeof header) return;
  std::memcpy(&header, input.data(), sizeof header);
  Frame bytes(input.begin() + sizeof header, input.end());
  FrameView frame;
  if (!ParseFrame({bytes.data(), bytes.size()}, frame)) return;
  SegmentPlan plan;
  if (!PlanSegments(frame, header, bytes.data(), plan) || plan.header_bytes == 0) return;
  size_t payload = 0;
  auto head = std::make_unique<uint8_t[]>(kMaxHeaderBytes);
  for (uint32_t i = 0; i < plan.count; i++) payload += BuildSegment(frame, plan, i, head.get()).size();
  Require(payload == frame.payload_length());
  if (!FitsTunnelFrame(frame, plan)) return;
  Frame block(kTunnelHeadroom);
  block.insert(block.end(), bytes.begin(), bytes.end());
  block.shrink_to_fit();
  frame.data = block.data() + kTunnelHeadroom;
  Require(BuildTunnelFrame(frame, header, plan, 1, TunnelWay{}, block.data() + kTunnelHeadroom) == block.data());
  FrameView outer;
  const size_t before = sizeof(TunnelVirtioHeader);
  Require(ParseFrame({block.data() + before, block.size() - before}, outer) && outer.kind == FrameView::Kind::kUdp);
}

class Sink final : public FrameSink {
 public:
  Sink() : FrameSink(1450, true) {}
  void Emit(const iovec* pieces, int count) override {
    VirtioHeader header;
    std::memcpy(&header, pieces[0].iov_base, sizeof header);
    Frame frame;
    for (int i = 1; i < count; i++) {
      const auto* at = static_cast<const uint8_t*>(pieces[i].iov_base);
      frame.insert(frame.end(), at, at + pieces[i].iov_len);
    }
    FrameView view;
    Require(ParseFrame({frame.data(), frame.size()}, view));
    payload += view.kind >= FrameView::Kind::kTcp ? view.payload_length() : 0;
    if (header.flags == 0) return;
    // What we promise the kernel must hold, or it drops the frame without a word.
    Require(header.checksum_start + header.checksum_offset + 2u <= frame.size());
    Require(header.checksum_start == view.l4);
    if (header.gso_type == kGsoNone) return;
    Require(header.gso_size > 0 && view.kind >= FrameView::Kind::kTcp && view.end == view.length);
    SegmentPlan plan;
    Require(PlanSegments(view, header, frame.data(), plan));
  }
  size_t payload = 0;
};

/** Frames one after the other: u16 length, bytes. */
void CoalesceAnything(Bytes input) {
  std::vector<std::unique_ptr<uint8_t[]>> frames;
  Coalescer coalescer;
  Sink sink;
  size_t payload = 0;
  while (input.size() >= 2 && frames.size() < 100) {
    const size_t length = std::min<size_t>(Load16(input.data()), input.size() - 2);
    frames.push_back(std::make_unique<uint8_t[]>(length));
    std::memcpy(frames.back().get(), input.data() + 2, length);
    input = input.subspan(2 + length);
    FrameView view;
    if (!ParseFrame({frames.back().get(), length}, view)) continue;
    if (coalescer.Add(view, length & 7 ? 0 : 500, sink) && view.kind >= FrameView::Kind::kTcp)
      payload += view.payload_length();
  }
  coalescer.Flush();
  Require(sink.payload == payload);
}

void DecodeAnyTable(Bytes input) {
  const auto table = ForwardingTable::Decode(input, 1);
  if (table == nullptr) return;
  const uint32_t vtep = table->FindVtep(4097, 0x0242'0a00'0005);
  Require(vtep == ForwardingTable::kNoVtep || vtep < table->vtep_count());
  table->FindMac(4097, IpKey{});
}

}  // namespace
}  // namespace netagent::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace netagent::engine;
  if (size == 0) return 0;
  // A block of exactly the size: the sanitizer sees the first byte too far.
  const std::vector<uint8_t> copy(data + 1, data + size);
  const Bytes input(copy.data(), copy.size());
  switch (data[0] & 3) {
    case 0: ParseAnything(input); break;
    case 1: SegmentAnything(input); break;
    case 2: CoalesceAnything(input); break;
    default: DecodeAnyTable(input); break;
  }
  return 0;
}
