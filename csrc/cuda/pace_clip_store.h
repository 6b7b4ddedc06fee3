// How pace_clip's kernels write clips: pixels of shared memory, finished from contrast on, or
// pixels in registers, to either layout in 16-byte stores. Included by pace_clip.cu alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "pace_clip_rows.h"

namespace pacecore {
namespace {

template <class Out>
__device__ __forceinline__ Out rounded_to(float value) {
  if constexpr (std::is_same_v<Out, float>) return value;
  if constexpr (std::is_same_v<Out, __half>) return __float2half_rn(value);
  if constexpr (std::is_same_v<Out, __nv_bfloat16>) return __float2bfloat16_rn(value);
}

template <class Out>
constexpr int kVector = 16 / sizeof(Out);

template <class Out>
union Packet {
  uint4 bytes;
  Out values[kVector<Out>];
  __device__ Packet() {}
};

template <class Out>
__device__ __forceinline__ uint4 packed(const float (&values)[kVector<Out>]) {
  Packet<Out> packet;
#pragma unroll
  for (int k = 0; k < kVector<Out>; ++k) packet.values[k] = rounded_to<Out>(values[k]);
  return packet.bytes;
}

template <class Out>
__device__ __forceinline__ void store_16(Out* out, uint4 bytes) {
  *reinterpret_cast<uint4*>(out) = bytes;
}

// N pixels of shared memory from `pixel` on: the steps from contrast on, then normalised; red,
// green, blue.
template <int N>
__device__ __forceinline__ void finish(const PaceClip& args, const Bands& bands, const Source& s,
                                       const float* crop, int pixel, float mean_grey,
                                       float (&values)[3][N]) {
#pragma unroll
  for (int channel = 0; channel < 3; ++channel) {
#pragma unroll
    for (int k = 0; k < N; k += 4) {
      const float4 four =
          *reinterpret_cast<const float4*>(crop + channel * bands.plane + pixel + k);
      values[channel][k] = four.x;
      values[channel][k + 1] = four.y;
      values[channel][k + 2] = four.z;
      values[channel][k + 3] = four.w;
    }
  }
  Rgb<float> c[N];
#pragma unroll
  for (int k = 0; k < N; ++k) c[k] = {values[0][k], values[1][k], values[2][k]};
  apply_jitter(c, s.jitter, s.jitter.contrast_at, s.jitter.num_steps, mean_grey);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    values[0][k] = c[k].r * args.scale[0] + args.shift[0];
    values[1][k] = c[k].g * args.scale[1] + args.shift[1];
    values[2][k] = c[k].b * args.scale[2] + args.shift[2];
  }
}

// `count` values, value i being from(i), consecutive in `out`.
template <class Out, class From>
__device__ __forceinline__ void store_run(Out* out, int count, From from) {
  constexpr int wide = kVector<Out>;
  const int whole = reinterpret_cast<uintptr_t>(out) % 16 == 0 ? count / wide : 0;
  for (int i = threadIdx.x; i < whole; i += num_threads()) {
    float values[wide];
#pragma unroll
    for (int k = 0; k < wide; ++k) values[k] = from(wide * i + k);
    store_16(out + wide * i, packed<Out>(values));
  }
  for (int i = wide * whole + threadIdx.x; i < count; i += num_threads())
    out[i] = rounded_to<Out>(from(i));
}

// The channel of the clips that colour 0 red, 1 green or 2 blue is.
__device__ __forceinline__ int channel_of(const PaceClip& args, int colour) {
  return args.bgr ? 2 - colour : colour;
}

// `pixels` pixels of shared memory, interleaved: 16 bytes of each lane at a time, consecutive over
// the warp, whose lanes exchange them through the tile, which nobody needs now.
template <class Out>
__device__ __forceinline__ void store_interleaved(const PaceClip& args, const Bands& bands,
                                                  const Source& s, const Memory& memory, int pixels,
                                                  float mean_grey, Out* out) {
  constexpr int wide = kVector<Out>;
  static_assert(3 * 16 * kJitterThreads <= kTileBytes);
  const int lane = lane_again(), warp = threadIdx.x / 32;
  uint4* const packets = reinterpret_cast<uint4*>(memory.tile) + 3 * 32 * warp;
  for (int base = warp * 32 * wide; base < pixels; base += num_threads() * wide) {
    const int lanes = min(32, (pixels - base) / wide);
    if (lane < lanes) {
      float values[3][wide];
      finish(args, bands, s, memory.crop, base + wide * lane, mean_grey, values);
#pragma unroll
      for (int part = 0; part < 3; ++part) {
        float mixed[wide];
#pragma unroll
        for (int k = 0; k < wide; ++k) {
          const int channel = (wide * part + k) % 3, pixel = (wide * part + k) / 3;
          mixed[k] = args.bgr ? values[2 - channel][pixel] : values[channel][pixel];
        }
        packets[3 * lane + part] = packed<Out>(mixed);
      }
    }
    __syncwarp();
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      const int packet = lane + 32 * part;
      if (packet < 3 * lanes) store_16(out + 3 * base + wide * packet, packets[packet]);
    }
    __syncwarp();
  }
}

