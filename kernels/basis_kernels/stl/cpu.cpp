// The module: encode and decode of whole panels, over tile rows in parallel.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "entry.h"
#include "parallel.h"

namespace nb = nanobind;

namespace {

using Floats1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Whole2 = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<nb::ndim<2>, nb::device::cpu>;  // float32, or int16 that holds bfloat16
using Planes = nb::ndarray<float, nb::ndim<3>, nb::device::cpu>;

bool supports(const std::string& name) {
  if (name == "scalar") return true;
#if defined(__x86_64__)
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return false;
}

const stl::Kernels& kernels(const std::string& name) {
  if (!supports(name)) throw std::invalid_argument("this CPU does not run the kernel '" + name + "'");
#if defined(__x86_64__)
  if (name == "avx2") return stl::avx2;
#endif
  return stl::scalar;
}

void require(bool condition, const char* sentence) {
  if (!condition) throw std::invalid_argument(sentence);
}

stl::Bases bases_of(int outputs, int inputs, const std::optional<Floats2>& matrix, const Whole2& steps,
                    const Whole2& ends) {
  require(outputs <= stl::MOST_RANK && inputs <= stl::MOST_RANK, "more than 64 products");
  if (matrix) {
    require(static_cast<int>(matrix->shape(0)) == outputs && static_cast<int>(matrix->shape(1)) == inputs,
            "the matrix has the wrong shape");
    return {outputs, inputs, matrix->data(), nullptr, 0, nullptr};
  }
  const int count = static_cast<int>(steps.shape(0));
  require(count <= stl::MOST_STEPS, "the program is too long");
  require(steps.shape(1) == 3 && ends.shape(1) == 2 && static_cast<int>(ends.shape(0)) == outputs,
          "the program has the wrong shape");
  for (int s = 0; s < count; ++s)
    for (int side = 0; side < 2; ++side) {
      const int value = steps.data()[3 * s + side];
      require(value >= 0 && value < inputs + s, "a step reads a value that is not made yet");
    }
  for (int o = 0; o < outputs; ++o)
    require(ends.data()[2 * o] < inputs + count && ends.data()[2 * o] >= -1, "an output reads a value that is not made");
  return {outputs, inputs, nullptr, steps.data(), count, ends.data()};
}

bool is_bf16(const Rows& rows) {
  require(rows.dtype() == nb::dtype<float>() || rows.dtype() == nb::dtype<int16_t>(), "float32 or bfloat16 is needed");
  require(rows.stride(1) == 1 || rows.shape(1) <= 1, "rows must be contiguous");
  return rows.dtype() == nb::dtype<int16_t>();
}

template <typename Value>
stl::Matrix<Value> matrix_of(const Rows& rows) {
  return {static_cast<Value*>(rows.data()), static_cast<int64_t>(rows.shape(0)), static_cast<int64_t>(rows.shape(1)),
          rows.stride(0)};
}

stl::Panel panel_of(const Planes& panel) {
  require(panel.stride(2) == 1 && panel.stride(1) == static_cast<int64_t>(panel.shape(2)), "a plane must be contiguous");
  return {panel.data(), panel.stride(0), static_cast<int64_t>(panel.shape(2))};
}

// panel [r, rows, K] from tile rows first ... first + rows - 1 of x [n, k].
void encode(const std::string& name, int tile, const Rows& x, const std::optional<Floats2>& matrix, const Whole2& steps,
            const Whole2& ends, const Planes& panel, int64_t first, int threads) {
  require(tile >= 1 && tile <= 4, "the tile must be 1 to 4");
  const stl::Kernels& run = kernels(name);
  const stl::Bases bases = bases_of(static_cast<int>(panel.shape(0)), tile * tile, matrix, steps, ends);
  const stl::Panel out = panel_of(panel);
  require((static_cast<int64_t>(x.shape(1)) + tile - 1) / tile == out.columns, "the panel has the wrong width");
  const bool half = is_bf16(x);
  const int64_t count = panel.shape(1);
  nb::gil_scoped_release release;
  basis::parallel_for(count, threads, [&](int64_t local) {
    if (half)
      run.encode_bf16(tile, matrix_of<const uint16_t>(x), bases, out, first + local, local);
    else
      run.encode_f32(tile, matrix_of<const float>(x), bases, out, first + local, local);
  });
}

// Tile rows first ... first + rows - 1 of y [n, m] from panel [r, rows, M], whose planes are padded by 8 values.
void decode(const std::string& name, int tile, const Planes& panel, const std::optional<Floats2>& matrix,
            const Whole2& steps, const Whole2& ends, const std::optional<Floats1>& bias, const Rows& y, int64_t first,
            int threads) {
  require(tile >= 1 && tile <= 4, "the tile must be 1 to 4");
  const stl::Kernels& run = kernels(name);
  const stl::Bases bases = bases_of(tile * tile, static_cast<int>(panel.shape(0)), matrix, steps, ends);
  const stl::Panel in = panel_of(panel);
  require((static_cast<int64_t>(y.shape(1)) + tile - 1) / tile == in.columns, "the panel has the wrong width");
  require(!bias || bias->shape(0) == y.shape(1), "the bias has the wrong length");
  require(in.plane >= static_cast<int64_t>(panel.shape(1)) * in.columns + 8, "the planes are not padded");
  const float* shift = bias ? bias->data() : nullptr;
  const bool half = is_bf16(y);
  const int64_t count = panel.shape(1);
  nb::gil_scoped_release release;
  basis::parallel_for(count, threads, [&](int64_t local) {
    if (half)
      run.decode_bf16(tile, in, bases, shift, matrix_of<uint16_t>(y), first + local, local);
    else
      run.decode_f32(tile, in, bases, shift, matrix_of<float>(y), first + local, local);
  });
}

}  // namespace

NB_MODULE(_cpu, module) {
  module.def("supports", &supports, nb::arg("name"));
  module.def("encode", &encode, nb::arg("name"), nb::arg("tile"), nb::arg("x"), nb::arg("matrix").none(),
             nb::arg("steps"), nb::arg("ends"), nb::arg("panel"), nb::arg("first"), nb::arg("threads"));
  module.def("decode", &decode, nb::arg("name"), nb::arg("tile"), nb::arg("panel"), nb::arg("matrix").none(),
             nb::arg("steps"), nb::arg("ends"), nb::arg("bias").none(), nb::arg("y"), nb::arg("first"),
             nb::arg("threads"));
}
