// Tests of the engine's pure half: parse, segment, coalesce, table, neighbor answers. No socket, no clock; randomness
// from a printed seed. Built with sanitizers by run.sh. Every frame lives in a heap block of exactly its size,
// so that one byte read too far is a report.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/checksum.h"
#include "engine/coalesce.h"
#include "engine/epoch.h"
#include "engine/neighbor.h"
#include "engine/segment.h"
#include "engine/table.h"
#include "engine/tunnel_frame.h"
#include "reference.h"

namespace netagent::engine {
namespace {

using reference::Frame;
using reference::View;

int failures = 0;
const char* current = "";
uint64_t seed = 1;
std::mt19937_64 random_bits;

#define CHECK(condition)                                                                             \
  do {                                                                                               \
    if (!(condition)) {                                                                              \
      failures++;                                                                                    \
      std::fprintf(stderr, "not ok: %s: %s (line %d, SEED=%llu)\n", current, #condition, __LINE__, \
                   static_cast<unsigned long long>(seed));                                           \
      if (failures > 20) std::exit(1);                                                               \
    }                                                                                                \
  } while (false)

uint32_t Below(uint32_t limit) { return static_cast<uint32_t>(random_bits() % limit); }
bool OneIn(uint32_t n) { return Below(n) == 0; }

struct Shape {
  bool v4 = true;
  bool tcp = true;
  int vlan_tags = 0;
  size_t option_bytes = 12;  // TCP, multiple of 4
  size_t payload = 1000;
  uint8_t flags = kTcpAck;
  uint16_t source_port = 1000;
  uint32_t sequence = 5000;
  uint16_t ip_id = 7;
  bool dont_fragment = true;
};

Frame Make(const Shape& shape) {
  Frame frame = {0x02, 0x42, 10, 0, 0, 5, 0x02, 0x42, 10, 0, 0, 6};
  for (int i = 0; i < shape.vlan_tags; i++) frame.insert(frame.end(), {0x81, 0x00, 0, static_cast<uint8_t>(i + 1)});
  frame.insert(frame.end(), {static_cast<uint8_t>(shape.v4 ? 0x08 : 0x86), static_cast<uint8_t>(shape.v4 ? 0x00 : 0xdd)});
  const uint8_t protocol = shape.tcp ? kProtocolTcp : kProtocolUdp;
  if (shape.v4) {
    frame.insert(frame.end(), {0x45, 0, 0, 0, static_cast<uint8_t>(shape.ip_id >> 8), static_cast<uint8_t>(shape.ip_id),
                               static_cast<uint8_t>(shape.dont_fragment ? 0x40 : 0), 0, 64, protocol, 0, 0, 10, 0, 0, 6, 10, 0, 0, 5});
  } else {
    frame.insert(frame.end(), {0x60, 0, 0, 0, 0, 0, protocol, 64});
    for (int end = 0; end < 2; end++) {
      frame.insert(frame.end(), 15, 0xfd);
      frame.push_back(static_cast<uint8_t>(end));
    }
  }
  const size_t l4 = frame.size();
  frame.insert(frame.end(), {static_cast<uint8_t>(shape.source_port >> 8), static_cast<uint8_t>(shape.source_port), 0, 80});
  if (shape.tcp) {
    frame.resize(l4 + 20 + shape.option_bytes, 1);
    reference::Put32(frame, l4 + 4, shape.sequence);
    reference::Put32(frame, l4 + 8, 99);
    frame[l4 + 12] = static_cast<uint8_t>((20 + shape.option_bytes) / 4 << 4);
    frame[l4 + 13] = shape.flags;
    reference::Put16(frame, l4 + 14, 500);
    reference::Put16(frame, l4 + 18, 0);
  } else {
    frame.resize(l4 + 8);
  }
  frame.resize(frame.size() + shape.payload);
  uint64_t state = random_bits() | 1;
  for (size_t i = frame.size() - shape.payload; i < frame.size(); i++) frame[i] = static_cast<uint8_t>((state *= 6364136223846793005) >> 56);
  reference::Finish(frame);
  frame.shrink_to_fit();
  return frame;
}

/** A superframe as an endpoint's kernel hands it over: checksum partial. */
struct Super {
  Frame frame;
  VirtioHeader header{};
};

VirtioHeader HeaderOf(const Frame& frame, uint16_t size) {
  const FrameView view = View(frame);
  VirtioHeader header{};
  header.flags = kVirtioNeedsChecksum;
  header.checksum_start = view.l4;
  header.checksum_offset = static_cast<uint16_t>(reference::ChecksumAt(view) - view.l4);
  header.header_bytes = view.payload;
  header.gso_size = size;
  header.gso_type = view.kind == FrameView::Kind::kUdp ? kGsoUdpL4 : view.ip_version == 4 ? kGsoTcpV4 : kGsoTcpV6;
  if (view.kind == FrameView::Kind::kTcp && (frame[view.l4 + 13u] & kTcpCwr) != 0) header.gso_type |= kGsoEcn;
  return header;
}

Super MakeSuper(Shape shape, uint16_t size) {
  Super super{Make(shape), {}};
  reference::Finish(super.frame, true);
  super.header = HeaderOf(super.frame, size);
  return super;
}

std::vector<Frame> SegmentAll(const Super& super, bool& accepted) {
  Frame copy = super.frame;
  const FrameView view = View(copy);
  SegmentPlan plan;
  accepted = PlanSegments(view, super.header, copy.data(), plan);
  if (!accepted) return {};
  if (plan.header_bytes == 0) return {copy};
  std::vector<Frame> out;
  for (uint32_t i = 0; i < plan.count; i++) {
    Frame segment(plan.header_bytes);
    std::vector<uint8_t> head(kMaxHeaderBytes);
    const Bytes payload = BuildSegment(view, plan, i, head.data());
    std::copy_n(head.begin(), plan.header_bytes, segment.begin());
    segment.insert(segment.end(), payload.begin(), payload.end());
    out.push_back(segment);
  }
  return out;
}

class Collector final : public FrameSink {
 public:
  explicit Collector(uint32_t mtu = 1500, bool udp = true) : FrameSink(mtu, udp) {}
  void Emit(const iovec* pieces, int count) override {
    Super super;
    CHECK(pieces[0].iov_len == sizeof super.header);
    std::memcpy(&super.header, pieces[0].iov_base, sizeof super.header);
    for (int i = 1; i < count; i++) {
      const auto* at = static_cast<const uint8_t*>(pieces[i].iov_base);
      super.frame.insert(super.frame.end(), at, at + pieces[i].iov_len);
    }
    out.push_back(std::move(super));
  }
  std::vector<Super> out;
};

/** Adds all frames as one batch; `dropped` counts refusals. */
std::vector<Super> CoalesceAll(const std::vector<Frame>& frames, Collector sink = Collector(), int* dropped = nullptr) {
  Coalescer coalescer;
  for (const Frame& frame : frames)
    if (!coalescer.Add(View(frame), 0, sink) && dropped != nullptr) ++*dropped;
  coalescer.Flush();
  return sink.out;
}

Shape RandomShape() {
  Shape shape;
  shape.v4 = OneIn(2);
  shape.tcp = !OneIn(3);
  shape.vlan_tags = static_cast<int>(OneIn(4) ? Below(3) : 0);
  shape.option_bytes = Below(11) * 4;
  shape.payload = 1 + Below(OneIn(3) ? 60'000 : 5'000);
  shape.flags = static_cast<uint8_t>(kTcpAck | (OneIn(3) ? kTcpPsh : 0) | (OneIn(5) ? kTcpFin : 0) |
                                     (OneIn(5) ? kTcpEce : 0) | (OneIn(5) ? kTcpCwr : 0));
  shape.sequence = OneIn(4) ? 0xffffff00 : static_cast<uint32_t>(random_bits());
  shape.ip_id = static_cast<uint16_t>(random_bits());
  shape.dont_fragment = OneIn(2);
  return shape;
}

// ---- the tests ----

void SumsEqualTheDefinition() {
  for (int i = 0; i < 1000; i++) {
    Frame bytes(i < 600 ? static_cast<size_t>(i) : Below(70'000));
    for (uint8_t& byte : bytes) byte = OneIn(4) ? 0xff : static_cast<uint8_t>(random_bits());
    const uint16_t fast = __builtin_bswap16(FoldSum(SumBytes(bytes.data(), bytes.size())));
    CHECK(SameSum(fast, reference::Sum(bytes, 0, bytes.size())));
  }
}

void SegmentsEqualTheReference() {
  for (int i = 0; i < 500; i++) {
    const Shape shape = RandomShape();
    const uint16_t size = static_cast<uint16_t>(1 + std::max<uint32_t>(Below(9000), static_cast<uint32_t>(shape.payload / 200 + 1)));
    const Super super = MakeSuper(shape, size);
    bool accepted = false;
    const std::vector<Frame> fast = SegmentAll(super, accepted);
    CHECK(accepted);
    CHECK(fast == reference::Segment(super.frame, super.header));
  }
}

/** Every offset is checked against a second parse of what was built. */
void WholeSuperframesAreVxlanPacketsWithBothChecksumsOpen() {
  for (int i = 0; i < 500; i++) {
    Shape shape;
    shape.v4 = OneIn(2);
    shape.tcp = OneIn(2);
    shape.vlan_tags = static_cast<int>(Below(3));
    shape.payload = 1 + Below(OneIn(2) ? 65000 : 4000);
    const uint16_t size = static_cast<uint16_t>(1 + Below(1400));
    const Super super = MakeSuper(shape, size);
    // The frame lies in a block that ends with it and begins with the room for what comes before.
    Frame block(kTunnelHeadroom);
    block.insert(block.end(), super.frame.begin(), super.frame.end());
    block.shrink_to_fit();
    uint8_t* data = block.data() + kTunnelHeadroom;
    FrameView frame;
    CHECK(ParseFrame({data, super.frame.size()}, frame));
    SegmentPlan plan;
    CHECK(PlanSegments(frame, super.header, data, plan));
    const bool fits = super.frame.size() + 20 + 8 + 8 <= 65535;
    CHECK(FitsTunnelFrame(frame, plan) == fits);
    if (!fits) continue;
    const uint8_t from[4] = {192, 0, 2, 1}, to[4] = {192, 0, 2, 7};
    const TunnelWay way = {.source = IpKey::FromV4(from),
                           .destination = IpKey::FromV4(to),
                           .source_port = 50000,
                           .destination_port = 4789,
                           .ifindex = 0x01020304,
                           .ip_id = 9,
                           .ecn = 2};
    CHECK(BuildTunnelFrame(frame, super.header, plan, 4097, way, data) == block.data());
    CHECK(std::equal(super.frame.begin(), super.frame.end(), data));

    const Frame outer(block.begin() + sizeof(TunnelVirtioHeader), block.end());
    const FrameView view = View(outer);
    CHECK(view.kind == FrameView::Kind::kUdp && view.end == outer.size() && view.payload == kOuterBytes - kVxlanBytes);
    CHECK(Load32(outer.data() + 8) == way.ifindex);
    CHECK(FoldSum(SumBytes(outer.data() + view.l3, 20)) == 0xffff);
    CHECK(view.ecn() == 2 && outer[view.l3] == 0x45 && Load16(outer.data() + view.l3 + 4) == 9);
    CHECK(std::equal(from, from + 4, outer.data() + view.l3 + 12) && std::equal(to, to + 4, outer.data() + view.l3 + 16));
    CHECK(Load16(outer.data() + view.l4) == 50000 && Load16(outer.data() + view.l4 + 2) == 4789);
    CHECK(LoadRaw16(outer.data() + view.l4 + 6) == FoldSum(PseudoHeaderSum(view, view.end - view.l4)));
    CHECK(ParseVxlanHeader({outer.data() + view.payload, outer.size() - view.payload}) == 4097);

    TunnelVirtioHeader header;
    std::memcpy(&header, block.data(), sizeof header);
    const uint8_t* inner = outer.data() + kOuterBytes;
    CHECK(header.basic.flags == (1 | 8) && header.basic.gso_type == (super.header.gso_type | 0x20));
    CHECK(header.basic.gso_size == size && header.basic.header_bytes == kOuterBytes + frame.payload);
    CHECK(outer.data() + header.outer_transport == outer.data() + view.l4);
    CHECK(outer.data() + header.inner_network == inner + frame.l3);
    CHECK(outer.data() + header.basic.checksum_start == inner + frame.l4);
    CHECK(header.basic.checksum_offset == (shape.tcp ? 16 : 6));
  }
}

void PaddedSuperframesAreNotHandedOverWhole() {
  Super super = MakeSuper({.payload = 5000}, 1000);
  super.frame.resize(super.frame.size() + 4);
  const FrameView frame = View(super.frame);
  SegmentPlan plan;
  CHECK(PlanSegments(frame, super.header, super.frame.data(), plan));
  CHECK(!FitsTunnelFrame(frame, plan));
}

void CoalescingUndoesSegmentation() {
  for (int i = 0; i < 500; i++) {
    Shape shape = RandomShape();
    const uint16_t size = static_cast<uint16_t>(std::max<uint32_t>(1 + Below(3000), static_cast<uint32_t>(shape.payload / 64 + 1)));
    const Super super = MakeSuper(shape, size);
    bool accepted = false;
    const std::vector<Frame> segments = SegmentAll(super, accepted);
    const std::vector<Super> joined = CoalesceAll(segments, Collector(65'535));
    CHECK(joined.size() == 1);
    if (joined.size() != 1) continue;
    if (segments.size() > 1) {
      CHECK(joined[0].frame == super.frame);
      CHECK(std::memcmp(&joined[0].header, &super.header, sizeof super.header) == 0);
    } else {
      CHECK(joined[0].frame == segments[0]);
    }
  }
}

/**
 * Whatever comes, in whatever order: what leaves the TAP at its far side, after the kernel or a card has segmented the
 * superframes again, is what came in, per flow in the order it came.
 */
void NoStreamOfFramesIsChangedByCoalescing() {
  for (int round = 0; round < 60; round++) {
    std::vector<Frame> frames;
    struct State {
      Shape shape;
      uint32_t segment;
    };
    std::vector<State> flows;
    const uint32_t flow_count = 1 + Below(OneIn(3) ? 24 : 4);
    for (uint32_t i = 0; i < flow_count; i++) {
      State state{RandomShape(), 1 + Below(1400)};
      state.shape.source_port = static_cast<uint16_t>(1000 + i);
      flows.push_back(state);
    }
    for (int i = 0; i < 100; i++) {
      State& flow = flows[Below(flow_count)];
      Shape& shape = flow.shape;
      const int burst = 1 + static_cast<int>(Below(12));
      for (int k = 0; k < burst; k++) {
        shape.payload = OneIn(10) ? Below(flow.segment + 1) : flow.segment;
        shape.flags = static_cast<uint8_t>(kTcpAck | (OneIn(12) ? 1u << Below(8) : 0));
        Frame frame = Make(shape);
        FrameView view = View(frame);
        if (OneIn(40)) frame[view.l3 + 1u] ^= 3;                                                // ECN
        if (OneIn(40) && shape.tcp) reference::Put16(frame, view.l4 + 14u, Below(9));           // window
        if (OneIn(40) && shape.tcp && shape.option_bytes > 0) frame[view.l4 + 20u] ^= 3;        // options
        if (OneIn(40) && shape.v4) frame[view.l3 + 6u] |= 0x20;                                 // a fragment
        if (OneIn(40) && shape.v4) frame[view.l3 + 8u]--;                                       // TTL
        if (OneIn(40)) frame.insert(frame.end(), 6, 0);                                         // padding, see below
        const bool padded = view.length != frame.size();
        if (padded) {
          frame.resize(view.length);
          reference::Finish(frame);
          frame.insert(frame.end(), 6, 0);
        } else {
          reference::Finish(frame, OneIn(20));
        }
        if (OneIn(40) && !shape.tcp && shape.v4) reference::Put16(frame, view.l4 + 6u, 0);      // no checksum
        frames.push_back(frame);
        if (OneIn(30)) frames.push_back(frame);                                                 // duplicate
        if (!OneIn(20)) shape.sequence += static_cast<uint32_t>(shape.payload);                 // loss
        if (!OneIn(20)) shape.ip_id++;
        if (OneIn(50)) std::swap(frames[frames.size() - 1], frames[Below(static_cast<uint32_t>(frames.size()))]);
      }
    }
    int dropped = 0;
    Collector sink(9000, !OneIn(4));
    std::map<uint32_t, std::vector<Frame>> before, after;
    // A kernel may leave a checksum partial; it is complete when it reaches an endpoint. An id of an atomic
    // datagram (RFC 6864) and padding carry no meaning and are all that may differ.
    const auto normal = [](Frame frame) {
      frame.resize(View(frame).end);
      FrameView view = View(frame);
      if (view.ip_version == 4 && (frame[view.l3 + 6u] & 0x40) != 0) reference::Put16(frame, view.l3 + 4u, 0);
      // Zero is "none" in UDP; in TCP it is a checksum like any other.
      const bool tcp = view.kind == FrameView::Kind::kTcp;
      const bool udp = view.kind == FrameView::Kind::kUdp && reference::Get16(frame, reference::ChecksumAt(view)) != 0;
      if (tcp || udp) reference::Finish(frame);
      return frame;
    };
    for (const Frame& frame : frames) before[FlowHash(View(frame))].push_back(normal(frame));
    for (const Super& super : CoalesceAll(frames, sink, &dropped))
      for (const Frame& frame : reference::Segment(super.frame, super.header))
        after[FlowHash(View(frame))].push_back(normal(frame));
    CHECK(dropped == 0);
    CHECK(before == after);
  }
}

void WrongChecksumsNeverBecomeRight() {
  for (int round = 0; round < 200; round++) {
    Shape shape = RandomShape();
    shape.payload = 400;
    shape.flags = kTcpAck;
    std::vector<Frame> frames;
    std::vector<Frame> right;
    for (int i = 0; i < 8; i++) {
      Frame frame = Make(shape);
      // One in 65,536 right checksums looks like a partial one (T6), and corruption under it passes, as it does under
      // one in 65,536 sums anyway.
      while (InspectChecksum(View(frame)) == ChecksumState::kPartial) frame = Make(shape);
      shape.sequence += 400;
      shape.ip_id++;
      if (OneIn(3)) {
        frame[frame.size() - 1 - Below(300)] ^= static_cast<uint8_t>(1 + Below(255));
      } else {
        right.push_back(frame);
      }
      frames.push_back(frame);
    }
    std::vector<Frame> accepted;
    for (const Super& super : CoalesceAll(frames)) {
      for (const Frame& frame : reference::Segment(super.frame, super.header)) {
        Frame again = frame;
        reference::Finish(again);
        if (again == frame) accepted.push_back(frame);
      }
    }
    CHECK(accepted == right);
  }
}

void PushAndFinEndASuperframeAndCwrOnlyStartsOne() {
  const auto run = [](const std::vector<uint8_t>& flags) {
    std::vector<Frame> frames;
    Shape shape;
    shape.payload = 100;
    for (const uint8_t flag : flags) {
      shape.flags = static_cast<uint8_t>(kTcpAck | flag);
      frames.push_back(Make(shape));
      shape.sequence += 100;
      shape.ip_id++;
    }
    std::string sizes;
    for (const Super& super : CoalesceAll(frames)) sizes += std::to_string(View(super.frame).payload_length() / 100);
    return sizes;
  };
  CHECK(run({0, 0, 0, 0}) == "4");
  CHECK(run({0, kTcpPsh, 0, 0}) == "22");
  CHECK(run({0, 0, kTcpFin}) == "3");
  CHECK(run({kTcpPsh, 0}) == "11");
  CHECK(run({kTcpCwr, 0, 0}) == "3");
  CHECK(run({0, kTcpCwr, 0}) == "12");
  CHECK(run({kTcpEce, kTcpEce}) == "2");
  CHECK(run({kTcpEce, 0}) == "11");
  CHECK(run({2 /* SYN */, 0, 0}) == "12");
  CHECK(run({0, 4 /* RST */, 0}) == "111");
  CHECK(run({0x20 /* URG */, 0x20}) == "11");
}

void AcknowledgementsDoNotWait() {
  Shape data;
  Shape ack = data;
  ack.payload = 0;
  ack.sequence += 1000;
  Coalescer coalescer;
  Collector sink;
  const Frame first = Make(data);
  const Frame second = Make(ack);
  coalescer.Add(View(first), 0, sink);
  CHECK(sink.out.empty());
  coalescer.Add(View(second), 0, sink);
  // The data before it in the flow goes first.
  CHECK(sink.out.size() == 2 && sink.out[0].frame == first && sink.out[1].frame == second);
  coalescer.Flush();
  CHECK(sink.out.size() == 2);
}

void PartialChecksumsOfKernelPeersAreAccepted() {
  for (int i = 0; i < 200; i++) {
    Shape shape = RandomShape();
    shape.payload = 1 + Below(1000);
    shape.flags = kTcpAck;
    Frame frame = Make(shape);
    reference::Finish(frame, true);
    CHECK(InspectChecksum(View(frame)) == ChecksumState::kPartial);
    Frame padded = frame;
    padded.insert(padded.end(), 5, 0xaa);
    // The kernel sums up to the end of what it is given: the padding must not count.
    CHECK(CoalesceAll({padded})[0].frame == frame);
    int dropped = 0;
    const std::vector<Super> out = CoalesceAll({frame}, Collector(), &dropped);
    CHECK(dropped == 0 && out.size() == 1 && out[0].frame == frame);
    CHECK((out[0].header.flags & kVirtioNeedsChecksum) != 0);
    CHECK(out[0].header.checksum_start == View(frame).l4);
  }
}

void SuperframesOfKernelPeersStaySuperframes() {
  Shape shape;
  shape.payload = 30'000;
  for (const bool v4 : {true, false}) {
    for (const bool partial : {true, false}) {
      shape.v4 = v4;
      Frame frame = Make(shape);
      reference::Finish(frame, partial);
      const std::vector<Super> out = CoalesceAll({frame}, Collector(1450));
      CHECK(out.size() == 1);
      const VirtioHeader& header = out[0].header;
      CHECK(header.gso_type == (v4 ? kGsoTcpV4 : kGsoTcpV6));
      CHECK(header.gso_size == 1450 - (v4 ? 20 : 40) - 32);
      Frame expected = frame;
      reference::Finish(expected, true);
      CHECK(out[0].frame == expected);
    }
  }
  shape.tcp = false;
  const Frame datagrams = Make(shape);
  Coalescer coalescer;
  Collector sink(1450);
  CHECK(coalescer.Add(View(datagrams), 1000, sink));
  CHECK(sink.out.size() == 1 && sink.out[0].header.gso_type == kGsoUdpL4 && sink.out[0].header.gso_size == 1000);
  Frame corrupt = datagrams;
  corrupt.back() ^= 1;
  CHECK(!coalescer.Add(View(corrupt), 1000, sink));
}

void DatagramsWithoutChecksumPassAsTheyAre() {
  Shape shape;
  shape.tcp = false;
  shape.payload = 50;
  std::vector<Frame> frames = {Make(shape), Make(shape)};
  for (Frame& frame : frames) reference::Put16(frame, View(frame).l4 + 6u, 0);
  const std::vector<Super> out = CoalesceAll(frames);
  CHECK(out.size() == 2 && out[0].frame == frames[0] && out[1].frame == frames[1]);
  CHECK(out[0].header.flags == 0 && out[0].header.gso_type == kGsoNone);
}

void AtomicDatagramsWithOneIdAreJoined() {
  Shape shape;
  shape.tcp = false;
  shape.payload = 64;
  shape.ip_id = 0;
  CHECK(CoalesceAll({Make(shape), Make(shape), Make(shape)}).size() == 1);
  shape.dont_fragment = false;
  CHECK(CoalesceAll({Make(shape), Make(shape), Make(shape)}).size() == 3);
}

void ContradictingVirtioHeadersAreRefused() {
  for (int i = 0; i < 1500; i++) {
    Super super = MakeSuper(RandomShape(), static_cast<uint16_t>(1 + Below(3000)));
    auto* bytes = reinterpret_cast<uint8_t*>(&super.header);
    for (int k = 0; k < 2; k++) bytes[Below(sizeof super.header)] = static_cast<uint8_t>(random_bits());
    if (OneIn(2)) super.frame.resize(14 + Below(static_cast<uint32_t>(super.frame.size() - 13)));
    super.frame.shrink_to_fit();
    bool accepted = false;
    const std::vector<Frame> segments = SegmentAll(super, accepted);
    size_t total = 0;
    for (const Frame& segment : segments) total += segment.size();
    CHECK(accepted || total == 0);
  }
}

void TruncatedAndHostileFramesAreParsedWithinTheirBounds() {
  for (int i = 0; i < 2000; i++) {
    Frame frame = Make(RandomShape());
    if (OneIn(2)) frame.resize(Below(200) % (frame.size() + 1));
    for (uint32_t k = Below(4); k > 0 && !frame.empty(); k--)
      frame[Below(static_cast<uint32_t>(std::min<size_t>(frame.size(), 90)))] = static_cast<uint8_t>(random_bits());
    frame.shrink_to_fit();
    FrameView view;
    if (!ParseFrame({frame.data(), frame.size()}, view)) {
      CHECK(frame.size() < kEthernetBytes);
      continue;
    }
    CHECK(view.l3 <= view.l4 && view.l4 <= view.payload && view.payload <= view.end && view.end <= view.length);
    const NeighborQuery query = ParseNeighborQuery(view);
    uint8_t reply[kMaxNeighborReply];
    if (query.kind >= NeighborQuery::Kind::kArp && query.kind != NeighborQuery::Kind::kIgnored)
      CHECK(BuildNeighborReply(view, query, 0x0242'0a00'0009, reply) <= sizeof reply);
    CoalesceAll({frame, frame}, Collector(1450));
  }
}

void OnlyVxlanHeadersOfTheKernelsKindAreTaken() {
  Frame datagram(22);
  StoreVxlanHeader(datagram.data(), 0xabcdef);
  CHECK(ParseVxlanHeader({datagram.data(), datagram.size()}) == 0xabcdef);
  CHECK(ParseVxlanHeader({datagram.data(), 21}) == -1);
  for (size_t bit = 0; bit < 64; bit++) {
    Frame changed = datagram;
    changed[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    const bool in_vni = bit / 8 >= 4 && bit / 8 < 7;
    CHECK((ParseVxlanHeader({changed.data(), changed.size()}) >= 0) == in_vni);
  }
}

void ArpIsAnsweredForOthersAndIgnoredOtherwise() {
  for (const int tags : {0, 1}) {
    Frame ask = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0x42, 10, 0, 0, 5};
    if (tags != 0) ask.insert(ask.end(), {0x81, 0, 0, 9});
    ask.insert(ask.end(), {8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 0x02, 0x42, 10, 0, 0, 5, 10, 0, 0, 5, 0, 0, 0, 0, 0, 0, 10, 0, 0, 6});
    const NeighborQuery query = ParseNeighborQuery(View(ask));
    CHECK(query.kind == NeighborQuery::Kind::kArp);
    const uint8_t target[4] = {10, 0, 0, 6};
    CHECK(query.target == IpKey::FromV4(target));
    Frame reply(kMaxNeighborReply);
    reply.resize(BuildNeighborReply(View(ask), query, 0x02420a000006, reply.data()));
    Frame expected = {0x02, 0x42, 10, 0, 0, 5, 0x02, 0x42, 10, 0, 0, 6};
    if (tags != 0) expected.insert(expected.end(), {0x81, 0, 0, 9});
    expected.insert(expected.end(), {8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 0x02, 0x42, 10, 0, 0, 6, 10, 0, 0, 6, 0x02, 0x42, 10, 0, 0, 5, 10, 0, 0, 5});
    CHECK(reply == expected);
    Frame announcement = ask;
    announcement.back() = 5;
    CHECK(ParseNeighborQuery(View(announcement)).kind == NeighborQuery::Kind::kIgnored);
    Frame answer = ask;
    answer[answer.size() - 21] = 2;
    CHECK(ParseNeighborQuery(View(answer)).kind == NeighborQuery::Kind::kIgnored);
    ask.pop_back();
    CHECK(ParseNeighborQuery(View(ask)).kind == NeighborQuery::Kind::kIgnored);
  }
}

void NeighborSolicitationsAreAnsweredWithAValidAdvertisement() {
  Frame ask = {0x33, 0x33, 0xff, 0, 0, 6, 0x02, 0x42, 10, 0, 0, 5, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255};
  Frame source(16, 0xfd), target(16, 0xfd);
  source[15] = 5;
  target[15] = 6;
  ask.insert(ask.end(), source.begin(), source.end());
  ask.insert(ask.end(), {0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 6, 135, 0, 0, 0, 0, 0, 0, 0});
  ask.insert(ask.end(), target.begin(), target.end());
  for (const bool detection : {false, true}) {
    Frame question = ask;
    if (detection) std::fill_n(question.begin() + 22, 16, 0);
    const NeighborQuery query = ParseNeighborQuery(View(question));
    CHECK(query.kind == NeighborQuery::Kind::kSolicitation);
    CHECK(query.target == IpKey::FromV6(target.data()));
    Frame reply(kMaxNeighborReply);
    reply.resize(BuildNeighborReply(View(question), query, 0x02420a000006, reply.data()));
    const FrameView view = View(reply);
    CHECK(view.ip_version == 6 && view.protocol == kProtocolIcmpv6 && view.end == reply.size());
    CHECK(reply[view.l4] == 136 && reply[view.l3 + 7u] == 255);
    CHECK(std::equal(target.begin(), target.end(), reply.begin() + view.l4 + 8));
    CHECK(LoadMac(&reply[view.l4 + 26u]) == 0x02420a000006);
    CHECK(reference::Sum(reply, view.l4, reply.size(), reference::PseudoSum(reply, view)) == 0xffff);
    CHECK(reply[0] == (detection ? 0x33 : 0x02));
    CHECK(reply[view.l4 + 4u] == (detection ? 0x20 : 0x60));
  }
  Frame routed = ask;
  routed[21] = 254;
  CHECK(ParseNeighborQuery(View(routed)).kind == NeighborQuery::Kind::kIgnored);
}

Frame EncodeTable(const std::vector<IpKey>& vteps, const std::vector<std::array<uint64_t, 3>>& forwarding,
                  const std::vector<std::pair<std::array<uint64_t, 2>, IpKey>>& neighbors) {
  Frame out = {'n', 'a', 'e', '1'};
  const auto u32 = [&out](uint64_t value) {
    for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<uint8_t>(value >> shift));
  };
  const auto mac = [&out](uint64_t value) {
    for (int shift = 40; shift >= 0; shift -= 8) out.push_back(static_cast<uint8_t>(value >> shift));
    out.insert(out.end(), 2, 0);
  };
  u32(vteps.size());
  u32(forwarding.size());
  u32(neighbors.size());
  for (const IpKey& vtep : vteps) out.insert(out.end(), vtep.bytes, vtep.bytes + 16);
  for (const auto& [vni, address, vtep] : forwarding) u32(vni), mac(address), u32(vtep);
  for (const auto& [key, ip] : neighbors) {
    u32(key[0]);
    mac(key[1]);
    out.insert(out.end(), ip.bytes, ip.bytes + 16);
  }
  return out;
}

void TablesFindWhatTheyWereGivenAndNothingElse() {
  for (int round = 0; round < 20; round++) {
    std::vector<IpKey> vteps(1 + Below(50));
    for (IpKey& vtep : vteps)
      for (uint8_t& byte : vtep.bytes) byte = static_cast<uint8_t>(random_bits());
    std::vector<std::array<uint64_t, 3>> forwarding;
    std::map<std::pair<uint64_t, uint64_t>, uint64_t> expected;
    std::vector<std::pair<std::array<uint64_t, 2>, IpKey>> neighbors;
    for (uint32_t i = 0, count = Below(3000); i < count; i++) {
      forwarding.push_back({Below(5), random_bits() & 0xff, Below(static_cast<uint32_t>(vteps.size()))});
      expected[{forwarding.back()[0], forwarding.back()[1]}] = forwarding.back()[2];
      const uint8_t four[4] = {10, static_cast<uint8_t>(i >> 16), static_cast<uint8_t>(i >> 8), static_cast<uint8_t>(i)};
      neighbors.push_back({{i % 7, i}, IpKey::FromV4(four)});
    }
    const Frame encoded = EncodeTable(vteps, forwarding, neighbors);
    const auto table = ForwardingTable::Decode({encoded.data(), encoded.size()}, random_bits());
    CHECK(table != nullptr);
    for (uint32_t vni = 0; vni < 6; vni++) {
      for (uint64_t mac = 0; mac < 0x120; mac++) {
        const auto found = expected.find({vni, mac});
        CHECK(table->FindVtep(vni, mac) == (found == expected.end() ? ForwardingTable::kNoVtep : found->second));
      }
    }
    for (const auto& [key, ip] : neighbors) {
      CHECK(table->FindMac(static_cast<uint32_t>(key[0]), ip) == key[1]);
      CHECK(table->FindMac(static_cast<uint32_t>(key[0] + 7), ip) == ForwardingTable::kNoMac);
    }
    // Any damage to the frame of the format is refused; damage to entries gives another table, never a crash.
    for (int i = 0; i < 50; i++) {
      Frame damaged = encoded;
      if (OneIn(2)) damaged.resize(Below(static_cast<uint32_t>(damaged.size())));
      else damaged[Below(16)] ^= static_cast<uint8_t>(1 << Below(8));
      damaged.shrink_to_fit();
      CHECK(ForwardingTable::Decode({damaged.data(), damaged.size()}, 1) == nullptr);
    }
  }
  CHECK(ForwardingTable::Empty() != nullptr);
}

void PublishedValuesLiveAsLongAsAReaderLooks() {
  static std::atomic<int> alive{0};
  struct Value {
    explicit Value(int number) : a(number), b(-number) { alive++; }
    ~Value() {
      a = b = 1;
      alive--;
    }
    int a, b;
  };
  {
    Published<Value, 2> published(std::make_unique<Value>(0));
    std::atomic<bool> stop{false};
    std::atomic<int> torn{0};
    std::vector<std::thread> readers;
    for (int index = 0; index < 2; index++) {
      readers.emplace_back([&, index] {
        while (!stop) {
          const Value& value = published.Enter(index);
          for (int i = 0; i < 20; i++)
            if (value.a + value.b != 0) torn++;
          published.Leave(index);
        }
      });
    }
    for (int i = 1; i < 20'000; i++) published.Publish(std::make_unique<Value>(i));
    while (!published.Reclaim()) std::this_thread::yield();
    CHECK(alive == 1);
    stop = true;
    for (std::thread& reader : readers) reader.join();
    CHECK(torn == 0);
  }
  CHECK(alive == 0);
}

}  // namespace
}  // namespace netagent::engine

int main() {
  using namespace netagent::engine;
  const char* given = std::getenv("SEED");
  seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  const std::pair<const char*, void (*)()> tests[] = {
#define TEST(name) {#name, name}
      TEST(SumsEqualTheDefinition),
      TEST(SegmentsEqualTheReference),
      TEST(WholeSuperframesAreVxlanPacketsWithBothChecksumsOpen),
      TEST(PaddedSuperframesAreNotHandedOverWhole),
      TEST(CoalescingUndoesSegmentation),
      TEST(NoStreamOfFramesIsChangedByCoalescing),
      TEST(WrongChecksumsNeverBecomeRight),
      TEST(PushAndFinEndASuperframeAndCwrOnlyStartsOne),
      TEST(AcknowledgementsDoNotWait),
      TEST(PartialChecksumsOfKernelPeersAreAccepted),
      TEST(SuperframesOfKernelPeersStaySuperframes),
      TEST(DatagramsWithoutChecksumPassAsTheyAre),
      TEST(AtomicDatagramsWithOneIdAreJoined),
      TEST(ContradictingVirtioHeadersAreRefused),
      TEST(TruncatedAndHostileFramesAreParsedWithinTheirBounds),
      TEST(OnlyVxlanHeadersOfTheKernelsKindAreTaken),
      TEST(ArpIsAnsweredForOthersAndIgnoredOtherwise),
      TEST(NeighborSolicitationsAreAnsweredWithAValidAdvertisement),
      TEST(TablesFindWhatTheyWereGivenAndNothingElse),
      TEST(PublishedValuesLiveAsLongAsAReaderLooks),
#undef TEST
  };
  for (const auto& [name, run] : tests) {
    current = name;
    random_bits.seed(seed);
    const int before = failures;
    run();
    std::printf("%s %s\n", failures == before ? "ok" : "not ok", name);
  }
  return failures == 0 ? 0 : 1;
}
