// A call of a chain of Kronecker-sparse factors, batch-size-first or -last, and the kernels of each instruction set.
#pragma once

#include <cstdint>

namespace kronecker {

// K[i.b.d + j.d + l, i.c.d + k.d + l] = w[i, j, k, l], packed for the vectors of one instruction set:
// w [a, ceil(d / W), tiles, c, V, W] where d >= W (a vector holds W values of l, for one j), and
// w [a, 1, tiles, c, V, W] where d < W (a vector holds floor(W / d) values of j, each with all of l), but
// w [ceil(a / q), c, W] for square blocks b = c that fit a vector q = floor(W / (b.d)) times (lanes i, j, l); and
// w [a, d, ceil(b / S), c, S] for batch-size-last, independent of the vectors.
struct Factor {
  int64_t a, b, c, d;
  const void* w;
  bool half;  // bfloat16 bits, else float
};

// Whether a factor's square blocks fit whole in a vector.
inline bool fits_vector(const Factor& f, int width) { return f.b == f.c && f.b > 1 && f.b * f.d <= width; }

struct Call {
  const Factor* factors;  // in order of application: rightmost first
  int count;
  const void* x;  // [batch, in], or [in, batch] where `last`; row stride ldx
  void* y;        // [batch, out], or [out, batch]; row stride ldy
  int64_t batch, in, out, ldx, ldy;
  const float* bias;  // [out] or null
  bool half;          // x and y hold bfloat16 bits, else float
  bool last;          // batch-size-last
};

struct Kernels {
  int width;    // W, floats per vector
  int vectors;  // V, vectors per tile
  int samples;  // S, rows per tile
  void (*run)(const Call& call, int threads);
};

extern const Kernels scalar, avx2, avx512;

}  // namespace kronecker
