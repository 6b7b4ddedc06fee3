// pace_clip on CPU: every check, then runs of equal frames shared out to threads.
#include "pace_clip.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "../library.h"
#include "../pace_clip_op.h"

namespace pacecore {
namespace {

// Only of frames that are shown: a store's table has rows of what could not be decoded.
void check_frame(const PaceClip& args, int64_t row) {
  const int64_t* values = args.table + kColumns * row;
  const char* rule = broken_rule(values, args.num_bytes);
  if (!rule) return;
  fail("pace_clip: row ", row, " of frames.table: ", rule, ", got ",
       describe(std::vector<int64_t>(values, values + kColumns)), " with ", args.num_bytes,
       " bytes of data");
}

void check_plan(const PaceClip& args) {
  for (int64_t clip = 0; clip < args.batch; ++clip) {
    const int32_t* crop = args.crop + 3 * clip;
    PACECORE_CHECK(crop[0] >= 0 && crop[0] <= args.resize_height - args.crop_height,
                   "pace_clip: top of crop ", clip, " must be from 0 to ",
                   args.resize_height - args.crop_height, ", got ", crop[0]);
    PACECORE_CHECK(crop[1] >= 0 && crop[1] <= args.resize_width - args.crop_width,
                   "pace_clip: left of crop ", clip, " must be from 0 to ",
                   args.resize_width - args.crop_width, ", got ", crop[1]);
    PACECORE_CHECK(crop[2] == 0 || crop[2] == 1, "pace_clip: flip of crop ", clip,
                   " must be 0 or 1, got ", crop[2]);
    for (int64_t t = 0; t < args.clip_frames; ++t) {
      const int32_t row = args.plan[clip * args.clip_frames + t];
      PACECORE_CHECK(row >= 0 && row < args.num_rows, "pace_clip: plan[", clip, ", ", t,
                     "] must be a row of frames.table, from 0 to ", args.num_rows - 1, ", got ",
                     row);
      check_frame(args, row);
    }
  }
}

void check_contents(const PaceClip& args) {
  check_plan(args);
  if (!args.jitter_order) return;
  for (int64_t frame = 0; frame < args.batch * args.clip_frames; ++frame) {
    const int32_t order = args.jitter_order[frame];
    const int64_t clip = frame / args.clip_frames, t = frame % args.clip_frames;
    PACECORE_CHECK(is_jitter_order(order), "pace_clip: jitter_order[", clip, ", ", t,
                   "] must be -1 or four different steps of two bits, got ", order);
    if (order == -1) continue;
    const float* factors = args.jitter + 4 * frame;
    for (int i = 0; i < 3; ++i) {
      PACECORE_CHECK(factors[i] >= 0 && std::isfinite(factors[i]), "pace_clip: jitter[", clip, ", ",
                     t, ", ", i, "] must be a finite factor of at least 0, got ", factors[i]);
    }
    PACECORE_CHECK(std::abs(factors[3]) <= 0.5f, "pace_clip: jitter[", clip, ", ", t,
                   ", 3] must be a hue from -0.5 to 0.5 turns, got ", factors[3]);
  }
}

// Clips of so many bytes leave a core's share of the caches before all are written. On an AMD EPYC
// (Zen 4, 1 MiB and a share of 32 MiB) writing past the caches and reading it all again takes as
// long at 4 MiB as plain stores do, and 0.8 to 1.0 times as long from 7 MiB on.
constexpr int64_t kPastCachesBytes = 4 << 20;

// Equal neighbours share a resize. No run is longer than a thread's fair share, so that a clip of
// one repeated frame still keeps every thread busy.
std::vector<cpu::Run> runs_of(const PaceClip& args) {
  const int64_t frames = args.batch * args.clip_frames;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t longest = std::max<int64_t>(1, (frames + threads - 1) / threads);
  std::vector<cpu::Run> runs;
  for (int64_t clip = 0; clip < args.batch; ++clip) {
    const int32_t* plan = args.plan + clip * args.clip_frames;
    for (int64_t t = 0; t < args.clip_frames; ++t) {
      if (t > 0 && plan[t] == plan[t - 1] && runs.back().count < longest)
        ++runs.back().count;
      else
        runs.push_back({clip, t, 1});
    }
  }
  return runs;
}

void check_pace_clip(const Tensor& data, const Tensor& table, const Tensor& plan,
                     const Tensor& crop, const std::optional<Tensor>& jitter,
                     const std::optional<Tensor>& jitter_order, const std::vector<int64_t>& resize,
                     const std::vector<int64_t>& crop_size) {
  check_contents(checked_pace_clip(data, table, plan, crop, jitter, jitter_order, resize, crop_size,
                                   {0, 0, 0}, {1, 1, 1}, false, ScalarType::Float, false)
                     .args);
}

Tensor pace_clip(const Tensor& data, const Tensor& table, const Tensor& plan, const Tensor& crop,
                 const std::optional<Tensor>& jitter, const std::optional<Tensor>& jitter_order,
                 const std::vector<int64_t>& resize, const std::vector<int64_t>& crop_size,
                 const std::vector<double>& mean, const std::vector<double>& std, bool bgr,
                 ScalarType dtype, bool channels_last) {
  CheckedPaceClip checked = checked_pace_clip(data, table, plan, crop, jitter, jitter_order, resize,
                                              crop_size, mean, std, bgr, dtype, channels_last);
  PaceClip& args = checked.args;
  check_contents(args);
  const cpu::Kernels* kernels = cpu::choose_kernels();
  PACECORE_CHECK(kernels,
                 "pace_clip: PACECORE_CPU must be scalar, vector, or an instruction set that this ",
                 "build and processor have (avx2, avx512), got ", std::getenv("PACECORE_CPU"));
  Tensor clips = new_clips(args, data, dtype);
  args.clips = clips.mutable_data_ptr();
  const bool past_caches = clips.numel() * bytes_of(args.element) >= kPastCachesBytes;
  const std::vector<cpu::Run> runs = runs_of(args);
  torch::stable::parallel_for(0, static_cast<int64_t>(runs.size()), 1,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i)
                                  cpu::pace_clip_run(args, *kernels, runs[i], past_caches);
                              });
  return clips;
}

}  // namespace
}  // namespace pacecore

PACECORE_REGISTER_CPU(m) {
  m.impl("pace_clip", TORCH_BOX(&pacecore::pace_clip));
  m.impl("check_pace_clip", TORCH_BOX(&pacecore::check_pace_clip));
}
