/* Weights of four bits and their scales into float32, in one pass: level * scale, rounded once, as torch does it.

   Once for each instruction set. C11; keeps no state. */

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define GROUP 32 /* neighbouring weights that share a scale, two in a byte, the even one in the low half */
#define ZERO 8   /* the level of zero */
#define SHARE 16 /* outputs that a thread takes */
#define INLINE static inline __attribute__((always_inline))

/* idefics/quant/passes.py has the same fields in the same order. */
typedef struct {
    const uint8_t *levels; /* (outputs, groups * GROUP / 2) */
    const void *scales;    /* (outputs, groups) bfloat16 or float32 */
    float *out;            /* (outputs, inputs) */
    int64_t outputs, inputs;
    int bfloat16; /* whether scales are */
    int width;    /* of vectors: an answer of idefics_passes_width */
} Widening;

INLINE float scale_at(const Widening *all, int64_t at) {
    if (!all->bfloat16) return ((const float *)all->scales)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)all->scales)[at] << 16;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

INLINE void plain_group(const uint8_t *levels, float scale, float *out) {
    for (int i = 0; i < GROUP / 2; i++) {
        out[2 * i] = (float)((levels[i] & 15) - ZERO) * scale;
        out[2 * i + 1] = (float)((levels[i] >> 4) - ZERO) * scale;
    }
}

typedef void Group(const uint8_t *levels, float scale, float *out);
INLINE void widen_output(const Widening *all, int64_t output, Group *widen_group) {
    int64_t whole = all->inputs / GROUP, groups = (all->inputs + GROUP - 1) / GROUP;
    const uint8_t *levels = all->levels + output * groups * (GROUP / 2);
    float *out = all->out + output * all->inputs;
    for (int64_t group = 0; group < whole; group++)
        widen_group(levels + group * (GROUP / 2), scale_at(all, output * groups + group), out + group * GROUP);
    if (whole < groups) {
        float last[GROUP];
        widen_group(levels + whole * (GROUP / 2), scale_at(all, output * groups + whole), last);
        memcpy(out + whole * GROUP, last, sizeof(float) * (all->inputs - whole * GROUP));
    }
}

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f")))

INLINE AVX2 void avx2_group(const uint8_t *levels, float scale, float *out) {
    const __m256 zero = _mm256_set1_ps(ZERO), by = _mm256_set1_ps(scale);
    for (int i = 0; i < GROUP / 2; i += 8) {
        __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(levels + i)));
        __m256 even = _mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(15)));
        __m256 odd = _mm256_cvtepi32_ps(_mm256_srli_epi32(bytes, 4));
        even = _mm256_mul_ps(_mm256_sub_ps(even, zero), by);
        odd = _mm256_mul_ps(_mm256_sub_ps(odd, zero), by);
        __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
        _mm256_storeu_ps(out + 2 * i, _mm256_permute2f128_ps(low, high, 0x20));
        _mm256_storeu_ps(out + 2 * i + 8, _mm256_permute2f128_ps(low, high, 0x31));
    }
}
/* Four bits choose one of a group's sixteen weights, which lie in a register. */
INLINE AVX512 void avx512_group(const uint8_t *levels, float scale, float *out) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    __m512 weights = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    weights = _mm512_mul_ps(weights, _mm512_set1_ps(scale));
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)levels));
    __m512 even = _mm512_permutexvar_ps(bytes, weights);
    __m512 odd = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), weights);
    _mm512_storeu_ps(out, _mm512_permutex2var_ps(even, first, odd));
    _mm512_storeu_ps(out + 16, _mm512_permutex2var_ps(even, second, odd));
}
#endif

typedef void Widen(const Widening *, int64_t output);
static void widen_plain(const Widening *all, int64_t output) { widen_output(all, output, plain_group); }
#if defined(__x86_64__)
AVX2 static void widen_avx2(const Widening *all, int64_t output) { widen_output(all, output, avx2_group); }
AVX512 static void widen_avx512(const Widening *all, int64_t output) { widen_output(all, output, avx512_group); }
static Widen *const WIDENS[] = {widen_plain, widen_avx2, widen_avx512};
#else
static Widen *const WIDENS[] = {widen_plain};
#endif

/* The widest vectors of this machine, but no wider than `most`: 2 for AVX-512, 1 for AVX2, 0 for what any machine has. */
int idefics_passes_width(int most) {
#if defined(__x86_64__)
    int width = __builtin_cpu_supports("avx512f") ? 2 : __builtin_cpu_supports("avx2") ? 1 : 0;
    return width < most ? width : most;
#else
    return (void)most, 0;
#endif
}

typedef struct {
    const Widening *all;
    atomic_llong next;
} Work;

/* What each thread does: the next few outputs, until none is left. */
static void take_part(void *shared) {
    Work *work = shared;
    const Widening *all = work->all;
    for (int64_t start; (start = atomic_fetch_add(&work->next, SHARE)) < all->outputs;)
        for (int64_t output = start; output < start + SHARE && output < all->outputs; output++)
            WIDENS[all->width](all, output);
}

/* `parallel` is GOMP_parallel of the OpenMP that torch has loaded; it is not looked at for one thread. */
void idefics_widen(const Widening *all, int threads, void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    Work work = {.all = all};
    if (threads > 1 && all->outputs > SHARE)
        parallel(take_part, &work, threads, 0);
    else
        take_part(&work);
}
