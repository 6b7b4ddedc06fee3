#include "pace_clip_loops.h"

namespace pacecore::cpu {

const Kernels* avx2_kernels() {
#ifdef __AVX2__
  static const Kernels kernels{"avx2", resize<8>, finish<8>};
  return &kernels;
#else
  return nullptr;
#endif
}

}  // namespace pacecore::cpu
