#include "ops.h"

#include <cmath>
#include <cstring>

void Norm::run(Run& run, int member) const {
    Buffer<float>& row = run.own[member].row;
    grow(row, D_);
    for (long t; (t = run.team.next()) < run.step.T;) {
        float* to = run.buffer(target_) + t * D_;
        const float* y = norm_.apply(run.buffer(source_) + t * D_, D_, row.data());
        for (long d = 0; d < D_; d++) to[d] = add_ ? to[d] + y[d] : y[d];
    }
    run.team.barrier();
}

void Angles::run(Run& run, int) const {
    const Frequencies& rope = run.step.ropes[rope_];
    long half = dim_ / 2;
    for (long t; (t = run.team.next()) < run.step.T;) {
        long row = rope.which ? rope.which[t] : 0;
        float *cos = run.buffer(cos_) + t * half, *sin = run.buffer(sin_) + t * half;
        for (long i = 0; i < half; i++) {
            float angle = (float)run.step.positions[t] * rope.inverse[row * half + i];
            cos[i] = std::cos(angle) * rope.scale[row];
            sin[i] = std::sin(angle) * rope.scale[row];
        }
    }
    run.team.barrier();
}

void Heads::run(Run& run, int) const {
    const HeadsSpec& s = spec_;
    const Pool& pool = run.step.pools[s.pool];
    long J = s.H + 2 * s.K, row = s.row_bytes();
    auto slot = [&](long t, long h) {
        long block = pool.slots[t] / s.block_size, in = pool.slots[t] % s.block_size;
        return s.cache + block * s.block_bytes + (h * s.block_size + in) * row;
    };
    for (long t; (t = run.team.next()) < run.step.T;) {
        // The next token's slots lie anywhere: they come meanwhile.
        for (long h = 0; t + 1 < run.step.T && h < 2 * s.K; h++)
            for (long line = 0; line < row; line += 64) __builtin_prefetch(slot(t + 1, h) + line, 1);
        float* heads = run.buffer(s.buffer) + t * J * s.E;
        long position = run.step.positions[t];
        float warmth = s.scale;
        if (s.temperature_floor > 0)
            warmth *= std::log1p(std::floor((position + 1.0f) / s.temperature_floor)) * s.temperature_scale + 1.0f;
        for (long h = 0; h < s.H + s.K; h++) {
            float* head = heads + h * s.E;
            if (!s.norm.empty()) best.rms_norm(head, s.norm.data() + h * s.E, s.eps, s.E, head);
            if (s.cos >= 0) {
                long at = t * (s.rope_dim / 2);
                best.rotate(head, run.buffer(s.cos) + at, run.buffer(s.sin) + at, s.rope_dim, s.neighbours);
            }
            if (s.l2) best.rms_norm(head, nullptr, s.eps, s.E, head);
            if (h < s.H)
                for (long e = 0; e < s.E; e++) head[e] *= warmth;
        }
        for (long h = 0; h < 2 * s.K; h++) {
            uint8_t* to = slot(t, h);
            const float* from = heads + (s.H + h) * s.E;
            if (s.eight_bit) best.quantize_slot(from, s.E, (int8_t*)to);
            else best.narrow(from, s.E, (uint16_t*)to);
        }
    }
    run.team.barrier();
}

void Head::prepare(Run& run) const {
    linear_->prepare(run);
    for (Own& own : run.own) own.largest.assign(run.step.T, Largest{});
}

void Head::run(Run& run, int member) const {
    if (!run.step.out) return linear_->largest(run, member, softcap_);
    linear_->run(run, member);
    long V = linear_->N();
    for (long t; (t = run.team.next()) < run.step.T;) {
        float* row = run.step.out + t * V;
        if (softcap_ > 0) best.softcap(row, V, softcap_);
        run.step.largest[t] = best.largest(row, V);
    }
    run.team.barrier();
}

std::string Norm::describe() const { return "norm " + std::to_string(D_) + (add_ ? ", added" : ""); }

std::string Angles::describe() const { return "angles of rope " + std::to_string(rope_); }

std::string Heads::describe() const {
    return std::string("heads: ") + (spec_.norm.empty() ? "" : "norm, ") + (spec_.cos >= 0 ? "rope, " : "") +
           "cache write";
}

std::string Head::describe() const { return linear_->describe() + ", and the largest"; }
