// One square tile of the similarity matrix on the CPU: its scores, its part of the row and column
// sums, its gradient weights, and products with it. Compiled once per instruction set: the
// including file names it in PACECORE_ISA and gives the vector width in PACECORE_LANES (floats a
// vector). It calls no template of the standard library: a copy of one that is compiled for these
// instructions could be what the linker keeps for all.
#include "info_nce_kernels.h"

namespace pacecore::PACECORE_ISA {

template <typename Real>
struct Lanes {
  static constexpr int count = PACECORE_LANES * 4 / int(sizeof(Real));
  typedef Real Vector __attribute__((vector_size(PACECORE_LANES * 4)));
  typedef NceId<Real> Mask __attribute__((vector_size(PACECORE_LANES * 4)));
};

template <typename Real>
using Vector = typename Lanes<Real>::Vector;
template <typename Real>
using Mask = typename Lanes<Real>::Mask;

// Accumulators of a product block: kRows x kVectors, what the registers hold beside its operands.
constexpr int kVectors = 3;

template <typename Real>
constexpr int kPanel = kVectors * Lanes<Real>::count;

// Whole blocks to a panel: of 16-byte vectors of double a panel is 6 rows.
template <typename Real>
constexpr int kRows = PACECORE_LANES >= 16    ? 8
                      : kPanel<Real> % 4 == 0 ? 4
                                              : 2;

template <typename Real>
PACECORE_SHARED_MATH Vector<Real> load(const Real* from) {
  Vector<Real> value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <typename Real>
PACECORE_SHARED_MATH Mask<Real> load_ids(const NceId<Real>* from) {
  Mask<Real> value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <typename Real>
PACECORE_SHARED_MATH void store(Real* to, const Vector<Real>& value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

// exp for arguments up to 0, within 2 units in the last place; below -87 it gives 0. Cody and
// Waite's reduction with the minimax polynomial of Cephes' expf.
PACECORE_SHARED_MATH Vector<float> exp_vector(Vector<float> x) {
  const Vector<float> zero = {};
  const Mask<float> vanishes = x < -87.0f;
  x = vanishes ? zero : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Vector<float> shifted = x * 1.44269504088896341f + magic;
  const Vector<float> whole = shifted - magic;
  const Vector<float> r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Vector<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // Without a sign, since of the diagonal, whose weight is not used, x may be above 0. The shift
  // drops the bits of magic itself.
  typedef unsigned Bits __attribute__((vector_size(sizeof(x))));
  Bits exponent;
  __builtin_memcpy(&exponent, &shifted, sizeof(shifted));
  exponent = (exponent << 23) + (127u << 23);
  Vector<float> power;
  __builtin_memcpy(&power, &exponent, sizeof(power));
  return vanishes ? zero : p * power;
}

PACECORE_SHARED_MATH Vector<double> exp_vector(Vector<double> x) {
  for (int lane = 0; lane < Lanes<double>::count; ++lane) x[lane] = __builtin_exp(x[lane]);
  return x;
}

// c (kRows, V vectors) += a (kRows, depth) . b (depth, V vectors); strides in elements.
template <typename Real, int V>
void vectors_product(int64_t depth, const Real* a, int64_t a_row, int64_t a_step, const Real* b,
                     int64_t b_step, Real* c, int64_t c_row) {
  constexpr int lanes = Lanes<Real>::count;
  constexpr int height = kRows<Real>;
  Vector<Real> sum[height][V] = {};
  for (int64_t k = 0; k < depth; ++k, a += a_step, b += b_step) {
    Vector<Real> right[V];
    for (int v = 0; v < V; ++v) right[v] = load<Real>(b + v * lanes);
    for (int row = 0; row < height; ++row)
      for (int v = 0; v < V; ++v) sum[row][v] += a[row * a_row] * right[v];
  }
  for (int row = 0; row < height; ++row)
    for (int v = 0; v < V; ++v) {
      Real* at = c + row * c_row + v * lanes;
      store<Real>(at, load<Real>(at) + sum[row][v]);
    }
}

// The same for as many vectors as hold `columns`, at most kVectors.
template <typename Real>
void product_block(int64_t columns, int64_t depth, const Real* a, int64_t a_row, int64_t a_step,
                   const Real* b, int64_t b_step, Real* c, int64_t c_row) {
  constexpr int lanes = Lanes<Real>::count;
  if (columns > 2 * lanes)
    vectors_product<Real, 3>(depth, a, a_row, a_step, b, b_step, c, c_row);
  else if (columns > lanes)
    vectors_product<Real, 2>(depth, a, a_row, a_step, b, b_step, c, c_row);
  else
    vectors_product<Real, 1>(depth, a, a_row, a_step, b, b_step, c, c_row);
}

template <typename Real>
void pack_panel(const Real* z, int64_t rows, int64_t features, Real* panel) {
  constexpr int width = kPanel<Real>;
  // A line of each row at a time: with 512 features the same place of all rows falls on the same
  // few sets of the cache, and feature by feature 48 rows took 41 microseconds where this takes 7.
  constexpr int64_t depth = 16;
  constexpr int lanes = Lanes<Real>::count;
  const int64_t whole = (rows + lanes - 1) / lanes * lanes;  // what products of these rows read
  for (int64_t start = 0; start < features; start += depth) {
    const int64_t end = features - start < depth ? features : start + depth;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t k = start; k < end; ++k) panel[k * width + row] = z[row * features + k];
    for (int64_t k = start; k < end; ++k)
      for (int64_t row = rows; row < whole; ++row) panel[k * width + row] = 0;
  }
}

template <typename Real>
void tile_scores(const Real* left, int64_t rows, const Real* right, int64_t columns,
                 int64_t features, Real* scores) {
  constexpr int width = kPanel<Real>;
  // A chunk of two panels stays in the first-level cache; sums of chunks are also more exact.
  constexpr int64_t depth = 128;
  const int64_t left_panels = (rows + width - 1) / width;
  const int64_t right_panels = (columns + width - 1) / width;
  for (int64_t row = 0; row < left_panels * width; ++row)
    for (int64_t j = 0; j < right_panels * width; ++j) scores[row * kNceTile + j] = 0;
  for (int64_t start = 0; start < features; start += depth) {
    const int64_t count = features - start < depth ? features - start : depth;
    for (int64_t q = 0; q < right_panels; ++q) {
      const Real* b = right + (q * features + start) * width;
      for (int64_t p = 0; p < left_panels; ++p) {
        const Real* a = left + (p * features + start) * width;
        Real* c = scores + p * width * kNceTile + q * width;
        for (int64_t row = 0; row < width && p * width + row < rows; row += kRows<Real>)
          product_block(columns - q * width, count, a + row, 1, width, b, width, c + row * kNceTile,
                        kNceTile);
      }
    }
  }
}

template <typename Real>
void tile_product(const Real* weights, bool transposed, int64_t rows, int64_t depth, const Real* z,
                  int64_t features, Real* into, int64_t into_row, Real* buffer) {
  constexpr int lanes = Lanes<Real>::count;
  constexpr int width = kPanel<Real>;
  const int64_t a_row = transposed ? 1 : kNceTile, a_step = transposed ? kNceTile : 1;
  for (int64_t start = 0; start < features; start += width) {
    const int64_t count = features - start < width ? features - start : width;
    const int64_t whole = (count + lanes - 1) / lanes * lanes;
    for (int64_t k = 0; k < depth; ++k) {
      const Real* from = z + k * features + start;
      Real* to = buffer + k * width;
      for (int64_t x = 0; x < count; ++x) to[x] = from[x];
      for (int64_t x = count; x < whole; ++x) to[x] = 0;
    }
    for (int64_t row = 0; row < rows; row += kRows<Real>)
      product_block(count, depth, weights + row * a_row, a_row, a_step, buffer, width,
                    into + row * into_row + start, into_row);
  }
}

template <typename Real>
PACECORE_SHARED_MATH Real sum_lanes(Vector<Real> value) {
  Real lanes[Lanes<Real>::count];
  store<Real>(lanes, value);
  for (int half = Lanes<Real>::count / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[half + lane];
  return lanes[0];
}

template <typename Real>
PACECORE_SHARED_MATH Real largest_lane(Vector<Real> value) {
  Real lanes[Lanes<Real>::count];
  store<Real>(lanes, value);
  for (int half = Lanes<Real>::count / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane)
      lanes[lane] = lanes[half + lane] > lanes[lane] ? lanes[half + lane] : lanes[lane];
  return lanes[0];
}

template <typename Real>
PACECORE_SHARED_MATH Mask<Real> lane_numbers() {
  Mask<Real> numbers;
  for (int lane = 0; lane < Lanes<Real>::count; ++lane) numbers[lane] = lane;
  return numbers;
}

// NceSums a lane: of one row spread over the lanes, or of one column each.
template <typename Real>
struct LaneSums {
  Vector<Real> nearest_positive = Vector<Real>{} - Real(INFINITY);
  Vector<Real> nearest_negative = Vector<Real>{} - Real(INFINITY);
  Vector<Real> positive = {}, negative = {}, weighted = {};
  Vector<Real> positive_logits = {}, negative_logits = {};

  PACECORE_SHARED_MATH void look(const Vector<Real>& logit, const Mask<Real>& is_positive,
                                 const Mask<Real>& is_negative) {
    nearest_positive = (is_positive & (logit > nearest_positive)) ? logit : nearest_positive;
    nearest_negative = (is_negative & (logit > nearest_negative)) ? logit : nearest_negative;
  }

  PACECORE_SHARED_MATH void add(const Vector<Real>& logit, const Vector<Real>& largest,
                                const Mask<Real>& is_positive, const Mask<Real>& is_negative) {
    const Vector<Real> zero = {};
    const Vector<Real> below = logit - largest;
    const Vector<Real> e = exp_vector(below);
    positive += is_positive ? e : zero;
    negative += is_negative ? e : zero;
    weighted += is_positive | is_negative ? e * below : zero;
    positive_logits += is_positive ? logit : zero;
    negative_logits += is_negative ? logit : zero;
  }
};

// The masks of 1 row against a vector of columns: its group, itself and padding left out; the rest.
template <typename Real>
PACECORE_SHARED_MATH void row_masks(const NceTile<Real>& tile, int64_t row, int64_t column,
                                    Mask<Real>& is_positive, Mask<Real>& is_negative) {
  const Mask<Real> ids = load_ids<Real>(tile.column_ids + column);
  is_positive = ids == tile.row_ids[row];
  is_negative = ~is_positive & (ids >= 0);
  if (tile.diagonal) is_positive &= lane_numbers<Real>() != NceId<Real>(row - column);
}

// One expression for both passes: the gradient's exponentials are bounded by 1 because its logits
// have the bits of those whose maximum was taken. GCC fuses a product with what is subtracted from
// it later, and from version 14 on does so in the gradient alone, which at a temperature of 0.001
// cost three digits; clang fuses within a statement only.
template <typename Real>
PACECORE_SHARED_MATH Vector<Real> logit_of(const NceTile<Real>& tile, const Real* score) {
#if __has_builtin(__builtin_assoc_barrier)
  return __builtin_assoc_barrier(load<Real>(score) * tile.scale);
#else
  return load<Real>(score) * tile.scale;
#endif
}

template <typename Real>
void tile_row_sums(const NceTile<Real>& tile, Real* scores, NceSums<double>* sums) {
  constexpr int lanes = Lanes<Real>::count;
  Mask<Real> is_positive, is_negative;
  for (int64_t row = 0; row < tile.rows; ++row) {
    Real* logits = scores + row * kNceTile;
    LaneSums<Real> part;
    for (int64_t j = 0; j < tile.columns; j += lanes) {
      row_masks(tile, row, j, is_positive, is_negative);
      const Vector<Real> logit = logit_of(tile, logits + j);
      store<Real>(logits + j, logit);
      part.look(logit, is_positive, is_negative);
    }
    NceSums<double> total;
    total.nearest_positive = largest_lane<Real>(part.nearest_positive);
    total.nearest_negative = largest_lane<Real>(part.nearest_negative);
    total.largest = total.nearest_positive > total.nearest_negative ? total.nearest_positive
                                                                    : total.nearest_negative;
    const Vector<Real> largest = Vector<Real>{} + Real(total.largest);
    for (int64_t j = 0; j < tile.columns; j += lanes) {
      row_masks(tile, row, j, is_positive, is_negative);
      part.add(load<Real>(logits + j), largest, is_positive, is_negative);
    }
    total.positive = sum_lanes<Real>(part.positive);
    total.negative = sum_lanes<Real>(part.negative);
    total.weighted = sum_lanes<Real>(part.weighted);
    total.positive_logits = sum_lanes<Real>(part.positive_logits);
    total.negative_logits = sum_lanes<Real>(part.negative_logits);
    merge(sums[row], total);
  }
}

template <typename Real>
void tile_column_sums(const NceTile<Real>& tile, const Real* logits, NceSums<double>* sums) {
  constexpr int lanes = Lanes<Real>::count;
  for (int64_t j = 0; j < tile.columns; j += lanes) {
    const Mask<Real> ids = load_ids<Real>(tile.column_ids + j);
    LaneSums<Real> part;
    for (int64_t row = 0; row < tile.rows; ++row) {
      const Mask<Real> is_positive = ids == tile.row_ids[row];
      part.look(load<Real>(logits + row * kNceTile + j), is_positive, ~is_positive);
    }
    const Vector<Real> largest = part.nearest_positive > part.nearest_negative
                                     ? part.nearest_positive
                                     : part.nearest_negative;
    for (int64_t row = 0; row < tile.rows; ++row) {
      const Mask<Real> is_positive = ids == tile.row_ids[row];
      part.add(load<Real>(logits + row * kNceTile + j), largest, is_positive, ~is_positive);
    }
    for (int lane = 0; lane < lanes && j + lane < tile.columns; ++lane) {
      NceSums<double> total;
      total.largest = largest[lane];
      total.nearest_positive = part.nearest_positive[lane];
      total.nearest_negative = part.nearest_negative[lane];
      total.positive = part.positive[lane];
      total.negative = part.negative[lane];
      total.weighted = part.weighted[lane];
      total.positive_logits = part.positive_logits[lane];
      total.negative_logits = part.negative_logits[lane];
      merge(sums[j + lane], total);
    }
  }
}

template <typename Real>
PACECORE_SHARED_MATH Vector<Real> weight(const Vector<Real>& logit, const Vector<Real>& reference,
                                         const Vector<Real>& all, const Vector<Real>& positive,
                                         const Vector<Real>& constant,
                                         const Mask<Real>& is_positive) {
  const Vector<Real> e = exp_vector(logit - reference);
  return is_positive ? positive * e + constant : all * e;
}

template <typename Real>
void tile_weights(const NceTile<Real>& tile, const NceRows<Real>& row, const NceRows<Real>& column,
                  bool has_logits, Real* scores) {
  constexpr int lanes = Lanes<Real>::count;
  constexpr int width = kPanel<Real>;
  const int64_t all_rows = (tile.rows + width - 1) / width * width;
  const int64_t all_columns = (tile.columns + width - 1) / width * width;
  const Vector<Real> zero = {};
  Mask<Real> is_positive, is_negative;
  for (int64_t i = 0; i < tile.rows; ++i) {
    Real* at = scores + i * kNceTile;
    for (int64_t j = 0; j < all_columns; j += lanes) {
      row_masks(tile, i, j, is_positive, is_negative);
      const Vector<Real> logit = has_logits ? load<Real>(at + j) : logit_of(tile, at + j);
      Vector<Real> sum = weight<Real>(logit, zero + row.reference[i], zero + row.all[i],
                                      zero + row.positive[i], zero + row.constant[i], is_positive);
      sum += weight<Real>(logit, load<Real>(column.reference + j), load<Real>(column.all + j),
                          load<Real>(column.positive + j), load<Real>(column.constant + j),
                          is_positive);
      store<Real>(at + j, is_positive | is_negative ? sum : zero);
    }
  }
  for (int64_t i = tile.rows; i < all_rows; ++i)
    for (int64_t j = 0; j < all_columns; ++j) scores[i * kNceTile + j] = 0;
}

template <typename Real>
constexpr NceTileKernels<Real> kTileKernels = {.panel = kPanel<Real>,
                                               .pack_panel = pack_panel<Real>,
                                               .scores = tile_scores<Real>,
                                               .row_sums = tile_row_sums<Real>,
                                               .column_sums = tile_column_sums<Real>,
                                               .weights = tile_weights<Real>,
                                               .product = tile_product<Real>};

}  // namespace pacecore::PACECORE_ISA
