// info_nce on the CPU. The similarity matrix is walked in square tiles, each made twice: once for
// the sums of its rows, once, where a gradient is wanted, for the product with z. Of a matrix that
// is no larger than a tile, and whose gradient follows at once, the logits stay. It is symmetric,
// so that a tile above the diagonal also serves the one below.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "info_nce_kernels.h"
#include "info_nce_op.h"
#include "instructions.h"
#include "library.h"

#define PACECORE_ISA isa_baseline
#define PACECORE_LANES 4
#include "info_nce_tile.h"

namespace pacecore {
namespace {

using torch::stable::empty;
using torch::stable::parallel_for;

template <typename Real>
constexpr ScalarType kType = sizeof(Real) == 8 ? ScalarType::Double : ScalarType::Float;

template <typename Real>
const NceTileKernels<Real>& best_tile_kernels() {
#if defined(__x86_64__)
  if (avx512_tile_kernels<Real>() && runs_avx512()) return *avx512_tile_kernels<Real>();
  if (avx2_tile_kernels<Real>() && runs_avx2()) return *avx2_tile_kernels<Real>();
#endif
  return isa_baseline::kTileKernels<Real>;
}

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

template <typename Real>
Real* data(const Tensor& tensor) {
  return static_cast<Real*>(tensor.mutable_data_ptr());
}

Tensor as(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// z cut into blocks of rows, and what every tile needs of them.
template <typename Real>
struct Blocks {
  const NceTileKernels<Real>& kernels = best_tile_kernels<Real>();
  int64_t n, features;
  int64_t size;                    // rows of a block
  int64_t count;                   // blocks
  Real scale;                      // 1 / temperature
  Tensor z;                        // (n, D) contiguous, Real, normalised where that is wanted
  std::vector<NceId<Real>> ids;    // (padded n,) a number for each group, then -1
  std::vector<int64_t> positives;  // (n,)
  bool keeps;                      // all scores, which fit a tile, and then the logits
  Tensor memory;                   // of the three that follow
  Real* kept;                      // (kNceTile, kNceTile), or nothing
  Real* scratch;                   // (threads, scratch_size())
  Real* panels;                    // z packed

  Blocks(const Tensor& z, const Tensor& groups, double temperature, bool gradient_follows)
      : n(z.size(0)),
        features(z.size(1)),
        scale(Real(1 / temperature)),
        z(z),
        keeps(gradient_follows && n <= kNceTile) {
    // At least four blocks where they can fill panels, for the threads; the number of threads
    // itself must not decide, or the order of the sums and so the last bits would follow it.
    size = std::min(kNceTile, round_up((n + 3) / 4, 48));
    count = (n + size - 1) / size;
    number_groups(in_one_piece(groups));
    const int64_t kept_size = keeps ? kNceTile * kNceTile : 0;
    const int64_t all_scratch = torch::stable::get_num_threads() * scratch_size();
    const int64_t packed = round_up(n, kernels.panel) * features;
    memory = empty({kept_size + all_scratch + packed}, kType<Real>);
    kept = data<Real>(memory);
    scratch = kept + kept_size;
    panels = scratch + all_scratch;
    pack();
  }

  int64_t rows(int64_t block) const { return std::min(size, n - block * size); }

  const Real* panel(int64_t block) const { return panels + block * size * features; }

  NceTile<Real> tile(int64_t row_block, int64_t column_block) const {
    return {rows(row_block),
            rows(column_block),
            row_block == column_block,
            ids.data() + row_block * size,
            ids.data() + column_block * size,
            scale};
  }

  // Of one thread: the buffer of a product, and the scores of a tile, unless all are kept.
  int64_t scratch_size() const { return kNceTile * (kernels.panel + (keeps ? 0 : kNceTile)); }

  Real* own_buffer() const {
    uint32_t thread = 0;
    torch_get_thread_idx(&thread);
    return scratch + thread * scratch_size();
  }

  // Where the scores of a tile are; tiles that are kept do not overlap.
  Real* place(int64_t row_block, int64_t column_block) const {
    if (!keeps) return own_buffer() + kNceTile * kernels.panel;
    return kept + row_block * size * kNceTile + column_block * size;
  }

  Real* scores(const NceTile<Real>& tile, int64_t row_block, int64_t column_block) const {
    Real* at = place(row_block, column_block);
    kernels.scores(panel(row_block), tile.rows, panel(column_block), tile.columns, features, at);
    return at;
  }

  // Calls body(row block, column block) once for each unordered pair of blocks. In each step every
  // block is the row block of at most one call and the column block of at most one, so that calls
  // may write to their own rows and, elsewhere, to their columns; and the order in which a block
  // sees the others depends on neither the threads nor their timing.
  template <typename Body>
  void for_each_pair(const Body& body) const {
    // A thread is worth waking for some 4 million operations, 50 microseconds of them.
    const int64_t grain = std::max<int64_t>(1, 4'000'000 / (2 * size * size * features));
    for (int64_t step = 0; step <= count / 2; ++step) {
      const int64_t calls = step > 0 && 2 * step == count ? step : count;
      parallel_for(0, calls, grain, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) body(block, (block + step) % count);
      });
    }
  }

