// AVX2: eight rows per tree compare; 32 outputs per table entry load, exact 16-bit sums.
#include <immintrin.h>

#include <cstring>

#include "pq.h"

namespace {

using namespace pq;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Eight rows of one codebook. Levels 0-2 (7 nodes) and level 3 (8 nodes) each fit one register, so a permute fetches each
// row's threshold.
inline __m256i encode8(const float* const* x, int64_t r, __m256 root, __m256 upper, __m256 leaves) {
  const __m256i one = _mm256_set1_epi32(1);
  const auto greater = [r](const float* at, __m256 v) {
    return _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(at + r), v, _CMP_GT_OQ));  // -1 where true
  };
  __m256i node = _mm256_sub_epi32(one, greater(x[0], root));
  __m256i twice = _mm256_add_epi32(_mm256_add_epi32(node, node), one);
  node = _mm256_sub_epi32(twice, greater(x[1], _mm256_permutevar8x32_ps(upper, node)));
  twice = _mm256_add_epi32(_mm256_add_epi32(node, node), one);
  node = _mm256_sub_epi32(twice, greater(x[2], _mm256_permutevar8x32_ps(upper, node)));
  // node is 7 .. 14, of which the permute sees the low three bits; `leaves` is rotated to match.
  const __m256i bit = greater(x[3], _mm256_permutevar8x32_ps(leaves, node));
  return _mm256_sub_epi32(_mm256_add_epi32(node, node), _mm256_add_epi32(bit, _mm256_set1_epi32(kBuckets - 2)));
}

void encode(const Trees& trees, const float* x, const int64_t* offsets, int64_t rows, uint8_t* codes,
            int64_t codebook_stride) {
  static_assert(kEncodeRows == 32, "four registers of eight rows make one store");
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int c = 0; c < trees.codebooks; ++c, offsets += kLevels) {
    const float* columns[kLevels] = {x + offsets[0], x + offsets[1], x + offsets[2], x + offsets[3]};
    const float* v = trees.nodes + c * kBuckets;
    const __m256 root = _mm256_set1_ps(v[0]);
    const __m256 upper = _mm256_load_ps(v);  // nodes 0 .. 6, and 7, which is not asked for
    const __m256 leaves = _mm256_load_ps(v + 8);  // nodes 8 .. 14, then node 7
    for (int64_t r = 0; r < rows; r += kEncodeRows) {
      const __m256i a = encode8(columns, r, root, upper, leaves), b = encode8(columns, r + 8, root, upper, leaves);
      const __m256i d = encode8(columns, r + 16, root, upper, leaves), e = encode8(columns, r + 24, root, upper, leaves);
      const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(d, e));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + c * codebook_stride + r),
                          _mm256_permutevar8x32_epi32(bytes, order));
    }
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

// Scales `V` registers of eight sums and stores the first `count` of their outputs.
template <int V>
inline void finish(const __m256* sums, const float* scale, const float* offset, int count, Output out, int64_t at) {
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

// V registers of 32 bytes. all += entry and odd += entry >> 8, in 16-bit lanes: then odd holds the sums of the odd bytes,
// and all - 256 odd those of the even bytes, exactly for up to kExactSums entries.
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
    finish<4 * V>(sums, tables.scale + first, tables.offset + first, count, out, r * out.row_stride + first);
  }
}

template <int V>
void scan_float(const Tables& tables, int64_t block, Codes codes, int64_t rows, Output out) {
  constexpr int kLanes = 8 * V;
  const int64_t first = block * kLanes;
  const int count = static_cast<int>(least(kLanes, tables.outputs - first));
  const float* base = tables.floats + block * tables.codebooks * kBuckets * kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* code = codes.data + r * codes.row_stride;
    __m256 sums[V];
    for (int v = 0; v < V; ++v) sums[v] = _mm256_setzero_ps();
    const float* table = base;
    for (int c = 0; c < tables.codebooks; ++c, table += kBuckets * kLanes) {
      const float* entry = table + (code[c * codes.codebook_stride] & (kBuckets - 1)) * kLanes;
      for (int v = 0; v < V; ++v) sums[v] = _mm256_add_ps(sums[v], _mm256_load_ps(entry + 8 * v));
    }
    finish<V>(sums, tables.scale + first, tables.offset + first, count, out, r * out.row_stride + first);
  }
}

void scan(const Tables& tables, int64_t block, Codes codes, int64_t rows, Output out) {
  if (tables.bytes) {
    (tables.lanes == 32 ? scan_uint8<1> : scan_uint8<2>)(tables, block, codes, rows, out);
  } else {
    (tables.lanes == 16 ? scan_float<2> : scan_float<4>)(tables, block, codes, rows, out);
  }
}

}  // namespace

const pq::Routines pq::avx2_routines{encode, scan};
