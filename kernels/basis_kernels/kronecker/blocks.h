// Runs a chain on one block of rows (batch-size-first) or columns (batch-size-last) at a time, intermediates in cache.
#pragma once

#include <vector>

#include "columns.h"
#include "parallel.h"
#include "tiles.h"

namespace {

constexpr int64_t BLOCK_BYTES = 384 << 10;  // rows of a block times the bytes per row that one group of outputs reads
constexpr int64_t MOST_ROWS = 192;

// Scratch rows are a cache line longer than needed: rows of 2^k floats would map to the same few cache sets.
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
  float* const base = aligned(scratch);
  float* buffers[2] = {base, base + rows * widest};
  float* const panel = base + 2 * rows * widest;

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

// Rows per block: the inputs of one group of outputs, and intermediates, stay in L2.
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
  const int64_t groups = call.factors[0].a * call.factors[0].d;
  if (call.last && direct(call) && groups >= threads) {
    const int64_t parts = threads == 1 ? 1 : std::min<int64_t>(groups, 4 * threads);
    basis::parallel_for(parts, threads, [&](int64_t index) {
      static thread_local std::vector<float> scratch;
      columns_direct<T>(call, index * groups / parts, (index + 1) * groups / parts, scratch);
    });
    return;
  }
  if (call.last) {
    const int64_t columns = columns_per_block<T>(call, threads);
    basis::parallel_for((call.batch + columns - 1) / columns, threads, [&](int64_t index) {
      static thread_local std::vector<float> scratch;
      columns_block<T>(call, index * columns, std::min(columns, call.batch - index * columns), scratch);
    });
    return;
  }
  const int64_t rows = rows_per_block<T>(call, threads);
  basis::parallel_for((call.batch + rows - 1) / rows, threads, [&](int64_t index) {
    static thread_local std::vector<float> scratch;
    block<T>(call, index * rows, std::min(rows, call.batch - index * rows), scratch);
  });
}

}  // namespace
