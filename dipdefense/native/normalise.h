// Normalisation and LeakyReLU in one pass, forward and backward.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace {

// y = factor · x + offset before the activation, a channel's.
struct Affine {
    float factor, offset;
};

inline Floats activated(Floats x, Floats factor, Floats offset, float slope) {
    const Floats y = x * factor + offset;
    return y > 0.0f ? y : y * slope;
}

inline Affine affine(double mean, double inverse, float scale, float shift) {
    const double factor = inverse * scale;
    return {float(factor), float(shift - mean * factor)};
}

// The moments of ``count`` values from the sums of x − origin and of its squares; written as mean and 1/deviation.
inline void moments(double first, double second, double origin, int64_t count, double eps, double* statistics) {
    const double mean = first / count, variance = second / count - mean * mean;
    statistics[0] = origin + mean;
    // ``<`` rather than a maximum, which would hide a NaN.
    statistics[1] = 1 / std::sqrt((variance < 0 ? 0 : variance) + eps);
}

template <class T>
void normalise_planes(const T* x, T* y, const float* scale, const float* shift, double* statistics, int64_t planes,
                      int64_t size, double eps, float slope, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t plane = 0; plane < planes; ++plane) {
        const T* from = x + plane * size;
        const float origin = load(from, 1)[0];
        double first = 0, second = 0;
        for (int64_t begin = 0; begin < size; begin += BLOCK) {
            const int64_t end = begin + BLOCK < size ? begin + BLOCK : size;
            Floats sums{}, squares{};
            int64_t at = begin;
            for (; at + LANES <= end; at += LANES) {
                const Floats centred = load(from + at) - origin;
                sums += centred;
                squares += centred * centred;
            }
            float rest = 0, rest_squares = 0;
            for (; at < end; ++at) {
                const float centred = load(from + at, 1)[0] - origin;
                rest += centred;
                rest_squares += centred * centred;
            }
            first += double(sum(sums)) + rest;
            second += double(sum(squares)) + rest_squares;
        }
        double* own = statistics + 2 * plane;
        moments(first, second, origin, size, eps, own);
        const Affine a = affine(own[0], own[1], scale[plane], shift ? shift[plane] : 0);
        T* to = y + plane * size;
        int64_t at = 0;
        for (; at + LANES <= size; at += LANES)
            store(to + at, activated(load(from + at), all(a.factor), all(a.offset), slope));
        if (at < size)
            store(to + at, activated(load(from + at, size - at), all(a.factor), all(a.offset), slope), size - at);
    }
}

// Gradients of x, scale and shift, given that of y: with x̂ the normalised x and g the gradient before the activation,
// that of x is factor · (g − mean(g) − x̂ · mean(g x̂)).
template <class T>
void normalise_planes_backward(const T* x, const T* grad, T* grad_x, const float* scale, const float* shift,
                               const double* statistics, float* grad_scale, float* grad_shift, int64_t planes,
                               int64_t size, float slope, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t plane = 0; plane < planes; ++plane) {
        const T *from = x + plane * size, *pull = grad + plane * size;
        T* to = grad_x + plane * size;
        const double mean = statistics[2 * plane], inverse = statistics[2 * plane + 1];
        const Affine a = affine(mean, inverse, scale[plane], shift ? shift[plane] : 0);
        const Affine hat = affine(mean, inverse, 1, 0);
        const auto before = [&](int64_t at, int64_t count, Floats& normal) {
            const Floats values = load(from + at, count), g = load(pull + at, count);
            normal = values * hat.factor + hat.offset;
            return values * a.factor + a.offset > 0.0f ? g : g * slope;
        };
        double first = 0, second = 0;
        for (int64_t begin = 0; begin < size; begin += BLOCK) {
            const int64_t end = begin + BLOCK < size ? begin + BLOCK : size;
            Floats sums{}, products{}, normal;
            int64_t at = begin;
            for (; at + LANES <= end; at += LANES) {
                const Floats g = before(at, LANES, normal);
                sums += g;
                products += g * normal;
            }
            if (at < end) {
                const Floats g = before(at, end - at, normal);  // zero beyond the end
                sums += g;
                products += g * normal;
            }
            first += sum(sums);
            second += sum(products);
        }
        grad_scale[plane] = float(second);
        if (grad_shift) grad_shift[plane] = float(first);
        const float mean_g = float(first / size), mean_product = float(second / size);
        for (int64_t at = 0; at < size; at += LANES) {
            Floats normal;
            const Floats g = before(at, size - at, normal);
            store(to + at, a.factor * (g - mean_g - normal * mean_product), size - at);
        }
    }
}

