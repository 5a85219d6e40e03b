#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace netagent::engine {

/** A byte range that somebody else owns. */
using Bytes = std::span<const uint8_t>;

// Loads and stores at any alignment. `Raw` keeps the byte order of the wire: for comparing, copying and
// one's complement sums, which do not care.
inline uint16_t LoadRaw16(const uint8_t* at) {
  uint16_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
inline uint32_t LoadRaw32(const uint8_t* at) {
  uint32_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
inline uint64_t LoadRaw64(const uint8_t* at) {
  uint64_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
inline void StoreRaw16(uint8_t* at, uint16_t value) { std::memcpy(at, &value, sizeof value); }

inline uint16_t Load16(const uint8_t* at) { return __builtin_bswap16(LoadRaw16(at)); }
inline uint32_t Load32(const uint8_t* at) { return __builtin_bswap32(LoadRaw32(at)); }
inline void Store16(uint8_t* at, uint16_t value) { StoreRaw16(at, __builtin_bswap16(value)); }
inline void Store32(uint8_t* at, uint32_t value) {
  value = __builtin_bswap32(value);
  std::memcpy(at, &value, sizeof value);
}

/** Six bytes as a number; equal addresses are equal numbers. */
inline uint64_t LoadMac(const uint8_t* at) {
  return (static_cast<uint64_t>(Load16(at)) << 32) | Load32(at + 2);
}
inline void StoreMac(uint8_t* at, uint64_t mac) {
  Store16(at, static_cast<uint16_t>(mac >> 32));
  Store32(at + 2, static_cast<uint32_t>(mac));
}
inline bool IsMulticastMac(const uint8_t* at) { return (at[0] & 1) != 0; }

}  // namespace netagent::engine
