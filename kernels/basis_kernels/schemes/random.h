// wyrand: one multiply per number; its state does not depend on the walk, so the CPU computes numbers ahead of use.
#pragma once

#include <cstdint>

namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 0xD1B54A32D192ED03ull) {
    for (int warm_up = 0; warm_up < 4; ++warm_up) next();
  }

  uint64_t next() {
    state_ += 0xA0761D6478BD642Full;
    const unsigned __int128 product =
        static_cast<unsigned __int128>(state_) * (state_ ^ 0xE7037ED1A0B428DBull);
    return static_cast<uint64_t>(product >> 64) ^ static_cast<uint64_t>(product);
  }

  // Uniform in [0, bound), bound < 2^32; the bias of bound / 2^32 does not matter to a walk.
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>(((next() >> 32) * bound) >> 32); }

 private:
  uint64_t state_;
};

}  // namespace
