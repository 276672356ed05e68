/* Products of many rows with weights in bfloat16 or int8, on processors with dot products of them (AVX-512).
 *
 * Inputs are rounded to the weight's kind and stored in units of four bytes: two bfloat16 or four int8 numbers, which
 * one instruction multiplies with a unit of each of 16 outputs. Weights are repacked while they are used, a panel at a
 * time: they stay in memory as torch stores them. Sums are float32 or int32 in the order of the inputs, whatever the
 * number of rows and threads.
 */
#ifndef IDEFICS_MATMUL_H
#define IDEFICS_MATMUL_H

#include "api.h"
#include "norm.h"

#include <stdatomic.h>

enum { UNIT_BYTES = 4 };
enum { TILE_ROWS = 12 };                   /* rows multiplied together: 24 sums and 2 weights fit 32 registers */
enum { TILE_OUTPUTS = 32 };                /* outputs multiplied together: two vectors */
enum { PANEL_OUTPUTS = 2 * TILE_OUTPUTS }; /* outputs that a thread takes */
enum { NO_ACTIVATION = -1 };               /* or SILU to RELU */

typedef struct {       /* rows rounded to bfloat16 or int8 */
    uint32_t *units;   /* (rows, stride); padded with zeros to a whole unit */
    int64_t stride;    /* units of a row */
    float *scales;     /* (rows,) of int8: x = level * scale; NaN for a row with NaN or an infinity */
    int32_t *offsets;  /* (rows,) of int8: -128 times the sum of levels, since weights are multiplied 128 too large */
} RoundedRows;

typedef struct { /* what is done with the sums of one or more outputs */
    const float *scales, *bias; /* of each output; NULL: none */
    int activation;
    const float *factor;   /* multiplied after the activation; NULL: none */
    const float *residual; /* added at last; NULL: none */
    float *floats;         /* where results go: float32 or bfloat16, the other is NULL */
    uint16_t *halves;
    int64_t stride; /* numbers of a row of `factor`, `residual` and the result */
} Epilogue;

typedef struct {
    /* Rounds a row of `inputs` floats. */
    void (*round_row)(const float *x, int64_t inputs, const RoundedRows *rows, int64_t row);
    /* Packs TILE_OUTPUTS outputs, (units, TILE_OUTPUTS): those from `outputs` on are zero. Rows of the weight are
     * `row_bytes` apart and hold `inputs` numbers. */
    void (*pack_tile)(const void *weight, int64_t row_bytes, int64_t inputs, int64_t outputs, uint32_t *tile);
    /* Up to TILE_ROWS rows from `row` on times a packed tile; writes `outputs` results of each from the epilogue's
     * pointers on, which belong to row 0 and the tile's first output. */
    void (*multiply_tile)(const RoundedRows *rows, int64_t row, int64_t end, const uint32_t *tile, int64_t units,
                          const Epilogue *epilogue, int64_t outputs);
    int numbers_per_unit;
} MatmulKernel;

/* The kernel for a kind of weight: INT8, or BFLOAT16, into which INT4 is dequantized. NULL if this processor has no
 * instructions for it. */
const MatmulKernel *matmul_kernel(int kind);
extern const MatmulKernel matmul_bfloat16, matmul_int8;

static inline int64_t min_int64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* A stage of work in pieces, which threads take one after another: a slow or late thread takes fewer. */
typedef void RunPiece(void *context, int64_t piece, uint32_t *scratch);

/* Linear layers of the same rows, one after another: the memory and threads that they share. */
typedef struct {
    int threads;
    Parallel *parallel;
    int64_t num_rows;
    RoundedRows rounded; /* inputs of the next product */
    uint32_t *memory, *scratch; /* scratch: (threads, scratch_units) */
    int64_t scratch_units;
} RowWork;

/* Allocates memory for rows of up to `widest` inputs, for at least `scratch_units` units a thread in the pieces of other
 * stages, and for `more` units, of which `*rest` becomes the address. -> 0 without memory. */
int row_work_new(RowWork *work, int threads, Parallel *parallel, int64_t num_rows, int64_t widest,
                 int64_t scratch_units, int64_t more, uint32_t **rest);
void row_work_free(RowWork *work);
void run_pieces(RowWork *work, RunPiece *run_piece, void *context, int64_t pieces);

/* Rounds `x` (rows, inputs), after a norm if its weight is given, for products with weights of this layer's kind. */
void round_rows(RowWork *work, const Linear *linear, const float *x, const Norm *norm);
/* The rounded rows times a weight; the epilogue's scales are taken from the layer. */
void multiply_rows(RowWork *work, const Linear *linear, Epilogue epilogue);

/* One output of an INT4 layer in float32: quantized.c. */
void dequantize_int4_row(const Linear *linear, int64_t output, float *out);

#endif
