// A second, slow implementation of what segment.cc and coalesce.cc do, written from the RFCs and sharing no code with
// them beyond the header parser: vectors of bytes, one field at a time, checksums by the definition.
#pragma once
#include <cstdint>
#include <vector>

#include "engine/parse.h"
#include "engine/virtio.h"

namespace netagent::engine::reference {

using Frame = std::vector<uint8_t>;

/** One's complement sum over big endian words, RFC 1071 §1, an odd byte padded with zero. */
inline uint16_t Sum(const Frame& bytes, size_t from, size_t to, uint32_t sum = 0) {
  for (size_t i = from; i < to; i += 2) {
    sum += static_cast<uint32_t>(bytes[i] << 8 | (i + 1 < to ? bytes[i + 1] : 0));
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return static_cast<uint16_t>(sum);
}

inline void Put16(Frame& bytes, size_t at, uint32_t value) {
  bytes[at] = static_cast<uint8_t>(value >> 8);
  bytes[at + 1] = static_cast<uint8_t>(value);
}
inline uint32_t Get16(const Frame& bytes, size_t at) { return static_cast<uint32_t>(bytes[at] << 8 | bytes[at + 1]); }
inline void Put32(Frame& bytes, size_t at, uint32_t value) {
  Put16(bytes, at, value >> 16);
  Put16(bytes, at + 2, value & 0xffff);
}
inline uint32_t Get32(const Frame& bytes, size_t at) { return Get16(bytes, at) << 16 | Get16(bytes, at + 2); }

inline FrameView View(const Frame& frame) {
  FrameView view;
  ParseFrame({frame.data(), frame.size()}, view);
  return view;
}

inline uint16_t PseudoSum(const Frame& frame, const FrameView& view) {
  const size_t from = view.l3 + (view.ip_version == 4 ? 12u : 8u);
  const uint32_t start = view.protocol + (view.end - view.l4);
  return Sum(frame, from, from + (view.ip_version == 4 ? 8u : 32u), start);
}

inline size_t ChecksumAt(const FrameView& view) {
  return view.l4 + (view.kind == FrameView::Kind::kTcp ? 16u : 6u);
}

/** Fills in lengths and both checksums of a frame whose other bytes are as they should be. */
inline void Finish(Frame& frame, bool partial = false) {
  // Lengths first: without them the parser refuses. Where things lie does not depend on them.
  size_t l3 = 14;
  while (Get16(frame, l3 - 2) == 0x8100 || Get16(frame, l3 - 2) == 0x88a8) l3 += 4;
  const bool v4 = frame[l3] >> 4 == 4;
  const size_t l4 = l3 + (v4 ? (frame[l3] & 15u) * 4u : 40u);
  if (v4) {
    Put16(frame, l3 + 2, static_cast<uint32_t>(frame.size() - l3));
    Put16(frame, l3 + 10, 0);
    Put16(frame, l3 + 10, static_cast<uint16_t>(~Sum(frame, l3, l4)));
  } else {
    Put16(frame, l3 + 4, static_cast<uint32_t>(frame.size() - l3 - 40));
  }
  if (frame[l3 + (v4 ? 9 : 6)] == kProtocolUdp) Put16(frame, l4 + 4, static_cast<uint32_t>(frame.size() - l4));
  const FrameView view = View(frame);
  if (view.kind < FrameView::Kind::kTcp) return;
  const size_t at = ChecksumAt(view);
  const uint16_t pseudo = PseudoSum(frame, view);
  if (partial) {
    Put16(frame, at, pseudo);
    return;
  }
  Put16(frame, at, 0);
  uint16_t checksum = static_cast<uint16_t>(~Sum(frame, view.l4, view.end, pseudo));
  if (checksum == 0 && view.kind == FrameView::Kind::kUdp) checksum = 0xffff;
  Put16(frame, at, checksum);
}

/** What a network card makes of a frame with this virtio header: the frames of the wire. */
inline std::vector<Frame> Segment(const Frame& frame, const VirtioHeader& header) {
  const FrameView view = View(frame);
  if (header.gso_type == kGsoNone) {
    Frame out = frame;
    if ((header.flags & kVirtioNeedsChecksum) != 0) Finish(out);
    return {out};
  }
  std::vector<Frame> out;
  for (size_t offset = 0; offset < view.payload_length(); offset += header.gso_size) {
    const size_t size = std::min<size_t>(header.gso_size, view.payload_length() - offset);
    Frame segment(frame.begin(), frame.begin() + view.payload);
    segment.insert(segment.end(), frame.begin() + view.payload + static_cast<long>(offset),
                   frame.begin() + view.payload + static_cast<long>(offset + size));
    if (view.ip_version == 4) Put16(segment, view.l3 + 4u, Get16(segment, view.l3 + 4u) + static_cast<uint32_t>(out.size()));
    if (view.kind == FrameView::Kind::kTcp) {
      Put32(segment, view.l4 + 4u, Get32(segment, view.l4 + 4u) + static_cast<uint32_t>(offset));
      if (offset + size < view.payload_length()) segment[view.l4 + 13u] &= 0xf6;  // FIN, PSH
      if (offset != 0) segment[view.l4 + 13u] &= 0x7f;                            // CWR
    }
    Finish(segment);
    out.push_back(segment);
  }
  return out;
}

}  // namespace netagent::engine::reference
