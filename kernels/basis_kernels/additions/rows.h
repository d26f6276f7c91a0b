// Sparse rows over inputs and named values: row r < outputs is output r, row outputs + t defines value inputs + t.
#pragma once

#include <algorithm>
#include <vector>

#include "field.h"

namespace basis {

struct Entry {
    int value;
    uint64_t c;
};
using Row = std::vector<Entry>;

inline const Entry* find(const Row& row, int value) {
    for (const Entry& e : row)
        if (e.value == value) return &e;
    return nullptr;
}

struct Rows {
    int inputs = 0, outputs = 0;
    std::vector<Row> row;
    std::vector<char> alive;  // one flag per name
    std::vector<int> idle;    // names free for reuse

    int names() const { return static_cast<int>(alive.size()); }

    int length() const {
        int total = 0;
        for (const Row& r : row) total += r.size() > 1 ? static_cast<int>(r.size()) - 1 : 0;
        return total;
    }

    int fresh(Row body) {
        if (idle.empty()) {
            alive.push_back(1);
            row.push_back(std::move(body));
            return names() - 1;
        }
        const int t = idle.back();
        idle.pop_back();
        alive[t] = 1;
        row[outputs + t] = std::move(body);
        return t;
    }

    static void add(Row& to, const Row& body, uint64_t c) {
        for (const Entry& e : body) {
            const uint64_t extra = product(c, e.c);
            auto at = std::find_if(to.begin(), to.end(), [&](const Entry& x) { return x.value == e.value; });
            if (at == to.end()) {
                to.push_back({e.value, extra});
            } else if ((at->c = sum(at->c, extra)) == 0) {
                *at = to.back();
                to.pop_back();
            }
        }
    }

    // Substitute the row of name t wherever t is used, and free the name.
    void unname(int t) {
        const Row body = std::move(row[outputs + t]);
        row[outputs + t].clear();
        alive[t] = 0;
        idle.push_back(t);
        for (Row& r : row) {
            for (size_t k = 0; k < r.size(); ++k) {
                if (r[k].value != inputs + t) continue;
                const uint64_t c = r[k].c;
                r[k] = r.back();
                r.pop_back();
                add(r, body, c);
                break;
            }
        }
    }

    // Unname aliases of a single value and names used less than twice, until there are none.
    void tidy() {
        std::vector<int> uses;
        for (;;) {
            uses.assign(names(), 0);
            for (const Row& r : row)
                for (const Entry& e : r)
                    if (e.value >= inputs) ++uses[e.value - inputs];
            bool changed = false;
            for (int t = 0; t < names(); ++t)
                if (alive[t] && row[outputs + t].size() < 2) unname(t), changed = true;
            if (changed) continue;  // an alias hides uses of its value
            for (int t = 0; t < names(); ++t)
                if (alive[t] && uses[t] < 2) unname(t), changed = true;
            if (!changed) return;
        }
    }

    // Every row as a dense form in the inputs. [outputs + names][inputs]
    std::vector<std::vector<uint64_t>> expanded() const {
        std::vector<std::vector<uint64_t>> forms(row.size());
        for (size_t r = 0; r < row.size(); ++r) expand(static_cast<int>(r), forms);
        return forms;
    }

private:
    void expand(int r, std::vector<std::vector<uint64_t>>& forms) const {
        if (!forms[r].empty()) return;
        std::vector<uint64_t> form(inputs, 0);
        for (const Entry& e : row[r]) {
            if (e.value < inputs) {
                form[e.value] = sum(form[e.value], e.c);
                continue;
            }
            const int other = outputs + e.value - inputs;
            expand(other, forms);
            for (int i = 0; i < inputs; ++i)
                if (forms[other][i]) form[i] = sum(form[i], product(e.c, forms[other][i]));
        }
        forms[r] = std::move(form);
    }
};

}  // namespace basis
