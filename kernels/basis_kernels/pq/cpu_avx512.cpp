// AVX-512: sixteen to 64 rows per tree compare; 64 outputs, or 64 rows, per table look-up.
#include "rows_avx512.h"

namespace {

// Trees: the code bits of the levels above select each row's threshold from one register.
struct F32 {
  using Mask = __mmask16;
  static constexpr int kRows = 16;
  static __m512 table(const float* level) { return _mm512_load_ps(level); }
  static __m512 pick(__m512 table, __m512i code) { return _mm512_permutexvar_ps(code, table); }
  static Mask above(const float* x, __m512 v) { return _mm512_cmp_ps_mask(_mm512_loadu_ps(x), v, _CMP_GT_OQ); }
  static __m512i add(__m512i code, Mask right, int bit) {
    return _mm512_mask_or_epi32(code, right, code, _mm512_set1_epi32(bit));
  }
  static void store(uint8_t* to, __m512i code) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(code));
  }
};

struct Bf16 : F32 {
  static Mask above(const uint16_t* x, __m512 v) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    return _mm512_cmp_ps_mask(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)), v, _CMP_GT_OQ);
  }
};

struct I16 {
  using Mask = __mmask32;
  static constexpr int kRows = 32;
  static __m512i table(const int16_t* level) {
    return _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(level)));
  }
  static __m512i pick(__m512i table, __m512i code) { return _mm512_permutexvar_epi16(code, table); }
  static Mask above(const int16_t* x, __m512i v) { return _mm512_cmpgt_epi16_mask(_mm512_loadu_si512(x), v); }
  static __m512i add(__m512i code, Mask right, int bit) {
    return _mm512_mask_add_epi16(code, right, code, _mm512_set1_epi16(static_cast<short>(bit)));
  }
  static void store(uint8_t* to, __m512i code) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi16_epi8(code));
  }
};

// `kEncodeRows` rows in half a register, or twice as many in a whole one.
template <int Rows>
struct I8 {
  using Mask = __mmask64;
  static constexpr int kRows = Rows;
  static constexpr Mask kSome = Rows == 64 ? ~Mask{0} : 0xffffffff;
  static __m512i table(const int8_t* level) {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(level)));
  }
  static __m512i pick(__m512i table, __m512i code) { return _mm512_shuffle_epi8(table, code); }
  static Mask above(const int8_t* x, __m512i v) {
    return _mm512_cmpgt_epi8_mask(_mm512_maskz_loadu_epi8(kSome, x), v);
  }
  static __m512i add(__m512i code, Mask right, int bit) {
    return _mm512_mask_add_epi8(code, right, code, _mm512_set1_epi8(static_cast<char>(bit)));
  }
  static void store(uint8_t* to, __m512i code) { _mm512_mask_storeu_epi8(to, kSome, code); }
};

template <class Lane, class T, class V>
inline void encode_rows(const T* const* x, const V* levels, int64_t begin, int64_t end, uint8_t* to) {
  const auto root = Lane::pick(Lane::table(levels), _mm512_setzero_si512());
  const auto one = Lane::table(levels + kBuckets), two = Lane::table(levels + 2 * kBuckets);
  const auto three = Lane::table(levels + 3 * kBuckets);
  for (int64_t r = begin; r < end; r += Lane::kRows) {
    __m512i code = Lane::add(_mm512_setzero_si512(), Lane::above(x[0] + r, root), 8);
    code = Lane::add(code, Lane::above(x[1] + r, Lane::pick(one, code)), 4);
    code = Lane::add(code, Lane::above(x[2] + r, Lane::pick(two, code)), 2);
    code = Lane::add(code, Lane::above(x[3] + r, Lane::pick(three, code)), 1);
    Lane::store(to + r, code);
  }
}

template <class Lane, class Rest, class T, class V>
void encode_as(int codebooks, const V* levels, const T* x, const int64_t* offsets, int64_t rows, uint8_t* codes,
               int64_t codebook_stride) {
  const int64_t whole = rows / Lane::kRows * Lane::kRows;
  for (int c = 0; c < codebooks; ++c, offsets += kLevels, levels += kLevels * kBuckets) {
    const T* columns[kLevels] = {x + offsets[0], x + offsets[1], x + offsets[2], x + offsets[3]};
    encode_rows<Lane>(columns, levels, 0, whole, codes + c * codebook_stride);
    encode_rows<Rest>(columns, levels, whole, rows, codes + c * codebook_stride);
  }
}

void encode(const Trees& t, const void* x, Dtype dtype, const int64_t* offsets, int64_t rows, uint8_t* codes,
            int64_t stride) {
  const int c = t.codebooks;
  switch (dtype) {
    case Dtype::f32: return encode_as<F32, F32>(c, t.floats, static_cast<const float*>(x), offsets, rows, codes, stride);
    case Dtype::bf16:
      return encode_as<Bf16, Bf16>(c, t.floats, static_cast<const uint16_t*>(x), offsets, rows, codes, stride);
    case Dtype::i16: return encode_as<I16, I16>(c, t.shorts, static_cast<const int16_t*>(x), offsets, rows, codes, stride);
    case Dtype::i8:
      return encode_as<I8<64>, I8<32>>(c, t.bytes, static_cast<const int8_t*>(x), offsets, rows, codes, stride);
  }
}

