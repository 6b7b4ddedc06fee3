// pace_clip on CUDA: one kernel from the source to the clips, which are written once.
//
// A block owns a band of rows of one frame of one clip. It copies the source rows that the band
// needs into shared memory, 16 bytes at a time; each thread then makes four neighbouring columns of
// a run of rows: it samples the source rows across, keeps two of each plane in registers, blends
// them and turns YUV to RGB. Without jitter it stores them at once. With jitter it applies the
// steps up to contrast and leaves the pixels in shared memory as planar floats: contrast needs the
// mean grey of the whole frame, so the blocks of a frame are a cluster and add up their sums. Then
// each block finishes its band from shared memory with 16-byte stores. Where a band does not fit
// into shared memory (large crops; any before sm_90, where there are no clusters), its rows are
// made once for the mean and once for the clips; the second time the source is in L2.
//
// What limits it is instructions, not memory: so the four columns of a source row are read as three
// words, a sample is one product of whole numbers (dp2a), which as the last bits of a float needs
// no conversion, and colours are in 0..1, where a sum is clamped at no cost.
//
// Equal neighbouring frames are not shared. Their source is in L2, so no device memory traffic is
// saved. With jitter, sharing would save of each repeat the instructions that make the row, but
// each frame must then start from pixels without jitter: kept beside the others they cost a third
// of the blocks on a multiprocessor; taken as the only copy, the steps before contrast are done
// twice.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cluster.h"
#include "launch.h"
#include "library.h"
#include "pace_clip_op.h"
#include "pace_clip_rows.h"
#include "pace_clip_store.h"

