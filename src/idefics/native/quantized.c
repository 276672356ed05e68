/* Kernels of int4 and int8 layers. Keeps no state.
 *
 * dequantize_int4: int4 weights in float32, level * scale, rounded once, as torch does it.
 * int4_matmul: int4 weights times inputs rounded to int8, with AVX-512's dot products of bytes (VNNI).
 * quantize_rows, scale_rows: before and after an int8 product that oneDNN computes.
 */

#include "matmul.h"

#include <stdatomic.h>
#include <string.h>

#define ZERO_POINT 8      /* the level of a weight of 0 */
#define ITEMS_PER_TASK 16 /* outputs or rows that a thread takes */
#define INLINE static inline __attribute__((always_inline))

INLINE float scale_at(const void *scales, int bfloat16, int64_t at) {
    if (!bfloat16) return ((const float *)scales)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)scales)[at] << 16;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

INLINE void dequantize_group_plain(const uint8_t *levels, float scale, float *out) {
    for (int i = 0; i < GROUP_SIZE / 2; i++) {
        out[2 * i] = (float)((levels[i] & 15) - ZERO_POINT) * scale;
        out[2 * i + 1] = (float)((levels[i] >> 4) - ZERO_POINT) * scale;
    }
}

typedef void DequantizeGroup(const uint8_t *levels, float scale, float *out);
INLINE void dequantize_output(const DequantizeInt4Args *args, int64_t output, float *out,
                              DequantizeGroup *dequantize_group) {
    int64_t whole = args->inputs / GROUP_SIZE, groups = (args->inputs + GROUP_SIZE - 1) / GROUP_SIZE;
    const uint8_t *levels = args->levels + output * groups * (GROUP_SIZE / 2);
    for (int64_t group = 0; group < whole; group++)
        dequantize_group(levels + group * (GROUP_SIZE / 2),
                         scale_at(args->scales, args->bfloat16, output * groups + group), out + group * GROUP_SIZE);
    if (whole < groups) {
        float last[GROUP_SIZE];
        dequantize_group(levels + whole * (GROUP_SIZE / 2),
                         scale_at(args->scales, args->bfloat16, output * groups + whole), last);
        memcpy(out + whole * GROUP_SIZE, last, sizeof(float) * (args->inputs - whole * GROUP_SIZE));
    }
}

#if defined(__x86_64__)
#include <immintrin.h>
#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

