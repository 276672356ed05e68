/* softmax(q k' / sqrt(K)) v in float32 where every query sees every key: vision towers, perceivers. AVX-512 only: with
   narrower vectors torch's own kernel is as fast.

   A block of queries meets all keys at once, as the scores of a frame's patches fit a cache: no running maximum as in
   FlashAttention. Keys are packed so that products run along them. C11 with vector extensions; keeps no state. */

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* int64_t count numbers, not bytes, between neighbours; numbers of a head lie side by side. idefics/nn/attend.py has the
   same fields in the same order. */
typedef struct {
    const float *q, *k, *v;
    float *out;
    int64_t query_frame, query_head, query_row, key_frame, key_head, key_row;
    int64_t value_frame, value_head, value_row, out_frame, out_head, out_row;
    int frames, heads, key_heads, queries, keys, size;
    float scale;
} Attention;

#if defined(__x86_64__)

#define TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define WIDTH 16         /* floats in a vector */
#define ROWS 5           /* queries multiplied together: 5 * 5 sums and 5 vectors fit 32 registers */
#define BLOCK (4 * ROWS) /* queries whose scores are in a cache together */
#define TILE (4 * WIDTH) /* keys multiplied together */
#define CHUNK 320        /* queries of one head that a thread takes, where heads are few */

typedef float Vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t Whole __attribute__((vector_size(4 * WIDTH)));

static int rounded_up(int number, int to) { return (number + to - 1) / to * to; }

INLINE Vector chosen(Whole where, Vector yes, Vector no) {
    return (Vector)((where & (Whole)yes) | (~where & (Whole)no));
}

/* out (ROWS, many * WIDTH) = or += a (ROWS, count) @ b (count, many * WIDTH), rows of b `stride` numbers apart. */
INLINE void products(const float *const *a, const float *b, size_t stride, int count, float *const *out, const int many,
                     const int adds) {
    Vector sums[ROWS][5];
    for (int row = 0; row < ROWS; row++)
        for (int i = 0; i < many; i++) sums[row][i] = adds ? *(const Vector *)(out[row] + i * WIDTH) : (Vector){0};
    for (int at = 0; at < count; at++, b += stride)
        for (int row = 0; row < ROWS; row++)
            for (int i = 0; i < many; i++) sums[row][i] += a[row][at] * *(const Vector *)(b + i * WIDTH);
    for (int row = 0; row < ROWS; row++)
        for (int i = 0; i < many; i++) *(Vector *)(out[row] + i * WIDTH) = sums[row][i];
}

/* The same for any number of vectors up to five: each has its own loop. */
INLINE void some_products(const float *const *a, const float *b, size_t stride, int count, float *const *out, int many,
                          const int adds) {
    switch (many) {
    case 1: products(a, b, stride, count, out, 1, adds); break;
    case 2: products(a, b, stride, count, out, 2, adds); break;
    case 3: products(a, b, stride, count, out, 3, adds); break;
    case 4: products(a, b, stride, count, out, 4, adds); break;
    default: products(a, b, stride, count, out, 5, adds);
    }
}

/* e^x for x <= 0, to the last bit or two: 2^n times a polynomial, n the nearest whole number to x / ln 2. */
INLINE Vector exponential(Vector x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it leaves a whole number in the last bits */
    x = chosen(x < -87.0f, (Vector){0} - 87.0f, x); /* below, nothing beside the largest, which is 1 */
    Vector n = x * 1.44269504088896341f + shift;
    Whole power = (Whole)n << 23;
    n -= shift;
    x = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts (Cody and Waite) */
    Vector y = x * (1.0f / 720) + 1.0f / 120;
    y = y * x + 1.0f / 24;
    y = y * x + 1.0f / 6;
    y = y * x + 0.5f;
    y = y * x * x + x + 1.0f;
    return (Vector)((Whole)y + power);
}

/* scores -> e^(scale * (score - the largest)), in place; their sum. What is behind `keys` counts for nothing. */
TARGET static float weigh(float *scores, int keys, int padded, float scale) {
    Vector most = (Vector){0} - INFINITY, sum = {0};
    for (int at = keys; at < padded; at++) scores[at] = -INFINITY;
    for (int at = 0; at < padded; at += WIDTH) {
        Vector some = *(Vector *)(scores + at);
        most = chosen(some > most, some, most);
    }
    float largest = -INFINITY, total = 0.0f;
    for (int i = 0; i < WIDTH; i++) largest = most[i] > largest ? most[i] : largest;
    for (int at = 0; at < padded; at += WIDTH) {
        Vector some = exponential((*(Vector *)(scores + at) - largest) * scale);
        *(Vector *)(scores + at) = some;
        if (at + WIDTH <= keys) sum += some;
    }
    for (int i = 0; i < WIDTH; i++) total += sum[i];
    for (int at = keys / WIDTH * WIDTH; at < keys; at++) total += scores[at];
    return total;
}

typedef struct {
    const Attention *all;
    int chunk, chunks;
    atomic_int next, failed;
} Work;

/* Packed keys, packed values, and of a block the scores and the sums. */
typedef struct {
    int padded, vectors; /* keys; of a head's numbers */
    size_t width;
    float *keys, *values, *scores, *sums;
} Room;

