#pragma once
#include "bytes.h"

namespace netagent::engine {

/**
 * One's complement sums of RFC 1071, in the byte order of the wire: neither reader nor writer swaps. A sum is
 * 64 bits wide, so that 2^32 bytes fit before anybody folds. Ranges may be added one after the other as
 * long as each but the last has an even length.
 */
uint64_t SumBytes(const uint8_t* at, size_t length, uint64_t sum = 0);

/** The 16-bit sum; its complement is what a checksum field holds. */
inline uint16_t FoldSum(uint64_t sum) {
  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(sum);
}

/** What to store in a checksum field, byte order of the wire. */
inline uint16_t Checksum(uint64_t sum) { return static_cast<uint16_t>(~FoldSum(sum)); }

/** A 16-bit number as it counts in a sum. */
inline uint64_t SumTerm(uint16_t host_value) { return __builtin_bswap16(host_value); }

/** Zero and 0xffff are the same number in one's complement. */
inline bool SameSum(uint16_t a, uint16_t b) {
  return (a == 0xffff ? 0 : a) == (b == 0xffff ? 0 : b);
}

}  // namespace netagent::engine
