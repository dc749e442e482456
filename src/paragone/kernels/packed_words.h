// Products of packed weights by some tokens or many in bfloat16, for matrix units: sums of codes have to be brought to
// scale after every 32 inputs, which takes longer than the products do, while products of bfloat16 are summed up by the
// unit itself. What the unit multiplies next is brought into words while it multiplies: sixteen rows of 32 inputs at a
// time, for four tiles of tokens at most, so that neither waits for the other.
//
// Words are made in float16: in units of 2^-UNIT, numbers of weights are within its range. As words they are 2^-100 of
// what they stand for, and inputs are 2^100 times: those beyond 2^27 are infinite.
#pragma once

#include "finish.h"
#include "halves.h"
#include "tiles.h"

#if PARAGONE_TILES

namespace PARAGONE_LEVEL {

static_assert(PAIRS && V == 1);
constexpr long LEAST_TOKENS = 10;  // for which it is faster than sums of codes
constexpr long HALF = BLOCK / 2;    // inputs of a tile
constexpr long TILE_WORDS = TILE_ROWS * HALF / NUMBERS;
constexpr int PASS_TILES = 4;       // of tokens, that pass a panel at once
constexpr int UNIT = 12;
constexpr int INPUTS_UNIT = -HALF_TO_WORD - UNIT;
constexpr long AHEAD = 12;  // blocks of codes: what is asked for in time
constexpr long RING = 4;            // tiles of words: the two of a block that are multiplied, and the next two
constexpr long PACKED_WORDS_ROOM = RING * TILE_WORDS;

// Token m of M as words of its tiles: one after the other by tokens, then by 32 inputs. Of four inputs the second and
// the third change places, as those of the weights do.
static void token_words(const float* x, long D, long m, long M, Word* to) {
    TokenTiles tokens(M);
    long halves = (D + BLOCK - 1) / BLOCK * 2, tile = m / tokens.rows, last = tokens.tiles - 1;
    auto place = [&](long tile) { return to + (tile * halves * TILE_ROWS + m - tokens.first(tile)) * TILE_ROWS; };
    Word *near = place(tile), *also = m >= tokens.first(last) ? place(last) : near;  // of one tile, or of two
    float rest[HALF];
    for (long h = 0; h < halves; h++, near += TILE_WORDS, also += TILE_WORDS) {
        const float* from = x + h * HALF;
        if (D < (h + 1) * HALF) {
            std::fill(rest, rest + HALF, 0.0f);
            std::copy(from, std::max(from, x + D), rest);
            from = rest;
        }
        static_assert(INPUTS_UNIT == 100);
        VF numbers[2];
        for (int i = 0; i < 2; i++) numbers[i] = (VF)_mm512_permute_ps((__m512)(load(from + i * PANEL) * 0x1p+100f), 0xd8);
        store((uint16_t*)near, numbers[0], numbers[1]);
        if (also != near) store((uint16_t*)also, numbers[0], numbers[1]);
    }
}

// What makes words of codes in float16. Scales become numbers of the unit when they are multiplied by `factor`.
template <int BITS, bool MINIMUM, bool FINE> struct WordMaker {
    static constexpr long SIZE = block_bytes(BITS, MINIMUM, FINE), SCALES = BLOCK * PANEL * stored(BITS) / 8;
    static constexpr int CENTER = meant(BITS) == 8 ? 128 : MINIMUM ? 0 : 8 << (stored(BITS) - 4);

    const Packed& weight;
    Halves table{};   // what codes of four bits stand for, twice
    Halves factor{};  // of the panel at hand

    explicit WordMaker(const Packed& weight) : weight(weight) {
        float numbers[PANEL];
        for (int i = 0; i < PANEL; i++) numbers[i] = BITS == LEVELS ? weight.levels[i] - 128.0f : i - (float)CENTER;
        table = _mm512_broadcast_i64x4(_mm512_cvtps_ph((__m512)load(numbers), _MM_FROUND_TO_NEAREST_INT));
    }

    // Half `half` of a block.
    PARAGONE_MEMBER void make(const uint8_t* block, int half, Word* to) const {
        const uint16_t* scales = (const uint16_t*)(block + SCALES) + half * (FINE ? 2 : 1) * PANEL;
#pragma GCC unroll 2
        for (int quarter = 0; quarter < 2; quarter++) {
            const uint16_t* own = scales + (FINE ? quarter * PANEL : 0);
            Halves scale = product(twice(own), factor), minimum{};
            if constexpr (MINIMUM) minimum = product(twice(own + (FINE ? 4 : 2) * PANEL), factor);
            auto put = [&](Halves number, Word* at) {
                number = MINIMUM ? product_plus(number, scale, minimum) : product(number, scale);
                _mm512_storeu_si512(at, to_word_halves(number));
            };
            if constexpr (stored(BITS) == 4) {
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++, to += 2 * PANEL) {
                    // Of an index the five lowest bits count, and the table has everything twice.
                    Halves both = _mm512_loadu_si512(block + (half * 4 + i) * 64);
                    Halves even = quarter ? _mm512_srli_epi16(both, 4) : both;
                    put(_mm512_permutexvar_epi16(even, table), to);
                    put(_mm512_permutexvar_epi16(_mm512_srli_epi16(both, quarter ? 12 : 8), table), to + PANEL);
                }
            } else {
                Quarter<BITS, MINIMUM, FINE, 1> w;
                w.fetch(weight, block, 0, half, quarter);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++, to += 2 * PANEL) {
                    Halves codes = (Halves)w.codes[i][0];
                    put(number_of(codes), to);
                    put(number_of(_mm512_srli_epi16(codes, 8)), to + PANEL);
                }
            }
        }
    }

  private:
    // The lower byte of each: 1024 + code are the bits of 1024 with the code's below them.
    PARAGONE_MEMBER static Halves number_of(Halves codes) {
        constexpr int AND_OR = 0xea;  // (a & b) | c
        const Halves beginning = splat_half(half_power(10)), center = splat_half(half_power(10) + CENTER);
        return difference(_mm512_ternarylogic_epi64(codes, splat_half(255), beginning, AND_OR), center);
    }
};

