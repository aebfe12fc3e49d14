/*
 * A host of lmsd 0.1.0, compiled against its header: `program write DIR` wrote the files beside it with that library,
 * `program read DIR` reads them with whatever library it finds and samples step by step. Prints
 * numbers; fails with a sentence.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lmsd.h"

#define LENGTH 6

static const char *const NAMES[] = {"heun.json", "unipc.json", "flow.json", "distilled.json"};
static const char *const OPTIONS[] = {
    "{\"solver\": \"heun\", \"nfe\": 5}",
    "{\"solver\": \"unipc_bh2_3\", \"nfe\": 6, \"sigma_end\": 0.05, \"sigma_start\": 90}",
    "{\"solver\": \"dpmpp_2m\", \"nfe\": 4, \"process\": \"flow\", \"grid\": {\"kind\": \"flow\", \"shift\": 3}}",
};
/* The path goes between. */
static const char *const DISTILL[] = {
    "{\"nfe\": 2, \"trajectories\": 4, \"held_out\": 4, \"teacher_nfe\": 8, \"iterations\": 2, \"checkpoint\": \"", "\"}"};

static int check(int status, const char *what) {
    if (status != LMSD_STATUS_OK) printf("%s: status %d: %s\n", what, status, lmsd_last_error());
    return status;
}

/* E[x0 | x] for data at -1 and 1 with standard deviation 0.4. */
static void denoise(const double *x, double sigma, double *out) {
    for (int i = 0; i < LENGTH; i++) {
        double all = 0.16 + sigma * sigma;
        out[i] = (0.16 * x[i] + sigma * sigma * tanh(x[i] / all)) / all;
    }
}

static const int64_t SHAPE[] = {2, LENGTH / 2};

static lmsd_tensor tensor(double *values) {
    lmsd_tensor t = {.data = values, .device = {LMSD_DEVICE_CPU, 0}, .ndim = 2, .dtype = {LMSD_DTYPE_FLOAT, 64, 1}};
    t.shape = SHAPE;
    return t;
}

static void noise(uint64_t batch, double sigma, double *x) {
    for (int i = 0; i < LENGTH; i++) x[i] = 1.4 * sigma * sin(1.7 * (double)(batch % 97) + 2.9 * i + 0.3);
}

static int begin(void *data, uint64_t batch, void *x_t) {
    (void)data;
    noise(batch, 80.0, ((lmsd_tensor *)x_t)->data);
    return 0;
}

static int model(void *data, const void *x, double sigma, void *denoised) {
    (void)data;
    denoise(((const lmsd_tensor *)x)->data, sigma, ((lmsd_tensor *)denoised)->data);
    return 0;
}

static int distill(const char *checkpoint, lmsd_schedule **out) {
    char options[1024];
    double values[LENGTH] = {0};
    lmsd_tensor like = tensor(values);
    lmsd_problem problem = {.struct_size = sizeof problem, .like = &like, .begin = begin, .model = model};
    lmsd_distilled *distilled = NULL;
    snprintf(options, sizeof options, "%s%s%s", DISTILL[0], checkpoint, DISTILL[1]);
    if (check(lmsd_distill(options, NULL, &problem, &distilled), "distill")) return 1;
    int status = check(lmsd_distilled_schedule(distilled, 0, out), "distilled schedule");
    lmsd_distilled_free(distilled);
    return status;
}

/* The end point, by steps of the host's own. */
static int sample(const char *name, const lmsd_schedule *schedule) {
    double x[LENGTH], denoised[LENGTH], sigma;
    lmsd_tensor state = tensor(x), prediction = tensor(denoised);
    lmsd_sampler *sampler = NULL;
    noise(5, lmsd_schedule_sigma_start(schedule), x);
    if (check(lmsd_sampler_new(schedule, NULL, &state, &sampler), "sampler")) return 1;
    while (lmsd_sampler_index(sampler) < lmsd_schedule_nfe(schedule)) {
        if (check(lmsd_sampler_next(sampler, &sigma, &state), "next")) return 1;
        denoise(x, sigma, denoised);
        if (check(lmsd_sampler_step(sampler, &prediction), "step")) return 1;
    }
    if (check(lmsd_sampler_result(sampler, &state), "result")) return 1;
    lmsd_sampler_free(sampler);
    printf("%s", name);
    for (int i = 0; i < LENGTH; i++) printf(" %.17g", x[i]);
    printf("\n");
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    char path[1024];
    int writes = strcmp(argv[1], "write") == 0, reads = strcmp(argv[1], "read") == 0;
    if (!reads && lmsd_abi_version() != LMSD_ABI_VERSION) {
        printf("this program knows C ABI %d of lmsd, the library has %u\n", LMSD_ABI_VERSION, lmsd_abi_version());
        return 3;
    }
    for (int i = 0; i < 4; i++) {
        lmsd_schedule *schedule = NULL;
        snprintf(path, sizeof path, "%s/%s", argv[2], NAMES[i]);
        if (writes && i < 3 && check(lmsd_schedule_solve(OPTIONS[i], &schedule), "solve")) return 1;
        if (writes && i == 3) {
            char checkpoint[1024];
            snprintf(checkpoint, sizeof checkpoint, "%s/checkpoint", argv[2]);
            if (distill(checkpoint, &schedule)) return 1;
        }
        if (writes && check(lmsd_schedule_save(schedule, path), path)) return 1;
        if (!writes && check(lmsd_schedule_load(path, &schedule), path)) return 1;
        if (sample(NAMES[i], schedule)) return 1;
        lmsd_schedule_free(schedule);
    }
    return 0;
}
