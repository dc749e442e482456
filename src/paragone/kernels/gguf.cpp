#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "pack.h"

namespace {

// Blocks as ggml names their fields are in the comments; d, m and dmin are float16, the others bytes.
float half_at(const uint8_t* at) {
    uint16_t h;
    std::memcpy(&h, at, 2);
    return from_half(h);
}

// Thirty-two codes: low halves of sixteen bytes, then high halves, with a fifth bit each where there is one.
void nibbles(const uint8_t* from, const uint8_t* fifth, uint8_t* codes) {
    uint32_t bits = 0;
    if (fifth) std::memcpy(&bits, fifth, 4);
    for (int i = 0; i < 16; i++) {
        codes[i] = (uint8_t)((from[i] & 15) | (bits >> i & 1) << 4);
        codes[i + 16] = (uint8_t)(from[i] >> 4 | (bits >> (i + 16) & 1) << 4);
    }
}

// d, qs[16]
void q4_0(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float*) {
    *scales = half_at(b);
    nibbles(b + 2, nullptr, codes);
}

// d, m, qs[16]
void q4_1(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float* minima) {
    *scales = half_at(b);
    *minima = half_at(b + 2);
    nibbles(b + 4, nullptr, codes);
}

// d, qh[4], qs[16]
void q5_0(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float*) {
    *scales = half_at(b);
    nibbles(b + 6, b + 2, codes);
}

// d, m, qh[4], qs[16]
void q5_1(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float* minima) {
    *scales = half_at(b);
    *minima = half_at(b + 2);
    nibbles(b + 8, b + 4, codes);
}

// d, qs[32]
void q8_0(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float*) {
    *scales = half_at(b);
    for (int i = 0; i < 32; i++) codes[i] = b[2 + i] ^ 128;
}

// Six bits each for eight scales and eight minima.
void scales_k(const uint8_t* b, float d, float dmin, float* scales, float* minima) {
    for (int i = 0; i < 4; i++) {
        scales[i] = d * (float)(b[i] & 63);
        minima[i] = -(dmin * (float)(b[i + 4] & 63));
        scales[i + 4] = d * (float)((b[i + 8] & 15) | (b[i] >> 6) << 4);
        minima[i + 4] = -(dmin * (float)(b[i + 8] >> 4 | (b[i + 4] >> 6) << 4));
    }
}

// d, dmin, scales[12], qs[128]
void q4_k(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float* minima) {
    scales_k(b + 4, half_at(b), half_at(b + 2), scales, minima);
    for (int i = 0; i < 256; i++) codes[i] = b[16 + i / 64 * 32 + i % 32] >> (i % 64 < 32 ? 0 : 4) & 15;
}

// d, dmin, scales[12], qh[32], qs[128]
void q5_k(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float* minima) {
    scales_k(b + 4, half_at(b), half_at(b + 2), scales, minima);
    for (int i = 0; i < 256; i++) {
        int low = b[48 + i / 64 * 32 + i % 32] >> (i % 64 < 32 ? 0 : 4) & 15;
        codes[i] = (uint8_t)(low | (b[16 + i % 32] >> (i / 32) & 1) << 4);
    }
}

// ql[128], qh[64], scales[16], d
void q6_k(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float*) {
    float d = half_at(b + 208);
    for (int i = 0; i < 16; i++) scales[i] = d * (float)(int8_t)b[192 + i];
    for (int i = 0; i < 256; i++) {
        int part = i % 128 / 32, low = b[i / 128 * 64 + part % 2 * 32 + i % 32] >> (part < 2 ? 0 : 4) & 15;
        int high = b[128 + i / 128 * 32 + i % 32] >> (2 * part) & 3;
        codes[i] = (uint8_t)(low | high << 4);
    }
}

// scales[16], qs[64], d, dmin
void q2_k(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float* minima) {
    float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int i = 0; i < 16; i++) {
        scales[i] = d * (float)(b[i] & 15);
        minima[i] = -(dmin * (float)(b[i] >> 4));
    }
    for (int i = 0; i < 256; i++) codes[i] = b[16 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
}

// hmask[32], qs[64], scales[12], d
void q3_k(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float*) {
    float d = half_at(b + 108);
    for (int i = 0; i < 16; i++) {
        int low = b[96 + i % 8] >> (i < 8 ? 0 : 4) & 15, high = b[104 + i % 4] >> (2 * (i / 4)) & 3;
        scales[i] = d * (float)((low | high << 4) - 32);
    }
    for (int i = 0; i < 256; i++) {
        int low = b[32 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3, high = b[i % 32] >> (i / 32) & 1;
        codes[i] = (uint8_t)(low - (high ? 0 : 4) + 8);
    }
}

// What four bits stand for in the types that are not linear.
constexpr int8_t LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// The same of floating-point numbers of four bits, doubled.
constexpr int8_t MX_LEVELS[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void levels(const uint8_t* from, const int8_t* of, uint8_t* codes) {
    nibbles(from, nullptr, codes);
    for (int i = 0; i < 32; i++) codes[i] = (uint8_t)(of[codes[i]] + 128);
}

// d, qs[16]
void iq4_nl(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float*) {
    *scales = half_at(b);
    levels(b + 2, LEVELS, codes);
}

// d, scales_h (16 bits), scales_l[4], qs[128]
void iq4_xs(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float*) {
    int high = b[2] | b[3] << 8;
    for (int i = 0; i < 8; i++) {
        int low = b[4 + i / 2] >> (i % 2 * 4) & 15;
        scales[i] = half_at(b) * (float)((low | (high >> (2 * i) & 3) << 4) - 32);
        levels(b + 8 + 16 * i, LEVELS, codes + 32 * i);
    }
}

// e, qs[16]
void mxfp4(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float*) {
    *scales = std::ldexp(1.0f, b[0] - 128);
    levels(b + 1, MX_LEVELS, codes);
}

// scales[4], qs[32]; half of each scale, as the levels are doubled
void nvfp4(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float*) {
    for (int i = 0; i < 4; i++) {
        int exponent = b[i] >> 3 & 15, fraction = (b[i] & 7) + (exponent ? 8 : 0);
        scales[i] = b[i] == 127 ? 0.0f : std::ldexp((float)fraction, std::max(exponent, 1) - 11);
        for (int j = 0; j < 8; j++) {
            int both = b[4 + 8 * i + j];
            codes[16 * i + j] = (uint8_t)(MX_LEVELS[both & 15] + 128);
            codes[16 * i + j + 8] = (uint8_t)(MX_LEVELS[both >> 4] + 128);
        }
    }
}

uint32_t word_at(const uint8_t* at) {
    uint32_t w;
    std::memcpy(&w, at, 4);
    return w;
}

uint32_t short_at(const uint8_t* at) { return at[0] | at[1] << 8; }

// Entries of `count` weights, and a bit each that says whether it is negative.
void signed_entry(const int8_t* entry, int count, uint32_t signs, uint8_t* codes) {
    for (int i = 0; i < count; i++) codes[i] = (uint8_t)((signs >> i & 1 ? -entry[i] : entry[i]) + 128);
}

// Seven stored signs and the eighth, which makes the number of negative ones even.
uint32_t with_parity(uint32_t seven) {
    seven &= 127;
    return seven | (uint32_t)(__builtin_popcount(seven) & 1) << 7;
}

// d, qs[8] of four entries and 32 bits: four times seven signs, and a scale
void iq2_xxs(const uint8_t* b, const int8_t* book, uint8_t* codes, float* scales, float*) {
    for (int i = 0; i < 8; i++) {
        const uint8_t* entries = b + 2 + 8 * i;
        uint32_t word = word_at(entries + 4);
        scales[i] = half_at(b) * (0.5f + (float)(word >> 28)) * 0.25f;
        for (int j = 0; j < 4; j++)
            signed_entry(book + 8 * entries[j], 8, with_parity(word >> (7 * j)), codes + 32 * i + 8 * j);
    }
}

// d, qs[32] of 9 bits and seven signs, scales[8]
void iq2_xs(const uint8_t* b, const int8_t* book, uint8_t* codes, float* scales, float*) {
    for (int i = 0; i < 16; i++)
        scales[i] = half_at(b) * (0.5f + (float)(b[66 + i / 2] >> (i % 2 * 4) & 15)) * 0.25f;
    for (int i = 0; i < 32; i++) {
        uint32_t word = short_at(b + 2 + 2 * i);
        signed_entry(book + 8 * (word & 511), 8, with_parity(word >> 9), codes + 8 * i);
    }
}

// d, qs[32], signs[32], qh[8], scales[8]
void iq2_s(const uint8_t* b, const int8_t* book, uint8_t* codes, float* scales, float*) {
    for (int i = 0; i < 16; i++)
        scales[i] = half_at(b) * (0.5f + (float)(b[74 + i / 2] >> (i % 2 * 4) & 15)) * 0.25f;
    for (int i = 0; i < 32; i++) {
        int entry = b[2 + i] | (b[66 + i / 4] >> (i % 4 * 2) & 3) << 8;
        signed_entry(book + 8 * entry, 8, b[34 + i], codes + 8 * i);
    }
}

// d, qs[64], eight times 32 bits: four times seven signs, and a scale
void iq3_xxs(const uint8_t* b, const int8_t* book, uint8_t* codes, float* scales, float*) {
    for (int i = 0; i < 8; i++) {
        uint32_t word = word_at(b + 66 + 4 * i);
        scales[i] = half_at(b) * (0.5f + (float)(word >> 28)) * 0.5f;
        for (int j = 0; j < 8; j++) {
            uint32_t signs = with_parity(word >> (j / 2 * 7)) >> (j % 2 * 4);
            signed_entry(book + 4 * b[2 + 8 * i + j], 4, signs, codes + 32 * i + 4 * j);
        }
    }
}

// d, qs[64], qh[8], signs[32], scales[4]
void iq3_s(const uint8_t* b, const int8_t* book, uint8_t* codes, float* scales, float*) {
    for (int i = 0; i < 8; i++) scales[i] = half_at(b) * (float)(1 + 2 * (b[106 + i / 2] >> (i % 2 * 4) & 15));
    for (int i = 0; i < 64; i++) {
        int entry = b[2 + i] | (b[66 + i / 8] >> (i % 8) & 1) << 8;
        signed_entry(book + 4 * entry, 4, b[74 + i / 2] >> (i % 2 * 4), codes + 4 * i);
    }
}

// d, qs[32], qh[8] of 16 bits
void iq1_s(const uint8_t* b, const int8_t* book, uint8_t* codes, float* scales, float* minima) {
    for (int i = 0; i < 8; i++) {
        uint32_t word = short_at(b + 34 + 2 * i);
        scales[i] = half_at(b) * (float)(2 * (word >> 12 & 7) + 1);
        minima[i] = scales[i] * (word & 0x8000 ? -1.125f : -0.875f);
        for (int j = 0; j < 32; j++) {
            int entry = b[2 + 4 * i + j / 8] | (word >> (j / 8 * 3) & 7) << 8;
            codes[32 * i + j] = (uint8_t)(book[8 * entry + j % 8] + 1);
        }
    }
}

// qs[32], qh[16], scales[8]
void iq1_m(const uint8_t* b, const int8_t* book, uint8_t* codes, float* scales, float*) {
    uint16_t d = 0;
    for (int i = 0; i < 4; i++) d = (uint16_t)(d | (short_at(b + 48 + 2 * i) >> 12) << (4 * i));
    for (int i = 0; i < 16; i++) {
        uint32_t step = short_at(b + 48 + i / 4 * 2) >> (i % 4 * 3) & 7;
        scales[i] = from_half(d) * (float)(2 * step + 1) / 8;
    }
    for (int i = 0; i < 256; i++) {
        int high = b[32 + i / 16] >> (i / 8 % 2 * 4) & 15, entry = b[i / 8] | (high & 7) << 8;
        codes[i] = (uint8_t)(8 * book[8 * entry + i % 8] + (high & 8 ? -1 : 1) + 128);
    }
}

// qs[48], qh[4], d: five digits a byte, a fraction of 256 that each power of three brings to the front
void tq1_0(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float*) {
    constexpr uint8_t POWERS[5] = {1, 3, 9, 27, 81};
    for (int i = 0; i < 8; i++) scales[i] = half_at(b + 52);
    for (int i = 0; i < 256; i++) {
        int digit = i < 160 ? i / 32 : i < 240 ? (i - 160) / 16 : (i - 240) / 4;
        uint8_t from = i < 160 ? b[i % 32] : i < 240 ? b[32 + i % 16] : b[48 + i % 4];
        codes[i] = (uint8_t)(((uint8_t)(from * POWERS[digit]) * 3 >> 8) - 1 + 8);
    }
}

// qs[64], d
void tq2_0(const uint8_t* b, const int8_t*, uint8_t* codes, float* scales, float*) {
    for (int i = 0; i < 8; i++) scales[i] = half_at(b + 64);
    for (int i = 0; i < 256; i++)
        codes[i] = (uint8_t)((b[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) - 1 + 8);
}

constexpr GgufType TYPES[] = {
    {"Q4_0", 32, 18, 1, q4_0},     {"Q4_1", 32, 20, 1, q4_1},     {"Q5_0", 32, 22, 1, q5_0},
    {"Q5_1", 32, 24, 1, q5_1},     {"Q8_0", 32, 34, 1, q8_0},     {"Q2_K", 256, 84, 16, q2_k},
    {"Q3_K", 256, 110, 16, q3_k},  {"Q4_K", 256, 144, 8, q4_k},   {"Q5_K", 256, 176, 8, q5_k},
    {"Q6_K", 256, 210, 16, q6_k},  {"IQ4_NL", 32, 18, 1, iq4_nl}, {"IQ4_XS", 256, 136, 8, iq4_xs},
    {"IQ3_S", 256, 110, 8, iq3_s}, {"IQ3_XXS", 256, 98, 8, iq3_xxs}, {"IQ2_S", 256, 82, 16, iq2_s},
    {"IQ2_XS", 256, 74, 16, iq2_xs}, {"IQ2_XXS", 256, 66, 8, iq2_xxs}, {"IQ1_M", 256, 56, 16, iq1_m},
    {"IQ1_S", 256, 50, 8, iq1_s}, {"TQ1_0", 256, 54, 8, tq1_0}, {"TQ2_0", 256, 66, 8, tq2_0},
    {"MXFP4", 32, 17, 1, mxfp4},   {"NVFP4", 64, 36, 4, nvfp4},
};

}  // namespace

const GgufType* gguf_type(const std::string& name) {
    for (const GgufType& type : TYPES)
        if (name == type.name) return &type;
    return nullptr;
}
