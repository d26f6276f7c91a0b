// AVX2: eight rows per compare of floats, 32 of integers; 32 outputs or 32 rows per table look-up; exact 16-bit sums.
#include "rows_x86.h"

namespace {

// Float trees: a level's sixteen entries come in equal pairs, so a permute of eight entries fetches each row's
// threshold by the upper three bits of its code.
inline __m256 every_other(const float* level) {
  const __m256 mixed = _mm256_shuffle_ps(_mm256_load_ps(level), _mm256_load_ps(level + 8), 0x88);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8));
}

inline __m256 widened(const float* x) { return _mm256_loadu_ps(x); }
inline __m256 widened(const uint16_t* x) {  // bfloat16
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

template <class T>
inline __m256i encode8(const T* const* x, int64_t r, const __m256* tables) {
  const auto bit = [&](int t, __m256 v, int value) {
    const __m256 above = _mm256_cmp_ps(widened(x[t] + r), v, _CMP_GT_OQ);
    return _mm256_and_si256(_mm256_castps_si256(above), _mm256_set1_epi32(value));
  };
  __m256i code = bit(0, tables[0], 4);
  code = _mm256_or_si256(code, bit(1, _mm256_permutevar8x32_ps(tables[1], code), 2));
  code = _mm256_or_si256(code, bit(2, _mm256_permutevar8x32_ps(tables[2], code), 1));
  const __m256i last = bit(3, _mm256_permutevar8x32_ps(tables[3], code), 1);
  return _mm256_or_si256(_mm256_add_epi32(code, code), last);
}

template <class T>
void encode_floats(const Trees& trees, const T* x, const int64_t* offsets, int64_t rows, uint8_t* codes, int64_t stride) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int c = 0; c < trees.codebooks; ++c, offsets += kLevels) {
    const T* columns[kLevels] = {x + offsets[0], x + offsets[1], x + offsets[2], x + offsets[3]};
    const float* levels = trees.floats + static_cast<int64_t>(c) * kLevels * kBuckets;
    __m256 tables[kLevels] = {_mm256_set1_ps(levels[0])};
    for (int t = 1; t < kLevels; ++t) tables[t] = every_other(levels + t * kBuckets);
    for (int64_t r = 0; r < rows; r += 32) {
      const __m256i a = encode8(columns, r, tables), b = encode8(columns, r + 8, tables);
      const __m256i d = encode8(columns, r + 16, tables), e = encode8(columns, r + 24, tables);
      const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(d, e));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + c * stride + r), _mm256_permutevar8x32_epi32(bytes, order));
    }
  }
}

inline __m256i twice(const void* at) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(static_cast<const __m128i*>(at)));
}
inline __m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

// 32 rows at once; thresholds by byte shuffles, those of 16 bits as two planes.
struct I8 {
  const __m256i* table;
  __m256i above(const int8_t* x, __m256i code) const { return _mm256_cmpgt_epi8(load(x), _mm256_shuffle_epi8(*table, code)); }
};
struct I16 {
  const __m256i* table;  // low bytes, high bytes
  __m256i above(const int16_t* x, __m256i code) const {
    const __m256i low = _mm256_shuffle_epi8(table[0], code), high = _mm256_shuffle_epi8(table[1], code);
    const __m256i first = load(x), second = load(x + 16);  // unpacked thresholds: rows 0-7, 16-23 and 8-15, 24-31
    const __m256i one = _mm256_cmpgt_epi16(_mm256_permute2x128_si256(first, second, 0x20), _mm256_unpacklo_epi8(low, high));
    const __m256i two = _mm256_cmpgt_epi16(_mm256_permute2x128_si256(first, second, 0x31), _mm256_unpackhi_epi8(low, high));
    return _mm256_packs_epi16(one, two);
  }
};

inline void planes(const int8_t* level, __m256i* table) { table[0] = twice(level); }
inline void planes(const int16_t* level, __m256i* table) {
  alignas(16) uint8_t low[kBuckets], high[kBuckets];
  for (int i = 0; i < kBuckets; ++i) {
    low[i] = static_cast<uint8_t>(level[i]);
    high[i] = static_cast<uint8_t>(static_cast<uint16_t>(level[i]) >> 8);
  }
  table[0] = twice(low);
  table[1] = twice(high);
}

