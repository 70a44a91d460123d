// Attention of packed rows over slots, with the query heads of a group together.
//
// One row of a sequence (decoding) reads its keys and values once, as they lie. Several rows
// go over them in tiles that are widened to floats once for up to 32 rows at a time, with a
// running softmax (Milakov and Gimelshein 2018; Dao et al. 2022, "FlashAttention").
#pragma once

#include "common.h"

namespace gptflow {

// Rows `row .. row + rows` of the step belong to the sequence in `slot`; the first of them is its
// token number `start`. Each sees the tokens up to itself, and not further back than `window`.
struct Item {
  int32_t row, rows, slot, start;
  const float* mask;     // [rows][start + rows], added to the scores, in place of that rule; or null
  int64_t mask_stride;
};

// One layer's keys and values: [slots][kv_heads][length][width].
struct Cache {
  void* keys;
  void* values;
  int64_t length;
  int32_t kv_heads, width;
  int32_t half;          // numbers are float16, not float32
};

struct Shape {
  int32_t heads, window; // window 0: no limit
  float scale;
};

using half_t = uint16_t;

inline __m512 load16(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 load16(const half_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store16(float* p, __m512 x) { _mm512_storeu_ps(p, x); }
inline void store16(half_t* p, __m512 x) {
  // Beyond what a half can hold is its largest number, not infinity.
  const __m512 top = _mm512_set1_ps(65504.0f);
  const __m512 low = _mm512_sub_ps(_mm512_setzero_ps(), top);
  const __m512 bounded = keep_nan(_mm512_max_ps(low, _mm512_min_ps(top, x)), x);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

constexpr int kQueryRows = 32;  // rows of a sequence that share a widened tile
constexpr int kKeys = 64;       // keys in a tile
constexpr int kKeysAhead = 32;  // how far ahead one row asks for keys

struct Scratch {
  std::vector<float> scores, keys, values, queries, out, peaks, sums;
};

inline Scratch& scratch() {
  static thread_local Scratch own;
  return own;
}

// What one row sees of the keys: from `first` up to, not including, `last`.
struct Sight {
  int first, last;
};

inline Sight sight(const Item& item, int row, int window) {
  const int last = item.start + row + 1;
  if (item.mask) return {0, item.start + item.rows};
  return {window > 0 ? std::max(0, last - window) : 0, last};
}

// Asks for memory ahead of its use. Addresses that do not exist do no harm.
template <typename T>
inline void fetch(const T* from, int count) {
  const char* at = reinterpret_cast<const char*>(from);
  for (size_t i = 0; i < count * sizeof(T); i += 64) _mm_prefetch(at + i, _MM_HINT_T0);
}

// One row. `query` holds the group's heads [group][width] (scaled), `out` likewise.
template <typename T, int V>  // V vectors make a head's width
void attend_one(const T* keys, const T* values, const float* query, int group, int first, int last,
                const float* mask, float* out) {
  constexpr int width = V * kLanes;
  const int count = last - first, padded = round_up(count, kLanes);
  Scratch& own = scratch();
  float* scores = room(own.scores, static_cast<size_t>(group) * padded);
  alignas(64) float tile[kLanes * width];
  for (int key = 0; key < count; key += kLanes) {
    const int there = std::min(kLanes, count - key);
    for (int j = 0; j < there; ++j) {
      // The keys that come next, and the value that this key is going to weigh.
      fetch(keys + static_cast<size_t>(first + key + j + kKeysAhead) * width, width);
      fetch(values + static_cast<size_t>(first + key + j) * width, width);
      for (int v = 0; v < V; ++v)
        _mm512_store_ps(tile + j * width + v * kLanes,
                        load16(keys + static_cast<size_t>(first + key + j) * width + v * kLanes));
    }
    if (there < kLanes) std::memset(tile + there * width, 0, sizeof(float) * (kLanes - there) * width);
    for (int g = 0; g < group; ++g) {
      __m512 sums[kLanes];
      for (int j = 0; j < kLanes; ++j) sums[j] = _mm512_setzero_ps();
      for (int v = 0; v < V; ++v) {
        const __m512 q = _mm512_loadu_ps(query + g * width + v * kLanes);
        for (int j = 0; j < kLanes; ++j)
          sums[j] = _mm512_fmadd_ps(q, _mm512_load_ps(tile + j * width + v * kLanes), sums[j]);
      }
      __m512 score = sum_each(sums);
      const __mmask16 real = lanes(there);
      if (mask) score = _mm512_add_ps(score, _mm512_maskz_loadu_ps(real, mask + first + key));
      score = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), real, score);
      _mm512_storeu_ps(scores + g * padded + key, score);
    }
  }
  float totals[64];
  for (int g = 0; g < group; ++g) {
    float* row = scores + g * padded;
    __m512 peak = _mm512_set1_ps(-INFINITY);
    for (int i = 0; i < padded; i += kLanes) peak = _mm512_max_ps(peak, _mm512_loadu_ps(row + i));
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(peak));
    __m512 total = _mm512_setzero_ps();
    for (int i = 0; i < padded; i += kLanes) {
      const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(row + i), top);
      const __m512 weight = keep_nan(exp16(x), x);
      // exp16 stops at e^-87; what is hidden counts for nothing at all.
      const __mmask16 seen = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
      const __m512 kept = _mm512_maskz_mov_ps(seen, weight);
      _mm512_storeu_ps(row + i, kept);
      total = _mm512_add_ps(total, kept);
    }
    totals[g] = sum16(total);
  }
  // As many heads at a time as leave registers for the sums.
  constexpr int kAtOnce = V >= 16 ? 1 : V >= 8 ? 3 : V >= 6 ? 4 : 6;
  const auto mix = [&](auto size, int g0) {
    constexpr int G = decltype(size)::value;
    __m512 sums[G][V];
    for (int g = 0; g < G; ++g)
      for (int v = 0; v < V; ++v) sums[g][v] = _mm512_setzero_ps();
    const T* value = values + static_cast<size_t>(first) * width;
    for (int key = 0; key < count; ++key, value += width) {
      for (int v = 0; v < V; ++v) {
        const __m512 x = load16(value + v * kLanes);
        for (int g = 0; g < G; ++g)
          sums[g][v] = _mm512_fmadd_ps(_mm512_set1_ps(scores[(g0 + g) * padded + key]), x, sums[g][v]);
      }
    }
    for (int g = 0; g < G; ++g) {
      const __m512 factor = _mm512_set1_ps(1.0f / totals[g0 + g]);
      for (int v = 0; v < V; ++v)
        _mm512_storeu_ps(out + (g0 + g) * width + v * kLanes, _mm512_mul_ps(sums[g][v], factor));
    }
  };
  int g = 0;
  for (; g + kAtOnce <= group; g += kAtOnce) mix(std::integral_constant<int, kAtOnce>{}, g);
  for (; kAtOnce > 3 && g + 3 <= group; g += 3) mix(std::integral_constant<int, kAtOnce < 3 ? 1 : 3>{}, g);
  for (; g < group; ++g) mix(std::integral_constant<int, 1>{}, g);
}

