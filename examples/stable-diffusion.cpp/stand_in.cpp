// sample_lmsd.hpp with a tensor and a callback that have the signatures of stable-diffusion.cpp's; no code of
// theirs. Exits with 1 where anything is not as it should be.

#include "sample_lmsd.hpp"

#include <cmath>
#include <cstdio>

namespace sd {
template <class T> class Tensor {
public:
    Tensor() = default;
    explicit Tensor(std::vector<std::int64_t> shape) : shape_(std::move(shape)) {
        std::int64_t size = 1;
        for (auto length : shape_) size *= length;
        data_.resize(std::size_t(size));
    }
    T *data() { return data_.data(); }
    const T *data() const { return data_.data(); }
    std::int64_t numel() const { return std::int64_t(data_.size()); }
    bool empty() const { return data_.empty(); }
    const std::vector<std::int64_t> &shape() const { return shape_; }

private:
    std::vector<T> data_;
    std::vector<std::int64_t> shape_;
};
} // namespace sd

typedef std::function<sd::Tensor<float>(const sd::Tensor<float> &, float, int)> denoise_cb_t;

static int failures = 0;

static void check(bool right, const char *what) {
    if (right) return;
    std::fprintf(stderr, "stand_in: %s\n", what);
    failures++;
}

/// The exact prediction of x0 where x0 is 1, with a standard deviation of 0.5.
static float predicted(float x, double sigma) {
    return float((0.25 * x + sigma * sigma) / (0.25 + sigma * sigma));
}

/// What lmsd::sample makes of the same state.
static std::vector<float> expected(const lmsd::Schedule &schedule, const sd::Tensor<float> &x) {
    auto model = [](lmsd::Span<const float> x, const lmsd_call &call, lmsd::Span<float> denoised) {
        for (std::size_t i = 0; i < x.size; i++) denoised[i] = predicted(x[i], float(call.sigma));
    };
    std::vector<float> from(x.data(), x.data() + x.numel());
    return lmsd::sample(schedule, from, {1, x.numel()}, model);
}

static bool same(const sd::Tensor<float> &x, const std::vector<float> &other) {
    return std::size_t(x.numel()) == other.size() && std::equal(other.begin(), other.end(), x.data());
}

int main() {
    auto schedule = lmsd::Schedule::solve(
        R"({"solver": "dpmpp_2m", "nfe": 5, "sigma_max": 12.0, "sigma_start": 14.6, "sigma_min": 0.03})");
    auto sigmas = lmsd_sigmas(schedule);
    check(sigmas.size() == 6 && sigmas[0] == 14.6f && sigmas[5] == 0.0f, "levels of a whole run");
    check(std::is_sorted(sigmas.rbegin(), sigmas.rend()), "levels fall");

    sd::Tensor<float> noise({4, 3, 2, 1}); // width first, as ggml has it
    for (int i = 0; i < 24; i++) noise.data()[i] = float(14.6 * std::sin(3.0 * i));
    std::vector<int> steps;
    std::vector<float> told;
    int stop_at = 0;
    denoise_cb_t denoise = [&](const sd::Tensor<float> &x, float sigma, int step) {
        steps.push_back(step);
        told.push_back(sigma);
        check(x.shape() == noise.shape(), "the state keeps its shape");
        if (step == stop_at) return sd::Tensor<float>();
        sd::Tensor<float> denoised(x.shape());
        for (std::int64_t i = 0; i < x.numel(); i++) denoised.data()[i] = predicted(x.data()[i], sigma);
        return denoised;
    };

    auto x = sample_lmsd(denoise, noise, sigmas, schedule);
    check(same(x, expected(schedule, noise)) && x.shape() == noise.shape(), "text to image");
    check(steps == std::vector<int>({1, 2, 3, 4, 5}), "steps count from 1");
    check(told[0] == 12.0f && told[4] == sigmas[4], "the network's levels");
    check(noise.data()[1] == float(14.6 * std::sin(3.0)), "the caller's noise stays as it is");

    sigmas[0] = 14.6146f; // as the host's own table has it
    check(same(sample_lmsd(denoise, noise, sigmas, schedule), expected(schedule, noise)), "a rounded level");

    std::vector<float> rest(sigmas.begin() + 2, sigmas.end());
    steps.clear();
    x = sample_lmsd(denoise, noise, rest, schedule);
    check(same(x, expected(schedule.start_at(rest[0]), noise)) && steps.size() == 3, "image to image");

    stop_at = 3;
    steps.clear();
    check(sample_lmsd(denoise, noise, sigmas, schedule).empty() && steps.size() == 3, "a cancelled run");

    denoise_cb_t broken = [](const sd::Tensor<float> &x, float, int) {
        sd::Tensor<float> denoised(x.shape());
        denoised.data()[0] = NAN;
        return denoised;
    };
    try {
        sample_lmsd(broken, noise, sigmas, schedule);
        check(false, "a prediction that is not finite is refused");
    } catch (const lmsd::Error &error) {
        check(error.status == LMSD_STATUS_NON_FINITE, error.what());
    }
    try {
        std::string text = schedule.to_json();
        text.insert(text.find("\"weights\""), "\"guidance\": 0.5, ");
        sample_lmsd(broken, noise, sigmas, lmsd::Schedule::from_json(text));
        check(false, "a guidance of each call is refused");
    } catch (const lmsd::Error &error) {
        check(error.status == LMSD_STATUS_MISMATCH, error.what());
    }
    return failures > 0;
}
