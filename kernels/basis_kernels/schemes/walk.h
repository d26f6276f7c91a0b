// The flip-graph walk: a(bc + b'c') -> a((b + b')c + b'(c' - c)), with reductions and plus transitions.
//
// A state is three columns of at most 64 * Words packed factors. Per column one bit mask marks the rows whose factor
// occurs more than once; a flip draws a row from it, finds the rows with the same factor by a few vector compares, and
// updates the masks of the two changed columns by comparing with the old and the new value. There is no list of pairs,
// no heap and no hash table.
#pragma once

#include "drive.h"
#include "job.h"
#include "random.h"
#include "ring.h"

namespace {

template <class Ring, int Words>
class Walker {
  using Word = typename Ring::Word;
  static constexpr int capacity = 64 * Words;

 public:
  Walker(const schemes::Job& job) : random_(job.seed), rank_(job.rank) {
    for (int d = 0; d < 3; ++d)
      for (int k = 0; k < capacity; ++k) columns_[d][k] = 0;
    for (int k = 0; k < rank_; ++k) {
      bool negative = false;
      for (int d = 0; d < 3; ++d)
        columns_[d][k] = Ring::pack(job.factors[d] + static_cast<int64_t>(k) * job.columns[d], job.columns[d], negative);
      negative_[k] = negative;
    }
    for (int k = rank_; k-- > 0;)
      if (!columns_[0][k] || !columns_[1][k] || !columns_[2][k]) drop(k);
    find_shared();
  }

  int rank() const { return rank_; }
  bool full() const { return rank_ == capacity; }

  Step flip() {
    const int count[3] = {shared_[0].count(), shared_[1].count(), shared_[2].count()};
    const auto total = static_cast<uint32_t>(count[0] + count[1] + count[2]);
    if (__builtin_expect(total == 0, 0)) return dead;
    const uint64_t draw = random_.next();
    auto index = static_cast<uint32_t>(((draw & 0xFFFFFFFF) * total) >> 32);
    const bool past0 = index >= static_cast<uint32_t>(count[0]);
    const bool past1 = index >= static_cast<uint32_t>(count[0] + count[1]);
    const int a = past0 + past1;
    index -= (past0 ? count[0] : 0) + (past1 ? count[1] : 0);
    const int i = shared_[a].select(index);
    Rows<Words> equals = rows_equal<Word, Words>(columns_[a], columns_[a][i], rank_);
    equals.reset(i);
    const int j = equals.select(
        static_cast<uint32_t>(((draw >> 32 & 0xFFFFFF) * static_cast<uint32_t>(equals.count())) >> 24));
    static constexpr int other[2][3] = {{1, 2, 0}, {2, 0, 1}};
    const int side = static_cast<int>(draw >> 63);
    const int b = other[side][a], c = other[1 - side][a];

    const Word old_b = columns_[b][i], old_c = columns_[c][j];
    Word new_b, new_c;
    if constexpr (Ring::ternary) {
      const bool subtract = draw >> 62 & 1;
      if (!Ring::add(old_b, columns_[b][j], subtract, new_b)) return rejected;
      if (!Ring::add(old_c, columns_[c][i], !subtract ^ negative_[i] ^ negative_[j], new_c)) return rejected;
      new_b = Ring::normalise(new_b, negative_[i]);
      new_c = Ring::normalise(new_c, negative_[j]);
    } else {
      new_b = old_b ^ columns_[b][j];
      new_c = old_c ^ columns_[c][i];
    }
    if (__builtin_expect(!new_b | !new_c, 0)) {
      columns_[b][i] = new_b;
      columns_[c][j] = new_c;
      const int first = i > j ? i : j, second = i > j ? j : i;  // the higher row first: drop() moves the last row
      if (!columns_[b][first] || !columns_[c][first]) drop(first);
      if (!columns_[b][second] || !columns_[c][second]) drop(second);
      return reduced;
    }
    replace(b, i, old_b, new_b);
    replace(c, j, old_c, new_c);
    return moved;
  }

