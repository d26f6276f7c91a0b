// Splits rows and outputs into tasks; each encodes a block of rows and sums table entries while the codes are in cache.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "gather.h"
#include "parallel.h"
#include "pq.h"
#include "streamed.h"

namespace {

using namespace pq;

constexpr int64_t kFetchedBytes = 1024;  // limit on a row of outputs to prefetch

// Zero-filled memory aligned to a cache line.
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
  T* at_least(size_t count) {
    if (size_ < count) *this = Aligned(count);
    return data();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

struct OwnedTrees : Trees {
  std::vector<int32_t> own_columns;
  std::vector<std::vector<int32_t>> lines[3];  // of inputs of 1, 2 and 4 bytes
  Aligned<float> own_floats;
  Aligned<int16_t> own_shorts;
  Aligned<int8_t> own_bytes;
  int64_t width = 0;  // 1 + the largest column: rows must be at least this wide
};

// codes: C rows of bytes, `codebook_stride` apart and padded to a multiple of kEncodeRows. Whole blocks of columns are
// read in place; everything else is gathered first.
void encode_block(const Routines& isa, const OwnedTrees& trees, const Input& x, int64_t first, int64_t rows,
                  uint8_t* codes, int64_t codebook_stride) {
  thread_local Aligned<uint32_t> staged_memory;
  thread_local Aligned<int64_t> offsets_memory;
  const int columns = trees.codebooks * kLevels;
  uint32_t* staged = staged_memory.at_least(static_cast<size_t>(kGathered) * kLevels * kEncodeRows);
  int64_t* offsets = offsets_memory.at_least(columns);
  const int64_t size = size_of(x.dtype);
  int64_t done = 0;
  if (x.row_stride == 1) {
    done = rows / kEncodeRows * kEncodeRows;
    for (int j = 0; j < columns; ++j) offsets[j] = trees.columns[j] * x.column_stride;
    isa.encode(trees, static_cast<const char*>(x.data) + first * size, x.dtype, offsets, done, codes, codebook_stride);
  }
  if (done == rows) return;
  const int most = std::min(trees.codebooks, kGathered);
  for (int j = 0; j < most * kLevels; ++j) offsets[j] = int64_t{j} * kEncodeRows;
  for (int64_t r = done; r < rows; r += kEncodeRows) {
    const int count = static_cast<int>(std::min<int64_t>(kEncodeRows, rows - r));
    for (int c = 0; c < trees.codebooks; c += kGathered) {
      Trees part = trees;
      part.codebooks = std::min(trees.codebooks - c, kGathered);
      const int64_t skipped = int64_t{c} * kLevels * kBuckets;
      part.floats += skipped;
      if (part.shorts) part.shorts += skipped;
      if (part.bytes) part.bytes += skipped;
      const auto& lines = trees.lines[size / 2][c / kGathered];
      const auto as = [&](auto* to) {
        gather(trees.columns + c * kLevels, part.codebooks * kLevels, lines, x, first + r, count, to);
      };
      switch (size) {
        case 4: as(staged); break;
        case 2: as(reinterpret_cast<uint16_t*>(staged)); break;
        default: as(reinterpret_cast<uint8_t*>(staged));
      }
      isa.encode(part, staged, x.dtype, offsets, kEncodeRows, codes + c * codebook_stride + r, codebook_stride);
    }
  }
}

// Prefetches the lines of `rows` rows of outputs where they fit in L2 next to the codes.
void fetch(const Output& out, int64_t rows, int64_t begin, int64_t end) {
  const int64_t size = size_of(out.dtype);
  if (out.column_stride != 1 || (end - begin) * size > kFetchedBytes) return;
  for (int64_t r = 0; r < rows; ++r) {
    const char* row = static_cast<const char*>(out.data) + r * out.row_stride * size;
    for (int64_t at = begin * size; at < end * size; at += kLineBytes) __builtin_prefetch(row + at, 1, kIntoL2);
  }
}

// ---- blocking ----

constexpr int64_t kRows = 256;              // rows per task: a block's tables are read once for all of them
constexpr int64_t kRowsOfCodes = 512;       // the same for given codes: their columns are read in longer runs
constexpr int64_t kRowsOfColumns = 4096;    // the same for column-major input: runs suit hardware prefetch
constexpr int64_t kRowsTogether = 64;       // codes of a block of rows are padded to a multiple of this
constexpr int64_t kStagedOutputs = 512;     // outputs staged at a time: kRowsTogether rows of them fit in L2
constexpr int64_t kFewRows = 8;             // up to these, outputs rather than rows fill the registers
constexpr int64_t kSmallestTask = 1 << 17;  // look-ups; below this a second thread costs more than it saves

struct Split {
  int64_t rows, row_blocks, outputs, output_parts;  // per task; outputs a multiple of 64
};

Split split(int64_t n, const Tables& tables, int threads, int64_t most_rows) {
  const int64_t work = n * tables.codebooks * tables.blocks * tables.lanes;
  const int64_t wanted = std::clamp<int64_t>(work / kSmallestTask, 1, threads);
  int64_t rows = std::min(most_rows, (n + wanted - 1) / wanted);
  rows = (rows + kRowsTogether - 1) / kRowsTogether * kRowsTogether;
  const int64_t row_blocks = (n + rows - 1) / rows;
  int64_t parts = std::min(tables.blocks, std::max<int64_t>(1, wanted / std::max<int64_t>(1, row_blocks)));
  const int64_t output_blocks = (tables.blocks + parts - 1) / parts;
  parts = (tables.blocks + output_blocks - 1) / output_blocks;
  return {rows, row_blocks, output_blocks * tables.lanes, parts};
}

void* advance(const Output& out, int64_t rows) {
  return static_cast<char*>(out.data) + rows * out.row_stride * size_of(out.dtype);
}

bool by_rows(const Tables& tables, int64_t n, bool averaged, const Output& out) {
  if (!tables.by_rows) return false;
  if (averaged && tables.group > 1) return true;
  return (n > kFewRows || out.column_stride != 1) && tables.codebooks <= kExactSums;
}

// codes: C rows of bytes padded to kRowsTogether; outputs begin .. end - 1 of `rows` rows.
void scan_block(const Routines& isa, const Tables& tables, const uint8_t* codes, int64_t codebook_stride, int64_t rows,
                int64_t begin, int64_t end, bool averaged, const Output& out) {
  if (by_rows(tables, rows, averaged, out)) {
    thread_local Aligned<uint8_t> scratch;
    const int64_t padded_rows = (rows + kRowsTogether - 1) / kRowsTogether * kRowsTogether;
    isa.scan_rows(tables, begin, end, codes, codebook_stride, rows, averaged, out,
                  scratch.at_least(static_cast<size_t>(tables.padded) * padded_rows));
    return;
  }
  for (int64_t b = begin / tables.lanes; b * tables.lanes < end; ++b) {
    isa.scan(tables, b, {codes, 1, codebook_stride}, rows, out);
  }
}

// Bytes of cache lines read from the inputs (if given) and of outputs.
int64_t bytes_met(const OwnedTrees* trees, const Input& x, const Tables& tables, const Output& out) {
  int64_t a_row = tables.outputs * size_of(out.dtype);
  if (trees && x.column_stride == 1) {
    for (const auto& lines : trees->lines[size_of(x.dtype) / 2]) a_row += kLineBytes * static_cast<int64_t>(lines.size());
  } else if (trees) {
    a_row += trees->codebooks * kLevels * size_of(x.dtype);
  }
  return x.rows * a_row;
}

// scan_block with row-major outputs that bypass the caches.
void scan_streamed(const Routines& isa, const Tables& tables, const uint8_t* codes, int64_t codebook_stride, int64_t rows,
                   int64_t begin, int64_t end, bool averaged, const Output& out) {
  thread_local Aligned<char> staged_memory;
  const int64_t size = size_of(out.dtype);
  char* staged = staged_memory.at_least(kRowsTogether * kStagedOutputs * size);
  for (int64_t r = 0; r < rows; r += kRowsTogether) {
    const int64_t some = std::min(kRowsTogether, rows - r);
    for (int64_t m = begin; m < end; m += kStagedOutputs) {
      const int64_t count = std::min(kStagedOutputs, end - m);
      char* to = static_cast<char*>(out.data) + (r * out.row_stride + m) * size;
      // the address column 0 would have: only columns from m on are written
      void* origin = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(staged) - m * size);
      scan_block(isa, tables, codes + r, codebook_stride, some, m, m + count, averaged, {origin, count, 1, out.dtype});
      if (count == out.row_stride) {
        stream(to, staged, some * count * size);
      } else {
        for (int64_t i = 0; i < some; ++i) stream(to + i * out.row_stride * size, staged + i * count * size, count * size);
      }
    }
  }
  streamed();
}

// Codes are those of the rows of x, or `given` where it is not null.
void run(const Routines& isa, const OwnedTrees* trees, const Input& x, const Codes* given, const Tables& tables,
         bool averaged, const Output& out, int threads) {
  if (x.rows == 0) return;
  const Split s = split(x.rows, tables, threads, given ? kRowsOfCodes : kRows);
  const bool past_caches = out.column_stride == 1 && bytes_met(trees, x, tables, out) >= kStreamedBytes;
  const auto scan = past_caches ? scan_streamed : scan_block;
  basis::parallel_for(s.row_blocks * s.output_parts, threads, [&](int64_t task) {
    const int64_t first = task / s.output_parts * s.rows;
    const int64_t rows = std::min(s.rows, x.rows - first);
    const int64_t begin = task % s.output_parts * s.outputs;
    const int64_t end = std::min(begin + s.outputs, tables.outputs);
    const Output to{advance(out, first), out.row_stride, out.column_stride, out.dtype};
    thread_local Aligned<uint8_t> memory;
    if (!given) {
      uint8_t* codes = memory.at_least(static_cast<size_t>(tables.codebooks) * s.rows);
      if (!past_caches) fetch(to, rows, begin, end);
      encode_block(isa, *trees, x, first, rows, codes, s.rows);
      scan(isa, tables, codes, s.rows, rows, begin, end, averaged, to);
      return;
    }
    const uint8_t* from = given->data + first * given->row_stride;
    if (given->row_stride == 1 && rows % kRowsTogether == 0) {
      scan(isa, tables, from, given->codebook_stride, rows, begin, end, averaged, to);
      return;
    }
    uint8_t* codes = memory.at_least(static_cast<size_t>(tables.codebooks) * s.rows);
    for (int c0 = 0; c0 < tables.codebooks; c0 += kBuckets) {  // a few columns at a time: their lines stay in L1
      const int c1 = std::min(c0 + kBuckets, tables.codebooks);
      for (int64_t r = 0; r < rows; ++r) {
        for (int c = c0; c < c1; ++c) codes[c * s.rows + r] = from[r * given->row_stride + c * given->codebook_stride];
      }
    }
    scan(isa, tables, codes, s.rows, rows, begin, end, averaged, to);
  });
}

// Writes code (r, c) to codes[r * row_stride + c * codebook_stride]; one of the strides is 1.
void run_encode(const Routines& isa, const OwnedTrees& trees, const Input& x, uint8_t* codes, int64_t row_stride,
                int64_t codebook_stride, int threads) {
  const int64_t share = (x.rows / std::max(threads, 1) / kRowsTogether + 1) * kRowsTogether;
  const int64_t most = x.row_stride == 1 ? std::clamp(share, kRows, kRowsOfColumns) : kRows;
  const int64_t blocks = (x.rows + most - 1) / most;
  const int c = trees.codebooks;
  basis::parallel_for(blocks, threads, [&](int64_t block) {
    const int64_t first = block * most, rows = std::min(most, x.rows - first);
    if (row_stride == 1 && rows % kEncodeRows == 0) {  // nothing is written past the last row
      encode_block(isa, trees, x, first, rows, codes + first, codebook_stride);
      return;
    }
    thread_local Aligned<uint8_t> memory;
    uint8_t* local = memory.at_least(static_cast<size_t>(c) * most);
    encode_block(isa, trees, x, first, rows, local, most);
    for (int64_t r = 0; r < rows; ++r) {
      for (int i = 0; i < c; ++i) codes[(first + r) * row_stride + i * codebook_stride] = local[i * most + r];
    }
  });
}

}  // namespace
