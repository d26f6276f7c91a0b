// Non-temporal stores for outputs of products too large for the last-level cache: a line written whole is not read
// first and does not evict inputs that are still needed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace {

#if defined(__x86_64__)
constexpr int64_t kStreamedBytes = 1 << 24;  // inputs and outputs; smaller ones stay in cache for the next reader
#else
constexpr int64_t kStreamedBytes = INT64_MAX;
#endif

// Copies `bytes` bytes: whole cache lines bypass the caches, the ends do not. Visible to other threads after
// `streamed()`.
inline void stream(char* to, const char* from, int64_t bytes) {
#if defined(__x86_64__)
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(to) & 63);
  std::memcpy(to, from, head);
  int64_t at = head;
  for (; at + 64 <= bytes; at += 64) {
    for (int part = 0; part < 64; part += 16) {
      const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at + part));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + at + part), v);
    }
  }
  std::memcpy(to + at, from + at, bytes - at);
#else
  std::memcpy(to, from, bytes);
#endif
}

inline void streamed() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace
