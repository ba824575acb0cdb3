// Bilinear upsampling as the three taps of a convolution see it, padded by reflection, and its adjoint.
#pragma once

#include "vectors.h"

namespace {

// One term of a sum over lines: which, and its weight.
struct Term {
    int64_t line;
    float weight;
};

// Upsampling ×2 along one axis, without aligned corners, cropped to ``size``.
struct Axis {
    int64_t size, low;
    std::vector<std::vector<Term>> seen;   // for each upsampled line: terms of 3 · low-resolution line + tap
    std::vector<std::vector<Term>> given;  // the adjoint: for each of those, terms of upsampled lines
    std::vector<float> table;              // see Maps

    explicit Axis(int64_t size) : size(size), low((size + 1) / 2), seen(size), given(3 * low), table(3 * low) {
        for (int64_t at = 0; at < size; ++at) {
            const Term* own = sources(at);
            table[own[0].line] += own[0].weight * own[0].weight;
            table[own[1].line] += own[1].weight * own[1].weight;
            if (own[0].line == own[1].line)
                table[own[0].line] += 2 * own[0].weight * own[1].weight;
            else
                table[low + own[0].line] += own[0].weight * own[1].weight;
            for (int which = 0; which < 2; ++which) table[2 * low + own[which].line] += own[which].weight / float(size);
            for (int64_t tap = 0; tap < 3; ++tap) {
                int64_t place = at + tap - 1;
                place = place < 0 ? -place : place < size ? place : 2 * (size - 1) - place;
                const Term* terms = sources(place);
                for (int which = 0; which < 2; ++which) add(seen[at], 3 * terms[which].line + tap, terms[which].weight);
            }
        }
        for (int64_t at = 0; at < size; ++at)
            for (const Term& term : seen[at]) given[term.line].push_back({at, term.weight});
    }

  private:
    Term both[2] = {};

    // The two low-resolution lines of an upsampled one, in ascending order; the same one twice at either end.
    const Term* sources(int64_t at) {
        const int64_t centre = at / 2, other = at % 2 ? centre + 1 : centre - 1;
        const int64_t inside = other < 0 ? 0 : other < low ? other : low - 1;
        const Term near{centre, 0.75f}, far{inside, 0.25f};
        both[0] = inside < centre ? far : near, both[1] = inside < centre ? near : far;
        return both;
    }

    static void add(std::vector<Term>& terms, int64_t line, float weight) {
        for (Term& term : terms)
            if (term.line == line) {
                term.weight += weight;
                return;
            }
        terms.push_back({line, weight});
    }
};

// to = Σ weight · from[line · distance] over the terms, for ``size`` numbers, whole vectors.
inline void combine(const std::vector<Term>& terms, const float* from, int64_t distance, float* to, int64_t size) {
    const int64_t count = int64_t(terms.size());
    int64_t at = 0;
    for (; at + 4 * LANES <= size; at += 4 * LANES) {
        Floats sums[4] = {};
        for (int64_t i = 0; i < count; ++i) {
            const float* line = from + terms[i].line * distance + at;
            for (int v = 0; v < 4; ++v) sums[v] += terms[i].weight * load(line + v * LANES);
        }
        for (int v = 0; v < 4; ++v) store(to + at + v * LANES, sums[v]);
    }
    for (; at < size; at += LANES) {
        Floats sum{};
        for (int64_t i = 0; i < count; ++i) sum += terms[i].weight * load(from + terms[i].line * distance + at);
        store(to + at, sum);
    }
}

// The products of a low-resolution tensor with the nine taps, (low rows, 3, low columns, 3, channels), to the upsampled
// convolution, (rows, columns, channels). The first 3 are the vertical taps.
inline void upsample(const float* products, const Axis& vertical, const Axis& horizontal, int64_t channels, float* out,
                     int threads) {
    const int64_t low = horizontal.low, length = low * 3 * channels;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> line(length);
#pragma omp for
        for (int64_t y = 0; y < vertical.size; ++y) {
            combine(vertical.seen[y], products, length, line.data(), length);
            for (int64_t x = 0; x < horizontal.size; ++x)
                combine(horizontal.seen[x], line.data(), channels, out + (y * horizontal.size + x) * channels, channels);
        }
    }
}

inline void upsample_backward(const float* grad, const Axis& vertical, const Axis& horizontal, int64_t channels,
                              float* products, int threads) {
    const int64_t low = horizontal.low, length = horizontal.size * channels;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> line(length);
#pragma omp for
        for (int64_t place = 0; place < 3 * vertical.low; ++place) {
            combine(vertical.given[place], grad, length, line.data(), length);
            for (int64_t at = 0; at < 3 * low; ++at)
                combine(horizontal.given[at], line.data(), channels,
                        products + (place * 3 * low + at) * channels, channels);
        }
    }
}

}  // namespace