INLINE TARGET_AVX2 void dequantize_group_avx2(const uint8_t *levels, float scale, float *out) {
    const __m256 zero = _mm256_set1_ps(ZERO_POINT), by = _mm256_set1_ps(scale);
    for (int i = 0; i < GROUP_SIZE / 2; i += 8) {
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
/* A group has sixteen possible weights, which are in a register: each level selects one. */
INLINE TARGET_AVX512 void dequantize_group_avx512(const uint8_t *levels, float scale, float *out) {
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

typedef void DequantizeOutput(const DequantizeInt4Args *, int64_t output, float *out);
static void dequantize_output_plain(const DequantizeInt4Args *args, int64_t output, float *out) {
    dequantize_output(args, output, out, dequantize_group_plain);
}
#if defined(__x86_64__)
TARGET_AVX2 static void dequantize_output_avx2(const DequantizeInt4Args *args, int64_t output, float *out) {
    dequantize_output(args, output, out, dequantize_group_avx2);
}
TARGET_AVX512 static void dequantize_output_avx512(const DequantizeInt4Args *args, int64_t output, float *out) {
    dequantize_output(args, output, out, dequantize_group_avx512);
}
static DequantizeOutput *const DEQUANTIZE_BY_INSTRUCTION_SET[] = {dequantize_output_plain, dequantize_output_avx2,
                                                                  dequantize_output_avx512};
#else
static DequantizeOutput *const DEQUANTIZE_BY_INSTRUCTION_SET[] = {dequantize_output_plain};
#endif

typedef struct {
    const DequantizeInt4Args *args;
    atomic_llong next;
} DequantizeTask;

/* Run by each thread: takes the next few outputs, until none is left. */
static void dequantize_worker(void *shared) {
    DequantizeTask *work = shared;
    const DequantizeInt4Args *args = work->args;
    for (int64_t start; (start = atomic_fetch_add(&work->next, ITEMS_PER_TASK)) < args->outputs;)
        for (int64_t output = start; output < start + ITEMS_PER_TASK && output < args->outputs; output++)
            DEQUANTIZE_BY_INSTRUCTION_SET[args->instruction_set](args, output, args->out + output * args->inputs);
}

void dequantize_int4_row(const Linear *linear, int64_t output, float *out) {
    DequantizeInt4Args args = {.levels = linear->weight,
                               .scales = linear->scale,
                               .inputs = linear->inputs,
                               .bfloat16 = linear->scale_kind == BFLOAT16};
    DEQUANTIZE_BY_INSTRUCTION_SET[idefics_has_instruction_set(AVX512) ? AVX512 : PORTABLE](&args, output, out);
}

void idefics_dequantize_int4(const DequantizeInt4Args *args, int threads, Parallel *parallel) {
    DequantizeTask work = {.args = args};
    if (threads > 1 && args->outputs > ITEMS_PER_TASK)
        parallel(dequantize_worker, &work, threads, 0);
    else
        dequantize_worker(&work);
}

/* Rounds a row of inputs to int8. The largest |x| is found among the bits as integers, which are in the same order,
 * with infinity and NaN above all numbers. */
INLINE void quantize_row(const QuantizeRowsArgs *args, int64_t row) {
    const int32_t INFINITE = 0x7f800000, SIGNLESS = 0x7fffffff;
    const float MIDDLE = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number in the last byte */
    const float *x = args->x + row * args->inputs;
    int8_t *levels = args->levels + row * args->inputs;
    int32_t largest = 0;
    for (int64_t i = 0; i < args->inputs; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= SIGNLESS;
        largest = bits > largest ? bits : largest;
    }
    float most;
    memcpy(&most, &largest, sizeof most);
    if (largest >= INFINITE) { /* infinity or NaN: the whole row becomes NaN */
        memset(levels, 0, (size_t)args->inputs);
        args->x_scales[row] = __builtin_nanf("");
        return;
    }
    float step = most / 127.0f > __FLT_MIN__ ? most / 127.0f : __FLT_MIN__;
    for (int64_t i = 0; i < args->inputs; i++) {
        float near = x[i] / step + MIDDLE;
        int32_t bits;
        memcpy(&bits, &near, sizeof bits);
        levels[i] = (int8_t)bits;
    }
    args->x_scales[row] = step;
}

INLINE void scale_row(const QuantizeRowsArgs *args, int64_t row) {
    int32_t *sums = args->sums + row * args->outputs;
    const float step = args->x_scales[row], *scales = args->scales, *bias = args->bias;
    for (int64_t i = 0; i < args->outputs; i++) {
        float out = (float)sums[i] * step * scales[i];
        if (bias) out += bias[i];
        memcpy(sums + i, &out, sizeof out);
    }
}

typedef void RowFunction(const QuantizeRowsArgs *, int64_t row);
static void quantize_row_plain(const QuantizeRowsArgs *args, int64_t row) { quantize_row(args, row); }
static void scale_row_plain(const QuantizeRowsArgs *args, int64_t row) { scale_row(args, row); }
#if defined(__x86_64__)
TARGET_AVX2 static void quantize_row_avx2(const QuantizeRowsArgs *args, int64_t row) { quantize_row(args, row); }
TARGET_AVX2 static void scale_row_avx2(const QuantizeRowsArgs *args, int64_t row) { scale_row(args, row); }
TARGET_AVX512 static void quantize_row_avx512(const QuantizeRowsArgs *args, int64_t row) { quantize_row(args, row); }
TARGET_AVX512 static void scale_row_avx512(const QuantizeRowsArgs *args, int64_t row) { scale_row(args, row); }
static RowFunction *const QUANTIZE_ROW_BY_INSTRUCTION_SET[] = {quantize_row_plain, quantize_row_avx2,
                                                               quantize_row_avx512};
static RowFunction *const SCALE_ROW_BY_INSTRUCTION_SET[] = {scale_row_plain, scale_row_avx2, scale_row_avx512};
#else
static RowFunction *const QUANTIZE_ROW_BY_INSTRUCTION_SET[] = {quantize_row_plain};
static RowFunction *const SCALE_ROW_BY_INSTRUCTION_SET[] = {scale_row_plain};
#endif

typedef struct {
    const QuantizeRowsArgs *args;
    RowFunction *part;
    atomic_llong next;
} RowTask;

static void rows_worker(void *shared) {
    RowTask *work = shared;
    for (int64_t start; (start = atomic_fetch_add(&work->next, ITEMS_PER_TASK)) < work->args->rows;)
        for (int64_t row = start; row < start + ITEMS_PER_TASK && row < work->args->rows; row++)
            work->part(work->args, row);
}

static void for_each_row(const QuantizeRowsArgs *args, RowFunction *part, int threads, Parallel *parallel) {
    RowTask work = {.args = args, .part = part};
    if (threads > 1 && args->rows > ITEMS_PER_TASK)
        parallel(rows_worker, &work, threads, 0);
    else
        rows_worker(&work);
}

void idefics_quantize_rows(const QuantizeRowsArgs *args, int threads, Parallel *parallel) {
    for_each_row(args, QUANTIZE_ROW_BY_INSTRUCTION_SET[args->instruction_set], threads, parallel);
}

void idefics_scale_rows(const QuantizeRowsArgs *args, int threads, Parallel *parallel) {
    for_each_row(args, SCALE_ROW_BY_INSTRUCTION_SET[args->instruction_set], threads, parallel);
}

#if defined(__x86_64__)
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define PANEL_OUTPUTS 16   /* outputs in one vector */
#define ROW_BLOCK 120      /* rows that stay in the cache while all outputs are computed */
#define GROUP_BLOCK 32     /* groups of a panel that are unpacked together: 16 KiB */
#define MIN_MAX_ABS 1e-30f /* lower bound of a group's largest input, so that its reciprocal is finite */

#define UNROLL _Pragma("GCC unroll 16")

typedef struct {
    const Int4MatmulArgs *args;
    atomic_llong next;
} MatmulTask;

/* Rounds a group of inputs to int8, the largest to 127; inputs beyond `count` are zero. NaN makes the step NaN. */
VNNI static void quantize_group(const float *x, int64_t count, int8_t *whole, float *step, int32_t *zero_corrections) {
    const __m256i order = _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15, 0, 2, 4, 6, 1, 3, 5, 7,
                                           8, 10, 12, 14, 9, 11, 13, 15);
    uint32_t there = count < GROUP_SIZE ? ((uint32_t)1 << count) - 1 : ~(uint32_t)0;
    __m512 low = _mm512_maskz_loadu_ps((__mmask16)there, x);
    __m512 high = _mm512_maskz_loadu_ps((__mmask16)(there >> 16), x + 16);
    float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    most = most > MIN_MAX_ABS ? most : MIN_MAX_ABS;
    __m512 by = _mm512_set1_ps(127.0f / most);
    __m128i first = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(low, by)));
    __m128i second = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(high, by)));
    __m256i both = _mm256_set_m128i(second, first);
    __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(ZERO_POINT), both);
    _mm256_storeu_si256((__m256i *)whole, _mm256_shuffle_epi8(both, order));
    *zero_corrections = -_mm512_reduce_add_epi32(_mm512_zextsi256_si512(sums));
    *step = _mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q) ? __builtin_nanf("") : most / 127.0f;
}

