#include "pace_clip_loops.h"

namespace pacecore::cpu {

const Kernels* avx512_kernels() {
#ifdef __AVX512F__
  static const Kernels kernels{"avx512", resize<16>, finish<16>};
  return &kernels;
#else
  return nullptr;
#endif
}

}  // namespace pacecore::cpu