// c[rows][64] = (add ? c : 0) + a[rows][depth] b[depth][64 of stride]; 6 rows of 4 vectors at once.
template <int R, int N>
inline void product(const float* a, size_t a_stride, const float* b, size_t b_stride, int depth,
                    float* c, size_t c_stride, bool add) {
  __m512 sums[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n)
      sums[r][n] = add ? _mm512_loadu_ps(c + r * c_stride + n * kLanes) : _mm512_setzero_ps();
  for (int k = 0; k < depth; ++k) {
    __m512 x[N];
    for (int n = 0; n < N; ++n) x[n] = _mm512_loadu_ps(b + k * b_stride + n * kLanes);
    for (int r = 0; r < R; ++r) {
      const __m512 y = _mm512_set1_ps(a[r * a_stride + k]);
      for (int n = 0; n < N; ++n) sums[r][n] = _mm512_fmadd_ps(y, x[n], sums[r][n]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) _mm512_storeu_ps(c + r * c_stride + n * kLanes, sums[r][n]);
}

template <int N>
inline void product_rows(int rows, const float* a, size_t a_stride, const float* b, size_t b_stride,
                         int depth, float* c, size_t c_stride, bool add) {
  while (rows >= 6) {
    product<6, N>(a, a_stride, b, b_stride, depth, c, c_stride, add);
    a += 6 * a_stride, c += 6 * c_stride, rows -= 6;
  }
  for (; rows >= 3; a += 3 * a_stride, c += 3 * c_stride, rows -= 3)
    product<3, N>(a, a_stride, b, b_stride, depth, c, c_stride, add);
  for (; rows > 0; a += a_stride, c += c_stride, --rows)
    product<1, N>(a, a_stride, b, b_stride, depth, c, c_stride, add);
}

// Rows `low .. high` of an item. queries [(high - low) * group][width], row by row; so is out.
template <typename T, int V>
void attend_many(const Item& item, int low, int high, const T* keys, const T* values, int group,
                 int window) {
  constexpr int width = V * kLanes;
  Scratch& own = scratch();
  const int queries = (high - low) * group;
  const float* query = own.queries.data();
  float* out = own.out.data();
  float* scores = room(own.scores, static_cast<size_t>(queries) * kKeys);
  float* wide_keys = room(own.keys, width * kKeys);
  float* wide_values = room(own.values, width * kKeys);
  float* peaks = room(own.peaks, queries);
  float* sums = room(own.sums, queries);
  std::fill(peaks, peaks + queries, -INFINITY);
  std::fill(sums, sums + queries, 0.0f);
  std::fill(out, out + static_cast<size_t>(queries) * width, 0.0f);
  const int begin = sight(item, low, window).first / kKeys * kKeys;
  const int end = sight(item, high - 1, window).last;
  for (int key = begin; key < end; key += kKeys) {
    const int there = std::min(kKeys, end - key);
    for (int j = 0; j < kKeys; j += kLanes)
      for (int v = 0; v < V; ++v) {
        __m512 t[16];
        for (int i = 0; i < kLanes; ++i)
          t[i] = j + i < there ? load16(keys + static_cast<size_t>(key + j + i) * width + v * kLanes)
                               : _mm512_setzero_ps();
        transpose16(t);
        for (int i = 0; i < kLanes; ++i)
          _mm512_storeu_ps(wide_keys + (v * kLanes + i) * kKeys + j, t[i]);
      }
    for (int j = 0; j < there; ++j)
      for (int v = 0; v < V; ++v)
        _mm512_storeu_ps(wide_values + j * width + v * kLanes,
                         load16(values + static_cast<size_t>(key + j) * width + v * kLanes));
    product_rows<4>(queries, query, width, wide_keys, kKeys, width, scores, kKeys, false);
    for (int q = 0; q < queries; ++q) {
      const int row = low + q / group;
      const Sight seen = sight(item, row, window);
      float* s = scores + q * kKeys;
      __m512 x[4];
      __m512 peak = _mm512_set1_ps(peaks[q]);
      for (int n = 0; n < 4; ++n) {
        const int at = key + n * kLanes;
        const int from = std::clamp(seen.first - at, 0, kLanes), to = std::clamp(seen.last - at, 0, kLanes);
        const __mmask16 real = lanes(to) & ~lanes(from);
        x[n] = _mm512_loadu_ps(s + n * kLanes);
        if (item.mask)
          x[n] = _mm512_add_ps(x[n], _mm512_maskz_loadu_ps(real, item.mask + row * item.mask_stride + at));
        x[n] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), real, x[n]);
        peak = _mm512_max_ps(peak, x[n]);
      }
      const float top = _mm512_reduce_max_ps(peak);
      if (top == -INFINITY) {  // it sees nothing of this tile, nor of those before
        for (int n = 0; n < 4; ++n) _mm512_storeu_ps(s + n * kLanes, _mm512_setzero_ps());
        continue;
      }
      __m512 total = _mm512_setzero_ps();
      for (int n = 0; n < 4; ++n) {
        const __m512 shifted = _mm512_sub_ps(x[n], _mm512_set1_ps(top));
        const __mmask16 counts = _mm512_cmp_ps_mask(shifted, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
        const __m512 weight = _mm512_maskz_mov_ps(counts, keep_nan(exp16(shifted), shifted));
        _mm512_storeu_ps(s + n * kLanes, weight);
        total = _mm512_add_ps(total, weight);
      }
      const float shrink = peaks[q] == -INFINITY ? 0.0f : std::exp(peaks[q] - top);
      sums[q] = sums[q] * shrink + sum16(total);
      if (shrink != 1.0f)
        for (int v = 0; v < V; ++v) {
          float* o = out + static_cast<size_t>(q) * width + v * kLanes;
          _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_loadu_ps(o), _mm512_set1_ps(shrink)));
        }
      peaks[q] = top;
    }
    constexpr int N = V % 4 == 0 ? 4 : V % 3 == 0 ? 3 : V % 2 == 0 ? 2 : 1;
    for (int v = 0; v < V; v += N) {
      product_rows<N>(queries, scores, kKeys, wide_values + v * kLanes, width, there,
                      out + v * kLanes, width, true);
    }
  }
  for (int q = 0; q < queries; ++q)
    for (int v = 0; v < V; ++v) {
      float* o = out + static_cast<size_t>(q) * width + v * kLanes;
      _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_loadu_ps(o), _mm512_set1_ps(1.0f / sums[q])));
    }
}

