// One iteration of one image's network: noise, forward and backward pass, and Adam; channels innermost.
//
// Tensors and the convolutions' factors are fp32 or bf16; parameters, their gradients and all sums are fp32 or double.
#pragma once

#include "head.h"
#include "narrow.h"
#include "noise.h"
#include "normalise.h"
#include "products.h"
#include "resample.h"
#include "upsampled.h"

namespace {

constexpr int64_t CHUNK_BLOCKS = 16;  // of pixels that one thread adds up for a weight's gradient

// Channels and parameters are padded with zeros to a multiple of 16.
inline int64_t whole(int64_t count) { return (count + NARROW - 1) / NARROW * NARROW; }

// The network and its optimiser, as library.py passes them.
struct Shape {
    int64_t height, width, image_channels, input_channels, channels, skip_channels, scales;
    double input_deviation, norm_eps, leaky_slope, learning_rate, first_decay, second_decay, adam_eps;
};

// Hands out places in one array: parameters, or the tensors of an image.
struct Places {
    int64_t used = 0;
    int64_t take(int64_t count) {
        const int64_t place = used;
        used += whole(count);
        return place;
    }
};

// Where one scale's parameters and tensors are.
struct Scale {
    int64_t rows, columns, low_rows, low_columns, inputs;
    Weight skip, down, same, up, mix;
    // Parameters, in this order.
    int64_t skip_weight, skip_scale, skip_shift, merge_skip_scale, up_skip_weight;
    int64_t down_weight, down_scale, down_shift, same_weight, same_scale, same_shift, merge_scale, up_weight, up_scale,
        up_shift, mix_weight, mix_scale, mix_shift;
    // Tensors.
    int64_t input, reduced, activated, kept, deeper, normal, merged, mixed, output;
    int64_t skip_pixels, skip_planes, skip_activated, skip_normal;
    // Gradients.
    int64_t grad, grad_low, framed, grad_padded, grad_padded_low, grad_skip, grad_input;
    // Statistics, in doubles.
    int64_t skip_moments, merge_skip_moments, down_moments, same_moments, merge_moments, up_moments, mix_moments;
};

template <class T>
class Network {
  public:
    int64_t parameters, floats;  // floats of the space that iterations need

    explicit Network(const Shape& shape) : is(shape), channels(whole(shape.channels)), skips(shape.skip_channels) {
        Places own, tensors, numbers, statistics;
        int64_t rows = is.height, columns = is.width, largest = 0, partial = 0;
        for (int64_t at = 0; at < is.scales; ++at) {
            const int64_t inputs = at ? is.channels : is.input_channels, low_rows = (rows + 1) / 2;
            const int64_t low_columns = (columns + 1) / 2;
            Scale s{rows, columns, low_rows, low_columns, at ? channels : is.input_channels,
                    {1, inputs, whole(std::max<int64_t>(skips, 1))}, {9, inputs, channels}, {9, is.channels, channels},
                    {9, is.channels, channels}, {1, is.channels, channels}};
            if (skips) {
                s.skip_weight = own.take(s.skip.size), s.skip_scale = own.take(skips), s.skip_shift = own.take(skips);
                s.merge_skip_scale = own.take(skips), s.up_skip_weight = own.take(9 * skips * channels);
            }
            s.down_weight = own.take(s.down.size), s.down_scale = own.take(channels), s.down_shift = own.take(channels);
            s.same_weight = own.take(s.same.size), s.same_scale = own.take(channels), s.same_shift = own.take(channels);
            s.merge_scale = own.take(channels), s.up_weight = own.take(s.up.size);
            s.up_scale = own.take(channels), s.up_shift = own.take(channels), s.mix_weight = own.take(s.mix.size);
            s.mix_scale = own.take(channels), s.mix_shift = own.take(channels);

            const int64_t pixels = rows * columns, low = low_rows * low_columns;
            const int64_t padded = (rows + 2) * (columns + 2), padded_low = (low_rows + 2) * (low_columns + 2);
            s.input = tensors.take(padded * s.inputs), s.reduced = tensors.take(low * channels);
            s.activated = tensors.take(padded_low * channels), s.kept = tensors.take(low * channels);
            s.deeper = tensors.take(low * channels), s.normal = tensors.take(low * channels);
            s.merged = tensors.take(pixels * channels), s.mixed = tensors.take(pixels * channels);
            s.output = tensors.take(pixels * channels);
            s.skip_pixels = tensors.take(pixels * s.skip.outputs), s.skip_planes = tensors.take(pixels * skips);
            s.skip_activated = tensors.take(pixels * skips), s.skip_normal = tensors.take(pixels * skips);
            s.grad = tensors.take(pixels * channels), s.grad_low = tensors.take(low * channels);
            s.framed = tensors.take(low_rows * (low_columns + 4) * channels);
            s.grad_padded = tensors.take(at ? padded * channels : 0);
            s.grad_padded_low = tensors.take(padded_low * channels);
            s.grad_skip = tensors.take(pixels * skips), s.grad_input = tensors.take(at ? pixels * channels : 0);
            for (int64_t* place : {&s.skip_moments, &s.merge_skip_moments, &s.down_moments, &s.same_moments,
                                   &s.merge_moments, &s.up_moments, &s.mix_moments})
                *place = statistics.take(2 * std::max(channels, skips));
            for (const Weight* weight : {&s.skip, &s.down, &s.same, &s.up, &s.mix}) {
                largest = std::max(largest, weight->taps * whole(weight->inputs) * weight->outputs);
                partial = std::max(partial, weight->size * ((rows + CHUNK - 1) / CHUNK));
            }
            partial = std::max(partial, s.mix.size * (pixels / (PIXELS * CHUNK_BLOCKS) + 1));
            all.push_back(s);
            vertical.emplace_back(rows), horizontal.emplace_back(columns);
            rows = low_rows, columns = low_columns;
        }
        output_weight = own.take(is.image_channels * channels), output_bias = own.take(is.image_channels);
        parameters = own.used;
        noise = tensors.take(is.height * is.width * is.input_channels);
        factors = tensors.take(largest);
        gradients = numbers.take(parameters), partials = numbers.take(partial);
        moments_at = numbers.take(2 * statistics.used), space_at = numbers.used;
        floats = numbers.used + tensors.used / TERMS<T>;
    }

