/* Resizes RGB pictures as Pillow does, bit for bit, and normalizes them into planes of float32.
 *
 * Two passes, along rows and along columns, each rounded to uint8; weights are integer multiples of 2^-22. The
 * arithmetic is that of Pillow's resampling (src/libImaging/Resample.c), which the released image processors call.
 * Both passes add weighted rows of bytes. Along rows these are columns of pixels: of STRIP_ROWS rows at a time, which
 * are transposed first. Rows may come in parts. Those between the passes are kept as long as the second one reads them,
 * so that they stay in the caches. A resize belongs to one thread; nothing is shared between two of them.
 */

#include "api.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHT_BITS 22 /* fraction bits of a weight: 32, less 8 of a value, less 2 for filters that overshoot */
#define ROUNDING_HALF (1 << (WEIGHT_BITS - 1))
#define TAPS 4                       /* old positions that are added together */
#define STRIP_ROWS 16                /* rows that are resized together */
#define STRIP_BYTES (4 * STRIP_ROWS) /* a column of a strip: red, green, blue, unused */
#define PI 3.14159265358979323846
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

/* For each new position: the first old one that it reads, their count, and `most` weights, zeros at the end. */
typedef struct {
    int most; /* a multiple of TAPS */
    int *first, *count;
    int32_t *weights; /* as prepare_weights leaves them */
} ResizeWeights;

#if defined(__x86_64__)
#include "resize_x86.h"
#endif

/* Any processor: loops that compilers vectorize. */
#define PORTABLE_BLOCK 16
typedef struct {
    int32_t at[PORTABLE_BLOCK];
} PortableSums;
INLINE PortableSums portable_no_sums(void) {
    PortableSums sums;
    for (int i = 0; i < PORTABLE_BLOCK; i++) sums.at[i] = ROUNDING_HALF;
    return sums;
}
INLINE void portable_add_rows(PortableSums *sums, const uint8_t *a, const uint8_t *b, const uint8_t *c,
                              const uint8_t *d, const int32_t *weights) {
    for (int i = 0; i < PORTABLE_BLOCK; i++)
        sums->at[i] += a[i] * weights[0] + b[i] * weights[1] + c[i] * weights[2] + d[i] * weights[3];
}
INLINE void portable_store_sums(uint8_t *to, const PortableSums *sums) {
    for (int i = 0; i < PORTABLE_BLOCK; i++) {
        int32_t value = sums->at[i] >> WEIGHT_BITS;
        to[i] = value < 0 ? 0 : value > 255 ? 255 : value;
    }
}
INLINE void portable_gather_pixels(const uint8_t *const *rows, int x, int pixel_bytes, uint8_t *strip) {
    for (int i = 0; i < TAPS; i++)
        for (int row = 0; row < STRIP_ROWS; row++)
            memcpy(strip + i * STRIP_BYTES + 4 * row, rows[row] + pixel_bytes * (size_t)(x + i), 4);
}
INLINE void portable_scatter_pixels(const uint8_t *strip, uint8_t *const *rows, int x) {
    for (int row = 0; row < STRIP_ROWS; row++)
        for (int i = 0; i < TAPS; i++) memcpy(rows[row] + 3 * (size_t)(x + i), strip + i * STRIP_BYTES + 4 * row, 3);
}
INLINE void portable_split_weights(int32_t *four) { (void)four; }
#define VARIANT(name) name##_portable
#define TARGET
#define BLOCK PORTABLE_BLOCK
#define Sums PortableSums
#define no_sums portable_no_sums
#define add_rows portable_add_rows
#define store_sums portable_store_sums
#define split_weights portable_split_weights
#define gather_pixels portable_gather_pixels
#define scatter_pixels portable_scatter_pixels
#include "resize_passes.h"

