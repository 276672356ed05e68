/* The stages of a step, compiled once for each instruction set.
 *
 * Before this file is included: STAGE_FUNCTION (the name of what it defines), VECTOR_BYTES (of a vector), ROW_TILE (rows that are
 * multiplied at once), and, after `decode_vector.h`, sum, load_partial_bytes, dot_int8, dot_int4, broadcast_scales and load_float16.
 */
#include <math.h>

/* --- linear layers --- */

enum { PREFETCH_BYTES = 8192 }; /* bytes of weights that are on their way while others are multiplied */
enum { CACHE_LINE_BYTES = 64 }; /* bytes that come into a cache together */

typedef struct { /* one vector of weights, as its kind wants it */
    F first, second;
    I raw;
} WeightVector;

INLINE float load_number(const void *values, int kind, size_t index) {
    if (kind == FLOAT32) return ((const float *)values)[index];
    return bfloat16_to_float(((const uint16_t *)values)[index]);
}

/* The s-th vector of an output's weights: `bytes` of them, fewer than a vector at the end of a row. */
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

/* Adds the products of a piece of weights with a row of inputs, lane by lane. */
INLINE F multiply_accumulate(F sums, WeightVector w, const PreparedInputs *x, int kind, int row, int s) {
    size_t start = (size_t)row * (size_t)x->stride, lane = (size_t)(s * LANES), at;
    switch (kind) {
    case FLOAT32: return sums + w.first * load(x->plain + start + lane);
    case BFLOAT16:
        at = 2 * lane, at = start + (at & ~(size_t)31) + (at & 31) / 2;
        sums += w.first * load(x->deinterleaved + at);
        return sums + w.second * load(x->deinterleaved + at + 16);
    case INT8:
        return sums + dot_int8(w.raw, x->bytes + start + 4 * lane, x->offset + start / 4 + lane)
                          * load(x->scale + start / 4 + lane);
    default:
        at = 8 * lane, at = start + (at & ~(size_t)127) + (at & 127) / 2;
        return sums + dot_int4(w.raw, x->deinterleaved_bytes + at, x->deinterleaved_bytes + at + 64, x->deinterleaved_offset + start / 8 + lane)
                          * (w.first * load(x->deinterleaved_scale + start / 8 + lane));
    }
}

/* The caches are told of `bytes` that will be read. */
INLINE void prefetch_range(const void *from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += CACHE_LINE_BYTES) __builtin_prefetch((const char *)from + at);
}

INLINE void block(const Linear *l, int kind, int scale_kind, int outputs, int rows, const PreparedInputs *x, int row, int o,
                  float *out, int stride) {
    size_t bytes = row_bytes(l, kind), scales = kind == INT4 ? bytes / 16 * (scale_kind == FLOAT32 ? 4 : 2) : 0;
    int whole = (int)bytes / VECTOR_BYTES, rest = (int)bytes % VECTOR_BYTES;
    const char *weight = (const char *)l->weight + (size_t)o * bytes, *next = weight + PREFETCH_BYTES;
    const char *scale = (const char *)l->scale + (size_t)o * scales;
    F sums[OUTPUTS_PER_UNIT][4] = {{{0}}};
    WeightVector w[OUTPUTS_PER_UNIT];
    if (kind == INT4) prefetch_range(scale + OUTPUTS_PER_UNIT * scales, OUTPUTS_PER_UNIT * scales);
    for (int s = 0; s < whole; s++) {
        UNROLL for (int i = 0; i < outputs; i++) {
            w[i] = load_weights(weight + (size_t)i * bytes, scale + (size_t)i * scales, kind, scale_kind, s, VECTOR_BYTES);
            if (i * VECTOR_BYTES % CACHE_LINE_BYTES == 0) __builtin_prefetch(next + (s * outputs + i) * VECTOR_BYTES);
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int i = 0; i < outputs; i++) sums[i][r] = multiply_accumulate(sums[i][r], w[i], x, kind, row + r, s);
    }
    if (rest) {
        prefetch_range(next + whole * outputs * VECTOR_BYTES, (size_t)(rest * outputs));
        UNROLL for (int i = 0; i < outputs; i++)
            w[i] = load_weights(weight + (size_t)i * bytes, scale + (size_t)i * scales, kind, scale_kind, whole, rest);
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int i = 0; i < outputs; i++) sums[i][r] = multiply_accumulate(sums[i][r], w[i], x, kind, row + r, whole);
    }
    UNROLL for (int i = 0; i < outputs; i++) {
        float step = kind == INT8 ? load_number(l->scale, l->scale_kind, (size_t)(o + i)) : 1.0f;
        UNROLL for (int r = 0; r < rows; r++) out[(size_t)(row + r) * (size_t)stride + (size_t)i] = sum(sums[i][r]) * step;
    }
}

