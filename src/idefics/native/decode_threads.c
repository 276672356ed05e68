/* A pool of threads that run the stages of a step one after another, each stage in pieces.
 *
 * The current stage and its next unit are one atomic word. Threads take pieces by moving it on; the thread that
 * finishes the last piece of a stage starts the next stage. So no thread waits for one that holds no piece: a thread
 * that the system has descheduled delays nobody, and joins the current stage when it runs again. A thread without work
 * spins for a moment, then sleeps.
 */
#include "decode.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum { SPIN_NANOSECONDS = 50000 };          /* about the cost of waking a thread */
enum { NEXT_STAGE_PREFETCH_BYTES = 16384 }; /* bytes of weights of the next stage to prefetch while waiting */

struct ThreadPool {
    _Atomic uint64_t place; /* number of the current stage << 32 | its next unit */
    _Atomic uint32_t first; /* number of this step's first stage: stages are numbered on from step to step */
    _Atomic int32_t done;   /* finished units of the current stage */
    _Atomic int32_t sleepers;
    _Atomic int over;
    Engine *engine;
    int threads;
    pthread_mutex_t lock;
    pthread_cond_t stage_changed;
    pthread_t *workers;
};

typedef struct {
    ThreadPool *pool;
    ThreadScratch *thread;
} Worker;

static uint32_t stage_of(uint64_t place) { return (uint32_t)(place >> 32); }

static void start_stage(ThreadPool *pool, uint32_t stage) {
    atomic_store(&pool->place, (uint64_t)stage << 32);
    if (atomic_load(&pool->sleepers)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->stage_changed);
        pthread_mutex_unlock(&pool->lock);
    }
}

/* The number of the first stage from this one on that has units in this step, or of the end of the step. */
static uint32_t find_stage_with_units(const ThreadPool *pool, uint32_t stage) {
    uint32_t first = atomic_load(&pool->first);
    while (stage - first < (uint32_t)pool->engine->stage_count && !atomic_load(&pool->engine->units[stage - first]))
        stage++;
    return stage;
}

static void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Returns when another stage than this one is current. */
static void wait_for_next_stage(ThreadPool *pool, uint32_t stage) {
    int64_t end = nanoseconds() + SPIN_NANOSECONDS;
    do {
        for (int i = 0; i < 64; i++) {
            if (stage_of(atomic_load(&pool->place)) != stage) return;
            cpu_relax();
        }
    } while (nanoseconds() < end);
    pthread_mutex_lock(&pool->lock);
    /* Before reading `place`: start_stage writes `place` first, then reads this. */
    atomic_fetch_add(&pool->sleepers, 1);
    while (stage_of(atomic_load(&pool->place)) == stage && !atomic_load(&pool->over))
        pthread_cond_wait(&pool->stage_changed, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

/* Prefetches weights of the next stage that multiplies, since memory would be idle while this thread waits. The thread
 * that ends this stage takes the first piece of the next, so this one prefetches the second. */
static void prefetch_next_stage(const Engine *e, uint32_t index, int threads) {
    while (++index < (uint32_t)e->stage_count) {
        const Linear *l = first_linear(e->model, e->stages[index]);
        if (!l) continue;
        size_t row = row_bytes(l, l->kind),
               from = row * OUTPUTS_PER_UNIT * ((size_t)l->outputs / OUTPUTS_PER_UNIT / (size_t)(2 * threads));
        for (size_t at = 0; at < NEXT_STAGE_PREFETCH_BYTES; at += 64)
            __builtin_prefetch((const char *)l->weight + from + at);
        return;
    }
}

/* Takes pieces of one stage, as long as it is current, until none is left. */
static void run_pieces(ThreadPool *pool, ThreadScratch *thread, uint32_t stage) {
    for (;;) {
        uint64_t place = atomic_load(&pool->place);
        if (stage_of(place) != stage) return;
        /* A stage from before this step gives an index far beyond the last. */
        uint32_t index = stage - atomic_load(&pool->first);
        if (index >= (uint32_t)pool->engine->stage_count) return;
        int32_t units = atomic_load(&pool->engine->units[index]), from = (int32_t)(uint32_t)place;
        if (from >= units) {
            prefetch_next_stage(pool->engine, index, pool->threads);
            return;
        }
        /* Large pieces first, so that there are few; small ones last, so that all threads end together. */
        int32_t count = (units - from) / (2 * pool->threads), least = pool->engine->stages[index].least;
        if (count < least) count = least < units - from ? least : units - from;
        /* Succeeds only if what was read above belongs to the current stage, which then waits for this piece. */
        if (!atomic_compare_exchange_weak(&pool->place, &place, place + (uint32_t)count)) continue;
        pool->engine->work(pool->engine, thread, (int)index, from, from + count);
        if (atomic_fetch_add(&pool->done, count) + count == units) {
            atomic_store(&pool->done, 0);
            start_stage(pool, find_stage_with_units(pool, stage + 1));
            return;
        }
    }
}

static void *worker_main(void *argument) {
    Worker worker = *(Worker *)argument;
    free(argument);
    while (!atomic_load(&worker.pool->over)) {
        uint32_t stage = stage_of(atomic_load(&worker.pool->place));
        run_pieces(worker.pool, worker.thread, stage);
        if (stage_of(atomic_load(&worker.pool->place)) == stage) wait_for_next_stage(worker.pool, stage);
    }
    return NULL;
}

/* Runs all stages of a step; their units have been set, and no thread is working. */
void pool_run(ThreadPool *pool) {
    uint32_t first = stage_of(atomic_load(&pool->place)) + 1;
    uint32_t last = first + (uint32_t)pool->engine->stage_count;
    atomic_store(&pool->first, first);
    start_stage(pool, find_stage_with_units(pool, first));
    for (uint32_t stage; (stage = stage_of(atomic_load(&pool->place))) != last;) {
        run_pieces(pool, pool->engine->threads, stage);
        if (stage_of(atomic_load(&pool->place)) == stage) wait_for_next_stage(pool, stage);
    }
}

int pool_threads(const ThreadPool *pool) { return pool->threads; }

ThreadPool *pool_new(Engine *engine, int threads) {
    ThreadPool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->engine = engine;
    pool->workers = calloc((size_t)threads, sizeof *pool->workers);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->stage_changed, NULL);
    /* Threads start at stage 0, which is in no step: they do nothing before pool_run. */
    atomic_store(&pool->first, 1);
    pool->threads = 1;
    while (pool->workers && pool->threads < threads) { /* as many as the system allows */
        Worker *worker = malloc(sizeof *worker);
        if (!worker) break;
        *worker = (Worker){pool, engine->threads + pool->threads};
        if (pthread_create(&pool->workers[pool->threads - 1], NULL, worker_main, worker)) {
            free(worker);
            break;
        }
        pool->threads++;
    }
    return pool;
}

void pool_free(ThreadPool *pool) {
    atomic_store(&pool->over, 1);
    start_stage(pool, stage_of(atomic_load(&pool->place)) + 1);
    for (int i = 0; i + 1 < pool->threads; i++) pthread_join(pool->workers[i], NULL);
    pthread_cond_destroy(&pool->stage_changed);
    pthread_mutex_destroy(&pool->lock);
    free(pool->workers);
    free(pool);
}
