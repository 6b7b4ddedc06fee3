// info_nce for many rows, in tiles of 128 x 128 similarities that never leave the chip: once for
// the sums of their rows; for the gradient once more, then as weights in the storage type, a block
// of rows at a time, into the product with z.
#include <algorithm>

#include "info_nce_tile.h"

namespace pacecore {
namespace {

// Blocks a multiprocessor is to hold: one multiplies while the other does its sums.
template <typename T>
constexpr int kBlocks = sizeof(T) == 2 ? 2 : 1;

template <typename T>
struct SumsArgs {
  NceArgs nce;
  const T* z;
  NceRowSums* partial;  // (splits, n)
  int first_tile, splits;
};

template <typename T>
__device__ void scores_to_shared(const Engine<T>& engine, float* scores) {
  for_each_value<false>(engine, [&](int row, int column, float value) {
    scores[row * kScorePitch + column] = value;
  });
  __syncthreads();
}

template <typename T>
__device__ float exponential(float x) {
  if constexpr (std::is_same_v<T, float>) return expf(x);
  return __expf(x);  // within 2^-21 where it counts, next to scores of 16-bit factors
}

// Adds 32 columns of one row, in which threads 2 r and 2 r + 1 alternate by four columns.
template <typename T>
__device__ void add_columns(const NceArgs& nce, const float* scores, const int64_t* groups,
                            int64_t group, int row, int first_column, float scale,
                            NceRowSums& into) {
  float logits[32];
  unsigned positive = 0, counts = 0;
  NceSums<float> part;
#pragma unroll
  for (int chunk = 0; chunk < 8; ++chunk) {
    const float4 four = *reinterpret_cast<const float4*>(scores + chunk * 8);
    const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int local = chunk * 8 + i, at = chunk * 4 + i, column = first_column + local;
      const float logit = values[i] * scale;
      logits[at] = logit;
      if (column >= nce.n || column == row) continue;
      counts |= 1u << at;
      if (groups[local] == group) {
        positive |= 1u << at;
        part.nearest_positive = fmaxf(part.nearest_positive, logit);
      } else {
        part.nearest_negative = fmaxf(part.nearest_negative, logit);
      }
    }
  }
  if (counts == 0) return;
  part.largest = fmaxf(part.nearest_positive, part.nearest_negative);
#pragma unroll
  for (int at = 0; at < 32; ++at) {
    if (!(counts >> at & 1)) continue;
    const float below = logits[at] - part.largest, e = exponential<T>(below);
    part.weighted += e * below;
    if (positive >> at & 1) {
      part.positive += e;
      part.positive_logits += logits[at];
    } else {
      part.negative += e;
      part.negative_logits += logits[at];
    }
  }
  merge(into.sums, part);
  into.positives += __popc(positive);
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads, kBlocks<T>) sums_kernel(SumsArgs<T> args) {
  PACECORE_DYNAMIC_SHARED(unsigned char, shared);
  __shared__ int64_t column_groups[kTile];
  const NceArgs& nce = args.nce;
  T* ring = reinterpret_cast<T*>(shared);
  float* scores = reinterpret_cast<float*>(shared);
  const int first_row = (args.first_tile + blockIdx.x) * kTile;
  const int tiles = (nce.n + kTile - 1) / kTile;
  const int begin = static_cast<int>(int64_t{tiles} * blockIdx.y / args.splits);
  const int end = static_cast<int>(int64_t{tiles} * (blockIdx.y + 1) / args.splits);
  const Matrix<T> z = {args.z, nce.n, nce.pitch, nce.pitch};
  const float scale = nce_scale(nce);
  const int local = threadIdx.x / 2, half = threadIdx.x % 2, row = first_row + local;
  const int64_t group = row < nce.n ? nce.groups[row] : 0;
  NceRowSums mine = {{}, 0};
  for (int tile = begin; tile < end; ++tile) {
    const int first_column = tile * kTile;
    Engine<T> engine;
    multiply_tile<false>(engine, z, first_row, z, first_column, 0, nce.pitch, ring);
    if (threadIdx.x < kTile) {
      const int column = first_column + threadIdx.x;
      column_groups[threadIdx.x] = column < nce.n ? nce.groups[column] : 0;
    }
    scores_to_shared(engine, scores);
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      const int from = part * 64 + half * 4;
      add_columns<T>(nce, scores + local * kScorePitch + from, column_groups + from, group, row,
                     first_column + from, scale, mine);
    }
    __syncthreads();
  }
  NceSums<float> other;
  other.largest = __shfl_xor_sync(0xffffffffu, mine.sums.largest, 1);
  other.positive = __shfl_xor_sync(0xffffffffu, mine.sums.positive, 1);
  other.negative = __shfl_xor_sync(0xffffffffu, mine.sums.negative, 1);
  other.weighted = __shfl_xor_sync(0xffffffffu, mine.sums.weighted, 1);
  other.positive_logits = __shfl_xor_sync(0xffffffffu, mine.sums.positive_logits, 1);
  other.negative_logits = __shfl_xor_sync(0xffffffffu, mine.sums.negative_logits, 1);
  other.nearest_positive = __shfl_xor_sync(0xffffffffu, mine.sums.nearest_positive, 1);
  other.nearest_negative = __shfl_xor_sync(0xffffffffu, mine.sums.nearest_negative, 1);
  const int other_positives = __shfl_xor_sync(0xffffffffu, mine.positives, 1);
  if (half == 1 || row >= nce.n) return;
  merge(mine.sums, other);
  mine.positives += other_positives;
  args.partial[int64_t{blockIdx.y} * nce.n + row] = mine;
}

