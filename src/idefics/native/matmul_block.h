/* The innermost loop of products, for files that define TARGET, Sums and
 *     Sums dot_units(Sums sums, __m512i weights, __m512i inputs)
 */

#define UNROLL _Pragma("GCC unroll 16")

/* `count` rows from `row` on, a constant, times a packed tile. Rows from `end` on repeat the last one. Prefetches a
 * cache line for each unit, from `next` on. */
INLINE void multiply_block(const RoundedRows *rows, int64_t row, int64_t end, const uint32_t *tile, int64_t units,
                           const char *next, int count, Sums sums[TILE_ROWS][2]) {
    const uint32_t *x[TILE_ROWS];
    UNROLL for (int r = 0; r < count; r++) {
        x[r] = rows->units + min_int64(row + r, end - 1) * rows->stride;
        sums[r][0] = sums[r][1] = (Sums){0};
    }
    for (int64_t unit = 0; unit < units; unit++, tile += TILE_OUTPUTS) {
        _mm_prefetch(next + unit * CACHE_LINE_BYTES, _MM_HINT_T1);
        __m512i first = _mm512_loadu_si512(tile), second = _mm512_loadu_si512(tile + 16);
        UNROLL for (int r = 0; r < count; r++) {
            __m512i inputs = _mm512_set1_epi32((int)x[r][unit]);
            sums[r][0] = dot_units(sums[r][0], first, inputs);
            sums[r][1] = dot_units(sums[r][1], second, inputs);
        }
    }
}