// What scales of a panel are multiplied by so that numbers are within float16: 2^power, and outputs by `rest`.
struct PanelUnit {
    int power;
    float rest;
};

template <int BITS, bool MINIMUM, bool FINE>
static PanelUnit unit_of(const Packed& w, const uint8_t* panel, long blocks) {
    using Maker = WordMaker<BITS, MINIMUM, FINE>;
    const __m512i sizes = splat_half(0x7fff);
    __m512i top{};
    for (long b = 0; b < blocks; b++)
        for (long at = Maker::SCALES; at < Maker::SIZE; at += 64)
            top = _mm512_max_epu16(top, _mm512_and_si512(_mm512_loadu_si512(panel + b * Maker::SIZE + at), sizes));
    __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(top), _mm512_extracti64x4_epi64(top, 1));
    __m128i few = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    // The largest is what is left when the smallest of the complements is taken.
    int most = 0xffff - _mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(few, _mm_set1_epi16(-1))), 0);
    constexpr int DIGITS = meant(BITS) == 8 ? 7 : stored(BITS) - !MINIMUM;  // of a number by its scale
    int size = (most >> 10) - 15 + 1;  // all scales and minima are below 2^size
    int largest = 15 - size - DIGITS - MINIMUM;  // power that all numbers bear
    int exponent;
    bool power_of_two = std::frexp(w.unit, &exponent) == 0.5f;
    int usual = UNIT + exponent - 1;
    bool fits = usual >= -14 && usual <= std::min(largest, 15) && (most == 0 || usual + size > -4);
    if (power_of_two && fits) return {usual, 1.0f};
    int power = std::clamp(largest, -14, 15);
    return {power, std::ldexp(w.unit, UNIT - power)};
}

