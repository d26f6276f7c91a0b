// Rearranges eight tiles between rows of a matrix and rows of tiles by 4 x 4 and 2 x 2 transposes in AVX registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

float widen(uint16_t bits);
float widen(float value);
void narrow(float value, float* to);
void narrow(float value, uint16_t* to);

inline __m256 load8(const float* from) { return _mm256_loadu_ps(from); }
inline __m256 load8(const uint16_t* from) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline void store8(__m256 value, float* to) { _mm256_storeu_ps(to, value); }
inline void store8(__m256 value, uint16_t* to) {
  // Round to nearest even; NaN stays NaN.
  const __m256i word = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(1));
  __m256i half = _mm256_srli_epi32(_mm256_add_epi32(word, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  half = _mm256_blendv_epi8(half, quiet, nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(half, half), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

// a, b, c, d -> their columns, within each half.
inline void transpose4(__m256& a, __m256& b, __m256& c, __m256& d) {
  const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  a = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
  b = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
  c = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
  d = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
}

// [0 1 | 2 3], [4 5 | 6 7] (quarters) -> [0 2 | ..] as 128-bit lanes: low halves, high halves.
inline __m256 lows(__m256 a, __m256 b) { return _mm256_permute2f128_ps(a, b, 0x20); }
inline __m256 highs(__m256 a, __m256 b) { return _mm256_permute2f128_ps(a, b, 0x31); }

struct Shuffle {
  // 8 T consecutive values of a row -> T rows of eight tiles.
  template <int T, typename Value, typename Rows>
  static void split(const Value* from, Rows rows, int at) {
    if constexpr (T == 4) {
      const __m256 x0 = load8(from), x1 = load8(from + 8), x2 = load8(from + 16), x3 = load8(from + 24);
      // Lane pairs (tile t | tile t + 4), so that the columns come out in the order of tiles.
      __m256 a = lows(x0, x2), b = highs(x0, x2), c = lows(x1, x3), d = highs(x1, x3);
      transpose4(a, b, c, d);
      _mm256_storeu_ps(&rows[0][at], a);
      _mm256_storeu_ps(&rows[1][at], b);
      _mm256_storeu_ps(&rows[2][at], c);
      _mm256_storeu_ps(&rows[3][at], d);
    } else if constexpr (T == 2) {
      const __m256 x0 = load8(from), x1 = load8(from + 8);
      const __m256 low = lows(x0, x1), high = highs(x0, x1);
      _mm256_storeu_ps(&rows[0][at], _mm256_shuffle_ps(low, high, 0x88));
      _mm256_storeu_ps(&rows[1][at], _mm256_shuffle_ps(low, high, 0xdd));
    } else {
      for (int tile = 0; tile < 8; ++tile)
        for (int p = 0; p < T; ++p) rows[p][at + tile] = widen(from[tile * T + p]);
    }
  }

  // T rows of eight tiles -> 8 T consecutive values of a row, plus the bias.
  template <int T, typename Rows, typename Value>
  static void merge(Rows rows, int at, const float* bias, Value* to) {
    if constexpr (T == 4 || T == 2) {
      __m256 out[T];
      if constexpr (T == 4) {
        __m256 a = _mm256_loadu_ps(&rows[0][at]), b = _mm256_loadu_ps(&rows[1][at]);
        __m256 c = _mm256_loadu_ps(&rows[2][at]), d = _mm256_loadu_ps(&rows[3][at]);
        transpose4(a, b, c, d);
        out[0] = lows(a, b), out[1] = lows(c, d), out[2] = highs(a, b), out[3] = highs(c, d);
      } else {
        const __m256 a = _mm256_loadu_ps(&rows[0][at]), b = _mm256_loadu_ps(&rows[1][at]);
        const __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
        out[0] = lows(low, high), out[1] = highs(low, high);
      }
      for (int v = 0; v < T; ++v) {
        if (bias) out[v] = _mm256_add_ps(out[v], _mm256_loadu_ps(bias + 8 * v));
        store8(out[v], to + 8 * v);
      }
    } else {
      for (int tile = 0; tile < 8; ++tile)
        for (int q = 0; q < T; ++q) narrow(rows[q][at + tile] + (bias ? bias[tile * T + q] : 0.0f), to + tile * T + q);
    }
  }
};

}  // namespace
