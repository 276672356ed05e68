/* softmax(q k' / sqrt(K)) v in float32 where every query attends to every key: vision towers, perceivers. AVX-512 only:
 * with narrower vectors torch's own kernel is as fast.
 *
 * The scores of a block of queries and all keys of a frame fit a cache, so there is no running maximum as in
 * FlashAttention. Keys are packed so that vectors run along them. Keeps no state.
 */

#include "api.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)

#define TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define VECTOR_WIDTH 16                    /* floats in a vector */
#define QUERIES_PER_TILE 5                 /* queries multiplied together: 5 * 5 sums and 5 vectors fit 32 registers */
#define QUERY_BLOCK (4 * QUERIES_PER_TILE) /* queries whose scores are in the cache together */
#define KEY_TILE (4 * VECTOR_WIDTH)        /* keys multiplied together */
#define QUERY_CHUNK 320                    /* queries of one head that a thread takes, where heads are few */

typedef float Vector __attribute__((vector_size(4 * VECTOR_WIDTH), aligned(4), may_alias));
typedef int32_t IntVector __attribute__((vector_size(4 * VECTOR_WIDTH)));

static int round_up(int number, int to) { return (number + to - 1) / to * to; }

INLINE Vector select_lanes(IntVector where, Vector yes, Vector no) {
    return (Vector)((where & (IntVector)yes) | (~where & (IntVector)no));
}

/* a (QUERIES_PER_TILE, count) @ b (count, num * VECTOR_WIDTH), written to `out` or added to it; rows of b are `stride`
 * floats apart. */
INLINE void multiply_tile(const float *const *a, const float *b, size_t stride, int count, float *const *out,
                          const int num, const int accumulates) {
    Vector sums[QUERIES_PER_TILE][5];
    for (int row = 0; row < QUERIES_PER_TILE; row++)
        for (int i = 0; i < num; i++)
            sums[row][i] = accumulates ? *(const Vector *)(out[row] + i * VECTOR_WIDTH) : (Vector){0};
    for (int at = 0; at < count; at++, b += stride)
        for (int row = 0; row < QUERIES_PER_TILE; row++)
            for (int i = 0; i < num; i++) sums[row][i] += a[row][at] * *(const Vector *)(b + i * VECTOR_WIDTH);
    for (int row = 0; row < QUERIES_PER_TILE; row++)
        for (int i = 0; i < num; i++) *(Vector *)(out[row] + i * VECTOR_WIDTH) = sums[row][i];
}

/* The same with a loop compiled for each number of vectors up to five. */
INLINE void multiply_tile_of(const float *const *a, const float *b, size_t stride, int count, float *const *out,
                             int num, const int accumulates) {
    switch (num) {
    case 1: multiply_tile(a, b, stride, count, out, 1, accumulates); break;
    case 2: multiply_tile(a, b, stride, count, out, 2, accumulates); break;
    case 3: multiply_tile(a, b, stride, count, out, 3, accumulates); break;
    case 4: multiply_tile(a, b, stride, count, out, 4, accumulates); break;
    default: multiply_tile(a, b, stride, count, out, 5, accumulates);
    }
}

/* e^x for x <= 0, accurate to one or two ulp: 2^n times a polynomial, n the nearest whole number to x / ln 2. */
INLINE Vector exponential(Vector x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number in the last bits */
    x = select_lanes(x < -87.0f, (Vector){0} - 87.0f, x); /* e^-87 is nothing next to the largest weight, 1 */
    Vector n = x * 1.44269504088896341f + shift;
    IntVector power = (IntVector)n << 23;
    n -= shift;
    x = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts (Cody and Waite) */
    Vector y = x * (1.0f / 720) + 1.0f / 120;
    y = y * x + 1.0f / 24;
    y = y * x + 1.0f / 6;
    y = y * x + 0.5f;
    y = y * x * x + x + 1.0f;
    return (Vector)((IntVector)y + power);
}

