#include "fibers.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <dlfcn.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// The bounds of every static __shared__ variable, by shared_memory.ld.
extern "C" __attribute__((visibility("hidden"))) unsigned char __start_cuda_shared[];
extern "C" __attribute__((visibility("hidden"))) unsigned char __stop_cuda_shared[];

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 4096;
constexpr Device kDevices[] = {{86, 99 * 1024, 1, 96 * 1024}, {90, 227 * 1024, 8, 384 * 1024}};

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
  int votes = 0;
  int result = 0;
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

// What runs now: one cluster, which is one block unless the launch says otherwise.
struct {
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
} now;
std::mutex one_launch;
std::map<std::string, size_t> last_shared_bytes;  // dynamic, of each kernel's last launch

#if !defined(__x86_64__)
#error \
    "the fibers of tests/cuda_on_cpu are written for x86-64: port switch_stack and prepare to this machine"
#endif
// Saves the callee-saved registers and the stack pointer, and takes up those of another fiber.
extern "C" __attribute__((visibility("hidden"))) void cuda_on_cpu_switch_stack(void** save,
                                                                               void* load);
asm(R"(
.text
.hidden cuda_on_cpu_switch_stack
.globl cuda_on_cpu_switch_stack
.type cuda_on_cpu_switch_stack, @function
cuda_on_cpu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch_stack, . - cuda_on_cpu_switch_stack
)");

void to_main(bool for_good) {
  Fiber& self = *now.running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &self.fake_stack, now.main_stack,
                                 now.main_stack_bytes);
#else
  (void)for_good;
#endif
  cuda_on_cpu_switch_stack(&self.stack_pointer, now.main_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
#endif
}

size_t number_of(const Fiber& fiber) { return &fiber - now.fibers.data(); }

Block& block_of(const Fiber& fiber) { return now.blocks[number_of(fiber) / now.count]; }

size_t warps_of_block() { return (now.count + 31) / 32; }

Warp& warp_of(const Fiber& fiber) {
  const size_t number = number_of(fiber);
  return now.warps[number / now.count * warps_of_block() + number % now.count / 32];
}

// Static shared memory of all kernels together. Not instrumented, here and in poison(): the
// redzones between the variables are copied too.
__attribute__((no_sanitize("address"), noinline)) void copy_bytes(volatile unsigned char* to,
                                                                  const unsigned char* from,
                                                                  size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = from[i];
}

size_t static_bytes() { return __stop_cuda_shared - __start_cuda_shared; }

void load_block(size_t number) {
  if (number != now.loaded) {
    copy_bytes(now.blocks[now.loaded].static_shared.data(), __start_cuda_shared, static_bytes());
    copy_bytes(__start_cuda_shared, now.blocks[number].static_shared.data(), static_bytes());
    now.loaded = number;
  }
  blockIdx = now.blocks[number].index;
}

void resume(Fiber& fiber) {
  load_block(number_of(fiber) / now.count);
  now.running = &fiber;
  threadIdx = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&now.main_fake_stack, fiber.stack, kStackBytes);
#endif
  cuda_on_cpu_switch_stack(&now.main_stack_pointer, fiber.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(now.main_fake_stack, nullptr, nullptr);
#endif
}

void leave_warp();

// First function on a fiber's stack.
void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &now.main_stack, &now.main_stack_bytes);
#endif
  (*now.body)();
  now.running->state = State::ended;
  leave_warp();
  to_main(true);
  __builtin_unreachable();
}

void prepare(Fiber& fiber, size_t number) {
  if (!fiber.stack) {
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE))
      throw std::runtime_error("cuda_on_cpu: no memory for the stack of a thread");
    fiber.stack = static_cast<char*>(memory) + kGuardBytes;
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber.stack, kStackBytes);  // of a launch that ended in a fault
#endif
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes);
  *--top = nullptr;  // where fiber_main would return to; keeps its frame aligned
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int registers = 0; registers < 6; ++registers) *--top = nullptr;
  fiber.stack_pointer = top;
  fiber.fake_stack = nullptr;
  fiber.state = State::ready;
  fiber.copies.assign(1, {});
  number %= now.count;
  const size_t row = number / blockDim.x;
  fiber.index = {static_cast<unsigned>(number % blockDim.x),
                 static_cast<unsigned>(row % blockDim.y), static_cast<unsigned>(row / blockDim.y)};
}

std::string text(uint3 index) {
  std::ostringstream out;
  out << "(" << index.x << ", " << index.y << ", " << index.z << ")";
  return out.str();
}

std::string text(const Site& site) {
  const std::string path = site.file_name();
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(site.line());
}

