// Linear layers whose weights are on a grid: in every 32 of a row, w = step * q + offset with q of
// 0 to 15. So are those of files with 4 bits a weight (llama.cpp's Q4_0, Q4_1 and Q4_K).
//
// Nothing is lost when such a weight is kept as its q, so only inputs need precision. The
// instruction for bytes is worth two of those for 16 bits, but a byte of input is too little and
// two would cost what 16 bits cost. With weights this short a byte has room for two of them, and
// three bytes carry two inputs a, b of 11 bits and a sign:
//
//   a = 16 s1 + s2 + s3,  b = s1 + 16 s2
//   p a + q b = (16 p + q) s1 + (p + 16 q) s2 + p s3
//
// The three factors of p and q are the byte that holds both, the same with its halves swapped, and
// its upper half. Every pair up to kTop has such bytes: 16 b - a = 255 s2 - s3, so s2 is the
// quotient by 255, s3 what is left, and s1 = b - 16 s2.
#pragma once

#include "formats.h"

namespace gptflow {

// Inputs 0 to 15 of a part are paired with 16 to 31; a part is all s1, then all s2, then all s3.
inline void quantize_pairs(const __m512 x[4], uint8_t* numbers, float* scale, float* sums) {
  const __m512 factor = scale_block<kGrid>(x, scale);
  for (int part = 0; part < kParts; ++part) {
    const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(x[2 * part], factor));
    const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(x[2 * part + 1], factor));
    const __m512i mixed = _mm512_sub_epi32(_mm512_slli_epi32(b, 4), a);
    const __m512i s2 = _mm512_cvtps_epi32(
        _mm512_mul_ps(_mm512_cvtepi32_ps(mixed), _mm512_set1_ps(1.0f / 255.0f)));
    const __m512i s3 = _mm512_sub_epi32(_mm512_sub_epi32(_mm512_slli_epi32(s2, 8), s2), mixed);
    const __m512i s1 = _mm512_sub_epi32(b, _mm512_slli_epi32(s2, 4));
    sums[part] = static_cast<float>(_mm512_reduce_add_epi32(_mm512_add_epi32(a, b)));
    __m128i* to = reinterpret_cast<__m128i*>(numbers) + 3 * part;
    _mm_storeu_si128(to, _mm512_cvtepi32_epi8(s1));
    _mm_storeu_si128(to + 1, _mm512_cvtepi32_epi8(s2));
    _mm_storeu_si128(to + 2, _mm512_cvtepi32_epi8(s3));
  }
}

// As tile_product in linear.h.
template <int R, bool First>
inline void grid_product(const uint8_t* packed, const Rows& rows, int first, int blocks,
                         Ahead ahead, __m512 total[R][2]) {
  const size_t at = static_cast<size_t>(first) * blocks;
  const size_t stride = blocks * kRowBlock<kGrid>;
  const uint8_t* x = rows.numbers.data() + at * kRowBlock<kGrid>;
  const float* scales = rows.scales.data() + at;
  const float* sums = rows.sums.data() + at * kParts;
  const __m512i low = _mm512_set1_epi8(0x0f);
  for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = _mm512_setzero_ps();
  for (int b = 0; b < blocks; ++b) {
    for (int i = 0; i < ahead.lines; ++i, ahead.at += 64) _mm_prefetch(ahead.at, _MM_HINT_T1);
    __m512 block[R][2];
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      __m512i sum[R][2];
      for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int step = 0; step < kPart / 8; ++step, packed += 128, x += 4) {
        if constexpr (First) {
          _mm_prefetch(packed + kAhead, _MM_HINT_T0);
          _mm_prefetch(packed + kAhead + 64, _MM_HINT_T0);
        }
        __m512i weights[3][2];
        for (int half = 0; half < 2; ++half) {
          const __m512i both = _mm512_loadu_si512(packed + half * 64);
          const __m512i upper = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
          weights[0][half] = both;
          // (both << 4 where `low` is not) | upper
          weights[1][half] =
              _mm512_ternarylogic_epi32(_mm512_slli_epi16(both, 4), upper, low, 0xdc);
          weights[2][half] = upper;
        }
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s)
          for (int r = 0; r < R; ++r) {
            int32_t four;
            std::memcpy(&four, x + r * stride + s * 16, 4);
            const __m512i v = _mm512_set1_epi32(four);
            sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], weights[s][0], v);
            sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], weights[s][1], v);
          }
      }
      x += 2 * kPart / 2;  // s2 and s3 of this part
      const float* grid = reinterpret_cast<const float*>(packed);
      packed += 2 * kTile * sizeof(float);
      for (int half = 0; half < 2; ++half) {
        const __m512 steps = _mm512_loadu_ps(grid + half * kLanes);
        const __m512 offsets = _mm512_loadu_ps(grid + kTile + half * kLanes);
        for (int r = 0; r < R; ++r) {
          const size_t own = (static_cast<size_t>(r) * blocks + b) * kParts + part;
          const __m512 offset = _mm512_mul_ps(offsets, _mm512_set1_ps(sums[own]));
          const __m512 before = part ? _mm512_add_ps(offset, block[r][half]) : offset;
          block[r][half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][half]), steps, before);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      const __m512 scale = _mm512_set1_ps(scales[static_cast<size_t>(r) * blocks + b]);
      for (int half = 0; half < 2; ++half)
        total[r][half] = _mm512_fmadd_ps(block[r][half], scale, total[r][half]);
    }
  }
}

