/* The vectors of resize_passes.h on x86-64: AVX-512 with dot products of bytes (VNNI), and AVX2. */
#include <immintrin.h>

#define AVX2_TARGET __attribute__((target("avx2")))
#define VNNI_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

/* Exchanges rows and columns of four times four pixels of four bytes. */
INLINE AVX2_TARGET void transpose_pixels(__m128i x[4]) {
    __m128i low01 = _mm_unpacklo_epi32(x[0], x[1]), high01 = _mm_unpackhi_epi32(x[0], x[1]);
    __m128i low23 = _mm_unpacklo_epi32(x[2], x[3]), high23 = _mm_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm_unpacklo_epi64(low01, low23);
    x[1] = _mm_unpackhi_epi64(low01, low23);
    x[2] = _mm_unpacklo_epi64(high01, high23);
    x[3] = _mm_unpackhi_epi64(high01, high23);
}

INLINE AVX2_TARGET void x86_gather_pixels(const uint8_t *const *rows, int x, int pixel_bytes, uint8_t *strip) {
    const __m128i spread = pixel_bytes == 3 ? _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1)
                                            : _mm_setr_epi8(0, 1, 2, -1, 4, 5, 6, -1, 8, 9, 10, -1, 12, 13, 14, -1);
    size_t offset = (size_t)x * pixel_bytes;
    for (int row = 0; row < STRIP_ROWS; row += 4) {
        __m128i pixels[4];
        for (int i = 0; i < 4; i++)
            pixels[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(rows[row + i] + offset)), spread);
        transpose_pixels(pixels);
        for (int i = 0; i < 4; i++) _mm_storeu_si128((__m128i *)(strip + i * STRIP_BYTES + 4 * row), pixels[i]);
    }
}

INLINE AVX2_TARGET void x86_scatter_pixels(const uint8_t *strip, uint8_t *const *rows, int x) {
    const __m128i close = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    for (int row = 0; row < STRIP_ROWS; row += 4) {
        __m128i pixels[4];
        for (int i = 0; i < 4; i++) pixels[i] = _mm_loadu_si128((const __m128i *)(strip + i * STRIP_BYTES + 4 * row));
        transpose_pixels(pixels);
        for (int i = 0; i < 4; i++) {
            uint8_t *to = rows[row + i] + 3 * (size_t)x;
            __m128i bytes = _mm_shuffle_epi8(pixels[i], close);
            int32_t last = _mm_extract_epi32(bytes, 2);
            _mm_storel_epi64((__m128i *)to, bytes);
            memcpy(to + 8, &last, sizeof last);
        }
    }
}

/* VNNI: a weight is w0 + 2^8 w1 + 2^16 w2, with three signed bytes: none reaches 127 << 16, as the largest, Lanczos' at
 * an edge, is 1.3. In `at`, the sums of each of the three. The four bytes of four rows in one column lie together. */
typedef uint32_t Uint32x16 __attribute__((vector_size(64))); /* gcc copies sums of another type around */
typedef struct {
    Uint32x16 at[3][4];
} VnniSums;
INLINE VNNI_TARGET VnniSums vnni_no_sums(void) {
    VnniSums sums;
    UNROLL for (int i = 0; i < 4; i++) {
        sums.at[0][i] = (Uint32x16)_mm512_set1_epi32(ROUNDING_HALF);
        sums.at[1][i] = sums.at[2][i] = (Uint32x16)_mm512_setzero_si512();
    }
    return sums;
}
INLINE VNNI_TARGET void vnni_add_rows(VnniSums *sums, const uint8_t *a, const uint8_t *b, const uint8_t *c,
                                      const uint8_t *d, const int32_t *weights) {
    __m512i row_a = _mm512_loadu_si512(a), row_b = _mm512_loadu_si512(b);
    __m512i row_c = _mm512_loadu_si512(c), row_d = _mm512_loadu_si512(d);
    __m512i low_ab = _mm512_unpacklo_epi8(row_a, row_b), high_ab = _mm512_unpackhi_epi8(row_a, row_b);
    __m512i low_cd = _mm512_unpacklo_epi8(row_c, row_d), high_cd = _mm512_unpackhi_epi8(row_c, row_d);
    __m512i columns[4] = {_mm512_unpacklo_epi16(low_ab, low_cd), _mm512_unpackhi_epi16(low_ab, low_cd),
                          _mm512_unpacklo_epi16(high_ab, high_cd), _mm512_unpackhi_epi16(high_ab, high_cd)};
    UNROLL for (int part = 0; part < 3; part++) {
        __m512i four = _mm512_set1_epi32(weights[part]);
        UNROLL for (int i = 0; i < 4; i++)
            sums->at[part][i] = (Uint32x16)_mm512_dpbusd_epi32((__m512i)sums->at[part][i], columns[i], four);
    }
}
INLINE VNNI_TARGET void vnni_store_sums(uint8_t *to, const VnniSums *sums) {
    __m512i x[4];
    UNROLL for (int i = 0; i < 4; i++) {
        Uint32x16 sum = sums->at[0][i] + (sums->at[1][i] << 8) + (sums->at[2][i] << 16);
        x[i] = _mm512_srai_epi32((__m512i)sum, WEIGHT_BITS);
    }
    _mm512_storeu_si512(to, _mm512_packus_epi16(_mm512_packs_epi32(x[0], x[1]), _mm512_packs_epi32(x[2], x[3])));
}
INLINE void vnni_split_weights(int32_t *four) {
    int8_t parts[4][TAPS] = {{0}};
    for (int tap = 0; tap < TAPS; tap++) {
        int32_t rest = four[tap];
        for (int part = 0; part < 3; part++) {
            parts[part][tap] = (int8_t)rest;
            rest = (rest - parts[part][tap]) / 256;
        }
    }
    memcpy(four, parts, sizeof parts);
}
#define VARIANT(name) name##_vnni
#define TARGET VNNI_TARGET
#define BLOCK 64
#define Sums VnniSums
#define no_sums vnni_no_sums
#define add_rows vnni_add_rows
#define store_sums vnni_store_sums
#define split_weights vnni_split_weights
#define gather_pixels x86_gather_pixels
#define scatter_pixels x86_scatter_pixels
#include "resize_passes.h"

