/* softmax(q k' / sqrt(K)) v in bfloat16, softmax and sums in float32. A query's result does not depend on the other
 * queries of the call: its sums are in the order of the keys, and masked keys add zeros.
 */
#include "attention_bfloat16.h"

int64_t attention_scratch_units(int64_t keys, int64_t size) {
    int64_t padded = ceil_div(keys, TILE_OUTPUTS) * TILE_OUTPUTS, pairs = ceil_div(keys, 2);
    int64_t packed = padded * ceil_div(size, 2) + ceil_div(size, TILE_OUTPUTS) * TILE_OUTPUTS * pairs;
    return packed + TILE_ROWS * (padded + padded / 2);
}

#if defined(__x86_64__)

#include <math.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,prefer-vector-width=512")))
#define ROUND_BY_INSTRUCTION
#include "avx512_math.h"

typedef __m512 Sums;

INLINE Sums dot_units(Sums sums, __m512i weights, __m512i inputs) {
    return _mm512_dpbf16_ps(sums, (__m512bh)weights, (__m512bh)inputs);
}

#include "matmul_block.h"

/* Packs values as pairs of keys, (pairs, TILE_OUTPUTS), for the columns from `first` on. */
TARGET static void pack_values(const HeadAttention *attention, int64_t keys, int64_t first, uint32_t *tile) {
    const uint16_t *v = attention->v + first;
    int64_t columns = min_int64(TILE_OUTPUTS, attention->size - first);
    __mmask32 present = columns == TILE_OUTPUTS ? ~(__mmask32)0 : ((__mmask32)1 << columns) - 1;
    for (int64_t key = 0; key < keys; key += 2, tile += TILE_OUTPUTS) {
        __m512i even = _mm512_maskz_loadu_epi16(present, v + key * attention->stride), odd = _mm512_setzero_si512();
        if (key + 1 < keys) odd = _mm512_maskz_loadu_epi16(present, v + (key + 1) * attention->stride);
        for (int half = 0; half < 2; half++) {
            __m512i low =
                _mm512_cvtepu16_epi32(half ? _mm512_extracti64x4_epi64(even, 1) : _mm512_castsi512_si256(even));
            __m512i high =
                _mm512_cvtepu16_epi32(half ? _mm512_extracti64x4_epi64(odd, 1) : _mm512_castsi512_si256(odd));
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
    __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(largest)), factor = _mm512_set1_ps(scale * LOG2_E);
    for (int64_t key = 0; key < padded; key += 16) {
        __mmask16 present = keys - key >= 16 ? 0xffff : keys <= key ? 0 : (__mmask16)((1 << (keys - key)) - 1);
        __m512 exponent = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + key), most), factor);
        __m512 weight = _mm512_maskz_mov_ps(present, power_of_two(exponent));
        total = _mm512_add_ps(total, weight);
        _mm256_storeu_si256((__m256i *)(weights + key), round_to_bfloat16(weight));
    }
    return 1.0f / _mm512_reduce_add_ps(total);
}

/* Scores of TILE_ROWS queries from `query` on and a tile of keys; rows from `end` on repeat the last one. */
TARGET static void score_tile(const RoundedRows *queries, int64_t query, int64_t end, const uint32_t *keys,
                              int64_t units, float *scores, int64_t stride) {
    Sums sums[TILE_ROWS][2];
    multiply_block(queries, query, end, keys, units, (const char *)keys, TILE_ROWS, sums);
    UNROLL for (int r = 0; r < TILE_ROWS; r++) {
        _mm512_storeu_ps(scores + r * stride, sums[r][0]);
        _mm512_storeu_ps(scores + r * stride + 16, sums[r][1]);
    }
}

