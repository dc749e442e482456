// Products with weights that have one scale for each row (hadamard.h).
#pragma once

#include <algorithm>

#include "bytes.h"
#include "coming.h"
#include "finish.h"
#include "hadamard.h"
#include "tiles.h"

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

    Panels() = default;
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
        VF out[P * V];
        panels.outputs(x + i * stride, whole, out);
        finish(to, m + i, panels.first, panels.count, out);
    }
}

// The same by tokens [m, m + count), as tiles of `each`, MOST at most; a last one may be less.
template <int P, int MOST>
static void hadamard_some(const Panels<P>& panels, long runs, const uint8_t* x, long m, long count, long each,
                          const Out& to, Coming& coming) {
    if constexpr (MOST > 1)
        if (each < MOST) return hadamard_some<P, MOST - 1>(panels, runs, x, m, count, each, to, coming);
    for (; count >= MOST; m += MOST, count -= MOST) hadamard_tile<P, MOST>(panels, runs, x, m, to, coming);
    if constexpr (MOST > 1)
        if (count) hadamard_some<P, MOST - 1>(panels, runs, x, m, count, count, to, coming);
}

#if PARAGONE_TILES
// Sums of up to 32 tokens with P panels, which become outputs one token after the other while the next ones are made:
// what is done with a tile's sums waits for its last product, and tiles leave the other units idle meanwhile.
// done(i, n, sums of tokens [i, i + n)).
template <class Sum, int P, class Done> class Waiting {
  public:
    // Takes the sums that are in tiles: those of tokens [first, last) are to be kept.
    PARAGONE_MEMBER void take(long first, long last, const Done& done) {
        some(2 * TILE_ROWS);
        store_sums<P>(sums_, sizeof sums_[0], last > TILE_ROWS);
        next_ = first;
        last_ = last;
        done_ = done;
    }

    PARAGONE_MEMBER void some(long count) {
        long from = next_, here = std::min(count, last_ - from);
        if (here <= 0) return;
        next_ = from + here;
        done_(from, here, sums_[from]);
    }

  private:
    alignas(64) Sum sums_[2 * TILE_ROWS][16 * P];
    long next_ = 0, last_ = 0;
    Done done_;
};

// What sums of P panels become.
template <int P> struct HadamardOutputs {
    Panels<P> panels;
    const uint8_t* endings;  // of tokens, `stride` bytes apart, from token m on
    long stride, m;
    Out to;

    PARAGONE_MEMBER void operator()(long i, long n, const int32_t* sums) const {
        Panels<P> own = panels;
        const uint8_t* ending = endings + i * stride;
        finish_rows<P>(to, m + i, own.first, own.count, n, [&, step = stride](long row, VF (&out)[P]) {
            VI token[P];
            for (int p = 0; p < P; p++) token[p] = load_words(sums + (row * P + p) * PANEL);
            own.outputs(ending + row * step, token, out);
        });
    }
};

template <int P> using HadamardWaiting = Waiting<int32_t, P, HadamardOutputs<P>>;

// Panels by M tokens, a tile of them at least.
template <int P>
static void hadamard_by_tiles(const Panels<P>& panels, long runs, const uint8_t* x, long M, const Out& to,
                              Coming coming, HadamardWaiting<P>& waiting) {
    long stride = runs * hadamard::RUN + hadamard::LINE, each = (2 * TILE_ROWS + runs - 1) / runs;
    for (long done = 0; done < M;) {
        TileTokens now(done, M);
        const uint8_t *token = x + now.first * stride, *codes = panels.codes;
        zero_sums();
        for (long run = 0; run < runs; run++, token += hadamard::RUN, codes += hadamard::RUN_BYTES) {
            multiply_tiles<P, true>(token, stride, now.wide, codes, panels.stride);
            waiting.some(each);
            coming.fetch_some();
        }
        waiting.take(done - now.first, now.upto - now.first, {panels, token, stride, now.first, to});
        done = now.upto;
    }
}

static void hadamard_tiles(const Hadamard& w, long first, long last, const uint8_t* x, long M, const Out& to) {
    WholeTiles use;
    long bytes = hadamard::panel_bytes(w.D), runs = hadamard::runs_of(w.D);
    const uint8_t* end = w.panels + last * bytes;
    HadamardWaiting<2> two;
    HadamardWaiting<1> one;
    auto pass = [&]<int P>(long p, HadamardWaiting<P>& waiting) {
        const uint8_t* next = w.panels + (p + P) * bytes;
        long times = (M + 2 * TILE_ROWS - 1) / (2 * TILE_ROWS) * runs;
        Coming coming{next, std::min(next + P * bytes, end), (P * bytes / LINE + times - 1) / times};
        hadamard_by_tiles(Panels<P>(w, p), runs, x, M, to, coming, waiting);
    };
    long p = first;
    for (; p + 2 <= last; p += 2) pass(p, two);
    if (p < last) pass(p, one);
    two.some(2 * TILE_ROWS);
    one.some(2 * TILE_ROWS);
}
#endif

// Panels [first, last) of the weight by M tokens of token_bytes(D) each.
static void hadamard_linear(const Hadamard& w, long first, long last, const uint8_t* x, long M, const Out& to) {
    long bytes = hadamard::panel_bytes(w.D), runs = hadamard::runs_of(w.D);
    const uint8_t* end = w.panels + last * bytes;
#if PARAGONE_TILES
    if (M >= TILE_ROWS) return hadamard_tiles(w, first, last, x, M, to);
#endif
    auto pass = [&]<int P>(long p) {
        Panels<P> panels(w, p);
        long shares = (M + SIDE - 1) / SIDE, share = (M + shares - 1) / shares;
        // While all tokens pass these panels, the next ones come: by three tiles or more so slowly that they are best
        // off in the first cache (by two a tenth slower than in the second, by three a fortieth faster).
        const uint8_t* next = w.panels + (p + P) * bytes;
        long times = 4 * shares * runs;
        Coming coming{next, std::min(next + P * bytes, end), (P * bytes / LINE + times - 1) / times, shares > 2};
        if (M == 1) coming = {SINGLE_AHEAD ? panels.codes + SINGLE_AHEAD : end, end, 4 * P};  // as they lie
        hadamard_some<P, SIDE>(panels, runs, x, 0, M, share, to, coming);
    };
    long p = first;
    if (M > 1)
        for (; p + ACROSS <= last; p += ACROSS) pass.template operator()<ACROSS>(p);
    for (; p < last; p++) pass.template operator()<1>(p);
}

}  // namespace PARAGONE_LEVEL
