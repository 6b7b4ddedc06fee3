// The gradient of info_nce for many rows: a square of the scores at a time, once more in tiles of
// 128 x 128, then as weights in the storage type into the products with z.
#include "info_nce_tile.h"

namespace pacecore {
namespace {

// Neighbouring weights, rounded to the storage type and written as one.
template <typename T, int count>
__device__ void store_weights(T* to, const float (&values)[count]) {
  struct alignas(count * sizeof(T)) Rounded {
    T values[count];
  } rounded;
#pragma unroll
  for (int i = 0; i < count; ++i) rounded.values[i] = static_cast<T>(values[i]);
  *reinterpret_cast<Rounded*>(to) = rounded;
}

// A tile of weights transposed, a thread with one of its columns.
template <typename T>
__device__ void store_transposed(T* to, int pitch, const float* weights) {
  constexpr int count = 16 / sizeof(T);
#pragma unroll 4
  for (int row = 0; row < kTile; row += count) {
    float values[count];
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = weights[score_at(row + i, threadIdx.x)];
    store_weights(to + int64_t{pitch} * threadIdx.x + row, values);
  }
}

// A row's part in weights that are multiplied by their unit.
template <typename T>
__device__ NceRow<float> load_scaled_row(const NceGradientArgs<T>& args, int row) {
  NceRow<float> part = load_nce_row(args.rows, args.nce.n, row);
  const float unit = nce_weight_unit(args.nce);
  part.all *= unit;
  part.positive *= unit;
  part.constant *= unit;
  return part;
}

// The weights of a square: zero for a clip with itself and beyond the last row and column, so that
// what multiplies them there must only be finite.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    weights_kernel(NceGradientArgs<T> args) {
  PACECORE_DYNAMIC_SHARED(unsigned char, shared);
  __shared__ NceRow<float> row_parts[kTile];
  __shared__ int64_t row_groups[kTile];
  const NceArgs& nce = args.nce;
  const int first_row = args.first_row + blockIdx.y * kTile;
  const int first_column = args.first_column + blockIdx.x * kTile, mine = first_row + threadIdx.x;
  // In a square on the diagonal the tiles above it are also those below.
  const bool diagonal = args.first_row == args.first_column;
  if (diagonal && first_column < first_row) return;
  if (!args.tiles.wanted(first_row / kTile) && !args.tiles.wanted(first_column / kTile)) return;
  row_parts[threadIdx.x] = load_scaled_row(args, mine);
  row_groups[threadIdx.x] = mine < nce.n ? nce.groups[mine] : 0;
  float* scores = make_scores(nce, args.z, first_row, first_column, shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float scale = nce_scale(nce);
  const bool whole = first_row != first_column && max(first_row, first_column) + kTile <= nce.n;
  NceRow<float> columns[4];
  int64_t groups[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int column = first_column + lane * 4 + i;
    columns[i] = load_scaled_row(args, column);
    groups[i] = column < nce.n ? nce.groups[column] : 0;
  }
#pragma unroll 2
  for (int local = warp; local < kTile; local += kTileThreads / 32) {
    const int row = first_row + local;
    float values[4];
    load_run<4>(values, scores + score_at(local, lane * 4));
    const NceRow<float> part = row_parts[local];
    const int64_t group = row_groups[local];
    const bool negative =
        group != groups[0] && group != groups[1] && group != groups[2] && group != groups[3];
    if (whole && negative) {  // as nearly all are
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float logit = nce_logit(values[i], scale);
        values[i] = part.all * exponential<T>(logit - part.reference) +
                    columns[i].all * exponential<T>(logit - columns[i].reference);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = first_column + lane * 4 + i;
        const float logit = nce_logit(values[i], scale);
        const float from_row = exponential<T>(logit - part.reference);
        const float from_column = exponential<T>(logit - columns[i].reference);
        const float weight = group == groups[i]
                                 ? part.positive * from_row + part.constant +
                                       (columns[i].positive * from_column + columns[i].constant)
                                 : part.all * from_row + columns[i].all * from_column;
        values[i] = row == column || row >= nce.n || column >= nce.n ? 0.0f : weight;
      }
    }
    store_weights(args.weights + int64_t{row - args.first_row} * args.side +
                      (first_column - args.first_column) + lane * 4,
                  values);
    if (diagonal) store_run<4>(scores + score_at(local, lane * 4), values);
  }
  if (!diagonal || first_row == first_column) return;
  __syncthreads();
  store_transposed(args.weights + int64_t{first_column - args.first_column} * args.side +
                       (first_row - args.first_row),
                   args.side, scores);
}

// Adds the product of a square's weights with z, for one tile of the gradient and one split of the
// sum. `order`: that of the weights, whose columns are the gradient's rows where they are kDepth.
template <Order order, typename T>
__device__ void add_product(const NceGradientArgs<T>& args, int split, T* ring) {
  constexpr bool for_rows = order == Order::kRows;
  constexpr int depth = Engine<T>::kDepth;
  const NceArgs& nce = args.nce;
  const int first = for_rows ? args.first_row : args.first_column;
  const int first_other = for_rows ? args.first_column : args.first_row;
  const int row = blockIdx.y * kTile, column = blockIdx.x * kTile;
  const int others = min(args.side, nce.n - first_other);
  // A tile of rows that are no anchors has weights only with those that are.
  const bool wanted = args.tiles.wanted((first + row) / kTile);
  const int from = wanted ? 0 : max(0, args.tiles.first * kTile - first_other);
  const int to = wanted ? others : min(others, args.tiles.end() * kTile - first_other);
  const int steps = max(0, to - from + depth - 1) / depth;
  const int begin = from + static_cast<int>(int64_t{steps} * split / args.splits) * depth;
  const int end = from + static_cast<int>(int64_t{steps} * (split + 1) / args.splits) * depth;
  if (first + row >= nce.n || (begin == end && args.adds)) return;
  const Matrix<T> weights = {args.weights, args.side, args.side, args.side};
  const Matrix<T> z = {args.z + int64_t{first_other} * nce.pitch, others, nce.pitch, nce.pitch};
  float* products = args.products +
                    (int64_t{split} * args.product_rows + first + row) * args.product_pitch +
                    column;
  Engine<T> engine;
  multiply_tile<order, Order::kDepth>(engine, weights, row, z, column, begin, end, ring);
  engine.template add_to<order>(products, args.product_pitch, args.product_pitch - column,
                                args.adds);
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    product_kernel(NceGradientArgs<T> args) {
  PACECORE_DYNAMIC_SHARED(unsigned char, shared);
  T* ring = reinterpret_cast<T*>(shared);
  const int split = blockIdx.z % args.splits, part = blockIdx.z / args.splits;
  if (part == 0)
    add_product<Order::kRows>(args, split, ring);
  else
    add_product<Order::kDepth>(args, split, ring);
}

}  // namespace

template <typename T>
void launch_nce_gradient(const NceGradientArgs<T>& args, cudaStream_t stream) {
  const auto tiles = [&](int first) {
    return (std::min(args.side, args.nce.n - first) + kTile - 1) / kTile;
  };
  const dim3 weight_grid(tiles(args.first_column), tiles(args.first_row));
  PACECORE_LAUNCH(weights_kernel<T>, weight_grid, kTileThreads, kRingBytes<T>, stream, args);
  // No columns' part on the diagonal, where it is the rows'; elsewhere there are as many rows at
  // least as columns.
  const dim3 product_grid((args.nce.features + kTile - 1) / kTile, tiles(args.first_row),
                          args.first_row == args.first_column ? args.splits : 2 * args.splits);
  PACECORE_LAUNCH(product_kernel<T>, product_grid, kTileThreads, kRingBytes<T>, stream, args);
}

template void launch_nce_gradient<float>(const NceGradientArgs<float>&, cudaStream_t);
template void launch_nce_gradient<__nv_bfloat16>(const NceGradientArgs<__nv_bfloat16>&,
                                                 cudaStream_t);
template void launch_nce_gradient<__half>(const NceGradientArgs<__half>&, cudaStream_t);

}  // namespace pacecore
