/* Attention of a decode step, over pages of the KV cache and over image features. */
INLINE F load_partial(const float *from, int count) {
    return count >= LANES ? load(from) : (F)load_partial_bytes(from, 4 * count);
}

INLINE void store_partial(float *to, F values, int count) {
    memcpy(to, &values, (size_t)(count >= LANES ? LANES : count) * sizeof *to);
}

/* A vector of a cached key or value, from its element `at` on; zeros beyond `count` elements. */
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

/* Up to PAGE_SIZE positions of keys and values, in elements: they begin at `at`, `stride` apart. The next ones,
 * which are prefetched, begin at `at + next`. */
typedef struct {
    const void *keys, *values;
    size_t at, stride;
    ptrdiff_t next;
    int float16, count;
} KVPositions;

INLINE void prefetch(const void *cached, int float16, size_t at, ptrdiff_t next) {
    __builtin_prefetch((const char *)cached + ((ptrdiff_t)at + next) * (float16 ? 2 : 4));
}

/* Adds the attention of some query heads to some positions to `part`, for each head: the largest score, the sum of the
 * weights e^(score - largest), and the sum of the weighted values. */
INLINE void attend_heads(int heads, const float *query, int size, const KVPositions *to, int float16, float *part) {
    int count = to->count;
    float scores[4][PAGE_SIZE], factor[4];
    for (int p = 0; p < count; p++) {
        F sums[4] = {{0}};
        for (int i = 0; i < size; i += LANES) {
            size_t at = to->at + (size_t)p * to->stride + (size_t)i;
            F key = load_cached(to->keys, float16, at, size - i);
            prefetch(to->keys, float16, at, to->next);
            UNROLL for (int h = 0; h < heads; h++)
                sums[h] += load_partial(query + h * size + i, size - i) * key;
        }
        UNROLL for (int h = 0; h < heads; h++)
            scores[h][p] = sum(sums[h]);
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
        UNROLL for (int h = 0; h < heads; h++)
            mix[h] = load_partial(part + h * (size + 2) + 2 + i, size - i) * factor[h];
        for (int p = 0; p < count; p++) {
            size_t at = to->at + (size_t)p * to->stride + (size_t)i;
            F value = load_cached(to->values, float16, at, size - i);
            prefetch(to->values, float16, at, to->next);
            UNROLL for (int h = 0; h < heads; h++)
                mix[h] += scores[h][p] * value;
        }
        UNROLL for (int h = 0; h < heads; h++)
            store_partial(part + h * (size + 2) + 2 + i, mix[h], size - i);
    }
}

