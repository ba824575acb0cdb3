// 3×3 convolution of few channels into many, padded by reflection.
#pragma once

#include "vectors.h"

namespace {

constexpr int TAPS = 9;
constexpr int TILE = 8;  // pixels whose sums are in registers at once

// One image: (inputs, rows, columns) to rows · columns pixels of ``outputs`` channels, by (outputs, inputs, 9) weights.
struct Narrow {
    const float* weight;
    int64_t inputs, outputs, rows, columns;
    int64_t taps = inputs * TAPS, padded = (outputs + LANES - 1) / LANES * LANES;
    int64_t width = (columns + 2 + 2 * LANES) / LANES * LANES;  // of a padded row, with a vector's rest behind it

    // Copies the lines that a row's taps see of each input, padded: (inputs, 3, width).
    template <class T>
    void see(const T* x, int64_t row, float* line) const {
        for (int64_t input = 0; input < inputs; ++input)
            for (int64_t dy = 0; dy < 3; ++dy, line += width) {
                const T* from = x + (input * rows + reflected(row + dy - 1, rows)) * columns;
                for (int64_t at = 0; at < columns; at += LANES)
                    store(line + 1 + at, load(from + at, columns - at), columns - at);
                line[0] = line[2];
                line[columns + 1] = line[columns - 1];
            }
    }

    // Where tap ``tap`` sees pixel 0.
    const float* seen(const float* line, int64_t tap) const {
        return line + tap / TAPS * 3 * width + tap % TAPS / 3 * width + tap % 3;
    }
};

template <int PIXELS_, class T>
inline void narrow_tile(const Narrow& of, const float* const* seen, const float* weights, const T* addend, T* out,
                        int64_t column) {
    for (int64_t channel = 0; channel < of.outputs; channel += LANES) {
        const int64_t at = column * of.outputs + channel, count = of.outputs - channel;
        Floats sums[PIXELS_];
        for (int p = 0; p < PIXELS_; ++p) sums[p] = load(addend + at + p * of.outputs, count);
        for (int64_t tap = 0; tap < of.taps; ++tap) {
            const Floats weight = load(weights + tap * of.padded + channel);
            for (int p = 0; p < PIXELS_; ++p) sums[p] += seen[tap][column + p] * weight;
        }
        for (int p = 0; p < PIXELS_; ++p) store(out + at + p * of.outputs, sums[p], count);
    }
}

template <class T>
void convolve_narrow(const T* x, const T* addend, T* out, const Narrow& of, int threads) {
    std::vector<float> weights(of.taps * of.padded);  // outputs innermost
    for (int64_t output = 0; output < of.outputs; ++output)
        for (int64_t tap = 0; tap < of.taps; ++tap)
            weights[tap * of.padded + output] = of.weight[output * of.taps + tap];
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> line(of.inputs * 3 * of.width);
        std::vector<const float*> seen(of.taps);
        for (int64_t tap = 0; tap < of.taps; ++tap) seen[tap] = of.seen(line.data(), tap);
#pragma omp for
        for (int64_t row = 0; row < of.rows; ++row) {
            of.see(x, row, line.data());
            const int64_t begin = row * of.columns * of.outputs;
            int64_t column = 0;
            for (; column + TILE <= of.columns; column += TILE)
                narrow_tile<TILE>(of, seen.data(), weights.data(), addend + begin, out + begin, column);
            for (; column < of.columns; ++column)
                narrow_tile<1>(of, seen.data(), weights.data(), addend + begin, out + begin, column);
        }
    }
}

template <class T>
void convolve_narrow_backward(const T* x, const T* grad, T* grad_x, float* grad_weight, const Narrow& of, int threads) {
    const int64_t blocks = (of.rows + ROWS - 1) / ROWS, reach = ROWS + 2;
    const int64_t each_weight = of.taps * of.padded, each_pull = of.inputs * reach * of.width;
    // For each block of rows: the gradient of the weight, and that of the rows that its taps see.
    std::vector<float> by_weight(blocks * each_weight), by_pull(blocks * each_pull);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> line(of.inputs * 3 * of.width), planes(of.padded * of.width);
#pragma omp for
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t end = (block + 1) * ROWS < of.rows ? (block + 1) * ROWS : of.rows;
            for (int64_t row = block * ROWS; row < end; ++row) {
                const T* pull = grad + row * of.columns * of.outputs;
                of.see(x, row, line.data());
                for (int64_t channel = 0; channel < of.outputs; channel += LANES) {
                    const int64_t count = of.outputs - channel;
                    for (int64_t input = 0; input < of.inputs; ++input) {
                        const float* seen = of.seen(line.data(), input * TAPS);
                        Floats sums[TAPS] = {};
                        for (int64_t column = 0; column < of.columns; ++column) {
                            const Floats g = load(pull + column * of.outputs + channel, count);
                            for (int tap = 0; tap < TAPS; ++tap)
                                sums[tap] += seen[tap / 3 * of.width + tap % 3 + column] * g;
                        }
                        float* to = &by_weight[block * each_weight + input * TAPS * of.padded + channel];
                        for (int tap = 0; tap < TAPS; ++tap)
                            store(to + tap * of.padded, load(to + tap * of.padded) + sums[tap]);
                    }
                    for (int64_t column = 0; column < of.columns; column += LANES)
                        read_channels(pull + column * of.outputs + channel, of.outputs, of.columns - column, count,
                                      &planes[channel * of.width + column], of.width);
                }
                for (int64_t input = 0; input < of.inputs; ++input)
                    for (int64_t column = 0; column < of.columns; column += LANES) {
                        Floats sums[TAPS] = {};
                        for (int64_t output = 0; output < of.outputs; ++output) {
                            const Floats g = load(&planes[output * of.width + column]);
                            const float* weight = of.weight + output * of.taps + input * TAPS;
                            for (int tap = 0; tap < TAPS; ++tap) sums[tap] += g * weight[tap];
                        }
                        const int64_t line_of_block = input * reach + row - block * ROWS;
                        float* to = &by_pull[block * each_pull + line_of_block * of.width + column];
                        for (int tap = 0; tap < TAPS; ++tap) {
                            float* place = to + tap / 3 * of.width + tap % 3;
                            store(place, load(place) + sums[tap]);
                        }
                    }
            }
        }
    }
    for (int64_t output = 0; output < of.outputs; ++output)
        for (int64_t tap = 0; tap < of.taps; ++tap) {
            double total = 0;
            for (int64_t block = 0; block < blocks; ++block)
                total += by_weight[block * each_weight + tap * of.padded + output];
            grad_weight[output * of.taps + tap] = float(total);
        }
    // The rows' gradients; those of the padding are added to the pixels that it mirrors.
    std::vector<float> total(of.inputs * of.rows * of.columns);
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t input = 0; input < of.inputs; ++input)
            for (int64_t r = 0; r < reach && block * ROWS + r < of.rows + 2; ++r) {
                const float* from = &by_pull[block * each_pull + (input * reach + r) * of.width];
                float* to = &total[(input * of.rows + reflected(block * ROWS + r - 1, of.rows)) * of.columns];
                for (int64_t column = 0; column < of.columns; ++column) to[column] += from[column + 1];
                to[1] += from[0];
                to[of.columns - 2] += from[of.columns + 1];
            }
    const int64_t size = int64_t(total.size());
    for (int64_t at = 0; at < size; at += LANES) store(grad_x + at, load(&total[at], size - at), size - at);
}

}  // namespace
