/* The stages with AVX-512 and its dot products of bytes (VNNI). */
#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))),                 \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,prefer-vector-width=512")
#endif

#define STAGE_FUNCTION run_stage_avx512
#define VECTOR_BYTES 64
#define ROW_TILE 4
#include "decode_vector.h"

INLINE float sum(F v) { return _mm512_reduce_add_ps(v); }

INLINE I load_partial_bytes(const void *from, int bytes) {
    return (I)_mm512_maskz_loadu_epi8(((__mmask64)1 << bytes) - 1, from);
}

/* Weights as unsigned bytes, 128 larger than they are; `offset` subtracts the difference. */
INLINE F dot_int8(I w, const int8_t *x, const int32_t *offset) {
    __m512i larger = _mm512_xor_si512((__m512i)w, _mm512_set1_epi8((char)0x80));
    __m512i sums = _mm512_dpbusd_epi32(_mm512_loadu_si512(offset), larger, _mm512_loadu_si512(x));
    return _mm512_cvtepi32_ps(sums);
}

INLINE F dot_int4(I w, const int8_t *even, const int8_t *odd, const int32_t *offset) {
    __m512i mask = _mm512_set1_epi8(15);
    __m512i low = _mm512_and_si512((__m512i)w, mask), high = _mm512_and_si512(_mm512_srli_epi16((__m512i)w, 4), mask);
    __m512i sums = _mm512_dpbusd_epi32(_mm512_loadu_si512(offset), low, _mm512_loadu_si512(even));
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(sums, high, _mm512_loadu_si512(odd)));
}

/* Each of up to four scales in the four lanes of its group. */
INLINE F broadcast_scales(const float *scale, int groups) {
    __m512 four = _mm512_maskz_loadu_ps((__mmask16)((1 << groups) - 1), scale);
    return _mm512_permutexvar_ps(_mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0), four);
}

INLINE F broadcast_bfloat16_scales(const uint16_t *scale, int groups) {
    __m128i four = _mm_maskz_loadu_epi16((__mmask8)((1 << groups) - 1), scale);
    __m512i wide = _mm512_castsi128_si512(_mm_slli_epi32(_mm_cvtepu16_epi32(four), 16));
    __m512i index = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return (F)_mm512_permutexvar_epi32(index, wide);
}

INLINE F load_float16(const uint16_t *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)); }

#include "decode_stages.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
