// pace_clip on CUDA: one pass over the source, one write of the clips.
//
// A block owns a band of rows of one frame of one clip. Each warp makes one output row at a time:
// it blends the two source rows vertically into a line in shared memory (16-byte loads), samples
// the line horizontally, turns YUV to RGB, applies the jitter up to contrast, and leaves the row in
// shared memory as planar floats. Contrast needs the mean grey of the whole frame: the blocks of a
// frame are a cluster and add up their sums. Then each block finishes its band from shared memory
// with 16-byte stores. Where a band does not fit into shared memory (large crops before sm_90), its
// rows are made once for the mean and once for the output; the second time the source is in L2.
//
// Equal neighbouring frames are not shared: their source is in L2 too.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cluster.h"
#include "launch.h"
#include "library.h"
#include "pace_clip_op.h"

namespace pacecore {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kLineFloats =
    704;  // of a warp: 320 luma and 2 x 160 chroma columns, each to 16 bytes
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

// ---- Output ----

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
__device__ __forceinline__ void store_16(Out* out, const float (&values)[kVector<Out>]) {
  Packet<Out> packet;
#pragma unroll
  for (int k = 0; k < kVector<Out>; ++k) packet.values[k] = rounded_to<Out>(values[k]);
  *reinterpret_cast<uint4*>(out) = packet.bytes;
}

__device__ __forceinline__ Rgb<float> normalised(const PaceClip& args, Rgb<float> c) {
  c = {c.r * args.scale[0] + args.shift[0], c.g * args.scale[1] + args.shift[1],
       c.b * args.scale[2] + args.shift[2]};
  return args.bgr ? Rgb<float>{c.b, c.g, c.r} : c;
}

// N pixels of shared memory from `pixel` on: the steps from contrast on, then normalised.
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
    c[k] = normalised(args, c[k]);
    values[0][k] = c[k].r;
    values[1][k] = c[k].g;
    values[2][k] = c[k].b;
  }
}

// `count` values, value i being from(i), consecutive in `out`.
template <class Out, class From>
__device__ __forceinline__ void store_run(Out* out, int count, From from) {
  constexpr int wide = kVector<Out>;
  const int whole = reinterpret_cast<uintptr_t>(out) % 16 == 0 ? count / wide : 0;
  for (int i = threadIdx.x; i < whole; i += kThreads) {
    float values[wide];
#pragma unroll
    for (int k = 0; k < wide; ++k) values[k] = from(wide * i + k);
    store_16(out + wide * i, values);
  }
  for (int i = wide * whole + threadIdx.x; i < count; i += kThreads)
    out[i] = rounded_to<Out>(from(i));
}

// Rows [first, first + rows), which shared memory holds, to the clips. `frame` is b * T + t.
template <class Out, bool ChannelsLast>
__device__ void store_rows(const PaceClip& args, const Bands& bands, const Source& s,
                           const Memory& memory, int64_t frame, int first, int rows,
                           float mean_grey) {
  constexpr int wide = kVector<Out>;
  const int pixels = rows * static_cast<int>(args.crop_width);
  const int64_t frame_pixels = args.crop_height * args.crop_width;
  const int64_t before = first * args.crop_width;
  const int64_t clip = frame / args.clip_frames, t = frame % args.clip_frames;
  Out* clips = static_cast<Out*>(args.clips);
  Out* plane = clips + (3 * clip * args.clip_frames + t) * frame_pixels + before;
  const int64_t channel_stride = args.clip_frames * frame_pixels;
  if (!ChannelsLast && pixels % wide == 0 && reinterpret_cast<uintptr_t>(plane) % 16 == 0 &&
      channel_stride % wide == 0) {
    for (int pixel = wide * threadIdx.x; pixel < pixels; pixel += wide * kThreads) {
      float values[3][wide];
      finish(args, bands, s, memory.crop, pixel, mean_grey, values);
#pragma unroll
      for (int channel = 0; channel < 3; ++channel)
        store_16(plane + channel * channel_stride + pixel, values[channel]);
    }
    return;
  }
  // In place first, so that neighbouring threads can store neighbouring values whatever the layout.
  for (int pixel = 4 * threadIdx.x; pixel < pixels; pixel += 4 * kThreads) {
    float values[3][4];
    finish(args, bands, s, memory.crop, pixel, mean_grey, values);
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
      const float (&v)[4] = values[channel];
      *reinterpret_cast<float4*>(memory.crop + channel * bands.plane + pixel) =
          make_float4(v[0], v[1], v[2], v[3]);
    }
  }
  __syncthreads();
  if constexpr (ChannelsLast) {
    store_run(clips + 3 * (frame * frame_pixels + before), 3 * pixels,
              [&](int i) { return memory.crop[i % 3 * bands.plane + i / 3]; });
  } else {
    for (int channel = 0; channel < 3; ++channel)
      store_run(plane + channel * channel_stride, pixels,
                [&](int i) { return memory.crop[channel * bands.plane + i]; });
  }
}