std::string doing(const Fiber& fiber) {
  std::string result = "thread " + text(fiber.index);
  if (now.blocks.size() > 1) result += " of block " + text(block_of(fiber).index);
  if (fiber.state == State::ended) return result + " has ended";
  if (fiber.state == State::at_barrier)
    return result + " waits at __syncthreads, " + text(fiber.site);
  if (fiber.state == State::at_cluster_barrier)
    return result + " waits at the barrier of the cluster, " + text(fiber.site);
  std::ostringstream out;
  out << result << " waits at a warp-wide operation, " << text(fiber.site) << ", for the lanes 0x"
      << std::hex << fiber.mask;
  return out.str();
}

[[noreturn]] void throw_fault(const std::string& what) {
  now.running = nullptr;
  throw std::runtime_error(now.kernel + ": block " + text(blockIdx) + ": " + what);
}

[[noreturn]] void throw_deadlock() {
  std::string what = "deadlock: ";
  const Fiber* first = nullptr;
  const size_t count = now.count * now.blocks.size();
  for (size_t i = 0; i < count && !first; ++i)
    if (now.fibers[i].state != State::ended) first = &now.fibers[i];
  what += doing(*first);
  // The first thread found elsewhere tells where the ways parted.
  for (size_t i = 0; i < count; ++i) {
    const Fiber& other = now.fibers[i];
    if (other.state != first->state || other.mask != first->mask ||
        other.site.line() != first->site.line()) {
      what += ", but " + doing(other);
      break;
    }
  }
  throw_fault(what);
}

// Shared memory starts as bytes that no schedule shares with another, so that a result which hangs
// on memory never written differs between them: NaN in every float type, a large finite value,
// noise.
__attribute__((no_sanitize("address"), noinline)) void poison(unsigned char* bytes, size_t count) {
  volatile unsigned char* out = bytes;
  for (size_t i = 0; i < count; ++i) {
    out[i] = now.schedule == Schedule::forwards    ? 0xFF
             : now.schedule == Schedule::backwards ? 0x7E
                                                   : static_cast<unsigned char>(now.random());
  }
}

void order(std::vector<size_t>& items) {
  std::iota(items.begin(), items.end(), size_t{0});
  if (now.schedule == Schedule::backwards) std::reverse(items.begin(), items.end());
  if (now.schedule == Schedule::shuffled) std::shuffle(items.begin(), items.end(), now.random);
}

// The threads of one block after those of another: changing the block costs copies.
std::vector<size_t> take_turns() {
  std::vector<size_t> blocks(now.blocks.size()), threads(now.count), turns;
  order(blocks);
  for (size_t block : blocks) {
    order(threads);
    for (size_t thread : threads) turns.push_back(block * now.count + thread);
  }
  return turns;
}

void run_cluster() {
  std::vector<size_t> turns = take_turns();
  now.warps.assign(now.blocks.size() * warps_of_block(), {});
  for (size_t i : turns) {
    prepare(now.fibers[i], i);
    warp_of(now.fibers[i]).living |= 1u << i % now.count % 32;
  }
  for (;;) {
    bool progress = false;
    size_t ended = 0;
    for (size_t i : turns) {
      Fiber& fiber = now.fibers[i];
      if (fiber.state == State::ready) {
        resume(fiber);
        progress = true;
        if (!now.fault.empty()) throw_fault("thread " + text(fiber.index) + ": " + now.fault);
      }
      ended += fiber.state == State::ended;
    }
    if (ended == turns.size()) return;
    if (!progress) throw_deadlock();
    if (now.schedule == Schedule::shuffled) turns = take_turns();
  }
}

void carry_out(const Copy& copy) {
  std::memcpy(copy.destination, copy.source, copy.valid_bytes);
  std::memset(static_cast<char*>(copy.destination) + copy.valid_bytes, 0, 16 - copy.valid_bytes);
}

void wait(State state, const Site& site) {
  now.running->state = state;
  now.running->site = site;
  to_main(false);
}

// Completes the operation that `first` waits at, if every living lane of its mask waits at it too.
void complete_collective(const Fiber& first) {
  Warp& warp = warp_of(first);
  Lanes lanes{first.mask & warp.living, {}};
  if (lanes.mask & ~warp.waiting) return;
  const unsigned mask = first.mask;
  Fiber* fibers = &now.fibers[number_of(first) - number_of(first) % now.count % 32];
  for (int lane = 0; lane < 32; ++lane) {
    if (!(lanes.mask >> lane & 1)) continue;
    const Fiber& fiber = fibers[lane];
    if (fiber.mask != mask || fiber.combine != first.combine ||
        fiber.site.line() != first.site.line())
      return;
    lanes.requests[lane] = fiber.request;
  }
  for (int lane = 0; lane < 32; ++lane)
    if (lanes.mask >> lane & 1) fibers[lane].state = State::ready;
  warp.waiting &= ~lanes.mask;
  first.combine(lanes);
}

