// The first half of the kernel of pace_clip.cu: from source bytes to rows of the crop in shared
// memory. All is internal to that file.
#pragma once

#include "pace_clip_tile.h"

namespace pacecore {
namespace {

// ---- Samples ----

// How samples are read: one by one from global memory, where planar and packed frames are one code,
// or from the tile, or in 32-bit words from the tile.
enum class Reading { global, bytes, words };

// Samples across, of one thread's four columns. They are `zero` + sample * denominator of Source.
template <Reading reading, bool Planar>
struct Sampler {
  const Source& s;
  const uint8_t* tile;
  const ColumnTap* columns[2];

  __device__ __forceinline__ Sampler(const Source& source, const Memory& memory, int quad)
      : s(source), tile(memory.tile) {
    columns[0] = memory.columns + kQuad * quad;
    columns[1] = (Planar ? memory.chroma_columns : memory.columns) + kQuad * quad;
  }

  // The taps are read again for each row: registers limit the blocks on a multiprocessor.
  __device__ __forceinline__ void across(int plane, int row, float (&values)[kQuad]) const {
    const int step = (reading == Reading::global ? s.planar : Planar) ? 1 : 3;
    const int kind = Planar && plane ? 1 : 0;
    const uint8_t* bytes = reading == Reading::global
                               ? s.planes[plane] + row * s.strides[plane]
                               : tile + (s.origins[plane] + row * s.pitch[kind]);
    const int last = step * ((kind && s.planar ? (s.width + 1) / 2 : s.width) - 1);
#pragma unroll
    for (int k = 0; k < kQuad; k += 2) {
      const TapPair pair = *reinterpret_cast<const TapPair*>(columns[kind] + k);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = pair.taps[i].index;
        const uint32_t weights = pair.taps[i].weights;
        uint32_t first, second;
        if constexpr (reading == Reading::global) {
          first = __ldg(bytes + at), second = __ldg(bytes + min(at + step, last));
        } else {
          first = bytes[at], second = bytes[at + step];
        }
        if (reading == Reading::global && !s.whole)
          values[k + i] = lerp(float(first), float(second), __uint_as_float(weights));
        else
          values[k + i] =
              __uint_as_float(__dp2a_lo(weights, first | second << 8, __float_as_uint(8388608.f)));
      }
    }
  }
};

// The taps of the quad, kept in registers. Each row is read as the three words that hold them all.
template <>
struct Sampler<Reading::words, true> {
  const uint8_t* tile;
  int origins[3], pitch[2];                          // of the quad's first byte
  uint32_t chosen[2][kQuad / 2], weights[2][kQuad];  // bytes of two taps, from the first one on

  __device__ __forceinline__ Sampler(const Source& s, const Memory& memory, int quad)
      : tile(memory.tile) {
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
      const ColumnTap* taps = (kind ? memory.chroma_columns : memory.columns) + kQuad * quad;
      const int first = min(taps[0].index, taps[kQuad - 1].index);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) weights[kind][k] = taps[k].weights;
#pragma unroll
      for (int k = 0; k < kQuad; k += 2)
        chosen[kind][k / 2] = 0x1010u + 0x11u * static_cast<uint32_t>(taps[k].index - first) +
                              0x1100u * static_cast<uint32_t>(taps[k + 1].index - first);
      pitch[kind] = s.pitch[kind];
      for (int plane = kind; plane < 2 * kind + 1; ++plane)
        origins[plane] = s.origins[plane] + first;
    }
  }

  __device__ __forceinline__ void across(int plane, int row, float (&values)[kQuad]) const {
    const int kind = plane ? 1 : 0;
    const int at = origins[plane] + row * pitch[kind];
    const uint32_t* words = reinterpret_cast<const uint32_t*>(tile + (at & ~3));
    const uint32_t middle = words[1];
    const uint32_t low = four_bytes_from(words[0], middle, at);
    const uint32_t high = four_bytes_from(middle, words[2], at);
#pragma unroll
    for (int k = 0; k < kQuad; k += 2) {
      const uint32_t bytes = __byte_perm(low, high, chosen[kind][k / 2]);
      values[k] = __uint_as_float(__dp2a_lo(weights[kind][k], bytes, __float_as_uint(8388608.f)));
      values[k + 1] =
          __uint_as_float(__dp2a_hi(weights[kind][k + 1], bytes, __float_as_uint(8388608.f)));
    }
  }
};