 private:
  void number_groups(const Tensor& groups) {
    const int64_t* labels = data<int64_t>(groups);
    std::vector<int64_t> sorted(labels, labels + n);
    std::sort(sorted.begin(), sorted.end());
    ids.assign(round_up(n, 48), NceId<Real>(-1));  // whole panels in every instruction set
    positives.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      const auto first = std::lower_bound(sorted.begin(), sorted.end(), labels[i]);
      ids[i] = NceId<Real>(first - sorted.begin());
      positives[i] = std::upper_bound(first, sorted.end(), labels[i]) - first - 1;
    }
  }

  void pack() {
    const int64_t width = kernels.panel;
    const Real* from = data<Real>(z);
    parallel_for(0, (n + width - 1) / width, 8, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        kernels.pack_panel(from + p * width * features, std::min(width, n - p * width), features,
                           panels + p * width * features);
    });
  }
};

// z (n, D) as the tiles read it, and the inverse of what each row was divided by. Divided before
// they are multiplied, rows of any length have products that are finite.
template <typename Real>
Tensor prepare(const Tensor& z_any, bool normalize, Real* inverse /* (n,) */) {
  const Tensor z = in_one_piece(as(z_any, kType<Real>));
  const int64_t n = z.size(0), features = z.size(1);
  std::fill_n(inverse, n, Real(1));
  if (!normalize) return z;
  const Tensor result = torch::stable::empty_like(z);
  for (int64_t i = 0; i < n; ++i) {
    const Real* row = data<Real>(z) + i * features;
    double square = 0;
    for (int64_t k = 0; k < features; ++k) square += double(row[k]) * double(row[k]);
    const double norm = std::sqrt(square), factor = norm < kNceSmallestNorm ? 0 : 1 / norm;
    inverse[i] = Real(factor);
    for (int64_t k = 0; k < features; ++k)
      data<Real>(result)[i * features + k] = Real(double(row[k]) * factor);
  }
  return result;
}

// Whether the block has rows that the loss adds up over.
template <typename Real>
bool has_wanted(const Blocks<Real>& blocks, const NceOptions& options, int64_t block) {
  const int64_t first = block * blocks.size;
  return options.batch || (first < options.anchor_start + options.anchor_count &&
                           first + blocks.rows(block) > options.anchor_start);
}

template <typename Real>
std::vector<NceSums<double>> all_sums(const Blocks<Real>& blocks, const NceOptions& options) {
  const int64_t size = blocks.size;
  std::vector<NceSums<double>> by_row(blocks.n), by_column(blocks.n);
  blocks.for_each_pair([&](int64_t row, int64_t column) {
    if (!has_wanted(blocks, options, row) && !has_wanted(blocks, options, column)) return;
    const NceTile<Real> tile = blocks.tile(row, column);
    Real* scores = blocks.scores(tile, row, column);
    blocks.kernels.row_sums(tile, scores, by_row.data() + row * size);
    if (row != column) blocks.kernels.column_sums(tile, scores, by_column.data() + column * size);
  });
  for (int64_t i = 0; i < blocks.n; ++i) merge(by_row[i], by_column[i]);
  return by_row;
}

// Means over the anchors, for loss, temperature and log.
template <typename Real>
struct Outcome {
  double loss = 0, slope = 0;
  double positive_logits = 0, negative_logits = 0;
  int64_t positive_pairs = 0, negative_pairs = 0;
  int64_t pulling = 0, nearest_is_positive = 0;  // anchors with a positive; of them

