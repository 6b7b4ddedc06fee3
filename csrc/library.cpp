// Every op's schema: the one public list. B clips, T frames, n embeddings, D features; see
// CONTRIBUTING.md for letters. The namespace is a macro, so that the tests can build the CUDA
// sources for the CPU under a name of their own.
#include "library.h"

#include <torch/csrc/stable/library.h>

PACECORE_DEFINE_LIBRARY(m) {
  // Decoded frames and a plan in, network clips (B, 3, T, H, W) out. N bytes, F frames in them;
  // resize and crop_size are height, width; mean and std belong to red, green, blue.
  m.def(
      "pace_clip("
      "Tensor data, "           // (N,) uint8
      "Tensor table, "          // (F, 8) int64
      "Tensor plan, "           // (B, T) int32
      "Tensor crop, "           // (B, 3) int32
      "Tensor? jitter, "        // (B, T, 4) float32
      "Tensor? jitter_order, "  // (B, T) int32
      "int[] resize, int[] crop_size, float[] mean, float[] std, bool bgr, ScalarType dtype, "
      "bool channels_last) -> Tensor");
  // Only the checks of it, on CPU tensors.
  m.def(
      "check_pace_clip(Tensor data, Tensor table, Tensor plan, Tensor crop, Tensor? jitter, "
      "Tensor? jitter_order, int[] resize, int[] crop_size) -> ()");
}
