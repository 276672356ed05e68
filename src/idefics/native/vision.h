/* The parts of a vision encoder that are written in vectors: `vision_avx512.c`. */
#ifndef IDEFICS_VISION_H
#define IDEFICS_VISION_H

#include "matmul.h"

/* softmax(q k' / sqrt(size)) v of one head in bfloat16, every query attending to every key. */
typedef struct {
    const MatmulKernel *kernel;
    const uint16_t *q, *k, *v; /* the head's part of the first row of a frame */
    float *out;
    int64_t stride; /* numbers of a row of each */
    int64_t keys, size;
    int64_t first_query, end_query;
} HeadAttention;

/* Units of scratch memory that `vision_attend` needs. */
int64_t vision_attention_units(int64_t keys, int64_t size);
void vision_attend(const HeadAttention *attention, uint32_t *scratch);
void vision_layer_norm(const float *x, int64_t width, const float *weight, const float *bias, float epsilon,
                       float *out);

#endif
