// Arithmetic on factors packed into one word: GF(2) as a bit mask, ternary as two (+1 in the low half, -1 in the high).
#pragma once

#include <cstdint>

#include "lanes.h"

namespace {

template <class W>
struct Binary {
  using Word = W;
  static constexpr bool ternary = false;

  static Word pack(const int8_t* entries, int columns, bool&) {
    Word word = 0;
    for (int k = 0; k < columns; ++k) word |= static_cast<Word>(static_cast<Word>(entries[k] & 1) << k);
    return word;
  }
  static int8_t entry(Word word, int k) { return static_cast<int8_t>(word >> k & 1); }
};

// A factor and its negative count as equal: stored with its lowest nonzero entry positive, the sign with the term.
template <class W>
struct Ternary {
  using Word = W;
  static constexpr bool ternary = true;
  static constexpr int half = sizeof(Word) * 4;
  static constexpr Word low = static_cast<Word>(~Word{0}) >> half;

  static Word negate(Word word) { return static_cast<Word>(word << half | word >> half); }

  static Word pack(const int8_t* entries, int columns, bool& negative) {
    Word word = 0;
    for (int k = 0; k < columns; ++k) {
      if (entries[k] > 0) word |= Word{1} << k;
      if (entries[k] < 0) word |= Word{1} << (k + half);
    }
    return normalise(word, negative);
  }
  static int8_t entry(Word word, int k) {
    return static_cast<int8_t>(static_cast<int>(word >> k & 1) - static_cast<int>(word >> (k + half) & 1));
  }
  static Word normalise(Word word, bool& negative) {
    const Word either = (word | word >> half) & low;
    const bool flip = (word & either & (~either + 1)) == 0 && word != 0;
    negative ^= flip;
    return flip ? negate(word) : word;
  }
  // x + y, or x - y; false where an entry would be 2 or -2.
  static bool add(Word x, Word y, bool subtract, Word& sum) {
    if (subtract) y = negate(y);
    if (x & y) return false;
    const Word both = x | y;
    sum = both & ~negate(both);
    return true;
  }
};

}  // namespace
