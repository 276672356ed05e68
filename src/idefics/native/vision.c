/* The layers of a vision transformer whose weights are bfloat16 or int8: pre-norm attention, then a pre-norm MLP.
 *
 * A few frames pass through all layers before the next ones, so that their activations stay in the caches. Residuals,
 * norms, softmax and sums are float32; what a product multiplies is rounded to the kind of its weight, queries, keys,
 * values and attention weights to bfloat16.
 */
#include "attention_bfloat16.h"
#include "layer_norm.h"

#include <stdlib.h>

enum { ROWS_PER_PIECE = 16 };
enum { ROWS_AT_ONCE = 1024 };  /* patches of the frames that pass through the layers together */

typedef struct { /* one chunk of frames on its way through the layers, and the memory of all stages */
    const VisionArgs *args;
    const VisionLayer *layer;
    const MatmulKernel *bfloat16;
    int threads;
    Parallel *parallel;
    float *x; /* (rows, D) */
    int64_t frames, rows;
    RoundedRows rounded;    /* inputs of the next product: up to max(D, intermediate size) numbers a row */
    uint16_t *q, *k, *v;    /* (rows, D) bfloat16 */
    float *floats;          /* (rows, max(D, intermediate size)): inputs of a product before they are rounded */
    uint32_t *scratch;
    int64_t scratch_units;
} Encoder;

static void run(Encoder *encoder, void (*run_piece)(void *, int64_t, uint32_t *), void *context, int64_t pieces) {
    Stage stage = {run_piece, context, pieces, encoder->scratch, encoder->scratch_units, 0, 0};
    run_stage(&stage, encoder->threads, encoder->parallel);
}

typedef struct {
    Encoder *encoder;
    const MatmulKernel *kernel;
    const float *x, *norm, *norm_bias; /* norm: NULL for none */
    int64_t inputs;
} RoundStage;

/* Normalises some rows and rounds them. */
static void round_piece(void *context, int64_t piece, uint32_t *scratch) {
    const RoundStage *stage = context;
    const Encoder *encoder = stage->encoder;
    int64_t end = min_int64((piece + 1) * ROWS_PER_PIECE, encoder->rows);
    for (int64_t row = piece * ROWS_PER_PIECE; row < end; row++) {
        const float *x = stage->x + row * stage->inputs;
        if (stage->norm) {
            layer_norm(x, stage->inputs, stage->norm, stage->norm_bias, encoder->args->epsilon,
                              (float *)scratch);
            x = (const float *)scratch;
        }
        stage->kernel->round_row(x, stage->inputs, &encoder->rounded, row);
    }
}

/* Rounds `x` (rows, inputs), after a norm if there is one, for a product with this weight. */
static void round_rows(Encoder *encoder, const Linear *linear, const float *x, const float *norm,
                       const float *norm_bias) {
    const MatmulKernel *kernel = matmul_kernel(linear->kind);
    RoundStage stage = {encoder, kernel, x, norm, norm_bias, linear->inputs};
    encoder->rounded.stride = ceil_div(linear->inputs, kernel->numbers_per_unit);
    run(encoder, round_piece, &stage, ceil_div(encoder->rows, ROWS_PER_PIECE));
}

/* The rounded rows times a weight; results are stored as floats or as halves. */
static void multiply(Encoder *encoder, const BiasedLinear *layer, int activation, const float *residual, float *floats,
                     uint16_t *halves) {
    const Linear *linear = &layer->linear;
    LinearStage stage = {matmul_kernel(linear->kind), &encoder->rounded, encoder->rows, linear,
                         {NULL, layer->bias, activation, residual, floats, halves, linear->outputs}};
    run(encoder, run_linear_piece, &stage, ceil_div(linear->outputs, PANEL_OUTPUTS));
}

/* Attention of some queries of one head: pieces are (frame, head, block of queries). */
static void attention_piece(void *context, int64_t piece, uint32_t *scratch) {
    const Encoder *encoder = context;
    const VisionArgs *args = encoder->args;
    int64_t blocks = ceil_div(args->patches, QUERIES_PER_PIECE), size = args->width / args->heads;
    int64_t block = piece % blocks, head = piece / blocks % args->heads, frame = piece / blocks / args->heads;
    int64_t start = frame * args->patches * args->width + head * size, first = block * QUERIES_PER_PIECE;
    HeadAttention attention = {.kernel = encoder->bfloat16,
                               .q = encoder->q + start,
                               .k = encoder->k + start,
                               .v = encoder->v + start,
                               .out = encoder->floats + start,
                               .stride = args->width,
                               .out_stride = args->width,
                               .keys = args->patches,
                               .size = size,
                               .first_query = first,
                               .end_query = min_int64(first + QUERIES_PER_PIECE, args->patches),
                               .causal_offset = NOT_CAUSAL};
    attend_head(&attention, scratch);
}