static float *furnish(Room *room, const Attention *all) {
    room->padded = rounded_up(all->keys, WIDTH);
    room->vectors = rounded_up(all->size, WIDTH) / WIDTH;
    room->width = (size_t)room->vectors * WIDTH;
    size_t keys = (size_t)room->padded * all->size, values = room->padded * room->width;
    float *numbers = malloc(sizeof(float) * (keys + values + BLOCK * (room->padded + room->width)));
    room->keys = numbers;
    room->values = numbers + keys;
    room->scores = room->values + values;
    room->sums = room->scores + (size_t)BLOCK * room->padded;
    return numbers;
}

/* Keys by tiles, each (size, keys of the tile); values with zeros behind. */
static void pack(const Room *room, const Attention *all, const float *keys, const float *values) {
    for (int tile = 0; tile < room->padded; tile += TILE) {
        int many = room->padded - tile < TILE ? room->padded - tile : TILE;
        float *to = room->keys + (size_t)tile * all->size;
        for (int key = 0; key < many; key++)
            for (int i = 0; i < all->size; i++)
                to[(size_t)i * many + key] = tile + key < all->keys ? keys[(tile + key) * all->key_row + i] : 0.0f;
    }
    for (int key = 0; key < all->keys; key++) {
        memcpy(room->values + key * room->width, values + key * all->value_row, sizeof(float) * all->size);
        memset(room->values + key * room->width + all->size, 0, sizeof(float) * (room->width - all->size));
    }
}

/* A block of queries from `start` on; beyond the last the last once more, which nobody reads. */
TARGET static void attend(const Room *room, const Attention *all, const float *q, float *out, int start, int end) {
    const float *queries[BLOCK], *weights[BLOCK];
    float *scores[BLOCK], *sums[BLOCK], totals[BLOCK];
    for (int row = 0; row < BLOCK; row++) queries[row] = q + (start + row < end ? start + row : end - 1) * all->query_row;
    for (int tile = 0; tile < room->padded; tile += TILE) {
        int many = room->padded - tile < TILE ? room->padded - tile : TILE;
        for (int row = 0; row < BLOCK; row++) scores[row] = room->scores + (size_t)row * room->padded + tile;
        for (int row = 0; row < BLOCK; row += ROWS)
            some_products(queries + row, room->keys + (size_t)tile * all->size, many, all->size, scores + row,
                          many / WIDTH, 0);
    }
    for (int row = 0; row < BLOCK; row++)
        totals[row] = weigh(room->scores + (size_t)row * room->padded, all->keys, room->padded, all->scale);
    memset(room->sums, 0, sizeof(float) * BLOCK * room->width);
    for (int tile = 0; tile < all->keys; tile += TILE) {
        int many = all->keys - tile < TILE ? all->keys - tile : TILE;
        for (int row = 0; row < BLOCK; row++) weights[row] = room->scores + (size_t)row * room->padded + tile;
        for (int part = 0; part < room->vectors; part += 5) {
            int vectors = room->vectors - part < 5 ? room->vectors - part : 5;
            for (int row = 0; row < BLOCK; row++) sums[row] = room->sums + row * room->width + part * WIDTH;
            for (int row = 0; row < BLOCK; row += ROWS)
                some_products(weights + row, room->values + tile * room->width + part * WIDTH, room->width, many,
                              sums + row, vectors, 1);
        }
    }
    for (int row = 0; row < BLOCK && start + row < end; row++)
        for (int i = 0; i < all->size; i++)
            out[(start + row) * all->out_row + i] = room->sums[row * room->width + i] / totals[row];
}

/* What each thread does: the next head, or part of one, until none is left. */
static void take_part(void *shared) {
    Work *work = shared;
    const Attention *all = work->all;
    Room room;
    float *numbers = furnish(&room, all);
    if (!numbers) {
        work->failed = 1;
        return;
    }
    int pieces = all->frames * all->heads * work->chunks;
    for (int piece; (piece = atomic_fetch_add(&work->next, 1)) < pieces;) {
        int chunk = piece % work->chunks, head = piece / work->chunks % all->heads;
        int64_t frame = piece / work->chunks / all->heads, key_head = head / (all->heads / all->key_heads);
        int from = chunk * work->chunk, end = from + work->chunk;
        end = end < all->queries ? end : all->queries;
        pack(&room, all, all->k + frame * all->key_frame + key_head * all->key_head,
             all->v + frame * all->value_frame + key_head * all->value_head);
        for (int start = from; start < end; start += BLOCK)
            attend(&room, all, all->q + frame * all->query_frame + head * all->query_head,
                   all->out + frame * all->out_frame + head * all->out_head, start, end);
    }
    free(numbers);
}

int idefics_attention_works(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

/* True unless there is no memory. `parallel` is GOMP_parallel of the OpenMP that torch has loaded: its threads work, and
   none of our own stands in their way. */
int idefics_attend(const Attention *all, int threads, void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    int few = all->frames * all->heads < 4 * threads && threads > 1;
    int chunk = few && all->queries > CHUNK ? CHUNK : all->queries;
    Work work = {.all = all, .chunk = chunk, .chunks = (all->queries + chunk - 1) / chunk};
    if (threads > 1)
        parallel(take_part, &work, threads, 0);
    else
        take_part(&work);
    return !work.failed;
}

#else

int idefics_attention_works(void) { return 0; }
int idefics_attend(const Attention *all, int threads, void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    (void)all, (void)threads, (void)parallel;
    return 0;
}

#endif
