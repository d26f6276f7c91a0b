// The register-blocked micro-kernel and the loops around it, for a vector type T as in chain_scalar.cpp.
//
// A tile is S rows of x times V vectors of outputs: acc[s][v] += x[s, k] * w[k, v]. Where d >= W a vector runs over l
// and x is loaded contiguously; where d < W it runs over (j, l) and d values of x are repeated across it. No factor
// needs its input permuted: at most a panel of S rows, c x S vectors, is gathered to keep strided loads out of the
// inner loop.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "chain.h"

namespace {

using kronecker::Call;
using kronecker::Factor;

constexpr int64_t DEPTH = 128;                // values of k per pass: a panel of x stays in L1
constexpr int64_t WEIGHT_BYTES = 256 << 10;   // weights of one pass over the rows of a block: L2
constexpr int STREAM_ROWS = 6;
constexpr int LINE = 16;  // floats per cache line
constexpr int64_t STREAM_BYTES = 512 << 10;   // weights that stay in L2 while rows stream past

inline float from_half(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t to_half(float value) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// The first cache-line boundary in a scratch buffer, which has 64 spare values.
inline float* aligned(std::vector<float>& scratch) {
  void* at = scratch.data();
  size_t space = scratch.size() * sizeof(float);
  return static_cast<float*>(std::align(LINE * sizeof(float), sizeof(float), at, space));
}

struct Output {
  float* at;        // address of row 0, vector 0
  int64_t row;      // stride between rows
  int64_t step;     // stride between vectors
  int64_t count;    // number of vectors
  int64_t lanes;    // values stored per vector, except the last
  int64_t last;     // values stored of the last vector
  bool accumulate;  // add to the stored values
};

template <class T, int XW, int S, int V, class Weight>
void tile(int64_t depth, const float* x, int64_t x_row, int64_t x_step, const Weight* w, const Output& out) {
  constexpr int W = T::W;
  typename T::Vector acc[S][V];
  for (int s = 0; s < S; ++s)
    for (int v = 0; v < V; ++v) {
      acc[s][v] = T::zero();
      if (v < out.count && v * W % LINE == 0) __builtin_prefetch(out.at + s * out.row + v * out.step, 1);
    }
  for (int64_t k = 0; k < depth; ++k, x += x_step, w += T::V * W) {
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
  constexpr int V = T::V;
  if (rows == STREAM_ROWS) {  // specialised: small blocks have few vectors
    if constexpr (V > 1)
      if (out.count == 1) return tile<T, XW, STREAM_ROWS, 1>(depth, x, x_row, x_step, w, out);
    if constexpr (V > 2)
      if (out.count == 2) return tile<T, XW, STREAM_ROWS, 2>(depth, x, x_row, x_step, w, out);
    if constexpr (V > 3)
      if (out.count == 3) return tile<T, XW, STREAM_ROWS, 3>(depth, x, x_row, x_step, w, out);
  }
  switch (rows) {
    case 1: return tile<T, XW, 1, V>(depth, x, x_row, x_step, w, out);
    case 2: return tile<T, XW, 2, V>(depth, x, x_row, x_step, w, out);
    case 3: return tile<T, XW, 3, V>(depth, x, x_row, x_step, w, out);
    case 4: return tile<T, XW, 4, V>(depth, x, x_row, x_step, w, out);
    case 5: return tile<T, XW, 5, V>(depth, x, x_row, x_step, w, out);
    default: return tile<T, XW, 6, V>(depth, x, x_row, x_step, w, out);
  }
}

// Assignment of a factor's outputs to vectors.
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
        panel(uneven || (wide && vectors > 2 * T::V)),
        stream(f.b <= 16 && f.c <= 16 && f.a * f.b * f.c * f.d * 4 <= STREAM_BYTES) {}
  const bool wide;             // a vector runs over l
  const int64_t per_vector;    // values of j in one vector
  const int64_t lane_blocks;   // vectors over d
  const int64_t vectors;       // of outputs, for each of a . lane_blocks groups
  const int64_t tiles;
  const bool uneven;           // the end of a vector is unused
  const int64_t x_width;       // values of x that one load repeats
  const bool panel;            // x is gathered first
  const bool stream;           // rows outermost
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

// Multiplies R rows by blocks of C <= 8 columns: the inputs of a group of outputs are held in registers.
template <class T, int XW, int R, int C, class Weight>
void narrow_rows(const Factor& f, const Shape<T>& shape, const float* x, int64_t ldx, float* y, int64_t ldy) {
  constexpr int W = T::W, V = T::V;
  const int64_t step = shape.per_vector * f.d;
  const Weight* w = static_cast<const Weight*>(f.w);
  for (int64_t i = 0; i < f.a; ++i)
    for (int64_t block = 0; block < shape.lane_blocks; ++block, w += shape.tiles * C * V * W) {
      const int64_t lanes = shape.wide ? std::min<int64_t>(W, f.d - block * W) : step;
      const int64_t last = shape.wide ? lanes : (f.b - (shape.vectors - 1) * shape.per_vector) * f.d;
      const float* from = x + i * C * f.d + block * W;
      float* to = y + i * f.b * f.d + block * W;
      typename T::Vector in[R][C];
      for (int r = 0; r < R; ++r)
        for (int k = 0; k < C; ++k) {
          const float* at = from + r * ldx + k * f.d;
          in[r][k] = XW == W && lanes < W ? T::load_some(at, lanes) : T::template repeat<XW>(at);
        }
      for (int64_t v = 0; v < shape.vectors; ++v, to += step) {
        const Weight* wv = w + (v / V * C * V + v % V) * W;
        typename T::Vector acc[R];
        for (int r = 0; r < R; ++r) acc[r] = T::zero();
        for (int k = 0; k < C; ++k) {
          const typename T::Vector value = T::load(wv + k * V * W);
          for (int r = 0; r < R; ++r) acc[r] = T::fma(in[r][k], value, acc[r]);
        }
        const int64_t some = v + 1 == shape.vectors ? last : lanes;
        for (int r = 0; r < R; ++r)
          if (some == W)
            T::store(to + r * ldy, acc[r]);
          else
            T::store_some(to + r * ldy, acc[r], some);
      }
    }
}

template <class T, int XW, int C, class Weight>
void narrow(const Factor& f, const Shape<T>& shape, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy) {
  constexpr int R = C <= 4 ? 4 : 2;
  int64_t s = 0;
  for (; s + R <= rows; s += R) narrow_rows<T, XW, R, C, Weight>(f, shape, x + s * ldx, ldx, y + s * ldy, ldy);
  for (; s < rows; ++s) narrow_rows<T, XW, 1, C, Weight>(f, shape, x + s * ldx, ldx, y + s * ldy, ldy);
}

template <class T, int XW, class Weight>
void factor_of(const Factor& f, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy, float* panel) {
  constexpr int W = T::W, V = T::V, S = T::S;
  const Shape<T> shape(f);
  if (shape.stream && (shape.wide || !shape.uneven)) switch (f.c) {
    case 2: return narrow<T, XW, 2, Weight>(f, shape, x, ldx, rows, y, ldy);
    case 3: return narrow<T, XW, 3, Weight>(f, shape, x, ldx, rows, y, ldy);
    case 4: return narrow<T, XW, 4, Weight>(f, shape, x, ldx, rows, y, ldy);
    case 5: return narrow<T, XW, 5, Weight>(f, shape, x, ldx, rows, y, ldy);
    case 6: return narrow<T, XW, 6, Weight>(f, shape, x, ldx, rows, y, ldy);
    case 7: return narrow<T, XW, 7, Weight>(f, shape, x, ldx, rows, y, ldy);
    case 8: return narrow<T, XW, 8, Weight>(f, shape, x, ldx, rows, y, ldy);
    default: break;
  }
  if (shape.stream && rows > STREAM_ROWS) {  // small blocks: a few rows at a time pass through all of them
    for (int64_t s = 0; s < rows; s += STREAM_ROWS) {
      const int64_t some = std::min<int64_t>(STREAM_ROWS, rows - s);
      factor_of<T, XW, Weight>(f, x + s * ldx, ldx, some, y + s * ldy, ldy, panel);
    }
    return;
  }
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

// Multiplies R rows by square blocks that fit a vector: each x is loaded once and its lanes are permuted.
template <class T, int R, class Weight>
void square_rows(const Factor& f, const int32_t* order, const float* x, int64_t ldx, float* y, int64_t ldy) {
  constexpr int W = T::W;
  const int64_t lanes = W / (f.b * f.d) * f.b * f.d, width = f.a * f.b * f.d;
  const Weight* w = static_cast<const Weight*>(f.w);
  for (int64_t at = 0; at < width; at += lanes) {
    const int64_t some = std::min(lanes, width - at);
    const bool whole = at + W <= width;  // a whole vector may be read, and written if the next one overwrites its end
    typename T::Vector in[R], acc[R];
    for (int r = 0; r < R; ++r) {
      in[r] = whole ? T::load(x + r * ldx + at) : T::load_some(x + r * ldx + at, some);
      acc[r] = T::zero();
    }
    for (int64_t k = 0; k < f.c; ++k, w += W) {
      const typename T::Vector wv = T::load(w);
      for (int r = 0; r < R; ++r) acc[r] = T::fma(T::permute(in[r], order + k * W), wv, acc[r]);
    }
    for (int r = 0; r < R; ++r)
      if (whole)
        T::store(y + r * ldy + at, acc[r]);
      else
        T::store_some(y + r * ldy + at, acc[r], some);
  }
}

template <class T, class Weight>
void square(const Factor& f, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy) {
  constexpr int W = T::W;
  alignas(64) int32_t order[W * W];  // for k and lane (i, j, l): the lane (i, k, l) of x to multiply; c <= W
  for (int64_t k = 0; k < f.c; ++k)
    for (int lane = 0; lane < W; ++lane)
      order[k * W + lane] = static_cast<int32_t>((lane / (f.b * f.d) * f.b * f.d + k * f.d + lane % f.d) % W);
  int64_t s = 0;
  for (; s + 4 <= rows; s += 4) square_rows<T, 4, Weight>(f, order, x + s * ldx, ldx, y + s * ldy, ldy);
  for (; s < rows; ++s) square_rows<T, 1, Weight>(f, order, x + s * ldx, ldx, y + s * ldy, ldy);
}

template <class T, class Weight>
void factor(const Factor& f, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy, float* panel) {
  if constexpr (T::W > 1)
    if (kronecker::fits_vector(f, T::W)) return square<T, Weight>(f, x, ldx, rows, y, ldy);
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

}  // namespace
