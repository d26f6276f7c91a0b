// The plain meaning, one row and one output at a time.
#include <cmath>
#include <cstring>

#include "pq.h"

namespace {

using namespace pq;

// Round to nearest, ties to even.
uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void encode(const Trees& trees, const float* x, const int64_t* offsets, int64_t rows, uint8_t* codes,
            int64_t codebook_stride) {
  for (int c = 0; c < trees.codebooks; ++c, offsets += kLevels) {
    const float* v = trees.nodes + c * kBuckets;
    for (int64_t r = 0; r < rows; ++r) {
      int node = 0;
      for (int t = 0; t < kLevels; ++t) node = 2 * node + 1 + (x[offsets[t] + r] > v[node]);
      codes[c * codebook_stride + r] = static_cast<uint8_t>(node - (kBuckets - 1));
    }
  }
}

void scan(const Tables& tables, int64_t block, Codes codes, int64_t rows, Output out) {
  const int64_t first = block * tables.lanes;
  const int count = static_cast<int>(tables.outputs - first < tables.lanes ? tables.outputs - first : tables.lanes);
  const int64_t base = block * tables.codebooks * kBuckets * tables.lanes;
  for (int64_t r = 0; r < rows; ++r) {
    for (int m = 0; m < count; ++m) {
      int64_t whole = 0;
      float real = 0;
      for (int c = 0; c < tables.codebooks; ++c) {
        const int code = codes.data[r * codes.row_stride + c * codes.codebook_stride] & (kBuckets - 1);
        const int64_t at = base + (static_cast<int64_t>(c) * kBuckets + code) * tables.lanes + m;
        if (tables.bytes) {
          whole += tables.bytes[at];
        } else {
          real += tables.floats[at];
        }
      }
      const float sum = tables.bytes ? static_cast<float>(whole) : real;
      const float y = std::fma(sum, tables.scale[first + m], tables.offset[first + m]);
      const int64_t to = r * out.row_stride + first + m;
      if (out.dtype == Dtype::f32) {
        static_cast<float*>(out.data)[to] = y;
      } else {
        static_cast<uint16_t*>(out.data)[to] = to_bf16(y);
      }
    }
  }
}

}  // namespace

const pq::Routines pq::scalar_routines{encode, scan};
