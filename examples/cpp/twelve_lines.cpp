// A published solver's schedule, an analytic model, four samples.
#include <cstdio>
#include <lmsd.hpp>

int main() {
    auto schedule = lmsd::Schedule::solve(R"({"solver": "dpmpp_2m", "nfe": 8})");
    // The exact prediction of x0 where x0 is 1, with a standard deviation of 0.5.
    auto model = [](lmsd::Span<const float> x, const lmsd_call &call, lmsd::Span<float> denoised) {
        double variance = call.sigma * call.sigma;
        for (std::size_t i = 0; i < x.size; i++)
            denoised[i] = float((0.25 * x[i] + variance) / (0.25 + variance));
    };
    std::vector<float> x_t{-60, -20, 20, 60}; // noise of standard deviation 80
    auto x = lmsd::sample(schedule, x_t, {4, 1}, model);
    std::printf("%.4f %.4f %.4f %.4f\n", x[0], x[1], x[2], x[3]);
}
