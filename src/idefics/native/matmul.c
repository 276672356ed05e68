/* Linear layers of many rows, made of the kernels of `matmul.h`. */
#include "matmul.h"

#include <stdlib.h>
#include <string.h>

const MatmulKernel *matmul_kernel(int kind) {
#if defined(__x86_64__)
    if ((kind == BFLOAT16 || kind == INT4) && idefics_has_instruction_set(AVX512_BF16)) return &matmul_bfloat16;
    if (kind == INT8 && idefics_has_instruction_set(AVX512_VNNI)) return &matmul_int8;
#endif
    (void)kind;
    return NULL;
}

/* --- work in pieces --- */

typedef struct {
    RunPiece *run_piece;
    void *context;
    const RowWork *work;
    int64_t pieces;
    atomic_llong next_piece;
    atomic_int next_thread;
} Stage;

static void stage_worker(void *shared) {
    Stage *stage = shared;
    uint32_t *scratch = stage->work->scratch + atomic_fetch_add(&stage->next_thread, 1) * stage->work->scratch_units;
    for (int64_t piece; (piece = atomic_fetch_add(&stage->next_piece, 1)) < stage->pieces;)
        stage->run_piece(stage->context, piece, scratch);
}

void run_pieces(RowWork *work, RunPiece *run_piece, void *context, int64_t pieces) {
    Stage stage = {run_piece, context, work, pieces, 0, 0};
    if (work->threads > 1 && pieces > 1)
        work->parallel(stage_worker, &stage, (unsigned)work->threads, 0);
    else
        stage_worker(&stage);
}

/* A packed panel; for INT4 also one output in float32, and a tile of outputs in bfloat16. */
static int64_t linear_scratch_units(int64_t inputs) {
    return (PANEL_OUTPUTS + TILE_OUTPUTS) * ceil_div(inputs, 2) + inputs;
}

int row_work_new(RowWork *work, int threads, Parallel *parallel, int64_t num_rows, int64_t widest,
                 int64_t scratch_units, int64_t more, uint32_t **rest) {
    int64_t linear = linear_scratch_units(widest), rounded = num_rows * ceil_div(widest, 2);
    scratch_units = linear > scratch_units ? linear : scratch_units;
    uint32_t *memory = malloc(UNIT_BYTES * (size_t)(threads * scratch_units + rounded + 2 * num_rows + more));
    if (!memory) return 0;
    uint32_t *units = memory + threads * scratch_units;
    float *scales = (float *)(units + rounded);
    *work = (RowWork){threads, parallel, num_rows, {units, 0, scales, (int32_t *)(scales + num_rows)}, memory, memory,
                      scratch_units};
    *rest = (uint32_t *)(scales + 2 * num_rows);
    return 1;
}

void row_work_free(RowWork *work) { free(work->memory); }

/* --- rounding --- */

enum { ROWS_PER_PIECE = 16 };

typedef struct {
    const RowWork *work;
    const MatmulKernel *kernel;
    const float *x;
    int64_t inputs;
    const Norm *norm;
} RoundStage;

static void round_piece(void *context, int64_t piece, uint32_t *scratch) {
    const RoundStage *stage = context;
    int64_t end = min_int64((piece + 1) * ROWS_PER_PIECE, stage->work->num_rows);
    for (int64_t row = piece * ROWS_PER_PIECE; row < end; row++) {
        const float *x = stage->x + row * stage->inputs;
        if (stage->norm->weight) {
            normalize_row(x, stage->inputs, stage->norm, (float *)scratch);
            x = (const float *)scratch;
        }
        stage->kernel->round_row(x, stage->inputs, &stage->work->rounded, row);
    }
}

void round_rows(RowWork *work, const Linear *linear, const float *x, const Norm *norm) {
    RoundStage stage = {work, matmul_kernel(linear->kind), x, linear->inputs, norm};
    work->rounded.stride = ceil_div(linear->inputs, stage.kernel->numbers_per_unit);
    run_pieces(work, round_piece, &stage, ceil_div(work->num_rows, ROWS_PER_PIECE));
}