__global__ void __launch_bounds__(kTileThreads)
    merge_kernel(const NceRowSums* partial, int n, int first, int end, int splits,
                 NceRowSums* sums) {
  const int row = first + blockIdx.x * kTileThreads + threadIdx.x;
  if (row >= end) return;
  NceRowSums total = partial[row];
  for (int split = 1; split < splits; ++split) {
    const NceRowSums& part = partial[int64_t{split} * n + row];
    merge(total.sums, part.sums);
    total.positives += part.positives;
  }
  sums[row] = total;
}

constexpr int kFinishThreads = 512;

__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(NceArgs args, const NceRowSums* sums, NceOutputs outputs) {
  __shared__ __align__(16) unsigned char merged[kFinishThreads * sizeof(NceTotals)];
  finish_nce<kFinishThreads>(args, sums, outputs.rows, outputs, true, merged);
}

// Four neighbouring weights, rounded to the storage type and written as one.
template <typename T>
__device__ void store_four(T* to, const float (&values)[4]) {
  struct alignas(4 * sizeof(T)) Four {
    T values[4];
  };
  *reinterpret_cast<Four*>(to) = {{static_cast<T>(values[0]), static_cast<T>(values[1]),
                                   static_cast<T>(values[2]), static_cast<T>(values[3])}};
}

// weights (block_rows, weight_pitch): zero for a clip with itself and beyond the last row and
// column, so that what multiplies them there must only be finite.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, kBlocks<T>)
    weights_kernel(NceGradientArgs<T> args) {
  PACECORE_DYNAMIC_SHARED(unsigned char, shared);
  __shared__ NceRow<float> row_parts[kTile];
  __shared__ int64_t row_groups[kTile];
  const NceArgs& nce = args.nce;
  T* ring = reinterpret_cast<T*>(shared);
  float* scores = reinterpret_cast<float*>(shared);
  const int first_row = args.first_row + blockIdx.y * kTile, first_column = blockIdx.x * kTile;
  const Matrix<T> z = {args.z, nce.n, nce.pitch, nce.pitch};
  Engine<T> engine;
  multiply_tile<false>(engine, z, first_row, z, first_column, 0, nce.pitch, ring);
  if (threadIdx.x < kTile) {
    const int row = first_row + threadIdx.x;
    row_parts[threadIdx.x] = load_nce_row(args.rows, nce.n, row);
    row_groups[threadIdx.x] = row < nce.n ? nce.groups[row] : 0;
  }
  scores_to_shared(engine, scores);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float scale = nce_scale(nce), unit = static_cast<float>(nce.n);
  NceRow<float> columns[4];
  int64_t groups[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int column = first_column + lane * 4 + i;
    columns[i] = load_nce_row(args.rows, nce.n, column);
    groups[i] = column < nce.n ? nce.groups[column] : 0;
  }
#pragma unroll 2
  for (int local = warp; local < kTile; local += kTileThreads / 32) {
    const int row = first_row + local;
    const float4 four = *reinterpret_cast<const float4*>(scores + local * kScorePitch + lane * 4);
    float values[4] = {four.x, four.y, four.z, four.w};
    const NceRow<float> part = row_parts[local];
    const int64_t group = row_groups[local];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = first_column + lane * 4 + i;
      const float logit = values[i] * scale;
      const float from_row = exponential<T>(logit - part.reference);
      const float from_column = exponential<T>(logit - columns[i].reference);
      const float weight = group == groups[i]
                               ? part.positive * from_row + part.constant +
                                     (columns[i].positive * from_column + columns[i].constant)
                               : part.all * from_row + columns[i].all * from_column;
      values[i] = row == column || row >= nce.n || column >= nce.n ? 0.0f : weight * unit;
    }
    store_four(args.weights + int64_t{first_row - args.first_row + local} * args.weight_pitch +
                   first_column + lane * 4,
               values);
  }
}

