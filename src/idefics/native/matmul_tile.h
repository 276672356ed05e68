/* A `MatmulKernel`, compiled for bfloat16 and for int8. Defined before: TARGET, KERNEL, NUMBERS_PER_UNIT, WEIGHT_FLIP,
 * round_row and
 *     Sums dot_units(Sums sums, __m512i weights, __m512i inputs)
 *     __m512 sums_to_floats(Sums sums, const RoundedRows *rows, int64_t row, __m512 scales)
 */

/* Exchanges rows and columns of 16 x 16 units. */
INLINE void transpose_units(__m512i rows[16]) {
    __m512i pairs[16], quads[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) { /* quads[i + 4 j]: column i of each fourth, of rows 4 j to 4 j + 3 */
        __m512i low01 = _mm512_shuffle_i32x4(quads[i], quads[i + 4], 0x88);
        __m512i high01 = _mm512_shuffle_i32x4(quads[i], quads[i + 4], 0xdd);
        __m512i low23 = _mm512_shuffle_i32x4(quads[i + 8], quads[i + 12], 0x88);
        __m512i high23 = _mm512_shuffle_i32x4(quads[i + 8], quads[i + 12], 0xdd);
        rows[i] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        rows[i + 4] = _mm512_shuffle_i32x4(high01, high23, 0x88);
        rows[i + 12] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
}

TARGET static void pack_tile(const void *weight, int64_t row_bytes, int64_t inputs, int64_t outputs, uint32_t *tile) {
    const __m512i flip = _mm512_set1_epi32((int)WEIGHT_FLIP);
    int64_t bytes = inputs * UNIT_BYTES / NUMBERS_PER_UNIT, units = ceil_div(bytes, UNIT_BYTES);
    for (int half = 0; half < TILE_OUTPUTS; half += 16)
        for (int64_t unit = 0; unit < units; unit += 16) {
            int64_t rest = bytes - unit * UNIT_BYTES;
            __mmask64 present = rest >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << rest) - 1;
            __m512i rows[16];
            UNROLL for (int i = 0; i < 16; i++) {
                const char *from = (const char *)weight + (half + i) * row_bytes + unit * UNIT_BYTES;
                rows[i] = half + i < outputs ? _mm512_maskz_loadu_epi8(present, from) : _mm512_setzero_si512();
                rows[i] = _mm512_xor_si512(rows[i], flip);
            }
            transpose_units(rows);
            UNROLL for (int i = 0; i < 16; i++)
                if (unit + i < units) _mm512_storeu_si512(tile + (unit + i) * TILE_OUTPUTS + half, rows[i]);
        }
}

/* Writes a vector of results of one output row; `at`: its first number. */
INLINE void finish_vector(__m512 values, __mmask16 present, const Epilogue *epilogue, int64_t row, int column) {
    int64_t at = row * epilogue->stride + column;
    if (epilogue->bias) values = _mm512_add_ps(values, _mm512_maskz_loadu_ps(present, epilogue->bias + column));
    values = activate(values, epilogue->activation);
    if (epilogue->factor) values = _mm512_mul_ps(values, _mm512_maskz_loadu_ps(present, epilogue->factor + at));
    if (epilogue->residual) values = _mm512_add_ps(values, _mm512_maskz_loadu_ps(present, epilogue->residual + at));
    if (epilogue->floats)
        _mm512_mask_storeu_ps(epilogue->floats + at, present, values);
    else
        _mm256_mask_storeu_epi16(epilogue->halves + at, present, round_to_bfloat16(values));
}

/* `multiply_tile` for up to `most` rows, a constant. */
INLINE void multiply_up_to(int most, const RoundedRows *rows, int64_t row, int64_t end, const uint32_t *tile,
                           int64_t units, const char *next, const Epilogue *epilogue, int64_t outputs) {
    Sums sums[TILE_ROWS][2];
    multiply_block(rows, row, end, tile, units, next, most, sums);
    UNROLL for (int half = 0; half < 2; half++) {
        int column = 16 * half;
        if (column >= outputs) break;
        __mmask16 present = outputs - column >= 16 ? 0xffff : (__mmask16)((1 << (outputs - column)) - 1);
        __m512 scales =
            epilogue->scales ? _mm512_maskz_loadu_ps(present, epilogue->scales + column) : _mm512_set1_ps(1.0f);
        UNROLL for (int r = 0; r < most; r++)
            if (row + r < end)
                finish_vector(sums_to_floats(sums[r][half], rows, row + r, scales), present, epilogue, row + r, column);
    }
}

TARGET static void multiply_tile(const RoundedRows *rows, int64_t row, int64_t end, const uint32_t *tile, int64_t units,
                                 const char *next, const Epilogue *epilogue, int64_t outputs) {
    if (end - row > 8)
        multiply_up_to(TILE_ROWS, rows, row, end, tile, units, next, epilogue, outputs);
    else if (end - row > 4)
        multiply_up_to(8, rows, row, end, tile, units, next, epilogue, outputs);
    else
        multiply_up_to(4, rows, row, end, tile, units, next, epilogue, outputs);
}

const MatmulKernel KERNEL = {round_row, pack_tile, multiply_tile, NUMBERS_PER_UNIT};
