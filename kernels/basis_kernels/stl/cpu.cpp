// The module: encode and decode of whole panels, over tile rows in parallel.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

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

// One basis with its own storage: a dense matrix [outputs, inputs], or a program where there is none.
class Side {
 public:
  Side(int outputs, int inputs, const std::optional<Floats2>& matrix, const Whole2& steps, const Whole2& ends) {
    require(outputs <= stl::MOST_RANK && inputs <= stl::MOST_RANK, "more than 64 products");
    if (matrix) {
      require(static_cast<int>(matrix->shape(0)) == outputs && static_cast<int>(matrix->shape(1)) == inputs,
              "the matrix has the wrong shape");
      matrix_.assign(matrix->data(), matrix->data() + matrix->size());
      view_ = {outputs, inputs, matrix_.data(), nullptr, 0, nullptr};
      return;
    }
    const int count = static_cast<int>(steps.shape(0));
    require(count <= stl::MOST_STEPS, "the program is too long");
    require(steps.shape(1) == 3 && ends.shape(1) == 2 && static_cast<int>(ends.shape(0)) == outputs,
            "the program has the wrong shape");
    steps_.assign(steps.data(), steps.data() + steps.size());
    ends_.assign(ends.data(), ends.data() + ends.size());
    for (int s = 0; s < count; ++s)
      for (int side = 0; side < 2; ++side)
        require(steps_[3 * s + side] >= 0 && steps_[3 * s + side] < inputs + s,
                "a step reads a value that is not made yet");
    for (int o = 0; o < outputs; ++o)
      require(ends_[2 * o] >= -1 && ends_[2 * o] < inputs + count, "an output reads a value that is not made");
    view_ = {outputs, inputs, nullptr, steps_.data(), count, ends_.data()};
  }
  Side(const Side&) = delete;
  Side& operator=(const Side&) = delete;
  const stl::Bases& view() const { return view_; }

 private:
  std::vector<float> matrix_;
  std::vector<int32_t> steps_, ends_;
  stl::Bases view_{};
};

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

// Both bases, the bias and the instruction set of one layer, copied once.
class Operator {
 public:
  Operator(const std::string& name, int tile, int rank, const std::optional<Floats2>& encode, const Whole2& encode_steps,
           const Whole2& encode_ends, const std::optional<Floats2>& decode, const Whole2& decode_steps,
           const Whole2& decode_ends, const std::optional<Floats1>& bias)
      : run_(kernels(name)),
        tile_(tile),
        encode_(rank, tile * tile, encode, encode_steps, encode_ends),
        decode_(tile * tile, rank, decode, decode_steps, decode_ends) {
    require(tile >= 1 && tile <= 4, "the tile must be 1 to 4");
    if (bias) bias_.assign(bias->data(), bias->data() + bias->size());
  }

  // panel [r, rows, K] from tile rows first ... first + rows - 1 of x [n, k].
  void encode(const Rows& x, const Planes& panel, int64_t first, int threads) const {
    const stl::Panel out = panel_of(panel);
    require(static_cast<int>(panel.shape(0)) == encode_.view().outputs, "the panel has the wrong rank");
    require((static_cast<int64_t>(x.shape(1)) + tile_ - 1) / tile_ == out.columns, "the panel has the wrong width");
    const bool half = is_bf16(x);
    const int64_t count = panel.shape(1);
    nb::gil_scoped_release release;
    basis::parallel_for(count, threads, [&](int64_t local) {
      if (half)
        run_.encode_bf16(tile_, matrix_of<const uint16_t>(x), encode_.view(), out, first + local, local);
      else
        run_.encode_f32(tile_, matrix_of<const float>(x), encode_.view(), out, first + local, local);
    });
  }

  // Tile rows first ... first + rows - 1 of y [n, m] from panel [r, rows, M], whose planes are padded by 8 values.
  void decode(const Planes& panel, const Rows& y, int64_t first, int threads) const {
    const stl::Panel in = panel_of(panel);
    require(static_cast<int>(panel.shape(0)) == decode_.view().inputs, "the panel has the wrong rank");
    require((static_cast<int64_t>(y.shape(1)) + tile_ - 1) / tile_ == in.columns, "the panel has the wrong width");
    require(bias_.empty() || bias_.size() == y.shape(1), "the bias has the wrong length");
    require(in.plane >= static_cast<int64_t>(panel.shape(1)) * in.columns + 8, "the planes are not padded");
    const float* shift = bias_.empty() ? nullptr : bias_.data();
    const bool half = is_bf16(y);
    const int64_t count = panel.shape(1);
    nb::gil_scoped_release release;
    basis::parallel_for(count, threads, [&](int64_t local) {
      if (half)
        run_.decode_bf16(tile_, in, decode_.view(), shift, matrix_of<uint16_t>(y), first + local, local);
      else
        run_.decode_f32(tile_, in, decode_.view(), shift, matrix_of<float>(y), first + local, local);
    });
  }

 private:
  const stl::Kernels& run_;
  int tile_;
  Side encode_, decode_;
  std::vector<float> bias_;
};

}  // namespace

NB_MODULE(_cpu, module) {
  module.def("supports", &supports, nb::arg("name"));
  nb::class_<Operator>(module, "Operator")
      .def(nb::init<const std::string&, int, int, const std::optional<Floats2>&, const Whole2&, const Whole2&,
                    const std::optional<Floats2>&, const Whole2&, const Whole2&, const std::optional<Floats1>&>(),
           nb::arg("name"), nb::arg("tile"), nb::arg("rank"), nb::arg("encode").none(), nb::arg("encode_steps"),
           nb::arg("encode_ends"), nb::arg("decode").none(), nb::arg("decode_steps"), nb::arg("decode_ends"),
           nb::arg("bias").none())
      .def("encode", &Operator::encode, nb::arg("x"), nb::arg("panel"), nb::arg("first"), nb::arg("threads"))
      .def("decode", &Operator::decode, nb::arg("panel"), nb::arg("y"), nb::arg("first"), nb::arg("threads"));
}
