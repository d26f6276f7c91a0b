// The walk on orbits under a.b.c -> b.c.a -> c.a.b over GF(2): a flip of two orbits flips all three rotations at once.
//
// A factor of one orbit may equal a factor of another in any of the three places, so the three columns are one list of
// 3 * 64 * Words entries, and an entry can flip if its value occurs in at least two orbits.
#pragma once

#include "drive.h"
#include "job.h"
#include "random.h"
#include "ring.h"

namespace {

template <class Word, int Words>
class SymmetricWalker {
  static constexpr int capacity = 64 * Words;
  using Entries = Rows<3 * Words>;

 public:
  explicit SymmetricWalker(const schemes::Job& job) : random_(job.seed), rank_(job.rank) {
    for (auto& entry : entries_) entry = 0;
    bool sign;
    for (int d = 0; d < 3; ++d)
      for (int k = 0; k < rank_; ++k)
        entries_[d * capacity + k] =
            Binary<Word>::pack(job.factors[d] + static_cast<int64_t>(k) * job.columns[d], job.columns[d], sign);
    for (int k = rank_; k-- > 0;)
      if (!at(0, k) || !at(1, k) || !at(2, k)) drop(k);
    find_shared();
  }

  int rank() const { return rank_; }
  int best_rank() const { return best_rank_; }
  bool full() const { return rank_ == capacity; }

  Step flip() {
    const auto total = static_cast<uint32_t>(shared_.count());
    if (total == 0) return dead;
    const uint64_t draw = random_.next();
    const int one = shared_.select(static_cast<uint32_t>(((draw & 0xFFFFFFFF) * total) >> 32));
    const int i = one % capacity, d = one / capacity;
    Entries equals = equal(entries_[one]);
    for (int t = 0; t < 3; ++t) equals.reset(t * capacity + i);
    const int two =
        equals.select(static_cast<uint32_t>(((draw >> 32 & 0xFFFFFF) * static_cast<uint32_t>(equals.count())) >> 24));
    const int j = two % capacity, e = two / capacity;
    const int side = static_cast<int>(draw >> 63);
    const int b = (d + 1 + side) % 3, c = (e + 2 - side) % 3;  // places of b in orbit i and of c' in orbit j
    const Word new_b = at(b, i) ^ at((e + 1 + side) % 3, j), new_c = at(c, j) ^ at((d + 2 - side) % 3, i);
    if (!new_b || !new_c) {
      at(b, i) = new_b;
      at(c, j) = new_c;
      const int first = i > j ? i : j, second = i > j ? j : i;
      const bool drop_i = !new_b, drop_j = !new_c;
      if (first == i ? drop_i : drop_j) drop(first);
      if (second == i ? drop_i : drop_j) drop(second);
      return reduced;
    }
    replace(b * capacity + i, new_b);
    replace(c * capacity + j, new_c);
    return moved;
  }

  // The plus transition of two orbits, each rotated at random.
  bool plus() {
    for (int attempt = 0; attempt < 1000; ++attempt) {
      const int i = static_cast<int>(random_.below(rank_)), j = static_cast<int>(random_.below(rank_));
      const int d = static_cast<int>(random_.below(3)), e = static_cast<int>(random_.below(3));
      if (i == j) continue;
      const Word a1 = at(d, i), b1 = at((d + 1) % 3, i), c1 = at((d + 2) % 3, i);
      const Word a2 = at(e, j), b2 = at((e + 1) % 3, j), c2 = at((e + 2) % 3, j);
      if (a1 == a2 || b1 == b2 || c1 == c2) continue;
      const Word made[3][3] = {{a1, static_cast<Word>(b1 ^ b2), c1},
                               {static_cast<Word>(a1 ^ a2), b2, c2},
                               {a1, b2, static_cast<Word>(c1 ^ c2)}};
      const int rows[3] = {i, j, rank_++};
      for (int t = 0; t < 3; ++t)
        for (int place = 0; place < 3; ++place) at(place, rows[t]) = made[t][place];
      find_shared();
      return true;
    }
    return false;
  }

  void find_shared() {
    shared_.clear();
    for (int d = 0; d < 3; ++d)
      for (int k = 0; k < rank_; ++k)
        if (orbits(equal(at(d, k))) > 1) shared_.set(d * capacity + k);
  }

  void keep() {
    best_rank_ = rank_;
    for (int k = 0; k < 3 * capacity; ++k) best_[k] = entries_[k];
  }

  void write(const schemes::Job& job, schemes::Outcome& outcome) const {
    for (int d = 0; d < 3; ++d)
      for (int k = 0; k < best_rank_; ++k)
        for (int c = 0; c < job.columns[d]; ++c)
          outcome.factors[d][static_cast<int64_t>(k) * job.columns[d] + c] =
              Binary<Word>::entry(best_[d * capacity + k], c);
  }

 private:
  Word& at(int place, int row) { return entries_[place * capacity + row]; }

  Entries equal(Word value) const {
    Entries all;
    for (int d = 0; d < 3; ++d) {
      const auto found = rows_equal<Word, Words>(entries_ + d * capacity, value, rank_);
      for (int w = 0; w < Words; ++w) all.word[d * Words + w] = found.word[w];
    }
    return all;
  }

  static int orbits(const Entries& entries) {
    int count = 0;
    for (int w = 0; w < Words; ++w)
      count += count_bits(entries.word[w] | entries.word[Words + w] | entries.word[2 * Words + w]);
    return count;
  }

  void replace(int entry, Word after) {
    Entries left = equal(entries_[entry]), joined = equal(after);
    left.reset(entry);
    joined.set(entry);
    entries_[entry] = after;
    const bool alone = orbits(left) == 1, together = orbits(joined) > 1;
    shared_.reset(entry);
    for (int w = 0; w < 3 * Words; ++w) {
      shared_.word[w] &= ~(alone ? left.word[w] : 0);
      shared_.word[w] |= together ? joined.word[w] : 0;
    }
  }

  void drop(int row) {
    --rank_;
    for (int d = 0; d < 3; ++d) {
      at(d, row) = at(d, rank_);
      at(d, rank_) = 0;
    }
  }

  alignas(64) Word entries_[3 * capacity];
  Entries shared_;
  Random random_;
  int rank_;
  int best_rank_ = 0;
  Word best_[3 * capacity];
};

}  // namespace