    // ``parameter`` and the moments are the image's, likewise target, outputs and loss; ``fixed`` has the channels
    // innermost. ``room`` was zero before the first iteration.
    void iterate(float* parameter, float* first, float* second, const float* fixed, const float* target, float* outputs,
                 float* loss, int64_t seed, int64_t iteration, float* room, int threads) const {
        T* const space = reinterpret_cast<T*>(room + space_at);
        const Run run{parameter, room, space, threads};
        perturb(fixed, space + noise, &seed, 1, is.height * is.width * is.input_channels, iteration,
                float(is.input_deviation), threads);
        pad(space + noise, is.height, is.width, is.input_channels, space + all[0].input, threads);
        forward(run, 0);
        const Scale& s = all[0];
        heads(space + s.output, space + s.grad, parameter + output_weight, parameter + output_bias, target, outputs,
              run.grad(*this, output_weight), run.grad(*this, output_bias), loss, 1, is.image_channels, channels,
              s.rows * s.columns, true, threads);
        backward(run, 0);
        adam(parameter, first, second, room + gradients, iteration, threads);
    }

  private:
    const Shape is;
    const int64_t channels, skips;  // channels with their padding
    std::vector<Scale> all;
    std::vector<Axis> vertical, horizontal;
    int64_t output_weight, output_bias, noise, factors, gradients, partials, moments_at, space_at;

    struct Run {
        float *parameter, *numbers;
        T* space;
        int threads;
        float* grad(const Network& of, int64_t place) const { return numbers + of.gradients + place; }
        double* statistics(const Network& of, int64_t place) const {
            return reinterpret_cast<double*>(numbers + of.moments_at) + place;
        }
        // Until the next weight's.
        Factors<T> factors(const Network& of, int64_t place, const Weight& weight) const {
            return as_factors(parameter + place, weight, space + of.factors, threads);
        }
        Factors<T> exchanged(const Network& of, int64_t place, const Weight& weight, const Weight& to) const {
            return exchange(parameter + place, weight, space + of.factors, to, threads);
        }
    };

