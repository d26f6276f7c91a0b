// AVX-512 with VBMI and VNNI: one byte permute looks up four codebooks for sixteen rows, one dot product adds them.
#include "rows_avx512.h"

namespace {

// _mm512_dpbusd_epi32 in assembly: GCC 12 copies and spills the intrinsic's accumulators.
inline void add_fours(__m512i& sums, __m512i bytes, __m512i ones) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(bytes), "v"(ones));
}

struct Vnni : Stored {
  static constexpr int kTile = 64;
  static constexpr int kTogether = 4;  // outputs whose tables are loaded once for all 64 rows

  // scratch [rows / 64][padded / 4][part p][lane l][i][codebook], i and codebook below 4: the code of row 16 l + 4 p +
  // i plus 16 times the codebook, the position of its table among four.
  static void prepare(const Tables& t, const uint8_t* codes, int64_t stride, int64_t rows, uint8_t* scratch) {
    const __m512i place = _mm512_set1_epi32(0x30201000), low = _mm512_set1_epi8(kBuckets - 1);
    for (int64_t r = 0; r < rows; r += kTile) {
      for (int c = 0; c < t.padded; c += 4, scratch += 256) {
        __m512i x[4];
        for (int k = 0; k < 4; ++k) {
          x[k] = c + k < t.codebooks ? _mm512_loadu_si512(codes + (c + k) * stride + r) : _mm512_setzero_si512();
        }
        const __m512i two[2] = {_mm512_unpacklo_epi8(x[0], x[1]), _mm512_unpackhi_epi8(x[0], x[1])};
        const __m512i other[2] = {_mm512_unpacklo_epi8(x[2], x[3]), _mm512_unpackhi_epi8(x[2], x[3])};
        for (int p = 0; p < 4; ++p) {
          const __m512i four = p % 2 ? _mm512_unpackhi_epi16(two[p / 2], other[p / 2])
                                     : _mm512_unpacklo_epi16(two[p / 2], other[p / 2]);
          _mm512_store_si512(scratch + 64 * p, _mm512_ternarylogic_epi32(four, low, place, 0xea));  // (a & b) | c
        }
      }
    }
  }

  static void exact(const Tile& t, int count, const uint8_t* scratch, int64_t row) {
    const __m512i ones = _mm512_set1_epi8(1);
    const __m512i lower = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), upper = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int m = 0; m < count; m += kTogether) {
      const uint8_t* table = t.entry(m, 0);
      const uint8_t* prepared = scratch + row * t.padded;
      __m512i sums[kTogether][4];
      for (auto& output : sums) {
        for (auto& s : output) s = _mm512_setzero_si512();
      }
      for (int c = 0; c < t.padded; c += 4, prepared += 256, table += 4 * kFour) {
        __m512i code[4];
        for (int p = 0; p < 4; ++p) code[p] = _mm512_load_si512(prepared + 64 * p);
        for (int n = 0; n < kTogether; ++n) {
          const __m512i four = _mm512_load_si512(table + kFour * n);
          for (int p = 0; p < 4; ++p) add_fours(sums[n][p], _mm512_permutexvar_epi8(code[p], four), ones);
        }
      }
      for (int n = 0; n < kTogether; ++n) {  // packed, lane l of `even` holds rows 16 l .. 16 l + 7
        const __m512i even = _mm512_packus_epi32(sums[n][0], sums[n][1]), odd = _mm512_packus_epi32(sums[n][2], sums[n][3]);
        uint16_t* to = t.sums + (m + n) * kTile;
        _mm512_store_si512(to, _mm512_permutex2var_epi64(even, lower, odd));
        _mm512_store_si512(to + 32, _mm512_permutex2var_epi64(even, upper, odd));
      }
    }
  }
  static void averaged(const Tile&, int) {}
  static constexpr auto finish = finish_rows<Vnni>;
};

}  // namespace

void pq::avx512vnni_scan_rows(const Tables& t, int64_t begin, int64_t end, const uint8_t* codes, int64_t stride,
                              int64_t rows, bool averaged, Output out, uint8_t* scratch) {
  if (averaged && t.group > 1) return avx512_routines.scan_rows(t, begin, end, codes, stride, rows, true, out, scratch);
  scan_rows<Vnni>(t, begin, end, codes, stride, rows, averaged, out, scratch);
}
