// Which frames a clip shows: one definition for planner and kernels, no torch include
// (section 3.1 of the paper).
#pragma once

#include <cstdint>

namespace pacecore {

enum class Boundary : int { restart = 0, modulo = 1, clamp = 2 };

// Frame shown at each of `clip_frames` times by a clip that starts at `start_frame` of a video of
// `num_frames` frames and runs at the rational pace numerator / denominator: step k of a run shows
// its first frame + floor(k * pace).
//   restart: a run that would leave the video is followed by a new run from frame 0, phase 0;
//   modulo:  the first run goes on, its frame taken modulo num_frames;
//   clamp:   the last frame is held.
// A negative numerator shows the same frames backwards in time. Needs 0 <= start_frame < num_frames
// and a denominator > 0; |numerator| * clip_frames must fit an int64.
inline void frame_indices(int64_t num_frames, int64_t start_frame, int64_t numerator,
                          int64_t denominator, Boundary boundary, int64_t clip_frames,
                          int64_t* frames /* (clip_frames,) */) {
  const bool backwards = numerator < 0;
  const int64_t step = backwards ? -numerator : numerator;
  int64_t first = start_frame;
  int64_t k = 0;
  for (int64_t t = 0; t < clip_frames; ++t, ++k) {
    int64_t frame = first + k * step / denominator;
    if (frame >= num_frames) {
      if (boundary == Boundary::restart) {
        first = 0;
        k = 0;
        frame = 0;
      } else if (boundary == Boundary::modulo) {
        frame %= num_frames;
      } else {
        frame = num_frames - 1;
      }
    }
    frames[backwards ? clip_frames - 1 - t : t] = frame;
  }
}

}  // namespace pacecore