/* scores -> e^(scale * (score - largest)), in place. Padding beyond `keys` becomes 0. -> their sum. */
TARGET static float exponentiate_scores(float *scores, int keys, int padded, float scale) {
    Vector maxima = (Vector){0} - INFINITY, sum = {0};
    for (int at = keys; at < padded; at++) scores[at] = -INFINITY;
    for (int at = 0; at < padded; at += VECTOR_WIDTH) {
        Vector some = *(Vector *)(scores + at);
        maxima = select_lanes(some > maxima, some, maxima);
    }
    float largest = -INFINITY, total = 0.0f;
    for (int i = 0; i < VECTOR_WIDTH; i++) largest = maxima[i] > largest ? maxima[i] : largest;
    for (int at = 0; at < padded; at += VECTOR_WIDTH) {
        Vector some = exponential((*(Vector *)(scores + at) - largest) * scale);
        *(Vector *)(scores + at) = some;
        if (at + VECTOR_WIDTH <= keys) sum += some;
    }
    for (int i = 0; i < VECTOR_WIDTH; i++) total += sum[i];
    for (int at = keys / VECTOR_WIDTH * VECTOR_WIDTH; at < keys; at++) total += scores[at];
    return total;
}

typedef struct {
    const AttentionArgs *args;
    int chunk, chunks;
    atomic_int next, failed;
} AttentionWork;

/* Buffers of one thread: packed keys and values of a head, and scores and outputs of a block of queries. */
typedef struct {
    int padded, vectors; /* number of keys with padding; vectors of a head */
    size_t width;
    float *keys, *values, *scores, *sums;
} Scratch;

static float *allocate_scratch(Scratch *scratch, const AttentionArgs *args) {
    scratch->padded = round_up(args->keys, VECTOR_WIDTH);
    scratch->vectors = round_up(args->size, VECTOR_WIDTH) / VECTOR_WIDTH;
    scratch->width = (size_t)scratch->vectors * VECTOR_WIDTH;
    size_t keys = (size_t)scratch->padded * args->size, values = scratch->padded * scratch->width;
    float *numbers = malloc(sizeof(float) * (keys + values + QUERY_BLOCK * (scratch->padded + scratch->width)));
    scratch->keys = numbers;
    scratch->values = numbers + keys;
    scratch->scores = scratch->values + values;
    scratch->sums = scratch->scores + (size_t)QUERY_BLOCK * scratch->padded;
    return numbers;
}

/* Packs keys by tiles, each (size, keys of the tile), and values with zeros up to whole vectors. */
static void pack_keys_values(const Scratch *scratch, const AttentionArgs *args, const float *keys,
                             const float *values) {
    for (int tile = 0; tile < scratch->padded; tile += KEY_TILE) {
        int num = scratch->padded - tile < KEY_TILE ? scratch->padded - tile : KEY_TILE;
        float *to = scratch->keys + (size_t)tile * args->size;
        for (int key = 0; key < num; key++)
            for (int i = 0; i < args->size; i++)
                to[(size_t)i * num + key] = tile + key < args->keys ? keys[(tile + key) * args->key_row + i] : 0.0f;
    }
    for (int key = 0; key < args->keys; key++) {
        memcpy(scratch->values + key * scratch->width, values + key * args->value_row, sizeof(float) * args->size);
        memset(scratch->values + key * scratch->width + args->size, 0, sizeof(float) * (scratch->width - args->size));
    }
}

