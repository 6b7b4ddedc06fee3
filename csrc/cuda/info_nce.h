// What the CUDA kernels of info_nce share: their arguments, and the last step of the forward.
#pragma once

#include <cstdint>

#include "info_nce_math.h"
#include "primitives.h"

namespace pacecore {

struct NceArgs {
  const int64_t* groups;     // (n,)
  const float* temperature;  // one value, or null for the number
  float temperature_number;
  int n, features, pitch;  // z is (n, D) with `pitch` elements from row to row
  int anchor_start, anchor_count;
  bool batch;
};

// One row's sums, and how many positives it has.
struct NceRowSums {
  NceSums<float> sums;
  int positives;
};

struct NceOutputs {
  float* loss;     // ()
  float* summary;  // (3,)
  float* slope;    // (): d loss / d temperature
  float* rows;     // (5, n): the fields of NceRow, then, where z is normalised, the inverse norms
};

// The forward for few rows, in one launch: sums, loss and, where grad_z is not null, gradient.
// inverse_norms: (n,), or null; scores: (n, n); sums: (n,); counters: two zeros.
template <typename T>
void launch_nce_few(const NceArgs& args, const float* inverse_norms, const T* z, float* scores,
                    NceRowSums* sums, unsigned* counters, const NceOutputs& outputs, T* grad_z,
                    cudaStream_t stream);

// So many that the shared memory for them, 48 KB, is there on every GPU. Its sums of D products are
// more exact than the tiles' too, so it is not for few features alone. With 16-bit elements the
// tiles go through matrix units: on an H200 1,024 x 512 in bf16 takes them 65 us, where 60 rows in
// one launch took 26 us and 512 rows 98 us.
template <typename T>
inline bool nce_few(const NceArgs& args) {
  constexpr int rows = sizeof(T) == 2 ? 384 : 512;
  return args.n <= rows && 2 * args.n + args.features <= 3072;
}

constexpr int kTile = 128;  // rows and columns of the tiles that many rows are walked in
// Blocks a multiprocessor is to hold: one multiplies while the other does its sums.
constexpr int kTileBlocks = 2;

// Which tiles of the scores are made. Those of two row tiles that are both wanted are made once and
// serve both. A tile is named by its row tile, which is wanted, and by how many steps after it,
// round the end, its column tile comes: so every row tile has as much to do as the others.
struct NceTiles {
  int all;           // row tiles
  int first, count;  // of these, the ones whose sums are wanted

  PACECORE_SHARED_MATH int steps() const {
    return count == 0 ? 0 : count == all ? all / 2 + 1 : all;
  }
  PACECORE_SHARED_MATH int end() const { return first + count; }
  PACECORE_SHARED_MATH bool wanted(int tile) const { return tile >= first && tile < end(); }
  PACECORE_SHARED_MATH int column_tile(int row_tile, int step) const {
    return (row_tile + step) % all;
  }
  PACECORE_SHARED_MATH int row_tile(int column_tile, int step) const {
    return (column_tile + all - step) % all;
  }
  PACECORE_SHARED_MATH bool made(int row_tile, int step) const {
    const bool nearer = 2 * step < all || (2 * step == all && row_tile < step);
    return wanted(row_tile) && (nearer || !wanted(column_tile(row_tile, step)));
  }
  PACECORE_SHARED_MATH bool serves_columns(int row_tile, int step) const {
    return step > 0 && wanted(column_tile(row_tile, step));
  }
};

// The sums for many rows, from rows that are normalised already where that is wanted, in bands of
// `band_steps` steps. partial: (band_steps, 2, tiles.count * kTile), sums: (n,).
template <typename T>
void launch_nce_sums(const NceArgs& args, const NceTiles& tiles, const T* z, int band_steps,
                     NceRowSums* partial, NceRowSums* sums, cudaStream_t stream);

// From the sums of all rows to the outputs. parts: (kNceFinishParts,).
struct NceFinishPart;
constexpr int kNceFinishParts = 256;
void launch_nce_finish(const NceArgs& args, const NceRowSums* sums, NceFinishPart* parts,
                       const NceOutputs& outputs, cudaStream_t stream);

// The gradient for many rows, in squares of the scores on and above their diagonal, one a launch:
// the weights of rows [first_row, + side) with columns [first_column, + side), which weigh the
// columns' z for the rows' gradient and, being symmetric, the rows' z for the columns'. The weights
// are n times those of the loss, because float16 would lose the small ones.
template <typename T>
struct NceGradientArgs {
  NceArgs nce;
  NceTiles tiles;
  const T* z;
  const float* rows;  // (5, n)
  T* weights;         // (side, side)
  float* products;    // (splits, product_rows, product_pitch): weights . z is added to them,
  bool adds;          // or where they come from one square stored, and need not be zeros before
  int side, splits, product_rows, product_pitch;
  int first_row, first_column;
};
template <typename T>
void launch_nce_gradient(const NceGradientArgs<T>& args, cudaStream_t stream);

#ifdef __CUDACC__
#define PACECORE_DEVICE __device__ __forceinline__
#else
#define PACECORE_DEVICE inline
#endif

PACECORE_DEVICE float nce_scale(const NceArgs& args) {
  return 1.0f / (args.temperature ? *args.temperature : args.temperature_number);
}

// Rounded by itself: the sums' exponentials are relative to a logit so rounded, and a fused
// multiply-add in one place alone would be off by the rounding of a logit of hundreds.
PACECORE_DEVICE float nce_logit(float score, float scale) { return __fmul_rn(score, scale); }

PACECORE_DEVICE NceSums<double> widen(const NceSums<float>& sums) {
  return {sums.largest,         sums.positive,        sums.negative,         sums.weighted,
          sums.positive_logits, sums.negative_logits, sums.nearest_positive, sums.nearest_negative};
}

// What the tiles' weights are multiplied by on their way through the storage type. A weight is at
// most 2 over the number of anchors, or 2 with one denominator: float16 holds it, and mostly
// weights near 1 / n^2 too.
PACECORE_DEVICE float nce_weight_unit(const NceArgs& args) {
  const float most = 16384.0f * static_cast<float>(args.batch ? 1 : max(args.anchor_count, 1));
  return fminf(static_cast<float>(args.n), most);
}

// What a pair adds to d loss / d logit from the side of one of its rows.
PACECORE_DEVICE float nce_weight(const NceRow<float>& row, float logit, bool is_positive) {
  const float e = expf(logit - row.reference);
  return is_positive ? row.positive * e + row.constant : row.all * e;
}

PACECORE_DEVICE NceRow<float> load_nce_row(const float* rows, int n, int row) {
  NceRow<float> result;
  if (row >= n) return result;
  result.reference = rows[row];
  result.all = rows[n + row];
  result.positive = rows[2 * n + row];
  result.constant = rows[3 * n + row];
  return result;
}

// Sums over the anchors, in double because they are few and end in differences.
struct NceTotals {
  double loss = 0, slope = 0, positive_logits = 0, negative_logits = 0;
  double positive_pairs = 0, negative_pairs = 0, pulling = 0, nearest = 0;
};

struct NceFinishPart {
  NceSums<double> batch;
  NceTotals totals;
};

PACECORE_DEVICE void merge(NceTotals& into, const NceTotals& from) {
  into.loss += from.loss;
  into.slope += from.slope;
  into.positive_logits += from.positive_logits;
  into.negative_logits += from.negative_logits;
  into.positive_pairs += from.positive_pairs;
  into.negative_pairs += from.negative_pairs;
  into.pulling += from.pulling;
  into.nearest += from.nearest;
}

// Merges every thread's value in a fixed order; all threads get the result. `shared` has room for
// one value a thread, and is free for other use after the call.
template <typename Value, int threads>
PACECORE_DEVICE Value block_merge(const Value& value, void* shared) {
  Value* values = static_cast<Value*>(shared);
  values[threadIdx.x] = value;
  __syncthreads();
  for (int half = threads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half)
      merge(values[threadIdx.x], values[threadIdx.x + half]);
    __syncthreads();
  }
  const Value result = values[0];
  __syncthreads();
  return result;
}

