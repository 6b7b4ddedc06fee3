// Vectors of W floats in GCC's vector extension, their shuffles, and the conversions of bytes and
// to the types of clips. Internal to each file that includes it, like pace_clip_loops.h.
#pragma once

#include <cstring>
#include <type_traits>

#include "pace_clip.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace pacecore::cpu {
namespace {

template <int W>
struct Vectors {
  typedef float Float __attribute__((vector_size(4 * W)));
  typedef int32_t Int __attribute__((vector_size(4 * W)));
  typedef uint32_t Unsigned __attribute__((vector_size(4 * W)));
  typedef uint16_t Short __attribute__((vector_size(2 * W)));
  typedef double Pairs __attribute__((vector_size(W < 2 ? 8 : 4 * W)));  // W / 2 pairs of floats
};

template <int W>
using Float = typename Vectors<W>::Float;
template <int W>
using Int = typename Vectors<W>::Int;
template <int W>
using Unsigned = typename Vectors<W>::Unsigned;
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

// Whether store<true> has a store for vectors of so many bytes.
constexpr bool can_stream(size_t bytes) {
#ifdef __SSE2__
  return bytes == 16 || bytes == 32 || bytes == 64;
#else
  return bytes == 0;
#endif
}

// Stores to anywhere. Streamed, `to` is aligned to the vector, its line of the cache is not read
// first and not kept, and finish_streams() must follow before another thread reads it.
template <bool Streamed, class Memory, class V>
PACECORE_INLINE void store(Memory* to, V value) {
  if constexpr (!Streamed) memcpy(to, &value, sizeof value);
#ifdef __AVX512F__
  else if constexpr (sizeof value == 64)
    _mm512_stream_si512((__m512i*)to, bits<__m512i>(value));
#endif
#ifdef __AVX__
  else if constexpr (sizeof value == 32)
    _mm256_stream_si256((__m256i*)to, bits<__m256i>(value));
#endif
#ifdef __SSE2__
  else
    _mm_stream_si128((__m128i*)to, bits<__m128i>(value));
#endif
}

PACECORE_INLINE void finish_streams() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Element l of the result is element Lanes[l] of a followed by b.
template <int... Lanes, class V>
PACECORE_INLINE V shuffled(V a, V b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Lanes...);
#else
  using Index = std::conditional_t<sizeof(V) == 4 * sizeof...(Lanes), int32_t, int16_t>;
  typedef Index Mask __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(a, b, Mask{Lanes...});
#endif
}

// Whether one instruction permutes two vectors by indices that are known only as it runs.
template <int W>
constexpr bool kPermutesTwo = false;
#ifdef __AVX512F__
template <>
constexpr bool kPermutesTwo<16> = true;

// Element l of the result is element index[l] of low followed by high.
PACECORE_INLINE Float<16> permuted(Float<16> low, Float<16> high, Int<16> index) {
  return (Float<16>)_mm512_permutex2var_ps((__m512)low, (__m512i)index, (__m512)high);
}
#endif

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
  const auto in = bits<Unsigned<W>>(value);
  return narrowed<W>((Int<W>)((in + 0x7fff + ((in >> 16) & 1)) >> 16));
}

// The same for half, whose exponent is rebased. Below its least normal number 2^-14 the steps are
// 2^-24, which are the steps of a float between 1/2 and 1: adding 1/2 rounds to them.
template <int W>
PACECORE_INLINE Short<W> converted(Float<W> value, Half) {
#ifdef __F16C__
  if constexpr (W == 8) return (Short<W>)_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
#endif
#ifdef __AVX512F__
  if constexpr (W == 16)
    return (Short<W>)_mm512_maskz_cvtps_ph(0xffff, value, _MM_FROUND_TO_NEAREST_INT);
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

}  // namespace
}  // namespace pacecore::cpu
