// Encode and decode in portable C++; torch computes the products between them, with a matmul vectorised on every CPU.
#include "entry.h"

namespace {

float widen(uint16_t bits);
float widen(float value);
void narrow(float value, float* to);
void narrow(float value, uint16_t* to);

struct V {
  static constexpr int LANES = 8, ROWS = 4;
  float lane[8];

  static V zero() { return all(0.0f); }
  static V all(float value) {
    V x;
    for (float& l : x.lane) l = value;
    return x;
  }
  static V load(const float* from) {
    V x;
    for (int i = 0; i < 8; ++i) x.lane[i] = from[i];
    return x;
  }
  void store(float* to) const {
    for (int i = 0; i < 8; ++i) to[i] = lane[i];
  }
  static V fma(const V& a, const V& b, const V& c) {
    V x;
    for (int i = 0; i < 8; ++i) x.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
    return x;
  }
  V operator+(const V& o) const {
    V x;
    for (int i = 0; i < 8; ++i) x.lane[i] = lane[i] + o.lane[i];
    return x;
  }
  V operator-(const V& o) const {
    V x;
    for (int i = 0; i < 8; ++i) x.lane[i] = lane[i] - o.lane[i];
    return x;
  }

  // 8 T consecutive values of a row -> T rows of eight tiles, and back with a bias.
  template <int T, typename Value, typename Rows>
  static void split(const Value* from, Rows rows, int at) {
    for (int tile = 0; tile < 8; ++tile)
      for (int p = 0; p < T; ++p) rows[p][at + tile] = widen(from[tile * T + p]);
  }
  template <int T, typename Rows, typename Value>
  static void merge(Rows rows, int at, const float* bias, Value* to) {
    for (int tile = 0; tile < 8; ++tile)
      for (int q = 0; q < T; ++q) narrow(rows[q][at + tile] + (bias ? bias[tile * T + q] : 0.0f), to + tile * T + q);
  }
};

}  // namespace

#include "tiles.h"

namespace stl {
const Kernels scalar = {encode_one<float>, encode_one<uint16_t>, decode_one<float>, decode_one<uint16_t>,
                        nullptr,           nullptr,              0};
}
