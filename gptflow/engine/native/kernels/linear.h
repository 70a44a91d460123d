// Linear layers over integers; formats.h says which.
#pragma once

#include "formats.h"
#include "grid.h"

namespace gptflow {

template <int F>
inline void quantize_block(const __m512 x[4], uint8_t* numbers, float* scale, int32_t* start) {
  const __m512 factor = scale_block<F>(x, scale);
  __m512i sum = _mm512_setzero_si512();
  for (int i = 0; i < 4; ++i) {
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], factor));
    if constexpr (F == kNarrow) {
      sum = _mm512_add_epi32(sum, q);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(numbers) + i, _mm512_cvtsepi32_epi8(q));
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers) + i, _mm512_cvtsepi32_epi16(q));
    }
  }
  if constexpr (F == kNarrow) *start = -128 * _mm512_reduce_add_epi32(sum);
}

// One row of `width` floats; the rest up to `rows.inputs` is zero.
inline void quantize_row(const float* x, int width, Rows& rows, int row) {
  const int blocks = rows.inputs / kBlock;
  for (int b = 0; b < blocks; ++b) {
    __m512 v[4];
    for (int i = 0; i < 4; ++i) {
      const int at = b * kBlock + i * kLanes;
      v[i] = _mm512_maskz_loadu_ps(lanes(width - at), x + at);
    }
    const size_t at = static_cast<size_t>(row) * blocks + b;
    with_format(rows.format, [&](auto format) {
      constexpr int F = decltype(format)::value;
      uint8_t* numbers = rows.numbers.data() + at * kRowBlock<F>;
      if constexpr (F == kGrid) quantize_pairs(v, numbers, &rows.scales[at], &rows.sums[at * kParts]);
      else quantize_block<F>(v, numbers, &rows.scales[at], &rows.starts[at]);
    });
  }
}

// Rows of `width` floats, as `linear` takes them.
inline void quantize(const float* x, int count, int width, const Linear& linear, Rows& rows) {
  rows.resize(count, linear);
#pragma omp parallel for schedule(static) if (count >= kSmallRows)
  for (int row = 0; row < count; ++row)
    quantize_row(x + static_cast<size_t>(row) * width, width, rows, row);
}

// The same of the rows' norms, which are not kept.
inline void quantize_normed(const float* x, const float* norm, float epsilon, int count, int width,
                            const Linear& linear, Rows& rows) {
  rows.resize(count, linear);
#pragma omp parallel for schedule(static) if (count >= kSmallRows)
  for (int row = 0; row < count; ++row) {
    float* y = room(row_scratch(), width);
    rms_norm_row(x + static_cast<size_t>(row) * width, norm, epsilon, width, y);
    quantize_row(y, width, rows, row);
  }
}

template <int F>
inline __m512i dot(__m512i sum, __m512i weights, __m512i inputs) {
  if constexpr (F == kNarrow) return _mm512_dpbusd_epi32(sum, weights, inputs);
  else return _mm512_dpwssd_epi32(sum, weights, inputs);
}

// Rows that share what is read of the weights. Their integer sums fill half the registers; the
// scaled ones wait in memory, as they are wanted once a block. On a grid they are wanted twice.
template <int F>
constexpr int kRowsAtOnce = F == kGrid ? 6 : 8;

