// The loops of pace_clip over W floats at a time, in GCC's vector extension: the same text gives
// the scalar path, SSE2, NEON, AVX2 and AVX-512. Included by one file per instruction set; all is
// internal to that file and nothing of the standard library is called, so that no function compiled
// for a newer processor can be linked into another path.
#pragma once

#include <cstring>

#include "pace_clip.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace pacecore::cpu {
namespace {

template <int W>
struct Vectors {
  typedef float Float __attribute__((vector_size(4 * W)));
  typedef int32_t Int __attribute__((vector_size(4 * W)));
  typedef uint16_t Short __attribute__((vector_size(2 * W)));
  typedef double Pairs __attribute__((vector_size(W < 2 ? 8 : 4 * W)));  // W / 2 pairs of floats
};

template <int W>
using Float = typename Vectors<W>::Float;
template <int W>
using Int = typename Vectors<W>::Int;
template <int W>
using Short = typename Vectors<W>::Short;

template <class V, class Memory>
PACECORE_INLINE V load(const Memory* from) {
  V value;
  memcpy(&value, from, sizeof value);
  return value;
}

template <class To, class From>
PACECORE_INLINE To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}

// Element l of the result is element Lanes[l] of a followed by b.
template <int... Lanes, class V>
PACECORE_INLINE V shuffled(V a, V b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Lanes...);
#else
  typedef int32_t Mask __attribute__((vector_size(4 * sizeof...(Lanes))));
  return __builtin_shuffle(a, b, Mask{Lanes...});
#endif
}

template <int... I>
struct Sequence {};
template <int N, int... I>
struct MakeSequence : MakeSequence<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSequence<0, I...> {
  using type = Sequence<I...>;
};
template <int N>
using Lanes = typename MakeSequence<N>::type;

// ---- Conversions, which GCC takes apart into single values unless they are spelled out ----

template <int W>
PACECORE_INLINE Float<W> floats_of(const uint8_t* bytes) {
#ifdef __AVX2__
  if constexpr (W == 8)
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)bytes)));
#endif
#ifdef __AVX512F__
  if constexpr (W == 16) {
    // The masked form: GCC 12 warns of the other one's undefined lanes.
    const __m512i wide = _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128((const __m128i*)bytes));
    return __builtin_convertvector((Int<W>)wide, Float<W>);
  }
#endif
  Float<W> result;
  for (int lane = 0; lane < W; ++lane) result[lane] = bytes[lane];
  return result;
}

// The lower half of every value, which must be below 2^16.
template <int W>
PACECORE_INLINE Short<W> narrowed(Int<W> value) {
#ifdef __AVX2__
  if constexpr (W == 8)
    return (Short<W>)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)value),
                                      _mm256_extracti128_si256((__m256i)value, 1));
#endif
  return __builtin_convertvector(value, Short<W>);
}

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

