/* Vectors of VECTOR_BYTES bytes in the vector extensions of gcc and clang, which compile to any instruction set. */
#include "decode.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

typedef float F __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t I __attribute__((vector_size(VECTOR_BYTES)));
enum { LANES = VECTOR_BYTES / 4 };

INLINE F load(const float *from) {
    F values;
    memcpy(&values, from, sizeof values);
    return values;
}

INLINE I load_bytes(const void *from) {
    I values;
    memcpy(&values, from, sizeof values);
    return values;
}

INLINE int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float float_of(int32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* A bfloat16 is the upper half of a float. */
INLINE float bfloat16_to_float(uint16_t half) { return float_of((int32_t)((uint32_t)half << 16)); }

/* A float16 (IEEE 754 binary16): its exponent counts from 15, a float's from 127. */
INLINE float float16_to_float(uint16_t half) {
    int32_t sign = (int32_t)((uint32_t)(half & 0x8000) << 16), size = (half & 0x7fff) << 13;
    if (size >= 0x7c00 << 13) return float_of(sign | 0x7f800000 | size); /* infinity or NaN */
    return float_of(sign | bits_of(float_of(size) * 0x1p112f));          /* exact for subnormals too */
}

/* To the nearest float16, ties to even. Larger values become 65504, the largest float16: an infinity would turn later
 * attention scores into NaN. */
INLINE uint16_t float_to_float16(float x) {
    uint32_t bits = (uint32_t)bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00); /* NaN */
    size = size < 0x477fe000 ? size : 0x477fe000;
    if (size < 0x38800000) /* subnormal: added to 1/2, a float's last bits count multiples of 2^-24 */
        return (uint16_t)(sign | (uint32_t)(bits_of(float_of((int32_t)size) + 0.5f) - 0x3f000000));
    return (uint16_t)(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}

/* e^x after Cody and Waite: 2^n e^r with |r| <= ln(2) / 2, e^r by its Taylor series, accurate to 2 ulp. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f; /* ln 2 in two parts, for precision */
    float y = 1.0f / 5040;
    y = y * r + 1.0f / 720, y = y * r + 1.0f / 120, y = y * r + 1.0f / 24, y = y * r + 1.0f / 6;
    y = y * r + 0.5f, y = y * r + 1.0f, y = y * r + 1.0f;
    return y * float_of((int32_t)((uint32_t)(bits_of(shifted) - 0x4b400000 + 127) << 23));
}
