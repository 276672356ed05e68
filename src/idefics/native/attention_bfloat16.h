/* Attention of one head in bfloat16. */
#ifndef IDEFICS_ATTENTION_BFLOAT16_H
#define IDEFICS_ATTENTION_BFLOAT16_H

#include "matmul.h"

enum { QUERIES_PER_PIECE = 43 * TILE_ROWS }; /* queries of a head that a thread takes */
enum { NOT_CAUSAL = -1 };

typedef struct {
    const MatmulKernel *kernel; /* of BFLOAT16 */
    const uint16_t *q, *k, *v;  /* the first row of a head; bfloat16, `stride` numbers from row to row */
    float *out;                 /* rows are `out_stride` numbers apart */
    int64_t stride, out_stride;
    int64_t keys, size;
    int64_t first_query, end_query;
    int64_t causal_offset; /* query i attends to keys up to causal_offset + i; NOT_CAUSAL: to all */
} HeadAttention;

/* Units of scratch memory that `attend_head` needs. */
int64_t attention_scratch_units(int64_t keys, int64_t size);
void attend_head(const HeadAttention *attention, uint32_t *scratch);

#endif
