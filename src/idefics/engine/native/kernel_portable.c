/* The stages in plain C: vectors of 16 bytes, which every machine has or the compiler takes apart. */
#define WORK work_portable
#define BYTES 16
#define TOGETHER 4
#include "vector.h"

INLINE float sum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }

INLINE I load_some(const void *from, int bytes) {
    I values = {0};
    memcpy(&values, from, (size_t)bytes);
    return values;
}

INLINE F dot_bytes(I w, const int8_t *x, const int32_t *minus) {
    int8_t bytes[BYTES];
    F sums;
    (void)minus;
    memcpy(bytes, &w, sizeof bytes);
    for (int i = 0; i < LANES; i++) {
        int32_t total = 0;
        for (int j = 4 * i; j < 4 * i + 4; j++) total += bytes[j] * x[j];
        sums[i] = (float)total;
    }
    return sums;
}

INLINE F dot_halves(I w, const int8_t *even, const int8_t *odd, const int32_t *minus) {
    uint8_t pairs[BYTES];
    F sums;
    memcpy(pairs, &w, sizeof pairs);
    for (int i = 0; i < LANES; i++) {
        int32_t total = minus[i];
        for (int j = 4 * i; j < 4 * i + 4; j++) total += (pairs[j] & 15) * even[j] + (pairs[j] >> 4) * odd[j];
        sums[i] = (float)total;
    }
    return sums;
}

INLINE F spread(const float *scale, int groups) {
    (void)groups; /* one: a vector is a group */
    return (F){scale[0], scale[0], scale[0], scale[0]};
}

INLINE F spread_narrow(const uint16_t *scale, int groups) {
    float wide = widened(scale[0]);
    return spread(&wide, groups);
}

INLINE F widen_halves(const uint16_t *from) {
    return (F){widened_half(from[0]), widened_half(from[1]), widened_half(from[2]), widened_half(from[3])};
}

#include "kernel.h"
