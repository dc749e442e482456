// Quantisation to, and products with, weights that have one scale for each row (hadamard.h).
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "bytes.h"
#include "coming.h"
#include "finish.h"
#include "hadamard.h"
#include "tiles.h"

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

#if PARAGONE_LANES > 4
// Without an instruction for four, products of two bytes have to fit into 16 bits: of the weight's sizes with inputs
// that have taken over its signs they do.
constexpr bool BY_SIZES = !QUADS;
#else
constexpr bool BY_SIZES = false;
#endif

// Tokens and panels of a tile: as many sums and codes as fit into the registers.
constexpr int SIDE = BY_SIZES ? W == 16 ? 8 : 4 : W == 16 ? 12 : W == 8 ? 6 : 4;
constexpr int ACROSS = W == 16 ? 2 : 1;

// What a panel's sums are multiplied with, and where they go.
template <int P> struct Panels {
    const uint8_t* codes;
    long stride;  // between panels, in bytes
    long first, count;
    VF scales[P * V];

    PARAGONE_MEMBER Panels(const Hadamard& w, long p)
        : codes(w.panels + p * hadamard::panel_bytes(w.D) + hadamard::LINE), stride(hadamard::panel_bytes(w.D)),
          first(p * PANEL), count(std::min(P * PANEL, w.rows - first)) {
        for (int q = 0; q < P * V; q++)
            scales[q] = load((const float*)(codes + q / V * stride - hadamard::LINE) + q % V * W);
    }

    // Of token m, that ends with `ending`.
    PARAGONE_MEMBER void finish_token(const uint8_t* ending, const VI (&sums)[P * V], long m, const Out& to) const {
        hadamard::Ending token;
        std::memcpy(&token, ending, sizeof token);
        VF out[P * V];
#pragma GCC unroll 4
        for (int q = 0; q < P * V; q++) {
            VI sum = BY_SIZES ? sums[q] : (VI)((VU)sums[q] + (uint32_t)token.start);
            out[q] = __builtin_convertvector(sum, VF) * (scales[q] * token.scale);
        }
        finish(to, m, first, count, out);
    }
};

