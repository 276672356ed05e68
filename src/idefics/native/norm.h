#ifndef IDEFICS_NORM_H
#define IDEFICS_NORM_H

#include <stdint.h>

typedef struct {
    const float *weight; /* (width,); NULL: no norm */
    const float *bias;   /* (width,) of a layer norm; NULL: a root-mean-square norm */
    float epsilon;
} Norm;

/* weight * (x - mean) / sqrt(variance + epsilon) + bias, or weight * x / sqrt(mean square + epsilon). Needs AVX-512. */
void normalize_row(const float *x, int64_t width, const Norm *norm, float *out);

#endif
