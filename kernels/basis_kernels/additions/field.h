// The field of 2^61 - 1 elements: exact one-word arithmetic for coefficients, which are converted back to rationals.
#pragma once

#include <cstdint>

namespace basis {

constexpr uint64_t kPrime = (uint64_t{1} << 61) - 1;

inline uint64_t negative(uint64_t a) { return a ? kPrime - a : 0; }

inline uint64_t sum(uint64_t a, uint64_t b) {
    const uint64_t c = a + b;
    return c >= kPrime ? c - kPrime : c;
}

inline uint64_t product(uint64_t a, uint64_t b) {
    if (a == 1) return b;
    if (b == 1) return a;
    const unsigned __int128 c = static_cast<unsigned __int128>(a) * b;
    return sum(static_cast<uint64_t>(c & kPrime), static_cast<uint64_t>(c >> 61));
}

inline uint64_t inverse(uint64_t a) {
    if (a == 1 || a == kPrime - 1) return a;
    uint64_t result = 1;
    for (uint64_t e = kPrime - 2; e; e >>= 1) {
        if (e & 1) result = product(result, a);
        a = product(a, a);
    }
    return result;
}

// splitmix64
struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = (state += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    uint32_t below(uint32_t n) { return static_cast<uint32_t>((static_cast<unsigned __int128>(next()) * n) >> 64); }
    double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
};

}  // namespace basis
