// Python bindings: packs trees and tables, checks shapes and types, picks the instruction set.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "blocks.h"
#include "growing.h"
#include "pq.h"
#include "refuse.h"

namespace nb = nanobind;

namespace {

using namespace pq;
using basis::refuse;
using basis::require;

using Array = nb::ndarray<nb::device::cpu, nb::ro>;
using Target = nb::ndarray<nb::device::cpu>;

constexpr nb::dlpack::dtype kBf16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};

Dtype floating(nb::dlpack::dtype t, const char* what) {
  if (t == nb::dtype<float>()) return Dtype::f32;
  if (t == kBf16) return Dtype::bf16;
  refuse(what, " must be float32 or bfloat16");
}

Dtype any_of_four(nb::dlpack::dtype t) {
  if (t == nb::dtype<int16_t>()) return Dtype::i16;
  if (t == nb::dtype<int8_t>()) return Dtype::i8;
  if (t == nb::dtype<float>() || t == kBf16) return floating(t, "x");
  refuse("x must be float32, bfloat16, int16 or int8");
}

template <class T>
const T* typed(const Array& a, const char* message) {
  require(a.dtype() == nb::dtype<T>(), message);
  return static_cast<const T*>(a.data());
}

bool contiguous(const Array& a) {
  int64_t expected = 1;
  for (size_t i = a.ndim(); i-- > 0;) {
    if (a.shape(i) != 1 && a.stride(i) != expected) return false;
    expected *= static_cast<int64_t>(a.shape(i));
  }
  return true;
}

struct OwnedTables : Tables {
  Aligned<uint8_t> own_bytes, own_by_rows;
  Aligned<float> own_floats, own_constants;  // scale, offset, and the same for averages
};

// Thresholds as integers: x > v where x > floor(v). Null where one is below the type's range, or NaN.
template <class T>
const T* floors(const Aligned<float>& thresholds, Aligned<T>& own) {
  own = Aligned<T>(thresholds.size());
  for (size_t i = 0; i < thresholds.size(); ++i) {
    const float v = std::floor(thresholds.data()[i]);
    if (!(v >= static_cast<float>(std::numeric_limits<T>::min()))) return nullptr;
    constexpr T most = std::numeric_limits<T>::max();
    own.data()[i] = v >= static_cast<float>(most) ? most : static_cast<T>(v);
  }
  return own.data();
}

OwnedTrees make_trees(const Array& columns, const Array& thresholds) {
  require(columns.ndim() == 2 && columns.shape(1) == kLevels && contiguous(columns), "split columns must be [C, 4]");
  const size_t c = columns.shape(0);
  require(c >= 1, "at least one codebook is needed");
  require(thresholds.ndim() == 2 && thresholds.shape(0) == c && thresholds.shape(1) == kBuckets - 1 &&
              contiguous(thresholds),
          "thresholds must be [C, 15], with C = ", c, " as in the split columns");
  const int32_t* j = typed<int32_t>(columns, "split columns must be int32");
  const float* v = typed<float>(thresholds, "thresholds must be float32");
  OwnedTrees trees;
  trees.codebooks = static_cast<int>(c);
  trees.own_columns.assign(j, j + c * kLevels);
  trees.columns = trees.own_columns.data();
  const int32_t least = *std::min_element(j, j + c * kLevels);
  require(least >= 0, "split column ", least, " is negative");
  trees.width = 1 + *std::max_element(j, j + c * kLevels);
  for (int i = 0; i < 3; ++i) trees.lines[i] = lines_of(j, static_cast<int>(c), int64_t{1} << i);
  trees.own_floats = Aligned<float>(c * kLevels * kBuckets);
  float* floats = trees.own_floats.data();
  for (size_t i = 0; i < c; ++i) {
    for (int t = 0; t < kLevels; ++t) {
      for (int k = 0; k < kBuckets; ++k) *floats++ = v[i * (kBuckets - 1) + (1 << t) - 1 + (k >> (kLevels - t))];
    }
  }
  trees.floats = trees.own_floats.data();
  trees.shorts = floors(trees.own_floats, trees.own_shorts);
  trees.bytes = floors(trees.own_floats, trees.own_bytes);
  return trees;
}

template <class T>
void lay_out(const T* from, const Tables& t, T* to) {
  for (int64_t b = 0; b < t.blocks; ++b) {
    const int64_t first = b * t.lanes, count = std::min<int64_t>(t.lanes, t.outputs - first);
    for (int64_t e = 0; e < static_cast<int64_t>(t.codebooks) * kBuckets; ++e) {
      std::copy_n(from + e * t.outputs + first, count, to + (b * t.codebooks * kBuckets + e) * t.lanes);
    }
  }
}

