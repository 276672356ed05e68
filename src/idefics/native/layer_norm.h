#ifndef IDEFICS_LAYER_NORM_H
#define IDEFICS_LAYER_NORM_H

#include <stdint.h>

/* weight * (x - mean) / sqrt(variance + epsilon) + bias, (width,) each. Needs AVX-512. */
void layer_norm(const float *x, int64_t width, const float *weight, const float *bias, float epsilon, float *out);

#endif