// Panels by tokens [m, m + M).
template <int P, int M>
PARAGONE_INLINE void hadamard_tile(const Panels<P>& panels, long runs, const uint8_t* x, long m, const Out& to,
                                   Coming& coming) {
    constexpr int CHAINS = P * V * M < 4 ? 4 : 1;  // of sums, which else would wait for each other
    long stride = runs * hadamard::RUN + hadamard::LINE;
    const uint8_t* panel = panels.codes;
    x += m * stride;
    VI sums[CHAINS][M][P * V] = {};
    for (long run = 0; run < runs; run++, panel += hadamard::RUN_BYTES, x += hadamard::RUN) {
#pragma GCC unroll 4
        for (int quad = 0; quad < 16; quad++) {
            if (quad % 4 == 0) coming.fetch_some();  // a few at a time: memory takes only so many wishes
            VI codes[P * V], own[P * V];
#pragma GCC unroll 4
            for (int q = 0; q < P * V; q++) {
                codes[q] = load_words(panel + q / V * panels.stride + quad * 64 + q % V * W * 4);
#if PARAGONE_LANES > 4
                if constexpr (BY_SIZES) {
                    own[q] = codes[q] ^ 0x80808080;
                    codes[q] = sizes_of_bytes(own[q]);
                }
#endif
            }
#pragma GCC unroll 12
            for (int i = 0; i < M; i++) {
                VI four = splat_word(x + i * stride + quad * 4);
#pragma GCC unroll 4
                for (int q = 0; q < P * V; q++) {
                    VI& sum = sums[quad % CHAINS][i][q];
#if PARAGONE_LANES > 4
                    if constexpr (BY_SIZES)
                        sum = in_turn(sum + dot_halves(dot_bytes(codes[q], with_signs(four, own[q])), 1 - VT{}));
                    else
#endif
                        sum = dot_quads(sum, codes[q], four);
                }
            }
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
        VI whole[P * V];
#pragma GCC unroll 4
        for (int q = 0; q < P * V; q++) {
            whole[q] = sums[0][i][q];
            for (int chain = 1; chain < CHAINS; chain++) whole[q] += sums[chain][i][q];
        }
        panels.finish_token(x + i * stride, whole, m + i, to);
    }
}

// The same by tokens [m, m + count), as tiles of `each`, MOST at most; a last one may be less.
template <int P, int MOST>
static void hadamard_tiles(const Panels<P>& panels, long runs, const uint8_t* x, long m, long count, long each,
                           const Out& to, Coming& coming) {
    if constexpr (MOST > 1)
        if (each < MOST) return hadamard_tiles<P, MOST - 1>(panels, runs, x, m, count, each, to, coming);
    for (; count >= MOST; m += MOST, count -= MOST) hadamard_tile<P, MOST>(panels, runs, x, m, to, coming);
    if constexpr (MOST > 1)
        if (count) hadamard_tiles<P, MOST - 1>(panels, runs, x, m, count, count, to, coming);
}

#if PARAGONE_TILES
// Panels [p, p + P) by as many of M tokens as matrix units take; returns how many.
template <int P>
static long hadamard_by_tiles(const Panels<P>& panels, long runs, const uint8_t* x, long M, const Out& to) {
    long stride = runs * hadamard::RUN + hadamard::LINE;
    if (M < TILE_ROWS) return 0;
    TileShapes shapes;
    for (int tile = 0; tile < 8; tile++) shapes.set(tile, TILE_ROWS, 64);
    TileUse use(shapes);
    alignas(64) int32_t sums[4][TILE_ROWS][16];
    long m = 0;
    for (long tokens; m + TILE_ROWS <= M; m += tokens) {
        tokens = m + 2 * TILE_ROWS <= M ? 2 * TILE_ROWS : TILE_ROWS;
        zero_sums();
        for (long run = 0; run < runs; run++) {
            const uint8_t *near = x + m * stride + run * hadamard::RUN, *codes = panels.codes + run * hadamard::RUN_BYTES;
            TILE_LOAD(4, near, stride);
            TILE_LOAD(6, codes, 64);
            TILE_DOT_QUADS(0, 4, 6);
            if constexpr (P == 2) {
                TILE_LOAD(7, codes + panels.stride, 64);
                TILE_DOT_QUADS(1, 4, 7);
            }
            if (tokens == TILE_ROWS) continue;
            TILE_LOAD(5, near + TILE_ROWS * stride, stride);
            TILE_DOT_QUADS(2, 5, 6);
            if constexpr (P == 2) TILE_DOT_QUADS(3, 5, 7);
        }
        store_sums(sums);
        for (long i = 0; i < tokens; i++) {
            VI whole[P * V];
            for (int q = 0; q < P; q++) whole[q] = load_words(sums[i / TILE_ROWS * 2 + q][i % TILE_ROWS]);
            panels.finish_token(x + (m + i + 1) * stride - hadamard::LINE, whole, m + i, to);
        }
    }
    return m;
}
#endif

// Panels [first, last) of the weight by M tokens of token_bytes(D) each.
static void hadamard_linear(const Hadamard& w, long first, long last, const uint8_t* x, long M, const Out& to) {
    long bytes = hadamard::panel_bytes(w.D), runs = hadamard::runs_of(w.D);
    const uint8_t* end = w.panels + last * bytes;
    auto pass = [&]<int P>(long p) {
        Panels<P> panels(w, p);
        long m = 0;
#if PARAGONE_TILES
        m = hadamard_by_tiles(panels, runs, x, M, to);
#endif
        long rest = M - m, shares = std::max(1L, (rest + SIDE - 1) / SIDE), share = (rest + shares - 1) / shares;
        // While all tokens pass these panels, the next ones come: by three tiles or more so slowly that they are best
        // off in the first cache (by two a tenth slower than in the second, by three a fortieth faster). A single token
        // reads panels as they lie: with wide registers the processor fetches them ahead by itself, with narrow ones it
        // has to be told.
        const uint8_t* next = w.panels + (p + P) * bytes;
        long times = 4 * shares * runs;
        Coming coming{next, std::min(next + P * bytes, end), (P * bytes / LINE + times - 1) / times, shares > 2};
        if (M == 1) coming.at = W == 16 ? end : next;
        if (rest) hadamard_tiles<P, SIDE>(panels, runs, x, m, rest, share, to, coming);
    };
    long p = first;
    if (M > 1)
        for (; p + ACROSS <= last; p += ACROSS) pass.template operator()<ACROSS>(p);
    for (; p < last; p++) pass.template operator()<1>(p);
}

}  // namespace PARAGONE_LEVEL