  // a1.b1.c1 + a2.b2.c2 -> a1.(b1 + b2).c1 + (a2 - a1).b2.c2 + a1.b2.(c2 - c1), for two random terms in random order.
  bool plus() {
    for (int attempt = 0; attempt < 1000; ++attempt) {
      const int i = static_cast<int>(random_.below(rank_)), j = static_cast<int>(random_.below(rank_));
      const int a = static_cast<int>(random_.below(3)), side = static_cast<int>(random_.next() >> 63);
      const int b = (a + 1 + side) % 3, c = (a + 2 - side) % 3;
      if (i == j) continue;
      const Word a1 = columns_[a][i], a2 = columns_[a][j], b1 = columns_[b][i], b2 = columns_[b][j],
                 c1 = columns_[c][i], c2 = columns_[c][j];
      if (a1 == a2 || b1 == b2 || c1 == c2) continue;
      Word sum_b, sum_a, sum_c;
      if constexpr (Ring::ternary) {
        const uint64_t draw = random_.next();
        const bool t = draw >> 63, u = draw >> 62 & 1, s1 = negative_[i], s2 = negative_[j];
        if (!Ring::add(b1, b2, t, sum_b) || !Ring::add(a2, a1, !u, sum_a) || !Ring::add(c2, c1, !(s1 ^ s2 ^ t ^ u), sum_c))
          continue;
        bool n1 = s1, n2 = s2, n3 = s2 ^ u;
        sum_b = Ring::normalise(sum_b, n1);
        sum_a = Ring::normalise(sum_a, n2);
        sum_c = Ring::normalise(sum_c, n3);
        negative_[i] = n1;
        negative_[j] = n2;
        negative_[rank_] = n3;
      } else {
        sum_b = b1 ^ b2;
        sum_a = a1 ^ a2;
        sum_c = c1 ^ c2;
        negative_[rank_] = false;
      }
      columns_[b][i] = sum_b;
      columns_[a][j] = sum_a;
      columns_[a][rank_] = a1;
      columns_[b][rank_] = b2;
      columns_[c][rank_] = sum_c;
      ++rank_;
      find_shared();
      return true;
    }
    return false;
  }

  void find_shared() {
    for (int d = 0; d < 3; ++d) {
      shared_[d].clear();
      for (int k = 0; k < rank_; ++k)
        if (rows_equal<Word, Words>(columns_[d], columns_[d][k], rank_).count() > 1) shared_[d].set(k);
    }
  }

  void keep() {
    best_rank_ = rank_;
    for (int k = 0; k < rank_; ++k) {
      for (int d = 0; d < 3; ++d) best_[d][k] = columns_[d][k];
      best_negative_[k] = negative_[k];
    }
  }

  int best_rank() const { return best_rank_; }

  void write(const schemes::Job& job, schemes::Outcome& outcome) const {
    for (int d = 0; d < 3; ++d)
      for (int k = 0; k < best_rank_; ++k)
        for (int c = 0; c < job.columns[d]; ++c)
          outcome.factors[d][static_cast<int64_t>(k) * job.columns[d] + c] =
              static_cast<int8_t>(Ring::entry(best_[d][k], c) * (d == 2 && best_negative_[k] ? -1 : 1));
  }

 private:
  void replace(int d, int row, Word before, Word after) {
    // Both compares read the column before the narrow store: a wide load right after it would have to wait for it.
    Rows<Words> left = rows_equal<Word, Words>(columns_[d], before, rank_);
    const Rows<Words> joined = rows_equal<Word, Words>(columns_[d], after, rank_);
    columns_[d][row] = after;
    left.reset(row);
    const bool was_pair = left.count() == 1, has_equal = joined.any();
    Rows<Words>& shared = shared_[d];
    shared.reset(row);
    for (int w = 0; w < Words; ++w)
      shared.word[w] = (shared.word[w] & ~(was_pair ? left.word[w] : 0)) | joined.word[w];
    if constexpr (Words == 1)
      shared.word[0] |= static_cast<uint64_t>(has_equal) << row;
    else
      shared.word[row >> 6] |= static_cast<uint64_t>(has_equal) << (row & 63);
  }

  void drop(int row) {
    --rank_;
    for (auto& column : columns_) {
      column[row] = column[rank_];
      column[rank_] = 0;
    }
    negative_[row] = negative_[rank_];
  }

  alignas(64) Word columns_[3][capacity];
  Rows<Words> shared_[3];  // rows whose factor occurs more than once in its column
  bool negative_[capacity];
  Random random_;
  int rank_;
  int best_rank_ = 0;
  Word best_[3][capacity];
  bool best_negative_[capacity];
};

}  // namespace
