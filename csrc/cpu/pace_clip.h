// What the CPU kernels of pace_clip are given; no torch include, so that they are also built alone
// under sanitizers.
#pragma once

#include <cstdint>

#include "../pace_clip_args.h"

namespace pacecore::cpu {

// Consecutive frames of one clip that show the same row of the table.
struct Run {
  int64_t clip, first, count;
};

// Sampling along one axis of one plane: value i lies between sample start + index[i] and the next;
// of the samples from `start`, `count` are needed.
struct Axis {
  const int32_t* index;
  const float* weight;
  int64_t start, count;
};

// One source frame, what is taken of it, and room to work in.
struct Resize {
  const uint8_t* planes[3];  // Y, U, V; of packed RGB the first only
  int64_t strides[3];        // bytes
  bool planar;
  YuvToRgb matrix;
  Axis rows, columns, chroma_rows, chroma_columns;
  int64_t height, chroma_height;
  int64_t crop_height, crop_width, row_floats;  // row_floats: crop_width rounded up to kRowFloats
  float* lines[3];                              // one blended source row of each plane
  float* rgb;                                   // (3, crop_height, row_floats), the result
};

constexpr int64_t kRowFloats = 16;  // the widest vector: rows of rgb are whole vectors of any path
constexpr int64_t kLineSlack = 4;   // floats repeated past the end of a line
constexpr int64_t kLineRoom = 2 * kRowFloats;  // floats past it that may be read, those included

// Jitter, normalisation, layout and type of one frame.
struct Finish {
  const float* rgb;  // (3, crop_height, row_floats)
  float* work;       // the same, for the frame before contrast; may be rgb itself
  Jitter jitter;
  int64_t crop_height, crop_width, row_floats;
  float scale[3], shift[3];
  bool bgr, channels_last;
  bool past_caches;  // the clips are too many to be read from a cache
  Element element;
  void* clips;             // the frame's first element of the first channel
  int64_t channel_stride;  // elements between channels where not channels_last
};

// One build of the loops, for one instruction set.
struct Kernels {
  const char* name;
  void (*resize)(const Resize&);
  void (*finish)(const Finish&);
};

const Kernels& scalar_kernels();
const Kernels& vector_kernels();  // 4 floats at a time: SSE2 and NEON, plain code elsewhere
const Kernels* avx2_kernels();    // null where not built
const Kernels* avx512_kernels();

// The fastest that this processor runs. PACECORE_CPU=scalar, vector, avx2 or avx512 asks for one;
// null if it names none that is built and runs here.
const Kernels* choose_kernels();

// Computes one run into args.clips; thread-safe for different runs. Past the caches where that is
// faster, if asked for.
void pace_clip_run(const PaceClip& args, const Kernels& kernels, const Run& run, bool past_caches);

}  // namespace pacecore::cpu
