#include "gguf.h"

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
void nibbles(const uint8_t* from, const uint8_t* fifth, int add, uint8_t* codes) {
    uint32_t bits = 0;
    if (fifth) std::memcpy(&bits, fifth, 4);
    for (int i = 0; i < 16; i++) {
        codes[i] = (uint8_t)(((from[i] & 15) | (bits >> i & 1) << 4) + add);
        codes[i + 16] = (uint8_t)((from[i] >> 4 | (bits >> (i + 16) & 1) << 4) + add);
    }
}

// d, qs[16]
void q4_0(const uint8_t* b, uint8_t* codes, float* scales, float*) {
    *scales = half_at(b);
    nibbles(b + 2, nullptr, 0, codes);
}

// d, m, qs[16]
void q4_1(const uint8_t* b, uint8_t* codes, float* scales, float* minima) {
    *scales = half_at(b);
    *minima = half_at(b + 2);
    nibbles(b + 4, nullptr, 0, codes);
}

// d, qh[4], qs[16]
void q5_0(const uint8_t* b, uint8_t* codes, float* scales, float*) {
    *scales = half_at(b);
    nibbles(b + 6, b + 2, 128 - 16, codes);
}

// d, m, qh[4], qs[16]
void q5_1(const uint8_t* b, uint8_t* codes, float* scales, float* minima) {
    *scales = half_at(b);
    *minima = half_at(b + 2);
    nibbles(b + 8, b + 4, 128, codes);
}

// d, qs[32]
void q8_0(const uint8_t* b, uint8_t* codes, float* scales, float*) {
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
void q4_k(const uint8_t* b, uint8_t* codes, float* scales, float* minima) {
    scales_k(b + 4, half_at(b), half_at(b + 2), scales, minima);
    for (int i = 0; i < 256; i++) codes[i] = b[16 + i / 64 * 32 + i % 32] >> (i % 64 < 32 ? 0 : 4) & 15;
}

// d, dmin, scales[12], qh[32], qs[128]
void q5_k(const uint8_t* b, uint8_t* codes, float* scales, float* minima) {
    scales_k(b + 4, half_at(b), half_at(b + 2), scales, minima);
    for (int i = 0; i < 256; i++) {
        int low = b[48 + i / 64 * 32 + i % 32] >> (i % 64 < 32 ? 0 : 4) & 15;
        codes[i] = (uint8_t)((low | (b[16 + i % 32] >> (i / 32) & 1) << 4) + 128);
    }
}

// ql[128], qh[64], scales[16], d
void q6_k(const uint8_t* b, uint8_t* codes, float* scales, float*) {
    float d = half_at(b + 208);
    for (int i = 0; i < 16; i++) scales[i] = d * (float)(int8_t)b[192 + i];
    for (int i = 0; i < 256; i++) {
        int part = i % 128 / 32, low = b[i / 128 * 64 + part % 2 * 32 + i % 32] >> (part < 2 ? 0 : 4) & 15;
        int high = b[128 + i / 128 * 32 + i % 32] >> (2 * part) & 3;
        codes[i] = (uint8_t)((low | high << 4) - 32 + 128);
    }
}

// scales[16], qs[64], d, dmin
void q2_k(const uint8_t* b, uint8_t* codes, float* scales, float* minima) {
    float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int i = 0; i < 16; i++) {
        scales[i] = d * (float)(b[i] & 15);
        minima[i] = -(dmin * (float)(b[i] >> 4));
    }
    for (int i = 0; i < 256; i++) codes[i] = b[16 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
}

// hmask[32], qs[64], scales[12], d
void q3_k(const uint8_t* b, uint8_t* codes, float* scales, float*) {
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

void levels(const uint8_t* from, uint8_t* codes) {
    nibbles(from, nullptr, 0, codes);
    for (int i = 0; i < 32; i++) codes[i] = (uint8_t)(LEVELS[codes[i]] + 128);
}

// d, qs[16]
void iq4_nl(const uint8_t* b, uint8_t* codes, float* scales, float*) {
    *scales = half_at(b);
    levels(b + 2, codes);
}

// d, scales_h (16 bits), scales_l[4], qs[128]
void iq4_xs(const uint8_t* b, uint8_t* codes, float* scales, float*) {
    int high = b[2] | b[3] << 8;
    for (int i = 0; i < 8; i++) {
        int low = b[4 + i / 2] >> (i % 2 * 4) & 15;
        scales[i] = half_at(b) * (float)((low | (high >> (2 * i) & 3) << 4) - 32);
        levels(b + 8 + 16 * i, codes + 32 * i);
    }
}

constexpr GgufType TYPES[] = {
    {"Q4_0", 32, 18, 1, q4_0},     {"Q4_1", 32, 20, 1, q4_1},     {"Q5_0", 32, 22, 1, q5_0},
    {"Q5_1", 32, 24, 1, q5_1},     {"Q8_0", 32, 34, 1, q8_0},     {"Q2_K", 256, 84, 16, q2_k},
    {"Q3_K", 256, 110, 16, q3_k},  {"Q4_K", 256, 144, 8, q4_k},   {"Q5_K", 256, 176, 8, q5_k},
    {"Q6_K", 256, 210, 16, q6_k},  {"IQ4_NL", 32, 18, 1, iq4_nl}, {"IQ4_XS", 256, 136, 8, iq4_xs},
};

}  // namespace

const GgufType* gguf_type(const std::string& name) {
    for (const GgufType& type : TYPES)
        if (name == type.name) return &type;
    return nullptr;
}
