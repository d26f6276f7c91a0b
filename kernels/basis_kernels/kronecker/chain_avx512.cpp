// AVX-512: 6 rows times 4 vectors of 16 floats.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns about undefined operands inside its intrinsics
#include "blocks.h"

#include <immintrin.h>

namespace {

struct Avx512 {
  static constexpr int W = 16, V = 4, S = 6;
  using Vector = __m512;
  static __mmask16 mask(int64_t lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }
  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static Vector load(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static Vector load_some(const float* p, int64_t lanes) { return _mm512_maskz_loadu_ps(mask(lanes), p); }
  static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
  static void store_some(float* p, Vector v, int64_t lanes) { _mm512_mask_storeu_ps(p, mask(lanes), v); }
  template <int XW>
  static Vector repeat(const float* p) {
    if constexpr (XW == 1) return _mm512_set1_ps(*p);
    if constexpr (XW == 2) return _mm512_castpd_ps(_mm512_set1_pd(*reinterpret_cast<const double*>(p)));
    if constexpr (XW == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
    if constexpr (XW == 8) return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
    return _mm512_loadu_ps(p);
  }
  static Vector permute(Vector v, const int32_t* order) {
    return _mm512_permutexvar_ps(_mm512_loadu_si512(order), v);
  }
  static Vector add(Vector x, Vector y) { return _mm512_add_ps(x, y); }
  static Vector fma(Vector x, Vector y, Vector z) { return _mm512_fmadd_ps(x, y, z); }
};

}  // namespace

const kronecker::Kernels kronecker::avx512 = {Avx512::W, Avx512::V, Avx512::S, &run<Avx512>};
