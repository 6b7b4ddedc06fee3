// What the tile kernels of info_nce take and give, whichever instruction set they are compiled for.
#pragma once

#include <cstdint>
#include <type_traits>

#include "info_nce_math.h"

namespace pacecore {

// Rows and columns of a tile at most, and the row stride of its scores: 147 KB in float32, which
// stay in the second-level cache. A whole number of panels in every instruction set.
constexpr int64_t kNceTile = 192;

// Group numbers as wide as the scores, so that comparing them masks the scores' lanes.
template <typename Real>
using NceId = std::conditional_t<sizeof(Real) == 8, int64_t, int32_t>;

// Column arrays reach to the end of the last panel, padded with group -1.
template <typename Real>
struct NceTile {
  int64_t rows, columns;
  bool diagonal;  // rows and columns are the same clips
  const NceId<Real>*row_ids, *column_ids;
  Real scale;  // logit = score * scale
};

// NceRow of many rows, field by field.
template <typename Real>
struct NceRows {
  const Real *reference, *all, *positive, *constant;
};

// A panel is a group of rows of z, feature-major, with zero rows up to a whole vector; it serves as
// the left side of a product (one value broadcast) and as the right side (vectors).
template <typename Real>
struct NceTileKernels {
  int64_t panel;  // rows of a panel

  void (*pack_panel)(const Real* z, int64_t rows, int64_t features, Real* panel);

  // scores (rows, columns) = left . right, written to the end of the last panels.
  void (*scores)(const Real* left, int64_t rows, const Real* right, int64_t columns,
                 int64_t features, Real* scores);

  // Turns scores into logits in place and adds them to the sums of the tile's rows.
  void (*row_sums)(const NceTile<Real>& tile, Real* scores, NceSums<double>* sums);

  // Adds the logits, which are symmetric, to the sums of the tile's columns.
  void (*column_sums)(const NceTile<Real>& tile, const Real* logits, NceSums<double>* sums);

  // Turns scores, or with has_logits what row_sums has left, into weights in place: d loss / d
  // logit of the pair both ways round. Zero for a clip with itself and beyond the last row and
  // column.
  void (*weights)(const NceTile<Real>& tile, const NceRows<Real>& row, const NceRows<Real>& column,
                  bool has_logits, Real* scores);

  // into (rows, features) += weights (rows, depth) . z (depth, features), rows rounded up to a
  // panel; `transposed` reads the tile by columns. buffer: kNceTile * panel.
  void (*product)(const Real* weights, bool transposed, int64_t rows, int64_t depth, const Real* z,
                  int64_t features, Real* into, int64_t into_row, Real* buffer);
};

// nullptr where the compiler had no such instructions; whether the processor has them is the
// caller's question.
template <typename Real>
const NceTileKernels<Real>* avx2_tile_kernels();
template <typename Real>
const NceTileKernels<Real>* avx512_tile_kernels();

}  // namespace pacecore