// query [rows][heads][width] at a stride per row; out [rows][heads][width], dense.
template <typename T, int V>
void attend_items(const Cache& cache, const Shape& shape, const Item* items, int count,
                  const float* query, size_t query_stride, float* out) {
  constexpr int width = V * kLanes;
  const int group = shape.heads / cache.kv_heads;
  struct Unit {
    int item, low, high;
    int64_t work;
  };
  static thread_local std::vector<Unit> units;
  units.clear();
  for (int i = 0; i < count; ++i)
    for (int low = 0; low < items[i].rows; low += kQueryRows) {
      const int high = std::min(low + kQueryRows, items[i].rows);
      const Sight seen = sight(items[i], high - 1, shape.window);
      units.push_back({i, low, high, static_cast<int64_t>(high - low) * (seen.last - seen.first)});
    }
  // The longest first: what is left at the end, when a thread runs out of work, is short.
  std::stable_sort(units.begin(), units.end(),
                   [](const Unit& a, const Unit& b) { return a.work > b.work; });
  const Unit* unit = units.data();
  const int total = static_cast<int>(units.size());
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int u = 0; u < total; ++u)
    for (int h = 0; h < cache.kv_heads; ++h) {
      const Item& item = items[unit[u].item];
      const int low = unit[u].low, high = unit[u].high;
      const size_t at = (static_cast<size_t>(item.slot) * cache.kv_heads + h) * cache.length * width;
      const T* keys = static_cast<const T*>(cache.keys) + at;
      const T* values = static_cast<const T*>(cache.values) + at;
      const size_t span = static_cast<size_t>(group) * width;
      Scratch& own = scratch();
      float* q = room(own.queries, (high - low) * span);
      float* o = room(own.out, (high - low) * span);
      for (int row = low; row < high; ++row) {
        const float* from = query + (item.row + row) * query_stride + h * span;
        for (size_t i = 0; i < span; i += kLanes)
          _mm512_storeu_ps(q + (row - low) * span + i,
                           _mm512_mul_ps(_mm512_loadu_ps(from + i), _mm512_set1_ps(shape.scale)));
      }
      if (high - low == 1) {
        const Sight seen = sight(item, low, shape.window);
        attend_one<T, V>(keys, values, q, group, seen.first, seen.last,
                         item.mask ? item.mask + low * item.mask_stride : nullptr, o);
      } else {
        attend_many<T, V>(item, low, high, keys, values, group, shape.window);
      }
      for (int row = low; row < high; ++row)
        std::memcpy(out + static_cast<size_t>(item.row + row) * shape.heads * width + h * span,
                    o + (row - low) * span, span * sizeof(float));
    }
}

