// Which instruction level runs here.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(PARAGONE_X86)
#include <cpuid.h>
#endif
#if defined(PARAGONE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "compress.h"
#include "hadamard.h"

namespace {

#if defined(PARAGONE_X86)
// Whether a level gives the same products as another.
bool same_products(const Kernels& level, const Kernels& other) {
    constexpr long D = 128, M = 40, ROWS = 32, BYTES = 64 * 16 / 2 + 2 * 16 * 2;  // of a block in four bits
    uint32_t state = 1;
    auto next = [&] { return (float)((state = state * 1664525 + 1013904223) >> 8) / (1 << 24) - 0.5f; };
    alignas(64) static uint8_t panel[D / 64 * BYTES];
    alignas(64) static Quantised quantised[M * D / 64];
    alignas(64) static Word words[M * D];
    alignas(64) static uint8_t panels[ROWS / 16 * compressed::panel_bytes(D)];
    std::vector<Outlier> outliers;
    std::vector<int64_t> lists;
    std::vector<Word> room(std::max({level.compressed_room(D), other.compressed_room(D), level.packed_words.room}));
    alignas(64) static float x[M * D], y[2][M * ROWS], z[2][2][M * 16];
    for (float& number : x) number = next();
    for (long block = 0; block < D / 64; block++)
        for (long i = 0; i < BYTES; i++)
            panel[block * BYTES + i] = i < 512 ? (uint8_t)(state = state * 1664525 + 1013904223, state >> 24)
                                       : i % 2 ? 0x34 : (uint8_t)i;  // scales of about a quarter
    for (long m = 0; m < M; m++) {
        other.quantize_inputs(x + m * D, D, quantised + m * D / 64);
        other.to_words(x + m * D, D, words + m * (other.pairs ? D / 2 : D));
    }
    for (long first = 0; first < ROWS; first += 16) {
        uint16_t rows[16][D];
        const uint8_t* each[16];
        for (long r = 0; r < 16; r++) {
            float row[D];
            for (float& number : row) number = next();
            other.narrow(row, D, rows[r]);
            each[r] = (const uint8_t*)rows[r];
        }
        lists.push_back((int64_t)outliers.size());
        compressed::compress_panel(each, 16, D, panels + first / 16 * compressed::panel_bytes(D), outliers);
    }
    alignas(64) static uint8_t by_row[hadamard::panel_bytes(D)], tokens[M * hadamard::token_bytes(D)];
    for (long r = 0; r < 16; r++) {
        uint8_t codes[D];
        hadamard::put_row(by_row, r, D, codes, other.hadamard_row(x + r * D, D, codes));
    }
    for (long m = 0; m < M; m++) other.hadamard_inputs(x + m * D, D, tokens + m * hadamard::token_bytes(D));
    const Kernels* both[] = {&level, &other};
    for (int i = 0; i < 2; i++) {
        both[i]->packed_linear({{4, false, false, 1.0f}, panel, 16, D, sizeof panel}, 0, 1, quantised, M, {z[i][0], 16, nullptr, false});
        both[i]->hadamard_linear({by_row, 16, D}, 0, 1, tokens, M, {z[i][1], 16, nullptr, false});
        both[i]->compressed_linear({panels, lists.data(), outliers.data(), ROWS, D}, 0, ROWS / 16, words, M, false,
                                   {y[i], ROWS, nullptr, false}, room.data());
    }
    if (M >= level.packed_words.least_tokens) {
        alignas(64) static Word codes[(M + 15) / 16 * 16 * D / 2];
        alignas(64) static float rounded[M * 16];
        for (long m = 0; m < M; m++) level.packed_words.inputs(x + m * D, D, m, M, codes);
        level.packed_words.linear({{4, false, false, 1.0f}, panel, 16, D, sizeof panel}, 0, 1, codes, M, {rounded, 16, nullptr, false},
                                  room.data());
        for (long i = 0; i < M * 16; i++)
            if (!(std::fabs(rounded[i] - z[1][0][i]) < 0.1f)) return false;  // of sums of about 7
    }
    for (long i = 0; i < M * ROWS; i++)
        if (!(std::fabs(y[0][i] - y[1][i]) < 1e-4f)) return false;
    return !std::memcmp(z[0], z[1], sizeof z[0]);
}

// What was written without a processor that has its instructions is not taken on trust.
bool agree(const Kernels& level, const Kernels& other) {
    if (same_products(level, other)) return true;
    refused_levels().push_back(&level);
    return false;
}

#endif

#if defined(PARAGONE_AVX_VNNI)
bool has_avx_vnni() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}
#endif

#if defined(PARAGONE_AMX)
// Whether the processor has tiles for bytes and bfloat16, and what their weights are made with, and the system lets this
// process use them.
bool has_tiles() {
    constexpr unsigned AMX = 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25;  // BF16, AVX512-FP16, TILE, INT8
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX) == AMX &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}
#endif

// What the processor has, the best first.
std::vector<const Kernels*> find_levels() {
    const char* wanted = std::getenv("PARAGONE_KERNELS");
    std::vector<const Kernels*> here;
#if defined(PARAGONE_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512cd")) {
#if defined(PARAGONE_BF16)
        if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
#if defined(PARAGONE_AMX)
            if (has_tiles() && agree(KERNELS_AMX, KERNELS_AVX512_BF16)) here.push_back(&KERNELS_AMX);
#endif
            // Intel's cores take four times as long for a product of pairs of bfloat16 as for one of floats, which is
            // half as many; AMD's as long.
            if (!__builtin_cpu_is("intel")) here.push_back(&KERNELS_AVX512_BF16);
            const Kernels& software = KERNELS_AMX_IN_SOFTWARE;
            if (wanted && !std::strcmp(wanted, software.name) && agree(software, KERNELS_AVX512_BF16))
                here.push_back(&software);
        }
#endif
#if defined(PARAGONE_VNNI)
        if (__builtin_cpu_supports("avx512vnni")) here.push_back(&KERNELS_AVX512_VNNI);
#endif
#if defined(PARAGONE_BF16)
        if (__builtin_cpu_is("intel") && __builtin_cpu_supports("avx512bf16")) here.push_back(&KERNELS_AVX512_BF16);
#endif
        here.push_back(&KERNELS_AVX512);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")) {
#if defined(PARAGONE_AVX_VNNI)
        if (has_avx_vnni() && agree(KERNELS_AVX_VNNI, KERNELS_AVX2)) here.push_back(&KERNELS_AVX_VNNI);
#endif
        here.push_back(&KERNELS_AVX2);
    }
#endif
    here.push_back(&KERNELS_BASE);
    return here;
}

const Kernels& pick() {
    if (const char* wanted = std::getenv("PARAGONE_KERNELS"))
        for (const Kernels* level : levels)
            if (!std::strcmp(level->name, wanted)) return *level;
    return *levels.front();
}

}  // namespace

std::vector<const Kernels*>& refused_levels() {
    static std::vector<const Kernels*> refused;
    return refused;
}

const std::vector<const Kernels*> levels = find_levels();
const Kernels& best = pick();
