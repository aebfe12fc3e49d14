/* What the library itself costs beside a model that takes 50 ms a call.
 *
 *     make bench-overhead
 *
 * Distills 5 NFE for latents [16, 4, 64, 64] in float32 on the built-in CPU backend with every sigma, scale
 * and weight free. The data is analytic: each channel has two modes and a variance of its own, and its exact
 * denoiser is padded to 50 ms by sleeping. At most a tenth of the time may pass outside the host's callbacks
 * (PASS, exit code 0). A second, shorter run with a model that does not sleep, on a host that hands the
 * operations on tensors back to the library, shows what that time is spent on. */

#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lmsd.h"

enum { BATCH = 16, CHANNELS = 4, SIDE = 64, PIXELS = SIDE * SIDE, VALUES = BATCH * CHANNELS * PIXELS };

static const double MODEL_SECONDS = 0.05, MOST_OUTSIDE = 0.1, SIGMA_MAX = 80;
static const int64_t SHAPE[] = {BATCH, CHANNELS, SIDE, SIDE};

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void sleep_until(double when) {
    struct timespec at = {(time_t)when, (long)(1e9 * (when - floor(when)))};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) {
    }
}

static lmsd_tensor describe(float *data) {
    return (lmsd_tensor){.data = data,
                         .device = {LMSD_DEVICE_CPU, 0},
                         .ndim = 4,
                         .dtype = {LMSD_DTYPE_FLOAT, 32, 1},
                         .shape = SHAPE};
}

/* The host: what its callbacks count, and how long a model call takes. */
typedef struct host {
    double model_seconds;        /* of one call */
    double inside;               /* seconds in model and noise */
    double lincomb, gram, alloc; /* seconds in operations on tensors, second run only */
    unsigned long calls, lincombs, grams;
} host;

