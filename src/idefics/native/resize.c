/* Resizes RGB pictures as Pillow does, bit for bit, and normalizes them into planes of float32.
 *
 * Two passes, along rows and along columns, each rounded to uint8; weights are integer multiples of 2^-22. The
 * arithmetic is that of Pillow's resampling (src/libImaging/Resample.c), which the released image processors call.
 * Keeps no state: many threads may call it at once.
 */

#include "api.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHT_BITS 22 /* fraction bits of a weight: 32, less 8 of a value, less 2 for filters that overshoot */
#define ROUNDING_HALF (1 << (WEIGHT_BITS - 1))
#define ROWS_AT_ONCE 4    /* rows resized together, so that each weight is loaded once for all */
#define TAPS_PER_VECTOR 4 /* pixels in one vector: four times red, green, blue, unused */
#define LANES 16
#define VECTORS_PER_BLOCK 4 /* independent sums of the pass along columns, so that none waits for the one before */
#define PI 3.14159265358979323846
#define INLINE static inline __attribute__((always_inline))

/* For each new position: the first old one that it reads, their count, and `most` weights, zeros at the end. */
typedef struct {
    int most;
    int *first, *count;
    int32_t *weights;
} ResizeWeights;

/* A weighted sum as a byte. */
INLINE uint8_t rounded(int32_t sum) {
    sum >>= WEIGHT_BITS;
    return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

#if defined(__x86_64__)
#include <immintrin.h>
#define PIXEL_SHUFFLE _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1)

#define AVX512_TARGET __attribute__((target("avx512f,avx512bw")))
INLINE AVX512_TARGET __m512i avx512_load_uint8(const uint8_t *from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
}
INLINE AVX512_TARGET __m512i avx512_load_pixels(const uint8_t *from) {
    return _mm512_cvtepu8_epi32(_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)from), PIXEL_SHUFFLE));
}
INLINE AVX512_TARGET __m512i avx512_multiply_add(__m512i sum, __m512i a, __m512i b) {
    return _mm512_add_epi32(sum, _mm512_mullo_epi32(a, b));
}
INLINE AVX512_TARGET void avx512_store_uint8(uint8_t *to, __m512i sum) {
    sum = _mm512_max_epi32(_mm512_srai_epi32(sum, WEIGHT_BITS), _mm512_setzero_si512());
    _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(sum));
}
/* Adds the four pixels of each of ROWS_AT_ONCE vectors: one pixel a row. */
INLINE AVX512_TARGET __m512i avx512_sum_pixels(const __m512i *x) {
    __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(x[0], x[1], 0x44), _mm512_shuffle_i32x4(x[0], x[1], 0xee));
    __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(x[2], x[3], 0x44), _mm512_shuffle_i32x4(x[2], x[3], 0xee));
    __m512i sum = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    return _mm512_add_epi32(sum, _mm512_set1_epi32(ROUNDING_HALF));
}
#define VARIANT(name) name##_avx512
#define TARGET AVX512_TARGET
#define vector_int32 __m512i
#define fill _mm512_set1_epi32
#define numbers(from) _mm512_loadu_si512(from)
#define load_uint8 avx512_load_uint8
#define load_pixels avx512_load_pixels
#define multiply_add avx512_multiply_add
#define sum_pixels avx512_sum_pixels
#define store_uint8 avx512_store_uint8
#include "resize_passes.h"

