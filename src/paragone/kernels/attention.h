// Attention of one query token over slots in blocks, and how slots are written.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "attention_pairs.h"
#include "slots.h"

namespace PARAGONE_LEVEL {

// Queries of a group that share one reading of the keys: as many sums as fit into the registers.
constexpr int QUERIES = W == 16 ? 4 : 2;

// Scores of G queries (G, E) with N slots.
template <class T, int G, int N>
PARAGONE_INLINE void dots(const float* q, const T* const (&keys)[N], long E, float* scores, long stride) {
    VF sums[G][N] = {};
    long e = 0;
    for (; e + W <= E; e += W)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            VF key = load(keys[n] + e);
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) sums[g][n] = multiply_add(load(q + g * E + e), key, sums[g][n]);
        }
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
        if constexpr (N == SLOTS) sum4(sums[g][0], sums[g][1], sums[g][2], sums[g][3], scores + g * stride);
        else scores[g * stride] = sum(sums[g][0]);
    if (e == E && std::is_same_v<T, uint16_t>) return;
    for (int g = 0; g < G; g++)
        for (int n = 0; n < N; n++) {
            float rest = 0;
            for (long i = e; i < E; i++) rest += q[g * E + i] * number(keys[n] + i);
            scores[g * stride + n] = (scores[g * stride + n] + rest) * scale_of(keys[n], E);
        }
}

template <class T, int G>
static void scores_of(const float* q, const Slots& slots, long first, long S, long E, float* scores, long stride) {
    keys_in_turn<T>(slots, first, S, [&]<int N>(const T* const (&keys)[N], long s) {
        dots<T, G, N>(q, keys, E, scores + s, stride);
    });
}

// Sums of N vectors of the values, from `e` on, weighted for G queries.
template <class T, int G, int N>
static void mix(const float* weights, long stride, const Slots& slots, long first, long S, long E, long e, float* out) {
    VF sums[G][N] = {};
    Reading reading(slots, first, S);
    for (long s = 0, number = reading.count(); s < S; number++) {
        Run<T> run = reading.run<T>(slots.values, first + s, S - s, number);
        for (long i = 0; i < run.count; i++) {
            const T* value = run[i];
            run.fetch(i, 1);
            VF parts[N];
            for (int n = 0; n < N; n++) parts[n] = load(value + e + n * W);
            float scale = scale_of(value, E);
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) {
                VF weight = splat(weights[g * stride + s + i] * scale);
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) sums[g][n] = multiply_add(weight, parts[n], sums[g][n]);
            }
        }
        s += run.count;
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) store(out + g * E + e + n * W, sums[g][n]);
}

template <class T, int G>
static void values_of(const float* weights, long stride, const Slots& slots, long first, long S, long E, float* out) {
    long e = 0;
    for (; e + SLOTS * W <= E; e += SLOTS * W) mix<T, G, SLOTS>(weights, stride, slots, first, S, E, e, out);
    for (; e + W <= E; e += W) mix<T, G, 1>(weights, stride, slots, first, S, E, e, out);
    Reading reading(slots, first, S);
    for (; e < E; e++)
        for (int g = 0; g < G; g++) {
            float total = 0;
            for (long s = 0; s < S; s++) {
                const T* value = reading.run<T>(slots.values, first + s, 1, 0)[0];
                total += weights[g * stride + s] * scale_of(value, E) * number(value + e);
            }
            out[g * E + e] = total;
        }
}

// Turns `stride` scores into e^(score - top); returns their sum.
static float weights_of(float* row, long stride, float top) {
    VF sums = {};
    for (long s = 0; s < stride; s += W) {
        VF p = exp(load(row + s) - top);
        store(row + s, p);
        sums += p;
    }
    return sum(sums);
}

template <class T, int G>
static void attend_group(const float* q, const Slots& slots, long first, long S, long E, Scoring scoring,
                         float* scores, float* out, float* largest, float* total) {
    long stride = (S + W - 1) / W * W;
#if defined(__AVX512BF16__)
    constexpr bool IN_PAIRS = std::is_same_v<T, uint16_t>;
    auto score = IN_PAIRS ? scores_of_pairs<G> : scores_of<T, G>;
    auto weigh = IN_PAIRS ? weights_of_pairs : weights_of;
    auto add_up = IN_PAIRS ? values_of_pairs<G> : values_of<T, G>;
#else
    auto score = scores_of<T, G>;
    auto weigh = weights_of;
    auto add_up = values_of<T, G>;
#endif
    score(q, slots, first, S, E, scores, stride);
    for (int g = 0; g < G; g++) {
        float* row = scores + g * stride;
        if (scoring.softcap > 0) soften(row, S, scoring.softcap);
        if (scoring.bias) {
            const float* bias = scoring.bias + g * scoring.stride + first;
            for (long s = 0; s < S; s++) row[s] += bias[s];
        }
        std::fill(row + S, row + stride, -__builtin_inff());
        VF tops = load(row);
        for (long s = W; s < stride; s += W) tops = larger(tops, load(row + s));
        largest[g] = largest_of(tops);
        total[g] = weigh(row, stride, largest[g]);
    }
    add_up(scores, stride, slots, first, S, E, out);
}

template <class T>
static void attend_all_of(const float* q, long group, const Slots& slots, long first, long S, long E,
                          Scoring scoring, float* scores, float* out, float* largest, float* total) {
    for (long h = 0; h < group;) {
        long left = group - h;
        Scoring mine = scoring;
        if (mine.bias) mine.bias += h * mine.stride;
        auto run = left >= 4 && QUERIES >= 4   ? attend_group<T, QUERIES>
                   : left >= 3 && QUERIES >= 4 ? attend_group<T, QUERIES >= 4 ? 3 : 1>
                   : left >= 2                 ? attend_group<T, 2>
                                               : attend_group<T, 1>;
        run(q + h * E, slots, first, S, E, mine, scores, out + h * E, largest + h, total + h);
        h += left >= 4 && QUERIES >= 4 ? QUERIES : left >= 3 && QUERIES >= 4 ? 3 : left >= 2 ? 2 : 1;
    }
}

static void attend(const float* q, long group, const Slots& slots, long first, long S, long E, Scoring scoring,
                   float* scores, float* out, float* largest, float* total) {
    auto run = slots.eight_bit ? attend_all_of<int8_t> : attend_all_of<uint16_t>;
    run(q, group, slots, first, S, E, scoring, scores, out, largest, total);
}

// One head's keys or values of a token in eight bits: codes, and behind them the scale.
static void quantize_slot(const float* x, long E, int8_t* row) {
    // Sizes compare as whole numbers do, and what is not a number is the largest: the scale is then none, either.
    uint32_t most = 0;
    for (long e = 0; e < E; e++) {
        uint32_t size;
        std::memcpy(&size, x + e, sizeof size);
        most = std::max(most, size & 0x7fffffff);
    }
    uint16_t scale = narrow(as_float((int32_t)most) / 127.0f);
    float inverse = scale ? 1.0f / widen(scale) : 0.0f;
    for (long e = 0; e < E; e++)
        row[e] = (int8_t)std::max(-127.0f, std::min(127.0f, std::nearbyint(x[e] * inverse)));
    std::memcpy(row + E, &scale, sizeof scale);
}

}  // namespace PARAGONE_LEVEL
