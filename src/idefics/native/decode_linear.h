/* Linear layers of a decode step: their inputs in the forms that the kinds of weights need, and their products. */
#include <math.h>

enum { PREFETCH_BYTES = 8192 }; /* how far ahead of the multiplication weights are prefetched */

typedef struct { /* one vector of weights: `raw`, and for some kinds floats or scales made of it */
    F first, second;
    I raw;
} WeightVector;

INLINE float load_number(const void *values, int kind, size_t index) {
    if (kind == FLOAT32) return ((const float *)values)[index];
    return bfloat16_to_float(((const uint16_t *)values)[index]);
}

typedef struct { /* consecutive rows of a step */
    int first, end;
} Rows;

/* The s-th vector of an output's weights; `bytes` is less than a vector at the end of a row. */
INLINE WeightVector load_weights(const char *weights, const char *scales, int kind, int scale_kind, int s, int bytes) {
    const char *at = weights + s * VECTOR_BYTES;
    WeightVector w = {0};
    w.raw = bytes == VECTOR_BYTES ? load_bytes(at) : load_partial_bytes(at, bytes);
    if (kind == FLOAT32) w.first = (F)w.raw;
    if (kind == BFLOAT16) w.first = (F)(w.raw << 16), w.second = (F)(w.raw & (int32_t)0xffff0000);
    if (kind == INT4) {
        int group = s * (VECTOR_BYTES / 16), groups = bytes / 16;
        w.first = scale_kind == FLOAT32 ? broadcast_scales((const float *)scales + group, groups)
                                        : broadcast_bfloat16_scales((const uint16_t *)scales + group, groups);
    }
    return w;
}

/* Adds the products of a vector of weights with a row of inputs, lane by lane. */
INLINE F multiply_accumulate(F sums, WeightVector w, const PreparedInputs *x, int kind, int row, int s) {
    size_t start = (size_t)row * (size_t)x->stride, lane = (size_t)(s * LANES), at;
    switch (kind) {
    case FLOAT32: return sums + w.first * load(x->plain + start + lane);
    case BFLOAT16:
        at = 2 * lane, at = start + (at & ~(size_t)31) + (at & 31) / 2;
        sums += w.first * load(x->deinterleaved + at);
        return sums + w.second * load(x->deinterleaved + at + 16);
    case INT8:
        return sums
               + dot_int8(w.raw, x->bytes + start + 4 * lane, x->offset + start / 4 + lane)
                     * load(x->scale + start / 4 + lane);
    default:
        at = 8 * lane, at = start + (at & ~(size_t)127) + (at & 127) / 2;
        return sums
               + dot_int4(w.raw, x->deinterleaved_bytes + at, x->deinterleaved_bytes + at + 64,
                          x->deinterleaved_offset + start / 8 + lane)
                     * (w.first * load(x->deinterleaved_scale + start / 8 + lane));
    }
}

/* Prefetches memory that will be read soon. */
INLINE void prefetch_range(const void *from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += CACHE_LINE_BYTES) __builtin_prefetch((const char *)from + at);
}

/* `outputs` outputs from `o` on for `rows` rows from `row` on. Inlined for each kind and size, which are constants. */
INLINE void multiply_block(const Linear *l, int kind, int scale_kind, int outputs, int rows, const PreparedInputs *x,
                           int row, int o, float *out, int stride) {
    size_t bytes = row_bytes(l, kind), scales = kind == INT4 ? bytes / 16 * (scale_kind == FLOAT32 ? 4 : 2) : 0;
    int whole = (int)bytes / VECTOR_BYTES, rest = (int)bytes % VECTOR_BYTES;
    const char *weight = (const char *)l->weight + (size_t)o * bytes, *next = weight + PREFETCH_BYTES;
    const char *scale = (const char *)l->scale + (size_t)o * scales;
    F sums[OUTPUTS_PER_UNIT][4] = {{{0}}};
    WeightVector w[OUTPUTS_PER_UNIT];
    if (kind == INT4) prefetch_range(scale + OUTPUTS_PER_UNIT * scales, OUTPUTS_PER_UNIT * scales);
    for (int s = 0; s < whole; s++) {
        UNROLL for (int i = 0; i < outputs; i++) {
            w[i] =
                load_weights(weight + (size_t)i * bytes, scale + (size_t)i * scales, kind, scale_kind, s, VECTOR_BYTES);
            if (i * VECTOR_BYTES % CACHE_LINE_BYTES == 0) __builtin_prefetch(next + (s * outputs + i) * VECTOR_BYTES);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int i = 0; i < outputs; i++)
                sums[i][r] = multiply_accumulate(sums[i][r], w[i], x, kind, row + r, s);
        }
    }
    if (rest) {
        prefetch_range(next + whole * outputs * VECTOR_BYTES, (size_t)(rest * outputs));
        UNROLL for (int i = 0; i < outputs; i++)
            w[i] = load_weights(weight + (size_t)i * bytes, scale + (size_t)i * scales, kind, scale_kind, whole, rest);
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int i = 0; i < outputs; i++)
                sums[i][r] = multiply_accumulate(sums[i][r], w[i], x, kind, row + r, whole);
        }
    }
    UNROLL for (int i = 0; i < outputs; i++) {
        float step = kind == INT8 ? load_number(l->scale, l->scale_kind, (size_t)(o + i)) : 1.0f;
        UNROLL for (int r = 0; r < rows; r++)
            out[(size_t)(row + r) * (size_t)stride + (size_t)i] = sum(sums[i][r]) * step;
    }
}