// products (splits, block_rows, product_pitch) = weights . z, split along the sum.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, kBlocks<T>)
    product_kernel(NceGradientArgs<T> args) {
  PACECORE_DYNAMIC_SHARED(unsigned char, shared);
  const NceArgs& nce = args.nce;
  const int row = blockIdx.y * kTile, column = blockIdx.x * kTile, split = blockIdx.z;
  constexpr int depth = Engine<T>::kDepth;
  const int steps = (nce.n + depth - 1) / depth;
  const int begin = static_cast<int>(int64_t{steps} * split / args.splits) * depth;
  const int end = static_cast<int>(int64_t{steps} * (split + 1) / args.splits) * depth;
  const Matrix<T> weights = {args.weights, args.block_rows, args.weight_pitch, args.weight_pitch};
  const Matrix<T> z = {args.z, nce.n, nce.pitch, nce.pitch};
  Engine<T> engine;
  multiply_tile<true>(engine, weights, row, z, column, begin, min(end, args.weight_pitch),
                      reinterpret_cast<T*>(shared));
  float* products =
      args.products + (int64_t{split} * args.block_rows + row) * args.product_pitch + column;
  const int width = args.product_pitch - column;
  for_each_value<true>(engine, [&](int local, int at, float value) {
    if (at < width) products[int64_t{local} * args.product_pitch + at] = value;
  });
}

}  // namespace

template <typename T>
void launch_nce_sums(const NceArgs& args, const T* z, int splits, NceRowSums* partial,
                     NceRowSums* sums, const NceOutputs& outputs, cudaStream_t stream) {
  const int first = args.batch ? 0 : args.anchor_start;
  const int end = args.batch ? args.n : args.anchor_start + args.anchor_count;
  if (first < end) {
    const int first_tile = first / kTile, end_tile = (end + kTile - 1) / kTile;
    const SumsArgs<T> sums_args = {args, z, partial, first_tile, splits};
    const dim3 grid(end_tile - first_tile, splits);
    PACECORE_LAUNCH(sums_kernel<T>, grid, kTileThreads, kRingBytes<T>, stream, sums_args);
    PACECORE_LAUNCH(merge_kernel, (end - first + kTileThreads - 1) / kTileThreads, kTileThreads, 0,
                    stream, partial, args.n, first, end, splits, sums);
  }
  PACECORE_LAUNCH(finish_kernel, 1, kFinishThreads, 0, stream, args, sums, outputs);
}

template <typename T>
void launch_nce_gradient(const NceGradientArgs<T>& args, cudaStream_t stream) {
  const int row_tiles =
      (std::min(args.block_rows, args.nce.n - args.first_row) + kTile - 1) / kTile;
  const dim3 weight_grid((args.nce.n + kTile - 1) / kTile, row_tiles);
  PACECORE_LAUNCH(weights_kernel<T>, weight_grid, kTileThreads, kRingBytes<T>, stream, args);
  const dim3 product_grid((args.nce.features + kTile - 1) / kTile, row_tiles, args.splits);
  PACECORE_LAUNCH(product_kernel<T>, product_grid, kTileThreads, kRingBytes<T>, stream, args);
}

#define PACECORE_NCE_TYPE(T)                                                                \
  template void launch_nce_sums<T>(const NceArgs&, const T*, int, NceRowSums*, NceRowSums*, \
                                   const NceOutputs&, cudaStream_t);                        \
  template void launch_nce_gradient<T>(const NceGradientArgs<T>&, cudaStream_t);
PACECORE_NCE_TYPE(float)
PACECORE_NCE_TYPE(__nv_bfloat16)
PACECORE_NCE_TYPE(__half)
#undef PACECORE_NCE_TYPE

}  // namespace pacecore
