/* The interface to Python: the structs and the functions of the library. `structures.py` and `library.py` mirror them.
 *
 * R rows, D width, H query heads, h key/value heads, K head size, I inputs and O outputs of a linear layer. Weights,
 * caches and pictures stay where torch and NumPy keep them; nothing here owns them.
 */
#ifndef IDEFICS_API_H
#define IDEFICS_API_H

#include <stddef.h>
#include <stdint.h>

#define API __attribute__((visibility("default"))) /* everything else is compiled with -fvisibility=hidden */

enum { STRUCT_VERSION = 8 }; /* counts changes of the structs and functions in this file */

enum { CACHE_LINE_BYTES = 64 };

/* On x86-64 each one includes those before it. */
enum { PORTABLE, AVX2, AVX512, AVX512_VNNI, AVX512_BF16, NEON_DOTPROD };

API int idefics_struct_version(void);
API int idefics_has_instruction_set(int instruction_set); /* whether this processor has it */

/* GOMP_parallel of the OpenMP that torch has loaded, so that torch's own threads do the work; not called for one
 * thread. */
typedef void Parallel(void (*)(void *), void *, unsigned, unsigned);

/* --- decode step: docs/native.md --- */

enum { FLOAT32, BFLOAT16, INT8, INT4 };      /* how a weight is stored */
enum { OUT_OF_MEMORY = 1, ID_OUT_OF_RANGE }; /* errors of a step; 0: none */
enum { SILU, GELU, GELU_TANH, RELU };
enum { PAGE_SIZE = 16 }; /* positions of a page */
enum { MAX_ROWS = 16 };  /* rows of a step */
enum { FACTOR_BLOCK = 16 };

typedef struct {                /* (O, I) */
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
    void *keys, *values; /* (pages, h, PAGE_SIZE, K) float32 or float16, see Model */
    int32_t cross;       /* index of the cross-attention block before this layer, or -1 */
} Layer;

typedef struct {                  /* a gated cross-attention block */
    const float *norm, *q_norm;   /* (D,); (K,) or NULL */
    const float *mlp_norm;        /* (D,) */
    const float *gate, *mlp_gate; /* (1 + adapters, D) each, after tanh: of rows without an adapter first */
    Linear q, o;
    Mlp mlp;
} CrossLayer;

typedef struct {    /* what an adapter adds to a layer's outputs: b(a(x)); no outputs of `a`: nothing */
    Linear a;       /* (r, I) FLOAT32 */
    const float *b; /* (O / FACTOR_BLOCK, r, FACTOR_BLOCK): blocks of outputs, the last one padded with zeros */
} LowRankTerm;

typedef struct { /* of up to three layers with the same inputs, in the order of a step */
    LowRankTerm terms[3];
} LowRankTerms;

typedef struct {
    int32_t width, heads, kv_heads, head_size;
    int32_t layer_count, cross_count, table_count; /* as many LM heads as embedding tables */
    int32_t activation, window;                    /* window 0: none */
    int32_t float16;                               /* whether keys and values in pages are float16, else float32 */
    float epsilon;
    const float *frequencies; /* (K/2,) radians a position */
    const float *norm;        /* (D,) before the LM heads */
    const Layer *layers;
    const CrossLayer *crosses;
    EmbeddingTable tables[2];
    Linear lm_heads[2];
    int32_t adapter_count;
    const LowRankTerms *low_rank; /* (stages that multiply, adapters), in the order of a step; NULL: no adapters */
} Model;

typedef struct { /* image keys and values of a row in one cross-attention block, (num_features, H, K); NULL: no image */
    const float *keys, *values;
} CrossKV;

typedef struct {
    int32_t rows, pages; /* pages: columns of the page tables */
    const int64_t *ids, *positions;
    const int32_t *tables;       /* (R, pages) */
    const CrossKV *cross_kvs;    /* (R, cross layers) */
    const int32_t *num_features; /* (R,) */
    const int32_t *adapters;     /* (R,) numbers of adapters, -1: none; or NULL: no row has one */
    float *logits;               /* (R, V) */
} Step;

struct Engine;
/* -> an engine, which reads `model` until it is freed; NULL without memory. */
API struct Engine *idefics_decode_new(const Model *model, int instruction_set, int threads);
/* Computes one token of each of up to MAX_ROWS rows; those of one sequence stand one after another, at consecutive
 * positions. -> 0, OUT_OF_MEMORY or ID_OUT_OF_RANGE. */
API int idefics_decode_step(struct Engine *engine, const Step *step);
API void idefics_decode_free(struct Engine *engine);

/* --- attention --- */

typedef struct { /* strides count floats, not bytes; the floats of a head are contiguous */
    const float *q, *k, *v;
    float *out;
    int64_t query_frame, query_head, query_row, key_frame, key_head, key_row;
    int64_t value_frame, value_head, value_row, out_frame, out_head, out_row;
    int frames, heads, key_heads, queries, keys, size;
    float scale;
    int causal; /* whether query i attends to keys up to keys - queries + i only; needs AVX512_BF16 */
} AttentionArgs;

/* Needs AVX512. -> 0 without memory, else 1. */
API int idefics_attention(const AttentionArgs *args, int threads, Parallel *parallel);
/* The same with queries, keys, values and attention weights rounded to bfloat16; an even size. Needs AVX512_BF16. */
API int idefics_attention_bfloat16(const AttentionArgs *args, int threads, Parallel *parallel);

/* --- pictures --- */

/* Resizes (height, width, 3) to (new_height, new_width, 3), as Pillow 12 and earlier: along rows, rounded, then along
 * columns. `filter`: a number of PIL.Image.Resampling. -> NULL without memory, else what idefics_resize_add takes. */
