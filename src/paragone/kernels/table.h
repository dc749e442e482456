// What one instruction level offers. `level.cpp` is compiled once a level and fills one table; `pick.cpp` picks the
// best that the processor has. Every function works on a part of its operation, so that the caller decides how the
// parts are spread over threads, and what comes out for a token never depends on the tokens beside it.
//
// Activations are float. N outputs, D inputs, M tokens, E width of a head.
#pragma once

#include <climits>
#include <cstdint>
#include <vector>

// Where the outputs of a product go: y[m * stride + n], with a bias, or added to what is there.
struct Out {
    float* y;
    long stride;
    const float* bias;
    bool add;
};

// How the numbers of a weight in panels are stored; packed.h says how they lie. Scales are in units of `unit`.
struct Layout {
    int bits;
    bool has_minimum, fine;
    float unit;
    bool has_levels = false;
    uint8_t levels[16] = {};  // what codes are numbers of, plus 128

    long code_bytes() const { return 64 * 16 * bits / 8; }  // of a block: 16 rows of 64 inputs
    long block_bytes() const { return code_bytes() + (fine ? 4 : 2) * (has_minimum ? 2 : 1) * 32; }
};

struct Packed : Layout {
    const uint8_t* panels;
    long rows, D;
    long stride;  // bytes from panel to panel: more than one takes where D are some of a wider weight's inputs
};

// A number of a weight in bfloat16 that its panel cannot hold: input `input` of the block, row `lane` of the panel. The
// list of a panel goes by blocks and ends with the last.
struct Outlier {
    int32_t block;
    uint8_t lane, input;
    uint16_t bits;
};
constexpr Outlier LAST_OUTLIER{INT32_MAX, 0, 0, 0};

// A weight in bfloat16; compress.h says how it lies.
struct Compressed {
    const uint8_t* panels;
    const int64_t* lists;  // where in the outliers each panel's list begins
    const Outlier* outliers;
    long rows, D;
};

// A weight in eight bits with one scale for each row; hadamard.h says how it lies.
struct Hadamard {
    const uint8_t* panels;
    long rows, D;
};

// Sixty-four activations of a token in eight bits, as two of ggml's block_q8_1: x = scale * code, a scale for every 32;
// of the first 16 of them and of all, the sum of the codes times their scale (`totals`, for weights with minima), and
// times -8 and -128: what sums of products begin with where the weights' codes mean zero at 8 or 128. Tokens are runs
// of such blocks, D padded with zeros.
struct alignas(64) Quantised {
    int8_t codes[64];
    float scales[2], totals[4];
    int32_t start8[4], start128[4];
};

// What is multiplied with weights in bfloat16: words of 32 bits that hold two bfloat16 numbers where `pairs`, else a
// float. The last word is padded with zero.
typedef uint32_t Word;

// Blocks of keys and values that are read one after the other.
struct Blocks {
    const uint8_t *keys = nullptr, *values = nullptr;
    const int32_t* table = nullptr;
    long count = 0;
};

// Where one head's slots lie, `row` bytes each: in blocks of `size`, slot s in block table[s / size], and the
// blocks `stride` bytes apart. A slot is E numbers in bfloat16, or E int8 codes and a bfloat16 scale behind them.
// `then` is read next, where that is known.
struct Slots {
    const uint8_t *keys, *values;
    const int32_t* table;
    long size, stride, row;
    bool eight_bit;
    Blocks then{};
};

// Tiles of a head's keys and values as `attend_many` multiplies them: TILE_SLOTS slots each, `stride` words apart, the
// first of them number `first`. None: it makes them itself.
constexpr long TILE_SLOTS = 256;
struct SlotTiles {
    const Word* words = nullptr;
    long first = 0, stride = 0;
};

// What is done to scores: capped by softcap * tanh(score / softcap) unless that is 0; then, of query h and slot s,
// bias[h * stride + s] is added unless there is none.
struct Scoring {
    float softcap;
    const float* bias;
    long stride;
};

// Queries (tokens, group, E) of one head and what each token sees: slots [firsts[t], lasts[t]).
struct Queries {
    const float* q;
    long tokens, stride;  // between tokens
    const int32_t *firsts, *lasts;
    float* out;
    long out_stride;
};

enum Activation { SILU, GELU_TANH, GELU };

