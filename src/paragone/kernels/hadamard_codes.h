// Numbers to codes in eight bits that have one scale for a row or a token (hadamard.h).
#pragma once

#include <utility>
#include <vector>

#include "bytes.h"
#include "functions.h"
#include "hadamard.h"

namespace PARAGONE_LEVEL {

constexpr long TURN_REGISTERS = hadamard::RUN / W;

template <int STEP, size_t... I> PARAGONE_INLINE VF swapped(VF v, std::index_sequence<I...>) {
    return __builtin_shufflevector(v, v, (I ^ STEP)...);
}

// In each pair of lanes that are STEP apart, their sum and their difference.
template <int STEP> PARAGONE_INLINE VF sums_and_differences(VF v) {
    VF signs;
    for (long i = 0; i < W; i++) signs[i] = i & STEP ? -1.0f : 1.0f;
    return multiply_add(v, signs, swapped<STEP>(v, std::make_index_sequence<W>()));
}

// 64 numbers times the Hadamard matrix: sums and differences of those that are 32 apart, then of those 16 apart, and so
// on. The order of the steps is the same for registers of any width, and so is what comes out.
PARAGONE_INLINE void turn(const float* x, VF (&v)[TURN_REGISTERS]) {
#pragma GCC unroll 16
    for (long i = 0; i < TURN_REGISTERS; i++) v[i] = load(x + i * W);
#pragma GCC unroll 4
    for (long step = TURN_REGISTERS / 2; step; step /= 2)
#pragma GCC unroll 16
        for (long i = 0; i < TURN_REGISTERS; i++)
            if (!(i & step)) {
                VF a = v[i], b = v[i + step];
                v[i] = a + b;
                v[i + step] = a - b;
            }
#pragma GCC unroll 16
    for (long i = 0; i < TURN_REGISTERS; i++) {
        if constexpr (W > 8) v[i] = sums_and_differences<8>(v[i]);
        if constexpr (W > 4) v[i] = sums_and_differences<4>(v[i]);
        v[i] = sums_and_differences<2>(v[i]);
        v[i] = sums_and_differences<1>(v[i]);
    }
}

// D numbers, turned, to the next run; returns the largest of their sizes, or what is not a number if there is such.
static float turn_all(const float* x, long D, float* to) {
    VI most = {};
    for (long d = 0; d < D; d += hadamard::RUN) {
        float rest[hadamard::RUN] = {};
        const float* from = x + d;
        if (d + hadamard::RUN > D) from = (const float*)std::memcpy(rest, from, (D - d) * sizeof *x);
        VF v[TURN_REGISTERS];
        turn(from, v);
#pragma GCC unroll 16
        for (long i = 0; i < TURN_REGISTERS; i++) {
            most = larger(most, (VI)v[i] & 0x7fffffff);  // sizes compare as whole numbers do
            store(to + d + i * W, v[i]);
        }
    }
    return as_float(largest_of(most));
}

// A thread's own room for turned numbers, which stays: it is needed for every token.
static float* room_to_turn(long D) {
    static thread_local std::vector<float> room;
    if ((long)room.size() < hadamard::runs_of(D) * hadamard::RUN) room.resize(hadamard::runs_of(D) * hadamard::RUN);
    return room.data();
}

// A row of a weight to codes, D to the next run; returns its scale.
static float hadamard_row(const float* x, long D, uint8_t* codes) {
    float *turned = room_to_turn(D), scale = turn_all(x, D, turned) / 127.0f;
    for (long d = 0; d < hadamard::runs_of(D) * hadamard::RUN; d += W) {
        VF code = scale > 0 ? smaller(larger(load(turned + d) / splat(scale), splat(-127.0f)), splat(127.0f)) : VF{};
        store_bytes((int8_t*)codes + d, (VI)(code + WHOLE) - WHOLE_BITS + 128);
    }
    return scale;
}

// One token's activations.
static void hadamard_inputs(const float* x, long D, uint8_t* token) {
    constexpr int REGISTERS = 32 / W;
    float *turned = room_to_turn(D), top = turn_all(x, D, turned);
    float inverse = top <= 0x1p-120f ? 0.0f : 127.0f / top;  // which would be infinite
    VU sums = {};  // which may be anything where there is what is not a number
    long size = hadamard::runs_of(D) * hadamard::RUN;
    for (long d = 0; d < size; d += 32) {
        VI codes[REGISTERS];
#pragma GCC unroll 8
        for (int i = 0; i < REGISTERS; i++) {
            codes[i] = (VI)multiply_add(load(turned + d + i * W), inverse, splat(WHOLE)) - WHOLE_BITS;
            sums += (VU)codes[i];
        }
        store_bytes((int8_t*)token + d, codes);
    }
    uint32_t total = 0;
    for (long i = 0; i < W; i++) total += sums[i];
    hadamard::Ending ending{top / (127.0f * hadamard::RUN), (int32_t)(total * -128u)};
    std::memcpy(token + size, &ending, sizeof ending);
}

}  // namespace PARAGONE_LEVEL