VNNI static void quantize_all_rows(void *shared) {
    MatmulTask *work = shared;
    const Int4MatmulArgs *args = work->args;
    int64_t groups = (args->inputs + GROUP_SIZE - 1) / GROUP_SIZE;
    for (int64_t row; (row = atomic_fetch_add(&work->next, 1)) < args->rows;)
        for (int64_t group = 0, at = row * groups; group < groups; group++, at++)
            quantize_group(args->x + row * args->inputs + group * GROUP_SIZE, args->inputs - group * GROUP_SIZE,
                           args->x_levels + at * GROUP_SIZE, args->x_scales + at, args->zero_corrections + at);
}

/* Unpacks groups `start` to `end` of PANEL_OUTPUTS outputs: in each vector four inputs of every output. Outputs beyond
 * the last one repeat it. */
VNNI static void unpack_panel(const Int4MatmulArgs *args, int64_t output, int64_t start, int64_t end,
                              __m512i (*levels)[8], float (*scales)[PANEL_OUTPUTS]) {
    int64_t groups = (args->inputs + GROUP_SIZE - 1) / GROUP_SIZE, bytes = groups * (GROUP_SIZE / 2);
    const __m512i mask = _mm512_set1_epi8(15);
    int32_t rows[PANEL_OUTPUTS];
    for (int i = 0; i < PANEL_OUTPUTS; i++)
        rows[i] = (int32_t)(output + i < args->outputs ? i : args->outputs - 1 - output);
    __m512i offsets = _mm512_mullo_epi32(_mm512_loadu_si512(rows), _mm512_set1_epi32((int32_t)bytes));
    for (int64_t group = start; group < end; group++) {
        const uint8_t *from = args->levels + output * bytes + group * (GROUP_SIZE / 2);
        for (int four = 0; four < 4; four++) {
            __m512i packed = _mm512_i32gather_epi32(offsets, from + 4 * four, 1);
            levels[group - start][2 * four] = _mm512_and_si512(packed, mask);
            levels[group - start][2 * four + 1] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
        }
        for (int i = 0; i < PANEL_OUTPUTS; i++)
            scales[group - start][i] = scale_at(args->scales, args->bfloat16, (output + rows[i]) * groups + group);
    }
}

