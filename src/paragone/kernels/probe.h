#pragma once

#include <cstdint>

// Bytes a second that `threads` read together.
double read_rate(const uint8_t* from, long bytes, int threads);

// Operations a second of all threads on registers alone, a product and a sum being two: of codes of 4 or 8 bits with
// bytes, or, of 16, of what products with bfloat16 are made of.
double multiply_rate(int bits, int threads, bool whole_rows);