void lay_out_by_rows(const uint8_t* from, OwnedTables& t) {
  t.padded = (t.codebooks + 3) / 4 * 4;
  const int64_t wide = (t.outputs + kOutputs - 1) / kOutputs * kOutputs;
  t.own_by_rows = Aligned<uint8_t>(static_cast<size_t>(wide) * t.padded * kBuckets);
  uint8_t* to = t.own_by_rows.data();
  for (int c = 0; c < t.codebooks; ++c) {
    for (int64_t m = 0; m < t.outputs; ++m) {
      const int64_t block = m / 4 * (t.padded / 4) + c / 4;
      uint8_t* entry = to + ((block * 4 + m % 4) * 4 + c % 4) * kBuckets;
      for (int k = 0; k < kBuckets; ++k) entry[k] = from[(static_cast<int64_t>(c) * kBuckets + k) * t.outputs + m];
    }
  }
  t.by_rows = to;
}

OwnedTables make_tables(const Array& table, const Array& scale, const Array& offset) {
  require(table.ndim() == 3 && table.shape(1) == kBuckets && contiguous(table), "the table must be [C, 16, out]");
  require(table.shape(0) >= 1 && table.shape(2) >= 1, "at least one codebook and one output are needed");
  for (const Array* a : {&scale, &offset}) {
    require(a->ndim() == 1 && a->shape(0) == table.shape(2) && contiguous(*a), "scale and offset must be [out]");
  }
  OwnedTables t;
  t.codebooks = static_cast<int>(table.shape(0));
  t.outputs = static_cast<int64_t>(table.shape(2));
  t.group = std::gcd(t.codebooks, kAveraged);
  const bool is_uint8 = table.dtype() == nb::dtype<uint8_t>();
  t.lanes = is_uint8 ? (t.outputs <= 32 ? 32 : 64) : (t.outputs <= 16 ? 16 : 32);
  t.blocks = (t.outputs + t.lanes - 1) / t.lanes;
  const size_t size = static_cast<size_t>(t.blocks) * t.codebooks * kBuckets * t.lanes;
  if (is_uint8) {
    t.own_bytes = Aligned<uint8_t>(size);
    lay_out(typed<uint8_t>(table, ""), t, t.own_bytes.data());
    t.bytes = t.own_bytes.data();
  } else {
    t.own_floats = Aligned<float>(size);
    lay_out(typed<float>(table, "the table must be uint8 or float32"), t, t.own_floats.data());
    t.floats = t.own_floats.data();
  }
  if (is_uint8) lay_out_by_rows(static_cast<const uint8_t*>(table.data()), t);
  const int64_t wide = t.blocks * t.lanes;
  t.own_constants = Aligned<float>(4 * wide);
  float* constants = t.own_constants.data();
  std::copy_n(typed<float>(scale, "scale must be float32"), t.outputs, constants);
  std::copy_n(typed<float>(offset, "offset must be float32"), t.outputs, constants + wide);
  const double excess = t.codebooks * std::log2(t.group) / 4;  // mean: each rounding up adds a quarter step per table
  for (int64_t m = 0; m < t.outputs; ++m) {
    constants[2 * wide + m] = static_cast<float>(t.group) * constants[m];
    constants[3 * wide + m] = static_cast<float>(constants[wide + m] - excess * constants[m]);
  }
  t.scale = constants;
  t.offset = constants + wide;
  t.averaged_scale = constants + 2 * wide;
  t.averaged_offset = constants + 3 * wide;
  return t;
}

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni"); }

const Routines avx512vnni_routines{
    [](auto... a) { avx512_routines.encode(a...); },
    [](auto... a) { avx512_routines.scan(a...); },
    avx512vnni_scan_rows,
};
#endif

const Routines& routines(const std::string& isa) {
  if (isa == "scalar") return scalar_routines;
#if defined(__x86_64__)
  if (isa == "avx2" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2_routines;
  if (isa == "avx512" && has_avx512()) return avx512_routines;
  if (isa == "avx512vnni" && has_vnni()) return avx512vnni_routines;
#elif defined(__aarch64__)
  if (isa == "neon") return neon_routines;
#endif
  refuse("this processor does not have the instruction set '", isa, "'");
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names{"scalar"};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) names.push_back("avx2");
  if (has_avx512()) names.push_back("avx512");
  if (has_vnni()) names.push_back("avx512vnni");
#elif defined(__aarch64__)
  names.push_back("neon");
#endif
  return names;
}

Input input(const OwnedTrees& trees, const Array& x) {
  require(x.ndim() == 2, "x must be [n, in]");
  require(static_cast<int64_t>(x.shape(1)) >= trees.width, "x has ", x.shape(1),
          " columns, but the trees split on column ", trees.width - 1);
  const Dtype dtype = any_of_four(x.dtype());
  require(dtype != Dtype::i16 || trees.shorts,
          "int16 rows cannot be compared with a threshold that is NaN or below -32768");
  require(dtype != Dtype::i8 || trees.bytes,
          "int8 rows cannot be compared with a threshold that is NaN or below -128");
  return {x.data(), static_cast<int64_t>(x.shape(0)), x.stride(0), x.stride(1), dtype};
}