/* --- products --- */

typedef struct {
    const RowWork *work;
    const MatmulKernel *kernel;
    const Linear *linear;
    Epilogue epilogue;
} LinearStage;

static float number_at(const void *numbers, int kind, int64_t at) {
    if (kind == FLOAT32) return ((const float *)numbers)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)numbers)[at] << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* Packs up to TILE_OUTPUTS outputs from `output` on. */
static void pack_outputs(const LinearStage *stage, int64_t output, int64_t outputs, uint32_t *tile, uint32_t *scratch) {
    const Linear *linear = stage->linear;
    int64_t units = ceil_div(linear->inputs, stage->kernel->numbers_per_unit);
    int64_t row_bytes = linear->inputs * UNIT_BYTES / stage->kernel->numbers_per_unit;
    if (linear->kind != INT4) {
        stage->kernel->pack_tile((const char *)linear->weight + output * row_bytes, row_bytes, linear->inputs, outputs,
                                 tile);
        return;
    }
    RoundedRows rows = {scratch, units, NULL, NULL};
    float *floats = (float *)(scratch + TILE_OUTPUTS * units);
    for (int64_t row = 0; row < outputs; row++) {
        dequantize_int4_row(linear, output + row, floats);
        stage->kernel->round_row(floats, linear->inputs, &rows, row);
    }
    stage->kernel->pack_tile(scratch, units * UNIT_BYTES, linear->inputs, outputs, tile);
}

static void multiply_piece(void *context, int64_t piece, uint32_t *scratch) {
    const LinearStage *stage = context;
    const Linear *linear = stage->linear;
    const MatmulKernel *kernel = stage->kernel;
    int64_t first = piece * PANEL_OUTPUTS, units = ceil_div(linear->inputs, kernel->numbers_per_unit);
    Epilogue epilogues[PANEL_OUTPUTS / TILE_OUTPUTS];
    float scales[PANEL_OUTPUTS];
    int tiles = 0;
    for (int64_t output = first; output < min_int64(first + PANEL_OUTPUTS, linear->outputs); output += TILE_OUTPUTS) {
        Epilogue *epilogue = &epilogues[tiles];
        int64_t outputs = min_int64(TILE_OUTPUTS, linear->outputs - output);
        *epilogue = stage->epilogue;
        if (linear->kind == INT8) {
            epilogue->scales = scales + tiles * TILE_OUTPUTS;
            for (int64_t i = 0; i < outputs; i++)
                scales[tiles * TILE_OUTPUTS + i] = number_at(linear->scale, linear->scale_kind, output + i);
        }
        if (epilogue->bias) epilogue->bias += output;
        if (epilogue->factor) epilogue->factor += output;
        if (epilogue->residual) epilogue->residual += output;
        if (epilogue->floats) epilogue->floats += output;
        if (epilogue->halves) epilogue->halves += output;
        pack_outputs(stage, output, outputs, scratch + tiles++ * TILE_OUTPUTS * units,
                     scratch + PANEL_OUTPUTS * units);
    }
    for (int64_t row = 0; row < stage->work->num_rows; row += TILE_ROWS)
        for (int tile = 0; tile < tiles; tile++)
            kernel->multiply_tile(&stage->work->rounded, row, stage->work->num_rows, scratch + tile * TILE_OUTPUTS * units, units,
                                  &epilogues[tile], linear->outputs - first - tile * TILE_OUTPUTS);
}

void multiply_rows(RowWork *work, const Linear *linear, Epilogue epilogue) {
    LinearStage stage = {work, matmul_kernel(linear->kind), linear, epilogue};
    run_pieces(work, multiply_piece, &stage, ceil_div(linear->outputs, PANEL_OUTPUTS));
}

/* --- called from Python --- */

static const Norm NO_NORM = {NULL, NULL, 0.0f};

