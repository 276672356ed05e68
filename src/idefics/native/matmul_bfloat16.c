/* Products of many rows in bfloat16, with sums in float32. */
#include "matmul.h"

#if defined(__x86_64__)

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,prefer-vector-width=512")))
#define ROUND_BY_INSTRUCTION
#include "avx512_math.h"

#define KERNEL matmul_bfloat16
#define NUMBERS_PER_UNIT 2
#define WEIGHT_FLIP 0

typedef __m512 Sums;

INLINE Sums dot_units(Sums sums, __m512i weights, __m512i inputs) {
    return _mm512_dpbf16_ps(sums, (__m512bh)weights, (__m512bh)inputs);
}

INLINE __m512 sums_to_floats(Sums sums, const RoundedRows *rows, int64_t row, __m512 scales) {
    (void)rows, (void)row, (void)scales;
    return sums;
}

TARGET static void round_row(const float *x, int64_t inputs, const RoundedRows *rows, int64_t row) {
    uint32_t *to = rows->units + row * rows->stride;
    for (int64_t i = 0; i < inputs; i += 16, to += 8) {
        __mmask16 present = inputs - i >= 16 ? 0xffff : (__mmask16)((1 << (inputs - i)) - 1);
        __m256i halves = round_to_bfloat16(_mm512_maskz_loadu_ps(present, x + i));
        if (inputs - i >= 16)
            _mm256_storeu_si256((__m256i *)to, halves);
        else
            _mm256_mask_storeu_epi32(to, (__mmask8)((1 << (inputs - i + 1) / 2) - 1), halves);
    }
}

#include "matmul_block.h"
#include "matmul_tile.h"

#endif
