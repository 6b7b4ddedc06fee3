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
  // The contrastive loss of n embeddings. summary: mean positive and mean negative similarity,
  // share of anchors whose nearest other clip is a positive. rows: what the backward needs of each.
  // grad_z: d loss / d z (n, D) where it is to be left, else (0, D).
  m.def(
      "info_nce("
      "Tensor z, "             // (n, D)
      "Tensor groups, "        // (n,) int64
      "Tensor? temperature, "  // (), or absent for the number
      "float temperature_number, bool batch, bool normalize, SymInt anchor_start, "
      "SymInt anchor_count, bool leave_gradient) -> ("
      "Tensor loss, "              // ()
      "Tensor summary, "           // (3,)
      "Tensor grad_temperature, "  // ()
      "Tensor rows, "              // (5, n)
      "Tensor grad_z)");
  m.def(
      "info_nce_backward(Tensor grad_loss, Tensor z, Tensor groups, Tensor rows, "
      "Tensor? temperature, float temperature_number, bool batch, bool normalize, "
      "SymInt anchor_start, SymInt anchor_count) -> Tensor grad_z");
}
