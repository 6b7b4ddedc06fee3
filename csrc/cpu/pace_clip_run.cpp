// The path of one frame through the CPU kernels, and the choice of the kernels.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "instructions.h"
#include "pace_clip_loops.h"

namespace pacecore::cpu {

const Kernels& scalar_kernels() {
  static const Kernels kernels{"scalar", resize<1>, finish<1>};
  return kernels;
}

const Kernels& vector_kernels() {
  static const Kernels kernels{"vector", resize<4>, finish<4>};
  return kernels;
}

const Kernels* choose_kernels() {
  std::vector<const Kernels*> usable{&scalar_kernels(), &vector_kernels()};
#if defined(__x86_64__)
  if (avx2_kernels() && runs_avx2()) usable.push_back(avx2_kernels());
  if (avx512_kernels() && runs_avx512()) usable.push_back(avx512_kernels());
#endif
  const char* wish = std::getenv("PACECORE_CPU");
  if (!wish || !*wish) return usable.back();
  for (const Kernels* kernels : usable)
    if (std::string_view(wish) == kernels->name) return kernels;
  return nullptr;
}

namespace {

// Taps of the crop along one axis. Kept from frame to frame: those of a clip are mostly alike, and
// the exact divisions cost as much as a tenth of the frame.
class Taps {
 public:
  const Axis& along(int64_t in, int64_t out, int64_t start, int64_t count, bool flip, Plane plane) {
    const std::array<int64_t, 6> key{in, out, start, count, flip, static_cast<int64_t>(plane)};
    if (key != key_) {
      fill(in, out, start, count, flip, plane);
      key_ = key;
    }
    return axis_;
  }

 private:
  void fill(int64_t in, int64_t out, int64_t start, int64_t count, bool flip, Plane plane) {
    // Whole vectors: the last tap is repeated.
    const int64_t padded = (count + kRowFloats - 1) / kRowFloats * kRowFloats;
    index_.resize(padded);
    weight_.resize(padded);
    for (int64_t i = 0; i < padded; ++i) {
      const int64_t shown = std::min(i, count - 1);
      const Tap tap = tap_at(start + (flip ? count - 1 - shown : shown), in, out, plane);
      index_[i] = tap.index;
      weight_[i] = tap.weight;
    }
    const auto [low, high] = std::minmax_element(index_.begin(), index_.end());
    const int64_t samples = plane == Plane::luma ? in : (in + 1) / 2;
    const int32_t first = *low;
    const int64_t end = std::min<int64_t>(*high + 2, samples);
    for (int32_t& index : index_) index -= first;
    axis_ = {index_.data(), weight_.data(), first, end - first};
  }

  std::array<int64_t, 6> key_{-1};
  std::vector<int32_t> index_;
  std::vector<float> weight_;
  Axis axis_{};
};

// One a thread, kept between calls: fresh pages for every clip would cost a tenth of its time.
struct Scratch {
  Taps rows, columns, chroma_rows, chroma_columns;
  std::vector<float> lines[3], rgb, work;
};

float* room(std::vector<float>& buffer, int64_t floats) {
  if (static_cast<int64_t>(buffer.size()) < floats) buffer.resize(floats);
  return buffer.data();
}

Resize resize_of(const PaceClip& args, const Run& run, Scratch& scratch) {
  const int64_t* row = args.table + kColumns * args.plan[run.clip * args.clip_frames + run.first];
  const int32_t* crop = args.crop + 3 * run.clip;
  Resize r{};
  r.planar = row[kFormat] & kPlanar;
  const int64_t offsets[3] = {row[kYOffset], row[kUOffset], row[kVOffset]};
  for (int plane = 0; plane < (r.planar ? 3 : 1); ++plane) {  // packed, the others may be anything
    r.planes[plane] = args.data + offsets[plane];
    r.strides[plane] = row[plane ? kChromaStride : kStride];
  }
  r.matrix = yuv_to_rgb(row[kFormat]);
  r.height = row[kHeight];
  r.chroma_height = (r.height + 1) / 2;
  r.crop_height = args.crop_height;
  r.crop_width = args.crop_width;
  r.row_floats = (args.crop_width + kRowFloats - 1) / kRowFloats * kRowFloats;
  const auto down = [&](Taps& taps, Plane plane) {
    return taps.along(row[kHeight], args.resize_height, crop[0], args.crop_height, false, plane);
  };
  const auto across = [&](Taps& taps, Plane plane) {
    return taps.along(row[kWidth], args.resize_width, crop[1], args.crop_width, crop[2], plane);
  };
  r.rows = down(scratch.rows, Plane::luma);
  r.columns = across(scratch.columns, Plane::luma);
  if (r.planar) {
    r.chroma_rows = down(scratch.chroma_rows, Plane::chroma_between);
    const bool centred = row[kFormat] & kCentreSited;
    r.chroma_columns =
        across(scratch.chroma_columns, centred ? Plane::chroma_between : Plane::chroma_on_even);
  }
  for (int plane = 0; plane < (r.planar ? 3 : 1); ++plane) {
    // Chroma between luma columns may have one column more than luma.
    const int64_t columns = plane ? r.chroma_columns.count : r.columns.count;
    r.lines[plane] = room(scratch.lines[plane], columns * (r.planar ? 1 : 3) + kLineRoom);
  }
  r.rgb = room(scratch.rgb, 3 * r.crop_height * r.row_floats);
  return r;
}

}  // namespace

void pace_clip_run(const PaceClip& args, const Kernels& kernels, const Run& run, bool past_caches) {
  static thread_local Scratch scratch;
  const Resize r = resize_of(args, run, scratch);
  kernels.resize(r);
  const int64_t pixels = args.crop_height * args.crop_width;
  Finish f{};
  f.rgb = r.rgb;
  f.crop_height = r.crop_height;
  f.crop_width = r.crop_width;
  f.row_floats = r.row_floats;
  std::copy_n(args.scale, 3, f.scale);
  std::copy_n(args.shift, 3, f.shift);
  f.bgr = args.bgr;
  f.channels_last = args.channels_last;
  f.past_caches = past_caches;
  f.element = args.element;
  f.channel_stride = args.clip_frames * pixels;
  for (int64_t t = run.first; t < run.first + run.count; ++t) {
    const int64_t frame = run.clip * args.clip_frames + t;
    f.jitter = args.jitter_order ? make_jitter(args.jitter + 4 * frame, args.jitter_order[frame])
                                 : Jitter{};
    const bool last = t + 1 == run.first + run.count;
    f.work = last ? r.rgb : room(scratch.work, 3 * r.crop_height * r.row_floats);
    const int64_t element =
        args.channels_last ? frame * 3 * pixels : (run.clip * 3 * args.clip_frames + t) * pixels;
    f.clips = static_cast<char*>(args.clips) + element * bytes_of(args.element);
    kernels.finish(f);
  }
}

}  // namespace pacecore::cpu
