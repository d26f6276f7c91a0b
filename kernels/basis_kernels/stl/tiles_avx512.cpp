// Encode, multiply and decode with AVX-512: sixteen tiles per vector, transposed eight at a time.
#include "shuffles_avx.h"

namespace {

struct V : Shuffle {
  static constexpr int LANES = 16, ROWS = 12;
  __m512 v;

  static V of(__m512 value) {
    V x;
    x.v = value;
    return x;
  }
  static V zero() { return of(_mm512_setzero_ps()); }
  static V all(float value) { return of(_mm512_set1_ps(value)); }
  static V load(const float* from) { return of(_mm512_loadu_ps(from)); }
  static V load_half(const uint16_t* from) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    constexpr __mmask16 every = 0xffff;  // GCC 12 warns of an undefined register in the unmasked forms
    return of(_mm512_castsi512_ps(_mm512_maskz_slli_epi32(every, _mm512_maskz_cvtepu16_epi32(every, half), 16)));
  }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
  static V fma(V a, V b, V c) { return of(_mm512_fmadd_ps(a.v, b.v, c.v)); }
  V operator+(V o) const { return of(_mm512_add_ps(v, o.v)); }
  V operator-(V o) const { return of(_mm512_sub_ps(v, o.v)); }
};

}  // namespace

#include "blocks.h"

namespace stl {
const Kernels avx512 = {encode_one<float>, encode_one<uint16_t>, decode_one<float>, decode_one<uint16_t>,
                        multiply<float>,   multiply<uint16_t>,   2 * L};
}
