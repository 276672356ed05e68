/* Vectors of VECTOR_BYTES bytes in the compiler's own notation, which gcc and clang turn into any instruction set. */
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
    if (size >= 0x7c00 << 13) return float_of(sign | 0x7f800000 | size); /* no number */
    return float_of(sign | bits_of(float_of(size) * 0x1p112f));          /* also below 2^-14, where steps are even */
}

/* To the nearest float16, ties to even. What is too large becomes the largest one, 65504: an infinity would make
 * every later score that it meets no number at all. */
INLINE uint16_t float_to_float16(float x) {
    uint32_t bits = (uint32_t)bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00); /* no number */
    size = size < 0x477fe000 ? size : 0x477fe000;
    if (size < 0x38800000) /* below 2^-14: added to 1/2, a float's last bits count steps of 2^-24 */
        return (uint16_t)(sign | (uint32_t)(bits_of(float_of((int32_t)size) + 0.5f) - 0x3f000000));
    return (uint16_t)(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}
