// Products of 128 x 128 tiles by a block of 128 threads: 16-bit types on the tensor cores, float by
// true float fused multiply-add. Operands go through a ring of stages in shared memory, filled by
// asynchronous copies of 16 bytes while earlier stages are multiplied.
#pragma once

#include <algorithm>

#include "info_nce.h"

namespace pacecore {

constexpr int kTileThreads = 128;
static_assert(kTileThreads == kTile);  // after the product a thread has a row or a column

// How an operand lies in memory. Its tile is 128 long across the sum and kDepth along it:
enum class Order {
  kRows,   // across by along, as the first operand of a product is
  kDepth,  // along by across, as the second is
};

// A matrix in global memory, rows of `pitch` elements. Address, pitch and columns are multiples of
// 16 bytes.
template <typename T>
struct Matrix {
  const T* data;
  int rows, columns, pitch;
};

// Neighbouring floats moved as one.
template <int count>
struct alignas(count * sizeof(float)) Run {
  float values[count];
};

template <int count>
__device__ __forceinline__ void load_run(float* to, const float* from) {
  const auto run = *reinterpret_cast<const Run<count>*>(from);
#pragma unroll
  for (int i = 0; i < count; ++i) to[i] = run.values[i];
}

template <int count>
__device__ __forceinline__ void store_run(float* to, const float* from) {
  Run<count> run;
#pragma unroll
  for (int i = 0; i < count; ++i) run.values[i] = from[i];
  *reinterpret_cast<Run<count>*>(to) = run;
}

// Where a score lies in shared memory, in floats. Chunks of four are shuffled so that these meet in
// no bank: the accumulators' pairs, a chunk of eight rows, one column of each of 32 neighbours.
__device__ __forceinline__ int score_at(int row, int column) {
  return row * kTile + ((column / 4 ^ (row % 4 * 2 + row / 4 % 2)) * 4 + column % 4);
}

// How a stage lies in shared memory, and the accumulators that are fed from it.
template <typename T>
struct Engine {  // 16-bit types
  static constexpr int kDepth = 32;
  static constexpr int kStages = 4;
  static constexpr int kSecond = kTile * kDepth;  // where the second operand begins
  static constexpr int kStageElements = 2 * kSecond;

  // Eight lines' chunks of one place lie in eight different bank groups, in either order; after
  // kPeriod lines the shuffle is the same again.
  static constexpr int kPeriod = 8;
  template <Order order>
  static constexpr __device__ int chunk_at(int line, int chunk) {
    if constexpr (order == Order::kRows) return line * kDepth + (chunk ^ line / 2 % 4) * 8;
    return line * kTile + (chunk ^ line % 8) * 8;
  }

  float sum[4][8][4] = {};  // 4 x 8 blocks of 16 x 8 in a warp's 64 x 64

  // Two blocks of 8 columns from `column` on, of the 16 of the sum from `k` on.
  template <Order order>
  static __device__ void load_columns(uint32_t (&b)[2][2], const T* stage, int column, int k) {
    const int lane = threadIdx.x % 32;
    uint32_t four[4];
    if constexpr (order == Order::kRows)
      load_matrix_x4(
          four, stage + chunk_at<order>(column + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
    else
      load_matrix_x4_transposed(four,
                                stage + chunk_at<order>(k + lane % 16, column / 8 + lane / 16));
    b[0][0] = four[0];
    b[0][1] = four[1];
    b[1][0] = four[2];
    b[1][1] = four[3];
  }

  template <Order order>
  static __device__ void load_rows(uint32_t (&a)[4], const T* stage, int row, int k) {
    const int lane = threadIdx.x % 32;
    if constexpr (order == Order::kRows)
      load_matrix_x4(a, stage + chunk_at<order>(row + lane % 16, k / 8 + lane / 16));
    else
      load_matrix_x4_transposed(
          a, stage + chunk_at<order>(k + lane / 16 * 8 + lane % 8, row / 8 + lane / 8 % 2));
  }

  template <Order first, Order second>
  __device__ void multiply(const T* stage) {
    const int warp = threadIdx.x / 32, first_row = warp / 2 * 64, first_column = warp % 2 * 64;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t b[4][2][2];
#pragma unroll
      for (int pair = 0; pair < 4; ++pair)
        load_columns<second>(b[pair], stage + kSecond, first_column + pair * 16, k);
#pragma unroll
      for (int row = 0; row < 4; ++row) {
        uint32_t a[4];
        load_rows<first>(a, stage, first_row + row * 16, k);
#pragma unroll
        for (int column = 0; column < 8; ++column)
          mma_m16n8k16<T>(sum[row][column], a, b[column / 2][column % 2]);
      }
    }
  }

  // The pair of the thread in a block's upper or lower half.
  static __device__ int row_of(int row, int half) {
    return threadIdx.x / 64 * 64 + row * 16 + half * 8 + threadIdx.x % 32 / 4;
  }
  static __device__ int column_of(int column) {
    return threadIdx.x / 32 % 2 * 64 + column * 8 + threadIdx.x % 4 * 2;
  }

  // Of two operands in the order of rows.
  __device__ __forceinline__ void store_scores(float* scores) const {
#pragma unroll
    for (int row = 0; row < 4; ++row)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int column = 0; column < 8; ++column)
          store_run<2>(scores + score_at(row_of(row, half), column_of(column)),
                       &sum[row][column][2 * half]);
  }

