/* Weights of four bits into float32: level * scale, rounded once, as torch does it. And, with AVX-512's dot products of
   bytes (VNNI), products of such weights with inputs that are rounded to eight bits. And what stands before and after a
   product of bytes by oneDNN: inputs are rounded, sums scaled. C11; keeps no state. */

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define GROUP 32 /* neighbouring weights that share a scale, two in a byte, the even one in the low half */
#define ZERO 8   /* the level of zero */
#define SHARE 16 /* outputs or rows that a thread takes */
#define INLINE static inline __attribute__((always_inline))

/* idefics/quant/passes.py has the same fields in the same order. */
typedef struct {
    const uint8_t *levels; /* (outputs, groups * GROUP / 2) */
    const void *scales;    /* (outputs, groups) bfloat16 or float32 */
    float *out;            /* (outputs, inputs) */
    int64_t outputs, inputs;
    int bfloat16; /* whether scales are */
    int width;    /* of vectors: an answer of idefics_passes_width */
} Widening;

INLINE float scale_at(const void *scales, int bfloat16, int64_t at) {
    if (!bfloat16) return ((const float *)scales)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)scales)[at] << 16;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

INLINE void plain_group(const uint8_t *levels, float scale, float *out) {
    for (int i = 0; i < GROUP / 2; i++) {
        out[2 * i] = (float)((levels[i] & 15) - ZERO) * scale;
        out[2 * i + 1] = (float)((levels[i] >> 4) - ZERO) * scale;
    }
}

typedef void Group(const uint8_t *levels, float scale, float *out);
INLINE void widen_output(const Widening *all, int64_t output, Group *widen_group) {
    int64_t whole = all->inputs / GROUP, groups = (all->inputs + GROUP - 1) / GROUP;
    const uint8_t *levels = all->levels + output * groups * (GROUP / 2);
    float *out = all->out + output * all->inputs;
    for (int64_t group = 0; group < whole; group++)
        widen_group(levels + group * (GROUP / 2), scale_at(all->scales, all->bfloat16, output * groups + group),
                    out + group * GROUP);
    if (whole < groups) {
        float last[GROUP];
        widen_group(levels + whole * (GROUP / 2), scale_at(all->scales, all->bfloat16, output * groups + whole), last);
        memcpy(out + whole * GROUP, last, sizeof(float) * (all->inputs - whole * GROUP));
    }
}

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

INLINE AVX2 void avx2_group(const uint8_t *levels, float scale, float *out) {
    const __m256 zero = _mm256_set1_ps(ZERO), by = _mm256_set1_ps(scale);
    for (int i = 0; i < GROUP / 2; i += 8) {
        __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(levels + i)));
        __m256 even = _mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(15)));
        __m256 odd = _mm256_cvtepi32_ps(_mm256_srli_epi32(bytes, 4));
        even = _mm256_mul_ps(_mm256_sub_ps(even, zero), by);
        odd = _mm256_mul_ps(_mm256_sub_ps(odd, zero), by);
        __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
        _mm256_storeu_ps(out + 2 * i, _mm256_permute2f128_ps(low, high, 0x20));
        _mm256_storeu_ps(out + 2 * i + 8, _mm256_permute2f128_ps(low, high, 0x31));
    }
}
/* Four bits choose one of a group's sixteen weights, which lie in a register. */
INLINE AVX512 void avx512_group(const uint8_t *levels, float scale, float *out) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    __m512 weights = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    weights = _mm512_mul_ps(weights, _mm512_set1_ps(scale));
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)levels));
    __m512 even = _mm512_permutexvar_ps(bytes, weights);
    __m512 odd = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), weights);
    _mm512_storeu_ps(out, _mm512_permutex2var_ps(even, first, odd));
    _mm512_storeu_ps(out + 16, _mm512_permutex2var_ps(even, second, odd));
}
#endif

typedef void Widen(const Widening *, int64_t output);
static void widen_plain(const Widening *all, int64_t output) { widen_output(all, output, plain_group); }
#if defined(__x86_64__)
AVX2 static void widen_avx2(const Widening *all, int64_t output) { widen_output(all, output, avx2_group); }
AVX512 static void widen_avx512(const Widening *all, int64_t output) { widen_output(all, output, avx512_group); }
static Widen *const WIDENS[] = {widen_plain, widen_avx2, widen_avx512};
#else
static Widen *const WIDENS[] = {widen_plain};
#endif

#if defined(__x86_64__)
static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

