/* Linear layers of many rows, made of the kernels of `matmul.h`. */
#include "matmul.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const MatmulKernel *matmul_kernel(int kind) {
#if defined(__x86_64__)
    if ((kind == BFLOAT16 || kind == INT4) && idefics_has_instruction_set(AVX512_BF16)) return &matmul_bfloat16;
    if (kind == INT8 && idefics_has_instruction_set(AVX512_VNNI)) return &matmul_int8;
#endif
    (void)kind;
    return NULL;
}

/* --- threads --- */

enum {
    SPINS = 2000,
    SLEEP_NANOSECONDS = 20000
}; /* of a thread that waits for a stage's end: some 50 us, then pauses */

struct Team {
    _Atomic uint64_t place; /* number of the current stage << 32 | its next piece */
    _Atomic int64_t done;   /* finished pieces of the current stage */
    atomic_int next_thread;
    Program *program;
    const void *args;
    int64_t scratch_units;
    int threads;
    Work work; /* what each thread begins with; `scratch`: of the first thread */
};

static void wait_for_next_stage(Team *team, uint32_t stage) {
    const struct timespec pause = {0, SLEEP_NANOSECONDS};
    for (int i = 0; atomic_load(&team->place) >> 32 == stage; i++) {
        if (i >= SPINS) nanosleep(&pause, NULL);
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

void run_pieces(Work *work, RunPiece *run_piece, const void *context, int64_t pieces) {
    if (!pieces) return;
    Team *team = work->team;
    uint32_t stage = work->stage++;
    uint64_t place = atomic_load(&team->place);
    while (place >> 32 == stage) {
        int64_t piece = (int64_t)(uint32_t)place;
        if (piece >= pieces) {
            wait_for_next_stage(team, stage);
            return;
        }
        /* Succeeds only while this stage is current, which then waits for this piece. */
        if (!atomic_compare_exchange_weak(&team->place, &place, place + 1)) continue;
        run_piece(context, piece, work->scratch);
        if (atomic_fetch_add(&team->done, 1) + 1 == pieces) {
            atomic_store(&team->done, 0);
            atomic_store(&team->place, (uint64_t)(stage + 1) << 32);
        }
        place = atomic_load(&team->place);
    }
}

static void thread_main(void *shared) {
    Team *team = shared;
    Work work = team->work;
    work.scratch += atomic_fetch_add(&team->next_thread, 1) * team->scratch_units;
    team->program(&work, team->args);
}

/* A packed tile; for INT4 also one output in float32, and a tile of outputs in bfloat16. */
static int64_t linear_scratch_units(int64_t inputs) { return (2 * TILE_OUTPUTS) * ceil_div(inputs, 2) + inputs; }

int run_program(Program *program, const void *args, MemoryNeeds needs, int threads, Parallel *parallel) {
    int64_t linear = linear_scratch_units(needs.widest), rounded = needs.rows * ceil_div(needs.widest, 2);
    int64_t scratch = linear > needs.scratch ? linear : needs.scratch;
    uint32_t *memory = malloc(UNIT_BYTES * (size_t)(threads * scratch + rounded + 2 * needs.rows + needs.shared) + 1);
    if (!memory) return 0;
    Team team = {.program = program, .args = args, .scratch_units = scratch, .threads = threads};
    uint32_t *units = memory + threads * scratch;
    float *scales = (float *)(units + rounded);
    team.work = (Work){&team,      0,
                       memory,     (uint32_t *)(scales + 2 * needs.rows),
                       needs.rows, {units, 0, scales, (int32_t *)(scales + needs.rows)}};
    if (threads > 1)
        parallel(thread_main, &team, (unsigned)threads, 0);
    else
        thread_main(&team);
    free(memory);
    return 1;
}

/* --- rounding --- */

enum { ROWS_PER_PIECE = 16 };

typedef struct {
    const Work *work;
    const MatmulKernel *kernel;
    const float *x;
    int64_t inputs;
    const Norm *norm;
} RoundStage;

static void round_piece(const void *context, int64_t piece, uint32_t *scratch) {
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

void round_rows(Work *work, const Linear *linear, const float *x, const Norm *norm) {
    RoundStage stage = {work, matmul_kernel(linear->kind), x, linear->inputs, norm};
    work->rounded.stride = ceil_div(linear->inputs, stage.kernel->numbers_per_unit);
    run_pieces(work, round_piece, &stage, ceil_div(work->num_rows, ROWS_PER_PIECE));
}

/* --- products --- */

typedef struct {
    const Work *work;
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

/* Bytes of the weights of one output as they are stored: those of INT4 have half a byte, and a unit only once they are
 * dequantized. */
static int64_t stored_row_bytes(const LinearStage *stage) {
    int64_t inputs = stage->linear->inputs;
    return stage->linear->kind == INT4 ? inputs / 2 : inputs * UNIT_BYTES / stage->kernel->numbers_per_unit;
}

/* Packs up to TILE_OUTPUTS outputs from `output` on. */
static void pack_outputs(const LinearStage *stage, int64_t output, int64_t outputs, uint32_t *tile, uint32_t *scratch) {
    const Linear *linear = stage->linear;
    int64_t units = ceil_div(linear->inputs, stage->kernel->numbers_per_unit);
    int64_t row_bytes = stored_row_bytes(stage);
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

/* The weights that this thread will probably pack after those from `output` on; at the end: these again. */
static const char *next_outputs(const LinearStage *stage, int64_t output) {
    int64_t next = output + stage->work->team->threads * TILE_OUTPUTS;
    if (next + TILE_OUTPUTS > stage->linear->outputs) next = output;
    return (const char *)stage->linear->weight + next * stored_row_bytes(stage);
}

static void multiply_piece(const void *context, int64_t piece, uint32_t *scratch) {
    const LinearStage *stage = context;
    const Linear *linear = stage->linear;
    int64_t first = piece * TILE_OUTPUTS, outputs = min_int64(TILE_OUTPUTS, linear->outputs - first);
    int64_t units = ceil_div(linear->inputs, stage->kernel->numbers_per_unit);
    Epilogue epilogue = stage->epilogue;
    float scales[TILE_OUTPUTS];
    if (linear->kind == INT8) {
        for (int64_t i = 0; i < outputs; i++) scales[i] = number_at(linear->scale, linear->scale_kind, first + i);
        epilogue.scales = scales;
    }
    if (epilogue.bias) epilogue.bias += first;
    if (epilogue.factor) epilogue.factor += first;
    if (epilogue.residual) epilogue.residual += first;
    if (epilogue.floats) epilogue.floats += first;
    if (epilogue.halves) epilogue.halves += first;
    pack_outputs(stage, first, outputs, scratch, scratch + TILE_OUTPUTS * units);
    const char *cached = (const char *)scratch, *next = next_outputs(stage, first);
    const char *end = next + TILE_OUTPUTS * stored_row_bytes(stage);
    for (int64_t row = 0; row < stage->work->num_rows; row += TILE_ROWS, next += units * CACHE_LINE_BYTES)
        stage->kernel->multiply_tile(&stage->work->rounded, row, stage->work->num_rows, scratch, units,
                                     next < end ? next : cached, &epilogue, outputs);
}

void multiply_rows(Work *work, const Linear *linear, Epilogue epilogue) {
    LinearStage stage = {work, matmul_kernel(linear->kind), linear, epilogue};
    run_pieces(work, multiply_piece, &stage, ceil_div(linear->outputs, TILE_OUTPUTS));
}

/* --- called from Python --- */

static const Norm NO_NORM = {NULL, NULL, 0.0f};

static void matmul_program(Work *work, const void *matmul_args) {
    const MatmulArgs *args = matmul_args;
    round_rows(work, &args->linear, args->x, &NO_NORM);
    multiply_rows(work, &args->linear,
                  (Epilogue){.bias = args->bias,
                             .activation = NO_ACTIVATION,
                             .residual = args->residual,
                             .floats = args->out,
                             .stride = args->linear.outputs});
}

int idefics_matmul(const MatmulArgs *args, int threads, Parallel *parallel) {
    if (!matmul_kernel(args->linear.kind)) return 0;
    return run_program(matmul_program, args, (MemoryNeeds){args->rows, args->linear.inputs, 0, 0}, threads, parallel);
}

typedef struct {
    const QkvArgs *args;
    int64_t stride;
} RotateStage;

/* Rotates the pairs (i, i + size / 2) of the heads of queries and keys of one row. */
static void rotate_row(const QkvArgs *args, int64_t row, float *heads) {
    int64_t size = args->size, half = size / 2;
    const float *cosines = args->cosines + row * size, *sines = args->sines + row * size;
    for (int64_t head = 0; head < args->rotated_heads; head++) {
        float *low = heads + head * size, *high = low + half;
        for (int64_t i = 0; i < half; i++) {
            float first = low[i], second = high[i];
            low[i] = first * cosines[i] - second * sines[i];
            high[i] = second * cosines[half + i] + first * sines[half + i];
        }
    }
}

static void rotate_piece(const void *context, int64_t piece, uint32_t *scratch) {
    const RotateStage *stage = context;
    int64_t end = min_int64((piece + 1) * ROWS_PER_PIECE, stage->args->rows);
    (void)scratch;
    for (int64_t row = piece * ROWS_PER_PIECE; row < end; row++)
        rotate_row(stage->args, row, stage->args->out + row * stage->stride);
}

static void qkv_program(Work *work, const void *qkv_args) {
    const QkvArgs *args = qkv_args;
    Norm norm = {args->norm, NULL, args->epsilon};
    RotateStage rotate = {args, args->q.outputs + args->k.outputs + args->v.outputs};
    Epilogue epilogue = {.activation = NO_ACTIVATION, .floats = args->out, .stride = rotate.stride};
    round_rows(work, &args->q, args->x, &norm);
    multiply_rows(work, &args->q, epilogue);
    epilogue.floats += args->q.outputs;
    multiply_rows(work, &args->k, epilogue);
    epilogue.floats += args->k.outputs;
    multiply_rows(work, &args->v, epilogue);
    run_pieces(work, rotate_piece, &rotate, ceil_div(args->rows, ROWS_PER_PIECE));
}

int idefics_project_qkv(const QkvArgs *args, int threads, Parallel *parallel) {
    if (!matmul_kernel(args->q.kind) || args->k.kind != args->q.kind || args->v.kind != args->q.kind) return 0;
    return run_program(qkv_program, args, (MemoryNeeds){args->rows, args->q.inputs, 0, 0}, threads, parallel);
}

static void mlp_program(Work *work, const void *mlp_args) {
    const GatedMlpArgs *args = mlp_args;
    const Mlp *mlp = &args->mlp;
    float *gated = (float *)work->shared;
    Norm norm = {args->norm, NULL, args->epsilon};
    Epilogue epilogue = {.activation = args->activation, .floats = gated, .stride = mlp->gate.outputs};
    round_rows(work, &mlp->gate, args->x, &norm);
    multiply_rows(work, &mlp->gate, epilogue);
    epilogue.activation = NO_ACTIVATION, epilogue.factor = gated;
    multiply_rows(work, &mlp->up, epilogue);
    round_rows(work, &mlp->down, gated, &NO_NORM);
    multiply_rows(
        work, &mlp->down,
        (Epilogue){
            .activation = NO_ACTIVATION, .residual = args->residual, .floats = args->out, .stride = mlp->down.outputs});
}

int idefics_gated_mlp(const GatedMlpArgs *args, int threads, Parallel *parallel) {
    const Mlp *mlp = &args->mlp;
    int64_t inner = mlp->gate.outputs, widest = inner > mlp->gate.inputs ? inner : mlp->gate.inputs;
    if (!matmul_kernel(mlp->gate.kind) || mlp->up.kind != mlp->gate.kind || !matmul_kernel(mlp->down.kind)) return 0;
    return run_program(mlp_program, args, (MemoryNeeds){args->rows, widest, 0, args->rows * inner}, threads, parallel);
}
