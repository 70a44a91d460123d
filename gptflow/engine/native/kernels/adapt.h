// Low-rank additions of many adapters: y += (x A^T) B for rows of different A and B.
#pragma once

#include "common.h"

namespace gptflow {

constexpr int kTogether = 4;     // rows of one adapter that share each read of its matrices
constexpr int kMaxRank = 256;

// Up to kTogether rows of one adapter: `count` row numbers from order[begin] on.
struct Block {
  int32_t adapter, begin, count;
};

// One adapter's matrices of all layers, null if it has none: A [layers][rank][inputs] and
// B [layers][rank][outputs].
struct Matrices {
  const void* a;
  const void* b;
  int32_t rank;
};

inline __m512 load(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }

inline __m512 load(const uint16_t* from, __mmask16 mask) {  // half precision
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
}

// low[row][rank] = x . A, four ranks at a time; those beyond the last repeat it.
template <int N, class T>
void project_down(const float* const* x, const T* a, int rank, int inputs,
                  float (*low)[kMaxRank + kTogether]) {
  for (int first = 0; first < rank; first += kTogether) {
    __m512 sums[N][kTogether];
    const T* from[kTogether];
    for (int k = 0; k < kTogether; ++k) {
      from[k] = a + static_cast<size_t>(std::min(first + k, rank - 1)) * inputs;
      for (int n = 0; n < N; ++n) sums[n][k] = _mm512_setzero_ps();
    }
    for (int i = 0; i < inputs; i += kLanes) {
      const __mmask16 mask = lanes(inputs - i);
      __m512 row[N];
      for (int n = 0; n < N; ++n) row[n] = _mm512_maskz_loadu_ps(mask, x[n] + i);
      for (int k = 0; k < kTogether; ++k) {
        const __m512 weight = load(from[k] + i, mask);
        for (int n = 0; n < N; ++n) sums[n][k] = _mm512_fmadd_ps(row[n], weight, sums[n][k]);
      }
    }
    for (int n = 0; n < N; ++n)
      for (int k = 0; k < kTogether; ++k) low[n][first + k] = sum16(sums[n][k]);
  }
}

// y[row] += low[row] B, two vectors of columns at a time.
template <int N, class T>
void project_up(const float (*low)[kMaxRank + kTogether], const T* b, int rank, int outputs,
                float* const* y) {
  for (int o = 0; o < outputs; o += 2 * kLanes) {
    const __mmask16 left = lanes(outputs - o), right = lanes(outputs - o - kLanes);
    __m512 sums[N][2];
    for (int n = 0; n < N; ++n) {
      sums[n][0] = _mm512_maskz_loadu_ps(left, y[n] + o);
      sums[n][1] = _mm512_maskz_loadu_ps(right, y[n] + o + kLanes);
    }
    for (int r = 0; r < rank; ++r) {
      const T* from = b + static_cast<size_t>(r) * outputs + o;
      const __m512 one = load(from, left);
      const __m512 two = load(from + kLanes, right);
      for (int n = 0; n < N; ++n) {
        const __m512 factor = _mm512_set1_ps(low[n][r]);
        sums[n][0] = _mm512_fmadd_ps(factor, one, sums[n][0]);
        sums[n][1] = _mm512_fmadd_ps(factor, two, sums[n][1]);
      }
    }
    for (int n = 0; n < N; ++n) {
      _mm512_mask_storeu_ps(y[n] + o, left, sums[n][0]);
      _mm512_mask_storeu_ps(y[n] + o + kLanes, right, sums[n][1]);
    }
  }
}

// Asks for memory that is soon needed: matrices are too short for the processor to see it coming.
template <class T>
void fetch_ahead(const T* from, size_t count) {
  constexpr size_t kLine = 64 / sizeof(T);
  for (size_t i = 0; i < count; i += kLine) _mm_prefetch(from + i, _MM_HINT_T0);
}

template <int N, class T>
void adapt_rows(const float* x, int64_t x_stride, float* y, int64_t y_stride, const int32_t* rows,
                const T* a, const T* b, int rank, int inputs, int outputs) {
  const float* from[N];
  float* to[N];
  for (int n = 0; n < N; ++n) {
    from[n] = x + rows[n] * x_stride;
    to[n] = y + rows[n] * y_stride;
  }
  float low[N][kMaxRank + kTogether];
  fetch_ahead(b, static_cast<size_t>(rank) * outputs);
  project_down<N, T>(from, a, rank, inputs, low);
  project_up<N, T>(low, b, rank, outputs, to);
}

// T: what the matrices are kept in. layer: which of theirs is meant.
template <class T>
void adapt(const float* x, int64_t x_stride, float* y, int64_t y_stride, const Block* blocks,
           int count, const int32_t* order, const Matrices* adapters, int layer, int inputs,
           int outputs) {
#pragma omp parallel for schedule(static) if (count >= kSmallRows)
  for (int i = 0; i < count; ++i) {
    const Block& block = blocks[i];
    const Matrices& own = adapters[block.adapter];
    if (!own.a) continue;
    const size_t first = static_cast<size_t>(layer) * own.rank;
    const T* a = static_cast<const T*>(own.a) + first * inputs;
    const T* b = static_cast<const T*>(own.b) + first * outputs;
    const auto run = [&](auto step) {
      step(x, x_stride, y, y_stride, order + block.begin, a, b, own.rank, inputs, outputs);
    };
    switch (block.count) {
      case 1: run(adapt_rows<1, T>); break;
      case 2: run(adapt_rows<2, T>); break;
      case 3: run(adapt_rows<3, T>); break;
      default: run(adapt_rows<4, T>);
    }
  }
}

}  // namespace gptflow
