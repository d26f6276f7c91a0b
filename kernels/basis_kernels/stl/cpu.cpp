// Python bindings: encode and decode of panels, and whole layers, in parallel over tile rows.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "entry.h"
#include "parallel.h"
#include "refuse.h"

namespace nb = nanobind;

namespace {

using basis::refuse;
using basis::require;

using Floats1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Whole2 = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<nb::ndim<2>, nb::device::cpu>;  // float32, or bfloat16 as int16
using Planes = nb::ndarray<float, nb::ndim<3>, nb::device::cpu>;

bool supports(const std::string& name) {
  if (name == "scalar") return true;
#if defined(__x86_64__)
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx512")
    return supports("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
#endif
  return false;
}

const stl::Kernels& kernels(const std::string& name) {
  if (!supports(name)) refuse("this CPU does not run the kernel '", name, "'");
#if defined(__x86_64__)
  if (name == "avx2") return stl::avx2;
  if (name == "avx512") return stl::avx512;
#endif
  return stl::scalar;
}

bool has_shuffles(int side) { return (side >= 1 && side <= 4) || side == 8; }

// One basis and its storage: a dense matrix [outputs, inputs], or a program.
class Side {
 public:
  Side(int outputs, int inputs, const std::optional<Floats2>& matrix, const Whole2& steps, const Whole2& ends) {
    require(outputs <= stl::MOST_RANK && inputs <= stl::MOST_RANK, "a basis has ", inputs, " inputs and ", outputs,
            " outputs; at most ", stl::MOST_RANK, " of each are supported");
    if (matrix) {
      require(static_cast<int>(matrix->shape(0)) == outputs && static_cast<int>(matrix->shape(1)) == inputs,
              "the basis must be [", outputs, ", ", inputs, "], not [", matrix->shape(0), ", ", matrix->shape(1), "]");
      matrix_.resize(matrix->size());
      for (int o = 0; o < outputs; ++o)
        for (int i = 0; i < inputs; ++i) matrix_[i * outputs + o] = matrix->data()[o * inputs + i];
      view_ = {outputs, inputs, matrix_.data(), nullptr, 0, nullptr, 0};
      return;
    }
    const int count = static_cast<int>(steps.shape(0));
    require(count <= stl::MOST_STEPS, "the program has ", count, " steps; at most ", stl::MOST_STEPS,
            " are supported");
    require(steps.shape(1) == 3 && ends.shape(1) == 2 && static_cast<int>(ends.shape(0)) == outputs,
            "the program's steps must be [steps, 3] and its ends [", outputs, ", 2]");
    for (int s = 0; s < count; ++s) {
      const int32_t* step = steps.data() + 3 * s;
      require(std::min(step[0], step[1]) >= 0 && std::max(step[0], step[1]) < inputs + s,
              "step ", s, " reads values ", step[0], " and ",
              step[1], "; only 0 to ", inputs + s - 1, " exist before it");
      steps_.insert(steps_.end(), {step[0], step[1], step[2], -1});
    }
    for (int o = 0; o < outputs; ++o) {
      const int32_t value = ends.data()[2 * o], sign = ends.data()[2 * o + 1];
      require(value >= -1 && value < inputs + count, "output ", o, " reads value ", value,
              "; the program has values 0 to ", inputs + count - 1, ", and -1 for zero");
      int32_t* step = value >= inputs ? &steps_[4 * (value - inputs)] : nullptr;
      if (step && sign > 0 && step[3] < 0)
        step[3] = o;
      else
        ends_.insert(ends_.end(), {o, value, sign});
    }
    view_ = {outputs, inputs, nullptr, steps_.data(), count, ends_.data(), static_cast<int>(ends_.size() / 3)};
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
  require(rows.dtype() == nb::dtype<float>() || rows.dtype() == nb::dtype<int16_t>(),
          "x and y must be float32 or bfloat16");
  require(rows.stride(1) == 1 || rows.shape(1) <= 1, "the rows of x and y must be contiguous");
  return rows.dtype() == nb::dtype<int16_t>();
}

template <typename Value>
stl::Matrix<Value> matrix_of(const Rows& rows) {
  return {static_cast<Value*>(rows.data()), static_cast<int64_t>(rows.shape(0)), static_cast<int64_t>(rows.shape(1)),
          rows.stride(0)};
}

stl::Panel panel_of(const Planes& panel) {
  require(panel.stride(2) == 1 && panel.stride(1) == static_cast<int64_t>(panel.shape(2)),
          "each plane of the panel must be contiguous");
  const int64_t columns = panel.shape(2);
  return {panel.data(), panel.stride(0), columns, columns};
}

int64_t pieces(int64_t value, int64_t step) { return (value + step - 1) / step; }
int64_t up(int64_t value, int64_t step) { return pieces(value, step) * step; }

// Block sizes of a layer of `total` tile rows. All r products of a block stay in L2 until they are decoded; its encoded
// rows fit in L3 next to the weights that stream past them.
stl::Block cut(const stl::Weight& weight, int width, int64_t total, int threads) {
  constexpr int64_t WAITING = 512 << 10, ENCODED = 8 << 20;
  constexpr int64_t MOST_ROWS = 96, LEAST_ROWS = 24, DEPTH = 1024;
  int64_t rows = ENCODED / (4 * weight.rank * stl::padded(weight.depth));
  rows = std::max(LEAST_ROWS, std::min(MOST_ROWS, rows));
  int64_t blocks = up((total + rows - 1) / rows, total >= threads * LEAST_ROWS ? threads : 1);
  rows = std::max<int64_t>(1, (total + blocks - 1) / blocks);
  const int64_t wide = WAITING / (4 * weight.rank * rows) / width * width;
  return {rows, std::min(up(weight.columns, width), std::max<int64_t>(width, wide)), DEPTH};
}

// Scratch memory that a thread keeps between calls: fresh pages would cost as much as the encode that fills them.
float* room(int64_t floats) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> kept;
  thread_local int64_t size = 0;
  if (floats > size) {
    kept.reset();
    kept.reset(std::aligned_alloc(64, up(4 * floats, 64)));
    size = kept ? floats : 0;
    if (!kept) throw std::bad_alloc();
  }
  return static_cast<float*>(kept.get());
}

// Both bases, the bias and the instruction set of one layer, copied once.
class Operator {
 public:
  Operator(const std::string& name, int rows, int inputs, int outputs, int rank, const std::optional<Floats2>& encode,
           const Whole2& encode_steps, const Whole2& encode_ends, const std::optional<Floats2>& decode,
           const Whole2& decode_steps, const Whole2& decode_ends, const std::optional<Floats1>& bias)
      : run_(kernels(name)),
        tile_{rows, inputs, outputs},
        rank_(rank),
        encode_(rank, rows * inputs, encode, encode_steps, encode_ends),
        decode_(rows * outputs, rank, decode, decode_steps, decode_ends) {
    require(rows >= 1 && rows <= 8, "tiles have ", rows, " rows; 1 to 8 are supported");
    require(has_shuffles(inputs) && has_shuffles(outputs), "tiles have ", inputs, " inputs and ", outputs,
            " outputs; 1, 2, 3, 4 and 8 are supported");
    if (bias) bias_.assign(bias->data(), bias->data() + bias->size());
  }

  // panel [r, rows, K] from tile rows first ... first + rows - 1 of x [n, k].
  void encode(const Rows& x, const Planes& panel, int64_t first, int threads) const {
    const stl::Panel out = panel_of(panel);
    require(static_cast<int>(panel.shape(0)) == rank_, "the panel has ", panel.shape(0), " planes, but the rank is ",
            rank_);
    const int64_t tiles = pieces(x.shape(1), tile_.inputs);
    require(tiles == out.columns, "the panel has ", out.columns, " columns, but x has ", tiles, " tiles a row");
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

  // Tile rows first ... first + rows - 1 of y [n, m] from panel [r, rows, M], whose planes are padded by 16 values.
  void decode(const Planes& panel, const Rows& y, int64_t first, int threads) const {
    const stl::Panel in = panel_of(panel);
    require(static_cast<int>(panel.shape(0)) == rank_, "the panel has ", panel.shape(0), " planes, but the rank is ",
            rank_);
    const int64_t tiles = pieces(y.shape(1), tile_.outputs);
    require(tiles == in.columns, "the panel has ", in.columns, " columns, but y has ", tiles, " tiles a row");
    require(bias_.empty() || bias_.size() == y.shape(1), "the bias has ", bias_.size(), " values, but y has ",
            y.shape(1),
            " columns");
    require(in.plane >= static_cast<int64_t>(panel.shape(1)) * in.columns + 16,
            "each plane of the panel must be followed by 16 values of padding");
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

  // Columns of one panel of packed weights; 0 if this instruction set does not run whole layers.
  int width() const { return run_.width; }

  // y [n, m] = the layer of x [n, k]; weight [r, ceil(M / width), K, width] as float32 or bfloat16.
  void multiply(const Rows& x, const nb::ndarray<nb::ndim<4>, nb::c_contig, nb::device::cpu>& weight, const Rows& y,
                int threads) const {
    require(run_.width > 0, "this kernel has no `multiply`: use `encode`, products and `decode`");
    const int64_t depth = pieces(x.shape(1), tile_.inputs);
    const int64_t columns = pieces(y.shape(1), tile_.outputs);
    const bool half = is_bf16(x), half_weight = weight.dtype() == nb::dtype<int16_t>();
    require(half == is_bf16(y), "x and y must have the same dtype");
    require(half_weight || weight.dtype() == nb::dtype<float>(), "the weights must be float32 or bfloat16");
    require(static_cast<int>(weight.shape(0)) == rank_ && static_cast<int>(weight.shape(3)) == run_.width &&
                static_cast<int64_t>(weight.shape(2)) == depth &&
                static_cast<int64_t>(weight.shape(1)) == up(columns, run_.width) / run_.width,
            "the packed weights must be [", rank_, ", ", up(columns, run_.width) / run_.width, ", ", depth, ", ",
            run_.width, "]");
    require(x.shape(0) == y.shape(0), "x has ", x.shape(0), " rows, but y has ", y.shape(0));
    require(bias_.empty() || bias_.size() == y.shape(1), "the bias has ", bias_.size(), " values, but y has ",
            y.shape(1),
            " columns");
    const stl::Layer layer = {tile_, &encode_.view(), &decode_.view(), bias_.empty() ? nullptr : bias_.data(),
                              {weight.data(), half_weight, rank_, depth, columns}};
    const int64_t total = pieces(x.shape(0), tile_.rows);
    if (total == 0 || columns == 0) return;
    const stl::Block block = cut(layer.weight, run_.width, total, threads);
    nb::gil_scoped_release release;
    basis::parallel_for((total + block.rows - 1) / block.rows, threads, [&](int64_t index) {
      const int64_t first = index * block.rows, count = std::min(block.rows, total - first);
      float* kept = room(stl::room_floats(layer, block));
      if (half)
        run_.multiply_bf16(layer, block, matrix_of<const uint16_t>(x), matrix_of<uint16_t>(y), first, count, kept);
      else
        run_.multiply_f32(layer, block, matrix_of<const float>(x), matrix_of<float>(y), first, count, kept);
    });
  }

 private:
  const stl::Kernels& run_;
  stl::Tile tile_;
  int rank_;
  Side encode_, decode_;
  std::vector<float> bias_;
};

}  // namespace

NB_MODULE(_cpu, module) {
  module.def("supports", &supports, nb::arg("name"));
  nb::class_<Operator>(module, "Operator")
      .def(nb::init<const std::string&, int, int, int, int, const std::optional<Floats2>&, const Whole2&, const Whole2&,
                    const std::optional<Floats2>&, const Whole2&, const Whole2&, const std::optional<Floats1>&>(),
           nb::arg("name"), nb::arg("rows"), nb::arg("inputs"), nb::arg("outputs"), nb::arg("rank"),
           nb::arg("encode").none(), nb::arg("encode_steps"), nb::arg("encode_ends"), nb::arg("decode").none(),
           nb::arg("decode_steps"), nb::arg("decode_ends"), nb::arg("bias").none())
      .def_prop_ro("width", &Operator::width)
      .def("multiply", &Operator::multiply, nb::arg("x"), nb::arg("weight"), nb::arg("y"), nb::arg("threads"))
      .def("encode", &Operator::encode, nb::arg("x"), nb::arg("panel"), nb::arg("first"), nb::arg("threads"))
      .def("decode", &Operator::decode, nb::arg("panel"), nb::arg("y"), nb::arg("first"), nb::arg("threads"));
}
