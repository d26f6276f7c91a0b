// What the instruction sets offer to the module: one tile row of encode or decode at a time.
#pragma once

#include <cstdint>

namespace stl {

constexpr int MOST_RANK = 64;    // the plain product of 4 x 4 tiles
constexpr int MOST_STEPS = 192;  // of a straight-line program
constexpr int MOST_VALUES = MOST_RANK + MOST_STEPS;

// Row-major rows x columns, `stride` values from row to row.
template <typename Value>
struct Matrix {
  Value* data;
  int64_t rows, columns, stride;
};

// outputs x inputs, either as a dense matrix or as a program: steps (left, right, sign) make values inputs, inputs + 1,
// ...; ends (value, sign) say what each output is.
struct Bases {
  int outputs, inputs;
  const float* matrix;  // null: the program
  const int32_t* steps;
  int step_count;
  const int32_t* ends;
};

// Encoded values [r, tile rows, columns], contiguous but for `plane` values from one l to the next.
struct Panel {
  float* data;
  int64_t plane, columns;
};

struct Kernels {
  void (*encode_f32)(int, const Matrix<const float>&, const Bases&, const Panel&, int64_t, int64_t);
  void (*encode_bf16)(int, const Matrix<const uint16_t>&, const Bases&, const Panel&, int64_t, int64_t);
  void (*decode_f32)(int, const Panel&, const Bases&, const float*, const Matrix<float>&, int64_t, int64_t);
  void (*decode_bf16)(int, const Panel&, const Bases&, const float*, const Matrix<uint16_t>&, int64_t, int64_t);
};

extern const Kernels scalar;
#if defined(__x86_64__)
extern const Kernels avx2;
#endif

}  // namespace stl
