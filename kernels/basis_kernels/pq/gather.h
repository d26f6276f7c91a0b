// Gathers the split columns of a few rows: row by row where the input is row-major, reading each cache line once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "pq.h"

namespace {

using namespace pq;

inline int64_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32: return 4;
    case Dtype::i8: return 1;
    default: return 2;
  }
}

constexpr int kLineBytes = 64;
constexpr int kGathered = 16;  // codebooks whose columns are gathered at a time: they stay in L1
constexpr int kAhead = 16;     // rows prefetched: the split columns skip lines, which defeats hardware prefetch
constexpr int kIntoL2 = 2;     // prefetch level: a core tracks few outstanding L1 lines, and then other loads wait too

// For each kGathered codebooks, the cache lines that hold their columns: byte offsets in a row that starts on a line.
inline std::vector<std::vector<int32_t>> lines_of(const int32_t* columns, int codebooks, int64_t size) {
  std::vector<std::vector<int32_t>> groups;
  for (int c = 0; c < codebooks; c += kGathered) {
    std::vector<int32_t> lines;
    for (int j = c * kLevels; j < std::min(c + kGathered, codebooks) * kLevels; ++j) {
      lines.push_back(static_cast<int32_t>(columns[j] * size / kLineBytes * kLineBytes));
    }
    std::sort(lines.begin(), lines.end());
    lines.erase(std::unique(lines.begin(), lines.end()), lines.end());
    groups.push_back(lines);
  }
  return groups;
}

struct Input {
  const void* data;
  int64_t rows, row_stride, column_stride;  // in elements
  Dtype dtype;
};

// staged: [columns][kEncodeRows] in the input's type.
template <class T>
void gather(const int32_t* column, int columns, const std::vector<int32_t>& lines, const Input& x, int64_t first, int rows,
            T* staged) {
  const T* base = static_cast<const T*>(x.data) + first * x.row_stride;
  if (x.column_stride == 1) {
    const int64_t left = x.rows - first;
    for (int r = 0; r < rows; ++r) {
      const T* row = base + r * x.row_stride;
      if (r + kAhead < left) {
        const char* ahead = reinterpret_cast<const char*>(row + kAhead * x.row_stride);
        for (const int32_t line : lines) __builtin_prefetch(ahead + line, 0, kIntoL2);
      }
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j) staged[j * kEncodeRows + r] = row[column[j]];
    }
  } else {
    for (int j = 0; j < columns; ++j) {
      const T* from = base + column[j] * x.column_stride;
      for (int r = 0; r < rows; ++r) staged[j * kEncodeRows + r] = from[r * x.row_stride];
    }
  }
}

}  // namespace
