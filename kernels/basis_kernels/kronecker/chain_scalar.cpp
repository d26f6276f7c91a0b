// Plain C++: one float per "vector".
#include "blocks.h"

namespace {

struct Scalar {
  static constexpr int W = 1, V = 4, S = 6;
  using Vector = float;
  static Vector zero() { return 0; }
  static Vector load(const float* p) { return *p; }
  static Vector load(const uint16_t* p) { return from_half(*p); }
  static Vector load_some(const float* p, int64_t) { return *p; }
  static void store(float* p, Vector v) { *p = v; }
  static void store_some(float* p, Vector v, int64_t) { *p = v; }
  template <int>
  static Vector repeat(const float* p) {
    return *p;
  }
  static Vector add(Vector x, Vector y) { return x + y; }
  static Vector fma(Vector x, Vector y, Vector z) { return x * y + z; }
};

}  // namespace

const kronecker::Kernels kronecker::scalar = {Scalar::W, Scalar::V, Scalar::S, &run<Scalar>};