template <class Lane, class T>
void encode_integers(int codebooks, const T* levels, const T* x, const int64_t* offsets, int64_t rows, uint8_t* codes,
                     int64_t stride) {
  for (int c = 0; c < codebooks; ++c, offsets += kLevels, levels += kLevels * kBuckets) {
    __m256i tables[kLevels][2];
    for (int t = 0; t < kLevels; ++t) planes(levels + t * kBuckets, tables[t]);
    for (int64_t r = 0; r < rows; r += 32) {
      __m256i code = _mm256_setzero_si256();
      for (int t = 0; t < kLevels; ++t) {
        const __m256i above = Lane{tables[t]}.above(x + offsets[t] + r, code);
        code = _mm256_or_si256(code, _mm256_and_si256(above, _mm256_set1_epi8(static_cast<char>(8 >> t))));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + c * stride + r), code);
    }
  }
}

void encode(const Trees& t, const void* x, Dtype dtype, const int64_t* offsets, int64_t rows, uint8_t* codes,
            int64_t stride) {
  static_assert(kEncodeRows == 32, "one register of bytes");
  const int c = t.codebooks;
  switch (dtype) {
    case Dtype::f32: return encode_floats(t, static_cast<const float*>(x), offsets, rows, codes, stride);
    case Dtype::bf16: return encode_floats(t, static_cast<const uint16_t*>(x), offsets, rows, codes, stride);
    case Dtype::i16:
      return encode_integers<I16>(c, t.shorts, static_cast<const int16_t*>(x), offsets, rows, codes, stride);
    case Dtype::i8: return encode_integers<I8>(c, t.bytes, static_cast<const int8_t*>(x), offsets, rows, codes, stride);
  }
}

inline void store8(void* to, Dtype dtype, int64_t at, __m256 y) {
  if (dtype == Dtype::f32) {
    _mm256_storeu_ps(static_cast<float*>(to) + at, y);
    return;
  }
  const __m256i bits = _mm256_castps_si256(y);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i nan = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  rounded = _mm256_blendv_epi8(rounded, nan, _mm256_castps_si256(_mm256_cmp_ps(y, y, _CMP_UNORD_Q)));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(to) + at), _mm256_castsi256_si128(packed));
}

struct Floats {
  using Vector = __m256;
  // Scales `V` registers of eight sums and stores the first `count` of their outputs.
  template <int V>
  static void finish(const __m256* sums, const float* scale, const float* offset, int count, Output out, int64_t at) {
    __m256 y[V];
    for (int v = 0; v < V; ++v) {
      y[v] = _mm256_fmadd_ps(sums[v], _mm256_load_ps(scale + 8 * v), _mm256_load_ps(offset + 8 * v));
    }
    if (count == 8 * V) {
      for (int v = 0; v < V; ++v) store8(out.data, out.dtype, at + 8 * v, y[v]);
      return;
    }
    alignas(32) char spare[8 * V * sizeof(float)];
    for (int v = 0; v < V; ++v) store8(spare, out.dtype, 8 * v, y[v]);
    const int64_t size = out.dtype == Dtype::f32 ? 4 : 2;
    std::memcpy(static_cast<char*>(out.data) + at * size, spare, count * size);
  }
};

// V registers of 32 bytes. all += entry and odd += entry >> 8, in 16-bit lanes: then odd holds the sums of the odd
// bytes, and all - 256 odd those of the even bytes, exactly for up to kExactSums entries.
template <int V>
void scan_uint8(const Tables& tables, int64_t block, Codes codes, int64_t rows, Output out) {
  constexpr int kLanes = 32 * V;
  const int64_t first = block * kLanes;
  const int count = static_cast<int>(least(kLanes, tables.outputs - first));
  const uint8_t* base = tables.bytes + block * tables.codebooks * kBuckets * kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* code = codes.data + r * codes.row_stride;
    __m256i total[4 * V];
    for (int v = 0; v < 4 * V; ++v) total[v] = _mm256_setzero_si256();
    for (int begin = 0; begin < tables.codebooks; begin += kExactSums) {
      const int end = static_cast<int>(least(begin + kExactSums, tables.codebooks));
      __m256i all[V], odd[V];
      for (int v = 0; v < V; ++v) all[v] = odd[v] = _mm256_setzero_si256();
      const uint8_t* table = base + static_cast<int64_t>(begin) * kBuckets * kLanes;
      for (int c = begin; c < end; ++c, table += kBuckets * kLanes) {
        const uint8_t* entry = table + (code[c * codes.codebook_stride] & (kBuckets - 1)) * kLanes;
        for (int v = 0; v < V; ++v) {
          const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(entry) + v);
          all[v] = _mm256_add_epi16(all[v], bytes);
          odd[v] = _mm256_add_epi16(odd[v], _mm256_srli_epi16(bytes, 8));
        }
      }
      for (int v = 0; v < V; ++v) {
        const __m256i even = _mm256_sub_epi16(all[v], _mm256_slli_epi16(odd[v], 8));
        const __m256i low = _mm256_unpacklo_epi16(even, odd[v]), high = _mm256_unpackhi_epi16(even, odd[v]);
        __m256i* t = total + 4 * v;
        t[0] = _mm256_add_epi32(t[0], _mm256_cvtepu16_epi32(_mm256_castsi256_si128(low)));
        t[1] = _mm256_add_epi32(t[1], _mm256_cvtepu16_epi32(_mm256_castsi256_si128(high)));
        t[2] = _mm256_add_epi32(t[2], _mm256_cvtepu16_epi32(_mm256_extracti128_si256(low, 1)));
        t[3] = _mm256_add_epi32(t[3], _mm256_cvtepu16_epi32(_mm256_extracti128_si256(high, 1)));
      }
    }
    __m256 sums[4 * V];
    for (int v = 0; v < 4 * V; ++v) sums[v] = _mm256_cvtepi32_ps(total[v]);
    Floats::finish<4 * V>(sums, tables.scale + first, tables.offset + first, count, out, r * out.row_stride + first);
  }
}