// The same of one image with the channels innermost, block by block, so that what comes before and after can be done
// with a block while it is in the cache. Pointers are to the block's first pixel.
template <class T>
class PixelNorm {
  public:
    const int64_t pixels, channels, blocks;

    PixelNorm(int64_t pixels, int64_t channels, const float* scale, const float* shift, float slope)
        : pixels(pixels), channels(channels), blocks((pixels + PIXELS - 1) / PIXELS), scale(scale), shift(shift),
          slope(slope), padded((channels + LANES - 1) / LANES * LANES),
          partial(2 * blocks * padded), table(6 * padded) {}

    // Calls visit(block, place) for each block, with the place of its first number.
    template <class Visit>
    void for_blocks(int threads, Visit visit) const {
#pragma omp parallel for num_threads(threads)
        for (int64_t block = 0; block < blocks; ++block) visit(block, place(block));
    }

    int64_t place(int64_t block) const { return block * PIXELS * channels; }
    int64_t count(int64_t block) const { return std::min(PIXELS, pixels - block * PIXELS); }

    // A block's mean of each channel, and the sum of squares about it.
    void measure(int64_t block, const T* x) {
        const int64_t size = count(block);
        for (int64_t channel = 0; channel < channels; channel += LANES) {
            const int64_t left = channels - channel;
            const Floats origin = load(x + channel, left);
            Floats first{}, second{};
            for (int64_t pixel = 0; pixel < size; ++pixel) {
                const Floats centred = load(x + pixel * channels + channel, left) - origin;
                first += centred;
                second += centred * centred;
            }
            store(sums(block, 0) + channel, origin + first / float(size));
            store(sums(block, 1) + channel, second - first * first / float(size));
        }
    }

    // The statistics, once every block is measured.
    void finish(double eps, double* statistics) {
        for (int64_t channel = 0; channel < channels; ++channel) {
            double first = 0, second = 0;
            for (int64_t block = 0; block < blocks; ++block) first += count(block) * double(sums(block, 0)[channel]);
            const double mean = first / pixels;
            for (int64_t block = 0; block < blocks; ++block) {
                const double off = sums(block, 0)[channel] - mean;
                second += sums(block, 1)[channel] + count(block) * off * off;
            }
            statistics[2 * channel] = mean;
            // ``<`` rather than a maximum, which would hide a NaN.
            statistics[2 * channel + 1] = 1 / std::sqrt((second < 0 ? 0 : second / pixels) + eps);
        }
        prepare(statistics);
    }

    // The affine maps with and without scale and shift, by the statistics.
    void prepare(const double* statistics) {
        for (int64_t channel = 0; channel < channels; ++channel) {
            const double mean = statistics[2 * channel], inverse = statistics[2 * channel + 1];
            const Affine a = affine(mean, inverse, scale[channel], shift ? shift[channel] : 0);
            const Affine hat = affine(mean, inverse, 1, 0);
            const float values[] = {a.factor, a.offset, hat.factor, hat.offset};
            for (int row = 0; row < 4; ++row) table[row * padded + channel] = values[row];
        }
    }

    void apply(int64_t block, const T* x, T* y) const {
        const int64_t size = count(block);
        for (int64_t channel = 0; channel < channels; channel += LANES) {
            const int64_t left = channels - channel;
            const Floats factor = row(0, channel), offset = row(1, channel);
            for (int64_t at = channel; at < size * channels; at += channels)
                store(y + at, activated(load(x + at, left), factor, offset, slope), left);
        }
    }

