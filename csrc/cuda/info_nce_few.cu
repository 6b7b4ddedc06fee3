// info_nce for few rows in one launch, gradient included. Norms are there before it: a row is
// divided by its own before it is multiplied, so that no length overflows.
//
// A block takes a ticket: its number in the order in which blocks begin. The first tickets compute
// the scores and sums of a strip of rows; the rest wait until those are done, then turn all sums
// into weights and compute the gradient of a strip. A waiting block waits only for blocks that have
// begun, so that the launch ends however few blocks the device holds at once. Results depend on the
// ticket alone, hence not on the order.
#include "info_nce.h"

namespace pacecore {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kStrip = 4;    // rows of a block: as many as share each load of a column
constexpr int kColumns = 4;  // columns of a warp at a time: so many loads are on their way at once
constexpr int kMostGroups = 8;  // of threads that share the columns out in the gradient

template <typename T>
struct FewArgs {
  NceArgs nce;
  const float* inverse_norms;  // (n,), or null where z is taken as it is
  const T* z;
  float* scores;
  NceRowSums* sums;
  unsigned* counters;
  NceOutputs outputs;
  T* grad_z;
};

__device__ float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

__device__ float warp_largest(float value) {
  for (int step = 16; step > 0; step /= 2)
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

template <typename T>
__device__ float inverse_norm(const FewArgs<T>& args, int row) {
  return args.inverse_norms ? args.inverse_norms[row] : 1.0f;
}

// Neighbouring elements read as one: 16 bytes, or one element where rows do not allow more.
template <int count, typename T>
__device__ void load_elements(float (&to)[count], const T* from) {
  struct alignas(count * sizeof(T)) Elements {
    T values[count];
  };
  const Elements elements = *reinterpret_cast<const Elements*>(from);
#pragma unroll
  for (int i = 0; i < count; ++i) to[i] = static_cast<float>(elements.values[i]);
}

// Shared memory is aligned for 16 bytes at a time and no more.
template <int count>
__device__ void load_elements(float (&to)[count], const float* from) {
  constexpr int at_once = count < 4 ? count : 4;
  struct alignas(at_once * sizeof(float)) Elements {
    float values[at_once];
  };
#pragma unroll
  for (int i = 0; i < count; i += at_once) {
    const Elements elements = *reinterpret_cast<const Elements*>(from + i);
#pragma unroll
    for (int j = 0; j < at_once; ++j) to[i + j] = elements.values[j];
  }
}

// Sums of `count` values over the warp, of which lane l is left with that of value l / (32 / count)
// in values[0]: half as many shuffles at every step as summing each would take.
template <int count>
__device__ void warp_sums(float (&values)[count]) {
  const int lane = threadIdx.x % 32;
  int step = 16;
#pragma unroll
  for (int half = count / 2; half > 0; half /= 2, step /= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float given = upper ? values[i] : values[i + half];
      const float kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(0xffffffffu, given, step);
    }
  }
  for (; step > 0; step /= 2) values[0] += __shfl_xor_sync(0xffffffffu, values[0], step);
}

// The scores of a strip against every row, a warp a few columns at a time. A score is the same bits
// as that of the same two rows the other way round.
template <int vector, typename T>
__device__ void strip_scores(const FewArgs<T>& args, int first, float* strip) {
  const NceArgs& nce = args.nce;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int i = threadIdx.x; i < kStrip * nce.features; i += kThreads) {
    const int row = min(first + i / nce.features, nce.n - 1);
    strip[i] = static_cast<float>(args.z[int64_t{row} * nce.pitch + i % nce.features]) *
               inverse_norm(args, row);
  }
  __syncthreads();
  for (int first_column = warp * kColumns; first_column < nce.n;
       first_column += kWarps * kColumns) {
    float dots[kColumns * kStrip] = {}, inverse[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      inverse[c] = inverse_norm(args, min(first_column + c, nce.n - 1));
#pragma unroll(vector > 1 ? 2 : 4)
    for (int k = lane * vector; k < nce.features; k += 32 * vector) {
      float values[kColumns][vector];
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        load_elements(values[c],
                      args.z + int64_t{min(first_column + c, nce.n - 1)} * nce.pitch + k);
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
#pragma unroll
        for (int i = 0; i < vector; ++i) values[c][i] *= inverse[c];
#pragma unroll
      for (int row = 0; row < kStrip; ++row) {
        float mine[vector];
        load_elements(mine, strip + row * nce.features + k);
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
#pragma unroll
          for (int i = 0; i < vector; ++i)
            dots[c * kStrip + row] = fmaf(mine[i], values[c][i], dots[c * kStrip + row]);
      }
    }
    warp_sums(dots);
    static_assert(kColumns * kStrip == 16);
    const int row = lane / 2 % kStrip, column = first_column + lane / (2 * kStrip);
    if (lane % 2 == 0 && first + row < nce.n && column < nce.n)
      args.scores[int64_t{first + row} * nce.n + column] = dots[0];
  }
  __syncthreads();
}

// The sums of one row by one warp.
template <typename T>
__device__ void row_sums(const FewArgs<T>& args, int row) {
  const NceArgs& nce = args.nce;
  const int lane = threadIdx.x % 32;
  const float* scores = args.scores + int64_t{row} * nce.n;
  const float scale = nce_scale(nce);
  const int64_t group = nce.groups[row];
  float positive = -INFINITY, negative = -INFINITY;
  for (int j = lane; j < nce.n; j += 32) {
    if (j == row) continue;
    float& nearest = nce.groups[j] == group ? positive : negative;
    nearest = fmaxf(nearest, nce_logit(scores[j], scale));
  }
  NceSums<float> sums;
  sums.nearest_positive = warp_largest(positive);
  sums.nearest_negative = warp_largest(negative);
  sums.largest = fmaxf(sums.nearest_positive, sums.nearest_negative);
  float positives = 0;
  for (int j = lane; j < nce.n; j += 32) {
    if (j == row) continue;
    const float logit = nce_logit(scores[j], scale), below = logit - sums.largest, e = expf(below);
    const bool is_positive = nce.groups[j] == group;
    sums.positive += is_positive ? e : 0.0f;
    sums.negative += is_positive ? 0.0f : e;
    sums.weighted += e * below;
    sums.positive_logits += is_positive ? logit : 0.0f;
    sums.negative_logits += is_positive ? 0.0f : logit;
    positives += is_positive ? 1.0f : 0.0f;
  }
  sums.positive = warp_sum(sums.positive);
  sums.negative = warp_sum(sums.negative);
  sums.weighted = warp_sum(sums.weighted);
  sums.positive_logits = warp_sum(sums.positive_logits);
  sums.negative_logits = warp_sum(sums.negative_logits);
  positives = warp_sum(positives);
  if (lane == 0) args.sums[row] = {sums, static_cast<int>(positives)};
}

// d loss / d z of a strip. rows: (4, n), weights: (kStrip, n), products: (kStrip, D), all shared.
template <int vector, typename T>
__device__ void strip_gradient(const FewArgs<T>& args, int first, const float* rows, float* weights,
                               float* products) {
  const NceArgs& nce = args.nce;
  const int n = nce.n, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float scale = nce_scale(nce);
  for (int i = threadIdx.x; i < kStrip * n; i += kThreads) {
    const int row = first + i / n, column = i % n;
    float weight = 0;
    if (row < n && row != column) {
      const float logit = nce_logit(args.scores[int64_t{row} * n + column], scale);
      const bool is_positive = nce.groups[row] == nce.groups[column];
      weight = nce_weight(load_nce_row(rows, n, row), logit, is_positive) +
               nce_weight(load_nce_row(rows, n, column), logit, is_positive);
      weight *= scale * inverse_norm(args, column);
    }
    weights[i] = weight;
  }
  __syncthreads();
  // A thread has `vector` features, of every so many columns that groups of threads share them.
  const int chunks = nce.features / vector;
  const int groups = max(1, min(kMostGroups, kThreads / chunks)), of_group = kThreads / groups;
  const int group = threadIdx.x / of_group;
  for (int first_chunk = 0; first_chunk < chunks; first_chunk += of_group) {
    const int k = (first_chunk + threadIdx.x % of_group) * vector;
    const bool inside = k < nce.features && group < groups;
    float sum[kStrip][vector] = {};
    if (inside) {
#pragma unroll(vector > 1 ? 4 : 8)
      for (int column = group; column < n; column += groups) {
        float values[vector];
        load_elements(values, args.z + int64_t{column} * nce.pitch + k);
#pragma unroll
        for (int row = 0; row < kStrip; ++row) {
          const float weight = weights[row * n + column];
#pragma unroll
          for (int i = 0; i < vector; ++i) sum[row][i] = fmaf(weight, values[i], sum[row][i]);
        }
      }
    }
    for (int turn = 0; turn < groups; ++turn) {
      if (inside && group == turn) {
#pragma unroll
        for (int row = 0; row < kStrip; ++row) {
          float* product = products + row * nce.features + k;
#pragma unroll
          for (int i = 0; i < vector; ++i)
            product[i] = turn == 0 ? sum[row][i] : product[i] + sum[row][i];
        }
      }
      __syncthreads();
    }
  }
  if (warp >= kStrip || first + warp >= n) return;
  const int row = first + warp;
  const T* z = args.z + int64_t{row} * nce.pitch;
  const float* product = products + warp * nce.features;
  const float inverse = inverse_norm(args, row);
  float along = 0;  // the part along z, which normalising takes out
  if (args.inverse_norms) {
    for (int k = lane; k < nce.features; k += 32)
      along += static_cast<float>(z[k]) * inverse * product[k];
    along = warp_sum(along);
  }
  for (int k = lane; k < nce.features; k += 32)
    args.grad_z[int64_t{row} * nce.features + k] =
        static_cast<T>(inverse * (product[k] - along * (static_cast<float>(z[k]) * inverse)));
}

// vector: elements that are read as one.
template <typename T, int vector>
__global__ void __launch_bounds__(kThreads, 1) few_kernel(FewArgs<T> args) {
  PACECORE_DYNAMIC_SHARED(float, shared);
  __shared__ unsigned ticket;
  __shared__ __align__(16) unsigned char merged[kThreads * sizeof(NceTotals)];
  static_assert(sizeof(NceSums<double>) <= sizeof(NceTotals));
  const NceArgs& nce = args.nce;
  const unsigned strips = (nce.n + kStrip - 1) / kStrip;
  if (threadIdx.x == 0) ticket = atomicAdd(&args.counters[0], 1u);
  __syncthreads();
  if (ticket < strips) {
    const int first = ticket * kStrip, warp = threadIdx.x / 32;
    strip_scores<vector>(args, first, shared);
    if (warp < kStrip && first + warp < nce.n) row_sums(args, first + warp);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&args.counters[1], 1u);
    return;
  }
  if (threadIdx.x == 0)
    while (atomicAdd(&args.counters[1], 0u) < strips) {
    }
  __syncthreads();
  __threadfence();
  // A strip each, and one block for what is read after the launch, which keeps no other waiting.
  const int part = ticket - strips;
  const bool last = ticket + 1 == gridDim.x;
  float* rows = shared;
  NceSums<double> batch;
  NceTotals totals;
  if (nce.batch) batch = batch_sums<kThreads>(args.sums, 0, nce.n, merged);
  if (nce.batch || last) totals = anchor_totals<kThreads>(nce, args.sums, batch, 0, nce.n, merged);
  write_rows<kThreads>(nce, args.sums, batch, totals, 0, nce.n, last ? args.outputs.rows : rows);
  if (last) {
    if (threadIdx.x == 0) write_outputs(nce, totals, args.outputs);
    return;
  }
  __syncthreads();
  strip_gradient<vector>(args, part * kStrip, rows, rows + 4 * nce.n, rows + (4 + kStrip) * nce.n);
}

}  // namespace