void scan(const Tables& tables, int64_t block, Codes codes, int64_t rows, Output out) {
  if (tables.bytes) {
    (tables.lanes == 32 ? scan_uint8<1> : scan_uint8<2>)(tables, block, codes, rows, out);
  } else {
    (tables.lanes == 16 ? scan_float<Floats, 2> : scan_float<Floats, 4>)(tables, block, codes, rows, out);
  }
}

struct Pair {
  __m256 low, high;
};

struct ByRows {
  static constexpr int kTile = 32;
  static constexpr int kTogether = 2;
  using Bytes = __m256i;
  static Bytes load(const uint8_t* codes) { return _mm256_and_si256(::load(codes), _mm256_set1_epi8(kBuckets - 1)); }
  static Bytes look_up(const uint8_t* table, Bytes code) { return _mm256_shuffle_epi8(twice(table), code); }
  static Bytes average(Bytes a, Bytes b) { return _mm256_avg_epu8(a, b); }
  struct Sums {  // as in scan_uint8
    __m256i all = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
    void add(Bytes entries) {
      all = _mm256_add_epi16(all, entries);
      odd = _mm256_add_epi16(odd, _mm256_srli_epi16(entries, 8));
    }
    void store(uint16_t* to) const {
      const __m256i even = _mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8));
      const __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
      _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_permute2x128_si256(low, high, 0x20));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to) + 1, _mm256_permute2x128_si256(low, high, 0x31));
    }
  };
  static void prepare(const Tables&, const uint8_t*, int64_t, int64_t, uint8_t*) {}
  static void exact(const Tile& t, int count, const uint8_t*, int64_t) { sum_entries<ByRows>(t, count); }
  static void averaged(const Tile& t, int count) { sum_averages<ByRows>(t, count); }
  static Pair same(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static Pair sixteen(const float* x) { return {_mm256_load_ps(x), _mm256_load_ps(x + 8)}; }
  static void store16(const Output& out, int64_t at, int count, __m256i sums, Pair scale, Pair offset) {
    const __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(sums));
    const __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(sums, 1));
    const __m256 y[2] = {_mm256_fmadd_ps(_mm256_cvtepi32_ps(low), scale.low, offset.low),
                         _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), scale.high, offset.high)};
    if (count >= 16) {
      store8(out.data, out.dtype, at, y[0]);
      store8(out.data, out.dtype, at + 8, y[1]);
    } else if (out.dtype == Dtype::f32) {
      float* to = static_cast<float*>(out.data) + at;  // masked stores are slow on some processors
      __m128 left = _mm256_castps256_ps128(y[0]);
      __m256 whole = y[0];
      if (count >= 8) {
        _mm256_storeu_ps(to, y[0]);
        whole = y[1];
        to += 8;
        left = _mm256_castps256_ps128(whole);
      }
      if (count & 4) {
        _mm_storeu_ps(to, left);
        to += 4;
        left = _mm256_extractf128_ps(whole, 1);
      }
      if (count & 2) {
        _mm_storel_pi(reinterpret_cast<__m64*>(to), left);
        to += 2;
        left = _mm_movehl_ps(left, left);
      }
      if (count & 1) _mm_store_ss(to, left);
    } else {
      alignas(32) uint16_t spare[16];
      store8(spare, out.dtype, 0, y[0]);
      store8(spare, out.dtype, 8, y[1]);
      std::memcpy(static_cast<uint16_t*>(out.data) + at, spare, count * sizeof(uint16_t));
    }
  }
  static constexpr auto finish = finish_rows<ByRows>;
};

}  // namespace

const pq::Routines pq::avx2_routines{encode, scan, scan_rows<ByRows>};
