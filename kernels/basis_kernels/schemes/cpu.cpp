// Python bindings of the flip-graph walk and the GF(2) solver: int8 arrays in and out, the GIL released in between.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <time.h>

#include <string>
#include <vector>

#include "gf2.h"
#include "job.h"
#include "refuse.h"

namespace nb = nanobind;
using namespace nb::literals;
using schemes::Job;
using schemes::Monitor;
using schemes::Outcome;
using Factors = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

namespace {

using basis::refuse;
using basis::require;

std::vector<std::string> kernels() {
  std::vector<std::string> names = {"cpu-scalar"};
#if defined(__x86_64__)
  const bool bits = __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  if (bits && __builtin_cpu_supports("avx2")) names.emplace_back("cpu-avx2");
  if (bits && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    names.emplace_back("cpu-avx512");
#endif
  return names;
}

schemes::Walk walk_of(const std::string& kernel) {
  const auto names = kernels();
  for (const auto& name : names) {
    if (name != kernel) continue;
#if defined(__x86_64__)
    if (name == "cpu-avx2") return schemes::walk_avx2;
    if (name == "cpu-avx512") return schemes::walk_avx512;
#endif
    return schemes::walk_scalar;
  }
  refuse("this CPU does not run the walk kernel '", kernel, "'");
}

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Walked {
  std::vector<int8_t> storage[3];
  int columns[3];
  Outcome outcome;
  double seconds;

  nb::object factor(int d) const {
    const auto begin = storage[d].begin();
    auto* copy = new std::vector<int8_t>(begin, begin + static_cast<int64_t>(outcome.rank) * columns[d]);
    nb::capsule owner(copy, [](void* p) noexcept { delete static_cast<std::vector<int8_t>*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, int8_t, nb::ndim<2>>(
        copy->data(), {static_cast<size_t>(outcome.rank), static_cast<size_t>(columns[d])}, owner));
  }
};

void check_rows(const Factors& u, const Factors& other) {
  require(other.shape(0) == u.shape(0), "U has ", u.shape(0), " rows, but another factor has ", other.shape(0),
          "; they must be equal");
}

Walked walk(Factors u, Factors v, Factors w, bool ternary, bool symmetric, uint64_t seed, uint64_t flips,
            uint64_t plus_after, int margin, int target, Monitor& monitor, const std::string& kernel) {
  const Factors* factors[3] = {&u, &v, &w};
  Job job{};
  Walked walked{};
  job.rank = static_cast<int>(u.shape(0));
  require(margin >= 0, "margin is ", margin, "; it must be at least 0");
  require(plus_after >= 1, "plus_after is 0; it must be at least 1");
  require(!symmetric || !ternary, "walks over orbits are over GF(2): symmetric and ternary exclude each other");
  const int most = symmetric ? schemes::max_orbits : schemes::max_rank;
  require(job.rank + margin <= most, "rank + margin is ", job.rank + margin, "; the walk holds at most ", most,
          symmetric ? " orbits" : " terms");
  const size_t bits = symmetric ? schemes::max_orbit_bits : schemes::max_bits / (ternary ? 2 : 1);
  for (int d = 0; d < 3; ++d) {
    const auto columns = factors[d]->shape(1);
    check_rows(u, *factors[d]);
    require(columns <= bits, "a row of U, V or W has ", columns, " entries; the walk packs at most ", bits);
    job.columns[d] = walked.columns[d] = static_cast<int>(columns);
    job.factors[d] = factors[d]->data();
    walked.storage[d].resize(u.shape(0) * columns);
    walked.outcome.factors[d] = walked.storage[d].data();
  }
  job.ternary = ternary;
  job.symmetric = symmetric;
  job.seed = seed;
  job.flips = flips;
  job.plus_after = plus_after;
  job.margin = margin;
  job.target = target;
  job.monitor = &monitor;
  const auto run = walk_of(kernel);
  nb::gil_scoped_release unlocked;
  const double start = thread_seconds();
  run(job, walked.outcome);
  walked.seconds = thread_seconds() - start;
  return walked;
}

schemes::Elimination* eliminate(Factors u, Factors v, Factors w,
                                nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> order) {
  const Factors* given[3] = {&u, &v, &w};
  const int8_t* factors[3];
  int columns[3];
  int64_t unknowns = 0, equations = 1;
  for (int d = 0; d < 3; ++d) {
    check_rows(u, *given[d]);
    factors[d] = given[d]->data();
    columns[d] = static_cast<int>(given[d]->shape(1));
    unknowns += static_cast<int64_t>(given[d]->size());
    equations *= columns[d];
  }
  require(static_cast<int64_t>(order.size()) == unknowns, "order has ", order.size(), " entries, but there are ",
          unknowns, " unknowns");
  std::vector<bool> seen(unknowns, false);
  for (int64_t k = 0; k < unknowns; ++k) {
    const int64_t at = order.data()[k];
    require(at >= 0 && at < unknowns, "order lists unknown ", at, "; the last one is ", unknowns - 1);
    require(!seen[at], "order lists unknown ", at, " twice");
    seen[at] = true;
  }
  require(equations * unknowns <= (int64_t{1} << 35), "the Jacobian of Brent's equations, ", equations, " x ", unknowns,
          " bits, would take more than 4 GiB");
  nb::gil_scoped_release unlocked;
  return new schemes::Elimination(static_cast<int>(u.shape(0)), columns, factors, order.data(), unknowns);
}

nb::object solve(const schemes::Elimination& jacobian,
                 nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> b) {
  require(static_cast<int64_t>(b.size()) == jacobian.equations(), "b has ", b.size(), " entries, but there are ",
          jacobian.equations(), " equations");
  auto* x = new std::vector<uint8_t>(jacobian.unknowns());
  nb::capsule owner(x, [](void* p) noexcept { delete static_cast<std::vector<uint8_t>*>(p); });
  if (!jacobian.solve(b.data(), x->data())) return nb::none();
  return nb::cast(nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(x->data(), {x->size()}, owner));
}

}  // namespace

NB_MODULE(_cpu, module) {
  module.def("kernels", &kernels, "Walk kernels this CPU can run, slowest first.");
  module.attr("MAX_RANK") = schemes::max_rank;
  module.attr("MAX_BITS") = schemes::max_bits;
  module.attr("MAX_ORBITS") = schemes::max_orbits;
  module.attr("MAX_ORBIT_BITS") = schemes::max_orbit_bits;

  nb::class_<Monitor>(module, "Monitor")
      .def(nb::init<>())
      .def_prop_rw("stop", [](Monitor& m) { return m.stop.load(); }, [](Monitor& m, bool stop) { m.stop = stop; })
      .def_prop_ro("flips", [](Monitor& m) { return m.flips.load(); });

  nb::class_<Walked>(module, "Walked")
      .def_prop_ro("U", [](const Walked& w) { return w.factor(0); })
      .def_prop_ro("V", [](const Walked& w) { return w.factor(1); })
      .def_prop_ro("W", [](const Walked& w) { return w.factor(2); })
      .def_prop_ro("rank", [](const Walked& w) { return w.outcome.rank; })
      .def_prop_ro("flips", [](const Walked& w) { return w.outcome.flips; })
      .def_prop_ro("pluses", [](const Walked& w) { return w.outcome.pluses; })
      .def_prop_ro("reductions", [](const Walked& w) { return w.outcome.reductions; })
      .def_prop_ro("dead", [](const Walked& w) { return w.outcome.dead; })
      .def_prop_ro("seconds", [](const Walked& w) { return w.seconds; }, "CPU seconds of the thread that walked.");

  module.def("walk", &walk, "U"_a, "V"_a, "W"_a, nb::kw_only(), "ternary"_a, "symmetric"_a = false, "seed"_a, "flips"_a,
             "plus_after"_a, "margin"_a, "target"_a, "monitor"_a, "kernel"_a);

  nb::class_<schemes::Elimination>(module, "Elimination")
      .def(nb::new_(&eliminate), "U"_a, "V"_a, "W"_a, "order"_a)
      .def_prop_ro("rank", &schemes::Elimination::rank)
      .def("solve", &solve, "b"_a);
}
