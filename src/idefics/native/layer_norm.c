/* Layer norm with AVX-512. */
#include "layer_norm.h"

#if defined(__x86_64__)

#include "api.h"

#include <math.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")))
#include "avx512_math.h"

TARGET void layer_norm(const float *x, int64_t width, const float *weight, const float *bias, float epsilon,
                       float *out) {
    __m512 total = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    int64_t whole = width / 16 * 16;
    __mmask16 rest = (__mmask16)((1 << (width - whole)) - 1);
    for (int64_t i = 0; i < whole; i += 16) total = _mm512_add_ps(total, _mm512_loadu_ps(x + i));
    total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(rest, x + whole));
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / (float)width);
    for (int64_t i = 0; i < width; i += 16) {
        __mmask16 present = i < whole ? 0xffff : rest;
        __m512 centered = _mm512_maskz_sub_ps(present, _mm512_maskz_loadu_ps(present, x + i), mean);
        squares = _mm512_fmadd_ps(centered, centered, squares);
        _mm512_mask_storeu_ps(out + i, present, centered);
    }
    __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)width + epsilon));
    for (int64_t i = 0; i < width; i += 16) {
        __mmask16 present = i < whole ? 0xffff : rest;
        __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(present, out + i), factor);
        __m512 result = _mm512_fmadd_ps(scaled, _mm512_maskz_loadu_ps(present, weight + i),
                                        _mm512_maskz_loadu_ps(present, bias + i));
        _mm512_mask_storeu_ps(out + i, present, result);
    }
}

#else

void layer_norm(const float *x, int64_t width, const float *weight, const float *bias, float epsilon, float *out) {
    (void)x, (void)width, (void)weight, (void)bias, (void)epsilon, (void)out;
}

#endif
