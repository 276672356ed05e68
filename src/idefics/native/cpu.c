/* Which instruction sets this processor has, and the version of this library's interface. */
#include "api.h"

#include <stdatomic.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(__x86_64__)
static int has_f16c(void) { /* older compilers do not know it by name */
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
           && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static int has_avx512_vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

static int has_bf16(void) { /* as has_f16c */
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1 << 5);
}
#endif

static int find_instruction_set(int instruction_set) {
    switch (instruction_set) {
    case PORTABLE: return 1;
#if defined(__x86_64__)
    case AVX2: return has_avx2();
    case AVX512: return has_avx512();
    case AVX512_VNNI: return has_avx512_vnni();
    case AVX512_BF16: return has_avx512_vnni() && has_bf16();
#elif defined(__aarch64__) && defined(__linux__)
    case NEON_DOTPROD: return (getauxval(AT_HWCAP) & (1 << 20)) != 0; /* HWCAP_ASIMDDP */
#elif defined(__aarch64__)
    case NEON_DOTPROD: return 1; /* every Mac with an Arm processor */
#endif
    default: return 0;
    }
}

/* Remembered: in a virtual machine each CPUID instruction takes tens of microseconds. */
int idefics_has_instruction_set(int instruction_set) {
    static atomic_int found[NEON_DOTPROD + 1]; /* 0: not known yet, 1: no, 2: yes */
    if (instruction_set < 0 || instruction_set > NEON_DOTPROD) return 0;
    if (!atomic_load(&found[instruction_set]))
        atomic_store(&found[instruction_set], 1 + (find_instruction_set(instruction_set) != 0));
    return atomic_load(&found[instruction_set]) == 2;
}

int idefics_struct_version(void) { return STRUCT_VERSION; }
