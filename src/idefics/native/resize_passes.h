/* The two passes, over vectors of sixteen int32. `resize.c` includes this once for each instruction set, for which it
 * has defined VARIANT(name), TARGET, the type vector_int32, and fill, numbers, load_uint8, load_pixels, multiply_add,
 * sum_pixels and store_uint8. */

/* Along rows: `in` is ROWS_AT_ONCE rows, `stride` bytes apart, which may be read beyond their ends by `most` pixels and
 * a vector. `interleaved_weights`: see interleave_weights. */
TARGET static void VARIANT(resize_along_rows)(const ResizeWeights *plan, const int32_t *interleaved_weights,
                                              const uint8_t *in, size_t stride, uint8_t *const out[ROWS_AT_ONCE],
                                              int width) {
    int groups = plan->most / TAPS_PER_VECTOR;
    for (int x = 0; x < width; x++) {
        const uint8_t *from = in + 3 * (size_t)plan->first[x];
        const int32_t *weights = interleaved_weights + (size_t)x * groups * LANES;
        vector_int32 sums[ROWS_AT_ONCE];
        for (int row = 0; row < ROWS_AT_ONCE; row++) sums[row] = fill(0);
        for (int group = 0; group * TAPS_PER_VECTOR < plan->count[x];
             group++, weights += LANES, from += 3 * TAPS_PER_VECTOR)
            for (int row = 0; row < ROWS_AT_ONCE; row++)
                sums[row] = multiply_add(sums[row], load_pixels(from + row * stride), numbers(weights));
        uint8_t pixels[LANES];
        store_uint8(pixels, sum_pixels(sums));
        for (int row = 0; row < ROWS_AT_ONCE; row++) memcpy(out[row] + 3 * (size_t)x, pixels + 4 * row, 3);
    }
}

/* Along columns: one new row of `length` bytes from `count` old ones, which follow each other. */
TARGET static void VARIANT(resize_along_columns)(const int32_t *weights, int count, const uint8_t *in, uint8_t *out,
                                                 size_t length) {
    size_t at = 0;
    for (; at + VECTORS_PER_BLOCK * LANES <= length; at += VECTORS_PER_BLOCK * LANES) {
        vector_int32 sums[VECTORS_PER_BLOCK];
        for (int i = 0; i < VECTORS_PER_BLOCK; i++) sums[i] = fill(ROUNDING_HALF);
        for (int tap = 0; tap < count; tap++)
            for (int i = 0; i < VECTORS_PER_BLOCK; i++)
                sums[i] = multiply_add(sums[i], load_uint8(in + tap * length + at + i * LANES), fill(weights[tap]));
        for (int i = 0; i < VECTORS_PER_BLOCK; i++) store_uint8(out + at + i * LANES, sums[i]);
    }
    for (; at < length; at++) {
        int32_t sum = ROUNDING_HALF;
        for (int tap = 0; tap < count; tap++) sum += in[tap * length + at] * weights[tap];
        out[at] = rounded(sum);
    }
}

#undef VARIANT
#undef TARGET
#undef vector_int32
#undef fill
#undef numbers
#undef load_uint8
#undef load_pixels
#undef multiply_add
#undef sum_pixels
#undef store_uint8
