// What every CUDA op needs around its kernel: device guard, current stream, launch, error check.
// The only file that names cudart's launch syntax and torch's CUDA symbols, so that csrc/cuda/*.cu
// also compiles against the test header that runs kernels on the CPU (tests/cuda_on_cpu): included
// first, it defines this file's guard and everything declared here.
#ifndef PACECORE_CUDA_LAUNCH_H
#define PACECORE_CUDA_LAUNCH_H

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "checks.h"
#include "shared_limit.h"

// In libtorch_cuda.so only. Weak, so that one binary also loads under a CPU torch, where no CUDA
// tensor can exist.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                            void** stream);

namespace pacecore {

using DeviceGuard = torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  PACECORE_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "pacecore: this torch has no CUDA");
  PACECORE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == 0,
                 "pacecore: torch has no current CUDA stream on device ",
                 tensor.get_device_index());
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) cudaGetLastError();  // else the next launch is blamed for it
  PACECORE_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

inline int multiprocessor_count(const Tensor& tensor) {
  int count = 0;
  check_cuda(
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, tensor.get_device_index()),
      "pacecore: number of multiprocessors");
  return count;
}

// Of the second-level cache, which all multiprocessors share.
inline int64_t cache_bytes(const Tensor& tensor) {
  int bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, tensor.get_device_index()),
             "pacecore: size of the cache");
  return bytes;
}

}  // namespace pacecore

// Dynamic shared memory of a kernel, aligned for 16-byte accesses: PACECORE_DYNAMIC_SHARED(float,
// tile);
#define PACECORE_DYNAMIC_SHARED(type, name)                              \
  extern __shared__ __align__(16) unsigned char name##_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(name##_dynamic_shared)

// PACECORE_LAUNCH(kernel<float>, grid, block, shared_bytes, stream, arguments...): raises the
// kernel's limit of shared memory where need be, launches, and raises the launch's own error.
#define PACECORE_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                           \
  do {                                                                                            \
    auto* pacecore_kernel = &kernel;                                                              \
    ::pacecore::check_cuda(                                                                       \
        ::pacecore::allow_shared(reinterpret_cast<const void*>(pacecore_kernel), (shared_bytes)), \
        #kernel);                                                                                 \
    pacecore_kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__);                  \
    ::pacecore::check_cuda(cudaGetLastError(), #kernel);                                          \
  } while (false)

#endif  // PACECORE_CUDA_LAUNCH_H
