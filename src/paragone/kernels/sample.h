// Drawing a token from logits.
#pragma once

struct Drawing {
    float temperature;  // above zero
    long top_k;         // 0: all
    float top_p, min_p; // 1 and 0: all
};

// The token of V that a point in [0, 1) stands for: probabilities in the order of the tokens, or, where only the most
// likely are kept, from the most likely down, laid end to end. -1 where no probability is a number above zero.
long draw(const float* logits, long V, const Drawing& drawing, double point);
