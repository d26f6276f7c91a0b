// Encode and decode of Strassen-Tile layers in one pass over memory: the tiling permutation happens in registers, on
// blocks of tiles that stay in L1. Included once per instruction set, which defines the vector V: LANES floats, ROWS
// rows of a product that fit in registers with two columns, split() and merge() for eight tiles.
//
//   encode: z_l[I, K] = sum_a E[l, a] x[I t + i, K T + p],      a = i T + p, tiles of t rows and T inputs
//   decode: y[I t + i, J T + q] = sum_l D[c, l] s_l[I, J] + b[J T + q],  c = i T + q, of t rows and T outputs
//
// Either matrix may be replaced by a straight-line program of additions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "entry.h"

namespace {

using stl::Bases;
using stl::Matrix;

constexpr int L = V::LANES;
constexpr int BLOCK = 32;  // tiles per block: all values of a program of 128 fit in 16 KiB
constexpr int VECTORS = BLOCK / L;

inline float widen(uint16_t bits) {
  uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
inline float widen(float value) { return value; }
inline void narrow(float value, float* to) { *to = value; }
inline void narrow(float value, uint16_t* to) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  *to = value != value ? static_cast<uint16_t>((word >> 16) | 0x40)
                       : static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

// COUNT rows x COLUMNS vectors of M V; `factors` is M transposed, from the first of the rows, `wide` rows in all.
template <int COUNT, int COLUMNS>
inline void multiply_rows(const float* factors, int wide, int depth, const float* const* source, float* const* into,
                          int at) {
  V sum[COUNT][COLUMNS];
  for (int r = 0; r < COUNT; ++r)
    for (int c = 0; c < COLUMNS; ++c) sum[r][c] = V::zero();
  int a = 0;
  do {  // depth >= 1; with a loop that may not run the compiler keeps the sums in memory
    V value[COLUMNS];
    for (int c = 0; c < COLUMNS; ++c) value[c] = V::load(source[a] + at + L * c);
    for (int r = 0; r < COUNT; ++r) {
      const V factor = V::all(factors[r]);
      for (int c = 0; c < COLUMNS; ++c) sum[r][c] = V::fma(factor, value[c], sum[r][c]);
    }
    factors += wide;
  } while (++a < depth);
  for (int r = 0; r < COUNT; ++r)
    for (int c = 0; c < COLUMNS; ++c) sum[r][c].store(into[r] + at + L * c);
}

template <int COLUMNS>
inline void multiply_columns(const Bases& bases, const float* const* source, float* const* into, int at) {
  const int rows = bases.outputs, depth = bases.inputs;
  int r = 0;
  if constexpr (V::ROWS > 8)
    for (; r + V::ROWS <= rows && r + V::ROWS != rows - 4; r += V::ROWS)  // 16 rows are 8 and 8, not 12 and 4
      multiply_rows<V::ROWS, COLUMNS>(bases.matrix + r, rows, depth, source, into + r, at);
  if constexpr (V::ROWS >= 8)
    for (; r + 8 <= rows; r += 8) multiply_rows<8, COLUMNS>(bases.matrix + r, rows, depth, source, into + r, at);
  else
    for (; r + V::ROWS <= rows; r += V::ROWS)
      multiply_rows<V::ROWS, COLUMNS>(bases.matrix + r, rows, depth, source, into + r, at);
  for (; r + 4 <= rows; r += 4) multiply_rows<4, COLUMNS>(bases.matrix + r, rows, depth, source, into + r, at);
  for (; r + 2 <= rows; r += 2) multiply_rows<2, COLUMNS>(bases.matrix + r, rows, depth, source, into + r, at);
  for (; r < rows; ++r) multiply_rows<1, COLUMNS>(bases.matrix + r, rows, depth, source, into + r, at);
}

inline void run_program(const Bases& bases, const float* const* source, float* const* into, int vectors,
                        float* scratch) {
  const float* values[stl::MOST_VALUES];
  for (int i = 0; i < bases.inputs; ++i) values[i] = source[i];
  for (int s = 0; s < bases.step_count; ++s) {
    const int32_t* step = bases.steps + 4 * s;
    const float *left = values[step[0]], *right = values[step[1]];
    float* made = step[3] < 0 ? scratch + s * BLOCK : into[step[3]];
    values[bases.inputs + s] = made;
    if (step[2] > 0)
      for (int v = 0; v < vectors; ++v) (V::load(left + L * v) + V::load(right + L * v)).store(made + L * v);
    else
      for (int v = 0; v < vectors; ++v) (V::load(left + L * v) - V::load(right + L * v)).store(made + L * v);
  }
  for (int e = 0; e < bases.end_count; ++e) {
    const int32_t* end = bases.ends + 3 * e;
    for (int v = 0; v < vectors; ++v) {
      V x = end[1] < 0 ? V::zero() : V::load(values[end[1]] + L * v);
      if (end[2] < 0) x = V::zero() - x;
      x.store(into[end[0]] + L * v);
    }
  }
}

// into = M source on `vectors` vectors, by the matrix or by the program; scratch holds the program's steps.
inline void transform(const Bases& bases, const float* const* source, float* const* into, int vectors, float* scratch) {
  if (!bases.matrix) {
    if (vectors == VECTORS) return run_program(bases, source, into, VECTORS, scratch);
    return run_program(bases, source, into, vectors, scratch);
  }
  int v = 0;
  for (; v + 2 <= vectors; v += 2) multiply_columns<2>(bases, source, into, L * v);
  if (v < vectors) multiply_columns<1>(bases, source, into, L * v);
}

// `count` tiles of `height` rows from tile column `first` of tile row `row` into block[a][tile]; values outside of x
// are zero.
template <int T, typename Value>
inline void gather(int height, const Matrix<const Value>& x, int64_t row, int64_t first, int count,
                   float (*block)[BLOCK]) {
  const int64_t start = first * T;
  const bool inside = start + static_cast<int64_t>(count) * T <= x.columns;
  for (int i = 0; i < height; ++i) {
    float(*rows)[BLOCK] = block + i * T;
    if (row * height + i >= x.rows) {
      std::memset(rows, 0, sizeof(float) * T * BLOCK);
      continue;
    }
    const Value* from = x.data + (row * height + i) * x.stride + start;
    int done = 0;
    if (inside)
      for (; done + 8 <= count; done += 8) V::template split<T>(from + done * T, rows, done);
    const int64_t left = x.columns - start;
    for (; done < count; ++done)
      for (int p = 0; p < T; ++p) rows[p][done] = done * T + p < left ? widen(from[done * T + p]) : 0.0f;
  }
}

template <int T, typename Value>
inline void scatter(int height, const Matrix<Value>& y, const float* bias, int64_t row, int64_t first, int count,
                    const float (*block)[BLOCK]) {
  const int64_t start = first * T;
  const bool inside = start + static_cast<int64_t>(count) * T <= y.columns;
  for (int i = 0; i < height && row * height + i < y.rows; ++i) {
    const float(*rows)[BLOCK] = block + i * T;
    Value* to = y.data + (row * height + i) * y.stride + start;
    int done = 0;
    if (inside)
      for (; done + 8 <= count; done += 8)
        V::template merge<T>(rows, done, bias ? bias + start + done * T : nullptr, to + done * T);
    const int64_t left = y.columns - start;
    for (; done < count; ++done)
      for (int q = 0; q < T && done * T + q < left; ++q)
        narrow(rows[q][done] + (bias ? bias[start + done * T + q] : 0.0f), to + done * T + q);
  }
}

// One tile row into row `local` of the panel. PADDED: its rows have space for a whole vector at their end.
template <int T, bool PADDED, typename Value>
void encode_row(int height, const Matrix<const Value>& x, const Bases& bases, const stl::Panel& panel, int64_t row,
                int64_t local) {
  alignas(64) float block[stl::MOST_TILE][BLOCK];
  alignas(64) float result[stl::MOST_RANK][BLOCK];
  alignas(64) float scratch[stl::MOST_STEPS * BLOCK];
  const float* source[stl::MOST_TILE];
  float* into[stl::MOST_RANK];
  for (int a = 0; a < height * T; ++a) source[a] = block[a];
  for (int64_t first = 0; first < panel.columns; first += BLOCK) {
    const int count = static_cast<int>(std::min<int64_t>(BLOCK, panel.columns - first));
    gather<T>(height, x, row, first, count, block);
    float* out = panel.data + local * panel.stride + first;
    for (int l = 0; l < bases.outputs; ++l) {
      into[l] = out + l * panel.plane;
      // Hardware prefetch cannot follow this many planes.
      __builtin_prefetch(into[l] + BLOCK, 1);
      __builtin_prefetch(into[l] + BLOCK + 16, 1);
    }
    if (PADDED || count % L == 0) {
      transform(bases, source, into, (count + L - 1) / L, scratch);
      continue;
    }
    // A partial vector must not overwrite the next tile row, which another thread may have written.
    for (int l = 0; l < bases.outputs; ++l) into[l] = result[l];
    transform(bases, source, into, count / L + 1, scratch);
    for (int l = 0; l < bases.outputs; ++l) std::memcpy(out + l * panel.plane, result[l], sizeof(float) * count);
  }
}

// Tile columns start ... start + panel.columns - 1 of one tile row of y, from row `local` of the panel. Reads up to
// L - 1 values past the panel's row, which are not stored: its planes are padded for it.
template <int T, typename Value>
void decode_row(int height, const stl::Panel& panel, const Bases& bases, const float* bias, const Matrix<Value>& y,
                int64_t row, int64_t local, int64_t start) {
  alignas(64) float block[stl::MOST_TILE][BLOCK];
  alignas(64) float scratch[stl::MOST_STEPS * BLOCK];
  const float* source[stl::MOST_RANK];
  float* into[stl::MOST_TILE];
  for (int c = 0; c < height * T; ++c) into[c] = block[c];
  for (int64_t first = 0; first < panel.columns; first += BLOCK) {
    const int count = static_cast<int>(std::min<int64_t>(BLOCK, panel.columns - first));
    const float* in = panel.data + local * panel.stride + first;
    for (int l = 0; l < bases.inputs; ++l) {
      source[l] = in + l * panel.plane;
      __builtin_prefetch(source[l] + BLOCK);
      __builtin_prefetch(source[l] + BLOCK + 16);
    }
    transform(bases, source, into, (count + L - 1) / L, scratch);
    scatter<T>(height, y, bias, row, start + first, count, block);
  }
}

template <bool PADDED, typename Value>
void encode_tile_row(const stl::Tile& tile, const Matrix<const Value>& x, const Bases& bases, const stl::Panel& panel,
                     int64_t row, int64_t local) {
  switch (tile.inputs) {
    case 1: return encode_row<1, PADDED>(tile.rows, x, bases, panel, row, local);
    case 2: return encode_row<2, PADDED>(tile.rows, x, bases, panel, row, local);
    case 3: return encode_row<3, PADDED>(tile.rows, x, bases, panel, row, local);
    case 4: return encode_row<4, PADDED>(tile.rows, x, bases, panel, row, local);
    default: return encode_row<8, PADDED>(tile.rows, x, bases, panel, row, local);
  }
}

template <typename Value>
void encode_one(const stl::Tile& tile, const Matrix<const Value>& x, const Bases& bases, const stl::Panel& panel,
                int64_t row, int64_t local) {
  encode_tile_row<false>(tile, x, bases, panel, row, local);
}

template <typename Value>
void decode_tile_row(const stl::Tile& tile, const stl::Panel& panel, const Bases& bases, const float* bias,
                     const Matrix<Value>& y, int64_t row, int64_t local, int64_t start) {
  switch (tile.outputs) {
    case 1: return decode_row<1>(tile.rows, panel, bases, bias, y, row, local, start);
    case 2: return decode_row<2>(tile.rows, panel, bases, bias, y, row, local, start);
    case 3: return decode_row<3>(tile.rows, panel, bases, bias, y, row, local, start);
    case 4: return decode_row<4>(tile.rows, panel, bases, bias, y, row, local, start);
    default: return decode_row<8>(tile.rows, panel, bases, bias, y, row, local, start);
  }
}

template <typename Value>
void decode_one(const stl::Tile& tile, const stl::Panel& panel, const Bases& bases, const float* bias,
                const Matrix<Value>& y, int64_t row, int64_t local) {
  decode_tile_row(tile, panel, bases, bias, y, row, local, 0);
}

}  // namespace
