// Two products, of which each of several threads takes a slice of the width between them.
#include <algorithm>

#include "ops.h"

namespace {

constexpr long MOST_ROWS = 31;  // measured: 32 are a whole tile for each of two threads
constexpr long SLICE = 64;      // inputs of packed weights that lie together

// Inner outputs [begin, end) of a member.
struct Slice {
    long begin, end;

    Slice(const Linear& up, const Run& run, int member) {
        long slices = (up.N() + SLICE - 1) / SLICE, members = run.team.size();
        begin = std::min(up.N(), slices * member / members * SLICE);
        end = std::min(up.N(), slices * (member + 1) / members * SLICE);
    }
    long width() const { return end - begin; }
};

// The inputs of a packed weight that are in a slice, by all of its rows.
Matrix part_of(const Matrix& matrix, const Slice& slice) {
    Matrix part = matrix;
    part.version = 0;
    part.packed.panels += part.panel_bytes(slice.begin);
    part.packed.D = slice.width();
    return part;
}

}  // namespace

bool FeedForward::shared(const Step& step) const {
    if (step.T > MOST_ROWS || up_->source_ != Run::X || down_->target_ != Run::X || !down_->add_) return false;
    auto suits = [&](const Linear& linear) {
        return std::all_of(linear.parts_.begin(), linear.parts_.end(), [&](const Matrix& part) {
            return part.in_words(step.T, step.deterministic) && !part.order;
        });
    };
    return suits(*up_) && suits(*down_);
}

void FeedForward::prepare(Run& run) const {
    up_->prepare(run);
    down_->prepare(run);
    if (run.members == 1 || !shared(run.step)) return;
    long T = run.step.T, inner = up_->N();
    grow(run.partial, run.members * T * down_->N());
    for (int member = 0; member < run.members; member++) {
        Own& own = run.own[member];
        own.inputs.reserve(T, std::max(up_->D(), inner), 1, true, false, false);
        grow(own.inner, T * inner);
    }
}

void FeedForward::run(Run& run, int member) const {
    if (run.team.size() > 1 && shared(run.step)) return run_shared(run, member);
    up_->run(run, member);
    down_->run(run, member);
}

void FeedForward::run_shared(Run& run, int member) const {
    long T = run.step.T, D = up_->D(), N = down_->N(), inner = up_->N(), members = run.team.size();
    Own& own = run.own[member];
    Inputs& inputs = own.inputs;
    const float* x = run.step.x;
    Slice slice(*up_, run, member);
    for (long m = 0; m < T; m++) up_->make_input(run, x + m * D, m, T, inputs, own);
    if (slice.width()) up_->finish(run, member, inputs, T, slice.begin, slice.end, own.inner.data());
    for (long m = 0; m < T; m++)
        best.packed_words.inputs(own.inner.data() + m * inner + slice.begin, slice.width(), m, T,
                                 inputs.code_words(0, T, slice.width()));
    float* sums = run.partial.data() + member * T * N;
    if (slice.width() == 0) std::fill(sums, sums + T * N, 0.0f);
    long row = 0;
    for (const Matrix& whole : down_->parts_) {
        Matrix part = part_of(whole, slice);
        if (slice.width())
            part.multiply(0, part.blocks(), slice.width(), inputs, T, false, {sums + row, N, nullptr, false}, own);
        row += part.rows;
    }
    run.team.barrier();

    // All sums of its own rows, about as pieces have them.
    const float* bias = down_->bias_.empty() ? nullptr : down_->bias_.data();
    for (long m = T * member / members; m < T * (member + 1) / members; m++) {
        float* y = run.step.x + m * N;
        for (long other = 0; other < members; other++) {
            const float* from = run.partial.data() + (other * T + m) * N;
            for (long n = 0; n < N; n++) y[n] += from[n];
        }
        for (long n = 0; bias && n < N; n++) y[n] += bias[n];
    }
    run.team.barrier();
}