  // Adds the product, of operands of which the second is in the order of depth, to the first
  // `width` columns of a matrix, or stores it there; a row at a time is on its way, as many as
  // there are registers for.
  template <Order first>
  __device__ __forceinline__ void add_to(float* matrix, int pitch, int width, bool adds) const {
#pragma unroll
    for (int row = 0; row < 4; ++row) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* line = matrix + int64_t{pitch} * row_of(row, half);
        float values[8][2] = {};
#pragma unroll
        for (int column = 0; column < 8; ++column)
          if (adds && column_of(column) < width)
            load_run<2>(values[column], line + column_of(column));
#pragma unroll
        for (int column = 0; column < 8; ++column) {
          values[column][0] += sum[row][column][2 * half];
          values[column][1] += sum[row][column][2 * half + 1];
          if (column_of(column) < width) store_run<2>(line + column_of(column), values[column]);
        }
      }
    }
  }
};

template <>
struct Engine<float> {
  static constexpr int kDepth = 16;
  static constexpr int kStages = 3;
  static constexpr int kRowPitch = kDepth + 4;  // eight rows' chunks in eight bank groups
  static constexpr int kDepthPitch = kTile + 4;
  static constexpr int kPeriod = 1;  // no shuffle
  static constexpr int kSecond = kTile * kRowPitch;
  static constexpr int kStageElements = 2 * kSecond;
  static_assert(kDepth * kDepthPitch <= kSecond);

  template <Order order>
  static constexpr __device__ int chunk_at(int line, int chunk) {
    return line * (order == Order::kRows ? kRowPitch : kDepthPitch) + chunk * 4;
  }

  float sum[16][8] = {};

  // Where the thread's row i and column i lie in the tile: single ones side by side with those of
  // the other threads, or, in the order in which neighbours lie together, four neighbours.
  template <Order order>
  static __device__ int row_of(int i) {
    const int y = threadIdx.x / 16;
    return order == Order::kRows ? y + 8 * i : i / 4 * 32 + y * 4 + i % 4;
  }
  template <Order order>
  static __device__ int column_of(int i) {
    const int x = threadIdx.x % 16;
    return order == Order::kRows ? x + 16 * i : i / 4 * 64 + x * 4 + i % 4;
  }

  // Four lines, whose places in the tile `line_of` gives, at four places of the sum.
  template <Order order, typename LineOf>
  static __device__ void load_4x4(float (&to)[4][4], const float* stage, int chunk,
                                  const LineOf& line_of) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (order == Order::kDepth) {
        float four[4];
        load_run<4>(four, stage + chunk_at<order>(chunk * 4 + i, line_of(0) / 4));
        for (int line = 0; line < 4; ++line) to[line][i] = four[line];
      } else {
        load_run<4>(to[i], stage + chunk_at<order>(line_of(i), chunk));
      }
    }
  }

  template <Order first, Order second>
  __device__ void multiply(const float* stage) {
#pragma unroll 1
    for (int chunk = 0; chunk < kDepth / 4; ++chunk) {
      float b[2][4][4];
#pragma unroll
      for (int j = 0; j < 2; ++j)
        load_4x4<second>(b[j], stage + kSecond, chunk,
                         [&](int line) { return column_of<second>(4 * j + line); });
#pragma unroll
      for (int i = 0; i < 16; i += 4) {
        float a[4][4];
        load_4x4<first>(a, stage, chunk, [&](int line) { return row_of<first>(i + line); });
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int row = 0; row < 4; ++row)
#pragma unroll
            for (int column = 0; column < 8; ++column)
              sum[i + row][column] =
                  fmaf(a[row][k], b[column / 4][column % 4][k], sum[i + row][column]);
      }
    }
  }

  __device__ __forceinline__ void store_scores(float* scores) const {
#pragma unroll
    for (int row = 0; row < 16; ++row)
#pragma unroll
      for (int column = 0; column < 8; ++column)
        scores[score_at(row_of<Order::kRows>(row), column_of<Order::kRows>(column))] =
            sum[row][column];
  }

  template <Order first>
  __device__ __forceinline__ void add_to(float* matrix, int pitch, int width, bool adds) const {
#pragma unroll
    for (int row = 0; row < 16; ++row) {
      float* line = matrix + int64_t{pitch} * row_of<first>(row);
      float values[2][4] = {};
#pragma unroll
      for (int run = 0; run < 2; ++run) {
        const int column = column_of<Order::kDepth>(4 * run);
        if (adds && column < width) load_run<4>(values[run], line + column);
      }
#pragma unroll
      for (int run = 0; run < 2; ++run) {
        const int column = column_of<Order::kDepth>(4 * run);
#pragma unroll
        for (int i = 0; i < 4; ++i) values[run][i] += sum[row][4 * run + i];
        if (column < width) store_run<4>(line + column, values[run]);
      }
    }
  }
};

