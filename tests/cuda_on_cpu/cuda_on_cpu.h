// CUDA for g++: included before every csrc/cuda/*.cu by the test build (g++ -include), it stands in
// for csrc/cuda/launch.h and gives CUDA's qualifiers, built-in variables and device functions a
// meaning on the CPU. The vector, bf16 and fp16 types are the toolkit's own.
//
// A device function that is missing here is a compile error in the test build. Add it below with
// the hardware's semantics, or, where the CPU has none to match (asynchronous copies, matrix
// instructions), put it behind a function of csrc/cuda/primitives.h.
#pragma once

// launch.h finds its guard taken and stays empty.
#define PACECORE_CUDA_LAUNCH_H
#define PACECORE_EMULATED 1

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>

#include "fibers.h"
#include "matrices.h"
#include "shared_limit.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#undef __forceinline__
#define __global__
#define __device__
#define __host__
// Kernels stand in anonymous namespaces: by that shared_memory.ld knows these variables.
#define __shared__ static
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))

// ---- barriers, a vote, shuffles; the call's place in the source is in every message about it
using CudaOnCpuSite = std::source_location;

inline void __syncthreads(CudaOnCpuSite site = CudaOnCpuSite::current()) {
  cuda_on_cpu::block_barrier(site);
}

namespace cuda_on_cpu {

template <typename T>
struct Exchange {
  T value;
  T result;
  int source;  // lane read
};

template <typename T>
T exchange(unsigned mask, T value, int source, Site site) {
  Exchange<T> request{value, value, source};
  warp_collective(
      mask, request,
      [](Exchange<T>*(&lanes)[32]) {
        for (Exchange<T>* mine : lanes) {
          if (!mine) continue;
          if (!lanes[mine->source])
            fault("a lane of its warp shuffles from lane " + std::to_string(mine->source) +
                  ", which has ended or is not in the mask");
          mine->result = lanes[mine->source]->value;
        }
      },
      site);
  return request.result;
}

// Reduces over the lanes of the mask, in lane order, and gives every lane the result.
template <typename T, typename Combine>
T reduce(unsigned mask, T value, Combine, Site site) {
  Exchange<T> request{value, value, 0};
  warp_collective(
      mask, request,
      [](Exchange<T>*(&lanes)[32]) {
        T total{};
        bool first = true;
        for (Exchange<T>* mine : lanes) {
          if (!mine) continue;
          total = first ? mine->value : Combine{}(total, mine->value);
          first = false;
        }
        for (Exchange<T>* mine : lanes)
          if (mine) mine->result = total;
      },
      site);
  return request.result;
}

// Lane `source` of the caller's group of `width` lanes, or the caller's own where that lies
// outside.
inline int in_group(int source, int width) {
  const int self = lane(), first = self / width * width;
  return source < first || source >= first + width ? self : source;
}

}  // namespace cuda_on_cpu

inline void __syncwarp(unsigned mask = 0xffffffffu, CudaOnCpuSite site = CudaOnCpuSite::current()) {
  int nothing = 0;
  cuda_on_cpu::warp_collective(mask, nothing, [](int*(&)[32]) {}, site);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              CudaOnCpuSite site = CudaOnCpuSite::current()) {
  const int first = static_cast<int>(cuda_on_cpu::lane()) / width * width;
  return cuda_on_cpu::exchange(mask, value, first + (source & (width - 1)), site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  CudaOnCpuSite site = CudaOnCpuSite::current()) {
  const int source = static_cast<int>(cuda_on_cpu::lane()) ^ lane_mask;
  return cuda_on_cpu::exchange(mask, value, cuda_on_cpu::in_group(source, width), site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              CudaOnCpuSite site = CudaOnCpuSite::current()) {
  const unsigned bit = predicate ? 1u << cuda_on_cpu::lane() : 0;
  return cuda_on_cpu::reduce(mask, bit, std::bit_or<unsigned>{}, site);
}

// ---- memory: threads take turns, so an atomic is plain code and a fence is nothing
inline void __threadfence() {}

template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  const T old = *address;
  *address = static_cast<T>(old + value);
  return old;
}

// A load with a cache hint.
template <typename T>
T __ldg(const T* address) {
  return *address;
}

// ---- arithmetic
using std::max;
using std::min;
inline float __fmul_rn(float a, float b) { return a * b; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
// c + a.low * b.byte 0 + a.high * b.byte 1, all without sign; __dp2a_hi takes bytes 2 and 3.
inline unsigned __dp2a_lo(unsigned a, unsigned b, unsigned c) {
  return c + (a & 0xffff) * (b & 0xff) + (a >> 16) * (b >> 8 & 0xff);
}
inline unsigned __dp2a_hi(unsigned a, unsigned b, unsigned c) { return __dp2a_lo(a, b >> 16, c); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = a | (uint64_t{b} << 32);
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
  return result;
}
[[noreturn]] inline void __trap() { cuda_on_cpu::fault("executes __trap()"); }

// ---- launch.h's part
namespace cuda_on_cpu {

// "pace_clip_kernel<float, 4>", by the compiler's own name of this instance.
template <auto kernel>
std::string name_of() {
  std::string name = __PRETTY_FUNCTION__;
  name = name.substr(name.find("kernel = ") + 9);
  name = name.substr(0, name.find_first_of(";]"));
  for (const std::string part : {"{anonymous}::", "pacecore::"})
    for (size_t at; (at = name.find(part)) != std::string::npos;) name.erase(at, part.size());
  return name;
}

template <typename... Parameters>
void launch(const std::string& name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, unsigned cluster, std::type_identity_t<Parameters>... arguments) {
  const SharedMemory shared = {static_shared_bytes(reinterpret_cast<const void*>(kernel)),
                               shared_bytes};
  run_grid(name, grid, block, shared, cluster, [&] { kernel(arguments...); });
}

}  // namespace cuda_on_cpu

#define PACECORE_DYNAMIC_SHARED(type, name) \
  type* name = static_cast<type*>(cuda_on_cpu::dynamic_shared())

#define PACECORE_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                  \
  do {                                                                                   \
    (void)(stream);                                                                      \
    ::pacecore::allow_shared(reinterpret_cast<const void*>(&kernel), (shared_bytes));    \
    ::cuda_on_cpu::check_raised(::cuda_on_cpu::name_of<&kernel>(),                       \
                                reinterpret_cast<const void*>(&kernel), (shared_bytes)); \
    ::cuda_on_cpu::launch(::cuda_on_cpu::name_of<&kernel>(), &kernel, (grid), (block),   \
                          (shared_bytes), 1, ##__VA_ARGS__);                             \
  } while (false)

#ifndef CUDA_ON_CPU_WITHOUT_TORCH
#include "checks.h"

namespace pacecore {

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

inline cudaStream_t current_stream(const Tensor&) { return nullptr; }

inline void check_cuda(cudaError_t status, const char* what) {
  PACECORE_CHECK(status == cudaSuccess, what, ": failed");
}

// Few, so that small grids exceed the device; enough that a sum over five tiles is split.
inline int multiprocessor_count(const Tensor&) { return 8; }

inline int64_t cache_bytes(const Tensor&) { return cuda_on_cpu::device().cache_bytes; }

}  // namespace pacecore
#endif
