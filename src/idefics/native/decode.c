/* The functions of the decode step that Python calls: an engine for a model, a step, the end. */
#include "decode.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static StageFunction *find_stage_function(int instruction_set) {
    switch (instruction_set) {
#if defined(__x86_64__)
    case AVX512_VNNI: return run_stage_avx512;
    case AVX2: return run_stage_avx2;
#elif defined(__aarch64__)
    case NEON_DOTPROD: return run_stage_neon;
#endif
    default: return run_stage_portable;
    }
}

int num_outputs(const Model *m, Stage stage) {
    const Layer *layer = m->layers + stage.layer;
    const CrossLayer *cross = m->crosses + stage.layer;
    switch (stage.kind) {
    case CROSS_Q: return cross->q.outputs;
    case CROSS_UP: return cross->mlp.gate.outputs;
    case QKV: return layer->q.outputs + layer->k.outputs + layer->v.outputs;
    case UP: return layer->mlp.gate.outputs;
    case HEAD: return m->lm_heads[0].outputs + (m->table_count > 1 ? m->lm_heads[1].outputs : 0);
    default: return m->width;
    }
}

static int larger(int a, int b) { return a > b ? a : b; }

const Linear *first_linear(const Model *m, Stage stage) {
    const Layer *layer = m->layers + stage.layer;
    const CrossLayer *cross = m->crosses + stage.layer;
    switch (stage.kind) {
    case CROSS_Q: return &cross->q;
    case CROSS_O: return &cross->o;
    case CROSS_UP: return &cross->mlp.gate;
    case CROSS_DOWN: return &cross->mlp.down;
    case QKV: return &layer->q;
    case O: return &layer->o;
    case UP: return &layer->mlp.gate;
    case DOWN: return &layer->mlp.down;
    case HEAD: return &m->lm_heads[0];
    default: return NULL;
    }
}

/* The sum of the ranks that an adapter has in a stage. */
static int total_rank(const LowRankTerms *terms) {
    return terms->terms[0].a.outputs + terms->terms[1].a.outputs + terms->terms[2].a.outputs;
}

/* Adds a stage, and before it one for the first factors of adapters, if any adapter has some. `terms`: of this stage.
 * -> those of the next one that multiplies. */
static const LowRankTerms *add_stage(Engine *e, StageKind kind, int number, const LowRankTerms *terms) {
    Stage stage = {kind, number, 1, 0, NULL};
    const Linear *layer = first_linear(e->model, stage);
    int adapter_count = layer ? e->model->adapter_count : 0;
    for (int i = 0; i < adapter_count; i++)
        if (total_rank(terms + i)) stage.terms = terms;
    if (stage.terms) {
        e->stages[e->stage_count] = stage;
        e->stages[e->stage_count++].is_low_rank = 1;
    }
    if (layer) stage.least = larger(1, (int)(MIN_PIECE_BYTES / (OUTPUTS_PER_UNIT * row_bytes(layer, layer->kind))));
    e->stages[e->stage_count++] = stage;
    return adapter_count ? terms + adapter_count : terms;
}

static void list_stages(Engine *e) {
    static const StageKind CROSS[] = {CROSS_Q, CROSS_ATTEND, CROSS_O, CROSS_UP, CROSS_DOWN};
    static const StageKind SELF[] = {QKV, ATTEND, O, UP, DOWN};
    const LowRankTerms *terms = e->model->low_rank;
    for (int i = 0; i < e->model->layer_count; i++) {
        int cross = e->model->layers[i].cross;
        for (int j = 0; cross >= 0 && j < 5; j++) terms = add_stage(e, CROSS[j], cross, terms);
        for (int j = 0; j < 5; j++) terms = add_stage(e, SELF[j], i, terms);
    }
    add_stage(e, HEAD, 0, terms);
}

/* Zeroed memory that is freed with the engine. 64 bytes beyond it may be read: vectors run past the end of rows. */
static void *allocate(Engine *e, size_t count, size_t size) {
    void **block = NULL;
    size_t bytes = (64 + count * size + 64 + 63) / 64 * 64;
    if (posix_memalign((void **)&block, 64, bytes)) return NULL;
    memset(block, 0, bytes);
    block[0] = e->memory; /* a linked list: each block begins with the address of the one before */
    e->memory = block;
    return (char *)block + 64;
}