// Rows [first, first + rows), which shared memory holds, to the clips.
template <class Out, bool ChannelsLast>
__device__ void store_rows(const PaceClip& args, const Bands& bands, const Source& s,
                           const Memory& memory, int first, int rows, float mean_grey) {
  constexpr int wide = kVector<Out>;
  const int pixels = rows * static_cast<int>(args.crop_width);
  const int64_t frame_pixels = args.crop_height * args.crop_width;
  const int64_t before = first * args.crop_width;
  const int clip_frames = static_cast<int>(args.clip_frames);
  const int64_t frame = s.frame, clip = s.frame / clip_frames, t = s.frame % clip_frames;
  const int64_t channel_stride = args.clip_frames * frame_pixels;
  Out* out = static_cast<Out*>(args.clips) +
             (ChannelsLast ? 3 * (frame * frame_pixels + before)
                           : (3 * clip * args.clip_frames + t) * frame_pixels + before);
  if (pixels % wide == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0 &&
      (ChannelsLast || channel_stride % wide == 0)) {
    if constexpr (ChannelsLast) {
      store_interleaved(args, bands, s, memory, pixels, mean_grey, out);
    } else {
      for (int pixel = wide * threadIdx.x; pixel < pixels; pixel += wide * num_threads()) {
        float values[3][wide];
        finish(args, bands, s, memory.crop, pixel, mean_grey, values);
#pragma unroll
        for (int colour = 0; colour < 3; ++colour)
          store_16(out + channel_of(args, colour) * channel_stride + pixel,
                   packed<Out>(values[colour]));
      }
    }
    return;
  }
  // In place first, so that neighbouring threads can store neighbouring values whatever the layout.
  for (int pixel = 4 * threadIdx.x; pixel < pixels; pixel += 4 * num_threads()) {
    float values[3][4];
    finish(args, bands, s, memory.crop, pixel, mean_grey, values);
#pragma unroll
    for (int colour = 0; colour < 3; ++colour) {
      const float (&v)[4] = values[colour];
      store_shared_16(memory.crop + channel_of(args, colour) * bands.plane + pixel,
                      {v[0], v[1], v[2], v[3]});
    }
  }
  __syncthreads();
  if constexpr (ChannelsLast) {
    store_run(out, 3 * pixels, [&](int i) { return memory.crop[i % 3 * bands.plane + i / 3]; });
  } else {
    for (int channel = 0; channel < 3; ++channel)
      store_run(out + channel * channel_stride, pixels,
                [&](int i) { return memory.crop[channel * bands.plane + i]; });
  }
}

// Stores four columns of a row as they are made, where nothing is to be done after a mean.
template <class Out, bool ChannelsLast>
struct StoreRows {
  struct alignas(kQuad * sizeof(Out)) Four {
    Out values[kQuad];
    __device__ Four() {}
  };
  const PaceClip& args;
  Out* out;                // the first row, of channel 0
  int64_t channel_stride;  // not of channels-last clips
  Four* exchange;          // (32, 3) of the warp, for channels-last clips

  __device__ __forceinline__ void operator()(int row, int quad, bool active,
                                             const Rgb<float> (&c)[kQuad]) {
    const int width = static_cast<int>(args.crop_width);
    Four fours[3];
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const float red = c[k].r * args.scale[0] + args.shift[0];
      const float green = c[k].g * args.scale[1] + args.shift[1];
      const float blue = c[k].b * args.scale[2] + args.shift[2];
      const float values[3] = {args.bgr ? blue : red, green, args.bgr ? red : blue};
#pragma unroll
      for (int channel = 0; channel < 3; ++channel) {
        const int at = ChannelsLast ? 3 * k + channel : kQuad * channel + k;
        fours[at / kQuad].values[at % kQuad] = rounded_to<Out>(values[channel]);
      }
    }
    const int start = row * width + kQuad * quad;
    if (width % kQuad) {
      const int columns_here = active ? min(kQuad, width - kQuad * quad) : 0;
#pragma unroll
      for (int at = 0; at < 3 * kQuad; ++at) {
        const int k = ChannelsLast ? at / 3 : at % kQuad;
        if (k >= columns_here) continue;
        const Out value = fours[at / kQuad].values[at % kQuad];
        if constexpr (ChannelsLast)
          out[3 * start + at] = value;
        else
          out[at / kQuad * channel_stride + start + k] = value;
      }
    } else if constexpr (ChannelsLast) {
      // Neighbouring lanes shall store neighbouring bytes: each takes what another lane has made.
      const int lane = lane_again(), place = active ? 3 * start : -1;
      __syncwarp();
#pragma unroll
      for (int part = 0; part < 3; ++part) exchange[3 * lane + part] = fours[part];
      __syncwarp();
#pragma unroll
      for (int part = 0; part < 3; ++part) {
        const int at = lane + 32 * part;
        const int there = __shfl_sync(0xffffffffu, place, at / 3);
        if (there >= 0) *reinterpret_cast<Four*>(out + there + kQuad * (at % 3)) = exchange[at];
      }
    } else if (active) {
#pragma unroll
      for (int channel = 0; channel < 3; ++channel)
        *reinterpret_cast<Four*>(out + channel * channel_stride + start) = fours[channel];
    }
  }
};

// NaN into the block's band of a frame that cannot be computed.
template <class Out, bool ChannelsLast>
__device__ void store_nan(const PaceClip& args, const Source& s) {
  const int64_t pixels = s.rows * args.crop_width;
  const int64_t frame_pixels = args.crop_height * args.crop_width;
  const int clip_frames = static_cast<int>(args.clip_frames);
  const int64_t frame = s.frame, clip = s.frame / clip_frames, t = s.frame % clip_frames;
  for (int channel = 0; channel < 3; ++channel) {
    const int64_t plane = (3 * clip + channel) * args.clip_frames + t;
    const int64_t start = ChannelsLast ? 3 * (frame * frame_pixels + s.first * args.crop_width)
                                       : plane * frame_pixels + s.first * args.crop_width;
    Out* out = static_cast<Out*>(args.clips) + start;
    for (int64_t i = threadIdx.x; i < pixels; i += num_threads())
      out[ChannelsLast ? 3 * i + channel : i] = rounded_to<Out>(__int_as_float(0x7fc00000));
  }
}

}  // namespace
}  // namespace pacecore
