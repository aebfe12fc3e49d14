/* Distils a sampler of few steps for a model that is known exactly: a Gaussian mixture over the 8x8
 * digits (digits_gmm.h). C11, needs nothing but the library and libm. digits_gmm --help says how to use it. */
#include <lmsd.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "digits_gmm.h"

#define K DIGITS_GMM_COMPONENTS
#define N DIGITS_GMM_PIXELS
#define BATCH 8
#define SIGMA_MAX "80"
#define SIGMA_END "0.002"

/* The mixture in numbers ready for use: the means both ways round, so that both inner loops are over
 * neighbours in memory. */
struct mixture {
    double mean[K][N], mean_by_pixel[N][K];
    double offset[K], size[K]; /* log w_k, |mu_k|^2 */
    uint64_t seed;
};

static void prepare(struct mixture *m) {
    for (int k = 0; k < K; k++) {
        m->offset[k] = log(digits_gmm_count[k] / (double)DIGITS_GMM_IMAGES);
        m->size[k] = 0;
        for (int i = 0; i < N; i++) {
            double v = digits_gmm_mean[k][i] / DIGITS_GMM_SCALE;
            m->mean[k][i] = m->mean_by_pixel[i][k] = v;
            m->size[k] += v * v;
        }
    }
}

/* The posterior mean of x0: the model. */
static void denoise(const struct mixture *m, const float *x, double sigma, float *denoised) {
    const double own = DIGITS_GMM_STD * DIGITS_GMM_STD, all = own + sigma * sigma;
    double dot[K] = {0}, share[K], sum = 0, best = -INFINITY, mean[N] = {0};
    for (int i = 0; i < N; i++) {
        for (int k = 0; k < K; k++) dot[k] += x[i] * m->mean_by_pixel[i][k];
    }
    /* log w_k - |x - mu_k|^2 / (2 all), up to |x|^2, which is the same for all components */
    for (int k = 0; k < K; k++) {
        share[k] = m->offset[k] + (dot[k] - m->size[k] / 2) / all;
        best = fmax(best, share[k]);
    }
    for (int k = 0; k < K; k++) sum += share[k] = exp(share[k] - best);
    for (int k = 0; k < K; k++) {
        for (int i = 0; i < N; i++) mean[i] += share[k] / sum * m->mean[k][i];
    }
    for (int i = 0; i < N; i++) denoised[i] = (float)(mean[i] + own / all * (x[i] - mean[i]));
}

static int model(void *user_data, const lmsd_call *call, const void *x, void *denoised) {
    const float *in = ((const lmsd_tensor *)x)->data;
    float *out = ((lmsd_tensor *)denoised)->data;
    for (int b = 0; b < BATCH; b++) denoise(user_data, in + b * N, call->sigma, out + b * N);
    return 0;
}

/* A number in (0, 1], by splitmix64. */
static double uniform(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)(((z ^ (z >> 31)) >> 11) + 1) * 0x1p-53;
}

/* x_T of a batch: normal numbers (Box and Muller) of standard deviation sigma_max, always the same. */
static int begin(void *user_data, uint64_t batch, void *x_t) {
    float *out = ((lmsd_tensor *)x_t)->data;
    uint64_t state = ((struct mixture *)user_data)->seed ^ (batch + 1) * 0xd1342543de82ef95u;
    for (int i = 0; i < BATCH * N; i += 2) {
        double radius = atof(SIGMA_MAX) * sqrt(-2 * log(uniform(&state)));
        double angle = 6.283185307179586 * uniform(&state);
        out[i] = (float)(radius * cos(angle));
        out[i + 1] = (float)(radius * sin(angle));
    }
    return 0;
}

static int progress(void *user_data, const lmsd_progress *p) {
    static const char *const phases[] = {[LMSD_PHASE_TEACHER] = "teacher", [LMSD_PHASE_RANK] = "ranking",
                                         [LMSD_PHASE_FIT] = "fitting",     [LMSD_PHASE_GROW] = "growing",
                                         [LMSD_PHASE_PLAN] = "planned",    [LMSD_PHASE_COMPARE] = "comparing"};
    (void)user_data;
    fprintf(stderr, "\r%s, NFE %zu, call %llu of %llu, %.0f s left", phases[p->phase], p->nfe,
            (unsigned long long)p->calls, (unsigned long long)p->calls_expected, p->seconds_left);
    if (isfinite(p->distance)) {
        fprintf(stderr, ", distance %.4f (handcrafted %.4f)", p->distance, p->handcrafted);
    }
    fputs("      ", stderr);
    return 0;
}

/* Ends the program where a call has failed. */
static void ok(lmsd_status status) {
    if (status == LMSD_STATUS_OK) return;
    fprintf(stderr, "\ndigits_gmm: %s\n", lmsd_last_error());
    exit(1);
}

