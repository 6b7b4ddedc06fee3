// The loops of pace_clip over W floats at a time, in GCC's vector extension: the same text gives
// the scalar path, SSE2, NEON, AVX2 and AVX-512. Included by one file per instruction set; all is
// internal to that file and nothing of the standard library is called, so that no function compiled
// for a newer processor can be linked into another path.
#pragma once

#include "pace_clip_vectors.h"

namespace pacecore::cpu {
namespace {

// ---- Resize ----

// W values of line: a[x] + weight * (b[x] - a[x]).
template <int W>
PACECORE_INLINE void blend(const uint8_t* a, const uint8_t* b, float weight, float* line) {
  const Float<W> blended = lerp(floats_of<W>(a), floats_of<W>(b), Float<W>{} + weight);
  memcpy(line, &blended, sizeof blended);
}

// A line of blended values, and kLineSlack more samples at the end, for taps on the last one.
template <int W>
PACECORE_INLINE void blend_rows(const uint8_t* a, const uint8_t* b, float weight, int64_t count,
                                int64_t channels, float* line) {
  const int64_t values = count * channels;
  if (values >= W) {
    for (int64_t x = 0; x < values - W; x += W) blend<W>(a + x, b + x, weight, line + x);
    const int64_t last = values - W;  // overlaps the one before
    blend<W>(a + last, b + last, weight, line + last);
  } else {
    for (int64_t x = 0; x < values; ++x) blend<1>(a + x, b + x, weight, line + x);
  }
  for (int64_t x = values; x < values + kLineSlack; ++x) line[x] = line[x - channels];
}

// A pair of floats is loaded as one double: line[index], line[index + 1]. Pixels of each group of
// four are dealt to two vectors so that one shuffle inside 128 bits brings them back in order.
template <int W, int... P>
PACECORE_INLINE typename Vectors<W>::Pairs load_pairs(const float* line, const int32_t* index,
                                                      Sequence<P...>) {
  return typename Vectors<W>::Pairs{load<double>(line + index[P / 2 * 4 + P % 2])...};
}

template <int W, int... L>
PACECORE_INLINE Float<W> interpolated(const float* line, const int32_t* index, const float* weight,
                                      Sequence<L...>) {
  const auto a = bits<Float<W>>(load_pairs<W>(line, index, Lanes<W / 2>()));
  const auto b = bits<Float<W>>(load_pairs<W>(line, index + 2, Lanes<W / 2>()));
  const auto first =
      shuffled<(L % 4 < 2 ? L / 4 * 4 + L % 2 * 2 : W + L / 4 * 4 + L % 2 * 2)...>(a, b);
  const auto second =
      shuffled<(L % 4 < 2 ? L / 4 * 4 + L % 2 * 2 + 1 : W + L / 4 * 4 + L % 2 * 2 + 1)...>(a, b);
  return lerp(first, second, load<Float<W>>(weight));
}

// Whether the taps of any W pixels lie within 2 W samples, as down to about half the size they do.
template <int W>
PACECORE_INLINE bool within_two_vectors(const Axis& axis, int64_t floats) {
  for (int64_t x = 0; x < floats; x += W) {
    const int32_t reach = axis.index[x + W - 1] - axis.index[x];  // below 0 in a flip
    if (reach > 2 * W - 2 || reach < 2 - 2 * W) return false;
  }
  return true;
}

// W pixels of such an axis: two permutations of what would be a load for each pixel.
template <int W>
PACECORE_INLINE Float<W> interpolated_within_two(const float* line, const int32_t* index,
                                                 const float* weight) {
  const int32_t left = index[0], right = index[W - 1], first = left < right ? left : right;
  const auto low = load<Float<W>>(line + first), high = load<Float<W>>(line + first + W);
  const Int<W> at = load<Int<W>>(index) - first;
  return lerp(permuted(low, high, at), permuted(low, high, at + 1), load<Float<W>>(weight));
}

template <int W, bool WithinTwo>
PACECORE_INLINE Float<W> interpolated(const float* line, const Axis& axis, int64_t x) {
  if constexpr (W == 1) {
    const float* at = line + axis.index[x];
    return Float<1>{lerp(at[0], at[1], axis.weight[x])};
  } else if constexpr (WithinTwo) {
    return interpolated_within_two<W>(line, axis.index + x, axis.weight + x);
  } else {
    return interpolated<W>(line, axis.index + x, axis.weight + x, Lanes<W>());
  }
}

template <int W>
PACECORE_INLINE void store_rgb(float* out, int64_t plane, Rgb<Float<W>> c) {
  memcpy(out, &c.r, sizeof c.r);
  memcpy(out + plane, &c.g, sizeof c.g);
  memcpy(out + 2 * plane, &c.b, sizeof c.b);
}

template <int W>
PACECORE_INLINE void blend_plane(const Resize& r, int plane, const Axis& rows, const Axis& columns,
                                 int64_t height, int64_t row, int64_t channels) {
  const int64_t upper = rows.start + rows.index[row];
  const int64_t lower = upper + 1 < height ? upper + 1 : upper;
  const uint8_t* start = r.planes[plane] + columns.start * channels;
  blend_rows<W>(start + upper * r.strides[plane], start + lower * r.strides[plane],
                rows.weight[row], columns.count, channels, r.lines[plane]);
}

// By value, so that stores are known not to change it.
template <int W, bool LumaWithinTwo, bool ChromaWithinTwo>
PACECORE_INLINE void resize_planar(const Resize r) {
  const int64_t plane = r.crop_height * r.row_floats;
  for (int64_t row = 0; row < r.crop_height; ++row) {
    blend_plane<W>(r, 0, r.rows, r.columns, r.height, row, 1);
    blend_plane<W>(r, 1, r.chroma_rows, r.chroma_columns, r.chroma_height, row, 1);
    blend_plane<W>(r, 2, r.chroma_rows, r.chroma_columns, r.chroma_height, row, 1);
    float* out = r.rgb + row * r.row_floats;
    for (int64_t x = 0; x < r.row_floats; x += W) {
      const auto y = interpolated<W, LumaWithinTwo>(r.lines[0], r.columns, x);
      const auto u = interpolated<W, ChromaWithinTwo>(r.lines[1], r.chroma_columns, x);
      const auto v = interpolated<W, ChromaWithinTwo>(r.lines[2], r.chroma_columns, x);
      store_rgb<W>(out + x, plane, to_rgb(r.matrix, y, u, v));
    }
  }
}

template <int W>
PACECORE_INLINE void resize_planar(const Resize& r) {
  if constexpr (kPermutesTwo<W>) {
    if (within_two_vectors<W>(r.chroma_columns, r.row_floats))
      return within_two_vectors<W>(r.columns, r.row_floats) ? resize_planar<W, true, true>(r)
                                                            : resize_planar<W, false, true>(r);
  }
  resize_planar<W, false, false>(r);
}

template <int W>
PACECORE_INLINE void resize_packed_row(const Resize& r, int64_t row) {
  blend_plane<W>(r, 0, r.rows, r.columns, r.height, row, 3);
  const int64_t plane = r.crop_height * r.row_floats;
  float* out = r.rgb + row * r.row_floats;
  if constexpr (W == 1) {
    for (int64_t x = 0; x < r.row_floats; ++x) {
      const float* at = r.lines[0] + 3 * r.columns.index[x];
      const Float<1> weight{r.columns.weight[x]};
      store_rgb<1>(out + x, plane,
                   {lerp(Float<1>{at[0]}, Float<1>{at[3]}, weight),
                    lerp(Float<1>{at[1]}, Float<1>{at[4]}, weight),
                    lerp(Float<1>{at[2]}, Float<1>{at[5]}, weight)});
    }
  } else {
    // Four pixels as red, green, blue and one value of no use, then transposed.
    for (int64_t x = 0; x < r.row_floats; x += 4) {
      Float<4> p[4];
      for (int k = 0; k < 4; ++k) {
        const float* at = r.lines[0] + 3 * r.columns.index[x + k];
        p[k] =
            lerp(load<Float<4>>(at), load<Float<4>>(at + 3), Float<4>{} + r.columns.weight[x + k]);
      }
      const auto rg01 = shuffled<0, 4, 1, 5>(p[0], p[1]), rg23 = shuffled<0, 4, 1, 5>(p[2], p[3]);
      const auto b01 = shuffled<2, 6, 3, 7>(p[0], p[1]), b23 = shuffled<2, 6, 3, 7>(p[2], p[3]);
      store_rgb<4>(out + x, plane,
                   {shuffled<0, 1, 4, 5>(rg01, rg23), shuffled<2, 3, 6, 7>(rg01, rg23),
                    shuffled<0, 1, 4, 5>(b01, b23)});
    }
  }
}

template <int W>
PACECORE_INLINE void resize_packed(const Resize r) {
  for (int64_t row = 0; row < r.crop_height; ++row) resize_packed_row<W>(r, row);
}

template <int W>
void resize(const Resize& r) {
  if (r.planar)
    resize_planar<W>(r);
  else
    resize_packed<W>(r);
}

// ---- Jitter ----

// Vectors of pixels at a time: two share the choice of the step and hide each other's latency,
// where rows are whole multiples of that.
template <int W>
constexpr int kAtOnce = 2 * W <= kRowFloats ? 2 : 1;

template <int W>
using Pixels = Rgb<Float<W>>[kAtOnce<W>];

template <int W>
PACECORE_INLINE void load_pixels(Pixels<W>& c, const float* at, int64_t plane) {
  for (int k = 0; k < kAtOnce<W>; ++k)
    c[k] = {load<Float<W>>(at + k * W), load<Float<W>>(at + plane + k * W),
            load<Float<W>>(at + 2 * plane + k * W)};
}

// Applies the steps before contrast, leaves the result in f.work, and returns its mean grey.
template <int W>
PACECORE_INLINE float before_contrast(const Finish f) {
  const int64_t plane = f.crop_height * f.row_floats;
  const bool keep = f.jitter.contrast_at > 0 || f.work != f.rgb;
  double sum = 0;
  for (int64_t row = 0; row < f.crop_height; ++row) {
    Float<W> row_sum{};
    for (int64_t x = 0; x < f.crop_width; x += W * kAtOnce<W>) {
      const int64_t at = row * f.row_floats + x;
      Pixels<W> c;
      load_pixels<W>(c, f.rgb + at, plane);
      apply_jitter(c, f.jitter, 0, f.jitter.contrast_at, 0.f);
      for (int k = 0; k < kAtOnce<W>; ++k) {
        if (keep) store_rgb<W>(f.work + at + k * W, plane, c[k]);
        Float<W> value = grey(c[k]);
        if (f.crop_width - x - k * W < W) {
          const int64_t left = f.crop_width - x - k * W;
          for (int64_t lane = left < 0 ? 0 : left; lane < W; ++lane) value[lane] = 0;
        }
        row_sum += value;
      }
    }
    for (int lane = 0; lane < W; ++lane) sum += row_sum[lane];
  }
  return static_cast<float>(sum / static_cast<double>(f.crop_height * f.crop_width));
}

// ---- Store ----

// W pixels as r g b r g b ... in three vectors. W is no multiple of 3, so a lane holds another
// channel in each of the three: once each channel's pixels are in the lanes where they belong, by
// one permutation, the three are blends.
constexpr int pixel_in_lane(int channel, int width, int lane) {
  int part = 0;
  while ((part * width + lane) % 3 != channel) ++part;
  return (part * width + lane) / 3;
}

template <int Channel, int W, class V, int... L>
PACECORE_INLINE V in_its_lanes(V value, Sequence<L...>) {
  return shuffled<pixel_in_lane(Channel, W, L)...>(value, value);
}

template <int Part, int W, class V, int... L>
PACECORE_INLINE V blended(V r, V g, V b, Sequence<L...>) {
  const V rg = shuffled<((Part * W + L) % 3 == 1 ? W + L : L)...>(r, g);
  return shuffled<((Part * W + L) % 3 == 2 ? W + L : L)...>(rg, b);
}

// The same where one instruction takes lanes of two vectors, as AVX-512's do: red with green, whose
// lanes for blue stay as they are, then that with blue.
template <int Part, int W, class V, int... L>
PACECORE_INLINE V picked_of_two(V r, V g, V b, Sequence<L...>) {
  const V rg = shuffled<((Part * W + L) % 3 == 0   ? (Part * W + L) / 3
                         : (Part * W + L) % 3 == 1 ? W + (Part * W + L) / 3
                                                   : L)...>(r, g);
  return shuffled<((Part * W + L) % 3 == 2 ? W + (Part * W + L) / 3 : L)...>(rg, b);
}

template <int W, class V>
PACECORE_INLINE void interleave(V& first, V& second, V& third) {
  const Lanes<W> lanes;
  if constexpr (W == 16) {
    const V r = first, g = second, b = third;
    first = picked_of_two<0, W>(r, g, b, lanes);
    second = picked_of_two<1, W>(r, g, b, lanes);
    third = picked_of_two<2, W>(r, g, b, lanes);
  } else {
    const V r = in_its_lanes<0, W>(first, lanes);
    const V g = in_its_lanes<1, W>(second, lanes);
    const V b = in_its_lanes<2, W>(third, lanes);
    first = blended<0, W>(r, g, b, lanes);
    second = blended<1, W>(r, g, b, lanes);
    third = blended<2, W>(r, g, b, lanes);
  }
}

// The same of floats before AVX-512, whose permutations across 128 bits are slow (AVX2) or missing:
// each four pixels within their 128 bits, then whole blocks of those. Lane l of the result is lane
// A or B of the four of a, C or D of the four of b.
template <int A, int B, int C, int D, int... L>
PACECORE_INLINE auto picked(auto a, auto b, Sequence<L...>) {
  constexpr int W = sizeof...(L), at[4] = {A, B, W + C, W + D};
  return shuffled<(L / 4 * 4 + at[L % 4])...>(a, b);
}

template <int W>
PACECORE_INLINE void interleave_blocks(Float<W>& first, Float<W>& second, Float<W>& third) {
  const Lanes<W> lanes;
  const auto rg = picked<0, 2, 0, 2>(first, second, lanes);  // r0 r2 g0 g2
  const auto gb = picked<1, 3, 1, 3>(second, third, lanes);  // g1 g3 b1 b3
  const auto br = picked<0, 2, 1, 3>(third, first, lanes);   // b0 b2 r1 r3
  const auto a = picked<0, 2, 0, 2>(rg, br, lanes);          // r0 g0 b0 r1
  const auto b = picked<0, 2, 1, 3>(gb, rg, lanes);          // g1 b1 r2 g2
  const auto c = picked<1, 3, 1, 3>(br, gb, lanes);          // b2 r3 g3 b3
  if constexpr (W == 4) {
    first = a;
    second = b;
    third = c;
  } else {
    first = shuffled<0, 1, 2, 3, 8, 9, 10, 11>(a, b);
    second = shuffled<0, 1, 2, 3, 12, 13, 14, 15>(c, a);
    third = shuffled<4, 5, 6, 7, 12, 13, 14, 15>(b, c);
  }
}

// W pixels to `out`; where not interleaved, channel by channel.
template <int W, bool Interleaved, bool Streamed, class Out>
PACECORE_INLINE void store_pixels(Out* out, int64_t channel_stride, Rgb<Float<W>> c) {
  auto r = converted<W>(c.r, Out{}), g = converted<W>(c.g, Out{}), b = converted<W>(c.b, Out{});
  if constexpr (Interleaved && W > 1) {
    if constexpr (sizeof(Out) == 4 && W <= 8)
      interleave_blocks<W>(r, g, b);
    else
      interleave<W>(r, g, b);
    channel_stride = W;
  }
  store<Streamed>(out, r);
  store<Streamed>(out + channel_stride, g);
  store<Streamed>(out + 2 * channel_stride, b);
}

// The steps from `first_step` on, normalised, to the clips.
template <int W, bool Interleaved, bool Streamed, class Out>
PACECORE_INLINE void finish_rows(const Finish f, const float* from, int first_step,
                                 float mean_grey) {
  constexpr int group = W * kAtOnce<W>;
  constexpr int step = Interleaved ? 3 : 1;  // elements of `out` from pixel to pixel
  const int64_t plane = f.crop_height * f.row_floats;
  Out* const clips = static_cast<Out*>(f.clips);
  for (int64_t row = 0; row < f.crop_height; ++row) {
    for (int64_t x = 0; x < f.crop_width; x += group) {
      Pixels<W> c;
      load_pixels<W>(c, from + row * f.row_floats + x, plane);
      apply_jitter(c, f.jitter, first_step, f.jitter.num_steps, mean_grey);
      // Whole groups only, so that every store is as wide as a vector; what a row ends in goes a
      // way round.
      Out ragged[3 * group];
      const int64_t left = f.crop_width - x;
      Out* const out = clips + step * (row * f.crop_width + x);
      Out* const to = left < group ? ragged : out;
      if constexpr (Interleaved && !Streamed) {
        // One stream of stores outruns the processor's own prefetch, which keeps up with the three
        // of separate channels.
        for (int line = 0; line < 3 * group * static_cast<int>(sizeof(Out)); line += 64)
          __builtin_prefetch(reinterpret_cast<char*>(out) + 1024 + line, 1);
      }
      const int64_t stride = Interleaved ? 1 : left < group ? group : f.channel_stride;
#pragma GCC unroll 2  // else the pixels of a group lie in memory
      for (int k = 0; k < kAtOnce<W>; ++k) {
        c[k] = {c[k].r * f.scale[0] + f.shift[0], c[k].g * f.scale[1] + f.shift[1],
                c[k].b * f.scale[2] + f.shift[2]};
        if (f.bgr) [[unlikely]]
          c[k] = {c[k].b, c[k].g, c[k].r};
        store_pixels<W, Interleaved, Streamed>(to + step * W * k, stride, c[k]);
      }
      if (left >= group) continue;
      if constexpr (Interleaved) {
        memcpy(out, ragged, 3 * left * sizeof(Out));
      } else {
        for (int channel = 0; channel < 3; ++channel)
          memcpy(out + channel * f.channel_stride, ragged + channel * group, left * sizeof(Out));
      }
    }
  }
}

// Streamed where that is asked for and all stores are aligned and fill whole lines of the cache: a
// line filled in parts goes to memory in parts.
template <int W, bool Interleaved, class Out>
PACECORE_INLINE void finish_rows(const Finish& f, const float* from, int first_step,
                                 float mean_grey) {
  constexpr int group = W * kAtOnce<W>, line = 64;
  if constexpr (can_stream(W * sizeof(Out)) && (Interleaved || group * sizeof(Out) % line == 0)) {
    const bool fits = reinterpret_cast<uintptr_t>(f.clips) % line == 0 &&
                      f.channel_stride * sizeof(Out) % line == 0 && f.crop_width % group == 0;
    if (f.past_caches && fits) {
      finish_rows<W, Interleaved, true, Out>(f, from, first_step, mean_grey);
      return finish_streams();
    }
  }
  finish_rows<W, Interleaved, false, Out>(f, from, first_step, mean_grey);
}

template <int W, class Out>
PACECORE_INLINE void finish_as(const Finish f) {
  const bool contrast = f.jitter.contrast_at < f.jitter.num_steps;
  const float mean_grey = contrast ? before_contrast<W>(f) : 0.f;
  const float* from = contrast ? f.work : f.rgb;
  const int first_step = contrast ? f.jitter.contrast_at : 0;
  if (f.channels_last)
    finish_rows<W, true, Out>(f, from, first_step, mean_grey);
  else
    finish_rows<W, false, Out>(f, from, first_step, mean_grey);
}

template <int W>
void finish(const Finish& f) {
  switch (f.element) {
    case Element::f32:
      return finish_as<W, float>(f);
    case Element::f16:
      return finish_as<W, Half>(f);
    case Element::bf16:
      return finish_as<W, Bfloat>(f);
  }
}

}  // namespace
}  // namespace pacecore::cpu
