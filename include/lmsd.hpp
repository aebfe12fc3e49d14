// lmsd for C++17: owning handles, exceptions and callables over lmsd.h, which is the manual.
//
//     lmsd::Schedule schedule = lmsd::Schedule::solve(R"({"solver": "dpmpp_2m", "nfe": 8})");
//     std::vector<float> image = lmsd::sample(schedule, noise, {1, 3, 64, 64}, model);
//
// where model(lmsd::Span<const float> x, const lmsd_call &call, lmsd::Span<float> denoised) writes its
// prediction of x0 at x, whose noise level is call.sigma. A call that fails throws lmsd::Error. Callables may throw whatever they like:
// the call stops and the exception comes out of it. Tensors are compact row-major buffers on the CPU;
// for others use lmsd_host of lmsd.h.

#ifndef LMSD_HPP
#define LMSD_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lmsd.h"

namespace lmsd {

/// A call that failed. what() is the library's sentence on it.
struct Error : std::runtime_error {
    lmsd_status status;
    Error(lmsd_status s, const std::string &text) : std::runtime_error(text), status(s) {}
};

/// Sizes of the dimensions; dimension 0 counts trajectories.
using Shape = std::vector<std::int64_t>;

/// The elements of a tensor, in row-major order.
template <class T> struct Span {
    T *data;
    std::size_t size;
    T &operator[](std::size_t i) const { return data[i]; }
    T *begin() const { return data; }
    T *end() const { return data + size; }
};

/// DLPack's name of an element type. Specialise it for a half type of your own.
template <class T> struct Dtype;
template <> struct Dtype<float> {
    static constexpr lmsd_dtype value{LMSD_DTYPE_FLOAT, 32, 1};
};
template <> struct Dtype<double> {
    static constexpr lmsd_dtype value{LMSD_DTYPE_FLOAT, 64, 1};
};

namespace detail {

/// Refuses a library of another ABI than this header's. Asked once.
inline void check_abi() {
    static const std::uint32_t loaded = lmsd_abi_version();
    if (loaded != LMSD_ABI_VERSION) {
        throw Error(LMSD_STATUS_MISMATCH, "liblmsd has ABI version " + std::to_string(loaded) +
                                              ", this program needs " + std::to_string(LMSD_ABI_VERSION));
    }
}

inline void check(lmsd_status status) {
    if (status != LMSD_STATUS_OK) throw Error(status, lmsd_last_error());
}

/// An object of the library, freed by `free`.
template <class Raw> using Owner = std::unique_ptr<Raw, void (*)(Raw *)>;

/// The object that `write`, a call of lmsd.h, writes to its `Raw **`.
template <class Raw, class Write> Owner<Raw> own(void (*free)(Raw *), const Write &write) {
    Raw *raw = nullptr;
    check_abi();
    check(write(&raw));
    return {raw, free};
}

/// Keeps the exception of a callback, for none may cross the library.
struct Keeper {
    std::exception_ptr exception;

