// Runs a CUDA block on one CPU thread: every thread of the block is a fiber, which runs until it
// waits at a barrier or at a warp-wide operation, or ends. Test only; cuda_on_cpu.h gives kernels
// the CUDA names for what stands here.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace cuda_on_cpu {

using Site = std::source_location;

// The limits of the GPU that is played.
struct Device {
  int architecture;         // 90: sm_90, for which the code is
  size_t shared_bytes;      // shared memory that a block may have once its kernel's limit is raised
  unsigned cluster_blocks;  // that every GPU of the architecture runs; 1: its code has none
  int64_t cache_bytes;      // so few that what is sized by them takes several parts in the tests
};
const Device& device();

// Runs body() once as every thread of every block, `cluster` consecutive blocks at a time. Throws
// std::runtime_error that names kernel, block and thread where the launch is out of the hardware's
// limits or a thread commits a fault.
struct SharedMemory {
  size_t static_bytes, dynamic_bytes;
};
void run_grid(const std::string& kernel, dim3 grid, dim3 block, SharedMemory shared,
              unsigned cluster, const std::function<void()>& body);

// Of the kernel's own __shared__ variables; those of functions that it calls are not counted.
size_t static_shared_bytes(const void* kernel);

// Throws where a launch asks for more dynamic shared memory than the kernel's limit, which is 48 KB
// less its static variables until cudaFuncSetAttribute has raised it.
void check_raised(const std::string& name, const void* kernel, size_t dynamic_bytes);

// The rest is for code that runs as a thread of a block.

// Ends the launch with an error about the calling thread.
[[noreturn]] void fault(const std::string& what);

void* dynamic_shared();

// Returns once every thread of the block has called.
void block_barrier(Site site);

// Returns once every thread of the cluster has called.
void cluster_barrier(Site site = Site::current());

// Where the block of `rank` in the cluster has what the caller's block has at `address`, in shared
// memory. Not to be kept over a barrier.
void* shared_of_rank(void* address, unsigned rank);

// What the lanes of a warp passed to one warp-wide operation. A lane outside `mask` is null: it
// does not take part, has ended, or does not exist.
struct Lanes {
  unsigned mask;
  void* requests[32];
};

// Returns once every living lane in `mask` has called from the same site with the same mask and
// operation. The last to come runs combine(lanes), once, with what each lane passed as `request`.
void warp_collective(unsigned mask, void* request, void (*combine)(Lanes&), Site site);

// As above with typed requests: combine is a capture-free callable taking Request* (&)[32], null
// for a lane that does not take part.
template <typename Request, typename Combine>
void warp_collective(unsigned mask, Request& request, Combine, Site site = Site::current()) {
  warp_collective(
      mask, &request,
      +[](Lanes& lanes) {
        Request* typed[32];
        for (int lane = 0; lane < 32; ++lane)
          typed[lane] = static_cast<Request*>(lanes.requests[lane]);
        Combine{}(typed);
      },
      site);
}

// Asynchronous copies of the calling thread. The hardware may carry one out at any time between its
// issue and the wait, so the forward schedule does so at the wait, the backward one at once, the
// shuffled one at random.
void async_copy(void* destination, const void* source, int valid_bytes);  // 16 bytes, zeros past
void async_commit();
void async_wait(int pending_groups);

unsigned lane();

}  // namespace cuda_on_cpu
