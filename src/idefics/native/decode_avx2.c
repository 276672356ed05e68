/* The stages with AVX2, FMA and F16C. */
#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define STAGE_FUNCTION run_stage_avx2
#define VECTOR_BYTES 32
#define ROW_TILE 2 /* as many sums as 16 registers hold */
#include "decode_vector.h"

INLINE float sum(F v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

INLINE I load_partial_bytes(const void *from, int bytes) {
    I values = {0};
    memcpy(&values, from, (size_t)bytes);
    return values;
}

INLINE F sums_of_four(__m256i pairs) { return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }

/* |weights| times the inputs with the weights' signs: the sum of two products fits into 16 bits. */
INLINE F dot_int8(I w, const int8_t *x, const int32_t *offset) {
    (void)offset;
    __m256i inputs = _mm256_loadu_si256((const __m256i *)x);
    return sums_of_four(_mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), _mm256_sign_epi8(inputs, (__m256i)w)));
}

INLINE F dot_int4(I w, const int8_t *even, const int8_t *odd, const int32_t *offset) {
    __m256i mask = _mm256_set1_epi8(15);
    __m256i low = _mm256_and_si256((__m256i)w, mask), high = _mm256_and_si256(_mm256_srli_epi16((__m256i)w, 4), mask);
    __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(low, _mm256_loadu_si256((const __m256i *)even)),
                                    _mm256_maddubs_epi16(high, _mm256_loadu_si256((const __m256i *)odd)));
    __m256i whole = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(whole, _mm256_loadu_si256((const __m256i *)offset)));
}

INLINE F broadcast_scales(const float *scale, int groups) {
    return _mm256_set_m128(_mm_set1_ps(groups > 1 ? scale[1] : 0), _mm_set1_ps(scale[0]));
}

INLINE F broadcast_bfloat16_scales(const uint16_t *scale, int groups) {
    return _mm256_set_m128(_mm_set1_ps(groups > 1 ? bfloat16_to_float(scale[1]) : 0),
                           _mm_set1_ps(bfloat16_to_float(scale[0])));
}

INLINE F load_float16(const uint16_t *from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)); }

#include "decode_stages.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