    /// What a callback returns: `body()`, or 1 if it throws.
    template <class Body> int run(const Body &body) noexcept {
        try {
            return body();
        } catch (...) {
            if (!exception) exception = std::current_exception();
            return 1;
        }
    }
    /// After the call: throws what was kept, or what the status says.
    void check(lmsd_status status) const {
        if (exception) std::rethrow_exception(exception);
        detail::check(status);
    }
};

template <class T> lmsd_tensor describe(const T *data, const Shape &shape) {
    auto ndim = static_cast<std::int32_t>(shape.size());
    void *start = const_cast<T *>(data); // an input is only read
    return {start, {LMSD_DEVICE_CPU, 0}, ndim, Dtype<T>::value, shape.data(), nullptr, 0};
}

template <class T> Span<T> span(const void *tensor) {
    const auto &t = *static_cast<const lmsd_tensor *>(tensor);
    std::size_t size = 1;
    for (std::int32_t d = 0; d < t.ndim; d++) size *= static_cast<std::size_t>(t.shape[d]);
    return {reinterpret_cast<T *>(static_cast<char *>(t.data) + t.byte_offset), size};
}

/// The tensor of a vector. Refuses one of another size than `shape` says.
template <class T> lmsd_tensor describe(const std::vector<T> &data, const Shape &shape) {
    lmsd_tensor t = describe(data.data(), shape);
    std::size_t wanted = span<T>(&t).size;
    if (data.size() == wanted) return t;
    throw Error(LMSD_STATUS_INVALID_TENSOR, "the buffer has " + std::to_string(data.size()) +
                                                " elements, its shape " + std::to_string(wanted));
}

/// A lmsd_model whose user data is a Keeper with a member `model`.
template <class T, class Run>
int call_model(void *user_data, const lmsd_call *call, const void *x, void *denoised) noexcept {
    auto &run = *static_cast<Run *>(user_data);
    return run.run([&] { return run.model(span<const T>(x), *call, span<T>(denoised)), 0; });
}

} // namespace detail

/// One node of a schedule; see lmsd_node.
struct Node {
    double sigma, scale;
    std::vector<double> weights;
    double guidance;
};

/// A multistep sampler as data. It never changes; threads may share it.
class Schedule {
public:
    /// A published solver on a grid; options as for lmsd_schedule_solve.
    static Schedule solve(const std::string &options = "{}") {
        return make([&](lmsd_schedule **out) { return lmsd_schedule_solve(options.c_str(), out); });
    }
    static Schedule from_json(std::string_view json) {
        return make(
            [&](lmsd_schedule **out) { return lmsd_schedule_from_json(json.data(), json.size(), out); });
    }
    static Schedule load(const std::string &path) {
        return make([&](lmsd_schedule **out) { return lmsd_schedule_load(path.c_str(), out); });
    }
    /// The schedule that `write`, a call of lmsd.h, writes to its `lmsd_schedule **`.
    template <class Write> static Schedule make(const Write &write) {
        return Schedule(detail::own(lmsd_schedule_free, write));
    }

    void save(const std::string &path) const { detail::check(lmsd_schedule_save(get(), path.c_str())); }
    std::string to_json() const {
        auto write = [&](char **out) { return lmsd_schedule_to_json(get(), out); };
        return detail::own(lmsd_string_free, write).get();
    }
    /// The schedule for a state at noise level `sigma` already; see lmsd_schedule_start_at.
    Schedule start_at(double sigma) const {
        return make([&](lmsd_schedule **out) { return lmsd_schedule_start_at(get(), sigma, out); });
    }
    /// Refuses a schedule that was made for something else; `host` as for lmsd_schedule_check.
    void check(const std::string &host) const { detail::check(lmsd_schedule_check(get(), host.c_str())); }

