// Device operations that only exist as PTX: asynchronous copies and matrix instructions of sm_80
// and later, a store, the bare exponential. Kernels call these functions and hold no inline
// assembly of their own, so that g++ compiles them for the tests (tests/cuda_on_cpu, which defines
// PACECORE_EMULATED and has what each does on a CPU).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "launch.h"

#ifdef PACECORE_EMULATED
#include <cmath>
#endif

namespace pacecore {

// Starts a copy of 16 bytes from global to shared memory past the registers, or of zeros where
// `valid_bytes` is 0 and not 16: then nothing is read. The numbers between are not for use:
// memcheck takes such a copy for a read of all 16 bytes, an error where fewer are left of an
// allocation. Both addresses are multiples of 16. The bytes are there for the calling thread after
// async_copy_wait, for its block after a barrier following that.
__device__ __forceinline__ void async_copy_16(void* destination, const void* source,
                                              int valid_bytes = 16) {
#ifdef PACECORE_EMULATED
  cuda_on_cpu::async_copy(destination, source, valid_bytes);
#else
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(destination));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(source),
               "r"(valid_bytes)
               : "memory");
#endif
}

// Closes the group of the copies that this thread started since the last commit.
__device__ __forceinline__ void async_copy_commit() {
#ifdef PACECORE_EMULATED
  cuda_on_cpu::async_commit();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most the newest `pending_groups` of this thread's groups are still on their way.
template <int pending_groups>
__device__ __forceinline__ void async_copy_wait() {
#ifdef PACECORE_EMULATED
  cuda_on_cpu::async_wait(pending_groups);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending_groups) : "memory");
#endif
}

// 2^x within 2 units of the last place, 0 where that is no normal number.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef PACECORE_EMULATED
  return std::exp2(x);
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
#endif
}

// Stores 16 bytes to shared memory, at a multiple of 16. Spelt out because the compiler takes a
// float4 apart where another path stores its parts.
__device__ __forceinline__ void store_shared_16(float* to, float4 value) {
#ifdef PACECORE_EMULATED
  *reinterpret_cast<float4*>(to) = value;
#else
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
               : "memory");
#endif
}

// threadIdx.x % 32, asked for again at each call: what is calculated from it takes no register from
// one call to the next.
__device__ __forceinline__ int lane_again() {
#ifdef PACECORE_EMULATED
  return static_cast<int>(threadIdx.x % 32);
#else
  int lane;
  asm volatile("mov.u32 %0, %%laneid;\n" : "=r"(lane));
  return lane;
#endif
}

// Four bytes of the eight of (low, high), from byte `at` % 4 on.
__device__ __forceinline__ uint32_t four_bytes_from(uint32_t low, uint32_t high, uint32_t at) {
#ifdef PACECORE_EMULATED
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> 8 * (at % 4));
#else
  uint32_t result;
  asm("prmt.b32.f4e %0, %1, %2, %3;\n" : "=r"(result) : "r"(low), "r"(high), "r"(at));
  return result;
#endif
}

// Loads four 8 x 8 matrices of 16-bit elements from shared memory: lane 8 * m + r names the 16-byte
// aligned address of row r of matrix m. Register m of lane l then holds, low half first, elements
// [l / 4][2 * (l % 4)] and [l / 4][2 * (l % 4) + 1] of matrix m. All 32 lanes take part.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&result)[4], const void* row) {
#ifdef PACECORE_EMULATED
  cuda_on_cpu::load_matrices(result, row, false);
#else
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(from)
               : "memory");
#endif
}

// As load_matrix_x4, each matrix transposed on the way: register m of lane l holds elements
// [2 * (l % 4)][l / 4] and [2 * (l % 4) + 1][l / 4].
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&result)[4], const void* row) {
#ifdef PACECORE_EMULATED
  cuda_on_cpu::load_matrices(result, row, true);
#else
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(from)
               : "memory");
#endif
}

// accumulator += a * b by one warp: a is 16 x 16 and row-major in the order of load_matrix_x4 over
// its quarters (rows 0-7, k 0-7), (rows 8-15, k 0-7), (rows 0-7, k 8-15), (rows 8-15, k 8-15); b is
// 16 x 8, register r holding k 8 * r + 2 * (l % 4) and the next of column l / 4, which is what
// load_matrix_x4 gives for b stored by columns. Of the 16 x 8 accumulator lane l holds row l / 4,
// columns 2 * (l % 4) and the next, then the same of row l / 4 + 8. T: __nv_bfloat16 or __half.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&accumulator)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
#ifdef PACECORE_EMULATED
  cuda_on_cpu::multiply_add<T>(accumulator, a, b);
#else
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

}  // namespace pacecore
