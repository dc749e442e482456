// Products of a step's rows with weights: inputs, tasks, and what becomes of the outputs.
#include <algorithm>
#include <cstring>

#include "compress.h"
#include "hadamard.h"
#include "ops.h"

const float* Prologue::apply(const float* from, long width, float* to) const {
    switch (kind) {
        case RMS_NORM: best.rms_norm(from, weight.empty() ? nullptr : weight.data(), eps, width, to); return to;
        case LAYER_NORM: best.layer_norm(from, weight.data(), bias.data(), eps, width, to); return to;
        default: return from;
    }
}

std::string Prologue::describe() const {
    return kind == RMS_NORM ? ", after rms norm" : kind == LAYER_NORM ? ", after layer norm" : "";
}

std::string Epilogue::describe() const {
    if (kind == NONE) return "";
    const char* name = activation == SILU ? "silu" : activation == GELU ? "gelu" : "gelu (tanh)";
    return std::string(kind == GATED ? ", then a gate of " : ", then ") + name;
}

long Matrix::panel_bytes(long D) const {
    if (kind == COMPRESSED) return compressed::panel_bytes(D);
    if (kind == HADAMARD) return hadamard::panel_bytes(D);
    return (D + 63) / 64 * packed.block_bytes();
}

bool Matrix::in_words(long M, bool alike) const {
    return kind == PACKED && best.packed_words.linear && M >= best.packed_words.least_tokens && !alike;
}

// Whole blocks of 16 rows, so that no two threads write to one line of the cache.
void Matrix::multiply(long first, long last, long D, Inputs& inputs, long M, bool alike, const Out& out,
                      Own& own) const {
    switch (kind) {
        case PACKED:
            if (in_words(M, alike))
                return best.packed_words.linear(packed, first, last, inputs.code_words(version, M, D), M, out,
                                                own.panels.data());
            return best.packed_linear(packed, first, last, inputs.quantised() + version * M * ((D + 63) / 64), M, out);
        case HADAMARD: return best.hadamard_linear(hadamard, first, last, inputs.hadamard(), M, out);
        case COMPRESSED:
            return best.compressed_linear(compressed, first, last, inputs.words(), M, alike, out, own.panels.data());
    }
}

Linear::Linear(int source, int target, long D, std::vector<Matrix> parts, std::vector<float> bias, Prologue prologue,
               Epilogue epilogue, bool add)
    : source_(source), target_(target), D_(D), parts_(std::move(parts)), bias_(std::move(bias)),
      prologue_(std::move(prologue)), epilogue_(epilogue), add_(add) {
    for (Matrix& part : parts_) {
        N_ += part.rows;
        blocks_ += part.blocks();
        bytes_ += part.blocks() * part.panel_bytes(D_);
        words_ |= part.kind == Matrix::COMPRESSED;
        hadamard_ |= part.kind == Matrix::HADAMARD;
        if (part.kind != Matrix::PACKED) continue;
        part.version = (int)(std::find(orders_.begin(), orders_.end(), part.order) - orders_.begin());
        if (part.version == (int)orders_.size()) orders_.push_back(part.order);
    }
    if (epilogue_.kind == Epilogue::GATED) N_ /= 2;
}

long Linear::enough() const {
    auto rows_of = [](const Matrix& part) {
        if (part.kind == Matrix::PACKED) return part.packed.bits < 8 ? 2L : 8L;
        return part.kind == Matrix::HADAMARD ? std::max(8L, best.tile_rows) : 12L;
    };
    long rows = 1;
    for (const Matrix& part : parts_) rows = std::max(rows, rows_of(part));
    return rows;  // measured: more bits are more to read and no more to multiply, and tiles want all of their rows
}

// Of bytes, a register multiplies twice as many as of bfloat16 numbers, or more.
Cost Linear::cost() const {
    long row = 0;
    for (const Matrix& part : parts_) row += part.rows * D_ / (part.kind == Matrix::COMPRESSED ? 1 : 2);
    return {row};
}

bool Linear::in_words(const Run& run, long M) const {
    return std::any_of(parts_.begin(), parts_.end(),
                       [&](const Matrix& part) { return part.in_words(M, run.step.deterministic); });
}

void Linear::prepare(Run& run) const {
    bool code_words = in_words(run, run.step.T);
    run.inputs.reserve(run.step.T, D_, orders_.size(), code_words, words_, hadamard_);
    for (Own& own : run.own) {
        own.inputs.reserve(ALONE, D_, orders_.size(), false, words_, hadamard_);
        grow(own.row, 2 * D_);
        if (words_) grow(own.panels, best.compressed_room(D_));
        if (code_words) grow(own.panels, best.packed_words.room);
    }
}