// TILES tiles of sums from SET on, and as many of tokens, `size` words apart, by one of words.
template <int TILES, int SET> PARAGONE_INLINE void multiply_token_tiles(const Word* x, long size, const Word* words) {
    TILE_LOAD(6, words, 64);
    TILE_LOAD(4, x, 64);
    if constexpr (SET == 0) TILE_DOT_PAIRS(0, 4, 6);
    else TILE_DOT_PAIRS(2, 4, 6);
    if constexpr (TILES > 1) {
        TILE_LOAD(5, x + size, 64);
        if constexpr (SET == 0) TILE_DOT_PAIRS(1, 5, 6);
        else TILE_DOT_PAIRS(3, 5, 6);
    }
    if constexpr (TILES > 2) {
        TILE_LOAD(7, x + 2 * size, 64);
        TILE_DOT_PAIRS(2, 7, 6);
    }
    if constexpr (TILES > 3) {
        TILE_LOAD(4, x + 3 * size, 64);
        TILE_DOT_PAIRS(3, 4, 6);
    }
}

// Outputs of the tokens of some tiles, from tile `first` on.
struct TileOutputs {
    const Out& to;
    const TokenTiles& tokens;
    long first, rows;

    // Whether tiles of sums of a panel are what its outputs are, so that they are loaded and stored there.
    bool there(long p, float rest) const { return (p + 1) * PANEL <= rows && !to.bias && rest == 1.0f; }
    float* at(long tile, long p) const { return to.y + tokens.first(first + tile) * to.stride + p * PANEL; }
    long stride() const { return to.stride * (long)sizeof(float); }

    template <int TILES, int SET> PARAGONE_MEMBER void begin(long p, float rest) const {
        constexpr bool MANY = TILES > 2;
        if (!(to.add && there(p, rest))) {
            if constexpr (SET == 0) {
                TILE_ZERO(0);
                if constexpr (TILES > 1) TILE_ZERO(1);
            }
            if constexpr (SET == 2 || MANY) {
                TILE_ZERO(2);
                if constexpr (TILES != 1 && TILES != 3) TILE_ZERO(3);
            }
            return;
        }
        if constexpr (SET == 0) {
            TILE_LOAD(0, at(0, p), stride());
            if constexpr (TILES > 1) TILE_LOAD(1, at(1, p), stride());
        }
        if constexpr (SET == 2 || MANY) {
            TILE_LOAD(2, at(MANY ? 2 : 0, p), stride());
            if constexpr (TILES != 1 && TILES != 3) TILE_LOAD(3, at(MANY ? 3 : 1, p), stride());
        }
    }

    template <int TILES, int SET> PARAGONE_MEMBER void end(long p, float rest) const {
        if (there(p, rest)) return store<TILES, SET>([&](long t) { return at(t, p); }, stride());
        alignas(64) float sums[TILES][TILE_ROWS][PANEL];
        store<TILES, SET>([&](long t) { return sums[t][0]; }, sizeof sums[0][0]);
        for (long t = 0; t < TILES; t++)
            for (long m = (first + t) * tokens.rows; m < tokens.first(first + t) + tokens.rows; m++) {
                VF out[1] = {load(sums[t][m - tokens.first(first + t)]) * rest};
                ::PARAGONE_LEVEL::finish(to, m, p * PANEL, std::min(PANEL, rows - p * PANEL), out);
            }
    }

  private:
    template <int TILES, int SET, class Row> PARAGONE_MEMBER static void store(Row row, long stride) {
        constexpr bool MANY = TILES > 2;
        if constexpr (SET == 0) {
            TILE_STORE(0, row(0), stride);
            if constexpr (TILES > 1) TILE_STORE(1, row(1), stride);
        }
        if constexpr (SET == 2 || MANY) {
            TILE_STORE(2, row(MANY ? 2 : 0), stride);
            if constexpr (TILES != 1 && TILES != 3) TILE_STORE(3, row(MANY ? 3 : 1), stride);
        }
    }
};

