/* A decode step within the library: what its C files share. See docs/native.md. */
#ifndef IDEFICS_DECODE_H
#define IDEFICS_DECODE_H

#include "api.h"

#include <stdatomic.h>

enum {
    PAD_MULTIPLE = 128,      /* prepared activations are padded with zeros to a multiple of this */
    KV_SPLIT_SIZE = 128,     /* positions of one unit of attention */
    OUTPUTS_PER_UNIT = 4,    /* outputs of a linear layer that are computed together: its unit of work */
    MIN_PIECE_BYTES = 16384, /* least bytes of weights of a piece, so that prefetching beyond its end is a small part */
};

typedef struct { /* rows of inputs of a linear layer, in every form that some kind of weight wants */
    float *plain;              /* (R, I) */
    float *deinterleaved;             /* (R, I), each 32: the even ones, then the odd ones */
    int8_t *bytes;             /* (R, I) */
    int8_t *deinterleaved_bytes;             /* (R, I), each 128: the even ones, then the odd ones */
    float *scale, *deinterleaved_scale;     /* for each 4 bytes their scale; for each 4 + 4 of `deinterleaved_bytes` */
    int32_t *offset, *deinterleaved_offset;   /* and what the offset of unsigned weights adds to their product, negative */
    int32_t stride;            /* from row to row of the first four; a quarter and an eighth of it for the others */
} PreparedInputs;

typedef struct {
    PreparedInputs inputs;
    float *query;    /* (heads, K) */
    int stage;       /* whose inputs are prepared, or -1 */
} ThreadScratch;

typedef enum { CROSS_Q, CROSS_ATTEND, CROSS_O, CROSS_UP, CROSS_DOWN, QKV, ATTEND, O, UP, DOWN, HEAD } StageKind;

typedef struct {
    StageKind kind;
    int32_t layer;
    int32_t least; /* units of a piece, but for the last one */
} Stage;

typedef struct ThreadPool ThreadPool;

typedef struct Engine {
    const Model *model;
    const Step *step;
    Stage *stages;
    int32_t stage_count, num_kv_splits; /* num_kv_splits: of the longest row, in this step */
    ThreadScratch *threads;
    ThreadPool *pool;
    void (*work)(struct Engine *, ThreadScratch *, int stage, int from, int to);
    float *x, *qkv, *attention_out, *mlp_hidden;   /* (R, D), (R, (H + 2h) K), (R, H K), (R, inner) */
    float *rotary_cos_sin;                   /* (R, K): cosines, then sines */
    float *parts;                   /* (R, H, num_kv_splits, K + 2): attention to a kv_split: largest score, sum, mix */
    size_t parts_size;
    _Atomic int32_t *pending_splits;       /* (R, h): num_kv_splits not yet attended to */
    _Atomic int32_t *units;         /* least pieces of each stage in this step */
    void *memory;                   /* all of the above but parts */
} Engine;

/* pool.c: many threads do the stages of a step one after another, each stage in pieces. */
ThreadPool *pool_new(Engine *engine, int threads);
void pool_free(ThreadPool *pool);
int pool_threads(const ThreadPool *pool);
void pool_run(ThreadPool *pool);

int num_outputs(const Model *model, Stage stage); /* of the stages that multiply */
const Linear *first_linear(const Model *model, Stage stage); /* the first that it multiplies with, or NULL */

static inline size_t row_bytes(const Linear *l, int kind) {
    size_t inputs = (size_t)l->inputs;
    switch (kind) {
    case FLOAT32: return 4 * inputs;
    case BFLOAT16: return 2 * inputs;
    case INT8: return inputs;
    default: return (inputs + GROUP_SIZE - 1) / GROUP_SIZE * (GROUP_SIZE / 2);
    }
}

/* kernel_*.c: the same algorithm in each instruction set. */
typedef void StageFunction(Engine *, ThreadScratch *, int stage, int from, int to);
StageFunction run_stage_portable;
#if defined(__x86_64__)
StageFunction run_stage_avx2, run_stage_avx512;
#elif defined(__aarch64__)
StageFunction run_stage_neon;
#endif

#endif
