// Grows and improves one hash tree on rows whose columns are divided into intervals; basis_search/families/pq/splits.py
// has the same algorithm in Python.
#include "growing.h"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pq.h"
#include "refuse.h"

namespace nb = nanobind;

namespace {

using namespace pq;
using basis::require;

constexpr int kNever = 255;
constexpr int kIntervals = 64;
constexpr int kPad = 8;

template <class T, int dims>
using In = nb::ndarray<const T, nb::ndim<dims>, nb::c_contig, nb::device::cpu>;
template <class T, int dims>
using InOut = nb::ndarray<T, nb::ndim<dims>, nb::c_contig, nb::device::cpu>;

struct Rows {
  const uint8_t* bins;  // [in][n]
  const int32_t* edges;  // [in]: number of candidate thresholds, one fewer than intervals
  const float* residual;  // [n][width]
  int64_t n;
  int width;
  const uint8_t* column(int64_t j) const { return bins + j * n; }
};

// Refuses a column of x, called `what`, that bins [in, n] do not have.
void check_column(const char* what, int64_t column, const In<uint8_t, 2>& bins) {
  const int64_t count = static_cast<int64_t>(bins.shape(0));
  require(column >= 0 && column < count, what, " ", column, " is out of range: bins have ", count, " columns");
}

Rows rows(const In<uint8_t, 2>& bins, const In<int32_t, 1>& edges, const In<float, 2>& residual,
          const In<int64_t, 1>& candidates) {
  require(bins.shape(1) == residual.shape(0) && bins.shape(0) == edges.shape(0),
          "bins must be [in, n], edges [in] and residual [n, q]");
  require(residual.shape(1) > 0 && residual.shape(1) % kPad == 0, "the residual's width is ", residual.shape(1),
          "; it must be a multiple of ", kPad);
  for (size_t i = 0; i < edges.shape(0); ++i)
    require(edges.data()[i] >= 0 && edges.data()[i] < kIntervals, "column ", i, " has ", edges.data()[i],
            " thresholds; 0 to ", kIntervals - 1, " are allowed");
  for (size_t i = 0; i < bins.size(); ++i)
    require(bins.data()[i] < kIntervals, "interval ", int{bins.data()[i]}, " is out of range: columns have at most ",
            kIntervals, " intervals");
  for (size_t i = 0; i < candidates.shape(0); ++i) check_column("candidate column", candidates.data()[i], bins);
  require(candidates.shape(0) > 0, "at least one candidate column is needed");
  return {bins.data(), edges.data(), residual.data(), static_cast<int64_t>(residual.shape(0)),
          static_cast<int>(residual.shape(1))};
}

void check_tree(const Rows& r, const In<uint8_t, 2>& bins, const InOut<int64_t, 1>& columns,
                const InOut<uint8_t, 1>& cuts, const InOut<uint8_t, 1>& codes) {
  require(columns.shape(0) == kLevels && cuts.shape(0) == kBuckets - 1 && static_cast<int64_t>(codes.shape(0)) == r.n,
          "columns must be [4], cuts [15] and codes [n]");
  for (int t = 0; t < kLevels; ++t) check_column("split column", columns.data()[t], bins);
  for (int64_t i = 0; i < r.n; ++i)
    require(codes.data()[i] < kBuckets, "code ", int{codes.data()[i]}, " is out of range: it is above ", kBuckets - 1);
}

struct Split {
  double price = std::numeric_limits<double>::infinity();
  int64_t column = -1;
  uint8_t cuts[kBuckets / 2];
};

void leaf_means(const Rows& r, const uint8_t* codes, double ridge, std::vector<float>& table) {
  std::vector<double> sums(kBuckets * r.width, 0.0);
  int64_t counts[kBuckets] = {};
  for (int64_t i = 0; i < r.n; ++i) {
    ++counts[codes[i]];
    double* sum = &sums[codes[i] * r.width];
    for (int k = 0; k < r.width; ++k) sum[k] += r.residual[i * r.width + k];
  }
  for (int leaf = 0; leaf < kBuckets; ++leaf)
    for (int k = 0; k < r.width; ++k)
      table[leaf * r.width + k] =
          static_cast<float>(sums[leaf * r.width + k] / (static_cast<double>(counts[leaf]) + ridge));
}

// (T0 - T1) . (2 R - T0 - T1): the change of the squared error if the row goes right.
float going_right(const float* left, const float* right, const float* wanted, int width) {
  float part[kPad] = {};  // eight partial sums, which the compiler keeps in one or two registers
  for (int k = 0; k < width; k += kPad)
    for (int l = 0; l < kPad; ++l)
      part[l] += (left[k + l] - right[k + l]) * (2 * wanted[k + l] - left[k + l] - right[k + l]);
  return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
}

// The column and cuts of one level with the least error.
Split cheapest(const Rows& r, const In<int64_t, 1>& candidates, const std::vector<float>& change,
               const std::vector<uint8_t>& node, int nodes) {
  Split best;
  std::vector<float> sums(nodes * kIntervals);
  for (size_t c = 0; c < candidates.shape(0); ++c) {
    const int64_t j = candidates.data()[c];
    const uint8_t* bins = r.column(j);
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t i = 0; i < r.n; ++i) sums[node[i] * kIntervals + bins[i]] += change[i];
    Split split;
    split.price = 0;
    split.column = j;
    for (int x = 0; x < nodes; ++x) {
      double beyond = 0, least = 0;
      int cut = kNever;
      for (int k = r.edges[j]; k >= 1; --k) {
        beyond += sums[x * kIntervals + k];
        if (beyond < 0 && beyond <= least) least = beyond, cut = k - 1;
      }
      split.price += least;
      split.cuts[x] = static_cast<uint8_t>(cut);
    }
    if (split.price < best.price) best = split;
  }
  return best;
}

