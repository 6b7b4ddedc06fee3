// Every op's schema: the one public list. B clips, T frames, n embeddings, D features; see
// CONTRIBUTING.md for letters. The namespace is a macro, so that the tests can build the CUDA
// sources for the CPU under a name of their own.
#include "library.h"

#include <torch/csrc/stable/library.h>

PACECORE_DEFINE_LIBRARY(m) {
  // z (n, D), groups (n,) int64, temperature () or the number beside it. Gives loss (), summary
  // (3,): mean positive similarity, mean negative similarity, share of anchors whose nearest other
  // clip is a positive; d loss / d temperature (); rows (5, n) for the backward; and d loss / d z
  // (n, D) where it is to be left, else (0, D).
  m.def(
      "info_nce(Tensor z, Tensor groups, Tensor? temperature, float temperature_number, bool "
      "batch, "
      "bool normalize, int anchor_start, int anchor_count, bool leave_gradient) -> (Tensor loss, "
      "Tensor summary, Tensor grad_temperature, Tensor rows, Tensor grad_z)");
  m.def(
      "info_nce_backward(Tensor grad_loss, Tensor z, Tensor groups, Tensor rows, "
      "Tensor? temperature, float temperature_number, bool normalize) -> Tensor grad_z");
}
