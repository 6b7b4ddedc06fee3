// The CPU kernels of pace_clip without torch, over random arguments, for ASan and UBSan: data and
// clips are heap blocks of exactly their size. Every build of the loops that runs here must agree
// with the scalar one, and its stores past the caches, which the sanitizers do not see, with its
// plain ones. Each clip is made in a thread of its own, whose scratch has no room from others.
// Usage: pace_clip SEED ROUNDS
#include "cpu/pace_clip.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

using namespace pacecore;

namespace {

std::mt19937_64 generator;

int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

// A row of the table for `num_bytes` of data; now and then one entry is anything at all.
void draw_row(int64_t* row, int64_t num_bytes) {
  const int64_t height = draw(1, 300), width = draw(1, 300);
  const bool planar = draw(0, 3) != 0;
  const int64_t columns = planar ? (width + 1) / 2 : 0;
  const int64_t format = planar ? 1 | draw(0, 2) << 1 | draw(0, 3) << 3 : 0;
  const int64_t values[kColumns] = {draw(0, num_bytes),
                                    planar ? draw(0, num_bytes) : 0,
                                    planar ? draw(0, num_bytes) : 0,
                                    height,
                                    width,
                                    (planar ? 1 : 3) * width + draw(0, 9),
                                    columns + draw(0, 9),
                                    format};
  std::copy(values, values + kColumns, row);
  if (draw(0, 5) == 0) row[draw(0, kColumns - 1)] = draw(INT64_MIN, INT64_MAX);
  if (draw(0, 5) == 0) row[draw(0, 2)] = 0;
}

float as_float(const void* clips, int64_t i, Element element) {
  if (element == Element::f32) return static_cast<const float*>(clips)[i];
  const uint16_t bits = static_cast<const uint16_t*>(clips)[i];
  if (element == Element::bf16) {
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  const float size = (bits >> 10 & 31) ? std::ldexp(1024.f + (bits & 1023), (bits >> 10 & 31) - 25)
                                       : std::ldexp(float(bits & 1023), -24);
  return bits >> 15 ? -size : size;
}

struct Round {
  std::vector<uint8_t> data;
  int64_t row[kColumns];
  std::vector<int32_t> plan, order;
  std::vector<float> jitter;
  int32_t crop[3];
  PaceClip args;
};

// False where the table refuses the row.
bool draw_round(Round& r) {
  r.data.resize(draw(0, 200000));
  for (uint8_t& byte : r.data) byte = static_cast<uint8_t>(generator());
  const int64_t num_bytes = static_cast<int64_t>(r.data.size());
  draw_row(r.row, num_bytes);
  if (broken_rule(r.row, num_bytes)) return false;
  PaceClip& a = r.args;
  a = {};
  a.clip_frames = draw(1, 3);
  a.resize_height = draw(1, 300);
  a.resize_width = draw(1, 300);
  a.crop_height = draw(1, a.resize_height);
  a.crop_width = draw(1, draw(0, 3) ? a.resize_width : std::min<int64_t>(a.resize_width, 9));
  // Rows of whole vectors and frames of whole lines go past the caches.
  if (draw(0, 1) && a.crop_width >= 16 && a.crop_height >= 8) {
    a.crop_width -= a.crop_width % 16;
    a.crop_height -= a.crop_height % 8;
  }
  r.crop[0] = draw(0, a.resize_height - a.crop_height);
  r.crop[1] = draw(0, a.resize_width - a.crop_width);
  r.crop[2] = draw(0, 1);
  r.plan.assign(a.clip_frames, 0);
  r.order.clear();
  r.jitter.clear();
  for (int64_t t = 0; t < a.clip_frames; ++t) {
    int32_t order = -1;
    while (draw(0, 4) && !is_jitter_order(order = draw(0, 255))) {
    }
    r.order.push_back(is_jitter_order(order) ? order : -1);
    for (int i = 0; i < 3; ++i) r.jitter.push_back(draw(0, 200) / 100.f);
    r.jitter.push_back(draw(-50, 50) / 100.f);
  }
  a.data = r.data.data();
  a.num_bytes = num_bytes;
  a.table = r.row;
  a.num_rows = 1;
  a.plan = r.plan.data();
  a.crop = r.crop;
  if (draw(0, 3)) {
    a.jitter = r.jitter.data();
    a.jitter_order = r.order.data();
  }
  a.batch = 1;
  for (int channel = 0; channel < 3; ++channel) {
    a.scale[channel] = draw(1, 100) / 100.f;
    a.shift[channel] = draw(-100, 100);
  }
  a.bgr = draw(0, 1);
  a.channels_last = draw(0, 1);
  a.element = static_cast<Element>(draw(0, 2));
  return true;
}

void fail(const char* what, const cpu::Kernels& kernels, float got, float expected) {
  std::printf("%s: %s, %g where scalar code gives %g\n", kernels.name, what, got, expected);
  std::exit(1);
}

// Starts where a line of the cache does.
using Clips = std::unique_ptr<char, decltype(&std::free)>;

Clips block_of(int64_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, 64, bytes)) std::abort();
  return {static_cast<char*>(block), std::free};
}

