// Scales and stores sixteen outputs of a row, or rows of an output, with AVX-512.
#pragma once

#include "rows_x86.h"

namespace {

inline void store16(void* to, Dtype dtype, int64_t at, __mmask16 some, __m512 y) {
  if (dtype == Dtype::f32) {
    _mm512_mask_storeu_ps(static_cast<float*>(to) + at, some, y);
    return;
  }
  const __m512i bits = _mm512_castps_si512(y), top = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, top, _mm512_set1_epi32(0x40));
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + at, some, _mm512_cvtepi32_epi16(rounded));
}

struct Stored {
  static __m512 same(float x) { return _mm512_set1_ps(x); }
  static __m512 sixteen(const float* x) { return _mm512_load_ps(x); }
  static void store16(const Output& out, int64_t at, int count, __m256i sums, __m512 scale, __m512 offset) {
    const __mmask16 some = count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
    const __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sums)), scale, offset);
    ::store16(out.data, out.dtype, at, some, y);
  }
};

}  // namespace