Output output(const OwnedTables& tables, const Target& y, int64_t rows, bool averaged) {
  require(y.ndim() == 2 && static_cast<int64_t>(y.shape(0)) == rows &&
              static_cast<int64_t>(y.shape(1)) == tables.outputs,
          "y must be [n, out], here [", rows, ", ", tables.outputs, "]");
  const bool whole = tables.by_rows && (tables.codebooks <= kExactSums || averaged);
  require(y.stride(1) == 1 || y.shape(1) == 1 || (whole && y.stride(0) == 1),
          "y must be row-major; with uint8 tables of at most 256 codebooks it may also be column-major");
  require(!averaged || (tables.by_rows && tables.codebooks / tables.group <= kExactSums),
          "averaged sums need uint8 tables in at most ", kExactSums, " groups");
  const int64_t column_stride = y.stride(1) == 1 || y.shape(1) == 1 ? 1 : y.stride(1);
  return {y.data(), y.stride(0), column_stride, floating(y.dtype(), "y")};
}

void linear(const OwnedTrees& trees, const OwnedTables& tables, const Array& x, const Target& y, const std::string& isa,
            int threads, bool averaged) {
  require(trees.codebooks == tables.codebooks, "the trees have ", trees.codebooks, " codebooks, but the tables have ",
          tables.codebooks);
  const Routines& chosen = routines(isa);
  const Input from = input(trees, x);
  const Output to = output(tables, y, from.rows, averaged);
  nb::gil_scoped_release release;
  run(chosen, &trees, from, nullptr, tables, averaged, to, threads);
}

void encode(const OwnedTrees& trees, const Array& x, const Target& codes, const std::string& isa, int threads) {
  const Routines& chosen = routines(isa);
  const Input from = input(trees, x);
  require(codes.ndim() == 2 && static_cast<int64_t>(codes.shape(0)) == from.rows &&
              codes.dtype() == nb::dtype<uint8_t>() && static_cast<int>(codes.shape(1)) == trees.codebooks &&
              (codes.stride(1) == 1 || codes.stride(0) == 1),
          "codes must be [n, C] uint8, row-major or column-major, with C = ", trees.codebooks);
  uint8_t* to = static_cast<uint8_t*>(codes.data());
  const int64_t row_stride = codes.stride(0), codebook_stride = codes.stride(1);
  nb::gil_scoped_release release;
  run_encode(chosen, trees, from, to, row_stride, codebook_stride, threads);
}

void scan(const OwnedTables& tables, const Array& codes, const Target& y, const std::string& isa, int threads,
          bool averaged) {
  const Routines& chosen = routines(isa);
  require(codes.ndim() == 2 && static_cast<int>(codes.shape(1)) == tables.codebooks,
          "codes must be [n, C] uint8, with C = ", tables.codebooks);
  const Codes from{typed<uint8_t>(codes, "codes must be uint8"), codes.stride(0), codes.stride(1)};
  const Input rows{nullptr, static_cast<int64_t>(codes.shape(0)), 0, 0, Dtype::f32};
  const Output to = output(tables, y, rows.rows, averaged);
  nb::gil_scoped_release release;
  run(chosen, nullptr, rows, &from, tables, averaged, to, threads);
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.doc() = "Encode rows by hash trees and sum the table entries that the codes select.";
  nb::class_<OwnedTrees>(m, "Trees", "Split columns [C, 4] int32 and thresholds [C, 15] float32.")
      .def("__init__", [](OwnedTrees* self, const Array& columns, const Array& thresholds) {
        new (self) OwnedTrees(make_trees(columns, thresholds));
      });
  nb::class_<OwnedTables>(m, "Tables", "Table [C, 16, out] uint8 or float32, scale [out] and offset [out] float32.")
      .def("__init__", [](OwnedTables* self, const Array& table, const Array& scale, const Array& offset) {
        new (self) OwnedTables(make_tables(table, scale, offset));
      })
      .def_prop_ro("out_features", [](const OwnedTables& t) { return t.outputs; });
  m.def("instruction_sets", instruction_sets, "Names of the instruction sets this processor has, slowest first.");
  m.def("linear", linear, nb::arg("trees"), nb::arg("tables"), nb::arg("x"), nb::arg("y"), nb::arg("isa"),
        nb::arg("threads"), nb::arg("averaged") = false, "y [n, out] <- encode and scan of x [n, in], any strides.");
  m.def("encode", encode, nb::arg("trees"), nb::arg("x"), nb::arg("codes"), nb::arg("isa"), nb::arg("threads"),
        "codes [n, C] uint8, row-major or column-major, <- x [n, in].");
  m.def("scan", scan, nb::arg("tables"), nb::arg("codes"), nb::arg("y"), nb::arg("isa"), nb::arg("threads"),
        nb::arg("averaged") = false, "y [n, out] <- codes [n, C] uint8, of which only the low four bits are used.");
  bind_growing(m);
}
