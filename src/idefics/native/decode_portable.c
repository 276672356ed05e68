/* The stages in plain C, with vectors of 16 bytes: any processor. */
#define STAGE_FUNCTION run_stage_portable
#define VECTOR_BYTES 16
#define ROW_TILE 4
#include "decode_vector.h"

INLINE float sum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }

INLINE I load_partial_bytes(const void *from, int bytes) {
    I values = {0};
    memcpy(&values, from, (size_t)bytes);
    return values;
}

INLINE F dot_int8(I w, const int8_t *x, const int32_t *offset) {
    int8_t bytes[VECTOR_BYTES];
    F sums;
    (void)offset;
    memcpy(bytes, &w, sizeof bytes);
    for (int i = 0; i < LANES; i++) {
        int32_t total = 0;
        for (int j = 4 * i; j < 4 * i + 4; j++) total += bytes[j] * x[j];
        sums[i] = (float)total;
    }
    return sums;
}

INLINE F dot_int4(I w, const int8_t *even, const int8_t *odd, const int32_t *offset) {
    uint8_t pairs[VECTOR_BYTES];
    F sums;
    memcpy(pairs, &w, sizeof pairs);
    for (int i = 0; i < LANES; i++) {
        int32_t total = offset[i];
        for (int j = 4 * i; j < 4 * i + 4; j++) total += (pairs[j] & 15) * even[j] + (pairs[j] >> 4) * odd[j];
        sums[i] = (float)total;
    }
    return sums;
}

INLINE F broadcast_scales(const float *scale, int groups) {
    (void)groups; /* 1: a vector is a group */
    return (F){scale[0], scale[0], scale[0], scale[0]};
}

INLINE F broadcast_bfloat16_scales(const uint16_t *scale, int groups) {
    float wide = bfloat16_to_float(scale[0]);
    return broadcast_scales(&wide, groups);
}

INLINE F load_float16(const uint16_t *from) {
    return (F){float16_to_float(from[0]), float16_to_float(from[1]), float16_to_float(from[2]),
               float16_to_float(from[3])};
}

#include "decode_stages.h"
