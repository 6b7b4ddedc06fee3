// Tile kernels of info_nce for AVX2; setup.py compiles this file for those instructions, and
// info_nce.cpp asks the processor before it calls.
#include "info_nce_kernels.h"

#ifdef __AVX2__
#define PACECORE_ISA isa_avx2
#define PACECORE_LANES 8
#include "info_nce_tile.h"
#endif

namespace pacecore {

template <typename Real>
const NceTileKernels<Real>* avx2_tile_kernels() {
#ifdef __AVX2__
  return &isa_avx2::kTileKernels<Real>;
#else
  return nullptr;
#endif
}

template const NceTileKernels<float>* avx2_tile_kernels<float>();
template const NceTileKernels<double>* avx2_tile_kernels<double>();

}  // namespace pacecore
