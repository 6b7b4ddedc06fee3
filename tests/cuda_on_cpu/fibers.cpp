// Lets the threads of a grid run: their stacks, their turns, and what a launch may ask for.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <mutex>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "running.h"

#if defined(__SANITIZE_ADDRESS__)
#include <dlfcn.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {

Running now;

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 4096;
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

}  // namespace

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

namespace {

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

}  // namespace

std::string text(uint3 index) {
  std::ostringstream out;
  out << "(" << index.x << ", " << index.y << ", " << index.z << ")";
  return out.str();
}

std::string text(const Site& site) {
  const std::string path = site.file_name();
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(site.line());
}

namespace {

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

void check_limits(dim3 grid, dim3 block, SharedMemory shared, unsigned cluster) {
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
  if (shared.static_bytes + shared.dynamic_bytes > now.device.shared_bytes)
    refuse("a block has at most " + std::to_string(now.device.shared_bytes) +
           " bytes of shared memory" + architecture + ", got " +
           std::to_string(shared.static_bytes) + " static and " +
           std::to_string(shared.dynamic_bytes) + " dynamic");
  if (!cluster || cluster > now.device.cluster_blocks || grid.x % cluster)
    refuse("a cluster has 1 to " + std::to_string(now.device.cluster_blocks) + " blocks" +
           architecture + " and divides the grid, got " + std::to_string(cluster) + " of " +
           std::to_string(grid.x));
}

}  // namespace

void run_grid(const std::string& kernel, dim3 grid, dim3 block, SharedMemory shared,
              unsigned cluster, const std::function<void()>& body) {
  const std::lock_guard lock(one_launch);
  const size_t shared_bytes = shared.dynamic_bytes;
  now.kernel = kernel;
#if defined(__SANITIZE_ADDRESS__)
  static const bool once = (say_where_on_death(), true);
  (void)once;
#endif
  check_limits(grid, block, shared, cluster);
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

}  // namespace cuda_on_cpu

extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_set_schedule(int schedule,
                                                                                uint64_t seed) {
  const std::lock_guard lock(cuda_on_cpu::one_launch);
  cuda_on_cpu::now.schedule = static_cast<cuda_on_cpu::Schedule>(schedule);
  cuda_on_cpu::now.seed = seed;
}

// 86, 90 or 80.
extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_set_device(int architecture) {
  const std::lock_guard lock(cuda_on_cpu::one_launch);
  for (const cuda_on_cpu::Device& device : cuda_on_cpu::kDevices)
    if (device.architecture == architecture) cuda_on_cpu::now.device = device;
  cuda_on_cpu::forget_raised_limits();
}

// Bytes of dynamic shared memory of a kernel's last launch, -1 if there was none.
extern "C" __attribute__((visibility("default"))) int64_t
cuda_on_cpu_shared_bytes(const char* kernel) {
  const std::lock_guard lock(cuda_on_cpu::one_launch);
  const auto found = cuda_on_cpu::last_shared_bytes.find(kernel);
  return found == cuda_on_cpu::last_shared_bytes.end() ? -1 : static_cast<int64_t>(found->second);
}
