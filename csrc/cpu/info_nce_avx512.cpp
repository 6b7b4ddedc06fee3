// Tile kernels of info_nce for AVX512; setup.py compiles this file for those instructions, and
// info_nce.cpp asks the processor before it calls.
#include "info_nce_kernels.h"

#ifdef __AVX512F__
#define PACECORE_ISA isa_avx512
#define PACECORE_LANES 16
#include "info_nce_tile.h"
#endif

namespace pacecore {

template <typename Real>
const NceTileKernels<Real>* avx512_tile_kernels() {
#ifdef __AVX512F__
  return &isa_avx512::kTileKernels<Real>;
#else
  return nullptr;
#endif
}

template const NceTileKernels<float>* avx512_tile_kernels<float>();
template const NceTileKernels<double>* avx512_tile_kernels<double>();

}  // namespace pacecore
