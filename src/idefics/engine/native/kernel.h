/* The stages of a step, compiled once for each instruction set.
 *
 * Before this file is included: WORK (the name of what it defines), BYTES (of a vector), TOGETHER (rows that are
 * multiplied at once), and, after `vector.h`, sum, load_some, dot_bytes, dot_halves, spread and widen_halves.
 */
#include <math.h>

/* --- linear layers --- */

enum { AHEAD = 8192 }; /* bytes of weights that are on their way while others are multiplied */
enum { LINE = 64 }; /* bytes that come into a cache together */

typedef struct { /* one vector of weights, as its kind wants it */
    F first, second;
    I raw;
} Piece;

INLINE float stored(const void *values, int kind, size_t index) {
    if (kind == FLOAT32) return ((const float *)values)[index];
    return widened(((const uint16_t *)values)[index]);
}

/* The s-th vector of an output's weights: `bytes` of them, fewer than a vector at the end of a row. */
INLINE Piece take(const char *weights, const char *scales, int kind, int scale_kind, int s, int bytes) {
    const char *at = weights + s * BYTES;
    Piece w = {0};
    w.raw = bytes == BYTES ? load_bytes(at) : load_some(at, bytes);
    if (kind == FLOAT32) w.first = (F)w.raw;
    if (kind == BFLOAT16) w.first = (F)(w.raw << 16), w.second = (F)(w.raw & (int32_t)0xffff0000);
    if (kind == INT4) {
        int group = s * (BYTES / 16), groups = bytes / 16;
        w.first = scale_kind == FLOAT32 ? spread((const float *)scales + group, groups)
                                        : spread_narrow((const uint16_t *)scales + group, groups);
    }
    return w;
}

/* Adds the products of a piece of weights with a row of inputs, lane by lane. */
INLINE F meet(F sums, Piece w, const Inputs *x, int kind, int row, int s) {
    size_t start = (size_t)row * (size_t)x->stride, lane = (size_t)(s * LANES), at;
    switch (kind) {
    case FLOAT32: return sums + w.first * load(x->plain + start + lane);
    case BFLOAT16:
        at = 2 * lane, at = start + (at & ~(size_t)31) + (at & 31) / 2;
        sums += w.first * load(x->halves + at);
        return sums + w.second * load(x->halves + at + 16);
    case INT8:
        return sums + dot_bytes(w.raw, x->bytes + start + 4 * lane, x->minus + start / 4 + lane)
                          * load(x->scale + start / 4 + lane);
    default:
        at = 8 * lane, at = start + (at & ~(size_t)127) + (at & 127) / 2;
        return sums + dot_halves(w.raw, x->split + at, x->split + at + 64, x->split_minus + start / 8 + lane)
                          * (w.first * load(x->split_scale + start / 8 + lane));
    }
}

/* The caches are told of `bytes` that will be read. */
INLINE void send_for(const void *from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += LINE) __builtin_prefetch((const char *)from + at);
}

INLINE void block(const Linear *l, int kind, int scale_kind, int outputs, int rows, const Inputs *x, int row, int o,
                  float *out, int stride) {
    size_t bytes = row_bytes(l, kind), scales = kind == INT4 ? bytes / 16 * (scale_kind == FLOAT32 ? 4 : 2) : 0;
    int whole = (int)bytes / BYTES, rest = (int)bytes % BYTES;
    const char *weight = (const char *)l->weight + (size_t)o * bytes, *next = weight + AHEAD;
    const char *scale = (const char *)l->scale + (size_t)o * scales;
    F sums[UNIT][4] = {{{0}}};
    Piece w[UNIT];
    if (kind == INT4) send_for(scale + UNIT * scales, UNIT * scales);
    for (int s = 0; s < whole; s++) {
        UNROLL for (int i = 0; i < outputs; i++) {
            w[i] = take(weight + (size_t)i * bytes, scale + (size_t)i * scales, kind, scale_kind, s, BYTES);
            if (i * BYTES % LINE == 0) __builtin_prefetch(next + (s * outputs + i) * BYTES);
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int i = 0; i < outputs; i++) sums[i][r] = meet(sums[i][r], w[i], x, kind, row + r, s);
    }
    if (rest) {
        send_for(next + whole * outputs * BYTES, (size_t)(rest * outputs));
        UNROLL for (int i = 0; i < outputs; i++)
            w[i] = take(weight + (size_t)i * bytes, scale + (size_t)i * scales, kind, scale_kind, whole, rest);
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int i = 0; i < outputs; i++) sums[i][r] = meet(sums[i][r], w[i], x, kind, row + r, whole);
    }
    UNROLL for (int i = 0; i < outputs; i++) {
        float step = kind == INT8 ? stored(l->scale, l->scale_kind, (size_t)(o + i)) : 1.0f;
        UNROLL for (int r = 0; r < rows; r++) out[(size_t)(row + r) * (size_t)stride + (size_t)i] = sum(sums[i][r]) * step;
    }
}

