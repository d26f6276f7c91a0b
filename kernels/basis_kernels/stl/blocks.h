// A whole layer, block by block: encode some tile rows, multiply them by one strip of the weights after another, decode
// each strip while its r products are still in L2. Included once per instruction set.
//
//   s_l[I, J] = sum_K z_l[I, K] w_l[K, J]
#pragma once

#include "tiles.h"

namespace {

inline V load_weights(const float* from) { return V::load(from); }
inline V load_weights(const uint16_t* from) { return V::load_half(from); }

// s [COUNT, 2 L] (+)= z [COUNT, depth] times a panel [depth, 2 L] of weights.
template <int COUNT, typename Stored>
inline void multiply_strip(const float* z, int64_t z_row, const Stored* weights, int64_t depth, float* s, int64_t s_row,
                           bool add) {
  V sum[COUNT][2];
  const float* rows[COUNT];
  for (int r = 0; r < COUNT; ++r) {
    rows[r] = z + r * z_row;
    sum[r][0] = add ? V::load(s + r * s_row) : V::zero();
    sum[r][1] = add ? V::load(s + r * s_row + L) : V::zero();
  }
  int64_t k = 0;
  do {
    const V left = load_weights(weights), right = load_weights(weights + L);
    weights += 2 * L;
    for (int r = 0; r < COUNT; ++r) {
      const V factor = V::all(rows[r][k]);
      sum[r][0] = V::fma(factor, left, sum[r][0]);
      sum[r][1] = V::fma(factor, right, sum[r][1]);
    }
  } while (++k < depth);
  for (int r = 0; r < COUNT; ++r) {
    sum[r][0].store(s + r * s_row);
    sum[r][1].store(s + r * s_row + L);
  }
}

template <int COUNT, typename Stored>
void multiply_rest(int count, const float* z, int64_t z_row, const Stored* weights, int64_t depth, float* s,
                   int64_t s_row, bool add) {
  if (count == COUNT) return multiply_strip<COUNT>(z, z_row, weights, depth, s, s_row, add);
  if constexpr (COUNT > 1) multiply_rest<COUNT - 1>(count, z, z_row, weights, depth, s, s_row, add);
}

template <typename Stored, typename Value>
void multiply_block(const stl::Layer& layer, const stl::Block& block, const Matrix<const Value>& x,
                    const Matrix<Value>& y, int64_t first, int64_t count, float* room) {
  const stl::Weight& w = layer.weight;
  const int64_t z_row = stl::padded(w.depth), z_plane = block.rows * z_row;
  const int64_t s_row = block.width, s_plane = block.rows * s_row;
  float *z = room, *s = room + w.rank * z_plane;
  for (int64_t local = 0; local < count; ++local)
    encode_tile_row<true>(layer.tile, x, *layer.encode, {z, z_plane, z_row, w.depth}, first + local, local);
  const int64_t panels = (w.columns + 2 * L - 1) / (2 * L);
  for (int64_t from = 0; from < w.columns; from += block.width) {
    const int64_t columns = std::min(block.width, w.columns - from);
    for (int l = 0; l < w.rank; ++l) {
      const Stored* plane = static_cast<const Stored*>(w.data) + l * panels * w.depth * 2 * L;
      for (int64_t k = 0; k < w.depth; k += block.depth) {
        const int64_t deep = std::min(block.depth, w.depth - k);
        for (int64_t j = 0; j < columns; j += 2 * L) {
          const Stored* weights = plane + ((from + j) * w.depth + k * 2 * L);
          int64_t i = 0;
          for (; i + V::ROWS <= count; i += V::ROWS)
            multiply_strip<V::ROWS>(z + l * z_plane + i * z_row + k, z_row, weights, deep,
                                    s + l * s_plane + i * s_row + j, s_row, k > 0);
          if (i < count)
            multiply_rest<V::ROWS - 1>(static_cast<int>(count - i), z + l * z_plane + i * z_row + k, z_row, weights,
                                       deep, s + l * s_plane + i * s_row + j, s_row, k > 0);
        }
      }
    }
    for (int64_t local = 0; local < count; ++local)
      decode_tile_row(layer.tile, {s, s_plane, s_row, columns}, *layer.decode, layer.bias, y, first + local, local,
                      from);
  }
}

template <typename Value>
void multiply(const stl::Layer& layer, const stl::Block& block, const Matrix<const Value>& x, const Matrix<Value>& y,
              int64_t first, int64_t count, float* room) {
  if (layer.weight.half) return multiply_block<uint16_t>(layer, block, x, y, first, count, room);
  return multiply_block<float>(layer, block, x, y, first, count, room);
}

}  // namespace
