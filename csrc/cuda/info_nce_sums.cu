// The forward of info_nce for many rows: the scores of each pair of clips are made once, in tiles
// of 128 x 128 that never leave the chip, and being symmetric add to the sums of the tile's rows
// and of its columns.
#include "info_nce_tile.h"

namespace pacecore {
namespace {

template <typename T>
struct SumsArgs {
  NceArgs nce;
  NceTiles tiles;
  const T* z;
  NceRowSums* partial;  // (steps, 2, tiles.count * kTile): of a tile's rows, then of its columns
  int first_step, steps;
};

// Groups of a tile's rows or columns, and apart from them their lower halves: where those differ,
// so do the groups.
struct TileGroups {
  int64_t whole[kTile];
  int lower[kTile];
};

// Adds 32 logits of one clip with others: those whose bit in `counts` is set, or `whole`, all.
template <bool whole, typename T>
__device__ void add_logits(const float (&logits)[32], const TileGroups& others, int first,
                           int64_t group, unsigned counts, NceRowSums& into) {
  NceSums<float> part;
  const int lower = static_cast<int>(group);
  bool may_be_positive = false;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    if (whole || counts >> i & 1) part.largest = fmaxf(part.largest, logits[i]);
    may_be_positive |= others.lower[first + i] == lower;
  }
  // Nearly all of the work where groups are small.
  if (!may_be_positive) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const float logit = logits[i], below = logit - part.largest, e = exponential<T>(below);
      if (whole || counts >> i & 1) {
        part.weighted += e * below;
        part.negative += e;
        part.negative_logits += logit;
      }
    }
    part.nearest_negative = part.largest;
    merge(into.sums, part);
    return;
  }
  const int64_t* groups = others.whole + first;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const bool counted = whole || counts >> i & 1, same = groups[i] == group;
    const bool positive = counted && same, negative = counted && !same;
    const float logit = logits[i], below = logit - part.largest, e = exponential<T>(below);
    // One predicated instruction each: a branch for several, or selects, cost half as much again.
    if (counted) part.weighted += e * below;
    if (positive) part.positive += e;
    if (negative) part.negative += e;
    if (positive) part.positive_logits += logit;
    if (negative) part.negative_logits += logit;
    if (positive) part.nearest_positive = fmaxf(part.nearest_positive, logit);
    if (negative) part.nearest_negative = fmaxf(part.nearest_negative, logit);
    into.positives += positive;
  }
  merge(into.sums, part);
}

// The sums of the thread's row of a tile, or with by_column of its column: of clip `own` with the
// tile's others, from clip `first_other` on.
template <bool by_column, typename T>
__device__ NceRowSums line_sums(const NceArgs& nce, const float* scores, int own, int64_t group,
                                int first_other, const TileGroups& others) {
  const float scale = nce_scale(nce);
  NceRowSums sums = {{}, 0};
#pragma unroll 1
  for (int part = 0; part < kTile; part += 32) {
    float logits[32];
    if constexpr (by_column) {
#pragma unroll
      for (int i = 0; i < 32; ++i) logits[i] = scores[score_at(part + i, threadIdx.x)];
    } else {
#pragma unroll
      for (int i = 0; i < 32; i += 4)
        load_run<4>(logits + i, scores + score_at(threadIdx.x, part + i));
    }
#pragma unroll
    for (float& logit : logits) logit = nce_logit(logit, scale);
    const int first = first_other + part, left = nce.n - first, itself = own - first;
    unsigned counts = left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0;
    if (itself >= 0 && itself < 32) counts &= ~(1u << itself);
    if (counts == ~0u)
      add_logits<true, T>(logits, others, part, group, counts, sums);
    else if (counts != 0)
      add_logits<false, T>(logits, others, part, group, counts, sums);
  }
  return sums;
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks) sums_kernel(SumsArgs<T> args) {
  PACECORE_DYNAMIC_SHARED(unsigned char, shared);
  __shared__ TileGroups row_groups, column_groups;
  const NceArgs& nce = args.nce;
  // Neighbouring blocks share a row tile, and with those of the next row tile most of the columns.
  const int step = args.first_step + blockIdx.x % args.steps;
  const int row_tile = args.tiles.first + blockIdx.x / args.steps;
  if (!args.tiles.made(row_tile, step)) return;
  const int column_tile = args.tiles.column_tile(row_tile, step);
  const int row = row_tile * kTile + threadIdx.x, column = column_tile * kTile + threadIdx.x;
  const int64_t row_group = row < nce.n ? nce.groups[row] : 0;
  const int64_t column_group = column < nce.n ? nce.groups[column] : 0;
  row_groups.whole[threadIdx.x] = row_group;
  row_groups.lower[threadIdx.x] = static_cast<int>(row_group);
  column_groups.whole[threadIdx.x] = column_group;
  column_groups.lower[threadIdx.x] = static_cast<int>(column_group);
  const float* scores = make_scores(nce, args.z, row_tile * kTile, column_tile * kTile, shared);
  const int64_t length = int64_t{args.tiles.count} * kTile, first = args.tiles.first * kTile;
  NceRowSums* partial = args.partial + (step - args.first_step) * 2 * length;
  partial[row - first] = line_sums<false, T>(nce, scores, row, row_groups.whole[threadIdx.x],
                                             column_tile * kTile, column_groups);
  if (args.tiles.serves_columns(row_tile, step))
    partial[length + column - first] = line_sums<true, T>(
        nce, scores, column, column_groups.whole[threadIdx.x], row_tile * kTile, row_groups);
}

__device__ void merge(NceRowSums& into, const NceRowSums& from) {
  merge(into.sums, from.sums);
  into.positives += from.positives;
}