INLINE void all_rows(const Linear *l, int kind, int scale_kind, int outputs, int rows, const Inputs *x, int o,
                     float *out, int stride) {
    int row = 0;
    for (; rows - row >= TOGETHER; row += TOGETHER)
        block(l, kind, scale_kind, outputs, TOGETHER, x, row, o, out, stride);
    for (; row < rows; row++) block(l, kind, scale_kind, outputs, 1, x, row, o, out, stride);
}

INLINE void span(const Linear *l, int kind, int scale_kind, int rows, const Inputs *x, int from, int to, float *out,
                 int stride) {
    int o = from;
    for (; o + UNIT <= to; o += UNIT) all_rows(l, kind, scale_kind, UNIT, rows, x, o, out + (o - from), stride);
    for (; o < to; o++) all_rows(l, kind, scale_kind, 1, rows, x, o, out + (o - from), stride);
}

/* Outputs `from` to `to` of a layer for each row: out[row * stride + o - from]. */
static void multiply(const Linear *l, int rows, const Inputs *x, int from, int to, float *out, int stride) {
    switch (l->kind) {
    case FLOAT32: span(l, FLOAT32, 0, rows, x, from, to, out, stride); break;
    case BFLOAT16: span(l, BFLOAT16, 0, rows, x, from, to, out, stride); break;
    case INT8: span(l, INT8, 0, rows, x, from, to, out, stride); break;
    default:
        if (l->scale_kind == FLOAT32)
            span(l, INT4, FLOAT32, rows, x, from, to, out, stride);
        else
            span(l, INT4, BFLOAT16, rows, x, from, to, out, stride);
    }
}

/* Outputs `from` to `to` of layers side by side. */
static void multiply_all(const Linear *const *layers, int count, int rows, const Inputs *x, int from, int to,
                         float *out, int stride) {
    int start = 0;
    for (int i = 0; i < count; i++) {
        int end = start + layers[i]->outputs, first = from > start ? from : start, last = to < end ? to : end;
        if (first < last) multiply(layers[i], rows, x, first - start, last - start, out + first, stride);
        start = end;
    }
}

/* Tells the caches of the first weights of a piece, which come while its inputs are prepared. */
static void expect(const Linear *const *layers, int count, int from) {
    for (int i = 0; i < count; from -= layers[i++]->outputs) {
        if (from >= layers[i]->outputs) continue;
        send_for((const char *)layers[i]->weight + (size_t)from * row_bytes(layers[i], layers[i]->kind), AHEAD);
        return;
    }
}

/* --- their inputs --- */

