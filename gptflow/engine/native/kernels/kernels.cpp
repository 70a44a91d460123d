// The kernels as plain C functions. All pointers are to dense float32 rows unless said otherwise.
#include "adapt.h"
#include "attention.h"
#include "linear.h"
#include "logits.h"
#include "norm.h"

using namespace gptflow;

namespace {

// Rotates the two halves of each head by its position's angles (Su et al. 2021, as in Llama).
void rotate(float* head, const float* cosines, const float* sines, int width) {
  const int half = width / 2;
  int i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const __m512 a = _mm512_loadu_ps(head + i), b = _mm512_loadu_ps(head + half + i);
    const __m512 c0 = _mm512_loadu_ps(cosines + i), c1 = _mm512_loadu_ps(cosines + half + i);
    const __m512 s0 = _mm512_loadu_ps(sines + i), s1 = _mm512_loadu_ps(sines + half + i);
    _mm512_storeu_ps(head + i, _mm512_fnmadd_ps(b, s0, _mm512_mul_ps(a, c0)));
    _mm512_storeu_ps(head + half + i, _mm512_fmadd_ps(a, s1, _mm512_mul_ps(b, c1)));
  }
  for (; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    head[i] = a * cosines[i] - b * sines[i];
    head[half + i] = b * cosines[half + i] + a * sines[half + i];
  }
}

struct Work {
  Rows rows;
  std::vector<float> normed, wide, narrow;
};

// A process may hold several engines, each with a thread of its own.
Work& work() {
  static thread_local Work own;
  return own;
}

}  // namespace

extern "C" {

// A decoder layer: attention and a gated feed-forward network, each between a norm and a sum.
struct Layer {
  Linear qkv, attended;     // queries, keys and values side by side; what the heads say, mixed
  Linear gate_up, down;
  Shape shape;
  int32_t width;            // of the residual stream
  int32_t activation;
  float epsilon;
  const float* attention_norm;
  const float* query_norm;  // [head width]; these two, and those after the parts, may be null
  const float* key_norm;
  const float* attended_norm;
  const float* mlp_norm;
  const float* down_norm;
};

int64_t gf_packed_size(int32_t outputs, int32_t inputs, int32_t gated, int32_t format) {
  const int tiles = gated ? round_up(outputs, kLanes) / kLanes : round_up(outputs, kTile) / kTile;
  return static_cast<int64_t>(tiles) * (round_up(inputs, kBlock) / kBlock) * tile_block(format);
}

void gf_pack(const float* weight, const float* second, int32_t outputs, int32_t inputs,
             int32_t format, uint8_t* packed) {
  with_format(format, [&](auto f) {
    pack<decltype(f)::value>(weight, second, outputs, inputs, packed);
  });
}

int32_t gf_on_grid(const float* weight, int32_t outputs, int32_t inputs) {
  return on_grid(weight, outputs, inputs);
}

void gf_rms_norm(const float* x, const float* weight, float epsilon, int32_t rows, int32_t width,
                 float* y) {
  rms_norm(x, weight, epsilon, rows, width, y);
}

// What adapters add: y[row] += (x[row] A^T) B, with the matrices of one layer of the row's
// adapter. Rows of x and y are so many floats apart. half: the matrices have half precision.
void gf_adapt(const float* x, int64_t x_stride, float* y, int64_t y_stride, const Block* blocks,
              int32_t count, const int32_t* order, const Matrices* adapters, int32_t layer,
              int32_t inputs, int32_t outputs, int32_t half) {
  (half ? adapt<uint16_t> : adapt<float>)(x, x_stride, y, y_stride, blocks, count, order, adapters,
                                          layer, inputs, outputs);
}

void gf_linear(const Linear* linear, const float* x, int32_t rows, int32_t inputs, float* y) {
  Rows& q = work().rows;
  quantize(x, rows, inputs, *linear, q);
  multiply(*linear, q, rows, y, false);
}

void gf_summarize(const float* logits, int32_t rows, int32_t width, int64_t stride, float* peaks,
                  int64_t* places, float* normalizers) {
  summarize(logits, rows, width, stride, peaks, places, normalizers);
}

// y = activation(gate) * up, of rows that hold the gates and then the ups.
void gf_gate(const float* gate_up, int32_t rows, int32_t width, int32_t activation, float* y) {
#pragma omp parallel for schedule(static) if (rows >= kSmallRows)
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < width; i += kLanes) {
      const __mmask16 mask = lanes(width - i);
      const float* from = gate_up + static_cast<size_t>(row) * 2 * width + i;
      const __m512 gate = _mm512_maskz_loadu_ps(mask, from);
      const __m512 up = _mm512_maskz_loadu_ps(mask, from + width);
      _mm512_mask_storeu_ps(y + static_cast<size_t>(row) * width + i, mask,
                            _mm512_mul_ps(activate(gate, activation), up));
    }
}

