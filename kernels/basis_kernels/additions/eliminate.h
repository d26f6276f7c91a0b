// Greedy elimination of pairs v_i + rho v_j that occur in several rows, the most frequent (or most promising) first.
#pragma once

#include <array>
#include <utility>

#include "rows.h"

namespace basis {

class Eliminator {
public:
    Eliminator(Rows& rows, Random& random) : s_(rows), random_(random) {}

    void run(double alpha) {
        reset();
        work_ += 64;  // so that a search over rows without pairs ends
        for (size_t r = 0; r < s_.row.size(); ++r) {
            count(static_cast<int>(r), +1);
            for (const Entry& e : s_.row[r]) used(e.value).push_back(static_cast<int>(r));
        }
        int slot;
        while ((slot = choose(alpha)) >= 0) name(slots_[slot].i, slots_[slot].j, slots_[slot].ratio);
    }

    int64_t work() const { return work_; }

private:
    struct Slot {
        uint64_t key = 0, ratio = 0;
        int i = 0, j = 0, count = 0;
        uint32_t stamp = 0;
    };

    void reset() {
        if (slots_.empty()) slots_.resize(1 << 14);
        ++stamp_;
        filled_ = 0;
        for (auto& b : bucket_) b.clear();
        for (auto& u : users_) u.clear();
    }

    std::vector<int>& used(int value) {
        if (value >= static_cast<int>(users_.size())) users_.resize(value + 64);
        return users_[value];
    }

    uint64_t quotient(uint64_t a, uint64_t b) {
        if (b == 1) return a;
        if (b == kPrime - 1) return negative(a);
        auto& known = reciprocal_[(b ^ b >> 31) & 255];  // cache: few distinct coefficients occur
        if (known.first != b) known = {b, inverse(b)};
        return product(a, known.second);
    }

    int slot(int i, int j, uint64_t ratio) {
        uint64_t key = (static_cast<uint64_t>(i) << 20 | static_cast<uint64_t>(j)) * 0x9e3779b97f4a7c15ull;
        key = (key ^ (key >> 29) ^ ratio) * 0xbf58476d1ce4e5b9ull;
        key ^= key >> 32;
        const size_t mask = slots_.size() - 1;
        for (size_t at = key & mask;; at = (at + 1) & mask) {
            Slot& s = slots_[at];
            if (s.stamp != stamp_) {
                s = {key, ratio, i, j, 0, stamp_};
                if (++filled_ * 2 > slots_.size()) return grow(key);
                return static_cast<int>(at);
            }
            if (s.key == key && s.i == i && s.j == j && s.ratio == ratio) return static_cast<int>(at);
        }
    }

    int grow(uint64_t wanted) {
        std::vector<Slot> old(slots_.size() * 2);
        old.swap(slots_);
        const size_t mask = slots_.size() - 1;
        int result = -1;
        for (auto& b : bucket_) b.clear();
        for (const Slot& s : old) {
            if (s.stamp != stamp_) continue;
            size_t at = s.key & mask;
            while (slots_[at].stamp == stamp_) at = (at + 1) & mask;
            slots_[at] = s;
            if (s.count >= 2) into(s.count).push_back(static_cast<int>(at));
            if (s.key == wanted && s.count == 0) result = static_cast<int>(at);
        }
        return result;
    }

    std::vector<int>& into(int count) {
        if (count >= static_cast<int>(bucket_.size())) bucket_.resize(count + 8);
        return bucket_[count];
    }

    void bump(int i, uint64_t ci, int j, uint64_t cj, int by) {
        if (i > j) std::swap(i, j), std::swap(ci, cj);
        const int at = slot(i, j, quotient(cj, ci));
        const int now = slots_[at].count += by;
        if (now >= 2) into(now).push_back(at);
    }

    void count(int r, int by) {
        const Row& row = s_.row[r];
        work_ += static_cast<int64_t>(row.size() * row.size() / 2);
        for (size_t x = 0; x < row.size(); ++x)
            for (size_t y = x + 1; y < row.size(); ++y) bump(row[x].value, row[x].c, row[y].value, row[y].c, by);
    }

    // The bucket of that count, without its outdated entries.
    std::vector<int>& current(int count) {
        auto& b = into(count);
        size_t kept = 0;
        for (int at : b)
            if (slots_[at].count == count) b[kept++] = at;
        b.resize(kept);
        return b;
    }