/* `outputs` outputs from `o` on for some rows. */
INLINE void multiply_rows(const Linear *l, int kind, int scale_kind, int outputs, Rows rows, const PreparedInputs *x,
                          int o, float *out, int stride) {
    int row = rows.first;
    for (; rows.end - row >= ROW_TILE; row += ROW_TILE)
        multiply_block(l, kind, scale_kind, outputs, ROW_TILE, x, row, o, out, stride);
    for (; row < rows.end; row++) multiply_block(l, kind, scale_kind, outputs, 1, x, row, o, out, stride);
}

/* `multiply` for one kind of weight and some rows. */
INLINE void multiply_outputs(const Linear *l, int kind, int scale_kind, Rows rows, const PreparedInputs *x, int from,
                             int to, float *out, int stride) {
    int o = from;
    for (; o + OUTPUTS_PER_UNIT <= to; o += OUTPUTS_PER_UNIT)
        multiply_rows(l, kind, scale_kind, OUTPUTS_PER_UNIT, rows, x, o, out + (o - from), stride);
    for (; o < to; o++) multiply_rows(l, kind, scale_kind, 1, rows, x, o, out + (o - from), stride);
}

/* Outputs `from` to `to` of a layer for each row: out[row * stride + o - from]. */
static void multiply(const Linear *l, int row_count, const PreparedInputs *x, int from, int to, float *out,
                     int stride) {
    Rows rows = {0, row_count};
    switch (l->kind) {
    case FLOAT32: multiply_outputs(l, FLOAT32, 0, rows, x, from, to, out, stride); break;
    case BFLOAT16: multiply_outputs(l, BFLOAT16, 0, rows, x, from, to, out, stride); break;
    case INT8: multiply_outputs(l, INT8, 0, rows, x, from, to, out, stride); break;
    default:
        if (l->scale_kind == FLOAT32)
            multiply_outputs(l, INT4, FLOAT32, rows, x, from, to, out, stride);
        else
            multiply_outputs(l, INT4, BFLOAT16, rows, x, from, to, out, stride);
    }
}

/* Prefetches the first weights of a piece, before its inputs are prepared. */
static void prefetch_weights(const Linear *const *layers, int count, int from) {
    for (int i = 0; i < count; from -= layers[i++]->outputs) {
        if (from >= layers[i]->outputs) continue;
        prefetch_range((const char *)layers[i]->weight + (size_t)from * row_bytes(layers[i], layers[i]->kind),
                       PREFETCH_BYTES);
        return;
    }
}

/* --- inputs of linear layers --- */

static void rms_norm(float *to, const float *from, int n, const float *weight, float epsilon) {
    float squares[16] = {0}, total = 0;
    int i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) squares[j] += from[i + j] * from[i + j];
    for (; i < n; i++) squares[0] += from[i] * from[i];
    for (int j = 0; j < 16; j++) total += squares[j];
    float factor = 1.0f / sqrtf(total / (float)n + epsilon);
    for (i = 0; i < n; i++) to[i] = weight[i] * (from[i] * factor);
}