// Integer sums of R rows with one tile, scaled and added up block by block. The first rows to use
// a tile ask for its own memory a little ahead; the others ask for that of the next tile.
template <int F, int R, bool First>
inline void tile_product(const uint8_t* packed, const Rows& rows, int first, int blocks,
                         Ahead ahead, __m512 total[R][2]) {
  constexpr int kBytes = kBlock * F;
  const uint8_t* x[R];
  const float* scales[R];
  const int32_t* starts[R];
  for (int r = 0; r < R; ++r) {
    const size_t at = static_cast<size_t>(first + r) * blocks;
    x[r] = rows.numbers.data() + at * kBytes;
    scales[r] = rows.scales.data() + at;
    starts[r] = rows.starts.data() + at;
    total[r][0] = total[r][1] = _mm512_setzero_ps();
  }
  for (int b = 0; b < blocks; ++b, packed += kTileBlock<F>) {
    for (int i = 0; i < ahead.lines; ++i, ahead.at += 64) _mm_prefetch(ahead.at, _MM_HINT_T1);
    __m512i sum[R][2];
    for (int r = 0; r < R; ++r)
      sum[r][0] = sum[r][1] = _mm512_set1_epi32(F == kNarrow ? starts[r][b] : 0);
// Unrolled in full: kept in a loop, the compiler moves the sums about between registers.
#pragma GCC unroll 32
    for (int step = 0; step < kBytes / 4; ++step) {
      if constexpr (First) {
        _mm_prefetch(packed + step * 128 + kAhead, _MM_HINT_T0);
        _mm_prefetch(packed + step * 128 + kAhead + 64, _MM_HINT_T0);
      }
      const __m512i w0 = _mm512_loadu_si512(packed + step * 128);
      const __m512i w1 = _mm512_loadu_si512(packed + step * 128 + 64);
      for (int r = 0; r < R; ++r) {
        int32_t four;
        std::memcpy(&four, x[r] + b * kBytes + step * 4, 4);
        const __m512i v = _mm512_set1_epi32(four);
        sum[r][0] = dot<F>(sum[r][0], w0, v);
        sum[r][1] = dot<F>(sum[r][1], w1, v);
      }
    }
    const float* weight_scales = reinterpret_cast<const float*>(packed + kTile * kBytes);
    const __m512 s0 = _mm512_loadu_ps(weight_scales), s1 = _mm512_loadu_ps(weight_scales + 16);
    for (int r = 0; r < R; ++r) {
      const __m512 s = _mm512_set1_ps(scales[r][b]);
      total[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][0]), _mm512_mul_ps(s, s0), total[r][0]);
      total[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][1]), _mm512_mul_ps(s, s1), total[r][1]);
    }
  }
}

// Calls `use(row, sums)` for each of `count` rows with the two vectors of one tile.
template <int F, typename Use>
inline void tile_rows(const uint8_t* packed, const Rows& rows, int first, int count, int blocks,
                      const Use& use) {
  // The passes after the first one share out what they ask for of the next tile.
  const size_t bytes = blocks * kTileBlock<F>;
  constexpr int kMost = kRowsAtOnce<F>;
  const int others = (count - 1) / kMost;
  const size_t share = others ? (bytes / others + 63) / 64 * 64 : 0;
  Ahead ahead{packed + bytes, static_cast<int>((share / 64 + blocks - 1) / blocks)};
  const auto run = [&](auto size, auto is_first) {
    constexpr int R = decltype(size)::value;
    constexpr bool kFirst = decltype(is_first)::value;
    __m512 total[R][2];
    const Ahead next = kFirst ? Ahead{packed, 0} : ahead;
    if constexpr (F == kGrid) grid_product<R, kFirst>(packed, rows, first, blocks, next, total);
    else tile_product<F, R, kFirst>(packed, rows, first, blocks, next, total);
    if (!kFirst) ahead.at += share;
    for (int r = 0; r < R; ++r) use(first + r, total[r]);
    first += R;
    count -= R;
  };
  const bool alone = count <= kMost;
  if (count >= kMost) run(std::integral_constant<int, kMost>{}, std::true_type{});
  while (count >= kMost) run(std::integral_constant<int, kMost>{}, std::false_type{});
  const auto rest = [&](auto size) {
    if constexpr (decltype(size)::value < kMost) {
      if (alone) run(size, std::true_type{});
      else run(size, std::false_type{});
    }
  };
  switch (count) {
    case 7: rest(std::integral_constant<int, 7>{}); break;
    case 6: rest(std::integral_constant<int, 6>{}); break;
    case 5: rest(std::integral_constant<int, 5>{}); break;
    case 4: rest(std::integral_constant<int, 4>{}); break;
    case 3: rest(std::integral_constant<int, 3>{}); break;
    case 2: rest(std::integral_constant<int, 2>{}); break;
    case 1: rest(std::integral_constant<int, 1>{}); break;
    default: break;
  }
}

template <typename Use>
inline void for_each_tile(const Linear& linear, const Rows& rows, int count, const Use& use) {
  const int tiles = linear.gated ? round_up(linear.outputs / 2, kLanes) / kLanes
                                 : round_up(linear.outputs, kTile) / kTile;
  const int blocks = linear.inputs / kBlock;
  // Many rows in one go would push their own inputs out of the second-level cache.
  constexpr int kGroupRows = 192;
  const int groups = (count + kGroupRows - 1) / kGroupRows;
  const int at_once = linear.format == kGrid ? kRowsAtOnce<kGrid> : kRowsAtOnce<kWide>;
  const int each = round_up((count + groups - 1) / groups, at_once);
#pragma omp parallel for collapse(2) schedule(static)
  for (int tile = 0; tile < tiles; ++tile)
    for (int group = 0; group < groups; ++group) {
      const int first = group * each;
      with_format(linear.format, [&](auto format) {
        constexpr int F = decltype(format)::value;
        tile_rows<F>(linear.packed + static_cast<size_t>(tile) * blocks * kTileBlock<F>, rows,
                     first, std::min(each, count - first), blocks,
                     [&](int row, const __m512 sums[2]) { use(tile, row, sums); });
      });
    }
}

