// Encode, multiply and decode with AVX2: eight tiles per vector.
#include "shuffles_avx.h"

namespace {

struct V : Shuffle {
  static constexpr int LANES = 8, ROWS = 6;
  __m256 v;

  static V of(__m256 value) {
    V x;
    x.v = value;
    return x;
  }
  static V zero() { return of(_mm256_setzero_ps()); }
  static V all(float value) { return of(_mm256_set1_ps(value)); }
  static V load(const float* from) { return of(_mm256_loadu_ps(from)); }
  static V load_half(const uint16_t* from) { return of(load8(from)); }
  void store(float* to) const { _mm256_storeu_ps(to, v); }
  static V fma(V a, V b, V c) { return of(_mm256_fmadd_ps(a.v, b.v, c.v)); }
  V operator+(V o) const { return of(_mm256_add_ps(v, o.v)); }
  V operator-(V o) const { return of(_mm256_sub_ps(v, o.v)); }
};

}  // namespace

#include "blocks.h"

namespace stl {
const Kernels avx2 = {encode_one<float>, encode_one<uint16_t>, decode_one<float>, decode_one<uint16_t>,
                      multiply<float>,   multiply<uint16_t>,   2 * L};
}
