// The maths of pace_clip, for one pixel or one vector of pixels, on CPU and CUDA; no torch include.
// Pixels are float, or GCC vectors of float (csrc/cpu), so every choice is written as a ?: that
// both understand. Colours are in 0..kWhite: brightness, contrast, saturation and hue mean the same
// on any such range.
#pragma once

#include <cstdint>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifdef __CUDACC__
#define PACECORE_INLINE __host__ __device__ __forceinline__
#define PACECORE_UNROLL _Pragma("unroll")
#else
// Never a function of its own: each file is compiled for its own instruction set, and the linker
// would keep one of them for all.
#define PACECORE_INLINE inline __attribute__((always_inline))
#define PACECORE_UNROLL
#endif

namespace pacecore {

// Columns of the frame table; pacecore/frames.py documents them.
enum Column : int {
  kYOffset,
  kUOffset,
  kVOffset,
  kHeight,
  kWidth,
  kStride,
  kChromaStride,
  kFormat,
  kColumns
};

// Bits of kFormat.
constexpr int64_t kPlanar = 1;
constexpr int kMatrixShift = 1;  // two bits
constexpr int64_t kFullRange = 8;
constexpr int64_t kCentreSited = 16;
constexpr int64_t kBt2020 = 2;       // last of the matrix codes
constexpr int64_t kLongest = 65536;  // longest side: keeps every product below exact in an int64

// ---- Frame table ----

PACECORE_INLINE bool plane_fits(int64_t offset, int64_t rows, int64_t row_bytes, int64_t stride,
                                int64_t num_bytes) {
  if (offset < 0 || offset > num_bytes || row_bytes > num_bytes - offset) return false;
  // The first test keeps the product of the second below 2^63: data is shorter than 2^47 bytes.
  return rows == 1 ||
         (stride <= num_bytes && (rows - 1) * stride <= num_bytes - offset - row_bytes);
}

// The rule that a row of the table breaks, or null. `num_bytes` is the length of the data. The last
// row of a plane needs its pixels only, not its whole stride.
PACECORE_INLINE const char* broken_rule(const int64_t* row /* (8,) */, int64_t num_bytes) {
  const int64_t height = row[kHeight], width = row[kWidth], format = row[kFormat];
  if (height < 1 || height > kLongest) return "height must be from 1 to 65536";
  if (width < 1 || width > kLongest) return "width must be from 1 to 65536";
  if (format == 0) {
    if (row[kStride] < 3 * width) return "stride must be at least 3 * width";
    if (!plane_fits(row[kYOffset], height, 3 * width, row[kStride], num_bytes))
      return "pixels must lie inside data";
    return nullptr;
  }
  if (!(format & kPlanar) || format < 0 || format >= 32 || (format >> kMatrixShift & 3) > kBt2020)
    return "format must be a FrameFormat code";
  const int64_t rows = (height + 1) / 2, columns = (width + 1) / 2;
  if (row[kStride] < width) return "stride must be at least width";
  if (row[kChromaStride] < columns) return "chroma_stride must be at least (width + 1) / 2";
  if (!plane_fits(row[kYOffset], height, width, row[kStride], num_bytes))
    return "luma must lie inside data";
  if (!plane_fits(row[kUOffset], rows, columns, row[kChromaStride], num_bytes) ||
      !plane_fits(row[kVOffset], rows, columns, row[kChromaStride], num_bytes))
    return "chroma must lie inside data";
  return nullptr;
}

// ---- Where an output pixel lies in the source ----

// Two neighbouring samples, `index` and the one after it (or itself at the end), and the weight of
// the second.
struct alignas(8) Tap {
  int32_t index;
  float weight;
};

enum class Plane { luma, chroma_on_even, chroma_between };

// A tap whose weight is the fraction `numerator` / `denominator`.
struct FractionTap {
  int32_t index, numerator, denominator;
};

// Half-pixel centres: pixel i of `out` lies at (i + 1/2) * in / out - 1/2 of a row of `in` samples,
// clamped to the first and last sample. Chroma sample k lies at luma position 2k (on even columns)
// or 2k + 1/2 (between), and is clamped to its own ends. In whole numbers, so the weight is exact
// however far the position is from 0. Integer must hold 4 * in * out.
template <class Integer>
PACECORE_INLINE FractionTap tap_in(Integer i, Integer in, Integer out, Plane plane) {
  Integer denominator = 2 * out;
  Integer position = (2 * i + 1) * in - out;
  position = position < 0 ? 0 : position;
  position = position > (in - 1) * denominator ? (in - 1) * denominator : position;
  if (plane != Plane::luma) {
    if (plane == Plane::chroma_between) position = position < out ? 0 : position - out;
    denominator *= 2;
    const Integer last = (in - 1) / 2 * denominator;
    position = position > last ? last : position;
  }
  const Integer index = position / denominator;
  return {static_cast<int32_t>(index), static_cast<int32_t>(position - index * denominator),
          static_cast<int32_t>(denominator)};
}

PACECORE_INLINE FractionTap fraction_tap_at(int64_t i, int64_t in, int64_t out, Plane plane) {
  constexpr int64_t narrow =
      16384;  // 4 * 16384^2 is 2^30: 32-bit divisions are several times faster
  if (in <= narrow && out <= narrow) {
    return tap_in(static_cast<int32_t>(i), static_cast<int32_t>(in), static_cast<int32_t>(out),
                  plane);
  }
  return tap_in(i, in, out, plane);
}

PACECORE_INLINE Tap tap_at(int64_t i, int64_t in, int64_t out, Plane plane) {
  const FractionTap tap = fraction_tap_at(i, in, out, plane);
  return {tap.index, static_cast<float>(tap.numerator) / static_cast<float>(tap.denominator)};
}

template <class F>
PACECORE_INLINE F lerp(F a, F b, F weight) {
  return a + weight * (b - a);
}

// ---- Colour ----

// A GPU clamps a sum to 0..1 at no cost, a CPU need not scale its bytes to that.
#if defined(__CUDACC__) || defined(PACECORE_EMULATED)
constexpr float kWhite = 1.f;
#else
constexpr float kWhite = 255.f;
#endif

// Written out, as compilers make a comparison and a choice of the ?:, here and in magnitude.
template <class F>
PACECORE_INLINE F smaller(F a, F b) {
#ifdef __CUDA_ARCH__
  return fminf(a, b);
#endif
#ifdef __AVX512F__
  if constexpr (sizeof(F) == 64) return (F)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
#endif
#ifdef __AVX__
  if constexpr (sizeof(F) == 32) return __builtin_ia32_minps256(a, b);
#endif
#ifdef __SSE__
  if constexpr (sizeof(F) == 16) return __builtin_ia32_minps(a, b);
#endif
  return a < b ? a : b;
}

template <class F>
PACECORE_INLINE F larger(F a, F b) {
#ifdef __CUDA_ARCH__
  return fmaxf(a, b);
#endif
#ifdef __AVX512F__
  if constexpr (sizeof(F) == 64) return (F)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#endif
#ifdef __AVX__
  if constexpr (sizeof(F) == 32) return __builtin_ia32_maxps256(a, b);
#endif
#ifdef __SSE__
  if constexpr (sizeof(F) == 16) return __builtin_ia32_maxps(a, b);
#endif
  return a > b ? a : b;
}

template <class F>
PACECORE_INLINE F magnitude(F value) {
#ifdef __CUDA_ARCH__
  return fabsf(value);
#else
  if constexpr (sizeof(F) > sizeof(float)) {
    typedef int32_t Bits __attribute__((vector_size(sizeof(F))));
    return (F)((Bits)value & 0x7fffffff);
  }
#endif
  return value < 0 ? -value : value;
}

// To the nearest whole number, for |value| < 2^22.
template <class F>
PACECORE_INLINE F rounded(F value) {
  constexpr float shift = 12582912.f;  // 1.5 * 2^23: beyond it a float has no fraction
  return (value + shift) - shift;
}

template <class F>
PACECORE_INLINE F clamp(F value, float low, float high) {
  return smaller(larger(value, F{} + low), F{} + high);
}

template <class F>
struct Rgb {
  F r, g, b;
};

template <class F>
PACECORE_INLINE Rgb<F> clamped(Rgb<F> c) {
#ifdef __CUDA_ARCH__
  return {__saturatef(c.r), __saturatef(c.g), __saturatef(c.b)};
#else
  return {clamp(c.r, 0.f, kWhite), clamp(c.g, 0.f, kWhite), clamp(c.b, 0.f, kWhite)};
#endif
}

// R = y * Y + rv * V + r0, G = y * Y + gu * U + gv * V + g0, B = y * Y + bu * U + b0.
struct YuvToRgb {
  float y, rv, gu, gv, bu, r0, g0, b0;
};

// From the weights of red and blue in luma. Limited range: Y from 16 to 235, U and V from 16 to
// 240.
constexpr YuvToRgb yuv_to_rgb(double kr, double kb, bool full_range) {
  const double y = full_range ? 1.0 : 255.0 / 219.0;
  const double c = full_range ? 1.0 : 255.0 / 224.0;
  const double y0 = full_range ? 0.0 : -16.0 * y;
  const double rv = 2 * (1 - kr) * c, bu = 2 * (1 - kb) * c;
  const double gu = -bu * kb / (1 - kr - kb), gv = -rv * kr / (1 - kr - kb);
  return {float(y),
          float(rv),
          float(gu),
          float(gv),
          float(bu),
          float(y0 - 128 * rv),
          float(y0 - 128 * (gu + gv)),
          float(y0 - 128 * bu)};
}

PACECORE_INLINE YuvToRgb yuv_to_rgb(int64_t format) {
  constexpr YuvToRgb bt601 = yuv_to_rgb(0.299, 0.114, false);
  constexpr YuvToRgb bt709 = yuv_to_rgb(0.2126, 0.0722, false);
  constexpr YuvToRgb bt2020 = yuv_to_rgb(0.2627, 0.0593, false);
  constexpr YuvToRgb bt601_full = yuv_to_rgb(0.299, 0.114, true);
  constexpr YuvToRgb bt709_full = yuv_to_rgb(0.2126, 0.0722, true);
  constexpr YuvToRgb bt2020_full = yuv_to_rgb(0.2627, 0.0593, true);
  const bool full_range = format & kFullRange;
  switch (format >> kMatrixShift & 3) {
    case 0:
      return full_range ? bt601_full : bt601;
    case 1:
      return full_range ? bt709_full : bt709;
    default:
      return full_range ? bt2020_full : bt2020;
  }
}

template <class F>
PACECORE_INLINE Rgb<F> to_rgb(const YuvToRgb& m, F y, F u, F v) {
  const F scaled = m.y * y;
  return clamped(Rgb<F>{scaled + (m.rv * v + m.r0), scaled + (m.gu * u + (m.gv * v + m.g0)),
                        scaled + (m.bu * u + m.b0)});
}

template <class F>
PACECORE_INLINE F grey(Rgb<F> c) {
  return 0.2989f * c.r + 0.587f * c.g + 0.114f * c.b;
}

// ---- Jitter: torchvision's float functions, clamped after each ----

enum JitterStep : int { kBrightness, kContrast, kSaturation, kHue };

struct Jitter {
  float factors[3];  // brightness, contrast, saturation
  float hue;         // in sixths of a turn, from -3 to 3
  int32_t steps[4];  // JitterStep in drawn order
  int num_steps;     // 4, or 0 for none
  int contrast_at;   // steps before contrast; num_steps if there is none
};

// `order` -1: no jitter; else two bits a step, the first step lowest.
PACECORE_INLINE bool is_jitter_order(int32_t order) {
  if (order == -1) return true;
  int seen = 0;
  for (int step = 0; step < 4; ++step) seen |= 1 << (order >> 2 * step & 3);
  return order >= 0 && order < 256 && seen == 15;
}

PACECORE_INLINE Jitter make_jitter(const float* factors /* (4,) */, int32_t order) {
  Jitter jitter{};
  jitter.num_steps = order < 0 ? 0 : 4;
  jitter.contrast_at = jitter.num_steps;
  for (int step = 0; step < 4; ++step) {
    jitter.steps[step] = order >> 2 * step & 3;
    if (order >= 0 && jitter.steps[step] == kContrast) jitter.contrast_at = step;
  }
  for (int i = 0; i < 3; ++i) jitter.factors[i] = factors[i];
  jitter.hue = 6 * (factors[3] - rounded(factors[3]));
  return jitter;
}

// factor * value + (1 - factor) * other. Up to 1 that lies between two colours, and needs no clamp.
template <class F>
PACECORE_INLINE Rgb<F> blended(Rgb<F> c, F other, float factor) {
  const F rest = (1 - factor) * other;
  const Rgb<F> blend{factor * c.r + rest, factor * c.g + rest, factor * c.b + rest};
#ifdef __CUDA_ARCH__
  return clamped(blend);
#else
  return factor > 1 ? clamped(blend) : blend;
#endif
}

// One channel of the hue circle: `distance` is that from the hue where the channel is least, so a
// channel rises over one sixth of the circle, stays up for two and falls over one.
template <class F>
PACECORE_INLINE F on_circle(F least, F chroma, F distance) {
  return least + smaller(larger(distance, F{}), chroma);
}

// Turns the HSV hue by `turn` sixths, -3 to 3. Value and saturation stay, so largest and least
// channel stay too and only their places move. The hue is kept in sixths of a turn times the
// chroma: nothing is divided, and grey, which has no hue, needs no case of its own.
template <class F>
PACECORE_INLINE Rgb<F> hue_turned(Rgb<F> c, float turn) {
  const F most = larger(larger(c.r, c.g), c.b);
  const F least = smaller(smaller(c.r, c.g), c.b);
  const F chroma = most - least;
#ifdef __CUDA_ARCH__  // operands chosen, not results: selects in place of branches
  const bool red = most == c.r, green = most == c.g;
  const F from = red ? c.g : (green ? c.b : c.r), taken = red ? c.b : (green ? c.r : c.g);
  const F difference = from - taken;
#else
  const F difference = most == c.r ? c.g - c.b : (most == c.g ? c.b - c.r : c.r - c.g);
#endif
  const F sector = most == c.r ? F{} + turn : (most == c.g ? F{} + (turn + 2) : F{} + (turn + 4));
  const F circle = 6.f * chroma;
  F hue = sector * chroma + difference;  // from -4 to 8 chroma
  hue = hue + (hue < 0.f ? circle : F{});
  hue = hue - (hue >= circle ? circle : F{});
  return {on_circle(least, chroma, magnitude(hue - 3.f * chroma) - chroma),
          on_circle(least, chroma, 2.f * chroma - magnitude(hue - 2.f * chroma)),
          on_circle(least, chroma, 2.f * chroma - magnitude(hue - 4.f * chroma))};
}

// Steps [first, last) of the jitter of N pixels; `mean_grey` is used by contrast only.
template <class F, int N>
PACECORE_INLINE void apply_jitter(Rgb<F> (&c)[N], const Jitter& jitter, int first, int last,
                                  float mean_grey) {
  for (int step = first; step < last; ++step) {
    const int kind = jitter.steps[step];
    const float factor = jitter.factors[kind == kHue ? 0 : kind];
    if (kind == kHue) {
      PACECORE_UNROLL for (int k = 0; k < N; ++k) c[k] = hue_turned(c[k], jitter.hue);
    } else if (kind == kBrightness) {
#ifdef __CUDA_ARCH__
      PACECORE_UNROLL for (int k = 0; k < N; ++k) c[k] =
          clamped(Rgb<F>{factor * c[k].r, factor * c[k].g, factor * c[k].b});
#else
      const F most = F{} + kWhite;
      PACECORE_UNROLL for (int k = 0; k < N; ++k)
          c[k] = {smaller(factor * c[k].r, most), smaller(factor * c[k].g, most),
                  smaller(factor * c[k].b, most)};
#endif
    } else if (kind == kContrast) {
      PACECORE_UNROLL for (int k = 0; k < N; ++k) c[k] = blended(c[k], F{} + mean_grey, factor);
    } else {
      PACECORE_UNROLL for (int k = 0; k < N; ++k) c[k] = blended(c[k], grey(c[k]), factor);
    }
  }
}

}  // namespace pacecore
