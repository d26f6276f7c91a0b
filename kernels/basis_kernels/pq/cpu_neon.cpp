// NEON: four rows per tree compare of floats, sixteen of 8-bit integers; 16 rows per table look-up.
#include <arm_neon.h>

#include <cstring>

#include "by_rows.h"

namespace {

using namespace pq;

inline float32x4_t four(const float* x) { return vld1q_f32(x); }
inline float32x4_t four(const uint16_t* x) {  // bfloat16
  return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(x)), 16));
}
inline float32x4_t four(const int16_t* x) { return vcvtq_f32_s32(vmovl_s16(vld1_s16(x))); }

// From a 4-bit code to the four byte positions of its float among sixteen.
template <class T>
void encode_floats(const Trees& trees, const T* x, const int64_t* offsets, int64_t rows, uint8_t* codes, int64_t stride) {
  for (int c = 0; c < trees.codebooks; ++c, offsets += kLevels) {
    uint8x16x4_t tables[kLevels];
    for (int t = 0; t < kLevels; ++t) {
      tables[t] = vld1q_u8_x4(reinterpret_cast<const uint8_t*>(trees.floats + (c * kLevels + t) * kBuckets));
    }
    for (int64_t r = 0; r < rows; r += 4) {
      uint32x4_t code = vdupq_n_u32(0);
      for (int t = 0; t < kLevels; ++t) {
        const uint32x4_t places = vmlaq_n_u32(vdupq_n_u32(0x03020100), code, 0x04040404);
        const float32x4_t v = vreinterpretq_f32_u8(vqtbl4q_u8(tables[t], vreinterpretq_u8_u32(places)));
        code = vorrq_u32(code, vandq_u32(vcgtq_f32(four(x + offsets[t] + r), v), vdupq_n_u32(8 >> t)));
      }
      const uint16x4_t narrow = vmovn_u32(code);
      const uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(narrow, narrow))), 0);
      std::memcpy(codes + c * stride + r, &bytes, 4);
    }
  }
}

void encode_bytes(const Trees& trees, const int8_t* x, const int64_t* offsets, int64_t rows, uint8_t* codes,
                  int64_t stride) {
  for (int c = 0; c < trees.codebooks; ++c, offsets += kLevels) {
    for (int64_t r = 0; r < rows; r += 16) {
      uint8x16_t code = vdupq_n_u8(0);
      for (int t = 0; t < kLevels; ++t) {
        const int8x16_t v = vqtbl1q_s8(vld1q_s8(trees.bytes + (c * kLevels + t) * kBuckets), code);
        code = vorrq_u8(code, vandq_u8(vcgtq_s8(vld1q_s8(x + offsets[t] + r), v), vdupq_n_u8(8 >> t)));
      }
      vst1q_u8(codes + c * stride + r, code);
    }
  }
}

void encode(const Trees& t, const void* x, Dtype dtype, const int64_t* offsets, int64_t rows, uint8_t* codes,
            int64_t stride) {
  switch (dtype) {
    case Dtype::f32: return encode_floats(t, static_cast<const float*>(x), offsets, rows, codes, stride);
    case Dtype::bf16: return encode_floats(t, static_cast<const uint16_t*>(x), offsets, rows, codes, stride);
    case Dtype::i16: return encode_floats(t, static_cast<const int16_t*>(x), offsets, rows, codes, stride);
    case Dtype::i8: return encode_bytes(t, static_cast<const int8_t*>(x), offsets, rows, codes, stride);
  }
}

// Few rows and float tables: the compiler vectorises over the outputs of a block.
void scan(const Tables& tables, int64_t block, Codes codes, int64_t rows, Output out) {
  return scalar_routines.scan(tables, block, codes, rows, out);
}

struct ByRows {
  static constexpr int kTile = 16;
  static constexpr int kTogether = 4;
  using Bytes = uint8x16_t;
  static Bytes load(const uint8_t* codes) { return vandq_u8(vld1q_u8(codes), vdupq_n_u8(kBuckets - 1)); }
  static Bytes look_up(const uint8_t* table, Bytes code) { return vqtbl1q_u8(vld1q_u8(table), code); }
  static Bytes average(Bytes a, Bytes b) { return vrhaddq_u8(a, b); }
  struct Sums {
    uint16x8_t low = vdupq_n_u16(0), high = vdupq_n_u16(0);
    void add(Bytes entries) {
      low = vaddw_u8(low, vget_low_u8(entries));
      high = vaddw_high_u8(high, entries);
    }
    void store(uint16_t* to) const {
      vst1q_u16(to, low);
      vst1q_u16(to + 8, high);
    }
  };
  static void prepare(const Tables&, const uint8_t*, int64_t, int64_t, uint8_t*) {}
  static void exact(const Tile& t, int count, const uint8_t*, int64_t) { sum_entries<ByRows>(t, count); }
  static void averaged(const Tile& t, int count) { sum_averages<ByRows>(t, count); }

  static void store(const Output& out, int64_t at, float y) {
    if (out.dtype == Dtype::f32) {
      static_cast<float*>(out.data)[at] = y;
      return;
    }
    uint32_t bits;
    std::memcpy(&bits, &y, 4);
    const uint32_t rounded = y != y ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    static_cast<uint16_t*>(out.data)[at] = static_cast<uint16_t>(rounded);
  }
  static void finish(const uint16_t* sums, int rows, int count, const float* scale, const float* offset, Output out,
                     int64_t row, int64_t output) {
    alignas(16) float y[kOutputs][kTile];
    for (int m = 0; m < count; ++m) {
      for (int r = 0; r < kTile; r += 4) {
        const float32x4_t sum = vcvtq_f32_u32(vmovl_u16(vld1_u16(sums + m * kTile + r)));
        vst1q_f32(y[m] + r, vfmaq_n_f32(vdupq_n_f32(offset[m]), sum, scale[m]));
      }
    }
    for (int r = 0; r < rows; ++r) {
      for (int m = 0; m < count; ++m) {
        store(out, (row + r) * out.row_stride + (output + m) * out.column_stride, y[m][r]);
      }
    }
  }
};

}  // namespace

const pq::Routines pq::neon_routines{encode, scan, scan_rows<ByRows>};
