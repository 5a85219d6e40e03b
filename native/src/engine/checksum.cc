#include "checksum.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace netagent::engine {
namespace {

uint64_t SumPortable(const uint8_t* at, size_t length, uint64_t sum) {
  while (length >= 16) {
    const uint64_t a = LoadRaw64(at);
    const uint64_t b = LoadRaw64(at + 8);
    sum += (a & 0xffffffff) + (a >> 32) + (b & 0xffffffff) + (b >> 32);
    at += 16;
    length -= 16;
  }
  while (length >= 4) {
    sum += LoadRaw32(at);
    at += 4;
    length -= 4;
  }
  if (length >= 2) {
    sum += LoadRaw16(at);
    at += 2;
    length -= 2;
  }
  // The missing byte of an odd range counts as zero after it (little endian host).
  if (length != 0) sum += *at;
  return sum;
}

#if defined(__x86_64__)
/** Three times the portable loop; a sum of a whole superframe is 3 % of its cost instead of 9 %. */
__attribute__((target("avx2"))) uint64_t SumAvx2(const uint8_t* at, size_t length, uint64_t sum) {
  const __m256i low = _mm256_set1_epi64x(0xffffffff);
  __m256i a = _mm256_setzero_si256();
  __m256i b = _mm256_setzero_si256();
  while (length >= 64) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32));
    a = _mm256_add_epi64(a, _mm256_add_epi64(_mm256_and_si256(x, low), _mm256_srli_epi64(x, 32)));
    b = _mm256_add_epi64(b, _mm256_add_epi64(_mm256_and_si256(y, low), _mm256_srli_epi64(y, 32)));
    at += 64;
    length -= 64;
  }
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi64(a, b));
  return SumPortable(at, length, sum + lanes[0] + lanes[1] + lanes[2] + lanes[3]);
}

const bool kHasAvx2 = __builtin_cpu_supports("avx2");
#endif

}  // namespace

uint64_t SumBytes(const uint8_t* at, size_t length, uint64_t sum) {
#if defined(__x86_64__)
  if (length >= 128 && kHasAvx2) return SumAvx2(at, length, sum);
#endif
  return SumPortable(at, length, sum);
}

}  // namespace netagent::engine
