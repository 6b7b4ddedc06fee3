// Whether this processor has every instruction that *_avx2.cpp and *_avx512.cpp are compiled for
// (source_flags of setup.py).
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pacecore {

#if defined(__x86_64__)
// Asked once: under a hypervisor each question to the processor takes some 5 microseconds.
inline bool runs_avx2() {
  static const bool runs = [] {
    unsigned a, b, c, d;  // clang's __builtin_cpu_supports knows "f16c" only from version 18 on
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  }();
  return runs;
}

inline bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

}  // namespace pacecore
