// Numbers of linear layers: how weights and inputs are kept as integers.
//
// Weights and inputs are cut into blocks of 64 numbers with a scale each. There are three formats.
// Wide ones have 13 bits and a sign, which is as good as float32 for all that a model of language
// says, at half the speed of narrow ones, which have 7 bits and a sign. The third, for weights
// that are on a grid of sixteen levels, is in grid.h.
//
// A narrow weight is stored as the unsigned byte q + 128 and a narrow input as a signed one,
// because the dot-product instruction multiplies unsigned by signed, and the signed side can be
// read from memory once per row. What the 128 adds, 128 times the sum of the row's block, is
// where the integer sum starts from, with the sign turned.
#pragma once

#include "common.h"
#include "norm.h"

namespace gptflow {

enum Format : int32_t { kNarrow = 1, kWide = 2, kGrid = 3 };

// The largest number of a format. 64 products of two wide ones add up to less than 2^31.
template <int F>
constexpr float kTop = F == kNarrow ? 127.0f : F == kWide ? 5790.0f : 1785.0f;

struct Linear {
  int32_t outputs;       // columns, of gate and up together for a gated layer
  int32_t inputs;        // padded to whole blocks
  const uint8_t* packed; // [tile][block]: steps of 32 columns x 4 bytes, then 32 scales
  const float* bias;     // or null
  int32_t gated;         // a tile holds sixteen gates and the sixteen ups of the same columns
  int32_t format;
};

constexpr int kParts = 2;  // of a block, where weights are on a grid: each has a step of its own
constexpr int kPart = kBlock / kParts;

// Bytes of a row's block.
template <int F>
constexpr size_t kRowBlock = F == kNarrow ? kBlock : F == kWide ? 2 * kBlock : kBlock / 2 * 3;

// Bytes of a tile's block: on a grid, half a byte a number, and a step and an offset for each part.
template <int F>
constexpr size_t kTileBlock =
    F == kGrid ? kTile * (kBlock / 2 + kParts * 2 * sizeof(float))
               : kTile * (kRowBlock<F> + sizeof(float));

// Calls `use` with the format as a constant.
template <typename Use>
inline auto with_format(int format, const Use& use) {
  if (format == kNarrow) return use(std::integral_constant<int, kNarrow>{});
  if (format == kGrid) return use(std::integral_constant<int, kGrid>{});
  return use(std::integral_constant<int, kWide>{});
}

inline size_t tile_block(int format) {
  return with_format(format, [](auto f) { return kTileBlock<decltype(f)::value>; });
}

// Rows of inputs as integers.
struct Rows {
  std::vector<uint8_t> numbers;  // [rows][blocks] of a format's bytes
  std::vector<float> scales;     // [rows][blocks]
  std::vector<int32_t> starts;   // [rows][blocks], of narrow ones
  std::vector<float> sums;       // [rows][blocks][kParts] of the integers, for a grid
  int inputs = 0, format = kNarrow;

  void resize(int rows, const Linear& linear) {
    inputs = linear.inputs;
    format = linear.format;
    const size_t blocks = static_cast<size_t>(rows) * (inputs / kBlock);
    if (scales.size() < blocks) {
      scales.resize(blocks);
      starts.resize(blocks);
      sums.resize(blocks * kParts);
    }
    const size_t bytes = with_format(format, [](auto f) { return kRowBlock<decltype(f)::value>; });
    if (numbers.size() < blocks * bytes) numbers.resize(blocks * bytes);
  }
};

// The scale of a block of inputs, and what to multiply them by.
template <int F>
inline __m512 scale_block(const __m512 x[4], float* scale) {
  __m512 peak = _mm512_setzero_ps();
  for (int i = 0; i < 4; ++i) peak = _mm512_max_ps(_mm512_abs_ps(x[i]), peak);
  const float top = _mm512_reduce_max_ps(peak);
  // 0 * inf is not a number, nor is NaN times anything: what is spoiled stays so.
  __m512 spoiled = _mm512_setzero_ps();
  for (int i = 0; i < 4; ++i)
    spoiled = _mm512_fmadd_ps(x[i], _mm512_setzero_ps(), spoiled);
  *scale = top / kTop<F> + _mm512_reduce_add_ps(spoiled);
  return _mm512_set1_ps(top > 0 ? kTop<F> / top : 0.0f);
}

// How far ahead weights are asked for. Processors stop guessing at the end of a page, which
// leaves a third of the memory's speed unused.
constexpr int kAhead = 4096;

// What to ask for in passing, so many cache lines with every block.
struct Ahead {
  const uint8_t* at;
  int lines;
};

}  // namespace gptflow
