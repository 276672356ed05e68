/* Counts the pieces of work that the threads of a new pool take before a step has begun. */
#include "decode.h"

#include <stdlib.h>
#include <time.h>

static _Atomic int taken;

static void work(Engine *engine, ThreadScratch *thread, int stage, int from, int to) {
    (void)engine, (void)thread, (void)stage;
    atomic_fetch_add(&taken, to - from);
}

/* -> units of work done before the step, then in it; the step has `units`. */
void pool_start(int threads, int units, int *before, int *in_step) {
    Engine *engine = calloc(1, sizeof *engine);
    engine->stages = calloc(1, sizeof *engine->stages);
    engine->units = calloc(1, sizeof *engine->units);
    engine->threads = calloc((size_t)threads, sizeof *engine->threads);
    engine->stage_count = engine->stages->least = 1;
    engine->work = work;
    Model model = {0};
    engine->model = &model;
    atomic_store(engine->units, units);
    ThreadPool *pool = pool_new(engine, threads);
    nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL); /* until all threads have started */
    *before = atomic_load(&taken);
    if (!*before) pool_run(pool);
    *in_step = atomic_load(&taken);
    pool_free(pool);
    free(engine->threads), free(engine->units), free(engine->stages), free(engine);
}
