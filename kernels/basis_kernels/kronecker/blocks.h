// The register-blocked micro-kernel and the loops around it, for any vector type of vectors.h's shape.
//
// A tile is S rows of x times V vectors of outputs: acc[s][v] += x[s, k] * w[k, v]. Where d >= W a vector runs over l and
// x is loaded as it lies; where d < W it runs over (j, l) and d values of x are repeated across it. No factor needs its
// input permuted: at most a panel of S rows is gathered, c x S vectors, to keep strided lines out of the inner loop.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "chain.h"
#include "parallel.h"

namespace {

using kronecker::Call;
using kronecker::Factor;

constexpr int64_t DEPTH = 128;                // values of k per pass: a panel of x stays in the first cache
constexpr int64_t WEIGHT_BYTES = 256 << 10;   // weights of one pass over the rows of a block: second cache
constexpr int64_t BLOCK_BYTES = 384 << 10;    // rows of a block times the lines of x that one group of outputs reads
constexpr int64_t MOST_ROWS = 192;

inline float from_half(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t to_half(float value) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

struct Output {
  float* at;        // of row 0, vector 0
  int64_t row;      // from row to row
  int64_t step;     // from vector to vector
  int64_t count;    // vectors there are
  int64_t lanes;    // values stored of each vector but the last
  int64_t last;     // values stored of the last
  bool accumulate;  // add to what is there
};

template <class T, int XW, int S, class Weight>
void tile(int64_t depth, const float* x, int64_t x_row, int64_t x_step, const Weight* w, const Output& out) {
  constexpr int V = T::V, W = T::W;
  typename T::Vector acc[S][V];
  for (int s = 0; s < S; ++s)
    for (int v = 0; v < V; ++v) acc[s][v] = T::zero();
  for (int64_t k = 0; k < depth; ++k, x += x_step, w += V * W) {
    typename T::Vector wv[V];
    for (int v = 0; v < V; ++v) wv[v] = T::load(w + v * W);
    for (int s = 0; s < S; ++s) {
      const typename T::Vector xv = T::template repeat<XW>(x + s * x_row);
      for (int v = 0; v < V; ++v) acc[s][v] = T::fma(xv, wv[v], acc[s][v]);
    }
  }
  if (out.count >= V && out.lanes == W && (out.count > V || out.last == W)) {
    for (int s = 0; s < S; ++s)
      for (int v = 0; v < V; ++v) {
        float* to = out.at + s * out.row + v * out.step;
        T::store(to, out.accumulate ? T::add(acc[s][v], T::load(to)) : acc[s][v]);
      }
    return;
  }
  for (int v = 0; v < V && v < out.count; ++v) {
    const int64_t lanes = v + 1 == out.count ? out.last : out.lanes;
    for (int s = 0; s < S; ++s) {
      float* to = out.at + s * out.row + v * out.step;
      T::store_some(to, out.accumulate ? T::add(acc[s][v], T::load_some(to, lanes)) : acc[s][v], lanes);
    }
  }
}

template <class T, int XW, class Weight>
void tile_of(int64_t rows, int64_t depth, const float* x, int64_t x_row, int64_t x_step, const Weight* w,
             const Output& out) {
  switch (rows) {
    case 1: return tile<T, XW, 1>(depth, x, x_row, x_step, w, out);
    case 2: return tile<T, XW, 2>(depth, x, x_row, x_step, w, out);
    case 3: return tile<T, XW, 3>(depth, x, x_row, x_step, w, out);
    case 4: return tile<T, XW, 4>(depth, x, x_row, x_step, w, out);
    case 5: return tile<T, XW, 5>(depth, x, x_row, x_step, w, out);
    default: return tile<T, XW, 6>(depth, x, x_row, x_step, w, out);
  }
}

// How a factor's outputs fall into vectors.
template <class T>
struct Shape {
  explicit Shape(const Factor& f)
      : wide(f.d >= T::W),
        per_vector(wide ? 1 : T::W / f.d),
        lane_blocks(wide ? (f.d + T::W - 1) / T::W : 1),
        vectors((f.b + per_vector - 1) / per_vector),
        tiles((vectors + T::V - 1) / T::V),
        uneven(wide ? f.d % T::W != 0 : T::W % f.d != 0),
        x_width(wide || uneven ? T::W : f.d),
        panel(uneven || (wide && vectors > 2 * T::V)) {}
  const bool wide;             // a vector runs over l
  const int64_t per_vector;    // values of j in one vector
  const int64_t lane_blocks;   // vectors over d
  const int64_t vectors;       // of outputs, for each of a . lane_blocks groups
  const int64_t tiles;
  const bool uneven;           // a vector's end is unused
  const int64_t x_width;       // values of x that one load repeats
  const bool panel;            // x is gathered first
};

// Rows of x at [k.d + l], k < depth, as [depth][rows][W]; l < d is repeated where d < W.
template <class T>
void gather(const Factor& f, const float* x, int64_t ldx, int64_t rows, int64_t depth, int64_t lanes, float* panel) {
  constexpr int W = T::W;
  if (f.d >= W) {
    for (int64_t s = 0; s < rows; ++s)
      for (int64_t k = 0; k < depth; ++k) {
        const float* from = x + s * ldx + k * f.d;
        T::store(panel + (k * rows + s) * W, lanes == W ? T::load(from) : T::load_some(from, lanes));
      }
    return;
  }
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t s = 0; s < rows; ++s)
      for (int64_t lane = 0; lane < W; ++lane) panel[(k * rows + s) * W + lane] = x[s * ldx + k * f.d + lane % f.d];
}

template <class T, int XW, class Weight>
void factor_of(const Factor& f, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy, float* panel) {
  constexpr int W = T::W, V = T::V, S = T::S;
  const Shape<T> shape(f);
  const Weight* const weights = static_cast<const Weight*>(f.w);
  for (int64_t group = 0; group < f.a * shape.lane_blocks; ++group) {
    const int64_t i = group / shape.lane_blocks, l = group % shape.lane_blocks * W;
    const int64_t lanes = shape.wide ? std::min<int64_t>(W, f.d - l) : shape.per_vector * f.d;
    Output out{};
    out.row = ldy;
    out.step = shape.per_vector * f.d;
    out.lanes = lanes;
    for (int64_t k = 0; k < f.c; k += DEPTH) {
      const int64_t depth = std::min(DEPTH, f.c - k);
      const int64_t pass = std::max<int64_t>(1, WEIGHT_BYTES / (depth * V * W * static_cast<int64_t>(sizeof(Weight))));
      out.accumulate = k > 0;
      for (int64_t first = 0; first < shape.tiles; first += pass) {
        const int64_t end = std::min(shape.tiles, first + pass);
        for (int64_t s = 0; s < rows; s += S) {
          const int64_t n = std::min<int64_t>(S, rows - s);
          const float* from = x + s * ldx + i * f.c * f.d + k * f.d + l;
          int64_t x_row = ldx, x_step = f.d;
          if (shape.panel) {
            gather<T>(f, from, ldx, n, depth, lanes, panel);
            from = panel;
            x_row = W;
            x_step = n * W;
          }
          for (int64_t t = first; t < end; ++t) {
            out.at = y + s * ldy + i * f.b * f.d + l + t * V * out.step;
            out.count = shape.vectors - t * V;
            out.last = shape.wide ? lanes : (f.b - (shape.vectors - 1) * shape.per_vector) * f.d;
            tile_of<T, XW>(n, depth, from, x_row, x_step, weights + ((group * shape.tiles + t) * f.c + k) * V * W, out);
          }
        }
      }
    }
  }
}

template <class T, class Weight>
void factor(const Factor& f, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy, float* panel) {
  const int64_t width = Shape<T>(f).x_width;
  if (width == T::W) return factor_of<T, T::W, Weight>(f, x, ldx, rows, y, ldy, panel);
  if constexpr (T::W > 8)
    if (width == 8) return factor_of<T, 8, Weight>(f, x, ldx, rows, y, ldy, panel);
  if constexpr (T::W > 4)
    if (width == 4) return factor_of<T, 4, Weight>(f, x, ldx, rows, y, ldy, panel);
  if constexpr (T::W > 2)
    if (width == 2) return factor_of<T, 2, Weight>(f, x, ldx, rows, y, ldy, panel);
  return factor_of<T, 1, Weight>(f, x, ldx, rows, y, ldy, panel);
}

// Scratch rows are a line longer than needed: rows of 2^k floats would fall into the same few cache sets.
inline int64_t padded(int64_t width) { return (width + 31) / 16 * 16; }

template <class T>
void block(const Call& call, int64_t first, int64_t rows, std::vector<float>& scratch) {
  const Factor& head = call.factors[0];
  const Factor& tail = call.factors[call.count - 1];
  const int64_t columns = head.a * head.c * head.d, outputs = tail.a * tail.b * tail.d;
  int64_t widest = padded(std::max(columns, outputs));
  for (int i = 0; i < call.count; ++i)
    widest = std::max(widest, padded(call.factors[i].a * call.factors[i].b * call.factors[i].d));
  scratch.resize(2 * rows * widest + DEPTH * T::S * T::W + 64);
  float* buffers[2] = {scratch.data(), scratch.data() + rows * widest};
  float* const panel = scratch.data() + 2 * rows * widest;

  int next = 0;
  const float* x = static_cast<const float*>(call.x) + first * call.ldx;
  int64_t ldx = call.ldx;
  if (call.half || columns != call.in) {
    for (int64_t s = 0; s < rows; ++s) {
      float* to = buffers[next] + s * widest;
      if (call.half) {
        const uint16_t* from = static_cast<const uint16_t*>(call.x) + (first + s) * call.ldx;
        for (int64_t k = 0; k < call.in; ++k) to[k] = from_half(from[k]);
      } else {
        std::memcpy(to, x + s * call.ldx, call.in * sizeof(float));
      }
      std::fill(to + call.in, to + columns, 0.0f);
    }
    x = buffers[next];
    ldx = widest;
    next = 1;
  }
  const bool in_place = !call.half && outputs == call.out;
  for (int i = 0; i < call.count; ++i) {
    const bool last = i + 1 == call.count;
    float* y = last && in_place ? static_cast<float*>(call.y) + first * call.ldy : buffers[next];
    const int64_t ldy = last && in_place ? call.ldy : widest;
    const Factor& f = call.factors[i];
    if (f.half)
      factor<T, uint16_t>(f, x, ldx, rows, y, ldy, panel);
    else
      factor<T, float>(f, x, ldx, rows, y, ldy, panel);
    x = y;
    ldx = ldy;
    next = 1 - next;
  }
  if (in_place && !call.bias) return;
  for (int64_t s = 0; s < rows; ++s) {
    const float* from = x + s * ldx;
    if (call.half) {
      uint16_t* to = static_cast<uint16_t*>(call.y) + (first + s) * call.ldy;
      for (int64_t j = 0; j < call.out; ++j) to[j] = to_half(call.bias ? from[j] + call.bias[j] : from[j]);
    } else {
      float* to = static_cast<float*>(call.y) + (first + s) * call.ldy;
      for (int64_t j = 0; j < call.out; ++j) to[j] = call.bias ? from[j] + call.bias[j] : from[j];
    }
  }
}

// Rows per block: what one group of outputs reads of them stays in the second cache, and so do intermediates.
template <class T>
int64_t rows_per_block(const Call& call, int threads) {
  int64_t bytes = 1;
  for (int i = 0; i < call.count; ++i) {
    const Factor& f = call.factors[i];
    bytes = std::max(bytes, f.c * std::min<int64_t>(64, 4 * f.d));
    if (call.count > 1) bytes = std::max(bytes, 4 * f.a * f.b * f.d);
  }
  const int64_t fair = (call.batch + threads - 1) / threads;
  const int64_t rows = std::min({BLOCK_BYTES / bytes, MOST_ROWS, fair});
  return std::max<int64_t>(1, (rows + T::S - 1) / T::S) * T::S;
}

template <class T>
void run(const Call& call, int threads) {
  const int64_t rows = rows_per_block<T>(call, threads);
  basis::parallel_for((call.batch + rows - 1) / rows, threads, [&](int64_t index) {
    static thread_local std::vector<float> scratch;
    block<T>(call, index * rows, std::min(rows, call.batch - index * rows), scratch);
  });
}

}  // namespace
