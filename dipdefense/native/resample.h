// Bilinear upsampling as the three taps of a convolution see it, padded by reflection, and its adjoint.
#pragma once

#include "products.h"
#include "upsampled.h"

namespace {

// Upsampling ×2 along one axis, without aligned corners, cropped to ``size``.
struct Axis {
    int64_t size, low;
    std::vector<std::vector<Term>> seen;   // for each upsampled line: terms of 3 · low-resolution line + tap
    std::vector<std::vector<Term>> given;  // the adjoint: for each of those, terms of upsampled lines
    std::vector<float> table = upsampling_table(size);

    explicit Axis(int64_t size) : size(size), low((size + 1) / 2), seen(size), given(3 * low) {
        for (int64_t at = 0; at < size; ++at)
            for (int64_t tap = 0; tap < 3; ++tap)
                for (const Term& term : sources(reflected(at + tap - 1, size), low))
                    add(seen[at], 3 * term.line + tap, term.weight);
        for (int64_t at = 0; at < size; ++at)
            for (const Term& term : seen[at]) given[term.line].push_back({at, term.weight});
    }

  private:
    static void add(std::vector<Term>& terms, int64_t line, float weight) {
        for (Term& term : terms)
            if (term.line == line) {
                term.weight += weight;
                return;
            }
        terms.push_back({line, weight});
    }
};

// NV vectors of ``combine``.
template <int NV, class T, class Out>
inline void combine_vectors(const std::vector<Term>& terms, const T* from, int64_t distance, Out* to) {
    Floats sums[NV] = {};
    for (const Term& term : terms) {
        const T* line = from + term.line * distance;
        for (int v = 0; v < NV; ++v) sums[v] += term.weight * load(line + v * LANES);
    }
    for (int v = 0; v < NV; ++v) store(to + v * LANES, sums[v]);
}

// to = Σ weight · from[line · distance] over the terms, for ``size`` numbers, whole vectors.
template <class T, class Out>
void combine(const std::vector<Term>& terms, const T* from, int64_t distance, Out* to, int64_t size) {
    int64_t at = 0;
    for (; at + 4 * LANES <= size; at += 4 * LANES) combine_vectors<4>(terms, from + at, distance, to + at);
    if (at + 2 * LANES <= size) combine_vectors<2>(terms, from + at, distance, to + at), at += 2 * LANES;
    if (at < size) combine_vectors<1>(terms, from + at, distance, to + at);
}

// Where the products of a low-resolution line with the nine taps are: (3, low columns, 3, channels), the vertical taps
// first.
inline Grid tapped(int64_t columns, int64_t channels) {
    Grid grid{9 * columns * channels, 3 * channels};
    for (int64_t tap = 0; tap < 9; ++tap) grid.taps[tap] = (tap / 3 * 3 * columns + tap % 3) * channels;
    return grid;
}

// The convolution of an upsampled tensor, from (low rows, low columns, inputs) to (rows, columns, outputs).
template <class T>
void convolve_upsampled(const T* x, const Grid& from, const Factors<T>& weight, const Axis& vertical,
                        const Axis& horizontal, T* out, int threads) {
    constexpr int64_t KEPT = 4;  // lines of products: two upsampled lines need three
    const int64_t channels = weight.of.outputs, low = horizontal.low, third = 3 * low * channels, parts = threads;
    const Grid to = tapped(low, channels);
#pragma omp parallel for num_threads(threads)
    for (int64_t part = 0; part < parts; ++part) {
        std::vector<float> products(KEPT * 3 * third), line(third);
        std::vector<Term> terms;
        const int64_t begin = vertical.low * part / parts, end = vertical.low * (part + 1) / parts;
        int64_t made = std::max<int64_t>(begin - 1, 0);
        for (int64_t row = begin; row < end; ++row) {
            for (; made <= std::min(row + 1, vertical.low - 1); ++made)
                multiply(x + made * from.row, from, weight, &products[made % KEPT * 3 * third], to, 1, low, true,
                         false, 1);
            for (int64_t y = 2 * row; y < std::min(2 * row + 2, vertical.size); ++y) {
                terms.clear();
                for (const Term& term : vertical.seen[y])
                    terms.push_back({term.line / 3 % KEPT * 3 + term.line % 3, term.weight});
                combine(terms, products.data(), third, line.data(), third);
                for (int64_t at = 0; at < horizontal.size; ++at)
                    combine(horizontal.seen[at], line.data(), channels, out + (y * horizontal.size + at) * channels,
                            channels);
            }
        }
    }
}

// Its gradients; that of x may take the place of x. ``turned`` is the transposed weight, and ``partial`` room for a
// weight for each CHUNK of low-resolution rows.
template <class T>
void convolve_upsampled_backward(const T* grad, const T* x, const Grid& from, const Factors<T>& turned,
                                 const Weight& of, const Axis& vertical, const Axis& horizontal, T* grad_x,
                                 float* grad_weight, float* partial, int threads) {
    const int64_t channels = of.outputs, low = horizontal.low, third = 3 * low * channels;
    const int64_t length = horizontal.size * channels, chunks = (vertical.low + CHUNK - 1) / CHUNK;
    const Grid taps = tapped(low, channels);
    const Chunks gradient{of, grad_weight, partial, chunks};
#pragma omp parallel for num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        std::vector<T> products(3 * third);
        std::vector<float> line(length);
        float* const sums = gradient.sums(chunk);
        const int64_t begin = chunk * CHUNK, end = std::min(vertical.low, begin + CHUNK);
        for (int64_t row = begin; row < end; ++row) {
            for (int64_t tap = 0; tap < 3; ++tap) {
                combine(vertical.given[3 * row + tap], grad, length, line.data(), length);
                for (int64_t at = 0; at < 3 * low; ++at)
                    combine(horizontal.given[at], line.data(), channels, &products[tap * third + at * channels],
                            channels);
            }
            correlate(x + row * from.row, from, products.data(), taps, sums, of, 1, low, row > begin, nullptr, 1);
            multiply(products.data(), taps, turned, grad_x + row * from.row, from, 1, low, false, false, 1);
        }
    }
    gradient.add_up(threads);
}

}  // namespace
