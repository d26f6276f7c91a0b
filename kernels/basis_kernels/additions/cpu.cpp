// Iterated local search for short straight-line programs: substitute some random named values back into the rows,
// eliminate again, keep the result if it is not longer. Rows are passed in compressed sparse form over field.h's field.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "eliminate.h"
#include "moves.h"
#include "refuse.h"

namespace nb = nanobind;
using namespace basis;

namespace {

// Returns the work done, in the unit of Eliminator::work.
int64_t disturb(Rows& s, Random& random) {
    const uint32_t kind = random.below(16);
    if (kind < 3) subtract(s, random);
    else if (kind < 8) rewire(s, random);
    std::vector<int> names;
    for (int t = 0; t < s.names(); ++t)
        if (s.alive[t]) names.push_back(t);
    const double expected = 1 + std::pow(static_cast<double>(names.size()), random.unit());
    const double share = kind == 15 ? 1.0 : std::min(1.0, expected / std::max<size_t>(1, names.size()));
    for (int t : names)
        if (s.alive[t] && random.unit() < share) s.unname(t);
    return kind < 8 ? static_cast<int64_t>(s.row.size()) * s.inputs : 0;
}

Rows search(Rows start, int64_t work, double seconds, uint64_t seed) {
    const auto begin = std::chrono::steady_clock::now();
    const auto expired = [&] {
        return seconds > 0 && std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() > seconds;
    };
    int start_terms = 0;
    for (const Row& r : start.row) start_terms += static_cast<int>(r.size());
    Random random{seed};
    Rows trial = start;
    Eliminator eliminator(trial, random);
    eliminator.run(0);
    trial.tidy();
    Rows here = trial, best = trial;
    int cost = here.length(), least = cost;
    // Without a time limit, small problems stop early, after many rounds without gain.
    const int64_t patience = seconds > 0 ? INT64_MAX : 300 * int64_t{std::max(8, start_terms)};
    int64_t since = 0, idle = 0, extra = 0;
    for (int64_t k = 0; (work < 0 || eliminator.work() + extra < work) && !(k % 16 == 0 && expired()); ++k) {
        trial = here;
        extra += disturb(trial, random);
        const double alphas[] = {0, 0, 0.1, 0.25, 0.5};
        eliminator.run(alphas[random.below(5)]);
        trial.tidy();
        const int now = trial.length();
        ++since;
        if (++idle > patience) break;
        if (now <= cost || (now == cost + 1 && random.below(64) == 0)) here = trial, cost = now;
        if (now < least) best = trial, least = now, since = idle = 0;
        if (since > 4000 && cost > least) here = best, cost = least, since = 0;
    }
    return best;
}

constexpr int64_t kMostValues = 1 << 20;

using Ints = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Result = std::tuple<std::vector<int64_t>, std::vector<int64_t>, std::vector<int64_t>, std::vector<uint64_t>>;

Result improve(int inputs, int outputs, Ints starts, Ints values, Words coefficients, int64_t work, double seconds,
               uint64_t seed) {
    const int64_t rows = static_cast<int64_t>(starts.size()) - 1;
    const int64_t stored = static_cast<int64_t>(values.size());
    require(inputs >= 1 && outputs >= 1, "there are ", inputs, " inputs and ", outputs,
            " outputs; at least 1 of each is needed");
    require(rows >= outputs, "starts has ", starts.size(), " values; ", outputs,
            " outputs need at least ", outputs + 1);
    require(rows + inputs <= kMostValues, "there are ", rows + inputs, " rows and inputs; the limit is ", kMostValues);
    require(stored == static_cast<int64_t>(coefficients.size()), "there are ", stored, " values, but ",
            coefficients.size(), " coefficients");
    require(starts(0) == 0 && starts(rows) == stored, "starts runs from ", starts(0), " to ", starts(rows),
            "; it must run from 0 to the number of values, ", stored);
    require(work >= 0 || seconds > 0, "work is unlimited (below 0), so seconds must be above 0");
    Rows s;
    s.inputs = inputs;
    s.outputs = outputs;
    s.row.resize(rows);
    s.alive.assign(rows - outputs, 1);
    for (int64_t r = 0; r < rows; ++r) {
        require(starts(r) <= starts(r + 1), "starts must not decrease, but row ", r, " starts at ", starts(r),
                " and ends at ", starts(r + 1));
        for (int64_t k = starts(r); k < starts(r + 1); ++k) {
            // A row refers only to earlier definitions, so there are no cycles.
            const int64_t limit = r < outputs ? inputs + rows - outputs : inputs + r - outputs;
            require(values(k) >= 0 && values(k) < limit, "row ", r, " reads value ", values(k), "; it may read 0 to ",
                    limit - 1);
            require(coefficients(k) > 0 && coefficients(k) < kPrime, "row ", r, " has coefficient ", coefficients(k),
                    "; 1 to 2^61 - 2 are allowed");
            s.row[r].push_back({static_cast<int>(values(k)), coefficients(k)});
        }
    }
    {
        nb::gil_scoped_release release;
        s = search(std::move(s), work, seconds, seed);
    }
    Result result;
    auto& [keys, first, out, c] = result;
    for (int64_t r = 0; r < static_cast<int64_t>(s.row.size()); ++r) {
        if (r >= outputs && !s.alive[r - outputs]) continue;
        keys.push_back(r);
        first.push_back(static_cast<int64_t>(out.size()));
        for (const Entry& e : s.row[r]) out.push_back(e.value), c.push_back(e.c);
    }
    first.push_back(static_cast<int64_t>(out.size()));
    return result;
}

}  // namespace

NB_MODULE(_cpu, m) {
    m.doc() = "Short straight-line programs by iterated elimination of common pairs.";
    m.def("improve", &improve, nb::arg("inputs"), nb::arg("outputs"), nb::arg("starts"), nb::arg("values"),
          nb::arg("coefficients"), nb::arg("work"), nb::arg("seconds"), nb::arg("seed"),
          "Shorten rows; returns (keys, starts, values, coefficients). Row r < outputs is output r, row outputs + t "
          "defines value inputs + t; coefficients are residues modulo 2^61 - 1. Stops after `work` pairs counted "
          "(unlimited below 0) or `seconds` (unlimited at 0), whichever comes first.");
}
