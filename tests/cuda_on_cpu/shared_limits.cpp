// How much shared memory a kernel has and may have, and the runtime's functions that tell of it and
// raise it (csrc/cuda/shared_limit.h).
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>

#include "running.h"

namespace cuda_on_cpu {
namespace {

constexpr size_t kUnraised = 48 * 1024;
std::mutex one_caller;
std::map<const void*, size_t> static_bytes_of, raised;

template <typename T>
std::vector<T> read(std::ifstream& file, size_t at, size_t count) {
  std::vector<T> result(count);
  file.seekg(at);
  file.read(reinterpret_cast<char*>(result.data()), count * sizeof(T));
  if (!file) throw std::runtime_error("cuda_on_cpu: the kernels' own file cannot be read");
  return result;
}

// The symbol table has the kernel, _ZN8pacecore...kernelE..., and its static variables, which are
// called _ZZN8pacecore...kernelE...E and their own name.
size_t read_static_bytes(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info)) throw std::runtime_error("cuda_on_cpu: a kernel of no file");
  std::ifstream file(info.dli_fname, std::ios::binary);
  const Elf64_Ehdr header = read<Elf64_Ehdr>(file, 0, 1)[0];
  const auto sections = read<Elf64_Shdr>(file, header.e_shoff, header.e_shnum);
  const auto table = std::find_if(sections.begin(), sections.end(), [](const Elf64_Shdr& section) {
    return section.sh_type == SHT_SYMTAB;
  });
  if (table == sections.end())
    throw std::runtime_error("cuda_on_cpu: the kernels' file has no symbols");
  const auto symbols = read<Elf64_Sym>(file, table->sh_offset, table->sh_size / sizeof(Elf64_Sym));
  const Elf64_Shdr& strings = sections[table->sh_link];
  const auto names = read<char>(file, strings.sh_offset, strings.sh_size);
  const size_t address =
      static_cast<const char*>(kernel) - static_cast<const char*>(info.dli_fbase);
  // More than one where the compiler found two kernels to be the same.
  std::set<std::string> prefixes;
  for (const Elf64_Sym& symbol : symbols)
    if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && symbol.st_value == address)
      prefixes.insert("_ZZ" + std::string(&names[symbol.st_name]).substr(2) + "E");
  if (prefixes.empty()) throw std::runtime_error("cuda_on_cpu: a kernel without a symbol");
  size_t most = 0;
  for (const std::string& prefix : prefixes) {
    size_t sum = 0;
    for (const Elf64_Sym& symbol : symbols)
      if (ELF64_ST_TYPE(symbol.st_info) == STT_OBJECT &&
          std::string(&names[symbol.st_name]).rfind(prefix, 0) == 0)
        sum += (symbol.st_size + 15) / 16 * 16;
    most = std::max(most, sum);
  }
  return most;
}

}  // namespace

size_t static_shared_bytes(const void* kernel) {
  const std::lock_guard lock(one_caller);
  const auto found = static_bytes_of.find(kernel);
  if (found != static_bytes_of.end()) return found->second;
  return static_bytes_of[kernel] = read_static_bytes(kernel);
}

void check_raised(const std::string& name, const void* kernel, size_t dynamic_bytes) {
  const size_t own = static_shared_bytes(kernel);
  if (own + dynamic_bytes > device().shared_bytes) return;  // run_grid refuses it, saying why
  const std::lock_guard lock(one_caller);
  const auto found = raised.find(kernel);
  const size_t limit = std::max(found == raised.end() ? 0 : found->second, kUnraised - own);
  if (dynamic_bytes > limit)
    throw std::runtime_error(name + ": its limit of dynamic shared memory is " +
                             std::to_string(limit) + " bytes and was not raised, got " +
                             std::to_string(dynamic_bytes));
}

void forget_raised_limits() {
  const std::lock_guard lock(one_caller);
  raised.clear();
}

}  // namespace cuda_on_cpu

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute != cudaDevAttrMaxSharedMemoryPerBlockOptin) return cudaErrorNotSupported;
  *value = static_cast<int>(cuda_on_cpu::device().shared_bytes);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  *attributes = {};
  attributes->ptxVersion = cuda_on_cpu::device().architecture;
  attributes->sharedSizeBytes = cuda_on_cpu::static_shared_bytes(kernel);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorNotSupported;
  const size_t own = cuda_on_cpu::static_shared_bytes(kernel);
  if (value < 0 || own + value > cuda_on_cpu::device().shared_bytes) return cudaErrorInvalidValue;
  const std::lock_guard lock(cuda_on_cpu::one_caller);
  cuda_on_cpu::raised[kernel] = value;
  return cudaSuccess;
}
}