// Panels [first, last) by some tiles of tokens: while one is multiplied, the words of the next block are made, be it the
// next panel's. Where there are tiles for two panels' sums, one's are stored when the next has begun.
template <int BITS, bool MINIMUM, bool FINE, int TILES>
static void panels_by_tiles(const Packed& w, long first, long last, const Word* x, const TileOutputs& outputs,
                            Word* ring) {
    using Maker = WordMaker<BITS, MINIMUM, FINE>;
    constexpr bool TWO_SETS = TILES <= 2;
    constexpr long LINES = Maker::SIZE / LINE;
    Maker maker(w);
    const long blocks = (w.D + BLOCK - 1) / BLOCK, size = 2 * blocks * TILE_WORDS;
    const long gap = w.stride - blocks * Maker::SIZE;
    const uint8_t *from = w.panels + first * w.stride, *coming = from;  // the block that is made, and one to come
    Word *now = ring, *then = ring + 2 * TILE_WORDS;
    float rests[4];  // of the last panels
    auto begin = [&](long p) {
        PanelUnit unit = unit_of<BITS, MINIMUM, FINE>(w, from, blocks);
        maker.factor = splat_half(half_power(unit.power));
        rests[p % 4] = unit.rest;
        coming = from + AHEAD * Maker::SIZE + (AHEAD < blocks ? 0 : gap);
    };
    auto make = [&](int half, Word* to) __attribute__((always_inline)) {
        for (long line = half * LINES / 2; line < (half + 1) * LINES / 2; line++)
            __builtin_prefetch(coming + line * LINE, 0, 2);
        maker.make(from, half, to);
    };
    auto multiply = [&]<int SET>(long p) __attribute__((always_inline)) {
        outputs.begin<TILES, SET>(p, rests[p % 4]);
        const Word* tokens = x;
        for (long b = 0; b < blocks; b++, tokens += 2 * TILE_WORDS, std::swap(now, then)) {
            bool last_one = false;
            if (b + 1 < blocks) {
                from += Maker::SIZE;
                coming += Maker::SIZE + (b + 1 == blocks - AHEAD ? gap : 0);
            } else {
                from += Maker::SIZE + gap;
                last_one = p + 1 == last;
                if (!last_one) begin(p + 1);
            }
            if (!last_one) make(0, then);
            multiply_token_tiles<TILES, SET>(tokens, size, now);
            if (!last_one) make(1, then + TILE_WORDS);
            multiply_token_tiles<TILES, SET>(tokens + TILE_WORDS, size, now + TILE_WORDS);
            if (TWO_SETS && b == 0 && p > first) outputs.end<TILES, TWO_SETS ? 2 - SET : 0>(p - 1, rests[(p - 1) % 4]);
        }
        if (!TWO_SETS || p + 1 == last) outputs.end<TILES, SET>(p, rests[p % 4]);
    };
    begin(first);
    make(0, now);
    make(1, now + TILE_WORDS);
    for (long p = first; p < last; p++) {
        multiply.template operator()<0>(p);
        if (TWO_SETS && ++p < last) multiply.template operator()<2>(p);
    }
}

// Panels [first, last) of the weight by M tokens.
template <int BITS, bool MINIMUM, bool FINE>
static void panels_in_words(const Packed& w, long first, long last, const Word* x, const TokenTiles& tokens,
                            const Out& to, Word* ring) {
    long halves = (w.D + BLOCK - 1) / BLOCK * 2, passes = (tokens.tiles + PASS_TILES - 1) / PASS_TILES;
    for (long pass = 0; pass < passes; pass++) {
        long tile = tokens.tiles * pass / passes, count = tokens.tiles * (pass + 1) / passes - tile;
        auto some = [&]<int TILES>() {
            panels_by_tiles<BITS, MINIMUM, FINE, TILES>(w, first, last, x + tile * halves * TILE_WORDS,
                                                        {to, tokens, tile, w.rows}, ring);
        };
        if (count == 1) some.template operator()<1>();
        else if (count == 2) some.template operator()<2>();
        else if (count == 3) some.template operator()<3>();
        else some.template operator()<4>();
    }
}

}  // namespace PARAGONE_LEVEL

#endif