// The thread's share of copying 128 lines of a matrix, kDepth further along the sum at every step:
// chunks of 16 bytes that lie kApart rows apart. Zeros beyond the matrix.
template <Order order, typename T>
struct Source {
  static constexpr bool kByRows = order == Order::kRows;
  static constexpr int kDepth = Engine<T>::kDepth, kSize = 16 / sizeof(T);
  static constexpr int kChunks = (kByRows ? kDepth : kTile) / kSize;  // of a row in a stage
  static constexpr int kApart = kTileThreads / kChunks;
  static constexpr int kRows = kByRows ? kTile : kDepth;
  static_assert(kApart % Engine<T>::kPeriod == 0);

  const T* at;                  // the first chunk
  int rows_left, columns_left;  // of the matrix, from there on
  int64_t pitch;
  int place;  // of the first chunk in a stage

  __device__ Source(const Matrix<T>& from, int line, int depth) : pitch(from.pitch) {
    const int r = threadIdx.x / kChunks, c = threadIdx.x % kChunks;
    const int row = (kByRows ? line : depth) + r, column = (kByRows ? depth : line) + c * kSize;
    at = from.data + row * pitch + column;
    rows_left = from.rows - row;
    columns_left = from.columns - column;
    place = Engine<T>::template chunk_at<order>(r, c);
  }

  __device__ __forceinline__ void start_copy(T* stage) {
#pragma unroll
    for (int i = 0; i * kApart < kRows; ++i) {
      const bool inside = i * kApart < rows_left && columns_left > 0;
      async_copy_16(stage + place + Engine<T>::template chunk_at<order>(i * kApart, 0),
                    at + i * kApart * pitch, inside ? 16 : 0);
    }
    at += kByRows ? kDepth : kDepth * pitch;
    (kByRows ? columns_left : rows_left) -= kDepth;
  }
};

// engine += first[row.., begin..end) . second[begin..end, column..), where an operand in the order
// that is not its own lies transposed. Ends with all of `ring` free for other use.
template <Order first_order, Order second_order, typename T>
__device__ __forceinline__ void multiply_tile(Engine<T>& engine, const Matrix<T>& first, int row,
                                              const Matrix<T>& second, int column, int begin,
                                              int end, T* ring) {
  constexpr int stages = Engine<T>::kStages;
  const int steps = (end - begin + Engine<T>::kDepth - 1) / Engine<T>::kDepth;
  Source<first_order, T> first_source(first, row, begin);
  Source<second_order, T> second_source(second, column, begin);
  const auto start = [&](int step) {
    if (step < steps) {
      T* stage = ring + step % stages * Engine<T>::kStageElements;
      first_source.start_copy(stage);
      second_source.start_copy(stage + Engine<T>::kSecond);
    }
    async_copy_commit();  // an empty group too, so that the count of groups is the count of steps
  };
  for (int step = 0; step < stages - 1; ++step) start(step);
  for (int step = 0; step < steps; ++step) {
    async_copy_wait<stages - 2>();
    __syncthreads();  // the stage has come for all, and the one to be filled next is done with
    start(step + stages - 1);
    engine.template multiply<first_order, second_order>(ring +
                                                        step % stages * Engine<T>::kStageElements);
  }
  async_copy_wait<0>();
  __syncthreads();
}

// scores = z[first_row..] . z[first_column..]^T for all of the block, in the memory of the ring.
template <typename T>
__device__ __forceinline__ float* make_scores(const NceArgs& nce, const T* z, int first_row,
                                              int first_column, void* ring) {
  const Matrix<T> matrix = {z, nce.n, nce.pitch, nce.pitch};
  float* scores = static_cast<float*>(ring);
  Engine<T> engine;
  multiply_tile<Order::kRows, Order::kRows>(engine, matrix, first_row, matrix, first_column, 0,
                                            nce.pitch, static_cast<T*>(ring));
  engine.store_scores(scores);
  __syncthreads();
  return scores;
}

template <typename T>
__device__ float exponential(float x) {
  if constexpr (std::is_same_v<T, float>) return expf(x);
  return power_of_two(x * 1.4426950408889634f);  // exact enough beside scores of 16-bit factors
}

// Shared memory of the ring, which also holds the tile of scores between products.
template <typename T>
constexpr int kRingBytes = std::max<int>(Engine<T>::kStages * Engine<T>::kStageElements * sizeof(T),
                                         kTile * kTile * sizeof(float));

}  // namespace pacecore