// The last step of the forward in parts, each by all threads of a block for rows [first, end).

// The sums of all pairs of the batch, so far as these rows have them.
template <int threads>
PACECORE_DEVICE NceSums<double> batch_sums(const NceRowSums* sums, int first, int end,
                                           void* shared) {
  NceSums<double> batch;
  for (int i = first + threadIdx.x; i < end; i += threads) merge(batch, widen(sums[i].sums));
  return block_merge<NceSums<double>, threads>(batch, shared);
}

// What the anchors among these rows add up to.
template <int threads>
PACECORE_DEVICE NceTotals anchor_totals(const NceArgs& args, const NceRowSums* sums,
                                        const NceSums<double>& batch, int first, int end,
                                        void* shared) {
  NceTotals totals;
  const int last = min(end, args.anchor_start + args.anchor_count);
#pragma unroll 1
  for (int i = max(first, args.anchor_start) + threadIdx.x; i < last; i += threads) {
    const NceSums<double> row = widen(sums[i].sums);
    const int positives = sums[i].positives;
    const NceTerms terms =
        args.batch ? batch_terms(row, batch, positives) : anchor_terms(row, positives);
    totals.loss += terms.loss;
    totals.slope += terms.slope;
    totals.positive_logits += row.positive_logits;
    totals.negative_logits += row.negative_logits;
    totals.positive_pairs += positives;
    totals.negative_pairs += args.n - 1 - positives;
    totals.pulling += positives > 0;
    totals.nearest += positives > 0 && row.nearest_positive > row.nearest_negative;
  }
  return block_merge<NceTotals, threads>(totals, shared);
}

// What the gradient needs of these rows, into `rows` (in global or shared memory, as (4, n)).
template <int threads>
PACECORE_DEVICE void write_rows(const NceArgs& args, const NceRowSums* sums,
                                const NceSums<double>& batch, const NceTotals& totals, int first,
                                int end, float* rows) {
  for (int i = first + threadIdx.x; i < end; i += threads) {
    const bool anchor = i >= args.anchor_start && i < args.anchor_start + args.anchor_count;
    NceRow<float> row;
    if (args.batch)
      row = batch_row<float>(batch, anchor, sums[i].positives, args.anchor_count,
                             static_cast<int64_t>(totals.pulling));
    else if (anchor)
      row = anchor_row<float>(widen(sums[i].sums), sums[i].positives, args.anchor_count);
    rows[i] = row.reference;
    rows[args.n + i] = row.all;
    rows[2 * args.n + i] = row.positive;
    rows[3 * args.n + i] = row.constant;
  }
}

PACECORE_DEVICE void write_outputs(const NceArgs& args, const NceTotals& totals,
                                   const NceOutputs& outputs) {
  const double scale = nce_scale(args);
  const double anchors = args.anchor_count > 0 ? args.anchor_count : 1;
  *outputs.loss = static_cast<float>(totals.loss / anchors);
  *outputs.slope = static_cast<float>(-totals.slope * scale / anchors);
  outputs.summary[0] = static_cast<float>(totals.positive_logits / scale / totals.positive_pairs);
  outputs.summary[1] = static_cast<float>(totals.negative_logits / scale / totals.negative_pairs);
  outputs.summary[2] = static_cast<float>(totals.nearest / totals.pulling);
}

}  // namespace pacecore
