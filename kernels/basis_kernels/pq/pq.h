// Packed trees and tables, and the block routines that each instruction set provides.
//
// Letters: C codebooks of 16 codes, M outputs. A code is the result of four compares down a tree; an output is
// scale[m] * sum_c table[c][code_c][m] + offset[m].
#pragma once

#include <cstdint>

namespace pq {

constexpr int kBuckets = 16;
constexpr int kLevels = 4;
constexpr int kEncodeRows = 32;  // rows encoded at a time: their gathered columns stay in L1
constexpr int kExactSums = 256;  // 256 * 255 fits in 16 bits
constexpr int kOutputs = 16;     // outputs per tile where many rows are looked up at once
constexpr int kAveraged = 16;    // tables averaged by a binary tree of (a + b + 1) >> 1

enum class Dtype { f32, bf16, i16, i8 };

// Plain views of memory that the module owns, without inline code: the linker could keep a copy of it compiled for an
// instruction set that this CPU lacks.
//
// Levels [C][4][16]: entry i of level t is the threshold for codes whose first t bits are those of i, the other bits
// being zero so far; code <- code | (x > threshold) << (3 - t). Integer levels hold the floors: the same result.
struct Trees {
  int codebooks = 0;
  const int32_t* columns = nullptr;  // [C, 4]
  const float* floats = nullptr;
  const int16_t* shorts = nullptr;  // null where a threshold is below the type's range
  const int8_t* bytes = nullptr;
};

// Two layouts, each with the outputs beyond M, and codebooks beyond C, filled with zeros.
// By outputs, for few rows and for float tables: blocks of `lanes` outputs, [block][C][16][lanes], so that a code's
// entries for a block of outputs are contiguous. By rows, for many rows: [M / 4][C / 4][4 outputs][4 codebooks][16],
// one byte shuffle per 16 bytes.
struct Tables {
  int codebooks = 0;
  int padded = 0;  // codebooks, rounded up to a multiple of four
  int64_t outputs = 0;
  int lanes = 0;
  int64_t blocks = 0;
  const uint8_t* bytes = nullptr;  // either these
  const float* floats = nullptr;   // or these
  const uint8_t* by_rows = nullptr;
  const float* scale = nullptr;  // padded to whole blocks and a multiple of kOutputs
  const float* offset = nullptr;
  int group = 1;  // tables averaged together: gcd(C, 16)
  const float* averaged_scale = nullptr;   // group * scale
  const float* averaged_offset = nullptr;  // offset minus the mean rounding error of the averages
};

// The code of row r and codebook c is codes[r * row_stride + c * codebook_stride].
struct Codes {
  const uint8_t* data;
  int64_t row_stride, codebook_stride;
};

// Destination of the outputs of a block of rows, float32 or bfloat16; one of the strides, in elements, is 1.
struct Output {
  void* data;
  int64_t row_stride, column_stride;
  Dtype dtype;
};

// Functions that each instruction set provides.
struct Routines {
  // Column j of 4 C has `rows` (a multiple of kEncodeRows) elements at x + offsets[j]; codes are C rows of bytes
  // `codebook_stride` apart.
  void (*encode)(const Trees&, const void* x, Dtype, const int64_t* offsets, int64_t rows, uint8_t* codes,
                 int64_t codebook_stride);
  // One block of outputs, row-major, for `rows` rows; sums are exact.
  void (*scan)(const Tables&, int64_t block, Codes, int64_t rows, Output);
  // Outputs begin .. end - 1, begin a multiple of kOutputs, for `rows` rows whose codes are padded to a multiple of 64;
  // scratch holds Tables::padded bytes per row. Sums of at most kExactSums codebooks (or averaged groups).
  void (*scan_rows)(const Tables&, int64_t begin, int64_t end, const uint8_t* codes, int64_t codebook_stride,
                    int64_t rows, bool averaged, Output, uint8_t* scratch);
};

extern const Routines scalar_routines;
extern const Routines avx2_routines;
extern const Routines avx512_routines;
extern const Routines neon_routines;
void avx512vnni_scan_rows(const Tables&, int64_t begin, int64_t end, const uint8_t* codes, int64_t codebook_stride,
                          int64_t rows, bool averaged, Output, uint8_t* scratch);

}  // namespace pq
