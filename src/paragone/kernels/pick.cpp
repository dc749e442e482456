// Which instruction level runs here.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "table.h"

namespace {

const Kernels& pick() {
    const char* wanted = std::getenv("PARAGONE_KERNELS");
    std::vector<const Kernels*> here;
#if defined(PARAGONE_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512cd")) {
#if defined(PARAGONE_BF16)
        if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"))
            here.push_back(&KERNELS_AVX512_BF16);
#endif
#if defined(PARAGONE_VNNI)
        if (__builtin_cpu_supports("avx512vnni")) here.push_back(&KERNELS_AVX512_VNNI);
#endif
        here.push_back(&KERNELS_AVX512);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        here.push_back(&KERNELS_AVX2);
#endif
    here.push_back(&KERNELS_BASE);
    if (wanted && *wanted)
        for (const Kernels* level : here)
            if (!std::strcmp(level->name, wanted)) return *level;
    return *here.front();
}

}  // namespace

const Kernels& best = pick();