// NaN into rows [first, first + rows) of a frame that cannot be computed.
template <class Out, bool ChannelsLast>
__device__ void store_nan(const PaceClip& args, int64_t frame, int first, int rows) {
  const int64_t pixels = rows * args.crop_width;
  const int64_t frame_pixels = args.crop_height * args.crop_width;
  const int64_t clip = frame / args.clip_frames, t = frame % args.clip_frames;
  for (int channel = 0; channel < 3; ++channel) {
    const int64_t plane = (3 * clip + channel) * args.clip_frames + t;
    const int64_t start = ChannelsLast ? 3 * (frame * frame_pixels + first * args.crop_width)
                                       : plane * frame_pixels + first * args.crop_width;
    Out* out = static_cast<Out*>(args.clips) + start;
    for (int64_t i = threadIdx.x; i < pixels; i += kThreads)
      out[ChannelsLast ? 3 * i + channel : i] = rounded_to<Out>(__int_as_float(0x7fc00000));
  }
}

// ---- Kernel and op ----

// Blocks on a multiprocessor, which bound the registers. From sm_120 on shared memory holds one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kBlocks = 1;
#else
constexpr int kBlocks = 3;
#endif

template <class Out, bool ChannelsLast>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pace_clip_kernel(const PaceClip args, const Bands bands) {
  PACECORE_DYNAMIC_SHARED(float, dynamic);
  __shared__ Source source;
  __shared__ double sums[kWarps];
  __shared__ double cluster_slot;
  const int64_t frame = blockIdx.x / bands.blocks;
  const int first = static_cast<int>(blockIdx.x % bands.blocks) * bands.rows;
  const int rows = max(0, min(bands.rows, static_cast<int>(args.crop_height) - first));
  if (threadIdx.x == 0) find_source(args, frame, source);
  __syncthreads();
  if (!source.valid) {  // for all blocks of the frame alike
    store_nan<Out, ChannelsLast>(args, frame, first, rows);
    return;
  }
  const Memory memory = memory_of(args, bands, dynamic);
  find_columns(args, memory, source);
  const bool contrast = source.jitter.contrast_at < source.jitter.num_steps;
  float mean_grey = 0;
  if (contrast) {
    double sum = 0;
    for (int done = 0; done < rows; done += bands.kept_rows) {
      sum +=
          make_rows(args, bands, source, memory, first + done, min(bands.kept_rows, rows - done));
    }
    sum = cluster_sum(block_sum(sum, sums), &cluster_slot, bands.cluster);
    mean_grey = static_cast<float>(
        sum / (static_cast<double>(args.crop_height) * static_cast<double>(args.crop_width)));
  }
  const bool made = contrast && rows <= bands.kept_rows;
  for (int done = 0; done < rows; done += bands.kept_rows) {
    const int now = min(bands.kept_rows, rows - done);
    if (!made) make_rows(args, bands, source, memory, first + done, now);
    store_rows<Out, ChannelsLast>(args, bands, source, memory, frame, first + done, now, mean_grey);
  }
}

