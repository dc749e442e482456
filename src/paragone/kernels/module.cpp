// The binding of plans, and of what is beside them. module.h says what callers have checked.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "module.h"
#include "ops.h"
#include "probe.h"
#include "sample.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

std::vector<float> floats(uintptr_t address, long count) {
    const float* from = at<float>(address);
    return from ? std::vector<float>(from, from + count) : std::vector<float>();
}

Matrix packed(const Layout& layout, uintptr_t panels, long rows, long D, uintptr_t order) {
    Matrix matrix{Matrix::PACKED, rows, {layout, at<uint8_t>(panels), rows, D, 0}, {}, {}, at<int32_t>(order)};
    matrix.packed.stride = matrix.panel_bytes(D);
    return matrix;
}

Matrix in_hadamard(uintptr_t panels, long rows, long D) {
    return {Matrix::HADAMARD, rows, {}, {at<uint8_t>(panels), rows, D}, {}};
}

Matrix in_bfloat16(uintptr_t panels, uintptr_t lists, uintptr_t outliers, long rows, long D) {
    Compressed weight{at<uint8_t>(panels), at<int64_t>(lists), at<Outlier>(outliers), rows, D};
    return {Matrix::COMPRESSED, rows, {}, {}, weight};
}

Prologue norm(const std::string& kind, uintptr_t weight, uintptr_t bias, float eps, long D) {
    return {kind == "rms" ? Prologue::RMS_NORM : Prologue::LAYER_NORM, floats(weight, D), floats(bias, D), eps};
}

Activation activation(const std::string& name) {
    return name == "silu" ? SILU : name == "gelu" ? GELU : GELU_TANH;
}

Epilogue activated(const std::string& name, bool gated) {
    return {gated ? Epilogue::GATED : Epilogue::ACTIVATED, activation(name)};
}

View view(const std::string& name) {
    return name == "sliding" ? View::SLIDING : name == "chunked" ? View::CHUNKED : View::FULL;
}

using Linears = std::tuple<std::shared_ptr<Linear>, std::shared_ptr<Linear>>;  // up, down
using Rope = std::tuple<uintptr_t, uintptr_t, uintptr_t>;          // inverse frequencies, scales, which
// Start, count, how many rows are wanted, tables.
using Text = std::tuple<int32_t, int32_t, int32_t, std::vector<std::vector<int32_t>>>;

// One step of T tokens; addresses as plan.h has them.
void run(Plan& plan, int threads, long T, uintptr_t x, const std::vector<Rope>& ropes,
         const std::vector<Text>& parts, long block_size, bool deterministic, uintptr_t bias, long bias_stride,
         uintptr_t out) {
    Step step{};
    step.T = T;
    step.x = at<float>(x);
    step.block_size = block_size;
    for (auto [inverse, scale, which] : ropes)
        step.ropes.push_back({at<float>(inverse), at<float>(scale), at<int32_t>(which)});
    int32_t row = 0;
    for (auto& [start, count, wanted, tables] : parts) {
        step.parts.push_back({row, count, start, count, wanted, tables});
        row += count;
    }
    step.deterministic = deterministic;
    step.bias = at<float>(bias);
    step.bias_stride = bias_stride;
    step.out = at<float>(out);
    plan.run(step, threads);
}