/* Up to TILE_OUTPUTS columns of the mixed values of `count` queries. */
TARGET static void mix_values(const RoundedRows *weights, int64_t count, const uint32_t *values, int64_t pairs,
                              const float *inverse_sums, float *out, int64_t stride, int64_t columns) {
    Sums sums[TILE_ROWS][2];
    multiply_block(weights, 0, count, values, pairs, (const char *)values, TILE_ROWS, sums);
    __mmask32 present = columns >= TILE_OUTPUTS ? ~(__mmask32)0 : ((__mmask32)1 << columns) - 1;
    UNROLL for (int r = 0; r < TILE_ROWS; r++)
        if (r < count) {
            __m512 factor = _mm512_set1_ps(inverse_sums[r]);
            _mm512_mask_storeu_ps(out + r * stride, (__mmask16)present, _mm512_mul_ps(sums[r][0], factor));
            _mm512_mask_storeu_ps(out + r * stride + 16, (__mmask16)(present >> 16), _mm512_mul_ps(sums[r][1], factor));
        }
}

/* How many keys a query attends to. */
static int64_t num_visible(const HeadAttention *attention, int64_t query) {
    return attention->causal_offset == NOT_CAUSAL ? attention->keys : attention->causal_offset + query + 1;
}

TARGET void attend_head(const HeadAttention *attention, uint32_t *scratch) {
    const MatmulKernel *kernel = attention->kernel;
    int64_t keys = attention->keys, size = attention->size, padded = ceil_div(keys, TILE_OUTPUTS) * TILE_OUTPUTS;
    int64_t units = ceil_div(size, 2), pairs = ceil_div(keys, 2), row_bytes = 2 * attention->stride;
    uint32_t *packed_keys = scratch, *packed_values = packed_keys + padded * units;
    uint32_t *weight_units = packed_values + ceil_div(size, TILE_OUTPUTS) * TILE_OUTPUTS * pairs;
    float *scores = (float *)(weight_units + TILE_ROWS * padded / 2), inverse_sums[TILE_ROWS],
          scale = 1.0f / sqrtf((float)size);
    keys = num_visible(attention, attention->end_query - 1); /* of all queries of this call */
    for (int64_t key = 0; key < keys; key += TILE_OUTPUTS)
        kernel->pack_tile(attention->k + key * attention->stride, row_bytes, size, keys - key,
                          packed_keys + key * units);
    for (int64_t column = 0; column < size; column += TILE_OUTPUTS)
        pack_values(attention, keys, column, packed_values + column * pairs);
    RoundedRows queries = {(uint32_t *)attention->q, attention->stride / 2, NULL, NULL};
    RoundedRows weights = {weight_units, padded / 2, NULL, NULL};
    for (int64_t query = attention->first_query; query < attention->end_query; query += TILE_ROWS) {
        int64_t count = min_int64(TILE_ROWS, attention->end_query - query),
                visible = num_visible(attention, query + count - 1);
        int64_t padded_visible = ceil_div(visible, TILE_OUTPUTS) * TILE_OUTPUTS;
        for (int64_t key = 0; key < visible; key += TILE_OUTPUTS)
            score_tile(&queries, query, query + count, packed_keys + key * units, units, scores + key, padded);
        for (int64_t row = 0; row < count; row++)
            inverse_sums[row] = softmax_row(scores + row * padded, num_visible(attention, query + row), padded_visible,
                                            scale, (uint16_t *)(weight_units + row * padded / 2));
        for (int64_t column = 0; column < size; column += TILE_OUTPUTS)
            mix_values(&weights, count, packed_values + column * pairs, ceil_div(visible, 2), inverse_sums,
                       attention->out + query * attention->out_stride + column, attention->out_stride, size - column);
    }
}

#else

void attend_head(const HeadAttention *attention, uint32_t *scratch) { (void)attention, (void)scratch; }

#endif

/* --- queries, keys and values in float32: rounded first --- */

typedef struct {
    const AttentionArgs *args;
    const MatmulKernel *kernel;
    uint16_t *q, *k, *v; /* (frames, heads, rows, size), heads of keys for k and v */
    int64_t pieces_per_head;
} FloatAttention;

