/* Attention in bfloat16 and layer norm, with AVX-512. */
#include "vision.h"

int64_t vision_attention_units(int64_t keys, int64_t size) {
    int64_t padded = ceil_div(keys, TILE_OUTPUTS) * TILE_OUTPUTS, pairs = ceil_div(keys, 2);
    int64_t packed = padded * ceil_div(size, 2) + ceil_div(size, TILE_OUTPUTS) * TILE_OUTPUTS * pairs;
    return packed + TILE_ROWS * (padded + padded / 2);
}

#if defined(__x86_64__)

#include <math.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")))
#include "avx512_math.h"

/* Packs values as pairs of keys, (pairs, TILE_OUTPUTS), for the columns from `first` on. */
TARGET static void pack_values(const HeadAttention *attention, int64_t first, uint32_t *tile) {
    const uint16_t *v = attention->v + first;
    int64_t columns = min_int64(TILE_OUTPUTS, attention->size - first);
    __mmask32 present = columns == TILE_OUTPUTS ? ~(__mmask32)0 : ((__mmask32)1 << columns) - 1;
    for (int64_t key = 0; key < attention->keys; key += 2, tile += TILE_OUTPUTS) {
        __m512i even = _mm512_maskz_loadu_epi16(present, v + key * attention->stride), odd = _mm512_setzero_si512();
        if (key + 1 < attention->keys) odd = _mm512_maskz_loadu_epi16(present, v + (key + 1) * attention->stride);
        for (int half = 0; half < 2; half++) {
            __m512i low = _mm512_cvtepu16_epi32(half ? _mm512_extracti64x4_epi64(even, 1) : _mm512_castsi512_si256(even));
            __m512i high = _mm512_cvtepu16_epi32(half ? _mm512_extracti64x4_epi64(odd, 1) : _mm512_castsi512_si256(odd));
            _mm512_storeu_si512(tile + 16 * half, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
}

/* Scores (padded,) -> e^(scale * (score - largest)) in bfloat16, 0 beyond `keys`; returns 1 / their sum. */
TARGET static float softmax_row(const float *scores, int64_t keys, int64_t padded, float scale, uint16_t *weights) {
    __m512 largest = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (int64_t key = 0; key < keys; key += 16) {
        __mmask16 present = keys - key >= 16 ? 0xffff : (__mmask16)((1 << (keys - key)) - 1);
        largest = _mm512_mask_max_ps(largest, present, largest, _mm512_loadu_ps(scores + key));
    }
    __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (int64_t key = 0; key < padded; key += 16) {
        __mmask16 present = keys - key >= 16 ? 0xffff : keys <= key ? 0 : (__mmask16)((1 << (keys - key)) - 1);
        __m512 below = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + key), most), _mm512_set1_ps(scale));
        __m512 weight = _mm512_maskz_mov_ps(present, exp_negative(below));
        total = _mm512_add_ps(total, weight);
        _mm256_storeu_si256((__m256i *)(weights + key), round_to_bfloat16(weight));
    }
    return 1.0f / _mm512_reduce_add_ps(total);
}

TARGET void vision_attend(const HeadAttention *attention, uint32_t *scratch) {
    const MatmulKernel *kernel = attention->kernel;
    int64_t keys = attention->keys, size = attention->size, padded = ceil_div(keys, TILE_OUTPUTS) * TILE_OUTPUTS;
    int64_t units = ceil_div(size, 2), pairs = ceil_div(keys, 2), row_bytes = 2 * attention->stride;
    uint32_t *packed_keys = scratch, *packed_values = packed_keys + padded * units;
    uint32_t *weight_units = packed_values + ceil_div(size, TILE_OUTPUTS) * TILE_OUTPUTS * pairs;
    float *scores = (float *)(weight_units + TILE_ROWS * padded / 2), inverse_sums[TILE_ROWS], scale = 1.0f / sqrtf((float)size);
    for (int64_t key = 0; key < keys; key += TILE_OUTPUTS)
        kernel->pack_tile(attention->k + key * attention->stride, row_bytes, size, keys - key,
                          packed_keys + key * units);
    for (int64_t column = 0; column < size; column += TILE_OUTPUTS)
        pack_values(attention, column, packed_values + column * pairs);
    RoundedRows queries = {(uint32_t *)attention->q, attention->stride / 2, NULL, NULL};
    RoundedRows weights = {weight_units, padded / 2, NULL, NULL};
    for (int64_t query = attention->first_query; query < attention->end_query; query += TILE_ROWS) {
        int64_t count = min_int64(TILE_ROWS, attention->end_query - query);
        Epilogue epilogue = {.activation = NO_ACTIVATION, .stride = padded};
        for (int64_t key = 0; key < keys; key += TILE_OUTPUTS) {
            epilogue.floats = scores + key - query * padded;
            kernel->multiply_tile(&queries, query, query + count, packed_keys + key * units, units, &epilogue,
                                  TILE_OUTPUTS);
        }
        for (int64_t row = 0; row < count; row++)
            inverse_sums[row] = softmax_row(scores + row * padded, keys, padded, scale,
                                            (uint16_t *)(weight_units + row * padded / 2));
        epilogue.stride = attention->stride;
        for (int64_t column = 0; column < size; column += TILE_OUTPUTS) {
            epilogue.floats = attention->out + query * attention->stride + column;
            kernel->multiply_tile(&weights, 0, count, packed_values + column * pairs, pairs, &epilogue, size - column);
        }
        for (int64_t row = 0; row < count; row++) {
            float *out = attention->out + (query + row) * attention->stride;
            for (int64_t i = 0; i < size; i++) out[i] *= inverse_sums[row];
        }
    }
}

TARGET void vision_layer_norm(const float *x, int64_t width, const float *weight, const float *bias, float epsilon,
                              float *out) {
    __m512 total = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    int64_t whole = width / 16 * 16;
    __mmask16 rest = (__mmask16)((1 << (width - whole)) - 1);
    for (int64_t i = 0; i < whole; i += 16) total = _mm512_add_ps(total, _mm512_loadu_ps(x + i));
    total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(rest, x + whole));
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / (float)width);
    for (int64_t i = 0; i < width; i += 16) {
        __mmask16 present = i < whole ? 0xffff : rest;
        __m512 centered = _mm512_maskz_sub_ps(present, _mm512_maskz_loadu_ps(present, x + i), mean);
        squares = _mm512_fmadd_ps(centered, centered, squares);
        _mm512_mask_storeu_ps(out + i, present, centered);
    }
    __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)width + epsilon));
    for (int64_t i = 0; i < width; i += 16) {
        __mmask16 present = i < whole ? 0xffff : rest;
        __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(present, out + i), factor);
        __m512 result = _mm512_fmadd_ps(scaled, _mm512_maskz_loadu_ps(present, weight + i),
                                        _mm512_maskz_loadu_ps(present, bias + i));
        _mm512_mask_storeu_ps(out + i, present, result);
    }
}

#else

void vision_attend(const HeadAttention *attention, uint32_t *scratch) { (void)attention, (void)scratch; }
void vision_layer_norm(const float *x, int64_t width, const float *weight, const float *bias, float epsilon,
                       float *out) {
    (void)x, (void)width, (void)weight, (void)bias, (void)epsilon, (void)out;
}

#endif
