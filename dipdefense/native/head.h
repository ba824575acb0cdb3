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

template <class T, bool innermost>
void head(const T* x, T* grad_x, const Head* heads, float* grad_weight, float* grad_bias, float* losses,
          int64_t images, int threads) {
    const int64_t outputs = heads->outputs, channels = heads->channels, pixels = heads->pixels;
    const int64_t blocks = (pixels + BLOCK - 1) / BLOCK, padded = (channels + LANES - 1) / LANES * LANES;
    // A block's sums: the weight's gradient, the bias's, and the squared errors.
    const int64_t each = outputs * padded + outputs + 1;
    std::vector<float> partial(images * blocks * each);
#pragma omp parallel num_threads(threads)
    {
        std::vector<Floats> lanes(outputs * channels), pulls(outputs), logits(outputs);
        // The weight with whole vectors of channels.
        std::vector<float> rows(outputs * padded);
#pragma omp for collapse(2)
        for (int64_t image = 0; image < images; ++image)
            for (int64_t block = 0; block < blocks; ++block) {
                const Head& own = heads[image];
                const T* from = x + image * channels * pixels;
                T* to = grad_x + image * channels * pixels;
                float* sums = &partial[(image * blocks + block) * each];
                std::vector<Floats> bias_sums(outputs);
                Floats squares{};
                if (innermost)
                    for (int64_t o = 0; o < outputs; ++o)
                        std::memcpy(&rows[o * padded], own.weight + o * channels, channels * sizeof(float));
                for (Floats& lane : lanes) lane = Floats{};
                const int64_t end = (block + 1) * BLOCK < pixels ? (block + 1) * BLOCK : pixels;
                for (int64_t at = block * BLOCK; at < end; at += LANES) {
                    const int64_t count = end - at < LANES ? end - at : LANES;
                    for (Floats& logit : logits) logit = Floats{};
                    if (innermost) {
                        for (int64_t lane = 0; lane < count; ++lane)
                            for (int64_t o = 0; o < outputs; ++o) {
                                Floats products{};
                                for (int64_t c = 0; c < channels; c += LANES)
                                    products += load(&rows[o * padded + c]) *
                                                load(from + (at + lane) * channels + c, channels - c);
                                logits[o][lane] = sum(products);
                            }
                    } else {
                        for (int64_t c = 0; c < channels; ++c) {
                            const Floats values = load(from + c * pixels + at, count);
                            for (int64_t o = 0; o < outputs; ++o) logits[o] += values * own.weight[o * channels + c];
                        }
                    }
                    for (int64_t o = 0; o < outputs; ++o) {
                        squares += own.pulled(o, at, count, logits[o], pulls[o]);
                        bias_sums[o] += pulls[o];
                    }
                    if (innermost) {
                        for (int64_t lane = 0; lane < count; ++lane)
                            for (int64_t c = 0; c < channels; c += LANES) {
                                const int64_t place = (at + lane) * channels + c;
                                const Floats values = load(from + place, channels - c);
                                Floats grad{};
                                for (int64_t o = 0; o < outputs; ++o) {
                                    const float pull = pulls[o][lane];
                                    grad += pull * load(&rows[o * padded + c]);
                                    float* sum_at = sums + o * padded + c;
                                    store(sum_at, load(sum_at) + pull * values);
                                }
                                store(to + place, grad, channels - c);
                            }
                    } else {
                        for (int64_t c = 0; c < channels; ++c) {
                            const Floats values = load(from + c * pixels + at, count);
                            Floats grad{};
                            for (int64_t o = 0; o < outputs; ++o) {
                                grad += pulls[o] * own.weight[o * channels + c];
                                lanes[o * channels + c] += pulls[o] * values;
                            }
                            store(to + c * pixels + at, grad, count);
                        }
                    }
                }
                if (!innermost)
                    for (int64_t o = 0; o < outputs; ++o)
                        for (int64_t c = 0; c < channels; ++c) sums[o * padded + c] = sum(lanes[o * channels + c]);
                for (int64_t o = 0; o < outputs; ++o) sums[outputs * padded + o] = sum(bias_sums[o]);
                sums[outputs * padded + outputs] = sum(squares);
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
                grad_weight[(image * outputs + o) * channels + c] = float(total(o * padded + c));
            grad_bias[image * outputs + o] = float(total(outputs * padded + o));
        }
        losses[image] = float(total(outputs * padded + outputs) / (outputs * pixels));
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
