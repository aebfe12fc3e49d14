/* The whole C ABI from C11: every function, every refusal, the host's own tensors, distillation.
 * Writes into a directory of its own under $TMPDIR. Exits with 1 if anything failed. */

#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "lmsd.h"
#include "checks.h"
#include "platform.h"

static void check_status(lmsd_status got, lmsd_status wanted, const char *says, const char *what, int line) {
    bool good = got == wanted && (says == NULL || strstr(lmsd_last_error(), says) != NULL);
    check(good, what, line);
    if (!good) {
        fprintf(stderr, "    status %d, wanted %d; the error is \"%s\", wanted \"%s\"\n", (int)got,
                (int)wanted, got == LMSD_STATUS_OK ? "" : lmsd_last_error(), says ? says : "");
    }
}

#define OK(call) check_status((call), LMSD_STATUS_OK, NULL, #call, __LINE__)
/* The call fails with this status, and the text names the value at fault. */
#define REFUSED(call, status, says) check_status((call), LMSD_STATUS_##status, says, #call, __LINE__)

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ------------------------------------------------------------------ numbers */

/* A number in [0, 1), the same for the same state (splitmix64). */
static double uniform(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static double normal(uint64_t *state) {
    double radius = sqrt(-2 * log(1 - uniform(state)));
    return radius * cos(6.283185307179586 * uniform(state));
}

/* x0 is 1 or -1, evenly, with a standard deviation of 0.3: the exact prediction of x0. */
static double denoise(double x, double sigma) {
    double own = 0.09, all = own + sigma * sigma;
    return own / all * x + (1 - own / all) * tanh(x / all);
}

static uint16_t half_bits(double v) {
    int exponent;
    double fraction = frexp(fabs(v), &exponent);
    uint16_t sign = signbit(v) ? 0x8000 : 0;
    if (isnan(v)) return 0x7e00;
    if (exponent < -13) return sign | (uint16_t)nearbyint(ldexp(fabs(v), 24));
    return sign | (uint16_t)(((exponent + 13) << 10) + (int)nearbyint(ldexp(fraction, 11)));
}

static double half_value(uint16_t bits) {
    int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    double size = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) size = fraction ? NAN : INFINITY;
    return bits & 0x8000 ? -size : size;
}

