// Batch-size-last: K x for x [acd, batch]. Vectors run over the batch; a weight is broadcast to all lanes.
//
// For each block (i, l) a product [b, c] x [c, columns]: acc[j][v] += w[j, k] * x[(i,k,l), v]. The c rows of x are d
// rows apart; where many outputs read them they are first copied to a panel, 128 rows of one tile's columns at a time.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "chain.h"
#include "tiles.h"

namespace {

constexpr int64_t COLUMN_BYTES = 512 << 10;  // two intermediates of a chain: L2

template <class T, int J>
void column_tile(int64_t depth, const float* x, int64_t x_step, const float* w, float* y, int64_t ldy, int64_t lanes,
                 bool accumulate) {
  constexpr int V = T::V, W = T::W;
  typename T::Vector acc[J][V];
  for (int j = 0; j < J; ++j)
    for (int v = 0; v < V; ++v) {
      acc[j][v] = T::zero();
      if (v * W % LINE == 0) __builtin_prefetch(y + j * ldy + v * W, 1);  // harmless past the last column
    }
  for (int64_t k = 0; k < depth; ++k, x += x_step, w += T::S) {
    typename T::Vector xv[V];
    for (int v = 0; v < V; ++v) xv[v] = T::load(x + v * W);
    for (int j = 0; j < J; ++j) {
      const typename T::Vector wv = T::template repeat<1>(w + j);
      for (int v = 0; v < V; ++v) acc[j][v] = T::fma(xv[v], wv, acc[j][v]);
    }
  }
  for (int j = 0; j < J; ++j, y += ldy)
    for (int v = 0; v < V && v * W < lanes; ++v) {
      float* to = y + v * W;
      const int64_t some = std::min<int64_t>(W, lanes - v * W);
      if (some == W)
        T::store(to, accumulate ? T::add(acc[j][v], T::load(to)) : acc[j][v]);
      else
        T::store_some(to, accumulate ? T::add(acc[j][v], T::load_some(to, some)) : acc[j][v], some);
    }
}

template <class T>
void column_tile_of(int64_t rows, int64_t depth, const float* x, int64_t x_step, const float* w, float* y, int64_t ldy,
                    int64_t lanes, bool accumulate) {
  switch (rows) {
    case 1: return column_tile<T, 1>(depth, x, x_step, w, y, ldy, lanes, accumulate);
    case 2: return column_tile<T, 2>(depth, x, x_step, w, y, ldy, lanes, accumulate);
    case 3: return column_tile<T, 3>(depth, x, x_step, w, y, ldy, lanes, accumulate);
    case 4: return column_tile<T, 4>(depth, x, x_step, w, y, ldy, lanes, accumulate);
    case 5: return column_tile<T, 5>(depth, x, x_step, w, y, ldy, lanes, accumulate);
    default: return column_tile<T, 6>(depth, x, x_step, w, y, ldy, lanes, accumulate);
  }
}

// The blocks (i, l) of a range, group = i.d + l. w is packed [a, d, ceil(b / S), c, S]; scratch holds a panel of x and,
// for bfloat16, one block's weights as floats.
template <class T>
void column_factor(const Factor& f, const float* x, int64_t ldx, int64_t columns, float* y, int64_t ldy, float* scratch,
                   int64_t first_group, int64_t end_group) {
  constexpr int S = T::S;
  constexpr int64_t WIDE = T::V * T::W;
  const int64_t tiles = (f.b + S - 1) / S, size = tiles * f.c * S;
  float* const panel = scratch;
  float* const widened = scratch + DEPTH * WIDE;
  for (int64_t group = first_group; group < end_group; ++group) {
    const int64_t i = group / f.d, l = group % f.d;
    const float* w = static_cast<const float*>(f.w) + group * size;
    if (f.half) {
      const uint16_t* bits = static_cast<const uint16_t*>(f.w) + group * size;
      for (int64_t n = 0; n < size; ++n) widened[n] = from_half(bits[n]);
      w = widened;
    }
    for (int64_t k = 0; k < f.c; k += DEPTH) {
      const int64_t depth = std::min(DEPTH, f.c - k);
      for (int64_t n = 0; n < columns; n += WIDE) {
        const int64_t lanes = std::min(WIDE, columns - n);
        const float* from = x + (i * f.c * f.d + k * f.d + l) * ldx + n;
        int64_t step = f.d * ldx;
        if (tiles > 2 || lanes < WIDE) {
          for (int64_t row = 0; row < depth; ++row)
            for (int v = 0; v < T::V; ++v) {
              const int64_t some = std::min<int64_t>(T::W, lanes - v * T::W);
              const float* at = from + row * step + v * T::W;
              T::store(panel + row * WIDE + v * T::W,
                       some == T::W ? T::load(at) : some > 0 ? T::load_some(at, some) : T::zero());
            }
          from = panel;
          step = WIDE;
        }
        const bool more = n + WIDE < columns;  // prefetch the next panel's lines while this one is multiplied
        const float* soon = x + (i * f.c * f.d + k * f.d + l) * ldx + n + WIDE;
        const int64_t share = more ? (depth + tiles - 1) / tiles : 0;
        for (int64_t t = 0; t < tiles; ++t) {
          for (int64_t row = t * share; row < std::min(depth, (t + 1) * share); ++row)
            for (int64_t line = 0; line < WIDE; line += LINE) __builtin_prefetch(soon + row * f.d * ldx + line);
          column_tile_of<T>(std::min<int64_t>(S, f.b - t * S), depth, from, step, w + (t * f.c + k) * S,
                            y + (i * f.b * f.d + t * S * f.d + l) * ldy + n, f.d * ldy, lanes, k > 0);
        }
      }
    }
  }
}

// Whether a call is one factor that reads x and writes y in place: threads divide its blocks and read weights once.
inline bool direct(const Call& call) {
  const Factor &head = call.factors[0], &tail = call.factors[call.count - 1];
  return call.count == 1 && !call.half && head.a * head.c * head.d == call.in && tail.a * tail.b * tail.d == call.out;
}

// Columns per block: two intermediates of a chain stay in L2.
template <class T>
int64_t columns_per_block(const Call& call, int threads) {
  constexpr int64_t WIDE = T::V * T::W;
  int64_t widest = 1;
  for (int i = 0; i < call.count; ++i) {
    const Factor& f = call.factors[i];
    widest = std::max({widest, f.a * f.b * f.d, f.a * f.c * f.d});
  }
  const int64_t fair = (call.batch + threads - 1) / threads, most = std::min(8 * WIDE, COLUMN_BYTES / (8 * widest));
  return std::max<int64_t>(1, (std::min(most, fair) + WIDE - 1) / WIDE) * WIDE;
}

template <class T>
void columns_block(const Call& call, int64_t first, int64_t columns, std::vector<float>& scratch) {
  const Factor& head = call.factors[0];
  const Factor& tail = call.factors[call.count - 1];
  const int64_t inputs = head.a * head.c * head.d, outputs = tail.a * tail.b * tail.d;
  int64_t widest = std::max(inputs, outputs), weights = 0;
  for (int i = 0; i < call.count; ++i) {
    const Factor& f = call.factors[i];
    widest = std::max(widest, f.a * f.b * f.d);
    if (f.half) weights = std::max(weights, (f.b + T::S - 1) / T::S * T::S * f.c);
  }
  const int64_t pitch = (columns + 31) / 16 * 16;  // not a power of two: rows would map to the same cache sets
  scratch.resize(2 * widest * pitch + DEPTH * T::V * T::W + weights + 64);
  float* const base = aligned(scratch);
  float* buffers[2] = {base, base + widest * pitch};
  float* const rest = base + 2 * widest * pitch;

  int next = 0;
  const float* x = static_cast<const float*>(call.x) + first;
  int64_t ldx = call.ldx;
  if (call.half || inputs != call.in) {
    for (int64_t k = 0; k < call.in; ++k) {
      float* to = buffers[0] + k * pitch;
      if (call.half) {
        const uint16_t* from = static_cast<const uint16_t*>(call.x) + k * call.ldx + first;
        for (int64_t n = 0; n < columns; ++n) to[n] = from_half(from[n]);
      } else {
        std::memcpy(to, x + k * call.ldx, columns * sizeof(float));
      }
    }
    std::fill(buffers[0] + call.in * pitch, buffers[0] + inputs * pitch, 0.0f);
    x = buffers[0];
    ldx = pitch;
    next = 1;
  }
  const bool in_place = !call.half && outputs == call.out;
  for (int i = 0; i < call.count; ++i) {
    const bool final = i + 1 == call.count && in_place;
    float* y = final ? static_cast<float*>(call.y) + first : buffers[next];
    const int64_t ldy = final ? call.ldy : pitch;
    const Factor& f = call.factors[i];
    column_factor<T>(f, x, ldx, columns, y, ldy, rest, 0, f.a * f.d);
    x = y;
    ldx = ldy;
    next = 1 - next;
  }
  if (in_place && !call.bias) return;
  for (int64_t j = 0; j < call.out; ++j) {
    const float* from = x + j * ldx;
    const float shift = call.bias ? call.bias[j] : 0.0f;
    if (call.half) {
      uint16_t* to = static_cast<uint16_t*>(call.y) + j * call.ldy + first;
      for (int64_t n = 0; n < columns; ++n) to[n] = to_half(from[n] + shift);
    } else {
      float* to = static_cast<float*>(call.y) + j * call.ldy + first;
      for (int64_t n = 0; n < columns; ++n) to[n] = from[n] + shift;
    }
  }
}

// Blocks [first, end) of a single factor, directly from x to y.
template <class T>
void columns_direct(const Call& call, int64_t first, int64_t end, std::vector<float>& scratch) {
  const Factor& f = call.factors[0];
  const int64_t weights = f.half ? (f.b + T::S - 1) / T::S * T::S * f.c : 0;
  scratch.resize(DEPTH * T::V * T::W + weights + 64);
  float* const y = static_cast<float*>(call.y);
  column_factor<T>(f, static_cast<const float*>(call.x), call.ldx, call.batch, y, call.ldy, aligned(scratch), first, end);
  if (!call.bias) return;
  for (int64_t group = first; group < end; ++group)
    for (int64_t j = 0; j < f.b; ++j) {
      const int64_t row = group / f.d * f.b * f.d + j * f.d + group % f.d;
      for (int64_t n = 0; n < call.batch; ++n) y[row * call.ldy + n] += call.bias[row];
    }
}

}  // namespace