  Outcome(const Blocks<Real>& blocks, const std::vector<NceSums<double>>& sums,
          const NceOptions& options, Real* rows /* (4, n) */) {
    const int64_t n = blocks.n, anchors = options.anchor_count;
    const int64_t end = options.anchor_start + anchors;
    NceSums<double> batch;
    if (options.batch)
      for (const NceSums<double>& row : sums) merge(batch, row);
    for (int64_t i = options.anchor_start; i < end; ++i) {
      const int64_t positives = blocks.positives[i];
      const NceTerms terms =
          options.batch ? batch_terms(sums[i], batch, positives) : anchor_terms(sums[i], positives);
      loss += terms.loss / double(anchors);
      slope += terms.slope / double(anchors);
      positive_logits += sums[i].positive_logits;
      negative_logits += sums[i].negative_logits;
      positive_pairs += positives;
      negative_pairs += n - 1 - positives;
      pulling += positives > 0;
      nearest_is_positive += positives > 0 && sums[i].nearest_positive > sums[i].nearest_negative;
    }
    for (int64_t i = 0; i < n; ++i) {
      const bool anchor = i >= options.anchor_start && i < end;
      NceRow<Real> row;
      if (options.batch)
        row = batch_row<Real>(batch, anchor, blocks.positives[i], anchors, pulling);
      else if (anchor)
        row = anchor_row<Real>(sums[i], blocks.positives[i], anchors);
      rows[i] = row.reference;
      rows[n + i] = row.all;
      rows[2 * n + i] = row.positive;
      rows[3 * n + i] = row.constant;
    }
  }
};

// Within its scope numbers below the smallest normal one are 0: beside a softmax they change
// nothing, and each costs a hundred cycles. Not on other processors, where they cost little.
class WithoutSubnormals {
#if defined(__x86_64__)
  const unsigned before = __builtin_ia32_stmxcsr();

 public:
  WithoutSubnormals() { __builtin_ia32_ldmxcsr(before | 0x8040); }
  ~WithoutSubnormals() { __builtin_ia32_ldmxcsr(before); }
#else
 public:
  WithoutSubnormals() {}
#endif
};

// d loss / d z times `scale`, of z's type. rows: (5, n) as info_nce returns them.
template <typename Real>
Tensor gradient(const Blocks<Real>& blocks, const Tensor& rows, const NceOptions& options,
                double scale) {
  const int64_t n = blocks.n, features = blocks.features, size = blocks.size;
  const int64_t stride = round_up(features, 16);  // whole vectors in every instruction set
  // A step writes a block's rows once as row block and once as column block: to one array each.
  // The only block is no column block.
  const int64_t half = round_up(n, 8) * stride, all_sums = blocks.count > 1 ? 2 * half : half;
  const int64_t padded = round_up(n, 48);
  const Tensor memory = torch::stable::new_zeros(blocks.z, {all_sums + 4 * padded});
  Real *const sums = data<Real>(memory), *const fields = sums + all_sums;
  const Real* const given = data<Real>(rows);
  const Real* const z = data<Real>(blocks.z);
  for (int64_t field = 0; field < 4; ++field)
    std::copy_n(given + field * n, n, fields + field * padded);
  const auto part = [&](int64_t block) {
    const Real* at = fields + block * size;
    return NceRows<Real>{at, at + padded, at + 2 * padded, at + 3 * padded};
  };
  blocks.for_each_pair([&](int64_t row, int64_t column) {
    if (!has_wanted(blocks, options, row) && !has_wanted(blocks, options, column)) return;
    const NceTile<Real> tile = blocks.tile(row, column);
    Real* weights = blocks.keeps ? blocks.place(row, column) : blocks.scores(tile, row, column);
    Real* buffer = blocks.own_buffer();
    const WithoutSubnormals within;
    blocks.kernels.weights(tile, part(row), part(column), blocks.keeps, weights);
    blocks.kernels.product(weights, false, tile.rows, tile.columns, z + column * size * features,
                           features, sums + row * size * stride, stride, buffer);
    if (row != column)
      blocks.kernels.product(weights, true, tile.columns, tile.rows, z + row * size * features,
                             features, sums + half + column * size * stride, stride, buffer);
  });
  const Tensor result = empty({n, features}, kType<Real>);
  Real* const results = data<Real>(result);
  parallel_for(0, n, 64, [&](int64_t begin, int64_t end) {
    const Real* inverse_norm = given + 4 * n;
    for (int64_t i = begin; i < end; ++i) {
      Real* sum = sums + i * stride;
      const Real* row = z + i * features;
      Real* out = results + i * features;
      if (blocks.count > 1)
        for (int64_t k = 0; k < features; ++k) sum[k] += sum[half + k];
      double along = 0;  // the part along z, which normalising takes out
      if (options.normalize)
        for (int64_t k = 0; k < features; ++k) along += double(row[k]) * sum[k];
      const Real pull = Real(along), unit = Real(scale * double(inverse_norm[i]));
      for (int64_t k = 0; k < features; ++k)
        out[k] = unit * (blocks.scale * (sum[k] - pull * row[k]));
    }
  });
  return result;
}