/* Attention of a block of queries from `start` on. Queries beyond `end` repeat the last one and are not written. */
TARGET static void attend(const Scratch *scratch, const AttentionArgs *args, const float *q, float *out, int start,
                          int end) {
    const float *queries[QUERY_BLOCK], *weights[QUERY_BLOCK];
    float *scores[QUERY_BLOCK], *sums[QUERY_BLOCK], totals[QUERY_BLOCK];
    for (int row = 0; row < QUERY_BLOCK; row++)
        queries[row] = q + (start + row < end ? start + row : end - 1) * args->query_row;
    for (int tile = 0; tile < scratch->padded; tile += KEY_TILE) {
        int num = scratch->padded - tile < KEY_TILE ? scratch->padded - tile : KEY_TILE;
        for (int row = 0; row < QUERY_BLOCK; row++)
            scores[row] = scratch->scores + (size_t)row * scratch->padded + tile;
        for (int row = 0; row < QUERY_BLOCK; row += QUERIES_PER_TILE)
            multiply_tile_of(queries + row, scratch->keys + (size_t)tile * args->size, num, args->size, scores + row,
                             num / VECTOR_WIDTH, 0);
    }
    for (int row = 0; row < QUERY_BLOCK; row++)
        totals[row] = exponentiate_scores(scratch->scores + (size_t)row * scratch->padded, args->keys, scratch->padded,
                                          args->scale);
    memset(scratch->sums, 0, sizeof(float) * QUERY_BLOCK * scratch->width);
    for (int tile = 0; tile < args->keys; tile += KEY_TILE) {
        int num = args->keys - tile < KEY_TILE ? args->keys - tile : KEY_TILE;
        for (int row = 0; row < QUERY_BLOCK; row++)
            weights[row] = scratch->scores + (size_t)row * scratch->padded + tile;
        for (int part = 0; part < scratch->vectors; part += 5) {
            int vectors = scratch->vectors - part < 5 ? scratch->vectors - part : 5;
            for (int row = 0; row < QUERY_BLOCK; row++)
                sums[row] = scratch->sums + row * scratch->width + part * VECTOR_WIDTH;
            for (int row = 0; row < QUERY_BLOCK; row += QUERIES_PER_TILE)
                multiply_tile_of(weights + row, scratch->values + tile * scratch->width + part * VECTOR_WIDTH,
                                 scratch->width, num, sums + row, vectors, 1);
        }
    }
    for (int row = 0; row < QUERY_BLOCK && start + row < end; row++)
        for (int i = 0; i < args->size; i++)
            out[(start + row) * args->out_row + i] = scratch->sums[row * scratch->width + i] / totals[row];
}

/* Run by each thread: takes the next head, or chunk of its queries, until none is left. */
static void run_worker(void *shared) {
    AttentionWork *work = shared;
    const AttentionArgs *args = work->args;
    Scratch scratch;
    float *numbers = allocate_scratch(&scratch, args);
    if (!numbers) {
        work->failed = 1;
        return;
    }
    int pieces = args->frames * args->heads * work->chunks;
    for (int piece; (piece = atomic_fetch_add(&work->next, 1)) < pieces;) {
        int chunk = piece % work->chunks, head = piece / work->chunks % args->heads;
        int64_t frame = piece / work->chunks / args->heads, key_head = head / (args->heads / args->key_heads);
        int from = chunk * work->chunk, end = from + work->chunk;
        end = end < args->queries ? end : args->queries;
        pack_keys_values(&scratch, args, args->k + frame * args->key_frame + key_head * args->key_head,
                         args->v + frame * args->value_frame + key_head * args->value_head);
        for (int start = from; start < end; start += QUERY_BLOCK)
            attend(&scratch, args, args->q + frame * args->query_frame + head * args->query_head,
                   args->out + frame * args->out_frame + head * args->out_head, start, end);
    }
    free(numbers);
}

int idefics_attention(const AttentionArgs *args, int threads, Parallel *parallel) {
    int few = args->frames * args->heads < 4 * threads && threads > 1;
    int chunk = few && args->queries > QUERY_CHUNK ? QUERY_CHUNK : args->queries;
    AttentionWork work = {.args = args, .chunk = chunk, .chunks = (args->queries + chunk - 1) / chunk};
    if (threads > 1)
        parallel(run_worker, &work, threads, 0);
    else
        run_worker(&work);
    return !work.failed;
}

#else

int idefics_attention(const AttentionArgs *args, int threads, Parallel *parallel) {
    (void)args, (void)threads, (void)parallel;
    return 0;
}

#endif
