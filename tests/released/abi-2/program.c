/*
 * A host compiled against the first header of C ABI 2, whose structs were shorter: samples, distills and compares with
 * whatever library it finds. Prints the library's version; fails with a sentence.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lmsd.h"

#define LENGTH 6

#define CHECK(call)                                                                    \
    do {                                                                               \
        if ((call) != LMSD_STATUS_OK) {                                                \
            printf("line %d: %s: %s\n", __LINE__, #call, lmsd_last_error());           \
            return 1;                                                                  \
        }                                                                              \
    } while (0)
#define CLAIM(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            printf("line %d: %s does not hold\n", __LINE__, #condition);               \
            return 1;                                                                  \
        }                                                                              \
    } while (0)

static const int64_t SHAPE[] = {2, LENGTH / 2};

static lmsd_tensor tensor(double *values) {
    lmsd_tensor t = {.data = values, .device = {LMSD_DEVICE_CPU, 0}, .ndim = 2, .dtype = {LMSD_DTYPE_FLOAT, 64, 1}};
    t.shape = SHAPE;
    return t;
}

static void noise(uint64_t batch, double *x) {
    for (int i = 0; i < LENGTH; i++) x[i] = 112.0 * sin(1.7 * (double)(batch % 97) + 2.9 * i + 0.3);
}

static int begin(void *data, uint64_t batch, void *x_t) {
    (void)data;
    noise(batch, ((lmsd_tensor *)x_t)->data);
    return 0;
}

/* E[x0 | x] for data at -1 and 1 with standard deviation 0.4. */
static int model(void *data, const lmsd_call *call, const void *x, void *denoised) {
    const double *from = ((const lmsd_tensor *)x)->data;
    double *to = ((lmsd_tensor *)denoised)->data;
    double noise = call->sigma * call->sigma, all = 0.16 + noise;
    if (call->struct_size < sizeof *call || call->node >= (call->nfe ? call->nfe : 1)) return 1;
    for (int i = 0; i < LENGTH; i++) to[i] = (0.16 * from[i] + noise * tanh(from[i] / all)) / all;
    ++*(int *)data;
    return 0;
}

static int progress(void *data, const lmsd_progress *p) {
    (void)data;
    return p->struct_size < sizeof *p || p->batch != 2;
}

int main(void) {
    CLAIM(LMSD_ABI_VERSION == 2);
    if (lmsd_abi_version() != LMSD_ABI_VERSION) {
        printf("this program knows C ABI %d of lmsd, the library has %u\n", LMSD_ABI_VERSION, lmsd_abi_version());
        return 3;
    }
    int calls = 0;
    double x[LENGTH], end[LENGTH], values[LENGTH] = {0}, distances[2];
    lmsd_tensor state = tensor(x), out = tensor(end), like = tensor(values);
    lmsd_schedule *euler = NULL, *fitted = NULL;
    CHECK(lmsd_schedule_solve("{\"solver\": \"euler\", \"nfe\": 2}", &euler));
    noise(5, x);
    CHECK(lmsd_sample(euler, NULL, &state, model, NULL, &calls, &out));
    CLAIM(calls == 2 && isfinite(end[0]));

    lmsd_problem problem = {.struct_size = sizeof problem, .user_data = &calls, .like = &like, .begin = begin};
    problem.model = model;
    problem.progress = progress;
    lmsd_distilled *distilled = NULL;
    const char *options = "{\"nfe\": 2, \"trajectories\": 4, \"held_out\": 4, \"teacher_nfe\": 8, \"iterations\": 2}";
    CHECK(lmsd_distill(options, NULL, &problem, &distilled));
    CLAIM(lmsd_distilled_count(distilled) == 1);
    CHECK(lmsd_distilled_schedule(distilled, 0, &fitted));
    const lmsd_schedule *both[] = {euler, fitted};
    CHECK(lmsd_compare("{\"held_out\": 8, \"teacher_nfe\": 16}", NULL, &problem, 2, both, distances));
    CLAIM(distances[1] > 0 && distances[1] < distances[0]);

    lmsd_node node = {.struct_size = sizeof node};
    CHECK(lmsd_schedule_node(fitted, 1, &node));
    CLAIM(node.weight_count >= 1 && node.sigma > 0);
    lmsd_distilled_free(distilled);
    lmsd_schedule_free(euler);
    lmsd_schedule_free(fitted);
    printf("%s\n", lmsd_version());
    return 0;
}
