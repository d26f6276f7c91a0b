// Moves that pair elimination cannot make: rows rewritten as sums in which terms cancel.
#pragma once

#include <unordered_map>

#include "rows.h"

namespace basis {

// Rewrite a random output as +-(another row) plus their difference where that is shorter. Only outputs are rewritten,
// so that no value can depend on itself.
inline void subtract(Rows& s, Random& random) {
    const auto forms = s.expanded();
    const int target = static_cast<int>(random.below(static_cast<uint32_t>(s.outputs)));
    const int count = static_cast<int>(s.row.size());
    const auto& want = forms[target];
    const int own = s.inputs - static_cast<int>(std::count(want.begin(), want.end(), uint64_t{0}));
    const int begin = static_cast<int>(random.below(static_cast<uint32_t>(count)));
    for (int step = 0; step < count; ++step) {
        const int other = (begin + step) % count;
        if (other == target || s.row[other].size() < 2) continue;
        for (uint64_t c : {uint64_t{1}, kPrime - 1}) {
            Row difference;
            for (int i = 0; i < s.inputs; ++i) {
                const uint64_t d = sum(want[i], negative(product(c, forms[other][i])));
                if (d) difference.push_back({i, d});
            }
            if (static_cast<int>(difference.size()) + 1 >= own) continue;
            int name = other - s.outputs;
            if (name < 0) {
                name = s.fresh(s.row[other]);
                s.row[other] = {{s.inputs + name, 1}};
            }
            difference.push_back({s.inputs + name, c});
            s.row[target] = std::move(difference);
            return;
        }
    }
}

// Split every row into binary sums by naming random pairs of its terms, so that all partial sums are values.
inline void cut(Rows& s, Random& random) {
    for (size_t r = 0; r < s.row.size(); ++r) {
        while (s.row[r].size() > 2) {
            Row pair;
            for (int k = 0; k < 2; ++k) {
                Row& row = s.row[r];
                std::swap(row[random.below(static_cast<uint32_t>(row.size()))], row.back());
                pair.push_back(row.back());
                row.pop_back();
            }
            const int t = s.fresh(std::move(pair));  // may reallocate s.row
            s.row[r].push_back({s.inputs + t, 1});
        }
    }
}

// Whether value v depends on value `own`; `seen` marks values already known not to.
inline bool depends(const Rows& s, int v, int own, std::vector<char>& seen) {
    if (v == own) return true;
    if (v < s.inputs || seen[v]) return false;
    seen[v] = 1;
    for (const Entry& e : s.row[s.outputs + v - s.inputs])
        if (depends(s, e.value, own, seen)) return true;
    return false;
}

// Rewrite random rows as sums of two other values that happen to equal them: no shorter, but other values may become
// unused.
inline void rewire(Rows& s, Random& random) {
    cut(s, random);
    const auto forms = s.expanded();
    const int inputs = s.inputs, rows = static_cast<int>(s.row.size());
    std::vector<uint64_t> point(inputs);
    for (auto& x : point) x = random.next() % kPrime;
    // Every form at one random point: different forms almost surely have different values, and the exact comparison
    // below catches collisions.
    std::unordered_map<uint64_t, int> where;
    std::vector<uint64_t> at(inputs + rows, 0);
    for (int i = 0; i < inputs; ++i) where[at[i] = point[i]] = i;
    for (int r = 0; r < rows; ++r) {
        for (int i = 0; i < inputs; ++i)
            if (forms[r][i]) at[inputs + r] = sum(at[inputs + r], product(forms[r][i], point[i]));
        if (at[inputs + r]) where.emplace(at[inputs + r], inputs + r);
    }
    const auto entry = [&](int v, int i) { return v < inputs ? uint64_t(v == i) : forms[v - inputs][i]; };
    const auto named = [&](int v) {  // the value of input v, or of row v - inputs, which is named if it is not yet
        if (v < inputs) return v;
        const int r = v - inputs;
        if (r >= s.outputs) return inputs + r - s.outputs;
        if (s.row[r].size() == 1 && s.row[r][0].c == 1) return s.row[r][0].value;
        const int t = s.fresh(s.row[r]);
        s.row[r] = {{inputs + t, 1}};
        return inputs + t;
    };
    const int tries = 1 + static_cast<int>(random.below(4));
    for (int k = 0; k < tries; ++k) {
        const int z = static_cast<int>(random.below(static_cast<uint32_t>(rows)));
        if (s.row[z].size() < 2 || !at[inputs + z]) continue;  // a single term, or named in this call
        const int begin = static_cast<int>(random.below(static_cast<uint32_t>(inputs + rows)));
        for (int step = 0; step < inputs + rows; ++step) {
            const int x = (begin + step) % (inputs + rows);
            if (x == inputs + z || !at[x]) continue;
            const uint64_t c = random.below(2) ? 1 : kPrime - 1;
            const uint64_t rest = sum(at[inputs + z], negative(product(c, at[x])));
            if (!rest) continue;
            uint64_t d = 1;
            auto found = where.find(rest);
            if (found == where.end()) found = where.find(negative(rest)), d = kPrime - 1;
            if (found == where.end()) continue;
            const int y = found->second;
            if (y == inputs + z || y == x) continue;
            bool equal = true;
            for (int i = 0; i < inputs && equal; ++i)
                equal = entry(inputs + z, i) == sum(product(c, entry(x, i)), product(d, entry(y, i)));
            if (!equal) continue;
            const int p = named(x), q = named(y);
            if (p == q) continue;
            if (z >= s.outputs) {
                const int own = inputs + z - s.outputs;
                std::vector<char> seen(inputs + s.names(), 0);
                if (depends(s, p, own, seen) || depends(s, q, own, seen)) continue;
            }
            s.row[z] = {{p, c}, {q, d}};
            break;
        }
    }
}

}  // namespace basis
