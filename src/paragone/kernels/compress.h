// Weights in bfloat16 in twelve bits a number, without loss.
//
// A number is a sign, eight bits of exponent and seven of fraction. The exponents of a trained weight are few: their
// upper seven bits, with the sign, take four bits where they are one of eight that each panel chooses for itself
// (DFloat11, arXiv:2504.11651, found the same and codes by Huffman; a fixed width is read at the speed of memory). The
// lower byte stays as it is. Numbers that have none of these upper bits, one in thousands, stand in a list of their
// own; what is in their place in the panel is finite and means nothing.
//
// Sixteen rows are a panel: a line that begins with the sixteen upper bytes that codes stand for, then blocks of eight
// inputs, a line of codes and two of lower bytes. A byte of codes holds those of inputs i (low) and i + 4. In a line of
// lower bytes lie, for four rows at a time, two inputs of each row and then the next two: so what interleaves bytes
// within 128 bits makes words of neighbouring inputs, a lane for each row.
#pragma once

#include <cstdint>
#include <vector>

#include "table.h"

namespace compressed {

constexpr long ROWS = 16, INPUTS = 8, LINE = 64;
constexpr long BLOCK_BYTES = 3 * LINE;

constexpr long blocks_of(long D) { return (D + INPUTS - 1) / INPUTS; }
constexpr long panel_bytes(long D) { return LINE + blocks_of(D) * BLOCK_BYTES; }

// Of row `lane` and input i of a block: the place of its byte in one of two lines, the second from input 4 on.
constexpr long place(long lane, long i) { return lane / 4 * 16 + i / 2 % 2 * 8 + lane % 4 * 2 + i % 2; }

// Rows as they are, `count` of them at most sixteen, D numbers each, to a panel; its list is added to `list`.
void compress_panel(const uint8_t* const* rows, long count, long D, uint8_t* panel, std::vector<Outlier>& list);

// One row of a panel as it was.
void expand_row(const uint8_t* panel, const Outlier* list, long lane, long D, uint16_t* to);

}  // namespace compressed
