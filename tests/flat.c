/* Memory stays flat: samples in both forms, schedules made, read and written, failing calls, fits. Linux.
 *
 *     flat SAMPLES FITS       prints resident memory on the way; 1 where it grew by more than 1 MiB after the first tenth */

#define _GNU_SOURCE

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lmsd.h"

#define BATCH 4
#define LENGTH 6
#define SIZE (BATCH * LENGTH)
#define MOST 1024 /* KiB */
static const int64_t SHAPE[] = {BATCH, LENGTH};
static double x[SIZE], y[SIZE];

static lmsd_tensor tensor(double *data) {
    lmsd_tensor t = {0};
    t.data = data;
    t.device.device_type = LMSD_DEVICE_CPU;
    t.ndim = 2;
    t.dtype = (lmsd_dtype){LMSD_DTYPE_FLOAT, 64, 1};
    t.shape = SHAPE;
    return t;
}

static int model(void *user, const lmsd_call *call, const void *in, void *out) {
    (void)user;
    const double *from = ((const lmsd_tensor *)in)->data;
    double *to = ((lmsd_tensor *)out)->data, all = 0.09 + call->sigma * call->sigma;
    for (int i = 0; i < SIZE; i++) to[i] = 0.09 / all * from[i] + (1 - 0.09 / all) * tanh(from[i] / all);
    return 0;
}

static int begin(void *user, uint64_t batch, void *x_t) {
    (void)user;
    uint64_t state = batch + 1;
    for (int i = 0; i < SIZE; i++) {
        double u[2];
        for (int j = 0; j < 2; j++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            u[j] = ((double)(state >> 11) + 0.5) * 0x1p-53;
        }
        ((double *)((lmsd_tensor *)x_t)->data)[i] = 80 * sqrt(-2 * log(u[0])) * cos(6.283185307179586 * u[1]);
    }
    return 0;
}

static long resident(void) {
    long pages[2] = {0, 0};
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%ld %ld", &pages[0], &pages[1]) != 2) exit(1);
    fclose(file);
    return pages[1] * sysconf(_SC_PAGESIZE) >> 10;
}

/* In both forms, and around them what a program does that has many schedules. */
static bool sample(long turn, const lmsd_schedule *kept) {
    lmsd_tensor tx = tensor(x), ty = tensor(y);
    if (turn % 2 == 0) return lmsd_sample(kept, NULL, &tx, model, NULL, NULL, &ty) == LMSD_STATUS_OK;
    lmsd_schedule *s = NULL, *none = NULL;
    lmsd_sampler *run = NULL;
    char *text = NULL;
    bool good = lmsd_schedule_to_json(kept, &text) == LMSD_STATUS_OK &&
                lmsd_schedule_from_json(text, strlen(text), &s) == LMSD_STATUS_OK &&
                lmsd_schedule_from_json(text, strlen(text) / 2, &none) == LMSD_STATUS_INVALID_SCHEDULE &&
                lmsd_sampler_new(s, NULL, &tx, &run) == LMSD_STATUS_OK;
    lmsd_schedule_free(s);
    while (good && lmsd_sampler_index(run) < lmsd_schedule_nfe(kept)) {
        lmsd_call call = {.struct_size = sizeof call};
        good = lmsd_sampler_next(run, &call.sigma, &ty) == LMSD_STATUS_OK && model(NULL, &call, &ty, &ty) == 0 &&
               lmsd_sampler_step(run, &ty) == LMSD_STATUS_OK;
    }
    lmsd_sampler_free(run), lmsd_string_free(text);
    return good;
}

static bool fit(long turn, const lmsd_schedule *unused) {
    (void)turn, (void)unused;
    lmsd_tensor tx = tensor(x);
    lmsd_problem p = {.struct_size = sizeof p, .like = &tx, .begin = begin, .model = model};
    lmsd_distilled *made = NULL;
    char *text = NULL;
    bool good = lmsd_distill("{\"nfe\": 2, \"trajectories\": 8, \"held_out\": 4, \"teacher_nfe\": 16}", NULL, &p,
                             &made) == LMSD_STATUS_OK &&
                lmsd_distilled_report(made, &text) == LMSD_STATUS_OK;
    lmsd_string_free(text), lmsd_distilled_free(made);
    return good;
}

static bool flat(const char *what, bool (*work)(long, const lmsd_schedule *), long count, const lmsd_schedule *s) {
    long after_a_tenth = 0, most = 0;
    for (long turn = 0; turn < count; turn++) {
        if (!work(turn, s)) {
            fprintf(stderr, "%s %ld: %s\n", what, turn, lmsd_last_error());
            return false;
        }
        long tenth = count / 10 + (count < 10);
        if ((turn + 1) % tenth != 0) continue;
        long now = resident();
        if (turn < tenth) after_a_tenth = now;
        if (now - after_a_tenth > most) most = now - after_a_tenth;
    }
    printf("%ld %s: %ld KiB after a tenth of them, at most %ld KiB more later\n", count, what, after_a_tenth, most);
    return most <= MOST;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    lmsd_schedule *s = NULL;
    if (lmsd_schedule_solve("{\"nfe\": 5}", &s) != LMSD_STATUS_OK) return 1;
    lmsd_tensor tx = tensor(x);
    begin(NULL, 1, &tx);
    bool good = flat("samples", sample, atol(argv[1]), s);
    good &= flat("fits", fit, atol(argv[2]), s);
    lmsd_schedule_free(s);
    return !good;
}