#define AVX2_TARGET __attribute__((target("avx2")))
typedef struct {
    __m256i low, high;
} Avx2Vector;
INLINE AVX2_TARGET Avx2Vector avx2_fill(int32_t value) {
    return (Avx2Vector){_mm256_set1_epi32(value), _mm256_set1_epi32(value)};
}
INLINE AVX2_TARGET Avx2Vector avx2_load_int32(const int32_t *from) {
    return (Avx2Vector){_mm256_loadu_si256((const __m256i *)from), _mm256_loadu_si256((const __m256i *)(from + 8))};
}
INLINE AVX2_TARGET Avx2Vector avx2_uint8_to_int32(__m128i some) {
    return (Avx2Vector){_mm256_cvtepu8_epi32(some), _mm256_cvtepu8_epi32(_mm_srli_si128(some, 8))};
}
INLINE AVX2_TARGET Avx2Vector avx2_load_uint8(const uint8_t *from) {
    return avx2_uint8_to_int32(_mm_loadu_si128((const __m128i *)from));
}
INLINE AVX2_TARGET Avx2Vector avx2_load_pixels(const uint8_t *from) {
    return avx2_uint8_to_int32(_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)from), PIXEL_SHUFFLE));
}
INLINE AVX2_TARGET Avx2Vector avx2_multiply_add(Avx2Vector sum, Avx2Vector a, Avx2Vector b) {
    return (Avx2Vector){_mm256_add_epi32(sum.low, _mm256_mullo_epi32(a.low, b.low)),
                        _mm256_add_epi32(sum.high, _mm256_mullo_epi32(a.high, b.high))};
}
INLINE AVX2_TARGET void avx2_store_uint8(uint8_t *to, Avx2Vector sum) {
    __m256i words =
        _mm256_packus_epi32(_mm256_srai_epi32(sum.low, WEIGHT_BITS), _mm256_srai_epi32(sum.high, WEIGHT_BITS));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    __m256i values = _mm256_packus_epi16(words, words);
    _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(_mm256_permute4x64_epi64(values, 0xd8)));
}
INLINE AVX2_TARGET __m128i avx2_sum_one_pixel(Avx2Vector x) {
    __m256i half = _mm256_add_epi32(x.low, x.high);
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
INLINE AVX2_TARGET Avx2Vector avx2_sum_pixels(const Avx2Vector *x) {
    __m256i half = _mm256_set1_epi32(ROUNDING_HALF);
    return (Avx2Vector){_mm256_add_epi32(_mm256_set_m128i(avx2_sum_one_pixel(x[1]), avx2_sum_one_pixel(x[0])), half),
                        _mm256_add_epi32(_mm256_set_m128i(avx2_sum_one_pixel(x[3]), avx2_sum_one_pixel(x[2])), half)};
}
#define VARIANT(name) name##_avx2
#define TARGET AVX2_TARGET
#define vector_int32 Avx2Vector
#define fill avx2_fill
#define numbers avx2_load_int32
#define load_uint8 avx2_load_uint8
#define load_pixels avx2_load_pixels
#define multiply_add avx2_multiply_add
#define sum_pixels avx2_sum_pixels
#define store_uint8 avx2_store_uint8
#include "resize_passes.h"
#endif

/* Any processor: loops that compilers vectorize. */
typedef struct {
    int32_t at[LANES];
} PortableVector;
INLINE PortableVector portable_fill(int32_t value) {
    PortableVector out;
    for (int i = 0; i < LANES; i++) out.at[i] = value;
    return out;
}
INLINE PortableVector portable_load_int32(const int32_t *from) {
    PortableVector out;
    memcpy(&out, from, sizeof out);
    return out;
}
INLINE PortableVector portable_load_uint8(const uint8_t *from) {
    PortableVector out;
    for (int i = 0; i < LANES; i++) out.at[i] = from[i];
    return out;
}
INLINE PortableVector portable_load_pixels(const uint8_t *from) {
    PortableVector out;
    for (int i = 0; i < LANES; i++) out.at[i] = i % 4 < 3 ? from[i / 4 * 3 + i % 4] : 0;
    return out;
}
INLINE PortableVector portable_multiply_add(PortableVector sum, PortableVector a, PortableVector b) {
    for (int i = 0; i < LANES; i++) sum.at[i] += a.at[i] * b.at[i];
    return sum;
}
INLINE PortableVector portable_sum_pixels(const PortableVector *x) {
    PortableVector out;
    for (int i = 0; i < LANES; i++) {
        const int32_t *row = x[i / 4].at;
        out.at[i] = row[i % 4] + row[4 + i % 4] + row[8 + i % 4] + row[12 + i % 4] + ROUNDING_HALF;
    }
    return out;
}
INLINE void portable_store_uint8(uint8_t *to, PortableVector sum) {
    for (int i = 0; i < LANES; i++) to[i] = rounded(sum.at[i]);
}
#define VARIANT(name) name##_portable
#define TARGET
#define vector_int32 PortableVector
#define fill portable_fill
#define numbers portable_load_int32
#define load_uint8 portable_load_uint8
#define load_pixels portable_load_pixels
#define multiply_add portable_multiply_add
#define sum_pixels portable_sum_pixels
#define store_uint8 portable_store_uint8
#include "resize_passes.h"

typedef struct {
    void (*resize_along_rows)(const ResizeWeights *, const int32_t *, const uint8_t *, size_t,
                              uint8_t *const[ROWS_AT_ONCE], int);
    void (*resize_along_columns)(const int32_t *, int, const uint8_t *, uint8_t *, size_t);
} ResizePasses;

static ResizePasses select_passes(int instruction_set) {
    switch (instruction_set) {
#if defined(__x86_64__)
    case AVX512: return (ResizePasses){resize_along_rows_avx512, resize_along_columns_avx512};
    case AVX2: return (ResizePasses){resize_along_rows_avx2, resize_along_columns_avx2};
#endif
    default: return (ResizePasses){resize_along_rows_portable, resize_along_columns_portable};
    }
}

/* The numbers of PIL.Image.Resampling; nearest, 0, is not a filter. */
enum { LANCZOS = 1, BILINEAR = 2, BICUBIC = 3, BOX = 4, HAMMING = 5 };

static double sinc(double x) { return x == 0.0 ? 1.0 : sin(x * PI) / (x * PI); }

static double filter_support(int filter) {
    return filter == LANCZOS ? 3.0 : filter == BICUBIC ? 2.0 : filter == BOX ? 0.5 : 1.0;
}

static double filter_weight(int filter, double x) {
    if (filter == LANCZOS) return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
    if (filter == BOX) return -0.5 < x && x <= 0.5 ? 1.0 : 0.0;
    x = fabs(x);
    if (filter == BICUBIC) { /* Keys, a = -1/2 */
        if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
        return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 : 0.0;
    }
    if (x >= 1.0) return 0.0;
    /* Hamming's constants are rounded to float, as in Pillow. */
    return filter == HAMMING ? sinc(x) * (0.54f + 0.46f * cos(x * PI)) : 1.0 - x;
}

static void free_weights(ResizeWeights *plan) {
    free(plan->first);
    free(plan->count);
    free(plan->weights);
}

/* The weights of a pass from `old` to `new` positions. -> 0 without memory, else 1. */
static int compute_weights(ResizeWeights *plan, int filter, int old, int new) {
    double scale = (double)old / new, stretch = scale < 1.0 ? 1.0 : scale;
    double support = filter_support(filter) * stretch;
    int most = (int)ceil(support) * 2 + 1;
    plan->most = (most + TAPS_PER_VECTOR - 1) / TAPS_PER_VECTOR * TAPS_PER_VECTOR;
    plan->first = malloc(sizeof(int) * new);
    plan->count = malloc(sizeof(int) * new);
    plan->weights = calloc((size_t)new * plan->most, sizeof(int32_t));
    double *exact = malloc(sizeof(double) * most);
    int succeeded = plan->first && plan->count && plan->weights && exact;
    for (int position = 0; succeeded && position < new; position++) {
        double center = (position + 0.5) * scale, sum = 0.0, unit = 1.0 / stretch;
        int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
        first = first < 0 ? 0 : first;
        end = end > old ? old : end;
        for (int i = 0; i < end - first; i++)
            sum += exact[i] = filter_weight(filter, (i + first - center + 0.5) * unit);
        int32_t *weights = plan->weights + (size_t)position * plan->most;
        for (int i = 0; i < end - first; i++) {
            double whole = (sum == 0.0 ? exact[i] : exact[i] / sum) * (1 << WEIGHT_BITS);
            weights[i] = (int32_t)(whole < 0 ? whole - 0.5 : whole + 0.5);
        }
        plan->first[position] = first;
        plan->count[position] = end - first;
    }
    free(exact);
    if (!succeeded) free_weights(plan);
    return succeeded;
}

/* Each weight three times, for red, green and blue, and a zero. -> NULL without memory. */
static int32_t *interleave_weights(const ResizeWeights *plan, int num_positions) {
    size_t weights = (size_t)num_positions * plan->most;
    int32_t *interleaved_weights = calloc(weights * 4, sizeof(int32_t));
    for (size_t i = 0; interleaved_weights && i < weights; i++)
        for (int channel = 0; channel < 3; channel++) interleaved_weights[4 * i + channel] = plan->weights[i];
    return interleaved_weights;
}

/* (h, old, 3) -> (h, new, 3). -> 0 without memory, else 1. */
static int resize_rows(ResizePasses passes, int filter, const uint8_t *in, int old, int height, uint8_t *out, int new) {
    ResizeWeights plan;
    if (!compute_weights(&plan, filter, old, new)) return 0;
    size_t length = 3 * (size_t)old, stride = length + 3 * (size_t)plan.most + LANES;
    int32_t *interleaved_weights = interleave_weights(&plan, new);
    uint8_t *rows = calloc(ROWS_AT_ONCE, stride), *beyond = malloc(3 * (size_t)new);
    int succeeded = interleaved_weights && rows && beyond;
    for (int y = 0; succeeded && y < height; y += ROWS_AT_ONCE) {
        uint8_t *to[ROWS_AT_ONCE];
        for (int row = 0; row < ROWS_AT_ONCE; row++) {
            int exists = y + row < height;
            if (exists) memcpy(rows + row * stride, in + (y + row) * length, length);
            to[row] = exists ? out + (y + row) * 3 * (size_t)new : beyond;
        }
        passes.resize_along_rows(&plan, interleaved_weights, rows, stride, to, new);
    }
    free(interleaved_weights);
    free(rows);
    free(beyond);
    free_weights(&plan);
    return succeeded;
}

/* (old, length) -> (new, length). -> 0 without memory, else 1. */
static int resize_columns(ResizePasses passes, int filter, const uint8_t *in, int old, size_t length, uint8_t *out,
                          int new) {
    ResizeWeights plan;
    if (!compute_weights(&plan, filter, old, new)) return 0;
    for (int y = 0; y < new; y++)
        passes.resize_along_columns(plan.weights + (size_t)y * plan.most, plan.count[y], in + plan.first[y] * length,
                                    out + y * length, length);
    free_weights(&plan);
    return 1;
}

int idefics_resize(int instruction_set, int filter, const uint8_t *in, int width, int height, uint8_t *out,
                   int new_width, int new_height) {
    ResizePasses passes = select_passes(instruction_set);
    size_t length = 3 * (size_t)width, new_length = 3 * (size_t)new_width;
    if (width == new_width && height == new_height) return memcpy(out, in, length * height) != NULL;
    if (height == new_height) return resize_rows(passes, filter, in, width, height, out, new_width);
    if (width == new_width) return resize_columns(passes, filter, in, height, length, out, new_height);
    uint8_t *intermediate = malloc(new_length * height);
    int succeeded = intermediate && resize_rows(passes, filter, in, width, height, intermediate, new_width)
                    && resize_columns(passes, filter, intermediate, height, new_length, out, new_height);
    free(intermediate);
    return succeeded;
}

void idefics_normalize(const uint8_t *in, size_t stride, int height, int width, const float *table, float *out) {
    size_t plane = (size_t)height * width;
    for (int y = 0; y < height; y++) {
        const uint8_t *from = in + y * stride;
        float *to = out + y * (size_t)width;
        for (int x = 0; x < width; x++, from += 3) {
            to[x] = table[from[0]];
            to[plane + x] = table[256 + from[1]];
            to[2 * plane + x] = table[512 + from[2]];
        }
    }
}
