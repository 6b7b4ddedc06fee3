// The matrix instructions of csrc/cuda/primitives.h, for a warp of fibers.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "fibers.h"

namespace cuda_on_cpu {

struct LoadMatrix {
  const void* row;
  uint32_t result[4];
  bool transposed;
};

// ldmatrix .x4, with .trans where `transposed`.
inline void load_matrices(uint32_t (&result)[4], const void* row, bool transposed) {
  LoadMatrix request{row, {}, transposed};
  warp_collective(0xffffffffu, request, [](LoadMatrix*(&lanes)[32]) {
    for (const LoadMatrix* lane : lanes) {
      if (!lane) fault("ldmatrix needs all 32 lanes");
      if (reinterpret_cast<uintptr_t>(lane->row) % 16)
        fault("ldmatrix needs row addresses that are multiples of 16");
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
          int row = lane / 4, column = lane % 4 * 2 + i;
          if (lanes[lane]->transposed) std::swap(row, column);
          const auto* values = static_cast<const uint16_t*>(lanes[8 * matrix + row]->row);
          pair[i] = values[column];
        }
        std::memcpy(&lanes[lane]->result[matrix], pair, 4);
      }
    }
  });
  std::memcpy(result, request.result, sizeof result);
}

struct MultiplyAdd {
  float* accumulator;  // 4
  const uint32_t* a;   // 4
  const uint32_t* b;   // 2
};

template <typename T>
float element(const uint32_t* registers, int index) {
  T value;
  std::memcpy(&value, reinterpret_cast<const char*>(registers) + 2 * index, 2);
  return static_cast<float>(value);
}

// mma.m16n8k16 in the PTX manual's fragment layout; sums in order of k, in float.
template <typename T>
void multiply_add(float (&accumulator)[4], const uint32_t (&a_registers)[4],
                  const uint32_t (&b_registers)[2]) {
  MultiplyAdd request{accumulator, a_registers, b_registers};
  warp_collective(0xffffffffu, request, [](MultiplyAdd*(&lanes)[32]) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      if (!lanes[lane]) fault("mma needs all 32 lanes");
      const int group = lane / 4, pair = lane % 4 * 2;
      for (int i = 0; i < 8; ++i)
        a[group + i / 2 % 2 * 8][pair + i % 2 + i / 4 * 8] = element<T>(lanes[lane]->a, i);
      for (int i = 0; i < 4; ++i)
        b[pair + i % 2 + i / 2 * 8][group] = element<T>(lanes[lane]->b, i);
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = lanes[lane]->accumulator[i];
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
        lanes[lane]->accumulator[i] = sum;
      }
    }
  });
}

}  // namespace cuda_on_cpu