template <int W>
PACECORE_INLINE Float<W> interpolated(const float* line, const Axis& axis, int64_t x) {
  if constexpr (W == 1) {
    const float* at = line + axis.index[x];
    return Float<1>{lerp(at[0], at[1], axis.weight[x])};
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
template <int W>
PACECORE_INLINE void resize_planar(const Resize r) {
  const int64_t plane = r.crop_height * r.row_floats;
  for (int64_t row = 0; row < r.crop_height; ++row) {
    blend_plane<W>(r, 0, r.rows, r.columns, r.height, row, 1);
    blend_plane<W>(r, 1, r.chroma_rows, r.chroma_columns, r.chroma_height, row, 1);
    blend_plane<W>(r, 2, r.chroma_rows, r.chroma_columns, r.chroma_height, row, 1);
    float* out = r.rgb + row * r.row_floats;
    for (int64_t x = 0; x < r.row_floats; x += W) {
      store_rgb<W>(out + x, plane,
                   to_rgb(r.matrix, interpolated<W>(r.lines[0], r.columns, x),
                          interpolated<W>(r.lines[1], r.chroma_columns, x),
                          interpolated<W>(r.lines[2], r.chroma_columns, x)));
    }
  }
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

template <int W>
PACECORE_INLINE Float<W> converted(Float<W> value, float /* element */) {
  return value;
}

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

template <class V>
PACECORE_INLINE V chosen(V mask, V yes, V no) {
  return (mask & yes) | (~mask & no);
}

// Nearest, ties to even: adding half of the last kept bit, less one where that bit is 0.
template <int W>
PACECORE_INLINE Short<W> converted(Float<W> value, Bfloat) {
  const auto in = bits<Int<W>>(value);
  const Int<W> out = ((in + 0x7fff + ((in >> 16) & 1)) >> 16) & 0xffff;
  return narrowed<W>(out);
}

// The same for half, whose exponent is rebased. Below its least normal number 2^-14 the steps are
// 2^-24, which are the steps of a float between 1/2 and 1: adding 1/2 rounds to them.
template <int W>
PACECORE_INLINE Short<W> converted(Float<W> value, Half) {
#ifdef __F16C__
  if constexpr (W == 8) return (Short<W>)_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
#endif
  const auto in = bits<Int<W>>(value);
  const Int<W> size = in & 0x7fffffff;
  const Int<W> normal = (size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13;
  const Int<W> tiny = bits<Int<W>>(bits<Float<W>>(size) + 0.5f) - 0x3f000000;
  const Int<W> infinite = Int<W>{} + 0x7c00;
  const Int<W> finite = chosen<Int<W>>(size < 0x38800000, tiny, normal);
  const Int<W> out = chosen<Int<W>>(size >= 0x47800000, infinite, finite) | ((in >> 16) & 0x8000);
  return narrowed<W>(out);
}

// Stores the first `count` of W values.
template <int W, class Out>
PACECORE_INLINE void store(Out* out, Float<W> value, int64_t count) {
  const auto elements = converted<W>(value, Out{});
  if (count >= W) {
    memcpy(out, &elements, sizeof elements);
  } else {
    Out buffer[W];
    memcpy(buffer, &elements, sizeof elements);
    for (int64_t i = 0; i < count; ++i) out[i] = buffer[i];
  }
}

// Part K of W pixels as r g b r g b ...: W of their 3 W values.
template <int K, int W, int... L>
PACECORE_INLINE Float<W> interleaved(Rgb<Float<W>> c, Sequence<L...>) {
  const auto rg =
      shuffled<((K * W + L) % 3 == 1 ? W + (K * W + L) / 3 : (K * W + L) / 3)...>(c.r, c.g);
  return shuffled<((K * W + L) % 3 == 2 ? W + (K * W + L) / 3 : L)...>(rg, c.b);
}

// The first `count` of W pixels, with channels in the order of their names, to pixel 0 of `out`.
template <int W, class Out>
PACECORE_INLINE void store_interleaved(Out* out, int64_t count, Rgb<Float<W>> c) {
  if constexpr (W == 1) {
    store<1>(out, c.r, count);
    store<1>(out + 1, c.g, count);
    store<1>(out + 2, c.b, count);
  } else {
    count *= 3;
    store<W>(out, interleaved<0, W>(c, Lanes<W>()), count);
    store<W>(out + W, interleaved<1, W>(c, Lanes<W>()), count - W);
    store<W>(out + 2 * W, interleaved<2, W>(c, Lanes<W>()), count - 2 * W);
  }
}

template <int W, class Out>
PACECORE_INLINE void finish_as(const Finish f) {
  const int64_t plane = f.crop_height * f.row_floats;
  const float* from = f.rgb;
  int first_step = 0;
  float mean_grey = 0;
  if (f.jitter.contrast_at < f.jitter.num_steps) {
    mean_grey = before_contrast<W>(f);
    from = f.work;
    first_step = f.jitter.contrast_at;
  }
  Out* const out = static_cast<Out*>(f.clips);
  Out* const red = out + (f.bgr ? 2 * f.channel_stride : 0);
  Out* const green = out + f.channel_stride;
  Out* const blue = out + (f.bgr ? 0 : 2 * f.channel_stride);
  for (int64_t row = 0; row < f.crop_height; ++row) {
    for (int64_t x = 0; x < f.crop_width; x += W * kAtOnce<W>) {
      Pixels<W> c;
      load_pixels<W>(c, from + row * f.row_floats + x, plane);
      apply_jitter(c, f.jitter, first_step, f.jitter.num_steps, mean_grey);
      for (int k = 0; k < kAtOnce<W>; ++k) {
        c[k] = {c[k].r * f.scale[0] + f.shift[0], c[k].g * f.scale[1] + f.shift[1],
                c[k].b * f.scale[2] + f.shift[2]};
        const int64_t pixel = row * f.crop_width + x + k * W;
        const int64_t count = f.crop_width - x - k * W;
        if (!f.channels_last) {
          store<W>(red + pixel, c[k].r, count);
          store<W>(green + pixel, c[k].g, count);
          store<W>(blue + pixel, c[k].b, count);
        } else if (f.bgr) {
          store_interleaved<W>(out + 3 * pixel, count, {c[k].b, c[k].g, c[k].r});
        } else {
          store_interleaved<W>(out + 3 * pixel, count, c[k]);
        }
      }
    }
  }
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
