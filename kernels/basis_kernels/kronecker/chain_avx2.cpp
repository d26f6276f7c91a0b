// AVX2 and FMA: 6 rows times 2 vectors of 8 floats.
#include "blocks.h"

#include <immintrin.h>

namespace {

alignas(32) const int32_t MASKS[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

struct Avx2 {
  static constexpr int W = 8, V = 2, S = 6;
  using Vector = __m256;
  static __m256i mask(int64_t lanes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(MASKS + 8 - lanes));
  }
  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static Vector load(const uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static Vector load_some(const float* p, int64_t lanes) { return _mm256_maskload_ps(p, mask(lanes)); }
  static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
  static void store_some(float* p, Vector v, int64_t lanes) { _mm256_maskstore_ps(p, mask(lanes), v); }
  template <int XW>
  static Vector repeat(const float* p) {
    if constexpr (XW == 1) return _mm256_broadcast_ss(p);
    if constexpr (XW == 2) return _mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double*>(p)));
    if constexpr (XW == 4) return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
    return _mm256_loadu_ps(p);
  }
  static Vector permute(Vector v, const int32_t* order) {
    return _mm256_permutevar8x32_ps(v, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(order)));
  }
  static Vector add(Vector x, Vector y) { return _mm256_add_ps(x, y); }
  static Vector fma(Vector x, Vector y, Vector z) { return _mm256_fmadd_ps(x, y, z); }
};

}  // namespace

const kronecker::Kernels kronecker::avx2 = {Avx2::W, Avx2::V, Avx2::S, &run<Avx2>};
