// Products with weights that have one scale for each row (hadamard.h).
#pragma once

#include <algorithm>

#include "bytes.h"
#include "coming.h"
#include "each.h"
#include "finish.h"
#include "hadamard_tiles.h"

namespace PARAGONE_LEVEL {

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

    // Outputs of a token that ends with `ending`.
    PARAGONE_MEMBER void outputs(const uint8_t* ending, const VI (&sums)[P * V], VF (&out)[P * V]) const {
        hadamard::Ending token;
        std::memcpy(&token, ending, sizeof token);
#pragma GCC unroll 4
        for (int q = 0; q < P * V; q++) {
            VI sum = BY_SIZES ? sums[q] : (VI)((VU)sums[q] + (uint32_t)token.start);
            out[q] = __builtin_convertvector(sum, VF) * (scales[q] * token.scale);
        }
    }
};

// Panels by tokens [m, m + M).
template <int P, int M>
PARAGONE_INLINE void hadamard_tile(const Panels<P>& panels, long runs, const uint8_t* x, long m, const Out& to,
                                   Coming& coming) {
    constexpr int CHAINS = P * V * M < 4 ? 4 : 1;  // of sums, which else would wait for each other
    long stride = runs * hadamard::RUN + hadamard::LINE;
    const uint8_t* panel = panels.codes;
    const uint8_t* at[addresses(M)];
    share_addresses<M>(x + m * stride, stride, at);
    VI sums[CHAINS][M][P * V] = {};
    for (long run = 0; run < runs; run++, panel += hadamard::RUN_BYTES) {
        for (int first = 0; first < 16; first += 4) {
            coming.fetch_some();  // a few at a time: memory takes only so many wishes
            // Unrolled as a whole: sums whose chain is not known beforehand would be in memory.
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const int quad = first + i, chain = i % CHAINS;
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
                for (int t = 0; t < M; t++) {
                    VI four = splat_word(shared_address(at, t, stride) + quad * 4);
#pragma GCC unroll 4
                    for (int q = 0; q < P * V; q++) {
                        VI& sum = sums[chain][t][q];
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
#pragma GCC unroll 4
        for (const uint8_t*& its : at) its += hadamard::RUN;
    }
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
        VI whole[P * V];
#pragma GCC unroll 4
        for (int q = 0; q < P * V; q++) {
            whole[q] = sums[0][i][q];
            for (int chain = 1; chain < CHAINS; chain++) whole[q] += sums[chain][i][q];
        }
        VF out[P * V];
        panels.outputs(shared_address(at, i, stride), whole, out);
        finish(to, m + i, panels.first, panels.count, out);
    }
}

// Panels [first, last) of the weight by M tokens of token_bytes(D) each.
static void hadamard_linear(const Hadamard& w, long first, long last, const uint8_t* x, long M, const Out& to) {
    long bytes = hadamard::panel_bytes(w.D), runs = hadamard::runs_of(w.D);
    const uint8_t* end = w.panels + last * bytes;
#if PARAGONE_TILES
    if (M >= TILE_ROWS) return hadamard_tiles(w, first, last, x, M, to);
#endif
    auto pass = [&]<int P>(long p) {
        Panels<P> panels(w, p);
        long shares = (M + SIDE - 1) / SIDE;
        // While all tokens pass these panels, the next ones come: by three tiles or more so slowly that they are best
        // off in the first cache (by two a tenth slower than in the second, by three a fortieth faster).
        const uint8_t* next = w.panels + (p + P) * bytes;
        long times = 4 * shares * runs;
        Coming coming{next, std::min(next + P * bytes, end), (P * bytes / LINE + times - 1) / times, shares > 2};
        if (M == 1) coming = {ahead_of(panels.codes, end, false), end, 4 * P};  // as they lie
        tiles_of<SIDE>(M, [&]<int COUNT>(long m) { hadamard_tile<P, COUNT>(panels, runs, x, m, to, coming); });
    };
    long p = first;
    if (M > 1)
        for (; p + ACROSS <= last; p += ACROSS) pass.template operator()<ACROSS>(p);
    for (; p < last; p++) pass.template operator()<1>(p);
}

}  // namespace PARAGONE_LEVEL
