// Finds the rows of a column that hold a value: 64 rows at a time, as a bit mask, by the widest compare available.
//
// Included by one translation unit per instruction set, hence the anonymous namespace.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

using Wide = unsigned __int128;

inline int count_bits(uint64_t mask) { return __builtin_popcountll(mask); }
inline int lowest_bit(uint64_t mask) { return __builtin_ctzll(mask); }

// Position of the set bit number `index`, counted from the lowest.
inline int select_bit(uint64_t mask, uint32_t index) {
#if defined(__BMI2__)
  return lowest_bit(_pdep_u64(uint64_t{1} << index, mask));
#else
  while (index--) mask &= mask - 1;
  return lowest_bit(mask);
#endif
}

template <class Word>
struct Lanes {  // scalar
  static constexpr int count = 1;
  static Word spread(Word value) { return value; }
  static uint64_t equal(const Word* column, Word value) { return *column == value; }
};

#if defined(__AVX512BW__)

template <>
struct Lanes<uint16_t> {
  static constexpr int count = 32;
  static __m512i spread(uint16_t value) { return _mm512_set1_epi16(static_cast<short>(value)); }
  static uint64_t equal(const uint16_t* column, __m512i value) {
    return _mm512_cmpeq_epi16_mask(_mm512_load_si512(column), value);
  }
};
template <>
struct Lanes<uint32_t> {
  static constexpr int count = 16;
  static __m512i spread(uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }
  static uint64_t equal(const uint32_t* column, __m512i value) {
    return _mm512_cmpeq_epi32_mask(_mm512_load_si512(column), value);
  }
};
template <>
struct Lanes<uint64_t> {
  static constexpr int count = 8;
  static __m512i spread(uint64_t value) { return _mm512_set1_epi64(static_cast<long long>(value)); }
  static uint64_t equal(const uint64_t* column, __m512i value) {
    return _mm512_cmpeq_epi64_mask(_mm512_load_si512(column), value);
  }
};
template <>
struct Lanes<Wide> {
  static constexpr int count = 4;
  static __m512i spread(Wide value) {
    const auto low = static_cast<long long>(value), high = static_cast<long long>(value >> 64);
    return _mm512_set_epi64(high, low, high, low, high, low, high, low);
  }
  static uint64_t equal(const Wide* column, __m512i value) {
    const unsigned halves = _mm512_cmpeq_epi64_mask(_mm512_load_si512(column), value);
    return _pext_u32(halves & (halves >> 1), 0x55);
  }
};

#elif defined(__AVX2__)

template <>
struct Lanes<uint16_t> {
  static constexpr int count = 32;
  static __m256i spread(uint16_t value) { return _mm256_set1_epi16(static_cast<short>(value)); }
  static uint64_t equal(const uint16_t* column, __m256i value) {
    const auto* at = reinterpret_cast<const __m256i*>(column);
    const __m256i packed = _mm256_packs_epi16(_mm256_cmpeq_epi16(_mm256_load_si256(at), value),
                                              _mm256_cmpeq_epi16(_mm256_load_si256(at + 1), value));
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(packed, 0xD8)));
  }
};
template <>
struct Lanes<uint32_t> {
  static constexpr int count = 8;
  static __m256i spread(uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }
  static uint64_t equal(const uint32_t* column, __m256i value) {
    const __m256i same = _mm256_cmpeq_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(column)), value);
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(same)));
  }
};
template <>
struct Lanes<uint64_t> {
  static constexpr int count = 4;
  static __m256i spread(uint64_t value) { return _mm256_set1_epi64x(static_cast<long long>(value)); }
  static uint64_t equal(const uint64_t* column, __m256i value) {
    const __m256i same = _mm256_cmpeq_epi64(_mm256_load_si256(reinterpret_cast<const __m256i*>(column)), value);
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(same)));
  }
};
template <>
struct Lanes<Wide> {
  static constexpr int count = 2;
  static __m256i spread(Wide value) {
    const auto low = static_cast<long long>(value), high = static_cast<long long>(value >> 64);
    return _mm256_set_epi64x(high, low, high, low);
  }
  static uint64_t equal(const Wide* column, __m256i value) {
    const __m256i same = _mm256_cmpeq_epi64(_mm256_load_si256(reinterpret_cast<const __m256i*>(column)), value);
    const unsigned halves = static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(same)));
    return ((halves & 3) == 3 ? 1u : 0u) | ((halves & 12) == 12 ? 2u : 0u);
  }
};

#endif

// A set of rows: bit k of word k / 64.
template <int Words>
struct Rows {
  uint64_t word[Words];

  void clear() {
    for (auto& w : word) w = 0;
  }
  bool any() const {
    uint64_t all = 0;
    for (auto w : word) all |= w;
    return all != 0;
  }
  int count() const {
    int total = 0;
    for (auto w : word) total += count_bits(w);
    return total;
  }
  void set(int row) { word[Words == 1 ? 0 : row >> 6] |= uint64_t{1} << (row & 63); }
  void reset(int row) { word[Words == 1 ? 0 : row >> 6] &= ~(uint64_t{1} << (row & 63)); }
  bool has(int row) const { return word[Words == 1 ? 0 : row >> 6] >> (row & 63) & 1; }

  int select(uint32_t index) const {
    if constexpr (Words == 1) return select_bit(word[0], index);
    uint32_t before = 0, passed = 0;
    int at = 0;
    for (int w = 0; w + 1 < Words; ++w) {  // branch-free: which word holds bit number `index`
      passed += static_cast<uint32_t>(count_bits(word[w]));
      const bool past = index >= passed;
      at += past;
      before = past ? passed : before;
    }
    return at * 64 + select_bit(word[at], index - before);
  }
};

// Rows of a column equal to a nonzero value. Rows from `rank` on hold zero, so whole vectors are compared.
template <class Word, int Words>
inline Rows<Words> rows_equal(const Word* column, Word value, int rank) {
  using L = Lanes<Word>;
  const auto wanted = L::spread(value);
  Rows<Words> found;
  for (int w = 0; w < Words; ++w) {
    uint64_t mask = 0;
    const int rows = rank - 64 * w < 64 ? rank - 64 * w : 64;
    for (int k = 0; k < rows; k += L::count) mask |= L::equal(column + 64 * w + k, wanted) << k;
    found.word[w] = mask;
  }
  return found;
}

}  // namespace
