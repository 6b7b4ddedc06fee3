// info_nce on CUDA, host side: what is allocated, and which kernels run in which order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "info_nce.h"
#include "info_nce_op.h"
#include "library.h"

namespace pacecore {
namespace {

constexpr int kThreads = 256;

Tensor allocate(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                ScalarType type) {
  return torch::stable::new_empty(like, sizes, type);
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
constexpr int kChunk = 16 / sizeof(T);  // elements of one copy

// Of a row whose squares add up to this: a double, since in float they overflow for a norm from
// 2e19 on. The root is that of a float.
__device__ float inverse_norm(double square) {
  const bool large = square > 1e30;
  const float root = sqrtf(static_cast<float>(large ? square * 1e-48 : square));
  if (!large && root < static_cast<float>(kNceSmallestNorm)) return 0.0f;
  return (large ? 1e-24f : 1.0f) / root;
}

// The inverse norms, or 1 where not wanted, and, where that is not null, z as the tile kernels read
// it: rows of whole 16-byte chunks, normalised. One warp a row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    prepare_kernel(const T* z, int n, int features, int pitch, bool normalize, T* prepared,
                   float* inverse_norms) {
  const int row = blockIdx.x * (kThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= n) return;
  const T* from = z + int64_t{row} * features;
  float inverse = 1;
  if (normalize) {
    double square = 0;
    for (int k = lane; k < features; k += 32) {
      const double value = static_cast<float>(from[k]);
      square += value * value;
    }
    for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(0xffffffffu, square, step);
    inverse = inverse_norm(square);
  }
  if (lane == 0) inverse_norms[row] = inverse;
  if (!prepared) return;
  for (int k = lane; k < pitch; k += 32)
    prepared[int64_t{row} * pitch + k] =
        static_cast<T>(k < features ? static_cast<float>(from[k]) * inverse : 0.0f);
}

// From the parts of the product to d loss / d z, one warp a row.
template <typename T>
struct CollectArgs {
  const float* products;
  const float* inverse_norms;
  const float* grad_loss;  // null for 1
  const T* z;              // (n, nce.pitch), normalised where wanted
  T* grad_z;               // (n, D)
  NceArgs nce;
  int splits, product_rows, product_pitch;
  bool normalize;
};

template <typename T>
__device__ float collected(const CollectArgs<T>& args, int row, int k) {
  float sum = 0;
  for (int split = 0; split < args.splits; ++split)
    sum += args.products[(int64_t{split} * args.product_rows + row) * args.product_pitch + k];
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) collect_kernel(CollectArgs<T> args) {
  const int row = blockIdx.x * (kThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= args.nce.n) return;
  const T* z = args.z + int64_t{row} * args.nce.pitch;
  float along = 0;
  if (args.normalize) {
    for (int k = lane; k < args.nce.features; k += 32)
      along += static_cast<float>(z[k]) * collected(args, row, k);
    for (int step = 16; step > 0; step /= 2) along += __shfl_xor_sync(0xffffffffu, along, step);
  }
  const float scale = nce_scale(args.nce) * (args.grad_loss ? *args.grad_loss : 1.0f) /
                      nce_weight_unit(args.nce) * (args.normalize ? args.inverse_norms[row] : 1.0f);
  for (int k = lane; k < args.nce.features; k += 32)
    args.grad_z[int64_t{row} * args.nce.features + k] =
        static_cast<T>(scale * (collected(args, row, k) - along * static_cast<float>(z[k])));
}

NceArgs make_args(const Tensor& z, const Tensor& groups, const NceOptions& options) {
  NceArgs args;
  args.groups = data<int64_t>(groups);
  args.temperature = options.temperature ? data<float>(*options.temperature) : nullptr;
  args.temperature_number = static_cast<float>(options.temperature_number);
  args.n = static_cast<int>(z.size(0));
  args.features = static_cast<int>(z.size(1));
  args.pitch = args.features;
  args.anchor_start = static_cast<int>(options.anchor_start);
  args.anchor_count = static_cast<int>(options.anchor_count);
  args.batch = options.batch;
  return args;
}

template <typename T>
void launch_prepare(const Tensor& z, const NceArgs& args, bool normalize, T* prepared,
                    float* inverse_norms, cudaStream_t stream) {
  PACECORE_LAUNCH(prepare_kernel<T>, static_cast<unsigned>(ceil_div(args.n, kThreads / 32)),
                  kThreads, 0, stream, data<T>(z), args.n, args.features, args.pitch, normalize,
                  prepared, inverse_norms);
}

// Fills the inverse norms and gives z as the tile kernels read it, `args.pitch` with it.
template <typename T>
Tensor prepare(const Tensor& z, bool normalize, float* inverse_norms, NceArgs& args,
               cudaStream_t stream) {
  const bool aligned = reinterpret_cast<uintptr_t>(z.const_data_ptr()) % 16 == 0;
  const bool copies = normalize || !aligned || args.features % kChunk<T> != 0;
  if (!copies) return z;  // no one reads the inverse norms, which are for what is normalised
  args.pitch = static_cast<int>(ceil_div(args.features, kChunk<T>) * kChunk<T>);
  const Tensor prepared = allocate(z, {args.n, args.pitch}, z.scalar_type());
  launch_prepare(z, args, normalize, data<T>(prepared), inverse_norms, stream);
  return prepared;
}

// Only anchors' rows have a loss, or with one denominator for the batch all.
NceTiles wanted_tiles(const NceArgs& args) {
  const int all = static_cast<int>(ceil_div(args.n, kTile));
  if (args.batch) return {all, 0, all};
  if (args.anchor_count == 0) return {all, 0, 0};
  const int first = args.anchor_start / kTile;
  const int64_t end = ceil_div(int64_t{args.anchor_start} + args.anchor_count, kTile);
  return {all, first, static_cast<int>(end) - first};
}

// Into what squares the scores are cut for the gradient, and how many splits of the sums over them
// are made at once.
struct Squares {
  int64_t side_tiles, splits;
};

Squares choose_squares(const Tensor& z, int64_t all_tiles, int64_t features) {
  // So large at most that two thirds of the cache hold the weights, beside the z that they
  // multiply.
  const double tile_bytes = static_cast<double>(kTile * kTile) * z.element_size();
  const int64_t most =
      std::max<int64_t>(1, static_cast<int64_t>(sqrt(cache_bytes(z) * 2.0 / 3.0 / tile_bytes)));
  const int64_t at_once = kTileBlocks * multiprocessor_count(z);
  const int64_t feature_tiles = ceil_div(features, kTile);
  if (all_tiles <= most) {
    // As many blocks as run at once, as long as each has a depth of 256 or more to go through.
    const int64_t splits = at_once / (all_tiles * feature_tiles);
    return {all_tiles,
            std::clamp<int64_t>(splits, 1, std::max<int64_t>(1, all_tiles * kTile / 256))};
  }
  // Among sides down to half of that, the one whose products fill the device best: their blocks,
  // all alike, run in as many rounds as it takes.
  Squares best = {most, 1};
  double least = INFINITY;
  for (int64_t count = ceil_div(all_tiles, most); count <= 2 * ceil_div(all_tiles, most); ++count) {
    const int64_t side = ceil_div(all_tiles, count), blocks = 2 * side * feature_tiles;
    const int64_t splits = std::clamp<int64_t>(at_once / blocks, 1, std::max<int64_t>(1, side / 2));
    // A round takes as long as a block: its depth, and the cost of beginning and adding, which is
    // that of some 256.
    const double rounds = static_cast<double>(ceil_div(blocks * splits, at_once));
    const double depth = static_cast<double>(side * kTile) / static_cast<double>(splits) + 256;
    const double cost = static_cast<double>(count * (count + 1)) * rounds * depth;
    if (cost < least) {
      least = cost;
      best = {side, splits};
    }
  }
  return best;
}

// d loss / d z times grad_loss (null for 1).
template <typename T>
void gradient(const Tensor& z, const NceArgs& args, const float* rows, bool normalize,
              const float* grad_loss, const Tensor& grad_z, cudaStream_t stream) {
  const NceTiles tiles = wanted_tiles(args);
  const int64_t n = args.n, product_pitch = ceil_div(args.features, 4) * 4;
  const Squares squares = choose_squares(z, tiles.all, args.features);
  const int64_t side = squares.side_tiles * kTile, splits = squares.splits;
  const Tensor weights = allocate(z, {side, side}, z.scalar_type());
  const int64_t product_rows = int64_t{tiles.all} * kTile;
  const bool adds = side < n || tiles.count == 0;
  const Tensor products =
      adds ? torch::stable::new_zeros(z, {splits, product_rows, product_pitch}, ScalarType::Float)
           : allocate(z, {splits, product_rows, product_pitch}, ScalarType::Float);
  NceGradientArgs<T> square = {args,
                               tiles,
                               data<T>(z),
                               rows,
                               data<T>(weights),
                               data<float>(products),
                               adds,
                               static_cast<int>(side),
                               static_cast<int>(splits),
                               static_cast<int>(product_rows),
                               static_cast<int>(product_pitch),
                               0,
                               0};
  const auto wanted = [&](int64_t first) {
    return first < int64_t{tiles.end()} * kTile && first + side > int64_t{tiles.first} * kTile;
  };
  for (int64_t row = 0; row < n; row += side) {
    for (int64_t column = row; column < n; column += side) {
      if (!wanted(row) && !wanted(column)) continue;
      square.first_row = static_cast<int>(row);
      square.first_column = static_cast<int>(column);
      launch_nce_gradient(square, stream);
    }
  }
  const CollectArgs<T> collect = {square.products, rows + 4 * n,        grad_loss,
                                  data<T>(z),      data<T>(grad_z),     args,
                                  square.splits,   square.product_rows, square.product_pitch,
                                  normalize};
  PACECORE_LAUNCH(collect_kernel<T>, static_cast<unsigned>(ceil_div(n, kThreads / 32)), kThreads, 0,
                  stream, collect);
}

template <typename T>
void forward(const Tensor& z, const Tensor& groups, const NceOptions& options,
             const NceOutputs& outputs, const Tensor& grad_z, bool leave_gradient,
             cudaStream_t stream) {
  NceArgs args = make_args(z, groups, options);
  const int64_t n = args.n;
  const Tensor sums = allocate(z, {n, static_cast<int64_t>(sizeof(NceRowSums))}, ScalarType::Byte);
  float* inverse_norms = outputs.rows + 4 * n;
  if (nce_few<T>(args)) {
    if (options.normalize) launch_prepare<T>(z, args, true, nullptr, inverse_norms, stream);
    const Tensor scores = allocate(z, {n, n}, ScalarType::Float);
    const Tensor counters = torch::stable::new_zeros(z, {2}, ScalarType::Int);
    launch_nce_few<T>(args, options.normalize ? inverse_norms : nullptr, data<T>(z),
                      data<float>(scores), data<NceRowSums>(sums), data<unsigned>(counters),
                      outputs, leave_gradient ? data<T>(grad_z) : nullptr, stream);
    return;
  }
  const Tensor prepared = prepare<T>(z, options.normalize, inverse_norms, args, stream);
  const NceTiles tiles = wanted_tiles(args);
  // As many steps at a time as the cache holds the sums of, and as even as that allows.
  const int64_t length = int64_t{tiles.count} * kTile, steps = std::max(1, tiles.steps());
  const int64_t step_bytes = 2 * length * static_cast<int64_t>(sizeof(NceRowSums));
  const int64_t most = std::max<int64_t>(1, cache_bytes(z) / std::max<int64_t>(1, step_bytes));
  const int64_t band_steps = ceil_div(steps, ceil_div(steps, most));
  const Tensor partial = allocate(z, {band_steps, step_bytes}, ScalarType::Byte);
  launch_nce_sums<T>(args, tiles, data<T>(prepared), static_cast<int>(band_steps),
                     data<NceRowSums>(partial), data<NceRowSums>(sums), stream);
  const Tensor parts =
      allocate(z, {kNceFinishParts, static_cast<int64_t>(sizeof(NceFinishPart))}, ScalarType::Byte);
  launch_nce_finish(args, data<NceRowSums>(sums), data<NceFinishPart>(parts), outputs, stream);
  if (leave_gradient)
    gradient<T>(prepared, args, outputs.rows, options.normalize, nullptr, grad_z, stream);
}

void check_type(const Tensor& z) {
  PACECORE_CHECK(z.scalar_type() != ScalarType::Double,
                 "info_nce: float64 is computed on the CPU only, got z ", describe(z), " on CUDA");
  PACECORE_CHECK(z.size(0) <= (1 << 24) && z.size(1) <= (1 << 24),
                 "info_nce: z may have 16,777,216 rows and features on CUDA, got ", describe(z));
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Results info_nce(const Tensor& z_any, const Tensor& groups_any,
                 const std::optional<Tensor>& temperature, double temperature_number, bool batch,
                 bool normalize, int64_t anchor_start, int64_t anchor_count, bool leave_gradient) {
  check_info_nce(z_any, groups_any, temperature);
  check_anchors(z_any, anchor_start, anchor_count);
  check_type(z_any);
  DeviceGuard guard(z_any.get_device_index());
  const Tensor z = in_one_piece(z_any);
  const Tensor groups = in_one_piece(groups_any);
  const int64_t n = z.size(0);
  const NceOptions options = {temperature, temperature_number, batch,
                              normalize,   anchor_start,       anchor_count};
  const Tensor grad_z = allocate(z, {leave_gradient ? n : 0, z.size(1)}, z.scalar_type());
  const Tensor rows = allocate(z, {5, n}, ScalarType::Float);
  if (n == 0) {
    const Tensor zero = torch::stable::new_zeros(z, {}, ScalarType::Float);
    const Tensor none = torch::stable::full({3}, NAN, ScalarType::Float, std::nullopt, z.device());
    return {zero, none, torch::stable::clone(zero), rows, grad_z};
  }
  const Tensor loss = allocate(z, {}, ScalarType::Float);
  const Tensor summary = allocate(z, {3}, ScalarType::Float);
  const Tensor slope = allocate(z, {}, ScalarType::Float);
  const cudaStream_t stream = current_stream(z);
  const NceOutputs outputs = {data<float>(loss), data<float>(summary), data<float>(slope),
                              data<float>(rows)};
  const auto run = [&]<typename T>(T) {
    forward<T>(z, groups, options, outputs, grad_z, leave_gradient, stream);
  };
  if (z.scalar_type() == ScalarType::Float)
    run(float{});
  else if (z.scalar_type() == ScalarType::BFloat16)
    run(__nv_bfloat16{});
  else
    run(__half{});
  return {loss, summary, slope, rows, grad_z};
}

template <typename T>
void backward(const Tensor& grad_loss, const Tensor& z, const Tensor& groups, const Tensor& rows,
              const NceOptions& options, const Tensor& grad_z, cudaStream_t stream) {
  NceArgs args = make_args(z, groups, options);
  const Tensor norms = allocate(z, {args.n}, ScalarType::Float);
  const Tensor prepared = prepare<T>(z, options.normalize, data<float>(norms), args, stream);
  gradient<T>(prepared, args, data<float>(rows), options.normalize, data<float>(grad_loss), grad_z,
              stream);
}

Tensor info_nce_backward(const Tensor& grad_loss, const Tensor& z_any, const Tensor& groups_any,
                         const Tensor& rows_any, const std::optional<Tensor>& temperature,
                         double temperature_number, bool batch, bool normalize,
                         int64_t anchor_start, int64_t anchor_count) {
  check_info_nce(z_any, groups_any, temperature);
  check_anchors(z_any, anchor_start, anchor_count);
  check_nce_rows(z_any, rows_any, grad_loss);
  check_type(z_any);
  DeviceGuard guard(z_any.get_device_index());
  const Tensor z = in_one_piece(z_any);
  const Tensor groups = in_one_piece(groups_any);
  const Tensor rows = in_one_piece(rows_any);
  const NceOptions options = {temperature, temperature_number, batch,
                              normalize,   anchor_start,       anchor_count};
  const Tensor grad_z = allocate(z, z.sizes(), z.scalar_type());
  if (z.size(0) == 0) return grad_z;
  const cudaStream_t stream = current_stream(z);
  if (z.scalar_type() == ScalarType::Float)
    backward<float>(grad_loss, z, groups, rows, options, grad_z, stream);
  else if (z.scalar_type() == ScalarType::BFloat16)
    backward<__nv_bfloat16>(grad_loss, z, groups, rows, options, grad_z, stream);
  else
    backward<__half>(grad_loss, z, groups, rows, options, grad_z, stream);
  return grad_z;
}

}  // namespace
}  // namespace pacecore

PACECORE_REGISTER_CUDA(m) {
  m.impl("info_nce", TORCH_BOX(&pacecore::info_nce));
  m.impl("info_nce_backward", TORCH_BOX(&pacecore::info_nce_backward));
}
