// The gradient of info_nce for many rows: the scores once more, then as weights in the storage
// type, a block of rows at a time, into the product with z.
#include "info_nce_tile.h"

namespace pacecore {
namespace {

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
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    weights_kernel(NceGradientArgs<T> args) {
  PACECORE_DYNAMIC_SHARED(unsigned char, shared);
  __shared__ NceRow<float> row_parts[kTile];
  __shared__ int64_t row_groups[kTile];
  const NceArgs& nce = args.nce;
  const int first_row = args.first_row + blockIdx.y * kTile, first_column = blockIdx.x * kTile;
  {
    const int row = first_row + threadIdx.x;
    row_parts[threadIdx.x] = load_nce_row(args.rows, nce.n, row);
    row_groups[threadIdx.x] = row < nce.n ? nce.groups[row] : 0;
  }
  const float* scores = make_scores(nce, args.z, first_row, first_column, shared);
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
    float values[4];
    load_run<4>(values, scores + score_at(local, lane * 4));
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
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
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
  multiply_tile<Order::kRows, Order::kDepth>(engine, weights, row, z, column, begin,
                                             min(end, args.weight_pitch),
                                             reinterpret_cast<T*>(shared));
  float* products =
      args.products + (int64_t{split} * args.block_rows + row) * args.product_pitch + column;
  const int width = args.product_pitch - column;
  engine.template for_each_run<Order::kRows, Order::kDepth>([&](int local, int at, float* run) {
    if (at < width)
      store_run<Engine<T>::template kRun<Order::kDepth>>(
          products + int64_t{local} * args.product_pitch + at, run);
  });
}

}  // namespace

template <typename T>
void launch_nce_gradient(const NceGradientArgs<T>& args, cudaStream_t stream) {
  const int row_tiles =
      (std::min(args.block_rows, args.nce.n - args.first_row) + kTile - 1) / kTile;
  const dim3 weight_grid((args.nce.n + kTile - 1) / kTile, row_tiles);
  PACECORE_LAUNCH(weights_kernel<T>, weight_grid, kTileThreads, kRingBytes<T>, stream, args);
  const dim3 product_grid((args.nce.features + kTile - 1) / kTile, row_tiles, args.splits);
  PACECORE_LAUNCH(product_kernel<T>, product_grid, kTileThreads, kRingBytes<T>, stream, args);
}

template void launch_nce_gradient<float>(const NceGradientArgs<float>&, cudaStream_t);
template void launch_nce_gradient<__nv_bfloat16>(const NceGradientArgs<__nv_bfloat16>&,
                                                 cudaStream_t);
template void launch_nce_gradient<__half>(const NceGradientArgs<__half>&, cudaStream_t);

}  // namespace pacecore