    // Grids: of pixels, of a padded tensor's inner pixels, and of the taps that a convolution sees there.
    static Grid plain(int64_t columns, int64_t deep) { return {columns * deep, deep}; }
    static Grid inner(int64_t columns, int64_t deep) {
        Grid grid{(columns + 2) * deep, deep};
        grid.taps[0] = (columns + 3) * deep;
        return grid;
    }
    static Grid padded(int64_t columns, int64_t deep, int64_t stride) {
        Grid grid{stride * (columns + 2) * deep, stride * deep};
        for (int64_t tap = 0; tap < 9; ++tap) grid.taps[tap] = (tap / 3 * (columns + 2) + tap % 3) * deep;
        return grid;
    }

    static void pad(const T* from, int64_t rows, int64_t columns, int64_t deep, T* to, int threads) {
        const int64_t length = columns * deep;
#pragma omp parallel for num_threads(threads)
        for (int64_t row = -1; row <= rows; ++row) {
            const T* line = from + reflected(row, rows) * length;
            T* own = to + (row + 1) * (length + 2 * deep);
            std::memcpy(own, line + deep, deep * sizeof(T));
            std::memcpy(own + deep, line, length * sizeof(T));
            std::memcpy(own + deep + length, line + length - 2 * deep, deep * sizeof(T));
        }
    }

    // The adjoint of ``pad``.
    static void fold(const T* from, int64_t rows, int64_t columns, int64_t deep, T* to, int threads) {
        const int64_t line = (columns + 2) * deep;
#pragma omp parallel for num_threads(threads)
        for (int64_t row = 0; row < rows; ++row) {
            const T* own = from + (row + 1) * line;
            const T* above = row == 1 ? from : nullptr;
            const T* below = row == rows - 2 ? from + (rows + 1) * line : nullptr;
            T* out = to + row * columns * deep;
            for (int64_t column = 0; column < columns; ++column)
                for (int64_t at = 0; at < deep; at += LANES) {
                    const auto seen = [&](const T* of) {
                        Floats sum = load(of + (column + 1) * deep + at);
                        if (column == 1) sum += load(of + at);
                        if (column == columns - 2) sum += load(of + (columns + 1) * deep + at);
                        return sum;
                    };
                    Floats sum = seen(own);
                    if (above) sum += seen(above);
                    if (below) sum += seen(below);
                    store(out + column * deep + at, sum);
                }
        }
    }

    // With two pixels of zeros beside each row, which are there already.
    static void frame(const T* from, int64_t rows, int64_t columns, int64_t deep, T* to, int threads) {
#pragma omp parallel for num_threads(threads)
        for (int64_t row = 0; row < rows; ++row)
            std::memcpy(to + (row * (columns + 4) + 2) * deep, from + row * columns * deep,
                        columns * deep * sizeof(T));
    }

    using Norm = PixelNorm<T>;

    Norm norm(const Run& run, int64_t scale, int64_t shift, int64_t pixels) const {
        return {pixels, channels, run.parameter + scale, run.parameter + shift, float(is.leaky_slope)};
    }

    void activate(const Run& run, int64_t x, int64_t y, int64_t scale, int64_t shift, int64_t statistics,
                  int64_t pixels) const {
        normalise_pixels(run.space + x, run.space + y, run.parameter + scale, run.parameter + shift,
                         run.statistics(*this, statistics), channels, pixels, is.norm_eps, float(is.leaky_slope),
                         run.threads);
    }

    void activate_backward(const Run& run, int64_t x, T* grad, int64_t scale, int64_t shift, int64_t statistics,
                           int64_t pixels) const {
        normalise_pixels_backward(run.space + x, grad, grad, run.parameter + scale, run.parameter + shift,
                                  run.statistics(*this, statistics), run.grad(*this, scale), run.grad(*this, shift),
                                  channels, pixels, float(is.leaky_slope), run.threads);
    }

    Maps maps(int64_t at) const {
        const Scale& s = all[at];
        return {vertical[at].table.data(), horizontal[at].table.data(), 1, s.low_rows, s.low_columns, channels,
                double(s.rows * s.columns)};
    }