// Outputs of T rows of x, unless `out` is 0; gives the place of the largest of each, of plans that end in a Head.
std::vector<int64_t> run_head(Plan& plan, int threads, long T, uintptr_t x, bool deterministic, uintptr_t out) {
    std::vector<int64_t> largest(T);
    Step step{};
    step.deterministic = deterministic;
    step.T = T;
    step.x = at<float>(x);
    step.out = at<float>(out);
    step.largest = largest.data();
    plan.run(step, threads);
    return largest;
}

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // a model that lives as long as the process is not a leak
    m.attr("level") = best.name;
    nb::list names;
    for (const Kernels* level : levels) names.append(level->name);
    m.attr("levels") = names;
    nb::list refused;
    for (const Kernels* level : refused_levels()) refused.append(level->name);
    m.attr("refused_levels") = refused;
    m.attr("X") = +Run::X;
    m.attr("OUT") = +Run::OUT;
    m.attr("pairs") = best.pairs;
    m.attr("fixed") = best.fixed;
    m.attr("words_from") = best.packed_words.least_tokens;  // tokens whose codes are multiplied in words
    auto released = nb::call_guard<nb::gil_scoped_release>();
    add_weights(m);
    m.def("draw", [](uintptr_t logits, long V, float temperature, long top_k, float top_p, float min_p, double point) {
        return draw(at<float>(logits), V, {temperature, top_k, top_p, min_p}, point);
    }, released);
    m.def("pin", [](const std::vector<int>& processors) {
        for (int processor : processors)
            if (processor < 0 || processor >= 1024) throw nb::value_error("no such processor");
        Team::shared().pin(processors);
    }, released);
    m.def("multiply_rate", &multiply_rate, "bits"_a, "threads"_a, "whole_rows"_a = false, released);
    m.def("read_rate", [](uintptr_t from, long bytes, int threads) {
        return read_rate(at<uint8_t>(from), bytes, threads);
    }, released);
    nb::class_<Matrix>(m, "Matrix");
    m.def("packed", &packed, "layout"_a, "panels"_a, "rows"_a, "D"_a, "order"_a = 0);
    m.def("in_hadamard", &in_hadamard);
    m.def("in_bfloat16", &in_bfloat16);
    nb::class_<Prologue>(m, "Prologue").def(nb::init<>());
    nb::class_<Epilogue>(m, "Epilogue").def(nb::init<>());
    m.def("norm", &norm);
    m.def("activated", &activated);
    nb::class_<Op>(m, "Op").def("describe", &Op::describe);
    nb::class_<Linear, Op>(m, "Linear")
        .def("__init__", [](Linear* self, int source, int target, long D, std::vector<Matrix> parts, uintptr_t bias,
                            Prologue prologue, Epilogue epilogue, bool add) {
            long N = 0;
            for (const Matrix& part : parts) N += part.rows;
            new (self) Linear(source, target, D, std::move(parts), floats(bias, N), prologue, epilogue, add);
        });
    nb::class_<FeedForward, Op>(m, "FeedForward")
        .def(nb::init<std::shared_ptr<Linear>, std::shared_ptr<Linear>>());
    nb::class_<Norm, Op>(m, "Norm").def(nb::init<int, int, long, Prologue, bool>());
    nb::class_<Angles, Op>(m, "Angles").def(nb::init<int, int, int, long>());
    nb::class_<HeadsSpec>(m, "HeadsSpec")
        .def("__init__", [](HeadsSpec* self, int buffer, int cos, int sin, std::tuple<long, long, long> sizes,
                            long rope_dim, bool neighbours, uintptr_t norm, bool l2, float eps, float scale,
                            float floor, float temperature, int pool, uintptr_t cache, long block_size,
                            long block_bytes, bool eight_bit) {
            auto [H, K, E] = sizes;
            new (self) HeadsSpec{buffer, cos, sin, H, K, E, rope_dim, neighbours, floats(norm, (H + K) * E), l2, eps,
                                 scale, floor, temperature, pool, at<uint8_t>(cache), block_size, block_bytes,
                                 eight_bit};
        }, "buffer"_a, "cos"_a, "sin"_a, "sizes"_a, "rope_dim"_a, "neighbours"_a, "norm"_a, "l2"_a, "eps"_a, "scale"_a,
           "temperature_floor"_a, "temperature_scale"_a, "pool"_a, "cache"_a, "block_size"_a, "block_bytes"_a,
           "eight_bit"_a);
    nb::class_<Heads, Op>(m, "Heads").def(nb::init<HeadsSpec>());
    nb::class_<Attend, Op>(m, "Attend").def(nb::init<HeadsSpec, int, float, std::string>());
    nb::class_<Head, Op>(m, "Head").def(nb::init<std::shared_ptr<Linear>, float>());
    nb::class_<Mixture, Op>(m, "Mixture")
        .def("__init__", [](Mixture* self, std::tuple<int, int, int, int> buffers, long D, long top_k, Prologue norm,
                            std::shared_ptr<Linear> router, const std::vector<Linears>& experts, bool sigmoid,
                            bool renormalise, const std::vector<Linears>& shared,
                            const std::vector<std::shared_ptr<Linear>>& shared_gate) {
            auto [normed, logits, inner, out] = buffers;
            MixtureSpec spec{normed, logits, inner, out, D, top_k, std::move(norm), router, {}, sigmoid, renormalise,
                             {}, shared_gate.empty() ? nullptr : shared_gate[0]};
            for (auto& [up, down] : experts) spec.experts.push_back({up, down});
            if (!shared.empty()) spec.shared = {std::get<0>(shared[0]), std::get<1>(shared[0])};
            new (self) Mixture(std::move(spec));
        }, "buffers"_a, "D"_a, "top_k"_a, "norm"_a, "router"_a, "experts"_a, "sigmoid"_a, "renormalise"_a, "shared"_a,
           "shared_gate"_a);
    nb::class_<Plan>(m, "Plan")
        .def(nb::init<std::vector<long>>())
        .def("add_pool", [](Plan& plan, const std::string& kind, long reach) { plan.add_pool(view(kind), reach); })
        .def("add", &Plan::add)
        .def("describe", &Plan::describe)
        .def("watch", &Plan::watch)
        .def("seconds", &Plan::seconds)
        .def("run", &run, "threads"_a, "T"_a, "x"_a, "ropes"_a, "parts"_a, "block_size"_a, "deterministic"_a,
              "bias"_a, "bias_stride"_a, "out"_a = 0, released)
        .def("run_head", &run_head, released);
}
