// The arguments of pace_clip as CPU and CUDA code get them; no torch include.
#pragma once

#include <cstdint>

#include "pace_clip_math.h"

namespace pacecore {

enum class Element { f32, f16, bf16 };

constexpr int64_t bytes_of(Element element) { return element == Element::f32 ? 4 : 2; }

// The op's arguments, checked. B clips, T frames, F rows of the table, N bytes.
struct PaceClip {
  const uint8_t* data;          // (N,)
  int64_t num_bytes;            // N
  const int64_t* table;         // (F, 8)
  int64_t num_rows;             // F
  const int32_t* plan;          // (B, T)
  const int32_t* crop;          // (B, 3) top, left, flip
  const float* jitter;          // (B, T, 4), or null for none
  const int32_t* jitter_order;  // (B, T), or null for none
  int64_t batch, clip_frames;   // B, T
  int64_t resize_height, resize_width, crop_height, crop_width;
  float scale[3], shift[3];  // output = value * scale + shift, of red, green, blue
  bool bgr, channels_last;
  Element element;
  void* clips;  // (B, 3, T, crop_height, crop_width)
};

}  // namespace pacecore