/* The widest vectors of this machine, no wider than `most`: 2 for AVX-512, 1 for AVX2, 0 for what any machine has. */
int idefics_passes_width(int most) {
#if defined(__x86_64__)
    int width = has_avx512() ? 2 : __builtin_cpu_supports("avx2") ? 1 : 0;
    return width < most ? width : most;
#else
    return (void)most, 0;
#endif
}

typedef struct {
    const Widening *all;
    atomic_llong next;
} Work;

/* What each thread does: the next few outputs, until none is left. */
static void take_part(void *shared) {
    Work *work = shared;
    const Widening *all = work->all;
    for (int64_t start; (start = atomic_fetch_add(&work->next, SHARE)) < all->outputs;)
        for (int64_t output = start; output < start + SHARE && output < all->outputs; output++)
            WIDENS[all->width](all, output);
}

/* GOMP_parallel of the OpenMP that torch has loaded; it is not looked at for one thread. */
typedef void Parallel(void (*)(void *), void *, unsigned, unsigned);

void idefics_widen(const Widening *all, int threads, Parallel *parallel) {
    Work work = {.all = all};
    if (threads > 1 && all->outputs > SHARE)
        parallel(take_part, &work, threads, 0);
    else
        take_part(&work);
}

/* idefics/quant/passes.py has the same fields in the same order. */
typedef struct {
    const float *x;      /* (rows, inputs) */
    int8_t *levels;      /* (rows, inputs) for x in whole numbers of its row's step, 127 for the largest */
    float *steps;        /* (rows) */
    int32_t *sums;       /* (rows, outputs) of products of levels; becomes the outputs in float32 */
    const float *scales; /* (outputs) */
    const float *bias;   /* (outputs) or null */
    int64_t rows, inputs, outputs;
    int width;
} Rows;

/* As integers, the bits of numbers without a sign are in the order of the numbers, and what is none is above them. */
INLINE void round_row(const Rows *all, int64_t row) {
    const int32_t INFINITE = 0x7f800000, SIGNLESS = 0x7fffffff;
    const float MIDDLE = 12582912.0f; /* 1.5 * 2^23: beside it floats are whole numbers, the last byte theirs */
    const float *x = all->x + row * all->inputs;
    int8_t *levels = all->levels + row * all->inputs;
    int32_t largest = 0;
    for (int64_t i = 0; i < all->inputs; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= SIGNLESS;
        largest = bits > largest ? bits : largest;
    }
    float most;
    memcpy(&most, &largest, sizeof most);
    if (largest >= INFINITE) { /* shows in the whole row */
        memset(levels, 0, (size_t)all->inputs);
        all->steps[row] = __builtin_nanf("");
        return;
    }
    float step = most / 127.0f > __FLT_MIN__ ? most / 127.0f : __FLT_MIN__;
    for (int64_t i = 0; i < all->inputs; i++) {
        float near = x[i] / step + MIDDLE;
        int32_t bits;
        memcpy(&bits, &near, sizeof bits);
        levels[i] = (int8_t)bits;
    }
    all->steps[row] = step;
}

INLINE void scale_row(const Rows *all, int64_t row) {
    int32_t *sums = all->sums + row * all->outputs;
    const float step = all->steps[row], *scales = all->scales, *bias = all->bias;
    for (int64_t i = 0; i < all->outputs; i++) {
        float out = (float)sums[i] * step * scales[i];
        if (bias) out += bias[i];
        memcpy(sums + i, &out, sizeof out);
    }
}

typedef void Row(const Rows *, int64_t row);
static void round_plain(const Rows *all, int64_t row) { round_row(all, row); }
static void scale_plain(const Rows *all, int64_t row) { scale_row(all, row); }
#if defined(__x86_64__)
AVX2 static void round_avx2(const Rows *all, int64_t row) { round_row(all, row); }
AVX2 static void scale_avx2(const Rows *all, int64_t row) { scale_row(all, row); }
AVX512 static void round_avx512(const Rows *all, int64_t row) { round_row(all, row); }
AVX512 static void scale_avx512(const Rows *all, int64_t row) { scale_row(all, row); }
static Row *const ROUNDS[] = {round_plain, round_avx2, round_avx512};
static Row *const SCALES[] = {scale_plain, scale_avx2, scale_avx512};
#else
static Row *const ROUNDS[] = {round_plain};
static Row *const SCALES[] = {scale_plain};
#endif

typedef struct {
    const Rows *all;
    Row *part;
    atomic_llong next;
} Passing;

static void pass_rows(void *shared) {
    Passing *work = shared;
    for (int64_t start; (start = atomic_fetch_add(&work->next, SHARE)) < work->all->rows;)
        for (int64_t row = start; row < start + SHARE && row < work->all->rows; row++) work->part(work->all, row);
}