struct Kernels {
    const char* name;
    bool pairs;  // words hold two numbers
    bool fixed;  // attend_many multiplies whole numbers of 16 bits
    long piece;  // rows, about, that a thread works through at once
    long tile_rows;  // of matrix units; 0 where there are none
    void (*quantize_inputs)(const float* x, long D, Quantised* to);
    void (*hadamard_inputs)(const float* x, long D, uint8_t* token);  // hadamard.h says how a token lies
    void (*to_words)(const float* x, long D, Word* to);
    // Panels [first, last) by M tokens.
    void (*packed_linear)(const Packed&, long first, long last, const Quantised* x, long M, const Out& to);
    // The same by tokens in words, for so many of them that it pays to bring the weights into words: both are rounded
    // to bfloat16. Where there is none, least_tokens is LONG_MAX. room: `room` words.
    struct {
        long least_tokens, room;
        // Token m of M, which lie in `to` together: M to the next 16 times D to the next 64 numbers.
        void (*inputs)(const float* x, long D, long m, long M, Word* to);
        void (*linear)(const Packed&, long first, long last, const Word* x, long M, const Out& to, Word* room);
    } packed_words;
    void (*hadamard_linear)(const Hadamard&, long first, long last, const uint8_t* x, long M, const Out& to);
    // Panels [first, last) by M tokens, in words of D to the next 8. `alike`: what comes out for a token is the same to
    // the bit for any M. room: compressed_room(D) words.
    void (*compressed_linear)(const Compressed&, long first, long last, const Word* x, long M, bool alike,
                              const Out& to, Word* room);
    long (*compressed_room)(long D);
    void (*rms_norm)(const float* x, const float* weight, float eps, long D, float* y);  // no weight: ones
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, long D, float* y);
    // y = act(gate) * up, or act(gate) where there is no up.
    void (*gated)(const float* gate, const float* up, Activation, long n, float* y);
    // Turns `count` heads in place, `stride` apart, by cosines and sines (dim / 2); numbers i and i + dim / 2, or
    // neighbours, are a pair.
    void (*rotate)(float* x, long count, long stride, const float* cos, const float* sin, long dim, bool neighbours);
    // `group` queries (group, E), already scaled, over slots [first, first + S) of one head: unnormalised sums of
    // values (group, E), the largest score and the sum of exponentials of each query. room: 4 times S to the next
    // 16, and 2 (E + 32).
    void (*attend)(const float* q, long group, const Slots&, long first, long S, long E, Scoring, float* room,
                   float* out, float* largest, float* total);
    // Many tokens' queries over all that they see. room: attend_room(rows, E) bytes.
    void (*attend_many)(const Queries&, long group, const Slots&, const SlotTiles&, long E, Scoring, uint8_t* room);
    long (*attend_room)(long rows, long E);
    // What a tile has of slots [lowest, highest): tile_words(E) words. room: (TILE_SLOTS + 1) E numbers.
    void (*make_tile)(const Slots&, long tile, long lowest, long highest, long E, Word* to, uint16_t* room);
    long (*tile_words)(long E);
    void (*narrow)(const float* x, long n, uint16_t* to);
    // A row to codes (D, of four bits), scales and minima: one for every 32 numbers.
    void (*round_row)(const float* x, long D, float unit, uint8_t* codes, float* scales, float* minima);
    // A row to codes, D to the next run; returns its scale.
    float (*hadamard_row)(const float* x, long D, uint8_t* codes);
    // E numbers to an eight-bit slot.
    void (*quantize_slot)(const float* x, long E, int8_t* row);
    // Multiplies on registers alone, codes of 4 or 8 bits, of 8 with a scale for 32 or for whole rows, or what products
    // with bfloat16 are made of (16), or attention of many tokens (16, whole_rows); returns how many operations.
    long (*multiply)(int bits, bool whole_rows, long rounds);
    int32_t (*read_lines)(const uint8_t* from, long bytes);
    // to = e^((x - top) * factor), and their sum.
    double (*exponentials)(const float* x, long n, float top, float factor, float* to);
    void (*softcap)(float* x, long n, float cap);  // x = cap * tanh(x / cap)
    long (*largest)(const float* x, long n);  // index of the first largest; -1 where one is not a number
};

// The levels that the processor has, the best first; and the best, or the one that PARAGONE_KERNELS names.
extern const std::vector<const Kernels*> levels;
// Those that it has, but whose products are not what they should be.
std::vector<const Kernels*>& refused_levels();
extern const Kernels& best;

extern const Kernels KERNELS_BASE;
#if defined(PARAGONE_X86)
extern const Kernels KERNELS_AVX2;
#if defined(PARAGONE_AVX_VNNI)
extern const Kernels KERNELS_AVX_VNNI;
#endif
extern const Kernels KERNELS_AVX512;
#if defined(PARAGONE_VNNI)
extern const Kernels KERNELS_AVX512_VNNI;
#endif
#if defined(PARAGONE_BF16)
extern const Kernels KERNELS_AVX512_BF16;
extern const Kernels KERNELS_AMX_IN_SOFTWARE;  // for tests
#endif
#if defined(PARAGONE_AMX)
extern const Kernels KERNELS_AMX;
#endif
#endif
