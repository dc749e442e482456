// The binding: picks the best instruction level that the processor has, spreads operations over threads, and
// takes addresses from Python. Callers (ops/) check shapes, types and layouts; nothing is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include <nanobind/stl/tuple.h>

#include "table.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace nb = nanobind;

namespace {

const Kernels* choose() {
    const char* wanted = std::getenv("PARAGONE_KERNELS");
    std::vector<const Kernels*> here;
#if defined(PARAGONE_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512cd")) {
#if defined(PARAGONE_BF16)
        if (__builtin_cpu_supports("avx512bf16")) here.push_back(&KERNELS_AVX512_BF16);
#endif
        here.push_back(&KERNELS_AVX512);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) here.push_back(&KERNELS_AVX2);
#endif
    here.push_back(&KERNELS_BASE);
    if (wanted && *wanted)
        for (const Kernels* level : here)
            if (!std::strcmp(level->name, wanted)) return level;
    return here.front();
}

const Kernels& best = *choose();

// Runs task(i) for i in [0, count), on several threads where the work, in bytes that are touched, is worth it.
template <class Task> void parallel(long count, long bytes, Task task) {
#if defined(_OPENMP)
#pragma omp parallel for schedule(static) if (count > 1 && bytes > 16384)
#endif
    for (long i = 0; i < count; i++) task(i);
}

long threads() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// A weight matrix (N, D) whose rows lie in one or several places.
class Matrix {
  public:
    using Part = std::tuple<uintptr_t, uintptr_t, long>;  // codes, scales, rows

    Matrix(const std::string& format, long D, const std::vector<Part>& parts, uintptr_t bias)
        : format_(format == "bf16" ? Format::bf16 : format == "int8" ? Format::int8 : Format::int4),
          D_(D), N_(0), bias_((const uint16_t*)bias) {
        for (auto [codes, scales, rows] : parts) {
            parts_.push_back({{(const uint8_t*)codes, (const uint16_t*)scales}, N_, rows});
            N_ += rows;
        }
    }

    // y (M, N) = x (M, D) . weight + bias; x is bfloat16, y too or, unrounded and without bias, float.
    void multiply(uintptr_t x_at, uintptr_t y_at, long M, bool wide_y) const {
        const uint16_t* x = (const uint16_t*)x_at;
        long G = format_ == Format::int4 ? D_ / GROUP : 0;
        bool widens = !(format_ == Format::bf16 && best.pairs);
        thread_local std::vector<float> room;
        size_t needed = M * (D_ + G + (wide_y ? 0 : N_));
        if (room.size() < needed) room.resize(needed);
        float *wide = room.data(), *sums = wide + M * D_, *out = wide_y ? (float*)y_at : sums + M * G;
        if (widens) best.widen(x, wide, M * D_);
        for (long g = 0; g < M * G; g++) {
            float total = 0;
            for (long i = 0; i < GROUP; i++) total += wide[g * GROUP + i];
            sums[g] = total;
        }
        long workers = threads();
        parallel(workers, N_ * D_, [&](long worker) {
            // Whole blocks of 16 rows each, so that no two threads write to one line of the cache.
            long blocks = (N_ + 15) / 16;
            long first = std::min(N_, blocks * worker / workers * 16);
            long last = std::min(N_, blocks * (worker + 1) / workers * 16);
            for (const Stack& part : parts_) {
                long a = std::max(first, part.first), b = std::min(last, part.first + part.rows);
                if (a < b)
                    best.linear(format_, from(part.rows_, a - part.first), b - a, D_, {x, wide, sums}, out + a, M, N_);
            }
            for (long m = 0; m < M && !wide_y; m++)
                best.narrow(out + m * N_ + first, bias_ ? bias_ + first : nullptr,
                            (uint16_t*)y_at + m * N_ + first, last - first);
        });
    }

    // Rows [first, first + count) of an int4 matrix as bfloat16, for products with many tokens.
    void dequantize(long first, long count, uintptr_t to_at) const {
        uint16_t* to = (uint16_t*)to_at;
        long workers = threads();
        parallel(workers, count * D_, [&](long worker) {
            long begin = first + count * worker / workers, end = first + count * (worker + 1) / workers;
            for (const Stack& part : parts_) {
                long a = std::max(begin, part.first), b = std::min(end, part.first + part.rows);
                if (a < b)
                    best.dequantize(from(part.rows_, a - part.first), b - a, D_, to + (a - first) * D_);
            }
        });
    }

  private:
    struct Stack {
        Rows rows_;
        long first, rows;
    };

    Rows from(Rows rows, long n) const {
        long width = format_ == Format::bf16 ? 2 * D_ : format_ == Format::int8 ? D_ : D_ / 2;
        long scales = format_ == Format::int4 ? D_ / GROUP * 2 : 1;
        return {rows.codes + n * width, rows.scales + n * scales};
    }

