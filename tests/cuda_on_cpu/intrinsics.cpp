// What the threads of a block meet by: barriers, warp-wide operations, asynchronous copies.
#include <cstring>

#include "running.h"

namespace cuda_on_cpu {
namespace {

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

// Waits for all `count` threads from `first` on.
void pass_barrier(Barrier& barrier, State state, Fiber* first, size_t count, const Site& site) {
  if (barrier.arrived && barrier.site.line() != site.line())
    fault("is at a barrier, " + text(site) + ", while others wait at one at " + text(barrier.site));
  barrier.site = site;
  if (++barrier.arrived < count) {
    wait(state, site);
  } else {
    barrier.arrived = 0;
    for (size_t i = 0; i < count; ++i) first[i].state = State::ready;
  }
}

}  // namespace

void leave_warp() {
  const Fiber& self = *now.running;
  Warp& warp = warp_of(self);
  warp.living &= ~(1u << lane());
  const Fiber* fibers = &self - lane();
  for (int other = 0; other < 32; ++other)
    if (warp.waiting >> other & 1) complete_collective(fibers[other]);
}

void* dynamic_shared() { return block_of(*now.running).dynamic_shared.get(); }

void block_barrier(Site site) {
  Fiber* first = &now.fibers[number_of(*now.running) / now.count * now.count];
  pass_barrier(block_of(*now.running).barrier, State::at_barrier, first, now.count, site);
}

void cluster_barrier(Site site) {
  pass_barrier(now.cluster_barrier, State::at_cluster_barrier, now.fibers.data(),
               now.count * now.blocks.size(), site);
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
  if (valid_bytes != 0 && valid_bytes != 16)
    fault("an asynchronous copy of 16 bytes reads all of them or none");
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
