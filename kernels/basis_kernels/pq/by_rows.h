// Many rows at once: the table of one codebook and output is 16 bytes, and a byte shuffle looks it up for a register
// of rows (Blalock and Guttag, arXiv 2106.10860, section 4.4; Bolt, arXiv 1706.10283).
//
// Isa::kTile rows x kOutputs outputs of 16-bit sums are computed in L1, then scaled and written in the output's order.
#pragma once

#include "pq.h"

namespace {

using namespace pq;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int kFour = 4 * kBuckets;  // bytes of one output's tables of four codebooks

// One tile's operands: table [kOutputs / 4][padded / 4][4][4][16], codes of kTile rows, C rows of bytes `stride` apart.
struct Tile {
  const uint8_t* table;
  int padded, codebooks, group;
  const uint8_t* codes;
  int64_t stride;
  uint16_t* sums;  // [kOutputs][kTile]

  const uint8_t* entry(int output, int c) const {
    return table + (output / 4 * padded + c / 4 * 4 + output % 4) * kFour + c % 4 * kBuckets;
  }
};

template <class Isa>
void scan_rows(const Tables& t, int64_t begin, int64_t end, const uint8_t* codes, int64_t stride, int64_t rows,
               bool averaged, Output out, uint8_t* scratch) {
  alignas(64) uint16_t sums[kOutputs * Isa::kTile];
  const float* scale = averaged ? t.averaged_scale : t.scale;
  const float* offset = averaged ? t.averaged_offset : t.offset;
  const bool exact = !averaged || t.group == 1;
  if (exact) Isa::prepare(t, codes, stride, rows, scratch);
  for (int64_t m = begin; m < end; m += kOutputs) {
    const int count = static_cast<int>(least(kOutputs, end - m));
    Tile tile{t.by_rows + m * t.padded * kBuckets, t.padded, t.codebooks, t.group, codes, stride, sums};
    for (int64_t r = 0; r < rows; r += Isa::kTile) {
      tile.codes = codes + r;
      if (exact) {
        Isa::exact(tile, count, scratch, r);
      } else {
        Isa::averaged(tile, count);
      }
      const int some = static_cast<int>(least(Isa::kTile, rows - r));
      Isa::finish(sums, some, count, scale + m, offset + m, out, r, m);
    }
  }
}

// The mean of U tables' entries for N outputs, pair by pair, each pair rounded up.
template <class Isa, int N, int U>
struct Mean {
  static inline void of(const Tile& t, int output, int c, typename Isa::Bytes* result) {
    typename Isa::Bytes other[N];
    Mean<Isa, N, U / 2>::of(t, output, c, result);
    Mean<Isa, N, U / 2>::of(t, output, c + U / 2, other);
    for (int n = 0; n < N; ++n) result[n] = Isa::average(result[n], other[n]);
  }
};
template <class Isa, int N>
struct Mean<Isa, N, 1> {
  static inline void of(const Tile& t, int output, int c, typename Isa::Bytes* result) {
    const typename Isa::Bytes code = Isa::load(t.codes + c * t.stride);
    for (int n = 0; n < N; ++n) {
      result[n] = Isa::look_up(t.entry(output + n, c), code);
    }
  }
};

// Sums over the groups of U codebooks of their means, for N outputs.
template <class Isa, int N, int U>
inline void add_means(const Tile& t, int output) {
  typename Isa::Sums sums[N];
  for (int c = 0; c < t.codebooks; c += U) {
    typename Isa::Bytes mean[N];
    Mean<Isa, N, U>::of(t, output, c, mean);
    for (int n = 0; n < N; ++n) sums[n].add(mean[n]);
  }
  for (int n = 0; n < N; ++n) sums[n].store(t.sums + (output + n) * Isa::kTile);
}

// The same for U = 1, four codebooks at a time, in the order of their tables.
template <class Isa, int N>
inline void add_entries(const Tile& t, int output) {
  typename Isa::Sums sums[N];
  const auto add = [&](const uint8_t* table, int c) {
    const typename Isa::Bytes code = Isa::load(t.codes + c * t.stride);
    for (int n = 0; n < N; ++n) sums[n].add(Isa::look_up(table + n * kFour, code));
  };
  const uint8_t* table = t.entry(output, 0);
  int c = 0;
  for (; c + 4 <= t.codebooks; c += 4, table += 4 * kFour) {
    for (int k = 0; k < 4; ++k) add(table + k * kBuckets, c + k);
  }
  for (; c < t.codebooks; ++c, table += kBuckets) add(table, c);
  for (int n = 0; n < N; ++n) sums[n].store(t.sums + (output + n) * Isa::kTile);
}

template <class Isa>
inline void sum_entries(const Tile& t, int count) {
  for (int m = 0; m < count; m += Isa::kTogether) add_entries<Isa, Isa::kTogether>(t, m);
}

template <class Isa, int U>
inline void add_all_means(const Tile& t, int count) {
  for (int m = 0; m < count; m += Isa::kTogether) add_means<Isa, Isa::kTogether, U>(t, m);
}

template <class Isa>
inline void sum_averages(const Tile& t, int count) {
  switch (t.group) {
    case 2: return add_all_means<Isa, 2>(t, count);
    case 4: return add_all_means<Isa, 4>(t, count);
    case 8: return add_all_means<Isa, 8>(t, count);
    default: return add_all_means<Isa, 16>(t, count);
  }
}

}  // namespace
