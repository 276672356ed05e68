/* Functions of vectors of 16 floats, for files that define TARGET as their instruction set, and ROUND_BY_INSTRUCTION if
 * AVX512_BF16 is in it. */
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline)) TARGET

enum { EXPONENT_LIMIT = 126 };
#define LOG2_E 1.44269504088896341f

/* 2^x for x <= EXPONENT_LIMIT, accurate to one or two ulp: 2^n times a polynomial, n the nearest whole number to x. On
 * [-1/2, 1/2] its largest relative error, 7.5e-8, is the least of all polynomials of degree 5. */
INLINE __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-EXPONENT_LIMIT), x); /* 2^-126 is nothing next to 1; NaN stays NaN */
    __m512 n = _mm512_roundscale_ps(x, 0);
    x = _mm512_sub_ps(x, n);
    __m512 y = _mm512_fmadd_ps(x, _mm512_set1_ps(1.32764725e-3f), _mm512_set1_ps(9.67554096e-3f));
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(5.55071309e-2f));
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(0.240221202f));
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(0.693146944f));
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(1.00000012f));
    return _mm512_scalef_ps(y, n);
}

INLINE __m512 negative_abs(__m512 x) { return _mm512_or_ps(x, _mm512_set1_ps(-0.0f)); }

/* x / (1 + e^-y). */
INLINE __m512 times_sigmoid(__m512 x, __m512 y) {
    __m512 exponent = _mm512_mul_ps(y, _mm512_set1_ps(-LOG2_E));
    __m512 t = power_of_two(_mm512_min_ps(_mm512_set1_ps(EXPONENT_LIMIT), exponent));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), t));
}

/* The distribution function of the normal distribution, to 1e-7 (Abramowitz and Stegun 7.1.26). */
INLINE __m512 normal_cdf(__m512 x) {
    __m512 z = _mm512_mul_ps(negative_abs(x), _mm512_set1_ps(-0.70710678f)), one = _mm512_set1_ps(1.0f);
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 y = _mm512_fmadd_ps(t, _mm512_set1_ps(1.061405429f), _mm512_set1_ps(-1.453152027f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(1.421413741f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-0.284496736f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(0.254829592f));
    __m512 exponent = _mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-LOG2_E));
    __m512 tail = _mm512_mul_ps(_mm512_mul_ps(y, t), power_of_two(exponent));
    tail = _mm512_mul_ps(tail, _mm512_set1_ps(0.5f)); /* the part beyond |x| */
    __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mask_mov_ps(_mm512_sub_ps(one, tail), negative, tail);
}

/* An activation function by its number in `api.h`; others leave x as it is. */
INLINE __m512 activate(__m512 x, int activation) {
    switch (activation) {
    case SILU: return times_sigmoid(x, x);
    case GELU: return _mm512_mul_ps(x, normal_cdf(x));
    case GELU_TANH: { /* x (1 + tanh(u)) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
        __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.0713548163f), _mm512_set1_ps(1.59576912f));
        return times_sigmoid(x, _mm512_mul_ps(x, cubic));
    }
    case RELU: return _mm512_max_ps(_mm512_setzero_ps(), x);
    default: return x;
    }
}

/* To the nearest bfloat16, ties to even; NaN stays NaN. */
INLINE __m256i round_to_bfloat16(__m512 x) {
#if defined(ROUND_BY_INSTRUCTION)
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    bits = _mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
#endif
}
