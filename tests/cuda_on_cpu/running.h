// What runs now, of fibers.cpp, which lets it run, and intrinsics.cpp, by which its threads meet.
// Internal to the two.
#pragma once

#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fibers.h"

// The bounds of every static __shared__ variable, by shared_memory.ld.
extern "C" __attribute__((visibility("hidden"))) unsigned char __start_cuda_shared[];
extern "C" __attribute__((visibility("hidden"))) unsigned char __stop_cuda_shared[];

namespace cuda_on_cpu {

// 80 is code for sm_80 on a GPU of sm_90, whose driver has translated it.
constexpr Device kDevices[] = {{86, 99 * 1024, 1, 96 * 1024},
                               {90, 227 * 1024, 8, 2400 * 1024},
                               {80, 227 * 1024, 1, 2400 * 1024}};

enum class Schedule : int { forwards = 0, backwards = 1, shuffled = 2 };
enum class State { ready, at_barrier, at_cluster_barrier, at_collective, ended };

struct Copy {
  void* destination;
  const void* source;
  int valid_bytes;
};

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  uint3 index{};
  State state = State::ready;
  Site site;
  unsigned mask = 0;
  void* request = nullptr;
  void (*combine)(Lanes&) = nullptr;
  std::deque<std::vector<Copy>> copies;  // committed groups, oldest first, and the open one
};

struct Barrier {
  size_t arrived = 0;
  Site site;
};

struct Warp {
  unsigned living = 0;   // lanes that have not ended
  unsigned waiting = 0;  // of them, lanes at a warp-wide operation
};

struct Block {
  uint3 index{};
  Barrier barrier;
  // Of its exact size and from the heap, so that AddressSanitizer guards its ends.
  std::unique_ptr<unsigned char[]> dynamic_shared;
  std::vector<unsigned char> static_shared;  // while another block of its cluster runs
};

// One cluster, which is one block unless the launch says otherwise.
struct Running {
  Device device = kDevices[1];
  Schedule schedule = Schedule::forwards;
  std::mt19937_64 random;
  uint64_t seed = 0;
  std::string kernel;
  const std::function<void()>* body = nullptr;
  size_t shared_bytes = 0;
  std::vector<Block> blocks;
  size_t loaded = 0;  // the block whose static shared memory is in place
  Barrier cluster_barrier;
  std::vector<Warp> warps;    // of block after block
  std::vector<Fiber> fibers;  // of block after block; grows to the most seen, stacks are kept
  size_t count = 0;           // threads of a block
  Fiber* running = nullptr;
  std::string fault;
  void* main_stack_pointer = nullptr;
  void* main_fake_stack = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
};
extern Running now;

inline size_t number_of(const Fiber& fiber) { return &fiber - now.fibers.data(); }

inline Block& block_of(const Fiber& fiber) { return now.blocks[number_of(fiber) / now.count]; }

inline size_t warps_of_block() { return (now.count + 31) / 32; }

inline Warp& warp_of(const Fiber& fiber) {
  const size_t number = number_of(fiber);
  return now.warps[number / now.count * warps_of_block() + number % now.count / 32];
}

std::string text(uint3 index);
std::string text(const Site& site);

// Leaves the running thread until it is State::ready again; `for_good` where it has ended.
void to_main(bool for_good);

// Every kernel's limit of dynamic shared memory is again what it is before anyone raises it.
void forget_raised_limits();

// Ends the running thread's part in its warp, for which other lanes may have waited.
void leave_warp();

}  // namespace cuda_on_cpu
