/* The decode step within the library: what its C files share. docs/native.md explains the layout of work. */
#ifndef IDEFICS_DECODE_H
#define IDEFICS_DECODE_H

#include "api.h"

#include <stdatomic.h>

enum {
    PAD_MULTIPLE = 128,      /* prepared activations are padded with zeros to a multiple of this */
    KV_SPLIT_SIZE = 128,     /* positions of one unit of attention */
    OUTPUTS_PER_UNIT = 4,    /* outputs of a linear layer that are computed together: one unit of work */
    MIN_PIECE_BYTES = 16384, /* least bytes of weights of a piece: prefetching beyond its end stays a small part */
};

/* Rows of inputs of a linear layer, in each form that some kind of weight needs. "Deinterleaved": the even inputs of
 * each block first, then the odd ones, as two bfloat16 or int4 weights share a word or a byte. */
typedef struct {
    float *plain;                           /* (R, I) */
    float *deinterleaved;                   /* (R, I), in blocks of 32; for bfloat16 */
    int8_t *bytes;                          /* (R, I) quantized; for int8 */
    int8_t *deinterleaved_bytes;            /* (R, I), in blocks of 128; for int4 */
    float *scale, *deinterleaved_scale;     /* of each 4 `bytes`; of each 4 + 4 `deinterleaved_bytes` */
    int32_t *offset, *deinterleaved_offset; /* negated sums that unsigned weights add to each dot product */
    int32_t stride;                         /* from row to row of the first four; scales: a quarter and an eighth */
} PreparedInputs;

typedef struct {
    PreparedInputs inputs;
    float *query; /* (heads, K) */
    int stage;    /* whose inputs are prepared, or -1 */
} ThreadScratch;

typedef enum { CROSS_Q, CROSS_ATTEND, CROSS_O, CROSS_UP, CROSS_DOWN, QKV, ATTEND, O, UP, DOWN, HEAD } StageKind;

typedef struct {
    StageKind kind;
    int32_t layer;
    int32_t least;       /* units of a piece; the last one may have fewer */
    int32_t is_low_rank; /* whether it computes a(x) of adapters, for the stage after it, which computes the rest */
    const LowRankTerms *terms; /* (adapters,): of this stage and the one after or before it; NULL: no adapter has one */
} Stage;

typedef struct ThreadPool ThreadPool;

typedef struct Engine {
    const Model *model;
    const Step *step;
    Stage *stages;
    int32_t stage_count, num_kv_splits; /* num_kv_splits: of the longest row of this step */
    int32_t sequence_count, first_rows[MAX_ROWS + 1]; /* the rows of a sequence end where those of the next begin */
    ThreadScratch *threads;
    ThreadPool *pool;
    void (*work)(struct Engine *, ThreadScratch *, int stage, int from, int to);
    float *x, *qkv, *attention_out, *mlp_hidden; /* (R, D), (R, (H + 2h) K), (R, H K), (R, MLP width) */
    float *rotary_cos_sin;                       /* (R, K): cosines, then sines */
    float *low_rank;                             /* (R, low_rank_width): a(x) of the row's adapter, layer after layer */
    int32_t low_rank_width;
    float *parts; /* (R, num_kv_splits, H, K + 2): partial attention: largest score, sum of weights, weighted values */
    size_t parts_size;
    _Atomic int32_t *pending_splits; /* (R, h): splits that have not been attended to yet in this layer */
    _Atomic int32_t *units;          /* number of units of each stage in this step */
    void *memory;                    /* blocks that hold all of the above but `parts` */
} Engine;

/* decode_threads.c: threads run the stages of a step one after another, each stage in pieces. */
ThreadPool *pool_new(Engine *engine, int threads);
void pool_free(ThreadPool *pool);
int pool_threads(const ThreadPool *pool);
void pool_run(ThreadPool *pool);

int num_outputs(const Model *model, Stage stage);            /* of a stage that multiplies */
const Linear *first_linear(const Model *model, Stage stage); /* the first that a stage multiplies with, or NULL */

static inline size_t row_bytes(const Linear *l, int kind) {
    size_t inputs = (size_t)l->inputs;
    switch (kind) {
    case FLOAT32: return 4 * inputs;
    case BFLOAT16: return 2 * inputs;
    case INT8: return inputs;
    default: return (inputs + GROUP_SIZE - 1) / GROUP_SIZE * (GROUP_SIZE / 2);
    }
}

/* decode_*.c: the same algorithm in each instruction set. */
typedef void StageFunction(Engine *, ThreadScratch *, int stage, int from, int to);
StageFunction run_stage_portable;
#if defined(__x86_64__)
StageFunction run_stage_avx2, run_stage_avx512;
#elif defined(__aarch64__)
StageFunction run_stage_neon;
#endif

#endif