/* Rounds all rows of one head; `heads` of them are in a frame. */
static void round_head(const MatmulKernel *kernel, const float *x, int64_t rows, int64_t row_stride, int64_t size,
                       uint16_t *to) {
    RoundedRows rounded = {(uint32_t *)to, size / 2, NULL, NULL};
    for (int64_t row = 0; row < rows; row++) kernel->round_row(x + row * row_stride, size, &rounded, row);
}

static void round_head_piece(const void *context, int64_t piece, uint32_t *scratch) {
    const FloatAttention *attention = context;
    const AttentionArgs *args = attention->args;
    int64_t queries = (int64_t)args->frames * args->heads, keys = (int64_t)args->frames * args->key_heads;
    (void)scratch;
    if (piece < queries) {
        int64_t frame = piece / args->heads, head = piece % args->heads;
        round_head(attention->kernel, args->q + frame * args->query_frame + head * args->query_head, args->queries,
                   args->query_row, args->size, attention->q + piece * args->queries * args->size);
        return;
    }
    int is_value = piece >= queries + keys;
    piece -= is_value ? queries + keys : queries;
    int64_t frame = piece / args->key_heads, head = piece % args->key_heads, at = piece * args->keys * args->size;
    if (is_value)
        round_head(attention->kernel, args->v + frame * args->value_frame + head * args->value_head, args->keys,
                   args->value_row, args->size, attention->v + at);
    else
        round_head(attention->kernel, args->k + frame * args->key_frame + head * args->key_head, args->keys,
                   args->key_row, args->size, attention->k + at);
}

static void float_attention_piece(const void *context, int64_t piece, uint32_t *scratch) {
    const FloatAttention *attention = context;
    const AttentionArgs *args = attention->args;
    int64_t block = piece % attention->pieces_per_head, query_head = piece / attention->pieces_per_head;
    int64_t frame = query_head / args->heads, head = query_head % args->heads;
    int64_t key_head = frame * args->key_heads + head / (args->heads / args->key_heads);
    HeadAttention one = {.kernel = attention->kernel,
                         .q = attention->q + query_head * args->queries * args->size,
                         .k = attention->k + key_head * args->keys * args->size,
                         .v = attention->v + key_head * args->keys * args->size,
                         .out = args->out + frame * args->out_frame + head * args->out_head,
                         .stride = args->size,
                         .out_stride = args->out_row,
                         .keys = args->keys,
                         .size = args->size,
                         .first_query = block * QUERIES_PER_PIECE,
                         .end_query = min_int64((block + 1) * QUERIES_PER_PIECE, args->queries),
                         .causal_offset = args->causal ? args->keys - args->queries : NOT_CAUSAL};
    attend_head(&one, scratch);
}

static int64_t query_units(const AttentionArgs *args) {
    return (int64_t)args->frames * args->heads * args->queries * args->size / 2;
}

static int64_t key_units(const AttentionArgs *args) {
    return (int64_t)args->frames * args->key_heads * args->keys * args->size / 2;
}

static void attention_program(Work *work, const void *attention_args) {
    const AttentionArgs *args = attention_args;
    int64_t query_heads = (int64_t)args->frames * args->heads, key_heads = (int64_t)args->frames * args->key_heads;
    uint32_t *keys = work->shared + query_units(args);
    FloatAttention attention = {.args = args,
                                .kernel = matmul_kernel(BFLOAT16),
                                .q = (uint16_t *)work->shared,
                                .k = (uint16_t *)keys,
                                .v = (uint16_t *)(keys + key_units(args)),
                                .pieces_per_head = ceil_div(args->queries, QUERIES_PER_PIECE)};
    run_pieces(work, round_head_piece, &attention, query_heads + 2 * key_heads);
    run_pieces(work, float_attention_piece, &attention, query_heads * attention.pieces_per_head);
}

int idefics_attention_bfloat16(const AttentionArgs *args, int threads, Parallel *parallel) {
    if (!matmul_kernel(BFLOAT16)) return 0;
    MemoryNeeds needs = {.scratch = attention_scratch_units(args->keys, args->size),
                         .shared = query_units(args) + 2 * key_units(args)};
    return run_program(attention_program, args, needs, threads, parallel);
}
