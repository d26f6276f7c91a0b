// Functions that each instruction set provides: encode and decode of tile rows, and whole blocks of a layer.
#pragma once

#include <cstdint>

namespace stl {

constexpr int MOST_RANK = 128;   // the plain product of 4 x 4 by 4 x 8 tiles
constexpr int MOST_STEPS = 192;  // of a straight-line program
constexpr int MOST_TILE = 64;    // values of a tile of x or of y
constexpr int MOST_VALUES = MOST_RANK + MOST_STEPS;

// A product of a rows x inputs tile of x and an inputs x outputs tile of the weight.
struct Tile {
  int rows, inputs, outputs;
};

// Row-major rows x columns, `stride` values from row to row.
template <typename Value>
struct Matrix {
  Value* data;
  int64_t rows, columns, stride;
};

// outputs x inputs, either as a dense matrix (stored transposed, so that one input's factors are contiguous) or as a
// program: steps (left, right, sign, home) compute values inputs, inputs + 1, ..., each written directly to output
// `home` unless that is -1; ends (output, value, sign) are the outputs that are no step's home, value -1 is zero.
struct Bases {
  int outputs, inputs;
  const float* matrix;  // [inputs, outputs]; null where there is a program
  const int32_t* steps;
  int step_count;
  const int32_t* ends;
  int end_count;
};

// Encoded values [r, tile rows, columns]: `plane` values from one l to the next, `stride` from row to row.
struct Panel {
  float* data;
  int64_t plane, stride, columns;
};

// Encoded weights [r, M / width, K, width], zeros at the right edge: the multiplication reads them sequentially.
struct Weight {
  const void* data;  // float, or bfloat16 as uint16_t
  bool half;
  int rank;
  int64_t depth, columns;  // K, M
};

// A layer's parts and the size of its blocks: `rows` tile rows are encoded at a time, `width` tile columns of all r
// products are decoded at a time, `depth` values of K are multiplied per pass.
struct Layer {
  Tile tile;
  const Bases *encode, *decode;
  const float* bias;
  Weight weight;
};
struct Block {
  int64_t rows, width, depth;
};

struct Kernels {
  void (*encode_f32)(const Tile&, const Matrix<const float>&, const Bases&, const Panel&, int64_t, int64_t);
  void (*encode_bf16)(const Tile&, const Matrix<const uint16_t>&, const Bases&, const Panel&, int64_t, int64_t);
  void (*decode_f32)(const Tile&, const Panel&, const Bases&, const float*, const Matrix<float>&, int64_t, int64_t);
  void (*decode_bf16)(const Tile&, const Panel&, const Bases&, const float*, const Matrix<uint16_t>&, int64_t, int64_t);
  // Tile rows first ... first + count - 1 of y; `room` holds room_floats() values, aligned to 64 bytes.
  void (*multiply_f32)(const Layer&, const Block&, const Matrix<const float>&, const Matrix<float>&, int64_t, int64_t,
                       float* room);
  void (*multiply_bf16)(const Layer&, const Block&, const Matrix<const uint16_t>&, const Matrix<uint16_t>&, int64_t,
                        int64_t, float* room);
  int width;  // columns of one panel of packed weights
};

// The row stride of encoded values: whole cache lines, but not a power of two, since rows read together would then
// compete for one set of L1.
inline int64_t padded(int64_t columns) { return (columns + 15) / 16 * 16 + 16; }

inline int64_t room_floats(const Layer& layer, const Block& block) {
  return layer.weight.rank * block.rows * (padded(layer.weight.depth) + block.width) + 64;
}

extern const Kernels scalar;
#if defined(__x86_64__)
extern const Kernels avx2, avx512;
#endif

}  // namespace stl
