// The CPU tile kernels of info_nce without torch, for ASan and UBSan, in every build that runs
// here: random tiles in heap blocks of exactly the size that a kernel may touch, against plain
// loops in double. Usage: info_nce SEED ROUNDS
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cpu/info_nce_kernels.h"
#include "cpu/instructions.h"

#define PACECORE_ISA isa_baseline
#define PACECORE_LANES 4
#include "cpu/info_nce_tile.h"

using namespace pacecore;

namespace {

std::mt19937_64 generator;

int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

double uniform(double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(generator);
}

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

template <typename Real>
std::vector<Real> drawn(int64_t count, double low, double high) {
  std::vector<Real> values(count);
  for (Real& value : values) value = Real(uniform(low, high));
  return values;
}

void expect(double got, double expected, double allowed, const std::string& what) {
  if (std::abs(got - expected) <= allowed * std::max(1.0, std::abs(expected))) return;
  std::printf("%s: %.17g, expected %.17g\n", what.c_str(), got, expected);
  std::exit(1);
}

// The rows of one side of a tile.
template <typename Real>
struct Side {
  int64_t rows;
  std::vector<Real> z, panels;
  std::vector<NceId<Real>> ids;
  std::vector<Real> fields[4];  // of NceRows

  Side(const NceTileKernels<Real>& kernels, int64_t rows, int64_t features)
      : rows(rows), z(drawn<Real>(rows * features, -1, 1)), ids(round_up(rows, 48), -1) {
    const int64_t width = kernels.panel, count = (rows + width - 1) / width;
    panels.resize(count * width * features);
    for (int64_t p = 0; p < count; ++p)
      kernels.pack_panel(z.data() + p * width * features, std::min(width, rows - p * width),
                         features, panels.data() + p * width * features);
    for (int64_t i = 0; i < rows; ++i) ids[i] = NceId<Real>(draw(0, rows / 3));
    fields[0] = drawn<Real>(ids.size(), 3, 4);  // above every logit
    for (int field = 1; field < 4; ++field) fields[field] = drawn<Real>(ids.size(), -1, 1);
  }

  NceRows<Real> as_rows() const {
    return {fields[0].data(), fields[1].data(), fields[2].data(), fields[3].data()};
  }
};

struct Sums {
  double exponentials = 0, positive_logits = 0, negative_logits = 0;
};

template <typename Real>
void expect_sums(const NceSums<double>& got, const Sums& expected, double allowed,
                 const std::string& what) {
  expect((got.positive + got.negative) * std::exp(got.largest), expected.exponentials, allowed,
         what + " exponentials");
  expect(got.positive_logits, expected.positive_logits, allowed, what + " positives");
  expect(got.negative_logits, expected.negative_logits, allowed, what + " negatives");
}

template <typename Real>
void check_tile(const NceTileKernels<Real>& kernels, const std::string& build) {
  const double allowed = sizeof(Real) == 8 ? 1e-13 : 1e-4;
  const std::string name = build + (sizeof(Real) == 8 ? " double " : " float ");
  const int64_t features = draw(1, 90), stride = round_up(features, 16);
  const bool diagonal = draw(0, 1);
  const Side<Real> left(kernels, draw(1, kNceTile), features);
  const Side<Real> other(kernels, draw(1, kNceTile), features);
  const Side<Real>& right = diagonal ? left : other;
  const int64_t rows = left.rows, columns = right.rows;
  const Real scale = Real(uniform(0.01, 0.04));
  const NceTile<Real> tile = {rows, columns, diagonal, left.ids.data(), right.ids.data(), scale};
  std::vector<Real> scores(kNceTile * kNceTile, Real(NAN));
  kernels.scores(left.panels.data(), rows, right.panels.data(), columns, features, scores.data());

  std::vector<double> logits(rows * columns), weights(rows * columns);
  std::vector<Sums> by_row(rows), by_column(columns);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      double dot = 0;
      for (int64_t k = 0; k < features; ++k)
        dot += double(left.z[i * features + k]) * double(right.z[j * features + k]);
      expect(scores[i * kNceTile + j], dot, allowed, name + "score");
      const double logit = dot * double(scale);
      logits[i * columns + j] = logit;
      if (diagonal && i == j) continue;
      const bool positive = left.ids[i] == right.ids[j];
      for (Sums* sums : {&by_row[i], &by_column[j]}) {
        sums->exponentials += std::exp(logit);
        (positive ? sums->positive_logits : sums->negative_logits) += logit;
      }
      double& weight = weights[i * columns + j];
      for (const auto& [side, row] : {std::pair(&left, i), std::pair(&right, j)}) {
        const double e = std::exp(logit - side->fields[0][row]);
        weight +=
            positive ? side->fields[2][row] * e + side->fields[3][row] : side->fields[1][row] * e;
      }
    }

  // z.z may be far above every logit.
  for (int64_t i = 0; diagonal && i < rows; ++i)
    scores[i * kNceTile + i] = Real(uniform(0, 4000) / scale);
  std::vector<Real> kept = scores;
  std::vector<NceSums<double>> sums(rows), column_sums(columns);
  kernels.row_sums(tile, kept.data(), sums.data());
  for (int64_t i = 0; i < rows; ++i)
    if (columns > diagonal) expect_sums<Real>(sums[i], by_row[i], allowed, name + "row");
  if (!diagonal) {
    kernels.column_sums(tile, kept.data(), column_sums.data());
    for (int64_t j = 0; j < columns; ++j)
      expect_sums<Real>(column_sums[j], by_column[j], allowed, name + "column");
  }

  kernels.weights(tile, left.as_rows(), right.as_rows(), true, kept.data());
  kernels.weights(tile, left.as_rows(), right.as_rows(), false, scores.data());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t at = i * kNceTile + j;
      expect(scores[at], weights[i * columns + j], allowed, name + "weight");
      if (kept[at] != scores[at]) expect(kept[at], scores[at], 0, name + "weight of a kept logit");
    }

  std::vector<Real> buffer(kNceTile * kernels.panel);
  for (const bool transposed : {false, true}) {
    const Side<Real>&into = transposed ? right : left, &from = transposed ? left : right;
    std::vector<Real> product(round_up(into.rows, 8) * stride);
    kernels.product(scores.data(), transposed, into.rows, from.rows, from.z.data(), features,
                    product.data(), stride, buffer.data());
    for (int64_t i = 0; i < into.rows; ++i)
      for (int64_t k = 0; k < features; ++k) {
        double sum = 0;
        for (int64_t j = 0; j < from.rows; ++j)
          sum += weights[transposed ? j * columns + i : i * columns + j] *
                 double(from.z[j * features + k]);
        expect(product[i * stride + k], sum, allowed, name + "product");
      }
  }
}

template <typename Real>
void check_builds() {
  check_tile(isa_baseline::kTileKernels<Real>, "baseline");
#if defined(__x86_64__)
  if (avx2_tile_kernels<Real>() && runs_avx2()) check_tile(*avx2_tile_kernels<Real>(), "avx2");
  if (avx512_tile_kernels<Real>() && runs_avx512())
    check_tile(*avx512_tile_kernels<Real>(), "avx512");
#endif
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) return 2;
  generator.seed(std::strtoull(words[1], nullptr, 10));
  const int64_t rounds = std::atoll(words[2]);
  for (int64_t round = 0; round < rounds; ++round) {
    check_builds<float>();
    check_builds<double>();
  }
  std::printf("%lld computed\n", static_cast<long long>(rounds));
}