    void forward(const Run& run, int64_t at) const {
        const Scale& s = all[at];
        T* const space = run.space;
        const float* const own = run.parameter;
        const int threads = run.threads;
        const int64_t pixels = s.rows * s.columns, low = s.low_rows * s.low_columns;
        multiply(space + s.input, padded(s.columns, s.inputs, 2), run.factors(*this, s.down_weight, s.down),
                 space + s.reduced, plain(s.low_columns, channels), s.low_rows, s.low_columns, false, false, threads);
        activate(run, s.reduced, s.deeper, s.down_scale, s.down_shift, s.down_moments, low);
        pad(space + s.deeper, s.low_rows, s.low_columns, channels, space + s.activated, threads);
        multiply(space + s.activated, padded(s.low_columns, channels, 1),
                 run.factors(*this, s.same_weight, s.same), space + s.kept, plain(s.low_columns, channels), s.low_rows,
                 s.low_columns, false, false, threads);
        activate(run, s.kept, s.deeper, s.same_scale, s.same_shift, s.same_moments, low);
        if (at + 1 < is.scales) {
            const Scale& next = all[at + 1];
            pad(space + s.deeper, next.rows, next.columns, channels, space + next.input, threads);
            forward(run, at + 1);
        }
        normalise_upsampled(space + deeper(at), space + s.normal, own + s.merge_scale,
                            run.statistics(*this, s.merge_moments), maps(at), is.norm_eps, threads);
        convolve_upsampled(space + s.normal, plain(s.low_columns, channels),
                           run.factors(*this, s.up_weight, s.up), vertical[at], horizontal[at], space + s.merged,
                           threads);
        if (skips) {
            multiply(space + s.input, inner(s.columns, s.inputs), run.factors(*this, s.skip_weight, s.skip),
                     space + s.skip_pixels, plain(s.columns, s.skip.outputs), s.rows, s.columns, false, false, threads);
#pragma omp parallel for num_threads(threads)
            for (int64_t pixel = 0; pixel < pixels; ++pixel)
                for (int64_t skip = 0; skip < skips; ++skip)
                    space[s.skip_planes + skip * pixels + pixel] = space[s.skip_pixels + pixel * s.skip.outputs + skip];
            normalise_planes(space + s.skip_planes, space + s.skip_activated, own + s.skip_scale, own + s.skip_shift,
                             run.statistics(*this, s.skip_moments), skips, pixels, is.norm_eps, float(is.leaky_slope),
                             threads);
            normalise_planes(space + s.skip_activated, space + s.skip_normal, own + s.merge_skip_scale,
                             static_cast<const float*>(nullptr), run.statistics(*this, s.merge_skip_moments), skips,
                             pixels, is.norm_eps, 1.0f, threads);
            convolve_narrow(space + s.skip_normal, space + s.merged, space + s.merged,
                            {own + s.up_skip_weight, skips, channels, s.rows, s.columns}, threads);
        }
        // Activation, 1×1 convolution and its moments a block at a time; the activated block is not kept.
        Norm before = norm(run, s.up_scale, s.up_shift, pixels), after = norm(run, s.mix_scale, s.mix_shift, pixels);
        before.for_blocks(threads, [&](int64_t block, int64_t place) {
            before.measure(block, space + s.merged + place);
        });
        before.finish(is.norm_eps, run.statistics(*this, s.up_moments));
        const Factors<T> mix = run.factors(*this, s.mix_weight, s.mix);
        before.for_blocks(threads, [&](int64_t block, int64_t place) {
            std::vector<T> mixed_in(PIXELS * channels);
            before.apply(block, space + s.merged + place, mixed_in.data());
            multiply(mixed_in.data(), plain(PIXELS, channels), mix, space + s.mixed + place, plain(PIXELS, channels), 1,
                     before.count(block), false, false, 1);
            after.measure(block, space + s.mixed + place);
        });
        after.finish(is.norm_eps, run.statistics(*this, s.mix_moments));
        before.for_blocks(threads, [&](int64_t block, int64_t place) {
            after.apply(block, space + s.mixed + place, space + s.output + place);
        });
    }

    // Where a scale's upsampled tensor was before: the next scale's output, or its own at the last.
    int64_t deeper(int64_t at) const { return at + 1 < is.scales ? all[at + 1].output : all[at].deeper; }

