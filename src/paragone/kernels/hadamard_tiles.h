// Products of weights that have one scale for each row (hadamard.h) by tiles of tokens.
//
// What is done with a tile's sums waits for its last product, and tiles leave the other units idle meanwhile: so sums
// become outputs, four tokens after each step, while the next ones are made. Every instruction beside the products' own
// counts: what waits is a variable of the function that makes the next sums, so that compilers keep it in registers,
// and its addresses are counted up. Where it outlived the function products took a quarter longer.
#pragma once

#include <algorithm>

#include "coming.h"
#include "finish.h"
#include "hadamard.h"
#include "tiles.h"

#if PARAGONE_TILES

namespace PARAGONE_LEVEL {

constexpr long TOKENS_AT_ONCE = 128;  // whose sums' beginnings are kept
constexpr long ROWS_AT_A_STEP = 4;

// What is done with outputs: stored, added to what is there, or neither as simply as that.
enum class Target { STORED, ADDED, OTHER };

// Tokens of a tile of sums by P panels that are still to become outputs.
template <int P> struct TileSums {
    const int32_t* sums;    // of the next one
    const uint8_t* ending;  // `stride` bytes from one to the next
    float* y;
    long left, panel;
    VF scales[P];

    template <Target TARGET> PARAGONE_MEMBER void output(const Out& to, long rows, long stride) {
        float scale;
        std::memcpy(&scale, ending, sizeof scale);
        VF out[P];
#pragma GCC unroll 2
        for (int p = 0; p < P; p++)
            out[p] = __builtin_convertvector(load_words(sums + p * PANEL), VF) * (scales[p] * splat(scale));
        if constexpr (TARGET == Target::OTHER) {
            const long first = panel * PANEL;
            finish({y - first, 0, to.bias, to.add}, 0, first, std::min(P * PANEL, rows - first), out);
        } else {
#pragma GCC unroll 2
            for (int p = 0; p < P; p++) {
                if constexpr (TARGET == Target::ADDED) out[p] += load(y + p * PANEL);
                store(y + p * PANEL, out[p]);
            }
        }
        sums += P * PANEL;
        ending += stride;
        y += to.stride;
        left--;
    }

    template <Target TARGET> PARAGONE_MEMBER void step(const Out& to, long rows, long stride) {
        if (left < ROWS_AT_A_STEP) return;
#pragma GCC unroll 4
        for (long i = 0; i < ROWS_AT_A_STEP; i++) output<TARGET>(to, rows, stride);
    }

    template <Target TARGET> PARAGONE_MEMBER void rest(const Out& to, long rows, long stride) {
        while (left > 0) output<TARGET>(to, rows, stride);
    }
};

// Panels [first, last), P at once, by M tokens, a tile of them at least and TOKENS_AT_ONCE at most, whose sums begin
// with `starts`, a line for each.
template <int P, Target TARGET>
static void hadamard_panels(const Hadamard& w, long first, long last, const uint8_t* x, long M,
                            const int32_t (*starts)[PANEL], const Out& to) {
    const long runs = hadamard::runs_of(w.D), stride = hadamard::token_bytes(w.D), bytes = hadamard::panel_bytes(w.D);
    const long rows = w.rows, times = (M + 2 * TILE_ROWS - 1) / (2 * TILE_ROWS) * runs;
    const uint8_t* end = w.panels + last * bytes;
    alignas(64) int32_t sums[2][2 * TILE_ROWS * P * PANEL];
    int own = 0;
    TileSums<P> ready{};  // nothing yet
    for (long p = first; p < last; p += P) {
        const uint8_t *panel = w.panels + p * bytes, *next = panel + P * bytes;
        Coming coming{next, std::min(next + P * bytes, end), (P * bytes / LINE + times - 1) / times};
        VF scales[P];
        for (int i = 0; i < P; i++) scales[i] = load((const float*)(panel + i * bytes));
        for (long done = 0; done < M;) {
            TileTokens now(done, M);
            const uint8_t *tokens = x + now.first * stride, *codes = panel + hadamard::LINE;
            begin_sums<P>(starts[now.first], now.wide);
            for (long run = 0; run < runs; run++) {
                multiply_tiles<P, true>(tokens, stride, now.wide, codes, bytes);
                tokens += hadamard::RUN;
                codes += hadamard::RUN_BYTES;
                ready.template step<TARGET>(to, rows, stride);
                coming.fetch_some();
            }
            ready.template rest<TARGET>(to, rows, stride);
            store_sums<P>(sums[own], P * PANEL * sizeof(int32_t), now.wide);
            const long kept = done - now.first;  // on, for those before it are outputs already
            ready.sums = sums[own] + kept * P * PANEL;
            ready.ending = tokens + kept * stride;
            ready.y = to.y + done * to.stride + p * PANEL;
            ready.left = now.upto - done;
            ready.panel = p;
            for (int i = 0; i < P; i++) ready.scales[i] = scales[i];
            own ^= 1;
            done = now.upto;
        }
    }
    ready.template rest<TARGET>(to, rows, stride);
}

// Panels [first, last) of the weight by M tokens of token_bytes(D) each, a tile of them at least.
static void hadamard_tiles(const Hadamard& w, long first, long last, const uint8_t* x, long M, const Out& to) {
    WholeTiles use;
    const long stride = hadamard::token_bytes(w.D), end = stride - hadamard::LINE;
    const long passes = (M + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE;
    alignas(64) int32_t starts[TOKENS_AT_ONCE][PANEL];
    for (long pass = 0; pass < passes; pass++) {
        const long m = M * pass / passes, count = M * (pass + 1) / passes - m;
        const uint8_t* tokens = x + m * stride;
        for (long i = 0; i < count; i++) {
            hadamard::Ending ending;
            std::memcpy(&ending, tokens + i * stride + end, sizeof ending);
            std::fill(starts[i], starts[i] + PANEL, ending.start);
        }
        const Out out{to.y + m * to.stride, to.stride, to.bias, to.add};
        auto some = [&]<int P, Target TARGET>(long from, long upto) {
            hadamard_panels<P, TARGET>(w, from, upto, tokens, count, starts, out);
        };
        auto all = [&]<Target TARGET>(long from, long upto) {
            const long pairs = from + (upto - from) / 2 * 2;
            if (from < pairs) some.template operator()<2, TARGET>(from, pairs);
            if (pairs < upto) some.template operator()<1, TARGET>(pairs, upto);
        };
        const long whole = to.bias ? first : std::clamp(w.rows / PANEL, first, last);
        if (to.add) all.template operator()<Target::ADDED>(first, whole);
        else all.template operator()<Target::STORED>(first, whole);
        all.template operator()<Target::OTHER>(whole, last);
    }
}

}  // namespace PARAGONE_LEVEL

#endif
