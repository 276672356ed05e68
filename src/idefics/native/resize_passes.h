/* The two passes. `resize.c` includes this once for each instruction set, for which it has defined VARIANT(name),
 * TARGET and BLOCK, a number of bytes that divides STRIP_BYTES; Sums, the type of BLOCK weighted sums; and
 * - no_sums(): sums that are rounded when they are stored;
 * - add_rows(&sums, a, b, c, d, four): adds BLOCK bytes of each of four rows, times four weights;
 * - store_sums(to, &sums): stores BLOCK bytes;
 * - split_weights(four): changes four weights of 32 bits into what add_rows reads;
 * - gather_pixels(rows, x, bytes, strip): four pixels, from `x` on, of 3 or 4 bytes of each of STRIP_ROWS rows; reads
 * 16 bytes of each;
 * - scatter_pixels(strip, rows, x): the opposite; writes 12 bytes of each.
 */

TARGET static void VARIANT(prepare_weights)(int32_t *weights, size_t count) {
    for (size_t i = 0; i < count; i += TAPS) split_weights(weights + i);
}

/* Along rows: a strip of STRIP_ROWS rows of `width` pixels -> `new_width` pixels. `strip` has room for `width` pixels
 * of each row, and for TAPS more that are read. */
TARGET static void VARIANT(resize_along_rows)(const ResizeWeights *plan, const uint8_t *const in[STRIP_ROWS],
                                              int pixel_bytes, int width, uint8_t *strip,
                                              uint8_t *const out[STRIP_ROWS], int new_width) {
    int x = 0;
    for (; x + 16 / 3 < width; x += TAPS) gather_pixels(in, x, pixel_bytes, strip + (size_t)x * STRIP_BYTES);
    for (; x < width; x++)
        for (int row = 0; row < STRIP_ROWS; row++)
            memcpy(strip + (size_t)x * STRIP_BYTES + 4 * row, in[row] + pixel_bytes * (size_t)x, 3);

    for (x = 0; x < new_width; x += TAPS) {
        uint8_t pixels[TAPS * STRIP_BYTES];
        int many = new_width - x < TAPS ? new_width - x : TAPS;
        for (int i = 0; i < many; i++)
            for (int at = 0; at < STRIP_BYTES; at += BLOCK) {
                const uint8_t *pixel = strip + (size_t)plan->first[x + i] * STRIP_BYTES + at;
                const int32_t *weights = plan->weights + (size_t)(x + i) * plan->most;
                Sums sums = no_sums();
                int tap = 0;
                do { /* one at least, so that the sums stay in their registers */
                    add_rows(&sums, pixel, pixel + STRIP_BYTES, pixel + 2 * STRIP_BYTES, pixel + 3 * STRIP_BYTES,
                             weights + tap);
                    pixel += TAPS * STRIP_BYTES;
                } while ((tap += TAPS) < plan->count[x + i]);
                store_sums(pixels + i * STRIP_BYTES + at, &sums);
            }
        if (many == TAPS)
            scatter_pixels(pixels, out, x);
        else
            for (int i = 0; i < many; i++)
                for (int row = 0; row < STRIP_ROWS; row++)
                    memcpy(out[row] + 3 * (size_t)(x + i), pixels + i * STRIP_BYTES + 4 * row, 3);
    }
}

/* Along columns: one new row of `length` bytes, at least BLOCK, from `count` old ones; `rows`: as many, rounded up to
 * a multiple of TAPS. */
TARGET static void VARIANT(resize_along_columns)(const int32_t *weights, int count, const uint8_t *const *rows,
                                                 uint8_t *out, size_t length) {
    for (size_t start = 0; start < length; start += BLOCK) {
        size_t at = start + BLOCK <= length ? start : length - BLOCK; /* the last block may overlap the one before */
        Sums sums = no_sums();
        int tap = 0;
        do add_rows(&sums, rows[tap] + at, rows[tap + 1] + at, rows[tap + 2] + at, rows[tap + 3] + at, weights + tap);
        while ((tap += TAPS) < count);
        store_sums(out + at, &sums);
    }
}

#undef VARIANT
#undef TARGET
#undef BLOCK
#undef Sums
#undef no_sums
#undef add_rows
#undef store_sums
#undef split_weights
#undef gather_pixels
#undef scatter_pixels
