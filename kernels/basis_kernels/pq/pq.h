// Packed trees and tables, and the block routines that each instruction set provides.
//
// Letters: C codebooks of 16 codes, M outputs. A code is found by four compares down a tree; an output is
// scale[m] * sum_c table[c][code_c][m] + offset[m].
#pragma once

#include <cstdint>

namespace pq {

constexpr int kBuckets = 16;
constexpr int kLevels = 4;
constexpr int kEncodeRows = 32;  // rows encoded at a time: their gathered columns stay in L1
constexpr int kExactSums = 256;  // 256 * 255 fits in 16 bits

// Plain views of memory that the module owns: nothing here may be compiled for one instruction set and run on another.
struct Trees {
  int codebooks = 0;
  const int32_t* columns = nullptr;  // [C, 4]
  const float* nodes = nullptr;      // [C, 16]: node i of level t at 2^t - 1 + i; the last entry repeats node 7
};

// Tables cut into blocks of `lanes` outputs: [block][C][16][lanes], the last one padded with zeros, so that the entries
// one code names for a block of outputs are contiguous and a block's tables stay in L1 or L2 for many rows.
struct Tables {
  int codebooks = 0;
  int64_t outputs = 0;
  int lanes = 0;
  int64_t blocks = 0;
  const uint8_t* bytes = nullptr;  // either these
  const float* floats = nullptr;   // or these
  const float* scale = nullptr;    // [blocks * lanes]
  const float* offset = nullptr;
};

// The code of row r and codebook c is codes[r * row_stride + c * codebook_stride].
struct Codes {
  const uint8_t* data;
  int64_t row_stride, codebook_stride;
};

enum class Dtype { f32, bf16 };

// Where the outputs of a block of rows go, row-major.
struct Output {
  void* data;
  int64_t row_stride;  // in elements
  Dtype dtype;
};

// What an instruction set provides.
struct Routines {
  // Column j of the 4 C lies, `rows` (a multiple of kEncodeRows) float32 long, at x + offsets[j]; codes are C rows of
  // bytes `codebook_stride` apart.
  void (*encode)(const Trees&, const float* x, const int64_t* offsets, int64_t rows, uint8_t* codes,
                 int64_t codebook_stride);
  // One block of outputs for `rows` rows.
  void (*scan)(const Tables&, int64_t block, Codes, int64_t rows, Output);
};

extern const Routines scalar_routines;
extern const Routines avx2_routines;
extern const Routines avx512_routines;

}  // namespace pq
