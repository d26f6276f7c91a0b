// The module: which instruction sets run here, how they want factors packed, and one call of a whole chain.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "chain.h"

namespace nb = nanobind;

namespace {

using Bias = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu>;  // float32, or int16 that holds bfloat16
using Rows = nb::ndarray<nb::ndim<2>, nb::device::cpu>;                   // the same
using Pattern = std::tuple<int64_t, int64_t, int64_t, int64_t>;

bool supports(const std::string& name) {
  if (name == "scalar") return true;
#if defined(__x86_64__)
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
#endif
  return false;
}

const kronecker::Kernels& kernels(const std::string& name) {
  if (!supports(name)) throw std::invalid_argument("this CPU does not run the kernel '" + name + "'");
#if defined(__x86_64__)
  if (name == "avx2") return kronecker::avx2;
  if (name == "avx512") return kronecker::avx512;
#endif
  return kronecker::scalar;
}

void require(bool condition, const char* sentence) {
  if (!condition) throw std::invalid_argument(sentence);
}

bool is_half(nb::dlpack::dtype type) {
  require(type == nb::dtype<float>() || type == nb::dtype<int16_t>(), "float32 or bfloat16 is needed");
  return type == nb::dtype<int16_t>();
}

// Values of a packed factor, as chain.h has it.
int64_t packed_size(const kronecker::Kernels& k, const kronecker::Factor& f, bool last) {
  if (last) return f.a * f.d * ((f.b + k.samples - 1) / k.samples) * f.c * k.samples;
  if (kronecker::fits_vector(f, k.width)) {
    const int64_t together = k.width / (f.b * f.d);
    return (f.a + together - 1) / together * f.c * k.width;
  }
  const int64_t per_vector = f.d >= k.width ? 1 : k.width / f.d;
  const int64_t blocks = f.d >= k.width ? (f.d + k.width - 1) / k.width : 1;
  const int64_t vectors = (f.b + per_vector - 1) / per_vector;
  return f.a * blocks * ((vectors + k.vectors - 1) / k.vectors) * f.c * k.vectors * k.width;
}

// y [batch, out] = chain(x [batch, in]) + bias, or all transposed with `last`; factors in the order they are applied in.
void run(const std::string& name, const std::vector<Pattern>& patterns, const std::vector<Weights>& weights,
         const std::optional<Bias>& bias, const Rows& x, const Rows& y, int threads, bool last) {
  const kronecker::Kernels& chosen = kernels(name);
  require(!patterns.empty() && patterns.size() == weights.size(), "one packed factor per pattern is needed");
  std::vector<kronecker::Factor> factors;
  for (size_t i = 0; i < patterns.size(); ++i) {
    const auto [a, b, c, d] = patterns[i];
    require(a > 0 && b > 0 && c > 0 && d > 0, "a pattern needs values of 1 or more");
    factors.push_back({a, b, c, d, weights[i].data(), is_half(weights[i].dtype())});
    require(packed_size(chosen, factors.back(), last) == static_cast<int64_t>(weights[i].size()), "a factor is packed wrongly");
    if (i > 0) {
      const kronecker::Factor& before = factors[i - 1];
      require(before.a * before.b * before.d == a * c * d, "the patterns do not compose");
    }
  }
  kronecker::Call call{};
  call.factors = factors.data();
  call.count = static_cast<int>(factors.size());
  call.last = last;
  call.batch = x.shape(last ? 1 : 0);
  call.in = x.shape(last ? 0 : 1);
  call.out = y.shape(last ? 0 : 1);
  require(static_cast<int64_t>(y.shape(last ? 1 : 0)) == call.batch, "x and y differ in the batch");
  require(call.in <= factors[0].a * factors[0].c * factors[0].d, "x is wider than the chain");
  require(call.out <= factors.back().a * factors.back().b * factors.back().d, "y is wider than the chain");
  require(!bias || static_cast<int64_t>(bias->shape(0)) == call.out, "the bias has the wrong length");
  require((x.stride(1) == 1 || x.shape(1) <= 1) && (y.stride(1) == 1 || y.shape(1) <= 1), "rows must be contiguous");
  call.half = is_half(x.dtype());
  require(is_half(y.dtype()) == call.half, "x and y differ in dtype");
  call.x = x.data();
  call.y = y.data();
  call.ldx = x.stride(0);
  call.ldy = y.stride(0);
  call.bias = bias ? bias->data() : nullptr;
  nb::gil_scoped_release release;
  if (call.batch > 0) chosen.run(call, threads < 1 ? 1 : threads);
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.def("supports", &supports, nb::arg("name"), "Whether this CPU runs the kernel of that name.");
  m.def(
      "geometry",
      [](const std::string& name) {
        const kronecker::Kernels& k = kernels(name);
        return std::make_tuple(k.width, k.vectors, k.samples);
      },
      nb::arg("name"), "(floats per vector, vectors per tile, rows per tile) that factors are packed for.");
  m.def("run", &run, nb::arg("name"), nb::arg("patterns"), nb::arg("weights"), nb::arg("bias").none(), nb::arg("x"),
        nb::arg("y"), nb::arg("threads"), nb::arg("last") = false,
        "One call of a whole chain, batch-size-first or -last.");
}
