/* Products of a few rows with a weight in bfloat16, inputs and sums in float32: an LM head, which reads its weight
 * once. */
#include "matmul.h"

#if defined(__x86_64__)

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")))
#include "avx512_math.h"

enum { OUTPUTS_PER_PIECE = 64 };
enum { ROWS_TOGETHER = 4 }; /* rows for which a weight is converted once */

/* Results of one output for up to ROWS_TOGETHER rows from `row` on. */
TARGET static void multiply_output(const MatmulArgs *args, int64_t row, int64_t output) {
    int64_t inputs = args->linear.inputs, count = min_int64(ROWS_TOGETHER, args->rows - row);
    const uint16_t *weight = (const uint16_t *)args->linear.weight + output * inputs;
    const float *x[ROWS_TOGETHER];
    __m512 sums[ROWS_TOGETHER];
    for (int r = 0; r < ROWS_TOGETHER; r++) {
        x[r] = args->x + (row + (r < count ? r : 0)) * inputs;
        sums[r] = _mm512_setzero_ps();
    }
    for (int64_t i = 0; i < inputs; i += 16) {
        __mmask16 present = inputs - i >= 16 ? 0xffff : (__mmask16)((1 << (inputs - i)) - 1);
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, weight + i));
        __m512 floats = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
        for (int r = 0; r < ROWS_TOGETHER; r++)
            sums[r] = _mm512_fmadd_ps(floats, _mm512_maskz_loadu_ps(present, x[r] + i), sums[r]);
    }
    float bias = args->bias ? args->bias[output] : 0.0f;
    for (int r = 0; r < count; r++)
        args->out[(row + r) * args->linear.outputs + output] = _mm512_reduce_add_ps(sums[r]) + bias;
}

static void multiply_piece(const void *context, int64_t piece, uint32_t *scratch) {
    const MatmulArgs *args = context;
    int64_t end = min_int64((piece + 1) * OUTPUTS_PER_PIECE, args->linear.outputs);
    (void)scratch;
    for (int64_t output = piece * OUTPUTS_PER_PIECE; output < end; output++)
        for (int64_t row = 0; row < args->rows; row += ROWS_TOGETHER) multiply_output(args, row, output);
}

static void float32_program(Work *work, const void *args) {
    run_pieces(work, multiply_piece, args, ceil_div(((const MatmulArgs *)args)->linear.outputs, OUTPUTS_PER_PIECE));
}

int idefics_matmul_float32(const MatmulArgs *args, int threads, Parallel *parallel) {
    if (!idefics_has_instruction_set(AVX512) || args->linear.kind != BFLOAT16) return 0;
    return run_program(float32_program, args, (MemoryNeeds){0, 0, 0, 0}, threads, parallel);
}

#else

int idefics_matmul_float32(const MatmulArgs *args, int threads, Parallel *parallel) {
    (void)args, (void)threads, (void)parallel;
    return 0;
}

#endif
