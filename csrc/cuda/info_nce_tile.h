// Products of 128 x 128 tiles by a block of 256 threads: 16-bit types on the tensor cores, float by
// true float fused multiply-add. Operands go through a ring of stages in shared memory, filled by
// asynchronous copies of 16 bytes while earlier stages are multiplied.
#pragma once

#include "info_nce.h"

namespace pacecore {

constexpr int kTile = kNceBlockRows;
constexpr int kTileThreads = 256;
constexpr int kStages = 3;
// Row stride of a tile of scores, in floats: 8 modulo 32 banks, so that neither the writes of an
// accumulator's pairs nor reads of 16 bytes by two threads a row meet in a bank.
constexpr int kScorePitch = kTile + 8;

// A matrix in global memory, rows of `pitch` elements: a multiple of 16 bytes, as is its address.
template <typename T>
struct Matrix {
  const T* data;
  int rows, columns, pitch;
};

// How a stage lies in shared memory, and the accumulators that are fed from it. Two kinds of
// operand: `Rows`, 128 rows of kDepth elements along the sum; `Depth`, kDepth rows of 128 columns.
template <typename T>
struct Engine {  // 16-bit types
  static constexpr int kDepth = 64;
  static constexpr int kStageElements = 2 * kTile * kDepth;
  static constexpr int kSecond = kTile * kDepth;  // where the second operand begins

  // Eight rows' chunks of one column lie in eight different bank groups.
  static __device__ int rows_at(int row, int chunk) { return row * kDepth + (chunk ^ row % 8) * 8; }
  static __device__ int depth_at(int row, int chunk) { return row * kTile + (chunk ^ row % 8) * 8; }

  float sum[4][4][4];  // 4 x 4 blocks of 16 x 8 in a warp's 64 x 32

  __device__ Engine() {
    for (auto& row : sum)
      for (auto& block : row)
        for (float& value : block) value = 0;
  }

  template <bool depth_major>
  __device__ void multiply(const T* stage) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_row = warp / 4 * 64, first_column = warp % 4 * 32;
    const T* second = stage + kSecond;
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t b[4][2];
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        uint32_t four[4];
        const int column = first_column + pair * 16;
        if constexpr (depth_major)
          load_matrix_x4_transposed(four,
                                    second + depth_at(k * 16 + lane % 16, column / 8 + lane / 16));
        else
          load_matrix_x4(four,
                         second + rows_at(column + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
        b[pair * 2][0] = four[0];
        b[pair * 2][1] = four[1];
        b[pair * 2 + 1][0] = four[2];
        b[pair * 2 + 1][1] = four[3];
      }
#pragma unroll
      for (int row = 0; row < 4; ++row) {
        uint32_t a[4];
        load_matrix_x4(a, stage + rows_at(first_row + row * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
        for (int column = 0; column < 4; ++column) mma_m16n8k16<T>(sum[row][column], a, b[column]);
      }
    }
  }

  // Calls write(row, column, first, second) for each pair of neighbours in the tile.
  template <bool depth_major, typename Write>
  __device__ void for_each_pair(const Write& write) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int row = 0; row < 4; ++row)
#pragma unroll
      for (int column = 0; column < 4; ++column)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          write(warp / 4 * 64 + row * 16 + half * 8 + lane / 4,
                warp % 4 * 32 + column * 8 + lane % 4 * 2, sum[row][column][2 * half],
                sum[row][column][2 * half + 1]);
  }
};

template <>
struct Engine<float> {
  static constexpr int kDepth = 16;
  static constexpr int kRowPitch = kDepth + 4;  // eight rows' chunks in eight bank groups
  static constexpr int kDepthPitch = kTile + 4;
  static constexpr int kSecond = kTile * kRowPitch;
  static constexpr int kStageElements = 2 * kTile * kRowPitch;
  static_assert(kDepth * kDepthPitch <= kTile * kRowPitch);

  static __device__ int rows_at(int row, int chunk) { return row * kRowPitch + chunk * 4; }
  static __device__ int depth_at(int row, int chunk) { return row * kDepthPitch + chunk * 4; }

  float sum[8][8];  // rows y + 16 i; columns x + 16 j, or for depth-major ones runs of four

  __device__ Engine() {
    for (auto& row : sum)
      for (float& value : row) value = 0;
  }

