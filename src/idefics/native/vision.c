/* The layers of a vision transformer whose weights are bfloat16 or int8: pre-norm attention, then a pre-norm MLP.
 *
 * A few frames pass through all layers before the next ones, so that their activations stay in the caches. Residuals,
 * norms, softmax and sums are float32; what a product multiplies is rounded to the kind of its weight, queries, keys,
 * values and attention weights to bfloat16.
 */
#include "attention_bfloat16.h"

enum { ROWS_AT_ONCE = 1024 }; /* patches of the frames that pass through the layers together */

typedef struct { /* one chunk of frames on its way through the layers, and the memory of all stages */
    const VisionArgs *args;
    float *x; /* (rows, D) */
    int64_t frames;
    uint16_t *q, *k, *v; /* (rows, D) bfloat16 */
    float *floats;       /* (rows, max(D, intermediate size)): inputs of a product before they are rounded */
    Work *work;
} Encoder;

static void multiply(const Encoder *encoder, const BiasedLinear *layer, Epilogue epilogue) {
    epilogue.bias = layer->bias;
    epilogue.stride = layer->linear.outputs;
    multiply_rows(encoder->work, &layer->linear, epilogue);
}

/* Attention of some queries of one head: pieces are (frame, head, block of queries). */
static void attention_piece(const void *context, int64_t piece, uint32_t *scratch) {
    const Encoder *encoder = context;
    const VisionArgs *args = encoder->args;
    int64_t blocks = ceil_div(args->patches, QUERIES_PER_PIECE), size = args->width / args->heads;
    int64_t block = piece % blocks, head = piece / blocks % args->heads, frame = piece / blocks / args->heads;
    int64_t start = frame * args->patches * args->width + head * size, first = block * QUERIES_PER_PIECE;
    HeadAttention attention = {.kernel = matmul_kernel(BFLOAT16),
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

static void run_layer(const Encoder *encoder, const VisionLayer *layer) {
    const VisionArgs *args = encoder->args;
    Work *work = encoder->work;
    float *x = encoder->x, *floats = encoder->floats;
    const Norm first = {layer->norm1, layer->norm1_bias, args->epsilon}, none = {NULL, NULL, 0.0f};
    const Norm second = {layer->norm2, layer->norm2_bias, args->epsilon};
    round_rows(work, &layer->q.linear, x, &first);
    multiply(encoder, &layer->q, (Epilogue){.activation = NO_ACTIVATION, .halves = encoder->q});
    multiply(encoder, &layer->k, (Epilogue){.activation = NO_ACTIVATION, .halves = encoder->k});
    multiply(encoder, &layer->v, (Epilogue){.activation = NO_ACTIVATION, .halves = encoder->v});
    run_pieces(work, attention_piece, encoder,
               encoder->frames * args->heads * ceil_div(args->patches, QUERIES_PER_PIECE));
    round_rows(work, &layer->o.linear, floats, &none);
    multiply(encoder, &layer->o, (Epilogue){.activation = NO_ACTIVATION, .residual = x, .floats = x});
    round_rows(work, &layer->fc1.linear, x, &second);
    multiply(encoder, &layer->fc1, (Epilogue){.activation = args->activation, .floats = floats});
    round_rows(work, &layer->fc2.linear, floats, &none);
    multiply(encoder, &layer->fc2, (Epilogue){.activation = NO_ACTIVATION, .residual = x, .floats = x});
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

static int64_t frames_at_once(const VisionArgs *args) {
    return min_int64(ceil_div(ROWS_AT_ONCE, args->patches), args->frames);
}

static int64_t half_units(const VisionArgs *args) { /* of a bfloat16 matrix (rows, D) */
    return ceil_div(frames_at_once(args) * args->patches * args->width, 2);
}

static void vision_program(Work *work, const void *vision_args) {
    const VisionArgs *args = vision_args;
    int64_t halves = half_units(args);
    Encoder encoder = {.args = args,
                       .q = (uint16_t *)work->shared,
                       .k = (uint16_t *)(work->shared + halves),
                       .v = (uint16_t *)(work->shared + 2 * halves),
                       .floats = (float *)(work->shared + 3 * halves),
                       .work = work};
    for (int64_t frame = 0; frame < args->frames; frame += frames_at_once(args)) {
        encoder.x = args->x + frame * args->patches * args->width;
        encoder.frames = min_int64(frames_at_once(args), args->frames - frame);
        work->num_rows = encoder.frames * args->patches;
        for (int i = 0; i < args->layer_count; i++) run_layer(&encoder, &args->layers[i]);
    }
}

int idefics_vision_encode(const VisionArgs *args, int threads, Parallel *parallel) {
    if (!is_supported(args)) return 0;
    int64_t rows = frames_at_once(args) * args->patches;
    int64_t widest = args->width > args->intermediate_size ? args->width : args->intermediate_size;
    MemoryNeeds needs = {rows, widest, attention_scratch_units(args->patches, args->width / args->heads),
                         3 * half_units(args) + rows * widest};
    return run_program(vision_program, args, needs, threads, parallel);
}
