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

static void stage_worker(void *shared) {
    Stage *stage = shared;
    uint32_t *scratch = stage->scratch + atomic_fetch_add(&stage->next_thread, 1) * stage->scratch_units;
    for (int64_t piece; (piece = atomic_fetch_add(&stage->next_piece, 1)) < stage->pieces;)
        stage->run_piece(stage->context, piece, scratch);
}

void run_stage(Stage *stage, int threads, Parallel *parallel) {
    if (threads > 1 && stage->pieces > 1)
        parallel(stage_worker, stage, (unsigned)threads, 0);
    else
        stage_worker(stage);
}

static float number_at(const void *numbers, int kind, int64_t at) {
    if (kind == FLOAT32) return ((const float *)numbers)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)numbers)[at] << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* A packed panel; for INT4 also one output in float32, and a tile of outputs in bfloat16. */
int64_t linear_scratch_units(int64_t inputs) { return (PANEL_OUTPUTS + TILE_OUTPUTS) * ceil_div(inputs, 2) + inputs; }

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

void run_linear_piece(void *context, int64_t piece, uint32_t *scratch) {
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
        if (epilogue->residual) epilogue->residual += output;
        if (epilogue->floats) epilogue->floats += output;
        if (epilogue->halves) epilogue->halves += output;
        pack_outputs(stage, output, outputs, scratch + tiles++ * TILE_OUTPUTS * units,
                     scratch + PANEL_OUTPUTS * units);
    }
    for (int64_t row = 0; row < stage->num_rows; row += TILE_ROWS)
        for (int tile = 0; tile < tiles; tile++)
            kernel->multiply_tile(stage->rows, row, stage->num_rows, scratch + tile * TILE_OUTPUTS * units, units,
                                  &epilogues[tile], linear->outputs - first - tile * TILE_OUTPUTS);
}

enum { ROWS_PER_PIECE = 16 };

typedef struct {
    const MatmulArgs *args;
    const MatmulKernel *kernel;
    RoundedRows rows;
} RoundStage;

static void round_piece(void *context, int64_t piece, uint32_t *scratch) {
    const RoundStage *stage = context;
    (void)scratch;
    int64_t inputs = stage->args->linear.inputs, end = min_int64((piece + 1) * ROWS_PER_PIECE, stage->args->rows);
    for (int64_t row = piece * ROWS_PER_PIECE; row < end; row++)
        stage->kernel->round_row(stage->args->x + row * inputs, inputs, &stage->rows, row);
}

int idefics_matmul(const MatmulArgs *args, int threads, Parallel *parallel) {
    const MatmulKernel *kernel = matmul_kernel(args->linear.kind);
    if (!kernel) return 0;
    int64_t stride = ceil_div(args->linear.inputs, kernel->numbers_per_unit);
    int64_t scratch_units = linear_scratch_units(args->linear.inputs);
    uint32_t *memory = malloc(UNIT_BYTES * (size_t)(threads * scratch_units + args->rows * (stride + 2)));
    if (!memory) return 0;
    uint32_t *units = memory + threads * scratch_units;
    RoundStage rounding = {args, kernel, {units, stride, (float *)(units + args->rows * stride), NULL}};
    rounding.rows.offsets = (int32_t *)(rounding.rows.scales + args->rows);
    Stage round = {round_piece, &rounding, ceil_div(args->rows, ROWS_PER_PIECE), memory, scratch_units, 0, 0};
    run_stage(&round, threads, parallel);
    LinearStage linear = {kernel, &rounding.rows, args->rows, &args->linear, {0}};
    linear.epilogue = (Epilogue){NULL, args->bias, NO_ACTIVATION, NULL, args->out, NULL, args->linear.outputs};
    Stage multiply = {run_linear_piece, &linear, ceil_div(args->linear.outputs, PANEL_OUTPUTS), memory, scratch_units,
                      0, 0};
    run_stage(&multiply, threads, parallel);
    free(memory);
    return 1;
}
