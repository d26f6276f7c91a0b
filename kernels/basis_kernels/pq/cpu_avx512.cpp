// AVX-512: sixteen rows per tree compare, all 15 thresholds in one register; 64 outputs per table entry load.
#include <immintrin.h>

#include "pq.h"

namespace {

using namespace pq;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Sixteen rows of one codebook: from node 1, node <- 2 node + (x > threshold of node), four times; the code is node - 16.
inline __m128i encode16(const float* const* x, int64_t r, __m512 nodes) {
  const __m512i one = _mm512_set1_epi32(1);
  __m512i node = one;
  for (int t = 0; t < kLevels; ++t) {
    const __m512 threshold = _mm512_permutexvar_ps(node, nodes);
    const __mmask16 right = _mm512_cmp_ps_mask(_mm512_loadu_ps(x[t] + r), threshold, _CMP_GT_OQ);
    node = _mm512_add_epi32(node, node);
    node = _mm512_mask_add_epi32(node, right, node, one);
  }
  return _mm_and_si128(_mm512_cvtepi32_epi8(node), _mm_set1_epi8(kBuckets - 1));
}

void encode(const Trees& trees, const float* x, const int64_t* offsets, int64_t rows, uint8_t* codes,
            int64_t codebook_stride) {
  const __m512i after = _mm512_setr_epi32(15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14);  // node k at place k
  for (int c = 0; c < trees.codebooks; ++c, offsets += kLevels) {
    const float* columns[kLevels] = {x + offsets[0], x + offsets[1], x + offsets[2], x + offsets[3]};
    const __m512 nodes = _mm512_permutexvar_ps(after, _mm512_load_ps(trees.nodes + c * kBuckets));
    uint8_t* to = codes + c * codebook_stride;
    for (int64_t r = 0; r < rows; r += 32) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + r), encode16(columns, r, nodes));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + r + 16), encode16(columns, r + 16, nodes));
    }
  }
}

inline void store16(void* to, Dtype dtype, int64_t at, __mmask16 some, __m512 y) {
  if (dtype == Dtype::f32) {
    _mm512_mask_storeu_ps(static_cast<float*>(to) + at, some, y);
    return;
  }
  const __m512i bits = _mm512_castps_si512(y), top = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, top, _mm512_set1_epi32(0x40));
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + at, some, _mm512_cvtepi32_epi16(rounded));
}

// Scales V registers of sixteen sums and stores the first `count` of their outputs.
template <int V>
inline void finish(const __m512* sums, const float* scale, const float* offset, int count, Output out, int64_t at) {
  for (int v = 0; v < V; ++v) {
    const int left = count - 16 * v;
    if (left <= 0) return;
    const __mmask16 some = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    // rows of scale and offset are padded to whole blocks, whose start is a multiple of 16 floats
    store16(out.data, out.dtype, at + 16 * v, some,
            _mm512_fmadd_ps(sums[v], _mm512_load_ps(scale + 16 * v), _mm512_load_ps(offset + 16 * v)));
  }
}

// 32 H outputs, H = 1 or 2: all += entry and odd += entry >> 8, in 16-bit lanes; odd holds the sums of the odd bytes and
// all - 256 odd those of the even ones, exactly for up to kExactSums entries.
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
    finish<2 * H>(sums, tables.scale + first, tables.offset + first, count, out, r * out.row_stride + first);
  }
}

template <int V>
void scan_float(const Tables& tables, int64_t block, Codes codes, int64_t rows, Output out) {
  constexpr int kLanes = 16 * V;
  const int64_t first = block * kLanes;
  const int count = static_cast<int>(least(kLanes, tables.outputs - first));
  const float* base = tables.floats + block * tables.codebooks * kBuckets * kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* code = codes.data + r * codes.row_stride;
    __m512 sums[V];
    for (auto& s : sums) s = _mm512_setzero_ps();
    const float* table = base;
    for (int c = 0; c < tables.codebooks; ++c, table += kBuckets * kLanes) {
      const float* entry = table + (code[c * codes.codebook_stride] & (kBuckets - 1)) * kLanes;
      for (int v = 0; v < V; ++v) sums[v] = _mm512_add_ps(sums[v], _mm512_load_ps(entry + 16 * v));
    }
    finish<V>(sums, tables.scale + first, tables.offset + first, count, out, r * out.row_stride + first);
  }
}

void scan(const Tables& tables, int64_t block, Codes codes, int64_t rows, Output out) {
  if (tables.bytes) {
    (tables.lanes == 32 ? scan_uint8<1> : scan_uint8<2>)(tables, block, codes, rows, out);
  } else {
    (tables.lanes == 16 ? scan_float<1> : scan_float<2>)(tables, block, codes, rows, out);
  }
}

}  // namespace

const pq::Routines pq::avx512_routines{encode, scan};