// From qkv [rows][(heads + 2 kv_heads) * head width], which changes, to the heads' answers.
// 0: heads of this width are not served.
int32_t gf_attend_rotary(const Layer* layer, const Cache* cache, const Item* items, int32_t count,
                         float* qkv, int32_t rows, const float* cosines, const float* sines,
                         float* out) {
  const int width = cache->width, heads = layer->shape.heads, kv_heads = cache->kv_heads;
  const size_t stride = static_cast<size_t>(heads + 2 * kv_heads) * width;
#pragma omp parallel for schedule(static) if (rows >= kSmallRows)
  for (int row = 0; row < rows; ++row)
    for (int h = 0; h < heads + kv_heads; ++h) {
      float* head = qkv + row * stride + static_cast<size_t>(h) * width;
      const float* norm = h < heads ? layer->query_norm : layer->key_norm;
      if (norm) rms_norm_row(head, norm, layer->epsilon, width, head);
      rotate(head, cosines + static_cast<size_t>(row) * width,
             sines + static_cast<size_t>(row) * width, width);
    }
  const float* keys = qkv + static_cast<size_t>(heads) * width;
  write(*cache, items, count, keys, keys + static_cast<size_t>(kv_heads) * width, stride);
  return attend(*cache, layer->shape, items, count, qkv, stride, out);
}

// The whole layer, on x [rows][width] in place.
int32_t gf_layer(const Layer* layer, const Cache* cache, const Item* items, int32_t count, float* x,
                 int32_t rows, const float* cosines, const float* sines) {
  Work& own = work();
  const int width = layer->width, inner = layer->shape.heads * cache->width;
  const int hidden = layer->gate_up.outputs / 2;
  float* normed = room(own.normed, static_cast<size_t>(rows) * width);
  float* narrow = room(own.narrow, static_cast<size_t>(rows) * inner);
  float* wide = room(own.wide, static_cast<size_t>(rows) * std::max(layer->qkv.outputs, hidden));
  // A norm after a part needs the part's own output; without one it goes straight to the sum.
  const auto add_to_stream = [&](const Linear& linear, const float* norm) {
    multiply(linear, own.rows, rows, norm ? normed : x, !norm);
    if (norm) add_rms_norm(normed, norm, layer->epsilon, rows, width, x);
  };
  quantize_normed(x, layer->attention_norm, layer->epsilon, rows, width, layer->qkv, own.rows);
  multiply(layer->qkv, own.rows, rows, wide, false);
  if (!gf_attend_rotary(layer, cache, items, count, wide, rows, cosines, sines, narrow)) return 0;
  quantize(narrow, rows, inner, layer->attended, own.rows);
  add_to_stream(layer->attended, layer->attended_norm);
  quantize_normed(x, layer->mlp_norm, layer->epsilon, rows, width, layer->gate_up, own.rows);
  multiply_gated(layer->gate_up, own.rows, rows, layer->activation, wide);
  quantize(wide, rows, hidden, layer->down, own.rows);
  add_to_stream(layer->down, layer->down_norm);
  return 1;
}

// Any other model's attention: queries [rows][heads * width], keys and values
// [rows][kv_heads * width], with the rotation done.
int32_t gf_attend(const Cache* cache, const Shape* shape, const Item* items, int32_t count,
                  const float* queries, const float* keys, const float* values, float* out) {
  write(*cache, items, count, keys, values, static_cast<size_t>(cache->kv_heads) * cache->width);
  return attend(*cache, *shape, items, count, queries,
                static_cast<size_t>(shape->heads) * cache->width, out);
}
}
