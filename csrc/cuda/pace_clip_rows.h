// The first half of the kernel of pace_clip.cu: from source bytes to rows of the crop in shared
// memory. All is internal to that file.
#pragma once

#include "launch.h"
#include "pace_clip_args.h"

namespace pacecore {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// Of a warp: 320 luma and 2 x 160 chroma columns, each to 16 bytes.
constexpr int kLineFloats = 704;
constexpr int64_t kWidest = 2048;  // crop columns; their taps and one row fit in any GPU's block

// How the rows of a frame are shared out, chosen on the host.
struct Bands {
  int rows;       // of a block
  int kept_rows;  // of them that fit into shared memory at a time
  int blocks;     // of a frame
  int cluster;    // blocks, or 1 where no frame has jitter
  int plane;      // floats of a plane of the kept rows, a multiple of 8
};

// What all threads of a block know of their frame.
struct Source {
  const uint8_t* planes[3];
  int64_t strides[3];
  const uint8_t* end;  // of data
  YuvToRgb matrix;
  Jitter jitter;
  int height, width, chroma_height;
  int top, left;
  bool valid, planar, centre_sited, flip;
  bool aligned[3];         // rows of the plane start alike modulo 16 bytes
  int start[3], count[3];  // columns needed
  bool through_lines;      // the columns fit into a warp's line and are worth blending whole
};

struct Memory {
  Tap *columns, *chroma_columns;  // (W,)
  Tap *rows, *chroma_rows;        // (kept_rows,)
  float* lines;                   // (kWarps, kLineFloats)
  float* crop;                    // (3, plane)
};

__device__ Memory memory_of(const PaceClip& args, const Bands& bands, float* shared) {
  Memory memory;
  memory.crop = shared;
  memory.lines = memory.crop + 3 * bands.plane;
  memory.columns = reinterpret_cast<Tap*>(memory.lines + kWarps * kLineFloats);
  memory.chroma_columns = memory.columns + args.crop_width;
  memory.rows = memory.chroma_columns + args.crop_width;
  memory.chroma_rows = memory.rows + bands.kept_rows;
  return memory;
}

int64_t shared_bytes(const PaceClip& args, const Bands& bands) {
  return 4 * (3 * int64_t{bands.plane} + kWarps * kLineFloats) +
         int64_t{sizeof(Tap)} * 2 * (args.crop_width + bands.kept_rows);
}

// ---- The frame ----

// By one thread. An entry out of range leaves `valid` false and nothing is read through it.
__device__ void find_source(const PaceClip& args, int64_t frame, Source& s) {
  s.valid = false;
  const int32_t row_number = args.plan[frame];
  if (row_number < 0 || row_number >= args.num_rows) return;
  const int64_t* row = args.table + int64_t{kColumns} * row_number;
  const int32_t* crop = args.crop + 3 * (frame / args.clip_frames);
  if (broken_rule(row, args.num_bytes)) return;
  if (crop[0] < 0 || crop[0] > args.resize_height - args.crop_height) return;
  if (crop[1] < 0 || crop[1] > args.resize_width - args.crop_width) return;
  if (crop[2] != 0 && crop[2] != 1) return;
  s.jitter = Jitter{};
  if (args.jitter_order) {
    if (!is_jitter_order(args.jitter_order[frame])) return;
    s.jitter = make_jitter(args.jitter + 4 * frame, args.jitter_order[frame]);
  }
  s.valid = true;
  s.end = args.data + args.num_bytes;
  s.planar = row[kFormat] & kPlanar;
  s.centre_sited = row[kFormat] & kCentreSited;
  s.matrix = yuv_to_rgb(row[kFormat]);
  s.height = static_cast<int>(row[kHeight]);
  s.width = static_cast<int>(row[kWidth]);
  s.chroma_height = (s.height + 1) / 2;
  s.top = crop[0];
  s.left = crop[1];
  s.flip = crop[2];
  const bool base_aligned = reinterpret_cast<uintptr_t>(args.data) % 16 == 0;
  const int64_t offsets[3] = {row[kYOffset], row[kUOffset], row[kVOffset]};
  for (int plane = 0; plane < 3; ++plane) {
    s.planes[plane] = args.data + offsets[plane];
    s.strides[plane] = plane ? row[kChromaStride] : row[kStride];
    s.aligned[plane] = base_aligned && s.strides[plane] % 16 == 0;
  }
}

// The block's column taps, and by one thread which columns of the source they need.
__device__ void find_columns(const PaceClip& args, const Memory& memory, Source& s) {
  const int crop_width = static_cast<int>(args.crop_width);
  const Plane chroma = s.centre_sited ? Plane::chroma_between : Plane::chroma_on_even;
  for (int x = threadIdx.x; x < crop_width; x += kThreads) {
    const int64_t at = s.left + (s.flip ? crop_width - 1 - x : x);
    memory.columns[x] = tap_at(at, s.width, args.resize_width, Plane::luma);
    if (s.planar) memory.chroma_columns[x] = tap_at(at, s.width, args.resize_width, chroma);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int floats = 0;
    const int first = s.flip ? crop_width - 1 : 0, last = crop_width - 1 - first;
    for (int plane = 0; plane < (s.planar ? 3 : 1); ++plane) {
      const Tap* taps = plane ? memory.chroma_columns : memory.columns;
      const int samples = plane ? (s.width + 1) / 2 : s.width;
      s.start[plane] = taps[first].index;
      s.count[plane] = min(taps[last].index + 2, samples) - s.start[plane];
      floats += (s.planar ? 1 : 3) * (s.count[plane] + 1) + 31;
    }
    // Blending a column costs about 5 instructions, sampling a pixel from bytes about 42 and from
    // the line 18: counted in the code, so past 5 blended columns a pixel (12 values of packed RGB)
    // the line no longer pays.
    s.through_lines = floats <= kLineFloats && floats <= 5 * crop_width + 3 * 31 + 12;
  }
  __syncthreads();
}

// ---- Rows ----

__device__ __forceinline__ void blend_four(unsigned a, unsigned b, float weight, float* line) {
  float4 blended;
  blended.x = lerp(float(a & 255), float(b & 255), weight);
  blended.y = lerp(float(a >> 8 & 255), float(b >> 8 & 255), weight);
  blended.z = lerp(float(a >> 16 & 255), float(b >> 16 & 255), weight);
  blended.w = lerp(float(a >> 24), float(b >> 24), weight);
  *reinterpret_cast<float4*>(line) = blended;
}

// By a warp: `values` bytes of rows a and b from byte `first` on, blended into the line, and one
// pixel of `channels` more, which taps on the last column read with weight 0. Gives where in the
// line the first one lies.
__device__ int blend_line(const uint8_t* a, const uint8_t* b, float weight, int first, int values,
                          int channels, bool aligned, const uint8_t* end, float* line) {
  const int lane = threadIdx.x % 32;
  if (!aligned) {
    for (int x = lane; x < values + channels; x += 32) {
      const int at = first + (x < values ? x : x - channels);
      line[x] = lerp(float(__ldg(a + at)), float(__ldg(b + at)), weight);
    }
    return 0;
  }
  const int before = static_cast<int>(reinterpret_cast<uintptr_t>(a + first) % 16);
  a += first - before;
  b += first - before;
  const uint8_t* later = a > b ? a : b;
  for (int x = 16 * lane; x < before + values + channels; x += 16 * 32) {
    if (later + x + 16 <= end) {
      const uint4 upper = __ldg(reinterpret_cast<const uint4*>(a + x));
      const uint4 lower = __ldg(reinterpret_cast<const uint4*>(b + x));
      blend_four(upper.x, lower.x, weight, line + x);
      blend_four(upper.y, lower.y, weight, line + x + 4);
      blend_four(upper.z, lower.z, weight, line + x + 8);
      blend_four(upper.w, lower.w, weight, line + x + 12);
    } else {  // the last bytes of data
      for (int i = x; i < x + 16; ++i) {
        const int at = i < before + values ? i : before + values - 1;
        line[i] = lerp(float(__ldg(a + at)), float(__ldg(b + at)), weight);
      }
    }
  }
  return before;
}

struct PlaneRow {
  const uint8_t *upper, *lower;
  float weight;
};

__device__ __forceinline__ PlaneRow plane_row(const Source& s, int plane, Tap tap, int height) {
  const uint8_t* upper = s.planes[plane] + tap.index * s.strides[plane];
  return {upper, tap.index + 1 < height ? upper + s.strides[plane] : upper, tap.weight};
}

// One sample from bytes. `step` is the bytes of a pixel.
__device__ __forceinline__ float sample(const PlaneRow& row, Tap tap, int samples, int step,
                                        int channel) {
  const int left = tap.index * step + channel;
  const int right = tap.index + 1 < samples ? left + step : left;
  const float a = lerp(float(__ldg(row.upper + left)), float(__ldg(row.lower + left)), row.weight);
  const float b =
      lerp(float(__ldg(row.upper + right)), float(__ldg(row.lower + right)), row.weight);
  return lerp(a, b, tap.weight);
}

// One row of the crop, by a warp, through `made(x, colour)`.
template <class Made>
__device__ __forceinline__ void make_row(const PaceClip& args, const Source& s,
                                         const Memory& memory, int row, Made made) {
  const int lane = threadIdx.x % 32;
  const int width = static_cast<int>(args.crop_width);
  float* line = memory.lines + threadIdx.x / 32 * kLineFloats;
  PlaneRow rows[3];
  rows[0] = plane_row(s, 0, memory.rows[row], s.height);
  if (s.planar) {
    rows[1] = plane_row(s, 1, memory.chroma_rows[row], s.chroma_height);
    rows[2] = plane_row(s, 2, memory.chroma_rows[row], s.chroma_height);
  }
  if (!s.through_lines) {
    for (int x = lane; x < width; x += 32) {
      const Tap tap = memory.columns[x];
      const int end = s.start[0] + s.count[0];
      if (s.planar) {
        const Tap chroma = memory.chroma_columns[x];
        const int chroma_end = s.start[1] + s.count[1];
        made(x, to_rgb(s.matrix, sample(rows[0], tap, end, 1, 0),
                       sample(rows[1], chroma, chroma_end, 1, 0),
                       sample(rows[2], chroma, chroma_end, 1, 0)));
      } else {
        made(x, Rgb<float>{sample(rows[0], tap, end, 3, 0), sample(rows[0], tap, end, 3, 1),
                           sample(rows[0], tap, end, 3, 2)});
      }
    }
    return;
  }
  const int channels = s.planar ? 1 : 3;
  int at[3];  // where in the line column 0 of each plane would lie
  int used = 0;
#pragma unroll  // so that rows and at are registers
  for (int plane = 0; plane < 3; ++plane) {
    if (plane > 0 && !s.planar) break;
    const int values = channels * s.count[plane];
    const int before = blend_line(rows[plane].upper, rows[plane].lower, rows[plane].weight,
                                  channels * s.start[plane], values, channels, s.aligned[plane],
                                  s.end, line + used);
    at[plane] = used + before - channels * s.start[plane];
    used += (before + values + channels + 15) / 16 * 16;
  }
  __syncwarp();
  for (int x = lane; x < width; x += 32) {
    const Tap tap = memory.columns[x];
    if (s.planar) {
      const Tap chroma = memory.chroma_columns[x];
      const float* y = line + (at[0] + tap.index);
      const float* u = line + (at[1] + chroma.index);
      const float* v = line + (at[2] + chroma.index);
      made(x, to_rgb(s.matrix, lerp(y[0], y[1], tap.weight), lerp(u[0], u[1], chroma.weight),
                     lerp(v[0], v[1], chroma.weight)));
    } else {
      const float* p = line + (at[0] + 3 * tap.index);
      made(x, Rgb<float>{lerp(p[0], p[3], tap.weight), lerp(p[1], p[4], tap.weight),
                         lerp(p[2], p[5], tap.weight)});
    }
  }
  __syncwarp();
}

// Rows [first, first + rows) of the crop, jittered up to contrast, into shared memory. Gives this
// thread's part of the sum of their grey.
__device__ float make_rows(const PaceClip& args, const Bands& bands, const Source& s,
                           const Memory& memory, int first, int rows) {
  __syncthreads();  // the rows before are done with
  for (int row = threadIdx.x; row < rows; row += kThreads) {
    const int64_t at = s.top + first + row;
    memory.rows[row] = tap_at(at, s.height, args.resize_height, Plane::luma);
    memory.chroma_rows[row] = tap_at(at, s.height, args.resize_height, Plane::chroma_between);
  }
  __syncthreads();
  float sum = 0;
  for (int row = threadIdx.x / 32; row < rows; row += kWarps) {
    float* out = memory.crop + row * static_cast<int>(args.crop_width);
    make_row(args, s, memory, row, [&](int x, Rgb<float> colour) {
      Rgb<float> c[1] = {colour};
      apply_jitter(c, s.jitter, 0, s.jitter.contrast_at, 0.f);
      out[x] = c[0].r;
      out[x + bands.plane] = c[0].g;
      out[x + 2 * bands.plane] = c[0].b;
      sum += grey(c[0]);
    });
  }
  __syncthreads();
  return sum;
}

// Sum over the block, in a fixed order, given to every thread.
__device__ double block_sum(double value, double* shared /* (kWarps,) */) {
  for (int distance = 16; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  for (int warp = 0; warp < kWarps; ++warp) value += shared[warp];
  __syncthreads();
  return value;
}

}  // namespace
}  // namespace pacecore