// Where a part of a row is on a grid.
struct Fit {
  float step = 0, offset = 0;
  uint8_t q[kPart] = {};
};

// How many bits after the leading one `count` numbers are kept to: 7 by bfloat16, 10 by float16.
inline int kept_bits(const float* w, int count) {
  uint32_t any = 0;
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, w + i, sizeof bits);
    any |= bits;
  }
  return !(any & 0xffff) ? 7 : !(any & 0x1fff) ? 10 : 23;
}

// By how much rounding to so many bits moves a number at most.
inline float rounding(float x, int bits) {
  return x == 0 ? 0.0f : std::ldexp(1.0f, std::ilogb(x) - bits - 1);
}

// Finds the grid of `count` weights of a row, if there is one: the smallest and the largest are
// on it, so there are only fifteen to try. Least squares take out what rounding did to those two.
//
// A weight may be off by what rounding has moved it, and by a little for what that did to the grid
// itself: a model that was trained after its weights were put on a grid has left it, however small
// the change, and is kept as it is. And by a quarter of a step, for weights that differ by less
// than they are rounded by would be near any grid.
inline bool fit(const float* w, int count, Fit& found) {
  found = Fit{};
  // Where one is not a number, minima and maxima mean nothing.
  if (!std::all_of(w, w + count, [](float x) { return std::isfinite(x); })) return false;
  const auto [least, most] = std::minmax_element(w, w + count);
  const float from = *least, range = *most - from;
  const float peak = std::max(std::fabs(from), std::fabs(*most));
  if (peak > 0x1p100f) return false;  // times a sum of inputs it may be too large for a float
  const int bits = kept_bits(w, count);
  const float lax = std::max(0.75f * rounding(peak, bits), peak * 0x1p-18f);
  // Differences too small to divide by are none.
  const bool flat = !std::isfinite(15 / range);
  for (int levels = 15; levels > 0; --levels) {
    const float factor = flat ? 0.0f : levels / range;
    float worst = 0, sum = 0, squares = 0, weights = 0, products = 0;
    for (int i = 0; i < count; ++i) {
      const float x = (w[i] - from) * factor, q = std::nearbyint(x);
      worst = std::max(worst, std::fabs(x - q));
      found.q[i] = static_cast<uint8_t>(q);
      sum += q, squares += q * q, weights += w[i] - from, products += q * (w[i] - from);
    }
    if (worst > peak * factor / 64) continue;
    const float spread = count * squares - sum * sum;
    found.step = spread > 0 ? (count * products - sum * weights) / spread : 0.0f;
    found.offset = from + (weights - found.step * sum) / count;
    bool close = true;
    for (int i = 0; i < count; ++i) {
      const float off = std::fabs(found.step * found.q[i] + found.offset - w[i]);
      close &= off <= rounding(w[i], bits) + lax && (flat || off <= found.step / 4);
    }
    if (close) return true;
  }
  return false;
}

// Whether all of `weight` [outputs][inputs] is on grids. A few weights always are, so they say
// nothing.
inline bool on_grid(const float* weight, int outputs, int inputs) {
  int off = inputs < kPart;
#pragma omp parallel for schedule(static) reduction(+ : off)
  for (int row = 0; row < outputs; ++row)
    for (int at = 0; at < inputs && !off; at += kPart) {
      Fit found;
      off += !fit(weight + static_cast<size_t>(row) * inputs + at, std::min(kPart, inputs - at), found);
    }
  return !off;
}

// Packs one block of the tile that begins with output `first`; see `pack` in linear.h.
inline void pack_grid(const float* weight, const float* second, int outputs, int inputs, int first,
                      int block, uint8_t* to) {
  for (int part = 0; part < kParts; ++part) {
    float* grid = reinterpret_cast<float*>(to + kTile * kPart / 2);
    for (int column = 0; column < kTile; ++column) {
      const bool in_second = second && column >= kLanes;
      const int row = first + (in_second ? column - kLanes : column);
      const int input = block * kBlock + part * kPart;
      Fit found;
      if (row < outputs && input < inputs)
        fit((in_second ? second : weight) + static_cast<size_t>(row) * inputs + input,
            std::min(kPart, inputs - input), found);
      grid[column] = found.step;
      grid[kTile + column] = found.offset;
      for (int i = 0; i < kPart / 2; ++i)
        to[i / 4 * 128 + column * 4 + i % 4] =
            static_cast<uint8_t>(found.q[i] << 4 | found.q[i + kPart / 2]);
    }
    to += kTileBlock<kGrid> / kParts;
  }
}

}  // namespace gptflow
