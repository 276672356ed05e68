/* Layer norm and root-mean-square norm with AVX-512. */
#include "norm.h"

#if defined(__x86_64__)

#include "api.h"

#include <math.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")))
#include "avx512_math.h"

INLINE __mmask16 mask_at(int64_t i, int64_t width) {
    return width - i >= 16 ? 0xffff : (__mmask16)((1 << (width - i)) - 1);
}

TARGET void normalize_row(const float *x, int64_t width, const Norm *norm, float *out) {
    __m512 mean = _mm512_setzero_ps(), total = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    if (norm->bias) {
        for (int64_t i = 0; i < width; i += 16)
            total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(mask_at(i, width), x + i));
        mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / (float)width);
    }
    for (int64_t i = 0; i < width; i += 16) {
        __mmask16 present = mask_at(i, width);
        __m512 centered = _mm512_maskz_sub_ps(present, _mm512_maskz_loadu_ps(present, x + i), mean);
        squares = _mm512_fmadd_ps(centered, centered, squares);
        _mm512_mask_storeu_ps(out + i, present, centered);
    }
    __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)width + norm->epsilon));
    for (int64_t i = 0; i < width; i += 16) {
        __mmask16 present = mask_at(i, width);
        __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(present, out + i), factor);
        scaled = _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(present, norm->weight + i));
        if (norm->bias) scaled = _mm512_add_ps(scaled, _mm512_maskz_loadu_ps(present, norm->bias + i));
        _mm512_mask_storeu_ps(out + i, present, scaled);
    }
}

#else

void normalize_row(const float *x, int64_t width, const Norm *norm, float *out) {
    (void)x, (void)width, (void)norm, (void)out;
}

#endif