typedef struct {
    void (*prepare_weights)(int32_t *, size_t);
    void (*resize_along_rows)(const ResizeWeights *, const uint8_t *const[STRIP_ROWS], int, int, uint8_t *,
                              uint8_t *const[STRIP_ROWS], int);
    void (*resize_along_columns)(const int32_t *, int, const uint8_t *const *, uint8_t *, size_t);
} ResizePasses;

#define PASSES(variant)                                                                                                \
    (ResizePasses) { prepare_weights_##variant, resize_along_rows_##variant, resize_along_columns_##variant }

static ResizePasses select_passes(int instruction_set) {
    switch (instruction_set) {
#if defined(__x86_64__)
    case AVX512_VNNI: return PASSES(vnni);
    case AVX2: return PASSES(avx2);
#endif
    default: return PASSES(portable);
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

/* The weights of a pass from `old` to `new` positions. -> 0 without memory, else 1. */
static int compute_weights(ResizeWeights *plan, int filter, int old, int new) {
    double scale = (double)old / new, stretch = scale < 1.0 ? 1.0 : scale;
    double support = filter_support(filter) * stretch;
    int most = (int)ceil(support) * 2 + 1;
    plan->most = (most + TAPS - 1) / TAPS * TAPS;
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
    return succeeded;
}

static void free_weights(ResizeWeights *plan) {
    free(plan->first);
    free(plan->count);
    free(plan->weights);
}

/* One picture on its way. What is not needed is NULL. */
typedef struct {
    ResizePasses passes;
    int width, height, new_width, new_height;
    ResizeWeights along_rows, along_columns;
    uint8_t *out;         /* (new_height, new_width, 3) */
    uint8_t *strip;       /* (width and the most weights, STRIP_BYTES) */
    uint8_t *spare;       /* a row that is not kept */
    uint8_t *window;      /* the rows `start` to `end` after the first pass, `stride` bytes each */
    const uint8_t **rows; /* of the window: those of one new row */
    size_t length, stride;
    int start, end, done; /* done: the number of rows of `out` */
} Resize;

#define SMALLEST_STRIDE 64 /* no block of resize_along_columns is larger */

void *idefics_resize_begin(int instruction_set, int filter, int width, int height, uint8_t *out, int new_width,
                           int new_height) {
    Resize *resize = calloc(1, sizeof *resize);
    if (!resize) return NULL;
    size_t length = 3 * (size_t)new_width, stride = length < SMALLEST_STRIDE ? SMALLEST_STRIDE : length;
    *resize = (Resize){
        .passes = select_passes(instruction_set),
        .width = width,
        .height = height,
        .new_width = new_width,
        .new_height = new_height,
        .out = out,
        .length = length,
        .stride = stride,
    };
    int succeeded = (resize->spare = malloc(stride)) != NULL;
    if (width != new_width) {
        ResizeWeights *plan = &resize->along_rows;
        succeeded = succeeded && compute_weights(plan, filter, width, new_width)
                    && (resize->strip = calloc((size_t)width + plan->most, STRIP_BYTES));
        if (succeeded) resize->passes.prepare_weights(plan->weights, (size_t)new_width * plan->most);
    }
    if (height != new_height) {
        ResizeWeights *plan = &resize->along_columns;
        succeeded = succeeded && compute_weights(plan, filter, height, new_height)
                    && (resize->window = calloc((size_t)plan->most + STRIP_ROWS, stride))
                    && (resize->rows = malloc(sizeof *resize->rows * plan->most));
        if (succeeded) resize->passes.prepare_weights(plan->weights, (size_t)new_height * plan->most);
    }
    if (succeeded) return resize;
    idefics_resize_end(resize);
    return NULL;
}

/* Computes the rows of `out` whose old rows are all in the window, and drops those that no later one reads. */
static void resize_window(Resize *resize) {
    const ResizeWeights *plan = &resize->along_columns;
    for (; resize->done < resize->new_height; resize->done++) {
        int first = plan->first[resize->done], count = plan->count[resize->done];
        if (first + count > resize->end) break;
        for (int tap = 0; tap < plan->most; tap++) {
            int row = first + tap < resize->end ? first + tap : resize->end - 1;
            resize->rows[tap] = resize->window + (row - resize->start) * resize->stride;
        }
        uint8_t *out = resize->out + resize->done * resize->length;
        const int32_t *weights = plan->weights + (size_t)resize->done * plan->most;
        uint8_t *to = resize->length < resize->stride ? resize->spare : out;
        resize->passes.resize_along_columns(weights, count, resize->rows, to, resize->stride);
        if (to != out) memcpy(out, to, resize->length);
    }
    int keep = resize->done < resize->new_height ? plan->first[resize->done] : resize->end;
    keep = keep < resize->end ? keep : resize->end;
    memmove(resize->window, resize->window + (keep - resize->start) * resize->stride,
            (resize->end - keep) * resize->stride);
    resize->start = keep;
}

static void copy_pixels(const uint8_t *from, int pixel_bytes, int count, uint8_t *to) {
    if (pixel_bytes == 3)
        memcpy(to, from, 3 * (size_t)count);
    else
        for (int x = 0; x < count; x++) memcpy(to + 3 * (size_t)x, from + 4 * (size_t)x, 3);
}

void idefics_resize_add(void *started, const uint8_t *rows, int count, int pixel_bytes) {
    Resize *resize = started;
    size_t length = pixel_bytes * (size_t)resize->width;
    for (int y = 0; y < count; y += STRIP_ROWS) {
        const uint8_t *in[STRIP_ROWS];
        uint8_t *to[STRIP_ROWS];
        int many = count - y < STRIP_ROWS ? count - y : STRIP_ROWS;
        for (int row = 0; row < STRIP_ROWS; row++) {
            in[row] = rows + (y + (row < many ? row : 0)) * length;
            to[row] = row >= many      ? resize->spare
                      : resize->window ? resize->window + (resize->end - resize->start + row) * resize->stride
                                       : resize->out + (resize->end + row) * resize->length;
        }
        if (resize->strip)
            resize->passes.resize_along_rows(&resize->along_rows, in, pixel_bytes, resize->width, resize->strip, to,
                                             resize->new_width);
        else
            for (int row = 0; row < many; row++) copy_pixels(in[row], pixel_bytes, resize->width, to[row]);
        resize->end += many;
        if (resize->window) resize_window(resize);
    }
}

void idefics_resize_end(void *started) {
    Resize *resize = started;
    free_weights(&resize->along_rows);
    free_weights(&resize->along_columns);
    free(resize->strip);
    free(resize->spare);
    free(resize->window);
    free(resize->rows);
    free(resize);
}

/* Results are larger than the caches: x86-64 writes them past those, without reading what was there. */
void idefics_normalize(const uint8_t *in, size_t stride, int height, int width, const float *table, float *out) {
    size_t plane = (size_t)height * width;
    for (int y = 0; y < height; y++) {
        const uint8_t *from = in + y * stride;
        float *to = out + y * (size_t)width;
        int x = 0;
#if defined(__x86_64__)
        for (; width % 4 == 0 && (uintptr_t)out % sizeof(__m128) == 0 && x < width; x += 4, from += 12)
            for (int channel = 0; channel < 3; channel++) {
                const float *number = table + 256 * channel;
                _mm_stream_ps(to + channel * plane + x,
                              _mm_setr_ps(number[from[channel]], number[from[3 + channel]], number[from[6 + channel]],
                                          number[from[9 + channel]]));
            }
#endif
        for (; x < width; x++, from += 3) {
            to[x] = table[from[0]];
            to[plane + x] = table[256 + from[1]];
            to[2 * plane + x] = table[512 + from[2]];
        }
    }
#if defined(__x86_64__)
    _mm_sfence(); /* before another thread reads them */
#endif
}