constexpr int kMergeThreads = 256;

// Adds a band of steps to the sums of each wanted row, in the order of the steps.
__global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(const NceRowSums* partial, NceTiles tiles, int n, int first_step, int steps,
                 NceRowSums* sums) {
  const int64_t length = int64_t{tiles.count} * kTile;
  const int at = blockIdx.x * kMergeThreads + threadIdx.x, row = tiles.first * kTile + at;
  if (at >= length || row >= n) return;
  const int tile = row / kTile;
  NceRowSums total = {{}, 0};
  for (int i = 0; i < steps; ++i) {
    const int step = first_step + i;
    if (tiles.made(tile, step)) merge(total, partial[2 * i * length + at]);
    const int row_tile = tiles.row_tile(tile, step);
    if (tiles.made(row_tile, step) && tiles.serves_columns(row_tile, step))
      merge(total, partial[(2 * i + 1) * length + at]);
  }
  if (first_step > 0) merge(total, sums[row]);
  sums[row] = total;
}

// The last step of the forward, a block for every part of the rows: the batch's sums where there is
// one denominator, then totals, then what is written.
constexpr int kFinishThreads = kNceFinishParts;

struct FinishArgs {
  NceArgs nce;
  const NceRowSums* sums;
  NceFinishPart* parts;
  NceOutputs outputs;
  int rows;  // of a part

  __device__ int first() const { return blockIdx.x * rows; }
  __device__ int end() const { return min(nce.n, first() + rows); }
};

// `field` of all parts merged, for every thread; a thread has one part at most.
template <typename Value>
__device__ Value merged_parts(const FinishArgs& args, Value NceFinishPart::* field, void* shared) {
  Value mine;
  if (threadIdx.x < gridDim.x) mine = args.parts[threadIdx.x].*field;
  return block_merge<Value, kFinishThreads>(mine, shared);
}

__global__ void __launch_bounds__(kFinishThreads) batch_kernel(FinishArgs args) {
  __shared__ __align__(16) unsigned char shared[kFinishThreads * sizeof(NceSums<double>)];
  const auto batch = batch_sums<kFinishThreads>(args.sums, args.first(), args.end(), shared);
  if (threadIdx.x == 0) args.parts[blockIdx.x].batch = batch;
}

__global__ void __launch_bounds__(kFinishThreads, 1) totals_kernel(FinishArgs args) {
  __shared__ __align__(16) unsigned char shared[kFinishThreads * sizeof(NceTotals)];
  NceSums<double> batch;
  if (args.nce.batch) batch = merged_parts(args, &NceFinishPart::batch, shared);
  const NceTotals totals =
      anchor_totals<kFinishThreads>(args.nce, args.sums, batch, args.first(), args.end(), shared);
  if (threadIdx.x == 0) args.parts[blockIdx.x].totals = totals;
}

__global__ void __launch_bounds__(kFinishThreads) finish_kernel(FinishArgs args) {
  __shared__ __align__(16) unsigned char shared[kFinishThreads * sizeof(NceTotals)];
  NceSums<double> batch;
  if (args.nce.batch) batch = merged_parts(args, &NceFinishPart::batch, shared);
  const NceTotals totals = merged_parts(args, &NceFinishPart::totals, shared);
  write_rows<kFinishThreads>(args.nce, args.sums, batch, totals, args.first(), args.end(),
                             args.outputs.rows);
  if (blockIdx.x == 0 && threadIdx.x == 0) write_outputs(args.nce, totals, args.outputs);
}

}  // namespace

template <typename T>
void launch_nce_sums(const NceArgs& args, const NceTiles& tiles, const T* z, int band_steps,
                     NceRowSums* partial, NceRowSums* sums, cudaStream_t stream) {
  const int merge_blocks = (tiles.count * kTile + kMergeThreads - 1) / kMergeThreads;
  for (int first = 0; first < tiles.steps(); first += band_steps) {
    const int steps = std::min(band_steps, tiles.steps() - first);
    const SumsArgs<T> band = {args, tiles, z, partial, first, steps};
    PACECORE_LAUNCH(sums_kernel<T>, tiles.count * steps, kTileThreads, kRingBytes<T>, stream, band);
    PACECORE_LAUNCH(merge_kernel, merge_blocks, kMergeThreads, 0, stream, partial, tiles, args.n,
                    first, steps, sums);
  }
}

void launch_nce_finish(const NceArgs& args, const NceRowSums* sums, NceFinishPart* parts,
                       const NceOutputs& outputs, cudaStream_t stream) {
  const int rows = std::max(kFinishThreads, (args.n + kNceFinishParts - 1) / kNceFinishParts);
  const int blocks = (args.n + rows - 1) / rows;
  const FinishArgs finish = {args, sums, parts, outputs, rows};
  if (args.batch) PACECORE_LAUNCH(batch_kernel, blocks, kFinishThreads, 0, stream, finish);
  PACECORE_LAUNCH(totals_kernel, blocks, kFinishThreads, 0, stream, finish);
  PACECORE_LAUNCH(finish_kernel, blocks, kFinishThreads, 0, stream, finish);
}

#define PACECORE_NCE_TYPE(T)                                                                    \
  template void launch_nce_sums<T>(const NceArgs&, const NceTiles&, const T*, int, NceRowSums*, \
                                   NceRowSums*, cudaStream_t);
PACECORE_NCE_TYPE(float)
PACECORE_NCE_TYPE(__nv_bfloat16)
PACECORE_NCE_TYPE(__half)
#undef PACECORE_NCE_TYPE

}  // namespace pacecore
