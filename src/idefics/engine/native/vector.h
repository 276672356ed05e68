/* Vectors of BYTES bytes in the compiler's own notation, which gcc and clang turn into any instruction set. */
#include "native.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

typedef float F __attribute__((vector_size(BYTES)));
typedef int32_t I __attribute__((vector_size(BYTES)));
enum { LANES = BYTES / 4 };

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
INLINE float widened(uint16_t half) { return float_of((int32_t)((uint32_t)half << 16)); }