// Ends the running thread's part in its warp, for which other lanes may have waited.
void leave_warp() {
  const Fiber& self = *now.running;
  Warp& warp = warp_of(self);
  warp.living &= ~(1u << lane());
  const Fiber* fibers = &self - lane();
  for (int other = 0; other < 32; ++other)
    if (warp.waiting >> other & 1) complete_collective(fibers[other]);
}

// Waits for all `count` threads from `first` on; gives how many of them voted.
int pass_barrier(Barrier& barrier, State state, Fiber* first, size_t count, bool vote,
                 const Site& site) {
  if (barrier.arrived && barrier.site.line() != site.line())
    fault("is at a barrier, " + text(site) + ", while others wait at one at " + text(barrier.site));
  barrier.site = site;
  barrier.votes += vote;
  if (++barrier.arrived < count) {
    wait(state, site);
  } else {
    barrier.result = barrier.votes;
    barrier.arrived = barrier.votes = 0;
    for (size_t i = 0; i < count; ++i) first[i].state = State::ready;
  }
  return barrier.result;
}

#if defined(__SANITIZE_ADDRESS__)
// Adds to a sanitizer's report which thread it is about.
void say_where() {
  if (now.running)
    std::fprintf(stderr, "%s: block %s: thread %s: reported by the sanitizer above\n",
                 now.kernel.c_str(), text(blockIdx).c_str(), text(now.running->index).c_str());
}

// g++ links two runtimes, each with a callback of its own; the second's is hidden by the first's.
void say_where_on_death() {
  __sanitizer_set_death_callback(say_where);
  void* ubsan = dlopen("libubsan.so.1", RTLD_NOW | RTLD_NOLOAD);
  void* set = ubsan ? dlsym(ubsan, "__sanitizer_set_death_callback") : nullptr;
  if (set) reinterpret_cast<void (*)(void (*)())>(set)(say_where);
}
#endif

void check_limits(dim3 grid, dim3 block, size_t shared_bytes, unsigned cluster) {
  const auto refuse = [](const std::string& what) {
    throw std::runtime_error(now.kernel + ": " + what);
  };
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64)
    refuse("a block has 1 to 1024 threads, at most 64 of them in z, got " +
           text(uint3{block.x, block.y, block.z}));
  if (!grid.x || !grid.y || !grid.z || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535)
    refuse("a grid has 1 to 2147483647 x 65535 x 65535 blocks, got " +
           text(uint3{grid.x, grid.y, grid.z}));
  const std::string architecture = " on sm_" + std::to_string(now.device.architecture);
  if (shared_bytes > now.device.shared_bytes)
    refuse("a block has at most " + std::to_string(now.device.shared_bytes) +
           " bytes of dynamic shared memory" + architecture + ", got " +
           std::to_string(shared_bytes));
  if (!cluster || cluster > now.device.cluster_blocks || grid.x % cluster)
    refuse("a cluster has 1 to " + std::to_string(now.device.cluster_blocks) + " blocks" +
           architecture + " and divides the grid, got " + std::to_string(cluster) + " of " +
           std::to_string(grid.x));
}

}  // namespace

void run_grid(const std::string& kernel, dim3 grid, dim3 block, size_t shared_bytes,
              unsigned cluster, const std::function<void()>& body) {
  const std::lock_guard lock(one_launch);
  now.kernel = kernel;
#if defined(__SANITIZE_ADDRESS__)
  static const bool once = (say_where_on_death(), true);
  (void)once;
#endif
  check_limits(grid, block, shared_bytes, cluster);
  last_shared_bytes[kernel] = shared_bytes;
  now.body = &body;
  now.random.seed(now.seed);
  now.shared_bytes = shared_bytes;
  now.count = size_t{block.x} * block.y * block.z;
  now.fault.clear();
  gridDim = grid;
  blockDim = block;
  if (now.fibers.size() < now.count * cluster) now.fibers.resize(now.count * cluster);
  std::vector<size_t> clusters(size_t{grid.x} * grid.y * grid.z / cluster);
  order(clusters);
  for (size_t number : clusters) {
    now.blocks.clear();
    now.blocks.resize(cluster);
    now.cluster_barrier = {};
    now.loaded = 0;
    for (unsigned rank = 0; rank < cluster; ++rank) {
      Block& one = now.blocks[rank];
      const size_t column = number * cluster + rank, row = column / grid.x;
      one.index = {static_cast<unsigned>(column % grid.x), static_cast<unsigned>(row % grid.y),
                   static_cast<unsigned>(row / grid.y)};
      one.dynamic_shared.reset(new unsigned char[shared_bytes]);
      poison(one.dynamic_shared.get(), shared_bytes);
      if (rank) {
        one.static_shared.resize(static_bytes());
        poison(one.static_shared.data(), static_bytes());
      }
    }
    if (cluster > 1) now.blocks[0].static_shared.resize(static_bytes());
    poison(__start_cuda_shared, static_bytes());
    run_cluster();
  }
  now.running = nullptr;
}