static void free_all(Engine *e) {
    while (e->memory) {
        void *next = *(void **)e->memory;
        free(e->memory);
        e->memory = next;
    }
}

static int allocate_thread_scratch(Engine *e, ThreadScratch *t, int inputs) {
    PreparedInputs *x = &t->inputs;
    x->stride = (inputs + PAD_MULTIPLE - 1) / PAD_MULTIPLE * PAD_MULTIPLE;
    size_t size = (size_t)x->stride * MAX_ROWS;
    t->query = allocate(e, (size_t)((e->model->heads + 4) * e->model->head_size + 8), sizeof *t->query);
    x->plain = allocate(e, size, sizeof *x->plain);
    x->deinterleaved = allocate(e, size, sizeof *x->deinterleaved);
    x->bytes = allocate(e, size, 1);
    x->deinterleaved_bytes = allocate(e, size, 1);
    x->scale = allocate(e, size / 4, sizeof *x->scale);
    x->deinterleaved_scale = allocate(e, size / 8, sizeof *x->deinterleaved_scale);
    x->offset = allocate(e, size / 4, sizeof *x->offset);
    x->deinterleaved_offset = allocate(e, size / 8, sizeof *x->deinterleaved_offset);
    return t->query && x->plain && x->deinterleaved && x->bytes && x->deinterleaved_bytes && x->scale
           && x->deinterleaved_scale && x->offset && x->deinterleaved_offset;
}

static int allocate_buffers(Engine *e, int threads) {
    const Model *m = e->model;
    int inner = m->heads * m->head_size, all = inner + 2 * m->kv_heads * m->head_size, max_width = 0;
    for (int i = 0; i < m->layer_count; i++) max_width = larger(max_width, m->layers[i].mlp.gate.outputs);
    for (int i = 0; i < m->cross_count; i++) max_width = larger(max_width, m->crosses[i].mlp.gate.outputs);
    int multiplying = 4 * (m->layer_count + m->cross_count) + 1; /* each may have one before it, for adapters */
    int stages = 5 * (m->layer_count + m->cross_count) + 1 + (m->adapter_count ? multiplying : 0);
    for (int i = 0; i < multiplying * m->adapter_count; i++)
        e->low_rank_width = larger(e->low_rank_width, total_rank(m->low_rank + i));
    e->low_rank = allocate(e, (size_t)(MAX_ROWS * e->low_rank_width), sizeof *e->low_rank);
    e->stages = allocate(e, (size_t)stages, sizeof *e->stages);
    e->units = allocate(e, (size_t)stages, sizeof *e->units);
    e->pending_splits = allocate(e, (size_t)(MAX_ROWS * m->kv_heads), sizeof *e->pending_splits);
    e->x = allocate(e, (size_t)(MAX_ROWS * m->width), sizeof *e->x);
    e->qkv = allocate(e, (size_t)(MAX_ROWS * all), sizeof *e->qkv);
    e->attention_out = allocate(e, (size_t)(MAX_ROWS * inner), sizeof *e->attention_out);
    e->mlp_hidden = allocate(e, (size_t)MAX_ROWS * (size_t)max_width, sizeof *e->mlp_hidden);
    e->rotary_cos_sin = allocate(e, (size_t)(MAX_ROWS * m->head_size), sizeof *e->rotary_cos_sin);
    e->threads = allocate(e, (size_t)threads, sizeof *e->threads);
    int made = e->stages && e->units && e->pending_splits && e->x && e->qkv && e->attention_out && e->mlp_hidden
               && e->rotary_cos_sin && e->low_rank && e->threads;
    for (int i = 0; made && i < threads; i++)
        made = allocate_thread_scratch(e, e->threads + i, larger(larger(m->width, inner), max_width));
    return made;
}

void idefics_decode_free(Engine *e) {
    if (e->pool) pool_free(e->pool);
    free_all(e);
    free(e->parts);
    free(e);
}

Engine *idefics_decode_new(const Model *model, int instruction_set, int threads) {
    Engine *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->model = model;
    e->work = find_stage_function(instruction_set);
    if (allocate_buffers(e, threads)) {
        list_stages(e);
        e->pool = pool_new(e, threads);
    }
    if (e->pool) return e;
    idefics_decode_free(e);
    return NULL;
}

