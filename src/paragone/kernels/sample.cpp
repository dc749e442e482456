#include "sample.h"

#include <algorithm>
#include <vector>

#include "table.h"

namespace {

constexpr long RUN = 64;  // tokens that are looked at together
// What the most likely tokens are looked for among first: those of at least this share of the largest's probability.
constexpr float CUTS[] = {0x1p-8f, 0x1p-16f, 0.0f};

struct Token {
    float probability;
    int32_t number;
};

// The token at which running sums pass `point`; the last above zero where rounding puts it beyond all.
template <class Weight> long at_point(long count, double point, Weight weight) {
    double sum = 0;
    long last = -1;
    for (long i = 0; i < count; i++) {
        if (weight(i) <= 0) continue;
        sum += weight(i);
        last = i;
        if (sum > point) break;
    }
    return last;
}

}  // namespace

long draw(const float* logits, long V, const Drawing& drawing, double point) {
    long best_token = best.largest(logits, V);
    if (best_token < 0) return -1;
    thread_local std::vector<float> room;
    if ((long)room.size() < V) room.resize(V);
    float* weights = room.data();
    float factor = std::min(1.0f / drawing.temperature, 3e38f);  // infinity times nothing would be no number
    double total = best.exponentials(logits, V, logits[best_token], factor, weights);
    if (!(total > 0)) return -1;
    if (drawing.min_p > 0) {
        total = 0;
        for (long v = 0; v < V; v++) {
            if (weights[v] < drawing.min_p) weights[v] = 0;
            total += weights[v];
        }
    }
    if (drawing.top_k == 0 && drawing.top_p >= 1) {
        // By runs first: a sum of each, then the numbers of one.
        double sum = 0, wanted = point * total;
        long run = 0;
        for (; run + RUN < V; run += RUN) {
            double here = 0;
            for (long i = run; i < run + RUN; i++) here += weights[i];
            if (sum + here > wanted) break;
            sum += here;
        }
        long found = at_point(std::min(RUN, V - run), wanted - sum, [&](long i) { return weights[run + i]; });
        return found < 0 ? best_token : run + found;
    }
    std::vector<Token> tokens;
    long count = drawing.top_k ? std::min(drawing.top_k, V) : V;
    for (float cut : CUTS) {
        tokens.clear();
        double mass = 0;
        for (long run = 0; run < V; run += RUN) {
            long end = std::min(V, run + RUN);
            float most = 0;
            for (long v = run; v < end; v++) most = std::max(most, weights[v]);
            if (most < cut || most <= 0) continue;
            for (long v = run; v < end; v++)
                if (weights[v] >= cut && weights[v] > 0) {
                    tokens.push_back({weights[v], (int32_t)v});
                    mass += weights[v];
                }
        }
        bool enough = drawing.top_k ? (long)tokens.size() >= count : mass >= drawing.top_p * total;
        if (enough || cut == 0) break;
    }
    auto before = [](const Token& a, const Token& b) {
        return a.probability > b.probability || (a.probability == b.probability && a.number < b.number);
    };
    count = std::min(count, (long)tokens.size());
    std::partial_sort(tokens.begin(), tokens.begin() + count, tokens.end(), before);
    double mass = 0;
    for (long i = 0; i < count; i++) mass += tokens[i].probability;
    double limit = drawing.top_p * (drawing.top_k ? mass : total), kept = 0;
    long keep = 0;
    while (keep < count && (keep == 0 || kept < limit)) kept += tokens[keep++].probability;
    if (drawing.top_p >= 1) {
        keep = count;
        kept = mass;
    }
    return tokens[at_point(keep, point * kept, [&](long i) { return tokens[i].probability; })].number;
}