// y[row][column] = (add ? y : 0) + x W^T + bias. Of a gated layer the gates come first.
inline void multiply(const Linear& linear, const Rows& rows, int count, float* y, bool add) {
  const int half_width = linear.outputs / 2;
  for_each_tile(linear, rows, count, [&](int tile, int row, const __m512 sums[2]) {
    for (int half = 0; half < 2; ++half) {
      const int column = linear.gated ? tile * kLanes : tile * kTile + half * kLanes;
      const int left = (linear.gated ? half_width : linear.outputs) - column;
      if (left <= 0) break;
      const __mmask16 mask = lanes(left);
      const size_t shift = linear.gated ? half * half_width : 0;
      float* to = y + static_cast<size_t>(row) * linear.outputs + shift + column;
      __m512 value = sums[half];
      if (linear.bias)
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, linear.bias + shift + column));
      if (add) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, to));
      _mm512_mask_storeu_ps(to, mask, value);
    }
  });
}

enum Activation : int32_t { kSilu = 0, kGeluTanh = 1 };

inline __m512 activate(__m512 x, int32_t activation) {
  return activation == kSilu ? silu16(x) : gelu_tanh16(x);
}

// y[row][column] = activation(gate) * up.
inline void multiply_gated(const Linear& linear, const Rows& rows, int count, int32_t activation,
                           float* y) {
  const int width = linear.outputs / 2;
  for_each_tile(linear, rows, count, [&](int tile, int row, const __m512 sums[2]) {
    const int column = tile * kLanes;
    const __m512 gated = _mm512_mul_ps(activate(sums[0], activation), sums[1]);
    _mm512_mask_storeu_ps(y + static_cast<size_t>(row) * width + column, lanes(width - column), gated);
  });
}

// Packs one block of the tile that begins with output `first`.
template <int F>
inline void pack_block(const float* weight, const float* second, int outputs, int inputs, int first,
                       int block, uint8_t* to) {
  float* scales = reinterpret_cast<float*>(to + kBlock * kTile * F);
  for (int column = 0; column < kTile; ++column) {
    const bool in_second = second && column >= kLanes;
    const int row = first + (in_second ? column - kLanes : column);
    const float* matrix = in_second ? second : weight;
    float values[kBlock], top = 0;
    for (int k = 0; k < kBlock; ++k) {
      const int input = block * kBlock + k;
      const bool real = row < outputs && input < inputs;
      values[k] = real ? matrix[static_cast<size_t>(row) * inputs + input] : 0.0f;
      top = std::max(top, std::fabs(values[k]));
    }
    scales[column] = top / kTop<F>;
    const float factor = top > 0 ? kTop<F> / top : 0.0f;
    for (int k = 0; k < kBlock; ++k) {
      const int q = static_cast<int>(std::nearbyint(values[k] * factor));
      constexpr int kPerStep = 4 / F;
      uint8_t* at = to + (k / kPerStep) * 128 + column * 4 + k % kPerStep * F;
      if constexpr (F == kNarrow) {
        *at = static_cast<uint8_t>(q + 128);
      } else {
        const int16_t wide = static_cast<int16_t>(q);
        std::memcpy(at, &wide, sizeof wide);
      }
    }
  }
}

// Packs `weight` [outputs][inputs]. For a gated layer `weight` holds the gates and `second` the
// ups: sixteen of each make a tile.
template <int F>
inline void pack(const float* weight, const float* second, int outputs, int inputs,
                 uint8_t* packed) {
  const int blocks = round_up(inputs, kBlock) / kBlock;
  const int per_tile = second ? kLanes : kTile;
  const int tiles = round_up(outputs, per_tile) / per_tile;
#pragma omp parallel for schedule(static)
  for (int tile = 0; tile < tiles; ++tile)
    for (int b = 0; b < blocks; ++b) {
      uint8_t* to = packed + (static_cast<size_t>(tile) * blocks + b) * kTileBlock<F>;
      if constexpr (F == kGrid) pack_grid(weight, second, outputs, inputs, tile * per_tile, b, to);
      else pack_block<F>(weight, second, outputs, inputs, tile * per_tile, b, to);
    }
}

}  // namespace gptflow
