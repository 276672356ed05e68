/* The stages with Armv8.2's dot products. */
#if defined(__aarch64__)
#include <arm_neon.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#define STAGE_FUNCTION run_stage_neon
#define VECTOR_BYTES 16
#define ROW_TILE 4
#include "decode_vector.h"

INLINE float sum(F v) { return vaddvq_f32((float32x4_t)v); }

INLINE I load_partial_bytes(const void *from, int bytes) {
    I values = {0};
    memcpy(&values, from, (size_t)bytes);
    return values;
}

INLINE F dot_int8(I w, const int8_t *x, const int32_t *offset) {
    (void)offset;
    return (F)vcvtq_f32_s32(vdotq_s32(vdupq_n_s32(0), (int8x16_t)w, vld1q_s8(x)));
}

INLINE F dot_int4(I w, const int8_t *even, const int8_t *odd, const int32_t *offset) {
    int8x16_t low = vreinterpretq_s8_u8(vandq_u8((uint8x16_t)w, vdupq_n_u8(15)));
    int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8((uint8x16_t)w, 4));
    int32x4_t sums = vdotq_s32(vld1q_s32(offset), low, vld1q_s8(even));
    return (F)vcvtq_f32_s32(vdotq_s32(sums, high, vld1q_s8(odd)));
}

INLINE F broadcast_scales(const float *scale, int groups) {
    (void)groups; /* 1: a vector is a group */
    return (F)vld1q_dup_f32(scale);
}

INLINE F broadcast_bfloat16_scales(const uint16_t *scale, int groups) {
    float wide = bfloat16_to_float(scale[0]);
    return broadcast_scales(&wide, groups);
}

INLINE F load_float16(const uint16_t *from) { return (F)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }

#include "decode_stages.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