INLINE void attend_head_groups(int heads, const float *query, int size, const KVPositions *to, int float16,
                               float *part) {
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

/* Partial attention to no position. */
static void clear_partial(float *part, int heads, int size) {
    memset(part, 0, (size_t)(heads * (size + 2)) * sizeof *part);
    for (int h = 0; h < heads; h++) part[h * (size + 2)] = -INFINITY;
}

/* Merges the partial attention to several splits into `out` (heads, K); parts are `split_stride` floats apart. */
static void merge_splits(const float *parts, size_t split_stride, int num_kv_splits, int heads, int size, float *out) {
    for (int h = 0; h < heads; h++, parts += size + 2, out += size) {
        float largest = -INFINITY, total = 0;
        for (int s = 0; s < num_kv_splits; s++) largest = fmaxf(largest, parts[(size_t)s * split_stride]);
        memset(out, 0, (size_t)size * sizeof *out);
        for (int s = 0; s < num_kv_splits; s++) {
            const float *part = parts + (size_t)s * split_stride;
            float weight = exponential(part[0] - largest);
            total += weight * part[1];
            for (int i = 0; i < size; i++) out[i] += weight * part[2 + i];
        }
        for (int i = 0; i < size; i++) out[i] /= total;
    }
}

/* Rotary position embedding of a head, pairs (i, i + K/2), then scaled. */
static void apply_rotary(float *to, const float *from, const float *rotary_cos_sin, int size, float scale) {
    int half = size / 2;
    for (int i = 0; i < half; i++) {
        float low = from[i], high = from[half + i], cosine = rotary_cos_sin[i], sine = rotary_cos_sin[half + i];
        to[i] = (low * cosine - high * sine) * scale;
        to[half + i] = (high * cosine + low * sine) * scale;
    }
}

/* Writes the new key and value of a row, of key head g, into the row's page. */
static void store_new_kv(Engine *e, ThreadScratch *t, const Layer *layer, int row, int g) {
    const Model *m = e->model;
    const Step *step = e->step;
    int size = m->head_size, position = (int)step->positions[row];
    const float *k = e->qkv + (size_t)row * (size_t)((m->heads + 2 * m->kv_heads) * size) + (m->heads + g) * size;
    size_t page = (size_t)step->tables[row * step->pages + position / PAGE_SIZE];
    size_t head = page * (size_t)m->kv_heads + (size_t)g;
    size_t offset = (head * PAGE_SIZE + (size_t)(position % PAGE_SIZE)) * (size_t)size;
    apply_rotary(t->query, k, e->rotary_cos_sin + row * size, size, 1.0f);
    store_cached(layer->keys, m->float16, offset, t->query, size);
    store_cached(layer->values, m->float16, offset, k + m->kv_heads * size, size);
}

/* Attention of the query heads of a row that share key head g to the positions of one split. */
static void attend_kv_split(Engine *e, ThreadScratch *t, const Layer *layer, int row, int g, int kv_split) {
    const Model *m = e->model;
    const Step *step = e->step;
    int size = m->head_size, heads_per_kv_head = m->heads / m->kv_heads, position = (int)step->positions[row];
    /* the first position that the query attends to */
    int window_start = m->window && position >= m->window ? position - m->window + 1 : 0;
    int first = window_start / KV_SPLIT_SIZE, last = position / KV_SPLIT_SIZE;
    if (kv_split < first || kv_split > last) return;
    const float *rotary_cos_sin = e->rotary_cos_sin + row * size;
    const float *q = e->qkv + (size_t)row * (size_t)((m->heads + 2 * m->kv_heads) * size);
    const int32_t *table = step->tables + (size_t)row * (size_t)step->pages;
    size_t page_size = (size_t)(m->kv_heads * PAGE_SIZE * size), head = (size_t)(g * PAGE_SIZE * size);
    for (int h = 0; h < heads_per_kv_head; h++)
        apply_rotary(t->query + h * size, q + (g * heads_per_kv_head + h) * size, rotary_cos_sin, size,
                     1.0f / sqrtf((float)size));
    size_t split_stride = (size_t)(m->heads * (size + 2));
    float *parts =
        e->parts + (size_t)row * (size_t)e->num_kv_splits * split_stride + (size_t)(g * heads_per_kv_head * (size + 2));
    float *part = parts + (size_t)kv_split * split_stride;
    clear_partial(part, heads_per_kv_head, size);
    int from = kv_split * KV_SPLIT_SIZE, to = from + KV_SPLIT_SIZE <= position ? from + KV_SPLIT_SIZE : position + 1;
    for (int p = from > window_start ? from : window_start; p < to;) {
        int count = PAGE_SIZE - p % PAGE_SIZE < to - p ? PAGE_SIZE - p % PAGE_SIZE : to - p;
        int page = table[p / PAGE_SIZE], next_page = p + PAGE_SIZE <= position ? table[p / PAGE_SIZE + 1] : page;
        KVPositions positions = {.keys = layer->keys, .values = layer->values, .float16 = m->float16, .count = count};
        positions.at = (size_t)page * page_size + head + (size_t)(p % PAGE_SIZE * size),
        positions.stride = (size_t)size;
        positions.next = (ptrdiff_t)(next_page - page) * (ptrdiff_t)page_size;
        attend(heads_per_kv_head, t->query, size, &positions, part);
        p += count;
    }
    if (atomic_fetch_sub(&e->pending_splits[row * m->kv_heads + g], 1) == 1) { /* the last split to finish */
        float *out =
            e->attention_out + (size_t)row * (size_t)(m->heads * size) + (size_t)(g * heads_per_kv_head * size);
        merge_splits(parts + (size_t)first * split_stride, split_stride, last - first + 1, heads_per_kv_head, size,
                     out);
        atomic_store(&e->pending_splits[row * m->kv_heads + g], last - first + 1); /* for the next layer */
    }
}

/* The same of all rows of a sequence. The split of the new positions first writes their keys and values, since later
 * rows attend to those of earlier ones. */
static void attend_sequence(Engine *e, ThreadScratch *t, const Layer *layer, int sequence, int g, int kv_split) {
    int first = e->first_rows[sequence], end = e->first_rows[sequence + 1];
    for (int row = first; row < end; row++)
        if (e->step->positions[row] / KV_SPLIT_SIZE == kv_split) store_new_kv(e, t, layer, row, g);
    for (int row = first; row < end; row++) attend_kv_split(e, t, layer, row, g, kv_split);
}

/* Cross-attention of one head of a row to all features of its image; zeros if it has none. */
static void cross_attend_head(Engine *e, ThreadScratch *t, const CrossLayer *cross, int index, int row, int head) {
    const Model *m = e->model;
    int size = m->head_size, width = m->heads * size;
    float *out = e->attention_out + (size_t)row * (size_t)width + (size_t)(head * size);
    CrossKV cross_kv = e->step->cross_kvs[row * m->cross_count + index];
    if (!cross_kv.keys) {
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
        KVPositions positions = {.keys = cross_kv.keys, .values = cross_kv.values, .count = count};
        positions.next = PAGE_SIZE * width;
        positions.at = (size_t)p * (size_t)width + (size_t)(head * size), positions.stride = (size_t)width;
        attend(1, query, size, &positions, part);
    }
    merge_splits(part, 0, 1, 1, size, out);
}