    // From ``grad`` of this scale, which it overwrites, to ``grad_input``; at the first scale there is none.
    void backward(const Run& run, int64_t at) const {
        const Scale& s = all[at];
        T *const space = run.space, *const grad = space + s.grad, *const grad_low = space + s.grad_low;
        const float* const own = run.parameter;
        float* const partial = run.numbers + partials;
        const int threads = run.threads;
        const int64_t pixels = s.rows * s.columns, low = s.low_rows * s.low_columns;
        const Grid low_grid = plain(s.low_columns, channels);
        const Weight back_1{1, is.channels, channels}, back_9{9, is.channels, channels};

        // The same backwards: neither the gradient of the convolution's result nor the activated block is kept.
        Norm before = norm(run, s.up_scale, s.up_shift, pixels), after = norm(run, s.mix_scale, s.mix_shift, pixels);
        before.prepare(run.statistics(*this, s.up_moments)), after.prepare(run.statistics(*this, s.mix_moments));
        const Factors<T> mix = run.exchanged(*this, s.mix_weight, s.mix, back_1);
        const int64_t chunks = (before.blocks + CHUNK_BLOCKS - 1) / CHUNK_BLOCKS;
        const Chunks gradient{s.mix, run.grad(*this, s.mix_weight), partial, chunks};
        T* const merged = space + s.mixed;
        after.for_blocks(threads, [&](int64_t block, int64_t place) {
            after.pull(block, space + s.mixed + place, grad + place);
        });
        after.finish_backward(run.grad(*this, s.mix_scale), run.grad(*this, s.mix_shift));
#pragma omp parallel for num_threads(threads)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            std::vector<T> pulled(PIXELS * channels), mixed_in(PIXELS * channels);
            const Grid local = plain(PIXELS, channels);
            const int64_t first = chunk * CHUNK_BLOCKS, last = std::min(before.blocks, first + CHUNK_BLOCKS);
            for (int64_t block = first; block < last; ++block) {
                const int64_t place = before.place(block), count = before.count(block);
                after.apply_backward(block, space + s.mixed + place, grad + place, pulled.data());
                before.apply(block, space + s.merged + place, mixed_in.data());
                correlate(mixed_in.data(), local, pulled.data(), local, gradient.sums(chunk), s.mix, 1, count,
                          block > first, nullptr, 1);
                // ``mixed`` is not read again; the gradient of the activated block takes its place.
                multiply(pulled.data(), local, mix, merged + place, local, 1, count, false, false, 1);
                before.pull(block, space + s.merged + place, merged + place);
            }
        }
        gradient.add_up(threads);
        before.finish_backward(run.grad(*this, s.up_scale), run.grad(*this, s.up_shift));
        before.for_blocks(threads, [&](int64_t block, int64_t place) {
            before.apply_backward(block, space + s.merged + place, merged + place, merged + place);
        });
        if (skips) {
            T* const planes = space + s.grad_skip;
            convolve_narrow_backward(space + s.skip_normal, merged, planes, run.grad(*this, s.up_skip_weight),
                                     {own + s.up_skip_weight, skips, channels, s.rows, s.columns}, threads);
            normalise_planes_backward(space + s.skip_activated, planes, planes, own + s.merge_skip_scale,
                                      static_cast<const float*>(nullptr), run.statistics(*this, s.merge_skip_moments),
                                      run.grad(*this, s.merge_skip_scale), static_cast<float*>(nullptr), skips, pixels,
                                      1.0f, threads);
            normalise_planes_backward(space + s.skip_planes, planes, planes, own + s.skip_scale, own + s.skip_shift,
                                      run.statistics(*this, s.skip_moments), run.grad(*this, s.skip_scale),
                                      run.grad(*this, s.skip_shift), skips, pixels, float(is.leaky_slope), threads);
#pragma omp parallel for num_threads(threads)
            for (int64_t pixel = 0; pixel < pixels; ++pixel)
                for (int64_t skip = 0; skip < skips; ++skip)
                    space[s.skip_pixels + pixel * s.skip.outputs + skip] = planes[skip * pixels + pixel];
            correlate(space + s.input, inner(s.columns, s.inputs), space + s.skip_pixels,
                      plain(s.columns, s.skip.outputs), run.grad(*this, s.skip_weight), s.skip, s.rows, s.columns,
                      false, partial, threads);
        }
        convolve_upsampled_backward(merged, space + s.normal, low_grid,
                                    run.exchanged(*this, s.up_weight, s.up, back_9), s.up, vertical[at],
                                    horizontal[at], space + s.normal, run.grad(*this, s.up_weight), partial, threads);
        T* const from_deeper = at + 1 < is.scales ? space + all[at + 1].grad : grad_low;
        normalise_upsampled_backward(space + deeper(at), space + s.normal, from_deeper, own + s.merge_scale,
                                     run.statistics(*this, s.merge_moments), run.grad(*this, s.merge_scale), maps(at),
                                     threads);
        T* pull = grad_low;
        if (at + 1 < is.scales) {
            backward(run, at + 1);
            pull = space + all[at + 1].grad_input;
        }
        activate_backward(run, s.kept, pull, s.same_scale, s.same_shift, s.same_moments, low);
        correlate(space + s.activated, padded(s.low_columns, channels, 1), pull, low_grid,
                  run.grad(*this, s.same_weight), s.same, s.low_rows, s.low_columns, false, partial, threads);
        frame(pull, s.low_rows, s.low_columns, channels, space + s.framed, threads);
        spread(space + s.framed, s.low_rows, s.low_columns, channels,
               run.exchanged(*this, s.same_weight, s.same, back_9), 1, space + s.grad_padded_low,
               s.low_rows + 2, s.low_columns + 2, threads);
        fold(space + s.grad_padded_low, s.low_rows, s.low_columns, channels, grad_low, threads);
        activate_backward(run, s.reduced, grad_low, s.down_scale, s.down_shift, s.down_moments, low);
        correlate(space + s.input, padded(s.columns, s.inputs, 2), grad_low, low_grid, run.grad(*this, s.down_weight),
                  s.down, s.low_rows, s.low_columns, false, partial, threads);
        if (at == 0) return;
        frame(grad_low, s.low_rows, s.low_columns, channels, space + s.framed, threads);
        spread(space + s.framed, s.low_rows, s.low_columns, channels,
               run.exchanged(*this, s.down_weight, s.down, back_9), 2, space + s.grad_padded,
               s.rows + 2, s.columns + 2, threads);
        fold(space + s.grad_padded, s.rows, s.columns, channels, space + s.grad_input, threads);
        if (!skips) return;
        const Weight back_skip{1, skips, channels};
        multiply(space + s.skip_pixels, plain(s.columns, s.skip.outputs),
                 run.exchanged(*this, s.skip_weight, s.skip, back_skip), space + s.grad_input,
                 plain(s.columns, channels), s.rows, s.columns, false, true, threads);
    }