int idefics_matmul(const MatmulArgs *args, int threads, Parallel *parallel) {
    RowWork work;
    uint32_t *rest;
    if (!matmul_kernel(args->linear.kind)
        || !row_work_new(&work, threads, parallel, args->rows, args->linear.inputs, 0, 0, &rest))
        return 0;
    round_rows(&work, &args->linear, args->x, &NO_NORM);
    multiply_rows(&work, &args->linear,
                  (Epilogue){.bias = args->bias,
                             .activation = NO_ACTIVATION,
                             .residual = args->residual,
                             .floats = args->out,
                             .stride = args->linear.outputs});
    row_work_free(&work);
    return 1;
}

typedef struct {
    const QkvArgs *args;
    int64_t stride;
} RotateStage;

/* Rotates the pairs (i, i + size / 2) of the heads of queries and keys. */
static void rotate_piece(void *context, int64_t row, uint32_t *scratch) {
    const RotateStage *stage = context;
    const QkvArgs *args = stage->args;
    int64_t size = args->size, half = size / 2;
    const float *cosines = args->cosines + row * size, *sines = args->sines + row * size;
    (void)scratch;
    for (int64_t head = 0; head < args->rotated_heads; head++) {
        float *low = args->out + row * stage->stride + head * size, *high = low + half;
        for (int64_t i = 0; i < half; i++) {
            float first = low[i], second = high[i];
            low[i] = first * cosines[i] - second * sines[i];
            high[i] = second * cosines[half + i] + first * sines[half + i];
        }
    }
}

int idefics_project_qkv(const QkvArgs *args, int threads, Parallel *parallel) {
    RowWork work;
    uint32_t *rest;
    if (!matmul_kernel(args->q.kind) || args->k.kind != args->q.kind || args->v.kind != args->q.kind
        || !row_work_new(&work, threads, parallel, args->rows, args->q.inputs, 0, 0, &rest))
        return 0;
    Norm norm = {args->norm, NULL, args->epsilon};
    RotateStage rotate = {args, args->q.outputs + args->k.outputs + args->v.outputs};
    Epilogue epilogue = {.activation = NO_ACTIVATION, .floats = args->out, .stride = rotate.stride};
    round_rows(&work, &args->q, args->x, &norm);
    multiply_rows(&work, &args->q, epilogue);
    epilogue.floats += args->q.outputs;
    multiply_rows(&work, &args->k, epilogue);
    epilogue.floats += args->k.outputs;
    multiply_rows(&work, &args->v, epilogue);
    run_pieces(&work, rotate_piece, &rotate, args->rows);
    row_work_free(&work);
    return 1;
}

int idefics_gated_mlp(const GatedMlpArgs *args, int threads, Parallel *parallel) {
    const Mlp *mlp = &args->mlp;
    int64_t inner = mlp->gate.outputs, widest = inner > mlp->gate.inputs ? inner : mlp->gate.inputs;
    RowWork work;
    uint32_t *rest;
    if (!matmul_kernel(mlp->gate.kind) || mlp->up.kind != mlp->gate.kind || !matmul_kernel(mlp->down.kind)
        || !row_work_new(&work, threads, parallel, args->rows, widest, 0, args->rows * inner, &rest))
        return 0;
    float *gated = (float *)rest;
    Norm norm = {args->norm, NULL, args->epsilon};
    round_rows(&work, &mlp->gate, args->x, &norm);
    multiply_rows(&work, &mlp->gate, (Epilogue){.activation = args->activation, .floats = gated, .stride = inner});
    multiply_rows(&work, &mlp->up,
                  (Epilogue){.activation = NO_ACTIVATION, .factor = gated, .floats = gated, .stride = inner});
    round_rows(&work, &mlp->down, gated, &NO_NORM);
    multiply_rows(&work, &mlp->down,
                  (Epilogue){.activation = NO_ACTIVATION,
                             .residual = args->residual,
                             .floats = args->out,
                             .stride = mlp->down.outputs});
    row_work_free(&work);
    return 1;
}
