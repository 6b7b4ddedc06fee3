// Small kernels, each with one fault that tests/test_cuda_on_cpu.py expects to be caught, and the
// same kernel without it. Run as: planted_faults NAME faulty|sound SCHEDULE SEED; prints the bits
// of the result, or the fault.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>

#include "launch.h"
#include "primitives.h"

extern "C" void cuda_on_cpu_set_schedule(int schedule, uint64_t seed);

namespace {

constexpr int kThreads = 64;
constexpr unsigned kAll = 0xffffffffu;

template <bool faulty>
__global__ void missing_barrier(float* out) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = threadIdx.x;
  if (!faulty) __syncthreads();
  out[threadIdx.x] = tile[(threadIdx.x + 33) % kThreads];
}

// The second round overwrites what slower threads have yet to read.
template <bool faulty>
__global__ void missing_barrier_before_reuse(float* out) {
  __shared__ float tile[kThreads];
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = threadIdx.x + 100.0f * round;
    __syncthreads();
    sum += tile[(threadIdx.x + 1) % kThreads];
    if (!faulty) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

template <bool faulty>
__global__ void missing_warp_barrier(float* out) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = threadIdx.x;
  if (!faulty) __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x ^ 5];
}

template <bool faulty>
__global__ void barrier_not_reached(float* out) {
  if (faulty && threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

template <bool faulty>
__global__ void two_barriers(float* out) {
  if (faulty && threadIdx.x >= 32) {
    __syncthreads();
    out[threadIdx.x] = 2;
  } else {
    __syncthreads();
    out[threadIdx.x] = 1;
  }
}

template <bool faulty>
__global__ void lane_missing(float* out) {
  float value = threadIdx.x;
  if (!faulty || threadIdx.x % 32 < 16) value = __shfl_xor_sync(kAll, value, 1);
  __syncthreads();
  out[threadIdx.x] = value;
}

template <bool faulty>
__global__ void shuffle_from_outside(float* out) {
  const unsigned half = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
  out[threadIdx.x] = __shfl_xor_sync(faulty ? half : kAll, float(threadIdx.x), 16);
}

template <bool faulty>
__global__ void caller_not_in_mask(float* out) {
  out[threadIdx.x] = __ballot_sync(faulty ? 1u : kAll, 1);
}

template <bool faulty>
__global__ void unwritten_shared(float* out) {
  __shared__ float tile[kThreads];
  if (!faulty || threadIdx.x < 50) tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  // A maximum hides NaN, so the poison has to be more than that.
  out[threadIdx.x] = fmaxf(tile[kThreads - 1 - threadIdx.x], 3.0f);
}

template <bool faulty>
__global__ void unwritten_dynamic_shared(float* out) {
  PACECORE_DYNAMIC_SHARED(int, tile);
  if (!faulty || threadIdx.x < 50) tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x] % 7;
}

template <bool faulty>
__global__ void order_of_atomics(float* out) {
  // Small terms vanish beside the large one, or not, by the order of addition.
  const float term = threadIdx.x == 0 ? 16777216.0f : 1.0f;
  if (faulty)
    atomicAdd(out, term);
  else
    atomicAdd(reinterpret_cast<int*>(out), static_cast<int>(term));
}

// Reads what another block of the same launch writes.
template <bool faulty>
__global__ void order_of_blocks(float* out) {
  if (threadIdx.x >= 8) return;
  float* mine = out + 8 * blockIdx.x;
  mine[threadIdx.x] = faulty && blockIdx.x == 1 ? out[threadIdx.x] + 1 : 1.0f;
}

// Each of four blocks reads the next one's static and dynamic shared memory.
template <bool faulty>
__global__ void missing_cluster_barrier(float* out) {
  __shared__ float mine[16];
  PACECORE_DYNAMIC_SHARED(float, more);
  const unsigned next = (blockIdx.x + 1) % 4;
  mine[threadIdx.x] = 100.0f * blockIdx.x + threadIdx.x;
  more[threadIdx.x] = 0.5f;
  if (!faulty) cuda_on_cpu::cluster_barrier();
  float* theirs = static_cast<float*>(cuda_on_cpu::shared_of_rank(&mine[threadIdx.x], next));
  float* rest = static_cast<float*>(cuda_on_cpu::shared_of_rank(&more[threadIdx.x], next));
  out[16 * blockIdx.x + threadIdx.x] = *theirs + *rest;
  cuda_on_cpu::cluster_barrier();
}

template <bool faulty>
__global__ void cluster_barrier_not_reached(float* out) {
  if (!faulty || blockIdx.x != 2) cuda_on_cpu::cluster_barrier();
  out[16 * blockIdx.x + threadIdx.x] = 1;
}

template <bool faulty>
__global__ void global_out_of_bounds(float* out) {
  out[threadIdx.x + faulty] = 1;
}

template <bool faulty>
__global__ void shared_out_of_bounds(float* out) {
  __shared__ float tile[kThreads];
  float* volatile slots = tile;  // hides from the compiler which object this is
  slots[threadIdx.x + faulty] = 1;
  __syncthreads();
  out[threadIdx.x] = slots[threadIdx.x];
}

template <bool faulty>
__global__ void dynamic_shared_out_of_bounds(float* out) {
  PACECORE_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x + faulty] = 1;
  __syncthreads();
  out[threadIdx.x] = 1;
}