int child(const Rows& r, const int64_t* columns, const uint8_t* cuts, int level, int node, int64_t row) {
  for (int t = level; t < kLevels; ++t) node = 2 * node + (r.column(columns[t])[row] > cuts[(1 << t) - 1 + node]);
  return node;
}

bool improve(const In<uint8_t, 2>& bins, const In<int32_t, 1>& edges, const In<float, 2>& residual,
             const In<int64_t, 1>& candidates, double ridge, const InOut<int64_t, 1>& columns,
             const InOut<uint8_t, 1>& cuts, const InOut<uint8_t, 1>& codes) {
  const Rows r = rows(bins, edges, residual, candidates);
  check_tree(r, bins, columns, cuts, codes);
  int64_t* const column = columns.data();
  uint8_t *const cut = cuts.data(), *const code = codes.data();
  nb::gil_scoped_release release;
  std::vector<float> table(kBuckets * r.width), change(r.n);
  std::vector<uint8_t> node(r.n);
  bool better = false;
  for (int t = kLevels - 1; t >= 0; --t) {
    leaf_means(r, code, ridge, table);
    double now = 0;
    for (int64_t i = 0; i < r.n; ++i) {
      node[i] = code[i] >> (kLevels - t);
      const int left = child(r, column, cut, t + 1, 2 * node[i], i);
      const int right = child(r, column, cut, t + 1, 2 * node[i] + 1, i);
      change[i] = going_right(&table[left * r.width], &table[right * r.width], &r.residual[i * r.width], r.width);
      if (code[i] >> (kLevels - 1 - t) & 1) now += change[i];
    }
    const Split split = cheapest(r, candidates, change, node, 1 << t);
    if (!(split.price < now - 1e-6 * std::abs(now))) continue;
    column[t] = split.column;
    std::copy(split.cuts, split.cuts + (1 << t), cut + (1 << t) - 1);
    for (int64_t i = 0; i < r.n; ++i) code[i] = static_cast<uint8_t>(child(r, column, cut, 0, 0, i));
    better = true;
  }
  return better;
}

void grow(const In<uint8_t, 2>& bins, const In<int32_t, 1>& edges, const In<float, 2>& residual,
          const In<int64_t, 1>& candidates, double ridge, const InOut<int64_t, 1>& columns,
          const InOut<uint8_t, 1>& cuts, const InOut<uint8_t, 1>& codes) {
  const Rows r = rows(bins, edges, residual, candidates);
  check_tree(r, bins, columns, cuts, codes);
  uint8_t* const code = codes.data();
  nb::gil_scoped_release release;
  const int width = r.width + 1;  // the last sum counts rows
  std::vector<float> sums(kBuckets / 2 * kIntervals * width), all(width), head(width);
  std::fill(code, code + r.n, uint8_t{0});
  std::fill(cuts.data(), cuts.data() + kBuckets - 1, uint8_t{kNever});
  for (int t = 0; t < kLevels; ++t) {
    Split best;
    for (size_t c = 0; c < candidates.shape(0); ++c) {
      const int64_t j = candidates.data()[c];
      const uint8_t* column = r.column(j);
      std::fill(sums.begin(), sums.begin() + (int64_t{kIntervals} << t) * width, 0.0f);
      for (int64_t i = 0; i < r.n; ++i) {
        float* sum = &sums[(code[i] * kIntervals + column[i]) * width];
        for (int k = 0; k < r.width; ++k) sum[k] += r.residual[i * r.width + k];
        sum[r.width] += 1;
      }
      Split split;
      split.price = 0;
      split.column = j;
      for (int x = 0; x < 1 << t; ++x) {
        std::fill(all.begin(), all.end(), 0.0f);
        std::fill(head.begin(), head.end(), 0.0f);
        const float* of_node = &sums[x * kIntervals * width];
        for (int b = 0; b <= r.edges[j]; ++b)
          for (int k = 0; k < width; ++k) all[k] += of_node[b * width + k];
        double least = 0;
        int cut = kNever;
        for (int b = 0; b < r.edges[j]; ++b) {
          double explained = 0, rest = 0;
          for (int k = 0; k < width; ++k) head[k] += of_node[b * width + k];
          for (int k = 0; k < r.width; ++k)
            explained += head[k] * head[k], rest += (all[k] - head[k]) * (all[k] - head[k]);
          const double price = -explained / (head[r.width] + ridge) - rest / (all[r.width] - head[r.width] + ridge);
          if (price < least) least = price, cut = b;
        }
        split.price += least;
        split.cuts[x] = static_cast<uint8_t>(cut);
      }
      if (split.price < best.price) best = split;
    }
    columns.data()[t] = best.column;
    std::copy(best.cuts, best.cuts + (1 << t), cuts.data() + (1 << t) - 1);
    const uint8_t* column = r.column(best.column);
    for (int64_t i = 0; i < r.n; ++i) code[i] = static_cast<uint8_t>(2 * code[i] + (column[i] > best.cuts[code[i]]));
  }
}

}  // namespace

void bind_growing(nb::module_& m) {
  m.def("grow", grow, nb::arg("bins"), nb::arg("edges"), nb::arg("residual"), nb::arg("candidates"), nb::arg("ridge"),
        nb::arg("columns"), nb::arg("cuts"), nb::arg("codes"),
        "Grow a tree on residual [n, q]; writes columns [4] int64, cuts [15] uint8 and codes [n] uint8.");
  m.def("improve", improve, nb::arg("bins"), nb::arg("edges"), nb::arg("residual"), nb::arg("candidates"),
        nb::arg("ridge"), nb::arg("columns"), nb::arg("cuts"), nb::arg("codes"),
        "Improve a tree in one pass over its levels, the last first; true if a level was changed.");
}
