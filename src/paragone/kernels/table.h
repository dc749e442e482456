// What one instruction level offers. `level.cpp` is compiled once a level and fills one table; `module.cpp`
// picks the best that the processor has. Every function works on a part of its operation, so that the
// caller decides how the parts are spread over threads.
//
// Activations are bfloat16 (uint16_t) unless they are float. N outputs, D inputs, M tokens (rows of x).
#pragma once

#include <cstdint>

enum class Format { bf16, int8, int4 };

// Rows of a weight matrix. int8: codes (N, D), scales (N). int4: codes (N, D / 2), where byte i of each group
// of 32 inputs holds input i in its low and input i + 16 in its high half; scales (N, D / 32, 2), scale and
// zero: weight = (code - 8) * scale + zero. Scales are bfloat16.
struct Rows {
    const uint8_t* codes;
    const uint16_t* scales;
};

constexpr long GROUP = 32;

// Where one head's slots lie, `row` bytes each: in blocks of `size`, slot s in block table[s / size], and the
// blocks `stride` bytes apart; or, without a table, in one run. A slot is E numbers in bfloat16, or E int8 codes
// and a bfloat16 scale behind them.
struct Slots {
    const uint8_t *keys, *values;
    const int32_t* table;
    long size, stride, row;
    bool eight_bit;
};

// What is done to scores: capped by softcap * tanh(score / softcap) unless that is 0; then, of query h and slot s,
// bias[h * stride + s] is added unless there is none.
struct Scoring {
    float softcap;
    const float* bias;
    long stride;
};

// x (M, D) as it came, and as float; and the sums (M, D / 32) of its groups, for int4 only.
struct Inputs {
    const uint16_t* narrow;
    const float *wide, *sums;
};

struct Kernels {
    const char* name;
    bool pairs;  // products with bf16 weights take `narrow`, all others `wide`
    // y[m][n] = x[m] . weight[n], for `rows` rows; y (M, rows) with a stride, float.
    void (*linear)(Format, Rows, long rows, long D, Inputs x, float* y, long M, long stride);
    void (*widen)(const uint16_t* from, float* to, long n);
    void (*narrow)(const float* from, const uint16_t* bias, uint16_t* to, long n);
    // Rows of an int4 matrix as bfloat16 (rows, D).
    void (*dequantize)(Rows, long rows, long D, uint16_t* to);
    // RMSNorm of one row. The weight is float (multiplied before rounding) or bfloat16 (after).
    void (*rms_norm)(const uint16_t* x, const float* wide_weight, const uint16_t* weight, float eps, long D,
                     uint16_t* y);
    // Turns one head in place; cos and sin (E), the first half of sin negated.
    void (*rotate)(uint16_t* x, const uint16_t* cos, const uint16_t* sin, long E);
    // y = act(gate) * up for one row; 0: SiLU, 1: GELU by tanh.
    void (*gated)(const uint16_t* gate, const uint16_t* up, int activation, long n, uint16_t* y);
    // `group` queries (group, E) float, already scaled, over slots [first, first + S) of one head: unnormalised
    // sums of values (group, E), the largest score and the sum of exponentials of each query. scores: (4, S).
    void (*attend)(const float* q, long group, const Slots& slots, long first, long S, long E, Scoring scoring,
                   float* scores, float* out, float* largest, float* total);
    // E numbers in bfloat16 to an eight-bit slot.
    void (*quantize)(const uint16_t* x, long E, int8_t* row);
};

extern const Kernels KERNELS_BASE;
#if defined(PARAGONE_X86)
extern const Kernels KERNELS_AVX2;
extern const Kernels KERNELS_AVX512;
#if defined(PARAGONE_BF16)
extern const Kernels KERNELS_AVX512_BF16;
#endif
#endif
