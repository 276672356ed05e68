/* Products of many rows in int8, with exact sums. Each row of inputs has a scale of its own. */
#include "matmul.h"

#if defined(__x86_64__)

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,prefer-vector-width=512")))
#include "avx512_math.h"

#define KERNEL matmul_int8
#define NUMBERS_PER_UNIT 4
#define WEIGHT_FLIP 0x80808080 /* makes levels unsigned, 128 larger, which the instruction requires of one factor */

typedef __m512i Sums;

INLINE Sums dot_units(Sums sums, __m512i weights, __m512i inputs) { return _mm512_dpbusd_epi32(sums, weights, inputs); }

INLINE __m512 sums_to_floats(Sums sums, const RoundedRows *rows, int64_t row, __m512 scales) {
    __m512 exact = _mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_set1_epi32(rows->offsets[row])));
    return _mm512_mul_ps(_mm512_mul_ps(exact, _mm512_set1_ps(rows->scales[row])), scales);
}

/* The largest |x| is rounded to 127. Infinity and NaN are found among the bits of |x|, which are in the order of the
 * numbers. */
TARGET static void round_row(const float *x, int64_t inputs, const RoundedRows *rows, int64_t row) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    int8_t *to = (int8_t *)(rows->units + row * rows->stride);
    __m512i largest = _mm512_setzero_si512(), total = _mm512_setzero_si512();
    for (int64_t i = 0; i < inputs; i += 16) {
        __mmask16 present = inputs - i >= 16 ? 0xffff : (__mmask16)((1 << (inputs - i)) - 1);
        __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(present, x + i));
        largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, magnitude));
    }
    float most = _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(_mm512_reduce_max_epi32(largest))));
    int finite = most <= __FLT_MAX__;
    float step = most / 127.0f > __FLT_MIN__ ? most / 127.0f : __FLT_MIN__;
    for (int64_t i = 0; i < inputs; i += 16) {
        __mmask16 present = inputs - i >= 16 ? 0xffff : (__mmask16)((1 << (inputs - i)) - 1);
        __m512 ratio = _mm512_div_ps(_mm512_maskz_loadu_ps(present, x + i), _mm512_set1_ps(step));
        __m512i levels = finite ? _mm512_cvtps_epi32(ratio) : _mm512_setzero_si512();
        total = _mm512_add_epi32(total, levels);
        __mmask16 stored = inputs - i >= 16 ? 0xffff : (__mmask16)((1 << ceil_div(inputs - i, 4) * 4) - 1);
        _mm_mask_storeu_epi8(to + i, stored, _mm512_cvtepi32_epi8(levels));
    }
    rows->scales[row] = finite ? step : __builtin_nanf("");
    rows->offsets[row] = -128 * _mm512_reduce_add_epi32(total);
}

#include "matmul_block.h"
#include "matmul_tile.h"

#endif
