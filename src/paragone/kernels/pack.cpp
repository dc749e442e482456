#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

uint16_t to_half(float x) {
    uint32_t bits;
    float size = std::min(std::fabs(x), 65504.0f);
    bool subnormal = size < 0x1p-14f;
    if (subnormal) size += 0.5f;  // whose last place is the smallest float16: it rounds once
    std::memcpy(&bits, &size, 4);
    uint32_t code = subnormal ? bits - 0x3f000000 : (bits - (112 << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
    return (uint16_t)(code | (std::signbit(x) ? 0x8000 : 0));
}

float from_half(uint16_t h) {
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
    float size;
    std::memcpy(&size, &bits, 4);
    size *= 0x1p112f;
    return h & 0x8000 ? -size : size;
}

// Of a block of codes in less than eight bits: what is not upper bits.
constexpr long LOW_BYTES = 64 * 16 / 2;

void Packing::put(long first, long count, const uint8_t* codes, const float* scales, const float* minima) const {
    long blocks = (D + 63) / 64, group = fine ? 16 : 32, groups = (D + group - 1) / group, each = 64 / group;
    long size = block_bytes();
    long upper = bits < 8 ? bits - 4 : 0;
    for (long row = first; row < first + count; row++, codes += D, scales += groups) {
        long lane = row % 16;
        uint8_t* block = panels + row / 16 * blocks * size;
        for (long b = 0; b < blocks; b++, block += size) {
            uint8_t own[64] = {};
            std::memcpy(own, codes + b * 64, std::min(64L, D - b * 64));
            for (long i = 0; i < 64; i += 4) {
                if (bits == 8) {
                    std::memcpy(block + i * 16 + lane * 4, own + i, 4);
                } else if (i % 32 < 16) {
                    uint8_t* to = block + (i / 32 * 4 + i % 32 / 4) * 64 + lane * 4;
                    for (long j = 0; j < 4; j++) to[j] = (uint8_t)((own[i + j] & 15) | own[i + j + 16] << 4);
                }
            }
            long inputs = upper ? 32 / upper : 0;  // that a register has the upper bits of
            for (long line = 0; line < 2 * upper; line++)
                for (long j = 0; j < 4; j++) {
                    int byte = 0;
                    for (long i = 0; i < inputs; i += 4) byte |= own[line * inputs + i + j] >> 4 << (i / 4 * upper);
                    block[LOW_BYTES + line * 64 + lane * 4 + j] = (uint8_t)byte;
                }
            uint16_t* to = (uint16_t*)(block + code_bytes());
            for (long g = 0; g < each; g++) {
                bool there = b * each + g < groups;
                to[g * 16 + lane] = there ? to_half(scales[b * each + g] / unit) : 0;
                if (has_minimum) to[(each + g) * 16 + lane] = there ? to_half(minima[b * each + g] / unit) : 0;
            }
        }
        if (has_minimum) minima += groups;
    }
}

void Packing::fetch(long row) const {
    long bytes = (D + 63) / 64 * block_bytes();
    const uint8_t* panel = panels + row / 16 * bytes;
    for (long at = 0; at < bytes; at += 64) __builtin_prefetch(panel + at);
}

void Packing::get(long row, float* to) const {
    constexpr long QUAD = 4;  // inputs that lie together
    const int group_shift = fine ? 4 : 5;  // divisions by what the compiler does not know took most of the time
    long blocks = (D + 63) / 64, each = 64 >> group_shift, lane = row % 16;
    long size = block_bytes();
    long upper = bits < 8 ? bits - 4 : 0, inputs = upper ? 32 / upper : 64;
    int center = has_minimum && bits < 8 ? 0 : 1 << (bits - 1), most = (1 << upper) - 1;
    const uint8_t* block = panels + row / 16 * blocks * size + lane * QUAD;
    for (long b = 0; b < blocks; b++, block += size) {
        const uint16_t* scales = (const uint16_t*)(block + code_bytes() - lane * QUAD) + lane;
        float scale = 0, minimum = 0;
        for (long i = 0; i < std::min(64L, D - b * 64); i += QUAD) {
            if (i % 16 == 0) {
                long group = i >> group_shift;
                scale = from_half(scales[group * 16]) * unit;
                if (has_minimum) minimum = from_half(scales[(each + group) * 16]) * unit;
            }
            const uint8_t* codes = block + (bits == 8 ? i / QUAD : i / 32 * 4 + i % 16 / QUAD) * 64;
            const uint8_t* above = upper ? block + LOW_BYTES + i / inputs * 64 : nullptr;
            int shift = i % 32 < 16 ? 0 : 4, above_shift = upper ? (int)(i % inputs / QUAD * upper) : 0;
            for (long j = 0; j < std::min(QUAD, D - b * 64 - i); j++) {
                int code = bits == 8 ? codes[j] : codes[j] >> shift & 15;
                if (upper) code |= (above[j] >> above_shift & most) << 4;
                float value = (float)(has_levels ? levels[code] - 128 : code - center) * scale;
                to[b * 64 + i + j] = has_minimum ? value + minimum : value;
            }
        }
    }
}