// 40 KB for the crop leaves room for three blocks on a multiprocessor of sm_80 and sm_90; a frame
// whose share is larger still keeps it all where the cluster is as large as it gets.
Bands bands_of(const PaceClip& args, const ClusterLimits& limits) {
  constexpr int64_t crop_bytes = 40 * 1024;
  const int64_t fitting = std::max<int64_t>(1, crop_bytes / (12 * args.crop_width));
  Bands bands{};
  bands.cluster = 1;
  int64_t rows = std::min<int64_t>(args.crop_height, std::min<int64_t>(fitting, 2 * kWarps));
  if (args.jitter_order) {
    const auto share = [&] { return (args.crop_height + bands.cluster - 1) / bands.cluster; };
    while (bands.cluster < limits.blocks && share() > fitting) bands.cluster *= 2;
    rows = share();
  }
  const auto keep = [&](int64_t kept) {
    bands.kept_rows = static_cast<int>(kept);
    bands.plane = static_cast<int>((kept * args.crop_width + 7) / 8 * 8);
    return shared_bytes(args, bands) <= limits.shared_bytes;
  };
  if (bands.cluster == 1 || rows <= fitting || !keep(rows)) keep(std::min(rows, fitting));
  bands.rows = static_cast<int>(rows);
  bands.blocks =
      bands.cluster > 1 ? bands.cluster : static_cast<int>((args.crop_height + rows - 1) / rows);
  return bands;
}

template <class Out, bool ChannelsLast>
void launch(const PaceClip& args, const Bands& bands, cudaStream_t stream) {
  const int64_t grid = args.batch * args.clip_frames * bands.blocks;
  check(grid < (int64_t{1} << 31), "pace_clip: plan must have fewer than ",
        (int64_t{1} << 31) / bands.blocks, " frames on CUDA, got ", args.batch * args.clip_frames);
  launch_clusters<&pace_clip_kernel<Out, ChannelsLast>>("pace_clip", static_cast<unsigned>(grid),
                                                        kThreads, shared_bytes(args, bands), stream,
                                                        bands.cluster, args, bands);
}

template <class Out>
void launch_as(const PaceClip& args, const Bands& bands, cudaStream_t stream) {
  if (args.channels_last)
    launch<Out, true>(args, bands, stream);
  else
    launch<Out, false>(args, bands, stream);
}

Tensor pace_clip(const Tensor& data_, const Tensor& table_, const Tensor& plan_,
                 const Tensor& crop_, const std::optional<Tensor>& jitter_,
                 const std::optional<Tensor>& jitter_order_, const std::vector<int64_t>& resize,
                 const std::vector<int64_t>& crop_size, const std::vector<double>& mean,
                 const std::vector<double>& std, bool bgr, ScalarType dtype, bool channels_last) {
  using torch::stable::contiguous;
  const DeviceGuard guard(data_.get_device_index());
  const Tensor data = contiguous(data_), table = contiguous(table_);
  const Tensor plan = contiguous(plan_), crop = contiguous(crop_);
  std::optional<Tensor> jitter, jitter_order;
  if (jitter_) jitter = contiguous(*jitter_);
  if (jitter_order_) jitter_order = contiguous(*jitter_order_);
  PaceClip args = checked_pace_clip(data, table, plan, crop, jitter, jitter_order, resize,
                                    crop_size, mean, std, bgr, dtype, channels_last);
  check(args.crop_width <= kWidest, "pace_clip: crop_size must be at most ", kWidest,
        " wide on CUDA, got ", args.crop_width);
  Tensor clips = new_clips(args, data, dtype);
  if (clips.numel() == 0) return clips;
  args.clips = clips.mutable_data_ptr();
  const Bands bands = bands_of(args, cluster_limits(data));
  const cudaStream_t stream = current_stream(data);
  switch (args.element) {
    case Element::f32:
      launch_as<float>(args, bands, stream);
      break;
    case Element::f16:
      launch_as<__half>(args, bands, stream);
      break;
    case Element::bf16:
      launch_as<__nv_bfloat16>(args, bands, stream);
  }
  return clips;
}

}  // namespace
}  // namespace pacecore

PACECORE_REGISTER_CUDA(m) { m.impl("pace_clip", TORCH_BOX(&pacecore::pace_clip)); }