    std::size_t nfe() const { return lmsd_schedule_nfe(get()); }
    double sigma_start() const { return lmsd_schedule_sigma_start(get()); }
    double sigma_end() const { return lmsd_schedule_sigma_end(get()); }
    /// Whether the model must be called with guidance that differs from call to call; see lmsd_schedule_is_guided.
    bool is_guided() const { return lmsd_schedule_is_guided(get()) != 0; }
    std::vector<Node> nodes() const {
        std::vector<Node> all;
        lmsd_node n{sizeof n, 0, 0, nullptr, 0, 1};
        for (std::size_t i = 0; i < nfe(); i++) {
            detail::check(lmsd_schedule_node(get(), i, &n));
            all.push_back({n.sigma, n.scale, {n.weights, n.weights + n.weight_count}, n.guidance});
        }
        return all;
    }
    const lmsd_schedule *get() const { return owner_.get(); }

private:
    explicit Schedule(detail::Owner<lmsd_schedule> owner) : owner_(std::move(owner)) {}
    detail::Owner<lmsd_schedule> owner_;
};

/// What an observer sees after each model call; see lmsd_step.
template <class T> struct Step {
    std::size_t index, nfe;
    double sigma, model_sigma;
    Span<const T> x, denoised;
};

/// Runs `schedule` from `x_t` and writes the end point to `out`, which may be `x_t`; both have the
/// given shape. `observe(const Step<T> &)` sees every step; it ends the run by throwing.
template <class T, class Model, class Observe = std::nullptr_t>
void sample(const Schedule &schedule, const T *x_t, const Shape &shape, T *out, Model &&model,
            Observe &&observe = nullptr) {
    using Observer = std::remove_reference_t<Observe>;
    struct Run : detail::Keeper {
        std::remove_reference_t<Model> &model;
        Observer &observe;
        Run(std::remove_reference_t<Model> &m, Observer &o) : model(m), observe(o) {}
    } run(model, observe);
    lmsd_observer see = nullptr;
    if constexpr (!std::is_null_pointer_v<std::decay_t<Observe>>) {
        see = [](void *user_data, const lmsd_step *s) -> int {
            auto &own = *static_cast<Run *>(user_data);
            Step<T> step{s->index,
                         s->nfe,
                         s->sigma,
                         s->model_sigma,
                         detail::span<const T>(s->x),
                         detail::span<const T>(s->denoised)};
            return own.run([&] { return own.observe(step), 0; });
        };
    }
    lmsd_tensor from = detail::describe(x_t, shape), to = detail::describe(out, shape);
    auto *call = detail::call_model<T, Run>;
    run.check(lmsd_sample(schedule.get(), nullptr, &from, call, see, &run, &to));
}

/// The same on vectors: returns the end point.
template <class T, class Model, class Observe = std::nullptr_t>
std::vector<T> sample(const Schedule &schedule, const std::vector<T> &x_t, const Shape &shape, Model &&model,
                      Observe &&observe = nullptr) {
    detail::describe(x_t, shape);
    std::vector<T> out(x_t.size());
    sample(schedule, x_t.data(), shape, out.data(), model, observe);
    return out;
}

/// A run whose loop the host owns: while (!done()), call the model where next() says and hand its
/// prediction to step(). The end point is result().
template <class T> class Sampler {
public:
    Sampler(const Schedule &schedule, const std::vector<T> &x_t, Shape shape)
        : shape_(std::move(shape)), size_(x_t.size()), nfe_(schedule.nfe()),
          owner_(detail::own(lmsd_sampler_free, [&](lmsd_sampler **out) {
              lmsd_tensor from = detail::describe(x_t, shape_);
              return lmsd_sampler_new(schedule.get(), nullptr, &from, out);
          })) {}

    /// A copy stands where the other run does, and goes on without it; see lmsd_sampler_copy.
    Sampler(const Sampler &other)
        : shape_(other.shape_), size_(other.size_), nfe_(other.nfe_),
          owner_(detail::own(lmsd_sampler_free, [&](lmsd_sampler **out) {
              return lmsd_sampler_copy(other.owner_.get(), out);
          })) {}
    Sampler &operator=(const Sampler &other) { return *this = Sampler(other); }
    Sampler(Sampler &&) noexcept = default;
    Sampler &operator=(Sampler &&) noexcept = default;

    std::size_t index() const { return lmsd_sampler_index(owner_.get()); }
    bool done() const { return index() == nfe_; }
    /// Writes the state to `x`, which is resized, and returns the noise level to tell the model.
    double next(std::vector<T> &x) const {
        double sigma = 0;
        x.resize(size_);
        lmsd_tensor to = detail::describe(x, shape_);
        detail::check(lmsd_sampler_next(owner_.get(), &sigma, &to));
        return sigma;
    }
    void step(const std::vector<T> &denoised) {
        lmsd_tensor from = detail::describe(denoised, shape_);
        detail::check(lmsd_sampler_step(owner_.get(), &from));
    }
    /// Replaces the state at the present node by a copy of `x`; see lmsd_sampler_set_state.
    void set_state(const std::vector<T> &x) {
        lmsd_tensor from = detail::describe(x, shape_);
        detail::check(lmsd_sampler_set_state(owner_.get(), &from));
    }
    std::vector<T> result() const {
        std::vector<T> out(size_);
        lmsd_tensor to = detail::describe(out, shape_);
        detail::check(lmsd_sampler_result(owner_.get(), &to));
        return out;
    }

private:
    Shape shape_;
    std::size_t size_, nfe_;
    detail::Owner<lmsd_sampler> owner_;
};

/// The host's side of a distillation; see lmsd_problem.
template <class T> struct Problem {
    /// Of one batch.
    Shape shape;
    /// Makes a batch current: writes its x_T.
    std::function<void(std::uint64_t batch, Span<T> x_t)> begin;
    /// The model, for the current batch.
    std::function<void(Span<const T> x, const lmsd_call &call, Span<T> denoised)> model;
    /// Hears how far things are; false ends the run with the best so far. May be empty.
    std::function<bool(const lmsd_progress &)> progress;
    /// Which of how many processes this one is, where several share the run.
    std::size_t rank = 0, ranks = 1;
    /// Adds `count` values up over all ranks, in place; needed by more ranks than one.
    std::function<void(std::size_t count, double *values)> sum;
    /// Features of end points of the current batch, as many for each trajectory; see lmsd_problem. May be empty.
    std::function<std::vector<T>(Span<const T> x)> features;
};

/// What a distillation leaves: a schedule for each NFE, smallest first, and a report in JSON.
struct Distilled {
    std::vector<Schedule> schedules;
    std::string report;
};

namespace detail {

/// Hands a lmsd_problem made of `problem` to `call`, which returns a status.
template <class T, class Call> void with_problem(const Problem<T> &problem, const Call &call) {
    struct Run : Keeper {
        const Problem<T> &problem;
        const decltype(problem.model) &model;
        std::vector<T> features; // the last ones, as `described` says
        Shape shape;
        lmsd_tensor described{};
        explicit Run(const Problem<T> &p) : problem(p), model(p.model) {}
    } run(problem);
    T nothing{}; // `like` is not read
    lmsd_tensor like = describe(&nothing, problem.shape);
    lmsd_problem raw{};
    raw.struct_size = sizeof raw;
    raw.user_data = &run;
    raw.like = &like;
    raw.rank = problem.rank;
    raw.ranks = problem.ranks;
    if (problem.model) raw.model = call_model<T, Run>;
    if (problem.begin) {
        raw.begin = [](void *user_data, std::uint64_t batch, void *x_t) -> int {
            auto &own = *static_cast<Run *>(user_data);
            return own.run([&] { return own.problem.begin(batch, span<T>(x_t)), 0; });
        };
    }
    if (problem.progress) {
        raw.progress = [](void *user_data, const lmsd_progress *p) -> int {
            auto &own = *static_cast<Run *>(user_data);
            return own.run([&] { return own.problem.progress(*p) ? 0 : 1; });
        };
    }
    if (problem.sum) {
        raw.sum = [](void *user_data, std::size_t count, double *values) -> int {
            auto &own = *static_cast<Run *>(user_data);
            return own.run([&] { return own.problem.sum(count, values), 0; });
        };
    }
    if (problem.features) {
        raw.features = [](void *user_data, const void *x, void **features) -> int {
            auto &own = *static_cast<Run *>(user_data);
            return own.run([&] {
                own.features = own.problem.features(span<const T>(x));
                auto trajectories = own.problem.shape.at(0);
                own.shape = {trajectories, static_cast<std::int64_t>(own.features.size()) / trajectories};
                own.described = describe(own.features.data(), own.shape);
                *features = &own.described;
                return 0;
            });
        };
    }
    run.check(call(&raw));
}

} // namespace detail

/// Distils schedules for a model; options as for lmsd_distill.
template <class T> Distilled distill(const std::string &options, const Problem<T> &problem) {
    detail::Owner<lmsd_distilled> made(nullptr, lmsd_distilled_free);
    detail::check_abi();
    detail::with_problem(problem, [&](const lmsd_problem *raw) {
        lmsd_distilled *out = nullptr;
        lmsd_status status = lmsd_distill(options.c_str(), nullptr, raw, &out);
        made.reset(out);
        return status;
    });
    auto report = [&](char **out) { return lmsd_distilled_report(made.get(), out); };
    Distilled distilled{{}, detail::own(lmsd_string_free, report).get()};
    for (std::size_t i = 0; i < lmsd_distilled_count(made.get()); i++) {
        auto schedule = [&](lmsd_schedule **out) { return lmsd_distilled_schedule(made.get(), i, out); };
        distilled.schedules.push_back(Schedule::make(schedule));
    }
    return distilled;
}

/// Mean distances to the teacher on trajectories that no distillation sees; see lmsd_compare.
template <class T>
std::vector<double> compare(const std::string &options, const Problem<T> &problem,
                            const std::vector<const Schedule *> &schedules) {
    std::vector<const lmsd_schedule *> handles;
    for (const Schedule *s : schedules) handles.push_back(s->get());
    std::vector<double> distances(handles.size());
    detail::with_problem(problem, [&](const lmsd_problem *raw) {
        return lmsd_compare(options.c_str(), nullptr, raw, handles.size(), handles.data(), distances.data());
    });
    return distances;
}

} // namespace lmsd

#endif // LMSD_HPP
