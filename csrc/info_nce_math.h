// The arithmetic of info_nce that CPU and CUDA share: log-sum-exp sums of one row, their merge, and
// what follows from them. No torch include.
//
// Letters: n embeddings, l(i, j) = z(i).z(j) / temperature the logit of a pair, P(i) the other
// members of i's group (its positives), N(i) all the rest. A the anchors, the rows whose loss is
// averaged.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define PACECORE_SHARED_MATH __host__ __device__ __forceinline__
#else
// Always inlined: the same header is compiled for several instruction sets, and a copy made for one
// of them must not be what the linker keeps for all.
#define PACECORE_SHARED_MATH inline __attribute__((always_inline))
#endif

namespace pacecore {

// Norms below this count as 0: such a row is normalised to zeros and gets no gradient.
constexpr double kNceSmallestNorm = 1e-12;

// What a row's other clips add up to, with exponentials relative to the largest logit. Positives
// and negatives are kept apart: 1 - p(positive), on which the gradient of a well-trained row rests,
// is then negative / (positive + negative), and not a difference of two numbers near 1.
template <typename Real>
struct NceSums {
  Real largest = -INFINITY;           // max over j != i of l
  Real positive = 0;                  // sum over P(i) of exp(l - largest)
  Real negative = 0;                  // sum over N(i) of exp(l - largest)
  Real weighted = 0;                  // sum over j != i of exp(l - largest) * (l - largest)
  Real positive_logits = 0;           // sum over P(i) of l
  Real negative_logits = 0;           // sum over N(i) of l
  Real nearest_positive = -INFINITY;  // max over P(i) of l
  Real nearest_negative = -INFINITY;  // max over N(i) of l
};

// Moves the exponentials of `sums` to a larger reference.
template <typename Real>
PACECORE_SHARED_MATH void rescale(NceSums<Real>& sums, Real largest) {
  if (sums.largest == largest || sums.largest == -INFINITY) {
    sums.largest = largest;
    return;
  }
  const Real shift = sums.largest - largest;
  const Real factor = std::exp(shift);
  // A row whose old sums vanish beside the new ones: 0 * -inf would be NaN.
  sums.weighted = factor == Real(0)
                      ? Real(0)
                      : factor * (sums.weighted + shift * (sums.positive + sums.negative));
  sums.positive *= factor;
  sums.negative *= factor;
  sums.largest = largest;
}

template <typename Real>
PACECORE_SHARED_MATH void merge(NceSums<Real>& into, NceSums<Real> from) {
  if (from.largest > into.largest)
    rescale(into, from.largest);
  else
    rescale(from, into.largest);
  into.positive += from.positive;
  into.negative += from.negative;
  into.weighted += from.weighted;
  into.positive_logits += from.positive_logits;
  into.negative_logits += from.negative_logits;
  if (from.nearest_positive > into.nearest_positive) into.nearest_positive = from.nearest_positive;
  if (from.nearest_negative > into.nearest_negative) into.nearest_negative = from.nearest_negative;
}

// d loss / d l(i, j) of one row i as a function of e = exp(l(i, j) - reference):
//   all * e                    for a negative j,
//   positive * e + constant    for a positive j.
// A row that adds nothing to the loss has zeros, and a reference so large that e is 0.
template <typename Real>
struct NceRow {
  Real reference = 3e38f;
  Real all = 0;
  Real positive = 0;
  Real constant = 0;
};

// What one row adds to the sums over anchors.
struct NceTerms {
  double loss = 0;
  double slope = 0;  // -temperature * d loss / d temperature
};

// Eq. 2 and 3 with a denominator per anchor: loss(i) = logsumexp(l(i, .)) - mean of l over P(i).
PACECORE_SHARED_MATH NceTerms anchor_terms(const NceSums<double>& sums, int64_t positives) {
  NceTerms terms;
  if (positives == 0) return terms;
  const double total = sums.positive + sums.negative;
  const double mean_positive = sums.positive_logits / double(positives) - sums.largest;
  terms.slope = sums.weighted / total - mean_positive;
  // With one positive on top, log(total) + ... would be a small difference of large numbers.
  terms.loss = positives == 1 && sums.positive > sums.negative
                   ? std::log1p(sums.negative / sums.positive)
                   : std::log(total) - mean_positive;
  return terms;
}

// The row's gradient when the mean is over `anchors` rows.
template <typename Real>
PACECORE_SHARED_MATH NceRow<Real> anchor_row(const NceSums<double>& sums, int64_t positives,
                                             int64_t anchors) {
  NceRow<Real> row;
  if (positives == 0) return row;
  const double scale = 1.0 / ((sums.positive + sums.negative) * double(anchors));
  row.reference = Real(sums.largest);
  row.all = Real(scale);
  if (positives == 1) {
    row.constant = Real(-sums.negative * scale);
  } else {
    row.positive = Real(scale);
    row.constant = Real(-1.0 / (double(positives) * double(anchors)));
  }
  return row;
}

// The same two with one denominator, the sum over all pairs of the batch: `batch` is the merge of
// every row's sums. loss(i) = log(denominator) - mean of l over P(i).
PACECORE_SHARED_MATH NceTerms batch_terms(const NceSums<double>& sums, const NceSums<double>& batch,
                                          int64_t positives) {
  NceTerms terms;
  if (positives == 0) return terms;
  const double total = batch.positive + batch.negative;
  const double mean_positive = sums.positive_logits / double(positives) - batch.largest;
  terms.loss = std::log(total) - mean_positive;
  terms.slope = batch.weighted / total - mean_positive;
  return terms;
}

// `pulling`: how many anchors have a positive, each of which adds log(denominator) once.
template <typename Real>
PACECORE_SHARED_MATH NceRow<Real> batch_row(const NceSums<double>& batch, bool is_anchor,
                                            int64_t positives, int64_t anchors, int64_t pulling) {
  NceRow<Real> row;
  if (pulling == 0) return row;
  row.reference = Real(batch.largest);
  row.all = Real(double(pulling) / ((batch.positive + batch.negative) * double(anchors)));
  row.positive = row.all;
  if (is_anchor && positives > 0) row.constant = Real(-1.0 / (double(positives) * double(anchors)));
  return row;
}

}  // namespace pacecore
