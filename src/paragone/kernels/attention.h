// Attention of one query token over slots in blocks, and how slots are written.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "table.h"
#include "vec.h"

namespace PARAGONE_LEVEL {

// Queries of a group that share one reading of the keys: as many sums as fit into the registers.
constexpr int QUERIES = W == 16 ? 4 : 2;
constexpr int SLOTS = 4;  // slots whose scores, or vectors of a value whose sums, are made at once

// What an eight-bit slot's numbers are to be multiplied with; it lies behind them.
PARAGONE_INLINE float scale_of(const int8_t* row, long E) {
    uint16_t scale;
    std::memcpy(&scale, row + E, sizeof scale);
    return widen(scale);
}
PARAGONE_INLINE float scale_of(const uint16_t*, long) { return 1.0f; }

PARAGONE_INLINE float number(const int8_t* p) { return *p; }
PARAGONE_INLINE float number(const uint16_t* p) { return widen(*p); }

// Where a run of neighbouring slots lies, and what is read after the next one.
template <class T> struct Run {
    const uint8_t *from, *coming;
    long row, count;
    const T* operator[](long i) const { return (const T*)(from + i * row); }

    // Fetches what comes instead of slots [i, i + n): a little at a time, for memory takes only so many wishes.
    PARAGONE_MEMBER void fetch(long i, long n) const {
        for (long at = i * row; at < (i + n) * row; at += 64) __builtin_prefetch(coming + at);
    }
};

// The slots from `at` on that lie in one block, of `most` in all. The next block but one comes meanwhile: blocks lie
// anywhere, and each takes less long than memory does.
template <class T>
PARAGONE_INLINE Run<T> run_at(const uint8_t* base, const Slots& slots, long at, long most, const After& after) {
    long block = at / slots.size, in = at % slots.size, over = block + 1 - (at + most - 1) / slots.size;
    const uint8_t* from = base + slots.table[block] * slots.stride + in * slots.row;
    const uint8_t* coming = over < 0              ? base + slots.table[block + 2] * slots.stride
                            : over < after.blocks ? after.base + after.table[over] * slots.stride
                                                  : from;
    return {from, coming, slots.row, std::min(most, slots.size - in)};
}

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
    long block = first / slots.size;
    After values{slots.values, slots.table + block, (first + S - 1) / slots.size - block + 1};
    for (long s = 0; s < S;) {
        Run<T> run = run_at<T>(slots.keys, slots, first + s, S - s, values);
        long i = 0;
        for (; i + SLOTS <= run.count; i += SLOTS) {
            run.fetch(i, SLOTS);
            const T* keys[SLOTS] = {run[i], run[i + 1], run[i + 2], run[i + 3]};
            dots<T, G, SLOTS>(q, keys, E, scores + s + i, stride);
        }
        for (; i < run.count; i++) {
            const T* keys[1] = {run[i]};
            dots<T, G, 1>(q, keys, E, scores + s + i, stride);
        }
        s += run.count;
    }
}

// Sums of N vectors of the values, from `e` on, weighted for G queries.
template <class T, int G, int N>
static void mix(const float* weights, long stride, const Slots& slots, long first, long S, long E, long e, float* out) {
    VF sums[G][N] = {};
    for (long s = 0; s < S;) {
        Run<T> run = run_at<T>(slots.values, slots, first + s, S - s, slots.then);
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
    for (; e < E; e++)
        for (int g = 0; g < G; g++) {
            float total = 0;
            for (long s = 0; s < S; s++) {
                const T* value = run_at<T>(slots.values, slots, first + s, 1, {})[0];
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
    scores_of<T, G>(q, slots, first, S, E, scores, stride);
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
        total[g] = weights_of(row, stride, largest[g]);
    }
    values_of<T, G>(scores, stride, slots, first, S, E, out);
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
    float most = 0;
    for (long e = 0; e < E; e++) most = std::max(most, std::fabs(x[e]));
    uint16_t scale = narrow(most / 127.0f);
    float inverse = scale ? 1.0f / widen(scale) : 0.0f;
    for (long e = 0; e < E; e++)
        row[e] = (int8_t)std::max(-127.0f, std::min(127.0f, std::nearbyint(x[e] * inverse)));
    std::memcpy(row + E, &scale, sizeof scale);
}

}  // namespace PARAGONE_LEVEL