static double get(const lmsd_tensor *t, size_t i) {
    const char *data = (const char *)t->data + t->byte_offset;
    if (t->dtype.bits == 64) return ((const double *)data)[i];
    if (t->dtype.bits == 32) return ((const float *)data)[i];
    uint16_t bits = ((const uint16_t *)data)[i];
    if (t->dtype.code == LMSD_DTYPE_FLOAT) return half_value(bits);
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static void set(lmsd_tensor *t, size_t i, double v) {
    char *data = (char *)t->data + t->byte_offset;
    float narrow = (float)v;
    uint32_t wide;
    memcpy(&wide, &narrow, sizeof wide);
    if (t->dtype.bits == 64) ((double *)data)[i] = v;
    if (t->dtype.bits == 32) ((float *)data)[i] = narrow;
    if (t->dtype.bits == 16) {
        bool half = t->dtype.code == LMSD_DTYPE_FLOAT;
        ((uint16_t *)data)[i] = half ? half_bits(v) : (uint16_t)(wide >> 16);
    }
}

static size_t elements(const lmsd_tensor *t) {
    size_t count = 1;
    for (int32_t d = 0; d < t->ndim; d++) count *= (size_t)t->shape[d];
    return count;
}

static const int64_t SHAPE[] = {4, 3};
#define BATCH 4
#define SIZE 12

static lmsd_tensor tensor(void *data, int code, int bits) {
    lmsd_tensor t = {0};
    t.data = data;
    t.device.device_type = LMSD_DEVICE_CPU;
    t.ndim = 2;
    t.dtype = (lmsd_dtype){(uint8_t)code, (uint8_t)bits, 1};
    t.shape = SHAPE;
    return t;
}

static lmsd_tensor f64(double *data) { return tensor(data, LMSD_DTYPE_FLOAT, 64); }
static lmsd_tensor f32(float *data) { return tensor(data, LMSD_DTYPE_FLOAT, 32); }

static void fill_normal(double *x, size_t count, uint64_t seed, double sigma) {
    for (size_t i = 0; i < count; i++) x[i] = sigma * normal(&seed);
}

/* ------------------------------------------------------------------ callbacks */

/* Everything the callbacks of a run need, and what they saw. */
struct run {
    size_t calls;
    size_t stop_model_at, nan_at, stop_observer_at; /* a call from 0; SIZE_MAX for never */
    size_t observed;
    const lmsd_schedule *schedule;
    pthread_t thread;
    size_t node; /* of the next call */
    bool wrong;  /* a callback saw something it should not have */
};

static struct run run_of(const lmsd_schedule *schedule) {
    struct run run = {0, SIZE_MAX, SIZE_MAX, SIZE_MAX, 0, schedule, pthread_self(), 0, false};
    return run;
}

/* Of the step form, where the host calls the model itself. */
#define AT(sigma) (&(lmsd_call){sizeof(lmsd_call), 0, 0, sigma, LMSD_PURPOSE_SAMPLE, 1})

static int model(void *user_data, const lmsd_call *at, const void *x, void *denoised) {
    struct run *run = user_data;
    run->wrong |= at->struct_size != sizeof *at || at->purpose != LMSD_PURPOSE_SAMPLE;
    if (run->schedule != NULL && at->nfe != 0) {
        lmsd_node node = {.struct_size = sizeof node};
        lmsd_schedule_node(run->schedule, at->node, &node);
        run->wrong |= at->nfe != lmsd_schedule_nfe(run->schedule) || at->sigma != node.scale * node.sigma;
        run->wrong |= at->node != 0 && at->node != run->node;
        run->node = at->node + 1;
    }
    const lmsd_tensor *in = x;
    lmsd_tensor *out = denoised;
    size_t call = run->calls++;
    if (!pthread_equal(run->thread, pthread_self())) run->wrong = true;
    if (call == run->stop_model_at) return 41;
    for (size_t i = 0; i < elements(in); i++) set(out, i, denoise(get(in, i), at->sigma));
    if (call == run->nan_at) set(out, elements(in) - 1, NAN);
    return 0;
}

static int observer(void *user_data, const lmsd_step *step) {
    struct run *run = user_data;
    lmsd_node node = {.struct_size = sizeof node};
    size_t index = run->observed++;
    if (index == run->stop_observer_at) return 42;
    lmsd_schedule_node(run->schedule, index, &node);
    run->wrong |= step->struct_size != sizeof *step || step->index != index || run->calls != index + 1;
    run->wrong |= step->nfe != lmsd_schedule_nfe(run->schedule) || step->sigma != node.sigma;
    run->wrong |= step->model_sigma != node.scale * node.sigma;
    double x = get(step->x, 0);
    run->wrong |= get(step->denoised, 0) != denoise(x, step->model_sigma);
    return 0;
}

/* ------------------------------------------------------------------ the library */

static lmsd_schedule *solve(const char *options) {
    lmsd_schedule *schedule = NULL;
    OK(lmsd_schedule_solve(options, &schedule));
    return schedule;
}

static void test_library(void) {
    CHECK(lmsd_last_error()[0] == '\0');
    CHECK(lmsd_abi_version() == LMSD_ABI_VERSION);
    CHECK(strchr(lmsd_version(), '.') != NULL);
    lmsd_string_free(NULL);
    lmsd_schedule_free(NULL);
    lmsd_sampler_free(NULL);
    lmsd_distilled_free(NULL);
    CHECK(lmsd_schedule_nfe(NULL) == 0);
    CHECK(isnan(lmsd_schedule_sigma_start(NULL)));
    CHECK(isnan(lmsd_schedule_sigma_end(NULL)));
    CHECK(lmsd_sampler_index(NULL) == 0);
    CHECK(lmsd_distilled_count(NULL) == 0);
    CHECK(lmsd_last_error()[0] == '\0');
}

/* ------------------------------------------------------------------ schedules */

static void test_schedule(const char *path) {
    lmsd_schedule *s = solve("{\"solver\": \"dpmpp_2m\", \"nfe\": 5, \"sigma_end\": 0.002}");
    CHECK(lmsd_schedule_nfe(s) == 5);
    CHECK(lmsd_schedule_sigma_start(s) == 80);
    CHECK(lmsd_schedule_sigma_end(s) == 0.002);

    lmsd_node node = {.struct_size = sizeof node};
    double before = 80;
    for (size_t n = 0; n < 5; n++) {
        OK(lmsd_schedule_node(s, n, &node));
        double sum = 0;
        for (size_t j = 0; j < node.weight_count; j++) sum += node.weights[j];
        CHECK(fabs(sum - 1) < 1e-12 && node.scale == 1 && node.guidance == 1 && node.weight_count == (n == 0 || n == 4 ? 1 : 2));
        CHECK(n == 0 ? node.sigma == 80 : node.sigma < before);
        before = node.sigma;
    }
    lmsd_node kept = node;
    REFUSED(lmsd_schedule_node(s, 5, &node), INVALID_ARGUMENT, "index is 5");
    REFUSED(lmsd_schedule_node(s, SIZE_MAX, &node), INVALID_ARGUMENT, "0 to 4");
    node.struct_size = offsetof(lmsd_node, guidance) - 1;
    REFUSED(lmsd_schedule_node(s, 0, &node), INVALID_ARGUMENT, "struct_size of lmsd_node is 39");
    node.struct_size = offsetof(lmsd_node, guidance), node.guidance = 7; /* of before there was guidance */
    OK(lmsd_schedule_node(s, 4, &node));
    CHECK(node.guidance == 7 && node.sigma == kept.sigma && !lmsd_schedule_is_guided(s));
    CHECK(!lmsd_schedule_is_guided(NULL));
    node.struct_size = 0;
    REFUSED(lmsd_schedule_node(s, 0, &node), INVALID_ARGUMENT, "sizeof(lmsd_node)");
    CHECK(node.sigma == kept.sigma && node.weights == kept.weights);
    /* A host of a later version gets 0 in what this one does not know, and nothing beyond that. */
    struct {
        lmsd_node node;
        size_t later, beyond;
    } newer;
    memset(&newer, 0x5a, sizeof newer);
    newer.node.struct_size = offsetof(__typeof__(newer), beyond);
    size_t beyond = newer.beyond;
    OK(lmsd_schedule_node(s, 4, &newer.node));
    CHECK(newer.node.struct_size == sizeof(lmsd_node) + sizeof(size_t) && newer.node.sigma == kept.sigma);
    CHECK(newer.node.weight_count == 1 && newer.later == 0 && newer.beyond == beyond);
    REFUSED(lmsd_schedule_node(NULL, 0, &node), INVALID_ARGUMENT, "schedule is NULL");
    REFUSED(lmsd_schedule_node(s, 0, NULL), INVALID_ARGUMENT, "out is NULL");

    /* The text, the file, and back: the same to the last bit. */
    char *text = NULL, *again = NULL;
    lmsd_schedule *read = NULL;
    OK(lmsd_schedule_to_json(s, &text));
    OK(lmsd_schedule_from_json(text, strlen(text), &read));
    OK(lmsd_schedule_to_json(read, &again));
    CHECK(strcmp(text, again) == 0);
    lmsd_string_free(again);
    lmsd_schedule_free(read);
    OK(lmsd_schedule_save(s, path));
    OK(lmsd_schedule_load(path, &read));
    OK(lmsd_schedule_to_json(read, &again));
    CHECK(strcmp(text, again) == 0);
    lmsd_string_free(again);
    lmsd_schedule_free(read);

    /* Nothing that is cut short is taken, wherever the cut is; the file ends in "}\n". */
    size_t taken = 0;
    for (size_t length = 0; length + 1 < strlen(text); length++) {
        lmsd_schedule *cut = NULL;
        taken += lmsd_schedule_from_json(text, length, &cut) != LMSD_STATUS_INVALID_SCHEDULE || cut != NULL;
        lmsd_schedule_free(cut);
    }
    CHECK(taken == 0);
    /* Any changed byte gives a schedule or a refusal, and never a crash. */
    size_t other = 0;
    uint64_t seed = 1;
    for (size_t i = 0; i < 4 * strlen(text); i++) {
        char *at = text + i / 4, was = *at;
        *at = (char)(256 * uniform(&seed));
        lmsd_schedule *changed = NULL;
        lmsd_status status = lmsd_schedule_from_json(text, strlen(text), &changed);
        other += status == LMSD_STATUS_OK ? changed == NULL : status != LMSD_STATUS_INVALID_SCHEDULE;
        lmsd_schedule_free(changed);
        *at = was;
    }
    CHECK(other == 0);
    lmsd_string_free(text);

    /* An error's text stays when a later call succeeds. */
    lmsd_schedule *none = NULL;
    REFUSED(lmsd_schedule_solve("{\"nfe\": 0}", &none), INVALID_ARGUMENT, "nfe is 0");
    OK(lmsd_schedule_save(s, path));
    CHECK(strstr(lmsd_last_error(), "nfe is 0") != NULL);

    REFUSED(lmsd_schedule_solve(NULL, &none), INVALID_ARGUMENT, "options is NULL");
    REFUSED(lmsd_schedule_solve("{}", NULL), INVALID_ARGUMENT, "out is NULL");
    REFUSED(lmsd_schedule_solve("{", &none), INVALID_ARGUMENT, "EOF");
    REFUSED(lmsd_schedule_solve("\xff", &none), INVALID_ARGUMENT, "UTF-8");
    REFUSED(lmsd_schedule_solve("[]", &none), INVALID_ARGUMENT, NULL);
    REFUSED(lmsd_schedule_solve("{\"solver\": \"eular\"}", &none), INVALID_ARGUMENT, "no solver \"eular\"");
    REFUSED(lmsd_schedule_solve("{\"steps\": 3}", &none), INVALID_ARGUMENT, "steps");
    REFUSED(lmsd_schedule_solve("{\"nfe\": -1}", &none), INVALID_ARGUMENT, "-1");
    REFUSED(lmsd_schedule_solve("{\"nfe\": 100000}", &none), INVALID_ARGUMENT, "100000");
    REFUSED(lmsd_schedule_solve("{\"sigma_max\": 1e400}", &none), INVALID_ARGUMENT, "out of range");
    REFUSED(lmsd_schedule_solve("{\"sigma_max\": -3}", &none), INVALID_ARGUMENT, "sigma_max is -3");
    REFUSED(lmsd_schedule_solve("{\"sigma_end\": 90}", &none), INVALID_ARGUMENT, "sigma_end is 90");
    REFUSED(lmsd_schedule_solve("{\"sigma_start\": 1}", &none), INVALID_ARGUMENT, "sigma_start is 1");
    REFUSED(lmsd_schedule_solve("{\"solver\": \"heun\", \"nfe\": 4}", &none), INVALID_ARGUMENT,
            "nfe cannot be 4");
    REFUSED(lmsd_schedule_solve("{\"process\": \"vp\"}", &none), INVALID_ARGUMENT, "vp");
    REFUSED(lmsd_schedule_solve("{\"grid\": {\"kind\": \"karras\", \"rho\": -1}}", &none), INVALID_ARGUMENT,
            "rho");
    REFUSED(lmsd_schedule_solve("{\"grid\": {\"kind\": \"spiral\"}}", &none), INVALID_ARGUMENT, "spiral");
    REFUSED(lmsd_schedule_solve("{\"nfe\": 2, \"grid\": {\"kind\": \"list\", \"sigmas\": [1, 2, 0]}}", &none),
            INVALID_ARGUMENT, "must decrease");
    CHECK(none == NULL);

    REFUSED(lmsd_schedule_to_json(NULL, &text), INVALID_ARGUMENT, "schedule is NULL");
    REFUSED(lmsd_schedule_to_json(s, NULL), INVALID_ARGUMENT, "out is NULL");
    REFUSED(lmsd_schedule_save(NULL, path), INVALID_ARGUMENT, "schedule is NULL");
    REFUSED(lmsd_schedule_save(s, NULL), INVALID_ARGUMENT, "path is NULL");
    REFUSED(lmsd_schedule_save(s, "\xff"), INVALID_ARGUMENT, "UTF-8");
    REFUSED(lmsd_schedule_save(s, "/no/such/folder/a.json"), IO, "/no/such/folder/a.json");
    REFUSED(lmsd_schedule_save(s, "/"), IO, "/");
    REFUSED(lmsd_schedule_save(s, ""), IO, NULL);
    lmsd_schedule_free(s);
}

static void test_solvers(void) {
    char *list = NULL;
    OK(lmsd_solvers(&list));
    REFUSED(lmsd_solvers(NULL), INVALID_ARGUMENT, "out is NULL");
    size_t count = 0;
    const char *key = "\"name\":\"";
    for (const char *at = strstr(list, key); at != NULL; at = strstr(at, key), count++) {
        at += strlen(key);
        char options[200];
        snprintf(options, sizeof options, "{\"solver\": \"%.*s\", \"nfe\": 7}", (int)strcspn(at, "\""), at);
        lmsd_schedule *s = solve(options);
        CHECK(lmsd_schedule_nfe(s) == 7);
        lmsd_schedule_free(s);
    }
    CHECK(count >= 10 && strstr(list, "\"euler\"") && strstr(list, "\"dpmpp_2m\""));
    lmsd_string_free(list);
}

static void test_rivals(void) {
    const char *fields[] = {"published", "strongest"};
    size_t counts[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        char options[200], *list = NULL;
        snprintf(options, sizeof options,
                 "{\"nfe\": 4, \"field\": \"%s\", \"sigma_min\": 0.03, \"sigma_max\": 14.6}", fields[i]);
        OK(lmsd_rivals(options, &list));
        CHECK(list[0] == '[' && list[strlen(list) - 1] == ']');
        const char *key = "\"format\": 1,"; /* each is a file of its own */
        for (const char *at = strstr(list, key); at != NULL; counts[i]++) {
            const char *start = at, *next = strstr(at + 1, key);
            while (*start != '{') start--;
            size_t length = next != NULL ? (size_t)(next - start) : strlen(start);
            while (start[length - 1] != '}') length--;
            lmsd_schedule *s = NULL;
            OK(lmsd_schedule_from_json(start, length, &s));
            CHECK(lmsd_schedule_nfe(s) == 4 && lmsd_schedule_sigma_start(s) == 14.6);
            lmsd_schedule_free(s);
            at = next;
        }
        CHECK((strstr(list, "AFS") != NULL) == (i == 1));
        lmsd_string_free(list);
    }
    CHECK(counts[0] > 20 && counts[1] > 5 * counts[0]);
    char *list = NULL;
    OK(lmsd_rivals("{\"nfe\": 2, \"process\": \"flow\", \"shift\": 1.15, \"extra\": [[1, 0.4, 0]]}", &list));
    CHECK(strstr(list, "flow shift=1.15") && strstr(list, "\"sigmas 1 0.4 0\""));
    lmsd_string_free(list);
    list = NULL;
    REFUSED(lmsd_rivals("{}", NULL), INVALID_ARGUMENT, "out is NULL");
    REFUSED(lmsd_rivals(NULL, &list), INVALID_ARGUMENT, "options is NULL");
    REFUSED(lmsd_rivals("[5]", &list), INVALID_ARGUMENT, "field of solvers");
    REFUSED(lmsd_rivals("{\"field\": \"weakest\"}", &list), INVALID_ARGUMENT, "weakest");
    REFUSED(lmsd_rivals("{\"nfe\": 0}", &list), INVALID_ARGUMENT, "nfe is 0");
    REFUSED(lmsd_rivals("{\"nfe\": 1, \"field\": \"published\", \"extra\": [[80, 0]]}", &list), INVALID_ARGUMENT,
            "extra is given");
    REFUSED(lmsd_rivals("{\"sigma_max\": 0.001}", &list), INVALID_ARGUMENT, "sigma_min is 0.002");
    REFUSED(lmsd_rivals("{\"nfe\": 2, \"extra\": [[80, 0]]}", &list), INVALID_ARGUMENT, "grid 0 of extra");
    CHECK(list == NULL);
}

static void test_start_at(void) {
    lmsd_schedule *s = solve("{\"solver\": \"dpmpp_3m\", \"nfe\": 6}"), *part = NULL;
    OK(lmsd_schedule_start_at(s, 80.0, &part));
    CHECK(lmsd_schedule_nfe(part) == 6);
    lmsd_schedule_free(part);
    OK(lmsd_schedule_start_at(s, 1.0, &part));
    CHECK(lmsd_schedule_sigma_start(part) == 1.0 && lmsd_schedule_nfe(part) < 6);
    lmsd_schedule_free(part);
    part = NULL;
    REFUSED(lmsd_schedule_start_at(s, 81.0, &part), INVALID_ARGUMENT, "81");
    REFUSED(lmsd_schedule_start_at(s, 0.0, &part), INVALID_ARGUMENT, "above 0");
    REFUSED(lmsd_schedule_start_at(s, 1.0, NULL), INVALID_ARGUMENT, "out");
    REFUSED(lmsd_schedule_start_at(NULL, 1.0, &part), INVALID_ARGUMENT, "schedule");
    CHECK(part == NULL);
    lmsd_schedule_free(s);
}

static void test_made_for(void) {
    const char *text =
        "{\"format\": 1, \"process\": \"ve\", \"nfe\": 1, \"sigma_start\": 80, \"sigma_end\": 0,"
        " \"nodes\": [{\"sigma\": 80, \"weights\": [1]}], \"made_for\": {\"model\": \"digits\","
        " \"model_hash\": \"ab12\", \"guidance_scale\": 3, \"latent_shape\": [1, 8, 8], \"sigma_max\": 80}}";
    lmsd_schedule *s = NULL;
    OK(lmsd_schedule_from_json(text, strlen(text), &s));
    OK(lmsd_schedule_check(s, "{}"));
    OK(lmsd_schedule_check(s, "{\"process\": \"ve\", \"guidance_scale\": 3, \"sigma_min\": 0.002}"));
    OK(lmsd_schedule_check(s, "{\"sigma_max\": 80.01, \"latent_shape\": [1, 8, 8], \"model\": \"digits\"}"));
    REFUSED(lmsd_schedule_check(s, "{\"process\": \"flow\"}"), MISMATCH, "flow");
    REFUSED(lmsd_schedule_check(s, "{\"guidance_scale\": 7.5}"), MISMATCH, "7.5");
    REFUSED(lmsd_schedule_check(s, "{\"sigma_max\": 14.6}"), MISMATCH, "14.6");
    REFUSED(lmsd_schedule_check(s, "{\"latent_shape\": [4, 64, 64]}"), MISMATCH, "[4, 64, 64]");
    REFUSED(lmsd_schedule_check(s, "{\"model\": \"letters\"}"), MISMATCH, "letters");
    REFUSED(lmsd_schedule_check(s, "{\"model_hash\": \"cd34\"}"), MISMATCH, "cd34");
    REFUSED(lmsd_schedule_check(s, "{\"guidance_scael\": 3}"), INVALID_ARGUMENT, "guidance_scael");
    REFUSED(lmsd_schedule_check(s, "{\"process\": 3}"), INVALID_ARGUMENT, NULL);
    REFUSED(lmsd_schedule_check(s, "{\"shift\": 3, \"shift\": 3}"), INVALID_ARGUMENT, "duplicate field `shift`");
    REFUSED(lmsd_schedule_check(s, "{\"a\\u001b[31m\\u0007\": 3}"), INVALID_ARGUMENT, "a\\u{1b}[31m\\u{7}");
    REFUSED(lmsd_schedule_check(s, "ve"), INVALID_ARGUMENT, NULL);
    REFUSED(lmsd_schedule_check(NULL, "{}"), INVALID_ARGUMENT, "schedule is NULL");
    REFUSED(lmsd_schedule_check(s, NULL), INVALID_ARGUMENT, "host is NULL");
    lmsd_schedule_free(s);
}

/* ------------------------------------------------------------------ bad files */

static void write_file(const char *path, const char *bytes, size_t length) {
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, length, file) != length || fclose(file) != 0) {
        fprintf(stderr, "cannot write %s\n", path);
        exit(1);
    }
}

/* The same text is refused as a file and as a text, with the same words. */
static void refused_text(const char *path, const char *text, size_t length, const char *says, int line) {
    lmsd_schedule *s = NULL;
    check_status(lmsd_schedule_from_json(text, length, &s), LMSD_STATUS_INVALID_SCHEDULE, says, "from_json",
                 line);
    write_file(path, text, length);
    check_status(lmsd_schedule_load(path, &s), LMSD_STATUS_INVALID_SCHEDULE, says, "load", line);
    check(strstr(lmsd_last_error(), path) != NULL && s == NULL, "the path is named", line);
}

#define SCHEDULE(process, start, end, nodes)                                            \
    "{\"format\": 1, \"process\": \"" process "\", \"nfe\": 2, \"sigma_start\": " start \
    ", \"sigma_end\": " end ", \"nodes\": [" nodes "]}"
#define VE(nodes) SCHEDULE("ve", "80", "0", nodes)
#define NODE(sigma, weights) "{\"sigma\": " sigma ", \"weights\": [" weights "]}"

