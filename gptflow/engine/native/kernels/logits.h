// What is read off every row of logits: the largest, where it is, and the log of the sum of all.
#pragma once

#include "common.h"

namespace gptflow {

inline void summarize_row(const float* row, int width, float* peak, int64_t* place, float* normalizer) {
  __m512 top = _mm512_set1_ps(-INFINITY);
  __m512i where = _mm512_setzero_si512(), at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i step = _mm512_set1_epi32(kLanes);
  bool spoiled = false;
  for (int i = 0; i < width; i += kLanes, at = _mm512_add_epi32(at, step)) {
    const __mmask16 real = lanes(width - i);
    const __m512 x = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), real, row + i);
    spoiled |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) != 0;
    const __mmask16 above = _mm512_cmp_ps_mask(x, top, _CMP_GT_OQ);
    top = _mm512_mask_mov_ps(top, above, x);
    where = _mm512_mask_mov_epi32(where, above, at);
  }
  *peak = _mm512_reduce_max_ps(top);
  // Of equal ones the first, as torch does.
  const __mmask16 best = _mm512_cmp_ps_mask(top, _mm512_set1_ps(*peak), _CMP_EQ_OQ);
  *place = best ? _mm512_mask_reduce_min_epi32(best, where) : 0;
  if (spoiled || !std::isfinite(*peak)) {
    *normalizer = spoiled || *peak > 0 ? NAN : -INFINITY;
    if (spoiled) *peak = NAN;
    return;
  }
  const __m512 shift = _mm512_set1_ps(*peak);
  __m512 total = _mm512_setzero_ps();
  for (int i = 0; i < width; i += kLanes) {
    const __mmask16 real = lanes(width - i);
    const __m512 x = _mm512_maskz_loadu_ps(real, row + i);
    total = _mm512_mask_add_ps(total, real, total, exp16(_mm512_sub_ps(x, shift)));
  }
  *normalizer = *peak + std::log(sum16(total));
}

inline void summarize(const float* logits, int rows, int width, int64_t stride, float* peaks,
                      int64_t* places, float* normalizers) {
#pragma omp parallel for schedule(static) if (rows > 1)
  for (int row = 0; row < rows; ++row)
    summarize_row(logits + row * stride, width, peaks + row, places + row, normalizers + row);
}

}  // namespace gptflow
