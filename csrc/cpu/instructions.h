// Whether this processor has every instruction that *_avx2.cpp and *_avx512.cpp are compiled for
// (source_flags of setup.py).
#pragma once

namespace pacecore {

#if defined(__x86_64__)
inline bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

inline bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

}  // namespace pacecore