static void normalise(float *to, const float *from, int n, const float *weight, float epsilon) {
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
INLINE float rounded(int8_t *to, const float *from) {
    int32_t most = 0, levels[GROUP];
    for (int j = 0; j < GROUP; j++) {
        int32_t bits = bits_of(from[j]) & 0x7fffffff; /* sizes of floats are ordered as their bits are */
        most = bits > most ? bits : most;
    }
    float largest = float_of(most);
    if (!(largest > 1e-30f)) { /* zeros, where 127 / largest would overflow; or no numbers, which shall be seen */
        memset(to, 0, GROUP);
        return 0 * largest;
    }
    float inverse = 127.0f / largest;
    /* Added to 3 * 2^22, a float's last bits count ones: rounded to nearest, ties to even. */
    for (int j = 0; j < GROUP; j++) levels[j] = bits_of(from[j] * inverse + 12582912.0f) - 0x4b400000;
    for (int j = 0; j < GROUP; j++) to[j] = (int8_t)levels[j];
    return largest / 127.0f;
}

static void halve(float *to, const float *from, int n) {
    for (int i = 0; i < n; i += 32)
        for (int j = 0; j < 16; j++) to[i + j] = from[i + 2 * j], to[i + 16 + j] = from[i + 2 * j + 1];
}

static void quantise(const Inputs *x, size_t start, int n) {
    int8_t *bytes = x->bytes + start, *split = x->split + start;
    float *scale = x->scale + start / 4, *split_scale = x->split_scale + start / 8;
    int32_t *minus = x->minus + start / 4, *split_minus = x->split_minus + start / 8;
    for (int i = 0; i < n; i += GROUP) {
        int8_t *even = split + i / PAD * PAD + i % PAD / 2, *odd = even + PAD / 2;
        float step = rounded(bytes + i, x->plain + start + i);
        for (int j = 0; j < GROUP / 2; j++) even[j] = bytes[i + 2 * j], odd[j] = bytes[i + 2 * j + 1];
        for (int j = 0; j < GROUP / 4; j++) {
            const int8_t *four = bytes + i + 4 * j;
            scale[i / 4 + j] = step, minus[i / 4 + j] = -128 * (four[0] + four[1] + four[2] + four[3]);
        }
        for (int j = 0; j < GROUP / 8; j++) {
            const int8_t *eight = bytes + i + 8 * j;
            int32_t total = eight[0] + eight[1] + eight[2] + eight[3] + eight[4] + eight[5] + eight[6] + eight[7];
            split_scale[i / 8 + j] = step, split_minus[i / 8 + j] = -8 * total;
        }
    }
}

/* Brings rows of n numbers into the forms that layers of these kinds want; normalised first where there is `norm`. */
static void prepare(Engine *e, Thread *t, int stage, const float *from, int n, const float *norm, unsigned kinds) {
    if (t->stage == stage) return;
    t->stage = stage;
    Inputs *x = &t->inputs;
    int padded = (n + PAD - 1) / PAD * PAD;
    for (int row = 0; row < e->step->rows; row++) {
        size_t start = (size_t)row * (size_t)x->stride;
        float *plain = x->plain + start;
        if (norm)
            normalise(plain, from + (size_t)row * (size_t)n, n, norm, e->model->epsilon);
        else
            memcpy(plain, from + (size_t)row * (size_t)n, (size_t)n * sizeof *plain);
        memset(plain + n, 0, (size_t)(padded - n) * sizeof *plain);
        if (kinds & 1u << BFLOAT16) halve(x->halves + start, plain, padded);
        if (kinds & (1u << INT8 | 1u << INT4)) quantise(x, start, padded);
    }
}

static unsigned kinds_of(const Linear *const *layers, int count) {
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

INLINE F load_upto(const float *from, int count) { return count >= LANES ? load(from) : (F)load_some(from, 4 * count); }

INLINE void store_upto(float *to, F values, int count) {
    memcpy(to, &values, (size_t)(count >= LANES ? LANES : count) * sizeof *to);
}

/* Numbers of a key or a value from `at` on; fewer than a vector at its end. */
INLINE F load_kept(const void *kept, int float16, size_t at, int count) {
    if (!float16) return load_upto((const float *)kept + at, count);
    const uint16_t *from = (const uint16_t *)kept + at;
    if (count >= LANES) return widen_halves(from);
    uint16_t some[LANES] = {0};
    memcpy(some, from, (size_t)count * sizeof *from);
    return widen_halves(some);
}

static void keep(void *kept, int float16, size_t at, const float *from, int count) {
    if (float16)
        for (int i = 0; i < count; i++) ((uint16_t *)kept)[at + (size_t)i] = narrowed_half(from[i]);
    else
        memcpy((float *)kept + at, from, (size_t)count * sizeof *from);
}

/* Positions that heads attend to: `stride` numbers apart from number `at` on, in float16 or float32. Those that come
 * after them lie `next` numbers further. */
typedef struct {
    const void *keys, *values;
    size_t at, stride;
    ptrdiff_t next;
    int float16, count;
} Positions;

INLINE void prefetch(const void *kept, int float16, size_t at, ptrdiff_t next) {
    __builtin_prefetch((const char *)kept + ((ptrdiff_t)at + next) * (float16 ? 2 : 4));
}

/* Attention of some heads to up to PAGE positions, added to what they saw before: part = largest score, sum, mix. */
INLINE void attend_some(int heads, const float *query, int size, const Positions *to, int float16, float *part) {
    int count = to->count;
    float scores[4][PAGE], factor[4];
    for (int p = 0; p < count; p++) {
        F sums[4] = {{0}};
        for (int i = 0; i < size; i += LANES) {
            size_t at = to->at + (size_t)p * to->stride + (size_t)i;
            F key = load_kept(to->keys, float16, at, size - i);
            prefetch(to->keys, float16, at, to->next);
            UNROLL for (int h = 0; h < heads; h++) sums[h] += load_upto(query + h * size + i, size - i) * key;
        }
        UNROLL for (int h = 0; h < heads; h++) scores[h][p] = sum(sums[h]);
    }
    for (int h = 0; h < heads; h++) {
        float *largest = part + h * (size + 2), *total = largest + 1, before = *largest;
        for (int p = 0; p < count; p++) *largest = scores[h][p] > *largest ? scores[h][p] : *largest;
        for (int p = count; p < PAGE; p++) scores[h][p] = -INFINITY;
        for (int p = 0; p < PAGE; p++) scores[h][p] = exponential(scores[h][p] - *largest);
        factor[h] = exponential(before - *largest);
        *total *= factor[h];
        for (int p = 0; p < count; p++) *total += scores[h][p];
    }
    for (int i = 0; i < size; i += LANES) {
        F mix[4];
        UNROLL for (int h = 0; h < heads; h++) mix[h] = load_upto(part + h * (size + 2) + 2 + i, size - i) * factor[h];
        for (int p = 0; p < count; p++) {
            size_t at = to->at + (size_t)p * to->stride + (size_t)i;
            F value = load_kept(to->values, float16, at, size - i);
            prefetch(to->values, float16, at, to->next);
            UNROLL for (int h = 0; h < heads; h++) mix[h] += scores[h][p] * value;
        }
        UNROLL for (int h = 0; h < heads; h++) store_upto(part + h * (size + 2) + 2 + i, mix[h], size - i);
    }
}

INLINE void attend_all(int heads, const float *query, int size, const Positions *to, int float16, float *part) {
    for (; heads >= 4; heads -= 4, query += 4 * size, part += 4 * (size + 2))
        attend_some(4, query, size, to, float16, part);
    if (heads == 3) attend_some(3, query, size, to, float16, part);
    if (heads == 2) attend_some(2, query, size, to, float16, part);
    if (heads == 1) attend_some(1, query, size, to, float16, part);
}

static void attend(int heads, const float *query, int size, const Positions *to, float *part) {
    if (to->float16)
        attend_all(heads, query, size, to, 1, part);
    else
        attend_all(heads, query, size, to, 0, part);
}

static void clear(float *part, int heads, int size) {
    memset(part, 0, (size_t)(heads * (size + 2)) * sizeof *part);
    for (int h = 0; h < heads; h++) part[h * (size + 2)] = -INFINITY;
}

/* What heads saw of several stretches, joined; parts of one head are `apart` floats from each other. */
static void join(const float *parts, size_t apart, int stretches, int heads, int size, float *out) {
    for (int h = 0; h < heads; h++, parts += size + 2, out += size) {
        float largest = -INFINITY, total = 0;
        for (int s = 0; s < stretches; s++) largest = fmaxf(largest, parts[(size_t)s * apart]);
        memset(out, 0, (size_t)size * sizeof *out);
        for (int s = 0; s < stretches; s++) {
            const float *part = parts + (size_t)s * apart;
            float weight = exponential(part[0] - largest);
            total += weight * part[1];
            for (int i = 0; i < size; i++) out[i] += weight * part[2 + i];
        }
        for (int i = 0; i < size; i++) out[i] /= total;
    }
}

/* The pairs (i, i + K/2) of a head, turned and scaled. */
static void turn(float *to, const float *from, const float *turns, int size, float scale) {
    int half = size / 2;
    for (int i = 0; i < half; i++) {
        float low = from[i], high = from[half + i], cosine = turns[i], sine = turns[half + i];
        to[i] = (low * cosine - high * sine) * scale;
        to[half + i] = (high * cosine + low * sine) * scale;
    }
}

/* A row's query heads that share key head g, to the positions of one stretch. The last stretch writes the new key. */
static void attend_to_stretch(Engine *e, Thread *t, const Layer *layer, int row, int g, int stretch) {
    const Model *m = e->model;
    const Step *step = e->step;
    int size = m->head_size, shared = m->heads / m->kv_heads, position = (int)step->positions[row];
    int seen = m->window && position >= m->window ? position - m->window + 1 : 0; /* the first position seen */
    int first = seen / STRETCH, last = position / STRETCH;
    if (stretch < first || stretch > last) return;
    const float *turns = e->turns + row * size;
    const float *q = e->qkv + (size_t)row * (size_t)((m->heads + 2 * m->kv_heads) * size);
    const float *k = q + (m->heads + g) * size, *v = k + m->kv_heads * size;
    const int32_t *table = step->tables + (size_t)row * (size_t)step->pages;
    size_t page_size = (size_t)(m->kv_heads * PAGE * size), head = (size_t)(g * PAGE * size);
    for (int h = 0; h < shared; h++)
        turn(t->query + h * size, q + (g * shared + h) * size, turns, size, 1.0f / sqrtf((float)size));
    if (stretch == last) {
        size_t place = (size_t)table[position / PAGE] * page_size + head + (size_t)(position % PAGE * size);
        float *key = t->query + shared * size;
        turn(key, k, turns, size, 1.0f);
        keep(layer->keys, m->float16, place, key, size);
        keep(layer->values, m->float16, place, v, size);
    }
    size_t apart = (size_t)(m->heads * (size + 2)); /* parts lie as (R, stretches, H, K + 2) */
    float *parts = e->parts + (size_t)row * (size_t)e->stretches * apart + (size_t)(g * shared * (size + 2));
    float *part = parts + (size_t)stretch * apart;
    clear(part, shared, size);
    int from = stretch * STRETCH, to = from + STRETCH <= position ? from + STRETCH : position + 1;
    for (int p = from > seen ? from : seen; p < to;) {
        int count = PAGE - p % PAGE < to - p ? PAGE - p % PAGE : to - p;
        int page = table[p / PAGE], then = p + PAGE <= position ? table[p / PAGE + 1] : page;
        Positions some = {.keys = layer->keys, .values = layer->values, .float16 = m->float16, .count = count};
        some.at = (size_t)page * page_size + head + (size_t)(p % PAGE * size), some.stride = (size_t)size;
        some.next = (ptrdiff_t)(then - page) * (ptrdiff_t)page_size;
        attend(shared, t->query, size, &some, part);
        p += count;
    }
    if (atomic_fetch_sub(&e->missing[row * m->kv_heads + g], 1) == 1) { /* who is last joins what all saw */
        float *out = e->mixed + (size_t)row * (size_t)(m->heads * size) + (size_t)(g * shared * size);
        join(parts + (size_t)first * apart, apart, last - first + 1, shared, size, out);
        atomic_store(&e->missing[row * m->kv_heads + g], last - first + 1); /* for the next layer */
    }
}

/* One head of a row to all places of the picture that it sees; zeros where it sees none. */
static void attend_to_picture(Engine *e, Thread *t, const Cross *cross, int index, int row, int head) {
    const Model *m = e->model;
    int size = m->head_size, width = m->heads * size;
    float *out = e->mixed + (size_t)row * (size_t)width + (size_t)(head * size);
    Seen seen = e->step->seen[row * m->cross_count + index];
    if (!seen.keys) {
        memset(out, 0, (size_t)size * sizeof *out);
        return;
    }
    const float *q = e->qkv + (size_t)row * (size_t)width + (size_t)(head * size);
    float *query = t->query, *part = t->query + size;
    if (cross->q_norm)
        normalise(query, q, size, cross->q_norm, m->epsilon);
    else
        memcpy(query, q, (size_t)size * sizeof *q);
    for (int i = 0; i < size; i++) query[i] /= sqrtf((float)size);
    clear(part, 1, size);
    for (int p = 0; p < e->step->places[row]; p += PAGE) {
        int count = PAGE < e->step->places[row] - p ? PAGE : e->step->places[row] - p;
        Positions some = {.keys = seen.keys, .values = seen.values, .count = count, .next = PAGE * width};
        some.at = (size_t)p * (size_t)width + (size_t)(head * size), some.stride = (size_t)width;
        attend(1, query, size, &some, part);
    }
    join(part, 0, 1, 1, size, out);
}

/* --- stages --- */

enum { SOME = 64 }; /* outputs that are kept aside at once */

/* Adds a layer's outputs, times `gate` where there is one, to the stream. */
static void add(Engine *e, Thread *t, const Linear *l, int from, int to, const float *gate) {
    float out[MOST_ROWS * SOME];
    for (int o = from; o < to; o += SOME) {
        int count = to - o < SOME ? to - o : SOME;
        multiply(l, e->step->rows, &t->inputs, o, o + count, out, SOME);
        for (int row = 0; row < e->step->rows; row++) {
            float *x = e->x + (size_t)row * (size_t)e->model->width + o;
            for (int i = 0; i < count; i++) x[i] += gate ? gate[o + i] * out[row * SOME + i] : out[row * SOME + i];
        }
    }
}

static void widen_and_gate(Engine *e, Thread *t, const Mlp *mlp, int from, int to) {
    float gate[MOST_ROWS * SOME], up[MOST_ROWS * SOME];
    for (int o = from; o < to; o += SOME) {
        int count = to - o < SOME ? to - o : SOME;
        multiply(&mlp->gate, e->step->rows, &t->inputs, o, o + count, gate, SOME);
        multiply(&mlp->up, e->step->rows, &t->inputs, o, o + count, up, SOME);
        for (int row = 0; row < e->step->rows; row++) {
            activate(gate + row * SOME, up + row * SOME, count, e->model->activation);
            memcpy(e->mid + (size_t)row * (size_t)mlp->gate.outputs + o, gate + row * SOME, (size_t)count * sizeof *gate);
        }
    }
}

/* Units `from` to `to` of a stage: UNIT outputs each, or one head of one row. */
void WORK(Engine *e, Thread *t, int index, int from, int to) {
    const Model *m = e->model;
    Stage stage = e->stages[index];
    int rows = e->step->rows, inner = m->heads * m->head_size, all = inner + 2 * m->kv_heads * m->head_size;
    const Layer *layer = m->layers + stage.layer;
    const Cross *cross = m->crosses + stage.layer;
    const Mlp *mlp = stage.kind == CROSS_UP || stage.kind == CROSS_DOWN ? &cross->mlp : &layer->mlp;
    const Linear *several[3];
    if (stage.kind == ATTEND) {
        for (int u = from; u < to; u++) {
            int row = u / (m->kv_heads * e->stretches), rest = u % (m->kv_heads * e->stretches);
            attend_to_stretch(e, t, layer, row, rest % m->kv_heads, rest / m->kv_heads);
        }
        return;
    }
    if (stage.kind == CROSS_ATTEND) {
        for (int u = from; u < to; u++) attend_to_picture(e, t, cross, stage.layer, u / m->heads, u % m->heads);
        return;
    }
    from *= UNIT, to *= UNIT;
    int most = outputs_of(m, stage);
    to = to < most ? to : most;
    switch (stage.kind) {
    case CROSS_Q:
        several[0] = &cross->q;
        expect(several, 1, from);
        prepare(e, t, index, e->x, m->width, cross->norm, 1u << cross->q.kind);
        multiply(&cross->q, rows, &t->inputs, from, to, e->qkv + from, inner);
        break;
    case CROSS_O:
        several[0] = &cross->o;
        expect(several, 1, from);
        prepare(e, t, index, e->mixed, inner, NULL, 1u << cross->o.kind);
        add(e, t, &cross->o, from, to, cross->gate);
        break;
    case QKV:
        several[0] = &layer->q, several[1] = &layer->k, several[2] = &layer->v;
        expect(several, 3, from);
        prepare(e, t, index, e->x, m->width, layer->norm, kinds_of(several, 3));
        multiply_all(several, 3, rows, &t->inputs, from, to, e->qkv, all);
        break;
    case O:
        several[0] = &layer->o;
        expect(several, 1, from);
        prepare(e, t, index, e->mixed, inner, NULL, 1u << layer->o.kind);
        add(e, t, &layer->o, from, to, NULL);
        break;
    case CROSS_UP:
    case UP:
        several[0] = &mlp->gate, several[1] = &mlp->up;
        expect(several, 1, from), expect(several + 1, 1, from);
        prepare(e, t, index, e->x, m->width, stage.kind == UP ? layer->mlp_norm : cross->mlp_norm, kinds_of(several, 2));
        widen_and_gate(e, t, mlp, from, to);
        break;
    case CROSS_DOWN:
    case DOWN:
        several[0] = &mlp->down;
        expect(several, 1, from);
        prepare(e, t, index, e->mid, mlp->down.inputs, NULL, 1u << mlp->down.kind);
        add(e, t, &mlp->down, from, to, stage.kind == DOWN ? NULL : cross->mlp_gate);
        break;
    default: /* HEAD */
        several[0] = &m->heads_[0], several[1] = &m->heads_[1];
        expect(several, m->table_count, from);
        prepare(e, t, index, e->x, m->width, m->norm, kinds_of(several, m->table_count));
        multiply_all(several, m->table_count, rows, &t->inputs, from, to, e->step->logits, most);
    }
}