const Device& device() { return now.device; }

void fault(const std::string& what) {
  now.fault = what;
  to_main(false);
  __builtin_unreachable();
}

void* dynamic_shared() { return block_of(*now.running).dynamic_shared.get(); }

int block_barrier(bool predicate, Site site) {
  Fiber* first = &now.fibers[number_of(*now.running) / now.count * now.count];
  return pass_barrier(block_of(*now.running).barrier, State::at_barrier, first, now.count,
                      predicate, site);
}

void cluster_barrier(Site site) {
  pass_barrier(now.cluster_barrier, State::at_cluster_barrier, now.fibers.data(),
               now.count * now.blocks.size(), false, site);
}

void* shared_of_rank(void* address, unsigned rank) {
  auto* byte = static_cast<unsigned char*>(address);
  unsigned char* dynamic = block_of(*now.running).dynamic_shared.get();
  if (rank >= now.blocks.size())
    fault("asks for rank " + std::to_string(rank) + " of a cluster of " +
          std::to_string(now.blocks.size()));
  if (byte >= dynamic && byte < dynamic + now.shared_bytes)
    return now.blocks[rank].dynamic_shared.get() + (byte - dynamic);
  if (byte < __start_cuda_shared || byte >= __stop_cuda_shared)
    fault("asks for the shared memory of another block, but not by an address in its own");
  if (rank == now.loaded) return byte;
  return now.blocks[rank].static_shared.data() + (byte - __start_cuda_shared);
}

void warp_collective(unsigned mask, void* request, void (*combine)(Lanes&), Site site) {
  Fiber& self = *now.running;
  if (!(mask >> lane() & 1)) fault("is not in the mask that it names, " + text(site));
  self.mask = mask;
  self.request = request;
  self.combine = combine;
  self.site = site;
  self.state = State::at_collective;
  warp_of(self).waiting |= 1u << lane();
  complete_collective(self);
  if (self.state != State::ready) to_main(false);
}

void async_copy(void* destination, const void* source, int valid_bytes) {
  const auto aligned = [](const void* address) {
    return reinterpret_cast<uintptr_t>(address) % 16 == 0;
  };
  if (!aligned(destination) || !aligned(source))
    fault("an asynchronous copy of 16 bytes needs both addresses to be multiples of 16");
  const Copy copy{destination, source, valid_bytes};
  const bool at_once = now.schedule == Schedule::backwards ||
                       (now.schedule == Schedule::shuffled && now.random() % 2);
  if (at_once)
    carry_out(copy);
  else
    now.running->copies.back().push_back(copy);
}

void async_commit() { now.running->copies.emplace_back(); }

void async_wait(int pending_groups) {
  auto& copies = now.running->copies;
  while (copies.size() > static_cast<size_t>(pending_groups) + 1) {
    for (const Copy& copy : copies.front()) carry_out(copy);
    copies.pop_front();
  }
}

unsigned lane() { return number_of(*now.running) % now.count % 32; }

}  // namespace cuda_on_cpu

extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_set_schedule(int schedule,
                                                                                uint64_t seed) {
  const std::lock_guard lock(cuda_on_cpu::one_launch);
  cuda_on_cpu::now.schedule = static_cast<cuda_on_cpu::Schedule>(schedule);
  cuda_on_cpu::now.seed = seed;
}

// 86 or 90.
extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_set_device(int architecture) {
  const std::lock_guard lock(cuda_on_cpu::one_launch);
  for (const cuda_on_cpu::Device& device : cuda_on_cpu::kDevices)
    if (device.architecture == architecture) cuda_on_cpu::now.device = device;
}

// Bytes of dynamic shared memory of a kernel's last launch, -1 if there was none.
extern "C" __attribute__((visibility("default"))) int64_t
cuda_on_cpu_shared_bytes(const char* kernel) {
  const std::lock_guard lock(cuda_on_cpu::one_launch);
  const auto found = cuda_on_cpu::last_shared_bytes.find(kernel);
  return found == cuda_on_cpu::last_shared_bytes.end() ? -1 : static_cast<int64_t>(found->second);
}