template <typename T>
void launch_nce_few(const NceArgs& args, const float* inverse_norms, const T* z, float* scores,
                    NceRowSums* sums, unsigned* counters, const NceOutputs& outputs, T* grad_z,
                    cudaStream_t stream) {
  const FewArgs<T> few = {args, inverse_norms, z, scores, sums, counters, outputs, grad_z};
  const int strips = (args.n + kStrip - 1) / kStrip;
  const int grid = strips + (grad_z ? strips : 0) + 1;
  const size_t shared = ((4 + kStrip) * args.n + kStrip * args.features) * sizeof(float);
  constexpr int vector = 16 / sizeof(T);
  if (args.features % vector == 0 && reinterpret_cast<uintptr_t>(z) % 16 == 0)
    PACECORE_LAUNCH((few_kernel<T, vector>), grid, kThreads, shared, stream, few);
  else
    PACECORE_LAUNCH((few_kernel<T, 1>), grid, kThreads, shared, stream, few);
}

template void launch_nce_few<float>(const NceArgs&, const float*, const float*, float*, NceRowSums*,
                                    unsigned*, const NceOutputs&, float*, cudaStream_t);
template void launch_nce_few<__nv_bfloat16>(const NceArgs&, const float*, const __nv_bfloat16*,
                                            float*, NceRowSums*, unsigned*, const NceOutputs&,
                                            __nv_bfloat16*, cudaStream_t);
template void launch_nce_few<__half>(const NceArgs&, const float*, const __half*, float*,
                                     NceRowSums*, unsigned*, const NceOutputs&, __half*,
                                     cudaStream_t);

}  // namespace pacecore
