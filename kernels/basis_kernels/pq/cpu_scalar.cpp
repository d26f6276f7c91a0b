// Portable reference: one row and one output at a time.
#include <cmath>
#include <cstring>

#include "by_rows.h"
#include "pq.h"

namespace {

using namespace pq;

// Round to nearest even.
uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

struct Bf16 {
  uint16_t bits;
  operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float y;
    std::memcpy(&y, &wide, 4);
    return y;
  }
};

template <class T, class V>
void encode_as(int codebooks, const V* levels, const T* x, const int64_t* offsets, int64_t rows, uint8_t* codes,
               int64_t codebook_stride) {
  for (int c = 0; c < codebooks; ++c, offsets += kLevels, levels += kLevels * kBuckets) {
    for (int64_t r = 0; r < rows; ++r) {
      int code = 0;
      for (int t = 0; t < kLevels; ++t) {
        code |= static_cast<V>(x[offsets[t] + r]) > levels[t * kBuckets + code] ? 8 >> t : 0;
      }
      codes[c * codebook_stride + r] = static_cast<uint8_t>(code);
    }
  }
}

void encode(const Trees& trees, const void* x, Dtype dtype, const int64_t* offsets, int64_t rows, uint8_t* codes,
            int64_t codebook_stride) {
  const auto as = [&](auto value, const auto* levels) {
    using T = decltype(value);
    encode_as(trees.codebooks, levels, static_cast<const T*>(x), offsets, rows, codes, codebook_stride);
  };
  switch (dtype) {
    case Dtype::f32: return as(float{}, trees.floats);
    case Dtype::bf16: return as(Bf16{}, trees.floats);
    case Dtype::i16: return as(int16_t{}, trees.shorts);
    case Dtype::i8: return as(int8_t{}, trees.bytes);
  }
}

void store(const Output& out, int64_t row, int64_t output, float y) {
  const int64_t to = row * out.row_stride + output * out.column_stride;
  if (out.dtype == Dtype::f32) {
    static_cast<float*>(out.data)[to] = y;
  } else {
    static_cast<uint16_t*>(out.data)[to] = to_bf16(y);
  }
}

void scan(const Tables& tables, int64_t block, Codes codes, int64_t rows, Output out) {
  const int64_t first = block * tables.lanes;
  const int count = static_cast<int>(least(tables.lanes, tables.outputs - first));
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
      store(out, r, first + m, std::fma(sum, tables.scale[first + m], tables.offset[first + m]));
    }
  }
}

struct Scalar {
  static constexpr int kTile = 16;
  static void prepare(const Tables&, const uint8_t*, int64_t, int64_t, uint8_t*) {}
  static void sum(const Tile& t, int count, int group) {
    for (int m = 0; m < count; ++m) {
      for (int r = 0; r < kTile; ++r) {
        int total = 0;
        for (int begin = 0; begin < t.codebooks; begin += group) {
          int means[kAveraged];
          for (int i = 0; i < group; ++i) {
            const int code = t.codes[(begin + i) * t.stride + r] & (kBuckets - 1);
            means[i] = t.entry(m, begin + i)[code];
          }
          for (int left = group / 2; left > 0; left /= 2) {
            for (int i = 0; i < left; ++i) means[i] = (means[2 * i] + means[2 * i + 1] + 1) >> 1;
          }
          total += means[0];
        }
        t.sums[m * kTile + r] = static_cast<uint16_t>(total);
      }
    }
  }
  static void exact(const Tile& t, int count, const uint8_t*, int64_t) { sum(t, count, 1); }
  static void averaged(const Tile& t, int count) { sum(t, count, t.group); }
  static void finish(const uint16_t* sums, int rows, int count, const float* scale, const float* offset, Output out,
                     int64_t row, int64_t output) {
    for (int r = 0; r < rows; ++r) {
      for (int m = 0; m < count; ++m) {
        store(out, row + r, output + m, std::fma(static_cast<float>(sums[m * kTile + r]), scale[m], offset[m]));
      }
    }
  }
};

}  // namespace

const pq::Routines pq::scalar_routines{encode, scan, scan_rows<Scalar>};