  template <bool depth_major>
  __device__ void multiply(const float* stage) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const float* second = stage + kSecond;
#pragma unroll
    for (int chunk = 0; chunk < kDepth / 4; ++chunk) {
      float a[8][4];
#pragma unroll
      for (int i = 0; i < 8; ++i) load_four(a[i], stage + rows_at(y + 16 * i, chunk));
      if constexpr (depth_major) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          float b[8];
          load_four(b, second + depth_at(chunk * 4 + k, x));
          load_four(b + 4, second + depth_at(chunk * 4 + k, x + 16));
#pragma unroll
          for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) sum[i][j] = fmaf(a[i][k], b[j], sum[i][j]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          float b[4];
          load_four(b, second + rows_at(x + 16 * j, chunk));
#pragma unroll
          for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int k = 0; k < 4; ++k) sum[i][j] = fmaf(a[i][k], b[k], sum[i][j]);
        }
      }
    }
  }

  template <bool depth_major, typename Write>
  __device__ void for_each_value(const Write& write) const {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
        write(y + 16 * i, depth_major ? j / 4 * 64 + x * 4 + j % 4 : x + 16 * j, sum[i][j]);
  }

 private:
  static __device__ void load_four(float* to, const float* from) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x;
    to[1] = four.y;
    to[2] = four.z;
    to[3] = four.w;
  }
};

// Calls write(row, column, value) for each value of the tile that the thread holds.
template <bool depth_major, typename T, typename Write>
__device__ __forceinline__ void for_each_value(const Engine<T>& engine, const Write& write) {
  if constexpr (std::is_same_v<T, float>) {
    engine.template for_each_value<depth_major>(write);
  } else {
    engine.template for_each_pair<depth_major>([&](int row, int column, float first, float second) {
      write(row, column, first);
      write(row, column + 1, second);
    });
  }
}

// Starts the copy of rows [row, row + 128) x columns [column, column + kDepth): zeros beyond the
// matrix.
template <typename T>
__device__ __forceinline__ void copy_rows(const Matrix<T>& from, int row, int column, T* to) {
  constexpr int size = 16 / sizeof(T), chunks = Engine<T>::kDepth / size;
#pragma unroll
  for (int i = threadIdx.x; i < kTile * chunks; i += kTileThreads) {
    const int r = i / chunks, c = i % chunks, left = from.columns - column - c * size;
    const bool inside = row + r < from.rows && left > 0;
    const T* at =
        inside ? from.data + int64_t{row + r} * from.pitch + column + c * size : from.data;
    async_copy_16(to + Engine<T>::rows_at(r, c), at,
                  inside ? min(left, size) * static_cast<int>(sizeof(T)) : 0);
  }
}

// The same of rows [row, row + kDepth) x columns [column, column + 128).
template <typename T>
__device__ __forceinline__ void copy_depth(const Matrix<T>& from, int row, int column, T* to) {
  constexpr int size = 16 / sizeof(T), chunks = kTile / size;
#pragma unroll
  for (int i = threadIdx.x; i < Engine<T>::kDepth * chunks; i += kTileThreads) {
    const int r = i / chunks, c = i % chunks, left = from.columns - column - c * size;
    const bool inside = row + r < from.rows && left > 0;
    const T* at =
        inside ? from.data + int64_t{row + r} * from.pitch + column + c * size : from.data;
    async_copy_16(to + Engine<T>::depth_at(r, c), at,
                  inside ? min(left, size) * static_cast<int>(sizeof(T)) : 0);
  }
}

// engine += first[row.., begin..end) . second, where second is taken by rows (its rows are the
// tile's columns), or with `depth_major` by columns. Ends with all of `ring` free for other use.
template <bool depth_major, typename T>
__device__ __forceinline__ void multiply_tile(Engine<T>& engine, const Matrix<T>& first, int row,
                                              const Matrix<T>& second, int column, int begin,
                                              int end, T* ring) {
  constexpr int depth = Engine<T>::kDepth;
  const int steps = (end - begin + depth - 1) / depth;
  const auto start = [&](int step) {
    if (step < steps) {
      T* stage = ring + step % kStages * Engine<T>::kStageElements;
      const int at = begin + step * depth;
      copy_rows(first, row, at, stage);
      if constexpr (depth_major)
        copy_depth(second, at, column, stage + Engine<T>::kSecond);
      else
        copy_rows(second, column, at, stage + Engine<T>::kSecond);
    }
    async_copy_commit();  // an empty group too, so that the count of groups is the count of steps
  };
  for (int step = 0; step < kStages - 1; ++step) start(step);
  for (int step = 0; step < steps; ++step) {
    async_copy_wait<kStages - 2>();
    __syncthreads();  // the stage has come for all, and the one to be filled next is done with
    start(step + kStages - 1);
    engine.template multiply<depth_major>(ring + step % kStages * Engine<T>::kStageElements);
  }
  async_copy_wait<0>();
  __syncthreads();
}

// Shared memory of the ring, which also holds the tile of scores between products.
template <typename T>
constexpr int kRingBytes = std::max<int>(kStages * Engine<T>::kStageElements * sizeof(T),
                                         kTile * kScorePitch * sizeof(float));

}  // namespace pacecore
