// Gathers split columns, cuts rows and outputs into tasks, and calls an instruction set's routines on them.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "parallel.h"
#include "pq.h"

namespace {

using namespace pq;

// Zero-filled memory on a cache line.
template <class T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(size_t count) : size_(count) {
    const size_t bytes = std::max<size_t>(64, (count * sizeof(T) + 63) / 64 * 64);
    void* p = std::aligned_alloc(64, bytes);
    if (!p) throw std::bad_alloc();
    std::memset(p, 0, bytes);
    data_.reset(static_cast<T*>(p));
  }
  T* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

inline float widen(float x) { return x; }
inline float widen(uint16_t x) {  // bfloat16
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

// ---- gathering the 4 C columns of a few rows ----

struct Input {
  const void* data;
  int64_t rows, row_stride, column_stride;  // in elements
  Dtype dtype;
};

template <class T>
void gather(const Trees& trees, const Input& x, int64_t first, int rows, float* staged) {
  const T* base = static_cast<const T*>(x.data) + first * x.row_stride;
  const int columns = trees.codebooks * kLevels;
  const int32_t* column = trees.columns;
  if (x.column_stride == 1) {
    for (int r = 0; r < rows; ++r) {  // row by row: each cache line of the input is touched once
      const T* row = base + r * x.row_stride;
      for (int j = 0; j < columns; ++j) staged[j * kEncodeRows + r] = widen(row[column[j]]);
    }
  } else {
    for (int j = 0; j < columns; ++j) {
      const T* from = base + column[j] * x.column_stride;
      for (int r = 0; r < rows; ++r) staged[j * kEncodeRows + r] = widen(from[r * x.row_stride]);
    }
  }
}

// codes: C rows of bytes, `codebook_stride` apart and padded to a multiple of kEncodeRows. Whole blocks of float32 columns
// are read where they lie; everything else is gathered first.
void encode_rows(const Routines& isa, const Trees& trees, const Input& x, int64_t first, int64_t rows, float* staged,
                 int64_t* offsets, uint8_t* codes, int64_t codebook_stride) {
  const int columns = trees.codebooks * kLevels;
  int64_t done = 0;
  if (x.dtype == Dtype::f32 && x.row_stride == 1) {
    done = rows / kEncodeRows * kEncodeRows;
    for (int j = 0; j < columns; ++j) offsets[j] = trees.columns[j] * x.column_stride;
    isa.encode(trees, static_cast<const float*>(x.data) + first, offsets, done, codes, codebook_stride);
  }
  for (int j = 0; j < columns; ++j) offsets[j] = int64_t{j} * kEncodeRows;
  for (int64_t r = done; r < rows; r += kEncodeRows) {
    const int count = static_cast<int>(std::min<int64_t>(kEncodeRows, rows - r));
    if (x.dtype == Dtype::f32) {
      gather<float>(trees, x, first + r, count, staged);
    } else {
      gather<uint16_t>(trees, x, first + r, count, staged);
    }
    isa.encode(trees, staged, offsets, kEncodeRows, codes + r, codebook_stride);
  }
}

// ---- blocking ----

constexpr int64_t kRows = 256;               // rows per task: a block's tables are read once for all of them
constexpr int64_t kSmallestTask = 1 << 17;   // look-ups; below it a second thread costs more than it brings

struct Split {
  int64_t rows, row_blocks, output_blocks, output_parts;
};

Split split(int64_t n, const Tables& tables, int threads) {
  const int64_t work = n * tables.codebooks * tables.blocks * tables.lanes;
  const int64_t wanted = std::clamp<int64_t>(work / kSmallestTask, 1, threads);
  int64_t rows = std::min(kRows, (n + wanted - 1) / wanted);
  rows = (rows + kEncodeRows - 1) / kEncodeRows * kEncodeRows;
  const int64_t row_blocks = (n + rows - 1) / rows;
  int64_t parts = std::min(tables.blocks, std::max<int64_t>(1, wanted / std::max<int64_t>(1, row_blocks)));
  const int64_t output_blocks = (tables.blocks + parts - 1) / parts;
  parts = (tables.blocks + output_blocks - 1) / output_blocks;
  return {rows, row_blocks, output_blocks, parts};
}

void* advance(const Output& out, int64_t rows) {
  const int64_t size = out.dtype == Dtype::f32 ? 4 : 2;
  return static_cast<char*>(out.data) + rows * out.row_stride * size;
}

void run_linear(const Routines& isa, const Trees& trees, const Tables& tables, const Input& x, Output out, int threads) {
  if (x.rows == 0) return;
  const Split s = split(x.rows, tables, threads);
  basis::parallel_for(s.row_blocks * s.output_parts, threads, [&](int64_t task) {
    const int64_t first = task / s.output_parts * s.rows;
    const int64_t rows = std::min(s.rows, x.rows - first);
    const int64_t begin = task % s.output_parts * s.output_blocks;
    const int64_t end = std::min(begin + s.output_blocks, tables.blocks);
    thread_local Aligned<float> staged;
    thread_local Aligned<uint8_t> codes;
    thread_local Aligned<int64_t> offsets;
    const size_t staged_size = static_cast<size_t>(trees.codebooks) * kLevels * kEncodeRows;
    const size_t codes_size = static_cast<size_t>(trees.codebooks) * s.rows;
    if (staged.size() < staged_size) staged = Aligned<float>(staged_size);
    if (codes.size() < codes_size) codes = Aligned<uint8_t>(codes_size);
    if (offsets.size() < static_cast<size_t>(trees.codebooks) * kLevels) {
      offsets = Aligned<int64_t>(static_cast<size_t>(trees.codebooks) * kLevels);
    }
    encode_rows(isa, trees, x, first, rows, staged.data(), offsets.data(), codes.data(), s.rows);
    for (int64_t b = begin; b < end; ++b) {
      isa.scan(tables, b, {codes.data(), 1, s.rows}, rows, {advance(out, first), out.row_stride, out.dtype});
    }
  });
}

void run_scan(const Routines& isa, const Tables& tables, Codes codes, int64_t n, Output out, int threads) {
  if (n == 0) return;
  const Split s = split(n, tables, threads);
  basis::parallel_for(s.row_blocks * s.output_parts, threads, [&](int64_t task) {
    const int64_t first = task / s.output_parts * s.rows;
    const int64_t rows = std::min(s.rows, n - first);
    const int64_t begin = task % s.output_parts * s.output_blocks;
    const Codes part{codes.data + first * codes.row_stride, codes.row_stride, codes.codebook_stride};
    for (int64_t b = begin; b < std::min(begin + s.output_blocks, tables.blocks); ++b) {
      isa.scan(tables, b, part, rows, {advance(out, first), out.row_stride, out.dtype});
    }
  });
}

// codes: code (r, c) goes to codes[r * row_stride + c * codebook_stride], one of the strides being 1.
void run_encode(const Routines& isa, const Trees& trees, const Input& x, uint8_t* codes, int64_t row_stride,
                int64_t codebook_stride, int threads) {
  const int64_t blocks = (x.rows + kRows - 1) / kRows;
  const int c = trees.codebooks;
  basis::parallel_for(blocks, threads, [&](int64_t block) {
    const int64_t first = block * kRows, rows = std::min(kRows, x.rows - first);
    thread_local Aligned<float> staged;
    thread_local Aligned<uint8_t> local;
    thread_local Aligned<int64_t> offsets;
    const size_t columns = static_cast<size_t>(c) * kLevels;
    if (staged.size() < columns * kEncodeRows) staged = Aligned<float>(columns * kEncodeRows);
    if (local.size() < static_cast<size_t>(c) * kRows) local = Aligned<uint8_t>(static_cast<size_t>(c) * kRows);
    if (offsets.size() < columns) offsets = Aligned<int64_t>(columns);
    if (row_stride == 1 && rows % kEncodeRows == 0) {  // nothing is written past the last row
      encode_rows(isa, trees, x, first, rows, staged.data(), offsets.data(), codes + first, codebook_stride);
      return;
    }
    encode_rows(isa, trees, x, first, rows, staged.data(), offsets.data(), local.data(), kRows);
    for (int64_t r = 0; r < rows; ++r) {
      for (int i = 0; i < c; ++i) {
        codes[(first + r) * row_stride + i * codebook_stride] = local.data()[i * kRows + r];
      }
    }
  });
}

}  // namespace
