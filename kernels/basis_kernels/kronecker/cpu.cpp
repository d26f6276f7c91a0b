// Python bindings: supported instruction sets, their layout of packed factors, and one call of a whole chain.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "chain.h"
#include "refuse.h"

namespace nb = nanobind;

namespace {

using basis::refuse;
using basis::require;

using Bias = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu>;  // float32, or bfloat16 as int16
using Pattern = std::tuple<int64_t, int64_t, int64_t, int64_t>;

bool supports(const std::string& name) {
  if (name == "scalar") return true;
#if defined(__x86_64__)
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
  return false;
}

const kronecker::Kernels& kernels(const std::string& name) {
  if (!supports(name)) refuse("this CPU does not run the kernel '", name, "'");
#if defined(__x86_64__)
  if (name == "avx2") return kronecker::avx2;
  if (name == "avx512") return kronecker::avx512;
#endif
  return kronecker::scalar;
}

bool is_half(nb::dlpack::dtype type) {
  require(type == nb::dtype<float>() || type == nb::dtype<int16_t>(), "packed factors must be float32 or bfloat16");
  return type == nb::dtype<int16_t>();
}

// Number of values of a packed factor, in chain.h's layout.
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

// A chain ready to run. Inputs and outputs are passed as addresses: an array protocol costs more than a small chain.
class Chain {
 public:
  // Factors in order of application, packed in chain.h's layout.
  Chain(const std::string& name, const std::vector<Pattern>& patterns, const std::vector<Weights>& weights,
        const std::optional<Bias>& bias, bool last)
      : kernels_(kernels(name)), weights_(weights), bias_(bias), last_(last) {
    require(!patterns.empty() && patterns.size() == weights.size(), "there are ", patterns.size(), " patterns and ",
            weights.size(), " packed factors; equal numbers are needed, at least 1");
    for (size_t i = 0; i < patterns.size(); ++i) {
      const auto [a, b, c, d] = patterns[i];
      require(a > 0 && b > 0 && c > 0 && d > 0, "pattern (", a, ",", b, ",", c, ",", d, ") has a value below 1");
      factors_.push_back({a, b, c, d, weights[i].data(), is_half(weights[i].dtype())});
      const int64_t size = packed_size(kernels_, factors_.back(), last);
      require(size == static_cast<int64_t>(weights[i].size()), "packed factor ", i, " has ", weights[i].size(),
              " values, but its pattern needs ", size);
      if (i > 0) {
        const kronecker::Factor& before = factors_[i - 1];
        const int64_t made = before.a * before.b * before.d, read = a * c * d;
        require(made == read, "factor ", i - 1, " has ", made, " outputs, but factor ", i, " has ", read, " inputs");
      }
    }
  }

  // y [batch, out] = chain(x [batch, in]) + bias, or all transposed with `last`; ldx and ldy are row strides.
  void run(uintptr_t x, uintptr_t y, bool half, int64_t batch, int64_t in, int64_t out, int64_t ldx, int64_t ldy,
           int threads) const {
    const kronecker::Factor &head = factors_.front(), &tail = factors_.back();
    const int64_t inputs = head.a * head.c * head.d, outputs = tail.a * tail.b * tail.d;
    require(in <= inputs, "x has ", in, " inputs, but the chain has only ", inputs);
    require(out <= outputs, "y has ", out, " outputs, but the chain has only ", outputs);
    require(!bias_ || static_cast<int64_t>(bias_->shape(0)) == out, "the bias must have ", out, " values");
    require(batch <= 0 || (x && y), "the address of x or y is null");
    require(batch <= 0 || (ldx >= (last_ ? batch : in) && ldy >= (last_ ? batch : out)),
            "ldx or ldy is smaller than a row, so rows overlap");
    kronecker::Call call{};
    call.factors = factors_.data();
    call.count = static_cast<int>(factors_.size());
    call.x = reinterpret_cast<const void*>(x);
    call.y = reinterpret_cast<void*>(y);
    call.batch = batch;
    call.in = in;
    call.out = out;
    call.ldx = ldx;
    call.ldy = ldy;
    call.bias = bias_ ? bias_->data() : nullptr;
    call.half = half;
    call.last = last_;
    nb::gil_scoped_release release;
    if (batch > 0) kernels_.run(call, threads < 1 ? 1 : threads);
  }

 private:
  const kronecker::Kernels& kernels_;
  std::vector<Weights> weights_;  // memory that factors_ point to
  std::optional<Bias> bias_;
  std::vector<kronecker::Factor> factors_;
  bool last_;
};

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
  nb::class_<Chain>(m, "Chain", "Packed factors, in the order in which they are applied, and a bias.")
      .def(nb::init<const std::string&, const std::vector<Pattern>&, const std::vector<Weights>&,
                    const std::optional<Bias>&, bool>(),
           nb::arg("name"), nb::arg("patterns"), nb::arg("weights"), nb::arg("bias").none(), nb::arg("last") = false)
      .def("run", &Chain::run, nb::arg("x"), nb::arg("y"), nb::arg("half"), nb::arg("batch"), nb::arg("inputs"),
           nb::arg("outputs"), nb::arg("ldx"), nb::arg("ldy"), nb::arg("threads"),
           "One call of the whole chain, x and y by address: float32, or bfloat16 where `half`.");
}