template <bool faulty>
__global__ void local_out_of_bounds(float* out) {
  float values[4] = {1, 2, 3, 4};
  const int index = threadIdx.x % 4 + (faulty && threadIdx.x == 63);
  out[threadIdx.x] = values[index];
}

template <bool faulty>
__global__ void misaligned_vector(float* out) {
  if (threadIdx.x < 8)
    *reinterpret_cast<float4*>(out + 4 * threadIdx.x + faulty) = make_float4(1, 2, 3, 4);
}

template <bool faulty>
__global__ void missing_copy_wait(float* out) {
  __shared__ __align__(16) float tile[kThreads];
  if (threadIdx.x < 16) {
    float* source = out + 4 * threadIdx.x;
    for (int i = 0; i < 4; ++i) source[i] = i;
    pacecore::async_copy_16(tile + 4 * threadIdx.x, source);
    pacecore::async_copy_commit();
    if (!faulty) pacecore::async_copy_wait<0>();
  }
  __syncthreads();
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// The copy of the second round may land while the first is still read.
template <bool faulty>
__global__ void early_copy(float* out) {
  __shared__ __align__(16) float tile[kThreads];
  tile[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = -1;
  __syncthreads();
  float value = 0;
  if (!faulty) value = tile[kThreads - 1 - threadIdx.x];
  __syncthreads();
  if (threadIdx.x < 16) pacecore::async_copy_16(tile + 4 * threadIdx.x, out + 4 * threadIdx.x);
  pacecore::async_copy_commit();
  if (faulty) value = tile[kThreads - 1 - threadIdx.x];
  pacecore::async_copy_wait<0>();
  __syncthreads();
  out[threadIdx.x] = value;
}

template <bool faulty>
__global__ void misaligned_copy(float* out) {
  __shared__ __align__(16) float tile[2 * kThreads];
  if (threadIdx.x < 8) pacecore::async_copy_16(tile + 4 * threadIdx.x + faulty, out);
  pacecore::async_copy_commit();
  pacecore::async_copy_wait<0>();
}

template <bool faulty>
__global__ void partial_copy(float* out) {
  __shared__ __align__(16) float tile[kThreads];
  if (threadIdx.x < 16) pacecore::async_copy_16(tile + 4 * threadIdx.x, out, faulty ? 12 : 0);
  pacecore::async_copy_commit();
  pacecore::async_copy_wait<0>();
}

template <bool faulty>
__global__ void misaligned_matrix(float* out) {
  __shared__ __align__(16) uint16_t rows[33 * 8];
  for (int i = threadIdx.x; i < 33 * 8; i += 32) rows[i] = i;
  __syncwarp();
  uint32_t result[4];
  pacecore::load_matrix_x4(result, rows + 8 * threadIdx.x + faulty);
  out[threadIdx.x] = result[threadIdx.x % 4];
}

template <bool faulty>
__global__ void too_many_threads(float* out) {
  if (threadIdx.x < kThreads) out[threadIdx.x] = 1;
}

template <bool faulty>
__global__ void too_much_shared(float* out) {
  PACECORE_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = 1;
  out[threadIdx.x] = tile[threadIdx.x];
}

// 48 KB with what is static, a part of a limit that no one has raised.
template <bool faulty>
__global__ void static_shared_not_counted(float* out) {
  __shared__ float more[4096];
  PACECORE_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = more[threadIdx.x] = 1;
  out[threadIdx.x] = tile[threadIdx.x] + more[threadIdx.x];
}

template <bool faulty>
__global__ void trap(float* out) {
  if (faulty && threadIdx.x == 7) __trap();
  out[threadIdx.x] = 1;
}

// 16 x 16 times 16 x 8 through the matrix instructions; a lane that leaves early is the fault. Rows
// 0 to 7 of the product, and a thousand times rows 8 to 15.
template <bool faulty>
__global__ void matrix_product(float* out) {
  __shared__ __align__(16) __nv_bfloat16 a[16][16];
  __shared__ __align__(16) __nv_bfloat16 b[16][8];
  const int lane = threadIdx.x;
  if (faulty && lane == 31) return;
  for (int i = lane; i < 256; i += 32)
    a[i / 16][i % 16] = __float2bfloat16(float((i / 16 * 3 + i % 16 * 5) % 7 - 3));
  for (int i = lane; i < 128; i += 32)
    b[i / 8][i % 8] = __float2bfloat16(float((i % 8 * 2 + i / 8 * (i / 8)) % 5 - 2));
  __syncwarp();
  uint32_t left[4], right[4];
  pacecore::load_matrix_x4(left, &a[lane % 16][lane / 16 * 8]);
  pacecore::load_matrix_x4_transposed(right, &b[lane % 16][0]);
  float sums[4] = {0, 0, 0, 0};
  pacecore::mma_m16n8k16<__nv_bfloat16>(sums, left, {right[0], right[1]});
  for (int i = 0; i < 2; ++i) out[lane / 4 * 8 + lane % 4 * 2 + i] = sums[i] + 1000 * sums[i + 2];
}

template <bool faulty>
void run(const char* name, float* out) {
  const size_t bytes = kThreads * sizeof(float);
  const std::map<std::string, std::function<void()>> kernels = {
#define KERNEL(kernel, grid, block, shared)                                              \
  {                                                                                      \
    #kernel, [=] { PACECORE_LAUNCH(kernel<faulty>, grid, block, shared, nullptr, out); } \
  }
#define CLUSTERS(kernel, grid, block, shared)                                                    \
  {                                                                                              \
    #kernel, [=] {                                                                               \
      cuda_on_cpu::launch(cuda_on_cpu::name_of<&kernel<faulty>>(), &kernel<faulty>, grid, block, \
                          shared, grid, out);                                                    \
    }                                                                                            \
  }
      KERNEL(missing_barrier, 1, kThreads, 0),
      KERNEL(missing_barrier_before_reuse, 1, kThreads, 0),
      KERNEL(missing_warp_barrier, 1, kThreads, 0),
      KERNEL(barrier_not_reached, 1, kThreads, 0),
      KERNEL(two_barriers, 1, kThreads, 0),
      KERNEL(lane_missing, 1, kThreads, 0),
      KERNEL(shuffle_from_outside, 1, kThreads, 0),
      KERNEL(caller_not_in_mask, 1, kThreads, 0),
      KERNEL(unwritten_shared, 1, kThreads, 0),
      KERNEL(unwritten_dynamic_shared, 1, kThreads, bytes),
      KERNEL(order_of_atomics, 1, kThreads, 0),
      KERNEL(order_of_blocks, dim3(2, 1), kThreads, 0),
      CLUSTERS(missing_cluster_barrier, 4, 16, 64),
      CLUSTERS(cluster_barrier_not_reached, 4, 16, 0),
      KERNEL(global_out_of_bounds, 1, kThreads, 0),
      KERNEL(shared_out_of_bounds, 1, kThreads, 0),
      KERNEL(dynamic_shared_out_of_bounds, 1, kThreads, bytes),
      KERNEL(local_out_of_bounds, 1, kThreads, 0),
      KERNEL(misaligned_vector, 1, kThreads, 0),
      KERNEL(missing_copy_wait, 1, kThreads, 0),
      KERNEL(early_copy, 1, kThreads, 0),
      KERNEL(misaligned_copy, 1, kThreads, 0),
      KERNEL(partial_copy, 1, kThreads, 0),
      KERNEL(misaligned_matrix, 1, 32, 0),
      KERNEL(too_many_threads, 1, faulty ? 1056 : 1024, 0),
      KERNEL(too_much_shared, 1, kThreads, (faulty ? 228 : 227) * 1024),
      {"static_shared_not_counted",
       [=] {
         constexpr auto* kernel = &static_shared_not_counted<faulty>;
         constexpr size_t shared = 32 * 1024 + (faulty ? 16 : 0);
         const std::string name = cuda_on_cpu::name_of<kernel>();
         cuda_on_cpu::check_raised(name, reinterpret_cast<const void*>(kernel), shared);
         cuda_on_cpu::launch(name, kernel, 1, kThreads, shared, 1, out);
       }},
      KERNEL(matrix_product, 1, 32, 0),
      KERNEL(trap, 1, dim3(8, 4, 2), 0),
  };
  kernels.at(name)();
}

}  // namespace

int main(int count, char** words) {
  if (count < 4) return 64;
  int status = 0;
  for (int word = 3; word < count && status == 0; ++word) {
    cuda_on_cpu_set_schedule(std::atoi(words[word]), 1);
    // 16-byte aligned and no byte longer than the result.
    float* out = static_cast<float*>(std::malloc(kThreads * sizeof(float)));
    std::fill_n(out, kThreads, 0.0f);
    try {
      if (std::strcmp(words[2], "faulty") == 0)
        run<true>(words[1], out);
      else
        run<false>(words[1], out);
      for (int i = 0; i < kThreads; ++i) std::printf("%08x", __float_as_uint(out[i]));
      std::printf("\n");
    } catch (const std::runtime_error& error) {
      std::fprintf(stderr, "%s\n", error.what());
      status = 1;
    }
    std::free(out);
  }
  return status;
}
