// What the CPU and CUDA kernels of info_nce are called with, and the checks that keep them in
// bounds.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "checks.h"

namespace pacecore {

struct NceOptions {
  std::optional<Tensor> temperature;  // () or (1,), of the compute type; where absent, the number
  double temperature_number;
  bool batch;      // one denominator for the whole batch
  bool normalize;  // rows of z are divided by their norm
  int64_t anchor_start, anchor_count;
};

// The tensor in one piece: itself where it is so. Beside a loss of few rows all that torch is asked
// for takes its time, by 2 or 3 microseconds.
inline Tensor in_one_piece(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline ScalarType nce_compute_type(const Tensor& z) {
  return z.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_info_nce(const Tensor& z, const Tensor& groups,
                           const std::optional<Tensor>& temperature) {
  const ScalarType type = z.scalar_type();
  PACECORE_CHECK(z.dim() == 2 && z.size(1) > 0, "info_nce: z must be (n, D) with D >= 1, got ",
                 describe(z));
  PACECORE_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 ||
                     type == ScalarType::Half || type == ScalarType::Double,
                 "info_nce: z must be float32, bfloat16, float16 or float64, got ", describe(z));
  PACECORE_CHECK(groups.dim() == 1 && groups.size(0) == z.size(0) &&
                     groups.scalar_type() == ScalarType::Long && groups.device() == z.device(),
                 "info_nce: groups must be (n,) = (", z.size(0), ",) int64 on z's device, got ",
                 describe(groups));
  if (temperature)
    PACECORE_CHECK(temperature->numel() == 1 && temperature->scalar_type() == nce_compute_type(z) &&
                       temperature->device() == z.device(),
                   "info_nce: temperature must be one ", type_name(nce_compute_type(z)),
                   " on z's device, got ", describe(*temperature));
}

inline void check_anchors(const Tensor& z, int64_t start, int64_t count) {
  PACECORE_CHECK(start >= 0 && count >= 0 && count <= z.size(0) - start, "info_nce: ", count,
                 " anchors from ", start, " on must lie within the ", z.size(0), " rows of z");
}

inline void check_nce_rows(const Tensor& z, const Tensor& rows, const Tensor& grad_loss) {
  PACECORE_CHECK(rows.dim() == 2 && rows.size(0) == 5 && rows.size(1) == z.size(0) &&
                     rows.scalar_type() == nce_compute_type(z) && rows.device() == z.device(),
                 "info_nce_backward: rows must be (5, n) as info_nce gave them, got ",
                 describe(rows));
  PACECORE_CHECK(grad_loss.numel() == 1 && grad_loss.scalar_type() == nce_compute_type(z) &&
                     grad_loss.device() == z.device(),
                 "info_nce_backward: grad_loss must be one ", type_name(nce_compute_type(z)),
                 " on z's device, got ", describe(grad_loss));
}

}  // namespace pacecore