    // A block's sums for the gradients.
    void pull(int64_t block, const T* x, const T* grad) {
        const int64_t size = count(block);
        for (int64_t channel = 0; channel < channels; channel += LANES) {
            const int64_t left = channels - channel;
            const Floats factor = row(0, channel), offset = row(1, channel);
            const Floats hat_factor = row(2, channel), hat_offset = row(3, channel);
            Floats first{}, second{};
            for (int64_t at = channel; at < size * channels; at += channels) {
                const Floats values = load(x + at, left), g = load(grad + at, left);
                const Floats before = values * factor + offset > 0.0f ? g : g * slope;
                first += before;
                second += before * (values * hat_factor + hat_offset);
            }
            store(sums(block, 0) + channel, first);
            store(sums(block, 1) + channel, second);
        }
    }

    // The gradients of scale and shift, once every block is pulled.
    void finish_backward(float* grad_scale, float* grad_shift) {
        for (int64_t channel = 0; channel < channels; ++channel) {
            double totals[2] = {};
            for (int64_t block = 0; block < blocks; ++block)
                for (int which = 0; which < 2; ++which) totals[which] += sums(block, which)[channel];
            grad_scale[channel] = float(totals[1]);
            if (grad_shift) grad_shift[channel] = float(totals[0]);
            for (int which = 0; which < 2; ++which)
                table[(4 + which) * padded + channel] = float(totals[which] / pixels);
        }
    }

    void apply_backward(int64_t block, const T* x, const T* grad, T* grad_x) const {
        const int64_t size = count(block);
        for (int64_t channel = 0; channel < channels; channel += LANES) {
            const int64_t left = channels - channel;
            const Floats factor = row(0, channel), offset = row(1, channel);
            const Floats hat_factor = row(2, channel), hat_offset = row(3, channel);
            const Floats mean_g = row(4, channel), mean_product = row(5, channel);
            for (int64_t at = channel; at < size * channels; at += channels) {
                const Floats values = load(x + at, left), g = load(grad + at, left);
                const Floats before = values * factor + offset > 0.0f ? g : g * slope;
                const Floats normal = values * hat_factor + hat_offset;
                store(grad_x + at, factor * (before - mean_g - normal * mean_product), left);
            }
        }
    }

  private:
    const float *scale, *shift;
    const float slope;
    const int64_t padded;
    // Of each block two numbers a channel; and rows of the affine maps' four numbers and the gradients' two means.
    std::vector<float> partial, table;

    float* sums(int64_t block, int which) { return &partial[(2 * block + which) * padded]; }
    Floats row(int which, int64_t channel) const { return load(&table[which * padded + channel]); }
};

template <class T>
void normalise_pixels(const T* x, T* y, const float* scale, const float* shift, double* statistics, int64_t channels,
                      int64_t pixels, double eps, float slope, int threads) {
    PixelNorm<T> norm(pixels, channels, scale, shift, slope);
    norm.for_blocks(threads, [&](int64_t block, int64_t place) { norm.measure(block, x + place); });
    norm.finish(eps, statistics);
    norm.for_blocks(threads, [&](int64_t block, int64_t place) { norm.apply(block, x + place, y + place); });
}

template <class T>
void normalise_pixels_backward(const T* x, const T* grad, T* grad_x, const float* scale, const float* shift,
                               const double* statistics, float* grad_scale, float* grad_shift, int64_t channels,
                               int64_t pixels, float slope, int threads) {
    PixelNorm<T> norm(pixels, channels, scale, shift, slope);
    norm.prepare(statistics);
    norm.for_blocks(threads, [&](int64_t block, int64_t place) { norm.pull(block, x + place, grad + place); });
    norm.finish_backward(grad_scale, grad_shift);
    norm.for_blocks(threads, [&](int64_t block, int64_t place) {
        norm.apply_backward(block, x + place, grad + place, grad_x + place);
    });
}

}  // namespace