static void run_layer(Encoder *encoder) {
    const VisionArgs *args = encoder->args;
    const VisionLayer *layer = encoder->layer;
    round_rows(encoder, &layer->q.linear, encoder->x, layer->norm1, layer->norm1_bias);
    multiply(encoder, &layer->q, NO_ACTIVATION, NULL, NULL, encoder->q);
    multiply(encoder, &layer->k, NO_ACTIVATION, NULL, NULL, encoder->k);
    multiply(encoder, &layer->v, NO_ACTIVATION, NULL, NULL, encoder->v);
    run(encoder, attention_piece, encoder, encoder->frames * args->heads * ceil_div(args->patches, QUERIES_PER_PIECE));
    round_rows(encoder, &layer->o.linear, encoder->floats, NULL, NULL);
    multiply(encoder, &layer->o, NO_ACTIVATION, encoder->x, encoder->x, NULL);
    round_rows(encoder, &layer->fc1.linear, encoder->x, layer->norm2, layer->norm2_bias);
    multiply(encoder, &layer->fc1, args->activation, NULL, encoder->floats, NULL);
    round_rows(encoder, &layer->fc2.linear, encoder->floats, NULL, NULL);
    multiply(encoder, &layer->fc2, NO_ACTIVATION, encoder->x, encoder->x, NULL);
}

/* Whether this processor has the instructions for all weights; q, k and v share their rounded inputs. */
static int is_supported(const VisionArgs *args) {
    for (int i = 0; i < args->layer_count; i++) {
        const VisionLayer *layer = &args->layers[i];
        const BiasedLinear *linears[] = {&layer->q, &layer->k, &layer->v, &layer->o, &layer->fc1, &layer->fc2};
        for (int j = 0; j < 6; j++)
            if (!matmul_kernel(linears[j]->linear.kind)) return 0;
        if (layer->k.linear.kind != layer->q.linear.kind || layer->v.linear.kind != layer->q.linear.kind) return 0;
    }
    return matmul_kernel(BFLOAT16) != NULL;
}

int idefics_vision_encode(const VisionArgs *args, int threads, Parallel *parallel) {
    if (!is_supported(args)) return 0;
    int64_t chunk = ceil_div(ROWS_AT_ONCE, args->patches), rows = min_int64(chunk, args->frames) * args->patches;
    int64_t widest = args->width > args->intermediate_size ? args->width : args->intermediate_size;
    int64_t attention = attention_scratch_units(args->patches, args->width / args->heads);
    int64_t scratch_units = linear_scratch_units(widest), rounded = rows * ceil_div(widest, 2);
    scratch_units = attention > scratch_units ? attention : scratch_units;
    int64_t halves = ceil_div(rows * args->width, 2);
    uint32_t *memory = malloc(UNIT_BYTES
                              * (size_t)(threads * scratch_units + rounded + 2 * rows + 3 * halves + rows * widest));
    if (!memory) return 0;
    Encoder encoder = {.args = args, .bfloat16 = matmul_kernel(BFLOAT16), .threads = threads, .parallel = parallel,
                       .scratch = memory, .scratch_units = scratch_units};
    uint32_t *next = memory + threads * scratch_units;
    encoder.rounded = (RoundedRows){next, 0, (float *)(next + rounded), (int32_t *)(next + rounded + rows)};
    next += rounded + 2 * rows;
    encoder.q = (uint16_t *)next, encoder.k = (uint16_t *)(next + halves), encoder.v = (uint16_t *)(next + 2 * halves);
    encoder.floats = (float *)(next + 3 * halves);
    for (int64_t frame = 0; frame < args->frames; frame += chunk) {
        encoder.x = args->x + frame * args->patches * args->width;
        encoder.frames = min_int64(chunk, args->frames - frame), encoder.rows = encoder.frames * args->patches;
        for (int i = 0; i < args->layer_count; i++) {
            encoder.layer = &args->layers[i];
            run_layer(&encoder);
        }
    }
    free(memory);
    return 1;
}
