// Of one block of pace_clip.cu: its frame, its share of shared memory, its taps, and the source
// bytes it copies there. All is internal to that file.
#pragma once

#include "launch.h"
#include "pace_clip_args.h"
#include "primitives.h"

namespace pacecore {
namespace {

// Of a block with jitter at most, and of one without. A row of four columns wants 96 registers,
// with which kWarpsResident warps fit on a multiprocessor. 128 threads share out 28 rows of 112
// pixels evenly.
constexpr int kJitterThreads = 320, kPlainThreads = 128;
constexpr int kWarpsResident = 20;
constexpr int kSmallThreads = 256;  // with jitter at most, where shared memory is below 128 KB
constexpr int kQuad = 4;            // columns of a thread: one 16-byte store into each plane
// Source bytes copied at a time: 28 rows of 112 pixels from 320 x 240 need 20 KB.
constexpr int kTileBytes = 22 * 1024;
// Widest resized image whose samples across are sums of whole numbers: 255 * 4 * 8192 < 2^23.
constexpr int64_t kWholeWidth = 8192;
constexpr int64_t kWidest = 2048;  // crop columns; their taps and one row fit in any GPU's block

__device__ __forceinline__ int num_threads() { return static_cast<int>(blockDim.x); }

// How the rows of a frame are shared out, chosen on the host.
struct Bands {
  int rows;       // of a block
  int kept_rows;  // of them that fit into shared memory at a time
  int blocks;     // of a frame
  int cluster;    // blocks, or 1 where no frame has jitter
  int threads;    // of a block
  int plane;      // floats of a plane of the kept rows, a multiple of 8
  // Where the parts of Memory start, in bytes, and where they end.
  int tile, columns, chroma_columns, row_taps, chroma_row_taps, shared_bytes;
};

// What all threads of a block know of their frame. Of packed RGB the planes are its channels, and
// the taps of chroma those of the first.
struct Source {
  int frame;        // b * T + t
  int first, rows;  // of the crop: the block's band, maybe no rows
  const uint8_t* planes[3];
  int64_t strides[3];
  const uint8_t* end;  // of data
  YuvToRgb matrix;     // of samples times their denominators, to 0..1
  Jitter jitter;
  int height, width, chroma_height;
  int top, left;
  bool valid, planar, centre_sited, flip;
  bool same_size;  // as the resized image: each sample of the first plane is one byte
  bool whole;      // column taps weigh by whole numbers, else as float
  bool by_words;   // a quad's taps lie within 8 bytes of a plane's row
  // Of samples across, of the first plane and of chroma: in 0..1 they are (sample - zero) *
  // inverse.
  float zero, inverse[2], denominator;  // the last of the first plane
  // Of a row of the plane, or of packed RGB in [0]: the first byte needed and how many.
  int start[2], bytes[2];
  // Rows of the crop whose source rows are in the tile at a time, 0 where samples are read one by
  // one from global memory. [1] is of both chroma planes, which lie one after the other.
  int tile_rows;
  int tile[3];     // where each plane starts, a multiple of 16
  int pitch[2];    // bytes from row to row: as the plane's stride, modulo 16
  int origins[3];  // where byte 0 of row 0 of the plane would stand now
  int taps_from;   // row of the crop that the row taps and the tile start with, or -1
};

// Two neighbouring samples of a row, `index` being the byte of the first. Weights: of the first in
// the low 16 bits and of the second in the high ones, or where the source is not `whole` the bits
// of the float weight of the second.
struct alignas(8) ColumnTap {
  int32_t index;
  uint32_t weights;
};

struct alignas(16) TapPair {
  ColumnTap taps[2];
};

struct Memory {
  ColumnTap *columns, *chroma_columns;  // (W rounded up to kQuad,)
  Tap *rows, *chroma_rows;              // (kept_rows,)
  uint8_t* tile;                        // (kTileBytes,)
  float* crop;  // (3, plane); without jitter, where warps exchange what they store
};

void lay_out(const PaceClip& args, Bands& bands) {
  const int columns = static_cast<int>((args.crop_width + kQuad - 1) / kQuad * kQuad);
  constexpr int tap = sizeof(Tap);
  static_assert(sizeof(ColumnTap) == tap);
  if (args.jitter_order) {
    bands.plane = static_cast<int>((bands.kept_rows * args.crop_width + 7) / 8 * 8);
    bands.tile = 12 * bands.plane;
  } else {  // each thread stores its pixels at once
    bands.plane = 0;
    bands.tile = args.channels_last
                     ? 3 * kQuad * kPlainThreads * static_cast<int>(bytes_of(args.element))
                     : 0;
  }
  bands.columns = bands.tile + kTileBytes;
  bands.chroma_columns = bands.columns + tap * columns;
  bands.row_taps = bands.chroma_columns + tap * columns;
  bands.chroma_row_taps = bands.row_taps + tap * bands.kept_rows;
  bands.shared_bytes = bands.chroma_row_taps + tap * bands.kept_rows;
}

__device__ __forceinline__ Memory memory_of(const Bands& bands, float* shared) {
  uint8_t* bytes = reinterpret_cast<uint8_t*>(shared);
  return {reinterpret_cast<ColumnTap*>(bytes + bands.columns),
          reinterpret_cast<ColumnTap*>(bytes + bands.chroma_columns),
          reinterpret_cast<Tap*>(bytes + bands.row_taps),
          reinterpret_cast<Tap*>(bytes + bands.chroma_row_taps),
          bytes + bands.tile,
          shared};
}

// ---- The frame ----

// By one thread. An entry out of range leaves `valid` false and nothing is read through it.
__device__ void find_source(const PaceClip& args, const Bands& bands, Source& s) {
  const int frame = static_cast<int>(blockIdx.x / bands.blocks);
  s.frame = frame;
  s.first = static_cast<int>(blockIdx.x % bands.blocks) * bands.rows;
  s.rows = max(0, min(bands.rows, static_cast<int>(args.crop_height) - s.first));
  s.valid = false;
  const int32_t row_number = __ldg(args.plan + frame);
  const int32_t* crop_at = args.crop + int64_t{3} * (frame / static_cast<int>(args.clip_frames));
  const int32_t crop[3] = {__ldg(crop_at), __ldg(crop_at + 1), __ldg(crop_at + 2)};
  int32_t order = -1;
  float factors[4] = {};
  if (args.jitter_order) {
    order = __ldg(args.jitter_order + frame);
#pragma unroll
    for (int i = 0; i < 4; ++i) factors[i] = __ldg(args.jitter + int64_t{4} * frame + i);
  }
  if (row_number < 0 || row_number >= args.num_rows) return;
  int64_t row[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i)
    row[i] = __ldg(args.table + int64_t{kColumns} * row_number + i);
  if (broken_rule(row, args.num_bytes)) return;
  if (crop[0] < 0 || crop[0] > args.resize_height - args.crop_height) return;
  if (crop[1] < 0 || crop[1] > args.resize_width - args.crop_width) return;
  if (crop[2] != 0 && crop[2] != 1) return;
  s.jitter = Jitter{};
  if (args.jitter_order) {
    if (!is_jitter_order(order)) return;
    s.jitter = make_jitter(factors, order);
  }
  s.valid = true;
  s.end = args.data + args.num_bytes;
  s.planar = row[kFormat] & kPlanar;
  s.centre_sited = row[kFormat] & kCentreSited;
  s.matrix = yuv_to_rgb(row[kFormat]);
  s.height = static_cast<int>(row[kHeight]);
  s.width = static_cast<int>(row[kWidth]);
  s.chroma_height = s.planar ? (s.height + 1) / 2 : s.height;
  s.top = crop[0];
  s.left = crop[1];
  s.flip = crop[2];
  s.same_size = s.height == args.resize_height && s.width == args.resize_width;
  s.whole = args.resize_width <= kWholeWidth;
  // In float 2^23 + n the last bits are those of n: so a sum becomes a float without conversion.
  s.zero = s.whole ? 8388608.f : 0.f;
  const bool same_width = s.width == args.resize_width;
  const float resized = static_cast<float>(args.resize_width);
  s.denominator = 255.f * (s.whole && !same_width ? 2.f * resized : 1.f);
  s.inverse[0] = 1.f / s.denominator;
  s.inverse[1] = 1.f / (255.f * (s.whole ? 4.f * resized : 1.f));
  s.matrix.y *= s.inverse[0];
  s.matrix.rv *= s.inverse[1];
  s.matrix.gu *= s.inverse[1];
  s.matrix.gv *= s.inverse[1];
  s.matrix.bu *= s.inverse[1];
  s.matrix.r0 /= 255.f;
  s.matrix.g0 /= 255.f;
  s.matrix.b0 /= 255.f;
  const int64_t offsets[3] = {row[kYOffset], row[kUOffset], row[kVOffset]};
  for (int plane = 0; plane < 3; ++plane) {
    s.planes[plane] = args.data + (s.planar ? offsets[plane] : offsets[0] + plane);
    s.strides[plane] = s.planar && plane ? row[kChromaStride] : row[kStride];
  }
}

// Lays out the tile, by one thread.
__device__ void plan_tile(const PaceClip& args, const Bands& bands, Source& s) {
  const int channels = s.planar ? 1 : 3, resized = static_cast<int>(args.resize_height);
  // Rows are copied in aligned 16 bytes, which those of two rows never share: 15 more on each side.
  // Taps on the last column read one pixel more.
  s.pitch[1] = 0;  // of packed RGB
  for (int plane = 0; plane < (s.planar ? 2 : 1); ++plane) {
    const int least = s.bytes[plane] + channels + 30;
    s.pitch[plane] = least + static_cast<int>((s.strides[plane] - least) & 15);
  }
  // n rows of the crop lie between (n - 1) * height / resized + 3 source rows, and half of that
  // and 3 chroma rows.
  const int fixed = 3 * s.pitch[0] + 6 * s.pitch[1] + 3 * 31;
  const int a_row = s.pitch[0] + s.pitch[1];
  s.tile_rows = 0;
  s.by_words = false;
  // Past 3 source rows for each of the crop most of a copy would not be read.
  if (reinterpret_cast<uintptr_t>(args.data) % 16 || fixed > kTileBytes || s.height > 3 * resized ||
      !s.whole)
    return;
  // Then four neighbouring taps begin within 7 bytes, those of chroma within 4.
  s.by_words = s.planar && s.width <= 2 * args.resize_width;
  static_assert(kTileBytes * kLongest < int64_t{1} << 31);
  const int steps = (kTileBytes - fixed) * resized / (s.height * a_row);
  s.tile_rows = min(bands.kept_rows, 1 + steps);
  const int apart = (s.tile_rows - 1) * s.height / resized;
  s.tile[0] = 0;
  s.tile[1] = ((apart + 3) * s.pitch[0] + 31) / 16 * 16;
  s.tile[2] = s.tile[1] + ((apart / 2 + 3) * s.pitch[1] + 31) / 16 * 16;
}

__device__ __forceinline__ ColumnTap column_tap(const PaceClip& args, const Source& s, int64_t at,
                                                Plane plane) {
  const FractionTap tap = fraction_tap_at(at, s.width, args.resize_width, plane);
  if (!s.whole)
    return {tap.index, __float_as_uint(static_cast<float>(tap.numerator) /
                                       static_cast<float>(tap.denominator))};
  if (plane == Plane::luma && s.width == args.resize_width) return {tap.index, 1};
  return {tap.index, static_cast<uint32_t>(tap.denominator - tap.numerator) |
                         static_cast<uint32_t>(tap.numerator) << 16};
}

// By one thread: the tile shall start with rows `first` and `chroma_first` of the planes. Rows keep
// their places modulo 16, and channels of packed RGB theirs beside each other.
__device__ void place_tile(Source& s, int first, int chroma_first) {
  for (int plane = 0; plane < 3; ++plane) {
    const int kind = plane && s.planar ? 1 : 0, row = kind ? chroma_first : first;
    const int channel = s.planar ? 0 : plane;
    const uint8_t* start = s.planes[plane] - channel + row * s.strides[plane] + s.start[kind];
    s.origins[plane] = s.tile[s.planar ? plane : 0] + channel +
                       static_cast<int>(reinterpret_cast<uintptr_t>(start) % 16) - s.start[kind] -
                       row * s.pitch[kind];
  }
}

// Of rows [first, first + rows) of the crop.
__device__ __forceinline__ void find_rows(const PaceClip& args, const Memory& memory,
                                          const Source& s, int first, int rows) {
  const Plane chroma = s.planar ? Plane::chroma_between : Plane::luma;
  for (int row = threadIdx.x; row < rows; row += num_threads()) {
    const int64_t at = s.top + first + row;
    memory.rows[row] = tap_at(at, s.height, args.resize_height, Plane::luma);
    memory.chroma_rows[row] = tap_at(at, s.height, args.resize_height, chroma);
  }
}

// The block's column taps, those of its first rows, and the tile's first place: that by one thread,
// which finds the taps it needs itself, so that nothing waits for another.
__device__ void find_taps(const PaceClip& args, const Bands& bands, const Memory& memory,
                          Source& s) {
  const int width = static_cast<int>(args.crop_width);
  const int channels = s.planar ? 1 : 3;
  const Plane chroma = s.centre_sited ? Plane::chroma_between : Plane::chroma_on_even;
  if (threadIdx.x == blockDim.x - 1) {
    for (int plane = 0; plane < (s.planar ? 2 : 1); ++plane) {
      const int step = plane ? 1 : channels;
      const int row_bytes = plane ? (s.width + 1) / 2 : channels * s.width;
      const Plane kind = plane ? chroma : Plane::luma;
      const auto tap = [&](int64_t at) {
        return step * fraction_tap_at(at, s.width, args.resize_width, kind).index;
      };
      s.start[plane] = tap(s.left);
      s.bytes[plane] = min(tap(s.left + width - 1) + 2 * step, row_bytes) - s.start[plane];
    }
    plan_tile(args, bands, s);
    const int64_t at = s.top + s.first;
    if (s.tile_rows > 0)
      place_tile(s, tap_at(at, s.height, args.resize_height, Plane::luma).index,
                 tap_at(at, s.height, args.resize_height, Plane::chroma_between).index);
    s.taps_from = s.first;
  }
  for (int i = threadIdx.x; i < (width + kQuad - 1) / kQuad * kQuad; i += num_threads()) {
    const int x = min(i, width - 1);
    const int64_t at = s.left + (s.flip ? width - 1 - x : x);
    ColumnTap tap = column_tap(args, s, at, Plane::luma);
    tap.index *= channels;
    memory.columns[i] = tap;
    memory.chroma_columns[i] = s.planar ? column_tap(args, s, at, chroma) : tap;
  }
  find_rows(args, memory, s, s.first, min(bands.kept_rows, s.rows));
  __syncthreads();
}

// Starts the copy of rows [first, last] of a plane, the aligned 16 bytes that hold what is needed.
__device__ void copy_rows(const Source& s, int plane, int first, int last, uint8_t* tile) {
  const int kind = plane ? 1 : 0;
  const int packets = s.bytes[kind] / 16 + 2;
  const int shift = 32 - __clz(packets - 1);
  // Read once: each copy clobbers memory.
  const uint8_t* const start = s.planes[plane] + s.start[kind];
  const int64_t stride = s.strides[plane];
  const int bytes = s.bytes[kind], pitch = s.pitch[kind];
  uint8_t* const to = tile + (s.origins[plane] + s.start[kind]);
  const uint8_t* const end = s.end;
  for (int i = threadIdx.x; i >> shift <= last - first; i += num_threads()) {
    const int row = first + (i >> shift), packet = i & ((1 << shift) - 1);
    const uint8_t* from = start + row * stride;
    const int at = 16 * packet - static_cast<int>(reinterpret_cast<uintptr_t>(from) % 16);
    if (at >= bytes) continue;
    uint8_t* const here = to + (row * pitch + at);
    if (end - from - at >= 16) {
      async_copy_16(here, from + at);
    } else {  // the last bytes of all data: 16 would be a read past them
      for (int k = 0; k < static_cast<int>(end - from - at); ++k) here[k] = __ldg(from + at + k);
    }
  }
}

}  // namespace
}  // namespace pacecore