// Two neighbouring rows of a plane at the thread's columns, kept while the rows of the crop between
// them are made.
struct Neighbours {
  float upper[kQuad], lower[kQuad];
};

// Rounded once, so that a colour of all samples stays as it is.
__device__ __forceinline__ float quotient(float value, const Source& s) {
  const float near = value * s.inverse[0];
  return near + s.inverse[0] * fmaf(-near, s.denominator, value);
}

// ---- Rows ----

// Takes four columns of a row of the crop to shared memory, jittered up to contrast, and adds up
// their grey. A sink is called by all threads of a warp at once, those without pixels not `active`.
struct KeepRows {
  const PaceClip& args;
  const Bands& bands;
  const Source& s;
  float* crop;
  float sum;

  __device__ __forceinline__ void operator()(int row, int quad, bool active,
                                             Rgb<float> (&c)[kQuad]) {
    if (!active) return;
    const int width = static_cast<int>(args.crop_width);
    apply_jitter(c, s.jitter, 0, s.jitter.contrast_at, 0.f);
    float* out = crop + row * width + kQuad * quad;
    const int columns_here = min(kQuad, width - kQuad * quad);
    if (s.jitter.contrast_at < s.jitter.num_steps) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) sum += k < columns_here ? grey(c[k]) : 0.f;
    }
    if (width % kQuad == 0) {
      store_shared_16(out, {c[0].r, c[1].r, c[2].r, c[3].r});
      store_shared_16(out + bands.plane, {c[0].g, c[1].g, c[2].g, c[3].g});
      store_shared_16(out + 2 * bands.plane, {c[0].b, c[1].b, c[2].b, c[3].b});
      return;
    }
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      if (k >= columns_here) break;
      out[k] = c[k].r;
      out[k + bands.plane] = c[k].g;
      out[k + 2 * bands.plane] = c[k].b;
    }
  }
};

// Whether variables begin as 0. For sm_100 and later nvcc takes one without a value for one that
// keeps its last, and what each way of reading left would stay in registers during all others.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool kCleared = true;
#else
constexpr bool kCleared = false;
#endif

// Rows [from, to) of those that `memory` has taps of, columns [4 * quad, 4 * quad + 4), by one
// thread, which counts `steps` rows.
template <Reading reading, bool Planar, class Sink>
__device__ __forceinline__ void make_quads(const Source& s, const Memory& memory, int quad,
                                           int from, int to, int steps, Sink& sink) {
  const Sampler<reading, Planar> sampler(s, memory, quad);
  const float zero = reading == Reading::global ? s.zero : 8388608.f;
  Neighbours planes[3];
  if constexpr (kCleared) {
#pragma unroll
    for (Neighbours& plane : planes) plane = {};
  }
  int held[2] = {-2, -2};  // the upper rows that `planes` are of
#pragma unroll 1
  for (int row = from; row < from + steps; ++row) {
    Rgb<float> c[kQuad];
    if constexpr (kCleared) {
#pragma unroll
      for (Rgb<float>& pixel : c) pixel = {};
    }
    if (row < to) {
      const Tap taps[2] = {memory.rows[row], Planar ? memory.chroma_rows[row] : memory.rows[row]};
#pragma unroll
      for (int kind = 0; kind < (Planar ? 2 : 1); ++kind) {
        const int first = kind, end = Planar && kind == 0 ? 1 : 3;
        const int upper = taps[kind].index;
        if (held[kind] == upper) continue;
        const bool next = held[kind] + 1 == upper;
        const int lower = min(upper + 1, (kind ? s.chroma_height : s.height) - 1);
        held[kind] = upper;
#pragma unroll
        for (int plane = first; plane < end; ++plane) {
          Neighbours& rows = planes[plane];
          if (kind == 0 && s.same_size) {
            sampler.across(plane, upper, rows.upper);
#pragma unroll
            for (int k = 0; k < kQuad; ++k) rows.lower[k] = rows.upper[k];
            continue;
          }
          if (next) {
#pragma unroll
            for (int k = 0; k < kQuad; ++k) rows.upper[k] = rows.lower[k];
          } else {
            sampler.across(plane, upper, rows.upper);
          }
          sampler.across(plane, lower, rows.lower);
        }
      }
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        float value[3];
#pragma unroll
        for (int plane = 0; plane < 3; ++plane) {  // the differences are exact
          const Neighbours& rows = planes[plane];
          value[plane] = (rows.upper[k] - zero) +
                         taps[Planar && plane ? 1 : 0].weight * (rows.lower[k] - rows.upper[k]);
        }
        if (reading == Reading::global ? s.planar : Planar)
          c[k] = to_rgb(s.matrix, value[0], value[1], value[2]);
        else
          c[k] = {quotient(value[0], s), quotient(value[1], s), quotient(value[2], s)};
      }
    }
    sink(row, quad, row < to, c);
  }
}

