/* Products of many rows with weights in bfloat16 or int8, on processors with dot products of them (AVX-512).
 *
 * Inputs are rounded to the weight's kind and stored in units of four bytes: two bfloat16 or four int8 numbers, which
 * one instruction multiplies with a unit of each of 16 outputs. Weights are repacked while they are used, a tile at a
 * time: they stay in memory as torch stores them. Sums are float32 or int32 in the order of the inputs, whatever the
 * number of rows and threads.
 */
#ifndef IDEFICS_MATMUL_H
#define IDEFICS_MATMUL_H

#include "api.h"
#include "norm.h"

enum { UNIT_BYTES = 4 };
enum { TILE_ROWS = 12 };     /* rows multiplied together: 24 sums and 2 weights fit 32 registers */
enum { TILE_OUTPUTS = 32 };  /* outputs multiplied together, two vectors, which a thread takes */
enum { NO_ACTIVATION = -1 }; /* or SILU to RELU */

typedef struct {      /* rows rounded to bfloat16 or int8 */
    uint32_t *units;  /* (rows, stride); padded with zeros to a whole unit */
    int64_t stride;   /* units of a row */
    float *scales;    /* (rows,) of int8: x = level * scale; NaN for a row with NaN or an infinity */
    int32_t *offsets; /* (rows,) of int8: -128 times the sum of levels, since weights are multiplied 128 too large */
} RoundedRows;

typedef struct {                /* what is done with the sums of one or more outputs */
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
     * pointers on, which belong to row 0 and the tile's first output. Prefetches `units` cache lines from `next` on. */
    void (*multiply_tile)(const RoundedRows *rows, int64_t row, int64_t end, const uint32_t *tile, int64_t units,
                          const char *next, const Epilogue *epilogue, int64_t outputs);
    int numbers_per_unit;
} MatmulKernel;

/* The kernel for a kind of weight: INT8, or BFLOAT16, into which INT4 is dequantized. NULL if this processor has no
 * instructions for it. */
const MatmulKernel *matmul_kernel(int kind);
extern const MatmulKernel matmul_bfloat16, matmul_int8;

static inline int64_t min_int64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* --- threads ---
 *
 * All threads of a call run the same function, stage by stage. A stage is work in pieces: threads take one piece after
 * another, and the thread that finishes the last one begins the next stage. So nobody waits for a thread that holds no
 * piece: one that the system has descheduled delays nobody, and passes over the stages that are done when it runs
 * again.
 */

typedef struct Team Team;

typedef struct { /* of one thread */
    Team *team;
    uint32_t stage;      /* number of the next stage of this thread */
    uint32_t *scratch;   /* memory of this thread */
    uint32_t *shared;    /* memory of all threads */
    int64_t num_rows;    /* of the products that follow */
    RoundedRows rounded; /* inputs of the next product; the memory is of all threads */
} Work;

typedef struct {          /* the memory that a call needs, in units */
    int64_t rows, widest; /* products of this many rows of up to this many inputs */
    int64_t scratch;      /* for each thread, at least */
    int64_t shared;
} MemoryNeeds;

typedef void Program(Work *work, const void *args);
typedef void RunPiece(const void *context, int64_t piece, uint32_t *scratch);

/* Runs `program` on all threads. -> 0 without memory. */
int run_program(Program *program, const void *args, MemoryNeeds needs, int threads, Parallel *parallel);
/* One stage: returns when all its pieces are done. Threads give equal arguments in the same order. */
void run_pieces(Work *work, RunPiece *run_piece, const void *context, int64_t pieces);

/* --- products, as stages --- */

/* Rounds `x` (rows, inputs), after a norm if its weight is given, for products with weights of this layer's kind. */
void round_rows(Work *work, const Linear *linear, const float *x, const Norm *norm);
/* The rounded rows times a weight; the epilogue's scales are taken from the layer. */
void multiply_rows(Work *work, const Linear *linear, Epilogue epilogue);

/* One output of an INT4 layer in float32: quantized.c. */
void dequantize_int4_row(const Linear *linear, int64_t output, float *out);

#endif