void Linear::make_input(const Run& run, const float* row, long m, long M, Inputs& inputs, Own& own) const {
    const float* input = prologue_.apply(row, D_, own.row.data());
    bool code_words = in_words(run, M);
    for (size_t version = 0; version < orders_.size(); version++) {
        const int32_t* order = orders_[version];
        const float* ordered = input;
        if (order) {
            float* to = own.row.data() + D_;
            for (long d = 0; d < D_; d++) to[d] = input[order[d]];
            ordered = to;
        }
        if (code_words) best.packed_words.inputs(ordered, D_, m, M, inputs.code_words(version, M, D_));
        else best.quantize_inputs(ordered, D_, inputs.quantised() + (version * M + m) * ((D_ + 63) / 64));
    }
    if (hadamard_) best.hadamard_inputs(input, D_, inputs.hadamard() + m * hadamard::token_bytes(D_));
    if (!words_) return;
    long words = best.pairs ? (D_ + 1) / 2 : D_, padded = compressed::blocks_of(D_) * (best.pairs ? 4 : 8);
    Word* to = inputs.words() + m * padded;
    best.to_words(input, D_, to);
    std::fill(to + words, to + padded, 0);
}

void Linear::multiply(Run& run, int member, Inputs& inputs, long M, long begin, long end, float* y,
                      long stride) const {
    long first = 0, row = 0;
    for (const Matrix& part : parts_) {
        long from = std::max(0L, begin - first), upto = std::min(part.blocks(), end - first);
        Out out{y + row, stride, bias_.empty() ? nullptr : bias_.data() + row, add_};
        if (from < upto) part.multiply(from, upto, D_, inputs, M, run.step.deterministic, out, run.own[member]);
        first += part.blocks();
        row += part.rows;
    }
}

const float* Linear::products(Run& run, int member, Inputs& inputs, long M, long n, long upto, long taken,
                              long& stride) const {
    long begin = block_of(n), end = block_of(upto - 1) + 1, first = first_product(begin);
    stride = first_product(end) - first;
    float* to = run.own[member].floats.data() + taken - first;
    multiply(run, member, inputs, M, begin, end, to, stride);
    return to;
}

void Linear::finish(Run& run, int member, Inputs& inputs, long M, long n, long upto, float* y) const {
    // The ends of what is asked for may be in blocks that begin before, or end behind.
    long room = M * (upto - n + 32), stride, up_stride = 0;
    grow(run.own[member].floats, 2 * room);
    const float *gate = products(run, member, inputs, M, n, upto, 0, stride), *up = nullptr;
    if (epilogue_.kind == Epilogue::GATED)
        up = products(run, member, inputs, M, N_ + n, N_ + upto, room, up_stride) + N_;
    for (long m = 0; m < M; m++)
        best.gated(gate + m * stride + n, up ? up + m * up_stride + n : nullptr, epilogue_.activation, upto - n,
                   y + m * N_ + n);
}

long Linear::block_of(long product) const {
    long block = 0;
    for (const Matrix& part : parts_) {
        if (product < part.rows) return block + product / 16;
        product -= part.rows;
        block += part.blocks();
    }
    return block;
}

long Linear::first_product(long block) const {
    long row = 0;
    for (const Matrix& part : parts_) {
        if (block < part.blocks()) return row + block * 16;
        block -= part.blocks();
        row += part.rows;
    }
    return row;
}

// The larger of two, the first of equals; what is not a number above all.
void Largest::take(float other, int64_t its_index) {
    if (index == NONE || its_index < 0) *this = {other, its_index};
    else if (index >= 0 && (other > value || (other == value && its_index < index))) *this = {other, its_index};
}

void Linear::largest(Run& run, int member, float softcap) const {
    long M = run.step.T;
    const float* x = run.buffer(source_);
    Own& own = run.own[member];
    Inputs& inputs = make_inputs(run, member, M, [&](long m) { return x + m * D_; });
    tasks(run, member, M, blocks_, [&](long begin, long end) {
        long first = first_product(begin), count = first_product(end) - first;
        grow(own.floats, M * count);
        multiply(run, member, inputs, M, begin, end, own.floats.data() - first, count);
        for (long m = 0; m < M; m++) {
            float* row = own.floats.data() + m * count;
            if (softcap > 0) best.softcap(row, count, softcap);
            long at = best.largest(row, count);
            own.largest[m].take(at < 0 ? 0 : row[at], at < 0 ? -1 : first + at);
        }
    });
    run.team.barrier();
    for (long m; (m = run.team.next()) < M;) {
        Largest all;
        for (const Own& one : run.own)
            if (one.largest[m].index != Largest::NONE) all.take(one.largest[m].value, one.largest[m].index);
        run.step.largest[m] = all.index;
    }
    run.team.barrier();
}

void Linear::run(Run& run, int member) const {
    const float* x = run.buffer(source_);
    apply(run, member, run.step.T, [&](long m) { return x + m * D_; }, run.buffer(target_));
}

std::string Linear::describe() const {
    long rows = 0;
    for (const Matrix& part : parts_) rows += part.rows;
    std::string out = "linear " + std::to_string(rows) + " x " + std::to_string(D_) + ":";
    for (const Matrix& part : parts_) {
        if (part.kind == Matrix::HADAMARD) out += " int8/row";
        else if (part.kind == Matrix::PACKED)
            out += (part.packed.has_levels ? " levels" : " int") + std::to_string(part.packed.bits) +
                   (part.packed.has_minimum ? "+min" : "") + (part.packed.fine ? "/16" : "/32") +
                   (part.order ? " in another order" : "") + (part.in_words(LONG_MAX, false) ? " (bf16 for many)" : "");
        else out += " bf16";
    }
    return out + prologue_.describe() + epilogue_.describe();
}