static const char *const SOLVERS[] = {"euler", "dpmpp_2m", "dpmpp_3m", "ipndm_3", "ipndm_4"};
static const char *const GRIDS[] = {
    "{\"kind\": \"karras\", \"rho\": 3}",
    "{\"kind\": \"karras\", \"rho\": 5}",
    "{\"kind\": \"karras\", \"rho\": 7}",
    "{\"kind\": \"log\"}",
};
enum { SOLVER_COUNT = sizeof SOLVERS / sizeof *SOLVERS, GRID_COUNT = sizeof GRIDS / sizeof *GRIDS };
enum { HANDCRAFTED = 2 * SOLVER_COUNT * GRID_COUNT };

static lmsd_schedule *handcrafted(int index, int nfe) {
    char options[400];
    lmsd_schedule *schedule = NULL;
    snprintf(options, sizeof options,
             "{\"solver\": \"%s\", \"grid\": %s, \"nfe\": %d, \"sigma_max\": " SIGMA_MAX
             ", \"sigma_end\": " SIGMA_END ", \"lower_order_final\": %s}",
             SOLVERS[index / 2 / GRID_COUNT], GRIDS[index / 2 % GRID_COUNT], nfe,
             index % 2 ? "true" : "false");
    ok(lmsd_schedule_solve(options, &schedule));
    return schedule;
}

static const char HELP[] =
    "usage: digits_gmm [--nfe N] [--trajectories N] [--seed N] [--out FILE]\n"
    "Distils a sampler for a Gaussian mixture over the 8x8 digits, and compares it with the handcrafted\n"
    "solvers on trajectories that it never saw: the mean Euclidean distance to a teacher of 100 steps.\n"
    "  --nfe N           model calls of the sampler (5)\n"
    "  --trajectories N  to fit to, each once (84)\n"
    "  --seed N          of the noise (1)\n"
    "  --out FILE        the schedule (digits_gmm.json)\n";

int main(int argc, char **argv) {
    int nfe = 5, trajectories = 84;
    const char *out = "digits_gmm.json";
    static struct mixture mixture;
    mixture.seed = 1;
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(name, "--help") == 0) {
            fputs(HELP, stdout);
            return 0;
        }
        if (value != NULL && strcmp(name, "--nfe") == 0) {
            nfe = atoi(value);
        } else if (value != NULL && strcmp(name, "--trajectories") == 0) {
            trajectories = atoi(value);
        } else if (value != NULL && strcmp(name, "--seed") == 0) {
            mixture.seed = strtoull(value, NULL, 10);
        } else if (value != NULL && strcmp(name, "--out") == 0) {
            out = value;
        } else {
            fputs(HELP, stderr);
            return 2;
        }
    }
    prepare(&mixture);

    const int64_t shape[] = {BATCH, 1, 8, 8};
    static float memory[BATCH * N];
    lmsd_tensor like = {memory, {LMSD_DEVICE_CPU, 0}, 4, {LMSD_DTYPE_FLOAT, 32, 1}, shape, NULL, 0};
    lmsd_problem problem = {.struct_size = sizeof problem,
                            .user_data = &mixture,
                            .like = &like,
                            .begin = begin,
                            .model = model,
                            .progress = progress};
    const char *levels =
        "\"process\": \"ve\", \"sigma_min\": " SIGMA_END ", \"sigma_max\": " SIGMA_MAX ", \"sigma_end\": " SIGMA_END;
    char options[400], comparison[400];
    snprintf(options, sizeof options,
             "{\"nfe\": %d, %s, \"trajectories\": %d, \"seeds\": \"%llu\","
             " \"made_for\": {\"model\": \"digits_gmm\", \"latent_shape\": [1, 8, 8]}}",
             nfe, levels, trajectories, (unsigned long long)mixture.seed);
    snprintf(comparison, sizeof comparison, "{%s, \"held_out\": 512, \"teacher_nfe\": 100}", levels);
    lmsd_distilled *distilled = NULL;
    lmsd_schedule *schedule = NULL;
    ok(lmsd_distill(options, NULL, &problem, &distilled));
    ok(lmsd_distilled_schedule(distilled, 0, &schedule));
    ok(lmsd_schedule_save(schedule, out));
    fputc('\n', stderr);
    problem.progress = NULL;

    const lmsd_schedule *all[HANDCRAFTED + 1] = {schedule};
    double distances[HANDCRAFTED + 1];
    for (int i = 0; i < HANDCRAFTED; i++) all[i + 1] = handcrafted(i, nfe);
    ok(lmsd_compare(comparison, NULL, &problem, HANDCRAFTED + 1, all, distances));
    int best = 0;
    for (int i = 0; i < HANDCRAFTED; i++) {
        if (distances[i + 1] < distances[best + 1]) best = i;
    }
    printf("NFE          %d\n", nfe);
    printf("handcrafted  %.4f  %s on %s\n", distances[best + 1], SOLVERS[best / 2 / GRID_COUNT],
           GRIDS[best / 2 % GRID_COUNT]);
    printf("distilled    %.4f  %s\n", distances[0], out);
    printf("ratio        %.2f\n", distances[best + 1] / distances[0]);

    for (int i = 0; i < HANDCRAFTED; i++) lmsd_schedule_free((lmsd_schedule *)all[i + 1]);
    lmsd_schedule_free(schedule);
    lmsd_distilled_free(distilled);
    return 0;
}
