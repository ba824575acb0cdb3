// The last layer and the loss, forward and backward.
#pragma once

#include "vectors.h"

namespace {

// One image's last layer and target.
struct Head {
    const float *weight, *bias, *target;  // (outputs, channels), (outputs), (outputs, pixels): of this image
    float* output;                        // like target
    int64_t outputs, channels, pixels;

    // Writes the outputs of these pixels and ``pull``, the loss's gradient by the logits; returns the squared errors.
    Floats pulled(int64_t which, int64_t at, int64_t count, Floats logits, Floats& pull) const {
        const Floats out = 1.0f / (1.0f + exponential(-logits - bias[which]));
        const int64_t place = which * pixels + at;
        Floats error = out - load(target + place, count);
        store(output + place, out, count);
        if (count < LANES)
            for (int64_t lane = count; lane < LANES; ++lane) error[lane] = 0;
        pull = (2.0f / float(outputs * pixels)) * error * out * (1.0f - out);
        return error * error;
    }
};

// A vector of pixels of each channel: from planes, or transposed from pixels with the channels innermost.
template <class T, bool innermost>
struct Pixels {
    std::vector<float> values;
    int64_t channels, pixels;

    Pixels(int64_t channels, int64_t pixels)
        : values((channels + LANES - 1) / LANES * LANES * LANES), channels(channels), pixels(pixels) {}

    Floats of(const T* image, int64_t channel, int64_t at, int64_t count) const {
        return innermost ? load(&values[channel * LANES]) : load(image + channel * pixels + at, count);
    }
    void set(T* image, int64_t channel, int64_t at, int64_t count, Floats to) {
        if (innermost)
            store(&values[channel * LANES], to);
        else
            store(image + channel * pixels + at, to, count);
    }
    void read(const T* image, int64_t at, int64_t count) {
        for (int64_t channel = 0; innermost && channel < channels; channel += LANES)
            read_channels(image + at * channels + channel, channels, count, channels - channel,
                          &values[channel * LANES], LANES);
    }
    void write(T* image, int64_t at, int64_t count) const {
        for (int64_t channel = 0; innermost && channel < channels; channel += LANES) {
            float block[LANES * LANES];
            transpose(&values[channel * LANES], LANES, block, LANES);
            for (int64_t pixel = 0; pixel < count; ++pixel)
                store(image + (at + pixel) * channels + channel, load(block + pixel * LANES), channels - channel);
        }
    }
};

template <class T, bool innermost>
void head(const T* x, T* grad_x, const Head* heads, float* grad_weight, float* grad_bias, float* losses,
          int64_t images, int threads) {
    const int64_t outputs = heads->outputs, channels = heads->channels, pixels = heads->pixels;
    const int64_t blocks = (pixels + BLOCK - 1) / BLOCK;
    // A block's sums: the weight's gradient, the bias's, and the squared errors.
    const int64_t each = outputs * channels + outputs + 1;
    std::vector<float> partial(images * blocks * each);
#pragma omp parallel num_threads(threads)
    {
        std::vector<Floats> lanes(outputs * channels), pulls(outputs), logits(outputs), bias_sums(outputs);
        Pixels<T, innermost> own(channels, pixels);
#pragma omp for collapse(2)
        for (int64_t image = 0; image < images; ++image)
            for (int64_t block = 0; block < blocks; ++block) {
                const Head& head = heads[image];
                const T* from = x + image * channels * pixels;
                T* to = grad_x + image * channels * pixels;
                float* sums = &partial[(image * blocks + block) * each];
                Floats squares{};
                for (Floats& lane : lanes) lane = Floats{};
                for (Floats& bias_sum : bias_sums) bias_sum = Floats{};
                const int64_t end = (block + 1) * BLOCK < pixels ? (block + 1) * BLOCK : pixels;
                for (int64_t at = block * BLOCK; at < end; at += LANES) {
                    const int64_t count = end - at < LANES ? end - at : LANES;
                    own.read(from, at, count);
                    for (Floats& logit : logits) logit = Floats{};
                    for (int64_t c = 0; c < channels; ++c) {
                        const Floats values = own.of(from, c, at, count);
                        for (int64_t o = 0; o < outputs; ++o) logits[o] += values * head.weight[o * channels + c];
                    }
                    for (int64_t o = 0; o < outputs; ++o) {
                        squares += head.pulled(o, at, count, logits[o], pulls[o]);
                        bias_sums[o] += pulls[o];
                    }
                    for (int64_t c = 0; c < channels; ++c) {
                        const Floats values = own.of(from, c, at, count);
                        Floats grad{};
                        for (int64_t o = 0; o < outputs; ++o) {
                            grad += pulls[o] * head.weight[o * channels + c];
                            lanes[o * channels + c] += pulls[o] * values;
                        }
                        own.set(to, c, at, count, grad);
                    }
                    own.write(to, at, count);
                }
                for (int64_t which = 0; which < outputs * channels; ++which) sums[which] = sum(lanes[which]);
                for (int64_t o = 0; o < outputs; ++o) sums[outputs * channels + o] = sum(bias_sums[o]);
                sums[outputs * channels + outputs] = sum(squares);
            }
    }
    for (int64_t image = 0; image < images; ++image) {
        const float* sums = &partial[image * blocks * each];
        const auto total = [&](int64_t which) {
            double value = 0;
            for (int64_t block = 0; block < blocks; ++block) value += sums[block * each + which];
            return value;
        };
        for (int64_t o = 0; o < outputs; ++o) {
            for (int64_t c = 0; c < channels; ++c)
                grad_weight[(image * outputs + o) * channels + c] = float(total(o * channels + c));
            grad_bias[image * outputs + o] = float(total(outputs * channels + o));
        }
        losses[image] = float(total(outputs * channels + outputs) / (outputs * pixels));
    }
}

template <class T>
void heads(const T* x, T* grad_x, const float* weight, const float* bias, const float* target, float* output,
           float* grad_weight, float* grad_bias, float* losses, int64_t images, int64_t outputs, int64_t channels,
           int64_t pixels, bool innermost, int threads) {
    std::vector<Head> own;
    for (int64_t image = 0; image < images; ++image)
        own.push_back({weight + image * outputs * channels, bias + image * outputs,
                       target + image * outputs * pixels, output + image * outputs * pixels, outputs, channels,
                       pixels});
    const auto run = innermost ? head<T, true> : head<T, false>;
    run(x, grad_x, own.data(), grad_weight, grad_bias, losses, images, threads);
}

}  // namespace