// `count` rows from `from` on. Neighbouring threads have neighbouring columns, and each a run of
// rows, so that it samples most source rows once.
template <Reading reading, bool Planar, class Sink>
__device__ __forceinline__ void make_run(const PaceClip& args, const Source& s,
                                         const Memory& memory, int from, int count, Sink& sink) {
  const int quads = (static_cast<int>(args.crop_width) + kQuad - 1) / kQuad;
  const int groups = max(1, num_threads() / quads);
  const int group = groups > 1 ? threadIdx.x / quads : 0;
  const int rows = (count + groups - 1) / groups;
  const int begin = min(group * rows, count), end = group < groups ? min(begin + rows, count) : 0;
  // As often for all, so that a warp stays together.
  for (int at = 0; at < quads; at += num_threads()) {
    const int quad = at + threadIdx.x - group * quads;
    make_quads<reading, Planar>(s, memory, min(quad, quads - 1), from + begin,
                                quad < quads ? from + end : 0, rows, sink);
  }
}

// Rows [first, first + rows) of the crop, which the sink counts from 0.
template <class Sink>
__device__ __forceinline__ void make_rows(const PaceClip& args, const Bands& bands, Source& s,
                                          const Memory& memory, int first, int rows, Sink& sink) {
  const bool placed = s.taps_from == first;
  if (!placed) {
    __syncthreads();  // the rows before are done with
    find_rows(args, memory, s, first, rows);
    __syncthreads();
  }
  if (s.tile_rows == 0) {
    if (threadIdx.x == 0) s.taps_from = first;
    make_run<Reading::global, true>(args, s, memory, 0, rows, sink);
    __syncthreads();
    return;
  }
  for (int from = 0; from < rows; from += s.tile_rows) {
    const int count = min(s.tile_rows, rows - from);
    if (from > 0 || !placed) {
      if (threadIdx.x == 0) {
        place_tile(s, memory.rows[from].index, memory.chroma_rows[from].index);
        s.taps_from = from > 0 ? -1 : first;
      }
      __syncthreads();
    }
    for (int plane = 0; plane < (s.planar ? 3 : 1); ++plane) {
      const Tap* taps = plane ? memory.chroma_rows : memory.rows;
      copy_rows(s, plane, taps[from].index,
                min(taps[from + count - 1].index + 1, (plane ? s.chroma_height : s.height) - 1),
                memory.tile);
    }
    async_copy_commit();
    async_copy_wait<0>();
    __syncthreads();
    if (s.by_words)
      make_run<Reading::words, true>(args, s, memory, from, count, sink);
    else if (s.planar)
      make_run<Reading::bytes, true>(args, s, memory, from, count, sink);
    else
      make_run<Reading::bytes, false>(args, s, memory, from, count, sink);
    __syncthreads();
  }
}

// Adds a value of each thread to the sum of its warp: kept here and not in registers, which the
// rows between need.
__device__ __forceinline__ void add_to_warp(double value, double* sums /* (warps,) */) {
  for (int distance = 16; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  if (lane_again() == 0) sums[threadIdx.x / 32] += value;
}

// The sum of all warps, in a fixed order, given to every thread.
__device__ __forceinline__ double block_sum(const double* sums /* (warps,) */) {
  __syncthreads();
  double value = 0;
  for (int warp = 0; warp < num_threads() / 32; ++warp) value += sums[warp];
  return value;
}

}  // namespace
}  // namespace pacecore