static void each_row(const Rows *all, Row *part, int threads, Parallel *parallel) {
    Passing work = {.all = all, .part = part};
    if (threads > 1 && all->rows > SHARE)
        parallel(pass_rows, &work, threads, 0);
    else
        pass_rows(&work);
}

/* Before the product of bytes. */
void idefics_round_rows(const Rows *all, int threads, Parallel *parallel) {
    each_row(all, ROUNDS[all->width], threads, parallel);
}

/* And after it. */
void idefics_scale_rows(const Rows *all, int threads, Parallel *parallel) {
    each_row(all, SCALES[all->width], threads, parallel);
}

/* idefics/quant/passes.py has the same fields in the same order. */
typedef struct {
    const float *x; /* (rows, inputs) */
    int8_t *whole;  /* (rows, groups * GROUP) for x in whole numbers of its steps; of eight the even ones come first */
    float *steps;   /* (rows, groups) */
    int32_t *minus; /* (rows, groups) what ZERO adds to each sum of products, with the other sign */
    const uint8_t *levels;
    const void *scales;
    const float *bias; /* (outputs) or null */
    float *out;        /* (rows, outputs) */
    int64_t rows, outputs, inputs;
    int bfloat16; /* whether scales are */
} Product;

#if defined(__x86_64__)
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define PANEL 16    /* outputs, side by side in a vector */
#define ROWS 12     /* that are multiplied together: as many sums, and a group's eight vectors, fit 32 registers */
#define CHUNK 120   /* rows that stay in a cache while all outputs meet them */
#define STRETCH 32  /* groups of a panel that are unpacked at once: 16 KiB */
#define SMALLEST 1e-30f /* what a group's largest input counts for at least, so that its reciprocal is a number */

#define UNROLL _Pragma("GCC unroll 16")

typedef struct {
    const Product *all;
    atomic_llong next;
} Multiplying;

/* 32 inputs in whole numbers, 127 for the largest; those behind `count` are zero. What is not a number shows. */
VNNI static void round_group(const float *x, int64_t count, int8_t *whole, float *step, int32_t *minus) {
    const __m256i order = _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15, 0, 2, 4, 6, 1, 3, 5, 7,
                                           8, 10, 12, 14, 9, 11, 13, 15);
    uint32_t there = count < GROUP ? ((uint32_t)1 << count) - 1 : ~(uint32_t)0;
    __m512 low = _mm512_maskz_loadu_ps((__mmask16)there, x);
    __m512 high = _mm512_maskz_loadu_ps((__mmask16)(there >> 16), x + 16);
    float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    most = most > SMALLEST ? most : SMALLEST;
    __m512 by = _mm512_set1_ps(127.0f / most);
    __m128i first = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(low, by)));
    __m128i second = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(high, by)));
    __m256i both = _mm256_set_m128i(second, first);
    __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(ZERO), both);
    _mm256_storeu_si256((__m256i *)whole, _mm256_shuffle_epi8(both, order));
    *minus = -_mm512_reduce_add_epi32(_mm512_zextsi256_si512(sums));
    *step = _mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q) ? __builtin_nanf("") : most / 127.0f;
}

VNNI static void round_rows(void *shared) {
    Multiplying *work = shared;
    const Product *all = work->all;
    int64_t groups = (all->inputs + GROUP - 1) / GROUP;
    for (int64_t row; (row = atomic_fetch_add(&work->next, 1)) < all->rows;)
        for (int64_t group = 0, at = row * groups; group < groups; group++, at++)
            round_group(all->x + row * all->inputs + group * GROUP, all->inputs - group * GROUP,
                        all->whole + at * GROUP, all->steps + at, all->minus + at);
}

/* Some groups of PANEL outputs: inputs in fours, outputs side by side. Beyond the last output the last once more. */
VNNI static void unpack(const Product *all, int64_t output, int64_t start, int64_t end, __m512i (*levels)[8],
                        float (*scales)[PANEL]) {
    int64_t groups = (all->inputs + GROUP - 1) / GROUP, bytes = groups * (GROUP / 2);
    const __m512i mask = _mm512_set1_epi8(15);
    int32_t rows[PANEL];
    for (int i = 0; i < PANEL; i++) rows[i] = (int32_t)(output + i < all->outputs ? i : all->outputs - 1 - output);
    __m512i offsets = _mm512_mullo_epi32(_mm512_loadu_si512(rows), _mm512_set1_epi32((int32_t)bytes));
    for (int64_t group = start; group < end; group++) {
        const uint8_t *from = all->levels + output * bytes + group * (GROUP / 2);
        for (int four = 0; four < 4; four++) {
            __m512i packed = _mm512_i32gather_epi32(offsets, from + 4 * four, 1);
            levels[group - start][2 * four] = _mm512_and_si512(packed, mask);
            levels[group - start][2 * four + 1] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
        }
        for (int i = 0; i < PANEL; i++)
            scales[group - start][i] = scale_at(all->scales, all->bfloat16, (output + rows[i]) * groups + group);
    }
}

