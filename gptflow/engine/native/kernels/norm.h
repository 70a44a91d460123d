// Root-mean-square normalisation (Zhang and Sennrich 2019).
#pragma once

#include "common.h"

namespace gptflow {

// y = x / sqrt(mean(x^2) + epsilon) * weight; x and y may be the same.
inline void rms_norm_row(const float* x, const float* weight, float epsilon, int width, float* y) {
  __m512 squares = _mm512_setzero_ps();
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const __m512 v = _mm512_loadu_ps(x + i);
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  const __mmask16 tail = lanes(width - i);
  const __m512 last = _mm512_maskz_loadu_ps(tail, x + i);
  squares = _mm512_fmadd_ps(last, last, squares);
  const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(sum16(squares) / width + epsilon));
  for (i = 0; i + kLanes <= width; i += kLanes)
    _mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor),
                                          _mm512_loadu_ps(weight + i)));
  _mm512_mask_storeu_ps(y + i, tail,
                        _mm512_mul_ps(_mm512_mul_ps(last, factor),
                                      _mm512_maskz_loadu_ps(tail, weight + i)));
}

inline void rms_norm(const float* x, const float* weight, float epsilon, int rows, int width,
                     float* y) {
#pragma omp parallel for schedule(static) if (rows >= kSmallRows)
  for (int row = 0; row < rows; ++row) {
    const size_t at = static_cast<size_t>(row) * width;
    rms_norm_row(x + at, weight, epsilon, width, y + at);
  }
}

inline std::vector<float>& row_scratch() {
  static thread_local std::vector<float> own;
  return own;
}

// y += norm(x).
inline void add_rms_norm(const float* x, const float* weight, float epsilon, int rows, int width,
                         float* y) {
#pragma omp parallel for schedule(static) if (rows >= kSmallRows)
  for (int row = 0; row < rows; ++row) {
    const size_t at = static_cast<size_t>(row) * width;
    float* normed = room(row_scratch(), width);
    rms_norm_row(x + at, weight, epsilon, width, normed);
    for (int i = 0; i < width; ++i) y[at + i] += normed[i];
  }
}

}  // namespace gptflow
