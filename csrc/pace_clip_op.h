// What CPU and CUDA check of pace_clip's arguments alike, and the output they fill.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <vector>

#include "checks.h"
#include "pace_clip_args.h"

namespace pacecore {

constexpr double kLargest = 1e38;  // of a clip; twice as much is still a float

// "(128, 171)"
template <class T>
std::string describe(const std::vector<T>& values) {
  std::ostringstream text;
  text << "(";
  for (size_t i = 0; i < values.size(); ++i) text << (i ? ", " : "") << values[i];
  text << ")";
  return text.str();
}

inline void check_pace_clip_tensor(const Tensor& tensor, const char* name, const char* rule,
                                   ScalarType type, const std::vector<int64_t>& shape /* -1: any */,
                                   const Tensor& data) {
  const bool elsewhere = tensor.defined() && tensor.device() != data.device();
  bool fits = tensor.defined() && !elsewhere && tensor.scalar_type() == type &&
              tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t axis = 0; fits && axis < shape.size(); ++axis)
    fits = shape[axis] == -1 || tensor.size(axis) == shape[axis];
  PACECORE_CHECK(fits, "pace_clip: ", name, " must be ", rule,
                 " on the device of frames.data, got ", describe(tensor),
                 elsewhere ? " on another device" : "");
}

inline void check_pair(const std::vector<int64_t>& size, const char* name) {
  PACECORE_CHECK(size.size() == 2 && size[0] >= 1 && size[1] >= 1 && size[0] <= kLongest &&
                     size[1] <= kLongest,
                 "pace_clip: ", name, " must be two numbers from 1 to 65536 (height, width), got ",
                 describe(size));
}

inline void check_three(const std::vector<double>& values, const char* name, bool zero_allowed) {
  bool fits = values.size() == 3;
  for (double value : values) fits = fits && std::isfinite(value) && (zero_allowed || value != 0);
  PACECORE_CHECK(fits, "pace_clip: ", name, " must be three finite numbers",
                 zero_allowed ? "" : " not 0", " (red, green, blue), got ", describe(values));
}

// The op's arguments, and the contiguous tensors that they point into; `clips` is left null.
struct CheckedPaceClip {
  Tensor data, table, plan, crop;
  std::optional<Tensor> jitter, jitter_order;
  PaceClip args;
};

// Checks everything but the contents of tensors.
inline CheckedPaceClip checked_pace_clip(
    const Tensor& any_data, const Tensor& any_table, const Tensor& any_plan, const Tensor& any_crop,
    const std::optional<Tensor>& any_jitter, const std::optional<Tensor>& any_jitter_order,
    const std::vector<int64_t>& resize, const std::vector<int64_t>& crop_size,
    const std::vector<double>& mean, const std::vector<double>& std, bool bgr, ScalarType dtype,
    bool channels_last) {
  using torch::stable::contiguous;
  CheckedPaceClip result{contiguous(any_data),
                         contiguous(any_table),
                         contiguous(any_plan),
                         contiguous(any_crop),
                         {},
                         {},
                         {}};
  if (any_jitter) result.jitter = contiguous(*any_jitter);
  if (any_jitter_order) result.jitter_order = contiguous(*any_jitter_order);
  auto& [data, table, plan, crop, jitter, jitter_order, args] = result;
  PACECORE_CHECK(data.defined() && data.scalar_type() == ScalarType::Byte && data.dim() == 1,
                 "pace_clip: frames.data must be (N,) uint8, got ", describe(data));
  check_pace_clip_tensor(table, "frames.table", "(F, 8) int64", ScalarType::Long, {-1, kColumns},
                         data);
  check_pace_clip_tensor(plan, "plan", "(B, T) int32", ScalarType::Int, {-1, -1}, data);
  const int64_t batch = plan.size(0), clip_frames = plan.size(1);
  check_pace_clip_tensor(crop, "crop", "(B, 3) int32", ScalarType::Int, {batch, 3}, data);
  PACECORE_CHECK(jitter.has_value() == jitter_order.has_value(),
                 "pace_clip: jitter and jitter_order must be given together, got only ",
                 jitter.has_value() ? "jitter" : "jitter_order");
  if (jitter.has_value()) {
    check_pace_clip_tensor(*jitter, "jitter", "(B, T, 4) float32", ScalarType::Float,
                           {batch, clip_frames, 4}, data);
    check_pace_clip_tensor(*jitter_order, "jitter_order", "(B, T) int32", ScalarType::Int,
                           {batch, clip_frames}, data);
  }
  check_pair(resize, "resize");
  check_pair(crop_size, "crop_size");
  PACECORE_CHECK(crop_size[0] <= resize[0] && crop_size[1] <= resize[1],
                 "pace_clip: crop_size must not exceed resize ", describe(resize), ", got ",
                 describe(crop_size));
  check_three(mean, "mean", true);
  check_three(std, "std", false);
  PACECORE_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
      "pace_clip: dtype must be float32, float16 or bfloat16, got ", type_name(dtype));

  args.data = data.const_data_ptr<uint8_t>();
  args.num_bytes = data.numel();
  args.table = table.const_data_ptr<int64_t>();
  args.num_rows = table.size(0);
  args.plan = plan.const_data_ptr<int32_t>();
  args.crop = crop.const_data_ptr<int32_t>();
  args.jitter = jitter.has_value() ? jitter->const_data_ptr<float>() : nullptr;
  args.jitter_order = jitter.has_value() ? jitter_order->const_data_ptr<int32_t>() : nullptr;
  args.batch = batch;
  args.clip_frames = clip_frames;
  args.resize_height = resize[0];
  args.resize_width = resize[1];
  args.crop_height = crop_size[0];
  args.crop_width = crop_size[1];
  for (int channel = 0; channel < 3; ++channel) {
    const double black = -mean[channel] / std[channel], white = black + 255 / std[channel];
    PACECORE_CHECK(
        std::abs(black) <= kLargest && std::abs(white) <= kLargest,
        "pace_clip: mean and std must leave (0 - mean) / std and (255 - mean) / std within ",
        kLargest, ", got mean ", describe(mean), " and std ", describe(std));
    args.scale[channel] = static_cast<float>(1 / std[channel]);
    args.shift[channel] = static_cast<float>(-mean[channel] / std[channel]);
  }
  args.bgr = bgr;
  args.channels_last = channels_last;
  args.element = dtype == ScalarType::Float  ? Element::f32
                 : dtype == ScalarType::Half ? Element::f16
                                             : Element::bf16;
  return result;
}

// (B, 3, T, H, W), uninitialised, on the device of data.
inline Tensor new_clips(const PaceClip& args, const Tensor& data, ScalarType dtype) {
  const std::vector<int64_t> shape{args.batch, 3, args.clip_frames, args.crop_height,
                                   args.crop_width};
  return torch::stable::empty(shape, dtype, std::nullopt, data.device(), std::nullopt,
                              args.channels_last ? torch::headeronly::MemoryFormat::ChannelsLast3d
                                                 : torch::headeronly::MemoryFormat::Contiguous);
}

}  // namespace pacecore
