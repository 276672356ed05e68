/* The two passes, over vectors of sixteen numbers. `pixels.c` includes this once for each instruction set, after it has
   defined NAMED(name), TARGET, the type `ints`, and load, four_pixels, store, scaled and filled for it. */

/* Along rows: `in` are ROWS rows `stride` bytes apart, readable beyond their ends by a vector more than a weight.
   `spread` has each weight of the plan three times and a zero. */
TARGET static void NAMED(along_rows)(const Plan *plan, const int32_t *spread, const uint8_t *in, size_t stride,
                                     uint8_t *const out[ROWS], int width) {
    int groups = plan->most / TAPS;
    for (int x = 0; x < width; x++) {
        const uint8_t *from = in + 3 * (size_t)plan->first[x];
        const int32_t *weights = spread + (size_t)x * groups * LANES;
        ints sums[ROWS];
        for (int row = 0; row < ROWS; row++) sums[row] = filled(0);
        for (int group = 0; group * TAPS < plan->count[x]; group++, weights += LANES, from += 3 * TAPS)
            for (int row = 0; row < ROWS; row++)
                sums[row] = scaled(sums[row], four_pixels(from + row * stride), numbers(weights));
        uint8_t pixels[LANES];
        store(pixels, four_sums(sums));
        for (int row = 0; row < ROWS; row++) memcpy(out[row] + 3 * (size_t)x, pixels + 4 * row, 3);
    }
}

/* Along columns: one new row of `length` bytes out of `count` old ones, each `length` bytes after the other. */
TARGET static void NAMED(along_columns)(const int32_t *weights, int count, const uint8_t *in, uint8_t *out,
                                        size_t length) {
    size_t at = 0;
    for (; at + BLOCK * LANES <= length; at += BLOCK * LANES) {
        ints sums[BLOCK];
        for (int i = 0; i < BLOCK; i++) sums[i] = filled(HALF);
        for (int tap = 0; tap < count; tap++)
            for (int i = 0; i < BLOCK; i++)
                sums[i] = scaled(sums[i], load(in + tap * length + at + i * LANES), filled(weights[tap]));
        for (int i = 0; i < BLOCK; i++) store(out + at + i * LANES, sums[i]);
    }
    for (; at < length; at++) {
        int32_t sum = HALF;
        for (int tap = 0; tap < count; tap++) sum += in[tap * length + at] * weights[tap];
        out[at] = rounded(sum);
    }
}

#undef NAMED
#undef TARGET
#undef ints
#undef filled
#undef numbers
#undef load
#undef four_pixels
#undef scaled
#undef four_sums
#undef store
