#include "ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

constexpr long AHEAD = 4;  // tokens whose slots are asked for

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
    long turned = s.H + s.K, J = turned + s.K, row = s.row_bytes(), apart = s.block_size * row;
    auto slot = [&](long t) {  // where its first head's key goes; the others `apart` behind
        return s.cache + pool.slots[t] / s.block_size * s.block_bytes + pool.slots[t] % s.block_size * row;
    };
    long asked = 0;
    for (long t; (t = run.team.next()) < run.step.T;) {
        // Slots lie anywhere: those of a token come while the ones before it are worked on.
        for (asked = std::max(asked, t); asked < std::min(t + AHEAD, run.step.T); asked++) {
            const uint8_t* to = slot(asked);
            for (long h = 0; h < 2 * s.K; h++)
                for (long line = 0; line < row; line += 64) __builtin_prefetch(to + h * apart + line, 1);
        }
        float* heads = run.buffer(s.buffer) + t * J * s.E;
        long position = run.step.positions[t];
        float warmth = s.scale;
        if (s.temperature_floor > 0)
            warmth *= std::log1p(std::floor((position + 1.0f) / s.temperature_floor)) * s.temperature_scale + 1.0f;
        for (long h = 0; h < turned && !s.norm.empty(); h++)
            best.rms_norm(heads + h * s.E, s.norm.data() + h * s.E, s.eps, s.E, heads + h * s.E);
        if (s.cos >= 0) {
            long at = t * (s.rope_dim / 2);
            best.rotate(heads, turned, s.E, run.buffer(s.cos) + at, run.buffer(s.sin) + at, s.rope_dim, s.neighbours);
        }
        for (long h = 0; h < turned && s.l2; h++)
            best.rms_norm(heads + h * s.E, nullptr, s.eps, s.E, heads + h * s.E);
        for (long e = 0; e < s.H * s.E; e++) heads[e] *= warmth;
        uint8_t* to = slot(t);
        for (long h = 0; h < 2 * s.K; h++, to += apart) {
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