/* Normal noise at sigma_max by Box and Muller from splitmix64, the same for the same batch. */
static int begin(void *user_data, uint64_t batch, void *x_t) {
    host *me = user_data;
    double start = seconds();
    float *x = ((lmsd_tensor *)x_t)->data;
    uint64_t state = batch * 0x632be59bd9b4e019u + 1;
    double uniform[2];
    for (int i = 0; i < VALUES; i++) {
        for (int k = 0; k < 2; k++) {
            uint64_t z = state += 0x9e3779b97f4a7c15u;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
            uniform[k] = (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
        }
        x[i] = (float)(SIGMA_MAX * sqrt(-2 * log(1 - uniform[0])) * cos(6.283185307179586 * uniform[1]));
    }
    me->inside += seconds() - start;
    return 0;
}

/* The exact prediction where values of channel c are 1 or -1, evenly, with variance 0.1 / (c + 1). */
static int model(void *user_data, const lmsd_call *call, const void *x, void *denoised) {
    host *me = user_data;
    double start = seconds();
    const float *in = ((const lmsd_tensor *)x)->data;
    float *out = ((lmsd_tensor *)denoised)->data;
    for (int row = 0; row < BATCH * CHANNELS; row++, in += PIXELS, out += PIXELS) {
        double own = 0.1 / (row % CHANNELS + 1), all = own + call->sigma * call->sigma;
        float keep = (float)(own / all), sharp = (float)(1 / all);
        for (int i = 0; i < PIXELS; i++) out[i] = keep * in[i] + (1 - keep) * tanhf(sharp * in[i]);
    }
    sleep_until(start + me->model_seconds);
    me->inside += seconds() - start;
    me->calls++;
    return 0;
}

/* ------------------------------------- a host that times the library's own operations on its tensors */

static int alloc(void *user_data, const void *like, void **out) {
    host *me = user_data;
    double start = seconds();
    lmsd_tensor *tensor = malloc(sizeof *tensor);
    float *data = malloc(sizeof(float) * VALUES);
    (void)like;
    if (tensor == NULL || data == NULL) {
        free(tensor);
        free(data);
        return 1;
    }
    *tensor = describe(data);
    *out = tensor;
    me->alloc += seconds() - start;
    return 0;
}

static void release(void *user_data, void *tensor) {
    host *me = user_data;
    double start = seconds();
    free(((lmsd_tensor *)tensor)->data);
    free(tensor);
    me->alloc += seconds() - start;
}

static int lincomb(void *user_data, void *out, size_t count, const double *factors,
                   const void *const *terms) {
    host *me = user_data;
    double start = seconds();
    lmsd_status status = lmsd_lincomb(NULL, count, factors, terms, out);
    me->lincomb += seconds() - start;
    me->lincombs++;
    return status != LMSD_STATUS_OK;
}

static int gram(void *user_data, size_t count, const void *const *columns, double *out) {
    host *me = user_data;
    double start = seconds();
    lmsd_status status = lmsd_gram(NULL, count, columns, BATCH * count * count, out);
    me->gram += seconds() - start;
    me->grams++;
    return status != LMSD_STATUS_OK;
}

static size_t batch(void *user_data, const void *tensor) {
    (void)user_data;
    (void)tensor;
    return BATCH;
}

/* ------------------------------------------------------------------------------------------------ runs */

/* The number after "key": in a flat part of a report. */
static double number(const char *report, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(report, quoted);
    return at == NULL ? NAN : strtod(at + strlen(quoted), NULL);
}

/* Distills with at most `calls` batch calls; returns its report, or exits. */
static char *distill(host *me, const lmsd_host *tensors, int calls) {
    float like_data = 0; /* never read */
    lmsd_tensor like = describe(&like_data);
    lmsd_problem problem = {
        .struct_size = sizeof problem, .user_data = me, .like = &like, .begin = begin, .model = model};
    char options[256];
    snprintf(options, sizeof options,
             "{\"nfe\": 5, \"trajectories\": %d, \"held_out\": %d, \"max_calls\": %d, \"sigma_end\": 0.002}",
             BATCH, BATCH, calls);
    lmsd_distilled *distilled = NULL;
    char *report = NULL;
    if (lmsd_distill(options, tensors, &problem, &distilled) != LMSD_STATUS_OK ||
        lmsd_distilled_report(distilled, &report) != LMSD_STATUS_OK) {
        fprintf(stderr, "%s\n", lmsd_last_error());
        exit(2);
    }
    lmsd_distilled_free(distilled);
    return report;
}

int main(void) {
    printf("distilling 5 NFE for latents [%d, %d, %d, %d], float32, by a model of %.0f ms a call\n", BATCH,
           CHANNELS, SIDE, SIDE, 1e3 * MODEL_SECONDS);
    host slow = {.model_seconds = MODEL_SECONDS};
    char *report = distill(&slow, NULL, 2400);
    double all = number(report, "seconds"), reported = number(report, "callback_seconds");
    double outside = 1 - reported / all;
    printf("%lu calls, the teacher's %.0f among them: %.1f s, of which %.1f s in callbacks (%.1f s by their "
           "own clock)\n",
           slow.calls, number(report, "teacher_calls"), all, reported, slow.inside);
    lmsd_string_free(report);

    host fast = {0};
    lmsd_host tensors = {.struct_size = sizeof tensors,
                         .user_data = &fast,
                         .alloc = alloc,
                         .release = release,
                         .lincomb = lincomb,
                         .gram = gram,
                         .batch = batch};
    report = distill(&fast, &tensors, 600);
    double own = number(report, "seconds") - fast.inside;
    lmsd_string_free(report);
    double rest = own - fast.lincomb - fast.gram - fast.alloc;
    printf("what the library does, per model call: %.2f ms, of which\n", 1e3 * own / (double)fast.calls);
    printf("  linear combinations  %4.1f %%  (%.1f a call, %.2f ms each)\n", 100 * fast.lincomb / own,
           (double)fast.lincombs / (double)fast.calls, 1e3 * fast.lincomb / (double)fast.lincombs);
    printf("  Gram matrices        %4.1f %%  (%lu of them, %.1f ms each)\n", 100 * fast.gram / own,
           fast.grams, 1e3 * fast.gram / (double)fast.grams);
    printf("  memory               %4.1f %%\n", 100 * fast.alloc / own);
    printf("  all else             %4.1f %%\n", 100 * rest / own);

    int good = outside <= MOST_OUTSIDE;
    printf("%s  share of time outside the callbacks: %.2f %% (bar <= %.0f %%)\n", good ? "PASS" : "FAIL",
           100 * outside, 100 * MOST_OUTSIDE);
    return good ? 0 : 1;
}