    Format format_;
    long D_, N_;
    const uint16_t* bias_;
    std::vector<Stack> parts_;
};

// x (tokens, heads, D) with a stride between tokens; the weight is (D), or (heads, D) where `per_head`.
void rms_norm(uintptr_t x, uintptr_t y, uintptr_t weight, bool wide, float eps, long tokens, long heads, long D,
              long x_stride, long y_stride, bool per_head) {
    parallel(tokens, tokens * heads * D * 2, [&](long t) {
        for (long h = 0; h < heads; h++) {
            long at = per_head ? h * D : 0;
            best.rms_norm((const uint16_t*)x + t * x_stride + h * D, wide ? (const float*)weight + at : nullptr,
                          wide ? nullptr : (const uint16_t*)weight + at, eps, D,
                          (uint16_t*)y + t * y_stride + h * D);
        }
    });
}

// x (tokens, heads, E) in place with a stride between tokens; cos and sin (positions, E), positions <= tokens.
void rotate(uintptr_t x, uintptr_t cos, uintptr_t sin, long tokens, long heads, long E, long stride,
            long positions) {
    parallel(tokens, tokens * heads * E * 2, [&](long t) {
        long at = t % positions * E;
        for (long h = 0; h < heads; h++)
            best.rotate((uint16_t*)x + t * stride + h * E, (const uint16_t*)cos + at, (const uint16_t*)sin + at, E);
    });
}

// gate_up (tokens, 2 I) to (tokens, I).
void gated(uintptr_t gate_up, uintptr_t y, int activation, long tokens, long I) {
    parallel(tokens, tokens * I * 6, [&](long t) {
        const uint16_t* gate = (const uint16_t*)gate_up + t * 2 * I;
        best.gated(gate, gate + I, activation, I, (uint16_t*)y + t * I);
    });
}

struct Seen {
    Slots slots;
    long first, count;
};

constexpr long RUN = 256;        // slots that one task looks at
constexpr long PARTS = 4 << 20;  // numbers that the parts of long sequences may take at a time

// One query token of each of B sequences, q (B, H, E) with a stride between sequences; out (B, H, E). find(b, k)
// says which slots a sequence's head k sees, at most `longest` of them. What comes out of a query depends on
// nothing but itself and its slots.
template <class Find>
void attend_some(uintptr_t q_at, uintptr_t out_at, float scale, long B, long H, long K, long E, long q_stride,
                long longest, Scoring scoring, Find find) {
    long group = H / K, runs = (longest + RUN - 1) / RUN, each = group * (E + 2);
    thread_local std::vector<float> room;
    if (runs > 1 && (long)room.size() < B * K * runs * each) room.resize(B * K * runs * each);
    float* parts = room.data();  // of every task: sums, the largest score and the sum of exponentials
    auto finish = [&](long head, float* sums, const float* totals) {
        for (long h = 0; h < group; h++) {
            float inverse = 1.0f / totals[h];
            for (long e = 0; e < E; e++) sums[h * E + e] *= inverse;
        }
        best.narrow(sums, nullptr, (uint16_t*)out_at + head * group * E, group * E);
    };
    bool worth = B * K * longest * E * 4 > 16384;
#if defined(_OPENMP)
#pragma omp parallel if (worth)
#endif
    {
        std::vector<float> own(group * (2 * E + 2) + 4 * RUN);
        float *query = own.data(), *sums = query + group * E, *scores = sums + each;
#if defined(_OPENMP)
#pragma omp for schedule(dynamic, 2)
#endif
        for (long task = 0; task < B * K * runs; task++) {
            long run = task % runs, head = task / runs, k = head % K, b = head / K;
            Seen seen = find(b, k);
            if (run * RUN >= seen.count) continue;
            float* to = seen.count > RUN ? parts + task * each : sums;
            best.widen((const uint16_t*)q_at + b * q_stride + k * group * E, query, group * E);
            for (long i = 0; i < group * E; i++) query[i] *= scale;
            Scoring mine = scoring;
            if (mine.bias) mine.bias += k * group * mine.stride;
            float *largest = to + group * E, *totals = largest + group;
            best.attend(query, group, seen.slots, seen.first + run * RUN, std::min(RUN, seen.count - run * RUN), E,
                        mine, scores, to, largest, totals);
            if (seen.count <= RUN) finish(head, sums, totals);
        }
        if (runs > 1) {
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
            for (long head = 0; head < B * K; head++) {
                long mine = (find(head / K, head % K).count + RUN - 1) / RUN;
                if (mine < 2) continue;
                float* first = parts + head * runs * each;
                for (long h = 0; h < group; h++) {
                    float top = first[group * E + h], whole = 0;
                    for (long run = 1; run < mine; run++) top = std::max(top, first[run * each + group * E + h]);
                    for (long run = 0; run < mine; run++) {
                        float* part = first + run * each;
                        float share = std::exp(part[group * E + h] - top);
                        whole += share * part[group * E + group + h];
                        for (long e = 0; e < E; e++)
                            sums[h * E + e] = (run ? sums[h * E + e] : 0.0f) + share * part[h * E + e];
                    }
                    sums[group * E + h] = whole;
                }
                finish(head, sums, sums + group * E);
            }
        }
    }
}