static const struct {
    const char *text, *says;
    int line;
} BAD[] = {
    {"", "EOF", __LINE__},
    {"null", "format 1", __LINE__},
    {"[1, 2]", "format 1", __LINE__},
    {"[1, null, \"ve\", 1, 80, 0, [[80, 1, [1]]], null, null]", NULL, __LINE__}, /* no names */
    {VE("[80, 1, [1]], [1, 1, [1]]"), NULL, __LINE__},
    {"\xff\xfe", "UTF-8", __LINE__},
    {VE(NODE("80", "1") "," NODE("1", "1")) "x", "trailing", __LINE__},
    {"{\"format\": 2, \"process\": \"ve\", \"nfe\": 1, \"sigma_start\": 80, \"sigma_end\": 0, \"nodes\": [" NODE(
         "80", "1") "]}",
     "format 2", __LINE__},
    {"{\"process\": \"ve\"}", "format", __LINE__},
    {"{\"format\": \"1\"}", "string", __LINE__},
    {"{\"format\": 1, \"format\": 1}", "duplicate", __LINE__},
    {"{\"format\": 1, \"evil\": 1}", "evil", __LINE__},
    {VE(NODE("80", "1") ", {\"sigma\": 1, \"weights\": [1], \"evil\": 0}"), "evil", __LINE__},
    {SCHEDULE("edm", "80", "0", NODE("80", "1") "," NODE("1", "1")), "edm", __LINE__},
    {VE(NODE("80", "1")), "nfe is 2 but there are 1", __LINE__},
    {VE(NODE("NaN", "1") "," NODE("1", "1")), "expected", __LINE__},
    {VE(NODE("1e400", "1") "," NODE("1", "1")), "out of range", __LINE__},
    {VE(NODE("80", "1") "," NODE("1", "-1e400")), "out of range", __LINE__},
    {VE(NODE("null", "1") "," NODE("1", "1")), "null", __LINE__},
    {VE(NODE("80", "1") "," NODE("-1", "1")), "sigma of node 1 is -1", __LINE__},
    {VE(NODE("80", "1") "," NODE("0", "1")), "sigma of node 1 is 0", __LINE__},
    {VE(NODE("1", "1") "," NODE("2", "1")), "sigma of node 1 is 2", __LINE__},
    {VE(NODE("81", "1") "," NODE("1", "1")), "sigma of node 0 is 81", __LINE__},
    {VE(NODE("80", "1") "," NODE("1", "")), "node 1 has 0 weights", __LINE__},
    {VE(NODE("80", "1, 0") "," NODE("1", "1")), "node 0 has 2 weights", __LINE__},
    {VE(NODE("80", "1") "," NODE("1", "1e10")), "weight 0 of node 1", __LINE__},
    {VE("{\"sigma\": 80, \"scale\": 0, \"weights\": [1]}," NODE("1", "1")), "scale of node 0 is 0", __LINE__},
    {VE("{\"sigma\": 80, \"scale\": -1, \"weights\": [1]}," NODE("1", "1")), "scale of node 0 is -1",
     __LINE__},
    {SCHEDULE("ve", "0", "0", NODE("80", "1") "," NODE("1", "1")), "sigma_start is 0", __LINE__},
    {SCHEDULE("ve", "-80", "0", NODE("80", "1") "," NODE("1", "1")), "sigma_start is -80", __LINE__},
    {SCHEDULE("ve", "1e7", "0", NODE("80", "1") "," NODE("1", "1")), "sigma_start is 1", __LINE__},
    {SCHEDULE("ve", "80", "-1", NODE("80", "1") "," NODE("1", "1")), "sigma_end is -1", __LINE__},
    {SCHEDULE("ve", "80", "1", NODE("80", "1") "," NODE("1", "1")), "sigma_end is 1", __LINE__},
    {SCHEDULE("flow", "2", "0", NODE("1", "1") "," NODE("0.5", "1")), "sigma_start is 2", __LINE__},
    {SCHEDULE("flow", "1", "0", NODE("1", "1") ", {\"sigma\": 0.5, \"scale\": 3, \"weights\": [1]}"),
     "scale times sigma of node 1", __LINE__},
};