struct Floats {
  using Vector = __m512;
  // Scales V registers of sixteen sums and stores the first `count` of their outputs.
  template <int V>
  static void finish(const __m512* sums, const float* scale, const float* offset, int count, Output out, int64_t at) {
    for (int v = 0; v < V; ++v) {
      const int left = count - 16 * v;
      if (left <= 0) return;
      const __mmask16 some = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
      // rows of scale and offset are padded to whole blocks, whose start is a multiple of 16 floats
      store16(out.data, out.dtype, at + 16 * v, some,
              _mm512_fmadd_ps(sums[v], _mm512_load_ps(scale + 16 * v), _mm512_load_ps(offset + 16 * v)));
    }
  }
};

// 32 H outputs, H = 1 or 2: all += entry and odd += entry >> 8, in 16-bit lanes; odd holds the sums of the odd bytes
// and all - 256 odd those of the even ones, exactly for up to kExactSums entries.
template <int H>
void scan_uint8(const Tables& tables, int64_t block, Codes codes, int64_t rows, Output out) {
  constexpr int kLanes = 32 * H;
  constexpr __mmask64 kSome = H == 2 ? ~__mmask64{0} : 0xffffffff;
  const __m512i lower = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);  // lanes of 8 outputs, in order
  const __m512i upper = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  const int64_t first = block * kLanes;
  const int count = static_cast<int>(least(kLanes, tables.outputs - first));
  const uint8_t* base = tables.bytes + block * tables.codebooks * kBuckets * kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* code = codes.data + r * codes.row_stride;
    __m512i total[2 * H];
    for (auto& t : total) t = _mm512_setzero_si512();
    for (int begin = 0; begin < tables.codebooks; begin += kExactSums) {
      const int end = static_cast<int>(least(begin + kExactSums, tables.codebooks));
      __m512i all = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
      const uint8_t* table = base + static_cast<int64_t>(begin) * kBuckets * kLanes;
      for (int c = begin; c < end; ++c, table += kBuckets * kLanes) {
        const uint8_t* entry = table + (code[c * codes.codebook_stride] & (kBuckets - 1)) * kLanes;
        const __m512i bytes = _mm512_maskz_loadu_epi8(kSome, entry);
        all = _mm512_add_epi16(all, bytes);
        odd = _mm512_add_epi16(odd, _mm512_srli_epi16(bytes, 8));
      }
      const __m512i even = _mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8));
      const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
      const __m512i one = _mm512_permutex2var_epi64(low, lower, high);
      total[0] = _mm512_add_epi32(total[0], _mm512_cvtepu16_epi32(_mm512_castsi512_si256(one)));
      total[1] = _mm512_add_epi32(total[1], _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(one, 1)));
      if constexpr (H == 2) {
        const __m512i two = _mm512_permutex2var_epi64(low, upper, high);
        total[2] = _mm512_add_epi32(total[2], _mm512_cvtepu16_epi32(_mm512_castsi512_si256(two)));
        total[3] = _mm512_add_epi32(total[3], _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(two, 1)));
      }
    }
    __m512 sums[2 * H];
    for (int v = 0; v < 2 * H; ++v) sums[v] = _mm512_cvtepi32_ps(total[v]);
    Floats::finish<2 * H>(sums, tables.scale + first, tables.offset + first, count, out, r * out.row_stride + first);
  }
}

void scan(const Tables& tables, int64_t block, Codes codes, int64_t rows, Output out) {
  if (tables.bytes) {
    (tables.lanes == 32 ? scan_uint8<1> : scan_uint8<2>)(tables, block, codes, rows, out);
  } else {
    (tables.lanes == 16 ? scan_float<Floats, 1> : scan_float<Floats, 2>)(tables, block, codes, rows, out);
  }
}

struct ByRows : Stored {
  static constexpr int kTile = 64;
  static constexpr int kTogether = 4;
  using Bytes = __m512i;
  static Bytes load(const uint8_t* codes) {
    return _mm512_and_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(kBuckets - 1));
  }
  static Bytes look_up(const uint8_t* table, Bytes code) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table))), code);
  }
  static Bytes average(Bytes a, Bytes b) { return _mm512_avg_epu8(a, b); }
  struct Sums {  // as in scan_uint8
    __m512i all = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
    void add(Bytes entries) {
      all = _mm512_add_epi16(all, entries);
      odd = _mm512_add_epi16(odd, _mm512_srli_epi16(entries, 8));
    }
    void store(uint16_t* to) const {
      const __m512i lower = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), upper = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
      const __m512i even = _mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8));
      const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
      _mm512_store_si512(to, _mm512_permutex2var_epi64(low, lower, high));
      _mm512_store_si512(to + 32, _mm512_permutex2var_epi64(low, upper, high));
    }
  };
  static void prepare(const Tables&, const uint8_t*, int64_t, int64_t, uint8_t*) {}
  static void exact(const Tile& t, int count, const uint8_t*, int64_t) { sum_entries<ByRows>(t, count); }
  static void averaged(const Tile& t, int count) { sum_averages<ByRows>(t, count); }
  static constexpr auto finish = finish_rows<ByRows>;
};

}  // namespace

const pq::Routines pq::avx512_routines{encode, scan, scan_rows<ByRows>};
