/* The way in: an engine for a model, a step, the end. Chooses the instruction set. */
#include "native.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

typedef struct {
    const char *name;
    Work *work;
} Instructions;

/* The best first. */
static const Instructions INSTRUCTIONS[] = {
#if defined(__x86_64__)
    {"avx512", work_avx512},
    {"avx2", work_avx2},
#elif defined(__aarch64__)
    {"neon", work_neon},
#endif
    {"portable", work_portable},
};
enum { KNOWN = sizeof INSTRUCTIONS / sizeof *INSTRUCTIONS };

#if defined(__x86_64__)
static int has_f16c(void) { /* older compilers do not know it by name */
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static int has(const char *name) {
#if defined(__x86_64__)
    if (!strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
               && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
               && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
    if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#elif defined(__aarch64__) && defined(__linux__)
    if (!strcmp(name, "neon")) return (getauxval(AT_HWCAP) & (1 << 20)) != 0; /* HWCAP_ASIMDDP */
#endif
    return 1;
}

int native_layout(void) { return LAYOUT; }

/* The instruction sets that this machine has, the best first: name by name, then NULL. */
const char *native_instructions(int index) {
    for (int i = 0; i < KNOWN; i++)
        if (has(INSTRUCTIONS[i].name) && index-- == 0) return INSTRUCTIONS[i].name;
    return NULL;
}

static Work *work_called(const char *name) {
    for (int i = 0; i < KNOWN; i++)
        if (!strcmp(INSTRUCTIONS[i].name, name) && has(name)) return INSTRUCTIONS[i].work;
    return NULL;
}

int outputs_of(const Model *m, Stage stage) {
    const Layer *layer = m->layers + stage.layer;
    const Cross *cross = m->crosses + stage.layer;
    switch (stage.kind) {
    case CROSS_Q: return cross->q.outputs;
    case CROSS_UP: return cross->mlp.gate.outputs;
    case QKV: return layer->q.outputs + layer->k.outputs + layer->v.outputs;
    case UP: return layer->mlp.gate.outputs;
    case HEAD: return m->heads_[0].outputs + (m->table_count > 1 ? m->heads_[1].outputs : 0);
    default: return m->width;
    }
}

static int larger(int a, int b) { return a > b ? a : b; }

const Linear *layer_of(const Model *m, Stage stage) {
    const Layer *layer = m->layers + stage.layer;
    const Cross *cross = m->crosses + stage.layer;
    switch (stage.kind) {
    case CROSS_Q: return &cross->q;
    case CROSS_O: return &cross->o;
    case CROSS_UP: return &cross->mlp.gate;
    case CROSS_DOWN: return &cross->mlp.down;
    case QKV: return &layer->q;
    case O: return &layer->o;
    case UP: return &layer->mlp.gate;
    case DOWN: return &layer->mlp.down;
    case HEAD: return &m->heads_[0];
    default: return NULL;
    }
}

static void add_stage(Engine *e, StageKind kind, int number) {
    Stage stage = {kind, number, 1};
    const Linear *layer = layer_of(e->model, stage);
    if (layer) stage.least = larger(1, (int)(LEAST / (UNIT * row_bytes(layer, layer->kind))));
    e->stages[e->stage_count++] = stage;
}

static void list_stages(Engine *e) {
    static const StageKind CROSS[] = {CROSS_Q, CROSS_ATTEND, CROSS_O, CROSS_UP, CROSS_DOWN};
    static const StageKind SELF[] = {QKV, ATTEND, O, UP, DOWN};
    for (int i = 0; i < e->model->layer_count; i++) {
        int cross = e->model->layers[i].cross;
        for (int j = 0; cross >= 0 && j < 5; j++) add_stage(e, CROSS[j], cross);
        for (int j = 0; j < 5; j++) add_stage(e, SELF[j], i);
    }
    add_stage(e, HEAD, 0);
}

/* Zeroed memory that is freed with the engine. 64 bytes beyond it may be read: vectors run over the end of rows. */
static void *reserve(Engine *e, size_t count, size_t size) {
    void **block = NULL;
    size_t bytes = (64 + count * size + 64 + 63) / 64 * 64;
    if (posix_memalign((void **)&block, 64, bytes)) return NULL;
    memset(block, 0, bytes);
    block[0] = e->memory; /* a list, whose links stand before what is given out */
    e->memory = block;
    return (char *)block + 64;
}

static void release(Engine *e) {
    while (e->memory) {
        void *next = *(void **)e->memory;
        free(e->memory);
        e->memory = next;
    }
}

static int make_thread(Engine *e, Thread *t, int inputs) {
    Inputs *x = &t->inputs;
    x->stride = (inputs + PAD - 1) / PAD * PAD;
    size_t size = (size_t)x->stride * MOST_ROWS;
    t->query = reserve(e, (size_t)((e->model->heads + 4) * e->model->head_size + 8), sizeof *t->query);
    x->plain = reserve(e, size, sizeof *x->plain);
    x->halves = reserve(e, size, sizeof *x->halves);
    x->bytes = reserve(e, size, 1);
    x->split = reserve(e, size, 1);
    x->scale = reserve(e, size / 4, sizeof *x->scale);
    x->split_scale = reserve(e, size / 8, sizeof *x->split_scale);
    x->minus = reserve(e, size / 4, sizeof *x->minus);
    x->split_minus = reserve(e, size / 8, sizeof *x->split_minus);
    return t->query && x->plain && x->halves && x->bytes && x->split && x->scale && x->split_scale && x->minus
           && x->split_minus;
}

static int make_room(Engine *e, int threads) {
    const Model *m = e->model;
    int inner = m->heads * m->head_size, all = inner + 2 * m->kv_heads * m->head_size, widest = 0;
    for (int i = 0; i < m->layer_count; i++) widest = larger(widest, m->layers[i].mlp.gate.outputs);
    for (int i = 0; i < m->cross_count; i++) widest = larger(widest, m->crosses[i].mlp.gate.outputs);
    int stages = 5 * (m->layer_count + m->cross_count) + 1;
    e->stages = reserve(e, (size_t)stages, sizeof *e->stages);
    e->units = reserve(e, (size_t)stages, sizeof *e->units);
    e->missing = reserve(e, (size_t)(MOST_ROWS * m->kv_heads), sizeof *e->missing);
    e->x = reserve(e, (size_t)(MOST_ROWS * m->width), sizeof *e->x);
    e->qkv = reserve(e, (size_t)(MOST_ROWS * all), sizeof *e->qkv);
    e->mixed = reserve(e, (size_t)(MOST_ROWS * inner), sizeof *e->mixed);
    e->mid = reserve(e, (size_t)MOST_ROWS * (size_t)widest, sizeof *e->mid);
    e->turns = reserve(e, (size_t)(MOST_ROWS * m->head_size), sizeof *e->turns);
    e->threads = reserve(e, (size_t)threads, sizeof *e->threads);
    int made = e->stages && e->units && e->missing && e->x && e->qkv && e->mixed && e->mid && e->turns && e->threads;
    for (int i = 0; made && i < threads; i++)
        made = make_thread(e, e->threads + i, larger(larger(m->width, inner), widest));
    return made;
}

void native_free(Engine *e) {
    if (e->pool) pool_free(e->pool);
    release(e);
    free(e->parts);
    free(e);
}

/* -> an engine that reads `model` for as long as it lives, or NULL where there is no memory for it. */
Engine *native_new(const Model *model, const char *instructions, int threads) {
    Engine *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->model = model;
    e->work = work_called(instructions);
    if (e->work && make_room(e, threads)) {
        list_stages(e);
        e->pool = pool_new(e, threads);
    }
    if (e->pool) return e;
    native_free(e);
    return NULL;
}

/* -> 0 where the id is in no table. */
static int look_up(Engine *e, const Step *step, int row) {
    const Model *m = e->model;
    const Table *table = m->tables;
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

static void place_row(Engine *e, const Step *step, int row) {
    const Model *m = e->model;
    int half = m->head_size / 2;
    int64_t position = step->positions[row], back = m->window && position >= m->window ? m->window - 1 : position;
    for (int i = 0; i < half; i++) {
        float angle = (float)position * m->frequencies[i];
        e->turns[row * 2 * half + i] = cosf(angle);
        e->turns[row * 2 * half + half + i] = sinf(angle);
    }
    int stretches = (int)(position / STRETCH - (position - back) / STRETCH) + 1;
    for (int g = 0; g < m->kv_heads; g++) atomic_store(&e->missing[row * m->kv_heads + g], stretches);
    e->stretches = larger(e->stretches, (int)(position / STRETCH) + 1);
}

static int units_of(const Engine *e, Stage stage) {
    if (stage.kind == ATTEND) return e->step->rows * e->model->kv_heads * e->stretches;
    if (stage.kind == CROSS_ATTEND) return e->step->rows * e->model->heads;
    return (outputs_of(e->model, stage) + UNIT - 1) / UNIT;
}

/* Reads one more token in each of up to MOST_ROWS rows. -> 0; NO_MEMORY, or NO_SUCH_ID. */
int native_step(Engine *e, const Step *step) {
    const Model *m = e->model;
    e->step = step;
    e->stretches = 0;
    for (int row = 0; row < step->rows; row++) {
        if (!look_up(e, step, row)) return NO_SUCH_ID;
        place_row(e, step, row);
    }
    size_t size = (size_t)(step->rows * e->stretches) * (size_t)(m->heads * (m->head_size + 2));
    if (size > e->parts_size) {
        free(e->parts);
        e->parts = malloc((2 * size + 16) * sizeof *e->parts); /* more, for rows grow */
        e->parts_size = e->parts ? 2 * size : 0;
        if (!e->parts) return NO_MEMORY;
    }
    for (int i = 0; i < e->stage_count; i++) atomic_store(&e->units[i], units_of(e, e->stages[i]));
    for (int i = 0; i < pool_threads(e->pool); i++) e->threads[i].stage = -1;
    pool_run(e->pool);
    return 0;
}
