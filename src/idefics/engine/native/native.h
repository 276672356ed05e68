/* One step of a decoder: what crosses from Python, and what the C files share.
 *
 * R rows, D width, H query heads, h key/value heads, K head size, I inputs and O outputs of a linear layer.
 * Everything is read where torch keeps it; nothing here owns a weight. `structures.py` mirrors the structs up to Step.
 */
#ifndef IDEFICS_NATIVE_H
#define IDEFICS_NATIVE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { STRUCT_VERSION = 2 };                           /* counts changes of the structs that Python mirrors */
enum { FLOAT32, BFLOAT16, INT8, INT4, KINDS }; /* how a weight is stored */
enum { OUT_OF_MEMORY = 1, ID_OUT_OF_RANGE };            /* what a step may answer instead of 0 */
enum { SILU, GELU, GELU_TANH, RELU };
enum {
    PAGE_SIZE = 16,      /* positions of a page */
    MAX_ROWS = 16, /* rows of a step */
    GROUP_SIZE = 32,     /* neighbouring inputs that share a scale: of activations always, of weights in four bits */
    PAD_MULTIPLE = 128,      /* prepared activations are filled up with zeros to a multiple of this */
    KV_SPLIT_SIZE = 128,  /* positions that are attended to as one piece of work */
    OUTPUTS_PER_UNIT = 4,       /* outputs of a linear layer that are computed together: the least piece of work */
    MIN_PIECE_BYTES = 16384,  /* bytes of weights that are worth a piece of their own, and their caches' looking ahead */
};

typedef struct { /* (O, I): see docs/native.md for the layout of each kind */
    const void *weight, *scale; /* scale: (O,) for INT8, (O, groups) for INT4 */
    int32_t kind, scale_kind;   /* scale_kind: FLOAT32 or BFLOAT16 */
    int32_t outputs, inputs;
} Linear;

typedef struct { /* (rows, D) */
    const void *weight;
    int32_t kind, rows;
} EmbeddingTable;

typedef struct {
    Linear gate, up, down;
} Mlp;

typedef struct {
    const float *norm, *mlp_norm; /* (D,) */
    Linear q, k, v, o;
    Mlp mlp;
    void *keys, *values; /* (pages, h, PAGE_SIZE, K) float32 or float16, as the model says */
    int32_t cross;       /* the gated block before this layer, or -1 */
} Layer;

typedef struct {                        /* a gated cross-attention block */
    const float *norm, *q_norm;         /* (D,); (K,) or NULL */
    const float *mlp_norm;              /* (D,) */
    const float *gate, *mlp_gate;       /* (D,) each: tanh has been taken */
    Linear q, o;
    Mlp mlp;
} CrossLayer;

typedef struct {
    int32_t width, heads, kv_heads, head_size;
    int32_t layer_count, cross_count, table_count; /* tables and heads are as many */
    int32_t activation, window;                    /* window 0: none */
    int32_t float16;                               /* whether keys and values in pages are, else float32 */
    float epsilon;
    const float *frequencies; /* (K/2,) radians a position */
    const float *norm;        /* (D,) the last one */
    const Layer *layers;
    const CrossLayer *crosses;
    EmbeddingTable tables[2];
    Linear lm_heads[2];
} Model;

typedef struct { /* what a row sees in one cross layer: (num_features, H, K) each; NULL where it sees nothing */
    const float *keys, *values;
} CrossKV;

typedef struct {
    int32_t rows, pages; /* pages: columns of the page tables */
    const int64_t *ids, *positions;
    const int32_t *tables; /* (R, pages) */
    const CrossKV *seen;      /* (R, cross layers) */
    const int32_t *num_features; /* (R,) */
    float *logits;         /* (R, V) */
} Step;

int native_layout(void);
const char *native_instructions(int index);
struct Engine *native_new(const Model *model, const char *instructions, int threads);
int native_step(struct Engine *engine, const Step *step);
void native_free(struct Engine *engine);

/* --- within the library --- */

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
