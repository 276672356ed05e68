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

enum { LAYOUT = 2 };                           /* counts changes of the structs that Python mirrors */
enum { FLOAT32, BFLOAT16, INT8, INT4, KINDS }; /* how a weight is stored */
enum { NO_MEMORY = 1, NO_SUCH_ID };            /* what a step may answer instead of 0 */
enum { SILU, GELU, GELU_TANH, RELU };
enum {
    PAGE = 16,      /* positions of a page */
    MOST_ROWS = 16, /* rows of a step */
    GROUP = 32,     /* neighbouring inputs that share a scale: of activations always, of weights in four bits */
    PAD = 128,      /* prepared activations are filled up with zeros to a multiple of this */
    STRETCH = 128,  /* positions that are attended to as one piece of work */
    UNIT = 4,       /* outputs of a linear layer that are computed together: the least piece of work */
    LEAST = 16384,  /* bytes of weights that are worth a piece of their own, and their caches' looking ahead */
};

typedef struct { /* (O, I): see docs/native.md for the layout of each kind */
    const void *weight, *scale; /* scale: (O,) for INT8, (O, groups) for INT4 */
    int32_t kind, scale_kind;   /* scale_kind: FLOAT32 or BFLOAT16 */
    int32_t outputs, inputs;
} Linear;

typedef struct { /* (rows, D) */
    const void *weight;
    int32_t kind, rows;
} Table;

typedef struct {
    Linear gate, up, down;
} Mlp;

typedef struct {
    const float *norm, *mlp_norm; /* (D,) */
    Linear q, k, v, o;
    Mlp mlp;
    void *keys, *values; /* (pages, h, PAGE, K) float32 or float16, as the model says */
    int32_t cross;       /* the gated block before this layer, or -1 */
} Layer;

typedef struct {                        /* a gated cross-attention block */
    const float *norm, *q_norm;         /* (D,); (K,) or NULL */
    const float *mlp_norm;              /* (D,) */
    const float *gate, *mlp_gate;       /* (D,) each: tanh has been taken */
    Linear q, o;
    Mlp mlp;
} Cross;

typedef struct {
    int32_t width, heads, kv_heads, head_size;
    int32_t layer_count, cross_count, table_count; /* tables and heads are as many */
    int32_t activation, window;                    /* window 0: none */
    int32_t float16;                               /* whether keys and values in pages are, else float32 */
    float epsilon;
    const float *frequencies; /* (K/2,) radians a position */
    const float *norm;        /* (D,) the last one */
    const Layer *layers;
    const Cross *crosses;
    Table tables[2];
    Linear heads_[2];
} Model;

typedef struct { /* what a row sees in one cross layer: (places, H, K) each; NULL where it sees nothing */
    const float *keys, *values;
} Seen;

typedef struct {
    int32_t rows, pages; /* pages: columns of the page tables */
    const int64_t *ids, *positions;
    const int32_t *tables; /* (R, pages) */
    const Seen *seen;      /* (R, cross layers) */
    const int32_t *places; /* (R,) */
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
    float *halves;             /* (R, I), each 32: the even ones, then the odd ones */
    int8_t *bytes;             /* (R, I) */
    int8_t *split;             /* (R, I), each 128: the even ones, then the odd ones */
    float *scale, *split_scale;     /* for each 4 bytes their scale; for each 4 + 4 of `split` */
    int32_t *minus, *split_minus;   /* and what the offset of unsigned weights adds to their product, negative */
    int32_t stride;            /* from row to row of the first four; a quarter and an eighth of it for the others */
} Inputs;

typedef struct {
    Inputs inputs;
    float *query;    /* (heads, K) */
    int stage;       /* whose inputs are prepared, or -1 */
} Thread;

typedef enum { CROSS_Q, CROSS_ATTEND, CROSS_O, CROSS_UP, CROSS_DOWN, QKV, ATTEND, O, UP, DOWN, HEAD } StageKind;

typedef struct {
    StageKind kind;
    int32_t layer;
    int32_t least; /* units of a piece, but for the last one */
} Stage;

typedef struct Pool Pool;

typedef struct Engine {
    const Model *model;
    const Step *step;
    Stage *stages;
    int32_t stage_count, stretches; /* stretches: of the longest row, in this step */
    Thread *threads;
    Pool *pool;
    void (*work)(struct Engine *, Thread *, int stage, int from, int to);
    float *x, *qkv, *mixed, *mid;   /* (R, D), (R, (H + 2h) K), (R, H K), (R, inner) */
    float *turns;                   /* (R, K): cosines, then sines */
    float *parts;                   /* (R, H, stretches, K + 2): attention to a stretch: largest score, sum, mix */
    size_t parts_size;
    _Atomic int32_t *missing;       /* (R, h): stretches not yet attended to */
    _Atomic int32_t *units;         /* least pieces of each stage in this step */
    void *memory;                   /* all of the above but parts */
} Engine;

/* pool.c: many threads do the stages of a step one after another, each stage in pieces. */
Pool *pool_new(Engine *engine, int threads);
void pool_free(Pool *pool);
int pool_threads(const Pool *pool);
void pool_run(Pool *pool);

int outputs_of(const Model *model, Stage stage); /* of the stages that multiply */
const Linear *layer_of(const Model *model, Stage stage); /* the first that it multiplies with, or NULL */

static inline size_t row_bytes(const Linear *l, int kind) {
    size_t inputs = (size_t)l->inputs;
    switch (kind) {
    case FLOAT32: return 4 * inputs;
    case BFLOAT16: return 2 * inputs;
    case INT8: return inputs;
    default: return (inputs + GROUP - 1) / GROUP * (GROUP / 2);
    }
}

/* kernel_*.c: the same algorithm in each instruction set. */
typedef void Work(Engine *, Thread *, int stage, int from, int to);
Work work_portable;
#if defined(__x86_64__)
Work work_avx2, work_avx512;
#elif defined(__aarch64__)
Work work_neon;
#endif

#endif
