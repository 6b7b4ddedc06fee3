// Argument checks whose message names the op, the rule and the offending value, and nothing else.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>

namespace pacecore {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// PACECORE_CHECK(z.dim() == 2, "info_nce: z must be (n, D), got ", describe(z));
// A macro, so that what is said is put together only where the rule does not hold.
#define PACECORE_CHECK(holds, ...)               \
  do {                                           \
    if (!(holds)) ::pacecore::fail(__VA_ARGS__); \
  } while (0)

inline const char* type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another type";
  }
}

// "float32 (60, 512)"
inline std::string describe(const Tensor& tensor) {
  if (!tensor.defined()) return "None";
  std::ostringstream text;
  text << type_name(tensor.scalar_type()) << " (";
  for (int64_t axis = 0; axis < tensor.dim(); ++axis)
    text << (axis ? ", " : "") << tensor.size(axis);
  text << (tensor.dim() == 1 ? ",)" : ")");
  return text.str();
}

}  // namespace pacecore