/* Rounds a group of floats to integers from -127 to 127. -> their scale. */
INLINE float quantize_group(int8_t *to, const float *from) {
    int32_t most = 0, levels[GROUP_SIZE];
    for (int j = 0; j < GROUP_SIZE; j++) {
        int32_t bits = bits_of(from[j]) & 0x7fffffff; /* as integers, the bits of |x| are ordered as |x| is */
        most = bits > most ? bits : most;
    }
    float largest = float_of(most);
    if (!(largest > 1e-30f)) { /* near zero, where 127 / largest would overflow; or NaN, which the scale keeps */
        memset(to, 0, GROUP_SIZE);
        return 0 * largest;
    }
    float inverse = 127.0f / largest;
    /* Adding 3 * 2^22 rounds to a whole number, ties to even, which the last bits then hold. */
    for (int j = 0; j < GROUP_SIZE; j++) levels[j] = bits_of(from[j] * inverse + 12582912.0f) - 0x4b400000;
    for (int j = 0; j < GROUP_SIZE; j++) to[j] = (int8_t)levels[j];
    return largest / 127.0f;
}

/* n floats: in each block of 32 the even ones first. */
static void deinterleave(float *to, const float *from, int n) {
    for (int i = 0; i < n; i += 32)
        for (int j = 0; j < 16; j++) to[i + j] = from[i + 2 * j], to[i + 16 + j] = from[i + 2 * j + 1];
}

/* The rest of a row's prepared inputs, from its n plain floats. */
static void quantize_row(const PreparedInputs *x, size_t start, int n) {
    int8_t *bytes = x->bytes + start, *deinterleaved_bytes = x->deinterleaved_bytes + start;
    float *scale = x->scale + start / 4, *deinterleaved_scale = x->deinterleaved_scale + start / 8;
    int32_t *offset = x->offset + start / 4, *deinterleaved_offset = x->deinterleaved_offset + start / 8;
    for (int i = 0; i < n; i += GROUP_SIZE) {
        int8_t *even = deinterleaved_bytes + i / PAD_MULTIPLE * PAD_MULTIPLE + i % PAD_MULTIPLE / 2,
               *odd = even + PAD_MULTIPLE / 2;
        float step = quantize_group(bytes + i, x->plain + start + i);
        for (int j = 0; j < GROUP_SIZE / 2; j++) even[j] = bytes[i + 2 * j], odd[j] = bytes[i + 2 * j + 1];
        for (int j = 0; j < GROUP_SIZE / 4; j++) {
            const int8_t *four = bytes + i + 4 * j;
            scale[i / 4 + j] = step, offset[i / 4 + j] = -128 * (four[0] + four[1] + four[2] + four[3]);
        }
        for (int j = 0; j < GROUP_SIZE / 8; j++) {
            const int8_t *eight = bytes + i + 8 * j;
            int32_t total = eight[0] + eight[1] + eight[2] + eight[3] + eight[4] + eight[5] + eight[6] + eight[7];
            deinterleaved_scale[i / 8 + j] = step, deinterleaved_offset[i / 8 + j] = -8 * total;
        }
    }
}

/* Prepares rows of n inputs in the forms that layers of these kinds read, after RMS norm if `norm` is given. Once for
 * each stage and thread. */
static void prepare_inputs(Engine *e, ThreadScratch *t, int stage, const float *from, int n, const float *norm,
                           unsigned kinds) {
    if (t->stage == stage) return;
    t->stage = stage;
    PreparedInputs *x = &t->inputs;
    int padded = (n + PAD_MULTIPLE - 1) / PAD_MULTIPLE * PAD_MULTIPLE;
    for (int row = 0; row < e->step->rows; row++) {
        size_t start = (size_t)row * (size_t)x->stride;
        float *plain = x->plain + start;
        if (norm)
            rms_norm(plain, from + (size_t)row * (size_t)n, n, norm, e->model->epsilon);
        else
            memcpy(plain, from + (size_t)row * (size_t)n, (size_t)n * sizeof *plain);
        memset(plain + n, 0, (size_t)(padded - n) * sizeof *plain);
        if (kinds & 1u << BFLOAT16) deinterleave(x->deinterleaved + start, plain, padded);
        if (kinds & (1u << INT8 | 1u << INT4)) quantize_row(x, start, padded);
    }
}

/* A bit for each kind of weight among layers. */
static unsigned kind_mask(const Linear *const *layers, int count) {
    unsigned kinds = 0;
    for (int i = 0; i < count; i++) kinds |= 1u << layers[i]->kind;
    return kinds;
}