// Writes the rows' keys and values [rows][kv_heads][width] to their slots.
template <typename T>
void write_items(const Cache& cache, const Item* items, int count, const float* keys,
                 const float* values, size_t stride) {
  for (int i = 0; i < count; ++i)
    for (int row = 0; row < items[i].rows; ++row)
      for (int h = 0; h < cache.kv_heads; ++h) {
        const size_t to = ((static_cast<size_t>(items[i].slot) * cache.kv_heads + h) * cache.length +
                           items[i].start + row) * cache.width;
        const size_t from = (items[i].row + row) * stride + static_cast<size_t>(h) * cache.width;
        for (int d = 0; d < cache.width; d += kLanes) {
          store16(static_cast<T*>(cache.keys) + to + d, _mm512_loadu_ps(keys + from + d));
          store16(static_cast<T*>(cache.values) + to + d, _mm512_loadu_ps(values + from + d));
        }
      }
}

template <typename T>
bool attend_typed(const Cache& cache, const Shape& shape, const Item* items, int count,
                  const float* query, size_t stride, float* out) {
  switch (cache.width) {
    case 16: attend_items<T, 1>(cache, shape, items, count, query, stride, out); return true;
    case 32: attend_items<T, 2>(cache, shape, items, count, query, stride, out); return true;
    case 48: attend_items<T, 3>(cache, shape, items, count, query, stride, out); return true;
    case 64: attend_items<T, 4>(cache, shape, items, count, query, stride, out); return true;
    case 80: attend_items<T, 5>(cache, shape, items, count, query, stride, out); return true;
    case 96: attend_items<T, 6>(cache, shape, items, count, query, stride, out); return true;
    case 128: attend_items<T, 8>(cache, shape, items, count, query, stride, out); return true;
    case 256: attend_items<T, 16>(cache, shape, items, count, query, stride, out); return true;
    default: return false;
  }
}

inline void write(const Cache& cache, const Item* items, int count, const float* keys,
                  const float* values, size_t stride) {
  if (cache.half) write_items<half_t>(cache, items, count, keys, values, stride);
  else write_items<float>(cache, items, count, keys, values, stride);
}

inline bool attend(const Cache& cache, const Shape& shape, const Item* items, int count,
                   const float* query, size_t stride, float* out) {
  return cache.half ? attend_typed<half_t>(cache, shape, items, count, query, stride, out)
                    : attend_typed<float>(cache, shape, items, count, query, stride, out);
}

}  // namespace gptflow