double temperature_of(const std::optional<Tensor>& tensor, double number) {
  double value = number;
  if (tensor)
    value = tensor->scalar_type() == ScalarType::Double ? *data<double>(*tensor)
                                                        : *data<float>(*tensor);
  constexpr float smallest = std::numeric_limits<float>::min();
  PACECORE_CHECK(value >= smallest && value <= 1 / smallest, "info_nce: temperature must be from ",
                 smallest, " to ", 1 / smallest, ", got ", value);
  return value;
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename Real>
Results forward(const Tensor& z, const Tensor& groups, const NceOptions& options,
                bool leave_gradient) {
  const int64_t n = z.size(0);
  Tensor loss = empty({}, kType<Real>), slope = empty({}, kType<Real>);
  Tensor summary = empty({3}, kType<Real>), rows = empty({5, n}, kType<Real>);
  const double temperature = temperature_of(options.temperature, options.temperature_number);
  if (n == 0) {
    *data<Real>(loss) = *data<Real>(slope) = 0;
    std::fill_n(data<Real>(summary), 3, Real(NAN));
    return {loss, summary, slope, rows, empty({0, z.size(1)}, z.scalar_type())};
  }
  const Tensor prepared = prepare<Real>(z, options.normalize, data<Real>(rows) + 4 * n);
  const Blocks<Real> blocks(prepared, groups, temperature, leave_gradient);
  const auto sums = all_sums(blocks, options);
  const Outcome<Real> outcome(blocks, sums, options, data<Real>(rows));
  *data<Real>(loss) = Real(outcome.loss);
  *data<Real>(slope) = Real(-outcome.slope / temperature);
  Real* means = data<Real>(summary);
  means[0] = Real(outcome.positive_logits * temperature / double(outcome.positive_pairs));
  means[1] = Real(outcome.negative_logits * temperature / double(outcome.negative_pairs));
  means[2] = Real(double(outcome.nearest_is_positive) / double(outcome.pulling));
  const Tensor grad_z = leave_gradient ? as(gradient(blocks, rows, options, 1.0), z.scalar_type())
                                       : empty({0, z.size(1)}, z.scalar_type());
  return {loss, summary, slope, rows, grad_z};
}

Results info_nce(const Tensor& z, const Tensor& groups, const std::optional<Tensor>& temperature,
                 double temperature_number, bool batch, bool normalize, int64_t anchor_start,
                 int64_t anchor_count, bool leave_gradient) {
  check_info_nce(z, groups, temperature);
  check_anchors(z, anchor_start, anchor_count);
  const NceOptions options = {temperature, temperature_number, batch,
                              normalize,   anchor_start,       anchor_count};
  return z.scalar_type() == ScalarType::Double ? forward<double>(z, groups, options, leave_gradient)
                                               : forward<float>(z, groups, options, leave_gradient);
}

template <typename Real>
Tensor backward(const Tensor& grad_loss, const Tensor& z, const Tensor& groups, const Tensor& rows,
                const NceOptions& options) {
  const double temperature = temperature_of(options.temperature, options.temperature_number);
  std::vector<Real> inverse(z.size(0));
  const Tensor prepared = prepare(z, options.normalize, inverse.data());
  const Blocks<Real> blocks(prepared, groups, temperature, false);
  return as(gradient(blocks, in_one_piece(rows), options, *data<Real>(grad_loss)), z.scalar_type());
}

Tensor info_nce_backward(const Tensor& grad_loss, const Tensor& z, const Tensor& groups,
                         const Tensor& rows, const std::optional<Tensor>& temperature,
                         double temperature_number, bool batch, bool normalize,
                         int64_t anchor_start, int64_t anchor_count) {
  check_info_nce(z, groups, temperature);
  check_anchors(z, anchor_start, anchor_count);
  check_nce_rows(z, rows, grad_loss);
  if (z.size(0) == 0) return torch::stable::empty_like(z);
  const NceOptions options = {temperature, temperature_number, batch,
                              normalize,   anchor_start,       anchor_count};
  return z.scalar_type() == ScalarType::Double
             ? backward<double>(grad_loss, z, groups, rows, options)
             : backward<float>(grad_loss, z, groups, rows, options);
}

}  // namespace
}  // namespace pacecore

PACECORE_REGISTER_CPU(m) {
  m.impl("info_nce", TORCH_BOX(&pacecore::info_nce));
  m.impl("info_nce_backward", TORCH_BOX(&pacecore::info_nce_backward));
}
