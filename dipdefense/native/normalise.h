// Normalisation and LeakyReLU in one pass, forward and backward.
#pragma once

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

// Two sums over the pixels of an image for each channel, in double; ``add`` sums over a block for 16 channels.
template <class Add>
void sum_pixels(int64_t pixels, int64_t channels, double* first, double* second, int threads, Add add) {
    const int64_t blocks = (pixels + PIXELS - 1) / PIXELS, padded = (channels + LANES - 1) / LANES * LANES;
    std::vector<float> partial(2 * blocks * padded);
#pragma omp parallel for num_threads(threads)
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t begin = block * PIXELS, end = begin + PIXELS < pixels ? begin + PIXELS : pixels;
        for (int64_t channel = 0; channel < channels; channel += LANES) {
            Floats sums[2] = {};
            add(channel, begin, end, sums);
            for (int which = 0; which < 2; ++which)
                store(&partial[(2 * block + which) * padded + channel], sums[which]);
        }
    }
    for (int64_t channel = 0; channel < channels; ++channel) {
        first[channel] = second[channel] = 0;
        for (int64_t block = 0; block < blocks; ++block) {
            first[channel] += partial[2 * block * padded + channel];
            second[channel] += partial[(2 * block + 1) * padded + channel];
        }
    }
}

// ``apply`` writes the pixels from begin to end for 16 channels.
template <class Apply>
void for_pixels(int64_t pixels, int64_t channels, int threads, Apply apply) {
#pragma omp parallel for num_threads(threads)
    for (int64_t begin = 0; begin < pixels; begin += PIXELS)
        for (int64_t channel = 0; channel < channels; channel += LANES)
            apply(channel, begin, begin + PIXELS < pixels ? begin + PIXELS : pixels);
}

template <class T>
void normalise_pixels(const T* x, T* y, const float* scale, const float* shift, double* statistics, int64_t channels,
                      int64_t pixels, double eps, float slope, int threads) {
    std::vector<double> first(channels), second(channels);
    sum_pixels(pixels, channels, first.data(), second.data(), threads,
               [=](int64_t channel, int64_t begin, int64_t end, Floats* sums) {
                   const int64_t count = channels - channel;
                   const Floats origin = load(x + channel, count);
                   Floats first{}, second{};
                   for (int64_t pixel = begin; pixel < end; ++pixel) {
                       const Floats centred = load(x + pixel * channels + channel, count) - origin;
                       first += centred;
                       second += centred * centred;
                   }
                   sums[0] = first, sums[1] = second;
               });
    const int64_t padded = (channels + LANES - 1) / LANES * LANES;
    std::vector<float> factor(padded), offset(padded);
    for (int64_t channel = 0; channel < channels; ++channel) {
        double* own = statistics + 2 * channel;
        moments(first[channel], second[channel], load(x + channel, 1)[0], pixels, eps, own);
        const Affine a = affine(own[0], own[1], scale[channel], shift ? shift[channel] : 0);
        factor[channel] = a.factor, offset[channel] = a.offset;
    }
    for_pixels(pixels, channels, threads, [&](int64_t channel, int64_t begin, int64_t end) {
        const int64_t count = channels - channel;
        const Floats f = load(&factor[channel]), o = load(&offset[channel]);
        for (int64_t pixel = begin; pixel < end; ++pixel) {
            const int64_t at = pixel * channels + channel;
            store(y + at, activated(load(x + at, count), f, o, slope), count);
        }
    });
}

template <class T>
void normalise_pixels_backward(const T* x, const T* grad, T* grad_x, const float* scale, const float* shift,
                               const double* statistics, float* grad_scale, float* grad_shift, int64_t channels,
                               int64_t pixels, float slope, int threads) {
    const int64_t padded = (channels + LANES - 1) / LANES * LANES;
    // Rows: the affine map's two numbers, those without scale and shift, and the two means.
    std::vector<float> table(6 * padded);
    float* const rows = table.data();
    for (int64_t channel = 0; channel < channels; ++channel) {
        const double mean = statistics[2 * channel], inverse = statistics[2 * channel + 1];
        const Affine a = affine(mean, inverse, scale[channel], shift ? shift[channel] : 0);
        const Affine hat = affine(mean, inverse, 1, 0);
        const float values[] = {a.factor, a.offset, hat.factor, hat.offset};
        for (int row = 0; row < 4; ++row) rows[row * padded + channel] = values[row];
    }
    const auto row = [=](int which, int64_t channel) { return load(rows + which * padded + channel); };
    std::vector<double> first(channels), second(channels);
    sum_pixels(pixels, channels, first.data(), second.data(), threads,
               [=](int64_t channel, int64_t begin, int64_t end, Floats* sums) {
                   const int64_t count = channels - channel;
                   const Floats factor = row(0, channel), offset = row(1, channel);
                   const Floats hat_factor = row(2, channel), hat_offset = row(3, channel);
                   Floats first{}, second{};
                   for (int64_t pixel = begin; pixel < end; ++pixel) {
                       const int64_t at = pixel * channels + channel;
                       const Floats values = load(x + at, count), g = load(grad + at, count);
                       const Floats before = values * factor + offset > 0.0f ? g : g * slope;
                       first += before;
                       second += before * (values * hat_factor + hat_offset);
                   }
                   sums[0] = first, sums[1] = second;
               });
    for (int64_t channel = 0; channel < channels; ++channel) {
        grad_scale[channel] = float(second[channel]);
        if (grad_shift) grad_shift[channel] = float(first[channel]);
        rows[4 * padded + channel] = float(first[channel] / pixels);
        rows[5 * padded + channel] = float(second[channel] / pixels);
    }
    for_pixels(pixels, channels, threads, [&](int64_t channel, int64_t begin, int64_t end) {
        const int64_t count = channels - channel;
        const Floats factor = row(0, channel), offset = row(1, channel);
        const Floats hat_factor = row(2, channel), hat_offset = row(3, channel);
        const Floats mean_g = row(4, channel), mean_product = row(5, channel);
        for (int64_t pixel = begin; pixel < end; ++pixel) {
            const int64_t at = pixel * channels + channel;
            const Floats values = load(x + at, count), g = load(grad + at, count);
            const Floats before = values * factor + offset > 0.0f ? g : g * slope;
            const Floats normal = values * hat_factor + hat_offset;
            store(grad_x + at, factor * (before - mean_g - normal * mean_product), count);
        }
    });
}

}  // namespace