INLINE void multiply_rows(const Linear *l, int kind, int scale_kind, int outputs, int rows, const PreparedInputs *x, int o,
                     float *out, int stride) {
    int row = 0;
    for (; rows - row >= ROW_TILE; row += ROW_TILE)
        block(l, kind, scale_kind, outputs, ROW_TILE, x, row, o, out, stride);
    for (; row < rows; row++) block(l, kind, scale_kind, outputs, 1, x, row, o, out, stride);
}

INLINE void multiply_outputs(const Linear *l, int kind, int scale_kind, int rows, const PreparedInputs *x, int from, int to, float *out,
                 int stride) {
    int o = from;
    for (; o + OUTPUTS_PER_UNIT <= to; o += OUTPUTS_PER_UNIT) multiply_rows(l, kind, scale_kind, OUTPUTS_PER_UNIT, rows, x, o, out + (o - from), stride);
    for (; o < to; o++) multiply_rows(l, kind, scale_kind, 1, rows, x, o, out + (o - from), stride);
}

/* Outputs `from` to `to` of a layer for each row: out[row * stride + o - from]. */
static void multiply(const Linear *l, int rows, const PreparedInputs *x, int from, int to, float *out, int stride) {
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

/* Outputs `from` to `to` of layers side by side. */
static void multiply_concatenated(const Linear *const *layers, int count, int rows, const PreparedInputs *x, int from, int to,
                         float *out, int stride) {
    int start = 0;
    for (int i = 0; i < count; i++) {
        int end = start + layers[i]->outputs, first = from > start ? from : start, last = to < end ? to : end;
        if (first < last) multiply(layers[i], rows, x, first - start, last - start, out + first, stride);
        start = end;
    }
}

/* Tells the caches of the first weights of a piece, which come while its inputs are prepared. */
static void prefetch_weights(const Linear *const *layers, int count, int from) {
    for (int i = 0; i < count; from -= layers[i++]->outputs) {
        if (from >= layers[i]->outputs) continue;
        prefetch_range((const char *)layers[i]->weight + (size_t)from * row_bytes(layers[i], layers[i]->kind), PREFETCH_BYTES);
        return;
    }
}

/* --- their inputs --- */

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

/* 32 numbers as integers from -127 to 127 -> their scale. */
INLINE float quantize_group(int8_t *to, const float *from) {
    int32_t most = 0, levels[GROUP_SIZE];
    for (int j = 0; j < GROUP_SIZE; j++) {
        int32_t bits = bits_of(from[j]) & 0x7fffffff; /* sizes of floats are ordered as their bits are */
        most = bits > most ? bits : most;
    }
    float largest = float_of(most);
    if (!(largest > 1e-30f)) { /* zeros, where 127 / largest would overflow; or no numbers, which shall be seen */
        memset(to, 0, GROUP_SIZE);
        return 0 * largest;
    }
    float inverse = 127.0f / largest;
    /* Added to 3 * 2^22, a float's last bits count ones: rounded to nearest, ties to even. */
    for (int j = 0; j < GROUP_SIZE; j++) levels[j] = bits_of(from[j] * inverse + 12582912.0f) - 0x4b400000;
    for (int j = 0; j < GROUP_SIZE; j++) to[j] = (int8_t)levels[j];
    return largest / 127.0f;
}

static void deinterleave(float *to, const float *from, int n) {
    for (int i = 0; i < n; i += 32)
        for (int j = 0; j < 16; j++) to[i + j] = from[i + 2 * j], to[i + 16 + j] = from[i + 2 * j + 1];
}

static void quantize_row(const PreparedInputs *x, size_t start, int n) {
    int8_t *bytes = x->bytes + start, *deinterleaved_bytes = x->deinterleaved_bytes + start;
    float *scale = x->scale + start / 4, *deinterleaved_scale = x->deinterleaved_scale + start / 8;
    int32_t *offset = x->offset + start / 4, *deinterleaved_offset = x->deinterleaved_offset + start / 8;
    for (int i = 0; i < n; i += GROUP_SIZE) {
        int8_t *even = deinterleaved_bytes + i / PAD_MULTIPLE * PAD_MULTIPLE + i % PAD_MULTIPLE / 2, *odd = even + PAD_MULTIPLE / 2;
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

/* Brings rows of n numbers into the forms that layers of these kinds want; normalised first where there is `norm`. */
static void prepare_inputs(Engine *e, ThreadScratch *t, int stage, const float *from, int n, const float *norm, unsigned kinds) {
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

static unsigned kind_mask(const Linear *const *layers, int count) {
    unsigned kinds = 0;
    for (int i = 0; i < count; i++) kinds |= 1u << layers[i]->kind;
    return kinds;
}

/* --- functions of one number --- */

/* exp by halving's way (Cody and Waite): 2^n e^r with |r| <= ln(2) / 2, e^r by its series, good to 2 ulp. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f; /* ln 2 in two parts */
    float y = 1.0f / 5040;
    y = y * r + 1.0f / 720, y = y * r + 1.0f / 120, y = y * r + 1.0f / 24, y = y * r + 1.0f / 6;
    y = y * r + 0.5f, y = y * r + 1.0f, y = y * r + 1.0f;
    return y * float_of((int32_t)((uint32_t)(bits_of(shifted) - 0x4b400000 + 127) << 23));
}

static void activate(float *gate, const float *up, int n, int activation) {
    switch (activation) {
    case SILU:
        for (int i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
        break;
    case GELU:
        for (int i = 0; i < n; i++) gate[i] = 0.5f * gate[i] * (1.0f + erff(gate[i] * 0.70710678f)) * up[i];
        break;
    case GELU_TANH: /* arXiv 1606.08415 */
        for (int i = 0; i < n; i++) {
            float inner = 0.79788456f * (gate[i] + 0.044715f * gate[i] * gate[i] * gate[i]);
            gate[i] = 0.5f * gate[i] * (1.0f + tanhf(inner)) * up[i];
        }
        break;
    default:
        for (int i = 0; i < n; i++) gate[i] = gate[i] > 0 ? gate[i] * up[i] : 0;
    }
}

/* --- attention --- */

INLINE F load_partial(const float *from, int count) { return count >= LANES ? load(from) : (F)load_partial_bytes(from, 4 * count); }

INLINE void store_partial(float *to, F values, int count) {
    memcpy(to, &values, (size_t)(count >= LANES ? LANES : count) * sizeof *to);
}

/* Numbers of a key or a value from `at` on; fewer than a vector at its end. */
INLINE F load_cached(const void *cached, int float16, size_t at, int count) {
    if (!float16) return load_partial((const float *)cached + at, count);
    const uint16_t *from = (const uint16_t *)cached + at;
    if (count >= LANES) return load_float16(from);
    uint16_t some[LANES] = {0};
    memcpy(some, from, (size_t)count * sizeof *from);
    return load_float16(some);
}

static void store_cached(void *cached, int float16, size_t at, const float *from, int count) {
    if (float16)
        for (int i = 0; i < count; i++) ((uint16_t *)cached)[at + (size_t)i] = float_to_float16(from[i]);
    else
        memcpy((float *)cached + at, from, (size_t)count * sizeof *from);
}

/* KVPositions that heads attend to: `stride` numbers apart from number `at` on, in float16 or float32. Those that come
 * after them lie `next` numbers further. */
typedef struct {
    const void *keys, *values;
    size_t at, stride;
    ptrdiff_t next;
    int float16, count;
} KVPositions;

INLINE void prefetch(const void *cached, int float16, size_t at, ptrdiff_t next) {
    __builtin_prefetch((const char *)cached + ((ptrdiff_t)at + next) * (float16 ? 2 : 4));
}

/* Attention of some heads to up to PAGE_SIZE positions, added to what they saw before: part = largest score, sum, mix. */
INLINE void attend_heads(int heads, const float *query, int size, const KVPositions *to, int float16, float *part) {
    int count = to->count;
    float scores[4][PAGE_SIZE], factor[4];
    for (int p = 0; p < count; p++) {
        F sums[4] = {{0}};
        for (int i = 0; i < size; i += LANES) {
            size_t at = to->at + (size_t)p * to->stride + (size_t)i;
            F key = load_cached(to->keys, float16, at, size - i);
            prefetch(to->keys, float16, at, to->next);
            UNROLL for (int h = 0; h < heads; h++) sums[h] += load_partial(query + h * size + i, size - i) * key;
        }
        UNROLL for (int h = 0; h < heads; h++) scores[h][p] = sum(sums[h]);
    }
    for (int h = 0; h < heads; h++) {
        float *largest = part + h * (size + 2), *total = largest + 1, before = *largest;
        for (int p = 0; p < count; p++) *largest = scores[h][p] > *largest ? scores[h][p] : *largest;
        for (int p = count; p < PAGE_SIZE; p++) scores[h][p] = -INFINITY;
        for (int p = 0; p < PAGE_SIZE; p++) scores[h][p] = exponential(scores[h][p] - *largest);
        factor[h] = exponential(before - *largest);
        *total *= factor[h];
        for (int p = 0; p < count; p++) *total += scores[h][p];
    }
    for (int i = 0; i < size; i += LANES) {
        F mix[4];
        UNROLL for (int h = 0; h < heads; h++) mix[h] = load_partial(part + h * (size + 2) + 2 + i, size - i) * factor[h];
        for (int p = 0; p < count; p++) {
            size_t at = to->at + (size_t)p * to->stride + (size_t)i;
            F value = load_cached(to->values, float16, at, size - i);
            prefetch(to->values, float16, at, to->next);
            UNROLL for (int h = 0; h < heads; h++) mix[h] += scores[h][p] * value;
        }
        UNROLL for (int h = 0; h < heads; h++) store_partial(part + h * (size + 2) + 2 + i, mix[h], size - i);
    }
}

INLINE void attend_head_groups(int heads, const float *query, int size, const KVPositions *to, int float16, float *part) {
    for (; heads >= 4; heads -= 4, query += 4 * size, part += 4 * (size + 2))
        attend_heads(4, query, size, to, float16, part);
    if (heads == 3) attend_heads(3, query, size, to, float16, part);
    if (heads == 2) attend_heads(2, query, size, to, float16, part);
    if (heads == 1) attend_heads(1, query, size, to, float16, part);
}

static void attend(int heads, const float *query, int size, const KVPositions *to, float *part) {
    if (to->float16)
        attend_head_groups(heads, query, size, to, 1, part);
    else
        attend_head_groups(heads, query, size, to, 0, part);
}

static void clear_partial(float *part, int heads, int size) {
    memset(part, 0, (size_t)(heads * (size + 2)) * sizeof *part);
    for (int h = 0; h < heads; h++) part[h * (size + 2)] = -INFINITY;
}

/* What heads saw in several splits, merged; parts of one head are `apart` floats from each other. */
static void merge_splits(const float *parts, size_t apart, int num_kv_splits, int heads, int size, float *out) {
    for (int h = 0; h < heads; h++, parts += size + 2, out += size) {
        float largest = -INFINITY, total = 0;
        for (int s = 0; s < num_kv_splits; s++) largest = fmaxf(largest, parts[(size_t)s * apart]);
        memset(out, 0, (size_t)size * sizeof *out);
        for (int s = 0; s < num_kv_splits; s++) {
            const float *part = parts + (size_t)s * apart;
            float weight = exponential(part[0] - largest);
            total += weight * part[1];
            for (int i = 0; i < size; i++) out[i] += weight * part[2 + i];
        }
        for (int i = 0; i < size; i++) out[i] /= total;
    }
}

/* The pairs (i, i + K/2) of a head, turned and scaled. */
static void apply_rotary(float *to, const float *from, const float *rotary_cos_sin, int size, float scale) {
    int half = size / 2;
    for (int i = 0; i < half; i++) {
        float low = from[i], high = from[half + i], cosine = rotary_cos_sin[i], sine = rotary_cos_sin[half + i];
        to[i] = (low * cosine - high * sine) * scale;
        to[half + i] = (high * cosine + low * sine) * scale;
    }
}

/* A row's query heads that share key head g, to the positions of one kv_split. The last kv_split writes the new key. */
static void attend_kv_split(Engine *e, ThreadScratch *t, const Layer *layer, int row, int g, int kv_split) {
    const Model *m = e->model;
    const Step *step = e->step;
    int size = m->head_size, heads_per_kv_head = m->heads / m->kv_heads, position = (int)step->positions[row];
    int seen = m->window && position >= m->window ? position - m->window + 1 : 0; /* the first position seen */
    int first = seen / KV_SPLIT_SIZE, last = position / KV_SPLIT_SIZE;
    if (kv_split < first || kv_split > last) return;
    const float *rotary_cos_sin = e->rotary_cos_sin + row * size;
    const float *q = e->qkv + (size_t)row * (size_t)((m->heads + 2 * m->kv_heads) * size);
    const float *k = q + (m->heads + g) * size, *v = k + m->kv_heads * size;
    const int32_t *table = step->tables + (size_t)row * (size_t)step->pages;
    size_t page_size = (size_t)(m->kv_heads * PAGE_SIZE * size), head = (size_t)(g * PAGE_SIZE * size);
    for (int h = 0; h < heads_per_kv_head; h++)
        apply_rotary(t->query + h * size, q + (g * heads_per_kv_head + h) * size, rotary_cos_sin, size, 1.0f / sqrtf((float)size));
    if (kv_split == last) {
        size_t place = (size_t)table[position / PAGE_SIZE] * page_size + head + (size_t)(position % PAGE_SIZE * size);
        float *key = t->query + heads_per_kv_head * size;
        apply_rotary(key, k, rotary_cos_sin, size, 1.0f);
        store_cached(layer->keys, m->float16, place, key, size);
        store_cached(layer->values, m->float16, place, v, size);
    }
    size_t apart = (size_t)(m->heads * (size + 2)); /* parts lie as (R, num_kv_splits, H, K + 2) */
    float *parts = e->parts + (size_t)row * (size_t)e->num_kv_splits * apart + (size_t)(g * heads_per_kv_head * (size + 2));
    float *part = parts + (size_t)kv_split * apart;
    clear_partial(part, heads_per_kv_head, size);
    int from = kv_split * KV_SPLIT_SIZE, to = from + KV_SPLIT_SIZE <= position ? from + KV_SPLIT_SIZE : position + 1;
    for (int p = from > seen ? from : seen; p < to;) {
        int count = PAGE_SIZE - p % PAGE_SIZE < to - p ? PAGE_SIZE - p % PAGE_SIZE : to - p;
        int page = table[p / PAGE_SIZE], then = p + PAGE_SIZE <= position ? table[p / PAGE_SIZE + 1] : page;
        KVPositions some = {.keys = layer->keys, .values = layer->values, .float16 = m->float16, .count = count};
        some.at = (size_t)page * page_size + head + (size_t)(p % PAGE_SIZE * size), some.stride = (size_t)size;
        some.next = (ptrdiff_t)(then - page) * (ptrdiff_t)page_size;
        attend(heads_per_kv_head, t->query, size, &some, part);
        p += count;
    }
    if (atomic_fetch_sub(&e->pending_splits[row * m->kv_heads + g], 1) == 1) { /* who is last joins what all saw */
        float *out = e->attention_out + (size_t)row * (size_t)(m->heads * size) + (size_t)(g * heads_per_kv_head * size);
        merge_splits(parts + (size_t)first * apart, apart, last - first + 1, heads_per_kv_head, size, out);
        atomic_store(&e->pending_splits[row * m->kv_heads + g], last - first + 1); /* for the next layer */
    }
}

/* One head of a row to all feature rows of the image that it sees; zeros where it sees none. */
static void cross_attend_head(Engine *e, ThreadScratch *t, const CrossLayer *cross, int index, int row, int head) {
    const Model *m = e->model;
    int size = m->head_size, width = m->heads * size;
    float *out = e->attention_out + (size_t)row * (size_t)width + (size_t)(head * size);
    CrossKV seen = e->step->seen[row * m->cross_count + index];
    if (!seen.keys) {
        memset(out, 0, (size_t)size * sizeof *out);
        return;
    }
    const float *q = e->qkv + (size_t)row * (size_t)width + (size_t)(head * size);
    float *query = t->query, *part = t->query + size;
    if (cross->q_norm)
        rms_norm(query, q, size, cross->q_norm, m->epsilon);
    else
        memcpy(query, q, (size_t)size * sizeof *q);
    for (int i = 0; i < size; i++) query[i] /= sqrtf((float)size);
    clear_partial(part, 1, size);
    for (int p = 0; p < e->step->num_features[row]; p += PAGE_SIZE) {
        int count = PAGE_SIZE < e->step->num_features[row] - p ? PAGE_SIZE : e->step->num_features[row] - p;
        KVPositions some = {.keys = seen.keys, .values = seen.values, .count = count, .next = PAGE_SIZE * width};
        some.at = (size_t)p * (size_t)width + (size_t)(head * size), some.stride = (size_t)width;
        attend(1, query, size, &some, part);
    }
    merge_splits(part, 0, 1, 1, size, out);
}

/* --- stages --- */

enum { OUTPUT_BLOCK = 64 }; /* outputs of a layer in one buffer */

/* Adds a layer's outputs, times `gate` where there is one, to the stream. */
static void add_to_residual(Engine *e, ThreadScratch *t, const Linear *l, int from, int to, const float *gate) {
    float out[MAX_ROWS * OUTPUT_BLOCK];
    for (int o = from; o < to; o += OUTPUT_BLOCK) {
        int count = to - o < OUTPUT_BLOCK ? to - o : OUTPUT_BLOCK;
        multiply(l, e->step->rows, &t->inputs, o, o + count, out, OUTPUT_BLOCK);
        for (int row = 0; row < e->step->rows; row++) {
            float *x = e->x + (size_t)row * (size_t)e->model->width + o;
            for (int i = 0; i < count; i++) x[i] += gate ? gate[o + i] * out[row * OUTPUT_BLOCK + i] : out[row * OUTPUT_BLOCK + i];
        }
    }
}

static void gate_up_activate(Engine *e, ThreadScratch *t, const Mlp *mlp, int from, int to) {
    float gate[MAX_ROWS * OUTPUT_BLOCK], up[MAX_ROWS * OUTPUT_BLOCK];
    for (int o = from; o < to; o += OUTPUT_BLOCK) {
        int count = to - o < OUTPUT_BLOCK ? to - o : OUTPUT_BLOCK;
        multiply(&mlp->gate, e->step->rows, &t->inputs, o, o + count, gate, OUTPUT_BLOCK);
        multiply(&mlp->up, e->step->rows, &t->inputs, o, o + count, up, OUTPUT_BLOCK);
        for (int row = 0; row < e->step->rows; row++) {
            activate(gate + row * OUTPUT_BLOCK, up + row * OUTPUT_BLOCK, count, e->model->activation);
            memcpy(e->mlp_hidden + (size_t)row * (size_t)mlp->gate.outputs + o, gate + row * OUTPUT_BLOCK, (size_t)count * sizeof *gate);
        }
    }
}

/* Units `from` to `to` of a stage: OUTPUTS_PER_UNIT outputs each, or one head of one row. */
void STAGE_FUNCTION(Engine *e, ThreadScratch *t, int index, int from, int to) {
    const Model *m = e->model;
    Stage stage = e->stages[index];
    int rows = e->step->rows, inner = m->heads * m->head_size, all = inner + 2 * m->kv_heads * m->head_size;
    const Layer *layer = m->layers + stage.layer;
    const CrossLayer *cross = m->crosses + stage.layer;
    const Mlp *mlp = stage.kind == CROSS_UP || stage.kind == CROSS_DOWN ? &cross->mlp : &layer->mlp;
    const Linear *linears[3];
    if (stage.kind == ATTEND) {
        for (int u = from; u < to; u++) {
            int row = u / (m->kv_heads * e->num_kv_splits), rest = u % (m->kv_heads * e->num_kv_splits);
            attend_kv_split(e, t, layer, row, rest % m->kv_heads, rest / m->kv_heads);
        }
        return;
    }
    if (stage.kind == CROSS_ATTEND) {
        for (int u = from; u < to; u++) cross_attend_head(e, t, cross, stage.layer, u / m->heads, u % m->heads);
        return;
    }
    from *= OUTPUTS_PER_UNIT, to *= OUTPUTS_PER_UNIT;
    int most = num_outputs(m, stage);
    to = to < most ? to : most;
    switch (stage.kind) {
    case CROSS_Q:
        linears[0] = &cross->q;
        prefetch_weights(linears, 1, from);
        prepare_inputs(e, t, index, e->x, m->width, cross->norm, 1u << cross->q.kind);
        multiply(&cross->q, rows, &t->inputs, from, to, e->qkv + from, inner);
        break;
    case CROSS_O:
        linears[0] = &cross->o;
        prefetch_weights(linears, 1, from);
        prepare_inputs(e, t, index, e->attention_out, inner, NULL, 1u << cross->o.kind);
        add_to_residual(e, t, &cross->o, from, to, cross->gate);
        break;
    case QKV:
        linears[0] = &layer->q, linears[1] = &layer->k, linears[2] = &layer->v;
        prefetch_weights(linears, 3, from);
        prepare_inputs(e, t, index, e->x, m->width, layer->norm, kind_mask(linears, 3));
        multiply_concatenated(linears, 3, rows, &t->inputs, from, to, e->qkv, all);
        break;
    case O:
        linears[0] = &layer->o;
        prefetch_weights(linears, 1, from);
        prepare_inputs(e, t, index, e->attention_out, inner, NULL, 1u << layer->o.kind);
        add_to_residual(e, t, &layer->o, from, to, NULL);
        break;
    case CROSS_UP:
    case UP:
        linears[0] = &mlp->gate, linears[1] = &mlp->up;
        prefetch_weights(linears, 1, from), prefetch_weights(linears + 1, 1, from);
        prepare_inputs(e, t, index, e->x, m->width, stage.kind == UP ? layer->mlp_norm : cross->mlp_norm, kind_mask(linears, 2));
        gate_up_activate(e, t, mlp, from, to);
        break;
    case CROSS_DOWN:
    case DOWN:
        linears[0] = &mlp->down;
        prefetch_weights(linears, 1, from);
        prepare_inputs(e, t, index, e->mlp_hidden, mlp->down.inputs, NULL, 1u << mlp->down.kind);
        add_to_residual(e, t, &mlp->down, from, to, stage.kind == DOWN ? NULL : cross->mlp_gate);
        break;
    default: /* HEAD */
        linears[0] = &m->lm_heads[0], linears[1] = &m->lm_heads[1];
        prefetch_weights(linears, m->table_count, from);
        prepare_inputs(e, t, index, e->x, m->width, m->norm, kind_mask(linears, m->table_count));
        multiply_concatenated(linears, m->table_count, rows, &t->inputs, from, to, e->step->logits, most);
    }
}
