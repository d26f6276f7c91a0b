// The NEON routines against the scalar ones, bit for bit; runs without Python, under an emulator too.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "pq/pq.h"

using namespace pq;

static std::mt19937 draw(0);
static float normal() { return std::normal_distribution<float>(0, 40)(draw); }

static int encoders(int codebooks, Dtype dtype, std::vector<uint8_t>& codes) {
  std::vector<float> floats(codebooks * 64);
  for (auto& v : floats) v = std::floor(std::fmin(100.f, std::fmax(-100.f, normal())));
  const std::vector<int16_t> shorts(floats.begin(), floats.end());
  const std::vector<int8_t> bytes(floats.begin(), floats.end());
  Trees trees;
  trees.codebooks = codebooks;
  trees.floats = floats.data();
  trees.shorts = shorts.data();
  trees.bytes = bytes.data();
  std::vector<int64_t> offsets(codebooks * 4);
  for (size_t j = 0; j < offsets.size(); ++j) offsets[j] = 256 * static_cast<int64_t>(j);
  std::vector<uint8_t> x(codebooks * 4 * 256 * 4);
  for (auto& byte : x) byte = static_cast<uint8_t>(draw());  // any bits: NaN, infinities, subnormals
  if (dtype == Dtype::f32) {
    for (size_t i = 0; i < x.size() / 8; ++i) {
      const float v = normal();
      std::memcpy(x.data() + 4 * i, &v, 4);
    }
  }
  codes.assign(codebooks * 256, 1);
  std::vector<uint8_t> expected(codebooks * 256, 2);
  scalar_routines.encode(trees, x.data(), dtype, offsets.data(), 256, expected.data(), 256);
  neon_routines.encode(trees, x.data(), dtype, offsets.data(), 256, codes.data(), 256);
  return codes != expected;
}

static int sums(int codebooks, bool averaged, Dtype dtype, bool by_column, const std::vector<uint8_t>& codes) {
  const int64_t outputs = 23, rows = 200;
  Tables t;
  t.codebooks = codebooks;
  t.padded = (codebooks + 3) / 4 * 4;
  t.outputs = outputs;
  t.group = std::gcd(codebooks, kAveraged);
  std::vector<uint8_t> table(32 * t.padded * 16), scratch(t.padded * 256);
  for (auto& entry : table) entry = static_cast<uint8_t>(draw() | (draw() & 1 ? 0x80 : 0));
  t.by_rows = table.data();
  const std::vector<float> scale(32, 1.5f), offset(32, -3.f);
  t.scale = t.averaged_scale = scale.data();
  t.offset = t.averaged_offset = offset.data();
  std::vector<float> y(rows * outputs, -1.f), expected(rows * outputs, -1.f);
  const auto into = [&](std::vector<float>& to) {
    return by_column ? Output{to.data(), 1, rows, dtype} : Output{to.data(), outputs, 1, dtype};
  };
  scalar_routines.scan_rows(t, 0, outputs, codes.data(), 256, rows, averaged, into(expected), scratch.data());
  neon_routines.scan_rows(t, 0, outputs, codes.data(), 256, rows, averaged, into(y), scratch.data());
  return std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) != 0;
}

int main() {
  int wrong = 0;
  std::vector<uint8_t> codes;
  for (int codebooks : {1, 2, 5, 16, 33, 64, 128}) {
    for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::i16, Dtype::i8}) wrong += encoders(codebooks, dtype, codes);
    for (int k = 0; k < 8; ++k) wrong += sums(codebooks, k & 1, k & 2 ? Dtype::f32 : Dtype::bf16, k & 4, codes);
  }
  std::printf("%d of the NEON routines' results differ\n", wrong);
  return wrong != 0;
}
