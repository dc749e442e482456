// Weights in eight bits that have one scale for each row.
//
// Runs of 64 inputs are multiplied by the Hadamard matrix of 64 rows, a weight's when it is packed and activations when
// they are quantised: the matrix is orthogonal, but for a factor of 64 that the scales take back, so that products stay
// what they were, while one large number becomes 64 of usual size. So a row does with one scale, and so does a token
// (compare QuaRot, arXiv:2404.00456). Sums of products are then made of integers from the first input to the last: fast,
// and the same to the bit in any order.
//
// Sixteen rows are a panel, a lane for each: a line of scales, then for every four inputs a line of codes, plus 128.
#pragma once

#include <cstring>

#include "table.h"

namespace hadamard {

constexpr long RUN = 64;             // inputs
constexpr long LINE = 64;            // bytes
constexpr long RUN_BYTES = 16 * RUN;  // of a panel

constexpr long runs_of(long D) { return (D + RUN - 1) / RUN; }
constexpr long panel_bytes(long D) { return runs_of(D) * RUN_BYTES + LINE; }
// A token: codes, then a line that begins with its `Ending`.
constexpr long token_bytes(long D) { return runs_of(D) * RUN + LINE; }

struct Ending {
    float scale;
    int32_t start;  // -128 times the sum of the codes: what sums begin with where the weight's codes mean zero at 128
};

// Puts a row's codes, runs_of(D) * RUN of them, and its scale into its panel.
inline void put_row(uint8_t* panels, long row, long D, const uint8_t* codes, float scale) {
    uint8_t* lane = panels + row / 16 * panel_bytes(D) + row % 16 * 4;
    std::memcpy(lane, &scale, sizeof scale);
    for (long d = 0; d < runs_of(D) * RUN; d += 4) std::memcpy(lane + LINE + d * 16, codes + d, 4);
}

}  // namespace hadamard