void run_alone(const PaceClip& args, const cpu::Kernels& kernels, bool past_caches) {
  std::thread([&] {
    cpu::pace_clip_run(args, kernels, {0, 0, args.clip_frames}, past_caches);
  }).join();
}

// Whether stores past the caches write the same bytes, and none before or after them.
bool streams_alike(PaceClip& args, const cpu::Kernels& kernels, int64_t bytes, const char* plain) {
  constexpr int64_t guard = 64;
  std::vector<char> expected(guard + bytes + guard, 0x5a);
  std::memcpy(expected.data() + guard, plain, bytes);
  const Clips block = block_of(expected.size());
  std::memset(block.get(), 0x5a, expected.size());
  args.clips = block.get() + guard;
  run_alone(args, kernels, true);
  return std::memcmp(block.get(), expected.data(), expected.size()) == 0;
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) return 2;
  generator.seed(std::strtoull(words[1], nullptr, 10));
  std::vector<const cpu::Kernels*> builds{&cpu::scalar_kernels(), &cpu::vector_kernels()};
#ifdef __x86_64__
  if (cpu::avx2_kernels() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    builds.push_back(cpu::avx2_kernels());
  if (cpu::avx512_kernels() && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    builds.push_back(cpu::avx512_kernels());
#endif
  int refused = 0, computed = 0;
  Round round;
  for (const int64_t rounds = std::atoll(words[2]); computed < rounds;) {
    if (!draw_round(round)) {
      ++refused;
      continue;
    }
    PaceClip& args = round.args;
    const int64_t values = 3 * args.clip_frames * args.crop_height * args.crop_width;
    const int64_t bytes = values * bytes_of(args.element);
    Clips first{nullptr, std::free};
    for (const cpu::Kernels* kernels : builds) {
      Clips clips = block_of(bytes);
      args.clips = clips.get();
      run_alone(args, *kernels, false);
      if (!streams_alike(args, *kernels, bytes, clips.get())) {
        std::printf("%s: stores past the caches differ from plain ones\n", kernels->name);
        return 1;
      }
      for (int64_t i = 0; first && i < values; ++i) {
        const float got = as_float(clips.get(), i, args.element);
        const float expected = as_float(first.get(), i, args.element);
        const float step = args.element == Element::f32 ? 0 : std::abs(expected) / 128;
        if (!(std::abs(got - expected) <= 2e-3f + step)) fail("differs", *kernels, got, expected);
      }
      if (!first) first = std::move(clips);
    }
    ++computed;
  }
  std::printf("%d computed by %zu builds, %d refused\n", computed, builds.size(), refused);
  return refused ? 0 : 1;
}