/* Adds the products of `many` groups from `start` on to the sums of TILE_ROWS rows and one panel. */
VNNI static void accumulate_tile(const Int4MatmulArgs *args, int64_t row, int64_t end, int64_t start, int64_t many,
                                 const __m512i (*levels)[8], const float (*scales)[PANEL_OUTPUTS], __m512 *sums) {
    int64_t groups = (args->inputs + GROUP_SIZE - 1) / GROUP_SIZE, at[TILE_ROWS];
    for (int r = 0; r < TILE_ROWS; r++) at[r] = (row + r < end ? row + r : end - 1) * groups + start;
    __m512 accumulators[TILE_ROWS];
    UNROLL for (int r = 0; r < TILE_ROWS; r++)
        accumulators[r] = sums[r];
    for (int64_t group = 0; group < many; group++) {
        __m512i some[8];
        UNROLL for (int i = 0; i < 8; i++)
            some[i] = levels[group][i];
        __m512 scale = _mm512_loadu_ps(scales[group]);
        UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            const int8_t *whole = args->x_levels + (at[r] + group) * GROUP_SIZE;
            __m512i int_sums = _mm512_set1_epi32(args->zero_corrections[at[r] + group]);
            UNROLL for (int i = 0; i < 8; i++) {
                int32_t four;
                memcpy(&four, whole + 4 * i, 4);
                int_sums = _mm512_dpbusd_epi32(int_sums, some[i], _mm512_set1_epi32(four));
            }
            __m512 by = _mm512_mul_ps(scale, _mm512_set1_ps(args->x_scales[at[r] + group]));
            accumulators[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(int_sums), by, accumulators[r]);
        }
    }
    UNROLL for (int r = 0; r < TILE_ROWS; r++)
        sums[r] = accumulators[r];
}

/* Run by each thread: takes the next panel of a chunk of rows, until none is left. */
VNNI static void multiply_panels(void *shared) {
    MatmulTask *work = shared;
    const Int4MatmulArgs *args = work->args;
    int64_t groups = (args->inputs + GROUP_SIZE - 1) / GROUP_SIZE,
            panels = (args->outputs + PANEL_OUTPUTS - 1) / PANEL_OUTPUTS;
    int64_t chunks = (args->rows + ROW_BLOCK - 1) / ROW_BLOCK;
    __m512i levels[GROUP_BLOCK][8];
    float scales[GROUP_BLOCK][PANEL_OUTPUTS];
    for (int64_t unit; (unit = atomic_fetch_add(&work->next, 1)) < panels * chunks;) {
        int64_t output = unit % panels * PANEL_OUTPUTS, first = unit / panels * ROW_BLOCK, last = first + ROW_BLOCK;
        int64_t left = args->outputs - output;
        __mmask16 there = left < PANEL_OUTPUTS ? (__mmask16)((1 << left) - 1) : (__mmask16)~0;
        last = last < args->rows ? last : args->rows;
        for (int64_t start = 0; start < groups; start += GROUP_BLOCK) {
            int64_t many = groups - start < GROUP_BLOCK ? groups - start : GROUP_BLOCK;
            unpack_panel(args, output, start, start + many, levels, scales);
            for (int64_t row = first; row < last; row += TILE_ROWS) {
                __m512 sums[TILE_ROWS];
                float *out = args->out + row * args->outputs + output;
                int rows = last - row < TILE_ROWS ? (int)(last - row) : TILE_ROWS;
                for (int r = 0; r < TILE_ROWS; r++) {
                    sums[r] = _mm512_setzero_ps();
                    if (start && r < rows) sums[r] = _mm512_maskz_loadu_ps(there, out + r * args->outputs);
                    if (!start && args->bias) sums[r] = _mm512_maskz_loadu_ps(there, args->bias + output);
                }
                accumulate_tile(args, row, last, start, many, (const __m512i(*)[8])levels,
                                (const float (*)[PANEL_OUTPUTS])scales, sums);
                for (int r = 0; r < rows; r++) _mm512_mask_storeu_ps(out + r * args->outputs, there, sums[r]);
            }
        }
    }
}

static void run_on_threads(void (*part)(void *), const Int4MatmulArgs *args, int threads, Parallel *parallel) {
    MatmulTask work = {.args = args};
    if (threads > 1)
        parallel(part, &work, threads, 0);
    else
        part(&work);
}

void idefics_int4_matmul(const Int4MatmulArgs *args, int threads, Parallel *parallel) {
    run_on_threads(quantize_all_rows, args, threads, parallel);
    run_on_threads(multiply_panels, args, threads, parallel);
}

#else

void idefics_int4_matmul(const Int4MatmulArgs *args, int threads, Parallel *parallel) {
    (void)args, (void)threads, (void)parallel;
}

#endif