namespace pacecore {
namespace {

// Registers are bounded for so many threads of a block, and so many blocks: with jitter shared
// memory may hold more blocks of fewer threads, and the host sees to that (threads_of).
template <bool Jittered>
constexpr int kThreads = Jittered ? kJitterThreads : kPlainThreads;
template <bool Jittered>
constexpr int kBlocks = kWarpsResident * 32 / kThreads<Jittered>;

template <class Out, bool ChannelsLast, bool Jittered>
__global__ void __launch_bounds__(kThreads<Jittered>, kBlocks<Jittered>)
    pace_clip_kernel(const PaceClip args, const Bands bands) {
  PACECORE_DYNAMIC_SHARED(float, dynamic);
  __shared__ Source source;
  __shared__ double sums[kJitterThreads / 32];
  __shared__ double cluster_slot;
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = 0;
  if (threadIdx.x == 0) find_source(args, bands, source);
  __syncthreads();
  if (!source.valid) {  // for all blocks of the frame alike
    store_nan<Out, ChannelsLast>(args, source);
    return;
  }
  const Memory memory = memory_of(bands, dynamic);
  find_taps(args, bands, memory, source);
  if constexpr (!Jittered) {
    const int64_t frame_pixels = args.crop_height * args.crop_width;
    const int clip_frames = static_cast<int>(args.clip_frames);
    const int64_t clip = source.frame / clip_frames, t = source.frame % clip_frames;
    using Store = StoreRows<Out, ChannelsLast>;
    Out* const out = static_cast<Out*>(args.clips) +
                     (ChannelsLast ? int64_t{3} * source.frame * frame_pixels
                                   : (3 * clip * clip_frames + t) * frame_pixels);
    const int64_t row_values = (ChannelsLast ? 3 : 1) * args.crop_width;
    for (int done = 0; done < source.rows; done += bands.kept_rows) {
      const int first = source.first + done;
      Store store{args, out + first * row_values, clip_frames * frame_pixels,
                  reinterpret_cast<typename Store::Four*>(memory.crop) + threadIdx.x / 32 * 32 * 3};
      make_rows(args, bands, source, memory, first, min(bands.kept_rows, source.rows - done),
                store);
    }
  } else {
    const bool contrast = source.jitter.contrast_at < source.jitter.num_steps;
    const bool kept = contrast && source.rows <= bands.kept_rows;
    float mean_grey = 0;
    // With contrast all rows for the mean, then all for the clips.
    for (bool last = !contrast;; last = true) {
      for (int done = 0; done < source.rows; done += bands.kept_rows) {
        const int first = source.first + done, rows = min(bands.kept_rows, source.rows - done);
        if (!last || !kept) {
          KeepRows keep{args, bands, source, memory.crop, 0.f};
          make_rows(args, bands, source, memory, first, rows, keep);
          if (!last) add_to_warp(keep.sum, sums);
        }
        if (last)
          store_rows<Out, ChannelsLast>(args, bands, source, memory, first, rows, mean_grey);
      }
      if (last) {
        if (contrast) cluster_end(bands.cluster);
        return;
      }
      const double sum = cluster_sum(block_sum(sums), &cluster_slot, bands.cluster);
      mean_grey = static_cast<float>(
          sum / (static_cast<double>(args.crop_height) * static_cast<double>(args.crop_width)));
    }
  }
}

// Threads of a block with jitter: so many that the blocks which shared memory holds fill a
// multiprocessor, but none without a row.
int threads_of(const PaceClip& args, const Bands& bands, const ClusterLimits& limits) {
  constexpr int64_t system = 1024;  // of shared memory, beside each block's own
  const int64_t blocks = (limits.shared_bytes + kStaticShared + system) /
                         (bands.shared_bytes + kStaticShared / 2 + system);
  const int largest = limits.shared_bytes < 128 * 1024 ? kSmallThreads : kJitterThreads;
  const int64_t most = std::clamp<int64_t>(kWarpsResident / blocks, 4, largest / 32) * 32;
  const int64_t quads = (args.crop_width + kQuad - 1) / kQuad;
  if (quads >= most) return static_cast<int>(most);
  const int64_t rows = (bands.kept_rows + most / quads - 1) / (most / quads);  // of a thread
  const int64_t groups = (bands.kept_rows + rows - 1) / rows;
  return static_cast<int>((groups * quads + 31) / 32 * 32);
}

// 40 KB for the crop leaves room for three blocks on a multiprocessor of sm_90 and two of sm_80; a
// frame whose share is larger still keeps it all where the cluster is as large as it gets.
Bands bands_of(const PaceClip& args, const ClusterLimits& limits) {
  constexpr int64_t crop_bytes = 40 * 1024;
  constexpr int64_t most_rows = 2048;  // whose taps fit beside them
  const int64_t fitting = std::clamp<int64_t>(crop_bytes / (12 * args.crop_width), 1, most_rows);
  Bands bands{};
  bands.cluster = 1;
  const int64_t parts = (args.crop_height + fitting - 1) / fitting;
  int64_t rows = (args.crop_height + parts - 1) / parts;
  if (args.jitter_order) {
    const auto share = [&] { return (args.crop_height + bands.cluster - 1) / bands.cluster; };
    while (bands.cluster < limits.blocks && share() > fitting) bands.cluster *= 2;
    rows = share();
  }
  const auto keep = [&](int64_t kept) {
    bands.kept_rows = static_cast<int>(kept);
    lay_out(args, bands);
    return bands.shared_bytes <= limits.shared_bytes;
  };
  if (bands.cluster == 1 || rows <= fitting || !keep(rows)) keep(std::min(rows, fitting));
  bands.rows = static_cast<int>(rows);
  bands.blocks =
      bands.cluster > 1 ? bands.cluster : static_cast<int>((args.crop_height + rows - 1) / rows);
  bands.threads = args.jitter_order ? threads_of(args, bands, limits) : kPlainThreads;
  return bands;
}

template <class Out, bool ChannelsLast, bool Jittered>
void launch(const PaceClip& args, cudaStream_t stream) {
  constexpr auto kernel = &pace_clip_kernel<Out, ChannelsLast, Jittered>;
  constexpr const char* name = "pace_clip_kernel";
  const Bands bands = bands_of(args, cluster_limits(reinterpret_cast<const void*>(kernel), name));
  const int64_t grid = args.batch * args.clip_frames * bands.blocks;
  PACECORE_CHECK(grid < (int64_t{1} << 31), "pace_clip: plan must have fewer than ",
                 (int64_t{1} << 31) / bands.blocks, " frames on CUDA, got ",
                 args.batch * args.clip_frames);
  launch_clusters<kernel>(name, static_cast<unsigned>(grid), bands.threads, bands.shared_bytes,
                          stream, bands.cluster, args, bands);
}

template <class Out>
void launch_as(const PaceClip& args, cudaStream_t stream) {
  const auto launch_in = [&]<bool channels_last>(std::bool_constant<channels_last>) {
    if (args.jitter_order)
      launch<Out, channels_last, true>(args, stream);
    else
      launch<Out, channels_last, false>(args, stream);
  };
  if (args.channels_last)
    launch_in(std::true_type{});
  else
    launch_in(std::false_type{});
}

Tensor pace_clip(const Tensor& data, const Tensor& table, const Tensor& plan, const Tensor& crop,
                 const std::optional<Tensor>& jitter, const std::optional<Tensor>& jitter_order,
                 const std::vector<int64_t>& resize, const std::vector<int64_t>& crop_size,
                 const std::vector<double>& mean, const std::vector<double>& std, bool bgr,
                 ScalarType dtype, bool channels_last) {
  const DeviceGuard guard(data.get_device_index());
  CheckedPaceClip checked = checked_pace_clip(data, table, plan, crop, jitter, jitter_order, resize,
                                              crop_size, mean, std, bgr, dtype, channels_last);
  PaceClip& args = checked.args;
  PACECORE_CHECK(args.crop_width <= kWidest, "pace_clip: crop_size must be at most ", kWidest,
                 " wide on CUDA, got ", args.crop_width);
  Tensor clips = new_clips(args, data, dtype);
  if (clips.numel() == 0) return clips;
  args.clips = clips.mutable_data_ptr();
  for (float& scale : args.scale) scale *= 255.f / kWhite;
  const cudaStream_t stream = current_stream(data);
  switch (args.element) {
    case Element::f32:
      launch_as<float>(args, stream);
      break;
    case Element::f16:
      launch_as<__half>(args, stream);
      break;
    case Element::bf16:
      launch_as<__nv_bfloat16>(args, stream);
  }
  return clips;
}

}  // namespace
}  // namespace pacecore

PACECORE_REGISTER_CUDA(m) { m.impl("pace_clip", TORCH_BOX(&pacecore::pace_clip)); }
