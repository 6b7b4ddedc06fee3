// How much shared memory a kernel may ask for at its launch. Read by launch.h and by the tests,
// which run kernels on the CPU against their own model of these limits (tests/cuda_on_cpu).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace pacecore {

// Raises the kernel's limit of dynamic shared memory where `bytes` are more than it allows from the
// start: 48 KB, of which the kernel's static variables are a part. It is raised to all that the
// device has, because another thread may have raised it for a larger launch that is yet to come.
inline cudaError_t allow_shared(const void* kernel, size_t bytes) {
  constexpr size_t unraised = 48 * 1024;
  if (bytes == 0) return cudaSuccess;  // static variables alone never pass it
  cudaFuncAttributes attributes{};
  cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  if (status != cudaSuccess || attributes.sharedSizeBytes + bytes <= unraised) return status;
  int device = 0, most = 0;
  status = cudaGetDevice(&device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status != cudaSuccess) return status;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              most - static_cast<int>(attributes.sharedSizeBytes));
}

}  // namespace pacecore
