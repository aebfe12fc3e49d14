// Sampling by a schedule in a host of the shape of stable-diffusion.cpp; README.md says where it goes.

#pragma once

#include <algorithm>
#include <lmsd.hpp>

/// The host's noise levels: that of x_T, those of the states after each step, the last one that of the result.
inline std::vector<float> lmsd_sigmas(const lmsd::Schedule &schedule) {
    std::vector<float> sigmas;
    for (const lmsd::Node &node : schedule.nodes()) sigmas.push_back(float(node.sigma));
    sigmas[0] = float(schedule.sigma_start());
    sigmas.push_back(float(schedule.sigma_end()));
    return sigmas;
}

/// The end point of a run from `x`, whose noise level is sigmas[0]: below the schedule's first (image to
/// image) the rest of the schedule from there. `model(x, sigma, step)`, with step from 1, returns its
/// prediction of x0, guidance included; where that is empty the run ends, and what is returned is empty.
/// A schedule with a guidance of its own for each call is refused: the callback cannot be told.
template <class Model, class Tensor>
Tensor sample_lmsd(Model &&model, Tensor x, const std::vector<float> &sigmas, const lmsd::Schedule &schedule) {
    struct Stopped {};
    if (schedule.is_guided())
        throw lmsd::Error(LMSD_STATUS_MISMATCH, "the schedule sets the guidance of each call; fit without that");
    Tensor state = x;
    auto denoise = [&](lmsd::Span<const float> at, const lmsd_call &call, lmsd::Span<float> denoised) {
        std::copy(at.begin(), at.end(), state.data());
        Tensor found = model(state, float(call.sigma), int(call.node) + 1);
        if (found.empty()) throw Stopped{};
        std::copy(found.data(), found.data() + denoised.size, denoised.begin());
    };
    try {
        auto run = schedule.start_at(std::min(double(sigmas.at(0)), schedule.sigma_start()));
        lmsd::sample(run, x.data(), {1, std::int64_t(x.numel())}, x.data(), denoise);
    } catch (const Stopped &) {
        return {};
    }
    return x;
}