/* Adds some groups' products to the sums of a few rows and a panel. */
VNNI static void meet(const Product *all, int64_t row, int64_t end, int64_t start, int64_t many,
                      const __m512i (*levels)[8], const float (*scales)[PANEL], __m512 *sums) {
    int64_t groups = (all->inputs + GROUP - 1) / GROUP, at[ROWS];
    for (int r = 0; r < ROWS; r++) at[r] = (row + r < end ? row + r : end - 1) * groups + start;
    __m512 kept[ROWS];
    UNROLL for (int r = 0; r < ROWS; r++) kept[r] = sums[r];
    for (int64_t group = 0; group < many; group++) {
        __m512i some[8];
        UNROLL for (int i = 0; i < 8; i++) some[i] = levels[group][i];
        __m512 scale = _mm512_loadu_ps(scales[group]);
        UNROLL for (int r = 0; r < ROWS; r++) {
            const int8_t *whole = all->whole + (at[r] + group) * GROUP;
            __m512i found = _mm512_set1_epi32(all->minus[at[r] + group]);
            UNROLL for (int i = 0; i < 8; i++) {
                int32_t four;
                memcpy(&four, whole + 4 * i, 4);
                found = _mm512_dpbusd_epi32(found, some[i], _mm512_set1_epi32(four));
            }
            __m512 by = _mm512_mul_ps(scale, _mm512_set1_ps(all->steps[at[r] + group]));
            kept[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(found), by, kept[r]);
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++) sums[r] = kept[r];
}

/* What each thread does: the next panel of a chunk of rows, until none is left. */
VNNI static void multiply_panels(void *shared) {
    Multiplying *work = shared;
    const Product *all = work->all;
    int64_t groups = (all->inputs + GROUP - 1) / GROUP, panels = (all->outputs + PANEL - 1) / PANEL;
    int64_t chunks = (all->rows + CHUNK - 1) / CHUNK;
    __m512i levels[STRETCH][8];
    float scales[STRETCH][PANEL];
    for (int64_t unit; (unit = atomic_fetch_add(&work->next, 1)) < panels * chunks;) {
        int64_t output = unit % panels * PANEL, first = unit / panels * CHUNK, last = first + CHUNK;
        int64_t left = all->outputs - output;
        __mmask16 there = left < PANEL ? (__mmask16)((1 << left) - 1) : (__mmask16)~0;
        last = last < all->rows ? last : all->rows;
        for (int64_t start = 0; start < groups; start += STRETCH) {
            int64_t many = groups - start < STRETCH ? groups - start : STRETCH;
            unpack(all, output, start, start + many, levels, scales);
            for (int64_t row = first; row < last; row += ROWS) {
                __m512 sums[ROWS];
                float *out = all->out + row * all->outputs + output;
                int rows = last - row < ROWS ? (int)(last - row) : ROWS;
                for (int r = 0; r < ROWS; r++) {
                    sums[r] = _mm512_setzero_ps();
                    if (start && r < rows) sums[r] = _mm512_maskz_loadu_ps(there, out + r * all->outputs);
                    if (!start && all->bias) sums[r] = _mm512_maskz_loadu_ps(there, all->bias + output);
                }
                meet(all, row, last, start, many, (const __m512i(*)[8])levels, (const float(*)[PANEL])scales, sums);
                for (int r = 0; r < rows; r++) _mm512_mask_storeu_ps(out + r * all->outputs, there, sums[r]);
            }
        }
    }
}

int idefics_multiply_works(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

static void by_all(void (*part)(void *), const Product *all, int threads, Parallel *parallel) {
    Multiplying work = {.all = all};
    if (threads > 1)
        parallel(part, &work, threads, 0);
    else
        part(&work);
}

void idefics_multiply(const Product *all, int threads, Parallel *parallel) {
    by_all(round_rows, all, threads, parallel);
    by_all(multiply_panels, all, threads, parallel);
}

#else

int idefics_multiply_works(void) { return 0; }
void idefics_multiply(const Product *all, int threads, Parallel *parallel) { (void)all, (void)threads, (void)parallel; }

#endif