    void adam(float* parameter, float* first, float* second, const float* gradient, int64_t iteration,
              int threads) const {
        const double correction = 1 - std::pow(is.first_decay, double(iteration));
        const double root_correction = std::sqrt(1 - std::pow(is.second_decay, double(iteration)));
        const float rate = float(is.learning_rate / correction), divisor = float(1 / root_correction);
        const float keep = float(is.first_decay), take = float(1 - is.first_decay), eps = float(is.adam_eps);
        const float keep_square = float(is.second_decay), take_square = float(1 - is.second_decay);
#pragma omp parallel for num_threads(threads)
        for (int64_t at = 0; at < parameters; at += LANES) {
            const Floats g = load(gradient + at);
            const Floats m = keep * load(first + at) + take * g;
            const Floats v = keep_square * load(second + at) + take_square * g * g;
            store(first + at, m), store(second + at, v);
            store(parameter + at, load(parameter + at) - rate * m / (root(v) * divisor + eps));
        }
    }
};

// The next iteration of every image: side by side where there is one for each thread, else one after another.
template <class T>
void iterate(const Shape& shape, float* parameter, float* first, float* second, const float* fixed,
             const float* target, float* outputs, float* losses, const int64_t* seeds, int64_t images,
             int64_t iteration, float* room, int threads) {
    const Network<T> network(shape);
    const int64_t pixels = shape.height * shape.width, out = pixels * shape.image_channels;
    const int outer = images >= threads ? threads : 1, inner = outer > 1 ? 1 : threads;
    const auto work = [&](int64_t worker) {
        for (int64_t image = worker; image < images; image += outer) {
            const int64_t own = image * network.parameters;
            network.iterate(parameter + own, first + own, second + own, fixed + image * pixels * shape.input_channels,
                            target + image * out, outputs + image * out, losses + image, seeds[image], iteration,
                            room + worker * network.floats, inner);
        }
    };
    // Not in a region of one thread: those inside it would start their threads anew each time.
    if (outer == 1) return work(0);
#pragma omp parallel for num_threads(outer) schedule(static)
    for (int64_t worker = 0; worker < outer; ++worker) work(worker);
}

}  // namespace
