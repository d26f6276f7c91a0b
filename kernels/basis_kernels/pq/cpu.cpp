// The module: packs trees and tables, checks shapes and types, picks the instruction set.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <vector>

#include "blocks.h"
#include "pq.h"

namespace nb = nanobind;

namespace {

using namespace pq;

using Array = nb::ndarray<nb::device::cpu, nb::ro>;
using Target = nb::ndarray<nb::device::cpu>;

constexpr nb::dlpack::dtype kBf16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};

Dtype floating(nb::dlpack::dtype t, const char* what) {
  if (t == nb::dtype<float>()) return Dtype::f32;
  if (t == kBf16) return Dtype::bf16;
  throw nb::value_error((std::string(what) + " must be float32 or bfloat16").c_str());
}

void need(bool ok, const char* message) {
  if (!ok) throw nb::value_error(message);
}

template <class T>
const T* typed(const Array& a, const char* message) {
  need(a.dtype() == nb::dtype<T>(), message);
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

struct OwnedTrees : Trees {
  std::vector<int32_t> own_columns;
  Aligned<float> own_nodes;
  int64_t width = 0;  // 1 + the largest column: rows must be at least this wide
};

struct OwnedTables : Tables {
  Aligned<uint8_t> own_bytes;
  Aligned<float> own_floats, own_scale, own_offset;
};

OwnedTrees make_trees(const Array& columns, const Array& thresholds) {
  need(columns.ndim() == 2 && columns.shape(1) == kLevels && contiguous(columns), "split columns must be [C, 4]");
  const size_t c = columns.shape(0);
  need(c >= 1, "at least one codebook is needed");
  need(thresholds.ndim() == 2 && thresholds.shape(0) == c && thresholds.shape(1) == kBuckets - 1 && contiguous(thresholds),
       "thresholds must be [C, 15], C as in the split columns");
  const int32_t* j = typed<int32_t>(columns, "split columns must be int32");
  const float* v = typed<float>(thresholds, "thresholds must be float32");
  OwnedTrees trees;
  trees.codebooks = static_cast<int>(c);
  trees.own_columns.assign(j, j + c * kLevels);
  trees.columns = trees.own_columns.data();
  need(*std::min_element(j, j + c * kLevels) >= 0, "a split column is negative");
  trees.width = 1 + *std::max_element(j, j + c * kLevels);
  trees.own_nodes = Aligned<float>(c * kBuckets);
  float* nodes = trees.own_nodes.data();
  for (size_t i = 0; i < c; ++i, nodes += kBuckets) {
    std::copy_n(v + i * (kBuckets - 1), kBuckets - 1, nodes);
    nodes[kBuckets - 1] = nodes[7];
  }
  trees.nodes = trees.own_nodes.data();
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

OwnedTables make_tables(const Array& table, const Array& scale, const Array& offset) {
  need(table.ndim() == 3 && table.shape(1) == kBuckets && contiguous(table), "the table must be [C, 16, out]");
  need(table.shape(0) >= 1 && table.shape(2) >= 1, "at least one codebook and one output are needed");
  for (const Array* a : {&scale, &offset}) {
    need(a->ndim() == 1 && a->shape(0) == table.shape(2) && contiguous(*a), "scale and offset must be [out]");
  }
  OwnedTables t;
  t.codebooks = static_cast<int>(table.shape(0));
  t.outputs = static_cast<int64_t>(table.shape(2));
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
  t.own_scale = Aligned<float>(t.blocks * t.lanes);
  t.own_offset = Aligned<float>(t.blocks * t.lanes);
  std::copy_n(typed<float>(scale, "scale must be float32"), t.outputs, t.own_scale.data());
  std::copy_n(typed<float>(offset, "offset must be float32"), t.outputs, t.own_offset.data());
  t.scale = t.own_scale.data();
  t.offset = t.own_offset.data();
  return t;
}

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}
#endif

const Routines& routines(const std::string& isa) {
  if (isa == "scalar") return scalar_routines;
#if defined(__x86_64__)
  if (isa == "avx2" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2_routines;
  if (isa == "avx512" && has_avx512()) return avx512_routines;
#endif
  throw nb::value_error(("this processor has no " + isa).c_str());
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names{"scalar"};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) names.push_back("avx2");
  if (has_avx512()) names.push_back("avx512");
#endif
  return names;
}

Input input(const OwnedTrees& trees, const Array& x) {
  need(x.ndim() == 2, "x must be [n, in]");
  need(static_cast<int64_t>(x.shape(1)) >= trees.width, "x is narrower than the largest split column");
  return {x.data(), static_cast<int64_t>(x.shape(0)), x.stride(0), x.stride(1), floating(x.dtype(), "x")};
}

Output output(const Tables& tables, const Target& y, int64_t rows) {
  need(y.ndim() == 2 && static_cast<int64_t>(y.shape(0)) == rows && static_cast<int64_t>(y.shape(1)) == tables.outputs,
       "y must be [n, out]");
  need(y.stride(1) == 1 || y.shape(1) == 1, "y must be row-major");
  return {y.data(), y.stride(0), floating(y.dtype(), "y")};
}

void linear(const OwnedTrees& trees, const OwnedTables& tables, const Array& x, const Target& y, const std::string& isa,
            int threads) {
  need(trees.codebooks == tables.codebooks, "trees and tables have different numbers of codebooks");
  const Routines& chosen = routines(isa);
  const Input from = input(trees, x);
  const Output to = output(tables, y, from.rows);
  nb::gil_scoped_release release;
  run_linear(chosen, trees, tables, from, to, threads);
}

void encode(const OwnedTrees& trees, const Array& x, const Target& codes, const std::string& isa, int threads) {
  const Routines& chosen = routines(isa);
  const Input from = input(trees, x);
  need(codes.ndim() == 2 && static_cast<int64_t>(codes.shape(0)) == from.rows && codes.dtype() == nb::dtype<uint8_t>() &&
           static_cast<int>(codes.shape(1)) == trees.codebooks && (codes.stride(1) == 1 || codes.stride(0) == 1),
       "codes must be [n, C] uint8, row-major or column-major");
  uint8_t* to = static_cast<uint8_t*>(codes.data());
  const int64_t row_stride = codes.stride(0), codebook_stride = codes.stride(1);
  nb::gil_scoped_release release;
  run_encode(chosen, trees, from, to, row_stride, codebook_stride, threads);
}

void scan(const OwnedTables& tables, const Array& codes, const Target& y, const std::string& isa, int threads) {
  const Routines& chosen = routines(isa);
  need(codes.ndim() == 2 && static_cast<int>(codes.shape(1)) == tables.codebooks, "codes must be [n, C] uint8");
  const Codes from{typed<uint8_t>(codes, "codes must be uint8"), codes.stride(0), codes.stride(1)};
  const int64_t n = static_cast<int64_t>(codes.shape(0));
  const Output to = output(tables, y, n);
  nb::gil_scoped_release release;
  run_scan(chosen, tables, from, n, to, threads);
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.doc() = "Encode rows by hash trees and sum the table entries that the codes name.";
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
        nb::arg("threads"), "y [n, out] <- encode and scan of x [n, in], any strides; y row-major.");
  m.def("encode", encode, nb::arg("trees"), nb::arg("x"), nb::arg("codes"), nb::arg("isa"), nb::arg("threads"),
        "codes [n, C] uint8, row-major or column-major, <- x [n, in].");
  m.def("scan", scan, nb::arg("tables"), nb::arg("codes"), nb::arg("y"), nb::arg("isa"), nb::arg("threads"),
        "y [n, out] <- codes [n, C] uint8, of which the low four bits count.");
}
