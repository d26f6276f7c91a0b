// Transposes, scales and stores sums of 16 outputs x 16 rows; for AVX2 and wider.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "by_rows.h"

namespace {

// N registers of outputs, tables of floats; Isa::finish<N> scales and stores the first `count` of these.
template <class Isa, int N>
void scan_float(const Tables& tables, int64_t block, Codes codes, int64_t rows, Output out) {
  using Vector = typename Isa::Vector;
  constexpr int kWidth = sizeof(Vector) / sizeof(float), kLanes = kWidth * N;
  const int64_t first = block * kLanes;
  const int count = static_cast<int>(least(kLanes, tables.outputs - first));
  const float* base = tables.floats + block * tables.codebooks * kBuckets * kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* code = codes.data + r * codes.row_stride;
    Vector sums[N] = {};
    const float* table = base;
    for (int c = 0; c < tables.codebooks; ++c, table += kBuckets * kLanes) {
      const float* entry = table + (code[c * codes.codebook_stride] & (kBuckets - 1)) * kLanes;
      for (int n = 0; n < N; ++n) sums[n] += *reinterpret_cast<const Vector*>(entry + kWidth * n);
    }
    Isa::template finish<N>(sums, tables.scale + first, tables.offset + first, count, out, r * out.row_stride + first);
  }
}

// Transpose. In: v[m] holds 16 rows of output m. Out: v[r] holds 16 outputs of row r.
inline void turn(__m256i* v) {
  __m256i half[2][8];  // [outputs 0 .. 7, 8 .. 15][row k in the low lane, k + 8 in the high one]
  for (int h = 0; h < 2; ++h) {
    const __m256i* a = v + 8 * h;
    __m256i two[8], four[8];
    for (int i = 0; i < 4; ++i) {
      two[i] = _mm256_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
      two[4 + i] = _mm256_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        four[4 * i + 2 * j] = _mm256_unpacklo_epi32(two[4 * i + 2 * j], two[4 * i + 2 * j + 1]);
        four[4 * i + 2 * j + 1] = _mm256_unpackhi_epi32(two[4 * i + 2 * j], two[4 * i + 2 * j + 1]);
      }
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        half[h][4 * i + 2 * j] = _mm256_unpacklo_epi64(four[4 * i + j], four[4 * i + 2 + j]);
        half[h][4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(four[4 * i + j], four[4 * i + 2 + j]);
      }
    }
  }
  for (int k = 0; k < 8; ++k) {
    v[k] = _mm256_permute2x128_si256(half[0][k], half[1][k], 0x20);
    v[8 + k] = _mm256_permute2x128_si256(half[0][k], half[1][k], 0x31);
  }
}

// Scales and stores sums [kOutputs][kTile]; Isa::store16 writes `count` of sixteen outputs of one row (scale, offset as
// vectors) and Isa::store_column sixteen rows of one output.
template <class Isa>
inline void finish_rows(const uint16_t* sums, int rows, int count, const float* scale, const float* offset, Output out,
                        int64_t row, int64_t output) {
  if (out.column_stride != 1) {  // column-major
    for (int m = 0; m < count; ++m) {
      for (int r = 0; r < rows; r += 16) {
        const __m256i v = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + m * Isa::kTile + r));
        Isa::store16(out, (output + m) * out.column_stride + row + r, rows - r, v, Isa::same(scale[m]), Isa::same(offset[m]));
      }
    }
    return;
  }
  const auto a = Isa::sixteen(scale), b = Isa::sixteen(offset);
  for (int r = 0; r < rows; r += 16) {
    __m256i v[16];
    for (int m = 0; m < 16; ++m) v[m] = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + m * Isa::kTile + r));
    turn(v);
    const int some = static_cast<int>(least(16, rows - r));
    for (int i = 0; i < some; ++i) Isa::store16(out, (row + r + i) * out.row_stride + output, count, v[i], a, b);
  }
}

}  // namespace