API void *idefics_resize_begin(int instruction_set, int filter, int width, int height, uint8_t *out, int new_width,
                               int new_height);
/* The next `count` rows, of pixels of 3 bytes, or of 4, of which the last is left out. `out` is complete with the last
 * ones. */
API void idefics_resize_add(void *started, const uint8_t *rows, int count, int pixel_bytes);
API void idefics_resize_end(void *started); /* frees it */
/* (height, width, 3), rows `stride` bytes apart -> (3, height, width). `table` (3, 256): float of each byte, by
 * channel. */
API void idefics_normalize(const uint8_t *in, size_t stride, int height, int width, const float *table, float *out);

/* --- int8 and int4 layers --- */

enum { GROUP_SIZE = 32 }; /* consecutive inputs that share a scale: of 8-bit activations, and of 4-bit weights */

typedef struct {
    const uint8_t *levels; /* (outputs, groups * GROUP_SIZE / 2): two weights in a byte, the even one in the low half */
    const void *scales;    /* (outputs, groups) bfloat16 or float32 */
    float *out;            /* (outputs, inputs) */
    int64_t outputs, inputs;
    int bfloat16;        /* whether scales are */
    int instruction_set; /* up to AVX512 */
} DequantizeInt4Args;

typedef struct {
    const float *x;      /* (rows, inputs) */
    int8_t *levels;      /* (rows, inputs): x / x_scales, rounded; the largest of a row is 127 */
    float *x_scales;     /* (rows,) */
    int32_t *sums;       /* (rows, outputs): integer products; `idefics_scale_rows` turns them into float32 in place */
    const float *scales; /* (outputs,) */
    const float *bias;   /* (outputs,) or NULL */
    int64_t rows, inputs, outputs;
    int instruction_set; /* up to AVX512 */
} QuantizeRowsArgs;

typedef struct {
    const float *x;   /* (rows, inputs) */
    int8_t *x_levels; /* (rows, groups * GROUP_SIZE): x / x_scales, rounded; of each eight the even ones first */
    float *x_scales;  /* (rows, groups) */
    int32_t *zero_corrections; /* (rows, groups): what the zero point adds to each group's sum, negated */
    const uint8_t *levels;     /* weights and scales as in DequantizeInt4Args */
    const void *scales;
    const float *bias; /* (outputs,) or NULL */
    float *out;        /* (rows, outputs) */
    int64_t rows, outputs, inputs;
    int bfloat16; /* whether scales are */
} Int4MatmulArgs;

API void idefics_dequantize_int4(const DequantizeInt4Args *args, int threads, Parallel *parallel);
API void idefics_quantize_rows(const QuantizeRowsArgs *args, int threads, Parallel *parallel); /* before the product */
API void idefics_scale_rows(const QuantizeRowsArgs *args, int threads, Parallel *parallel);    /* after it */
API void idefics_int4_matmul(const Int4MatmulArgs *args, int threads, Parallel *parallel);     /* needs AVX512_VNNI */

/* --- linear layers of many rows: matmul.h --- */

/* All return 0 without memory, or if this processor has no instructions for a kind of weight (BFLOAT16, INT8, INT4);
 * then nothing is written. */

typedef struct {
    const float *x; /* (rows, inputs) */
    Linear linear;
    const float *bias;     /* (outputs,) or NULL */
    const float *residual; /* (rows, outputs): added to the result; or NULL */
    float *out;            /* (rows, outputs); may be `residual` */
    int64_t rows;
} MatmulArgs;

typedef struct {       /* queries, keys and values of a Llama layer: projections of the normalised rows, then rotated */
    const float *x;    /* (rows, D) */
    const float *norm; /* (D,): weight of the root-mean-square norm */
    float epsilon;
    Linear q, k, v;               /* of the same kind */
    const float *cosines, *sines; /* (rows, size) */
    int32_t rotated_heads, size;  /* heads of queries and keys together */
    float *out;                   /* (rows, outputs of q, k and v) */
    int64_t rows;
} QkvArgs;

typedef struct {       /* residual + down(activation(gate(norm(x))) * up(norm(x))) */
    const float *x;    /* (rows, D) */
    const float *norm; /* (D,) or NULL: no norm */
    float epsilon;
    Mlp mlp; /* gate and up of the same kind */
    int32_t activation;
    const float *residual; /* (rows, outputs) or NULL */
    float *out;            /* (rows, outputs) */
    int64_t rows;
} GatedMlpArgs;

API int idefics_matmul(const MatmulArgs *args, int threads, Parallel *parallel);
/* A few rows and a weight in BFLOAT16: inputs are not rounded, no residual. Needs AVX512. */
API int idefics_matmul_float32(const MatmulArgs *args, int threads, Parallel *parallel);
API int idefics_project_qkv(const QkvArgs *args, int threads, Parallel *parallel);
API int idefics_gated_mlp(const GatedMlpArgs *args, int threads, Parallel *parallel);

/* --- vision encoder: vision.c --- */

typedef struct { /* a linear layer, BFLOAT16 or INT8, with its bias (O,) */
    Linear linear;
    const float *bias;
} BiasedLinear;

typedef struct {
    const float *norm1, *norm1_bias, *norm2, *norm2_bias; /* (D,) */
    BiasedLinear q, k, v, o, fc1, fc2;
} VisionLayer;

typedef struct {
    float *x; /* (frames, patches, D): embedded patches, replaced by the output of the last layer */
    const VisionLayer *layers;
    int64_t frames, patches;
    int32_t layer_count, width, heads, intermediate_size, activation;
    float epsilon;
} VisionArgs;

/* 0: out of memory, or this processor has no instructions for the weights; then nothing is written. */
API int idefics_vision_encode(const VisionArgs *args, int threads, Parallel *parallel);

#endif