/* A schedule of `count` nodes; the caller frees it. */
static char *many_nodes(size_t count) {
    const char *node = "{\"sigma\": 1, \"weights\": [1]}";
    char *text = malloc(200 + count * (strlen(node) + 1));
    char *end = text + sprintf(text,
                               "{\"format\": 1, \"process\": \"ve\", \"nfe\": %zu, \"sigma_start\": 80,"
                               " \"sigma_end\": 0, \"nodes\": [",
                               count);
    for (size_t i = 0; i < count; i++) end += sprintf(end, i == 0 ? "%s" : ",%s", node);
    strcpy(end, "]}");
    return text;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Names that Windows has its own ways with, and a file that is open while it is saved over. */
static void test_paths(const char *folder) {
    static const char *const names[] = {"with a space.json", "\xc3\xa9t\xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac.json", NULL};
    char path[1100], nested[900];
    lmsd_schedule *s = solve("{\"nfe\": 3}"), *read = NULL;
    snprintf(nested, sizeof nested, "%s/%0200d", folder, 1); /* with the file's name more than Windows' 260 */
    CHECK(make_folder(nested));
    for (size_t i = 0; i < COUNT(names); i++) {
        if (names[i] != NULL) snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        else snprintf(path, sizeof path, "%s/%0100d.json", nested, 2);
        OK(lmsd_schedule_save(s, path));
        OK(lmsd_schedule_save(s, path));
        OK(lmsd_schedule_load(path, &read));
        CHECK(lmsd_schedule_nfe(read) == 3);
        lmsd_schedule_free(read), read = NULL;
        CHECK(remove_path(path));
    }
    CHECK(remove_path(nested));

    snprintf(path, sizeof path, "%s/open.json", folder);
    OK(lmsd_schedule_save(s, path));
    lmsd_schedule *other = solve("{\"nfe\": 4}");
    FILE *open = fopen(path, "rb");
    lmsd_status status = lmsd_schedule_save(other, path); /* Windows may refuse that; then the old file is whole */
    CHECK(open != NULL && (status == LMSD_STATUS_OK || status == LMSD_STATUS_IO));
    OK(lmsd_schedule_load(path, &read));
    CHECK(lmsd_schedule_nfe(read) == (status == LMSD_STATUS_OK ? 4 : 3));
    fclose(open);
    OK(lmsd_schedule_save(other, path));
    unlink(path);
    lmsd_schedule_free(s), lmsd_schedule_free(other), lmsd_schedule_free(read);
}

static void test_bad_files(const char *folder) {
    char path[500];
    snprintf(path, sizeof path, "%s/bad.json", folder);
    for (size_t i = 0; i < COUNT(BAD); i++) {
        refused_text(path, BAD[i].text, strlen(BAD[i].text), BAD[i].says, BAD[i].line);
    }
    refused_text(path, "{\0}", 3, NULL, __LINE__);

    char *text = many_nodes(1000);
    lmsd_schedule *s = NULL;
    OK(lmsd_schedule_from_json(text, strlen(text), &s));
    lmsd_schedule_free(s);
    s = NULL;
    free(text);
    text = many_nodes(1001);
    refused_text(path, text, strlen(text), "1001 nodes", __LINE__);
    free(text);
    text = many_nodes(1000000);
    refused_text(path, text, strlen(text), "1048576 at most", __LINE__);
    free(text);

    enum { DEEP = 100000 };
    static char deep[2 * DEEP + 1];
    memset(deep, '[', DEEP);
    memset(deep + DEEP, ']', DEEP);
    refused_text(path, deep, DEEP, NULL, __LINE__);
    refused_text(path, deep, 2 * DEEP, NULL, __LINE__);
    text = malloc(2 * DEEP + 100);
    size_t length = (size_t)sprintf(text, "{\"format\": 1, \"nodes\": %s}", deep);
    refused_text(path, text, length, NULL, __LINE__);
    for (char *c = text + 12; *c != '\0'; c++) *c = *c == '[' ? '{' : *c == ']' ? '}' : *c;
    refused_text(path, text, length, NULL, __LINE__);
    free(text);

    /* A gigabyte, sparse: refused unread, at once, in no memory. */
    write_file(path, "{", 1);
    CHECK(truncate(path, 1 << 30) == 0);
    long memory = peak_memory();
    double start = seconds();
    REFUSED(lmsd_schedule_load(path, &s), INVALID_SCHEDULE, "1073741824 bytes");
    CHECK(seconds() - start < 0.05);
    CHECK(peak_memory() - memory < 8 << 10);
    unlink(path);

    REFUSED(lmsd_schedule_load(path, &s), IO, path);
    REFUSED(lmsd_schedule_load(folder, &s), IO, folder);
    if (make_pipe(path)) {
        REFUSED(lmsd_schedule_load(path, &s), IO, "not a regular file"); /* and does not wait for a writer */
        unlink(path);
    }
    REFUSED(lmsd_schedule_load("", &s), IO, NULL);
    REFUSED(lmsd_schedule_load("\xff", &s), INVALID_ARGUMENT, "UTF-8");
    REFUSED(lmsd_schedule_load(NULL, &s), INVALID_ARGUMENT, "path is NULL");
    REFUSED(lmsd_schedule_load(path, NULL), INVALID_ARGUMENT, "out is NULL");
    REFUSED(lmsd_schedule_from_json(NULL, 0, &s), INVALID_ARGUMENT, "json is NULL");
    REFUSED(lmsd_schedule_from_json("{}", 2, NULL), INVALID_ARGUMENT, "out is NULL");
    REFUSED(lmsd_schedule_from_json("{}", SIZE_MAX, &s), INVALID_SCHEDULE, "1048576 at most");
    CHECK(s == NULL);
}

/* ------------------------------------------------------------------ tensors */

static lmsd_status copy(lmsd_tensor *from, lmsd_tensor *to) {
    double one = 1;
    const void *terms[] = {from};
    return lmsd_lincomb(NULL, 1, &one, terms, to);
}

static void test_tensors(void) {
    double a[SIZE], b[SIZE], out[SIZE], twos[2 * SIZE];
    fill_normal(a, SIZE, 1, 1);
    fill_normal(b, SIZE, 2, 1);
    lmsd_tensor ta = f64(a), tb = f64(b), to = f64(out);
    const double factors[] = {2, -0.5};
    const void *terms[] = {&ta, &tb};
    OK(lmsd_lincomb(NULL, 2, factors, terms, &to));
    bool equal = true;
    for (size_t i = 0; i < SIZE; i++) equal &= fabs(out[i] - (2 * a[i] - 0.5 * b[i])) < 1e-15 * 8;
    CHECK(equal);
    /* A term with factor 0 is not there, whatever is in it. */
    const double zero[] = {1, 0};
    b[0] = NAN;
    OK(lmsd_lincomb(NULL, 2, zero, terms, &to));
    CHECK(memcmp(out, a, sizeof a) == 0);
    b[0] = 0.5;

    double gram[BATCH * 4];
    OK(lmsd_gram(NULL, 2, terms, COUNT(gram), gram));
    for (size_t t = 0; t < BATCH; t++) {
        double aa = 0, ab = 0, bb = 0;
        for (size_t i = 3 * t; i < 3 * t + 3; i++) aa += a[i] * a[i], ab += a[i] * b[i], bb += b[i] * b[i];
        const double *g = gram + 4 * t;
        CHECK(fabs(g[0] - aa) < 1e-14 && fabs(g[1] - ab) < 1e-14 && g[2] == g[1] && fabs(g[3] - bb) < 1e-14);
    }

    /* Half precision by its bits: 1.5, -2, 65504, 1/3, the smallest subnormals, ties to even. */
    uint16_t h[SIZE] = {0x3e00, 0xc000, 0x7bff, 0x3555, 0x0001, 0x0002, 0x0003}, k[SIZE];
    uint16_t halved[SIZE] = {0x3a00, 0xbc00, 0x77ff, 0x3155, 0x0000, 0x0001, 0x0002};
    lmsd_tensor th = tensor(h, LMSD_DTYPE_FLOAT, 16), tk = tensor(k, LMSD_DTYPE_FLOAT, 16);
    const double half = 0.5;
    const void *one[] = {&th};
    OK(lmsd_lincomb(NULL, 1, &half, one, &tk));
    CHECK(memcmp(k, halved, sizeof k) == 0);
    OK(copy(&th, &tk));
    CHECK(memcmp(h, k, sizeof h) == 0);
    /* bfloat16: the upper half of a float32. */
    uint16_t w[SIZE] = {0x3fc0, 0xc000, 0x7f7f}, less[SIZE] = {0x3f40, 0xbf80, 0x7eff};
    lmsd_tensor tw = tensor(w, LMSD_DTYPE_BFLOAT, 16), tv = tensor(k, LMSD_DTYPE_BFLOAT, 16);
    one[0] = &tw;
    OK(lmsd_lincomb(NULL, 1, &half, one, &tv));
    CHECK(memcmp(k, less, sizeof less) == 0);

    /* What is not taken, as an input and as an output. */
    lmsd_tensor bad;
    const int64_t gaps[] = {6, 2}, rows[] = {3, 1}, empty[] = {4, 0}, below[] = {-4, 3};
    const int64_t huge[] = {INT64_MAX, 2}, wide[] = {INT64_C(1) << 61, 8}, other[] = {3, 4};
#define BAD_TENSOR(change, says)                    \
    bad = ta, change;                               \
    REFUSED(copy(&bad, &to), INVALID_TENSOR, says); \
    bad = to, change;                               \
    REFUSED(copy(&ta, &bad), INVALID_TENSOR, says)
    BAD_TENSOR(bad.device.device_type = 2, "type 2");
    BAD_TENSOR(bad.dtype.code = 0, "code 0");
    BAD_TENSOR(bad.dtype.bits = 8, "8 bits");
    BAD_TENSOR(bad.dtype.lanes = 4, "4 lanes");
    BAD_TENSOR(bad.ndim = 0, "0 dimensions");
    BAD_TENSOR(bad.ndim = -1, "-1 dimensions");
    BAD_TENSOR(bad.ndim = LMSD_MAX_DIMENSIONS + 1, "33 dimensions");
    BAD_TENSOR(bad.shape = NULL, "shape is null");
    BAD_TENSOR(bad.shape = empty, "[4, 0]");
    BAD_TENSOR(bad.shape = below, "-4");
    BAD_TENSOR(bad.shape = huge, "address space");
    BAD_TENSOR(bad.shape = wide, "address space");
    BAD_TENSOR(bad.strides = gaps, "[6, 2]");
    BAD_TENSOR(bad.data = NULL, "null data");
    BAD_TENSOR(bad.byte_offset = 1, "aligned");
    BAD_TENSOR(bad.byte_offset = UINT64_MAX, "byte_offset");
    BAD_TENSOR(bad.shape = other, "[3, 4]");
    BAD_TENSOR(bad = f32((float *)out), "float32");
    /* What is: strides that say what is so, and a start further on. */
    bad = ta, bad.strides = rows;
    OK(copy(&bad, &to));
    bad = f64(twos), bad.byte_offset = sizeof a;
    memset(twos, 0, sizeof twos);
    OK(copy(&ta, &bad));
    CHECK(twos[SIZE - 1] == 0 && memcmp(twos + SIZE, a, sizeof a) == 0);

    /* Overlap, in whole and in part. */
    REFUSED(copy(&ta, &ta), INVALID_TENSOR, "overlaps");
    lmsd_tensor low = f64(twos), high = f64(twos + 1);
    REFUSED(copy(&low, &high), INVALID_TENSOR, "overlaps");

    memcpy(out, a, sizeof a);
    REFUSED(lmsd_lincomb(NULL, 0, factors, terms, &to), INVALID_ARGUMENT, "count is 0");
    REFUSED(lmsd_lincomb(NULL, SIZE_MAX, factors, terms, &to), INVALID_ARGUMENT, "count is");
    REFUSED(lmsd_lincomb(NULL, 2, NULL, terms, &to), INVALID_ARGUMENT, "factors is NULL");
    REFUSED(lmsd_lincomb(NULL, 2, factors, NULL, &to), INVALID_ARGUMENT, "terms is NULL");
    REFUSED(lmsd_lincomb(NULL, 2, factors, terms, NULL), INVALID_ARGUMENT, "out is NULL");
    terms[1] = NULL;
    REFUSED(lmsd_lincomb(NULL, 2, factors, terms, &to), INVALID_ARGUMENT, "terms[1] is NULL");
    REFUSED(lmsd_gram(NULL, 2, terms, COUNT(gram), gram), INVALID_ARGUMENT, "columns[1] is NULL");
    terms[1] = &bad, bad = tb, bad.shape = other;
    REFUSED(lmsd_lincomb(NULL, 2, factors, terms, &to), INVALID_TENSOR, "[3, 4]");
    REFUSED(lmsd_gram(NULL, 2, terms, COUNT(gram), gram), INVALID_TENSOR, "[3, 4]");
    terms[1] = &tb;
    REFUSED(lmsd_gram(NULL, 0, terms, COUNT(gram), gram), INVALID_ARGUMENT, "count is 0");
    REFUSED(lmsd_gram(NULL, 2, NULL, COUNT(gram), gram), INVALID_ARGUMENT, "columns is NULL");
    REFUSED(lmsd_gram(NULL, 2, terms, COUNT(gram), NULL), INVALID_ARGUMENT, "out is NULL");
    REFUSED(lmsd_gram(NULL, 2, terms, 15, gram), INVALID_ARGUMENT, "length is 15");

    /* 1.6 TB: refused before anything is made. */
    static double many[200000];
    static const void *columns[1000];
    lmsd_tensor large = f64(many);
    large.shape = (const int64_t[]){200000, 1};
    for (size_t i = 0; i < 1000; i++) columns[i] = &large;
    REFUSED(lmsd_gram(NULL, 1000, columns, 1, gram), INVALID_ARGUMENT, "this Gram matrix has 200000000000");
    CHECK(memcmp(out, a, sizeof a) == 0);
}

/* ------------------------------------------------------------------ sampling */

/* The loop as the manual has it, in doubles. */
static void reference(const lmsd_schedule *s, double *x, size_t count) {
    enum { MOST = 32 };
    size_t nfe = lmsd_schedule_nfe(s);
    for (size_t i = 0; i < count; i++) {
        double predictions[MOST];
        lmsd_node node = {.struct_size = sizeof node}, next = node;
        lmsd_schedule_node(s, 0, &node);
        x[i] *= node.sigma / lmsd_schedule_sigma_start(s);
        for (size_t n = 0; n < nfe; n++, node = next) {
            next.sigma = lmsd_schedule_sigma_end(s);
            if (n + 1 < nfe) lmsd_schedule_node(s, n + 1, &next);
            predictions[n] = denoise(x[i], node.scale * node.sigma);
            double sum = 0, r = next.sigma / node.sigma;
            for (size_t j = 0; j < node.weight_count; j++) sum += node.weights[j] * predictions[n - j];
            x[i] = r * x[i] + (next.sigma == node.sigma ? 1 : 1 - r) * sum;
        }
    }
}

enum { HEUN = 2 };
static const char *const SCHEDULES[] = {
    "{\"solver\": \"euler\", \"nfe\": 1}",
    "{\"solver\": \"dpmpp_3m\", \"nfe\": 9, \"sigma_max\": 20, \"sigma_start\": 80, \"sigma_end\": 0.002}",
    "{\"solver\": \"heun\", \"nfe\": 7}",
    "{\"solver\": \"ipndm_4\", \"nfe\": 6, \"grid\": {\"kind\": \"log\"}}",
    "{\"solver\": \"dpmpp_2m\", \"nfe\": 6, \"process\": \"flow\", \"grid\": {\"kind\": \"flow\", \"shift\": 3}}",
};

static const struct {
    int code, bits;
    double tolerance;
} DTYPES[] = {
    {LMSD_DTYPE_FLOAT, 64, 1e-12},
    {LMSD_DTYPE_FLOAT, 32, 5e-5},
    {LMSD_DTYPE_FLOAT, 16, 0.05},
    {LMSD_DTYPE_BFLOAT, 16, 0.3},
};

/* The step form, in full: the same loop owned by the host. */
static void run_steps(const lmsd_schedule *s, lmsd_tensor *x_t, lmsd_tensor *x, lmsd_tensor *denoised) {
    lmsd_sampler *sampler = NULL;
    struct run run = run_of(s);
    OK(lmsd_sampler_new(s, NULL, x_t, &sampler));
    for (size_t n = 0; n < lmsd_schedule_nfe(s); n++) {
        double sigma = NAN;
        CHECK(lmsd_sampler_index(sampler) == n);
        OK(lmsd_sampler_next(sampler, &sigma, x));
        model(&run, AT(sigma), x, denoised);
        OK(lmsd_sampler_step(sampler, denoised));
    }
    CHECK(lmsd_sampler_index(sampler) == lmsd_schedule_nfe(s));
    OK(lmsd_sampler_result(sampler, x));
    lmsd_sampler_free(sampler);
}

static void test_sample(void) {
    for (size_t i = 0; i < COUNT(SCHEDULES); i++) {
        lmsd_schedule *s = solve(SCHEDULES[i]);
        for (size_t d = 0; d < COUNT(DTYPES); d++) {
            double memory[4][SIZE], expected[SIZE];
            lmsd_tensor x = tensor(memory[0], DTYPES[d].code, DTYPES[d].bits), out = x, stepped = x, work = x;
            out.data = memory[1], stepped.data = memory[2], work.data = memory[3];
            fill_normal(expected, SIZE, 7 + i, lmsd_schedule_sigma_start(s));
            for (size_t j = 0; j < SIZE; j++) set(&x, j, expected[j]), expected[j] = get(&x, j);
            reference(s, expected, SIZE);

            struct run run = run_of(s);
            OK(lmsd_sample(s, NULL, &x, model, NULL, &run, &out));
            CHECK(run.calls == lmsd_schedule_nfe(s) && !run.wrong);
            double worst = 0;
            for (size_t j = 0; j < SIZE; j++) worst = fmax(worst, fabs(get(&out, j) - expected[j]));
            /* Heun divides the rounding of x at a small sigma by that sigma: too much for 16 bits. */
            CHECK(worst <= DTYPES[d].tolerance || (i == HEUN && DTYPES[d].bits == 16));

            size_t bytes = SIZE * (size_t)DTYPES[d].bits / 8;
            run_steps(s, &x, &stepped, &work);
            CHECK(memcmp(memory[1], memory[2], bytes) == 0);
            OK(lmsd_sample(s, NULL, &x, model, NULL, &run, &x));
            CHECK(memcmp(memory[1], memory[0], bytes) == 0);
        }
        lmsd_schedule_free(s);
    }
}

static void test_sample_refusals(void) {
    lmsd_schedule *s = solve("{\"nfe\": 5}");
    double x[SIZE], out[SIZE], kept[SIZE];
    fill_normal(x, SIZE, 3, 80);
    fill_normal(kept, SIZE, 4, 1);
    memcpy(out, kept, sizeof out);
    lmsd_tensor tx = f64(x), to = f64(out), bad = to;
    const int64_t other[] = {3, 4};

    struct run run = run_of(s);
    REFUSED(lmsd_sample(NULL, NULL, &tx, model, observer, &run, &to), INVALID_ARGUMENT, "schedule is NULL");
    REFUSED(lmsd_sample(s, NULL, NULL, model, observer, &run, &to), INVALID_ARGUMENT, "x_t is NULL");
    REFUSED(lmsd_sample(s, NULL, &tx, NULL, observer, &run, &to), INVALID_ARGUMENT, "model is NULL");
    REFUSED(lmsd_sample(s, NULL, &tx, model, observer, &run, NULL), INVALID_ARGUMENT, "out is NULL");
    bad.shape = other;
    REFUSED(lmsd_sample(s, NULL, &tx, model, observer, &run, &bad), INVALID_TENSOR, "[3, 4]");
    bad = f32((float *)out);
    REFUSED(lmsd_sample(s, NULL, &tx, model, observer, &run, &bad), INVALID_TENSOR, "out is float32");
    bad = tx, bad.device.device_type = 2;
    REFUSED(lmsd_sample(s, NULL, &bad, model, observer, &run, &to), INVALID_TENSOR, "x_t");
    CHECK(run.calls == 0); /* all of it before any work */

    for (size_t n = 0; n < 5; n++) {
        char says[50];
        run = run_of(s), run.stop_model_at = n;
        REFUSED(lmsd_sample(s, NULL, &tx, model, observer, &run, &to), STOPPED, "model callback returned 41");
        CHECK(run.calls == n + 1 && run.observed == n);
        run = run_of(s), run.stop_observer_at = n;
        snprintf(says, sizeof says, "observer returned 42 at node %zu", n);
        REFUSED(lmsd_sample(s, NULL, &tx, model, observer, &run, &to), STOPPED, says);
        CHECK(run.calls == n + 1 && run.observed == n + 1);
        run = run_of(s), run.nan_at = n;
        snprintf(says, sizeof says, "at node %zu", n);
        REFUSED(lmsd_sample(s, NULL, &tx, model, observer, &run, &to), NON_FINITE, says);
        CHECK(run.calls == n + 1 && run.observed == n);
    }
    CHECK(memcmp(out, kept, sizeof out) == 0);
    run = run_of(s);
    OK(lmsd_sample(s, NULL, &tx, model, observer, &run, &to));
    CHECK(run.observed == 5 && !run.wrong);
    lmsd_schedule_free(s);
}

static void test_sampler_refusals(void) {
    lmsd_schedule *s = solve("{\"nfe\": 2}");
    double x[SIZE], y[SIZE], nan[SIZE] = {NAN}, sigma = -1, expected[SIZE];
    fill_normal(x, SIZE, 5, 80);
    lmsd_tensor tx = f64(x), ty = f64(y), tnan = f64(nan), bad = tx;
    const int64_t other[] = {3, 4};
    bad.shape = other;
    lmsd_sampler *sampler = NULL;
    REFUSED(lmsd_sampler_new(NULL, NULL, &tx, &sampler), INVALID_ARGUMENT, "schedule is NULL");
    REFUSED(lmsd_sampler_new(s, NULL, NULL, &sampler), INVALID_ARGUMENT, "x_t is NULL");
    REFUSED(lmsd_sampler_new(s, NULL, &tx, NULL), INVALID_ARGUMENT, "out is NULL");
    CHECK(sampler == NULL);
    OK(lmsd_sampler_new(s, NULL, &tx, &sampler));
    memcpy(expected, x, sizeof x);
    reference(s, expected, SIZE);
    lmsd_schedule_free(s); /* the sampler has its own, and its own x_T */
    memset(x, 0, sizeof x);

    REFUSED(lmsd_sampler_next(NULL, &sigma, &ty), INVALID_ARGUMENT, "sampler is NULL");
    REFUSED(lmsd_sampler_next(sampler, NULL, &ty), INVALID_ARGUMENT, "sigma is NULL");
    REFUSED(lmsd_sampler_next(sampler, &sigma, NULL), INVALID_ARGUMENT, "x is NULL");
    REFUSED(lmsd_sampler_next(sampler, &sigma, &bad), INVALID_TENSOR, "[3, 4]");
    CHECK(sigma == -1);
    REFUSED(lmsd_sampler_step(NULL, &ty), INVALID_ARGUMENT, "sampler is NULL");
    REFUSED(lmsd_sampler_result(NULL, &ty), INVALID_ARGUMENT, "sampler is NULL");
    REFUSED(lmsd_sampler_set_state(NULL, &ty), INVALID_ARGUMENT, "sampler is NULL");
    REFUSED(lmsd_sampler_copy(NULL, &sampler), INVALID_ARGUMENT, "sampler is NULL");
    struct run run = run_of(NULL);
    for (size_t n = 0; n < 2; n++) {
        REFUSED(lmsd_sampler_step(sampler, NULL), INVALID_ARGUMENT, "denoised is NULL");
        REFUSED(lmsd_sampler_step(sampler, &tnan), NON_FINITE, n == 0 ? "node 0" : "node 1");
        REFUSED(lmsd_sampler_step(sampler, &bad), INVALID_TENSOR, "[3, 4]");
        CHECK(lmsd_sampler_index(sampler) == n); /* a refused step changes nothing */
        REFUSED(lmsd_sampler_set_state(sampler, NULL), INVALID_ARGUMENT, "x is NULL");
        REFUSED(lmsd_sampler_set_state(sampler, &bad), INVALID_TENSOR, "[3, 4]");
        OK(lmsd_sampler_next(sampler, &sigma, &ty));
        model(&run, AT(sigma), &ty, &tx);
        OK(lmsd_sampler_set_state(sampler, &tx)); /* another state ... */
        OK(lmsd_sampler_set_state(sampler, &ty)); /* ... and back */
        OK(lmsd_sampler_step(sampler, &tx));
    }
    sigma = -1;
    REFUSED(lmsd_sampler_next(sampler, &sigma, &ty), WRONG_STATE, "over");
    REFUSED(lmsd_sampler_step(sampler, &tx), WRONG_STATE, "after 2 steps");
    CHECK(sigma == -1 && lmsd_sampler_index(sampler) == 2);
    REFUSED(lmsd_sampler_set_state(sampler, &tx), WRONG_STATE, "after 2 steps");
    REFUSED(lmsd_sampler_result(sampler, NULL), INVALID_ARGUMENT, "out is NULL");
    REFUSED(lmsd_sampler_result(sampler, &bad), INVALID_TENSOR, "[3, 4]");
    OK(lmsd_sampler_result(sampler, &ty));
    double worst = 0;
    for (size_t j = 0; j < SIZE; j++) worst = fmax(worst, fabs(y[j] - expected[j]));
    CHECK(worst < 1e-13);
    lmsd_sampler_free(sampler);
}

/* ------------------------------------------------------------------ the host's own tensors */

struct matrix {
    size_t rows, columns;
    double *data;
};

/* A framework of matrices, which counts, and fails when told to. */
struct framework {
    size_t live, made, operations;
    size_t fail_at; /* an operation from 0; SIZE_MAX for never */
    struct run run;
};

static bool fails(struct framework *f) { return f->operations++ == f->fail_at; }

static struct matrix *matrix_new(size_t rows, size_t columns) {
    struct matrix *m = malloc(sizeof *m);
    *m = (struct matrix){rows, columns, malloc(rows * columns * sizeof(double))};
    return m;
}

static void matrix_free(struct matrix *m) {
    free(m->data);
    free(m);
}

static int host_alloc(void *user_data, const void *like, void **out) {
    struct framework *f = user_data;
    const struct matrix *m = like;
    if (fails(f)) return 51;
    *out = matrix_new(m->rows, m->columns);
    f->live++, f->made++;
    return 0;
}

static void host_release(void *user_data, void *tensor) {
    ((struct framework *)user_data)->live--;
    matrix_free(tensor);
}

static int host_lincomb(void *user_data, void *out, size_t count, const double *factors,
                        const void *const *terms) {
    struct matrix *to = out;
    if (fails(user_data)) return 52;
    for (size_t i = 0; i < to->rows * to->columns; i++) {
        double sum = 0;
        for (size_t j = 0; j < count; j++) sum += factors[j] * ((const struct matrix *)terms[j])->data[i];
        to->data[i] = sum;
    }
    return 0;
}

static int host_gram(void *user_data, size_t count, const void *const *columns, double *out) {
    const struct matrix *const *m = (const struct matrix *const *)columns;
    if (fails(user_data)) return 53;
    for (size_t b = 0; b < m[0]->rows; b++) {
        for (size_t i = 0; i < count; i++) {
            for (size_t j = 0; j < count; j++, out++) {
                *out = 0;
                for (size_t k = b * m[0]->columns; k < (b + 1) * m[0]->columns; k++) {
                    *out += m[i]->data[k] * m[j]->data[k];
                }
            }
        }
    }
    return 0;
}

static size_t host_batch(void *user_data, const void *tensor) {
    (void)user_data;
    return ((const struct matrix *)tensor)->rows;
}

static lmsd_host host_of(struct framework *f) {
    lmsd_host host = {.struct_size = sizeof host, .user_data = f, .alloc = host_alloc,
                      .release = host_release, .lincomb = host_lincomb, .gram = host_gram,
                      .batch = host_batch};
    return host;
}

static int host_model(void *user_data, const lmsd_call *at, const void *x, void *denoised) {
    struct framework *f = user_data;
    const struct matrix *in = x;
    struct matrix *out = denoised;
    size_t call = f->run.calls++, last = in->rows * in->columns - 1;
    if (call == f->run.stop_model_at) return 54;
    for (size_t i = 0; i <= last; i++) out->data[i] = denoise(in->data[i], at->sigma);
    if (call == f->run.nan_at) out->data[last] = NAN;
    return 0;
}

static int fails_at_0(void *user_data, void *out, size_t count, const double *factors,
                      const void *const *terms) {
    (void)user_data, (void)out, (void)count, (void)factors, (void)terms;
    return 1;
}

static int says_memory(void *user_data, const char **text) {
    (void)user_data;
    *text = "the device is full";
    return LMSD_STATUS_OUT_OF_MEMORY;
}

static int says_nothing(void *user_data, const char **text) {
    (void)user_data, (void)text;
    return LMSD_STATUS_OUT_OF_MEMORY;
}

/* As a host that has a buffer for many: all of them or none. */
static int host_alloc_many(void *user_data, const void *like, size_t count, void **outs) {
    const struct matrix *m = like;
    if (fails(user_data)) return 55;
    for (size_t i = 0; i < count; i++) {
        outs[i] = matrix_new(m->rows, m->columns);
        ((struct framework *)user_data)->live++, ((struct framework *)user_data)->made++;
    }
    return 0;
}

/* Forgets the last one. */
static int alloc_one_less(void *user_data, const void *like, size_t count, void **outs) {
    return host_alloc_many(user_data, like, count - 1, outs);
}

static int alloc_nothing(void *user_data, const void *like, void **out) {
    (void)user_data, (void)like, (void)out;
    return 0;
}

/* As a host that looks for itself whether predictions are finite. */
static int host_not_finite(void *user_data, const void *tensor, size_t *trajectory) {
    const struct matrix *m = tensor;
    size_t first = m->rows;
    if (fails(user_data)) return 56;
    for (size_t i = m->rows * m->columns; i-- > 0;)
        if (!isfinite(m->data[i])) first = i / m->columns;
    *trajectory = first;
    return 0;
}

static size_t batch_of_none(void *user_data, const void *tensor) {
    (void)user_data, (void)tensor;
    return 0;
}

static size_t batch_of_all(void *user_data, const void *tensor) {
    (void)user_data, (void)tensor;
    return SIZE_MAX / 8;
}

static void test_host(void) {
    lmsd_schedule *s = solve("{\"solver\": \"dpmpp_3m\", \"nfe\": 6}");
    struct framework f = {0, 0, 0, SIZE_MAX, run_of(s)};
    lmsd_host host = host_of(&f), bad;
    struct matrix *x = matrix_new(BATCH, 3), *out = matrix_new(BATCH, 3), *work = matrix_new(BATCH, 3);
    double expected[SIZE], kept[SIZE];
    fill_normal(x->data, SIZE, 9, 80);
    memcpy(expected, x->data, sizeof expected);
    reference(s, expected, SIZE);

    /* The run form, and how many operations it makes. */
    OK(lmsd_sample(s, &host, x, host_model, NULL, &f, out));
    double worst = 0;
    for (size_t i = 0; i < SIZE; i++) worst = fmax(worst, fabs(out->data[i] - expected[i]));
    CHECK(worst < 1e-13);
    CHECK(f.live == 0 && f.made > 0 && f.made < 9); /* three predictions, two states, and what is in work */
    memcpy(expected, out->data, sizeof expected);

    /* Whichever operation fails, the call says so, frees everything and leaves the output alone. */
    size_t operations = f.operations;
    fill_normal(kept, SIZE, 10, 1);
    memcpy(out->data, kept, sizeof kept);
    for (size_t at = 0; at < operations; at++) {
        f.operations = 0, f.fail_at = at;
        REFUSED(lmsd_sample(s, &host, x, host_model, NULL, &f, out), STOPPED, "of the host returned 5");
        CHECK(f.live == 0 && memcmp(out->data, kept, sizeof kept) == 0);
    }

    /* The step form, with one failure anywhere: the call that failed is made again. */
    for (size_t at = 0; at <= operations; at++) {
        lmsd_sampler *sampler = NULL;
        size_t failures = 0;
        f.operations = 0, f.fail_at = at;
        while (lmsd_sampler_new(s, &host, x, &sampler) != LMSD_STATUS_OK) failures++;
        while (lmsd_sampler_index(sampler) < 6 && failures < 2) {
            double sigma;
            while (lmsd_sampler_next(sampler, &sigma, work) != LMSD_STATUS_OK) failures++;
            host_model(&f, AT(sigma), work, out);
            while (lmsd_sampler_step(sampler, out) != LMSD_STATUS_OK && failures < 2) failures++;
        }
        while (lmsd_sampler_result(sampler, out) != LMSD_STATUS_OK) failures++;
        CHECK(failures <= 1 && memcmp(out->data, expected, sizeof expected) == 0);
        lmsd_sampler_free(sampler);
        CHECK(f.live == 0);
    }
    f.fail_at = SIZE_MAX;

    /* The library's operations go to the host as well. */
    const void *terms[] = {x, out};
    const double factors[] = {1, -1};
    double gram[BATCH * 4];
    OK(lmsd_lincomb(&host, 2, factors, terms, work));
    CHECK(work->data[5] == x->data[5] - out->data[5]);
    OK(lmsd_gram(&host, 2, terms, COUNT(gram), gram));
    CHECK(gram[1] == gram[2] && gram[0] > gram[3]);
    REFUSED(lmsd_gram(&host, 2, terms, 4, gram), INVALID_ARGUMENT, "length is 4");
    bad = host, bad.lincomb = fails_at_0;
    REFUSED(lmsd_lincomb(&bad, 2, factors, terms, work), STOPPED, "lincomb of the host returned 1");

    /* A host may say why; one that does not know of this ends as before, whatever lies behind it. */
    bad.error = says_memory;
    REFUSED(lmsd_lincomb(&bad, 2, factors, terms, work), OUT_OF_MEMORY, "the device is full");
    bad.error = says_nothing;
    REFUSED(lmsd_lincomb(&bad, 2, factors, terms, work), STOPPED, "lincomb of the host returned 1");
    bad.struct_size = offsetof(lmsd_host, error);
    memset(&bad.error, 0x5a, sizeof bad.error);
    REFUSED(lmsd_lincomb(&bad, 2, factors, terms, work), STOPPED, "lincomb of the host returned 1");

    /* A host may make many tensors at once; the same for one that does not know of this. */
    bad = host, bad.struct_size = offsetof(lmsd_host, alloc_many);
    memset(&bad.alloc_many, 0x5a, sizeof bad.alloc_many);
    f.operations = 0, f.run = run_of(s);
    OK(lmsd_sample(s, &bad, x, host_model, NULL, &f, out));
    CHECK(memcmp(out->data, expected, sizeof expected) == 0);
    size_t one_by_one = f.operations;
    bad = host, bad.alloc_many = host_alloc_many, f.operations = 0, f.run = run_of(s);
    OK(lmsd_sample(s, &bad, x, host_model, NULL, &f, out));
    CHECK(memcmp(out->data, expected, sizeof expected) == 0 && f.live == 0 && f.operations < one_by_one);
    size_t together = f.operations;
    memcpy(out->data, kept, sizeof kept);
    for (size_t at = 0; at < together; at++) {
        f.operations = 0, f.fail_at = at;
        REFUSED(lmsd_sample(s, &bad, x, host_model, NULL, &f, out), STOPPED, "of the host returned 5");
        CHECK(f.live == 0 && memcmp(out->data, kept, sizeof kept) == 0);
    }
    f.fail_at = SIZE_MAX;

    /* A host may look itself whether a prediction is finite. */
    char last_row[40];
    snprintf(last_row, sizeof last_row, "trajectory %d, is not finite", BATCH - 1);
    bad = host, bad.not_finite = host_not_finite, f.operations = 0, f.run = run_of(s);
    OK(lmsd_sample(s, &bad, x, host_model, NULL, &f, out));
    CHECK(memcmp(out->data, expected, sizeof expected) == 0 && f.operations == operations);
    f.run = run_of(s), f.run.nan_at = 2;
    REFUSED(lmsd_sample(s, &bad, x, host_model, NULL, &f, out), NON_FINITE, last_row);
    f.run = run_of(s), f.run.nan_at = 2;
    REFUSED(lmsd_sample(s, &host, x, host_model, NULL, &f, out), NON_FINITE, last_row);
    f.operations = 0, f.fail_at = operations - 2, f.run = run_of(s);
    REFUSED(lmsd_sample(s, &bad, x, host_model, NULL, &f, out), STOPPED, "of the host returned 5");
    f.fail_at = SIZE_MAX, memcpy(out->data, kept, sizeof kept);

    bad = host, bad.alloc_many = alloc_one_less;
    REFUSED(lmsd_sample(s, &bad, x, host_model, NULL, &f, out), INVALID_ARGUMENT, "alloc_many of the host");
    CHECK(f.live == 0);

    f.run = run_of(s), f.run.stop_model_at = 3;
    REFUSED(lmsd_sample(s, &host, x, host_model, NULL, &f, out), STOPPED, "54");
    CHECK(f.live == 0);
    f.run = run_of(s);

#define BAD_HOST(change, says) \
    bad = host, change;        \
    REFUSED(lmsd_sample(s, &bad, x, host_model, NULL, &f, out), INVALID_ARGUMENT, says)
    BAD_HOST(bad.struct_size = 0, "struct_size of lmsd_host is 0");
    BAD_HOST(bad.struct_size--, "sizeof(lmsd_host)");
    BAD_HOST(bad.struct_size = SIZE_MAX, "sizeof(lmsd_host)");
    BAD_HOST(bad.struct_size = offsetof(lmsd_host, batch), "sizeof(lmsd_host)"); /* no version ended there */
    BAD_HOST(bad.alloc = NULL, "host->alloc is NULL");
    BAD_HOST(bad.release = NULL, "host->release is NULL");
    BAD_HOST(bad.lincomb = NULL, "host->lincomb is NULL");
    BAD_HOST(bad.gram = NULL, "host->gram is NULL");
    BAD_HOST(bad.batch = NULL, "host->batch is NULL");
    BAD_HOST(bad.alloc = alloc_nothing, "alloc of the host");
    CHECK(f.run.calls == 0);
    BAD_HOST(bad.batch = batch_of_none, "batch of the host returned 0");
    BAD_HOST(bad.batch = batch_of_all, "batch of the host returned");
    CHECK(f.live == 0);

    /* One of a later version is taken where it asks for nothing that this one does not know. */
    struct {
        lmsd_host host;
        void (*later)(void);
    } newer = {host, NULL};
    newer.host.struct_size = sizeof newer, f.run = run_of(s);
    OK(lmsd_sample(s, &newer.host, x, host_model, NULL, &f, out));
    CHECK(memcmp(out->data, expected, sizeof expected) == 0);
    newer.later = abort;
    REFUSED(lmsd_sample(s, &newer.host, x, host_model, NULL, &f, out), INVALID_ARGUMENT, "values beyond");

    matrix_free(x), matrix_free(out), matrix_free(work);
    lmsd_schedule_free(s);
}

/* Two runs at once, by turns, of tensors of two shapes, with one lmsd_host. */
static void test_host_of_two_shapes(void) {
    lmsd_schedule *s = solve("{\"solver\": \"dpmpp_2m\", \"nfe\": 4}");
    struct framework f = {0, 0, 0, SIZE_MAX, run_of(s)};
    lmsd_host host = host_of(&f);
    struct matrix *x[2], *out[2];
    lmsd_sampler *samplers[2] = {NULL, NULL};
    double expected[2][40];
    for (size_t i = 0; i < 2; i++) {
        size_t rows = i == 0 ? 3 : 8, columns = i == 0 ? 2 : 5, count = rows * columns;
        x[i] = matrix_new(rows, columns), out[i] = matrix_new(rows, columns);
        fill_normal(x[i]->data, count, 20 + i, 80);
        memcpy(expected[i], x[i]->data, count * sizeof(double));
        reference(s, expected[i], count);
        OK(lmsd_sampler_new(s, &host, x[i], &samplers[i]));
    }
    for (size_t n = 0; n < 4; n++) {
        for (size_t i = 0; i < 2; i++) {
            double sigma;
            OK(lmsd_sampler_next(samplers[i], &sigma, x[i]));
            host_model(&f, AT(sigma), x[i], out[i]);
            OK(lmsd_sampler_step(samplers[i], out[i]));
        }
    }
    for (size_t i = 0; i < 2; i++) {
        double worst = 0;
        OK(lmsd_sampler_result(samplers[i], out[i]));
        for (size_t j = 0; j < out[i]->rows * out[i]->columns; j++) {
            worst = fmax(worst, fabs(out[i]->data[j] - expected[i][j]));
        }
        CHECK(worst < 1e-13);
        lmsd_sampler_free(samplers[i]);
        matrix_free(x[i]), matrix_free(out[i]);
    }
    CHECK(f.live == 0);
    lmsd_schedule_free(s);
}

/* ------------------------------------------------------------------ distillation */

/* The host's side of a distillation, of the built-in tensors or of matrices. */
struct work {
    struct framework framework; /* first: the host's functions get it by the same pointer */
    bool matrices;
    size_t calls, begun;
    size_t stop_begin_at, stop_model_at, nan_at, stop_progress_at;
    uint64_t last_calls, lowest_batch, highest_batch;
    size_t progressed, purposes[LMSD_PURPOSE_CHECK + 1];
    lmsd_purpose purpose; /* of the last call */
    size_t odd_rows, odd_columns; /* of matrices of odd batches, where not 0 */
    size_t feature_rows, featured, stop_features_at; /* rows of features, those asked for so far */
    double features[5 * BATCH];
    lmsd_tensor feature_tensor;
    int64_t feature_shape[2];
    lmsd_progress last;
    bool wrong;
};

static struct work work_of(bool matrices) {
    struct work w = {0};
    w.framework.fail_at = SIZE_MAX;
    w.framework.run = run_of(NULL);
    w.matrices = matrices;
    w.stop_begin_at = w.stop_model_at = w.nan_at = w.stop_progress_at = w.stop_features_at = SIZE_MAX;
    w.feature_rows = BATCH;
    w.lowest_batch = UINT64_MAX;
    return w;
}

static int work_begin(void *user_data, uint64_t batch, void *x_t) {
    struct work *w = user_data;
    if (w->begun++ == w->stop_begin_at) return 61;
    if (batch < w->lowest_batch) w->lowest_batch = batch;
    if (batch > w->highest_batch) w->highest_batch = batch;
    double *x = w->matrices ? ((struct matrix *)x_t)->data : ((lmsd_tensor *)x_t)->data;
    size_t size = SIZE;
    if (w->odd_rows != 0 && batch % 2 == 1) {
        struct matrix *m = x_t;
        m->rows = w->odd_rows, m->columns = w->odd_columns, size = m->rows * m->columns;
        m->data = x = realloc(m->data, size * sizeof(double));
    }
    fill_normal(x, size, 1000 + 7919 * batch, 10);
    return 0;
}

static int work_model(void *user_data, const lmsd_call *at, const void *x, void *denoised) {
    struct work *w = user_data;
    double sigma = at->sigma;
    size_t size = w->matrices ? ((const struct matrix *)x)->rows * ((const struct matrix *)x)->columns : SIZE;
    w->wrong |= at->struct_size != sizeof *at || at->purpose < 0 || at->purpose > LMSD_PURPOSE_CHECK;
    w->wrong |= at->purpose == LMSD_PURPOSE_CHECK ? at->node != 0 || at->nfe != 0 : at->node >= at->nfe;
    w->wrong |= at->purpose >= LMSD_PURPOSE_RANKING && at->purpose <= LMSD_PURPOSE_COMPARE && at->nfe != 3;
    w->purpose = at->purpose, w->purposes[at->purpose]++;
    const double *in = w->matrices ? ((const struct matrix *)x)->data : ((const lmsd_tensor *)x)->data;
    double *out = w->matrices ? ((struct matrix *)denoised)->data : ((lmsd_tensor *)denoised)->data;
    size_t call = w->calls++;
    if (!pthread_equal(w->framework.run.thread, pthread_self()) || !(sigma > 0)) w->wrong = true;
    if (call == w->stop_model_at) return 62;
    for (size_t i = 0; i < size; i++) out[i] = denoise(in[i], sigma);
    if (call >= w->nan_at) out[0] = NAN;
    return 0;
}

static int work_progress(void *user_data, const lmsd_progress *p) {
    struct work *w = user_data;
    w->wrong |= p->struct_size != sizeof *p || p->calls < w->last_calls;
    w->wrong |= isnan(p->distance) || isnan(p->handcrafted) || isnan(p->seconds_left);
    if (p->phase != LMSD_PHASE_PLAN) {
        static const lmsd_phase phases[] = {
            [LMSD_PURPOSE_TEACHER] = LMSD_PHASE_TEACHER, [LMSD_PURPOSE_CHECK] = LMSD_PHASE_TEACHER,
            [LMSD_PURPOSE_RANKING] = LMSD_PHASE_RANK,    [LMSD_PURPOSE_FIT] = LMSD_PHASE_FIT,
            [LMSD_PURPOSE_COMPARE] = LMSD_PHASE_COMPARE};
        w->wrong |= w->purpose == LMSD_PURPOSE_SAMPLE || p->phase != phases[w->purpose];
    }
    w->last_calls = p->calls;
    w->last = *p;
    return w->progressed++ >= w->stop_progress_at ? 63 : 0;
}

/* Of each row of 3 a row of 5: its numbers doubled, and two zeros. Distances between such are doubled. */
static int work_features(void *user_data, const void *x, void **features) {
    struct work *w = user_data;
    const double *in = w->matrices ? ((const struct matrix *)x)->data : ((const lmsd_tensor *)x)->data;
    double *out = w->features;
    if (w->featured++ == w->stop_features_at) return 64;
    if (w->matrices) {
        struct matrix *m = matrix_new(w->feature_rows, 5);
        w->framework.live++, w->framework.made++;
        out = m->data, *features = m;
    } else {
        w->feature_tensor = f64(out), w->feature_tensor.shape = w->feature_shape;
        w->feature_shape[0] = (int64_t)w->feature_rows, w->feature_shape[1] = 5;
        *features = &w->feature_tensor;
    }
    for (size_t b = 0; b < w->feature_rows; b++) {
        for (size_t i = 0; i < 5; i++) out[5 * b + i] = i < 3 ? 2 * in[3 * b + i] : 0;
    }
    return 0;
}

static int no_features(void *user_data, const void *x, void **features) {
    (void)user_data, (void)x, (void)features;
    return 0;
}

static lmsd_problem problem_of(struct work *w, const void *like) {
    lmsd_problem p = {.struct_size = sizeof p, .user_data = w, .like = like, .begin = work_begin,
                      .model = work_model, .progress = work_progress};
    return p;
}

#define DISTIL                                                                                            \
    "\"trajectories\": 32, \"held_out\": 32, \"teacher_nfe\": 24, \"iterations\": 6, \"sigma_max\": 10, " \
    "\"sigma_min\": 0.05, \"sigma_end\": 0.05"

/* The nodes of a schedule as text; how it was made (which has a time in it) is not among them. */
static void nodes_text(const lmsd_schedule *s, char *text, size_t room) {
    lmsd_node node = {.struct_size = sizeof node};
    size_t used = 0;
    for (size_t n = 0; n < lmsd_schedule_nfe(s); n++) {
        OK(lmsd_schedule_node(s, n, &node));
        used += (size_t)snprintf(text + used, room - used, "%a %a:", node.sigma, node.scale);
        for (size_t j = 0; j < node.weight_count; j++) {
            used += (size_t)snprintf(text + used, room - used, " %a", node.weights[j]);
        }
        used += (size_t)snprintf(text + used, room - used, "\n");
    }
}

/* Distances in features of another shape, with both kinds of tensors. */
static void test_features(void) {
    const char *options = "{\"nfe\": 3, " DISTIL "}", *mixed = "{\"feature_weight\": 0.5, " DISTIL "}";
    double data[SIZE] = {0};
    lmsd_tensor like = f64(data);
    struct matrix *like_matrix = matrix_new(BATCH, 3);
    for (int hosted = 0; hosted < 2; hosted++) {
        struct work w = work_of(hosted);
        lmsd_host host = host_of(&w.framework);
        const lmsd_host *of = hosted ? &host : NULL;
        lmsd_problem problem = problem_of(&w, hosted ? (const void *)like_matrix : &like);
        lmsd_distilled *made[2] = {NULL, NULL}, *none = NULL;
        lmsd_schedule *found[2] = {NULL, NULL};
        for (int i = 0; i < 2; i++) {
            problem.features = i ? work_features : NULL;
            OK(lmsd_distill(options, of, &problem, &made[i]));
            OK(lmsd_distilled_schedule(made[i], 0, &found[i]));
            lmsd_distilled_free(made[i]);
            w.last_calls = 0;
        }
        CHECK(w.featured > 0 && w.framework.live == 0 && !w.wrong);
        const lmsd_schedule *compared[] = {found[0], found[1]};
        double plain[2], featured[2], mix[2];
        OK(lmsd_compare(options, of, &problem, 2, compared, featured));
        OK(lmsd_compare(mixed, of, &problem, 2, compared, mix));
        problem.features = NULL;
        OK(lmsd_compare(options, of, &problem, 2, compared, plain));
        problem.features = work_features;
        for (int i = 0; i < 2; i++) CHECK(plain[i] > 0 && fabs(featured[i] / plain[i] - 2) < 1e-9);
        CHECK(fabs(plain[1] / plain[0] - 1) < 0.02); /* the same fit */
        CHECK(fabs(mix[1] / mix[0] - plain[1] / plain[0]) < 1e-9 && w.framework.live == 0);

        w = work_of(hosted), w.feature_rows = BATCH - 1;
        REFUSED(lmsd_distill(options, of, &problem, &none), INVALID_TENSOR, "features gave 3 trajectories for the 4 of x");
        w = work_of(hosted), w.stop_features_at = 40;
        REFUSED(lmsd_distill(options, of, &problem, &none), STOPPED, "the features callback returned 64");
        problem.features = no_features;
        REFUSED(lmsd_distill(options, of, &problem, &none), INVALID_ARGUMENT, "what features wrote is NULL");
        problem.features = NULL;
        REFUSED(lmsd_distill(mixed, of, &problem, &none), INVALID_ARGUMENT, "feature_weight is 0.5");
        REFUSED(lmsd_compare(mixed, of, &problem, 2, compared, mix), INVALID_ARGUMENT, "feature_weight is 0.5");
        CHECK(w.framework.live == 0 && none == NULL);
        for (int i = 0; i < 2; i++) lmsd_schedule_free(found[i]);
    }
    matrix_free(like_matrix);
}

static void test_distill(const char *folder) {
    double data[SIZE] = {0};
    lmsd_tensor like = f64(data);
    struct work w = work_of(false);
    lmsd_problem problem = problem_of(&w, &like);
    lmsd_distilled *made = NULL;
    lmsd_schedule *s = NULL;
    char *report = NULL, first[4000], other[4000];

    OK(lmsd_distill("{\"nfe\": 3, " DISTIL "}", NULL, &problem, &made));
    CHECK(!w.wrong && w.progressed > 0 && w.last.calls == w.calls && w.last.nfe == 3);
    CHECK(w.lowest_batch == 0 && w.highest_batch == (1 << 20) + 7);
    CHECK(w.last.distance > 0 && w.last.distance <= w.last.handcrafted && isfinite(w.last.handcrafted));
    CHECK(lmsd_distilled_count(made) == 1);
    OK(lmsd_distilled_schedule(made, 0, &s));
    CHECK(lmsd_schedule_nfe(s) == 3 && lmsd_schedule_sigma_start(s) == 10 &&
          lmsd_schedule_sigma_end(s) == 0.05);
    nodes_text(s, first, sizeof first);
    OK(lmsd_distilled_report(made, &report));
    CHECK(strstr(report, "\"improved\": true") && strstr(report, "\"model_calls\"") &&
          strstr(report, "\"trace\""));
    lmsd_string_free(report);
    size_t all_calls = w.calls;
    CHECK(w.purposes[LMSD_PURPOSE_CHECK] == 7 && w.purposes[LMSD_PURPOSE_TEACHER] > 24);
    CHECK(w.purposes[LMSD_PURPOSE_RANKING] > 0 && w.purposes[LMSD_PURPOSE_FIT] > 0);
    CHECK(w.purposes[LMSD_PURPOSE_SAMPLE] == 0 && w.purposes[LMSD_PURPOSE_COMPARE] == 0);

    /* It beats the handcrafted solvers on trajectories that it never saw. */
    lmsd_schedule *euler =
        solve("{\"solver\": \"euler\", \"nfe\": 3, \"sigma_max\": 10, \"sigma_end\": 0.05}");
    lmsd_schedule *two_m =
        solve("{\"solver\": \"dpmpp_2m\", \"nfe\": 3, \"sigma_max\": 10, \"sigma_end\": 0.05}");
    const lmsd_schedule *compared[] = {s, euler, two_m};
    double distances[3] = {-1, -1, -1};
    w = work_of(false);
    OK(lmsd_compare("{\"nfe\": 3, " DISTIL "}", NULL, &problem, 3, compared, distances));
    CHECK(distances[0] > 0 && distances[0] < distances[1] && distances[0] < distances[2]);
    CHECK(w.lowest_batch == 1 << 21 && !w.wrong);
    CHECK(w.purposes[LMSD_PURPOSE_COMPARE] == 3 * 3 * (32 / BATCH) &&
          w.purposes[LMSD_PURPOSE_TEACHER] == 24 * (32 / BATCH));
    CHECK(w.calls == w.purposes[LMSD_PURPOSE_COMPARE] + w.purposes[LMSD_PURPOSE_TEACHER]);

    /* On the host's own tensors the same is found, to rounding. */
    struct matrix *like_matrix = matrix_new(BATCH, 3);
    double on_host[3];
    w = work_of(true);
    lmsd_host host = host_of(&w.framework);
    problem.like = like_matrix;
    OK(lmsd_compare("{\"nfe\": 3, " DISTIL "}", &host, &problem, 3, compared, on_host));
    for (size_t i = 0; i < 3; i++) CHECK(fabs(on_host[i] - distances[i]) < 1e-10);
    CHECK(w.framework.live == 0 && w.framework.made > 0);
    lmsd_distilled *hosted = NULL;
    size_t before = w.framework.operations;
    OK(lmsd_distill("{\"nfe\": 3, " DISTIL "}", &host, &problem, &hosted));
    CHECK(w.framework.live == 0 && lmsd_distilled_count(hosted) == 1 &&
          w.last.distance <= w.last.handcrafted);
    lmsd_distilled_free(hosted);
    /* Wherever an operation fails, everything is released. */
    size_t operations = w.framework.operations - before;
    for (size_t at = 0; at < operations; at += at < 20 ? 1 : operations / 23) {
        w = work_of(true), w.framework.fail_at = at;
        hosted = NULL;
        REFUSED(lmsd_distill("{\"nfe\": 3, " DISTIL "}", &host, &problem, &hosted), STOPPED,
                "of the host returned 5");
        CHECK(w.framework.live == 0 && hosted == NULL);
    }
    /* Batches may differ in shape, but not in the number of their trajectories. */
    w = work_of(true), w.odd_rows = BATCH, w.odd_columns = 5, hosted = NULL;
    OK(lmsd_distill("{\"nfe\": 3, " DISTIL "}", &host, &problem, &hosted));
    CHECK(w.framework.live == 0 && !w.wrong && w.last.distance <= w.last.handcrafted);
    lmsd_distilled_free(hosted);
    w = work_of(true), w.odd_rows = BATCH - 1, w.odd_columns = 3, hosted = NULL;
    REFUSED(lmsd_distill("{\"nfe\": 3, " DISTIL "}", &host, &problem, &hosted), INVALID_TENSOR,
            "x_T of batch 1 has 3 trajectories");
    CHECK(w.framework.live == 0 && hosted == NULL);
    matrix_free(like_matrix);
    problem.like = &like;

    /* Refusals write nothing. */
    lmsd_distilled *none = NULL;
    const char *good = "{\"nfe\": 3, " DISTIL "}";
    w = work_of(false);
    REFUSED(lmsd_distilled_schedule(made, 1, &s), INVALID_ARGUMENT, "index is 1");
    REFUSED(lmsd_distilled_schedule(NULL, 0, &s), INVALID_ARGUMENT, "distilled is NULL");
    REFUSED(lmsd_distilled_schedule(made, 0, NULL), INVALID_ARGUMENT, "out is NULL");
    REFUSED(lmsd_distilled_report(NULL, &report), INVALID_ARGUMENT, "distilled is NULL");
    REFUSED(lmsd_distilled_report(made, NULL), INVALID_ARGUMENT, "out is NULL");
    REFUSED(lmsd_distill(NULL, NULL, &problem, &none), INVALID_ARGUMENT, "options is NULL");
    REFUSED(lmsd_distill(good, NULL, NULL, &none), INVALID_ARGUMENT, "problem is NULL");
    REFUSED(lmsd_distill(good, NULL, &problem, NULL), INVALID_ARGUMENT, "out is NULL");
    REFUSED(lmsd_distill("{", NULL, &problem, &none), INVALID_ARGUMENT, "EOF");
    REFUSED(lmsd_distill("{\"nef\": 3}", NULL, &problem, &none), INVALID_ARGUMENT, "nef");
    REFUSED(lmsd_distill("{\"nfe\": 0}", NULL, &problem, &none), INVALID_ARGUMENT, "nfe is 0");
    REFUSED(lmsd_distill("{\"nfe\": 3, \"nfe_from\": 4}", NULL, &problem, &none), INVALID_ARGUMENT,
            "nfe_from is 4");
    REFUSED(lmsd_distill("{\"sigma_max\": 1e400}", NULL, &problem, &none), INVALID_ARGUMENT, "out of range");
    REFUSED(lmsd_distill("{\"sigma_min\": -1}", NULL, &problem, &none), INVALID_ARGUMENT, "sigma_min is -1");
    REFUSED(lmsd_distill("{\"held_out\": 0}", NULL, &problem, &none), INVALID_ARGUMENT, "held_out is 0");
    REFUSED(lmsd_distill("{\"process\": \"flow\"}", NULL, &problem, &none), INVALID_ARGUMENT,
            "sigma_max is 80");
    REFUSED(lmsd_distill("{\"teacher\": \"headmaster\"}", NULL, &problem, &none), INVALID_ARGUMENT,
            "headmaster");
#define BAD_PROBLEM(change, status, says)                             \
    problem = problem_of(&w, &like), change;                          \
    REFUSED(lmsd_distill(good, NULL, &problem, &none), status, says); \
    REFUSED(lmsd_compare(good, NULL, &problem, 3, compared, distances), status, says)
    memset(distances, 0, sizeof distances);
    lmsd_tensor bad = like;
    bad.dtype.bits = 8;
    BAD_PROBLEM(problem.struct_size = 0, INVALID_ARGUMENT, "struct_size of lmsd_problem is 0");
    BAD_PROBLEM(problem.struct_size--, INVALID_ARGUMENT, "sizeof(lmsd_problem)");
    BAD_PROBLEM(problem.struct_size = offsetof(lmsd_problem, progress), INVALID_ARGUMENT, "sizeof(lmsd_problem)");
    BAD_PROBLEM(problem.ranks = 2, INVALID_ARGUMENT, "problem->sum is NULL");
    BAD_PROBLEM(problem.rank = 1, INVALID_ARGUMENT, "rank is 1");
    BAD_PROBLEM(problem.begin = NULL, INVALID_ARGUMENT, "problem->begin is NULL");
    BAD_PROBLEM(problem.model = NULL, INVALID_ARGUMENT, "problem->model is NULL");
    BAD_PROBLEM(problem.like = NULL, INVALID_ARGUMENT, "problem->like is NULL");
    BAD_PROBLEM(problem.like = &bad, INVALID_TENSOR, "problem->like");
    struct {
        lmsd_problem problem;
        size_t later;
    } newer = {problem_of(&w, &like), 1};
    newer.problem.struct_size = sizeof newer;
    REFUSED(lmsd_compare(good, NULL, &newer.problem, 3, compared, distances), INVALID_ARGUMENT, "values beyond");
    CHECK(w.calls == 0 && w.begun == 0); /* all of it before any work */
    newer.later = 0;
    OK(lmsd_compare(good, NULL, &newer.problem, 3, compared, distances));
    memset(distances, 0, sizeof distances);
    problem = problem_of(&w, &like);
    host.alloc = NULL;
    REFUSED(lmsd_distill(good, &host, &problem, &none), INVALID_ARGUMENT, "host->alloc");
    REFUSED(lmsd_compare(good, &host, &problem, 3, compared, distances), INVALID_ARGUMENT, "host->alloc");
    REFUSED(lmsd_compare(NULL, NULL, &problem, 3, compared, distances), INVALID_ARGUMENT, "options is NULL");
    REFUSED(lmsd_compare("{\"nef\": 3}", NULL, &problem, 3, compared, distances), INVALID_ARGUMENT, "nef");
    REFUSED(lmsd_compare(good, NULL, NULL, 3, compared, distances), INVALID_ARGUMENT, "problem is NULL");
    REFUSED(lmsd_compare(good, NULL, &problem, 0, compared, distances), INVALID_ARGUMENT, "count is 0");
    REFUSED(lmsd_compare(good, NULL, &problem, 3, NULL, distances), INVALID_ARGUMENT, "schedules is NULL");
    REFUSED(lmsd_compare(good, NULL, &problem, 3, compared, NULL), INVALID_ARGUMENT, "distances is NULL");
    compared[1] = NULL;
    REFUSED(lmsd_compare(good, NULL, &problem, 3, compared, distances), INVALID_ARGUMENT, "NULL");
    compared[1] = euler;

    /* The host stops it: begin, the model, a model that fails in the teacher's run. */
    w = work_of(false), w.stop_begin_at = 0;
    REFUSED(lmsd_distill(good, NULL, &problem, &none), STOPPED, "begin callback returned 61 at batch 0");
    REFUSED((w.begun = 0, lmsd_compare(good, NULL, &problem, 3, compared, distances)), STOPPED, "61");
    for (size_t at = 0; at < all_calls; at += 1 + all_calls / 11) {
        w = work_of(false), w.stop_model_at = at;
        REFUSED(lmsd_distill(good, NULL, &problem, &none), STOPPED, "model callback returned 62");
        CHECK(w.calls == at + 1);
    }
    w = work_of(false), w.stop_model_at = 30;
    REFUSED(lmsd_compare(good, NULL, &problem, 3, compared, distances), STOPPED, "62");
    w = work_of(false), w.nan_at = 0;
    REFUSED(lmsd_distill(good, NULL, &problem, &none), NON_FINITE, "not finite");
    REFUSED(lmsd_compare(good, NULL, &problem, 3, compared, distances), NON_FINITE, "not finite");
    CHECK(none == NULL && distances[0] == 0 && distances[1] == 0 && distances[2] == 0);

    /* Cancelled: before the first result nothing; later the best so far. */
    w = work_of(false), w.stop_progress_at = 0;
    REFUSED(lmsd_distill(good, NULL, &problem, &none), STOPPED, NULL);
    CHECK(none == NULL);
    w = work_of(false), w.stop_progress_at = all_calls - all_calls / 8;
    OK(lmsd_distill(good, NULL, &problem, &none));
    CHECK(lmsd_distilled_count(none) == 1 && w.calls < all_calls);
    OK(lmsd_distilled_report(none, &report));
    CHECK(strstr(report, "\"stopped\": \"cancelled\"") != NULL);
    lmsd_string_free(report);
    lmsd_distilled_free(none);
    none = NULL;

    /* Killed at two places and resumed from its checkpoint: the same schedule, in no more calls. */
    char options[1000];
    snprintf(options, sizeof options,
             "{\"nfe\": 3, " DISTIL ", \"seeds\": \"a\", \"checkpoint\": \"%s/distil\"}", folder);
    size_t resumed_calls = 0;
    for (size_t leg = 1; leg <= 2; leg++) {
        w = work_of(false), w.stop_model_at = all_calls / 3;
        REFUSED(lmsd_distill(options, NULL, &problem, &none), STOPPED, "62");
        resumed_calls += w.calls;
    }
    w = work_of(false);
    OK(lmsd_distill(options, NULL, &problem, &none));
    resumed_calls += w.calls;
    CHECK(resumed_calls >= all_calls && resumed_calls < all_calls + all_calls / 2);
    lmsd_schedule_free(s);
    OK(lmsd_distilled_schedule(none, 0, &s));
    nodes_text(s, other, sizeof other);
    CHECK(strcmp(first, other) == 0);
    lmsd_distilled_free(none);
    none = NULL;
    char *seeds = strstr(options, "\"a\"");
    seeds[1] = 'b';
    REFUSED(lmsd_distill(options, NULL, &problem, &none), MISMATCH, NULL);
    snprintf(options, sizeof options, "{\"nfe\": 3, " DISTIL ", \"checkpoint\": \"%s/no/folder\"}", folder);
    REFUSED(lmsd_distill(options, NULL, &problem, &none), IO, "no/folder");

    /* A family, without a progress callback. */
    w = work_of(false);
    problem.progress = NULL;
    OK(lmsd_distill("{\"nfe\": 4, \"nfe_from\": 2, " DISTIL "}", NULL, &problem, &none));
    CHECK(lmsd_distilled_count(none) == 3);
    for (size_t i = 0; i < 3; i++) {
        lmsd_schedule_free(s);
        OK(lmsd_distilled_schedule(none, i, &s));
        CHECK(lmsd_schedule_nfe(s) == 2 + i);
    }
    lmsd_distilled_free(none);

    lmsd_schedule_free(s), lmsd_schedule_free(euler), lmsd_schedule_free(two_m);
    lmsd_distilled_free(made);
}

/* ------------------------------------------------------------------ ranks */

/* Two ranks that are threads. A rank that leaves lets the other one's sums fail, as a time-out would. */
struct team {
    pthread_barrier_t barrier;
    double *met[2];
    atomic_bool left;
};

struct rank {
    struct work work; /* first: the host's functions get it by the same pointer */
    struct team *team;
    size_t rank, sums, leave_at;
    lmsd_status status;
    char nodes[4000], says[200];
};

static int team_sum(void *user_data, size_t count, double *values) {
    struct rank *own = user_data;
    if (own->sums++ == own->leave_at) own->team->left = true;
    own->team->met[own->rank] = values;
    pthread_barrier_wait(&own->team->barrier);
    if (own->team->left) return 64;
    const double *other = own->team->met[1 - own->rank];
    double *total = malloc(count * sizeof *total);
    for (size_t i = 0; i < count; i++) total[i] = values[i] + other[i];
    pthread_barrier_wait(&own->team->barrier);
    memcpy(values, total, count * sizeof *total);
    free(total);
    return 0;
}

static void *distil_on_a_rank(void *argument) {
    struct rank *own = argument;
    double data[SIZE] = {0};
    lmsd_tensor like = f64(data);
    lmsd_problem problem = problem_of(&own->work, &like);
    problem.rank = own->rank, problem.ranks = 2, problem.sum = team_sum;
    own->work.framework.run.thread = pthread_self();
    lmsd_distilled *made = NULL;
    own->status = lmsd_distill("{\"nfe\": 3, " DISTIL "}", NULL, &problem, &made);
    if (own->status == LMSD_STATUS_OK) {
        lmsd_schedule *s = NULL;
        if (lmsd_distilled_schedule(made, 0, &s) == LMSD_STATUS_OK) nodes_text(s, own->nodes, sizeof own->nodes);
        lmsd_schedule_free(s);
    } else {
        snprintf(own->says, sizeof own->says, "%s", lmsd_last_error());
    }
    lmsd_distilled_free(made);
    return NULL;
}

static void run_team(struct rank ranks[2], size_t leave_at, size_t fail_at) {
    struct team team = {.left = false};
    pthread_t threads[2];
    pthread_barrier_init(&team.barrier, NULL, 2);
    for (size_t i = 0; i < 2; i++) {
        ranks[i] = (struct rank){.work = work_of(false), .team = &team, .rank = i, .leave_at = SIZE_MAX};
    }
    ranks[1].leave_at = leave_at, ranks[1].work.stop_model_at = fail_at;
    for (size_t i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, distil_on_a_rank, &ranks[i]) == 0);
    for (size_t i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    pthread_barrier_destroy(&team.barrier);
}

static void test_ranks(void) {
    double data[SIZE] = {0};
    lmsd_tensor like = f64(data);
    struct work w = work_of(false);
    lmsd_problem problem = problem_of(&w, &like);
    problem.struct_size = offsetof(lmsd_problem, rank); /* a host that knows of no ranks */
    memset(&problem.rank, 0x5a, sizeof problem - offsetof(lmsd_problem, rank));
    lmsd_distilled *made = NULL;
    lmsd_schedule *s = NULL;
    char alone[4000];
    OK(lmsd_distill("{\"nfe\": 3, " DISTIL "}", NULL, &problem, &made));
    OK(lmsd_distilled_schedule(made, 0, &s));
    nodes_text(s, alone, sizeof alone);
    lmsd_schedule_free(s), lmsd_distilled_free(made);

    problem = problem_of(&w, &like);
    const size_t no_ranks[] = {(1 << 16) + 1, (size_t)1e12, (size_t)1 << 62, SIZE_MAX};
    for (size_t i = 0; i < COUNT(no_ranks); i++) {
        problem.ranks = no_ranks[i], problem.sum = team_sum;
        REFUSED(lmsd_distill("{}", NULL, &problem, &made), INVALID_ARGUMENT, "it must be 65536 at most");
    }

    static struct rank ranks[2];
    run_team(ranks, SIZE_MAX, SIZE_MAX);
    for (size_t i = 0; i < 2; i++) {
        CHECK(ranks[i].status == LMSD_STATUS_OK && strcmp(ranks[i].nodes, alone) == 0);
        CHECK(!ranks[i].work.wrong && ranks[i].work.calls < w.calls * 3 / 4);
    }
    CHECK(ranks[0].work.calls + ranks[1].work.calls == w.calls);
    run_team(ranks, 7, SIZE_MAX);
    for (size_t i = 0; i < 2; i++) {
        CHECK(ranks[i].status == LMSD_STATUS_STOPPED && strstr(ranks[i].says, "returned 64") != NULL);
    }
    run_team(ranks, SIZE_MAX, w.calls / 4);
    for (size_t i = 0; i < 2; i++) {
        CHECK(ranks[i].status == LMSD_STATUS_STOPPED && strstr(ranks[i].says, "returned 62") != NULL);
    }
}

/* ------------------------------------------------------------------ threads */

struct thread {
    int number;
    const lmsd_schedule *schedule; /* shared */
    double x[SIZE];
    size_t wrong;
};

static void *work_on_a_thread(void *argument) {
    struct thread *own = argument;
    char options[50], says[50];
    snprintf(options, sizeof options, "{\"nfe\": %d}", 2000 + own->number);
    snprintf(says, sizeof says, "nfe is %d", 2000 + own->number);
    own->wrong += lmsd_last_error()[0] != '\0';
    for (int i = 0; i < 200; i++) {
        lmsd_schedule *none = NULL;
        own->wrong += lmsd_schedule_solve(options, &none) != LMSD_STATUS_INVALID_ARGUMENT;
        double x[SIZE];
        lmsd_tensor t = f64(x);
        struct run run = run_of(own->schedule);
        fill_normal(x, SIZE, 11, 80);
        own->wrong += lmsd_sample(own->schedule, NULL, &t, model, observer, &run, &t) != LMSD_STATUS_OK;
        own->wrong += run.wrong || strstr(lmsd_last_error(), says) == NULL;
        memcpy(own->x, x, sizeof x);
    }
    return NULL;
}

/* A call that fails in the destructor of a thread's value, when the thread's last error may be gone. */
static void fail_late(void *failures) {
    lmsd_schedule *none = NULL;
    *(int *)failures += lmsd_schedule_solve("{\"nfe\": 0}", &none) == LMSD_STATUS_INVALID_ARGUMENT;
    *(int *)failures += lmsd_last_error() != NULL;
}

static pthread_key_t late;

static void *end_with_a_failure(void *failures) {
    lmsd_schedule *none = NULL;
    *(int *)failures += lmsd_schedule_solve("{\"nfe\": 0}", &none) == LMSD_STATUS_INVALID_ARGUMENT;
    pthread_setspecific(late, failures);
    return NULL;
}

static void test_threads(void) {
    enum { THREADS = 4 };
    struct thread threads[THREADS] = {0};
    pthread_t handles[THREADS];
    lmsd_schedule *s = solve("{\"nfe\": 6}"), *none = NULL;
    REFUSED(lmsd_schedule_solve("{\"nfe\": 0}", &none), INVALID_ARGUMENT, "nfe is 0");
    for (int i = 0; i < THREADS; i++) {
        threads[i].number = i, threads[i].schedule = s;
        CHECK(pthread_create(&handles[i], NULL, work_on_a_thread, &threads[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(handles[i], NULL) == 0);
        CHECK(threads[i].wrong == 0);
        CHECK(memcmp(threads[i].x, threads[0].x, sizeof threads[0].x) == 0);
    }
    CHECK(strstr(lmsd_last_error(), "nfe is 0") != NULL); /* this thread's own */

    int failures = 0;
    CHECK(pthread_key_create(&late, fail_late) == 0);
    CHECK(pthread_create(&handles[0], NULL, end_with_a_failure, &failures) == 0);
    CHECK(pthread_join(handles[0], NULL) == 0);
    CHECK(failures == 3);
    pthread_key_delete(late);
    lmsd_schedule_free(s);
}

int main(void) {
    char folder[400], path[500];
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/lmsd-abi-XXXXXX", base != NULL ? base : "/tmp");
    if (!make_own_folder(folder)) {
        perror(folder);
        return 1;
    }
    snprintf(path, sizeof path, "%s/schedule.json", folder);
    test_library();
    test_schedule(path);
    test_solvers();
    test_rivals();
    test_start_at();
    test_made_for();
    test_bad_files(folder);
    test_paths(folder);
    test_tensors();
    test_sample();
    test_sample_refusals();
    test_sampler_refusals();
    test_host();
    test_host_of_two_shapes();
    test_threads();
    test_distill(folder);
    test_features();
    test_ranks();

    unlink(path);
    snprintf(path, sizeof path, "%s/distil", folder);
    unlink(path);
    CHECK(rmdir(folder) == 0); /* no temporary file was left behind */
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
