/* Products of a few rows with a weight in bfloat16, inputs and sums in float32: an LM head, which reads its weight
 * once. */
#include "matmul.h"

#if defined(__x86_64__)

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")))
#include "avx512_math.h"

enum { OUTPUTS_PER_PIECE = 64 };
enum { OUTPUTS_TOGETHER = 4, ROWS_TOGETHER = 4 }; /* sums that do not wait for one another */

#define UNROLL _Pragma("GCC unroll 4")

/* Up to OUTPUTS_TOGETHER outputs from `output` on for up to `rows` rows from `row` on; those beyond the last repeat it.
 * `rows` is a constant. */
INLINE void multiply_block(const MatmulArgs *args, int64_t row, int64_t output, int rows) {
    int64_t inputs = args->linear.inputs, outputs = args->linear.outputs;
    const uint16_t *weight[OUTPUTS_TOGETHER];
    const float *x[ROWS_TOGETHER];
    __m512 sums[OUTPUTS_TOGETHER][ROWS_TOGETHER];
    UNROLL for (int o = 0; o < OUTPUTS_TOGETHER; o++) {
        weight[o] = (const uint16_t *)args->linear.weight + min_int64(output + o, outputs - 1) * inputs;
        UNROLL for (int r = 0; r < rows; r++) sums[o][r] = _mm512_setzero_ps();
    }
    UNROLL for (int r = 0; r < rows; r++) x[r] = args->x + min_int64(row + r, args->rows - 1) * inputs;
    for (int64_t i = 0; i < inputs; i += 16) {
        __mmask16 present = inputs - i >= 16 ? 0xffff : (__mmask16)((1 << (inputs - i)) - 1);
        UNROLL for (int o = 0; o < OUTPUTS_TOGETHER; o++) {
            __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, weight[o] + i));
            __m512 floats = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
            UNROLL for (int r = 0; r < rows; r++)
                sums[o][r] = _mm512_fmadd_ps(floats, _mm512_maskz_loadu_ps(present, x[r] + i), sums[o][r]);
        }
    }
    UNROLL for (int o = 0; o < OUTPUTS_TOGETHER; o++) {
        if (output + o >= outputs) break;
        float bias = args->bias ? args->bias[output + o] : 0.0f;
        UNROLL for (int r = 0; r < rows; r++)
            if (row + r < args->rows)
                args->out[(row + r) * outputs + output + o] = _mm512_reduce_add_ps(sums[o][r]) + bias;
    }
}

TARGET static void multiply_piece(const void *context, int64_t piece, uint32_t *scratch) {
    const MatmulArgs *args = context;
    int64_t end = min_int64((piece + 1) * OUTPUTS_PER_PIECE, args->linear.outputs);
    (void)scratch;
    for (int64_t output = piece * OUTPUTS_PER_PIECE; output < end; output += OUTPUTS_TOGETHER)
        for (int64_t row = 0; row < args->rows; row += ROWS_TOGETHER)
            if (args->rows == 1)
                multiply_block(args, row, output, 1);
            else
                multiply_block(args, row, output, ROWS_TOGETHER);
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