    int choose(double alpha) {
        for (int most = static_cast<int>(bucket_.size()) - 1; most >= 2; --most) {
            auto& best = current(most);
            if (best.empty()) continue;
            if (alpha <= 0) return best[random_.below(static_cast<uint32_t>(best.size()))];
            double top = -1e9;
            int chosen = -1;
            for (int under = 0; under < 2 && most - under >= 2; ++under) {
                auto& some = current(most - under);
                const size_t tries = std::min<size_t>(some.size(), 12);
                for (size_t k = 0; k < tries; ++k) {
                    std::swap(some[k], some[k + random_.below(static_cast<uint32_t>(some.size() - k))]);
                    const int at = some[k];
                    const double value = most - under - 1 + alpha * potential(at) + 1e-3 * random_.unit();
                    if (value > top) top = value, chosen = at;
                }
            }
            return chosen;
        }
        return -1;
    }

    void rows_of(int i, int j, uint64_t ratio, std::vector<int>& found) {
        found.clear();
        const auto& fewer = used(i).size() < used(j).size() ? used(i) : used(j);
        for (int r : fewer) {
            const Entry *a = basis::find(s_.row[r], i), *b = basis::find(s_.row[r], j);
            if (a && b && quotient(b->c, a->c) == ratio) found.push_back(r);
        }
        std::sort(found.begin(), found.end());
        found.erase(std::unique(found.begin(), found.end()), found.end());
    }

    // Change of sum(max(0, count - 1)) over all other pairs if this one is named.
    int potential(int at) {
        const Slot pair = slots_[at];
        rows_of(pair.i, pair.j, pair.ratio, found_);
        lost_.clear();
        gained_.clear();
        for (int r : found_) {
            const Entry a = *basis::find(s_.row[r], pair.i), b = *basis::find(s_.row[r], pair.j);
            for (const Entry& e : s_.row[r]) {
                if (e.value == pair.i || e.value == pair.j) continue;
                for (const Entry& x : {a, b}) {
                    const bool swap = x.value > e.value;
                    lost_.push_back(swap ? slot(e.value, x.value, quotient(x.c, e.c))
                                         : slot(x.value, e.value, quotient(e.c, x.c)));
                }
                gained_.push_back({e.value, quotient(e.c, a.c)});
            }
        }
        work_ += static_cast<int64_t>(lost_.size());
        std::sort(lost_.begin(), lost_.end());
        int change = 0;
        for (size_t k = 0; k < lost_.size();) {
            size_t end = k;
            while (end < lost_.size() && lost_[end] == lost_[k]) ++end;
            const int c = slots_[lost_[k]].count;
            change -= std::max(0, c - 1) - std::max(0, c - 1 - static_cast<int>(end - k));
            k = end;
        }
        std::sort(gained_.begin(), gained_.end(),
                  [](const Entry& x, const Entry& y) { return x.value != y.value ? x.value < y.value : x.c < y.c; });
        for (size_t k = 1; k < gained_.size(); ++k)
            change += gained_[k].value == gained_[k - 1].value && gained_[k].c == gained_[k - 1].c;
        return change;
    }

    void name(int i, int j, uint64_t ratio) {
        std::vector<int> where;
        rows_of(i, j, ratio, where);
        const int t = s_.fresh({{i, 1}, {j, ratio}});
        const int value = s_.inputs + t;
        for (int r : where) {
            count(r, -1);
            Row& row = s_.row[r];
            const uint64_t c = basis::find(row, i)->c;
            row.erase(std::remove_if(row.begin(), row.end(), [&](const Entry& e) { return e.value == i || e.value == j; }),
                      row.end());
            row.push_back({value, c});
            count(r, +1);
            for (int v : {i, j}) {
                auto& u = used(v);
                u.erase(std::remove(u.begin(), u.end(), r), u.end());
            }
            used(value).push_back(r);
        }
        const int own = s_.outputs + t;
        used(i).push_back(own);
        used(j).push_back(own);
        count(own, +1);
    }

    Rows& s_;
    Random& random_;
    std::vector<Slot> slots_;
    uint32_t stamp_ = 0;
    size_t filled_ = 0;
    int64_t work_ = 0;
    std::vector<std::vector<int>> bucket_, users_;
    std::vector<int> found_, lost_;
    Row gained_;
    std::array<std::pair<uint64_t, uint64_t>, 256> reciprocal_{};
};

}  // namespace basis
