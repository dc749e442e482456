// A mixture of experts as an operation of a plan: tokens are gathered by expert, so that each chosen expert's weights
// are read once a step and the others' not at all.
#include <algorithm>
#include <cmath>

#include "ops.h"

void Mixture::prepare(Run& run) const {
    spec_.router->prepare(run);
    for (const Expert& one : spec_.experts) {
        one.up->prepare(run);
        one.down->prepare(run);
    }
    if (spec_.shared.up) {
        spec_.shared.up->prepare(run);
        spec_.shared.down->prepare(run);
    }
    if (spec_.shared_gate) spec_.shared_gate->prepare(run);
}

Cost Mixture::cost() const {
    auto of = [](const Expert& one) { return one.up->cost().row + one.down->cost().row; };
    return {spec_.router->cost().row + spec_.top_k * of(spec_.experts[0]) + (spec_.shared.up ? of(spec_.shared) : 0)};
}

// Adds a token to the lists of the experts that it goes to.
void Mixture::choose(const float* logits, int32_t token, std::vector<std::vector<Choice>>& chosen) const {
    long count = (long)spec_.experts.size();
    std::vector<int32_t> order(count);
    for (int32_t i = 0; i < count; i++) order[i] = i;
    std::partial_sort(order.begin(), order.begin() + spec_.top_k, order.end(), [&](int32_t a, int32_t b) {
        return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
    });
    float whole = 0;
    for (long i = 0; i < (spec_.renormalise ? spec_.top_k : count); i++) whole += std::exp(logits[order[i]] - logits[order[0]]);
    for (long i = 0; i < spec_.top_k; i++) {
        float logit = logits[order[i]];
        float share = spec_.sigmoid ? 1.0f / (1.0f + std::exp(-logit)) : std::exp(logit - logits[order[0]]) / whole;
        chosen[order[i]].push_back({token, share});
    }
}

// What an expert gives to its tokens; their shares weigh its input or its output.
void Mixture::expert(Run& run, int member, const Expert& expert, const std::vector<Choice>& tokens,
                     bool on_input) const {
    long count = (long)tokens.size(), D = spec_.D;
    float *normed = run.buffer(spec_.normed), *inner = run.buffer(spec_.inner), *out = run.buffer(spec_.out);
    if (on_input) {
        for (long i; (i = run.team.next()) < count;)
            for (long d = 0; d < D; d++) out[i * D + d] = normed[tokens[i].token * D + d] * tokens[i].share;
        run.team.barrier();
    }
    auto row = [&](long i) { return on_input ? out + i * D : normed + tokens[i].token * D; };
    expert.up->apply(run, member, count, row, inner);
    expert.down->apply(run, member, count, [&](long i) { return inner + i * expert.up->N(); }, out);
    for (long i; (i = run.team.next()) < count;) {
        float share = on_input ? 1.0f : tokens[i].share;
        for (long d = 0; d < D; d++) run.step.x[tokens[i].token * D + d] += share * out[i * D + d];
    }
    run.team.barrier();
}

void Mixture::run(Run& run, int member) const {
    long T = run.step.T, count = (long)spec_.experts.size();
    float *normed = run.buffer(spec_.normed), *logits = run.buffer(spec_.logits);
    for (long t; (t = run.team.next()) < T;) {
        const float* row = spec_.norm.apply(run.step.x + t * spec_.D, spec_.D, normed + t * spec_.D);
        if (row != normed + t * spec_.D) std::copy(row, row + spec_.D, normed + t * spec_.D);
    }
    run.team.barrier();
    auto row = [&](long t) { return normed + t * spec_.D; };
    spec_.router->apply(run, member, T, row, logits);
    // Every member makes all lists for itself: they are short, and nobody has to wait.
    std::vector<std::vector<Choice>> chosen(count);
    for (int32_t t = 0; t < T; t++) choose(logits + t * count, t, chosen);
    for (long e = 0; e < count; e++)
        if (!chosen[e].empty()) expert(run, member, spec_.experts[e], chosen[e], spec_.sigmoid);
    if (!spec_.shared.up) return;
    std::vector<Choice> everyone(T);
    if (spec_.shared_gate) spec_.shared_gate->apply(run, member, T, row, logits);
    for (int32_t t = 0; t < T; t++)
        everyone[t] = {t, spec_.shared_gate ? 1.0f / (1.0f + std::exp(-logits[t])) : 1.0f};
    expert(run, member, spec_.shared, everyone, false);
}

std::string Mixture::describe() const {
    auto both = [](const Expert& one) { return "up " + one.up->describe() + "; down " + one.down->describe(); };
    return "mixture " + std::to_string(spec_.top_k) + " of " + std::to_string(spec_.experts.size()) +
           spec_.norm.describe() + ": router " + spec_.router->describe() + "; " + both(spec_.experts[0]) +
           (spec_.shared.up ? "; for all tokens " + both(spec_.shared) : "");
}