/* AVX2: a weight is w0 + 2^15 w1, w0 without a sign, multiplied in pairs of 16 bits: the first and the third row, the
 * second and the fourth. */
typedef struct {
    __m256i at[2][4];
} Avx2Sums;
INLINE AVX2_TARGET Avx2Sums avx2_no_sums(void) {
    Avx2Sums sums;
    UNROLL for (int i = 0; i < 4; i++) {
        sums.at[0][i] = _mm256_set1_epi32(ROUNDING_HALF);
        sums.at[1][i] = _mm256_setzero_si256();
    }
    return sums;
}
INLINE AVX2_TARGET void avx2_add_rows(Avx2Sums *sums, const uint8_t *a, const uint8_t *b, const uint8_t *c,
                                      const uint8_t *d, const int32_t *weights) {
    __m256i row_a = _mm256_loadu_si256((const __m256i *)a), row_b = _mm256_loadu_si256((const __m256i *)b);
    __m256i row_c = _mm256_loadu_si256((const __m256i *)c), row_d = _mm256_loadu_si256((const __m256i *)d);
    __m256i low_ab = _mm256_unpacklo_epi8(row_a, row_b), high_ab = _mm256_unpackhi_epi8(row_a, row_b);
    __m256i low_cd = _mm256_unpacklo_epi8(row_c, row_d), high_cd = _mm256_unpackhi_epi8(row_c, row_d);
    __m256i columns[4] = {_mm256_unpacklo_epi16(low_ab, low_cd), _mm256_unpackhi_epi16(low_ab, low_cd),
                          _mm256_unpacklo_epi16(high_ab, high_cd), _mm256_unpackhi_epi16(high_ab, high_cd)};
    UNROLL for (int i = 0; i < 4; i++) {
        __m256i pairs[2] = {_mm256_and_si256(columns[i], _mm256_set1_epi16(0xff)), _mm256_srli_epi16(columns[i], 8)};
        UNROLL for (int part = 0; part < 2; part++) UNROLL
            for (int pair = 0; pair < 2; pair++) {
                __m256i two = _mm256_set1_epi32(weights[2 * part + pair]);
                sums->at[part][i] = _mm256_add_epi32(sums->at[part][i], _mm256_madd_epi16(pairs[pair], two));
            }
    }
}
INLINE AVX2_TARGET void avx2_store_sums(uint8_t *to, const Avx2Sums *sums) {
    __m256i x[4];
    UNROLL for (int i = 0; i < 4; i++)
        x[i] = _mm256_srai_epi32(_mm256_add_epi32(sums->at[0][i], _mm256_slli_epi32(sums->at[1][i], 15)), WEIGHT_BITS);
    __m256i low = _mm256_packs_epi32(x[0], x[1]), high = _mm256_packs_epi32(x[2], x[3]);
    _mm256_storeu_si256((__m256i *)to, _mm256_packus_epi16(low, high));
}
INLINE void avx2_split_weights(int32_t *four) {
    int16_t parts[2][2][2];
    for (int tap = 0; tap < TAPS; tap++) {
        parts[0][tap % 2][tap / 2] = (int16_t)(four[tap] & 0x7fff);
        parts[1][tap % 2][tap / 2] = (int16_t)(four[tap] >> 15);
    }
    memcpy(four, parts, sizeof parts);
}
#define VARIANT(name) name##_avx2
#define TARGET AVX2_TARGET
#define BLOCK 32
#define Sums Avx2Sums
#define no_sums avx2_no_sums
#define add_rows avx2_add_rows
#define store_sums avx2_store_sums
#define split_weights avx2_split_weights
#define gather_pixels x86_gather_pixels
#define scatter_pixels x86_scatter_pixels
#include "resize_passes.h"