// The same for any number of queries: as many at a time as there is room for the parts of.
template <class Find>
void attend_all(uintptr_t q, uintptr_t out, float scale, long B, long H, long K, long E, long q_stride,
                long longest, Scoring scoring, Find find) {
    long runs = (longest + RUN - 1) / RUN;
    long step = runs > 1 ? std::max(1L, PARTS / (runs * H * (E + 2))) : B;
    for (long b = 0; b < B; b += step)
        attend_some(q + 2 * b * q_stride, out + 2 * b * H * E, scale, std::min(step, B - b), H, K, E, q_stride,
                    longest, scoring, [&](long n, long k) { return find(b + n, k); });
}

// Over slots [0, S) that lie in a run.
void decode_attention(uintptr_t q, uintptr_t keys, uintptr_t values, uintptr_t out, float scale, long B, long H,
                      long K, long E, long S, long q_stride, long sequence_stride, long head_stride) {
    attend_all(q, out, scale, B, H, K, E, q_stride, S, {0, nullptr, 0}, [&](long b, long k) {
        long at = 2 * (b * sequence_stride + k * head_stride);
        return Seen{{(const uint8_t*)keys + at, (const uint8_t*)values + at, nullptr, 0, 0, 2 * E, false}, 0, S};
    });
}

// Bytes of one slot of one head.
long row_bytes(long E, bool eight_bit) { return eight_bit ? E + 2 : 2 * E; }

// Over slots [first, last) of each sequence, in blocks: cache (blocks, 2 K, block_size, row), the keys' heads
// first; tables (B, width), firsts and lasts (B) are int32; bias (H, bias_stride) float or 0.
void paged_attention(uintptr_t q, uintptr_t cache, uintptr_t out, float scale, long B, long H, long K, long E,
                     long block_size, bool eight_bit, uintptr_t tables, long width, uintptr_t firsts,
                     uintptr_t lasts, long q_stride, float softcap, uintptr_t bias, long bias_stride) {
    const int32_t *first = (const int32_t*)firsts, *last = (const int32_t*)lasts;
    long longest = 0, row = row_bytes(E, eight_bit), head = block_size * row;
    for (long b = 0; b < B; b++) longest = std::max<long>(longest, last[b] - first[b]);
    Scoring scoring{softcap, (const float*)bias, bias_stride};
    attend_all(q, out, scale, B, H, K, E, q_stride, longest, scoring, [&](long b, long k) {
        const uint8_t* keys = (const uint8_t*)cache + k * head;
        const int32_t* table = (const int32_t*)tables + b * width;
        return Seen{{keys, keys + K * head, table, block_size, 2 * K * head, row, eight_bit},
                    first[b],
                    last[b] - first[b]};
    });
}

// Puts the keys and values of N tokens, kv (N, 2 K, E) with a stride between tokens, into their slots.
void cache_write(uintptr_t kv, uintptr_t cache, uintptr_t slots_at, long N, long heads, long E, long block_size,
                 bool eight_bit, long stride) {
    const int64_t* slots = (const int64_t*)slots_at;
    long row = row_bytes(E, eight_bit);
    parallel(N, N * heads * E * 4, [&](long n) {
        long block = slots[n] / block_size, in = slots[n] % block_size;
        for (long h = 0; h < heads; h++) {
            uint8_t* to = (uint8_t*)cache + ((block * heads + h) * block_size + in) * row;
            const uint16_t* from = (const uint16_t*)kv + n * stride + h * E;
            if (eight_bit) best.quantize(from, E, (int8_t*)to);
            else std::memcpy(to, from, row);
        }
    });
}

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // a model that lives as long as the process is not a leak
    m.attr("level") = best.name;
    m.attr("pairs") = best.pairs;
    m.attr("has_threads") =
#if defined(_OPENMP)
        true;
#else
        false;
#endif
    nb::class_<Matrix>(m, "Matrix")
        .def(nb::init<const std::string&, long, const std::vector<Matrix::Part>&, uintptr_t>())
        .def("multiply", &Matrix::multiply)
        .def("dequantize", &Matrix::dequantize);
    m.def("rms_norm", &rms_norm);
    m.def("rotate", &rotate);
    m.def("gated", &gated);
    m.def("decode_attention", &decode_attention);
    m.def("paged_attention", &paged_attention);
    m.def("cache_write", &cache_write);
}
