// lmsd.hpp: every class and function, and exceptions out of every callable. Exits with 1 if anything
// failed. Compiled with LMSD_TEST_WRONG_ABI it stands in for a library of another ABI.

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "lmsd.hpp"

static int passed, failed;

static void check(bool good, const char *what, int line) {
    (good ? passed : failed)++;
    if (!good) std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, line, what);
}

#define CHECK(...) check((__VA_ARGS__), #__VA_ARGS__, __LINE__)

// Runs `body`, which must throw an E; hands it to `look`.
template <class E, class Body, class Look> void throws(int line, const Body &body, const Look &look) {
    try {
        body();
        check(false, "an exception", line);
    } catch (const E &e) {
        check(look(e), "the exception's value", line);
    } catch (...) {
        check(false, "an exception of this type", line);
    }
}

#define REFUSED(code, says, ...)        \
    throws<lmsd::Error>(                \
        __LINE__, [&] { __VA_ARGS__; }, \
        [&](const lmsd::Error &e) { return e.status == LMSD_STATUS_##code && std::strstr(e.what(), says); })

// What the callables throw: a type of the test's own, not derived from std::exception.
struct Thrown {
    int where;
};

#define THROWS(number, ...) \
    throws<Thrown>(__LINE__, [&] { __VA_ARGS__; }, [&](const Thrown &t) { return t.where == (number); })

static_assert(std::is_nothrow_move_constructible_v<lmsd::Schedule> &&
              !std::is_copy_constructible_v<lmsd::Schedule>);
static_assert(std::is_nothrow_move_constructible_v<lmsd::Sampler<float>>);

// x0 is 1 or -1, evenly, with a standard deviation of 0.3: the exact prediction of x0.
template <class T> void denoise(lmsd::Span<const T> x, double sigma, lmsd::Span<T> denoised) {
    double all = 0.09 + sigma * sigma;
    for (std::size_t i = 0; i < x.size; i++) {
        denoised[i] = static_cast<T>(0.09 / all * x[i] + (1 - 0.09 / all) * std::tanh(x[i] / all));
    }
}

// The same as a model.
template <class T> void predict(lmsd::Span<const T> x, const lmsd_call &call, lmsd::Span<T> denoised) {
    denoise(x, call.sigma, denoised);
}

template <class T> std::vector<T> noise(std::size_t size, double sigma, unsigned seed) {
    std::vector<T> x;
    for (std::size_t i = 0; i < size; i++) {
        seed = seed * 1664525u + 1013904223u;
        x.push_back(static_cast<T>(sigma * (seed / 2147483648.0 - 1)));
    }
    return x;
}

void test_schedule(const std::string &path) {
    auto s = lmsd::Schedule::solve(R"({"solver": "dpmpp_2m", "nfe": 4, "sigma_end": 0.002})");
    CHECK(s.nfe() == 4 && s.sigma_start() == 80 && s.sigma_end() == 0.002);
    CHECK(s.nodes().size() == 4 && s.nodes()[0].sigma == 80 && s.nodes()[1].weights.size() == 2);
    CHECK(lmsd::Schedule::from_json(s.to_json()).to_json() == s.to_json());
    s.save(path);
    auto read = lmsd::Schedule::load(path);
    CHECK(read.to_json() == s.to_json());
    CHECK(lmsd::Schedule::solve().nfe() == 8);
    CHECK(s.start_at(1).sigma_start() == 1 && s.start_at(1).nfe() < 4);
    REFUSED(INVALID_ARGUMENT, "at most 80", s.start_at(81));
    s.check(R"({"process": "ve"})");
    REFUSED(MISMATCH, "flow", s.check(R"({"process": "flow"})"));
    REFUSED(INVALID_ARGUMENT, "nfe is 0", lmsd::Schedule::solve(R"({"nfe": 0})"));
    REFUSED(INVALID_SCHEDULE, "format 1", lmsd::Schedule::from_json("{}"));
    REFUSED(IO, "/no/such/file", lmsd::Schedule::load("/no/such/file"));
    REFUSED(IO, "/no/such/file", s.save("/no/such/file"));
    auto moved = std::move(s);
    CHECK(moved.nfe() == 4 && s.nfe() == 0); // NOLINT: a moved-from handle is empty
    REFUSED(INVALID_ARGUMENT, "NULL", s.to_json());
}

template <class T> void test_sample() {
    auto s = lmsd::Schedule::solve(R"({"solver": "dpmpp_3m", "nfe": 7, "sigma_max": 40, "sigma_start": 80})");
    const lmsd::Shape shape{5, 2, 3};
    const auto x_t = noise<T>(30, 80, 1);

    auto out = lmsd::sample(s, x_t, shape, predict<T>); // a function
    std::size_t calls = 0, steps = 0;
    bool wrong = false;
    auto model = [&](lmsd::Span<const T> x, const lmsd_call &call, lmsd::Span<T> denoised) mutable {
        wrong |= call.node != calls++ || call.nfe != 7 || call.purpose != LMSD_PURPOSE_SAMPLE;
        denoise(x, call.sigma, denoised);
    };
    auto observe = [&](const lmsd::Step<T> &step) {
        wrong |= step.index != steps++ || step.nfe != 7 || step.x.size != 30 || calls != steps;
        wrong |= step.sigma != s.nodes()[step.index].sigma || step.model_sigma != step.sigma;
        std::vector<T> expected(30);
        denoise<T>(step.x, step.model_sigma, {expected.data(), expected.size()});
        wrong |= !std::equal(expected.begin(), expected.end(), step.denoised.begin(), step.denoised.end());
    };
    CHECK(lmsd::sample(s, x_t, shape, model, observe) == out);
    CHECK(calls == 7 && steps == 7 && !wrong);
    double worst = 1;
    for (T v : out) worst = std::fmin(worst, std::fabs(v));
    CHECK(worst > 0.1); // at 1 or -1, give or take

    auto in_place = x_t;
    lmsd::sample(s, in_place.data(), shape, in_place.data(), predict<T>);
    CHECK(in_place == out);

    lmsd::Sampler<T> sampler(s, x_t, shape);
    std::vector<T> x, denoised(30);
    for (; !sampler.done(); sampler.step(denoised)) {
        double sigma = sampler.next(x);
        denoise<T>({x.data(), x.size()}, sigma, {denoised.data(), denoised.size()});
    }
    CHECK(sampler.index() == 7 && sampler.result() == out);
    REFUSED(WRONG_STATE, "over", sampler.next(x));
    REFUSED(WRONG_STATE, "over", sampler.step(denoised));
    REFUSED(INVALID_TENSOR, "29 elements", sampler.step(std::vector<T>(29)));
    REFUSED(WRONG_STATE, "over", sampler.set_state(x));
    lmsd::Sampler<T> whole(s, x_t, shape), copied(s, std::vector<T>(30), shape);
    for (; !whole.done(); whole.step(denoised)) {
        if (whole.index() == 3)
            copied = whole;
        double sigma = whole.next(x);
        denoise<T>({x.data(), x.size()}, sigma, {denoised.data(), denoised.size()});
    }
    for (CHECK(copied.index() == 3); !copied.done(); copied.step(denoised)) {
        double sigma = copied.next(x);
        denoise<T>({x.data(), x.size()}, sigma, {denoised.data(), denoised.size()});
    }
    CHECK(copied.result() == out);
    lmsd::Sampler<T> replaced(s, std::vector<T>(30), shape);
    replaced.set_state(x_t);
    replaced.next(x);
    CHECK(x == x_t);
    REFUSED(INVALID_TENSOR, "30 elements", lmsd::Sampler<T>(s, x_t, {4, 3}));

    // Exceptions: out of the model, out of the observer, at any node; and then all is as it was.
    for (std::size_t at = 0; at < 7; at++) {
        std::size_t node = 0;
        auto bad_model = [&](lmsd::Span<const T> from, const lmsd_call &call, lmsd::Span<T> to) {
            if (node++ == at) throw Thrown{static_cast<int>(at)};
            denoise(from, call.sigma, to);
        };
        THROWS(static_cast<int>(at), lmsd::sample(s, x_t, shape, bad_model));
        CHECK(node == at + 1);
        auto bad_observe = [&](const lmsd::Step<T> &step) {
            if (step.index == at) throw Thrown{100 + static_cast<int>(at)};
        };
        auto kept = x_t;
        THROWS(100 + static_cast<int>(at),
               lmsd::sample(s, kept.data(), shape, kept.data(), predict<T>, bad_observe));
        CHECK(kept == x_t);
    }
    CHECK(lmsd::sample(s, x_t, shape, predict<T>) == out);
    auto nan = [](lmsd::Span<const T>, const lmsd_call &, lmsd::Span<T> to) { to[0] = static_cast<T>(NAN); };
    REFUSED(NON_FINITE, "node 0", lmsd::sample(s, x_t, shape, nan));
    REFUSED(INVALID_TENSOR, "30 elements", lmsd::sample(s, x_t, {30, 2}, predict<T>));
    REFUSED(INVALID_TENSOR, "0 dimensions", lmsd::sample(s, std::vector<T>(1), {}, predict<T>));
}

void test_distill() {
    const char *options = R"({"nfe": 3, "nfe_from": 2, "trajectories": 16, "held_out": 16, "teacher_nfe": 24,
                              "iterations": 4, "sigma_max": 10, "sigma_min": 0.05, "sigma_end": 0.05})";
    lmsd::Problem<double> problem;
    std::uint64_t calls = 0, told = 0;
    problem.shape = {8, 3};
    problem.begin = [](std::uint64_t batch, lmsd::Span<double> x_t) {
        auto x = noise<double>(x_t.size, 10, static_cast<unsigned>(batch * 2654435761u));
        std::copy(x.begin(), x.end(), x_t.begin());
    };
    problem.model = [&](lmsd::Span<const double> x, const lmsd_call &call, lmsd::Span<double> denoised) {
        calls++;
        denoise(x, call.sigma, denoised);
    };
    problem.progress = [&](const lmsd_progress &p) {
        told = p.calls;
        return true;
    };
    auto made = lmsd::distill(options, problem);
    CHECK(made.schedules.size() == 2 && made.schedules[0].nfe() == 2 && made.schedules[1].nfe() == 3);
    CHECK(made.report.find("\"model_calls\"") != std::string::npos && told == calls);

    auto euler =
        lmsd::Schedule::solve(R"({"solver": "euler", "nfe": 3, "sigma_max": 10, "sigma_end": 0.05})");
    auto distances = lmsd::compare(options, problem, {&made.schedules[1], &euler});
    CHECK(distances.size() == 2 && distances[0] > 0 && distances[0] < distances[1]);
    REFUSED(INVALID_ARGUMENT, "count is 0", lmsd::compare(options, problem, {}));

    // Exceptions out of each callable, early and late; a failing progress even where the call succeeds.
    const std::uint64_t all = calls;
    for (std::uint64_t at : {std::uint64_t{0}, all / 2, all - 100}) {
        auto bad = problem;
        std::uint64_t n = 0;
        bad.model = [&](lmsd::Span<const double> x, const lmsd_call &call, lmsd::Span<double> denoised) {
            if (n++ >= at) throw Thrown{1};
            denoise(x, call.sigma, denoised);
        };
        THROWS(1, lmsd::distill(options, bad));
        CHECK(n == at + 1);
        bad = problem;
        n = 0;
        bad.progress = [&](const lmsd_progress &) -> bool {
            if (n++ >= at) throw Thrown{static_cast<int>(n)};
            return true;
        };
        THROWS(static_cast<int>(at + 1),
               lmsd::distill(options, bad)); // the first exception, where several are
    }
    auto bad = problem;
    bad.begin = [](std::uint64_t, lmsd::Span<double>) { throw Thrown{2}; };
    THROWS(2, lmsd::distill(options, bad));
    THROWS(2, lmsd::compare(options, bad, {&euler}));
    bad = problem;
    std::uint64_t n = 0;
    bad.progress = [&](const lmsd_progress &) { return n++ < all - all / 8; };
    CHECK(lmsd::distill(options, bad).schedules.size() >= 1); // the best so far
    bad.progress = nullptr;
    CHECK(lmsd::compare(options, bad, {&euler})[0] == distances[1]);
    bad.model = nullptr;
    REFUSED(INVALID_ARGUMENT, "problem->model", lmsd::distill(options, bad));
    bad = problem, bad.begin = nullptr;
    REFUSED(INVALID_ARGUMENT, "problem->begin", lmsd::distill(options, bad));
    bad = problem, bad.shape = {0};
    REFUSED(INVALID_TENSOR, "like", lmsd::distill(options, bad));
    REFUSED(INVALID_ARGUMENT, "nef", lmsd::distill(R"({"nef": 3})", problem));

    // In features, here a half of each number, distances are a half.
    auto featured = problem;
    featured.features = [](lmsd::Span<const double> x) {
        std::vector<double> half;
        for (std::size_t i = 0; i < x.size; i++) half.push_back(x[i] / 2);
        return half;
    };
    double half = lmsd::compare(options, featured, {&euler})[0];
    CHECK(std::fabs(half - distances[1] / 2) < 1e-12);
    featured.features = [](lmsd::Span<const double>) -> std::vector<double> { throw Thrown{3}; };
    THROWS(3, lmsd::compare(options, featured, {&euler}));
}

#ifdef LMSD_TEST_WRONG_ABI
extern "C" std::uint32_t lmsd_abi_version(void) { return LMSD_ABI_VERSION + 1; }

int main() {
    REFUSED(MISMATCH, "ABI version 3", lmsd::Schedule::solve());
    REFUSED(MISMATCH, "ABI version 3", lmsd::distill("{}", lmsd::Problem<float>{}));
#else
int main() {
    const char *base = std::getenv("TMPDIR");
    std::string path =
        std::string(base ? base : "/tmp") + "/lmsd-abi-cpp-" + std::to_string(std::rand()) + ".json";
    test_schedule(path);
    std::remove(path.c_str());
    test_sample<float>();
    test_sample<double>();
    test_distill();
#endif
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