/* Copies the embedding of a row's id into its residual stream. -> 0 if the id is in no table. */
static int copy_embedding(Engine *e, const Step *step, int row) {
    const Model *m = e->model;
    const EmbeddingTable *table = m->tables;
    int64_t id = step->ids[row];
    float *x = e->x + (size_t)row * (size_t)m->width;
    if (id >= table->rows && m->table_count > 1) id -= table->rows, table++;
    if (id < 0 || id >= table->rows) return 0;
    const char *from = (const char *)table->weight + (size_t)id * (size_t)m->width * (table->kind == FLOAT32 ? 4 : 2);
    if (table->kind == FLOAT32) {
        memcpy(x, from, (size_t)m->width * sizeof *x);
        return 1;
    }
    for (int i = 0; i < m->width; i++) {
        uint16_t half;
        memcpy(&half, from + 2 * i, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(x + i, &bits, sizeof bits);
    }
    return 1;
}

/* Computes the rotary angles of a row's position, and counts the splits of its attention. */
static void prepare_row(Engine *e, const Step *step, int row) {
    const Model *m = e->model;
    int half = m->head_size / 2;
    int64_t position = step->positions[row], back = m->window && position >= m->window ? m->window - 1 : position;
    for (int i = 0; i < half; i++) {
        float angle = (float)position * m->frequencies[i];
        e->rotary_cos_sin[row * 2 * half + i] = cosf(angle);
        e->rotary_cos_sin[row * 2 * half + half + i] = sinf(angle);
    }
    int num_kv_splits = (int)(position / KV_SPLIT_SIZE - (position - back) / KV_SPLIT_SIZE) + 1;
    for (int g = 0; g < m->kv_heads; g++) atomic_store(&e->pending_splits[row * m->kv_heads + g], num_kv_splits);
    e->num_kv_splits = larger(e->num_kv_splits, (int)(position / KV_SPLIT_SIZE) + 1);
}

/* Whether a row is of the same sequence as the row before it: it has the next position, and the same page before. */
static int continues_row_before(const Step *step, int row) {
    if (row == 0 || step->positions[row] != step->positions[row - 1] + 1) return 0;
    const int32_t *page = step->tables + row * step->pages + step->positions[row - 1] / PAGE_SIZE;
    return page[0] == page[-step->pages];
}

/* Outputs of the first factors of the adapter that has the most. */
static int num_low_rank_outputs(const Engine *e, Stage stage) {
    int most = 0;
    for (int row = 0; e->step->adapters && row < e->step->rows; row++)
        if (e->step->adapters[row] >= 0) most = larger(most, total_rank(stage.terms + e->step->adapters[row]));
    return most;
}

static int count_units(const Engine *e, Stage stage) {
    if (stage.is_low_rank) return (num_low_rank_outputs(e, stage) + OUTPUTS_PER_UNIT - 1) / OUTPUTS_PER_UNIT;
    if (stage.kind == ATTEND) return e->sequence_count * e->model->kv_heads * e->num_kv_splits;
    if (stage.kind == CROSS_ATTEND) return e->step->rows * e->model->heads;
    return (num_outputs(e->model, stage) + OUTPUTS_PER_UNIT - 1) / OUTPUTS_PER_UNIT;
}

int idefics_decode_step(Engine *e, const Step *step) {
    const Model *m = e->model;
    e->step = step;
    e->num_kv_splits = e->sequence_count = 0;
    for (int row = 0; row < step->rows; row++) {
        if (!copy_embedding(e, step, row)) return ID_OUT_OF_RANGE;
        prepare_row(e, step, row);
        if (!continues_row_before(step, row)) e->first_rows[e->sequence_count++] = row;
    }
    e->first_rows[e->sequence_count] = step->rows;
    size_t size = (size_t)(step->rows * e->num_kv_splits) * (size_t)(m->heads * (m->head_size + 2));
    if (size > e->parts_size) {
        free(e->parts);
        e->parts = malloc((2 * size + 16) * sizeof *e->parts); /* twice as much: contexts grow */
        e->parts_size = e->parts ? 2 * size : 0;
        if (!e->parts) return OUT_OF_MEMORY;
    }
    for (int i = 0; i < e->stage_count; i++) atomic_store(&e->units[i], count_units(e, e->stages[i]));
    for (int i = 0; i < pool_threads(e->pool); i++) e->threads[i].stage = -1;
    pool_run(e->pool);
    return 0;
}
