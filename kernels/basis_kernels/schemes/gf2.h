// J x = b over GF(2), J the Jacobian of Brent's equations: factored once (J = L U in place), solved for many b.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace schemes {

class Elimination {
 public:
  // factors[d]: [rank, columns[d]] of 0 and 1. `order` lists the unknowns (U, V, W flattened, row-major) by preference:
  // an unknown that depends on earlier ones stays free, and `solve` sets it to zero.
  Elimination(int rank, const int columns[3], const int8_t* const factors[3], const int64_t* order, int64_t unknowns)
      : unknowns_(unknowns), words_((unknowns + 63) / 64), rows_(int64_t{1} * columns[0] * columns[1] * columns[2]) {
    bits_.assign(rows_ * words_, 0);
    order_.assign(order, order + unknowns);
    std::vector<int64_t> place(unknowns);
    for (int64_t k = 0; k < unknowns; ++k) place[order[k]] = k;
    const int64_t first[3] = {0, int64_t{1} * rank * columns[0], int64_t{1} * rank * (columns[0] + columns[1])};
    int64_t row = 0;
    for (int x = 0; x < columns[0]; ++x)
      for (int y = 0; y < columns[1]; ++y)
        for (int z = 0; z < columns[2]; ++z, ++row) {
          uint64_t* to = &bits_[row * words_];
          for (int q = 0; q < rank; ++q) {
            const int64_t ux = int64_t{1} * q * columns[0] + x, vy = int64_t{1} * q * columns[1] + y,
                          wz = int64_t{1} * q * columns[2] + z;
            const bool u = factors[0][ux] & 1, v = factors[1][vy] & 1, w = factors[2][wz] & 1;
            if (v && w) set(to, place[first[0] + ux]);
            if (u && w) set(to, place[first[1] + vy]);
            if (u && v) set(to, place[first[2] + wz]);
          }
        }
    factor();
  }

  int64_t equations() const { return rows_; }
  int64_t unknowns() const { return unknowns_; }
  int64_t rank() const { return static_cast<int64_t>(pivots_.size()); }

  // x with J x = b and every free unknown zero; false if there is none.
  bool solve(const uint8_t* b, uint8_t* x) const {
    std::vector<uint64_t> y(words_, 0), solution(words_, 0);
    for (int64_t k = 0; k < rank(); ++k)
      if ((b[rows_order_[k]] & 1) ^ parity(row(rows_order_[k]), y.data())) set(y.data(), pivots_[k]);
    for (int64_t k = rank(); k < rows_; ++k)
      if ((b[rows_order_[k]] & 1) ^ parity(row(rows_order_[k]), y.data())) return false;
    for (int64_t k = rank(); k-- > 0;)
      if (get(y.data(), pivots_[k]) ^ parity(row(rows_order_[k]), solution.data())) set(solution.data(), pivots_[k]);
    for (int64_t k = 0; k < unknowns_; ++k) x[order_[k]] = get(solution.data(), k);
    return true;
  }

 private:
  static void set(uint64_t* bits, int64_t k) { bits[k >> 6] |= uint64_t{1} << (k & 63); }
  static bool get(const uint64_t* bits, int64_t k) { return bits[k >> 6] >> (k & 63) & 1; }
  const uint64_t* row(int64_t r) const { return &bits_[r * words_]; }
  bool parity(const uint64_t* a, const uint64_t* b) const {
    uint64_t sum = 0;
    for (int64_t w = 0; w < words_; ++w) sum ^= a[w] & b[w];
    return __builtin_parityll(sum);
  }

  // Multipliers replace the eliminated entries: a row holds L to the left of its pivot and U to the right.
  void factor() {
    rows_order_.resize(rows_);
    for (int64_t r = 0; r < rows_; ++r) rows_order_[r] = r;
    for (int64_t column = 0; column < unknowns_; ++column) {
      const int64_t word = column >> 6, done = rank();
      const uint64_t bit = uint64_t{1} << (column & 63), after = ~(bit | (bit - 1));
      int64_t k = done;
      while (k < rows_ && !(row(rows_order_[k])[word] & bit)) ++k;
      if (k == rows_) continue;
      std::swap(rows_order_[done], rows_order_[k]);
      pivots_.push_back(column);
      const uint64_t* pivot = row(rows_order_[done]);
      for (++k; k < rows_; ++k) {
        uint64_t* below = &bits_[rows_order_[k] * words_];
        if (!(below[word] & bit)) continue;
        below[word] ^= pivot[word] & after;
        for (int64_t w = word + 1; w < words_; ++w) below[w] ^= pivot[w];
      }
    }
  }

  int64_t unknowns_, words_, rows_;
  std::vector<uint64_t> bits_;
  std::vector<int64_t> order_, rows_order_, pivots_;
};

}  // namespace schemes
