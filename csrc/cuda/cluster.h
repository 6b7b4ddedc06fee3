// Thread block clusters (sm_90 and later): blocks that run together and read each other's shared
// memory. Everywhere else a cluster is one block. The host versions are for the tests, which run
// kernels on the CPU (tests/cuda_on_cpu).
#pragma once

#include <cstdint>

#include "launch.h"

#ifndef PACECORE_EMULATED
#include <cooperative_groups.h>
#endif

namespace pacecore {

// Blocks of a cluster that every GPU runs which knows clusters; 1 where the kernel's code does not:
// code for sm_80, translated by the driver for a later GPU, has no cluster_sum. And the most
// dynamic shared memory that a block may have beside kStaticShared bytes of its own.
constexpr int kStaticShared = 1024;
struct ClusterLimits {
  int blocks;
  int64_t shared_bytes;
};

// On the current device.
inline ClusterLimits cluster_limits(const void* kernel, const char* name) {
  cudaFuncAttributes attributes{};
  int device = 0, shared_bytes = 0;
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), name);
  check_cuda(cudaGetDevice(&device), name);
  check_cuda(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             name);
  return {attributes.ptxVersion >= 90 ? 8 : 1, shared_bytes - kStaticShared};
}

// Sum over the blocks of a cluster, in the order of their ranks, of a value that all threads of a
// block hold alike; every thread gets it. `slot` is in shared memory. All threads of all blocks
// call.
__device__ __forceinline__ double cluster_sum(double value, double* slot, int blocks) {
#if defined(PACECORE_EMULATED)
  if (blocks > 1) {
    if (threadIdx.x == 0) *slot = value;
    cuda_on_cpu::cluster_barrier();
    value = 0;
    for (int rank = 0; rank < blocks; ++rank)
      value += *static_cast<const double*>(cuda_on_cpu::shared_of_rank(slot, rank));
  }
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (blocks > 1) {
    const auto cluster = cooperative_groups::this_cluster();
    if (threadIdx.x == 0) *slot = value;
    cluster.sync();
    value = 0;
    for (int rank = 0; rank < blocks; ++rank) value += *cluster.map_shared_rank(slot, rank);
    // No block may end while another reads its slot: cluster_end waits. Relaxed, as a release is a
    // fence for the whole GPU: what was read is in the sum that the barrier is given, and nvcc 13.0
    // adds it up before.
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" : "+d"(value)::"memory");
  }
#else
  (void)slot;
  (void)blocks;
#endif
  return value;
}

// To be called by all threads after cluster_sum, before the block ends or sums again.
__device__ __forceinline__ void cluster_end(int blocks) {
#if defined(PACECORE_EMULATED)
  if (blocks > 1) cuda_on_cpu::cluster_barrier();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (blocks > 1) asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#else
  (void)blocks;
#endif
}

// Launches a grid of one dimension whose consecutive `blocks_per_cluster` blocks are a cluster.
template <auto kernel, typename... Arguments>
void launch_clusters(const char* name, unsigned grid, unsigned block, int64_t shared_bytes,
                     cudaStream_t stream, int blocks_per_cluster, Arguments... arguments) {
#ifdef PACECORE_EMULATED
  (void)name;
  (void)stream;
  cuda_on_cpu::launch(cuda_on_cpu::name_of<kernel>(), kernel, dim3(grid), dim3(block),
                      static_cast<size_t>(shared_bytes), blocks_per_cluster, arguments...);
#else
  check_cuda(allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes), name);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(blocks_per_cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(block);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = blocks_per_cluster > 1 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), name);
#endif
}

}  // namespace pacecore
